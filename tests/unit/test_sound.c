/* Sound: decoding, mixing, resampling in blocks, and what is refused. Files are written here with libsndfile. */
#include "tests/unit/unit.h"

#include <math.h>
#include <sndfile.h>
#include <soxr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/sound.h"

static char folder[] = "/tmp/hv-sound-XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

/* frames * channels samples of two tones, written as `format`. */
static float *tones(int64_t frames, int channels, int rate)
{
    float *x = malloc((size_t)(frames * channels) * sizeof *x);

    assert_non_null(x);
    for (int64_t i = 0; i < frames; i++)
        for (int c = 0; c < channels; c++)
            x[i * channels + c] = (float)(0.4 * sin(0.05 * (double)i * (c + 1)) + 0.3 * sin(2000.0 * (double)i / rate));
    return x;
}

static void write_file(const char *name, const float *x, int64_t frames, int channels, int rate, int format)
{
    SF_INFO info = {.samplerate = rate, .channels = channels, .format = format};
    SNDFILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = sf_open(path, SFM_WRITE, &info);
    assert_non_null(f);
    assert_int_equal(sf_writef_float(f, x, frames), frames);
    sf_close(f);
}

static void expect_refused(int code, const char *what)
{
    struct hv_sound s;
    struct hv_err e = {0};

    assert_int_equal(hv_sound_read(&s, path, 0, &e), code);
    assert_null(s.x);
    assert_non_null(strstr(e.msg, path));
    assert_non_null(strstr(e.msg, what));
    assert_null(strchr(e.msg, '\n'));
}

/* At 16 kHz nothing is resampled: what was written comes back, on the grid of its format. */
static void test_unchanged(void **state)
{
    float *x = tones(20000, 1, 16000);
    struct hv_sound s;
    struct hv_err e = {0};

    (void)state;
    write_file("a.wav", x, 20000, 1, 16000, SF_FORMAT_WAV | SF_FORMAT_FLOAT);
    assert_int_equal(hv_sound_read(&s, path, 0, &e), 0);
    assert_int_equal(s.n, 20000);
    assert_int_equal(s.rate, 16000);
    assert_memory_equal(s.x, x, 20000 * sizeof *x);
    hv_sound_close(&s);
    assert_int_equal(hv_sound_read(&s, path, 0.5, &e), 0);              /* only the beginning */
    assert_int_equal(s.n, 8000);
    hv_sound_close(&s);
    unlink(path);
    write_file("a.flac", x, 20000, 1, 16000, SF_FORMAT_FLAC | SF_FORMAT_PCM_16);
    assert_int_equal(hv_sound_read(&s, path, 0, &e), 0);
    for (int i = 0; i < 20000; i++)
        assert_true(fabsf(s.x[i] - x[i]) <= 2.0f / 32768);                /* written as x * 32767 */
    hv_sound_close(&s);
    unlink(path);
    free(x);
}

static void test_channels(void **state)
{
    float *x = tones(5000, 2, 16000);
    struct hv_sound s;
    struct hv_err e = {0};

    (void)state;
    write_file("a.wav", x, 5000, 2, 16000, SF_FORMAT_WAV | SF_FORMAT_FLOAT);
    assert_int_equal(hv_sound_read(&s, path, 0, &e), 0);
    assert_int_equal(s.channels, 2);
    for (int i = 0; i < 5000; i++) {
        const float mean = (x[2 * i] + x[2 * i + 1]) / 2;
        assert_memory_equal(&s.x[i], &mean, sizeof mean);
    }
    hv_sound_close(&s);
    unlink(path);
    free(x);
}

/* The file is taken in blocks; the result must be that of one call over the whole sound, bit for bit. */
static void test_resample(void **state)
{
    static const int rate[] = {8000, 22050, 44100, 48000, 11025};
    const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);

    (void)state;
    for (size_t k = 0; k < sizeof rate / sizeof *rate; k++) {
        const size_t n = 100003, want = (size_t)ceil((double)n * (16000.0 / rate[k]));
        float *x = tones((int64_t)n, 1, rate[k]), *y = calloc(want, sizeof *y);
        struct hv_sound s;
        struct hv_err e = {0};
        size_t done;

        assert_non_null(y);
        assert_null(soxr_oneshot(rate[k], 16000, 1, x, n, NULL, y, want, &done, NULL, &quality, NULL));
        write_file("a.wav", x, (int64_t)n, 1, rate[k], SF_FORMAT_WAV | SF_FORMAT_FLOAT);
        assert_int_equal(hv_sound_read(&s, path, 0, &e), 0);
        assert_int_equal(s.n, want);
        assert_memory_equal(s.x, y, want * sizeof *y);
        hv_sound_close(&s);
        unlink(path);
        free(x);
        free(y);
    }
}

static void test_too_short(void **state)
{
    float *x = tones(640, 1, 16000);
    struct hv_sound s;
    struct hv_err e = {0};

    (void)state;
    write_file("a.wav", x, 640, 1, 16000, SF_FORMAT_WAV | SF_FORMAT_PCM_16);
    assert_int_equal(hv_sound_read(&s, path, 0, &e), 0);
    assert_int_equal(s.n, 640);
    hv_sound_close(&s);
    write_file("a.wav", x, 639, 1, 16000, SF_FORMAT_WAV | SF_FORMAT_PCM_16);
    expect_refused(HV_EINPUT, "40 ms");
    write_file("a.wav", x, 0, 1, 16000, SF_FORMAT_WAV | SF_FORMAT_PCM_16);
    expect_refused(HV_EINPUT, "no sound");
    unlink(path);
    free(x);
}

static void test_not_numbers(void **state)
{
    float *x = tones(2000, 1, 16000);

    (void)state;
    x[1234] = NAN;
    write_file("a.wav", x, 2000, 1, 16000, SF_FORMAT_WAV | SF_FORMAT_FLOAT);
    expect_refused(HV_EINPUT, "sample 1234 is not a number");
    x[1234] = 3e30f;
    write_file("a.wav", x, 2000, 1, 44100, SF_FORMAT_WAV | SF_FORMAT_FLOAT);
    expect_refused(HV_EINPUT, "sample 1234 is beyond");
    unlink(path);
    free(x);
}

static void test_cut(void **state)
{
    static const int format[] = {SF_FORMAT_WAV | SF_FORMAT_PCM_16, SF_FORMAT_FLAC | SF_FORMAT_PCM_16};
    float *x = tones(30000, 1, 22050);

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct stat st;

        write_file("a.sound", x, 30000, 1, 22050, format[k]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(truncate(path, st.st_size * 2 / 3), 0);
        expect_refused(HV_EINPUT, "");
        assert_int_equal(truncate(path, 20), 0);
        expect_refused(HV_EINPUT, "");
    }
    assert_int_equal(truncate(path, 0), 0);
    expect_refused(HV_EINPUT, "is empty");
    unlink(path);
    expect_refused(HV_EIO, "No such file");
    snprintf(path, sizeof path, "%s", folder);
    expect_refused(HV_EIO, "is a folder");
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unchanged), cmocka_unit_test(test_channels),    cmocka_unit_test(test_resample),
        cmocka_unit_test(test_too_short), cmocka_unit_test(test_not_numbers), cmocka_unit_test(test_cut),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
