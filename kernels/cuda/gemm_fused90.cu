/* gemm_fused90.cu - the product of gemm_fused.cu for compute capability 9.0, by wgmma
 *
 * The same x, w, y and rounding; x and w by the copy engine (cp.async.bulk.tensor), which wants what gemm_fused.cu
 * wants of alignment and gives zeros past the edges. A block computes 256 columns by 192 rows (less where tiles are
 * few): two groups of 4 warps have 128 columns each, as two times m64nNk16. One thread of a third group keeps 5 or 6
 * stages of 64 columns of K on their way, across tiles. The grid is persistent.
 *
 * The instruction takes its first operand from registers: there w goes, 16 columns of K at a time, widened by the group
 * while the tensor cores work on the 16 before and on the other group's. Its second operand, x, is read in shared
 * memory, in the copy engine's 128-byte swizzle. A weight is widened once for 192 rows of x (in gemm_fused.cu: twice
 * for 128): it costs the tensor cores nothing. Rows of w are dealt so that a warp has 32 neighbouring columns of y.
 *
 * Sums run over K in one order, whatever the tile: bits depend on neither tile nor grid. They need not be those of
 * gemm_fused.cu.
 *
 * Needs code for sm_90a (ARCH with 90a). Built for sm_90 the kernels are empty and gemm_fused.cu's are taken: the host
 * tells by the shared memory that a kernel declares. */
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/gemm_fused.cuh"

#include <cuda.h>
#include <limits.h>

#define BK      64                      /* columns of K a stage */
#define STAGES  6                       /* at most */
#define THREADS 384

struct wide {
    CUtensorMap x, w[3];
    struct fused f;
};

/* ---- instructions ---- */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ static inline void copy_box(uint32_t to, const CUtensorMap *map, int k, int row, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(k), "r"(row), "r"(bar) : "memory");
}

__device__ static inline uint32_t load2(uint32_t at)                    /* two bytes */
{
    uint32_t r;

    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(r) : "r"(at));
    return r;
}

__device__ static inline void store_transposed(uint32_t at, const uint32_t *v)       /* four times 8 x 8 bf16 */
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]),
                 "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

__device__ static inline uint4 load16(uint32_t at)
{
    uint4 u;

    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "r"(at) : "memory");
    return u;
}

#define ALL4(c, j)  "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define ALL16(c, j) ALL4(c, j), ALL4(c, j + 1), ALL4(c, j + 2), ALL4(c, j + 3)
#define ALL32(c, j) ALL16(c, j), ALL16(c, j + 4)

/* c += a x^T of 64 columns of y, 128 or 192 rows, 16 columns of K. */
__device__ static inline void wgmma(float (&c)[16][4], const uint32_t (&a)[4], uint64_t x)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
                 "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63"
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
                 : ALL32(c, 0), ALL32(c, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x));
}

__device__ static inline void wgmma(float (&c)[24][4], const uint32_t (&a)[4], uint64_t x)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
                 "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, "
                 "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "
                 "%92, %93, %94, %95"
                 "}, {%96, %97, %98, %99}, %100, 1, 1, 1, 0;"
                 : ALL32(c, 0), ALL32(c, 8), ALL32(c, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x));
}

/* ---- the two roles ---- */

template <int NX, int NB>
__device__ static inline void produce(const struct wide &p, uint32_t stages, uint32_t full, uint32_t empty)
{
    constexpr int X = NX * BK * 2, BN = 128 * NB, STAGE = X + BN * BK;
    int stage = 0, parity = 1;          /* the first round finds every stage empty */

    for (int tile = blockIdx.x; tile < p.f.tiles; tile += gridDim.x) {
        int matrix, row, col;
        place<NX, BN>(p.f, tile, matrix, row, col);
        for (int k = 0; k < p.f.depth; k += BK) {
            wait(empty + 8 * stage, parity);
            expect(full + 8 * stage, STAGE);
            copy_box(stages + stage * STAGE, &p.x, k, row, full + 8 * stage);
            copy_box(stages + stage * STAGE + X, &p.w[matrix], k, col, full + 8 * stage);
            if (++stage == p.f.stages)
                stage = 0, parity ^= 1;
        }
    }
}

/* A warp's 8 J rows by 16 NB columns. Element 2h + r of acc[i][j]: column 16i + 8h + lane/4, row 8j + 2(lane%4) + r. By
 * way of twice 512 bytes of the warp's at `out` they are turned round: rows of U pieces of 8 columns, swizzled. */
