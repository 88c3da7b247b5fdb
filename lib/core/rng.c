#include "core/rng.h"

#include <assert.h>
#include <math.h>

#define PI 3.14159265358979323846

static void store(hv_dtype t, void *dst, size_t i, float v)
{
    hv_from_f32(t, (char *)dst + i * hv_dtype_size(t), &v, 1);
}

/* ---- cuda ---- */

void hv_rng_cuda(struct hv_rng *g, uint64_t seed, int64_t sm, int64_t tps)
{
    assert(sm >= 1 && tps >= 256);
    *g = (struct hv_rng){.kind = HV_RNG_CUDA, .seed = seed, .sm = sm, .tps = tps};
}

static void philox(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int i = 0; i < 10; i++) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * c[0], p1 = (uint64_t)0xCD9E8D57 * c[2];
        const uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k1,
                                  (uint32_t)p0};
        for (int j = 0; j < 4; j++)
            c[j] = next[j];
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

/* Two normals from two words. The GPU fuses the products and sums that give u and v. */
static void box_muller(uint32_t x, uint32_t y, float out[2])
{
    const float a = 2.3283064e-10f, b = a * 6.2831855f;
    const float u = fmaf((float)x, a, a / 2), v = fmaf((float)y, b, b / 2);
    const float s = sqrtf(-2 * (float)log((double)u));

    out[0] = s * (float)sin((double)v);
    out[1] = s * (float)cos((double)v);
}

/* Thread i of T makes values q * 4T + part * T + i, part = 0..3, of round q. */
static void normal_cuda(struct hv_rng *g, hv_dtype t, void *dst, size_t n)
{
    const uint64_t blocks = (n + 255) / 256, most = (uint64_t)(g->sm * (g->tps / 256));
    const uint64_t T = 256 * (blocks < most ? blocks : most), rounds = (n - 1) / (4 * T) + 1;

    for (uint64_t q = 0; q < rounds; q++)
        for (uint64_t i = 0; i < T && q * 4 * T + i < n; i++) {
            const uint64_t count = g->offset / 4 + q;
            uint32_t c[4] = {(uint32_t)count, (uint32_t)(count >> 32), (uint32_t)i, (uint32_t)(i >> 32)};
            float v[4];
            philox(c, g->seed);
            box_muller(c[0], c[1], v);
            box_muller(c[2], c[3], v + 2);
            for (uint64_t part = 0, e = q * 4 * T + i; part < 4 && e < n; part++, e += T)
                store(t, dst, e, v[part]);
        }
    g->offset += 4 * rounds;
}

/* ---- cpu ---- */

void hv_rng_cpu(struct hv_rng *g, uint64_t seed)
{
    *g = (struct hv_rng){.kind = HV_RNG_CPU, .seed = seed, .at = 624};
    g->mt[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        g->mt[i] = 1812433253u * (g->mt[i - 1] ^ g->mt[i - 1] >> 30) + i;
}

static void refill(struct hv_rng *g)
{
    for (int k = 0; k < 624; k++) {
        const uint32_t y = (g->mt[k] & 0x80000000) | (g->mt[(k + 1) % 624] & 0x7fffffff);
        g->mt[k] = g->mt[(k + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0df : 0);
    }
    g->at = 0;
}

uint32_t hv_rng_u32(struct hv_rng *g)
{
    if (g->at == 624)
        refill(g);
    uint32_t y = g->mt[g->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return y ^ y >> 18;
}

static double uniform53(struct hv_rng *g)
{
    const uint64_t hi = hv_rng_u32(g), lo = hv_rng_u32(g);

    return (double)((hi << 32 | lo) & (((uint64_t)1 << 53) - 1)) * 0x1p-53;
}

static double pair(struct hv_rng *g)
{
    if (g->pending) {
        g->pending = 0;
        return g->next;
    }
    const double u1 = uniform53(g), u2 = uniform53(g), r = sqrt(-2 * log1p(-u2)), a = 2 * PI * u1;
    g->next = r * sin(a);
    g->pending = 1;
    return r * cos(a);
}

static float rounded(hv_dtype t, double v)
{
    const float f = (float)v;

    return t == HV_F16 ? hv_f16_to_f32(hv_f32_to_f16(f)) : t == HV_BF16 ? hv_bf16_to_f32(hv_f32_to_bf16(f)) : f;
}

/* One word a value, as many bits as the dtype's significand has. */
static float uniform(struct hv_rng *g, hv_dtype t)
{
    const int bits = t == HV_F16 ? 11 : t == HV_BF16 ? 8 : 24;

    return ldexpf((float)(hv_rng_u32(g) & ((1u << bits) - 1)), -bits);
}

/* Eight pairs (j, j + 8), every intermediate rounded to t. */
static void box16(hv_dtype t, float d[16])
{
    /* The narrow types multiply by 2 pi in f64, f32 by its own 2 pi. */
    const double turn = t == HV_F32 ? (double)(float)(2 * PI) : 2 * PI;

    for (int j = 0; j < 8; j++) {
        const float u = rounded(t, 1 - (double)d[j]), l = rounded(t, log((double)u));
        const float r = rounded(t, (double)sqrtf(rounded(t, -2 * (double)l))), a = rounded(t, turn * (double)d[j + 8]);
        d[j] = rounded(t, (double)(r * rounded(t, cos((double)a))));
        d[j + 8] = rounded(t, (double)(r * rounded(t, sin((double)a))));
    }
}

static void put16(hv_dtype t, void *dst, size_t at, float d[16])
{
    box16(t, d);
    for (size_t j = 0; j < 16; j++)
        store(t, dst, at + j, d[j]);
}

/* All n uniforms come first, then the transform; a tail is made anew over the last 16 values. */
static void normal_cpu(struct hv_rng *g, hv_dtype t, void *dst, size_t n)
{
    float d[16];
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++)
            d[j] = uniform(g, t);
        put16(t, dst, i, d);
    }
    if (i == n)
        return;
    for (; i < n; i++)
        hv_rng_u32(g);
    for (int j = 0; j < 16; j++)
        d[j] = uniform(g, t);
    put16(t, dst, n - 16, d);
}

void hv_rng_normal(struct hv_rng *g, hv_dtype t, void *dst, size_t n)
{
    assert(t == HV_F32 || t == HV_F16 || t == HV_BF16);
    if (!n)
        return;
    if (g->kind == HV_RNG_CUDA)
        normal_cuda(g, t, dst, n);
    else if (n >= 16)
        normal_cpu(g, t, dst, n);
    else
        for (size_t i = 0; i < n; i++)
            store(t, dst, i, (float)pair(g));
}
