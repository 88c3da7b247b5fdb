/* rig.h - runs one operation on a backend and compares it with its definition.
 *
 *     hv_tensor x = rnd(HV_F32, 2, (int64_t[]){5, 7}, 3), y = out(2, (int64_t[]){5, 7}, 1), r = ref(y);
 *     ref_activation(r, x, HV_ACT_SILU);
 *     EACH(d)
 *         hv_tensor dy = put(d, y);
 *         hv_activation(d, dy, put(d, x), HV_ACT_SILU);
 *         expect(d, dy, y, r, 1e-6);
 *     DONE
 *
 * The body of EACH runs on devices of 1, 2, 3 and 4 threads; on a GPU twice, in memory of its own each time. expect
 * demands |result - r| <= tol * max |r|, the same bits on all of them, and that nothing outside of the view was written.
 * A result of 16 bits is the f32 result rounded once: half a unit of its last place is allowed on top, unless tol is 0.
 *
 * HV_TEST_DEVICE names the backend, "cpu" without it. HV_TEST_ACT: dtype of activations on a GPU, bf16 without it, or
 * f16, or f32. HV_TEST_ONLY: a pattern of names, of the tests to run. HV_TEST_SMALL: without the cases that are only large. */
#ifndef RIG_H
#define RIG_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops/ops.h"
#include "tests/unit/ref_ops.h"

#define RIG_DEVICES 4
#define RIG_BUFFERS 64
#define RIG_SCRATCH (64 << 20)         /* bytes of a GPU's scratch for matrix products */

static struct rig {
    struct hv_dev *dev[RIG_DEVICES];
    int            at;                              /* which of them the body of EACH runs on */
    struct { void *p; size_t bytes; } host[RIG_BUFFERS];
    int            hosts;
    void          *device[RIG_BUFFERS];             /* of the device at hand */
    int            devices;
    void          *first[8];                        /* results of the first device, in the order of expect */
    int            firsts, results;
    uint64_t       seed;
    hv_dtype       act;                             /* of activations */
    int            count;                           /* devices */
    int            gpu;
} rig;

static inline double rig_uniform(void)              /* -1 .. 1 */
{
    rig.seed = rig.seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(rig.seed >> 11 << 11) / 9223372036854775808.0;
}

/* A host tensor; its rows are `gap` elements longer than its last dimension. Bytes are a pattern that no result has. */
static inline hv_tensor raw(hv_dtype t, int ndim, const int64_t *shape, int64_t gap)
{
    int64_t wide[HV_MAX_DIMS];

    assert_true(rig.hosts < RIG_BUFFERS);
    memcpy(wide, shape, (size_t)ndim * sizeof *wide);
    wide[ndim - 1] += gap;
    const size_t bytes = (size_t)hv_shape_count(ndim, wide) * hv_dtype_size(t);
    char *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    assert_non_null(p);
    memset(p, 0x7b, bytes);
    rig.host[rig.hosts].p = p;
    rig.host[rig.hosts++].bytes = bytes;
    return hv_slice(hv_view(p, t, ndim, wide), ndim - 1, 0, shape[ndim - 1]);
}

/* Numbers in -size..size; -127..127 for I8 and 0 or 1 for U8. Quantized tensors get a scale a row. */
static inline hv_tensor rnd_of(hv_dtype t, int ndim, const int64_t *shape, int64_t gap, double size)
{
    hv_tensor h = raw(t, ndim, shape, gap);
    int64_t i[HV_MAX_DIMS] = {0}, left = hv_count(h);

    while (left-- > 0) {
        const double v = rig_uniform();
        ref_put(h, i[0], i[1], i[2], i[3], i[4],
                t == HV_I8 ? rint(127 * v) : t == HV_U8 ? (double)(v > -0.4) : t == HV_F8_E4M3 ? 400 * v : size * v);
        for (int a = ndim - 1; a >= 0 && ++i[a] == shape[a]; a--)
            i[a] = 0;
    }
    if (t == HV_I8 || t == HV_F8_E4M3) {
        hv_tensor s = raw(HV_F32, 1, shape, 0);
        for (int64_t r = 0; r < shape[0]; r++)
            ((float *)s.data)[r] = (float)((0.6 + 0.4 * rig_uniform()) / (t == HV_I8 ? 127 : 400));
        h.scale = s.data;
    }
    return h;
}

static inline hv_tensor rnd(hv_dtype t, int ndim, const int64_t *shape, int64_t gap)
{
    return rnd_of(t, ndim, shape, gap, 1);
}

