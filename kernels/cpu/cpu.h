/* cpu.h - what the files of the CPU backend share.
 *
 * Activations are f32. Work is cut into pieces whose number and size follow from the shapes alone, and each piece is computed
 * by one thread in a fixed order: the result has the same bits for any number of threads. */
#ifndef HV_CPU_H
#define HV_CPU_H

#include <omp.h>

#include "ops/backend.h"
#include "simd.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CPU_SCRATCH ((size_t)4 << 20)   /* bytes a thread may use; pages count when touched: keep to what is needed */

struct cpu {
    char *scratch;                      /* threads * CPU_SCRATCH, mapped at open */
};

/* The calling thread's CPU_SCRATCH bytes, aligned to a page. Inside a parallel region of hv_dev.threads or outside of one. */
static inline void *cpu_scratch(const struct hv_dev *d)
{
    return ((const struct cpu *)d->impl)->scratch + (size_t)omp_get_thread_num() * CPU_SCRATCH;
}

/* Elements of the dimensions before the last: a tensor [.., K] seen as rows of K. */
static inline int64_t cpu_rows(const hv_tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i + 1 < t->ndim; i++)
        n *= t->shape[i];
    return n;
}

/* Offset in elements of row r of that view. */
static inline int64_t cpu_row(const hv_tensor *t, int64_t r)
{
    int64_t at = 0;

    for (int i = t->ndim - 2; i > 0; i--) {
        at += r % t->shape[i] * t->stride[i];
        r /= t->shape[i];
    }
    return t->ndim > 1 ? at + r * t->stride[0] : at;
}

static inline float *cpu_f32(const hv_tensor *t, int64_t row)
{
    return (float *)t->data + cpu_row(t, row);
}

static inline int64_t cpu_width(const hv_tensor *t)
{
    return t->ndim ? t->shape[t->ndim - 1] : 1;
}

/* The loops for this machine. */
const struct cpu_simd *cpu_simd(void);

/* dst[i] = w[row][col + i], i < n, of any dtype; quantized rows times their scale. w is 2-D. */
void cpu_widen(float *dst, const hv_tensor *w, int64_t row, int64_t col, int64_t n);

/* y[i] = act(x[i]); y may be x. */
void cpu_act(float *y, const float *x, int64_t n, enum hv_act act);

/* The table's entries. */
void cpu_copy(struct hv_dev *d, hv_tensor y, hv_tensor x);
void cpu_fill(struct hv_dev *d, hv_tensor y, float value);
void cpu_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w);
void cpu_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids);
void cpu_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b);
void cpu_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act);
void cpu_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up);
void cpu_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);
void cpu_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                 enum hv_act act);
void cpu_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
void cpu_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps);
void cpu_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps);
void cpu_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps);
void cpu_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale);
void cpu_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope);
void cpu_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin);
void cpu_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y);
void cpu_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y);
void cpu_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p);
void cpu_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x);
void cpu_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                    hv_tensor bias, float eps, enum hv_act act);
void cpu_max_pool(struct hv_dev *d, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode);
void cpu_upsample2(struct hv_dev *d, hv_tensor y, hv_tensor x);
void cpu_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);
void cpu_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);

#ifdef __cplusplus
}
#endif
#endif
