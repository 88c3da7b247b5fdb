/* The contract: operands in any order, sizes that must agree, what is refused and how it is said; the document. */
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

#include "io/contract.h"

static char dir[] = "/tmp/hv-test-contract-XXXXXX";
static char paths[4][64];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return 1;
    for (int i = 0; i < 4; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%d.st", dir, i);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        unlink(paths[i]);
    return rmdir(dir);
}

static void add(struct hv_out *out, const char *key, hv_dtype t, int ndim, const int64_t *shape)
{
    struct hv_err e = {0};

    assert_non_null(hv_out_new(out, key, t, ndim, shape, &e));
}

static void save(struct hv_out *out, int i)
{
    struct hv_err e = {0};

    assert_int_equal(hv_out_write(out, paths[i], &e), 0);
    hv_out_close(out);
}

static void make_audio(int i, int64_t frames, double fps)
{
    struct hv_out out = {0};

    add(&out, "audio.features", HV_F32, 4, (int64_t[]){frames, 10, 5, 8});
    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-audio", .frames = frames, .fps = fps, .model = "abc"});
    save(&out, i);
}

static void make_face(int i, int64_t h, int64_t w)
{
    struct hv_out out = {0};

    add(&out, "face.boxes", HV_F32, 2, (int64_t[]){0, 5});
    add(&out, "face.mask", HV_F32, 3, (int64_t[]){1, h, w});
    add(&out, "somebody.else", HV_I8, 1, (int64_t[]){3});
    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-face", .width = 8 * w, .height = 8 * h});
    save(&out, i);
}

static void make_ref(int i, int64_t h, int64_t w, int64_t width)
{
    struct hv_out out = {0};

    add(&out, "ref.latents", HV_F32, 4, (int64_t[]){16, 3, h, w});
    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-encode", .width = width});
    save(&out, i);
}

static const char *const *operands(int a, int b, int c)
{
    static const char *p[3];

    p[0] = paths[a];
    p[1] = paths[b];
    p[2] = paths[c];
    return p;
}

static void any_order(void **state)
{
    static const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

    (void)state;
    make_audio(0, 9, 12.5);
    make_face(1, 6, 4);
    make_ref(2, 6, 4, 32);
    for (int i = 0; i < 6; i++) {
        struct hv_operands o;
        struct hv_err e = {0};
        hv_tensor t;
        int64_t frames = 0;
        double fps = 0;
        assert_int_equal(hv_operands_open(&o, operands(order[i][0], order[i][1], order[i][2]), 3, &e), 0);
        assert_int_equal(hv_operands_size(&o, "F"), 9);
        assert_int_equal(hv_operands_size(&o, "h"), 6);
        assert_int_equal(hv_operands_size(&o, "w"), 4);
        assert_int_equal(hv_operands_size(&o, "A"), 8);
        assert_int_equal(hv_operands_size(&o, "L"), -1);
        assert_true(hv_operands_have(&o, "face.mask"));
        assert_false(hv_operands_have(&o, "latents"));
        assert_int_equal(hv_operands_get(&o, "ref.latents", &t, &e), 0);
        assert_int_equal(t.shape[1], 3);
        assert_int_equal(hv_operands_meta_int(&o, "hv.frames", 1, 1000, &frames, &e), 0);
        assert_int_equal(hv_operands_meta_real(&o, "hv.fps", 1, 100, &fps, &e), 0);
        assert_int_equal(frames, 9);
        assert_true(fps == 12.5);
        assert_string_equal(hv_operands_meta(&o, "hv.width"), "32");

        struct hv_out out = {0};
        struct hv_in *in = NULL;
        hv_operands_stamp(&o, &out);
        hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-denoise"});
        save(&out, 3);
        assert_int_equal(hv_in_open(&in, paths[3], &e), 0);
        assert_string_equal(hv_in_meta(in, "hv.version"), "1");
        assert_string_equal(hv_in_meta(in, "hv.stage"), "hv-denoise");
        assert_string_equal(hv_in_meta(in, "hv.width"), "32");
        assert_string_equal(hv_in_meta(in, "hv.height"), "48");
        assert_string_equal(hv_in_meta(in, "hv.fps"), "12.5");
        assert_string_equal(hv_in_meta(in, "hv.frames"), "9");
        assert_null(hv_in_meta(in, "hv.model"));
        hv_in_close(in);

        assert_int_equal(hv_operands_get(&o, "text.states", &t, &e), HV_EINPUT);
        assert_non_null(strstr(e.msg, "hv-text"));
        hv_operands_close(&o);
    }
}

