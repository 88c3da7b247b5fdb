/* conv_wgmma.cu - convolution as a gathered product for compute capability 9.0, by wgmma
 *
 * The form of conv.cuh, the same x, w, y as conv_mma.cu, for widths that are a multiple of 32, no strides and no activation. A block computes 256
 * pixels by 128 output channels: two groups of 4 warps have 128 pixels each, as two times m64n128k16, both operands in shared memory
 * in the 128-byte swizzle. A warp of a third group fetches 64 pixels, that is part of a row of the picture (or of two, of 32), by
 * cp.async, 64 input channels at a time; one thread fetches packed weights by bulk copies. Both have rings of their own, across tiles,
 * and the grid is persistent.
 *
 * Taps beside each other in a row read pixels beside each other: where 64 pixels are one row's, 66 are fetched once for 3 taps, and a
 * tap is where the matrix begins. That swizzle goes by the address, so that it may begin at any row. What the second cache has to
 * deliver, which is what bounds such a product, falls by 0.44.
 * Sums are f32 and run over taps in time and rows, then channels, then taps in a row, whatever the launch. They need not be those of
 * conv_mma.cu.
 *
 * Needs code for sm_90a (ARCH with 90a). Built for sm_90 the kernels are empty and conv_mma.cu's are taken: the host tells by the
 * shared memory that a kernel declares. */
#include "kernels/cuda/conv.cuh"

#define BM      256
#define THREADS 384
#define BLOCK   9216                    /* bytes of 64 pixels, with 2 more, up to a multiple of 1024 */
#define PIXELS  (4 * BLOCK)             /* of a stage of pixels */
#define XS      3                       /* stages of pixels, of weights */
#define WS      6

