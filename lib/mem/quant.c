#include "mem/quant.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "mem/quant_kernel.h"

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    return u;
}

static float of_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, 4);
    return f;
}

/* 2: AVX-512, 1: AVX2, 0: neither. */
static int vectors(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    return __builtin_cpu_supports("avx2") ? 1 : 0;
#else
    return 0;
#endif
}

float hv_quant_scale(hv_dtype t, const float *w, size_t n)
{
    const int v = vectors();
    uint32_t max = 0;

    assert(t == HV_I8 || t == HV_F8_E4M3);
    for (size_t i = v == 2 ? hv_absmax_avx512(&max, w, n) : v ? hv_absmax_avx2(&max, w, n) : 0; i < n; i++) {
        const uint32_t u = bits_of(w[i]) & 0x7fffffff;
        max = u > max ? u : max;
    }
    if (max >= 0x7f800000)
        return NAN;
    return of_bits(max) / (t == HV_I8 ? 127.0f : 448.0f);
}

/* rint without a call: below 2^22 the sum has no bits left for a fraction. */
static float nearest(float x)
{
    const float big = 12582912.0f;
    const float sum = x + big;

    return sum - big;
}

static int8_t to_i8(float x)
{
    x = x < -127 ? -127 : x > 127 ? 127 : x;
    return (int8_t)nearest(x);
}

static uint8_t to_e4m3(float x)
{
    const uint32_t u = bits_of(x), sign = u >> 24 & 0x80;
    uint32_t a = u & 0x7fffffff;
    const uint32_t small = (uint32_t)(int32_t)nearest((a < 0x3c800000 ? of_bits(a) : 0.0f) * 512.0f);

    a = a > 0x43e80000 ? 0x43e80000 : a;                        /* 464: what rounds above 448 saturates */
    a = (a + 0x7ffff + (a >> 20 & 1)) >> 20;
    a = a > 1086 ? 1086 : a;                                    /* 448 = 0x7e + (120 << 3) */
    return (uint8_t)(sign | (a < 968 ? small : a - 960));       /* 968: 2^-6, the least normal number */
}

void hv_quant(hv_dtype t, void *q, const float *w, float scale, size_t n)
{
    int8_t *i8 = q;
    uint8_t *f8 = q;
    const int v = vectors();
    size_t i = 0;

    assert(t == HV_I8 || t == HV_F8_E4M3);
    if (!(scale > 0)) {
        memset(q, 0, n);
        return;
    }
    if (t == HV_I8) {
        i = v == 2 ? hv_quant_i8_avx512(q, w, scale, n) : v ? hv_quant_i8_avx2(q, w, scale, n) : 0;
        for (; i < n; i++)
            i8[i] = to_i8(w[i] / scale);
    } else {
        i = v == 2 ? hv_quant_e4m3_avx512(q, w, scale, n) : v ? hv_quant_e4m3_avx2(q, w, scale, n) : 0;
        for (; i < n; i++)
            f8[i] = to_e4m3(w[i] / scale);
    }
}

void hv_dequant(float *w, hv_dtype t, const void *q, float scale, int deq_bf16, size_t n)
{
    hv_to_f32(w, t, q, n);
    for (size_t i = 0; i < n; i++)
        w[i] = scale * w[i];
    for (size_t i = 0; i < n && deq_bf16; i++)
        w[i] = hv_bf16_to_f32(hv_f32_to_bf16(w[i]));
}
