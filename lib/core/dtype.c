#include "core/dtype.h"

#include <math.h>
#include <string.h>

static const struct { const char *name; uint8_t size, is_float; } info[HV_DTYPES] = {
    [HV_NONE] = {"?", 0, 0},
    [HV_BOOL] = {"BOOL", 1, 0},       [HV_U8] = {"U8", 1, 0},           [HV_I8] = {"I8", 1, 0},
    [HV_F8_E4M3] = {"F8_E4M3", 1, 1}, [HV_F8_E5M2] = {"F8_E5M2", 1, 1}, [HV_U16] = {"U16", 2, 0},
    [HV_I16] = {"I16", 2, 0},         [HV_F16] = {"F16", 2, 1},         [HV_BF16] = {"BF16", 2, 1},
    [HV_U32] = {"U32", 4, 0},         [HV_I32] = {"I32", 4, 0},         [HV_F32] = {"F32", 4, 1},
    [HV_U64] = {"U64", 8, 0},         [HV_I64] = {"I64", 8, 0},         [HV_F64] = {"F64", 8, 1},
};

size_t hv_dtype_size(hv_dtype t)
{
    return info[t].size;
}

const char *hv_dtype_name(hv_dtype t)
{
    return info[t].name;
}

int hv_dtype_is_float(hv_dtype t)
{
    return info[t].is_float;
}

hv_dtype hv_dtype_parse(const char *name)
{
    for (int t = HV_NONE + 1; t < HV_DTYPES; t++)
        if (!strcmp(name, info[t].name))
            return (hv_dtype)t;
    return HV_NONE;
}

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

float hv_bf16_to_f32(uint16_t h)
{
    return of_bits((uint32_t)h << 16);
}

uint16_t hv_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);

    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);                      /* quiet the NaN: rounding could turn it into Inf */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float hv_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff;

    if (e == 31)
        return of_bits(sign | 0x7f800000 | m << 13);
    if (e)
        return of_bits(sign | (e + 112) << 23 | m << 13);
    return of_bits(sign | bits_of((float)m * 0x1p-24f));
}

/* Rounds |f| to a binary float with `mant` mantissa bits and least normal exponent `emin`; exact, in f64. */
static double round_to(double a, int mant, int emin)
{
    int e;

    frexp(a, &e);
    e--;
    if (e < emin)
        e = emin;
    return ldexp(rint(ldexp(a, mant - e)), e - mant);
}

uint16_t hv_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;

    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (a >= 0x477ff000)                                        /* 65520 and above rounds to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) {                                       /* below 2^-14: subnormal steps of 2^-24 */
        float v = of_bits(a) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)rintf(v));
    }
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

float hv_e4m3_to_f32(uint8_t b)
{
    int e = b >> 3 & 15, m = b & 7;
    float v;

    if ((b & 0x7f) == 0x7f)
        return of_bits(0x7fc00000 | (uint32_t)(b & 0x80) << 24);
    v = e ? ldexpf((float)(8 + m), e - 10) : (float)m * 0x1p-9f;
    return b & 0x80 ? -v : v;
}

float hv_e5m2_to_f32(uint8_t b)
{
    return hv_f16_to_f32((uint16_t)(b << 8));
}

uint8_t hv_f32_to_e4m3(float f)
{
    uint8_t sign = (uint8_t)(bits_of(f) >> 24 & 0x80);
    double a = fabs((double)f);
    int e;

    if (isnan(f))
        return (uint8_t)(sign | 0x7f);
    a = round_to(a, 3, -6);
    if (a >= 448)
        return (uint8_t)(sign | 0x7e);
    if (a < 0x1p-6)
        return (uint8_t)(sign | (int)(a * 0x1p9));
    frexp(a, &e);
    e--;
    return (uint8_t)(sign | (e + 7) << 3 | ((int)ldexp(a, 3 - e) - 8));
}

