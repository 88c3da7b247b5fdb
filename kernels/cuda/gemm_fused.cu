/* gemm_fused.cu - y = act(x w^T + bias), w in 8 bits as stored: widened to bf16 on its way to the tensor cores
 *
 * x, y bf16; w I8 or F8_E4M3 with a scale a row; up to 3 products of one x in a launch. Any R, N, K; x and w on 16
 * bytes, in rows of multiples of 16 bytes (gemm_plain.cu takes the rest); y any, 16-byte stores where it is aligned.
 * Compute capability 9.0 has a kernel of its own, gemm_fused90.cu.
 *
 * A block of 8 warps computes 128 rows by 256 columns (128 when that wastes less), each warp 64 by 64 (or 32), in steps
 * of m16n8k16. Both operands arrive by cp.async, 64 columns of K a stage, 3 or 4 stages deep, as they are stored: a
 * weight costs one byte of traffic all the way. The grid is persistent: a block walks over tiles, and while it writes
 * one out, the next one's operands are on their way.
 *
 * K is permuted within each 16 columns, the same way in both operands: thread t of a quad holds columns 4t to 4t+3,
 * which in w is the 4 bytes that ldmatrix hands it and in x one 8-byte load. So no byte crosses threads.
 *
 * Every 8-bit value is exact in bf16 and the scale is applied to the sum, in f32, which is more exact than scaled
 * weights rounded to bf16; weights that ask for that rounding (deq_bf16) are scaled and rounded one by one, which costs
 * about a quarter. Codes 0x7f and 0xff of e4m3 count as 480: no file has them (hv-weights refuses NaN). NaN of x, scale
 * and bias propagate. Sums run over K in one order, whatever the tile, the grid or the stages: bits depend on none.
 *
 * Bound by the tensor cores by way of mma.sync. Error: that of f32 sums, then one rounding to bf16. */
#include "kernels/cuda/gemm_fused.cuh"

#include <limits.h>

#define BM      128                     /* rows of a tile */
#define BK      64                      /* columns of K a stage */
#define THREADS 256

/* ---- instructions ---- */

__device__ static inline void copy16(uint32_t to, const void *from, int bytes)      /* the rest of 16 is zeros */
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ static inline void load_x(uint32_t *r, uint32_t at)
{
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at));
}

