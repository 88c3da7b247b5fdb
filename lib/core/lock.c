#define _GNU_SOURCE
#include "core/lock.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOCKS  64                       /* as many as dev.c has numbers for devices */
#define KEY    80
#define PID_TEXT 24                     /* a lock file is never longer */

static struct slot {
    char key[KEY];
    int  users;                         /* takes less gives; 0: the slot is free */
    int  ready, fd;                     /* ready: fd was waited for; -1: there is no lock to have */
} slots[LOCKS];

static pthread_mutex_t  table = PTHREAD_MUTEX_INITIALIZER;      /* never held while waiting for another process */
static pthread_cond_t   changed = PTHREAD_COND_INITIALIZER;
static hv_lock_wait_fn *said_to;

void hv_lock_on_wait(hv_lock_wait_fn *say)
{
    said_to = say;
}

/* ---- the file ---- */

/* 0, or 1 when locks are turned off or the name is too long. */
static int path_of(char *path, size_t size, const char *key)
{
    const char *folder = getenv("HV_LOCK");
    char name[KEY];
    size_t i = 0;

    if (folder && !strcmp(folder, "0"))
        return 1;
    for (; key[i] && i + 1 < sizeof name; i++)
        name[i] = isalnum((unsigned char)key[i]) || key[i] == '.' ? key[i] : '-';
    name[i] = 0;
    const int n = snprintf(path, size, "%s/hv-%s.lock", folder && *folder == '/' ? folder : "/tmp", name);
    return n < 0 || (size_t)n >= size;
}

/* Opens or makes the file; -1 when what is there is no lock file. In a folder that everybody may write to nothing is
 * trusted: no link is followed, nothing blocks. It is made in a step of its own, because the system may forbid O_CREAT
 * on a file of another user there. */
static int open_file(const char *path)
{
    const int flags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    struct stat st;
    int fd = -1;

    for (int tries = 0; tries < 8 && fd < 0; tries++) {
        fd = open(path, O_RDWR | flags);
        if (fd < 0 && errno == EACCES)
            fd = open(path, O_RDONLY | flags);          /* enough for flock */
        if (fd < 0 && errno != ENOENT)
            return -1;
        if (fd < 0 && (fd = open(path, O_RDWR | O_CREAT | O_EXCL | flags, 0666)) >= 0)
            (void)!fchmod(fd, 0666);                    /* whatever the umask: other users take turns too */
        if (fd < 0 && errno != EEXIST)
            return -1;
    }
    if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink > 1 || st.st_size > PID_TEXT)) {
        close(fd);
        return -1;
    }
    return fd;
}

static long holder(int fd)
{
    char text[PID_TEXT + 1] = "";
    const ssize_t n = pread(fd, text, PID_TEXT, 0);
    const long pid = n > 0 ? strtol(text, NULL, 10) : 0;

    return pid > 0 ? pid : 0;
}

static void sign(int fd, long pid)
{
    char text[PID_TEXT];
    const int n = pid ? snprintf(text, sizeof text, "%ld\n", pid) : 0;

    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n) {}     /* then a waiter is told less */
}

/* A second of trying, then a word, then as long as it takes. 0, or 1 when this file cannot be locked. */
static int wait_for(int fd, const char *what, int *said)
{
    const struct timespec pause = {.tv_nsec = 50000000};

    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return 1;
        if (i < 20 && !*said) {
            nanosleep(&pause, NULL);
            continue;
        }
        if (!*said && said_to)
            said_to(what, holder(fd));
        *said = 1;
        while (flock(fd, LOCK_EX))
            if (errno != EINTR)
                return 1;
        break;
    }
    return 0;
}

static int acquire(const char *key, const char *what)
{
    char path[4096];
    struct stat st;
    int said = 0;

    if (path_of(path, sizeof path, key))
        return -1;
    for (int tries = 0; tries < 8; tries++) {
        const int fd = open_file(path);
        if (fd < 0)
            return -1;
        if (wait_for(fd, what, &said) || fstat(fd, &st)) {
            close(fd);
            return -1;
        }
        if (st.st_nlink) {
            sign(fd, (long)getpid());
            return fd;
        }
        close(fd);                      /* removed while we waited: others lock the one that took its place */
    }
    return -1;
}

/* ---- the table ---- */

int hv_lock_take(const char *key, const char *what)
{
    struct slot *s = NULL;
    int free_at = -1;

    if (strlen(key) >= KEY)
        return 0;
    pthread_mutex_lock(&table);
    for (int i = 0; i < LOCKS && !s; i++) {
        if (slots[i].users && !strcmp(slots[i].key, key))
            s = &slots[i];
        else if (!slots[i].users && free_at < 0)
            free_at = i;
    }
    if (s) {
        s->users++;
        while (!s->ready)
            pthread_cond_wait(&changed, &table);
    } else if (free_at >= 0) {
        s = &slots[free_at];
        *s = (struct slot){.users = 1, .fd = -1};
        strcpy(s->key, key);
        pthread_mutex_unlock(&table);
        const int fd = acquire(key, what);
        pthread_mutex_lock(&table);
        s->fd = fd;
        s->ready = 1;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&table);
    return s ? (int)(s - slots) + 1 : 0;
}

void hv_lock_give(int lock)
{
    if (lock < 1 || lock > LOCKS)
        return;
    pthread_mutex_lock(&table);
    struct slot *s = &slots[lock - 1];
    if (s->users && !--s->users && s->fd >= 0) {
        sign(s->fd, 0);
        flock(s->fd, LOCK_UN);          /* a child that was forked meanwhile would keep it */
        close(s->fd);
        s->fd = -1;
    }
    pthread_mutex_unlock(&table);
}
