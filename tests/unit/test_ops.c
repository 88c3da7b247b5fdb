/* Operations on rows: each against its definition, over odd sizes, strides, dtypes and in place. */
#include "tests/unit/rig.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define COUNT(a) (sizeof(a) / sizeof *(a))

/* Rows, columns; 1: rows begin on 16 bytes whatever is between them, as a GPU likes them. */
static const int64_t sizes[][3] = {{1, 1, 0}, {1, 7, 0}, {3, 16, 0}, {5, 33, 0}, {17, 64, 0}, {2, 1000, 0}, {40, 257, 0},
                                   {1, 20000, 0}, {70, 264, 1}, {9, 3072, 1}, {3, 4096, 1}, {1, 8, 1}};

/* n elements between rows, for a case of `sizes`. */
static int64_t gap(const int64_t *size, int64_t n)
{
    return size[2] ? 8 * n : n;
}

/* ---- memory ---- */

static const hv_dtype some[] = {HV_F32, HV_BF16, HV_F16, HV_F64, HV_I8, HV_U8, HV_I32, HV_F8_E4M3};

static void copy_converts(void **state)
{
    (void)state;
    for (size_t a = 0; a < COUNT(some); a++)
        for (size_t b = 0; b < COUNT(some); b++) {
            hv_tensor x = rnd_of(some[a], 3, SHAPE(3, 5, 37), 2, 100), y = raw(some[b], 3, SHAPE(3, 5, 37), 4), r = ref(y);
            x.scale = NULL;
            for (int64_t i = 0; i < 3 * 5 * 37; i++) {      /* the definition: through f32, then to the dtype of y */
                const int64_t k = i / 185, m = i / 37 % 5, n = i % 37;
                const float v = (float)ref_at(x, k, m, n, 0, 0);
                double w = 0;
                float f;
                hv_from_f32(some[b], &w, &v, 1);
                hv_to_f32(&f, some[b], &w, 1);
                ref_put(r, k, m, n, 0, 0, some[a] == some[b] ? ref_at(x, k, m, n, 0, 0) : (double)f);
            }
            EACH(d)
                hv_tensor dy = put(d, y);
                hv_copy(d, dy, put(d, x));
                expect(d, dy, y, r, 0);
            DONE
        }
}

static hv_tensor turned(hv_tensor t, const int *order)
{
    hv_tensor r = t;

    for (int i = 0; i < t.ndim; i++) {
        r.shape[i] = t.shape[order[i]];
        r.stride[i] = t.stride[order[i]];
    }
    return r;
}

