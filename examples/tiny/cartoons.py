#!/usr/bin/env python3
"""Cartoon faces that speak: what the tiny model is trained on, drawn on the fly in PyTorch, and the speech they say.

    cartoons.py corpus OUT.npz [--minutes 15] [--text DIR]     speech by espeak-ng, and the states of prompts (see prompts)
    cartoons.py prompts OUT.tsv                               number, style and text of the prompts that training uses
    cartoons.py picture SEED OUT.png                          a portrait; prints the boxes of head and mouth
    cartoons.py clip SEED SOUND OUT.st [--style smiling]      the portrait saying the sound, as hv-decode -f st writes it
    cartoons.py backgrounds OUT.png                           twenty pictures without a face, five by four
    cartoons.py truth DIR                                     the clips of examples/heldout as they should be, for TRUTH=DIR make lipsync

A face is a table of numbers (`faces`), a frame of it another (`pose`); `draw` paints both with anti-aliased ellipses. What a
frame's mouth does follows from the sound alone (`opening`, `width_factor`). Lengths are pixels of a 128 x 128 picture."""
import argparse
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import wave
import zlib

import numpy as np
import torch

SIZE, FPS, RATE, HOP = 128, 25, 16000, 640
STYLES = ("neutral", "smiling", "angry")
INSIDE = (0.16, 0.03, 0.05)                     # the open mouth: constant, so that it can be measured
SKIN = [(0.98, 0.84, 0.73), (0.94, 0.76, 0.62), (0.87, 0.67, 0.53), (0.77, 0.57, 0.43), (0.66, 0.47, 0.35), (0.58, 0.41, 0.31),
        (0.62, 0.80, 0.62), (0.66, 0.72, 0.90)]
HAIR = [(0.12, 0.10, 0.10), (0.26, 0.16, 0.10), (0.42, 0.26, 0.14), (0.62, 0.42, 0.20), (0.86, 0.70, 0.38), (0.66, 0.26, 0.14),
        (0.72, 0.72, 0.74), (0.40, 0.30, 0.62)]

# ---- faces ---------------------------------------------------------------------------------------------------------------


def faces(n, g, scale=(0.85, 1.2)):
    """n faces: a dict of tensors [n] or [n, 3] on the CPU. g: a torch.Generator of the CPU."""
    def u(lo, hi):
        return lo + (hi - lo) * torch.rand(n, generator=g)

    def colour(table):
        c = torch.tensor(table)[torch.randint(len(table), (n,), generator=g)]
        return (c + (torch.rand(n, 3, generator=g) - 0.5) * 0.08).clamp(0.02, 0.98)

    def chance(p):
        return (torch.rand(n, generator=g) < p).float()

    def free():
        return 0.15 + 0.8 * torch.rand(n, 3, generator=g)

    s = u(*scale)
    f = {"s": s, "cx": u(54, 74), "cy": u(54, 68), "rx": u(26, 31) * s, "ry": u(33, 39) * s,
         "skin": colour(SKIN), "hair": colour(HAIR), "iris": 0.15 + 0.5 * torch.rand(n, 3, generator=g), "shirt": free(),
         "top": free(), "bottom": free(), "long": chance(0.4), "outline": chance(0.5), "fringe": u(0.35, 0.75),
         "fringe_x": u(-0.3, 0.3), "bald": chance(0.08), "glasses": chance(0.25), "frame": 0.1 + 0.3 * torch.rand(n, 3, generator=g),
         "beard": chance(0.15), "mw": u(8, 11) * s, "eye": u(0.38, 0.46), "eye_r": u(3.6, 5.0) * s, "nose": u(0.14, 0.24),
         "lip": torch.stack([u(0.68, 0.85), u(0.34, 0.48), u(0.36, 0.48)], 1), "mouth_y": u(0.48, 0.64), "brow": u(0.7, 1.4) * s,
         "ear": u(4.0, 6.5) * s, "face": torch.ones(n), "tall": u(1.02, 1.12)}
    for i in range(3):
        f["disc%d" % i] = torch.stack([u(0, SIZE), u(0, SIZE), u(6, 26), chance(0.6)], 1)
        f["disc%dc" % i] = free()
    # Lips and skin keep away from the dark of the open mouth.
    f["lip"] = torch.where((f["skin"].mean(1) < 0.48)[:, None], f["lip"] * 0.9, f["lip"])
    return f


