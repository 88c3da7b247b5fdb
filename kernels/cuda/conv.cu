/* conv.cu - convolution of channels-last video: y = act(conv(x, w) + bias) + residual, as ops.h defines it
 *
 * Which kernel: tensor cores (conv.cuh) where x and y are of 16 bits, pixels lie on 16 bytes and the scratch has room for the
 * packed weights; else the one below, for anything.
 *
 * x [T, H, W, Ci], y [T', H', W', Co] bf16, f16 or f32, frames, rows and pixels may be strided; w [Co, Ci, kt, kh, kw] of
 * any dtype of weights, bias [Co] f32. Any kernel, stride, nearest upsampling, padding; residual may be y.
 * A matrix product whose rows are gathered: 128 pixels by 64 output channels a block (16 where there are few), 16 input
 * channels of one tap at a time, widened to f32 in shared memory; the taps of a channel block follow one another, so that
 * their inputs and weights come from the first cache. An upsampled input is read where it is: nothing is stored.
 * Sums are f32, in the order channel block, tap, channel, whatever the launch; 2*Ci*kt*kh*kw operations each.
 * Depthwise: a thread an output, one tap after the other; bound by memory.
 * Error: that of an f32 sum of Ci*kt*kh*kw terms, and one rounding. */
#include "kernels/cuda/conv.cuh"

struct conv {
    void        *y;
    const void  *x, *w, *residual;
    const float *scale, *bias;
    int64_t      xs[3], ys[3], rs[3];   /* strides of frame, row, pixel */
    int64_t      out[3], rows, cols;    /* size of y; of the upsampled x */
    int64_t      pixels;                /* of y */
    int          ci, co, k[3], stride[3], up[3];
    int          first;                 /* 1: the first of two upsampled frames is left out */
    int          zeros, rounded, wtype, wsize;
    enum hv_act  act;
};

struct pixel {
    int64_t t, i, j;
};

__device__ static inline struct pixel pixel_at(const struct conv &p, int64_t m)
{
    const int64_t line = m / p.out[2];
    const struct pixel at = {line / p.out[1], line % p.out[1], m % p.out[2]};

    return at;
}

/* Offset of the pixel of x that tap (a, b, e) of an output reads; -1: a zero. */
__device__ static inline int64_t source(const struct conv &p, struct pixel at, int a, int b, int e)
{
    const int64_t t = p.up[0] == 2 ? (at.t + p.first + a) / 2 : at.t * p.stride[0] + a;
    int64_t i = at.i * p.stride[1] + b - p.k[1] / 2, j = at.j * p.stride[2] + e - p.k[2] / 2;

    if (p.zeros && (i < 0 || j < 0 || i >= p.rows || j >= p.cols))
        return -1;
    i = i < 0 ? 0 : i >= p.rows ? p.rows - 1 : i;
    j = j < 0 ? 0 : j >= p.cols ? p.cols - 1 : j;
    return t * p.xs[0] + (p.up[1] == 2 ? i / 2 : i) * p.xs[1] + (p.up[2] == 2 ? j / 2 : j) * p.xs[2];
}

__device__ static inline float weight(const struct conv &p, int64_t o, int64_t c, int64_t taps, int64_t tap)
{
    const float q = load_any((const char *)p.w + ((o * p.ci + c) * taps + tap) * p.wsize, p.wtype);

    if (!p.scale)
        return q;
    return p.rounded ? __bfloat162float(__float2bfloat16_rn(q * p.scale[o])) : q * p.scale[o];
}

template <typename T> __device__ static inline void write_out(const struct conv &p, struct pixel at, int64_t o, float v)
{
    v = cuda_act(v + (p.bias ? p.bias[o] : 0), p.act);
    if (p.residual)
        v += to_float(((const T *)p.residual)[at.t * p.rs[0] + at.i * p.rs[1] + at.j * p.rs[2] + o]);
    ((T *)p.y)[at.t * p.ys[0] + at.i * p.ys[1] + at.j * p.ys[2] + o] = from_float<T>(v);
}

#define THREADS 256
#define PIXELS  128                     /* of a block */
#define DEPTH   16                      /* input channels at a time */
#define EACH    4                       /* output channels of a thread */

