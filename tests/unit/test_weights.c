/* The weight source: what a file must hold, what is handed out, the dry device, synthetic values; the kinds of networks. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/st.h"
#include "mem/synth.h"
#include "mem/weights.h"
#include "model/kinds.h"

static char path[] = "/tmp/hv-test-weights-XXXXXX";
static struct hv_dev *cpu, *dry;

static int setup(void **state)
{
    struct hv_err e = {0};
    const int fd = mkstemp(path);

    (void)state;
    return fd < 0 || close(fd) || hv_dev_open(&cpu, "cpu", 1, &e) || hv_dev_open(&dry, "dry", 1, &e);
}

static int teardown(void **state)
{
    (void)state;
    hv_dev_close(cpu);
    hv_dev_close(dry);
    return unlink(path);
}

/* A network of two blocks: a matrix, a bias, a norm each. */
static void make_list(struct hv_wlist *l)
{
    for (int i = 0; i < 2; i++) {
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){6, 4}, "block.%d.linear.weight", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){6}, "block.%d.linear.bias", i);
        hv_wlist_add(l, HV_F32, HV_KEEP, 1, (int64_t[]){4}, "block.%d.norm.weight", i);
    }
}

static void write_file(struct hv_out *out)
{
    struct hv_err e = {0};

    assert_int_equal(hv_out_write(out, path, &e), 0);
    hv_out_close(out);
}

static void add(struct hv_out *out, hv_dtype t, int ndim, const int64_t *shape, const char *name, float scale)
{
    struct hv_err e = {0};
    char *p = hv_out_new(out, name, t, ndim, shape, &e);
    const int64_t n = hv_shape_count(ndim, shape);

    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) {
        const float v = (float)(i - 7) * scale;
        hv_from_f32(t, p + i * (int64_t)hv_dtype_size(t), &v, 1);
    }
}

static void add_block(struct hv_out *out, int i, hv_dtype matrix)
{
    char name[64];

    snprintf(name, sizeof name, "block.%d.linear.weight", i);
    add(out, matrix, 2, (int64_t[]){6, 4}, name, 1);
    snprintf(name, sizeof name, "block.%d.linear.bias", i);
    add(out, HV_BF16, 1, (int64_t[]){6}, name, 0.5f);
    snprintf(name, sizeof name, "block.%d.norm.weight", i);
    add(out, HV_F16, 1, (int64_t[]){4}, name, 0.25f);
}

static void hands_out(void **state)
{
    struct hv_wlist l = {0};
    struct hv_out out = {0};
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    (void)state;
    make_list(&l);
    for (int i = 0; i < 2; i++)
        add_block(&out, i, HV_BF16);
    add(&out, HV_F32, 1, (int64_t[]){3}, "not.used", 1);
    hv_out_meta(&out, "hv.sha256", "cafe");
    write_file(&out);
    assert_int_equal(hv_weights_open(&w, cpu, path, &l, &e), 0);
    hv_wlist_close(&l);                                                 /* it was copied */
    hv_weights_take(w, "block.0.");
    hv_tensor m = hv_weight(w, "block.%d.linear.weight", 0), b = hv_weight(w, "block.%d.linear.bias", 0),
              n = hv_weight(w, "block.%d.norm.weight", 1);
    hv_weights_give(w, "block.0.");
    hv_weights_take(w, "block.1.");
    hv_weights_take(w, "no such group");
    assert_int_equal(m.dtype, HV_BF16);
    assert_int_equal(m.shape[0], 6);
    assert_null(m.scale);
    assert_int_equal(b.dtype, HV_F32);
    assert_int_equal(n.dtype, HV_F32);
    for (int i = 0; i < 6; i++)
        assert_true(((float *)b.data)[i] == (float)(i - 7) * 0.5f);
    for (int i = 0; i < 4; i++)
        assert_true(((float *)n.data)[i] == (float)(i - 7) * 0.25f);
    assert_string_equal(hv_weights_digest(w), "cafe");
    assert_int_equal(hv_weights_bytes(w), 2 * (24 * 2 + 6 * 2 + 4 * 2));
    assert_true(hv_weights_have(w, "block.1.linear.bias"));
    assert_false(hv_weights_have(w, "not.used"));
    assert_int_equal(hv_dev_sync(cpu, &e), 0);

    /* A name that is not of the list is the fault of the model's author: the device keeps it. */
    struct hv_dev *d = NULL;
    assert_int_equal(hv_dev_open(&d, "cpu", 1, &e), 0);
    struct hv_wlist again = {0};
    struct hv_weights *w2 = NULL;
    make_list(&again);
    assert_int_equal(hv_weights_open(&w2, d, path, &again, &e), 0);
    assert_null(hv_weight(w2, "block.%d.absent", 9).data);
    assert_int_equal(hv_dev_sync(d, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "block.9.absent"));
    hv_weights_close(w2);
    hv_wlist_close(&again);
    hv_dev_close(d);
    hv_weights_close(w);
}

