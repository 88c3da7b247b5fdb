#include "tests/unit/ref_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t offset(hv_tensor t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4)
{
    const int64_t i[HV_MAX_DIMS] = {i0, i1, i2, i3, i4};
    int64_t at = 0;

    for (int a = 0; a < t.ndim; a++)
        at += i[a] * t.stride[a];
    return (size_t)at * hv_dtype_size(t.dtype);
}

double ref_at(hv_tensor t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4)
{
    const char *p = (const char *)t.data + offset(t, i0, i1, i2, i3, i4);
    double v;
    float f;

    if (t.dtype == HV_F32) {
        memcpy(&f, p, sizeof f);
        return (double)f;
    }
    if (t.dtype == HV_F64) {
        memcpy(&v, p, sizeof v);
        return v;
    }
    hv_to_f32(&f, t.dtype, p, 1);
    if (!t.scale)
        return (double)f;
    f *= t.scale[i0];                   /* the weight is the f32 product, rounded once more when deq_bf16 */
    return (double)(t.deq_bf16 ? hv_bf16_to_f32(hv_f32_to_bf16(f)) : f);
}

void ref_put(hv_tensor t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4, double v)
{
    char *p = (char *)t.data + offset(t, i0, i1, i2, i3, i4);
    const float f = (float)v;

    if (t.dtype == HV_F64)
        memcpy(p, &v, sizeof v);
    else
        hv_from_f32(t.dtype, p, &f, 1);
}

static double at1(hv_tensor t, int64_t i) { return ref_at(t, i, 0, 0, 0, 0); }

/* The inner loops live on this one: f32 without the general walk. */
static inline double at2(hv_tensor t, int64_t i, int64_t j)
{
    if (t.dtype == HV_F32 && t.ndim == 2)
        return (double)((const float *)t.data)[i * t.stride[0] + j * t.stride[1]];
    return ref_at(t, i, j, 0, 0, 0);
}

static void put2(hv_tensor t, int64_t i, int64_t j, double v) { ref_put(t, i, j, 0, 0, 0, v); }

double ref_act(double x, enum hv_act act)
{
    switch (act) {
    case HV_ACT_RELU: return x < 0 ? 0 : x;
    case HV_ACT_SILU: return x / (1 + exp(-x));
    case HV_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case HV_ACT_GELU_ERF: return 0.5 * x * erfc(-x / sqrt(2));
    case HV_ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case HV_ACT_NONE: case HV_ACTS: break;
    }
    return x;
}

/* ---- memory ---- */

/* Calls for every index of a shape: the last is the fastest. */
static int next(int64_t i[HV_MAX_DIMS], hv_tensor t)
{
    for (int a = t.ndim - 1; a >= 0; a--) {
        if (++i[a] < t.shape[a])
            return 1;
        i[a] = 0;
    }
    return 0;
}

void ref_copy(hv_tensor y, hv_tensor x)
{
    int64_t i[HV_MAX_DIMS] = {0};

    if (hv_count(y))
        do {
            ref_put(y, i[0], i[1], i[2], i[3], i[4], ref_at(x, i[0], i[1], i[2], i[3], i[4]));
        } while (next(i, y));
}

void ref_fill(hv_tensor y, double value)
{
    int64_t i[HV_MAX_DIMS] = {0};

    if (hv_count(y))
        do {
            ref_put(y, i[0], i[1], i[2], i[3], i[4], value);
        } while (next(i, y));
}

void ref_dequantize(hv_tensor y, hv_tensor w)
{
    ref_copy(y, w);                     /* ref_at applies the scales */
}

void ref_gather_rows(hv_tensor y, hv_tensor table, const int32_t *ids)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, at2(table, ids[r], c));
}

/* ---- elementwise ---- */

void ref_add(hv_tensor y, hv_tensor a, hv_tensor b)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, at2(a, r, c) + (b.ndim == 1 ? at1(b, c) : at2(b, r, c)));
}

void ref_activation(hv_tensor y, hv_tensor x, enum hv_act act)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, ref_act(at2(x, r, c), act));
}

void ref_swiglu(hv_tensor y, hv_tensor gate, hv_tensor up)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, ref_act(at2(gate, r, c), HV_ACT_SILU) * at2(up, r, c));
}

void ref_gated_add(hv_tensor y, hv_tensor x, hv_tensor gate, hv_tensor b)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, at2(x, r, c) + at1(gate, c) * at2(b, r, c));
}

