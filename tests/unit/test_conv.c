/* Inner loops of convolution and group norm for every instruction set that this processor has, and cases of hv_conv that the
 * general test of operations does not make. */
#include "tests/unit/rig.h"

#include "kernels/cpu/conv.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/group.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}

/* The sets that run here: the portable one always, AVX2 on what has AVX2 or AVX-512. */
static int sets(void)
{
    const struct cpu_simd *s = cpu_simd();

    return s == &cpu_simd_avx512 ? 3 : s == &cpu_simd_avx2 ? 2 : 1;
}

static float number(void)
{
    return (float)rig_uniform();
}

static void tile_case(conv_tile_fn *fn, int mr, int width, int n, int64_t len, int64_t step)
{
    const int64_t span = (mr - 1) * step + len;
    float *x = malloc((size_t)(n * span) * sizeof *x), *w = malloc((size_t)(n * len * width) * sizeof *w);
    float bias[CONV_PANEL], out[CONV_ROWS * CONV_PANEL + 8];
    const float *seg[CONV_SEGMENTS];

    for (int64_t i = 0; i < n * span; i++)
        x[i] = number();
    for (int64_t i = 0; i < n * len * width; i++)
        w[i] = number();
    for (int i = 0; i < width; i++)
        bias[i] = number();
    for (int i = 0; i < CONV_ROWS * CONV_PANEL + 8; i++)
        out[i] = 77;
    for (int s = 0; s < n; s++)
        seg[s] = x + (n - 1 - s) * span;                /* anywhere, in any order */
    fn(out, seg, n, len, step, w, bias);
    for (int i = 0; i < mr; i++)
        for (int c = 0; c < width; c++) {
            double sum = (double)bias[c];
            for (int64_t k = 0; k < n * len; k++)
                sum += (double)seg[k / len][i * step + k % len] * (double)w[k * width + c];
            if (!(fabs(sum - (double)out[i * width + c]) < 1e-5 * sqrt((double)(n * len))))
                fail_msg("%d positions, %d channels: %g, expected %g", mr, width, (double)out[i * width + c], sum);
        }
    assert_true(out[mr * width] == 77);                 /* nothing behind the tile */
    free(x);
    free(w);
}

static void tiles(void **state)
{
    static const struct conv_isa *const isa[] = {&conv_isa_c, &conv_isa_avx2, &conv_isa_avx512};

    (void)state;
    for (int s = 0; s < sets(); s++)
        for (int mr = 1; mr <= isa[s]->rows; mr++) {
            tile_case(isa[s]->panel[mr], mr, CONV_PANEL, 9, 48, 16);
            tile_case(isa[s]->panel[mr], mr, CONV_PANEL, 1, 1, 3);
            tile_case(isa[s]->half[mr], mr, CONV_HALF, 4, 9, 6);
        }
}

/* Norm and sums have the same bits on every processor. */
static void groups(void **state)
{
    static const struct group_isa *const isa[] = {&group_isa_c, &group_isa_avx2, &group_isa_avx512};
    enum { C = 41, N = 6, STEP = 45 };
    float x[N * STEP], mean[C], scale[C], shift[C], want[2][N * STEP], got[N * STEP];
    double a[2][2 * C];

    (void)state;
    for (int i = 0; i < N * STEP; i++)
        x[i] = 40 * number();
    x[3] = NAN, x[4] = INFINITY, x[5] = -INFINITY, x[6] = 1e30f, x[7] = -1e30f, x[8] = 0;
    for (int c = 0; c < C; c++)
        mean[c] = number(), scale[c] = c == 8 ? 0 : 1 + number() / 2, shift[c] = number();
    for (int silu = 0; silu < 2; silu++)
        for (int s = 0; s < sets(); s++) {
            memset(got, 0, sizeof got);
            isa[s]->norm(got, STEP, x, STEP, N, C, mean, scale, shift, silu);
            if (!s)
                memcpy(want[silu], got, sizeof got);
            for (int i = 0; i < N * STEP; i++)
                assert_true(!memcmp(&got[i], &want[silu][i], 4) || (isnan(got[i]) && isnan(want[silu][i])));
        }
    for (int i = 0; i < N * STEP; i++) {
        const double v = (double)want[0][i], y = v / (1 + exp(-v));
        if (i != 5 && i % STEP < C && isfinite(v))
            if (!(fabs((double)want[1][i] - y) <= 4e-7 * fabs(y) + 2e-36))
                fail_msg("silu(%g) = %g, expected %g", v, (double)want[1][i], y);
    }
    for (int s = 0; s < sets(); s++) {
        memset(a[s > 0], 0, sizeof a[0]);
        isa[s]->sums(a[s > 0], a[s > 0] + C, x + 9, N - 1, STEP, C);
        if (s)
            assert_memory_equal(a[0], a[1], sizeof a[0]);
    }
}

