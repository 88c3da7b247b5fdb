/* Tensor files: what is written is read back, and every kind of malformed header is refused. */
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

static char dir[] = "/tmp/hv-test-st-XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[2][128];
    static int turn;

    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static int make_dir(void **state)
{
    (void)state;
    return !mkdtemp(dir);
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

/* ---- writing and reading ---- */

static void round_trip(void **state)
{
    static const int64_t shape[] = {2, 3};
    const float x[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
    const int64_t ids[2] = {-1, INT64_MAX}, two = 2, zero[] = {4, 0, 2};
    struct hv_out out = {0};
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    const char *path = in_dir("a.st");
    hv_tensor t;

    (void)state;
    hv_out_meta(&out, "hv.stage", "one");
    hv_out_meta(&out, "hv.stage", "test \"%d\"", 2);
    hv_out_add(&out, "x", hv_view(x, HV_F32, 2, shape));
    hv_out_add(&out, "ids", hv_view(ids, HV_I64, 1, &two));
    hv_out_declare(&out, "empty", HV_BF16, 3, zero);
    float *made = hv_out_new(&out, "made", HV_F32, 1, &two, &e);
    assert_non_null(made);
    assert_true(made[0] == 0 && made[1] == 0);
    made[1] = 4;
    assert_int_equal(hv_out_write(&out, path, &e), 0);
    hv_out_close(&out);

    assert_int_equal(hv_in_open(&in, path, &e), 0);
    assert_string_equal(hv_in_path(in), path);
    assert_int_equal(hv_in_count(in), 4);
    assert_string_equal(hv_in_meta(in, "hv.stage"), "test \"2\"");
    assert_null(hv_in_meta(in, "absent"));
    assert_int_equal(hv_in_tensor(in, "x", &t, &e), 0);
    assert_int_equal(t.ndim, 2);
    assert_int_equal(t.shape[0], 2);
    assert_int_equal(t.shape[1], 3);
    assert_memory_equal(t.data, x, sizeof x);
    assert_int_equal(hv_in_tensor(in, "ids", &t, &e), 0);
    assert_memory_equal(t.data, ids, sizeof ids);
    assert_int_equal(hv_in_tensor(in, "empty", &t, &e), 0);
    assert_int_equal(hv_count(t), 0);
    assert_int_equal(hv_in_tensor(in, "none", &t, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "none"));
    hv_in_close(in);
    unlink(path);
}

static void refuses_nan(void **state)
{
    const int64_t n = 3000;
    struct hv_out out = {0};
    struct hv_err e = {0};
    float *x = hv_out_new(&out, "x", HV_F32, 1, &n, &e);
    const char *path = in_dir("nan.st");

    (void)state;
    assert_non_null(x);
    assert_int_equal(hv_first_nonfinite(hv_view(x, HV_F32, 1, &n)), -1);
    x[2500] = 0x1p127f;
    x[2500] *= 4;
    assert_int_equal(hv_out_write(&out, path, &e), HV_ENUM);
    assert_non_null(strstr(e.msg, "2500"));
    assert_int_not_equal(access(path, F_OK), 0);
    hv_out_close(&out);
}

static void finds_nonfinite(void **state)
{
    static const struct { hv_dtype t; uint64_t bits; } bad[] = {
        {HV_F32, 0x7f800000}, {HV_F32, 0xffc00000}, {HV_F16, 0x7c00}, {HV_F16, 0xfe00}, {HV_BF16, 0x7f80}, {HV_BF16, 0xff81},
        {HV_F64, 0x7ff0000000000000}, {HV_F8_E4M3, 0x7f}, {HV_F8_E4M3, 0xff}, {HV_F8_E5M2, 0x7c},
    };
    unsigned char buf[8 * 5000];
    const int64_t n = 5000;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const size_t size = hv_dtype_size(bad[i].t);
        memset(buf, 0, sizeof buf);
        assert_int_equal(hv_first_nonfinite(hv_view(buf, bad[i].t, 1, &n)), -1);
        memcpy(buf + 4321 * size, &bad[i].bits, size);
        memcpy(buf + 4999 * size, &bad[i].bits, size);
        assert_int_equal(hv_first_nonfinite(hv_view(buf, bad[i].t, 1, &n)), 4321);
    }
}

struct counter {
    uint64_t next;
    int      fail_at;
};

static int count_up(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    struct counter *c = ctx;

    assert_int_equal(offset % 64, 0);
    assert_true(n <= 4096);
    if (i == c->fail_at)
        return hv_fail(e, HV_ENUM, "asked to fail");
    for (size_t k = 0; k < n; k++)
        ((uint8_t *)buf)[k] = (uint8_t)((offset + k) * 7 + (uint64_t)i);
    c->next += n;
    return 0;
}

static void produces_in_blocks(void **state)
{
    static const int64_t n[2] = {10000, 4096};
    struct counter c = {.fail_at = -1};
    struct hv_out out = {.align = 4096, .digest = 1};
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    const char *path = in_dir("p.st");

    (void)state;
    hv_out_declare(&out, "a", HV_U8, 1, &n[0]);
    hv_out_declare(&out, "b", HV_U8, 1, &n[1]);
    assert_int_equal(hv_out_produce(&out, path, 4096, count_up, &c, &e), 0);
    assert_int_equal(c.next, 14096);
    assert_int_equal(hv_in_open(&in, path, &e), 0);
    for (int i = 0; i < 2; i++) {
        const uint8_t *p = hv_in_data(in, hv_in_entry(in, i));
        for (int64_t k = 0; k < n[i]; k++)
            assert_int_equal(p[k], (uint8_t)(k * 7 + i));
    }
    assert_int_equal(strlen(hv_in_meta(in, "hv.sha256")), 64);
    assert_int_equal((uintptr_t)hv_in_data(in, hv_in_entry(in, 0)) % 4096, 0);
    hv_in_close(in);

    /* A producer that fails leaves the old file whole. */
    c.fail_at = 1;
    assert_int_equal(hv_out_produce(&out, path, 4096, count_up, &c, &e), HV_ENUM);
    e = (struct hv_err){0};
    assert_int_equal(hv_in_open(&in, path, &e), 0);
    hv_in_close(in);
    hv_out_close(&out);
    unlink(path);
}

static void refuses_a_name_twice(void **state)
{
    const float x = 1;
    const int64_t one = 1;
    struct hv_out out = {0};
    struct hv_err e = {0};

    (void)state;
    hv_out_add(&out, "x", hv_view(&x, HV_F32, 1, &one));
    hv_out_add(&out, "x", hv_view(&x, HV_F32, 1, &one));
    assert_int_equal(hv_out_write(&out, in_dir("twice.st"), &e), HV_EINPUT);
    hv_out_close(&out);
}

/* ---- malformed files ---- */

static void write_raw(const char *path, uint64_t n, const char *header, size_t data)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    for (int i = 0; i < 8; i++)
        fputc((int)(n >> 8 * i & 255), f);
    fwrite(header, 1, strlen(header), f);
    for (size_t i = 0; i < data; i++)
        fputc((int)i & 255, f);
    assert_int_equal(fclose(f), 0);
}

