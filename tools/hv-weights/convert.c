/* From the tensors of a checkpoint to those of a packed file. Bytes are made block by block, each by all threads; nothing but
 * the scales of the matrix at work is kept. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hv-weights.h"
#include "mem/quant.h"

/* ---- options ---- */

int conversion_read(struct conversion *v, int keep_allowed, struct hv_err *e)
{
    const char *q = v->quant ? v->quant : keep_allowed ? "keep" : "int8", *m = v->modulation ? v->modulation : "keep";

    v->keep = keep_allowed && !strcmp(q, "keep");
    v->q = !strcmp(q, "int8") ? HV_I8 : !strcmp(q, "fp8") ? HV_F8_E4M3 : HV_NONE;
    if (!v->q && !v->keep && strcmp(q, "none"))
        return hv_fail(e, HV_EUSAGE, "--quant: '%s', expected %sint8, fp8 or none", q, keep_allowed ? "keep, " : "");
    v->modulate = !strcmp(m, "quant");
    if (!v->modulate && strcmp(m, "keep"))
        return hv_fail(e, HV_EUSAGE, "--modulation: '%s', expected keep or quant", m);
    v->as = HV_NONE;
    if (v->dtype) {
        v->as = hv_dtype_parse(!strcmp(v->dtype, "f32") ? "F32" : !strcmp(v->dtype, "bf16") ? "BF16" :
                               !strcmp(v->dtype, "f16") ? "F16" : "?");
        if (!v->as)
            return hv_fail(e, HV_EUSAGE, "--dtype: '%s', expected bf16, f16 or f32", v->dtype);
    }
    return 0;
}

/* ---- what becomes of a tensor ---- */

static int is_wide_float(hv_dtype t)
{
    return t == HV_F32 || t == HV_F16 || t == HV_BF16;
}

static int is_8bit(hv_dtype t)
{
    return t == HV_I8 || t == HV_F8_E4M3 || t == HV_F8_E5M2;
}

/* The dtype of a tensor that is not quantized. */
static hv_dtype plain_dtype(const struct conversion *v, const struct hv_kind *kind, const struct hv_ctensor *t,
                            const char *name, hv_dtype fallback)
{
    if (hv_kind_keeps_f32(kind, name) && (t->dtype == HV_F32 || t->scale))
        return HV_F32;
    if (t->scale || t->ggml >= 0 || (kind && t->dtype == HV_F64))
        return v->as ? v->as : fallback;
    return v->as && is_wide_float(t->dtype) ? v->as : t->dtype;
}

static int scale_name(char out[HV_CKPT_NAME + 8], const char *name)
{
    return snprintf(out, HV_CKPT_NAME + 8, "%s.scale", name);
}

static int add_quantized(const struct conversion *v, struct pack *k, const struct hv_ctensor *t, const char *name,
                         const int64_t *shape, int64_t rank)
{
    char scale[HV_CKPT_NAME + 8];
    struct scales *s = calloc(1, sizeof *s);
    struct piece *p = s ? pack_add(k, name, v->q, 2, shape, QUANTIZED, rank) : NULL;

    if (!p) {
        free(s);
        k->fault = 1;
        return -1;
    }
    p->src = t;
    p->scales = s;
    s->rows = shape[0];
    s->v = malloc(((size_t)shape[0] + 1) * sizeof *s->v);
    s->done = calloc((size_t)shape[0] + 1, 1);
    if (!s->v || !s->done)
        k->fault = 1;
    scale_name(scale, name);
    p = pack_add(k, scale, HV_F32, 1, shape, SCALES, rank);
    if (!p)
        return -1;
    p->src = t;
    p->scales = s;
    return k->fault ? -1 : 1;
}

