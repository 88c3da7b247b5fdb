#include "mem/quant_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

size_t hv_absmax_avx512(uint32_t *max, const float *w, size_t n)
{
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512i a = _mm512_set1_epi32((int)*max), b = a;
    size_t i = 0;

    for (; i + 32 <= n; i += 32) {
        a = _mm512_max_epu32(a, _mm512_and_si512(_mm512_loadu_si512(w + i), mask));
        b = _mm512_max_epu32(b, _mm512_and_si512(_mm512_loadu_si512(w + i + 16), mask));
    }
    *max = _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
    return i;
}

size_t hv_quant_i8_avx512(int8_t *q, const float *w, float scale, size_t n)
{
    const __m512 s = _mm512_set1_ps(scale), low = _mm512_set1_ps(-127), high = _mm512_set1_ps(127);
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        const __m512 x = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(_mm512_loadu_ps(w + i), s), low), high);
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
    }
    return i;
}

size_t hv_quant_e4m3_avx512(uint8_t *q, const float *w, float scale, size_t n)
{
    const __m512 s = _mm512_set1_ps(scale), steps = _mm512_set1_ps(512);
    const __m512i top = _mm512_set1_epi32(0x43e80000), half = _mm512_set1_epi32(0x7ffff), one = _mm512_set1_epi32(1);
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        const __m512i u = _mm512_castps_si512(_mm512_div_ps(_mm512_loadu_ps(w + i), s));
        const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80));
        __m512i a = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
        const __mmask16 is_small = _mm512_cmplt_epu32_mask(a, _mm512_set1_epi32(0x3c800000));
        const __m512i small = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(is_small, _mm512_castsi512_ps(a), steps));
        a = _mm512_min_epu32(a, top);
        a = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(a, half), _mm512_and_si512(_mm512_srli_epi32(a, 20), one)), 20);
        a = _mm512_min_epu32(a, _mm512_set1_epi32(1086));
        const __mmask16 is_normal = _mm512_cmpge_epu32_mask(a, _mm512_set1_epi32(968));
        a = _mm512_mask_sub_epi32(small, is_normal, a, _mm512_set1_epi32(960));
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(_mm512_or_si512(a, sign)));
    }
    return i;
}

#else

size_t hv_absmax_avx512(uint32_t *max, const float *w, size_t n)
{
    return (void)max, (void)w, (void)n, 0;
}

size_t hv_quant_i8_avx512(int8_t *q, const float *w, float scale, size_t n)
{
    return (void)q, (void)w, (void)scale, (void)n, 0;
}

size_t hv_quant_e4m3_avx512(uint8_t *q, const float *w, float scale, size_t n)
{
    return (void)q, (void)w, (void)scale, (void)n, 0;
}

#endif
