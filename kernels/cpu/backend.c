/* backend.c - the CPU's table of operations, its memory and its scratch. */
#define _DEFAULT_SOURCE                 /* MAP_ANONYMOUS */
#include "cpu.h"

#include <stdlib.h>
#include <sys/mman.h>

const struct cpu_simd *cpu_simd(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return &cpu_simd_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        return &cpu_simd_avx2;
    return &cpu_simd_base;
}

static void *map_pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static int cpu_open(struct hv_dev *d, int index, struct hv_err *e)
{
    struct cpu *c = calloc(1, sizeof *c);

    (void)index;
    if (c)
        c->scratch = map_pages((size_t)d->threads * CPU_SCRATCH);
    if (!c || !c->scratch) {
        free(c);
        return hv_fail(e, HV_ENOMEM, "cpu: no memory for the scratch of %d threads", d->threads);
    }
    d->impl = c;
    return 0;
}

static void cpu_close(struct hv_dev *d)
{
    struct cpu *c = d->impl;

    if (c) {
        munmap(c->scratch, (size_t)d->threads * CPU_SCRATCH);
        free(c);
    }
    d->impl = NULL;
}

/* A mapping of its own: pages count when touched, and go back to the system at once. The page in front holds the size. */
#define HEAD 4096

static void *cpu_alloc(struct hv_dev *d, size_t bytes)
{
    size_t *p;

    (void)d;
    if (bytes > SIZE_MAX - HEAD)
        return NULL;
    p = mmap(NULL, bytes + HEAD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    *p = bytes + HEAD;
    return (char *)p + HEAD;
}

static void cpu_free(struct hv_dev *d, void *p)
{
    (void)d;
    if (p) {
        size_t *head = (size_t *)(void *)((char *)p - HEAD);
        munmap(head, *head);
    }
}

static void cpu_sync(struct hv_dev *d)
{
    (void)d;
}

const struct hv_backend hv_backend_cpu = {
    .name = "cpu",
    .kind = HV_HOST,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .sync = cpu_sync,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .gather_rows = cpu_gather_rows,
    .add = cpu_add,
    .activation = cpu_activation,
    .swiglu = cpu_swiglu,
    .linear = cpu_linear,
    .attention = cpu_attention,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .norm_modulate = cpu_norm_modulate,
    .qk_norm_rope = cpu_qk_norm_rope,
    .rope_half = cpu_rope_half,
    .gated_add = cpu_gated_add,
    .masked_add = cpu_masked_add,
    .conv = cpu_conv,
    .group_sums = cpu_group_sums,
    .group_norm = cpu_group_norm,
    .max_pool = cpu_max_pool,
    .upsample2 = cpu_upsample2,
    .patchify = cpu_patchify,
    .unpatchify = cpu_unpatchify,
};
