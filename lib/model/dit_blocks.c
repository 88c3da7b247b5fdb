/* dit_blocks.c - the blocks of the diffusion transformer, phase by phase: attention a group of heads at a time, then the rest a chunk
 * of rows at a time, each phase with its own segment of weights; the sound adapters. */
#include "dit_impl.h"

#include <math.h>
#include <string.h>

static int is_whole(const struct dit_state *s)
{
    return s->q.dtype == HV_NONE;
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

void dit_double_block(struct dit *n, struct dit_state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, border = n->m.image;
    struct block b[2];

    double_views(s, i, b);
    dit_phase_take(n, s, "double", i, "qkv");
    attention(n, s, b);
    dit_phase_give(n, s, "double", i, "qkv");
    for (int text = 0; text < 2; text++) {
        const int64_t end = text ? border + s->text : border;
        dit_phase_take(n, s, "double", i, text ? "txt" : "img");
        const struct rest r = double_weights(n, &b[text], text);
        for (struct chunk c = chunk_at(n, s, text ? border : 0, most); c.row < end && !n->dev->fault.code; c = next_chunk(n, s, c, most))
            double_rest(n, s, &b[text], &r, c);
        dit_phase_give(n, s, "double", i, text ? "txt" : "img");
    }
    dit_trace_x(n, s, 0, border, "double.%lld.img", i);
    dit_trace_x(n, s, border, s->text, "double.%lld.txt", i);
}

/* ---- audio adapters ---- */

/* Keys and values of each adapter that runs for this call's window: 16 tokens a latent frame, gathered on the host. */
void dit_gather_sound(struct dit *n, const struct dit_call *call, int slot)
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
void dit_adapter(struct dit *n, const struct dit_state *s, int j, int64_t at)
{
    const char *stem = "audio_adapter_blocks";
    const int64_t most = n->choice.rows_mlp, P = n->m.tokens;
    const hv_tensor face = dit_row(n, "face");

    dit_phase_take(n, s, "adapter", j, "");
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
    dit_phase_give(n, s, "adapter", j, "");
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

void dit_single_block(struct dit *n, struct dit_state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, end = n->m.image + s->text;
    struct block b[2] = {{.stem = "single_blocks", .i = i, .qkv = "linear1", .norm = ""}};

    for (int p = 0; p < 3; p++)
        b[0].mod[p] = hv_index(s->mod, 12 * n->c.double_blocks + 3 * i + p);
    b[1] = b[0];
    dit_phase_take(n, s, "single", i, "qkv");
    attention(n, s, b);
    dit_phase_give(n, s, "single", i, "qkv");
    dit_phase_take(n, s, "single", i, "rest");
    const struct rest r = single_weights(n, b);
    for (struct chunk c = first_chunk(n, s, most); c.row < end && !n->dev->fault.code; c = next_chunk(n, s, c, most))
        single_rest(n, s, b, &r, c);
    dit_phase_give(n, s, "single", i, "rest");
    s->cached = 0;
    dit_trace_x(n, s, 0, end, "single.%lld", i);
}
