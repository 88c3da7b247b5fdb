#include "model/tile.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "mem/arena.h"

#define SLOTS 2

struct tiler {
    const struct tile_spec *s;
    tile_net_fn  *net;
    void         *net_ctx;
    int           in_space, in_time;            /* tiled along them */
    int64_t       ext, limit, text, tlimit;     /* of the output: quarter and three quarters of a tile */
    int64_t       step, tstep;                  /* of the input */
    int64_t       H, W, C;                      /* output */
    int           index, of;
    struct hv_plan plan;
    char         *memory;
    tile_emit_fn *emit;
    void         *emit_ctx;

    /* Between the two threads: tiles made and used so far; slot i % SLOTS holds tile i. */
    pthread_mutex_t lock;
    pthread_cond_t  moved;
    int64_t         made, used;
    int             stopped;                    /* one of them failed */
    void           *slot[SLOTS];
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t half(int64_t n)
{
    return (n + 1) / 2;
}

/* ---- geometry ---- */

int64_t tile_out(const struct tile_spec *s, int axis, int64_t n)
{
    if (s->up)
        return axis ? 8 * n : 4 * n - 3;
    return axis ? half(half(half(n))) : half(half(n));
}

static int tiled_space(const struct tile_spec *s)
{
    return s->h > s->size || s->w > s->size;
}

static int tiled_time(const struct tile_spec *s)
{
    return s->t > s->tsize;
}

void tile_largest(const struct tile_spec *s, int64_t size[3])
{
    size[0] = tiled_time(s) ? min64(s->t, s->tsize + 1) : s->t;
    size[1] = tiled_space(s) ? min64(s->h, s->size) : s->h;
    size[2] = tiled_space(s) ? min64(s->w, s->size) : s->w;
}

/* Tiles along an axis of n: one every step. */
static int64_t count(int64_t n, int64_t step, int tiled)
{
    return tiled ? ceil_div(n, step) : 1;
}

static int64_t quarter(const struct tile_spec *s, int time)
{
    const int64_t side = time ? (s->up ? 4 * s->tsize : s->tsize / 4) : (s->up ? 8 * s->size : s->size / 8);

    return side / 4;
}

/* ---- plan ---- */

static void add(struct hv_plan *p, const char *name, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e)
{
    hv_plan_add(p, name, HV_F32, UINT32_MAX, 5, (int64_t[]){a, b, c, d, e});
}

void tile_plan(struct hv_plan *p, const struct tile_spec *s)
{
    const int64_t H = tile_out(s, 1, s->h), W = tile_out(s, 2, s->w), C = s->channels, ext = quarter(s, 0);
    int64_t n[3];

    tile_largest(s, n);
    const int64_t t = tile_out(s, 0, n[0]), h = tile_out(s, 1, n[1]), w = tile_out(s, 2, n[2]);
    add(p, "host.frames", 1, t, H, W, C);
    add(p, "host.tile", SLOTS, t, h, w, C);
    if (tiled_space(s)) {
        add(p, "host.above", count(s->w, s->size * 3 / 4, 1), t, min64(ext, h), w, C);
        add(p, "host.left", 1, t, h, min64(ext, w), C);
    }
    if (tiled_time(s))
        add(p, "host.before", 1, min64(quarter(s, 1), t), H, W, C);
}

/* Memory of a row under a shape of at most its size. */
static hv_tensor row(const struct tiler *r, const char *name, int64_t index, int64_t t, int64_t h, int64_t w)
{
    const struct hv_plan_row *p = hv_plan_find(&r->plan, name);
    const size_t each = p->bytes / (size_t)p->view.shape[0];

    return hv_view(r->memory ? r->memory + p->offset + (size_t)index * each : NULL, HV_F32, 4, (int64_t[]){t, h, w, r->C});
}

/* ---- blending ---- */

/* b = the first elements of b along dim faded in over the last of a; the other extents are those of b. */
static void blend(hv_tensor a, hv_tensor b, int dim, int64_t ext)
{
    const int64_t n = min64(min64(a.shape[dim], b.shape[dim]), ext), C = b.shape[3];
    hv_tensor from = hv_slice(a, dim, a.shape[dim] - n, n), to = hv_slice(b, dim, 0, n);

    for (int64_t t = 0; t < to.shape[0]; t++)
        for (int64_t y = 0; y < to.shape[1]; y++)
            for (int64_t x = 0; x < to.shape[2]; x++) {
                const double k = (double)(dim == 0 ? t : dim == 1 ? y : x) / (double)n;
                const float old = (float)(1 - k), new = (float)k;
                const float *p = (const float *)from.data + t * from.stride[0] + y * from.stride[1] + x * from.stride[2];
                float *q = (float *)to.data + t * to.stride[0] + y * to.stride[1] + x * to.stride[2];
                for (int64_t c = 0; c < C; c++)
                    q[c] = p[c] * old + q[c] * new;
            }
}

static void copy(hv_tensor to, hv_tensor from)
{
    for (int64_t t = 0; t < to.shape[0]; t++)
        for (int64_t y = 0; y < to.shape[1]; y++)
            memcpy((float *)to.data + t * to.stride[0] + y * to.stride[1],
                   (const float *)from.data + t * from.stride[0] + y * from.stride[1],
                   (size_t)(to.shape[2] * to.shape[3]) * sizeof(float));
}

/* The last n of dim. */
static hv_tensor tail(hv_tensor a, int dim, int64_t n)
{
    return hv_slice(a, dim, a.shape[dim] - n, n);
}

/* ---- the order of tiles ---- */

/* Input frames of time tile i; 0: there is none. done: output frames of those before. */
static int64_t span(const struct tiler *r, int64_t i, int64_t done)
{
    const struct tile_spec *s = r->s;
    const int64_t first = i * r->tstep, n = r->in_time ? min64(s->tsize + 1, s->t - first) : s->t;

    if (first >= s->t || (i && !r->in_time))
        return 0;
    if (i && (n == 1 || (s->frames && done >= s->frames)))
        return 0;                               /* nothing is left of one frame when the first is dropped */
    return n;
}

/* Output frames that it gives. */
static int64_t given(const struct tiler *r, int64_t i, int64_t n)
{
    const int64_t t = tile_out(r->s, 0, n) - (i > 0);

    return r->in_time ? min64(r->tlimit + (i == 0), t) : t;
}

static struct tile_part part_at(const struct tiler *r, int64_t i, int64_t j, int64_t first, int64_t n)
{
    const struct tile_spec *s = r->s;
    struct tile_part at = {.t = first, .nt = n, .ny = s->h, .nx = s->w};

