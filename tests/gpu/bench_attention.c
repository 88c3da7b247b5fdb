/* bench_attention - times the back ends of attention on a GPU, and compares each with math
 *
 *     bench_attention [--rows N] [--heads N] [--group N] [--kinds NAME,..] [--bias S] [--json]
 *
 * Heads of 128 columns, bf16: q and o are columns of [rows, heads * 128], k and v are [rows, group * 128], as a
 * transformer keeps them; a pass is one call for each group. By default 72064 rows, 24 heads in groups of 4, and every
 * back end that the device has.
 * --bias S adds the same vector to all keys, of S times their deviation. Numbers are random and about normal.
 * A line each: kind, milliseconds of a pass (the median of 5, between two events), Tflop/s, and against math, for 256
 * rows of the first group: cosine, error of the Frobenius norm, largest error. Then the audio adapters' case: 2112
 * queries of 1024 columns over 16 keys. --json: one object. Status 1 when a cosine is below what the kind promises. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

#define WIDTH  128
#define RUNS   5
#define SAMPLE 256
#define NOISE  ((size_t)16000057)       /* numbers; larger matrices repeat them, but not their rows */
#define FRAMES 33
#define FRAME  2112
#define DEEP   1024
#define SOUNDS 16

struct options {
    int64_t rows;
    int     heads, group, json;
    double  bias;
    const char *kinds;
};

struct result {
    double ms, cosine, error, worst;
};

static const double promised[HV_ATTS] = {0.9999, 0, 0.9999, 0.9999, 0.9998, 0.999};
static struct hv_dev *dev;
static void *from, *to;
static uint16_t *noise;

static void check(const struct hv_err *e)
{
    if (!e->code)
        return;
    fprintf(stderr, "bench_attention: %s\n", e->msg);
    exit(e->code);
}