static void copy_turns(void **state)
{
    static const int orders[][5] = {{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {1, 0, 2, 4, 3}, {0, 4, 1, 2, 3}, {2, 3, 4, 0, 1}};

    (void)state;
    for (size_t k = 0; k < COUNT(orders); k++) {
        hv_tensor x = rnd(HV_F32, 5, SHAPE(3, 4, 5, 6, 7), 1), tx = turned(x, orders[k]);
        hv_tensor y = raw(k % 2 ? HV_BF16 : HV_F32, 5, tx.shape, 2), r = ref(y), whole = rnd(HV_F32, 5, tx.shape, 0);
        hv_tensor z = raw(HV_F32, 5, SHAPE(3, 4, 5, 6, 7), 0), rz = ref(z);
        ref_copy(r, tx);
        ref_copy(turned(rz, orders[k]), whole);
        EACH(d)
            hv_tensor dy = put(d, y), dz = put(d, z);
            hv_copy(d, dy, turned(put(d, x), orders[k]));
            hv_copy(d, turned(dz, orders[k]), put(d, whole));
            expect(d, dy, y, r, k % 2 ? 1e-12 : 0);
            expect(d, dz, z, rz, 0);
        DONE
    }
}

static void copy_keeps_wide_integers(void **state)
{
    int64_t in[3] = {INT64_MAX - 1, -5, (int64_t)1 << 53 | 1}, back[3] = {0};

    (void)state;
    EACH(d)
        struct hv_err e = {0};
        hv_tensor a = {.data = hv_dev_alloc(d, sizeof in, &e), .dtype = HV_I64, .dev = (uint8_t)d->kind, .ndim = 1,
                       .shape = {3}, .stride = {1}}, b = a;
        b.data = hv_dev_alloc(d, sizeof in, &e);
        hv_upload(d, a, hv_view(in, HV_I64, 1, SHAPE(3)));
        hv_copy(d, b, a);
        hv_download(d, hv_view(back, HV_I64, 1, SHAPE(3)), b);
        assert_int_equal(hv_dev_sync(d, &e), 0);
        assert_memory_equal(in, back, sizeof in);
        hv_dev_free(d, a.data);
        hv_dev_free(d, b.data);
    DONE
}

static void upload_and_download(void **state)
{
    (void)state;
    hv_tensor x = rnd(HV_BF16, 3, SHAPE(4, 9, 31), 5), y = raw(rig.act, 3, SHAPE(4, 9, 31), 2), r = ref(y);
    ref_copy(r, x);
    EACH(d)
        hv_tensor dy = put(d, y);
        hv_upload(d, dy, x);
        expect(d, dy, y, r, rig.act == HV_F16 ? 1e-12 : 0);
        float back[9 * 31];
        hv_download(d, hv_view(back, HV_F32, 2, SHAPE(9, 31)), hv_index(dy, 2));
        for (int64_t i = 0; i < 9 * 31; i++)
            assert_true(rig.act == HV_F16 || (double)back[i] == ref_at(r, 2, i / 31, i % 31, 0, 0));
    DONE
}

/* Both sides in any order of dimensions, with and without a conversion. */
static void upload_and_download_turned(void **state)
{
    static const int orders[][5] = {{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {1, 0, 2, 4, 3}, {0, 4, 1, 2, 3}};
    static const hv_dtype from[] = {HV_F32, HV_BF16, HV_I64, HV_U8}, to[] = {HV_F32, HV_F32, HV_I64, HV_F16};

    (void)state;
    for (size_t k = 0; k < COUNT(orders) * COUNT(from); k++) {
        const int *order = orders[k % COUNT(orders)];
        hv_tensor x = rnd_of(from[k / COUNT(orders)], 5, SHAPE(2, 3, 4, 5, 6), 1, 100), tx = turned(x, order);
        hv_tensor y = raw(to[k / COUNT(orders)], 5, tx.shape, 2), r = ref(y), z = raw(x.dtype, 5, x.shape, 3);
        x.scale = tx.scale = NULL;
        ref_copy(r, tx);
        EACH(d)
            hv_tensor dy = put(d, y);
            hv_upload(d, dy, tx);
            expect(d, dy, y, r, 0);
            ref_fill(z, 0);
            hv_download(d, turned(z, order), dy);
            struct hv_err e = {0};
            assert_int_equal(hv_dev_sync(d, &e), 0);
            for (int64_t i = 0; i < 720; i++)
                assert_true(ref_at(z, i / 360, i / 120 % 3, i / 30 % 4, i / 6 % 5, i % 6)
                            == ref_at(x, i / 360, i / 120 % 3, i / 30 % 4, i / 6 % 5, i % 6));
        DONE
    }
}

/* A chain over the three lanes, held up at its start: rows with gaps go in, are copied by the computation, and come out. */
static void lanes(void **state)
{
    enum { ROWS = 300, WIDTH = 1000, GAP = 24, BYTES = ROWS * (WIDTH + GAP) };

    (void)state;
    EACH(d)
        struct hv_err e = {0};
        struct hv_dev_info info;
        uint8_t *in = hv_dev_pin(d, BYTES, &e), *back = hv_dev_pin(d, BYTES, &e);
        hv_tensor a = {.data = hv_dev_alloc(d, ROWS * WIDTH, &e), .dtype = HV_U8, .dev = (uint8_t)d->kind, .ndim = 1,
                       .shape = {ROWS * WIDTH}, .stride = {1}}, b = a;
        void *event[5];

        b.data = hv_dev_alloc(d, ROWS * WIDTH, &e);
        assert_true(in && back && a.data && b.data);
        for (int i = 0; i < 5; i++)
            assert_non_null(event[i] = hv_dev_event(d, &e));
        for (int i = 0; i < BYTES; i++)
            in[i] = (uint8_t)(128 + 127 * rig_uniform());
        memset(back, 0, BYTES);
        hv_fill(d, a, 1);
        hv_fill(d, b, 2);
        assert_int_equal(hv_dev_sync(d, &e), 0);

        hv_dev_wait(d, event[4], HV_LANE_IN);               /* never recorded: past */
        hv_dev_event_sync(d, event[4]);
        hv_dev_record(d, event[0], HV_LANE_IN);
        hv_dev_delay(d, HV_LANE_IN, 0.03);
        hv_dev_move(d, HV_LANE_IN, a.data, WIDTH, in, WIDTH + GAP, WIDTH, ROWS);
        hv_dev_record(d, event[1], HV_LANE_IN);
        hv_dev_wait(d, event[1], HV_LANE_COMPUTE);
        hv_copy(d, b, a);
        hv_dev_record(d, event[2], HV_LANE_COMPUTE);
        hv_dev_wait(d, event[2], HV_LANE_OUT);
        hv_dev_move(d, HV_LANE_OUT, back, WIDTH + GAP, b.data, WIDTH, WIDTH, ROWS);
        hv_dev_record(d, event[3], HV_LANE_OUT);
        hv_dev_event_sync(d, event[3]);
        for (int r = 0; r < ROWS; r++) {
            assert_memory_equal(back + r * (WIDTH + GAP), in + r * (WIDTH + GAP), WIDTH);
            assert_true(!back[r * (WIDTH + GAP) + WIDTH] && !back[(r + 1) * (WIDTH + GAP) - 1]);
        }
        assert_true(hv_dev_elapsed(d, event[0], event[1]) >= 0.0299 && hv_dev_elapsed(d, event[1], event[3]) >= 0);

        /* Uploads and downloads of pinned memory are past at the next sync. */
        hv_fill(d, b, 3);
        hv_upload(d, b, hv_view(in, HV_U8, 1, b.shape));
        hv_download(d, hv_view(back, HV_U8, 1, b.shape), b);
        assert_int_equal(hv_dev_sync(d, &e), 0);
        assert_memory_equal(back, in, ROWS * WIDTH);

        /* Memory that was there before. */
        uint8_t *plain = aligned_alloc(4096, (BYTES + 4095) / 4096 * 4096);
        memcpy(plain, in, BYTES);
        plain[5] ^= 1;
        if (!hv_dev_lock(d, plain, (BYTES + 4095) / 4096 * 4096)) {
            hv_dev_move(d, HV_LANE_IN, a.data, ROWS * WIDTH, plain, ROWS * WIDTH, ROWS * WIDTH, 1);
            assert_int_equal(hv_dev_sync(d, &e), 0);
            hv_dev_unlock(d, plain);
            hv_download(d, hv_view(back, HV_U8, 1, a.shape), a);
            assert_int_equal(hv_dev_sync(d, &e), 0);
            assert_memory_equal(back, plain, ROWS * WIDTH);
        }
        free(plain);

        assert_int_equal(hv_dev_info(d, &info, &e), 0);
        assert_true(info.name[0] && info.total >= info.free && info.free > 0 && (info.arch > 0) == rig.gpu);
        for (int i = 0; i < 5; i++)
            hv_dev_event_close(d, event[i]);
        hv_dev_unpin(d, in);
        hv_dev_unpin(d, back);
        hv_dev_free(d, a.data);
        hv_dev_free(d, b.data);
    DONE
}

static void fill(void **state)
{
    (void)state;
    for (size_t a = 0; a < COUNT(some); a++) {
        hv_tensor y = raw(some[a], 4, SHAPE(2, 3, 5, 70), 3), r = ref(y);
        ref_fill(r, 3);
        EACH(d)
            hv_tensor dy = put(d, y);
            hv_fill(d, dy, 3);
            expect(d, dy, y, r, 0);
        DONE
    }
}

static const hv_dtype weights[] = {HV_F32, HV_BF16, HV_F16, HV_I8, HV_F8_E4M3};

static void gather_rows(void **state)
{
    static const int64_t n[][4] = {{7, 19, 45, 2}, {1, 1, 1, 0}, {1100, 300, 24, 0}, {5, 9, 1000, 8}};  /* R, V, K, gap */
    int32_t ids[1100];

    (void)state;
    for (size_t s = 0; s < COUNT(n); s++)
        for (size_t a = 0; a < COUNT(weights); a++)
            for (int deq = 0; deq < 2; deq++) {
                hv_tensor t = rnd(weights[a], 2, SHAPE(n[s][1], n[s][2]), n[s][3] + (int64_t)(s == 0));
                hv_tensor y = out(2, SHAPE(n[s][0], n[s][2]), n[s][3]), r = ref(y);
                for (int64_t i = 0; i < n[s][0]; i++)
                    ids[i] = (int32_t)(i ? (i * 7919 + 13) % n[s][1] : n[s][1] - 1);
                t.deq_bf16 = (uint8_t)(t.scale && deq);
                ref_gather_rows(r, t, ids);
                narrow(r);
                EACH(d)
                    hv_tensor dy = put(d, y);
                    hv_gather_rows(d, dy, put(d, t), ids);
                    expect(d, dy, y, r, 0);
                DONE
            }
}

static void dequantize(void **state)
{
    static const int64_t n[][2] = {{1, 1}, {3, 7}, {19, 45}, {5, 1024}, {70, 8200}};

    (void)state;
    for (size_t s = 0; s < COUNT(n); s++)
        for (size_t a = 0; a < COUNT(weights); a++)
            for (int k = 0; k < 4; k++) {
                hv_tensor w = rnd(weights[a], 2, n[s], k & 1 ? 5 : 0), y = out(2, n[s], 0), r = ref(y);
                w.deq_bf16 = (uint8_t)(w.scale && k >> 1);
                ref_dequantize(r, w);
                narrow(r);
                EACH(d)
                    hv_tensor dy = put(d, y);
                    hv_dequantize(d, dy, put(d, w));
                    expect(d, dy, y, r, 0);
                DONE
            }
}

/* ---- elementwise ---- */

static void add(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int mode = 0; mode < 4; mode++) {      /* apart, y is a, y is b, b is one row */
            const int64_t *n = sizes[s];
            hv_tensor a = rnd(rig.act, 2, n, gap(n, 3));
            hv_tensor b = mode < 3 ? rnd(rig.act, 2, n, gap(n, 1)) : rnd(HV_F32, 1, n + 1, 0);
            hv_tensor y = mode == 1 ? a : mode == 2 ? b : out(2, n, 0), r = ref(y);
            ref_add(r, a, b);
            EACH(d)
                hv_tensor da = put(d, a), db = put(d, b), dy = mode == 1 ? da : mode == 2 ? db : put(d, y);
                hv_add(d, dy, da, db);
                expect(d, dy, y, r, 1e-7);
            DONE
        }
}

static void activation(void **state)
{
    (void)state;
    for (int act = 0; act < HV_ACTS; act++)
        for (size_t s = 0; s < COUNT(sizes); s++)
            for (int in_place = 0; in_place < 2; in_place++) {
                const int64_t *n = sizes[s];
                hv_tensor x = rnd_of(rig.act, 2, n, gap(n, 1 + act % 2), 6);
                hv_tensor y = in_place ? x : out(2, n, gap(n, act % 3)), r = ref(y);
                ref_put(x, 0, 0, 0, 0, 0, 6);       /* errors are counted against a result of about 6 */
                ref_activation(r, x, (enum hv_act)act);
                EACH(d)
                    hv_tensor dx = put(d, x), dy = in_place ? dx : put(d, y);
                    hv_activation(d, dy, dx, (enum hv_act)act);
                    expect(d, dy, y, r, 3e-7);
                DONE
            }
}

/* Every activation near each of these, to 3e-7 of |x|: both tails, the origin, and what is not a number. */
static void activation_everywhere(void **state)
{
    (void)state;
    for (int act = 0; act < HV_ACTS; act++) {
        hv_tensor x = out(2, SHAPE(1, 4001), 0), y = out(2, SHAPE(1, 4001), 0);
        const double odd[] = {0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38, 1e-6, NAN, INFINITY};
        for (int i = 0; i < 4001; i++)
            ref_put(x, 0, i, 0, 0, 0, i < 3990 ? (i - 1995) * (i % 2 ? 0.05 : 0.003) : odd[i - 3990]);
        EACH(d)
            hv_tensor dy = put(d, y);
            float got[4001];
            hv_activation(d, dy, put(d, x), (enum hv_act)act);
            hv_download(d, hv_view(got, HV_F32, 2, SHAPE(1, 4001)), dy);
            for (int i = 0; i < 3999; i++) {
                const double v = ref_at(x, 0, i, 0, 0, 0), want = ref_act(v, (enum hv_act)act);
                const double off = fabs((double)got[i] - want);
                if (!(off <= 3e-7 * fabs(v) + rig_half_ulp(rig.act, want) + 1e-37) && !isinf(want) && !isinf(v))
                    fail_msg("activation %d of %g: %g, expected %g", act, v, (double)got[i], want);
            }
            assert_true(isnan(got[3999]));
            assert_true(isinf(got[4000]) && got[4000] > 0);
        DONE
    }
}

static void swiglu(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int mode = 0; mode < 3; mode++) {      /* apart, y is gate, y is up */
            hv_tensor g = rnd_of(rig.act, 2, sizes[s], gap(sizes[s], 1), 9);
            hv_tensor u = rnd(rig.act, 2, sizes[s], gap(sizes[s], 2));
            hv_tensor y = mode == 1 ? g : mode == 2 ? u : out(2, sizes[s], 0), r = ref(y);
            ref_swiglu(r, g, u);
            EACH(d)
                hv_tensor dg = put(d, g), du = put(d, u), dy = mode == 1 ? dg : mode == 2 ? du : put(d, y);
                hv_swiglu(d, dy, dg, du);
                expect(d, dy, y, r, 3e-7);
            DONE
        }
}

