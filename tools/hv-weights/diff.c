/* hv-weights diff: how far two checkpoints are apart, tensor by tensor, quantized matrices as what they stand for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-weights.h"
#include "io/listing.h"

struct gap {
    double aa, bb, ab, dd, max;
};

struct pair {
    const struct hv_ckpt    *a, *b;
    const struct hv_ctensor *x, *y;
    struct gap              *part;
    size_t                   n;
    struct failure           f;
};

static void compare_chunk(void *ctx, int64_t k, struct worker *w)
{
    struct pair *p = ctx;
    const size_t at = (size_t)k * CHUNK, len = p->n - at < CHUNK ? p->n - at : CHUNK;
    float *u = scratch(w, 2 * CHUNK * sizeof *u), *v = u ? u + CHUNK : NULL;
    struct gap *g = &p->part[k];
    struct hv_err e = {0};

    if (!u)
        hv_fail(&e, HV_ENOMEM, "%s: out of memory", p->x->name);
    else if (!hv_ckpt_read_f32(p->a, p->x, at, len, u, &e))
        hv_ckpt_read_f32(p->b, p->y, at, len, v, &e);
    for (size_t i = 0; !e.code && i < len; i++) {
        const double q = u[i], r = v[i], d = fabs(q - r);
        g->aa += q * q;
        g->bb += r * r;
        g->ab += q * r;
        g->dd += d * d;
        if (!(d <= g->max))
            g->max = d;
    }
    if (e.code)
        keep_first(&p->f, k, &e);
}

static int compare(const struct hv_ckpt *a, const struct hv_ctensor *x, const struct hv_ckpt *b, const struct hv_ctensor *y,
                   struct gap *g, struct hv_err *e)
{
    struct pair p = {.a = a, .b = b, .x = x, .y = y, .n = (size_t)hv_ctensor_count(x)};
    const int64_t chunks = (int64_t)((p.n + CHUNK - 1) / CHUNK);

    *g = (struct gap){0};
    p.part = calloc((size_t)chunks + 1, sizeof *p.part);
    if (!p.part)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", x->name);
    /* One sum a chunk, added up in their order: the same digits for any number of threads. */
    for_chunks(chunks, compare_chunk, &p);
    for (int64_t k = 0; k < chunks; k++) {
        g->aa += p.part[k].aa;
        g->bb += p.part[k].bb;
        g->ab += p.part[k].ab;
        g->dd += p.part[k].dd;
        if (!(p.part[k].max <= g->max))
            g->max = p.part[k].max;
    }
    free(p.part);
    hv_ckpt_forget(a, x);
    hv_ckpt_forget(b, y);
    return p.f.e.code ? hv_fail(e, p.f.e.code, "%s", p.f.e.msg) : 0;
}

static double relative(const struct gap *g)
{
    return g->dd > 0 || isnan(g->dd) ? sqrt(g->dd / g->aa) : 0;
}

static double cosine(const struct gap *g)
{
    return g->aa > 0 && g->bb > 0 ? g->ab / sqrt(g->aa * g->bb) : g->aa == g->bb ? 1 : 0;
}

static void print_name(const char *name)
{
    const int width = hv_print_safe(stdout, name);

    printf("%*s", width < 56 ? 56 - width : 1, "");
}

/* Returns 1 when the tensors differ by more than tol, -1: a failure in e. */
static int diff_tensor(const struct hv_ckpt *a, const struct hv_ctensor *x, const struct hv_ckpt *b, double tol, struct gap *sum,
                       struct hv_err *e)
{
    const struct hv_ctensor *y = hv_ckpt_find(b, x->name);
    char sa[HV_ENTRY_STR], sb[HV_ENTRY_STR];
    struct gap g;

    print_name(x->name);
    if (!y) {
        puts("only in the first");
        return 1;
    }
    if (x->ndim != y->ndim || memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0])) {
        printf("%s, %s\n", shape_text(sa, x->ndim, x->shape), shape_text(sb, y->ndim, y->shape));
        return 1;
    }
    if (compare(a, x, b, y, &g, e))
        return -1;
    sum->aa += g.aa;
    sum->bb += g.bb;
    sum->ab += g.ab;
    sum->dd += g.dd;
    if (!(g.max <= sum->max))
        sum->max = g.max;
    printf("%-7s %-7s  %9.3e  %9.3e  %.9f\n", hv_dtype_name(x->dtype), hv_dtype_name(y->dtype), g.max, relative(&g), cosine(&g));
    return !(relative(&g) <= tol);
}

static int open_resolved(struct hv_ckpt **c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    return hv_ckpt_open(c, &path, 1, o, e) || hv_ckpt_resolve(*c, e) ? e->code : 0;
}

static int diff_files(const char *const path[2], double tol, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    struct hv_ckpt *a = NULL, *b = NULL;
    struct gap sum = {0};
    int rc = open_resolved(&a, path[0], o, e), differ = 0, n = 0;

    if (!rc)
        rc = open_resolved(&b, path[1], o, e);
    if (!rc)
        printf("%-56s%-7s %-7s  %9s  %9s  %s\n", "tensor", "first", "second", "max abs", "relative", "cosine");
    for (int i = 0; !rc && i < hv_ckpt_count(a); i++) {
        const int d = diff_tensor(a, hv_ckpt_at(a, i), b, tol, &sum, e);
        n++;
        differ += d > 0;
        if (d < 0)
            rc = e->code;
    }
    for (int i = 0; !rc && i < hv_ckpt_count(b); i++) {
        const char *name = hv_ckpt_at(b, i)->name;
        if (hv_ckpt_find(a, name))
            continue;
        print_name(name);
        puts("only in the second");
        n++;
        differ++;
    }
    if (!rc) {
        print_name("all that are in both");
        printf("%-7s %-7s  %9.3e  %9.3e  %.9f\n", "", "", sum.max, relative(&sum), cosine(&sum));
    }
    if (!rc && differ)
        rc = hv_fail(e, HV_EDIFF, "%d of %d tensors differ by more than %g", differ, n, tol);
    hv_ckpt_close(a);
    hv_ckpt_close(b);
    return rc;
}

int cmd_diff(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    static double tol;
    static struct hv_ckpt_opts o;
    const struct hv_opt opts[] = {
        {"tol", 0, HV_OPT_REAL, &tol, "R", "relative error that is no difference (default: 0)", 0, 1e30},
        {"key", 0, HV_OPT_STR, &o.key, "KEY", "where a torch archive has its tensors (default: module, model, ..)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "diff A B",
                               "Compares weights of any format: |a - b| / |a| and the cosine of each tensor, with scales.",
                               opts, &c, 2, 2};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "diff", e);
    if (rc)
        return rc;
    use_threads(&c);
    o.script = 1;
    return diff_files(c.operand, tol, &o, e);
}
