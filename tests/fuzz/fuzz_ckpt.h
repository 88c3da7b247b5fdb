/* fuzz_ckpt.h - what the targets of checkpoint formats do with a file: open it, read all its values, understand its scales. */
#ifndef HV_FUZZ_CKPT_H
#define HV_FUZZ_CKPT_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/ckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile float fuzz_sum;

static void fuzz_values(const struct hv_ckpt *c)
{
    float v[300];
    struct hv_err e = {0};

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        const int64_t count = hv_ctensor_count(t);
        /* The start, the end, and something in between; what is expanded may be without end. */
        const int64_t at[] = {0, count > 300 ? count - 300 : 0, count / 2};
        if (count < 0 || !hv_ckpt_find(c, t->name))
            abort();
        for (size_t k = 0; k < sizeof at / sizeof *at && count; k++) {
            const size_t n = count - at[k] < 300 ? (size_t)(count - at[k]) : 300;
            if (!hv_ckpt_read_f32(c, t, (uint64_t)at[k], n, v, &e))
                fuzz_sum += v[0] + v[n - 1];
        }
    }
}

/* The bytes as a file. */
static void fuzz_file(const uint8_t *data, size_t n)
{
    const struct hv_ckpt_opts o = {.script = 1, .alone = 1};
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};
    char path[64];
    const char *const p = path;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    int checked;

    if (fd < 0 || write(fd, data, n) != (ssize_t)n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (!hv_ckpt_open(&c, &p, 1, &o, &e)) {
        fuzz_values(c);
        fuzz_sum += (float)hv_ckpt_digest(c);
        if (hv_ckpt_verify(c, &checked, &e))
            e = (struct hv_err){0};
        if (!hv_ckpt_resolve(c, &e))
            fuzz_values(c);
    } else if (c || !e.code || !*e.msg) {
        abort();                        /* a refusal has a reason */
    }
    hv_ckpt_close(c);
    close(fd);
}

#endif
