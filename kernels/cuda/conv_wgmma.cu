/* conv_wgmma.cu - convolution as a gathered product for compute capability 9.0, by wgmma
 *
 * The form of conv.cuh, the same x, w, y as conv_mma.cu. A block computes 256 pixels by 128 output channels: two groups of 4 warps
 * have 128 pixels each, as two times m64n128k16, both operands in shared memory in the 128-byte swizzle. A third group fetches: 64
 * input channels of one tap a stage, 4 stages deep, across tiles; pixels by cp.async, piece by piece, each from where its tap
 * falls, weights as one bulk copy of a packed tile. The grid is persistent; tiles that share pixels are neighbours in time.
 * Sums are f32 and run over taps, then channels, whatever the launch. They need not be those of conv_mma.cu.
 *
 * Needs code for sm_90a (ARCH with 90a). Built for sm_90 the kernels are empty and conv_mma.cu's are taken: the host tells by the
 * shared memory that a kernel declares. */
#include "kernels/cuda/conv.cuh"

#define BM      256
#define STAGES  4
#define THREADS 384
#define STAGE   (BM * CONV_BK * 2 + CONV_TILE)

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
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
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

/* What the fetching group knows of a tile's pixels, in shared memory: frame (in pieces), row and column of tap (0, 0, 0). */
struct place_of {
    int64_t frame[BM];
    int     row[BM], col[BM];
};

__device__ static inline void fetch(const struct conv_product &p, const struct tiles &s, struct place_of *at, uint32_t stages,
                                    uint32_t full, uint32_t empty)
{
    const int tid = threadIdx.x, piece = tid % 8, line = tid / 8;
    int stage = 0, parity = 1;          /* the first round finds every stage empty */

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int64_t m0;
        const struct conv_phase &f = p.phase[place(p, s, n, m0)];
        const int64_t pixels = (int64_t)f.out[0] * f.out[1] * f.out[2];
        const char *w = p.w + ((int64_t)(&f - p.phase) * p.across + n % p.across) * p.taps * p.slices * CONV_TILE;

        asm volatile("bar.sync 1, 128;" ::: "memory");         /* the tile before is fetched */
#pragma unroll
        for (int i = tid; i < BM; i += 128) {
            int o[3];
            conv_place(f, m0 + i < pixels ? m0 + i : pixels - 1, o);
            at->frame[i] = (o[0] * p.step[0] + f.from[0]) * p.xs[0] / 8;
            at->row[i] = o[1] * p.step[1] + f.from[1];
            at->col[i] = o[2] * p.step[2] + f.from[2];
        }
        asm volatile("bar.sync 1, 128;" ::: "memory");
        for (int tap = 0; tap < p.taps; tap++) {
            const int e = tap % p.tap[2], b = tap / p.tap[2] % p.tap[1], a = tap / (p.tap[2] * p.tap[1]);
            int from[BM / 16];          /* pieces; the frame's part fits: checked by the host */
#pragma unroll
            for (int i = 0; i < BM / 16; i++) {
                const int r = line + 16 * i;
                from[i] = (int)conv_source(p, at->frame[r] + a * p.xs[0] / 8, at->row[r], at->col[r], b, e);
            }
            for (int slice = 0; slice < p.slices; slice++) {
                const uint32_t to = stages + stage * STAGE, bar = full + 8 * stage;
                const int there = slice * CONV_BK + piece * 8 < p.ci;

                wait(empty + 8 * stage, parity);
                if (tid == 0) {
                    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(CONV_TILE) : "memory");
                    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                                     to + BM * 128), "l"(w), "r"(CONV_TILE), "r"(bar) : "memory");
                }
                w += CONV_TILE;
