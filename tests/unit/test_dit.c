/* The diffusion transformer: its list of weights, config errors, plans and their fit, and what must not change the result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "mem/synth.h"
#include "model/denoise.h"
#include "ops/ops.h"

/* Four heads of 16, two blocks of each kind, two adapters. */
static const char *const small =
    "{\"hidden_size\": 64, \"num_heads\": 4, \"depth_double_blocks\": 2, \"depth_single_blocks\": 2, \"mlp_width_ratio\": 2.0,"
    "\"rope_dim_list\": [4, 6, 6], \"text_states_dim\": 24, \"text_states_dim_2\": 12, \"audio_channels\": 3,"
    "\"audio_intermediate_dim\": 20, \"audio_adapter_dim\": 24, \"double_stream_list\": [1, 0]}";

static int parse(struct dit_config *c, const char *text, struct hv_err *e)
{
    json_t *root = NULL;

    if (!hv_json_parse(&root, text, strlen(text), 8, e))
        dit_config_parse(c, root, e);
    json_decref(root);
    return e->code;
}

static void count_list(const struct dit_config *c, int tensors, int64_t parameters)
{
    struct hv_wlist l = {0};
    int64_t sum = 0;

    dit_weights(&l, c);
    for (int i = 0; i < l.n; i++)
        sum += hv_shape_count(l.w[i].ndim, l.w[i].shape);
    assert_int_equal(l.n, tensors);
    assert_true(sum == parameters);
    hv_wlist_close(&l);
}

static void weights_list(void **state)
{
    const struct dit_config full = dit_config_full();
    struct hv_err e = {0};
    struct dit_config c;

    (void)state;
    count_list(&full, 946, 12991493184);
    assert_int_equal(parse(&c, "{}", &e), 0);
    count_list(&c, 946, 12991493184);
    assert_int_equal(parse(&c, "{\"hidden_size\": 256, \"num_heads\": 2, \"depth_double_blocks\": 4, \"depth_single_blocks\": 2,"
                           "\"text_states_dim\": 64, \"text_states_dim_2\": 48, \"audio_channels\": 24,"
                           "\"audio_intermediate_dim\": 96, \"audio_adapter_dim\": 160, \"double_stream_list\": [1, 3]}", &e), 0);
    count_list(&c, 202, 14699520);
    assert_int_equal(parse(&c, "{\"hidden_size\": 256, \"num_heads\": 2, \"depth_double_blocks\": 3, \"depth_single_blocks\": 3,"
                           "\"mlp_width_ratio\": 2.0, \"text_states_dim\": 32, \"text_states_dim_2\": 32, \"audio_channels\": 64,"
                           "\"audio_intermediate_dim\": 128, \"audio_adapter_dim\": 128, \"double_stream_list\": [0, 1, 2]}", &e), 0);
    count_list(&c, 193, 11334720);
}

static void configs(void **state)
{
    static const struct { const char *text, *word; int code; } bad[] = {
        {"{\"hidden_size\": 100}", "hidden_size", HV_EINPUT},
        {"{\"hidden_size\": \"big\"}", "hidden_size", HV_EINPUT},
        {"{\"num_heads\": 0}", "num_heads", HV_EINPUT},
        {"{\"num_heads\": 12}", "rope_dim_list", HV_EINPUT},
        {"{\"rope_dim_list\": [16, 56]}", "rope_dim_list", HV_EINPUT},
        {"{\"rope_dim_list\": [17, 55, 56]}", "rope_dim_list", HV_EINPUT},
        {"{\"patch_size\": [2, 2, 2]}", "patch_size", HV_EUNSUP},
        {"{\"out_channels\": 32}", "out_channels", HV_EUNSUP},
        {"{\"mlp_act_type\": \"relu\"}", "mlp_act_type", HV_EUNSUP},
        {"{\"qk_norm_type\": \"layer\"}", "qk_norm_type", HV_EUNSUP},
        {"{\"text_projection\": \"linear\"}", "text_projection", HV_EUNSUP},
        {"{\"depth_single_blocks\": 0}", "depth_single_blocks", HV_EINPUT},
        {"{\"double_stream_list\": [1, 1]}", "double_stream_list", HV_EINPUT},
        {"{\"double_stream_list\": [-1]}", "double_stream_list", HV_EINPUT},
        {"{\"rope_theta\": 0}", "rope_theta", HV_EINPUT},
        {"{\"mlp_width_ratio\": 1e-5}", "mlp_width_ratio", HV_EINPUT},
    };
    struct dit_config c;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e = {0};
        assert_int_equal(parse(&c, bad[i].text, &e), bad[i].code);
        if (!strstr(e.msg, bad[i].word))
            fail_msg("%s: message '%s' lacks '%s'", bad[i].text, e.msg, bad[i].word);
    }
}

