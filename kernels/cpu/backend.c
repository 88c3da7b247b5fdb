/* backend.c - the CPU's table of operations, its memory, its scratch, and its lanes, which are past when a call returns. */
#define _DEFAULT_SOURCE                 /* MAP_ANONYMOUS */
#include "cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

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

/* ---- lanes ---- */

static int cpu_lock(struct hv_dev *d, const void *p, size_t bytes)
{
    (void)d, (void)p, (void)bytes;
    return 0;
}

static void cpu_unlock(struct hv_dev *d, const void *p)
{
    (void)d, (void)p;
}

static void cpu_move(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                     size_t width, size_t rows)
{
    (void)d, (void)lane;
    for (size_t r = 0; r < rows; r++)
        memcpy((char *)dst + r * dst_pitch, (const char *)src + r * src_pitch, width);
}

/* An event is the time of its record. */
static void *cpu_event_open(struct hv_dev *d)
{
    (void)d;
    return calloc(1, sizeof(struct timespec));
}

static void cpu_event_close(struct hv_dev *d, void *event)
{
    (void)d;
    free(event);
}

static void cpu_event_record(struct hv_dev *d, void *event, enum hv_lane lane)
{
    (void)d, (void)lane;
    clock_gettime(CLOCK_MONOTONIC, event);
}

static void cpu_event_wait(struct hv_dev *d, void *event, enum hv_lane lane)
{
    (void)d, (void)event, (void)lane;
}

static void cpu_event_sync(struct hv_dev *d, void *event)
{
    (void)d, (void)event;
}

static double cpu_elapsed(struct hv_dev *d, void *from, void *to)
{
    const struct timespec *a = from, *b = to;

    (void)d;
    return (double)(b->tv_sec - a->tv_sec) + 1e-9 * (double)(b->tv_nsec - a->tv_nsec);
}

static void cpu_delay(struct hv_dev *d, enum hv_lane lane, double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds};

    (void)d, (void)lane;
    t.tv_nsec = (long)(1e9 * (seconds - (double)t.tv_sec));
    while (nanosleep(&t, &t))           /* a signal: the rest of the time */
        ;
}

/* Bytes that /proc/meminfo counts under a name, 0 where there is none. */
static uint64_t meminfo(const char *name)
{
    FILE *f = fopen("/proc/meminfo", "r");
    unsigned long long kib = 0;
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            kib = strtoull(line + strlen(name), NULL, 10);
    if (f)
        fclose(f);
    return (uint64_t)kib << 10;
}

static int cpu_info(struct hv_dev *d, struct hv_dev_info *info)
{
    (void)d;
    strcpy(info->name, "cpu");
    info->units = omp_get_num_procs();
    info->total = meminfo("MemTotal:");
    info->free = meminfo("MemAvailable:");
    info->map_lock = 1;
    return 0;
}

const struct hv_backend hv_backend_cpu = {
    .name = "cpu",
    .kind = HV_HOST,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .sync = cpu_sync,
    .pin = cpu_alloc,
    .unpin = cpu_free,
    .lock = cpu_lock,
    .unlock = cpu_unlock,
    .move = cpu_move,
    .event_open = cpu_event_open,
    .event_close = cpu_event_close,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_sync = cpu_event_sync,
    .delay = cpu_delay,
    .elapsed = cpu_elapsed,
    .info = cpu_info,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .dequantize = cpu_dequantize,
    .gather_rows = cpu_gather_rows,
    .add = cpu_add,
    .activation = cpu_activation,
    .swiglu = cpu_swiglu,
    .linear = cpu_linear,
    .linears = cpu_linears,
    .attention = cpu_attention,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .row_stats = cpu_row_stats,
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
