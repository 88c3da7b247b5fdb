#!/usr/bin/env python3
"""Times the reference in PyTorch and hv on the same machine, threads and float32 sizes, and prints ratios.

    tests/bench/reference.py REFERENCE_DIR [--build build] [--threads 2] [--repeat 3]

REFERENCE_DIR is a checkout of HunyuanVideo-Avatar (it holds hymm_sp/). Needs torch, diffusers, einops, transformers; it is not part
of `make test`. Each measurement is a process of its own, so that its peak resident memory is its own. The sizes are those of
bench_dit and bench_vae: a forward at hidden 1536, 12 heads, 2 double and 2 single blocks, 2,300 tokens; a decode of 5x16x16 latents
with block_out_channels [64, 128, 256, 256]. Both sides run random weights; attention on the reference's side is torch's own
scaled_dot_product_attention, since its flash attention does not run on a CPU. The reference computes modulation, text and sound
within its forward, so hv's time is the sum of its forward and of its preparation (which hv does once a schedule).
"""
import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import subprocess
import sys
import time
import types

HIDDEN, HEADS, DOUBLE, SINGLE = 1536, 12, 2, 2
FRAMES, HEIGHT, WIDTH, TEXT = 33, 16, 16, 124       # (33+1)*8*8 + 124 = 2300 tokens
TEXT_DIM, POOLED, AUDIO, AUDIO_MID, ADAPTER = 256, 768, 64, 256, 512
VAE = dict(block_out_channels=(64, 128, 256, 256), layers_per_block=2, latent_channels=16, norm_num_groups=32,
           in_channels=3, out_channels=3, act_fn="silu", sample_size=256, sample_tsize=64, scaling_factor=0.476986,
           time_compression_ratio=4, spatial_compression_ratio=8, mid_block_add_attention=True, mid_block_causal_attn=True)
LATENT = (5, 16, 16)


class Resize(ast.NodeTransformer):
    """The reference writes its width and its device as literals; here they follow the size to be timed."""

    def visit_Constant(self, node):
        if node.value == "cuda":
            return ast.copy_location(ast.Constant("cpu"), node)
        if isinstance(node.value, int) and node.value == 3072:
            return ast.copy_location(ast.Constant(HIDDEN), node)
        return node

    def visit_Call(self, node):
        self.generic_visit(node)
        sizes = {"AudioProjNet2": {"channels": AUDIO, "intermediate_dim": AUDIO_MID},
                 "PerceiverAttentionCA": {"dim_head": ADAPTER}}.get(getattr(node.func, "id", None), {})
        for k in node.keywords:
            if k.arg in sizes:
                k.value = ast.copy_location(ast.Constant(sizes[k.arg]), k.value)
        return node

    def visit_Assign(self, node):
        self.generic_visit(node)
        if isinstance(node.targets[0], ast.Attribute) and node.targets[0].attr == "double_stream_list":
            node.value = ast.copy_location(ast.parse("[1]", mode="eval").body, node.value)
        return node


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        path = self.get_filename(name)
        return compile(ast.fix_missing_locations(Resize().visit(ast.parse(self.get_data(path)))), path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, root):
        self.root = root

    def find_spec(self, name, path, target=None):
        if name in ("hymm_sp.modules.models_audio", "hymm_sp.modules.parallel_states"):
            file = os.path.join(self.root, *name.split(".")) + ".py"
            return importlib.machinery.ModuleSpec(name, Loader(name, file), origin=file)


def segments_attention(q, k, v, cu_q, cu_kv, *rest, **kw):
    import torch
    import torch.nn.functional as F
    out = torch.zeros_like(q)
    for a, b in zip(cu_q[:-1].tolist(), cu_q[1:].tolist()):
        if b > a:
            out[a:b] = F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    return out


