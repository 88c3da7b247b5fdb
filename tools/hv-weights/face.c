/* Face detectors: the graph that names and shapes tell, and batch norms folded into their convolutions. */
#define _GNU_SOURCE
#include "model/face.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-weights.h"

/* ---- names ---- */

/* Where the last "model.N." of a name begins, NULL: there is none. */
static const char *layer_of(const char *name)
{
    const char *found = NULL;

    for (const char *s = name; (s = strstr(s, "model.")); s++) {
        const char *d = s + strlen("model.");
        if (s != name && s[-1] != '.')
            continue;
        while (isdigit((unsigned char)*d))
            d++;
        if (d > s + strlen("model.") && *d == '.')
            found = s;
    }
    return found;
}

int face_rename(struct hv_ckpt *c, struct hv_err *e)
{
    char name[HV_CKPT_NAME];

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const char *at = layer_of(hv_ckpt_at(c, i)->name);
        if (!at || at == hv_ckpt_at(c, i)->name)
            continue;
        snprintf(name, sizeof name, "%s", at);
        if (hv_ckpt_rename(c, i, name, e))
            return e->code;
    }
    return 0;
}

/* ---- the graph ---- */

struct row {
    const char *op;
    int         from[3];                /* -1: the layer before; 0 ends the list after the first */
    int         shortcut, k;
};

/* Layers of the three kinds of networks; widths and repeats are in the tensors. */
static const struct row stem[] = {
    {"stem", {-1}, 0, 0}, {"c3", {-1}, 1, 0}, {"conv", {-1}, 0, 3}, {"c3", {-1}, 1, 0}, {"conv", {-1}, 0, 3}, {"c3", {-1}, 1, 0},
    {"conv", {-1}, 0, 3}, {"spp", {-1}, 0, 0}, {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 1}, {"upsample", {-1}, 0, 0},
    {"concat", {-1, 5}, 0, 0}, {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 1}, {"upsample", {-1}, 0, 0}, {"concat", {-1, 3}, 0, 0},
    {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 3}, {"concat", {-1, 13}, 0, 0}, {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 3},
    {"concat", {-1, 9}, 0, 0}, {"c3", {-1}, 0, 0}, {"detect", {16, 19, 22}, 0, 0}, {0}
};

static const struct row shuffle[] = {
    {"stem", {-1}, 0, 0}, {"shuffle", {-1}, 0, 2}, {"shuffle", {-1}, 0, 1}, {"shuffle", {-1}, 0, 2}, {"shuffle", {-1}, 0, 1},
    {"shuffle", {-1}, 0, 2}, {"shuffle", {-1}, 0, 1}, {"conv", {-1}, 0, 1}, {"upsample", {-1}, 0, 0}, {"concat", {-1, 4}, 0, 0},
    {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 1}, {"upsample", {-1}, 0, 0}, {"concat", {-1, 2}, 0, 0}, {"c3", {-1}, 0, 0},
    {"conv", {-1}, 0, 3}, {"concat", {-1, 11}, 0, 0}, {"c3", {-1}, 0, 0}, {"conv", {-1}, 0, 3}, {"concat", {-1, 7}, 0, 0},
    {"c3", {-1}, 0, 0}, {"detect", {14, 17, 20}, 0, 0}, {0}
};

static const struct hv_ctensor *tensor(const struct hv_ckpt *c, int layer, const char *fmt, int i)
{
    char tail[64], name[96];

    snprintf(tail, sizeof tail, fmt, i);
    snprintf(name, sizeof name, "model.%d.%s", layer, tail);
    const struct hv_ctensor *t = hv_ckpt_find(c, name);
    return t && t->ndim == 4 ? t : NULL;
}

/* How many of "model.L.<fmt %d>" there are. */
static int repeats(const struct hv_ckpt *c, int layer, const char *fmt)
{
    int n = 0;

    while (n < 64 && tensor(c, layer, fmt, n))
        n++;
    return n;
}

