#define _GNU_SOURCE
#include "io/video.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/temp.h"
#include "io/image.h"

extern char **environ;

struct hv_video {
    struct hv_video_opts o;
    char     path[HV_PATH], sound[HV_PATH];     /* copies of the options' */
    char     target[HV_PATH];                   /* what the frames end as: path, or path.y4m */
    char     tmp[HV_PATH];                      /* "": none, or already renamed */
    int      fd;
    int64_t  frames;
    uint8_t *planes;                            /* y4m: one frame */
    int      failed;
};

static const struct {
    const char *name;
    enum hv_video_format format;
} formats[] = {{"mp4", HV_VIDEO_MP4}, {"y4m", HV_VIDEO_Y4M}, {"rgb", HV_VIDEO_RGB}, {"png", HV_VIDEO_PNG}, {"st", HV_VIDEO_ST}};

enum hv_video_format hv_video_format_of(const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(name, formats[i].name))
            return formats[i].format;
    return HV_VIDEO_NONE;
}

enum hv_video_format hv_video_format_for(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');

    if (!dot)
        return HV_VIDEO_NONE;
    return !strcmp(dot, ".safetensors") ? HV_VIDEO_ST : hv_video_format_of(dot + 1);
}

/* ---- writing ---- */

static int fail(struct hv_video *v, const char *name, int error, struct hv_err *e)
{
    v->failed = 1;
    return hv_fail(e, HV_EIO, "%s: %s", name, strerror(error));
}

static const char *name_of(const struct hv_video *v)
{
    return v->target[0] ? v->target : "stdout";
}