def pose(f, o, width=None, dx=None, dy=None, blink=None, smile=None, anger=None):
    """A frame a face: mouth opening o, its width factor, shift of the head, closed eyes 0..1, mouth corners, brows. [n] each."""
    z = torch.zeros_like(o)
    return {"o": o, "width": z + 1 if width is None else width, "dx": z if dx is None else dx, "dy": z if dy is None else dy,
            "blink": z if blink is None else blink, "smile": z if smile is None else smile, "anger": z if anger is None else anger}


def to(d, device, index=None):
    return {k: (v if index is None else v[index]).to(device) for k, v in d.items()}


def mouth_box(f, margin=0.0):
    """x0, y0, x1, y1 of where the mouth may be in any pose."""
    x, y, w = f["cx"], f["cy"] + f["mouth_y"] * f["ry"], f["mw"] * 1.15 + 2.5
    return torch.stack([x - w - margin, y - 4 - margin, x + w + margin, y + 11 + margin], 1)


def head_box(f):
    """x0, y0, x1, y1 of the face from the fringe to the chin: what the detector finds."""
    return torch.stack([f["cx"] - f["rx"], f["cy"] - f["ry"], f["cx"] + f["rx"], f["cy"] + f["ry"]], 1)


def landmarks(f):
    """The five points of the detector: eyes, nose, corners of the mouth. [n, 5, 2]"""
    x, y, e = f["cx"], f["cy"], f["eye"] * f["rx"]
    m = y + f["mouth_y"] * f["ry"]
    p = [(x - e, y - 0.12 * f["ry"]), (x + e, y - 0.12 * f["ry"]), (x, y + f["nose"] * f["ry"]), (x - f["mw"], m), (x + f["mw"], m)]
    return torch.stack([torch.stack(q, 1) for q in p], 1)


