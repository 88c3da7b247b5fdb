/* gemm.c - linear: y = act(x w^T + bias).
 *
 * Few rows (up to FEW): dot products; a row of w is widened a span at a time into the first cache and read once.
 *
 * More: y is cut into blocks of MB rows and NB columns, one thread a block. For each KB columns of x and w the block's x is packed
 * 8 rows at a time [8 rows][KB][8], and each 48 rows of w are widened from what they are stored as and packed [KB][48]; the
 * register tile of 8 x 48 (simd.h: product) adds up in a block of f32 that the second cache holds. Bias and activation are
 * applied as the block is written out. Packing costs one pass over each operand a block: for it blocks are large.
 *
 * An element of y is summed in an order that follows from K alone: its bits depend neither on the number of threads nor, beyond
 * FEW rows, on how a caller cuts x into chunks of rows. */
#include "cpu.h"

#include <string.h>

#define MB    384
#define NB    384
#define KB    128
#define FEW   6
#define SPAN  1024                      /* columns of w that are widened at a time for dot products */
#define LINES 16                        /* rows of w a piece of work, there */
#define ENOUGH 16                       /* blocks that keep a few threads busy */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

struct gemm {
    const struct cpu_simd *simd;
    hv_tensor y, x, w;
    const float *bias;
    enum hv_act act;
    int64_t rows, cols, depth, nb;      /* nb: columns of a block */
};

/* ---- few rows ---- */

/* A single row: memory is read as stored and nothing written. */
static void one_row(const struct gemm *g, int64_t first, int64_t last)
{
    const int64_t size = (int64_t)hv_dtype_size(g->w.dtype);
    float *y = g->y.data;

    for (int64_t n = first; n < last; n++) {
        const float s = g->simd->dot(g->x.data, g->w.dtype, (const char *)g->w.data + n * g->w.stride[0] * size, g->depth);
        y[n] = (g->w.scale ? s * g->w.scale[n] : s) + (g->bias ? g->bias[n] : 0);
    }
    if (g->act != HV_ACT_NONE)
        g->simd->act(y + first, y + first, last - first, g->act);
}

static void few_rows(const struct gemm *g, int64_t first, int64_t last)
{
    float wide[SPAN], sum[FEW];

    for (int64_t n = first; n < last; n++) {
        memset(sum, 0, sizeof sum);
        for (int64_t k = 0; k < g->depth; k += SPAN) {
            const int64_t span = least(SPAN, g->depth - k);
            const float *w = (const float *)g->w.data + n * g->w.stride[0] + k;
            if (g->w.dtype != HV_F32) {
                cpu_widen(wide, &g->w, n, k, span);
                w = wide;
            }
            for (int64_t r = 0; r < g->rows; r += 4)
                g->simd->dots(sum + r, 1, cpu_f32(&g->x, r) + k, g->x.stride[0], least(4, g->rows - r), w, span);
        }
        for (int64_t r = 0; r < g->rows; r++)
            cpu_f32(&g->y, r)[n] = g->bias ? sum[r] + g->bias[n] : sum[r];
    }
    if (g->act != HV_ACT_NONE)
        for (int64_t r = 0; r < g->rows; r++)
            g->simd->act(cpu_f32(&g->y, r) + first, cpu_f32(&g->y, r) + first, last - first, g->act);
}

/* ---- blocks ---- */

static void pack_x(const struct gemm *g, float *to, int64_t row, int64_t rows, int64_t k, int64_t depth)
{
    for (int64_t r = 0; r < rows; r += KR, to += KR * KB) {
        const int64_t n = least(KR, rows - r);
        if (n < KR)
            memset(to, 0, (size_t)(KR * depth) * sizeof *to);
        g->simd->transpose(to, KR, cpu_f32(&g->x, row + r) + k, g->x.stride[0], n, depth, 1);
    }
}

static void pack_w(const struct gemm *g, float *to, int64_t row, int64_t rows, int64_t k, int64_t depth)
{
    float wide[KR * KB];

    if (rows < KC)
        memset(to, 0, (size_t)(KC * depth) * sizeof *to);
    for (int64_t r = 0; r < rows; r += KR) {
        const int64_t n = least(KR, rows - r);
        const float *from = (const float *)g->w.data + (row + r) * g->w.stride[0] + k;
        int64_t step = g->w.stride[0];
        if (g->w.dtype != HV_F32) {
            for (int64_t i = 0; i < n; i++)
                cpu_widen(wide + i * KB, &g->w, row + r + i, k, depth);
            from = wide;
            step = KB;
        }
        g->simd->transpose(to + r, KC, from, step, n, depth, 1);
    }
}

static void write_out(const struct gemm *g, const float *c, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++, c += KC) {
        float *y = cpu_f32(&g->y, row + r) + col;
        if (g->bias)
            g->simd->add(y, c, g->bias + col, cols);
        else
            memcpy(y, c, (size_t)cols * sizeof *y);
        if (g->act != HV_ACT_NONE)
            g->simd->act(y, y, cols, g->act);
    }
}

/* One block: rows from `row`, columns from `col`. Scratch: x packed, w packed, sums [panel][row][48]. */
static void one_block(struct hv_dev *d, const struct gemm *g, int64_t row, int64_t col)
{
    const int64_t rows = least(MB, g->rows - row), cols = least(g->nb, g->cols - col), tall = (rows + KR - 1) / KR * KR;
    float *const a = cpu_scratch(d), *const b = a + MB * KB, *const sums = b + KC * KB;
    float ones[KC];

    for (int i = 0; i < KC; i++)
        ones[i] = 1;
    for (int64_t k = 0; k < g->depth; k += KB) {
        const int64_t depth = least(KB, g->depth - k);
        pack_x(g, a, row, rows, k, depth);
        for (int64_t n = 0; n < cols; n += KC) {
            float *c = sums + n * tall;
            pack_w(g, b, col + n, least(KC, cols - n), k, depth);
            for (int64_t r = 0; r < tall; r += KR)
                g->simd->product(c + r * KC, a + r * KB, b, depth, k ? ones : NULL);
        }
    }
    for (int64_t n = 0; n < cols; n += KC)
        write_out(g, sums + n * tall, row, rows, col + n, least(KC, cols - n));
}

void cpu_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    struct gemm g = {.simd = cpu_simd(), .y = y, .x = x, .w = w, .bias = bias.data, .act = act, .rows = x.shape[0],
                     .cols = w.shape[0], .depth = x.shape[1], .nb = NB};

    if (g.rows <= FEW) {
        const int64_t n = (g.cols + LINES - 1) / LINES;
        const int rounded = w.scale && w.deq_bf16;          /* each weight is rounded: it cannot be scaled afterwards */
#pragma omp parallel for num_threads(d->threads)
        for (int64_t i = 0; i < n; i++)
            (g.rows == 1 && !rounded ? one_row : few_rows)(&g, i * LINES, least((i + 1) * LINES, g.cols));
        return;
    }
    const int64_t down = (g.rows + MB - 1) / MB;
    while (g.nb > 2 * KC && down * ((g.cols + g.nb - 1) / g.nb) < ENOUGH)
        g.nb /= 2;
    const int64_t across = (g.cols + g.nb - 1) / g.nb;
#pragma omp parallel for schedule(dynamic) num_threads(d->threads)
    for (int64_t i = 0; i < down * across; i++)
        one_block(d, &g, i / across * MB, i % across * g.nb);
}

void cpu_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                 enum hv_act act)
{
    for (int i = 0; i < n; i++)
        cpu_linear(d, y[i], x, w[i], bias[i], act);
}
