/* elementwise.cu - y[r][c] = f(a[r][c], b[r][c], columns[c], row[r])
 *
 *     add            a + b, b a matrix or an f32 row
 *     activation     act(a)
 *     swiglu         a / (1 + e^-a) * b
 *     gated_add      a + gate[c] b
 *     masked_add     a + mask[r] b
 *     norm_modulate  (a - mean[r]) rstd[r] (1 + scale[c]) + shift[c]
 *
 * y, a, b [R, K] bf16, f16 or f32, rows may be strided, y may be a or b; vectors f32. Any R, K.
 * A thread owns a chunk of 8 columns in a few rows: vectors are read once for these, and all loads are under way before
 * the first is used.
 * Traffic: each matrix once, 2 or 3 times 2*R*K bytes in bf16. Bound by memory.
 * Error: that of the f32 expression (exponentials within 2 ulp), rounded once. No element depends on another. */
#include "kernels/cuda/values.cuh"

enum map_op { MAP_ADD, MAP_ADD_ROW, MAP_ACT, MAP_SWIGLU, MAP_GATED, MAP_MASKED, MAP_MODULATE };

struct map {
    void          *y;
    const void    *a, *b;
    int64_t        ldy, lda, ldb, rows, cols;
    const float   *u, *w;               /* columns: row to add, gate, scale; shift */
    const float   *row;                 /* mask, or (mean, rstd) */
    enum hv_act    act;
};

/* Rows of a thread: twice as many where there is one matrix to load. */
#define HAS_B(OP)     ((OP) != MAP_ADD_ROW && (OP) != MAP_ACT && (OP) != MAP_MODULATE)
#define ROWS_EACH(OP) (HAS_B(OP) ? 4 : 8)

/* y = f(a, b) of one chunk, in a. */
template <typename T, int OP>
__device__ static inline void apply(float a[CHUNK], const float b[CHUNK], const float u[CHUNK], const float w[CHUNK],
                                    float m, float s)
{
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        switch (OP) {
        case MAP_ADD:      a[i] += b[i]; break;
        case MAP_ADD_ROW:  a[i] += u[i]; break;
        case MAP_SWIGLU:   a[i] = act_as<T>(a[i], HV_ACT_SILU) * b[i]; break;
        case MAP_GATED:    a[i] = fmaf(u[i], b[i], a[i]); break;
        case MAP_MASKED:   a[i] = fmaf(m, b[i], a[i]); break;
        case MAP_MODULATE: a[i] = fmaf((a[i] - m) * s, 1 + u[i], w[i]); break;
        default:           break;
        }
}

#define MAP_THREADS 128

template <typename T, int OP> __global__ static void __launch_bounds__(MAP_THREADS, 3) map_kernel(struct map p)
{
    enum { ROWS = ROWS_EACH(OP) };
    const int64_t first = ((int64_t)blockIdx.x * blockDim.y + threadIdx.y) * ROWS;
    const int64_t rows = p.rows - first < ROWS ? p.rows - first : ROWS;
    const int64_t step = (int64_t)gridDim.y * blockDim.x * CHUNK;

    for (int64_t c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * CHUNK; c < p.cols; c += step) {
        const int n = columns(p.cols, c);
        const T *pa = (const T *)p.a + first * p.lda + c, *pb = (const T *)p.b + first * p.ldb + c;
        chunk<T> a[ROWS], b[ROWS];
        float va[CHUNK], vb[CHUNK], u[CHUNK], w[CHUNK], m = 0, s = 0;
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            if (k < rows) {
                a[k] = load_chunk(pa + k * p.lda, n);
                if (HAS_B(OP))
                    b[k] = load_chunk(pb + k * p.ldb, n);
            }
        if (OP == MAP_ADD_ROW || OP == MAP_GATED || OP == MAP_MODULATE)
            load8(u, p.u + c, n);
        if (OP == MAP_MODULATE)
            load8(w, p.w + c, n);
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            if (k < rows) {
                widen(va, a[k]);
                if (HAS_B(OP))
                    widen(vb, b[k]);
                if (OP == MAP_MASKED)
                    m = p.row[first + k];
                if (OP == MAP_MODULATE) {
                    m = p.row[2 * (first + k)];
                    s = p.row[2 * (first + k) + 1];
                }
                if (OP == MAP_ACT)
                    act8<T>(va, p.act);
                else
                    apply<T, OP>(va, vb, u, w, m, s);
                store8((T *)p.y + (first + k) * p.ldy + c, n, va);
            }
    }
}

template <int OP> static void launch(struct hv_dev *d, const char *name, hv_dtype t, struct map p)
{
    const int each = ROWS_EACH(OP);
    const int64_t chunks = (p.cols + CHUNK - 1) / CHUNK;
    int wide = 1;

    if (!p.rows || !p.cols)
        return;
    while (wide < chunks && wide < MAP_THREADS)
        wide *= 2;
    const dim3 block(wide, MAP_THREADS / wide);
    const int64_t across = (chunks + wide - 1) / wide, down = (p.rows + each * block.y - 1) / (each * block.y);
    const dim3 grid((unsigned)down, (unsigned)(across < 65535 ? across : 65535));
    CUDA_FOR_TYPE(t, T, (map_kernel<T, OP><<<grid, block, 0, cuda_stream(d)>>>(p)))
    CUDA_LAUNCHED(d, name);
}

static struct map map_of(hv_tensor y, hv_tensor a, hv_tensor b)
{
    struct map p = {};

    p.y = y.data;
    p.a = a.data;
    p.b = b.data;
    p.ldy = cuda_ld(&y);
    p.lda = cuda_ld(&a);
    p.ldb = cuda_ld(&b);
    p.rows = cuda_rows(&y);
    p.cols = cuda_width(&y);
    return p;
}

void cuda_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b)
{
    struct map p = map_of(y, a, b);

    p.u = (const float *)b.data;
    if (b.ndim < y.ndim)
        launch<MAP_ADD_ROW>(d, "add", y.dtype, p);
    else
        launch<MAP_ADD>(d, "add", y.dtype, p);
}

void cuda_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act)
{
    struct map p = map_of(y, x, x);

    p.act = act;
    launch<MAP_ACT>(d, "activation", y.dtype, p);
}

void cuda_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up)
{
    launch<MAP_SWIGLU>(d, "swiglu", y.dtype, map_of(y, gate, up));
}

void cuda_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y)
{
    struct map p = map_of(x, x, y);

    p.u = (const float *)gate.data;
    launch<MAP_GATED>(d, "gated_add", x.dtype, p);
}

void cuda_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y)
{
    struct map p = map_of(x, x, y);

    p.row = (const float *)mask.data;
    launch<MAP_MASKED>(d, "masked_add", x.dtype, p);
}

void cuda_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale)
{
    struct map p = map_of(y, x, x);

    p.row = (const float *)stat.data;
    p.u = (const float *)scale.data;
    p.w = (const float *)shift.data;
    launch<MAP_MODULATE>(d, "norm_modulate", y.dtype, p);
}
