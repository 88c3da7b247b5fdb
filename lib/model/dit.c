/* dit.c - one forward of the diffusion transformer, in the order of memory.md's phases. */
#include "dit_impl.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "model/rope.h"

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

/* Rows of this forward: text of its own length behind the image. */
struct state {
    hv_tensor x, o, k, v, mod;
    int64_t   text;             /* text rows */
};

static struct state state_of(const struct dit *n, int64_t text)
{
    const int64_t L = n->m.image + text;

    return (struct state){
        .x = hv_rows(dit_row(n, "x"), 0, L), .o = hv_rows(dit_row(n, "o"), 0, L), .k = hv_rows(dit_row(n, "k"), 0, L),
        .v = hv_rows(dit_row(n, "v"), 0, L), .mod = dit_row(n, "mod"), .text = text,
    };
}

/* A chunk of rows; image and text rows have different weights, so none crosses the border. */
struct chunk {
    int64_t row, n;
    int     text;
};

static struct chunk chunk_at(const struct dit *n, const struct state *s, int64_t row, int64_t most)
{
    const int text = row >= n->m.image;
    const int64_t end = text ? n->m.image + s->text : n->m.image;

    return (struct chunk){.row = row, .n = end - row < most ? end - row : most, .text = text};
}

static struct chunk first_chunk(const struct dit *n, const struct state *s, int64_t most)
{
    return chunk_at(n, s, 0, most);
}

static struct chunk next_chunk(const struct dit *n, const struct state *s, struct chunk c, int64_t most)
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

/* ---- attention ---- */

/* q, k, v of a group of heads for one chunk: q into o's columns, k and v into the group's own rows. Rows of the qkv matrix are
 * q, k, v, each head after head. */
static void group_qkv(const struct dit *n, const struct state *s, const struct block *b, struct chunk c, int64_t head)
{
    const int64_t H = n->c.hidden, first = head * n->c.head_dim, G = n->choice.group * n->c.head_dim;
    const int bias_there = strcmp(b->stem, "double_blocks") || n->c.qkv_bias;
    const hv_tensor z = hv_rows(dit_row(n, "z_attn"), 0, c.n), w = block_weight(n, b, b->qkv, ".weight");
    const hv_tensor bias = bias_there ? block_weight(n, b, b->qkv, ".bias") : HV_NO;
    const hv_tensor part[3] = {hv_cols(hv_rows(s->o, c.row, c.n), first, G), hv_rows(s->k, c.row, c.n),
                               hv_rows(s->v, c.row, c.n)};
    struct hv_rope rope = n->rope;

    rope.first = c.row;
    hv_norm_modulate(n->dev, z, hv_rows(s->x, c.row, c.n), b->mod[0], b->mod[1], DIT_NORM_EPS);
    for (int p = 0; p < 3; p++)
        hv_linear(n->dev, part[p], z, dit_rows(w, p * H + first, G), dit_rows(bias, p * H + first, G), HV_ACT_NONE);
    for (int p = 0; p < 2; p++) {
        const hv_tensor norm = n->c.qk_norm ? block_weight(n, b, b->norm, p ? "k_norm.weight" : "q_norm.weight") : HV_NO;
        if (n->c.qk_norm || !c.text)
            hv_qk_norm_rope(n->dev, part[p], (int)n->choice.group, norm, DIT_NORM_EPS, c.text ? NULL : &rope);
    }
    for (int p = 0; p < 3; p++)
        dit_traced(n, c.row, first, part[p], "%.6s.%lld.%c", b->stem, (long long)b->i, "qkv"[p]);
}

/* o = attention over all rows, one group of heads after the other; later groups still read the unmodified x. b: image, text. */
static void attention(const struct dit *n, const struct state *s, const struct block b[2])
{
    const int64_t G = n->choice.group, most = n->choice.rows_attn, end = n->m.image + s->text;
    const struct hv_attn a = {.heads = (int)G, .kv_heads = (int)G, .scale = (float)(1 / sqrt((double)n->c.head_dim))};

    for (int64_t head = 0; head < n->c.heads; head += G) {
        for (struct chunk c = first_chunk(n, s, most); c.row < end; c = next_chunk(n, s, c, most))
            group_qkv(n, s, &b[c.text], c, head);
        const hv_tensor o = hv_cols(s->o, head * n->c.head_dim, G * n->c.head_dim);
        hv_attention(n->dev, o, o, s->k, s->v, &a);
        dit_traced(n, 0, head * n->c.head_dim, o, "%.6s.%lld.attn", b->stem, (long long)b->i);
    }
}