static void residuals(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++) {
        hv_tensor x = rnd(rig.act, 2, sizes[s], gap(sizes[s], 2)), y = rnd(rig.act, 2, sizes[s], gap(sizes[s], 1));
        hv_tensor r = ref(x), rm = ref(x);
        hv_tensor gate = rnd(HV_F32, 1, sizes[s] + 1, 0), mask = rnd(HV_F32, 1, sizes[s], 0);
        ref_gated_add(r, x, gate, y);
        ref_masked_add(rm, x, mask, y);
        EACH(d)
            hv_tensor a = put(d, x), b = put(d, x);
            hv_gated_add(d, a, put(d, gate), put(d, y));
            hv_masked_add(d, b, put(d, mask), put(d, y));
            expect(d, a, x, r, 2e-7);
            expect(d, b, x, rm, 2e-7);
        DONE
    }
}

/* ---- matrix ---- */

/* What a GPU's product may be off, beyond a rounded f32 sum: sums are f32 of any order; a product may be rounded once
 * before bias and activation (whose slope is below 1.13); and weights may be rounded to bf16 before they are multiplied. */
static double gpu_error(hv_tensor x, hv_tensor w, int after)
{
    double sum = 0, top = 0;

    for (int64_t r = 0; r < x.shape[0] && rig.gpu; r++)
        for (int64_t n = 0; n < w.shape[0]; n++) {
            double s = 0, t = 0;
            for (int64_t k = 0; k < x.shape[1]; k++) {
                const double v = ref_at(x, r, k, 0, 0, 0) * ref_at(w, n, k, 0, 0, 0);
                s += fabs(v);
                t += v;
            }
            sum = fmax(sum, s);
            top = fmax(top, fabs(t));
        }
    const int exact = rig.act != HV_BF16 || !w.scale || w.deq_bf16;
    return 1e-6 * sum + (after ? 1.13 * rig_half_ulp(rig.act, top) : 0) + (exact ? 0 : 0x1p-8 * sum);
}