/* ---- a small network and its inputs ---- */

enum { T = 3, SIDE = 8, SOUND = 4 * T - 3, TEXT = 11 };

struct rig {
    struct dit_config  c;
    struct dit_size    s;
    struct dit_choice  choice;
    struct hv_stream_opts stream;
    struct hv_dev     *dev;
    struct hv_dev_info info;
    struct hv_weights *w;
    struct hv_wlist    list;
    struct dit        *net;
    int64_t            mask[64];
    int32_t            index[SOUND];
    float              latents[16 * T * SIDE * SIDE], ref[16 * T * SIDE * SIDE], out[16 * T * SIDE * SIDE];
    float              states[64 * 24], pooled[12], sound[SOUND * 10 * 5 * 3], face[T * SIDE * SIDE / 4];
    struct dit_text    text;
    struct dit_moment  moment[2];
    struct dit_call    call;
};

static const struct dit_fixed fixed = {{30, 30, 30, 30}, {25, 25, 25, 25}, 25, 0};

/* Inputs, with the text's valid rows given by mask: '1', '0' for each. */
static void fill(struct rig *r, const char *mask)
{
    const int64_t planes[4] = {16, T, SIDE, SIDE}, length = (int64_t)strlen(mask);
    struct hv_err e = {0};

    memset(r, 0, sizeof *r);
    assert_int_equal(parse(&r->c, small, &e), 0);
    hv_synth_activation(r->latents, "latents", 1, sizeof r->latents / 4);
    hv_synth_activation(r->ref, "ref", 1, sizeof r->ref / 4);
    hv_synth_activation(r->states, "states", 1, sizeof r->states / 4);
    hv_synth_activation(r->pooled, "pooled", 1, sizeof r->pooled / 4);
    hv_synth_activation(r->sound, "sound", 1, sizeof r->sound / 4);
    hv_synth_activation(r->face, "face", 1, sizeof r->face / 4);
    for (int64_t i = 0; i < length; i++)
        r->mask[i] = mask[i] == '1';
    for (int i = 0; i < SOUND; i++)
        r->index[i] = i;
    r->text = (struct dit_text){hv_view(r->states, HV_F32, 2, (const int64_t[]){length, 24}), r->mask,
                                hv_view(r->pooled, HV_F32, 1, &r->c.pooled_dim)};
    r->s = (struct dit_size){.frames = T, .height = SIDE, .width = SIDE, .texts = 1, .text_len = length,
                             .text_rows = dit_text_rows(&r->text), .full = 1, .cached = 1, .sound = SOUND, .clip_frames = T,
                             .windows = 1, .branches = 1, .act = HV_F32};
    r->moment[0] = (struct dit_moment){.t = 750};
    r->moment[1] = (struct dit_moment){.t = 750, .cached = 1};
    r->call = (struct dit_call){.latents = hv_view(r->latents, HV_F32, 4, planes), .ref = hv_view(r->ref, HV_F32, 4, planes),
                                .mask = r->face, .sound = r->index, .out = hv_view(r->out, HV_F32, 4, planes),
                                .cache = DIT_SAVE, .frame = r->index};
}

