/* Audio goldens: NAME.safetensors beside its WAV. Each stage is fed from the golden before it, then the whole way is gone from
 * the WAV. Metadata: config (JSON of the encoder), seed of the synthetic weights, fps, wav, prompts_shape. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audio/mel.h"
#include "audio/window.h"
#include "golden.h"
#include "io/sound.h"
#include "model/whisper.h"

#define COS 1e-6

struct audio {
    struct golden        *g;
    const char           *name;
    struct hv_in         *in;
    struct hv_sound       sound;
    struct whisper_config config;
    struct hv_dev        *dev;
    struct hv_weights    *weights;
    struct whisper       *net;
    double                fps;
    float                *mel, *states, *prompts;   /* [3000, 80], [1500, S, C], [P, 10, S, C] */
    int64_t               width, P;                 /* S * C; frames with the zeros behind them */
};

static void compare(struct audio *a, const char *label, const char *tensor, hv_tensor got, double max_abs, double cos)
{
    struct hv_err e = {0};
    hv_tensor want;

    if (!hv_in_find(a->in, tensor))
        return;
    if (hv_in_tensor(a->in, tensor, &want, &e))
        golden_error(a->g, a->name, &e);
    else
        golden_compare(a->g, a->name, label, got, want, max_abs, cos);
}

static void compare_sound(struct audio *a)
{
    const int64_t n = a->sound.n, part = n < 20000 ? n : 20000;

    compare(a, "audio16k", "audio16k", hv_view(a->sound.x, HV_F32, 1, &n), 1e-6, -1);
    compare(a, "audio16k.head", "audio16k.head", hv_view(a->sound.x, HV_F32, 1, &part), 1e-6, -1);
    compare(a, "audio16k.tail", "audio16k.tail", hv_view(a->sound.x + n - part, HV_F32, 1, &part), 1e-6, -1);
}

/* The golden's mel is [80, L]: ours turned, its first L columns. */
static void compare_columns(struct audio *a, const char *tensor, int64_t first)
{
    const struct hv_entry *entry = hv_in_find(a->in, tensor);
    const int64_t L = !entry ? 0 : entry->ndim == 2 ? entry->shape[1] : 1;
    float *t = calloc((size_t)(80 * L) + 1, sizeof *t);

    if (t && entry && first + L <= HV_MEL_FRAMES) {
        for (int64_t b = 0; b < 80; b++)
            for (int64_t i = 0; i < L; i++)
                t[b * L + i] = a->mel[(first + i) * 80 + b];
        compare(a, tensor, tensor, hv_view(t, HV_F32, entry->ndim, (int64_t[]){80, L}), 2e-4, COS);
    }
    free(t);
}

static int compare_mel(struct audio *a, struct hv_err *e)
{
    float filters[HV_MEL_BINS * HV_MEL_FREQS];

    hv_mel_filters(filters);
    compare(a, "mel_filters", "mel_filters", hv_view(filters, HV_F32, 2, (int64_t[]){HV_MEL_BINS, HV_MEL_FREQS}), 1e-9, -1);
    if (hv_in_find(a->in, "log_mel.chunk1")) {
        if (hv_mel_block(a->mel, a->sound.x, a->sound.n, 1, e))
            return e->code;
        compare_columns(a, "log_mel.chunk1", 0);
    }
    if (hv_mel_block(a->mel, a->sound.x, a->sound.n, 0, e))
        return e->code;
    compare_columns(a, "log_mel", 0);
    compare_columns(a, "log_mel.last", HV_MEL_FRAMES - 1);
    return 0;
}

/* The golden's own mel: what is not stored equals the last column. */
static int golden_mel(struct audio *a, struct hv_err *e)
{
    hv_tensor mel, last;

    if (hv_in_tensor(a->in, "log_mel", &mel, e) || hv_in_tensor(a->in, "log_mel.last", &last, e))
        return e->code;
    for (int64_t t = 0; t < HV_MEL_FRAMES; t++)
        for (int64_t b = 0; b < 80; b++)
            a->mel[t * 80 + b] = t < mel.shape[1] ? ((const float *)mel.data)[b * mel.shape[1] + t]
                                                  : ((const float *)last.data)[b];
    return 0;
}

