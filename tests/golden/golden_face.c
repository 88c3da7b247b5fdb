/* Face goldens. Metadata "kind": post (stored heads -> boxes -> mask), geometry (boxes -> masks), net (synthetic weights, picture
 * -> layers -> heads -> predictions). The post kind runs with the anchors and strides of the public family. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"
#include "io/image.h"
#include "model/face.h"
#include "ops/ops.h"

#define COS 1e-6

struct ctx {
    struct golden *g;
    const char    *name;
    struct hv_in  *in;
};

static int tensor(struct ctx *c, const char *name, hv_tensor *t)
{
    struct hv_err e = {0};

    if (!hv_in_tensor(c->in, name, t, &e))
        return 1;
    golden_error(c->g, c->name, &e);
    return 0;
}

/* max |want|, at least 1: heads are compared relative to it. */
static double scale_of(hv_tensor t)
{
    double m = 1;

    for (int64_t i = 0; i < hv_count(t); i++)
        m = fmax(m, fabs((double)((const float *)t.data)[i]));
    return m;
}

/* ---- masks ---- */

/* A golden's masks have shape [1, 1, 1, h, w]. */
static void compare_mask(struct ctx *c, const char *name, const float *mask, int64_t h, int64_t w)
{
    hv_tensor want;

    if (tensor(c, name, &want))
        golden_compare(c->g, c->name, name, hv_view(mask, HV_F32, 5, (int64_t[]){1, 1, 1, h, w}), want, 0, -1);
}

/* The latent mask of a rectangle, and the token mask: every second cell of it. suffix: "" or ".K". */
static void compare_masks(struct ctx *c, struct face_rect r, int width, int height, const char *suffix)
{
    const int64_t h = height / 8, w = width / 8, th = (h + 1) / 2, tw = (w + 1) / 2;
    float *latent = malloc((size_t)(h * w + th * tw) * sizeof *latent), *token = latent + h * w;
    char name[64];

    if (!latent)
        return;
    face_mask(latent, r, width, height);
    for (int64_t i = 0; i < th * tw; i++)
        token[i] = latent[i / tw * 2 * w + i % tw * 2];
    snprintf(name, sizeof name, "latent_mask%s", suffix);
    compare_mask(c, name, latent, h, w);
    snprintf(name, sizeof name, "token_mask%s", suffix);
    compare_mask(c, name, token, th, tw);
    free(latent);
}

static void geometry_case(struct ctx *c)
{
    hv_tensor boxes, sizes, area, rects;
    int64_t differ = 0;

    if (!tensor(c, "boxes_xywh", &boxes) || !tensor(c, "size_hw", &sizes) || !tensor(c, "area", &area)
        || !tensor(c, "mask_rect_y0y1x0x1", &rects))
        return;
    for (int64_t i = 0; i < boxes.shape[0]; i++) {
        const double *b = (const double *)boxes.data + 4 * i;
        const int32_t *hw = (const int32_t *)sizes.data + 2 * i, *want = (const int32_t *)rects.data + 4 * i;
        const struct face_rect r = face_widen(b[0], b[1], b[2], b[3], hw[1], hw[0], ((const double *)area.data)[i]);
        const int empty = r.y0 >= r.y1 || r.x0 >= r.x1, want_empty = want[0] >= want[1] || want[2] >= want[3];
        char suffix[16], name[40];

        differ += empty || want_empty ? empty != want_empty
                                      : r.y0 != want[0] || r.y1 != want[1] || r.x0 != want[2] || r.x1 != want[3];
        snprintf(suffix, sizeof suffix, ".%d", (int)i);
        snprintf(name, sizeof name, "latent_mask%s", suffix);
        if (hv_in_find(c->in, name))
            compare_masks(c, r, hw[1], hw[0], suffix);
    }
    golden_verdict(c->g, c->name, "mask_rect_y0y1x0x1", !differ, "%d of %d rectangles differ", (int)differ,
                   (int)boxes.shape[0]);
}

