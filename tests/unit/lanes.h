/* lanes.h - a device whose lanes are threads that lag behind, as a GPU's do, on the cpu's memory: what is wrong about
 * events shows in wrong bytes, or in the thread sanitizer.
 *
 *     struct hv_dev *d = open_lanes();                 // of kind HV_CUDA: weights are converted and copied as for a GPU
 *     compute(d, fn, arg);                             // in the compute lane; on any other device at once
 *     close_lanes(d);                                  // and everything that was opened is closed
 *
 * Operations are the cpu's and run at once: only pages, copies, events and delays are simulated. */
#ifndef LANES_H
#define LANES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <pthread.h>

#include "ops/backend.h"

struct event {
    unsigned recorded, past;
};

struct command {
    enum { MOVE, RECORD, WAIT, DELAY, CALL, QUIT } what;
    void         *dst;
    const void   *src;
    size_t        dst_pitch, src_pitch, width, rows;
    struct event *event;
    unsigned      number;
    double        seconds;
    void        (*fn)(void *);
    void         *arg;
};

#define QUEUE 1024

struct lane {
    struct lanes  *all;
    pthread_t      thread;
    struct command queue[QUEUE];
    unsigned       in, out;             /* out: of those that are done */
};

struct lanes {
    pthread_mutex_t mutex;
    pthread_cond_t  change;
    struct lane     lane[HV_LANES];
    int             syncs;              /* calls that waited on the host */
    int             refuse_lock, pins;  /* tests: locks are refused; pins left, if not 0, counted down */
    int             locked, pinned, events;     /* what is held */
};

static void run_command(struct lanes *l, struct command *c)
{
    struct timespec t = {0};

    switch (c->what) {
    case MOVE:
        for (size_t r = 0; r < c->rows; r++)
            memcpy((char *)c->dst + r * c->dst_pitch, (const char *)c->src + r * c->src_pitch, c->width);
        break;
    case RECORD:
        pthread_mutex_lock(&l->mutex);
        c->event->past = c->number;
        pthread_mutex_unlock(&l->mutex);
        break;
    case WAIT:
        pthread_mutex_lock(&l->mutex);
        while ((int)(c->event->past - c->number) < 0)
            pthread_cond_wait(&l->change, &l->mutex);
        pthread_mutex_unlock(&l->mutex);
        break;
    case DELAY:
        t.tv_nsec = (long)(c->seconds * 1e9);
        nanosleep(&t, NULL);
        break;
    case CALL: c->fn(c->arg); break;
    default:   break;
    }
}

static void *run_lane(void *arg)
{
    struct lane *lane = arg;
    struct lanes *l = lane->all;

    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (lane->in == lane->out)
            pthread_cond_wait(&l->change, &l->mutex);
        struct command c = lane->queue[lane->out % QUEUE];
        pthread_mutex_unlock(&l->mutex);
        if (c.what == QUIT)
            return NULL;
        run_command(l, &c);
        pthread_mutex_lock(&l->mutex);
        lane->out++;
        pthread_cond_broadcast(&l->change);
    }
}

/* With the mutex. */
static void push(struct lanes *l, enum hv_lane lane, struct command c)
{
    struct lane *to = &l->lane[lane];

    while (to->in - to->out == QUEUE)
        pthread_cond_wait(&l->change, &l->mutex);
    to->queue[to->in++ % QUEUE] = c;
    pthread_cond_broadcast(&l->change);
}

static void push_locked(struct hv_dev *d, enum hv_lane lane, struct command c)
{
    struct lanes *l = d->impl;

    pthread_mutex_lock(&l->mutex);
    push(l, lane, c);
    pthread_mutex_unlock(&l->mutex);
}

static void lanes_sync(struct hv_dev *d)
{
    struct lanes *l = d->impl;

    pthread_mutex_lock(&l->mutex);
    for (int i = 0; i < HV_LANES; i++)
        while (l->lane[i].in != l->lane[i].out)
            pthread_cond_wait(&l->change, &l->mutex);
    pthread_mutex_unlock(&l->mutex);
}

static void *lanes_pin(struct hv_dev *d, size_t bytes)
{
    struct lanes *l = d->impl;

    if (l->pins && !--l->pins) {
        l->pins = 1;
        return NULL;
    }
    __atomic_add_fetch(&l->pinned, 1, __ATOMIC_RELAXED);
    return hv_backend_cpu.pin(d, bytes);
}

static void lanes_unpin(struct hv_dev *d, void *p)
{
    __atomic_sub_fetch(&((struct lanes *)d->impl)->pinned, 1, __ATOMIC_RELAXED);
    hv_backend_cpu.unpin(d, p);
}

static int lanes_lock(struct hv_dev *d, const void *p, size_t bytes)
{
    struct lanes *l = d->impl;

    assert_int_equal((uintptr_t)p % 4096, 0);
    assert_int_equal(bytes % 4096, 0);
    if (l->refuse_lock && !--l->refuse_lock) {
        l->refuse_lock = 1;
        return HV_EUNSUP;
    }
    l->locked++;
    return 0;
}

