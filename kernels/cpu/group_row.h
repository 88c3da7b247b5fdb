/* group_row.h - text of the loops of group.h, compiled once an instruction set. The includer defines the vector operations of
 * LANES floats (V) and the name ISA; the tail of a row is done in scalars of the same formulas.
 *
 * silu(v) = v / (1 + exp(-v)). exp(t) = 2^n p(t - n ln 2), n = round(t / ln 2), p the minimax polynomial of degree 6 on
 * [-ln2/2, ln2/2], relative error below 2e-7. v below -87.3 gives what -87.3 gives, which is -1e-36; NaN gives NaN. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/group.h"

static const float LOG2E = 1.44269504f, LN2_HI = 0.693359375f, LN2_LO = -2.12194440e-4f;
static const float P[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                           5.0000001201e-1f};

static inline float silu1(float v)
{
    const float u = v < -87.3f ? -87.3f : v, t = u > 87.3f ? -87.3f : -u;
    const float n = nearbyintf(t * LOG2E), r = (t - n * LN2_HI) - n * LN2_LO;
    const float p = ((((P[0] * r + P[1]) * r + P[2]) * r + P[3]) * r + P[4]) * r + P[5];
    const float e = p * (r * r) + r + 1;
    uint32_t bits;
    float two_n;

    if (v != v)
        return v;
    bits = (uint32_t)((int32_t)n + 127) << 23;
    memcpy(&two_n, &bits, 4);
    return u / (1 + e * two_n);
}

#ifdef V
static inline V silu(V v)
{
    const V u = MAX(SET(-87.3f), v), t = MAX(SET(-87.3f), SUB(SET(0), u));         /* MAX hands on a NaN on the right */
    const V n = ROUND(MUL(t, SET(LOG2E)));
    const V r = SUB(SUB(t, MUL(n, SET(LN2_HI))), MUL(n, SET(LN2_LO)));
    V p = SET(P[0]);

    for (int i = 1; i < 6; i++)
        p = ADD(MUL(p, r), SET(P[i]));
    const V e = ADD(ADD(MUL(p, MUL(r, r)), r), SET(1));
    return DIV(u, ADD(SET(1), MUL(e, POW2(n))));
}
#endif

static void norm(float *y, int64_t y_step, const float *x, int64_t x_step, int64_t n, int64_t C, const float *mean,
                 const float *scale, const float *shift, int act)
{
    for (int64_t i = 0; i < n; i++, x += x_step, y += y_step) {
        int64_t c = 0;
#ifdef V
        for (; c + LANES <= C; c += LANES) {
            const V v = ADD(MUL(SUB(LOAD(x + c), LOAD(mean + c)), LOAD(scale + c)), LOAD(shift + c));
            STORE(y + c, act ? silu(v) : v);
        }
#endif
        for (; c < C; c++) {
            const float v = (x[c] - mean[c]) * scale[c] + shift[c];
            y[c] = act ? silu1(v) : v;
        }
    }
}

static void sums(double *sum, double *square, const float *x, int64_t n, int64_t step, int64_t C)
{
    for (int64_t i = 0; i < n; i++, x += step) {
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            const double v = (double)x[c];
            sum[c] += v;
            square[c] += v * v;
        }
    }
}

const struct group_isa ISA = {.sums = sums, .norm = norm};
