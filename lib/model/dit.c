/* dit.c - one forward of the diffusion transformer, phase by phase: attention of a block a group of heads at a time, then the
 * rest of it a chunk of rows at a time, each phase with its own segment of weights. */
#include "dit_impl.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows, weights ---- */

hv_tensor dit_row(const struct dit *n, const char *name)
{
    return hv_arena_row(n->arena, name);
}

hv_tensor dit_host(const struct dit *n, const char *name)
{
    const struct hv_plan_row *r = hv_plan_find(&n->host_plan, name);
    hv_tensor t = r->view;

    t.data = n->memory + r->offset;
    return t;
}

hv_tensor dit_rows(hv_tensor t, int64_t first, int64_t rows)
{
    return t.dtype == HV_NONE ? t : hv_rows(t, first, rows);
}

hv_tensor dit_weight(const struct dit *n, const char *stem, int64_t i, const char *tail)
{
    return hv_weight(n->w, "%s.%lld.%s", stem, (long long)i, tail);
}

/* A Conv3d whose kernel is its stride is a product with patches. */
static hv_tensor matrix(hv_tensor w)
{
    return w.ndim > 2 ? hv_reshape(w, 2, (const int64_t[]){w.shape[0], -1}) : w;
}

void dit_linear(const struct dit *n, hv_tensor y, hv_tensor x, const char *name, enum hv_act act)
{
    hv_linear(n->dev, y, x, matrix(hv_weight(n->w, "%s.weight", name)), hv_weight(n->w, "%s.bias", name), act);
}

void dit_trace(struct dit *n, dit_trace_fn *fn, void *ctx)
{
    n->trace = fn;
    n->trace_ctx = ctx;
}

void dit_traced(const struct dit *n, int64_t row, int64_t col, hv_tensor t, const char *fmt, ...)
{
    char name[96];
    va_list ap;

    if (!n->trace || n->dev->fault.code)
        return;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    n->trace(n->trace_ctx, name, row, col, t);
}

/* ---- a forward's state ---- */

static int is_whole(const struct dit_state *s)
{
    return s->q.dtype == HV_NONE;
}

static struct dit_state state_of(const struct dit *n, const struct dit_call *call, int slot, int64_t text)
{
    const int64_t L = n->m.image + text;
    const int ahead = dit_is_ahead(&n->choice), on_host = dit_o_host(&n->choice);
    const hv_tensor qkv = dit_row(n, ahead ? "kv" : "qkv");
    const int64_t first = !ahead && qkv.shape[0] == 3;
    struct dit_state s = {.call = call, .slot = slot, .text = text, .mod = hv_index(dit_row(n, "mod"), slot),
                      .kv = hv_index(dit_row(n, "adapter_kv"), slot)};

    for (int i = 0; i < 2; i++) {
        s.k[i] = hv_rows(hv_index(qkv, first + 2 * i * ahead), 0, L);
        s.v[i] = hv_rows(hv_index(qkv, first + 2 * i * ahead + 1), 0, L);
    }
    if (n->choice.tier != DIT_TIER_X_HOST)
        s.x = hv_rows(dit_row(n, "x"), dit_paired(&n->choice) > 1 ? slot * n->m.rows : 0, L);
    if (ahead)
        s.q = dit_row(n, "q");
    else if (first)
        s.q = hv_rows(hv_index(qkv, 0), 0, L);
    s.o = !on_host ? hv_rows(dit_row(n, "o"), 0, L) : n->choice.apart ? dit_row(n, "o_group") : s.q;
    return s;
}

/* A chunk of rows; image and text rows have different weights, so none crosses the border. */
struct chunk {
    int64_t row, n;
    int     text;
};

static struct chunk chunk_at(const struct dit *n, const struct dit_state *s, int64_t row, int64_t most)
{
    const int text = row >= n->m.image;
    const int64_t end = text ? n->m.image + s->text : n->m.image;

    return (struct chunk){.row = row, .n = end - row < most ? end - row : most, .text = text};
}

static struct chunk first_chunk(const struct dit *n, const struct dit_state *s, int64_t most)
{
    return chunk_at(n, s, 0, most);
}

static struct chunk next_chunk(const struct dit *n, const struct dit_state *s, struct chunk c, int64_t most)
{
    return chunk_at(n, s, c.row + c.n, most);
}

/* A whole span of x for the tracer; on the host tier everything in flight has to land first. */
static void trace_x(const struct dit *n, const struct dit_state *s, int64_t row, int64_t rows, const char *fmt, int64_t i)
{
    struct hv_err e = {0};

    if (!n->trace || n->dev->kind == HV_DRY)
        return;
    if (n->choice.tier == DIT_TIER_X_HOST && hv_dev_sync(n->dev, &e))
        return;
    dit_traced(n, 0, 0, n->choice.tier == DIT_TIER_X_HOST ? dit_x_on_host(n, s, row, rows) : hv_rows(s->x, row, rows), fmt, (long long)i);
}

/* ---- weights of a phase ---- */

/* "double.3.qkv", "adapter.2", "stem" (i < 0). */
static void group_name(char *buf, size_t size, const char *stem, int64_t i, const char *part)
{
    if (i < 0)
        snprintf(buf, size, "%s", stem);
    else
        snprintf(buf, size, "%s.%lld%s%s", stem, (long long)i, *part ? "." : "", part);
}

static void take(const struct dit *n, const char *stem, int64_t i, const char *part)
{
    char name[48];

    group_name(name, sizeof name, stem, i, part);
    hv_weights_take(n->w, name);
}

static void give(const struct dit *n, const char *stem, int64_t i, const char *part)
{
    char name[48];

    group_name(name, sizeof name, stem, i, part);
    hv_weights_give(n->w, name);
}

static void phase_take(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part)
{
    if (!s->held)
        take(n, stem, i, part);
}

static void phase_give(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part)
{
    if (!s->held)
        give(n, stem, i, part);
}