#pragma unroll
                for (int i = 0; i < BM / 16; i++) {
                    const int r = line + 16 * i, has = there && from[i] >= 0;
                    const uint4 *src = (const uint4 *)p.x + (has ? from[i] + slice * (CONV_BK / 8) + piece : 0);
                    copy16(to + r * 128 + ((piece ^ r & 7) << 4), src, has ? 16 : 0);
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
                if (++stage == STAGES)
                    stage = 0, parity ^= 1;
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

template <typename T>
__device__ static inline void multiply(const struct conv_product &p, const struct tiles &s, uint32_t stages, uint32_t full,
                                       uint32_t empty)
{
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
    int stage = 0, before = 0, parity = 0;
    float acc[2][64];

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int64_t m0;
        const struct conv_phase &f = p.phase[place(p, s, n, m0)];
        const int64_t pixels = (int64_t)f.out[0] * f.out[1] * f.out[2];
        const int steps = p.taps * p.slices;

#pragma unroll
        for (int i = 0; i < 128; i++)
            acc[i / 64][i % 64] = 0;
        for (int k = 0; k < steps; k++) {
            const uint32_t from = stages + stage * STAGE;
            /* 8 rows are 1024 bytes, in the 128-byte swizzle */
            const uint64_t form = (uint64_t)1 << 62 | (uint64_t)64 << 32 | 1 << 16;
            const uint64_t a = form | ((from + group * 128 * 128) >> 4 & 0x3fff), b = form | ((from + BM * 128) >> 4 & 0x3fff);

            wait(full + 8 * stage, parity);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");        /* what cp.async wrote is for wgmma to read */
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int q = 0; q < CONV_BK / 16; q++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    wgmma(acc[i], a + 2 * q + i * (64 * 128 >> 4), b + 2 * q, T());
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (k && lane == 0)         /* all but the newest are done: the stage before is read */
                arrive(empty + 8 * before);
            before = stage;
            if (++stage == STAGES)
                stage = 0, parity ^= 1;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0)
            arrive(empty + 8 * before);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int64_t m = m0 + group * 128 + i * 64 + warp * 16 + h * 8 + lane / 4;
                int at[3];
                if (m >= pixels)
                    continue;
                conv_place(f, m, at);
                int64_t to = 0, more = 0;
#pragma unroll
                for (int q = 0; q < 3; q++) {
                    to += (int64_t)(at[q] * p.ystep[q] + f.at[q]) * p.ys[q];
                    more += (int64_t)(at[q] * p.ystep[q] + f.at[q]) * p.rs[q];
                }
#pragma unroll
                for (int j = 0; j < CONV_BN / 8; j++) {
                    const int o = (int)(n % p.across) * CONV_BN + j * 8 + lane % 4 * 2;
                    if (o < p.co)
                        conv_write2<T>(p, to, more, o, acc[i][4 * j + 2 * h], acc[i][4 * j + 2 * h + 1]);
                }
            }
    }
}

#endif

template <typename T>
__global__ static void __launch_bounds__(THREADS, 1)
conv_wgmma_kernel(const __grid_constant__ struct conv_product p, const __grid_constant__ struct tiles s)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    __shared__ struct place_of at;
    __shared__ uint64_t bars[2 * STAGES];
    const uint32_t stages = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(bars), empty = full + 8 * STAGES;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_open(full + 8 * i, 129);    /* who fetches, and the weights */
            barrier_open(empty + 8 * i, 8);     /* warps that read */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        fetch(p, s, &at, stages, full, empty);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        multiply<T>(p, s, stages, full, empty);
    }
#endif
}

/* 1: this build has the kernels. Asked for once. */
static int are_there(void)
{
    static int known;
    struct cudaFuncAttributes attr;

    if (!known) {
        known = cudaFuncGetAttributes(&attr, conv_wgmma_kernel<__half>) == cudaSuccess && attr.sharedSizeBytes > 0 ? 1 : -1;
        cudaGetLastError();
    }
    return known > 0;
}

int cuda_conv_wgmma(struct hv_dev *d, const struct conv_product *p, hv_dtype type)
{
    const struct cuda *c = cuda_of(d);
    const int bytes = STAGES * STAGE + 1024;
    struct tiles s = {};

    if (c->arch != 90 || p->co <= 16 || p->ci < 32 || !are_there())
        return 1;
    for (int i = 0; i < p->phases; i++) {
        const struct conv_phase *f = &p->phase[i];
        const int64_t pixels = (int64_t)f->out[0] * f->out[1] * f->out[2];
        const int64_t last = (int64_t)((f->out[0] - 1) * p->step[0] + f->from[0] + p->tap[0]) * p->xs[0] / 8;
        if (last > INT32_MAX / 2 || pixels / BM > INT32_MAX / 16)
            return 1;
        s.first[i + 1] = s.first[i] + (int)((pixels + BM - 1) / BM);
    }
    s.all = (int64_t)s.first[p->phases] * p->across;
    const unsigned grid = (unsigned)(s.all < c->units ? s.all : c->units);
    const void *kernel = type == HV_F16 ? (const void *)conv_wgmma_kernel<__half> : (const void *)conv_wgmma_kernel<__nv_bfloat16>;
    if (cuda_failed(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "conv"))
        return 0;
    if (type == HV_F16)
        conv_wgmma_kernel<__half><<<grid, THREADS, bytes, cuda_stream(d)>>>(*p, s);
    else
        conv_wgmma_kernel<__nv_bfloat16><<<grid, THREADS, bytes, cuda_stream(d)>>>(*p, s);
    CUDA_LAUNCHED(d, "conv");
    return 0;
}
