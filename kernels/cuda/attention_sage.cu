/* attention_sage.cu - o = softmax(scale q k^T) v with q k^T in int8, and p v in bf16 or e4m3
 *
 * q, o [Lq, H * 128], k, v [Lk, H * 128] bf16; rows may be strided by any multiple of 8, o may be q. Lq, Lk any.
 *     k8 = (k - mean of k over all keys) / sk       sk: of 64 keys of a head, their largest magnitude / 127
 *     q8 = q / sq                                   sq: of a query of a head
 *     p  = 2^(scale log2(e) sq sk (q8 k8) - reference);  o = sum(p v) / sum(p)
 *     fp8: v8 = v / sv, sv of a column of a head over all keys, largest magnitude / 448; p times 16
 * Taking the mean off moves all scores of a query by the same amount: o stays, and what all keys share costs no bits of
 * k8.
 * Three small kernels prepare k8, three more v8, in the scratch memory; the main one is flash_kernel
 * (attention_flash.cu) but for its operands. Integer sums start at the bits of 1.5 * 2^23, so that they read as floats
 * without a conversion. fp8 sums of 32 keys start at zero and are added in f32: the matrix unit alone would keep 14
 * bits of them.
 * Compute capability 8.0. fp8: 8.9 and 12.0; the others take bf16, also 9.0, whose mma.sync widens e4m3 to f16 and
 * gains nothing.
 * Scratch: hv_attention_scratch; k8 (and v8) a byte an element. Preparation reads k twice (v twice), 0.1 % of the time
 * at 72,000 keys.
 * 500 Tflop/s on an H100 with bf16 p v, 1.2 times flash.
 * Error against f64 on normal operands: 0.012 of the result's norm with bf16, 0.04 with fp8. Checked by
 * tests/gpu/bench_attention.
 * No atomics, one order of sums: a row of o depends on its query, k and v, and on nothing else. */
#include "kernels/cuda/attention.cuh"

#define KEYS    32                      /* of a tile */
#define STAGES  4
#define BLOCK   64                      /* keys of a scale */
#define PART    512                     /* keys of a partial sum */
#define TILE    (KEYS * ATT_WIDTH)      /* bytes of a tile of k8 or v8 */
#define MAGIC   0x4b400000              /* 12582912.f */
#define P_BITS  4                       /* fp8: KEYS / 4 probabilities of at most 2^P_BITS stay below the limit */
#define P_LIMIT 448.f                   /* and nothing that does is cut off */

/* Where mma.sync multiplies e4m3 by itself. A test of the fp8 kernel on 9.0 sets it to 1. */
#ifndef SAGE_FP8
#define SAGE_FP8 (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
#endif

struct sage {
    const __nv_bfloat16 *q, *v;
    const int8_t        *k8;
    const uint8_t       *v8;
    const float         *sk, *sv;
    __nv_bfloat16       *o;
    int64_t              ldq, ldv, ldo;
    int                  rows, keys;
    float                scale;         /* times log2(e) */
};

/* ---- preparation ---- */

