/* norm.c - layer_norm, rms_norm, norm_modulate: one row at a time, two passes over a row that the cache holds. */
#include "cpu.h"

#include <math.h>

static void row_norm(float *y, const float *x, int64_t n, const float *weight, const float *bias, float eps)
{
    double sum = 0, var = 0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i];
    const double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++)
        var += ((double)x[i] - mean) * ((double)x[i] - mean);
    const double inv = 1 / sqrt(var / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i++) {
        float v = (float)(((double)x[i] - mean) * inv);
        if (weight)
            v *= weight[i];
        y[i] = bias ? v + bias[i] : v;
    }
}

void cpu_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps)
{
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        row_norm(cpu_f32(&y, r), cpu_f32(&x, r), n, weight.data, bias.data, eps);
}

void cpu_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor shift, hv_tensor scale, float eps)
{
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);
    const float *a = scale.data, *b = shift.data;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++) {
        float *o = cpu_f32(&y, r);
        row_norm(o, cpu_f32(&x, r), n, NULL, NULL, eps);
        for (int64_t i = 0; i < n; i++)
            o[i] = o[i] * (1 + a[i]) + b[i];
    }
}

void cpu_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps)
{
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);
    const float *w = weight.data;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = cpu_f32(&x, r);
        float *o = cpu_f32(&y, r);
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            sum += (double)a[i] * (double)a[i];
        const float inv = (float)(1 / sqrt(sum / (double)n + (double)eps));
        for (int64_t i = 0; i < n; i++)
            o[i] = w ? a[i] * inv * w[i] : a[i] * inv;
    }
}