void ref_masked_add(hv_tensor y, hv_tensor x, hv_tensor mask, hv_tensor b)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, at2(x, r, c) + at1(mask, r) * at2(b, r, c));
}

/* ---- matrix ---- */

void ref_linear(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t n = 0; n < y.shape[1]; n++) {
            double sum = bias.data ? at1(bias, n) : 0;
            for (int64_t k = 0; k < x.shape[1]; k++)
                sum += at2(x, r, k) * at2(w, n, k);
            put2(y, r, n, ref_act(sum, act));
        }
}

static int sees(const struct hv_attn *a, int64_t i, int64_t j)
{
    return (!a->step || j < (i / a->step + 1) * a->step + a->offset) && (!a->key_mask.data || at1(a->key_mask, j) != 0);
}

void ref_attention(hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t width = q.shape[1] / a->heads, keys = k.shape[0];
    double *p = malloc((size_t)keys * sizeof *p);

    for (int64_t h = 0; h < a->heads; h++)
        for (int64_t i = 0; i < q.shape[0]; i++) {
            const int64_t from = h / (a->heads / a->kv_heads) * width;
            double top = -INFINITY, sum = 0;
            for (int64_t j = 0; j < keys; j++) {
                p[j] = 0;
                for (int64_t c = 0; c < width; c++)
                    p[j] += at2(q, i, h * width + c) * at2(k, j, from + c);
                p[j] = sees(a, i, j) ? p[j] * (double)a->scale : -INFINITY;
                top = fmax(top, p[j]);
            }
            for (int64_t j = 0; j < keys; j++)
                sum += p[j] = exp(p[j] - top);
            for (int64_t c = 0; c < width; c++) {
                double s = 0;
                for (int64_t j = 0; j < keys; j++)
                    s += p[j] * at2(v, j, from + c);
                put2(o, i, h * width + c, s / sum);
            }
        }
    free(p);
}

/* ---- norm ---- */

static void moments(hv_tensor x, int64_t r, double *mean, double *var)
{
    const int64_t n = x.shape[1];

    *mean = *var = 0;
    for (int64_t c = 0; c < n; c++)
        *mean += at2(x, r, c) / (double)n;
    for (int64_t c = 0; c < n; c++)
        *var += (at2(x, r, c) - *mean) * (at2(x, r, c) - *mean) / (double)n;
}

void ref_layer_norm(hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, double eps)
{
    for (int64_t r = 0; r < y.shape[0]; r++) {
        double mean, var;
        moments(x, r, &mean, &var);
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, (at2(x, r, c) - mean) / sqrt(var + eps) * (weight.data ? at1(weight, c) : 1)
                          + (bias.data ? at1(bias, c) : 0));
    }
}

void ref_row_stats(hv_tensor stat, hv_tensor x, double eps)
{
    for (int64_t r = 0; r < x.shape[0]; r++) {
        double mean, var;
        moments(x, r, &mean, &var);
        put2(stat, r, 0, mean);
        put2(stat, r, 1, 1 / sqrt(var + eps));
    }
}

void ref_norm_modulate(hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale)
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, (at2(x, r, c) - at2(stat, r, 0)) * at2(stat, r, 1) * (1 + at1(scale, c)) + at1(shift, c));
}

/* 1 / sqrt(mean of squares + eps) over n columns from `first`. */
static double inverse_rms(hv_tensor x, int64_t r, int64_t first, int64_t n, double eps)
{
    double sum = 0;

    for (int64_t c = 0; c < n; c++)
        sum += at2(x, r, first + c) * at2(x, r, first + c);
    return 1 / sqrt(sum / (double)n + eps);
}

void ref_rms_norm(hv_tensor y, hv_tensor x, hv_tensor weight, double eps)
{
    for (int64_t r = 0; r < y.shape[0]; r++) {
        const double inv = inverse_rms(x, r, 0, x.shape[1], eps);
        for (int64_t c = 0; c < y.shape[1]; c++)
            put2(y, r, c, at2(x, r, c) * inv * (weight.data ? at1(weight, c) : 1));
    }
}

