/* Each operation: check, count, dispatch. A failed check is a fault of the device that names the operation and its shapes;
 * after a fault every operation returns at once. */
#include "ops/ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ops/backend.h"
#include "ops/profile.h"

static int is_there(hv_tensor t)
{
    return t.dtype != HV_NONE;
}

static void shapes(char *buf, size_t size, const hv_tensor *t, int n)
{
    char one[HV_SHAPE_STR];
    size_t at = 0;

    buf[0] = 0;
    for (int i = 0; i < n && at < size; i++)
        if (is_there(t[i]))
            at += (size_t)snprintf(buf + at, size - at, " %s%s", hv_dtype_name(t[i].dtype), hv_shape_str(t[i], one));
}

/* Common part of every check: the device is sound, the condition holds, every tensor given is of this device with unit last
 * stride. `host` tensors (uploads) are not passed here. */
static int check(struct hv_dev *d, const char *op, int ok, const hv_tensor *t, int n)
{
    char buf[512];

    if (d->fault.code)
        return 0;
    for (int i = 0; i < n && ok; i++)
        if (is_there(t[i]))
            ok = t[i].dev == d->kind && (t[i].data || d->kind == HV_DRY || !hv_count(t[i]));
    if (!ok) {
        shapes(buf, sizeof buf, t, n);
        hv_dev_fault(d, HV_EDEVICE, "%s: shapes, dtypes or device do not fit:%s", op, buf);
        return 0;
    }
    d->count.launches++;
    for (int i = 0; i < n; i++)
        if (is_there(t[i]))
            d->count.bytes += hv_nbytes(t[i]);
    return 1;
}

#define CHECK(d, op, ok, ...)                                                                                          \
    check(d, op, ok, (const hv_tensor[]){__VA_ARGS__}, (int)(sizeof((const hv_tensor[]){__VA_ARGS__}) / sizeof(hv_tensor)))

static int unit(hv_tensor t)
{
    return t.ndim >= 1 && (t.stride[t.ndim - 1] == 1 || t.shape[t.ndim - 1] <= 1);
}

/* A matrix of activations. */
static int mat(hv_tensor t)
{
    return t.ndim == 2 && unit(t) && (t.dtype == HV_F32 || t.dtype == HV_BF16 || t.dtype == HV_F16);
}

/* An f32 vector of n, or absent. */
static int vec(hv_tensor t, int64_t n)
{
    return !is_there(t) || (t.ndim == 1 && t.dtype == HV_F32 && t.shape[0] == n && unit(t));
}

/* The same of a network's weights, which a GPU takes as stored. */
static int wvec(hv_tensor t, int64_t n)
{
    if (t.dtype == HV_BF16 && t.dev != HV_HOST)
        t.dtype = HV_F32;
    return vec(t, n);
}

static int same(hv_tensor a, hv_tensor b)
{
    return hv_same_shape(a, b) && a.dtype == b.dtype;
}

/* A matrix of weights, as stored. */
static int is_weight(hv_tensor t)
{
    return t.dtype == HV_F32 || t.dtype == HV_F16 || t.dtype == HV_BF16 ||
           ((t.dtype == HV_I8 || t.dtype == HV_F8_E4M3) && (t.scale || t.dev == HV_DRY));
}

/* Weights count as such, not as activations. */
static void count_weight(struct hv_dev *d, hv_tensor w)
{
    d->count.weights += hv_nbytes(w);
    d->count.bytes -= hv_nbytes(w);
}

/* ---- memory ---- */

void hv_upload(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    if (CHECK(d, "upload", hv_same_shape(dst, src) && src.dev == HV_HOST && (src.data || !hv_count(src)), dst))
        d->backend->upload(d, dst, src);
}

void hv_download(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    if (CHECK(d, "download", hv_same_shape(dst, src) && dst.dev == HV_HOST && (dst.data || !hv_count(dst)), src))
        d->backend->download(d, dst, src);
}

void hv_copy(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
    if (CHECK(d, "copy", hv_same_shape(y, x), y, x))
        d->backend->copy(d, y, x);
}