static void quantized(void **state)
{
    static const hv_dtype types[] = {HV_I8, HV_F8_E4M3};

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct hv_wlist l = {0};
        struct hv_out out = {0};
        struct hv_weights *w = NULL;
        struct hv_err e = {0};
        make_list(&l);
        for (int i = 0; i < 2; i++) {
            char name[64];
            add_block(&out, i, types[k]);
            snprintf(name, sizeof name, "block.%d.linear.weight.scale", i);
            add(&out, HV_F32, 1, (int64_t[]){6}, name, 2);
        }
        if (k)
            hv_out_meta(&out, "hv.deq", "bf16");
        write_file(&out);
        assert_int_equal(hv_weights_open(&w, cpu, path, &l, &e), 0);
        const hv_tensor m = hv_weight(w, "block.1.linear.weight");
        assert_int_equal(m.dtype, types[k]);
        assert_int_equal(m.deq_bf16, k);
        assert_non_null(m.scale);
        for (int i = 0; i < 6; i++)
            assert_true(m.scale[i] == (float)(i - 7) * 2);
        assert_int_equal(strncmp(hv_weights_digest(w), "header:", 7), 0);
        hv_weights_close(w);
        hv_wlist_close(&l);
    }
}

/* Opens what is in the file; the message must hold the text. */
static void refused(int code, const char *text)
{
    struct hv_wlist l = {0};
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    make_list(&l);
    assert_int_equal(hv_weights_open(&w, cpu, path, &l, &e), code);
    assert_null(w);
    if (!strstr(e.msg, text))
        fail_msg("'%s' does not say '%s'", e.msg, text);
    assert_int_equal(strncmp(e.msg, path, strlen(path)), 0);
    hv_wlist_close(&l);
}

static void refuses(void **state)
{
    struct hv_out out = {0};

    (void)state;
    add_block(&out, 0, HV_BF16);
    write_file(&out);
    refused(HV_EINPUT, "block.1.linear.weight is missing");

    add_block(&out, 0, HV_F32);
    add(&out, HV_F32, 2, (int64_t[]){4, 6}, "block.1.linear.weight", 1);
    add(&out, HV_F32, 1, (int64_t[]){6}, "block.1.linear.bias", 1);
    add(&out, HV_F32, 1, (int64_t[]){4}, "block.1.norm.weight", 1);
    write_file(&out);
    refused(HV_EINPUT, "block.1.linear.weight is [4,6], expected [6,4]");

    add_block(&out, 0, HV_I8);
    add_block(&out, 1, HV_BF16);
    write_file(&out);
    refused(HV_EINPUT, "block.0.linear.weight: I8 without");

    add_block(&out, 0, HV_I8);
    add(&out, HV_F32, 1, (int64_t[]){4}, "block.0.linear.weight.scale", 1);
    add_block(&out, 1, HV_BF16);
    write_file(&out);
    refused(HV_EINPUT, "expected F32 [6]");

    add_block(&out, 0, HV_I32);
    add_block(&out, 1, HV_BF16);
    write_file(&out);
    refused(HV_EUNSUP, "I32");

    add_block(&out, 0, HV_BF16);
    add_block(&out, 1, HV_BF16);
    hv_out_meta(&out, "hv.version", "2");
    write_file(&out);
    refused(HV_EUNSUP, "hv.version");
}

