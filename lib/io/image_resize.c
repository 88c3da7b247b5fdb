#include "io/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int hv_image_size_rule(int width, int height, int tier, int *new_width, int *new_height, struct hv_err *e)
{
    static const int known[][2] = {{704, 1216}, {512, 768}, {384, 576}, {256, 384}};
    const double w = width, h = height, s = tier;
    double longer = 1.5 * s;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (tier == known[i][0])
            longer = known[i][1];
    double scale = s / (w < h ? w : h);
    double nw = rint(w * scale / 64) * 64, nh = rint(h * scale / 64) * 64;      /* ties to even */
    if (nw * nh > s * longer) {
        scale = sqrt(s * longer / w / h);
        nw = rint(w * scale / 64) * 64;
        nh = rint(h * scale / 64) * 64;
    }
    if (nw < 64 || nh < 64)
        return hv_fail(e, HV_EINPUT, "%d x %d pixels at size %d would become %.0f x %.0f: the picture is too thin or the "
                       "size too small", width, height, tier, nw, nh);
    *new_width = (int)nw;
    *new_height = (int)nh;
    return 0;
}

/* ---- resampling ---- the filter in double, its weights as integers of 22 fractional bits */

enum { BITS = 22 };

struct taps {
    int  n;                             /* room a destination sample */
    int *first, *count;                 /* [destination] source samples */
    int *weight;                        /* [destination][n] */
};

static double sinc(double x)
{
    const double pi = 3.14159265358979323846;

    return x == 0 ? 1 : sin(x * pi) / (x * pi);
}