static void open_rig(struct rig *r, const char *device, int threads)
{
    const struct hv_synth_opts synth = {.seed = 3};
    struct hv_err e = {0};

    dit_weights(&r->list, &r->c);
    hv_dev_open(&r->dev, device, threads, &e);
    assert_int_equal(e.code, 0);
    assert_int_equal(hv_dev_info(r->dev, &r->info, &e), 0);
    dit_for_device(&r->s, &r->choice, NULL, &r->c, r->dev->kind, NULL, HV_BF16, 0);
    hv_weights_open_synth(&r->w, r->dev, &r->list, &synth, &e);
    dit_choose(&r->choice, &r->c, &r->s, NULL, &e);
    dit_open(&r->net, r->dev, r->w, &r->c, &r->s, &r->choice, &r->stream, &e);
    dit_sound(r->net, hv_view(r->sound, HV_F32, 4, (const int64_t[]){SOUND, 10, 5, 3}), &e);
    dit_prepare(r->net, &r->text, 1, r->moment, 2, &fixed, &e);
    if (e.code)
        fail_msg("%s", e.msg);
}

/* HV_TEST_DEVICE names the device of the tests that compare a device with itself. */
static const char *device_here(void)
{
    const char *name = getenv("HV_TEST_DEVICE");

    return name ? name : "cpu";
}

static void close_rig(struct rig *r)
{
    dit_close(r->net);
    hv_weights_close(r->w);
    hv_dev_close(r->dev);
    hv_wlist_close(&r->list);
}

static void forward(struct rig *r)
{
    struct hv_err e = {0};

    if (dit_forward(r->net, &r->call, 1, DIT_PLAIN, &e))
        fail_msg("%s", e.msg);
}

static void run(struct rig *r, int threads)
{
    open_rig(r, "cpu", threads);
    forward(r);
    close_rig(r);
}

static double distance(const struct rig *a, const struct rig *b)
{
    double worst = 0, largest = 0;

    for (size_t i = 0; i < sizeof a->out / 4; i++) {
        worst = fmax(worst, fabs((double)a->out[i] - (double)b->out[i]));
        largest = fmax(largest, fabs((double)b->out[i]));
    }
    assert_true(largest > 0.1);
    return worst / largest;
}

static struct rig a, b;

/* Groups of heads and chunks of rows, even ones that divide nothing; the reference kept or made anew. */
static void choices(void **state)
{
    static const struct dit_choice tried[] = {
        {.group = 1, .rows_attn = 7, .rows_mlp = 7}, {.group = 2, .rows_attn = 5, .rows_mlp = 33},
        {.group = 4, .rows_attn = 64, .rows_mlp = 1}, {.group = 1, .rows_attn = 1000, .rows_mlp = 16, .keep_ref = 1},
        {.group = 4, .rows_attn = 1, .rows_mlp = 20, .keep_ref = 1},
    };

    (void)state;
    fill(&a, "11111110011");
    run(&a, 2);
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        fill(&b, "11111110011");
        b.choice = tried[i];
        open_rig(&b, "cpu", 2);
        forward(&b);
        assert_true(distance(&b, &a) <= 1e-5);
        memset(b.out, 0, sizeof b.out);
        forward(&b);                                    /* a second time: with the reference kept, from the store */
        assert_true(distance(&b, &a) <= 1e-5);
        close_rig(&b);
    }
}

