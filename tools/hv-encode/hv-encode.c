/* hv-encode - portrait to VAE latents, held for 33 latent frames. See hv-encode.1 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cli.h"
#include "core/rng.h"
#include "io/contract.h"
#include "io/image.h"
#include "io/st.h"
#include "mem/part.h"
#include "model/tile.h"
#include "model/vae_stage.h"

#define PART   "vae"
#define FRAMES 33                       /* latent frames of 129 video frames */

static struct options {
    struct hv_common c;
    int64_t     tier, seed;
    int         no_exif;
    const char *noise, *plan, *dtype;
    hv_dtype    act;
    struct hv_size vram;
} o = {.tier = 704, .seed = -1};

static const struct hv_opt opts[] = {
    {"image-size", 0, HV_OPT_INT, &o.tier, "N", "size tier of the picture: 704, 512, 384, 256 or any (default: 704)", 8, 8192},
    {"no-exif", 0, HV_OPT_FLAG, &o.no_exif, NULL, "do not turn the picture as its EXIF data says", 0, 0},
    {"sample-seed", 0, HV_OPT_INT, &o.seed, "N", "sample the posterior, as the reference does; else its mean", 0, 9e15},
    {"noise", 0, HV_OPT_STR, &o.noise, "FILE", "sample the posterior with tensor `noise' [C, 33, h, w] of FILE", 0, 0},
    {"vram", 0, HV_OPT_SIZE, &o.vram, "SIZE", "budget of device memory: 512M, 4G, 90%, -1G", 0, 0},
    {"dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "of activations on a GPU: f16, bf16, f32 (default: f16)", 0, 0},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the memory plan and the work; compute nothing", 0, 0},
    {0}
};

static const struct hv_cli cli = {"hv-encode", "PICTURE", "Turns a portrait into the latents that hv-denoise refers to.", opts, &o.c,
                                  1, 1};

struct job {
    struct vae_config config;
    struct tile_spec  spec;
    struct vae_stage  stage;
    struct hv_progress progress;
    hv_tensor x;                        /* the picture, [1, H, W, 3] in -1..1 */
    float    *moments;                  /* [h, w, 2 C] */
    char      model[128];
};

static int parse(int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    if (rc)
        return rc;
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    if (vae_act_parse(o.dtype, o.c.device, &o.act, e))
        return e->code;
    if (o.noise && o.seed >= 0)
        return hv_fail(e, HV_EUSAGE, "--noise and --sample-seed: one of them");
    return 0;
}

static int configure(struct job *j, struct hv_err *e)
{
    json_t *json;
    int rc = hv_part_config(&json, o.c.model, PART, e);

    if (!rc && (rc = vae_config_parse(&j->config, json, e)))
        hv_context(e, "%s/" PART "/config.json", o.c.model);
    json_decref(json);
    if (!rc && j->config.in != 3)
        rc = hv_fail(e, HV_EUNSUP, "%s/" PART "/config.json: in_channels %lld, expected 3", o.c.model, (long long)j->config.in);
    return rc;
}

/* x = px / 127.5 - 1 */
static int load(struct job *j, struct hv_err *e)
{
    struct hv_image im = {0};
    float *x = NULL;

    if (!hv_image_portrait(&im, o.c.operand[0], (int)o.tier, !o.no_exif, e)) {
        const int64_t n = (int64_t)im.width * im.height * 3;
        x = malloc((size_t)n * sizeof *x);
        if (!x)
            hv_fail(e, HV_ENOMEM, "%s: out of memory", o.c.operand[0]);
        for (int64_t i = 0; x && i < n; i++)
            x[i] = (float)im.rgb[i] / 127.5f - 1;
        j->x = hv_view(x, HV_F32, 4, (int64_t[]){1, im.height, im.width, 3});
        j->spec = (struct tile_spec){.t = 1, .h = im.height, .w = im.width, .size = j->config.sample_size,
                                     .tsize = j->config.sample_tsize, .channels = 2 * j->config.latent};
        hv_note_verbose(&cli, "%s: %dx%d", o.c.operand[0], im.width, im.height);
    }
    hv_image_close(&im);
    return e->code;
}

static int encode_tile(void *ctx, hv_tensor y, const struct tile_part *p, struct hv_err *e)
{
    struct job *j = ctx;
    const hv_tensor x = hv_slice(hv_slice(j->x, 1, p->y, p->ny), 2, p->x, p->nx);

    hv_progress_step(&j->progress, "tile", p->index, p->of);
    if (!y.data)
        y.data = j->moments;            /* dry: as large as the largest tile at least */
    vae_encode(j->stage.net, y, x);
    if (!o.plan)
        hv_progress_step(&j->progress, "tile", p->index + 1, p->of);
    return hv_dev_sync(j->stage.dev, e);
}

static int keep(void *ctx, hv_tensor y, int64_t first, struct hv_err *e)
{
    struct job *j = ctx;
    const int64_t bad = hv_first_nonfinite(y);

    (void)first;
    if (bad >= 0)
        return hv_fail(e, HV_ENUM, "ref.latents: the encoder gave NaN or Inf at element %lld", (long long)bad);
    memcpy(j->moments, y.data, hv_nbytes(y));
    return 0;
}

