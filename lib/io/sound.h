/* sound.h - any sound file in, 16 kHz mono float out.
 *
 *     struct hv_sound s = {0};
 *     if (!hv_sound_read(&s, "speech.wav", 0, e))
 *         ... s.x[0 .. s.n - 1], s.n / 16000.0 seconds ...
 *     hv_sound_close(&s);
 *
 * libsndfile decodes (WAV, FLAC, Ogg, MP3, ..); what it refuses goes through the ffmpeg program. Channels are averaged in
 * float32 before libsoxr resamples (quality HQ), as librosa.load does: samples equal the reference's to the last bit on
 * x86-64. Samples at 16 kHz pass unchanged. The file is taken in blocks: memory is that of the result, 64 KB a second. */
#ifndef HV_SOUND_H
#define HV_SOUND_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_SOUND_RATE  16000
#define HV_SOUND_LEAST 640                      /* samples: 40 ms, one frame of video at 25 a second */

struct hv_sound {
    float  *x;                                  /* owned */
    int64_t n;
    int     rate, channels;                     /* of the file */
};

/* Reads a file, a pipe or, for "-" or NULL, stdin; what is not a regular file is copied to a temporary first, which is removed
 * again. duration > 0: only the first (long)(duration * rate) sample frames of the file.
 * HV_EIO: cannot be read. HV_EINPUT: empty, cut, corrupt, no sound in it, NaN or Inf or beyond +-1e6 in it, under 40 ms.
 * HV_EUNSUP: a sampling rate outside 1 kHz .. 768 kHz. Messages start with the path. */
int  hv_sound_read(struct hv_sound *s, const char *path, double duration, struct hv_err *e);
void hv_sound_close(struct hv_sound *s);

#ifdef __cplusplus
}
#endif
#endif
