/* Face detector: configurations, decoding, suppression, choice, mask geometry, and the one layer that no golden has. */
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/image.h"
#include "mem/synth.h"
#include "model/face.h"

static int parse(struct face_config *c, const char *text, struct hv_err *e)
{
    json_t *json = NULL;
    int rc = hv_json_parse(&json, text, strlen(text), 16, e);

    if (!rc)
        rc = face_config_parse(c, json, e);
    json_decref(json);
    return rc;
}

#define HEAD(layers) "{\"layers\": [" layers "]}"
#define CONV         "{\"op\": \"conv\", \"from\": [-1], \"out\": 8, \"k\": 3, \"s\": 2}"
#define DETECT(a)    "{\"op\": \"detect\", \"from\": " a "}"

static void test_config(void **state)
{
    static const struct { int code; const char *text, *what; } bad[] = {
        {HV_EINPUT, "{}", "layers"},
        {HV_EINPUT, HEAD(CONV), "layers"},
        {HV_EINPUT, HEAD(CONV "," CONV), "expected detect"},
        {HV_EINPUT, HEAD(CONV "," DETECT("[0, 0]")), "expected detect of 3"},
        {HV_EINPUT, HEAD(CONV "," DETECT("[0, 0, 1]")), "from"},
        {HV_EINPUT, HEAD("{\"op\": \"conv\", \"from\": [3], \"out\": 8}," DETECT("[0,0,0]")), "layer 0"},
        {HV_EUNSUP, HEAD("{\"op\": \"fly\", \"from\": [-1]}," DETECT("[0,0,0]")), "fly"},
        {HV_EINPUT, HEAD("{\"op\": \"c3\", \"from\": [-1], \"out\": 7}," DETECT("[0,0,0]")), "even"},
        {HV_EINPUT, HEAD("{\"op\": \"conv\", \"from\": [-1], \"out\": 8, \"k\": 2}," DETECT("[0,0,0]")), "odd"},
        {HV_EINPUT, HEAD("{\"op\": \"conv\", \"from\": [-1]}," DETECT("[0,0,0]")), "out"},
        {HV_EINPUT, HEAD("{\"op\": \"shuffle\", \"from\": [-1], \"out\": 8, \"stride\": 1}," DETECT("[0,0,0]")), "shuffle"},
        {HV_EINPUT, HEAD("{\"op\": \"conv\", \"from\": [-1, -1], \"out\": 8}," DETECT("[0,0,0]")), "expected one"},
        {HV_EUNSUP, "{\"activation\": \"relu\", \"layers\": []}", "relu"},
        {HV_EUNSUP, "{\"num_classes\": 80, \"layers\": []}", "80 classes"},
        {HV_EINPUT, "{\"anchors\": [[1, 2]], \"layers\": []}", "anchors"},
        {HV_EINPUT, "{\"strides\": [8], \"layers\": []}", "strides"},
    };
    struct face_config c;
    struct hv_err ok = {0};

    (void)state;
    assert_int_equal(parse(&c, HEAD(CONV "," DETECT("[0, 0, -1]")), &ok), 0);
    assert_int_equal(c.n, 1);
    assert_int_equal(c.detect[2], 0);
    assert_int_equal(c.layer[0].in, 3);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_err e = {0};

        assert_int_equal(parse(&c, bad[i].text, &e), bad[i].code);
        assert_non_null(strstr(e.msg, bad[i].what));
    }
}

static void test_input_size(void **state)
{
    static const int want[][4] = {{704, 704, 416, 416}, {768, 512, 640, 416}, {320, 384, 416, 512}, {320, 544, 416, 736}};
    struct face_config c = {.input_size = 416};

    (void)state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        int w, h;
        face_input_size(&c, want[i][0], want[i][1], &w, &h);
        assert_int_equal(w, want[i][2]);
        assert_int_equal(h, want[i][3]);
    }
}

static void set(float *row, float cx, float cy, float w, float h, float score)
{
    memset(row, 0, FACE_COLUMNS * sizeof *row);
    row[0] = cx;
    row[1] = cy;
    row[2] = w;
    row[3] = h;
    row[4] = score;
    row[15] = 1;
    row[5] = cx;
}

