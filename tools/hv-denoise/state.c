/* state.c - a run put aside after each step and taken up again, and what signals do to it.
 *
 * The loop copies latents and step caches, and goes on; a thread writes the copy. There are two copies of the latents, so that the
 * loop need not wait for the thread, and one of the caches, which change with steps that take long: twice the latents and once the
 * caches is all the memory there is to it. Another thread takes the signals, which all threads have blocked: it has the last copy
 * written, then dies by the signal.
 *
 * The file names everything that the rest of the run depends on: settings, digests of the inputs and the weights, the plan's
 * groups and chunks (they round). Its data has a digest, its metadata another one ("hv.seal"). */
#define _GNU_SOURCE
#include "hv-denoise.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/temp.h"
#include "io/digest.h"

#define SEAL   "hv.seal"
#define INPUT  "hv.input."
#define SLICE  20000000                 /* ns between looks at the signals while the last state is being written */
#define PIECE  ((size_t)4 << 20)        /* bytes that a core copies at a time */

static const char *const tensors[] = {"text.states", "text.mask", "text.pooled", "text.neg_states", "text.neg_mask",
                                      "text.neg_pooled", "audio.features", "face.mask", "ref.latents", "noise", "voices"};
#define TENSORS ((int)(sizeof tensors / sizeof *tensors))

struct copy {
    const char *name;
    hv_tensor   t;
    char       *data;                   /* owned */
};

struct moment {                         /* the copy of what changes with every step */
    float  *clip;
    double *change;
    int     cached;                     /* the copy of the caches belongs to it */
};

struct state {
    struct denoise_job    *j;
    const struct input    *x;
    const struct settings *s;
    struct preview *preview;
    struct hv_in *in;                   /* being resumed from; NULL: from the start */
    char   model[128], plan[200], device[96], digest[TENSORS][HV_SHA256];
    int    from, held;                  /* step of `in`; lock: descriptor or -1 */
    char   lock_path[HV_PATH];

    pthread_mutex_t lock;
    pthread_cond_t  changed;
    pthread_t       watcher, writer;
    sigset_t        caught, before;
    int    watching, writing;           /* threads that run */
    int    quit, flush, stopping;       /* threads: end; write what there is; the process is about to die by a signal */
    int    looping, first, done, steps; /* where the loop is */
    double began, last;                 /* time of the first step; of the last writing */
    int    filling, busy;               /* a copy is being made; one is being written */
    int    copied, tried, written;      /* steps of the last copy, of the last writing, of the file */
    int    failed;                      /* the last writing failed, and it was said */
    struct moment moment[2];
    int    next;                        /* of the two: the last copy until it is being written, then where the next one goes */
    size_t clip_bytes, change_bytes;
    uint64_t version;
    struct copy kept[DIT_KEPT];
    int    n_kept;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t state_bytes(const struct hv_plan *host, const struct denoise_job *j)
{
    static const char *const rows[] = {"step_cache", "probe_cache"};
    int64_t bytes = 2 * j->config->channels * j->clip.frames * j->ref.shape[2] * j->ref.shape[3] * (int64_t)sizeof(float);

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct hv_plan_row *r = hv_plan_find(host, rows[i]);
        bytes += r ? (int64_t)r->bytes : 0;
    }
    return bytes;
}

/* ---- the file ---- */

/* SHA-256 of keys and values, but for the two digests. get(ctx, i, ..) gives them in the order of the file, 0 at the end. */
typedef int meta_fn(const void *ctx, int i, const char **key, const char **value);

static int out_meta(const void *ctx, int i, const char **key, const char **value)
{
    const struct hv_out *out = ctx;

    if (i >= out->n_meta)
        return 0;
    *key = out->meta[2 * i];
    *value = out->meta[2 * i + 1];
    return 1;
}

static int in_meta(const void *ctx, int i, const char **key, const char **value)
{
    return hv_in_meta_at(ctx, i, key, value);
}

static int seal(char hex[HV_SHA256], meta_fn *get, const void *ctx, struct hv_err *e)
{
    const char *key, *value;
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (!f)
        return hv_fail(e, HV_ENOMEM, "state: out of memory");
    for (int i = 0; get(ctx, i, &key, &value); i++)
        if (strcmp(key, SEAL) && strcmp(key, "hv.sha256"))
            fprintf(f, "%s=%s\n", key, value);
    if (fclose(f))
        hv_fail(e, HV_ENOMEM, "state: out of memory");
    else
        hv_sha256(hex, text, n, e);
    free(text);
    return e->code;
}

