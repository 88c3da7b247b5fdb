#define _POSIX_C_SOURCE 200809L
#include "boxes.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"

#define FRAMES_MAX 10000000

static int read_line(struct face_box *b, const char *line, size_t n, struct hv_err *e)
{
    json_t *root = NULL;
    double v[4];

    if (hv_json_parse(&root, line, n, 8, e))
        return e->code;
    const json_t *box = json_object_get(root, "box");
    *b = (struct face_box){.score = 1};
    if (!json_is_null(box)) {
        int bad = json_array_size(box) != 4;
        for (size_t i = 0; i < 4 && !bad; i++) {
            const json_t *x = json_array_get(box, i);
            v[i] = json_is_number(x) ? json_number_value(x) : NAN;
            bad = !(v[i] > -1e6 && v[i] < 1e6);
        }
        if (bad || v[2] <= 0 || v[3] <= 0)
            hv_fail(e, HV_EINPUT, "expected {\"box\":[x,y,width,height]}, or {\"box\":null}");
        else
            *b = (struct face_box){v[0], v[1], v[2], v[3], 1, {0}};
    }
    json_decref(root);
    return e->code;
}

int boxes_read(struct face_box **box, int *n, const char *path, struct hv_err *e)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t size = 0;
    ssize_t length;

    *n = 0;
    if (!f)
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    while (!e->code && (length = getline(&line, &size, f)) > 0) {
        if (*n == FRAMES_MAX || !(*n & (*n - 1))) {     /* room for twice as many */
            struct face_box *more = *n == FRAMES_MAX ? NULL : realloc(*box, (size_t)(*n ? 2 * *n : 1) * sizeof *more);
            if (!more) {
                hv_fail(e, HV_ENOMEM, "%s: no memory for more than %d boxes", path, *n);
                break;
            }
            *box = more;
        }
        if (read_line(&(*box)[*n], line, (size_t)length, e))
            hv_context(e, "%s:%d", path, *n + 1);
        ++*n;
    }
    if (!e->code && ferror(f))
        hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    if (!e->code && !*n)
        hv_fail(e, HV_EINPUT, "%s: no boxes", path);
    free(line);
    fclose(f);
    return e->code;
}

int64_t boxes_latents(int n)
{
    return (n + 2) / 4 + 1;
}

int boxes_masks(float *mask, const struct face_box *box, int n, int width, int height, double area, struct hv_err *e)
{
    const int64_t pixels = (int64_t)(height / 8) * (width / 8);
    float *one = calloc((size_t)pixels, sizeof *one);

    if (!one)
        return hv_fail(e, HV_ENOMEM, "no memory for a mask");
    memset(mask, 0, (size_t)(boxes_latents(n) * pixels) * sizeof *mask);
    for (int i = 0; i < n && !e->code; i++) {
        const struct face_box *b = &box[i];
        float *to = mask + (i + 3) / 4 * pixels;
        if (!(b->w > 0))
            continue;
        if (!face_mask(one, face_widen(b->x, b->y, b->w, b->h, width, height, area), width, height))
            hv_fail(e, HV_EFACE, "frame %d: the box, %.0f x %.0f at %.0f,%.0f, covers nothing of a picture of %d x %d", i, b->w, b->h, b->x,
                    b->y, width, height);
        for (int64_t p = 0; p < pixels && !e->code; p++)
            to[p] = one[p] > to[p] ? one[p] : to[p];
    }
    free(one);
    return e->code;
}
