/* hv-tensor preview: tensors as a picture. Latents go through a linear map to RGB, not through the VAE: io/preview.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-tensor.h"
#include "io/preview.h"

struct options {
    struct hv_common c;
    const char *key;
    int64_t     columns, count, zoom;
};

/* What is drawn: `count` tiles of width x height; paint makes the colour of one pixel, 0 to 1. */
struct view {
    const char  *data;
    const struct hv_entry *t;
    int64_t      count, width, height;
    double       min, max;              /* of the values that are drawn as gray */
    struct hv_preview_map map;          /* of latents */
    void       (*paint)(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3]);
};

static double at(const struct view *v, int64_t i)
{
    double d;

    to_f64(&d, v->t->dtype, v->data + (size_t)i * hv_dtype_size(v->t->dtype), 1);
    return d;
}

static void gray(const struct view *v, double value, double rgb[3])
{
    rgb[0] = rgb[1] = rgb[2] = v->max > v->min ? (value - v->min) / (v->max - v->min) : value > 0;
}

/* [C, f, h, w] */
static void paint_latents(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3])
{
    const int64_t plane = v->width * v->height;
    float z[HV_PREVIEW_CHANNELS];

    for (int64_t k = 0; k < v->map.channels; k++)
        z[k] = (float)at(v, (k * v->t->shape[1] + tile) * plane + y * v->width + x);
    hv_preview_color(&v->map, z, 1, rgb);
}

/* [F, H, W, 3] */
static void paint_frames(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3])
{
    for (int c = 0; c < 3; c++) {
        const double d = at(v, ((tile * v->height + y) * v->width + x) * 3 + c);
        rgb[c] = v->t->dtype == HV_U8 ? d / 255 : d;
    }
}

/* [n, h, w], or anything of two or three dimensions: one map a tile. */
static void paint_map(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3])
{
    gray(v, at(v, (tile * v->height + y) * v->width + x), rgb);
}

/* [rows, time], drawn with the first row below: a spectrogram. */
static void paint_spectrum(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3])
{
    (void)tile;
    gray(v, at(v, (v->height - 1 - y) * v->width + x), rgb);
}

/* [F, W, S, A]: tile = state, time to the right, the mean over the rows of a window. */
static void paint_features(const struct view *v, int64_t tile, int64_t x, int64_t y, double rgb[3])
{
    const int64_t rows = v->t->shape[1], states = v->t->shape[2], width = v->t->shape[3];
    double sum = 0;

    for (int64_t r = 0; r < rows; r++)
        sum += at(v, ((x * rows + r) * states + tile) * width + (v->height - 1 - y));
    gray(v, sum / (double)rows, rgb);
}

static int ends(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n >= k && !strcmp(s + n - k, tail);
}

/* Chooses how a tensor is drawn by its shape, where that does not tell by its name. */
static int choose(struct view *v, struct hv_err *e)
{
    const struct hv_entry *t = v->t;
    const int64_t *s = t->shape;

    if (t->ndim == 4 && s[3] == 3)
        *v = (struct view){v->data, t, s[0], s[2], s[1], 0, 1, {0}, paint_frames};
    else if (t->ndim == 4 && ends(t->name, "features"))
        *v = (struct view){v->data, t, s[2], s[0], s[3], 0, 0, {0}, paint_features};
    else if (t->ndim == 4 && (s[0] == 16 || ends(t->name, "latents")))
        *v = (struct view){v->data, t, s[1], s[3], s[2], 0, 1, {0}, paint_latents};
    else if (t->ndim == 2 && ends(t->name, "mel"))
        *v = (struct view){v->data, t, 1, s[1], s[0], 0, 0, {0}, paint_spectrum};
    else if (t->ndim == 3)
        *v = (struct view){v->data, t, s[0], s[2], s[1], 0, 0, {0}, paint_map};
    else if (t->ndim == 2 || t->ndim == 1)
        *v = (struct view){v->data, t, 1, t->ndim == 2 ? s[1] : s[0], t->ndim == 2 ? s[0] : 1, 0, 0, {0}, paint_map};
    else
        return hv_fail(e, HV_EUNSUP, "%s: no picture of %d dimensions: cut a part with hv-tensor slice", t->name, t->ndim);
    return v->count && v->width && v->height ? 0 : hv_fail(e, HV_EINPUT, "%s: nothing to draw: empty", t->name);
}

/* Range of the tensor; a mask within 0 .. 1 keeps that range. */
static void find_range(struct view *v)
{
    double lo = INFINITY, hi = -INFINITY;

    if (v->max > v->min)
        return;
    for (size_t i = 0; i < entry_count(v->t); i++) {
        const double d = at(v, (int64_t)i);
        if (isfinite(d)) {
            lo = d < lo ? d : lo;
            hi = d > hi ? d : hi;
        }
    }
    v->min = lo >= 0 && hi <= 1 ? 0 : lo;
    v->max = lo >= 0 && hi <= 1 ? 1 : hi;
}