int conversion_add(const struct conversion *v, struct pack *k, const struct hv_kind *kind, const struct hv_ctensor *t,
                   const char *name, int ndim, const int64_t *shape, hv_dtype fallback, int64_t rank, struct hv_err *e)
{
    const enum hv_quant class = hv_kind_quant(kind, name, ndim);
    const int wanted = v->q && (class == HV_QUANT || (class == HV_QUANT_MODULATION && v->modulate));
    const int fits = t->scale && ndim == 2 && is_quantized(t->dtype) && (!kind || class != HV_KEEP);
    char scale[HV_CKPT_NAME + 8];
    struct piece *p;
    int rc = 0;

    if (kind && is_8bit(t->dtype) && !t->scale)
        return hv_fail(e, HV_EINPUT, "%s: %s without a scale%s", name, hv_dtype_name(t->dtype),
                       t->dtype == HV_I8 ? "" : ": is the file with the scales (.._map.pt) not beside it?"), -1;
    if (fits && (v->keep || (wanted && v->q == t->dtype))) {
        if ((p = pack_add(k, name, t->dtype, ndim, shape, COPY, rank)))
            p->src = t;
        scale_name(scale, name);
        if (p && (p = pack_add(k, scale, HV_F32, 1, shape, KEPT_SCALES, rank)))
            p->src = t;
    } else if (wanted && (t->scale || is_wide_float(t->dtype) || t->dtype == HV_F64)) {
        rc = add_quantized(v, k, t, name, shape, rank);
    } else {
        const hv_dtype as = plain_dtype(v, kind, t, name, fallback);
        if (kind && !is_wide_float(as))
            return hv_fail(e, HV_EUNSUP, "%s: %s is no dtype of a weight", name, hv_dtype_name(as)), -1;
        if ((p = pack_add(k, name, as, ndim, shape, as == t->dtype && !t->scale ? COPY : CONVERT, rank)))
            p->src = t;
    }
    return k->fault ? (hv_fail(e, HV_ENOMEM, "out of memory"), -1) : rc;
}

void conversion_metadata(struct hv_out *out, const struct pack *k, const struct hv_ckpt *c, const struct hv_kind *kind)
{
    const char *source = hv_ckpt_meta(c, "hv.source");
    int int8 = 0, fp8 = 0, deq = 0;

    for (int i = 0; i < k->n; i++) {
        const struct piece *p = &k->p[i];
        int8 |= (p->role == QUANTIZED || p->role == COPY) && p->dtype == HV_I8 && p->ndim == 2;
        fp8 |= (p->role == QUANTIZED || p->role == COPY) && p->dtype == HV_F8_E4M3 && p->ndim == 2;
        deq |= p->role == KEPT_SCALES && hv_ckpt_deq_bf16(c);
    }
    hv_out_meta(out, "format", "hv");
    hv_out_meta(out, "hv.version", "1");
    if (kind)
        hv_out_meta(out, "hv.model", "%s", kind->name);
    hv_out_meta(out, "hv.quant", int8 && fp8 ? "mixed" : int8 ? "int8" : fp8 ? "fp8" : "none");
    if (deq)
        hv_out_meta(out, "hv.deq", "bf16");
    hv_out_meta(out, "hv.source", "%s", source ? source : base_name(hv_ckpt_path(c)));
}

/* ---- values ---- */

struct job {
    const struct pack    *pack;
    const struct hv_ckpt *c;
    struct hv_progress    progress;
    const char           *name;
    char                  what[96];
    uint64_t              bytes;
    double                started;
};

static int not_finite(const struct piece *p, uint64_t at, struct hv_err *e)
{
    return hv_fail(e, HV_ENUM, "%s: NaN or Inf at element %llu", p->name, (unsigned long long)at);
}

static int check_finite(const struct piece *p, hv_dtype t, const void *values, uint64_t first, size_t n, struct hv_err *e)
{
    const int64_t count = (int64_t)n, hit = hv_first_nonfinite(hv_view(values, t, 1, &count));

    return hit < 0 ? 0 : not_finite(p, first + (uint64_t)hit, e);
}