/* Everything that the rest of the run depends on. */
static void describe(struct hv_out *out, const struct state *st, int step)
{
    stamp(out, st->j, st->x, st->s, st->model, step);
    hv_out_meta(out, "hv.program", "%s", HV_VERSION);
    hv_out_meta(out, "hv.exact", "shift %.17g, guidance %.17g", o.shift, o.guidance);
    hv_out_meta(out, "hv.heard", "%lld frames", (long long)st->j->clip.real);
    hv_out_meta(out, "hv.device", "%s", st->device);
    hv_out_meta(out, "hv.plan", "%s", st->plan);
    for (int i = 0; i < TENSORS; i++)
        if (st->digest[i][0]) {
            char key[64];
            snprintf(key, sizeof key, INPUT "%s", tensors[i]);
            hv_out_meta(out, key, "%s", st->digest[i]);
        }
}

static int write_state(const struct state *st, const struct moment *m, int32_t step, struct hv_err *e)
{
    struct hv_out out = {.digest = 1, .sync = 1};
    const int64_t shape[4] = {st->j->config->channels, st->j->clip.frames, st->j->ref.shape[2], st->j->ref.shape[3]};
    const int64_t one = 1;
    char hex[HV_SHA256];

    describe(&out, st, step);
    if (!seal(hex, out_meta, &out, e)) {
        hv_out_meta(&out, SEAL, "%s", hex);
        hv_out_add(&out, "latents", hv_view(m->clip, HV_F32, 4, shape));
        hv_out_add(&out, "state.step", hv_view(&step, HV_I32, 1, &one));
        if (st->j->cache == DENOISE_TEA)
            hv_out_add(&out, "tally.change", hv_view(m->change, HV_F64, 2, (const int64_t[]){st->j->steps, st->j->clip.windows}));
        for (int i = 0; i < st->n_kept && m->cached; i++) {
            hv_tensor t = st->kept[i].t;
            t.data = st->kept[i].data;
            hv_out_add(&out, st->kept[i].name, t);
        }
        hv_out_write(&out, o.state, e);
    }
    hv_out_close(&out);
    return e->code;
}

/* The masks of the voices after the first: their digests' digest. All sounds are in job->sound. */
static int digest_voices(char hex[HV_SHA256], const struct denoise_job *j, struct hv_err *e)
{
    char all[DENOISE_VOICES][HV_SHA256] = {{0}};

    for (int v = 1; v < j->voices; v++)
        if (hv_sha256(all[v], j->other[v - 1].data, hv_nbytes(j->other[v - 1]), e))
            return e->code;
    return hv_sha256(hex, all, sizeof all, e);
}

static int digest_inputs(struct state *st, struct hv_err *e)
{
    hv_tensor t;

    for (int i = 0; i < TENSORS; i++) {
        const int noise = !strcmp(tensors[i], "noise");
        if (noise ? !o.noise : o.guidance <= 1 && !strncmp(tensors[i], "text.neg_", 9))
            continue;
        if (!strcmp(tensors[i], "voices")) {
            if (st->j->voices > 1 && digest_voices(st->digest[i], st->j, e))
                return e->code;
            continue;
        }
        if (noise)
            t = st->j->noise;
        else if (!strcmp(tensors[i], "audio.features"))
            t = st->j->sound;
        else if (!strcmp(tensors[i], "face.mask"))
            t = st->j->face;
        else if (hv_operands_get((struct hv_operands *)&st->x->in, tensors[i], &t, e))
            return e->code;
        if (hv_sha256(st->digest[i], t.data, hv_nbytes(t), e))
            return e->code;
    }
    return 0;
}

