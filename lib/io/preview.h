/* preview.h - latents as colours without the VAE: a linear map of the channels, and sheets of many frames with their numbers.
 *
 *     struct hv_preview_map m;
 *     if (!hv_preview_map(&m, model, latents.shape[0], e) && !hv_preview_sheet(&im, &m, latents, &sheet, e))
 *         hv_image_write_png(&im, "look.png", e);
 *
 * rgb = z . M + b, in -1 .. 1: eight times smaller than the video, and blurred, but composition, light and motion show. The map of
 * HunyuanVideo's VAE is known; that of another one is fitted by hv-tensor fit-preview and stands in MODEL/vae/config.json:
 *     "preview": {"map": [[r, g, b], ..], "bias": [r, g, b]}          a row for each channel */
#ifndef HV_PREVIEW_H
#define HV_PREVIEW_H

#include "core/tensor.h"
#include "io/image.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_PREVIEW_CHANNELS 64

struct hv_preview_map {
    int64_t channels;
    double  rgb[HV_PREVIEW_CHANNELS][3], bias[3];
};

/* The map for latents of so many channels: that of the model folder, if it has one (model may be NULL or ""); else, of 16 channels,
 * HunyuanVideo's. HV_EINPUT: what stands there is no such map. HV_EUNSUP: none is known. */
int hv_preview_map(struct hv_preview_map *m, const char *model, int64_t channels, struct hv_err *e);

/* One pixel, 0 to 1 and beyond: channel k is z[k stride]. */
void hv_preview_color(const struct hv_preview_map *m, const float *z, int64_t stride, double rgb[3]);

/* x of 0 .. 1 as a byte; NaN is 0. */
uint8_t hv_preview_level(double x);

/* Digits and '/', 3 x 5 dots of `size` pixels, white on black, its top left corner at left, top; cut at the picture's edges. */
void hv_preview_number(struct hv_image *im, int64_t left, int64_t top, int64_t size, const char *text);

struct hv_preview_sheet {
    int64_t     count;          /* frames, spread evenly over all there are; 0: all */
    int64_t     columns, zoom;  /* 0: a square sheet; pixels a latent, so that it is readable */
    const char *note;           /* below it, as "10/50"; NULL: none */
};

/* latents [C, f, h, w] f32 -> a picture, a dark pixel between the frames, each with the number of its first video frame. */
int hv_preview_sheet(struct hv_image *im, const struct hv_preview_map *m, hv_tensor latents, const struct hv_preview_sheet *s,
                     struct hv_err *e);

/* Frame k alone. im is made when it has no pixels yet. */
int hv_preview_frame(struct hv_image *im, const struct hv_preview_map *m, hv_tensor latents, int64_t k, int64_t zoom, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
