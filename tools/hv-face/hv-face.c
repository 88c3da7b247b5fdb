/* hv-face - where the speaking face is, as a mask. See hv-face.1 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boxes.h"
#include "core/cli.h"
#include "io/contract.h"
#include "io/image.h"
#include "io/st.h"
#include "mem/part.h"
#include "model/face.h"

#define PART "face_detector"

static struct options {
    struct hv_common c;
    const char *face, *box, *boxes, *fallback, *plan;
    double      area, conf, iou;
    int64_t     image_size;
    int         list, no_exif;
} o = {.face = "largest", .area = 3, .conf = -1, .iou = -1, .image_size = 704};

static const struct hv_opt opts[] = {
    {"face", 0, HV_OPT_STR, &o.face, "N|largest|full|reference", "which face speaks (default: largest)", 0, 0},
    {"box", 0, HV_OPT_STR, &o.box, "x,y,w,h", "the face, in pixels of the resized picture: no detector runs", 0, 0},
    {"boxes", 0, HV_OPT_STR, &o.boxes, "FILE", "the face in each video frame, as JSON lines {\"box\":[x,y,w,h]}", 0, 0},
    {"area", 0, HV_OPT_REAL, &o.area, "X", "sides of the mask, in sides of the face (default: 3)", 0.01, 1000},
    {"conf", 0, HV_OPT_REAL, &o.conf, "P", "least score of a face (default: the model's, 0.5)", 0, 1},
    {"iou", 0, HV_OPT_REAL, &o.iou, "P", "overlap above which two are one (default: the model's, 0.45)", 0, 1},
    {"face-fallback", 0, HV_OPT_STR, &o.fallback, "full", "when no face is found: the whole picture", 0, 0},
    {"list", 0, HV_OPT_FLAG, &o.list, NULL, "print the faces, largest first, and make no mask", 0, 0},
    {"image-size", 0, HV_OPT_INT, &o.image_size, "N", "size tier of the picture (default: 704)", 64, 8192},
    {"no-exif", 0, HV_OPT_FLAG, &o.no_exif, NULL, "do not turn the picture as its EXIF data says", 0, 0},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the detector's memory plan; compute nothing", 0, 0},
    {0}
};

static const struct hv_cli cli = {"hv-face", "[PICTURE]", "Finds the face that speaks, as a mask of the latent grid.",
                                  opts, &o.c, 0, 1};

enum { LARGEST, NUMBER, FULL, REFERENCE };

struct request {
    int    which;
    int    number;                      /* of NUMBER: from 1 */
    double box[4];
};

struct result {
    struct face_config config;
    struct face_box   *boxes;           /* by area, largest first */
    int                n, choice;       /* choice -1: the whole picture */
    double             best;            /* score of the best row, for the message when there is no face */
    const char        *source;
    int                moving;          /* n boxes are those of n frames */
    char               model[128];
};

static int parse_box(double box[4], struct hv_err *e)
{
    const char *p = o.box;
    char *end = NULL;

    for (int i = 0; i < 4; i++, p = end + 1) {
        errno = 0;
        box[i] = strtod(p, &end);
        if (end == p || errno || *end != (i < 3 ? ',' : 0) || !(box[i] > -1e6 && box[i] < 1e6))
            return hv_fail(e, HV_EUSAGE, "--box %.80s: expected x,y,w,h", o.box);
    }
    if (box[2] <= 0 || box[3] <= 0)
        return hv_fail(e, HV_EUSAGE, "--box %.80s: width and height must be above 0", o.box);
    return 0;
}

static int parse(struct request *q, int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);
    char *end = NULL;

    if (rc)
        return rc;
    q->which = !strcmp(o.face, "largest") ? LARGEST : !strcmp(o.face, "full") ? FULL
             : !strcmp(o.face, "reference") ? REFERENCE : NUMBER;
    if (q->which == NUMBER) {
        const long n = strtol(o.face, &end, 10);
        if (end == o.face || *end || n < 1 || n > 100000)
            return hv_fail(e, HV_EUSAGE, "--face %.40s: expected a number from 1, largest, full or reference", o.face);
        q->number = (int)n;
    }
    if (o.fallback && strcmp(o.fallback, "full"))
        return hv_fail(e, HV_EUSAGE, "--face-fallback %.40s: expected full", o.fallback);
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    if (o.boxes && (o.box || o.list || o.plan))
        return hv_fail(e, HV_EUSAGE, "--boxes: they say where the face is: no %s", o.box ? "--box" : o.list ? "--list" : "--plan");
    return o.box ? parse_box(q->box, e) : 0;
}

/* ---- the detector ---- */