/* Where x and o live, how weights arrive, in which order the branches go: with the same groups and chunks the same bits. */
static void tiers(void **state)
{
    static const struct dit_choice tried[] = {
        {.tier = DIT_TIER_DEVICE, .apart = 1}, {.tier = DIT_TIER_O_HOST}, {.tier = DIT_TIER_O_HOST, .apart = 1}, {.tier = DIT_TIER_X_HOST},
        {.tier = DIT_TIER_X_HOST, .apart = 1}, {.tier = DIT_TIER_X_HOST, .ahead = DIT_AHEAD_ON},
        {.tier = DIT_TIER_X_HOST, .ahead = DIT_AHEAD_ON, .apart = 1}, {.ring = DIT_RING_BLOCKS}, {.ring = DIT_RING_SEGMENTS},
        {.ring = DIT_RING_SEGMENTS, .resident_blocks = 3}, {.ring = DIT_RING_SEGMENTS, .resident_blocks = DIT_ALL},
        {.tier = DIT_TIER_X_HOST, .ring = DIT_RING_SEGMENTS, .ahead = DIT_AHEAD_ON, .resident_blocks = 1},
        {.ring = DIT_RING_BLOCKS, .branches = DIT_BRANCHES_PAIRED}, {.branches = DIT_BRANCHES_PAIRED},
    };
    static float cached[16 * T * SIDE * SIDE], first[16 * T * SIDE * SIDE];
    const size_t count = sizeof tried / sizeof *tried + 1;
    double moved = 0;

    (void)state;
    for (size_t at = 0; at < 2 * count; at++) {         /* the cache keeps the last block's input, then what the blocks add */
        const size_t i = at % count;
        struct dit_call call[2];
        struct hv_err e = {0};
        fill(&b, "11111110011");
        b.s.branches = 2;
        b.s.residual = b.s.probe = at >= count;
        if (i)
            b.choice = tried[i - 1];
        if (b.s.residual && b.choice.branches == DIT_BRANCHES_PAIRED) {
            b.choice.group = 2;
            assert_int_equal(dit_choose(&b.choice, &b.c, &b.s, NULL, &e), HV_EUSAGE);
            continue;
        }
        b.choice.group = 2;
        b.choice.rows_attn = 13;
        b.choice.rows_mlp = 17;
        if (!b.choice.ring && strcmp(device_here(), "cpu"))
            b.choice.ring = DIT_RING_BLOCKS;            /* not streamed, matrices would stay f32 */
        if (b.choice.ring)
            b.choice.ring_bytes = dit_ring_bytes(&b.c, b.choice.ring, HV_F32);
        if (b.choice.resident_blocks)
            b.choice.resident_bytes = dit_resident_bytes(&b.c, b.choice.resident_blocks, HV_F32, NULL);
        if (b.choice.ring)
            b.stream = (struct hv_stream_opts){.delay_copy = i % 2 ? 2e-4 : 0, .delay_compute = i % 2 ? 0 : 2e-4, .poison = 1};
        open_rig(&b, device_here(), 2);
        for (int round = 0; round < 3; round++) {               /* in full, again, and from the step cache */
            for (int k = 0; k < 2; k++) {
                call[k] = b.call;
                call[k].branch = k;
                call[k].cache = round == 2 ? DIT_LOAD : DIT_SAVE;
                call[k].moment = round == 2;
            }
            call[0].out.data = a.out;
            memset(a.out, 0, sizeof a.out);
            memset(b.out, 0, sizeof b.out);
            if (b.s.probe) {
                double change = -1;
                struct dit_call probe = call[0];
                probe.moment = 0;
                b.latents[0] += (float)(round == 2);
                if (dit_probe(b.net, &probe, &change, &e))
                    fail_msg("choice %zu: %s", i, e.msg);
                b.latents[0] -= (float)(round == 2);
                if (round == 2 && !i)
                    moved = change;
                if (round == 0 ? !isinf(change) : round == 1 ? change > 0 : fabs(change - moved) > 0 || moved <= 0 || moved > 0.1)
                    fail_msg("choice %zu: change %g in round %d, %g", i, change, round, moved);
            }
            if (dit_forward(b.net, call, 2, round == 1 ? DIT_LOAD : DIT_PLAIN, &e))
                fail_msg("choice %zu: %s", i, e.msg);
            assert_memory_equal(a.out, b.out, sizeof b.out);    /* both branches hear the same here */
            if (!i)
                memcpy(round == 2 ? cached : first, b.out, sizeof b.out);
            else if (memcmp(round == 2 ? cached : first, b.out, sizeof b.out))
                fail_msg("choice %zu gives other bits in round %d", i, round);
        }
        if (b.s.residual) {                             /* the same latents: what comes back is what was taken away */
            memcpy(a.out, first, sizeof first);
            if (distance(&b, &a) > (b.s.act == HV_F32 ? 1e-5 : 2e-2) || !memcmp(b.out, first, sizeof first))
                fail_msg("choice %zu: a residual off by %g", i, distance(&b, &a));
        }
        close_rig(&b);
    }
}

