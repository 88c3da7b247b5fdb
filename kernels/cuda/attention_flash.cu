/* attention_flash.cu - o = softmax(scale q k^T) v in bf16, exact but for rounding
 *
 * q, o [Lq, H * 128], k, v [Lk, H * 128] bf16; rows may be strided by any multiple of 8, o may be q. Lq, Lk any.
 * A block owns 128 queries of a head: 4 warps of 32, a warp's queries and sums in registers. Tiles of 32 keys pass
 * through three stages of shared memory, 48 KB: two blocks fit any multiprocessor, and while one computes exponentials
 * the other has the matrix unit. Two products of 32 rows for each fragment of k or v, since shared memory feeds the
 * matrix unit no faster.
 * mma.sync, cp.async: compute capability 8.0.
 * Scores, row sums and sums of p v in f32, p rounded to bf16, exponentials base 2, no running maximum (attention.cuh).
 * Traffic: k and v pass through the second cache once for every 128 queries. The matrix unit is the bound: 410 Tflop/s
 * on an H100 at 72,000 keys, 65 % of what mma.sync reaches there, at the limit of the card's power.
 * Error against f64: 0.0024 of the result's norm, that of rounding p and o. Checked by tests/gpu/bench_attention.
 * No atomics, one order of sums: a row of o depends on its query, k and v, and on nothing else. */
#include "kernels/cuda/attention.cuh"

#define KEYS   32                       /* of a tile */
#define STAGES 3
#define TILE   (KEYS * ATT_WIDTH * 2)   /* bytes; a stage holds one of k and one of v */
#define STAGE  (2 * TILE)

struct flash {
    const __nv_bfloat16 *q, *k, *v;
    __nv_bfloat16       *o;
    int64_t              ldq, ldk, ldv, ldo;
    int                  rows, keys;
    float                scale;         /* times log2(e) */
};

/* The warp's queries: fragments of 16 columns and 16 rows. */
__device__ static inline void flash_queries(uint32_t f[8][2][4], const struct flash *a, int first)
{
    const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = first + 8 * i + g;
        const uint32_t *q = (const uint32_t *)(a->q + blockIdx.y * ATT_WIDTH + row * a->ldq) + t;
#pragma unroll
        for (int c = 0; c < 16; c++)
            f[c >> 1][i >> 1][2 * (c & 1) + (i & 1)] = row < a->rows ? q[4 * c] : 0;
    }
}

/* s = q k^T. kt: this lane's address in the tile. */
__device__ static inline void flash_scores(float s[2][KEYS / 8][4], const uint32_t q[8][2][4], uint32_t kt)
{
#pragma unroll
    for (int i = 0; i < KEYS; i++)
        s[i >> 4][i >> 2 & 3][i & 3] = 0;
#pragma unroll
    for (int ks = 0; ks < 8; ks++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            att_ldmatrix(b, (kt ^ ((ks & 3) << 5)) + (ks >> 2) * 128 + n * 4096);
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                att_mma_bf16(s[mt][2 * n], q[ks][mt], b[0], b[1]);
                att_mma_bf16(s[mt][2 * n + 1], q[ks][mt], b[2], b[3]);
            }
        }
}

/* p = 2^(scale s - reference) as fragments; part: this lane's sums. */
__device__ static inline void flash_probs(uint32_t p[2][KEYS / 16][4], float part[4], const float ref[4],
                                          const float s[2][KEYS / 8][4], float scale)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        part[i] = 0;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float x = att_exp2(fmaf(s[i >> 1][n][2 * (i & 1)], scale, -ref[i]));
            const float y = att_exp2(fmaf(s[i >> 1][n][2 * (i & 1) + 1], scale, -ref[i]));
            part[i] += x + y;
            p[i >> 1][n >> 1][2 * (n & 1) + (i & 1)] = att_pair(x, y);
        }
}

/* Hides the keys past the last of n; this lane's highest scores, scaled. */
__device__ static inline void flash_top(float top[4], float s[2][KEYS / 8][4], float scale, int n)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        top[i] = -INFINITY;
#pragma unroll
        for (int c = 0; c < KEYS / 4; c++) {
            float *x = &s[i >> 1][c >> 1][2 * (i & 1) + (c & 1)];
            *x = (c >> 1) * 8 + 2 * (int)(threadIdx.x & 3) + (c & 1) < n ? *x : -INFINITY;
            top[i] = fmaxf(top[i], *x * scale);
        }
    }
}

__global__ static void __launch_bounds__(128, 2) flash_kernel(const struct flash a)
{
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t base = att_shared(smem);
    const int first = blockIdx.x * ATT_ROWS + (threadIdx.x >> 5) * 32;
    uint32_t q[8][2][4];
    struct att_sum sum;

    auto fetch = [&](uint32_t stage, int key) {
        att_tile_copy<KEYS>(stage, a.k, a.ldk, key, a.keys);
        att_tile_copy<KEYS>(stage + TILE, a.v, a.ldv, key, a.keys);
        att_commit();
    };

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        fetch(base + i * STAGE, i * KEYS);
    flash_queries(q, &a, first);
    att_sum_open(&sum);
    uint32_t stage = base, free = base + (STAGES - 1) * STAGE;
    for (int key = 0; key < a.keys; key += KEYS) {
        const uint32_t kt = stage + att_key_lane(), vt = stage + TILE + att_value_lane();
        float part[4] = {INFINITY, INFINITY, INFINITY, INFINITY};
        uint32_t p[2][KEYS / 16][4];
        int again = key == 0 || key + KEYS > a.keys;    /* no references yet, or keys to hide */

        att_wait<STAGES - 2>();
        __syncthreads();                /* everybody's part of this tile is there, and nobody needs the one before */
        fetch(free, key + (STAGES - 1) * KEYS);
        free = stage;
        stage = stage == base + (STAGES - 1) * STAGE ? base : stage + STAGE;
        if (!again) {
            float s[2][KEYS / 8][4];
            flash_scores(s, q, kt);
            flash_probs(p, part, sum.ref, s, a.scale);
            again = att_passes(part, ATT_LIMIT);
        }
        if (again) {
            float s[2][KEYS / 8][4], top[4];
            flash_scores(s, q, kt);
            flash_top(top, s, a.scale, a.keys - key);
            att_sum_move(&sum, top, part, ATT_LIMIT);
            flash_probs(p, part, sum.ref, s, a.scale);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum.l[i] += part[i];
#pragma unroll
        for (int n = 0; n < KEYS / 2; n++)
            att_sum_add(&sum, p[0][n >> 3], p[1][n >> 3], vt, n >> 3, n & 7);
    }
    att_sum_close(&sum, a.o, a.ldo, first, a.rows, NULL);
}

int cuda_attention_flash(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int bytes = STAGES * STAGE;
    const struct flash f = {(const __nv_bfloat16 *)q.data, (const __nv_bfloat16 *)k.data, (const __nv_bfloat16 *)v.data,
                            (__nv_bfloat16 *)o.data, cuda_ld(&q), cuda_ld(&k), cuda_ld(&v), cuda_ld(&o),
                            (int)q.shape[0], (int)k.shape[0], (float)(a->scale * ATT_LOG2E)};
    const dim3 grid((unsigned)((f.rows + ATT_ROWS - 1) / ATT_ROWS), (unsigned)a->heads);

    if (!att_takes(&o, &q, &k, &v, a))
        return 1;
    if (cuda_failed(d, cudaFuncSetAttribute(flash_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "attention"))
        return 0;
    flash_kernel<<<grid, 128, bytes, cuda_stream(d)>>>(f);
    CUDA_LAUNCHED(d, "attention");
    return 0;
}
