/* hv-tensor fit-preview: the linear map from latents to colours that comes closest to what a VAE's decoder makes.
 *
 * Each picture is encoded and decoded, as a still of one frame. The 8 x 8 pixels of a latent have a mean colour; z . M + b is fitted to
 * these by least squares: (A'A + ridge) [M; b] = A'Y with a row (z, 1) of A and a colour of Y for each latent. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-tensor.h"
#include "io/preview.h"
#include "mem/part.h"
#include "model/vae.h"

#define PART "vae"
#define TERMS (HV_PREVIEW_CHANNELS + 1)
#define RIDGE 1e-6                      /* of the mean diagonal: latents that never vary must not blow up */

static struct options {
    struct hv_common c;
    int64_t tier;
    int     print;
} o = {.tier = 256};

struct fit {
    struct vae_config  config;
    struct hv_dev     *dev;
    struct hv_weights *w;
    int64_t n;                                          /* latents seen */
    double  aa[TERMS][TERMS], ay[TERMS][3], yy[3], y[3];
    struct hv_preview_map map;
};

/* One latent and the mean colour of its pixels. */
static void add(struct fit *f, const double *z, const double *rgb)
{
    const int64_t terms = f->config.latent + 1;

    for (int64_t i = 0; i < terms; i++) {
        for (int64_t k = 0; k < terms; k++)
            f->aa[i][k] += z[i] * z[k];
        for (int c = 0; c < 3; c++)
            f->ay[i][c] += z[i] * rgb[c];
    }
    for (int c = 0; c < 3; c++) {
        f->y[c] += rgb[c];
        f->yy[c] += rgb[c] * rgb[c];
    }
    f->n++;
}

/* z: scaled latents [h, w, C]; y: what they decode to, [8h, 8w, 3]. */
static void gather(struct fit *f, const float *z, const float *y, int64_t h, int64_t w)
{
    const int64_t C = f->config.latent;
    double row[TERMS];

    for (int64_t i = 0; i < h * w; i++) {
        double rgb[3] = {0, 0, 0};
        for (int64_t p = 0; p < 64; p++)
            for (int c = 0; c < 3; c++)
                rgb[c] += (double)y[((i / w * 8 + p / 8) * 8 * w + i % w * 8 + p % 8) * 3 + c] / 64;
        for (int c = 0; c < 3; c++)
            rgb[c] = rgb[c] < -1 ? -1 : rgb[c] > 1 ? 1 : rgb[c];
        for (int64_t k = 0; k < C; k++)
            row[k] = (double)z[i * C + k];
        row[C] = 1;
        add(f, row, rgb);
    }
}

/* One half of the VAE over one frame. */
static int through(struct fit *f, enum vae_part part, hv_tensor to, hv_tensor from, struct hv_err *e)
{
    const struct vae_opts vo = {.part = part, .t = 1, .h = from.shape[1], .w = from.shape[2]};
    struct vae *net = NULL;

    if (!vae_open(&net, f->dev, f->w, &f->config, &vo, e)) {
        (part == VAE_ENCODER ? vae_encode : vae_decode)(net, to, from);
        hv_dev_sync(f->dev, e);
    }
    vae_close(net);
    return e->code;
}

static int take_picture(struct fit *f, const char *path, struct hv_err *e)
{
    const int64_t C = f->config.latent;
    struct hv_image im = {0};
    float *x = NULL;

    if (hv_image_portrait(&im, path, (int)o.tier, 1, e))
        return e->code;
    const int64_t H = im.height, W = im.width, h = H / 8, w = W / 8, n = H * W * 3;
    if (!(x = malloc((size_t)(n + 3 * h * w * C) * sizeof *x))) {
        hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
    } else {
        float *moments = x + n, *z = moments + 2 * h * w * C;
        for (int64_t i = 0; i < n; i++)
            x[i] = (float)im.rgb[i] / 127.5f - 1;
        if (!through(f, VAE_ENCODER, hv_view(moments, HV_F32, 4, (int64_t[]){1, h, w, 2 * C}), hv_view(x, HV_F32, 4, (int64_t[]){1, H, W, 3}), e)) {
            vae_sample(z, moments, NULL, h * w, C);
            if (!through(f, VAE_DECODER, hv_view(x, HV_F32, 4, (int64_t[]){1, H, W, 3}), hv_view(z, HV_F32, 4, (int64_t[]){1, h, w, C}), e)) {
                for (int64_t i = 0; i < h * w * C; i++)
                    z[i] = (z[i] - (float)f->config.shift_factor) * (float)f->config.scaling_factor;
                if (hv_first_nonfinite(hv_view(x, HV_F32, 1, &n)) >= 0)
                    hv_fail(e, HV_ENUM, "%s: the decoder gave NaN or Inf", path);
                else
                    gather(f, z, x, h, w);
            }
        }
    }
    free(x);
    hv_image_close(&im);
    return e->code;
}

