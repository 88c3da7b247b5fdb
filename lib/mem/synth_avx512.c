#include "mem/synth_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* 8 states to the upper 24 bits of their hashes, as 8 x i32. */
static inline __m256i hash8(__m512i x)
{
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 30)), _mm512_set1_epi64((long long)HV_SYNTH_MIX1));
    x = _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64(x, 27)), _mm512_set1_epi64((long long)HV_SYNTH_MIX2));
    x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 31));
    return _mm512_cvtepi64_epi32(_mm512_srli_epi64(x, 40));
}

/* Finite values only: no NaN to keep. */
static inline __m256i to_bf16(__m512 v)
{
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

size_t hv_synth_avx512(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a)
{
    const __m512i lane = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                                            _mm512_set1_epi64((long long)HV_SYNTH_STEP));
    const __m512i jump8 = _mm512_set1_epi64((long long)(8 * HV_SYNTH_STEP));
    const __m512 mul = _mm512_set1_ps(a.mul), add = _mm512_set1_ps(a.add), gain = _mm512_set1_ps(a.gain);
    const __m512 two = _mm512_set1_ps(2.0f), one = _mm512_set1_ps(1.0f), unit = _mm512_set1_ps(0x1p-24f);
    __m512i x = _mm512_add_epi64(_mm512_set1_epi64((long long)state), lane);
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        const __m256i lo = hash8(x);
        x = _mm512_add_epi64(x, jump8);
        const __m256i hi = hash8(x);
        x = _mm512_add_epi64(x, jump8);
        const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1)), unit);
        const __m512 r = _mm512_sub_ps(_mm512_mul_ps(two, u), one);
        const __m512 v = _mm512_mul_ps(_mm512_add_ps(add, _mm512_mul_ps(mul, r)), gain);
        if (t == HV_F32)
            _mm512_storeu_ps((float *)dst + i, v);
        else if (t == HV_BF16)
            _mm256_storeu_si256((__m256i *)((uint16_t *)dst + i), to_bf16(v));
        else
            _mm256_storeu_si256((__m256i *)((uint16_t *)dst + i), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    return i;
}
#endif
