/* gemm_fused.cuh - what the kernels of gemm_fused.cu and gemm_fused90.cu share: arguments, how 8 bits become bf16, the
 * order of tiles, how sums leave. Not for other files. */
#ifndef HV_CUDA_GEMM_FUSED_CUH
#define HV_CUDA_GEMM_FUSED_CUH

#include "kernels/cuda/gemm.cuh"

#define GROUP 8                         /* tiles of rows that are walked together, for the second cache */

struct matrix {
    const uint8_t *w;
    const float   *scale;
    struct cuda_vec bias;
    __nv_bfloat16 *y;
};

struct fused {
    const __nv_bfloat16 *x;
    struct matrix m[3];
    int64_t ldx, ldw, ldy;
    int n, rows, cols, depth;
    int down, across, tiles, stages;    /* tiles: down * across * n */
    int wide;                           /* y takes 16-byte stores */
    int soft;                           /* 1: x / (1 + 2^(x (a + b x^2))), which silu, quick gelu and gelu (tanh) are */
    float a, b;
    uint32_t high;                      /* 0x43434343: as a constant, the compiler would fetch it for each use */
};

/* gemm_fused90.cu: the kernel for wgmma. 0, or 1 where the device or this build has none. */
int cuda_fused90(struct hv_dev *d, struct fused *p, int f8, int deq);

static inline int fused_up(int a, int b) { return (a + b - 1) / b; }

/* ---- 8 bits to bf16 ---- */

__device__ static inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c)          /* two bf16 */
{
    uint32_t r;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

__device__ static inline uint32_t pack2(float lo, float hi)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* Bytes 0, 1 (half 0) or 2, 3 (half 1) of four I8: with 0x43 above it a byte b is the bf16 128 + (b & 127), but for the
 * sign bit, which is taken out and subtracted: 128 + 128 of it. */
__device__ static inline uint32_t widen_i8(uint32_t q, int half, uint32_t high)
{
    const uint32_t t = __byte_perm(q, high, half ? 0x4342 : 0x4140);

    return fma2(t & 0xff80ff80, 0xbf80bf80, t & 0xff7fff7f);
}

/* The same of four e4m3: exponent and mantissa move to bf16's place, 15 times the sign bit carries it to the top, and
 * 2^120 mends the exponent, of subnormals too. */
__device__ static inline uint32_t widen_f8(uint32_t q, int half)
{
    const uint32_t t = __byte_perm(q, 0, half ? 0x4342 : 0x4140);

    return fma2(t * 16 + (t & 0x00800080) * 240, 0x7b807b80, 0x80008000);
}

template <int F8, int DEQ> __device__ static inline uint32_t widen(uint32_t q, int half, uint32_t high, float scale)
{
    const uint32_t r = F8 ? widen_f8(q, half) : widen_i8(q, half, high);

    return DEQ ? pack2(__uint_as_float(r << 16) * scale, __uint_as_float(r & 0xffff0000) * scale) : r;
}

/* ---- where a block is ---- */

/* Tile number -> matrix, first row, first column. GROUP tiles of rows go through all columns of all matrices. */
template <int BM, int BN>
__device__ static inline void place(const struct fused &p, int tile, int &matrix, int &row, int &col)
{
    const int across = p.across * p.n, group = tile / (GROUP * across), first = group * GROUP;
    const int tall = min(GROUP, p.down - first), at = tile - group * GROUP * across, c = at / tall;

    matrix = c / p.across;
    row = (first + at % tall) * BM;
    col = (c - matrix * p.across) * BN;
}

/* ---- what leaves ---- */

__device__ static inline float finish(const struct fused &p, float x)
{
    float e, r;

    if (!p.soft)
        return x;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * fmaf(p.b, fminf(x * x, 1e30f), p.a)));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1 + e));
    return x * r;
}

__device__ static inline void store8(const struct fused &p, __nv_bfloat16 *y, int col, uint4 v)
{
    if (p.wide && col + 8 <= p.cols) {
        *(uint4 *)y = v;
        return;
    }
    const uint32_t part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (col + i < p.cols)
            y[i] = __ushort_as_bfloat16((unsigned short)(part[i / 2] >> i % 2 * 16));
}

/* Scale and bias of column n, f32. */
template <int DEQ>
__device__ static inline void column(const struct fused &p, const struct matrix &m, int n, float &scale, float &bias)
{
    n = min(n, p.cols - 1);
    scale = DEQ ? 1 : m.scale[n];
    bias = m.bias.p ? m.bias.at(n) : 0;
}

/* Two rows of one column. */
__device__ static inline uint32_t finish2(const struct fused &p, const float *sum, float scale, float bias)
{
    return pack2(finish(p, fmaf(sum[0], scale, bias)), finish(p, fmaf(sum[1], scale, bias)));
}

#endif
