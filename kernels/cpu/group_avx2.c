/* Group norm for AVX2. Products and sums round apart, as in the portable text: one result on every processor. */
#if defined(__x86_64__)
#include <immintrin.h>

#define V           __m256
#define LANES       8
#define SET(a)      _mm256_set1_ps(a)
#define LOAD(p)     _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define ADD(a, b)   _mm256_add_ps(a, b)
#define SUB(a, b)   _mm256_sub_ps(a, b)
#define MUL(a, b)   _mm256_mul_ps(a, b)
#define DIV(a, b)   _mm256_div_ps(a, b)
#define MAX(a, b)   _mm256_max_ps(a, b)
#define ROUND(a)    _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define POW2(n)     _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23))
#define ISA         group_isa_avx2

#include "kernels/cpu/group_row.h"
#else
typedef int group_avx2_is_empty;
#endif
