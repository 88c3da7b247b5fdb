/* dit_residual.c - what step caches that decide for themselves keep: the sum of what all blocks add, and the first block's input. */
#include "dit_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- residuals: what all blocks together add to the video rows ----
 *
 * x as it was before the blocks is not kept: the embedding is made again, chunk by chunk, and x taken from it. So what is stored is
 * the negative: embedding - x. */

/* Video rows row .. of the residual, on the device, to or from the store: frame by frame of the clip. */
static void residual_move(const struct dit *n, const struct dit_call *call, hv_tensor t, int64_t row, int save)
{
    const int64_t P = n->m.tokens;

    for (int64_t at = 0, rows; at < t.shape[0]; at += rows) {
        const int64_t k = (row + at) / P, first = (row + at) % P;
        rows = P - first < t.shape[0] - at ? P - first : t.shape[0] - at;
        const hv_tensor host = hv_rows(dit_cache_frame(n, call->branch, call->frame[k]), first, rows), part = hv_rows(t, at, rows);
        if (save)
            dit_move_rows(n, HV_LANE_OUT, host, part);
        else
            dit_move_rows(n, HV_LANE_STAGE, part, host);
    }
}

void dit_save_residual(struct dit *n, const struct dit_state *s)
{
    const int64_t P = n->m.tokens;

    dit_phase_take(n, s, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), s->call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), s->call->ref);
    for (struct dit_piece p = dit_piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = dit_piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);
        dit_embed_piece(n, y, p);
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_FETCH);
        hv_gated_add(n->dev, y, dit_row(n, "minus"), x);
        dit_x_done(n, s, x, P + p.token, DIT_READ);
        dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
        residual_move(n, s->call, y, p.token, 1);
    }
    dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_OUT);
    dit_phase_give(n, s, "stem", -1, "");
}

/* In place of the blocks. */
void dit_add_residual(struct dit *n, const struct dit_state *s)
{
    const int64_t P = n->m.tokens;

    dit_begin_phase(n);
    for (struct dit_piece p = dit_piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = dit_piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n), x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_FETCH);
        dit_lane_after(n, HV_LANE_STAGE, HV_LANE_COMPUTE);
        residual_move(n, s->call, y, p.token, 0);
        dit_lane_after(n, HV_LANE_COMPUTE, HV_LANE_STAGE);
        hv_gated_add(n->dev, x, dit_row(n, "minus"), y);
        dit_x_done(n, s, x, P + p.token, DIT_WRITTEN);
    }
}

/* ---- probe ---- */

static float number(hv_dtype t, const char *p, int64_t i)
{
    uint32_t bits;
    uint16_t half;
    float v;

    if (t == HV_F32) {
        memcpy(&v, p + 4 * i, sizeof v);
        return v;
    }
    memcpy(&half, p + 2 * i, sizeof half);
    if (t == HV_F16)
        return hv_f16_to_f32(half);
    bits = (uint32_t)half << 16;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A row of m against the one before, which it replaces: sums of |m - before| and |before|. */
static void compare_row(double sum[2], hv_dtype t, const char *m, char *before, int64_t width)
{
    double moved = 0, size = 0;

    for (int64_t i = 0; i < width; i++) {
        const float a = number(t, m, i), b = number(t, before, i);
        moved += fabsf(a - b);
        size += fabsf(b);
    }
    sum[0] = moved;
    sum[1] = size;
    memcpy(before, m, (size_t)width * hv_dtype_size(t));
}

/* Rows y of the device, against those at `store`. row_sum: room for a chunk. */
static void compare_rows(const struct dit *n, hv_tensor y, hv_tensor store, double (*row_sum)[2], double sum[2])
{
    const hv_tensor m = hv_rows(dit_host(n, "probe"), 0, y.shape[0]);
    const size_t pitch = (size_t)y.shape[1] * hv_dtype_size(m.dtype);
    const int threads = n->dev->threads > 0 ? n->dev->threads : 8;

    dit_lane_after(n, HV_LANE_OUT, HV_LANE_COMPUTE);
    dit_move_rows(n, HV_LANE_OUT, m, y);
    hv_dev_record(n->dev, n->stage.mark, HV_LANE_OUT);
    hv_dev_event_sync(n->dev, n->stage.mark);
    if (n->dev->fault.code)
        return;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < m.shape[0]; r++)
        compare_row(row_sum[r], m.dtype, (const char *)m.data + (size_t)r * pitch, (char *)store.data + (size_t)r * pitch, m.shape[1]);
    for (int64_t r = 0; r < m.shape[0]; r++) {          /* in one order, whatever the threads */
        sum[0] += row_sum[r][0];
        sum[1] += row_sum[r][1];
    }
}

/* m of the chunk in y, whose first row is row `row` of the image. */
static void probe_chunk(const struct dit *n, const struct dit_state *s, hv_tensor y, int64_t row, double (*row_sum)[2], double sum[2])
{
    const struct dit_call *call = s->call;
    const hv_tensor stat = hv_rows(dit_row(n, "stat"), 0, y.shape[0]), all = dit_host(n, "probe_cache");
    const int64_t P = n->m.tokens;

    hv_row_stats(n->dev, stat, y, DIT_NORM_EPS);
    hv_norm_modulate(n->dev, y, y, stat, hv_index(s->mod, 0), hv_index(s->mod, 1));
    for (int64_t at = 0, rows; at < y.shape[0] && !n->dev->fault.code; at += rows) {
        const int64_t k = (row + at) / P, first = (row + at) % P, frame = k ? call->frame[k - 1] : n->s.clip_frames + call->window;
        rows = P - first < y.shape[0] - at ? P - first : y.shape[0] - at;
        compare_rows(n, hv_rows(y, at, rows), hv_rows(all, frame * P + first, rows), row_sum, sum);
    }
}

int dit_probe_rows(struct dit *n, const struct dit_state *s, double *change, struct hv_err *e)
{
    const int64_t P = n->m.tokens;
    double sum[2] = {0, 0}, (*row_sum)[2];

    if (!(row_sum = malloc((size_t)n->m.embed * sizeof *row_sum)))
        return hv_fail(e, HV_ENOMEM, "probe: out of memory");
    dit_take(n, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), s->call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), s->call->ref);
    for (struct dit_piece p = dit_piece_at(n, 0, P); p.n && !n->dev->fault.code; p = dit_piece_at(n, p.token + p.n, P)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        dit_patch_embed(n, y, "img_in.proj", dit_row(n, "ref"), p);
        probe_chunk(n, s, y, p.token, row_sum, sum);
    }
    for (struct dit_piece p = dit_piece_at(n, 0, n->m.video); p.n && !n->dev->fault.code; p = dit_piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor y = hv_rows(dit_row(n, "residual"), 0, p.n);
        dit_embed_piece(n, y, p);
        probe_chunk(n, s, y, P + p.token, row_sum, sum);
    }
    n->ref_kept = 1;
    dit_give(n, "stem", -1, "");
    free(row_sum);
    *change = sum[0] / sum[1];
    return 0;
}