/* ---- double blocks ---- */

static void double_views(const struct state *s, int64_t i, struct block b[2])
{
    for (int t = 0; t < 2; t++) {
        b[t] = (struct block){.stem = "double_blocks", .i = i, .qkv = t ? "txt_attn_qkv" : "img_attn_qkv",
                              .norm = t ? "txt_attn_" : "img_attn_"};
        for (int p = 0; p < 6; p++)
            b[t].mod[p] = hv_index(s->mod, 12 * i + 6 * t + p);
    }
}

/* A chunk, from attention's result to the end of the block:
 * x += gate1 * proj(o);  x += gate2 * fc2(gelu(fc1(modulate(norm(x))))) */
static void double_rest(const struct dit *n, const struct state *s, const struct block *b, struct chunk c)
{
    const char *stream = c.text ? "txt" : "img";
    const hv_tensor x = hv_rows(s->x, c.row, c.n), z = hv_rows(dit_row(n, "z"), 0, c.n);
    const hv_tensor hidden = hv_cols(hv_rows(dit_row(n, "hidden"), 0, c.n), 0, n->c.mlp);
    char name[64];

#define LAYER(tail) (snprintf(name, sizeof name, "double_blocks.%lld.%s_" tail, (long long)b->i, stream), name)
    hv_linear(n->dev, z, hv_rows(s->o, c.row, c.n), hv_weight(n->w, "%s", LAYER("attn_proj.weight")),
              n->c.qkv_bias ? hv_weight(n->w, "%s", LAYER("attn_proj.bias")) : HV_NO, HV_ACT_NONE);
    hv_gated_add(n->dev, x, b->mod[2], z);
    hv_norm_modulate(n->dev, z, x, b->mod[3], b->mod[4], DIT_NORM_EPS);
    dit_linear(n, hidden, z, LAYER("mlp.fc1"), HV_ACT_GELU_TANH);
    dit_linear(n, z, hidden, LAYER("mlp.fc2"), HV_ACT_NONE);
    hv_gated_add(n->dev, x, b->mod[5], z);
#undef LAYER
}

static void double_block(const struct dit *n, const struct state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, end = n->m.image + s->text;
    struct block b[2];

    double_views(s, i, b);
    attention(n, s, b);
    for (struct chunk c = first_chunk(n, s, most); c.row < end; c = next_chunk(n, s, c, most))
        double_rest(n, s, &b[c.text], c);
    dit_traced(n, 0, 0, hv_rows(s->x, 0, n->m.image), "double.%lld.img", (long long)i);
    dit_traced(n, 0, 0, hv_rows(s->x, n->m.image, s->text), "double.%lld.txt", (long long)i);
}

/* ---- audio adapters ---- */

/* Keys and values of adapter slot `at` for this window: 16 tokens a latent frame, gathered on the host. */
static void window_sound(const struct dit *n, int64_t at, const int32_t *sound)
{
    const hv_tensor store = hv_index(dit_host(n, "sound"), at), window = dit_host(n, "sound_window");
    const size_t bytes = (size_t)(n->c.audio_tokens * 2 * n->c.adapter_dim) * hv_dtype_size(store.dtype);
    char *to = window.data;
    int64_t frame[4];

    for (int64_t l = 0; l < n->s.frames; l++) {
        dit_sound_frames(l, frame);
        for (int k = 0; k < 4; k++, to += bytes)
            memcpy(to, (const char *)store.data + (size_t)sound[frame[k]] * bytes, bytes);
    }
    hv_upload(n->dev, dit_row(n, "adapter_kv"), window);
}

