/* Group norm for AVX-512. Products and sums round apart, as in the portable text: one result on every processor. */
#if defined(__x86_64__)
#include <immintrin.h>

#define V           __m512
#define LANES       16
#define SET(a)      _mm512_set1_ps(a)
#define LOAD(p)     _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define ADD(a, b)   _mm512_add_ps(a, b)
#define SUB(a, b)   _mm512_sub_ps(a, b)
#define MUL(a, b)   _mm512_mul_ps(a, b)
#define DIV(a, b)   _mm512_div_ps(a, b)
#define MAX(a, b)   _mm512_max_ps(a, b)
#define ROUND(a)    _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define POW2(n)     _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23))
#define ISA         group_isa_avx512

#include "kernels/cpu/group_row.h"
#else
typedef int group_avx512_is_empty;
#endif