static void draw_tile(struct hv_image *im, const struct view *v, int64_t tile, int64_t left, int64_t top, int64_t zoom)
{
    for (int64_t y = 0; y < v->height; y++)
        for (int64_t x = 0; x < v->width; x++) {
            double rgb[3];
            v->paint(v, tile, x, y, rgb);
            for (int64_t k = 0; k < zoom * zoom; k++) {
                uint8_t *p = im->rgb + ((top + y * zoom + k / zoom) * im->width + left + x * zoom + k % zoom) * 3;
                for (int c = 0; c < 3; c++)
                    p[c] = hv_preview_level(rgb[c]);
            }
        }
}

/* Contact sheet: up to `count` tiles spread evenly over all there are, a pixel of black between them. */
static int draw(struct hv_image *im, const struct view *v, const struct options *o, struct hv_err *e)
{
    const int64_t tiles = o->count && o->count < v->count ? o->count : v->count;
    int64_t columns = o->columns, zoom = o->zoom;

    if (!columns)
        columns = (int64_t)ceil(sqrt((double)tiles * (double)v->height / (double)v->width));
    columns = columns < 1 ? 1 : columns > tiles ? tiles : columns;
    if (!zoom)
        zoom = v->width * columns >= 512 ? 1 : 512 / (v->width * columns) > 8 ? 8 : 512 / (v->width * columns);
    zoom = zoom < 1 ? 1 : zoom;
    const int64_t rows = (tiles + columns - 1) / columns;
    if (hv_image_open(im, columns * (v->width * zoom + 1) - 1, rows * (v->height * zoom + 1) - 1, e))
        return e->code;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t tile = tiles > 1 ? i * (v->count - 1) / (tiles - 1) : 0;
        draw_tile(im, v, tile, i % columns * (v->width * zoom + 1), i / columns * (v->height * zoom + 1), zoom);
    }
    return 0;
}

/* Without --key: the first tensor that is worth a look. */
static const struct hv_entry *pick(const struct hv_in *in, const char *key, struct hv_err *e)
{
    static const char *const liked[] = {"latents", "video", "ref.latents", "face.mask", "audio.features", "mel"};
    const struct hv_entry *t = key ? hv_in_find(in, key) : NULL;

    for (size_t i = 0; !key && !t && i < sizeof liked / sizeof *liked; i++)
        t = hv_in_find(in, liked[i]);
    if (!key && !t && hv_in_count(in))
        t = hv_in_entry(in, 0);
    if (!t)
        hv_fail(e, HV_EINPUT, "%s: no tensor%s%s", hv_in_path(in), key ? " " : "s", key ? key : "");
    return t;
}

int cmd_preview(int argc, char **argv, struct hv_err *e)
{
    static struct options o;
    const struct hv_opt opts[] = {
        {"key", 0, HV_OPT_STR, &o.key, "NAME", "this tensor (default: latents, video, a mask, ..)", 0, 0},
        {"count", 0, HV_OPT_INT, &o.count, "N", "at most N frames, spread evenly (default: all)", 1, 1e6},
        {"columns", 0, HV_OPT_INT, &o.columns, "N", "frames in a row (default: a square sheet)", 1, 1e6},
        {"zoom", 0, HV_OPT_INT, &o.zoom, "N", "pixels an element (default: up to 8)", 1, 64},
        {0}
    };
    const struct hv_cli cli = {"hv-tensor", "preview [FILE] -o OUT.png",
                               "Draws latents (a linear map to RGB), frames, masks, spectrograms and features as one PNG.", opts,
                               &o.c, 0, 1};
    struct hv_in *in = NULL;
    struct hv_image im = {0};
    struct view v = {0};
    struct hv_entry t;
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc && (!o.c.output || !strcmp(o.c.output, "-")))
        rc = hv_fail(e, HV_EUSAGE, "-o FILE.png is missing");
    if (!rc)
        rc = hv_in_open(&in, o.c.n_operands ? o.c.operand[0] : "-", e);
    const struct hv_entry *picked = rc ? NULL : pick(in, o.key, e);
    if (!rc && !picked)
        rc = e->code;
    if (!rc) {
        v.data = hv_in_data(in, picked);
        t = *picked;
        for (; t.ndim > 3 && t.shape[0] == 1; t.ndim--)         /* a batch of one */
            memmove(t.shape, t.shape + 1, (size_t)(t.ndim - 1) * sizeof *t.shape);
        v.t = &t;
        rc = choose(&v, e);
        if (!rc && v.paint == paint_latents)
            rc = hv_preview_map(&v.map, o.c.model, t.shape[0], e);
    }
    if (!rc) {
        find_range(&v);
        rc = draw(&im, &v, &o, e);
    }
    if (!rc)
        rc = hv_image_write_png(&im, o.c.output, e);
    hv_image_close(&im);
    hv_in_close(in);
    return rc;
}