/* Queries of a chunk of video rows against the sound of each one's own frame, in place on q. */
static void hear(const struct dit *n, hv_tensor q, int64_t first)
{
    const int64_t d = n->c.adapter_dim, P = n->m.tokens, keys = n->m.keys;
    const hv_tensor kv = dit_row(n, "adapter_kv");
    const struct hv_attn a = {.heads = 1, .kv_heads = 1, .scale = (float)(1 / sqrt((double)d))};

    for (int64_t row = 0, next; row < q.shape[0]; row = next) {
        const int64_t frame = (first + row) / P;
        next = (frame + 1) * P - first < q.shape[0] ? (frame + 1) * P - first : q.shape[0];
        const hv_tensor part = hv_rows(q, row, next - row), mine = hv_rows(kv, frame * keys, keys);
        hv_attention(n->dev, part, part, hv_cols(mine, 0, d), hv_cols(mine, d, d), &a);
    }
}

/* x += face * to_out(softmax(q k^T / sqrt(d)) v) on the video rows. at: the adapter's place among those that run. */
static void adapter(const struct dit *n, const struct state *s, int j, int64_t at, const int32_t *sound)
{
    const char *stem = "audio_adapter_blocks";
    const int64_t most = n->choice.rows_mlp, P = n->m.tokens;
    const hv_tensor face = dit_row(n, "face");

    window_sound(n, at, sound);
    for (int64_t row = 0; row < n->m.video; row += most) {
        const int64_t rows = n->m.video - row < most ? n->m.video - row : most;
        const hv_tensor x = hv_rows(s->x, P + row, rows), z = hv_rows(dit_row(n, "z"), 0, rows);
        const hv_tensor q = hv_rows(dit_row(n, "adapter_q"), 0, rows);
        hv_layer_norm(n->dev, z, x, dit_weight(n, stem, j, "norm2.weight"), dit_weight(n, stem, j, "norm2.bias"),
                      DIT_SOUND_EPS);
        hv_linear(n->dev, q, z, dit_weight(n, stem, j, "to_q.weight"), HV_NO, HV_ACT_NONE);
        hear(n, q, row);
        hv_linear(n->dev, z, q, dit_weight(n, stem, j, "to_out.weight"), HV_NO, HV_ACT_NONE);
        dit_traced(n, row, 0, z, "adapter.%d.out", j);
        hv_masked_add(n->dev, x, hv_rows(face, row, rows), z);
    }
}

/* ---- single blocks ---- */

static void single_rest(const struct dit *n, const struct state *s, const struct block *b, struct chunk c)
{
    const int64_t H = n->c.hidden, M = n->c.mlp;
    const hv_tensor x = hv_rows(s->x, c.row, c.n), z = hv_rows(dit_row(n, "z"), 0, c.n);
    const hv_tensor cat = hv_rows(dit_row(n, "hidden"), 0, c.n), w = block_weight(n, b, "linear1", ".weight");
    const hv_tensor bias = block_weight(n, b, "linear1", ".bias");

    hv_norm_modulate(n->dev, z, x, b->mod[0], b->mod[1], DIT_NORM_EPS);
    hv_linear(n->dev, hv_cols(cat, H, M), z, dit_rows(w, 3 * H, M), dit_rows(bias, 3 * H, M), HV_ACT_GELU_TANH);
    hv_copy(n->dev, hv_cols(cat, 0, H), hv_rows(s->o, c.row, c.n));     /* one sum over attention and MLP, as the model has it */
    hv_linear(n->dev, z, cat, block_weight(n, b, "linear2", ".weight"), block_weight(n, b, "linear2", ".bias"), HV_ACT_NONE);
    hv_gated_add(n->dev, x, b->mod[2], z);
}

