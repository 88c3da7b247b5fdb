/* bench_preview - what a preview costs at 768x704, 33 latent frames, in processor milliseconds: of the render's thread, which copies the
 * clip, extrapolates it and copies the result (lib/model/denoise.c, tools/hv-denoise/preview.c), and of the thread that draws. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "io/preview.h"

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

int main(void)
{
    const int64_t shape[4] = {16, 33, 88, 96}, n = hv_shape_count(4, shape);
    float *clip = malloc((size_t)n * sizeof *clip), *clean = malloc((size_t)n * sizeof *clean), *copy = malloc((size_t)n * sizeof *copy);
    double loop[5], drawn[5];
    struct hv_preview_map m;
    struct hv_err e = {0};
    char path[64];

    if (!clip || !clean || !copy || hv_preview_map(&m, NULL, shape[0], &e))
        return 1;
    snprintf(path, sizeof path, "/tmp/hv-bench-preview-%ld.png", (long)getpid());
    for (int64_t i = 0; i < n; i++)
        clip[i] = (float)(i * 7919 % 2001 - 1000) / 500;
    for (int r = 0; r < 5 && !e.code; r++) {
        struct hv_image im = {0};
        double t = now();
        memcpy(clean, clip, (size_t)n * sizeof *clean);
        for (int64_t i = 0; i < n; i++)
            clean[i] = clip[i] - 0.3f * (clip[i] - clean[i]);
        memcpy(copy, clean, (size_t)n * sizeof *copy);
        loop[r] = now() - t;
        t = now();
        if (!hv_preview_sheet(&im, &m, hv_view(copy, HV_F32, 4, shape), &(struct hv_preview_sheet){.count = 36, .note = "10/50"}, &e))
            hv_image_write_png(&im, path, &e);
        drawn[r] = now() - t;
        hv_image_close(&im);
    }
    unlink(path);
    if (e.code) {
        fprintf(stderr, "bench_preview: %s\n", e.msg);
        return e.code;
    }
    for (int r = 1; r < 5; r++) {                       /* the first one touches new memory */
        loop[1] = loop[r] < loop[1] ? loop[r] : loop[1];
        drawn[1] = drawn[r] < drawn[1] ? drawn[r] : drawn[1];
    }
    printf("preview of 33 latent frames of 96 x 88: %.1f ms of the render's thread, %.1f ms of another's\n", loop[1], drawn[1]);
    free(clip);
    free(clean);
    free(copy);
    return 0;
}