static void test_suppress(void **state)
{
    float pred[7 * FACE_COLUMNS];
    struct face_box *b;
    struct hv_err e = {0};
    int n;

    (void)state;
    set(pred + 0 * 16, 100, 100, 40, 40, 0.8f);
    set(pred + 1 * 16, 104, 100, 40, 40, 0.9f);             /* over the first: 36/44 */
    set(pred + 2 * 16, 300, 100, 60, 60, 0.7f);
    set(pred + 3 * 16, 300, 100, 60, 60, 0.7f);             /* a tie: the earlier row stays */
    pred[3 * 16 + 5] = 1;
    set(pred + 4 * 16, 130, 100, 40, 40, 0.6f);             /* over the second: 14/66 */
    set(pred + 5 * 16, 500, 100, 60, 60, 0.5f);             /* not above */
    set(pred + 6 * 16, 500, 300, 60, 60, 0.9f);
    pred[6 * 16 + 15] = 0.5f;                               /* 0.45 */
    assert_int_equal(face_suppress(&b, &n, pred, 7, 0.5, 0.45, &e), 0);
    assert_int_equal(n, 3);
    assert_true(b[0].x == 84 && b[0].y == 80 && b[0].w == 40 && b[0].h == 40);
    assert_true(b[1].x == 270 && b[1].landmark[0] == 300);
    assert_true(b[2].x == 110);
    face_scale(b, n, 200, 50, 400, 200);
    assert_true(b[0].x == 42 && b[0].y == 20 && b[0].w == 20 && b[0].h == 10 && b[1].landmark[0] == 150);
    free(b);
    pred[3] = NAN;
    assert_int_equal(face_suppress(&b, &n, pred, 7, 0.5, 0.45, &e), HV_ENUM);
    free(b);
}

static void test_choice(void **state)
{
    struct face_box b[4] = {{0, 0, 10, 10, 0.9, {0}}, {1, 0, 30, 30, 0.8, {0}}, {2, 0, 12, 12, 0.7, {0}}, {3, 0, 5, 5, 0.6, {0}}};

    (void)state;
    assert_int_equal(face_reference_choice(b, 4), 2);       /* the last above the first, not the largest */
    assert_int_equal(face_reference_choice(b + 1, 3), 0);
    face_sort_by_area(b, 4);
    assert_true(b[0].x == 1 && b[1].x == 2 && b[2].x == 0 && b[3].x == 3);
}

/* The mask against its definition: every pixel of the rectangle, then the mean of the four in the middle of a cell. */
static void test_mask(void **state)
{
    enum { W = 64, H = 128 };
    static const double box[][5] = {{10, 20, 12, 30, 3},   {0, 0, W, H, 1},     {30.5, 60.25, 3, 5, 1},  {-20, -10, 50, 40, 2},
                                    {60, 120, 90, 90, 3},  {27, 35, 2, 2, 1},   {500, 500, 10, 10, 3},   {19, 19, 11, 9, 1}};
    float mask[W / 8 * H / 8];

    (void)state;
    for (size_t i = 0; i < sizeof box / sizeof *box; i++) {
        const double *b = box[i];
        const double cx = floor((b[0] + b[0] + b[2]) / 2), cy = floor((b[1] + b[1] + b[3]) / 2);
        const double hw = floor(b[2] * b[4] / 2), hh = floor(b[3] * b[4] / 2);
        const int64_t lit = face_mask(mask, face_widen(b[0], b[1], b[2], b[3], W, H, b[4]), W, H);
        int64_t count = 0;

        for (int y = 0; y < H / 8; y++)
            for (int x = 0; x < W / 8; x++) {
                float sum = 0;
                for (int k = 0; k < 4; k++) {
                    const int py = 8 * y + 3 + k / 2, px = 8 * x + 3 + k % 2;
                    sum += px >= cx - hw && px < cx + hw && py >= cy - hh && py < cy + hh ? 0.25f : 0;
                }
                assert_true(mask[y * (W / 8) + x] == sum);
                count += sum > 0;
            }
        assert_int_equal(lit, count);
    }
}

/* ---- the focus layer, against a convolution written out ---- */

#define FOCUS "{\"strides\": [2, 2, 2], \"layers\": [{\"op\": \"focus\", \"from\": [-1], \"out\": 6, \"k\": 3}," DETECT("[0,0,0]") "]}"

enum { FH = 32, FW = 64, OH = FH / 2, OW = FW / 2, OC = 6, IC = 12 };

struct seen {
    struct hv_dev *d;
    float          out[OH * OW * OC];
    int            layers;
};

