/* Pictures: the decoders on files made here, EXIF, cut and damaged files, the size rule and the resampling on the goldens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jpeglib.h>
#include <png.h>

#include "io/image.h"
#include "io/st.h"

#define W 13
#define H 7

static uint8_t sample[H * W * 3];

static int fill(void **state)
{
    (void)state;
    for (int i = 0; i < H * W * 3; i++)
        sample[i] = (uint8_t)(i * 37 + i / 50);
    return 0;
}

struct bytes {
    uint8_t data[1 << 16];
    size_t  n;
};

static void append(png_structp png, png_bytep p, size_t n)
{
    struct bytes *b = png_get_io_ptr(png);

    assert_true(b->n + n <= sizeof b->data);
    memcpy(b->data + b->n, p, n);
    b->n += n;
}

static void no_flush(png_structp png)
{
    (void)png;
}

/* A PNG of the given kind whose rows are `stride` bytes of `rows`. */
static void make_png(struct bytes *b, int type, int depth, int interlace, const uint8_t *rows, size_t stride)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_bytep row[H];
    png_color palette[4] = {{1, 2, 3}, {40, 50, 60}, {255, 0, 128}, {9, 99, 199}};
    png_byte alpha[2] = {0, 128};

    b->n = 0;
    png_set_write_fn(png, b, append, no_flush);
    png_set_IHDR(png, info, W, H, depth, type, interlace, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_set_PLTE(png, info, palette, 4);
        png_set_tRNS(png, info, alpha, 2, NULL);
    }
    png_write_info(png, info);
    for (int y = 0; y < H; y++)
        row[y] = (png_bytep)rows + (size_t)y * stride;
    png_write_image(png, row);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
}

static void expect(const struct bytes *b, const uint8_t want[H * W * 3])
{
    struct hv_image im;
    struct hv_err e = {0};

    assert_int_equal(hv_image_decode(&im, b->data, b->n, 1, &e), 0);
    assert_int_equal(im.width, W);
    assert_int_equal(im.height, H);
    assert_memory_equal(im.rgb, want, H * W * 3);
    hv_image_close(&im);
}

static void test_png_kinds(void **state)
{
    static struct bytes b;
    uint8_t raw[H * W * 8], want[H * W * 3];
    const png_color palette[4] = {{1, 2, 3}, {40, 50, 60}, {255, 0, 128}, {9, 99, 199}};

    (void)state;
    make_png(&b, PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_NONE, sample, W * 3);
    expect(&b, sample);
    make_png(&b, PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_ADAM7, sample, W * 3);
    expect(&b, sample);
    for (int i = 0; i < H * W; i++) {                           /* alpha is dropped, not blended */
        memcpy(raw + 4 * i, sample + 3 * i, 3);
        raw[4 * i + 3] = (uint8_t)i;
    }
    make_png(&b, PNG_COLOR_TYPE_RGB_ALPHA, 8, PNG_INTERLACE_NONE, raw, W * 4);
    expect(&b, sample);
    for (int i = 0; i < H * W * 3; i++) {                       /* 16 bits: the high byte */
        raw[2 * i] = sample[i];
        raw[2 * i + 1] = 0xc0;
    }
    make_png(&b, PNG_COLOR_TYPE_RGB, 16, PNG_INTERLACE_NONE, raw, W * 6);
    expect(&b, sample);
    for (int y = 0; y < H; y++) {                               /* 2-bit palette with a transparent entry; 4-bit gray */
        memset(raw + 4 * y, 0, 4);
        for (int x = 0; x < W; x++) {
            raw[4 * y + x / 4] |= (uint8_t)((x + y) % 4 << (6 - x % 4 * 2));
            memcpy(want + (y * W + x) * 3, &palette[(x + y) % 4], 3);
        }
    }
    make_png(&b, PNG_COLOR_TYPE_PALETTE, 2, PNG_INTERLACE_NONE, raw, 4);
    expect(&b, want);
    for (int y = 0; y < H; y++) {
        memset(raw + 7 * y, 0, 7);
        for (int x = 0; x < W; x++) {
            raw[7 * y + x / 2] |= (uint8_t)((3 * x + y) % 16 << (4 - x % 2 * 4));
            memset(want + (y * W + x) * 3, (3 * x + y) % 16 * 17, 3);
        }
    }
    make_png(&b, PNG_COLOR_TYPE_GRAY, 4, PNG_INTERLACE_NONE, raw, 7);
    expect(&b, want);
}

