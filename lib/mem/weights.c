#define _GNU_SOURCE
#include "mem/weights.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/st.h"
#include "mem/synth.h"

#define NAMED     8             /* faults that a message names */
#define NAME_MAX_ 512

/* ---- the list ---- */

static void wlist_add(struct hv_wlist *l, hv_dtype dtype, enum hv_quant quant, int ndim, const int64_t *shape, char *name)
{
    assert(ndim >= 0 && ndim <= HV_MAX_DIMS);
    if (name && l->n == l->cap) {
        const int cap = l->cap ? 2 * l->cap : 64;
        struct hv_wspec *p = realloc(l->w, (size_t)cap * sizeof *p);
        if (p) {
            l->w = p;
            l->cap = cap;
        }
    }
    if (!name || l->n == l->cap) {
        l->fault = 1;
        free(name);
        return;
    }
    struct hv_wspec *s = &l->w[l->n++];
    *s = (struct hv_wspec){.name = name, .dtype = dtype, .quant = quant, .ndim = ndim};
    for (int i = 0; i < ndim; i++)
        s->shape[i] = shape[i];
}

void hv_wlist_add(struct hv_wlist *l, hv_dtype dtype, enum hv_quant quant, int ndim, const int64_t *shape,
                  const char *fmt, ...)
{
    char *name = NULL;
    va_list ap;

    va_start(ap, fmt);
    if (vasprintf(&name, fmt, ap) < 0)
        name = NULL;
    va_end(ap);
    wlist_add(l, dtype, quant, ndim, shape, name);
}

void hv_wlist_close(struct hv_wlist *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->w[i].name);
    free(l->w);
    *l = (struct hv_wlist){0};
}

const struct hv_wspec *hv_wlist_find(const struct hv_wlist *l, const char *name)
{
    for (int i = 0; i < l->n; i++)
        if (!strcmp(l->w[i].name, name))
            return &l->w[i];
    return NULL;
}

/* ---- the source ---- */

struct slot {
    hv_tensor view;
    int       ready;                    /* view.data is there */
    int       fetched;                  /* was announced once */
    void     *owned;                    /* widened vector, or synthetic values */
    const struct hv_entry *entry, *scale;       /* in the file */
};

struct hv_weights {
    struct hv_dev  *dev;
    struct hv_wlist list;
    struct slot    *slot;
    int            *table;              /* open addressing: index into the list, -1: free */
    size_t          mask;
    struct hv_in   *in;                 /* NULL: synthetic, or shapes alone */
    struct hv_synth_opts synth;
    int             is_synth, large;    /* large: larger than half of the memory; pages are given back */
    uint64_t        bytes;
    char            digest[100];
};

static size_t hash_of(const char *s)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001B3u;
    return (size_t)(h ^ h >> 29);
}

static int lookup(const struct hv_weights *w, const char *name)
{
    for (size_t i = hash_of(name) & w->mask; w->table[i] >= 0; i = (i + 1) & w->mask)
        if (!strcmp(w->list.w[w->table[i]].name, name))
            return w->table[i];
    return -1;
}

