#!/usr/bin/env python3
"""The stages in C against the networks in PyTorch, on the same inputs:   check.py --bin build/bin --model MODEL [--work DIR]

Every stage reads what the C program before it wrote, so that each is compared alone. Status 1 when one differs by more than
rounding of float32 explains. --shake: a copy of the folder with noise on every weight is compared instead, since the gates and
the last layer of a transformer that has hardly been trained are zero, and zeros agree with anything."""
import argparse
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F

import cartoons as C
import networks
import tensors

HERE = os.path.dirname(os.path.abspath(__file__))


def load(model, part, net):
    with open(os.path.join(model, part, "config.json"), encoding="utf-8") as f:
        cfg = json.load(f)
    net = net(cfg)
    state = {k: torch.from_numpy(np.array(v, dtype=np.float32)) for k, v in tensors.read(os.path.join(model, part, "model.safetensors")).items()}
    net.load_state_dict(state)
    return net.eval().requires_grad_(False), cfg


def shake(model, out):
    """A copy of the model folder with noise on every weight: no tensor is zero, no norm is one."""
    g = torch.Generator().manual_seed(3)
    shutil.copytree(model, out, dirs_exist_ok=True)
    for part in ("vae", "transformer", "audio_encoder", "face_detector"):
        arrays = {}
        for k, v in tensors.read(os.path.join(model, part, "model.safetensors")).items():
            v = torch.from_numpy(np.array(v, dtype=np.float32))
            size = v[0].numel() ** -0.5 if v.dim() > 1 else 0.1
            arrays[k] = (v + 0.5 * size * torch.randn(v.shape, generator=g)).numpy()
        tensors.write(os.path.join(out, part, "model.safetensors"), arrays, {"format": "hv", "hv.version": "1", "hv.model": part})


def boxes(net, cfg, x, least):
    """Detections of a picture [1, 3, H, W] as hv-face sorts them: by area, largest first. [n, 5]"""
    r = net.decode(net(x))[0]
    obj, score = r[:, 4].sigmoid(), r[:, 4].sigmoid() * r[:, 15].sigmoid()
    keep = (obj > least) & (score > least)
    r, score = r[keep], score[keep]
    b = torch.cat([r[:, :2] - r[:, 2:4] / 2, r[:, :2] + r[:, 2:4] / 2], 1)
    order, out = score.argsort(descending=True, stable=True), []
    for i in order.tolist():
        for j in out:
            inter = (torch.minimum(b[i, 2:], b[j, 2:]) - torch.maximum(b[i, :2], b[j, :2])).clamp(min=0).prod()
            if inter / ((b[i, 2:] - b[i, :2]).prod() + (b[j, 2:] - b[j, :2]).prod() - inter) > cfg["iou_threshold"]:
                break
        else:
            out.append(i)
    b = torch.cat([b[out], score[out, None]], 1)
    return b[((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])).argsort(descending=True, stable=True)]