def draw(f, p, size=SIZE):
    """Frames [n, 3, size, size] in 0..1 of n faces in n poses, on the device of the tables."""
    n, dev = p["o"].shape[0], p["o"].device
    c = (torch.arange(size, device=dev) + 0.5) * (SIZE / size)
    X, Y = c[None, None, :], c[None, :, None]
    px = SIZE / size

    def k(v):
        return v[:, None, None] if torch.is_tensor(v) and v.dim() else v

    def cover(cx, cy, rx, ry, bend=0.0):
        """Coverage of an ellipse, 0..1; bend: how far its ends go up."""
        dx, dy = X - k(cx), Y - k(cy)
        if torch.is_tensor(bend):
            dy = dy + k(bend) * (dx / k(rx)).clamp(-1.3, 1.3) ** 2
        u, v = dx / k(rx), dy / k(ry)
        k0 = (u * u + v * v + 1e-12).sqrt()
        k1 = ((u / k(rx)) ** 2 + (v / k(ry)) ** 2 + 1e-12).sqrt()
        return (0.5 - k0 * (k0 - 1) / k1 / px).clamp(0, 1)

    def paint(a, colour):
        nonlocal img
        colour = colour[:, :, None, None] if torch.is_tensor(colour) else torch.tensor(colour, device=dev)[None, :, None, None]
        img = img + (colour - img) * a[:, None]

    dx, dy, o, s = p["dx"], p["dy"], p["o"], f["s"]
    cx, cy, rx, ry, on = f["cx"] + dx, f["cy"] + dy, f["rx"], f["ry"], k(f["face"])
    skin, hair = f["skin"], f["hair"]
    dark = skin * 0.78
    ramp = (Y / SIZE)[:, None]
    img = (f["top"][:, :, None, None] * (1 - ramp) + f["bottom"][:, :, None, None] * ramp).expand(n, 3, size, size)
    for i in range(3):
        d = f["disc%d" % i]
        paint(cover(d[:, 0], d[:, 1], d[:, 2], d[:, 2]) * k(d[:, 3]), f["disc%dc" % i])
    bx, by = f["cx"] + 0.3 * dx, f["cy"] + 0.3 * dy
    paint(cover(bx, by + 2.3 * ry, 1.75 * rx, 1.25 * ry), f["shirt"])
    hairy = on * k(1 - f["bald"])
    paint(cover(cx, cy - 0.06 * ry, 1.14 * rx, f["tall"] * ry) * hairy, hair)
    paint(cover(cx, cy + 0.35 * ry, 1.2 * rx, 1.05 * ry) * hairy * k(f["long"]), hair)
    paint(cover(bx, by + 1.05 * ry, 0.42 * rx, 0.5 * ry) * on, dark)
    for side in (-1, 1):
        paint(cover(cx + side * rx, cy + 0.05 * ry, 0.7 * f["ear"], f["ear"]) * on, dark)
    chin = 2.2 * o * s                          # the chin goes down, the top of the head stays
    head = (cx, cy + 0.5 * chin, rx, ry + 0.5 * chin)
    paint(cover(head[0], head[1], head[2] + 0.9, head[3] + 0.9) * on * k(f["outline"]), skin * 0.35)
    paint(cover(*head) * on, skin)
    my = cy + f["mouth_y"] * ry + 1.5 * o * s
    # A beard leaves the mouth and what it opens into free.
    beard = cover(cx, cy + 0.72 * ry + chin, 0.62 * rx, 0.30 * ry) * cover(*head)
    beard = beard * (1 - cover(cx, my + 2 * s, f["mw"] * 1.3 + 2, 9.5 * s))
    paint(beard * on * k(f["beard"]), 0.5 * hair + 0.25 * skin)
    fringe = cover(cx + f["fringe_x"] * rx, cy - 1.02 * ry, 1.02 * rx, f["fringe"] * 0.75 * ry) * cover(cx, cy - 0.06 * ry, 1.12 * rx, f["tall"] * ry)
    paint(fringe * hairy, hair * 0.92)
    # Eyes
    ex, ey, er = f["eye"] * rx, cy - 0.12 * ry, f["eye_r"]
    shut = 1 - p["blink"]
    for side in (-1, 1):
        x = cx + side * ex
        white = cover(x, ey, er, (0.72 * er * shut).clamp(min=0.35))
        paint(white * on, (0.97, 0.97, 0.96))
        paint(cover(x, ey, 0.55 * er, 0.55 * er) * white * on, f["iris"])
        paint(cover(x, ey, 0.27 * er, 0.27 * er) * white * on, (0.05, 0.05, 0.06))
        paint(cover(x, ey - 0.1 * er, er * 1.05, 0.5) * on * k(p["blink"]), dark * 0.6)
        # Brows: anger pulls the inner ends down and the brow with them.
        tilt = side * p["anger"] * 0.42
        xx, yy = X - k(x), Y - k(ey - 1.75 * er + 0.9 * er * p["anger"] * 0.5 - 0.6 * p["smile"])
        line = (yy + xx * k(tilt)) / k(f["brow"])
        brow = (1.0 - line.abs()).clamp(0, 1) * (k(er) * 1.25 - xx.abs() + 0.5).clamp(0, 1)
        paint((brow * 1.4).clamp(0, 1) * on, hair * 0.6 * (1 - f["bald"][:, None]) + dark * 0.5 * f["bald"][:, None])
        ring = cover(x, ey, er * 1.45, er * 1.3) - cover(x, ey, er * 1.45 - 1.1, er * 1.3 - 1.1)
        paint(ring.clamp(0, 1) * on * k(f["glasses"]), f["frame"])
    bridge = ((0.75 - (Y - k(ey)).abs() + 0.5).clamp(0, 1) * (k(ex - er * 1.4) - (X - k(cx)).abs() + 0.5).clamp(0, 1))
    paint(bridge * on * k(f["glasses"]), f["frame"])
    # Nose
    paint(cover(cx, cy + f["nose"] * ry, 0.11 * rx + 1, 0.055 * ry + 1) * on, dark)
    paint(cover(cx, cy + f["nose"] * ry - 1.2, 0.11 * rx + 1, 0.055 * ry + 0.6) * on, skin)
    # Mouth: lips, the dark inside, and the line of closed lips, which fades as the mouth opens.
    w = f["mw"] * p["width"] * (1 + 0.12 * p["smile"])
    bend = (3.0 * p["smile"] - 2.2 * p["anger"]) * s
    lips = cover(cx, my, w + 1.6, 2.6 * s + 6.5 * o * s * 0.93, bend)
    paint(lips * on, f["lip"])
    inside = cover(cx, my, w, 0.15 + 6.5 * o * s, bend)
    paint(inside * on * k((8 * o).clamp(0, 1)), INSIDE)
    closed = cover(cx, my, w, torch.full_like(w, 0.7), bend)
    paint(closed * on * k(1 - (8 * o).clamp(0, 1)), f["lip"] * 0.72)
    return img.clamp(0, 1)