/* A block's view of its weights: which names, which modulation vectors (shift, scale, gate and their seconds). */
struct block {
    const char *stem;           /* "double_blocks" */
    int64_t     i;
    const char *qkv, *norm;     /* "img_attn_qkv", "img_attn_" */
    hv_tensor   mod[6];
};

static hv_tensor block_weight(const struct dit *n, const struct block *b, const char *layer, const char *tail)
{
    return hv_weight(n->w, "%s.%lld.%s%s", b->stem, (long long)b->i, layer, tail);
}

static hv_tensor block_rows(const struct dit *n, const struct block *b, const char *layer, const char *tail, int64_t first, int64_t rows)
{
    return hv_weight_rows(n->w, first, rows, "%s.%lld.%s%s", b->stem, (long long)b->i, layer, tail);
}

/* A matrix as products take it: widened into the plan's scratch at `at`, which moves on, or as it is. */
static hv_tensor wide(const struct dit *n, const char *row, hv_tensor w, int64_t *at)
{
    if (!dit_expands(&n->s, &n->choice) || (w.dtype != HV_I8 && w.dtype != HV_F8_E4M3))
        return w;
    const int64_t count = hv_count(w);
    const hv_tensor all = dit_row(n, row), flat = hv_reshape(all, 1, (const int64_t[]){-1});
    const hv_tensor y = hv_reshape(hv_slice(flat, 0, *at, count), 2, w.shape);
    *at += count;
    hv_dequantize(n->dev, y, w);
    return y;
}

/* ---- attention ---- */

/* What q, k and v of a group of heads are multiplied with; absent parts are not wanted. Rows of the qkv matrix are q, k, v, each
 * head after head. */
struct group {
    hv_tensor w[3], bias[3], norm[2];
};

/* head[p]: first head of part p, or -1. */
static struct group group_weights(const struct dit *n, const struct block *b, const int64_t head[3])
{
    const int64_t H = n->c.hidden, G = n->choice.group * n->c.head_dim;
    const int bias_there = strcmp(b->stem, "double_blocks") || n->c.qkv_bias;
    struct group g = {.w = {HV_NO}};
    int64_t at = 0;

    for (int p = 0; p < 3 && !n->dev->fault.code; p++) {
        if (head[p] < 0)
            continue;
        const int64_t first = p * H + head[p] * n->c.head_dim;
        g.w[p] = wide(n, "wide_attn", block_rows(n, b, b->qkv, ".weight", first, G), &at);
        if (bias_there)
            g.bias[p] = block_rows(n, b, b->qkv, ".bias", first, G);
    }
    for (int p = 0; p < 2 && n->c.qk_norm; p++)
        g.norm[p] = block_weight(n, b, b->norm, p ? "k_norm.weight" : "q_norm.weight");
    return g;
}

/* The parts of a group that are wanted for one chunk of rows. The first pass over x leaves the rows' statistics to the others. */
static void chunk_qkv(struct dit *n, const struct dit_state *s, const struct block *b, const struct group *g, struct chunk c,
                      const hv_tensor part[3], int first)
{
    const hv_tensor z = hv_rows(dit_row(n, "z_attn"), 0, c.n), stat = hv_rows(dit_row(n, "stat"), c.row, c.n);
    const hv_tensor x = dit_x_rows(n, s, "x_attn", c.row, c.n, DIT_FETCH);
    const int kv = part[1].dtype != HV_NONE, q = part[0].dtype != HV_NONE;
    const int batch = q && kv && part[0].stride[0] == part[1].stride[0];        /* else q lies in o's columns, or in a chunk */
    struct hv_rope rope = n->rope;

    rope.first = c.row;
    if (first)
        hv_row_stats(n->dev, stat, x, DIT_NORM_EPS);
    hv_norm_modulate(n->dev, z, x, stat, b->mod[0], b->mod[1]);
    dit_x_done(n, s, x, c.row, DIT_READ);
    if (q && !batch)
        hv_linear(n->dev, part[0], z, g->w[0], g->bias[0], HV_ACT_NONE);
    if (kv)
        hv_linears(n->dev, 2 + batch, part + !batch, z, g->w + !batch, g->bias + !batch, HV_ACT_NONE);
    for (int p = 0; p < 2; p++)
        if (part[p].dtype != HV_NONE && (n->c.qk_norm || !c.text))
            hv_qk_norm_rope(n->dev, part[p], (int)n->choice.group, g->norm[p], DIT_NORM_EPS, c.text ? NULL : &rope);
}

static void trace_qkv(const struct dit *n, const struct block *b, const hv_tensor part[3], int64_t row, const int64_t head[3])
{
    for (int p = 0; p < 3; p++)
        if (head[p] >= 0)
            dit_traced(n, row, head[p] * n->c.head_dim, part[p], "%.6s.%lld.%c", b->stem, (long long)b->i, "qkv"[p]);
}

/* q, k, v of a group for all rows, then its attention; the groups that follow still read the unmodified x. */
static void attend_groups(struct dit *n, struct dit_state *s, const struct block b[2], const struct hv_attn *a)
{
    const int64_t most = n->choice.rows_attn, end = n->m.image + s->text, D = n->c.head_dim;

    for (int64_t head = 0; head < n->c.heads && !n->dev->fault.code; head += n->choice.group) {
        const hv_tensor o = dit_o_host(&n->choice) ? hv_rows(s->o, 0, end) : hv_cols(s->o, head * D, n->choice.group * D);
        const hv_tensor q = is_whole(s) ? o : s->q;
        const int64_t heads[3] = {head, head, head};
        struct group g = {.w = {HV_NO}};
        dit_after_o_out(n, !n->choice.apart);               /* the last group's result is in q's rows */
        for (struct chunk c = first_chunk(n, s, most), last = {.text = -1}; c.row < end; last = c, c = next_chunk(n, s, c, most)) {
            const hv_tensor part[3] = {hv_rows(q, c.row, c.n), hv_rows(s->k[0], c.row, c.n), hv_rows(s->v[0], c.row, c.n)};
            if (c.text != last.text)
                g = group_weights(n, &b[c.text], heads);
            chunk_qkv(n, s, &b[c.text], &g, c, part, !head);
            trace_qkv(n, b, part, c.row, heads);
        }
        s->saving = 0;
        dit_after_o_out(n, n->choice.apart);
        hv_attention(n->dev, o, q, s->k[0], s->v[0], a);
        dit_traced(n, 0, head * D, o, "%.6s.%lld.attn", b->stem, (long long)b->i);
        dit_o_out(n, o, head, 0);
    }
}

