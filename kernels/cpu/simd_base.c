#define SIMD_TABLE cpu_simd_base
#define SIMD_NAME "base"
#include "simd.inc"
