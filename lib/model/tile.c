#include "model/tile.h"

#include <stdlib.h>
#include <string.h>

#include "mem/arena.h"

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
    if (tiled_space(s)) {
        add(p, "host.tile", 1, t, h, w, C);
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

/* ---- space ---- */

static int one_tile(struct tiler *r, hv_tensor y, const struct tile_part *at, struct hv_err *e)
{
    struct tile_part part = *at;

    part.index = r->index++;
    part.of = r->of;
    return r->net(r->net_ctx, y, &part, e);
}

/* Tile (i, j) of a raster: compute, blend with what the strips hold, place, keep the strips for its neighbours. */
static int raster_tile(struct tiler *r, hv_tensor frames, const struct tile_part *at, int64_t i, int64_t j, struct hv_err *e)
{
    const struct tile_spec *s = r->s;
    const int64_t t = frames.shape[0], h = tile_out(s, 1, at->ny), w = tile_out(s, 2, at->nx);
    const hv_tensor y = row(r, "host.tile", 0, t, h, w);
    const int64_t up = min64(r->ext, tile_out(s, 1, min64(s->size, s->h - at->y + r->step)));
    const int64_t back = min64(r->ext, tile_out(s, 2, min64(s->size, s->w - at->x + r->step)));

    if (one_tile(r, y, at, e))
        return e->code;
    if (!r->memory)
        return 0;
    if (i)
        blend(row(r, "host.above", j, t, up, w), y, 1, r->ext);
    if (j)
        blend(row(r, "host.left", 0, t, h, back), y, 2, r->ext);
    copy(row(r, "host.above", j, t, min64(r->ext, h), w), tail(y, 1, min64(r->ext, h)));
    copy(row(r, "host.left", 0, t, h, min64(r->ext, w)), tail(y, 2, min64(r->ext, w)));
    const hv_tensor piece = hv_slice(hv_slice(y, 1, 0, min64(r->limit, h)), 2, 0, min64(r->limit, w));
    copy(hv_slice(hv_slice(frames, 1, i * r->limit, piece.shape[1]), 2, j * r->limit, piece.shape[2]), piece);
    return 0;
}

/* All of space for input frames first .. first+n-1: frames [t', H, W, C]. */
static int space(struct tiler *r, hv_tensor frames, int64_t first, int64_t n, struct hv_err *e)
{
    const struct tile_spec *s = r->s;
    struct tile_part at = {.t = first, .nt = n, .ny = s->h, .nx = s->w};

    if (!r->in_space)
        return one_tile(r, frames, &at, e);
    for (int64_t i = 0; i * r->step < s->h; i++)
        for (int64_t j = 0; j * r->step < s->w; j++) {
            at.y = i * r->step;
            at.x = j * r->step;
            at.ny = min64(s->size, s->h - at.y);
            at.nx = min64(s->size, s->w - at.x);
            if (raster_tile(r, frames, &at, i, j, e))
                return e->code;
        }
    return 0;
}

/* ---- time ---- */

static int run(struct tiler *r, tile_emit_fn *emit, void *ctx, struct hv_err *e)
{
    const struct tile_spec *s = r->s;
    int64_t done = 0, kept = 0;

    for (int64_t i = 0; i * r->tstep < s->t; i++) {
        const int64_t first = i * r->tstep, n = r->in_time ? min64(s->tsize + 1, s->t - first) : s->t;
        if (i && (n == 1 || (s->frames && done >= s->frames)))
            break;                              /* nothing is left of one frame when the first is dropped */
        hv_tensor y = row(r, "host.frames", 0, tile_out(s, 0, n), r->H, r->W);
        if (space(r, y, first, n, e))
            return e->code;
        if (i)
            y = hv_rows(y, 1, y.shape[0] - 1);
        if (i && r->memory)
            blend(row(r, "host.before", 0, kept, r->H, r->W), y, 0, r->text);
        if (r->in_time) {
            kept = min64(r->text, y.shape[0]);
            if (r->memory)
                copy(row(r, "host.before", 0, kept, r->H, r->W), tail(y, 0, kept));
            y = hv_rows(y, 0, min64(r->tlimit + (i == 0), y.shape[0]));
        }
        if (emit && emit(ctx, y, done, e))
            return e->code;
        done += y.shape[0];
        if (!r->in_time)
            break;
    }
    return 0;
}

/* Tiles in all, for progress. */
static int total(const struct tiler *r)
{
    const struct tile_spec *s = r->s;
    int64_t time = 1;

    for (int64_t i = 1; r->in_time && i * r->tstep + 1 < s->t; i++)
        time += !s->frames || (i * r->tlimit + 1 < s->frames);
    return (int)(time * count(s->h, r->step, r->in_space) * count(s->w, r->step, r->in_space));
}

int tile_run(const struct tile_spec *s, tile_net_fn *net, void *net_ctx, tile_emit_fn *emit, void *emit_ctx, struct hv_err *e)
{
    struct tiler r = {.s = s, .net = net, .net_ctx = net_ctx, .in_space = tiled_space(s), .in_time = tiled_time(s),
                      .ext = quarter(s, 0), .text = quarter(s, 1), .step = s->size * 3 / 4, .tstep = s->tsize * 3 / 4,
                      .H = tile_out(s, 1, s->h), .W = tile_out(s, 2, s->w), .C = s->channels};
    int rc;

    r.limit = 3 * r.ext;
    r.tlimit = 3 * r.text;
    r.of = total(&r);
    tile_plan(&r.plan, s);
    if (hv_plan_place(&r.plan, e))
        return e->code;
    r.memory = emit ? malloc(hv_plan_bytes(&r.plan)) : NULL;
    if (emit && !r.memory)
        return hv_fail(e, HV_ENOMEM, "tiles: out of memory: %zu MiB for blending", hv_plan_bytes(&r.plan) >> 20);
    rc = run(&r, emit, emit_ctx, e);
    free(r.memory);
    return rc;
}