/* One chunk of a piece that is made element by element. */
static int make_chunk(const struct job *j, const struct piece *p, uint64_t first, size_t n, char *dst, float *wide,
                      struct hv_err *e)
{
    if (p->role == COPY)
        return hv_ckpt_read(j->c, p->src, first, n, dst, e) || check_finite(p, p->dtype, dst, first, n, e) ? e->code : 0;
    if (hv_ckpt_read_f32(j->c, p->src, first, n, wide, e))
        return e->code;
    if (p->role == FOLDED) {
        const uint64_t cols = (uint64_t)(hv_shape_count(p->ndim, p->shape) / p->shape[0]);
        for (size_t i = 0; i < n; i++)
            wide[i] *= p->made[(first + i) / cols];
    }
    if (check_finite(p, HV_F32, wide, first, n, e))
        return e->code;
    hv_from_f32(p->dtype, dst, wide, n);
    for (size_t i = 0; p->dtype == HV_F16 && i < n; i++)
        if (fabsf(wide[i]) >= 65520.0f)
            return hv_fail(e, HV_ENUM, "%s: element %llu does not fit into F16", p->name, (unsigned long long)(first + i));
    return 0;
}

/* A piece of a piece, cut into chunks. */
struct work {
    const struct job   *j;
    const struct piece *p;
    uint64_t            first;          /* element */
    size_t              count;
    int64_t             row, rows, per; /* of a matrix in 8 bits: its rows, so many a chunk */
    char               *dst;
    struct failure      f;
};

static void values_chunk(void *ctx, int64_t k, struct worker *t)
{
    struct work *w = ctx;
    const size_t at = (size_t)k * CHUNK, n = w->count - at < CHUNK ? w->count - at : CHUNK;
    float *wide = w->p->role == COPY ? NULL : scratch(t, CHUNK * sizeof *wide);
    struct hv_err e = {0};

    if (w->p->role != COPY && !wide)
        hv_fail(&e, HV_ENOMEM, "%s: out of memory", w->p->name);
    else
        make_chunk(w->j, w->p, w->first + at, n, w->dst + at * hv_dtype_size(w->p->dtype), wide, &e);
    if (e.code)
        keep_first(&w->f, k, &e);
}

static int make_values(const struct job *j, const struct piece *p, uint64_t first, size_t count, char *buf, struct hv_err *e)
{
    struct work w = {.j = j, .p = p, .first = first, .count = count, .dst = buf};

    for_chunks((int64_t)((count + CHUNK - 1) / CHUNK), values_chunk, &w);
    return w.f.e.code ? hv_fail(e, w.f.e.code, "%s", w.f.e.msg) : 0;
}

/* Rows r .. r+n-1: their scales, where they are not known yet, and the elements [first, end) among them. */
static int quantize_rows(const struct job *j, const struct piece *p, int64_t r, int64_t n, uint64_t first, uint64_t end,
                         char *dst, float *wide, struct hv_err *e)
{
    const uint64_t cols = (uint64_t)p->shape[1];
    struct scales *s = p->scales;

    if (hv_ckpt_read_f32(j->c, p->src, (uint64_t)r * cols, (size_t)n * cols, wide, e))
        return e->code;
    for (int64_t i = r; i < r + n; i++) {
        const float *row = wide + (uint64_t)(i - r) * cols;
        if (!s->done[i]) {
            s->v[i] = hv_quant_scale(p->dtype, row, cols);
            if (isnan(s->v[i]))
                return hv_fail(e, HV_ENUM, "%s: NaN or Inf in row %lld", p->name, (long long)i);
            s->done[i] = 1;
        }
        const uint64_t begin = (uint64_t)i * cols, from = begin > first ? begin : first;
        const uint64_t to = begin + cols < end ? begin + cols : end;
        if (dst && from < to)
            hv_quant(p->dtype, dst + (from - first), row + (from - begin), s->v[i], to - from);
    }
    return 0;
}

static void rows_chunk(void *ctx, int64_t k, struct worker *t)
{
    struct work *w = ctx;
    const int64_t n = w->rows - k * w->per < w->per ? w->rows - k * w->per : w->per;
    float *wide = scratch(t, ((size_t)w->per * (size_t)w->p->shape[1] + 1) * sizeof *wide);
    struct hv_err e = {0};

    if (!wide)
        hv_fail(&e, HV_ENOMEM, "%s: out of memory", w->p->name);
    else
        quantize_rows(w->j, w->p, w->row + k * w->per, n, w->first, w->first + w->count, w->dst, wide, &e);
    if (e.code)
        keep_first(&w->f, k, &e);
}

