/* attention.c - o = softmax(scale q k^T) v per head, by blocks of queries and tiles of keys with a running maximum and sum
 * (online softmax): never more than BQ x BK scores. */
#include "cpu.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define BQ 128
#define BK 128

/* The keys that query i may see: the first of so many. */
static int64_t limit(const struct hv_attn *a, int64_t i, int64_t keys)
{
    const int64_t n = (i / (a->step ? a->step : 1) + 1) * a->step + a->offset;

    return a->step && n < keys ? n : keys;
}

struct block {
    float *q, *s, *o, top[BQ], sum[BQ];
};

static void one_tile(struct block *b, int64_t first, int64_t rows, int64_t at, int64_t n, int64_t width, hv_tensor k,
                     hv_tensor v, const struct hv_attn *a, int64_t keys)
{
    const uint8_t *mask = a->key_mask.data;

    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)rows, (blasint)n, (blasint)width, 1, b->q, (blasint)width,
                (const float *)k.data + at * k.stride[0], (blasint)k.stride[0], 0, b->s, BK);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t seen = limit(a, first + i, keys);
        float *s = b->s + i * BK, top = b->top[i];
        for (int64_t j = 0; j < n; j++) {
            if (at + j >= seen || (mask && !mask[at + j]))
                s[j] = -INFINITY;
            top = s[j] > top ? s[j] : top;
        }
        const float base = top > -INFINITY ? top : 0, shrink = expf(b->top[i] - base);
        float sum = 0;
        for (int64_t j = 0; j < n; j++) {
            s[j] = expf(s[j] - base);
            sum += s[j];
        }
        b->sum[i] = b->sum[i] * shrink + sum;
        b->top[i] = top;
        for (int64_t c = 0; c < width; c++)
            b->o[i * width + c] *= shrink;
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)rows, (blasint)width, (blasint)n, 1, b->s, BK,
                (const float *)v.data + at * v.stride[0], (blasint)v.stride[0], 1, b->o, (blasint)width);
}

static void query_block(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a,
                        int64_t first)
{
    const int64_t rows = q.shape[0], width = q.shape[1], keys = k.shape[0];
    int64_t end = 0;
    struct block b = {.s = cpu_scratch(d)};

    b.q = b.s + BQ * BK;
    b.o = b.q + BQ * width;
    for (int64_t i = 0; i < rows; i++) {
        b.top[i] = -INFINITY;
        b.sum[i] = 0;
        end = limit(a, first + i, keys) > end ? limit(a, first + i, keys) : end;
        for (int64_t c = 0; c < width; c++)
            b.q[i * width + c] = cpu_f32(&q, i)[c] * a->scale;
    }
    memset(b.o, 0, (size_t)(rows * width) * 4);
    for (int64_t at = 0; at < end; at += BK)
        one_tile(&b, first, rows, at, end - at < BK ? end - at : BK, width, k, v, a, keys);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < width; c++)
            cpu_f32(&o, i)[c] = b.o[i * width + c] / b.sum[i];
}

void cpu_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t rows = q.shape[0], width = q.shape[1] / a->heads, blocks = (rows + BQ - 1) / BQ;

#pragma omp parallel for schedule(dynamic) num_threads(d->threads)
    for (int64_t i = 0; i < blocks * a->heads; i++) {
        const int64_t h = i / blocks, first = i % blocks * BQ, n = rows - first < BQ ? rows - first : BQ;
        const int64_t g = h / (a->heads / a->kv_heads);
        query_block(d, hv_cols(hv_rows(o, first, n), h * width, width), hv_cols(hv_rows(q, first, n), h * width, width),
                    hv_cols(k, g * width, width), hv_cols(v, g * width, width), a, first);
    }
}
