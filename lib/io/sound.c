#define _GNU_SOURCE
#include "io/sound.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sndfile.h>
#include <soxr.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/temp.h"

extern char **environ;

enum { BLOCK = 1 << 15 };                       /* sample frames in hand */

#define SPOOL_BYTES ((int64_t)8 << 30)          /* of a pipe */
#define LOUDEST     1e6f                        /* beyond it the power of a bin could overflow */

/* ---- collecting 16 kHz samples ---- */

struct collector {
    struct hv_sound *s;
    int64_t          cap;
    soxr_t           soxr;                      /* NULL: the file is at 16 kHz */
    float           *mono, *out;                /* BLOCK samples each */
};

static int reserve(struct collector *c, int64_t n, struct hv_err *e)
{
    if (n <= c->cap)
        return 0;
    const int64_t cap = n > 2 * c->cap ? n : 2 * c->cap;
    float *more = realloc(c->s->x, (size_t)cap * sizeof *more);
    if (!more)
        return hv_fail(e, HV_ENOMEM, "no memory for %lld samples of sound", (long long)cap);
    c->s->x = more;
    c->cap = cap;
    return 0;
}

static int keep(struct collector *c, const float *x, size_t n, struct hv_err *e)
{
    if (!n)
        return 0;
    if (reserve(c, c->s->n + (int64_t)n, e))
        return e->code;
    memcpy(c->s->x + c->s->n, x, n * sizeof *x);
    c->s->n += (int64_t)n;
    return 0;
}

/* Takes n samples; x NULL: the sound has ended, what the filter still holds comes out. */
static int resample(struct collector *c, const float *x, size_t n, struct hv_err *e)
{
    if (!c->soxr)
        return keep(c, x, x ? n : 0, e);
    for (;;) {
        size_t used = 0, made = 0;
        const soxr_error_t fault = soxr_process(c->soxr, x, x ? n : 0, &used, c->out, BLOCK, &made);

        if (fault)
            return hv_fail(e, HV_EINPUT, "resampling: %s", soxr_strerror(fault));
        if (keep(c, c->out, made, e))
            return e->code;
        if (x) {
            x += used;
            n -= used;
        }
        if (x ? !n && made < BLOCK : !made)
            return 0;
    }
}

/* ---- decoding ---- */

/* x[i] = mean over channels in float32, in the order of the channels. */
static int mix(float *mono, const float *x, int64_t n, int channels, int64_t first, struct hv_err *e)
{
    for (int64_t i = 0; i < n; i++, x += channels) {
        float sum = x[0];

        for (int c = 1; c < channels; c++)
            sum += x[c];
        mono[i] = channels > 1 ? sum / (float)channels : sum;
        if (!(fabsf(mono[i]) <= LOUDEST))
            return hv_fail(e, HV_EINPUT, "sample %lld is %s", (long long)(first + i),
                           isfinite(mono[i]) ? "beyond 1000000 (full scale is 1)" : "not a number");
    }
    return 0;
}

static int pull(struct collector *c, SNDFILE *f, const SF_INFO *info, int64_t limit, struct hv_err *e)
{
    float *raw = malloc((size_t)BLOCK * (size_t)info->channels * sizeof *raw);
    int64_t done = 0;
    int rc = raw ? 0 : hv_fail(e, HV_ENOMEM, "no memory for %d channels", info->channels);

    while (!rc && done < limit) {
        const int64_t want = limit - done < BLOCK ? limit - done : BLOCK;
        const int64_t n = sf_readf_float(f, raw, want);

        if (n <= 0)
            break;
        rc = mix(c->mono, raw, n, info->channels, done, e);
        if (!rc)
            rc = resample(c, c->mono, (size_t)n, e);
        done += n;
    }
    free(raw);
    if (!rc && sf_error(f))
        rc = hv_fail(e, HV_EINPUT, "damaged: %s", sf_strerror(f));
    if (!rc && done < limit && done < info->frames && info->frames < SF_COUNT_MAX)
        rc = hv_fail(e, HV_EINPUT, "cut short: %lld of %lld samples", (long long)done, (long long)info->frames);
    if (!rc && !done)
        rc = hv_fail(e, HV_EINPUT, "no sound in it");
    if (!rc)
        rc = resample(c, NULL, 0, e);
    if (rc || info->samplerate == HV_SOUND_RATE)
        return rc;

    /* The length is the reference's; the filter may give a sample more or less. */
    const int64_t n = (int64_t)ceil((double)done * ((double)HV_SOUND_RATE / info->samplerate));
    rc = reserve(c, n, e);
    for (int64_t i = c->s->n; !rc && i < n; i++)
        c->s->x[i] = 0;
    c->s->n = n;
    return rc;
}