/* One layer as JSON, with what its tensors say; NULL: they are not those of such a layer. */
static json_t *layer_json(const struct hv_ckpt *c, int layer, const struct row *r, int shift)
{
    json_t *j = json_object(), *from = json_array();
    const struct hv_ctensor *t = NULL;
    int bad = 0, n = 1;

    for (int i = 0; i < 3 && (i == 0 || r->from[i] > 0); i++)
        bad |= json_array_append_new(from, json_integer(r->from[i] < 0 ? -1 : r->from[i] + shift));
    bad |= json_object_set_new(j, "op", json_string(r->op)) || json_object_set_new(j, "from", from);
    if (!strcmp(r->op, "upsample") || !strcmp(r->op, "concat") || !strcmp(r->op, "detect"))
        return bad ? NULL : j;
    if (!strcmp(r->op, "stem"))
        t = tensor(c, layer, "stem_3.conv.weight", 0);
    else if (!strcmp(r->op, "focus"))
        t = tensor(c, layer, "conv.conv.weight", 0);
    else if (!strcmp(r->op, "c3"))
        t = tensor(c, layer, "cv3.conv.weight", 0);
    else if (!strcmp(r->op, "spp"))
        t = tensor(c, layer, "cv2.conv.weight", 0);
    else if (!strcmp(r->op, "conv"))
        t = tensor(c, layer, "conv.weight", 0);
    else if (!(t = tensor(c, layer, "branch2.5.weight", 0)))
        t = tensor(c, layer, "0.branch2.5.weight", 0);
    if (!t) {
        json_decref(j);
        return NULL;
    }
    bad |= json_object_set_new(j, "out", json_integer(t->shape[0] * (strcmp(r->op, "shuffle") ? 1 : 2)));
    if (!strcmp(r->op, "c3")) {
        n = repeats(c, layer, "m.%d.cv1.conv.weight");
        bad |= json_object_set_new(j, "n", json_integer(n)) || json_object_set_new(j, "shortcut", json_boolean(r->shortcut));
    } else if (!strcmp(r->op, "shuffle")) {
        n = tensor(c, layer, "branch2.5.weight", 0) ? 1 : repeats(c, layer, "%d.branch2.5.weight");
        bad |= json_object_set_new(j, "n", json_integer(n)) || json_object_set_new(j, "stride", json_integer(r->k));
    } else if (!strcmp(r->op, "spp")) {
        bad |= json_object_set_new(j, "k", json_pack("[i,i,i]", 3, 5, 7));
    } else if (!strcmp(r->op, "conv")) {
        bad |= json_object_set_new(j, "k", json_integer(t->shape[2]));
        bad |= json_object_set_new(j, "s", json_integer(r->k == 3 ? 2 : 1));
    } else if (!strcmp(r->op, "focus")) {
        bad |= json_object_set_new(j, "k", json_integer(t->shape[2]));
    }
    if (bad) {
        json_decref(j);
        return NULL;
    }
    return j;
}

#define ANCHORS (2 * FACE_SCALES * FACE_ANCHORS)

/* Anchors of the file ([3,1,3,1,1,2], in pixels). Returns 1 when it has them. */
static int read_anchors(const struct hv_ckpt *c, float v[ANCHORS], struct hv_err *e)
{
    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        const size_t n = strlen(t->name);
        if (n >= 11 && !strcmp(t->name + n - 11, "anchor_grid") && hv_ctensor_count(t) == ANCHORS)
            return !hv_ckpt_read_f32(c, t, 0, ANCHORS, v, e);
    }
    return 0;
}

int face_check_anchors(const json_t *config, const struct hv_ckpt *c, struct hv_err *e)
{
    struct face_config f;
    float v[ANCHORS];

    if (!read_anchors(c, v, e) || face_config_parse(&f, config, e))
        return e->code;
    for (int i = 0; i < ANCHORS; i++) {
        const double want = f.anchor[i / (2 * FACE_ANCHORS)][i % (2 * FACE_ANCHORS)];
        if (!(fabs((double)v[i] - want) <= 1e-3 * want))
            return hv_fail(e, HV_EINPUT, "anchor_grid: %g at element %d, the config says %g", (double)v[i], i, want);
    }
    return 0;
}

/* Those of the file where it has them, else those of every public model. */
static json_t *anchors_json(const struct hv_ckpt *c, struct hv_err *e)
{
    float v[ANCHORS] = {4, 5, 8, 10, 13, 16, 23, 29, 43, 55, 73, 105, 146, 217, 231, 300, 335, 433};
    json_t *all = json_array();

    (void)read_anchors(c, v, e);
    for (int s = 0; s < 3; s++) {
        json_t *one = json_array();
        for (int k = 0; k < 6; k++) {
            const double a = (double)v[6 * s + k];
            json_array_append_new(one, a == rint(a) ? json_integer((json_int_t)a) : json_real(a));
        }
        json_array_append_new(all, one);
    }
    return all;
}

int face_graph(json_t **config, const struct hv_ckpt *c, struct hv_err *e)
{
    const struct hv_ctensor *first = tensor(c, 0, "conv.conv.weight", 0);
    const int focus = first && first->shape[1] == 12, branches = tensor(c, 1, "branch2.5.weight", 0) != NULL;
    const struct row *r = branches ? shuffle : stem;
    json_t *layers = json_array();
    int at = 0;

    *config = NULL;
    if (focus) {
        static const struct row head[] = {{"focus", {-1}, 0, 0}, {"conv", {-1}, 0, 1}};
        for (; at < 2 && layers; at++)
            if (json_array_append_new(layers, layer_json(c, at, &head[at], 0)))
                break;
        r++;                                    /* in the place of the stem; what follows is one further on */
    }
    for (; r->op; r++, at++) {
        if (json_array_append_new(layers, layer_json(c, at, r, focus))) {
            json_decref(layers);
            return hv_fail(e, HV_EUNSUP, "not a detector of the YOLOv5-face family: model.%d is no %s; "
                           "give its graph with --config", at, r->op);
        }
    }
    *config = json_pack("{s:s, s:i, s:f, s:f, s:i, s:i, s:[i,i,i], s:o, s:s, s:o}", "model_type", "yolov5-face",
                        "input_size", 416, "conf_threshold", 0.5, "iou_threshold", 0.45, "num_classes", 1,
                        "num_landmarks", 5, "strides", 8, 16, 32, "anchors", anchors_json(c, e), "activation", "silu",
                        "layers", layers);
    if (e->code || !*config) {
        json_decref(*config);
        *config = NULL;
        return e->code ? e->code : hv_fail(e, HV_ENOMEM, "out of memory");
    }
    return 0;
}