/* ---- stored heads ---- */

/* head.K [1, 48, ny, nx] of any float dtype as [ny, nx, 48]; allocated. */
static int head_of(struct ctx *c, int s, hv_tensor *head)
{
    char name[16];
    hv_tensor t;
    float *wide, *turned;

    snprintf(name, sizeof name, "head.%d", s);
    if (!tensor(c, name, &t))
        return 0;
    const int64_t n = hv_count(t), cells = t.shape[2] * t.shape[3], columns = t.shape[1];
    wide = malloc((size_t)n * sizeof *wide);
    turned = malloc((size_t)n * sizeof *turned);
    if (wide && turned) {
        hv_to_f32(wide, t.dtype, t.data, (size_t)n);
        for (int64_t i = 0; i < n; i++)
            turned[i % cells * columns + i / cells] = wide[i];
    }
    free(wide);
    *head = hv_view(turned, HV_F32, 3, (int64_t[]){t.shape[2], t.shape[3], columns});
    return turned != NULL;
}

/* Columns 0..3 and the landmarks in pixels, the others as probabilities; within 1e-4 of the value is enough. */
static void compare_pred(struct ctx *c, const char *name, const float *pred, hv_tensor want)
{
    const int64_t rows = want.shape[want.ndim - 2];
    double pixels = 0, chances = 0;

    for (int64_t i = 0; i < rows * FACE_COLUMNS; i++) {
        const double w = ((const float *)want.data)[i], d = fabs(pred[i] - w);
        const int k = (int)(i % FACE_COLUMNS);

        if (k == 4 || k == 15)
            chances = fmax(chances, isnan(d) ? INFINITY : d);
        else
            pixels = fmax(pixels, isnan(d) ? INFINITY : d <= 1e-4 * fabs(w) ? fmin(d, 1e-3) : d);
    }
    golden_verdict(c->g, c->name, name, pixels <= 1e-3 && chances <= 1e-5, "pixels %.1e (1e-3), probabilities %.1e (1e-5)",
                   pixels, chances);
}

/* The candidates of the golden are the rows of objectness above 0.3. */
static void compare_candidates(struct ctx *c, const float *pred, int64_t rows)
{
    float *some = malloc((size_t)(rows * FACE_COLUMNS) * sizeof *some + 1);
    int64_t n = 0;
    hv_tensor want;

    for (int64_t i = 0; some && i < rows; i++)
        if (pred[i * FACE_COLUMNS + 4] > 0.3f)
            memcpy(some + n++ * FACE_COLUMNS, pred + i * FACE_COLUMNS, FACE_COLUMNS * sizeof *some);
    if (some && tensor(c, "pred.candidates", &want)) {
        if (n == want.shape[0])
            compare_pred(c, "pred.candidates", some, want);
        else
            golden_verdict(c->g, c->name, "pred.candidates", 0, "%d rows, expected %d", (int)n, (int)want.shape[0]);
    }
    free(some);
}

static void compare_boxes(struct ctx *c, const struct face_box *found, int n)
{
    hv_tensor boxes, scores, landmarks;
    double worst = 0, chance = 0;

    if (!tensor(c, "boxes", &boxes) || !tensor(c, "scores", &scores) || !tensor(c, "landmarks", &landmarks))
        return;
    if (n != boxes.shape[0]) {
        golden_verdict(c->g, c->name, "boxes", 0, "%d boxes, expected %d", n, (int)boxes.shape[0]);
        return;
    }
    for (int i = 0; i < n; i++) {
        const double got[4] = {found[i].x, found[i].y, found[i].w, found[i].h};

        for (int k = 0; k < 4; k++)
            worst = fmax(worst, fabs(got[k] - ((const double *)boxes.data)[4 * i + k]));
        for (int k = 0; k < 10; k++)
            worst = fmax(worst, fabs(found[i].landmark[k] - ((const double *)landmarks.data)[10 * i + k]));
        chance = fmax(chance, fabs(found[i].score - ((const double *)scores.data)[i]));
    }
    golden_verdict(c->g, c->name, "boxes, landmarks, scores", worst <= 1e-3 && chance <= 1e-5,
                   "%d: pixels %.1e (1e-3), scores %.1e (1e-5)", n, worst, chance);
}