static void single_block(const struct dit *n, const struct state *s, int64_t i)
{
    const int64_t most = n->choice.rows_mlp, end = n->m.image + s->text;
    struct block b[2] = {{.stem = "single_blocks", .i = i, .qkv = "linear1", .norm = ""}};

    for (int p = 0; p < 3; p++)
        b[0].mod[p] = hv_index(s->mod, 12 * n->c.double_blocks + 3 * i + p);
    b[1] = b[0];
    attention(n, s, b);
    for (struct chunk c = first_chunk(n, s, most); c.row < end; c = next_chunk(n, s, c, most))
        single_rest(n, s, &b[0], c);
    dit_traced(n, 0, 0, s->x, "single.%lld", (long long)i);
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

/* x = [img_in(ref frame 0) | img_in(latents) + before_proj(ref_in(ref)) | text]. */
static void embed(struct dit *n, const struct state *s, const struct dit_call *call)
{
    const int64_t P = n->m.tokens;
    const hv_tensor text = dit_rows(hv_index(dit_host(n, "text"), n->slot[call->moment]), 0, s->text);

    hv_weights_take(n->w, "img_in.");
    hv_upload(n->dev, dit_row(n, "latents"), call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), call->ref);
    hv_upload(n->dev, dit_row(n, "face"), hv_view(call->mask, HV_F32, 1, &n->m.video));
    for (struct piece p = piece_at(n, 0, P); p.n; p = piece_at(n, p.token + p.n, P)) {
        patch_embed(n, hv_rows(s->x, p.token, p.n), "img_in.proj", dit_row(n, "ref"), p);
        dit_traced(n, p.token, 0, hv_rows(s->x, p.token, p.n), "img_in.ref");
    }
    for (struct piece p = piece_at(n, 0, n->m.video); p.n; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor x = hv_rows(s->x, P + p.token, p.n), ref = reference_rows(n, p);
        patch_embed(n, x, "img_in.proj", dit_row(n, "latents"), p);
        dit_traced(n, p.token, 0, x, "img_in.latents");
        hv_add(n->dev, x, x, ref);
    }
    n->ref_kept = 1;
    hv_upload(n->dev, hv_rows(s->x, n->m.image, s->text), text);
    dit_traced(n, 0, 0, hv_rows(s->x, 0, n->m.image), "embedded.img");
}

/* Velocity of the video rows: unpatchify(lin(modulate(norm(x)))). */
static void final_layer(const struct dit *n, const struct state *s)
{
    const int patch[3] = {(int)n->c.patch[0], (int)n->c.patch[1], (int)n->c.patch[2]};
    const hv_tensor shift = hv_index(s->mod, n->m.mods - 2), scale = hv_index(s->mod, n->m.mods - 1);

    hv_weights_take(n->w, "final_layer.linear.");
    for (struct piece p = piece_at(n, 0, n->m.video); p.n; p = piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor z = hv_rows(dit_row(n, "embed"), 0, p.n), y = hv_rows(dit_row(n, "patches"), 0, p.n);
        hv_norm_modulate(n->dev, z, hv_rows(s->x, n->m.tokens + p.token, p.n), shift, scale, DIT_NORM_EPS);
        dit_linear(n, y, z, "final_layer.linear", HV_ACT_NONE);
        dit_traced(n, p.token, 0, y, "final_layer");
        hv_unpatchify(n->dev, box(n, dit_row(n, "velocity"), p), y, patch);
    }
    hv_weights_give(n->w, "final_layer.linear.");
}

/* ---- step cache ---- in host memory: video rows by frame of the clip, reference and text rows by window */

static hv_tensor cache_frame(const struct dit *n, int branch, int64_t frame)
{
    return hv_rows(hv_index(dit_host(n, "step_cache"), branch), frame * n->m.tokens, n->m.tokens);
}

/* Reference rows, then room for text_rows of text. */
static hv_tensor cache_window(const struct dit *n, int branch, int64_t window)
{
    const int64_t each = n->m.tokens + n->s.text_rows;

    return hv_rows(hv_index(dit_host(n, "step_cache"), branch), n->s.clip_frames * n->m.tokens + window * each, each);
}

static void cache_save(struct dit *n, const struct state *s, const struct dit_call *call)
{
    const int64_t P = n->m.tokens;
    const hv_tensor rest = cache_window(n, call->branch, call->window);

    for (int64_t k = 0; k < n->s.frames; k++)
        n->saved.window[call->branch * n->s.clip_frames + call->frame[k]] = call->window;
    n->saved.text[call->branch * n->s.windows + call->window] = s->text;
    if (n->dev->kind == HV_DRY)                         /* nothing to save: a plan must not touch a store of gigabytes */
        return;
    for (int64_t k = 0; k < n->s.frames; k++)
        hv_download(n->dev, cache_frame(n, call->branch, call->frame[k]), hv_rows(s->x, (1 + k) * P, P));
    hv_download(n->dev, hv_rows(rest, 0, P), hv_rows(s->x, 0, P));
    hv_download(n->dev, hv_rows(rest, P, s->text), hv_rows(s->x, n->m.image, s->text));
}

