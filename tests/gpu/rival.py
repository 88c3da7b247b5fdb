#!/usr/bin/env python3
"""The rival of `make bench-gpu`: plain PyTorch blocks of the 13B transformer's shapes, random bf16 weights.

    rival.py [--size WxH] [--frames N] [--text-rows N] [--attention cudnn|flash|efficient|math|auto] [--json]

Times one double-stream and one single-stream block at the full number of rows, as eager PyTorch runs them, and
reckons a forward (one guidance branch) as 20 of the first and 40 of the second. Audio adapters, embedders and the final
layer are left out, which favours the rival a little. The peak is what torch reserved for one block of each kind and its
activations, and the CUDA context; the weights of all sixty blocks come on top of that in a program that keeps them on
the device. Nothing here is tuned: it is what a direct transcription of the published blocks costs.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DOUBLE, SINGLE = 20, 40
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


class Shape:
    def __init__(self, o):
        width, height = (int(n) for n in o.size.lower().split("x"))
        self.grid = ((o.frames - 1) // 4 + 2, height // 16, width // 16)    # latent frames and the reference; patches
        self.image = self.grid[0] * self.grid[1] * self.grid[2]
        self.text = o.text_rows
        self.rows = self.image + self.text
        self.hidden, self.heads, self.mlp = o.hidden, o.heads, 4 * o.hidden
        self.head = self.hidden // self.heads


def weights(device, *shape):
    return torch.randn(*shape, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5


def linear(device, rows, cols):
    return weights(device, rows, cols), weights(device, rows)


def rope_tables(s, device):
    """cos and sin [image rows, head / 2]: a share of the pairs for time, rows and columns each."""
    pairs = s.head // 2
    share = (pairs // 8, (pairs - pairs // 8) // 2, pairs - pairs // 8 - (pairs - pairs // 8) // 2)
    angles = []
    for axis, n in enumerate(share):
        freq = 256.0 ** (-torch.arange(n, device=device, dtype=torch.float32) / n)
        at = torch.arange(s.grid[axis], device=device, dtype=torch.float32)[:, None] * freq
        size = [1, 1, 1, n]
        size[axis] = s.grid[axis]
        angles.append(at.reshape(size).expand(*s.grid, n))
    a = torch.cat(angles, -1).reshape(s.image, 1, pairs)
    return a.cos(), a.sin()


def rope(x, tables):
    """Turns neighbouring pairs of [rows, heads, width]; rows beyond the tables (text) stay."""
    cos, sin = tables
    n = cos.shape[0]
    a, b = x[:n].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)
    return torch.cat((turned, x[n:])) if n < x.shape[0] else turned


def norm_modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def attention(q, k, v):
    """[rows, heads, width] each -> [rows, heads * width]"""
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1).flatten(1)


class Stream:
    """Image or text in a double block."""

    def __init__(self, s, device):
        h = s.hidden
        self.s = s
        self.mod = linear(device, 6 * h, h)
        self.qkv, self.proj = linear(device, 3 * h, h), linear(device, h, h)
        self.fc1, self.fc2 = linear(device, s.mlp, h), linear(device, h, s.mlp)
        self.q_norm, self.k_norm = 1 + weights(device, s.head), 1 + weights(device, s.head)

    def before(self, x, vec):
        self.m = F.linear(F.silu(vec), *self.mod).chunk(6)
        qkv = F.linear(norm_modulate(x, self.m[0], self.m[1]), *self.qkv)
        q, k, v = qkv.unflatten(-1, (3, self.s.heads, -1)).unbind(1)
        w = (self.s.head,)
        return F.rms_norm(q, w, self.q_norm, 1e-6), F.rms_norm(k, w, self.k_norm, 1e-6), v

    def after(self, x, o):
        m = self.m
        x = x + m[2] * F.linear(o, *self.proj)
        y = F.gelu(F.linear(norm_modulate(x, m[3], m[4]), *self.fc1), approximate="tanh")
        return x + m[5] * F.linear(y, *self.fc2)

    def numbers(self):
        return sum(t.numel() for pair in (self.mod, self.qkv, self.proj, self.fc1, self.fc2) for t in pair)


class Double:
    def __init__(self, s, device):
        self.img, self.txt = Stream(s, device), Stream(s, device)

    def __call__(self, img, txt, vec, tables):
        q, k, v = self.img.before(img, vec)
        tq, tk, tv = self.txt.before(txt, vec)
        q, k = rope(q, tables), rope(k, tables)
        o = attention(torch.cat((q, tq)), torch.cat((k, tk)), torch.cat((v, tv)))
        n = img.shape[0]
        return self.img.after(img, o[:n]), self.txt.after(txt, o[n:])

    def numbers(self):
        return self.img.numbers() + self.txt.numbers()


class Single:
    def __init__(self, s, device):
        h = s.hidden
        self.s = s
        self.mod = linear(device, 3 * h, h)
        self.linear1, self.linear2 = linear(device, 3 * h + s.mlp, h), linear(device, h, h + s.mlp)
        self.q_norm, self.k_norm = 1 + weights(device, s.head), 1 + weights(device, s.head)

    def __call__(self, x, vec, tables):
        s, w = self.s, (self.s.head,)
        shift, scale, gate = F.linear(F.silu(vec), *self.mod).chunk(3)
        qkv, mlp = F.linear(norm_modulate(x, shift, scale), *self.linear1).split((3 * s.hidden, s.mlp), -1)
        q, k, v = qkv.unflatten(-1, (3, s.heads, -1)).unbind(1)
        q = rope(F.rms_norm(q, w, self.q_norm, 1e-6), tables)
        k = rope(F.rms_norm(k, w, self.k_norm, 1e-6), tables)
        y = torch.cat((attention(q, k, v), F.gelu(mlp, approximate="tanh")), -1)
        return x + gate * F.linear(y, *self.linear2)

    def numbers(self):
        return sum(t.numel() for pair in (self.mod, self.linear1, self.linear2) for t in pair)


def flops(s):
    """Of a double block, of a single block, of one attention; a multiply-add counts 2."""
    h, attn = s.hidden, 4 * s.rows * s.rows * s.hidden
    double = 2 * s.rows * (3 * h * h + h * h + 2 * h * s.mlp) + attn
    single = 2 * s.rows * (h * (3 * h + s.mlp) + (h + s.mlp) * h) + attn
    return double, single, attn


def seconds(device, f, hold):
    """Median time of f over `hold` seconds, after as long of warming up: a GPU that has been idle runs faster for a while."""
    times, start = [], time.perf_counter()
    while True:
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            f()
            end.record()
            torch.cuda.synchronize(device)
            t = begin.elapsed_time(end) * 1e-3
        else:
            t = time.perf_counter()
            f()
            t = time.perf_counter() - t
        passed = time.perf_counter() - start
        if passed > hold or not hold:
            times.append(t)
        if passed > 2 * hold and times:
            return statistics.median(times)


def measure(o):
    device = torch.device(o.device)
    s = Shape(o)
    torch.manual_seed(1)
    img, txt = weights(device, s.image, s.hidden), weights(device, s.text, s.hidden)
    vec = weights(device, s.hidden)
    tables = rope_tables(s, device)
    double, single = Double(s, device), Single(s, device)
    numbers = DOUBLE * double.numbers() + SINGLE * single.numbers()

    double_s = seconds(device, lambda: double(img, txt, vec, tables), o.hold)
    joint = torch.cat((img, txt))
    single_s = seconds(device, lambda: single(joint, vec, tables), o.hold)
    peak = context = 0
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        context = total - free - torch.cuda.memory_reserved(device)     # and whatever else runs on the device
    q, k, v = (torch.randn(s.rows, s.heads, s.head, device=device, dtype=torch.bfloat16) for _ in range(3))
    attention_s = seconds(device, lambda: attention(q, k, v), o.hold / 2)

    work = flops(s)
    forward_s = DOUBLE * double_s + SINGLE * single_s
    forward_flops = DOUBLE * work[0] + SINGLE * work[1]
    return {
        "name": "pytorch",
        "attention": o.attention,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "size": o.size,
        "frames": o.frames,
        "rows": s.rows,
        "seconds": forward_s,
        "double_seconds": double_s,
        "single_seconds": single_s,
        "attention_seconds": attention_s,
        "flops": forward_flops,
        "tflops": forward_flops / forward_s * 1e-12,
        "attention_tflops": work[2] / attention_s * 1e-12,
        "peak_bytes": peak + context,
        "context_bytes": context,
        "all_weights_bytes": 2 * numbers,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--size", default="768x704", help="WxH, multiples of 16")
    p.add_argument("--frames", type=int, default=129, help="4 n + 1")
    p.add_argument("--text-rows", type=int, default=256)
    p.add_argument("--attention", default="cudnn", choices=[*BACKENDS, "auto"])
    p.add_argument("--hold", type=float, default=2.5, help="seconds that each block is warmed up, and then timed")
    p.add_argument("--device", default="cuda")
    p.add_argument("--hidden", type=int, default=3072, help="for trying this script out")
    p.add_argument("--heads", type=int, default=24)
    p.add_argument("--json", action="store_true")
    o = p.parse_args()
    if o.device.startswith("cuda") and not torch.cuda.is_available():
        print("rival.py: torch finds no GPU", file=sys.stderr)
        return 6

    with torch.inference_mode():
        if o.attention == "auto":
            r = measure(o)
        else:
            with sdpa_kernel(BACKENDS[o.attention]):
                r = measure(o)
    if o.json:
        print(json.dumps(r))
        return 0
    mib = 1 / 1048576
    print(f"{r['device']}, torch {r['torch']}, {r['attention']} attention, {r['size']}, {r['frames']} frames:"
          f" {r['rows']} rows")
    print(f"  double block {r['double_seconds'] * 1e3:.1f} ms, single block {r['single_seconds'] * 1e3:.1f} ms,"
          f" attention alone {r['attention_seconds'] * 1e3:.1f} ms ({r['attention_tflops']:.0f} TFLOP/s)")
    print(f"  a forward of {DOUBLE} + {SINGLE} blocks: {r['seconds']:.2f} s, {r['tflops']:.0f} TFLOP/s, without adapters")
    print(f"  peak {r['peak_bytes'] * mib:.0f} MiB with one block of each kind, {r['context_bytes'] * mib:.0f} of it"
          f" context; the weights of all blocks would take {r['all_weights_bytes'] * mib:.0f} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
