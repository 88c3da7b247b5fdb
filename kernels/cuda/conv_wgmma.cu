/* conv_wgmma.cu - convolution as a gathered product for compute capability 9.0, by wgmma
 *
 * The form of conv.cuh, the same x, w, y as conv_mma.cu, for pictures whose sides are multiples of 8 and up to 3x3 taps a frame, no
 * strides and no activation. A block computes 256 pixels by N output channels: two groups of 4 warps have 128 pixels each, as two
 * times m64nNk16, both operands in shared memory in the 128-byte swizzle. A warp of a third group fetches 64 pixels by cp.async, 64
 * input channels at a time; one thread fetches packed weights by bulk copies. Both have rings of their own, across tiles, and the grid
 * is persistent.
 *
 * 64 pixels are 8 by 8 of the picture. With their border, 10 by 10, they are fetched once for all taps of a frame: a tap is where the
 * matrix begins, and its 8 times 8 rows lie as far apart as rows of the box. That swizzle goes by the address, so that a matrix may
 * begin at any row. What the second cache has to deliver, which is what bounds such a product, falls from 9 pixels to 1.6.
 * Sums are f32 and run over taps in time, then channels, then taps of a frame, whatever the launch. They need not be those of
 * conv_mma.cu.
 *
 * Needs code for sm_90a (ARCH with 90a). Built for sm_90 the kernels are empty and conv_mma.cu's are taken: the host tells by the
 * shared memory that a kernel declares. */
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/conv.cuh"

#define BM      256
#define THREADS 384
#define WS      6                       /* stages of weights */
#define FEW     8                       /* outputs of the narrow form */

/* What TAPS by TAPS taps need of 8 by 8 pixels: a box of W by W, 128 bytes a pixel, up to a multiple of 1024. */
template <int TAPS> struct box {
    static constexpr int W = 8 + TAPS - 1, PIXELS = W * W, BYTES = (PIXELS * 128 + 1023) / 1024 * 1024, STAGE = 4 * BYTES;
    static constexpr int STAGES = TAPS == 1 ? 4 : 2;
};

struct tiles {
    int     first[CONV_PHASES + 1];     /* tiles of pixels before each phase */
    int64_t all;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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
#define WGMMA_FEW(TYPE)                                                                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE " {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"         \
                 : ALL4(c, 0)                                                                                                   \
                 : "l"(a), "l"(b))

/* c += a b^T: 64 pixels, 128 or 8 outputs, 16 channels. */
__device__ static inline void wgmma(float (&c)[64], uint64_t a, uint64_t b, __half)
{
    WGMMA("f16");
}

__device__ static inline void wgmma(float (&c)[64], uint64_t a, uint64_t b, __nv_bfloat16)
{
    WGMMA("bf16");
}

__device__ static inline void wgmma(float (&c)[4], uint64_t a, uint64_t b, __half)
{
    WGMMA_FEW("f16");
}

__device__ static inline void wgmma(float (&c)[4], uint64_t a, uint64_t b, __nv_bfloat16)
{
    WGMMA_FEW("bf16");
}

/* Tile n: its phase, the first of its four boxes. */
__device__ static inline int place(const struct conv_product &p, const struct tiles &s, int64_t n, int &box0)
{
    const int t = (int)(n / p.across);
    int phase = 0;

    while (t >= s.first[phase + 1])
        phase++;
    box0 = (t - s.first[phase]) * (BM / 64);
    return phase;
}

/* Box g of a phase's grid: its frame, first row, first column. */
__device__ static inline void corner(const struct conv_phase &f, int g, int at[3])
{
    const int across = f.out[2] / 8, down = f.out[1] / 8;

    at[0] = g / (across * down);
    at[1] = g / across % down * 8;
    at[2] = g % across * 8;
}

/* Barriers, from the first one on: pixels are there, may be overwritten; the same of weights. */
#define X_FULL  0
#define X_EMPTY 32
#define W_FULL  64
#define W_EMPTY (W_FULL + 8 * WS)
#define BARS    (8 + 2 * WS)

