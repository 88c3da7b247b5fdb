/* plan.c - budgets, and the plan as text or JSON. Nothing here needs weights or a GPU. */
#define _GNU_SOURCE
#include "hv-denoise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static int is_cuda(void)
{
    return !strncmp(o.c.device, "cuda", 4);
}

/* Bytes for the table of the device; 0: no budget. On a GPU its context counts. */
static int device_budget(size_t *budget, struct hv_err *e)
{
    const size_t context = is_cuda() ? CONTEXT_MIB * MIB : 0;

    *budget = 0;
    if (o.vram.kind == HV_SIZE_UNSET)
        return 0;
    if (is_cuda() && o.vram.kind != HV_SIZE_BYTES)
        return hv_fail(e, HV_EUSAGE, "--vram: a share of the free memory needs the device; give a size, as 4G");
    const uint64_t bytes = hv_size_budget(&o.vram);
    if (bytes <= context)
        return hv_fail(e, HV_ENOMEM, "plan: budget %.1f MiB; the context alone takes %zu", (double)bytes / (double)MIB, context / MIB);
    *budget = (size_t)bytes - context;
    return 0;
}

static int check_ram(const struct hv_plan *device, const struct hv_plan *host, struct hv_err *e)
{
    const uint64_t budget = hv_size_budget(&o.ram);
    const uint64_t need = hv_plan_bytes(host) + (is_cuda() ? 0 : hv_plan_bytes(device));
    const struct hv_plan_row *first = &host->row[0];

    if (o.ram.kind == HV_SIZE_UNSET || need <= budget)
        return 0;
    for (int i = 1; i < host->n; i++)
        if (host->row[i].bytes > first->bytes)
            first = &host->row[i];
    return hv_fail(e, HV_ENOMEM, "host: needs %.1f MiB, budget %.1f MiB; %s %.1f, largest: %s %.1f", (double)need / (double)MIB,
                   (double)budget / (double)MIB, is_cuda() ? "all of it" : "the device's table",
                   (double)(is_cuda() ? need : hv_plan_bytes(device)) / (double)MIB, first->name,
                   (double)first->bytes / (double)MIB);
}

int fit(struct dit_size *size, struct dit_choice *choice, struct hv_plan *device, struct hv_plan *host,
        const struct denoise_job *j, struct hv_err *e)
{
    size_t budget;

    denoise_size(size, j);
    if (is_cuda()) {
        size->act = HV_BF16;
        size->ring = dit_ring_bytes(j->config);
        size->scratch = (int64_t)(32 * MIB);
    }
    if (device_budget(&budget, e) || dit_choose(choice, j->config, size, budget, e) ||
        dit_plan(device, host, j->config, size, choice, e))
        return e->code;
    denoise_host_rows(host, j);
    return hv_plan_place(host, e) ? hv_context(e, "host") : check_ram(device, host, e);
}

/* ---- going through a forward without data ---- */

struct dry {
    struct hv_dev     *dev;
    struct hv_weights *w;
    struct hv_wlist    list;
    struct dit        *net;
    float             *planes;          /* stand in for every tensor of the host */
    int32_t           *index;
    int64_t           *mask;
};

static int open_dry(struct dry *d, const struct denoise_job *j, const struct dit_size *size, const struct dit_choice *choice,
                    struct hv_err *e)
{
    struct dit_size s = *size;
    const int64_t wide = j->config->text_dim > j->config->pooled_dim ? j->config->text_dim : j->config->pooled_dim;
    const int64_t sound = j->config->audio_seq * j->config->audio_layers * j->config->audio_channels;
    const int64_t latents = j->config->channels * s.frames * s.height * s.width, text = s.text_len * wide;
    const int64_t most = latents > text ? latents : text;