/* Between the first forward and the last nothing is allocated: neither large pieces on the host nor anything on the device. */
static void no_allocation(void **state)
{
    struct hv_dev_info before, after;
    struct hv_err e = {0};

    (void)state;
    fill(&b, "11111110011");
    b.choice = (struct dit_choice){.ring = DIT_RING_SEGMENTS, .tier = DIT_TIER_X_HOST, .ring_bytes = dit_ring_bytes(&b.c, DIT_RING_SEGMENTS, HV_F32)};
    open_rig(&b, device_here(), 2);
    forward(&b);
    const size_t large = mallinfo2().hblkhd;
    hv_dev_info(b.dev, &before, &e);
    for (int i = 0; i < 4; i++)
        forward(&b);
    hv_dev_info(b.dev, &after, &e);
    assert_int_equal(mallinfo2().hblkhd, large);
    if (b.dev->kind == HV_CUDA)
        assert_int_equal(before.free, after.free);
    close_rig(&b);
}

static void threads(void **state)
{
    (void)state;
    fill(&a, "11111110011");
    run(&a, 1);
    for (int n = 2; n <= 8; n *= 2) {
        fill(&b, "11111110011");
        run(&b, n);
        assert_memory_equal(a.out, b.out, sizeof a.out);
    }
}

/* Padding behind the valid text changes nothing; which of two rows are valid does. */
static void padding(void **state)
{
    (void)state;
    fill(&a, "1111111");
    run(&a, 2);
    fill(&b, "11111110000000000000");
    run(&b, 2);
    assert_true(distance(&b, &a) <= 1e-6);
    fill(&b, "11111100000000000001");
    run(&b, 2);
    assert_true(distance(&b, &a) > 1e-4);
}

static void one_token(void **state)
{
    (void)state;
    fill(&a, "1");
    run(&a, 2);
    fill(&b, "10000");
    run(&b, 2);
    assert_true(distance(&b, &a) <= 1e-6);
    fill(&b, "00100");                                  /* key 0 is seen all the same; one row reaches the blocks */
    run(&b, 2);
    assert_true(distance(&b, &a) > 1e-4);
}

/* From the step cache at the same timestep: the same bits. At another one: not. */
static void step_cache(void **state)
{
    struct hv_err e = {0};

    (void)state;
    fill(&a, "11111110011");
    open_rig(&a, "cpu", 2);
    a.call.cache = DIT_LOAD;
    a.call.moment = 1;
    assert_int_equal(dit_forward(a.net, &a.call, 1, DIT_PLAIN, &e), HV_EINPUT);      /* nothing was saved */
    a.call.cache = DIT_PLAIN;
    memset(&e, 0, sizeof e);
    assert_int_equal(dit_forward(a.net, &a.call, 1, DIT_PLAIN, &e), HV_EINPUT);      /* this moment is for the cache alone */
    a.call.cache = DIT_SAVE;
    a.call.moment = 0;
    forward(&a);
    b = a;
    a.call.cache = DIT_LOAD;
    a.call.moment = 1;
    a.call.latents = a.call.ref = HV_NO;
    a.call.mask = NULL;
    a.call.sound = NULL;
    memset(a.out, 0, sizeof a.out);
    a.call.out.data = a.out;
    forward(&a);
    assert_memory_equal(a.out, b.out, sizeof a.out);
    a.moment[1].t = 400;
    memset(&e, 0, sizeof e);
    assert_int_equal(dit_prepare(a.net, &a.text, 1, a.moment, 2, &fixed, &e), 0);
    forward(&a);
    assert_true(distance(&a, &b) > 1e-3);
    close_rig(&a);
}

static void mismatches(void **state)
{
    struct hv_err e = {0};
    int64_t none[64] = {0};

    (void)state;
    fill(&a, "111111");
    open_rig(&a, "cpu", 1);
    a.text.mask = none;
    assert_int_equal(dit_prepare(a.net, &a.text, 1, a.moment, 2, &fixed, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "mask"));
    memset(&e, 0, sizeof e);
    assert_int_equal(dit_sound(a.net, hv_view(a.sound, HV_F32, 4, (const int64_t[]){SOUND - 1, 10, 5, 3}), &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "[8,10,5,3]"));
    close_rig(&a);
}