template <int TAPS, int N>
__device__ static inline void fetch(const struct conv_product &p, const struct tiles &s, uint32_t pixels, uint32_t bar)
{
    using B = box<TAPS>;
    constexpr int K = (B::PIXELS + 3) / 4;      /* pieces of a lane: 8 lanes a pixel */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, piece = lane % 8, line = lane / 8;
    const int slices = p.slices, ci = p.ci - piece * 8;
    const uint4 *const x = (const uint4 *)p.x;
    /* where a lane's pieces go: the swizzle of rows 4 apart has two forms */
    const uint32_t to = pixels + warp * B::BYTES + line * 128, even = (piece ^ line) << 4, odd = (piece ^ line ^ 4) << 4;
    int xs = 0, ws = 0, px = 1, pw = 1; /* the first round finds every stage empty */

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int box0, o[3], from[K];        /* from: pixels of the box in a frame of x; -1: nothing */
        const int phase = place(p, s, n, box0);
        const struct conv_phase &f = p.phase[phase];
        const int boxes = f.out[0] * (f.out[1] / 8) * (f.out[2] / 8);
        const char *w = p.w + ((int64_t)phase * p.across + n % p.across) * p.taps * slices * CONV_TILE;

        corner(f, min(box0 + warp, boxes - 1), o);
        o[0] += f.from[0];
        o[1] += f.from[1];
        o[2] += f.from[2];
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int at = 4 * k + line;
            from[k] = conv_source(p, o[1] + at / B::W, o[2] + at % B::W, 0, 0);
        }
        for (int a = 0; a < p.tap[0]; a++) {
            const uint4 *frame = x + (o[0] + a) * (p.xs[0] / 8) + piece;
            for (int slice = 0; slice < slices; slice++, frame += CONV_BK / 8) {
                const int there = slice * CONV_BK < ci;
                wait(bar + X_EMPTY + 8 * xs, px);
#pragma unroll
                for (int k = 0; k < K; k++) {
                    const uint32_t at = to + xs * B::STAGE + k * 512 + (k % 2 ? odd : even);
                    const int has = there && from[k] >= 0;
                    if (4 * k + 3 < B::PIXELS || 4 * k + line < B::PIXELS)
                        copy16(at, has ? frame + from[k] : x, has ? 16 : 0);
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar + X_FULL + 8 * xs) : "memory");
                if (++xs == B::STAGES)
                    xs = 0, px ^= 1;
                for (int q = 0; threadIdx.x == 0 && q < TAPS * TAPS; q++) {
                    const uint32_t full = bar + W_FULL + 8 * ws;
                    wait(bar + W_EMPTY + 8 * ws, pw);
                    expect(full, N * 128);
                    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                                     pixels + B::STAGES * B::STAGE + ws * CONV_TILE),
                                 "l"(w + ((int64_t)(a * TAPS * TAPS + q) * slices + slice) * CONV_TILE), "r"(N * 128), "r"(full)
                                 : "memory");
                    if (++ws == WS)
                        ws = 0, pw ^= 1;
                }
                __syncwarp();
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Of four lanes with four words each, lane i gets word i of all: once more, and all is as it was. */
__device__ static inline uint4 turn(uint4 u, int lane)
{
    const int odd = lane & 1, high = lane & 2;
    uint32_t s = __shfl_xor_sync(~0u, odd ? u.x : u.y, 1), t = __shfl_xor_sync(~0u, odd ? u.z : u.w, 1);
    const uint32_t p0 = odd ? s : u.x, p1 = odd ? u.y : s, q0 = odd ? t : u.z, q1 = odd ? u.w : t;

    s = __shfl_xor_sync(~0u, high ? p0 : q0, 2);
    t = __shfl_xor_sync(~0u, high ? p1 : q1, 2);
    return high ? make_uint4(s, t, q0, q1) : make_uint4(p0, p1, s, t);
}

template <typename T> __device__ static inline void add_pair(uint32_t &q, const float *acc)
{
    T *h = (T *)&q;

    h[0] = from_float<T>(acc[0] + to_float(h[0]));
    h[1] = from_float<T>(acc[1] + to_float(h[1]));
}

