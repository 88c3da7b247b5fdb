/* bench_vae - times convolutions and a decode on the cpu device, as ratios of OpenBLAS's sgemm in the same run, same threads.
 *
 *     bench_vae [--threads N] [--repeat N] [--only NAME]       0 threads: all processors; only what contains NAME
 *
 * TSV to stdout: op, shape, dtype, ms (the fastest run), GB/s of tensors read and written once, Gflop/s, and that as a fraction
 * of sgemm's ("-" where --only leaves sgemm out). "decode" is a decoder of 64, 128, 256, 256 channels on latents of 5x16x16.
 * Flops are those that are needed: upsampling in phase form, attention by what a frame sees. */
#define _POSIX_C_SOURCE 200809L
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/vae.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}

static struct hv_dev *dev;
static const char *only = "";
static double sgemm_gflops;
static int repeat = 3;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The fastest of `repeat` runs, after one that warms up. */
#define TIME(best, BODY)                                                                                               \
    double best = 1e30;                                                                                                \
    for (int n_ = 0; n_ <= repeat; n_++) {                                                                             \
        const double at_ = now();                                                                                      \
        BODY;                                                                                                          \
        if (n_ && now() - at_ < best)                                                                                  \
            best = now() - at_;                                                                                        \
    }

static float *numbers(int64_t n)
{
    float *p = malloc((size_t)n * sizeof *p);
    uint32_t seed = 1;

    if (!p) {
        fprintf(stderr, "bench_vae: out of memory\n");
        exit(HV_ENOMEM);
    }
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
    return p;
}

static hv_tensor tensor(int ndim, const int64_t *shape)
{
    return hv_view(numbers(hv_shape_count(ndim, shape)), HV_F32, ndim, shape);
}

static void line(const char *op, const char *shape, double s, double bytes, double flops)
{
    printf("%s\t%s\tf32\t%.3f\t%.2f\t%.1f\t", op, shape, 1e3 * s, 1e-9 * bytes / s, 1e-9 * flops / s);
    if (sgemm_gflops > 0)
        printf("%.3f\n", 1e-9 * flops / s / sgemm_gflops);
    else
        printf("-\n");
    fflush(stdout);
}

static int wanted(const char *op)
{
    return strstr(op, only) != NULL;
}

static void sgemm(void)
{
    const int m = 2048, n = 1536;
    float *x = numbers((int64_t)m * n), *w = numbers((int64_t)n * n), *y = numbers((int64_t)m * n);

    openblas_set_num_threads(dev->threads);
    TIME(t, cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, n, 1, x, n, w, n, 0, y, n));
    openblas_set_num_threads(1);
    sgemm_gflops = 2e-9 * m * n * n / t;
    line("sgemm", "2048x1536x1536", t, 4.0 * (2.0 * m * n + 1.0 * n * n), 2.0 * m * n * n);
    free(x), free(w), free(y);
}

/* A causal convolution that makes t frames of h x h from ci channels; up: of half the size, and of half the frames. */
static void conv(const char *name, int64_t t, int64_t h, int64_t ci, int64_t co, int64_t k, int up)
{
    const struct hv_conv p = {.up = {up, up, up}, .pad = HV_PAD_REPLICATE};
    hv_tensor x = tensor(4, up == 2 ? SHAPE(t / 2 + 1, h / 2, h / 2, ci) : SHAPE(t + k - 1, h, h, ci));
    hv_tensor w = tensor(5, SHAPE(co, ci, k, k, k)), y = tensor(4, SHAPE(t, h, h, co)), b = tensor(1, SHAPE(co));
    const uint64_t before = dev->count.flops;
    char shape[96];

    TIME(s, hv_conv(dev, y, x, w, b, &p));
    const double flops = (double)(dev->count.flops - before) / (repeat + 1);
    snprintf(shape, sizeof shape, "%lldx%lldx%lld %lld->%lld k%lld%s", (long long)t, (long long)h, (long long)h, (long long)ci,
             (long long)co, (long long)k, up == 2 ? " up" : "");
    line(name, shape, s, (double)(hv_nbytes(x) + hv_nbytes(y) + hv_nbytes(w)), flops);
    free(x.data), free(w.data), free(y.data), free(b.data);
}

static void norms(void)
{
    const double n = 5.0 * 128 * 128 * 64;
    hv_tensor x = tensor(4, SHAPE(5, 128, 128, 64)), y = tensor(4, SHAPE(5, 128, 128, 64)), w = tensor(1, SHAPE(64));
    double space[64] = {0};
    hv_tensor sums = hv_view(space, HV_F64, 2, SHAPE(32, 2));

    TIME(s, hv_group_sums(dev, sums, x));
    line("group_sums", "5x128x128x64", s, 4 * n, 0);
    TIME(t, hv_group_norm(dev, y, x, sums, n / 32 * (repeat + 1), w, w, 1e-6f, HV_ACT_SILU));
    line("group_norm silu", "5x128x128x64", t, 8 * n, 0);
    free(x.data), free(y.data), free(w.data);
}

static int decode(struct hv_err *e)
{
    const struct vae_config c = {.channels = {64, 128, 256, 256}, .layers = 2, .latent = 16, .groups = 32, .in = 3, .out = 3,
                                 .scaling_factor = 1, .mid_attention = 1, .mid_causal = 1};
    const struct vae_opts o = {.part = VAE_DECODER, .t = 5, .h = 16, .w = 16};
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct vae *v = NULL;
    hv_tensor z = tensor(4, SHAPE(5, 16, 16, 16)), y = tensor(4, SHAPE(17, 128, 128, 3));

    vae_part_weights(&list, &c, VAE_DECODER);
    if (!hv_weights_open_synth(&w, dev, &list, &(struct hv_synth_opts){.seed = 1}, e) && !vae_open(&v, dev, w, &c, &o, e)) {
        dev->count.flops = dev->count.bytes = 0;
        TIME(s, vae_decode(v, y, z));
        line("decode", "5x16x16 latents, 64,128,256,256", s, (double)dev->count.bytes / (repeat + 1),
             (double)dev->count.flops / (repeat + 1));
        hv_dev_sync(dev, e);
    }
    vae_close(v);
    hv_weights_close(w);
    hv_wlist_close(&list);
    free(z.data), free(y.data);
    return e->code;
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    int threads = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--repeat"))
            repeat = atoi(argv[i + 1]) > 0 ? atoi(argv[i + 1]) : 1;
        else if (!strcmp(argv[i], "--only"))
            only = argv[i + 1];
    }
    if (!hv_dev_open(&dev, "cpu", threads, &e)) {
        printf("op\tshape\tdtype\tms\tGB/s\tGflop/s\tof_sgemm\n");
        if (!*only || wanted("sgemm") || wanted("conv"))
            sgemm();
        if (wanted("conv")) {
            conv("conv", 5, 16, 256, 256, 3, 1);
            conv("conv", 9, 64, 256, 128, 3, 1);
            conv("conv", 4, 128, 128, 64, 3, 1);
            conv("conv", 4, 128, 64, 64, 3, 1);
            conv("conv", 4, 128, 64, 3, 3, 1);
            conv("conv", 4, 128, 3, 64, 3, 1);
            conv("conv", 4, 128, 128, 64, 1, 1);
            conv("conv", 8, 64, 256, 256, 3, 2);
            conv("conv", 8, 128, 128, 128, 3, 2);
        }
        if (wanted("group"))
            norms();
        if (wanted("decode"))
            decode(&e);
        hv_dev_close(dev);
    }
    if (e.code)
        fprintf(stderr, "bench_vae: %s\n", e.msg);
    return e.code;
}