/* The golden's rows: x1 y1 x2 y2 score, landmarks, class; in pixels of the network's picture. */
static void compare_nms(struct ctx *c, const struct face_box *found, int n)
{
    double worst = 0, chance = 0;
    hv_tensor want;

    if (!tensor(c, "nms", &want))
        return;
    for (int i = 0; i < n && n == want.shape[0]; i++) {
        const struct face_box *b = &found[i];
        const float *w = (const float *)want.data + i * FACE_COLUMNS;
        const double got[4] = {b->x, b->y, b->x + b->w, b->y + b->h};

        for (int k = 0; k < 4; k++)
            worst = fmax(worst, fabs(got[k] - w[k]));
        for (int k = 0; k < 10; k++)
            worst = fmax(worst, fabs(b->landmark[k] - w[5 + k]));
        chance = fmax(chance, fabs(b->score - w[4]));
    }
    golden_verdict(c->g, c->name, "nms", n == want.shape[0] && worst <= 1e-3 && chance <= 1e-5,
                   "%d of %d: pixels %.1e (1e-3), scores %.1e (1e-5)", n, (int)want.shape[0], worst, chance);
}

/* From the boxes by score to the mask, with the reference's choice. */
static void compare_choice(struct ctx *c, const struct face_box *found, int n, int width, int height)
{
    const char *area = hv_in_meta(c->in, "area");
    struct face_box b = {0, 0, width, height, 0, {0}};
    hv_tensor want, rect;

    if (n)
        b = found[face_reference_choice(found, n)];
    if (tensor(c, "chosen_box", &want))
        golden_compare(c->g, c->name, "chosen_box", hv_view((double[]){b.x, b.y, b.w, b.h}, HV_F64, 1, (int64_t[]){4}), want,
                       1e-3, -1);
    const struct face_rect r = face_widen(b.x, b.y, b.w, b.h, width, height, area ? atof(area) : 3);
    if (tensor(c, "mask_rect_y0y1x0x1", &rect))
        golden_compare(c->g, c->name, "mask_rect", hv_view((int32_t[]){r.y0, r.y1, r.x0, r.x1}, HV_I32, 1, (int64_t[]){4}), rect,
                       0, -1);
    compare_masks(c, r, width, height, "");
}

static void compare_input(struct ctx *c, const struct face_config *config, hv_tensor image, int *w1, int *h1)
{
    struct hv_image src = {(int)image.shape[1], (int)image.shape[0], image.data}, dst;
    struct hv_err e = {0};
    hv_tensor want;

    face_input_size(config, src.width, src.height, w1, h1);
    if (!tensor(c, "detector_input_u8", &want))
        return;
    if (hv_image_resize_cv(&dst, &src, *w1, *h1, &e)) {
        golden_error(c->g, c->name, &e);
        return;
    }
    golden_compare(c->g, c->name, "detector_input_u8", hv_view(dst.rgb, HV_U8, 3, (int64_t[]){*h1, *w1, 3}), want, 0, -1);
    hv_image_close(&dst);
}

static int default_config(struct face_config *c, struct hv_err *e)
{
    static const char text[] = "{\"layers\": [{\"op\": \"conv\", \"from\": [-1], \"out\": 1},"
                               "{\"op\": \"detect\", \"from\": [0, 0, 0]}]}";
    json_t *json = NULL;
    int rc = hv_json_parse(&json, text, sizeof text - 1, 8, e);

    if (!rc)
        rc = face_config_parse(c, json, e);
    json_decref(json);
    return rc;
}

