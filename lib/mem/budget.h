/* budget.h - what a stage may take of a device, and what it has taken.
 *
 *     hv_dev_info(dev, &before, e);                                    // right after it was opened
 *     if (!hv_budget_device(&plan.budget, &o.vram, context, &before, e)) ... hv_plan_place(&plan, e) ...
 *     hv_dev_info(dev, &now, e);
 *     hv_budget_taken(context, &before, &now);
 *
 * A GPU's context counts: a budget is for all that the process takes. */
#ifndef HV_BUDGET_H
#define HV_BUDGET_H

#include "core/cli.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_CONTEXT_BYTES ((size_t)527 << 20)    /* a CUDA context with its kernels and handles, measured on an H200: assumed where no device says */
#define HV_LATER_BYTES   ((size_t)5 << 20)      /* kernels of cuBLASLt that are loaded when they are first wanted; measured there too */

/* Bytes for a GPU's plan without its context: of --vram, or all that is free but half a GiB; at most what is free. info: of the device;
 * NULL: none is there, and 0, no budget, where vram is unset. HV_EUSAGE: a share of what is free, but no device; HV_ENOMEM: the
 * context alone takes more. */
int hv_budget_device(size_t *budget, const struct hv_size *vram, size_t context, const struct hv_dev_info *info, struct hv_err *e);

/* What the process has taken: its context, as measured or else as given, and what is free less since. */
uint64_t hv_budget_taken(size_t context, const struct hv_dev_info *before, const struct hv_dev_info *now);

#ifdef __cplusplus
}
#endif
#endif
