/* conv.cuh - what the files of convolution share: conv.cu chooses, the others compute. Not for other files.
 *
 * On tensor cores a convolution is a product of gathered rows: y[m][o] = sum over taps and channels of x[pixel(m, tap)][c] *
 * w[o][tap][c]. Where an axis of x is doubled (nearest), its even and odd outputs see 2 summed taps of x where it is: a phase
 * each, 2 to 8 of them, of which each is such a product on a coarser grid of outputs.
 *
 * Weights are packed into the device's scratch at every call, which costs a thousandth of the product: tiles of 128 output
 * channels by 64 input channels of one tap, 16 KiB in the 128-byte swizzle, in the order in which a block walks over K. */
#ifndef HV_CUDA_CONV_CUH
#define HV_CUDA_CONV_CUH

#include "kernels/cuda/values.cuh"

#define CONV_BN    128                  /* output channels of a tile of packed weights */
#define CONV_BK    64                   /* input channels of it */
#define CONV_TILE  (CONV_BN * CONV_BK * 2)
#define CONV_PHASES 8

/* One phase. Output (t, i, j) of its grid reads x at output * step + tap + from and is pixel output * (ystep) + at of y. */
struct conv_phase {
    int out[3];                         /* the grid; no outputs: a phase that does not occur */
    int from[3], at[3];
};

struct conv_product {
    const void  *x, *residual;
    void        *y;
    const char  *w;                     /* packed: [phase][tile of outputs][tap][slice of inputs] */
    const float *bias;
    int64_t      xs[3], ys[3], rs[3];   /* strides of frame, row, pixel */
    int          line, pixel;           /* strides of x's rows and pixels, in pieces */
    int          rows, cols;            /* of x */
    int          step[3], ystep[3], tap[3];     /* taps an axis */
    int          ci, co, taps, slices, across;  /* across: tiles of outputs */
    int          pairs, eights;         /* 1: y and residual take two, eight outputs at once */
    int          zeros;                 /* 1: what lies outside is 0; else the nearest pixel */
    int          phases;
    enum hv_act  act;
    struct conv_phase phase[CONV_PHASES];
};

/* The pixel that output m of a phase's grid is: t, i, j. */
__device__ static inline void conv_place(const struct conv_phase &p, int64_t m, int at[3])
{
    const int line = (int)(m / p.out[2]);

    at[0] = line / p.out[1];
    at[1] = line % p.out[1];
    at[2] = (int)(m % p.out[2]);
}

/* Offset, in pieces of 8 elements, of the pixel that tap (b, e) reads in its frame; -1: a zero. y, x: row and column of tap (0, 0).
 * An offset in a frame fits: checked by the host. */
__device__ static inline int conv_source(const struct conv_product &p, int y, int x, int b, int e)
{
    int i = y + b, j = x + e;

    if (p.zeros && ((unsigned)i >= (unsigned)p.rows || (unsigned)j >= (unsigned)p.cols))
        return -1;
    i = min(max(i, 0), p.rows - 1);
    j = min(max(j, 0), p.cols - 1);
    return i * p.line + j * p.pixel;
}

/* Where pixel m of a phase's grid lies in a tensor of these strides. */
__device__ static inline int64_t conv_target(const struct conv_product &p, const struct conv_phase &f, const int at[3], const int64_t s[3])
{
    int64_t to = 0;

#pragma unroll
    for (int q = 0; q < 3; q++)
        to += (int64_t)(at[q] * p.ystep[q] + f.at[q]) * s[q];
    return to;
}

/* Two neighbouring outputs of a pixel, in their places of y and of the residual: activation, residual. */
template <typename T, int ACT> __device__ static inline void conv_write2(const struct conv_product &p, T *to, const T *more, int o, float v0, float v1)
{
    if (ACT) {
        v0 = act_as<T>(v0, p.act);
        v1 = act_as<T>(v1, p.act);
    }
    if (p.pairs) {
        uint32_t q;
        T *h = (T *)&q;
        if (p.residual) {
            q = *(const uint32_t *)(more + o);
            v0 += to_float(h[0]);
            v1 += to_float(h[1]);
        }
        h[0] = from_float<T>(v0);
        h[1] = from_float<T>(v1);
        *(uint32_t *)(to + o) = q;
        return;
    }
    to[o] = from_float<T>(p.residual ? v0 + to_float(more[o]) : v0);
    if (o + 1 < p.co)
        to[o + 1] = from_float<T>(p.residual ? v1 + to_float(more[o + 1]) : v1);
}

__device__ static inline float conv_bias(const struct conv_product &p, int o)
{
    return p.bias && o < p.co ? p.bias[o] : 0;
}

/* conv_mma.cu, conv_wgmma.cu: all phases of a product in bf16 or f16 (type); x on 16 bytes with strides of multiples of 8, channels
 * a multiple of 8. Return 0, or 1 when they do not take the case: nothing was done then. */
int cuda_conv_mma(struct hv_dev *d, const struct conv_product *p, hv_dtype type);
int cuda_conv_wgmma(struct hv_dev *d, const struct conv_product *p, hv_dtype type);

#endif
