/* boxes.h - a face that moves: JSON lines with the box of each video frame. */
#ifndef HV_FACE_BOXES_H
#define HV_FACE_BOXES_H

#include "core/err.h"
#include "model/face.h"

/* Reads {"box":[x,y,w,h]} a line, in pixels of the resized picture, or {"box":null} where no face is: then w is 0. The caller frees
 * *box. HV_EINPUT with path and line. */
int boxes_read(struct face_box **box, int *n, const char *path, struct hv_err *e);

/* Masks [(n - 1 + 3) / 4 + 1, height/8, width/8] for the latent frames of n video frames: where the face is in any of the frames that
 * a latent frame stands for (the first for itself, then four each). HV_EFACE: a box covers nothing of the picture. */
int boxes_masks(float *mask, const struct face_box *box, int n, int width, int height, double area, struct hv_err *e);

int64_t boxes_latents(int n);

#endif
