/* dit_stage.c - where rows of x and o are: on the device, or on the host and passing through it in chunks; and the step cache, which
 * is on the host always. */
#include "dit_impl.h"

/* ---- step cache: where a row of x is kept ---- in host memory: video rows by frame of the clip, reference and text rows by window */

hv_tensor dit_cache_frame(const struct dit *n, int branch, int64_t frame)
{
    return hv_rows(hv_index(dit_host(n, "step_cache"), branch), frame * n->m.tokens, n->m.tokens);
}

/* Reference rows, then room for text_rows of text. */
static hv_tensor cache_window(const struct dit *n, int branch, int64_t window)
{
    const int64_t each = n->m.tokens + n->s.text_rows;

    return hv_rows(hv_index(dit_host(n, "step_cache"), branch), n->s.clip_frames * n->m.tokens + window * each, each);
}

/* The window that saved the first frame last. */
int dit_cache_source(const struct dit *n, const struct dit_call *call)
{
    return n->saved.window[call->branch * n->s.clip_frames + call->frame[0]];
}

/* Rows row .. of the run that begins there, at most `rows` of them: reference, one frame, or text. */
static hv_tensor cache_run(const struct dit *n, const struct dit_call *call, int64_t row, int64_t rows)
{
    const int64_t P = n->m.tokens, frame = row / P - 1;
    const int window = call->cache == DIT_LOAD ? dit_cache_source(n, call) : call->window;
    hv_tensor run;
    int64_t at = row % P;

    if (row < P) {
        run = hv_rows(cache_window(n, call->branch, window), 0, P);
    } else if (row < n->m.image) {
        run = dit_cache_frame(n, call->branch, call->frame[frame]);
    } else {
        run = hv_rows(cache_window(n, call->branch, window), P, n->s.text_rows);
        at = row - n->m.image;
    }
    return hv_rows(run, at, run.shape[0] - at < rows ? run.shape[0] - at : rows);
}

void dit_move_rows(const struct dit *n, enum hv_lane lane, hv_tensor to, hv_tensor from)
{
    const size_t size = hv_dtype_size(to.dtype);

    hv_dev_move(n->dev, lane, to.data, (size_t)to.stride[0] * size, from.data, (size_t)from.stride[0] * size,
                (size_t)to.shape[1] * size, (size_t)to.shape[0]);
}

/* Rows row .. of x to or from the cache; t is on the device. */
void dit_cache_move(const struct dit *n, const struct dit_call *call, hv_tensor t, int64_t row, int save)
{
    for (int64_t at = 0; at < t.shape[0];) {
        const hv_tensor run = cache_run(n, call, row + at, t.shape[0] - at), part = hv_rows(t, at, run.shape[0]);
        if (save)
            dit_move_rows(n, HV_LANE_OUT, run, part);
        else
            dit_move_rows(n, HV_LANE_STAGE, part, run);
        at += run.shape[0];
    }
}

void dit_cache_note(struct dit *n, const struct dit_state *s)
{
    const struct dit_call *call = s->call;

    for (int64_t k = 0; k < n->s.frames; k++)
        n->saved.window[call->branch * n->s.clip_frames + call->frame[k]] = call->window;
    n->saved.text[call->branch * n->s.windows + call->window] = (int32_t)s->text;
    n->saved.version++;
}

/* ---- rows that live on the host ----
 *
 * Two slots on the device take chunks in turn. STAGE fills a slot when the lane that used it last is past it, OUT empties it.
 * The slots' bytes belong to other rows of the plan in other phases: where a phase begins, STAGE waits for the computation
 * before it, and the computation for what OUT still has to read. */

void dit_lane_after(const struct dit *n, enum hv_lane later, enum hv_lane earlier)
{
    hv_dev_record(n->dev, n->stage.mark, earlier);
    hv_dev_wait(n->dev, n->stage.mark, later);
}

void dit_begin_phase(struct dit *n)
{
    if (!dit_o_host(&n->choice))
        return;
    dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);
    dit_lane_after(n, HV_LANE_STAGE, HV_LANE_COMPUTE);
    for (int i = 0; i < 2; i++)
        n->stage.written[i].shape[0] = 0;
}

hv_tensor dit_x_on_host(const struct dit *n, const struct dit_state *s, int64_t row, int64_t rows)
{
    return hv_rows(dit_host(n, "x_host"), (dit_paired(&n->choice) > 1 ? s->slot * n->m.rows : 0) + row, rows);
}

static int meet(hv_tensor a, hv_tensor b)
{
    const char *p = a.data, *q = b.data;

    return a.shape[0] && b.shape[0] && p < q + hv_nbytes(b) && q < p + hv_nbytes(a);
}

