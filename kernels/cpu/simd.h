/* simd.h - the loops that have a variant for each instruction set. simd.inc is their text, compiled by simd_base.c,
 * simd_avx2.c and simd_avx512.c; cpu_open chooses one table. */
#ifndef HV_SIMD_H
#define HV_SIMD_H

#include "ops/backend.h"

#define KR 8                            /* rows and columns of the tile that `product` computes */
#define KC 48

struct cpu_simd {
    const char *name;

    /* dst[i] = src[i] as f32, times scale for quantized dtypes, then rounded to bf16 when told. */
    void (*widen)(float *dst, hv_dtype t, const void *src, int64_t n, float scale, int round_bf16);

    void (*act)(float *y, const float *x, int64_t n, enum hv_act act);                 /* y may be x */
    void (*swiglu)(float *y, const float *gate, const float *up, int64_t n);
    void (*add)(float *y, const float *a, const float *b, int64_t n);
    void (*mul_add)(float *x, const float *g, float m, const float *y, int64_t n);      /* x += (g ? g[i] : m) y */

    /* One row. y = (x - mean) / sqrt(var + eps) * (w[i] + more) + b[i]; w, b may be NULL (1 - more and 0). y may be x. */
    void (*norm)(float *y, const float *x, int64_t n, const float *w, float more, const float *b, float eps);
    void (*rms)(float *y, const float *x, int64_t n, const float *w, float eps);

    /* The same in two steps: stat = (mean, 1 / sqrt(var + eps)); y = (x - mean) * rstd * (w[i] + 1) + b[i]. */
    void (*stats)(float stat[2], const float *x, int64_t n, float eps);
    void (*modulate)(float *y, const float *x, int64_t n, const float stat[2], const float *w, const float *b);

    /* x[i] = x[i] c[i] + x[i ^ 1] s[i], and the same with i + half in place of i ^ 1 (x[i + half] c[i] + x[i] s[i]). */
    void (*turn_pairs)(float *x, const float *c, const float *s, int64_t n);
    void (*turn_halves)(float *x, const float *c, const float *s, int64_t half);

    /* Sum of x[i] w[i], w as stored, without its scale. */
    float (*dot)(const float *x, hv_dtype t, const void *w, int64_t n);

    /* y[r * step] += sum of x[r * ldx + i] w[i], r < rows <= 4 */
    void (*dots)(float *y, int64_t step, const float *x, int64_t ldx, int64_t rows, const float *w, int64_t n);

    /* dst[j * ldd + i] = m src[i * lds + j], i < rows, j < cols */
    void (*transpose)(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows, int64_t cols, float m);

    /* c[r][j] = alpha[j] c[r][j] + sum over i of a[i * KR + r] b[i * KC + j], r < KR, j < KC, i < n. alpha NULL: c is only written. */
    void (*product)(float *c, const float *a, const float *b, int64_t n, const float *alpha);

    /* Scores s [n][KC] of n keys and KC queries become 2^(s - top); top, sum and shrink [KC] are the running maximum, the
     * running sum and the factor 2^(old top - new top) of what was summed before. */
    void (*softmax)(float *s, int64_t n, float *top, float *sum, float *shrink);
};

extern const struct cpu_simd cpu_simd_base, cpu_simd_avx2, cpu_simd_avx512;

#endif