/* The same with x on the host: while a chunk's queries of one group meet their keys, the next chunk of x is on its way, and gives
 * keys and values of the next group beside its queries of this one. */
static void attend_ahead(struct dit *n, struct dit_state *s, const struct block b[2], const struct hv_attn *a)
{
    const int64_t most = n->choice.rows_attn, end = n->m.image + s->text, G = n->choice.group;

    for (int64_t head = -G, turn = 0; head < n->c.heads && !n->dev->fault.code; head += G, turn ^= 1) {
        const int64_t next = head + G < n->c.heads ? head + G : -1, heads[3] = {head < 0 ? -1 : head, next, next};
        struct group g = {.w = {HV_NO}};
        for (struct chunk c = first_chunk(n, s, most), last = {.text = -1}; c.row < end; last = c, c = next_chunk(n, s, c, most)) {
            const hv_tensor q = hv_rows(s->q, 0, c.n), o = hv_rows(s->o, 0, c.n);
            const hv_tensor part[3] = {head < 0 ? HV_NO : q, next < 0 ? HV_NO : hv_rows(s->k[turn], c.row, c.n),
                                       next < 0 ? HV_NO : hv_rows(s->v[turn], c.row, c.n)};
            if (c.text != last.text)
                g = group_weights(n, &b[c.text], heads);
            dit_after_o_out(n, !n->choice.apart);
            chunk_qkv(n, s, &b[c.text], &g, c, part, head < 0);
            trace_qkv(n, b, part, c.row, heads);
            if (head < 0)
                continue;
            dit_after_o_out(n, n->choice.apart);
            hv_attention(n->dev, o, q, s->k[!turn], s->v[!turn], a);
            dit_traced(n, c.row, head * n->c.head_dim, o, "%.6s.%lld.attn", b->stem, (long long)b->i);
            dit_o_out(n, o, head, c.row);
        }
        s->saving = 0;
    }
}

/* o = attention over all rows. b: image, text. */
static void attention(struct dit *n, struct dit_state *s, const struct block b[2])
{
    const int saving = s->saving;
    struct hv_attn a = {.heads = (int)n->choice.group, .kv_heads = (int)n->choice.group,
                        .scale = (float)(1 / sqrt((double)n->c.head_dim))};

    if (hv_plan_find(hv_arena_plan(n->arena), "attention"))
        a.scratch = dit_row(n, "attention");
    dit_begin_phase(n);
    (dit_is_ahead(&n->choice) ? attend_ahead : attend_groups)(n, s, b, &a);
    if (saving)
        dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);    /* what is being saved is about to change */
    dit_begin_phase(n);
}

/* ---- double blocks ---- */

static void double_views(const struct dit_state *s, int64_t i, struct block b[2])
{
    for (int t = 0; t < 2; t++) {
        b[t] = (struct block){.stem = "double_blocks", .i = i, .qkv = t ? "txt_attn_qkv" : "img_attn_qkv",
                              .norm = t ? "txt_attn_" : "img_attn_"};
        for (int p = 0; p < 6; p++)
            b[t].mod[p] = hv_index(s->mod, 12 * i + 6 * t + p);
    }
}

/* Matrices and biases of a stream after attention: proj, fc1, fc2. */
struct rest {
    hv_tensor w[3], bias[3];
};

static struct rest double_weights(const struct dit *n, const struct block *b, int text)
{
    static const char *const layer[2][3] = {{"img_attn_proj", "img_mlp.fc1", "img_mlp.fc2"},
                                            {"txt_attn_proj", "txt_mlp.fc1", "txt_mlp.fc2"}};
    struct rest r = {.w = {HV_NO}};
    int64_t at = 0;

    for (int p = 0; p < 3 && !n->dev->fault.code; p++) {
        r.w[p] = wide(n, "wide", block_weight(n, b, layer[text][p], ".weight"), &at);
        if (p || n->c.qkv_bias)
            r.bias[p] = block_weight(n, b, layer[text][p], ".bias");
    }
    return r;
}

/* A chunk, from attention's result to the end of the block:
 * x += gate1 * proj(o);  x += gate2 * fc2(gelu(fc1(modulate(norm(x))))) */
static void double_rest(struct dit *n, const struct dit_state *s, const struct block *b, const struct rest *r, struct chunk c)
{
    const hv_tensor o = dit_o_rows(n, s, c.row, c.n), x = dit_x_rows(n, s, "x_mlp", c.row, c.n, DIT_FETCH);
    const hv_tensor z = hv_rows(dit_row(n, "z"), 0, c.n), stat = hv_rows(dit_row(n, "stat"), c.row, c.n);
    const hv_tensor hidden = hv_cols(hv_rows(dit_row(n, "hidden"), 0, c.n), 0, n->c.mlp);

    hv_linear(n->dev, z, o, r->w[0], r->bias[0], HV_ACT_NONE);
    dit_o_done(n);
    hv_gated_add(n->dev, x, b->mod[2], z);
    hv_row_stats(n->dev, stat, x, DIT_NORM_EPS);
    hv_norm_modulate(n->dev, z, x, stat, b->mod[3], b->mod[4]);
    hv_linear(n->dev, hidden, z, r->w[1], r->bias[1], HV_ACT_GELU_TANH);
    hv_linear(n->dev, z, hidden, r->w[2], r->bias[2], HV_ACT_NONE);
    hv_gated_add(n->dev, x, b->mod[5], z);
    dit_x_done(n, s, x, c.row, DIT_WRITTEN);
}

