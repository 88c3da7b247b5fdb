/* stage.c - from the source to page-locked memory: slots that readers fill, copies of whole groups, windows of the
 * mapped file. */
#define _GNU_SOURCE
#include "mem/stream_impl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE       ((size_t)4096)       /* what O_DIRECT wants offsets, lengths and addresses to be multiples of */
#define CHUNK      ((size_t)4 << 20)
#define WINDOW     ((size_t)1 << 30)
#define BLOB       ((size_t)256 << 20)
#define SMALL      ((size_t)64 << 10)   /* reads below this go through the page cache, several to a slot */
#define DIRECT_MIN 4                    /* requests in flight that a disk wants */
#define COPIERS    8                    /* readers that copy a file from the cache faster than its pages are locked: measured on an H200's host */

static size_t up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- readers ---- */

/* The slot's pages around the cache: the aligned span that holds the piece. What is odd about it is read again the
 * plain way. */
static int read_direct(struct hv_stream *s, struct hv_job *j, struct hv_err *e)
{
    const struct hv_piece *p = &j->piece[0];
    const uint64_t begin = p->part->offset + p->first, from = begin / PAGE * PAGE;
    const size_t skew = (size_t)(begin - from), want = skew + p->n, span = up(want, PAGE);
    char *slot = j->src;
    size_t got = 0;

    j->src = slot + skew;
    while (got < want) {
        const ssize_t n = pread(s->direct, slot + got, span - got, (off_t)(from + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        got += (size_t)n;
        if (got % PAGE)                 /* the end of the file */
            break;
    }
    if (got >= want)
        return 0;
    got = got > skew ? got - skew : 0;
    return hv_source_pread(s->w, s->w->fd, begin + got, p->n - got, j->src + got, s->w->list.w[p->part->tensor].name, e);
}

static int read_job(struct hv_stream *s, struct hv_job *j, void *scratch, struct hv_err *e)
{
    if (j->slot >= 0)
        hv_dev_event_sync(s->dev, s->slot_event[j->slot]);         /* until the copy of what was in it is past */
    if (s->direct >= 0 && j->pieces == 1 && j->piece[0].part->raw && j->piece[0].n >= SMALL && j->slot >= 0)
        return read_direct(s, j, e);
    for (int i = 0; i < j->pieces && !e->code; i++) {
        const struct hv_piece *p = &j->piece[i];
        hv_source_read(s->w, p->part, p->first, p->n, j->src + p->at, scratch, e);
    }
    return e->code;
}

static struct hv_job *unread(struct hv_stream *s)
{
    for (unsigned i = s->out; i != s->in; i++)
        if (s->job[i % HV_STREAM_JOBS].state == HV_JOB_UNREAD)
            return &s->job[i % HV_STREAM_JOBS];
    return NULL;
}

static void *reader(void *arg)
{
    struct hv_stream *s = arg;
    void *scratch = aligned_alloc(64, HV_SOURCE_SCRATCH);

    pthread_mutex_lock(&s->mutex);
    if (!scratch)
        hv_fail(&s->error, HV_ENOMEM, "weights: out of memory");
    while (!s->stop) {
        struct hv_err e = {0};
        struct hv_job *j = s->error.code ? NULL : unread(s);
        if (!j) {
            pthread_cond_wait(&s->read, &s->mutex);
            continue;
        }
        j->state = HV_JOB_READING;
        pthread_mutex_unlock(&s->mutex);
        read_job(s, j, scratch, &e);
        pthread_mutex_lock(&s->mutex);
        j->state = HV_JOB_READ;
        if (e.code)
            hv_fail(&s->error, e.code, "%s", e.msg);
        hv_stream_wake(s);
    }
    pthread_mutex_unlock(&s->mutex);
    free(scratch);
    return NULL;
}

/* ---- jobs ---- */

/* Bytes from the walk's place on that lie in the file as they do in the ring. */
static size_t raw_run(const struct hv_stream *s)
{
    const struct hv_span *g = &s->span[s->cur->group];
    const struct hv_part *p = &g->part[s->cur_part];
    size_t n = p->bytes - s->cur_at;

    if (!p->raw)
        return 0;
    for (int i = s->cur_part + 1; i < g->n; i++, p++) {
        const struct hv_part *q = &g->part[i];
        if (!q->raw || q->at != p->at + p->bytes || q->offset != p->offset + p->bytes)
            break;
        n += q->bytes;
    }
    return n;
}

/* Goes on by n bytes of the ring, from part to part. */
static void advance(struct hv_stream *s, size_t n)
{
    const struct hv_span *g = &s->span[s->cur->group];

    while (n) {
        const size_t left = g->part[s->cur_part].bytes - s->cur_at, k = n < left ? n : left;
        n -= k;
        s->cur_at += k;
        if (k == left) {
            s->cur_part++;
            s->cur_at = 0;
        }
    }
    while (s->cur_part < g->n && !g->part[s->cur_part].bytes)
        s->cur_part++;
}

/* What is next of the group, up to a slot's size: one long run of the file, or pieces. */
static void gather(struct hv_stream *s, struct hv_job *j)
{
    const struct hv_span *g = &s->span[s->cur->group];
    const size_t chunk = s->o.chunk;

    j->at = g->part[s->cur_part].at + s->cur_at;
    while (s->cur_part < g->n && j->pieces < HV_STREAM_PIECES) {
        const struct hv_part *p = &g->part[s->cur_part];
        const size_t at = p->at + s->cur_at - j->at, run = raw_run(s), left = run ? run : p->bytes - s->cur_at;
        if (at >= chunk || (s->direct >= 0 && run >= SMALL && j->pieces))
            return;
        const size_t n = left < chunk - at ? left : chunk - at;
        j->piece[j->pieces++] = (struct hv_piece){.part = p, .first = s->cur_at, .n = n, .at = at};
        j->bytes = at + n;
        advance(s, n);
        if (s->direct >= 0 && run >= SMALL)
            return;
    }
}

/* 1 if the mapped file is locked where a byte of it lies. */
static int window_of(struct hv_stream *s, uint64_t offset)
{
    const size_t i = (size_t)(offset / s->window_bytes), begin = i * s->window_bytes;

    if (s->window[i] == HV_WINDOW_NEW) {
        const size_t left = (size_t)s->w->file_bytes - begin, n = up(left < s->window_bytes ? left : s->window_bytes, PAGE);
        pthread_mutex_unlock(&s->mutex);                            /* it may have to be read from a disk */
        const int refused = hv_dev_lock(s->dev, s->map + begin, n);
        pthread_mutex_lock(&s->mutex);
        s->window[i] = refused ? HV_WINDOW_REFUSED : HV_WINDOW_LOCKED;
        s->stats.locked += refused ? 0 : n;
    }
    return s->window[i] == HV_WINDOW_LOCKED;
}

/* A run of the mapped file, as far as its window reaches. */
static int from_map(struct hv_stream *s, struct hv_job *j)
{
    const struct hv_part *p = &s->span[s->cur->group].part[s->cur_part];
    const uint64_t offset = p->offset + s->cur_at;
    size_t n = raw_run(s);

    if (!s->map || !n || !window_of(s, offset))
        return 0;
    const uint64_t end = (offset / s->window_bytes + 1) * s->window_bytes;
    n = end - offset < n ? (size_t)(end - offset) : n;
    j->at = p->at + s->cur_at;
    j->bytes = n;
    j->src = (char *)(uintptr_t)(s->map + offset);
    j->state = HV_JOB_READ;
    advance(s, n);
    return 1;
}

int hv_stage_next(struct hv_stream *s)
{
    struct hv_job *j = &s->job[s->in % HV_STREAM_JOBS];
    const struct hv_span *g = &s->span[s->cur->group];

    *j = (struct hv_job){.block = s->cur, .slot = -1, .first = !s->cur_part && !s->cur_at};
    if (!g->bytes || g->image) {
        j->src = g->image;
        j->bytes = g->bytes;
        j->state = HV_JOB_READ;
        s->cur_part = g->n;
    } else if (!from_map(s, j)) {
        if (s->slot_in - s->slot_out == (unsigned)s->n_slots)
            return 0;
        gather(s, j);
        j->slot = (int)(s->slot_in++ % (unsigned)s->n_slots);
        j->src = s->slots + (size_t)j->slot * s->slot_bytes;
        j->state = HV_JOB_UNREAD;
        pthread_cond_signal(&s->read);
    }
    j->last = s->cur_part == g->n;
    if (j->last)
        s->cur = NULL;
    s->in++;
    return 1;
}

/* ---- advice ---- */

static void advise(struct hv_stream *s, int group, int advice)
{
    const struct hv_span *g = &s->span[group];

    if (s->w->fd < 0 || s->direct >= 0 || g->image)
        return;
    for (int i = 0; i < g->n; i++) {
        const struct hv_part *p = &g->part[i];
        if (!p->memory && p->bytes)
            (void)posix_fadvise(s->w->fd, (off_t)p->offset,
                                (off_t)(p->bytes / hv_dtype_size(p->to) * hv_dtype_size(p->from)), advice);
    }
}

void hv_stage_announce(struct hv_stream *s, int group)
{
    /* A file that fits into memory stays there once it was read. */
    if (s->map || (s->span[group].announced && !s->span[group].drop))
        return;
    s->span[group].announced = 1;
    advise(s, group, POSIX_FADV_WILLNEED);
}

void hv_stage_drop(struct hv_stream *s, int group)
{
    if (s->span[group].drop)
        advise(s, group, POSIX_FADV_DONTNEED);
}

/* The first group that is used more than once. */
static int first_step(const struct hv_stream *s)
{
    return s->o.once ? s->w->list.groups : s->w->list.cycle;
}

/* Reading a large file round and round, the cache would always have dropped what comes next: the first groups of the
 * steps, up to two fifths of the memory, are left in it and all else is given back at once. */
static void choose_drops(struct hv_stream *s)
{
    uint64_t sum = 0;

    for (int g = 0; g < s->w->list.groups; g++) {
        if (g >= first_step(s))
            sum += s->span[g].bytes;
        s->span[g].drop = s->w->large && !s->map && (g < first_step(s) || sum > s->w->memory / 5 * 2);
    }
}

/* ---- page-locked copies of groups ---- */

static int is_converted(const struct hv_span *g)
{
    for (int i = 0; i < g->n; i++)
        if (!g->part[i].raw)
            return 1;
    return 0;
}

/* The name without its numbers, and all shapes, are the same. */
static int alike(const struct hv_stream *s, int a, int b)
{
    const struct hv_span *x = &s->span[a], *y = &s->span[b];
    const char *p = s->w->list.group[a], *q = s->w->list.group[b];

    for (; *p || *q; p++, q++) {
        while (isdigit((unsigned char)*p))
            p++;
        while (isdigit((unsigned char)*q))
            q++;
        if (*p != *q)
            return 0;
        if (!*p)
            break;
    }
    if (x->n != y->n)
        return 0;
    for (int i = 0; i < x->n; i++) {
        const struct hv_part *u = &x->part[i], *v = &y->part[i];
        if (u->at != v->at || u->bytes != v->bytes || u->to != v->to || u->is_scale != v->is_scale || u->row != v->row)
            return 0;
    }
    return 1;
}

/* The group whose copy another one uses: itself, but for shared synthetic ones. */
static int owner(const struct hv_stream *s, int g)
{
    for (int i = s->w->list.cycle; i < g && s->w->is_synth && s->w->synth.share; i++)
        if (!s->span[i].keep && alike(s, i, g))
            return i;
    return g;
}

static int wants_image(const struct hv_stream *s, int g)
{
    if (g < first_step(s) || s->span[g].keep || owner(s, g) != g)
        return 0;
    if (s->w->is_synth && s->w->synth.share)
        return 1;
    return s->stats.mode == HV_STREAM_REGISTER ? is_converted(&s->span[g]) :
           s->stats.mode == HV_STREAM_PIN || s->stats.mode == HV_STREAM_PART;
}

/* Gives `budget` bytes to the groups that want a copy, evenly spread where not all fit: image is set to a mark. */
static int choose_images(struct hv_stream *s, uint64_t budget)
{
    uint64_t total = 0, passed = 0, chosen = 0;
    int all = 1;

    for (int g = 0; g < s->w->list.groups; g++)
        total += wants_image(s, g) ? s->span[g].bytes : 0;
    for (int g = 0; g < s->w->list.groups; g++) {
        if (!wants_image(s, g))
            continue;
        passed += s->span[g].bytes;
        if (total <= budget || (double)(chosen + s->span[g].bytes) <= (double)budget * ((double)passed / (double)total)) {
            chosen += s->span[g].bytes;
            s->span[g].image = (char *)s;
        } else {
            all = 0;
        }
    }
    return all;
}

/* Memory for the groups that were chosen, several to a blob. Returns 0 when some got none. */
static int allocate_images(struct hv_stream *s)
{
    const int groups = s->w->list.groups;
    int all = 1, g = 0;

    if (!(s->blob = calloc((size_t)groups + 1, sizeof *s->blob)))
        all = 0;
    while (g < groups) {
        size_t bytes = 0;
        int end = g;
        while (end < groups && (!s->span[end].image || !bytes || bytes + s->span[end].bytes <= BLOB))
            bytes += s->span[end].image ? s->span[end].bytes : 0, end++;
        struct hv_err ignored = {0};
        char *p = bytes && all ? hv_dev_pin(s->dev, bytes, &ignored) : NULL;
        if (p) {
            s->blob[s->blobs++] = p;
            s->stats.pinned += bytes;
        }
        all &= p || !bytes;
        for (; g < end; g++)
            if (s->span[g].image) {
                s->span[g].image = p;
                p = p ? p + s->span[g].bytes : NULL;
            }
    }
    return all;
}

/* Reads the groups that have memory, with all readers at once. */
static int fill_images(struct hv_stream *s, struct hv_err *e)
{
    struct hv_block block = {0};
    int g = -1, groups = s->w->list.groups;

    pthread_mutex_lock(&s->mutex);
    while (!s->error.code && (g < groups || s->in != s->out)) {
        if (s->in != s->out && s->job[s->out % HV_STREAM_JOBS].state == HV_JOB_READ) {
            s->out++;
        } else if (g < groups && s->in - s->out < HV_STREAM_JOBS) {
            if (!s->cur) {
                do
                    g++;
                while (g < groups && (!s->span[g].image || !s->span[g].bytes));
                block.group = g;
                s->cur = g < groups ? &block : NULL;
                s->cur_part = 0;
                s->cur_at = 0;
                continue;
            }
            struct hv_job *j = &s->job[s->in % HV_STREAM_JOBS];
            *j = (struct hv_job){.slot = -1};
            gather(s, j);
            j->src = s->span[g].image + j->at;
            if (s->cur_part == s->span[g].n)
                s->cur = NULL;
            s->in++;
            pthread_cond_signal(&s->read);
        } else {
            pthread_cond_wait(&s->walk, &s->mutex);
        }
    }
    s->cur = NULL;
    if (s->error.code)
        hv_fail(e, s->error.code, "%s", s->error.msg);
    pthread_mutex_unlock(&s->mutex);
    return e->code;
}

static int make_images(struct hv_stream *s, uint64_t budget, struct hv_err *e)
{
    const int share = s->w->is_synth && s->w->synth.share;
    const int all = choose_images(s, share ? UINT64_MAX : budget) & allocate_images(s);

    if (share && !all)
        return hv_fail(e, HV_ENOMEM, "weights: no page-locked memory for the groups that are shared");
    if (s->stats.mode == HV_STREAM_PIN || s->stats.mode == HV_STREAM_PART)
        s->stats.mode = all ? HV_STREAM_PIN : HV_STREAM_PART;
    if (fill_images(s, e))
        return e->code;
    for (int g = s->w->list.cycle; share && g < s->w->list.groups; g++)
        if (!s->span[g].keep)
            s->span[g].image = s->span[owner(s, g)].image;
    return 0;
}

/* ---- open, close ---- */

/* A stream that ends is all that its process does: every processor reads. */
static int read_count(const struct hv_stream *s)
{
    const long all = sysconf(_SC_NPROCESSORS_ONLN), cpus = s->o.once ? all : all / 2, most = s->o.once ? 16 : 8;
    const int n = s->o.threads > 0 ? s->o.threads : cpus < 2 ? 2 : cpus > most ? (int)most : (int)cpus;

    return s->direct >= 0 && n < DIRECT_MIN ? DIRECT_MIN : n;
}

/* A descriptor around the page cache, if a read through it works. */
static void open_direct(struct hv_stream *s)
{
    char path[40];
    void *page = aligned_alloc(PAGE, PAGE);

    snprintf(path, sizeof path, "/proc/self/fd/%d", s->w->fd);
    s->direct = page ? open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : -1;
    if (s->direct >= 0 && pread(s->direct, page, PAGE, 0) <= 0) {
        close(s->direct);
        s->direct = -1;
    }
    free(page);
}

static int open_windows(struct hv_stream *s, struct hv_err *e)
{
    const struct hv_entry *first = hv_in_entry(s->w->in, 0);

    s->map = (const char *)hv_in_data(s->w->in, first) - first->begin - s->w->data_at;
    s->window_bytes = s->o.window ? up(s->o.window, PAGE) : WINDOW;
    s->windows = (int)(s->w->file_bytes / s->window_bytes) + 1;
    if (!(s->window = calloc((size_t)s->windows, sizeof *s->window)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    pthread_mutex_lock(&s->mutex);
    if (!window_of(s, s->w->data_at))
        s->map = NULL;
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

/* What the mode comes to here. */
static int choose_mode(struct hv_stream *s, struct hv_err *e)
{
    struct hv_dev_info info = {0};
    struct hv_err ignored = {0};
    enum hv_stream_mode mode = s->o.mode;

    const int copied = s->o.once && read_count(s) >= COPIERS;
    if (mode == HV_STREAM_AUTO && s->dev->kind != HV_HOST && s->w->fd >= 0 && !s->w->large && !copied &&
        !hv_dev_info(s->dev, &info, &ignored) && info.map_lock)
        mode = HV_STREAM_REGISTER;
    if (s->w->is_synth && s->w->synth.share)
        mode = HV_STREAM_PIN;
    else if (mode == HV_STREAM_AUTO || (s->o.once && (mode == HV_STREAM_PIN || mode == HV_STREAM_PART)) || (s->w->fd < 0 && (mode == HV_STREAM_REGISTER || mode == HV_STREAM_DIRECT)))
        mode = HV_STREAM_MAP;
    if (mode == HV_STREAM_DIRECT)
        open_direct(s);
    if (mode == HV_STREAM_REGISTER && open_windows(s, e))
        return e->code;
    if ((mode == HV_STREAM_DIRECT && s->direct < 0) || (mode == HV_STREAM_REGISTER && !s->map))
        mode = HV_STREAM_MAP;
    s->stats.mode = mode;
    return 0;
}

static int open_slots(struct hv_stream *s, struct hv_err *e)
{
    size_t largest = PAGE;
    const int threads = read_count(s);

    for (int g = 0; g < s->w->list.groups; g++)
        largest = s->span[g].bytes > largest ? s->span[g].bytes : largest;
    s->o.chunk = up(s->o.chunk ? s->o.chunk : CHUNK, PAGE);
    if (s->o.chunk > up(largest, PAGE))
        s->o.chunk = up(largest, PAGE);
    s->slot_bytes = s->o.chunk + 2 * PAGE;                          /* room for the span that O_DIRECT reads */
    s->n_slots = 2 * threads;
    if (!(s->slots = hv_dev_pin(s->dev, (size_t)s->n_slots * s->slot_bytes, e)))
        return e->code;
    s->stats.pinned += (uint64_t)s->n_slots * s->slot_bytes;
    if (!(s->slot_event = calloc((size_t)s->n_slots, sizeof *s->slot_event)) ||
        !(s->reader = calloc((size_t)threads, sizeof *s->reader)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    for (int i = 0; i < s->n_slots; i++)
        if (!(s->slot_event[i] = hv_dev_event(s->dev, e)))
            return e->code;
    for (; s->readers < threads; s->readers++)
        if (pthread_create(&s->reader[s->readers], NULL, reader, s))
            return hv_fail(e, HV_ENOMEM, "weights: no thread");
    return 0;
}

int hv_stage_open(struct hv_stream *s, struct hv_err *e)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const uint64_t half = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 2 : UINT64_MAX;
    const uint64_t budget = s->o.host_budget ? s->o.host_budget : half;

    s->direct = -1;
    if (choose_mode(s, e) || open_slots(s, e))
        return e->code;
    choose_drops(s);
    return make_images(s, budget > s->stats.pinned ? budget - s->stats.pinned : 0, e);
}

void hv_stage_stop(struct hv_stream *s)
{
    pthread_mutex_lock(&s->mutex);
    s->stop = 1;
    pthread_cond_broadcast(&s->read);
    pthread_mutex_unlock(&s->mutex);
    for (; s->readers; s->readers--)
        pthread_join(s->reader[s->readers - 1], NULL);
}

void hv_stage_close(struct hv_stream *s)
{
    for (int i = 0; s->map && i < s->windows; i++)
        if (s->window[i] == HV_WINDOW_LOCKED)
            hv_dev_unlock(s->dev, s->map + (size_t)i * s->window_bytes);
    for (int i = 0; i < s->blobs; i++)
        hv_dev_unpin(s->dev, s->blob[i]);
    for (int i = 0; s->slot_event && i < s->n_slots; i++)
        hv_dev_event_close(s->dev, s->slot_event[i]);
    hv_dev_unpin(s->dev, s->slots);
    if (s->direct >= 0)
        close(s->direct);
    free(s->slot_event);
    free(s->reader);
    free(s->window);
    free(s->blob);
}
