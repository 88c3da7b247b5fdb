/* elementwise.c - copy, fill, dequantize, gather_rows, add, activation, swiglu, gated_add, masked_add.
 * All are bound by memory: one pass, rows shared out among the threads, long rows cut into spans. */
#include "cpu.h"

#include <string.h>

#define SPAN 8192                       /* elements of one piece of work */

/* Rows of K as pieces: a tensor is cut into spans of rows when rows are short, and of columns when they are long. */
struct pieces {
    int64_t rows, width, rows_each, cols_each, down, across;
};

static struct pieces cut(int64_t rows, int64_t width)
{
    struct pieces p = {.rows = rows, .width = width};

    p.cols_each = width < SPAN ? width : SPAN;
    p.rows_each = p.cols_each ? SPAN / p.cols_each : 1;
    p.down = (rows + p.rows_each - 1) / p.rows_each;
    p.across = p.cols_each ? (width + p.cols_each - 1) / p.cols_each : 0;
    return p;
}

struct piece {
    int64_t first, last, col, n;        /* rows first..last-1, columns col..col+n-1 */
};

static struct piece piece_at(const struct pieces *p, int64_t i)
{
    const int64_t r = i / p->across, c = i % p->across;
    struct piece s = {.first = r * p->rows_each, .col = c * p->cols_each};

    s.last = s.first + p->rows_each < p->rows ? s.first + p->rows_each : p->rows;
    s.n = s.col + p->cols_each < p->width ? p->cols_each : p->width - s.col;
    return s;
}

/* A contiguous tensor is one row: fewer, longer spans. */
static hv_tensor flat(hv_tensor t)
{
    return hv_reshape(t, 1, (int64_t[]){hv_count(t)});
}

void cpu_widen(float *dst, const hv_tensor *w, int64_t row, int64_t col, int64_t n)
{
    const char *src = (const char *)w->data + (row * w->stride[0] + col) * (int64_t)hv_dtype_size(w->dtype);

    if (w->dtype == HV_F32)
        memcpy(dst, src, (size_t)n * sizeof *dst);
    else
        cpu_simd()->widen(dst, w->dtype, src, n, w->scale ? w->scale[row] : 1, w->scale && w->deq_bf16);
}

void cpu_act(float *y, const float *x, int64_t n, enum hv_act act)
{
    cpu_simd()->act(y, x, n, act);
}

void cpu_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act)
{
    if (hv_is_contiguous(x) && hv_is_contiguous(y)) {
        x = flat(x);
        y = flat(y);
    }
    const struct pieces p = cut(cpu_rows(&x), cpu_width(&x));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++)
            cpu_act(cpu_f32(&y, r) + s.col, cpu_f32(&x, r) + s.col, s.n, act);
    }
}

void cpu_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up)
{
    const struct cpu_simd *const simd = cpu_simd();
    const struct pieces p = cut(cpu_rows(&y), cpu_width(&y));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            float *o = cpu_f32(&y, r) + s.col;
            const float *g = cpu_f32(&gate, r) + s.col, *u = cpu_f32(&up, r) + s.col;
            simd->swiglu(o, g, u, s.n);
        }
    }
}

void cpu_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b)
{
    const int broadcast = b.ndim < y.ndim;
    const struct cpu_simd *const simd = cpu_simd();
    const struct pieces p = cut(cpu_rows(&y), cpu_width(&y));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            float *o = cpu_f32(&y, r) + s.col;
            const float *u = cpu_f32(&a, r) + s.col, *v = cpu_f32(&b, broadcast ? 0 : r) + s.col;
            simd->add(o, u, v, s.n);
        }
    }
}

void cpu_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y)
{
    const struct cpu_simd *const simd = cpu_simd();
    const struct pieces p = cut(cpu_rows(&x), cpu_width(&x));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            float *o = cpu_f32(&x, r) + s.col;
            const float *g = (const float *)gate.data + s.col, *u = cpu_f32(&y, r) + s.col;
            simd->mul_add(o, g, 0, u, s.n);
        }
    }
}

void cpu_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y)
{
    const struct cpu_simd *const simd = cpu_simd();
    const struct pieces p = cut(cpu_rows(&x), cpu_width(&x));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            float *o = cpu_f32(&x, r) + s.col;
            const float *u = cpu_f32(&y, r) + s.col, m = ((const float *)mask.data)[r * mask.stride[0]];
            simd->mul_add(o, NULL, m, u, s.n);
        }
    }
}

