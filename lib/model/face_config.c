#include "model/face.h"

#include <stdio.h>
#include <string.h>

static const char *const op_names[FACE_OPS] = {"conv", "focus", "stem", "c3", "shuffle", "spp", "upsample", "concat"};

/* ---- parsing ---- */

static int sources(const json_t *j, int at, int from[], int max, int *n, struct hv_err *e)
{
    int64_t v[16];

    *n = 0;
    if (hv_json_ints(j, "from", -1, at - 1, v, max, n, e))
        return e->code;
    if (*n < 1)
        return hv_fail(e, HV_EINPUT, "no \"from\"");
    for (int i = 0; i < *n; i++)
        from[i] = v[i] < 0 ? at - 1 : (int)v[i];
    return 0;
}

static int64_t channels_of(const struct face_config *c, int from)
{
    return from < 0 ? 3 : c->layer[from].out;
}

/* Widths of the layer; its sources are known. */
static int widths(const struct face_config *c, struct face_layer *l, struct hv_err *e)
{
    l->in = 0;
    for (int i = 0; i < l->n_from; i++)
        l->in += channels_of(c, l->from[i]);
    if (l->op != FACE_CONCAT && l->n_from != 1)
        return hv_fail(e, HV_EINPUT, "%s reads %d layers, expected one", op_names[l->op], l->n_from);
    if (l->op == FACE_CONCAT || l->op == FACE_UPSAMPLE)
        l->out = l->in;
    if (l->out < 1)
        return hv_fail(e, HV_EINPUT, "%s without \"out\"", op_names[l->op]);
    if ((l->op == FACE_STEM || l->op == FACE_C3 || l->op == FACE_SHUFFLE) && l->out % 2)
        return hv_fail(e, HV_EINPUT, "%s of %lld channels, expected an even number", op_names[l->op], (long long)l->out);
    if (l->op == FACE_SPP && (l->in % 2 || !l->n_pool))
        return hv_fail(e, HV_EINPUT, "spp of %lld channels with %d pools", (long long)l->in, l->n_pool);
    if (l->op == FACE_SHUFFLE && l->s == 1 && l->in != l->out)
        return hv_fail(e, HV_EINPUT, "shuffle of stride 1 from %lld to %lld channels", (long long)l->in, (long long)l->out);
    if (l->op == FACE_SHUFFLE && l->s == 2 && l->n != 1)
        return hv_fail(e, HV_EUNSUP, "shuffle of stride 2 repeated %lld times", (long long)l->n);
    return 0;
}

static int layer_parse(struct face_config *c, const json_t *j, int at, struct hv_err *e)
{
    struct face_layer *l = &c->layer[at];
    const char *op = "";
    int known = 0;

    *l = (struct face_layer){.k = 1, .s = 1, .n = 1, .shortcut = 1};
    if (hv_json_str(j, "op", &op, e))
        return e->code;
    for (int i = 0; i < FACE_OPS; i++)
        if (!strcmp(op, op_names[i])) {
            l->op = (enum face_op)i;
            known = 1;
        }
    if (!known)
        return hv_fail(e, HV_EUNSUP, "operation '%.40s' is not known", op);
    if (l->op == FACE_FOCUS)
        l->k = 3;
    if (sources(j, at, l->from, FACE_FROM, &l->n_from, e) || hv_json_int(j, "out", 1, 8192, &l->out, e)
        || hv_json_int(j, "n", 1, 64, &l->n, e) || hv_json_bool(j, "shortcut", &l->shortcut, e)
        || hv_json_int(j, l->op == FACE_SHUFFLE ? "stride" : "s", 1, 2, &l->s, e))
        return e->code;
    if (l->op == FACE_SPP) {
        if (hv_json_ints(j, "k", 1, 31, l->pool, FACE_FROM - 1, &l->n_pool, e))
            return e->code;
        for (int i = 0; i < l->n_pool; i++)
            if (l->pool[i] % 2 == 0)
                return hv_fail(e, HV_EINPUT, "spp with a pool of %lld, expected odd ones", (long long)l->pool[i]);
    } else if (hv_json_int(j, "k", 1, 15, &l->k, e))
        return e->code;
    if (l->k % 2 == 0)
        return hv_fail(e, HV_EINPUT, "a kernel of %lld, expected an odd one", (long long)l->k);
    return widths(c, l, e);
}

