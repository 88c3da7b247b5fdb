"""The networks of the model folder in PyTorch, at any size: transformer, VAE, audio encoder, face detector.

Written from the formulas in the headers of lib/model; the names of the parameters are the names of the tensors in
model.safetensors, so that state_dict() is the file. Activations may be bf16 under autocast; norms are computed in float32."""
import math

import torch
import torch.nn.functional as F
from torch import nn


def attention(q, k, v, mask=None, scale=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Weight(nn.Module):
    """A parameter with a name of its own: X.weight, and X.bias if asked."""

    def __init__(self, shape, bias=None, value=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape) if value is None else value)
        if bias is not None:
            self.bias = nn.Parameter(torch.zeros(bias))


# ---- VAE (lib/model/vae.h) -----------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """CausalConv3d: replicated edges, two frames in front; a single frame is its own past."""

    def __init__(self, ci, co, k=3, stride=(1, 1, 1)):
        super().__init__()
        self.conv, self.k, self.stride = nn.Conv3d(ci, co, k, stride), k, stride

    def forward(self, x):
        if x.shape[2] == 1:                     # a single frame: all taps see it
            h = x[:, :, 0]
            if self.k == 3:
                h = F.pad(h, (1, 1, 1, 1), mode="replicate")
            return F.conv2d(h, self.conv.weight.sum(2), self.conv.bias, self.stride[1:])[:, :, None]
        if self.k == 3:
            x = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
        return self.conv(x)


def norm_silu(norm, x):
    return F.silu(F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)).to(x.dtype)


class Resnet(nn.Module):
    def __init__(self, ci, co, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, ci, eps=1e-6), Causal(ci, co)
        self.norm2, self.conv2 = nn.GroupNorm(groups, co, eps=1e-6), Causal(co, co)
        if ci != co:
            self.conv_shortcut = Causal(ci, co, 1)

    def forward(self, x):
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(norm_silu(self.norm2, h))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class VaeAttention(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x):
        b, c, t, h, w = x.shape
        n = F.group_norm(x.float(), self.group_norm.num_groups, self.group_norm.weight, self.group_norm.bias, self.group_norm.eps)
        n = n.reshape(b, c, -1).transpose(1, 2)
        q, k, v = (m(n)[:, None] for m in (self.to_q, self.to_k, self.to_v))
        mask = None
        if t > 1:                               # a token sees its own frame and those before
            f = torch.arange(t, device=x.device).repeat_interleave(h * w)
            mask = f[:, None] >= f[None, :]
        o = self.to_out[0](attention(q, k, v, mask)[:, 0])
        return x + o.transpose(1, 2).reshape(b, c, t, h, w)


class Mid(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(c, c, groups), Resnet(c, c, groups)])
        self.attentions = nn.ModuleList([VaeAttention(c, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Sampler(nn.Module):
    """Down (stride) or up (nearest, the first frame apart)."""

    def __init__(self, c, down=None, time=False):
        super().__init__()
        self.conv, self.up, self.time = Causal(c, c, 3, down or (1, 1, 1)), down is None, time

    def forward(self, x):
        if self.up:
            x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
            if self.time and x.shape[2] > 1:
                x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, 2)], 2)
        return self.conv(x)


