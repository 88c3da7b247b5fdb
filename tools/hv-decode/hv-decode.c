/* hv-decode - latents to video. See hv-decode.1 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/cli.h"
#include "io/contract.h"
#include "io/st.h"
#include "io/video.h"
#include "mem/part.h"
#include "model/tile.h"
#include "model/vae_stage.h"

#define PART "vae"

static struct options {
    struct hv_common c;
    const char *format, *sound, *tile, *plan, *keep, *dtype;
    int64_t     crf;
    struct hv_size vram;
    enum hv_video_format kind;
    int         keep_what;
    hv_dtype    act;
    int64_t     size, tsize;            /* of --tile; 0: the model's */
} o = {.crf = 18};

static const struct hv_opt opts[] = {
    {"format", 'f', HV_OPT_STR, &o.format, "WORD", "mp4, y4m, rgb, png or st (default: by the name of -o; y4m on stdout)", 0, 0},
    {"sound", 0, HV_OPT_STR, &o.sound, "FILE", "sound of the mp4", 0, 0},
    {"crf", 0, HV_OPT_INT, &o.crf, "N", "quality of the mp4, 0 (lossless) to 51 (default: 18)", 0, 51},
    {"tile", 0, HV_OPT_STR, &o.tile, "SIZE/TSIZE", "tile in pixels and frames (default: the model's); another tile is another result", 0, 0},
    {"vram", 0, HV_OPT_SIZE, &o.vram, "SIZE", "budget of device memory: 512M, 4G, 90%, -1G", 0, 0},
    {"keep", 0, HV_OPT_STR, &o.keep, "WHAT", "of the last level: all, outputs, nothing, auto (default: the most that fits)", 0, 0},
    {"dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "of activations on a GPU: f16, bf16, f32 (default: f16)", 0, 0},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the memory plan and the work; compute nothing", 0, 0},
    {0}
};

static const struct hv_cli cli = {"hv-decode", "[FILE]", "Turns latents into video.", opts, &o.c, 0, 1};

struct job {
    struct vae_config config;
    struct tile_spec  spec;
    struct hv_operands in;
    struct vae_stage stage;
    hv_tensor latents;                  /* [C, f, h, w] of the operand */
    int64_t   frames, done;
    double    fps;
    float    *z;                        /* a tile of them, unscaled: the length of a video must not matter */
    struct hv_video *video;
    struct hv_progress progress;
    uint8_t  *rgb;                      /* one frame, or all of them for -f st */
    float    *scratch;                  /* dry: where tiles go */
    char      model[128];
};

/* ---- options ---- */

static int parse_tile(struct hv_err *e)
{
    char *end = NULL;

    if (!o.tile)
        return 0;
    o.size = strtol(o.tile, &end, 10);
    if (end == o.tile || *end != '/')
        return hv_fail(e, HV_EUSAGE, "--tile %s: expected SIZE/TSIZE, like 256/64", o.tile);
    const char *second = end + 1;
    o.tsize = strtol(second, &end, 10);
    if (end == second || *end || o.size < 32 || o.size > 65536 || o.size % 32 || o.tsize < 16 || o.tsize > 65536 || o.tsize % 16)
        return hv_fail(e, HV_EUSAGE, "--tile %s: SIZE must be a multiple of 32, TSIZE of 16", o.tile);
    return 0;
}

static int parse(int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);
    const int to_stdout = !o.c.output || !strcmp(o.c.output, "-");

    if (rc)
        return rc;
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    o.kind = o.format ? hv_video_format_of(o.format) : to_stdout ? HV_VIDEO_Y4M : hv_video_format_for(o.c.output);
    if (o.kind == HV_VIDEO_NONE && o.format)
        return hv_fail(e, HV_EUSAGE, "-f %s: expected mp4, y4m, rgb, png or st", o.format);
    if (o.kind == HV_VIDEO_NONE && !o.plan)
        return hv_fail(e, HV_EUSAGE, "-o %s: the name tells no format; use -f mp4, y4m, rgb, png or st", o.c.output);
    if (vae_keep_of(o.keep ? o.keep : "auto", &o.keep_what))
        return hv_fail(e, HV_EUSAGE, "--keep %s: all, outputs, nothing or auto", o.keep);
    if (vae_act_parse(o.dtype, o.c.device, &o.act, e))
        return e->code;
    if (o.sound && o.kind != HV_VIDEO_MP4)
        return hv_fail(e, HV_EUSAGE, "--sound: only an mp4 has sound");
    return parse_tile(e);
}

/* ---- input ---- */

static int configure(struct job *j, struct hv_err *e)
{
    json_t *json;
    int rc = hv_part_config(&json, o.c.model, PART, e);

    if (!rc && (rc = vae_config_parse(&j->config, json, e)))
        hv_context(e, "%s/" PART "/config.json", o.c.model);
    json_decref(json);
    if (!rc && j->config.out != 3)
        rc = hv_fail(e, HV_EUNSUP, "%s/" PART "/config.json: out_channels %lld, expected 3", o.c.model, (long long)j->config.out);
    return rc;
}

