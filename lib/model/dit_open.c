/* dit_open.c - takes what a transformer needs and gives it back: the arena on the device, tables and activations on the host, events,
 * the stream of weights. */
#include "dit_impl.h"

#include <stdlib.h>
#include <string.h>

#include "model/rope.h"

static int rope_tables(struct dit *n, struct hv_err *e)
{
    const int64_t extent[3] = {n->s.frames + 1, n->m.down, n->m.across}, total = dit_rope_count(&n->c, &n->s);
    const hv_tensor all = hv_slice(dit_row(n, "rope"), 0, 0, total);
    float *host = malloc((size_t)total * sizeof *host);
    int64_t at = 0;

    if (!host)
        return hv_fail(e, HV_ENOMEM, "rope: out of memory");
    for (int a = 0; a < 3; a++) {
        const int64_t half = n->c.rope_dim[a] / 2, count = extent[a] * half;
        rope_table(host + at, host + at + count, a ? 0 : ROPE_FIRST_TIME, extent[a], n->c.rope_dim[a], n->c.rope_theta);
        n->rope.cos[a] = hv_reshape(hv_slice(all, 0, at, count), 2, (const int64_t[]){extent[a], half});
        n->rope.sin[a] = hv_reshape(hv_slice(all, 0, at + count, count), 2, (const int64_t[]){extent[a], half});
        n->rope.grid[a] = extent[a];
        at += 2 * count;
    }
    hv_upload(n->dev, all, hv_view(host, HV_F32, 1, &total));
    hv_dev_sync(n->dev, e);
    free(host);
    return e->code;
}

static int open_stage(struct dit *n, struct hv_err *e)
{
    struct dit_stage *g = &n->stage;
    void **const all[] = {&g->mark, &g->o_out, g->full, g->full + 1, g->free, g->free + 1, g->o_full, g->o_full + 1, g->o_free,
                          g->o_free + 1};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!(*all[i] = hv_dev_event(n->dev, e)))
            return e->code;
    return 0;
}

static void close_stage(struct dit *n)
{
    const struct dit_stage *g = &n->stage;
    void *const all[] = {g->mark, g->o_out, g->full[0], g->full[1], g->free[0], g->free[1], g->o_full[0], g->o_full[1],
                         g->o_free[0], g->o_free[1]};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        hv_dev_event_close(n->dev, all[i]);
}

/* Memory of the host that the device copies from and to. The dry device touches none of it. */
static int open_host(struct dit *n, struct hv_err *e)
{
    const size_t bytes = hv_plan_bytes(&n->host_plan) + 1;

    n->memory = n->dev->kind == HV_DRY ? malloc(bytes) : hv_dev_pin(n->dev, bytes, e);
    if (!n->memory)
        return hv_fail(e, HV_ENOMEM, "host: out of memory: %zu MiB requested", bytes >> 20);
    if (n->s.windows && n->dev->kind != HV_DRY) {       /* rows that nobody saves are zeros: a state is the same bytes each time */
        const hv_tensor cache = dit_host(n, "step_cache"), probe = n->s.probe ? dit_host(n, "probe_cache") : HV_NO;
        memset(cache.data, 0, hv_nbytes(cache));
        if (n->s.probe)
            memset(probe.data, 0, hv_nbytes(probe));
    }
    return 0;
}

static int open_stream(struct dit *n, const struct hv_stream_opts *given, struct hv_err *e)
{
    struct hv_stream_opts o = given ? *given : (struct hv_stream_opts){0};
    uint8_t *keep = NULL;

    if (!n->choice.ring_bytes || n->dev->kind == HV_DRY)
        return 0;
    if (n->choice.resident_bytes && !(keep = calloc(DIT_GROUPS_MAX, 1)))
        return hv_fail(e, HV_ENOMEM, "weights: out of memory");
    o.ring = dit_row(n, "ring");
    if (keep) {
        dit_resident_bytes(&n->c, n->choice.resident_blocks, n->s.weights, keep);
        o.resident = dit_row(n, "resident");
        o.keep = keep;
    }
    hv_weights_stream(n->w, &o, e);
    free(keep);
    return e->code;
}

static int allocate(struct dit *n, const struct hv_stream_opts *stream, struct hv_err *e)
{
    struct hv_plan device = {0};
    const size_t frames = (size_t)(n->s.branches * n->s.clip_frames), heard = (size_t)(n->m.voices * (4 * n->s.frames - 3)) * DIT_CALLS;

    if (dit_plan(&device, &n->host_plan, &n->c, &n->s, &n->choice, e) || hv_arena_open(&n->arena, n->dev, &device, e) ||
        open_host(n, e) || open_stage(n, e))
        return e->code;
    n->moment = calloc((size_t)n->m.moments + 1, sizeof *n->moment);
    n->slot = calloc((size_t)n->m.moments + 1, sizeof *n->slot);
    n->text_n = calloc((size_t)n->s.texts + 1, sizeof *n->text_n);
    n->saved.window = malloc((frames + 1) * sizeof *n->saved.window);
    n->saved.text = calloc((size_t)(n->s.branches * n->s.windows) + 1, sizeof *n->saved.text);
    n->heard = malloc((heard + 1) * sizeof *n->heard);
    if (!n->moment || !n->slot || !n->text_n || !n->saved.window || !n->saved.text || !n->heard)
        return hv_fail(e, HV_ENOMEM, "transformer: out of memory");
    memset(n->saved.window, 0xff, (frames + 1) * sizeof *n->saved.window);
    memset(n->heard, 0xff, (heard + 1) * sizeof *n->heard);
    if (n->s.scratch)
        n->dev->scratch = dit_row(n, "gemm");
    if (n->s.residual)
        hv_fill(n->dev, dit_row(n, "minus"), -1);
    return rope_tables(n, e) || open_stream(n, stream, e) ? e->code : 0;
}

int dit_open(struct dit **out, struct hv_dev *d, struct hv_weights *w, const struct dit_config *c, const struct dit_size *s,
             const struct dit_choice *choice, const struct hv_stream_opts *stream, struct hv_err *e)
{
    struct dit *n = calloc(1, sizeof *n);

    *out = NULL;
    if (!n)
        return hv_fail(e, HV_ENOMEM, "transformer: out of memory");
    n->dev = d;
    n->w = w;
    n->c = *c;
    n->s = *s;
    n->choice = *choice;
    n->m = dit_dims(c, s, choice->rows_mlp);
    if (allocate(n, stream, e) || hv_dev_sync(d, e)) {
        dit_close(n);
        return e->code;
    }
    *out = n;
    return 0;
}

void dit_close(struct dit *n)
{
    if (!n)
        return;
    hv_weights_unstream(n->w);                          /* its ring is in the arena */
    close_stage(n);
    hv_arena_close(n->arena);
    n->dev->scratch = HV_NO;
    if (n->dev->kind == HV_DRY)
        free(n->memory);
    else
        hv_dev_unpin(n->dev, n->memory);
    free(n->heard);
    free(n->moment);
    free(n->slot);
    free(n->text_n);
    free(n->saved.window);
    free(n->saved.text);
    free(n);
}

struct hv_dev *dit_device(const struct dit *n)
{
    return n->dev;
}
