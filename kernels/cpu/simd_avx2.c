#define SIMD_TABLE cpu_simd_avx2
#define SIMD_NAME "avx2"
#include "simd.inc"
