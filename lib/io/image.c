#include "io/image_codec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int hv_image_open(struct hv_image *im, int64_t width, int64_t height, struct hv_err *e)
{
    *im = (struct hv_image){0};
    if (width < 1 || height < 1)
        return hv_fail(e, HV_EINPUT, "a picture of %lld x %lld pixels", (long long)width, (long long)height);
    if (width > HV_IMAGE_PIXELS || height > HV_IMAGE_PIXELS || width * height > HV_IMAGE_PIXELS)
        return hv_fail(e, HV_EINPUT, "%lld x %lld pixels, at most %lld are taken", (long long)width, (long long)height,
                       (long long)HV_IMAGE_PIXELS);
    im->rgb = calloc((size_t)(width * height), 3);
    if (!im->rgb)
        return hv_fail(e, HV_ENOMEM, "no memory for a picture of %lld x %lld pixels", (long long)width,
                       (long long)height);
    im->width = (int)width;
    im->height = (int)height;
    return 0;
}

void hv_image_close(struct hv_image *im)
{
    free(im->rgb);
    *im = (struct hv_image){0};
}

/* ---- EXIF ---- */

static unsigned get16(const uint8_t *p, int big)
{
    return big ? (unsigned)p[0] << 8 | p[1] : (unsigned)p[1] << 8 | p[0];
}

static uint32_t get32(const uint8_t *p, int big)
{
    return big ? (uint32_t)get16(p, 1) << 16 | get16(p + 2, 1) : (uint32_t)get16(p + 2, 0) << 16 | get16(p, 0);
}

int hv_exif_orientation(const uint8_t *t, size_t n)
{
    enum { ORIENTATION = 0x112, SHORT = 3, ENTRY = 12 };

    if (n < 8 || (memcmp(t, "II*\0", 4) && memcmp(t, "MM\0*", 4)))
        return 1;
    const int big = t[0] == 'M';
    const size_t ifd = get32(t + 4, big);
    if (ifd > n - 2 || ifd < 8)
        return 1;
    for (size_t k = get16(t + ifd, big), at = ifd + 2; k > 0 && at + ENTRY <= n; k--, at += ENTRY)
        if (get16(t + at, big) == ORIENTATION && get16(t + at + 2, big) == SHORT) {
            const unsigned v = get16(t + at + 8, big);
            return v >= 1 && v <= 8 ? (int)v : 1;
        }
    return 1;
}

/* Makes the picture upright. Orientation o says where the stored first row and column belong: 2 mirrored, 3 turned by 180
 * degrees, 4 upside down, 5..8 the same with rows and columns exchanged. */
static int turn(struct hv_image *im, int o, struct hv_err *e)
{
    struct hv_image out;
    const int swap = o >= 5;
    const int flip_x = o == 2 || o == 3 || o == 7 || o == 8, flip_y = o == 3 || o == 4 || o == 6 || o == 7;

    if (o == 1)
        return 0;
    if (hv_image_open(&out, swap ? im->height : im->width, swap ? im->width : im->height, e))
        return e->code;
    for (int y = 0; y < out.height; y++)
        for (int x = 0; x < out.width; x++) {
            int sx = swap ? y : x, sy = swap ? x : y;           /* the stored pixel that is seen at (x, y) */

            if (flip_x)
                sx = im->width - 1 - sx;
            if (flip_y)
                sy = im->height - 1 - sy;
            memcpy(out.rgb + ((size_t)y * (size_t)out.width + (size_t)x) * 3,
                   im->rgb + ((size_t)sy * (size_t)im->width + (size_t)sx) * 3, 3);
        }
    hv_image_close(im);
    *im = out;
    return 0;
}

/* ---- PPM and PGM ---- */

struct text {
    const uint8_t *p, *end;
};

/* The next decimal number after white space and comments; -1 when there is none or it passes 10^8. */
static int64_t number(struct text *t)
{
    int64_t v = 0;

    while (t->p < t->end && (*t->p == '#' || (*t->p >= 9 && *t->p <= 13) || *t->p == ' ')) {
        if (*t->p == '#')
            while (t->p < t->end && *t->p != '\n')
                t->p++;
        else
            t->p++;
    }
    if (t->p == t->end || *t->p < '0' || *t->p > '9')
        return -1;
    for (; t->p < t->end && *t->p >= '0' && *t->p <= '9'; t->p++) {
        v = v * 10 + (*t->p - '0');
        if (v > 100000000)
            return -1;
    }
    return v;
}

