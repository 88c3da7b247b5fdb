/* The text networks: configurations and their defaults, lists of weights at full size, the dry device, several sequences together
 * against each alone, the same bits for any number of threads. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/clip.h"
#include "model/llama.h"
#include "model/vit.h"

static json_t *json(const char *text)
{
    struct hv_err e = {0};
    json_t *root = NULL;

    if (hv_json_parse(&root, text, strlen(text), 64, &e))
        fail_msg("%s", e.msg);
    return root;
}

static uint64_t parameters(const struct hv_wlist *l)
{
    uint64_t n = 0;

    for (int i = 0; i < l->n; i++)
        n += (uint64_t)hv_shape_count(l->w[i].ndim, l->w[i].shape);
    return n;
}

static void released_sizes(void **state)
{
    struct vit_config v;
    struct llama_config m;
    struct clip_config c;
    struct hv_wlist l[3] = {{0}};
    struct hv_err e = {0};
    json_t *root = json("{}");

    (void)state;
    assert_int_equal(vit_config_parse(&v, root, &e) | llama_config_parse(&m, root, &e) | clip_config_parse(&c, root, &e), 0);
    assert_int_equal(v.stack.layers, 23);
    assert_int_equal(vit_rows(&v), 576);
    assert_int_equal(m.run, 30);
    assert_int_equal(m.head_dim, 128);
    assert_int_equal(m.image_token, 128257);
    assert_int_equal(m.pad_token, 128258);
    vit_weights(&l[0], &v);
    llama_weights(&l[1], &m);
    clip_weights(&l[2], &c);
    assert_int_equal(parameters(&l[1]), 30ull * 218112000 + 128320ull * 4096);     /* text.md: 218.1 M a layer */
    assert_int_equal(parameters(&l[2]), 123060480);                                 /* 123 M */
    assert_non_null(hv_wlist_find(&l[0], "vision_tower.vision_model.encoder.layers.22.mlp.fc2.bias"));
    assert_null(hv_wlist_find(&l[0], "vision_tower.vision_model.encoder.layers.23.mlp.fc2.bias"));
    assert_null(hv_wlist_find(&l[1], "language_model.model.layers.30.input_layernorm.weight"));
    for (int i = 0; i < 3; i++)
        hv_wlist_close(&l[i]);
    json_decref(root);
}

static void configs_are_checked(void **state)
{
    static const struct { const char *text; int code; } bad[] = {
        {"{\"text_config\": {\"rope_scaling\": {\"factor\": 8}}}", HV_EUNSUP},
        {"{\"text_config\": {\"attention_bias\": true}}", HV_EUNSUP},
        {"{\"text_config\": {\"hidden_act\": \"gelu\"}}", HV_EUNSUP},
        {"{\"text_config\": {\"num_key_value_heads\": 5}}", HV_EINPUT},
        {"{\"text_config\": {\"num_attention_heads\": 0}}", HV_EINPUT},
        {"{\"text_config\": {\"head_dim\": 7}}", HV_EINPUT},
        {"{\"text_config\": {\"num_hidden_layers\": 1}}", HV_EINPUT},      /* two are skipped */
        {"{\"text_config\": {\"vocab_size\": \"many\"}}", HV_EINPUT},
        {"{\"vision_feature_layer\": -30}", HV_EINPUT},
        {"{\"vision_feature_select_strategy\": \"some\"}", HV_EUNSUP},
        {"{\"vision_config\": {\"patch_size\": 13}}", HV_EINPUT},
        {"{\"vision_config\": {\"num_channels\": 4}}", HV_EUNSUP},
        {"{\"vision_config\": {\"hidden_act\": \"tanh\"}}", HV_EUNSUP},
        {"{\"projector_hidden_act\": \"tanh\"}", HV_EUNSUP},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e = {0};
        struct vit_config v;
        struct llama_config m;
        json_t *root = json(bad[i].text);
        if (!vit_config_parse(&v, root, &e))
            llama_config_parse(&m, root, &e);
        if (e.code != bad[i].code)
            fail_msg("%s: code %d, expected %d (%s)", bad[i].text, e.code, bad[i].code, e.msg);
        json_decref(root);
    }
}

/* ---- a small LLaVA ---- */

static const char small[] =
    "{\"text_config\": {\"hidden_size\": 48, \"num_hidden_layers\": 5, \"num_attention_heads\": 6, \"num_key_value_heads\": 2,"
    " \"intermediate_size\": 72, \"vocab_size\": 40}, \"vision_config\": {\"hidden_size\": 24, \"num_hidden_layers\": 3,"
    " \"num_attention_heads\": 2, \"intermediate_size\": 40, \"image_size\": 24, \"patch_size\": 8}}";