/* The window that saved the first frame last. */
static int cache_source(const struct dit *n, const struct dit_call *call)
{
    return n->saved.window[call->branch * n->s.clip_frames + call->frame[0]];
}

static void cache_load(const struct dit *n, const struct state *s, const struct dit_call *call)
{
    const int64_t P = n->m.tokens;
    const hv_tensor rest = cache_window(n, call->branch, cache_source(n, call));

    hv_upload(n->dev, hv_rows(s->x, 0, P), hv_rows(rest, 0, P));
    for (int64_t k = 0; k < n->s.frames; k++)
        hv_upload(n->dev, hv_rows(s->x, (1 + k) * P, P), cache_frame(n, call->branch, call->frame[k]));
    hv_upload(n->dev, hv_rows(s->x, n->m.image, s->text), hv_rows(rest, P, s->text));
}

/* ---- forward ---- */

/* Modulation vectors of the moment: all, or those of the last single block and the final layer. */
static void upload_modulation(const struct dit *n, int moment)
{
    const int64_t H = n->c.hidden, slot = n->slot[moment], first = n->moment[moment].cached ? n->m.tail : 0;
    const hv_tensor row = hv_index(dit_host(n, first ? "modulation_cached" : "modulation"), slot);

    hv_upload(n->dev, hv_rows(dit_row(n, "mod"), first, n->m.mods - first),
              hv_reshape(row, 2, (const int64_t[]){n->m.mods - first, H}));
}

/* Announces the tensors of a block, or gives them back; not its modulation, whose time is over. */
static void take_block(const struct dit *n, const char *stem, int64_t i, int take)
{
    static const char *const doubles[] = {"img_attn_", "txt_attn_", "img_mlp.", "txt_mlp.", NULL};
    static const char *const singles[] = {"linear", NULL}, *const adapters[] = {"to_q", "to_out", NULL};
    const char *const *part = stem[0] == 'd' ? doubles : stem[0] == 's' ? singles : adapters;
    char prefix[64];

    for (; *part; part++) {
        snprintf(prefix, sizeof prefix, "%s.%lld.%s", stem, (long long)i, *part);
        (take ? hv_weights_take : hv_weights_give)(n->w, prefix);
    }
}

