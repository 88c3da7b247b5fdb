/* hv-tensor stats and diff: numbers about tensors. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hv-tensor.h"
#include "io/listing.h"

#define BUF ((size_t)4096)

/* ---- stats ---- */

struct stats {
    double min, max, sum, squares;
    size_t n, nan, inf;                 /* n: finite elements */
};

static struct stats stats_of(const struct hv_in *in, const struct hv_entry *t)
{
    struct stats s = {.min = INFINITY, .max = -INFINITY};
    const size_t n = entry_count(t), size = hv_dtype_size(t->dtype);
    const char *data = hv_in_data(in, t);
    double buf[BUF];

    for (size_t at = 0; at < n; at += BUF) {
        const size_t k = n - at < BUF ? n - at : BUF;
        double sum = 0, squares = 0;                    /* of a block: long sums keep their digits */
        to_f64(buf, t->dtype, data + at * size, k);
        for (size_t i = 0; i < k; i++) {
            const double v = buf[i];
            s.nan += isnan(v) ? 1 : 0;
            s.inf += isinf(v) ? 1 : 0;
            if (!isfinite(v))
                continue;
            s.min = v < s.min ? v : s.min;
            s.max = v > s.max ? v : s.max;
            sum += v;
            squares += v * v;
            s.n++;
        }
        s.sum += sum;
        s.squares += squares;
    }
    return s;
}

static json_t *stats_json(const struct hv_entry *t, const struct stats *s)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:I}", "name", t->name, "dtype", hv_dtype_name(t->dtype), "elements",
                          (json_int_t)entry_count(t), "nan", (json_int_t)s->nan, "inf", (json_int_t)s->inf);

    if (o && s->n) {
        json_object_set_new(o, "min", json_real(s->min));
        json_object_set_new(o, "max", json_real(s->max));
        json_object_set_new(o, "mean", json_real(s->sum / (double)s->n));
        json_object_set_new(o, "rms", json_real(sqrt(s->squares / (double)s->n)));
    }
    return o;
}

static void stats_line(const struct hv_entry *t, const struct stats *s)
{
    char shape[HV_ENTRY_STR];
    const int width = hv_print_safe(stdout, t->name);

    printf("%*s%-7s %-20s ", width < 28 ? 28 - width : 1, "", hv_dtype_name(t->dtype), hv_entry_shape(t, shape));
    if (s->n)
        printf("%12.5g %12.5g %12.5g %12.5g", s->min, s->max, s->sum / (double)s->n, sqrt(s->squares / (double)s->n));
    else
        printf("%12s %12s %12s %12s", "-", "-", "-", "-");
    printf(" %6zu %6zu\n", s->nan, s->inf);
}

int cmd_stats(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    static struct hv_strs keys;
    static int json;
    const struct hv_opt opts[] = {
        {"key", 0, HV_OPT_LIST, &keys, "NAME", "only this tensor (may be repeated)", 0, 0},
        {"json", 0, HV_OPT_FLAG, &json, NULL, "as JSON", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-tensor", "stats [FILE]",
                               "Smallest, largest, mean and root mean square of each tensor; NaN and Inf are counted apart.",
                               opts, &c, 0, 1};
    struct hv_in *in = NULL;
    json_t *all = NULL;
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "stats", e);
    if (!rc)
        rc = hv_in_open(&in, c.n_operands ? c.operand[0] : "-", e);
    if (!rc)
        rc = all_there(&keys, &in, 1, e);
    if (!rc && json)
        all = json_array();
    else if (!rc)
        printf("%-28s%-7s %-20s %12s %12s %12s %12s %6s %6s\n", "tensor", "dtype", "shape", "min", "max", "mean", "rms", "nan",
               "inf");
    for (int i = 0; !rc && i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        if (!wanted(&keys, t->name))
            continue;
        const struct stats s = stats_of(in, t);
        if (!json)
            stats_line(t, &s);
        else if (json_array_append_new(all, stats_json(t, &s)))
            rc = hv_fail(e, HV_ENOMEM, "out of memory");
    }
    if (!rc && json) {
        json_dumpf(all, stdout, JSON_INDENT(1));
        putchar('\n');
    }
    json_decref(all);
    hv_in_close(in);
    return rc;
}

/* ---- diff ---- */

struct gap {
    double  max, aa, bb, ab, dd;
    int64_t first, worst;               /* elements; -1: none */
};

static struct gap gap_of(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, const struct hv_entry *y)
{
    struct gap g = {.first = -1, .worst = -1};
    const size_t n = entry_count(x);
    double u[BUF], v[BUF];

