/* lipsync - does the mouth of a video follow a sound?
 *
 *     lipsync [OPTION]... VIDEO.st SOUND          video: u8 [F, H, W, 3], as hv-decode -f st writes it, 25 frames a second
 *
 *     -m x0,y0,x1,y1    the mouth box in pixels (needed)
 *     -f x0,y0,x1,y1    the face, fringe to chin: with -p, what is outside head and body is measured
 *     -p PICTURE        the portrait, at the size of the video
 *     -o SOUND          another sound, for comparison
 *     -j N,N,...        frames where windows meet
 *     -g LAG            no measuring: writes VIDEO.st, a drawn mouth that says SOUND, LAG frames late; for tests of this program
 *
 * Opening of the mouth = dark area: the sum over the box of clamp((0.30 - luma) / 0.12, 0, 1), less that of
 * the portrait, or, without one, the 5 % quantile of the clip, which takes care of dark skin and beards. Opening of the sound, from its energy around a frame:
 *
 *     e[f] = sqrt(mean(x^2 * hann)) over samples 640 f - 320 .. 640 f + 959 at 16 kHz;  q = 95 % quantile of e (below 1e-4: silence)
 *     o = min(e / q, 1.3)^0.7, smoothed by (1/4, 1/2, 1/4);  o = clamp((o - 0.12) / 0.88, 0, 1)
 *
 * Prints one line a figure: name, tab, value. "lag K": correlation of the mouth K frames later with the sound. "open", "shut":
 * mean area where o > 0.5 and o < 0.01; "area": the median of all frames. "background": PSNR to the portrait outside head and body; "still": the same to the mean
 * of the clip's frames. "seam": largest difference between two frames where windows meet, in medians of all; "head seam", "head else": outside of
 * the mouth box, there and at all other frames. "jerk": mean change outside of the mouth box from one latent frame to the next, over that
 * within latent frames, which are 1, 4, 4, .. frames; smooth motion has 1. "-": not there. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/image.h"
#include "io/sound.h"
#include "io/st.h"

#define HOP   640
#define SPAN  1280
#define LAGS  4
#define SEAMS 64

struct box {
    int x0, y0, x1, y1, given;
};

struct video {
    const uint8_t *rgb;
    int64_t frames, h, w;
};

static void die(int code, const char *what, const char *why)
{
    fprintf(stderr, "lipsync: %s: %s\n", what, why);
    exit(code);
}

static void *memory(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    if (!p)
        die(HV_ENOMEM, "memory", "none left");
    return p;
}

static struct box box_of(const char *text)
{
    struct box b = {.given = 1};

    if (sscanf(text, "%d,%d,%d,%d", &b.x0, &b.y0, &b.x1, &b.y1) != 4 || b.x1 <= b.x0 || b.y1 <= b.y0)
        die(HV_EUSAGE, text, "expected x0,y0,x1,y1");
    return b;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The quantile p of n numbers, linear between neighbours. */
static double quantile(const double *v, int64_t n, double p)
{
    double *s = memory((size_t)n, sizeof *s);

    memcpy(s, v, (size_t)n * sizeof *s);
    qsort(s, (size_t)n, sizeof *s, ascending);
    const double at = p * (double)(n - 1);
    const int64_t i = (int64_t)at, j = i + 1 < n ? i + 1 : i;
    const double q = s[i] + (s[j] - s[i]) * (at - (double)i);
    free(s);
    return q;
}

/* Opening of the mouth that the sound asks for; *n frames. Owned by the caller. */
static double *opening(const char *path, int64_t *n)
{
    struct hv_sound s = {0};
    struct hv_err e = {0};

    if (hv_sound_read(&s, path, 0, &e))
        die(e.code, "sound", e.msg);
    *n = s.n / HOP;
    double *v = memory((size_t)*n, sizeof *v), *o = memory((size_t)*n, sizeof *o);
    for (int64_t f = 0; f < *n; f++) {
        double sum = 0;
        for (int64_t i = 0; i < SPAN; i++) {
            const int64_t at = HOP * f - SPAN / 4 + i;
            const double x = at >= 0 && at < s.n ? (double)s.x[at] : 0;
            sum += x * x * (0.5 - 0.5 * cos(2 * 3.14159265358979323846 * (double)i / SPAN));
        }
        v[f] = sqrt(sum / SPAN);
    }
    const double q = quantile(v, *n, 0.95);
    for (int64_t f = 0; f < *n; f++)
        v[f] = q < 1e-4 ? 0 : pow(fmin(v[f] / q, 1.3), 0.7);
    for (int64_t f = 0; f < *n; f++) {
        const double y = 0.25 * v[f ? f - 1 : f] + 0.5 * v[f] + 0.25 * v[f + 1 < *n ? f + 1 : f];
        o[f] = fmin(fmax((y - 0.12) / 0.88, 0), 1);
    }
    free(v);
    hv_sound_close(&s);
    return o;
}

static double luma(const uint8_t *p)
{
    return (0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]) / 255;
}

static const uint8_t *pixel(const struct video *v, int64_t f, int64_t y, int64_t x)
{
    return v->rgb + ((f * v->h + y) * v->w + x) * 3;
}

