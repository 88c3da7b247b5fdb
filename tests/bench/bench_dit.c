/* bench_dit - times a forward of the diffusion transformer on the cpu device, as a ratio of OpenBLAS's sgemm in the same run, same
 * threads: hidden 1536, 12 heads, 2 double and 2 single blocks, one adapter, 2300 rows (33 latent frames of 16 x 16, 124 text).
 *
 *     bench_dit [--threads N] [--repeat N] [--group N] [--rows N]         0 threads: all processors
 *
 * TSV to stdout: op, shape, dtype, ms (the fastest run), GB/s of tensors read and written once, Gflop/s, fraction of sgemm.
 * Flops are those that ops.c counts. Preparation (modulation, text, sound) is a line of its own. */
#define _POSIX_C_SOURCE 200809L
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/json.h"
#include "mem/synth.h"
#include "model/dit.h"

#define TEXT   124
#define FRAMES 33
#define SIDE   16
#define SOUND  (4 * FRAMES - 3)

static const char *const config =
    "{\"hidden_size\": 1536, \"num_heads\": 12, \"depth_double_blocks\": 2, \"depth_single_blocks\": 2, \"text_states_dim\": 256,"
    "\"audio_channels\": 64, \"audio_intermediate_dim\": 256, \"audio_adapter_dim\": 512, \"double_stream_list\": [1]}";

static struct hv_dev *dev;
static double sgemm_gflops;
static int repeat = 3;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *numbers(const char *name, size_t n)
{
    float *p = malloc(n * sizeof *p);

    if (!p) {
        fprintf(stderr, "bench_dit: out of memory\n");
        exit(HV_ENOMEM);
    }
    hv_synth_activation(p, name, 1, n);
    return p;
}

static void line(const char *op, const char *shape, double s, double bytes, double flops)
{
    printf("%s\t%s\tF32\t%.3f\t%.2f\t%.2f\t%.3f\n", op, shape, 1e3 * s, 1e-9 * bytes / s, 1e-9 * flops / s,
           1e-9 * flops / s / sgemm_gflops);
    fflush(stdout);
}

/* A square product, large enough that it runs at its best. */
static void sgemm(void)
{
    const int n = 2304;
    float *a = numbers("a", (size_t)n * (size_t)n), *b = numbers("b", (size_t)n * (size_t)n), *c = numbers("c", (size_t)n * (size_t)n);
    double best = 1e30;

    openblas_set_num_threads(dev->threads);
    for (int i = 0; i <= repeat; i++) {
        const double t = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, n, 1, a, n, b, n, 0, c, n);
        if (i && now() - t < best)
            best = now() - t;
    }
    openblas_set_num_threads(1);
    sgemm_gflops = 2e-9 * n * n * (double)n / best;
    line("sgemm", "2304x2304x2304", best, 12.0 * n * n, 2.0 * n * n * (double)n);
    free(a);
    free(b);
    free(c);
}

struct bench {
    struct dit_config c;
    struct dit_size   s;
    struct dit_choice choice;
    struct dit       *net;
    float            *planes[3], *states, *pooled, *sound, *face;
    int64_t           mask[TEXT];
    int32_t           index[SOUND];
};

static int prepare(struct bench *b, struct hv_err *e)
{
    const struct dit_text text = {hv_view(b->states, HV_F32, 2, (const int64_t[]){TEXT, b->c.text_dim}), b->mask,
                                  hv_view(b->pooled, HV_F32, 1, &b->c.pooled_dim)};
    const struct dit_moment moment[2] = {{.t = 900}, {.t = 500, .cached = 1}};
    const struct dit_fixed fixed = {{30, 30, 30, 30}, {25, 25, 25, 25}, 25, 0};
    const int64_t sound[4] = {SOUND, b->c.audio_seq, b->c.audio_layers, b->c.audio_channels};
    double best = 1e30, flops = 0, bytes = 0;

    for (int i = 0; i <= repeat; i++) {
        memset(&dev->count, 0, sizeof dev->count);
        const double t = now();
        if (dit_sound(b->net, hv_view(b->sound, HV_F32, 4, sound), e) || dit_prepare(b->net, &text, 1, moment, 2, &fixed, e))
            return e->code;
        if (i && now() - t < best)
            best = now() - t;
        flops = (double)dev->count.flops;
        bytes = (double)(dev->count.bytes + dev->count.weights);
    }
    line("dit prepare", "2 moments, 129 rows of sound", best, bytes, flops);
    return 0;
}

