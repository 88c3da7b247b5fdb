/* The CPU's vector loops, every variant that this machine can run, against plain double precision. The operations are tested on
 * the variant that the machine would choose (test_ops); here the others are, and the exponential to the last bits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/simd.h"
#include "tests/unit/ref_ops.h"

static const struct cpu_simd *tables[3];
static int count;

static double uniform(void)                         /* -1 .. 1 */
{
    static uint64_t seed = 99;

    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)seed / 9223372036854775808.0;
}

static void fill(float *p, int64_t n, double size)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(size * uniform());
}

#define EACH_TABLE(t) for (const struct cpu_simd *const *t##_ = tables, *t; t##_ < tables + count && (t = *t##_); t##_++)

/* a is b to `tol` of size. */
static void near(const char *table, const char *what, double a, double b, double tol, double size)
{
    if (!(fabs(a - b) <= tol * size))
        fail_msg("%s: %s: %.9g, expected %.9g", table, what, a, b);
}

static void widen_is_exact(void **state)
{
    static uint16_t half[65536 + 3];
    static float got[65536 + 3], want[65536 + 3];
    int8_t bytes[256 + 5];

    (void)state;
    for (int i = 0; i < 65536 + 3; i++)
        half[i] = (uint16_t)i;
    for (int i = 0; i < 256 + 5; i++)
        bytes[i] = (int8_t)i;
    EACH_TABLE(t)
        for (hv_dtype type = HV_I8; type <= HV_BF16; type++) {
            if (type == HV_F8_E5M2 || type == HV_U16 || type == HV_I16)
                continue;
            const int wide = hv_dtype_size(type) == 2;
            const int64_t n = wide ? 65539 : 261;
            for (int rounded = 0; rounded < (wide ? 1 : 2); rounded++) {
                hv_to_f32(want, type, wide ? (void *)half : (void *)bytes, (size_t)n);
                t->widen(got, type, wide ? (void *)half : (void *)bytes, n, 0.37f, rounded);
                for (int64_t i = 0; i < n; i++) {
                    const float w = wide ? want[i] : want[i] * 0.37f, v = rounded ? hv_bf16_to_f32(hv_f32_to_bf16(w)) : w;
                    if (isnan(v) ? !isnan(got[i]) : memcmp(&v, &got[i], 4))
                        fail_msg("%s: %s %d: %g, expected %g", t->name, hv_dtype_name(type), (int)i, (double)got[i], (double)v);
                }
            }
        }
}

static void activations(void **state)
{
    enum { N = 4096 + 5 };
    static float x[N], y[N], u[N];

    (void)state;
    EACH_TABLE(t) {
        fill(x, N, 12);
        fill(u, N, 1);
        for (int act = 0; act < HV_ACTS; act++) {
            t->act(y, x, N, (enum hv_act)act);
            for (int i = 0; i < N; i++)
                near(t->name, "activation", (double)y[i], ref_act((double)x[i], (enum hv_act)act), 3e-7, fabs((double)x[i]));
        }
        t->swiglu(y, x, u, N);
        for (int i = 0; i < N; i++)
            near(t->name, "swiglu", (double)y[i], ref_act((double)x[i], HV_ACT_SILU) * (double)u[i], 3e-7, fabs((double)x[i]));
    }
}

/* silu(x) of a large -x is x e^x: the exponential to 3 ulp over its range, products and the quotient included. */
static void exponential(void **state)
{
    enum { N = 20000 };
    static float x[N], y[N];

    (void)state;
    for (int i = 0; i < N; i++)
        x[i] = (float)(-18 - 65.0 * i / N);
    EACH_TABLE(t) {
        t->act(y, x, N, HV_ACT_SILU);
        for (int i = 0; i < N; i++) {
            const double want = (double)x[i] * exp((double)x[i]);
            near(t->name, "x e^x", (double)y[i], want, 3.5 * 0x1p-24, fabs(want));
        }
    }
}

