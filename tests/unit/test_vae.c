/* The VAE: config, plan, and what must not change its result. */
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "mem/synth.h"
#include "model/vae.h"

static const struct vae_config small = {
    .channels = {16, 16, 24, 32}, .layers = 1, .latent = 4, .groups = 8, .in = 3, .out = 3, .sample_size = 64, .sample_tsize = 16,
    .scaling_factor = 0.5, .mid_attention = 1, .mid_causal = 1,
};

static const struct vae_config full = {
    .channels = {128, 256, 512, 512}, .layers = 2, .latent = 16, .groups = 32, .in = 3, .out = 3, .sample_size = 256,
    .sample_tsize = 64, .scaling_factor = 0.476986, .mid_attention = 1, .mid_causal = 1,
};

/* ---- config ---- */

static int parse(struct vae_config *c, const char *text, struct hv_err *e)
{
    json_t *json = NULL;
    int rc = hv_json_parse(&json, text, strlen(text), 8, e);

    memset(e, 0, sizeof *e);
    if (!rc)
        rc = vae_config_parse(c, json, e);
    json_decref(json);
    return rc;
}

static void config(void **state)
{
    struct vae_config c;
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(parse(&c, "{\"block_out_channels\": [128,256,512,512], \"layers_per_block\": 2, \"latent_channels\": 16,"
                               "\"scaling_factor\": 0.476986, \"sample_size\": 256, \"mid_block_causal_attn\": true,"
                               "\"shift_factor\": null, \"_class_name\": \"x\", \"up_block_types\": []}", &e), 0);
    assert_int_equal(c.channels[3], 512);
    assert_int_equal(c.layers, 2);
    assert_int_equal(c.groups, 32);
    assert_int_equal(c.sample_tsize, 64);
    assert_true(c.mid_causal && c.mid_attention && c.shift_factor == 0);
    static const struct { const char *text; int code; } bad[] = {
        {"{\"block_out_channels\": [64,64,64]}", HV_EUNSUP},
        {"{\"block_out_channels\": [64,64,64,64,64]}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,72]}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,-64]}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,64], \"time_compression_ratio\": 8}", HV_EUNSUP},
        {"{\"block_out_channels\": [64,64,64,64], \"disable_causal_conv\": true}", HV_EUNSUP},
        {"{\"block_out_channels\": [64,64,64,64], \"act_fn\": \"relu\"}", HV_EUNSUP},
        {"{\"block_out_channels\": [64,64,64,64], \"sample_size\": 48}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,64], \"scaling_factor\": 0}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,64], \"latent_channels\": \"16\"}", HV_EINPUT},
        {"{\"block_out_channels\": [64,64,64,64], \"mid_block_causal_attn\": 1}", HV_EINPUT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int rc = parse(&c, bad[i].text, &e);
        if (rc != bad[i].code || !e.msg[0])
            fail_msg("%s: %d, expected %d", bad[i].text, rc, bad[i].code);
    }
}

static void weights_of_the_published_size(void **state)
{
    struct hv_wlist all = {0}, half = {0};
    int64_t count = 0;

    (void)state;
    vae_weights(&all, &full);
    for (int i = 0; i < all.n; i++)
        count += hv_shape_count(all.w[i].ndim, all.w[i].shape);
    assert_int_equal(all.n, 248);
    assert_int_equal(count, 246478803);
    vae_part_weights(&half, &full, VAE_DECODER);
    count = 0;
    for (int i = 0; i < half.n; i++)
        count += hv_shape_count(half.w[i].ndim, half.w[i].shape);
    assert_int_equal(count, 146136067 + 272);
    hv_wlist_close(&all);
    hv_wlist_close(&half);
}

/* ---- forward ---- */

/* y = one part of the small network at T x H x W; a fresh device with so many threads. */
static float *run_as(struct vae_opts o, const struct vae_config *c, const int64_t n[3], const float *x, int threads, int64_t shape[4])
{
    const enum vae_part part = o.part;
    const int decode = part == VAE_DECODER;
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *d = NULL;
    struct vae *v = NULL;
    struct hv_err e = {0};

    vae_part_weights(&list, c, part);
    assert_int_equal(hv_dev_open(&d, "cpu", threads, &e), 0);
    assert_int_equal(hv_weights_open_synth(&w, d, &list, &(struct hv_synth_opts){.seed = 3}, &e), 0);
    assert_int_equal(vae_open(&v, d, w, c, &o, &e), 0);
    if (decode)
        shape[0] = 4 * n[0] - 3, shape[1] = 8 * n[1], shape[2] = 8 * n[2];
    else
        vae_encoded_size(n[0], n[1], n[2], shape);
    shape[3] = decode ? c->out : 2 * c->latent;
    float *y = malloc((size_t)hv_shape_count(4, shape) * sizeof *y);
    const hv_tensor in = hv_view(x, HV_F32, 4, (int64_t[]){n[0], n[1], n[2], decode ? c->latent : c->in});
    (decode ? vae_decode : vae_encode)(v, hv_view(y, HV_F32, 4, shape), in);
    if (hv_dev_sync(d, &e))
        fail_msg("%s", e.msg);
    vae_close(v);
    hv_weights_close(w);
    hv_wlist_close(&list);
    hv_dev_close(d);
    return y;
}

static float *run(enum vae_part part, const struct vae_config *c, const int64_t n[3], const float *x, int64_t cells, int threads,
                  int64_t shape[4])
{
    return run_as((struct vae_opts){.part = part, .t = n[0], .h = n[1], .w = n[2], .cells = cells}, c, n, x, threads, shape);
}

static float *noise(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);

    hv_synth_activation(x, "x", 9, (size_t)n);
    return x;
}

