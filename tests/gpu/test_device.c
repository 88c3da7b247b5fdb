/* test_device - what a GPU is asked for, who has to wait for it, and that it is free again however a process ends.
 *
 *     test_device             TAP; status 6 and a line on stderr when the device cannot be opened
 *     test_device open        opens it as a tool does, says "open", closes it
 *     test_device busy        opens it, says "open", computes for half a minute
 *
 * HV_TEST_DEVICE names the device, "cuda" without it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/cli.h"
#include "ops/dev.h"

extern char **environ;

static const char *device;
static int number, failures;

static void ok(int good, const char *what)
{
    printf("%sok %d - %s\n", good ? "" : "not ", ++number, what);
    fflush(stdout);
    failures += !good;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- the same program, as another process ---- */

struct other {
    pid_t pid;
    int   out, err;
};

static int start(struct other *o, const char *self, const char *what)
{
    char *argv[] = {(char *)(uintptr_t)self, (char *)(uintptr_t)what, NULL};
    posix_spawn_file_actions_t files;
    int out[2], err[2], rc;

    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        return -1;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, err[1], STDERR_FILENO);
    rc = posix_spawn(&o->pid, self, &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    close(out[1]);
    close(err[1]);
    o->out = out[0];
    o->err = err[0];
    return rc;
}

/* One line; "" at the end. */
static const char *line(int fd)
{
    static char text[1024];
    size_t n = 0;

    while (n + 1 < sizeof text && read(fd, text + n, 1) == 1 && text[n] != '\n')
        n++;
    text[n] = 0;
    return text;
}

static int finish(struct other *o)
{
    int status = -1;

    while (waitpid(o->pid, &status, 0) < 0 && errno == EINTR) {}
    close(o->out);
    close(o->err);
    return status;
}

static int child(const char *what)
{
    static struct hv_common c;
    const struct hv_cli cli = {"test_device", "", "", NULL, &c, 0, 0};
    char *argv[] = {(char *)(uintptr_t)"test_device", NULL};
    struct hv_dev *d;
    struct hv_err e = {0};

    if (hv_cli_parse(&cli, 1, argv, &e) || hv_dev_open(&d, device, 1, &e))
        return hv_exit("test_device", &e);
    printf("open\n");
    fflush(stdout);
    if (!strcmp(what, "busy")) {
        hv_dev_delay(d, HV_LANE_COMPUTE, 30);
        hv_dev_sync(d, &e);
    }
    hv_dev_close(d);
    return hv_exit("test_device", &e);
}

/* ---- the tests ---- */

static void says_what_it_is(struct hv_dev *d)
{
    struct hv_dev_info i;
    struct hv_err e = {0};

    if (hv_dev_info(d, &i, &e)) {
        ok(0, e.msg);
        return;
    }
    printf("# %s, compute capability %d.%d, %d multiprocessors, %.1f of %.1f GiB free, context %.0f MiB, cuDNN %d\n",
           i.name, i.arch / 10, i.arch % 10, i.units, (double)i.free / 0x1p30, (double)i.total / 0x1p30,
           (double)i.context / 0x1p20, i.cudnn);
    ok(*i.name && i.arch >= 80 && i.units > 0 && i.total >= i.free && i.free > 0, "the device says what it is");
}

static void opens_twice(void)
{
    struct hv_dev *d = NULL;
    struct hv_err e = {0};

    ok(!hv_dev_open(&d, device, 1, &e), "the same device twice in one process");
    hv_dev_close(d);
}

static void another_waits(struct hv_dev **d, const char *self)
{
    char want[128];
    struct other o;

    if (start(&o, self, "open")) {
        ok(0, "another process");
        return;
    }
    snprintf(want, sizeof want, "test_device: waiting for %s%s, held by process %ld", device, strchr(device, ':') ? "" : ":0",
             (long)getpid());
    const char *got = line(o.err);
    ok(!strcmp(got, want), "another process waits, and says for whom");
    if (strcmp(got, want))
        printf("# %s\n", got);
    hv_dev_close(*d);
    *d = NULL;
    ok(!strcmp(line(o.out), "open"), "it goes on when the device is closed");
    ok(finish(&o) == 0, "and ends well");
}

/* A signal in the middle of a kernel: the process dies of it at once, and the next one finds the device as it was. */
static void dies(const char *self, int sig, const char *what)
{
    struct hv_dev *d = NULL;
    struct hv_err e = {0};
    struct other o;

    if (start(&o, self, "busy") || strcmp(line(o.out), "open")) {
        ok(0, what);
        return;
    }
    usleep(300000);
    const double begin = now();
    kill(o.pid, sig);
    const int status = finish(&o);
    const double gone = now() - begin;
    const int rc = hv_dev_open(&d, device, 1, &e);
    printf("# gone after %.2f s, the next one has the device after %.2f s\n", gone, now() - begin);
    ok(WIFSIGNALED(status) && WTERMSIG(status) == sig && gone < 15 && !rc, what);
    hv_dev_close(d);
}

int main(int argc, char **argv)
{
    struct hv_dev *d;
    struct hv_err e = {0};

    device = getenv("HV_TEST_DEVICE") ? getenv("HV_TEST_DEVICE") : "cuda";
    if (argc > 1)
        return child(argv[1]);
    if (hv_dev_open(&d, device, 1, &e))
        return hv_exit("test_device", &e);
    says_what_it_is(d);
    opens_twice();
    another_waits(&d, argv[0]);
    dies(argv[0], SIGINT, "SIGINT in the middle of a kernel");
    dies(argv[0], SIGTERM, "SIGTERM in the middle of a kernel");
    dies(argv[0], SIGKILL, "SIGKILL in the middle of a kernel");
    printf("1..%d\n", number);
    return failures > 0;
}