    if (r->in_space) {
        at.y = i * r->step;
        at.x = j * r->step;
        at.ny = min64(s->size, s->h - at.y);
        at.nx = min64(s->size, s->w - at.x);
    }
    return at;
}

static hv_tensor tile_view(const struct tiler *r, void *data, const struct tile_part *at)
{
    const struct tile_spec *s = r->s;

    return hv_view(data, HV_F32, 4, (int64_t[]){tile_out(s, 0, at->nt), tile_out(s, 1, at->ny), tile_out(s, 2, at->nx), r->C});
}

/* ---- who computes ---- */

/* Waits until *count has passed `past`; 0, or 1 when the other one failed. */
static int await(struct tiler *r, const int64_t *count, int64_t past)
{
    pthread_mutex_lock(&r->lock);
    while (!r->stopped && *count <= past)
        pthread_cond_wait(&r->moved, &r->lock);
    const int stopped = r->stopped && *count <= past;
    pthread_mutex_unlock(&r->lock);
    return stopped;
}

static void move(struct tiler *r, int64_t *count, int stopped)
{
    pthread_mutex_lock(&r->lock);
    if (count)
        ++*count;
    r->stopped |= stopped;
    pthread_cond_broadcast(&r->moved);
    pthread_mutex_unlock(&r->lock);
}

static int compute(struct tiler *r, struct hv_err *e)
{
    const struct tile_spec *s = r->s;
    int64_t n, done = 0;

    for (int64_t k = 0; (n = span(r, k, done)); done += given(r, k, n), k++)
        for (int64_t i = 0; i == 0 || (r->in_space && i * r->step < s->h); i++)
            for (int64_t j = 0; j == 0 || (r->in_space && j * r->step < s->w); j++) {
                struct tile_part at = part_at(r, i, j, k * r->tstep, n);
                at.index = r->index++;
                at.of = r->of;
                if (r->memory && await(r, &r->used, r->made - SLOTS))
                    return 0;                   /* the other thread says why */
                if (r->net(r->net_ctx, tile_view(r, r->memory ? r->slot[r->made % SLOTS] : NULL, &at), &at, e))
                    return e->code;
                if (r->memory)
                    move(r, &r->made, 0);
            }
    return 0;
}

/* ---- who blends: space ---- */

/* Tile (i, j) of a raster: blend with what the strips hold, place, keep the strips for its neighbours. */
static void raster_tile(struct tiler *r, hv_tensor frames, hv_tensor y, const struct tile_part *at, int64_t i, int64_t j)
{
    const struct tile_spec *s = r->s;
    const int64_t t = frames.shape[0], h = y.shape[1], w = y.shape[2];
    const int64_t up = min64(r->ext, tile_out(s, 1, min64(s->size, s->h - at->y + r->step)));
    const int64_t back = min64(r->ext, tile_out(s, 2, min64(s->size, s->w - at->x + r->step)));

    if (i)
        blend(row(r, "host.above", j, t, up, w), y, 1, r->ext);
    if (j)
        blend(row(r, "host.left", 0, t, h, back), y, 2, r->ext);
    copy(row(r, "host.above", j, t, min64(r->ext, h), w), tail(y, 1, min64(r->ext, h)));
    copy(row(r, "host.left", 0, t, h, min64(r->ext, w)), tail(y, 2, min64(r->ext, w)));
    const hv_tensor piece = hv_slice(hv_slice(y, 1, 0, min64(r->limit, h)), 2, 0, min64(r->limit, w));
    copy(hv_slice(hv_slice(frames, 1, i * r->limit, piece.shape[1]), 2, j * r->limit, piece.shape[2]), piece);
}

/* All of space for input frames first .. first+n-1: frames [t', H, W, C]. 1: the computing thread failed. */
static int space(struct tiler *r, hv_tensor frames, int64_t first, int64_t n)
{
    const struct tile_spec *s = r->s;

    for (int64_t i = 0; i == 0 || (r->in_space && i * r->step < s->h); i++)
        for (int64_t j = 0; j == 0 || (r->in_space && j * r->step < s->w); j++) {
            const struct tile_part at = part_at(r, i, j, first, n);
            if (await(r, &r->made, r->used))
                return 1;
            if (r->in_space)
                raster_tile(r, frames, tile_view(r, r->slot[r->used % SLOTS], &at), &at, i, j);
            else
                copy(frames, tile_view(r, r->slot[r->used % SLOTS], &at));
            move(r, &r->used, 0);
        }
    return 0;
}

/* ---- who blends: time ---- */

static int assemble(struct tiler *r, struct hv_err *e)
{
    int64_t n, done = 0, kept = 0;

    for (int64_t i = 0; (n = span(r, i, done)); i++) {
        hv_tensor y = row(r, "host.frames", 0, tile_out(r->s, 0, n), r->H, r->W);
        if (space(r, y, i * r->tstep, n))
            return 0;
        if (i)
            y = hv_rows(y, 1, y.shape[0] - 1);
        if (i)
            blend(row(r, "host.before", 0, kept, r->H, r->W), y, 0, r->text);
        if (r->in_time) {
            kept = min64(r->text, y.shape[0]);
            copy(row(r, "host.before", 0, kept, r->H, r->W), tail(y, 0, kept));
            y = hv_rows(y, 0, given(r, i, n));
        }
        if (r->emit(r->emit_ctx, y, done, e))
            return e->code;
        done += y.shape[0];
    }
    return 0;
}

struct blender {
    struct tiler *r;
    struct hv_err e;
};

static void *blender(void *ctx)
{
    struct blender *b = ctx;

    if (assemble(b->r, &b->e))
        move(b->r, NULL, 1);
    return NULL;
}

/* ---- both ---- */

/* Tiles in all, for progress. */
static int total(const struct tiler *r)
{
    int64_t time = 0, n, done = 0;

    for (; (n = span(r, time, done)); time++)
        done += given(r, time, n);
    return (int)(time * count(r->s->h, r->step, r->in_space) * count(r->s->w, r->step, r->in_space));
}

static int run(struct tiler *r, struct hv_err *e)
{
    struct blender b = {.r = r};
    pthread_t thread;
    int rc;

    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->moved, NULL);
    if (pthread_create(&thread, NULL, blender, &b)) {
        rc = hv_fail(e, HV_ENOMEM, "tiles: no thread");
    } else {
        rc = compute(r, e);
        if (rc)
            move(r, NULL, 1);
        pthread_join(thread, NULL);
        if (!rc && b.e.code) {
            *e = b.e;
            rc = e->code;
        }
    }
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->moved);
    return rc;
}

