#include "mem/arena.h"

#include <assert.h>
#include <stdlib.h>

struct hv_arena {
    struct hv_dev *dev;
    struct hv_plan plan;                /* views with their data */
    char          *base;
    int            lent;                /* the memory is another's */
};

int hv_arena_open_in(struct hv_arena **out, struct hv_dev *d, const struct hv_plan *plan, const struct hv_room *room,
                     struct hv_err *e)
{
    struct hv_arena *a = calloc(1, sizeof *a);
    const int lent = room && room->memory.dtype != HV_NONE;

    *out = NULL;
    if (!a)
        return hv_fail(e, HV_ENOMEM, "arena: out of memory");
    a->dev = d;
    a->plan = *plan;
    a->lent = lent;
    if (lent && hv_nbytes(room->memory) < hv_plan_bytes(plan))
        hv_fail(e, HV_EINPUT, "plan: %zu bytes, there are %zu", hv_plan_bytes(plan), hv_nbytes(room->memory));
    else if (!lent && !(a->base = hv_dev_alloc(d, hv_plan_bytes(plan), e)))
        hv_context(e, "plan");
    if (e->code) {
        free(a);
        return e->code;
    }
    if (lent)
        a->base = room->memory.data;
    for (int i = 0; i < a->plan.n; i++) {
        struct hv_plan_row *r = &a->plan.row[i];
        r->view.dev = (uint8_t)d->kind;
        r->view.data = d->kind == HV_DRY ? NULL : a->base + r->offset;
    }
    *out = a;
    return 0;
}

int hv_arena_open(struct hv_arena **a, struct hv_dev *d, const struct hv_plan *plan, struct hv_err *e)
{
    return hv_arena_open_in(a, d, plan, NULL, e);
}

void hv_arena_close(struct hv_arena *a)
{
    if (!a)
        return;
    if (!a->lent)
        hv_dev_free(a->dev, a->base);
    free(a);
}

hv_tensor hv_arena_row(const struct hv_arena *a, const char *name)
{
    const struct hv_plan_row *r = hv_plan_find(&a->plan, name);

    assert(r);
    return r->view;
}

const struct hv_plan *hv_arena_plan(const struct hv_arena *a)
{
    return &a->plan;
}
