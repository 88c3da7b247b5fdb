/* group.c - group_sums and group_norm over channels-last video.
 *
 * Sums are taken per channel in f64 over pieces of up to 512 cells of a frame, pieces are added in order, channels to groups,
 * frames one after the other: the order does not depend on the threads, nor on how many frames one call is given. */
#include "kernels/cpu/group.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define CELLS 512               /* of a piece */
#define SMALL 16384             /* elements that one thread does sooner than others wake up */

static const struct group_isa *pick_isa(void)
{
    const struct cpu_simd *simd = cpu_simd();

    return simd == &cpu_simd_avx512 ? &group_isa_avx512 : simd == &cpu_simd_avx2 ? &group_isa_avx2 : &group_isa_c;
}

/* Cells first .. first+n-1 of frame t as runs of one row each: calls are made for runs that lie in one row. */
struct run {
    int64_t row, col, n;
};

static struct run next_run(const hv_tensor *x, int64_t cell, int64_t left)
{
    struct run r = {cell / x->shape[2], cell % x->shape[2], 0};

    r.n = x->shape[2] - r.col < left ? x->shape[2] - r.col : left;
    return r;
}

static int64_t run_at(const hv_tensor *x, int64_t t, struct run r)
{
    return t * x->stride[0] + r.row * x->stride[1] + r.col * x->stride[2];
}

/* part[2 C]: sums and squares of one piece of frame t. */
static void sum_piece(const struct group_isa *isa, double *part, const hv_tensor *x, int64_t t, int64_t first, int64_t n)
{
    const int64_t C = x->shape[3];

    memset(part, 0, (size_t)(2 * C) * sizeof *part);
    while (n > 0) {
        const struct run r = next_run(x, first, n);
        isa->sums(part, part + C, (const float *)x->data + run_at(x, t, r), r.n, x->stride[2], C);
        first += r.n;
        n -= r.n;
    }
}

/* The groups of one frame: adds `n` pieces in order. */
static void add_pieces(double *sums, int64_t groups, const double *part, int64_t n, int64_t C)
{
    for (int64_t g = 0; g < groups; g++) {
        double s = 0, q = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = g * (C / groups); c < (g + 1) * (C / groups); c++) {
                s += part[i * 2 * C + c];
                q += part[i * 2 * C + C + c];
            }
        sums[2 * g] += s;
        sums[2 * g + 1] += q;
    }
}

/* Frames t .. t+n-1, n > 1 only if all their pieces fit into `part`. */
static void sum_frames(struct hv_dev *d, double *sums, int64_t groups, const hv_tensor *x, int64_t t, int64_t n, int64_t room,
                       double *part)
{
    const struct group_isa *isa = pick_isa();
    const int64_t C = x->shape[3], cells = x->shape[1] * x->shape[2], pieces = (cells + CELLS - 1) / CELLS;

    for (int64_t first = 0; first < pieces; first += room) {
        const int64_t each = pieces - first < room ? pieces - first : room;
#pragma omp parallel for schedule(dynamic) num_threads(d->threads) if (hv_count(*x) > SMALL)
        for (int64_t i = 0; i < n * each; i++) {
            const int64_t at = (first + i % each) * CELLS;
            sum_piece(isa, part + i * 2 * C, x, t + i / each, at, cells - at < CELLS ? cells - at : CELLS);
        }
        for (int64_t i = 0; i < n; i++)
            add_pieces(sums, groups, part + i * each * 2 * C, each, C);
    }
}

void cpu_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x)
{
    const int64_t C = x.shape[3], pieces = (x.shape[1] * x.shape[2] + CELLS - 1) / CELLS;
    const int64_t room = (int64_t)(CPU_SCRATCH / sizeof(double)) / (2 * C), T = x.shape[0];
    const int64_t n = pieces && room / pieces > 1 ? room / pieces : 1;

    if (x.dtype != HV_F32 || room < 1) {
        hv_dev_fault(d, HV_EUNSUP, "group_sums: %lld channels are too many, or not f32", (long long)C);
        return;
    }
    for (int64_t t = 0; t < T; t += n)                  /* the scratch of the calling thread is filled by all */
        sum_frames(d, sums.data, sums.shape[0], &x, t, T - t < n ? T - t : n, room, cpu_scratch(d));
}

/* Per channel: mean, 1/std * weight, bias, each rounded once. */
static void coefficients(float *mean, float *scale, float *shift, const hv_tensor *sums, double count, const float *weight,
                         const float *bias, double eps, int64_t C)
{
    const double *s = sums->data;
    const int64_t each = C / sums->shape[0];

    for (int64_t c = 0; c < C; c++) {
        const double m = s[c / each * 2] / count, var = s[c / each * 2 + 1] / count - m * m;
        mean[c] = (float)m;
        scale[c] = (float)((double)weight[c] / sqrt((var > 0 ? var : 0 * var) + eps));      /* 0 * var: NaN stays */
        shift[c] = bias[c];
    }
}

void cpu_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                    hv_tensor bias, float eps, enum hv_act act)
{
    const struct group_isa *isa = pick_isa();
    const int64_t C = x.shape[3], cells = x.shape[1] * x.shape[2], pieces = (cells + CELLS - 1) / CELLS;
    float *mean = cpu_scratch(d), *scale = mean + C, *shift = scale + C;

    if (x.dtype != HV_F32 || (size_t)(3 * C) * sizeof(float) > CPU_SCRATCH) {
        hv_dev_fault(d, HV_EUNSUP, "group_norm: %lld channels are too many, or not f32", (long long)C);
        return;
    }
    coefficients(mean, scale, shift, &sums, count, weight.data, bias.data, (double)eps, C);
#pragma omp parallel for schedule(dynamic) num_threads(d->threads) if (hv_count(x) > SMALL)
    for (int64_t i = 0; i < x.shape[0] * pieces; i++) {
        const int64_t t = i / pieces;
        int64_t at = i % pieces * CELLS, n = cells - at < CELLS ? cells - at : CELLS;
        while (n > 0) {
            const struct run r = next_run(&x, at, n);
            float *to = (float *)y.data + run_at(&y, t, r);
            isa->norm(to, y.stride[2], (const float *)x.data + run_at(&x, t, r), x.stride[2], r.n, C, mean, scale, shift,
                      act == HV_ACT_SILU);
            if (act != HV_ACT_NONE && act != HV_ACT_SILU)
                for (int64_t k = 0; k < r.n; k++)
                    cpu_act(to + k * y.stride[2], to + k * y.stride[2], C, act);
            at += r.n;
            n -= r.n;
        }
    }
}