static void linear_case(int64_t rows, int64_t depth, int64_t cols, hv_dtype t, int bias, int deq, enum hv_act act)
{
    hv_tensor x = rnd(rig.act, 2, SHAPE(rows, depth), 3), w = rnd(t, 2, SHAPE(cols, depth), 5);
    hv_tensor b = bias ? rnd(HV_F32, 1, SHAPE(cols), 0) : HV_NO, y = out(2, SHAPE(rows, cols), 2), r = ref(y);

    w.deq_bf16 = (uint8_t)(w.scale && deq);
    ref_linear(r, x, w, b, act);
    const double more = gpu_error(x, w, bias || act);
    EACH(d)
        hv_tensor dy = put(d, y);
        hv_linear(d, dy, put(d, x), put(d, w), put(d, b), act);
        expect_and(d, dy, y, r, 1e-6, more);
    DONE
}

static void linear(void **state)
{
    static const int64_t n[][3] = {{1, 1, 1}, {1, 7, 5}, {1, 300, 70}, {2, 64, 129}, {4, 33, 17}, {7, 48, 40}, {9, 5, 3},
                                   {33, 100, 65}, {130, 70, 49}, {5, 1500, 20}};

    (void)state;
    for (size_t s = 0; s < COUNT(n); s++)
        for (size_t t = 0; t < COUNT(weights); t++)
            for (int k = 0; k < 4; k++)
                linear_case(n[s][0], n[s][1], n[s][2], weights[t], k & 1, k >> 1,
                            (enum hv_act)((s + t + (size_t)k) % HV_ACTS));
}

