#define SIMD_TABLE cpu_simd_avx512
#define SIMD_NAME "avx512"
#include "simd.inc"