static void post_case(struct ctx *c)
{
    struct face_config config;
    struct face_box *boxes = NULL;
    struct hv_err e = {0};
    hv_tensor heads[FACE_SCALES] = {{0}}, image, first;
    float *pred = NULL;
    int w1, h1, n = 0, ok;

    if (default_config(&config, &e)) {
        golden_error(c->g, c->name, &e);
        return;
    }
    ok = tensor(c, "image", &image);
    if (ok)
        compare_input(c, &config, image, &w1, &h1);
    for (int s = 0; ok && s < FACE_SCALES; s++)
        ok = head_of(c, s, &heads[s]);
    const int64_t rows = ok ? face_rows(&config, w1, h1) : 0;
    if (ok && (pred = malloc((size_t)(rows * FACE_COLUMNS) * sizeof *pred))) {
        face_decode(pred, &config, heads);
        if (tensor(c, "pred.first64", &first))
            compare_pred(c, "pred.first64", pred, first);
        compare_candidates(c, pred, rows);
        if (face_suppress(&boxes, &n, pred, rows, config.conf, config.iou, &e))
            golden_error(c->g, c->name, &e);
        else {
            compare_nms(c, boxes, n);
            face_scale(boxes, n, (int)image.shape[1], (int)image.shape[0], w1, h1);
            compare_boxes(c, boxes, n);
            compare_choice(c, boxes, n, (int)image.shape[1], (int)image.shape[0]);
        }
    }
    free(boxes);
    free(pred);
    for (int s = 0; s < FACE_SCALES; s++)
        free(heads[s].data);
}

/* ---- network ---- */

struct net {
    struct ctx        *c;
    struct face_config config;
    struct hv_dev     *dev;
    struct hv_weights *weights;
    struct face       *face;
    float             *picture, *head[FACE_SCALES];
    int                w1, h1;
};

static void on_layer(void *ctx, int layer, hv_tensor out)
{
    struct net *n = ctx;
    struct hv_err e = {0};
    char name[40];
    hv_tensor want;

    snprintf(name, sizeof name, "layer.%d.corner", layer);
    if (!hv_in_find(n->c->in, name) || !tensor(n->c, name, &want))
        return;
    const int64_t ch = want.shape[0], rows = want.shape[1], columns = want.shape[2];
    float *got = malloc((size_t)(ch * rows * columns) * sizeof *got);
    hv_tensor corner = hv_index(out, 0);

    if (got && ch <= corner.shape[2] && rows <= corner.shape[0] && columns <= corner.shape[1]) {
        hv_download(n->dev, hv_view(got, HV_F32, 3, (int64_t[]){rows, columns, ch}),
                    hv_slice(hv_slice(hv_cols(corner, 0, ch), 0, 0, rows), 1, 0, columns));
        hv_tensor planes = hv_view(got, HV_F32, 3, (int64_t[]){ch, rows, columns});
        planes.stride[0] = 1;
        planes.stride[1] = columns * ch;
        planes.stride[2] = ch;
        if (!hv_dev_sync(n->dev, &e))
            golden_compare(n->c->g, n->c->name, name, planes, want, 1e-4 * scale_of(want), COS);
    } else
        golden_verdict(n->c->g, n->c->name, name, 0, "layer is too small");
    free(got);
}

/* The list of names and shapes against the golden's. */
static void compare_names(struct ctx *c, const struct hv_wlist *list)
{
    const char *text = hv_in_meta(c->in, "shapes");
    struct hv_err e = {0};
    json_t *shapes = NULL;
    const char *name, *bad = "";
    json_t *dims;
    int differ = 0;

    if (!text)
        return;
    if (hv_json_parse(&shapes, text, strlen(text), 8, &e)) {
        golden_error(c->g, c->name, &e);
        return;
    }
    json_object_foreach(shapes, name, dims) {
        const struct hv_wspec *s = hv_wlist_find(list, name);
        int same = s && (size_t)s->ndim == json_array_size(dims);

        for (int i = 0; same && i < s->ndim; i++)
            same = s->shape[i] == json_integer_value(json_array_get(dims, (size_t)i));
        differ += !same;
        bad = same ? bad : name;
    }
    differ += (int)json_object_size(shapes) != list->n;
    golden_verdict(c->g, c->name, "names and shapes of weights", !differ, "%d listed, %d expected%s%s", list->n,
                   (int)json_object_size(shapes), *bad ? ", wrong: " : "", bad);
    json_decref(shapes);
}