/* One tile of scores: 2^(s - top) to 2 ulp, sums, and what came before. */
static void softmax(void **state)
{
    enum { N = 67 };
    float s[N * KC], was[N * KC], top[KC], sum[KC], shrink[KC], old[KC];

    (void)state;
    EACH_TABLE(t)
        for (int tile = 0; tile < 2; tile++) {
            fill(s, N * KC, 40);
            for (int j = 0; j < KC; j++) {
                old[j] = top[j] = tile ? (float)(40 * uniform()) : -INFINITY;
                sum[j] = (float)(tile * 3);
                s[(j % N) * KC + j] = -INFINITY;
            }
            memcpy(was, s, sizeof s);
            t->softmax(s, N, top, sum, shrink);
            for (int j = 0; j < KC; j++) {
                double most = (double)old[j], total = 0;
                for (int i = 0; i < N; i++)
                    most = fmax(most, (double)was[i * KC + j]);
                for (int i = 0; i < N; i++) {
                    const double want = exp2((double)(was[i * KC + j] - (float)most));
                    near(t->name, "2^(s - top)", (double)s[i * KC + j], want, 2 * 0x1p-23, want);
                    total += want;
                }
                const double f = exp2((double)old[j] - most);
                near(t->name, "top", (double)top[j], most, 0, 1);
                near(t->name, "shrink", (double)shrink[j], f, 1e-5, f);
                near(t->name, "sum", (double)sum[j], tile * 3 * f + total, 1e-5, total);
            }
        }
}

static void products(void **state)
{
    enum { N = 131 };
    static float a[N * KR], b[N * KC], c[KR * KC], before[KR * KC], alpha[KC];

    (void)state;
    EACH_TABLE(t)
        for (int merge = 0; merge < 2; merge++) {
            fill(a, N * KR, 1);
            fill(b, N * KC, 1);
            fill(c, KR * KC, 1);
            fill(alpha, KC, 1);
            memcpy(before, c, sizeof c);
            t->product(c, a, b, N, merge ? alpha : NULL);
            for (int r = 0; r < KR; r++)
                for (int j = 0; j < KC; j++) {
                    double want = merge ? (double)alpha[j] * (double)before[r * KC + j] : 0;
                    for (int i = 0; i < N; i++)
                        want += (double)a[i * KR + r] * (double)b[i * KC + j];
                    near(t->name, "product", (double)c[r * KC + j], want, 1e-6, 10);
                }
        }
}

static void dots(void **state)
{
    enum { N = 301 };
    static float x[4 * (N + 3)], w[N];
    static uint16_t h[N];
    float y[8];

    (void)state;
    EACH_TABLE(t)
        for (int64_t n = 1; n <= N; n += 25) {
            fill(x, 4 * (N + 3), 1);
            fill(w, N, 1);
            hv_from_f32(HV_BF16, h, w, N);
            for (int64_t rows = 1; rows <= 4; rows++) {
                for (int r = 0; r < 8; r++)
                    y[r] = 1;
                t->dots(y, 2, x, N + 3, rows, w, n);
                for (int64_t r = 0; r < 4; r++) {
                    double want = 1;
                    for (int64_t i = 0; i < n && r < rows; i++)
                        want += (double)x[r * (N + 3) + i] * (double)w[i];
                    near(t->name, "dots", (double)y[2 * r], want, 1e-6, 10);
                    near(t->name, "beside dots", (double)y[2 * r + 1], 1, 0, 1);
                }
            }
            double want = 0;
            for (int64_t i = 0; i < n; i++)
                want += (double)x[i] * (double)hv_bf16_to_f32(h[i]);
            near(t->name, "dot", (double)t->dot(x, HV_BF16, h, n), want, 1e-6, 10);
        }
}