static void double_block(struct dit *n, struct dit_state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, border = n->m.image;
    struct block b[2];

    double_views(s, i, b);
    phase_take(n, s, "double", i, "qkv");
    attention(n, s, b);
    phase_give(n, s, "double", i, "qkv");
    for (int text = 0; text < 2; text++) {
        const int64_t end = text ? border + s->text : border;
        phase_take(n, s, "double", i, text ? "txt" : "img");
        const struct rest r = double_weights(n, &b[text], text);
        for (struct chunk c = chunk_at(n, s, text ? border : 0, most); c.row < end && !n->dev->fault.code; c = next_chunk(n, s, c, most))
            double_rest(n, s, &b[text], &r, c);
        phase_give(n, s, "double", i, text ? "txt" : "img");
    }
    trace_x(n, s, 0, border, "double.%lld.img", i);
    trace_x(n, s, border, s->text, "double.%lld.txt", i);
}

/* ---- audio adapters ---- */

/* Keys and values of each adapter that runs for this call's window: 16 tokens a latent frame, gathered on the host. */
static void gather_sound(struct dit *n, const struct dit_call *call, int slot)
{
    const hv_tensor window = hv_index(dit_host(n, "sound_window"), slot), store = dit_host(n, "sound");
    const size_t bytes = (size_t)(n->c.audio_tokens * 2 * n->c.adapter_dim) * hv_dtype_size(store.dtype);
    const int64_t each = 4 * n->s.frames - 3;
    const size_t count = (size_t)(n->m.voices * each);
    int32_t *const held = n->heard + (size_t)slot * count;
    int64_t frame[4];

    if (n->dev->kind == HV_DRY || !memcmp(held, call->sound, count * sizeof *held))
        return;
    memcpy(held, call->sound, count * sizeof *held);
    for (int64_t a = 0; a < n->m.adapters; a++) {
        const char *from = hv_index(store, a).data;
        char *to = hv_index(window, a).data;
        for (int64_t l = 0; l < n->m.voices * n->s.frames; l++) {
            dit_sound_frames(l % n->s.frames, frame);
            for (int k = 0; k < 4; k++, to += bytes)
                memcpy(to, from + (size_t)call->sound[l / n->s.frames * each + frame[k]] * bytes, bytes);
        }
    }
}

/* Queries of a chunk of video rows against a voice's sound of each one's own frame, in place on q. */
static void hear(const struct dit *n, const struct dit_state *s, hv_tensor q, int64_t first, int64_t voice)
{
    const int64_t d = n->c.adapter_dim, P = n->m.tokens, keys = n->m.keys;
    const struct hv_attn a = {.heads = 1, .kv_heads = 1, .scale = (float)(1 / sqrt((double)d))};

    for (int64_t row = 0, next; row < q.shape[0]; row = next) {
        const int64_t frame = (first + row) / P;
        next = (frame + 1) * P - first < q.shape[0] ? (frame + 1) * P - first : q.shape[0];
        const hv_tensor part = hv_rows(q, row, next - row), mine = hv_rows(s->kv, (voice * n->s.frames + frame) * keys, keys);
        hv_attention(n->dev, part, part, hv_cols(mine, 0, d), hv_cols(mine, d, d), &a);
    }
}

/* x += face * to_out(softmax(q k^T / sqrt(d)) v) on the video rows; of several voices the sum, since all of them hear the same x.
 * at: the adapter's place among those that run. */
static void adapter(struct dit *n, const struct dit_state *s, int j, int64_t at)
{
    const char *stem = "audio_adapter_blocks";
    const int64_t most = n->choice.rows_mlp, P = n->m.tokens;
    const hv_tensor face = dit_row(n, "face");

    phase_take(n, s, "adapter", j, "");
    dit_begin_phase(n);
    hv_upload(n->dev, s->kv, hv_index(hv_index(dit_host(n, "sound_window"), s->slot), at));
    for (int64_t row = 0; row < n->m.video && !n->dev->fault.code; row += most) {
        const int64_t rows = n->m.video - row < most ? n->m.video - row : most;
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", P + row, rows, DIT_FETCH), z = hv_rows(dit_row(n, "z"), 0, rows);
        const hv_tensor q = hv_rows(dit_row(n, "adapter_q"), 0, rows);
        const hv_tensor sum = n->m.voices > 1 ? hv_rows(dit_row(n, "adapter_sum"), 0, rows) : x;
        if (n->m.voices > 1)
            hv_fill(n->dev, sum, 0);
        for (int64_t v = 0; v < n->m.voices; v++) {
            hv_layer_norm(n->dev, z, x, dit_weight(n, stem, j, "norm2.weight"), dit_weight(n, stem, j, "norm2.bias"),
                          DIT_SOUND_EPS);
            hv_linear(n->dev, q, z, dit_weight(n, stem, j, "to_q.weight"), HV_NO, HV_ACT_NONE);
            hear(n, s, q, row, v);
            hv_linear(n->dev, z, q, dit_weight(n, stem, j, "to_out.weight"), HV_NO, HV_ACT_NONE);
            dit_traced(n, row, 0, z, "adapter.%d.out", j);
            hv_masked_add(n->dev, sum, hv_rows(face, v * n->m.video + row, rows), z);
        }
        if (n->m.voices > 1)
            hv_add(n->dev, x, x, sum);
        dit_x_done(n, s, x, P + row, DIT_WRITTEN);
    }
    phase_give(n, s, "adapter", j, "");
}

/* ---- single blocks ---- */