static void lanes_unlock(struct hv_dev *d, const void *p)
{
    (void)p;
    ((struct lanes *)d->impl)->locked--;
}

static void lanes_move(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dp, const void *src, size_t sp, size_t width,
                       size_t rows)
{
    push_locked(d, lane, (struct command){.what = MOVE, .dst = dst, .src = src, .dst_pitch = dp, .src_pitch = sp,
                                          .width = width, .rows = rows});
}

static void *lanes_event_open(struct hv_dev *d)
{
    __atomic_add_fetch(&((struct lanes *)d->impl)->events, 1, __ATOMIC_RELAXED);
    return calloc(1, sizeof(struct event));
}

static void lanes_event_close(struct hv_dev *d, void *event)
{
    __atomic_sub_fetch(&((struct lanes *)d->impl)->events, 1, __ATOMIC_RELAXED);
    free(event);
}

static void lanes_event_record(struct hv_dev *d, void *event, enum hv_lane lane)
{
    struct lanes *l = d->impl;
    struct event *e = event;

    pthread_mutex_lock(&l->mutex);
    push(l, lane, (struct command){.what = RECORD, .event = e, .number = ++e->recorded});
    pthread_mutex_unlock(&l->mutex);
}

static void lanes_event_wait(struct hv_dev *d, void *event, enum hv_lane lane)
{
    struct lanes *l = d->impl;
    struct event *e = event;

    pthread_mutex_lock(&l->mutex);
    push(l, lane, (struct command){.what = WAIT, .event = e, .number = e->recorded});
    pthread_mutex_unlock(&l->mutex);
}

static void lanes_event_sync(struct hv_dev *d, void *event)
{
    struct lanes *l = d->impl;
    struct event *e = event;

    pthread_mutex_lock(&l->mutex);
    l->syncs++;
    const unsigned number = e->recorded;
    while ((int)(e->past - number) < 0)
        pthread_cond_wait(&l->change, &l->mutex);
    pthread_mutex_unlock(&l->mutex);
}

static void lanes_delay(struct hv_dev *d, enum hv_lane lane, double seconds)
{
    push_locked(d, lane, (struct command){.what = DELAY, .seconds = seconds});
}

static int lanes_info(struct hv_dev *d, struct hv_dev_info *info)
{
    (void)d;
    info->map_lock = 1;
    return 0;
}

static struct hv_backend lanes_backend;

static struct hv_dev *open_lanes(void)
{
    struct hv_dev *d = calloc(1, sizeof *d);
    struct lanes *l = calloc(1, sizeof *l);

    assert_true(d && l);
    lanes_backend = hv_backend_cpu;
    lanes_backend.name = "lanes";
    lanes_backend.kind = HV_CUDA;
    lanes_backend.sync = lanes_sync;
    lanes_backend.pin = lanes_pin;
    lanes_backend.unpin = lanes_unpin;
    lanes_backend.lock = lanes_lock;
    lanes_backend.unlock = lanes_unlock;
    lanes_backend.move = lanes_move;
    lanes_backend.event_open = lanes_event_open;
    lanes_backend.event_close = lanes_event_close;
    lanes_backend.event_record = lanes_event_record;
    lanes_backend.event_wait = lanes_event_wait;
    lanes_backend.event_sync = lanes_event_sync;
    lanes_backend.delay = lanes_delay;
    lanes_backend.info = lanes_info;
    d->backend = &lanes_backend;
    d->impl = l;
    d->kind = HV_CUDA;
    d->threads = 1;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->change, NULL);
    for (int i = 0; i < HV_LANES; i++) {
        l->lane[i].all = l;
        assert_int_equal(pthread_create(&l->lane[i].thread, NULL, run_lane, &l->lane[i]), 0);
    }
    return d;
}

/* Everything that was opened was closed. */
static void close_lanes(struct hv_dev *d)
{
    struct lanes *l = d->impl;

    lanes_sync(d);
    for (int i = 0; i < HV_LANES; i++)
        push_locked(d, (enum hv_lane)i, (struct command){.what = QUIT});
    for (int i = 0; i < HV_LANES; i++)
        pthread_join(l->lane[i].thread, NULL);
    assert_int_equal(l->locked, 0);
    assert_int_equal(l->pinned, 0);
    assert_int_equal(l->events, 0);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->change);
    free(l);
    free(d);
}

/* Does something in the compute lane: later, on the lanes; now, on the cpu. */
static void compute(struct hv_dev *d, void (*fn)(void *), void *arg)
{
    if (d->kind == HV_CUDA)
        push_locked(d, HV_LANE_COMPUTE, (struct command){.what = CALL, .fn = fn, .arg = arg});
    else
        fn(arg);
}

#endif
