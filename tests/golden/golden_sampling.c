/* Goldens of everything around the networks: picture sizes and resampling, noise, schedule, windows, guidance, step cache, rotary
 * tables, and whole denoising loops. What a file is follows from its name's beginning and its tensors; tolerances: README.md. */
#define _GNU_SOURCE
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/json.h"
#include "core/rng.h"
#include "io/image.h"
#include "model/denoise.h"
#include "model/rope.h"

static hv_tensor f32(float *data, int64_t n)
{
    return hv_view(data, HV_F32, 1, &n);
}


/* ---- pictures ---- */

static void resize_rule(struct golden *g, struct hv_in *in, const char *name)
{
    struct hv_err e = {0};
    int64_t wrong = 0;
    hv_tensor t;

    if (hv_in_tensor(in, "tier_w_h_to_w_h", &t, &e)) {
        golden_error(g, name, &e);
        return;
    }
    for (int64_t i = 0; i < t.shape[0]; i++) {
        const int32_t *row = (const int32_t *)t.data + 5 * i;
        int w = 0, h = 0;
        struct hv_err one = {0};
        wrong += hv_image_size_rule(row[1], row[2], row[0], &w, &h, &one) || w != row[3] || h != row[4];
    }
    golden_verdict(g, name, "tier_w_h_to_w_h", !wrong, "%lld of %lld sizes differ", (long long)wrong, (long long)t.shape[0]);
}

/* 336 x 336 pixels of the vision tower, as it wants them: planes, mean and deviation of each colour taken off, f16. */
static void llava_pixels(uint16_t *out, const struct hv_image *im)
{
    static const float mean[3] = {0.48145466f, 0.4578275f, 0.4082107f}, std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    const int64_t n = (int64_t)im->width * im->height;

    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            out[c * n + i] = hv_f32_to_f16(((float)im->rgb[3 * i + c] / 255 - mean[c]) / std[c]);
}

static void vae_pixels(uint16_t *out, const struct hv_image *im)
{
    const int64_t n = (int64_t)im->width * im->height;

    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            out[c * n + i] = hv_f32_to_f16(hv_f16_to_f32(hv_f32_to_f16((float)im->rgb[3 * i + c] / 127.5f)) - 1);
}

static void picture(struct golden *g, struct hv_in *in, const char *name)
{
    struct hv_err e = {0};
    struct hv_image src = {0}, dst = {0}, llava = {0}, golden = {0};
    const char *tier = hv_in_meta(in, "tier");
    hv_tensor rgb, want, pixels, vae;
    int w = 0, h = 0;

    if (hv_in_tensor(in, "input.rgb", &rgb, &e) || hv_in_tensor(in, "resized.rgb", &want, &e) ||
        hv_in_tensor(in, "llava.pixels", &pixels, &e) || hv_in_tensor(in, "vae.input_fp16", &vae, &e) ||
        hv_image_open(&src, rgb.shape[1], rgb.shape[0], &e) || hv_image_open(&golden, want.shape[1], want.shape[0], &e) ||
        hv_image_size_rule(src.width, src.height, tier ? atoi(tier) : 704, &w, &h, &e)) {
        golden_error(g, name, &e);
    } else {
        memcpy(src.rgb, rgb.data, (size_t)hv_count(rgb));
        memcpy(golden.rgb, want.data, (size_t)hv_count(want));
        uint16_t *half = malloc((size_t)(hv_count(pixels) + hv_count(vae)) * sizeof *half);
        if (half && !hv_image_resize(&dst, &src, w, h, HV_LANCZOS, &e) &&
            !hv_image_resize(&llava, &golden, (int)pixels.shape[2], (int)pixels.shape[1], HV_BILINEAR, &e)) {
            golden_compare(g, name, "resized.rgb", hv_view(dst.rgb, HV_U8, 3, (const int64_t[]){h, w, 3}), want, 1, -1);
            llava_pixels(half, &llava);
            golden_compare(g, name, "llava.pixels", hv_view(half, HV_F16, 3, pixels.shape), pixels, 1e-3, -1);
            vae_pixels(half, &golden);
            golden_compare(g, name, "vae.input_fp16", hv_view(half, HV_F16, 3, vae.shape), vae, 0, -1);
        } else {
            golden_error(g, name, &e);
        }
        free(half);
    }
    hv_image_close(&src);
    hv_image_close(&dst);
    hv_image_close(&llava);
    hv_image_close(&golden);
}

/* ---- noise ---- */

/* The number behind `key` in a name like "f32.seed128.n40000.sms2.tps1536"; -1 if it is not there. */
static long long field(const char *name, const char *key)
{
    char dotted[32];
    const char *at;

    snprintf(dotted, sizeof dotted, ".%s", key);
    at = strstr(name, dotted);
    return at && at[strlen(dotted)] >= '0' && at[strlen(dotted)] <= '9' ? strtoll(at + strlen(dotted), NULL, 10) : -1;
}