def check(bindir, model, work, guidance=3.0, steps=2):
    os.makedirs(work, exist_ok=True)
    failed = 0

    def path(name):
        return os.path.join(work, name)

    def run(tool, *args):
        subprocess.run([os.path.join(bindir, tool), *map(str, args), "--model", model, "-q"], check=True)

    def t(x):
        return torch.from_numpy(np.array(x))

    def compare(what, got, want, limit):
        """Largest difference relative to the largest value."""
        nonlocal failed
        got, want = t(got).double(), want.double()
        if got.shape != want.shape:
            d = float("inf")
        else:
            d = float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))
        good = d <= limit
        failed += not good
        print("%s %-12s relative difference %.2e of %.0e at most, %s, largest value %.3g" % (
            "ok    " if good else "NOT ok", what, d, limit, list(want.shape), float(want.abs().max())), flush=True)

    torch.set_num_threads(2)
    f = C.one_face(11)
    picture = C.bytes_of(C.draw(f, C.pose(f, torch.zeros(1))))[0]
    C.write_png(path("portrait.png"), picture)
    sound = os.path.join(HERE, "..", "speech.wav")
    size = ["--image-size", C.SIZE]
    x = t(picture).float().permute(2, 0, 1)

    vae, vcfg = load(model, "vae", networks.Vae)
    run("hv-encode", path("portrait.png"), "-o", path("ref.st"), *size)
    ref = tensors.read(path("ref.st"))["ref.latents"]
    mean, _ = vae.encode((x / 127.5 - 1)[None, :, None])
    compare("hv-encode", ref, (mean * vcfg["scaling_factor"])[0].expand(-1, ref.shape[1], -1, -1), 1e-4)

    audio, _ = load(model, "audio_encoder", networks.Audio)
    run("hv-audio", sound, "-o", path("audio.st"))
    features = tensors.read(path("audio.st"))["audio.features"]
    want = audio.windows(audio(C.log_mel(t(C.read_wav(sound))[None])), torch.arange(len(features))[None])[0] if rate_of(sound) == C.RATE else None
    if want is None:
        short = path("speech16.wav")
        C.write_wav(short, C.read_wav(sound))
        run("hv-audio", short, "-o", path("audio.st"))
        features = tensors.read(path("audio.st"))["audio.features"]
        want = audio.windows(audio(C.log_mel(t(C.read_wav(short))[None])), torch.arange(len(features))[None])[0]
    compare("hv-audio", features, want, 1e-3)

    face, fcfg = load(model, "face_detector", networks.Face)
    score = face.decode(face(x[None] / 255))[0]
    score = (score[:, 4].sigmoid() * score[:, 15].sigmoid()).sort(descending=True)[0][:20]
    gap = int((score[:-1] - score[1:]).argmax())        # the least score that is clear of rounding
    least = float(score[gap] + score[gap + 1]) / 2
    args = ("hv-face", path("portrait.png"), "-o", path("face.st"), "--conf", least, *size)
    run(*args)
    compare("hv-face", tensors.read(path("face.st"))["face.boxes"], boxes(face, fcfg, x[None] / 255, float("%g" % least)), 1e-4)
    run("hv-face", path("portrait.png"), "-o", path("face.st"), "--box", "35,30,56,70", *size)

    run("hv-text", path("portrait.png"), "-p", "a smiling person speaking", "-o", path("text.st"), *size)
    text = tensors.read(path("text.st"))
    dit, dcfg = load(model, "transformer", networks.Transformer)
    run("hv-denoise", path("text.st"), path("audio.st"), path("face.st"), path("ref.st"), "-o", path("latent.st"), "--steps", steps,
        "--guidance", guidance, "--cache", "none", "--keep-noise")
    out = tensors.read(path("latent.st"))
    z = t(out["noise"])[None, :, :33]
    audio_rows = F.pad(t(features)[:129], (0, 0, 0, 0, 0, 0, 0, max(0, 129 - len(features))))[None]
    mask = t(tensors.read(path("face.st"))["face.mask"])[None]
    lin = 1 - torch.arange(steps + 1) / steps
    sigma = 5 * lin / (1 + 4 * lin)
    for i in range(steps):
        v = []
        for kind, a in (("neg_", audio_rows * 0), ("", audio_rows)):
            m = t(text["text.%smask" % kind])[None]
            y, _ = dit(z, t(ref)[None], sigma[i:i + 1] * 1000, t(text["text.%sstates" % kind])[None], m, t(text["text.%spooled" % kind])[None], a,
                       mask * 0.6, int(m.sum()))
            v.append(y)
        g = (1 - i / steps) * (guidance - 2) + 2
        z = z + (v[0] + g * (v[1] - v[0])) * (sigma[i + 1] - sigma[i])
    frames = out["latents"].shape[1]
    compare("hv-denoise", out["latents"], z[0, :, :frames], 1e-3)
    moved = float((z - t(out["noise"])[None, :, :33]).abs().max())
    print("       the latents moved by %.3g; adapters, text and guidance included" % moved)

    run("hv-decode", path("latent.st"), "-f", "st", "-o", path("video.st"))
    video = tensors.read(path("video.st"))["video"]
    y = (vae.decode(t(out["latents"])[None] / vcfg["scaling_factor"])[0] / 2 + 0.5).clamp(0, 1)
    y = (y * 255).floor().permute(1, 2, 3, 0)[:len(video)]
    apart = (t(video).double() - y.double()).abs()
    good = float(apart.max()) <= 1
    failed += not good
    print("%s hv-decode    largest difference %d levels of 1 at most, %.3f %% of the bytes differ, %s" % (
        "ok    " if good else "NOT ok", int(apart.max()), 100 * float((apart > 0).float().mean()), list(video.shape)), flush=True)
    print("%d stages differ" % failed)
    return 1 if failed else 0


def rate_of(path):
    import wave
    with wave.open(path) as f:
        return f.getframerate()


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", default="build/bin"), a.add_argument("--model", required=True), a.add_argument("--work", default="build/tiny/check")
    a.add_argument("--shake", action="store_true")
    o = a.parse_args()
    if o.shake:
        shake(o.model, os.path.join(o.work, "shaken"))
    sys.exit(check(o.bin, os.path.join(o.work, "shaken") if o.shake else o.model, o.work))