static void sound_frames(void **state)
{
    int64_t f[4];

    (void)state;
    dit_sound_frames(0, f);
    assert_true(!f[0] && !f[1] && !f[2] && !f[3]);
    dit_sound_frames(10, f);
    assert_true(f[0] == 37 && f[3] == 40);
}

/* ---- plans ---- */

static struct dit_size full_size(void)
{
    return (struct dit_size){.frames = 33, .height = 88, .width = 96, .texts = 2, .text_len = 831, .text_rows = 831, .full = 40,
                             .cached = 20, .sound = 129, .clip_frames = 33, .windows = 1, .branches = 2, .act = HV_BF16};
}

/* Any budget: it fits, or HV_ENOMEM names the largest rows. More budget, never smaller pieces. */
static void budgets(void **state)
{
    const struct dit_config c = dit_config_full();
    const struct dit_size s = full_size();
    int64_t rows = 0, group = 0;

    (void)state;
    for (size_t mib = 256; mib <= 4096; mib += 64) {
        struct dit_choice choice = {0};
        struct hv_plan device = {.budget = mib << 20}, host = {0};
        struct hv_err e = {0};
        if (dit_choose(&choice, &c, &s, &(struct dit_budget){.device = mib << 20}, &e)) {
            assert_int_equal(e.code, HV_ENOMEM);
            assert_non_null(strstr(e.msg, "x 4"));
            assert_true(!rows);
            continue;
        }
        assert_int_equal(dit_plan(&device, &host, &c, &s, &choice, &e), 0);
        assert_true(hv_plan_bytes(&device) <= mib << 20);
        assert_true(choice.rows_mlp >= rows && choice.group >= group);
        rows = choice.rows_mlp;
        group = choice.group;
    }
    assert_int_equal(rows, 4096);
    assert_int_equal(group, 4);
    struct dit_choice odd = {.group = 5};
    struct hv_err e = {0};
    assert_int_equal(dit_choose(&odd, &c, &s, NULL, &e), HV_EUSAGE);
}

/* The table of memory.md 2.7, to the byte: the rows of the fullest phase, a context of 350 MiB and 32 MiB for products. */
static void exact_plans(void **state)
{
    static const struct {
        int64_t group, rows_attn, rows_mlp;
        enum dit_tier tier;
        int64_t ring;
        int     expand;
        int64_t bytes[2];               /* at 704x768 and 704x1216 */
    } row[] = {
        {24, 8192, 8192, DIT_TIER_DEVICE, 931358720, 0, {3204101376, 4254854464}},
        {8, 8192, 4096, DIT_TIER_DEVICE, 931358720, 0, {2613753088, 3321359680}},
        {4, 8192, 4096, DIT_TIER_DEVICE, 466266112, 1, {2124018944, 2660052288}},
        {4, 8192, 4096, DIT_TIER_DEVICE, 466266112, 0, {2001073408, 2622893376}},
        {2, 4096, 2048, DIT_TIER_DEVICE, 151179264, 0, {1587027200, 2165953856}},
        {4, 8192, 2048, DIT_TIER_O_HOST, 302051328, 0, {1467890944, 1875244352}},
        {4, 4096, 2048, DIT_TIER_O_HOST, 151179264, 0, {1291853056, 1699206464}},
        {4, 4096, 2048, DIT_TIER_X_HOST, 302051328, 0, {1050295552, 1200289088}},
        {4, 4096, 2048, DIT_TIER_X_HOST, 151179264, 0, {899423488, 1049417024}},
        {2, 2048, 1024, DIT_TIER_X_HOST, 80277504, 0, {680082688, 765736256}},
    };
    const struct dit_config c = dit_config_full();

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        for (int wide = 0; wide < 2; wide++) {
            struct dit_size s = full_size();
            struct dit_choice k = {.group = row[i].group, .rows_attn = row[i].rows_attn, .rows_mlp = row[i].rows_mlp, .tier = row[i].tier,
                                   .ring_bytes = row[i].ring, .gemm = row[i].expand ? DIT_GEMM_EXPAND : DIT_GEMM_FUSED};
            struct hv_plan device = {0}, host = {0};
            struct hv_err e = {0};
            int64_t most = 0;
            s.width = wide ? 152 : 96;
            s.text_len = s.text_rows = 256;
            s.scratch = 32 << 20;
            s.weights = HV_I8;
            assert_int_equal(dit_plan(&device, &host, &c, &s, &k, &e), 0);
            for (int phase = 0; phase < 8; phase++) {
                int64_t sum = 350 << 20;
                for (int r = 0; r < device.n; r++)
                    sum += device.row[r].phases >> phase & 1 ? (int64_t)device.row[r].bytes : 0;
                most = sum > most ? sum : most;
            }
            if (most != row[i].bytes[wide])
                fail_msg("row %zu, %s: %lld bytes, expected %lld", i, wide ? "704x1216" : "704x768", (long long)most,
                         (long long)row[i].bytes[wide]);
            if (hv_plan_bytes(&device) + (350 << 20) > (size_t)most + (size_t)most / 200)      /* placement costs next to nothing */
                fail_msg("row %zu: placed in %zu bytes of %lld", i, hv_plan_bytes(&device), (long long)most);
        }
    assert_true(dit_ring_bytes(&c, DIT_RING_BLOCKS, HV_BF16) - 931358720 < 64 << 10);      /* the adapter's norm is f32, tensors aligned */
    assert_true(dit_ring_bytes(&c, DIT_RING_BLOCKS, HV_BF16) >= 931358720);
}