/* The cosine or sine of angle m of a token: the tables of time, row and column one after the other. */
static double grid_value(const hv_tensor table[3], const struct hv_rope *p, int64_t token, int64_t m)
{
    const int64_t at[3] = {token / (p->grid[1] * p->grid[2]), token / p->grid[2] % p->grid[1], token % p->grid[2]};
    int a = 0;

    while (m >= table[a].shape[1])
        m -= table[a++].shape[1];
    return at2(table[a], at[a], m);
}

void ref_qk_norm_rope(hv_tensor y, hv_tensor x, int heads, hv_tensor weight, double eps, const struct hv_rope *rope)
{
    const int64_t width = x.shape[1] / heads;

    for (int64_t r = 0; r < x.shape[0]; r++)
        for (int64_t c = 0; c < x.shape[1]; c++) {
            const int64_t in = c % width, from = c - in, other = in ^ 1;
            const double inv = weight.data ? inverse_rms(x, r, from, width, eps) : 1;
            const double self = at2(x, r, c) * inv * (weight.data ? at1(weight, in) : 1);
            if (!rope) {
                put2(y, r, c, self);
                continue;
            }
            const double pair = at2(x, r, from + other) * inv * (weight.data ? at1(weight, other) : 1);
            const double cs = grid_value(rope->cos, rope, rope->first + r, in / 2);
            const double sn = grid_value(rope->sin, rope, rope->first + r, in / 2);
            put2(y, r, c, in % 2 ? self * cs + pair * sn : self * cs - pair * sn);
        }
}

void ref_rope_half(hv_tensor y, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin)
{
    const int64_t width = x.shape[1] / heads, half = width / 2;

    for (int64_t r = 0; r < x.shape[0]; r++)
        for (int64_t c = 0; c < x.shape[1]; c++) {
            const int64_t in = c % width, low = in < half, m = low ? in : in - half;
            const double self = at2(x, r, c), pair = at2(x, r, low ? c + half : c - half);
            put2(y, r, c, self * at2(cos, r, m) + (low ? -pair : pair) * at2(sin, r, m));
        }
}

/* ---- image and video ---- */

static int one_or(int v)
{
    return v ? v : 1;
}

/* x[.., c] at row i and column j of the upsampled image, padding included. */
static inline double pixel(hv_tensor x, int64_t t, int64_t i, int64_t j, int64_t c, const struct hv_conv *p)
{
    const int64_t h = x.shape[1] * one_or(p->up[1]), w = x.shape[2] * one_or(p->up[2]);

    if (p->pad == HV_PAD_ZERO && (i < 0 || j < 0 || i >= h || j >= w))
        return 0;
    i = i < 0 ? 0 : i >= h ? h - 1 : i;
    j = j < 0 ? 0 : j >= w ? w - 1 : j;
    if (x.dtype == HV_F32)
        return (double)((const float *)x.data)[t * x.stride[0] + i / one_or(p->up[1]) * x.stride[1]
                                               + j / one_or(p->up[2]) * x.stride[2] + c * x.stride[3]];
    return ref_at(x, t, i / one_or(p->up[1]), j / one_or(p->up[2]), c, 0);
}

/* The frame that tap a of output frame t reads. Upsampled: x[k] is u[2k-1] and u[2k]; output t is u's frame t + 1, and its
 * taps are u[t-1], u[t], u[t+1]. */
static int64_t frame(int64_t t, int64_t a, const struct hv_conv *p)
{
    return one_or(p->up[0]) == 2 ? (t - 1 + a + 1) / 2 : t * one_or(p->stride[0]) + a;
}

static double conv_at(hv_tensor x, hv_tensor w, const struct hv_conv *p, const int64_t at[3], int64_t o)
{
    double sum = 0;

    for (int64_t k = 0; k < w.shape[1]; k++)
        for (int64_t a = 0; a < w.shape[2]; a++)
            for (int64_t b = 0; b < w.shape[3]; b++)
                for (int64_t e = 0; e < w.shape[4]; e++)
                    sum += ref_at(w, o, k, a, b, e) *
                           pixel(x, frame(at[0], a, p), at[1] * one_or(p->stride[1]) + b - w.shape[3] / 2,
                                 at[2] * one_or(p->stride[2]) + e - w.shape[4] / 2, p->depthwise ? o : k, p);
    return sum;
}

