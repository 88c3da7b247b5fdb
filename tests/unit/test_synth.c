/* Synthetic weights against values that a program of its own made from the rule, and against themselves in other pieces. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mem/synth.h"

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);
    return u;
}

/* Bits of f32 values computed with arbitrary-precision integers and exact roundings (not by this library). */
static const struct {
    const char *name;
    int         ndim;
    int64_t     shape[5];
    uint64_t    seed, index;
    uint32_t    bits;
} known[] = {
    {"double_blocks.0.img_attn_qkv.weight", 2, {72, 24}, 21, 0, 0xbe6f092d},
    {"double_blocks.0.img_attn_qkv.weight", 2, {72, 24}, 21, 1, 0x3e5c7869},
    {"double_blocks.0.img_attn_qkv.weight", 2, {72, 24}, 21, 2, 0x3e1bf7d0},
    {"double_blocks.0.img_attn_qkv.weight", 2, {72, 24}, 21, 1000, 0x3eb3ae35},
    {"double_blocks.0.img_attn_qkv.weight", 2, {72, 24}, 21, 1727, 0xbe0f70ce},
    {"img_in.proj.weight", 5, {24, 4, 1, 2, 2}, 0, 0, 0xbe15c99a},
    {"img_in.proj.weight", 5, {24, 4, 1, 2, 2}, 0, 383, 0x3d511968},
    {"single_blocks.0.q_norm.weight", 1, {8}, 21, 0, 0x3f6cf55a},
    {"single_blocks.0.q_norm.weight", 1, {8}, 21, 7, 0x3f85c21d},
    {"img_in.proj.bias", 1, {24}, UINT64_MAX, 0, 0xbb6192e1},
    {"img_in.proj.bias", 1, {24}, UINT64_MAX, 23, 0xba8f2e00},
    {"s", 0, {0}, 5, 0, 0x3bd1bb4c},
    {"w", 2, {2, INT64_C(1) << 40}, 3, (UINT64_C(1) << 40) + 12345, 0xb5803e36},
};

static void known_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        float v;
        hv_synth(&v, known[i].name, known[i].ndim, known[i].shape, known[i].seed, known[i].index, 1);
        assert_int_equal(bits_of(v), known[i].bits);
    }
}

static void activations(void **state)
{
    static const uint32_t want[4] = {0x3ef3a7f4, 0xbf4b5b26, 0xbf369ac8, 0xbd8832e0};
    float v[100];

    (void)state;
    hv_synth_activation(v, "input.audio", 9, 100);
    for (int i = 0; i < 3; i++)
        assert_int_equal(bits_of(v[i]), want[i]);
    assert_int_equal(bits_of(v[99]), want[3]);
}

/* Long runs take the vector loops, single elements do not: the bits must agree, at every offset. */
static void pieces_agree(void **state)
{
    static const int64_t shape[] = {50, 21};
    enum { N = 1050 };
    float all[N], one;

    (void)state;
    hv_synth(all, "a.weight", 2, shape, 77, 0, N);
    for (uint64_t i = 0; i < N; i++) {
        hv_synth(&one, "a.weight", 2, shape, 77, i, 1);
        assert_int_equal(bits_of(one), bits_of(all[i]));
    }
    for (size_t n = 0; n < 70; n++) {
        float part[70];
        hv_synth(part, "a.weight", 2, shape, 77, 13 + n, n);
        assert_memory_equal(part, all + 13 + n, n * sizeof *part);
    }
}

static void narrow_types(void **state)
{
    static const hv_dtype types[] = {HV_F32, HV_F16, HV_BF16, HV_F8_E4M3};
    static const int64_t vector = 1000, matrix[] = {40, 25};
    float wide[1000];
    unsigned char got[4000], want[4000];

    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int ndim = 1; ndim <= 2; ndim++) {
            const int64_t *shape = ndim == 1 ? &vector : matrix;
            hv_synth(wide, "n.weight", ndim, shape, 4, 0, 1000);
            hv_from_f32(types[t], want, wide, 1000);
            hv_synth_as(types[t], got, "n.weight", ndim, shape, 4, 0, 0, 1000);
            assert_memory_equal(got, want, 1000 * hv_dtype_size(types[t]));
        }
}

static void gain(void **state)
{
    static const int64_t kernel[] = {4, 3, 3, 3}, volume[] = {4, 3, 1, 3, 3};
    float plain[108], with[108];

    (void)state;
    hv_synth(plain, "c.weight", 4, kernel, 1, 0, 108);
    hv_synth_as(HV_F32, with, "c.weight", 4, kernel, 1, 1.9f, 0, 108);
    for (int i = 0; i < 108; i++)
        assert_int_equal(bits_of(with[i]), bits_of(plain[i] * 1.9f));
    /* Not a kernel: another name, another number of dimensions. */
    hv_synth(plain, "c.table", 4, kernel, 1, 0, 108);
    hv_synth_as(HV_F32, with, "c.table", 4, kernel, 1, 1.9f, 0, 108);
    assert_memory_equal(with, plain, sizeof plain);
    hv_synth(plain, "c.weight", 5, volume, 1, 0, 108);
    hv_synth_as(HV_F32, with, "c.weight", 5, volume, 1, 1.9f, 0, 108);
    assert_memory_equal(with, plain, sizeof plain);
}

/* Uniform in [-1, 1): mean 0 and variance 1/3 within four standard errors. */
static void distribution(void **state)
{
    enum { N = 200000 };
    float *v = malloc(N * sizeof *v);
    double sum = 0, squares = 0;

    (void)state;
    assert_non_null(v);
    hv_synth_activation(v, "x", 1, N);
    for (int i = 0; i < N; i++) {
        assert_true(v[i] >= -1 && v[i] < 1);
        sum += (double)v[i];
        squares += (double)v[i] * (double)v[i];
    }
    assert_true(fabs(sum / N) < 4 * sqrt(1.0 / 3 / N));
    assert_true(fabs(squares / N - 1.0 / 3) < 4 * sqrt(4.0 / 45 / N));
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values), cmocka_unit_test(activations), cmocka_unit_test(pieces_agree),
        cmocka_unit_test(narrow_types), cmocka_unit_test(gain),        cmocka_unit_test(distribution),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
