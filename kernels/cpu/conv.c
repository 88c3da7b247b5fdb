/* conv.c - convolution of channels-last video, directly: no im2col.
 *
 * Output channels go in panels of 32. The weights of a few panels are packed to f32 [phase][kernel frame, row, column][Ci][32];
 * then the output is cut into pieces of some rows and columns of one frame. A piece copies the input it reads, borders
 * filled in, into a buffer of its thread, where a kernel row of all channels is one run of floats; tiles of conv.h do the rest.
 * A 1x1 kernel has no border and reads x where it is.
 *
 * Upsampling is done in phases: the outputs of one parity of each axis are a convolution of x itself with 2 taps an axis, whose
 * weights are sums of the given ones (in f32).
 *
 * Every output is summed by one tile in one order: the result depends neither on the threads nor on how work is cut. */
#include "kernels/cpu/conv.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define PACKED  ((size_t)8 << 20)       /* bytes of packed weights at a time, if a panel is not larger */
#define BUFFER  (CPU_SCRATCH / 4 / sizeof(float))       /* floats of input that a piece should copy: cache */
#define COLUMNS 56                      /* of a piece */
#define SMALL   (1 << 20)               /* multiply-adds that one thread does sooner than others wake up */
#define PACK_CI 8                       /* input channels packed as one piece of work */

struct axis {
    int     up, stride, k, pad;
    int     taps, phases, span;         /* taps of a phase; input cells of all phases of one position */
    int64_t n;                          /* positions: output cells of one phase */
};

struct conv {
    struct hv_dev *d;
    const struct conv_isa *isa;
    hv_tensor y, x, w, bias, residual;
    enum hv_act act;
    enum hv_pad pad;
    struct axis a[3];
    int64_t ci, co, panels, first_out;  /* first_out: 1 when the first of two output frames is left out */
    int     taps, phases, segments;     /* of all axes */
    int64_t rows, cols, bands, blocks;  /* of a piece; pieces of a frame */
    int     direct;                     /* no borders: read x where it is */
    int     threads;
    float  *packed;
    int64_t panel_size, phase_size;     /* floats */
};