static void single_rest(struct dit *n, const struct dit_state *s, const struct block *b, const struct rest *r, struct chunk c)
{
    const int64_t H = n->c.hidden, M = n->c.mlp;
    const hv_tensor o = dit_o_rows(n, s, c.row, c.n), x = dit_x_rows(n, s, "x_mlp", c.row, c.n, DIT_FETCH);
    const hv_tensor z = hv_rows(dit_row(n, "z"), 0, c.n), cat = hv_rows(dit_row(n, "hidden"), 0, c.n);

    hv_norm_modulate(n->dev, z, x, hv_rows(dit_row(n, "stat"), c.row, c.n), b->mod[0], b->mod[1]);
    hv_linear(n->dev, hv_cols(cat, H, M), z, r->w[0], r->bias[0], HV_ACT_GELU_TANH);
    hv_copy(n->dev, hv_cols(cat, 0, H), o);             /* one sum over attention and MLP, as the model has it */
    dit_o_done(n);
    hv_linear(n->dev, z, cat, r->w[1], r->bias[1], HV_ACT_NONE);
    hv_gated_add(n->dev, x, b->mod[2], z);
    dit_x_done(n, s, x, c.row, DIT_WRITTEN);
}

static struct rest single_weights(const struct dit *n, const struct block *b)
{
    const int64_t H = n->c.hidden, M = n->c.mlp;
    struct rest r = {.w = {HV_NO}};
    int64_t at = 0;

    r.w[0] = wide(n, "wide", block_rows(n, b, "linear1", ".weight", 3 * H, M), &at);
    r.w[1] = wide(n, "wide", block_weight(n, b, "linear2", ".weight"), &at);
    r.bias[0] = block_rows(n, b, "linear1", ".bias", 3 * H, M);
    r.bias[1] = block_weight(n, b, "linear2", ".bias");
    return r;
}

static void single_block(struct dit *n, struct dit_state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, end = n->m.image + s->text;
    struct block b[2] = {{.stem = "single_blocks", .i = i, .qkv = "linear1", .norm = ""}};

    for (int p = 0; p < 3; p++)
        b[0].mod[p] = hv_index(s->mod, 12 * n->c.double_blocks + 3 * i + p);
    b[1] = b[0];
    phase_take(n, s, "single", i, "qkv");
    attention(n, s, b);
    phase_give(n, s, "single", i, "qkv");
    phase_take(n, s, "single", i, "rest");
    const struct rest r = single_weights(n, b);
    for (struct chunk c = first_chunk(n, s, most); c.row < end && !n->dev->fault.code; c = next_chunk(n, s, c, most))
        single_rest(n, s, b, &r, c);
    phase_give(n, s, "single", i, "rest");
    s->cached = 0;
    trace_x(n, s, 0, end, "single.%lld", i);
}

/* ---- embedding and final layer ---- */

/* Patches are taken by pieces that are boxes of the latents: whole frames, or lines of tokens of one frame. */
struct piece {
    int64_t frame, frames, line, lines;
    int64_t token, n;           /* of the video */
};

static struct piece piece_at(const struct dit *n, int64_t token, int64_t end)
{
    const int64_t P = n->m.tokens, across = n->m.across, cap = n->m.embed;
    struct piece p = {.frame = token / P, .frames = 1, .lines = n->m.down, .token = token};

    if (cap >= P) {
        p.frames = cap / P < (end - token) / P ? cap / P : (end - token) / P;
    } else {
        p.line = token % P / across;
        p.lines = n->m.down - p.line < cap / across ? n->m.down - p.line : cap / across;
    }
    p.n = token < end ? p.frames * p.lines * across : 0;
    return p;
}

static hv_tensor box(const struct dit *n, hv_tensor planes, struct piece p)
{
    return hv_slice(hv_slice(planes, 1, p.frame, p.frames), 2, p.line * n->c.patch[1], p.lines * n->c.patch[1]);
}

/* y = PE(NAME, planes) for the tokens of a piece. */
static void patch_embed(const struct dit *n, hv_tensor y, const char *name, hv_tensor planes, struct piece p)
{
    const int patch[3] = {(int)n->c.patch[0], (int)n->c.patch[1], (int)n->c.patch[2]};
    const hv_tensor in = hv_rows(dit_row(n, "patches"), 0, p.n);

    hv_patchify(n->dev, in, box(n, planes, p), patch);
    dit_linear(n, y, in, name, HV_ACT_NONE);
}

/* before_proj(ref_in(ref)) of a piece. */
static hv_tensor reference_rows(const struct dit *n, struct piece p)
{
    const hv_tensor a = hv_rows(dit_row(n, "embed"), 0, p.n);
    const hv_tensor y = n->choice.keep_ref ? hv_rows(dit_row(n, "ref_rows"), p.token, p.n) :
                                             hv_rows(dit_row(n, "embed_ref"), 0, p.n);

    if (n->choice.keep_ref && n->ref_kept)
        return y;
    patch_embed(n, a, "ref_in.proj", dit_row(n, "ref"), p);
    dit_traced(n, p.token, 0, a, "ref_in");
    dit_linear(n, y, a, "before_proj", HV_ACT_NONE);
    dit_traced(n, p.token, 0, y, "before_proj");
    return y;
}

/* y = img_in(latents) + before_proj(ref_in(ref)) of a piece of the video. */
static void embed_piece(const struct dit *n, hv_tensor y, struct piece p)
{
    const hv_tensor ref = reference_rows(n, p);

    patch_embed(n, y, "img_in.proj", dit_row(n, "latents"), p);
    dit_traced(n, p.token, 0, y, "img_in.latents");
    hv_add(n->dev, y, y, ref);
}

/* Refined text behind the image rows. */
static void embed_text(struct dit *n, const struct dit_state *s)
{
    const hv_tensor text = dit_rows(hv_index(dit_host(n, "text"), n->slot[s->call->moment]), 0, s->text);

    if (n->choice.tier != DIT_TIER_X_HOST)
        hv_upload(n->dev, hv_rows(s->x, n->m.image, s->text), text);
    else if (n->dev->kind != HV_DRY)
        memcpy(dit_x_on_host(n, s, n->m.image, s->text).data, text.data, hv_nbytes(text));
}

