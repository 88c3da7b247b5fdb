/* patch.c - patchify and unpatchify: planes [C, T, H, W] to rows of patches and back; a permutation, one pass. */
#include "cpu.h"

static void rows_of_patches(struct hv_dev *d, hv_tensor rows, hv_tensor planes, const int patch[3], int gather)
{
    const int64_t pt = patch[0], ph = patch[1], pw = patch[2], channels = planes.shape[0];
    const int64_t across = planes.shape[3] / pw, down = planes.shape[2] / ph, frames = planes.shape[1] / pt;
    const int64_t *st = planes.stride;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t line = 0; line < frames * down; line++) {
        const int64_t t = line / down, i = line % down;
        for (int64_t j = 0; j < across; j++) {
            float *row = (float *)rows.data + (line * across + j) * rows.stride[0];
            for (int64_t c = 0; c < channels; c++)
                for (int64_t a = 0; a < pt; a++)
                    for (int64_t b = 0; b < ph; b++) {
                        float *px = (float *)planes.data + c * st[0] + (t * pt + a) * st[1] + (i * ph + b) * st[2]
                                  + j * pw * st[3];
                        for (int64_t e = 0; e < pw; e++, row++, px += st[3]) {
                            if (gather)
                                *row = *px;
                            else
                                *px = *row;
                        }
                    }
        }
    }
}

void cpu_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    rows_of_patches(d, y, x, patch, 1);
}

void cpu_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    rows_of_patches(d, x, y, patch, 0);
}