def motion(n, frames, g):
    """Shift of the head and blinks of n clips: dx, dy, blink [n, frames]; the shift starts at 0."""
    t = torch.arange(frames) / FPS

    def sway(most):
        out = torch.zeros(n, frames)
        for _ in range(2):
            hz, a = 0.15 + 0.3 * torch.rand(n, 1, generator=g), most * (torch.rand(n, 1, generator=g) - 0.5)
            out += a * torch.sin(2 * torch.pi * hz * t)
        return out
    blink = torch.zeros(n, frames)
    for _ in range(max(1, round(2 * frames / 129))):
        at = torch.rand(n, 1, generator=g) * frames / FPS
        blink = torch.maximum(blink, (1 - (t - at).abs() / 0.14).clamp(0, 1))
    return sway(1.4), sway(0.9), (1.6 * blink).clamp(0, 1)


# ---- sound ---------------------------------------------------------------------------------------------------------------

HANN = torch.hann_window(1280, periodic=True)


def frames_of(x, length):
    """Pieces [.., length, 1280] around each video frame: samples 640 f - 320 .. 640 f + 959."""
    x = torch.nn.functional.pad(x, (320, 1280))
    need = (length - 1) * HOP + 1280
    if x.shape[-1] < need:
        x = torch.nn.functional.pad(x, (0, need - x.shape[-1]))
    return x[..., :need].unfold(-1, 1280, HOP)


def opening(x, length=None):
    """Mouth opening of each frame [L] of a clean sound [samples] at 16 kHz."""
    length = x.shape[-1] // HOP if length is None else length
    e = (frames_of(x, length) ** 2 * HANN.to(x)).mean(-1).sqrt()
    q = torch.quantile(e, 0.95)
    o = (e / q).clamp(max=1.3) ** 0.7 if q >= 1e-4 else 0 * e
    p = torch.nn.functional.pad(o[None, None], (1, 1), mode="replicate")[0, 0]
    o = 0.25 * p[:-2] + 0.5 * p[1:-1] + 0.25 * p[2:]
    return ((o - 0.12) / 0.88).clamp(0, 1)


def width_factor(x, length=None):
    """Width of the mouth by the spectral centroid; 1 when silent."""
    length = x.shape[-1] // HOP if length is None else length
    spec = torch.fft.rfft(frames_of(x, length) * HANN.to(x), dim=-1).abs()
    hz = torch.arange(spec.shape[-1], device=x.device) * (RATE / 1280)
    total = spec.sum(-1)
    c = (spec * hz).sum(-1) / total.clamp(min=1e-9)
    w = 0.86 + 0.26 * ((c - 600) / 1800).clamp(0, 1)
    w = torch.where(total < 0.02 * total.max().clamp(min=1e-9), torch.ones_like(w), w)
    p = torch.nn.functional.pad(w[None, None], (2, 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(p, 5, 1)[0, 0]


def read_wav(path):
    with wave.open(path) as f:
        if f.getsampwidth() != 2 or f.getnchannels() != 1:
            raise SystemExit(path + ": expected 16-bit mono")
        rate, x = f.getframerate(), np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768
    return resample(x, rate / RATE) if rate != RATE else x


def read_sound(path):
    """Any sound file, by ffmpeg."""
    raw = subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-i", path, "-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"], check=True,
                         stdout=subprocess.PIPE).stdout
    return np.frombuffer(raw, "<i2").astype(np.float32) / 32768


def resample(x, factor):
    """Every factor-th sample: band-limited by a windowed sinc."""
    n = int(len(x) / factor)
    cut = min(1.0, 1 / factor) * 0.95
    t = np.arange(n) * factor
    base, taps = np.floor(t).astype(np.int64), np.arange(-12, 13)
    d = t[:, None] - (base[:, None] + taps)
    h = cut * np.sinc(cut * d) * np.cos(np.pi * d / 26).clip(0) ** 2
    p = np.pad(x, (12, 14))
    return (p[base[:, None] + taps + 12] * h).sum(1).astype(np.float32)


def mel_filters():
    def mel(f):
        return f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)
    m = np.arange(82) * mel(8000.0) / 81
    p = np.where(m < 15, m * 200 / 3, 1000 * np.exp((m - 15) * np.log(6.4) / 27))
    k = 40.0 * np.arange(201)
    up, down = (k - p[:-2, None]) / (p[1:-1] - p[:-2])[:, None], (p[2:, None] - k) / (p[2:] - p[1:-1])[:, None]
    return torch.tensor(np.maximum(0, np.minimum(up, down)) * 2 / (p[2:] - p[:-2])[:, None], dtype=torch.float32)


