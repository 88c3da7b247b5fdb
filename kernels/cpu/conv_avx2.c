/* The convolution tile for AVX2: 6 positions x 16 channels are 12 sums, 2 weights and a broadcast in 16 registers. */
#if defined(__x86_64__)
#include <immintrin.h>

#define V               __m256
#define LANES           8
#define LOAD(p)         _mm256_loadu_ps(p)
#define STORE(p, v)     _mm256_storeu_ps(p, v)
#define BROADCAST(p)    _mm256_broadcast_ss(p)
#define FMA(a, b, c)    _mm256_fmadd_ps(a, b, c)
#define ROWS            6
#define VECTORS         2
#define ISA             conv_isa_avx2

#include "kernels/cpu/conv_tile.h"
#else
typedef int conv_avx2_is_empty;
#endif
