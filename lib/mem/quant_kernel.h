/* quant_kernel.h - the inner loops of quant.c. Every variant gives the same bits: a division, a rounding to nearest even and a
 * clamp are one operation each. The vector variants return how many of the n elements they did: a multiple of their width. */
#ifndef HV_QUANT_KERNEL_H
#define HV_QUANT_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* *max = the largest of itself and the bits of |w|, which order as the numbers do, with Inf and NaN above all others. */
size_t hv_absmax_avx2(uint32_t *max, const float *w, size_t n);
size_t hv_absmax_avx512(uint32_t *max, const float *w, size_t n);

/* q = clamp(rint(w / scale), -127, 127) */
size_t hv_quant_i8_avx2(int8_t *q, const float *w, float scale, size_t n);
size_t hv_quant_i8_avx512(int8_t *q, const float *w, float scale, size_t n);

/* q = e4m3(w / scale), saturating */
size_t hv_quant_e4m3_avx2(uint8_t *q, const float *w, float scale, size_t n);
size_t hv_quant_e4m3_avx512(uint8_t *q, const float *w, float scale, size_t n);

#endif