/* Elimination with the largest pivot; the matrix is as large as there are channels, and one. */
static int solve(struct fit *f, struct hv_err *e)
{
    const int64_t n = f->config.latent + 1;
    double ridge = 0, a[TERMS][TERMS + 3];

    for (int64_t i = 0; i < n; i++)
        ridge += f->aa[i][i] / (double)n * RIDGE;
    for (int64_t i = 0; i < n; i++) {
        memcpy(a[i], f->aa[i], sizeof f->aa[i]);
        a[i][i] += i + 1 < n ? ridge : 0;
        for (int c = 0; c < 3; c++)
            a[i][n + c] = f->ay[i][c];
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t best = i;
        for (int64_t r = i + 1; r < n; r++)
            if (fabs(a[r][i]) > fabs(a[best][i]))
                best = r;
        if (!(fabs(a[best][i]) > 0))
            return hv_fail(e, HV_EINPUT, "fit-preview: the pictures do not tell channel %lld", (long long)i);
        for (int64_t k = i; k < n + 3; k++) {
            const double swap = a[i][k];
            a[i][k] = a[best][k];
            a[best][k] = swap;
        }
        for (int64_t r = 0; r < n; r++) {
            const double m = r == i ? 0 : a[r][i] / a[i][i];
            for (int64_t k = i; k < n + 3; k++)
                a[r][k] -= m * a[i][k];
        }
    }
    f->map.channels = n - 1;
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            (i + 1 < n ? f->map.rgb[i] : f->map.bias)[c] = a[i][n + c] / a[i][i];
    return 0;
}

/* Share of the colours' variance that the map explains: 1 - sum (y - A x)^2 / sum (y - mean)^2. */
static double explained(const struct fit *f)
{
    const int64_t n = f->config.latent + 1;
    double left = 0, all = 0;

    for (int c = 0; c < 3; c++) {
        all += f->yy[c] - f->y[c] * f->y[c] / (double)f->n;
        left += f->yy[c];
        for (int64_t i = 0; i < n; i++) {
            const double x = (i + 1 < n ? f->map.rgb[i] : f->map.bias)[c];
            left -= 2 * x * f->ay[i][c];
            for (int64_t k = 0; k < n; k++)
                left += x * f->aa[i][k] * (k + 1 < n ? f->map.rgb[k] : f->map.bias)[c];
        }
    }
    return all > 0 ? 1 - left / all : 1;
}

static json_t *triple(const double v[3])
{
    json_t *a = json_array();

    for (int c = 0; c < 3; c++)
        json_array_append_new(a, json_real(round(v[c] * 1e6) / 1e6));
    return a;
}

/* The config with its map, at its place or on stdout. */
static int store(const struct fit *f, json_t *config, struct hv_err *e)
{
    char path[HV_PATH], tmp[HV_PATH];
    json_t *own = json_object(), *rows = json_array();
    int fd;

    for (int64_t k = 0; k < f->map.channels; k++)
        json_array_append_new(rows, triple(f->map.rgb[k]));
    json_object_set_new(own, "map", rows);
    json_object_set_new(own, "bias", triple(f->map.bias));
    json_object_set_new(config, "preview", own);
    char *text = json_dumps(config, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    if (!text)
        return hv_fail(e, HV_ENOMEM, "fit-preview: out of memory");
    if (o.print) {
        puts(text);
    } else if (snprintf(path, sizeof path, "%s/" PART "/config.json", o.c.model) >= (int)sizeof path) {
        hv_fail(e, HV_EIO, "%.80s..: the name is too long", o.c.model);
    } else if (!hv_temp_open(tmp, path, &fd, e)) {
        const size_t n = strlen(text);
        text[n] = '\n';                                 /* in place of the end: write takes the length */
        const int bad = write(fd, text, n + 1) != (ssize_t)n + 1;
        if (close(fd) || bad) {
            hv_temp_discard(tmp);
            hv_fail(e, HV_EIO, "%s: cannot be written", path);
        } else {
            hv_temp_commit(tmp, path, e);
        }
    }
    free(text);
    return e->code;
}

static int run(struct fit *f, struct hv_err *e)
{
    json_t *config = NULL;
    struct hv_wlist list = {0};

    if (!hv_part_config(&config, o.c.model, PART, e) && vae_config_parse(&f->config, config, e))
        hv_context(e, "%s/" PART "/config.json", o.c.model);
    else if (!e->code && (f->config.in != 3 || f->config.out != 3 || f->config.latent > HV_PREVIEW_CHANNELS))
        hv_fail(e, HV_EUNSUP, "%s/" PART "/config.json: expected pictures of 3 channels and at most %d of latents", o.c.model, HV_PREVIEW_CHANNELS);
    if (!e->code) {
        vae_weights(&list, &f->config);
        if (!hv_dev_open(&f->dev, o.c.device, (int)o.c.threads, e))
            hv_part_weights(&f->w, f->dev, o.c.model, PART, &list, e);
        for (int i = 0; i < o.c.n_operands && !e->code; i++)
            take_picture(f, o.c.operand[i], e);
    }
    hv_weights_close(f->w);
    hv_wlist_close(&list);
    hv_dev_close(f->dev);
    if (!e->code && !solve(f, e) && !store(f, config, e))
        fprintf(stderr, "hv-tensor: %lld latents of %d picture%s: the map explains %.1f %% of their colours\n", (long long)f->n,
                o.c.n_operands, o.c.n_operands > 1 ? "s" : "", 100 * explained(f));
    json_decref(config);
    return e->code;
}

int cmd_fit_preview(int argc, char **argv, struct hv_err *e)
{
    static struct fit f;
    const struct hv_opt opts[] = {
        {"image-size", 0, HV_OPT_INT, &o.tier, "N", "size tier of the pictures (default: 256)", 64, 2048},
        {"print", 0, HV_OPT_FLAG, &o.print, NULL, "print the config with the map, and leave the model as it is", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-tensor", "fit-preview --model DIR PICTURE...",
                               "Fits the linear map from latents to colours that previews are drawn with, and puts it into DIR/vae/config.json.",
                               opts, &o.c, 1, -1};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&o.c, "fit-preview", e);
    return rc ? rc : run(&f, e);
}
