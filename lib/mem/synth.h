/* synth.h - synthetic weights: every value follows from (seed, tensor name, index) alone, so that any program can make the
 * same model at any size.
 *
 *     h = fnv1a64(name) + seed * 0xD1B54A32D192ED03
 *     x = splitmix64_finalizer(h + (i + 1) * 0x9E3779B97F4A7C15)       i: row-major index
 *     r = 2 (x >> 40) / 2^24 - 1                                       in [-1, 1), exact in f32
 *     2 dimensions or more: r * f32(sqrt(3 / fan_in)), fan_in = product of shape[1:]
 *     1 or 0 dimensions: 1 + 0.1 r if the name ends in ".weight", else 0.02 r
 *
 * Each product and sum is one f32 operation. */
#ifndef HV_SYNTH_H
#define HV_SYNTH_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values first .. first+n-1 of the tensor as f32. */
void hv_synth(float *dst, const char *name, int ndim, const int64_t *shape, uint64_t seed, uint64_t first, size_t n);

/* The same rounded to a dtype; F32, F16 and BF16 at memory speed (AVX-512 or AVX2 where there is one). gain: 0, or what the
 * values of 4-dimensional tensors that end in ".weight" are multiplied by, in f32, before they are rounded. */
void hv_synth_as(hv_dtype t, void *dst, const char *name, int ndim, const int64_t *shape, uint64_t seed, float gain,
                 uint64_t first, size_t n);

/* A synthetic input tensor: r itself. */
void hv_synth_activation(float *dst, const char *name, uint64_t seed, size_t n);

#ifdef __cplusplus
}
#endif
#endif
