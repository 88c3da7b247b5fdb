/* hv-weights quantize: matrices to int8 or fp8 with a scale a row, the rest as it is or in another dtype. */
#include "mem/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hv-weights.h"

struct options {
    struct hv_common c;
    const char *quant, *modulation, *dtype, *kind;
    hv_dtype    q, as;                  /* HV_NONE: no quantization; as stored */
};

struct job {
    const struct pack    *pack;
    const struct hv_in   *in;
    int                   deq_bf16;
    struct hv_progress    progress;
};

/* ---- what becomes of a tensor ---- */

/* Blocks first, in their order, each contiguous; the rest behind them as it came. */
static int64_t rank_of(const char *name, int index)
{
    static const struct { const char *head; int64_t base; } runs[] = {
        {"double_blocks.", 0}, {"single_blocks.", 1000}, {"language_model.model.layers.", 0},
    };

    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++)
        if (!strncmp(name, runs[i].head, strlen(runs[i].head)))
            return (runs[i].base + strtol(name + strlen(runs[i].head), NULL, 10) % 1000) * 1000000 + index;
    return (int64_t)1000000 * 1000000 + index;
}

static int is_wide_float(hv_dtype t)
{
    return t == HV_F32 || t == HV_F16 || t == HV_BF16;
}

static hv_dtype kept_dtype(const struct options *o, const struct hv_kind *kind, const struct hv_entry *t, int scaled)
{
    if (scaled)
        return o->as ? o->as : HV_BF16;
    if (!o->as || !is_wide_float(t->dtype) || (t->dtype == HV_F32 && hv_kind_keeps_f32(kind, t->name)))
        return t->dtype;
    return o->as;
}

static int add_quantized(struct pack *k, const struct options *o, const struct hv_entry *t, const struct hv_entry *scale,
                         int64_t rank)
{
    char name[1024];
    struct scales *s = calloc(1, sizeof *s);
    struct piece *p = pack_add(k, t->name, o->q, t->ndim, t->shape, QUANTIZED, rank);

    if (!s || !p || snprintf(name, sizeof name, "%s.scale", t->name) >= (int)sizeof name ||
        !(s->v = malloc(((size_t)t->shape[0] + 1) * sizeof *s->v))) {
        free(s);
        k->fault = 1;
        return -1;
    }
    s->rows = t->shape[0];
    p->src = t;
    p->src_scale = scale;
    p->scales = s;
    p = pack_add(k, name, HV_F32, 1, t->shape, SCALES, rank);
    if (!p)
        return -1;
    p->src = t;
    p->src_scale = scale;
    p->scales = s;
    return 0;
}

/* Lists the output's tensors; returns how many matrices are quantized, -1: out of memory or a fault (in e). */
static int plan(struct pack *k, const struct hv_in *in, const struct hv_kind *kind, const struct options *o,
                struct hv_err *e)
{
    const int modulation = !strcmp(o->modulation, "quant");
    int quantized = 0;

    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i), *scale = scale_of(in, t);
        const enum hv_quant class = hv_kind_quant(kind, t->name, t->ndim);
        const size_t n = strlen(t->name);
        if (is_padding(t->name))
            continue;
        if (n > 6 && !strcmp(t->name + n - 6, ".scale")) {
            char base[1024];
            snprintf(base, sizeof base, "%.*s", (int)(n - 6), t->name);
            const struct hv_entry *owner = hv_in_find(in, base);
            if (owner && scale_of(in, owner) == t)
                continue;                               /* made anew, or multiplied in, with its matrix */
        }
        if (is_quantized(t->dtype) && t->ndim >= 2 && !scale) {
            hv_fail(e, HV_EINPUT, "%s: %s without %s.scale F32 [rows]", t->name, hv_dtype_name(t->dtype), t->name);
            return -1;
        }
        const int64_t rank = rank_of(t->name, i);
        if (o->q && (scale || is_wide_float(t->dtype)) && (class == HV_QUANT || (class == HV_QUANT_MODULATION && modulation))) {
            if (add_quantized(k, o, t, scale, rank))
                break;
            quantized++;
            continue;
        }
        const hv_dtype as = kept_dtype(o, kind, t, scale != NULL);
        struct piece *p = pack_add(k, t->name, as, t->ndim, t->shape, as == t->dtype ? COPY : CONVERT, rank);
        if (!p)
            break;
        p->src = t;
        p->src_scale = scale;
    }
    return k->fault ? (hv_fail(e, HV_ENOMEM, "out of memory"), -1) : quantized;
}

/* ---- values ---- */

