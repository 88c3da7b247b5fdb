/* rope.c - qk_norm_rope and rope_half: rotary embeddings, in place, one row at a time. */
#include "cpu.h"

#include <math.h>

/* The angles of token t of a grid: cosines and sines of all D/2 pairs, axis after axis. */
static void grid_angles(float *c, float *s, const struct hv_rope *rope, int64_t token)
{
    const int64_t col = token % rope->grid[2], row = token / rope->grid[2] % rope->grid[1];
    const int64_t at[3] = {token / rope->grid[2] / rope->grid[1], row, col};

    for (int a = 0; a < 3; a++) {
        const int64_t n = rope->cos[a].shape[1];
        const float *ca = (const float *)rope->cos[a].data + at[a] * rope->cos[a].stride[0];
        const float *sa = (const float *)rope->sin[a].data + at[a] * rope->sin[a].stride[0];
        for (int64_t m = 0; m < n; m++) {
            *c++ = ca[m];
            *s++ = sa[m];
        }
    }
}

static void head_norm(float *x, int64_t n, const float *weight, float eps)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    const float inv = (float)(1 / sqrt(sum / (double)n + (double)eps));
    for (int64_t i = 0; i < n; i++)
        x[i] = x[i] * inv * weight[i];
}

void cpu_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope)
{
    const int64_t width = x.shape[1] / heads;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < x.shape[0]; r++) {
        float *c = cpu_scratch(d), *s = c + width / 2;
        if (rope)
            grid_angles(c, s, rope, rope->first + r);
        for (int h = 0; h < heads; h++) {
            float *p = cpu_f32(&x, r) + h * width;
            if (weight.data)
                head_norm(p, width, weight.data, eps);
            for (int64_t m = 0; rope && m < width / 2; m++) {
                const float a = p[2 * m], b = p[2 * m + 1];
                p[2 * m] = a * c[m] - b * s[m];
                p[2 * m + 1] = b * c[m] + a * s[m];
            }
        }
    }
}

void cpu_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin)
{
    const int64_t width = x.shape[1] / heads, half = width / 2;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < x.shape[0]; r++) {
        const float *c = cpu_f32(&cos, r), *s = cpu_f32(&sin, r);
        for (int h = 0; h < heads; h++) {
            float *p = cpu_f32(&x, r) + h * width;
            for (int64_t i = 0; i < half; i++) {
                const float a = p[i], b = p[i + half];
                p[i] = a * c[i] - b * s[i];
                p[i + half] = b * c[i] + a * s[i];
            }
        }
    }
}
