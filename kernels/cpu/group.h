/* group.h - the inner loops of group.c, and the tables of them that a processor can run. C channels of n cells that are `step`
 * floats apart. */
#ifndef HV_CPU_GROUP_H
#define HV_CPU_GROUP_H

#include <stdint.h>

struct group_isa {
    /* sum[c] += x, square[c] += x^2, cell after cell */
    void (*sums)(double *sum, double *square, const float *x, int64_t n, int64_t step, int64_t C);
    /* y = (x - mean[c]) * scale[c] + shift[c], then silu if asked; cells of y are y_step apart; y may be x */
    void (*norm)(float *y, int64_t y_step, const float *x, int64_t x_step, int64_t n, int64_t C, const float *mean,
                 const float *scale, const float *shift, int silu);
};

extern const struct group_isa group_isa_c, group_isa_avx2, group_isa_avx512;

#endif