/* WIDE output channels a block; a thread has PIXELS * WIDE / THREADS / EACH pixels of EACH. */
template <typename T, int WIDE> __global__ static void __launch_bounds__(THREADS, 2) conv_kernel(const struct conv p)
{
    enum { GROUPS = WIDE / EACH, TALL = PIXELS * WIDE / THREADS / EACH, LOADS = WIDE * DEPTH / THREADS };
    __shared__ __align__(16) float xs[2][DEPTH][PIXELS + 4], ws[2][DEPTH][WIDE + 4];
    const int tid = threadIdx.x, taps = p.k[0] * p.k[1] * p.k[2], half = tid / PIXELS * CHUNK;
    const int64_t m0 = (int64_t)blockIdx.x * PIXELS, o0 = (int64_t)blockIdx.y * WIDE, m = m0 + tid % PIXELS;
    const struct pixel at = pixel_at(p, m < p.pixels ? m : p.pixels - 1);
    const int col = tid % GROUPS * EACH, row = tid / GROUPS * TALL;
    const int steps = (p.ci + DEPTH - 1) / DEPTH * taps;
    float sum[TALL][EACH] = {}, wide[LOADS];
    chunk<T> in;

    for (int step = 0; step <= steps; step++) {
        /* What the next step needs is on its way while this one is computed. */
        if (step < steps) {
            const int tap = step % taps, c = step / taps * DEPTH;
            const int64_t from = source(p, at, tap / (p.k[1] * p.k[2]), tap / p.k[2] % p.k[1], tap % p.k[2]);
            in = load_chunk((const T *)p.x + from + c + half, from < 0 ? 0 : columns(p.ci, c + half));
#pragma unroll
            for (int l = 0; l < LOADS; l++) {
                const int e = tid + l * THREADS, o = e / DEPTH, k = e % DEPTH;
                wide[l] = o0 + o < p.co && c + k < p.ci ? weight(p, o0 + o, c + k, taps, tap) : 0;
            }
        }
        if (step) {
            const int was = (step - 1) % 2;
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                const float4 b = *(const float4 *)&ws[was][k][col];
                float a[TALL];
#pragma unroll
                for (int i = 0; i < TALL; i += 2)
                    *(float2 *)&a[i] = *(const float2 *)&xs[was][k][row + i];
#pragma unroll
                for (int i = 0; i < TALL; i++) {
                    sum[i][0] = fmaf(a[i], b.x, sum[i][0]);
                    sum[i][1] = fmaf(a[i], b.y, sum[i][1]);
                    sum[i][2] = fmaf(a[i], b.z, sum[i][2]);
                    sum[i][3] = fmaf(a[i], b.w, sum[i][3]);
                }
            }
        }
        if (step < steps) {
            float v[CHUNK];
            widen(v, in);
#pragma unroll
            for (int k = 0; k < CHUNK; k++)
                xs[step % 2][half + k][tid % PIXELS] = v[k];
#pragma unroll
            for (int l = 0; l < LOADS; l++)
                ws[step % 2][(tid + l * THREADS) % DEPTH][(tid + l * THREADS) / DEPTH] = wide[l];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < TALL; i++) {
        if (m0 + row + i >= p.pixels)
            break;
        const struct pixel to = pixel_at(p, m0 + row + i);
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (o0 + col + j < p.co)
                write_out<T>(p, to, o0 + col + j, sum[i][j]);
    }
}

template <typename T> __global__ static void __launch_bounds__(THREADS) depthwise_kernel(const struct conv p)
{
    const int64_t n = (int64_t)blockIdx.x * THREADS + threadIdx.x, c = n % p.co;
    const int64_t taps = (int64_t)p.k[0] * p.k[1] * p.k[2];
    float sum = 0;

    if (n >= p.pixels * p.co)
        return;
    const struct pixel at = pixel_at(p, n / p.co);
    for (int64_t tap = 0; tap < taps; tap++) {
        const int e = (int)(tap % p.k[2]), b = (int)(tap / p.k[2] % p.k[1]), a = (int)(tap / p.k[2] / p.k[1]);
        const int64_t from = source(p, at, a, b, e);
        if (from >= 0)
            sum = fmaf(to_float(((const T *)p.x)[from + c]), weight(p, c, 0, taps, tap), sum);
    }
    write_out<T>(p, at, c, sum);
}

template <typename T> static void launch(struct hv_dev *d, const struct conv *p, int depthwise)
{
    const unsigned tiles = (unsigned)((p->pixels + PIXELS - 1) / PIXELS);
    const unsigned outputs = (unsigned)((p->pixels * p->co + THREADS - 1) / THREADS);

    if (depthwise)
        depthwise_kernel<T><<<outputs, THREADS, 0, cuda_stream(d)>>>(*p);
    else if (p->co <= 16)
        conv_kernel<T, 16><<<tiles, THREADS, 0, cuda_stream(d)>>>(*p);
    else
        conv_kernel<T, 64><<<dim3(tiles, (unsigned)((p->co + 63) / 64)), THREADS, 0, cuda_stream(d)>>>(*p);
    CUDA_LAUNCHED(d, "conv");
}

