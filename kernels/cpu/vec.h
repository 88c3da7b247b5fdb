/* vec.h - VL floats at a time, under one name for AVX-512 (16), AVX2 (8) and plain C (1); chosen by the flags of the file that
 * includes it. Loads and stores are unaligned; the _n forms touch n < VL elements and read the others as 0.
 * Minimum and maximum give their second argument when one is NaN. */
#ifndef HV_VEC_H
#define HV_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/dtype.h"

#if defined(__AVX512F__)

#include <immintrin.h>

#define VL 16
typedef __m512 vf;

static inline __mmask16 v_mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf v_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(v_mask(n), p); }
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline void v_store_n(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, v_mask(n), a); }
static inline vf v_set(float a) { return _mm512_set1_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }               /* a 2^n, n whole */
static inline vf v_swap(vf a) { return _mm512_permute_ps(a, 0xb1); }                    /* a1 a0 a3 a2 .. */
static inline vf v_below0(vf x, vf a, vf b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, v_set(0), _CMP_LT_OQ), b, a); }
static inline float v_sum(vf a) { return _mm512_reduce_add_ps(a); }

static inline vf v_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

static inline vf v_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
static inline vf v_load_i8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }

/* e4m3 as the f16 of the same bits is 2^-8 of its value, subnormals included; 0x7f is NaN. */
static inline vf v_load_e4m3(const void *p)
{
    const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(p)), low = _mm256_and_si256(b, _mm256_set1_epi16(0x7f));
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(low, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x80)), 8);
    const __m256i h = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(low, 7), sign), nan);

    return _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(256));
}

static inline vf v_round_bf16(vf a)
{
    const __m512i u = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i cut = _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000));

    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_castsi512_ps(cut), a);
}

#elif defined(__AVX2__)

#include <immintrin.h>

#define VL 8
typedef __m256 vf;

static inline __m256i v_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf v_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, v_mask(n)); }
static inline void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline void v_store_n(float *p, vf a, int64_t n) { _mm256_maskstore_ps(p, v_mask(n), a); }
static inline vf v_set(float a) { return _mm256_set1_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

static inline vf v_pow2(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* a 2^n, n whole: in two halves, since 2^n itself may be out of range. */
static inline vf v_scale2(vf a, vf n)
{
    const vf low = _mm256_set1_ps(-252), high = _mm256_set1_ps(252);
    const __m256i whole = _mm256_cvtps_epi32(_mm256_max_ps(low, _mm256_min_ps(high, n))), half = _mm256_srai_epi32(whole, 1);

    return _mm256_mul_ps(_mm256_mul_ps(a, v_pow2(half)), v_pow2(_mm256_sub_epi32(whole, half)));
}

static inline vf v_swap(vf a) { return _mm256_permute_ps(a, 0xb1); }
static inline vf v_below0(vf x, vf a, vf b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, v_set(0), _CMP_LT_OQ)); }

static inline float v_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline vf v_load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

static inline vf v_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vf v_load_i8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }

/* As for AVX-512. */
static inline vf v_load_e4m3(const void *p)
{
    const __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64(p)), low = _mm_and_si128(b, _mm_set1_epi16(0x7f));
    const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(low, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
    const __m128i sign = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x80)), 8);
    const __m128i h = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(low, 7), sign), nan);

    return _mm256_mul_ps(_mm256_cvtph_ps(h), _mm256_set1_ps(256));
}

static inline vf v_round_bf16(vf a)
{
    const __m256i u = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i cut = _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000));

    return _mm256_blendv_ps(_mm256_castsi256_ps(cut), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

#else

#define VL 1
typedef float vf;

static inline vf v_load(const float *p) { return *p; }
static inline vf v_load_n(const float *p, int64_t n) { return n ? *p : 0; }
static inline void v_store(float *p, vf a) { *p = a; }
static inline void v_store_n(float *p, vf a, int64_t n) { if (n) *p = a; }
static inline vf v_set(float a) { return a; }
static inline vf v_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf v_add(vf a, vf b) { return a + b; }
static inline vf v_sub(vf a, vf b) { return a - b; }
static inline vf v_mul(vf a, vf b) { return a * b; }
static inline vf v_div(vf a, vf b) { return a / b; }
static inline vf v_max(vf a, vf b) { return a > b ? a : b; }
static inline vf v_min(vf a, vf b) { return a < b ? a : b; }
static inline vf v_abs(vf a) { return fabsf(a); }
static inline vf v_round(vf a) { return rintf(a); }
static inline vf v_scale2(vf a, vf n) { return n != n ? n : ldexpf(a, n < -300 ? -300 : n > 300 ? 300 : (int)n); }
static inline vf v_below0(vf x, vf a, vf b) { return x < 0 ? a : b; }
static inline float v_sum(vf a) { return a; }
static inline vf v_round_bf16(vf a) { return hv_bf16_to_f32(hv_f32_to_bf16(a)); }
static inline vf v_load_e4m3(const void *p) { return hv_e4m3_to_f32(*(const uint8_t *)p); }
static inline vf v_load_i8(const void *p) { return (float)*(const int8_t *)p; }

static inline vf v_load_bf16(const void *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof h);
    return hv_bf16_to_f32(h);
}