/* More than one tile in every direction. */
static void linear_tiles(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(weights); t++) {
        linear_case(400, 40, 400, weights[t], 1, 0, HV_ACT_GELU_TANH);
        linear_case(70, 300, 90, weights[t], 1, 1, HV_ACT_NONE);
        linear_case(3, 2100, 70, weights[t], 0, 1, HV_ACT_SILU);
    }
}

/* n products at once are n products: on the cpu to the bit, on a GPU to what one product is. Together in memory or not. */
static void linears_case(int64_t rows, int64_t depth, int64_t cols, int n, hv_dtype t, int bias, int apart)
{
    hv_tensor x = rnd(rig.act, 2, SHAPE(rows, depth), 8), w = rnd(t, 2, SHAPE(n * cols, depth), 0);
    hv_tensor y = out(2, SHAPE(rows, n * cols), 8);
    hv_tensor b = bias ? rnd(HV_F32, 1, SHAPE(n * cols), 0) : HV_NO, r = ref(y), single = out(2, y.shape, 8);

    w.deq_bf16 = (uint8_t)(w.scale && apart);
    ref_linear(r, x, w, b, HV_ACT_SILU);
    const double more = gpu_error(x, w, 1);
    EACH(d)
        hv_tensor dx = put(d, x), dw = put(d, w), db = put(d, b), dy = put(d, y), ds = put(d, single), ys[3], ws[3], bs[3];
        for (int i = 0; i < n; i++) {
            const int at = apart ? (n - i) % n : i;
            ys[i] = hv_cols(dy, at * cols, cols);
            ws[i] = hv_rows(dw, at * cols, cols);
            bs[i] = bias ? hv_rows(db, at * cols, cols) : HV_NO;
            hv_linear(d, hv_cols(ds, at * cols, cols), dx, ws[i], bs[i], HV_ACT_SILU);
        }
        hv_linears(d, n, ys, dx, ws, bs, HV_ACT_SILU);
        expect_and(d, dy, y, r, 1e-6, more);
        expect_and(d, ds, single, r, 1e-6, more);
        if (!rig.gpu)
            assert_memory_equal(dy.data, ds.data, (size_t)(rows * dy.stride[0]) * sizeof(float));
    DONE
}

static void linears(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(weights); t++)
        for (int n = 1; n <= 3; n++)
            for (int k = 0; k < 4; k++) {
                linears_case(33, 96, 64, n, weights[t], k & 1, k >> 1);
                linears_case(1, 70, 48, n, weights[t], k & 1, k >> 1);
            }
}

struct att {
    int64_t lq, lk, width;
    int heads, kv, step, offset, mask;
};