/* Elements first .. first+count-1 of a matrix in 8 bits; dst NULL: the scales of their rows alone. */
static int quantize(const struct job *j, const struct piece *p, uint64_t first, size_t count, char *dst, struct hv_err *e)
{
    const uint64_t cols = (uint64_t)p->shape[1];
    struct work w = {.j = j, .p = p, .first = first, .count = count, .dst = dst};

    if (!cols || !count)
        return 0;
    w.row = (int64_t)(first / cols);
    w.rows = (int64_t)((first + count - 1) / cols) - w.row + 1;
    w.per = CHUNK / cols > 1 ? (int64_t)(CHUNK / cols) : 1;
    for_chunks((w.rows + w.per - 1) / w.per, rows_chunk, &w);
    return w.f.e.code ? hv_fail(e, w.f.e.code, "%s", w.f.e.msg) : 0;
}

/* Scales come behind their matrix and are known by then, but where a matrix of an odd size was put last. */
static int need_scales(const struct job *j, const struct piece *scales, struct hv_err *e)
{
    const struct scales *s = scales->scales;

    if (!s->rows || !memchr(s->done, 0, (size_t)s->rows))
        return 0;
    for (int i = 0; i < j->pack->n; i++) {
        const struct piece *p = &j->pack->p[i];
        if (p->role != QUANTIZED || p->scales != s)
            continue;
        if (!p->shape[1]) {
            memset(s->v, 0, (size_t)s->rows * sizeof *s->v);
            memset(s->done, 1, (size_t)s->rows);
            return 0;
        }
        return quantize(j, p, 0, (size_t)hv_shape_count(2, p->shape), NULL, e);
    }
    return 0;
}

static void report(struct job *j, int i)
{
    const double t = seconds() - j->started;

    snprintf(j->what, sizeof j->what, "%s, %.0f MB/s, tensor", j->name, (double)j->bytes / 1e6 / (t > 1e-3 ? t : 1e-3));
    hv_progress_step(&j->progress, j->what, i, j->pack->n);
}

static int produce(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    struct job *j = ctx;
    const struct piece *p = &j->pack->p[i];
    const size_t size = hv_dtype_size(p->dtype);
    int rc = 0;

    if (!offset)
        report(j, i);
    switch (p->role) {
    case PAD: memset(buf, 0, n); break;
    case MADE: memcpy(buf, (const char *)p->made + offset, n); break;
    case KEPT_SCALES: memcpy(buf, (const char *)p->src->scale + offset, n); break;
    case QUANTIZED: rc = quantize(j, p, offset, n, buf, e); break;
    case SCALES:
        rc = need_scales(j, p, e);
        if (!rc)
            memcpy(buf, (const char *)p->scales->v + offset, n);
        break;
    default: rc = make_values(j, p, offset / size, n / size, buf, e);
    }
    j->bytes += n;
    if (p->src && offset + n == (uint64_t)hv_shape_count(p->ndim, p->shape) * size)
        hv_ckpt_forget(j->c, p->src);
    return rc;
}

int conversion_write(const struct hv_cli *cli, struct hv_out *out, const struct pack *k, const struct hv_ckpt *c,
                     const char *what, const char *path, struct hv_err *e)
{
    struct job job = {.pack = k, .c = c, .name = what, .started = seconds()};
    uint64_t largest = 4096;
    size_t block = BLOCK;

    for (int i = 0; i < k->n; i++) {
        const uint64_t n = (uint64_t)hv_shape_count(k->p[i].ndim, k->p[i].shape) * hv_dtype_size(k->p[i].dtype);
        int fd;
        uint64_t at;
        largest = n > largest ? n : largest;
        if (k->p[i].role == COPY && hv_ckpt_place(c, k->p[i].src, &fd, &at))
            hv_out_copied(out, i, fd, at);
    }
    if (largest < block)
        block = (size_t)(largest + 63) / 64 * 64;
    hv_progress_open(&job.progress, cli);
    const int rc = hv_out_produce(out, path, block, produce, &job, e);
    hv_progress_close(&job.progress);
    return rc;
}
