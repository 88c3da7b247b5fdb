/* Locks of devices, between processes and within one; the mappings that a handler looks at; temporaries that must go.
 *
 *     test_lock hold KEY SECONDS      takes the lock as a tool does, says "held", keeps it; for tools/device.sh */
#define _GNU_SOURCE
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/cli.h"
#include "core/lock.h"
#include "core/mapped.h"
#include "core/temp.h"
#include "io/st.h"

static char folder[64], path[128];      /* of the lock files; that of the key "a:b c" */
static char waited_for[64];
static long waited_pid;
static int  waits;

static void seen(const char *what, long pid)
{
    snprintf(waited_for, sizeof waited_for, "%s", what);
    waited_pid = pid;
    waits++;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void nap(double s)
{
    nanosleep(&(struct timespec){.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)}, NULL);
}

/* 1 when another process could have the lock now. */
static int is_free(void)
{
    const int fd = open(path, O_RDWR | O_CLOEXEC);      /* a descriptor of its own counts as another process's */
    const int got = fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB);

    if (fd >= 0)
        close(fd);
    return fd < 0 || got;
}

/* A process that holds the lock for a while; returns when it does. */
static pid_t holder(double seconds)
{
    int ready[2];
    char c;

    assert_int_equal(pipe(ready), 0);
    const pid_t pid = fork();
    if (!pid) {
        const int lock = hv_lock_take("a:b c", "x");
        if (write(ready[1], "x", 1) != 1)
            _exit(1);
        nap(seconds);
        hv_lock_give(lock);
        _exit(0);
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/hv-test-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    setenv("HV_LOCK", folder, 1);
    snprintf(path, sizeof path, "%s/hv-a-b-c.lock", folder);
    hv_lock_on_wait(seen);
    waits = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void twice_in_one_process(void **state)
{
    (void)state;
    const int first = hv_lock_take("a:b c", "x");
    assert_false(is_free());
    const int second = hv_lock_take("a:b c", "x");
    assert_true(first > 0 && second == first);
    hv_lock_give(second);
    assert_false(is_free());
    hv_lock_give(first);
    assert_true(is_free());
    hv_lock_give(0);
    assert_int_equal(waits, 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0666);
    assert_int_equal(st.st_size, 0);
}

static void two_devices(void **state)
{
    char other[128];
    (void)state;
    const int a = hv_lock_take("a:b c", "x"), b = hv_lock_take("other", "y");
    assert_true(a != b);
    hv_lock_give(a);
    assert_true(is_free());
    hv_lock_give(b);
    snprintf(other, sizeof other, "%s/hv-other.lock", folder);
    assert_int_equal(unlink(other), 0);
}

static void waits_for_another(void **state)
{
    (void)state;
    const pid_t pid = holder(1.6);
    const double start = now();
    const int lock = hv_lock_take("a:b c", "cuda:0");
    assert_true(now() - start > 1.2);
    assert_int_equal(waits, 1);
    assert_string_equal(waited_for, "cuda:0");
    assert_int_equal(waited_pid, pid);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_false(is_free());
    hv_lock_give(lock);
}

static void a_short_wait_is_silent(void **state)
{
    (void)state;
    const pid_t pid = holder(0.3);
    hv_lock_give(hv_lock_take("a:b c", "cuda:0"));
    assert_int_equal(waits, 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void a_killed_holder_lets_go(void **state)
{
    (void)state;
    const pid_t pid = holder(60);
    const double start = now();
    assert_false(is_free());
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    const int lock = hv_lock_take("a:b c", "cuda:0");
    assert_true(now() - start < 30);
    assert_false(is_free());
    hv_lock_give(lock);
}

static void a_removed_file_is_not_the_lock(void **state)
{
    (void)state;
    const pid_t pid = holder(1.3);
    const pid_t sweeper = fork();
    if (!sweeper) {                     /* removes the file under the one that waits */
        nap(0.2);
        unlink(path);
        _exit(0);
    }
    const int lock = hv_lock_take("a:b c", "cuda:0");
    assert_int_equal(waitpid(sweeper, NULL, 0), sweeper);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(access(path, F_OK), 0);
    assert_false(is_free());
    hv_lock_give(lock);
}

static void what_is_no_lock_file_is_left_alone(void **state)
{
    char target[128], text[64] = "";
    (void)state;
    snprintf(target, sizeof target, "%s/precious", folder);
    int fd = open(target, O_RDWR | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious and longer than a number\n", 34), 34);
    assert_int_equal(symlink(target, path), 0);
    hv_lock_give(hv_lock_take("a:b c", "x"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(link(target, path), 0);
    hv_lock_give(hv_lock_take("a:b c", "x"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    hv_lock_give(hv_lock_take("a:b c", "x"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rename(target, path), 0);
    hv_lock_give(hv_lock_take("a:b c", "x"));
    assert_int_equal(pread(fd, text, sizeof text, 0), 34);
    assert_memory_equal(text, "precious", 8);
    close(fd);
    setenv("HV_LOCK", "/nowhere/at/all", 1);
    hv_lock_give(hv_lock_take("a:b c", "x"));
    assert_int_equal(waits, 0);
}

static void turned_off(void **state)
{
    (void)state;
    setenv("HV_LOCK", "0", 1);
    const int lock = hv_lock_take("a:b c", "x");
    assert_int_equal(access(path, F_OK), -1);
    hv_lock_give(lock);
}

/* ---- signals ---- */

static void mappings_are_found(void **state)
{
    static char area[200][16];
    (void)state;
    for (int i = 0; i < 200; i++)       /* more than the table takes: the rest is not known, and nothing breaks */
        hv_mapped_add(area[i], 8, i % 2 ? "odd" : "even");
    assert_string_equal(hv_mapped_path(&area[0][7]), "even");
    assert_string_equal(hv_mapped_path(&area[3][0]), "odd");
    assert_null(hv_mapped_path(&area[0][8]));
    assert_null(hv_mapped_path(&area[199][0]));
    hv_mapped_remove(area[3]);
    assert_null(hv_mapped_path(area[3]));
    hv_mapped_add(area[199], 8, "late");
    assert_string_equal(hv_mapped_path(area[199]), "late");
    for (int i = 0; i < 200; i++)
        hv_mapped_remove(area[i]);
    assert_null(hv_mapped_path(area[0]));
}

/* Maps a file, cuts it, reads beyond its end from all threads while a temporary is open. */
static void read_what_was_cut(const char *file, const char *out)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-x", "", "", NULL, &c, 0, 0};
    char *argv[] = {(char *)(uintptr_t)"hv-x", NULL}, tmp[HV_PATH];
    struct hv_err e = {0};
    struct hv_in *in;
    volatile int sum = 0;
    int fd;

    if (hv_cli_parse(&cli, 1, argv, &e) || hv_in_open(&in, file, &e) || hv_temp_open(tmp, out, &fd, &e) ||
        truncate(file, 4096))
        _exit(99);
    const char *data = hv_in_data(in, hv_in_entry(in, 0));
#pragma omp parallel for num_threads(4)
    for (int i = 0; i < 256; i++)
        sum += data[4096 * i];
    _exit(98);
}

static int run_cut(const char *file, const char *out, char *said, size_t size, void (*what)(const char *, const char *))
{
    int err[2], status = 0;
    ssize_t n;
    size_t got = 0;

    assert_int_equal(pipe(err), 0);
    const pid_t pid = fork();
    if (!pid) {
        dup2(err[1], STDERR_FILENO);
        what(file, out);
        _exit(97);
    }
    close(err[1]);
    while (got + 1 < size && (n = read(err[0], said + got, size - 1 - got)) > 0)
        got += (size_t)n;
    said[got] = 0;
    close(err[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void make_file(const char *file)
{
    struct hv_err e = {0};
    struct hv_out out = {0};

    assert_non_null(hv_out_new(&out, "x", HV_U8, 1, (const int64_t[]){1 << 20}, &e));
    assert_int_equal(hv_out_write(&out, file, &e), 0);
    hv_out_close(&out);
}

static void a_file_that_was_cut(void **state)
{
    char file[128], out[128], said[512], want[256];
    (void)state;
    snprintf(file, sizeof file, "%s/cut.st", folder);
    snprintf(out, sizeof out, "%s/out.st", folder);
    make_file(file);
    const int status = run_cut(file, out, said, sizeof said, read_what_was_cut);
    snprintf(want, sizeof want, "hv-x: %s: was cut short while it was read\n", file);
    assert_string_equal(said, want);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), HV_EIO);
    assert_int_equal(unlink(file), 0);  /* and teardown finds nothing else */
}

static void write_what_was_cut(const char *file, const char *out)
{
    struct hv_err e = {0};
    struct hv_out to = {0};
    struct hv_in *in;
    hv_tensor t;

    if (hv_in_open(&in, file, &e) || hv_in_tensor(in, "x", &t, &e) || truncate(file, 4096))
        _exit(99);
    hv_out_add(&to, "x", t);
    hv_out_write(&to, out, &e);
    fprintf(stderr, "%s", e.msg);
    _exit(e.code);
}

/* The kernel reads it then, and answers instead of raising a signal. */
static void a_file_that_was_cut_is_written(void **state)
{
    char file[128], out[128], said[512], want[512];
    (void)state;
    snprintf(file, sizeof file, "%s/cut.st", folder);
    snprintf(out, sizeof out, "%s/out.st", folder);
    make_file(file);
    const int status = run_cut(file, out, said, sizeof said, write_what_was_cut);
    snprintf(want, sizeof want, "%s: %s: was cut short while it was read", out, file);
    assert_string_equal(said, want);
    assert_int_equal(WEXITSTATUS(status), HV_EIO);
    assert_int_equal(unlink(file), 0);
}

static void fault_elsewhere(const char *file, const char *out)
{
    const int fd = open(file, O_RDWR);
    volatile char *p = mmap(NULL, 1 << 20, PROT_READ, MAP_SHARED, fd, 0);

    (void)out;
    signal(SIGBUS, SIG_DFL);            /* a sanitizer's would make a report of it */
    hv_mapped_guard("hv-x");
    if (!truncate(file, 0))
        (void)p[4096];
}

static void sent(const char *file, const char *out)
{
    (void)file, (void)out;
    signal(SIGBUS, SIG_DFL);
    hv_mapped_guard("hv-x");
    kill(getpid(), SIGBUS);
    pause();
}

static void other_faults_are_not_ours(void **state)
{
    char file[128], said[512];
    int status;
    (void)state;
    snprintf(file, sizeof file, "%s/cut.st", folder);
    make_file(file);
    status = run_cut(file, file, said, sizeof said, fault_elsewhere);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    assert_string_equal(said, "");
    status = run_cut(file, file, said, sizeof said, sent);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    assert_int_equal(unlink(file), 0);
}

/* Makes temporaries as fast as it can until the signal comes. */
static void make_temporaries(const char *file, const char *out)
{
    struct hv_err e = {0};
    char tmp[HV_PATH];
    int fd;

    (void)file;
    fprintf(stderr, "x");
    while (!hv_temp_open(tmp, out, &fd, &e)) {
        close(fd);
        hv_temp_discard(tmp);
    }
}

static void a_signal_leaves_no_temporary(void **state)
{
    static const int sigs[] = {SIGINT, SIGTERM, SIGHUP};
    char out[128], c;
    int err[2], status = 0;
    (void)state;
    snprintf(out, sizeof out, "%s/out.st", folder);
    for (int i = 0; i < 60; i++) {      /* the moments differ: before, in and after the making of a name */
        assert_int_equal(pipe(err), 0);
        const pid_t pid = fork();
        if (!pid) {
            dup2(err[1], STDERR_FILENO);
            make_temporaries(out, out);
            _exit(97);
        }
        assert_int_equal(read(err[0], &c, 1), 1);
        nap(0.001 + 1e-5 * i);
        kill(pid, sigs[i % 3]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        close(err[0]);
        close(err[1]);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == sigs[i % 3]);
        assert_int_equal(access(out, F_OK), -1);
    }                                   /* teardown's rmdir fails when anything is left */
}

static int hold(const char *key, const char *seconds)
{
    static struct hv_common c;
    const struct hv_cli cli = {"test_lock", "", "", NULL, &c, 0, 0};
    char *argv[] = {(char *)(uintptr_t)"test_lock", NULL};
    struct hv_err e = {0};

    if (hv_cli_parse(&cli, 1, argv, &e))
        return 2;
    const int lock = hv_lock_take(key, key);
    printf("held\n");
    fflush(stdout);
    nap(atof(seconds));
    hv_lock_give(lock);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(twice_in_one_process),
        TEST(two_devices),
        TEST(waits_for_another),
        TEST(a_short_wait_is_silent),
        TEST(a_killed_holder_lets_go),
        TEST(a_removed_file_is_not_the_lock),
        TEST(what_is_no_lock_file_is_left_alone),
        TEST(turned_off),
        TEST(mappings_are_found),
        TEST(a_file_that_was_cut),
        TEST(a_file_that_was_cut_is_written),
        TEST(other_faults_are_not_ours),
        TEST(a_signal_leaves_no_temporary),
    };

    if (argc == 4 && !strcmp(argv[1], "hold"))
        return hold(argv[2], argv[3]);
    signal(SIGINT, SIG_DFL);            /* whoever runs this may ignore it, and then so would temp.c */
    signal(SIGHUP, SIG_DFL);
    return RUN(tests);
}