static int find(struct result *r, const struct hv_image *im, const float *pred, int64_t rows, int w1, int h1,
                struct hv_err *e)
{
    if (face_suppress(&r->boxes, &r->n, pred, rows, r->config.conf, r->config.iou, e))
        return e->code;
    for (int64_t i = 0; i < rows; i++) {
        const double score = (double)pred[i * FACE_COLUMNS + 4] * pred[i * FACE_COLUMNS + 15];
        r->best = score > r->best ? score : r->best;
    }
    face_scale(r->boxes, r->n, im->width, im->height, w1, h1);
    return 0;
}

static int forward(struct result *r, struct hv_dev *dev, struct face *net, const struct hv_image *im, int w1, int h1,
                   struct hv_err *e)
{
    const int64_t rows = face_rows(&r->config, w1, h1), pixels = (int64_t)w1 * h1 * 3;
    float *host = calloc((size_t)(pixels + 2 * rows * FACE_COLUMNS), sizeof *host);
    float *flat = host ? host + pixels : NULL, *pred = host ? flat + rows * FACE_COLUMNS : NULL;
    hv_tensor heads[FACE_SCALES];
    struct hv_image seen = {0};
    int rc = host ? 0 : hv_fail(e, HV_ENOMEM, "no memory for a picture of %d x %d pixels", w1, h1);

    if (!rc && !o.plan)
        rc = hv_image_resize_cv(&seen, im, w1, h1, e);
    if (!rc) {
        for (int64_t i = 0; seen.rgb && i < pixels; i++)
            host[i] = (float)seen.rgb[i] / 255;
        for (int s = 0; s < FACE_SCALES; s++) {
            const int64_t ny = h1 / r->config.stride[s], nx = w1 / r->config.stride[s];
            heads[s] = hv_view(flat, HV_F32, 3, (int64_t[]){ny, nx, FACE_ANCHORS * FACE_COLUMNS});
            flat += hv_count(heads[s]);
        }
        face_forward(net, heads, hv_view(host, HV_F32, 3, (int64_t[]){h1, w1, 3}), NULL, NULL);
        rc = hv_dev_sync(dev, e);
    }
    if (!rc && !o.plan) {
        face_decode(pred, &r->config, heads);
        rc = find(r, im, pred, rows, w1, h1, e);
    }
    hv_image_close(&seen);
    free(host);
    return rc;
}

static int configure(struct face_config *c, struct hv_err *e)
{
    json_t *json;
    int rc = hv_part_config(&json, o.c.model, PART, e);

    if (!rc && face_config_parse(c, json, e))
        rc = hv_context(e, "%s/" PART "/config.json", o.c.model);
    json_decref(json);
    if (o.conf >= 0)
        c->conf = o.conf;
    if (o.iou >= 0)
        c->iou = o.iou;
    return rc;
}

static int compute(struct result *r, const struct hv_image *im, struct hv_err *e)
{
    struct hv_dev *dev = NULL;
    struct hv_weights *w = NULL;
    struct face *net = NULL;
    struct hv_wlist list = {0};
    struct hv_plan plan = {0};
    int w1, h1, rc;

    if (configure(&r->config, e))
        return e->code;
    face_input_size(&r->config, im->width, im->height, &w1, &h1);
    rc = hv_dev_open(&dev, o.plan ? "dry" : o.c.device, (int)o.c.threads, e);
    face_weights(&list, &r->config);
    if (!rc)
        rc = hv_part_weights(&w, dev, o.c.model, PART, &list, e);
    if (!rc)
        rc = face_open(&net, dev, w, &r->config, w1, h1, e);
    if (!rc)
        rc = forward(r, dev, net, im, w1, h1, e);
    if (!rc && o.plan && !(rc = face_plan(&plan, &r->config, w1, h1, e)))
        (*o.plan ? hv_plan_print_json : hv_plan_print)(&plan, dev, stdout);
    if (!rc)
        snprintf(r->model, sizeof r->model, "%s", hv_weights_digest(w));

    face_close(net);
    hv_weights_close(w);
    hv_wlist_close(&list);
    hv_dev_close(dev);
    return rc;
}

/* ---- the choice ---- */

static int no_face(struct result *r, struct hv_err *e)
{
    if (o.fallback && !o.list) {
        hv_note(&cli, "no face found: the whole picture may speak");
        r->choice = -1;
        r->source = "none";
        return 0;
    }
    return hv_fail(e, HV_EFACE, "no face found (best score %.2f, least %.2f): lower --conf, name it with --box x,y,w,h, or take "
                   "the whole picture with --face full", r->best, r->config.conf);
}