static int make_scales(const struct job *j, const struct piece *p, struct hv_err *e)
{
    const int64_t rows = p->shape[0];
    const size_t cols = rows ? (size_t)(p->src->shape[1]) : 0;
    const hv_dtype t = p->role == QUANTIZED ? p->dtype : HV_NONE;
    int64_t bad = -1;
    int memory = 0;

    if (p->scales->ready)
        return 0;
#pragma omp parallel if ((size_t)rows * cols > CHUNK)
    {
        float *row = malloc((cols + 1) * sizeof *row);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            if (!row)
                continue;
            load_f32(row, j->in, p->src, p->src_scale, j->deq_bf16, (size_t)r * cols, cols);
            p->scales->v[r] = hv_quant_scale(t, row, cols);
            if (isnan(p->scales->v[r])) {
#pragma omp critical
                bad = bad < 0 || r < bad ? r : bad;
            }
        }
        if (!row) {
#pragma omp atomic write
            memory = 1;
        }
        free(row);
    }
    if (memory)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", p->name);
    if (bad >= 0)
        return hv_fail(e, HV_ENUM, "%s: NaN or Inf in row %lld", p->name, (long long)bad);
    p->scales->ready = 1;
    return 0;
}

/* The matrix of a scale tensor: its role and dtype say how it is quantized. */
static const struct piece *matrix_of(const struct pack *k, const struct piece *scale)
{
    for (int i = 0; i < k->n; i++)
        if (k->p[i].role == QUANTIZED && k->p[i].scales == scale->scales)
            return &k->p[i];
    return scale;
}

static void quantize_chunk(const struct job *j, const struct piece *p, size_t first, size_t n, char *dst, float *wide)
{
    const size_t cols = (size_t)p->shape[1];

    load_f32(wide, j->in, p->src, p->src_scale, j->deq_bf16, first, n);
    for (size_t at = first; at < first + n;) {
        const size_t row = at / cols, left = (row + 1) * cols - at, part = left < first + n - at ? left : first + n - at;
        hv_quant(p->dtype, dst + (at - first), wide + (at - first), p->scales->v[row], part);
        at += part;
    }
}

/* Returns the first element that was finite and is not any more in the narrower dtype, -1: none. */
static int64_t convert_chunk(const struct job *j, const struct piece *p, size_t first, size_t n, char *dst, float *wide)
{
    load_f32(wide, j->in, p->src, p->src_scale, j->deq_bf16, first, n);
    hv_from_f32(p->dtype, dst, wide, n);
    if (p->dtype == HV_F16)
        for (size_t i = 0; i < n; i++)
            if (isfinite(wide[i]) && fabsf(wide[i]) >= 65520.0f)
                return (int64_t)(first + i);
    return -1;
}

static int produce_values(const struct job *j, const struct piece *p, size_t first, size_t count, char *buf,
                          struct hv_err *e)
{
    const int64_t chunks = (int64_t)((count + CHUNK - 1) / CHUNK);
    const size_t size = hv_dtype_size(p->dtype);
    int64_t bad = -1;
    int memory = 0;

#pragma omp parallel if (chunks > 1)
    {
        float *wide = p->role == COPY ? NULL : malloc(CHUNK * sizeof *wide);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < chunks; k++) {
            const size_t at = (size_t)k * CHUNK, n = count - at < CHUNK ? count - at : CHUNK;
            char *dst = buf + at * size;
            int64_t hit = -1;
            if (p->role == COPY)
                memcpy(dst, (const char *)hv_in_data(j->in, p->src) + (first + at) * size, n * size);
            else if (!wide)
                continue;
            else if (p->role == QUANTIZED)
                quantize_chunk(j, p, first + at, n, dst, wide);
            else
                hit = convert_chunk(j, p, first + at, n, dst, wide);
            if (hit >= 0) {
#pragma omp critical
                bad = bad < 0 || hit < bad ? hit : bad;
            }
        }
        if (!wide && p->role != COPY) {
#pragma omp atomic write
            memory = 1;
        }
        free(wide);
    }
    if (memory)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", p->name);
    if (bad >= 0)
        return hv_fail(e, HV_ENUM, "%s: element %lld does not fit into F16", p->name, (long long)bad);
    return 0;
}

static int produce(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    struct job *j = ctx;
    const struct piece *p = &j->pack->p[i];
    const size_t size = hv_dtype_size(p->dtype);
    int rc = 0;

    if (!offset) {
        hv_progress_step(&j->progress, "tensor", i, j->pack->n);
        if (p->src)
            hv_in_advise(j->in, p->src->begin, p->src->end, 1);
    }
    if (p->role == PAD)
        memset(buf, 0, n);
    else if (p->role == SCALES || p->role == QUANTIZED)
        rc = make_scales(j, p->role == SCALES ? matrix_of(j->pack, p) : p, e);
    if (!rc && p->role == SCALES)
        memcpy(buf, (const char *)p->scales->v + offset, n);
    else if (!rc && p->role != PAD)
        rc = produce_values(j, p, (size_t)offset / size, n / size, buf, e);
    if (p->src && offset + n == (uint64_t)hv_shape_count(p->ndim, p->shape) * size)
        hv_in_advise(j->in, p->src->begin, p->src->end, 0);     /* its pages are not this process's any more */
    return rc;
}