/* x = [img_in(ref frame 0) | img_in(latents) + before_proj(ref_in(ref)) | text]. */
static void embed(struct dit *n, const struct dit_state *s)
{
    const struct dit_call *call = s->call;
    const int64_t P = n->m.tokens;

    phase_take(n, s, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), call->ref);
    hv_upload(n->dev, dit_row(n, "face"), hv_view(call->mask, HV_F32, 1, (const int64_t[]){n->m.voices * n->m.video}));
    for (struct piece p = piece_at(n, 0, P); p.n; p = piece_at(n, p.token + p.n, P)) {
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", p.token, p.n, DIT_ROOM);
        patch_embed(n, x, "img_in.proj", dit_row(n, "ref"), p);
        dit_traced(n, p.token, 0, x, "img_in.ref");
        dit_x_done(n, s, x, p.token, DIT_WRITTEN);
    }
    for (struct piece p = piece_at(n, 0, n->m.video); p.n; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_ROOM);
        embed_piece(n, x, p);
        dit_x_done(n, s, x, P + p.token, DIT_WRITTEN);
    }
    n->ref_kept = 1;
    if (call->cache != DIT_LOAD)
        embed_text(n, s);
    phase_give(n, s, "stem", -1, "");
    trace_x(n, s, 0, n->m.image, "embedded.img", 0);
}

/* Velocity of the video rows: unpatchify(lin(modulate(norm(x)))). */
static void final_layer(struct dit *n, const struct dit_state *s)
{
    const int patch[3] = {(int)n->c.patch[0], (int)n->c.patch[1], (int)n->c.patch[2]};
    const hv_tensor shift = hv_index(s->mod, n->m.mods - 2), scale = hv_index(s->mod, n->m.mods - 1);

    phase_take(n, s, "final", -1, "");
    dit_begin_phase(n);
    for (struct piece p = piece_at(n, 0, n->m.video); p.n; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor z = hv_rows(dit_row(n, "embed"), 0, p.n), y = hv_rows(dit_row(n, "patches"), 0, p.n);
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", n->m.tokens + p.token, p.n, DIT_FETCH);
        const hv_tensor stat = hv_rows(dit_row(n, "stat"), n->m.tokens + p.token, p.n);
        hv_row_stats(n->dev, stat, x, DIT_NORM_EPS);
        hv_norm_modulate(n->dev, z, x, stat, shift, scale);
        dit_x_done(n, s, x, n->m.tokens + p.token, DIT_READ);
        dit_linear(n, y, z, "final_layer.linear", HV_ACT_NONE);
        dit_traced(n, p.token, 0, y, "final_layer");
        hv_unpatchify(n->dev, box(n, dit_row(n, "velocity"), p), y, patch);
    }
    phase_give(n, s, "final", -1, "");
}

/* ---- forward ---- */

/* Modulation vectors of the moment: all, or those of the last single block and the final layer. */
static void upload_modulation(const struct dit *n, const struct dit_state *s)
{
    const int moment = s->call->moment;
    const int64_t H = n->c.hidden, slot = n->slot[moment], first = n->moment[moment].cached ? n->m.tail : 0;
    const hv_tensor row = hv_index(dit_host(n, first ? "modulation_cached" : "modulation"), slot);

    hv_upload(n->dev, hv_rows(s->mod, first, n->m.mods - first), hv_reshape(row, 2, (const int64_t[]){n->m.mods - first, H}));
}

/* Text rows of a forward; one that starts before the last block has those that were saved. */
static int64_t text_rows(const struct dit *n, const struct dit_call *call)
{
    const int64_t text = n->text_n[n->moment[call->moment].text];

    if (call->cache != DIT_LOAD || n->s.residual)
        return text;
    const int64_t saved = n->saved.text[call->branch * n->s.windows + dit_cache_source(n, call)];
    return saved < text ? saved : text;
}

/* Every branch through one block: its weights stay until all are through. */
static void each(struct dit *n, struct dit_state *s, int count, const char *stem, int64_t i, void (*block)(struct dit *, struct dit_state *, int64_t))
{
    static const char *const parts[2][3] = {{"qkv", "img", "txt"}, {"qkv", "rest", NULL}};
    const char *const *part = parts[*stem == 's'];

    for (int p = 0; p < 3 && count > 1; p++)
        if (part[p])
            take(n, stem, i, part[p]);
    for (int b = 0; b < count; b++)
        block(n, &s[b], i);
    for (int p = 0; p < 3 && count > 1; p++)
        if (part[p])
            give(n, stem, i, part[p]);
}

static void adapters(struct dit *n, struct dit_state *s, int count, int64_t block)
{
    const int j = dit_adapter_of(&n->c, block);
    int64_t at = 0;

    if (j < 0)
        return;
    /* Slots of the store are in the order of the adapters, which need not be that of the blocks. */
    for (int a = 0; a < j; a++)
        at += n->c.adapter_after[a] < n->c.double_blocks;
    if (count > 1)
        take(n, "adapter", j, "");
    for (int b = 0; b < count; b++)
        adapter(n, &s[b], j, at);
    if (count > 1)
        give(n, "adapter", j, "");
}

/* Everything up to the last single block. */
static void blocks(struct dit *n, struct dit_state *s, int count)
{
    if (count > 1)
        take(n, "stem", -1, "");
    for (int b = 0; b < count; b++) {
        gather_sound(n, s[b].call, s[b].slot);
        embed(n, &s[b]);
    }
    if (count > 1)
        give(n, "stem", -1, "");
    for (int64_t i = 0; i < n->c.double_blocks; i++) {
        each(n, s, count, "double", i, double_block);
        adapters(n, s, count, i);
    }
    for (int b = 0; b < count; b++)
        trace_x(n, &s[b], 0, n->m.image + s[b].text, "single.input", 0);
    for (int64_t i = 0; i + 1 < n->c.single_blocks; i++)
        each(n, s, count, "single", i, single_block);
}

/* x as it enters the last single block, from the step cache. */
static void load(struct dit *n, struct dit_state *s)
{
    s->cached = 1;
    if (n->choice.tier == DIT_TIER_X_HOST)
        return;
    dit_lane_after(n, HV_LANE_STAGE, HV_LANE_COMPUTE);
    dit_cache_move(n, s->call, s->x, 0, 0);
    dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_STAGE);
}

