/* norm.cu - over the columns of each row
 *
 *     layer_norm   (x - mean) / sqrt(var + eps) * weight + bias
 *     rms_norm     x / sqrt(mean(x^2) + eps) * weight
 *     row_stats    (mean, 1 / sqrt(var + eps)) of a row; norm_modulate, which uses it, is in elementwise.cu
 *
 * x, y [R, K] bf16, f16 or f32, rows may be strided, x == y allowed; weight, bias [K] f32 or bf16; stat f32 [R, 2].
 * Any R, K. One warp a row. Rows of bf16 of up to 3072 columns stay in registers, 12 chunks of 8 a lane; others are read
 * again for each pass, from the caches.
 * The variance is that of x - m, m the mean as first found, and the mean is corrected by what x - m adds up to: nothing is
 * lost when the mean is far from zero.
 * Traffic: x once, y once: 4*R*K bytes in bf16, 2*R*K for row_stats. Bound by memory.
 * Error: sums of f32 in chains of K/256 (a chunk is summed as a tree), then a tree over lanes: within 1e-6 of the largest
 * result, rounded once. */
#include "kernels/cuda/values.cuh"

#define LANES   32
#define STEP    (LANES * CHUNK)         /* columns that a warp covers at a time */
#define WARPS   4                       /* rows of a block */
#define HELD    12                      /* chunks of a lane in registers */

enum norm_op { NORM_LAYER, NORM_RMS, NORM_STATS, NORM_ANY };

struct norm {
    void           *y;
    const void     *x;
    int64_t         ldy, ldx, rows, cols;
    struct cuda_vec weight, bias;
    float          *stat;
    float           eps;
    int             op;
};

__device__ static inline float warp_sum(float v)
{
#pragma unroll
    for (int i = LANES / 2; i; i /= 2)
        v += __shfl_xor_sync(~0u, v, i);
    return v;
}

__device__ static inline float tree(const float v[CHUNK])
{
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/* Keeps what is held in the width of memory: the compiler would rather keep it as f32, in twice the registers. */
template <typename T, int N> __device__ static inline void keep_narrow(chunk<T> *held)
{
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < (int)(sizeof held->w / sizeof *held->w); j++)
            asm volatile("" : "+r"(held[i].w[j]));
}

/* N chunks a lane in registers, whole ones on 16 bytes; N 0: as many as there are, from memory, and of any kind. The
 * arithmetic is one, and says where it fuses: both give the same bits. OP: the operation; NORM_ANY: that of p. */
template <typename T, int N, int OP>
__global__ static void __launch_bounds__(WARPS * LANES, !N ? 8 : OP == NORM_LAYER ? 3 : 4)
norm_kernel(const struct norm p)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.y, at = threadIdx.x * CHUNK;
    const int all = N ? N : (int)((p.cols + STEP - 1) / STEP), op = OP == NORM_ANY ? p.op : OP;
    const T *x = (const T *)p.x + row * p.ldx + at;
    const float k = 1 / (float)p.cols;
    chunk<T> held[N ? N : 1];
    float v[CHUNK], w[CHUNK], b[CHUNK], mean = 0, rest = 0, sum = 0, square = 0;

    if (row >= p.rows)
        return;
#define COLUMNS(i) columns(p.cols, at + (int64_t)(i) * STEP)
#define READ(i) load_chunk(x + (int64_t)(i) * STEP, COLUMNS(i))
#pragma unroll
    for (int i = 0; i < N; i++)
        held[i] = load_whole(x + (int64_t)i * STEP, COLUMNS(i) > 0);
    if (op != NORM_RMS) {
#pragma unroll
        for (int i = 0; i < all; i++) {
            widen(v, N ? held[N ? i : 0] : READ(i));
            sum += tree(v);                             /* zeros behind the last column */
        }
        mean = warp_sum(sum) * k;
        keep_narrow<T, N>(held);
    }
    sum = 0;