static void windows_and_threads_do_not_matter(void **state)
{
    static const struct { enum vae_part part; int64_t n[3]; } cases[] = {
        {VAE_DECODER, {4, 3, 2}}, {VAE_DECODER, {1, 2, 3}}, {VAE_ENCODER, {9, 16, 24}}, {VAE_ENCODER, {6, 9, 13}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t *n = cases[i].n;
        int64_t shape[4];
        float *x = noise(n[0] * n[1] * n[2] * 4), *want = run(cases[i].part, &small, n, x, 1 << 20, 1, shape);
        const size_t bytes = (size_t)hv_shape_count(4, shape) * sizeof *want;
        static const int64_t cells[] = {1, 700, 1500, 1 << 20};
        for (size_t k = 0; k < sizeof cells / sizeof *cells; k++) {
            float *got = run(cases[i].part, &small, n, x, cells[k], 1 + (int)k, shape);
            if (memcmp(got, want, bytes))
                fail_msg("case %zu: windows of %d pixels, %d threads: other bits", i, (int)cells[k], 1 + (int)k);
            free(got);
        }
        free(want);
        free(x);
    }
}

/* Nor does what is kept, or that weights lie in the plan, as on a GPU. Small tiles in the place of a large one: an edge of a picture. */
static void what_is_kept_does_not_matter(void **state)
{
    static const int64_t sizes[][3] = {{4, 3, 2}, {1, 2, 3}, {2, 4, 4}, {5, 1, 2}};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t *n = sizes[i];
        int64_t shape[4];
        float *x = noise(n[0] * n[1] * n[2] * 4), *want = run(VAE_DECODER, &small, n, x, 0, 1, shape);
        const size_t bytes = (size_t)hv_shape_count(4, shape) * sizeof *want;
        for (int k = 0; k < 18; k++) {
            static const int64_t cells[] = {1, 1500, 1 << 20};
            const struct vae_opts o = {.part = VAE_DECODER, .t = k % 2 ? n[0] : 5, .h = k % 2 ? n[1] : 4, .w = k % 2 ? n[2] : 4,
                                       .cells = cells[k / 2 % 3], .keep = (enum vae_keep)(k / 6), .gpu = k % 4 > 1};
            float *got = run_as(o, &small, n, x, 1 + k % 2, shape);
            if (memcmp(got, want, bytes))
                fail_msg("case %zu: keep %d, windows of %d pixels%s: other bits", i, (int)o.keep, (int)o.cells, o.gpu ? ", as on a GPU" : "");
            free(got);
        }
        free(want);
        free(x);
    }
}

static void equal_frames_encode_as_one(void **state)
{
    const int64_t n[3] = {9, 24, 16}, one[3] = {1, 24, 16}, frame = 24 * 16 * 3;
    struct vae_config c = small;
    int64_t shape[4];
    float *x = noise(9 * frame), top = 0, worst = 0;

    (void)state;
    for (int t = 1; t < 9; t++)
        memcpy(x + t * frame, x, (size_t)frame * sizeof *x);
    for (c.mid_causal = 0; c.mid_causal < 2; c.mid_causal++) {
        float *single = run(VAE_ENCODER, &c, one, x, 0, 1, shape), *many = run(VAE_ENCODER, &c, n, x, 0, 2, shape);
        const int64_t m = shape[1] * shape[2] * shape[3];
        assert_int_equal(shape[0], 3);
        for (int64_t i = 0; i < 3 * m; i++) {
            top = fmaxf(top, fabsf(single[i % m]));
            worst = fmaxf(worst, fabsf(many[i] - single[i % m]));
        }
        assert_true(top > 0.1f && worst < 1e-5f * top);
        free(single);
        free(many);
    }
    free(x);
}

