/* image.h - pictures: PNG, JPEG, PPM and PGM in, PNG out, and the reference's resampling to the last bit.
 *
 *     struct hv_image im = {0};
 *     if (!hv_image_portrait(&im, "me.jpg", 704, 1, e))        // read, turned as EXIF says, resized by the size rule
 *         ... im.rgb[(y * im.width + x) * 3 + c] ...
 *     hv_image_close(&im);
 *
 * A picture is 8-bit RGB, rows from the top, without gaps: [height, width, 3]. Palettes and gray are expanded, alpha is
 * dropped, 16 bits are reduced to 8. Nothing is assumed of a file: its format follows from its first bytes. */
#ifndef HV_IMAGE_H
#define HV_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_IMAGE_PIXELS ((int64_t)1 << 28)      /* more is refused before anything is allocated */
#define HV_IMAGE_BYTES  ((size_t)1 << 30)       /* of a file */

struct hv_image {
    int      width, height;
    uint8_t *rgb;                               /* owned */
};

/* Reads a file, or stdin for "-" or NULL. exif 1: the picture is turned and mirrored as its EXIF orientation says; 0: the
 * stored pixels, which is what the reference takes. Messages start with the path (stdin: "stdin").
 * HV_EIO: cannot be read. HV_EINPUT: cut, corrupt, empty, too large, or not a picture. HV_EUNSUP: a CMYK JPEG. */
int hv_image_read(struct hv_image *im, const char *path, int exif, struct hv_err *e);

/* The same from n bytes in memory. */
int hv_image_decode(struct hv_image *im, const void *bytes, size_t n, int exif, struct hv_err *e);

/* The whole of what a stage does to a portrait: hv_image_read, hv_image_size_rule, hv_image_resize by HV_LANCZOS. Every
 * stage that takes the portrait calls this, so that all see the same pixels. */
int hv_image_portrait(struct hv_image *im, const char *path, int tier, int exif, struct hv_err *e);

/* New picture of width x height pixels, black; HV_ENOMEM, HV_EINPUT when a side is below 1 or the area is absurd. */
int  hv_image_open(struct hv_image *im, int64_t width, int64_t height, struct hv_err *e);
void hv_image_close(struct hv_image *im);

/* The size at which a picture of width x height is worked on: sides are multiples of 64, the short one near `tier` (704, 512,
 * 384, 256 or any other), the area at most tier * long side of the tier where the rule manages it
 * (data_kits/audio_dataset.py:get_batch_data). HV_EINPUT for a picture so thin that a side would be 0. */
int hv_image_size_rule(int width, int height, int tier, int *new_width, int *new_height, struct hv_err *e);

enum hv_filter { HV_BILINEAR, HV_LANCZOS };     /* support 1 and 3 source pixels, wider when shrinking */

/* dst = src resampled, horizontally first, each pass rounded to 8 bits: Pillow 10's Image.resize bit for bit. dst is made,
 * and may not be src. A pass that changes no size is left out. */
int hv_image_resize(struct hv_image *dst, const struct hv_image *src, int width, int height, enum hv_filter filter,
                    struct hv_err *e);

/* The same bilinearly without antialiasing, in OpenCV's fixed point (cv2.resize, INTER_LINEAR, 8 bits) bit for bit: what the
 * face detector of the reference is fed with. */
int hv_image_resize_cv(struct hv_image *dst, const struct hv_image *src, int width, int height, struct hv_err *e);

/* Writes a PNG: to a temporary that is renamed when whole. */
int hv_image_write_png(const struct hv_image *im, const char *path, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