__device__ static inline void load_w(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

__device__ static inline void mma(float *c, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- what a block reads ---- */

/* What a thread copies: 4 pieces of 16 bytes of x and W of w a stage. Offsets of rows are kept in units of 16 bytes. */
template <int W> struct loader {
    const char *x, *w;
    uint32_t rx[4], rw[W];
    int tile, k;                        /* the next to copy */
};

template <int W> __device__ static inline void loader_place(const struct fused &p, struct loader<W> &l)
{
    const int tid = threadIdx.x;
    int matrix, row, col;

    l.k = 0;
    if (l.tile >= p.tiles)
        return;
    place<BM, 64 * W>(p, l.tile, matrix, row, col);
    l.x = (const char *)p.x;
    l.w = (const char *)p.m[matrix].w;
#pragma unroll
    for (int i = 0; i < 4; i++)         /* rows past the end repeat the last one: they are not stored */
        l.rx[i] = (uint32_t)(min(row + tid / 8 + 32 * i, p.rows - 1) * p.ldx >> 3) + tid % 8;
#pragma unroll
    for (int i = 0; i < W; i++)
        l.rw[i] = (uint32_t)(min(col + tid / 4 + 64 * i, p.cols - 1) * p.ldw >> 4) + tid % 4;
}

/* Columns past K are zeros in both operands. */
template <int W> __device__ static inline void load_stage(const struct fused &p, struct loader<W> &l, uint32_t stage)
{
    const int tid = threadIdx.x, xr = tid / 8, xc = tid % 8, wr = tid / 4, wc = tid % 4;

    if (l.tile < p.tiles) {
        const int nx = min(16, max(0, 2 * (p.depth - l.k - 8 * xc))), nw = min(16, max(0, p.depth - l.k - 16 * wc));
        const uint32_t tx = stage + xr * 128 + (xc ^ (xr & 3) << 1) * 16;
        const uint32_t tw = stage + BM * 128 + wr * 64 + (wc ^ (wr >> 1 & 3)) * 16;
#pragma unroll
        for (int i = 0; i < 4; i++)
            copy16(tx + i * 32 * 128, l.x + ((uint64_t)l.rx[i] << 4), nx);
#pragma unroll
        for (int i = 0; i < W; i++)
            copy16(tw + i * 64 * 64, l.w + ((uint64_t)l.rw[i] << 4), nw);
        l.x += BK * 2;
        l.w += BK;
        if ((l.k += BK) >= p.depth) {
            l.tile += gridDim.x;
            loader_place(p, l);
        }
    }
    asm volatile("cp.async.commit_group;");
}

__device__ static inline void wait_stage(int stages)
{
    if (stages == 4)
        asm volatile("cp.async.wait_group 2;" ::: "memory");
    else
        asm volatile("cp.async.wait_group 1;" ::: "memory");
}

/* ---- what it writes ---- */

/* 8 x 8 bf16, two of row lane/4 a thread -> its transpose. */
__device__ static inline uint32_t transpose(uint32_t v)
{
    uint32_t r;

    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

/* a of the thread where bit `lane` is set, with b of its neighbour where it is not. */
__device__ static inline void swap(uint32_t &a, uint32_t &b, int lane)
{
    const int odd = (threadIdx.x & lane) != 0;
    const uint32_t r = __shfl_xor_sync(0xffffffff, odd ? a : b, lane);

    a = odd ? r : a;
    b = odd ? b : r;
}

/* A warp's 64 rows by 16 NT columns. Element 2h + r of acc[i][j]: column 16i + 8h + lane/4, row 8j + 2(lane%4) + r.
 * Pieces of 8 by 8 are turned round; then a quad has two columns a thread of four pieces of a row and gives each thread
 * one piece. Several at a time, since each step waits for the one before. */
template <int DEQ, int NT>
__device__ static inline void write_out(const struct fused &p, const struct matrix &m, float (&acc)[NT][8][4], int row,
                                        int col)
{
    const int lane = threadIdx.x % 32;
    float scale[2 * NT], bias[2 * NT];

#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        column<DEQ>(p, m, col + i * 8 + lane / 4, scale[i], bias[i]);
#pragma unroll
    for (int u = 0; u < NT; u++) {      /* 32 columns by 32 rows */
        const int q = u / 2 * 2, j = u % 2 * 4, c = col + q * 16 + lane % 4 * 8;
        uint32_t v[4][4];
#pragma unroll
        for (int k = 0; k < 16; k++) {
            const int i = k % 4, n = 2 * q + i;
            v[k / 4][i] = transpose(finish2(p, &acc[n / 2][j + k / 4][n % 2 * 2], scale[n], bias[n]));
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            swap(v[k / 2][k % 2 * 2], v[k / 2][k % 2 * 2 + 1], 1);
#pragma unroll
        for (int k = 0; k < 8; k++)
            swap(v[k / 2][k % 2], v[k / 2][k % 2 + 2], 2);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int r = row + (j + k) * 8 + lane / 4;
            if (r < p.rows)
                store8(p, m.y + r * p.ldy + c, c, make_uint4(v[k][0], v[k][1], v[k][2], v[k][3]));
        }
    }
}

/* ---- the kernel ---- */

/* 16 columns of y by 16 of K, as the product wants them. */
template <int F8, int DEQ>
__device__ static inline void widen_piece(uint32_t *a, const uint32_t *q, uint32_t high, const float *scale)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] = widen<F8, DEQ>(q[i % 2], i / 2, high, scale[i % 2]);
}

template <int F8, int DEQ, int NT>
__global__ static void __launch_bounds__(THREADS, 1) fused_kernel(const struct fused p)
{
    constexpr int BN = 64 * NT, STAGE = BM * BK * 2 + BN * BK;
    extern __shared__ __align__(128) char shared[];
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared), end = base + p.stages * STAGE;
    const int lane = threadIdx.x % 32, down = threadIdx.x / 32 % 2 * 64, right = threadIdx.x / 64 * 16 * NT;
    const uint32_t at_x = (down + lane / 4) * 128 + (lane / 4 % 4) * 32 + lane % 4 * 8;
    const uint32_t at_w = BM * 128 + (right + lane) * 64 + (lane / 2 % 4) * 16;
    struct loader<NT> l;
    uint32_t to = base, from = base;    /* stages that are written, read */
    const uint32_t high = p.high;
    uint32_t x[2][8][2], w[2][2 * NT], a[2][4];
    float acc[NT][8][4];

    /* Columns 16s to 16s+15 of a stage, for the product after the next. */
#define FETCH(buf, s)                                                                                                  \
    do {                                                                                                               \
        _Pragma("unroll") for (int j_ = 0; j_ < 8; j_++)                                                               \
            load_x(x[buf][j_], from + (at_x ^ (s) << 5) + j_ * 8 * 128);                                               \
        _Pragma("unroll") for (int i_ = 0; i_ < NT; i_ += 2)                                                           \
            load_w(w[buf] + 2 * i_, from + (at_w ^ (s) << 4) + i_ * 16 * 64);                                          \
    } while (0)

    l.tile = blockIdx.x;
    loader_place(p, l);
    for (int i = 0; i < p.stages - 1; i++, to += STAGE)
        load_stage(p, l, to);
    wait_stage(p.stages);
    __syncthreads();
    FETCH(0, 0);
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        float scale[2 * NT];
        int matrix, row, col;

        place<BM, BN>(p, tile, matrix, row, col);
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
            scale[i] = DEQ ? p.m[matrix].scale[min(col + right + 8 * i + lane / 4, p.cols - 1)] : 1;
#pragma unroll
        for (int i = 0; i < NT * 8; i++)
            acc[i / 8][i % 8][0] = acc[i / 8][i % 8][1] = acc[i / 8][i % 8][2] = acc[i / 8][i % 8][3] = 0;
        widen_piece<F8, DEQ>(a[0], w[0], high, scale);
        for (int k = 0; k < p.depth; k += BK) {
#pragma unroll
            for (int s = 0; s < BK / 16; s++) {
                if (s == 3) {           /* the next stage has come; the one before may be written again by all */
                    wait_stage(p.stages);
                    __syncthreads();
                    from = from + STAGE == end ? base : from + STAGE;
                }
                FETCH((s + 1) % 2, (s + 1) % 4);
                if (s == 0) {
                    load_stage(p, l, to);
                    to = to + STAGE == end ? base : to + STAGE;
                }
#pragma unroll
                for (int i = 0; i < NT; i++) {      /* the next piece of w is widened under the products of this one */
                    const int next = (i + 1) % NT;
                    widen_piece<F8, DEQ>(a[(s * NT + i + 1) % 2], w[(s + (next == 0)) % 2] + 2 * next, high,
                                         scale + 2 * next);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        mma(acc[i][j], a[(s * NT + i) % 2], x[s % 2][j]);
                }
            }
        }
        write_out<DEQ, NT>(p, p.m[matrix], acc, row + down, col + right);
    }