class Stage(nn.Module):
    def __init__(self, resnets, name=None, sampler=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.last = name
        if sampler:
            setattr(self, name, nn.ModuleList([sampler]))

    def forward(self, x):
        for r in self.resnets:
            x = r(x)
        return getattr(self, self.last)[0](x) if self.last else x


class Coder(nn.Module):
    def __init__(self, cfg, encoder):
        super().__init__()
        c, g, n, z = cfg["block_out_channels"], cfg["norm_num_groups"], cfg["layers_per_block"], cfg["latent_channels"]
        if encoder:
            self.conv_in = Causal(3, c[0])
            stages, ci = [], c[0]
            for i, co in enumerate(c):
                down = Sampler(co, (2 if i else 1, 2, 2)) if i < 3 else None
                stages.append(Stage([Resnet(ci if j == 0 else co, co, g) for j in range(n)], "downsamplers" if down else None, down))
                ci = co
            self.down_blocks, top, out = nn.ModuleList(stages), c[-1], 2 * z
        else:
            c = c[::-1]
            self.conv_in = Causal(z, c[0])
            stages, ci = [], c[0]
            for i, co in enumerate(c):
                up = Sampler(co, None, i > 0) if i < 3 else None
                stages.append(Stage([Resnet(ci if j == 0 else co, co, g) for j in range(n + 1)], "upsamplers" if up else None, up))
                ci = co
            self.up_blocks, top, out = nn.ModuleList(stages), c[0], 3
        self.mid_block = Mid(top, g)
        self.conv_norm_out, self.conv_out = nn.GroupNorm(g, ci, eps=1e-6), Causal(ci, out)

    def forward(self, x):
        x = self.conv_in(x)
        if hasattr(self, "down_blocks"):
            for s in self.down_blocks:
                x = s(x)
            x = self.mid_block(x)
        else:
            x = self.mid_block(x)
            for s in self.up_blocks:
                x = s(x)
        return self.conv_out(norm_silu(self.conv_norm_out, x))


class Vae(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        z = cfg["latent_channels"]
        self.encoder, self.decoder = Coder(cfg, True), Coder(cfg, False)
        self.quant_conv, self.post_quant_conv = nn.Conv3d(2 * z, 2 * z, 1), nn.Conv3d(z, z, 1)
        self.tile = cfg["sample_tsize"] // 4

    def encode(self, x):
        """[B, 3, T, H, W] in -1..1 -> mean, logvar [B, 16, t, h, w]. In one piece: pictures here are one tile."""
        return self.quant_conv(self.encoder(x)).float().chunk(2, 1)

    def decode_piece(self, z):
        return self.decoder(self.post_quant_conv(z)).float()

    def decode(self, z):
        """With the temporal tiling of hv-decode: 17 latent frames, 12 on, the overlap of 16 frames blended."""
        lt = self.tile
        if z.shape[2] <= lt:
            return self.decode_piece(z)
        step, ext = lt * 3 // 4, lt
        out, last = [], None
        for i in range(0, z.shape[2], step):
            if i and z.shape[2] - i == 1:
                break
            t = self.decode_piece(z[:, :, i:i + lt + 1])
            if i:
                t = t[:, :, 1:]
                n = min(last.shape[2], t.shape[2], ext)
                w = (torch.arange(n, device=z.device) / n)[None, None, :, None, None]
                t = torch.cat([last[:, :, last.shape[2] - n:] * (1 - w) + t[:, :, :n] * w, t[:, :, n:]], 2)
            last = t
            out.append(t[:, :, :4 * step + (i == 0)])
        return torch.cat(out, 2)


# ---- audio encoder (lib/model/whisper.h) ---------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.k_proj, self.v_proj, self.q_proj = nn.Linear(c, c, bias=False), nn.Linear(c, c), nn.Linear(c, c)
        self.out_proj, self.heads = nn.Linear(c, c), heads

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class EncoderLayer(nn.Module):
    def __init__(self, c, heads, ffn):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = SelfAttention(c, heads), nn.LayerNorm(c)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(c, ffn), nn.Linear(ffn, c), nn.LayerNorm(c)

    def forward(self, h):
        h = h + self.self_attn(self.self_attn_layer_norm(h))
        return h + self.fc2(F.gelu(self.fc1(self.final_layer_norm(h))))


class AudioStack(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c = cfg["d_model"]
        self.conv1, self.conv2 = nn.Conv1d(80, c, 3, padding=1), nn.Conv1d(c, c, 3, stride=2, padding=1)
        rate = torch.exp(-torch.arange(c // 2) * math.log(10000) / (c // 2 - 1))
        a = torch.arange(1500)[:, None] * rate[None]
        self.embed_positions = Weight((1500, c), value=torch.cat([a.sin(), a.cos()], 1))
        self.layers = nn.ModuleList([EncoderLayer(c, cfg["encoder_attention_heads"], cfg["encoder_ffn_dim"]) for _ in range(cfg["encoder_layers"])])
        self.layer_norm = nn.LayerNorm(c)


class Audio(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.encoder = AudioStack(cfg)

    def forward(self, mel):
        """[B, 80, 3000] -> [B, 1504, S, C]: the states, four rows of zeros in front."""
        e = self.encoder
        h = F.gelu(e.conv2(F.gelu(e.conv1(mel)))).transpose(1, 2) + e.embed_positions.weight
        states = [h]
        for layer in e.layers:
            h = layer(h)
            states.append(h)
        states[-1] = e.layer_norm(h)
        return F.pad(torch.stack(states, 2), (0, 0, 0, 0, 4, 0))

    @staticmethod
    def windows(states, frames):
        """frames [B, F], each a frame of its 30 s -> [B, F, 10, S, C]; a frame below 0 is a window of zeros."""
        rows = 2 * frames.clamp(min=0)[:, :, None] + torch.arange(10, device=frames.device)
        b, f = frames.shape
        out = torch.gather(states, 1, rows.reshape(b, -1, 1, 1).expand(-1, -1, *states.shape[2:]))
        return out.view(b, f, 10, *states.shape[2:]) * (frames >= 0)[:, :, None, None, None]


# ---- transformer (lib/model/dit.h) ---------------------------------------------------------------------------------------


class Mlp2(nn.Module):
    """Two linears named mlp.0 and mlp.2 on the sinusoids of a number."""

    def __init__(self, out):
        super().__init__()
        self.mlp = nn.ModuleList([nn.Linear(256, out), nn.Identity(), nn.Linear(out, out)])

    def forward(self, s):
        f = torch.exp(-math.log(10000) * torch.arange(128, device=s.device, dtype=torch.float32) / 128)
        a = s.float()[..., None] * f
        return self.mlp[2](F.silu(self.mlp[0](torch.cat([a.cos(), a.sin()], -1))))


class Two(nn.Module):
    def __init__(self, a, b, i, o):
        super().__init__()
        self.a, self.b = a, b
        setattr(self, a, nn.Linear(i, o))
        setattr(self, b, nn.Linear(o, o))

    def forward(self, x):
        return getattr(self, self.b)(F.silu(getattr(self, self.a)(x)))


class Mlp(nn.Module):
    def __init__(self, h, f):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(h, f), nn.Linear(f, h)


class Last(nn.Module):
    """A linear that is number 1 of a sequence, its SiLU number 0."""

    def __init__(self, i, o):
        super().__init__()
        self.add_module("1", nn.Linear(i, o))

    def forward(self, c):
        return getattr(self, "1")(F.silu(c))


class RefinerBlock(nn.Module):
    def __init__(self, h, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(h, eps=1e-6), nn.LayerNorm(h, eps=1e-6)
        self.self_attn_qkv, self.self_attn_proj = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.mlp, self.adaLN_modulation, self.heads = Mlp(h, 4 * h), Last(h, 2 * h), heads

    def forward(self, y, c, allow):
        b, n, h = y.shape
        g1, g2 = self.adaLN_modulation(c)[:, None].chunk(2, -1)
        q, k, v = self.self_attn_qkv(self.norm1(y)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = y + g1 * self.self_attn_proj(attention(q, k, v, allow).transpose(1, 2).reshape(b, n, h))
        return y + g2 * self.mlp.fc2(F.silu(self.mlp.fc1(self.norm2(y))))


class Refiners(nn.Module):
    def __init__(self, h, heads):
        super().__init__()
        self.blocks = nn.ModuleList([RefinerBlock(h, heads) for _ in range(2)])


class TextIn(nn.Module):
    def __init__(self, e, h, heads):
        super().__init__()
        self.input_embedder, self.t_embedder = nn.Linear(e, h), Mlp2(h)
        self.c_embedder, self.individual_token_refiner = Two("linear_1", "linear_2", e, h), Refiners(h, heads)

    def forward(self, x, mask, t):
        m = mask.float()[:, :, None]
        c = self.t_embedder(t) + self.c_embedder((x * m).sum(1) / m.sum(1))
        valid = mask.bool()
        allow = valid[:, :, None] & valid[:, None, :]
        allow = allow | (torch.arange(x.shape[1], device=x.device) == 0)
        y = self.input_embedder(x)
        for b in self.individual_token_refiner.blocks:
            y = b(y, c, allow[:, None])
        return y


def rms(x, w):
    x = x.float()
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w


def rope(x, cos, sin):
    """Pairs 2i, 2i+1 of x [B, A, N, D]; cos, sin [N, D/2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def ln(x, eps=1e-6):
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


class DoubleBlock(nn.Module):
    def __init__(self, h, heads, f):
        super().__init__()
        self.heads = heads
        for s in ("img", "txt"):
            mod = nn.Module()
            mod.linear = nn.Linear(h, 6 * h)
            setattr(self, s + "_mod", mod)
            setattr(self, s + "_attn_qkv", nn.Linear(h, 3 * h))
            setattr(self, s + "_attn_proj", nn.Linear(h, h))
            setattr(self, s + "_attn_q_norm", Weight((h // heads,)))
            setattr(self, s + "_attn_k_norm", Weight((h // heads,)))
            setattr(self, s + "_mlp", Mlp(h, f))

    def forward(self, img, txt, vec, tables):
        b, n_img = img.shape[:2]
        q, k, v, mods = [], [], [], {}
        for s, x in (("img", img), ("txt", txt)):
            mods[s] = getattr(self, s + "_mod").linear(F.silu(vec))[:, None].chunk(6, -1)
            z = ln(x) * (1 + mods[s][1]) + mods[s][0]
            qs, ks, vs = getattr(self, s + "_attn_qkv")(z).view(b, x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            qs, ks = rms(qs, getattr(self, s + "_attn_q_norm").weight), rms(ks, getattr(self, s + "_attn_k_norm").weight)
            if s == "img":
                qs, ks = rope(qs, *tables), rope(ks, *tables)
            q.append(qs.to(vs.dtype)), k.append(ks.to(vs.dtype)), v.append(vs)
        o = attention(torch.cat(q, 2), torch.cat(k, 2), torch.cat(v, 2)).transpose(1, 2).flatten(2)
        out = []
        for s, x, part in (("img", img, o[:, :n_img]), ("txt", txt, o[:, n_img:])):
            m, mlp = mods[s], getattr(self, s + "_mlp")
            x = x + m[2] * getattr(self, s + "_attn_proj")(part)
            out.append(x + m[5] * mlp.fc2(F.gelu(mlp.fc1(ln(x) * (1 + m[4]) + m[3]), approximate="tanh")))
        return out


class SingleBlock(nn.Module):
    def __init__(self, h, heads, f):
        super().__init__()
        self.heads, self.f = heads, f
        self.linear1, self.linear2 = nn.Linear(h, 3 * h + f), nn.Linear(h + f, h)
        self.q_norm, self.k_norm = Weight((h // heads,)), Weight((h // heads,))
        self.modulation = nn.Module()
        self.modulation.linear = nn.Linear(h, 3 * h)

    def forward(self, x, n_img, vec, tables):
        b, n, h = x.shape
        sh, sc, g = self.modulation.linear(F.silu(vec))[:, None].chunk(3, -1)
        y = self.linear1(ln(x) * (1 + sc) + sh)
        q, k, v = y[..., :3 * h].reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rms(q, self.q_norm.weight), rms(k, self.k_norm.weight)
        q = torch.cat([rope(q[:, :, :n_img], *tables), q[:, :, n_img:]], 2).to(v.dtype)
        k = torch.cat([rope(k[:, :, :n_img], *tables), k[:, :, n_img:]], 2).to(v.dtype)
        o = attention(q, k, v).transpose(1, 2).flatten(2)
        return x + g * self.linear2(torch.cat([o, F.gelu(y[..., 3 * h:], approximate="tanh")], -1))


class Adapter(nn.Module):
    def __init__(self, h, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(h), nn.LayerNorm(h)
        self.to_q, self.to_kv = nn.Linear(h, d, bias=False), nn.Linear(h, 2 * d, bias=False)
        self.to_out = nn.Linear(d, h, bias=False)

    def forward(self, x, sound, m):
        """x [B, T, hw, H], sound [B, T, 16, H], m [B, 1, hw, 1]."""
        q, (k, v) = self.to_q(self.norm2(x)), self.to_kv(self.norm1(sound)).chunk(2, -1)
        return x + m * self.to_out(attention(q, k, v))


class AudioProj(nn.Module):
    def __init__(self, i, p, h):
        super().__init__()
        self.proj1, self.proj2, self.proj3, self.norm = nn.Linear(i, p), nn.Linear(p, p), nn.Linear(p, 4 * h), nn.LayerNorm(h)

    def forward(self, a):
        """[B, F, 10, S, C] -> 4 tokens a frame [B, F, 4, H]."""
        y = self.proj3(F.relu(self.proj2(F.relu(self.proj1(a.flatten(2))))))
        return self.norm(y.view(*a.shape[:2], 4, -1))


class Patch(nn.Module):
    def __init__(self, c, h, patch):
        super().__init__()
        self.proj = nn.Conv3d(c, h, patch, patch)

    def forward(self, z):
        return self.proj(z).flatten(2).transpose(1, 2)


class Final(nn.Module):
    def __init__(self, h, out):
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(h, out), Last(h, 2 * h)

    def forward(self, x, vec):
        sh, sc = self.adaLN_modulation(vec)[:, None].chunk(2, -1)
        return self.linear(ln(x) * (1 + sc) + sh)


class Transformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        h, a, c = cfg["hidden_size"], cfg["num_heads"], cfg["in_channels"]
        f = int(h * cfg["mlp_width_ratio"])
        self.cfg, self.h = cfg, h
        self.img_in, self.ref_in = Patch(c, h, cfg["patch_size"]), Patch(c, h, cfg["patch_size"])
        self.before_proj = nn.Linear(h, h)
        self.time_in, self.fps_proj, self.motion_exp, self.motion_pose = Mlp2(h), Mlp2(h), Mlp2(h // 4), Mlp2(h // 4)
        self.vector_in = Two("in_layer", "out_layer", cfg["text_states_dim_2"], h)
        self.txt_in = TextIn(cfg["text_states_dim"], h, a)
        self.double_blocks = nn.ModuleList([DoubleBlock(h, a, f) for _ in range(cfg["depth_double_blocks"])])
        self.single_blocks = nn.ModuleList([SingleBlock(h, a, f) for _ in range(cfg["depth_single_blocks"])])
        self.final_layer = Final(h, c * math.prod(cfg["patch_size"]))
        self.audio_proj = AudioProj(cfg["audio_seq_len"] * cfg["audio_blocks"] * cfg["audio_channels"], cfg["audio_intermediate_dim"], h)
        self.audio_adapter_blocks = nn.ModuleList([Adapter(h, cfg["audio_adapter_dim"]) for _ in cfg["double_stream_list"]])

    def start(self):
        """The start of training: matrices N(0, 1/fan_in), gates and the last layer zero."""
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)
                if name.endswith(("fc2.weight", "linear2.weight", "to_out.weight", "attn_proj.weight", "proj.2.weight")):
                    p.data *= 0.5
                if "_mod." in name or "modulation" in name or name.startswith("final_layer.linear"):
                    nn.init.zeros_(p)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        return self

    def tables(self, t, h, w, device):
        """cos and sin of [(t + 1) h w, D/2]: the frame in front has time -1."""
        theta, parts = self.cfg["rope_theta"], []
        for axis, (dim, pos) in enumerate(zip(self.cfg["rope_dim_list"], (torch.arange(-1, t), torch.arange(h), torch.arange(w)))):
            freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
            angle = pos[:, None].float() * freq
            shape = [1, 1, 1, dim // 2]
            shape[axis] = len(pos)
            parts.append(angle.view(shape).expand(t + 1, h, w, dim // 2))
        angle = torch.cat(parts, -1).reshape(-1, sum(self.cfg["rope_dim_list"]) // 2).to(device)
        return angle.cos(), angle.sin()

    def forward(self, x, ref, t, states, mask, pooled, audio, face_mask, n):
        """Velocity [B, C, T, h, w]. ref [B, C, T, h, w]; audio [B, 4T-3, 10, S, C]; face_mask [B, 1, h, w]; states [B, L, E],
        mask [B, L] with the same sum n in every row. Returns the audio tokens [B, T, 16, H], too: training hears them."""
        b, c, T, h, w = x.shape
        pt, ph, pw = self.cfg["patch_size"]
        hp, wp = h // ph, w // pw
        hw = hp * wp
        thirty, five = torch.full((b, 4), 30.0, device=x.device), torch.full((b, 4), 25.0, device=x.device)
        vec = self.time_in(t) + self.motion_exp(thirty).flatten(1) + self.motion_pose(five).flatten(1)
        vec = vec + self.fps_proj(torch.full((b,), 25.0, device=x.device)) + self.vector_in(pooled)
        vid = self.before_proj(self.ref_in(ref)) + self.img_in(x)
        img = torch.cat([self.img_in(ref[:, :, :1]), vid], 1).float()
        txt = self.txt_in(states, mask, t)[:, :n].float()
        tables = self.tables(T, hp, wp, x.device)
        sound = self.audio_proj(audio)
        sound = torch.cat([sound[:, :1]] * 3 + [sound], 1).reshape(b, T, 16, self.h)
        m = face_mask[:, :, ::ph, ::pw].reshape(b, 1, hw, 1)
        where = {i: j for j, i in enumerate(self.cfg["double_stream_list"])}
        for i, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, vec, tables)
            if i in where:
                v = self.audio_adapter_blocks[where[i]](img[:, hw:].reshape(b, T, hw, -1), sound, m)
                img = torch.cat([img[:, :hw], v.flatten(1, 2)], 1)
        y = torch.cat([img, txt], 1)
        for block in self.single_blocks:
            y = block(y, img.shape[1], vec, tables)
        y = self.final_layer(y[:, hw:img.shape[1]], vec)
        y = y.view(b, T, hp, wp, c, ph, pw).permute(0, 4, 1, 2, 5, 3, 6).reshape(b, c, T, h, w)
        return y.float(), sound


# ---- face detector (lib/model/face.h) ------------------------------------------------------------------------------------


class Norm(nn.BatchNorm2d):
    """Without the count of batches: the mean of the weights is taken over all that a state holds."""

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args):
        nn.Module._load_from_state_dict(self, *args)    # BatchNorm's would want the count


class Conv(nn.Module):
    """A convolution, its batch norm where there is one (`normed`, in training; `folded` afterwards), SiLU."""

    def __init__(self, i, o, k=1, s=1):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(i, o, k, s, k // 2), None

    def forward(self, x):
        x = self.conv(x)
        return F.silu(x if self.bn is None else self.bn(x))


class Bottleneck(nn.Module):
    def __init__(self, h, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(h, h), Conv(h, h, 3), shortcut

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    def __init__(self, i, o, n, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(i, o // 2), Conv(i, o // 2), Conv(o, o)
        self.m = nn.Sequential(*[Bottleneck(o // 2, shortcut) for _ in range(n)])

    def forward(self, x):
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class Stem(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.stem_1, self.stem_2a, self.stem_2b, self.stem_3 = Conv(i, o, 3, 2), Conv(o, o // 2), Conv(o // 2, o, 3, 2), Conv(2 * o, o)

    def forward(self, x):
        a = self.stem_1(x)
        return self.stem_3(torch.cat([self.stem_2b(self.stem_2a(a)), F.max_pool2d(a, 2, 2, ceil_mode=True)], 1))


class Spp(nn.Module):
    def __init__(self, i, o, k):
        super().__init__()
        self.cv1, self.cv2, self.k = Conv(i, i // 2), Conv(i // 2 * (1 + len(k)), o), k

    def forward(self, x):
        z = self.cv1(x)
        return self.cv2(torch.cat([z] + [F.max_pool2d(z, k, 1, k // 2) for k in self.k], 1))


class Heads(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.m = nn.ModuleList([nn.Conv2d(w, 48, 1) for w in widths])


class Face(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.model = cfg, nn.ModuleList()
        out = []
        for i, l in enumerate(cfg["layers"]):
            src = [i - 1 if j < 0 else j for j in l["from"]]
            ci = 3 if i == 0 else sum(out[j] for j in src)
            op = l["op"]
            o = l.get("out", ci)
            m = (Conv(ci, o, l["k"], l["s"]) if op == "conv" else C3(ci, o, l["n"], l["shortcut"]) if op == "c3" else Stem(ci, o) if op == "stem"
                 else Spp(ci, o, l["k"]) if op == "spp" else Heads([out[j] for j in src]) if op == "detect" else nn.Identity())
            self.model.append(m)
            out.append(o)

    def normed(self):
        """With a batch norm behind every convolution but the heads: without, it learns several times slower."""
        for m in self.modules():
            if isinstance(m, Conv):
                m.bn = Norm(m.conv.out_channels, momentum=0.03).to(m.conv.weight.device)
        return self

    @torch.no_grad()
    def folded(self):
        """The norms become part of the convolutions, as in the product's folders."""
        for m in self.modules():
            if isinstance(m, Conv) and m.bn is not None:
                a = m.bn.weight / (m.bn.running_var + m.bn.eps).sqrt()
                m.conv.weight.mul_(a[:, None, None, None])
                m.conv.bias.copy_((m.conv.bias - m.bn.running_mean) * a + m.bn.bias)
                m.bn = None
        return self

    def forward(self, x):
        """[B, 3, H, W] in 0..1 -> raw heads, a list of [B, 3, 16, ny, nx]."""
        y = []
        for i, (l, m) in enumerate(zip(self.cfg["layers"], self.model)):
            src = [x if i == 0 else y[i - 1] if j < 0 else y[j] for j in l["from"]]
            if l["op"] == "detect":
                return [h(s).unflatten(1, (3, 16)) for h, s in zip(m.m, src)]
            y.append(F.interpolate(src[0], scale_factor=2) if l["op"] == "upsample" else torch.cat(src, 1) if l["op"] == "concat" else m(src[0]))

    def decode(self, heads):
        """Rows of all scales [B, N, 16]: centre, size in pixels; objectness; landmarks; class. Probabilities as logits."""
        rows = []
        for t, s, a in zip(heads, self.cfg["strides"], self.cfg["anchors"]):
            a = torch.tensor(a, dtype=torch.float32, device=t.device).view(3, 2)
            ny, nx = t.shape[-2:]
            g = torch.stack(torch.meshgrid(torch.arange(nx), torch.arange(ny), indexing="xy")).to(t)[None, None]
            xy = (2 * t[:, :, :2].sigmoid() - 0.5 + g) * s
            wh = (2 * t[:, :, 2:4].sigmoid()) ** 2 * a[None, :, :, None, None]
            lm = t[:, :, 5:15].unflatten(2, (5, 2)) * a[None, :, None, :, None, None] + g[:, :, None] * s
            rows.append(torch.cat([xy, wh, t[:, :, 4:5], lm.flatten(2, 3), t[:, :, 15:]], 2).permute(0, 1, 3, 4, 2).flatten(1, 3))
        return torch.cat(rows, 1)