/* ---- folding ---- */

/* The batch norm of "X.conv" is "X.bn"; of the N-th of a sequence, the one behind it. */
static int norm_name(char out[HV_CKPT_NAME], const char *conv)
{
    const char *dot = strrchr(conv, '.');
    char *end = NULL;

    if (!dot)
        return -1;
    if (!strcmp(dot, ".conv"))
        return snprintf(out, HV_CKPT_NAME, "%.*s.bn", (int)(dot - conv), conv) < HV_CKPT_NAME ? 0 : -1;
    const long k = strtol(dot + 1, &end, 10);
    if (end == dot + 1 || *end || k < 0 || k > 100)
        return -1;
    return snprintf(out, HV_CKPT_NAME, "%.*s.%ld", (int)(dot - conv), conv, k + 1) < HV_CKPT_NAME ? 0 : -1;
}

static int vector(float *v, const struct hv_ckpt *c, const char *norm, const char *part, int64_t n, struct hv_err *e)
{
    char name[HV_CKPT_NAME + 32];

    snprintf(name, sizeof name, "%s.%s", norm, part);
    const struct hv_ctensor *t = hv_ckpt_find(c, name);
    if (!t || hv_ctensor_count(t) != n)
        return hv_fail(e, HV_EINPUT, t ? "%s: %lld values, expected %lld" : "%s is missing", name,
                       (long long)(t ? hv_ctensor_count(t) : 0), (long long)n);
    return hv_ckpt_read_f32(c, t, 0, (size_t)n, v, e);
}

int face_fold_pieces(struct pack *k, const struct hv_ckpt *c, const struct hv_wspec *weight, const struct hv_wspec *bias,
                     int64_t rank, struct hv_err *e)
{
    const int64_t n = weight->shape[0];
    const struct hv_ctensor *w = hv_ckpt_find(c, weight->name);
    char conv[HV_CKPT_NAME], norm[HV_CKPT_NAME], name[HV_CKPT_NAME + 32];

    snprintf(conv, sizeof conv, "%.*s", (int)(strlen(weight->name) - strlen(".weight")), weight->name);
    if (!w || norm_name(norm, conv))
        return 0;
    snprintf(name, sizeof name, "%s.running_mean", norm);
    if (!hv_ckpt_find(c, name))
        return 0;
    float *v = malloc(((size_t)n * 5 + 1) * sizeof *v), *factor = malloc(((size_t)n + 1) * sizeof *v),
          *out = malloc(((size_t)n + 1) * sizeof *v);
    int rc = v && factor && out ? 0 : hv_fail(e, HV_ENOMEM, "%s: out of memory", weight->name);
    const struct hv_ctensor *own = hv_ckpt_find(c, bias->name);
    if (!rc)
        rc = vector(v, c, norm, "weight", n, e) || vector(v + n, c, norm, "bias", n, e) ||
             vector(v + 2 * n, c, norm, "running_mean", n, e) || vector(v + 3 * n, c, norm, "running_var", n, e);
    if (!rc && own)
        rc = vector(v + 4 * n, c, conv, "bias", n, e);
    for (int64_t i = 0; i < n && !rc; i++)
        if (!(v[3 * n + i] >= 0))
            rc = hv_fail(e, HV_EINPUT, "%s.running_var: %g at element %lld", norm, (double)v[3 * n + i], (long long)i);
    if (!rc) {
        face_fold(factor, out, v, v + n, v + 2 * n, v + 3 * n, own ? v + 4 * n : NULL, FACE_BN_EPS, n);
        struct piece *p = pack_add(k, weight->name, HV_F32, weight->ndim, weight->shape, FOLDED, rank);
        if (p) {
            p->src = w;
            p->made = factor;
            factor = NULL;
        }
        p = p ? pack_add(k, bias->name, HV_F32, 1, bias->shape, MADE, rank + 1) : NULL;
        if (p) {
            p->made = out;
            out = NULL;
        }
        if (!p)
            rc = hv_fail(e, HV_ENOMEM, "%s: out of memory", weight->name);
    }
    free(v);
    free(factor);
    free(out);
    return rc ? -1 : 1;
}
