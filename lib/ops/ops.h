/* ops.h - the operations: formula and shapes. Each is checked once here, counted, and sent to the device's backend.
 *
 * Legend: R rows, K input width, N output width, H heads, D width of a head, C channels, G groups.
 * Matrices are [rows, columns] with the last stride 1 and any row stride. Activations (x, y, q, ..) have the device's
 * activation dtype: f32 on the cpu, bf16 (or f16, f32) on cuda. Vectors (bias, norm weights, gate, shift, ..) are f32; on cuda
 * bias and norm weights may be bf16 too, as stored. Matrices of weights may be F32, F16, BF16, or I8 and F8_E4M3 with one
 * scale a row; they are used as stored (cuda: fast where they are quantized, or have the dtype of x).
 * An absent optional tensor is HV_NO. y may equal x (same view) where an operation says "in place". Sums are f32 or wider.
 * The result never depends on the number of threads. */
#ifndef HV_OPS_H
#define HV_OPS_H

#include "core/tensor.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_NO ((hv_tensor){0})

enum hv_act { HV_ACT_NONE, HV_ACT_RELU, HV_ACT_SILU, HV_ACT_GELU_TANH, HV_ACT_GELU_ERF, HV_ACT_QUICK_GELU, HV_ACTS };

/* ---- memory ---- */

/* dst (device) = src (host), src (device) to dst (host): dtypes are converted, strides are free. */
void hv_upload(struct hv_dev *d, hv_tensor dst, hv_tensor src);
void hv_download(struct hv_dev *d, hv_tensor dst, hv_tensor src);

/* y = x, same shape, any strides (the last one too), dtypes converted. May not overlap unless equal. */
void hv_copy(struct hv_dev *d, hv_tensor y, hv_tensor x);
void hv_fill(struct hv_dev *d, hv_tensor y, float value);

/* y = the values of w, a matrix of weights as stored: scale[row] * q, rounded to the dtype of y. y [N, K] contiguous. */
void hv_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w);

/* y[r] = table[ids[r]]: y [R, K], table [V, K] of any float dtype, ids [R] on the host, each in 0..V-1. */
void hv_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids);

/* ---- elementwise; y may equal a or x ---- */

void hv_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b);           /* y = a + b, [R, K]; b may be [K]: every row */
void hv_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act);  /* y = act(x) */
void hv_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up);    /* y = silu(gate) * up */

/* ---- matrix ---- */

/* y = act(x w^T + bias): x [R, K], w [N, K], bias [N] or HV_NO, y [R, N]. y may not overlap x. */
void hv_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);

/* n products of one x, y[i] = act(x w[i]^T + bias[i]), all of one shape; bias[i] HV_NO for all or for none. Where y, w and bias
 * are equally spaced in memory a GPU computes them as one batch; the result is that of n calls of hv_linear. n up to 3. */
void hv_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                enum hv_act act);

/* Bytes of d->scratch that products use: the first HV_LINEAR_SCRATCH are workspace, which may be less or none; behind them
 * hv_linear_fp8_scratch holds x of up to `rows` rows and `width` columns in fp8, where d->fp8 is set. Needs no device. */
#define HV_LINEAR_SCRATCH ((size_t)32 << 20)
size_t hv_linear_fp8_scratch(int64_t rows, int64_t width);

/* Bytes of d->scratch in which a GPU packs the weights of a convolution; less, and it computes without tensor cores. k, up: kernel and
 * hv_conv.up. Needs no device. */
size_t hv_conv_scratch(int64_t co, int64_t ci, const int64_t k[3], const int up[3]);

struct hv_attn {
    int     heads, kv_heads;            /* head h reads k, v of head h / (heads/kv_heads) */
    float   scale;                      /* of q k^T, usually D^-1/2 */
    int64_t step, offset;               /* step 0: every query sees every key; else query i sees the first
                                           min((i / step + 1) * step + offset, Lk) keys: 1 causal, P causal by frames of P */
    hv_tensor key_mask;                 /* u8 [Lk], 0: nobody sees this key; or HV_NO. Every query must see a key */
    hv_tensor scratch;                  /* HV_BYTES, hv_attention_scratch of them or more; or HV_NO where that is 0 */
};

/* Bytes that a back end needs beside q, k, v and o. Needs no device. kv_rows: Lk. One head wider than 128 goes without them too,
 * slowly. */
#define HV_ATT_ROWS  1024               /* queries of such a head at a time */
#define HV_ATT_TRIAL ((size_t)2 << 20)  /* room in which a GPU tries the quick way once */
size_t hv_attention_scratch(enum hv_attention kind, int64_t rows, int64_t kv_rows, int heads, int64_t width);

