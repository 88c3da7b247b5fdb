/* window.h - encoder states to one window of 10 rows a video frame (data_kits/audio_preprocessor.py:encode_audio).
 *
 *     struct hv_windows w = {states, rows, S * C, hv_window_step(25)};
 *     hv_window_copy(&w, offset, buf, n);              // bytes offset .. offset + n of features [F, 10, S, C]
 *
 * A row of states [rows, S, C] is 20 ms. Four rows of zeros stand in front, so frame f of a video at 25 frames a second sees
 * rows 2f - 4 .. 2f + 5 (12.5: 4f - 4 .. 4f + 5). Rows of all 30 s blocks form one sequence: a window at a border reads the
 * end of one block and the beginning of the next. Rows past the last block are zeros, as those before the first are. */
#ifndef HV_WINDOW_H
#define HV_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HV_WINDOW_ROWS 10
#define HV_WINDOW_LEAD 4

struct hv_windows {
    const float *states;                /* [rows, width] */
    int64_t      rows, width;
    int          step;                  /* rows a frame */
};

/* 2 at 25 frames a second, 4 at 12.5, 0 at any other rate. */
int hv_window_step(double fps);

/* Frames of a video that lasts as long as n samples at 16 kHz, 1 or more. */
int64_t hv_window_frames(int64_t n, double fps);

/* The reference's count: 25 a second at any fps, at most 400, at 12.5 at most the 374 that one block of 1500 rows serves. */
int64_t hv_window_reference_frames(int64_t n, double fps);

/* Bytes offset .. offset + n of the features as f32, any offset. */
void hv_window_copy(const struct hv_windows *w, uint64_t offset, void *buf, size_t n);

#ifdef __cplusplus
}
#endif
#endif
