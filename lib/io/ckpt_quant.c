/* How matrices in 8 bits are described: four ways, one result. See ckpt.h */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/ckpt_impl.h"
#include "io/quanto.h"

struct pass {
    struct hv_ckpt *c;
    char           *gone;               /* tensors that are not to stay */
    struct hv_err  *e;
};

static int ends(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n > k && !strcmp(s + n - k, tail);
}

static int is_8bit(hv_dtype t)
{
    return t == HV_I8 || t == HV_F8_E4M3 || t == HV_F8_E5M2;
}

/* The tensor named by the first n characters of a name and a tail. */
static struct hv_ctensor *find_part(const struct hv_ckpt *c, const char *name, size_t n, const char *tail)
{
    char text[HV_CKPT_NAME + 32];

    return snprintf(text, sizeof text, "%.*s%s", (int)n, name, tail) < (int)sizeof text ? hv_ckpt_find(c, text) : NULL;
}

static void drop(struct pass *p, const struct hv_ctensor *t)
{
    if (t)
        p->gone[t - p->c->t] = 1;
}

static void compact(struct pass *p)
{
    struct hv_ckpt *c = p->c;
    int n = 0;

    for (int i = 0; i < c->n; i++) {
        if (p->gone[i]) {
            free(c->t[i].name);
            free(c->t[i].scale);
        } else {
            c->t[n++] = c->t[i];
        }
    }
    c->n = n;
    memset(p->gone, 0, (size_t)n);
    ckpt_changed(c);
}

/* One scale for all rows, or one a row. s NULL: 1. */
static int set_scale(struct pass *p, struct hv_ctensor *t, const struct hv_ctensor *s, int as_bf16)
{
    const int64_t rows = t->ndim ? t->shape[0] : 1, n = s ? hv_ctensor_count(s) : 1;
    float one = 1;

    /* A row takes a byte of its file at least, unless one row was said to be many. */
    if (t->ndim < 2 || rows < 0 || (uint64_t)rows > hv_ckpt_bytes(p->c))
        return hv_fail(p->e, HV_EINPUT, "%s: %s of %d dimensions, expected a matrix", t->name, hv_dtype_name(t->dtype), t->ndim);
    if (s && (n != 1 && (n != rows || s->ndim > 2 || s->shape[0] != rows)))
        return hv_fail(p->e, HV_EINPUT, "%s: %lld scales, expected 1 or %lld", s->name, (long long)n, (long long)rows);
    if (s && (!hv_dtype_is_float(s->dtype) || s->dtype == HV_F8_E4M3 || s->dtype == HV_F8_E5M2))
        return hv_fail(p->e, HV_EINPUT, "%s: scales are %s", s->name, hv_dtype_name(s->dtype));
    if (t->scale)
        return hv_fail(p->e, HV_EINPUT, "%s: has scales of two kinds", t->name);
    t->scale = malloc(((size_t)rows + 1) * sizeof *t->scale);
    if (!t->scale)
        return hv_fail(p->e, HV_ENOMEM, "%s: out of memory", t->name);
    if (s && n == rows && hv_ckpt_read_f32(p->c, s, 0, (size_t)n, t->scale, p->e))
        return p->e->code;
    if (s && n != rows && hv_ckpt_read_f32(p->c, s, 0, 1, &one, p->e))
        return p->e->code;
    for (int64_t r = 0; r < rows; r++) {
        float v = n == rows && s ? t->scale[r] : one;
        if (!isfinite(v))
            return hv_fail(p->e, HV_ENUM, "%s: NaN or Inf at element %lld", s ? s->name : t->name, (long long)r);
        t->scale[r] = as_bf16 ? hv_bf16_to_f32(hv_f32_to_bf16(v)) : v;
    }
    return 0;
}

/* ---- our own: X, X.scale ---- */

static int own(struct pass *p)
{
    struct hv_ckpt *c = p->c;
    const char *deq = hv_ckpt_meta(c, "hv.deq"), *version = hv_ckpt_meta(c, "hv.version");

    if (version && strcmp(version, "1"))
        return hv_fail(p->e, HV_EUNSUP, "hv.version is '%.40s', this program reads version 1", version);
    if (deq && strcmp(deq, "f32") && strcmp(deq, "bf16"))
        return hv_fail(p->e, HV_EUNSUP, "hv.deq is '%.40s', expected f32 or bf16", deq);
    for (int i = 0; i < c->n; i++) {
        struct hv_ctensor *t = &c->t[i], *s;
        if (!is_8bit(t->dtype) || t->ndim != 2 || !(s = find_part(c, t->name, strlen(t->name), ".scale")))
            continue;
        if (s->dtype != HV_F32 || s->ndim != 1 || s->shape[0] != t->shape[0])
            return hv_fail(p->e, HV_EINPUT, "%s: expected F32 [%lld]", s->name, (long long)t->shape[0]);
        if (set_scale(p, t, s, 0))
            return p->e->code;
        drop(p, s);
    }
    c->deq_bf16 = deq && !strcmp(deq, "bf16");
    return 0;
}