/* ---- memory ---- */

/* Converts n elements through a small f32 buffer; doubles and 64-bit integers of the same dtype never come here. */
static void convert(hv_dtype to, char *dst, int64_t dstep, hv_dtype from, const char *src, int64_t sstep, int64_t n)
{
    const int64_t ts = (int64_t)hv_dtype_size(to), fs = (int64_t)hv_dtype_size(from);
    float buf[256];

    for (int64_t i = 0; i < n; i += 256) {
        const int64_t m = n - i < 256 ? n - i : 256;
        if (sstep == 1)
            hv_to_f32(buf, from, src + i * fs, (size_t)m);
        else
            for (int64_t j = 0; j < m; j++)
                hv_to_f32(buf + j, from, src + (i + j) * sstep * fs, 1);
        if (dstep == 1)
            hv_from_f32(to, dst + i * ts, buf, (size_t)m);
        else
            for (int64_t j = 0; j < m; j++)
                hv_from_f32(to, dst + (i + j) * dstep * ts, buf + j, 1);
    }
}

/* The same dtype: bytes move. */
static void move(size_t size, char *dst, int64_t dstep, const char *src, int64_t sstep, int64_t n)
{
    if (dstep == 1 && sstep == 1)
        memmove(dst, src, (size_t)n * size);
    else if (size == 4)
        for (int64_t i = 0; i < n; i++)
            memcpy(dst + i * dstep * 4, src + i * sstep * 4, 4);
    else
        for (int64_t i = 0; i < n; i++)
            memcpy(dst + i * dstep * (int64_t)size, src + i * sstep * (int64_t)size, size);
}

void cpu_copy(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
    const int64_t ys = (int64_t)hv_dtype_size(y.dtype), xs = (int64_t)hv_dtype_size(x.dtype);

    if (y.data == x.data && y.dtype == x.dtype && !memcmp(y.stride, x.stride, y.ndim * sizeof y.stride[0]))
        return;
    if (hv_is_contiguous(x) && hv_is_contiguous(y)) {
        x = flat(x);
        y = flat(y);
    }
    const struct pieces p = cut(cpu_rows(&y), cpu_width(&y));
    const int64_t yl = y.ndim ? y.stride[y.ndim - 1] : 1, xl = x.ndim ? x.stride[x.ndim - 1] : 1;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            char *to = (char *)y.data + (cpu_row(&y, r) + s.col * yl) * ys;
            const char *from = (const char *)x.data + (cpu_row(&x, r) + s.col * xl) * xs;
            if (x.dtype == y.dtype)
                move((size_t)ys, to, yl, from, xl, s.n);
            else
                convert(y.dtype, to, yl, x.dtype, from, xl, s.n);
        }
    }
}

void cpu_fill(struct hv_dev *d, hv_tensor y, float value)
{
    const int64_t size = (int64_t)hv_dtype_size(y.dtype), step = y.ndim ? y.stride[y.ndim - 1] : 1;
    const struct pieces p = cut(cpu_rows(&y), cpu_width(&y));
    char one[8] = {0};

    hv_from_f32(y.dtype, one, &value, 1);
#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            char *to = (char *)y.data + (cpu_row(&y, r) + s.col * step) * size;
            if (y.dtype == HV_F32 && step == 1) {
                float *f = (float *)(void *)to;
#pragma omp simd
                for (int64_t c = 0; c < s.n; c++)
                    f[c] = value;
                continue;
            }
            for (int64_t c = 0; c < s.n; c++)
                memcpy(to + c * step * size, one, (size_t)size);
        }
    }
}

void cpu_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w)
{
    const int64_t size = (int64_t)hv_dtype_size(y.dtype);
    const struct pieces p = cut(cpu_rows(&y), cpu_width(&y));

#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < p.down * p.across; i++) {
        const struct piece s = piece_at(&p, i);
        for (int64_t r = s.first; r < s.last; r++) {
            char *to = (char *)y.data + (cpu_row(&y, r) + s.col) * size;
            float *wide = y.dtype == HV_F32 ? (float *)(void *)to : cpu_scratch(d);
            cpu_widen(wide, &w, r, s.col, s.n);
            if (y.dtype != HV_F32)
                hv_from_f32(y.dtype, to, wide, (size_t)s.n);
        }
    }
}

void cpu_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids)
{
#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < y.shape[0]; r++)
        cpu_widen(cpu_f32(&y, r), &table, ids[r], 0, y.shape[1]);
}