/* part[h][i][c] = sum (or the largest magnitude) of x[r][h * 128 + c] over the rows r of part i. */
template <int TOP>
__global__ static void __launch_bounds__(128) column_part_kernel(float *part, const __nv_bfloat16 *x, int64_t ld,
                                                                 int rows)
{
    __shared__ float all[8][ATT_WIDTH];
    const int chunk = threadIdx.x & 15, row = threadIdx.x >> 4, first = blockIdx.x * PART;
    float s[8] = {};

    for (int r = first + row; r < first + PART && r < rows; r += 8) {
        const uint4 w = *(const uint4 *)(x + blockIdx.y * ATT_WIDTH + r * ld + chunk * 8);
        const __nv_bfloat162 *p = (const __nv_bfloat162 *)&w;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float f = e & 1 ? __high2float(p[e >> 1]) : __low2float(p[e >> 1]);
            s[e] = TOP ? fmaxf(s[e], fabsf(f)) : s[e] + f;
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e++)
        all[row][chunk * 8 + e] = s[e];
    __syncthreads();
    float f = 0;
    for (int i = 0; i < 8; i++)
        f = TOP ? fmaxf(f, all[i][threadIdx.x]) : f + all[i][threadIdx.x];
    part[((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * ATT_WIDTH + threadIdx.x] = f;
}

/* y[h][c] = sum of parts / rows, or their largest / 448 and not 0. */
template <int TOP>
__global__ static void __launch_bounds__(128) column_kernel(float *y, const float *part, int parts, int rows)
{
    const float *p = part + (int64_t)blockIdx.x * parts * ATT_WIDTH + threadIdx.x;
    float f = 0;

    for (int i = 0; i < parts; i++)
        f = TOP ? fmaxf(f, p[(int64_t)i * ATT_WIDTH]) : f + p[(int64_t)i * ATT_WIDTH];
    y[blockIdx.x * ATT_WIDTH + threadIdx.x] = TOP ? (f > 0 ? f / 448 : 1) : f / rows;
}

/* A block of 64 keys: k8 and its scale. Rows of 128 bytes, chunk c of 16 bytes of row r at c ^ (r & 7); past the last,
 * zeros. */
__global__ static void __launch_bounds__(256) quantize_keys_kernel(int8_t *k8, float *sk, const __nv_bfloat16 *k,
                                                                   int64_t ld, int keys, const float *mean)
{
    __shared__ float all[8];
    const int chunk = threadIdx.x & 15, row = threadIdx.x >> 4;
    const int64_t block = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    float x[4][8], top = 0;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = blockIdx.x * BLOCK + i * 16 + row;
        const __nv_bfloat16 *from = k + blockIdx.y * ATT_WIDTH + r * ld + chunk * 8;
        const uint4 w = r < keys ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
        const __nv_bfloat162 *p = (const __nv_bfloat162 *)&w;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const float f = e & 1 ? __high2float(p[e >> 1]) : __low2float(p[e >> 1]);
            x[i][e] = r < keys ? f - mean[blockIdx.y * ATT_WIDTH + chunk * 8 + e] : 0;
            top = fmaxf(top, fabsf(x[i][e]));
        }
    }
    for (int d = 16; d; d >>= 1)
        top = fmaxf(top, __shfl_xor_sync(ATT_ALL, top, d));
    if (!(threadIdx.x & 31))
        all[threadIdx.x >> 5] = top;
    __syncthreads();
    for (int i = 0; i < 8; i++)
        top = fmaxf(top, all[i]);
    top = top > 0 ? top : 1;
    if (!threadIdx.x)
        sk[block] = top / 127;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = i * 16 + row;
        uint32_t w[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 8; e++)
            w[e >> 2] |= (uint32_t)(__float2int_rn(x[i][e] * (127 / top)) & 255) << (e & 3) * 8;
        int8_t *to = k8 + block * (BLOCK * ATT_WIDTH) + r * ATT_WIDTH;
        *(uint2 *)(to + (((chunk >> 1) ^ (r & 7)) << 4) + (chunk & 1) * 8) = make_uint2(w[0], w[1]);
    }
}

__device__ static inline uint32_t pack_e4m3(float a, float b, float c, float d)
{
    uint32_t r = 0;

#if SAGE_FP8
    asm("{ .reg .b16 lo, hi; cvt.rn.satfinite.e4m3x2.f32 lo, %2, %1; cvt.rn.satfinite.e4m3x2.f32 hi, %4, %3;"
        "mov.b32 %0, {lo, hi}; }"
        : "=r"(r) : "f"(a), "f"(b), "f"(c), "f"(d));
#else
    (void)a, (void)b, (void)c, (void)d;
#endif
    return r;
}

/* A tile of 32 keys of v8, transposed: [128 columns][32 keys], two chunks of 16 bytes a column, chunk c of column n at
 * c ^ (n >> 2 & 1). Key 16 a + 8 b + 2 t + i sits at 16 a + 4 t + 2 b + i: where the probabilities' fragments have it.
 * */
__global__ static void __launch_bounds__(128) quantize_values_kernel(uint8_t *v8, const __nv_bfloat16 *v, int64_t ld,
                                                                     int keys, const float *sv)
{
    const int c = threadIdx.x, first = blockIdx.x * 32;
    const float by = 1 / sv[blockIdx.y * ATT_WIDTH + c];
    float x[32];

#pragma unroll
    for (int r = 0; r < 32; r++)
        x[r] = first + r < keys ? __bfloat162float(v[blockIdx.y * ATT_WIDTH + (first + r) * ld + c]) * by : 0;
    uint32_t *to = (uint32_t *)(v8 + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * (32 * ATT_WIDTH) + c * 32);
#pragma unroll
    for (int a = 0; a < 2; a++)
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const int r = 16 * a + 2 * t;
            to[(a ^ (c >> 2 & 1)) * 4 + t] = pack_e4m3(x[r], x[r + 1], x[r + 8], x[r + 9]);
        }
}