/* Dark area of the mouth box of every frame. */
static double *areas(const struct video *v, const struct box *b)
{
    double *a = memory((size_t)v->frames, sizeof *a);

    for (int64_t f = 0; f < v->frames; f++)
        for (int y = b->y0; y < b->y1; y++)
            for (int x = b->x0; x < b->x1; x++)
                a[f] += fmin(fmax((0.30 - luma(pixel(v, f, y, x))) / 0.12, 0), 1);
    return a;
}

/* A clip of a mouth alone, an ellipse in the middle of a skin-coloured square, that says the sound `lag` frames late. */
static void pretend(const char *path, const char *sound, int lag)
{
    enum { SIDE = 32 };
    struct hv_out out = {0};
    struct hv_err e = {0};
    int64_t n;
    double *o = opening(sound, &n);
    uint8_t *p = hv_out_new(&out, "video", HV_U8, 4, (int64_t[]){n, SIDE, SIDE, 3}, &e);

    for (int64_t i = 0; p && i < n * SIDE * SIDE; i++) {
        const int64_t f = i / (SIDE * SIDE) - lag;
        const double open = f >= 0 && f < n ? o[f] : 0, high = 0.3 + 9 * open;
        const double y = ((double)(i / SIDE % SIDE) - 15.5) / high, x = ((double)(i % SIDE) - 15.5) / 10;
        const double edge = fmin(fmax((1 - sqrt(x * x + y * y)) * high + 0.5, 0), 1) * fmin(8 * open, 1);
        for (int k = 0; k < 3; k++)
            p[3 * i + k] = (uint8_t)(220 - 30 * k + (int)(edge * (20 - 220 + 30 * k)));
    }
    free(o);
    if (!p || hv_out_write(&out, path, &e))
        die(e.code, "video", e.msg);
    hv_out_close(&out);
}

/* Correlation of a[lag ..] with o; NAN where one of them is constant. */
static double correlation(const double *a, int64_t na, const double *o, int64_t no, int lag)
{
    const int64_t from = lag < 0 ? -lag : 0;
    int64_t to = no;
    double sa = 0, so = 0, aa = 0, oo = 0, ao = 0;

    if (to > na - lag)
        to = na - lag;
    if (to - from < 3)
        return NAN;
    for (int64_t f = from; f < to; f++) {
        sa += a[f + lag];
        so += o[f];
    }
    sa /= (double)(to - from);
    so /= (double)(to - from);
    for (int64_t f = from; f < to; f++) {
        const double x = a[f + lag] - sa, y = o[f] - so;
        aa += x * x;
        oo += y * y;
        ao += x * y;
    }
    return aa > 1e-9 && oo > 1e-9 ? ao / sqrt(aa * oo) : NAN;
}

static void print(const char *name, double value)
{
    if (isnan(value))
        printf("%s\t-\n", name);
    else
        printf("%s\t%.4f\n", name, value);
}

/* Outside head and body: above the chin, beside hair and ears or above them, with room for the sway. */
static int outside(const struct box *b, int64_t y, int64_t x)
{
    const double w = b->x1 - b->x0, h = b->y1 - b->y0, cx = 0.5 * (b->x0 + b->x1);

    if ((double)y > b->y1 - 0.12 * h)
        return 0;
    return fabs((double)x + 0.5 - cx) > 0.72 * w + 4 || (double)y < b->y0 - 0.15 * h - 3;
}

static double psnr(double sum, double n)
{
    return n > 0 ? -10 * log10(fmax(sum / n, 1e-12)) : NAN;
}

static void background(const struct video *v, const struct box *b, const uint8_t *portrait)
{
    double away = 0, moved = 0, n = 0;

    for (int64_t y = 0; y < v->h; y++)
        for (int64_t x = 0; x < v->w; x++)
            for (int c = 0; c < 3 && outside(b, y, x); c++) {
                double mean = 0;
                for (int64_t f = 0; f < v->frames; f++)
                    mean += pixel(v, f, y, x)[c] / 255.0 / (double)v->frames;
                for (int64_t f = 0; f < v->frames; f++) {
                    const double p = pixel(v, f, y, x)[c] / 255.0, d = p - portrait[(y * v->w + x) * 3 + c] / 255.0;
                    away += d * d;
                    moved += (p - mean) * (p - mean);
                    n++;
                }
            }
    print("background", psnr(away, n));
    print("still", psnr(moved, n));
}

/* d[f - 1]: how much frame f differs from the one before; without the pixels of a box. Owned by the caller. */
static double *changes(const struct video *v, const struct box *without)
{
    double *d = memory((size_t)v->frames, sizeof *d);

    for (int64_t f = 1; f < v->frames; f++)
        for (int64_t y = 0; y < v->h; y++)
            for (int64_t x = 0; x < v->w; x++)
                for (int c = 0; c < 3 && (!without || outside(without, y, x)); c++)
                    d[f - 1] += fabs((double)pixel(v, f, y, x)[c] - (double)pixel(v, f - 1, y, x)[c]);
    return d;
}