/* Sorts the boxes by area and picks one. */
static int choose(struct result *r, const struct request *q, struct hv_err *e)
{
    struct face_box wanted = {0};

    r->source = "detector";
    if (!r->n)
        return no_face(r, e);
    if (q->which == REFERENCE)
        wanted = r->boxes[face_reference_choice(r->boxes, r->n)];
    face_sort_by_area(r->boxes, r->n);
    if (q->which == NUMBER && q->number > r->n)
        return hv_fail(e, HV_EFACE, "face %d of %d: --list shows them", q->number, r->n);
    r->choice = q->which == NUMBER ? q->number - 1 : 0;
    for (int i = 0; q->which == REFERENCE && i < r->n; i++)
        if (!memcmp(&r->boxes[i], &wanted, sizeof wanted))
            r->choice = i;
    const struct face_box *b = &r->boxes[r->choice];
    if (r->n > 1 && q->which == LARGEST && !o.list)
        hv_note(&cli, "%d faces: the largest speaks, %.0f x %.0f at %.0f,%.0f; --list shows them, --face N picks another", r->n,
                b->w, b->h, b->x, b->y);
    return 0;
}

/* The boxes and the choice among them, by whatever way the options name. */
static int locate(struct result *r, const struct hv_image *im, const struct request *q, struct hv_err *e)
{
    r->choice = -1;
    r->source = "full";
    if (o.boxes) {
        r->moving = 1;
        r->source = "boxes";
        return boxes_read(&r->boxes, &r->n, o.boxes, e);
    }
    if (o.box) {
        r->boxes = calloc(1, sizeof *r->boxes);
        if (!r->boxes)
            return hv_fail(e, HV_ENOMEM, "no memory for a box");
        r->boxes[0] = (struct face_box){q->box[0], q->box[1], q->box[2], q->box[3], 1, {0}};
        r->n = 1;
        r->choice = 0;
        r->source = "box";
        return 0;
    }
    if (q->which == FULL && !o.list)
        return 0;
    return compute(r, im, e) ? e->code : choose(r, q, e);
}

/* ---- the result ---- */

static int write_list(const struct result *r)
{
    printf("face\tx\ty\twidth\theight\tscore\n");
    for (int i = 0; i < r->n; i++)
        printf("%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.3f\n", i + 1, r->boxes[i].x, r->boxes[i].y, r->boxes[i].w, r->boxes[i].h,
               r->boxes[i].score);
    return 0;
}

static int write_mask(const struct result *r, const struct hv_image *im, struct hv_err *e)
{
    const struct face_box whole = {0, 0, im->width, im->height, 1, {0}};
    const struct face_box *b = r->choice < 0 ? &whole : &r->boxes[r->choice];
    const int listed = r->moving ? 0 : r->n;
    struct hv_out out = {0};
    float *mask, *boxes;
    int rc = 0;

    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-face", .width = im->width, .height = im->height,
                                               .model = r->model[0] ? r->model : NULL});
    hv_out_meta(&out, "hv.face", "%s", r->source);
    boxes = hv_out_new(&out, "face.boxes", HV_F32, 2, (int64_t[]){listed, 5}, e);
    mask = hv_out_new(&out, "face.mask", HV_F32, 3, (int64_t[]){r->moving ? boxes_latents(r->n) : 1, im->height / 8, im->width / 8}, e);
    if (!boxes || !mask)
        rc = e->code;
    for (int i = 0; !rc && i < listed; i++) {
        const struct face_box *f = &r->boxes[i];
        const double v[5] = {f->x, f->y, f->x + f->w, f->y + f->h, f->score};
        for (int k = 0; k < 5; k++)
            boxes[5 * i + k] = (float)v[k];
    }
    if (!rc && r->moving)
        rc = boxes_masks(mask, r->boxes, r->n, im->width, im->height, o.area, e);
    else if (!rc && !face_mask(mask, face_widen(b->x, b->y, b->w, b->h, im->width, im->height, o.area), im->width, im->height))
        rc = hv_fail(e, HV_EFACE, "the face, %.0f x %.0f at %.0f,%.0f with --area %g, covers nothing of a picture of %d x %d",
                     b->w, b->h, b->x, b->y, o.area, im->width, im->height);
    if (!rc)
        rc = hv_out_write(&out, o.c.output, e);
    hv_out_close(&out);
    return rc;
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct request q = {0};
    struct hv_image im = {0};
    struct result r = {0};
    int rc = parse(&q, argc, argv, &e);

    if (rc < 0)
        return hv_exit("hv-face", &e);
    if (!rc && o.plan && !o.c.n_operands)
        rc = hv_image_open(&im, o.image_size / 64 * 64, o.image_size / 64 * 64, &e);
    else if (!rc)
        rc = hv_image_portrait(&im, o.c.n_operands ? o.c.operand[0] : "-", (int)o.image_size, !o.no_exif, &e);
    if (!rc)
        rc = o.plan ? compute(&r, &im, &e) : locate(&r, &im, &q, &e);
    if (!rc && !o.plan)
        o.list ? write_list(&r) : write_mask(&r, &im, &e);
    free(r.boxes);
    hv_image_close(&im);
    return hv_exit("hv-face", &e);
}