/* Log variances are clamped to -30..20; no noise is the mean. */
static void sample(void **state)
{
    const float m[4] = {1, -2, 100, -100};              /* two channels: means, log variances out of range */
    const float noise2[2] = {1, -1};
    float z[2];

    (void)state;
    vae_sample(z, m, NULL, 1, 2);
    assert_true(z[0] == 1 && z[1] == -2);
    vae_sample(z, m, noise2, 1, 2);
    assert_float_equal(z[0], 1 + expf(10), 1e-2);
    assert_float_equal(z[1], -2 - expf(-15), 1e-6);
}

/* ---- plan ---- */

static void full_size_on_the_dry_device(void **state)
{
    const struct vae_opts o = {.part = VAE_DECODER, .t = 17, .h = 32, .w = 32};
    const int64_t shape[4] = {65, 256, 256, 3};
    float *y = malloc((size_t)hv_shape_count(4, shape) * sizeof *y), *z = calloc(17 * 32 * 32 * 16, sizeof *z);
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *d = NULL;
    struct vae *v = NULL;
    struct hv_err e = {0};

    (void)state;
    vae_part_weights(&list, &full, VAE_DECODER);
    assert_int_equal(hv_dev_open(&d, "dry", 0, &e), 0);
    assert_int_equal(hv_weights_open(&w, d, NULL, &list, &e), 0);
    assert_int_equal(vae_open(&v, d, w, &full, &o, &e), 0);
    vae_decode(v, hv_view(y, HV_F32, 4, shape), hv_view(z, HV_F32, 4, (int64_t[]){17, 32, 32, 16}));
    if (hv_dev_sync(d, &e))
        fail_msg("%s", e.msg);
    /* 55.9 TFLOP in phase form and 0.33 of causal attention: vae.md, section 7 */
    assert_float_equal((float)((double)d->count.flops * 1e-12), 56.23f, 0.3f);
    /* x of the last level and y of the one before, f32: plan B of section 8, whose ring is alive later */
    assert_true(hv_plan_bytes(vae_plan_of(v)) < ((size_t)4688 << 20) + (1 << 20));
    vae_close(v);
    hv_weights_close(w);
    hv_wlist_close(&list);
    hv_dev_close(d);
    free(y);
    free(z);
}

static void budgets(void **state)
{
    const struct vae_config c = small;
    struct vae_opts o = {.part = VAE_DECODER, .t = 5, .h = 8, .w = 8};
    struct hv_plan free_plan = {0}, tight = {0};
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(vae_plan(&free_plan, &c, &o, &e), 0);
    o.cells = 1;
    assert_int_equal(vae_plan(&tight, &c, &o, &e), 0);
    const size_t least = hv_plan_bytes(&tight);
    assert_true(least < hv_plan_bytes(&free_plan));
    o.cells = 0;
    o.budget = least;
    assert_int_equal(vae_plan(&tight, &c, &o, &e), 0);
    assert_true(hv_plan_bytes(&tight) <= least);
    o.budget = least - 1;
    assert_int_equal(vae_plan(&tight, &c, &o, &e), HV_ENOMEM);
    assert_non_null(strstr(e.msg, "budget"));
}

/* Bytes of the plans of a GPU at full size, in f16: B, C and D of vae.md, section 8, weights by level. With a context of 535 MiB they
 * are the 3.4, 2.3 and 1.5 GiB that were promised. */
static void plans_of_a_gpu(void **state)
{
    static const struct { enum vae_keep keep; int64_t cells; size_t bytes; int64_t most_mib; } plans[] = {
        {VAE_KEEP_ALL, 262144, 2783766272u, 3400}, {VAE_KEEP_OUTPUTS, 131072, 1782188032u, 2340}, {VAE_KEEP_NOTHING, 131072, 993661440u, 1536},
    };

    (void)state;
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        const struct vae_opts o = {.part = VAE_DECODER, .t = 17, .h = 32, .w = 32, .cells = plans[i].cells, .keep = plans[i].keep, .gpu = 1,
                                   .act = HV_F16};
        struct hv_plan p = {0};
        struct hv_err e = {0};
        if (vae_plan(&p, &full, &o, &e))
            fail_msg("%s", e.msg);
        assert_int_equal(hv_plan_bytes(&p), plans[i].bytes);
        assert_true((int64_t)(hv_plan_bytes(&p) >> 20) + 536 <= plans[i].most_mib);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config), cmocka_unit_test(weights_of_the_published_size),
        cmocka_unit_test(windows_and_threads_do_not_matter), cmocka_unit_test(what_is_kept_does_not_matter), cmocka_unit_test(equal_frames_encode_as_one),
        cmocka_unit_test(sample), cmocka_unit_test(full_size_on_the_dry_device), cmocka_unit_test(budgets),
        cmocka_unit_test(plans_of_a_gpu),
    };

    return RUN(tests);
}