/* A JPEG of 16 x 8 pixels, left half white and right half black, with an EXIF block if orientation is not 0. */
static unsigned long make_jpeg(unsigned char **out, int orientation, J_COLOR_SPACE space)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr mgr;
    unsigned long n = 0;
    unsigned char line[16 * 4], *row = line;
    unsigned char exif[] = "Exif\0\0MM\0*\0\0\0\10\0\1\1\22\0\3\0\0\0\1\0\0\0\0\0\0\0\0";

    *out = NULL;
    c.err = jpeg_std_error(&mgr);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, out, &n);
    c.image_width = 16;
    c.image_height = 8;
    c.input_components = space == JCS_CMYK ? 4 : 3;
    c.in_color_space = space;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 100, TRUE);
    jpeg_start_compress(&c, TRUE);
    exif[25] = (unsigned char)orientation;
    if (orientation)
        jpeg_write_marker(&c, JPEG_APP0 + 1, exif, sizeof exif - 1);
    for (int x = 0; x < 16 * c.input_components; x++)
        line[x] = x < 8 * c.input_components ? 255 : 0;
    for (int y = 0; y < 8; y++)
        jpeg_write_scanlines(&c, &row, 1);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return n;
}

static void test_jpeg_orientation(void **state)
{
    /* where white is, as seen: 0 left, 1 right, 2 top, 3 bottom */
    static const int white[9] = {0, 0, 1, 1, 0, 2, 2, 3, 3};

    (void)state;
    for (int o = 0; o <= 8; o++) {
        unsigned char *jpeg;
        const unsigned long n = make_jpeg(&jpeg, o, JCS_RGB);
        struct hv_image im;
        struct hv_err e = {0};

        assert_int_equal(hv_image_decode(&im, jpeg, n, 1, &e), 0);
        assert_int_equal(im.width, o >= 5 ? 8 : 16);
        assert_int_equal(im.height, o >= 5 ? 16 : 8);
        const uint8_t first = im.rgb[0], last = im.rgb[(size_t)im.width * (size_t)im.height * 3 - 1];
        const uint8_t right = im.rgb[(im.width - 1) * 3];
        const int seen = first > 250 ? (right > 250 ? 2 : 0) : (right > 250 ? 1 : 3);
        assert_int_equal(seen, white[o]);
        assert_true(first > 250 ? last < 5 : last > 250);
        hv_image_close(&im);

        assert_int_equal(hv_image_decode(&im, jpeg, n, 0, &e), 0);      /* as stored */
        assert_int_equal(im.width, 16);
        hv_image_close(&im);
        free(jpeg);
    }
}

static void test_jpeg_cmyk(void **state)
{
    unsigned char *jpeg;
    const unsigned long n = make_jpeg(&jpeg, 0, JCS_CMYK);
    struct hv_image im;
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(hv_image_decode(&im, jpeg, n, 1, &e), HV_EUNSUP);
    assert_null(im.rgb);
    free(jpeg);
}

static void test_pnm(void **state)
{
    static struct bytes b;
    uint8_t gray[H * W * 3];

    (void)state;
    b.n = (size_t)sprintf((char *)b.data, "P6\n# a comment\n%d %d\n255\n", W, H);
    memcpy(b.data + b.n, sample, sizeof sample);
    b.n += sizeof sample;
    expect(&b, sample);
    b.n = (size_t)sprintf((char *)b.data, "P6 %d %d 65535 ", W, H);
    for (size_t i = 0; i < sizeof sample; i++) {
        b.data[b.n++] = sample[i];
        b.data[b.n++] = sample[i];
    }
    expect(&b, sample);
    b.n = (size_t)sprintf((char *)b.data, "P3 %d %d 255\n", W, H);
    for (size_t i = 0; i < sizeof sample; i++)
        b.n += (size_t)sprintf((char *)b.data + b.n, "%d ", sample[i]);
    expect(&b, sample);
    b.n = (size_t)sprintf((char *)b.data, "P5 %d %d 15\n", W, H);
    for (int i = 0; i < H * W; i++) {
        b.data[b.n++] = (uint8_t)(i % 16);
        memset(gray + 3 * i, i % 16 * 17, 3);
    }
    expect(&b, gray);
}

/* Every proper prefix of a file is refused, with a message and nothing left behind; so is what is not a picture. */
static void test_cut(void **state)
{
    static struct bytes png;
    unsigned char *jpeg;
    const unsigned long n = make_jpeg(&jpeg, 6, JCS_RGB);
    static const char *const bad[] = {"", "P6", "P6 3 3 255\nabc", "P6 0 3 255\n", "P6 99999999 99999999 255\n", "P7 1 1 1 a",
                                      "P5 1 1 70000 ab", "P2 2 1 9 10 1", "GIF89a", "P6 40000 40000 255\n"};

    (void)state;
    make_png(&png, PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_NONE, sample, W * 3);
    for (size_t cut = 0; cut < png.n; cut++) {
        struct hv_image im;
        struct hv_err e = {0};
        assert_int_equal(hv_image_decode(&im, png.data, cut, 1, &e), HV_EINPUT);
        assert_null(im.rgb);
        assert_true(e.msg[0] && !strchr(e.msg, '\n'));
    }
    for (size_t cut = 0; cut < n - 2; cut++) {                  /* without its last marker a JPEG has all its pixels */
        struct hv_image im;
        struct hv_err e = {0};
        assert_int_equal(hv_image_decode(&im, jpeg, cut, 1, &e), HV_EINPUT);
        assert_null(im.rgb);
        assert_true(e.msg[0] && !strchr(e.msg, '\n'));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct hv_image im;
        struct hv_err e = {0};
        assert_int_equal(hv_image_decode(&im, bad[i], strlen(bad[i]), 1, &e), HV_EINPUT);
        assert_null(im.rgb);
    }
    png.data[60] ^= 0x55;                                       /* inside the pixels: the checksum tells */
    struct hv_image im;
    struct hv_err e = {0};
    assert_int_equal(hv_image_decode(&im, png.data, png.n, 1, &e), HV_EINPUT);
    free(jpeg);
}