static int forward(struct bench *b, int cached, struct hv_err *e)
{
    const int64_t planes[4] = {b->c.channels, FRAMES, SIDE, SIDE};
    struct dit_call call = {.moment = cached, .latents = hv_view(b->planes[0], HV_F32, 4, planes),
                            .ref = hv_view(b->planes[1], HV_F32, 4, planes), .mask = b->face, .sound = b->index,
                            .out = hv_view(b->planes[2], HV_F32, 4, planes), .cache = cached ? DIT_LOAD : DIT_SAVE,
                            .frame = b->index};
    double best = 1e30, flops = 0, bytes = 0;

    for (int i = 0; i <= repeat; i++) {
        memset(&dev->count, 0, sizeof dev->count);
        const double t = now();
        if (dit_forward(b->net, &call, 1, DIT_PLAIN, e))
            return e->code;
        if (i && now() - t < best)
            best = now() - t;
        flops = (double)dev->count.flops;
        bytes = (double)(dev->count.bytes + dev->count.weights);
    }
    line(cached ? "dit cached forward" : "dit forward", "2300x1536, 12 heads, 2+2 blocks", best, bytes, flops);
    return 0;
}

static int run(struct bench *b, struct hv_err *e)
{
    const size_t planes = 16 * FRAMES * SIDE * SIDE;
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;

    b->s = (struct dit_size){.frames = FRAMES, .height = SIDE, .width = SIDE, .texts = 1, .text_len = TEXT, .text_rows = TEXT,
                             .full = 1, .cached = 1, .sound = SOUND, .clip_frames = FRAMES, .windows = 1, .branches = 1,
                             .act = HV_F32};
    for (int i = 0; i < 3; i++)
        b->planes[i] = numbers("planes", planes);
    b->states = numbers("states", (size_t)(TEXT * b->c.text_dim));
    b->pooled = numbers("pooled", (size_t)b->c.pooled_dim);
    b->sound = numbers("sound", (size_t)(SOUND * b->c.audio_seq * b->c.audio_layers * b->c.audio_channels));
    b->face = numbers("face", planes);
    for (int i = 0; i < TEXT; i++)
        b->mask[i] = 1;
    for (int i = 0; i < SOUND; i++)
        b->index[i] = i;
    dit_weights(&list, &b->c);
    if (!hv_weights_open_synth(&w, dev, &list, &(struct hv_synth_opts){.seed = 1}, e) &&
        !dit_choose(&b->choice, &b->c, &b->s, NULL, e) && !dit_open(&b->net, dev, w, &b->c, &b->s, &b->choice, NULL, e) && !prepare(b, e) &&
        !forward(b, 0, e))
        forward(b, 1, e);
    dit_close(b->net);
    hv_weights_close(w);
    hv_wlist_close(&list);
    for (int i = 0; i < 3; i++)
        free(b->planes[i]);
    free(b->states);
    free(b->pooled);
    free(b->sound);
    free(b->face);
    return e->code;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct hv_err e = {0};
    json_t *root = NULL;
    int threads = 0;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--threads"))
            threads = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--repeat"))
            repeat = atoi(argv[i + 1]) > 0 ? atoi(argv[i + 1]) : 1;
        else if (!strcmp(argv[i], "--group"))
            b.choice.group = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--rows"))
            b.choice.rows_attn = b.choice.rows_mlp = atoi(argv[i + 1]);
    }
    if (!hv_json_parse(&root, config, strlen(config), 8, &e) && !dit_config_parse(&b.c, root, &e) &&
        !hv_dev_open(&dev, "cpu", threads, &e)) {
        printf("# %d threads, OpenBLAS %s\nop\tshape\tdtype\tms\tGB/s\tGflop/s\tof_sgemm\n", dev->threads, openblas_get_corename());
        sgemm();
        run(&b, &e);
    }
    hv_dev_close(dev);
    json_decref(root);
    if (e.code)
        fprintf(stderr, "bench_dit: %s\n", e.msg);
    return e.code;
}
