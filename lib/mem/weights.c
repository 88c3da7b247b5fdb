#define _GNU_SOURCE
#include "mem/source.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/plan.h"
#include "mem/stream_impl.h"
#include "mem/synth.h"

#define NAMED     8             /* faults that a message names */
#define NAME_MAX_ 512
#define BOUNCE    ((size_t)4 << 20)

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
    if (!w)
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    w->fd = -1;
    w->dev = d;
    if (hv_wlist_copy(&w->list, l) || !(w->table = malloc(cap * sizeof *w->table)) ||
        !(w->slot = calloc((size_t)l->n + 1, sizeof *w->slot)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    w->mask = cap - 1;
    memset(w->table, 0xff, cap * sizeof *w->table);
    for (int i = 0; i < l->n; i++) {
        const struct hv_wspec *s = &l->w[i];
        assert(lookup(w, s->name) < 0);                     /* a list that names a tensor twice is a fault of its author */
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
    hv_weights_unstream(w);
    for (int i = 0; w->slot && i < w->list.n; i++) {
        free(w->slot[i].owned);
        free(w->slot[i].owned_scale);
        hv_dev_free(w->dev, w->slot[i].device);
    }
    hv_dev_unpin(w->dev, w->bounce);
    hv_dev_event_close(w->dev, w->bounce_event);
    if (w->fd >= 0)
        close(w->fd);
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

/* Takes entry and scale of one tensor; vectors are widened here, matrices stay where they are. */
static int bind_tensor(struct hv_weights *w, int i, int deq_bf16, struct hv_err *e)
{
    const struct hv_wspec *s = &w->list.w[i];
    struct hv_slot *k = &w->slot[i];
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
    if (t != HV_F32 && t != HV_F16 && t != HV_BF16 && !hv_is_quantized(t))
        return hv_fail(e, HV_EUNSUP, "%s: dtype %s of a matrix, expected F32, F16, BF16, I8 or F8_E4M3", s->name,
                       hv_dtype_name(t));
    k->view.dtype = t;
    if (!hv_is_quantized(t))
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
    w->memory = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    w->large = w->memory && hv_in_bytes(w->in) > w->memory / 2;
    if (sha)
        snprintf(w->digest, sizeof w->digest, "%.80s", sha);
    else
        snprintf(w->digest, sizeof w->digest, "header:%016llx", (unsigned long long)hv_in_header_digest(w->in));
    return 0;
}

/* The mapped file once more, for reading beside the mapping. A pipe has none. */
static int open_file(struct hv_weights *w, const char *path, struct hv_err *e)
{
    const char *data = hv_in_count(w->in) ? hv_in_data(w->in, hv_in_entry(w->in, 0)) : NULL;
    struct stat st;
    char head[4096];

    if (!data || w->dev->kind == HV_DRY || !strcmp(path, "-") || stat(path, &st) || !S_ISREG(st.st_mode))
        return 0;
    if ((w->fd = open(path, O_RDONLY | O_CLOEXEC)) < 0 || fstat(w->fd, &st))
        return hv_fail(e, HV_EIO, "%s", strerror(errno));
    w->file_bytes = (uint64_t)st.st_size;
    w->data_at = w->file_bytes - hv_in_bytes(w->in);
    const size_t n = w->data_at < sizeof head ? (size_t)w->data_at : sizeof head;
    if (w->file_bytes < hv_in_bytes(w->in) || pread(w->fd, head, n, 0) != (ssize_t)n ||
        memcmp(head, data - hv_in_entry(w->in, 0)->begin - w->data_at, n))
        return hv_fail(e, HV_EIO, "was replaced while it was opened");
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
    if (!rc && (open_file(*out, path, e) || bind_file(*out, e)))
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
        struct hv_slot *k = &w->slot[i];
        const int narrow = hv_is_quantized(o->quant) && l->w[i].quant == HV_QUANT && l->w[i].ndim == 2;
        const hv_dtype t = narrow ? o->quant : o->as_stored ? l->w[i].dtype : HV_F32;
        if (l->w[i].ndim >= 2)
            k->view.dtype = t;
        w->bytes += (uint64_t)hv_count(k->view) * hv_dtype_size(t);
        w->bytes += narrow ? (uint64_t)l->w[i].shape[0] * sizeof(float) : 0;
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

static int make_quantized(struct hv_weights *w, int i, size_t n, struct hv_err *e)
{
    const struct hv_wspec *s = &w->list.w[i];
    struct hv_slot *k = &w->slot[i];
    float *scale;

    k->owned = malloc(n + 1);
    k->owned_scale = scale = malloc(((size_t)s->shape[0] + 1) * sizeof *scale);
    if (!k->owned || !scale)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory: %zu elements", s->name, n);
    hv_synth_quantized(k->view.dtype, k->owned, s->name, w->synth.seed, 0, n);
    for (int64_t r = 0; r < s->shape[0]; r++)
        scale[r] = hv_synth_scale(k->view.dtype, s);
    k->view.data = k->owned;
    k->view.scale = scale;
    return 0;
}

static int make_values(struct hv_weights *w, int i, struct hv_err *e)
{
    const struct hv_wspec *s = &w->list.w[i];
    struct hv_slot *k = &w->slot[i];
    const size_t n = (size_t)hv_count(k->view);
    const hv_dtype t = w->synth.as_stored ? s->dtype : HV_F32;

    if (hv_is_quantized(k->view.dtype))
        return make_quantized(w, i, n, e);
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
    struct hv_slot *k = &w->slot[i];
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

/* ---- copies on a device without a stream ---- */

/* Through a page-locked buffer, waiting for each piece: plain, and as fast as such callers need it. */
static void copy_over(struct hv_weights *w, void *dst, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += BOUNCE) {
        const size_t n = bytes - at < BOUNCE ? bytes - at : BOUNCE;
        memcpy(w->bounce, (const char *)src + at, n);
        hv_dev_move(w->dev, HV_LANE_COMPUTE, (char *)dst + at, n, w->bounce, n, n, 1);
        hv_dev_record(w->dev, w->bounce_event, HV_LANE_COMPUTE);
        hv_dev_event_sync(w->dev, w->bounce_event);
    }
}

/* Where the scale lies in such memory. */
static size_t scale_at(hv_tensor t)
{
    return (hv_nbytes(t) + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN;
}

/* The tensor in memory of its own on the device, as it is stored; vectors F32. */
static int upload(struct hv_weights *w, struct hv_slot *k, struct hv_err *e)
{
    const size_t bytes = hv_nbytes(k->view), at = scale_at(k->view);
    const size_t scales = k->view.scale ? (size_t)k->view.shape[0] * sizeof(float) : 0;

    if (!w->bounce && !(w->bounce = hv_dev_pin(w->dev, BOUNCE, e)))
        return e->code;
    if (!w->bounce_event && !(w->bounce_event = hv_dev_event(w->dev, e)))
        return e->code;
    if (!(k->device = hv_dev_alloc(w->dev, at + scales, e)))
        return e->code;
    copy_over(w, k->device, k->view.data, bytes);
    copy_over(w, (char *)k->device + at, k->view.scale, scales);
    return 0;
}

static hv_tensor device_view(const struct hv_slot *k)
{
    hv_tensor t = k->view;

    t.data = k->device;
    if (t.scale)
        t.scale = (const float *)(const void *)((const char *)k->device + scale_at(t));
    return t;
}

/* ---- serving ---- */

/* The device keeps the first failure, as it does for operations. */
static hv_tensor fault(struct hv_dev *d, int code, const char *name, const char *why)
{
    hv_dev_fault(d, code, "weights: %s: %s", name, why);
    return (hv_tensor){0};
}

static hv_tensor find(struct hv_weights *w, const char *name, int64_t row)
{
    struct hv_err e = {0};
    const int i = lookup(w, name);

    if (i < 0)
        return fault(w->dev, HV_EINPUT, name, "not in the list of the network's weights");
    if (w->stream)
        return hv_stream_view(w, i, row);
    struct hv_slot *k = &w->slot[i];
    if (!k->ready && make_ready(w, i, &e))
        return fault(w->dev, e.code, name, e.msg);
    if (w->dev->kind == HV_HOST || w->dev->kind == HV_DRY)
        return k->view;
    if (!k->device && upload(w, k, &e))
        return fault(w->dev, e.code, name, e.msg);
    return device_view(k);
}

hv_tensor hv_weight(struct hv_weights *w, const char *fmt, ...)
{
    char name[NAME_MAX_];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return find(w, name, -1);
}

hv_tensor hv_weight_host(struct hv_weights *w, const char *fmt, ...)
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
    struct hv_slot *k = &w->slot[i];
    if (!k->ready && make_ready(w, i, &e))
        return fault(w->dev, e.code, name, e.msg);
    hv_tensor t = k->view;
    t.dev = w->dev->kind == HV_DRY ? HV_DRY : HV_HOST;
    return t;
}

hv_tensor hv_weight_rows(struct hv_weights *w, int64_t first, int64_t rows, const char *fmt, ...)
{
    char name[NAME_MAX_];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const hv_tensor t = find(w, name, first);
    return t.dtype == HV_NONE ? t : hv_rows(t, first, rows);
}

hv_dtype hv_weights_dtype(const struct hv_weights *w, const char *name)
{
    const int i = lookup(w, name);

    return i < 0 ? HV_NONE : w->slot[i].view.dtype;
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

const struct hv_wlist *hv_weights_list(const struct hv_weights *w)
{
    return &w->list;
}

/* ---- take and give without a stream ---- */

void hv_weights_once(struct hv_weights *w)
{
    w->once = 1;
}

/* What a name stands for: a group, or the run of the list whose names begin with it. */
struct run {
    const char *prefix;
    int         group, first, end;
};

static int is_in(const struct hv_weights *w, const struct run *r, int i)
{
    int64_t row;

    return r->group < 0 ? !strncmp(w->list.w[i].name, r->prefix, strlen(r->prefix)) :
                          hv_wlist_rows(&w->list.w[i], r->group, &row) != 0;
}

static struct run run_of(const struct hv_weights *w, const char *name)
{
    struct run r = {.prefix = name, .group = hv_wlist_find_group(&w->list, name)};

    while (r.first < w->list.n && !is_in(w, &r, r.first))
        r.first++;
    /* A prefix names one run; a group may have gaps, where others' tensors were split. */
    for (int i = r.end = r.first; i < w->list.n && (r.group >= 0 || i == r.end); i++)
        if (is_in(w, &r, i))
            r.end = i + 1;
    return r;
}

static void advise(struct hv_weights *w, int i, int wanted)
{
    struct hv_slot *k = &w->slot[i];

    /* A file that fits into memory stays there once it was read: no second system call a tensor. */
    if (!k->entry || (wanted && !w->large && k->fetched))
        return;
    k->fetched = 1;
    hv_in_advise(w->in, k->entry->begin, k->entry->end, wanted);
}

void hv_weights_take(struct hv_weights *w, const char *name)
{
    uint64_t bytes = 0, ahead = 0;

    if (w->stream) {
        hv_stream_take(w, name);
        return;
    }
    if (w->dev->kind == HV_DRY)
        return;
    const struct run r = run_of(w, name);
    for (int i = r.first; i < r.end; i++)
        if (is_in(w, &r, i)) {
            w->slot[i].taken = 1;
            advise(w, i, 1);
            bytes += w->slot[i].entry ? w->slot[i].entry->end - w->slot[i].entry->begin : 0;
        }
    /* As much again of what follows, round the end to the start: the next step begins there. */
    for (int i = r.end, n = 0; n < w->list.n - (r.end - r.first) && ahead < bytes; n++, i++) {
        const int at = i % w->list.n;
        advise(w, at, 1);
        ahead += w->slot[at].entry ? w->slot[at].entry->end - w->slot[at].entry->begin : 0;
    }
}

void hv_weights_give(struct hv_weights *w, const char *name)
{
    if (w->stream) {
        hv_stream_give(w, name);
        return;
    }
    if (w->dev->kind == HV_DRY || (!w->large && !w->once && w->dev->kind == HV_HOST))
        return;
    const struct run r = run_of(w, name);
    for (int i = r.first; i < r.end; i++) {
        struct hv_slot *k = &w->slot[i];
        if (!is_in(w, &r, i))
            continue;
        if (w->large || w->once)
            advise(w, i, 0);
        if (k->taken) {
            hv_dev_free(w->dev, k->device);
            k->device = NULL;
        }
        k->taken = 0;
    }
}
