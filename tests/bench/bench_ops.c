/* bench_ops - times operations on the cpu device, each as a ratio of OpenBLAS's sgemm in the same run with the same threads.
 *
 *     bench_ops [THREADS [NAME]]          0: all processors; only the operations whose name contains NAME
 *
 * TSV to stdout: op, shape, dtype, ms (the fastest of several runs), GB/s of tensors read and written once, Gflop/s, and
 * Gflop/s as a fraction of the sgemm of the first line. The shapes of linear and attention are those of a transformer of hidden
 * width 1536 with 12 heads on 2300 tokens; "forward" adds up what one double and one single block of it compute. */
#define _POSIX_C_SOURCE 200809L
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ops/ops.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define ROWS 2300

static struct hv_dev *dev;
static const char *only = "";
static double sgemm_gflops;
static int threads;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static hv_tensor tensor(hv_dtype t, int ndim, const int64_t *shape)
{
    struct hv_err e = {0};
    const size_t n = (size_t)hv_shape_count(ndim, shape), size = hv_dtype_size(t);
    char *p = hv_dev_alloc(dev, n * size, &e);
    uint32_t seed = 1;

    if (!p) {
        fprintf(stderr, "bench_ops: %s\n", e.msg);
        exit(e.code);
    }
    for (size_t i = 0; i < n; i++) {
        const float f = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
        const uint8_t b = (uint8_t)(seed >> 24);
        if (size == 1)
            p[i] = (char)((b & 0x7f) == 0x7f ? 0 : b);
        else
            hv_from_f32(t, p + i * size, &f, 1);
    }
    hv_tensor v = hv_view(p, t, ndim, shape);
    if (size == 1) {
        float *scale = hv_dev_alloc(dev, (size_t)shape[0] * sizeof *scale, &e);
        for (int64_t i = 0; scale && i < shape[0]; i++)
            scale[i] = 0.01f;
        v.scale = scale;
    }
    return v;
}

static void release(hv_tensor t)
{
    hv_dev_free(dev, t.data);
    hv_dev_free(dev, (void *)(uintptr_t)t.scale);
}

/* The fastest of at least 3 runs and at most half a second, in seconds. */
#define TIME(best, BODY)                                                                                               \
    double best = 1e30;                                                                                                \
    for (double begin_ = now(), n_ = 0, at_; n_ < 3 || (n_ < 50 && now() - begin_ < 0.5); n_++) {                      \
        at_ = now();                                                                                                   \
        BODY;                                                                                                          \
        at_ = now() - at_;                                                                                             \
        best = at_ < best ? at_ : best;                                                                                \
    }

static void line(const char *op, const char *shape, const char *dtype, double s, double bytes, double flops)
{
    printf("%s\t%s\t%s\t%.3f\t%.2f\t%.1f\t%.3f\n", op, shape, dtype, 1e3 * s, 1e-9 * bytes / s, 1e-9 * flops / s,
           1e-9 * flops / s / sgemm_gflops);
    fflush(stdout);
}

static int wanted(const char *op)
{
    return strstr(op, only) != NULL;
}

static void sgemm(void)
{
    const int n = 1536;
    hv_tensor x = tensor(HV_F32, 2, SHAPE(ROWS, n)), w = tensor(HV_F32, 2, SHAPE(n, n)), y = tensor(HV_F32, 2, SHAPE(ROWS, n));

    openblas_set_num_threads(threads);
    TIME(t, cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ROWS, n, n, 1, x.data, n, w.data, n, 0, y.data, n));
    openblas_set_num_threads(1);
    sgemm_gflops = 2e-9 * ROWS * n * n / t;
    line("sgemm", "2300x1536x1536", "f32", t, 4.0 * (2.0 * ROWS * n + 1.0 * n * n), 2.0 * ROWS * n * n);
    release(x), release(w), release(y);
}

