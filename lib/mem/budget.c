#include "mem/budget.h"

#include <string.h>

#define MIB ((size_t)1 << 20)

int hv_is_cuda(const char *device)
{
    return !strncmp(device, "cuda", 4);
}

size_t hv_context_bytes(const struct hv_dev_info *info)
{
    return info && info->context ? (size_t)info->context : HV_CONTEXT_MIB * MIB;
}

int hv_device_budget(size_t *budget, const char *device, const struct hv_size *vram, size_t context, const struct hv_dev_info *info,
                     struct hv_err *e)
{
    const uint64_t spare = 512 * MIB;
    uint64_t bytes;

    *budget = 0;
    if (!hv_is_cuda(device) || (!info && vram->kind == HV_SIZE_UNSET)) {
        *budget = hv_is_cuda(device) ? 0 : hv_size_budget(vram);
        return 0;
    }
    if (!info && vram->kind != HV_SIZE_BYTES)
        return hv_fail(e, HV_EUSAGE, "--vram: a share of the free memory needs the device; give a size, as 4G");
    bytes = vram->kind == HV_SIZE_UNSET ? info->free + context - (info->free > 2 * spare ? spare : 0) :
            hv_size_bytes(vram, info ? info->free + context : 0);
    if (info && bytes > info->free + context)
        bytes = info->free + context;
    if (bytes <= context)
        return hv_fail(e, HV_ENOMEM, "plan: budget %.1f MiB; the context alone takes %.1f", (double)bytes / (double)MIB,
                       (double)context / (double)MIB);
    *budget = (size_t)bytes - context;
    return 0;
}

uint64_t hv_bytes_taken(const struct hv_dev_info *before, const struct hv_dev_info *now)
{
    return hv_context_bytes(before) + (before->free > now->free ? before->free - now->free : 0);
}