def reference_forward(root):
    import torch
    os.environ.update(DISABLE_SP="1", CPU_OFFLOAD="0")
    mods = [types.ModuleType(n) for n in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding")]
    mods[1].flash_attn_varlen_func = segments_attention
    for name in ("flash_attn_qkvpacked_func", "flash_attn_kvpacked_func", "flash_attn_varlen_kvpacked_func"):
        setattr(mods[0], name, None)
    mods[2].index_first_axis = None
    sys.modules.update({m.__name__: m for m in mods})
    sys.meta_path.insert(0, Finder(root))
    sys.path.insert(0, root)
    with contextlib.redirect_stdout(io.StringIO()):
        models = importlib.import_module("hymm_sp.modules.models_audio")
        helpers = importlib.import_module("hymm_sp.helpers")
    args = types.SimpleNamespace(text_projection="single_refiner", text_states_dim=TEXT_DIM, text_states_dim_2=POOLED,
                                 use_attention_mask=True)
    model = models.HYVideoDiffusionTransformer(
        args, patch_size=[1, 2, 2], in_channels=16, out_channels=16, hidden_size=HIDDEN, num_heads=HEADS,
        mlp_width_ratio=4.0, mlp_act_type="gelu_tanh", depth_double_blocks=DOUBLE, depth_single_blocks=SINGLE,
        rope_dim_list=[16, 56, 56], qkv_bias=True, qk_norm=True, qk_norm_type="rms", guidance_embed=False)
    model.eval()
    for p in model.parameters():
        torch.nn.init.uniform_(p, -0.02, 0.02)
    cos, sin = helpers.get_nd_rotary_pos_embed_new([16, 56, 56], [FRAMES, HEIGHT // 2, WIDTH // 2], theta=256, use_real=True,
                                                   theta_rescale_factor=1, concat_dict={"mode": "timecat", "bias": -1})
    x = torch.rand(1, 16, FRAMES, HEIGHT, WIDTH)
    call = dict(ref_latents=torch.rand_like(x), text_states=torch.rand(1, TEXT, TEXT_DIM),
                text_mask=torch.ones(1, TEXT, dtype=torch.int64), text_states_2=torch.rand(1, POOLED), freqs_cos=cos,
                freqs_sin=sin, return_dict=True, is_cache=False, motion_exp=torch.full((1, 4), 30.0),
                motion_pose=torch.full((1, 4), 25.0), fps=torch.tensor([25.0]),
                audio_prompts=torch.rand(1, 4 * FRAMES - 3, 10, 5, AUDIO), face_mask=torch.ones(1, 1, 1, HEIGHT, WIDTH))
    return lambda: model(x, torch.tensor([750.0]), **call)["x"]


def reference_decode(root):
    import torch
    os.environ.setdefault("CPU_OFFLOAD", "1")
    for name in ("hymm_sp", "hymm_sp.vae"):             # the package's own __init__ wants paths of checkpoints
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split("."))]
        sys.modules[name] = package
    with contextlib.redirect_stdout(io.StringIO()):
        ae = importlib.import_module("hymm_sp.vae.autoencoder_kl_causal_3d")
    vae = ae.AutoencoderKLCausal3D(down_block_types=("DownEncoderBlockCausal3D",) * 4,
                                   up_block_types=("UpDecoderBlockCausal3D",) * 4, **VAE).eval()
    z = torch.rand(1, 16, *LATENT)
    return lambda: vae.decode(z).sample


def child(part, root, threads, repeat):
    import torch
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    run = {"forward": reference_forward, "decode": reference_decode}[part](root)
    times = []
    for _ in range(repeat + 1):                         # the first warms up
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(json.dumps({"ms": min(times[1:]) * 1e3}))


def measure(command, env=None):
    """Output and peak resident MiB of a command."""
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    text = p.stdout.read()
    _, status, usage = os.wait4(p.pid, 0)
    if status:
        sys.exit(f"reference.py: {command[0]} failed with status {status}")
    return text, usage.ru_maxrss / 1024


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("reference")
    a.add_argument("--build", default="build")
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--repeat", type=int, default=3)
    a.add_argument("--child", choices=["forward", "decode"])
    o = a.parse_args()
    root = os.path.abspath(o.reference)
    if o.child:
        return child(o.child, root, o.threads, o.repeat)
    print("part\treference_ms\thv_ms\tratio\treference_MiB\thv_MiB\tratio")
    for part, bench, rows in (("forward", "bench_dit", ("dit prepare", "dit forward")), ("decode", "bench_vae", ("decode",))):
        text, mib = measure([sys.executable, os.path.abspath(__file__), root, "--child", part, "--threads", str(o.threads),
                             "--repeat", str(o.repeat)])
        theirs = json.loads(text.splitlines()[-1])["ms"]
        text, our_mib = measure([f"{o.build}/tests/bench/{bench}", "--threads", str(o.threads), "--repeat", str(o.repeat),
                                 "--only", part])
        ours = sum(float(r[3]) for r in (line.split("\t") for line in text.splitlines()) if r[0] in rows)
        print(f"{part}\t{theirs:.0f}\t{ours:.0f}\t{ours / theirs:.2f}\t{mib:.0f}\t{our_mib:.0f}\t{our_mib / mib:.2f}")


if __name__ == "__main__":
    main()
