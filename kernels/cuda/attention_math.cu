/* attention_math.cu - o = softmax(scale q k^T) v in f32: any head width to 1024, grouped heads, steps and masks
 *
 * q, o [Lq, heads * D], k, v [Lk, kv_heads * D], all f32, f16 or bf16, any row strides; o may be q.
 * A block of 256 threads owns ROWS queries of a head, which it keeps in shared memory as f32, times scale and log2(e).
 * Keys come in tiles of 64: scores, a register tile a thread, from slices of 32 columns; online softmax in shared
 * memory; then each thread adds p v for its columns and rows, with v read straight from memory. Three shapes: 64, 32 or
 * 16 queries for D to 128, 512, 1024.
 * All arithmetic and sums f32, in one order. Hidden keys are not read into the sums, so what they hold does not matter;
 * a query that is NaN stays in its row.
 * Bound by the f32 units: a third of their rate on an H100 at D = 128 and thousands of queries. Error against f64: 1e-6
 * of the result's largest value, then rounding of o.
 * The oracle of tests/gpu/bench_attention; tests/unit/test_ops compares it with f64. */
#include "kernels/cuda/attention.cuh"

#define THREADS 256
#define KEYS    64                      /* of a tile */
#define SLICE   32                      /* columns of a slice */
#define PAD     4

struct math {
    const void    *q, *k, *v;
    void          *o;
    int64_t        ldq, ldk, ldv, ldo, step, offset;
    int            rows, keys, width, wide;     /* wide: width to a multiple of SLICE */
    int            per;                 /* heads that share a head of k and v */
    int            type;                /* hv_dtype of all four */
    float          scale;               /* times log2(e) */
    const uint8_t *mask;                /* or NULL */
};

__device__ static inline float math_at(const void *p, int64_t i, int type)
{
    return type == HV_F32 ? ((const float *)p)[i] : type == HV_F16 ? __half2float(((const __half *)p)[i])
                                                                   : __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}

/* Keys that query i sees. */
__device__ static inline int math_limit(const struct math *a, int64_t i)
{
    const int64_t n = a->step ? (i / a->step + 1) * a->step + a->offset : a->keys;

    return (int)(n < a->keys ? n : a->keys);
}

/* This thread's part of a slice of a tile's keys: 8 elements, one of every 8th row. at: of the first; n: rows there
 * are. */
template <typename T>
__device__ static inline void math_slice(float x[KEYS / 8], const struct math *a, int64_t at, int n)
{
    const T *p = (const T *)a->k + at;

#pragma unroll
    for (int i = 0; i < KEYS; i += 8, p += 8 * a->ldk)
        x[i / 8] = i < n ? to_float(*p) : 0;
}

/* Values of 4 keys, of which the first is at `at`, hidden ones as 0: columns across apart, n of them. */
template <typename T, int COLS>
__device__ static inline void math_values(float v[4][COLS], const struct math *a, int64_t at, int key, int most,
                                          int across, int n)
{
    const T *p = (const T *)a->v + at;

#pragma unroll
    for (int e = 0; e < 4; e++, p += a->ldv) {
        const int there = key + e < most && (!a->mask || a->mask[key + e]);
#pragma unroll
        for (int c = 0; c < COLS; c++)
            v[e][c] = there && c * across < n ? to_float(p[c * across]) : 0;
    }
}