/* Draws before draw J of one generator, as the golden's maker took them. */
static const int draws[] = {3, 20, 3, 1, 16};

static void noise_cpu(struct golden *g, struct hv_in *in, const char *name)
{
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        const long long seed = field(x->name, "seed"), draw = field(x->name, "draw");
        struct hv_err e = {0};
        struct hv_rng r;
        hv_tensor want;
        if (seed < 0 || hv_in_tensor(in, x->name, &want, &e))
            continue;
        const size_t n = (size_t)hv_count(want);
        void *got = malloc((n + 32) * 4);
        hv_rng_cpu(&r, (uint64_t)seed);
        if (want.dtype == HV_U32) {
            for (size_t k = 0; k < n; k++)
                ((uint32_t *)got)[k] = hv_rng_u32(&r);
        } else {
            for (long long k = 0; k < draw && k < 5; k++) {
                float skipped[32];
                hv_rng_normal(&r, want.dtype, skipped, (size_t)draws[k]);
            }
            hv_rng_normal(&r, want.dtype, got, n);
        }
        golden_compare(g, name, x->name, hv_view(got, want.dtype, want.ndim, want.shape), want,
                       want.dtype == HV_U32 ? 0 : want.dtype == HV_F16 ? 4e-3 : 2e-6, -1);
        free(got);
    }
}

static void noise_rule(struct golden *g, struct hv_in *in, const char *name)
{
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        const long long seed = field(x->name, "seed"), sm = field(x->name, "sms"), tps = field(x->name, "tps");
        const long long offset = field(x->name, "offset");
        struct hv_err e = {0};
        struct hv_rng r;
        hv_tensor want;
        if (seed < 0 || hv_in_tensor(in, x->name, &want, &e))
            continue;
        float *got = malloc((size_t)hv_count(want) * sizeof *got);
        hv_rng_cuda(&r, (uint64_t)seed, sm > 0 ? sm : HV_RNG_SM, tps > 0 ? tps : HV_RNG_TPS);
        r.offset = offset > 0 ? (uint64_t)offset : 0;
        hv_rng_normal(&r, HV_F32, got, (size_t)hv_count(want));
        golden_compare(g, name, x->name, hv_view(got, HV_F32, want.ndim, want.shape), want, 5e-6, -1);
        free(got);
    }
}

/* 3e-6 for f32: the GPU takes sine and cosine from its fast unit. One unit in the last place of a narrower dtype at each value,
 * but never less than that error, which is larger than the units of values near 0. want is stored as f32 or in its own dtype. */
static void within_ulp(struct golden *g, const char *name, const char *tensor, const float *got, hv_tensor want, hv_dtype t)
{
    const int bits = t == HV_F16 ? 11 : 8;
    double worst = 0;

    for (int64_t i = 0; i < hv_count(want); i++) {
        float w;
        int e;
        hv_to_f32(&w, want.dtype, (const char *)want.data + i * (int64_t)hv_dtype_size(want.dtype), 1);
        frexp((double)w, &e);
        const double unit = t == HV_F32 ? 3e-6 : fmax(3e-6, ldexp(1, e - bits));
        worst = fmax(worst, fabs((double)got[i] - (double)w) / unit);
    }
    golden_verdict(g, name, tensor, worst <= 1, "worst %.2f of %s", worst, t == HV_F32 ? "3e-6" : "one last place");
}

static hv_dtype dtype_of(const char *name)
{
    return strstr(name, ".bf16") ? HV_BF16 : strstr(name, ".f16") ? HV_F16 : HV_F32;
}

static float *normals(struct hv_rng *r, hv_dtype t, size_t n)
{
    void *raw = malloc(n * 4);
    float *wide = malloc(n * 4);

    hv_rng_normal(r, t, raw, n);
    hv_to_f32(wide, t, raw, n);
    free(raw);
    return wide;
}

