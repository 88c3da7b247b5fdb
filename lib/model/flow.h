/* flow.h - everything of the denoising loop that is not a network: timesteps, guidance, which steps are cached, the windows of a
 * long clip, the Euler step and its rounding. Host code on f32 arrays. Formulas: schedulers/scheduling_flow_match_discrete.py and
 * pipelines/pipeline_hunyuan_video_audio.py of the reference. */
#ifndef HV_FLOW_H
#define HV_FLOW_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- schedule ---- */

#define FLOW_STEPS_MAX 1000

/* sigma[0..n]: lin[i] = 1 - i/n in f32, as fma(-1/n, i, 1) for i < (n+1)/2, else fma(1/n, n-i, 0);
 * sigma = shift lin / (1 + (shift - 1) lin). sigma[0] = 1, sigma[n] = 0. */
void flow_sigmas(float *sigma, int n, double shift);

/* What the model is given: 1000 sigma. */
float flow_timestep(float sigma);

/* ---- guidance ---- */

#define FLOW_EARLY 10           /* steps that push away from the negative prompt, and soften the face mask; whatever n is */

/* i < FLOW_EARLY: (1 - i/n)(cfg - 2) + 2; later (1 - i/n) 3 + 3.5, where both branches have the positive prompt and guidance
 * acts on the sound alone. */
double flow_guidance(int i, int n, double cfg);

/* Factor of the face mask: 0.6 for i < FLOW_EARLY, else 1. */
float flow_face_factor(int i);

/* v = u + g (c - u); v may be u or c. */
void flow_guide(float *v, const float *u, const float *c, double g, size_t n);

/* ---- step cache ---- */

/* Marks the steps that are computed in full; the others run the last single block and the final layer alone.
 *     "reference"  0..15, 20, 25, 30, 35, 40..49, whatever n is
 *     "scaled"     the same pattern, stretched to n steps: equal at n = 50. The default
 *     "none"       nothing is cached
 *     "0-15,20"    these steps are full. Step 0 must be among them; HV_EUSAGE otherwise, and for numbers past n - 1 */
int flow_full_steps(uint8_t *full, int n, const char *rule, struct hv_err *e);

/* ---- step caches that judge for themselves: after Wan2GP's TeaCache and MagCache. What they skip are all blocks at once; the
 * blocks' last residual is added in their place. ---- */

/* First step that may be skipped is the one after this: a quarter of n. */
int flow_cache_start(int n);

/* TeaCache, of one window: sum += poly(change), the change of the first block's input since the step before (dit_probe); below the
 * threshold the step is skipped, else sum = 0. Steps up to flow_cache_start(n) and the last one run, with sum = 0. 1: skip. */
int flow_tea_skips(double *sum, int i, int n, double change, double threshold);

/* MagCache: marks the steps that run. Known ratios of the residual's size from step to step, for fewer or more pixels than 1280 x
 * 720, stretched to n steps, say how wrong a residual has become: p *= ratio, error += |1 - p|. At most two steps in a row are
 * skipped, and the error stays below the threshold that comes closest to n / speedup steps. Returns that threshold. */
double flow_mag_steps(uint8_t *full, int n, double speedup, int64_t pixels);

/* ---- windows ---- */

#define FLOW_WINDOW  33         /* latent frames of a window */
#define FLOW_STRIDE  4          /* video frames a latent frame, after the first */
#define FLOW_SOUND   129        /* rows of sound of a window: 4 * 33 - 3 */

/* The lengths of one clip; everything follows from the frames of sound. */
struct flow_clip {
    int64_t wanted;             /* L: frames that the sound needs */
    int64_t real;               /* rows of sound that count */
    int64_t rows;               /* A: real rows and the zero rows behind them */
    int64_t noise_frames;       /* F0: latent frames of the noise that is drawn */
    int64_t frames;             /* F: latent frames of the loop, the first of the noise's */
    int64_t video;              /* latent frames to decode, the first of the loop's */
    int64_t sound;              /* rows of the sound buffer: rows, then zeros, or cut */
    int64_t windows;            /* a step */
    int64_t offset;             /* latent frames by which the windows move back each step */
    int64_t overlap;            /* latent frames that neighbours share at least, and over which one fades into the other; 0: the
                                 * reference's windows, side by side and averaged where the last one wraps around */
    int64_t decoded, written;   /* video frames decoded, and kept */
};

/* wanted >= 1; max_frames cuts the rows that count (the reference: 400), 0: any length. */
struct flow_clip flow_clip(int64_t wanted, int64_t max_frames);

/* The same clip in as many windows as overlap by that many frames or more, at equal distances; the loop has no more frames than they
 * reach. Not the reference's. 0 < overlap < FLOW_WINDOW; a clip of one window stays what it is. */
void flow_clip_overlap(struct flow_clip *c, int64_t overlap);

/* First latent frame of window w of step i; may be negative: windows wrap around the end of the clip. */
int64_t flow_window_start(const struct flow_clip *c, int i, int64_t w);

/* frame[k] = (start + k) mod F, row[k] = (4 start + k) mod sound. */
void flow_window_frames(const struct flow_clip *c, int64_t start, int32_t frame[FLOW_WINDOW]);
void flow_window_sound(const struct flow_clip *c, int64_t start, int32_t row[FLOW_SOUND]);

/* What a window's frames count: 1, or rising and falling over the overlap. */
void flow_window_weights(const struct flow_clip *c, float weight[FLOW_WINDOW]);

/* ---- the step ---- */

/* FLOAT32: nothing is rounded. REFERENCE: the result of Euler's step to bf16, and what the clip's buffer holds to f16. */
enum flow_carry { FLOW_FLOAT32, FLOW_REFERENCE };

/* y = x + v dt, in f32, rounded by the carry. */
void flow_euler(float *y, const float *x, const float *v, float dt, size_t n, enum flow_carry carry);

/* Planes: `channels` of [frames, pixels]. gather: x[c][k] = clip[c][frame[k]], k < FLOW_WINDOW. */
void flow_gather(float *x, const float *clip, int64_t channels, int64_t frames, int64_t pixels, const int32_t *frame);

/* acc[c][frame[k]] += weight[k] y[c][k], rounded by the carry; total[frame[k]] += weight[k]. */
void flow_accumulate(float *acc, float *total, const float *y, const float *weight, int64_t channels, int64_t frames, int64_t pixels,
                     const int32_t *frame, enum flow_carry carry);

/* clip[c][f] = acc[c][f] / total[f], rounded by the carry. No total is 0. */
void flow_average(float *clip, const float *acc, const float *total, int64_t channels, int64_t frames, int64_t pixels,
                  enum flow_carry carry);

/* x rounded to f16, in place: the start of a REFERENCE run. */
void flow_round_f16(float *x, size_t n);

#ifdef __cplusplus
}
#endif
#endif