/* Is the file whole: both digests, and a step of this run. */
static int verify(struct state *st, struct hv_err *e)
{
    const char *sha = hv_in_meta(st->in, "hv.sha256"), *sealed = hv_in_meta(st->in, SEAL), *step = hv_in_meta(st->in, "hv.step");
    char hex[HV_SHA256], *end = NULL;

    if (!sha || !sealed || !step || !hv_in_count(st->in))
        return hv_fail(e, HV_EINPUT, "%s: not a state of hv-denoise", o.state);
    if (seal(hex, in_meta, st->in, e))
        return e->code;
    if (strcmp(hex, sealed))
        return hv_fail(e, HV_EINPUT, "%s: metadata differs from its digest: the file is damaged", o.state);
    if (hv_sha256(hex, hv_in_data(st->in, hv_in_entry(st->in, 0)), (size_t)hv_in_bytes(st->in), e))
        return e->code;
    if (strcmp(hex, sha))
        return hv_fail(e, HV_EINPUT, "%s: data differs from its digest: the file is damaged", o.state);
    const long k = strtol(step, &end, 10);
    if (*end || k < 1 || k > 1000000)
        return hv_fail(e, HV_EINPUT, "%s: hv.step is '%s'", o.state, step);
    st->from = (int)k;
    return 0;
}

static int is_late(const char *key)     /* known once the device is open */
{
    return !strcmp(key, "hv.model") || !strcmp(key, "hv.plan") || !strcmp(key, "hv.device");
}

static void differs(char *list, size_t size, const char *key, const char *was, const char *is)
{
    const size_t n = strlen(list);
    const char *name = !strncmp(key, INPUT, strlen(INPUT)) ? key + strlen(INPUT) : !strncmp(key, "hv.", 3) ? key + 3 : key;

    if (name == key + strlen(INPUT) && was && is)
        snprintf(list + n, size - n, "%s%s is another", n ? "; " : "", name);
    else
        snprintf(list + n, size - n, "%s%s was %.70s, is %.70s", n ? "; " : "", name, was ? was : "not there", is ? is : "not there");
}

/* Another run than this one is refused, with a list of what differs. late: what is known once the device is open. */
static int compare(const struct state *st, int late, struct hv_err *e)
{
    struct hv_out out = {0};
    char list[900] = "";
    const char *key, *value;

    describe(&out, st, st->from);
    for (int i = 0; out_meta(&out, i, &key, &value); i++) {
        const char *was = hv_in_meta(st->in, key);
        if (is_late(key) == late && (!was || strcmp(was, value)))
            differs(list, sizeof list, key, was, value);
    }
    for (int i = 0; hv_in_meta_at(st->in, i, &key, &value); i++) {
        int there = !strcmp(key, SEAL) || !strcmp(key, "hv.sha256");
        for (int k = 0; k < out.n_meta && !there; k++)
            there = !strcmp(out.meta[2 * k], key);
        if (!there && is_late(key) == late)
            differs(list, sizeof list, key, value, NULL);
    }
    const int fault = out.fault;
    hv_out_close(&out);
    if (fault)
        return hv_fail(e, HV_ENOMEM, "state: out of memory");
    return *list ? hv_fail(e, HV_EINPUT, "%s: the state of another run: %s", o.state, list) : 0;
}

/* ---- one process at a time ---- */