static int read_latents(struct job *j, struct hv_err *e)
{
    static const char *const standard_input[] = {"-"};
    const char *const *paths = o.c.n_operands ? o.c.operand : standard_input;
    const struct vae_config *c = &j->config;

    if (hv_operands_open(&j->in, paths, 1, e) || hv_operands_get(&j->in, "latents", &j->latents, e))
        return e->code;
    const int64_t *n = j->latents.shape, T = 4 * n[1] - 3;
    if (n[0] != c->latent || n[1] < 1 || n[2] < 1 || n[3] < 1 || n[2] > 1 << 16 || n[3] > 1 << 16 || n[1] > 1 << 24)
        return hv_fail(e, HV_EINPUT, "%s: latents: %lld channels, %lldx%lldx%lld; the model has %lld channels", paths[0],
                       (long long)n[0], (long long)n[1], (long long)n[2], (long long)n[3], (long long)c->latent);
    j->frames = T;
    j->fps = 25;
    if (hv_operands_meta_int(&j->in, "hv.frames", 1, INT64_MAX / 2, &j->frames, e) ||
        hv_operands_meta_real(&j->in, "hv.fps", 0.01, 1000, &j->fps, e))
        return e->code;
    if (j->frames > T) {
        hv_note(&cli, "%s: hv.frames is %lld, but the latents hold %lld frames", paths[0], (long long)j->frames, (long long)T);
        j->frames = T;
    }
    j->spec = (struct tile_spec){.t = n[1], .h = n[2], .w = n[3], .size = (o.size ? o.size : c->sample_size) / 8,
                                 .tsize = (o.tsize ? o.tsize : c->sample_tsize) / 4, .channels = 3, .up = 1, .frames = j->frames};
    return 0;
}

static int make_room(struct job *j, struct hv_err *e)
{
    int64_t big[3];

    tile_largest(&j->spec, big);
    j->z = malloc((size_t)(big[0] * big[1] * big[2] * j->latents.shape[0]) * sizeof *j->z);
    return j->z ? 0 : hv_fail(e, HV_ENOMEM, "out of memory: a tile of latents");
}

/* z = latents / scaling_factor + shift_factor, in f32: the part [nt, ny, nx, C]. */
static hv_tensor unscaled(const struct job *j, const struct tile_part *p)
{
    const int64_t C = j->latents.shape[0];
    const hv_tensor z = hv_view(j->z, HV_F32, 4, (int64_t[]){p->nt, p->ny, p->nx, C}), all = j->latents;
    float *to = j->z;

    for (int64_t t = p->t; t < p->t + p->nt; t++)
        for (int64_t y = p->y; y < p->y + p->ny; y++)
            for (int64_t x = p->x; x < p->x + p->nx; x++)
                for (int64_t c = 0; c < C; c++)
                    *to++ = ((const float *)all.data)[c * all.stride[0] + t * all.stride[1] + y * all.stride[2] + x] /
                            (float)j->config.scaling_factor + (float)j->config.shift_factor;
    return z;
}

/* ---- work ---- */

static int decode_tile(void *ctx, hv_tensor y, const struct tile_part *p, struct hv_err *e)
{
    struct job *j = ctx;
    const hv_tensor z = unscaled(j, p);

    if (!y.data)
        y.data = j->scratch;
    else
        hv_progress_step(&j->progress, "tile", p->index, p->of);
    vae_decode(j->stage.net, y, z);
    if (!o.plan)
        hv_progress_step(&j->progress, "tile", p->index + 1, p->of);
    return hv_dev_sync(j->stage.dev, e);
}

/* byte = trunc(clamp(x / 2 + 0.5, 0, 1) * 255); 1: a value is NaN or Inf. By all cores: a GPU waits for the last frames of a slab. */
static int to_bytes(uint8_t *rgb, hv_tensor frame)
{
    const float *x = frame.data;
    const int64_t rows = frame.shape[0], n = frame.shape[1] * frame.shape[2];
    int bad = 0;

#pragma omp parallel for reduction(| : bad)
    for (int64_t r = 0; r < rows; r++) {
        bad |= hv_first_nonfinite(hv_index(frame, r)) >= 0;
        for (int64_t i = r * n; i < (r + 1) * n; i++) {
            const float v = x[i] / 2 + 0.5f;
            rgb[i] = (uint8_t)((v < 0 ? 0 : v > 1 ? 1 : v) * 255.0f);
        }
    }
    return bad;
}

