#include "mem/quant.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16                /* inner loops of fixed length, which the compiler turns into vectors */

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

float hv_quant_scale(hv_dtype t, const float *w, size_t n)
{
    uint32_t lane[LANES] = {0}, max = 0;
    size_t i = 0;

    assert(t == HV_I8 || t == HV_F8_E4M3);
    /* The bits of |w| order as the numbers do, with Inf and NaN above all others. */
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++) {
            const uint32_t u = bits_of(w[i + (size_t)k]) & 0x7fffffff;
            lane[k] = u > lane[k] ? u : lane[k];
        }
    for (; i < n; i++) {
        const uint32_t u = bits_of(w[i]) & 0x7fffffff;
        max = u > max ? u : max;
    }
    for (int k = 0; k < LANES; k++)
        max = lane[k] > max ? lane[k] : max;
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
    size_t i = 0;

    assert(t == HV_I8 || t == HV_F8_E4M3);
    if (!(scale > 0)) {
        memset(q, 0, n);
        return;
    }
    if (t == HV_I8) {
        for (; i + LANES <= n; i += LANES)
            for (size_t k = 0; k < LANES; k++)
                i8[i + k] = to_i8(w[i + k] / scale);
        for (; i < n; i++)
            i8[i] = to_i8(w[i] / scale);
    } else {
        for (; i + LANES <= n; i += LANES)
            for (size_t k = 0; k < LANES; k++)
                f8[i + k] = to_e4m3(w[i + k] / scale);
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
