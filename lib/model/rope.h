/* rope.h - rotary tables of the diffusion transformer, one pair an axis (helpers.py:get_nd_rotary_pos_embed_new, mode
 * 'timecat', bias -1).
 *
 *     freq[k]  = 1 / theta^(2k / dim), k = 0 .. dim/2 - 1
 *     angle[p][k] = (first + p) * freq[k]
 *
 * in f32. Time starts at -1, the reference frame, rows and columns at 0. Positions are those within a window of frames, not
 * those in the clip. The tables go into struct hv_rope of ops.h. */
#ifndef HV_ROPE_H
#define HV_ROPE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ROPE_FIRST_TIME (-1)

/* Fills cos and sin [n, dim/2] for positions first .. first+n-1. dim is even. */
void rope_table(float *cosines, float *sines, int64_t first, int64_t n, int64_t dim, double theta);

#ifdef __cplusplus
}
#endif
#endif