static void transposes(void **state)
{
    float src[20 * 30], dst[30 * 24];

    (void)state;
    EACH_TABLE(t)
        for (int64_t rows = 1; rows <= 20; rows++)
            for (int64_t cols = 1; cols <= 26; cols++) {
                fill(src, 20 * 30, 1);
                memset(dst, 0, sizeof dst);
                t->transpose(dst, 24, src, 30, rows, cols, 2);
                for (int64_t j = 0; j < 30; j++)
                    for (int64_t i = 0; i < 24; i++)
                        near(t->name, "transpose", (double)dst[j * 24 + i],
                             i < rows && j < cols ? 2 * (double)src[i * 30 + j] : 0, 0, 1);
            }
}

static void norms(void **state)
{
    enum { N = 1000 };
    float x[N], y[N], w[N], b[N];

    (void)state;
    EACH_TABLE(t)
        for (int64_t n = 1; n <= N; n = n * 2 + 1) {
            double mean = 0, var = 0, square = 0;
            fill(x, n, 3);
            fill(w, n, 1);
            fill(b, n, 1);
            for (int64_t i = 0; i < n; i++)
                mean += (double)x[i] / (double)n;
            for (int64_t i = 0; i < n; i++) {
                var += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)n;
                square += (double)x[i] * (double)x[i] / (double)n;
            }
            t->norm(y, x, n, w, 1, b, 1e-3f);
            for (int64_t i = 0; i < n; i++)
                near(t->name, "norm", (double)y[i], ((double)x[i] - mean) / sqrt(var + 1e-3) * (1 + (double)w[i]) + (double)b[i],
                     2e-6, 2);
            float stat[2];
            t->stats(stat, x, n, 1e-3f);
            near(t->name, "mean", (double)stat[0], mean, 3e-7, 3);
            near(t->name, "1/std", (double)stat[1], 1 / sqrt(var + 1e-3), 1e-6, 1 / sqrt(var + 1e-3));
            t->modulate(y, x, n, stat, w, b);
            for (int64_t i = 0; i < n; i++)
                near(t->name, "modulate", (double)y[i],
                     ((double)x[i] - (double)stat[0]) * (double)stat[1] * (1 + (double)w[i]) + (double)b[i], 1e-6, 4);
            t->rms(y, x, n, w, 1e-3f);
            for (int64_t i = 0; i < n; i++)
                near(t->name, "rms", (double)y[i], (double)x[i] / sqrt(square + 1e-3) * (double)w[i], 1e-6, 2);
        }
}

static void rotations(void **state)
{
    enum { N = 70 };
    float x[N], was[N], c[N], s[N];

    (void)state;
    EACH_TABLE(t)
        for (int64_t n = 2; n <= N; n += 2) {
            fill(x, N, 1);
            fill(c, N, 1);
            fill(s, N, 1);
            memcpy(was, x, sizeof x);
            t->turn_pairs(x, c, s, n);
            for (int64_t i = 0; i < N; i++)
                near(t->name, "pairs", (double)x[i], i < n ? (double)was[i] * (double)c[i] + (double)was[i ^ 1] * (double)s[i]
                                                           : (double)was[i], 2e-7, 2);
            memcpy(x, was, sizeof x);
            t->turn_halves(x, c, s, n / 2);
            for (int64_t i = 0; i < n / 2; i++) {
                const double p = (double)was[i], q = (double)was[i + n / 2];
                near(t->name, "halves", (double)x[i], p * (double)c[i] - q * (double)s[i], 2e-7, 2);
                near(t->name, "halves", (double)x[i + n / 2], q * (double)c[i] + p * (double)s[i], 2e-7, 2);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widen_is_exact), cmocka_unit_test(activations), cmocka_unit_test(exponential),
        cmocka_unit_test(softmax), cmocka_unit_test(products), cmocka_unit_test(dots), cmocka_unit_test(transposes),
        cmocka_unit_test(norms), cmocka_unit_test(rotations),
    };

    tables[count++] = &cpu_simd_base;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        tables[count++] = &cpu_simd_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        tables[count++] = &cpu_simd_avx512;
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
