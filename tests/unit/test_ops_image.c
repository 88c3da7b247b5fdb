/* Operations on images and video: each against its definition, over odd sizes, strides, dtypes and in place. */
#include "tests/unit/rig.h"

#define SHAPE(...) (int64_t[]){__VA_ARGS__}
#define COUNT(a) (sizeof(a) / sizeof *(a))

struct conv {
    int64_t t, h, w, ci, co, k[3];
    int stride[3], up[3], depthwise;
};

static const struct conv convs[] = {
    {1, 1, 1, 1, 1, {1, 1, 1}, {0}, {0}, 0},          {1, 5, 7, 3, 4, {1, 3, 3}, {0}, {0}, 0},
    {5, 6, 5, 4, 6, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, 0}, {4, 9, 10, 16, 33, {1, 1, 1}, {0}, {0}, 0},
    {5, 8, 9, 5, 7, {3, 3, 3}, {1, 2, 2}, {0}, 0},    {7, 6, 6, 4, 4, {3, 3, 3}, {2, 2, 2}, {0}, 0},
    {4, 5, 6, 4, 3, {3, 3, 3}, {0}, {2, 2, 2}, 0},    {5, 4, 3, 8, 5, {3, 3, 3}, {0}, {1, 2, 2}, 0},
    {2, 1, 1, 3, 2, {3, 3, 3}, {0}, {2, 2, 2}, 0},    {1, 12, 13, 10, 10, {1, 3, 3}, {1, 2, 2}, {0}, 1},
    {1, 12, 13, 10, 10, {1, 5, 5}, {0}, {0}, 1},      {1, 16, 11, 3, 8, {1, 6, 6}, {1, 2, 2}, {0}, 0},
    {1, 21, 17, 3, 24, {1, 3, 3}, {1, 2, 2}, {0}, 0}, {3, 9, 19, 40, 48, {3, 3, 3}, {0}, {0}, 0},
    {3, 17, 9, 32, 20, {3, 3, 3}, {0}, {2, 2, 2}, 0}, {3, 2, 2, 20, 70, {3, 3, 3}, {0}, {0}, 0},
    {3, 9, 7, 48, 80, {3, 3, 3}, {0}, {0}, 0},
    /* for tensor cores: whole tiles and rests of pixels, inputs and outputs; each axis doubled; strides */
    {4, 9, 15, 64, 128, {3, 3, 3}, {0}, {0}, 0},      {3, 17, 16, 72, 136, {3, 3, 3}, {0}, {0}, 0},
    {1, 13, 21, 128, 64, {1, 1, 1}, {0}, {0}, 0},     {3, 7, 6, 64, 96, {3, 3, 3}, {0}, {2, 2, 2}, 0},
    {4, 5, 9, 32, 130, {3, 3, 3}, {0}, {1, 2, 2}, 0}, {5, 12, 10, 64, 64, {3, 3, 3}, {2, 2, 2}, {0}, 0},
    {3, 11, 9, 64, 3, {3, 3, 3}, {0}, {0}, 0},        {2, 9, 8, 32, 40, {3, 3, 3}, {0}, {2, 1, 2}, 0},
    {4, 8, 16, 64, 128, {3, 3, 3}, {0}, {0}, 0},      {3, 16, 24, 72, 40, {3, 3, 3}, {0}, {0}, 0},       /* boxes of 8 by 8 */
    {4, 8, 8, 128, 136, {3, 3, 3}, {0}, {0}, 0},      {1, 16, 40, 136, 64, {1, 1, 1}, {0}, {0}, 0},
    {3, 8, 16, 64, 20, {3, 3, 3}, {0}, {2, 2, 2}, 0}, {3, 16, 8, 32, 64, {3, 3, 3}, {0}, {1, 2, 2}, 0},
    {4, 24, 16, 72, 3, {3, 3, 3}, {0}, {0}, 0},       {3, 8, 8, 40, 8, {3, 3, 3}, {0}, {0}, 0},
};

static int one_or(int v)
{
    return v ? v : 1;
}