static const struct conv_isa *pick_isa(void)
{
    const struct cpu_simd *simd = cpu_simd();

    return simd == &cpu_simd_avx512 ? &conv_isa_avx512 : simd == &cpu_simd_avx2 ? &conv_isa_avx2 : &conv_isa_c;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static struct axis axis_of(const struct conv *c, const struct hv_conv *p, int i)
{
    const int k = (int)c->w.shape[2 + i], up = p->up[i] == 2;
    struct axis a = {.up = up, .stride = p->stride[i] ? p->stride[i] : 1, .k = k, .pad = i ? k / 2 : 0};

    a.taps = up ? 2 : k;
    a.phases = up ? 2 : 1;
    a.span = up && i ? 3 : a.taps;
    if (up)
        a.n = i ? c->x.shape[i] : c->x.shape[0] - 1;
    else
        a.n = c->y.shape[i];
    return a;
}

/* ---- weights ---- */

/* The taps lo..hi of the given kernel that tap j of phase p sums. Even rows and columns of an upsampled picture read
 * (i-1, i) with (w0, w1+w2), odd ones (i, i+1) with (w0+w1, w2); frames 2k-1 and 2k read (k-1, k), the odd one first. */
static void summed(const struct axis *a, int time, int p, int j, int *lo, int *hi)
{
    if (!a->up) {
        *lo = *hi = j;
        return;
    }
    const int two_first = time ? p == 0 : p == 1;
    *lo = j ? 1 + two_first : 0;
    *hi = j ? 2 : two_first;
}

/* One tap of one phase of one input channel: dst[0 .. width) = sum of rows of tap[k][width]. */
static void sum_taps(const struct conv *c, float *dst, const float *tap, int width, const int p[3], const int j[3])
{
    int lo[3], hi[3];

    for (int i = 0; i < 3; i++)
        summed(&c->a[i], i == 0, p[i], j[i], &lo[i], &hi[i]);
    memset(dst, 0, (size_t)width * sizeof *dst);
    for (int t = lo[0]; t <= hi[0]; t++)
        for (int y = lo[1]; y <= hi[1]; y++)
            for (int x = lo[2]; x <= hi[2]; x++) {
                const float *from = tap + ((t * c->a[1].k + y) * c->a[2].k + x) * width;
                for (int i = 0; i < width; i++)
                    dst[i] += from[i];
            }
}

static int panel_width(const struct conv *c, int64_t panel)
{
    return c->co - panel * CONV_PANEL <= CONV_HALF ? CONV_HALF : CONV_PANEL;
}

/* Packs input channels ci0 .. ci0+n-1 of a panel to dst. */
static void pack(const struct conv *c, float *dst, int64_t panel, int64_t ci0, int64_t n)
{
    const int64_t k = (int64_t)c->a[0].k * c->a[1].k * c->a[2].k;
    const int width = panel_width(c, panel), real = (int)min64(width, c->co - panel * CONV_PANEL);
    const hv_tensor w = hv_reshape(c->w, 2, (int64_t[]){c->co, -1});
    float *rows = cpu_scratch(c->d), *tap = rows + CONV_PANEL * PACK_CI * k;

    for (int o = 0; o < real; o++)
        cpu_widen(rows + o * n * k, &w, panel * CONV_PANEL + o, ci0 * k, n * k);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t t = 0; t < k; t++) {
            for (int o = 0; o < real; o++)
                tap[t * width + o] = rows[(o * n + i) * k + t];
            for (int o = real; o < width; o++)
                tap[t * width + o] = 0;
        }
        for (int p = 0; p < c->phases; p++) {
            const int ph[3] = {p / (c->a[1].phases * c->a[2].phases), p / c->a[2].phases % c->a[1].phases, p % c->a[2].phases};
            for (int q = 0; q < c->taps; q++) {
                const int j[3] = {q / (c->a[1].taps * c->a[2].taps), q / c->a[2].taps % c->a[1].taps, q % c->a[2].taps};
                sum_taps(c, dst + p * c->phase_size + (q * c->ci + ci0 + i) * width, tap, width, ph, j);
            }
        }
    }
}

/* ---- one piece ---- */

struct piece {
    int64_t t, row, col, rows, cols;    /* in positions */
    const float *base;                  /* input cell (0, 0, 0) of the piece */
    int64_t frame, line, pixel;         /* its strides in floats */
};

/* Copies the input cells of a piece, borders filled in, into the thread's scratch. */
static void load(const struct conv *c, struct piece *s)
{
    const int64_t H = c->x.shape[1], W = c->x.shape[2], ci = c->ci;
    const int64_t row0 = s->row * c->a[1].stride - c->a[1].pad, rows = (s->rows - 1) * c->a[1].stride + c->a[1].span;
    const int64_t col0 = s->col * c->a[2].stride - c->a[2].pad, cols = (s->cols - 1) * c->a[2].stride + c->a[2].span;
    float *to = cpu_scratch(c->d);

    s->base = to;
    s->pixel = ci;
    s->line = cols * ci;
    s->frame = rows * cols * ci;
    for (int64_t f = 0; f < c->a[0].taps; f++)
        for (int64_t r = row0; r < row0 + rows; r++) {
            const int64_t rr = r < 0 ? 0 : r >= H ? H - 1 : r;
            const float *from = (const float *)c->x.data + (s->t * c->a[0].stride + f) * c->x.stride[0] + rr * c->x.stride[1];
            for (int64_t x = col0; x < col0 + cols; x++, to += ci) {
                const int64_t xx = x < 0 ? 0 : x >= W ? W - 1 : x;
                if (c->pad == HV_PAD_ZERO && (rr != r || xx != x))
                    memset(to, 0, (size_t)ci * sizeof *to);
                else
                    memcpy(to, from + xx * c->x.stride[2], (size_t)ci * sizeof *to);
            }
        }
}

