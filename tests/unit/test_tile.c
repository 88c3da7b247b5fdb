/* Tiling: the streamed form against the plain one of the reference, which holds every tile whole, with a network whose output
 * depends on the tile it was asked for. */
#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

#include "model/tile.h"

#define C 3

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Value of a tile at (t, y, x, c): different for every tile and place. */
static float value(const struct tile_part *p, int64_t t, int64_t y, int64_t x, int64_t c)
{
    uint32_t h = (uint32_t)(p->t * 73856093 ^ p->y * 19349663 ^ p->x * 83492791 ^ p->nt * 265443576) + 12345u;

    h = (h ^ (uint32_t)(t * 40503 + y * 2971 + x * 1013 + c)) * 2654435761u;
    return (float)(h >> 8) * 0x1p-24f;
}

static int net(void *ctx, hv_tensor y, const struct tile_part *p, struct hv_err *e)
{
    int *calls = ctx;

    if (p->index != *calls || p->index >= p->of)
        return hv_fail(e, HV_EDIFF, "tile %d of %d after %d", p->index, p->of, *calls);
    ++*calls;
    for (int64_t t = 0; y.data && t < y.shape[0]; t++)
        for (int64_t i = 0; i < y.shape[1]; i++)
            for (int64_t j = 0; j < y.shape[2]; j++)
                for (int64_t c = 0; c < C; c++)
                    ((float *)y.data)[((t * y.shape[1] + i) * y.shape[2] + j) * C + c] = value(p, t, i, j, c);
    return 0;
}

/* ---- the plain form ---- */

struct cube {
    int64_t n[3];
    float  *v;
};

static struct cube make(int64_t t, int64_t h, int64_t w)
{
    const struct cube c = {{t, h, w}, calloc((size_t)(t * h * w * C) + 1, sizeof(float))};

    assert_non_null(c.v);
    return c;
}

static float *at(const struct cube *c, int64_t t, int64_t y, int64_t x)
{
    return c->v + ((t * c->n[1] + y) * c->n[2] + x) * C;
}

static void blend(const struct cube *a, struct cube *b, int axis, int64_t ext)
{
    const int64_t n = least(least(a->n[axis], b->n[axis]), ext);

    for (int64_t t = 0; t < (axis == 0 ? n : b->n[0]); t++)
        for (int64_t y = 0; y < (axis == 1 ? n : b->n[1]); y++)
            for (int64_t x = 0; x < (axis == 2 ? n : b->n[2]); x++) {
                const int64_t from[3] = {axis == 0 ? a->n[0] - n + t : t, axis == 1 ? a->n[1] - n + y : y,
                                         axis == 2 ? a->n[2] - n + x : x};
                const double k = (double)(axis == 0 ? t : axis == 1 ? y : x) / (double)n;
                for (int64_t c = 0; c < C; c++)
                    at(b, t, y, x)[c] = at(a, from[0], from[1], from[2])[c] * (float)(1 - k) + at(b, t, y, x)[c] * (float)k;
            }
}

static void paste(struct cube *to, const struct cube *from, int64_t t0, int64_t y0, int64_t x0, const int64_t n[3])
{
    for (int64_t t = 0; t < least(n[0], from->n[0]); t++)
        for (int64_t y = 0; y < least(n[1], from->n[1]); y++)
            for (int64_t x = 0; x < least(n[2], from->n[2]); x++)
                memcpy(at(to, t0 + t, y0 + y, x0 + x), at(from, t, y, x), C * sizeof(float));
}

static struct cube one(const struct tile_spec *s, struct tile_part p)
{
    struct cube c = make(tile_out(s, 0, p.nt), tile_out(s, 1, p.ny), tile_out(s, 2, p.nx));

    for (int64_t t = 0; t < c.n[0]; t++)
        for (int64_t y = 0; y < c.n[1]; y++)
            for (int64_t x = 0; x < c.n[2]; x++)
                for (int64_t k = 0; k < C; k++)
                    at(&c, t, y, x)[k] = value(&p, t, y, x, k);
    return c;
}