static int write_all(struct hv_video *v, const void *data, size_t n, struct hv_err *e)
{
    const char *p = data;

    while (n > 0) {
        const ssize_t k = write(v->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return fail(v, name_of(v), k ? errno : ENOSPC, e);
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

/* fps as a fraction: 25:1, 25:2, 30000:1001, else in thousandths. */
static void rate(double fps, int *num, int *den)
{
    static const int dens[] = {1, 2, 1001, 1000};

    for (size_t i = 0; i < sizeof dens / sizeof *dens; i++) {
        *den = dens[i];
        *num = (int)lrint(fps * dens[i]);
        if (fabs(fps - (double)*num / *den) < 1e-6)
            break;
    }
}

static int y4m_header(struct hv_video *v, struct hv_err *e)
{
    char line[128];
    int num, den;

    rate(v->o.fps, &num, &den);
    const int n = snprintf(line, sizeof line, "YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444\n", v->o.width, v->o.height, num, den);
    return write_all(v, line, (size_t)n, e);
}

/* BT.601, limited range, in 16-bit fixed point: the factors are 65.481, 128.553, 24.966, .. / 255 times 65536, rounded so that
 * gray has no colour. */
static void to_yuv(uint8_t *planes, const uint8_t *rgb, size_t n)
{
    for (size_t i = 0; i < n; i++, rgb += 3) {
        const int r = rgb[0], g = rgb[1], b = rgb[2];
        planes[i] = (uint8_t)((16829 * r + 33039 * g + 6416 * b + (16 << 16) + 32768) >> 16);
        planes[n + i] = (uint8_t)((-9714 * r - 19070 * g + 28784 * b + (128 << 16) + 32768) >> 16);
        planes[2 * n + i] = (uint8_t)((28784 * r - 24103 * g - 4681 * b + (128 << 16) + 32768) >> 16);
    }
}

static int write_png(struct hv_video *v, const uint8_t *rgb, struct hv_err *e)
{
    const struct hv_image im = {.width = v->o.width, .height = v->o.height, .rgb = (uint8_t *)(uintptr_t)rgb};
    char path[HV_PATH];
    const int stem = (int)strlen(v->path) - (hv_video_format_for(v->path) == HV_VIDEO_PNG ? 4 : 0);

    if (snprintf(path, sizeof path, "%.*s%05lld.png", stem, v->path, (long long)v->frames) >= (int)sizeof path)
        return hv_fail(e, HV_EIO, "%s: name too long", v->path);
    if (hv_image_write_png(&im, path, e))
        v->failed = 1;
    return e->code;
}

int hv_video_frame(struct hv_video *v, const uint8_t *rgb, struct hv_err *e)
{
    const size_t n = (size_t)v->o.width * (size_t)v->o.height;
    int rc;

    if (v->o.format == HV_VIDEO_PNG)
        rc = write_png(v, rgb, e);
    else if (v->o.format == HV_VIDEO_RGB)
        rc = write_all(v, rgb, 3 * n, e);
    else {
        to_yuv(v->planes, rgb, n);
        rc = write_all(v, "FRAME\n", 6, e);
        if (!rc)
            rc = write_all(v, v->planes, 3 * n, e);
    }
    v->frames += !rc;
    return rc;
}

/* ---- open ---- */

static int check(const struct hv_video_opts *o, struct hv_err *e)
{
    const int to_stdout = !o->path || !strcmp(o->path, "-");

    if (to_stdout && (o->format == HV_VIDEO_MP4 || o->format == HV_VIDEO_PNG))
        return hv_fail(e, HV_EUSAGE, "%s needs a file name: -o FILE", o->format == HV_VIDEO_MP4 ? "mp4" : "png");
    if (to_stdout && isatty(STDOUT_FILENO))
        return hv_fail(e, HV_EUSAGE, "stdout is a terminal: frames are not written to it; use -o FILE or a pipe");
    if (o->width < 1 || o->height < 1 || o->fps < 1e-3 || o->fps > 1000)
        return hv_fail(e, HV_EINPUT, "video: %dx%d at %g frames a second", o->width, o->height, o->fps);
    if (o->format == HV_VIDEO_MP4 && (o->width % 2 || o->height % 2))
        return hv_fail(e, HV_EINPUT, "mp4: %dx%d, both sides must be even", o->width, o->height);
    if (o->sound && access(o->sound, R_OK))
        return hv_fail(e, HV_EIO, "%s: %s", o->sound, strerror(errno));
    return 0;
}

static int open_output(struct hv_video *v, struct hv_err *e)
{
    struct stat st;

    if (!v->path[0]) {
        v->fd = STDOUT_FILENO;
        return 0;
    }
    if (snprintf(v->target, sizeof v->target, "%s%s", v->path, v->o.format == HV_VIDEO_MP4 ? ".y4m" : "") >= (int)sizeof v->target)
        return hv_fail(e, HV_EIO, "%s: name too long", v->path);
    if (!stat(v->path, &st) && S_ISDIR(st.st_mode))
        return hv_fail(e, HV_EIO, "%s: is a folder", v->path);
    if (v->o.format != HV_VIDEO_MP4 && !stat(v->path, &st) && !S_ISREG(st.st_mode)) {
        v->fd = open(v->path, O_WRONLY | O_CLOEXEC);
        return v->fd < 0 ? fail(v, v->path, errno, e) : 0;
    }
    if (hv_temp_open(v->tmp, v->target, &v->fd, e)) {
        v->tmp[0] = 0;
        return e->code;
    }
    return 0;
}

int hv_video_open(struct hv_video **out, const struct hv_video_opts *o, struct hv_err *e)
{
    struct hv_video *v;

    *out = NULL;
    if (check(o, e))
        return e->code;
    v = calloc(1, sizeof *v);
    if (v)
        v->planes = malloc((size_t)o->width * (size_t)o->height * 3);
    if (!v || !v->planes) {
        free(v);
        return hv_fail(e, HV_ENOMEM, "video: out of memory");
    }
    v->o = *o;
    v->fd = -1;
    if (o->path && strcmp(o->path, "-"))
        snprintf(v->path, sizeof v->path, "%s", o->path);
    if (o->sound)
        snprintf(v->sound, sizeof v->sound, "%s", o->sound);
    if (o->format != HV_VIDEO_PNG && (open_output(v, e) || (o->format != HV_VIDEO_RGB && y4m_header(v, e)))) {
        hv_video_close(v, 0, e);
        return e->code;
    }
    *out = v;
    return 0;
}

/* ---- mp4 ---- */

/* Runs ffmpeg; its status, or -1 with errno when it cannot be started. Only this call waits for it. */
static int run_ffmpeg(char **argv)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t pipe_only;
    pid_t pid;
    int status = 0, error;

    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
    posix_spawnattr_init(&attr);
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    posix_spawnattr_setsigdefault(&attr, &pipe_only);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
    error = posix_spawnp(&pid, argv[0], &files, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    if (error) {
        errno = error;
        return -1;
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Encodes v->tmp (y4m) and the sound to `to`. Names go behind "file:", so that no name is taken for an option or a protocol. */
static int encode(struct hv_video *v, const char *to, char *why, size_t size)
{
    char in[HV_PATH + 8], sound[HV_PATH + 8], out[HV_PATH + 8], crf[16], seconds[32];
    char *argv[48];
    int n = 0, status;

#define ARG(s) argv[n++] = (char *)(uintptr_t)(s)
    snprintf(in, sizeof in, "file:%s", v->tmp);
    snprintf(sound, sizeof sound, "file:%s", v->sound);
    snprintf(out, sizeof out, "file:%s", to);
    snprintf(crf, sizeof crf, "%d", v->o.crf);
    snprintf(seconds, sizeof seconds, "%.6f", (double)v->frames / v->o.fps);
    ARG("ffmpeg"), ARG("-nostdin"), ARG("-hide_banner"), ARG("-loglevel"), ARG("error"), ARG("-y");
    ARG("-f"), ARG("yuv4mpegpipe"), ARG("-i"), ARG(in);
    if (v->sound[0])
        ARG("-i"), ARG(sound);
    ARG("-map"), ARG("0:v:0");
    if (v->sound[0])
        ARG("-map"), ARG("1:a:0");
    ARG("-map_metadata"), ARG("-1"), ARG("-c:v"), ARG("libx264"), ARG("-crf"), ARG(crf), ARG("-pix_fmt"), ARG("yuv420p");
    if (v->sound[0])
        ARG("-c:a"), ARG("aac"), ARG("-shortest");
    /* -shortest alone leaves whole packets of the longer sound. */
    ARG("-t"), ARG(seconds), ARG("-movflags"), ARG("+faststart"), ARG("-f"), ARG("mp4"), ARG(out), ARG(NULL);
#undef ARG
    status = run_ffmpeg(argv);
    if (status < 0)
        snprintf(why, size, "cannot run ffmpeg: %s", strerror(errno));
    else if (status)
        snprintf(why, size, "ffmpeg failed with status %d", status);
    return status;
}

static int finish_mp4(struct hv_video *v, struct hv_err *e)
{
    char to[HV_PATH], why[sizeof e->msg] = "";
    struct hv_err made = {0}, kept = {0};
    struct stat st;
    int fd;
    const int rc = hv_temp_open(to, v->path, &fd, &made);

    if (rc)
        snprintf(why, sizeof why, "%s", made.msg);
    else
        close(fd);
    if (!rc && !encode(v, to, why, sizeof why)) {
        if (!stat(to, &st) && st.st_size > 0) {
            hv_temp_discard(v->tmp);
            v->tmp[0] = 0;
            return hv_temp_commit(to, v->path, e);
        }
        snprintf(why, sizeof why, "ffmpeg wrote nothing");
    }
    if (!rc)
        hv_temp_discard(to);
    const int lost = hv_temp_commit(v->tmp, v->target, &kept);
    v->tmp[0] = 0;
    if (lost)
        return hv_fail(e, HV_EIO, "%s: %.300s; the frames could not be kept: %.300s", v->path, why, kept.msg);
    return hv_fail(e, HV_EIO, "%s: %.300s; the frames are in %s", v->path, why, v->target);
}

int hv_video_close(struct hv_video *v, int ok, struct hv_err *e)
{
    int rc = 0;

    if (!v)
        return 0;
    ok = ok && !v->failed;
    if (v->fd > STDOUT_FILENO && close(v->fd) && ok) {
        fail(v, name_of(v), errno, e);
        ok = 0;
        rc = HV_EIO;
    }
    if (ok && v->o.format == HV_VIDEO_MP4)
        rc = finish_mp4(v, e);
    else if (ok && v->tmp[0]) {
        rc = hv_temp_commit(v->tmp, v->target, e);
        v->tmp[0] = 0;
    }
    if (v->tmp[0])
        hv_temp_discard(v->tmp);
    free(v->planes);
    free(v);
    return rc;
}