static inline vf v_load_f16(const void *p)
{
    uint16_t h;

    memcpy(&h, p, sizeof h);
    return hv_f16_to_f32(h);
}

#endif

/* 2^x: n = round(x), a polynomial for 2^(x - n) on -1/2..1/2 (its own error 2e-9), within 1.5 ulp. -inf gives 0. */
static inline vf v_exp2(vf x)
{
    const vf n = v_round(v_max(v_set(-300), v_min(v_set(300), x))), f = v_sub(v_max(v_set(-300), v_min(v_set(300), x)), n);
    vf p = v_set(0.00015353331400547177f);

    p = v_fma(p, f, v_set(0.0013398876180872321f));
    p = v_fma(p, f, v_set(0.009618437848985195f));
    p = v_fma(p, f, v_set(0.055503323674201965f));
    p = v_fma(p, f, v_set(0.24022647738456726f));
    p = v_fma(p, f, v_set(0.6931471824645996f));
    return v_scale2(v_fma(p, f, v_set(1)), n);
}

/* e^x: r = x - n ln 2 in two steps, a polynomial on -ln 2 / 2..ln 2 / 2 (its own error 3e-9), within 2 ulp. */
static inline vf v_exp(vf x)
{
    x = v_max(v_set(-200), v_min(v_set(200), x));
    const vf n = v_round(v_mul(x, v_set(1.44269504088896f)));
    const vf r = v_fma(n, v_set(-1.42860682e-6f), v_fma(n, v_set(-0.693145751953125f), x));
    vf p = v_set(0.0013814622070640326f);

    p = v_fma(p, r, v_set(0.008368710987269878f));
    p = v_fma(p, r, v_set(0.04166838899254799f));
    p = v_fma(p, r, v_set(0.1666652113199234f));
    p = v_fma(p, r, v_set(0.4999999403953552f));
    p = v_fma(p, v_mul(r, r), r);
    return v_scale2(v_add(p, v_set(1)), n);
}

/* 1 / (1 + e^-x) */
static inline vf v_sigmoid(vf x)
{
    return v_div(v_set(1), v_add(v_set(1), v_exp(v_sub(v_set(0), x))));
}

/* x P(x), P the normal distribution: erfc(t) = e^(-t^2) (c1 u + .. + c8 u^8), u = 1 / (1 + 0.4 t), t = |x| / sqrt 2, to 4e-10
 * before rounding. */
static inline vf v_gelu_erf(vf x)
{
    const vf t = v_mul(v_abs(x), v_set(0.70710678118655f));
    const vf u = v_div(v_set(1), v_fma(t, v_set(0.4f), v_set(1))), e = v_exp(v_mul(v_mul(t, t), v_set(-1)));
    vf p = v_set(0.07393236458301544f);

    p = v_fma(p, u, v_set(-0.3878795802593231f));
    p = v_fma(p, u, v_set(0.6582583785057068f));
    p = v_fma(p, u, v_set(-0.32725510001182556f));
    p = v_fma(p, u, v_set(0.36335474252700806f));
    p = v_fma(p, u, v_set(0.16460801661014557f));
    p = v_fma(p, u, v_set(0.22914712131023407f));
    p = v_fma(p, u, v_set(0.22583402693271637f));
    const vf half = v_mul(v_mul(v_mul(p, u), e), v_set(0.5f));          /* P(-|x|) */
    return v_mul(x, v_below0(x, half, v_sub(v_set(1), half)));
}

/* x / (1 + e^(-2 a (x + 0.044715 x^3))), a = sqrt(2 / pi): the same as x/2 (1 + tanh(..)). */
static inline vf v_gelu_tanh(vf x)
{
    const vf in = v_fma(v_mul(v_mul(x, x), v_set(0.044715f)), x, x);

    return v_mul(x, v_sigmoid(v_mul(in, v_set(1.59576912160573f))));
}

#endif
