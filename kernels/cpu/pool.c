/* pool.c - max_pool and upsample2 of channels-last images. */
#include "cpu.h"

#include <math.h>
#include <string.h>

void cpu_max_pool(struct hv_dev *d, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode)
{
    (void)ceil_mode;                    /* it is in y's shape */
#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < y.shape[0]; i++)
        for (int64_t j = 0; j < y.shape[1]; j++) {
            float *o = (float *)y.data + i * y.stride[0] + j * y.stride[1];
            for (int64_t c = 0; c < y.shape[2]; c++)
                o[c] = -INFINITY;
            for (int64_t a = i * s - pad; a < i * s - pad + k; a++)
                for (int64_t b = j * s - pad; b < j * s - pad + k; b++) {
                    if (a < 0 || b < 0 || a >= x.shape[0] || b >= x.shape[1])
                        continue;
                    const float *p = (const float *)x.data + a * x.stride[0] + b * x.stride[1];
                    for (int64_t c = 0; c < y.shape[2]; c++)
                        o[c] = p[c] > o[c] || isnan(p[c]) ? p[c] : o[c];
                }
        }
}

void cpu_upsample2(struct hv_dev *d, hv_tensor y, hv_tensor x)
{
#pragma omp parallel for num_threads(d->threads)
    for (int64_t i = 0; i < y.shape[0]; i++)
        for (int64_t j = 0; j < y.shape[1]; j++)
            memcpy((float *)y.data + i * y.stride[0] + j * y.stride[1],
                   (const float *)x.data + i / 2 * x.stride[0] + j / 2 * x.stride[1], (size_t)x.shape[2] * 4);
}
