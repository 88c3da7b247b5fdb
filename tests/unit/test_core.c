/* Errors, tensor views, JSON getters. */
#include "tests/unit/unit.h"

#include <string.h>

#include "core/err.h"
#include "core/json.h"
#include "core/tensor.h"

static void first_failure_is_kept(void **state)
{
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(hv_fail(&e, HV_EINPUT, "%d frames", 3), HV_EINPUT);
    assert_int_equal(hv_fail(&e, HV_EIO, "later"), HV_EINPUT);
    assert_int_equal(hv_context(&e, "%s", "a.st"), HV_EINPUT);
    assert_string_equal(e.msg, "a.st: 3 frames");
}

static void long_messages_are_cut(void **state)
{
    struct hv_err e = {0};
    char text[3000];

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    hv_fail(&e, HV_EINPUT, "%s", text);
    hv_context(&e, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
}

static void views(void **state)
{
    float data[24] = {0};
    const hv_tensor t = hv_view(data, HV_F32, 3, (int64_t[]){2, 3, 4});
    const hv_tensor c = hv_cols(hv_rows(t, 1, 1), 1, 2);
    char buf[HV_SHAPE_STR];

    (void)state;
    assert_int_equal(hv_count(t), 24);
    assert_true(hv_is_contiguous(t));
    assert_ptr_equal(c.data, data + 12 + 1);
    assert_false(hv_is_contiguous(c));
    assert_string_equal(hv_shape_str(c, buf), "[1,3,2]");
    assert_ptr_equal(hv_index(t, 1).data, data + 12);
    assert_int_equal(hv_index(t, 1).ndim, 2);
}

static void reshapes(void **state)
{
    float data[48] = {0};
    const hv_tensor t = hv_view(data, HV_F32, 2, (int64_t[]){6, 8});
    const hv_tensor q = hv_cols(t, 2, 4);                               /* [6, 4], row stride 8 */
    const hv_tensor r = hv_reshape(q, 3, (int64_t[]){2, 3, 4}), s = hv_reshape(r, 2, (int64_t[]){-1, 4});
    const hv_tensor u = hv_reshape(q, 3, (int64_t[]){6, 2, 2});

    (void)state;
    assert_int_equal(r.stride[0], 24);
    assert_int_equal(r.stride[1], 8);
    assert_int_equal(r.stride[2], 1);
    assert_int_equal(s.shape[0], 6);
    assert_int_equal(s.stride[0], 8);
    assert_int_equal(u.stride[0], 8);
    assert_int_equal(u.stride[1], 2);
    assert_int_equal(hv_reshape(t, 1, (int64_t[]){-1}).shape[0], 48);
}

static void counts_do_not_overflow(void **state)
{
    (void)state;
    assert_int_equal(hv_shape_count(2, (int64_t[]){INT64_MAX, 2}), -1);
    assert_int_equal(hv_shape_count(2, (int64_t[]){3, -1}), -1);
    assert_int_equal(hv_shape_count(2, (int64_t[]){3, 0}), 0);
    assert_int_equal(hv_shape_count(0, NULL), 1);
}

static json_t *parse(const char *text, struct hv_err *e)
{
    json_t *root = NULL;

    hv_json_parse(&root, text, strlen(text), 16, e);
    return root;
}

static void json_getters(void **state)
{
    struct hv_err e = {0};
    json_t *root = parse("{\"n\": 7, \"x\": 2.5, \"b\": true, \"s\": \"t\", \"l\": [1, 2], \"z\": null}", &e);
    int64_t n = 1, l[4];
    double x = 1, unset = 9;
    int b = 0, count = -1;
    const char *s = NULL;

    (void)state;
    assert_non_null(root);
    assert_int_equal(hv_json_int(root, "n", 1, 10, &n, &e), 0);
    assert_int_equal(n, 7);
    assert_int_equal(hv_json_real(root, "x", 0, 10, &x, &e), 0);
    assert_true(x == 2.5);
    assert_int_equal(hv_json_real(root, "z", 0, 10, &unset, &e), 0);
    assert_true(unset == 9);
    assert_int_equal(hv_json_bool(root, "b", &b, &e) | hv_json_str(root, "s", &s, &e), 0);
    assert_int_equal(hv_json_ints(root, "l", 0, 5, l, 4, &count, &e), 0);
    assert_int_equal(count, 2);
    assert_int_equal(hv_json_int(root, "n", 1, 5, &n, &e), HV_EINPUT);
    assert_string_equal(e.msg, "n: 7, expected 1 to 5");
    e = (struct hv_err){0};
    assert_int_equal(hv_json_int(root, "x", 1, 5, &n, &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(hv_json_ints(root, "l", 0, 1, l, 4, &count, &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(hv_json_ints(root, "l", 0, 5, l, 1, &count, &e), HV_EINPUT);
    json_decref(root);
}

static void json_refusals(void **state)
{
    const char *bad[] = {"", "{", "{\"a\":1,\"a\":2}", "{\"a\":NaN}", "nope", "[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", "{} x", "\xff"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e = {0};
        assert_null(parse(bad[i], &e));
        assert_int_equal(e.code, HV_EINPUT);
    }
    struct hv_err e = {0};
    json_t *root = parse("[\"[[[[[[[[[[[[[[[[[[[[\"]", &e);         /* brackets within a string are text */
    assert_non_null(root);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_failure_is_kept), cmocka_unit_test(long_messages_are_cut), cmocka_unit_test(views),
        cmocka_unit_test(reshapes), cmocka_unit_test(counts_do_not_overflow), cmocka_unit_test(json_getters),
        cmocka_unit_test(json_refusals),
    };
    return RUN(tests);
}