/* ---- the reference's fp8: M.weight, and a scale for M in the map ---- */

static int in_blocks(const char *name)
{
    return strstr(name, "double_blocks.") || strstr(name, "single_blocks.");
}

static int fp8_map(struct pass *p)
{
    struct hv_ckpt *c = p->c;
    int found = 0;

    for (int i = 0; i < c->n; i++) {
        struct hv_ctensor *s = &c->t[i];
        if (strncmp(s->name, "map:", 4))
            continue;
        found = 1;
        drop(p, s);
        struct hv_ctensor *t = find_part(c, s->name + 4, strlen(s->name + 4), ".weight");
        if (!t || t->ndim != 2 || t->dtype != HV_F8_E4M3)
            return hv_fail(p->e, HV_EINPUT, "%s.weight: has a scale and is %s", s->name + 4, t ? "not F8_E4M3" : "missing");
        if (hv_ctensor_count(s) != 1 && (s->ndim != 2 || s->shape[1] != 1))
            return hv_fail(p->e, HV_EINPUT, "%s: its scale has %lld values, expected 1 or [%lld,1]", s->name + 4,
                           (long long)hv_ctensor_count(s), (long long)t->shape[0]);
        if (set_scale(p, t, s, 1))
            return p->e->code;
    }
    if (!found)
        return 0;
    c->how = "fp8 + map";
    c->deq_bf16 = 1;
    for (int i = 0; i < c->n; i++) {
        const struct hv_ctensor *t = &c->t[i];
        if (!p->gone[i] && t->ndim == 2 && ends(t->name, ".weight") && in_blocks(t->name) && !t->scale)
            return hv_fail(p->e, HV_EINPUT, "%s: %s without a scale in the map", t->name, hv_dtype_name(t->dtype));
    }
    return 0;
}

/* ---- quanto: M.weight._data, M.weight._scale ---- */

/* The map of the metadata, or of NAME_map.json beside the file; *map NULL: there is none. */
static int read_quanto_map(struct pass *p, json_t **map)
{
    const char *text = hv_ckpt_meta(p->c, "quantization_map_base64"), *path = hv_ckpt_path(p->c);
    char beside[4096];

    *map = NULL;
    if (text)
        return hv_quanto_map(map, text, p->e);
    if (!ends(path, ".safetensors") || snprintf(beside, sizeof beside, "%.*s_map.json", (int)(strlen(path) - 12), path) >=
        (int)sizeof beside || access(beside, F_OK))
        return 0;
    if (hv_json_read(map, beside, p->e))
        return p->e->code;
    const int rc = hv_quanto_check(*map, p->e);
    if (rc) {
        json_decref(*map);
        *map = NULL;
        return hv_context(p->e, "%s", beside);
    }
    return 0;
}

static int quanto_matrix(struct pass *p, struct hv_ctensor *t)
{
    const size_t n = strlen(t->name) - strlen("._data");
    struct hv_ctensor *s = find_part(p->c, t->name, n, "._scale");
    const size_t module = n > 7 && !strncmp(t->name + n - 7, ".weight", 7) ? n - 7 : n;
    char name[HV_CKPT_NAME];

    if (t->dtype != HV_I8 && t->dtype != HV_F8_E4M3)
        return hv_fail(p->e, HV_EUNSUP, "%s: %s, expected I8 or F8_E4M3", t->name, hv_dtype_name(t->dtype));
    if (t->ndim != 2 || !s)
        return hv_fail(p->e, HV_EINPUT, "%s: %s", t->name, s ? "not of 2 dimensions" : "without its _scale");
    if (set_scale(p, t, s, 0))
        return p->e->code;
    drop(p, s);
    drop(p, find_part(p->c, t->name, module, ".input_scale"));
    drop(p, find_part(p->c, t->name, module, ".output_scale"));
    snprintf(name, sizeof name, "%.*s", (int)n, t->name);
    if (hv_ckpt_find(p->c, name))
        return hv_fail(p->e, HV_EINPUT, "%s: is there as %s, too", t->name, name);
    return 0;
}

/* Names that stand for another tensor of the file. */
static int add_tied(struct pass *p, const char *text)
{
    json_t *root = NULL, *v;
    const char *name;
    struct hv_ckpt *c = p->c;
    int rc = hv_quanto_tied(&root, text, p->e);

    json_object_foreach(root, name, v) {
        for (size_t i = 0; i < json_array_size(v) && !rc; i++) {
            const char *alias = json_string_value(json_array_get(v, i));
            const struct hv_ctensor *t = hv_ckpt_find(c, name);
            if (!t || hv_ckpt_find(c, alias))
                continue;
            const struct hv_ctensor copy = *t;
            float *scale = NULL;
            if (copy.scale && !(scale = malloc(((size_t)copy.shape[0] + 1) * sizeof *scale)))
                rc = hv_fail(p->e, HV_ENOMEM, "%s: out of memory", alias);
            if (scale)
                memcpy(scale, copy.scale, (size_t)copy.shape[0] * sizeof *scale);
            if (!rc)
                rc = hv_ckpt_add(c, &copy, alias, strlen(alias), p->e);
            if (!rc) {
                c->t[c->n - 1].file = copy.file;
                c->t[c->n - 1].scale = scale;
                scale = NULL;
            }
            free(scale);
        }
    }
    json_decref(root);
    return rc;
}

