/* copy.cu - upload, download, copy, fill, gather_rows
 *
 * copy: y = x of any strides and dtypes. Axes are put in the order of y's strides, and those that lie together in both
 * are merged. What is contiguous in both moves in words of up to 16 bytes, as many as addresses and strides allow; the
 * rest, and what changes its dtype, element by element, written in the order of memory. Equal dtypes move as bytes,
 * exact for all; others go through f32 with the rounding of core/dtype.h.
 *
 * upload, download: rows of one dtype go straight between the two memories, in the compute lane, as one copy (or a
 * few, for more than two axes). With page-locked memory such a copy is under way when the call returns: it is past
 * after hv_dev_sync or an event, and the host's side must stay until then. With pageable memory the call returns when
 * the copy is past. What changes dtype, or has strides that would make many copies, is converted by the host on the
 * way, in pieces; that too is past when the call returns.
 *
 * gather_rows: y[r][k] = scale[n] q[n][k], n = ids[r]: one f32 product, rounded to bf16 first where the weights say
 * so, then to y's dtype. The ids travel as arguments of the launch, 512 at a time.
 * Traffic: what is read once and what is written once. Bound by memory. */
#include "kernels/cuda/values.cuh"

#include <stdlib.h>
#include <string.h>

/* ---- strided copies ---- */

/* Axes of a copy, the slowest first; strides in bytes. */
struct walk {
    int     axes;
    int64_t n[HV_MAX_DIMS], ys[HV_MAX_DIMS], xs[HV_MAX_DIMS];
};

static int64_t bytes(int64_t v)
{
    return v < 0 ? -v : v;
}

static struct walk walk_of(hv_tensor y, hv_tensor x)
{
    const int64_t sy = (int64_t)hv_dtype_size(y.dtype), sx = (int64_t)hv_dtype_size(x.dtype);
    struct walk w = {}, m = {};

    for (int i = 0; i < y.ndim; i++) {          /* by insertion: equal strides keep their order */
        int at = w.axes;
        if (y.shape[i] == 1)
            continue;
        for (; at > 0 && bytes(w.ys[at - 1]) < bytes(y.stride[i] * sy); at--)
            w.n[at] = w.n[at - 1], w.ys[at] = w.ys[at - 1], w.xs[at] = w.xs[at - 1];
        w.n[at] = y.shape[i], w.ys[at] = y.stride[i] * sy, w.xs[at] = x.stride[i] * sx;
        w.axes++;
    }
    for (int i = 0; i < w.axes; i++) {
        const int last = m.axes - 1;
        if (last >= 0 && m.ys[last] == w.n[i] * w.ys[i] && m.xs[last] == w.n[i] * w.xs[i])
            m.n[last] *= w.n[i];
        else
            m.n[m.axes++] = w.n[i];
        m.ys[m.axes - 1] = w.ys[i], m.xs[m.axes - 1] = w.xs[i];
    }
    return m;
}

/* Makes words of `unit` bytes, up to 16, the elements of a copy whose last axis is contiguous: 1 if it is. */
static int widen_unit(struct walk *w, int64_t *unit, const void *y, const void *x)
{
    const int last = w->axes - 1;
    int64_t bits = (int64_t)(uintptr_t)y | (int64_t)(uintptr_t)x | 16, all;

    if (last < 0 || w->ys[last] != *unit || w->xs[last] != *unit)
        return 0;
    all = w->n[last] * *unit;
    bits |= all;
    for (int i = 0; i < last; i++)
        bits |= w->ys[i] | w->xs[i];
    *unit = bits & -bits;
    w->n[last] = all / *unit;
    w->ys[last] = w->xs[last] = *unit;
    return 1;
}

struct copy {
    struct walk w;
    char       *y;
    const char *x;                      /* NULL: `value` instead */
    int64_t     total;
    int         unit;                   /* bytes of an element that moves as it is; 0: dtypes differ */
    int         to, from;
    uint4       value;
};

#define COPY_THREADS 256
#define COPY_EACH    4