/* Rows of x on the device. */
hv_tensor dit_x_rows(struct dit *n, const struct dit_state *s, const char *slots, int64_t row, int64_t rows, enum dit_fetch fetch)
{
    struct dit_stage *const g = &n->stage;

    if (n->choice.tier != DIT_TIER_X_HOST)
        return hv_rows(s->x, row, rows);
    const int i = g->turn ^= 1;
    const hv_tensor t = hv_rows(hv_index(dit_row(n, slots), i), 0, rows), host = dit_x_on_host(n, s, row, rows);
    if (fetch == DIT_ROOM) {
        hv_dev_wait(n->dev, n->stage.free[i], HV_LANE_COMPUTE);
        return t;
    }
    hv_dev_wait(n->dev, n->stage.free[i], HV_LANE_STAGE);
    if (meet(n->stage.written[!i], host))
        hv_dev_wait(n->dev, n->stage.free[!i], HV_LANE_STAGE);
    if (s->cached)
        dit_cache_move(n, s->call, t, row, 0);
    else
        dit_move_rows(n, HV_LANE_STAGE, t, host);
    hv_dev_record(n->dev, n->stage.full[i], HV_LANE_STAGE);
    hv_dev_wait(n->dev, n->stage.full[i], HV_LANE_COMPUTE);
    return t;
}

/* What x_rows gave is no longer needed, and goes back if it was written. */
void dit_x_done(struct dit *n, const struct dit_state *s, hv_tensor t, int64_t row, enum dit_use use)
{
    const int i = n->stage.turn;

    if (s->saving) {
        dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
        dit_cache_move(n, s->call, t, row, 1);
    }
    if (n->choice.tier != DIT_TIER_X_HOST)
        return;
    n->stage.written[i].shape[0] = 0;
    if (use == DIT_WRITTEN) {
        n->stage.written[i] = dit_x_on_host(n, s, row, t.shape[0]);
        dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
        dit_move_rows(n, HV_LANE_OUT, n->stage.written[i], t);
    }
    hv_dev_record(n->dev, n->stage.free[i], use == DIT_WRITTEN || s->saving ? HV_LANE_OUT : HV_LANE_COMPUTE);
}

/* The result of a group of heads leaves the device, rows row .. of it. */
void dit_o_out(const struct dit *n, hv_tensor o, int64_t head, int64_t row)
{
    if (!dit_o_host(&n->choice))
        return;
    dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
    dit_move_rows(n, HV_LANE_OUT, hv_rows(hv_index(dit_host(n, "o_host"), head / n->choice.group), row, o.shape[0]), o);
    hv_dev_record(n->dev, n->stage.o_out, HV_LANE_OUT);
}

/* Nothing is written over a result that has not left. */
void dit_after_o_out(const struct dit *n, int wanted)
{
    if (dit_o_host(&n->choice) && wanted)
        hv_dev_wait(n->dev, n->stage.o_out, HV_LANE_COMPUTE);
}

/* Rows of o on the device, all heads side by side. */
hv_tensor dit_o_rows(struct dit *n, const struct dit_state *s, int64_t row, int64_t rows)
{
    if (!dit_o_host(&n->choice))
        return hv_rows(s->o, row, rows);
    const int i = n->stage.o_turn ^= 1;
    const int64_t G = n->choice.group * n->c.head_dim;
    const hv_tensor t = hv_rows(hv_index(dit_row(n, "o_mlp"), i), 0, rows), host = dit_host(n, "o_host");
    hv_dev_wait(n->dev, n->stage.o_free[i], HV_LANE_STAGE);
    for (int64_t g = 0; g < host.shape[0]; g++)
        dit_move_rows(n, HV_LANE_STAGE, hv_cols(t, g * G, G), hv_rows(hv_index(host, g), row, rows));
    hv_dev_record(n->dev, n->stage.o_full[i], HV_LANE_STAGE);
    hv_dev_wait(n->dev, n->stage.o_full[i], HV_LANE_COMPUTE);
    return t;
}

void dit_o_done(const struct dit *n)
{
    if (dit_o_host(&n->choice))
        hv_dev_record(n->dev, n->stage.o_free[n->stage.o_turn], HV_LANE_COMPUTE);
}

/* ---- what a state keeps ---- */

int dit_kept(const struct dit *n, struct dit_kept kept[DIT_KEPT])
{
    int count = 0;

    if (!n->s.windows)
        return 0;
    kept[count++] = (struct dit_kept){"cache.step", dit_host(n, "step_cache")};
    if (n->s.probe)
        kept[count++] = (struct dit_kept){"cache.probe", dit_host(n, "probe_cache")};
    kept[count++] = (struct dit_kept){"index.window", hv_view(n->saved.window, HV_I32, 2, (const int64_t[]){n->s.branches, n->s.clip_frames})};
    kept[count++] = (struct dit_kept){"index.text", hv_view(n->saved.text, HV_I32, 2, (const int64_t[]){n->s.branches, n->s.windows})};
    return count;
}

uint64_t dit_kept_version(const struct dit *n)
{
    return n->saved.version;
}

int dit_kept_restored(struct dit *n, struct hv_err *e)
{
    for (int64_t i = 0; i < n->s.branches * n->s.clip_frames; i++)
        if (n->saved.window[i] < -1 || n->saved.window[i] >= n->s.windows)
            return hv_fail(e, HV_EINPUT, "step cache: window %d of %lld", n->saved.window[i], (long long)n->s.windows);
    for (int64_t i = 0; i < n->s.branches * n->s.windows; i++)
        if (n->saved.text[i] < 0 || n->saved.text[i] > n->s.text_rows)
            return hv_fail(e, HV_EINPUT, "step cache: %d text rows of %lld", n->saved.text[i], (long long)n->s.text_rows);
    n->saved.version++;
    return 0;
}