/* ---- tensor cores ---- */

struct pack {
    char       *to;
    const void *w;
    const float *scale;
    int         ci, co, k[3], tap[3], first[CONV_PHASES][3];   /* first: taps of w that the first of two summed ones has */
    int         phases, taps, slices, across, wtype, wsize, rounded;
};

/* An output and 64 of its input channels a block, all phases: what w has of them lies together. */
template <typename T> __global__ static void __launch_bounds__(256) pack_kernel(const struct pack p)
{
    extern __shared__ float raw[];
    const int o = blockIdx.x, slice = blockIdx.y, each = p.k[0] * p.k[1] * p.k[2];
    const int channels = min(CONV_BK, p.ci - slice * CONV_BK);

    for (int i = threadIdx.x; i < CONV_BK * each; i += 256) {
        float v = 0;
        if (o < p.co && i < channels * each) {
            const float q = load_any((const char *)p.w + (((int64_t)o * p.ci + slice * CONV_BK) * each + i) * p.wsize, p.wtype);
            v = !p.scale ? q : p.rounded ? __bfloat162float(__float2bfloat16_rn(q * p.scale[o])) : q * p.scale[o];
        }
        raw[i] = v;
    }
    __syncthreads();
    for (int n = threadIdx.x; n < p.phases * p.taps * 8; n += 256) {        /* a piece of 8 channels of a tap */
        const int piece = n % 8, tap = n / 8 % p.taps, phase = n / 8 / p.taps, r = o % CONV_BN;
        const int t[3] = {tap / (p.tap[1] * p.tap[2]), tap / p.tap[2] % p.tap[1], tap % p.tap[2]};
        int from[3], to[3];
        float v[CHUNK] = {};
#pragma unroll
        for (int a = 0; a < 3; a++) {
            const int summed = p.tap[a] != p.k[a];
            from[a] = !summed ? t[a] : t[a] ? p.first[phase][a] : 0;
            to[a] = !summed ? t[a] + 1 : t[a] ? p.k[a] : p.first[phase][a];
        }
        for (int a = from[0]; a < to[0]; a++)
            for (int b = from[1]; b < to[1]; b++)
                for (int e = from[2]; e < to[2]; e++)
#pragma unroll
                    for (int i = 0; i < CHUNK; i++)
                        v[i] += raw[(piece * CHUNK + i) * each + (a * p.k[1] + b) * p.k[2] + e];
        const int64_t tile = (((int64_t)phase * p.across + o / CONV_BN) * p.taps + tap) * p.slices + slice;
        store8((T *)(p.to + tile * CONV_TILE + r * 128 + ((piece ^ r & 7) << 4)), CHUNK, v);
    }
}

static int on_16(hv_tensor t)
{
    return ((uintptr_t)t.data & 15) == 0 && t.stride[0] % 8 == 0 && t.stride[1] % 8 == 0 && t.stride[2] % 8 == 0;
}

/* Phases, and how the taps of w fall into them. Doubled in space: outputs 2k and 2k+1 see k-1, k and k, k+1; in time, where there is
 * history instead of a border: k, k+1 both. */
static void phases_of(struct conv_product *c, struct pack *w, const struct conv *p, const int64_t *out)
{
    int n[3];

    for (int a = 0; a < 3; a++) {
        n[a] = p->up[a] == 2 ? 2 : 1;
        c->step[a] = p->up[a] == 2 ? 1 : p->stride[a];
        c->ystep[a] = n[a];
        c->tap[a] = w->tap[a] = n[a] == 2 ? 2 : p->k[a];
    }
    c->phases = n[0] * n[1] * n[2];
    for (int i = 0; i < c->phases; i++) {
        const int at[3] = {i / (n[1] * n[2]), i / n[2] % n[1], i % n[2]};
        struct conv_phase *f = &c->phase[i];
        for (int a = 0; a < 3; a++) {
            f->from[a] = n[a] == 1 ? (a ? -(p->k[a] / 2) : 0) : a ? at[a] - 1 : 0;
            f->at[a] = at[a];
            w->first[i][a] = a ? 1 + at[a] : 2 - at[a];
            if (!a && n[0] == 2) {
                f->at[0] = at[0] - p->first;
                if (f->at[0] < 0)       /* the one that is left out */
                    f->at[0] += 2, f->from[0] = 1;
            }
            f->out[a] = out[a] > f->at[a] ? (int)((out[a] - f->at[a] + n[a] - 1) / n[a]) : 0;
        }
    }
}