static void on_layer(void *ctx, int layer, hv_tensor out)
{
    struct seen *s = ctx;

    assert_int_equal(layer, 0);
    memcpy(s->out, out.data, sizeof s->out);
    s->layers++;
}

static void test_focus(void **state)
{
    static float picture[FH * FW * 3], w[OC * IC * 9], bias[OC], head[3][OH * OW * 48];
    struct face_config c;
    struct hv_wlist list = {0};
    struct hv_weights *weights;
    struct face *net;
    struct seen s = {0};
    struct hv_err e = {0};
    hv_tensor heads[3];

    (void)state;
    for (int i = 0; i < FH * FW * 3; i++)
        picture[i] = (float)(i * 7919 % 256) / 255;
    assert_int_equal(parse(&c, FOCUS, &e), 0);
    face_weights(&list, &c);
    assert_int_equal(hv_dev_open(&s.d, "cpu", 1, &e), 0);
    assert_int_equal(hv_weights_open_synth(&weights, s.d, &list, &(struct hv_synth_opts){.seed = 5, .as_stored = 1}, &e), 0);
    assert_int_equal(face_open(&net, s.d, weights, &c, FW, FH, &e), 0);
    for (int k = 0; k < 3; k++)
        heads[k] = hv_view(head[k], HV_F32, 3, (int64_t[]){OH, OW, 48});
    face_forward(net, heads, hv_view(picture, HV_F32, 3, (int64_t[]){FH, FW, 3}), on_layer, &s);
    assert_int_equal(hv_dev_sync(s.d, &e), 0);
    assert_int_equal(s.layers, 1);

    hv_synth(w, "model.0.conv.conv.weight", 4, (int64_t[]){OC, IC, 3, 3}, 5, 0, OC * IC * 9);
    hv_synth(bias, "model.0.conv.conv.bias", 1, (int64_t[]){OC}, 5, 0, OC);
    for (int y = 0; y < OH; y++)
        for (int x = 0; x < OW; x++)
            for (int o = 0; o < OC; o++) {
                double sum = bias[o];
                for (int i = 0; i < IC; i++)                    /* cell i / 3: row i / 3 % 2, column i / 6 */
                    for (int k = 0; k < 9; k++) {
                        const int yy = y + k / 3 - 1, xx = x + k % 3 - 1;
                        if (yy >= 0 && yy < OH && xx >= 0 && xx < OW)
                            sum += w[(o * IC + i) * 9 + k] *
                                   picture[((2 * yy + i / 3 % 2) * FW + 2 * xx + i / 6) * 3 + i % 3];
                    }
                assert_true(fabs(s.out[(y * OW + x) * OC + o] - sum / (1 + exp(-sum))) < 1e-5);
            }
    face_close(net);
    hv_weights_close(weights);
    hv_wlist_close(&list);
    hv_dev_close(s.d);
}

/* A graph whose heads are not of their strides is refused when its size is known. */
static void test_geometry(void **state)
{
    struct face_config c;
    struct hv_plan p = {0};
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(parse(&c, HEAD(CONV "," DETECT("[0,0,0]")), &e), 0);
    assert_int_equal(face_plan(&p, &c, 64, 64, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "stride"));
}

/* The same size: the same picture. Flat stays flat. Twice as wide: quarters between neighbours, the edge alone outside. */
static void test_resize_cv(void **state)
{
    uint8_t px[2 * 2 * 3] = {0, 0, 0, 100, 100, 100, 0, 0, 0, 100, 100, 100};
    struct hv_image src = {2, 2, px}, dst;
    struct hv_err e = {0};
    static const int want[4] = {0, 25, 75, 100};

    (void)state;
    assert_int_equal(hv_image_resize_cv(&dst, &src, 2, 2, &e), 0);
    assert_memory_equal(dst.rgb, px, sizeof px);
    hv_image_close(&dst);
    assert_int_equal(hv_image_resize_cv(&dst, &src, 4, 6, &e), 0);
    for (int y = 0; y < 6; y++)
        for (int x = 0; x < 4; x++)
            assert_int_equal(dst.rgb[(y * 4 + x) * 3 + 1], want[x]);
    hv_image_close(&dst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config), cmocka_unit_test(test_input_size), cmocka_unit_test(test_suppress),
        cmocka_unit_test(test_choice), cmocka_unit_test(test_mask),       cmocka_unit_test(test_focus),
        cmocka_unit_test(test_geometry), cmocka_unit_test(test_resize_cv),
    };

    return RUN(tests);
}
