/* hv-weights diff: how far two packed files are apart, tensor by tensor, quantized matrices as what they stand for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-weights.h"
#include "io/listing.h"

struct gap {
    double aa, bb, ab, dd, max;
};

/* A scale belongs to its matrix; padding to nobody. */
static int is_part(const struct hv_in *in, const struct hv_entry *t)
{
    const size_t n = strlen(t->name);
    char base[1024];

    if (is_padding(t->name))
        return 1;
    if (n <= 6 || strcmp(t->name + n - 6, ".scale"))
        return 0;
    snprintf(base, sizeof base, "%.*s", (int)(n - 6), t->name);
    const struct hv_entry *owner = hv_in_find(in, base);
    return owner && scale_of(in, owner) == t;
}

static int is_bf16(const struct hv_in *in)
{
    const char *deq = hv_in_meta(in, "hv.deq");

    return deq && !strcmp(deq, "bf16");
}

static int compare(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, const struct hv_entry *y,
                   struct gap *g)
{
    const size_t n = (size_t)(x->end - x->begin) / hv_dtype_size(x->dtype);
    const int64_t chunks = (int64_t)((n + CHUNK - 1) / CHUNK);
    struct gap *part = calloc((size_t)chunks + 1, sizeof *part);
    int memory = !part;

    /* One sum a chunk, added up in their order: the same digits for any number of threads. */
#pragma omp parallel for schedule(dynamic) if (chunks > 1)
    for (int64_t k = 0; k < chunks; k++) {
        const size_t at = (size_t)k * CHUNK, len = n - at < CHUNK ? n - at : CHUNK;
        float *u = malloc(2 * CHUNK * sizeof *u);
        if (!u || !part) {
#pragma omp atomic write
            memory = 1;
            free(u);
            continue;
        }
        float *v = u + CHUNK;
        load_f32(u, a, x, scale_of(a, x), is_bf16(a), at, len);
        load_f32(v, b, y, scale_of(b, y), is_bf16(b), at, len);
        for (size_t i = 0; i < len; i++) {
            const double p = u[i], q = v[i], d = fabs(p - q);
            part[k].aa += p * p;
            part[k].bb += q * q;
            part[k].ab += p * q;
            part[k].dd += d * d;
            if (!(d <= part[k].max))
                part[k].max = d;
        }
        free(u);
    }
    *g = (struct gap){0};
    for (int64_t k = 0; k < chunks && !memory; k++) {
        g->aa += part[k].aa;
        g->bb += part[k].bb;
        g->ab += part[k].ab;
        g->dd += part[k].dd;
        if (!(part[k].max <= g->max))
            g->max = part[k].max;
    }
    free(part);
    return memory;
}

static void print_name(const char *name)
{
    const int width = hv_print_safe(stdout, name);

    printf("%*s", width < 56 ? 56 - width : 1, "");
}

/* Returns 1 when the tensors differ by more than tol, -1: out of memory. */
static int diff_tensor(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, double tol)
{
    const struct hv_entry *y = hv_in_find(b, x->name);
    char sa[HV_ENTRY_STR], sb[HV_ENTRY_STR];
    struct gap g;

    print_name(x->name);
    if (!y) {
        puts("only in the first");
        return 1;
    }
    if (x->ndim != y->ndim || memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0])) {
        printf("%s, %s\n", hv_entry_shape(x, sa), hv_entry_shape(y, sb));
        return 1;
    }
    if (compare(a, x, b, y, &g))
        return -1;
    const double rel = g.dd > 0 || isnan(g.dd) ? sqrt(g.dd / g.aa) : 0;
    const double cosine = g.aa > 0 && g.bb > 0 ? g.ab / sqrt(g.aa * g.bb) : g.aa == g.bb ? 1 : 0;
    printf("%-7s %-7s  %9.3e  %9.3e  %.9f\n", hv_dtype_name(x->dtype), hv_dtype_name(y->dtype), g.max, rel, cosine);
    return !(rel <= tol);
}

static int diff_files(const char *const path[2], double tol, struct hv_err *e)
{
    struct hv_in *a = NULL, *b = NULL;
    int rc = hv_in_open(&a, path[0], e), differ = 0, n = 0;

    if (!rc)
        rc = hv_in_open(&b, path[1], e);
    if (!rc)
        printf("%-56s%-7s %-7s  %9s  %9s  %s\n", "tensor", "first", "second", "max abs", "relative", "cosine");
    for (int i = 0; !rc && i < hv_in_count(a); i++) {
        const struct hv_entry *x = hv_in_entry(a, i);
        if (is_part(a, x))
            continue;
        const int d = diff_tensor(a, x, b, tol);
        n++;
        differ += d > 0;
        if (d < 0)
            rc = hv_fail(e, HV_ENOMEM, "%s: out of memory", x->name);
    }
    for (int i = 0; !rc && i < hv_in_count(b); i++) {
        const struct hv_entry *y = hv_in_entry(b, i);
        if (is_part(b, y) || hv_in_find(a, y->name))
            continue;
        print_name(y->name);
        puts("only in the second");
        n++;
        differ++;
    }
    if (!rc && differ)
        rc = hv_fail(e, HV_EDIFF, "%d of %d tensors differ by more than %g", differ, n, tol);
    hv_in_close(a);
    hv_in_close(b);
    return rc;
}

int cmd_diff(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    static double tol;
    const struct hv_opt opts[] = {
        {"tol", 0, HV_OPT_REAL, &tol, "R", "relative error that is no difference (default: 0)", 0, 1e30}, {0}
    };
    const struct hv_cli cli = {"hv-weights", "diff A B",
                               "Compares packed weights: |a - b| / |a| and the cosine of each tensor, scales multiplied in.",
                               opts, &c, 2, 2};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "diff", e);
    if (rc)
        return rc;
    use_threads(&c);
    return diff_files(c.operand, tol, e);
}
