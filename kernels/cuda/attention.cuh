/* attention.cuh - what the attention kernels share: matrix instructions, asynchronous copies, powers of two.
 *
 * Fragments of mma.sync, g = lane / 4, t = lane % 4 (16-bit operands; 8-bit ones hold twice as many k a register):
 *     A [16, 16]  a0 (g, 2t..), a1 (g + 8, 2t..), a2 (g, 2t + 8..), a3 (g + 8, 2t + 8..)
 *     B [16, 8]   b0 (k 2t.., n g), b1 (k 2t + 8.., n g)
 *     C [16, 8]   c0, c1 (g, 2t..), c2, c3 (g + 8, 2t..)
 * So C of one product, rounded, is A of the next one: scores become probabilities without leaving their registers. */
#ifndef HV_CUDA_ATTENTION_CUH
#define HV_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.cuh"

#define ATT_LOG2E 1.4426950408889634
#define ATT_WIDTH 128                   /* of a head */
#define ATT_ROWS  128                   /* queries of a block: 4 warps of 32 */
#define ATT_ALL   0xffffffffu

__device__ static inline uint32_t att_shared(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory, past the first cache. */
__device__ static inline void att_copy16(uint32_t dst, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(dst), "l"(src) : "memory");
}

/* The same, or zeros. */
__device__ static inline void att_copy16_if(uint32_t dst, const void *src, int there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(dst), "l"(src), "r"(there ? 16 : 0) : "memory");
}

__device__ static inline void att_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N groups of this thread's copies are in flight. */
template <int N> __device__ static inline void att_wait()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

__device__ static inline void att_ldmatrix(uint32_t r[4], uint32_t addr)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

__device__ static inline void att_ldmatrix_t(uint32_t r[4], uint32_t addr)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

__device__ static inline void att_mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 2^x: 2 ulp, 0 far below. */
__device__ static inline float att_exp2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two f32 to a pair of bf16, lo in the low half. */
__device__ static inline uint32_t att_pair(float lo, float hi)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ static inline float att_quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ATT_ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ATT_ALL, x, 2));
}

__device__ static inline float att_quad_sum(float x)
{
    x += __shfl_xor_sync(ATT_ALL, x, 1);
    return x + __shfl_xor_sync(ATT_ALL, x, 2);
}

/* ---- a warp's 32 queries of a head of 128 ---- row i of a lane: 16 (i / 2) + 8 (i % 2) + g
 *
 * Probabilities are 2^(score - reference), the reference of a row being a score that it has seen. As long as the sums
 * hold them they need not be 1 or less, so there is no maximum to wait for: a tile is done as if the references would
 * do, and where a sum of its probabilities passes the limit, done once more with those rows' references moved up. What
 * happens to a row depends on that row alone. */

#define ATT_LIMIT 0x1p60f               /* of a lane's sum over a tile: a float holds 2^66 of them */

struct att_sum {
    float o[2][16][4];                  /* sum of p v, unscaled: C fragments */
    float ref[4], l[4];                 /* reference of a row, in powers of two; this lane's share of the sum of p */
};

__device__ static inline void att_sum_open(struct att_sum *s)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int n = 0; n < 16; n++)
            s->o[i >> 1][n][2 * (i & 1)] = s->o[i >> 1][n][2 * (i & 1) + 1] = 0;
        s->ref[i] = -INFINITY;
        s->l[i] = 0;
    }
}

/* Whether a part of any row of the warp passes the limit. NaN does not: its row is lost anyway. */
__device__ static inline int att_passes(const float part[4], float limit)
{
    return __any_sync(ATT_ALL, (part[0] > limit) | (part[1] > limit) | (part[2] > limit) | (part[3] > limit));
}

/* Moves the reference of each row whose part, this lane's sum over the tile, passes the limit. top: this lane's highest
 * score. */
__device__ static inline void att_sum_move(struct att_sum *s, const float top[4], const float part[4], float limit)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float sum = att_quad_max(part[i]), high = att_quad_max(top[i]);   /* by all lanes, whatever they find */
        const float to = sum > limit ? fmaxf(s->ref[i], high) : s->ref[i];
        const float by = s->ref[i] == to ? 1 : att_exp2(s->ref[i] - to);
        s->ref[i] = to;
        s->l[i] *= by;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            s->o[i >> 1][n][2 * (i & 1)] *= by;
            s->o[i >> 1][n][2 * (i & 1) + 1] *= by;
        }
    }
}

/* o += p v for 16 keys and 16 columns. p: of these keys; vt: this lane's address in the tile, keys from 16 kk. */
__device__ static inline void att_sum_add(struct att_sum *s, const uint32_t p0[4], const uint32_t p1[4], uint32_t vt,
                                          int kk, int n)
{
    uint32_t b[4];

    att_ldmatrix_t(b, (vt ^ ((n & 3) << 5)) + (n >> 2) * 128 + kk * 4096);
    att_mma_bf16(s->o[0][2 * n], p0, b[0], b[1]);
    att_mma_bf16(s->o[0][2 * n + 1], p0, b[2], b[3]);
    att_mma_bf16(s->o[1][2 * n], p1, b[0], b[1]);
    att_mma_bf16(s->o[1][2 * n + 1], p1, b[2], b[3]);
}

