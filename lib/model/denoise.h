/* denoise.h - the whole denoising loop: noise to latents (pipeline_hunyuan_video_audio.py:__call__).
 *
 *     struct denoise_job job = {..., .clip = flow_clip(frames, 0)};
 *     denoise_size(&size, &job);                       // for dit_choose, dit_plan, dit_open
 *     denoise(net, &job, latents, e);                  // [C, clip.video, h, w]
 *
 *     X = noise[:, :F]
 *     for every step, for every window of 33 latent frames:
 *         vu, vc = transformer(X[window]) with silence and with the window's sound;  v = vu + g (vc - vu)
 *         the window's share of the new X = X[window] + v (sigma[i+1] - sigma[i])
 *     where windows overlap their results are averaged. All windows of a step read the X of the step's start.
 *
 * The first FLOW_EARLY steps push away from the negative prompt; after that both branches have the positive one. */
#ifndef HV_DENOISE_H
#define HV_DENOISE_H

#include "model/dit.h"
#include "model/flow.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What happens inside, for tests: data [channels, frames, h, w]. what: "uncond", "cond" (predictions of a window), "guided",
 * "latents" (after the step; window is -1). */
typedef void denoise_seen_fn(void *ctx, int step, int window, const char *what, const float *data, int64_t frames);

/* Where the loop is after a step. */
struct denoise_now {
    int          done, steps;                   /* steps done, of them all */
    const float *clip;                          /* [C, clip.frames, h, w]: latents */
    const float *clean;                         /* the same size: what they would be without noise, by this step's velocity; NULL:
                                                   job.clean_every did not ask */
    int          cached;                        /* 1: what the network keeps is needed to go on */
    const struct dit *net;
};

/* Called after each step. Not 0: the loop ends here. */
typedef int denoise_done_fn(void *ctx, const struct denoise_now *now);

/* Which steps are computed in full. LIST: job.full says, the others run the last block alone. MAG: job.full says, the others run no
 * block; TEA: neither do those that each window decides to skip. */
enum denoise_cache { DENOISE_LIST, DENOISE_MAG, DENOISE_TEA };

/* Told of every decision of a window that is not by DENOISE_LIST. sum: TEA's, with the change of this step. */
typedef void denoise_decided_fn(void *ctx, int step, int window, int full, double change, double sum);

#define DENOISE_VOICES 8

struct denoise_job {
    const struct dit_config *config;
    struct dit_text   text, negative;           /* negative is not read when guidance <= 1 */
    struct dit_fixed  fixed;
    hv_tensor         sound;                    /* [rows, seq, layers, channels]: real rows; zeros follow by the clip's rule. Of
                                                   several voices each has min(rows, clip.real), one after the other */
    hv_tensor         face;                     /* f32 [1, h, w], or one for each latent frame; the last one holds on to the end */
    int               voices;                   /* V; 0 reads as 1 */
    hv_tensor         other[DENOISE_VOICES - 1];        /* masks of the voices after the first */
    double            strength;                 /* of the sound: what the adapters add is multiplied by it. 0 reads as 1; -1: none */
    hv_tensor         ref;                      /* f32 [C, 33, h, w] */
    hv_tensor         noise;                    /* f32 [C, clip.frames or more, h, w] */
    struct flow_clip  clip;
    int               steps;
    double            shift, guidance;          /* guidance <= 1: the conditional branch alone */
    enum flow_carry   carry;
    const uint8_t    *full;                     /* [steps], of flow_full_steps or flow_mag_steps; TEA: all 1 */
    enum denoise_cache cache;
    double            threshold;                /* of TEA */
    double           *change;                   /* TEA: [steps, clip.windows], what dit_probe said, 0 where it was not asked; those of
                                                   the steps before `first` are read */
    denoise_decided_fn *decided;                /* may be NULL */
    void             *decided_ctx;
    int               first;                    /* steps done before: 0, or those of a state */
    const float      *start;                    /* then: its latents, [C, clip.frames, h, w]; what the network kept is restored */
    int               clean_every;              /* steps after which `now.clean` is made, the last one among them; 0: none */
    denoise_done_fn  *done;                     /* may be NULL */
    void             *done_ctx;
    denoise_seen_fn  *seen;                     /* may be NULL */
    void             *ctx;
};

/* Everything of dit_size but weights and scratch; act is F32. */
void denoise_size(struct dit_size *s, const struct denoise_job *j);

/* Host memory of the loop itself, as rows of a table. */
void denoise_host_rows(struct hv_plan *host, const struct denoise_job *j);

/* HV_EINPUT: shapes that do not fit; HV_ENUM: a prediction with NaN or Inf, with step, window, branch and the first block that
 * gave it. Reports "step" to the device. Where job.done ended the loop, latents are those of that step. */
int denoise(struct dit *n, const struct denoise_job *j, float *latents, struct hv_err *e);

/* Of the clip's latents those that are to be decoded: [C, clip.video, h, w]. */
void denoise_result(const struct denoise_job *j, const float *clip, float *latents);

#ifdef __cplusplus
}
#endif
#endif