static void conv_case(const struct conv *c, hv_dtype t, enum hv_pad pad, enum hv_act act, int residual, int bias,
                      int64_t gap)
{
    struct hv_conv p = {.pad = pad, .act = act, .depthwise = c->depthwise};
    const int64_t in[3] = {c->t, c->h, c->w};
    int64_t size[4] = {0, 0, 0, c->co};

    for (int a = 0; a < 3; a++) {
        p.stride[a] = c->stride[a];
        p.up[a] = c->up[a];
        const int s = one_or(c->stride[a]), up = one_or(c->up[a]);
        size[a] = a ? (in[a] * up + s - 1) / s : up == 2 ? 2 * (c->t - 1) : (c->t - c->k[0]) / s + 1;
    }
    hv_tensor x = rnd(rig.act, 4, SHAPE(c->t, c->h, c->w, c->ci), gap);
    hv_tensor w = rnd(t, 5, SHAPE(c->co, c->depthwise ? 1 : c->ci, c->k[0], c->k[1], c->k[2]), 0);
    hv_tensor b = bias ? rnd(HV_F32, 1, SHAPE(c->co), 0) : HV_NO, y = out(4, size, 2), r = ref(y);
    hv_tensor more = residual ? rnd(rig.act, 4, size, 2) : HV_NO, into = residual == 2 ? more : y;
    /* Tensor cores take weights, summed ones too, in the dtype of x: so many errors of half an ulp add up at random. */
    const int doubled = p.up[0] == 2 || p.up[1] == 2 || p.up[2] == 2;
    const double terms = (double)(c->ci * c->k[0] * c->k[1] * c->k[2]);
    const double more_error = rig.gpu && (doubled || t != rig.act) ? 0.15 * sqrt(terms) * rig_half_ulp(rig.act, 6) : 0;
    p.residual = more;
    ref_conv(r, x, w, b, &p);
    EACH(d)
        hv_tensor dm = put(d, more), dy = residual == 2 ? dm : put(d, y);
        p.residual = dm;
        hv_conv(d, dy, put(d, x), put(d, w), put(d, b), &p);
        expect_and(d, dy, into, r, 4e-6, more_error);
    DONE
}

static void conv(void **state)
{
    static const hv_dtype types[] = {HV_F32, HV_F16, HV_BF16};

    (void)state;
    for (size_t i = 0; i < COUNT(convs); i++)
        for (size_t k = 0; k < 6; k++) {
            if (convs[i].ci * convs[i].co > 2000 && k % 3 != i % 3)     /* the definition is slow: one dtype each, in turn */
                continue;
            conv_case(&convs[i], types[k % 3], k < 3 ? HV_PAD_REPLICATE : HV_PAD_ZERO, (enum hv_act)((i + k) % HV_ACTS),
                      (int)((i + k) % 3), (int)(k & 1), k % 2 ? 3 : 8);
        }
}

/* More tiles than a GPU has multiprocessors, by some rounds: what is carried from one to the next. */
static void conv_of_many_tiles(void **state)
{
    static const struct conv large[] = {{1, 128, 160, 32, 136, {1, 3, 3}, {0}, {0}, 0}, {1, 240, 320, 32, 24, {1, 3, 3}, {0}, {0}, 0},
                                        {1, 400, 240, 64, 24, {1, 1, 1}, {0}, {0}, 0}, {2, 64, 96, 32, 24, {3, 3, 3}, {0}, {2, 2, 2}, 0},
                                        {1, 480, 400, 32, 3, {1, 3, 3}, {0}, {0}, 0}};

    (void)state;
    for (size_t i = 0; i < COUNT(large) && rig.gpu && rig.act != HV_F32 && !getenv("HV_TEST_SMALL"); i++)
        conv_case(&large[i], rig.act, HV_PAD_REPLICATE, HV_ACT_NONE, (int)i % 3, 1, 8);
}

static void groups_case(const int64_t *n, int64_t groups, int64_t gap, int in_place, enum hv_act act)
{
    const double count = (double)(n[0] * n[1] * n[2] * n[3] / groups);
    hv_tensor x = rnd_of(rig.act, 4, n, gap, 3), w = rnd(HV_F32, 1, n + 3, 0), b = rnd(HV_F32, 1, n + 3, 0);
    hv_tensor y = in_place ? x : out(4, n, 1), r = ref(y), sums = rnd(HV_F64, 2, SHAPE(groups, 2), 0), rs = ref(sums);
    hv_tensor whole = rnd(HV_F64, 2, SHAPE(groups, 2), 0);

    ref_copy(rs, sums);
    ref_group_sums(rs, x);
    ref_fill(whole, 0);
    ref_group_sums(whole, x);
    ref_group_norm(r, x, whole, count, w, b, 1e-6, act);
    EACH(d)
        hv_tensor ds = put(d, sums), dx = put(d, x), dy = in_place ? dx : put(d, y);
        hv_group_sums(d, ds, dx);
        hv_group_norm(d, dy, dx, put(d, whole), count, put(d, w), put(d, b), 1e-6f, act);
        expect(d, ds, sums, rs, 1e-7);
        expect(d, dy, y, r, 2e-6);
    DONE
}