static int net_open(struct net *n, const char *path, struct hv_err *e)
{
    const char *seed = hv_in_meta(n->c->in, "seed"), *gain = hv_in_meta(n->c->in, "gain");
    struct hv_wlist list = {0};
    json_t *json = NULL;
    hv_tensor picture;
    char file[4096];
    int rc;

    snprintf(file, sizeof file, "%.*s.config.json", (int)(strlen(path) - strlen(".safetensors")), path);
    if (!seed || !gain)
        return hv_fail(e, HV_EINPUT, "%s: no seed or gain in its metadata", path);
    rc = hv_in_tensor(n->c->in, "input_u8", &picture, e);
    if (!rc)
        rc = hv_json_read(&json, file, e);
    if (!rc)
        rc = face_config_parse(&n->config, json, e);
    json_decref(json);
    if (!rc)
        rc = hv_dev_open(&n->dev, n->c->g->device, n->c->g->threads, e);
    if (rc)
        return rc;
    face_weights(&list, &n->config);
    compare_names(n->c, &list);
    rc = hv_weights_open_synth(&n->weights, n->dev, &list,
                               &(struct hv_synth_opts){.seed = strtoull(seed, NULL, 10), .as_stored = 1, .gain = strtof(gain, NULL)}, e);
    hv_wlist_close(&list);
    n->h1 = (int)picture.shape[0];
    n->w1 = (int)picture.shape[1];
    if (!rc)
        rc = face_open(&n->face, n->dev, n->weights, &n->config, n->w1, n->h1, e);
    const int64_t values = hv_count(picture);
    n->picture = malloc((size_t)values * sizeof *n->picture);
    for (int64_t i = 0; n->picture && i < values; i++)
        n->picture[i] = (float)((const uint8_t *)picture.data)[i] / 255;
    return rc;
}

static void net_run(struct net *n, struct hv_err *e)
{
    hv_tensor heads[FACE_SCALES], want;
    char name[16];

    for (int s = 0; s < FACE_SCALES; s++) {
        const int64_t h = n->h1 / n->config.stride[s], w = n->w1 / n->config.stride[s];
        n->head[s] = malloc((size_t)(h * w * 48) * sizeof(float));
        heads[s] = hv_view(n->head[s], HV_F32, 3, (int64_t[]){h, w, 48});
    }
    face_forward(n->face, heads, hv_view(n->picture, HV_F32, 3, (int64_t[]){n->h1, n->w1, 3}), on_layer, n);
    if (hv_dev_sync(n->dev, e)) {
        golden_error(n->c->g, n->c->name, e);
        return;
    }
    for (int s = 0; s < FACE_SCALES; s++) {
        snprintf(name, sizeof name, "head.%d", s);
        if (!tensor(n->c, name, &want))
            continue;
        hv_tensor planes = hv_view(n->head[s], HV_F32, 4, (int64_t[]){1, 48, heads[s].shape[0], heads[s].shape[1]});
        planes.stride[1] = 1;
        planes.stride[2] = heads[s].stride[0];
        planes.stride[3] = heads[s].stride[1];
        golden_compare(n->c->g, n->c->name, name, planes, want, 1e-4 * scale_of(want), COS);
    }
    const int64_t rows = face_rows(&n->config, n->w1, n->h1);
    float *pred = malloc((size_t)(rows * FACE_COLUMNS) * sizeof *pred);
    if (pred && tensor(n->c, "pred", &want)) {
        face_decode(pred, &n->config, heads);
        if (want.shape[want.ndim - 2] == rows)
            compare_pred(n->c, "pred", pred, want);
        else
            golden_verdict(n->c->g, n->c->name, "pred", 0, "%d rows, expected %d", (int)rows, (int)want.shape[1]);
    }
    free(pred);
}

