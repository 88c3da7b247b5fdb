#include "model/face.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "mem/arena.h"
#include "ops/ops.h"

/* Names of plan rows, which borrow them. */
#define NAMES(x) x "0", x "1", x "2", x "3", x "4", x "5", x "6", x "7", x "8", x "9", x "10", x "11", x "12", x "13", x "14", \
                 x "15", x "16", x "17", x "18", x "19", x "20", x "21", x "22", x "23", x "24", x "25", x "26", x "27",       \
                 x "28", x "29"
static const char *const out_name[FACE_LAYERS] = {NAMES("out ")};
static const char *const scratch_name[FACE_LAYERS] = {NAMES("scratch ")};
static const char *const head_name[FACE_SCALES] = {"head 0", "head 1", "head 2"};

void face_input_size(const struct face_config *c, int width, int height, int *w1, int *h1)
{
    const double r = (double)c->input_size / (width < height ? width : height);

    *h1 = (int)(height * r + 31) / 32 * 32;
    *w1 = (int)(width * r + 31) / 32 * 32;
}

/* ---- geometry and plan ---- */

struct size {
    int64_t h, w;
};

static int64_t halved(int64_t n)
{
    return (n + 1) / 2;
}

/* Sizes of all layers. HV_EINPUT: sources of a concatenation that differ, heads that are not of their stride. */
static int geometry(struct size size[FACE_LAYERS], const struct face_config *c, int w1, int h1, struct hv_err *e)
{
    const struct size picture = {h1, w1};

    for (int i = 0; i < c->n; i++) {
        const struct face_layer *l = &c->layer[i];
        const struct size in = l->from[0] < 0 ? picture : size[l->from[0]];

        size[i] = in;
        for (int k = 1; k < l->n_from; k++) {
            const struct size other = l->from[k] < 0 ? picture : size[l->from[k]];
            if (other.h != in.h || other.w != in.w)
                return hv_fail(e, HV_EINPUT, "layer %d: concat of %lldx%lld and %lldx%lld", i, (long long)in.w,
                               (long long)in.h, (long long)other.w, (long long)other.h);
        }
        if (l->op == FACE_UPSAMPLE)
            size[i] = (struct size){2 * in.h, 2 * in.w};
        else if (l->op == FACE_STEM)
            size[i] = (struct size){halved(halved(in.h)), halved(halved(in.w))};
        else if (l->op == FACE_FOCUS || ((l->op == FACE_CONV || l->op == FACE_SHUFFLE) && l->s == 2))
            size[i] = (struct size){halved(in.h), halved(in.w)};
        if (l->op == FACE_FOCUS && (in.h % 2 || in.w % 2))
            return hv_fail(e, HV_EINPUT, "layer %d: focus of %lldx%lld, expected even sides", i, (long long)in.w,
                           (long long)in.h);
        if (size[i].h > 1 << 16 || size[i].w > 1 << 16)
            return hv_fail(e, HV_EINPUT, "layer %d: %lldx%lld", i, (long long)size[i].w, (long long)size[i].h);
    }
    for (int s = 0; s < FACE_SCALES; s++) {
        const struct size d = size[c->detect[s]];
        if (d.h != h1 / c->stride[s] || d.w != w1 / c->stride[s])
            return hv_fail(e, HV_EINPUT, "layer %d: head %d is %lldx%lld, expected %lldx%lld at stride %lld", c->n, s,
                           (long long)d.w, (long long)d.h, (long long)(w1 / c->stride[s]), (long long)(h1 / c->stride[s]),
                           (long long)c->stride[s]);
    }
    return 0;
}

/* Values that a layer needs beside its input and output; the forward below divides them up. */
static int64_t scratch_of(const struct face_layer *l, struct size in, struct size out)
{
    const int64_t pi = in.h * in.w, po = out.h * out.w, h = l->out / 2;
    const int64_t stem = halved(in.h) * halved(in.w);

    switch (l->op) {
    case FACE_FOCUS: return po * 4 * l->in;
    case FACE_STEM: return stem * (l->out + h) + po * 2 * l->out;
    case FACE_C3: return po * 3 * h;
    case FACE_SHUFFLE: return l->s == 2 ? po * (l->in + h + 2 * h) + pi * h : po * 4 * h;
    case FACE_SPP: return po * (l->in / 2) * (1 + l->n_pool);
    case FACE_CONV:
    case FACE_UPSAMPLE:
    case FACE_CONCAT:
    case FACE_OPS: break;
    }
    return 0;
}