template <typename I> __device__ static inline void place(int64_t *y, int64_t *x, const struct walk &w, I i)
{
    *y = *x = 0;
    for (int a = w.axes - 1; a > 0; a--) {
        const I next = i / (I)w.n[a], at = i - next * (I)w.n[a];
        *y += (int64_t)at * w.ys[a];
        *x += (int64_t)at * w.xs[a];
        i = next;
    }
    *y += (int64_t)i * w.ys[0];
    *x += (int64_t)i * w.xs[0];
}

__device__ static inline uint4 load_unit(const char *p, int unit)
{
    uint4 v = {};

    switch (unit) {
    case 16: v = *(const uint4 *)p; break;
    case 8:  *(uint2 *)&v = *(const uint2 *)p; break;
    case 4:  v.x = *(const uint32_t *)p; break;
    case 2:  v.x = *(const uint16_t *)p; break;
    default: v.x = *(const uint8_t *)p; break;
    }
    return v;
}

__device__ static inline void store_unit(char *p, int unit, uint4 v)
{
    switch (unit) {
    case 16: *(uint4 *)p = v; break;
    case 8:  *(uint2 *)p = make_uint2(v.x, v.y); break;
    case 4:  *(uint32_t *)p = v.x; break;
    case 2:  *(uint16_t *)p = (uint16_t)v.x; break;
    default: *(uint8_t *)p = (uint8_t)v.x; break;
    }
}

/* I: 32 bits where they can count the elements. */
template <typename I> __global__ static void __launch_bounds__(COPY_THREADS) copy_kernel(struct copy p)
{
    const int64_t first = (int64_t)blockIdx.x * COPY_THREADS * COPY_EACH + threadIdx.x;
    int64_t y[COPY_EACH], x[COPY_EACH];
    uint4 v[COPY_EACH];

#pragma unroll
    for (int k = 0; k < COPY_EACH; k++)
        if (first + k * COPY_THREADS < p.total) {
            place(&y[k], &x[k], p.w, (I)(first + k * COPY_THREADS));
            if (!p.x)
                v[k] = p.value;
            else if (p.unit)
                v[k] = load_unit(p.x + x[k], p.unit);
            else
                v[k].x = __float_as_uint(load_any(p.x + x[k], p.from));
        }
#pragma unroll
    for (int k = 0; k < COPY_EACH; k++)
        if (first + k * COPY_THREADS < p.total) {
            if (p.unit)
                store_unit(p.y + y[k], p.unit, v[k]);
            else
                store_any(p.y + y[k], p.to, __uint_as_float(v[k].x));
        }
}

static void launch_copy(struct hv_dev *d, const char *name, struct copy p)
{
    const int64_t each = COPY_THREADS * COPY_EACH;

    p.total = 1;
    for (int i = 0; i < p.w.axes; i++)
        p.total *= p.w.n[i];
    if (!p.w.axes) {                            /* a single element */
        p.w.axes = 1;
        p.w.n[0] = 1;
    }
    const unsigned grid = (unsigned)((p.total + each - 1) / each);
    if (p.total < INT32_MAX)
        copy_kernel<uint32_t><<<grid, COPY_THREADS, 0, cuda_stream(d)>>>(p);
    else
        copy_kernel<uint64_t><<<grid, COPY_THREADS, 0, cuda_stream(d)>>>(p);
    CUDA_LAUNCHED(d, name);
}

void cuda_copy(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
    struct copy p = {};
    int64_t unit = (int64_t)hv_dtype_size(y.dtype);

    const int equal = y.data == x.data && y.dtype == x.dtype && !memcmp(y.stride, x.stride, y.ndim * sizeof y.stride[0]);
    if (!hv_count(y) || equal)
        return;
    p.w = walk_of(y, x);
    p.y = (char *)y.data;
    p.x = (const char *)x.data;
    p.to = y.dtype;
    p.from = x.dtype;
    if (y.dtype == x.dtype) {
        widen_unit(&p.w, &unit, p.y, p.x);
        p.unit = (int)unit;
    }
    launch_copy(d, "copy", p);
}

