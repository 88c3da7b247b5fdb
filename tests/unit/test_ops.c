/* Operations on rows: each against its definition, over odd sizes, strides, dtypes and in place. */
#include "tests/unit/rig.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define COUNT(a) (sizeof(a) / sizeof *(a))

static const int64_t sizes[][2] = {{1, 1}, {1, 7}, {3, 16}, {5, 33}, {17, 64}, {2, 1000}, {40, 257}, {1, 20000}};

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
            expect(d, dy, y, r, k % 2 ? 1.0 / 256 : 0);
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
        expect(d, dy, y, r, 0);
        float back[9 * 31];
        hv_download(d, hv_view(back, HV_F32, 2, SHAPE(9, 31)), hv_index(dy, 2));
        for (int64_t i = 0; i < 9 * 31; i++)
            assert_true((double)back[i] == ref_at(x, 2, i / 31, i % 31, 0, 0));
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

static void gather_rows(void **state)
{
    static const hv_dtype types[] = {HV_F32, HV_BF16, HV_F16, HV_I8, HV_F8_E4M3};
    const int32_t ids[] = {4, 0, 0, 18, 7, 3, 18};

    (void)state;
    for (size_t a = 0; a < COUNT(types); a++)
        for (int deq = 0; deq < 2; deq++) {
            hv_tensor t = rnd(types[a], 2, SHAPE(19, 45), 3), y = out(2, SHAPE(7, 45), 2), r = ref(y);
            t.deq_bf16 = (uint8_t)(t.scale && deq);
            ref_gather_rows(r, t, ids);
            EACH(d)
                hv_tensor dy = put(d, y);
                hv_gather_rows(d, dy, put(d, t), ids);
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
            hv_tensor a = rnd(rig.act, 2, n, 3), b = mode < 3 ? rnd(rig.act, 2, n, 1) : rnd(HV_F32, 1, n + 1, 0);
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
                hv_tensor x = rnd_of(rig.act, 2, sizes[s], 1 + act % 2, 6), y = in_place ? x : out(2, sizes[s], act % 3), r = ref(y);
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
        float *p = x.data;
        for (int i = 0; i < 3990; i++)
            p[i] = (float)((i - 1995) * (i % 2 ? 0.05 : 0.003));
        const float odd[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e30f, -1e30f, 3e38f, -3e38f, 1e-6f, NAN, INFINITY};
        memcpy(p + 3990, odd, sizeof odd);
        EACH(d)
            hv_tensor dy = put(d, y);
            float got[4001];
            hv_activation(d, dy, put(d, x), (enum hv_act)act);
            hv_download(d, hv_view(got, HV_F32, 2, SHAPE(1, 4001)), dy);
            for (int i = 0; i < 3999; i++) {
                const double want = ref_act((double)p[i], (enum hv_act)act), off = fabs((double)got[i] - want);
                if (!(off <= 3e-7 * fabs((double)p[i]) + 1e-37) && !isinf(want))
                    fail_msg("activation %d of %g: %g, expected %g", act, (double)p[i], (double)got[i], want);
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
            hv_tensor g = rnd_of(rig.act, 2, sizes[s], 1, 9), u = rnd(rig.act, 2, sizes[s], 2);
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
        hv_tensor x = rnd(rig.act, 2, sizes[s], 2), y = rnd(rig.act, 2, sizes[s], 1), r = ref(x), rm = ref(x);
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

static const hv_dtype weights[] = {HV_F32, HV_BF16, HV_F16, HV_I8, HV_F8_E4M3};

static void linear_case(int64_t rows, int64_t depth, int64_t cols, hv_dtype t, int bias, int deq, enum hv_act act)
{
    hv_tensor x = rnd(rig.act, 2, SHAPE(rows, depth), 3), w = rnd(t, 2, SHAPE(cols, depth), 5);
    hv_tensor b = bias ? rnd(HV_F32, 1, SHAPE(cols), 0) : HV_NO, y = out(2, SHAPE(rows, cols), 2), r = ref(y);

    w.deq_bf16 = (uint8_t)(w.scale && deq);
    ref_linear(r, x, w, b, act);
    EACH(d)
        hv_tensor dy = put(d, y);
        hv_linear(d, dy, put(d, x), put(d, w), put(d, b), act);
        expect(d, dy, y, r, 1e-6);
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
                linear_case(n[s][0], n[s][1], n[s][2], weights[t], k & 1, k >> 1, (enum hv_act)((s + t + (size_t)k) % HV_ACTS));
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

struct att {
    int64_t lq, lk, width;
    int heads, kv, step, offset, mask;
};

static void attention_case(const struct att *c, int in_place, double size)
{
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
        hv_attention(d, od, dq, put(d, k), put(d, v), &a);
        expect(d, od, o, r, size > 10 ? 1e-3 : size > 1 ? 1e-5 : 2e-6);      /* scores of 1000 have an ulp of 6e-5 */
    DONE
}

static void attention(void **state)
{
    static const struct att cases[] = {
        {1, 1, 8, 1, 1, 0, 0, 0},      {5, 7, 8, 2, 2, 0, 0, 0},       {50, 300, 16, 3, 3, 0, 0, 0},
        {200, 130, 64, 2, 1, 0, 0, 0}, {49, 129, 72, 4, 2, 0, 0, 0},   {3, 400, 9, 6, 3, 0, 0, 1},
        {97, 97, 24, 2, 2, 1, 0, 0},   {130, 130, 32, 4, 1, 1, 0, 1},  {60, 70, 40, 1, 1, 1, 10, 0},
        {96, 96, 33, 2, 2, 12, 0, 0},  {300, 300, 8, 1, 1, 7, 0, 0},   {20, 33, 512, 1, 1, 0, 0, 0},
        {10, 40, 1024, 1, 1, 0, 0, 1}, {64, 5, 128, 2, 2, 0, 0, 0},    {210, 300, 128, 1, 1, 0, 0, 1},
        {30, 200, 80, 2, 2, 10, 170, 0}, {17, 16, 1, 3, 3, 0, 0, 0},   {20, 150, 1000, 1, 1, 13, 3, 1},
    };

    (void)state;
    for (size_t s = 0; s < COUNT(cases); s++) {
        attention_case(&cases[s], 0, 1);
        attention_case(&cases[s], 1, 3);
    }
    attention_case(&cases[4], 0, 40);               /* scores of hundreds: one key takes all */
}

/* One bad query spoils its own row and no other. */
static void attention_keeps_nan_in_its_row(void **state)
{
    (void)state;
    hv_tensor q = rnd(rig.act, 2, SHAPE(60, 32), 0), k = rnd(rig.act, 2, SHAPE(90, 32), 0), v = rnd(rig.act, 2, k.shape, 0);
    hv_tensor o = out(2, q.shape, 0), r = ref(o);
    struct hv_attn a = {.heads = 2, .kv_heads = 2, .scale = 0.25f};
    ref_attention(r, q, k, v, &a);
    ref_put(q, 7, 3, 0, 0, 0, NAN);
    for (int64_t c = 0; c < 16; c++)
        ref_put(r, 7, c, 0, 0, 0, NAN);
    EACH(d)
        hv_tensor od = put(d, o);
        hv_attention(d, od, put(d, q), put(d, k), put(d, v), &a);
        expect(d, od, o, r, 2e-6);
    DONE
}

/* ---- norm ---- */

static void norms(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(sizes); s++)
        for (int k = 0; k < 8; k++) {               /* weight, bias, in place */
            const int in_place = k >> 2;
            hv_tensor x = rnd_of(rig.act, 2, sizes[s], 1, 5), w = rnd(HV_F32, 1, sizes[s] + 1, 0);
            hv_tensor b = rnd(HV_F32, 1, sizes[s] + 1, 0), y = in_place ? x : out(2, sizes[s], 2);
            hv_tensor rl = ref(y), rr = ref(y), rm = ref(y), wk = k & 1 ? w : HV_NO, bk = k & 2 ? b : HV_NO;
            ref_layer_norm(rl, x, wk, bk, 1e-3);
            ref_rms_norm(rr, x, wk, 1e-6);
            ref_norm_modulate(rm, x, b, w, 1e-3);
            EACH(d)
                hv_tensor dx[3], dy[3];
                for (int i = 0; i < 3; i++) {
                    dx[i] = put(d, x);
                    dy[i] = in_place ? dx[i] : put(d, y);
                }
                hv_layer_norm(d, dy[0], dx[0], put(d, wk), put(d, bk), 1e-3f);
                hv_rms_norm(d, dy[1], dx[1], put(d, wk), 1e-6f);
                hv_norm_modulate(d, dy[2], dx[2], put(d, b), put(d, w), 1e-3f);
                expect(d, dy[0], y, rl, 1e-6);
                expect(d, dy[1], y, rr, 1e-6);
                expect(d, dy[2], y, rm, 1e-6);
            DONE
        }
}

/* A mean of a thousand standard deviations: the one-pass variance would be noise. */
static void layer_norm_far_from_zero(void **state)
{
    (void)state;
    hv_tensor x = rnd(rig.act, 2, SHAPE(4, 3072), 0), y = out(2, x.shape, 0), r = ref(y);
    for (int64_t i = 0; i < 4 * 3072; i++)
        ref_put(x, i / 3072, i % 3072, 0, 0, 0, ref_at(x, i / 3072, i % 3072, 0, 0, 0) + 600);
    ref_layer_norm(r, x, HV_NO, HV_NO, 1e-6);
    EACH(d)
        hv_tensor dy = put(d, y);
        hv_layer_norm(d, dy, put(d, x), HV_NO, HV_NO, 1e-6f);
        expect(d, dy, y, r, 3e-5);
    DONE
}

static void qk_norm_rope_case(int64_t rows, int heads, const int64_t axes[3], const int64_t grid[3], int64_t first, int norm)
{
    const int64_t width = 2 * (axes[0] + axes[1] + axes[2]);
    struct hv_rope p = {.grid = {grid[0], grid[1], grid[2]}, .first = first};
    hv_tensor x = rnd_of(rig.act, 2, SHAPE(rows, heads * width), 3, 4), w = norm ? rnd(HV_F32, 1, SHAPE(width), 0) : HV_NO;
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
    for (int norm = 0; norm < 2; norm++) {
        qk_norm_rope_case(30, 2, SHAPE(8, 28, 28), SHAPE(3, 4, 5), 11, norm);
        qk_norm_rope_case(60, 3, SHAPE(2, 3, 3), SHAPE(3, 4, 5), 0, norm);
        qk_norm_rope_case(1, 1, SHAPE(1, 1, 1), SHAPE(2, 2, 2), 7, norm);
        qk_norm_rope_case(14, 5, SHAPE(4, 5, 7), SHAPE(2, 7, 1), 0, norm);
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
        TEST(upload_and_download), TEST(fill), TEST(gather_rows), TEST(add),
        TEST(activation), TEST(activation_everywhere), TEST(swiglu),
        TEST(residuals), TEST(linear), TEST(linear_tiles), TEST(attention),
        TEST(attention_keeps_nan_in_its_row), TEST(norms), TEST(layer_norm_far_from_zero),
        TEST(qk_norm_rope), TEST(rope_half), TEST(wrong_shapes_are_a_fault),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