int face_plan(struct hv_plan *p, const struct face_config *c, int w1, int h1, struct hv_err *e)
{
    struct size size[FACE_LAYERS] = {{0}};
    uint32_t alive[FACE_LAYERS + 1] = {0};              /* [0]: the picture; [i + 1]: output of layer i */

    if (geometry(size, c, w1, h1, e))
        return e->code;
    for (int i = 0; i < c->n; i++) {
        alive[i + 1] |= 1u << i;
        for (int k = 0; k < c->layer[i].n_from; k++)    /* from where it is made to where it is read */
            for (int at = c->layer[i].from[k] < 0 ? 0 : c->layer[i].from[k]; at <= i; at++)
                alive[c->layer[i].from[k] + 1] |= 1u << at;
    }
    for (int s = 0; s < FACE_SCALES; s++)
        for (int at = c->detect[s]; at <= c->n; at++)
            alive[c->detect[s] + 1] |= 1u << at;

    hv_plan_add(p, "picture", HV_F32, alive[0], 4, (int64_t[]){1, h1, w1, 3});
    for (int i = 0; i < c->n; i++) {
        const struct face_layer *l = &c->layer[i];
        const struct size in = l->from[0] < 0 ? (struct size){h1, w1} : size[l->from[0]];
        const int64_t scratch = scratch_of(l, in, size[i]);

        hv_plan_add(p, out_name[i], HV_F32, alive[i + 1], 4, (int64_t[]){1, size[i].h, size[i].w, l->out});
        if (scratch)
            hv_plan_add(p, scratch_name[i], HV_F32, 1u << i, 1, &scratch);
    }
    for (int s = 0; s < FACE_SCALES; s++)
        hv_plan_add(p, head_name[s], HV_F32, 1u << c->n, 4,
                    (int64_t[]){1, h1 / c->stride[s], w1 / c->stride[s], FACE_ANCHORS * FACE_COLUMNS});
    return hv_plan_place(p, e);
}

/* ---- network ---- */

struct face {
    struct face_config c;
    struct hv_dev     *d;
    struct hv_weights *w;
    struct hv_arena   *a;
    int                w1, h1;
};

int face_open(struct face **net, struct hv_dev *d, struct hv_weights *w, const struct face_config *c, int w1, int h1,
              struct hv_err *e)
{
    struct hv_plan plan = {0};
    struct face *n = calloc(1, sizeof *n);

    *net = NULL;
    if (!n)
        return hv_fail(e, HV_ENOMEM, "no memory for the face detector");
    *n = (struct face){.c = *c, .d = d, .w = w, .w1 = w1, .h1 = h1};
    if (face_plan(&plan, c, w1, h1, e) || hv_arena_open(&n->a, d, &plan, e)) {
        face_close(n);
        return e->code;
    }
    *net = n;
    return 0;
}

void face_close(struct face *net)
{
    if (!net)
        return;
    hv_arena_close(net->a);
    free(net);
}

/* The layer at work: its name, input, output, and the scratch that is left. */
struct at {
    struct face             *n;
    const struct face_layer *l;
    hv_tensor                x, y, scratch;
    int64_t                  used;
    char                     name[40];
};

/* A piece of the layer's scratch as [1, h, w, c]. */
static hv_tensor piece(struct at *a, int64_t h, int64_t w, int64_t c)
{
    const hv_tensor t = hv_rows(a->scratch, a->used, h * w * c);

    a->used += h * w * c;
    return hv_reshape(t, 4, (int64_t[]){1, h, w, c});
}

static hv_tensor like(struct at *a, hv_tensor t, int64_t channels)
{
    return piece(a, t.shape[1], t.shape[2], channels);
}

struct how {
    int       stride, depthwise, linear;
    hv_tensor residual;
};