static const int32_t ids[3][12] = {
    {1, 2, 3, 4, 5, 6, 39, 7}, {1, 2, 3, 9, 10, 39}, {1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 39},
};

#define ROWS 20                 /* of the output before cropping: 12 ids, 9 image rows */
#define CROP 2

static struct llama_seq sequence(int i)
{
    static const int64_t n[3] = {8, 6, 12}, image[3] = {6, 5, 11};      /* text after the image; pads; none */
    return (struct llama_seq){ids[i], n[i], image[i], ROWS, CROP};
}

/* Sequences first .. first + n - 1; out [n, ROWS - CROP, H]. ring: groups that a ring of weights holds, 0: none; what was used is
 * spoilt then, and each lane is held up in its turn. */
static void run_with(const char *device, int threads, int ring, int first, int n, float *out)
{
    struct vit_config v;
    struct llama_config m;
    struct hv_wlist l = {0};
    struct hv_err e = {0};
    struct hv_dev *d = NULL;
    struct hv_weights *w = NULL;
    struct vit *vision = NULL;
    struct llama *net = NULL;
    struct llama_seq s[3];
    hv_tensor o[3];
    json_t *root = json(small);
    float pixels[3 * 24 * 24], rows[9 * 48] = {0};
    const hv_tensor image = hv_view(rows, HV_F32, 2, (int64_t[]){9, 48});

    for (int i = 0; i < 3 * 24 * 24; i++)
        pixels[i] = (float)(i * 7 % 31) / 15 - 1;
    for (int i = 0; i < n; i++) {
        s[i] = sequence(first + i);
        o[i] = hv_view(out + i * (ROWS - CROP) * 48, HV_F32, 2, (int64_t[]){ROWS - CROP, 48});
    }
    assert_int_equal(vit_config_parse(&v, root, &e) | llama_config_parse(&m, root, &e), 0);
    vit_weights(&l, &v);
    llama_weights(&l, &m);
    assert_int_equal(hv_dev_open(&d, device, threads, &e), 0);
    assert_int_equal(hv_weights_open_synth(&w, d, &l, &(struct hv_synth_opts){.seed = 3}, &e), 0);
    struct hv_stream_opts way = {.once = 1, .poison = 1, .delay_copy = ring == 1 ? 1e-4 : 0, .delay_compute = ring > 1 ? 1e-4 : 0};
    int64_t largest = 0;
    for (int g = 0; g < l.groups; g++)
        largest = hv_weights_group_bytes(w, g, 0) > largest ? hv_weights_group_bytes(w, g, 0) : largest;
    const int64_t bytes = ring * largest;
    char *memory = malloc((size_t)bytes + 1);
    way.ring = hv_view(memory, HV_BYTES, 1, &bytes);
    if (ring)
        assert_int_equal(hv_weights_stream(w, &way, &e), 0);
    assert_int_equal(vit_open(&vision, d, w, &v, NULL, &e), 0);
    vit_encode(vision, image, hv_view(pixels, HV_F32, 3, (int64_t[]){3, 24, 24}), HV_NO);
    assert_int_equal(llama_open(&net, d, w, &m, s, n, 9, NULL, &e), 0);
    llama_encode(net, o, image, HV_NO);
    if (hv_dev_sync(d, &e))
        fail_msg("%s", e.msg);
    if (!strcmp(device, "dry"))
        assert_true(d->count.flops > 0 && d->count.weights > 0);
    if (ring) {                                         /* each group once: nothing was fetched round the end */
        struct hv_stream_stats stats;
        hv_weights_stats(w, &stats);
        assert_int_equal(stats.groups, l.groups);
    }
    vit_close(vision);
    llama_close(net);
    hv_weights_close(w);
    free(memory);
    hv_dev_close(d);
    hv_wlist_close(&l);
    json_decref(root);
}

static void run(const char *device, int threads, int first, int n, float *out)
{
    run_with(device, threads, 0, first, n, out);
}

#define OUT ((ROWS - CROP) * 48)

