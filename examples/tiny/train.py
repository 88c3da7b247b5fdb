#!/usr/bin/env python3
"""Trains the tiny model from nothing and makes a model folder of it. README.md has the recipe.

    train.py all --out DIR --bin build/bin      everything below, in this order
    train.py prepare ...                        speech, text encoders, states of prompts: DIR/corpus.npz (espeak-ng, hv; no GPU)
    train.py train ...                          VAE, transformer with audio encoder, face detector: DIR/model (PyTorch alone)
    train.py check ...                          the stages in C against these networks, on the same inputs
    train.py ship ... MODEL                     the folder that the repository carries: int8 and bf16
    --smoke                                     every stage for seconds, to see that all of it runs

A stage that is done is not done again (DIR/STAGE.pt); one that was cut off goes on where it was. --seed fixes the data and the
start; how many steps fit into --minutes depends on the machine: the number is printed, and --steps repeats it."""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

import cartoons as C
import check
import networks
import tensors

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = ("vae", "transformer", "audio_encoder", "face_detector")
SHARE = {"vae": 0.3, "talk": 0.65, "face": 0.05}        # of the time
LONG = 193                                              # frames of a clip of the pool: 49 latent frames, windows of 33


def config(part):
    with open(os.path.join(HERE, "config", part, "config.json"), encoding="utf-8") as f:
        return json.load(f)


RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def say(*words):
    if RANK == 0:
        print(*words, flush=True)


class Ema:
    """Running mean of the weights, decay 0.998, shorter at the start."""

    def __init__(self, net):
        self.mean, self.n = {k: v.detach().clone() for k, v in net.state_dict().items()}, 0

    def update(self, net):
        self.n += 1
        d = min(0.998, (1 + self.n) / (10 + self.n))
        src = net.state_dict()
        torch._foreach_lerp_([*self.mean.values()], [src[k] for k in self.mean], 1 - d)


class Stage:
    """Time, learning rate, checkpoints and the log of one stage."""

    def __init__(self, run, name, nets, lr=1e-3, warm=100, floor=0.02, decay=0.0):
        self.run, self.name, self.nets, self.lr, self.warm, self.floor = run, name, nets, lr, warm, floor
        self.path = os.path.join(run.o.out, name + ".pt")
        for n in nets.values():
            n.requires_grad_(True)                          # an earlier stage may have had them
            for t in n.state_dict().values() if WORLD > 1 else ():
                dist.broadcast(t, 0)                        # one start for all processes
        groups = [{"params": [p for n in nets.values() for p in n.parameters() if (p.dim() > 1) == m], "weight_decay": decay if m else 0.0}
                  for m in (True, False)]
        self.opt = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=run.cuda)
        self.ema = {k: Ema(n) for k, n in nets.items()}
        self.step, self.spent, self.done, self.extra = 0, 0.0, False, {}
        self.limit = run.o.minutes * 60 * SHARE[name] / sum(SHARE[k] for k in run.o.only)
        self.steps = run.o.steps.get(name)
        if os.path.exists(self.path):
            s = torch.load(self.path, map_location=run.device, weights_only=True)
            if name in run.o.again:
                s.update(done=False, spent=0.0, extra={})
            for k, n in nets.items():
                n.load_state_dict(s["nets"][k])
                self.ema[k].mean, self.ema[k].n = s["ema"][k], s["step"]
            self.opt.load_state_dict(s["opt"])
            self.step, self.spent, self.done, self.extra = s["step"], s["spent"], s["done"], s["extra"]
            run.g.manual_seed(run.o.seed + self.step)       # what comes next, not what was seen before
            say("%s: %s, %d steps" % (name, "done" if self.done else "goes on", self.step))
        self.began, self.saved, self.sums = time.time() - self.spent, time.time(), {}
        self.passed = self.spent / self.limit

    def at(self):
        """How far the stage is, 0..1."""
        return self.step / self.steps if self.steps else self.passed

    def going(self):
        return not self.done and (self.at() < 1 or self.step < 2)

    def share(self):
        """Mean gradients and mean time of all processes."""
        self.passed = (time.time() - self.began) / self.limit
        if WORLD == 1:
            return
        grads = [p.grad for n in self.nets.values() for p in n.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([self.passed], device=self.run.device)])
        dist.all_reduce(flat)
        flat /= WORLD
        torch._foreach_copy_(grads, [f.view_as(g) for f, g in zip(flat[:-1].split([g.numel() for g in grads]), grads)])
        self.passed = float(flat[-1])

    def learn(self, loss, shown):
        self.share()
        rate = self.lr * min(1, (self.step + 1) / self.warm) * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1, self.at()))))
        for g in self.opt.param_groups:
            g["lr"] = rate
        torch.nn.utils.clip_grad_norm_([p for n in self.nets.values() for p in n.parameters() if p.grad is not None], 1.0)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        for k, n in self.nets.items():
            self.ema[k].update(n)
        self.step += 1
        for k, v in shown.items():
            self.sums[k] = self.sums.get(k, 0) + v.detach()
        every = 10 if self.run.o.smoke else 100
        if self.step % every == 0:
            mean = {k: float(v) / every for k, v in self.sums.items()}
            self.sums = {}
            say("%s %5d steps %5.0f s  %s" % (self.name, self.step, time.time() - self.began, "  ".join("%s %.4f" % kv for kv in mean.items())))
            if not all(math.isfinite(v) for v in mean.values()):
                raise SystemExit(self.name + ": the loss is no number any more")
        if time.time() - self.saved > 60:
            self.save()

    def save(self, done=False):
        self.done, self.spent, self.saved = done, time.time() - self.began, time.time()
        if RANK:
            return
        torch.save({"nets": {k: n.state_dict() for k, n in self.nets.items()}, "ema": {k: e.mean for k, e in self.ema.items()},
                    "opt": self.opt.state_dict(), "step": self.step, "spent": self.spent, "done": done, "extra": self.extra}, self.path + ".new")
        os.replace(self.path + ".new", self.path)

    def finish(self):
        """The means become the networks."""
        if not self.done:
            self.save(True)
            say("%s: %d steps in %.0f s" % (self.name, self.step, self.spent))
        for k, n in self.nets.items():
            n.load_state_dict(self.ema[k].mean)
            n.eval().requires_grad_(False)