static struct cube plain_space(const struct tile_spec *s, int64_t first, int64_t n)
{
    const int64_t step = s->size * 3 / 4, out = s->up ? s->size * 8 : s->size / 8, ext = out / 4, limit = out - ext;
    const int64_t cols = (s->w + step - 1) / step;
    struct tile_part p = {.t = first, .nt = n, .ny = s->h, .nx = s->w};

    if (s->h <= s->size && s->w <= s->size)
        return one(s, p);
    struct cube y = make(tile_out(s, 0, n), tile_out(s, 1, s->h), tile_out(s, 2, s->w));
    struct cube *above = calloc((size_t)cols, sizeof *above), *row = calloc((size_t)cols, sizeof *row);
    for (int64_t i = 0; i * step < s->h; i++) {
        for (int64_t j = 0; j < cols; j++) {
            p.y = i * step, p.x = j * step, p.ny = least(s->size, s->h - p.y), p.nx = least(s->size, s->w - p.x);
            row[j] = one(s, p);
            if (i)
                blend(&above[j], &row[j], 1, ext);
            if (j)
                blend(&row[j - 1], &row[j], 2, ext);
            paste(&y, &row[j], 0, i * limit, j * limit, (int64_t[]){y.n[0], limit, limit});
        }
        for (int64_t j = 0; j < cols; j++) {
            free(above[j].v);
            above[j] = row[j];
        }
    }
    for (int64_t j = 0; j < cols; j++)
        free(above[j].v);
    free(above);
    free(row);
    return y;
}

static struct cube plain(const struct tile_spec *s)
{
    const int64_t step = s->tsize * 3 / 4, out = s->up ? s->tsize * 4 : s->tsize / 4, ext = out / 4, limit = out - ext;
    struct cube y = make(tile_out(s, 0, s->t), tile_out(s, 1, s->h), tile_out(s, 2, s->w)), before = {{0}, NULL};
    int64_t done = 0;

    if (s->t <= s->tsize) {
        free(y.v);
        return plain_space(s, 0, s->t);
    }
    for (int64_t i = 0; i < s->t; i += step) {
        struct cube t = plain_space(s, i, least(s->tsize + 1, s->t - i));
        if (i) {
            struct cube less = make(t.n[0] - 1, t.n[1], t.n[2]);
            memcpy(less.v, at(&t, 1, 0, 0), (size_t)(less.n[0] * t.n[1] * t.n[2] * C) * sizeof(float));
            free(t.v);
            t = less;
            blend(&before, &t, 0, ext);
        }
        const int64_t n = least(limit + (i == 0), t.n[0]);
        paste(&y, &t, done, 0, 0, (int64_t[]){n, t.n[1], t.n[2]});
        done += n;
        free(before.v);
        before = t;
    }
    free(before.v);
    assert_int_equal(done, y.n[0]);
    return y;
}

/* ---- comparing ---- */

struct taken {
    const struct cube *want;
    int64_t done, calls;
};

static int take(void *ctx, hv_tensor y, int64_t first, struct hv_err *e)
{
    struct taken *t = ctx;

    if (first != t->done || first + y.shape[0] > t->want->n[0])
        return hv_fail(e, HV_EDIFF, "frames from %lld after %lld", (long long)first, (long long)t->done);
    assert_true(hv_is_contiguous(y));
    assert_memory_equal(y.data, at(t->want, first, 0, 0), hv_nbytes(y));
    t->done += y.shape[0];
    t->calls++;
    return 0;
}

static const struct tile_spec specs[] = {
    {.t = 3, .h = 5, .w = 4, .size = 8, .tsize = 4, .up = 1},        /* one tile */
    {.t = 3, .h = 9, .w = 4, .size = 8, .tsize = 4, .up = 1},        /* two rows of one column */
    {.t = 2, .h = 8, .w = 13, .size = 8, .tsize = 4, .up = 1},       /* a row that adds nothing is computed all the same */
    {.t = 5, .h = 3, .w = 3, .size = 4, .tsize = 4, .up = 1},        /* a second tile of two frames */
    {.t = 4, .h = 3, .w = 3, .size = 4, .tsize = 4, .up = 1},
    {.t = 7, .h = 3, .w = 3, .size = 4, .tsize = 4, .up = 1},        /* the last tile has one frame */
    {.t = 17, .h = 6, .w = 9, .size = 4, .tsize = 8, .up = 1},
    {.t = 33, .h = 11, .w = 7, .size = 4, .tsize = 16, .up = 1},
    {.t = 1, .h = 88, .w = 104, .size = 32, .tsize = 16, .up = 0},
    {.t = 29, .h = 40, .w = 48, .size = 32, .tsize = 16, .up = 0},
    {.t = 14, .h = 32, .w = 33, .size = 32, .tsize = 16, .up = 0},
    {.t = 38, .h = 61, .w = 47, .size = 32, .tsize = 16, .up = 0},   /* a last tile of two frames gives none; odd sizes */
};

