#include "mem/budget.h"

#define MIB 1048576.0

int hv_budget_device(size_t *budget, const struct hv_size *vram, size_t context, const struct hv_dev_info *info, struct hv_err *e)
{
    const uint64_t spare = (uint64_t)512 << 20, most = info ? info->free + context : 0;
    uint64_t bytes;

    *budget = 0;
    if (!info && vram->kind == HV_SIZE_UNSET)
        return 0;
    if (!info && vram->kind != HV_SIZE_BYTES)
        return hv_fail(e, HV_EUSAGE, "--vram: a share of the free memory needs the device; give a size, as 4G");
    bytes = vram->kind == HV_SIZE_UNSET ? most - (info->free > 2 * spare ? spare : 0) : hv_size_bytes(vram, most);
    if (info && bytes > most)
        bytes = most;
    if (bytes <= context)
        return hv_fail(e, HV_ENOMEM, "plan: budget %.1f MiB; the context alone takes %.1f", (double)bytes / MIB, (double)context / MIB);
    *budget = (size_t)bytes - context;
    return 0;
}

uint64_t hv_budget_taken(size_t context, const struct hv_dev_info *before, const struct hv_dev_info *now)
{
    return (before->context ? before->context : context) + (before->free > now->free ? before->free - now->free : 0);
}