/* The slots: rows of the plan, or of a device's page-locked memory. */
static int open_slots(struct tiler *r, struct hv_err *e)
{
    const struct hv_plan_row *p = hv_plan_find(&r->plan, "host.tile");

    for (int i = 0; i < SLOTS && !e->code; i++)
        r->slot[i] = r->s->dev ? hv_dev_pin(r->s->dev, p->bytes / SLOTS, e) : r->memory + p->offset + (size_t)i * (p->bytes / SLOTS);
    return e->code;
}

int tile_run(const struct tile_spec *s, tile_net_fn *net, void *net_ctx, tile_emit_fn *emit, void *emit_ctx, struct hv_err *e)
{
    struct tiler r = {.s = s, .net = net, .net_ctx = net_ctx, .in_space = tiled_space(s), .in_time = tiled_time(s),
                      .ext = quarter(s, 0), .text = quarter(s, 1), .step = s->size * 3 / 4, .tstep = s->tsize * 3 / 4,
                      .H = tile_out(s, 1, s->h), .W = tile_out(s, 2, s->w), .C = s->channels, .emit = emit, .emit_ctx = emit_ctx};

    r.limit = 3 * r.ext;
    r.tlimit = 3 * r.text;
    r.of = total(&r);
    tile_plan(&r.plan, s);
    if (hv_plan_place(&r.plan, e))
        return e->code;
    if (!emit)
        return compute(&r, e);
    r.memory = malloc(hv_plan_bytes(&r.plan));
    if (!r.memory)
        return hv_fail(e, HV_ENOMEM, "tiles: out of memory: %zu MiB for blending", hv_plan_bytes(&r.plan) >> 20);
    if (!open_slots(&r, e))
        run(&r, e);
    for (int i = 0; i < SLOTS && s->dev; i++)
        hv_dev_unpin(s->dev, r.slot[i]);
    free(r.memory);
    return e->code;
}