/* The encoder and the windows on the mel at hand. */
static int encode(struct audio *a, struct hv_err *e)
{
    const int64_t C = a->config.d_model, S = a->config.layers + 1;
    const struct hv_windows w = {a->states, 1500, a->width, hv_window_step(a->fps)};
    const int64_t real = hv_window_reference_frames(a->sound.n, a->fps);
    const size_t frame = (size_t)(HV_WINDOW_ROWS * a->width) * sizeof(float);

    whisper_encode(a->net, hv_view(a->states, HV_F32, 3, (int64_t[]){1500, S, C}),
                   hv_view(a->mel, HV_F32, 2, (int64_t[]){HV_MEL_FRAMES, 80}));
    memset(a->prompts, 0, (size_t)a->P * frame);
    hv_window_copy(&w, 0, a->prompts, (size_t)(real < a->P ? real : a->P) * frame);
    return hv_dev_sync(a->dev, e);
}

static void compare_states(struct audio *a)
{
    const hv_tensor all = hv_view(a->states, HV_F32, 2, (int64_t[]){1500, a->width});

    for (int64_t k = 0; k <= a->config.layers; k++) {
        const hv_tensor state = hv_cols(all, k * a->config.d_model, a->config.d_model);
        hv_tensor stride50 = hv_rows(state, 0, 30);
        char tensor[40];

        stride50.stride[0] *= 50;
        snprintf(tensor, sizeof tensor, "hidden.%d.head", (int)k);
        compare(a, tensor, tensor, hv_rows(state, 0, 24), 1e-4, COS);
        snprintf(tensor, sizeof tensor, "hidden.%d.stride50", (int)k);
        compare(a, tensor, tensor, stride50, 1e-4, COS);
    }
}

/* All frames, or those that PREFIX.index names. */
static void compare_prompts(struct audio *a, const char *label, const char *tensor, double max_abs)
{
    const int64_t S = a->config.layers + 1, C = a->config.d_model, frame = HV_WINDOW_ROWS * a->width;
    char frames[80], index[80];
    struct hv_err e = {0};
    hv_tensor ids;

    snprintf(frames, sizeof frames, "%s.frames", tensor);
    snprintf(index, sizeof index, "%s.index", tensor);
    compare(a, label, tensor, hv_view(a->prompts, HV_F32, 5, (int64_t[]){1, a->P, HV_WINDOW_ROWS, S, C}), max_abs, COS);
    if (!hv_in_find(a->in, frames) || hv_in_tensor(a->in, index, &ids, &e))
        return;
    const int64_t n = hv_count(ids);
    float *some = malloc((size_t)(n * frame) * sizeof *some);
    for (int64_t i = 0; some && i < n; i++) {
        const int32_t f = ((const int32_t *)ids.data)[i];
        if (f < 0 || f >= a->P) {
            golden_verdict(a->g, a->name, index, 0, "frame %d of %d", f, (int)a->P);
            free(some);
            return;
        }
        memcpy(some + i * frame, a->prompts + f * frame, (size_t)frame * sizeof *some);
    }
    if (some)
        compare(a, label, frames, hv_view(some, HV_F32, 5, (int64_t[]){1, n, HV_WINDOW_ROWS, S, C}), max_abs, COS);
    free(some);
}