static void conv(struct at *a, hv_tensor y, hv_tensor x, const char *unit, const char *name, struct how how)
{
    const struct hv_conv p = {.stride = {1, how.stride, how.stride}, .pad = HV_PAD_ZERO, .depthwise = how.depthwise,
                              .act = how.linear ? HV_ACT_NONE : HV_ACT_SILU, .residual = how.residual};
    const hv_tensor w = hv_weight(a->n->w, "%s%s%s.weight", a->name, unit, name);

    if (w.ndim == 4)                                    /* else the weight is missing, and the device knows */
        hv_conv(a->n->d, y, x, hv_reshape(w, 5, (int64_t[]){w.shape[0], w.shape[1], 1, w.shape[2], w.shape[3]}),
                hv_weight(a->n->w, "%s%s%s.bias", a->name, unit, name), &p);
}

static void max_pool(struct at *a, hv_tensor y, hv_tensor x, int k, int s, int pad)
{
    hv_max_pool(a->n->d, hv_index(y, 0), hv_index(x, 0), k, s, pad, 1);
}

static void stem(struct at *a)
{
    const int64_t out = a->l->out, h = halved(a->x.shape[1]), w = halved(a->x.shape[2]);
    const hv_tensor s1 = piece(a, h, w, out), s2a = piece(a, h, w, out / 2), cat = like(a, a->y, 2 * out);

    conv(a, s1, a->x, "", "stem_1.conv", (struct how){.stride = 2});
    conv(a, s2a, s1, "", "stem_2a.conv", (struct how){.stride = 1});
    conv(a, hv_cols(cat, 0, out), s2a, "", "stem_2b.conv", (struct how){.stride = 2});
    max_pool(a, hv_cols(cat, out, out), s1, 2, 2, 0);
    conv(a, a->y, cat, "", "stem_3.conv", (struct how){.stride = 1});
}

static void focus(struct at *a)
{
    const int64_t c = a->l->in;
    const hv_tensor cells = like(a, a->y, 4 * c);

    for (int k = 0; k < 4; k++) {
        hv_tensor quarter = hv_slice(hv_slice(a->x, 1, k % 2, a->x.shape[1] - k % 2), 2, k / 2, a->x.shape[2] - k / 2);

        for (int d = 1; d <= 2; d++) {
            quarter.shape[d] = a->y.shape[d];
            quarter.stride[d] *= 2;
        }
        hv_copy(a->n->d, hv_cols(cells, k * c, c), quarter);
    }
    conv(a, a->y, cells, "", "conv.conv", (struct how){.stride = 1});
}

static void c3(struct at *a)
{
    const int64_t h = a->l->out / 2;
    const hv_tensor cat = like(a, a->y, 2 * h), hidden = like(a, a->y, h), left = hv_cols(cat, 0, h);
    char unit[24];

    conv(a, left, a->x, "", "cv1.conv", (struct how){.stride = 1});
    for (int j = 0; j < a->l->n; j++) {
        snprintf(unit, sizeof unit, "m.%d.", j);
        conv(a, hidden, left, unit, "cv1.conv", (struct how){.stride = 1});
        conv(a, left, hidden, unit, "cv2.conv", (struct how){.stride = 1, .residual = a->l->shortcut ? left : HV_NO});
    }
    conv(a, hv_cols(cat, h, h), a->x, "", "cv2.conv", (struct how){.stride = 1});
    conv(a, a->y, cat, "", "cv3.conv", (struct how){.stride = 1});
}

/* y[.., 2i] = x[.., i], y[.., 2i + 1] = x[.., h + i] */
static void interleave(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
    const int64_t p = y.shape[1] * y.shape[2], h = y.shape[3] / 2;
    hv_tensor from = hv_reshape(x, 3, (int64_t[]){p, h, 2});

    from.stride[1] = 1;
    from.stride[2] = h;
    hv_copy(d, hv_reshape(y, 3, (int64_t[]){p, h, 2}), from);
}

