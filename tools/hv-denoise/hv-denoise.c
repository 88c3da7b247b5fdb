/* hv-denoise - text, sound, face and reference latents to video latents: the 13B transformer and its sampler. See hv-denoise.1 */
#include "hv-denoise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "io/contract.h"
#include "io/st.h"
#include "mem/part.h"

#define PART "transformer"

struct options o = {.steps = 50, .seed = 128, .shift = 5, .guidance = 7.5, .text_rows = 831, .rng = "cuda", .cache = "scaled",
                    .carry = "float32", .strength = 1, .motion_exp = 30, .motion_pose = 25, .activations = "auto", .gemm = "auto", .ring = "auto", .attention = "auto", .stream = "auto",
                    .branches = "auto", .ahead = "auto", .resident = "auto", .dtype = "as-is", .repeat = 3};

static const struct hv_opt opts[] = {
    {"steps", 0, HV_OPT_INT, &o.steps, "N", "denoising steps (default: 50)", 1, FLOW_STEPS_MAX},
    {"shift", 0, HV_OPT_REAL, &o.shift, "X", "shift of the schedule (default: 5)", 0.01, 1000},
    {"guidance", 0, HV_OPT_REAL, &o.guidance, "X", "guidance of the first steps; 1 or less: one branch (default: 7.5)", 0, 1000},
    {"seed", 0, HV_OPT_INT, &o.seed, "N", "seed of the noise (default: 128)", 0, 9.2e18},
    {"rng", 0, HV_OPT_STR, &o.rng, "KIND", "cuda[:SMxTPS] or cpu: torch's generators (default: cuda:108x2048)", 0, 0},
    {"noise", 0, HV_OPT_STR, &o.noise, "FILE", "take the starting noise from the tensor \"noise\" of FILE", 0, 0},
    {"keep-noise", 0, HV_OPT_FLAG, &o.keep_noise, NULL, "write the starting noise too", 0, 0},
    {"cache", 0, HV_OPT_STR, &o.cache, "STEPS", "scaled, reference, none, tea[:X], mag[:X], or the full steps, as 0-15,20", 0, 0},
    {"carry", 0, HV_OPT_STR, &o.carry, "KIND", "rounding of latents between steps: float32 or reference (default: float32)", 0, 0},
    {"voice", 0, HV_OPT_LIST, &o.voice, "A.st,F.st", "one sound more, through its own mask; may be repeated", 0, 0},
    {"audio-strength", 0, HV_OPT_REAL, &o.strength, "X", "how strongly sound moves the face (default: 1)", 0, 100},
    {"motion-exp", 0, HV_OPT_REAL, &o.motion_exp, "X", "how much the expression moves (default: 30)", 0, 1000},
    {"motion-pose", 0, HV_OPT_REAL, &o.motion_pose, "X", "how much the head moves (default: 25)", 0, 1000},
    {"state", 0, HV_OPT_STR, &o.state, "FILE", "after each step keep what is needed to go on in FILE", 0, 0},
    {"state-every", 0, HV_OPT_REAL, &o.state_every, "SECONDS", "write it at most that often (default: after each step)", 0, 1e9},
    {"resume", 0, HV_OPT_FLAG, &o.resume, NULL, "go on from the state, if it is there", 0, 0},
    {"stop-after", 0, HV_OPT_INT, &o.stop_after, "STEP", "leave after that many steps in all, with the state written", 1, FLOW_STEPS_MAX},
    {"preview", 0, HV_OPT_STR, &o.preview, "FILE", "show the latents as they become: a sheet in FILE.png, or FILE.mp4", 0, 0},
    {"preview-every", 0, HV_OPT_INT, &o.preview_every, "N", "a preview each N steps (default: 5)", 1, FLOW_STEPS_MAX},
    {"max-frames", 0, HV_OPT_INT, &o.max_frames, "N", "hear at most N frames of sound (the reference: 400)", 1, 1e9},
    {"overlap", 0, HV_OPT_INT, &o.overlap, "N", "latent frames that windows of a long clip share and fade over (default: 0)", 0, 16},
    {"vram", 0, HV_OPT_SIZE, &o.vram, "SIZE", "memory of the device, as 4G; chunks are shortened to fit", 0, 0},
    {"ram", 0, HV_OPT_SIZE, &o.ram, "SIZE", "memory of the host, without mapped weights", 0, 0},
    {"head-group", 0, HV_OPT_INT, &o.head_group, "N", "heads at a time; divides the model's heads (default: auto)", 1, 1024},
    {"chunk-rows", 0, HV_OPT_STR, &o.chunk_rows, "N[,N]", "rows at a time, in attention and MLP (default: auto)", 0, 0},
    {"keep-ref", 0, HV_OPT_FLAG, &o.keep_ref, NULL, "keep the embedded reference on the device instead of making it anew", 0, 0},
    {"activations", 0, HV_OPT_STR, &o.activations, "TIER", "GPU: x and o on the device, o-host or x-host (default: auto)", 0, 0},
    {"attention", 0, HV_OPT_STR, &o.attention, "KIND", "GPU: math, flash, cudnn, sage, sage-fp8 (default: auto, an exact one)", 0, 0},
    {"gemm", 0, HV_OPT_STR, &o.gemm, "KIND", "GPU: quantized weights by expand, fused or fp8 products (default: auto)", 0, 0},
    {"stream", 0, HV_OPT_STR, &o.stream, "MODE", "GPU: weights by pin, part, register, map or direct (default: auto)", 0, 0},
    {"ring", 0, HV_OPT_STR, &o.ring, "KIND", "GPU: weights in flight: blocks, segments or a size (default: auto)", 0, 0},
    {"resident-blocks", 0, HV_OPT_STR, &o.resident, "N", "GPU: blocks that stay: a number, all (default: auto)", 0, 0},
    {"branches", 0, HV_OPT_STR, &o.branches, "KIND", "GPU: guidance branches alone or paired (default: auto)", 0, 0},
    {"ahead", 0, HV_OPT_STR, &o.ahead, "on|off", "GPU, x-host: make the next keys during attention (default: auto)", 0, 0},
    {"weights-dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "with --plan and --bench: bf16, int8 or fp8 (default: bf16)", 0, 0},
    {"bench", 0, HV_OPT_OPTSTR, &o.bench, "json", "time a forward at --size with synthetic weights, and leave", 0, 0},
    {"repeat", 0, HV_OPT_INT, &o.repeat, "N", "with --bench: forwards that are timed (default: 3)", 1, 1000},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the memory plan and leave; needs no weights, no GPU", 0, 0},
    {"size", 0, HV_OPT_STR, &o.size, "WxH", "with --plan and --bench: pixels", 0, 0},
    {"frames", 0, HV_OPT_STR, &o.frames, "N", "with --plan and --bench: video frames (default: 129)", 0, 0},
    {"text-rows", 0, HV_OPT_INT, &o.text_rows, "N", "with --plan and --bench: text tokens (default: 831)", 1, 65536},
    {0}
};

const struct hv_cli cli = {"hv-denoise", "FILE...", "Denoises video latents from text.st, audio.st, face.st and ref.st, in any order.",
                           opts, &o.c, 0, HV_OPERANDS};

static int parse(struct settings *s, int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    return rc ? rc : settings_read(s, e);
}

/* ---- input ---- */

/* The named model's config; with --plan alone, the full-size model's. */
static int read_config(struct dit_config *c, struct hv_err *e)
{
    json_t *json = NULL;

    *c = dit_config_full();
    if ((o.plan || o.bench) && (!o.c.model || !*o.c.model))
        return 0;
    if (!hv_part_config(&json, o.c.model, PART, e) && dit_config_parse(c, json, e))
        hv_context(e, "%s/" PART "/config.json", o.c.model);
    json_decref(json);
    return e->code;
}

static int read_text(struct dit_text *t, struct hv_operands *in, const char *states, const char *mask, const char *pooled,
                     struct hv_err *e)
{
    hv_tensor m;

    if (hv_operands_get(in, states, &t->states, e) || hv_operands_get(in, mask, &m, e) ||
        hv_operands_get(in, pooled, &t->pooled, e))
        return e->code;
    t->mask = m.data;
    return 0;
}

/* All operands, checked against each other and the model's widths. */
static int read_operands(struct denoise_job *j, struct input *x, struct hv_err *e)
{
    const struct dit_config *c = &x->config;

    x->fps = 25;
    if (hv_operands_open(&x->in, o.c.operand, o.c.n_operands, e) ||
        read_text(&j->text, &x->in, "text.states", "text.mask", "text.pooled", e) ||
        (o.guidance > 1 && read_text(&j->negative, &x->in, "text.neg_states", "text.neg_mask", "text.neg_pooled", e)) ||
        hv_operands_get(&x->in, "ref.latents", &j->ref, e) || hv_operands_meta_real(&x->in, "hv.fps", 0.1, 1000, &x->fps, e))
        return e->code;
    /* With --voice the operands need not speak. */
    if (!o.voice.n || hv_operands_have(&x->in, "audio.features") || hv_operands_have(&x->in, "face.mask")) {
        if (hv_operands_get(&x->in, "audio.features", &j->sound, e) || hv_operands_get(&x->in, "face.mask", &j->face, e))
            return e->code;
        j->voices = 1;
        x->wanted = j->sound.shape[0];
        if (hv_operands_meta_int(&x->in, "hv.frames", 1, 10000000, &x->wanted, e))
            return e->code;
    }
    if (voices_read(j, x, e))
        return e->code;
    if (j->sound.shape[0] < 1)
        return hv_fail(e, HV_EINPUT, "audio.features: no frames");
    if (j->text.states.shape[1] != c->text_dim || j->text.pooled.shape[0] != c->pooled_dim)
        return hv_fail(e, HV_EINPUT, "text.states and text.pooled are %lld and %lld wide, the model takes %lld and %lld",
                       (long long)j->text.states.shape[1], (long long)j->text.pooled.shape[0], (long long)c->text_dim,
                       (long long)c->pooled_dim);
    if (j->sound.shape[1] != c->audio_seq || j->sound.shape[2] != c->audio_layers || j->sound.shape[3] != c->audio_channels)
        return hv_fail(e, HV_EINPUT, "audio.features: [F,%lld,%lld,%lld], the model takes [F,%lld,%lld,%lld]",
                       (long long)j->sound.shape[1], (long long)j->sound.shape[2], (long long)j->sound.shape[3],
                       (long long)c->audio_seq, (long long)c->audio_layers, (long long)c->audio_channels);
    if (j->ref.shape[0] != c->channels || j->ref.shape[2] % c->patch[1] || j->ref.shape[3] % c->patch[2])
        return hv_fail(e, HV_EINPUT, "ref.latents: %lld channels of %lld x %lld, the model takes %lld in patches of %lld x %lld",
                       (long long)j->ref.shape[0], (long long)j->ref.shape[2], (long long)j->ref.shape[3], (long long)c->channels,
                       (long long)c->patch[1], (long long)c->patch[2]);
    return 0;
}

/* Shapes alone, for --plan without files and --bench. */
static void shapes_only(struct denoise_job *j, struct input *x, const struct settings *s)
{
    const struct dit_config *c = &x->config;
    const int64_t h = s->height / 8, w = s->width / 8;

    x->wanted = s->frames ? s->frames : FLOW_SOUND;
    j->text.states = hv_view(NULL, HV_F32, 2, (const int64_t[]){o.text_rows, c->text_dim});
    j->negative = j->text;
    j->sound = hv_view(NULL, HV_F32, 4, (const int64_t[]){x->wanted, c->audio_seq, c->audio_layers, c->audio_channels});
    j->ref = hv_view(NULL, HV_F32, 4, (const int64_t[]){c->channels, FLOW_WINDOW, h, w});
}

static void say_decision(void *ctx, int step, int window, int full, double change, double sum)
{
    const struct settings *s = ctx;

    if (s->cache == DENOISE_MAG)
        hv_note_verbose(&cli, "step %d, window %d: %s", step, window, full ? "all blocks" : "none, by mag");
    else
        hv_note_verbose(&cli, "step %d, window %d: %s: input changed by %.3g, %.3g of %.3g", step, window, full ? "all blocks" : "none",
                        change, sum, s->threshold);
}

static void fill_job(struct denoise_job *j, const struct input *x, struct settings *s)
{
    j->config = &x->config;
    for (int i = 0; i < 4; i++) {
        j->fixed.motion_exp[i] = (float)o.motion_exp;
        j->fixed.motion_pose[i] = (float)o.motion_pose;
    }
    j->fixed.fps = (float)(x->fps ? x->fps : 25);
    j->fixed.guidance = (float)(o.guidance * 1000);     /* only where the config embeds it */
    j->clip = flow_clip(x->wanted, o.max_frames);
    if (o.overlap)
        flow_clip_overlap(&j->clip, o.overlap);
    j->strength = o.strength > 0 ? o.strength : -1;
    j->steps = (int)o.steps;
    j->shift = o.shift;
    j->guidance = o.guidance;
    j->carry = s->carry;
    if (s->cache == DENOISE_MAG)
        s->threshold = flow_mag_steps(s->full, j->steps, s->speedup, 64 * j->ref.shape[2] * j->ref.shape[3]);
    j->clean_every = !o.preview ? 0 : o.preview_every ? (int)o.preview_every : 5;
    j->full = s->full;
    j->cache = s->cache;
    j->threshold = s->threshold;
    j->decided = say_decision;
    j->decided_ctx = s;
}

/* The tensor "noise" of a file, [C, f, h, w] of any float dtype; a leading axis of 1 is taken off. */
static int noise_from_file(struct denoise_job *j, struct input *x, struct hv_err *e)
{
    hv_tensor t;
    char shape[HV_SHAPE_STR];

    if (hv_in_open(&x->noise_file, o.noise, e) || hv_in_tensor(x->noise_file, "noise", &t, e))
        return e->code;
    if (t.ndim == 5 && t.shape[0] == 1)
        t = hv_index(t, 0);
    if (!hv_dtype_is_float(t.dtype) || t.ndim != 4 || t.shape[0] != j->config->channels || t.shape[1] < j->clip.frames ||
        t.shape[2] != j->ref.shape[2] || t.shape[3] != j->ref.shape[3])
        return hv_fail(e, HV_EINPUT, "%s: noise: %s %s, expected [%lld,%lld or more,%lld,%lld]", o.noise, hv_dtype_name(t.dtype),
                       hv_shape_str(t, shape), (long long)j->config->channels, (long long)j->clip.frames,
                       (long long)j->ref.shape[2], (long long)j->ref.shape[3]);
    if (hv_first_nonfinite(t) >= 0)
        return hv_fail(e, HV_ENUM, "%s: noise: NaN or Inf", o.noise);
    if (!(x->noise = malloc((size_t)hv_count(t) * sizeof *x->noise)))
        return hv_fail(e, HV_ENOMEM, "noise: out of memory");
    hv_to_f32(x->noise, t.dtype, t.data, (size_t)hv_count(t));
    j->noise = hv_view(x->noise, HV_F32, 4, t.shape);
    return 0;
}

/* Draws the reference's noise: as many frames as the clip's rule says, in the dtype of the carry. */
static int draw_noise(struct denoise_job *j, struct input *x, const struct settings *s, struct hv_err *e)
{
    const int64_t shape[4] = {j->config->channels, j->clip.noise_frames, j->ref.shape[2], j->ref.shape[3]};
    const hv_dtype t = s->carry == FLOW_REFERENCE ? HV_F16 : HV_F32;
    const size_t n = (size_t)hv_shape_count(4, shape);
    struct hv_rng rng;

    x->noise = malloc(n * sizeof *x->noise);
    void *raw = malloc(n * hv_dtype_size(t));
    if (!x->noise || !raw) {
        free(raw);
        return hv_fail(e, HV_ENOMEM, "noise: out of memory: %zu values", n);
    }
    if (s->sm)
        hv_rng_cuda(&rng, (uint64_t)o.seed, s->sm, s->tps);
    else
        hv_rng_cpu(&rng, (uint64_t)o.seed);
    hv_rng_normal(&rng, t, raw, n);
    hv_to_f32(x->noise, t, raw, n);
    free(raw);
    j->noise = hv_view(x->noise, HV_F32, 4, shape);
    return 0;
}

/* ---- compute and write ---- */

/* How the blocks' matrices are stored: as the first of them. */
static hv_dtype block_dtype(const struct hv_weights *w)
{
    const struct hv_wlist *l = hv_weights_list(w);

    for (int i = 0; i < l->n; i++)
        if (l->w[i].quant == HV_QUANT) {
            const hv_dtype t = hv_weights_dtype(w, l->w[i].name);
            return t == HV_I8 || t == HV_F8_E4M3 ? t : HV_BF16;
        }
    return HV_BF16;
}

int open_device(struct hv_dev **d, const struct settings *s, struct hv_dev_info *info, struct hv_err *e)
{
    if (hv_dev_open(d, o.c.device, (int)o.c.threads, e) || hv_dev_info(*d, info, e))
        return e->code;
    (*d)->attention = s->choice.attention;
    (*d)->fp8 = s->fp8;
    if (s->choice.attention == HV_ATT_CUDNN && (*d)->kind == HV_CUDA && !info->cudnn)
        return hv_fail(e, HV_EDEVICE, "--attention cudnn: no libcudnn 9 was found; flash needs none");
    return 0;
}

uint64_t measured_bytes(const struct fitted *f, const struct hv_dev_info *before, const struct hv_dev_info *now)
{
    return hv_budget_taken(f->context, before, now);
}

/* Memory as it was planned and as it was: what the device has less of now than when it was opened. */
static void say_memory(const struct hv_dev *d, const struct fitted *f, const struct hv_dev_info *before)
{
    struct hv_dev_info now;
    struct hv_err e = {0};

    if (d->kind != HV_CUDA || hv_dev_info((struct hv_dev *)d, &now, &e))
        return;
    hv_note(&cli, "memory: predicted %.1f MiB, measured %.1f MiB (context %.1f%s)",
            (double)(hv_plan_bytes(&f->device) + f->context) / 1048576,
            (double)measured_bytes(f, before, &now) / 1048576, (double)f->context / 1048576, before->context ? "" : ", assumed");
}

/* The one place where memory can run out. What would fit what is free now is named. */
static void name_smaller(const struct hv_dev *d, const struct fitted *f, const struct settings *s, const struct denoise_job *j,
                         struct hv_err *e)
{
    static struct fitted smaller;
    struct hv_dev_info now;
    struct hv_err ignored = {0};
    char text[400];

    if (e->code != HV_ENOMEM || d->kind != HV_CUDA || hv_dev_info((struct hv_dev *)d, &now, &ignored))
        return;
    *e = (struct hv_err){0};
    now.context = f->context;
    if (fit(&smaller, s, j, &now, f->size.weights, &ignored))
        hv_fail(e, HV_ENOMEM, "cuda: out of memory: %.1f MiB requested, %.1f MiB free on %s; no smaller plan fits",
                (double)hv_plan_bytes(&f->device) / 1048576, (double)now.free / 1048576, now.name);
    else
        hv_fail(e, HV_ENOMEM, "cuda: out of memory: %.1f MiB requested, %.1f MiB free on %s; next smaller: --vram %.0fM (%s)",
                (double)hv_plan_bytes(&f->device) / 1048576, (double)now.free / 1048576, now.name,
                (double)(hv_plan_bytes(&smaller.device) + f->context) / 1048576 + 1, choice_text(text, sizeof text, &smaller));
}

static int compute(struct denoise_job *j, struct settings *s, struct state *st, float *latents, char model[128], struct hv_err *e)
{
    static struct fitted f;
    struct hv_dev *dev = NULL;
    struct hv_weights *w = NULL;
    struct hv_wlist list = {0};
    struct dit *net = NULL;
    struct hv_progress progress;
    struct hv_dev_info info = {0};
    char text[400];

    hv_progress_open(&progress, &cli);
    dit_weights(&list, j->config);
    state_plan(st, s);
    if (!open_device(&dev, s, &info, e) && !hv_part_weights(&w, dev, o.c.model, PART, &list, e) &&
        !fit(&f, s, j, dev->kind == HV_CUDA ? &info : NULL, block_dtype(w), e) &&
        !state_fits(st, hv_weights_digest(w), &f, &info, e)) {
        snprintf(model, 128, "%s", hv_weights_digest(w));
        if (state_is_done(st)) {
            denoise_result(j, j->start, latents);
        } else if (!dit_open(&net, dev, w, j->config, &f.size, &f.choice, &f.stream, e)) {
            hv_note_verbose(&cli, "device %.1f MiB, host %.1f MiB; %s", (double)(hv_plan_bytes(&f.device) + f.context) / 1048576,
                            (double)hv_plan_bytes(&f.host) / 1048576, choice_text(text, sizeof text, &f));
            dev->report = hv_progress_step;
            dev->report_ctx = &progress;
            if (!state_restore(st, net, e))
                denoise(net, j, latents, e);
        } else {
            name_smaller(dev, &f, s, j, e);
        }
    }
    hv_progress_close(&progress);
    if (net && !e->code)
        say_memory(dev, &f, &info);
    dit_close(net);
    hv_weights_close(w);
    hv_dev_close(dev);
    hv_wlist_close(&list);
    return e->code;
}

void stamp(struct hv_out *out, const struct denoise_job *j, const struct input *x, const struct settings *s, const char *model, int step)
{
    hv_operands_stamp(&x->in, out);
    hv_contract_stamp(out, &(struct hv_stamp){.stage = "hv-denoise", .width = 8 * j->ref.shape[3], .height = 8 * j->ref.shape[2],
                                              .frames = j->clip.written, .fps = x->fps, .model = model});
    hv_out_meta(out, "hv.seed", "%lld", (long long)o.seed);
    if (o.noise)
        hv_out_meta(out, "hv.rng", "file");
    else if (s->sm)
        hv_out_meta(out, "hv.rng", "cuda:%lldx%lld", (long long)s->sm, (long long)s->tps);
    else
        hv_out_meta(out, "hv.rng", "cpu");
    hv_out_meta(out, "hv.steps", "%lld", (long long)o.steps);
    hv_out_meta(out, "hv.step", "%d", step);
    hv_out_meta(out, "hv.shift", "%g", o.shift);
    hv_out_meta(out, "hv.guidance", "%g", o.guidance);
    hv_out_meta(out, "hv.cache", "%s", o.cache);
    hv_out_meta(out, "hv.carry", "%s", o.carry);
    if (o.overlap)
        hv_out_meta(out, "hv.overlap", "%lld", (long long)o.overlap);
    if (j->voices > 1)
        hv_out_meta(out, "hv.voices", "%d", j->voices);
    if (o.strength < 1 || o.strength > 1)
        hv_out_meta(out, "hv.audio_strength", "%.17g", o.strength);
    if (o.motion_exp < 30 || o.motion_exp > 30 || o.motion_pose < 25 || o.motion_pose > 25)
        hv_out_meta(out, "hv.motion", "%.17g expression, %.17g pose", o.motion_exp, o.motion_pose);
}

/* Which steps ran no blocks, and why: for mag the steps that did; for tea the change of each step after the first that could be
 * skipped. Owned by the caller. */
static char *decisions(const struct denoise_job *j)
{
    char *text = NULL, steps[6 * FLOW_STEPS_MAX];
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (!f)
        return NULL;
    if (j->cache == DENOISE_MAG)
        fprintf(f, "all blocks %s; threshold %g", steps_text(steps, sizeof steps, j->full, j->steps), j->threshold);
    for (int64_t w = 0; w < j->clip.windows && j->cache == DENOISE_TEA; w++) {
        double sum = 0;
        fprintf(f, "%swindow %lld:", w ? "; " : "", (long long)w);
        for (int i = 0; i < j->steps; i++) {
            const double change = j->change[i * j->clip.windows + w];
            const int skip = flow_tea_skips(&sum, i, j->steps, change, j->threshold);
            if (i > flow_cache_start(j->steps) && i + 1 < j->steps)
                fprintf(f, " %d %.17g %s", i, change, skip ? "none" : "all");
        }
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

static int write_latents(const struct denoise_job *j, const struct input *x, const struct settings *s, const float *latents,
                         const char *model, struct hv_err *e)
{
    struct hv_out out = {0};
    const int64_t shape[4] = {j->config->channels, j->clip.video, j->ref.shape[2], j->ref.shape[3]};

    stamp(&out, j, x, s, model, (int)o.steps);
    if (j->cache != DENOISE_LIST) {
        char *text = decisions(j);
        hv_out_meta(&out, "hv.cache_log", "%s", text ? text : "");
        out.fault |= !text;
        free(text);
    }
    hv_out_add(&out, "latents", hv_view(latents, HV_F32, 4, shape));
    if (o.keep_noise)
        hv_out_add(&out, "noise", j->noise);
    hv_out_write(&out, o.c.output, e);
    hv_out_close(&out);
    return e->code;
}

static int run(struct denoise_job *j, struct input *x, struct settings *s, struct state *st, struct hv_err *e)
{
    char model[128] = "";
    struct preview *preview = NULL;
    float *latents = NULL;
    int stopped = 0;

    if (!(j->change = calloc((size_t)(j->steps * j->clip.windows), sizeof *j->change)))
        hv_fail(e, HV_ENOMEM, "denoise: out of memory");
    else if (!(o.noise ? noise_from_file(j, x, e) : draw_noise(j, x, s, e)) && !preview_open(&preview, j, x->fps, e) &&
             !state_open(st, j, x, s, preview, e)) {
        latents = malloc((size_t)(j->config->channels * j->clip.video * j->ref.shape[2] * j->ref.shape[3]) * sizeof *latents);
        if (!latents)
            hv_fail(e, HV_ENOMEM, "latents: out of memory");
    }
    if (latents) {
        hv_note_verbose(&cli, "%lld frames of sound: %lld latent frames in %lld windows, %lld frames of video", (long long)x->wanted,
                        (long long)j->clip.frames, (long long)j->clip.windows, (long long)j->clip.written);
        compute(j, s, st, latents, model, e);
        stopped = state_stopped(st);
    }
    if (!state_close(st, e) && !stopped)
        write_latents(j, x, s, latents, model, e);
    preview_close(preview);
    free(latents);
    free(j->change);
    return e->code;
}

int main(int argc, char **argv)
{
    static struct settings s;
    struct hv_err e = {0};
    struct input x = {0};
    struct denoise_job j = {0};
    struct state *st = NULL;
    int rc = parse(&s, argc, argv, &e);

    if (rc < 0)
        return hv_exit("hv-denoise", &e);
    if (!rc && !o.plan && !o.bench) {
        st = state_watch(&e);
        rc = e.code;
    }
    if (!rc)
        rc = read_config(&x.config, &e);
    if (!rc && ((o.plan && !o.c.n_operands) || o.bench))
        shapes_only(&j, &x, &s);
    else if (!rc)
        rc = read_operands(&j, &x, &e);
    if (!rc) {
        fill_job(&j, &x, &s);
        rc = o.plan ? print_plan(&j, &s, &e) : o.bench ? bench(&j, &s, &e) : run(&j, &x, &s, st, &e);
    } else {
        state_close(st, &e);
    }

    free(x.noise);
    voices_close(&x);
    hv_in_close(x.noise_file);
    hv_operands_close(&x.in);
    return hv_exit("hv-denoise", &e);
}