#define A(dtype, shape, span) "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" span "}}"

static void hostile_headers(void **state)
{
    static const struct { const char *header; size_t data; int ok; } cases[] = {
        {A("F32", "[2,2]", "[0,16]"), 16, 1},
        {A("F32", "[]", "[0,4]"), 4, 1},
        {A("F32", "[0,7]", "[0,0]"), 0, 1},
        {A("U8", "[3]", "[0,3]") "   ", 3, 1},
        {"{}", 0, 1},
        {"{\"__metadata__\":{\"k\":\"v\"}}", 0, 1},
        {A("F32", "[2,2]", "[0,16]"), 15, 0},                                   /* cut short */
        {A("F32", "[2,2]", "[0,16]"), 17, 0},                                   /* bytes behind */
        {A("F32", "[2,3]", "[0,16]"), 16, 0},
        {A("F12", "[2,2]", "[0,16]"), 16, 0},
        {A("F32", "[2,-2]", "[0,16]"), 16, 0},
        {A("F32", "[2,2.0]", "[0,16]"), 16, 0},
        {A("F32", "[2,2]", "[0,16.0]"), 16, 0},
        {A("F32", "[2,2]", "[16,0]"), 16, 0},
        {A("F32", "[2,2]", "[-16,0]"), 16, 0},
        {A("F32", "[2,2]", "[0]"), 16, 0},
        {A("F32", "[2,2]", "[0,8,16]"), 16, 0},
        {A("F32", "4", "[0,16]"), 16, 0},
        {A("F32", "[1,1,1,1,1,1,1,1,4]", "[0,16]"), 16, 0},                     /* nine dimensions */
        {A("F32", "[4294967296,4294967296]", "[0,0]"), 0, 0},
        {A("F32", "[4294967296,4294967296,0]", "[0,0]"), 0, 0},
        {A("F64", "[2305843009213693952]", "[0,0]"), 0, 0},
        {A("F32", "[2,2]", "[0,9223372036854775808]"), 16, 0},
        {A("U8", "[16]", "[1,17]"), 17, 0},                                     /* a hole in front */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}", 10, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}", 4, 0},
        {"{\"a\":[1,2]}", 0, 0},
        {"{\"__metadata__\":{\"k\":1}}", 0, 0},
        {"{\"__metadata__\":[]}", 0, 0},
        {"[]", 0, 0},
        {" {}", 0, 0},
        {"{\"a\":NaN}", 0, 0},
        {"{\"a\"", 0, 0},
        {"{}x", 0, 0},
        {"{\"a\":{\"b\":{\"c\":{\"d\":{\"e\":{\"f\":{\"g\":{\"h\":{\"i\":{\"j\":{\"k\":{\"l\":{\"m\":{\"n\":{\"o\":{\"p\":{\"q\":{}"
         "}}}}}}}}}}}}}}}}}", 0, 0},
    };
    const char *path = in_dir("h.st");

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hv_in *in = NULL;
        struct hv_err e = {0};
        write_raw(path, strlen(cases[i].header), cases[i].header, cases[i].data);
        const int rc = hv_in_open(&in, path, &e);
        if (rc != (cases[i].ok ? 0 : HV_EINPUT))
            fail_msg("case %zu: %s: status %d, %s", i, cases[i].header, rc, e.msg);
        assert_true(cases[i].ok ? in != NULL : in == NULL);
        if (rc)
            assert_int_equal(strncmp(e.msg, path, strlen(path)), 0);
        hv_in_close(in);
    }
    unlink(path);
}

