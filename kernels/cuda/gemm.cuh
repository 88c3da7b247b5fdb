/* gemm.cuh - what the files of matrix products share: gemm.cu chooses, the others compute. Not for other files.
 *
 * Legend: R rows of x and y, K input width (depth), N output width (columns). */
#ifndef HV_CUDA_GEMM_CUH
#define HV_CUDA_GEMM_CUH

#include "kernels/cuda/cuda.cuh"

struct cuda_choice;                     /* gemm.cu: an algorithm of cublasLt for one shape */

struct cuda_gemm {
    cublasLtHandle_t    lt;
    int                 shared;         /* bytes of shared memory that a block may ask for */
    unsigned            ready;          /* gemm_fused*.cu: kernels that were told of theirs */
    int                 wide;           /* gemm_fused90.cu: 1 its kernels are there, -1 they are not, 0 not asked */
    struct cuda_choice *choice;
    int                 choices, room;
};

/* gemm_fused.cu: n products of one x at once, w I8 or F8_E4M3. 0, or 1 when it does not take the case: nothing was
 * done. */
int cuda_linears_fused(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w,
                       const hv_tensor *bias, enum hv_act act);

/* gemm_plain.cu: any dtypes, strides and alignment. */
void cuda_linear_plain(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);

/* gemm_plain.cu: y = act(rows[r] * cols[c] * y + bias) in place; rows and cols NULL: 1. */
void cuda_linear_finish(struct hv_dev *d, hv_tensor y, const float *rows, const float *cols, hv_tensor bias,
                        enum hv_act act);

/* dequantize.cu: q [R, K] contiguous e4m3, scale [R] f32: x[r] = scale[r] * q[r], scale = max|x[r]| / 448. x bf16, on
 * 16 bytes, K a multiple of 8. */
void cuda_quantize_rows(struct hv_dev *d, uint8_t *q, float *scale, hv_tensor x);

/* Whether a pointer and a step of `step` elements keep 16-byte accesses aligned. */
static inline int cuda_aligned(const void *p, int64_t step, size_t size)
{
    return ((uintptr_t)p & 15) == 0 && (step * (int64_t)size & 15) == 0;
}

/* The step between rows. A matrix of one row may have any: it gets that of a row rounded up to 16 elements. */
static inline int64_t cuda_step(const hv_tensor *t)
{
    return t->shape[0] > 1 ? cuda_ld(t) : (t->shape[1] + 15) / 16 * 16;
}

static inline int cuda_is_quantized(hv_dtype t) { return t == HV_I8 || t == HV_F8_E4M3; }

/* ---- values as stored ---- */

/* e4m3 by its bits: 1 sign, 4 exponent (bias 7), 3 mantissa; no infinities, 0x7f and 0xff are NaN. */
__device__ static inline float cuda_e4m3(uint32_t b)
{
    const float m = __uint_as_float((b & 0x7f) << 20) * 0x1p120f;       /* subnormals come out right too */
    const float v = (b & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000) : m;

    return b & 0x80 ? -v : v;
}

/* Element i of a matrix of weights, before its scale. */
__device__ static inline float cuda_stored(const void *w, int dtype, int64_t i)
{
    switch (dtype) {
    case HV_F32:  return ((const float *)w)[i];
    case HV_F16:  return __half2float(((const __half *)w)[i]);
    case HV_BF16: return __bfloat162float(((const __nv_bfloat16 *)w)[i]);
    case HV_I8:   return (float)((const int8_t *)w)[i];
    default:      return cuda_e4m3(((const uint8_t *)w)[i]);
    }
}

#endif
