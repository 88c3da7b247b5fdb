/* Quantization: every set of instructions gives the same bytes, and the errors are those that the format promises. */
#include "unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "mem/quant.h"
#include "mem/quant_kernel.h"

#define N 4099

static int has(const char *what)
{
#if defined(__x86_64__)
    return !strcmp(what, "avx2") ? !!__builtin_cpu_supports("avx2") :
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#else
    return (void)what, 0;
#endif
}

/* Numbers of every size, and those that are halfway between two. */
static void fill(float *w, float scale)
{
    struct hv_rng g;

    hv_rng_cpu(&g, 5);
    for (int i = 0; i < N; i++) {
        const uint32_t u = hv_rng_u32(&g);
        switch (i % 4) {
        case 0: w[i] = ((float)(u % 512) - 256) * 0.5f * scale; break;
        case 1: w[i] = ldexpf((float)(int32_t)u * 0x1p-31f, (int)(hv_rng_u32(&g) % 24) - 14) * scale; break;
        case 2: w[i] = ldexpf((float)(int)(u % 64) - 32, -11) * scale; break;
        default: w[i] = (float)(int32_t)u * 0x1p-22f * scale;
        }
    }
}

static int8_t i8_of(float x)
{
    x = x < -127 ? -127 : x > 127 ? 127 : x;
    return (int8_t)rintf(x);
}

static void same_bytes(void **state)
{
    static float w[N];
    static const float scales[] = {1, 0.37f, 1e-20f, 3e10f};
    int8_t q[N], want_q[N];
    uint8_t f[N], want_f[N];

    (void)state;
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        fill(w, scales[s]);
        uint32_t want_max = 0;
        for (int i = 0; i < N; i++) {
            uint32_t u;
            memcpy(&u, &w[i], 4);
            want_max = (u & 0x7fffffff) > want_max ? u & 0x7fffffff : want_max;
            want_q[i] = i8_of(w[i] / scales[s]);
            want_f[i] = hv_f32_to_e4m3(w[i] / scales[s]);
        }
        hv_quant(HV_I8, q, w, scales[s], N);
        hv_quant(HV_F8_E4M3, f, w, scales[s], N);
        assert_memory_equal(q, want_q, N);
        assert_memory_equal(f, want_f, N);
        for (int wide = 0; wide < 2; wide++) {
            if (!has(wide ? "avx512" : "avx2"))
                continue;
            uint32_t max = 0;
            size_t n = (wide ? hv_quant_i8_avx512 : hv_quant_i8_avx2)(q, w, scales[s], N);
            assert_true(n > N - 32 && n <= N);
            assert_memory_equal(q, want_q, n);
            n = (wide ? hv_quant_e4m3_avx512 : hv_quant_e4m3_avx2)(f, w, scales[s], N);
            assert_true(n > N - 32 && n <= N);
            assert_memory_equal(f, want_f, n);
            n = (wide ? hv_absmax_avx512 : hv_absmax_avx2)(&max, w, N - 3);
            for (; n < N; n++) {
                uint32_t u;
                memcpy(&u, &w[n], 4);
                max = (u & 0x7fffffff) > max ? u & 0x7fffffff : max;
            }
            assert_int_equal(max, want_max);
        }
    }
}

static void finds_what_is_not_finite(void **state)
{
    float w[100];

    (void)state;
    for (int at = 0; at < 100; at++)
        for (int k = 0; k < 3; k++) {
            for (int i = 0; i < 100; i++)
                w[i] = (float)i;
            w[at] = k == 0 ? NAN : k == 1 ? INFINITY : -INFINITY;
            assert_true(isnan(hv_quant_scale(HV_I8, w, 100)));
            assert_true(isnan(hv_quant_scale(HV_F8_E4M3, w, 100)));
        }
}

/* Relative error in the Frobenius norm of a matrix of 1024 x 3072, one scale a row. */
static double error_of(const float *w, hv_dtype t)
{
    enum { ROWS = 1024, COLS = 3072 };
    static uint8_t q[COLS];
    static float back[COLS];
    double dd = 0, aa = 0;

    for (int r = 0; r < ROWS; r++) {
        const float *row = w + (size_t)r * COLS, scale = hv_quant_scale(t, row, COLS);
        hv_quant(t, q, row, scale, COLS);
        hv_dequant(back, t, q, scale, 0, COLS);
        for (int i = 0; i < COLS; i++) {
            const double d = (double)back[i] - (double)row[i];
            dd += d * d;
            aa += (double)row[i] * (double)row[i];
        }
    }
    return sqrt(dd / aa);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Student t of 4 degrees out of normal numbers: over the root of a chi-square of 4 degrees over 4. */
static void make_heavy(struct hv_rng *g, float *w, size_t n)
{
    float *chi = calloc(n, sizeof *chi), *z = malloc(n * sizeof *z);

    assert_non_null(chi);
    assert_non_null(z);
    for (int k = 0; k < 4; k++) {
        hv_rng_normal(g, HV_F32, z, n);
        for (size_t i = 0; i < n; i++)
            chi[i] += z[i] * z[i];
    }
    for (size_t i = 0; i < n; i++)
        w[i] /= sqrtf(chi[i] / 4);
    free(chi);
    free(z);
}

/* The table of the specification (numpy, other random numbers), within 5 %. The square of the largest number of a row of heavy
 * tails has no variance, so that one row may spoil a matrix: the median of three. */
static void errors(void **state)
{
    static const double table[2][2] = {{0.0085, 0.0265}, {0.0247, 0.0260}};       /* Gaussian, heavy: int8, fp8 */
    const size_t n = (size_t)1024 * 3072;
    float *w = malloc(n * sizeof *w);

    (void)state;
    assert_non_null(w);
    for (int heavy = 0; heavy < 2; heavy++) {
        double got[2][3];
        for (uint64_t seed = 0; seed < 3; seed++) {
            struct hv_rng g;
            hv_rng_cpu(&g, 11 + seed);
            hv_rng_normal(&g, HV_F32, w, n);
            if (heavy)
                make_heavy(&g, w, n);
            got[0][seed] = error_of(w, HV_I8);
            got[1][seed] = error_of(w, HV_F8_E4M3);
        }
        for (int t = 0; t < 2; t++) {
            qsort(got[t], 3, sizeof got[t][0], by_size);
            if (fabs(got[t][1] - table[heavy][t]) > 0.05 * table[heavy][t])
                fail_msg("%s, %s: %.5f, the table has %.4f", heavy ? "Student t of 4 degrees" : "Gaussian", t ? "fp8" : "int8",
                         got[t][1], table[heavy][t]);
        }
    }
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bytes), cmocka_unit_test(finds_what_is_not_finite), cmocka_unit_test(errors),
    };

    return RUN(tests);
}