void hv_fill(struct hv_dev *d, hv_tensor y, float value)
{
    if (CHECK(d, "fill", is_there(y), y))
        d->backend->fill(d, y, value);
}

void hv_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w)
{
    const int ok = mat(y) && hv_is_contiguous(y) && w.ndim == 2 && unit(w) && is_weight(w) && hv_same_shape(y, w);

    if (!CHECK(d, "dequantize", ok, y, w))
        return;
    count_weight(d, w);
    hv_profile_begin(d, HV_WIDENING, 0);
    d->backend->dequantize(d, y, w);
    hv_profile_end(d);
}

void hv_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids)
{
    int ok = mat(y) && table.ndim == 2 && unit(table) && is_weight(table) && table.shape[1] == y.shape[1];

    for (int64_t r = 0; ok && r < y.shape[0]; r++)
        ok = ids[r] >= 0 && ids[r] < table.shape[0];
    if (CHECK(d, "gather_rows", ok, y, table)) {
        d->count.bytes -= hv_nbytes(table) - hv_nbytes(y);
        d->backend->gather_rows(d, y, table, ids);
    }
}

/* ---- elementwise ---- */

void hv_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b)
{
    if (CHECK(d, "add", mat(y) && same(y, a) && (same(a, b) || (b.ndim == 1 && vec(b, a.shape[1]))), y, a, b))
        d->backend->add(d, y, a, b);
}

void hv_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act)
{
    if (CHECK(d, "activation", mat(y) && same(y, x) && (unsigned)act < HV_ACTS, y, x))
        d->backend->activation(d, y, x, act);
}

void hv_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up)
{
    if (CHECK(d, "swiglu", mat(y) && same(y, gate) && same(y, up), y, gate, up))
        d->backend->swiglu(d, y, gate, up);
}

/* ---- matrix ---- */

static int linear_fits(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    return mat(x) && mat(y) && x.dtype == y.dtype && w.ndim == 2 && w.shape[1] > 0 && unit(w) && is_weight(w) &&
           y.shape[0] == x.shape[0] && y.shape[1] == w.shape[0] && x.shape[1] == w.shape[1] && wvec(bias, w.shape[0]) &&
           (unsigned)act < HV_ACTS;
}

static void count_linear(struct hv_dev *d, hv_tensor x, hv_tensor w)
{
    d->count.flops += 2 * (uint64_t)x.shape[0] * (uint64_t)x.shape[1] * (uint64_t)w.shape[0];
    count_weight(d, w);
}

void hv_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    if (!CHECK(d, "linear", linear_fits(y, x, w, bias, act), y, x, w, bias))
        return;
    count_linear(d, x, w);
    hv_profile_begin(d, HV_PRODUCTS, 2.0 * (double)x.shape[0] * (double)hv_count(w));
    d->backend->linear(d, y, x, w, bias, act);
    hv_profile_end(d);
}

void hv_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                enum hv_act act)
{
    int ok = n >= 1 && n <= 3;

    for (int i = 0; i < n && ok; i++)
        ok = linear_fits(y[i], x, w[i], bias[i], act) && same(y[i], y[0]) && same(w[i], w[0]) &&
             bias[i].dtype == bias[0].dtype && (y[i].data || d->kind == HV_DRY) && (w[i].data || d->kind == HV_DRY);
    if (!CHECK(d, "linears", ok, y[0], x, w[0], bias[0]))
        return;
    for (int i = 0; i < n; i++)
        count_linear(d, x, w[i]);
    d->count.bytes += (uint64_t)(n - 1) * (hv_nbytes(y[0]) + hv_nbytes(w[0]));
    hv_profile_begin(d, HV_PRODUCTS, 2.0 * n * (double)x.shape[0] * (double)hv_count(w[0]));
    d->backend->linears(d, n, y, x, w, bias, act);
    hv_profile_end(d);
}

/* One byte an element, then a scale a row. */
size_t hv_linear_fp8_scratch(int64_t rows, int64_t width)
{
    return ((size_t)rows * (size_t)width + 255) / 256 * 256 + ((size_t)rows * sizeof(float) + 255) / 256 * 256;
}

