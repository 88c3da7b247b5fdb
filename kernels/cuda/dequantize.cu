/* dequantize.cu - between matrices of 8 bits with a scale a row, and floats
 *
 * dequantize: y = scale[row] * q, y [N, K] contiguous bf16, f16 or f32; q I8 or F8_E4M3, any stride of rows. F32, F16
 * and BF16 are converted. The product is rounded to bf16 first where the weights ask for it (deq_bf16), then to y's
 * dtype. A thread takes 8 columns at UNROLL places a block's width apart, one 8-byte load and one 16-byte store (two
 * for f32) each, where both sides are aligned for it and q is 8 bits wide; else the same values one at a time.
 * Traffic: reads q once, writes y once. Bound by memory.
 *
 * quantize_rows: q = e4m3(x / s), s = max|x[r]| / 448 (1e-30 where that is less), one block a row, x read once up to
 * 16384 columns. A NaN stays NaN in its place; a row with an infinity becomes NaN.
 *
 * Both round each value once, to nearest even. */
#include "kernels/cuda/gemm.cuh"

#include <limits.h>

#define THREADS 256
#define UNROLL  2
#define HELD    8

struct dequantize {
    void *y;
    const void *w;
    const float *scale;
    int64_t ld;
    uint32_t pieces, all;               /* pieces of 8 columns in a row, in the matrix */
    uint32_t magic, shift;              /* i / pieces = i * magic >> shift, for i below 2^31 */
    int width, wtype, deq_bf16;
};

/* Bytes 2i and 2i+1 of eight. */
__device__ static inline float2 stored2(uint2 q, int i, int dtype)
{
    const uint32_t b = (i < 2 ? q.x : q.y) >> i % 2 * 16;

    if (dtype == HV_I8)
        return make_float2((float)(int8_t)b, (float)(int8_t)(b >> 8));
#if __CUDA_ARCH__ >= 890
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)b, __NV_E4M3)));
#else
    return make_float2(cuda_e4m3(b & 0xff), cuda_e4m3(b >> 8 & 0xff));
#endif
}

template <typename T> __device__ static inline T rounded(const struct dequantize &p, float q, float scale)
{
    const float v = q * scale;

    return from_float<T>(p.deq_bf16 ? __bfloat162float(__float2bfloat16_rn(v)) : v);
}

/* Every load of a thread is on its way before the first is used. */
template <typename T> __global__ static void __launch_bounds__(THREADS) dequantize_kernel(const struct dequantize p)
{
    const uint32_t first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    float scale[UNROLL];
    uint2 q[UNROLL];

#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const uint32_t i = min(first + u * THREADS, p.all - 1), row = (uint32_t)((uint64_t)i * p.magic >> p.shift);
        q[u] = *(const uint2 *)((const uint8_t *)p.w + row * p.ld + (int64_t)(i - row * p.pieces) * 8);
        scale[u] = p.scale[row];
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const uint32_t i = first + u * THREADS;
        union { T v[8]; uint4 all[sizeof(T) / 2]; } out;
        if (i >= p.all)
            return;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 f = stored2(q[u], j, p.wtype);
            out.v[2 * j] = rounded<T>(p, f.x, scale[u]);
            out.v[2 * j + 1] = rounded<T>(p, f.y, scale[u]);
        }
#pragma unroll
        for (int j = 0; j < (int)sizeof(T) / 2; j++)        /* y is contiguous: piece i is at 8i */
            ((uint4 *)((T *)p.y + (int64_t)i * 8))[j] = out.all[j];
    }
}

/* The same, of any dtype and alignment: a thread a value. */
template <typename T> __global__ static void __launch_bounds__(THREADS) convert_kernel(const struct dequantize p)
{
    const int64_t row = blockIdx.x;

    for (int64_t k = threadIdx.x; k < p.width; k += THREADS)
        ((T *)p.y)[row * p.width + k] =
            rounded<T>(p, cuda_stored(p.w, p.wtype, row * p.ld + k), p.scale ? p.scale[row] : 1);
}