/* ".at" at ".idx", ".head" and ".stat" of one long draw. */
static void big_draw(struct golden *g, struct hv_in *in, const char *name, const struct hv_entry *x, struct hv_rng *r)
{
    const size_t n = (size_t)16 * 65 * 88 * 96;
    const hv_dtype t = dtype_of(x->name);
    const int stem = (int)(strlen(x->name) - strlen(".at"));
    struct hv_err e = {0};
    hv_tensor at, idx, head, stat;
    char key[64];
    double sum[2] = {0, 0};

    snprintf(key, sizeof key, "big.s%llu.idx", (unsigned long long)r->seed);
    if (hv_in_tensor(in, x->name, &at, &e) || hv_in_tensor(in, key, &idx, &e) ||
        (snprintf(key, sizeof key, "%.*s.head", stem, x->name), hv_in_tensor(in, key, &head, &e)) ||
        (snprintf(key, sizeof key, "%.*s.stat", stem, x->name), hv_in_tensor(in, key, &stat, &e))) {
        golden_error(g, name, &e);
        return;
    }
    float *all = normals(r, t, n), *some = malloc((size_t)hv_count(at) * sizeof *some);
    for (size_t i = 0; i < n; i++) {
        sum[0] += (double)all[i];
        sum[1] += (double)all[i] * (double)all[i];
    }
    for (int64_t i = 0; i < hv_count(at); i++)
        some[i] = all[((const int64_t *)idx.data)[i]];
    within_ulp(g, name, x->name, some, at, t);
    within_ulp(g, name, "head", all, head, t);
    const double *want = stat.data;
    golden_verdict(g, name, "stat", fabs(sum[0] - want[0]) < 1 && fabs(sum[1] - want[1]) < 1e-6 * want[1],
                   "sum %.3f (%.3f), squares %.1f (%.1f)", sum[0], want[0], sum[1], want[1]);
    free(all);
    free(some);
}

/* Draws of a real GPU. */
static void noise_gpu(struct golden *g, struct hv_in *in, const char *name)
{
    const char *sm = hv_in_meta(in, "sm"), *tps = hv_in_meta(in, "tps");

    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        const size_t len = strlen(x->name);
        struct hv_err e = {0};
        struct hv_rng r;
        hv_tensor want;
        if (field(x->name, "s") < 0 || !sm || !tps || hv_in_tensor(in, x->name, &want, &e))
            continue;
        hv_rng_cuda(&r, (uint64_t)field(x->name, "s"), atoll(sm), atoll(tps));
        if (!strncmp(x->name, "big.", 4)) {
            if (len > 3 && !strcmp(x->name + len - 3, ".at"))
                big_draw(g, in, name, x, &r);
            continue;
        }
        if (!strncmp(x->name, "second.", 7))
            free(normals(&r, HV_F32, 300000));
        float *got = normals(&r, dtype_of(x->name), (size_t)hv_count(want));
        within_ulp(g, name, x->name, got, want, dtype_of(x->name));
        free(got);
    }
}

/* ---- schedule, windows, guidance ---- */

static void schedule(struct golden *g, struct hv_in *in, const char *name)
{
    float sigma[FLOW_STEPS_MAX + 1], t[FLOW_STEPS_MAX];

    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        const int n = (int)field(x->name, "n");
        const char *shift = strstr(x->name, ".shift");
        struct hv_err e = {0};
        hv_tensor want;
        if (n < 1 || n > FLOW_STEPS_MAX || !shift || hv_in_tensor(in, x->name, &want, &e))
            continue;
        flow_sigmas(sigma, n, strtod(shift + 6, NULL));
        for (int k = 0; k < n; k++)
            t[k] = flow_timestep(sigma[k]);
        if (!strncmp(x->name, "sigmas.", 7))
            golden_compare(g, name, x->name, f32(sigma, n + 1), want, 1.2e-7, -1);
        else
            golden_compare(g, name, x->name, f32(t, n), want, 1.3e-4, -1);
    }
}

static int64_t wanted(const json_t *o, const char *key)
{
    return (int64_t)json_integer_value(json_object_get(o, key));
}

static void lengths(struct golden *g, const char *name, const char *key, const struct flow_clip *c, const char *text)
{
    struct hv_err e = {0};
    json_t *o = NULL;

    if (hv_json_parse(&o, text, strlen(text), 4, &e)) {
        golden_error(g, name, &e);
        return;
    }
    golden_verdict(g, name, key, c->rows == wanted(o, "audio_rows") && c->sound == wanted(o, "audio_rows_padded") &&
                   c->noise_frames == wanted(o, "noise_frames") && c->frames == wanted(o, "loop_frames") &&
                   c->video == wanted(o, "decoded_latents") && c->decoded == wanted(o, "decoded_frames") &&
                   c->written == wanted(o, "written_frames"), "A %lld, F %lld, video %lld", (long long)c->rows,
                   (long long)c->frames, (long long)c->video);
    json_decref(o);
}