/* ROWS queries a block; each thread adds for COLS columns, THREADS / GROUPS apart, of ROWS / GROUPS rows. */
template <int ROWS, int COLS, int GROUPS>
__global__ static void __launch_bounds__(THREADS, 2) attention_math_kernel(const struct math a)
{
    constexpr int R = ROWS / 16, PER = ROWS / GROUPS, ACROSS = THREADS / GROUPS, LANES = THREADS / ROWS;
    extern __shared__ __align__(16) float shared[];
    const int ldq = a.wide + PAD, tid = threadIdx.x;
    float *q = shared, *k = q + ROWS * ldq, *s = k + KEYS * (SLICE + PAD), *by = s + ROWS * (KEYS + PAD);
    float *total = by + ROWS;
    const int64_t first = (int64_t)blockIdx.x * ROWS, head = (int64_t)blockIdx.y * a.width;
    const int64_t from = (int64_t)(blockIdx.y / a.per) * a.width;
    const int left = (int)(a.rows - first < ROWS ? a.rows - first : ROWS), most = math_limit(&a, first + left - 1);
    const int tx = tid & 15, ty = tid >> 4;             /* scores: keys tx + 16 j, rows ty * R + i */
    const int row = tid / LANES, lane = tid % LANES;    /* softmax */
    const int column = tid % ACROSS, group = tid / ACROSS;      /* sums */
    const int limit = math_limit(&a, first + (row < left ? row : left - 1));
    float top = -INFINITY, sum = 0, acc[PER][COLS];

    for (int i = tid; i < ROWS * a.wide; i += THREADS) {
        const int r = i / a.wide, c = i % a.wide;
        q[r * ldq + c] = r < left && c < a.width ? math_at(a.q, (first + r) * a.ldq + head + c, a.type) * a.scale : 0;
    }
#pragma unroll
    for (int r = 0; r < PER; r++)
#pragma unroll
        for (int c = 0; c < COLS; c++)
            acc[r][c] = 0;

    float slice[KEYS / 8];
    const int slice_row = tid >> 5, slice_column = tid & 31;
    CUDA_FOR_TYPE(a.type, T, math_slice<T>(slice, &a, slice_row * a.ldk + from + slice_column,
                                           slice_column < a.width ? a.keys - slice_row : 0))
    for (int key = 0; key < most; key += KEYS) {
        float x[R][4] = {};
        for (int c0 = 0; c0 < a.wide; c0 += SLICE) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++)
                k[(slice_row + 8 * i) * (SLICE + PAD) + slice_column] = slice[i];
            __syncthreads();
            /* The next slice is on its way while this one is used. */
            const int last = c0 + SLICE == a.wide;
            const int row1 = key + slice_row + (last ? KEYS : 0), column1 = slice_column + (last ? 0 : c0 + SLICE);
            CUDA_FOR_TYPE(a.type, T, math_slice<T>(slice, &a, row1 * a.ldk + from + column1,
                                                   column1 < a.width ? a.keys - row1 : 0))
#pragma unroll 1
            for (int c = 0; c < SLICE; c += 4) {
                float4 w[R];
#pragma unroll
                for (int i = 0; i < R; i++)
                    w[i] = *(const float4 *)(q + (ty * R + i) * ldq + c0 + c);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float4 y = *(const float4 *)(k + (tx + 16 * j) * (SLICE + PAD) + c);
#pragma unroll
                    for (int i = 0; i < R; i++)
                        x[i][j] = fmaf(w[i].w, y.w, fmaf(w[i].z, y.z, fmaf(w[i].y, y.y, fmaf(w[i].x, y.x, x[i][j]))));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[(ty * R + i) * (KEYS + PAD) + tx + 16 * j] = x[i][j];
        __syncthreads();

        /* A row: LANES neighbours, of one warp. */
        float *p = s + row * (KEYS + PAD), high = top, part = 0;
#pragma unroll
        for (int j = lane; j < KEYS; j += LANES) {
            if (key + j >= limit || (a.mask && !a.mask[key + j]))
                p[j] = -INFINITY;
            high = fmaxf(high, p[j]);
        }
#pragma unroll
        for (int d = 1; d < LANES; d <<= 1)
            high = fmaxf(high, __shfl_xor_sync(ATT_ALL, high, d));
        const float shrink = high == top ? 1 : exp2f(top - high), ref = high == -INFINITY ? 0 : high;
#pragma unroll
        for (int j = lane; j < KEYS; j += LANES)
            part += p[j] = exp2f(p[j] - ref);
#pragma unroll
        for (int d = 1; d < LANES; d <<= 1)
            part += __shfl_xor_sync(ATT_ALL, part, d);
        sum = sum * shrink + part;
        top = high;
        if (!lane)
            by[row] = shrink;
        __syncthreads();

#pragma unroll
        for (int r = 0; r < PER; r++)
#pragma unroll
            for (int c = 0; c < COLS; c++)
                acc[r][c] *= by[group * PER + r];
#pragma unroll 1
        for (int j = 0; j < KEYS && key + j < most; j += 4) {
            float v[4][COLS];
            const int64_t at = (key + j) * a.ldv + from + column;
            CUDA_FOR_TYPE(a.type, T, math_values<T, COLS>(v, &a, at, key + j, most, ACROSS, a.width - column))
#pragma unroll
            for (int r = 0; r < PER; r++) {
                const float4 w = *(const float4 *)(s + (group * PER + r) * (KEYS + PAD) + j);
#pragma unroll
                for (int c = 0; c < COLS; c++)
                    acc[r][c] = fmaf(w.w, v[3][c],
                                     fmaf(w.z, v[2][c], fmaf(w.y, v[1][c], fmaf(w.x, v[0][c], acc[r][c]))));
            }
        }
    }
    if (!lane)
        total[row] = sum;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < PER; r++) {
        const int i = group * PER + r;
        if (i >= left)
            break;
        const float scale = 1 / total[i];
#pragma unroll
        for (int c = 0; c < COLS; c++) {
            const int64_t at = (first + i) * a.ldo + head + column + c * ACROSS;
            if (column + c * ACROSS >= a.width)
                break;
            CUDA_FOR_TYPE(a.type, T, ((T *)a.o)[at] = from_float<T>(acc[r][c] * scale))
        }
    }
}