static double jerk(const double *d, int64_t frames)
{
    double sum[2] = {0}, n[2] = {0};

    for (int64_t f = 1; f < frames; f++) {
        sum[f % 4 == 1] += d[f - 1];
        n[f % 4 == 1]++;
    }
    return n[0] > 0 && sum[0] > 0 ? sum[1] / n[1] / (sum[0] / n[0]) : NAN;
}

/* The largest change at the n frames, or at all but these, in medians of all. */
static double seam(const double *d, int64_t frames, const int *at, int n, int others)
{
    const double median = frames > 2 ? quantile(d, frames - 1, 0.5) : NAN;
    double worst = 0;

    for (int64_t f = 1; f < frames; f++) {
        int here = 0;
        for (int i = 0; i < n; i++)
            here |= at[i] == f;
        if (here != others)
            worst = fmax(worst, d[f - 1]);
    }
    return median > 0 ? worst / median : NAN;
}

int main(int argc, char **argv)
{
    struct box mouth = {0}, face = {0};
    const char *portrait = NULL, *other = NULL;
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    hv_tensor t;
    struct hv_image im = {0};
    int seams[SEAMS], n_seams = 0, c, lag_of = 0, make = 0;

    while ((c = getopt(argc, argv, "m:f:p:o:j:g:")) != -1) {
        switch (c) {
        case 'm': mouth = box_of(optarg); break;
        case 'f': face = box_of(optarg); break;
        case 'p': portrait = optarg; break;
        case 'o': other = optarg; break;
        case 'j':
            for (char *p = strtok(optarg, ","); p && n_seams < SEAMS; p = strtok(NULL, ","))
                seams[n_seams++] = atoi(p);
            break;
        case 'g':
            lag_of = atoi(optarg);
            make = 1;
            break;
        default: return HV_EUSAGE;
        }
    }
    if (make && argc - optind == 2) {
        pretend(argv[optind], argv[optind + 1], lag_of);
        return 0;
    }
    if (argc - optind != 2 || !mouth.given)
        die(HV_EUSAGE, "usage", "lipsync -m x0,y0,x1,y1 [OPTION]... VIDEO.st SOUND");
    if (hv_in_open(&in, argv[optind], &e) || hv_in_tensor(in, "video", &t, &e))
        die(e.code, "video", e.msg);
    if (t.dtype != HV_U8 || t.ndim != 4 || t.shape[3] != 3 || t.shape[0] < 3)
        die(HV_EINPUT, argv[optind], "video: expected three frames or more, u8 [F, H, W, 3]");
    const struct video v = {t.data, t.shape[0], t.shape[1], t.shape[2]};
    if (mouth.x0 < 0 || mouth.y0 < 0 || mouth.x1 > v.w || mouth.y1 > v.h)
        die(HV_EINPUT, "mouth box", "outside the picture");

    int64_t n, m;
    double *a = areas(&v, &mouth), *o = opening(argv[optind + 1], &n), best = -2;
    double base = quantile(a, v.frames, 0.05);
    int at = 0;

    if (portrait) {
        if (hv_image_read(&im, portrait, 1, &e))
            die(e.code, "portrait", e.msg);
        if (im.width != v.w || im.height != v.h)
            die(HV_EINPUT, portrait, "not of the video's size");
        const struct video still = {im.rgb, 1, v.h, v.w};
        double *closed = areas(&still, &mouth);
        base = closed[0];
        free(closed);
    }
    printf("frames\t%lld\n", (long long)v.frames);
    for (int lag = -LAGS; lag <= LAGS; lag++) {
        char name[16];
        const double r = correlation(a, v.frames, o, n, lag);
        snprintf(name, sizeof name, "lag %d", lag);
        print(name, r);
        if (r > best) {
            best = r;
            at = lag;
        }
    }
    if (best > -2)
        printf("best\t%d\n", at);
    else
        printf("best\t-\n");
    double sum[3] = {0}, count[3] = {0};
    for (int64_t f = 0; f < v.frames && f < n; f++) {
        const int k = o[f] > 0.5 ? 0 : o[f] < 0.01 ? 1 : 2;
        sum[k] += a[f] - base;
        count[k]++;
        sum[2] += k < 2 ? a[f] - base : 0;
        count[2] += k < 2;
    }
    print("open", count[0] ? sum[0] / count[0] : NAN);
    print("shut", count[1] ? sum[1] / count[1] : NAN);
    print("area", quantile(a, v.frames, 0.5) - base);
    if (other) {
        double *p = opening(other, &m);
        print("other", correlation(a, v.frames, p, m, 0));
        free(p);
    }
    if (face.given && portrait)
        background(&v, &face, im.rgb);
    double *head = changes(&v, &mouth);
    print("jerk", jerk(head, v.frames));
    if (n_seams) {
        double *all = changes(&v, NULL);
        print("seam", seam(all, v.frames, seams, n_seams, 0));
        print("head seam", seam(head, v.frames, seams, n_seams, 0));
        print("head else", seam(head, v.frames, seams, n_seams, 1));
        free(all);
    }
    free(head);
    free(a);
    free(o);
    hv_image_close(&im);
    hv_in_close(in);
    return 0;
}
