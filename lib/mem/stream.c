/* stream.c - the walk: which group comes next, where it lies in the ring, when its copies may begin and when they are
 * past. */
#define _GNU_SOURCE
#include "mem/stream_impl.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mem/plan.h"

#define POISON ((size_t)1 << 20)

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int faulted(const struct hv_dev *d)
{
    return __atomic_load_n(&d->fault.code, __ATOMIC_ACQUIRE);
}

static char *address(const struct hv_stream *s, const struct hv_block *b)
{
    return (char *)(b->resident ? s->o.resident.data : s->o.ring.data) + b->at;
}

/* ---- events ---- */

static int spare_event(struct hv_stream *s, void **event)
{
    if (s->spares) {
        *event = s->spare[--s->spares];
        return 0;
    }
    *event = hv_dev_event(s->dev, &s->error);
    s->events += *event != NULL;
    return s->error.code;
}

/* There is room: see make_block. */
static void put_spare(struct hv_stream *s, void *event)
{
    if (event)
        s->spare[s->spares++] = event;
}

/* ---- the ring ---- */

static void *grown(void *p, int *cap, int want, size_t size)
{
    if (want <= *cap)
        return p;
    const int n = want > 2 * *cap ? want : 2 * *cap;
    void *q = realloc(p, (size_t)n * size);
    if (q)
        *cap = n;
    return q;
}

/* A block without a place. spare[] always has room for all events that there are. */
static struct hv_block *make_block(struct hv_stream *s, int group, int waits)
{
    struct hv_block *b = calloc(1, sizeof *b);
    void *p = b ? grown(s->block, &s->block_cap, s->blocks + 1, sizeof *s->block) : NULL, *q = NULL;

    if (p) {
        s->block = p;
        q = grown(s->spare, &s->spare_cap, s->events + 2, sizeof *s->spare);
    }
    if (q)
        s->spare = q;
    if (!q || !(b->wait = calloc((size_t)waits + 1, sizeof *b->wait)) || spare_event(s, &b->ready) ||
        spare_event(s, &b->done)) {
        hv_fail(&s->error, HV_ENOMEM, "weights: out of memory");
        if (b) {
            put_spare(s, b->ready);
            free(b->wait);
        }
        free(b);
        return NULL;
    }
    b->group = group;
    s->block[s->blocks++] = b;
    return b;
}

static int overlaps(const struct hv_block *b, size_t at, size_t end)
{
    return !b->resident && b->at < end && at < b->end;
}

/* Takes block i out of the ring; whoever lies there next waits for its last use. */
static void evict(struct hv_stream *s, int i, struct hv_block *next)
{
    struct hv_block *b = s->block[i];

    if (s->of[b->group] == b)
        s->of[b->group] = NULL;
    if (b->given)
        next->wait[next->waits++] = b->done;
    else
        put_spare(s, b->done);
    put_spare(s, b->ready);
    assert(!b->waits);
    free(b->wait);
    free(b);
    s->block[i] = s->block[--s->blocks];
}

/* Room for a group behind what came last, or NULL: it is still used. Nothing is moved before that is known. */
static struct hv_block *ring_place(struct hv_stream *s, int group)
{
    const size_t bytes = s->span[group].bytes, size = hv_nbytes(s->o.ring);
    const size_t at = s->head + bytes > size ? 0 : s->head;         /* the tail is skipped */
    int over = 0;

    for (int i = 0; i < s->blocks; i++)
        if (overlaps(s->block[i], at, at + bytes)) {
            if (s->block[i]->uses || s->block[i]->filling)
                return NULL;
            over++;
        }
    struct hv_block *b = make_block(s, group, over);
    if (!b)
        return NULL;
    for (int i = s->blocks - 2; i >= 0; i--)
        if (overlaps(s->block[i], at, at + bytes))
            evict(s, i, b);
    b->at = at;
    b->end = s->head = at + bytes;
    return b;
}

static struct hv_block *resident_place(struct hv_stream *s, int group)
{
    struct hv_block *b = make_block(s, group, 0);

    if (!b)
        return NULL;
    b->resident = 1;
    b->at = s->span[group].place;
    b->end = b->at + s->span[group].bytes;
    return b;
}

/* ---- the sequence ---- */

static int last_group(const struct hv_stream *s)
{
    return s->w->list.groups - 1;
}