static void groups(void **state)
{
    (void)state;
    for (int in_place = 0; in_place < 2; in_place++) {
        groups_case(SHAPE(1, 1, 2, 4), 2, 0, in_place, HV_ACT_NONE);
        groups_case(SHAPE(3, 5, 7, 32), 32, 3, in_place, HV_ACT_SILU);
        groups_case(SHAPE(2, 9, 13, 64), 32, 0, in_place, HV_ACT_SILU);
        groups_case(SHAPE(3, 20, 70, 128), 32, 8, in_place, HV_ACT_SILU);
        groups_case(SHAPE(2, 2, 3, 1500), 1, 0, in_place, HV_ACT_GELU_ERF);
        groups_case(SHAPE(1, 40, 33, 30), 3, 1, in_place, HV_ACT_NONE);
    }
}

static void max_pool(void **state)
{
    static const int cases[][4] = {{2, 2, 0, 0}, {3, 2, 1, 0}, {5, 1, 2, 0}, {3, 2, 0, 1}, {13, 1, 6, 0}, {3, 2, 1, 1}};

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const int k = cases[i][0], s = cases[i][1], pad = cases[i][2], up = cases[i][3] ? s - 1 : 0;
        hv_tensor x = rnd(rig.act, 3, SHAPE(14, 19, 6), 2), r;
        hv_tensor y = out(3, SHAPE((14 + 2 * pad - k + up) / s + 1, (19 + 2 * pad - k + up) / s + 1, 6), 1);
        r = ref(y);
        ref_max_pool(r, x, k, s, pad, cases[i][3]);
        EACH(d)
            hv_tensor dy = put(d, y);
            hv_max_pool(d, dy, put(d, x), k, s, pad, cases[i][3]);
            expect(d, dy, y, r, 0);
        DONE
    }
}

static void upsample2(void **state)
{
    (void)state;
    hv_tensor x = rnd(rig.act, 3, SHAPE(5, 7, 9), 2), y = out(3, SHAPE(10, 14, 9), 1), r = ref(y);
    ref_upsample2(r, x);
    EACH(d)
        hv_tensor dy = put(d, y);
        hv_upsample2(d, dy, put(d, x));
        expect(d, dy, y, r, 0);
    DONE
}

/* Planes in f32 too, where rows are narrower: they are rounded on the way. */
static void patches(void **state)
{
    static const int patch[][3] = {{1, 2, 2}, {1, 1, 1}, {2, 3, 4}, {1, 14, 14}};

    (void)state;
    for (size_t i = 0; i < COUNT(patch) * 2; i++) {
        const int *p = patch[i / 2];
        const hv_dtype t = i % 2 ? HV_F32 : rig.act;
        hv_tensor x = rnd(t, 4, SHAPE(5, 2 * p[0], 3 * p[1], 4 * p[2]), 2);
        hv_tensor y = out(2, SHAPE(24, 5 * p[0] * p[1] * p[2]), 3), rows = rnd(rig.act, 2, y.shape, 1);
        hv_tensor z = raw(t, 4, x.shape, 1), r = ref(y), rz = ref(z);
        ref_patchify(r, x, p);
        narrow(r);
        ref_unpatchify(rz, rows, p);
        EACH(d)
            hv_tensor dy = put(d, y), dz = put(d, z);
            hv_patchify(d, dy, put(d, x), p);
            hv_unpatchify(d, dz, put(d, rows), p);
            expect(d, dy, y, r, 0);
            expect(d, dz, z, rz, 0);
        DONE
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(conv), TEST(conv_of_many_tiles), TEST(groups), TEST(max_pool), TEST(upsample2),
        TEST(patches),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    cmocka_set_test_filter(getenv("HV_TEST_ONLY"));
    return cmocka_run_group_tests(tests, rig_open, rig_close);
}
