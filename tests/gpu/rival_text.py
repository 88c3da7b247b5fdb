#!/usr/bin/env python3
"""The rival of tests/gpu/bench_text.sh: the text encoders in plain PyTorch, fp16, all weights on the GPU.

    rival_text.py --model DIR

Reads DIR/text_encoder/model.safetensors and text_encoder_2/model.safetensors, copies every tensor that is needed to the
device, and runs what the reference runs: the vision tower once, 30 layers of the language model on both prompts as a batch
of 926 rows with a causal mask, CLIP on both prompts. The numbers that come out are not compared with anything: tokens are
any tokens. The peak is what torch reserved, and the CUDA context.
"""
import argparse
import json
import mmap
import os
import struct
import time

import torch
import torch.nn.functional as F

ROWS, TEXT = 926, 77


def tensors(path, wanted):
    """Tensors of a file on the device, and those of `wanted` False on the host."""
    with open(path, "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        head = json.loads(f.read(n))
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    out = {}
    for name, t in head.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        x = torch.frombuffer(data, dtype=torch.float16, count=(end - begin) // 2, offset=8 + n + begin).reshape(t["shape"])
        out[name] = x.cuda() if wanted(name) else x
    return out


def clip_layers(x, w, prefix, layers, heads, causal):
    for i in range(layers):
        p = f"{prefix}{i}."

        def linear(v, name):
            return F.linear(v, w[p + name + ".weight"], w[p + name + ".bias"])

        def norm(v, name):
            return F.layer_norm(v, v.shape[-1:], w[p + name + ".weight"], w[p + name + ".bias"], 1e-5)

        h = norm(x, "layer_norm1")
        q, k, v = (linear(h, f"self_attn.{n}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv")
        o = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        x = x + linear(o, "self_attn.out_proj")
        h = linear(norm(x, "layer_norm2"), "mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), "mlp.fc2")
    return x


def rms(x, w):
    y = x.float()
    return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).half()


def turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def llama(x, w, layers, heads=32, kv=8):
    freq = 500000.0 ** (-torch.arange(0, 128, 2, device="cuda", dtype=torch.float32) / 128)
    angle = torch.arange(x.shape[1], device="cuda", dtype=torch.float32)[:, None] * freq
    cos, sin = angle.cos().half(), angle.sin().half()
    for i in range(layers):
        p = f"language_model.model.layers.{i}."

        def linear(v, name):
            return F.linear(v, w[p + name + ".weight"])

        h = rms(x, w[p + "input_layernorm.weight"])
        q = turn(linear(h, "self_attn.q_proj").unflatten(-1, (heads, -1)).transpose(1, 2), cos, sin)
        k = turn(linear(h, "self_attn.k_proj").unflatten(-1, (kv, -1)).transpose(1, 2), cos, sin).repeat_interleave(heads // kv, 1)
        v = linear(h, "self_attn.v_proj").unflatten(-1, (kv, -1)).transpose(1, 2).repeat_interleave(heads // kv, 1)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(o, "self_attn.o_proj")
        h = rms(x, w[p + "post_attention_layernorm.weight"])
        x = x + linear(F.silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj")
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    o = parser.parse_args()
    start = time.time()
    torch.zeros(1).cuda()
    free = torch.cuda.mem_get_info()
    context = free[1] - free[0]                                 # of a device that nobody else uses
    opened = time.time()
    w = tensors(os.path.join(o.model, "text_encoder", "model.safetensors"), lambda name: "embed" not in name or "patch" in name)
    c = tensors(os.path.join(o.model, "text_encoder_2", "model.safetensors"), lambda name: "embeddings" not in name)
    torch.cuda.synchronize()
    loaded = time.time()
    with torch.inference_mode():
        v = "vision_tower.vision_model."
        pixels = torch.randn(1, 3, 336, 336, device="cuda", dtype=torch.float16)
        x = F.conv2d(pixels, w[v + "embeddings.patch_embedding.weight"], stride=14).flatten(2).transpose(1, 2)
        first = w[v + "embeddings.class_embedding"].cuda().expand(1, 1, -1)
        x = torch.cat((first, x), 1) + w[v + "embeddings.position_embedding.weight"].cuda()
        x = F.layer_norm(x, x.shape[-1:], w[v + "pre_layrnorm.weight"], w[v + "pre_layrnorm.bias"], 1e-5)
        x = clip_layers(x, w, v + "encoder.layers.", 23, 16, False)[:, 1:]
        for i, act in ((1, F.gelu), (2, lambda t: t)):
            p = f"multi_modal_projector.linear_{i}."
            x = act(F.linear(x, w[p + "weight"], w[p + "bias"]))
        ids = torch.randint(0, 128000, (2, ROWS - x.shape[1]))
        table = w["language_model.model.embed_tokens.weight"]
        states = llama(torch.cat((table[ids].cuda(), x.expand(2, -1, -1)), 1), w, 30)
        ids = torch.randint(0, 49000, (2, TEXT))
        y = (c["text_model.embeddings.token_embedding.weight"][ids] + c["text_model.embeddings.position_embedding.weight"]).cuda()
        y = clip_layers(y, c, "text_model.encoder.layers.", 12, 12, True)
        states.float().cpu(), y.float().cpu()
    done = time.time()
    print(f"peak {(torch.cuda.max_memory_reserved() + context) / 2**20:.1f} MiB")
    print(f"parts open {opened - start:.2f} load {loaded - opened:.2f} compute {done - loaded:.2f}")


main()