/* ---- attention ---- */

__device__ static inline void mma_s8(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, const int from[4])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(from[0]), "r"(from[1]), "r"(from[2]),
          "r"(from[3]));
}

/* o += a b, the product summed from zero. */
__device__ static inline void mma_e4m3(float o[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
#if SAGE_FP8
    float c[4];

    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
#pragma unroll
    for (int e = 0; e < 4; e++)
        o[e] += c[e];
#else
    (void)o, (void)a, (void)b0, (void)b1;
#endif
}

/* Quantizes the warp's queries to fragments of 32 columns and 16 rows. scale: of a row, times those of the scores. */
__device__ static inline void sage_queries(uint32_t f[4][2][4], float scale[4], const struct sage *a, int first)
{
    const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = first + 8 * i + g;
        const __nv_bfloat16 *q = a->q + blockIdx.y * ATT_WIDTH + row * a->ldq + 4 * t;
        float x[8][4];
        uint32_t bits = 0;              /* of the largest magnitude; those of NaN are larger still */
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint2 w = row < a->rows ? *(const uint2 *)(q + 16 * n) : make_uint2(0, 0);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[n][e] = __uint_as_float(e & 1 ? (e < 2 ? w.x : w.y) & 0xffff0000 : (e < 2 ? w.x : w.y) << 16);
                bits = max(bits, __float_as_uint(fabsf(x[n][e])));
            }
        }
#pragma unroll
        for (int d = 1; d < 4; d <<= 1)
            bits = max(bits, __shfl_xor_sync(ATT_ALL, bits, d));
        const float top = bits ? __uint_as_float(bits) : 1, by = 127 / top;
        scale[i] = top / 127 * a->scale;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            uint32_t w = 0;
#pragma unroll
            for (int e = 0; e < 4; e++)
                w |= (uint32_t)(__float2int_rn(x[n][e] * by) & 255) << e * 8;
            f[n >> 1][i >> 1][2 * (n & 1) + (i & 1)] = w;
        }
    }
}

/* s = q8 k8^T, from MAGIC on. kt: this lane's address in the tile. */
__device__ static inline void sage_scores(int s[2][KEYS / 8][4], const uint32_t q[4][2][4], uint32_t kt)
{
    const int magic[4] = {MAGIC, MAGIC, MAGIC, MAGIC};

#pragma unroll
    for (int ks = 0; ks < 4; ks++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            att_ldmatrix(b, (kt ^ (ks << 5)) + n * 2048);
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                mma_s8(s[mt][2 * n], q[ks][mt], b[0], b[1], ks ? s[mt][2 * n] : magic);
                mma_s8(s[mt][2 * n + 1], q[ks][mt], b[2], b[3], ks ? s[mt][2 * n + 1] : magic);
            }
        }
}

/* Hides the keys past the last of n; this lane's highest scores, scaled. */
__device__ static inline void sage_top(float top[4], int s[2][KEYS / 8][4], const float scale[4], int n)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float high = -INFINITY;
#pragma unroll
        for (int c = 0; c < KEYS / 4; c++) {
            int *x = &s[i >> 1][c >> 1][2 * (i & 1) + (c & 1)];
            *x = (c >> 1) * 8 + 2 * (int)(threadIdx.x & 3) + (c & 1) < n ? *x : (int)0xff800000;      /* -inf */
            high = fmaxf(high, __int_as_float(*x));
        }
        top[i] = (high - __int_as_float(MAGIC)) * scale[i];
    }
}

/* p = 2^(scale s - reference), as fragments of bf16, or of e4m3 in p[mt][0]; part: this lane's sums. */
template <int FP8>
__device__ static inline void sage_probs(uint32_t p[2][KEYS / 16][4], float part[4], const float ref[4],
                                         const int s[2][KEYS / 8][4], const float scale[4])
{
    float from[4];

#pragma unroll
    for (int i = 0; i < 4; i++) {
        from[i] = fmaf(-__int_as_float(MAGIC), scale[i], (FP8 ? P_BITS : 0) - ref[i]);
        part[i] = 0;
    }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int score = s[i >> 1][2 * n + (e >> 1)][2 * (i & 1) + (e & 1)];
                x[e] = att_exp2(fmaf(__int_as_float(score), scale[i], from[i]));
            }
            part[i] += x[0] + x[1];
            part[i] += x[2] + x[3];
            if (FP8) {
                p[i >> 1][0][2 * n + (i & 1)] = pack_e4m3(x[0], x[1], x[2], x[3]);
            } else {
                p[i >> 1][n][i & 1] = att_pair(x[0], x[1]);
                p[i >> 1][n][2 + (i & 1)] = att_pair(x[2], x[3]);
            }
        }
}

