/* plan.h - what a stage keeps on a device, as a table.
 *
 *     struct hv_plan p = {0};
 *     hv_plan_add(&p, "x", HV_BF16, PH_ALL, 2, (int64_t[]){ rows, 3072 });
 *     if (!hv_plan_place(&p, &err))
 *         hv_plan_print(&p, NULL, stdout);             // name, dtype, shape, phases, offset, MiB
 *
 * A row is alive in the phases of its mask. Rows alive together never overlap; others may. A plan holds no memory and
 * needs no device: hv_arena realises it. */
#ifndef HV_PLAN_H
#define HV_PLAN_H

#include <stdio.h>

#include "core/err.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_ALIGN     256        /* every row starts on this many bytes: enough for vector loads and cublasLt */
#define HV_PLAN_ROWS 64

struct hv_dev;

struct hv_plan_row {
    const char *name;
    hv_tensor   view;           /* data is NULL until an arena realises the plan */
    uint32_t    phases;
    size_t      offset, bytes;
};

struct hv_plan {
    struct hv_plan_row row[HV_PLAN_ROWS];
    int                n;
    size_t             budget;  /* 0: none */
    size_t             total;   /* set by hv_plan_place */
    struct hv_err      fault;   /* first fault of hv_plan_add */
};

/* Adds a row. name: unique, borrowed for the life of the plan. shape[ndim] in elements, copied; a row of 0 elements is
 * legal. A fault (duplicate name, size over INT64_MAX, too many rows) is kept and reported by hv_plan_place. */
void hv_plan_add(struct hv_plan *p, const char *name, hv_dtype dtype, uint32_t phases, int ndim, const int64_t *shape);

/* Gives every row an offset; the same rows always get the same offsets.
 * Returns 0, HV_EINPUT for a fault of hv_plan_add, HV_ENOMEM when the total passes p->budget (0: no budget). */
int hv_plan_place(struct hv_plan *p, struct hv_err *e);

/* Writes the table of rows; with a device, also the flops, traffic and launches it has counted. */
void hv_plan_print(const struct hv_plan *p, const struct hv_dev *dev, FILE *f);

/* The same as one JSON object: {"rows": [{"name", "dtype", "shape", "phases", "offset", "bytes"}], "peak_bytes", ..}. */
void hv_plan_print_json(const struct hv_plan *p, const struct hv_dev *dev, FILE *f);

/* All but the object's closing brace: the caller has more to say in it. */
void hv_plan_begin_json(const struct hv_plan *p, const struct hv_dev *dev, FILE *f);

/* Bytes of the arena after placement: the peak over phases, plus what fragmentation costs. */
size_t hv_plan_bytes(const struct hv_plan *p);

/* Row of a name, NULL if there is none. */
const struct hv_plan_row *hv_plan_find(const struct hv_plan *p, const char *name);

#ifdef __cplusplus
}
#endif
#endif