void cuda_fill(struct hv_dev *d, hv_tensor y, float value)
{
    struct copy p = {};
    int64_t unit = (int64_t)hv_dtype_size(y.dtype);

    if (!hv_count(y))
        return;
    for (size_t i = 0; i < sizeof p.value; i += (size_t)unit)
        hv_from_f32(y.dtype, (char *)&p.value + i, &value, 1);
    p.w = walk_of(y, y);
    p.y = (char *)y.data;
    widen_unit(&p.w, &unit, p.y, p.y);
    p.unit = (int)unit;
    launch_copy(d, "fill", p);
}

/* ---- to and from the host ---- */

#define PIECE ((size_t)16 << 20)        /* bytes that are converted at a time */
#define FEW   64                        /* copies that are better than a pass of the host's over the data */

static int is_pinned(const void *p)
{
    struct cudaPointerAttributes a;

    if (cudaPointerGetAttributes(&a, p) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return a.type != cudaMemoryTypeUnregistered;
}

/* A walk as copies of some rows each: its last axis, where that is contiguous, is a row; the one before it counts rows. */
struct rows {
    struct walk outer;
    int64_t     copies, width, n, yp, xp;       /* n rows, at pitches yp and xp, a copy */
};

static struct rows rows_of(hv_tensor y, hv_tensor x)
{
    const int64_t size = (int64_t)hv_dtype_size(y.dtype);
    struct rows r = {walk_of(y, x), 1, size, 1, size, size};
    struct walk *w = &r.outer;

    if (w->axes && w->ys[w->axes - 1] == size && w->xs[w->axes - 1] == size)
        r.width = r.yp = r.xp = size * w->n[--w->axes];
    if (w->axes && w->ys[w->axes - 1] >= r.width && w->xs[w->axes - 1] >= r.width) {
        w->axes--;
        r.n = w->n[w->axes], r.yp = w->ys[w->axes], r.xp = w->xs[w->axes];
    }
    for (int i = 0; i < w->axes; i++)
        r.copies *= w->n[i];
    return r;
}

/* dst = src, of one dtype. */
static cudaError_t straight(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    const struct rows r = rows_of(dst, src);
    cudaError_t rc = cudaSuccess;

    for (int64_t i = 0; i < r.copies && rc == cudaSuccess; i++) {
        char *to = (char *)dst.data;
        const char *from = (const char *)src.data;
        int64_t left = i;
        for (int a = r.outer.axes - 1; a >= 0; left /= r.outer.n[a--]) {
            to += left % r.outer.n[a] * r.outer.ys[a];
            from += left % r.outer.n[a] * r.outer.xs[a];
        }
        if (r.n == 1)
            rc = cudaMemcpyAsync(to, from, (size_t)r.width, cudaMemcpyDefault, cuda_stream(d));
        else
            rc = cudaMemcpy2DAsync(to, (size_t)r.yp, from, (size_t)r.xp, (size_t)r.width, (size_t)r.n,
                                   cudaMemcpyDefault, cuda_stream(d));
    }
    return rc;
}

/* The host's side of a conversion is what the cpu backend does between two tensors of the host. */
static void on_host(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    hv_backend_cpu.copy(d, dst, src);
}

/* By way of a contiguous copy of the device's side on the host. */
static cudaError_t converted(struct hv_dev *d, hv_tensor dst, hv_tensor src, int up)
{
    const hv_tensor here = up ? dst : src;
    const size_t size = hv_nbytes(here);
    cudaError_t rc;

    if (size > PIECE && here.shape[0] > 1) {
        const int64_t half = here.shape[0] / 2, rest = here.shape[0] - half;
        rc = converted(d, hv_slice(dst, 0, 0, half), hv_slice(src, 0, 0, half), up);
        return rc == cudaSuccess ? converted(d, hv_slice(dst, 0, half, rest), hv_slice(src, 0, half, rest), up) : rc;
    }
    void *p = malloc(size);
    if (!p)
        return cudaErrorMemoryAllocation;
    const hv_tensor between = hv_view(p, here.dtype, here.ndim, here.shape);
    if (up)
        on_host(d, between, src);
    rc = up ? straight(d, dst, between) : straight(d, between, src);
    const cudaError_t done = cudaStreamSynchronize(cuda_stream(d));
    if (rc == cudaSuccess)
        rc = done;
    if (!up && rc == cudaSuccess)
        on_host(d, dst, between);
    free(p);
    return rc;
}

static void transfer(struct hv_dev *d, hv_tensor dst, hv_tensor src, int up, const char *name)
{
    cudaError_t rc, done = cudaSuccess;

    if (!hv_count(dst))
        return;
    dst.scale = src.scale = NULL;               /* bytes as they are, of quantized weights too */
    const struct rows r = rows_of(dst, src);
    const int in_rows = r.width > (int64_t)hv_dtype_size(dst.dtype) || r.copies * r.n <= FEW;
    if (dst.dtype == src.dtype && in_rows && r.copies <= FEW) {
        rc = straight(d, dst, src);
        if (!is_pinned(up ? src.data : dst.data))
            done = cudaStreamSynchronize(cuda_stream(d));
    } else {
        rc = converted(d, dst, src, up);
    }
    cuda_failed(d, rc == cudaSuccess ? done : rc, name);
}

void cuda_upload(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    transfer(d, dst, src, 1, "upload");
}

void cuda_download(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    transfer(d, dst, src, 0, "download");
}

/* ---- weights as values ---- */

struct weights {
    const char  *p;
    const float *scale;
    int64_t      ld, cols;
    int          dtype, size, rounded;
};

static struct weights weights_of(hv_tensor w)
{
    struct weights v = {};

    v.p = (const char *)w.data;
    v.scale = w.dtype == HV_I8 || w.dtype == HV_F8_E4M3 ? w.scale : NULL;
    v.ld = w.stride[0];
    v.cols = w.shape[1];
    v.dtype = w.dtype;
    v.size = (int)hv_dtype_size(w.dtype);
    v.rounded = v.scale && w.deq_bf16;
    return v;
}

/* The chunk at column c of a row. */
__device__ static inline void weights8(float v[CHUNK], const struct weights &w, int64_t row, int64_t c)
{
    const char *p = w.p + (row * w.ld + c) * w.size;
    const int n = columns(w.cols, c);

    switch (w.dtype) {
    case HV_F32:  load8(v, (const float *)p, n); return;
    case HV_F16:  load8(v, (const __half *)p, n); return;
    case HV_BF16: load8(v, (const __nv_bfloat16 *)p, n); return;
    default:      break;
    }
    const float s = w.scale[row];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        v[i] = i < n ? load_any(p + i, w.dtype) * s : 0;
        if (w.rounded)
            v[i] = __bfloat162float(__float2bfloat16_rn(v[i]));
    }
}

#define IDS 512

struct ids {
    int32_t id[IDS];
};

template <typename T> __global__ static void gather_kernel(T *y, int64_t ld, struct weights w, struct ids ids)
{
    for (int64_t c = threadIdx.x * CHUNK; c < w.cols; c += (int64_t)blockDim.x * CHUNK) {
        float v[CHUNK];
        weights8(v, w, ids.id[blockIdx.x], c);
        store8(y + blockIdx.x * ld + c, columns(w.cols, c), v);
    }
}

void cuda_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids)
{
    for (int64_t first = 0; first < y.shape[0] && y.shape[1]; first += IDS) {
        const int64_t n = y.shape[0] - first < IDS ? y.shape[0] - first : IDS;
        struct ids some = {};
        memcpy(some.id, ids + first, (size_t)n * sizeof *ids);
        CUDA_FOR_TYPE(y.dtype, T,
                      (gather_kernel<T><<<(unsigned)n, 256, 0, cuda_stream(d)>>>(
                          (T *)y.data + first * y.stride[0], y.stride[0], weights_of(table), some)))
        if (CUDA_LAUNCHED(d, "gather_rows"))
            return;
    }
}