static void locate(const struct conv *c, struct piece *s)
{
    s->base = (const float *)c->x.data + s->t * c->a[0].stride * c->x.stride[0] +
              s->row * c->a[1].stride * c->x.stride[1] + s->col * c->a[2].stride * c->x.stride[2];
    s->frame = c->x.stride[0];
    s->line = c->x.stride[1];
    s->pixel = c->x.stride[2];
}

/* Bias is in; activation and residual follow. n positions of row (t, y) from x on, `step` apart, channels from `first`. */
static void finish(const struct conv *c, float *tile, int width, int64_t n, int64_t t, int64_t y, int64_t x, int64_t step,
                   int64_t first)
{
    const int64_t real = min64(width, c->co - first);
    float *to = (float *)c->y.data + t * c->y.stride[0] + y * c->y.stride[1] + x * c->y.stride[2] + first;
    const hv_tensor *r = &c->residual;
    const float *add = r->dtype ? (const float *)r->data + t * r->stride[0] + y * r->stride[1] + x * r->stride[2] + first : NULL;

    for (int64_t i = 0; i < n; i++, tile += width) {
        if (c->act != HV_ACT_NONE)
            cpu_act(tile, tile, real, c->act);
        if (add)
            for (int64_t k = 0; k < real; k++)
                tile[k] += add[i * step * r->stride[2] + k];
        memcpy(to + i * step * c->y.stride[2], tile, (size_t)real * sizeof *to);
    }
}

/* All outputs of one phase and panel that belong to a piece. */
static void compute(const struct conv *c, const struct piece *s, int p, int64_t panel, const float *w)
{
    const struct axis *a = c->a;
    const int ph[3] = {p / (a[1].phases * a[2].phases), p / a[2].phases % a[1].phases, p % a[2].phases};
    const int width = panel_width(c, panel);
    conv_tile_fn *const *fn = width == CONV_PANEL ? c->isa->panel : c->isa->half;
    const int64_t tiles = ceil_div(s->cols, c->isa->rows), step = a[2].stride * s->pixel, out_step = a[2].phases;
    const int64_t t = a[0].up ? 2 * s->t + ph[0] - c->first_out : s->t;
    const float *seg[CONV_SEGMENTS];
    float bias[CONV_PANEL] = {0}, out[CONV_ROWS * CONV_PANEL];

    if (t < 0)
        return;
    if (c->bias.dtype)
        memcpy(bias, (const float *)c->bias.data + panel * CONV_PANEL,
               (size_t)min64(width, c->co - panel * CONV_PANEL) * sizeof *bias);
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t x = i * s->cols / tiles, n = (i + 1) * s->cols / tiles - x;
            int k = 0;
            for (int f = 0; f < a[0].taps; f++)
                for (int b = 0; b < a[1].taps; b++)
                    seg[k++] = s->base + f * s->frame + (r * a[1].stride + b + (a[1].up ? ph[1] : 0)) * s->line +
                               (x * a[2].stride + (a[2].up ? ph[2] : 0)) * s->pixel;
            fn[n](out, seg, k, a[2].taps * c->ci, step, w, bias);
            finish(c, out, width, n, t, (s->row + r) * a[1].phases + ph[1], (s->col + x) * out_step + ph[2], out_step,
                   panel * CONV_PANEL);
        }
}

