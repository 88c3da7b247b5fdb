/* image_codec.h - the decoders behind image.c, one format each. `orientation` receives the EXIF orientation, 1 where the file
 * says nothing. Errors as hv_image_decode, without a path. */
#ifndef HV_IMAGE_CODEC_H
#define HV_IMAGE_CODEC_H

#include "io/image.h"

int hv_png_decode(struct hv_image *im, const uint8_t *bytes, size_t n, int *orientation, struct hv_err *e);
int hv_jpeg_decode(struct hv_image *im, const uint8_t *bytes, size_t n, int *orientation, struct hv_err *e);
int hv_pnm_decode(struct hv_image *im, const uint8_t *bytes, size_t n, struct hv_err *e);

/* The orientation (1..8) of an EXIF block, which begins with its byte order "II" or "MM"; 1 where it has none that is sound. */
int hv_exif_orientation(const uint8_t *tiff, size_t n);

#endif
