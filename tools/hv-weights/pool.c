/* Threads that sleep while they wait. OpenMP's spin, which takes the cores away from the threads that write and digest. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "hv-weights.h"

#define STACK   ((size_t)512 << 10)
#define WORKERS 256

static struct {
    pthread_mutex_t lock;
    pthread_cond_t  work, idle;
    pthread_t       thread[WORKERS];
    struct worker   worker[WORKERS];
    int             n, started, busy, stop;
    chunk_fn       *fn;
    void           *ctx;
    int64_t         next, end, round;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

/* Takes chunks until there are none; the lock is held on entry and exit. */
static void run_chunks(struct worker *w)
{
    while (pool.next < pool.end) {
        const int64_t k = pool.next++;
        pthread_mutex_unlock(&pool.lock);
        pool.fn(pool.ctx, k, w);
        pthread_mutex_lock(&pool.lock);
    }
}

static void *loop(void *arg)
{
    struct worker *w = arg;
    int64_t seen = 0;

    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.round == seen && !pool.stop)
            pthread_cond_wait(&pool.work, &pool.lock);
        if (pool.stop)
            break;
        seen = pool.round;
        pool.busy++;
        run_chunks(w);
        if (!--pool.busy)
            pthread_cond_signal(&pool.idle);
    }
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

void pool_threads(int64_t n)
{
    const char *environment = getenv("OMP_NUM_THREADS");
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);

    if (n < 1 && environment)
        n = strtol(environment, NULL, 10);
    n = n < 1 ? cores : n;
    pool.n = n < 1 ? 1 : n > WORKERS ? WORKERS : (int)n;
}

static void start(void)
{
    pthread_attr_t attr;

    if (!pool.n)
        pool_threads(0);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    /* The caller is worker 0. One that cannot be started is one less. */
    for (pool.started = 1; pool.started < pool.n; pool.started++)
        if (pthread_create(&pool.thread[pool.started], &attr, loop, &pool.worker[pool.started]))
            break;
    pthread_attr_destroy(&attr);
}

void for_chunks(int64_t n, chunk_fn *fn, void *ctx)
{
    if (n < 2) {
        if (n == 1)
            fn(ctx, 0, &pool.worker[0]);
        return;
    }
    if (!pool.started)
        start();
    pthread_mutex_lock(&pool.lock);
    pool.fn = fn;
    pool.ctx = ctx;
    pool.next = 0;
    pool.end = n;
    pool.round++;
    pthread_cond_broadcast(&pool.work);
    run_chunks(&pool.worker[0]);
    while (pool.busy)
        pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
}

void *scratch(struct worker *w, size_t bytes)
{
    if (bytes > w->bytes) {
        free(w->buf);
        w->buf = malloc(bytes);
        w->bytes = w->buf ? bytes : 0;
    }
    return w->buf;
}

void pool_close(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.stop = 1;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 1; i < pool.started; i++)
        pthread_join(pool.thread[i], NULL);
    for (int i = 0; i < WORKERS; i++)
        free(pool.worker[i].buf);
}

void keep_first(struct failure *f, int64_t chunk, const struct hv_err *e)
{
    pthread_mutex_lock(&pool.lock);
    if (!f->e.code || chunk < f->chunk) {
        f->chunk = chunk;
        f->e = *e;
    }
    pthread_mutex_unlock(&pool.lock);
}