/* Rows and columns of a piece: the buffer stays in the cache, and every thread has some pieces. */
static void cut(struct conv *c)
{
    const int64_t blocks = ceil_div(c->a[2].n, COLUMNS);
    const int64_t want = 4 * c->threads;

    c->cols = ceil_div(c->a[2].n, blocks);
    for (c->rows = min64(8, c->a[1].n);; c->rows--) {
        const int64_t rows = (c->rows - 1) * c->a[1].stride + c->a[1].span;
        const int64_t cols = (c->cols - 1) * c->a[2].stride + c->a[2].span;
        const int64_t pieces = c->a[0].n * ceil_div(c->a[1].n, c->rows) * ceil_div(c->a[2].n, c->cols);
        if (c->rows == 1 || ((size_t)(c->a[0].taps * rows * cols * c->ci) <= BUFFER && pieces >= want))
            break;
    }
    while (c->cols > 1 && (size_t)(c->a[0].taps * c->a[1].span * ((c->cols - 1) * c->a[2].stride + c->a[2].span) * c->ci) >
                              CPU_SCRATCH / sizeof(float))
        c->cols = (c->cols + 1) / 2;
    c->bands = ceil_div(c->a[1].n, c->rows);
    c->blocks = ceil_div(c->a[2].n, c->cols);
}

/* Panels first .. first+n-1, whose weights are packed. */
static void run_panels(const struct conv *c, int64_t first, int64_t n)
{
    const int64_t pieces = c->a[0].n * c->bands * c->blocks, groups = ceil_div(c->ci, PACK_CI);

#pragma omp parallel num_threads(c->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * groups; i++) {
            const int64_t ci0 = i % groups * PACK_CI;
            pack(c, c->packed + i / groups * c->panel_size, first + i / groups, ci0, min64(PACK_CI, c->ci - ci0));
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < pieces; i++) {
            struct piece s = {.t = i / (c->bands * c->blocks), .row = i / c->blocks % c->bands * c->rows,
                              .col = i % c->blocks * c->cols};
            s.rows = min64(c->rows, c->a[1].n - s.row);
            s.cols = min64(c->cols, c->a[2].n - s.col);
            c->direct ? locate(c, &s) : load(c, &s);
            for (int64_t k = 0; k < n; k++)
                for (int p = 0; p < c->phases; p++)
                    compute(c, &s, p, first + k, c->packed + k * c->panel_size + p * c->phase_size);
        }
    }
}

/* ---- depthwise ---- */

/* Input cell of axis a that tap j of output cell o reads, -1 for a cell of zeros. */
static int64_t cell(const struct conv *c, int axis, int64_t o, int j)
{
    const struct axis *a = &c->a[axis];
    int64_t u = o * a->stride + j - a->pad;
    const int64_t n = c->x.shape[axis] * (a->up ? 2 : 1);

    if (!axis)
        return a->up ? (o + c->first_out + j) / 2 : u;      /* frames 2k-1 and 2k read u[t-2..t], u[2k-1] = u[2k] = x[k] */
    if (c->pad == HV_PAD_ZERO && (u < 0 || u >= n))
        return -1;
    u = u < 0 ? 0 : u >= n ? n - 1 : u;
    return a->up ? u / 2 : u;
}

static void depthwise_pixel(const struct conv *c, float *y, const float *w, int64_t t, int64_t r, int64_t col)
{
    const int64_t C = c->co;

    if (c->bias.dtype)
        memcpy(y, c->bias.data, (size_t)C * sizeof *y);
    else
        memset(y, 0, (size_t)C * sizeof *y);
    for (int f = 0; f < c->a[0].k; f++)
        for (int b = 0; b < c->a[1].k; b++)
            for (int i = 0; i < c->a[2].k; i++, w += C) {
                const int64_t xr = cell(c, 1, r, b), xc = cell(c, 2, col, i);
                if (xr < 0 || xc < 0)
                    continue;
                const float *x = (const float *)c->x.data + cell(c, 0, t, f) * c->x.stride[0] + xr * c->x.stride[1] +
                                 xc * c->x.stride[2];
#pragma omp simd
                for (int64_t k = 0; k < C; k++)
                    y[k] += x[k] * w[k];
            }
}

