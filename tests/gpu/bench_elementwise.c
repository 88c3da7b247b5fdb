/* bench_elementwise - times on a GPU the operations that move memory: those of a transformer at 4096 rows of 3072 in bf16,
 * copies to and from the host, and the VAE's.
 *
 *     bench_elementwise [--json] [NAME]       only the operations whose name contains NAME
 *
 * A line each: operation, shape, microseconds (the median of 7 runs of 20 calls between two events), GB/s of tensors read
 * and written once, Tflop/s where that counts. Calls go round over 8 sets of tensors, more than a second cache holds.
 * "a launch" is what a call costs that does nothing: of short operations it is the greater part. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define R 4096
#define H 3072
#define SETS 8
#define CALLS 20
#define RUNS 7

static struct hv_dev *dev;
static const char *only = "";
static int json, lines;
static uint8_t *noise;                  /* bf16 numbers in -1..1, pinned */
static void *from, *to;

static void check(const struct hv_err *e)
{
    if (!e->code)
        return;
    fprintf(stderr, "bench_elementwise: %s\n", e->msg);
    exit(e->code);
}

/* A tensor on the device, of random numbers; quantized ones with scales. */
static hv_tensor tensor(hv_dtype t, int ndim, const int64_t *shape)
{
    struct hv_err e = {0};
    const int64_t count = hv_shape_count(ndim, shape), bytes = count * (int64_t)hv_dtype_size(t), part = 2 * R * H;
    hv_tensor v = hv_view(hv_dev_alloc(dev, (size_t)bytes, &e), t, ndim, shape), flat;

    check(&e);
    v.dev = (uint8_t)dev->kind;
    flat = v;
    flat.ndim = 1, flat.stride[0] = 1;
    if (hv_dtype_size(t) < 4) {
        flat.dtype = HV_U8;
        for (int64_t at = 0; at < bytes; at += part) {
            flat.data = (char *)v.data + at;
            flat.shape[0] = bytes - at < part ? bytes - at : part;
            hv_upload(dev, flat, hv_view(noise, HV_U8, 1, flat.shape));
        }
    } else {
        hv_tensor some = hv_view(noise, HV_BF16, 1, SHAPE(count < R * H ? count : R * H));
        flat.shape[0] = count;
        for (int64_t at = 0; at < count; at += some.shape[0]) {
            const int64_t n = count - at < some.shape[0] ? count - at : some.shape[0];
            hv_upload(dev, hv_slice(flat, 0, at, n), hv_slice(some, 0, 0, n));
        }
    }
    if (t == HV_I8 || t == HV_F8_E4M3)
        v.scale = tensor(HV_F32, 1, shape).data;
    return v;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static void line(const char *op, const char *shape, double s, double bytes, double flops)
{
    if (json)
        printf("%s{\"op\": \"%s\", \"shape\": \"%s\", \"us\": %.2f, \"gb_s\": %.1f, \"tflop_s\": %.2f}",
               lines++ ? ",\n " : "[", op, shape, 1e6 * s, 1e-9 * bytes / s, 1e-12 * flops / s);
    else
        printf("%-24s %-26s %10.2f us %8.1f GB/s %8.2f Tflop/s\n", op, shape, 1e6 * s, 1e-9 * bytes / s, 1e-12 * flops / s);
    fflush(stdout);
}

/* `i` is the number of the call: of a set. */
#define BENCH(op, shape, bytes, flops, BODY)                                                                          \
    if (strstr(op, only)) {                                                                                           \
        struct hv_err e = {0};                                                                                        \
        double s[RUNS];                                                                                               \
        for (int run = -1; run < RUNS; run++) {                                                                       \
            hv_dev_record(dev, from, HV_LANE_COMPUTE);                                                                \
            for (int i = 0; i < CALLS; i++) {                                                                         \
                BODY;                                                                                                 \
            }                                                                                                         \
            hv_dev_record(dev, to, HV_LANE_COMPUTE);                                                                  \
            hv_dev_sync(dev, &e);                                                                                     \
            check(&e);                                                                                                \
            if (run >= 0)                                                                                             \
                s[run] = hv_dev_elapsed(dev, from, to) / CALLS;                                                       \
        }                                                                                                             \
        qsort(s, RUNS, sizeof *s, by_size);                                                                           \
        line(op, shape, s[RUNS / 2], bytes, flops);                                                                   \
    }

static hv_tensor set(hv_tensor t, int i)
{
    return hv_index(t, i % SETS);
}

/* Pixels of three channels as three planes. */
static hv_tensor turned(hv_tensor t)
{
    t = hv_reshape(t, 3, SHAPE(R, 1024, 3));
    t.shape[1] = 3, t.stride[1] = 1;
    t.shape[2] = 1024, t.stride[2] = 3;
    return t;
}

static hv_tensor as_f32(hv_tensor t)
{
    t.dtype = HV_F32;
    t.shape[1] = t.stride[0] = H / 2;
    return t;
}

static void transformer(void)
{
    const double one = 2.0 * R * H;
    const char *const shape = "4096x3072";
    hv_tensor x = tensor(HV_BF16, 3, SHAPE(SETS, R, H)), y = tensor(HV_BF16, 3, SHAPE(SETS, R, H));
    hv_tensor u = tensor(HV_BF16, 3, SHAPE(SETS, R, H)), stat = tensor(HV_F32, 2, SHAPE(R, 2));
    hv_tensor v = tensor(HV_F32, 1, SHAPE(H)), w = tensor(HV_F32, 1, SHAPE(H));
    hv_tensor mask = tensor(HV_F32, 1, SHAPE(R)), norm = tensor(HV_BF16, 1, SHAPE(128));
    struct hv_rope rope = {.grid = {33, 44, 48}};
    const int64_t axes[3] = {8, 28, 28};

    for (int a = 0; a < 3; a++) {
        rope.cos[a] = tensor(HV_F32, 2, SHAPE(rope.grid[a], axes[a]));
        rope.sin[a] = tensor(HV_F32, 2, SHAPE(rope.grid[a], axes[a]));
    }
    BENCH("a launch", "8", 16, 0, hv_fill(dev, hv_cols(hv_rows(set(u, i), 0, 1), 0, 8), 1))
    BENCH("row_stats", shape, one, 0, hv_row_stats(dev, stat, set(x, i), 1e-6f))
    BENCH("norm_modulate", shape, 2 * one, 0, hv_norm_modulate(dev, set(y, i), set(x, i), stat, v, w))
    BENCH("layer_norm", shape, 2 * one, 0, hv_layer_norm(dev, set(y, i), set(x, i), v, w, 1e-6f))
    BENCH("rms_norm", shape, 2 * one, 0, hv_rms_norm(dev, set(y, i), set(x, i), v, 1e-6f))
    BENCH("qk_norm_rope", "4096x24x128", 2 * one, 0, hv_qk_norm_rope(dev, set(y, i), 24, norm, 1e-6f, &rope))
    BENCH("qk_norm_rope", "4096x2x128 of 3072", one / 6, 0,
          hv_qk_norm_rope(dev, hv_cols(set(y, i), 256, 256), 2, norm, 1e-6f, &rope))
    BENCH("gated_add", shape, 3 * one, 0, hv_gated_add(dev, set(u, i), v, set(x, i)))
    BENCH("masked_add", shape, 3 * one, 0, hv_masked_add(dev, set(u, i), mask, set(x, i)))
    BENCH("add", shape, 3 * one, 0, hv_add(dev, set(u, i), set(x, i), set(y, i)))
    BENCH("add a row", shape, 2 * one, 0, hv_add(dev, set(u, i), set(x, i), v))
    BENCH("activation silu", shape, 2 * one, 0, hv_activation(dev, set(u, i), set(x, i), HV_ACT_SILU))
    BENCH("activation gelu_tanh", shape, 2 * one, 0, hv_activation(dev, set(u, i), set(x, i), HV_ACT_GELU_TANH))
    BENCH("activation gelu_erf", shape, 2 * one, 0, hv_activation(dev, set(u, i), set(x, i), HV_ACT_GELU_ERF))
    BENCH("swiglu", shape, 3 * one, 0, hv_swiglu(dev, set(u, i), set(x, i), set(y, i)))
    BENCH("copy", shape, 2 * one, 0, hv_copy(dev, set(u, i), set(x, i)))
    BENCH("copy of columns", "4096x1536 of 3072", one, 0,
          hv_copy(dev, hv_cols(set(u, i), 1536, 1536), hv_cols(set(x, i), 0, 1536)))
    BENCH("copy turned", "4096x1024x3", 2 * one, 0,
          hv_copy(dev, hv_reshape(set(u, i), 3, SHAPE(R, 3, 1024)), turned(set(x, i))))
    BENCH("copy to f32", "4096x1536", 3 * one / 2, 0, hv_copy(dev, as_f32(set(u, i)), hv_cols(set(x, i), 0, 1536)))
    BENCH("fill", shape, one, 0, hv_fill(dev, set(u, i), 0))
    if (strstr("gather_rows", only)) {
        int32_t ids[R];
        for (int i = 0; i < R; i++)
            ids[i] = i * 701 % R;
        BENCH("gather_rows", shape, 2 * one, 0, hv_gather_rows(dev, set(u, i), set(x, i), ids))
    }
    for (int k = 0; k < 2; k++) {
        hv_tensor q = tensor(k ? HV_F8_E4M3 : HV_I8, 3, SHAPE(SETS, R, H));
        const float *scale = q.scale;
        BENCH(k ? "dequantize f8" : "dequantize i8", shape, 1.5 * one, 0,
              hv_tensor t = set(q, i); t.scale = scale; hv_dequantize(dev, set(u, i), t))
        hv_dev_free(dev, (void *)(uintptr_t)scale);
        hv_dev_free(dev, q.data);
    }
    const int patch[3] = {1, 2, 2};
    hv_tensor planes = tensor(HV_F32, 4, SHAPE(16, 34, 88, 96)), rows = tensor(HV_BF16, 2, SHAPE(34 * 44 * 48, 64));
    const double n = 6.0 * (double)hv_count(planes);
    BENCH("patchify", "16x34x88x96 f32", n, 0, hv_patchify(dev, rows, planes, patch))
    BENCH("unpatchify", "16x34x88x96 f32", n, 0, hv_unpatchify(dev, planes, rows, patch))
    hv_tensor host = hv_view(noise, HV_BF16, 2, SHAPE(R, H));
    BENCH("upload pinned", shape, one, 0, hv_upload(dev, set(x, i), host))
    BENCH("download pinned", shape, one, 0, hv_download(dev, host, set(x, i)))
    host.data = malloc((size_t)one);
    memset(host.data, 0, (size_t)one);
    BENCH("download pageable", shape, one, 0, hv_download(dev, host, set(x, i)))
    BENCH("upload pageable", shape, one, 0, hv_upload(dev, set(x, i), host))
    free(host.data);
    hv_dev_free(dev, x.data), hv_dev_free(dev, y.data), hv_dev_free(dev, u.data);
}

static void vae(void)
{
    static const int64_t c[][6] = {{5, 256, 256, 128, 128, 1}, {5, 64, 64, 512, 512, 1}, {5, 256, 256, 128, 3, 1},
                                   {5, 64, 64, 512, 512, 2}};

    for (size_t k = 0; k < sizeof c / sizeof *c; k++) {
        const int64_t T = c[k][0], Y = c[k][1], X = c[k][2], ci = c[k][3], co = c[k][4], up = c[k][5];
        hv_tensor x = tensor(HV_F16, 4, SHAPE(T, Y, X, ci)), y = tensor(HV_F16, 4, SHAPE(T - 2, Y * up, X * up, co));
        hv_tensor w = tensor(HV_F16, 5, SHAPE(co, ci, 3, 3, 3)), b = tensor(HV_F32, 1, SHAPE(co));
        hv_tensor sums = tensor(HV_F64, 2, SHAPE(32, 2)), g = tensor(HV_F32, 1, SHAPE(ci));
        const struct hv_conv p = {.pad = HV_PAD_REPLICATE, .up = {1, (int)up, (int)up}};
        char shape[64];
        snprintf(shape, sizeof shape, "%dx%dx%d %d->%d%s", (int)T, (int)Y, (int)X, (int)ci, (int)co,
                 up == 2 ? " up" : "");
        hv_fill(dev, x, 0.5f);
        BENCH("conv 3x3x3", shape, (double)(hv_nbytes(x) + hv_nbytes(y)), 54.0 * (double)(hv_count(y) * ci),
              hv_conv(dev, y, x, w, b, &p))
        if (!k) {
            hv_fill(dev, sums, 0);
            BENCH("group_sums", "5x256x256x128", (double)hv_nbytes(x), 0, hv_group_sums(dev, sums, x))
            BENCH("group_norm silu", "5x256x256x128", 2 * (double)hv_nbytes(x), 0,
                  hv_group_norm(dev, x, x, sums, 1e9, g, g, 1e-6f, HV_ACT_SILU))
        }
        hv_dev_free(dev, x.data), hv_dev_free(dev, y.data), hv_dev_free(dev, w.data);
    }
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct hv_dev_info info;

    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--json"))
            json = 1;
        else
            only = argv[i];
    if (hv_dev_open(&dev, "cuda", 0, &e) || hv_dev_info(dev, &info, &e))
        check(&e);
    noise = hv_dev_pin(dev, 2 * R * H, &e);
    from = hv_dev_event(dev, &e);
    to = hv_dev_event(dev, &e);
    check(&e);
    uint32_t seed = 1;
    for (size_t i = 0; i < R * H; i++) {
        const float f = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-31f;
        hv_from_f32(HV_BF16, noise + 2 * i, &f, 1);
    }
    if (!json)
        printf("# %s\n", info.name);
    transformer();
    vae();
    if (json)
        printf("]\n");
    hv_dev_unpin(dev, noise);
    hv_dev_event_close(dev, from);
    hv_dev_event_close(dev, to);
    hv_dev_close(dev);
    return 0;
}