/* One table of a clip: starts, frames, first rows of sound, or counts of all steps. */
static void window_table(struct golden *g, struct hv_in *in, const char *name, const struct hv_entry *x, const struct flow_clip *c)
{
    const char *what = strchr(x->name, '.');
    struct hv_err e = {0};
    int32_t frame[FLOW_WINDOW], row[FLOW_SOUND];
    hv_tensor want;

    if (!what || hv_in_tensor(in, x->name, &want, &e) || want.ndim < 2)
        return;
    const int64_t each = hv_count(want) / want.shape[0];
    int32_t *got = calloc((size_t)hv_count(want) + FLOW_WINDOW, sizeof *got);
    const int counts = !strcmp(what, ".counter");
    if ((counts ? want.shape[1] != c->frames : want.shape[1] != c->windows) ||
        (want.ndim == 3 && want.shape[2] != FLOW_WINDOW)) {
        golden_verdict(g, name, x->name, 0, "%lld windows, %lld frames", (long long)c->windows, (long long)c->frames);
        free(got);
        return;
    }
    for (int i = 0; i < (int)want.shape[0]; i++)
        for (int64_t w = 0; w < c->windows; w++) {
            const int64_t s = flow_window_start(c, i, w);
            flow_window_frames(c, s, frame);
            flow_window_sound(c, s, row);
            if (counts)
                for (int k = 0; k < FLOW_WINDOW; k++)
                    got[i * each + frame[k]]++;
            else if (!strcmp(what, ".frame_index"))
                memcpy(got + i * each + w * FLOW_WINDOW, frame, sizeof frame);
            else
                got[i * each + w] = !strcmp(what, ".window_start") ? (int32_t)s : row[0];
        }
    golden_compare(g, name, x->name, hv_view(got, HV_I32, want.ndim, want.shape), want, 0, -1);
    free(got);
}

static void windows(struct golden *g, struct hv_in *in, const char *name)
{
    const char *key, *value;

    for (int i = 0; hv_in_meta_at(in, i, &key, &value); i++) {
        if (strncmp(key, "len", 3) || key[3] < '0' || key[3] > '9')
            continue;
        const struct flow_clip c = flow_clip(strtoll(key + 3, NULL, 10), 400);
        const size_t n = strlen(key);
        lengths(g, name, key, &c, value);
        for (int k = 0; k < hv_in_count(in); k++) {
            const struct hv_entry *x = hv_in_entry(in, k);
            if (!strncmp(x->name, key, n) && x->name[n] == '.')
                window_table(g, in, name, x, &c);
        }
    }
}

static void cache_and_guidance(struct golden *g, struct hv_in *in, const char *name)
{
    uint8_t full[FLOW_STEPS_MAX];
    double got[FLOW_STEPS_MAX];

    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        const int n = (int)field(x->name, "n");
        const char *cfg = strstr(x->name, ".cfg");
        struct hv_err e = {0};
        hv_tensor want;
        if (n < 1 || n > FLOW_STEPS_MAX || hv_in_tensor(in, x->name, &want, &e))
            continue;
        if (cfg) {
            for (int k = 0; k < n; k++)
                got[k] = flow_guidance(k, n, strtod(cfg + 4, NULL));
            golden_compare(g, name, x->name, hv_view(got, HV_F64, 1, want.shape), want, 1e-12, -1);
        } else if (!flow_full_steps(full, n, "reference", &e)) {
            for (int k = 0; k < n; k++)
                full[k] = !full[k];
            golden_compare(g, name, x->name, hv_view(full, HV_U8, 1, want.shape), want, 0, -1);
        }
    }
}

static void rope(struct golden *g, struct hv_in *in, const char *name)
{
    static const int64_t dim[3] = {16, 56, 56};
    const char *size = hv_in_meta(in, "latent_h_w");
    struct hv_err e = {0};
    int64_t h = 0, w = 0;

    if (!size || sscanf(size, "%lld %lld", (long long *)&h, (long long *)&w) != 2 || h < 2 || w < 2) {
        golden_verdict(g, name, "latent_h_w", 0, "not there");
        return;
    }
    const int64_t extent[3] = {FLOW_WINDOW + 1, h / 2, w / 2}, P = extent[1] * extent[2];
    for (int sine = 0; sine < 2; sine++) {
        hv_tensor want;
        int64_t col = 0;
        if (hv_in_tensor(in, sine ? "sin" : "cos", &want, &e) || want.ndim != 2 || want.shape[0] != extent[0] * P || want.shape[1] != 128) {
            golden_verdict(g, name, sine ? "sin" : "cos", 0, "not [34 P,128]");
            continue;
        }
        float *got = calloc((size_t)hv_count(want), sizeof *got);
        for (int a = 0; a < 3; a++) {
            const int64_t half = dim[a] / 2;
            float *table = malloc((size_t)(2 * extent[a] * half) * sizeof *table);
            rope_table(table, table + extent[a] * half, a ? 0 : ROPE_FIRST_TIME, extent[a], dim[a], 256);
            for (int64_t r = 0; r < want.shape[0]; r++) {
                const int64_t at[3] = {r / P, r % P / extent[2], r % extent[2]};
                for (int64_t m = 0; m < dim[a]; m++)
                    got[r * 128 + col + m] = table[(sine * extent[a] + at[a]) * half + m / 2];
            }
            col += dim[a];
            free(table);
        }
        golden_compare(g, name, sine ? "sin" : "cos", hv_view(got, HV_F32, 2, want.shape), want, 5e-6, -1);
        free(got);
    }
}