#undef FETCH
}

/* ---- launch ---- */

typedef void fused_fn(const struct fused);

/* silu, quick gelu and gelu (tanh) are x times a logistic function: 0.5 (1 + tanh u) = 1 / (1 + e^-2u). 0: act is none
 * of them. */
static int soft_act(struct fused *p, enum hv_act act)
{
    const float log2e = 1.4426950408889634f, c = 2 * 0.7978845608028654f * log2e;

    p->soft = act != HV_ACT_NONE;
    p->a = act == HV_ACT_GELU_TANH ? -c : act == HV_ACT_QUICK_GELU ? -1.702f * log2e : -log2e;
    p->b = act == HV_ACT_GELU_TANH ? -c * 0.044715f : 0;
    return act == HV_ACT_NONE || act == HV_ACT_SILU || act == HV_ACT_QUICK_GELU || act == HV_ACT_GELU_TANH;
}

/* Time of a product in tiles of a width, up to a factor: rounds of the multiprocessors times that width. */
static double cost(const struct cuda *c, const struct fused *p, int width, double factor)
{
    return (double)fused_up(p->down * fused_up(p->cols, width) * p->n, c->units) * width * factor;
}

int cuda_linears_fused(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w,
                       const hv_tensor *bias, enum hv_act act)
{
    static fused_fn *const kernel[2][3] = {{fused_kernel<0, 0, 4>, fused_kernel<0, 0, 2>, fused_kernel<0, 1, 4>},
                                           {fused_kernel<1, 0, 4>, fused_kernel<1, 0, 2>, fused_kernel<1, 1, 4>}};
    struct cuda *c = cuda_of(d);
    struct fused p = {};
    const hv_tensor none = {};
    const int f8 = w[0].dtype == HV_F8_E4M3;

    p.x = (const __nv_bfloat16 *)x.data;
    p.ldx = cuda_step(&x);
    p.ldw = cuda_step(&w[0]);
    p.ldy = cuda_step(&y[0]);
    p.n = n;
    p.wide = 1;
    p.high = 0x43434343;
    if (x.dtype != HV_BF16 || !cuda_is_quantized(w[0].dtype) || !cuda_aligned(x.data, p.ldx, 2) || n > 3 ||
        x.shape[0] > INT_MAX / 2 || w[0].shape[0] > INT_MAX / 2 || x.shape[1] > INT_MAX / 4 ||
        x.shape[0] * p.ldx >> 3 > UINT_MAX - 8 || w[0].shape[0] * p.ldw >> 4 > UINT_MAX - 4 ||
        (x.shape[0] / 128 + 1) * (w[0].shape[0] / 128 + 1) > INT_MAX / 4)
        return 1;
    for (int i = 0; i < n; i++) {
        if (!cuda_aligned(w[i].data, p.ldw, 1) || cuda_step(&w[i]) != p.ldw || cuda_step(&y[i]) != p.ldy ||
            w[i].deq_bf16 != w[0].deq_bf16)
            return 1;
        p.wide = p.wide && cuda_aligned(y[i].data, p.ldy, 2);
        p.m[i].w = (const uint8_t *)w[i].data;
        p.m[i].scale = w[i].scale;
        p.m[i].bias = cuda_vec_of(bias[i]);
        p.m[i].y = (__nv_bfloat16 *)y[i].data;
    }
    p.rows = (int)x.shape[0];
    p.cols = (int)w[0].shape[0];
    p.depth = (int)x.shape[1];
    const int after = !soft_act(&p, act);
    if (after)
        p.soft = 0;
    if (cuda_fused90(d, &p, f8, w[0].deq_bf16) == 0) {
        for (int i = 0; after && i < n; i++)
            cuda_linear_finish(d, y[i], NULL, NULL, none, act);
        return 0;
    }
    p.down = fused_up(p.rows, BM);
    const int kind = w[0].deq_bf16 ? 2 : cost(c, &p, 128, 1.15) < cost(c, &p, 256, 1), width = kind == 1 ? 128 : 256;
    const int stage = BM * BK * 2 + width * BK;
    p.across = fused_up(p.cols, width);
    p.tiles = p.down * p.across * n;
    p.stages = c->gemm->shared >= 4 * stage ? 4 : 3;

    const unsigned bit = 1u << (f8 * 3 + kind);
    if (!(c->gemm->ready & bit)) {
        if (cuda_failed(d, cudaFuncSetAttribute(kernel[f8][kind], cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                p.stages * stage), "linear"))
            return 0;
        c->gemm->ready |= bit;
    }
    kernel[f8][kind]<<<p.tiles < c->units ? p.tiles : c->units, THREADS, p.stages * stage, cuda_stream(d)>>>(p);
    if (CUDA_LAUNCHED(d, "linear"))
        return 0;
    for (int i = 0; after && i < n; i++)
        cuda_linear_finish(d, y[i], NULL, NULL, none, act);
    return 0;
}

int cuda_linear_fused(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    return cuda_linears_fused(d, 1, &y, x, &w, &bias, act);
}
