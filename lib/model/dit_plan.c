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
    /* Patches are taken by whole frames, or by whole lines of tokens of one frame. */
    m.embed = rows_mlp >= m.tokens ? least(rows_mlp / m.tokens * m.tokens, m.video) : most(rows_mlp / m.across, 1) * m.across;
    return m;
}

#define SHAPE(...) (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

static void forward_rows(struct hv_plan *p, const struct dit_config *c, const struct dit_size *s, const struct dit_choice *k)
{
    const struct dit_dims m = dit_dims(c, s, k->rows_mlp);
    const int64_t H = c->hidden, G = k->group * c->head_dim, longest = most(m.image, s->text_rows);
    const int64_t rq = least(k->rows_attn, longest), rm = least(k->rows_mlp, longest);
    const hv_dtype A = s->act;

    /*          name          dtype   alive in            shape */
    hv_plan_add(p, "x",         A,      PH_FORWARD,         SHAPE(m.rows, H));            /* residual stream: image, text */
    hv_plan_add(p, "o",         A,      PH_ATTN | PH_MLP,   SHAPE(m.rows, H));            /* q, then attention's result */
    hv_plan_add(p, "k",         A,      PH_ATTN,            SHAPE(m.rows, G));            /* one group of heads */
    hv_plan_add(p, "v",         A,      PH_ATTN,            SHAPE(m.rows, G));
    hv_plan_add(p, "z_attn",    A,      PH_ATTN,            SHAPE(rq, H));                /* a chunk, normed */
    hv_plan_add(p, "z",         A,      PH_MLP | PH_ADAPTER, SHAPE(rm, H));
    hv_plan_add(p, "hidden",    A,      PH_MLP,             SHAPE(rm, c->mlp + (c->single_blocks ? H : 0)));
    hv_plan_add(p, "adapter_q", A,      PH_ADAPTER,         SHAPE(rm, c->adapter_dim));
    hv_plan_add(p, "adapter_kv", A,     PH_ADAPTER,         SHAPE(s->frames * m.keys, 2 * c->adapter_dim));
    hv_plan_add(p, "patches",   A,      PH_EMBED | PH_FINAL, SHAPE(m.embed, m.patch));
    hv_plan_add(p, "embed",     A,      PH_EMBED | PH_FINAL, SHAPE(m.embed, H));
    hv_plan_add(p, "embed_ref", A,      PH_EMBED,           SHAPE(m.embed, H));
    if (k->keep_ref)
        hv_plan_add(p, "ref_rows", A,   PH_ALL,             SHAPE(m.video, H));
    hv_plan_add(p, "latents",   HV_F32, PH_EMBED,           SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "ref",       HV_F32, PH_EMBED,           SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "velocity",  HV_F32, PH_FINAL,           SHAPE(c->channels, s->frames, s->height, s->width));
    hv_plan_add(p, "face",      HV_F32, PH_FORWARD,         SHAPE(m.video));
    hv_plan_add(p, "mod",       HV_F32, PH_FORWARD,         SHAPE(m.mods, H));
    hv_plan_add(p, "rope_time", HV_F32, PH_ALL,             SHAPE(2, s->frames + 1, c->rope_dim[0] / 2));
    hv_plan_add(p, "rope_row",  HV_F32, PH_ALL,             SHAPE(2, m.down, c->rope_dim[1] / 2));
    hv_plan_add(p, "rope_col",  HV_F32, PH_ALL,             SHAPE(2, m.across, c->rope_dim[2] / 2));
    if (s->ring)
        hv_plan_add(p, "weights", HV_BYTES, PH_ALL,         SHAPE(s->ring));
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

static void host_rows(struct hv_plan *p, const struct dit_config *c, const struct dit_size *s, int64_t rows_mlp)
{
    const struct dit_dims m = dit_dims(c, s, rows_mlp);
    const int64_t H = c->hidden, d2 = 2 * c->adapter_dim;
    const int64_t cache = s->windows ? s->clip_frames * m.tokens + s->windows * (m.tokens + s->text_rows) : 0;

    hv_plan_add(p, "modulation", HV_F32, 1, SHAPE(s->full, m.mods * H));        /* of each full moment */
    hv_plan_add(p, "modulation_cached", HV_F32, 1, SHAPE(s->cached, 5 * H));    /* last single block, final layer */
    hv_plan_add(p, "text",       s->act, 1, SHAPE(s->full, s->text_rows, H));   /* refined */
    hv_plan_add(p, "sound",      s->act, 1, SHAPE(m.adapters, m.entries * c->audio_tokens, d2));
    hv_plan_add(p, "sound_window", s->act, 1, SHAPE(s->frames * m.keys, d2));
    hv_plan_add(p, "step_cache", s->act, 1, SHAPE(s->branches, cache, H));
}

int dit_plan(struct hv_plan *device, struct hv_plan *host, const struct dit_config *c, const struct dit_size *s,
             const struct dit_choice *choice, struct hv_err *e)
{
    if (s->height % c->patch[1] || s->width % c->patch[2] || s->frames < 1 || s->height < 1 || s->width < 1)
        return hv_fail(e, HV_EINPUT, "latents of %lld frames, %lld x %lld: not a multiple of the patch %lld x %lld",
                       (long long)s->frames, (long long)s->height, (long long)s->width, (long long)c->patch[1],
                       (long long)c->patch[2]);
    forward_rows(device, c, s, choice);
    before_rows(device, c, s, choice);
    host_rows(host, c, s, choice->rows_mlp);
    if (hv_plan_place(host, e))
        return hv_context(e, "host");
    return hv_plan_place(device, e);
}

/* ---- choosing ---- */

#define ROWS_FIRST 4096
#define ROWS_LAST  64
#define GROUP_FIRST 4

static int64_t next_group(const struct dit_config *c, int64_t g)
{
    do
        g--;
    while (g > 1 && c->heads % g);
    return most(g, 1);
}

static int64_t half(int64_t rows)
{
    return most(rows / 2, ROWS_LAST);
}

int dit_choose(struct dit_choice *choice, const struct dit_config *c, const struct dit_size *s, size_t budget,
               struct hv_err *e)
{
    const struct dit_choice given = *choice;
    int64_t group = next_group(c, least(GROUP_FIRST, c->heads) + 1), rows = ROWS_FIRST;

    if (given.group && c->heads % given.group)
        return hv_fail(e, HV_EUSAGE, "head group: %lld does not divide the %lld heads", (long long)given.group,
                       (long long)c->heads);
    /* Each plan of this row is smaller than the one before: rows and heads are halved in turn. */
    for (int turn = 0;; turn++) {
        struct hv_plan device = {.budget = budget}, host = {0};
        struct hv_err fault = {0};
        choice->group = given.group ? given.group : group;
        choice->rows_attn = given.rows_attn ? given.rows_attn : rows;
        choice->rows_mlp = given.rows_mlp ? given.rows_mlp : rows;
        if (!dit_plan(&device, &host, c, s, choice, &fault))
            return 0;
        if (fault.code != HV_ENOMEM || (rows == ROWS_LAST && group == 1)) {
            hv_fail(e, fault.code, "%s", fault.msg);
            return fault.code == HV_ENOMEM ? hv_context(e, "chunks of %lld rows, groups of %lld heads",
                                                        (long long)choice->rows_mlp, (long long)choice->group) : e->code;
        }
        if ((turn % 2 && group > 1) || rows == ROWS_LAST)
            group = next_group(c, group);
        else
            rows = half(rows);
    }
}

int64_t dit_ring_bytes(const struct dit_config *c)
{
    struct hv_wlist l = {0};
    int64_t largest = 0, bytes = 0;
    char prefix[32];

    /* Double block 0 or single block 0, without their modulation, which is never streamed; and one adapter's part. */
    dit_weights(&l, c);
    for (int single = 0; single < 2; single++) {
        strcpy(prefix, single ? "single_blocks.0." : "double_blocks.0.");
        bytes = 0;
        for (int i = 0; i < l.n; i++) {
            const struct hv_wspec *w = &l.w[i];
            const char *name = w->name;
            const int block = !strncmp(name, prefix, strlen(prefix)) && w->quant != HV_QUANT_MODULATION &&
                              !strstr(name, "mod.") && !strstr(name, "modulation.");
            const int adapter = !single && !strncmp(name, "audio_adapter_blocks.0.", 23) && !strstr(name, "norm1") &&
                                !strstr(name, "to_kv");
            if (block || adapter)
                bytes += hv_shape_count(w->ndim, w->shape) * (int64_t)hv_dtype_size(w->dtype);
        }
        largest = most(largest, bytes);
    }
    hv_wlist_close(&l);
    return 2 * largest;
}