static void together_as_alone(void **state)
{
    static float alone[3][OUT], all[3 * OUT];

    (void)state;
    for (int i = 0; i < 3; i++)
        run("cpu", 1, i, 1, alone[i]);
    run("cpu", 1, 0, 3, all);
    for (int i = 0; i < 3; i++) {
        double size = 0;
        for (int k = 0; k < OUT; k++) {
            const double diff = (double)all[i * OUT + k] - (double)alone[i][k];
            size += (double)alone[i][k] * (double)alone[i][k];
            if (!(diff < 1e-5 && diff > -1e-5))
                fail_msg("sequence %d, value %d: %g together, %g alone", i, k, (double)all[i * OUT + k], (double)alone[i][k]);
        }
        assert_true(size / OUT > 0.1);
    }
    /* pads of sequence 0: rows 16 .. 19 are one row repeated, and not row 15 */
    for (int r = 17; r < ROWS; r++)
        assert_memory_equal(&alone[0][(r - CROP) * 48], &alone[0][(16 - CROP) * 48], 48 * sizeof(float));
    assert_memory_not_equal(&alone[0][(15 - CROP) * 48], &alone[0][(16 - CROP) * 48], 48 * sizeof(float));
}

static void bits_for_any_threads(void **state)
{
    static float one[2 * OUT], four[2 * OUT];

    (void)state;
    run("cpu", 1, 0, 2, one);
    run("cpu", 4, 0, 2, four);
    assert_memory_equal(one, four, sizeof one);
}

static void bits_for_any_ring(void **state)
{
    static float in_place[2 * OUT], streamed[2 * OUT];

    (void)state;
    run("cpu", 2, 0, 2, in_place);
    for (int ring = 1; ring <= 5; ring += 2) {
        run_with("cpu", 2, ring, 0, 2, streamed);
        assert_memory_equal(in_place, streamed, sizeof in_place);
    }
}

static void dry_device(void **state)
{
    static float out[2 * OUT];

    (void)state;
    run("dry", 1, 1, 2, out);
}

/* ---- CLIP ---- */

static void clip_stops_at_the_end(void **state)
{
    struct clip_config c;
    struct hv_err e = {0};
    json_t *root = json("{\"text_config\": {\"hidden_size\": 16, \"num_attention_heads\": 2, \"eos_token_id\": 2}}");
    const int32_t id[6] = {5, 3, 9, 4, 9, 9};
    const struct clip_text t = {id, 6};

    (void)state;
    assert_int_equal(clip_config_parse(&c, root, &e), 0);
    assert_int_equal(c.stack.hidden, 16);
    assert_int_equal(clip_rows_of(&c, &t), 3);          /* the first of the largest */
    c.eos = 4;
    assert_int_equal(clip_rows_of(&c, &t), 4);
    c.eos = 77;
    assert_int_equal(clip_rows_of(&c, &t), 1);          /* none: the reference takes the first row */
    json_decref(root);
}

static void ids_are_checked(void **state)
{
    struct llama_config m;
    struct clip_config c;
    struct llama *net = NULL;
    struct clip *text = NULL;
    struct hv_err e = {0};
    struct hv_dev *d = NULL;
    json_t *root = json(small);
    struct llama_seq s = sequence(0);
    const int32_t bad[8] = {1, 2, 3, 40, 5, 6, 39, 7};

    (void)state;
    assert_int_equal(llama_config_parse(&m, root, &e) | clip_config_parse(&c, root, &e) | hv_dev_open(&d, "dry", 1, &e), 0);
    s.ids = bad;
    assert_int_equal(llama_open(&net, d, NULL, &m, &s, 1, 9, NULL, &e), HV_EINPUT);
    e = (struct hv_err){0};
    s = sequence(0);
    s.rows = 15;                                        /* 16 are valid */
    assert_int_equal(llama_open(&net, d, NULL, &m, &s, 1, 9, NULL, &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(clip_open(&text, d, NULL, &c, &(struct clip_text){bad, 8}, 1, NULL, &e), HV_EINPUT);   /* ends at 39 */
    e = (struct hv_err){0};
    assert_int_equal(clip_open(&text, d, NULL, &c, &(struct clip_text){bad, 0}, 1, NULL, &e), HV_EINPUT);
    assert_null(net);
    assert_null(text);
    hv_dev_close(d);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(released_sizes),       cmocka_unit_test(configs_are_checked),   cmocka_unit_test(together_as_alone),
        cmocka_unit_test(bits_for_any_threads), cmocka_unit_test(bits_for_any_ring),     cmocka_unit_test(dry_device),
        cmocka_unit_test(clip_stops_at_the_end), cmocka_unit_test(ids_are_checked),
    };

    return RUN(tests);
}
