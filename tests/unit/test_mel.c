/* Log-mel against its definition, computed here the long way; windows of states. */
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "audio/mel.h"
#include "audio/window.h"

#define PI 3.14159265358979323846

static float mel[HV_MEL_FRAMES * HV_MEL_BINS];

/* Sample j of block b, mirrored at the edges of the block. */
static double sample(const float *x, int64_t n, int64_t b, int64_t j)
{
    j = j < 0 ? -j : j;
    j = j > HV_MEL_SAMPLES - 1 ? 2 * (HV_MEL_SAMPLES - 1) - j : j;
    j += b * HV_MEL_SAMPLES;
    return j < n ? x[j] : 0;
}

/* log10 of the filtered power of one frame, in double, no folding, no tables. */
static void frame(double l[HV_MEL_BINS], const float *x, int64_t n, int64_t b, int t, const float *filters)
{
    double power[HV_MEL_FREQS];

    for (int k = 0; k < HV_MEL_FREQS; k++) {
        double re = 0, im = 0;
        for (int i = 0; i < 400; i++) {
            const double f = sample(x, n, b, 160 * t - 200 + i) * (0.5 - 0.5 * cos(2 * PI * i / 400));
            re += f * cos(2 * PI * i * k / 400);
            im -= f * sin(2 * PI * i * k / 400);
        }
        power[k] = re * re + im * im;
    }
    for (int m = 0; m < HV_MEL_BINS; m++) {
        double sum = 0;
        for (int k = 0; k < HV_MEL_FREQS; k++)
            sum += filters[m * HV_MEL_FREQS + k] * power[k];
        l[m] = log10(sum > 1e-10 ? sum : 1e-10);
    }
}

static void test_definition(void **state)
{
    static const int t[] = {0, 1, 2, 57, 1500, 2998, 2999};     /* both mirrored edges, the middle */
    static float filters[HV_MEL_BINS * HV_MEL_FREQS];
    const int64_t n = 2 * HV_MEL_SAMPLES;
    float *x = malloc((size_t)n * sizeof *x);
    struct hv_err e = {0};

    (void)state;
    assert_non_null(x);
    hv_mel_filters(filters);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(0.3 * sin(0.07 * (double)i) + 0.1 * sin(1e-6 * (double)i * (double)i) + (i % 977 == 0 ? 0.5 : 0));
    for (int64_t b = 0; b < 2; b++) {
        double top = -10;

        assert_int_equal(hv_mel_block(mel, x, n, b, &e), 0);
        for (int i = 0; i < HV_MEL_FRAMES * HV_MEL_BINS; i++)   /* undo the last step to find the loudest */
            top = fmax(top, 4.0 * mel[i] - 4);
        for (size_t k = 0; k < sizeof t / sizeof *t; k++) {
            double l[HV_MEL_BINS];

            frame(l, x, n, b, t[k], filters);
            for (int m = 0; m < HV_MEL_BINS; m++) {
                const double want = (fmax(l[m], top - 8) + 4) / 4;
                assert_true(fabs(mel[t[k] * HV_MEL_BINS + m] - want) < 2e-5);
            }
        }
    }
    free(x);
}

static void test_silence(void **state)
{
    static const float x[1000];
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(hv_mel_block(mel, x, 1000, 0, &e), 0);
    for (int i = 0; i < HV_MEL_FRAMES * HV_MEL_BINS; i++)
        assert_true(mel[i] == -1.5f);
    assert_int_equal(hv_mel_blocks(1), 1);
    assert_int_equal(hv_mel_blocks(480000), 1);
    assert_int_equal(hv_mel_blocks(480001), 2);
}

/* After a short sound everything equals the floor, 8 below the loudest. */
static void test_floor(void **state)
{
    float x[8000];
    float top = -10, last;
    struct hv_err e = {0};

    (void)state;
    for (int i = 0; i < 8000; i++)
        x[i] = (float)sin(0.3 * i);
    assert_int_equal(hv_mel_block(mel, x, 8000, 0, &e), 0);
    for (int i = 0; i < HV_MEL_FRAMES * HV_MEL_BINS; i++)
        top = mel[i] > top ? mel[i] : top;
    last = mel[HV_MEL_FRAMES * HV_MEL_BINS - 1];
    assert_true(fabsf(top - last - 2) < 1e-6f);
    for (int i = 60 * HV_MEL_BINS; i < HV_MEL_FRAMES * HV_MEL_BINS; i++)
        assert_true(mel[i] == last);
}

static void test_frames(void **state)
{
    (void)state;
    assert_int_equal(hv_window_step(25), 2);
    assert_int_equal(hv_window_step(12.5), 4);
    assert_int_equal(hv_window_step(24), 0);
    assert_int_equal(hv_window_frames(640, 25), 1);
    assert_int_equal(hv_window_frames(1279, 25), 1);
    assert_int_equal(hv_window_frames(16000 * 33, 25), 825);
    assert_int_equal(hv_window_frames(16000 * 33, 12.5), 412);
    assert_int_equal(hv_window_frames(640, 12.5), 1);
    assert_int_equal(hv_window_reference_frames(16000 * 33, 25), 400);
    assert_int_equal(hv_window_reference_frames(16000 * 33, 12.5), 374);
    assert_int_equal(hv_window_reference_frames(48000, 12.5), 75);
}

/* Any cut of the bytes gives the same rows: 2f - 4 .. 2f + 5 of one sequence, zeros outside. */
static void test_windows(void **state)
{
    enum { ROWS = 30, WIDTH = 3, FRAMES = 16 };
    float states[ROWS * WIDTH], whole[FRAMES * 10 * WIDTH];
    const struct hv_windows w = {states, ROWS, WIDTH, 2};

    (void)state;
    for (int i = 0; i < ROWS * WIDTH; i++)
        states[i] = (float)(i + 1);
    hv_window_copy(&w, 0, whole, sizeof whole);
    for (int f = 0; f < FRAMES; f++)
        for (int k = 0; k < 10; k++) {
            const int row = 2 * f - 4 + k;
            for (int c = 0; c < WIDTH; c++)
                assert_true(whole[(f * 10 + k) * WIDTH + c] ==
                            (row < 0 || row >= ROWS ? 0 : (float)(row * WIDTH + c + 1)));
        }
    for (size_t offset = 0; offset < sizeof whole; offset += 7) {
        char piece[61];
        const size_t n = sizeof whole - offset < sizeof piece ? sizeof whole - offset : sizeof piece;
        hv_window_copy(&w, offset, piece, n);
        assert_memory_equal(piece, (char *)whole + offset, n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition), cmocka_unit_test(test_silence), cmocka_unit_test(test_floor),
        cmocka_unit_test(test_frames),     cmocka_unit_test(test_windows),
    };

    return RUN(tests);
}