static int layers_parse(struct face_config *c, const json_t *config, struct hv_err *e)
{
    const json_t *list = json_object_get(config, "layers");
    const int total = (int)json_array_size(list);
    const char *op = "";
    int n = 0;

    if (!json_is_array(list) || total < 2 || total > FACE_LAYERS + 1)
        return hv_fail(e, HV_EINPUT, "layers: %d, expected 2 to %d", total, FACE_LAYERS + 1);
    c->n = total - 1;
    for (int i = 0; i < c->n; i++)
        if (layer_parse(c, json_array_get(list, (size_t)i), i, e))
            return hv_context(e, "layer %d", i);
    const json_t *last = json_array_get(list, (size_t)c->n);
    if (hv_json_str(last, "op", &op, e) || sources(last, c->n, c->detect, FACE_SCALES, &n, e))
        return hv_context(e, "layer %d", c->n);
    if (strcmp(op, "detect") || n != FACE_SCALES)
        return hv_fail(e, HV_EINPUT, "layer %d: %.40s of %d layers, expected detect of %d", c->n, op, n, FACE_SCALES);
    return 0;
}

/* Reads both forms of "anchors": a list a scale. */
static int anchors_parse(struct face_config *c, const json_t *config, struct hv_err *e)
{
    const json_t *list = json_object_get(config, "anchors");

    if (!list)
        return 0;
    for (size_t s = 0; s < FACE_SCALES; s++)
        for (size_t k = 0; k < 2 * FACE_ANCHORS; k++) {
            const json_t *v = json_array_get(json_array_get(list, s), k);
            const double a = json_number_value(v);

            if (json_array_size(list) != FACE_SCALES || json_array_size(json_array_get(list, s)) != 2 * FACE_ANCHORS
                || !json_is_number(v) || !(a > 0 && a < 1e5))
                return hv_fail(e, HV_EINPUT, "anchors: expected %d lists of %d sizes in pixels", FACE_SCALES, 2 * FACE_ANCHORS);
            c->anchor[s][k] = a;
        }
    return 0;
}

int face_config_parse(struct face_config *c, const json_t *config, struct hv_err *e)
{
    static const struct face_config defaults = {
        .input_size = 416, .conf = 0.5, .iou = 0.45, .stride = {8, 16, 32},
        .anchor = {{4, 5, 8, 10, 13, 16}, {23, 29, 43, 55, 73, 105}, {146, 217, 231, 300, 335, 433}}};
    const char *type = "yolov5-face", *activation = "silu";
    int64_t classes = 1, landmarks = 5;
    int n = FACE_SCALES;

    *c = defaults;
    if (hv_json_str(config, "model_type", &type, e) || hv_json_str(config, "activation", &activation, e)
        || hv_json_int(config, "input_size", 32, 4096, &c->input_size, e)
        || hv_json_real(config, "conf_threshold", 0, 1, &c->conf, e)
        || hv_json_real(config, "iou_threshold", 0, 1, &c->iou, e)
        || hv_json_int(config, "num_classes", 1, 1000, &classes, e)
        || hv_json_int(config, "num_landmarks", 0, 1000, &landmarks, e)
        || hv_json_ints(config, "strides", 1, 256, c->stride, FACE_SCALES, &n, e) || anchors_parse(c, config, e))
        return e->code;
    if (strcmp(type, "yolov5-face"))
        return hv_fail(e, HV_EUNSUP, "model_type '%.40s', expected yolov5-face", type);
    if (strcmp(activation, "silu"))
        return hv_fail(e, HV_EUNSUP, "activation '%.40s', expected silu", activation);
    if (classes != 1 || landmarks != 5)
        return hv_fail(e, HV_EUNSUP, "%lld classes and %lld landmarks, expected 1 and 5", (long long)classes,
                       (long long)landmarks);
    if (n != FACE_SCALES)
        return hv_fail(e, HV_EINPUT, "strides: %d, expected %d", n, FACE_SCALES);
    return layers_parse(c, config, e);
}

