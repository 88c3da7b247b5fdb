/* The parts of both halves of the VAE: windows of a causal convolution, resnet, mid block. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "model/vae_net.h"

void vae_name(char buf[VAE_NAME], const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(buf, VAE_NAME, fmt, ap);
    va_end(ap);
}

void vae_tell(struct vae *v, hv_tensor t, int64_t first, const char *fmt, ...)
{
    char name[VAE_NAME];
    va_list ap;

    if (!v->trace)
        return;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    v->trace(v->trace_ctx, name, t, first);
}

/* ---- views ---- */

/* The first elements of a flat row under a shape. */
static hv_tensor shaped(hv_tensor flat, int ndim, const int64_t *shape)
{
    return hv_reshape(hv_rows(flat, 0, hv_shape_count(ndim, shape)), ndim, shape);
}

hv_tensor vae_flat(const struct vae *v, const char *row, int ndim, const int64_t *shape)
{
    return shaped(hv_arena_row(v->arena, row), ndim, shape);
}

/* c channels of every frame, `at` elements into its slot. */
hv_tensor vae_frames(const struct vae_stream *s, int64_t c, int64_t at)
{
    hv_tensor t = shaped(s->row, 4, (int64_t[]){1, s->h, s->w, c});

    t.shape[0] = s->t;
    t.stride[0] = s->slot;
    if (t.data)
        t.data = (char *)t.data + (size_t)at * hv_dtype_size(t.dtype);
    return t;
}

hv_tensor vae_x(const struct vae_stream *s)
{
    return vae_frames(s, s->c, s->at);
}

/* ---- windows ---- */

/* Frames f .. of the source, to the ring's frames `to`. */
static void put(struct vae *v, struct vae_source *s, hv_tensor to, int64_t f)
{
    const hv_tensor x = hv_rows(s->x, f - s->base, to.shape[0]);

    if (s->kind == VAE_HOST)
        hv_upload(v->d, to, x);
    else if (s->kind == VAE_RAW)
        hv_copy(v->d, to, x);
    else
        hv_group_norm(v->d, to, x, s->sums, s->count, s->weight, s->bias, VAE_EPS, s->act);
}

/* The input frames of outputs first .. first+n-1 of a causal convolution of kernel 3: from first * stride - 2 on; before frame 0
 * there is frame 0. Frames of the window before are carried, not made again. */
hv_tensor vae_window(struct vae *v, struct vae_source *s, int64_t first, int64_t n)
{
    const int64_t from = first * s->stride - 2, last = (first + n - 1) * s->stride;
    const int64_t count = last - from + 1;
    const hv_tensor ring = shaped(s->ring, 4, (int64_t[]){count, s->x.shape[1], s->x.shape[2], s->x.shape[3]});
    const int64_t next = s->have + 1;

    if (s->kind == VAE_RAW && from >= 0)
        return hv_rows(s->x, from, count);
    for (int64_t f = from; s->have >= 0 && f <= s->have; f++) {         /* downwards, frame by frame: no overlap */
        const hv_tensor old = shaped(s->ring, 4, (int64_t[]){s->have - s->have_first + 1, ring.shape[1], ring.shape[2], ring.shape[3]});
        hv_copy(v->d, hv_rows(ring, f - from, 1), hv_rows(old, f - s->have_first, 1));
    }
    put(v, s, hv_rows(ring, next - from, last - next + 1), next);
    for (int64_t f = from; f < 0 && s->have < 0; f++)
        hv_copy(v->d, hv_rows(ring, f - from, 1), hv_rows(ring, -from, 1));
    s->have = last;
    s->have_first = from;
    return ring;
}

/* ---- norm ---- */

static hv_tensor sums_of(const struct vae *v, int which)
{
    return hv_index(hv_arena_row(v->arena, "sums"), which);
}

void vae_sum(struct vae *v, int which, hv_tensor x)
{
    hv_fill(v->d, sums_of(v, which), 0);
    if (x.dtype)
        vae_sum_more(v, which, x);
}

void vae_sum_more(struct vae *v, int which, hv_tensor x)
{
    hv_group_sums(v->d, sums_of(v, which), x);
}

struct vae_source vae_normed(struct vae *v, hv_tensor x, hv_tensor ring, const char *norm, int which)
{
    const double cells = (double)(x.shape[0] * x.shape[1] * x.shape[2]);