struct tiles {
    int     first[CONV_PHASES + 1];     /* tiles of pixels before each phase */
    int64_t all;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ static inline void barrier_open(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static inline void arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ static inline void wait(uint32_t bar, int parity)
{
    asm volatile("{\n\t.reg .pred p;\n"
                 "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t"
                 "@!p bra again;\n\t}" ::"r"(bar), "r"(parity) : "memory");
}

__device__ static inline void copy16(uint32_t to, const void *from, int bytes)      /* the rest of 16 is zeros */
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

#define ALL4(c, j)  "+f"(c[j]), "+f"(c[j + 1]), "+f"(c[j + 2]), "+f"(c[j + 3])
#define ALL16(c, j) ALL4(c, j), ALL4(c, j + 4), ALL4(c, j + 8), ALL4(c, j + 12)

#define WGMMA(TYPE)                                                                                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                              \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "                   \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "                   \
                 "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "                   \
                 "%56, %57, %58, %59, %60, %61, %62, %63"                                                                       \
                 "}, %64, %65, 1, 1, 1, 0, 0;"                                                                                  \
                 : ALL16(c, 0), ALL16(c, 16), ALL16(c, 32), ALL16(c, 48)                                                        \
                 : "l"(a), "l"(b))

/* c += a b^T: 64 pixels, 128 outputs, 16 channels. */
__device__ static inline void wgmma(float (&c)[64], uint64_t a, uint64_t b, __half)
{
    WGMMA("f16");
}

__device__ static inline void wgmma(float (&c)[64], uint64_t a, uint64_t b, __nv_bfloat16)
{
    WGMMA("bf16");
}

/* Tile n: its phase, its first pixel, its tile of outputs. */
__device__ static inline int place(const struct conv_product &p, const struct tiles &s, int64_t n, int64_t &m0)
{
    const int t = (int)(n / p.across);
    int phase = 0;

    while (t >= s.first[phase + 1])
        phase++;
    m0 = (int64_t)(t - s.first[phase]) * BM;
    return phase;
}

/* Barriers, from the first one on: pixels are there, may be overwritten; the same of weights. */
#define X_FULL  0
#define X_EMPTY (8 * XS)
#define W_FULL  (16 * XS)
#define W_EMPTY (16 * XS + 8 * WS)

/* ALONG: 64 pixels are part of one row, and pixels are fetched once for the taps of a row. Else of two rows, for each tap. */
template <int ALONG>
__device__ static inline void fetch(const struct conv_product &p, const struct tiles &s, uint32_t pixels, uint32_t bar)
{
    constexpr int N = ALONG ? 17 : 16;  /* pieces of a lane: 66 or 64 pixels of 8, by 4 pixels */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, piece = lane % 8, line = lane / 8;
    const int taps = p.tap[2], loads = ALONG ? 1 : taps, last = ALONG ? 64 + taps - 1 - line : 64;
    const int cols = p.cols, pixel = p.pixel, zeros = p.zeros, slices = p.slices, ci = p.ci - piece * 8;
    const uint4 *const x = (const uint4 *)p.x;
    /* where a lane's pieces go: the swizzle of rows 4 apart has two forms */
    const uint32_t to = pixels + warp * BLOCK + line * 128, even = (piece ^ line) << 4, odd = (piece ^ line ^ 4) << 4;
    int xs = 0, ws = 0, px = 1, pw = 1; /* the first round finds every stage empty */

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int64_t m0;
        const int phase = place(p, s, n, m0);
        const struct conv_phase f = p.phase[phase];
        const int64_t all = (int64_t)f.out[0] * f.out[1] * f.out[2];
        const char *w = p.w + ((int64_t)phase * p.across + n % p.across) * p.taps * slices * CONV_TILE;
        int o[3], o2[3];

        m0 += warp * 64;
        conv_place(f, m0 < all ? m0 : all >= 64 ? all - 64 : 0, o);
        conv_place(f, m0 + 32 < all ? m0 + 32 : all - 32, o2);
        const int j0 = f.from[2] + o[2] + line, j2 = f.from[2] + o2[2] + line - 32;
        for (int ab = 0; ab < p.tap[0] * p.tap[1]; ab++) {
            const int a = ab / p.tap[1], b = ab % p.tap[1];
            int i = o[1] + f.from[1] + b, i2 = o2[1] + f.from[1] + b;
            const int none = zeros && (unsigned)i >= (unsigned)p.rows, none2 = zeros && (unsigned)i2 >= (unsigned)p.rows;
            i = min(max(i, 0), p.rows - 1);
            i2 = min(max(i2, 0), p.rows - 1);
            const uint4 *row = x + (o[0] + f.from[0] + a) * (p.xs[0] / 8) + (int64_t)i * p.line + piece;
            const uint4 *row2 = x + (o2[0] + f.from[0] + a) * (p.xs[0] / 8) + (int64_t)i2 * p.line + piece;
            for (int slice = 0; slice < slices; slice++, row += CONV_BK / 8, row2 += CONV_BK / 8) {
                const int there = slice * CONV_BK < ci;
                for (int e = 0; e < loads; e++) {
                    wait(bar + X_EMPTY + 8 * xs, px);
#pragma unroll
                    for (int k = 0; k < N; k++) {
                        const int second = !ALONG && k >= 8, j = (second ? j2 : j0) + 4 * k + (ALONG ? 0 : e);
                        const int has = there && !(zeros && ((second ? none2 : none) || (unsigned)j >= (unsigned)cols));
                        const uint32_t at = to + xs * PIXELS + k * 512 + (k % 2 ? odd : even);
                        if (!ALONG || k < 16 || 4 * k < last)
                            copy16(at, (second ? row2 : row) + min(max(j, 0), cols - 1) * pixel, has ? 16 : 0);
                    }
                    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar + X_FULL + 8 * xs) : "memory");
                    if (++xs == XS)
                        xs = 0, px ^= 1;
                    for (int q = ALONG ? 0 : e; threadIdx.x == 0 && q < (ALONG ? taps : e + 1); q++) {
                        const uint32_t full = bar + W_FULL + 8 * ws;
                        wait(bar + W_EMPTY + 8 * ws, pw);
                        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(CONV_TILE) : "memory");
                        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                                         pixels + XS * PIXELS + ws * CONV_TILE), "l"(w + ((int64_t)(ab * taps + q) * slices + slice) * CONV_TILE),
                                     "r"(CONV_TILE), "r"(full) : "memory");
                        if (++ws == WS)
                            ws = 0, pw ^= 1;
                    }
                    __syncwarp();
                }
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* What a thread writes of 16 pairs of outputs from o on: acc[4 j], acc[4 j + 1]. n: outputs that there are from o on. Short, and one
 * way after the other: code that is not run would push what is out of the instruction cache. */