MEL = mel_filters()


def log_mel(x, eq=None):
    """[B, samples] up to 30 s -> [B, 80, 3000]; eq [B, 80]: log10 gains of the mel bands."""
    x = torch.nn.functional.pad(x, (0, 480000 - x.shape[-1]))
    spec = torch.stft(x, 400, 160, window=torch.hann_window(400, device=x.device), center=True, pad_mode="reflect", return_complex=True)
    m = MEL.to(x.device) @ (spec[..., :3000].abs() ** 2)
    m = m.clamp(min=1e-10).log10()
    if eq is not None:
        m = (m + eq[:, :, None]).clamp(min=-10)
    return (torch.maximum(m, m.amax((1, 2), keepdim=True) - 8) + 4) / 4


# ---- corpus --------------------------------------------------------------------------------------------------------------

TEXTS = {
    "en-us": ["Good morning. I was only a picture, and now I can speak to you about the weather.",
              "The quick brown fox jumps over the lazy dog, while seven wizards boil a jug of mead.",
              "Nobody expected the train to arrive on time; still, it did, and everyone cheered."],
    "en-gb": ["She sells sea shells by the sea shore, and the shells she sells are surely sea shells.",
              "Please remember to bring your umbrella. It has been raining since Tuesday afternoon."],
    "en-gb-scotland": ["We walked along the river for hours, talking about music, bread, and old photographs."],
    "de": ["Guten Tag. Heute reden wir über das Wetter, den Garten und die alten Bäume am Fluss.",
           "Der Zug nach Hamburg fährt in zehn Minuten von Gleis vier ab. Bitte einsteigen!"],
    "fr-fr": ["Bonjour à tous. Nous allons parler de la mer, du vent, et des oiseaux qui chantent.",
              "Il était une fois une petite fille qui habitait au bord d'une grande forêt."],
    "es": ["Buenos días. Hoy vamos a cocinar una tortilla con patatas, cebolla y huevos frescos.",
           "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, vivía un hidalgo."],
    "it": ["Buongiorno a tutti. Oggi il cielo è sereno e il mare è calmo come uno specchio.",
           "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura."],
    "pt": ["Bom dia. A cidade acorda devagar, com o cheiro de café e o barulho dos bondes."],
    "nl": ["Goedemorgen. Vandaag fietsen we langs de dijk naar het kleine dorp bij de molen."],
    "sv": ["God morgon. I dag ska vi promenera genom skogen och plocka svamp och bär."],
    "pl": ["Dzień dobry. Dzisiaj opowiem wam o starym zamku i o królu, który lubił śpiewać."],
    "fi": ["Hyvää huomenta. Tänään puhumme järvistä, saunasta ja pitkästä talvesta."],
    "tr": ["Günaydın. Bugün deniz çok sakin, balıkçılar erkenden yola çıktılar."],
    "ru": ["Доброе утро. Сегодня мы поговорим о погоде, о книгах и о далёких городах."],
    "cs": ["Dobré ráno. Dnes budeme mluvit o horách, řekách a starých mostech."],
    "hu": ["Jó reggelt. Ma a kertről, a madarakról és a régi házakról beszélgetünk."],
    "el": ["Καλημέρα. Σήμερα θα μιλήσουμε για τη θάλασσα και τα νησιά."],
    "ro": ["Bună dimineața. Astăzi vorbim despre munți, păduri și sate vechi."],
    "id": ["Selamat pagi. Hari ini kita akan berbicara tentang laut dan pulau."],
    "eo": ["Bonan matenon. Hodiaŭ ni parolos pri la vetero kaj pri la malnova urbo."]}
