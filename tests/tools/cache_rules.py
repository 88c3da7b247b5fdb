#!/usr/bin/env python3
"""The decisions of TeaCache and MagCache, written plainly from their description, to be compared with those of hv-denoise.

    cache_rules.py tea LATENT.st        the file's hv.cache_log against what its changes ask for
    cache_rules.py mag N SPEEDUP PIXELS the steps that run, as "0-5,8"
"""
import json
import struct
import sys

POLY = [733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896]
SMALL = """1.06971 1.29073 1.11245 1.09596 1.05233 1.01415 1.05672 1.00848 1.03632 1.02974 1.00984
    1.03028 1.00681 1.06614 1.05022 1.02592 1.01776 1.02985 1.00726 1.03727 1.01502 1.00992 1.03371 0.9976 1.02742
    1.0093 1.01869 1.00815 1.01461 1.01152 1.03082 1.0061 1.02162 1.01999 0.99063 1.01186 1.0217 0.99947 1.01711
    0.9904 1.00258 1.00878 0.97039 0.97686 0.94315 0.97728 0.91154 0.86139 0.76592"""
LARGE = """1.0754 1.27807 1.11596 1.09504 1.05188 1.00844 1.05779 1.00657 1.04142 1.03101 1.00679 1.02556 1.00908
    1.06949 1.05438 1.02214 1.02321 1.03019 1.00779 1.03381 1.01886 1.01161 1.02968 1.00544 1.02822 1.00689 1.02119
    1.0105 1.01044 1.01572 1.02972 1.0094 1.02368 1.0226 0.98965 1.01588 1.02146 1.0018 1.01687 0.99436 1.00283
    1.01139 0.97122 0.98251 0.94513 0.97656 0.90943 0.85703 0.75456"""


def poly(d):
    """Highest power first."""
    return sum(c * d ** (len(POLY) - 1 - k) for k, c in enumerate(POLY))


def tea(changes, n, threshold):
    """changes[i] for i in 0..n-1; True: the step is skipped."""
    start, acc, out = int(25 * n / 100), 0.0, []
    for i in range(n):
        skip = False
        if i <= start or i == n - 1:
            acc = 0.0
        else:
            acc += poly(changes[i])
            skip = acc < threshold
            if not skip:
                acc = 0.0
        out.append(skip)
    return out


def mag_walk(ratios, start, fits):
    p, err, cnt, out = 1.0, 0.0, 0, []
    for i, r in enumerate(ratios):
        skip = False
        if i > start:
            p *= r
            err += abs(1 - p)
            cnt += 1
            skip = fits(err) and cnt <= 2
            if not skip:
                p, err, cnt = 1.0, 0.0, 0
        out.append(skip)
    return out


def mag(n, speedup, pixels):
    table = [1.0] + [float(x) for x in (SMALL if pixels < 1280 * 720 else LARGE).split()]
    assert len(table) == 50
    ratios = [table[round(i * (49 / (n - 1)))] for i in range(n)] if n > 1 else [table[-1]]
    start, target = int(25 * n / 100), int(n / speedup)
    best, least = 0.01, None
    for k in range(1, 61):
        threshold = k * 0.01
        runs = mag_walk(ratios, start, lambda err: err < threshold).count(False)
        if least is None or abs(runs - target) < least:
            best, least = threshold, abs(runs - target)
        elif abs(runs - target) > least:
            break
    return mag_walk(ratios, start, lambda err: err <= best)


def listed(run):
    """[True, True, False, True] as "0-1,3"."""
    parts, i = [], 0
    while i < len(run):
        if run[i]:
            j = i
            while j + 1 < len(run) and run[j + 1]:
                j += 1
            parts.append(f"{i}-{j}" if j > i else str(i))
            i = j
        i += 1
    return ",".join(parts)


def check_tea(path):
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        meta = json.loads(f.read(size))["__metadata__"]
    n = int(meta["hv.steps"])
    name, _, threshold = meta["hv.cache"].partition(":")
    assert name == "tea"
    windows, skipped, compared = meta["hv.cache_log"].split("; "), 0, 0
    for window in windows:
        words = window.split(":", 1)[1].split()
        changes, said = [0.0] * n, [False] * n
        for i, change, verdict in zip(words[0::3], words[1::3], words[2::3]):
            changes[int(i)], said[int(i)] = float(change), verdict == "none"
        wanted = tea(changes, n, float(threshold or 0.1))
        if wanted != said:
            sys.exit(f"{path}: {window[:9]}: {said}, expected {wanted}")
        skipped += sum(said)
        compared += len(words) // 3
    print(f"{len(windows)} windows, {compared} decisions, {skipped} skipped")


if sys.argv[1] == "tea":
    check_tea(sys.argv[2])
else:
    skips = mag(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    print(listed([not s for s in skips]))