static int take_lock(struct state *st, struct hv_err *e)
{
    char pid[32] = "";
    struct stat mine, there;

    if (snprintf(st->lock_path, sizeof st->lock_path, "%s.lock", o.state) >= (int)sizeof st->lock_path)
        return hv_fail(e, HV_EIO, "%s: name too long", o.state);
    for (int tries = 0; tries < 100; tries++) {
        st->held = open(st->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (st->held < 0)
            return hv_fail(e, HV_EIO, "%s: %s", st->lock_path, strerror(errno));
        if (flock(st->held, LOCK_EX | LOCK_NB)) {
            const int error = errno;
            const ssize_t n = error == EWOULDBLOCK ? pread(st->held, pid, sizeof pid - 1, 0) : 0;
            close(st->held);
            st->held = -1;
            if (error != EWOULDBLOCK)
                return hv_fail(e, HV_EIO, "%s: cannot be locked: %s", st->lock_path, strerror(error));
            return n > 0 ? hv_fail(e, HV_EIO, "%s: process %ld is at work on this state", o.state, strtol(pid, NULL, 10)) :
                           hv_fail(e, HV_EIO, "%s: another process is at work on this state", o.state);
        }
        if (!fstat(st->held, &mine) && !stat(st->lock_path, &there) && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
            const int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
            if (ftruncate(st->held, 0) || pwrite(st->held, pid, (size_t)n, 0) != n) {}      /* then another is told less */
            return 0;
        }
        close(st->held);                                /* removed by its holder just now */
        st->held = -1;
    }
    return hv_fail(e, HV_EIO, "%s: cannot be locked", st->lock_path);
}

static void give_lock(struct state *st)
{
    if (st->held < 0)
        return;
    unlink(st->lock_path);
    close(st->held);
    st->held = -1;
}

/* ---- the thread that writes ---- */

static int is_due(const struct state *st)
{
    return !st->busy && !st->filling && st->copied > st->tried && (st->flush || st->quit || now() - st->last >= o.state_every);
}

static void say_failed(const struct state *st, int step, const struct hv_err *e)
{
    if (st->written)
        fprintf(stderr, "%s: state of step %d: %s; the render goes on, %s holds step %d\n", cli.name, step, e->msg, o.state, st->written);
    else
        fprintf(stderr, "%s: state of step %d: %s; the render goes on without\n", cli.name, step, e->msg);
}

static void *write_states(void *arg)
{
    struct state *st = arg;

    pthread_mutex_lock(&st->lock);
    for (;;) {
        if (is_due(st)) {
            struct hv_err e = {0};
            const struct moment *m = &st->moment[st->next];
            const int step = st->copied;
            st->busy = 1;
            st->next = !st->next;
            pthread_mutex_unlock(&st->lock);
            write_state(st, m, step, &e);
            pthread_mutex_lock(&st->lock);
            st->busy = 0;
            st->tried = st->tried > step ? st->tried : step;
            st->last = now();
            if (e.code) {
                say_failed(st, step, &e);
            } else {
                st->written = step;
                if (st->failed)
                    hv_note(&cli, "state: %s is written again: step %d", o.state, st->written);
            }
            st->failed = e.code != 0;
            pthread_cond_broadcast(&st->changed);
        } else if (st->quit && !st->filling) {
            break;
        } else if (st->copied > st->tried && !st->filling) {
            const double left = o.state_every - (now() - st->last), until = now() + (left > 1 ? 1 : left > 0.001 ? left : 0.001);
            const struct timespec t = {.tv_sec = (time_t)until, .tv_nsec = (long)((until - (double)(time_t)until) * 1e9)};
            pthread_cond_timedwait(&st->changed, &st->lock, &t);
        } else {
            pthread_cond_wait(&st->changed, &st->lock);
        }
    }
    pthread_mutex_unlock(&st->lock);
    return NULL;
}

/* ---- the thread that takes signals ---- */

static void say_where(struct state *st)
{
    pthread_mutex_lock(&st->lock);
    const int done = st->done, steps = st->steps, first = st->first, looping = st->looping, written = st->written;
    const double each = done > first ? (now() - st->began) / (done - first) : 0;
    pthread_mutex_unlock(&st->lock);
    if (!looping)
        fprintf(stderr, "%s: before the first step\n", cli.name);
    else if (done > first)
        fprintf(stderr, "%s: step %d of %d is done, %.1f s each, %.0f s left%s%s\n", cli.name, done, steps, each, each * (steps - done),
                o.state && written == done ? "; it is in " : "", o.state && written == done ? o.state : "");
    else
        fprintf(stderr, "%s: step %d of %d is done, the next one is the first of this run\n", cli.name, done, steps);
}

/* The state of the last finished step goes to the disk; a second signal does not wait for it. Then the signal has its way. */
static void die(struct state *st, int sig)
{
    const struct timespec slice = {.tv_nsec = SLICE};
    sigset_t deadly = st->caught;
    int again = 0;

    sigdelset(&deadly, SIGUSR1);
    pthread_mutex_lock(&st->lock);
    st->stopping = st->flush = 1;
    pthread_cond_broadcast(&st->changed);
    while (st->writing && !again && (st->busy || st->filling || st->copied > st->tried)) {
        pthread_mutex_unlock(&st->lock);
        again = sigtimedwait(&deadly, NULL, &slice) > 0;
        pthread_mutex_lock(&st->lock);
    }
    if (st->written)
        hv_note(&cli, "%s: %s holds step %d of %d", strsignal(sig), o.state, st->written, st->steps);
    hv_temp_sweep();
    give_lock(st);
    signal(sig, SIG_DFL);
    sigemptyset(&deadly);
    sigaddset(&deadly, sig);
    kill(getpid(), sig);
    pthread_sigmask(SIG_UNBLOCK, &deadly, NULL);
    for (;;)
        pause();
}

static void *watch_signals(void *arg)
{
    struct state *st = arg;
    int sig = 0;

    for (;;) {
        if (sigwait(&st->caught, &sig))
            continue;
        pthread_mutex_lock(&st->lock);
        const int quit = st->quit;
        pthread_mutex_unlock(&st->lock);
        if (sig != SIGUSR1)
            die(st, sig);
        if (quit)
            return NULL;
        say_where(st);
    }
}

struct state *state_watch(struct hv_err *e)
{
    static const int deadly[] = {SIGINT, SIGTERM, SIGHUP};
    struct state *st = calloc(1, sizeof *st);
    pthread_condattr_t clock;
    struct sigaction old;

    if (!st) {
        hv_fail(e, HV_ENOMEM, "state: out of memory");
        return NULL;
    }
    st->held = -1;
    pthread_mutex_init(&st->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&st->changed, &clock);
    pthread_condattr_destroy(&clock);
    sigemptyset(&st->caught);
    sigaddset(&st->caught, SIGUSR1);
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly && o.state; i++)
        if (!sigaction(deadly[i], NULL, &old) && old.sa_handler != SIG_IGN)     /* nohup is respected */
            sigaddset(&st->caught, deadly[i]);
    pthread_sigmask(SIG_BLOCK, &st->caught, &st->before);
    if (pthread_create(&st->watcher, NULL, watch_signals, st))
        hv_fail(e, HV_ENOMEM, "cannot start a thread");
    else
        st->watching = 1;
    return st;
}