static int quanto(struct pass *p)
{
    struct hv_ckpt *c = p->c;
    const char *format = hv_ckpt_meta(c, "quantization_format"), *tied = hv_ckpt_meta(c, "tied_weights_map_base64");
    json_t *map = NULL, *v;
    const char *name;
    int found = 0, rc = 0;

    if (format && strcmp(format, "quanto"))
        return hv_fail(p->e, HV_EUNSUP, "quantization_format is '%.40s', expected quanto", format);
    for (int i = 0; i < c->n; i++)
        found |= ends(c->t[i].name, "._data");
    if (!found && !format)
        return 0;
    rc = read_quanto_map(p, &map);
    for (int i = 0; i < c->n && !rc; i++)
        if (ends(c->t[i].name, "._data"))
            rc = quanto_matrix(p, &c->t[i]);
    json_object_foreach(map, name, v) {
        const char *kind = json_string_value(json_object_get(v, "weights"));
        const struct hv_ctensor *t = rc ? NULL : find_part(c, name, strlen(name), ".weight._data");
        if (!rc && (!t || (t->dtype == HV_I8) != !strcmp(kind, "qint8")))
            rc = hv_fail(p->e, HV_EINPUT, t ? "%.200s.weight._data: %s, its map says %.40s" : "%.200s.weight._data: is missing",
                         name, t ? hv_dtype_name(t->dtype) : "", kind);
    }
    json_decref(map);
    for (int i = 0; i < c->n && !rc; i++)
        if (ends(c->t[i].name, "._data"))
            c->t[i].name[strlen(c->t[i].name) - strlen("._data")] = 0;
    compact(p);
    if (!rc && tied)
        rc = add_tied(p, tied);
    c->how = "quanto";
    c->deq_bf16 = 1;
    return rc;
}

/* ---- scaled fp8: M.weight, M.scale_weight, and a marker ---- */

static int is_marker(const struct hv_ctensor *t)
{
    return !strcmp(t->name, "scaled_fp8") || ends(t->name, ".scaled_fp8");
}

static int comfy(struct pass *p)
{
    struct hv_ckpt *c = p->c;
    int found = 0;

    for (int i = 0; i < c->n; i++)
        found |= is_marker(&c->t[i]) || ends(c->t[i].name, ".scale_weight");
    if (!found)
        return 0;
    for (int i = 0; i < c->n; i++) {
        struct hv_ctensor *t = &c->t[i];
        const size_t n = strlen(t->name);
        if (is_marker(t)) {
            drop(p, t);
        } else if (ends(t->name, ".scale_weight") || ends(t->name, ".scale_input")) {
            const size_t base = n - strlen(ends(t->name, ".scale_weight") ? ".scale_weight" : ".scale_input");
            const struct hv_ctensor *owner = find_part(c, t->name, base, ".weight");
            if (!owner || !is_8bit(owner->dtype))
                return hv_fail(p->e, HV_EINPUT, "%s: a scale of nothing", t->name);
            drop(p, t);
        } else if (is_8bit(t->dtype) && t->ndim >= 2 && ends(t->name, ".weight")) {
            if (t->dtype == HV_I8)
                return hv_fail(p->e, HV_EUNSUP, "%s: I8 in a file of scaled fp8", t->name);
            if (set_scale(p, t, find_part(c, t->name, n - strlen(".weight"), ".scale_weight"), 0))
                return p->e->code;
        }
    }
    c->how = "scaled fp8";
    return 0;
}

/* ---- all of them ---- */

int hv_ckpt_resolve(struct hv_ckpt *c, struct hv_err *e)
{
    struct pass p = {c, calloc((size_t)c->n + 1, 1), e};
    int rc = p.gone ? 0 : hv_fail(e, HV_ENOMEM, "out of memory");

    for (int i = 0; i < c->n && !rc; i++)
        p.gone[i] = !strncmp(c->t[i].name, "__pad.", 6);
    if (!rc)
        rc = own(&p);
    if (!rc)
        rc = fp8_map(&p);
    if (!rc)
        rc = comfy(&p);
    if (!rc)
        compact(&p);
    if (!rc)
        rc = quanto(&p);
    if (!rc && p.gone)
        rc = ckpt_check_names(c, e);
    free(p.gone);
    /* Messages start with the path, as those of hv_ckpt_open do. */
    return rc ? hv_context(e, "%s", hv_ckpt_path(c)) : 0;
}