/* ---- whole loops ---- */

struct e2e {
    struct golden     *g;
    const char        *name;
    struct hv_in      *in;
    struct dit_config  c;
    struct denoise_job job;
    uint8_t            full[FLOW_STEPS_MAX];
    int64_t           *mask[2];
    float             *owned[10];
    int                n_owned;
    float             *uncond;              /* of the window at hand */
};

/* The tensor without its leading axis, as f32. */
static int input(struct e2e *r, const char *name, hv_tensor *t, struct hv_err *e)
{
    if (hv_in_tensor(r->in, name, t, e))
        return e->code;
    if (t->ndim < 2)
        return hv_fail(e, HV_EINPUT, "%s: no leading axis", name);
    const hv_tensor raw = hv_index(*t, 0);
    float *wide = malloc((size_t)hv_count(raw) * sizeof *wide + 1);
    hv_to_f32(wide, raw.dtype, raw.data, (size_t)hv_count(raw));
    r->owned[r->n_owned++] = wide;
    *t = hv_view(wide, HV_F32, raw.ndim, raw.shape);
    return 0;
}

static int input_text(struct e2e *r, struct dit_text *t, int negative, struct hv_err *e)
{
    const char *names[2][3] = {{"input.text_states.cond", "input.text_states_2.cond", "input.text_mask.cond"},
                               {"input.text_states.uncond", "input.text_states_2.uncond", "input.text_mask.uncond"}};
    hv_tensor mask;

    if (input(r, names[negative][0], &t->states, e) || input(r, names[negative][1], &t->pooled, e) ||
        input(r, names[negative][2], &mask, e))
        return e->code;
    r->mask[negative] = calloc((size_t)hv_count(mask) + 1, sizeof(int64_t));
    for (int64_t i = 0; i < hv_count(mask); i++)
        r->mask[negative][i] = ((const float *)mask.data)[i] != 0;
    t->mask = r->mask[negative];
    return 0;
}

static double meta(const struct e2e *r, const char *key)
{
    const char *v = hv_in_meta(r->in, key);

    return v ? strtod(v, NULL) : 0;
}

static int full_steps(struct e2e *r, struct hv_err *e)
{
    const char *list = hv_in_meta(r->in, "uncached_steps");
    json_t *o = NULL;

    if (!list || *list != '[')
        return flow_full_steps(r->full, r->job.steps, "reference", e);
    if (hv_json_parse(&o, list, strlen(list), 4, e))
        return e->code;
    for (size_t i = 0; i < json_array_size(o); i++) {
        const int64_t k = (int64_t)json_integer_value(json_array_get(o, i));
        if (k >= 0 && k < r->job.steps)
            r->full[k] = 1;
    }
    json_decref(o);
    return 0;
}

static int read_job(struct e2e *r, struct hv_err *e)
{
    const char *config = hv_in_meta(r->in, "config"), *carry = hv_in_meta(r->in, "carry");
    struct denoise_job *j = &r->job;
    hv_tensor exp_, pose, fps, face;
    json_t *o = NULL;

    if (!config || !carry || hv_json_parse(&o, config, strlen(config), 8, e) || dit_config_parse(&r->c, o, e)) {
        json_decref(o);
        return hv_fail(e, HV_EINPUT, "no config or carry");
    }
    json_decref(o);
    j->config = &r->c;
    j->steps = (int)meta(r, "steps");
    j->shift = meta(r, "flow_shift");
    j->guidance = meta(r, "cfg");
    j->carry = strcmp(carry, "reference") ? FLOW_FLOAT32 : FLOW_REFERENCE;
    j->clip = flow_clip((int64_t)meta(r, "audio_len"), 400);
    j->full = r->full;
    if (j->steps < 1 || j->steps > FLOW_STEPS_MAX)
        return hv_fail(e, HV_EINPUT, "%d steps", j->steps);
    if (full_steps(r, e) || input_text(r, &j->text, 0, e) || input_text(r, &j->negative, 1, e) ||
        input(r, "input.audio", &j->sound, e) || input(r, "input.ref_latents", &j->ref, e) || input(r, "noise", &j->noise, e) ||
        hv_in_tensor(r->in, "input.face_mask", &face, e) || hv_in_tensor(r->in, "input.motion_exp", &exp_, e) ||
        hv_in_tensor(r->in, "input.motion_pose", &pose, e) || hv_in_tensor(r->in, "input.fps", &fps, e))
        return e->code;
    j->face = hv_reshape(face, 3, (const int64_t[]){1, face.shape[face.ndim - 2], face.shape[face.ndim - 1]});
    hv_to_f32(j->fixed.motion_exp, exp_.dtype, exp_.data, 4);
    hv_to_f32(j->fixed.motion_pose, pose.dtype, pose.data, 4);
    hv_to_f32(&j->fixed.fps, fps.dtype, fps.data, 1);
    if ((int64_t)meta(r, "audio_rows") != j->clip.rows)
        return hv_fail(e, HV_EINPUT, "audio_rows %g, expected %lld", meta(r, "audio_rows"), (long long)j->clip.rows);
    return 0;
}