static void make_noise(void)
{
    struct hv_err e = {0};
    uint32_t seed = 1;

    noise = hv_dev_pin(dev, NOISE * sizeof *noise, &e);
    check(&e);
    for (size_t i = 0; i < NOISE; i++) {
        float f = -2;                   /* a sum of four */
        for (int k = 0; k < 4; k++)
            f += (float)((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
        f *= 1.7320508f;
        hv_from_f32(HV_BF16, noise + i, &f, 1);
    }
}

static hv_tensor raw(hv_dtype t, int ndim, const int64_t *shape)
{
    struct hv_err e = {0};
    const size_t bytes = (size_t)hv_shape_count(ndim, shape) * hv_dtype_size(t);
    hv_tensor x = hv_view(hv_dev_alloc(dev, bytes, &e), t, ndim, shape);

    check(&e);
    x.dev = (uint8_t)dev->kind;
    return x;
}

/* Noise from number `skip` on. */
static hv_tensor matrix(int64_t rows, int64_t cols, size_t skip)
{
    hv_tensor t = raw(HV_BF16, 2, (int64_t[]){rows, cols});
    const size_t count = (size_t)(rows * cols);

    for (size_t at = 0; at < count;) {
        const size_t have = NOISE - skip, want = count - at;
        const int64_t n = (int64_t)(want < have ? want : have);
        hv_tensor part = hv_view((uint16_t *)t.data + at, HV_BF16, 1, &n);
        part.dev = t.dev;
        hv_upload(dev, part, hv_view(noise + skip, HV_BF16, 1, &n));
        at += (size_t)n;
        skip = 0;
    }
    return t;
}

static void add_bias(hv_tensor k, double by)
{
    float *b = malloc((size_t)k.shape[1] * sizeof *b);
    hv_tensor row = raw(HV_F32, 1, &k.shape[1]);
    struct hv_err e = {0};

    if (!b)
        exit(HV_ENOMEM);
    hv_to_f32(b, HV_BF16, noise + 12345, (size_t)k.shape[1]);
    for (int64_t c = 0; c < k.shape[1]; c++)
        b[c] *= (float)by;
    hv_upload(dev, row, hv_view(b, HV_F32, 1, &k.shape[1]));
    hv_add(dev, k, k, row);
    hv_dev_sync(dev, &e);
    check(&e);
    hv_dev_free(dev, row.data);
    free(b);
}

static int64_t sampled(int64_t rows, int64_t i)
{
    return rows <= SAMPLE ? i : i * (rows - 1) / (SAMPLE - 1);
}

/* Rows of the sample, the first `cols` columns. */
static hv_tensor sample(hv_tensor x, int64_t cols)
{
    const int64_t n = x.shape[0] < SAMPLE ? x.shape[0] : SAMPLE;
    hv_tensor s = raw(HV_BF16, 2, (int64_t[]){n, cols});

    for (int64_t i = 0; i < n; i++)
        hv_copy(dev, hv_rows(s, i, 1), hv_cols(hv_rows(x, sampled(x.shape[0], i), 1), 0, cols));
    return s;
}

static float *numbers(hv_tensor x)
{
    float *f = malloc((size_t)hv_count(x) * sizeof *f);
    struct hv_err e = {0};

    if (!f)
        exit(HV_ENOMEM);
    hv_download(dev, hv_view(f, HV_F32, 2, x.shape), x);
    hv_dev_sync(dev, &e);
    check(&e);
    return f;
}

static void pass(hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a, int heads)
{
    for (int h = 0; h < heads; h += a->heads)
        hv_attention(dev, hv_cols(o, h * WIDTH, a->heads * WIDTH), hv_cols(q, h * WIDTH, a->heads * WIDTH), k, v, a);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Milliseconds of a call of f on x: the median. */
static double median(void (*f)(void *x), void *x)
{
    struct hv_err e = {0};
    double ms[RUNS];

    f(x);
    for (int i = 0; i < RUNS; i++) {
        hv_dev_record(dev, from, HV_LANE_COMPUTE);
        f(x);
        hv_dev_record(dev, to, HV_LANE_COMPUTE);
        hv_dev_event_sync(dev, to);
        ms[i] = 1e3 * hv_dev_elapsed(dev, from, to);
    }
    hv_dev_sync(dev, &e);
    check(&e);
    qsort(ms, RUNS, sizeof *ms, by_value);
    return ms[RUNS / 2];
}

struct work {
    hv_tensor o, q, k, v;
    struct hv_attn a;
    int heads;
};

static void do_pass(void *x)
{
    const struct work *w = x;

    pass(w->o, w->q, w->k, w->v, &w->a, w->heads);
}

static struct result run(struct work *w, enum hv_attention kind, const float *want, int64_t n)
{
    const float nan = NAN;
    struct result r = {0};
    double xy = 0, xx = 0, yy = 0, dd = 0;

    dev->attention = kind;
    hv_fill(dev, w->o, nan);
    r.ms = median(do_pass, w);
    hv_tensor s = sample(w->o, w->a.heads * WIDTH);
    float *got = numbers(s);
    for (int64_t i = 0; i < n; i++) {
        const double x = want[i], y = got[i], d = fabs(x - y);
        xy += x * y, xx += x * x, yy += y * y, dd += d * d;
        r.worst = d <= r.worst ? r.worst : d;           /* takes NaN */
    }
    r.cosine = xy / sqrt(xx * yy);
    r.error = sqrt(dd / xx);
    hv_dev_free(dev, s.data);
    free(got);
    return r;
}

/* Every latent frame's rows over its own keys, in place. */
static void do_adapter(void *x)
{
    const struct work *w = x;

    for (int f = 0; f < FRAMES; f++) {
        const hv_tensor q = hv_rows(w->q, f * FRAME, FRAME);
        hv_attention(dev, q, q, hv_rows(w->k, f * SOUNDS, SOUNDS), hv_rows(w->v, f * SOUNDS, SOUNDS), &w->a);
    }
}

static double adapter(void)
{
    struct work w = {.q = matrix(FRAMES * FRAME, DEEP, 0), .k = matrix(FRAMES * SOUNDS, DEEP, 7),
                     .v = matrix(FRAMES * SOUNDS, DEEP, 77), .a = {.heads = 1, .kv_heads = 1, .scale = 1 / 32.f}};

    dev->attention = HV_ATT_AUTO;
    return median(do_adapter, &w) / FRAMES;
}

static int listed(const char *kinds, const char *name)
{
    const size_t n = strlen(name);

    for (const char *p = kinds; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, name, n) && (!p[n] || p[n] == ','))
            return 1;
    return !kinds;
}

static void parse(struct options *o, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--json")) {
            o->json = 1;
            continue;
        }
        if (v && !strcmp(argv[i], "--rows"))
            o->rows = atoll(v);
        else if (v && !strcmp(argv[i], "--heads"))
            o->heads = atoi(v);
        else if (v && !strcmp(argv[i], "--group"))
            o->group = atoi(v);
        else if (v && !strcmp(argv[i], "--kinds"))
            o->kinds = v;
        else if (v && !strcmp(argv[i], "--bias"))
            o->bias = atof(v);
        else
            v = NULL;
        if (!v || o->rows < 1 || o->heads < 1 || o->group < 1 || o->heads % o->group) {
            fprintf(stderr, "usage: bench_attention [--rows N] [--heads N] [--group N] [--kinds NAME,..] [--bias S] "
                            "[--json]\n");
            exit(2);
        }
        i++;
    }
}