/* Everything up to the last single block. */
static void blocks(struct dit *n, const struct state *s, const struct dit_call *call)
{
    int64_t at = 0;

    embed(n, s, call);
    for (int64_t i = 0; i < n->c.double_blocks; i++) {
        const int j = dit_adapter_of(&n->c, i);
        take_block(n, "double_blocks", i, 1);
        double_block(n, s, i);
        take_block(n, "double_blocks", i, 0);
        if (j < 0)
            continue;
        /* Slots of the store are in the order of the adapters, which need not be that of the blocks. */
        at = 0;
        for (int a = 0; a < j; a++)
            at += n->c.adapter_after[a] < n->c.double_blocks;
        take_block(n, "audio_adapter_blocks", j, 1);
        adapter(n, s, j, at, call->sound);
        take_block(n, "audio_adapter_blocks", j, 0);
    }
    dit_traced(n, 0, 0, s->x, "single.input");
    for (int64_t i = 0; i + 1 < n->c.single_blocks; i++) {
        take_block(n, "single_blocks", i, 1);
        single_block(n, s, i);
        take_block(n, "single_blocks", i, 0);
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

int dit_forward(struct dit *n, const struct dit_call *call, struct hv_err *e)
{
    const int64_t last = n->c.single_blocks - 1;

    if (check_call(n, call, e))
        return e->code;
    int64_t text = n->text_n[n->moment[call->moment].text];
    if (call->cache == DIT_LOAD) {
        const int64_t saved = n->saved.text[call->branch * n->s.windows + cache_source(n, call)];
        text = saved < text ? saved : text;
    }
    const struct state s = state_of(n, text);

    upload_modulation(n, call->moment);
    if (call->cache == DIT_LOAD)
        cache_load(n, &s, call);
    else
        blocks(n, &s, call);
    if (call->cache == DIT_SAVE)
        cache_save(n, &s, call);
    dit_traced(n, 0, 0, s.x, "cache");
    take_block(n, "single_blocks", last, 1);
    single_block(n, &s, last);
    take_block(n, "single_blocks", last, 0);
    final_layer(n, &s);
    hv_download(n->dev, call->out, dit_row(n, "velocity"));
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

/* ---- open, close ---- */

static int rope_tables(struct dit *n, struct hv_err *e)
{
    static const char *const name[3] = {"rope_time", "rope_row", "rope_col"};
    const int64_t extent[3] = {n->s.frames + 1, n->m.down, n->m.across};

    for (int a = 0; a < 3; a++) {
        const int64_t half = n->c.rope_dim[a] / 2, count = extent[a] * half;
        float *host = malloc((size_t)(2 * count) * sizeof *host);
        if (!host)
            return hv_fail(e, HV_ENOMEM, "rope: out of memory");
        rope_table(host, host + count, a ? 0 : ROPE_FIRST_TIME, extent[a], n->c.rope_dim[a], n->c.rope_theta);
        const hv_tensor table = dit_row(n, name[a]);
        hv_upload(n->dev, table, hv_view(host, HV_F32, 3, (const int64_t[]){2, extent[a], half}));
        free(host);
        n->rope.cos[a] = hv_index(table, 0);
        n->rope.sin[a] = hv_index(table, 1);
        n->rope.grid[a] = extent[a];
    }
    return 0;
}

static int allocate(struct dit *n, struct hv_err *e)
{
    struct hv_plan device = {0};
    const size_t frames = (size_t)(n->s.branches * n->s.clip_frames);

    if (dit_plan(&device, &n->host_plan, &n->c, &n->s, &n->choice, e) || hv_arena_open(&n->arena, n->dev, &device, e))
        return e->code;
    n->memory = malloc(hv_plan_bytes(&n->host_plan) + 1);
    n->moment = calloc((size_t)n->m.moments + 1, sizeof *n->moment);
    n->slot = calloc((size_t)n->m.moments + 1, sizeof *n->slot);
    n->text_n = calloc((size_t)n->s.texts + 1, sizeof *n->text_n);
    n->saved.window = malloc((frames + 1) * sizeof *n->saved.window);
    n->saved.text = calloc((size_t)(n->s.branches * n->s.windows) + 1, sizeof *n->saved.text);
    if (!n->memory || !n->moment || !n->slot || !n->text_n || !n->saved.window || !n->saved.text)
        return hv_fail(e, HV_ENOMEM, "host: out of memory: %zu MiB requested", hv_plan_bytes(&n->host_plan) >> 20);
    memset(n->saved.window, 0xff, (frames + 1) * sizeof *n->saved.window);
    return rope_tables(n, e);
}

int dit_open(struct dit **out, struct hv_dev *d, struct hv_weights *w, const struct dit_config *c, const struct dit_size *s,
             const struct dit_choice *choice, struct hv_err *e)
{
    struct dit *n = calloc(1, sizeof *n);

    *out = NULL;
    if (!n)
        return hv_fail(e, HV_ENOMEM, "transformer: out of memory");
    n->dev = d;
    n->w = w;
    n->c = *c;
    n->s = *s;
    n->choice = *choice;
    n->m = dit_dims(c, s, choice->rows_mlp);
    if (allocate(n, e) || hv_dev_sync(d, e)) {
        dit_close(n);
        return e->code;
    }
    *out = n;
    return 0;
}

void dit_close(struct dit *n)
{
    if (!n)
        return;
    hv_arena_close(n->arena);
    free(n->memory);
    free(n->moment);
    free(n->slot);
    free(n->text_n);
    free(n->saved.window);
    free(n->saved.text);
    free(n);
}

struct hv_dev *dit_device(const struct dit *n)
{
    return n->dev;
}
