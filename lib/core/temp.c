#define _GNU_SOURCE
#include "core/temp.h"

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

static void on_signal(int sig)
{
    for (int i = 0; i < OPEN_MAX_TEMPS; i++)
        if (open_temps[i][0])
            unlink(open_temps[i]);
    signal(sig, SIG_DFL);
    raise(sig);
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
    *fd = mkostemps(tmp, (int)strlen(suffix), O_CLOEXEC);
    if (*fd < 0)
        return hv_fail(e, HV_EIO, "%s: %s", final, strerror(errno));
    memcpy(open_temps[slot], tmp, (size_t)n + 1);
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