void ref_conv(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p)
{
#pragma omp parallel for collapse(3)            /* half a minute of tests */
    for (int64_t t = 0; t < y.shape[0]; t++)
        for (int64_t i = 0; i < y.shape[1]; i++)
            for (int64_t j = 0; j < y.shape[2]; j++)
                for (int64_t o = 0; o < y.shape[3]; o++) {
                    const double sum = conv_at(x, w, p, (int64_t[]){t, i, j}, o) + (bias.data ? at1(bias, o) : 0);
                    const double more = p->residual.data ? ref_at(p->residual, t, i, j, o, 0) : 0;
                    ref_put(y, t, i, j, o, 0, ref_act(sum, p->act) + more);
                }
}

void ref_group_sums(hv_tensor sums, hv_tensor x)
{
    const int64_t each = x.shape[3] / sums.shape[0];

    for (int64_t t = 0; t < x.shape[0]; t++)
        for (int64_t i = 0; i < x.shape[1]; i++)
            for (int64_t j = 0; j < x.shape[2]; j++)
                for (int64_t c = 0; c < x.shape[3]; c++) {
                    const double v = ref_at(x, t, i, j, c, 0);
                    put2(sums, c / each, 0, at2(sums, c / each, 0) + v);
                    put2(sums, c / each, 1, at2(sums, c / each, 1) + v * v);
                }
}

void ref_group_norm(hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight, hv_tensor bias, double eps,
                    enum hv_act act)
{
    const int64_t each = x.shape[3] / sums.shape[0];

    for (int64_t t = 0; t < x.shape[0]; t++)
        for (int64_t i = 0; i < x.shape[1]; i++)
            for (int64_t j = 0; j < x.shape[2]; j++)
                for (int64_t c = 0; c < x.shape[3]; c++) {
                    const double mean = at2(sums, c / each, 0) / count;
                    const double var = at2(sums, c / each, 1) / count - mean * mean;
                    const double v = (ref_at(x, t, i, j, c, 0) - mean) / sqrt(fmax(var, 0) + eps);
                    ref_put(y, t, i, j, c, 0, ref_act(v * at1(weight, c) + at1(bias, c), act));
                }
}

void ref_max_pool(hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode)
{
    (void)ceil_mode;                    /* it is in y's shape */
    for (int64_t i = 0; i < y.shape[0]; i++)
        for (int64_t j = 0; j < y.shape[1]; j++)
            for (int64_t c = 0; c < y.shape[2]; c++) {
                double top = -INFINITY;
                for (int64_t a = i * s - pad; a < i * s - pad + k; a++)
                    for (int64_t b = j * s - pad; b < j * s - pad + k; b++)
                        if (a >= 0 && b >= 0 && a < x.shape[0] && b < x.shape[1])
                            top = fmax(top, ref_at(x, a, b, c, 0, 0));
                ref_put(y, i, j, c, 0, 0, top);
            }
}

void ref_upsample2(hv_tensor y, hv_tensor x)
{
    for (int64_t i = 0; i < y.shape[0]; i++)
        for (int64_t j = 0; j < y.shape[1]; j++)
            for (int64_t c = 0; c < y.shape[2]; c++)
                ref_put(y, i, j, c, 0, 0, ref_at(x, i / 2, j / 2, c, 0, 0));
}

/* Where column `col` of row `row` of the patches lies in the planes. */
static void place(int64_t at[4], hv_tensor planes, const int p[3], int64_t row, int64_t col)
{
    const int64_t down = planes.shape[2] / p[1], across = planes.shape[3] / p[2];

    at[0] = col / (p[0] * p[1] * p[2]);
    at[1] = row / (down * across) * p[0] + col / (p[1] * p[2]) % p[0];
    at[2] = row / across % down * p[1] + col / p[2] % p[1];
    at[3] = row % across * p[2] + col % p[2];
}

void ref_patchify(hv_tensor y, hv_tensor x, const int patch[3])
{
    for (int64_t r = 0; r < y.shape[0]; r++)
        for (int64_t c = 0; c < y.shape[1]; c++) {
            int64_t at[4];
            place(at, x, patch, r, c);
            put2(y, r, c, ref_at(x, at[0], at[1], at[2], at[3], 0));
        }
}

void ref_unpatchify(hv_tensor y, hv_tensor x, const int patch[3])
{
    for (int64_t r = 0; r < x.shape[0]; r++)
        for (int64_t c = 0; c < x.shape[1]; c++) {
            int64_t at[4];
            place(at, y, patch, r, c);
            ref_put(y, at[0], at[1], at[2], at[3], 0, at2(x, r, c));
        }
}