static void test_file(void **state)
{
    char path[] = "/tmp/hv-test-XXXXXX", png[64];
    const int fd = mkstemp(path);
    struct hv_image im = {W, H, sample}, back;
    struct hv_err e = {0};

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    snprintf(png, sizeof png, "%s.png", path);
    assert_int_equal(hv_image_write_png(&im, png, &e), 0);
    assert_int_equal(hv_image_read(&back, png, 1, &e), 0);
    assert_int_equal(back.width, W);
    assert_memory_equal(back.rgb, sample, sizeof sample);
    hv_image_close(&back);
    unlink(png);
    unlink(path);
    assert_int_equal(hv_image_read(&back, png, 1, &e), HV_EIO);
    assert_non_null(strstr(e.msg, png));
    struct hv_err e2 = {0};
    assert_int_equal(hv_image_write_png(&im, "/nonexistent/x.png", &e2), HV_EIO);
}

static void test_size_rule(void **state)
{
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    hv_tensor t;
    int w, h;

    (void)state;
    assert_int_equal(hv_in_open(&in, "tests/golden/sampling/resize_rule.safetensors", &e), 0);
    assert_int_equal(hv_in_tensor(in, hv_in_entry(in, 0)->name, &t, &e), 0);
    assert_true(t.shape[0] > 0 && t.shape[1] == 5);
    for (int64_t r = 0; r < t.shape[0]; r++) {
        const int32_t *row = (const int32_t *)t.data + 5 * r;
        assert_int_equal(hv_image_size_rule(row[1], row[2], row[0], &w, &h, &e), 0);
        assert_int_equal(w, row[3]);
        assert_int_equal(h, row[4]);
    }
    hv_in_close(in);
    assert_int_equal(hv_image_size_rule(9000, 8, 704, &w, &h, &e), HV_EINPUT);
}

static void test_resize_golden(void **state)
{
    static const char *const file[] = {"tests/golden/sampling/image_150x100_tier64.safetensors",
                                       "tests/golden/sampling/image_90x131_tier128.safetensors"};
    int ran = 0;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct hv_in *in = NULL;
        struct hv_err e = {0};
        struct hv_image src, dst;
        hv_tensor x, y;

        if (access(file[i], R_OK))                              /* the tree keeps one of the two */
            continue;
        ran++;
        assert_int_equal(hv_in_open(&in, file[i], &e), 0);
        assert_int_equal(hv_in_tensor(in, "input.rgb", &x, &e), 0);
        assert_int_equal(hv_in_tensor(in, "resized.rgb", &y, &e), 0);
        src = (struct hv_image){(int)x.shape[1], (int)x.shape[0], x.data};
        assert_int_equal(hv_image_resize(&dst, &src, (int)y.shape[1], (int)y.shape[0], HV_LANCZOS, &e), 0);
        assert_memory_equal(dst.rgb, y.data, hv_nbytes(y));
        hv_image_close(&dst);
        hv_in_close(in);
    }
    assert_true(ran > 0);
}

static void test_resize_plain(void **state)
{
    struct hv_image src = {W, H, sample}, dst;
    struct hv_err e = {0};
    uint8_t flat[H * W * 3];

    (void)state;
    assert_int_equal(hv_image_resize(&dst, &src, W, H, HV_BILINEAR, &e), 0);        /* nothing to do: the same pixels */
    assert_memory_equal(dst.rgb, sample, sizeof sample);
    hv_image_close(&dst);
    memset(flat, 201, sizeof flat);
    src.rgb = flat;
    for (int f = HV_BILINEAR; f <= HV_LANCZOS; f++) {                               /* weights sum to one */
        assert_int_equal(hv_image_resize(&dst, &src, 700, 3, (enum hv_filter)f, &e), 0);
        for (int i = 0; i < 700 * 3 * 3; i++)
            assert_int_equal(dst.rgb[i], 201);
        hv_image_close(&dst);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png_kinds),     cmocka_unit_test(test_jpeg_orientation), cmocka_unit_test(test_jpeg_cmyk),
        cmocka_unit_test(test_pnm),           cmocka_unit_test(test_cut),              cmocka_unit_test(test_file),
        cmocka_unit_test(test_size_rule),     cmocka_unit_test(test_resize_golden),    cmocka_unit_test(test_resize_plain),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, fill, NULL);
}