template <typename T>
__device__ static inline void write_row(T *to, const T *more, const float *acc, int n, int pairs)
{
    if (pairs) {
#pragma unroll
        for (int j = 0; j < CONV_BN / 8; j++) {
            uint32_t q = 0;
            T *h = (T *)&q;
            if (j * 8 < n && more)
                q = *(const uint32_t *)(more + j * 8);
            h[0] = from_float<T>(acc[4 * j] + to_float(h[0]));
            h[1] = from_float<T>(acc[4 * j + 1] + to_float(h[1]));
            if (j * 8 < n)
                *(uint32_t *)(to + j * 8) = q;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < CONV_BN / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (j * 8 + i < n)
                to[j * 8 + i] = from_float<T>(more ? acc[4 * j + i] + to_float(more[j * 8 + i]) : acc[4 * j + i]);
}

template <typename T, int ALONG>
__device__ static inline void multiply(const struct conv_product &p, const struct tiles &s, uint32_t pixels, uint32_t bar)
{
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
    const int steps = p.taps * p.slices, taps = p.tap[2];
    int xs = 0, ws = 0, px = 0, pw = 0, old_x = -1, old_w = -1;      /* old: of the product before; -1: not to be given */
    float acc[2][64];

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int e = 0;

        const int first = (int)(n % p.across) * CONV_BN + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < CONV_BN / 4; j++) {         /* sums begin with the bias */
            const float b = conv_bias(p, first + j / 2 * 8 + j % 2);
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2] = b;
        }
        for (int k = 0; k < steps; k++) {
            /* 8 rows are 1024 bytes, in the 128-byte swizzle */
            const uint64_t form = (uint64_t)1 << 62 | (uint64_t)64 << 32 | 1 << 16;
            const uint32_t from = pixels + xs * PIXELS + group * 2 * BLOCK + (ALONG ? e * 128 : 0);
            const uint64_t a = form | (from >> 4 & 0x3fff), b = form | ((pixels + XS * PIXELS + ws * CONV_TILE) >> 4 & 0x3fff);

            if (!ALONG || e == 0) {
                wait(bar + X_FULL + 8 * xs, px);
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");    /* what cp.async wrote is for wgmma to read */
            }
            wait(bar + W_FULL + 8 * ws, pw);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int q = 0; q < CONV_BK / 16; q++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    wgmma(acc[i], a + 2 * q + i * (BLOCK >> 4), b + 2 * q, T());
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (lane == 0 && old_w >= 0)        /* all but the newest are done: what they read may go */
                arrive(bar + W_EMPTY + 8 * old_w);
            if (lane == 0 && old_x >= 0)
                arrive(bar + X_EMPTY + 8 * old_x);
            old_w = ws;
            old_x = -1;
            if (++ws == WS)
                ws = 0, pw ^= 1;
            if (++e == (ALONG ? taps : 1)) {
                e = 0;
                old_x = xs;
                if (++xs == XS)
                    xs = 0, px ^= 1;
            }
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0) {
            arrive(bar + W_EMPTY + 8 * old_w);
            arrive(bar + X_EMPTY + 8 * old_x);
        }
        old_w = old_x = -1;
        int64_t m0;
        const struct conv_phase &f = p.phase[place(p, s, n, m0)];
        const int64_t all = (int64_t)f.out[0] * f.out[1] * f.out[2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t m = m0 + group * 128 + i / 2 * 64 + warp * 16 + i % 2 * 8 + lane / 4;
            int at[3];
            if (m >= all)
                continue;
            conv_place(f, m, at);
            write_row<T>((T *)p.y + conv_target(p, f, at, p.ys) + first,
                         p.residual ? (const T *)p.residual + conv_target(p, f, at, p.rs) + first : NULL,
                         &acc[i / 2][i % 2 * 2], p.co - first, p.pairs);
        }
    }
}

