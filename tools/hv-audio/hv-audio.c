/* hv-audio - speech to one window of encoder states a video frame. See hv-audio.1 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audio/mel.h"
#include "audio/window.h"
#include "core/cli.h"
#include "io/contract.h"
#include "io/sound.h"
#include "io/st.h"
#include "mem/part.h"
#include "model/whisper.h"

#define PART "audio_encoder"
#define ROWS (HV_MEL_FRAMES / 2)        /* of states, a block */

static struct options {
    struct hv_common c;
    double      fps, duration;
    int64_t     max_frames;
    int         reference_length, mel_f16;
    const char *plan;
} o = {.fps = 25};

static const struct hv_opt opts[] = {
    {"fps", 0, HV_OPT_REAL, &o.fps, "25|12.5", "video frames a second (default: 25)", 0, 0},
    {"max-frames", 0, HV_OPT_INT, &o.max_frames, "N", "at most N frames (the reference: 400)", 1, 1e9},
    {"reference-length", 0, HV_OPT_FLAG, &o.reference_length, NULL, "as many frames as the reference makes", 0, 0},
    {"duration", 0, HV_OPT_REAL, &o.duration, "S", "only the first S seconds", 0.04, 1e9},
    {"mel-f16", 0, HV_OPT_FLAG, &o.mel_f16, NULL, "round the log-mel to 16 bits, as the reference does", 0, 0},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the memory plan of a block of 30 s; read no sound", 0, 0},
    {0}
};

static const struct hv_cli cli = {"hv-audio", "[SOUND]", "Turns speech into a window of encoder states for each video frame.",
                                  opts, &o.c, 0, 1};

struct result {
    struct whisper_config config;
    struct hv_windows     windows;
    int64_t               frames;
    float                *states;       /* [blocks * 1500, S, C] */
    char                  model[128];
};

static int parse(int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    if (rc)
        return rc;
    if (!hv_window_step(o.fps))
        return hv_fail(e, HV_EUSAGE, "--fps %g: the model knows 25 and 12.5", o.fps);
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    return 0;
}

static int64_t frames_of(int64_t samples)
{
    const int64_t n = o.reference_length ? hv_window_reference_frames(samples, o.fps) : hv_window_frames(samples, o.fps);
    return o.max_frames && n > o.max_frames ? o.max_frames : n;
}

/* The states of every block that a frame sees, one block after the other. */
static int encode(struct result *r, struct hv_dev *dev, struct whisper *net, const struct hv_sound *s, struct hv_err *e)
{
    const int64_t C = r->config.d_model, S = r->config.layers + 1;
    const int64_t seen = (r->frames - 1) * r->windows.step + HV_WINDOW_ROWS - HV_WINDOW_LEAD;
    const int64_t all = hv_mel_blocks(s->n), need = (seen + ROWS - 1) / ROWS, blocks = need < all ? need : all;
    float *mel = malloc(sizeof *mel * HV_MEL_FRAMES * HV_MEL_BINS);
    struct hv_progress progress;
    int rc = 0;

    r->states = malloc((size_t)(blocks * ROWS * S * C) * sizeof *r->states);
    if (!mel || !r->states)
        rc = hv_fail(e, HV_ENOMEM, "no memory for the states of %lld blocks of 30 s", (long long)blocks);
    hv_progress_open(&progress, &cli);
    for (int64_t b = 0; !rc && b < blocks; b++) {
        hv_progress_step(&progress, "block", (int)b, (int)blocks);
        rc = hv_mel_block(mel, s->x, s->n, b, e);
        for (int64_t i = 0; o.mel_f16 && i < HV_MEL_FRAMES * HV_MEL_BINS; i++)
            mel[i] = hv_f16_to_f32(hv_f32_to_f16(mel[i]));
        if (!rc) {
            whisper_encode(net, hv_view(r->states + b * ROWS * S * C, HV_F32, 3, (int64_t[]){ROWS, S, C}),
                           hv_view(mel, HV_F32, 2, (int64_t[]){HV_MEL_FRAMES, HV_MEL_BINS}));
            rc = hv_dev_sync(dev, e);
        }
        hv_progress_step(&progress, "block", (int)b + 1, (int)blocks);
    }
    hv_progress_close(&progress);
    free(mel);
    r->windows.states = r->states;
    r->windows.rows = blocks * ROWS;
    r->windows.width = S * C;
    if (rc)
        return rc;
    const int64_t bad = hv_first_nonfinite(hv_view(r->states, HV_F32, 2, (int64_t[]){blocks * ROWS, S * C}));
    return bad < 0 ? 0 : hv_fail(e, HV_ENUM, "audio.features: not a number at %.2f s, state %lld", (double)(bad / (S * C)) / 50,
                                 (long long)(bad % (S * C) / C));
}

