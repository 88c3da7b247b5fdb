#include "io/preview.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/json.h"

/* ---- the map ---- */

/* latent_rgb_factors of Wan2GP's pipeline for this VAE; bias and rows by channel. */
static const double hunyuan[16][3] = {
    {-.0395, -.0331, .0445},  {.0696, .0795, .0518},    {.0135, -.0945, -.0282},  {.0108, -.0250, -.0765},
    {-.0209, .0032, .0224},   {-.0804, -.0254, -.0639}, {-.0991, .0271, -.0669},  {-.0646, -.0422, -.0400},
    {-.0696, -.0595, -.0894}, {-.0799, -.0208, -.0375}, {.1166, .1627, .0962},    {.1165, .0432, .0407},
    {-.2315, -.1920, -.1355}, {-.0270, .0401, -.0821},  {-.0616, -.0997, -.0727}, {.0249, -.0469, -.1703},
};
static const double hunyuan_bias[3] = {.0259, -.0192, -.0761};

static int triple(double v[3], const json_t *a)
{
    for (size_t c = 0; c < 3; c++) {
        const json_t *x = json_array_get(a, c);
        if (!json_is_number(x) || !isfinite(json_number_value(x)))
            return 1;
        v[c] = json_number_value(x);
    }
    return json_array_size(a) != 3;
}

static int choose(struct hv_preview_map *m, const json_t *config, int64_t channels, struct hv_err *e)
{
    const json_t *own = json_object_get(config, "preview"), *rows = json_object_get(own, "map");

    memset(m, 0, sizeof *m);
    m->channels = channels;
    if (channels < 1 || channels > HV_PREVIEW_CHANNELS)
        return hv_fail(e, HV_EUNSUP, "preview: latents of %lld channels, at most %d", (long long)channels, HV_PREVIEW_CHANNELS);
    if (!own && channels == 16) {
        memcpy(m->rgb, hunyuan, sizeof hunyuan);
        memcpy(m->bias, hunyuan_bias, sizeof hunyuan_bias);
        return 0;
    }
    if (!own)
        return hv_fail(e, HV_EUNSUP, "preview: no colours are known for latents of %lld channels: hv-tensor fit-preview makes them",
                       (long long)channels);
    if ((int64_t)json_array_size(rows) != channels || triple(m->bias, json_object_get(own, "bias")))
        return hv_fail(e, HV_EINPUT, "preview: expected \"map\" with %lld rows of 3 numbers and \"bias\" of 3", (long long)channels);
    for (int64_t k = 0; k < channels; k++)
        if (triple(m->rgb[k], json_array_get(rows, (size_t)k)))
            return hv_fail(e, HV_EINPUT, "preview: row %lld of \"map\": expected 3 numbers", (long long)k);
    return 0;
}

void hv_preview_color(const struct hv_preview_map *m, const float *z, int64_t stride, double rgb[3])
{
    for (int c = 0; c < 3; c++)
        rgb[c] = m->bias[c];
    for (int64_t k = 0; k < m->channels; k++)
        for (int c = 0; c < 3; c++)
            rgb[c] += (double)z[k * stride] * m->rgb[k][c];
    for (int c = 0; c < 3; c++)
        rgb[c] = (rgb[c] + 1) / 2;
}

int hv_preview_map(struct hv_preview_map *m, const char *model, int64_t channels, struct hv_err *e)
{
    json_t *config = NULL;
    char path[4096];
    int there = model && *model;

    if (there && snprintf(path, sizeof path, "%s/vae/config.json", model) >= (int)sizeof path)
        return hv_fail(e, HV_EIO, "%.80s..: the name is too long", model);
    there = there && !access(path, F_OK);
    if ((!there || !hv_json_read(&config, path, e)) && choose(m, config, channels, e) && there)
        hv_context(e, "%s", path);
    json_decref(config);
    return e->code;
}

uint8_t hv_preview_level(double x)
{
    return isnan(x) || x <= 0 ? 0 : x >= 1 ? 255 : (uint8_t)(x * 255 + 0.5);
}

/* ---- drawing ---- */

static void dot(struct hv_image *im, int64_t x, int64_t y, const uint8_t rgb[3])
{
    if (x >= 0 && y >= 0 && x < im->width && y < im->height)
        memcpy(im->rgb + (y * im->width + x) * 3, rgb, 3);
}

