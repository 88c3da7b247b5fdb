/* wlist.c - the list of a network's weights, and its groups. */
#define _GNU_SOURCE
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem/plan.h"
#include "mem/weights.h"

void hv_wlist_add(struct hv_wlist *l, hv_dtype dtype, enum hv_quant quant, int ndim, const int64_t *shape,
                  const char *fmt, ...)
{
    char *name = NULL;
    va_list ap;

    assert(ndim >= 0 && ndim <= HV_MAX_DIMS);
    va_start(ap, fmt);
    if (vasprintf(&name, fmt, ap) < 0)
        name = NULL;
    va_end(ap);
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
    s->group = l->open ? l->groups - 1 : -1;
    for (int i = 0; i < ndim; i++)
        s->shape[i] = shape[i];
}

void hv_wlist_group(struct hv_wlist *l, const char *fmt, ...)
{
    char *name = NULL;
    va_list ap;

    l->open = 0;
    if (!fmt)
        return;
    va_start(ap, fmt);
    if (vasprintf(&name, fmt, ap) < 0)
        name = NULL;
    va_end(ap);
    assert(!name || hv_wlist_find_group(l, name) < 0);
    if (name && l->groups == l->group_cap) {
        const int cap = l->group_cap ? 2 * l->group_cap : 64;
        char **p = realloc(l->group, (size_t)cap * sizeof *p);
        if (p) {
            l->group = p;
            l->group_cap = cap;
        }
    }
    if (!name || l->groups == l->group_cap) {
        l->fault = 1;
        free(name);
        return;
    }
    l->group[l->groups++] = name;
    l->open = 1;
}

void hv_wlist_split(struct hv_wlist *l, int64_t rows)
{
    if (l->fault)
        return;
    struct hv_wspec *s = &l->w[l->n - 1];
    assert(l->open && s->ndim && rows > 0 && rows < s->shape[0]);
    s->split = rows;
}

void hv_wlist_cycle(struct hv_wlist *l)
{
    l->cycle = l->groups;
}

int hv_wlist_copy(struct hv_wlist *l, const struct hv_wlist *from)
{
    *l = (struct hv_wlist){.cycle = from->cycle, .fault = from->fault};
    if (l->fault || !(l->w = calloc((size_t)from->n + 1, sizeof *l->w)) ||
        !(l->group = calloc((size_t)from->groups + 1, sizeof *l->group)))
        return 1;
    for (; l->n < from->n; l->n++) {
        l->w[l->n] = from->w[l->n];
        if (!(l->w[l->n].name = strdup(from->w[l->n].name)))
            return 1;
    }
    for (; l->groups < from->groups; l->groups++)
        if (!(l->group[l->groups] = strdup(from->group[l->groups])))
            return 1;
    l->cap = l->n;
    l->group_cap = l->groups;
    return 0;
}

void hv_wlist_close(struct hv_wlist *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->w[i].name);
    for (int g = 0; g < l->groups; g++)
        free(l->group[g]);
    free(l->w);
    free(l->group);
    *l = (struct hv_wlist){0};
}

const struct hv_wspec *hv_wlist_find(const struct hv_wlist *l, const char *name)
{
    for (int i = 0; i < l->n; i++)
        if (!strcmp(l->w[i].name, name))
            return &l->w[i];
    return NULL;
}

int hv_wlist_find_group(const struct hv_wlist *l, const char *name)
{
    for (int g = 0; g < l->groups; g++)
        if (!strcmp(l->group[g], name))
            return g;
    return -1;
}

/* ---- sizes ---- */

int64_t hv_wlist_rows(const struct hv_wspec *s, int group, int64_t *first)
{
    const int64_t rows = s->ndim ? s->shape[0] : 1;

    *first = 0;
    if (s->group < 0)
        return 0;
    if (s->group == group)
        return s->split ? s->split : rows;
    if (!s->split || s->group + 1 != group)
        return 0;
    *first = s->split;
    return rows - s->split;
}

static int64_t placed(int64_t at, int64_t bytes, int aligned)
{
    return (aligned ? (at + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN : at) + bytes;
}

int64_t hv_wlist_group_bytes(const struct hv_wlist *l, int group, hv_dtype matrices, int aligned)
{
    const int quantized = matrices == HV_I8 || matrices == HV_F8_E4M3;
    const hv_dtype plain = matrices == HV_NONE || quantized ? HV_BF16 : matrices;
    int64_t sum = 0, first;

    for (int i = 0; i < l->n; i++) {
        const struct hv_wspec *s = &l->w[i];
        const int64_t rows = hv_wlist_rows(s, group, &first);
        const int64_t count = rows ? rows * (hv_shape_count(s->ndim, s->shape) / (s->ndim ? s->shape[0] : 1)) : 0;
        const int narrow = quantized && s->quant == HV_QUANT && s->ndim == 2;
        const hv_dtype t = narrow ? matrices : s->ndim < 2 && s->dtype != HV_BF16 ? HV_F32 : plain;
        if (!rows)
            continue;
        sum = placed(sum, count * (int64_t)hv_dtype_size(t), aligned);
        if (narrow)
            sum = placed(sum, rows * (int64_t)sizeof(float), aligned);
    }
    return placed(sum, 0, aligned);
}

int64_t hv_wlist_largest(const struct hv_wlist *l, int first, hv_dtype matrices)
{
    int64_t largest = 0;

    for (int g = first; g < l->groups; g++) {
        const int64_t bytes = hv_wlist_group_bytes(l, g, matrices, 1);
        largest = bytes > largest ? bytes : largest;
    }
    return largest;
}