/* ---- the run's side ---- */

/* By all cores: the first time most of it is the kernel's finding of pages. */
static void copy_bytes(char *to, const char *from, size_t n, int threads)
{
#pragma omp parallel for num_threads(threads)
    for (size_t i = 0; i < n; i += PIECE)
        memcpy(to + i, from + i, n - i < PIECE ? n - i : PIECE);
}

/* The copy of what the network keeps. */
static int copy_kept(struct state *st, const struct dit *net)
{
    struct dit_kept kept[DIT_KEPT];
    const int n = dit_kept(net, kept), threads = dit_device(net)->threads;

    for (int i = 0; i < n; i++) {
        struct copy *c = &st->kept[i];
        if (!c->data && !(c->data = malloc(hv_nbytes(kept[i].t) + 1)))
            return 1;
        c->name = kept[i].name;
        c->t = kept[i].t;
        copy_bytes(c->data, kept[i].t.data, hv_nbytes(kept[i].t), threads);
    }
    st->n_kept = n;
    st->version = dit_kept_version(net);
    return 0;
}

/* Does the next step take from the caches? */
static int needs_kept(const struct denoise_now *at)
{
    return at->cached && dit_kept_version(at->net);
}

/* Are they others than those that were copied last? */
static int kept_is_new(const struct state *st, const struct denoise_now *at)
{
    return needs_kept(at) && st->version != dit_kept_version(at->net);
}

static int make_copy(struct state *st, struct moment *m, const struct denoise_now *at)
{
    if (!m->clip && !(m->clip = malloc(st->clip_bytes)))
        return 1;
    if (!m->change && !(m->change = malloc(st->change_bytes)))
        return 1;
    memcpy(m->clip, at->clip, st->clip_bytes);
    memcpy(m->change, st->j->change, st->change_bytes);
    m->cached = needs_kept(at);
    return kept_is_new(st, at) ? copy_kept(st, at->net) : 0;
}

static int state_done(void *ctx, const struct denoise_now *at)
{
    struct state *st = ctx;
    int failed = 0;

    pthread_mutex_lock(&st->lock);
    st->done = at->done;
    if (o.state) {
        /* Other caches than those that are being written wait. Stopping: for good. */
        while (st->stopping || (st->busy && kept_is_new(st, at)))
            pthread_cond_wait(&st->changed, &st->lock);
        st->filling = 1;
        struct moment *m = &st->moment[st->next];
        pthread_mutex_unlock(&st->lock);
        failed = make_copy(st, m, at);
        pthread_mutex_lock(&st->lock);
        st->filling = 0;
        if (failed && !st->failed) {
            const struct hv_err e = {.code = HV_ENOMEM, .msg = "out of memory"};
            say_failed(st, at->done, &e);
        }
        st->failed |= failed;
        st->copied = at->done;
        if (failed)
            st->tried = at->done;                       /* half a copy is not written */
        pthread_cond_broadcast(&st->changed);
    }
    pthread_mutex_unlock(&st->lock);
    preview_show(st->preview, at);
    return o.stop_after && at->done >= o.stop_after;
}