    return (struct vae_source){.kind = VAE_NORM, .x = x, .ring = ring, .stride = 1, .sums = sums_of(v, which),
                               .count = cells * (double)(x.shape[3] / v->c.groups), .act = HV_ACT_SILU, .have = -1,
                               .weight = vae_weight(v, norm, "weight"), .bias = vae_weight(v, norm, "bias")};
}

/* ---- convolution, resnet ---- */

void vae_convolve(struct vae *v, hv_tensor y, hv_tensor x, const char *name, const struct hv_conv *p)
{
    hv_conv(v->d, y, x, vae_weight(v, name, "weight"), vae_weight(v, name, "bias"), p);
}

void vae_conv1(struct vae *v, hv_tensor y, hv_tensor x, const char *name)
{
    vae_convolve(v, y, x, name, &(struct hv_conv){.pad = HV_PAD_REPLICATE});
}

/* CausalConv3d of kernel 3 over a whole source, window by window. */
void vae_conv(struct vae *v, hv_tensor y, struct vae_source *s, int64_t window, const char *name, struct hv_conv p)
{
    const hv_tensor residual = p.residual;

    p.pad = HV_PAD_REPLICATE;
    for (int64_t first = 0; first < y.shape[0]; first += window) {
        const int64_t n = y.shape[0] - first < window ? y.shape[0] - first : window;
        if (residual.dtype)
            p.residual = hv_rows(residual, first, n);
        vae_convolve(v, hv_rows(y, first, n), vae_window(v, s, first, n), name, &p);
    }
}

/* x = frames first .. of conv(nearest(y)) where time doubles: frame 0 gives one frame and every other two. first: 0 or odd. */
void vae_double(struct vae *v, hv_tensor x, hv_tensor y, int64_t first, const char *name, const struct hv_conv *p)
{
    const int64_t n = x.shape[0];

    if (first) {
        vae_convolve(v, x, hv_rows(y, (first - 1) / 2, n / 2 + 1), name, p);
        return;
    }
    hv_tensor twice = hv_rows(y, 0, 1);
    twice.shape[0] = 2;
    twice.stride[0] = 0;
    vae_convolve(v, hv_rows(x, 0, 1), twice, name, p);
    if (n > 1)
        vae_convolve(v, hv_rows(x, 1, n - 1), hv_rows(y, 0, (n - 1) / 2 + 1), name, p);
}

/* x = conv(nearest(y)) in phase form, reference: UpsampleCausal3D. Where time doubles, frame 0 gives one frame and every other
 * two: a frame 0 that is seen twice is a view of stride 0. Else windows, as in any causal convolution. */
void vae_upsample(struct vae *v, hv_tensor x, hv_tensor y, hv_tensor ring, const int factor[3], int64_t window, const char *name)
{
    const struct hv_conv p = {.up = {factor[0], factor[1], factor[2]}, .pad = HV_PAD_REPLICATE};

    if (factor[0] == 1) {
        struct vae_source in = {.kind = VAE_RAW, .x = y, .ring = ring, .stride = 1, .have = -1};
        vae_conv(v, x, &in, window, name, p);
        return;
    }
    vae_double(v, x, y, 0, name, &p);
}

/* conv1 of a resnet: h = conv1(silu(norm1(x))), the sums of norm2 on the way. Where channels change, y = conv_shortcut(x): h and
 * y then lie over x, whose frames were all read into the ring and into `cut`. */
static void first_half(struct vae *v, const struct vae_stream *s, hv_tensor ring, hv_tensor cut, hv_tensor h, hv_tensor y,
                       const char *name)
{
    const hv_tensor x = vae_x(s);
    const int shortcut = x.shape[3] != h.shape[3];
    char norm[VAE_NAME], conv1[VAE_NAME], side[VAE_NAME];

    vae_name(norm, "%s.norm1", name);
    vae_name(conv1, "%s.conv1.conv", name);
    vae_name(side, "%s.conv_shortcut.conv", name);
    vae_sum(v, 0, x);
    struct vae_source in = vae_normed(v, x, ring, norm, 0);
    hv_fill(v->d, sums_of(v, 1), 0);
    for (int64_t first = 0; first < s->t; first += s->window) {
        const int64_t n = s->t - first < s->window ? s->t - first : s->window;
        const hv_tensor a = vae_window(v, &in, first, n), to = hv_rows(h, first, n);
        hv_tensor c = HV_NO;
        if (shortcut) {
            c = shaped(cut, 4, (int64_t[]){n, s->h, s->w, h.shape[3]});
            vae_conv1(v, c, hv_rows(x, first, n), side);
        }
        vae_convolve(v, to, a, conv1, &(struct hv_conv){.pad = HV_PAD_REPLICATE});
        if (shortcut)
            hv_copy(v->d, hv_rows(y, first, n), c);
        hv_group_sums(v->d, sums_of(v, 1), to);
    }
}

