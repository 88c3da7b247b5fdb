/* conv_tile.h - text of the tile of conv.h, compiled once an instruction set. The includer defines
 *
 *     V, LANES                 a vector of floats
 *     LOAD STORE BROADCAST FMA
 *     ROWS                     positions that fit the registers
 *     VECTORS                  vectors of channels at a time: ROWS * VECTORS sums, VECTORS weights, one broadcast
 *     ISA                      name of the table
 */
#include "kernels/cpu/conv.h"

#define INLINE static inline __attribute__((always_inline))

INLINE void tile(const int mr, const int nv, const int width, float *out, const float *const *seg, int n, int64_t len,
                 int64_t step, const float *w, const float *bias)
{
    V sum[ROWS][VECTORS];

#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++)
            sum[i][j] = LOAD(bias + j * LANES);
    for (int s = 0; s < n; s++) {
        const float *x = seg[s];
        for (int64_t k = 0; k < len; k++, x++, w += width) {
            V wk[VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++)
                wk[j] = LOAD(w + j * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < mr; i++) {
                const V xi = BROADCAST(x + i * step);
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++)
                    sum[i][j] = FMA(xi, wk[j], sum[i][j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++)
            STORE(out + i * width + j * LANES, sum[i][j]);
}

/* A panel of `width` channels is as many passes over the input as its vectors need. */
INLINE void passes(const int mr, const int width, float *out, const float *const *seg, int n, int64_t len, int64_t step,
                   const float *w, const float *bias)
{
    const int nv = width / LANES < VECTORS ? width / LANES : VECTORS;

    for (int c = 0; c < width; c += nv * LANES)
        tile(mr, nv, width, out + c, seg, n, len, step, w + c, bias + c);
}

#define TILE(MR)                                                                                                       \
    static void panel_##MR(float *out, const float *const *seg, int n, int64_t len, int64_t step, const float *w,     \
                           const float *bias)                                                                          \
    {                                                                                                                  \
        passes(MR, CONV_PANEL, out, seg, n, len, step, w, bias);                                                       \
    }                                                                                                                  \
    static void half_##MR(float *out, const float *const *seg, int n, int64_t len, int64_t step, const float *w,      \
                          const float *bias)                                                                           \
    {                                                                                                                  \
        passes(MR, CONV_HALF, out, seg, n, len, step, w, bias);                                                        \
    }

TILE(1) TILE(2) TILE(3) TILE(4)
#if ROWS >= 6
TILE(5) TILE(6)
#endif
#if ROWS >= 14
TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif

const struct conv_isa ISA = {
    .rows = ROWS,
#if ROWS >= 14
    .panel = {0, panel_1, panel_2, panel_3, panel_4, panel_5, panel_6, panel_7, panel_8, panel_9, panel_10, panel_11, panel_12,
              panel_13, panel_14},
    .half = {0, half_1, half_2, half_3, half_4, half_5, half_6, half_7, half_8, half_9, half_10, half_11, half_12, half_13,
             half_14},
#elif ROWS >= 6
    .panel = {0, panel_1, panel_2, panel_3, panel_4, panel_5, panel_6},
    .half = {0, half_1, half_2, half_3, half_4, half_5, half_6},
#else
    .panel = {0, panel_1, panel_2, panel_3, panel_4},
    .half = {0, half_1, half_2, half_3, half_4},
#endif
};