/* Bounds of f32, or what is left of them in bf16: the last steps of a schedule, and guidance, magnify roundings. */
static void compare(const struct e2e *r, const char *name, hv_tensor got, hv_tensor want, double max_abs, double gap)
{
    if (golden_bf16(r->g))
        golden_compare(r->g, r->name, name, got, want, -1, GOLDEN_BF16_GAP);
    else
        golden_compare(r->g, r->name, name, got, want, max_abs, gap);
}

/* Latents of a rounding carry differ in single bf16 steps: few values, a small mean. */
static void compare_latents(struct e2e *r, const char *key, const float *got)
{
    struct hv_err e = {0};
    double sum = 0;
    hv_tensor want;

    if (!hv_in_find(r->in, key))
        return;
    if (hv_in_tensor(r->in, key, &want, &e)) {
        golden_error(r->g, r->name, &e);
        return;
    }
    if (r->job.carry == FLOW_FLOAT32) {
        compare(r, key, hv_view(got, HV_F32, want.ndim, want.shape), want, 2e-4, 1e-7);
        return;
    }
    compare(r, key, hv_view(got, HV_F32, want.ndim, want.shape), want, 0.0625, 1e-6);
    if (golden_bf16(r->g))
        return;
    for (int64_t i = 0; i < hv_count(want); i++) {
        float w;
        hv_to_f32(&w, want.dtype, (const char *)want.data + i * (int64_t)hv_dtype_size(want.dtype), 1);
        sum += fabs((double)got[i] - (double)w);
    }
    golden_verdict(r->g, r->name, key, sum / (double)hv_count(want) <= 3e-4, "mean abs %.2e (tolerance 3e-4)",
                   sum / (double)hv_count(want));
}

static void compare_prediction(struct e2e *r, const char *key, const float *got)
{
    struct hv_err e = {0};
    hv_tensor want;

    if (!hv_in_find(r->in, key) || hv_in_tensor(r->in, key, &want, &e))
        return;
    /* With a rounding carry the inputs of later steps differ by single roundings already. */
    const double tol = r->job.carry == FLOW_FLOAT32 || !strncmp(key, "step.0.", 7) ? 1e-4 : 0.0625;
    compare(r, key, hv_view(got, HV_F32, want.ndim, want.shape), want, tol, -1);
}

static void seen(void *ctx, int step, int window, const char *what, const float *data, int64_t frames)
{
    struct e2e *r = ctx;
    const size_t n = (size_t)(r->c.channels * frames * r->job.ref.shape[2] * r->job.ref.shape[3]);
    char key[80];

    if (!strcmp(what, "latents")) {
        snprintf(key, sizeof key, "step.%d.latents", step);
        compare_latents(r, key, data);
    } else if (!strcmp(what, "guided")) {
        snprintf(key, sizeof key, "step.%d.window.%d.guided_prediction", step, window);
        compare_prediction(r, key, data);
    } else if (!strcmp(what, "uncond")) {
        memcpy(r->uncond, data, n * sizeof *data);
    } else {
        memcpy(r->uncond + n, data, n * sizeof *data);
        snprintf(key, sizeof key, "step.%d.window.%d.prediction", step, window);
        compare_prediction(r, key, r->uncond);
    }
}

static void compare_tables(struct e2e *r)
{
    struct hv_err e = {0};
    double got[FLOW_STEPS_MAX];
    uint8_t cached[FLOW_STEPS_MAX];
    hv_tensor want;

    for (int i = 0; i < r->job.steps; i++) {
        got[i] = flow_guidance(i, r->job.steps, r->job.guidance);
        cached[i] = !r->full[i];
    }
    if (!hv_in_tensor(r->in, "guidance", &want, &e))
        golden_compare(r->g, r->name, "guidance", hv_view(got, HV_F64, 1, want.shape), want, 1e-12, -1);
    if (!hv_in_tensor(r->in, "is_cached", &want, &e))
        golden_compare(r->g, r->name, "is_cached", hv_view(cached, HV_U8, 1, want.shape), want, 0, -1);
}

static void compare_output(struct e2e *r, float *latents, int64_t n)
{
    struct hv_err e = {0};
    hv_tensor want;

    compare_latents(r, "output.latents", latents);
    for (int64_t i = 0; i < n; i++)
        latents[i] /= 0.476986f;
    if (!hv_in_tensor(r->in, "output.decoder_input", &want, &e))
        compare(r, "output.decoder_input", hv_view(latents, HV_F32, want.ndim, want.shape), want,
                       (r->job.carry == FLOW_FLOAT32 ? 2e-4 : 0.0625) / 0.476986, 1e-6);
}