def boxes_mask(box, size):
    """[n, 4] in pixels of 128 -> [n, size, size] of 0 and 1, by the centres of the cells."""
    c = (torch.arange(size, device=box.device) + 0.5) * (C.SIZE / size)
    x0, y0, x1, y1 = (box[:, i, None, None] for i in range(4))
    return ((c[None, None] >= x0) & (c[None, None] <= x1) & (c[None, :, None] >= y0) & (c[None, :, None] <= y1)).float()


def area(frames, box):
    """Dark area in the mouth box of frames [F, 3, H, W] in 0..1: box [4]."""
    x0, y0, x1, y1 = [int(round(float(v))) for v in box]
    f = frames[:, :, max(0, y0):y1, max(0, x0):x1]
    luma = 0.299 * f[:, 0] + 0.587 * f[:, 1] + 0.114 * f[:, 2]
    return ((0.30 - luma) / 0.12).clamp(0, 1).sum((1, 2))


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt().clamp(min=1e-9))


def psnr(d):
    """Of differences on a scale of 0..1."""
    return float(-10 * (d * d).mean().clamp(min=1e-12).log10())


def unlike(d, w):
    """What differences d of clips cost, frame by frame, where pixels have the weights w."""
    edges = (d[..., 1:, :] - d[..., :-1, :]).abs().mean() + (d[..., 1:] - d[..., :-1]).abs().mean()
    return (w * d.abs()).mean() + 2 * (w * d * d).mean() + 0.5 * edges