/* Keys that query i sees, summed over all queries: the work that attention really has. */
static double visible(const struct hv_attn *a, int64_t lq, int64_t lk)
{
    double sum = 0;

    if (!a->step)
        return (double)lq * (double)lk;
    for (int64_t i = 0; i < lq; i += a->step) {
        const int64_t n = i + a->step + a->offset;
        sum += (double)(n < lk ? n : lk) * (double)(lq - i < a->step ? lq - i : a->step);
    }
    return sum;
}

/* One wide head: scores of a block of queries in f32 and rounded to 16 bits, v with its columns as rows.
 * SAGE keeps k as bytes, with a scale for every 64 keys of a head, and the mean of each column; SAGE_FP8 v too, with a scale a
 * column. Keys count in whole blocks of 64. */
size_t hv_attention_scratch(enum hv_attention kind, int64_t rows, int64_t kv_rows, int heads, int64_t width)
{
    const size_t operands = kind == HV_ATT_SAGE ? 1 : kind == HV_ATT_SAGE_FP8 ? 2 : 0, blocks = ((size_t)kv_rows + 63) / 64;

    if (width > 128 && heads == 1 && rows > 0 && kind != HV_ATT_MATH) {
        const size_t keys = ((size_t)kv_rows + 7) / 8 * 8, block = rows < HV_ATT_ROWS ? (size_t)rows : HV_ATT_ROWS;
        return keys * (block * 6 + (size_t)width * 2) + 3 * 256 + HV_ATT_TRIAL;
    }
    if (!operands || width != 128 || rows <= 0)
        return 0;
    return (size_t)heads * (operands * (blocks * 64 + sizeof(float)) * 128 + blocks * sizeof(float));
}

void hv_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    int ok = mat(o) && mat(q) && mat(k) && mat(v) && same(o, q) && same(k, v) && q.dtype == k.dtype && a->heads > 0 &&
             a->kv_heads > 0 && a->heads % a->kv_heads == 0 && q.shape[1] % a->heads == 0 && k.shape[0] > 0 &&
             q.shape[1] / a->heads * a->kv_heads == k.shape[1] && a->step >= 0 && a->step + a->offset >= (a->step > 0);
    const hv_tensor m = a->key_mask;

    if (is_there(m))
        ok = ok && m.dtype == HV_U8 && m.ndim == 1 && m.shape[0] == k.shape[0] && unit(m);
    if (is_there(a->scratch))
        ok = ok && a->scratch.dtype == HV_BYTES && unit(a->scratch);
    if (!CHECK(d, "attention", ok, o, q, k, v, m, a->scratch))
        return;
    d->count.flops += (uint64_t)(4 * (double)q.shape[1] * visible(a, q.shape[0], k.shape[0]));
    hv_profile_begin(d, HV_ATTENTION, 4 * (double)q.shape[1] * visible(a, q.shape[0], k.shape[0]));
    d->backend->attention(d, o, q, k, v, a);
    hv_profile_end(d);
}

/* ---- norm ---- */

void hv_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps)
{
    if (CHECK(d, "layer_norm", mat(y) && same(y, x) && wvec(weight, x.shape[1]) && wvec(bias, x.shape[1]), y, x, weight, bias))
        d->backend->layer_norm(d, y, x, weight, bias, eps);
}

void hv_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps)
{
    if (CHECK(d, "rms_norm", mat(y) && same(y, x) && wvec(weight, x.shape[1]), y, x, weight))
        d->backend->rms_norm(d, y, x, weight, eps);
}

/* Statistics of x's rows. */
static int stats(hv_tensor stat, hv_tensor x)
{
    return stat.dtype == HV_F32 && stat.ndim == 2 && stat.shape[0] == x.shape[0] && stat.shape[1] == 2 && hv_is_contiguous(stat);
}

void hv_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps)
{
    if (CHECK(d, "row_stats", mat(x) && stats(stat, x), stat, x))
        d->backend->row_stats(d, stat, x, eps);
}