/* scratch: as much as the back end asks for. */
static void attention_case(const struct att *c, int in_place, double size, enum hv_attention kind)
{
    const int64_t bytes = (int64_t)hv_attention_scratch(kind, c->lq, c->lk, c->heads, c->width);
    hv_tensor q = rnd_of(rig.act, 2, SHAPE(c->lq, c->heads * c->width), 3, size);
    hv_tensor k = rnd_of(rig.act, 2, SHAPE(c->lk, c->kv * c->width), 1, size), v = rnd(rig.act, 2, k.shape, 2);
    hv_tensor m = c->mask ? rnd(HV_U8, 1, SHAPE(c->lk), 0) : HV_NO;
    hv_tensor o = in_place ? q : out(2, q.shape, 1), r = ref(o);
    struct hv_attn a = {.heads = c->heads, .kv_heads = c->kv, .scale = (float)(1 / sqrt((double)c->width)), .step = c->step,
                        .offset = c->offset, .key_mask = m};

    if (c->mask)
        ((uint8_t *)m.data)[0] = 1;                 /* every query sees a key */
    ref_attention(r, q, k, v, &a);
    EACH(d)
        hv_tensor dq = put(d, q), od = in_place ? dq : put(d, o);
        a.key_mask = put(d, m);
        a.scratch = bytes ? put(d, raw(HV_BYTES, 1, &bytes, 0)) : HV_NO;
        d->attention = kind;
        hv_attention(d, od, dq, put(d, k), put(d, v), &a);
        d->attention = HV_ATT_AUTO;
        /* Scores of 1000 have an ulp of 6e-5. In 16 bits the weights of |v| <= 1 are rounded as well. */
        expect_and(d, od, o, r, size > 10 ? 1e-3 : size > 1 ? 1e-5 : 2e-6, rig_half_ulp(rig.act, 1));
    DONE
}

static void attention(void **state)
{
    static const struct att cases[] = {
        {1, 1, 8, 1, 1, 0, 0, 0},      {5, 7, 8, 2, 2, 0, 0, 0},       {50, 300, 16, 3, 3, 0, 0, 0},
        {200, 130, 64, 2, 1, 0, 0, 0}, {49, 129, 72, 4, 2, 0, 0, 0},   {3, 400, 9, 6, 3, 0, 0, 1},
        {97, 97, 24, 2, 2, 1, 0, 0},   {130, 130, 32, 4, 1, 1, 0, 1},  {60, 70, 40, 1, 1, 1, 10, 0},
        {96, 96, 33, 2, 2, 12, 0, 0},  {300, 300, 8, 1, 1, 7, 0, 0},   {64, 5, 128, 2, 2, 0, 0, 0},
        {210, 300, 128, 1, 1, 0, 0, 1}, {30, 200, 80, 2, 2, 10, 170, 0}, {17, 16, 1, 3, 3, 0, 0, 0},
    };

    (void)state;
    for (int kind = HV_ATT_MATH; kind <= (rig.gpu ? HV_ATT_FLASH : HV_ATT_MATH); kind++) {
        for (size_t s = 0; s < COUNT(cases); s++) {
            attention_case(&cases[s], 0, 1, (enum hv_attention)kind);
            attention_case(&cases[s], 1, 3, (enum hv_attention)kind);
        }
        attention_case(&cases[4], 0, 40, (enum hv_attention)kind);      /* scores of hundreds: one key takes all */
    }
    attention_case(&cases[4], 0, 1, HV_ATT_AUTO);
}

/* The VAE's: one head, scores by the library's products. */
static void attention_of_one_wide_head(void **state)
{
    static const struct att cases[] = {
        {192, 192, 512, 1, 1, 64, 0, 0}, {70, 256, 136, 1, 1, 0, 0, 0}, {20, 33, 512, 1, 1, 0, 0, 0}, {33, 64, 512, 1, 1, 0, 0, 0},
        {10, 40, 1024, 1, 1, 0, 0, 1},   {20, 150, 1000, 1, 1, 13, 3, 1},
    };

    (void)state;
    for (size_t s = 0; s < 2 * COUNT(cases); s++) {
        attention_case(&cases[s / 2], 0, 1, s % 2 ? HV_ATT_MATH : HV_ATT_AUTO);
        attention_case(&cases[s / 2], 1, 3, s % 2 ? HV_ATT_MATH : HV_ATT_AUTO);
    }
}

/* Heads of 128 without masks, the transformer's: tiles that are full, begun, and missing. */
static void attention_of_a_transformer(void **state)
{
    static const int64_t n[][2] = {{1, 1}, {1, 300}, {300, 1}, {2, 3}, {15, 17}, {16, 16}, {31, 33}, {64, 64}, {65, 63},
                                   {127, 129}, {128, 128}, {129, 257}, {200, 100}, {256, 256}, {300, 300}, {255, 31}};

    (void)state;
    for (int kind = HV_ATT_AUTO; kind <= (rig.gpu ? HV_ATT_FLASH : HV_ATT_AUTO); kind++)
        for (size_t s = 0; s < COUNT(n); s++) {
            const struct att c = {n[s][0], n[s][1], 128, s % 2 ? 3 : 2, s % 2 ? 3 : 2, 0, 0, 0};
            attention_case(&c, (int)s % 3 == 1, s % 4 == 3 ? 3 : 1, (enum hv_attention)kind);
        }
}

