#!/usr/bin/env python3
"""The VAE's decoder as plain PyTorch has it, for one tile of 17x32x32 latents at full size with random weights in half precision:
the time that hv-decode's is a ratio to. Convolutions are cuDNN's, channels last; the norm's result, the padded copy and the upsampled
tensor exist, as in the official program; its tiling and blending are left out. --json: seconds of a tile, peak bytes.
--convs: only the rates of its convolutions."""
import argparse
import json
import time

import torch
import torch.nn.functional as F

DEV, HALF = "cuda", torch.float16


def weights(*shape):
    return torch.randn(shape, device=DEV, dtype=HALF) * (2 / (shape[1] * shape[2] ** 3)) ** 0.5


class Conv:
    def __init__(self, ci, co, k=3):
        self.w = weights(co, ci, k, k, k).to(memory_format=torch.channels_last_3d)
        self.b = torch.zeros(co, device=DEV, dtype=HALF)
        self.k = k

    def __call__(self, x):
        if self.k > 1:
            x = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate").contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, self.w, self.b)


class Norm:
    def __init__(self, c):
        self.w, self.b = torch.ones(c, device=DEV, dtype=HALF), torch.zeros(c, device=DEV, dtype=HALF)

    def __call__(self, x):
        return F.silu(F.group_norm(x, 32, self.w, self.b, 1e-6), inplace=True)


class Resnet:
    def __init__(self, ci, co):
        self.n1, self.c1, self.n2, self.c2 = Norm(ci), Conv(ci, co), Norm(co), Conv(co, co)
        self.cut = Conv(ci, co, 1) if ci != co else None

    def __call__(self, x):
        h = self.c2(self.n2(self.c1(self.n1(x))))
        return (self.cut(x) if self.cut else x) + h


def upsample(x, time_too):
    first, rest = x[:, :, :1], x[:, :, 1:]
    first = F.interpolate(first.squeeze(2), scale_factor=2, mode="nearest").unsqueeze(2)
    if rest.shape[2]:
        rest = F.interpolate(rest, scale_factor=(2 if time_too else 1, 2, 2), mode="nearest")
    return torch.cat([first, rest], 2).contiguous(memory_format=torch.channels_last_3d)


class Decoder:
    def __init__(self):
        widths = [512, 512, 256, 128]
        self.first, self.mid = Conv(16, 512), [Resnet(512, 512), Resnet(512, 512)]
        self.qkvo = [torch.randn(512, 512, device=DEV, dtype=HALF) * 0.04 for _ in range(4)]
        self.levels, before = [], 512
        for i, c in enumerate(widths):
            self.levels.append(([Resnet(before if r == 0 else c, c) for r in range(3)], Conv(c, c) if i < 3 else None))
            before = c
        self.norm, self.last = Norm(128), Conv(128, 3)

    def attention(self, x):
        b, c, t, h, w = x.shape
        n = F.group_norm(x, 32).permute(0, 2, 3, 4, 1).reshape(1, 1, t * h * w, c)
        q, k, v = (n @ m for m in self.qkvo[:3])
        out = torch.cat([F.scaled_dot_product_attention(q[:, :, i * h * w:(i + 1) * h * w], k[:, :, :(i + 1) * h * w],
                                                        v[:, :, :(i + 1) * h * w]) for i in range(t)], 2)
        return x + (out @ self.qkvo[3]).reshape(1, t, h, w, c).permute(0, 4, 1, 2, 3)

    def __call__(self, z):
        x = self.mid[1](self.attention(self.mid[0](self.first(z))))
        for i, (resnets, up) in enumerate(self.levels):
            for r in resnets:
                x = r(x)
            if up:
                x = up(upsample(x, i > 0))
        return self.last(self.norm(x))


def timed(f, n):
    f()
    torch.cuda.synchronize()
    t = time.time()
    for _ in range(n):
        f()
    torch.cuda.synchronize()
    return (time.time() - t) / n


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--json", action="store_true"), a.add_argument("--convs", action="store_true")
    o = a.parse_args()
    torch.backends.cudnn.benchmark = True
    with torch.no_grad():
        if o.convs:
            for ci, co, t, s in ((128, 128, 4, 256), (256, 128, 4, 256), (256, 256, 16, 128), (512, 512, 17, 64), (512, 512, 17, 32)):
                w = weights(co, ci, 3, 3, 3).to(memory_format=torch.channels_last_3d)
                x = torch.randn(1, ci, t + 2, s + 2, s + 2, device=DEV, dtype=HALF).to(memory_format=torch.channels_last_3d)
                d = timed(lambda: F.conv3d(x, w), 20)
                print("torch %d->%d %dx%dx%d: %.1f us, %.1f TFLOP/s" % (ci, co, t, s, s, 1e6 * d, 54e-12 * ci * co * t * s * s / d))
            return
        net = Decoder()
        z = torch.randn(1, 16, 17, 32, 32, device=DEV, dtype=HALF).to(memory_format=torch.channels_last_3d)
        torch.cuda.reset_peak_memory_stats()
        s = timed(lambda: net(z), 3)
    d = {"seconds": s, "bytes": torch.cuda.max_memory_allocated()}
    print(json.dumps(d) if o.json else "a tile: %.4f s, %.2f GiB" % (s, d["bytes"] / 2**30))


if __name__ == "__main__":
    main()