/* -1: none, the sequence has an end. */
static int next_group(const struct hv_stream *s)
{
    return s->forced >= 0 ? s->forced : s->tail < last_group(s) ? s->tail + 1 : s->o.once ? -1 : s->wrap;
}

static int item_at(const struct hv_stream *s, int i)
{
    return (s->first + i) % HV_STREAM_AHEAD;
}

/* Forgets what was predicted from place `from` on; what was copied for it stays in the ring as long as it can. */
static void forget(struct hv_stream *s, int from)
{
    for (int i = from; i < s->items; i++)
        s->item[item_at(s, i)].block->uses--;
    s->items = from < s->items ? from : s->items;
}

/* Everything that the caller holds is in the way of what it waits for: nobody would ever move. */
static void stuck(struct hv_stream *s, int group)
{
    if (s->wanted != group || s->items || s->in != s->out || s->error.code)
        return;
    for (int i = 0; i < s->blocks; i++)
        if (!s->block[i]->resident && s->block[i]->uses)
            hv_fail(&s->error, HV_ENOMEM, "weights: the ring of %zu bytes has no room for %s beside %s, which is taken",
                    hv_nbytes(s->o.ring), s->w->list.group[group], s->w->list.group[s->block[i]->group]);
}

/* Predicts one group more and, if it is on the device no more, begins its copies. Returns 0 when that has to wait. With
 * the mutex, which is left for the advice at the end. */
static int predict(struct hv_stream *s)
{
    const int g = next_group(s), wrapped = s->forced < 0 && s->tail == last_group(s);

    if (s->items == HV_STREAM_AHEAD || g < 0)
        return 0;
    if (!s->of[g]) {
        struct hv_block *b = s->span[g].keep ? resident_place(s, g) : ring_place(s, g);
        if (!b) {
            stuck(s, g);
            return 0;
        }
        s->of[g] = b;
        b->filling = 1;
        s->cur = b;
        s->cur_at = 0;
        for (s->cur_part = 0; s->cur_part < s->span[g].n && !s->span[g].part[s->cur_part].bytes; s->cur_part++)
            ;
    }
    s->of[g]->uses++;
    s->item[item_at(s, s->items)].block = s->of[g];
    s->item[item_at(s, s->items)].group = g;
    s->item[item_at(s, s->items)].wrapped = wrapped;
    s->items++;
    s->tail = g;
    s->forced = -1;
    if (!s->of[g]->filling)
        pthread_cond_signal(&s->arrived);
    if (s->cur) {
        const int after = next_group(s);
        pthread_mutex_unlock(&s->mutex);
        if (after >= 0)
            hv_stage_announce(s, after);
        pthread_mutex_lock(&s->mutex);
    }
    return 1;
}

/* ---- the walker ---- */

/* Issues the copy at the head of the queue. With the mutex, which is left meanwhile: the job stays where it is. */
static void issue(struct hv_stream *s)
{
    struct hv_job *j = &s->job[s->out % HV_STREAM_JOBS];
    struct hv_block *b = j->block;
    char *dst = address(s, b) + j->at;

    pthread_mutex_unlock(&s->mutex);
    if (j->first) {
        for (int i = 0; i < b->waits; i++)
            hv_dev_wait(s->dev, b->wait[i], HV_LANE_IN);
        if (s->o.delay_copy > 0)
            hv_dev_delay(s->dev, HV_LANE_IN, s->o.delay_copy);
    }
    hv_dev_move(s->dev, HV_LANE_IN, dst, j->bytes, j->src, j->bytes, j->bytes, 1);
    if (j->slot >= 0)
        hv_dev_record(s->dev, s->slot_event[j->slot], HV_LANE_IN);
    if (j->last) {
        hv_dev_record(s->dev, b->ready, HV_LANE_IN);
        hv_stage_drop(s, b->group);
    }
    pthread_mutex_lock(&s->mutex);
    if (j->first)
        for (; b->waits; b->waits--)
            put_spare(s, b->wait[b->waits - 1]);
    s->stats.bytes += j->bytes;
    s->stats.copies++;
    s->slot_out += j->slot >= 0;
    s->out++;
    if (!j->last)
        return;
    b->filling = 0;
    s->stats.groups++;
    pthread_cond_signal(&s->arrived);
}