/* o = softmax(scale q k^T) v per head: q, o [Lq, H*D], k, v [Lk, kv_heads*D]. o may equal q (but for HV_ATT_CUDNN, which then
 * takes HV_ATT_FLASH). Never an Lq x Lk matrix. The back end is that of the device (dev.h); shapes that it does not take
 * (masks, steps, widths other than 128, short queries) go to one that does. */
void hv_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);

/* ---- norm ---- over the columns of each row; biased variance, two passes */

/* y = (x - mean) / sqrt(var + eps) * weight + bias; weight, bias [K] or HV_NO. In place. */
void hv_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps);

/* y = x / sqrt(mean(x^2) + eps) * weight. In place. */
void hv_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps);

/* stat[r] = (mean, 1 / sqrt(var + eps)) of row r: stat f32 [R, 2]. */
void hv_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps);

/* y = layer_norm(x) * (1 + scale) + shift; scale, shift [K], stat of hv_row_stats. In place. */
void hv_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale);

/* Rotary tables of an image grid, one pair of tables an axis: cos[a], sin[a] [extent_a, D_a/2]. Row r of the tensor is token
 * first + r of the grid, time slowest: its angles are those of its time, row and column, in this order. */
struct hv_rope {
    hv_tensor cos[3], sin[3];
    int64_t   grid[3];                  /* extents: time, rows, columns */
    int64_t   first;
};

/* Per row and head, in place on x [R, H*D]: x = rms_norm(x, eps) * weight [D] (HV_NO: no norm); then, if rope is not NULL,
 * pairs (2m, 2m+1) turn by the token's angle m: x0' = x0 cos - x1 sin, x1' = x1 cos + x0 sin. */
void hv_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope);

/* Per row and head, in place on x [R, H*D]: pairs (i, i + D/2) turn by the row's angle i: cos, sin [R, D/2]. */
void hv_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin);

/* ---- residual ---- in place on x [R, K] */

void hv_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y);  /* x += gate[column] * y */
void hv_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y); /* x += mask[row] * y, mask [R] */

/* ---- image and video ---- channels last: x [T, H, W, C]; frames, rows and pixels may be strided, channels may not */

enum hv_pad { HV_PAD_ZERO, HV_PAD_REPLICATE };

struct hv_conv {
    int         stride[3];              /* time, rows, columns; 0 reads as 1 */
    int         up[3];                  /* nearest upsampling of x before the convolution, 1 or 2; 0 reads as 1 */
    enum hv_pad pad;                    /* of rows and columns, kernel/2 on both sides */
    int         depthwise;              /* 1: w [C, 1, kt, kh, kw], output channel c reads input channel c */
    enum hv_act act;
    hv_tensor   residual;               /* HV_NO, or of y's shape and added after act; may be y itself */
};

/* y = act(conv(x, w) + bias) + residual. w [Co, Ci, kt, kh, kw], bias [Co] or HV_NO.
 * In time nothing is padded: a causal layer hands over its kt - 1 frames of history in front of x.
 *   up 1:       y has (T - kt) / stride + 1 frames.
 *   up[0] = 2:  x is history (1 frame) and T - 1 frames k; y has 2 (T - 1) frames, those of upsampled times 2k-1 and 2k,
 *               where u[2k-1] = u[2k] = x[k] (vae.md section 4); computed with summed weights, 2 taps an axis. y may have one
 *               frame less: then the first is left out, as at the start of a video (x[-1] = x[0], which gives frames 0, 1, ..).
 * Rows and columns: ceil(size * up / stride). y may not overlap x. */
void hv_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p);

/* sums[g] += (sum, sum of squares) of the channels of group g over all of x [T, H, W, C]: sums f64 [G, 2]. Frames are added
 * one after the other: summing a video in parts gives the bits of summing it at once. */
void hv_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x);

/* y = act((x - mean_g) / sqrt(var_g + eps) * weight[c] + bias[c]) from sums over `count` values a group. In place. */
void hv_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                   hv_tensor bias, float eps, enum hv_act act);

/* Maximum over k x k windows, stride s; pad cells on both sides count as -inf; the size is ceil((H + 2 pad - k) / s) + 1
 * when `ceil_mode`, else floor. x, y [H, W, C]. */
void hv_max_pool(struct hv_dev *d, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode);

/* y[i][j] = x[i / 2][j / 2]: x [H, W, C], y [2H, 2W, C]. */
void hv_upsample2(struct hv_dev *d, hv_tensor y, hv_tensor x);

/* y[(t, i, j)][(c, a, b, e)] = x[c][t pt + a][i ph + b][j pw + e]: x [C, T, H, W] planes, y [T/pt * H/ph * W/pw, C pt ph pw].
 * The patch is (pt, ph, pw). unpatchify is its inverse. */
void hv_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);
void hv_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);

#ifdef __cplusplus
}
#endif
#endif