void hv_preview_number(struct hv_image *im, int64_t left, int64_t top, int64_t size, const char *text)
{
    /* five rows of three dots, the left one the highest bit */
    static const uint8_t glyph[11][5] = {{7, 5, 5, 5, 7}, {2, 6, 2, 2, 7}, {7, 1, 7, 4, 7}, {7, 1, 7, 1, 7}, {5, 5, 7, 1, 1}, {7, 4, 7, 1, 7},
                                         {7, 4, 7, 5, 7}, {7, 1, 1, 2, 2}, {7, 5, 7, 5, 7}, {7, 5, 7, 1, 7}, {1, 1, 2, 4, 4}};
    static const uint8_t black[3] = {0, 0, 0}, white[3] = {255, 255, 255};
    const int64_t n = (int64_t)strlen(text), width = (4 * n + 1) * size, height = 7 * size;

    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            const int64_t col = x / size - 1, row = y / size - 1;
            const char c = col >= 0 ? text[col / 4] : 0;
            const int at = c >= '0' && c <= '9' ? c - '0' : c == '/' ? 10 : -1;
            const int lit = at >= 0 && row >= 0 && row < 5 && col % 4 < 3 && glyph[at][row] >> (2 - col % 4) & 1;
            dot(im, left + x, top + y, lit ? white : black);
        }
}

static void draw(struct hv_image *im, const struct hv_preview_map *m, hv_tensor t, int64_t k, int64_t left, int64_t top, int64_t zoom)
{
    const int64_t h = t.shape[2], w = t.shape[3];
    const float *z = (const float *)t.data + k * h * w;

    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            double rgb[3];
            uint8_t byte[3];
            hv_preview_color(m, z + y * w + x, t.shape[1] * h * w, rgb);
            for (int c = 0; c < 3; c++)
                byte[c] = hv_preview_level(rgb[c]);
            for (int64_t i = 0; i < zoom * zoom; i++)
                dot(im, left + x * zoom + i % zoom, top + y * zoom + i / zoom, byte);
        }
}

/* The number of the first video frame of latent frame k. */
static void number(struct hv_image *im, int64_t k, int64_t left, int64_t bottom)
{
    char text[24];

    snprintf(text, sizeof text, "%lld", (long long)(k ? 4 * k - 3 : 0));
    hv_preview_number(im, left, bottom - 7, 1, text);
}

int hv_preview_sheet(struct hv_image *im, const struct hv_preview_map *m, hv_tensor latents, const struct hv_preview_sheet *s,
                     struct hv_err *e)
{
    const int64_t f = latents.shape[1], h = latents.shape[2], w = latents.shape[3], n = s->count && s->count < f ? s->count : f;
    int64_t columns = s->columns ? s->columns : (int64_t)ceil(sqrt((double)n * (double)h / (double)w)), zoom = s->zoom;

    if (n < 1 || h < 1 || w < 1)
        return hv_fail(e, HV_EINPUT, "preview: no latents");
    columns = columns < 1 ? 1 : columns > n ? n : columns;
    if (!zoom)
        zoom = 640 / (w * columns) > 8 ? 8 : 640 / (w * columns);
    zoom = zoom < 1 ? 1 : zoom;
    const int64_t rows = (n + columns - 1) / columns, foot = s->note ? 15 : 0;
    if (hv_image_open(im, columns * (w * zoom + 1) - 1, rows * (h * zoom + 1) - 1 + foot, e))
        return hv_context(e, "preview");
    for (int64_t i = 0; i < n; i++) {
        const int64_t k = n > 1 ? i * (f - 1) / (n - 1) : 0, left = i % columns * (w * zoom + 1), top = i / columns * (h * zoom + 1);
        draw(im, m, latents, k, left, top, zoom);
        number(im, k, left, top + h * zoom);
    }
    if (s->note)
        hv_preview_number(im, 0, im->height - 14, 2, s->note);
    return 0;
}

int hv_preview_frame(struct hv_image *im, const struct hv_preview_map *m, hv_tensor latents, int64_t k, int64_t zoom, struct hv_err *e)
{
    const int64_t h = latents.shape[2] * zoom, w = latents.shape[3] * zoom;

    if (!im->rgb && hv_image_open(im, w, h, e))
        return hv_context(e, "preview");
    draw(im, m, latents, k, 0, 0, zoom);
    number(im, k, 0, h);
    return 0;
}
