/* The convolution tile for AVX-512: 14 positions x 32 channels are 28 sums, 2 weights and a broadcast in 32 registers; 28
 * multiply-adds a step against 16 loads. */
#if defined(__x86_64__)
#include <immintrin.h>

#define V               __m512
#define LANES           16
#define LOAD(p)         _mm512_loadu_ps(p)
#define STORE(p, v)     _mm512_storeu_ps(p, v)
#define BROADCAST(p)    _mm512_set1_ps(*(p))
#define FMA(a, b, c)    _mm512_fmadd_ps(a, b, c)
#define ROWS            14
#define VECTORS         2
#define ISA             conv_isa_avx512

#include "kernels/cpu/conv_tile.h"
#else
typedef int conv_avx512_is_empty;
#endif