template <int DEQ, int NB, int J>
__device__ static inline void write_out(const struct fused &p, const struct matrix &m, float (&acc)[NB][J][4], int row,
                                        int col, uint32_t out)
{
    constexpr int U = 2 * NB;
    const int lane = threadIdx.x % 32, from = lane / 8 / U * 8 + lane % 8, to = lane / U, c = col + lane % U * 8;
    const uint32_t put = out + from * U * 16 + (lane / 8 % U ^ from / (8 / U) % U) * 16;
    const uint32_t get = out + to * U * 16 + (lane % U ^ to / (8 / U) % U) * 16;
    float scale[U], bias[U];

#pragma unroll
    for (int i = 0; i < U; i++)
        column<DEQ>(p, m, col + i * 8 + lane / 4, scale[i], bias[i]);
#pragma unroll
    for (int j = 0; j < J; j += 2 / NB) {
        const int r = row + j * 8 + to;
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = finish2(p, &acc[i / 2 % NB][j + i / U][i % 2 * 2], scale[i % U], bias[i % U]);
        store_transposed(put + j * NB / 2 % 2 * 512, v);
        __syncwarp();
        const uint4 all = load16(get + j * NB / 2 % 2 * 512);
        if (r < p.rows)
            store8(p, m.y + r * p.ldy + c, c, all);
    }
}

template <int F8, int DEQ, int NX, int NB>
__device__ static inline void consume(const struct wide &p, uint32_t stages, uint32_t full, uint32_t empty,
                                      uint32_t out)
{
    constexpr int X = NX * BK * 2, BN = 128 * NB, STAGE = X + BN * BK;
    const int lane = threadIdx.x % 32, right = (threadIdx.x / 32 - 4) * 16 * NB;
    const uint32_t at = X + (right + lane / 4) * 64 + (lane / 8 % 4) * 16 + lane % 4 * 2, high = p.f.high;
    int stage = 0, before = 0, parity = 0;
    float acc[NB][NX / 8][4];
    uint32_t a[2][NB][4];

    for (int tile = blockIdx.x; tile < p.f.tiles; tile += gridDim.x) {
        int matrix, row, col;
        float scale[2 * NB];

        place<NX, BN>(p.f, tile, matrix, row, col);
#pragma unroll
        for (int i = 0; i < 2 * NB; i++)
            scale[i] = DEQ ? p.f.m[matrix].scale[min(col + right + 8 * i + lane / 4, p.f.cols - 1)] : 1;
#pragma unroll
        for (int i = 0; i < NB * NX / 2; i++)
            acc[i / (NX / 2)][i / 4 % (NX / 8)][i % 4] = 0;
        for (int k = 0; k < p.f.depth; k += BK) {
            const uint32_t from = stages + stage * STAGE;
            /* where x is: 8 rows are 1024 bytes, in the 128-byte swizzle */
            const uint64_t x = (uint64_t)1 << 62 | (uint64_t)64 << 32 | 1 << 16 | (from >> 4 & 0x3fff);

            wait(full + 8 * stage, parity);
#pragma unroll
            for (int s = 0; s < BK / 16; s++) {
#pragma unroll
                for (int i = 0; i < 4 * NB; i++)    /* block i/4, half i/2 of K, rows lane/4 and 8 more */
                    a[s % 2][i / 4][i % 4] =
                        load2(from + (at ^ s << 4) + i / 4 * 16 * 64 + i % 2 * 8 * 64 + i / 2 % 2 * 8);
#pragma unroll
                for (int i = 0; i < 4 * NB; i++)
                    a[s % 2][i / 4][i % 4] = widen<F8, DEQ>(a[s % 2][i / 4][i % 4], 0, high, scale[i / 4 * 2 + i % 2]);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int i = 0; i < NB; i++)
                    wgmma(acc[i], a[s % 2][i], x + 2 * s);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (s == 0 && k && lane == 0)   /* all but the newest are done: the stage before is read */
                    arrive(empty + 8 * before);
            }
            before = stage;
            if (++stage == p.f.stages)
                stage = 0, parity ^= 1;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0)
            arrive(empty + 8 * before);
        write_out<DEQ, NB, NX / 8>(p.f, p.f.m[matrix], acc, row, col + right, out + (threadIdx.x / 32 - 4) * 1024);
    }
}

#endif

template <int F8, int DEQ, int NX, int NB>
__global__ static void __launch_bounds__(THREADS, 1) fused90_kernel(const __grid_constant__ struct wide p)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    __shared__ __align__(16) char out[8 * 1024];
    __shared__ uint64_t bars[2 * STAGES];
    const uint32_t stages = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(bars), empty = full + 8 * STAGES;

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_open(full + 8 * i, 1);
            barrier_open(empty + 8 * i, 8);     /* warps that read */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0)
            produce<NX, NB>(p, stages, full, empty);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume<F8, DEQ, NX, NB>(p, stages, full, empty, (uint32_t)__cvta_generic_to_shared(out));
    }
