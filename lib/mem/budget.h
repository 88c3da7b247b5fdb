/* budget.h - how much of a device a stage may take. */
#ifndef HV_BUDGET_H
#define HV_BUDGET_H

#include "core/cli.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_CONTEXT_MIB 527      /* a CUDA context with its kernels and handles, measured on an H200: assumed where no device says */

int hv_is_cuda(const char *device);                     /* the name of a device: 1 for "cuda", "cuda:N" */

/* What the context takes: as the device says, or assumed. info may be NULL. */
size_t hv_context_bytes(const struct hv_dev_info *info);

/* Bytes for the stage's own plan; 0: no budget. On a GPU the context counts, and what is free now is a budget of itself: without
 * --vram all of it but 512 MiB. info: of the open device; NULL where there is none. HV_EUSAGE: a share of what is not known;
 * HV_ENOMEM: less than the context. */
int hv_device_budget(size_t *budget, const char *device, const struct hv_size *vram, size_t context, const struct hv_dev_info *info,
                     struct hv_err *e);

/* Bytes that the process has taken of the device since `before`, which was asked for right after it was opened, its context too. */
uint64_t hv_bytes_taken(const struct hv_dev_info *before, const struct hv_dev_info *now);

#ifdef __cplusplus
}
#endif
#endif
