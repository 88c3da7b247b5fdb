/* group.c - group_sums and group_norm over channels-last video, straight from their definitions. */
#include "cpu.h"

#include <math.h>

void cpu_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x)
{
    const int64_t groups = sums.shape[0], each = x.shape[3] / groups, cells = cpu_rows(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t g = 0; g < groups; g++) {
        double *s = (double *)sums.data + 2 * g, sum = 0, squares = 0;
        for (int64_t r = 0; r < cells; r++) {
            const float *p = cpu_f32(&x, r) + g * each;
            for (int64_t c = 0; c < each; c++) {
                sum += (double)p[c];
                squares += (double)p[c] * (double)p[c];
            }
        }
        s[0] += sum;
        s[1] += squares;
    }
}

void cpu_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                    hv_tensor bias, float eps, enum hv_act act)
{
    const int64_t channels = x.shape[3], each = channels / sums.shape[0], cells = cpu_rows(&x);
    const float *w = weight.data, *b = bias.data;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < cells; r++) {
        const float *p = cpu_f32(&x, r);
        float *o = cpu_f32(&y, r);
        for (int64_t c = 0; c < channels; c++) {
            const double *s = (const double *)sums.data + c / each * 2, mean = s[0] / count;
            const double var = s[1] / count - mean * mean;
            o[c] = (float)(((double)p[c] - mean) / sqrt((var > 0 ? var : 0) + (double)eps)) * w[c] + b[c];
        }
        if (act != HV_ACT_NONE)
            cpu_act(o, o, channels, act);
    }
}