void hv_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale)
{
    const int ok = mat(y) && same(y, x) && stats(stat, x) && is_there(shift) && is_there(scale) && vec(shift, x.shape[1]) &&
                   vec(scale, x.shape[1]);

    if (CHECK(d, "norm_modulate", ok, y, x, stat, shift, scale))
        d->backend->norm_modulate(d, y, x, stat, shift, scale);
}

static int rope_fits(const struct hv_rope *r, int64_t rows, int64_t width)
{
    int64_t half = 0;

    for (int a = 0; a < 3; a++) {
        const hv_tensor c = r->cos[a], s = r->sin[a];
        if (c.ndim != 2 || c.dtype != HV_F32 || !same(c, s) || !unit(c) || !unit(s) || c.shape[0] < r->grid[a])
            return 0;
        half += c.shape[1];
    }
    return 2 * half == width && r->first >= 0 && r->first + rows <= r->grid[0] * r->grid[1] * r->grid[2];
}

void hv_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope)
{
    const int ok = mat(x) && heads > 0 && x.shape[1] % heads == 0 && wvec(weight, x.shape[1] / heads) &&
                   (!rope || rope_fits(rope, x.shape[0], x.shape[1] / heads));

    if (CHECK(d, "qk_norm_rope", ok, x, weight))
        d->backend->qk_norm_rope(d, x, heads, weight, eps, rope);
}

void hv_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin)
{
    const int ok = mat(x) && heads > 0 && x.shape[1] % (2 * heads) == 0 && cos.ndim == 2 && cos.dtype == HV_F32 &&
                   same(cos, sin) && unit(cos) && unit(sin) && cos.shape[0] == x.shape[0] &&
                   cos.shape[1] == x.shape[1] / heads / 2;

    if (CHECK(d, "rope_half", ok, x, cos, sin))
        d->backend->rope_half(d, x, heads, cos, sin);
}

/* ---- residual ---- */

void hv_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y)
{
    if (CHECK(d, "gated_add", mat(x) && same(x, y) && is_there(gate) && vec(gate, x.shape[1]), x, gate, y))
        d->backend->gated_add(d, x, gate, y);
}

void hv_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y)
{
    if (CHECK(d, "masked_add", mat(x) && same(x, y) && is_there(mask) && vec(mask, x.shape[0]), x, mask, y))
        d->backend->masked_add(d, x, mask, y);
}

/* ---- image and video ---- */

static int one_or(int v)
{
    return v ? v : 1;
}

/* Pixels [T, H, W, C] whose channels lie together. */
static int pixels(hv_tensor t)
{
    return t.ndim == 4 && unit(t) && hv_dtype_is_float(t.dtype);
}

/* Output size of a convolution along axis a of x with kernel k. */
static int64_t conv_size(const struct hv_conv *p, int a, int64_t n, int64_t k)
{
    const int up = one_or(p->up[a]), s = one_or(p->stride[a]);

    if (a)
        return (n * up + s - 1) / s;
    return up == 2 ? 2 * (n - 1) : (n - k) / s + 1;
}

void hv_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p)
{
    int ok = pixels(x) && pixels(y) && x.dtype == y.dtype && w.ndim == 5 && hv_is_contiguous(w) && is_weight(w) &&
             vec(bias, w.shape[0]) && (unsigned)p->act < HV_ACTS && y.shape[3] == w.shape[0] &&
             (p->depthwise ? w.shape[1] == 1 && w.shape[0] == x.shape[3] : w.shape[1] == x.shape[3]) &&
             (!is_there(p->residual) || same(p->residual, y));
    double taps = 1;

    for (int a = 0; a < 3 && ok; a++) {
        const int up = one_or(p->up[a]);
        const int64_t size = conv_size(p, a, x.shape[a], w.shape[2 + a]);
        ok = w.shape[2 + a] >= 1 && p->stride[a] >= 0 && (up == 1 || (up == 2 && w.shape[2 + a] == 3 && one_or(p->stride[a]) == 1)) &&
             (a || x.shape[0] >= (up == 2 ? 2 : w.shape[2])) && (y.shape[a] == size || (!a && up == 2 && y.shape[a] == size - 1));
        taps *= up == 2 ? 2 : (double)w.shape[2 + a];
    }
    if (!CHECK(d, "conv", ok, y, x, w, bias, p->residual))
        return;
    d->count.flops += (uint64_t)(2 * taps * (double)w.shape[1] * (double)hv_count(y));
    count_weight(d, w);
    d->backend->conv(d, y, x, w, bias, p);
}

