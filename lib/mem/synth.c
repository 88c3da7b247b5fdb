#include "mem/synth.h"

#include <math.h>
#include <string.h>

#include "mem/synth_kernel.h"

static uint64_t fnv1a64(const char *name)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001B3u;
    return h;
}

static int ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n >= k && !strcmp(s + n - k, tail);
}

static struct hv_affine affine_of(const char *name, int ndim, const int64_t *shape, float gain)
{
    struct hv_affine a = {.mul = 0.02f, .add = 0, .gain = 1};
    double fan_in = 1;

    if (ndim >= 2) {
        for (int i = 1; i < ndim; i++)
            fan_in *= (double)shape[i];
        a.mul = fan_in > 0 ? (float)sqrt(3.0 / fan_in) : 0;
    } else if (ends_with(name, ".weight")) {
        a.mul = 0.1f;
        a.add = 1;
    }
    /* The rule of the goldens of the face detector: its products would fade away layer by layer. */
    if (gain > 0 && ndim == 4 && ends_with(name, ".weight"))
        a.gain = gain;
    return a;
}

void hv_synth_scalar(hv_dtype t, void *dst, uint64_t state, size_t n, struct hv_affine a)
{
    for (size_t i = 0; i < n; i++, state += HV_SYNTH_STEP) {
        uint64_t x = state;
        x = (x ^ x >> 30) * HV_SYNTH_MIX1;
        x = (x ^ x >> 27) * HV_SYNTH_MIX2;
        x ^= x >> 31;
        const float u = (float)(x >> 40) * 0x1p-24f;
        const float r = 2.0f * u - 1.0f;
        const float p = a.mul * r;
        const float s = a.add + p;
        const float v = s * a.gain;
        hv_from_f32(t, (char *)dst + i * hv_dtype_size(t), &v, 1);
    }
}

static void run(hv_dtype t, void *dst, const char *name, uint64_t seed, uint64_t first, size_t n, struct hv_affine a)
{
    const uint64_t state = fnv1a64(name) + seed * 0xD1B54A32D192ED03u + (first + 1) * HV_SYNTH_STEP;
    const int wide = t == HV_F32 || t == HV_F16 || t == HV_BF16;
    size_t done = 0;

#if defined(__x86_64__)
    if (wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        done = hv_synth_avx512(t, dst, state, n, a);
    else if (wide && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        done = hv_synth_avx2(t, dst, state, n, a);
#endif
    hv_synth_scalar(t, (char *)dst + done * hv_dtype_size(t), state + done * HV_SYNTH_STEP, n - done, a);
}

void hv_synth(float *dst, const char *name, int ndim, const int64_t *shape, uint64_t seed, uint64_t first, size_t n)
{
    run(HV_F32, dst, name, seed, first, n, affine_of(name, ndim, shape, 0));
}

void hv_synth_as(hv_dtype t, void *dst, const char *name, int ndim, const int64_t *shape, uint64_t seed, float gain,
                 uint64_t first, size_t n)
{
    run(t, dst, name, seed, first, n, affine_of(name, ndim, shape, gain));
}

void hv_synth_activation(float *dst, const char *name, uint64_t seed, size_t n)
{
    run(HV_F32, dst, name, seed, 0, n, (struct hv_affine){.mul = 1, .add = 0, .gain = 1});
}