static void *walker(void *arg)
{
    struct hv_stream *s = arg;

    pthread_mutex_lock(&s->mutex);
    while (!s->stop) {
        const unsigned turns = s->turns;
        if (s->error.code || faulted(s->dev)) {
            pthread_cond_signal(&s->arrived);
            pthread_cond_wait(&s->walk, &s->mutex);
        } else if (s->in != s->out && s->job[s->out % HV_STREAM_JOBS].state == HV_JOB_READ) {
            issue(s);
        } else if (s->cur ? s->in - s->out == HV_STREAM_JOBS || !hv_stage_next(s) : !predict(s)) {
            /* Locking a window leaves the mutex: a job may have been read, or the end have come, meanwhile. */
            if (!s->error.code && s->turns == turns)
                pthread_cond_wait(&s->walk, &s->mutex);
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- take, give ---- */

static int group_of(struct hv_stream *s, const char *name)
{
    const int g = hv_wlist_find_group(&s->w->list, name);

    if (g < 0)
        hv_dev_fault(s->dev, HV_EINPUT, "weights: %s: not a group of the list", name);
    return g;
}

/* Makes the sequence go on with a group. */
static void go_to(struct hv_stream *s, int g)
{
    int k = 0;

    while (k < s->items && s->item[item_at(s, k)].group != g)
        k++;
    if (k == s->items && (k || next_group(s) != g)) {
        forget(s, 0);
        s->forced = g;
        return;
    }
    for (; k; k--) {
        s->item[s->first].block->uses--;
        s->first = item_at(s, 1);
        s->items--;
    }
}

/* Waits until the group is at the head of the sequence and its copies are issued; NULL: they never will be. */
static struct hv_block *await(struct hv_stream *s, int g)
{
    const double start = now();
    struct hv_block *b = NULL;
    int waited = 0;

    pthread_mutex_lock(&s->mutex);
    go_to(s, g);
    s->wanted = g;
    hv_stream_wake(s);
    while (!s->error.code && !faulted(s->dev)) {
        if (s->items && s->item[s->first].group == g && !s->item[s->first].block->filling) {
            b = s->item[s->first].block;
            s->first = item_at(s, 1);
            s->items--;
            break;
        }
        waited = 1;
        pthread_cond_wait(&s->arrived, &s->mutex);
    }
    s->wanted = -1;
    if (s->error.code)
        hv_dev_fault(s->dev, s->error.code, "%s", s->error.msg);
    if (waited)
        s->stats.wait += now() - start;
    if (b)
        hv_stream_wake(s);                              /* one more may be predicted */
    pthread_mutex_unlock(&s->mutex);
    return b;
}

void hv_stream_take(struct hv_weights *w, const char *name)
{
    struct hv_stream *s = w->stream;
    const int g = group_of(s, name);

    if (g < 0 || faulted(s->dev))
        return;
    if (s->held[g]) {
        hv_dev_fault(s->dev, HV_EINPUT, "weights: %s: taken twice", name);
        return;
    }
    if (!(s->held[g] = await(s, g)))
        return;
    hv_dev_wait(s->dev, s->held[g]->ready, HV_LANE_COMPUTE);
    if (s->o.delay_compute > 0)
        hv_dev_delay(s->dev, HV_LANE_COMPUTE, s->o.delay_compute);
}

static void poison(struct hv_stream *s, enum hv_lane lane, char *dst, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += POISON) {
        const size_t n = bytes - at < POISON ? bytes - at : POISON;
        hv_dev_move(s->dev, lane, dst + at, n, s->poison, n, n, 1);
    }
}

void hv_stream_give(struct hv_weights *w, const char *name)
{
    struct hv_stream *s = w->stream;
    const int g = group_of(s, name);
    struct hv_block *b = g < 0 ? NULL : s->held[g];
    int spoil = 0;

    if (!b) {
        if (g >= 0 && !faulted(s->dev))
            hv_dev_fault(s->dev, HV_EINPUT, "weights: %s: given, but not taken", name);
        return;
    }
    s->held[g] = NULL;
    if (s->poison && !b->resident) {
        pthread_mutex_lock(&s->mutex);
        spoil = b->uses == 1;
        if (spoil)
            s->of[g] = NULL;
        pthread_mutex_unlock(&s->mutex);
        if (spoil)
            poison(s, HV_LANE_COMPUTE, address(s, b), b->end - b->at);
    }
    hv_dev_record(s->dev, b->done, HV_LANE_COMPUTE);
    pthread_mutex_lock(&s->mutex);
    b->given = 1;
    b->uses--;
    hv_stream_wake(s);
    pthread_mutex_unlock(&s->mutex);
}

void hv_weights_next(struct hv_weights *w, const char *name)
{
    struct hv_stream *s = w->stream;
    int g;

    if (!s || (g = group_of(s, name)) < 0)
        return;
    pthread_mutex_lock(&s->mutex);
    s->wrap = g;
    for (int i = 0; i < s->items; i++)
        if (s->item[item_at(s, i)].wrapped && s->item[item_at(s, i)].group != g) {
            forget(s, i);
            s->tail = last_group(s);
            break;
        }
    hv_stream_wake(s);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- views ---- */

hv_tensor hv_stream_view(struct hv_weights *w, int i, int64_t row)
{
    struct hv_stream *s = w->stream;
    const struct hv_wspec *spec = &w->list.w[i];
    const struct hv_home *home = &s->home[i];
    const int g = spec->group;
    hv_tensor t = w->slot[i].view;
    int half = 0;

    t.data = NULL;
    t.scale = NULL;
    t.dtype = home->dtype;
    if (spec->split && g >= 0)
        half = row >= 0 ? row >= spec->split : !s->held[g];
    if (g < 0 || !s->held[g + half]) {
        hv_dev_fault(s->dev, HV_EINPUT, g < 0 ? "weights: %s: in no group" : "weights: %s: its group %s is not taken",
                     spec->name, g < 0 ? "" : w->list.group[g]);
        return t;
    }
    /* Of the second half, row 0 would lie before the group: as a number, since such a pointer does not exist. */
    const uintptr_t base = (uintptr_t)address(s, s->held[g + half]);
    const uintptr_t before = half ? (uintptr_t)(hv_nbytes(t) / (size_t)spec->shape[0]) * (uintptr_t)spec->split : 0;
    t.data = (void *)(base + home->at[half] - before);
    if (hv_is_quantized(t.dtype) && spec->ndim >= 2)
        t.scale = (const float *)(base + home->scale_at[half] - (half ? (uintptr_t)spec->split * sizeof(float) : 0));
    return t;
}

/* ---- open, close ---- */

/* Parts, places and the homes of tensors; the sizes are checked. */
static int lay_out(struct hv_stream *s, const uint8_t *keep, struct hv_err *e)
{
    const struct hv_wlist *l = &s->w->list;
    const hv_dtype matrices = s->dev->kind == HV_HOST && !s->o.convert ? HV_NONE : s->o.matrices ? s->o.matrices : HV_BF16;
    size_t resident = 0;
    int n = 0, used = 0;

    for (int g = 0; g < l->groups; g++)
        n += hv_parts(s->w, g, matrices, NULL, &s->span[g].bytes);
    if (!(s->parts = calloc((size_t)n + 1, sizeof *s->parts)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    for (int g = 0; g < l->groups; g++) {
        struct hv_span *k = &s->span[g];
        k->part = s->parts + used;
        k->n = hv_parts(s->w, g, matrices, k->part, &k->bytes);
        used += k->n;
        k->keep = keep && keep[g];
        k->place = resident;
        resident += k->keep ? k->bytes : 0;
        if (!k->keep && k->bytes > hv_nbytes(s->o.ring))
            return hv_fail(e, HV_EINPUT, "weights: a ring of %zu bytes, group %s needs %zu", hv_nbytes(s->o.ring),
                           l->group[g], k->bytes);
        for (int i = 0; i < k->n; i++) {
            const struct hv_part *p = &k->part[i];
            struct hv_home *home = &s->home[p->tensor];
            (p->is_scale ? home->scale_at : home->at)[p->row != 0] = p->at;
            if (!p->is_scale)
                home->dtype = p->to;
        }
    }
    if (resident && (s->o.resident.dtype == HV_NONE || resident > hv_nbytes(s->o.resident)))
        return hv_fail(e, HV_EINPUT, "weights: resident memory of %zu bytes, the groups need %zu",
                       s->o.resident.dtype == HV_NONE ? 0 : hv_nbytes(s->o.resident), resident);
    return 0;
}

static int open_stream(struct hv_stream *s, const uint8_t *keep, struct hv_err *e)
{
    const struct hv_wlist *l = &s->w->list;

    if (!l->groups)
        return hv_fail(e, HV_EINPUT, "weights: the list has no groups");
    s->span = calloc((size_t)l->groups, sizeof *s->span);
    s->of = calloc((size_t)l->groups, sizeof *s->of);
    s->held = calloc((size_t)l->groups, sizeof *s->held);
    s->home = calloc((size_t)l->n + 1, sizeof *s->home);
    if (!s->span || !s->of || !s->held || !s->home)
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    s->tail = s->forced = s->wanted = -1;
    s->wrap = l->cycle < l->groups ? l->cycle : 0;
    if (lay_out(s, keep, e) || s->dev->kind == HV_DRY)
        return e->code;
    if (s->o.poison) {
        if (!(s->poison = hv_dev_pin(s->dev, POISON, e)))
            return e->code;
        memset(s->poison, 0xff, POISON);
        poison(s, HV_LANE_IN, s->o.ring.data, hv_nbytes(s->o.ring));
        if (s->o.resident.dtype != HV_NONE)
            poison(s, HV_LANE_IN, s->o.resident.data, hv_nbytes(s->o.resident));
    }
    if (hv_stage_open(s, e))
        return e->code;
    if (pthread_create(&s->walker, NULL, walker, s))
        return hv_fail(e, HV_ENOMEM, "weights: no thread");
    s->walking = 1;
    return 0;
}

/* Waits until both lanes are past what was given to them: they read and write memory that is about to go. */
static void settle(struct hv_stream *s)
{
    struct hv_err ignored = {0};
    void *event = hv_dev_event(s->dev, &ignored);

    for (int i = 0; event && i < 2; i++) {
        hv_dev_record(s->dev, event, i ? HV_LANE_COMPUTE : HV_LANE_IN);
        hv_dev_event_sync(s->dev, event);
    }
    hv_dev_event_close(s->dev, event);
}

static void close_stream(struct hv_stream *s)
{
    hv_stage_stop(s);
    if (s->walking) {
        pthread_mutex_lock(&s->mutex);
        hv_stream_wake(s);
        pthread_mutex_unlock(&s->mutex);
        pthread_join(s->walker, NULL);
    }
    if (s->dev->kind != HV_DRY)
        settle(s);
    hv_stage_close(s);
    hv_dev_unpin(s->dev, s->poison);
    for (int i = 0; i < s->blocks; i++) {
        struct hv_block *b = s->block[i];
        for (int k = 0; k < b->waits; k++)
            hv_dev_event_close(s->dev, b->wait[k]);
        hv_dev_event_close(s->dev, b->ready);
        hv_dev_event_close(s->dev, b->done);
        free(b->wait);
        free(b);
    }
    for (int i = 0; i < s->spares; i++)
        hv_dev_event_close(s->dev, s->spare[i]);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->walk);
    pthread_cond_destroy(&s->read);
    pthread_cond_destroy(&s->arrived);
    free(s->span);
    free(s->parts);
    free(s->home);
    free(s->block);
    free(s->of);
    free(s->held);
    free(s->spare);
    free(s);
}

int hv_weights_stream(struct hv_weights *w, const struct hv_stream_opts *o, struct hv_err *e)
{
    struct hv_stream *s;

    hv_weights_unstream(w);
    if (!(s = calloc(1, sizeof *s)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    s->w = w;
    s->dev = w->dev;
    s->o = *o;
    s->direct = -1;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->walk, NULL);
    pthread_cond_init(&s->read, NULL);
    pthread_cond_init(&s->arrived, NULL);
    if (open_stream(s, o->keep, e) || w->dev->kind == HV_DRY) {
        close_stream(s);
        return e->code;
    }
    w->stream = s;
    return 0;
}

void hv_weights_unstream(struct hv_weights *w)
{
    if (!w->stream)
        return;
    close_stream(w->stream);
    w->stream = NULL;
}

int hv_weights_streamed(const struct hv_weights *w)
{
    return w->stream != NULL;
}

void hv_weights_stats(const struct hv_weights *w, struct hv_stream_stats *out)
{
    *out = (struct hv_stream_stats){0};
    if (!w->stream)
        return;
    pthread_mutex_lock(&w->stream->mutex);
    *out = w->stream->stats;
    pthread_mutex_unlock(&w->stream->mutex);
}

const char *hv_stream_mode_name(enum hv_stream_mode m)
{
    static const char *const name[HV_STREAM_MODES] = {"auto", "pin", "part", "register", "map", "direct"};

    return (unsigned)m < HV_STREAM_MODES ? name[m] : "?";
}
