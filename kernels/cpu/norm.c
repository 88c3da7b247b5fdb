/* norm.c - layer_norm, rms_norm, row_stats, norm_modulate: a row is one thread's, read again while the cache holds it. */
#include "cpu.h"

void cpu_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->norm(cpu_f32(&y, r), cpu_f32(&x, r), n, weight.data, 0, bias.data, eps);
}

void cpu_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->stats((float *)stat.data + 2 * r, cpu_f32(&x, r), n, eps);
}

void cpu_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->modulate(cpu_f32(&y, r), cpu_f32(&x, r), n, (const float *)stat.data + 2 * r, scale.data, shift.data);
}

void cpu_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t rows = cpu_rows(&x), n = cpu_width(&x);

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < rows; r++)
        simd->rms(cpu_f32(&y, r), cpu_f32(&x, r), n, weight.data, eps);
}