    for (size_t at = 0; at < n; at += BUF) {
        const size_t k = n - at < BUF ? n - at : BUF;
        double aa = 0, bb = 0, ab = 0, dd = 0;
        to_f64(u, x->dtype, (const char *)hv_in_data(a, x) + at * hv_dtype_size(x->dtype), k);
        to_f64(v, y->dtype, (const char *)hv_in_data(b, y) + at * hv_dtype_size(y->dtype), k);
        for (size_t i = 0; i < k; i++) {
            /* Equal infinities and two NaN are no difference; one NaN is an infinite one. */
            const int same = (isnan(u[i]) && isnan(v[i])) || (isinf(u[i]) && isinf(v[i]) && (u[i] > 0) == (v[i] > 0));
            double d = same ? 0 : fabs(u[i] - v[i]);
            d = isnan(d) ? INFINITY : d;
            if (d > 0 && g.first < 0)
                g.first = (int64_t)(at + i);
            if (d > g.max) {
                g.max = d;
                g.worst = (int64_t)(at + i);
            }
            if (isfinite(u[i]) && isfinite(v[i])) {
                aa += u[i] * u[i];
                bb += v[i] * v[i];
                ab += u[i] * v[i];
                dd += d * d;
            }
        }
        g.aa += aa;
        g.bb += bb;
        g.ab += ab;
        g.dd += dd;
    }
    return g;
}

static int64_t bits_differ(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, const struct hv_entry *y)
{
    return x->dtype == y->dtype && memcmp(hv_in_data(a, x), hv_in_data(b, y), (size_t)(x->end - x->begin));
}

/* One line; 1 when the tensors differ by more than tol. */
static int diff_line(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, double tol)
{
    const struct hv_entry *y = hv_in_find(b, x->name);
    char sa[HV_ENTRY_STR], sb[HV_ENTRY_STR], first[192], worst[192];
    const int width = hv_print_safe(stdout, x->name);

    printf("%*s", width < 28 ? 28 - width : 1, "");
    if (!y) {
        puts("only in the first");
        return 1;
    }
    if (x->ndim != y->ndim || memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0])) {
        printf("shape %s and %s\n", hv_entry_shape(x, sa), hv_entry_shape(y, sb));
        return 1;
    }
    const struct gap g = gap_of(a, x, b, y);
    const double rel = g.dd > 0 ? sqrt(g.dd / g.aa) : 0;
    const double cosine = g.aa > 0 && g.bb > 0 ? g.ab / sqrt(g.aa * g.bb) : g.aa == g.bb ? 1 : 0;
    printf("%10.3e %10.3e %12.9f", g.max, rel, cosine);
    if (g.first >= 0)
        printf("  first %s, worst %s", index_text(x, g.first, first), index_text(x, g.worst, worst));
    else if (x->dtype != y->dtype)
        printf("  equal, as %s and %s", hv_dtype_name(x->dtype), hv_dtype_name(y->dtype));
    else if (bits_differ(a, x, b, y))
        printf("  equal, other bits (-0 or NaN)");
    putchar('\n');
    return !(g.max <= tol);
}

static int diff_files(const char *const *path, const struct hv_strs *keys, double tol, struct hv_err *e)
{
    struct hv_in *in[2] = {NULL, NULL};
    int rc = hv_in_open(&in[0], path[0], e), differ = 0, n = 0;

    if (!rc)
        rc = hv_in_open(&in[1], path[1], e);
    if (!rc)
        rc = all_there(keys, in, 2, e);
    if (!rc)
        printf("%-28s%10s %10s %12s\n", "tensor", "max abs", "relative", "cosine");
    for (int i = 0; !rc && i < hv_in_count(in[0]); i++) {
        if (!wanted(keys, hv_in_entry(in[0], i)->name))
            continue;
        differ += diff_line(in[0], hv_in_entry(in[0], i), in[1], tol);
        n++;
    }
    for (int i = 0; !rc && i < hv_in_count(in[1]); i++) {
        const char *name = hv_in_entry(in[1], i)->name;
        if (hv_in_find(in[0], name) || !wanted(keys, name))
            continue;
        const int width = hv_print_safe(stdout, name);
        printf("%*sonly in the second\n", width < 28 ? 28 - width : 1, "");
        differ++;
        n++;
    }
    if (!rc && differ)
        rc = hv_fail(e, HV_EDIFF, "%d of %d tensors differ by more than %g", differ, n, tol);
    hv_in_close(in[0]);
    hv_in_close(in[1]);
    return rc;
}

int cmd_diff(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    static struct hv_strs keys;
    static double tol;
    const struct hv_opt opts[] = {
        {"tol", 0, HV_OPT_REAL, &tol, "X", "largest absolute difference that is none (default: 0)", 0, 1e300},
        {"key", 0, HV_OPT_LIST, &keys, "NAME", "only this tensor (may be repeated)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-tensor", "diff A B",
                               "Compares tensors by name: max |a - b|, |a - b| / |a| (2-norms), cosine, where.", opts, &c, 2, 2};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "diff", e);
    return rc ? rc : diff_files(c.operand, &keys, tol, e);
}
