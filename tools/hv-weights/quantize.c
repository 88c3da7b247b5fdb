/* hv-weights quantize: matrices to int8 or fp8 with a scale a row, the rest as it is or in another dtype. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-weights.h"

struct options {
    struct hv_common  c;
    struct conversion v;
    const char       *kind;
};

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

/* Lists the output's tensors; returns how many matrices are quantized, -1: a failure in e. */
static int plan(struct pack *k, const struct hv_ckpt *c, const struct hv_kind *kind, const struct options *o, struct hv_err *e)
{
    int quantized = 0;

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        if ((t->dtype == HV_I8 || t->dtype == HV_F8_E4M3) && t->ndim >= 2 && !t->scale) {
            hv_fail(e, HV_EINPUT, "%s: %s: %s without %s.scale F32 [rows]", hv_ckpt_path(c), t->name, hv_dtype_name(t->dtype),
                    t->name);
            return -1;
        }
        /* What is of no known network passes as it is. */
        const int known = kind && (t->scale || t->dtype == HV_F32 || t->dtype == HV_F16 || t->dtype == HV_BF16);
        const int q = conversion_add(&o->v, k, known ? kind : NULL, t, t->name, t->ndim, t->shape, HV_BF16,
                                     rank_of(t->name, i), e);
        if (q < 0) {
            hv_context(e, "%s", hv_ckpt_path(c));
            return -1;
        }
        quantized += q || (known && o->v.q && hv_kind_quant(kind, t->name, t->ndim) == HV_QUANT && t->dtype == o->v.q);
    }
    return quantized;
}

static int pack_file(const struct hv_cli *cli, const struct options *o, const char *path, struct hv_err *e)
{
    struct hv_ckpt *c = NULL;
    struct pack pack = {0};
    struct hv_out out = {.align = 4096, .digest = 1};
    const struct hv_ckpt_opts plain = {0};
    const double start = seconds();
    int rc = hv_ckpt_open(&c, o->c.operand, 1, &plain, e), quantized = 0;

    if (!rc)
        rc = hv_ckpt_resolve(c, e);
    const struct hv_kind *kind = rc ? NULL : o->kind ? hv_kind_find(o->kind) : kind_of_ckpt(c);
    if (!rc && (quantized = plan(&pack, c, kind, o, e)) < 0)
        rc = e->code;
    if (!rc && o->v.q && !quantized)
        rc = hv_fail(e, HV_EUNSUP, "%s: no matrix that may be quantized (%s); --quant none changes the dtype alone",
                     hv_ckpt_path(c), kind ? kind->name : "of no known kind: --kind NAME?");
    if (!rc)
        rc = pack_layout(&pack, &out, e);
    if (!rc) {
        conversion_metadata(&out, &pack, c, kind);
        rc = conversion_write(cli, &out, &pack, c, "quantize", path, e);
    }
    if (!rc)
        hv_note_verbose(cli, "%s: %d of %d tensors quantized, %.1f MB read in %.1f s", path, quantized, hv_ckpt_count(c),
                        (double)hv_ckpt_bytes(c) / 1e6, seconds() - start);
    hv_out_close(&out);
    pack_close(&pack);
    hv_ckpt_close(c);
    return rc;
}

int cmd_quantize(int argc, char **argv, struct hv_err *e)
{
    static struct options o;
    const struct hv_opt opts[] = {
        {"quant", 0, HV_OPT_STR, &o.v.quant, "TYPE", "int8, fp8 or none (default: int8)", 0, 0},
        {"modulation", 0, HV_OPT_STR, &o.v.modulation, "keep|quant", "the modulation matrices, too (default: keep)", 0, 0},
        {"dtype", 0, HV_OPT_STR, &o.v.dtype, "TYPE", "bf16, f16 or f32 for what is kept (default: as it is)", 0, 0},
        {"kind", 0, HV_OPT_STR, &o.kind, "NAME", "transformer, text_encoder, .. (default: from the file)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "quantize IN OUT",
                               "Stores matrices in 8 bits with a scale a row; the rest is kept, or changes its dtype.", opts,
                               &o.c, 1, 2};
    const char *out = NULL;
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = conversion_read(&o.v, 0, e);
    if (!rc && o.kind && !hv_kind_find(o.kind))
        rc = hv_fail(e, HV_EUSAGE, "--kind: '%s' is no kind of network", o.kind);
    if (!rc)
        rc = pick_output(&o.c, 2, &out, e);
    if (rc)
        return rc;
    use_threads(&o.c);
    return pack_file(&cli, &o, out, e);
}