static void hostile_lengths(void **state)
{
    static const uint64_t lengths[] = {0, 1, 3, 15, 17, 1 << 20, (uint64_t)16 << 20, ((uint64_t)16 << 20) + 1, UINT32_MAX,
                                       INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX - 7, UINT64_MAX};
    const char *path = in_dir("l.st");
    struct hv_in *in = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct hv_err e = {0};
        write_raw(path, lengths[i], "{\"a\":{}        ", 0);
        assert_int_equal(hv_in_open(&in, path, &e), HV_EINPUT);
    }
    for (int n = 0; n < 8; n++) {
        struct hv_err e = {0};
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        for (int i = 0; i < n; i++)
            fputc(0, f);
        fclose(f);
        assert_int_equal(hv_in_open(&in, path, &e), HV_EINPUT);
    }
    unlink(path);
    struct hv_err e = {0};
    assert_int_equal(hv_in_open(&in, path, &e), HV_EIO);
    e = (struct hv_err){0};
    assert_int_equal(hv_in_open(&in, dir, &e), HV_EIO);
}

static void misaligned_data(void **state)
{
    static const char header[] = "{\"o\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                 "\"f\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}";
    const char *path = in_dir("m.st");
    const uint8_t want[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    hv_tensor t, again;

    (void)state;
    write_raw(path, strlen(header), header, 9);
    assert_int_equal(hv_in_open(&in, path, &e), 0);
    assert_int_equal(hv_in_tensor(in, "f", &t, &e), 0);
    assert_int_equal((uintptr_t)t.data % 4, 0);
    assert_memory_equal(t.data, want, 8);
    assert_int_equal(hv_in_tensor(in, "f", &again, &e), 0);
    assert_ptr_equal(t.data, again.data);
    hv_in_close(in);
    unlink(path);
}

/* A header twice the same gives the same digest, another gives another. */
static void header_digest(void **state)
{
    const char *path = in_dir("d.st");
    uint64_t h[2];

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct hv_in *in = NULL;
        struct hv_err e = {0};
        const char *header = i ? A("I32", "[1]", "[0,4]") : A("F32", "[1]", "[0,4]");
        write_raw(path, strlen(header), header, 4);
        assert_int_equal(hv_in_open(&in, path, &e), 0);
        h[i] = hv_in_header_digest(in);
        assert_int_equal(h[i], hv_in_header_digest(in));
        hv_in_close(in);
    }
    assert_int_not_equal(h[0], h[1]);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),      cmocka_unit_test(refuses_nan),     cmocka_unit_test(finds_nonfinite),
        cmocka_unit_test(produces_in_blocks), cmocka_unit_test(refuses_a_name_twice), cmocka_unit_test(hostile_headers),
        cmocka_unit_test(hostile_lengths), cmocka_unit_test(misaligned_data), cmocka_unit_test(header_digest),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
