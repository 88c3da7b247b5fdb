/* bench.c - times forwards at a size with synthetic weights: whole, then once more by parts. */
#include "hv-denoise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/dtype.h"
#include "ops/profile.h"

#define MIB 1048576.0

struct run {
    const struct denoise_job *j;
    struct hv_dev     *dev;
    struct hv_weights *w;
    struct hv_wlist    list;
    struct dit        *net;
    struct fitted      f;
    struct hv_dev_info before, after;
    float             *latents, *ref, *face, *out[DIT_CALLS];
    int32_t           *sound, *frame;
};

struct result {
    double full, cached, copied;                        /* seconds; bytes of weights in a full forward */
    double flops, wait;
    struct hv_profile_part part[HV_FAMILIES];
    enum hv_stream_mode mode;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *numbers(size_t n, float size)
{
    float *p = malloc((n + 1) * sizeof *p);
    uint32_t seed = 1;

    for (size_t i = 0; p && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = size * ((float)(seed >> 8) * 0x1p-23f - 1);
    }
    return p;
}

static int make_inputs(struct run *r, struct hv_err *e)
{
    const struct dit_size *s = &r->f.size;
    const size_t planes = (size_t)(r->j->config->channels * s->frames * s->height * s->width);

    r->latents = numbers(planes, 1);
    r->ref = numbers(planes, 1);
    r->face = numbers(planes, 1);
    r->sound = calloc((size_t)(4 * s->frames), sizeof *r->sound);
    r->frame = calloc((size_t)s->frames, sizeof *r->frame);
    for (int b = 0; b < DIT_CALLS; b++)
        r->out[b] = numbers(planes, 1);
    if (!r->latents || !r->ref || !r->face || !r->sound || !r->frame || !r->out[0] || !r->out[1])
        return hv_fail(e, HV_ENOMEM, "bench: out of memory");
    for (int64_t i = 0; i < s->frames; i++)
        r->frame[i] = (int32_t)(i % s->clip_frames);
    return 0;
}

/* Forwards of all branches; seconds of one branch. */
static int forward(struct run *r, enum dit_cache cache, enum dit_cache next, double *seconds, struct hv_err *e)
{
    const struct dit_size *s = &r->f.size;
    const int64_t shape[4] = {r->j->config->channels, s->frames, s->height, s->width};
    const int n = (int)s->branches;
    struct dit_call call[DIT_CALLS];

    for (int b = 0; b < n; b++)
        call[b] = (struct dit_call){.moment = cache == DIT_LOAD, .latents = hv_view(r->latents, HV_F32, 4, shape),
                                    .ref = hv_view(r->ref, HV_F32, 4, shape), .mask = r->face, .sound = r->sound,
                                    .out = hv_view(r->out[b], HV_F32, 4, shape), .cache = cache, .branch = b, .frame = r->frame};
    const double t = now();
    if (dit_forward(r->net, call, n, next, e))
        return e->code;
    *seconds = (now() - t) / n;
    return 0;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static int measure(struct run *r, struct result *x, struct hv_err *e)
{
    double t[1000], ignored;
    struct hv_stream_stats from, to;

    if (forward(r, DIT_SAVE, DIT_PLAIN, &ignored, e))                   /* plans of products and attention are made here */
        return e->code;
    hv_weights_stats(r->w, &from);
    memset(&r->dev->count, 0, sizeof r->dev->count);
    for (int i = 0; i < (int)o.repeat; i++)
        if (forward(r, DIT_SAVE, i + 1 < (int)o.repeat ? DIT_PLAIN : DIT_LOAD, &t[i], e))
            return e->code;
    hv_weights_stats(r->w, &to);
    const double n = (double)o.repeat * (double)r->f.size.branches;
    qsort(t, (size_t)o.repeat, sizeof *t, by_size);
    x->full = t[o.repeat / 2];
    x->copied = (double)(to.bytes - from.bytes) / n;
    x->wait = (to.wait - from.wait) / n;
    x->mode = to.mode;
    x->flops = (double)r->dev->count.flops / n;
    if (forward(r, DIT_LOAD, DIT_LOAD, &ignored, e))
        return e->code;
    for (int i = 0; i < (int)o.repeat; i++)
        if (forward(r, DIT_LOAD, DIT_LOAD, &t[i], e))
            return e->code;
    qsort(t, (size_t)o.repeat, sizeof *t, by_size);
    x->cached = t[o.repeat / 2];
    if (hv_dev_info(r->dev, &r->after, e) || hv_profile_open(r->dev, e))
        return e->code;
    if (!forward(r, DIT_PLAIN, DIT_PLAIN, &ignored, e))
        hv_profile_read(r->dev, x->part);
    hv_profile_close(r->dev);
    return e->code;
}

static void print_text(const struct run *r, const struct result *x)
{
    static const char *const part[HV_FAMILIES] = {"products", "attention", "widening of weights"};
    const double n = (double)r->f.size.branches, whole = (double)(hv_plan_bytes(&r->f.device) + r->f.context) / MIB;
    double known = 0;
    char text[400];

    printf("%s; %lld x %lld, %lld latent frames, %lld rows\n%s\n", r->after.name[0] ? r->after.name : o.c.device,
           (long long)r->f.size.width * 8, (long long)r->f.size.height * 8, (long long)r->f.size.frames,
           (long long)((r->f.size.frames + 1) * (r->f.size.height / 2) * (r->f.size.width / 2) + r->f.size.text_rows),
           choice_text(text, sizeof text, &r->f));
    printf("full forward      %8.3f s  %7.1f TFLOP/s   predicted %.3f s\n", x->full, x->flops / x->full * 1e-12, r->f.seconds);
    printf("cached forward    %8.3f s  %7.2f %% of a full one\n", x->cached, 100 * x->cached / x->full);
    for (int f = 0; f < HV_FAMILIES; f++) {
        known += x->part[f].seconds / n;
        if (x->part[f].calls)
            printf("  %-20s %7.3f s  %7.1f TFLOP/s  %llu calls\n", part[f], x->part[f].seconds / n,
                   x->part[f].flops / x->part[f].seconds * 1e-12, (unsigned long long)(x->part[f].calls / (uint64_t)n));
    }
    printf("  %-20s %7.3f s\n", "the rest", x->full - known);
    printf("weights streamed  %8.3f GB a forward (%s), host waited %.3f s\n", x->copied * 1e-9, hv_stream_mode_name(x->mode), x->wait);
    if (r->dev->kind == HV_CUDA)
        printf("memory            %8.1f MiB measured, %.1f predicted, %.1f of them context%s\n",
               (double)measured_bytes(&r->f, &r->before, &r->after) / MIB, whole, (double)r->f.context / MIB,
               r->before.context ? "" : " (assumed)");
}

static void print_json(const struct run *r, const struct result *x)
{
    static const char *const part[HV_FAMILIES] = {"products", "attention", "widening"}, *const tier[] = {"device", "device", "o-host", "x-host"};
    const double n = (double)r->f.size.branches;
    const struct dit_choice *k = &r->f.choice;

    printf("{\"device\": \"%s\", \"width\": %lld, \"height\": %lld, \"latent_frames\": %lld, \"text_rows\": %lld, \"branches\": %lld,\n",
           r->after.name, (long long)r->f.size.width * 8, (long long)r->f.size.height * 8, (long long)r->f.size.frames,
           (long long)r->f.size.text_rows, (long long)r->f.size.branches);
    printf("\"weights_dtype\": \"%s\", \"activations\": \"%s\", \"attention\": \"%s\", \"gemm\": \"%s\", \"head_group\": %lld, \"rows_attn\": %lld, "
           "\"rows_mlp\": %lld,\n\"ring_bytes\": %lld, \"resident_blocks\": %lld, \"paired\": %d, \"ahead\": %d, \"stream\": \"%s\",\n",
           hv_dtype_name(r->f.size.weights), tier[k->tier], hv_attention_name(k->attention),
           r->dev->fp8 ? "fp8" : k->gemm == DIT_GEMM_FUSED ? "fused" : "expand", (long long)k->group, (long long)k->rows_attn,
           (long long)k->rows_mlp, (long long)k->ring_bytes, (long long)k->resident_blocks, k->branches == DIT_BRANCHES_PAIRED,
           k->tier == DIT_TIER_X_HOST && k->ahead == DIT_AHEAD_ON, hv_stream_mode_name(x->mode));
    printf("\"seconds\": %.4f, \"cached_seconds\": %.4f, \"predicted_seconds\": %.4f, \"flops\": %.6g, \"streamed_bytes\": %.0f, \"wait_seconds\": %.4f,\n",
           x->full, x->cached, r->f.seconds, x->flops, x->copied, x->wait);
    printf("\"parts\": {");
    for (int f = 0; f < HV_FAMILIES; f++)
        printf("%s\"%s\": {\"seconds\": %.4f, \"flops\": %.6g, \"calls\": %llu}", f ? ", " : "", part[f], x->part[f].seconds / n,
               x->part[f].flops / n, (unsigned long long)(x->part[f].calls / (uint64_t)n));
    printf("},\n");
    printf("\"measured_bytes\": %llu, \"predicted_bytes\": %llu, \"context_bytes\": %llu, \"context_measured\": %s}\n",
           (unsigned long long)measured_bytes(&r->f, &r->before, &r->after),
           (unsigned long long)(hv_plan_bytes(&r->f.device) + r->f.context), (unsigned long long)r->f.context,
           r->before.context ? "true" : "false");
}

int bench(const struct denoise_job *j, const struct settings *s, struct hv_err *e)
{
    static struct run r;
    static struct result x;
    const struct dit_moment moment[2] = {{.t = 900}, {.t = 500, .cached = 1}};
    const struct hv_synth_opts synth = {.seed = 1, .as_stored = 1, .quant = s->weights == HV_BF16 ? HV_NONE : s->weights, .share = 1};

    r.j = j;
    dit_weights(&r.list, j->config);
    if (!open_device(&r.dev, s, &r.before, e) && !hv_weights_open_synth(&r.w, r.dev, &r.list, &synth, e) &&
        !fit(&r.f, s, j, r.dev->kind == HV_CUDA ? &r.before : NULL, s->weights, e) && !make_inputs(&r, e)) {
        r.f.size.full = r.f.size.cached = r.f.size.texts = r.f.size.sound = r.f.size.windows = 1;
        r.f.size.clip_frames = r.f.size.frames;
        if (!dit_open(&r.net, r.dev, r.w, j->config, &r.f.size, &r.f.choice, &r.f.stream, e) &&
            !dit_prepare_random(r.net, moment, 2, e) && !measure(&r, &x, e)) {
            rates_keep(&r.f, r.after.name, x.flops, x.full, x.cached);
            (*o.bench ? print_json : print_text)(&r, &x);
        }
    }
    dit_close(r.net);
    hv_weights_close(r.w);
    hv_dev_close(r.dev);
    hv_wlist_close(&r.list);
    free(r.latents);
    free(r.ref);
    free(r.face);
    free(r.sound);
    free(r.frame);
    for (int b = 0; b < DIT_CALLS; b++)
        free(r.out[b]);
    return e->code;
}