/* Opens n operands; the message must hold both texts. */
static void refused(int n, int code, const char *a, const char *b)
{
    struct hv_operands o;
    struct hv_err e = {0};

    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), n, &e), code);
    if (!strstr(e.msg, a) || !strstr(e.msg, b))
        fail_msg("'%s' does not say '%s' and '%s'", e.msg, a, b);
    assert_int_equal(o.n, 0);
}

static void disagreements(void **state)
{
    (void)state;
    make_face(0, 6, 4);
    make_ref(1, 6, 5, 0);
    refused(2, HV_EINPUT, "w = 5", "w = 4");
    refused(2, HV_EINPUT, paths[0], paths[1]);
    make_ref(1, 6, 4, 40);
    refused(2, HV_EINPUT, "hv.width = 40", "32");
    make_face(1, 6, 4);
    refused(2, HV_EINPUT, "'face.", paths[1]);
    make_audio(1, 9, 25);
    make_ref(2, 6, 4, 32);
    struct hv_operands o;
    struct hv_err e = {0};
    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), 3, &e), 0);
    hv_operands_close(&o);

    /* "25" and "25.0" are one rate. */
    struct hv_out out = {0};
    hv_out_meta(&out, "hv.fps", "25.0");
    save(&out, 2);
    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), 3, &e), 0);
    hv_operands_close(&o);
    hv_out_meta(&out, "hv.fps", "24");
    save(&out, 2);
    refused(3, HV_EINPUT, "hv.fps = 24", "25");
}

static void shapes_and_types(void **state)
{
    struct hv_out out = {0};

    (void)state;
    add(&out, "audio.features", HV_BF16, 4, (int64_t[]){2, 10, 5, 8});
    save(&out, 0);
    refused(1, HV_EINPUT, "audio.features: BF16", "F32");
    add(&out, "audio.features", HV_F32, 3, (int64_t[]){2, 10, 5});
    save(&out, 0);
    refused(1, HV_EINPUT, "[2,10,5]", "[F, W, S, A]");
    add(&out, "face.boxes", HV_F32, 2, (int64_t[]){2, 4});
    save(&out, 0);
    refused(1, HV_EINPUT, "[2,4]", "[n, 5]");
    add(&out, "text.states", HV_F32, 2, (int64_t[]){7, 16});
    add(&out, "text.mask", HV_I64, 1, (int64_t[]){8});
    save(&out, 0);
    refused(1, HV_EINPUT, "L = ", "8");
    hv_out_meta(&out, "hv.version", "3");
    save(&out, 0);
    refused(1, HV_EINPUT, "hv.version", "3");
    /* Caches of a paused run: any shape, two dtypes. */
    add(&out, "latents", HV_F32, 4, (int64_t[]){16, 3, 4, 4});
    add(&out, "cache.0.cond", HV_BF16, 5, (int64_t[]){1, 2, 3, 4, 5});
    save(&out, 0);
    struct hv_operands o;
    struct hv_err e = {0};
    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), 1, &e), 0);
    hv_operands_close(&o);
    add(&out, "cache.0.cond", HV_I64, 1, (int64_t[]){1});
    save(&out, 0);
    refused(1, HV_EINPUT, "cache.0.cond", "I64");
}

/* NaN is found when the tensor is asked for, and named with its index. */
static void not_a_number(void **state)
{
    static const char header[] = "{\"latents\":{\"dtype\":\"F32\",\"shape\":[1,1,1,2],\"data_offsets\":[0,8]}}";
    const float x[2] = {0, -1.0f / 0.0f};
    struct hv_operands o;
    struct hv_err e = {0};
    hv_tensor t;
    FILE *f = fopen(paths[0], "wb");

    (void)state;
    assert_non_null(f);
    fputc((int)strlen(header), f);
    for (int i = 0; i < 7; i++)
        fputc(0, f);
    fwrite(header, 1, strlen(header), f);
    fwrite(x, 1, sizeof x, f);
    fclose(f);
    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), 1, &e), 0);
    assert_int_equal(hv_operands_get(&o, "latents", &t, &e), HV_ENUM);
    assert_non_null(strstr(e.msg, "latents: NaN or Inf at element 1"));
    hv_operands_close(&o);
}