void hv_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x)
{
    const int ok = pixels(x) && sums.ndim == 2 && sums.dtype == HV_F64 && sums.shape[1] == 2 && hv_is_contiguous(sums) &&
                   sums.shape[0] > 0 && x.shape[3] % sums.shape[0] == 0;

    if (CHECK(d, "group_sums", ok, sums, x))
        d->backend->group_sums(d, sums, x);
}

void hv_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                   hv_tensor bias, float eps, enum hv_act act)
{
    const int ok = pixels(x) && pixels(y) && same(y, x) && sums.ndim == 2 && sums.dtype == HV_F64 && sums.shape[1] == 2 &&
                   hv_is_contiguous(sums) && sums.shape[0] > 0 && x.shape[3] % sums.shape[0] == 0 && count >= 1 &&
                   is_there(weight) && is_there(bias) && vec(weight, x.shape[3]) && vec(bias, x.shape[3]) &&
                   (unsigned)act < HV_ACTS;

    if (CHECK(d, "group_norm", ok, y, x, sums, weight, bias))
        d->backend->group_norm(d, y, x, sums, count, weight, bias, eps, act);
}

/* 16 bits an element; 128 outputs by 64 inputs a tile, for every tap of every phase. */
size_t hv_conv_scratch(int64_t co, int64_t ci, const int64_t k[3], const int up[3])
{
    size_t n = (size_t)((co + 127) / 128) * (size_t)((ci + 63) / 64) * 128 * 64 * 2;

    for (int a = 0; a < 3; a++)
        n *= up && up[a] == 2 ? 4 : (size_t)k[a];       /* 2 phases of 2 taps */
    return n;
}

static int64_t pool_size(int64_t n, int k, int s, int pad, int ceil_mode)
{
    return (n + 2 * pad - k + (ceil_mode ? s - 1 : 0)) / s + 1;
}

void hv_max_pool(struct hv_dev *d, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode)
{
    const int ok = x.ndim == 3 && y.ndim == 3 && unit(x) && unit(y) && x.dtype == y.dtype && x.shape[2] == y.shape[2] &&
                   k > 0 && s > 0 && pad >= 0 && 2 * pad <= k && x.shape[0] + 2 * pad >= k && x.shape[1] + 2 * pad >= k &&
                   y.shape[0] == pool_size(x.shape[0], k, s, pad, ceil_mode) &&
                   y.shape[1] == pool_size(x.shape[1], k, s, pad, ceil_mode);

    if (CHECK(d, "max_pool", ok, y, x))
        d->backend->max_pool(d, y, x, k, s, pad, ceil_mode);
}

void hv_upsample2(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
    const int ok = x.ndim == 3 && y.ndim == 3 && unit(x) && unit(y) && x.dtype == y.dtype && y.shape[0] == 2 * x.shape[0] &&
                   y.shape[1] == 2 * x.shape[1] && y.shape[2] == x.shape[2];

    if (CHECK(d, "upsample2", ok, y, x))
        d->backend->upsample2(d, y, x);
}

static int patches(hv_tensor rows, hv_tensor planes, const int p[3])
{
    if (!mat(rows) || planes.ndim != 4 || !unit(planes))
        return 0;
    for (int a = 0; a < 3; a++)
        if (p[a] < 1 || planes.shape[a + 1] % p[a])
            return 0;
    return rows.shape[1] == planes.shape[0] * p[0] * p[1] * p[2] && hv_count(rows) == hv_count(planes);
}

void hv_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    if (CHECK(d, "patchify", patches(y, x, patch), y, x))
        d->backend->patchify(d, y, x, patch);
}

void hv_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    if (CHECK(d, "unpatchify", patches(x, y, patch), y, x))
        d->backend->unpatchify(d, y, x, patch);
}