    s.full = s.cached = s.texts = s.sound = s.branches = s.windows = 1;
    s.clip_frames = FLOW_WINDOW;
    dit_weights(&d->list, j->config);
    d->planes = calloc((size_t)(most > sound ? most : sound), sizeof *d->planes);
    d->index = calloc(FLOW_SOUND, sizeof *d->index);
    d->mask = calloc((size_t)s.text_len, sizeof *d->mask);
    if (!d->planes || !d->index || !d->mask)
        return hv_fail(e, HV_ENOMEM, "plan: out of memory");
    for (int64_t i = 0; i < s.text_rows; i++)
        d->mask[i] = 1;
    for (int32_t i = 0; i < FLOW_WINDOW; i++)
        d->index[i] = i;                                /* frames of the clip; rows of sound beyond 0 and 1 are not looked at */
    return hv_dev_open(&d->dev, "dry", 1, e) || hv_weights_open(&d->w, d->dev, NULL, &d->list, e) ||
           dit_open(&d->net, d->dev, d->w, j->config, &s, choice, e) ? e->code : 0;
}

static void close_dry(struct dry *d)
{
    dit_close(d->net);
    hv_weights_close(d->w);
    hv_dev_close(d->dev);
    hv_wlist_close(&d->list);
    free(d->planes);
    free(d->index);
    free(d->mask);
}

/* Counts of preparation, of a full and of a cached forward. */
struct counts {
    struct { uint64_t flops, bytes, launches, weights; } of[3];
};

static int count(struct counts *c, struct dry *d, const struct denoise_job *j, const struct dit_size *s, struct hv_err *e)
{
    const struct dit_config *k = j->config;
    const int64_t shape[4] = {k->channels, s->frames, s->height, s->width};
    const hv_tensor planes = hv_view(d->planes, HV_F32, 4, shape);
    const struct dit_text text = {hv_view(d->planes, HV_F32, 2, (const int64_t[]){s->text_len, k->text_dim}), d->mask,
                                  hv_view(d->planes, HV_F32, 1, &k->pooled_dim)};
    const struct dit_moment moment[2] = {{.t = 1000}, {.t = 500, .cached = 1}};
    static const int32_t silence[FLOW_SOUND];
    struct dit_call call = {.latents = planes, .ref = planes, .mask = d->planes, .sound = silence, .out = planes,
                            .cache = DIT_SAVE, .frame = d->index};

    for (int i = 0; i < 3; i++) {
        memset(&d->dev->count, 0, sizeof d->dev->count);
        if (i == 0) {
            const hv_tensor sound = hv_view(d->planes, HV_F32, 4, (const int64_t[]){1, k->audio_seq, k->audio_layers, k->audio_channels});
            if (dit_sound(d->net, sound, e) || dit_prepare(d->net, &text, 1, moment, 2, &j->fixed, e))
                return e->code;
        } else if (call.moment = i - 1, call.cache = i == 1 ? DIT_SAVE : DIT_LOAD, dit_forward(d->net, &call, e)) {
            return e->code;
        }
        c->of[i].flops = d->dev->count.flops;
        c->of[i].bytes = d->dev->count.bytes;
        c->of[i].launches = d->dev->count.launches;
        c->of[i].weights = d->dev->count.weights;
    }
    return 0;
}

/* ---- printing ---- */

static int full_forwards(const struct denoise_job *j, int cached)
{
    int n = 0;

    for (int i = 0; i < j->steps; i++)
        n += cached ? !j->full[i] : j->full[i];
    return n * (j->guidance > 1 ? 2 : 1) * (int)j->clip.windows;
}

