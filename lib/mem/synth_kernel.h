/* synth_kernel.h - the inner loop of synth.c: elements i = 0 .. n-1 of
 *
 *     x = finalizer(state + i * 0x9E3779B97F4A7C15)      r = 2 (x >> 40) / 2^24 - 1      dst[i] = T((add + mul * r) * gain)
 *
 * T: F32, F16 or BF16. Every variant gives the same bits: mul * r, + add, * gain are each one f32 operation. */
#ifndef HV_SYNTH_KERNEL_H
#define HV_SYNTH_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"

struct hv_affine {
    float mul, add, gain;
};

#define HV_SYNTH_STEP 0x9E3779B97F4A7C15u
#define HV_SYNTH_MIX1 0xBF58476D1CE4E5B9u
#define HV_SYNTH_MIX2 0x94D049BB133111EBu

void hv_synth_scalar(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a);

/* Return how many of the n elements they made: a multiple of their width. */
size_t hv_synth_avx2(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a);
size_t hv_synth_avx512(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a);

#endif
