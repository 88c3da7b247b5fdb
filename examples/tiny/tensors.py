"""Safetensors in and out, with numpy alone: what the programs of hv read and write."""
import json
import struct

import numpy as np

TYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1"}


def read(path):
    """name -> array; BF16 widened to float32."""
    with open(path, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        head, data = json.loads(f.read(n)), f.read()
    out = {}
    for name, t in head.items():
        if name == "__metadata__" or name.startswith("__pad."):
            continue
        lo, hi = t["data_offsets"]
        if t["dtype"] == "BF16":
            x = (np.frombuffer(data[lo:hi], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(data[lo:hi], TYPES[t["dtype"]])
        out[name] = x.reshape(t["shape"])
    return out


def write(path, arrays, meta=None):
    head, at, names = {}, 0, {np.dtype(v): k for k, v in TYPES.items()}
    if meta:
        head["__metadata__"] = meta
    for name, x in arrays.items():
        head[name] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for x in arrays.values():
            f.write(np.ascontiguousarray(x).tobytes())