/* One bad query spoils its own row and no other. */
static void attention_keeps_nan_in_its_row(void **state)
{
    (void)state;
    hv_tensor q = rnd(rig.act, 2, SHAPE(60, 32), 0), k = rnd(rig.act, 2, SHAPE(90, 32), 0), v = rnd(rig.act, 2, k.shape, 0);
    hv_tensor o = out(2, q.shape, 0), r = ref(o);
    struct hv_attn a = {.heads = 2, .kv_heads = 2, .scale = 0.25f};
    const int64_t bytes = (int64_t)hv_attention_scratch(HV_ATT_AUTO, 60, 90, 2, 16);
    ref_attention(r, q, k, v, &a);
    ref_put(q, 7, 3, 0, 0, 0, NAN);
    for (int64_t c = 0; c < 16; c++)
        ref_put(r, 7, c, 0, 0, 0, NAN);
    EACH(d)
        hv_tensor od = put(d, o);
        a.scratch = bytes ? put(d, raw(HV_BYTES, 1, &bytes, 0)) : HV_NO;
        hv_attention(d, od, put(d, q), put(d, k), put(d, v), &a);
        expect_and(d, od, o, r, 2e-6, rig_half_ulp(rig.act, 1));
    DONE
}

/* ---- norm ---- */

/* A network's vector: f32, or as stored where the device takes it. */
static hv_tensor vector(int64_t n, int k)
{
    return rnd(rig.gpu && k % 2 ? HV_BF16 : HV_F32, 1, &n, 0);
}

static void norms(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int k = 0; k < 8; k++) {               /* weight, bias, in place */
            const int in_place = k >> 2;
            hv_tensor x = rnd_of(rig.act, 2, sizes[s], gap(sizes[s], 1), 5);
            hv_tensor y = in_place ? x : out(2, sizes[s], gap(sizes[s], 2));
            hv_tensor w = vector(sizes[s][1], (int)s), scale = rnd(HV_F32, 1, sizes[s] + 1, 0);
            hv_tensor b = vector(sizes[s][1], (int)s), shift = rnd(HV_F32, 1, sizes[s] + 1, 0);
            hv_tensor rl = ref(y), rr = ref(y), rm = ref(y), wk = k & 1 ? w : HV_NO, bk = k & 2 ? b : HV_NO;
            hv_tensor stat = raw(HV_F32, 2, SHAPE(sizes[s][0], 2), 0), rs = ref(stat);
            ref_layer_norm(rl, x, wk, bk, 1e-3);
            ref_rms_norm(rr, x, wk, 1e-6);
            ref_row_stats(rs, x, 1e-3);
            ref_norm_modulate(rm, x, rs, shift, scale);
            EACH(d)
                hv_tensor dx[3], dy[3], ds = put(d, stat);
                for (int i = 0; i < 3; i++) {
                    dx[i] = put(d, x);
                    dy[i] = in_place ? dx[i] : put(d, y);
                }
                hv_layer_norm(d, dy[0], dx[0], put(d, wk), put(d, bk), 1e-3f);
                hv_rms_norm(d, dy[1], dx[1], put(d, wk), 1e-6f);
                hv_row_stats(d, ds, dx[2], 1e-3f);
                hv_norm_modulate(d, dy[2], dx[2], ds, put(d, shift), put(d, scale));
                expect(d, dy[0], y, rl, 1e-6);
                expect(d, dy[1], y, rr, 1e-6);
                expect(d, dy[2], y, rm, 1e-6);
                expect(d, ds, stat, rs, 1e-6);
            DONE
        }
}

/* A mean of a thousand standard deviations (of 26, where numbers have 8 bits): the one-pass variance would be noise. */
static void norms_far_from_zero(void **state)
{
    (void)state;
    hv_tensor x = rnd_of(rig.act, 2, SHAPE(4, 3072), 0, rig.act == HV_F32 ? 1 : 40), y = out(2, x.shape, 0);
    hv_tensor r = ref(y), rm = ref(y);
    hv_tensor stat = raw(HV_F32, 2, SHAPE(4, 2), 0), rs = ref(stat), zero = raw(HV_F32, 1, SHAPE(3072), 0);
    ref_fill(zero, 0);
    for (int64_t i = 0; i < 4 * 3072; i++)
        ref_put(x, i / 3072, i % 3072, 0, 0, 0, ref_at(x, i / 3072, i % 3072, 0, 0, 0) + 600);
    ref_layer_norm(r, x, HV_NO, HV_NO, 1e-6);
    ref_row_stats(rs, x, 1e-6);
    ref_norm_modulate(rm, x, rs, zero, zero);
    EACH(d)
        hv_tensor dy = put(d, y), dm = put(d, y), ds = put(d, stat), dz = put(d, zero);
        hv_layer_norm(d, dy, put(d, x), HV_NO, HV_NO, 1e-6f);
        hv_row_stats(d, ds, put(d, x), 1e-6f);
        hv_norm_modulate(d, dm, put(d, x), ds, dz, dz);
        expect(d, dy, y, r, 3e-5);
        expect(d, ds, stat, rs, 1e-7);
        expect(d, dm, y, rm, 6e-5);             /* the mean is an f32 here: 3e-5 of 600 are an ulp */
    DONE
}

