#include "model/face.h"

#include <math.h>

void face_fold(float *factor, float *bias, const float *gamma, const float *beta, const float *mean, const float *var,
               const float *conv_bias, double eps, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const double g = (double)gamma[i] / sqrt((double)var[i] + eps);
        const double before = conv_bias ? (double)conv_bias[i] : 0;
        factor[i] = (float)g;
        bias[i] = (float)((double)beta[i] + (before - (double)mean[i]) * g);
    }
}
