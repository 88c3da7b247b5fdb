/* attention_few.cu - o = softmax(scale q k^T) v for 16 keys or fewer: video rows that listen to the sound of their
 * frame
 *
 * q, o [Lq, H * D], k, v [Lk, H * D] bf16, D a multiple of 128 up to 1024, Lk up to 16, no masks; o may be q.
 * A block owns 16 queries of a head and has a warp for every 128 columns: each multiplies its columns, shared memory
 * adds up the scores of all in one order, and each forms its own columns of o. Loads and stores are of 16 bytes: which
 * element of a row is which column of a matrix fragment is ours to choose, as long as both operands agree.
 * Products of bf16 in f32, p rounded to bf16. Reads q once, writes o once: 1.9 TB/s on an H100 with many queries; a
 * frame of 2112 by 1024 takes 11 us there, 4 of them the launch.
 * Error against f64: 0.003 of the result's norm, that of rounding p and o. Checked by tests/gpu/bench_attention. */
#include "kernels/cuda/attention.cuh"

#define QUERIES 16
#define KEYS    16
#define WARPS   8                       /* at most: 1024 columns */

struct few {
    const __nv_bfloat16 *q, *k, *v;
    __nv_bfloat16       *o;
    int64_t              ldq, ldk, ldv, ldo;
    int                  rows, keys;
    float                scale;         /* times log2(e) */
};

__device__ static inline uint4 few_load(const __nv_bfloat16 *x, int there)
{
    return there ? *(const uint4 *)x : make_uint4(0, 0, 0, 0);
}

/* Element j of two rows of 8. */
__device__ static inline uint32_t few_pair(uint4 a, uint4 b, int j)
{
    const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};

    return __byte_perm(x[j >> 1], y[j >> 1], j & 1 ? 0x7632 : 0x5410);
}

__global__ static void __launch_bounds__(32 * WARPS) attention_few_kernel(const struct few a)
{
    __shared__ float part[WARPS][8][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, warps = blockDim.x >> 5;
    const int64_t row = (int64_t)blockIdx.x * QUERIES + g, column = (int64_t)blockIdx.y * blockDim.x * 4 + warp * 128;
    float s[2][4] = {}, l[2];
    uint4 q[2][4], k[2][4], v[2][4];

    /* All that is read is asked for at once. */
#pragma unroll
    for (int c = 0; c < 4; c++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            q[n][c] = few_load(a.q + (row + 8 * n) * a.ldq + column + 32 * c + 8 * t, row + 8 * n < a.rows);
            k[n][c] = few_load(a.k + (8 * n + g) * a.ldk + column + 32 * c + 8 * t, 8 * n + g < a.keys);
        }
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = 2 * t + (e & 1) + 8 * (e >> 1);
            v[c][e] = few_load(a.v + key * a.ldv + column + 64 * c + 8 * g, key < a.keys);
        }
    /* Columns 32 c + 8 t .. + 7 are elements 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of two steps. */
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const uint32_t f[2][4] = {{q[0][c].x, q[1][c].x, q[0][c].y, q[1][c].y},
                                  {q[0][c].z, q[1][c].z, q[0][c].w, q[1][c].w}};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            att_mma_bf16(s[n], f[0], k[n][c].x, k[n][c].y);
            att_mma_bf16(s[n], f[1], k[n][c].z, k[n][c].w);
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e++)
        part[warp][e][lane] = s[e >> 2][e & 3];
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float x = 0;
        for (int w = 0; w < warps; w++)
            x += part[w][e][lane];
        s[e >> 2][e & 3] = 8 * (e >> 2) + 2 * t + (e & 1) < a.keys ? x * a.scale : -INFINITY;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float top = att_quad_max(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
        l[h] = 0;
#pragma unroll
        for (int e = 0; e < 4; e++)
            l[h] += s[e >> 1][2 * h + (e & 1)] = att_exp2(s[e >> 1][2 * h + (e & 1)] - top);
        l[h] = 1 / att_quad_sum(l[h]);
    }
    const uint32_t p[4] = {att_pair(s[0][0], s[0][1]), att_pair(s[0][2], s[0][3]), att_pair(s[1][0], s[1][1]),
                           att_pair(s[1][2], s[1][3])};

    /* Column 64 c + 8 n + j is column n of product j: a lane ends up with 16 columns that lie side by side. */
#pragma unroll
    for (int c = 0; c < 2; c++) {
        uint32_t up[8], down[8];
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            float x[2][4] = {};
            att_mma_bf16(x[0], p, few_pair(v[c][0], v[c][1], j), few_pair(v[c][2], v[c][3], j));
            att_mma_bf16(x[1], p, few_pair(v[c][0], v[c][1], j + 1), few_pair(v[c][2], v[c][3], j + 1));
#pragma unroll
            for (int n = 0; n < 2; n++) {
                up[4 * n + j / 2] = att_pair(x[0][n] * l[0], x[1][n] * l[0]);
                down[4 * n + j / 2] = att_pair(x[0][2 + n] * l[1], x[1][2 + n] * l[1]);
            }
        }
        uint4 *to = (uint4 *)(a.o + row * a.ldo + column + 64 * c + 16 * t);
        uint4 *to8 = (uint4 *)(a.o + (row + 8) * a.ldo + column + 64 * c + 16 * t);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (row < a.rows)
                to[n] = make_uint4(up[4 * n], up[4 * n + 1], up[4 * n + 2], up[4 * n + 3]);
            if (row + 8 < a.rows)
                to8[n] = make_uint4(down[4 * n], down[4 * n + 1], down[4 * n + 2], down[4 * n + 3]);
        }
    }
}

int cuda_attention_few(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t width = q.shape[1] / a->heads;
    const struct few f = {(const __nv_bfloat16 *)q.data, (const __nv_bfloat16 *)k.data, (const __nv_bfloat16 *)v.data,
                          (__nv_bfloat16 *)o.data, cuda_ld(&q), cuda_ld(&k), cuda_ld(&v), cuda_ld(&o), (int)q.shape[0],
                          (int)k.shape[0], (float)(a->scale * ATT_LOG2E)};

    if (k.shape[0] > KEYS || width % 128 || width > 128 * WARPS || !att_plain(&o, &q, &k, &v, a))
        return 1;
    const dim3 grid((unsigned)((f.rows + QUERIES - 1) / QUERIES), (unsigned)a->heads);
    attention_few_kernel<<<grid, (unsigned)width / 4, 0, cuda_stream(d)>>>(f);
    CUDA_LAUNCHED(d, "attention");
    return 0;
}
