/* bench_gemm - times on a GPU the matrix products of a transformer of width 3072, with weights of every kind
 *
 *     bench_gemm [--json] [NAME]              only the products whose name contains NAME
 *
 * A line each: product, rows, how the weights are used, milliseconds (the median of 7 runs of 5 calls between two
 * events), Tflop/s, the relative error of a few rows (Frobenius norm, against sums in f64 of the same stored weights),
 * and, where weights are widened first, the milliseconds of that, which are not in the others. fp8 x fp8 includes the
 * rounding of x. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

#define RUNS   7
#define CALLS  5
#define NOISE  ((size_t)1 << 24)        /* numbers; larger matrices repeat them */
#define MOST   8192                     /* rows */
#define SAMPLE 4                        /* rows that are checked */
#define STEP   1021                     /* between them */

enum { BF16, I8, F8, KINDS };
enum mode { MODE_BF16, MODE_EXPAND, MODE_FUSED, MODE_FP8 };

static const hv_dtype dtype[KINDS] = {HV_BF16, HV_I8, HV_F8_E4M3};
static const struct product {
    const char *name;
    int64_t n, cols, depth;
    enum hv_act act;
} product[] = {{"qkv", 3, 512, 3072, HV_ACT_NONE}, {"proj", 1, 3072, 3072, HV_ACT_NONE},
               {"fc1", 1, 12288, 3072, HV_ACT_GELU_TANH}, {"fc2", 1, 3072, 12288, HV_ACT_NONE},
               {"linear2", 1, 3072, 15360, HV_ACT_NONE}};

static struct hv_dev *dev;
static int json, lines;
static void *from, *to, *noise[KINDS];  /* the same numbers as bf16, int8 and e4m3 */

static void check(const struct hv_err *e)
{
    if (!e->code)
        return;
    fprintf(stderr, "bench_gemm: %s\n", e->msg);
    exit(e->code);
}

static void make_noise(void)
{
    struct hv_err e = {0};
    uint32_t seed = 1;

    for (int k = 0; k < KINDS; k++)
        noise[k] = hv_dev_pin(dev, NOISE * hv_dtype_size(dtype[k]), &e);
    check(&e);
    for (size_t i = 0; i < NOISE; i++) {
        float f = -2;                   /* about normal: a sum of four */
        for (int k = 0; k < 4; k++)
            f += (float)((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
        f *= 1.7320508f;
        const float q = fmaxf(-127, fminf(127, rintf(40 * f))), s = 100 * f;
        hv_from_f32(HV_BF16, (uint16_t *)noise[BF16] + i, &f, 1);
        hv_from_f32(HV_I8, (int8_t *)noise[I8] + i, &q, 1);
        hv_from_f32(HV_F8_E4M3, (uint8_t *)noise[F8] + i, &s, 1);
    }
}

static float scale_of(int kind, int64_t row)
{
    return (kind == I8 ? 0.001f : 0.0004f) * (float)(1 + row % 5);
}

/* A matrix of noise on the device; quantized ones with scales. Weights of bf16 are as large as x. */
static hv_tensor matrix(int kind, int64_t rows, int64_t cols)
{
    struct hv_err e = {0};
    const size_t size = hv_dtype_size(dtype[kind]), count = (size_t)(rows * cols);
    hv_tensor t = hv_view(hv_dev_alloc(dev, count * size, &e), dtype[kind], 2, (int64_t[]){rows, cols});

    check(&e);
    t.dev = (uint8_t)dev->kind;
    for (size_t at = 0; at < count; at += NOISE) {
        const int64_t n = (int64_t)(count - at < NOISE ? count - at : NOISE);
        hv_tensor part = hv_view((char *)t.data + at * size, dtype[kind], 1, &n);
        part.dev = t.dev;
        hv_upload(dev, part, hv_view(noise[kind], dtype[kind], 1, &n));
    }
    if (kind != BF16) {
        float *host = malloc((size_t)rows * sizeof *host);
        hv_tensor s = hv_view(hv_dev_alloc(dev, (size_t)rows * sizeof *host, &e), HV_F32, 1, &rows);
        check(&e);
        s.dev = t.dev;
        for (int64_t r = 0; host && r < rows; r++)
            host[r] = scale_of(kind, r);
        hv_upload(dev, s, hv_view(host, HV_F32, 1, &rows));
        hv_dev_sync(dev, &e);
        free(host);
        t.scale = s.data;
    }
    return t;
}

static void release(hv_tensor t)
{
    hv_dev_free(dev, t.data);
    hv_dev_free(dev, (void *)(uintptr_t)t.scale);
}

static void row_of(float *to_f32, int kind, int64_t row, int64_t cols)
{
    const size_t size = hv_dtype_size(dtype[kind]);

    for (int64_t k = 0; k < cols;) {
        const size_t at = (size_t)(row * cols + k) % NOISE, left = NOISE - at, want = (size_t)(cols - k);
        const size_t n = want < left ? want : left;
        hv_to_f32(to_f32 + k, dtype[kind], (char *)noise[kind] + at * size, n);
        k += (int64_t)n;
    }
}

static double act(double x, enum hv_act a)
{
    return a == HV_ACT_GELU_TANH ? 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) : x;
}

/* SAMPLE rows of every column, in f64. The bias is the noise from its start. */
static void reference(double *ref, const struct product *p, int kind)
{
    const int64_t N = p->n * p->cols, K = p->depth;
    float *x = malloc((size_t)(SAMPLE * K) * sizeof *x), *bias = malloc((size_t)N * sizeof *bias);

    if (!x || !bias)
        exit(HV_ENOMEM);
    for (int64_t r = 0; r < SAMPLE; r++)
        row_of(x + r * K, BF16, r * STEP, K);
    row_of(bias, BF16, 0, N);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        float *w = malloc((size_t)K * sizeof *w);
        if (!w)
            exit(HV_ENOMEM);
        row_of(w, kind, n, K);
        for (int64_t r = 0; r < SAMPLE; r++) {
            double s = 0;
            for (int64_t k = 0; k < K; k++)
                s += (double)x[r * K + k] * w[k];
            ref[r * N + n] = act((kind == BF16 ? s : s * scale_of(kind, n)) + bias[n], p->act);
        }
        free(w);
    }
    free(x);
    free(bias);
}