static void standard_input(void **state)
{
    static const char *const twice[] = {"-", "-"};
    struct hv_operands o;
    struct hv_err e = {0};
    const int saved = dup(STDIN_FILENO);

    (void)state;
    assert_int_equal(hv_operands_open(&o, twice, 2, &e), HV_EUSAGE);
    make_audio(0, 5, 25);
    assert_non_null(freopen(paths[0], "rb", stdin));
    e = (struct hv_err){0};
    assert_int_equal(hv_operands_open(&o, NULL, 0, &e), 0);
    assert_int_equal(hv_operands_size(&o, "F"), 5);
    hv_operands_close(&o);
    dup2(saved, STDIN_FILENO);
    close(saved);
}

static void metadata_numbers(void **state)
{
    struct hv_out out = {0};
    struct hv_operands o;
    struct hv_err e = {0};
    int64_t n = 7;
    double x = 7;

    (void)state;
    hv_out_meta(&out, "hv.seed", "12x");
    hv_out_meta(&out, "hv.steps", "0");
    save(&out, 0);
    assert_int_equal(hv_operands_open(&o, operands(0, 1, 2), 1, &e), 0);
    assert_int_equal(hv_operands_meta_int(&o, "hv.absent", 0, 9, &n, &e), 0);
    assert_int_equal(n, 7);
    assert_int_equal(hv_operands_meta_int(&o, "hv.seed", 0, 99, &n, &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(hv_operands_meta_int(&o, "hv.steps", 1, 99, &n, &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(hv_operands_meta_real(&o, "hv.seed", 0, 99, &x, &e), HV_EINPUT);
    assert_true(n == 7 && x == 7);
    hv_operands_close(&o);
}

/* Every symbol of a shape is explained, and the other way round. */
static void symbols_are_explained(void **state)
{
    (void)state;
    for (const struct hv_key *k = hv_contract; k->file; k++)
        for (int i = 0; i < k->ndim; i++) {
            int known = k->dim[i][0] >= '0' && k->dim[i][0] <= '9';
            for (const struct hv_symbol *s = hv_contract_symbols; s->name; s++)
                known |= !strcmp(s->name, k->dim[i]);
            if (!known)
                fail_msg("%s: size %s is not explained", k->key, k->dim[i]);
        }
    for (const struct hv_symbol *s = hv_contract_symbols; s->name; s++) {
        int used = 0;
        for (const struct hv_key *k = hv_contract; k->file; k++)
            for (int i = 0; i < k->ndim; i++)
                used |= !strcmp(s->name, k->dim[i]);
        if (!used)
            fail_msg("size %s is not used", s->name);
    }
}

/* doc/formats.md holds the tables as hv_contract_print writes them. */
static void document_is_current(void **state)
{
    char *text = NULL, *doc = calloc(1, 1 << 20);
    size_t n = 0;
    FILE *f = open_memstream(&text, &n), *d = fopen("doc/formats.md", "rb");

    (void)state;
    assert_non_null(f);
    assert_non_null(d);
    assert_non_null(doc);
    hv_contract_print(f);
    fclose(f);
    assert_true(fread(doc, 1, (1 << 20) - 1, d) > 0);
    fclose(d);
    if (!strstr(doc, text))
        fail_msg("doc/formats.md is not what 'hv-tensor check --table' prints: put its output between the headings");
    free(text);
    free(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order),        cmocka_unit_test(disagreements),         cmocka_unit_test(shapes_and_types),
        cmocka_unit_test(not_a_number),     cmocka_unit_test(standard_input),        cmocka_unit_test(metadata_numbers),
        cmocka_unit_test(symbols_are_explained), cmocka_unit_test(document_is_current),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