static int decode(struct hv_sound *s, SNDFILE *f, const SF_INFO *info, double duration, struct hv_err *e)
{
    struct collector c = {.s = s};
    const soxr_io_spec_t io = soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    const soxr_runtime_spec_t runtime = soxr_runtime_spec(1);
    soxr_error_t fault = NULL;
    int64_t limit = INT64_MAX;
    int rc = 0;

    s->rate = info->samplerate;
    s->channels = info->channels;
    if (s->rate < 1000 || s->rate > 768000)
        return hv_fail(e, HV_EUNSUP, "%d samples a second, 1000 to 768000 are taken", s->rate);
    if (duration > 0 && duration * s->rate < 9e15)
        limit = (int64_t)(duration * s->rate);
    if (s->rate != HV_SOUND_RATE)
        c.soxr = soxr_create(s->rate, HV_SOUND_RATE, 1, &fault, &io, &quality, &runtime);
    c.mono = malloc(2 * BLOCK * sizeof *c.mono);
    c.out = c.mono ? c.mono + BLOCK : NULL;
    if (fault || !c.mono)
        rc = hv_fail(e, HV_ENOMEM, "resampling %d to %d samples a second cannot start", s->rate, HV_SOUND_RATE);
    if (!rc)
        rc = pull(&c, f, info, limit, e);
    soxr_delete(c.soxr);
    free(c.mono);
    return rc;
}

/* libsndfile takes a WAV that ends early for a shorter one. Compares what the header promises with what is there. */
static int check_wav(int fd, struct hv_err *e)
{
    uint8_t h[12];
    int64_t at = 12;
    struct stat st;

    if (fstat(fd, &st) || pread(fd, h, 12, 0) != 12 || memcmp(h, "RIFF", 4) || memcmp(h + 8, "WAVE", 4))
        return 0;
    while (pread(fd, h, 8, at) == 8) {
        const int64_t size = (int64_t)h[4] | (int64_t)h[5] << 8 | (int64_t)h[6] << 16 | (int64_t)h[7] << 24;

        if (!memcmp(h, "data", 4)) {
            if (size < 0x7fff0000 && at + 8 + size > st.st_size)        /* larger: a stream of unknown length */
                return hv_fail(e, HV_EINPUT, "cut short: %lld of %lld bytes of sound", (long long)(st.st_size - at - 8),
                               (long long)size);
            return 0;
        }
        at += 8 + size + (size & 1);
    }
    return 0;
}

/* 0, or an error; *refused: libsndfile cannot read the format, and says why. */
static int with_sndfile(struct hv_sound *s, int fd, double duration, char *refused, size_t room, struct hv_err *e)
{
    SF_INFO info = {0};
    SNDFILE *f;
    int rc;

    if (check_wav(fd, e))
        return e->code;
    if (lseek(fd, 0, SEEK_SET) < 0)
        return hv_fail(e, HV_EIO, "%s", strerror(errno));
    f = sf_open_fd(fd, SFM_READ, &info, SF_FALSE);
    if (!f) {
        snprintf(refused, room, "%s", sf_strerror(NULL));
        refused[strcspn(refused, "\n")] = 0;
        return 0;
    }
    rc = info.channels < 1 ? hv_fail(e, HV_EINPUT, "no channels") : decode(s, f, &info, duration, e);
    sf_close(f);
    return rc;
}

/* ---- ffmpeg ---- */

