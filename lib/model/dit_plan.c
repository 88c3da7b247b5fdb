/* dit_plan.c - what the diffusion transformer keeps, on the device and on the host, and how it is made to fit.
 *
 * On the device a forward keeps x and o whole. o takes the queries of a group of heads, attention writes over them, and the
 * groups that follow still read the unmodified x: so two whole buffers, and k and v of one group. All else is chunks. What comes
 * before the steps (modulation, text, sound) shares the bytes of what comes later. */
#include "dit_impl.h"

#include <string.h>

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t dit_rope_count(const struct dit_config *c, const struct dit_size *s)
{
    return (s->frames + 1) * c->rope_dim[0] + s->height / c->patch[1] * c->rope_dim[1] + s->width / c->patch[2] * c->rope_dim[2];
}

struct dit_dims dit_dims(const struct dit_config *c, const struct dit_size *s, int64_t rows_mlp)
{
    struct dit_dims m = {.down = s->height / c->patch[1], .across = s->width / c->patch[2]};

    m.tokens = m.down * m.across;
    m.video = s->frames * m.tokens;
    m.image = m.video + m.tokens;
    m.rows = m.image + s->text_rows;
    m.patch = c->channels * c->patch[0] * c->patch[1] * c->patch[2];
    m.keys = 4 * c->audio_tokens;
    m.mods = 12 * c->double_blocks + 3 * c->single_blocks + 2;
    m.tail = m.mods - 5;
    for (int j = 0; j < c->adapters; j++)
        m.adapters += c->adapter_after[j] < c->double_blocks;
    m.moments = s->full + s->cached;
    m.entries = s->sound + 1;
    m.voices = s->voices > 1 ? s->voices : 1;
    /* Patches are taken by whole frames, or by whole lines of tokens of one frame. */
    m.embed = rows_mlp >= m.tokens ? least(rows_mlp / m.tokens * m.tokens, m.video) : most(rows_mlp / m.across, 1) * m.across;
    return m;
}

#define SHAPE(...) (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

int dit_paired(const struct dit_choice *k)
{
    return k->branches == DIT_BRANCHES_PAIRED ? 2 : 1;
}

int dit_o_host(const struct dit_choice *k)
{
    return k->tier == DIT_TIER_O_HOST || k->tier == DIT_TIER_X_HOST;
}

int dit_is_ahead(const struct dit_choice *k)
{
    return k->tier == DIT_TIER_X_HOST && k->ahead == DIT_AHEAD_ON;
}

int dit_expands(const struct dit_size *s, const struct dit_choice *k)
{
    return (s->weights == HV_I8 || s->weights == HV_F8_E4M3) && k->ring_bytes && k->gemm != DIT_GEMM_FUSED;
}