/* ---- the same through the tool ---- */

/* "[0, 1, 3]" as the option's list. */
static void cache_option(const struct e2e *r, char *buf, size_t size)
{
    size_t n = 0;

    for (int i = 0; i < r->job.steps; i++)
        if (r->full[i] && n < size)
            n += (size_t)snprintf(buf + n, size - n, "%s%d", n ? "," : "", i);
}

/* Writes tensors under their names; name, tensor, name, tensor, .. up to n. */
static int write_file(const char *dir, const char *file, const char *const *name, const hv_tensor *t, int n, int64_t frames,
                      struct hv_err *e)
{
    struct hv_out out = {0};
    char path[4096];

    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (frames)
        hv_out_meta(&out, "hv.frames", "%lld", (long long)frames);
    for (int i = 0; i < n; i++)
        hv_out_add(&out, name[i], t[i]);
    hv_out_write(&out, path, e);
    hv_out_close(&out);
    return e->code;
}

static int write_model(const struct e2e *r, const char *dir, const struct hv_synth_opts *synth, const struct hv_wlist *list, struct hv_err *e)
{
    struct hv_out out = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *dev = NULL;
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/transformer", dir);
    if (mkdir(path, 0700))
        return hv_fail(e, HV_EIO, "%s: cannot be made", path);
    snprintf(path, sizeof path, "%s/transformer/config.json", dir);
    if (!(f = fopen(path, "w")) || fputs(hv_in_meta(r->in, "config"), f) < 0 || fclose(f))
        return hv_fail(e, HV_EIO, "%s: cannot be written", path);
    if (hv_dev_open(&dev, "cpu", r->g->threads, e) || hv_weights_open_synth(&w, dev, list, synth, e)) {
        hv_dev_close(dev);
        return e->code;
    }
    for (int i = 0; i < list->n; i++)
        hv_out_add(&out, list->w[i].name, hv_weight(w, "%s", list->w[i].name));
    snprintf(path, sizeof path, "%s/transformer/model.safetensors", dir);
    hv_out_write(&out, path, e);
    hv_out_close(&out);
    hv_weights_close(w);
    hv_dev_close(dev);
    return e->code;
}

static int write_operands(const struct e2e *r, const char *dir, struct hv_err *e)
{
    static const char *const text[] = {"text.states", "text.pooled", "text.mask", "text.neg_states", "text.neg_pooled",
                                       "text.neg_mask"};
    const struct denoise_job *j = &r->job;
    const hv_tensor t[6] = {j->text.states, j->text.pooled, hv_view(r->mask[0], HV_I64, 1, j->text.states.shape),
                            j->negative.states, j->negative.pooled, hv_view(r->mask[1], HV_I64, 1, j->negative.states.shape)};

    return write_file(dir, "text.st", text, t, 6, 0, e) ||
           write_file(dir, "audio.st", (const char *[]){"audio.features"}, &j->sound, 1, (int64_t)meta(r, "audio_len"), e) ||
           write_file(dir, "face.st", (const char *[]){"face.mask"}, &j->face, 1, 0, e) ||
           write_file(dir, "ref.st", (const char *[]){"ref.latents"}, &j->ref, 1, 0, e) ||
           write_file(dir, "noise.st", (const char *[]){"noise"}, &j->noise, 1, 0, e);
}

static void compare_tool(struct e2e *r, const char *dir)
{
    struct hv_err e = {0};
    struct hv_in *in = NULL;
    hv_tensor got, want;
    char path[4096];

    snprintf(path, sizeof path, "%s/out.st", dir);
    if (hv_in_open(&in, path, &e) || hv_in_tensor(in, "latents", &got, &e) || hv_in_tensor(r->in, "output.latents", &want, &e))
        golden_error(r->g, r->name, &e);
    else
        compare(r, "hv-denoise", got, hv_index(want, 0), r->job.carry == FLOW_FLOAT32 ? 2e-4 : 0.0625,
                       r->job.carry == FLOW_FLOAT32 ? 1e-7 : 1e-6);
    hv_in_close(in);
}