/* At most eight faults are named, all are counted. */
static void names_eight(void **state)
{
    struct hv_wlist l = {0};
    struct hv_out out = {0};
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    (void)state;
    write_file(&out);
    for (int i = 0; i < 100; i++)
        hv_wlist_add(&l, HV_F32, HV_KEEP, 1, (int64_t[]){1}, "t%d", i);
    assert_int_equal(hv_weights_open(&w, cpu, path, &l, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "100 of 100"));
    assert_non_null(strstr(e.msg, "t7 is missing"));
    assert_null(strstr(e.msg, "t8"));
    hv_wlist_close(&l);
}

static void dry_device(void **state)
{
    struct hv_wlist l = {0};
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    (void)state;
    make_list(&l);
    assert_int_equal(hv_weights_open(&w, dry, NULL, &l, &e), 0);
    const hv_tensor m = hv_weight(w, "block.0.linear.weight"), b = hv_weight(w, "block.0.linear.bias");
    assert_null(m.data);
    assert_int_equal(m.dev, HV_DRY);
    assert_int_equal(m.dtype, HV_BF16);
    assert_int_equal(b.dtype, HV_F32);
    assert_int_equal(b.shape[0], 6);
    hv_weights_take(w, "block.0.");
    hv_weights_give(w, "block.0.");
    hv_weights_close(w);
    hv_wlist_close(&l);
}

static void synthetic(void **state)
{
    const struct hv_synth_opts as_stored = {.seed = 9, .as_stored = 1}, f32 = {.seed = 9};
    struct hv_wlist l = {0};
    struct hv_weights *w = NULL, *v = NULL;
    struct hv_err e = {0};
    float want[24], norm[4], bias[6];
    uint16_t half[24];

    (void)state;
    make_list(&l);
    assert_int_equal(hv_weights_open_synth(&w, cpu, &l, &as_stored, &e), 0);
    assert_int_equal(hv_weights_open_synth(&v, cpu, &l, &f32, &e), 0);
    assert_string_equal(hv_weights_digest(w), "synth:9");
    hv_synth(want, "block.1.linear.weight", 2, (int64_t[]){6, 4}, 9, 0, 24);
    hv_synth(norm, "block.1.norm.weight", 1, (int64_t[]){4}, 9, 0, 4);
    hv_synth(bias, "block.1.linear.bias", 1, (int64_t[]){6}, 9, 0, 6);
    hv_from_f32(HV_BF16, half, want, 24);
    assert_memory_equal(hv_weight(v, "block.1.linear.weight").data, want, sizeof want);
    assert_int_equal(hv_weight(w, "block.1.linear.weight").dtype, HV_BF16);
    assert_memory_equal(hv_weight(w, "block.1.linear.weight").data, half, sizeof half);
    assert_memory_equal(hv_weight(w, "block.1.norm.weight").data, norm, sizeof norm);
    /* A vector that the reference stores in bf16 is rounded, and handed out as f32. */
    hv_from_f32(HV_BF16, half, bias, 6);
    hv_to_f32(bias, HV_BF16, half, 6);
    assert_int_equal(hv_weight(w, "block.1.linear.bias").dtype, HV_F32);
    assert_memory_equal(hv_weight(w, "block.1.linear.bias").data, bias, sizeof bias);
    hv_weights_close(w);
    hv_weights_close(v);
    hv_wlist_close(&l);
}