/* Upsampled time without the first frame is the same without it. */
static void first_frame_left_out(void **state)
{
    struct hv_conv p = {.up = {2, 2, 2}, .pad = HV_PAD_REPLICATE};

    (void)state;
    hv_tensor x = rnd(rig.act, 4, SHAPE(3, 5, 4, 6), 1), w = rnd(HV_F32, 5, SHAPE(7, 6, 3, 3, 3), 0);
    hv_tensor y = out(4, SHAPE(4, 10, 8, 7), 0), r = ref(y), less = out(4, SHAPE(3, 10, 8, 7), 0);
    ref_conv(r, x, w, HV_NO, &p);
    EACH(d)
        hv_tensor dy = put(d, less);
        hv_conv(d, dy, put(d, x), put(d, w), HV_NO, &p);
        expect(d, dy, less, hv_rows(r, 1, 3), 2e-6);
    DONE
}

/* Weights of one byte with a scale a row. */
static void quantized(void **state)
{
    static const hv_dtype types[] = {HV_I8, HV_F8_E4M3};

    (void)state;
    for (int i = 0; i < 2; i++) {
        const struct hv_conv p = {.pad = HV_PAD_ZERO};
        hv_tensor x = rnd(rig.act, 4, SHAPE(2, 6, 17, 11), 2), w = rnd(types[i], 5, SHAPE(37, 11, 1, 3, 3), 0);
        hv_tensor b = rnd(HV_F32, 1, SHAPE(37), 0), y = out(4, SHAPE(2, 6, 17, 37), 3), r = ref(y);
        ref_conv(r, x, w, b, &p);
        EACH(d)
            hv_tensor dy = put(d, y);
            hv_conv(d, dy, put(d, x), put(d, w), put(d, b), &p);
            expect(d, dy, y, r, 3e-6);
        DONE
    }
}

/* Wide enough to be cut into blocks of columns, bands of rows, several panels and groups of panels. */
static void large(void **state)
{
    static const struct { int64_t t, h, w, ci, co; int up, pad; } cases[] = {
        {3, 3, 131, 8, 70, 1, HV_PAD_ZERO}, {4, 23, 60, 40, 33, 1, HV_PAD_REPLICATE}, {2, 9, 61, 24, 50, 2, HV_PAD_REPLICATE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int up = cases[i].up;
        const struct hv_conv p = {.up = {up, up, up}, .pad = (enum hv_pad)cases[i].pad};
        const int64_t T = up == 2 ? 2 * (cases[i].t - 1) : cases[i].t - 2;
        hv_tensor x = rnd(rig.act, 4, SHAPE(cases[i].t, cases[i].h, cases[i].w, cases[i].ci), 0);
        hv_tensor w = rnd(HV_BF16, 5, SHAPE(cases[i].co, cases[i].ci, 3, 3, 3), 0);
        hv_tensor y = out(4, SHAPE(T, up * cases[i].h, up * cases[i].w, cases[i].co), 0), r = ref(y);
        ref_conv(r, x, w, HV_NO, &p);
        EACH(d)
            hv_tensor dy = put(d, y);
            hv_conv(d, dy, put(d, x), put(d, w), HV_NO, &p);
            expect(d, dy, y, r, 3e-6);
        DONE
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiles), cmocka_unit_test(groups), cmocka_unit_test(first_frame_left_out), cmocka_unit_test(quantized),
        cmocka_unit_test(large),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
