/* Schedule, guidance, step cache, windows and Euler step on numbers of the specification and on what must always hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "model/flow.h"
#include "model/rope.h"

static void near(double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol))
        fail_msg("got %.9g, expected %.9g", got, want);
}

static void schedule(void **state)
{
    float s[51];

    (void)state;
    flow_sigmas(s, 50, 5);
    near((double)flow_timestep(s[0]), 1000, 0);
    near((double)flow_timestep(s[1]), 995.93494, 1e-4);
    near((double)flow_timestep(s[2]), 991.7355, 1e-4);
    near((double)flow_timestep(s[48]), 172.41379, 1e-4);
    near((double)flow_timestep(s[49]), 92.59258, 1e-4);
    near((double)s[50], 0, 0);
    for (int n = 1; n <= 200; n++) {
        float t[201];
        flow_sigmas(t, n, 7);
        assert_true(t[0] == 1 && t[n] == 0);
        for (int i = 0; i < n; i++)
            assert_true(t[i] > t[i + 1]);
    }
}

static void guidance(void **state)
{
    float u[2] = {1, -2}, c[2] = {2, 4};

    (void)state;
    near(flow_guidance(0, 50, 7.5), 7.5, 1e-12);
    near(flow_guidance(1, 50, 7.5), 7.39, 1e-12);
    near(flow_guidance(9, 50, 7.5), 6.51, 1e-12);
    near(flow_guidance(10, 50, 7.5), 5.9, 1e-12);
    near(flow_guidance(49, 50, 7.5), 3.56, 1e-12);
    near(flow_guidance(10, 50, 1.5), 5.9, 1e-12);
    assert_true(flow_face_factor(9) == 0.6f && flow_face_factor(10) == 1);
    flow_guide(u, u, c, 3, 2);
    near((double)u[0], 4, 1e-6);
    near((double)u[1], 16, 1e-6);
}

static int full_count(const char *rule, int n, uint8_t *full)
{
    struct hv_err e = {0};
    int count = 0;

    assert_int_equal(flow_full_steps(full, n, rule, &e), 0);
    for (int i = 0; i < n; i++)
        count += full[i];
    return count;
}

static void step_cache(void **state)
{
    uint8_t a[FLOW_STEPS_MAX], b[FLOW_STEPS_MAX];

    (void)state;
    assert_int_equal(full_count("reference", 50, a), 30);
    assert_int_equal(full_count("scaled", 50, b), 30);
    assert_memory_equal(a, b, 50);
    assert_int_equal(full_count("none", 50, b), 50);
    assert_int_equal(full_count("0-15,20,25,30,35,40-49", 50, b), 30);
    assert_memory_equal(a, b, 50);
    assert_int_equal(full_count("reference", 60, a), 30);
    assert_int_equal(full_count("reference", 16, a), 16);
    assert_int_equal(full_count("scaled", 100, a), 32 + 4 + 20);
    for (int n = 1; n <= 120; n++) {                    /* the stretched pattern keeps its ends, and never caches more than 4 in 10 */
        const int count = full_count("scaled", n, a);
        assert_true(a[0] && a[n - 1] && count >= n * 55 / 100);
    }
}

static void step_lists(void **state)
{
    static const char *const bad[] = {"", "1-3", "0,4", "0-", "-1", "0;1", "0,,1", "2-1", "0-1,", "all", "0 1", "99999999999999999999"};
    uint8_t full[4];

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e = {0};
        assert_int_equal(flow_full_steps(full, 4, bad[i], &e), HV_EUSAGE);
        assert_non_null(strstr(e.msg, "cache"));
    }
    assert_int_equal(full_count("0,3", 4, full), 2);
    assert_true(full[0] && !full[1] && !full[2] && full[3]);
}

static void lengths(void **state)
{
    /* L, max, A, F0, F, video, decoded, written */
    static const int64_t table[][8] = {
        {1, 400, 129, 65, 33, 33, 129, 1},      {129, 400, 129, 65, 33, 33, 129, 129},
        {130, 400, 135, 65, 65, 34, 133, 130},  {250, 400, 255, 65, 65, 64, 253, 250},
        {251, 400, 256, 97, 97, 65, 257, 251},  {378, 400, 383, 97, 97, 96, 381, 378},
        {379, 400, 384, 129, 129, 97, 385, 379}, {400, 400, 405, 129, 129, 102, 405, 400},
        {750, 400, 405, 129, 129, 102, 405, 405}, {750, 0, 755, 193, 193, 189, 753, 750},
    };

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const int64_t *t = table[i];
        const struct flow_clip c = flow_clip(t[0], t[1]);
        assert_int_equal(c.rows, t[2]);
        assert_int_equal(c.noise_frames, t[3]);
        assert_int_equal(c.frames, t[4]);
        assert_int_equal(c.video, t[5]);
        assert_int_equal(c.decoded, t[6]);
        assert_int_equal(c.written, t[7]);
    }
}

