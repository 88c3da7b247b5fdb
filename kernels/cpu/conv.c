/* conv.c - convolution of channels-last video, straight from its definition. */
#include "cpu.h"

/* Where tap k of output i reads on an axis of n cells, upsampled `up` times; -1: a zero of the padding. */
static int64_t source(int64_t i, int64_t k, int64_t taps, int64_t n, int stride, int up, enum hv_pad pad)
{
    int64_t at = i * stride + k - taps / 2;

    if (at < 0 || at >= n * up) {
        if (pad == HV_PAD_ZERO)
            return -1;
        at = at < 0 ? 0 : n * up - 1;
    }
    return at / up;
}

static int64_t source_time(int64_t t, int64_t k, int stride, int up)
{
    return up == 2 ? t / 2 + (k + t % 2 >= 2) : t * stride + k;
}

struct call {
    hv_tensor y, x, w;
    const float *bias;
    const struct hv_conv *p;
    int stride[3], up[3];
};

static float one(const struct call *c, int64_t o, int64_t t, int64_t i, int64_t j)
{
    const int64_t *ws = c->w.shape, *xs = c->x.stride, channels = c->p->depthwise ? 1 : ws[1];
    const size_t size = hv_dtype_size(c->w.dtype);
    double sum = c->bias ? (double)c->bias[o] : 0;

    for (int64_t a = 0; a < ws[2]; a++)
        for (int64_t b = 0; b < ws[3]; b++)
            for (int64_t e = 0; e < ws[4]; e++) {
                const int64_t f = source_time(t, a, c->stride[0], c->up[0]);
                const int64_t r = source(i, b, ws[3], c->x.shape[1], c->stride[1], c->up[1], c->p->pad);
                const int64_t q = source(j, e, ws[4], c->x.shape[2], c->stride[2], c->up[2], c->p->pad);
                if (r < 0 || q < 0)
                    continue;
                const float *px = (const float *)c->x.data + f * xs[0] + r * xs[1] + q * xs[2];
                for (int64_t k = 0; k < channels; k++) {
                    const int64_t at = (((o * ws[1] + k) * ws[2] + a) * ws[3] + b) * ws[4] + e;
                    float w;
                    hv_to_f32(&w, c->w.dtype, (const char *)c->w.data + (size_t)at * size, 1);
                    sum += (double)px[c->p->depthwise ? o : k] * (double)(c->w.scale ? w * c->w.scale[o] : w);
                }
            }
    return (float)sum;
}

void cpu_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p)
{
    struct call c = {.y = y, .x = x, .w = w, .bias = bias.data, .p = p};

    for (int a = 0; a < 3; a++) {
        c.stride[a] = p->stride[a] ? p->stride[a] : 1;
        c.up[a] = p->up[a] ? p->up[a] : 1;
    }
#pragma omp parallel for num_threads(d->threads)
    for (int64_t line = 0; line < y.shape[0] * y.shape[1]; line++)
        for (int64_t j = 0; j < y.shape[2]; j++) {
            const int64_t t = line / y.shape[1], i = line % y.shape[1];
            float *out = (float *)y.data + t * y.stride[0] + i * y.stride[1] + j * y.stride[2];
            for (int64_t o = 0; o < y.shape[3]; o++) {
                float v = one(&c, o, t, i, j);
                cpu_act(&v, &v, 1, p->act);
                if (p->residual.data)
                    v += ((const float *)p->residual.data)[t * p->residual.stride[0] + i * p->residual.stride[1]
                                                           + j * p->residual.stride[2] + o];
                out[o] = v;
            }
        }
}