/* Where a result goes, in the activations' dtype. */
static inline hv_tensor out(int ndim, const int64_t *shape, int64_t gap)
{
    return raw(rig.act, ndim, shape, gap);
}

/* A tensor of y's shape for the definition. */
static inline hv_tensor ref(hv_tensor y)
{
    hv_tensor r = raw(HV_F64, y.ndim, y.shape, 0);

    memset(r.data, 0, hv_nbytes(r));
    return r;
}

static inline int rig_buffer(const void *p)
{
    int i = 0;

    while (!((const char *)p >= (char *)rig.host[i].p && (const char *)p < (char *)rig.host[i].p + rig.host[i].bytes + 1))
        assert_true(++i < rig.hosts);
    return i;
}

static inline void *rig_upload(struct hv_dev *d, const void *p, size_t bytes)
{
    struct hv_err e = {0};
    const int64_t n = (int64_t)bytes;
    hv_tensor to = {.data = hv_dev_alloc(d, bytes, &e), .dtype = HV_U8, .dev = (uint8_t)d->kind, .ndim = 1,
                    .shape = {n}, .stride = {1}};

    assert_non_null(to.data);
    assert_true(rig.devices < RIG_BUFFERS);
    rig.device[rig.devices++] = to.data;
    hv_upload(d, to, hv_view(p, HV_U8, 1, &n));
    return to.data;
}

/* The same tensor on the device, with everything around it. */
static inline hv_tensor put(struct hv_dev *d, hv_tensor h)
{
    hv_tensor t = h;

    if (h.dtype == HV_NONE)
        return h;
    const int b = rig_buffer(h.data);
    t.data = (char *)rig_upload(d, rig.host[b].p, rig.host[b].bytes) + ((char *)h.data - (char *)rig.host[b].p);
    t.dev = (uint8_t)d->kind;
    if (h.scale) {
        const int s = rig_buffer(h.scale);
        t.scale = rig_upload(d, rig.host[s].p, rig.host[s].bytes);
    }
    return t;
}

/* Half a unit in the last place of v, as t. */
static inline double rig_half_ulp(hv_dtype t, double v)
{
    return t == HV_BF16 ? 0x1p-8 * fabs(v) : t == HV_F16 ? fmax(0x1p-11 * fabs(v), 0x1p-25) : 0;
}

/* A definition in double as a result that is exact: rounded to the dtype of activations. */
static inline void narrow(hv_tensor r)
{
    double *p = r.data;

    for (int64_t i = 0; i < hv_count(r); i++) {
        const float f = (float)p[i];
        uint32_t one = 0;
        float back;
        hv_from_f32(rig.act, &one, &f, 1);
        hv_to_f32(&back, rig.act, &one, 1);
        p[i] = (double)back;
    }
}

/* Compares the view with r, and the rest of its buffer with what was there. */
static inline void rig_compare(const char *got, hv_tensor h, hv_tensor r, double tol, double more, const char *what)
{
    const int b = rig_buffer(h.data);
    const int64_t before = (char *)h.data - (char *)rig.host[b].p, size = (int64_t)hv_dtype_size(h.dtype);
    hv_tensor y = h;
    int64_t i[HV_MAX_DIMS] = {0}, left = hv_count(h);
    double worst = 0, top = 0;
    char *seen = calloc(rig.host[b].bytes + 1, 1);

    y.data = (char *)(uintptr_t)got + before;
    while (left-- > 0) {
        const double a = ref_at(y, i[0], i[1], i[2], i[3], i[4]), c = ref_at(r, i[0], i[1], i[2], i[3], i[4]);
        int64_t at = before;
        for (int k = 0; k < h.ndim; k++)
            at += i[k] * h.stride[k] * size;
        memset(seen + at, 1, (size_t)size);
        top = fmax(top, fabs(c));
        if (isnan(a) != isnan(c) || (isinf(c) && a != c))
            worst = INFINITY;
        else if (!isnan(c) && !isinf(c))
            worst = fmax(worst, fabs(a - c) - (tol + more > 0 ? 1.01 * rig_half_ulp(h.dtype, c) : 0));
        for (int k = h.ndim - 1; k >= 0 && ++i[k] == h.shape[k]; k--)
            i[k] = 0;
    }
    if (!(worst <= tol * top + more))
        fail_msg("%s: error %.3g of %.3g is over %.3g", what, worst, top, tol * top + more);
    for (size_t k = 0; k < rig.host[b].bytes; k++)
        if (!seen[k] && got[k] != ((char *)rig.host[b].p)[k])
            fail_msg("%s: byte %zu outside of the result was written", what, k);
    free(seen);
}

