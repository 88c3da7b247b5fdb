/* mel.h - 16 kHz samples to log-mel frames, 30 seconds at a time (transformers WhisperFeatureExtractor).
 *
 *     for (int64_t c = 0; c < hv_mel_blocks(n); c++)
 *         hv_mel_block(mel, x, n, c, e);                   // mel [3000, 80]: a frame every 10 ms, channels last
 *
 * Frames of 400 samples every 160, periodic Hann window, edges of the block mirrored, squared magnitudes of the DFT at 0, 40,
 * .. 8000 Hz, 80 Slaney mel filters:
 *
 *     l = log10(max(filters . power, 1e-10));  mel = (max(l, max over the block - 8) + 4) / 4
 *
 * After the end of the sound the block is silence. The sums are in double, the result is f32. */
#ifndef HV_MEL_H
#define HV_MEL_H

#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_MEL_BINS    80
#define HV_MEL_FREQS   201
#define HV_MEL_FRAMES  3000             /* of a block */
#define HV_MEL_SAMPLES 480000           /* of a block: 30 s */

/* Blocks that n samples touch, 1 or more. */
int64_t hv_mel_blocks(int64_t n);

/* mel [3000][80] of samples 480000 block .. of x [n]. HV_ENOMEM. */
int hv_mel_block(float *mel, const float *x, int64_t n, int64_t block, struct hv_err *e);

/* The filters M [80][201], rounded to f32. */
void hv_mel_filters(float *m);

#ifdef __cplusplus
}
#endif
#endif