/* ---- the command ---- */

static const struct hv_kind *kind_of_file(const struct hv_in *in)
{
    const struct hv_kind *k = hv_kind_find(hv_in_meta(in, "hv.model"));

    for (int i = 0; i < hv_in_count(in) && !k; i++)
        k = hv_kind_of_tensor(hv_in_entry(in, i)->name);
    return k;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static void set_metadata(struct hv_out *out, const struct hv_in *in, const struct hv_kind *kind, const char *quant)
{
    const char *source = hv_in_meta(in, "hv.source");

    hv_out_meta(out, "format", "hv");
    hv_out_meta(out, "hv.version", "1");
    if (kind)
        hv_out_meta(out, "hv.model", "%s", kind->name);
    hv_out_meta(out, "hv.quant", "%s", quant);
    hv_out_meta(out, "hv.source", "%s", source ? source : base_name(hv_in_path(in)));
}

static int read_options(struct options *o, const char **out, struct hv_err *e)
{
    o->q = !strcmp(o->quant, "int8") ? HV_I8 : !strcmp(o->quant, "fp8") ? HV_F8_E4M3 : HV_NONE;
    if (!o->q && strcmp(o->quant, "none"))
        return hv_fail(e, HV_EUSAGE, "--quant: '%s', expected int8, fp8 or none", o->quant);
    if (strcmp(o->modulation, "keep") && strcmp(o->modulation, "quant"))
        return hv_fail(e, HV_EUSAGE, "--modulation: '%s', expected keep or quant", o->modulation);
    if (o->dtype) {
        o->as = !strcmp(o->dtype, "f32") ? HV_F32 : !strcmp(o->dtype, "bf16") ? HV_BF16 : !strcmp(o->dtype, "f16") ? HV_F16 : HV_NONE;
        if (!o->as)
            return hv_fail(e, HV_EUSAGE, "--dtype: '%s', expected bf16, f16 or f32", o->dtype);
    }
    if (o->kind && !hv_kind_find(o->kind))
        return hv_fail(e, HV_EUSAGE, "--kind: '%s' is no kind of network", o->kind);
    use_threads(&o->c);
    return pick_output(&o->c, 2, out, e);
}

static int pack_file(const struct hv_cli *cli, const struct options *o, const char *path, struct hv_err *e)
{
    struct hv_in *in = NULL;
    struct pack pack = {0};
    struct hv_out out = {.align = 4096, .digest = 1};
    struct job job = {.pack = &pack};
    const double start = seconds();
    int rc = hv_in_open(&in, o->c.operand[0], e), quantized = 0;
    const char *deq = rc ? NULL : hv_in_meta(in, "hv.deq");
    const struct hv_kind *kind = rc ? NULL : o->kind ? hv_kind_find(o->kind) : kind_of_file(in);

    if (!rc && (quantized = plan(&pack, in, kind, o, e)) < 0)
        rc = e->code;
    if (!rc && o->q && !quantized)
        rc = hv_fail(e, HV_EUNSUP, "%s: no matrix that may be quantized (%s); --quant none changes the dtype alone",
                     hv_in_path(in), kind ? kind->name : "of no known kind: --kind NAME?");
    if (!rc)
        rc = pack_layout(&pack, &out, e);
    if (!rc) {
        job.in = in;
        job.deq_bf16 = deq && !strcmp(deq, "bf16");
        set_metadata(&out, in, kind, o->quant);
        hv_progress_open(&job.progress, cli);
        rc = hv_out_produce(&out, path, BLOCK, produce, &job, e);
        hv_progress_close(&job.progress);
    }
    if (!rc)
        hv_note_verbose(cli, "%s: %d of %d tensors quantized, %.1f MB read in %.1f s", path, quantized, hv_in_count(in),
                        (double)hv_in_bytes(in) / 1e6, seconds() - start);
    hv_out_close(&out);
    pack_close(&pack);
    hv_in_close(in);
    return rc;
}

int cmd_quantize(int argc, char **argv, struct hv_err *e)
{
    static struct options o = {.quant = "int8", .modulation = "keep"};
    const struct hv_opt opts[] = {
        {"quant", 0, HV_OPT_STR, &o.quant, "TYPE", "int8, fp8 or none (default: int8)", 0, 0},
        {"modulation", 0, HV_OPT_STR, &o.modulation, "keep|quant", "the modulation matrices, too (default: keep)", 0, 0},
        {"dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "bf16, f16 or f32 for what is kept (default: as it is)", 0, 0},
        {"kind", 0, HV_OPT_STR, &o.kind, "NAME", "transformer, text_encoder, .. (default: from the file)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "quantize IN OUT",
                               "Stores matrices in 8 bits with a scale a row; the rest is kept, or changes its dtype.", opts,
                               &o.c, 1, 2};
    const char *out = NULL;
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = read_options(&o, &out, e);
    return rc ? rc : pack_file(&cli, &o, out, e);
}