/* The result t, in the place of h, against r. more: error that is allowed on top. */
static inline void expect_(struct hv_dev *d, hv_tensor t, hv_tensor h, hv_tensor r, double tol, double more,
                           const char *what)
{
    const int b = rig_buffer(h.data);
    const size_t bytes = rig.host[b].bytes;
    const int64_t n = (int64_t)bytes;
    char *got = malloc(bytes + 1);
    struct hv_err e = {0};
    hv_tensor all = {.data = (char *)t.data - ((char *)h.data - (char *)rig.host[b].p), .dtype = HV_U8,
                     .dev = (uint8_t)d->kind, .ndim = 1, .shape = {n}, .stride = {1}};

    hv_download(d, hv_view(got, HV_U8, 1, &n), all);
    if (hv_dev_sync(d, &e))
        fail_msg("%s: %s", what, e.msg);
    if (rig.at == 0) {
        rig_compare(got, h, r, tol, more, what);
        assert_true(rig.firsts < 8);
        rig.first[rig.firsts++] = got;
        return;
    }
    if (memcmp(got, rig.first[rig.results++], bytes))
        fail_msg("%s: other bits than the first, %s", what, rig.gpu ? "in other memory" : "with more threads");
    free(got);
}

#define expect(d, t, h, r, tol) expect_(d, t, h, r, tol, 0, __func__)
#define expect_and(d, t, h, r, tol, more) expect_(d, t, h, r, tol, more, __func__)

static inline void rig_next(void)
{
    for (int i = 0; i < rig.devices; i++)
        hv_dev_free(rig.dev[rig.at], rig.device[i]);
    rig.devices = rig.results = 0;
}

static inline void rig_done(void)
{
    for (int i = 0; i < rig.hosts; i++)
        free(rig.host[i].p);
    for (int i = 0; i < rig.firsts; i++)
        free(rig.first[i]);
    rig.hosts = rig.firsts = 0;
}

#define EACH(d)                                                                                                        \
    for (rig.at = 0; rig.at < rig.count; rig_next(), rig.at++) {                                                       \
        struct hv_dev *d = rig.dev[rig.at];
#define DONE                                                                                                           \
    }                                                                                                                  \
    rig_done();

/* A failed check leaves EACH in the middle: the next test starts afresh. */
static inline int rig_reset(void **state)
{
    (void)state;
    if (rig.at < rig.count)
        rig_next();
    rig_done();
    for (int i = 0; i < rig.count; i++) {       /* a fault of one test is not that of the next */
        rig.dev[i]->fault = (struct hv_err){0};
        rig.dev[i]->faulted = 0;
    }
    return 0;
}

#define TEST(f) cmocka_unit_test_teardown(f, rig_reset)

static inline int rig_open(void **state)
{
    const char *name = getenv("HV_TEST_DEVICE"), *act = getenv("HV_TEST_ACT");
    struct hv_err e = {0};

    (void)state;
    rig.seed = 12345;
    rig.gpu = name && !strncmp(name, "cuda", 4);
    rig.count = rig.gpu ? 2 : RIG_DEVICES;
    for (int i = 0; i < rig.count; i++)
        if (hv_dev_open(&rig.dev[i], name ? name : "cpu", i + 1, &e)) {
            fprintf(stderr, "%s\n", e.msg);
            return -1;
        }
    for (int i = 0; i < rig.count && rig.gpu; i++) {
        const int64_t n = RIG_SCRATCH;
        void *p = hv_dev_alloc(rig.dev[i], RIG_SCRATCH, &e);
        if (!p) {
            fprintf(stderr, "%s\n", e.msg);
            return -1;
        }
        rig.dev[i]->scratch = hv_view(p, HV_BYTES, 1, &n);
        rig.dev[i]->scratch.dev = (uint8_t)rig.dev[i]->kind;
    }
    rig.act = !rig.gpu || (act && !strcmp(act, "f32")) ? HV_F32 : act && !strcmp(act, "f16") ? HV_F16 : HV_BF16;
    return 0;
}

static inline int rig_close(void **state)
{
    (void)state;
    for (int i = 0; i < rig.count && rig.dev[i]; i++) {
        hv_dev_free(rig.dev[i], rig.dev[i]->scratch.data);
        hv_dev_close(rig.dev[i]);
    }
    return 0;
}

#endif
