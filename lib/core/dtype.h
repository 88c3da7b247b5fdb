/* dtype.h - element types: size, name, conversion of a scalar and of an array.
 * Rounding to a narrower type is to nearest, ties to even; f8 saturates (+-448 for e4m3), as the reference's does. */
#ifndef HV_DTYPE_H
#define HV_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    HV_NONE, HV_BOOL, HV_U8, HV_I8, HV_F8_E4M3, HV_F8_E5M2, HV_U16, HV_I16, HV_F16, HV_BF16,
    HV_U32, HV_I32, HV_F32, HV_U64, HV_I64, HV_F64, HV_DTYPES
} hv_dtype;

#define HV_BYTES HV_U8          /* a plan row that is scratch, counted in bytes */

/* Bytes of one element; 0 for HV_NONE. */
size_t hv_dtype_size(hv_dtype t);

/* The safetensors name, "BF16"; "?" for HV_NONE. */
const char *hv_dtype_name(hv_dtype t);

/* The dtype of a safetensors name, HV_NONE if there is none. */
hv_dtype hv_dtype_parse(const char *name);

/* 1 for F8, F16, BF16, F32 and F64. */
int hv_dtype_is_float(hv_dtype t);

/* Array conversions. Any dtype widens to f32 (64-bit integers and f64 round to nearest). Integers from f32: rounded to
 * nearest even and saturated; NaN becomes 0. src may be unaligned; ranges may not overlap unless equal in size. */
void hv_to_f32(float *dst, hv_dtype t, const void *src, size_t n);
void hv_from_f32(hv_dtype t, void *dst, const float *src, size_t n);

float    hv_f16_to_f32(uint16_t h);
uint16_t hv_f32_to_f16(float f);
float    hv_bf16_to_f32(uint16_t h);
uint16_t hv_f32_to_bf16(float f);
float    hv_e4m3_to_f32(uint8_t b);
uint8_t  hv_f32_to_e4m3(float f);       /* saturating; NaN stays NaN (0x7f) */
float    hv_e5m2_to_f32(uint8_t b);

#ifdef __cplusplus
}
#endif
#endif