/* x = (conv_shortcut(x) or x) + conv2(silu(norm2(conv1(silu(norm1(x))))))     reference: ResnetBlockCausal3D */
void vae_resnet(struct vae *v, struct vae_stream *s, hv_tensor ring, hv_tensor cut, int64_t co, const char *name)
{
    const int64_t other = s->h * s->w * co;             /* the second part of a slot */
    const int shortcut = s->c != co;
    const int64_t h_at = shortcut || s->at ? 0 : other, y_at = shortcut ? other : s->at;
    const hv_tensor h = vae_frames(s, co, h_at), y = vae_frames(s, co, y_at);
    char norm[VAE_NAME], conv2[VAE_NAME];

    first_half(v, s, ring, cut, h, y, name);
    s->c = co;
    s->at = y_at;
    vae_name(norm, "%s.norm2", name);
    vae_name(conv2, "%s.conv2.conv", name);
    struct vae_source in = vae_normed(v, h, ring, norm, 1);
    vae_conv(v, y, &in, s->window, conv2, (struct hv_conv){.residual = y});
    vae_tell(v, y, 0, "%s", name);
}

/* ---- mid block ---- */

static void linear(struct vae *v, hv_tensor y, hv_tensor x, const char *name, const char *which)
{
    char full[VAE_NAME];

    vae_name(full, "%s.%s", name, which);
    hv_linear(v->d, y, x, vae_weight(v, full, "weight"), vae_weight(v, full, "bias"), HV_ACT_NONE);
}

/* x += to_out(softmax(q k^T / sqrt(C)) v), q, k, v of group_norm(x): one head, tokens (t, y, x); with mid_causal a token sees
 * its own frame and those before. */
static void attention(struct vae *v, struct vae_stream *s, const char *name)
{
    const int64_t N = s->t * s->h * s->w, C = s->c;
    const struct hv_attn a = {.heads = 1, .kv_heads = 1, .scale = 1 / sqrtf((float)C),
                              .step = v->c.mid_causal ? s->h * s->w : 0,
                              .scratch = v->o.gpu ? hv_arena_row(v->arena, "attention") : HV_NO};
    const hv_tensor x = vae_x(s);
    const hv_tensor n4 = vae_flat(v, "norm", 4, x.shape), n = hv_reshape(n4, 2, (int64_t[]){N, C});
    const hv_tensor q = vae_flat(v, "q", 2, n.shape), k = vae_flat(v, "k", 2, n.shape), val = vae_flat(v, "v", 2, n.shape);
    char norm[VAE_NAME];

    vae_name(norm, "%s.group_norm", name);
    vae_sum(v, 0, x);
    struct vae_source in = vae_normed(v, x, HV_NO, norm, 0);
    in.act = HV_ACT_NONE;
    put(v, &in, n4, 0);
    linear(v, q, n, name, "to_q");
    linear(v, k, n, name, "to_k");
    linear(v, val, n, name, "to_v");
    hv_attention(v->d, q, q, k, val, &a);
    linear(v, n, q, name, "to_out.0");
    for (int64_t t = 0; t < s->t; t++) {
        const hv_tensor f = hv_reshape(hv_rows(x, t, 1), 2, (int64_t[]){s->h * s->w, C});
        hv_add(v->d, f, f, hv_rows(n, t * s->h * s->w, s->h * s->w));
    }
    vae_tell(v, x, 0, "%s", name);
}

void vae_mid(struct vae *v, struct vae_stream *s, hv_tensor ring, const char *name)
{
    char part[VAE_NAME];

    hv_weights_take(v->w, name);
    vae_name(part, "%s.resnets.0", name);
    vae_resnet(v, s, ring, HV_NO, s->c, part);
    vae_name(part, "%s.attentions.0", name);
    if (v->c.mid_attention)
        attention(v, s, part);
    vae_name(part, "%s.resnets.1", name);
    vae_resnet(v, s, ring, HV_NO, s->c, part);
    vae_tell(v, vae_x(s), 0, "%s", name);
    hv_weights_give(v->w, name);
}
