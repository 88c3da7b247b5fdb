/* quant.h - matrices in 8 bits: a row of weights is its scale times integers or e4m3 numbers.
 *
 *     I8       s = max|w| / 127      q = clamp(rint(w / s), -127, 127)
 *     F8_E4M3  s = max|w| / 448      q = e4m3(w / s)                     saturating
 *
 * Division and product are single f32 operations, rounding is to nearest, ties to even. A row of zeros has s = 0 and q = 0. */
#ifndef HV_QUANT_H
#define HV_QUANT_H

#include <stddef.h>

#include "core/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The scale of a row; NaN if the row holds a NaN or Inf. t: HV_I8 or HV_F8_E4M3. */
float hv_quant_scale(hv_dtype t, const float *w, size_t n);

/* n finite elements of a row, with the scale of the whole row. */
void hv_quant(hv_dtype t, void *q, const float *w, float scale, size_t n);

/* w = scale * q, rounded to bf16 when deq_bf16 is set. Accepts I8 -128, which other programs write. */
void hv_dequant(float *w, hv_dtype t, const void *q, float scale, int deq_bf16, size_t n);

#ifdef __cplusplus
}
#endif
#endif