/* An object with a copy of the list, an index over it, and no data yet. */
static int make(struct hv_weights **out, struct hv_dev *d, const struct hv_wlist *l, struct hv_err *e)
{
    struct hv_weights *w = calloc(1, sizeof *w);
    size_t cap = 16;

    *out = w;
    while (cap < 2 * (size_t)l->n)
        cap *= 2;
    if (!w || l->fault || !(w->table = malloc(cap * sizeof *w->table)) ||
        !(w->slot = calloc((size_t)l->n + 1, sizeof *w->slot)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    w->dev = d;
    w->mask = cap - 1;
    memset(w->table, 0xff, cap * sizeof *w->table);
    for (int i = 0; i < l->n; i++) {
        const struct hv_wspec *s = &l->w[i];
        assert(lookup(w, s->name) < 0);                     /* a list that names a tensor twice is a fault of its author */
        wlist_add(&w->list, s->dtype, s->quant, s->ndim, s->shape, strdup(s->name));
        if (w->list.fault)
            return hv_fail(e, HV_ENOMEM, "weights: out of memory");
        size_t at = hash_of(s->name) & w->mask;
        while (w->table[at] >= 0)
            at = (at + 1) & w->mask;
        w->table[at] = i;
        w->slot[i].view = hv_view(NULL, s->ndim >= 2 ? s->dtype : HV_F32, s->ndim, s->shape);
        w->slot[i].view.dev = (uint8_t)d->kind;
    }
    return 0;
}

void hv_weights_close(struct hv_weights *w)
{
    if (!w)
        return;
    for (int i = 0; w->slot && i < w->list.n; i++)
        free(w->slot[i].owned);
    free(w->slot);
    free(w->table);
    hv_wlist_close(&w->list);
    hv_in_close(w->in);
    free(w);
}

static void shape_text(char *buf, size_t size, int ndim, const int64_t *shape)
{
    size_t n = (size_t)snprintf(buf, size, "[");

    for (int i = 0; i < ndim && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%lld", i ? "," : "", (long long)shape[i]);
    if (n < size)
        snprintf(buf + n, size - n, "]");
}

/* What is wrong with a tensor of the file: "" when nothing is. */
static void shape_fault(char *buf, size_t size, const struct hv_wspec *s, const struct hv_entry *t)
{
    char got[160], want[160];

    *buf = 0;
    if (!t) {
        snprintf(buf, size, "%s is missing", s->name);
    } else if (t->ndim != s->ndim || memcmp(t->shape, s->shape, (size_t)s->ndim * sizeof s->shape[0])) {
        shape_text(got, sizeof got, t->ndim, t->shape);
        shape_text(want, sizeof want, s->ndim, s->shape);
        snprintf(buf, size, "%s is %s, expected %s", s->name, got, want);
    }
}

static int find_all(struct hv_weights *w, struct hv_err *e)
{
    char list[800] = "", one[400];
    size_t n = 0;
    int faults = 0;

    for (int i = 0; i < w->list.n; i++) {
        const struct hv_wspec *s = &w->list.w[i];
        w->slot[i].entry = hv_in_find(w->in, s->name);
        shape_fault(one, sizeof one, s, w->slot[i].entry);
        if (*one && faults++ < NAMED && n < sizeof list)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? "; " : "", one);
    }
    if (faults > NAMED)
        return hv_fail(e, HV_EINPUT, "%d of %d tensors are missing or misshapen: %s; ...", faults, w->list.n, list);
    return faults ? hv_fail(e, HV_EINPUT, "%s", list) : 0;
}

static int is_quantized(hv_dtype t)
{
    return t == HV_I8 || t == HV_F8_E4M3;
}

/* Takes entry and scale of one tensor; vectors are widened here, matrices stay where they are. */
static int bind_tensor(struct hv_weights *w, int i, int deq_bf16, struct hv_err *e)
{
    const struct hv_wspec *s = &w->list.w[i];
    struct slot *k = &w->slot[i];
    const hv_dtype t = k->entry->dtype;
    char name[NAME_MAX_];

    w->bytes += k->entry->end - k->entry->begin;
    if (s->ndim < 2) {
        if (t != HV_F32 && t != HV_F16 && t != HV_BF16 && t != HV_F64)
            return hv_fail(e, HV_EUNSUP, "%s: dtype %s of a vector, expected F32, F16 or BF16", s->name, hv_dtype_name(t));
        if (w->dev->kind == HV_DRY)
            return 0;
        const size_t n = (size_t)hv_count(k->view);
        if (!(k->owned = malloc((n + 1) * sizeof(float))))
            return hv_fail(e, HV_ENOMEM, "%s: out of memory", s->name);
        hv_to_f32(k->owned, t, hv_in_data(w->in, k->entry), n);
        k->view.data = k->owned;
        k->ready = 1;
        return 0;
    }
    if (t != HV_F32 && t != HV_F16 && t != HV_BF16 && !is_quantized(t))
        return hv_fail(e, HV_EUNSUP, "%s: dtype %s of a matrix, expected F32, F16, BF16, I8 or F8_E4M3", s->name,
                       hv_dtype_name(t));
    k->view.dtype = t;
    if (!is_quantized(t))
        return 0;
    snprintf(name, sizeof name, "%s.scale", s->name);
    k->scale = hv_in_find(w->in, name);
    if (s->ndim != 2 || !k->scale)
        return hv_fail(e, HV_EINPUT, s->ndim != 2 ? "%s: %s, but only matrices may be quantized" :
                       "%s: %s without %s.scale", s->name, hv_dtype_name(t), s->name);
    if (k->scale->dtype != HV_F32 || k->scale->ndim != 1 || k->scale->shape[0] != s->shape[0])
        return hv_fail(e, HV_EINPUT, "%s: expected F32 [%lld]", name, (long long)s->shape[0]);
    w->bytes += k->scale->end - k->scale->begin;
    k->view.deq_bf16 = (uint8_t)deq_bf16;
    return 0;
}

static int bind_file(struct hv_weights *w, struct hv_err *e)
{
    const char *version = hv_in_meta(w->in, "hv.version"), *deq = hv_in_meta(w->in, "hv.deq");
    const char *sha = hv_in_meta(w->in, "hv.sha256");
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);

    if (version && strcmp(version, "1"))
        return hv_fail(e, HV_EUNSUP, "hv.version is '%s', this program reads version 1", version);
    if (deq && strcmp(deq, "f32") && strcmp(deq, "bf16"))
        return hv_fail(e, HV_EUNSUP, "hv.deq is '%s', expected f32 or bf16", deq);
    if (find_all(w, e))
        return e->code;
    for (int i = 0; i < w->list.n; i++)
        if (bind_tensor(w, i, deq && !strcmp(deq, "bf16"), e))
            return e->code;
    w->large = pages > 0 && page > 0 && hv_in_bytes(w->in) > (uint64_t)pages * (uint64_t)page / 2;
    if (sha)
        snprintf(w->digest, sizeof w->digest, "%.80s", sha);
    else
        snprintf(w->digest, sizeof w->digest, "header:%016llx", (unsigned long long)hv_in_header_digest(w->in));
    return 0;
}

int hv_weights_open(struct hv_weights **out, struct hv_dev *d, const char *path, const struct hv_wlist *l,
                    struct hv_err *e)
{
    int rc = make(out, d, l, e);

    assert(path || d->kind == HV_DRY);
    if (!rc && !path) {
        for (int i = 0; i < l->n; i++)
            (*out)->bytes += (uint64_t)hv_shape_count(l->w[i].ndim, l->w[i].shape) * hv_dtype_size(l->w[i].dtype);
        snprintf((*out)->digest, sizeof (*out)->digest, "none");
        return 0;
    }
    if (!rc)
        rc = hv_in_open(&(*out)->in, path, e);
    if (!rc && bind_file(*out, e))
        rc = hv_context(e, "%s", path);
    if (rc) {
        hv_weights_close(*out);
        *out = NULL;
    }
    return rc;
}

int hv_weights_open_synth(struct hv_weights **out, struct hv_dev *d, const struct hv_wlist *l,
                          const struct hv_synth_opts *o, struct hv_err *e)
{
    int rc = make(out, d, l, e);

    if (rc) {
        hv_weights_close(*out);
        *out = NULL;
        return rc;
    }
    struct hv_weights *w = *out;
    w->is_synth = 1;
    w->synth = *o;
    for (int i = 0; i < l->n; i++) {
        struct slot *k = &w->slot[i];
        const hv_dtype t = o->as_stored ? l->w[i].dtype : HV_F32;
        if (l->w[i].ndim >= 2)
            k->view.dtype = t;
        w->bytes += (uint64_t)hv_count(k->view) * hv_dtype_size(t);
    }
    snprintf(w->digest, sizeof w->digest, "synth:%llu", (unsigned long long)o->seed);
    return 0;
}

/* Values in blocks of a fixed size, so that all threads work on a large tensor; each value depends on its index alone. */
static void synthesize(const struct hv_weights *w, const struct hv_wspec *s, hv_dtype t, void *dst, size_t n)
{
    const size_t block = (size_t)1 << 16;
    const int64_t blocks = (int64_t)((n + block - 1) / block);

#pragma omp parallel for num_threads(w->dev->threads) if (blocks > 4)
    for (int64_t b = 0; b < blocks; b++) {
        const size_t at = (size_t)b * block, len = n - at < block ? n - at : block;
        hv_synth_as(t, (char *)dst + at * hv_dtype_size(t), s->name, s->ndim, s->shape, w->synth.seed, w->synth.gain, at,
                    len);
    }
}

static int make_values(struct hv_weights *w, int i, struct hv_err *e)
{
    const struct hv_wspec *s = &w->list.w[i];
    struct slot *k = &w->slot[i];
    const size_t n = (size_t)hv_count(k->view);
    const hv_dtype t = w->synth.as_stored ? s->dtype : HV_F32;

    if (!(k->owned = malloc((n + 1) * sizeof(float))))
        return hv_fail(e, HV_ENOMEM, "%s: out of memory: %zu elements", s->name, n);
    synthesize(w, s, t, k->owned, n);
    if (s->ndim < 2 && t != HV_F32) {
        float *wide = malloc((n + 1) * sizeof(float));
        if (!wide)
            return hv_fail(e, HV_ENOMEM, "%s: out of memory: %zu elements", s->name, n);
        hv_to_f32(wide, t, k->owned, n);
        free(k->owned);
        k->owned = wide;
    }
    k->view.data = k->owned;
    return 0;
}

/* Gives a slot its data when it is first asked for: a misaligned file is copied tensor by tensor, not as a whole. */
static int make_ready(struct hv_weights *w, int i, struct hv_err *e)
{
    struct slot *k = &w->slot[i];
    hv_tensor t;

    k->ready = 1;
    if (w->dev->kind == HV_DRY)
        return 0;
    if (w->is_synth)
        return make_values(w, i, e);
    if (hv_in_tensor(w->in, k->entry->name, &t, e))
        return e->code;
    k->view.data = t.data;
    if (k->scale) {
        if (hv_in_tensor(w->in, k->scale->name, &t, e))
            return e->code;
        k->view.scale = t.data;
    }
    return 0;
}

/* The device keeps the first failure, as it does for operations. */
static hv_tensor fault(struct hv_dev *d, int code, const char *name, const char *why)
{
    if (!d->fault.code)
        hv_fail(&d->fault, code, "weights: %s: %s", name, why);
    return (hv_tensor){0};
}

hv_tensor hv_weight(struct hv_weights *w, const char *fmt, ...)
{
    struct hv_err e = {0};
    char name[NAME_MAX_];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const int i = lookup(w, name);
    if (i < 0)
        return fault(w->dev, HV_EINPUT, name, "not in the list of the network's weights");
    if (!w->slot[i].ready && make_ready(w, i, &e))
        return fault(w->dev, e.code, name, e.msg);
    return w->slot[i].view;
}

int hv_weights_have(const struct hv_weights *w, const char *name)
{
    return lookup(w, name) >= 0;
}

const char *hv_weights_digest(const struct hv_weights *w)
{
    return w->digest;
}

uint64_t hv_weights_bytes(const struct hv_weights *w)
{
    return w->bytes;
}

/* ---- groups ---- */

/* The run of the list whose names begin with the prefix: [*first, *end). */
static void group(const struct hv_weights *w, const char *prefix, int *first, int *end)
{
    const size_t n = strlen(prefix);
    int i = 0;

    while (i < w->list.n && strncmp(w->list.w[i].name, prefix, n))
        i++;
    *first = i;
    while (i < w->list.n && !strncmp(w->list.w[i].name, prefix, n))
        i++;
    *end = i;
}

static void advise(struct hv_weights *w, int i, int wanted)
{
    struct slot *k = &w->slot[i];

    /* A file that fits into memory stays there once it was read: no second system call a tensor. */
    if (!k->entry || (wanted && !w->large && k->fetched))
        return;
    k->fetched = 1;
    hv_in_advise(w->in, k->entry->begin, k->entry->end, wanted);
}

void hv_weights_take(struct hv_weights *w, const char *prefix)
{
    int first, end;
    uint64_t bytes = 0, ahead = 0;

    if (!w->in || w->dev->kind == HV_DRY)
        return;
    group(w, prefix, &first, &end);
    for (int i = first; i < end; i++) {
        advise(w, i, 1);
        bytes += w->slot[i].entry->end - w->slot[i].entry->begin;
    }
    /* As much again of what follows, round the end to the start: the next step begins there. */
    for (int i = end, n = 0; n < w->list.n - (end - first) && ahead < bytes; n++, i++) {
        const int at = i % w->list.n;
        advise(w, at, 1);
        ahead += w->slot[at].entry->end - w->slot[at].entry->begin;
    }
}

void hv_weights_give(struct hv_weights *w, const char *prefix)
{
    int first, end;

    if (!w->large || w->dev->kind == HV_DRY)
        return;
    group(w, prefix, &first, &end);
    for (int i = first; i < end; i++)
        advise(w, i, 0);
}