#endif
}

/* ---- launch ---- */

typedef void fused90_fn(const struct wide);
typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                           const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                           CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn *encoder(void)
{
    static void *f;
    enum cudaDriverEntryPointQueryResult found;

    if (!f && (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) ||
               found != cudaDriverEntryPointSuccess))
        f = NULL;
    return (encode_fn *)f;
}

/* Boxes of `rows` rows and BK columns of a matrix [height, width] of 1 or 2 bytes an element. */
static int map_of(CUtensorMap *m, const void *p, int size, int height, int width, int64_t ld, int rows)
{
    const cuuint64_t extent[2] = {(cuuint64_t)width, (cuuint64_t)height}, step[1] = {(cuuint64_t)(ld * size)};
    const cuuint32_t box[2] = {BK, (cuuint32_t)rows}, one[2] = {1, 1};
    const CUtensorMapDataType type = size == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
    const CUtensorMapSwizzle swizzle = size == 2 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;

    return encoder()(m, type, 2, (void *)p, extent, step, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS;
}

/* Tiles: the large one wastes least of the cache's bandwidth, the others less of the multiprocessors where tiles are
 * few. The last is for weights that are rounded one by one. */
static const struct {
    int rows, cols, stages;
    double factor;
} tile[] = {{192, 256, 5, 1}, {128, 256, 6, 1.03}, {128, 128, 6, 1.15}, {192, 256, 5, 0}};

/* Time of a product, up to a factor: rounds of the multiprocessors times the size of a tile. */
static double cost(const struct cuda *c, const struct fused *p, int kind)
{
    const int tiles = fused_up(p->rows, tile[kind].rows) * fused_up(p->cols, tile[kind].cols) * p->n;

    return tile[kind].factor * fused_up(tiles, c->units) * tile[kind].rows * tile[kind].cols;
}

int cuda_fused90(struct hv_dev *d, struct fused *p, int f8, int deq)
{
#define KERNELS(F8) {fused90_kernel<F8, 0, 192, 2>, fused90_kernel<F8, 0, 128, 2>, fused90_kernel<F8, 0, 128, 1>, \
                     fused90_kernel<F8, 1, 192, 2>}
    static fused90_fn *const kernel[2][4] = {KERNELS(0), KERNELS(1)};
#undef KERNELS
    struct cuda *c = cuda_of(d);
    struct cudaFuncAttributes attr;
    struct wide a;
    int kind = deq ? 3 : 0;

    if (c->arch != 90 || c->gemm->wide < 0)
        return 1;
    if (!c->gemm->wide) {               /* asked for once: does this build have the kernels? */
        const int there = cudaFuncGetAttributes(&attr, kernel[0][0]) == cudaSuccess && attr.sharedSizeBytes > 0;
        c->gemm->wide = there && encoder() ? 1 : -1;
        if (c->gemm->wide < 0) {
            cudaGetLastError();
            return 1;
        }
    }
    for (int i = 1; !deq && i < 3; i++)
        if (cost(c, p, i) < cost(c, p, kind))
            kind = i;
    const int rows = tile[kind].rows, cols = tile[kind].cols;
    const int bytes = tile[kind].stages * (rows * BK * 2 + cols * BK) + 1024;
    const unsigned bit = 1u << (8 + f8 * 4 + kind);
    if (!(c->gemm->ready & bit)) {
        if (cuda_failed(d, cudaFuncSetAttribute(kernel[f8][kind], cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                        "linear"))
            return 0;
        c->gemm->ready |= bit;
    }
    p->down = fused_up(p->rows, rows);
    p->across = fused_up(p->cols, cols);
    p->tiles = p->down * p->across * p->n;
    p->stages = tile[kind].stages;
    a.f = *p;
    if (map_of(&a.x, p->x, 2, p->rows, p->depth, p->ldx, rows))
        return 1;
    for (int i = 0; i < 3; i++)
        if (map_of(&a.w[i], p->m[i < p->n ? i : 0].w, 1, p->cols, p->depth, p->ldw, cols))
            return 1;
    kernel[f8][kind]<<<p->tiles < c->units ? p->tiles : c->units, THREADS, bytes, cuda_stream(d)>>>(a);
    CUDA_LAUNCHED(d, "linear");
    return 0;
}
