/* Number formats against their definitions: every e4m3, e5m2, f16 and bf16 value, and rounding to them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/dtype.h"
#include "mem/quant.h"

/* The definition of a small float: sign, exponent, mantissa; inf: the top exponent is for Inf and NaN. */
struct format {
    int exp_bits, man_bits, inf;
};

static const struct format e4m3 = {4, 3, 0}, e5m2 = {5, 2, 1}, f16 = {5, 10, 1}, bf16 = {8, 7, 1};

static double define(struct format f, uint32_t bits)
{
    const int bias = (1 << (f.exp_bits - 1)) - 1;
    const uint32_t m = bits & ((1u << f.man_bits) - 1), x = bits >> f.man_bits & ((1u << f.exp_bits) - 1);
    const uint32_t top = (1u << f.exp_bits) - 1, full = (1u << f.man_bits) - 1;
    const double sign = bits >> (f.exp_bits + f.man_bits) & 1 ? -1 : 1;

    if (f.inf && x == top)
        return m ? NAN : sign * INFINITY;
    if (!f.inf && x == top && m == full)
        return NAN;
    if (x == 0)
        return sign * ldexp((double)m, 1 - bias - f.man_bits);
    return sign * ldexp(1 + ldexp((double)m, -f.man_bits), (int)x - bias);
}

static int same(double want, float got)
{
    return isnan(want) ? isnan(got) : want == (double)got && !signbit(want) == !signbit(got);
}

static void widening(void **state)
{
    (void)state;
    for (uint32_t b = 0; b < 65536; b++) {
        assert_true(same(define(f16, b), hv_f16_to_f32((uint16_t)b)));
        assert_true(same(define(bf16, b), hv_bf16_to_f32((uint16_t)b)));
    }
    for (uint32_t b = 0; b < 256; b++) {
        assert_true(same(define(e4m3, b), hv_e4m3_to_f32((uint8_t)b)));
        assert_true(same(define(e5m2, b), hv_e5m2_to_f32((uint8_t)b)));
    }
}

