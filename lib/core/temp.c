#define _GNU_SOURCE
#include "core/temp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_MAX_TEMPS 8

static char open_temps[OPEN_MAX_TEMPS][HV_PATH];        /* "" where free; read by the handler */
static const int deadly[] = {SIGINT, SIGTERM, SIGHUP};

static int  naming;                                     /* 1 while a file may be there whose name is not yet here */

void hv_temp_sweep(void)
{
    for (int i = 0; i < OPEN_MAX_TEMPS; i++)
        if (open_temps[i][0])
            unlink(open_temps[i]);
}

static void on_signal(int sig)
{
    /* The thread that names a file has its signals blocked: this is another one, and waits for microseconds. */
    while (__atomic_load_n(&naming, __ATOMIC_ACQUIRE)) {}
    hv_temp_sweep();
    signal(sig, SIG_DFL);
    raise(sig);
}

/* mkostemps, with the name in the table before a signal is seen. Returns the descriptor or -1, errno set. */
static int make_named(char *tmp, int suffix, int slot)
{
    sigset_t all, old;
    int fd, error;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    __atomic_store_n(&naming, 1, __ATOMIC_RELEASE);
    fd = mkostemps(tmp, suffix, O_CLOEXEC);
    error = errno;
    if (fd >= 0)
        memcpy(open_temps[slot], tmp, strlen(tmp) + 1);
    __atomic_store_n(&naming, 0, __ATOMIC_RELEASE);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = error;
    return fd;
}

static void catch_signals(void)
{
    static int done;
    struct sigaction now;

    if (done)
        return;
    done = 1;
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
        if (!sigaction(deadly[i], NULL, &now) && now.sa_handler == SIG_DFL)     /* nohup's SIG_IGN is respected */
            signal(deadly[i], on_signal);
}

int hv_temp_open(char tmp[HV_PATH], const char *final, int *fd, struct hv_err *e)
{
    const char *slash = strrchr(final, '/'), *base = slash ? slash + 1 : final;
    const char *dot = strrchr(base, '.');
    const char *suffix = dot && dot != base ? dot : "";
    struct stat st;
    mode_t mask;
    int slot = -1, n;

    if (!*base || (!stat(final, &st) && S_ISDIR(st.st_mode)))
        return hv_fail(e, HV_EIO, "%s: is a folder", final);
    for (int i = 0; i < OPEN_MAX_TEMPS && slot < 0; i++)
        if (!open_temps[i][0])
            slot = i;
    n = snprintf(tmp, HV_PATH, "%.*s.%.*s.XXXXXX%s", (int)(base - final), final, (int)(strlen(base) - strlen(suffix)),
                 base, suffix);
    if (n >= HV_PATH || slot < 0)
        return hv_fail(e, HV_EIO, "%s: %s", final, slot < 0 ? "too many open temporaries" : "name too long");
    catch_signals();
    *fd = make_named(tmp, (int)strlen(suffix), slot);
    if (*fd < 0)
        return hv_fail(e, HV_EIO, "%s: %s", final, strerror(errno));
    mask = umask(0);
    umask(mask);
    if (fchmod(*fd, 0666 & ~mask)) {}                   /* some file systems have no modes: the file is still good */
    return 0;
}

static void forget(const char *tmp)
{
    for (int i = 0; i < OPEN_MAX_TEMPS; i++)
        if (!strcmp(open_temps[i], tmp))
            open_temps[i][0] = 0;
}

int hv_temp_commit(const char *tmp, const char *final, struct hv_err *e)
{
    if (rename(tmp, final)) {
        hv_fail(e, HV_EIO, "%s: %s", final, strerror(errno));
        hv_temp_discard(tmp);
        return e->code;
    }
    forget(tmp);
    return 0;
}

void hv_temp_discard(const char *tmp)
{
    unlink(tmp);
    forget(tmp);
}

void hv_temp_stale(const char *final)
{
    const char *slash = strrchr(final, '/'), *base = slash ? slash + 1 : final;
    const char *dot = strrchr(base, '.'), *suffix = dot && dot != base ? dot : "";
    const size_t stem = strlen(base) - strlen(suffix), whole = stem + 8 + strlen(suffix);       /* ".STEM.XXXXXX.SUFFIX" */
    char path[HV_PATH];
    struct dirent *d;

    if (snprintf(path, sizeof path, "%.*s.", (int)(base - final), final) >= (int)sizeof path)
        return;
    DIR *folder = opendir(path);
    while (folder && (d = readdir(folder)))
        if (strlen(d->d_name) == whole && d->d_name[0] == '.' && !strncmp(d->d_name + 1, base, stem) && d->d_name[1 + stem] == '.' &&
            !strcmp(d->d_name + whole - strlen(suffix), suffix) &&
            snprintf(path, sizeof path, "%.*s%s", (int)(base - final), final, d->d_name) < (int)sizeof path)
            unlink(path);
    if (folder)
        closedir(folder);
}