static void depthwise(const struct conv *c)
{
    const int64_t k = hv_count(c->w) / c->co, T = c->y.shape[0], H = c->y.shape[1], W = c->y.shape[2];
    const hv_tensor w = hv_reshape(c->w, 2, (int64_t[]){c->co, k});

    for (int64_t o = 0; o < c->co; o++) {
        float *row = cpu_scratch(c->d);
        cpu_widen(row, &w, o, 0, k);
        for (int64_t i = 0; i < k; i++)
            c->packed[i * c->co + o] = row[i];
    }
#pragma omp parallel for schedule(static) num_threads(c->threads)
    for (int64_t i = 0; i < T * H; i++) {
        float *tmp = cpu_scratch(c->d);
        for (int64_t x = 0; x < W; x++) {
            depthwise_pixel(c, tmp, c->packed, i / H, i % H, x);
            for (int64_t first = 0; first < c->co; first += CONV_PANEL)
                finish(c, tmp + first, CONV_PANEL, 1, i / H, i % H, x, 1, first);
        }
    }
}

/* ---- the entry ---- */

static int64_t panels_at_a_time(const struct conv *c)
{
    const int64_t n = (int64_t)(PACKED / sizeof(float)) / c->panel_size;

    return n < 1 ? 1 : min64(n, c->panels);
}

void cpu_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p)
{
    struct conv c = {.d = d, .isa = pick_isa(), .y = y, .x = x, .w = w, .bias = bias, .residual = p->residual,
                     .act = p->act, .pad = p->pad, .ci = x.shape[3], .co = y.shape[3]};

    if (!hv_count(y))
        return;
    for (int i = 0; i < 3; i++)
        c.a[i] = axis_of(&c, p, i);
    c.taps = c.a[0].taps * c.a[1].taps * c.a[2].taps;
    c.phases = c.a[0].phases * c.a[1].phases * c.a[2].phases;
    c.first_out = c.a[0].up ? 2 * c.a[0].n - y.shape[0] : 0;
    c.panels = ceil_div(c.co, CONV_PANEL);
    c.threads = hv_count(y) * c.taps * (p->depthwise ? 1 : c.ci) < SMALL ? 1 : d->threads;
    c.phase_size = c.taps * c.ci * CONV_PANEL;
    c.panel_size = c.phase_size * c.phases;
    c.direct = c.a[1].k == 1 && c.a[2].k == 1 && c.a[0].taps == 1 && c.phases == 1;
    cut(&c);

    const int64_t k = (int64_t)c.a[0].k * c.a[1].k * c.a[2].k;
    const int64_t cells = c.a[0].taps * c.a[1].span * ((c.cols - 1) * c.a[2].stride + c.a[2].span) * c.ci;
    if (x.dtype != HV_F32 || c.a[0].taps * c.a[1].taps > CONV_SEGMENTS ||
        (size_t)((CONV_PANEL * (PACK_CI + 1) * k) * 4) > CPU_SCRATCH || (size_t)(cells * 4) > CPU_SCRATCH ||
        (size_t)(c.co * 4 + CONV_PANEL * 4) > CPU_SCRATCH) {
        hv_dev_fault(d, HV_EUNSUP, "conv: kernel %lldx%lldx%lld over %lld channels is too large", (long long)c.a[0].k,
                     (long long)c.a[1].k, (long long)c.a[2].k, (long long)c.ci);
        return;
    }
    const int64_t group = p->depthwise ? 1 : panels_at_a_time(&c);
    const size_t floats = (size_t)(p->depthwise ? k * c.co : group * c.panel_size);
    c.packed = aligned_alloc(64, (floats * sizeof *c.packed + 63) / 64 * 64);
    if (!c.packed) {
        hv_dev_fault(d, HV_ENOMEM, "conv: out of memory: %zu bytes for packed weights", floats * sizeof *c.packed);
        return;
    }
    if (p->depthwise)
        depthwise(&c);
    else
        for (int64_t i = 0; i < c.panels; i += group)
            run_panels(&c, i, min64(group, c.panels - i));
    free(c.packed);
}
