/* video.h - frames out: y4m or raw RGB on a file or a pipe, PNG files, MP4 through the ffmpeg program.
 *
 *     struct hv_video *v = NULL;
 *     struct hv_video_opts o = {.format = HV_VIDEO_MP4, .path = "out.mp4", .sound = "speech.wav", .crf = 18,
 *                               .width = 704, .height = 768, .fps = 25};
 *     if (!hv_video_open(&v, &o, e))
 *         while (..)
 *             hv_video_frame(v, rgb, e);               // [height, width, 3]
 *     hv_video_close(v, ok, e);                        // ok 0: nothing is left
 *
 * y4m is 8-bit 4:4:4 (C444), so no colour is lost on the way: BT.601, limited range, which is what ffmpeg takes an untagged
 * stream for. Files are written aside and renamed when whole; pipes and devices are written as they are.
 *
 * MP4: frames are kept as y4m beside the output, then one call of ffmpeg encodes them and the sound: libx264 at `crf`, yuv420p,
 * AAC, as long as the shorter of the two. It is given an argument vector, never a shell's command line. When ffmpeg is missing
 * or fails, the frames stay in PATH.y4m, and the message says so. */
#ifndef HV_VIDEO_H
#define HV_VIDEO_H

#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

enum hv_video_format { HV_VIDEO_NONE, HV_VIDEO_MP4, HV_VIDEO_Y4M, HV_VIDEO_RGB, HV_VIDEO_PNG, HV_VIDEO_ST };

struct hv_video_opts {
    enum hv_video_format format;        /* of this module: not HV_VIDEO_ST */
    const char *path;                   /* NULL or "-": stdout, y4m and rgb alone. png: OUT or OUT.png makes OUT00000.png, .. */
    const char *sound;                  /* mp4: a sound file that ffmpeg reads, or NULL */
    int         crf;                    /* mp4: 0..51 */
    int         width, height;
    double      fps;
};

struct hv_video;

/* "mp4", "y4m", "rgb", "png", "st"; HV_VIDEO_NONE for another word. */
enum hv_video_format hv_video_format_of(const char *name);

/* The format that the end of a file name asks for, HV_VIDEO_NONE when it asks for none. */
enum hv_video_format hv_video_format_for(const char *path);

/* HV_EUSAGE: mp4 or png without a file, or a terminal. HV_EIO: the output cannot be made, or the sound not be read. HV_EINPUT:
 * sizes that yuv420p cannot have. */
int hv_video_open(struct hv_video **v, const struct hv_video_opts *o, struct hv_err *e);

/* Writes a frame, rows from the top. HV_EIO: disk full, or the reader of a pipe is gone. */
int hv_video_frame(struct hv_video *v, const uint8_t *rgb, struct hv_err *e);

/* ok 1: finishes the output; HV_EIO when that fails. ok 0, or after a failure: removes it (PNG files stay). v is gone. */
int hv_video_close(struct hv_video *v, int ok, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