static double linear(int64_t rows, int64_t depth, int64_t cols, hv_dtype t, enum hv_act act, int show)
{
    hv_tensor x = tensor(HV_F32, 2, SHAPE(rows, depth)), w = tensor(t, 2, SHAPE(cols, depth));
    hv_tensor y = tensor(HV_F32, 2, SHAPE(rows, cols)), b = tensor(HV_F32, 1, SHAPE(cols));
    char shape[64];

    TIME(s, hv_linear(dev, y, x, w, b, act));
    snprintf(shape, sizeof shape, "%lldx%lldx%lld", (long long)rows, (long long)depth, (long long)cols);
    if (show)
        line(act ? "linear+gelu" : "linear", shape, hv_dtype_name(t), s,
             4.0 * (double)(rows * (depth + cols)) + (double)hv_nbytes(w), 2.0 * (double)(rows * depth * cols));
    release(x), release(w), release(y), release(b);
    return s;
}

static double attention(int64_t lq, int64_t lk, int heads, int kv, int64_t width, int step, int show)
{
    hv_tensor q = tensor(HV_F32, 2, SHAPE(lq, heads * width)), o = tensor(HV_F32, 2, SHAPE(lq, heads * width));
    hv_tensor k = tensor(HV_F32, 2, SHAPE(lk, kv * width)), v = tensor(HV_F32, 2, SHAPE(lk, kv * width));
    const struct hv_attn a = {.heads = heads, .kv_heads = kv, .scale = (float)(1 / sqrt((double)width)), .step = step};
    const double pairs = step ? (double)lq * (double)(lq + step) / 2 : (double)lq * (double)lk;
    char shape[64];

    TIME(s, hv_attention(dev, o, q, k, v, &a));
    snprintf(shape, sizeof shape, "%lldx%lldx%dx%lld%s", (long long)lq, (long long)lk, heads, (long long)width,
             step ? " causal" : "");
    if (show)
        line("attention", shape, "f32", s, 8.0 * (double)((lq + lk) * heads * width), 4 * pairs * (double)(heads * width));
    release(q), release(k), release(v), release(o);
    return s;
}

/* One pass over [ROWS, 1536]. */
static double passes(int show)
{
    const int64_t n = 1536;
    hv_tensor x = tensor(HV_F32, 2, SHAPE(ROWS, n)), y = tensor(HV_F32, 2, SHAPE(ROWS, n)), g = tensor(HV_F32, 1, SHAPE(n));
    hv_tensor m = tensor(HV_F32, 1, SHAPE(ROWS)), h = tensor(HV_BF16, 2, SHAPE(ROWS, n)), w = hv_slice(g, 0, 0, 128);
    hv_tensor stat = tensor(HV_F32, 2, SHAPE(ROWS, 2));
    struct hv_rope rope = {.grid = {5, 20, 23}};
    const double one = 4.0 * ROWS * (double)n;
    double sum = 0;
    const int64_t axes[3] = {8, 28, 28};

    for (int a = 0; a < 3; a++) {
        rope.cos[a] = tensor(HV_F32, 2, SHAPE(rope.grid[a], axes[a]));
        rope.sin[a] = tensor(HV_F32, 2, SHAPE(rope.grid[a], axes[a]));
    }
#define PASS(name, bytes, times, CALL)                                                                                 \
    if (wanted(name) || !show) {                                                                                       \
        TIME(s, CALL);                                                                                                 \
        sum += s * (times);                                                                                            \
        if (show)                                                                                                      \
            line(name, "2300x1536", "f32", s, bytes, 0);                                                               \
    }
    PASS("add", 3 * one, 0, hv_add(dev, y, y, x))
    PASS("activation gelu_tanh", 2 * one, 0, hv_activation(dev, y, x, HV_ACT_GELU_TANH))
    PASS("activation gelu_erf", 2 * one, 0, hv_activation(dev, y, x, HV_ACT_GELU_ERF))
    PASS("activation silu", 2 * one, 0, hv_activation(dev, y, x, HV_ACT_SILU))
    PASS("swiglu", 3 * one, 0, hv_swiglu(dev, y, x, y))
    PASS("layer_norm", 2 * one, 0, hv_layer_norm(dev, y, x, g, g, 1e-6f))
    PASS("rms_norm", 2 * one, 0, hv_rms_norm(dev, y, x, g, 1e-6f))
    PASS("row_stats", one, 2, hv_row_stats(dev, stat, x, 1e-6f))
    PASS("norm_modulate", 2 * one, 3, hv_norm_modulate(dev, y, x, stat, g, g))
    PASS("qk_norm_rope", 2 * one, 4, hv_qk_norm_rope(dev, x, 12, w, 1e-6f, &rope))
    PASS("gated_add", 3 * one, 3, hv_gated_add(dev, x, g, y))
    PASS("masked_add", 3 * one, 0, hv_masked_add(dev, x, m, y))
    PASS("copy", 2 * one, 0, hv_copy(dev, y, x))
    PASS("copy to bf16", 1.5 * one, 0, hv_copy(dev, h, x))
    PASS("copy turned", 2 * one, 0, hv_copy(dev, hv_view(y.data, HV_F32, 3, SHAPE(n, 50, 46)),
        ((hv_tensor){.data = x.data, .dtype = HV_F32, .ndim = 3, .shape = {n, 50, 46}, .stride = {1, 46 * n, n}})))
    PASS("fill", one, 0, hv_fill(dev, y, 1))
    for (int a = 0; a < 3; a++)
        release(rope.cos[a]), release(rope.sin[a]);
    release(x), release(y), release(g), release(m), release(h), release(stat);
    return sum;
}