/* The nearest value of a format by search among neighbours; ties to the even pattern. -1: beyond the largest. */
static int64_t nearest(struct format f, double x, uint32_t largest)
{
    uint32_t lo = 0, hi = largest;
    const double a = fabs(x);

    if (a > define(f, largest))
        return -1;
    while (hi - lo > 1) {
        const uint32_t mid = (lo + hi) / 2;
        if (define(f, mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    const double below = a - define(f, lo), above = define(f, hi) - a;
    const uint32_t best = below < above || (below == above && lo % 2 == 0) ? lo : hi;
    return best | (signbit(x) ? 1u << (f.exp_bits + f.man_bits) : 0);
}

/* Values, midpoints and their neighbours in f32 for every step of a format. */
static void check_rounding(struct format f, uint32_t largest, uint32_t (*narrow)(float), double overflow, uint32_t beyond)
{
    const uint32_t sign = 1u << (f.exp_bits + f.man_bits);

    for (uint32_t b = 0; b < largest; b++) {
        const double mid = (define(f, b) + define(f, b + 1)) / 2;
        const float x[] = {(float)define(f, b), (float)mid, nextafterf((float)mid, INFINITY), nextafterf((float)mid, 0)};
        for (int i = 0; i < 4; i++) {
            assert_int_equal(narrow(x[i]), nearest(f, (double)x[i], largest));
            assert_int_equal(narrow(-x[i]), nearest(f, (double)-x[i], largest));
        }
    }
    assert_int_equal(narrow((float)define(f, largest)), largest);
    assert_int_equal(narrow(nextafterf((float)overflow, 0)), largest);
    assert_int_equal(narrow((float)overflow), beyond);
    assert_int_equal(narrow(-(float)overflow), beyond | sign);
    assert_int_equal(narrow(INFINITY), beyond);
    assert_int_equal(narrow(-INFINITY), beyond | sign);
    assert_true(isnan(define(f, narrow(NAN))));
}

static uint32_t to_f16(float x)
{
    return hv_f32_to_f16(x);
}

static uint32_t to_bf16(float x)
{
    return hv_f32_to_bf16(x);
}

static uint32_t to_e4m3(float x)
{
    return hv_f32_to_e4m3(x);
}

static uint32_t to_e5m2(float x)
{
    uint8_t b;

    hv_from_f32(HV_F8_E5M2, &b, &x, 1);
    return b;
}

static void narrowing(void **state)
{
    (void)state;
    check_rounding(f16, 0x7bff, to_f16, 65520, 0x7c00);
    check_rounding(bf16, 0x7f7f, to_bf16, ldexp(511, 119), 0x7f80);
    check_rounding(e4m3, 0x7e, to_e4m3, 1e6, 0x7e);                     /* saturates */
    check_rounding(e5m2, 0x7b, to_e5m2, 1e9, 0x7b);
    assert_int_equal(to_e4m3(464), 0x7e);
    assert_int_equal(to_e4m3(-448), 0xfe);
}

/* The quantizer's own e4m3 loop, in vectors and in its tail, gives what the scalar function gives. */
static void quantizer_rounds_alike(void **state)
{
    float w[67];
    uint8_t q[67];

    (void)state;
    for (uint32_t u = 0; u < 0x43f00000; u += 67 * 4099)
        for (int sign = 0; sign < 2; sign++) {
            for (uint32_t i = 0; i < 67; i++) {
                const uint32_t bits = (u + i * 4099) | (uint32_t)sign << 31;
                memcpy(&w[i], &bits, 4);
            }
            hv_quant(HV_F8_E4M3, q, w, 1.0f, 67);
            for (int i = 0; i < 67; i++)
                assert_int_equal(q[i], hv_f32_to_e4m3(w[i]));
        }
}

static void rows(void **state)
{
    float w[40] = {0}, back[40];
    int8_t q[40];
    uint8_t f[40];

    (void)state;
    assert_true(hv_quant_scale(HV_I8, w, 40) == 0);
    memset(q, 1, sizeof q);
    hv_quant(HV_I8, q, w, 0, 40);
    for (int i = 0; i < 40; i++)
        assert_int_equal(q[i], 0);
    for (int i = 0; i < 40; i++)
        w[i] = (float)(i - 20) * 0.1f;
    const float s = hv_quant_scale(HV_I8, w, 40), s8 = hv_quant_scale(HV_F8_E4M3, w, 40);
    assert_true(s == 2.0f / 127.0f);
    assert_true(s8 == 2.0f / 448.0f);
    hv_quant(HV_I8, q, w, s, 40);
    hv_quant(HV_F8_E4M3, f, w, s8, 40);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(q[i], (int)rintf(w[i] / s));
        assert_int_equal(f[i], hv_f32_to_e4m3(w[i] / s8));
    }
    hv_dequant(back, HV_I8, q, s, 0, 40);
    for (int i = 0; i < 40; i++)
        assert_true(back[i] == s * (float)q[i]);
    hv_dequant(back, HV_I8, q, s, 1, 40);
    for (int i = 0; i < 40; i++)
        assert_true(back[i] == hv_bf16_to_f32(hv_f32_to_bf16(s * (float)q[i])));
    q[0] = -128;
    hv_dequant(back, HV_I8, q, 0.5f, 0, 1);
    assert_true(back[0] == -64);
    w[39] = NAN;
    assert_true(isnan(hv_quant_scale(HV_I8, w, 40)));
    w[39] = 0;
    w[3] = -INFINITY;
    assert_true(isnan(hv_quant_scale(HV_F8_E4M3, w, 40)));
}

static void integers(void **state)
{
    static const float x[] = {0, 0.5f, 1.5f, -0.5f, -1.5f, 127.4f, 127.5f, -128.6f, 1e30f, -1e30f, NAN};
    static const int8_t i8[] = {0, 0, 2, 0, -2, 127, 127, -128, 127, -128, 0};
    static const uint8_t u8[] = {0, 0, 2, 0, 0, 127, 128, 0, 255, 0, 0};
    int8_t a[11];
    uint8_t b[11];
    int64_t c[11];
    float back[11];
    const int64_t big[2] = {INT64_MAX, -3};

    (void)state;
    hv_from_f32(HV_I8, a, x, 11);
    hv_from_f32(HV_U8, b, x, 11);
    hv_from_f32(HV_I64, c, x, 11);
    assert_memory_equal(a, i8, sizeof a);
    assert_memory_equal(b, u8, sizeof b);
    assert_true(c[9] == INT64_MIN && c[8] > INT64_MAX - (INT64_C(1) << 40));
    hv_to_f32(back, HV_I64, big, 2);
    assert_true(back[0] == 0x1p63f && back[1] == -3);
}

/* Unaligned sources, and names. */
static void arrays(void **state)
{
    char buf[64];
    float back[3];
    const float x[3] = {1.5f, -2, 3};

    (void)state;
    for (int t = HV_NONE + 1; t < HV_DTYPES; t++) {
        assert_int_equal(hv_dtype_parse(hv_dtype_name((hv_dtype)t)), t);
        if (!hv_dtype_is_float((hv_dtype)t))
            continue;
        hv_from_f32((hv_dtype)t, buf + 1, x, 3);
        hv_to_f32(back, (hv_dtype)t, buf + 1, 3);
        assert_memory_equal(back, x, sizeof x);
    }
    assert_int_equal(hv_dtype_parse("f32"), HV_NONE);
    assert_int_equal(hv_dtype_size(HV_NONE), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widening), cmocka_unit_test(narrowing), cmocka_unit_test(quantizer_rounds_alike),
        cmocka_unit_test(rows),     cmocka_unit_test(integers),  cmocka_unit_test(arrays),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