static void forward_rows(struct hv_plan *p, const struct dit_config *c, const struct dit_size *s, const struct dit_choice *k)
{
    const struct dit_dims m = dit_dims(c, s, k->rows_mlp);
    const int64_t H = c->hidden, M = c->mlp, G = k->group * c->head_dim, longest = most(m.image, s->text_rows);
    const int64_t rq = least(k->rows_attn, longest), rm = least(k->rows_mlp, longest);
    const int64_t attn = (int64_t)hv_attention_scratch(k->attention, m.rows, m.rows, (int)k->group, c->head_dim);
    const hv_dtype A = s->act;

    /*          name          dtype   alive in            shape */
    if (k->tier != DIT_TIER_X_HOST)
        hv_plan_add(p, "x",     A,      PH_FORWARD,         SHAPE(dit_paired(k) * m.rows, H)); /* residual stream: image, text */
    if (!dit_o_host(k))
        hv_plan_add(p, "o",     A,      PH_ATTN | PH_MLP,   SHAPE(m.rows, H));            /* attention's result; q before it */
    /* One group of heads: q (where o does not hold it), k, v; attention's result where neither o nor q may hold it. Ahead: keys
     * and values of two groups, q and the result a chunk at a time. */
    if (dit_is_ahead(k)) {
        hv_plan_add(p, "kv",    A,      PH_ATTN,            SHAPE(4, m.rows, G));
        hv_plan_add(p, "q",     A,      PH_ATTN,            SHAPE(rq, G));
    } else {
        hv_plan_add(p, "qkv",   A,      PH_ATTN,            SHAPE(2 + (k->apart || dit_o_host(k)), m.rows, G));
    }
    if (k->apart && dit_o_host(k))
        hv_plan_add(p, "o_group", A,    PH_ATTN,            SHAPE(dit_is_ahead(k) ? rq : m.rows, G));
    hv_plan_add(p, "z_attn",    A,      PH_ATTN,            SHAPE(rq, H));                /* a chunk, normed */
    if (attn)
        hv_plan_add(p, "attention", HV_BYTES, PH_ATTN,      SHAPE(attn));
    hv_plan_add(p, "z",         A,      PH_MLP | PH_ADAPTER, SHAPE(rm, H));
    hv_plan_add(p, "hidden",    A,      PH_MLP,             SHAPE(rm, M + (c->single_blocks ? H : 0)));
    /* Chunks of what lives on the host: two, so that one is copied while the other is computed on. */
    if (k->tier == DIT_TIER_X_HOST) {
        hv_plan_add(p, "x_attn", A,     PH_ATTN,            SHAPE(2, rq, H));
        hv_plan_add(p, "x_mlp", A,      PH_EMBED | PH_MLP | PH_ADAPTER | PH_FINAL, SHAPE(2, rm, H));
    }
    if (dit_o_host(k))
        hv_plan_add(p, "o_mlp", A,      PH_MLP,             SHAPE(2, rm, H));
    if (dit_expands(s, k)) {
        hv_plan_add(p, "wide_attn", A,  PH_ATTN,            SHAPE(3, G, H));              /* quantized weights as bf16 */
        hv_plan_add(p, "wide",  A,      PH_MLP,             SHAPE(H * H + 2 * H * M));
    }
    hv_plan_add(p, "adapter_q", A,      PH_ADAPTER,         SHAPE(rm, c->adapter_dim));
    hv_plan_add(p, "adapter_kv", A,     PH_FORWARD,         SHAPE(DIT_CALLS, m.voices * s->frames * m.keys, 2 * c->adapter_dim));
    if (m.voices > 1)
        hv_plan_add(p, "adapter_sum", A, PH_ADAPTER,        SHAPE(rm, H));                /* of the voices */
    hv_plan_add(p, "patches",   A,      PH_EMBED | PH_FINAL, SHAPE(m.embed, m.patch));
    hv_plan_add(p, "embed",     A,      PH_EMBED | PH_FINAL, SHAPE(m.embed, H));
    hv_plan_add(p, "embed_ref", A,      PH_EMBED,           SHAPE(m.embed, H));
    if (k->keep_ref)
        hv_plan_add(p, "ref_rows", A,   PH_ALL,             SHAPE(m.video, H));
    hv_plan_add(p, "latents",   HV_F32, PH_FORWARD,         SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "velocity",  HV_F32, PH_FORWARD,         SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "ref",       HV_F32, PH_EMBED,           SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "stat",      HV_F32, PH_FORWARD,         SHAPE(m.rows, 2));            /* mean and 1/std of each row */
    hv_plan_add(p, "face",      HV_F32, PH_FORWARD,         SHAPE(m.voices * m.video));
    hv_plan_add(p, "mod",       HV_F32, PH_FORWARD,         SHAPE(DIT_CALLS, m.mods, H));
    hv_plan_add(p, "rope",      HV_F32, PH_ALL,             SHAPE(DIT_ROPE));             /* tables of the three axes */
    if (s->residual || s->probe)
        hv_plan_add(p, "residual", A,   PH_EMBED | PH_FINAL, SHAPE(m.embed, H));          /* a chunk on its way from or to the host */
    if (s->residual)
        hv_plan_add(p, "minus", HV_F32, PH_ALL,             SHAPE(H));                    /* -1 */
    if (k->ring_bytes)
        hv_plan_add(p, "ring",  HV_BYTES, PH_ALL,           SHAPE(k->ring_bytes));        /* weights in flight */
    if (k->resident_bytes)
        hv_plan_add(p, "resident", HV_BYTES, PH_ALL,        SHAPE(k->resident_bytes));
    if (s->scratch)
        hv_plan_add(p, "gemm",  HV_BYTES, PH_ALL,           SHAPE(s->scratch));
}

