#include "io/image_codec.h"

#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/temp.h"

/* What must survive a longjmp out of libpng lives here, not in locals. */
struct png {
    png_structp     handle;
    png_infop       info;
    struct hv_err  *e;
    const uint8_t  *p;                  /* input that is left */
    size_t          left;
    png_bytep      *row;
    FILE           *f;
};

static void on_error(png_structp handle, png_const_charp msg)
{
    struct png *s = png_get_error_ptr(handle);

    hv_fail(s->e, s->f ? HV_EIO : HV_EINPUT, s->f ? "png: %s" : "damaged PNG: %s", msg);
    png_longjmp(handle, 1);
}

static void on_warning(png_structp handle, png_const_charp msg)
{
    (void)handle;
    (void)msg;
}

static void feed(png_structp handle, png_bytep to, size_t n)
{
    struct png *s = png_get_io_ptr(handle);

    if (n > s->left)
        png_error(handle, "cut short");
    memcpy(to, s->p, n);
    s->p += n;
    s->left -= n;
}

static int rows_of(struct png *s, const struct hv_image *im)
{
    s->row = malloc((size_t)im->height * sizeof *s->row);
    if (!s->row)
        return hv_fail(s->e, HV_ENOMEM, "no memory for %d row pointers", im->height);
    for (int y = 0; y < im->height; y++)
        s->row[y] = im->rgb + (size_t)y * (size_t)im->width * 3;
    return 0;
}

static int decode(struct png *s, struct hv_image *im, int *orientation)
{
    png_structp h = s->handle;
    png_uint_32 n = 0;
    png_bytep exif = NULL;

    if (setjmp(png_jmpbuf(h)))
        return s->e->code;
    png_set_user_limits(h, 0x7fffffff, 0x7fffffff);             /* hv_image_open judges sizes */
    png_set_read_fn(h, s, feed);
    png_read_info(h, s->info);
    /* Deflate makes at most 1032 bytes of one: a file that cannot hold its pixels costs no memory. */
    if ((double)png_get_rowbytes(h, s->info) * png_get_image_height(h, s->info) > 1040.0 * (double)s->left + 4096)
        png_error(h, "cut short, or its size is wrong");
    if (hv_image_open(im, png_get_image_width(h, s->info), png_get_image_height(h, s->info), s->e) || rows_of(s, im))
        return s->e->code;
    png_set_strip_16(h);
    png_set_expand(h);                                          /* palettes, and gray below 8 bits */
    png_set_gray_to_rgb(h);
    png_set_strip_alpha(h);
    png_set_interlace_handling(h);
    png_read_update_info(h, s->info);
    if (png_get_rowbytes(h, s->info) != (size_t)im->width * 3)
        png_error(h, "pixels are not RGB");
    png_read_image(h, s->row);
    png_read_end(h, s->info);
    if (png_get_eXIf_1(h, s->info, &n, &exif))
        *orientation = hv_exif_orientation(exif, n);
    return 0;
}

int hv_png_decode(struct hv_image *im, const uint8_t *bytes, size_t n, int *orientation, struct hv_err *e)
{
    struct png s = {.e = e, .p = bytes, .left = n};

    s.handle = png_create_read_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
    if (s.handle)
        s.info = png_create_info_struct(s.handle);
    const int rc = s.info ? decode(&s, im, orientation) : hv_fail(e, HV_ENOMEM, "libpng cannot start");
    png_destroy_read_struct(&s.handle, &s.info, NULL);
    free(s.row);
    return rc;
}

static int encode(struct png *s, const struct hv_image *im)
{
    png_structp h = s->handle;

    if (setjmp(png_jmpbuf(h)))
        return s->e->code;
    png_init_io(h, s->f);
    png_set_IHDR(h, s->info, (png_uint_32)im->width, (png_uint_32)im->height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(h, s->info);
    png_write_image(h, s->row);
    png_write_end(h, NULL);
    return 0;
}

int hv_image_write_png(const struct hv_image *im, const char *path, struct hv_err *e)
{
    struct png s = {.e = e};
    char tmp[HV_PATH];
    int fd, rc;

    if (hv_temp_open(tmp, path, &fd, e))
        return e->code;
    s.f = fdopen(fd, "wb");
    if (!s.f)
        close(fd);
    s.handle = png_create_write_struct(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning);
    if (s.handle)
        s.info = png_create_info_struct(s.handle);
    if (!s.f || !s.info)
        rc = hv_fail(e, HV_ENOMEM, "libpng cannot start");
    else if (!(rc = rows_of(&s, im)))
        rc = encode(&s, im);
    png_destroy_write_struct(&s.handle, &s.info);
    free(s.row);
    if (s.f && fclose(s.f) && !rc)
        rc = hv_fail(e, HV_EIO, "write failed");
    if (rc) {
        hv_temp_discard(tmp);
        return hv_context(e, "%s", path);
    }
    return hv_temp_commit(tmp, path, e);
}
