/* rope.cu - qk_norm_rope and rope_half, in place on x [R, H*D]
 *
 *     qk_norm_rope   per head h = x / sqrt(mean(x^2) + eps) * weight; then pairs (2m, 2m+1) turn by angle m of the row's
 *                    token: h0 cos - h1 sin, h1 cos + h0 sin. The angles of time, row and column follow one another
 *     rope_half      pairs (i, i + D/2) turn by angle i of the row
 *
 * x bf16, f16 or f32, rows may be strided; weight [D] f32 or bf16; tables f32. Any even D, any R, H; no weight: no norm.
 * D 128: half a warp a head, 8 columns a lane; a warp takes up to 8 heads of a row, loaded at once, with the angles and the
 * weight of its columns in registers. Other widths: a warp a head, two passes, in the caches.
 * Traffic: x read and written once, 4*R*H*D bytes in bf16, and 512 bytes of angles for 8 heads. Bound by memory.
 * Error: sums of f32, within 1e-6 of the largest result, rounded once. */
#include "kernels/cuda/values.cuh"

#define LANES 32
#define WARPS 4
#define WIDTH 128                       /* of the heads of the fast kernel */
#define HALF  (WIDTH / CHUNK)           /* lanes of a head */
#define AHEAD 4                         /* heads of a half warp */

struct angles {
    const float *cos[3], *sin[3];
    int64_t      ldc[3], lds[3], first;
    uint32_t     grid[3];
    int          end[3];                /* angle that follows the last of an axis */
    int          on;
};

struct heads {
    void           *x;
    int64_t         ld, rows;
    int             heads, width;
    struct cuda_vec weight;
    float           eps;
    struct angles   a;
};

/* Angles m..m+N-1 of the token of a row: as one load where they are of one axis and on 16 bytes. */
template <int N> __device__ static inline void angles_at(float *c, float *s, const struct angles &a, int64_t row, int m)
{
    const uint32_t token = (uint32_t)(a.first + row), line = token / a.grid[2], time = line / a.grid[1];
    const uint32_t at[3] = {time, line - time * a.grid[1], token - line * a.grid[2]};

#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        const int begin = axis ? a.end[axis - 1] : 0;
        const float *pc = a.cos[axis] + at[axis] * a.ldc[axis] + (m - begin);
        const float *ps = a.sin[axis] + at[axis] * a.lds[axis] + (m - begin);
        if (N == 4 && m >= begin && m + N <= a.end[axis] && on_16_bytes(pc) && on_16_bytes(ps)) {
            *(float4 *)c = *(const float4 *)pc;
            *(float4 *)s = *(const float4 *)ps;
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (m + i >= begin && m + i < a.end[axis])
                    c[i] = pc[i], s[i] = ps[i];
        }
    }
}

__device__ static inline void turn(float *a, float *b, float c, float s)
{
    const float x = *a, y = *b;

    *a = x * c - y * s;
    *b = y * c + x * s;
}

/* Half a warp a head, AHEAD of them one after the other; blockIdx.y counts the heads of a warp. */
template <typename T> __global__ static void __launch_bounds__(WARPS * LANES) heads_kernel(const struct heads p)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y;
    const int pair = blockIdx.y * 2 * AHEAD, first = pair + (int)threadIdx.x / HALF, col = threadIdx.x % HALF * CHUNK;
    float w[CHUNK], c[CHUNK / 2], s[CHUNK / 2];
    chunk<T> q[AHEAD];

    if (row >= p.rows)
        return;
    T *x = (T *)p.x + row * p.ld + col;
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        q[k] = load_chunk(x + (first + 2 * k) * WIDTH, first + 2 * k < p.heads ? CHUNK : 0);
    vec8(w, p.weight, col, CHUNK, 1);
    if (p.a.on)
        angles_at<CHUNK / 2>(c, s, p.a, row, col / 2);
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        float v[CHUNK];
        if (pair + 2 * k >= p.heads)    /* of both halves: they exchange sums */
            break;
        widen(v, q[k]);
        if (p.weight.p) {
            float sum = 0;
#pragma unroll
            for (int j = 0; j < CHUNK; j += 2)
                sum += v[j] * v[j] + v[j + 1] * v[j + 1];
#pragma unroll
            for (int i = HALF / 2; i; i /= 2)
                sum += __shfl_xor_sync(~0u, sum, i);
            const float inv = 1 / sqrtf(sum * (1.0f / WIDTH) + p.eps);
#pragma unroll
            for (int j = 0; j < CHUNK; j++)
                v[j] *= inv * w[j];
        }
        if (p.a.on) {
#pragma unroll
            for (int m = 0; m < CHUNK / 2; m++)
                turn(v + 2 * m, v + 2 * m + 1, c[m], s[m]);
        }
        store8(x + (first + 2 * k) * WIDTH, first + 2 * k < p.heads ? CHUNK : 0, v);
    }
}

