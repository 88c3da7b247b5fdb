#include "mem/synth_kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* The low 64 bits of x * m, from 32-bit products. */
static inline __m256i mul64(__m256i x, uint64_t m)
{
    const __m256i lo = _mm256_set1_epi64x((long long)(m & 0xffffffffu)), hi = _mm256_set1_epi64x((long long)(m >> 32));
    const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), lo), _mm256_mul_epu32(x, hi));

    return _mm256_add_epi64(_mm256_mul_epu32(x, lo), _mm256_slli_epi64(cross, 32));
}

/* 4 states to the upper 24 bits of their hashes, in 64-bit lanes. */
static inline __m256i hash4(__m256i x)
{
    x = mul64(_mm256_xor_si256(x, _mm256_srli_epi64(x, 30)), HV_SYNTH_MIX1);
    x = mul64(_mm256_xor_si256(x, _mm256_srli_epi64(x, 27)), HV_SYNTH_MIX2);
    x = _mm256_xor_si256(x, _mm256_srli_epi64(x, 31));
    return _mm256_srli_epi64(x, 40);
}

static inline __m128i to_bf16(__m256 v)
{
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);

    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

size_t hv_synth_avx2(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a)
{
    const uint64_t s = HV_SYNTH_STEP;
    const __m256i jump4 = _mm256_set1_epi64x((long long)(4 * s)), pick = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256 mul = _mm256_set1_ps(a.mul), add = _mm256_set1_ps(a.add), gain = _mm256_set1_ps(a.gain);
    const __m256 two = _mm256_set1_ps(2.0f), one = _mm256_set1_ps(1.0f), unit = _mm256_set1_ps(0x1p-24f);
    __m256i x = _mm256_setr_epi64x((long long)state, (long long)(state + s), (long long)(state + 2 * s),
                                   (long long)(state + 3 * s));
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        const __m256i lo = hash4(x);
        x = _mm256_add_epi64(x, jump4);
        const __m256i hi = hash4(x);
        x = _mm256_add_epi64(x, jump4);
        const __m256i both = _mm256_permute2x128_si256(_mm256_permutevar8x32_epi32(lo, pick),
                                                       _mm256_permutevar8x32_epi32(hi, pick), 0x20);
        const __m256 u = _mm256_mul_ps(_mm256_cvtepi32_ps(both), unit);
        const __m256 r = _mm256_sub_ps(_mm256_mul_ps(two, u), one);
        const __m256 v = _mm256_mul_ps(_mm256_add_ps(add, _mm256_mul_ps(mul, r)), gain);
        if (t == HV_F32)
            _mm256_storeu_ps((float *)dst + i, v);
        else if (t == HV_BF16)
            _mm_storeu_si128((__m128i *)((uint16_t *)dst + i), to_bf16(v));
        else
            _mm_storeu_si128((__m128i *)((uint16_t *)dst + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    return i;
}
#endif