static void before_rows(struct hv_plan *p, const struct dit_config *c, const struct dit_size *s, const struct dit_choice *k)
{
    const struct dit_dims m = dit_dims(c, s, k->rows_mlp);
    const int64_t H = c->hidden, V = most(m.moments, 4), L = s->text_len, R = least(m.entries, DIT_SOUND_CHUNK);
    const hv_dtype A = s->act;

    hv_plan_add(p, "sinusoid",  A,      PH_VEC | PH_TEXT,   SHAPE(V, DIT_EMBED));
    hv_plan_add(p, "vec",       A,      PH_VEC | PH_TEXT,   SHAPE(V, H));
    hv_plan_add(p, "vec_tmp",   A,      PH_VEC | PH_TEXT,   SHAPE(V, H));
    hv_plan_add(p, "vec_fixed", A,      PH_VEC | PH_TEXT,   SHAPE(2, H));
    hv_plan_add(p, "vec_text",  A,      PH_VEC | PH_TEXT,   SHAPE(s->texts, H));
    hv_plan_add(p, "pooled",    A,      PH_VEC,             SHAPE(1, c->pooled_dim));
    hv_plan_add(p, "mod_out",   A,      PH_VEC,             SHAPE(V, 6 * H));
    hv_plan_add(p, "states",    A,      PH_TEXT,            SHAPE(L, c->text_dim));
    hv_plan_add(p, "mean",      A,      PH_TEXT,            SHAPE(1, c->text_dim));
    hv_plan_add(p, "text_x",    A,      PH_TEXT,            SHAPE(L, H));
    hv_plan_add(p, "text_z",    A,      PH_TEXT,            SHAPE(L, H));
    hv_plan_add(p, "text_qkv",  A,      PH_TEXT,            SHAPE(L, 3 * H));
    hv_plan_add(p, "text_hidden", A,    PH_TEXT,            SHAPE(least(L, k->rows_mlp), 4 * H));
    hv_plan_add(p, "text_gates", A,     PH_TEXT,            SHAPE(1, 2 * H));
    hv_plan_add(p, "text_gate", HV_F32, PH_TEXT,            SHAPE(2, H));
    hv_plan_add(p, "text_seen", HV_U8,  PH_TEXT,            SHAPE(L));
    hv_plan_add(p, "sound_in",  A,      PH_SOUND,           SHAPE(R, c->audio_seq * c->audio_layers * c->audio_channels));
    hv_plan_add(p, "sound_mid", A,      PH_SOUND,           SHAPE(2, R, c->audio_mid));
    hv_plan_add(p, "sound_tok", A,      PH_SOUND,           SHAPE(R * c->audio_tokens, H));
    hv_plan_add(p, "sound_z",   A,      PH_SOUND,           SHAPE(R * c->audio_tokens, H));
    hv_plan_add(p, "sound_kv",  A,      PH_SOUND,           SHAPE(R * c->audio_tokens, 2 * c->adapter_dim));
}

static void host_rows(struct hv_plan *p, const struct dit_config *c, const struct dit_size *s, const struct dit_choice *k)
{
    const struct dit_dims m = dit_dims(c, s, k->rows_mlp);
    const int64_t H = c->hidden, d2 = 2 * c->adapter_dim;
    const int64_t cache = s->windows ? s->clip_frames * m.tokens + (s->residual ? 0 : s->windows * (m.tokens + s->text_rows)) : 0;

    hv_plan_add(p, "modulation", HV_F32, 1, SHAPE(s->full, m.mods * H));        /* of each full moment */
    hv_plan_add(p, "modulation_cached", HV_F32, 1, SHAPE(s->cached, 5 * H));    /* last single block, final layer */
    hv_plan_add(p, "text",       s->act, 1, SHAPE(s->full, s->text_rows, H));   /* refined */
    hv_plan_add(p, "sound",      s->act, 1, SHAPE(m.adapters, m.entries * c->audio_tokens, d2));
    hv_plan_add(p, "sound_window", s->act, 1, SHAPE(DIT_CALLS, m.adapters, m.voices * s->frames * m.keys, d2));
    hv_plan_add(p, "step_cache", s->act, 1, SHAPE(s->branches, cache, H));
    if (s->probe) {
        hv_plan_add(p, "probe_cache", s->act, 1, SHAPE((s->clip_frames + s->windows) * m.tokens, H));
        hv_plan_add(p, "probe", s->act, 1, SHAPE(m.embed, H));
    }
    if (k->tier == DIT_TIER_X_HOST)
        hv_plan_add(p, "x_host", s->act, 1, SHAPE(dit_paired(k) * m.rows, H));
    if (dit_o_host(k))
        hv_plan_add(p, "o_host", s->act, 1, SHAPE(c->heads / k->group, m.rows, k->group * c->head_dim));
}

int dit_plan(struct hv_plan *device, struct hv_plan *host, const struct dit_config *c, const struct dit_size *s,
             const struct dit_choice *choice, struct hv_err *e)
{
    if (s->height % c->patch[1] || s->width % c->patch[2] || s->frames < 1 || s->height < 1 || s->width < 1)
        return hv_fail(e, HV_EINPUT, "latents of %lld frames, %lld x %lld: not a multiple of the patch %lld x %lld",
                       (long long)s->frames, (long long)s->height, (long long)s->width, (long long)c->patch[1],
                       (long long)c->patch[2]);
    if (dit_rope_count(c, s) > DIT_ROPE)
        return hv_fail(e, HV_EUNSUP, "latents of %lld frames, %lld x %lld: rotary tables of %lld numbers, at most %d",
                       (long long)s->frames, (long long)s->height, (long long)s->width, (long long)dit_rope_count(c, s), DIT_ROPE);
    forward_rows(device, c, s, choice);
    before_rows(device, c, s, choice);
    host_rows(host, c, s, choice);
    if (hv_plan_place(host, e))
        return hv_context(e, "host");
    return hv_plan_place(device, e);
}