/* o += p v8 for 16 columns. */
__device__ static inline void sage_add(struct att_sum *sum, const uint32_t p[2][KEYS / 16][4], uint32_t vt, int n)
{
    uint32_t b[4];

    att_ldmatrix(b, vt + n * 512);
#pragma unroll
    for (int x = 0; x < 4; x++)
        mma_e4m3(sum->o[x >> 1][2 * n + (x & 1)], p[x >> 1][0], b[2 * (x & 1)], b[2 * (x & 1) + 1]);
}

/* Tile i of bytes that lie as they shall lie. */
__device__ static inline void sage_copy(uint32_t to, const void *x, int blocks, int i)
{
    const char *from = (const char *)x + ((int64_t)blockIdx.y * blocks * (BLOCK / KEYS) + i) * TILE + threadIdx.x * 16;

    att_copy16(to + threadIdx.x * 16, from);
    att_copy16(to + threadIdx.x * 16 + 2048, from + 2048);
}

template <int FP8> __global__ static void __launch_bounds__(128, 2) sage_kernel(const struct sage a)
{
    constexpr int STAGE = FP8 ? 2 * TILE : 3 * TILE;
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t lane = threadIdx.x & 31, base = att_shared(smem);
    const int first = blockIdx.x * ATT_ROWS + (threadIdx.x >> 5) * 32, blocks = (a.keys + BLOCK - 1) / BLOCK;
    const float limit = FP8 ? P_LIMIT : ATT_LIMIT;
    uint32_t q[4][2][4];
    struct att_sum sum;
    float sq[4];

    auto fetch = [&](uint32_t stage, int key) {
        if (key < a.keys)
            sage_copy(stage, a.k8, blocks, key / KEYS);
        if (!FP8)
            att_tile_copy<KEYS>(stage + TILE, a.v, a.ldv, key, a.keys);
        else if (key < a.keys)
            sage_copy(stage + TILE, a.v8, blocks, key / KEYS);
        att_commit();
    };

#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
        fetch(base + i * STAGE, i * KEYS);
    sage_queries(q, sq, &a, first);
    att_sum_open(&sum);
    uint32_t stage = base, free = base + (STAGES - 1) * STAGE;
    float sk = a.sk[blockIdx.y * blocks];
    for (int key = 0; key < a.keys; key += KEYS) {
        const uint32_t even = lane >> 3 & 1, row = (lane & 7) + (lane >> 4) * 8;
        const uint32_t kt = stage + row * ATT_WIDTH + ((even ^ (lane & 7)) << 4);
        const uint32_t vt = stage + TILE + (FP8 ? row * KEYS + ((even ^ (lane >> 2 & 1)) << 4) : att_value_lane());
        float part[4] = {INFINITY, INFINITY, INFINITY, INFINITY}, scale[4];
        uint32_t p[2][KEYS / 16][4];
        int again = key == 0 || key + KEYS > a.keys;    /* no references yet, or keys to hide */

        att_wait<STAGES - 2>();
        __syncthreads();                /* everybody's part of this tile is there, and nobody needs the one before */
        fetch(free, key + (STAGES - 1) * KEYS);
        free = stage;
        stage = stage == base + (STAGES - 1) * STAGE ? base : stage + STAGE;
#pragma unroll
        for (int i = 0; i < 4; i++)
            scale[i] = sq[i] * sk;
        sk = a.sk[blockIdx.y * blocks + (key + KEYS < a.keys ? (key + KEYS) / BLOCK : 0)];
        if (!again) {
            int s[2][KEYS / 8][4];
            sage_scores(s, q, kt);
            sage_probs<FP8>(p, part, sum.ref, s, scale);
            again = att_passes(part, limit);
        }
        if (again) {
            int s[2][KEYS / 8][4];
            float top[4];
            sage_scores(s, q, kt);
            sage_top(top, s, scale, a.keys - key);
            att_sum_move(&sum, top, part, limit);
            sage_probs<FP8>(p, part, sum.ref, s, scale);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum.l[i] += part[i];
        if (FP8) {
#pragma unroll
            for (int n = 0; n < ATT_WIDTH / 16; n++)
                sage_add(&sum, p, vt, n);
        } else {
#pragma unroll
            for (int n = 0; n < KEYS / 2; n++)
                att_sum_add(&sum, p[0][n >> 3], p[1][n >> 3], vt, n >> 3, n & 7);
        }
    }
    att_sum_close(&sum, a.o, a.ldo, first, a.rows, FP8 ? a.sv : NULL);
}

/* ---- host ---- */

template <int FP8> static void sage_run(struct hv_dev *d, const struct sage *a, int heads)
{
    const int bytes = STAGES * TILE * (FP8 ? 2 : 3);
    const dim3 grid((unsigned)((a->rows + ATT_ROWS - 1) / ATT_ROWS), (unsigned)heads);

    if (cuda_failed(d, cudaFuncSetAttribute(sage_kernel<FP8>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "attention"))
        return;
    sage_kernel<FP8><<<grid, 128, bytes, cuda_stream(d)>>>(*a);
    CUDA_LAUNCHED(d, "attention");
}

/* k8, v8, sk, sv and the mean of k, in this order; partial sums stand where k8 and v8 will. */
static void sage_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v,
                           const struct hv_attn *a, int fp8)
{
    const int keys = (int)k.shape[0], parts = (keys + PART - 1) / PART, blocks = (keys + BLOCK - 1) / BLOCK;
    const unsigned heads = (unsigned)a->heads;
    const size_t bytes = (size_t)heads * (size_t)blocks * (BLOCK * ATT_WIDTH);
    int8_t *k8 = (int8_t *)a->scratch.data;
    uint8_t *v8 = (uint8_t *)k8 + bytes;
    float *sk = (float *)(v8 + (fp8 ? bytes : 0)), *mean = sk + (size_t)heads * (size_t)blocks;
    float *sv = mean + heads * ATT_WIDTH;
    const __nv_bfloat16 *kp = (const __nv_bfloat16 *)k.data, *vp = (const __nv_bfloat16 *)v.data;
    const cudaStream_t stream = cuda_stream(d);

    column_part_kernel<0><<<dim3((unsigned)parts, heads), 128, 0, stream>>>((float *)k8, kp, cuda_ld(&k), keys);
    column_kernel<0><<<heads, 128, 0, stream>>>(mean, (const float *)k8, parts, keys);
    quantize_keys_kernel<<<dim3((unsigned)blocks, heads), 256, 0, stream>>>(k8, sk, kp, cuda_ld(&k), keys, mean);
    if (fp8) {
        column_part_kernel<1><<<dim3((unsigned)parts, heads), 128, 0, stream>>>((float *)v8, vp, cuda_ld(&v), keys);
        column_kernel<1><<<heads, 128, 0, stream>>>(sv, (const float *)v8, parts, keys);
        quantize_values_kernel<<<dim3((unsigned)blocks * (BLOCK / KEYS), heads), 128, 0, stream>>>(v8, vp, cuda_ld(&v),
                                                                                                    keys, sv);
    }
    const struct sage s = {(const __nv_bfloat16 *)q.data, vp, k8, v8, sk, sv, (__nv_bfloat16 *)o.data, cuda_ld(&q),
                           cuda_ld(&v), cuda_ld(&o), (int)q.shape[0], keys, (float)(a->scale * ATT_LOG2E)};
    if (fp8)
        sage_run<1>(d, &s, a->heads);
    else
        sage_run<0>(d, &s, a->heads);
}

int cuda_attention_sage(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v,
                        const struct hv_attn *a, int fp8)
{
    const int arch = cuda_of(d)->arch;
    const enum hv_attention kind = fp8 ? HV_ATT_SAGE_FP8 : HV_ATT_SAGE;
    const size_t need = hv_attention_scratch(kind, q.shape[0], k.shape[0], a->heads, ATT_WIDTH);
    const size_t have = a->scratch.dtype == HV_NONE ? 0 : hv_nbytes(a->scratch);

    if (!att_takes(&o, &q, &k, &v, a))
        return 1;
    if (have < need || (uintptr_t)a->scratch.data % 16)
        hv_dev_fault(d, HV_EDEVICE, "attention: %zu bytes of scratch at %p, %lld keys of %d heads need %zu",
                     have, a->scratch.data, (long long)k.shape[0], a->heads, need);
    else
        sage_attention(d, o, q, k, v, a, fp8 && (arch == 89 || arch >= 120));
    return 0;
}
