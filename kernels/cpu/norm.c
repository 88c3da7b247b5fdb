/* norm.c - layer_norm, rms_norm, norm_modulate: a row is one thread's, two passes over it while the cache holds it. */
#include "cpu.h"

static void rows_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, const float *w, float more, const float *b, float eps)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->norm(cpu_f32(&y, r), cpu_f32(&x, r), n, w, more, b, eps);
}

void cpu_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps)
{
    rows_norm(d, y, x, weight.data, 0, bias.data, eps);
}

void cpu_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor shift, hv_tensor scale, float eps)
{
    rows_norm(d, y, x, scale.data, 1, shift.data, eps);
}

void cpu_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->rms(cpu_f32(&y, r), cpu_f32(&x, r), n, weight.data, eps);
}