/* ---- residuals: what all blocks together add to the video rows ----
 *
 * x as it was before the blocks is not kept: the embedding is made again, chunk by chunk, and x taken from it. So what is stored is
 * the negative: embedding - x. */

/* Video rows row .. of the residual, on the device, to or from the store: frame by frame of the clip. */
static void residual_move(const struct dit *n, const struct dit_call *call, hv_tensor t, int64_t row, int save)
{
    const int64_t P = n->m.tokens;

    for (int64_t at = 0, rows; at < t.shape[0]; at += rows) {
        const int64_t k = (row + at) / P, first = (row + at) % P;
        rows = P - first < t.shape[0] - at ? P - first : t.shape[0] - at;
        const hv_tensor host = hv_rows(dit_cache_frame(n, call->branch, call->frame[k]), first, rows), part = hv_rows(t, at, rows);
        if (save)
            dit_move_rows(n, HV_LANE_OUT, host, part);
        else
            dit_move_rows(n, HV_LANE_STAGE, part, host);
    }
}

static void save_residual(struct dit *n, const struct dit_state *s)
{
    const int64_t P = n->m.tokens;

    phase_take(n, s, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), s->call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), s->call->ref);
    for (struct piece p = piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);
        embed_piece(n, y, p);
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_FETCH);
        hv_gated_add(n->dev, y, dit_row(n, "minus"), x);
        dit_x_done(n, s, x, P + p.token, DIT_READ);
        dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
        residual_move(n, s->call, y, p.token, 1);
    }
    dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);
    phase_give(n, s, "stem", -1, "");
}

/* In place of the blocks. */
static void add_residual(struct dit *n, const struct dit_state *s)
{
    const int64_t P = n->m.tokens;

    dit_begin_phase(n);
    for (struct piece p = piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n), x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_FETCH);
        dit_lane_after(n, HV_LANE_STAGE, HV_LANE_COMPUTE);
        residual_move(n, s->call, y, p.token, 0);
        dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_STAGE);
        hv_gated_add(n->dev, x, dit_row(n, "minus"), y);
        dit_x_done(n, s, x, P + p.token, DIT_WRITTEN);
    }
}

/* ---- probe ---- */

static float number(hv_dtype t, const char *p, int64_t i)
{
    uint32_t bits;
    uint16_t half;
    float v;

    if (t == HV_F32) {
        memcpy(&v, p + 4 * i, sizeof v);
        return v;
    }
    memcpy(&half, p + 2 * i, sizeof half);
    if (t == HV_F16)
        return hv_f16_to_f32(half);
    bits = (uint32_t)half << 16;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A row of m against the one before, which it replaces: sums of |m - before| and |before|. */
static void compare_row(double sum[2], hv_dtype t, const char *m, char *before, int64_t width)
{
    double moved = 0, size = 0;

    for (int64_t i = 0; i < width; i++) {
        const float a = number(t, m, i), b = number(t, before, i);
        moved += fabsf(a - b);
        size += fabsf(b);
    }
    sum[0] = moved;
    sum[1] = size;
    memcpy(before, m, (size_t)width * hv_dtype_size(t));
}

/* Rows y of the device, against those at `store`. row_sum: room for a chunk. */
static void compare_rows(const struct dit *n, hv_tensor y, hv_tensor store, double (*row_sum)[2], double sum[2])
{
    const hv_tensor m = hv_rows(dit_host(n, "probe"), 0, y.shape[0]);
    const size_t pitch = (size_t)y.shape[1] * hv_dtype_size(m.dtype);
    const int threads = n->dev->threads > 0 ? n->dev->threads : 8;

    dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
    dit_move_rows(n, HV_LANE_OUT, m, y);
    hv_dev_record(n->dev, n->stage.mark, HV_LANE_OUT);
    hv_dev_event_sync(n->dev, n->stage.mark);
    if (n->dev->fault.code)
        return;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < m.shape[0]; r++)
        compare_row(row_sum[r], m.dtype, (const char *)m.data + (size_t)r * pitch, (char *)store.data + (size_t)r * pitch, m.shape[1]);
    for (int64_t r = 0; r < m.shape[0]; r++) {          /* in one order, whatever the threads */
        sum[0] += row_sum[r][0];
        sum[1] += row_sum[r][1];
    }
}

/* m of the chunk in y, whose first row is row `row` of the image. */
static void probe_chunk(const struct dit *n, const struct dit_state *s, hv_tensor y, int64_t row, double (*row_sum)[2], double sum[2])
{
    const struct dit_call *call = s->call;
    const hv_tensor stat = hv_rows(dit_row(n, "stat"), 0, y.shape[0]), all = dit_host(n, "probe_cache");
    const int64_t P = n->m.tokens;

    hv_row_stats(n->dev, stat, y, DIT_NORM_EPS);
    hv_norm_modulate(n->dev, y, y, stat, hv_index(s->mod, 0), hv_index(s->mod, 1));
    for (int64_t at = 0, rows; at < y.shape[0] && !n->dev->fault.code; at += rows) {
        const int64_t k = (row + at) / P, first = (row + at) % P, frame = k ? call->frame[k - 1] : n->s.clip_frames + call->window;
        rows = P - first < y.shape[0] - at ? P - first : y.shape[0] - at;
        compare_rows(n, hv_rows(y, at, rows), hv_rows(all, frame * P + first, rows), row_sum, sum);
    }
}