/* A warp a head, of any even width. */
template <typename T> __global__ static void __launch_bounds__(WARPS * LANES) any_heads_kernel(struct heads p)
{
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.y, row = at / p.heads;
    float sum = 0, inv = 1;

    if (row >= p.rows)
        return;
    T *x = (T *)p.x + row * p.ld + at % p.heads * p.width;
    if (p.weight.p) {
        for (int i = threadIdx.x; i < p.width; i += LANES)
            sum += to_float(x[i]) * to_float(x[i]);
#pragma unroll
        for (int i = LANES / 2; i; i /= 2)
            sum += __shfl_xor_sync(~0u, sum, i);
        inv = 1 / sqrtf(sum / (float)p.width + p.eps);
    }
    __syncwarp();                       /* a lane's sum reads what others write below */
    for (int m = threadIdx.x; m < p.width / 2; m += LANES) {
        float a = to_float(x[2 * m]), b = to_float(x[2 * m + 1]), c, s;
        if (p.weight.p) {
            a *= inv * p.weight.at(2 * m);
            b *= inv * p.weight.at(2 * m + 1);
        }
        if (p.a.on) {
            angles_at<1>(&c, &s, p.a, row, m);
            turn(&a, &b, c, s);
        }
        x[2 * m] = from_float<T>(a);
        x[2 * m + 1] = from_float<T>(b);
    }
}

template <typename T>
__global__ static void half_kernel(T *x, int64_t ld, int64_t rows, int heads, int half, const float *cos, int64_t ldc,
                                   const float *sin, int64_t lds)
{
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, line = at / half, row = line / heads;
    const int i = (int)(at % half);

    if (row >= rows)
        return;
    T *p = x + row * ld + line % heads * 2 * half + i;
    float a = to_float(p[0]), b = to_float(p[half]);
    turn(&a, &b, cos[row * ldc + i], sin[row * lds + i]);
    p[0] = from_float<T>(a);
    p[half] = from_float<T>(b);
}

void cuda_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps,
                       const struct hv_rope *rope)
{
    struct heads p = {};
    const dim3 block(LANES, WARPS);

    p.x = x.data;
    p.ld = cuda_ld(&x);
    p.rows = cuda_rows(&x);
    p.heads = heads;
    p.width = (int)(cuda_width(&x) / heads);
    p.weight = cuda_vec_of(weight);
    p.eps = eps;
    p.a.on = rope != NULL;
    for (int a = 0, end = 0; rope && a < 3; a++) {
        p.a.cos[a] = (const float *)rope->cos[a].data;
        p.a.sin[a] = (const float *)rope->sin[a].data;
        p.a.ldc[a] = cuda_ld(&rope->cos[a]);
        p.a.lds[a] = cuda_ld(&rope->sin[a]);
        p.a.grid[a] = (uint32_t)rope->grid[a];
        p.a.end[a] = end += (int)rope->cos[a].shape[1];
        p.a.first = rope->first;
    }
    if (rope && rope->grid[0] * rope->grid[1] * rope->grid[2] > INT32_MAX) {
        hv_dev_fault(d, HV_EUNSUP, "cuda: qk_norm_rope: the grid has too many tokens");
        return;
    }
    if (!p.rows || !p.width || (!p.weight.p && !rope))
        return;
    const int64_t warps = p.width == WIDTH ? p.rows : p.rows * heads;
    const int groups = p.width == WIDTH ? (heads + 2 * AHEAD - 1) / (2 * AHEAD) : 1;
    const dim3 grid((unsigned)((warps + WARPS - 1) / WARPS), (unsigned)groups);
    if (p.width == WIDTH) {
        CUDA_FOR_TYPE(x.dtype, T, (heads_kernel<T><<<grid, block, 0, cuda_stream(d)>>>(p)))
    } else {
        CUDA_FOR_TYPE(x.dtype, T, (any_heads_kernel<T><<<grid, block, 0, cuda_stream(d)>>>(p)))
    }
    CUDA_LAUNCHED(d, "qk_norm_rope");
}

void cuda_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin)
{
    const int64_t rows = cuda_rows(&x), half = cuda_width(&x) / heads / 2, n = rows * heads * half;

    if (!n)
        return;
    CUDA_FOR_TYPE(x.dtype, T,
                  (half_kernel<T><<<(unsigned)((n + 255) / 256), 256, 0, cuda_stream(d)>>>(
                      (T *)x.data, cuda_ld(&x), rows, heads, (int)half, (const float *)cos.data, cuda_ld(&cos),
                      (const float *)sin.data, cuda_ld(&sin))))
    CUDA_LAUNCHED(d, "rope_half");
}