/* A pixel's 128 outputs, of which a thread has 16 pairs, 8 apart: acc[4 j], acc[4 j + 1]. Pairs change hands, so that a thread writes 8
 * outputs that lie together. n: outputs that there are from `to` on, a multiple of 8; 0: a pixel that there is not. */
template <typename T> __device__ static inline void write_eights(T *to, const T *more, const float *acc, int n, int lane)
{
    uint4 q[4] = {};

#pragma unroll
    for (int j = 0; j < 4; j++)
        if (more && (4 * j + lane % 4) * 8 < n)
            q[j] = *(const uint4 *)(more + (4 * j + lane % 4) * 8);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (more)
            q[j] = turn(q[j], lane);
        add_pair<T>(q[j].x, acc + 16 * j);
        add_pair<T>(q[j].y, acc + 16 * j + 4);
        add_pair<T>(q[j].z, acc + 16 * j + 8);
        add_pair<T>(q[j].w, acc + 16 * j + 12);
        q[j] = turn(q[j], lane);
        if ((4 * j + lane % 4) * 8 < n)
            *(uint4 *)(to + (4 * j + lane % 4) * 8) = q[j];
    }
}

/* The same one by one, from the thread's first on. Code that is not run would push what is out of the instruction cache: short. */
template <typename T, int N> __device__ static inline void write_each(T *to, const T *more, const float *acc, int n)
{
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (j * 8 + i < n)
                to[j * 8 + i] = from_float<T>(more ? acc[4 * j + i] + to_float(more[j * 8 + i]) : acc[4 * j + i]);
}

template <typename T, int TAPS, int N>
__device__ static inline void multiply(const struct conv_product &p, const struct tiles &s, uint32_t pixels, uint32_t bar)
{
    using B = box<TAPS>;
    const int lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
    const int steps = p.taps * p.slices;
    int xs = 0, ws = 0, px = 0, pw = 0, old_x = -1, old_w = -1;      /* old: of the product before; -1: not to be given */
    float acc[2][N / 2];

    for (int64_t n = blockIdx.x; n < s.all; n += gridDim.x) {
        int e = 0, b = 0;
        uint32_t tap = 0;               /* where the matrix of a tap begins in the box */

        const int first = (int)(n % p.across) * CONV_BN + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < N / 4; j++) {               /* sums begin with the bias */
            const float v = conv_bias(p, first + j / 2 * 8 + j % 2);
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2] = v;
        }
        for (int k = 0; k < steps; k++) {
            /* weights: 8 rows are 1024 bytes; pixels: a row of the box */
            const uint64_t form = (uint64_t)1 << 62 | 1 << 16;
            const uint32_t from = pixels + xs * B::STAGE + group * 2 * B::BYTES + tap;
            const uint64_t mx = form | (uint64_t)(B::W * 8) << 32 | (from >> 4 & 0x3fff);
            const uint64_t mw = form | (uint64_t)64 << 32 | ((pixels + B::STAGES * B::STAGE + ws * CONV_TILE) >> 4 & 0x3fff);

            if (!tap) {
                wait(bar + X_FULL + 8 * xs, px);
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");    /* what cp.async wrote is for wgmma to read */
            }
            wait(bar + W_FULL + 8 * ws, pw);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int q = 0; q < CONV_BK / 16; q++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    wgmma(acc[i], mx + 2 * q + i * (B::BYTES >> 4), mw + 2 * q, T());
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
            tap += 128;
            if (++e == TAPS) {
                e = 0;
                tap += (B::W - TAPS) * 128;
                if (++b == TAPS) {
                    b = 0;
                    tap = 0;
                    old_x = xs;
                    if (++xs == B::STAGES)
                        xs = 0, px ^= 1;
                }
            }
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0) {
            arrive(bar + W_EMPTY + 8 * old_w);
            arrive(bar + X_EMPTY + 8 * old_x);
        }
        old_w = old_x = -1;
        int box0;
        const struct conv_phase &f = p.phase[place(p, s, n, box0)];
        const int boxes = f.out[0] * (f.out[1] / 8) * (f.out[2] / 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int g = box0 + group * 2 + i / 2, there = g < boxes, o0 = (int)(n % p.across) * CONV_BN;
            int at[3];
            corner(f, there ? g : 0, at);
            at[1] += warp * 2 + i % 2;
            at[2] += lane / 4;
            T *to = (T *)p.y + conv_target(p, f, at, p.ys) + o0;
            const T *more = p.residual ? (const T *)p.residual + conv_target(p, f, at, p.rs) + o0 : NULL;
            if (N == CONV_BN && p.eights)
                write_eights<T>(to, more, &acc[i / 2][i % 2 * 2], there ? p.co - o0 : 0, lane);
            else if (there)
                write_each<T, N>(to + lane % 4 * 2, more ? more + lane % 4 * 2 : NULL, &acc[i / 2][i % 2 * 2], p.co - first);
        }
    }
}

