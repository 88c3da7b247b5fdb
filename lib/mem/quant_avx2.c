#include "mem/quant_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

size_t hv_absmax_avx2(uint32_t *max, const float *w, size_t n)
{
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_set1_epi32((int)*max), b = a;
    uint32_t lane[8];
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        a = _mm256_max_epu32(a, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(w + i)), mask));
        b = _mm256_max_epu32(b, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(w + i + 8)), mask));
    }
    _mm256_storeu_si256((__m256i *)lane, _mm256_max_epu32(a, b));
    for (int k = 0; k < 8; k++)
        *max = lane[k] > *max ? lane[k] : *max;
    return i;
}

/* The low byte of each of 8 lanes. */
static inline void store_bytes(void *q, __m256i v)
{
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i b = _mm256_shuffle_epi8(v, pick);
    const int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(b)), high = _mm_cvtsi128_si32(_mm256_extracti128_si256(b, 1));

    memcpy(q, &low, 4);
    memcpy((char *)q + 4, &high, 4);
}

size_t hv_quant_i8_avx2(int8_t *q, const float *w, float scale, size_t n)
{
    const __m256 s = _mm256_set1_ps(scale), low = _mm256_set1_ps(-127), high = _mm256_set1_ps(127);
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        const __m256 x = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(_mm256_loadu_ps(w + i), s), low), high);
        store_bytes(q + i, _mm256_cvtps_epi32(x));
    }
    return i;
}

size_t hv_quant_e4m3_avx2(uint8_t *q, const float *w, float scale, size_t n)
{
    const __m256 s = _mm256_set1_ps(scale), steps = _mm256_set1_ps(512);
    const __m256i top = _mm256_set1_epi32(0x43e80000), half = _mm256_set1_epi32(0x7ffff), one = _mm256_set1_epi32(1);
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        const __m256i u = _mm256_castps_si256(_mm256_div_ps(_mm256_loadu_ps(w + i), s));
        const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80));
        __m256i a = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
        /* No bit patterns above 2^31 are left: signed comparisons do. */
        const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), a);
        const __m256i small = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(a, is_small)), steps));
        a = _mm256_min_epi32(a, top);
        a = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(a, half), _mm256_and_si256(_mm256_srli_epi32(a, 20), one)), 20);
        a = _mm256_min_epi32(a, _mm256_set1_epi32(1086));
        const __m256i is_normal = _mm256_cmpgt_epi32(a, _mm256_set1_epi32(967));
        a = _mm256_blendv_epi8(small, _mm256_sub_epi32(a, _mm256_set1_epi32(960)), is_normal);
        store_bytes(q + i, _mm256_or_si256(a, sign));
    }
    return i;
}

#else

size_t hv_absmax_avx2(uint32_t *max, const float *w, size_t n)
{
    return (void)max, (void)w, (void)n, 0;
}

size_t hv_quant_i8_avx2(int8_t *q, const float *w, float scale, size_t n)
{
    return (void)q, (void)w, (void)scale, (void)n, 0;
}

size_t hv_quant_e4m3_avx2(uint8_t *q, const float *w, float scale, size_t n)
{
    return (void)q, (void)w, (void)scale, (void)n, 0;
}

#endif