/* A GPU's planner: any budget fits or is refused, and more memory never costs time, to the hundredth in which times are equal. */
static void planner(void **state)
{
    static const struct { int arch, units; } chip[] = {{0, 0}, {86, 28}, {89, 24}, {90, 132}, {120, 170}};
    static const hv_dtype weights[] = {HV_BF16, HV_I8};
    const struct dit_config c = dit_config_full();

    (void)state;
    for (size_t g = 0; g < sizeof chip / sizeof *chip; g++)
        for (size_t w = 0; w < 2; w++) {
            struct dit_size s = full_size();
            double before = 0;
            s.scratch = 32 << 20;
            s.weights = weights[w];
            for (int mib = 512; mib <= 24576; mib = mib < 2048 ? mib + 256 : mib * 3 / 2) {
                struct dit_budget limit = {.device = (size_t)mib << 20, .machine = dit_machine_of(chip[g].arch, chip[g].units, HV_ATT_FLASH, 0)};
                struct dit_choice k = {.resident_blocks = -1}, again = k;
                struct hv_plan device = {.budget = limit.device}, host = {0};
                struct hv_err e = {0};
                if (dit_choose(&k, &c, &s, &limit, &e)) {
                    assert_int_equal(e.code, HV_ENOMEM);
                    assert_true(before == 0);
                    continue;
                }
                assert_int_equal(dit_plan(&device, &host, &c, &s, &k, &e), 0);
                const double t = dit_seconds(&c, &s, &k, &limit.machine);
                assert_true(t > 0 && (before == 0 || t <= before * 1.0101));
                before = t;
                assert_int_equal(dit_choose(&again, &c, &s, &limit, &e), 0);
                assert_memory_equal(&k, &again, sizeof k);
            }
            assert_true(before > 0);
        }
}

