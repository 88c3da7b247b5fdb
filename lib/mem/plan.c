#include "mem/plan.h"

#include <stdlib.h>
#include <string.h>

#include "ops/dev.h"

void hv_plan_add(struct hv_plan *p, const char *name, hv_dtype dtype, uint32_t phases, int ndim, const int64_t *shape)
{
    const int64_t count = hv_shape_count(ndim, shape);
    int64_t bytes = 0;

    if (p->n == HV_PLAN_ROWS) {
        hv_fail(&p->fault, HV_EINPUT, "plan: row '%s': more than %d rows", name, HV_PLAN_ROWS);
        return;
    }
    if (hv_plan_find(p, name)) {
        hv_fail(&p->fault, HV_EINPUT, "plan: row '%s' is there twice", name);
        return;
    }
    if (count < 0 || __builtin_mul_overflow(count, (int64_t)hv_dtype_size(dtype), &bytes) ||
        bytes > INT64_MAX - HV_ALIGN) {
        hv_fail(&p->fault, HV_EINPUT, "plan: row '%s': size overflows", name);
        return;
    }
    p->row[p->n++] = (struct hv_plan_row){.name = name, .view = hv_view(NULL, dtype, ndim, shape), .phases = phases,
                                          .bytes = (size_t)bytes};
}

static size_t aligned(size_t n)
{
    return (n + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN;
}

/* Larger rows first; equal ones in the order they were added. */
static int larger_first(const void *a, const void *b)
{
    const struct hv_plan_row *x = *(struct hv_plan_row *const *)a, *y = *(struct hv_plan_row *const *)b;

    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* The lowest offset at which r overlaps none of the n placed rows that live in one of its phases: every such offset is 0 or
 * the end of one of them. */
static size_t first_fit(struct hv_plan_row *const *placed, int n, const struct hv_plan_row *r)
{
    size_t best = SIZE_MAX;

    for (int c = -1; c < n; c++) {
        if (c >= 0 && !(placed[c]->phases & r->phases))
            continue;
        const size_t at = c < 0 ? 0 : placed[c]->offset + aligned(placed[c]->bytes);
        int clear = at < best;
        for (int i = 0; i < n && clear; i++)
            if (placed[i]->phases & r->phases)
                clear = at >= placed[i]->offset + aligned(placed[i]->bytes) || at + aligned(r->bytes) <= placed[i]->offset;
        if (clear)
            best = at;
    }
    return best;
}

/* "x 671, k 671, v 671": the three largest rows, in MiB. */
static const char *largest(struct hv_plan_row *const *sorted, int n, char *buf, size_t size)
{
    int at = 0;

    buf[0] = 0;
    for (int i = 0; i < n && i < 3 && (size_t)at < size; i++)
        at += snprintf(buf + at, size - (size_t)at, "%s%s %.0f", i ? ", " : "", sorted[i]->name,
                       (double)sorted[i]->bytes / 1048576);
    return buf;
}

int hv_plan_place(struct hv_plan *p, struct hv_err *e)
{
    struct hv_plan_row *sorted[HV_PLAN_ROWS];
    char rows[256];

    if (p->fault.code)
        return hv_fail(e, p->fault.code, "%s", p->fault.msg);
    for (int i = 0; i < p->n; i++)
        sorted[i] = &p->row[i];
    qsort(sorted, (size_t)p->n, sizeof *sorted, larger_first);
    p->total = 0;
    for (int i = 0; i < p->n; i++) {
        struct hv_plan_row *r = sorted[i];
        r->offset = first_fit(sorted, i, r);
        if (r->offset + aligned(r->bytes) > p->total)
            p->total = r->offset + aligned(r->bytes);
    }
    if (p->budget && p->total > p->budget)
        return hv_fail(e, HV_ENOMEM, "plan: needs %.1f MiB, budget %.1f MiB; largest: %s", (double)p->total / 1048576,
                       (double)p->budget / 1048576, largest(sorted, p->n, rows, sizeof rows));
    return 0;
}

size_t hv_plan_bytes(const struct hv_plan *p)
{
    return p->total;
}

const struct hv_plan_row *hv_plan_find(const struct hv_plan *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->row[i].name, name))
            return &p->row[i];
    return NULL;
}

void hv_plan_print(const struct hv_plan *p, const struct hv_dev *dev, FILE *f)
{
    char shape[HV_SHAPE_STR];

    fprintf(f, "%-16s %-8s %-24s %-10s %14s %12s\n", "name", "dtype", "shape", "phases", "offset", "MiB");
    for (int i = 0; i < p->n; i++) {
        const struct hv_plan_row *r = &p->row[i];
        fprintf(f, "%-16s %-8s %-24s 0x%-8x %14zu %12.1f\n", r->name, hv_dtype_name(r->view.dtype),
                hv_shape_str(r->view, shape), r->phases, r->offset, (double)r->bytes / 1048576);
    }
    fprintf(f, "%-16s %-8s %-24s %-10s %14zu %12.1f\n", "peak", "", "", "", p->total, (double)p->total / 1048576);
    if (dev && dev->count.launches)
        fprintf(f, "operations %llu, %.3f TFLOP, activations %.2f GB, weights %.2f GB\n",
                (unsigned long long)dev->count.launches, (double)dev->count.flops * 1e-12,
                (double)dev->count.bytes * 1e-9, (double)dev->count.weights * 1e-9);
}

void hv_plan_begin_json(const struct hv_plan *p, const struct hv_dev *dev, FILE *f)
{
    fprintf(f, "{\"rows\": [");
    for (int i = 0; i < p->n; i++) {
        const struct hv_plan_row *r = &p->row[i];
        fprintf(f, "%s\n  {\"name\": \"%s\", \"dtype\": \"%s\", \"shape\": [", i ? "," : "", r->name,
                hv_dtype_name(r->view.dtype));
        for (int k = 0; k < r->view.ndim; k++)
            fprintf(f, "%s%lld", k ? ", " : "", (long long)r->view.shape[k]);
        fprintf(f, "], \"phases\": %u, \"offset\": %zu, \"bytes\": %zu}", r->phases, r->offset, r->bytes);
    }
    fprintf(f, "\n], \"peak_bytes\": %zu", p->total);
    if (dev)
        fprintf(f, ", \"operations\": %llu, \"flops\": %llu, \"activation_bytes\": %llu, \"weight_bytes\": %llu",
                (unsigned long long)dev->count.launches, (unsigned long long)dev->count.flops,
                (unsigned long long)dev->count.bytes, (unsigned long long)dev->count.weights);
}

void hv_plan_print_json(const struct hv_plan *p, const struct hv_dev *dev, FILE *f)
{
    hv_plan_begin_json(p, dev, f);
    fprintf(f, "}\n");
}
