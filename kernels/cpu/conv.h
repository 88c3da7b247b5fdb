/* conv.h - the inner tile of a convolution, and the tables of it that a processor can run.
 *
 * A tile is 1 to `rows` neighbouring positions of one output row times a panel of 32 output channels (16 when that is enough).
 * Its input is n segments, one a kernel row and frame: position i reads the len floats from seg[s] + i * step, since the taps
 * of a kernel row lie together when channels are last. All of K = n * len is summed in registers, in this order:
 *
 *     out[i][c] = bias[c] + sum over s < n, k < len of seg[s][i * step + k] * w[s * len + k][c]
 */
#ifndef HV_CPU_CONV_H
#define HV_CPU_CONV_H

#include <stdint.h>

#define CONV_PANEL 32
#define CONV_HALF  16
#define CONV_ROWS  14           /* the most positions of any tile */
#define CONV_SEGMENTS 64        /* the most kernel frames times kernel rows */

typedef void conv_tile_fn(float *out, const float *const *seg, int n, int64_t len, int64_t step, const float *w,
                          const float *bias);

struct conv_isa {
    int rows;
    conv_tile_fn *panel[CONV_ROWS + 1], *half[CONV_ROWS + 1];           /* by the number of positions; [0] is NULL */
};

extern const struct conv_isa conv_isa_c, conv_isa_avx2, conv_isa_avx512;

#endif