static void through_tool(struct e2e *r, const struct hv_synth_opts *synth, const struct hv_wlist *list)
{
    const struct denoise_job *j = &r->job;
    const char *tmp = getenv("TMPDIR");
    struct hv_err e = {0};
    char dir[512], path[2048], command[20000], cache[8192];

    snprintf(path, sizeof path, "%s/hv-denoise", r->g->bin);
    snprintf(dir, sizeof dir, "%.480s/hv-golden-XXXXXX", tmp ? tmp : "/tmp");
    char *tool = realpath(path, NULL);
    if (!tool || !mkdtemp(dir)) {
        free(tool);
        return;
    }
    cache_option(r, cache, sizeof cache);
    snprintf(command, sizeof command, "cd '%s' && '%s' -q --model . --steps %d --shift %g --guidance %g --carry %s --cache %s "
             "--max-frames 400 --noise noise.st --device %s --threads %d -o out.st face.st text.st ref.st audio.st", dir, tool, j->steps,
             j->shift, j->guidance, j->carry == FLOW_FLOAT32 ? "float32" : "reference", cache, r->g->device, r->g->threads);
    free(tool);
    if (write_model(r, dir, synth, list, &e) || write_operands(r, dir, &e))
        golden_error(r->g, r->name, &e);
    else if (system(command))
        golden_verdict(r->g, r->name, "hv-denoise", 0, "failed");
    else
        compare_tool(r, dir);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command))
        golden_verdict(r->g, r->name, "hv-denoise", 0, "cannot remove %s", dir);
}

/* On a GPU weights pass through a ring as small as it can be. */
static int for_device(const struct e2e *r, struct hv_dev *dev, const struct hv_dev_info *info, struct dit_size *size, struct dit_choice *k)
{
    dit_for_device(size, k, NULL, &r->c, dev->kind, info, HV_BF16, 0);
    dev->attention = k->attention;
    if (dev->kind == HV_CUDA)
        k->ring_bytes = dit_ring_bytes(&r->c, DIT_RING_SEGMENTS, HV_BF16);
    return 0;
}

static int run(struct e2e *r, struct hv_err *e)
{
    const struct hv_synth_opts synth = {.seed = strtoull(hv_in_meta(r->in, "seed"), NULL, 10)};
    const struct denoise_job *j = &r->job;
    const int64_t plane = r->c.channels * j->ref.shape[2] * j->ref.shape[3];
    float *latents = malloc((size_t)(plane * j->clip.video) * sizeof *latents);
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *dev = NULL;
    struct dit_choice choice = {0};
    struct hv_dev_info info;
    struct dit_size size;
    struct dit *net = NULL;
    int ok = 0;

    r->uncond = malloc((size_t)(2 * plane * FLOW_WINDOW) * sizeof *r->uncond);
    denoise_size(&size, j);
    dit_weights(&list, &r->c);
    if (!hv_dev_open(&dev, r->g->device, r->g->threads, e) && !hv_dev_info(dev, &info, e) &&
        !for_device(r, dev, &info, &size, &choice) && !hv_weights_open_synth(&w, dev, &list, &synth, e) &&
        !dit_choose(&choice, &r->c, &size, NULL, e) && !dit_open(&net, dev, w, &r->c, &size, &choice, NULL, e) &&
        !denoise(net, j, latents, e)) {
        compare_tables(r);
        compare_output(r, latents, plane * j->clip.video);
        ok = 1;
    }
    dit_close(net);
    hv_weights_close(w);
    hv_dev_close(dev);                                  /* the tool wants it */
    if (ok)
        through_tool(r, &synth, &list);
    hv_wlist_close(&list);
    free(latents);
    free(r->uncond);
    return e->code;
}

static void e2e(struct golden *g, struct hv_in *in, const char *name)
{
    struct e2e *r = calloc(1, sizeof *r);
    struct hv_err e = {0};

    *r = (struct e2e){.g = g, .name = name, .in = in};
    r->job.seen = seen;
    r->job.ctx = r;
    if (!hv_in_meta(in, "seed") || read_job(r, &e) || run(r, &e))
        golden_error(g, name, &e);
    for (int i = 0; i < r->n_owned; i++)
        free(r->owned[i]);
    free(r->mask[0]);
    free(r->mask[1]);
    free(r);
}

/* ---- which file is what ---- */

static void one(struct golden *g, const char *path, const char *name)
{
    static const struct { const char *begins; void (*run)(struct golden *, struct hv_in *, const char *); } kinds[] = {
        {"resize_rule", resize_rule}, {"image_", picture},         {"noise_cpu", noise_cpu}, {"noise_cuda_rule", noise_rule},
        {"noise_cuda_", noise_gpu},   {"schedule", schedule},      {"windows", windows},
        {"cache_and_guidance", cache_and_guidance}, {"rope_", rope}, {"e2e_", e2e},
    };
    struct hv_err e = {0};
    struct hv_in *in = NULL;
    size_t i = 0;

    if (hv_in_open(&in, path, &e)) {
        golden_error(g, name, &e);
        return;
    }
    while (i < sizeof kinds / sizeof *kinds && strncmp(name, kinds[i].begins, strlen(kinds[i].begins)))
        i++;
    if (i < sizeof kinds / sizeof *kinds)
        kinds[i].run(g, in, name);
    else
        golden_skip(g, name, "not a known kind of golden");
    hv_in_close(in);
}

void golden_sampling(struct golden *g, const char *dir)
{
    golden_each(g, dir, ".safetensors", one);
}