static int open_case(struct audio *a, const char *path, struct hv_err *e)
{
    const char *config, *seed, *fps, *wav, *shape;
    const char *slash = strrchr(path, '/');
    struct hv_wlist list = {0};
    json_t *json = NULL, *dims = NULL;
    char file[4096];
    int rc;

    if (hv_in_open(&a->in, path, e))
        return e->code;
    config = hv_in_meta(a->in, "config");
    seed = hv_in_meta(a->in, "seed");
    fps = hv_in_meta(a->in, "fps");
    wav = hv_in_meta(a->in, "wav");
    shape = hv_in_meta(a->in, "prompts_shape");
    if (!config || !seed || !fps || !wav || !shape)
        return hv_fail(e, HV_EINPUT, "%s: no config, seed, fps, wav or prompts_shape in its metadata", path);
    if (!hv_in_find(a->in, "audio_prompts") && !hv_in_find(a->in, "audio_prompts.frames"))
        return hv_fail(e, HV_EINPUT, "%s: no audio_prompts in it", path);
    snprintf(file, sizeof file, "%.*s%s", (int)(slash ? slash + 1 - path : 0), path, wav);
    a->fps = atof(fps);
    rc = hv_sound_read(&a->sound, file, 0, e);
    if (!rc)
        rc = hv_json_parse(&json, config, strlen(config), 8, e);
    if (!rc)
        rc = whisper_config_parse(&a->config, json, e);
    if (!rc)
        rc = hv_json_parse(&dims, shape, strlen(shape), 8, e);
    if (!rc)
        a->P = json_integer_value(json_array_get(dims, 1));
    if (!rc && (a->P < 1 || a->P > 4096))
        rc = hv_fail(e, HV_EINPUT, "%s: prompts_shape %s", path, shape);
    if (!rc)
        rc = hv_dev_open(&a->dev, a->g->device, a->g->threads, e);
    whisper_weights(&list, &a->config);
    if (!rc)
        rc = hv_weights_open_synth(&a->weights, a->dev, &list,
                                   &(struct hv_synth_opts){.seed = strtoull(seed, NULL, 10), .as_stored = 1}, e);
    if (!rc)
        rc = whisper_open(&a->net, a->dev, a->weights, &a->config, e);
    hv_wlist_close(&list);
    json_decref(json);
    json_decref(dims);
    a->width = (a->config.layers + 1) * a->config.d_model;
    a->mel = malloc(HV_MEL_FRAMES * 80 * sizeof *a->mel);
    a->states = malloc(1500 * (size_t)a->width * sizeof *a->states);
    a->prompts = malloc((size_t)(a->P * HV_WINDOW_ROWS * a->width) * sizeof *a->prompts);
    if (!rc && (!a->mel || !a->states || !a->prompts))
        rc = hv_fail(e, HV_ENOMEM, "no memory for the states");
    return rc;
}

static void close_case(struct audio *a)
{
    whisper_close(a->net);
    hv_weights_close(a->weights);
    hv_dev_close(a->dev);
    hv_sound_close(&a->sound);
    hv_in_close(a->in);
    free(a->mel);
    free(a->states);
    free(a->prompts);
}

static int run_case(struct audio *a, const char *path, struct hv_err *e)
{
    if (open_case(a, path, e))
        return e->code;
    compare_sound(a);
    if (compare_mel(a, e) || encode(a, e))
        return e->code;
    compare_prompts(a, "audio_prompts from the WAV", "audio_prompts", 5e-4);
    if (golden_mel(a, e) || encode(a, e))
        return e->code;
    compare_states(a);
    compare_prompts(a, "audio_prompts", "audio_prompts", 1e-4);
    for (int64_t i = 0; i < HV_MEL_FRAMES * 80; i++)
        a->mel[i] = hv_f16_to_f32(hv_f32_to_f16(a->mel[i]));
    if (encode(a, e))
        return e->code;
    compare_prompts(a, "audio_prompts.mel_f16", "audio_prompts.mel_f16", 2e-3);
    return 0;
}

static void one(struct golden *g, const char *path, const char *name)
{
    char label[256];
    struct audio a = {.g = g, .name = label};
    struct hv_err e = {0};

    snprintf(label, sizeof label, "audio/%s", name);
    if (run_case(&a, path, &e))
        golden_error(g, label, &e);
    close_case(&a);
}

void golden_audio(struct golden *g, const char *dir)
{
    golden_each(g, dir, ".safetensors", one);
}
