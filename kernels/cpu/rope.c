/* rope.c - qk_norm_rope and rope_half: rotary embeddings in place, a row at a time. */
#include "cpu.h"

/* The angles of a token of the grid, axis after axis, spread over the pairs: c = cos cos, s = -sin sin. */
static void spread_angles(float *c, float *s, const struct hv_rope *rope, int64_t token)
{
    const int64_t col = token % rope->grid[2], row = token / rope->grid[2] % rope->grid[1];
    const int64_t at[3] = {token / rope->grid[2] / rope->grid[1], row, col};

    for (int a = 0; a < 3; a++) {
        const float *ca = (const float *)rope->cos[a].data + at[a] * rope->cos[a].stride[0];
        const float *sa = (const float *)rope->sin[a].data + at[a] * rope->sin[a].stride[0];
        for (int64_t m = 0; m < rope->cos[a].shape[1]; m++, c += 2, s += 2) {
            c[0] = c[1] = ca[m];
            s[0] = -sa[m];
            s[1] = sa[m];
        }
    }
}

void cpu_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t width = x.shape[1] / heads;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < x.shape[0]; r++) {
        float *c = cpu_scratch(d), *s = c + width;
        if (rope)
            spread_angles(c, s, rope, rope->first + r);
        for (int h = 0; h < heads; h++) {
            float *p = cpu_f32(&x, r) + h * width;
            if (weight.data)
                simd->rms(p, p, width, weight.data, eps);
            if (rope)
                simd->turn_pairs(p, c, s, width);
        }
    }
}

void cpu_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin)
{
    const struct cpu_simd *const simd = cpu_simd();
    const int64_t width = x.shape[1] / heads;

#pragma omp parallel for num_threads(d->threads)
    for (int64_t r = 0; r < x.shape[0]; r++)
        for (int h = 0; h < heads; h++)
            simd->turn_halves(cpu_f32(&x, r) + h * width, cpu_f32(&cos, r), cpu_f32(&sin, r), width / 2);
}