int state_open(struct state *st, struct denoise_job *j, const struct input *x, const struct settings *s, struct preview *p, struct hv_err *e)
{
    struct stat there;

    st->j = j;
    st->x = x;
    st->s = s;
    st->preview = p;
    st->steps = j->steps;
    st->clip_bytes = (size_t)(j->config->channels * j->clip.frames * j->ref.shape[2] * j->ref.shape[3]) * sizeof(float);
    st->change_bytes = (size_t)(j->steps * j->clip.windows) * sizeof(double);
    j->done = state_done;
    j->done_ctx = st;
    if (!o.state)
        return 0;
    const int found = !stat(o.state, &there);
    if (found && !S_ISREG(there.st_mode))
        return hv_fail(e, HV_EIO, "%s: not a file", o.state);
    if (take_lock(st, e) || digest_inputs(st, e))
        return e->code;
    hv_temp_stale(o.state);
    if (o.resume && found &&
        (hv_in_open(&st->in, o.state, e) || verify(st, e) || compare(st, 0, e)))
        return e->code;
    st->last = -1e9;
    if (pthread_create(&st->writer, NULL, write_states, st))
        return hv_fail(e, HV_ENOMEM, "cannot start a thread");
    st->writing = 1;
    return 0;
}

/* "group 2, rows 7 and 5, attention flash, gemm expand, weights BF16, activations F32, .." */
static void plan_text(char *buf, size_t size, const struct state *st, const struct fitted *f)
{
    static const char *const gemm[] = {"auto", "expand", "fused"};
    const struct dit_choice *k = &f->choice;

    snprintf(buf, size, "group %lld, rows %lld and %lld, attention %s, gemm %s, weights %s, activations %s%s", (long long)k->group,
             (long long)k->rows_attn, (long long)k->rows_mlp, hv_attention_name(k->attention), st->s->fp8 ? "fp8" : gemm[k->gemm],
             f->size.weights ? hv_dtype_name(f->size.weights) : "as stored", hv_dtype_name(f->size.act),
             k->tier == DIT_TIER_X_HOST && k->ahead == DIT_AHEAD_ON ? ", ahead" : "");
}

void state_plan(const struct state *st, struct settings *s)
{
    const char *was = st->in ? hv_in_meta(st->in, "hv.plan") : NULL;
    char attention[32] = "", gemm[32] = "";
    long long group = 0, attn = 0, mlp = 0;

    if (!was || sscanf(was, "group %lld, rows %lld and %lld, attention %31[^,], gemm %31[^,]", &group, &attn, &mlp, attention, gemm) != 5)
        return;
    if (!s->choice.group)
        s->choice.group = group;
    if (!s->choice.rows_attn)
        s->choice.rows_attn = attn;
    if (!s->choice.rows_mlp)
        s->choice.rows_mlp = mlp;
    for (int i = 0; i < HV_ATTS; i++)
        if (s->choice.attention == HV_ATT_AUTO && !strcmp(attention, hv_attention_name((enum hv_attention)i)))
            s->choice.attention = (enum hv_attention)i;
    if (s->choice.gemm == DIT_GEMM_AUTO && strcmp(gemm, "auto"))
        s->choice.gemm = !strcmp(gemm, "expand") ? DIT_GEMM_EXPAND : DIT_GEMM_FUSED;
    if (!s->fp8 && !strcmp(gemm, "fp8") && s->choice.gemm == DIT_GEMM_FUSED && !strcmp(o.gemm, "auto"))
        s->fp8 = 1;
}

