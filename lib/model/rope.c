#include "model/rope.h"

#include <math.h>

void rope_table(float *cosines, float *sines, int64_t first, int64_t n, int64_t dim, double theta)
{
    const int64_t half = dim / 2;

    for (int64_t k = 0; k < half; k++) {
        const float freq = 1 / (float)pow(theta, (double)((float)(2 * k) / (float)dim));
        for (int64_t p = 0; p < n; p++) {
            const float angle = (float)(first + p) * freq;
            cosines[p * half + k] = (float)cos((double)angle);
            sines[p * half + k] = (float)sin((double)angle);
        }
    }
}