#pragma unroll
    for (int i = 0; i < all; i++) {
        const int n = COLUMNS(i);
        widen(v, N ? held[N ? i : 0] : READ(i));
#pragma unroll
        for (int j = 0; j < CHUNK; j++)
            v[j] = (N ? 0 : j) < n ? v[j] - mean : 0;
        if (op != NORM_RMS)
            sum += tree(v);
        const float even = fmaf(v[6], v[6], fmaf(v[4], v[4], fmaf(v[2], v[2], __fmul_rn(v[0], v[0]))));
        const float odd = fmaf(v[7], v[7], fmaf(v[5], v[5], fmaf(v[3], v[3], __fmul_rn(v[1], v[1]))));
        square += even + odd;
    }
    if (op != NORM_RMS)
        rest = warp_sum(sum) * k;
    const float var = fmaf(-rest, rest, __fmul_rn(warp_sum(square), k));
    const float rstd = 1 / sqrtf((var > 0 ? var : 0 * var) + p.eps);            /* 0 * var: NaN stays */
    if (op == NORM_STATS) {
        if (threadIdx.x == 0)
            *(float2 *)(p.stat + 2 * row) = make_float2(mean + rest, rstd);
        return;
    }
    keep_narrow<T, N>(held);
#pragma unroll
    for (int i = 0; i < all; i++) {
        const int64_t c = at + (int64_t)i * STEP;
        const int n = COLUMNS(i);
        if (n <= 0)
            break;
        widen(v, N ? held[N ? i : 0] : READ(i));
        vec8(w, p.weight, c, n, 1);
        vec8(b, p.bias, c, n, 0);
#pragma unroll
        for (int j = 0; j < CHUNK; j++)
            v[j] = fmaf(((v[j] - mean) - rest) * rstd, w[j], b[j]);
        store8((T *)p.y + row * p.ldy + c, n, v);
    }
#undef COLUMNS
#undef READ
}

/* 1: every row of a matrix begins on 16 bytes. */
static int even_rows(const void *p, int64_t ld, hv_dtype t)
{
    return (((uintptr_t)p | (uintptr_t)(ld * (int64_t)hv_dtype_size(t))) & 15) == 0;
}

static void launch(struct hv_dev *d, const char *name, hv_tensor x, struct norm p)
{
    const dim3 block(LANES, WARPS);

    p.x = x.data;
    p.ldx = cuda_ld(&x);
    p.rows = cuda_rows(&x);
    p.cols = cuda_width(&x);
    if (!p.rows || !p.cols)
        return;
    const unsigned grid = (unsigned)((p.rows + WARPS - 1) / WARPS);
    if (x.dtype == HV_BF16 && p.cols <= HELD * STEP && p.cols % CHUNK == 0 && even_rows(p.x, p.ldx, x.dtype)) {
        if (p.op == NORM_LAYER)
            norm_kernel<__nv_bfloat16, HELD, NORM_LAYER><<<grid, block, 0, cuda_stream(d)>>>(p);
        else if (p.op == NORM_RMS)
            norm_kernel<__nv_bfloat16, HELD, NORM_RMS><<<grid, block, 0, cuda_stream(d)>>>(p);
        else
            norm_kernel<__nv_bfloat16, HELD, NORM_STATS><<<grid, block, 0, cuda_stream(d)>>>(p);
    } else {
        CUDA_FOR_TYPE(x.dtype, T, (norm_kernel<T, 0, NORM_ANY><<<grid, block, 0, cuda_stream(d)>>>(p)))
    }
    CUDA_LAUNCHED(d, name);
}

static struct norm norm_of(enum norm_op op, hv_tensor y, float eps)
{
    struct norm p = {};

    p.op = op;
    p.y = y.data;
    p.ldy = cuda_ld(&y);
    p.eps = eps;
    return p;
}

void cuda_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps)
{
    struct norm p = norm_of(NORM_LAYER, y, eps);

    p.weight = cuda_vec_of(weight);
    p.bias = cuda_vec_of(bias);
    launch(d, "layer_norm", x, p);
}

void cuda_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps)
{
    struct norm p = norm_of(NORM_RMS, y, eps);

    p.weight = cuda_vec_of(weight);
    launch(d, "rms_norm", x, p);
}

void cuda_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps)
{
    struct norm p = norm_of(NORM_STATS, stat, eps);

    p.stat = (float *)stat.data;
    launch(d, "row_stats", x, p);
}