/* The block's head, asked for anew: so that no register keeps an address from the first lines of a kernel for its last
 * ones. */
__device__ static inline int64_t att_head()
{
    uint32_t y;

    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
    return y;
}

/* Stores o / l. o: of the first head; first: row 0 of the warp; scale: of a column of any head, or NULL. */
__device__ static inline void att_sum_close(const struct att_sum *s, __nv_bfloat16 *o, int64_t ld, int first, int rows,
                                            const float *scale)
{
    const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
    const int64_t head = att_head() * ATT_WIDTH;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float by = 1 / att_quad_sum(s->l[i]);
        const int r = first + 16 * (i >> 1) + 8 * (i & 1) + g;
        if (r >= rows)
            continue;
        uint32_t *to = (uint32_t *)(o + head + r * ld) + t;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            const float lo = s->o[i >> 1][n][2 * (i & 1)] * by, hi = s->o[i >> 1][n][2 * (i & 1) + 1] * by;
            const float *x = scale + head + 8 * n + 2 * t;
            to[4 * n] = scale ? att_pair(lo * x[0], hi * x[1]) : att_pair(lo, hi);
        }
    }
}

/* ---- tiles of bf16 in shared memory ---- rows of 256 bytes, chunk c of 16 bytes of row r at c ^ (r & 7), so that
 * neither copies nor ldmatrix meet in a bank. 128 threads copy 16 rows at once, 8 threads a row: whole lines of 128
 * bytes. */

/* This thread's place in a tile. */
__device__ static inline uint32_t att_tile_at()
{
    const uint32_t row = threadIdx.x >> 3;

    return row * 256 + (((threadIdx.x ^ row) & 7) << 4);
}

/* This thread's bytes of a tile's rows in memory: row, head, first chunk. Less than 4 GiB, so one register. */
__device__ static inline uint32_t att_tile_from(int64_t ld)
{
    return (threadIdx.x >> 3) * (uint32_t)(2 * ld) + blockIdx.y * (2 * ATT_WIDTH) + (threadIdx.x & 7) * 16;
}

/* Copies ROWS rows, a multiple of 16, of the block's head, from row first of x, which has n: zeros past them, nothing
 * when all are past. */
template <int ROWS>
__device__ static inline void att_tile_copy(uint32_t to, const __nv_bfloat16 *x, int64_t ld, int first, int n)
{
    const char *from = (const char *)(x + first * ld);
    const uint32_t at = att_tile_from(ld);

    to += att_tile_at();
    if (first + ROWS <= n) {
#pragma unroll
        for (int r = 0; r < ROWS; r += 16) {
            att_copy16(to + r * 256, from + r * 2 * ld + at);
            att_copy16(to + r * 256 + 128, from + r * 2 * ld + at + 128);
        }
    } else if (first < n) {
#pragma unroll 1
        for (int r = 0; r < ROWS; r += 16) {
            const int there = first + r + (int)(threadIdx.x >> 3) < n;
            const char *row = there ? from + r * 2 * ld + at : (const char *)x;
            att_copy16_if(to + r * 256, row, there);
            att_copy16_if(to + r * 256 + 128, there ? row + 128 : row, there);
        }
    }
}

/* This lane's address in a tile, for ldmatrix of keys (B = rows transposed) and of values (B = rows as they are). */
__device__ static inline uint32_t att_key_lane()
{
    const uint32_t lane = threadIdx.x & 31;

    return ((lane & 7) + ((lane >> 4) << 3)) * 256 + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
}

__device__ static inline uint32_t att_value_lane()
{
    const uint32_t lane = threadIdx.x & 31;

    return (lane & 15) * 256 + (((lane >> 4) ^ (lane & 7)) << 4);
}

/* ---- host ---- */

/* bf16 rows of whole chunks on chunk bounds. */
static inline int att_aligned(const hv_tensor *t)
{
    return t->dtype == HV_BF16 && cuda_ld(t) % 8 == 0 && (uintptr_t)t->data % 16 == 0;
}

/* No masks, a key and value for each head, bf16. */
static inline int att_plain(const hv_tensor *o, const hv_tensor *q, const hv_tensor *k, const hv_tensor *v,
                            const struct hv_attn *a)
{
    return a->heads == a->kv_heads && a->heads < 65536 && !a->step && a->key_mask.dtype == HV_NONE &&
           q->shape[0] < 1 << 30 && k->shape[0] < 1 << 30 && att_aligned(o) && att_aligned(q) && att_aligned(k) &&
           att_aligned(v);
}

/* Such heads of 128. */
static inline int att_takes(const hv_tensor *o, const hv_tensor *q, const hv_tensor *k, const hv_tensor *v,
                            const struct hv_attn *a)
{
    return q->shape[1] == (int64_t)a->heads * ATT_WIDTH && att_plain(o, q, k, v, a);
}

/* Heads of up to 1024 columns, multiples of 128, over 16 keys or fewer: attention_few.cu. */
int cuda_attention_few(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);

#endif
