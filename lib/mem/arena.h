/* arena.h - one allocation on one device; a tensor for each row of a placed plan.
 *
 *     struct hv_arena *a = NULL;
 *     if (!hv_arena_open(&a, dev, &plan, e))
 *         hv_tensor x = hv_arena_row(a, "x");
 *     hv_arena_close(a);
 *
 * On the dry device the tensors have no data. The arena copies the plan; it borrows the device. */
#ifndef HV_ARENA_H
#define HV_ARENA_H

#include "mem/plan.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_arena;

/* HV_ENOMEM: the device cannot give hv_plan_bytes(plan). */
int  hv_arena_open(struct hv_arena **a, struct hv_dev *d, const struct hv_plan *plan, struct hv_err *e);

/* Where a network puts its activations, and how they are stored. */
struct hv_room {
    hv_dtype  act;                      /* F32 on the cpu; F16 or BF16 too on cuda */
    hv_tensor memory;                   /* HV_BYTES of the device, the plan's or more, which outlive the network; HV_NO: its own */
};

/* The same in room->memory, if there is any; HV_EINPUT: it is too small. */
int  hv_arena_open_in(struct hv_arena **a, struct hv_dev *d, const struct hv_plan *plan, const struct hv_room *room,
                      struct hv_err *e);
void hv_arena_close(struct hv_arena *a);

/* The tensor of a row, whole. An unknown name is an error of the caller (assert). */
hv_tensor hv_arena_row(const struct hv_arena *a, const char *name);

const struct hv_plan *hv_arena_plan(const struct hv_arena *a);

#ifdef __cplusplus
}
#endif
#endif