/* The sum over a double block (q, k, v, proj, fc1, fc2, attention) and a single block (the same work in two products). */
static void forward(void)
{
    const double n = 1536, flops = 2 * (ROWS * n * n * 12 + 2.0 * ROWS * ROWS * n) * 2;
    double s = 3 * linear(ROWS, 1536, 1536, HV_F32, HV_ACT_NONE, 0) + linear(ROWS, 1536, 1536, HV_F32, HV_ACT_NONE, 0);

    s += linear(ROWS, 1536, 6144, HV_F32, HV_ACT_GELU_TANH, 0) + linear(ROWS, 6144, 1536, HV_F32, HV_ACT_NONE, 0);
    s += linear(ROWS, 1536, 4608, HV_F32, HV_ACT_NONE, 0) + linear(ROWS, 1536, 6144, HV_F32, HV_ACT_GELU_TANH, 0);
    s += linear(ROWS, 7680, 1536, HV_F32, HV_ACT_NONE, 0) + 2 * attention(ROWS, ROWS, 12, 12, 128, 0, 0) + passes(0);
    line("forward", "2300 rows, 12x128, 2 blocks", "f32", s, 0, flops);
}

int main(int argc, char **argv)
{
    static const hv_dtype types[] = {HV_F32, HV_BF16, HV_F16, HV_I8, HV_F8_E4M3};
    struct hv_err e = {0};

    if (argc > 2)
        only = argv[2];
    if (hv_dev_open(&dev, "cpu", argc > 1 ? atoi(argv[1]) : 0, &e)) {
        fprintf(stderr, "bench_ops: %s\n", e.msg);
        return e.code;
    }
    threads = dev->threads;
    printf("# %d threads, OpenBLAS %s\nop\tshape\tdtype\tms\tGB/s\tGflop/s\tof_sgemm\n", threads, openblas_get_corename());
    sgemm();
    for (size_t i = 0; wanted("linear") && i < sizeof types / sizeof *types; i++) {
        linear(ROWS, 1536, 1536, types[i], HV_ACT_NONE, 1);
        linear(ROWS, 1536, 6144, types[i], HV_ACT_GELU_TANH, 1);
        linear(256, 1536, 1536, types[i], HV_ACT_NONE, 1);
        linear(1, 3072, 18432, types[i], HV_ACT_NONE, 1);
        linear(4, 3072, 6144, types[i], HV_ACT_NONE, 1);
        linear(16, 3072, 6144, types[i], HV_ACT_NONE, 1);
    }
    if (wanted("attention")) {
        attention(ROWS, ROWS, 12, 12, 128, 0, 1);
        attention(ROWS, ROWS, 32, 8, 128, 1, 1);
        attention(577, 577, 16, 16, 64, 0, 1);
        attention(1024, 1024, 1, 1, 512, 0, 1);
        attention(361, 16, 24, 24, 128, 0, 1);
    }
    passes(1);
    if (wanted("forward"))
        forward();
    hv_dev_close(dev);
    return 0;
}