/* The full-size forward on the dry device: its work is that of the specification, 4.886e15. */
static void full_size_dry(void **state)
{
    const struct dit_config c = dit_config_full();
    struct dit_size s = full_size();
    struct dit_choice choice = {0};
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *dev = NULL;
    struct dit *net = NULL;
    struct hv_err e = {0};

    (void)state;
    s.full = s.cached = s.texts = s.sound = s.branches = 1;
    float *planes = calloc((size_t)831 * 4096 + (size_t)16 * 33 * 88 * 96, sizeof *planes);
    int64_t *mask = calloc(831, sizeof *mask);
    int32_t index[129] = {0};
    for (int i = 0; i < 831; i++)
        mask[i] = 1;
    const int64_t shape[4] = {16, 33, 88, 96};
    const struct dit_text text = {hv_view(planes, HV_F32, 2, (const int64_t[]){831, 4096}), mask, hv_view(planes, HV_F32, 1, &c.pooled_dim)};
    const struct dit_moment m[2] = {{.t = 1000}, {.t = 500, .cached = 1}};
    const hv_tensor x = hv_view(planes, HV_F32, 4, shape);
    const struct dit_call call = {.latents = x, .ref = x, .mask = planes, .sound = index, .out = x, .frame = index};
    dit_weights(&list, &c);
    hv_dev_open(&dev, "dry", 1, &e);
    hv_weights_open(&w, dev, NULL, &list, &e);
    dit_choose(&choice, &c, &s, NULL, &e);
    dit_open(&net, dev, w, &c, &s, &choice, NULL, &e);
    dit_sound(net, hv_view(planes, HV_F32, 4, (const int64_t[]){1, 10, 5, 384}), &e);
    dit_prepare(net, &text, 1, m, 2, &fixed, &e);
    memset(&dev->count, 0, sizeof dev->count);
    dit_forward(net, &call, 1, DIT_PLAIN, &e);
    if (e.code)
        fail_msg("%s", e.msg);
    assert_true(fabs((double)dev->count.flops / 4.886e15 - 1) < 2e-3);
    dit_close(net);
    hv_weights_close(w);
    hv_dev_close(dev);
    hv_wlist_close(&list);
    free(planes);
    free(mask);
}

/* ---- the loop ---- */

/* A NaN in the noise is found at the first step, and the message says where it came from. */
static void not_a_number(void **state)
{
    static float noise[16 * 65 * 16], ref[16 * 33 * 16], face[16], latents[16 * 33 * 16];
    struct hv_err e = {0};
    struct denoise_job j = {0};
    const uint8_t full[2] = {1, 1};

    (void)state;
    fill(&a, "11111");
    noise[77] = NAN;
    j.config = &a.c;
    j.text = j.negative = a.text;
    j.fixed = fixed;
    j.sound = hv_view(a.sound, HV_F32, 4, (const int64_t[]){SOUND, 10, 5, 3});
    j.face = hv_view(face, HV_F32, 3, (const int64_t[]){1, 4, 4});
    j.ref = hv_view(ref, HV_F32, 4, (const int64_t[]){16, 33, 4, 4});
    j.noise = hv_view(noise, HV_F32, 4, (const int64_t[]){16, 65, 4, 4});
    j.clip = flow_clip(SOUND, 0);
    j.steps = 2;
    j.shift = 5;
    j.guidance = 7.5;
    j.full = full;
    denoise_size(&a.s, &j);
    dit_weights(&a.list, &a.c);
    hv_dev_open(&a.dev, "cpu", 2, &e);
    hv_weights_open_synth(&a.w, a.dev, &a.list, &(struct hv_synth_opts){.seed = 3}, &e);
    dit_choose(&a.choice, &a.c, &a.s, NULL, &e);
    assert_int_equal(dit_open(&a.net, a.dev, a.w, &a.c, &a.s, &a.choice, NULL, &e), 0);
    assert_int_equal(denoise(a.net, &j, latents, &e), HV_ENUM);
    assert_non_null(strstr(e.msg, "step 0 of 2"));
    assert_non_null(strstr(e.msg, "img_in"));
    close_rig(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_list), cmocka_unit_test(configs), cmocka_unit_test(choices), cmocka_unit_test(tiers), cmocka_unit_test(no_allocation), cmocka_unit_test(threads),
        cmocka_unit_test(padding), cmocka_unit_test(one_token), cmocka_unit_test(step_cache), cmocka_unit_test(mismatches),
        cmocka_unit_test(sound_frames), cmocka_unit_test(budgets), cmocka_unit_test(exact_plans), cmocka_unit_test(planner), cmocka_unit_test(full_size_dry), cmocka_unit_test(not_a_number),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
