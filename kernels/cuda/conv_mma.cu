/* conv_mma.cu - convolution as a gathered product on tensor cores, by mma.sync: compute capability 8.0 and later
 *
 * x, y bf16 or f16; conv.cuh has the form. A block of 8 warps computes 128 pixels by BN output channels (128, or 16 where there
 * are few), 64 input channels of one tap a stage, 3 stages deep by cp.async: a piece of 16 bytes knows its pixel, so that borders,
 * strides and doubled axes cost address arithmetic only, once a tap.
 * Sums are f32 and run over taps, then channels, whatever the launch. Bound by the tensor cores by way of mma.sync. */
#include "kernels/cuda/conv.cuh"

#define BM      128
#define THREADS 256
#define STAGES  3

__device__ static inline void copy16(uint32_t to, const void *from, int bytes)      /* the rest of 16 is zeros */
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ static inline void load_matrix(uint32_t *r, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ static inline void mma(float *c, const uint32_t *a, const uint32_t *b, __nv_bfloat16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ static inline void mma(float *c, const uint32_t *a, const uint32_t *b, __half)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* What a thread copies of x: the same piece of 4 pixels. */
struct reader {
    const uint4 *frame[4];              /* of tap 0 */
    int     from[4];                    /* in pieces: of the pixel of this tap in its frame, -1: zeros */
    int     row[4], col[4], time;       /* time: of this tap */
};

__device__ static inline void aim(const struct conv_product &p, struct reader &r, int tap)
{
    const int e = tap % p.tap[2], b = tap / p.tap[2] % p.tap[1], a = tap / (p.tap[2] * p.tap[1]);

#pragma unroll
    for (int i = 0; i < 4; i++)
        r.from[i] = conv_source(p, r.row[i], r.col[i], b, e);
    r.time = a;
}

/* WM warps along pixels, 8 / WM along outputs. */
template <typename T, int BN, int WM, int ACT>
__global__ static void __launch_bounds__(THREADS, 1) conv_mma_kernel(const __grid_constant__ struct conv_product p)
{
    constexpr int WN = 8 / WM, TM = BM / WM / 16, TN = BN / WN / 8, STAGE = (BM + BN) * CONV_BK * 2;
    extern __shared__ __align__(1024) char shared[];
    const struct conv_phase &f = p.phase[blockIdx.z];
    const int64_t pixels = (int64_t)f.out[0] * f.out[1] * f.out[2], m0 = (int64_t)blockIdx.x * BM;
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, wm = warp % WM * (BM / WM), wn = warp / WM * (BN / WN);
    const int piece = tid % 8, steps = p.taps * p.slices, first = blockIdx.y * BN;
    const char *w = p.w + ((int64_t)blockIdx.z * p.across + first / CONV_BN) * steps * CONV_TILE + first % CONV_BN * 128;
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
    float acc[TM][TN][4] = {};
    struct reader r;

    if (m0 >= pixels)
        return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t m = m0 + tid / 8 + 32 * i;
        int at[3];
        conv_place(f, m < pixels ? m : pixels - 1, at);
        r.frame[i] = (const uint4 *)p.x + (at[0] * p.step[0] + f.from[0]) * (p.xs[0] / 8);
        r.row[i] = at[1] * p.step[1] + f.from[1];
        r.col[i] = at[2] * p.step[2] + f.from[2];
    }
    int tap = 0, slice = 0;
    aim(p, r, 0);
    for (int step = 0; step < steps + STAGES - 1; step++) {
        if (step < steps) {
            const uint32_t to = base + step % STAGES * STAGE;
            const int there = slice * CONV_BK + piece * 8 < p.ci;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = tid / 8 + 32 * i, has = there && r.from[i] >= 0;
                const uint4 *from = has ? r.frame[i] + r.time * (p.xs[0] / 8) + r.from[i] + slice * (CONV_BK / 8) + piece :
                                          (const uint4 *)p.x;
                copy16(to + row * 128 + ((piece ^ row & 7) << 4), from, has ? 16 : 0);
            }
#pragma unroll
            for (int i = tid; i < BN * 8; i += THREADS)         /* packed as it is needed */
                copy16(to + BM * 128 + i * 16, w + (int64_t)step * CONV_TILE + i * 16, 16);
            if (++slice == p.slices) {
                slice = 0;
                if (++tap < p.taps)
                    aim(p, r, tap);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (step < STAGES - 1)
            continue;
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
        __syncthreads();
        const uint32_t x = base + (step - STAGES + 1) % STAGES * STAGE, y = x + BM * 128;
#pragma unroll
        for (int k = 0; k < CONV_BK / 8; k += 2) {
            uint32_t a[TM][4], b[(TN + 1) / 2][4];
#pragma unroll
            for (int i = 0; i < TM; i++) {
                const int row = wm + i * 16 + lane % 16;
                load_matrix(a[i], x + row * 128 + ((k + lane / 16 ^ row & 7) << 4));
            }
#pragma unroll
            for (int j = 0; j < (TN + 1) / 2; j++) {            /* 16 outputs: both halves of K of 8, then of 8 more */
                const int row = wn + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrix(b[j], y + row * 128 + ((k + lane / 8 % 2 ^ row & 7) << 4));
            }
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    mma(acc[i][j], a[i], &b[j / 2][j % 2 * 2], T());
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64_t m = m0 + wm + i * 16 + h * 8 + lane / 4;
            int at[3];
            if (m >= pixels)
                continue;
            conv_place(f, m, at);
            T *to = (T *)p.y + conv_target(p, f, at, p.ys);
            const T *more = (const T *)p.residual + conv_target(p, f, at, p.rs);
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const int o = first + wn + j * 8 + lane % 4 * 2;
                if (o < p.co)
                    conv_write2<T, ACT>(p, to, more, o, acc[i][j][2 * h] + conv_bias(p, o), acc[i][j][2 * h + 1] + conv_bias(p, o + 1));
            }
        }
}

template <typename T, int BN, int WM, int ACT> static void launch(struct hv_dev *d, const struct conv_product *p)
{
    const int bytes = STAGES * (BM + BN) * CONV_BK * 2;
    int64_t most = 0;

    for (int i = 0; i < p->phases; i++) {
        const int64_t n = (int64_t)p->phase[i].out[0] * p->phase[i].out[1] * p->phase[i].out[2];
        most = n > most ? n : most;
    }
    if (cuda_failed(d, cudaFuncSetAttribute(conv_mma_kernel<T, BN, WM, ACT>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "conv"))
        return;
    const dim3 grid((unsigned)((most + BM - 1) / BM), (unsigned)((p->co + BN - 1) / BN), (unsigned)p->phases);
    conv_mma_kernel<T, BN, WM, ACT><<<grid, THREADS, bytes, cuda_stream(d)>>>(*p);
    CUDA_LAUNCHED(d, "conv");
}

template <typename T> static void choose(struct hv_dev *d, const struct conv_product *p)
{
    if (p->co <= 16)
        p->act == HV_ACT_NONE ? launch<T, 16, 8, 0>(d, p) : launch<T, 16, 8, 1>(d, p);
    else
        p->act == HV_ACT_NONE ? launch<T, 128, 4, 0>(d, p) : launch<T, 128, 4, 1>(d, p);
}

int cuda_conv_mma(struct hv_dev *d, const struct conv_product *p, hv_dtype type)
{
    if (type == HV_F16)
        choose<__half>(d, p);
    else
        choose<__nv_bfloat16>(d, p);
    return 0;
}
