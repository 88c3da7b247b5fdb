#include "io/image_codec.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

struct jpeg {
    struct jpeg_error_mgr         mgr;          /* first: libjpeg hands back a pointer to it */
    jmp_buf                       out;
    struct jpeg_decompress_struct c;
    struct hv_err                *e;
};

static void on_error(j_common_ptr c)
{
    struct jpeg *s = (struct jpeg *)c->err;
    char msg[JMSG_LENGTH_MAX];

    c->err->format_message(c, msg);
    hv_fail(s->e, HV_EINPUT, "damaged JPEG: %s", msg);
    longjmp(s->out, 1);
}

/* libjpeg paints over what is missing and only warns. Stray bytes between markers are harmless; lost pixels are not. */
static void on_message(j_common_ptr c, int level)
{
    static const int lost[] = {JWRN_JPEG_EOF, JWRN_HIT_MARKER, JWRN_HUFF_BAD_CODE, JWRN_ARITH_BAD_CODE, JWRN_MUST_RESYNC,
                               JWRN_NOT_SEQUENTIAL, JWRN_BOGUS_PROGRESSION};

    for (size_t i = 0; level < 0 && i < sizeof lost / sizeof *lost; i++)
        if (c->err->msg_code == lost[i])
            on_error(c);
}

static int orientation_of(const struct jpeg_decompress_struct *c)
{
    for (jpeg_saved_marker_ptr m = c->marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && !memcmp(m->data, "Exif\0", 6))
            return hv_exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

static int decode(struct jpeg *s, struct hv_image *im, const uint8_t *bytes, size_t n, int *orientation)
{
    struct jpeg_decompress_struct *c = &s->c;

    if (setjmp(s->out))
        return s->e->code;
    jpeg_create_decompress(c);
    jpeg_mem_src(c, bytes, (unsigned long)n);
    jpeg_save_markers(c, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(c, TRUE);
    *orientation = orientation_of(c);
    if (c->num_components == 4)
        return hv_fail(s->e, HV_EUNSUP, "a CMYK JPEG: convert it to RGB first");
    c->out_color_space = JCS_RGB;
    c->dct_method = JDCT_ISLOW;
    if (hv_image_open(im, c->image_width, c->image_height, s->e))
        return s->e->code;
    jpeg_start_decompress(c);
    while (c->output_scanline < c->output_height) {
        JSAMPROW row = im->rgb + (size_t)c->output_scanline * (size_t)im->width * 3;
        jpeg_read_scanlines(c, &row, 1);
    }
    jpeg_finish_decompress(c);
    return 0;
}

int hv_jpeg_decode(struct hv_image *im, const uint8_t *bytes, size_t n, int *orientation, struct hv_err *e)
{
    struct jpeg s = {.e = e};

    s.c.err = jpeg_std_error(&s.mgr);
    s.mgr.error_exit = on_error;
    s.mgr.emit_message = on_message;
    const int rc = decode(&s, im, bytes, n, orientation);
    jpeg_destroy_decompress(&s.c);
    return rc;
}