/* A convolution of 3x3, padded by 1, behind which the batch norm has been folded in. */
static void fold_case(struct ctx *c)
{
    hv_tensor w, gamma, beta, mean, var, x, y;

    if (!hv_in_find(c->in, "fold.weight") || !tensor(c, "fold.weight", &w) || !tensor(c, "fold.gamma", &gamma) ||
        !tensor(c, "fold.beta", &beta) || !tensor(c, "fold.mean", &mean) || !tensor(c, "fold.var", &var) ||
        !tensor(c, "fold.input", &x) || !tensor(c, "fold.output", &y))
        return;
    const int64_t out = w.shape[0], in = w.shape[1], k = w.shape[2], rows = x.shape[x.ndim - 2], cols = x.shape[x.ndim - 1];
    float *factor = malloc((size_t)(2 * out) * sizeof *factor), *got = malloc((size_t)(out * rows * cols) * sizeof *got);

    if (factor && got && hv_count(y) == out * rows * cols) {
        face_fold(factor, factor + out, gamma.data, beta.data, mean.data, var.data, NULL, FACE_BN_EPS, out);
        for (int64_t i = 0; i < out * rows * cols; i++) {
            const int64_t o = i / (rows * cols), r = i / cols % rows, q = i % cols;
            double sum = (double)factor[out + o];
            for (int64_t t = 0; t < in * k * k; t++) {
                const int64_t yy = r + t / k % k - k / 2, xx = q + t % k - k / 2;
                if (yy >= 0 && yy < rows && xx >= 0 && xx < cols)
                    sum += (double)(((const float *)w.data)[o * in * k * k + t] * factor[o]) *
                           (double)((const float *)x.data)[(t / (k * k) * rows + yy) * cols + xx];
            }
            got[i] = (float)sum;
        }
        golden_compare(c->g, c->name, "fold.output", hv_view(got, HV_F32, y.ndim, y.shape), y, 1e-4 * scale_of(y), COS);
    } else {
        golden_verdict(c->g, c->name, "fold.output", 0, "%d values", (int)hv_count(y));
    }
    free(factor);
    free(got);
}

static void net_case(struct ctx *c, const char *path)
{
    struct net n = {.c = c};
    struct hv_err e = {0};

    if (net_open(&n, path, &e) || !n.picture)
        golden_error(c->g, c->name, &e);
    else
        net_run(&n, &e);
    fold_case(c);
    face_close(n.face);
    hv_weights_close(n.weights);
    hv_dev_close(n.dev);
    free(n.picture);
    for (int s = 0; s < FACE_SCALES; s++)
        free(n.head[s]);
}

static void one(struct golden *g, const char *path, const char *name)
{
    char label[256];
    struct ctx c = {.g = g, .name = label};
    struct hv_err e = {0};

    snprintf(label, sizeof label, "face/%s", name);
    if (hv_in_open(&c.in, path, &e)) {
        golden_error(g, label, &e);
        return;
    }
    const char *kind = hv_in_meta(c.in, "kind");
    if (kind && !strcmp(kind, "post"))
        post_case(&c);
    else if (kind && !strcmp(kind, "geometry"))
        geometry_case(&c);
    else if (kind && !strcmp(kind, "net"))
        net_case(&c, path);
    else
        golden_verdict(g, label, "", 0, "kind '%s' is not known", kind ? kind : "");
    hv_in_close(c.in);
}

void golden_face(struct golden *g, const char *dir)
{
    golden_each(g, dir, ".safetensors", one);
}