VARIANTS = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "croak", "klatt", "klatt2", "klatt3", "klatt4", "whisper"]
HELD_TEXTS = ["I have never said these words before, so let us see whether my lips can follow them.",
              "Yesterday, eleven old friends met in a small cafe; they laughed, argued, and shared a cake.",
              "Attention please: the museum closes at five. Thank you, and have a pleasant evening!",
              "Why would anybody paint a wooden door blue? Because the sky was not enough."]


def espeak(text, voice, speed, pitch):
    with tempfile.NamedTemporaryFile(suffix=".wav") as f:
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", f.name, "--", text], check=True,
                       stderr=subprocess.DEVNULL)
        x = read_wav(f.name)
    return x


def speech(minutes, seed=1):
    """Utterances [(samples, held out)]: voices and texts drawn with a fixed seed; 12 % of the time are held out, by utterance."""
    r, out, seconds = random.Random(seed), [], 0
    langs = list(TEXTS)
    while seconds < 60 * minutes:
        lang = langs[len(out) % len(langs)]
        voice = lang + "+" + r.choice(VARIANTS)
        x = espeak(" ".join(r.sample(TEXTS[lang], 1) + r.sample(TEXTS[lang], 1)), voice, r.randint(110, 215), r.randint(15, 90))
        if len(x) < RATE or np.abs(x).max() < 0.01:
            continue
        out.append((x, len(out) % 8 == 7))
        seconds += len(x) / RATE
    return out


def prompts(seed=1):
    """[(style, text)]: the words of a style in many sentences."""
    r, out = random.Random(seed), []
    who = ["a person", "a man", "a woman", "someone", "a cartoon", "a cartoon character", "a face", "the portrait", "a singer", "a teacher"]
    does = ["speaking", "talking", "talking to the camera", "telling a story", "giving a speech", "explaining something", "saying hello"]
    where = ["", " in a room", " outdoors", " at night", " in front of a wall", " on a sunny day"]
    words = {"neutral": ["", "calm ", "quiet "], "smiling": ["smiling ", "happy smiling ", "smiling cheerful "], "angry": ["angry ", "very angry ", "angry furious "]}
    for i in range(480):
        style = STYLES[i % 3]
        subject, word = r.choice(who), r.choice(words[style])
        article, _, noun = subject.rpartition(" ")
        text = (article + " " + word + noun if article else noun + " " + word.strip()).strip()
        form = r.randrange(3)
        if style != "neutral" and form == 1:
            text = "%s, %s" % (subject + " " + r.choice(does), word.strip())
        else:
            text = text + " " + r.choice(does)
        text = re.sub(r"\ba (?=angry|[aeiou])", "an ", text)
        out.append((style, text + r.choice(where)))
    return out


# ---- files ---------------------------------------------------------------------------------------------------------------


def write_png(path, rgb):
    h, w, _ = rgb.shape
    raw = b"".join(b"\0" + rgb[i].tobytes() for i in range(h))

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) + part(b"IDAT", zlib.compress(raw, 9)) + part(b"IEND", b""))


def bytes_of(img):
    """[.., 3, H, W] in 0..1 -> u8 [.., H, W, 3]."""
    return (img * 255 + 0.5).clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()