/* ---- weights ---- */

static void conv(struct hv_wlist *l, int64_t out, int64_t in, int64_t k, const char *layer, const char *name)
{
    hv_wlist_add(l, HV_F32, HV_KEEP, 4, (int64_t[]){out, in, k, k}, "%s%s.weight", layer, name);
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, &out, "%s%s.bias", layer, name);
}

static void c3_weights(struct hv_wlist *l, const struct face_layer *f, const char *name)
{
    const int64_t h = f->out / 2;
    char m[64];

    conv(l, h, f->in, 1, name, "cv1.conv");
    for (int j = 0; j < f->n; j++) {
        snprintf(m, sizeof m, "%sm.%d.", name, j);
        conv(l, h, h, 1, m, "cv1.conv");
        conv(l, h, h, 3, m, "cv2.conv");
    }
    conv(l, h, f->in, 1, name, "cv2.conv");
    conv(l, f->out, 2 * h, 1, name, "cv3.conv");
}

static void shuffle_weights(struct hv_wlist *l, const struct face_layer *f, const char *name)
{
    const int64_t h = f->out / 2;

    if (f->s == 2) {
        conv(l, f->in, 1, 3, name, "branch1.0");
        conv(l, h, f->in, 1, name, "branch1.2");
    }
    for (int j = 0; j < f->n; j++) {
        char unit[64];

        snprintf(unit, sizeof unit, f->n > 1 ? "%s%d." : "%s", name, j);
        conv(l, h, f->s == 2 ? f->in : h, 1, unit, "branch2.0");
        conv(l, h, 1, 3, unit, "branch2.3");
        conv(l, h, h, 1, unit, "branch2.5");
    }
}

void face_weights(struct hv_wlist *l, const struct face_config *c)
{
    char name[40];

    for (int i = 0; i < c->n; i++) {
        const struct face_layer *f = &c->layer[i];

        snprintf(name, sizeof name, "model.%d.", i);
        switch (f->op) {
        case FACE_CONV: conv(l, f->out, f->in, f->k, name, "conv"); break;
        case FACE_FOCUS: conv(l, f->out, 4 * f->in, f->k, name, "conv.conv"); break;
        case FACE_STEM:
            conv(l, f->out, f->in, 3, name, "stem_1.conv");
            conv(l, f->out / 2, f->out, 1, name, "stem_2a.conv");
            conv(l, f->out, f->out / 2, 3, name, "stem_2b.conv");
            conv(l, f->out, 2 * f->out, 1, name, "stem_3.conv");
            break;
        case FACE_C3: c3_weights(l, f, name); break;
        case FACE_SHUFFLE: shuffle_weights(l, f, name); break;
        case FACE_SPP:
            conv(l, f->in / 2, f->in, 1, name, "cv1.conv");
            conv(l, f->out, f->in / 2 * (1 + f->n_pool), 1, name, "cv2.conv");
            break;
        case FACE_UPSAMPLE:
        case FACE_CONCAT:
        case FACE_OPS: break;
        }
    }
    for (int s = 0; s < FACE_SCALES; s++) {
        snprintf(name, sizeof name, "model.%d.m.%d", c->n, s);
        conv(l, FACE_ANCHORS * FACE_COLUMNS, channels_of(c, c->detect[s]), 1, name, "");
    }
}