#endif

template <typename T, int TAPS, int N>
__global__ static void __launch_bounds__(THREADS, 1)
conv_wgmma_kernel(const __grid_constant__ struct conv_product p, const __grid_constant__ struct tiles s)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    __shared__ uint64_t barriers[BARS];
    const uint32_t pixels = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    const uint32_t bar = (uint32_t)__cvta_generic_to_shared(barriers);

    if (threadIdx.x == 0) {
        for (int i = 0; i < box<TAPS>::STAGES; i++) {
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
        asm volatile("setmaxnreg.dec.sync.aligned.u32 112;");
        fetch<TAPS, N>(p, s, pixels, bar);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
        multiply<T, TAPS, N>(p, s, pixels, bar);
    }
#endif
}

/* 1: this build has the kernels. Asked for once. */
static int are_there(void)
{
    static int known;
    struct cudaFuncAttributes attr;

    if (!known) {
        known = cudaFuncGetAttributes(&attr, conv_wgmma_kernel<__half, 3, CONV_BN>) == cudaSuccess && attr.sharedSizeBytes > 0 ? 1 : -1;
        cudaGetLastError();
    }
    return known > 0;
}

template <typename T, int TAPS, int N>
static void launch(struct hv_dev *d, const struct conv_product *p, const struct tiles *s)
{
    const int bytes = box<TAPS>::STAGES * box<TAPS>::STAGE + WS * CONV_TILE + 1024, units = cuda_of(d)->units;

    if (cuda_failed(d, cudaFuncSetAttribute(conv_wgmma_kernel<T, TAPS, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "conv"))
        return;
    conv_wgmma_kernel<T, TAPS, N><<<(unsigned)(s->all < units ? s->all : units), THREADS, bytes, cuda_stream(d)>>>(*p, *s);
    CUDA_LAUNCHED(d, "conv");
}

template <typename T> static void launch_for(struct hv_dev *d, const struct conv_product *p, const struct tiles *s)
{
    if (p->tap[1] == 3)
        p->co <= FEW ? launch<T, 3, FEW>(d, p, s) : launch<T, 3, CONV_BN>(d, p, s);
    else if (p->tap[1] == 2)
        launch<T, 2, CONV_BN>(d, p, s);
    else
        launch<T, 1, CONV_BN>(d, p, s);
}

int cuda_conv_wgmma(struct hv_dev *d, const struct conv_product *p, hv_dtype type)
{
    struct tiles s = {};

    if (cuda_of(d)->arch != 90 || p->act != HV_ACT_NONE || p->ci < 32 || p->tap[1] != p->tap[2] || p->tap[1] > 3 ||
        (p->co <= 16 && (p->co > FEW || p->tap[1] != 3)) || p->step[0] * p->step[1] * p->step[2] != 1 || !are_there())
        return 1;
    for (int i = 0; i < p->phases; i++) {
        const struct conv_phase *f = &p->phase[i];
        const int64_t pixels = (int64_t)f->out[0] * f->out[1] * f->out[2];
        if (f->out[1] % 8 || f->out[2] % 8 || pixels / BM > INT32_MAX / 16)
            return 1;
        s.first[i + 1] = s.first[i] + (int)((pixels + BM - 1) / BM);
    }
    s.all = (int64_t)s.first[p->phases] * p->across;
    type == HV_F16 ? launch_for<__half>(d, p, &s) : launch_for<__nv_bfloat16>(d, p, &s);
    return 0;
}