#endif

template <typename T, int ALONG>
__global__ static void __launch_bounds__(THREADS, 1)
conv_wgmma_kernel(const __grid_constant__ struct conv_product p, const __grid_constant__ struct tiles s)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    __shared__ uint64_t barriers[2 * (XS + WS)];
    const uint32_t pixels = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    const uint32_t bar = (uint32_t)__cvta_generic_to_shared(barriers);

    if (threadIdx.x == 0) {
        for (int i = 0; i < XS; i++) {
            barrier_open(bar + X_FULL + 8 * i, 128);   /* who fetches */
            barrier_open(bar + X_EMPTY + 8 * i, 8);  /* warps that read */
        }
        for (int i = 0; i < WS; i++) {
            barrier_open(bar + W_FULL + 8 * i, 1);
            barrier_open(bar + W_EMPTY + 8 * i, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
        fetch<ALONG>(p, s, pixels, bar);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
        multiply<T, ALONG>(p, s, pixels, bar);
    }
#endif
}

/* 1: this build has the kernels. Asked for once. */
static int are_there(void)
{
    static int known;
    struct cudaFuncAttributes attr;

    if (!known) {
        known = cudaFuncGetAttributes(&attr, conv_wgmma_kernel<__half, 1>) == cudaSuccess && attr.sharedSizeBytes > 0 ? 1 : -1;
        cudaGetLastError();
    }
    return known > 0;
}

template <typename T, int ALONG>
static void launch(struct hv_dev *d, const struct conv_product *p, const struct tiles *s)
{
    const int bytes = XS * PIXELS + WS * CONV_TILE + 1024, units = cuda_of(d)->units;

    if (cuda_failed(d, cudaFuncSetAttribute(conv_wgmma_kernel<T, ALONG>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "conv"))
        return;
    conv_wgmma_kernel<T, ALONG><<<(unsigned)(s->all < units ? s->all : units), THREADS, bytes, cuda_stream(d)>>>(*p, *s);
    CUDA_LAUNCHED(d, "conv");
}

int cuda_conv_wgmma(struct hv_dev *d, const struct conv_product *p, hv_dtype type)
{
    struct tiles s = {};
    int along = 1;

    if (cuda_of(d)->arch != 90 || p->act != HV_ACT_NONE || p->co <= 16 || p->ci < 32 || p->tap[2] > 3 || p->step[0] * p->step[1] * p->step[2] != 1 || !are_there())
        return 1;
    for (int i = 0; i < p->phases; i++) {
        const struct conv_phase *f = &p->phase[i];
        const int64_t pixels = (int64_t)f->out[0] * f->out[1] * f->out[2];
        if (f->out[2] % 32 || pixels / BM > INT32_MAX / 16)
            return 1;
        along &= f->out[2] % 64 == 0;
        s.first[i + 1] = s.first[i] + (int)((pixels + BM - 1) / BM);
    }
    s.all = (int64_t)s.first[p->phases] * p->across;
    if (type == HV_F16)
        along ? launch<__half, 1>(d, p, &s) : launch<__half, 0>(d, p, &s);
    else
        along ? launch<__nv_bfloat16, 1>(d, p, &s) : launch<__nv_bfloat16, 0>(d, p, &s);
    return 0;
}