static int check_call(const struct dit *n, const struct dit_call *call, struct hv_err *e)
{
    if (call->moment < 0 || call->moment >= n->n_moments)
        return hv_fail(e, HV_EINPUT, "moment %d of %d", call->moment, n->n_moments);
    if (call->cache == DIT_LOAD ? 0 : n->moment[call->moment].cached)
        return hv_fail(e, HV_EINPUT, "moment %d was prepared for the step cache alone", call->moment);
    if (call->cache == DIT_PLAIN)
        return 0;
    if (!n->s.windows || call->branch < 0 || call->branch >= n->s.branches || call->window < 0 || call->window >= n->s.windows)
        return hv_fail(e, HV_EINPUT, "step cache: branch %d of %lld, window %d of %lld", call->branch, (long long)n->s.branches,
                       call->window, (long long)n->s.windows);
    for (int64_t k = 0; k < n->s.frames; k++)
        if (call->frame[k] < 0 || call->frame[k] >= n->s.clip_frames ||
            (call->cache == DIT_LOAD && n->saved.window[call->branch * n->s.clip_frames + call->frame[k]] < 0))
            return hv_fail(e, HV_EINPUT, "step cache: frame %d of %lld was not saved", call->frame[k], (long long)n->s.clip_frames);
    return 0;
}

static void finish(struct dit *n, struct dit_state *s, int count)
{
    if (count > 1)
        take(n, "final", -1, "");
    for (int b = 0; b < count; b++) {
        final_layer(n, &s[b]);
        hv_download(n->dev, s[b].call->out, dit_row(n, "velocity"));
    }
    if (count > 1)
        give(n, "final", -1, "");
}

/* Through all blocks or, by the residual, around them. */
static int around(struct dit *n, struct dit_state *s, struct hv_err *e)
{
    if (s->call->cache == DIT_LOAD) {
        embed(n, s);
        add_residual(n, s);
        finish(n, s, 1);
        return hv_dev_sync(n->dev, e);
    }
    blocks(n, s, 1);
    each(n, s, 1, "single", n->c.single_blocks - 1, single_block);
    finish(n, s, 1);
    if (s->call->cache == DIT_SAVE) {
        save_residual(n, s);
        dit_cache_note(n, s);
    }
    return hv_dev_sync(n->dev, e);
}

/* `count` branches through the whole network, side by side. */
static int together(struct dit *n, const struct dit_call *call, int count, struct hv_err *e)
{
    const int64_t last = n->c.single_blocks - 1;
    struct dit_state s[DIT_CALLS];

    for (int b = 0; b < count; b++) {
        s[b] = state_of(n, &call[b], count > 1 ? b : n->turn, text_rows(n, &call[b]));
        s[b].held = count > 1;
        upload_modulation(n, &s[b]);
    }
    n->turn ^= 1;
    if (n->s.residual)
        return around(n, s, e);
    if (call[0].cache != DIT_LOAD)
        blocks(n, s, count);
    for (int b = 0; b < count; b++) {
        if (call[b].cache == DIT_LOAD)
            load(n, &s[b]);
        s[b].saving = call[b].cache == DIT_SAVE;
        if (s[b].saving)
            dit_cache_note(n, &s[b]);
        trace_x(n, &s[b], 0, n->m.image + s[b].text, "cache", 0);
    }
    each(n, s, count, "single", last, single_block);
    finish(n, s, count);
    return hv_dev_sync(n->dev, e);
}

int dit_forward(struct dit *n, const struct dit_call *call, int calls, enum dit_cache next, struct hv_err *e)
{
    const int paired = calls == DIT_CALLS && n->choice.branches == DIT_BRANCHES_PAIRED && !n->s.residual &&
                       (call[0].cache == DIT_LOAD) == (call[1].cache == DIT_LOAD);
    char last[48];

    for (int i = 0; i < calls; i++)
        if (check_call(n, &call[i], e))
            return e->code;
    group_name(last, sizeof last, "single", n->c.single_blocks - 1, "qkv");
    for (int i = 0; i < calls; i += 1 + paired) {
        const enum dit_cache after = i + 1 + paired < calls ? call[i + 1 + paired].cache : next;
        hv_weights_next(n->w, after == DIT_LOAD && !n->s.residual ? last : "stem");
        if (together(n, call + i, 1 + paired, e))
            return e->code;
    }
    return 0;
}

int dit_probe(struct dit *n, const struct dit_call *call, double *change, struct hv_err *e)
{
    const int64_t P = n->m.tokens;
    double sum[2] = {0, 0}, (*row_sum)[2];

    if (!n->s.probe || call->window < 0 || call->window >= n->s.windows)
        return hv_fail(e, HV_EINPUT, "probe: window %d of %lld", call->window, (long long)n->s.windows);
    if (check_call(n, call, e))
        return e->code;
    if (!(row_sum = malloc((size_t)n->m.embed * sizeof *row_sum)))
        return hv_fail(e, HV_ENOMEM, "probe: out of memory");
    const struct dit_state s = state_of(n, call, n->turn, 0);
    n->turn ^= 1;
    upload_modulation(n, &s);
    hv_weights_next(n->w, "stem");
    take(n, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), call->ref);
    for (struct piece p = piece_at(n, 0, P); p.n && !n->dev->fault.code; p = piece_at(n, p.token + p.n, P)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        patch_embed(n, y, "img_in.proj", dit_row(n, "ref"), p);
        probe_chunk(n, &s, y, p.token, row_sum, sum);
    }
    for (struct piece p = piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        embed_piece(n, y, p);
        probe_chunk(n, &s, y, P + p.token, row_sum, sum);
    }
    n->ref_kept = 1;
    give(n, "stem", -1, "");
    free(row_sum);
    n->saved.version++;
    *change = sum[0] / sum[1];
    return hv_dev_sync(n->dev, e);
}

void dit_face_tokens(float *m, hv_tensor face, const struct dit_config *c, const struct dit_size *s)
{
    const int64_t down = s->height / c->patch[1], across = s->width / c->patch[2];

    for (int64_t t = 0; t < s->frames; t++)
        for (int64_t i = 0; i < down; i++)
            for (int64_t j = 0; j < across; j++) {
                const int64_t at = (face.shape[1] > 1 ? t : 0) * face.stride[1] + i * c->patch[1] * face.stride[2] +
                                   j * c->patch[2] * face.stride[3];
                m[(t * down + i) * across + j] = ((const float *)face.data)[at];
            }
}