/* At any length, at every step: each frame is in one or two windows, windows move by 10, sound follows its frames. */
static void windows(void **state)
{
    (void)state;
    for (int64_t length = 1; length < 4000; length += 37) {
        const struct flow_clip c = flow_clip(length, 0);
        int32_t *count = calloc((size_t)c.frames, sizeof *count), f[FLOW_WINDOW], a[FLOW_SOUND];
        assert_true(c.video <= c.frames && c.frames <= c.noise_frames && c.written == length && c.rows <= c.sound);
        for (int i = 0; i < 40; i++) {
            memset(count, 0, (size_t)c.frames * sizeof *count);
            for (int64_t w = 0; w < c.windows; w++) {
                const int64_t s = flow_window_start(&c, i, w);
                flow_window_frames(&c, s, f);
                flow_window_sound(&c, s, a);
                assert_true(a[0] == 4 * f[0] && a[FLOW_SOUND - 1] == 4 * f[FLOW_WINDOW - 1]);
                for (int k = 0; k < FLOW_WINDOW; k++)
                    count[f[k]]++;
            }
            for (int64_t k = 0; k < c.frames; k++)
                assert_true(count[k] == 1 || count[k] == 2);
        }
        free(count);
    }
    const struct flow_clip c = flow_clip(200, 0);
    static const int shifts[] = {0, 10, 20, 30, 7, 17, 27, 4, 14, 24, 1, 11};
    for (int i = 0; i < 12; i++)
        assert_int_equal(flow_window_start(&c, i, 0), -shifts[i]);
}

/* Overlapping: neighbours share that many frames or more, nothing is left out, weights fade to nothing at a window's ends. */
static void overlap(void **state)
{
    float weight[FLOW_WINDOW];

    (void)state;
    for (int64_t length = 1; length < 4000; length += 37)
        for (int64_t n = 1; n <= 16; n += 5) {
            const struct flow_clip plain = flow_clip(length, 0);
            struct flow_clip c = plain;
            flow_clip_overlap(&c, n);
            if (plain.windows == 1) {
                assert_memory_equal(&c, &plain, sizeof c);
                continue;
            }
            assert_true(c.video <= c.frames && c.frames <= c.noise_frames && c.frames >= FLOW_WINDOW && c.rows <= c.sound);
            flow_window_weights(&c, weight);
            assert_true(weight[0] * (float)(n + 1) == 1 && weight[FLOW_WINDOW - 1] * (float)(n + 1) == 1 && weight[16] == 1);
            float *total = calloc((size_t)c.frames, sizeof *total);
            for (int i = 0; i < 4; i++) {
                memset(total, 0, (size_t)c.frames * sizeof *total);
                for (int64_t w = 0; w < c.windows; w++) {
                    const int64_t s = flow_window_start(&c, i, w), next = w + 1 < c.windows ? flow_window_start(&c, i, w + 1) : s;
                    int32_t f[FLOW_WINDOW];
                    assert_true(next - s <= FLOW_WINDOW - n);
                    flow_window_frames(&c, s, f);
                    for (int k = 0; k < FLOW_WINDOW; k++)
                        total[f[k]] += weight[k];
                }
                for (int64_t k = 0; k < c.frames; k++)
                    assert_true(total[k] > 0.99f && total[k] < 2.5f);
            }
            free(total);
        }
}

static void carry(void **state)
{
    float x[2] = {1, 100.0625f}, v[2] = {-0.3f, 1}, y[2], acc[2 * FLOW_WINDOW] = {0}, clip[2 * FLOW_WINDOW];
    float window[2 * FLOW_WINDOW];
    float total[FLOW_WINDOW] = {0}, one[FLOW_WINDOW];
    int32_t frame[FLOW_WINDOW];

    (void)state;
    flow_euler(y, x, v, -0.01f, 2, FLOW_FLOAT32);
    near((double)y[0], 1.003, 1e-6);
    near((double)y[1], 100.0525, 1e-5);
    flow_euler(y, x, v, -0.01f, 2, FLOW_REFERENCE);
    near((double)y[0], 1, 0);                           /* bf16 has steps of 2^-7 above 1 */
    near((double)y[1], 100, 0);
    for (int k = 0; k < FLOW_WINDOW; k++) {
        one[k] = 1;
        frame[k] = (k + 5) % FLOW_WINDOW;
        window[k] = (float)k + 0.0001f;
        window[FLOW_WINDOW + k] = -1;
    }
    for (int twice = 0; twice < 2; twice++)
        flow_accumulate(acc, total, window, one, 2, FLOW_WINDOW, 1, frame, FLOW_REFERENCE);
    flow_average(clip, acc, total, 2, FLOW_WINDOW, 1, FLOW_REFERENCE);
    near((double)total[0], 2, 0);
    near((double)clip[5 + 8], 8, 0);                    /* f16 has steps of 2^-7 at 8 */
    near((double)clip[FLOW_WINDOW], -1, 0);
    flow_gather(window, clip, 2, FLOW_WINDOW, 1, frame);
    near((double)window[8], 8, 0);
}

static void rope(void **state)
{
    float c[3 * 28], s[3 * 28];

    (void)state;
    rope_table(c, s, ROPE_FIRST_TIME, 3, 56, 256);
    near((double)c[0], cos(-1), 1e-7);
    near((double)s[0], sin(-1), 1e-7);
    near((double)c[28], 1, 0);
    near((double)s[2 * 28 + 14], sin(1 / 16.0), 1e-7);  /* 256^(-28/56) = 1/16 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedule), cmocka_unit_test(guidance), cmocka_unit_test(step_cache), cmocka_unit_test(step_lists),
        cmocka_unit_test(lengths), cmocka_unit_test(windows), cmocka_unit_test(overlap), cmocka_unit_test(carry), cmocka_unit_test(rope),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
