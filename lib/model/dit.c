/* dit.c - one forward of the diffusion transformer: rows, weights and tables that its parts share, and the order of the parts:
 * dit_embed.c, dit_blocks.c, and dit_residual.c, where a step cache keeps sums. */
#include "dit_impl.h"

#include <stdarg.h>
#include <stdio.h>

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

void dit_trace_x(const struct dit *n, const struct dit_state *s, int64_t row, int64_t rows, const char *fmt, int64_t i)
{
    struct hv_err e = {0};

    if (!n->trace || n->dev->kind == HV_DRY)
        return;
    if (n->choice.tier == DIT_TIER_X_HOST && hv_dev_sync(n->dev, &e))
        return;
    dit_traced(n, 0, 0, n->choice.tier == DIT_TIER_X_HOST ? dit_x_on_host(n, s, row, rows) : hv_rows(s->x, row, rows), fmt, (long long)i);
}

/* ---- weights of a phase ---- */

void dit_group_name(char *buf, size_t size, const char *stem, int64_t i, const char *part)
{
    if (i < 0)
        snprintf(buf, size, "%s", stem);
    else
        snprintf(buf, size, "%s.%lld%s%s", stem, (long long)i, *part ? "." : "", part);
}

void dit_take(const struct dit *n, const char *stem, int64_t i, const char *part)
{
    char name[48];

    dit_group_name(name, sizeof name, stem, i, part);
    hv_weights_take(n->w, name);
}

void dit_give(const struct dit *n, const char *stem, int64_t i, const char *part)
{
    char name[48];

    dit_group_name(name, sizeof name, stem, i, part);
    hv_weights_give(n->w, name);
}

void dit_phase_take(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part)
{
    if (!s->held)
        dit_take(n, stem, i, part);
}

void dit_phase_give(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part)
{
    if (!s->held)
        dit_give(n, stem, i, part);
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
            dit_take(n, stem, i, part[p]);
    for (int b = 0; b < count; b++)
        block(n, &s[b], i);
    for (int p = 0; p < 3 && count > 1; p++)
        if (part[p])
            dit_give(n, stem, i, part[p]);
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
        dit_take(n, "adapter", j, "");
    for (int b = 0; b < count; b++)
        dit_adapter(n, &s[b], j, at);
    if (count > 1)
        dit_give(n, "adapter", j, "");
}

/* Everything up to the last single block. */
static void blocks(struct dit *n, struct dit_state *s, int count)
{
    if (count > 1)
        dit_take(n, "stem", -1, "");
    for (int b = 0; b < count; b++) {
        dit_gather_sound(n, s[b].call, s[b].slot);
        dit_embed(n, &s[b]);
    }
    if (count > 1)
        dit_give(n, "stem", -1, "");
    for (int64_t i = 0; i < n->c.double_blocks; i++) {
        each(n, s, count, "double", i, dit_double_block);
        adapters(n, s, count, i);
    }
    for (int b = 0; b < count; b++)
        dit_trace_x(n, &s[b], 0, n->m.image + s[b].text, "single.input", 0);
    for (int64_t i = 0; i + 1 < n->c.single_blocks; i++)
        each(n, s, count, "single", i, dit_single_block);
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
        dit_take(n, "final", -1, "");
    for (int b = 0; b < count; b++) {
        dit_final_layer(n, &s[b]);
        hv_download(n->dev, s[b].call->out, dit_row(n, "velocity"));
    }
    if (count > 1)
        dit_give(n, "final", -1, "");
}

/* Through all blocks or, by the residual, around them. */
static int around(struct dit *n, struct dit_state *s, struct hv_err *e)
{
    if (s->call->cache == DIT_LOAD) {
        dit_embed(n, s);
        dit_add_residual(n, s);
        finish(n, s, 1);
        return hv_dev_sync(n->dev, e);
    }
    blocks(n, s, 1);
    each(n, s, 1, "single", n->c.single_blocks - 1, dit_single_block);
    finish(n, s, 1);
    if (s->call->cache == DIT_SAVE) {
        dit_save_residual(n, s);
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
        dit_trace_x(n, &s[b], 0, n->m.image + s[b].text, "cache", 0);
    }
    each(n, s, count, "single", last, dit_single_block);
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
    dit_group_name(last, sizeof last, "single", n->c.single_blocks - 1, "qkv");
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
    if (!n->s.probe || call->window < 0 || call->window >= n->s.windows)
        return hv_fail(e, HV_EINPUT, "probe: window %d of %lld", call->window, (long long)n->s.windows);
    if (check_call(n, call, e))
        return e->code;
    const struct dit_state s = state_of(n, call, n->turn, 0);
    n->turn ^= 1;
    upload_modulation(n, &s);
    hv_weights_next(n->w, "stem");
    if (dit_probe_rows(n, &s, change, e))
        return e->code;
    n->saved.version++;
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