static int take_frames(void *ctx, hv_tensor y, int64_t first, struct hv_err *e)
{
    struct job *j = ctx;
    const int64_t n = y.shape[1] * y.shape[2] * 3;

    for (int64_t t = 0; t < y.shape[0] && first + t < j->frames; t++) {
        const hv_tensor f = hv_index(y, t);
        uint8_t *rgb = j->rgb + (o.kind == HV_VIDEO_ST ? (first + t) * n : 0);
        if (to_bytes(rgb, f))
            return hv_fail(e, HV_ENUM, "frame %lld: the decoder gave NaN or Inf", (long long)(first + t));
        if (o.kind != HV_VIDEO_ST && hv_video_frame(j->video, rgb, e))
            return e->code;
        j->done++;
    }
    return 0;
}

static int write_st(const struct job *j, struct hv_err *e)
{
    const int64_t shape[4] = {j->frames, 8 * j->spec.h, 8 * j->spec.w, 3};
    struct hv_out out = {0};

    hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-decode", .width = shape[2], .height = shape[1], .frames = j->frames,
                                               .fps = j->fps, .model = j->model});
    hv_out_add(&out, "video", hv_view(j->rgb, HV_U8, 4, shape));
    hv_out_write(&out, o.c.output, e);
    hv_out_close(&out);
    return e->code;
}

static int print_plan(struct job *j, struct hv_err *e)
{
    struct hv_plan p, host = {0};
    int64_t big[3];

    tile_largest(&j->spec, big);
    j->scratch = malloc((size_t)(tile_out(&j->spec, 0, big[0]) * big[1] * big[2] * 64 * 3) * sizeof *j->scratch);
    if (!j->scratch)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    if (tile_run(&j->spec, decode_tile, j, NULL, NULL, e) || vae_plan(&p, &j->config, &j->stage.opts, e))
        return e->code;
    tile_plan(&host, &j->spec);
    hv_plan_add(&host, "host.z", HV_F32, UINT32_MAX, 4, (int64_t[]){j->latents.shape[0], big[0], big[1], big[2]});
    hv_plan_add(&host, "host.rgb", HV_U8, UINT32_MAX, 4,
                (int64_t[]){o.kind == HV_VIDEO_ST ? j->frames : 1, 8 * j->spec.h, 8 * j->spec.w, 3});
    if (o.kind == HV_VIDEO_Y4M || o.kind == HV_VIDEO_MP4)
        hv_plan_add(&host, "host.yuv", HV_U8, UINT32_MAX, 3, (int64_t[]){3, 8 * j->spec.h, 8 * j->spec.w});
    return vae_stage_print(&j->stage, &p, &host, *o.plan != 0, stdout, e);
}

static int open_video(struct job *j, struct hv_err *e)
{
    const struct hv_video_opts vo = {.format = o.kind, .path = o.c.output, .sound = o.sound, .crf = (int)o.crf,
                                     .width = (int)(8 * j->spec.w), .height = (int)(8 * j->spec.h), .fps = j->fps};
    const int64_t n = (o.kind == HV_VIDEO_ST ? j->frames : 1) * 64 * j->spec.h * j->spec.w * 3;

    j->rgb = malloc((size_t)n);
    if (!j->rgb)
        return hv_fail(e, HV_ENOMEM, "out of memory: %lld MiB of frames", (long long)(n >> 20));
    return o.kind == HV_VIDEO_ST ? 0 : hv_video_open(&j->video, &vo, e);
}

static int compute(struct job *j, struct hv_err *e)
{
    int64_t big[3];

    j->stage = (struct vae_stage){.part = VAE_DECODER, .device = o.c.device, .model = o.c.model, .threads = (int)o.c.threads,
                                  .vram = &o.vram, .act = o.act, .keep = o.keep_what, .plan_only = o.plan != NULL};
    tile_largest(&j->spec, big);
    int rc = vae_stage_open(&j->stage, &j->config, big, e);
    if (!rc && !o.plan)
        rc = open_video(j, e);
    hv_progress_open(&j->progress, &cli);
    j->spec.dev = j->stage.opts.gpu && !o.plan ? j->stage.dev : NULL;
    if (!rc)
        rc = o.plan ? print_plan(j, e) : tile_run(&j->spec, decode_tile, j, take_frames, j, e);
    hv_progress_close(&j->progress);
    if (!rc) {
        snprintf(j->model, sizeof j->model, "%s", hv_weights_digest(j->stage.weights));
        vae_stage_say(&j->stage, &cli);
    }
    vae_stage_close(&j->stage);
    return rc;
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct job j = {0};
    int rc = parse(argc, argv, &e);

    if (rc < 0)
        return hv_exit("hv-decode", &e);
    if (!rc)
        rc = configure(&j, &e);
    if (!rc)
        rc = read_latents(&j, &e);
    if (!rc)
        rc = make_room(&j, &e);
    if (!rc)
        rc = compute(&j, &e);
    if (!rc && !o.plan && o.kind == HV_VIDEO_ST)
        rc = write_st(&j, &e);
    hv_video_close(j.video, !rc, &e);

    free(j.scratch);
    free(j.rgb);
    free(j.z);
    hv_operands_close(&j.in);
    return hv_exit("hv-decode", &e);
}
