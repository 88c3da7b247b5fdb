/* bench_conv - times on a GPU the convolutions of the VAE at full size in f16, each on a strip as the decoder has it.
 *
 *     bench_conv [NAME]        only the shapes whose name contains NAME
 *
 * A line each: shape, microseconds (the median of 7 runs of 10 calls between two events), TFLOP/s of the work that is done: doubled
 * axes count 2 taps. Packing of the weights is included. Values are random, of a normal network's size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define CALLS 10
#define RUNS  7

static struct hv_dev *dev;

static void check(const struct hv_err *e)
{
    if (!e->code)
        return;
    fprintf(stderr, "bench_conv: %s\n", e->msg);
    exit(e->code);
}

/* Random values of -scale..scale on the device. */
static hv_tensor tensor(hv_dtype t, int ndim, const int64_t *shape, float scale)
{
    static uint32_t seed = 1;
    struct hv_err e = {0};
    const int64_t n = hv_shape_count(ndim, shape);
    hv_tensor v = hv_view(hv_dev_alloc(dev, (size_t)n * hv_dtype_size(t), &e), t, ndim, shape);
    float *host = malloc((size_t)n * sizeof *host);

    check(&e);
    v.dev = (uint8_t)dev->kind;
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = ((float)(seed >> 8) / (1 << 23) - 1) * scale;
    }
    hv_upload(dev, v, hv_view(host, HV_F32, ndim, shape));
    free(host);
    return v;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

struct shape {
    const char *name;
    int64_t t, h, w, ci, co;            /* of the output, before axes are doubled */
    int k, up[3], residual;
};

static void time_one(const struct shape *s)
{
    struct hv_err e = {0};
    const int T = s->up[0] == 2 ? (int)s->t + 1 : (int)s->t + s->k - 1;
    hv_tensor x = tensor(HV_F16, 4, SHAPE(T, s->h, s->w, s->ci), 1), w = tensor(HV_F16, 5, SHAPE(s->co, s->ci, s->k, s->k, s->k), 0.02f);
    hv_tensor b = tensor(HV_F32, 1, SHAPE(s->co), 1);
    hv_tensor y = tensor(HV_F16, 4, SHAPE(s->t * (s->up[0] ? s->up[0] : 1), s->h * (s->up[1] ? s->up[1] : 1), s->w * (s->up[2] ? s->up[2] : 1), s->co), 1);
    const struct hv_conv p = {.up = {s->up[0], s->up[1], s->up[2]}, .pad = HV_PAD_REPLICATE, .residual = s->residual ? y : HV_NO};
    void *a = hv_dev_event(dev, &e), *z = hv_dev_event(dev, &e);
    double seconds[RUNS];

    check(&e);
    hv_conv(dev, y, x, w, b, &p);
    const uint64_t before = dev->count.flops;
    hv_conv(dev, y, x, w, b, &p);
    const double flops = (double)(dev->count.flops - before);
    for (int r = 0; r < RUNS; r++) {
        hv_dev_record(dev, a, HV_LANE_COMPUTE);
        for (int i = 0; i < CALLS; i++)
            hv_conv(dev, y, x, w, b, &p);
        hv_dev_record(dev, z, HV_LANE_COMPUTE);
        hv_dev_sync(dev, &e);
        check(&e);
        seconds[r] = hv_dev_elapsed(dev, a, z) / CALLS;
    }
    qsort(seconds, RUNS, sizeof *seconds, by_size);
    printf("%-34s %10.1f us %8.1f TFLOP/s\n", s->name, 1e6 * seconds[RUNS / 2], 1e-12 * flops / seconds[RUNS / 2]);
    hv_dev_event_close(dev, a), hv_dev_event_close(dev, z);
    hv_dev_free(dev, x.data), hv_dev_free(dev, w.data), hv_dev_free(dev, b.data), hv_dev_free(dev, y.data);
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"3x3x3 128->128 4x256x256", 4, 256, 256, 128, 128, 3, {0}, 0},
        {"3x3x3 128->128 4x256x256 + x", 4, 256, 256, 128, 128, 3, {0}, 1},
        {"3x3x3 256->128 4x256x256", 4, 256, 256, 256, 128, 3, {0}, 0},
        {"1x1x1 256->128 4x256x256", 4, 256, 256, 256, 128, 1, {0}, 0},
        {"3x3x3 256->256 16x128x128", 16, 128, 128, 256, 256, 3, {0}, 0},
        {"3x3x3 512->256 16x128x128", 16, 128, 128, 512, 256, 3, {0}, 0},
        {"3x3x3 512->512 17x64x64", 17, 64, 64, 512, 512, 3, {0}, 0},
        {"3x3x3 512->512 17x32x32", 17, 32, 32, 512, 512, 3, {0}, 0},
        {"up 1,2,2 512->512 17x32x32", 17, 32, 32, 512, 512, 3, {1, 2, 2}, 0},
        {"up 2,2,2 512->512 16x64x64", 16, 64, 64, 512, 512, 3, {2, 2, 2}, 0},
        {"up 2,2,2 256->256 8x128x128", 8, 128, 128, 256, 256, 3, {2, 2, 2}, 0},
        {"3x3x3 128->3 4x256x256", 4, 256, 256, 128, 3, 3, {0}, 0},
        {"3x3x3 16->512 17x32x32", 17, 32, 32, 16, 512, 3, {0}, 0},
    };
    struct hv_err e = {0};
    const int64_t scratch = 64 << 20;

    hv_dev_open(&dev, getenv("DEVICE") ? getenv("DEVICE") : "cuda", 0, &e);
    check(&e);
    dev->scratch = hv_view(hv_dev_alloc(dev, (size_t)scratch, &e), HV_BYTES, 1, &scratch);
    dev->scratch.dev = (uint8_t)dev->kind;
    check(&e);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (argc < 2 || strstr(shapes[i].name, argv[1]))
            time_one(&shapes[i]);
    hv_dev_free(dev, dev->scratch.data);
    hv_dev_close(dev);
    return 0;
}