static void streamed_is_assembled(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        struct tile_spec s = specs[i];
        struct hv_err e = {0};
        int calls = 0, counted = 0;
        s.channels = C;
        struct cube want = plain(&s);
        struct taken t = {.want = &want};
        if (tile_run(&s, net, &calls, take, &t, &e))
            fail_msg("case %zu: %s", i, e.msg);
        assert_int_equal(t.done, want.n[0]);
        assert_int_equal(tile_run(&s, net, &counted, NULL, NULL, &e), 0);
        assert_int_equal(counted, calls);
        free(want.v);
    }
}

/* Asking for some frames leaves out the time tiles behind them and changes none of those that come. */
static void fewer_frames(void **state)
{
    struct tile_spec s = {.t = 33, .h = 3, .w = 3, .size = 4, .tsize = 16, .up = 1, .channels = C};
    struct cube want = plain(&s);
    static const struct { int64_t frames, done, tiles; } cases[] = {{1, 49, 1}, {49, 49, 1}, {50, 97, 2}, {97, 97, 2}, {98, 129, 3}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct taken t = {.want = &want};
        struct hv_err e = {0};
        int calls = 0;
        s.frames = cases[i].frames;
        assert_int_equal(tile_run(&s, net, &calls, take, &t, &e), 0);
        assert_int_equal(t.done, cases[i].done);
        assert_int_equal(calls, cases[i].tiles);
    }
    free(want.v);
}

static int refuse(void *ctx, hv_tensor y, int64_t first, struct hv_err *e)
{
    (void)ctx;
    (void)y;
    return first ? hv_fail(e, HV_EIO, "full") : 0;
}

static void failures_come_back(void **state)
{
    const struct tile_spec s = {.t = 33, .h = 3, .w = 3, .size = 4, .tsize = 16, .up = 1, .channels = C};
    struct hv_err e = {0};
    int calls = 0;

    (void)state;
    assert_int_equal(tile_run(&s, net, &calls, refuse, NULL, &e), HV_EIO);
    assert_in_range(calls, 2, 4);               /* tiles are computed ahead of what is handed over */
    memset(&e, 0, sizeof e);
    calls = 7;                                  /* net finds another index than it expects */
    assert_int_equal(tile_run(&s, net, &calls, take, NULL, &e), HV_EDIFF);
}

/* 704 x 768 x 129: 48 tiles, and no more than one frame set, one tile and the strips. */
static void product_size(void **state)
{
    struct tile_spec s = {.t = 33, .h = 88, .w = 96, .size = 32, .tsize = 16, .up = 1, .channels = C};
    struct hv_plan p = {0};
    struct hv_err e = {0};
    int calls = 0;
    const double mib = 1048576;

    (void)state;
    assert_int_equal(tile_run(&s, net, &calls, NULL, NULL, &e), 0);
    assert_int_equal(calls, 48);
    tile_plan(&p, &s);
    assert_int_equal(hv_plan_place(&p, &e), 0);
    /* f32: 402 of frames, 49 a tile, 49 and 12 of strips, 99 of the time before */
    assert_true((double)hv_plan_bytes(&p) / mib < 402.2 + 2 * 48.8 + 48.8 + 12.2 + 99.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streamed_is_assembled), cmocka_unit_test(fewer_frames), cmocka_unit_test(failures_come_back),
        cmocka_unit_test(product_size),
    };

    return RUN(tests);
}