static void shuffle(struct at *a)
{
    const int64_t h = a->l->out / 2, c = a->l->in;
    const int down = a->l->s == 2;
    const hv_tensor cat = like(a, a->y, 2 * h), right = like(a, a->y, h), wide = like(a, a->x, h);
    char unit[24] = "";

    if (down) {
        const hv_tensor left = like(a, a->y, c);
        conv(a, left, a->x, "", "branch1.0", (struct how){.stride = 2, .depthwise = 1, .linear = 1});
        conv(a, hv_cols(cat, 0, h), left, "", "branch1.2", (struct how){.stride = 1});
    }
    for (int j = 0; j < a->l->n; j++) {
        const hv_tensor x = j ? a->y : a->x;            /* a unit reads its input before it writes */

        if (a->l->n > 1)
            snprintf(unit, sizeof unit, "%d.", j);
        if (!down)
            hv_copy(a->n->d, hv_cols(cat, 0, h), hv_cols(x, 0, h));
        conv(a, wide, down ? x : hv_cols(x, h, h), unit, "branch2.0", (struct how){.stride = 1});
        conv(a, right, wide, unit, "branch2.3", (struct how){.stride = down ? 2 : 1, .depthwise = 1, .linear = 1});
        conv(a, hv_cols(cat, h, h), right, unit, "branch2.5", (struct how){.stride = 1});
        interleave(a->n->d, a->y, cat);
    }
}

static void spp(struct at *a)
{
    const int64_t h = a->l->in / 2;
    const hv_tensor cat = like(a, a->y, h * (1 + a->l->n_pool)), z = hv_cols(cat, 0, h);

    conv(a, z, a->x, "", "cv1.conv", (struct how){.stride = 1});
    for (int i = 0; i < a->l->n_pool; i++) {
        const int k = (int)a->l->pool[i];
        hv_max_pool(a->n->d, hv_index(hv_cols(cat, (i + 1) * h, h), 0), hv_index(z, 0), k, 1, k / 2, 0);
    }
    conv(a, a->y, cat, "", "cv2.conv", (struct how){.stride = 1});
}

static hv_tensor output_of(const struct face *n, int layer)
{
    return hv_arena_row(n->a, layer < 0 ? "picture" : out_name[layer]);
}

static void concat(struct face *n, const struct face_layer *l, hv_tensor y)
{
    int64_t at = 0;

    for (int k = 0; k < l->n_from; k++) {
        const hv_tensor x = output_of(n, l->from[k]);
        hv_copy(n->d, hv_cols(y, at, x.shape[3]), x);
        at += x.shape[3];
    }
}

static void layer(struct face *n, int i)
{
    const struct face_layer *l = &n->c.layer[i];
    struct at a = {.n = n, .l = l, .x = output_of(n, l->from[0]), .y = output_of(n, i)};

    if (hv_plan_find(hv_arena_plan(n->a), scratch_name[i]))
        a.scratch = hv_arena_row(n->a, scratch_name[i]);
    snprintf(a.name, sizeof a.name, "model.%d.", i);
    hv_weights_take(n->w, a.name);
    switch (l->op) {
    case FACE_CONV: conv(&a, a.y, a.x, "", "conv", (struct how){.stride = (int)l->s}); break;
    case FACE_FOCUS: focus(&a); break;
    case FACE_STEM: stem(&a); break;
    case FACE_C3: c3(&a); break;
    case FACE_SHUFFLE: shuffle(&a); break;
    case FACE_SPP: spp(&a); break;
    case FACE_UPSAMPLE: hv_upsample2(n->d, hv_index(a.y, 0), hv_index(a.x, 0)); break;
    case FACE_CONCAT: concat(n, l, a.y); break;
    case FACE_OPS: break;
    }
    assert(!a.used || a.used <= a.scratch.shape[0]);
    hv_weights_give(n->w, a.name);
}

void face_forward(struct face *n, const hv_tensor heads[FACE_SCALES], hv_tensor picture, face_trace_fn *trace, void *ctx)
{
    struct at a = {.n = n};

    hv_upload(n->d, hv_index(hv_arena_row(n->a, "picture"), 0), picture);
    for (int i = 0; i < n->c.n; i++) {
        layer(n, i);
        if (trace)
            trace(ctx, i, output_of(n, i));
    }
    snprintf(a.name, sizeof a.name, "model.%d.", n->c.n);
    hv_weights_take(n->w, a.name);
    for (int s = 0; s < FACE_SCALES; s++) {
        const hv_tensor y = hv_arena_row(n->a, head_name[s]);
        char m[8];

        snprintf(m, sizeof m, "m.%d", s);
        conv(&a, y, output_of(n, n->c.detect[s]), "", m, (struct how){.stride = 1, .linear = 1});
        hv_download(n->d, heads[s], hv_index(y, 0));
    }
}
