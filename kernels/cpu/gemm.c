/* gemm.c - linear: y = act(x w^T + bias).
 *
 * Tiles of ROWS x COLS of y go to the threads; each is one single-threaded sgemm per DEPTH of K. Weights that are not f32 are
 * widened COLS x DEPTH at a time into the thread's scratch. */
#include "cpu.h"

#include <cblas.h>

#define ROWS  512
#define COLS  384
#define DEPTH 1024

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void tile(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, const float *bias, enum hv_act act)
{
    const int64_t rows = y.shape[0], cols = y.shape[1], depth = x.shape[1];
    float *const out = y.data;

    for (int64_t k = 0; k < depth; k += DEPTH) {
        const int64_t n = smaller(DEPTH, depth - k);
        const float *b = (const float *)w.data + k;
        int64_t ldb = w.stride[0];
        if (w.dtype != HV_F32) {
            float *wide = cpu_scratch(d);
            for (int64_t c = 0; c < cols; c++)
                cpu_widen(wide + c * n, &w, c, k, n);
            b = wide;
            ldb = n;
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)rows, (blasint)cols, (blasint)n, 1,
                    (const float *)x.data + k, (blasint)x.stride[0], b, (blasint)ldb, k ? 1 : 0, out, (blasint)y.stride[0]);
    }
    if (!bias && act == HV_ACT_NONE)
        return;
    for (int64_t r = 0; r < rows; r++) {
        float *o = out + r * y.stride[0];
        for (int64_t c = 0; bias && c < cols; c++)
            o[c] += bias[c];
        if (act != HV_ACT_NONE)
            cpu_act(o, o, cols, act);
    }
}

void cpu_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    const int64_t rows = x.shape[0], cols = w.shape[0];
    const int64_t down = (rows + ROWS - 1) / ROWS, across = (cols + COLS - 1) / COLS;

#pragma omp parallel for schedule(dynamic) num_threads(d->threads)
    for (int64_t i = 0; i < down * across; i++) {
        const int64_t r = i / across * ROWS, c = i % across * COLS;
        const int64_t nr = smaller(ROWS, rows - r), nc = smaller(COLS, cols - c);
        tile(d, hv_cols(hv_rows(y, r, nr), c, nc), hv_rows(x, r, nr), hv_rows(w, c, nc),
             bias.data ? (const float *)bias.data + c : NULL, act);
    }
}