/* On the dry device one block is gone through without data. */
static int dry_run(const struct result *r, struct hv_dev *dev, struct whisper *net, struct hv_err *e)
{
    struct hv_plan plan = {0};
    const int64_t C = r->config.d_model, S = r->config.layers + 1;
    float *host = calloc((size_t)(HV_MEL_FRAMES * HV_MEL_BINS + ROWS * S * C), sizeof *host);
    int rc = host ? 0 : hv_fail(e, HV_ENOMEM, "no memory for the states of a block");

    if (!rc) {
        whisper_encode(net, hv_view(host + HV_MEL_FRAMES * HV_MEL_BINS, HV_F32, 3, (int64_t[]){ROWS, S, C}),
                       hv_view(host, HV_F32, 2, (int64_t[]){HV_MEL_FRAMES, HV_MEL_BINS}));
        rc = hv_dev_sync(dev, e);
    }
    if (!rc)
        rc = whisper_plan(&plan, &r->config, e);
    if (!rc)
        (*o.plan ? hv_plan_print_json : hv_plan_print)(&plan, dev, stdout);
    free(host);
    return rc;
}

static int compute(struct result *r, const struct hv_sound *s, struct hv_err *e)
{
    struct hv_dev *dev = NULL;
    struct hv_weights *w = NULL;
    struct whisper *net = NULL;
    struct hv_wlist list = {0};
    int rc = hv_dev_open(&dev, o.plan ? "dry" : o.c.device, (int)o.c.threads, e);

    whisper_weights(&list, &r->config);
    if (!rc)
        rc = hv_part_weights(&w, dev, o.c.model, PART, &list, e);
    if (!rc)
        rc = whisper_open(&net, dev, w, &r->config, e);
    if (!rc)
        rc = o.plan ? dry_run(r, dev, net, e) : encode(r, dev, net, s, e);
    if (!rc)
        snprintf(r->model, sizeof r->model, "%s", hv_weights_digest(w));

    whisper_close(net);
    hv_weights_close(w);
    hv_wlist_close(&list);
    hv_dev_close(dev);
    return rc;
}

static int configure(struct result *r, struct hv_err *e)
{
    json_t *json;
    int rc = hv_part_config(&json, o.c.model, PART, e);

    if (!rc && whisper_config_parse(&r->config, json, e))
        rc = hv_context(e, "%s/" PART "/config.json", o.c.model);
    json_decref(json);
    return rc;
}

static int produce(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    (void)i;
    (void)e;
    hv_window_copy(ctx, offset, buf, n);
    return 0;
}

static int write_features(struct result *r, struct hv_err *e)
{
    struct hv_out out = {0};
    int rc;

    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-audio", .frames = r->frames, .fps = o.fps, .model = r->model});
    hv_out_declare(&out, "audio.features", HV_F32, 4,
                   (int64_t[]){r->frames, HV_WINDOW_ROWS, r->config.layers + 1, r->config.d_model});
    rc = hv_out_produce(&out, o.c.output, (size_t)4 << 20, produce, &r->windows, e);
    hv_out_close(&out);
    return rc;
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct hv_sound sound = {0};
    struct result r = {0};
    int rc = parse(argc, argv, &e);

    if (rc < 0)
        return hv_exit("hv-audio", &e);
    if (!rc)
        rc = configure(&r, &e);
    if (!rc && !o.plan)
        rc = hv_sound_read(&sound, o.c.n_operands ? o.c.operand[0] : "-", o.duration, &e);
    if (!rc) {
        r.frames = o.plan ? 1 : frames_of(sound.n);
        r.windows.step = hv_window_step(o.fps);
        if (!o.plan)
            hv_note_verbose(&cli, "%d samples a second, %d channels; %.2f s, %lld frames", sound.rate, sound.channels,
                            (double)sound.n / HV_SOUND_RATE, (long long)r.frames);
        rc = compute(&r, &sound, &e);
    }
    if (!rc && !o.plan)
        write_features(&r, &e);
    free(r.states);
    hv_sound_close(&sound);
    return hv_exit("hv-audio", &e);
}