/* The product of a convolution, its weights packed; or 1 when tensor cores do not take the case: nothing was done then. */
static int product_of(struct hv_dev *d, struct conv_product *product, const struct conv *p, hv_tensor y, hv_tensor x,
                      const struct hv_conv *how)
{
    struct conv_product c = {};
    struct pack w = {};

    if (how->depthwise || x.dtype == HV_F32 || !d->scratch.data || !on_16(x) || p->ci % 8 || y.shape[0] > INT32_MAX / 2 ||
        y.shape[1] > INT32_MAX / 2 || y.shape[2] > INT32_MAX / 2)
        return 1;
    phases_of(&c, &w, p, y.shape);
    c.taps = w.taps = c.tap[0] * c.tap[1] * c.tap[2];
    c.slices = w.slices = (p->ci + CONV_BK - 1) / CONV_BK;
    c.across = w.across = (p->co + CONV_BN - 1) / CONV_BN;
    const int64_t k[3] = {p->k[0], p->k[1], p->k[2]};
    if (hv_conv_scratch(p->co, p->ci, k, p->up) > hv_nbytes(d->scratch) || c.taps * (int64_t)c.slices > INT32_MAX)
        return 1;
    for (int a = 0; a < 3; a++)
        c.xs[a] = p->xs[a], c.ys[a] = p->ys[a], c.rs[a] = p->rs[a], w.k[a] = p->k[a];
    c.x = p->x, c.y = p->y, c.residual = p->residual, c.bias = p->bias, c.act = p->act;
    if (p->xs[1] * x.shape[1] / 8 > INT32_MAX || p->xs[2] * x.shape[2] / 8 > INT32_MAX)
        return 1;
    c.line = (int)(p->xs[1] / 8), c.pixel = (int)(p->xs[2] / 8);
    c.pairs = p->co % 2 == 0 && ((uintptr_t)p->y & 3) == 0 && ((uintptr_t)p->residual & 3) == 0;
    c.eights = p->co % 8 == 0 && (((uintptr_t)p->y | (uintptr_t)p->residual) & 15) == 0;
    for (int a = 0; a < 3; a++) {
        c.pairs = c.pairs && p->ys[a] % 2 == 0 && (!p->residual || p->rs[a] % 2 == 0);
        c.eights = c.eights && p->ys[a] % 8 == 0 && (!p->residual || p->rs[a] % 8 == 0);
    }
    c.rows = (int)x.shape[1], c.cols = (int)x.shape[2];
    c.ci = w.ci = p->ci, c.co = w.co = p->co;
    c.zeros = p->zeros;
    c.w = w.to = (char *)d->scratch.data;
    w.w = p->w, w.scale = p->scale, w.wtype = p->wtype, w.wsize = p->wsize, w.rounded = p->rounded;
    w.phases = c.phases;
    const dim3 blocks((unsigned)(c.across * CONV_BN), (unsigned)c.slices);
    const size_t shared = (size_t)CONV_BK * p->k[0] * p->k[1] * p->k[2] * sizeof(float);
    if (shared > 48 << 10)
        return 1;
    if (x.dtype == HV_F16)
        pack_kernel<__half><<<blocks, 256, shared, cuda_stream(d)>>>(w);
    else
        pack_kernel<__nv_bfloat16><<<blocks, 256, shared, cuda_stream(d)>>>(w);
    CUDA_LAUNCHED(d, "conv");
    *product = c;
    return 0;
}

/* ---- trust ---- */

static struct conv conv_of(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *how);

#define TRUST_AT    (4 << 20)           /* bytes of the scratch for packed weights, then for the operands */
#define TRUST_BYTES (8 << 20)

/* wgmma reads shared memory at rows where its swizzle does not begin, which the manual allows but does not spell out. So before its
 * first use in a process each form of that kernel, 3x3 taps, the same to few outputs, 2x2 (doubled), 1x1, has to agree with mma.sync
 * on a small convolution; 1: it does. A wait of a millisecond, once. */