static double error_of(hv_tensor y, const double *ref)
{
    const int64_t N = y.shape[1];
    float *row = malloc((size_t)N * sizeof *row);
    double diff = 0, size = 0;

    for (int64_t r = 0; row && r < SAMPLE; r++) {
        hv_download(dev, hv_view(row, HV_F32, 2, (int64_t[]){1, N}), hv_rows(y, r * STEP, 1));
        for (int64_t n = 0; n < N; n++) {
            const double a = ref[r * N + n], d = row[n] - a;
            diff += isnan(d) ? INFINITY : d * d;
            size += a * a;
        }
    }
    free(row);
    return sqrt(diff / size);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* What is timed: products, or the widening of their weights into `wide`. */
struct work {
    int n;
    hv_tensor y[3], x, w[3], bias[3], wide[3];
    enum hv_act act;
};

static void multiply(const struct work *k)
{
    if (k->n > 1)
        hv_linears(dev, k->n, k->y, k->x, k->w, k->bias, k->act);
    else
        hv_linear(dev, k->y[0], k->x, k->w[0], k->bias[0], k->act);
}

static void widen(const struct work *k)
{
    for (int i = 0; i < k->n; i++)
        hv_dequantize(dev, k->wide[i], k->w[i]);
}

static double seconds(void (*f)(const struct work *), const struct work *k)
{
    struct hv_err e = {0};
    double s[RUNS];

    for (int run = -1; run < RUNS; run++) {
        hv_dev_record(dev, from, HV_LANE_COMPUTE);
        for (int i = 0; i < CALLS; i++)
            f(k);
        hv_dev_record(dev, to, HV_LANE_COMPUTE);
        hv_dev_sync(dev, &e);
        check(&e);
        if (run >= 0)
            s[run] = hv_dev_elapsed(dev, from, to) / CALLS;
    }
    qsort(s, RUNS, sizeof *s, by_size);
    return s[RUNS / 2];
}

static void line(const struct product *p, int64_t rows, const char *how, double s, double widening, double error)
{
    const double tflops = 2e-12 * (double)(rows * p->n * p->cols * p->depth) / s;

    if (json)
        printf("%s{\"product\": \"%s\", \"rows\": %lld, \"weights\": \"%s\", \"ms\": %.4f, \"tflop_s\": %.1f, "
               "\"error\": %.3g, \"widen_ms\": %.4f}", lines++ ? ",\n " : "[", p->name, (long long)rows, how, 1e3 * s,
               tflops, error, 1e3 * widening);
    else
        printf("%-8s %5lld  %-12s %9.4f ms %8.1f Tflop/s  error %-8.3g%s", p->name, (long long)rows, how, 1e3 * s,
               tflops, error, widening > 0 ? "" : "\n");
    if (!json && widening > 0)
        printf("  widened in %.4f ms\n", 1e3 * widening);
    fflush(stdout);
}

static void one(const struct product *p, int64_t rows, int kind, enum mode mode, const double *ref)
{
    static const char *const how[KINDS][4] = {{"bf16", "", "", ""}, {"", "int8 expand", "int8 fused", ""},
                                              {"", "", "fp8 fused", "fp8 x fp8"}};
    const int64_t N = p->n * p->cols;
    hv_tensor x = matrix(BF16, rows, p->depth), w = matrix(kind, N, p->depth), y = matrix(BF16, rows, N);
    hv_tensor bias = matrix(BF16, 1, N), wide = {0};
    struct work k = {.n = (int)p->n, .x = x, .act = p->act};
    double widening = 0;

    hv_fill(dev, y, NAN);
    if (mode == MODE_EXPAND)
        wide = matrix(BF16, N, p->depth);
    for (int i = 0; i < k.n; i++) {
        k.y[i] = hv_cols(y, i * p->cols, p->cols);
        k.w[i] = hv_rows(w, i * p->cols, p->cols);
        k.bias[i] = hv_cols(hv_index(bias, 0), i * p->cols, p->cols);
        if (mode == MODE_EXPAND)
            k.wide[i] = hv_rows(wide, i * p->cols, p->cols);
    }
    if (mode == MODE_EXPAND) {
        widening = seconds(widen, &k);
        memcpy(k.w, k.wide, sizeof k.w);
    }
    dev->fp8 = mode == MODE_FP8;
    const double s = seconds(multiply, &k);
    dev->fp8 = 0;
    line(p, rows, how[kind][mode], s, widening, error_of(y, ref));
    release(x), release(w), release(y), release(bias), release(wide);
}

int main(int argc, char **argv)
{
    const size_t scratch = HV_LINEAR_SCRATCH + hv_linear_fp8_scratch(MOST, 15360);
    struct hv_err e = {0};
    struct hv_dev_info info;
    const char *only = "";

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--json"))
            json = 1;
        else
            only = argv[i];
    if (hv_dev_open(&dev, "cuda", 0, &e) || hv_dev_info(dev, &info, &e))
        check(&e);
    from = hv_dev_event(dev, &e);
    to = hv_dev_event(dev, &e);
    dev->scratch = hv_view(hv_dev_alloc(dev, scratch, &e), HV_BYTES, 1, (int64_t[]){(int64_t)scratch});
    dev->scratch.dev = (uint8_t)dev->kind;
    check(&e);
    make_noise();
    if (!json)
        printf("# %s\n", info.name);
    for (size_t i = 0; i < sizeof product / sizeof *product; i++) {
        const struct product *p = &product[i];
        double *ref = malloc((size_t)(SAMPLE * p->n * p->cols) * sizeof *ref);
        for (int kind = 0; ref && kind < KINDS && strstr(p->name, only); kind++) {
            reference(ref, p, kind);
            for (int64_t rows = MOST / 2; rows <= MOST; rows *= 2) {
                if (kind == BF16)
                    one(p, rows, kind, MODE_BF16, ref);
                if (kind == I8)
                    one(p, rows, kind, MODE_EXPAND, ref);
                if (kind != BF16)
                    one(p, rows, kind, MODE_FUSED, ref);
                if (kind == F8 && info.arch >= 89)
                    one(p, rows, kind, MODE_FP8, ref);
            }
        }
        free(ref);
    }
    if (json)
        printf("]\n");
    hv_dev_free(dev, dev->scratch.data);
    for (int k = 0; k < KINDS; k++)
        hv_dev_unpin(dev, noise[k]);
    hv_dev_event_close(dev, from);
    hv_dev_event_close(dev, to);
    hv_dev_close(dev);
    return 0;
}