static double filter_value(enum hv_filter f, double x)
{
    if (f == HV_LANCZOS)
        return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

static void taps_close(struct taps *t)
{
    free(t->first);
    free(t->count);
    free(t->weight);
}

static int taps_open(struct taps *t, int from, int to, enum hv_filter filter, struct hv_err *e)
{
    const double scale = (double)from / to, wide = scale > 1 ? scale : 1, radius = (filter == HV_LANCZOS ? 3 : 1) * wide;
    double *k;

    t->n = (int)ceil(radius) * 2 + 1;
    t->first = malloc((size_t)to * sizeof(int));
    t->count = malloc((size_t)to * sizeof(int));
    t->weight = calloc((size_t)to * (size_t)t->n, sizeof(int));
    k = malloc((size_t)t->n * sizeof *k);
    if (!t->first || !t->count || !t->weight || !k) {
        free(k);
        return hv_fail(e, HV_ENOMEM, "no memory for the filter of %d to %d samples", from, to);
    }
    for (int i = 0; i < to; i++) {
        const double centre = (i + 0.5) * scale;
        int lo = (int)(centre - radius + 0.5), hi = (int)(centre + radius + 0.5);
        double sum = 0;

        lo = lo < 0 ? 0 : lo;
        hi = hi > from ? from : hi;
        for (int j = lo; j < hi; j++)
            sum += k[j - lo] = filter_value(filter, (j - centre + 0.5) * (1 / wide));
        for (int j = 0; j < hi - lo; j++) {
            const double q = k[j] / sum * (1 << BITS);
            t->weight[(size_t)i * (size_t)t->n + (size_t)j] = (int)(q + (q >= 0 ? 0.5 : -0.5));
        }
        t->first[i] = lo;
        t->count[i] = hi - lo;
    }
    free(k);
    return 0;
}

static uint8_t rounded(int sum)
{
    const int v = sum >> BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void across(struct hv_image *dst, const struct hv_image *src, const struct taps *t)
{
#pragma omp parallel for schedule(static)
    for (int y = 0; y < src->height; y++) {
        const uint8_t *row = src->rgb + (size_t)y * (size_t)src->width * 3;
        uint8_t *out = dst->rgb + (size_t)y * (size_t)dst->width * 3;

        for (int x = 0; x < dst->width; x++, out += 3) {
            const uint8_t *p = row + (size_t)t->first[x] * 3;
            const int *w = t->weight + (size_t)x * (size_t)t->n;
            int r = 1 << (BITS - 1), g = r, b = r;

            for (int j = 0; j < t->count[x]; j++, p += 3) {
                r += w[j] * p[0];
                g += w[j] * p[1];
                b += w[j] * p[2];
            }
            out[0] = rounded(r);
            out[1] = rounded(g);
            out[2] = rounded(b);
        }
    }
}

/* The vertical pass goes over strips of a row, so that its sums stay in registers and cache. */
static void down(struct hv_image *dst, const struct hv_image *src, const struct taps *t)
{
    enum { STRIP = 1536 };
    const int values = src->width * 3;

#pragma omp parallel for schedule(static)
    for (int y = 0; y < dst->height; y++) {
        const int *w = t->weight + (size_t)y * (size_t)t->n;
        int sum[STRIP];

        for (int x0 = 0; x0 < values; x0 += STRIP) {
            const int n = values - x0 < STRIP ? values - x0 : STRIP;
            uint8_t *out = dst->rgb + (size_t)y * (size_t)values + (size_t)x0;

            for (int x = 0; x < n; x++)
                sum[x] = 1 << (BITS - 1);
            for (int j = 0; j < t->count[y]; j++) {
                const uint8_t *p = src->rgb + (size_t)(t->first[y] + j) * (size_t)values + (size_t)x0;
                for (int x = 0; x < n; x++)
                    sum[x] += w[j] * p[x];
            }
            for (int x = 0; x < n; x++)
                out[x] = rounded(sum[x]);
        }
    }
}

typedef void pass_fn(struct hv_image *dst, const struct hv_image *src, const struct taps *t);

/* dst = one axis of src resampled from `from` to `to` samples. */
static int pass(struct hv_image *dst, const struct hv_image *src, int width, int height, int from, int to, pass_fn *run,
                enum hv_filter filter, struct hv_err *e)
{
    struct taps t = {0};
    int rc = taps_open(&t, from, to, filter, e);

    if (!rc)
        rc = hv_image_open(dst, width, height, e);
    if (!rc)
        run(dst, src, &t);
    taps_close(&t);
    return rc;
}

int hv_image_resize(struct hv_image *dst, const struct hv_image *src, int width, int height, enum hv_filter filter,
                    struct hv_err *e)
{
    struct hv_image wide = {0};
    const struct hv_image *from = src;

    *dst = (struct hv_image){0};
    if (width < 1 || height < 1)
        return hv_fail(e, HV_EINPUT, "a picture cannot become %d x %d pixels", width, height);
    if (width != src->width) {
        if (pass(&wide, src, width, src->height, src->width, width, across, filter, e))
            return e->code;
        from = &wide;
    }
    if (height != src->height) {
        const int rc = pass(dst, from, width, height, src->height, height, down, filter, e);
        hv_image_close(&wide);
        return rc;
    }
    if (from == &wide) {
        *dst = wide;
        return 0;
    }
    if (hv_image_open(dst, width, height, e))
        return e->code;
    memcpy(dst->rgb, src->rgb, (size_t)width * (size_t)height * 3);
    return 0;
}

/* ---- OpenCV's bilinear ---- weights of 11 fractional bits */

struct lerp {
    int at, next, c0, c1;               /* samples, weights */
};

/* Weights of one axis. Across, a position outside of the picture takes the edge alone; down, both rows are the edge. */
static struct lerp *lerps(int from, int to, int across_it)
{
    struct lerp *l = malloc((size_t)to * sizeof *l);

    for (int d = 0; l && d < to; d++) {
        float f = (float)((d + 0.5) * ((double)from / to) - 0.5);
        int s = (int)floorf(f);

        f -= (float)s;
        if (across_it && s < 0)
            s = 0, f = 0;
        if (across_it && s >= from - 1)
            s = from - 1, f = 0;
        l[d].c0 = (int)rintf((1 - f) * 2048);
        l[d].c1 = (int)rintf(f * 2048);
        l[d].at = s < 0 ? 0 : s >= from ? from - 1 : s;
        l[d].next = s + 1 < 0 ? 0 : s + 1 >= from ? from - 1 : s + 1;
    }
    return l;
}

/* One source row, resampled across: [3 * width] of 11 fractional bits. */
static void lerp_row(int *out, const struct hv_image *src, int y, const struct lerp *x, int width)
{
    const uint8_t *row = src->rgb + (size_t)y * (size_t)src->width * 3;

    for (int d = 0; d < width; d++)
        for (int c = 0; c < 3; c++)
            out[3 * d + c] = x[d].c0 * row[3 * x[d].at + c] + x[d].c1 * row[3 * x[d].next + c];
}

int hv_image_resize_cv(struct hv_image *dst, const struct hv_image *src, int width, int height, struct hv_err *e)
{
    struct lerp *x, *y;
    int *rows;

    if (hv_image_open(dst, width, height, e))
        return e->code;
    x = lerps(src->width, width, 1);
    y = lerps(src->height, height, 0);
    rows = malloc((size_t)width * 6 * sizeof *rows);
    for (int i = 0; x && y && rows && i < height; i++) {
        uint8_t *out = dst->rgb + (size_t)i * (size_t)width * 3;
        const int *a = rows, *b = rows + 3 * width;

        lerp_row(rows, src, y[i].at, x, width);
        lerp_row(rows + 3 * width, src, y[i].next, x, width);
        for (int d = 0; d < 3 * width; d++) {
            const int v = ((y[i].c0 * (a[d] >> 4) >> 16) + (y[i].c1 * (b[d] >> 4) >> 16) + 2) >> 2;
            out[d] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        }
    }
    const int ok = x && y && rows;
    free(x);
    free(y);
    free(rows);
    if (!ok) {
        hv_image_close(dst);
        return hv_fail(e, HV_ENOMEM, "no memory to resize %d x %d pixels", src->width, src->height);
    }
    return 0;
}