int hv_pnm_decode(struct hv_image *im, const uint8_t *bytes, size_t n, struct hv_err *e)
{
    const int kind = bytes[1] - '0', channels = kind == 3 || kind == 6 ? 3 : 1, plain = kind < 5;
    struct text t = {bytes + 2, bytes + n};
    const int64_t w = number(&t), h = number(&t), max = number(&t);

    if (w < 1 || h < 1 || max < 1 || max > 65535)
        return hv_fail(e, HV_EINPUT, "P%d picture with a damaged header", kind);
    if (!plain && t.p < t.end)
        t.p++;                                                  /* one white space ends the header */
    if (w > HV_IMAGE_PIXELS || h > HV_IMAGE_PIXELS || w * h > HV_IMAGE_PIXELS)
        return hv_image_open(im, w, h, e);                      /* says what is wrong */

    const size_t values = (size_t)(w * h) * (size_t)channels, size = max > 255 ? 2 : 1;
    const size_t there = (size_t)(t.end - t.p), least = plain ? values * 2 - 1 : values * size;
    if (there < least)
        return hv_fail(e, HV_EINPUT, "cut short: %zu of %zu bytes of pixels", there, least);
    if (hv_image_open(im, w, h, e))
        return e->code;
    for (size_t i = 0; i < values; i++) {
        const int64_t v = plain ? number(&t) : size == 2 ? t.p[2 * i] << 8 | t.p[2 * i + 1] : t.p[i];

        if (v < 0 || v > max)
            return hv_fail(e, HV_EINPUT, "value %zu of the pixels is missing or above %lld", i, (long long)max);
        memset(im->rgb + (channels == 3 ? i : 3 * i), (int)((v * 255 + max / 2) / max), channels == 3 ? 1 : 3);
    }
    return 0;
}

/* ---- any format ---- */

int hv_image_decode(struct hv_image *im, const void *bytes, size_t n, int exif, struct hv_err *e)
{
    const uint8_t *b = bytes;
    int orientation = 1, rc;

    *im = (struct hv_image){0};
    if (n >= 8 && !memcmp(b, "\x89PNG\r\n\x1a\n", 8))
        rc = hv_png_decode(im, b, n, &orientation, e);
    else if (n >= 3 && !memcmp(b, "\xff\xd8\xff", 3))
        rc = hv_jpeg_decode(im, b, n, &orientation, e);
    else if (n >= 3 && b[0] == 'P' && strchr("2356", b[1] ? b[1] : ' ') && (b[2] <= ' ' || b[2] == '#'))
        rc = hv_pnm_decode(im, b, n, e);
    else if (!n)
        rc = hv_fail(e, HV_EINPUT, "is empty");
    else
        rc = hv_fail(e, HV_EINPUT, "is not a PNG, JPEG, PPM or PGM picture");
    if (!rc && exif)
        rc = turn(im, orientation, e);
    if (rc)
        hv_image_close(im);
    return rc;
}

/* All bytes of fd, which may be a pipe. */
static int slurp(int fd, uint8_t **bytes, size_t *n, struct hv_err *e)
{
    size_t cap = 0;

    for (;;) {
        if (*n == cap) {
            cap = cap ? 2 * cap : (size_t)1 << 18;
            if (cap > HV_IMAGE_BYTES)
                return hv_fail(e, HV_EINPUT, "more than %zu bytes", HV_IMAGE_BYTES / 2);
            uint8_t *more = realloc(*bytes, cap);
            if (!more)
                return hv_fail(e, HV_ENOMEM, "no memory for a file of %zu bytes", cap);
            *bytes = more;
        }
        const ssize_t got = read(fd, *bytes + *n, cap - *n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return hv_fail(e, HV_EIO, "%s", strerror(errno));
        if (!got)
            return 0;
        *n += (size_t)got;
    }
}

int hv_image_read(struct hv_image *im, const char *path, int exif, struct hv_err *e)
{
    const int piped = !path || !strcmp(path, "-");
    const char *name = piped ? "stdin" : path;
    const int fd = piped ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *bytes = NULL;
    size_t n = 0;

    *im = (struct hv_image){0};
    if (fd < 0)
        return hv_fail(e, HV_EIO, "%s: %s", name, strerror(errno));
    int rc = slurp(fd, &bytes, &n, e);
    if (!piped)
        close(fd);
    if (!rc)
        rc = hv_image_decode(im, bytes, n, exif, e);
    free(bytes);
    return rc ? hv_context(e, "%s", name) : 0;
}

int hv_image_portrait(struct hv_image *im, const char *path, int tier, int exif, struct hv_err *e)
{
    struct hv_image stored;
    int w, h, rc;

    *im = (struct hv_image){0};
    if (hv_image_read(&stored, path, exif, e))
        return e->code;
    rc = hv_image_size_rule(stored.width, stored.height, tier, &w, &h, e);
    if (!rc)
        rc = hv_image_resize(im, &stored, w, h, HV_LANCZOS, e);
    hv_image_close(&stored);
    return rc ? hv_context(e, "%s", path && strcmp(path, "-") ? path : "stdin") : 0;
}