/* Runs the argv with stderr into text; returns its wait status, -1 when it cannot be started. */
static int run(char *const argv[], char *text, size_t room)
{
    posix_spawn_file_actions_t act;
    int p[2], status = -1;
    size_t n = 0;
    pid_t pid;

    text[0] = 0;
    if (pipe2(p, O_CLOEXEC))
        return -1;
    posix_spawn_file_actions_init(&act);
    posix_spawn_file_actions_addopen(&act, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&act, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&act, p[1], STDERR_FILENO);
    const int failed = posix_spawnp(&pid, argv[0], &act, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&act);
    close(p[1]);
    for (char drop[512]; !failed;) {
        const int full = n + 1 >= room;
        const ssize_t got = full ? read(p[0], drop, sizeof drop) : read(p[0], text + n, room - 1 - n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += full ? 0 : (size_t)got;
    }
    text[n] = 0;
    close(p[0]);
    while (!failed && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return failed ? -1 : status;
}

static int with_ffmpeg(struct hv_sound *s, const char *path, double duration, const char *refused, struct hv_err *e)
{
    const char *folder = getenv("TMPDIR");
    char final[HV_PATH], wav[HV_PATH], name[HV_PATH + 8], why[600], none[256] = "";
    int fd;

    snprintf(final, sizeof final, "%s/hv-sound.wav", folder && *folder ? folder : "/tmp");
    if (hv_temp_open(wav, final, &fd, e))
        return e->code;
    snprintf(name, sizeof name, "file:%s", path);               /* no option, no address: a file whatever its name */
    char *const argv[] = {"ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-y", "-i", name, "-map",
                          "0:a:0", "-c:a", "pcm_s16le", "-f", "wav", wav, NULL};
    const int status = run(argv, why, sizeof why);
    int rc;

    const int cut = strstr(why, "partial file") || strstr(why, "truncated");
    why[strcspn(why, "\n")] = 0;
    if (status == -1 || (WIFEXITED(status) && WEXITSTATUS(status) == 127))
        rc = hv_fail(e, HV_EINPUT, "libsndfile cannot read it (%s), and the program ffmpeg is not there", refused);
    else if (status || cut)
        rc = hv_fail(e, HV_EINPUT, "%s: %s", cut ? "cut short" : "not a sound file, or damaged",
                     why[0] ? why : "ffmpeg failed");
    else
        rc = with_sndfile(s, fd, duration, none, sizeof none, e);
    if (!rc && none[0])
        rc = hv_fail(e, HV_EINPUT, "not a sound file: %s", none);
    close(fd);
    hv_temp_discard(wav);
    return rc;
}

/* ---- files and pipes ---- */

/* Copies what comes from fd to a temporary; *to is open on it. */
static int spool(int fd, char tmp[HV_PATH], int *to, struct hv_err *e)
{
    const char *folder = getenv("TMPDIR");
    char final[HV_PATH], buf[1 << 16];
    int64_t total = 0;

    snprintf(final, sizeof final, "%s/hv-sound.in", folder && *folder ? folder : "/tmp");
    if (hv_temp_open(tmp, final, to, e)) {
        tmp[0] = 0;
        return e->code;
    }
    for (;;) {
        const ssize_t n = read(fd, buf, sizeof buf);

        if (n < 0 && errno == EINTR)
            continue;
        if (!n)
            return 0;
        if (n < 0)
            hv_fail(e, HV_EIO, "%s", strerror(errno));
        else if ((total += n) > SPOOL_BYTES)
            hv_fail(e, HV_EINPUT, "more than 8 GiB from a pipe");
        else {
            ssize_t done = 0;
            while (done < n) {
                const ssize_t put = write(*to, buf + done, (size_t)(n - done));
                if (put < 0 && errno != EINTR)
                    break;
                done += put > 0 ? put : 0;
            }
            if (done == n)
                continue;
            hv_fail(e, HV_EIO, "copy to %s: %s", tmp, strerror(errno));
        }
        close(*to);
        hv_temp_discard(tmp);
        tmp[0] = 0;
        return e->code;
    }
}

/* path names what fd is open on, for ffmpeg. */
static int read_regular(struct hv_sound *s, int fd, const char *path, double duration, struct hv_err *e)
{
    char refused[256] = "";
    struct stat st;

    if (fstat(fd, &st))
        return hv_fail(e, HV_EIO, "%s", strerror(errno));
    if (!st.st_size)
        return hv_fail(e, HV_EINPUT, "is empty");
    if (with_sndfile(s, fd, duration, refused, sizeof refused, e))
        return e->code;
    if (refused[0] && with_ffmpeg(s, path, duration, refused, e))
        return e->code;
    if (s->n < HV_SOUND_LEAST)
        return hv_fail(e, HV_EINPUT, "%.1f ms of sound, at least 40 ms are needed", (double)s->n * 1000 / HV_SOUND_RATE);
    return 0;
}

int hv_sound_read(struct hv_sound *s, const char *path, double duration, struct hv_err *e)
{
    const int piped = !path || !strcmp(path, "-");
    const char *name = piped ? "stdin" : path;
    int fd = piped ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    char tmp[HV_PATH] = "";
    struct stat st;

    *s = (struct hv_sound){0};
    if (fd < 0 || fstat(fd, &st))
        return hv_fail(e, HV_EIO, "%s: %s", name, strerror(errno));
    if (S_ISDIR(st.st_mode))
        rc = hv_fail(e, HV_EIO, "is a folder");
    else if (piped || !S_ISREG(st.st_mode)) {
        int copy;
        rc = spool(fd, tmp, &copy, e);
        if (!piped)
            close(fd);
        fd = rc ? -1 : copy;
    }
    if (!rc)
        rc = read_regular(s, fd, tmp[0] ? tmp : path, duration, e);
    if (fd >= 0)
        close(fd);
    if (tmp[0])
        hv_temp_discard(tmp);
    if (rc) {
        hv_sound_close(s);
        return hv_context(e, "%s", name);
    }
    return 0;
}

void hv_sound_close(struct hv_sound *s)
{
    free(s->x);
    *s = (struct hv_sound){0};
}
