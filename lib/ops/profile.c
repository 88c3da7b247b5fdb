#include "ops/profile.h"

#include <stdlib.h>

/* Events in pairs; the list grows, the events are used once. */
struct hv_profile {
    struct { void *from, *to; enum hv_family family; } *pair;
    int                    n, cap;
    struct hv_profile_part part[HV_FAMILIES];
};

int hv_profile_open(struct hv_dev *d, struct hv_err *e)
{
    d->profile = calloc(1, sizeof *d->profile);
    return d->profile ? 0 : hv_fail(e, HV_ENOMEM, "profile: out of memory");
}

void hv_profile_begin(struct hv_dev *d, enum hv_family f, double flops)
{
    struct hv_profile *p = d->profile;
    struct hv_err e = {0};

    if (!p)
        return;
    if (p->n == p->cap) {
        const int cap = p->cap ? 2 * p->cap : 1024;
        void *more = realloc(p->pair, (size_t)cap * sizeof *p->pair);
        if (!more)
            return;
        p->pair = more;
        p->cap = cap;
    }
    p->pair[p->n].family = f;
    p->pair[p->n].from = hv_dev_event(d, &e);
    p->pair[p->n].to = hv_dev_event(d, &e);
    p->part[f].flops += flops;
    p->part[f].calls++;
    if (!e.code)
        hv_dev_record(d, p->pair[p->n].from, HV_LANE_COMPUTE);
}

void hv_profile_end(struct hv_dev *d)
{
    struct hv_profile *p = d->profile;

    if (p && p->n < p->cap && p->pair[p->n].to)
        hv_dev_record(d, p->pair[p->n++].to, HV_LANE_COMPUTE);
}

void hv_profile_read(struct hv_dev *d, struct hv_profile_part part[HV_FAMILIES])
{
    struct hv_profile *p = d->profile;

    for (int i = 0; i < p->n; i++)
        p->part[p->pair[i].family].seconds += hv_dev_elapsed(d, p->pair[i].from, p->pair[i].to);
    for (int f = 0; f < HV_FAMILIES; f++)
        part[f] = p->part[f];
}

void hv_profile_close(struct hv_dev *d)
{
    struct hv_profile *p = d->profile;

    for (int i = 0; p && i < p->n; i++) {
        hv_dev_event_close(d, p->pair[i].from);
        hv_dev_event_close(d, p->pair[i].to);
    }
    if (p)
        free(p->pair);
    free(p);
    d->profile = NULL;
}