template <int ROWS, int COLS, int GROUPS> static void math_run(struct hv_dev *d, const struct math *a, int heads)
{
    const int numbers = ROWS * (a->wide + PAD) + KEYS * (SLICE + PAD) + ROWS * (KEYS + PAD) + 2 * ROWS;
    const int shared = numbers * (int)sizeof(float);
    const dim3 grid((unsigned)((a->rows + ROWS - 1) / ROWS), (unsigned)heads);

    if (cuda_failed(d, cudaFuncSetAttribute(attention_math_kernel<ROWS, COLS, GROUPS>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "attention"))
        return;
    attention_math_kernel<ROWS, COLS, GROUPS><<<grid, THREADS, shared, cuda_stream(d)>>>(*a);
    CUDA_LAUNCHED(d, "attention");
}

int cuda_attention_math(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t width = q.shape[1] / a->heads;
    const struct math m = {
        .q = q.data, .k = k.data, .v = v.data, .o = o.data, .ldq = cuda_ld(&q), .ldk = cuda_ld(&k), .ldv = cuda_ld(&v),
        .ldo = cuda_ld(&o), .step = a->step, .offset = a->offset, .rows = (int)q.shape[0], .keys = (int)k.shape[0],
        .width = (int)width, .wide = (int)(width + SLICE - 1) / SLICE * SLICE, .per = a->heads / a->kv_heads,
        .type = q.dtype, .scale = (float)(a->scale * ATT_LOG2E),
        .mask = a->key_mask.dtype == HV_NONE ? NULL : (const uint8_t *)a->key_mask.data};

    if (width > 1024 || q.shape[0] > INT32_MAX - KEYS || k.shape[0] > INT32_MAX - KEYS || a->heads > 65535)
        return 1;
    if (width <= 128)
        math_run<64, 1, 2>(d, &m, a->heads);
    else if (width <= 512)
        math_run<32, 2, 1>(d, &m, a->heads);
    else
        math_run<16, 4, 1>(d, &m, a->heads);
    return 0;
}
