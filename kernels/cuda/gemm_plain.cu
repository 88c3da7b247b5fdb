/* gemm_plain.cu - y = act(x w^T + bias) for the cases that tensor cores do not take
 *
 * x, y [R, K], [R, N] f32, f16 or bf16; w [N, K] of any dtype of weights; any strides and alignment; bias f32 or bf16.
 * Tiles of 64 x 64, 16 columns of K at a time, widened to f32 as they are loaded; 256 threads, 4 x 4 sums each. Sums
 * are f32 in the order of K: the result depends on nothing else. A weight is scale * q, rounded to bf16 first where it
 * asks for that. Made to be right, not fast: some TFLOP/s. Error: that of an f32 sum of K terms, then one rounding.
 *
 * Below it: y = act(rows[r] * cols[c] * y + bias[c]) in place, for what a product's own epilogue cannot do; reads and
 * writes y once. */
#include "kernels/cuda/gemm.cuh"

#define TILE 64
#define STEP 16

struct plain {
    void *y;
    const void *x, *w;
    const float *scale;
    struct cuda_vec bias;
    int64_t ldy, ldx, ldw, rows, cols, depth;
    int wtype, deq_bf16;
    enum hv_act act;
};

__device__ static inline float weight(const struct plain &p, int64_t n, int64_t k)
{
    const float q = cuda_stored(p.w, p.wtype, n * p.ldw + k);

    if (!p.scale)
        return q;
    return p.deq_bf16 ? __bfloat162float(__float2bfloat16_rn(q * p.scale[n])) : q * p.scale[n];
}

template <typename T> __global__ static void __launch_bounds__(256) plain_kernel(const struct plain p)
{
    __shared__ float xs[STEP][TILE + 4], ws[STEP][TILE + 4];
    const int64_t row = (int64_t)blockIdx.x * TILE, col = (int64_t)blockIdx.y * TILE;
    const int tid = threadIdx.x, tx = tid % 16, ty = tid / 16, lk = tid % 4 * 4, lr = tid / 4;
    float acc[4][4] = {};

    for (int64_t k0 = 0; k0 < p.depth; k0 += STEP) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t k = k0 + lk + i;
            xs[lk + i][lr] = row + lr < p.rows && k < p.depth ? to_float(((const T *)p.x)[(row + lr) * p.ldx + k]) : 0;
            ws[lk + i][lr] = col + lr < p.cols && k < p.depth ? weight(p, col + lr, k) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            const float4 a = *(const float4 *)&xs[k][ty * 4], b = *(const float4 *)&ws[k][tx * 4];
            const float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 16; i++)
                acc[i / 4][i % 4] = fmaf(av[i / 4], bv[i % 4], acc[i / 4][i % 4]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        const int64_t r = row + ty * 4 + i / 4, c = col + tx * 4 + i % 4;
        if (r < p.rows && c < p.cols)
            ((T *)p.y)[r * p.ldy + c] =
                from_float<T>(cuda_act(acc[i / 4][i % 4] + (p.bias.p ? p.bias.at(c) : 0), p.act));
    }
}

void cuda_linear_plain(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    const struct plain p = {y.data, x.data, w.data, w.scale, cuda_vec_of(bias), cuda_ld(&y), cuda_ld(&x), cuda_ld(&w),
                            x.shape[0], w.shape[0], x.shape[1], w.dtype, w.deq_bf16, act};
    const int64_t down = (p.rows + TILE - 1) / TILE, across = (p.cols + TILE - 1) / TILE;
    const dim3 grid((unsigned)down, (unsigned)across);

    if (across > 65535 || down > INT32_MAX) {
        hv_dev_fault(d, HV_EDEVICE, "linear: %lld by %lld is too large", (long long)p.rows, (long long)p.cols);
        return;
    }
    CUDA_FOR_TYPE(x.dtype, T, (plain_kernel<T><<<grid, 256, 0, cuda_stream(d)>>>(p)));
    CUDA_LAUNCHED(d, "linear");
}

/* ---- in place, after a product ---- */

struct after {
    void *y;
    const float *rows, *cols;
    struct cuda_vec bias;
    int64_t ld, height, width;
    enum hv_act act;
    int wide;                           /* y takes 16-byte accesses */
};

/* A thread takes 8 columns of a row, with one access where y is aligned for it. */
template <typename T> __global__ static void __launch_bounds__(128) finish_kernel(const struct after p)
{
    const int64_t r = blockIdx.x, c = ((int64_t)blockIdx.y * 128 + threadIdx.x) * 8;
    const int n = (int)(p.width - c < 8 ? p.width - c : 8);
    T *y = (T *)p.y + r * p.ld + c;
    union { T v[8]; uint4 all[sizeof(T) / 2]; } u;

    if (n <= 0)
        return;
    if (p.wide && n == 8) {
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++)
            u.all[i] = ((const uint4 *)y)[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            u.v[i] = i < n ? y[i] : from_float<T>(0);
    }
    const float s = p.rows ? p.rows[r] : 1;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < n) {
            float v = to_float(u.v[i]);
            if (p.rows)
                v *= s * p.cols[c + i];
            u.v[i] = from_float<T>(cuda_act(p.bias.p ? v + p.bias.at(c + i) : v, p.act));
        }
    if (p.wide && n == 8) {
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++)
            ((uint4 *)y)[i] = u.all[i];
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < n)
                y[i] = u.v[i];
    }
}

void cuda_linear_finish(struct hv_dev *d, hv_tensor y, const float *rows, const float *cols, hv_tensor bias,
                        enum hv_act act)
{
    const struct after p = {y.data, rows, cols, cuda_vec_of(bias), cuda_ld(&y), y.shape[0], y.shape[1], act,
                            cuda_aligned(y.data, cuda_ld(&y), hv_dtype_size(y.dtype))};
    const dim3 grid((unsigned)p.height, (unsigned)((p.width + 1023) / 1024));

    CUDA_FOR_TYPE(y.dtype, T, (finish_kernel<T><<<grid, 128, 0, cuda_stream(d)>>>(p)));
    CUDA_LAUNCHED(d, "linear");
}