/* Groups, a cut tensor, their bytes; on the host, taking a group changes nothing. */
static void groups(void **state)
{
    const struct hv_synth_opts synth = {.seed = 9};
    struct hv_wlist l = {0};
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    (void)state;
    hv_wlist_add(&l, HV_BF16, HV_KEEP, 1, (int64_t[]){3}, "none");
    hv_wlist_group(&l, "block.%d", 0);
    hv_wlist_add(&l, HV_BF16, HV_QUANT, 2, (int64_t[]){100, 8}, "cut.weight");
    hv_wlist_split(&l, 30);
    hv_wlist_add(&l, HV_F32, HV_KEEP, 1, (int64_t[]){5}, "norm.weight");
    hv_wlist_cycle(&l);
    hv_wlist_group(&l, "block.%d", 1);
    hv_wlist_add(&l, HV_BF16, HV_KEEP, 5, (int64_t[]){2, 3, 1, 2, 2}, "conv.weight");
    hv_wlist_add(&l, HV_BF16, HV_QUANT_MODULATION, 2, (int64_t[]){4, 4}, "mod.weight");
    hv_wlist_add(&l, HV_BF16, HV_KEEP, 0, NULL, "number");
    hv_wlist_group(&l, NULL);
    hv_wlist_add(&l, HV_BF16, HV_KEEP, 1, (int64_t[]){3}, "none.too");
    assert_int_equal(l.fault, 0);
    assert_int_equal(l.groups, 2);
    assert_int_equal(l.cycle, 1);
    assert_int_equal(hv_wlist_find_group(&l, "block.1"), 1);
    assert_int_equal(hv_wlist_find_group(&l, "block.2"), -1);
    assert_int_equal(hv_wlist_find(&l, "none")->group, -1);
    assert_int_equal(hv_wlist_find(&l, "none.too")->group, -1);
    assert_int_equal(hv_wlist_group_bytes(&l, 0, HV_BF16, 0), 30 * 8 * 2 + 5 * 4);
    assert_int_equal(hv_wlist_group_bytes(&l, 0, HV_BF16, 1), 512 + 256);
    assert_int_equal(hv_wlist_group_bytes(&l, 0, HV_F32, 0), 30 * 8 * 4 + 5 * 4);
    assert_int_equal(hv_wlist_group_bytes(&l, 0, HV_F16, 0), 30 * 8 * 2 + 5 * 4);
    assert_int_equal(hv_wlist_group_bytes(&l, 0, HV_I8, 0), 30 * 8 + 30 * 4 + 5 * 4);
    assert_int_equal(hv_wlist_group_bytes(&l, 1, HV_NONE, 0), (70 * 8 + 24 + 16 + 1) * 2);
    assert_int_equal(hv_wlist_group_bytes(&l, 1, HV_F8_E4M3, 0), 70 * 8 + 70 * 4 + (24 + 16 + 1) * 2);
    assert_int_equal(hv_wlist_largest(&l, 0, HV_BF16), 1280 + 3 * 256);

    assert_int_equal(hv_weights_open_synth(&w, cpu, &l, &synth, &e), 0);
    assert_int_equal(hv_weights_group_bytes(w, 0, 0), 1024 + 256);                  /* f32, as this model is */
    assert_int_equal(hv_weights_group_bytes(w, 0, 1), 512 + 256);
    const float *before = hv_weight(w, "cut.weight").data;
    for (int i = 0; i < 2; i++) {
        hv_weights_take(w, l.group[i]);
        assert_ptr_equal(hv_weight(w, "cut.weight").data, before);
        hv_weights_give(w, l.group[i]);
    }
    hv_weights_next(w, "block.0");                                                  /* there is no stream */
    assert_int_equal(hv_weights_streamed(w), 0);
    hv_weights_unstream(w);
    assert_int_equal(hv_dev_sync(cpu, &e), 0);
    hv_weights_close(w);
    hv_wlist_close(&l);
}

/* ---- kinds ---- */

static const struct hv_kind *list_of(struct hv_wlist *l, const char *config)
{
    struct hv_err e = {0};
    json_t *root = NULL;

    assert_int_equal(hv_json_parse(&root, config, strlen(config), 16, &e), 0);
    const struct hv_kind *k = hv_kind_of_config(root);
    if (k && k->list(l, root, &e))
        fail_msg("%s", e.msg);
    json_decref(root);
    return k;
}

