#define _GNU_SOURCE
#include "core/mapped.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "core/err.h"
#include "core/temp.h"

#define MAPPINGS 64

enum { FREE, CLAIMED, KNOWN };          /* a handler may look at any time: an entry counts when it is whole */

static struct mapping {
    int         state;
    uintptr_t   begin, end;
    const char *path;
} mappings[MAPPINGS];

static const char      *program;
static int              terminal;
static struct sigaction before;

void hv_mapped_add(const void *p, size_t bytes, const char *path)
{
    for (int i = 0; i < MAPPINGS; i++) {
        struct mapping *m = &mappings[i];
        int vacant = FREE;
        if (!__atomic_compare_exchange_n(&m->state, &vacant, CLAIMED, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        m->begin = (uintptr_t)p;
        m->end = m->begin + bytes;
        m->path = path;
        __atomic_store_n(&m->state, KNOWN, __ATOMIC_RELEASE);
        return;
    }
}

static struct mapping *find(const void *p)
{
    const uintptr_t at = (uintptr_t)p;

    for (int i = 0; i < MAPPINGS; i++) {
        struct mapping *m = &mappings[i];
        if (__atomic_load_n(&m->state, __ATOMIC_ACQUIRE) == KNOWN && at >= m->begin && at < m->end)
            return m;
    }
    return NULL;
}

void hv_mapped_remove(const void *p)
{
    struct mapping *m = find(p);

    if (m)
        __atomic_store_n(&m->state, FREE, __ATOMIC_RELEASE);
}

const char *hv_mapped_path(const void *p)
{
    const struct mapping *m = find(p);

    return m ? m->path : NULL;
}

/* ---- the handler ---- */

struct line {
    char   text[8192];
    size_t n;
};

static void append(struct line *l, const char *s)
{
    for (; *s && l->n < sizeof l->text; s++)
        l->text[l->n++] = *s;
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
    static int taken;
    const char *path = info->si_code == BUS_ADRERR ? hv_mapped_path(info->si_addr) : NULL;
    struct line l = {.n = 0};

    (void)context;
    if (!path) {
        /* A fault comes again when the instruction is tried again; a signal that was sent has to be sent again. */
        sigaction(SIGBUS, &before, NULL);
        if (info->si_code <= 0)
            raise(sig);
        return;
    }
    if (__atomic_exchange_n(&taken, 1, __ATOMIC_ACQ_REL))
        for (;;)
            pause();                    /* many threads read the file: the first one speaks for all */
    append(&l, terminal ? "\r\033[K" : "");             /* over a line of progress */
    append(&l, program);
    append(&l, ": ");
    append(&l, path);
    append(&l, ": was cut short while it was read\n");
    if (write(STDERR_FILENO, l.text, l.n) < 0) {}
    hv_temp_sweep();
    _exit(HV_EIO);
}

void hv_mapped_guard(const char *name)
{
    struct sigaction now = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    const int already = program != NULL, error = errno;

    program = name;
    terminal = isatty(STDERR_FILENO);
    errno = error;
    sigemptyset(&now.sa_mask);
    if (!already)
        sigaction(SIGBUS, &now, &before);
}
