/* plan.c - budgets, and the plan as text or JSON. Nothing here needs weights or a GPU. */
#define _GNU_SOURCE
#include "hv-denoise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static int is_cuda(void)
{
    return !strncmp(o.c.device, "cuda", 4);
}

/* Bytes for the table of the device; 0: no budget. On a GPU its context counts, and what is free now is a budget of itself. */
static int device_budget(size_t *budget, size_t context, const struct hv_dev_info *info, struct hv_err *e)
{
    if (is_cuda())
        return hv_budget_device(budget, &o.vram, context, info, e);
    *budget = hv_size_budget(&o.vram);
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

int fit(struct fitted *f, const struct settings *s, const struct denoise_job *j, const struct hv_dev_info *info, hv_dtype weights,
        struct hv_err *e)
{
    struct dit_budget b = {0};
    struct hv_plan loop = {0};

    memset(f, 0, sizeof *f);
    f->choice = s->choice;
    f->config = j->config;
    denoise_size(&f->size, j);
    if (is_cuda()) {
        dit_for_device(&f->size, &f->choice, &f->machine, j->config, HV_CUDA, info, weights, s->fp8);
        f->context = (info && info->context ? (size_t)info->context : HV_CONTEXT_BYTES) + HV_LATER_BYTES +
                     (f->choice.attention == HV_ATT_CUDNN ? CUDNN_MIB * MIB : 0);
    } else {
        f->choice.resident_blocks = 0;
    }
    denoise_host_rows(&loop, j);
    if (hv_plan_place(&loop, e) || device_budget(&b.device, f->context, info, e))
        return e->code;
    b.machine = f->machine;
    if (is_cuda() && o.ram.kind != HV_SIZE_UNSET)
        b.host = hv_size_budget(&o.ram) > hv_plan_bytes(&loop) ? hv_size_budget(&o.ram) - hv_plan_bytes(&loop) : 1;
    f->device.budget = b.device;
    if (dit_choose(&f->choice, j->config, &f->size, &b, e) || dit_plan(&f->device, &f->host, j->config, &f->size, &f->choice, e))
        return e->code;
    f->seconds = is_cuda() ? dit_seconds(j->config, &f->size, &f->choice, &f->machine) : 0;
    denoise_host_rows(&f->host, j);
    if (o.state)
        hv_plan_add(&f->host, "state", HV_U8, 1, 1, (const int64_t[]){state_bytes(&f->host, j)});
    if (o.preview)
        hv_plan_add(&f->host, "preview", HV_F32, 1, 4, (const int64_t[]){j->config->channels, j->clip.video, j->ref.shape[2], j->ref.shape[3]});
    if (j->voices > 1)
        hv_plan_add(&f->host, "voices", HV_F32, 1, j->sound.ndim, j->sound.shape);     /* one after the other; a single one is mapped */
    f->stream = s->stream;
    if (b.host)                                         /* what is left may be locked for weights */
        f->stream.host_budget = b.host > hv_plan_bytes(&f->host) ? b.host - hv_plan_bytes(&f->host) : 1;
    return hv_plan_place(&f->host, e) ? hv_context(e, "host") : check_ram(&f->device, &f->host, e);
}

const char *choice_text(char *buf, size_t size, const struct fitted *f)
{
    static const char *const tier[] = {"x and o on the device", "x and o on the device", "o on the host", "x and o on the host"};
    const struct dit_choice *k = &f->choice;
    int n = snprintf(buf, size, "groups of %lld heads, chunks of %lld rows (attention) and %lld (mlp)", (long long)k->group,
                     (long long)k->rows_attn, (long long)k->rows_mlp);

    if (!is_cuda() || n < 0 || (size_t)n >= size)
        return buf;
    snprintf(buf + n, size - (size_t)n, "; %s%s, attention %s, weights %s%s, ring %.1f MiB, %lld blocks resident%s", tier[k->tier],
             k->tier == DIT_TIER_X_HOST && k->ahead == DIT_AHEAD_ON ? " (keys made ahead)" : "", hv_attention_name(k->attention),
             hv_dtype_name(f->size.weights), f->size.weights == HV_BF16 ? "" : k->gemm == DIT_GEMM_FUSED ? " as stored" : " widened",
             (double)k->ring_bytes / (double)MIB, (long long)k->resident_blocks,
             k->branches == DIT_BRANCHES_PAIRED ? ", branches block by block" : "");
    return buf;
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

static int open_dry(struct dry *d, const struct denoise_job *j, const struct fitted *f, struct hv_err *e)
{
    struct dit_size s = f->size;
    const int64_t wide = j->config->text_dim > j->config->pooled_dim ? j->config->text_dim : j->config->pooled_dim;
    const int64_t sound = j->config->audio_seq * j->config->audio_layers * j->config->audio_channels;
    const int64_t latents = j->config->channels * s.frames * s.height * s.width, text = s.text_len * wide;
    const int64_t most = latents > text ? latents : text;

    s.full = s.cached = s.texts = s.sound = s.branches = s.windows = s.voices = 1;
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
           dit_open(&d->net, d->dev, d->w, j->config, &s, &f->choice, NULL, e) ? e->code : 0;
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
        } else if (call.moment = i - 1, call.cache = i == 1 ? DIT_SAVE : DIT_LOAD, dit_forward(d->net, &call, 1, DIT_PLAIN, e)) {
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

/* Seconds of the whole loop at a measured rate, and of a full forward. */
static double duration(double *forward, const struct denoise_job *j, const struct counts *c, const struct rate *r)
{
    *forward = (double)c->of[1].flops / r->flops;
    return *forward * (full_forwards(j, 0) + r->cached * full_forwards(j, 1));
}

static void print_duration(const struct denoise_job *j, const struct fitted *f, const struct counts *c)
{
    struct rate r;
    double forward;

    if (!rates_find(&r, f))
        return;
    const double t = duration(&forward, j, c, &r);
    printf("measured: at the rate of --bench on %s, %.3g TFLOP/s, %.3g s a full forward", r.name, r.flops * 1e-12, forward);
    if (t < 120)
        printf(", %.1f s in all\n", t);
    else
        printf(", %.0f h %02.0f min in all\n", floor(t / 3600), floor(fmod(t, 3600) / 60));
}

static void print_text(const struct denoise_job *j, const struct fitted *f, const struct counts *c)
{
    const struct dit_size *s = &f->size;
    const int64_t image = (s->frames + 1) * (s->height / j->config->patch[1]) * (s->width / j->config->patch[2]);
    char text[6 * FLOW_STEPS_MAX];

    printf("hv-denoise plan: device %s, %lld x %lld pixels, %lld frames; windows of %d latent frames: %lld\n", o.c.device,
           (long long)s->width * 8, (long long)s->height * 8, (long long)j->clip.wanted, FLOW_WINDOW, (long long)j->clip.windows);
    printf("rows %lld: image %lld, text %lld; %s\n\n", (long long)(image + s->text_rows), (long long)image, (long long)s->text_rows,
           choice_text(text, sizeof text, f));
    hv_plan_print(&f->device, NULL, stdout);
    if (is_cuda())
        printf("%-16s %-8s %-24s %-10s %14zu %12.1f\n%-16s %-8s %-24s %-10s %14zu %12.1f\n", "context", "", "", "", f->context,
               (double)f->context / (double)MIB, "with context", "", "", "", hv_plan_bytes(&f->device) + f->context,
               (double)(hv_plan_bytes(&f->device) + f->context) / (double)MIB);
    printf("\nhost\n");
    hv_plan_print(&f->host, NULL, stdout);
    printf("\n%d steps, %lld branches: ", j->steps, (long long)s->branches);
    for (int i = 1; i < 3; i++)
        printf("%d %s forwards of %.3f TFLOP, %llu operations%s", full_forwards(j, i == 2), i == 1 ? "full" : "cached",
               (double)c->of[i].flops * 1e-12, (unsigned long long)c->of[i].launches, i == 1 ? "; " : "\n");
    if (j->cache == DENOISE_MAG)
        printf("steps with all blocks: %s; threshold %g\n", steps_text(text, sizeof text, j->full, j->steps), j->threshold);
    if (j->cache == DENOISE_TEA)
        printf("these at most: each window skips all blocks where its input has changed by less than %g\n", j->threshold);
    printf("weights, counted at each use: %.3f GB in a full forward, %.3f GB in a cached one\n", (double)c->of[1].weights * 1e-9,
           (double)c->of[2].weights * 1e-9);
    if (f->seconds > 0)
        printf("predicted: %.2f s a full forward at %.0f TFLOP/s in products and %.0f in attention, %.0f GB/s of bus\n", f->seconds,
               f->machine.gemm * 1e-12, f->machine.attention * 1e-12, f->machine.bus * 1e-9);
    print_duration(j, f, c);
}

/* The device's table is the object; the rest are further keys. */
static void print_json(const struct denoise_job *j, const struct fitted *f, const struct counts *c)
{
    static const char *const tier[] = {"device", "device", "o-host", "x-host"};
    const struct dit_size *s = &f->size;
    const struct dit_choice *k = &f->choice;
    struct rate rate;
    double forward;

    hv_plan_begin_json(&f->device, NULL, stdout);
    printf(",\n\"context_bytes\": %zu, \"width\": %lld, \"height\": %lld, \"frames\": %lld, \"windows\": %lld,\n"
           "\"text_rows\": %lld, \"head_group\": %lld, \"rows_attn\": %lld, \"rows_mlp\": %lld,\n", f->context,
           (long long)s->width * 8, (long long)s->height * 8, (long long)j->clip.wanted, (long long)j->clip.windows,
           (long long)s->text_rows, (long long)k->group, (long long)k->rows_attn, (long long)k->rows_mlp);
    if (is_cuda())
        printf("\"activations\": \"%s\", \"attention\": \"%s\", \"weights_dtype\": \"%s\", \"gemm\": \"%s\", \"ring_bytes\": %lld,\n"
               "\"resident_blocks\": %lld, \"branches\": \"%s\", \"ahead\": %s, \"predicted_seconds\": %.4f,\n", tier[k->tier],
               hv_attention_name(k->attention), hv_dtype_name(s->weights), k->gemm == DIT_GEMM_FUSED ? "fused" : "expand",
               (long long)k->ring_bytes, (long long)k->resident_blocks, k->branches == DIT_BRANCHES_PAIRED ? "paired" : "alone",
               k->tier == DIT_TIER_X_HOST && k->ahead == DIT_AHEAD_ON ? "true" : "false", f->seconds);
    for (int i = 1; i < 3; i++)
        printf("\"%s\": {\"forwards\": %d, \"flops\": %llu, \"operations\": %llu, \"activation_bytes\": %llu, \"weight_bytes\": %llu},\n",
               i == 1 ? "full" : "cached", full_forwards(j, i == 2), (unsigned long long)c->of[i].flops,
               (unsigned long long)c->of[i].launches, (unsigned long long)c->of[i].bytes, (unsigned long long)c->of[i].weights);
    if (rates_find(&rate, f)) {
        const double t = duration(&forward, j, c, &rate);
        printf("\"measured_rate\": %.6g, \"measured_seconds\": %.4f, \"measured_seconds_in_all\": %.1f,\n", rate.flops, forward, t);
    }
    printf("\"host\": ");
    hv_plan_print_json(&f->host, NULL, stdout);
    printf("}\n");
}

int print_plan(const struct denoise_job *j, const struct settings *s, struct hv_err *e)
{
    static struct fitted f;
    struct counts c = {0};
    struct dry d = {0};

    if (!fit(&f, s, j, NULL, s->weights, e) && !open_dry(&d, j, &f, e) && !count(&c, &d, j, &f.size, e)) {
        if (*o.plan)
            print_json(j, &f, &c);
        else
            print_text(j, &f, &c);
    }
    close_dry(&d);
    return e->code;
}