int main(int argc, char **argv)
{
    struct options o = {.rows = 72064, .heads = 24, .group = 4};
    struct hv_dev_info info;
    struct hv_err e = {0};
    int64_t bytes = 16;
    int rc = 0;

    parse(&o, argc, argv);
    hv_dev_open(&dev, "cuda", 0, &e);
    check(&e);
    hv_dev_info(dev, &info, &e);
    check(&e);
    from = hv_dev_event(dev, &e);
    to = hv_dev_event(dev, &e);
    check(&e);
    make_noise();
    for (int kind = 0; kind < HV_ATTS; kind++) {
        const int64_t n = (int64_t)hv_attention_scratch((enum hv_attention)kind, o.rows, o.rows, o.group, WIDTH);
        bytes = n > bytes ? n : bytes;
    }
    dev->scratch = raw(HV_BYTES, 1, (int64_t[]){(int64_t)HV_LINEAR_SCRATCH});
    struct work w = {.q = matrix(o.rows, o.heads * WIDTH, 0), .k = matrix(o.rows, o.group * WIDTH, 1001),
                     .v = matrix(o.rows, o.group * WIDTH, 9000001),
                     .o = raw(HV_BF16, 2, (int64_t[]){o.rows, o.heads * WIDTH}), .heads = o.heads,
                     .a = {.heads = o.group, .kv_heads = o.group, .scale = (float)(1 / sqrt(WIDTH)),
                     .scratch = raw(HV_BYTES, 1, &bytes)}};
    if (o.bias != 0)
        add_bias(w.k, o.bias);

    dev->attention = HV_ATT_MATH;
    hv_tensor some = sample(w.q, o.group * WIDTH);
    hv_attention(dev, some, some, w.k, w.v, &w.a);
    float *want = numbers(some);

    if (o.json)
        printf("{\"device\": \"%s\", \"rows\": %lld, \"heads\": %d, \"group\": %d, \"bias\": %g, \"kinds\": {",
               info.name, (long long)o.rows, o.heads, o.group, o.bias);
    else
        printf("%s: %lld rows, %d heads in groups of %d, bias %g\n", info.name, (long long)o.rows, o.heads, o.group,
               o.bias);
    int lines = 0;
    for (int kind = HV_ATT_FLASH; kind < HV_ATTS; kind++) {
        const char *name = hv_attention_name((enum hv_attention)kind);
        if (!listed(o.kinds, name) || (kind == HV_ATT_CUDNN && !info.cudnn))
            continue;
        const struct result r = run(&w, (enum hv_attention)kind, want, hv_count(some));
        const double tflops = 4e-9 * (double)o.rows * (double)o.rows * WIDTH * o.heads / r.ms;
        const int bad = !(r.cosine >= promised[kind] && r.worst == r.worst);
        if (o.json)
            printf("%s\"%s\": {\"ms\": %.3f, \"tflops\": %.1f, \"cosine\": %.6f, \"error\": %.5f, \"worst\": %.6f}",
                   lines ? ", " : "", name, r.ms, tflops, r.cosine, r.error, r.worst);
        else
            printf("%-8s %9.3f ms %7.1f Tflop/s  cosine %.6f  error %.5f  worst %.6f%s\n", name, r.ms, tflops, r.cosine,
                   r.error, r.worst, bad ? "  BAD" : "");
        fflush(stdout);
        lines++;
        rc |= bad;
    }
    const double ms = adapter(), traffic = 4e-6 * FRAME * DEEP / ms;
    if (o.json)
        printf("}, \"adapter\": {\"ms\": %.5f, \"gbytes\": %.0f}}\n", ms, traffic);
    else
        printf("%-8s %9.5f ms %7.0f GB/s of q and o\n", "adapter", ms, traffic);
    hv_dev_close(dev);
    free(want);
    return rc;
}