def write_wav(path, x):
    with wave.open(path, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(RATE)
        f.writeframes((np.clip(x, -1, 1) * 32767).astype("<i2").tobytes())


def one_face(seed):
    return faces(1, torch.Generator().manual_seed(seed), scale=(0.9, 1.15))


def describe(f):
    return " ".join(",".join("%d" % round(v) for v in b[0].tolist()) for b in (head_box(f), mouth_box(f)))


def clip_of(seed, x, style="neutral"):
    """The truth: frames u8 [F, H, W, 3] of a face that says x."""
    f, x = one_face(seed), torch.as_tensor(x)
    o, w = opening(x), width_factor(x)
    n = o.shape[0]
    dx, dy, blink = (v[0] for v in motion(1, n, torch.Generator().manual_seed(seed + 1)))
    idx, one = torch.zeros(n, dtype=torch.long), torch.ones(n)
    return bytes_of(draw(to(f, "cpu", idx), pose(f, o, w, dx, dy, blink, one * (style == "smiling"), one * (style == "angry"))))


def write_video(path, video):
    import tensors
    tensors.write(path, {"video": video}, {"hv.version": "1", "hv.stage": "cartoons", "hv.width": str(SIZE), "hv.height": str(SIZE),
                                           "hv.frames": str(len(video)), "hv.fps": "25"})


def main():
    import tensors
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = a.add_subparsers(dest="what", required=True)
    c = sub.add_parser("corpus")
    c.add_argument("out"), c.add_argument("--minutes", type=float, default=15), c.add_argument("--text")
    sub.add_parser("prompts").add_argument("out")
    c = sub.add_parser("picture")
    c.add_argument("seed", type=int), c.add_argument("out"), c.add_argument("--size", type=int, default=SIZE)
    c = sub.add_parser("clip")
    c.add_argument("seed", type=int), c.add_argument("sound"), c.add_argument("out"), c.add_argument("--style", choices=STYLES, default="neutral")
    sub.add_parser("truth").add_argument("out")
    sub.add_parser("backgrounds").add_argument("out")
    c = sub.add_parser("say")
    c.add_argument("voice"), c.add_argument("speed", type=int), c.add_argument("pitch", type=int), c.add_argument("text"), c.add_argument("out")
    o = a.parse_args()
    if o.what == "corpus":
        said = speech(o.minutes)
        data = {"speech": np.concatenate([(x.clip(-1, 1) * 32767).astype(np.int16) for x, _ in said]),
                "lengths": np.array([len(x) for x, _ in said]), "held": np.array([h for _, h in said])}
        if o.text:
            rows = []
            for i, (style, _) in [*enumerate(prompts())]:
                path = os.path.join(o.text, "%d.st" % i)
                if os.path.exists(path):
                    rows.append((STYLES.index(style), tensors.read(path)))
            neg = rows[0][1]
            data.update(text_style=np.array([s for s, _ in rows]), text_states=np.stack([t["text.states"] for _, t in rows]),
                        text_mask=np.stack([t["text.mask"] for _, t in rows]), text_pooled=np.stack([t["text.pooled"] for _, t in rows]),
                        neg_states=neg["text.neg_states"], neg_mask=neg["text.neg_mask"], neg_pooled=neg["text.neg_pooled"])
        np.savez_compressed(o.out, **data)
        print("%s: %d utterances, %.1f minutes, %.0f %% held out, %d prompts" % (
            o.out, len(said), data["lengths"].sum() / RATE / 60, 100 * (data["lengths"] * data["held"]).sum() / data["lengths"].sum(),
            len(data.get("text_style", []))))
    elif o.what == "prompts":
        with open(o.out, "w", encoding="utf-8") as f:
            f.writelines("%d\t%s\t%s\n" % (i, s, t) for i, (s, t) in enumerate(prompts()))
    elif o.what == "picture":
        f = one_face(o.seed)
        z = torch.zeros(1)
        write_png(o.out, bytes_of(draw(f, pose(f, z), o.size))[0])
        print(describe(f))
    elif o.what == "clip":
        write_video(o.out, clip_of(o.seed, read_sound(o.sound), o.style))
        print(describe(one_face(o.seed)))
    elif o.what == "truth":
        held = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "heldout")
        os.makedirs(o.out, exist_ok=True)
        with open(os.path.join(held, "clips.tsv"), encoding="utf-8") as f:
            rows = [line.split() for line in f]
        for name, _, _, sound, _ in rows:
            write_video(os.path.join(o.out, "clip%s.st" % name), clip_of(9000 + int(name), read_sound(os.path.join(held, sound + ".flac"))))
        write_video(os.path.join(o.out, "silence.st"), clip_of(9001, np.zeros(4 * RATE, np.float32)))
        write_video(os.path.join(o.out, "long.st"), clip_of(9001, read_sound(os.path.join(held, "..", "speech-long.flac"))))
    elif o.what == "backgrounds":
        f = faces(20, torch.Generator().manual_seed(9300), (0.5, 1.3))
        f["face"] = torch.zeros(20)
        x = bytes_of(draw(f, pose(f, torch.zeros(20))))
        write_png(o.out, np.ascontiguousarray(x.reshape(4, 5, SIZE, SIZE, 3).swapaxes(1, 2).reshape(4 * SIZE, 5 * SIZE, 3)))
    elif o.what == "say":
        write_wav(o.out, espeak(o.text, o.voice, o.speed, o.pitch))


if __name__ == "__main__":
    sys.exit(main())