static uint8_t f32_to_e5m2(float f)
{
    uint8_t sign = (uint8_t)(bits_of(f) >> 24 & 0x80);
    double a;

    if (isnan(f))
        return (uint8_t)(sign | 0x7f);
    a = round_to(fabs((double)f), 2, -14);
    if (a > 57344)
        a = 57344;
    return (uint8_t)(sign | hv_f32_to_f16((float)a) >> 8);
}

#define WIDEN(T, EXPR)                                                                                                 \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        T v;                                                                                                           \
        memcpy(&v, (const char *)src + i * sizeof(T), sizeof(T));                                                      \
        dst[i] = (EXPR);                                                                                               \
    }                                                                                                                  \
    break

void hv_to_f32(float *dst, hv_dtype t, const void *src, size_t n)
{
    switch (t) {
    case HV_F32: memmove(dst, src, n * 4); break;
    case HV_BF16: WIDEN(uint16_t, hv_bf16_to_f32(v));
    case HV_F16: WIDEN(uint16_t, hv_f16_to_f32(v));
    case HV_F8_E4M3: WIDEN(uint8_t, hv_e4m3_to_f32(v));
    case HV_F8_E5M2: WIDEN(uint8_t, hv_e5m2_to_f32(v));
    case HV_BOOL: WIDEN(uint8_t, (float)(v != 0));
    case HV_U8: WIDEN(uint8_t, (float)v);
    case HV_I8: WIDEN(int8_t, (float)v);
    case HV_U16: WIDEN(uint16_t, (float)v);
    case HV_I16: WIDEN(int16_t, (float)v);
    case HV_U32: WIDEN(uint32_t, (float)v);
    case HV_I32: WIDEN(int32_t, (float)v);
    case HV_U64: WIDEN(uint64_t, (float)v);
    case HV_I64: WIDEN(int64_t, (float)v);
    case HV_F64: WIDEN(double, (float)v);
    case HV_NONE: case HV_DTYPES: break;
    }
}

static double saturate(float f, double lo, double hi)
{
    double v = rint((double)f);

    return isnan(v) ? 0 : v < lo ? lo : v > hi ? hi : v;
}

#define NARROW(T, EXPR)                                                                                                \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        const float f = src[i];                                                                                        \
        const T v = (T)(EXPR);                                                                                         \
        memcpy((char *)dst + i * sizeof(T), &v, sizeof(T));                                                            \
    }                                                                                                                  \
    break

void hv_from_f32(hv_dtype t, void *dst, const float *src, size_t n)
{
    switch (t) {
    case HV_F32: memmove(dst, src, n * 4); break;
    case HV_BF16: NARROW(uint16_t, hv_f32_to_bf16(f));
    case HV_F16: NARROW(uint16_t, hv_f32_to_f16(f));
    case HV_F8_E4M3: NARROW(uint8_t, hv_f32_to_e4m3(f));
    case HV_F8_E5M2: NARROW(uint8_t, f32_to_e5m2(f));
    case HV_BOOL: NARROW(uint8_t, f != 0);
    case HV_U8: NARROW(uint8_t, saturate(f, 0, 255));
    case HV_I8: NARROW(int8_t, saturate(f, -128, 127));
    case HV_U16: NARROW(uint16_t, saturate(f, 0, 65535));
    case HV_I16: NARROW(int16_t, saturate(f, -32768, 32767));
    case HV_U32: NARROW(uint32_t, saturate(f, 0, 4294967295.0));
    case HV_I32: NARROW(int32_t, saturate(f, -2147483648.0, 2147483647.0));
    case HV_U64: NARROW(uint64_t, saturate(f, 0, 18446742974197923840.0));
    case HV_I64: NARROW(int64_t, saturate(f, -9223372036854775808.0, 9223371487098961920.0));
    case HV_F64: NARROW(double, (double)f);
    case HV_NONE: case HV_DTYPES: break;
    }
}