static void print_text(const struct denoise_job *j, const struct dit_size *s, const struct dit_choice *k, const struct hv_plan *device,
                       const struct hv_plan *host, const struct counts *c)
{
    const int64_t image = (s->frames + 1) * (s->height / j->config->patch[1]) * (s->width / j->config->patch[2]);

    printf("hv-denoise plan: device %s, %lld x %lld pixels, %lld frames; windows of %d latent frames: %lld\n", o.c.device,
           (long long)s->width * 8, (long long)s->height * 8, (long long)j->clip.wanted, FLOW_WINDOW, (long long)j->clip.windows);
    printf("rows %lld: image %lld, text %lld; groups of %lld heads, chunks of %lld rows (attention) and %lld (mlp)\n\n",
           (long long)(image + s->text_rows), (long long)image, (long long)s->text_rows, (long long)k->group,
           (long long)k->rows_attn, (long long)k->rows_mlp);
    hv_plan_print(device, NULL, stdout);
    if (is_cuda())
        printf("%-16s %-8s %-24s %-10s %14zu %12.1f\n%-16s %-8s %-24s %-10s %14zu %12.1f\n", "context", "", "", "", CONTEXT_MIB * MIB,
               (double)CONTEXT_MIB, "with context", "", "", "", hv_plan_bytes(device) + CONTEXT_MIB * MIB,
               (double)hv_plan_bytes(device) / (double)MIB + CONTEXT_MIB);
    printf("\nhost\n");
    hv_plan_print(host, NULL, stdout);
    printf("\n%d steps, %lld branches: ", j->steps, (long long)s->branches);
    for (int i = 1; i < 3; i++)
        printf("%d %s forwards of %.3f TFLOP, %llu operations%s", full_forwards(j, i == 2), i == 1 ? "full" : "cached",
               (double)c->of[i].flops * 1e-12, (unsigned long long)c->of[i].launches, i == 1 ? "; " : "\n");
    printf("weights, counted at each use: %.3f GB in a full forward, %.3f GB in a cached one\n", (double)c->of[1].weights * 1e-9,
           (double)c->of[2].weights * 1e-9);
}

/* The device's table is the object; the rest are further keys. */
static int print_json(const struct denoise_job *j, const struct dit_size *s, const struct dit_choice *k, const struct hv_plan *device,
                      const struct hv_plan *host, const struct counts *c, struct hv_err *e)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (f)
        hv_plan_print_json(device, NULL, f);
    if (!f || fclose(f) || !strrchr(text, '}')) {
        free(text);
        return hv_fail(e, HV_ENOMEM, "plan: out of memory");
    }
    *strrchr(text, '}') = 0;
    printf("%s,\n\"context_bytes\": %zu, \"width\": %lld, \"height\": %lld, \"frames\": %lld, \"windows\": %lld,\n"
           "\"text_rows\": %lld, \"head_group\": %lld, \"rows_attn\": %lld, \"rows_mlp\": %lld,\n", text,
           is_cuda() ? CONTEXT_MIB * MIB : 0, (long long)s->width * 8, (long long)s->height * 8, (long long)j->clip.wanted,
           (long long)j->clip.windows, (long long)s->text_rows, (long long)k->group, (long long)k->rows_attn, (long long)k->rows_mlp);
    for (int i = 1; i < 3; i++)
        printf("\"%s\": {\"forwards\": %d, \"flops\": %llu, \"operations\": %llu, \"activation_bytes\": %llu, \"weight_bytes\": %llu},\n",
               i == 1 ? "full" : "cached", full_forwards(j, i == 2), (unsigned long long)c->of[i].flops,
               (unsigned long long)c->of[i].launches, (unsigned long long)c->of[i].bytes, (unsigned long long)c->of[i].weights);
    printf("\"host\": ");
    hv_plan_print_json(host, NULL, stdout);
    printf("}\n");
    free(text);
    return 0;
}

int print_plan(const struct denoise_job *j, const struct settings *settings, struct hv_err *e)
{
    struct hv_plan device = {0}, host = {0};
    struct dit_choice choice = settings->choice;
    struct dit_size size;
    struct counts c = {0};
    struct dry d = {0};

    if (!fit(&size, &choice, &device, &host, j, e) && !open_dry(&d, j, &size, &choice, e) && !count(&c, &d, j, &size, e)) {
        if (*o.plan)
            print_json(j, &size, &choice, &device, &host, &c, e);
        else
            print_text(j, &size, &choice, &device, &host, &c);
    }
    close_dry(&d);
    return e->code;
}