static int is_trusted(struct hv_dev *d, hv_dtype type, const struct conv *p)
{
    static int known[2][4];
    const int taps = p->up[1] == 2 ? 2 : p->k[1], few = taps == 3 && p->co <= 8, form = few ? 0 : taps;
    int *k = &known[type == HV_F16][form];
    const int64_t co = few ? 3 : 136, kernel = taps == 1 ? 1 : 3, up = taps == 2 ? 2 : 1;
    const int64_t xs[4] = {4, 8, 16, 72}, ys[4] = {up == 2 ? 6 : 5 - kernel, 8 * up, 16 * up, co}, ws[5] = {co, 72, kernel, kernel, kernel};
    struct hv_conv how = {};
    struct conv_product c;

    if (taps > 3 || p->k[1] != (taps == 1 ? 1 : 3))
        return 0;
    if (*k || hv_nbytes(d->scratch) < TRUST_BYTES)
        return *k > 0;
    *k = -1;
    char *at = (char *)d->scratch.data + TRUST_AT;
    const hv_tensor x = cuda_piece(&at, type, 4, xs), w = cuda_piece(&at, type, 5, ws), bias = cuda_piece(&at, HV_F32, 1, ws);
    const hv_tensor a = cuda_piece(&at, type, 4, ys), b = cuda_piece(&at, type, 4, ys);
    how.pad = HV_PAD_REPLICATE;
    for (int i = 0; i < 3; i++)
        how.up[i] = (int)up;
    cuda_noise(d, x, 1);
    cuda_noise(d, w, 1.0f / 32);
    cuda_noise(d, bias, 0.5f);
    cuda_noise(d, b, 8);                /* what is left out differs */
    const struct conv m = conv_of(a, x, w, bias, &how), q = conv_of(b, x, w, bias, &how);
    if (product_of(d, &c, &m, a, x, &how) || cuda_conv_mma(d, &c, type) || product_of(d, &c, &q, b, x, &how) ||
        cuda_conv_wgmma(d, &c, type))
        return 0;
    *k = cuda_difference(d, a, b, at) <= (type == HV_F16 ? 2e-3f : 1.6e-2f) ? 1 : -1;   /* of results of about 1: a few ulp */
    return *k > 0;
}

/* 0, or 1 when tensor cores do not take the case: nothing was done then. */
static int on_tensor_cores(struct hv_dev *d, const struct conv *p, hv_tensor y, hv_tensor x, const struct hv_conv *how)
{
    struct conv_product c;
    const int wide = cuda_of(d)->arch == 90 && x.dtype != HV_F32 && d->scratch.data && is_trusted(d, x.dtype, p);

    if (product_of(d, &c, p, y, x, how))
        return 1;
    return (!wide || cuda_conv_wgmma(d, &c, x.dtype)) && cuda_conv_mma(d, &c, x.dtype);
}

static struct conv conv_of(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *how)
{
    struct conv p = {};

    p.y = y.data, p.x = x.data, p.w = w.data;
    p.residual = how->residual.dtype == HV_NONE ? NULL : how->residual.data;
    p.scale = w.dtype == HV_I8 || w.dtype == HV_F8_E4M3 ? w.scale : NULL;
    p.bias = (const float *)bias.data;
    for (int a = 0; a < 3; a++) {
        p.xs[a] = x.stride[a], p.ys[a] = y.stride[a], p.rs[a] = how->residual.stride[a];
        p.out[a] = y.shape[a];
        p.k[a] = (int)w.shape[2 + a];
        p.stride[a] = how->stride[a] ? how->stride[a] : 1;
        p.up[a] = how->up[a] ? how->up[a] : 1;
    }
    p.rows = x.shape[1] * p.up[1], p.cols = x.shape[2] * p.up[2];
    p.pixels = y.shape[0] * y.shape[1] * y.shape[2];
    p.co = (int)w.shape[0];
    p.ci = (int)w.shape[1];                     /* depthwise: 1, and weights of one channel follow those of another */
    p.first = p.up[0] == 2 && y.shape[0] < 2 * (x.shape[0] - 1);
    p.zeros = how->pad == HV_PAD_ZERO;
    p.rounded = p.scale && w.deq_bf16;
    p.wtype = w.dtype, p.wsize = (int)hv_dtype_size(w.dtype);
    p.act = how->act;
    return p;
}

void cuda_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *how)
{
    const struct conv p = conv_of(y, x, w, bias, how);

    if (hv_count(y) && on_tensor_cores(d, &p, y, x, how))
        CUDA_FOR_TYPE(x.dtype, T, launch<T>(d, &p, how->depthwise))
}