void cuda_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w)
{
    struct dequantize p = {y.data, w.data, w.scale, cuda_ld(&w), 0, 0, 0, 0, (int)w.shape[1], w.dtype,
                           w.scale && w.deq_bf16};
    const int64_t pieces = w.shape[1] / 8, all = pieces * w.shape[0];
    int bits = 0;

    if (!hv_count(w))
        return;
    if (w.shape[0] > INT_MAX || w.shape[1] > INT_MAX) {
        hv_dev_fault(d, HV_EDEVICE, "dequantize: %lld by %lld is too large", (long long)w.shape[0],
                     (long long)w.shape[1]);
        return;
    }
    if (!cuda_is_quantized(w.dtype) || w.shape[1] % 8 || ((uintptr_t)w.data | (uintptr_t)p.ld) % 8 ||
        (uintptr_t)y.data % 16 || all > INT_MAX) {
        CUDA_FOR_TYPE(y.dtype, T, (convert_kernel<T><<<(unsigned)w.shape[0], THREADS, 0, cuda_stream(d)>>>(p)));
    } else {
        while ((int64_t)1 << bits < pieces)
            bits++;
        p.pieces = (uint32_t)pieces;
        p.all = (uint32_t)all;
        p.shift = (uint32_t)(31 + bits);
        p.magic = (uint32_t)((((uint64_t)1 << p.shift) + (uint64_t)pieces - 1) / (uint64_t)pieces);
        const unsigned blocks = (unsigned)((all + THREADS * UNROLL - 1) / (THREADS * UNROLL));
        CUDA_FOR_TYPE(y.dtype, T, (dequantize_kernel<T><<<blocks, THREADS, 0, cuda_stream(d)>>>(p)));
    }
    CUDA_LAUNCHED(d, "dequantize");
}

/* ---- rows of x to e4m3 ---- */

struct rows {
    uint8_t *q;
    float *scale;
    const __nv_bfloat16 *x;
    int64_t ld;
    int width;
};

/* Eight bf16. */
__device__ static inline float value(uint4 u, int i)
{
    const uint32_t part = i < 2 ? u.x : i < 4 ? u.y : i < 6 ? u.z : u.w;

    return __uint_as_float(i % 2 ? part & 0xffff0000 : part << 16);
}

__device__ static inline float most8(float m, uint4 u)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        m = fmaxf(m, fabsf(value(u, i)));
    return m;
}

__device__ static inline uint2 quantize8(uint4 u, float s)
{
    union { __nv_fp8x2_storage_t v[4]; uint2 all; } q;

#pragma unroll
    for (int i = 0; i < 4; i++)
        q.v[i] = __nv_cvt_float2_to_fp8x2(make_float2(value(u, 2 * i) * s, value(u, 2 * i + 1) * s), __NV_SATFINITE,
                                          __NV_E4M3);
    return q.all;
}

/* The first HELD * 8 * THREADS columns stay in registers between the two passes. */
__global__ static void __launch_bounds__(THREADS) quantize_kernel(const struct rows p)
{
    __shared__ float most[THREADS / 32];
    const int64_t row = blockIdx.x;
    const __nv_bfloat16 *x = p.x + row * p.ld;
    uint8_t *q = p.q + row * p.width;
    const int first = threadIdx.x * 8;
    uint4 held[HELD];
    float m = 0;

#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * 8 * THREADS < p.width)
            held[i] = *(const uint4 *)(x + first + i * 8 * THREADS);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * 8 * THREADS < p.width)
            m = most8(m, held[i]);
    for (int k = first + HELD * 8 * THREADS; k < p.width; k += 8 * THREADS)
        m = most8(m, *(const uint4 *)(x + k));
    for (int i = 16; i; i /= 2)
        m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, i));
    if (threadIdx.x % 32 == 0)
        most[threadIdx.x / 32] = m;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++)
        m = fmaxf(m, most[i]);
    const float scale = fmaxf(m / 448, 1e-30f), inverse = 1 / scale;
    if (threadIdx.x == 0)
        p.scale[row] = scale;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (first + i * 8 * THREADS < p.width)
            *(uint2 *)(q + first + i * 8 * THREADS) = quantize8(held[i], inverse);
    for (int k = first + HELD * 8 * THREADS; k < p.width; k += 8 * THREADS)
        *(uint2 *)(q + k) = quantize8(*(const uint4 *)(x + k), inverse);
}

void cuda_quantize_rows(struct hv_dev *d, uint8_t *q, float *scale, hv_tensor x)
{
    const struct rows p = {q, scale, (const __nv_bfloat16 *)x.data, cuda_ld(&x), (int)x.shape[1]};

    quantize_kernel<<<(unsigned)x.shape[0], THREADS, 0, cuda_stream(d)>>>(p);
    CUDA_LAUNCHED(d, "linear");
}
