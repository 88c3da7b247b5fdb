/* tile.h - a network that cannot take its whole input at once: tiles that overlap by a quarter, blended in a fixed order.
 *
 *     struct tile_spec s = {.t = 33, .h = 88, .w = 96, .size = 32, .tsize = 16, .channels = 3, .up = 1};   // a decoder
 *     struct hv_plan p = {0};
 *     tile_plan(&p, &s); hv_plan_place(&p, e);                 // what run keeps on the host
 *     tile_run(&s, net, net_ctx, emit, emit_ctx, e);           // emit(frames 0..48), emit(49..96), emit(97..128)
 *
 * space: tiles of `size` every size*3/4; each is blended over the last quarter of the one above, then of the one to the left
 * (both after their own blends), and gives its first three quarters.
 * time: tiles of tsize + 1 frames every tsize*3/4, each tiled in space; all but the first drop their first output frame and
 * are blended over the last quarter of the one before.
 * blend: n = min(both sizes, quarter); b[k] = a[end - n + k] (1 - k/n) + b[k] k/n.
 * Only an axis that is longer than its tile starts tiling: of space both axes at once. The rule, waste included, is the reference's
 * (vae/autoencoder_kl_causal_3d.py: spatial_tiled_*, temporal_tiled_*, blend_*); another tile gives another result.
 *
 * Kept: two tiles, the assembled frames of one time tile, and of finished tiles the quarters that later blends read. While a tile
 * is computed, a thread blends the one before and hands over what is finished. */
#ifndef HV_TILE_H
#define HV_TILE_H

#include "core/err.h"
#include "core/tensor.h"
#include "mem/plan.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

struct tile_spec {
    int64_t t, h, w;                    /* the network's input */
    int64_t size, tsize;                /* tile of the input: multiples of 4 */
    int64_t channels;                   /* of its output */
    int     up;                         /* 1: a decoder, output 4t-3, 8h, 8w; 0: an encoder, ceil(/4), ceil(/8) by halves */
    int64_t frames;                     /* 0: all; else time tiles that begin at or after this output frame are left out */
    struct hv_dev *dev;                 /* tiles lie in memory that it copies to quickly; NULL: in any. Borrowed */
};

/* Extents of a tile's input; first element in t, y, x. */
struct tile_part {
    int64_t t, y, x, nt, ny, nx;
    int     index, of;                  /* i-th of n tiles, for progress */
};

/* Computes one tile: y [t', h', w', channels] f32 on the host, contiguous. In the caller's thread. */
typedef int tile_net_fn(void *ctx, hv_tensor y, const struct tile_part *part, struct hv_err *e);

/* Takes finished frames first .. of the output: y [n, H, W, channels] f32, which is reused afterwards. In order, one at a time, in
 * a thread of tile_run's. */
typedef int tile_emit_fn(void *ctx, hv_tensor y, int64_t first, struct hv_err *e);

/* Extents of the output for an input of n elements: along time, rows, columns. */
int64_t tile_out(const struct tile_spec *s, int axis, int64_t n);

/* Extents of the largest tile's input, for the network's own plan. */
void tile_largest(const struct tile_spec *s, int64_t size[3]);

/* Adds the rows host.tile, host.frames, host.above, host.left, host.before: those the size needs. */
void tile_plan(struct hv_plan *p, const struct tile_spec *s);

/* Runs. Returns the first failure of net or emit, or HV_ENOMEM. emit NULL: net is called for every tile with a y without data,
 * and nothing is kept: the work is counted, not done. */
int tile_run(const struct tile_spec *s, tile_net_fn *net, void *net_ctx, tile_emit_fn *emit, void *emit_ctx, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