/* What the name says of a tensor and what the network's list says are the same. */
static void check_classes(const struct hv_kind *k, const struct hv_wlist *l)
{
    for (int i = 0; i < l->n; i++) {
        const struct hv_wspec *s = &l->w[i];
        if (hv_kind_quant(k, s->name, s->ndim) != s->quant)
            fail_msg("%s: %s: class %d by name, %d in the list", k->name, s->name, hv_kind_quant(k, s->name, s->ndim), s->quant);
        if (!strcmp(k->name, "transformer") && hv_kind_keeps_f32(k, s->name) != (s->dtype == HV_F32))
            fail_msg("%s: %s in the list", s->name, hv_dtype_name(s->dtype));
        assert_int_equal(hv_wlist_find(l, s->name) == s, 1);           /* no name twice */
    }
}

static void full_transformer(void **state)
{
    struct hv_wlist l = {0};
    const struct hv_kind *k = list_of(&l, "{\"hidden_size\": 3072, \"rope_dim_list\": [16, 56, 56]}");
    int64_t parameters = 0, quantized_bytes = 0;

    (void)state;
    assert_non_null(k);
    assert_string_equal(k->name, "transformer");
    for (int i = 0; i < l.n; i++) {
        parameters += hv_shape_count(l.w[i].ndim, l.w[i].shape);
        quantized_bytes += l.w[i].quant == HV_QUANT ? hv_shape_count(l.w[i].ndim, l.w[i].shape) : 0;
        if (strstr(l.w[i].name, "double_blocks.7."))
            assert_ptr_equal(hv_kind_of_tensor(l.w[i].name), k);
    }
    assert_int_equal(l.n, 946);
    assert_int_equal(parameters, INT64_C(12991493184));
    assert_true(quantized_bytes > INT64_C(9055000000) && quantized_bytes < INT64_C(9065000000));
    check_classes(k, &l);
    hv_wlist_close(&l);
}

static void other_kinds(void **state)
{
    static const struct { const char *kind, *config; } cases[] = {
        {"vae", "{\"latent_channels\": 16, \"block_out_channels\": [16, 16, 32, 32], \"norm_num_groups\": 8, \"layers_per_block\": 1}"},
        {"audio_encoder", "{\"d_model\": 64, \"encoder_layers\": 2, \"encoder_attention_heads\": 2, \"encoder_ffn_dim\": 128}"},
        {"text_encoder_2", "{\"model_type\": \"clip_text_model\", \"hidden_size\": 32, \"num_hidden_layers\": 2, "
                           "\"num_attention_heads\": 4, \"intermediate_size\": 64, \"vocab_size\": 100}"},
        {"text_encoder", "{\"model_type\": \"llava\", \"image_token_index\": 90, \"pad_token_id\": 91, \"text_config\": "
                         "{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "
                         "\"num_key_value_heads\": 2, \"intermediate_size\": 96, \"vocab_size\": 100}, \"vision_config\": "
                         "{\"model_type\": \"clip_vision_model\", \"hidden_size\": 32, \"num_hidden_layers\": 3, "
                         "\"num_attention_heads\": 4, \"intermediate_size\": 64, \"image_size\": 28, \"patch_size\": 14}}"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hv_wlist l = {0};
        const struct hv_kind *k = list_of(&l, cases[i].config);
        int marked = 0;
        assert_non_null(k);
        assert_string_equal(k->name, cases[i].kind);
        assert_ptr_equal(k, hv_kind_find(cases[i].kind));
        assert_true(l.n > 10);
        check_classes(k, &l);
        for (int n = 0; n < l.n; n++) {
            const struct hv_kind *by_name = hv_kind_of_tensor(l.w[n].name);
            assert_true(!by_name || by_name == k);
            marked += by_name == k;
        }
        assert_true(marked > 0);
        hv_wlist_close(&l);
    }
    struct hv_wlist l = {0};
    assert_null(list_of(&l, "{\"hello\": 1}"));
    assert_null(hv_kind_find("nonsense"));
    assert_null(hv_kind_find(NULL));
    assert_null(hv_kind_of_tensor("nonsense.weight"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hands_out),   cmocka_unit_test(quantized),  cmocka_unit_test(refuses),
        cmocka_unit_test(names_eight), cmocka_unit_test(dry_device), cmocka_unit_test(synthetic),
        cmocka_unit_test(groups),
        cmocka_unit_test(full_transformer), cmocka_unit_test(other_kinds),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
