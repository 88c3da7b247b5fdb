/* The generators at values that torch published or that follow from their definitions. Whole draws: golden sampling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "core/rng.h"

static void near(float got, double want, double tol)
{
    if (!(fabs((double)got - want) <= tol))
        fail_msg("got %.8g, expected %.8g", (double)got, want);
}

static void cuda_known(void **state)
{
    /* torch.randn(12, device="cuda") after manual_seed(0) */
    static const double want[12] = {-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797,
                                    -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655};
    struct hv_rng g;
    float v[12];

    (void)state;
    hv_rng_cuda(&g, 0, HV_RNG_SM, HV_RNG_TPS);
    hv_rng_normal(&g, HV_F32, v, 12);
    for (int i = 0; i < 12; i++)
        near(v[i], want[i], 6e-5);
    assert_int_equal(g.offset, 4);
}

/* With few threads rounds come into play: round 1 of a draw is a draw at offset 4. */
static void cuda_rounds(void **state)
{
    enum { N = 5000, T = 1024 };
    static float v[N], one[N - 4 * T];
    struct hv_rng g, h;

    (void)state;
    hv_rng_cuda(&g, 7, 1, 1024);
    hv_rng_normal(&g, HV_F32, v, N);
    assert_int_equal(g.offset, 8);                      /* (5000 - 1) / 4096 + 1 = 2 rounds */
    hv_rng_cuda(&h, 7, 1, 1024);
    h.offset = 4;
    hv_rng_normal(&h, HV_F32, one, N - 4 * T);          /* 904 values: 4 blocks of 256, the same 1024 threads */
    assert_memory_equal(one, v + 4 * T, sizeof one);
    assert_memory_not_equal(v, v + 4 * T, sizeof one);
}

static void cuda_dtypes(void **state)
{
    struct hv_rng g;
    float f[100];
    uint16_t h[100], b[100];

    (void)state;
    hv_rng_cuda(&g, 5, 2, 1536);
    hv_rng_normal(&g, HV_F32, f, 100);
    hv_rng_cuda(&g, 5, 2, 1536);
    hv_rng_normal(&g, HV_F16, h, 100);
    hv_rng_cuda(&g, 5, 2, 1536);
    hv_rng_normal(&g, HV_BF16, b, 100);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(h[i], hv_f32_to_f16(f[i]));
        assert_int_equal(b[i], hv_f32_to_bf16(f[i]));
    }
}

static void mt19937(void **state)
{
    struct hv_rng g;
    uint32_t v = 0;

    (void)state;
    hv_rng_cpu(&g, 5489);                               /* the published 10000th value of the default seed */
    for (int i = 0; i < 10000; i++)
        v = hv_rng_u32(&g);
    assert_int_equal(v, 4123659995u);
}

/* A pending second value waits through a draw of 16 and more, which does not take it. */
static void cpu_pending(void **state)
{
    struct hv_rng g, h;
    float three[3], twenty[20], rest[1], pairs[4];

    (void)state;
    hv_rng_cpu(&g, 128);
    hv_rng_normal(&g, HV_F32, three, 3);
    assert_true(g.pending);
    hv_rng_normal(&g, HV_F32, twenty, 20);
    assert_true(g.pending);
    hv_rng_normal(&g, HV_F32, rest, 1);
    assert_false(g.pending);
    hv_rng_cpu(&h, 128);
    hv_rng_normal(&h, HV_F32, pairs, 4);
    assert_memory_equal(three, pairs, sizeof three);
    assert_memory_equal(rest, pairs + 3, sizeof *rest);
}

static void moments(void **state)
{
    enum { N = 100000 };
    static float v[N];
    struct hv_rng g;

    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        double sum = 0, squares = 0;
        if (kind)
            hv_rng_cpu(&g, 1);
        else
            hv_rng_cuda(&g, 1, 3, 2048);
        hv_rng_normal(&g, HV_F32, v, N);
        for (int i = 0; i < N; i++) {
            sum += (double)v[i];
            squares += (double)v[i] * (double)v[i];
        }
        assert_true(fabs(sum / N) < 0.012 && fabs(squares / N - 1) < 0.02);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuda_known), cmocka_unit_test(cuda_rounds), cmocka_unit_test(cuda_dtypes),
        cmocka_unit_test(mt19937), cmocka_unit_test(cpu_pending), cmocka_unit_test(moments),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
