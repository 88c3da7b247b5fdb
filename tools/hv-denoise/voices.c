/* voices.c - sounds that act at once, each through its own mask: --voice AUDIO.st,FACE.st */
#include "hv-denoise.h"

#include <stdlib.h>
#include <string.h>

/* Opens "AUDIO.st,FACE.st" as operands of their own; the last comma counts. */
static int open_pair(struct hv_operands *in, const char *text, struct hv_err *e)
{
    const char *comma = strrchr(text, ',');
    char sound[4096];

    if (!comma || comma == text || !comma[1] || comma - text >= (long)sizeof sound)
        return hv_fail(e, HV_EUSAGE, "--voice '%.80s': expected AUDIO.st,FACE.st", text);
    memcpy(sound, text, (size_t)(comma - text));
    sound[comma - text] = 0;
    return hv_operands_open(in, (const char *const[]){sound, comma + 1}, 2, e);
}

/* One voice against those before it: same lengths, same latents. */
static int check_voice(const struct denoise_job *j, const struct input *x, struct hv_operands *in, hv_tensor sound, hv_tensor face,
                       const char *text, struct hv_err *e)
{
    const struct dit_config *c = &x->config;
    int64_t wanted = sound.shape[0];
    double fps = 25;

    if (hv_operands_meta_int(in, "hv.frames", 1, 10000000, &wanted, e) || hv_operands_meta_real(in, "hv.fps", 0.1, 1000, &fps, e))
        return e->code;
    if (sound.shape[1] != c->audio_seq || sound.shape[2] != c->audio_layers || sound.shape[3] != c->audio_channels)
        return hv_fail(e, HV_EINPUT, "--voice %s: audio.features are not those of this model", text);
    if (face.shape[1] != j->ref.shape[2] || face.shape[2] != j->ref.shape[3])
        return hv_fail(e, HV_EINPUT, "--voice %s: a mask of %lld x %lld latents, the reference has %lld x %lld", text, (long long)face.shape[2],
                       (long long)face.shape[1], (long long)j->ref.shape[3], (long long)j->ref.shape[2]);
    if (j->voices && (wanted != x->wanted || sound.shape[0] != j->sound.shape[0] || fps < x->fps || fps > x->fps))
        return hv_fail(e, HV_EINPUT, "--voice %s: %lld frames of sound at %g a second, the first voice has %lld at %g: make them equally long", text,
                       (long long)wanted, fps, (long long)x->wanted, x->fps);
    return 0;
}

/* Latents where more than one voice acts are told. */
static void say_overlap(const struct denoise_job *j)
{
    const int64_t n = j->face.shape[1] * j->face.shape[2];
    int64_t both = 0, frames = j->face.shape[0];

    for (int v = 1; v < j->voices; v++)
        frames = j->other[v - 1].shape[0] > frames ? j->other[v - 1].shape[0] : frames;
    for (int64_t k = 0; k < frames; k++)
        for (int64_t p = 0; p < n; p++) {
            double sum = 0;
            for (int v = 0; v < j->voices; v++) {
                const hv_tensor m = v ? j->other[v - 1] : j->face;
                sum += (double)((const float *)m.data)[(k < m.shape[0] ? k : m.shape[0] - 1) * n + p];
            }
            both += sum > 1 + 1e-6;
        }
    if (both)
        hv_note(&cli, "voices: the masks overlap in %lld of %lld latents, where both sounds act", (long long)both, (long long)(frames * n));
}

int voices_read(struct denoise_job *j, struct input *x, struct hv_err *e)
{
    hv_tensor sound[DENOISE_VOICES];

    if (o.voice.n + j->voices > DENOISE_VOICES)
        return hv_fail(e, HV_EUSAGE, "--voice: at most %d voices", DENOISE_VOICES);
    if (j->voices)
        sound[0] = j->sound;
    for (int i = 0; i < o.voice.n; i++) {
        struct hv_operands *in = &x->voice[i];
        hv_tensor face;
        if (open_pair(in, o.voice.v[i], e) || hv_operands_get(in, "audio.features", &sound[j->voices], e) ||
            hv_operands_get(in, "face.mask", &face, e) || check_voice(j, x, in, sound[j->voices], face, o.voice.v[i], e))
            return e->code;
        if (!j->voices) {
            j->sound = sound[0];
            j->face = face;
            x->wanted = sound[0].shape[0];
            if (hv_operands_meta_int(in, "hv.frames", 1, 10000000, &x->wanted, e) || hv_operands_meta_real(in, "hv.fps", 0.1, 1000, &x->fps, e))
                return e->code;
        } else {
            j->other[j->voices - 1] = face;
        }
        j->voices++;
    }
    if (j->voices < 2)
        return 0;
    say_overlap(j);
    /* One after the other, as many rows of each as will be heard. */
    const int64_t real = flow_clip(x->wanted, o.max_frames).real, rows = j->sound.shape[0] < real ? j->sound.shape[0] : real;
    const size_t bytes = hv_nbytes(hv_rows(j->sound, 0, rows));
    if (!(x->sounds = malloc((size_t)j->voices * bytes)))
        return hv_fail(e, HV_ENOMEM, "voices: out of memory");
    for (int v = 0; v < j->voices; v++)
        memcpy(x->sounds + (size_t)v * bytes, sound[v].data, bytes);
    j->sound = hv_view(x->sounds, HV_F32, 4, (const int64_t[]){j->voices * rows, sound[0].shape[1], sound[0].shape[2], sound[0].shape[3]});
    return 0;
}

void voices_close(struct input *x)
{
    for (int i = 0; i < DENOISE_VOICES; i++)
        hv_operands_close(&x->voice[i]);
    free(x->sounds);
}