static void qk_norm_rope_case(int64_t rows, int heads, const int64_t axes[3], const int64_t grid[3], int64_t first,
                              int norm, int64_t between)
{
    const int64_t width = 2 * (axes[0] + axes[1] + axes[2]);
    struct hv_rope p = {.grid = {grid[0], grid[1], grid[2]}, .first = first};
    hv_tensor x = rnd_of(rig.act, 2, SHAPE(rows, heads * width), between, 4), w = norm ? vector(width, norm) : HV_NO;
    hv_tensor r = ref(x), plain = ref(x);

    for (int a = 0; a < 3; a++) {
        p.cos[a] = rnd(HV_F32, 2, SHAPE(grid[a] + a, axes[a]), a);
        p.sin[a] = rnd(HV_F32, 2, SHAPE(grid[a] + a, axes[a]), a);
    }
    ref_qk_norm_rope(r, x, heads, w, 1e-6, &p);
    ref_qk_norm_rope(plain, x, heads, w, 1e-6, NULL);
    EACH(d)
        struct hv_rope dp = p;
        hv_tensor a = put(d, x), b = put(d, x);
        for (int i = 0; i < 3; i++) {
            dp.cos[i] = put(d, p.cos[i]);
            dp.sin[i] = put(d, p.sin[i]);
        }
        hv_qk_norm_rope(d, a, heads, put(d, w), 1e-6f, &dp);
        hv_qk_norm_rope(d, b, heads, put(d, w), 1e-6f, NULL);
        expect(d, a, x, r, 1e-6);
        expect(d, b, x, plain, 1e-6);
    DONE
}

static void qk_norm_rope(void **state)
{
    (void)state;
    for (int norm = 0; norm < 3; norm++) {
        qk_norm_rope_case(30, 2, SHAPE(8, 28, 28), SHAPE(3, 4, 5), 11, norm, 3);
        qk_norm_rope_case(60, 24, SHAPE(8, 28, 28), SHAPE(3, 4, 5), 0, norm, 128);
        qk_norm_rope_case(59, 3, SHAPE(8, 28, 28), SHAPE(3, 4, 5), 1, norm, 0);
        qk_norm_rope_case(60, 3, SHAPE(2, 3, 3), SHAPE(3, 4, 5), 0, norm, 3);
        qk_norm_rope_case(1, 1, SHAPE(1, 1, 1), SHAPE(2, 2, 2), 7, norm, 3);
        qk_norm_rope_case(14, 5, SHAPE(4, 5, 7), SHAPE(2, 7, 1), 0, norm, 3);
        qk_norm_rope_case(14, 2, SHAPE(40, 50, 70), SHAPE(2, 7, 1), 0, norm, 3);
    }
}

static void rope_half(void **state)
{
    static const int64_t n[][3] = {{1, 1, 2}, {7, 3, 10}, {33, 4, 64}, {20, 32, 128}};

    (void)state;
    for (size_t s = 0; s < COUNT(n); s++) {
        hv_tensor x = rnd(rig.act, 2, SHAPE(n[s][0], n[s][1] * n[s][2]), 2), r = ref(x);
        hv_tensor c = rnd(HV_F32, 2, SHAPE(n[s][0], n[s][2] / 2), 1), sn = rnd(HV_F32, 2, SHAPE(n[s][0], n[s][2] / 2), 1);
        ref_rope_half(r, x, (int)n[s][1], c, sn);
        EACH(d)
            hv_tensor dx = put(d, x);
            hv_rope_half(d, dx, (int)n[s][1], put(d, c), put(d, sn));
            expect(d, dx, x, r, 3e-7);
        DONE
    }
}

/* ---- what is refused ---- */

static void wrong_shapes_are_a_fault(void **state)
{
    struct hv_dev *d = NULL;
    struct hv_err e = {0};
    float a[12] = {0}, b[12] = {0};

    (void)state;
    assert_int_equal(hv_dev_open(&d, "cpu", 1, &e), 0);
    hv_linear(d, hv_view(a, HV_F32, 2, SHAPE(2, 3)), hv_view(b, HV_F32, 2, SHAPE(2, 4)), hv_view(b, HV_F32, 2, SHAPE(3, 3)),
              HV_NO, HV_ACT_NONE);
    assert_int_equal(hv_dev_sync(d, &e), HV_EDEVICE);
    assert_non_null(strstr(e.msg, "linear"));
    assert_non_null(strstr(e.msg, "[2,4]"));
    hv_fill(d, hv_view(a, HV_F32, 1, SHAPE(12)), 5);        /* after a fault nothing is computed */
    assert_true(a[0] < 1);
    hv_dev_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(copy_converts), TEST(copy_turns), TEST(copy_keeps_wide_integers),
        TEST(upload_and_download), TEST(upload_and_download_turned), TEST(lanes), TEST(fill), TEST(gather_rows),
        TEST(dequantize), TEST(add), TEST(activation), TEST(activation_everywhere), TEST(swiglu), TEST(residuals),
        TEST(linear), TEST(linear_tiles), TEST(linears), TEST(attention), TEST(attention_of_one_wide_head), TEST(attention_of_a_transformer),
        TEST(attention_keeps_nan_in_its_row), TEST(norms), TEST(norms_far_from_zero), TEST(qk_norm_rope), TEST(rope_half),
        TEST(wrong_shapes_are_a_fault),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    cmocka_set_test_filter(getenv("HV_TEST_ONLY"));
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