int state_fits(struct state *st, const char *model, const struct fitted *f, const struct hv_dev_info *info, struct hv_err *e)
{
    const struct hv_entry *t;
    const char *was;

    if (!o.state)
        return 0;
    pthread_mutex_lock(&st->lock);
    snprintf(st->model, sizeof st->model, "%s", model);
    plan_text(st->plan, sizeof st->plan, st, f);
    snprintf(st->device, sizeof st->device, "%s", info->name);
    pthread_mutex_unlock(&st->lock);
    if (!st->in)
        return 0;
    /* Another GPU may round otherwise: it is said. A GPU for a CPU has other activations. */
    was = hv_in_meta(st->in, "hv.device");
    if (was && strcmp(was, st->device) && strcmp(was, "cpu") && strcmp(st->device, "cpu")) {
        hv_note(&cli, "state: made on %s, goes on on %s: close to an unbroken run, not the same bits", was, st->device);
        snprintf(st->device, sizeof st->device, "%s", was);
    }
    if (compare(st, 1, e))
        return e->code;
    snprintf(st->device, sizeof st->device, "%s", info->name);
    if (st->from > st->j->steps || !(t = hv_in_find(st->in, "latents")) || t->dtype != HV_F32 || t->end - t->begin != st->clip_bytes)
        return hv_fail(e, HV_EINPUT, "%s: latents that are not this run's", o.state);
    if (st->j->cache == DENOISE_TEA) {
        const struct hv_entry *c = hv_in_find(st->in, "tally.change");
        if (!c || c->dtype != HV_F64 || c->end - c->begin != st->change_bytes)
            return hv_fail(e, HV_EINPUT, "%s: tally.change is not this run's", o.state);
        memcpy(st->j->change, hv_in_data(st->in, c), st->change_bytes);
    }
    float *clip = st->moment[0].clip = malloc(st->clip_bytes);
    if (!clip)
        return hv_fail(e, HV_ENOMEM, "state: out of memory");
    memcpy(clip, hv_in_data(st->in, t), st->clip_bytes);
    st->j->first = st->done = st->first = st->written = st->copied = st->tried = st->from;
    st->j->start = clip;
    hv_note_verbose(&cli, "%s: goes on after step %d of %d", o.state, st->from, st->j->steps);
    return 0;
}

int state_is_done(const struct state *st)
{
    return st->from && (st->from >= st->j->steps || (o.stop_after && st->from >= o.stop_after));
}

int state_stopped(const struct state *st)
{
    return o.stop_after && st->done >= o.stop_after && st->done < st->j->steps;
}

int state_restore(struct state *st, struct dit *net, struct hv_err *e)
{
    struct dit_kept kept[DIT_KEPT];
    const int n = dit_kept(net, kept);

    if (st->in && hv_in_find(st->in, "index.window")) {
        for (int i = 0; i < n; i++) {
            const struct hv_entry *t = hv_in_find(st->in, kept[i].name);
            if (!t || t->dtype != kept[i].t.dtype || t->end - t->begin != hv_nbytes(kept[i].t))
                return hv_fail(e, HV_EINPUT, "%s: %s is not this run's", o.state, kept[i].name);
            memcpy(kept[i].t.data, hv_in_data(st->in, t), hv_nbytes(kept[i].t));
        }
        if (dit_kept_restored(net, e))
            return hv_context(e, "%s", o.state);
    }
    hv_in_close(st->in);
    st->in = NULL;
    pthread_mutex_lock(&st->lock);
    st->began = now();
    st->looping = 1;
    pthread_mutex_unlock(&st->lock);
    return 0;
}

static void end_thread(struct state *st, pthread_t thread, int *running, int sig)
{
    if (!*running)
        return;
    pthread_mutex_lock(&st->lock);
    while (st->stopping)
        pthread_cond_wait(&st->changed, &st->lock);     /* for good */
    st->quit = 1;
    pthread_cond_broadcast(&st->changed);
    pthread_mutex_unlock(&st->lock);
    if (sig)
        pthread_kill(thread, sig);
    pthread_join(thread, NULL);
    *running = 0;
}

int state_close(struct state *st, struct hv_err *e)
{
    if (!st)
        return e->code;
    end_thread(st, st->writer, &st->writing, 0);
    if (o.stop_after && !e->code && st->written < st->done)
        hv_fail(e, HV_EIO, "%s: the state of step %d could not be written", o.state, st->done);
    end_thread(st, st->watcher, &st->watching, SIGUSR1);
    give_lock(st);
    hv_in_close(st->in);
    for (int i = 0; i < DIT_KEPT; i++)
        free(st->kept[i].data);
    for (int i = 0; i < 2; i++) {
        free(st->moment[i].clip);
        free(st->moment[i].change);
    }
    pthread_sigmask(SIG_SETMASK, &st->before, NULL);
    pthread_cond_destroy(&st->changed);
    pthread_mutex_destroy(&st->lock);
    free(st);
    return e->code;
}
