#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/face.h"

static float logistic(float t)
{
    return 1 / (1 + expf(-t));
}

int64_t face_rows(const struct face_config *c, int w1, int h1)
{
    int64_t n = 0;

    for (int s = 0; s < FACE_SCALES; s++)
        n += FACE_ANCHORS * (h1 / c->stride[s]) * (w1 / c->stride[s]);
    return n;
}

void face_decode(float *pred, const struct face_config *c, const hv_tensor heads[FACE_SCALES])
{
    for (int s = 0; s < FACE_SCALES; s++) {
        const int64_t ny = heads[s].shape[0], nx = heads[s].shape[1];
        const float stride = (float)c->stride[s];

        for (int64_t i = 0; i < FACE_ANCHORS * ny * nx; i++, pred += FACE_COLUMNS) {
            const int64_t anchor = i / (ny * nx), row = i / nx % ny, column = i % nx;
            const float aw = (float)c->anchor[s][2 * anchor], ah = (float)c->anchor[s][2 * anchor + 1];
            const float x = (float)column, y = (float)row;
            const float *t = (const float *)heads[s].data + row * heads[s].stride[0] + column * heads[s].stride[1]
                             + anchor * FACE_COLUMNS;
            const float w2 = 2 * logistic(t[2]), h2 = 2 * logistic(t[3]);

            pred[0] = (2 * logistic(t[0]) - 0.5f + x) * stride;
            pred[1] = (2 * logistic(t[1]) - 0.5f + y) * stride;
            pred[2] = w2 * w2 * aw;
            pred[3] = h2 * h2 * ah;
            pred[4] = logistic(t[4]);
            for (int k = 5; k < 15; k += 2) {
                pred[k] = t[k] * aw + x * stride;
                pred[k + 1] = t[k + 1] * ah + y * stride;
            }
            pred[15] = logistic(t[15]);
        }
    }
}

/* ---- suppression: in float32, as the reference ---- */

struct candidate {
    float        x1, y1, x2, y2, score;
    const float *row;
    int          dropped;
};

static int by_score(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

static int overlap(const struct candidate *a, const struct candidate *b, float iou)
{
    const float w = fminf(a->x2, b->x2) - fmaxf(a->x1, b->x1), h = fminf(a->y2, b->y2) - fmaxf(a->y1, b->y1);
    const float both = (w > 0 ? w : 0) * (h > 0 ? h : 0);
    const float area_a = (a->x2 - a->x1) * (a->y2 - a->y1), area_b = (b->x2 - b->x1) * (b->y2 - b->y1);

    return both / (area_a + area_b - both) > iou;
}

int face_suppress(struct face_box **boxes, int *n, const float *pred, int64_t rows, double conf, double iou,
                  struct hv_err *e)
{
    struct candidate *list = malloc(((size_t)rows + 1) * sizeof *list);
    int found = 0, kept = 0;

    *n = 0;
    *boxes = malloc(((size_t)rows + 1) * sizeof **boxes);
    if (!list || !*boxes) {
        free(list);
        return hv_fail(e, HV_ENOMEM, "no memory for %lld candidates", (long long)rows);
    }
    for (int64_t i = 0; i < rows; i++) {
        const float *p = pred + i * FACE_COLUMNS, score = p[15] * p[4];

        for (int k = 0; k < FACE_COLUMNS; k++)
            if (!isfinite(p[k])) {
                free(list);
                return hv_fail(e, HV_ENUM, "face detector: row %lld of its prediction is not a number", (long long)i);
            }
        if (p[4] > (float)conf && score > (float)conf)
            list[found++] = (struct candidate){p[0] - p[2] / 2, p[1] - p[3] / 2, p[0] + p[2] / 2, p[1] + p[3] / 2, score, p, 0};
    }
    qsort(list, (size_t)found, sizeof *list, by_score);
    for (int i = 0; i < found; i++) {
        const struct candidate *c = &list[i];

        if (c->dropped)
            continue;
        for (int k = i + 1; k < found; k++)
            list[k].dropped |= overlap(c, &list[k], (float)iou);
        struct face_box *b = &(*boxes)[kept++];
        *b = (struct face_box){c->x1, c->y1, (double)c->x2 - c->x1, (double)c->y2 - c->y1, c->score, {0}};
        for (int k = 0; k < 10; k++)
            b->landmark[k] = c->row[5 + k];
    }
    free(list);
    *n = kept;
    return 0;
}

void face_scale(struct face_box *boxes, int n, int width, int height, int w1, int h1)
{
    for (int i = 0; i < n; i++) {
        struct face_box *b = &boxes[i];
        const double x2 = b->x + b->w, y2 = b->y + b->h;

        b->x = b->x * width / w1;
        b->y = b->y * height / h1;
        b->w = x2 * width / w1 - b->x;
        b->h = y2 * height / h1 - b->y;
        for (int k = 0; k < 10; k += 2) {
            b->landmark[k] *= (double)width / w1;
            b->landmark[k + 1] *= (double)height / h1;
        }
    }
}

static double area_of(const struct face_box *b)
{
    return b->w * b->h;
}

int face_reference_choice(const struct face_box *boxes, int n)
{
    int choice = 0;

    for (int i = 1; i < n; i++)
        if (area_of(&boxes[i]) > area_of(&boxes[0]))            /* the best area is never updated */
            choice = i;
    return choice;
}

void face_sort_by_area(struct face_box *boxes, int n)
{
    for (int i = 1; i < n; i++) {                               /* a picture has few faces; insertion is stable */
        const struct face_box b = boxes[i];
        int k = i;

        for (; k > 0 && area_of(&boxes[k - 1]) < area_of(&b); k--)
            boxes[k] = boxes[k - 1];
        boxes[k] = b;
    }
}

/* ---- mask ---- */

static int within(double v, double low, double high)
{
    return (int)(v < low ? low : v > high ? high : v);
}

/* max(c - half, 0) and min(c + half, n); what lies far outside stays an empty range. */
static void side(int *from, int *to, double x, double w, int n, double area)
{
    const double x2 = x + w, half = floor((x2 - x) * area / 2), centre = floor((x + x2) / 2);

    *from = within(centre - half, 0, 1 << 30);
    *to = within(centre + half, -(1 << 30), n);
}

struct face_rect face_widen(double x, double y, double w, double h, int width, int height, double area)
{
    struct face_rect r;

    side(&r.x0, &r.x1, x, w, width, area);
    side(&r.y0, &r.y1, y, h, height, area);
    return r;
}

int64_t face_mask(float *mask, struct face_rect r, int width, int height)
{
    int64_t lit = 0;

    for (int i = 0; i < height / 8; i++)
        for (int j = 0; j < width / 8; j++, mask++) {
            const int y = 8 * i + 3, x = 8 * j + 3;
            const int rows = (y >= r.y0 && y < r.y1) + (y + 1 >= r.y0 && y + 1 < r.y1);
            const int columns = (x >= r.x0 && x < r.x1) + (x + 1 >= r.x0 && x + 1 < r.x1);

            *mask = (float)(rows * columns) / 4;
            lit += *mask > 0;
        }
    return lit;
}