static int print_plan(struct job *j, struct hv_err *e)
{
    struct hv_plan p, host = {0};
    const int64_t *n = j->x.shape, cells = tile_out(&j->spec, 1, n[1]) * tile_out(&j->spec, 2, n[2]), C = j->config.latent;

    if (tile_run(&j->spec, encode_tile, j, NULL, NULL, e) || vae_plan(&p, &j->config, &j->stage.opts, e))
        return e->code;
    tile_plan(&host, &j->spec);
    hv_plan_add(&host, "host.picture", HV_F32, UINT32_MAX, 4, n);
    hv_plan_add(&host, "host.moments", HV_F32, UINT32_MAX, 1, (int64_t[]){2 * cells * C});
    hv_plan_add(&host, "host.latents", HV_F32, UINT32_MAX, 1, (int64_t[]){(o.seed >= 0 ? 2 : 1) * FRAMES * cells * C});
    return vae_stage_print(&j->stage, &p, &host, *o.plan != 0, stdout, e);
}

static int compute(struct job *j, struct hv_err *e)
{
    int64_t big[3];

    j->stage = (struct vae_stage){.part = VAE_ENCODER, .device = o.c.device, .model = o.c.model, .threads = (int)o.c.threads,
                                  .vram = &o.vram, .act = o.act, .keep = VAE_KEEP_AUTO, .plan_only = o.plan != NULL};
    tile_largest(&j->spec, big);
    j->moments = calloc((size_t)(tile_out(&j->spec, 1, j->spec.h) * tile_out(&j->spec, 2, j->spec.w) * j->spec.channels),
                        sizeof *j->moments);
    int rc = j->moments ? vae_stage_open(&j->stage, &j->config, big, e) : hv_fail(e, HV_ENOMEM, "out of memory");
    hv_progress_open(&j->progress, &cli);
    j->spec.dev = j->stage.opts.gpu && !o.plan ? j->stage.dev : NULL;
    if (!rc)
        rc = o.plan ? print_plan(j, e) : tile_run(&j->spec, encode_tile, j, keep, j, e);
    hv_progress_close(&j->progress);
    if (!rc) {
        snprintf(j->model, sizeof j->model, "%s", hv_weights_digest(j->stage.weights));
        vae_stage_say(&j->stage, &cli);
    }
    vae_stage_close(&j->stage);
    return rc;
}

/* Noise [C, 33, h, w] of the option: drawn as the reference's GPU draws it, in f16, or read. NULL without a failure: none. */
static int make_noise(float **noise, const int64_t *shape, struct hv_err *e)
{
    const int64_t n = hv_shape_count(4, shape);
    struct hv_in *in = NULL;
    struct hv_rng g;
    hv_tensor t;
    char a[HV_SHAPE_STR], b[HV_SHAPE_STR];

    *noise = o.seed >= 0 || o.noise ? malloc((size_t)n * sizeof **noise) : NULL;
    if (!*noise)
        return o.seed >= 0 || o.noise ? hv_fail(e, HV_ENOMEM, "out of memory") : 0;
    if (o.seed >= 0) {
        uint16_t *half = malloc((size_t)n * sizeof *half);
        if (!half)
            return hv_fail(e, HV_ENOMEM, "out of memory");
        hv_rng_cuda(&g, (uint64_t)o.seed, HV_RNG_SM, HV_RNG_TPS);
        hv_rng_normal(&g, HV_F16, half, (size_t)n);
        hv_to_f32(*noise, HV_F16, half, (size_t)n);
        free(half);
        return 0;
    }
    const hv_tensor want = hv_view(NULL, HV_F32, 4, shape);
    if (!hv_in_open(&in, o.noise, e) && !hv_in_tensor(in, "noise", &t, e)) {
        if (!hv_dtype_is_float(t.dtype) || !hv_same_shape(t, want))
            hv_fail(e, HV_EINPUT, "%s: noise: %s %s, expected %s of a float type", o.noise, hv_dtype_name(t.dtype),
                    hv_shape_str(t, a), hv_shape_str(want, b));
        else if (hv_first_nonfinite(t) >= 0)
            hv_fail(e, HV_ENUM, "%s: noise: NaN or Inf", o.noise);
        else
            hv_to_f32(*noise, t.dtype, t.data, (size_t)n);
    }
    hv_in_close(in);
    return e->code;
}

/* ref.latents = (mean + std noise - shift) * scaling_factor, the same moments in every frame. */
static int write_latents(const struct job *j, struct hv_err *e)
{
    const int64_t C = j->config.latent, h = tile_out(&j->spec, 1, j->spec.h), w = tile_out(&j->spec, 2, j->spec.w);
    const int64_t shape[4] = {C, FRAMES, h, w};
    struct hv_out out = {0};
    float *noise = NULL, *z, cell[2] = {0};

    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-encode", .width = j->spec.w, .height = j->spec.h, .model = j->model});
    z = hv_out_new(&out, "ref.latents", HV_F32, 4, shape, e);
    if (z && !make_noise(&noise, shape, e)) {
        for (int64_t i = 0; i < C * FRAMES * h * w; i++) {
            const float *m = j->moments + i % (h * w) * 2 * C;
            const int64_t c = i / (FRAMES * h * w);
            cell[0] = m[c];
            cell[1] = m[C + c];
            vae_sample(&z[i], cell, noise ? &noise[i] : NULL, 1, 1);
            z[i] = (z[i] - (float)j->config.shift_factor) * (float)j->config.scaling_factor;
        }
        hv_out_write(&out, o.c.output, e);
    }
    free(noise);
    hv_out_close(&out);
    return e->code;
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct job j = {0};
    int rc = parse(argc, argv, &e);

    if (rc < 0)
        return hv_exit("hv-encode", &e);
    if (!rc)
        rc = configure(&j, &e);
    if (!rc)
        rc = load(&j, &e);
    if (!rc)
        rc = compute(&j, &e);
    if (!rc && !o.plan)
        write_latents(&j, &e);

    free(j.moments);
    free(j.x.data);
    return hv_exit("hv-encode", &e);
}