class Run:
    def __init__(self, o):
        self.long = 133 if o.smoke else LONG
        self.o, self.device = o, torch.device("cuda" if torch.cuda.is_available() and not o.cpu else "cpu")
        self.cuda = self.device.type == "cuda"
        if WORLD > 1:
            if self.cuda:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if self.cuda else "gloo")
        self.g = torch.Generator().manual_seed(o.seed)
        torch.manual_seed(o.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_cudnn_sdp(False)     # it plans anew for every number of text rows
        if not self.cuda and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(2)
        os.makedirs(o.out, exist_ok=True)
        d = np.load(os.path.join(o.out, "corpus.npz"))
        self.speech = torch.from_numpy(d["speech"].astype(np.float32) / 32768).to(self.device)
        ends = np.cumsum(d["lengths"])
        self.said = [(int(e - n), int(e), bool(h)) for e, n, h in zip(ends, d["lengths"], d["held"])]
        self.text = self.by_rows(d)
        self.vae = networks.Vae(config("vae")).to(self.device)
        self.vae_scale = config("vae")["scaling_factor"]
        self.dit = networks.Transformer(config("transformer")).start().to(self.device)
        self.audio = networks.Audio(config("audio_encoder")).to(self.device)
        self.face = networks.Face(config("face_detector")).to(self.device)
        if o.start:
            net, cfg = check.load(o.start, "vae", networks.Vae)
            self.vae, self.vae_scale = net.to(self.device), cfg["scaling_factor"]

    def rand(self, *n):
        return torch.rand(*n, generator=self.g)

    def half(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    # ---- the VAE ----

    def video(self, n, frames):
        """n clips [n, 3, frames, H, W] in -1..1 of new faces with mouths that move at random, and the weights of their pixels."""
        g, f = self.g, C.faces(n, self.g, (0.8, 1.25))
        t = (torch.arange(frames) / C.FPS + 10 * self.rand(n, 1))
        o = sum(a * torch.sin(2 * torch.pi * (hz * t + self.rand(n, 1))) for hz, a in ((1.2, 0.30), (3.0, 0.35), (5.5, 0.25)))
        o = ((o + 0.8 * self.rand(n, 1) - 0.1) * (0.4 + self.rand(n, 1))).clamp(0, 1) if frames > 1 else self.rand(n, 1) * (self.rand(n, 1) < 0.8)
        full = max(frames, 130)
        dx, dy, blink = (v[:, full - frames:] for v in C.motion(n, full, g))
        style = torch.randint(4, (n, 1), generator=g)
        pose = {"o": o, "width": 0.86 + 0.26 * self.rand(n, 1).expand(n, frames), "dx": dx, "dy": dy, "blink": blink,
                "smile": (style == 1).float().expand(n, frames), "anger": (style == 2).float().expand(n, frames)}
        index = torch.arange(n).repeat_interleave(frames)
        x = C.draw(C.to(f, self.device, index), {k: v.reshape(-1).to(self.device) for k, v in pose.items()})
        w = 1 + 2 * boxes_mask(C.head_box(f), C.SIZE) + 9 * boxes_mask(C.mouth_box(f), C.SIZE)
        w = (w / w.mean((1, 2), keepdim=True)).to(self.device)[:, None, None]
        return 2 * x.view(n, frames, 3, C.SIZE, C.SIZE).transpose(1, 2) - 1, w

    def stock(self, n, frames):
        """video() four batches at a time: it is many small operations, and they cost the same for more clips."""
        left = self.left.setdefault((n, frames), [])
        if not left:
            x, w = self.video(4 * n, frames)
            left += zip(x.split(n), w.split(n))
        return left.pop()

    def train_vae(self):
        o, self.left = self.o, {}
        with torch.no_grad():
            for m in self.vae.modules():
                if isinstance(m, networks.Causal) and m.k == 3:     # a 2-D network inside the 3-D one
                    torch.nn.init.kaiming_normal_(m.conv.weight[:, :, 2], a=1)
                    m.conv.weight[:, :, :2] = 0
                    m.conv.bias.zero_()
        s = Stage(self, "vae", {"vae": self.vae})
        while s.going():
            flat = s.at() < 0.3
            n, frames = (64, 1) if flat or s.step % 10 == 9 else (2, 33) if s.step % 5 == 2 else (4, 17)
            if o.smoke:
                n, frames = max(1, n // 16), min(frames, 9)
            x, w = self.stock(n, frames)
            with self.half():
                mean, logvar = self.vae.encode(x)
                logvar = logvar.clamp(-30, 20)
                y = self.vae.decode_piece(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
            d = y - x
            kl = 0.5 * (mean * mean + logvar.exp() - 1 - logvar).mean()
            moved = d[:, :, 1:] - d[:, :, :-1]      # else what moves does so in jerks of four frames, one a latent frame
            jerk = (w * moved.abs()).sum() / d.numel()
            loss = unlike(d, w) + 3e-4 * kl + 6 * jerk + 24 * (w * moved * moved).sum() / d.numel()
            loss.backward()
            if flat:
                for m in self.vae.modules():
                    if isinstance(m, networks.Causal) and m.k == 3:
                        m.conv.weight.grad[:, :, :2] = 0
            s.learn(loss, {"loss": loss, "mse": (d * d).mean() / 4, "kl": kl, "moved": jerk})
        s.finish()
        if "scale" not in s.extra:
            with torch.no_grad(), self.half():
                z = torch.cat([self.vae.encode(self.video(2 if o.smoke else 8, 9)[0])[0] for _ in range(1 if o.smoke else 8)])
            std = z.std()
            if WORLD > 1:
                dist.broadcast(std, 0)
            s.extra["scale"] = float("%.4g" % (1 / float(std)))
            s.save(True)
        self.vae_scale = s.extra["scale"]
        say("vae: scaling_factor %g" % self.vae_scale)
        self.vae_figures()

    @torch.no_grad()
    def vae_figures(self):
        """29 dB and the like, and the gate: does the motion of the mouth survive? Jerk: how much more the picture changes from one
        latent frame to the next than within one, over the same of the truth; 1 is smooth."""
        if RANK:
            return
        o, keep, self.g = self.o, self.g, torch.Generator().manual_seed(900)
        clips, rows = (1, 17) if o.smoke else (12, 129), []
        for i in range(clips[0]):
            c = self.clip(1, held=True, frames=clips[1])
            x = self.frames(c)[0]
            with self.half():
                mean, _ = self.vae.encode((2 * x - 1).transpose(0, 1)[None])
                y = (self.vae.decode(mean)[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)
            box = C.mouth_box(c["face"])[0]
            m = boxes_mask(box[None].to(self.device), C.SIZE)[0]
            d = y - x
            said = c["o"].max() > 0.1           # a silent clip correlates with nothing
            dy, dx = ((v[1:] - v[:-1]).abs().mean((1, 2, 3)) for v in (y, x))
            jerk = [float(v[::4].mean() / v[torch.arange(len(v)) % 4 > 0].mean()) for v in (dy, dx)]
            rows.append((psnr(d), psnr((d * m)[:, :, m.sum(1) > 0][:, :, :, m.sum(0) > 0]),
                         correlation(area(y, box), c["o"][0].to(self.device)) if said else math.nan, jerk[0] / jerk[1]))
        all_db, mouth_db, corr, jerk = np.nanmean(rows, 0)
        say("vae: %.2f dB, mouth box %.2f dB, opening correlation %.3f (wanted: 30, 27, 0.95), jerk %.2f" % (all_db, mouth_db, corr, jerk))
        self.g = keep
        if corr < 0.9 and not (o.smoke or o.force):
            raise SystemExit("vae: the mouth's motion is not in the latents: train it longer (remove no checkpoint, raise --minutes, --again vae)")

    # ---- clips with sound ----

    def sound(self, held):
        """A clean sound on the device, at most 29.9 s: pieces of speech, faster or slower, with pauses."""
        want = int(C.RATE * (1.5 + 3.5 * float(self.rand(1)) if float(self.rand(1)) < 0.08 else 5.2 + 24.7 * float(self.rand(1))))
        if float(self.rand(1)) < 0.04:                      # silence
            return torch.zeros(want, device=self.device)
        pool = [u for u in self.said if u[2] == held] or self.said
        speed = 0.85 + 0.33 * float(self.rand(1))
        parts, have = [], 0
        while have < want * speed:
            a, b, _ = pool[int(torch.randint(len(pool), (1,), generator=self.g))]
            if not parts:
                a += int(float(self.rand(1)) * 0.7 * (b - a))
            parts.append(self.speech[a:b])
            have += b - a
        x = torch.cat(parts)[:int(want * speed)]
        t = torch.arange(int(len(x) / speed) - 1, device=self.device) * speed
        i = t.long().clamp(max=len(x) - 2)
        x = x[i] + (x[i + 1] - x[i]) * (t - i)
        for _ in range(int(torch.randint(4, (1,), generator=self.g))):
            at, gap = int(float(self.rand(1)) * len(x)), int(C.RATE * (0.2 + float(self.rand(1))))
            x = torch.cat([x[:at], torch.zeros(gap, device=self.device), x[at:]])
        return x[:int(29.9 * C.RATE)]

    def spoil(self, x):
        """Gain and coloured noise; [samples]."""
        x = x * 10 ** (-1.4 * float(self.rand(1)))
        level = float(x.pow(2).mean().sqrt()) * 10 ** (-(8 + 40 * float(self.rand(1))) / 20)
        n = torch.randn(len(x), generator=self.g).to(self.device)
        tilt = float(self.rand(1))
        n = (1 - tilt) * n + tilt * 3 * F.avg_pool1d(n[None, None], 9, 1, 4)[0, 0]
        return x + n * level

    def clip(self, n, held=False, frames=None):
        """n clips: faces, opening and width a frame, the mel of their sound, which frame of the sound each frame hears (-1: none)."""
        frames = frames or self.long
        f, mel, os_, ws, heard = C.faces(n, self.g), [], [], [], []
        for _ in range(n):
            x = self.sound(held)
            L = len(x) // C.HOP
            o, w = C.opening(x, L), C.width_factor(x, L)
            f0 = 0 if float(self.rand(1)) < 0.3 else int(float(self.rand(1)) * max(1, L - 100))
            k = torch.arange(f0, f0 + frames)
            heard.append(torch.where(k < L, k, -1))
            os_.append(F.pad(o[f0:f0 + frames], (0, max(0, frames - (L - f0)))).cpu())
            ws.append(F.pad(w[f0:f0 + frames], (0, max(0, frames - (L - f0))), value=1.0).cpu())
            knots = F.interpolate(0.35 * torch.randn(1, 1, 6, generator=self.g), 80, mode="linear", align_corners=True)[0]
            mel.append(C.log_mel(self.spoil(x)[None], knots.to(self.device))[0])
        style = torch.tensor([0, 0, 1, 2])[torch.randint(4, (n,), generator=self.g)] if self.text else torch.zeros(n, dtype=torch.long)
        dx, dy, blink = C.motion(n, frames, self.g)
        return {"face": f, "o": torch.stack(os_), "width": torch.stack(ws), "mel": torch.stack(mel), "heard": torch.stack(heard),
                "style": style, "dx": dx, "dy": dy, "blink": blink}

    def frames(self, c):
        """The truth of the clips: [n, F, 3, H, W] in 0..1."""
        n, F_ = c["o"].shape
        s = c["style"][:, None].expand(n, F_)
        p = {"o": c["o"], "width": c["width"], "dx": c["dx"], "dy": c["dy"], "blink": c["blink"], "smile": (s == 1).float(), "anger": (s == 2).float()}
        index = torch.arange(n).repeat_interleave(F_)
        x = C.draw(C.to(c["face"], self.device, index), {k: v.reshape(-1).to(self.device) for k, v in p.items()})
        return x.view(n, F_, 3, C.SIZE, C.SIZE)

    def still(self, f):
        """The portraits: [n, 3, H, W], rounded to bytes as a file is."""
        z = torch.zeros(len(f["s"]))
        return (C.draw(C.to(f, self.device), C.to(C.pose(f, z), self.device)) * 255).round() / 255

    def mask(self, f):
        """Face masks on the latent grid as hv-face makes them: the box, widened, bilinear; sometimes the whole picture."""
        n = len(f["s"])
        r, wide = 0.75 + 0.4 * self.rand(n), 1.6 + 0.15 * self.rand(n)
        box = torch.stack([f["cx"] - 1.7 * r * f["rx"], f["cy"] - wide * r * f["ry"], f["cx"] + 1.7 * r * f["rx"], f["cy"] + wide * r * f["ry"]], 1)
        m = F.interpolate(boxes_mask(box, C.SIZE)[:, None], scale_factor=1 / 8, mode="bilinear", align_corners=False)
        full = (self.rand(n, 1, 1, 1) < 0.2).float()
        m = full + (1 - full) * m
        return m * torch.where(self.rand(n, 1, 1, 1) < 0.5, 0.6, 1.0)

    @torch.no_grad()
    def make(self, n):
        """n clips of the pool."""
        c = self.clip(n)
        with self.half():
            z = torch.cat([self.vae.encode((2 * x - 1).transpose(0, 1)[None])[0] for x in self.frames(c)]) * self.vae_scale
            ref = self.vae.encode((2 * self.still(c["face"]) - 1)[:, :, None])[0] * self.vae_scale
        weight = 1 + 5 * boxes_mask(C.mouth_box(c["face"]), 16)
        return {"z": z.cpu() if not self.cuda else z, "ref": ref, "mel": c["mel"], "heard": c["heard"].to(self.device), "style": c["style"],
                "mask": self.mask(c["face"]).to(self.device), "weight": (weight / weight.mean((1, 2), keepdim=True)).to(self.device),
                "truth": torch.stack([c["o"], 3 * (c["width"] - 1)], -1).to(self.device)}

    # ---- text ----

    def by_rows(self, d):
        """States of prompts by their number of rows and their style: {n: [prompts of style 0, 1, 2]}; batches have one n."""
        if "text_style" not in d:
            return None
        out = {}
        for i, (s, m) in enumerate(zip(d["text_style"], d["text_mask"])):
            out.setdefault(int(m.sum()), ([], [], []))[int(s)].append(i)
        out = {n: v for n, v in out.items() if all(v)}
        self.states, self.masks, self.pooled = (torch.from_numpy(np.ascontiguousarray(d[k])).to(self.device) for k in ("text_states", "text_mask", "text_pooled"))
        self.negative = [torch.from_numpy(np.ascontiguousarray(d[k])).to(self.device) for k in ("neg_states", "neg_mask", "neg_pooled")]
        return out

    def text_of(self, style, n=None):
        """States, mask, pooled and rows n for clips of these styles."""
        b, cfg = len(style), config("transformer")
        if not self.text:                       # no encoder: states that say nothing
            n = n or int(torch.randint(6, 49, (1,), generator=self.g))
            a = 0.3 + 1.7 * float(self.rand(1))
            r = [torch.randn(b, k, generator=self.g).to(self.device) * a for k in (n * cfg["text_states_dim"], cfg["text_states_dim_2"])]
            return r[0].view(b, n, -1), torch.ones(b, n, dtype=torch.long, device=self.device), r[1], n
        if n is None:
            keys = list(self.text)
            count = torch.tensor([float(sum(map(len, self.text[k]))) for k in keys])
            n = keys[int(torch.multinomial(count, 1, generator=self.g))]
        i = torch.tensor([self.text[n][int(s)][int(torch.randint(len(self.text[n][int(s)]), (1,), generator=self.g))] for s in style], device=self.device)
        return self.states[i], self.masks[i], self.pooled[i], n

    # ---- transformer and audio encoder ----

    def window(self, pool, i):
        """33 latent frames of each clip and the frames of sound that they hear: the start, the middle, or, as where the windows of a
        long sound wrap, the end followed by the start."""
        T, order, rows = pool["z"].shape[2], [], []
        for _ in i:
            kind, at = float(self.rand(1)), 0
            if kind >= 0.9:
                at = T - int(torch.randint(4, 29, (1,), generator=self.g))
            elif kind >= 0.5:
                at = int(torch.randint(1, T - 32, (1,), generator=self.g))
            order.append((torch.arange(33) + at) % T)
            rows.append((torch.arange(129) + 4 * at) % (4 * T))
        order, rows, j = torch.stack(order).to(self.device), torch.stack(rows).to(self.device), i.to(self.device)[:, None]
        ok, rows = rows < self.long, rows.clamp(max=self.long - 1)
        return (pool["z"][j, :, order].transpose(1, 2), torch.where(ok, pool["heard"][j, rows], -1), pool["truth"][j, rows] * ok[..., None])

    def train_talk(self):
        o = self.o
        head = torch.nn.Linear(4 * self.dit.h, 2).to(self.device)
        s = Stage(self, "talk", {"dit": self.dit, "audio": self.audio, "head": head}, warm=200, floor=0.01, decay=0.02)
        if s.going():
            size, first, batch, fresh = (2, 1, 1, 1) if o.smoke else (4096 // WORLD, 512 // WORLD, 64 // WORLD, 16)
            pool = None
            for _ in range(0, first, fresh):
                new = self.make(fresh)
                if pool is None:
                    pool = {k: torch.empty(size, *v.shape[1:], dtype=v.dtype, device=v.device) for k, v in new.items()}
                    filled = at = 0
                for k, v in new.items():
                    pool[k][at:at + fresh] = v
                at, filled = (at + fresh) % size, min(size, filled + fresh)
            say("talk: %d clips after %.0f s" % (filled, time.time() - s.began))
        while s.going():
            i = torch.randint(filled, (batch,), generator=self.g)
            z, heard, truth = self.window(pool, i)
            style = pool["style"][i]
            states, mask, pooled, n = self.text_of(style)
            zero = self.rand(batch) < 0.1
            if self.text and float(self.rand(1)) < 0.06:       # the other branch of guidance: its text, no sound
                states, mask, pooled = (t.expand(batch, *t.shape) for t in self.negative)
                n, zero = int(mask[0].sum()), torch.ones(batch, dtype=torch.bool)
            hears = (~zero).float().to(self.device)
            u = self.rand(batch).to(self.device)
            sigma = 2.5 * u / (1 + 1.5 * u)
            noise = torch.randn(z.shape, generator=self.g).to(self.device) if not self.cuda else torch.randn_like(z)
            v = sigma[:, None, None, None, None]
            ref = pool["ref"][i].expand(-1, -1, 33, -1, -1)
            with self.half():
                features = self.audio.windows(self.audio(pool["mel"][i]), heard) * hears[:, None, None, None, None]
                y, tokens = self.dit((1 - v) * z + v * noise, ref, 1000 * sigma, states, mask, pooled, features, pool["mask"][i], n)
                guess = head(tokens.reshape(batch, 132, -1)[:, 3:]).float()
            d = (y - (noise - z)) ** 2
            flow = (d * pool["weight"][i][:, None, None]).mean()
            aux = (((guess - truth) ** 2).mean((1, 2)) * hears).sum() / hears.sum().clamp(min=1)
            loss = flow + 0.3 * aux
            loss.backward()
            s.learn(loss, {"flow": flow, "head": aux})
            if s.step % (48 if o.smoke else 1536 // batch) == 0:
                for k, t in self.make(fresh).items():
                    pool[k][at:at + fresh] = t
                at, filled = (at + fresh) % size, min(size, filled + fresh)
        s.finish()
        self.talk_figures()

    @torch.no_grad()
    def sample(self, ref, states, mask, pooled, features, face_mask, steps, noise, shift=5.0):
        """hv-denoise without guidance."""
        lin = 1 - torch.arange(steps + 1) / steps
        sigma = shift * lin / (1 + (shift - 1) * lin)
        x, n = noise, int(mask[0].sum())
        for i in range(steps):
            m = face_mask * (0.6 if i < 10 else 1.0)
            with self.half():
                v, _ = self.dit(x, ref, torch.full((len(x),), float(sigma[i] * 1000), device=self.device), states, mask, pooled, features, m, n)
            x = x + v * float(sigma[i + 1] - sigma[i])
        return x

    @torch.no_grad()
    def talk_figures(self):
        if RANK:
            return
        o, keep, self.g = self.o, self.g, torch.Generator().manual_seed(901)
        rows, others = [], []
        for _ in range(1 if o.smoke else 12):
            n = 1 if o.smoke else 2
            c = self.clip(n, held=True, frames=129)
            box, g = C.mouth_box(c["face"]), torch.Generator().manual_seed(7)
            with self.half():
                ref = (self.vae.encode((2 * self.still(c["face"]) - 1)[:, :, None])[0] * self.vae_scale).expand(-1, -1, 33, -1, -1)
                features = self.audio.windows(self.audio(c["mel"]), c["heard"].to(self.device))
            m = F.interpolate(boxes_mask(torch.cat([2 * C.head_box(c["face"])[:, :2] - C.head_box(c["face"])[:, 2:],
                                                    2 * C.head_box(c["face"])[:, 2:] - C.head_box(c["face"])[:, :2]], 1), C.SIZE)[:, None],
                              scale_factor=1 / 8, mode="bilinear").to(self.device)
            z = self.sample(ref, *self.text_of(c["style"])[:3], features, m, 1 if o.smoke else 10, torch.randn(n, 16, 33, 16, 16, generator=g).to(self.device))
            for j in range(n):
                with self.half():
                    y = self.vae.decode(z[j:j + 1, :, :5 if o.smoke else 33] / self.vae_scale)
                a = area((y[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1), box[j]).cpu()
                if c["o"][j].max() > 0.1:
                    end = len(a)
                    rows.append([correlation(a[max(0, k):end + min(0, k)], c["o"][j][max(0, -k):end - max(0, k)]) for k in range(-4, 5)])
                    others.append(correlation(a, c["o"][(j + 1) % n][:end]) if n > 1 else 0.0)
        if rows:
            r = np.array(rows)
            say("talk: correlation with the sound by lag -4..4: %s; at 0: mean %.3f, worst %.3f; other sound %.3f" % (
                " ".join("%.2f" % v for v in r.mean(0)), r[:, 4].mean(), r[:, 4].min(), np.mean(others)))
        self.g = keep

    # ---- face detector ----

    def faces_batch(self, n):
        """Pictures with a face at any place and size, or none; box and landmarks."""
        f = C.faces(n, self.g, (0.5, 1.3))
        f["cx"], f["cy"] = f["cx"] + 24 * (self.rand(n) - 0.5), f["cy"] + 24 * (self.rand(n) - 0.5)
        f["face"] = (self.rand(n) < 0.75).float()
        p = C.pose(f, self.rand(n) * (self.rand(n) < 0.6), blink=(self.rand(n) < 0.1).float(), smile=(self.rand(n) < 0.3).float(), anger=(self.rand(n) < 0.3).float())
        x = C.draw(C.to(f, self.device), C.to(p, self.device))
        gain, bias = 0.7 + 0.6 * self.rand(n, 3, 1, 1), 0.2 * (self.rand(n, 3, 1, 1) - 0.5)
        x = x * gain.to(self.device) + bias.to(self.device) + 0.05 * float(self.rand(1)) * torch.randn_like(x)
        return x.clamp(0, 1), C.head_box(f).to(self.device), C.landmarks(f).to(self.device), f["face"].to(self.device)

    def train_face(self):
        with torch.no_grad():
            for h in self.face.model[-1].m:
                h.bias.view(3, 16)[:, 4] = -4.0
        s = Stage(self, "face", {"face": self.face.normed()}, lr=3e-3)
        while s.going():
            x, box, marks, there = self.faces_batch(8 if self.o.smoke else 128 if self.cuda else 32)
            with self.half():
                heads = [h.float() for h in self.face(x)]
            centre, wh = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
            obj = bx = lm = cl = x.new_zeros(())
            count = 0
            for t, stride, a in zip(heads, self.face.cfg["strides"], self.face.cfg["anchors"]):
                a = torch.tensor(a, dtype=torch.float32, device=self.device).view(3, 2)
                ny, nx = t.shape[-2:]
                g = torch.stack(torch.meshgrid(torch.arange(nx), torch.arange(ny), indexing="xy")).to(t)      # [2, ny, nx]
                ratio = wh[:, None] / a[None]
                fits = (torch.maximum(ratio, 1 / ratio).amax(-1) < 2.5) & (there[:, None] > 0)                # [B, 3]
                near = ((g[None] + 0.5) * stride - centre[:, :, None, None]).abs().amax(1) <= 0.9 * stride    # what the offsets reach
                pos = fits[:, :, None, None] & near[:, None]
                obj = obj + F.binary_cross_entropy_with_logits(t[:, :, 4], pos.float()) * (4 if stride == 8 else 1)
                b, k, gy, gx = pos.nonzero(as_tuple=True)
                if len(b):
                    r, cell, an = t[b, k, :, gy, gx], torch.stack([gx, gy], 1).float(), a[k]
                    xy, size = (2 * r[:, :2].sigmoid() - 0.5 + cell) * stride, (2 * r[:, 2:4].sigmoid()) ** 2 * an
                    lo, hi = torch.maximum(xy - size / 2, box[b, :2]), torch.minimum(xy + size / 2, box[b, 2:])
                    inter = (hi - lo).clamp(min=0).prod(1)
                    iou = inter / (size.prod(1) + wh[b].prod(1) - inter)
                    bx = bx + (1 - iou).sum() + 0.02 * (xy - centre[b]).abs().sum()
                    at = r[:, 5:15].view(-1, 5, 2) * an[:, None] + cell[:, None] * stride
                    lm = lm + ((at - marks[b]) / wh[b][:, None]).abs().mean((1, 2)).sum()
                    cl = cl + F.binary_cross_entropy_with_logits(r[:, 15], torch.ones_like(r[:, 15]), reduction="sum")
                    count += len(b)
            loss = 4 * obj + (bx + 0.5 * lm + 0.5 * cl) / max(1, count)
            loss.backward()
            s.learn(loss, {"loss": loss, "objects": obj, "box": bx / max(1, count)})
        s.finish()
        self.face.folded()
        if RANK:
            return
        keep, self.g = self.g, torch.Generator().manual_seed(902)
        found, wrong, ious = 0, 0, []
        with torch.no_grad():
            x, box, _, there = self.faces_batch(200)
            rows = self.face.decode(self.face(x))
            score = rows[:, :, 4].sigmoid() * rows[:, :, 15].sigmoid()
            for i in range(200):
                j = int(score[i].argmax())
                hit = bool((score[i, j] > 0.5) & (rows[i, j, 4].sigmoid() > 0.5))
                if not there[i]:
                    wrong += hit
                    continue
                xy, size = rows[i, j, :2], rows[i, j, 2:4]
                inter = (torch.minimum(xy + size / 2, box[i, 2:]) - torch.maximum(xy - size / 2, box[i, :2])).clamp(min=0).prod()
                iou = float(inter / (size.prod() + (box[i, 2:] - box[i, :2]).prod() - inter)) if hit else 0.0
                found += hit
                ious.append(iou)
        say("face: %d of %d found, IoU mean %.3f, least %.2f; %d in %d pictures without a face" % (
            found, int(there.sum()), np.mean(ious), min(ious), wrong, int((1 - there).sum())))
        self.g = keep

    # ---- the folder ----

    def export(self):
        out = os.path.join(self.o.out, "model")
        made = {"vae": {"vae": self.vae}, "talk": {"transformer": self.dit, "audio_encoder": self.audio}, "face": {"face_detector": self.face}}
        for part, net in {k: v for name in self.o.only for k, v in made[name].items()}.items():
            folder = os.path.join(out, part)
            os.makedirs(folder, exist_ok=True)
            cfg = config(part)
            if part == "vae":
                cfg["scaling_factor"] = self.vae_scale
            with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
                json.dump(cfg, f, indent=2)
                f.write("\n")
            arrays = {k: v.detach().float().cpu().contiguous().numpy() for k, v in net.state_dict().items()}
            tensors.write(os.path.join(folder, "model.safetensors"), arrays, {"format": "hv", "hv.version": "1", "hv.model": part})
            say("%s: %d tensors, %d parameters" % (part, len(arrays), sum(a.size for a in arrays.values())))
        if self.o.parts:                        # for machines that give back small files only: cat model.tar.* | tar x
            path = os.path.join(self.o.out, "model.tar")
            with tarfile.open(path, "w") as t:
                t.add(out, "model")
            data = open(path, "rb").read()
            os.remove(path)
            for i in range(0, len(data), self.o.parts * 1000000):
                with open("%s.%02d" % (path, i // (self.o.parts * 1000000)), "wb") as f:
                    f.write(data[i:i + self.o.parts * 1000000])


# ---- commands ------------------------------------------------------------------------------------------------------------


def hv(o, tool, *args, **kw):
    return subprocess.run([os.path.join(o.bin, tool), *map(str, args)], check=True, **kw)


def prepare(o):
    """Text encoders, the states of prompts over some portraits, and the speech."""
    if os.path.exists(os.path.join(o.out, "corpus.npz")):
        return
    text, model = os.path.join(o.out, "text"), os.path.join(o.out, "model")
    os.makedirs(text, exist_ok=True)
    for part in ("text_encoder", "text_encoder_2"):
        src, dst = os.path.join(HERE, "..", "model-tiny", part), os.path.join(model, part)
        shutil.copytree(src, dst, dirs_exist_ok=True)
        hv(o, "hv-weights", "synth", os.path.join(src, "config.json"), 1, os.path.join(dst, "model.safetensors"), "-q")
    said = C.prompts()
    if o.smoke:
        said = said[:24]
    for i, (_, prompt) in enumerate(said):
        picture = os.path.join(text, "%d.png" % (i % 16))
        if not os.path.exists(picture):
            f = C.one_face(5000 + i)
            C.write_png(picture, C.bytes_of(C.draw(f, C.pose(f, torch.zeros(1))))[0])
        hv(o, "hv-text", picture, "-p", prompt, "--image-size", C.SIZE, "--model", model, "-o", os.path.join(text, "%d.st" % i), "-q")
    subprocess.run([sys.executable, os.path.join(HERE, "cartoons.py"), "corpus", os.path.join(o.out, "corpus.npz"), "--minutes",
                    "0.5" if o.smoke else "15", "--text", text], check=True)
    probe(o)


def probe(o):
    """Can the style be read from the pooled state of prompts by a linear map that has not seen them?"""
    d = np.load(os.path.join(o.out, "corpus.npz"))
    x, y = d["text_pooled"].astype(np.float64), d["text_style"]
    x = np.concatenate([(x - x.mean(0)) / x.std(0).clip(1e-6), np.ones((len(x), 1))], 1)
    half = np.arange(len(x)) % 4 != 3
    w = np.linalg.solve(x[half].T @ x[half] + 1.0 * np.eye(x.shape[1]), x[half].T @ np.eye(3)[y[half]])
    rows = sorted({int(m.sum()) for m in d["text_mask"]})
    say("text: style read from held-out prompts: %.0f %% right; states rms %.2f, pooled %.2f; rows %d to %d" % (
        100 * ((x[~half] @ w).argmax(1) == y[~half]).mean(), np.sqrt((d["text_states"] ** 2).mean()), np.sqrt((d["text_pooled"] ** 2).mean()), rows[0], rows[-1]))


def train(o):
    run = Run(o)
    say("device: %s; %d utterances; text: %s" % (torch.cuda.get_device_name() if run.cuda else "CPU", len(run.said), "encoder" if run.text else "none"))
    began = time.time()
    for name in o.only:
        getattr(run, "train_" + name)()
    if RANK == 0:
        run.export()
    if WORLD > 1:
        dist.destroy_process_group()
    say("trained in %.0f s" % (time.time() - began))


def int8(arrays):
    """Every matrix in 8 bits with a scale a row, as hv-weights quantize does with those of the blocks."""
    out = {}
    for k, w in arrays.items():
        if w.ndim == 2 and k.endswith(".weight"):
            scale = (np.abs(w).max(1) / np.float32(127)).astype(np.float32)
            q = np.rint(w / np.where(scale > 0, scale, 1)[:, None]).clip(-127, 127)
            out[k], out[k + ".scale"] = q.astype(np.int8), scale
        else:
            out[k] = w
    return out


def ship(o):
    """int8 in the transformer, bf16 elsewhere; text encoders and detector too."""
    src = os.path.join(o.out, "model")
    for part in (*PARTS, "text_encoder", "text_encoder_2"):
        os.makedirs(os.path.join(o.model, part), exist_ok=True)
        for name in os.listdir(os.path.join(src, part)):
            a, b = os.path.join(src, part, name), os.path.join(o.model, part, name)
            if name != "model.safetensors":
                shutil.copyfile(a, b)
            elif part == "transformer":
                tensors.write(b, int8(tensors.read(a)), {"format": "hv", "hv.version": "1", "hv.model": part, "hv.quant": "int8"})
            else:
                hv(o, "hv-weights", "quantize", a, b, "--quant", "none", "--dtype", "bf16", "-q")
    hv(o, "hv-weights", "check", o.model)
    say("%s: %.1f MB" % (o.model, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(o.model) for f in fs) / 1e6))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("what", choices=["all", "prepare", "train", "check", "ship"])
    a.add_argument("model", nargs="?", help="ship: the folder to make")
    a.add_argument("--out", default="build/tiny"), a.add_argument("--bin", default="build/bin")
    a.add_argument("--minutes", type=float, default=30.0, help="time of the trainings together (default: 30)")
    a.add_argument("--steps", default="", help="VAE,TALK,FACE: numbers of steps instead of time")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--smoke", action="store_true"), a.add_argument("--cpu", action="store_true"), a.add_argument("--force", action="store_true")
    a.add_argument("--again", default="", help="stages that go on for --minutes more, e.g. vae")
    a.add_argument("--from", dest="start", default="", metavar="MODEL", help="with --only: the VAE is that of this model folder")
    a.add_argument("--only", default="vae,talk,face", help="train these stages alone; --minutes is theirs; the face detector needs none of the others")
    a.add_argument("--parts", type=int, default=0, metavar="MB", help="also the model folder as a tar file in parts")
    o = a.parse_intermixed_args()
    o.seed += RANK << 32                        # each process its own data
    o.only, o.again = o.only.split(","), o.again.split(",")
    o.steps = {k: int(v) for k, v in zip(SHARE, o.steps.split(",")) if v}
    if o.smoke:
        o.minutes = min(o.minutes, 0.6)
    if o.what == "ship" and not o.model:
        a.error("ship: which folder?")
    if o.what in ("all", "prepare"):
        os.makedirs(o.out, exist_ok=True)
        prepare(o)
    if o.what in ("all", "train"):
        train(o)
    if o.what in ("all", "check"):
        work, model = os.path.join(o.out, "check"), os.path.join(o.out, "model")
        if o.smoke:
            check.shake(model, os.path.join(work, "shaken"))
            model = os.path.join(work, "shaken")
        return check.check(o.bin, model, work)
    if o.what == "ship":
        ship(o)
    return 0


if __name__ == "__main__":
    sys.exit(main())
