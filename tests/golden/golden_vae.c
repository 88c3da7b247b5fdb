/* Goldens of the VAE: single blocks, encoder and decoder with the outputs of their modules, tiling, the distribution, and the
 * two stages around them (avatar_encode, avatar_decode). Weights follow from the case's seed; those of blocks may be stored. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/json.h"
#include "golden.h"
#include "mem/synth.h"
#include "model/tile.h"
#include "model/vae_net.h"

#define STORES 64

struct store {                                  /* what the trace saw of one module */
    char    name[VAE_NAME];
    float  *data;
    hv_tensor t;
};

struct run {
    struct golden *g;
    const char    *name;
    struct hv_in  *in;
    struct hv_dev *dev, *host;                  /* host: of the weights, where dev is a GPU */
    int            gpu;
    enum vae_keep  keep;
    json_t        *spec, *config_json;
    struct vae_config config;
    int64_t        seed, size[3], tile[2];
    int            n_size, n_tile;
    double         tolerance;
    struct store   store[STORES];
    int            n_store;
};

/* ---- comparing ---- */

/* A golden [1, C, T, H, W] as [T, H, W, C]; attention's [1, N, C] as [N, C]. */
static hv_tensor frames_last(hv_tensor t)
{
    static const int order[4] = {2, 3, 4, 1};
    hv_tensor r = t;

    r.ndim = (uint8_t)(t.ndim - 1);
    for (int i = 0; i < r.ndim; i++) {
        const int from = t.ndim == 5 ? order[i] : i + 1;
        r.shape[i] = t.shape[from];
        r.stride[i] = t.stride[from];
    }
    return r;
}

/* Half precision: final outputs only, 0.01 of the tensor's maximum and 1 - 1e-4 (README). */
static void compare(struct run *r, const char *tensor, hv_tensor got)
{
    struct hv_err e = {0};
    hv_tensor want;
    double top = r->gpu ? 0 : 1;

    if (!hv_in_find(r->in, tensor))
        return;
    if (hv_in_tensor(r->in, tensor, &want, &e)) {
        golden_error(r->g, r->name, &e);
        return;
    }
    for (int64_t i = 0; i < hv_count(want); i++)
        top = fmax(top, fabs((double)((const float *)want.data)[i]));
    if (want.ndim == 3)
        got = hv_reshape(got, 2, (int64_t[]){-1, got.shape[3]});
    golden_compare(r->g, r->name, tensor, got, frames_last(want), (r->gpu ? 0.01 : r->tolerance) * top, r->gpu ? 1e-4 : 1e-5);
}

static void record(void *ctx, const char *name, hv_tensor t, int64_t first)
{
    struct run *r = ctx;
    struct hv_err e = {0};
    struct store *s = NULL;
    hv_tensor want;

    if (r->gpu || !hv_in_find(r->in, name) || hv_in_tensor(r->in, name, &want, &e))
        return;
    for (int i = 0; i < r->n_store; i++)
        if (!strcmp(r->store[i].name, name))
            s = &r->store[i];
    if (!s && r->n_store < STORES) {
        s = &r->store[r->n_store++];
        snprintf(s->name, sizeof s->name, "%s", name);
        const int64_t T = want.ndim == 5 ? want.shape[2] : t.shape[0];
        s->data = calloc((size_t)(T * t.shape[1] * t.shape[2] * t.shape[3]), sizeof *s->data);
        s->t = hv_view(s->data, HV_F32, 4, (int64_t[]){T, t.shape[1], t.shape[2], t.shape[3]});
    }
    if (s && s->data && first + t.shape[0] <= s->t.shape[0])
        hv_download(r->dev, hv_rows(s->t, first, t.shape[0]), t);
}

/* Every intermediate of the file was seen, and is right. */
static void compare_stores(struct run *r)
{
    for (int i = 0; i < hv_in_count(r->in) && !r->gpu; i++) {
        const char *name = hv_in_entry(r->in, i)->name;
        int seen = 0;
        if (strncmp(name, "encoder", 7) && strncmp(name, "decoder", 7) && strcmp(name, "post_quant_conv"))
            continue;
        for (int k = 0; k < r->n_store; k++)
            if (!strcmp(r->store[k].name, name)) {
                compare(r, name, r->store[k].t);
                seen = 1;
            }
        if (!seen)
            golden_verdict(r->g, r->name, name, 0, "never computed");
    }
    for (int k = 0; k < r->n_store; k++)
        free(r->store[k].data);
}

/* ---- running the network ---- */

struct job {
    struct run *r;
    struct vae *v;
    int         decode;
    hv_tensor   x, y;                           /* [T, H, W, C] whole */
};

static int net(void *ctx, hv_tensor y, const struct tile_part *p, struct hv_err *e)
{
    struct job *j = ctx;
    const hv_tensor x = hv_slice(hv_slice(hv_slice(j->x, 0, p->t, p->nt), 1, p->y, p->ny), 2, p->x, p->nx);

    if (j->decode)
        vae_decode(j->v, y, x);
    else
        vae_encode(j->v, y, x);
    return hv_dev_sync(j->r->dev, e);
}

static int emit(void *ctx, hv_tensor y, int64_t first, struct hv_err *e)
{
    struct job *j = ctx;
    const size_t frame = (size_t)(hv_count(j->y) / j->y.shape[0]);

    if (first + y.shape[0] > j->y.shape[0])
        return hv_fail(e, HV_EDIFF, "frames %lld to %lld of %lld", (long long)first, (long long)(first + y.shape[0]),
                       (long long)j->y.shape[0]);
    memcpy((float *)j->y.data + (size_t)first * frame, y.data, (size_t)y.shape[0] * frame * sizeof(float));
    return 0;
}

/* y = encoder or decoder of x [T, H, W, C] with the case's tiles (none: one call); *data is to be freed. */
static int forward(struct run *r, int decode, hv_tensor x, hv_tensor *y, float **data, struct hv_err *e)
{
    const int tiled = r->n_tile == 2;
    struct tile_spec s = {.t = x.shape[0], .h = x.shape[1], .w = x.shape[2], .up = decode,
                          .channels = decode ? r->config.out : 2 * r->config.latent};
    s.size = tiled ? r->tile[0] / (decode ? 8 : 1) : (s.h > s.w ? s.h : s.w) + 4;
    s.tsize = tiled ? r->tile[1] / (decode ? 4 : 1) : s.t + 4;
    s.size += !tiled * ((4 - s.size % 4) % 4);
    s.tsize += !tiled * ((4 - s.tsize % 4) % 4);

    struct vae_opts o = {.part = decode ? VAE_DECODER : VAE_ENCODER, .act = r->gpu ? HV_F16 : HV_F32, .gpu = r->gpu, .keep = r->keep};
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct job j = {.r = r, .decode = decode, .x = x};
    int64_t big[3], shape[4];

    for (int i = 0; i < 3; i++)
        shape[i] = tile_out(&s, i, x.shape[i]);
    shape[3] = s.channels;
    *data = calloc((size_t)hv_shape_count(4, shape), sizeof **data);
    if (!*data)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    *y = j.y = hv_view(*data, HV_F32, 4, shape);
    tile_largest(&s, big);
    o.t = big[0], o.h = big[1], o.w = big[2];
    vae_part_weights(&list, &r->config, o.part);
    if (!hv_weights_open_synth(&w, r->gpu ? r->host : r->dev, &list, &(struct hv_synth_opts){.seed = (uint64_t)r->seed}, e) &&
        !vae_open(&j.v, r->dev, w, &r->config, &o, e)) {
        vae_trace(j.v, tiled || r->keep ? NULL : record, r);
        tile_run(&s, net, &j, emit, &j, e);
    }
    vae_close(j.v);
    hv_weights_close(w);
    hv_wlist_close(&list);
    return e->code;
}

static int input(struct run *r, const char *name, hv_tensor *t, struct hv_err *e)
{
    if (hv_in_tensor(r->in, name, t, e))
        return e->code;
    return t->dtype == HV_F32 && t->ndim == 5 ? 0 : hv_fail(e, HV_EINPUT, "%s: expected F32 of 5 dimensions", name);
}

static void compare_moments(struct run *r, const char *prefix, hv_tensor m)
{
    const int64_t C = m.shape[3] / 2;
    char name[VAE_NAME];
    float *logvar = malloc((size_t)hv_count(m) / 2 * sizeof *logvar);
    int64_t shape[4];

    snprintf(name, sizeof name, "%smoments", prefix);
    compare(r, name, m);
    compare(r, "mean", hv_slice(m, 3, 0, C));
    memcpy(shape, m.shape, sizeof shape);
    shape[3] = C;
    for (int64_t i = 0; i < hv_count(m) / 2; i++)
        logvar[i] = fminf(fmaxf(((const float *)m.data)[i / C * 2 * C + C + i % C], -30), 20);
    compare(r, "logvar", hv_view(logvar, HV_F32, 4, shape));
    free(logvar);
}

static int run_encode(struct run *r, struct hv_err *e)
{
    hv_tensor x, y;
    float *data = NULL;

    if (!input(r, "input.x", &x, e) && !forward(r, 0, frames_last(x), &y, &data, e))
        compare_moments(r, "", y);
    free(data);
    return e->code;
}

static int run_decode(struct run *r, struct hv_err *e)
{
    hv_tensor z, y;
    float *data = NULL;

    static const char *const how[] = {"", " (keep outputs)", " (keep nothing)"};
    const char *name = r->name;
    char label[256];
    float *all = NULL;

    if (input(r, "input.latents", &z, e))
        return e->code;
    for (int keep = VAE_KEEP_ALL; keep <= VAE_KEEP_NOTHING && !e->code; keep++) {
        snprintf(label, sizeof label, "%s%s", name, how[keep]);
        r->keep = (enum vae_keep)keep;
        r->name = label;
        if (!forward(r, 1, frames_last(z), &y, &data, e)) {
            compare(r, "output", y);
            if (all)
                golden_verdict(r->g, r->name, "the same bits", !memcmp(all, data, hv_nbytes(y)), "as with everything kept");
        }
        if (keep == VAE_KEEP_ALL)
            all = data;
        else
            free(data);
    }
    free(all);
    r->keep = VAE_KEEP_ALL;
    r->name = name;
    return e->code;
}

/* ---- the stages ---- */

/* (mean + exp(logvar / 2) noise) * scaling_factor from moments of T frames, or of one that stands for all. */
static int compare_latents(struct run *r, const char *prefix, hv_tensor m, struct hv_err *e)
{
    const int64_t C = m.shape[3] / 2;
    char name[VAE_NAME];
    hv_tensor noise;

    snprintf(name, sizeof name, "input.%snoise", prefix);
    if (input(r, name, &noise, e))
        return e->code;
    noise = frames_last(noise);
    const int64_t n = hv_count(noise), frame = n / noise.shape[0];
    float *z = malloc((size_t)n * sizeof *z), *eps = malloc((size_t)n * sizeof *eps);
    for (int64_t i = 0; i < n; i++)
        eps[i] = ((const float *)noise.data)[i / frame * noise.stride[0] + i / C % noise.shape[2] * noise.stride[2] +
                                             i / C / noise.shape[2] % noise.shape[1] * noise.stride[1] + i % C * noise.stride[3]];
    for (int64_t t = 0; t < noise.shape[0]; t++)
        vae_sample(z + t * frame, (const float *)m.data + (m.shape[0] > 1 ? 2 * t * frame : 0), eps + t * frame, frame / C, C);
    for (int64_t i = 0; i < n; i++)
        z[i] *= (float)r->config.scaling_factor;
    snprintf(name, sizeof name, "%sref_latents", prefix);
    compare(r, name, hv_view(z, HV_F32, 4, noise.shape));
    free(z);
    free(eps);
    return 0;
}

/* The whole video as the reference does it, then one frame as hv-encode does it. */
static int encode_both(struct run *r, const char *prefix, hv_tensor image, struct hv_err *e)
{
    const int64_t shape[4] = {r->size[0], image.shape[0], image.shape[1], 3}, n = hv_count(image);
    float *x = malloc((size_t)(n * shape[0]) * sizeof *x), *data = NULL, *one = NULL;
    const char *name = r->name;
    char label[256];
    hv_tensor y;

    for (int64_t i = 0; i < n * shape[0]; i++)
        x[i] = *prefix ? -1 : (float)((const uint8_t *)image.data)[i % n] / 127.5f - 1;
    const hv_tensor video = hv_view(x, HV_F32, 4, shape);
    if (!forward(r, 0, video, &y, &data, e)) {
        compare_moments(r, prefix, y);
        compare_latents(r, prefix, y, e);
    }
    snprintf(label, sizeof label, "%s (one frame)", name);
    r->name = label;
    if (!e->code && !forward(r, 0, hv_rows(video, 0, 1), &y, &one, e))
        compare_latents(r, prefix, y, e);
    r->name = name;
    free(x);
    free(data);
    free(one);
    return e->code;
}

static int run_avatar_encode(struct run *r, struct hv_err *e)
{
    hv_tensor image;

    if (hv_in_tensor(r->in, "input.image", &image, e))
        return e->code;
    if (image.dtype != HV_U8 || image.ndim != 3)
        return hv_fail(e, HV_EINPUT, "input.image: expected U8 [H,W,3]");
    if (encode_both(r, "", image, e) || !hv_in_find(r->in, "uncond.moments"))
        return e->code;
    return encode_both(r, "uncond.", image, e);
}

static void compare_frames(struct run *r, hv_tensor y)
{
    struct hv_err e = {0};
    hv_tensor want;
    int64_t equal = 0, worst = 0, n = hv_count(y);

    if (hv_in_tensor(r->in, "output.frames", &want, &e) || hv_count(want) != n) {
        golden_verdict(r->g, r->name, "output.frames", 0, "missing, or of another size");
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float v = ((const float *)y.data)[i] / 2 + 0.5f;
        const int byte = (int)((v < 0 ? 0 : v > 1 ? 1 : v) * 255.0f), d = abs(byte - ((const uint8_t *)want.data)[i]);
        equal += !d;
        worst = d > worst ? d : worst;
    }
    golden_verdict(r->g, r->name, "output.frames", r->gpu ? worst <= 2 : worst <= 1 && (double)equal >= 0.99 * (double)n,
                   "off by %lld at most, %.3f %% equal", (long long)worst, 100 * (double)equal / (double)n);
}

static int run_avatar_decode(struct run *r, struct hv_err *e)
{
    hv_tensor z, y;
    float *data = NULL, *scaled;

    if (input(r, "input.latents", &z, e))
        return e->code;
    scaled = malloc(hv_nbytes(z));
    for (int64_t i = 0; i < hv_count(z); i++)
        scaled[i] = ((const float *)z.data)[i] / (float)r->config.scaling_factor;
    if (!forward(r, 1, frames_last(hv_view(scaled, HV_F32, 5, z.shape)), &y, &data, e)) {
        compare(r, "sample", y);
        compare_frames(r, y);
    }
    free(scaled);
    free(data);
    return e->code;
}

static int run_dist(struct run *r, struct hv_err *e)
{
    hv_tensor m, noise;

    if (input(r, "input.moments", &m, e) || input(r, "input.noise", &noise, e))
        return e->code;
    const int64_t C = noise.shape[1], cells = hv_count(noise) / C;
    float *last = malloc(hv_nbytes(m)), *eps = malloc(hv_nbytes(noise)), *z = malloc(hv_nbytes(noise));
    float *zero = calloc(1, hv_nbytes(noise)), *std = malloc(hv_nbytes(noise));
    int64_t shape[4] = {noise.shape[2], noise.shape[3], noise.shape[4], C};
    for (int64_t i = 0; i < cells; i++)
        for (int64_t c = 0; c < 2 * C; c++) {
            last[i * 2 * C + c] = ((const float *)m.data)[c * cells + i];
            if (c < C)
                eps[i * C + c] = ((const float *)noise.data)[c * cells + i];
        }
    vae_sample(z, last, eps, cells, C);
    compare(r, "sample", hv_view(z, HV_F32, 4, shape));
    shape[3] = 2 * C;
    compare_moments(r, "", hv_view(last, HV_F32, 4, shape));
    shape[3] = C;
    for (int64_t i = 0; i < cells; i++)                 /* mean 0 and noise 1 leave the deviation */
        for (int64_t c = 0; c < C; c++) {
            last[i * 2 * C + c] = 0;
            zero[i * C + c] = 1;
        }
    vae_sample(std, last, zero, cells, C);
    compare(r, "std", hv_view(std, HV_F32, 4, shape));
    free(last), free(eps), free(z), free(zero), free(std);
    return 0;
}

/* ---- single blocks ---- */

/* Adds tensor `what` of the block under "op.what": as stored in the file, else by its seed. */
static void op_weight(struct run *r, struct hv_wlist *l, struct hv_out *out, const char *what, int ndim, const int64_t *shape)
{
    struct hv_err e = {0};
    char name[2 * VAE_NAME];
    hv_tensor t;

    snprintf(name, sizeof name, "op.%s", what);
    float *data = hv_out_new(out, name, HV_F32, ndim, shape, &e);
    hv_wlist_add(l, HV_F32, HV_KEEP, ndim, shape, "%s", name);
    if (!data)
        return;
    hv_synth(data, what, ndim, shape, (uint64_t)r->seed, 0, (size_t)hv_shape_count(ndim, shape));
    snprintf(name, sizeof name, "weight.%s", what);
    if (hv_in_find(r->in, name) && !hv_in_tensor(r->in, name, &t, &e))
        memcpy(data, t.data, hv_nbytes(t));
}

static void op_conv_weights(struct run *r, struct hv_wlist *l, struct hv_out *out, const char *what, int64_t ci, int64_t co,
                            int64_t k)
{
    char name[VAE_NAME];

    snprintf(name, sizeof name, "%s.weight", what);
    op_weight(r, l, out, name, 5, (int64_t[]){co, ci, k, k, k});
    snprintf(name, sizeof name, "%s.bias", what);
    op_weight(r, l, out, name, 1, &co);
}

static void op_matrix(struct run *r, struct hv_wlist *l, struct hv_out *out, const char *what, int64_t c, int norm)
{
    char name[VAE_NAME];

    snprintf(name, sizeof name, "%s.weight", what);
    op_weight(r, l, out, name, norm ? 1 : 2, (int64_t[]){c, c});
    snprintf(name, sizeof name, "%s.bias", what);
    op_weight(r, l, out, name, 1, &c);
}

static void op_resnet_weights(struct run *r, struct hv_wlist *l, struct hv_out *out, const char *prefix, int64_t ci, int64_t co)
{
    char name[VAE_NAME];

    snprintf(name, sizeof name, "%snorm1", prefix);
    op_matrix(r, l, out, name, ci, 1);
    snprintf(name, sizeof name, "%sconv1.conv", prefix);
    op_conv_weights(r, l, out, name, ci, co, 3);
    snprintf(name, sizeof name, "%snorm2", prefix);
    op_matrix(r, l, out, name, co, 1);
    snprintf(name, sizeof name, "%sconv2.conv", prefix);
    op_conv_weights(r, l, out, name, co, co, 3);
    snprintf(name, sizeof name, "%sconv_shortcut.conv", prefix);
    if (ci != co)
        op_conv_weights(r, l, out, name, ci, co, 1);
}

static void op_weights(struct run *r, struct hv_wlist *l, struct hv_out *out, const char *op, int64_t ci, int64_t co, int64_t k)
{
    static const char *const linear[] = {"to_q", "to_k", "to_v", "to_out.0"};
    char name[VAE_NAME];

    if (!strcmp(op, "conv"))
        op_conv_weights(r, l, out, "conv", ci, co, k);
    else if (!strcmp(op, "down") || !strcmp(op, "up"))
        op_conv_weights(r, l, out, "conv.conv", ci, co, 3);
    else if (!strcmp(op, "resnet"))
        op_resnet_weights(r, l, out, "", ci, co);
    else {
        op_resnet_weights(r, l, out, "resnets.0.", ci, ci);
        op_resnet_weights(r, l, out, "resnets.1.", ci, ci);
        op_matrix(r, l, out, "attentions.0.group_norm", ci, 1);
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "attentions.0.%s", linear[i]);
            op_matrix(r, l, out, name, ci, 0);
        }
    }
}

struct op {
    const char *op;
    int64_t     c[2], step[3], k, groups;
    int         causal;
};

/* The arena of one block: x (a level's slots), y, a ring, and what attention needs. */
static int op_arena(struct run *r, struct vae *v, const struct op *o, const int64_t *y, struct hv_err *e)
{
    const hv_dtype act = r->gpu ? HV_F16 : HV_F32;
    const int64_t cells = r->size[0] * r->size[1] * r->size[2], C = o->c[0] > o->c[1] ? o->c[0] : o->c[1];
    const int64_t ring = (r->size[0] + 4) * r->size[1] * r->size[2] * C;
    struct hv_plan p = {0};

    hv_plan_add(&p, "sums", HV_F64, 1, 3, (int64_t[]){2, v->c.groups, 2});
    hv_plan_add(&p, "x", act, 1, 1, (int64_t[]){2 * cells * C});
    hv_plan_add(&p, "y", act, 1, 4, y);
    hv_plan_add(&p, "ring", act, 1, 1, &ring);
    hv_plan_add(&p, "cut", act, 1, 1, (int64_t[]){cells * C});
    for (int i = 0; i < 4; i++)
        hv_plan_add(&p, (const char *const[]){"norm", "q", "k", "v"}[i], act, 1, 1, (int64_t[]){cells * C});
    if (r->gpu) {
        hv_plan_add(&p, "scratch", HV_BYTES, 1, 1, (int64_t[]){(int64_t)HV_LINEAR_SCRATCH});
        hv_plan_add(&p, "attention", HV_BYTES, 1, 1, (int64_t[]){(int64_t)hv_attention_scratch(HV_ATT_AUTO, cells, cells, 1, C)});
    }
    return hv_plan_place(&p, e) ? e->code : hv_arena_open(&v->arena, v->d, &p, e);
}

static hv_tensor op_forward(struct vae *v, const struct op *o, struct vae_stream *s, hv_tensor y, int64_t window)
{
    const hv_tensor ring = hv_arena_row(v->arena, "ring"), cut = hv_arena_row(v->arena, "cut");
    const int64_t *t = o->step;
    struct vae_source in = {.kind = VAE_RAW, .x = vae_x(s), .ring = ring, .stride = t[0], .have = -1};
    const struct hv_conv p = {.stride = {(int)t[0], (int)t[1], (int)t[2]}, .pad = HV_PAD_REPLICATE};

    if (!strcmp(o->op, "resnet"))
        vae_resnet(v, s, ring, cut, o->c[1], "op");
    else if (!strcmp(o->op, "mid"))
        vae_mid(v, s, ring, "op");
    else if (!strcmp(o->op, "up"))
        vae_upsample(v, y, vae_x(s), ring, (const int[]){(int)t[0], (int)t[1], (int)t[2]}, window, "op.conv.conv");
    else if (o->k == 1)
        hv_conv(v->d, y, vae_x(s), hv_weight(v->w, "op.conv.weight"), hv_weight(v->w, "op.conv.bias"), &p);
    else
        vae_conv(v, y, &in, window, !strcmp(o->op, "down") ? "op.conv.conv" : "op.conv", p);
    return !strcmp(o->op, "resnet") || !strcmp(o->op, "mid") ? vae_x(s) : y;
}

static void record_op(void *ctx, const char *name, hv_tensor t, int64_t first)
{
    if (!strncmp(name, "op.", 3))
        record(ctx, name + 3, t, first);
}

static int compute_op(struct run *r, struct vae *v, const struct op *o, struct hv_err *e)
{
    const int64_t *n = r->size;
    int64_t shape[4] = {0, 0, 0, o->c[1]};
    hv_tensor x, y;

    for (int i = 0; i < 3; i++)
        shape[i] = strcmp(o->op, "up") ? (n[i] - 1) / o->step[i] + 1 : i ? n[i] * o->step[i] : n[0] * o->step[0] - (o->step[0] - 1);
    if (input(r, "input.x", &x, e) || op_arena(r, v, o, shape, e))
        return e->code;
    vae_trace(v, record_op, r);
    if (r->gpu)
        v->d->scratch = hv_arena_row(v->arena, "scratch");
    float *got = malloc((size_t)hv_shape_count(4, shape) * sizeof *got);
    for (int64_t window = 1; window <= n[0]; window += n[0] > 1 ? n[0] - 1 : 1) {
        const int64_t C = o->c[0] > o->c[1] ? o->c[0] : o->c[1];
        struct vae_stream s = {.row = hv_arena_row(v->arena, "x"), .t = n[0], .h = n[1], .w = n[2], .slot = 2 * n[1] * n[2] * C,
                               .c = o->c[0], .window = window};
        hv_upload(v->d, vae_x(&s), frames_last(x));
        y = hv_view(got, HV_F32, 4, shape);
        hv_download(v->d, y, op_forward(v, o, &s, hv_arena_row(v->arena, "y"), window));
        if (hv_dev_sync(v->d, e))
            break;
        compare(r, "output", y);
    }
    free(got);
    for (int i = 0; i < r->n_store; i++) {
        compare(r, r->store[i].name, r->store[i].t);
        free(r->store[i].data);
    }
    return e->code;
}

static int run_op(struct run *r, struct hv_err *e)
{
    struct op o = {.step = {1, 1, 1}, .k = 3, .groups = 1};
    struct hv_wlist list = {0};
    struct hv_out out = {0};
    struct vae v = {.d = r->dev, .o = {.act = r->gpu ? HV_F16 : HV_F32, .gpu = r->gpu}};
    char path[] = "/tmp/golden-vae-XXXXXX";
    int n = 0;

    if (hv_json_str(r->spec, "op", &o.op, e) || hv_json_ints(r->spec, "channels", 1, 65536, o.c, 2, &n, e) ||
        hv_json_ints(r->spec, "stride", 1, 2, o.step, 3, &n, e) || hv_json_ints(r->spec, "factor", 1, 2, o.step, 3, &n, e) ||
        hv_json_int(r->spec, "kernel", 1, 3, &o.k, e) || hv_json_int(r->spec, "groups", 1, 65536, &o.groups, e) ||
        hv_json_bool(r->spec, "causal", &o.causal, e))
        return e->code;
    if (!o.op || (strcmp(o.op, "conv") && strcmp(o.op, "down") && strcmp(o.op, "up") && strcmp(o.op, "resnet") && strcmp(o.op, "mid")))
        return hv_fail(e, HV_EINPUT, "op '%s' is not known", o.op ? o.op : "");
    v.c = (struct vae_config){.groups = o.groups, .mid_attention = 1, .mid_causal = o.causal};
    op_weights(r, &list, &out, o.op, o.c[0], o.c[1], o.k);
    const int fd = mkstemp(path);
    if (fd < 0 || close(fd))
        hv_fail(e, HV_EIO, "%s: cannot be made", path);
    else if (!hv_out_write(&out, path, e) && !hv_weights_open(&v.w, r->dev, path, &list, e))
        compute_op(r, &v, &o, e);
    hv_arena_close(v.arena);
    hv_weights_close(v.w);
    hv_wlist_close(&list);
    hv_out_close(&out);
    unlink(path);
    return e->code;
}

/* ---- one file ---- */

static int setup(struct run *r, const char *path, const char **kind, struct hv_err *e)
{
    const char *spec, *config, *tolerance;

    if (hv_in_open(&r->in, path, e))
        return e->code;
    spec = hv_in_meta(r->in, "case");
    config = hv_in_meta(r->in, "config");
    tolerance = hv_in_meta(r->in, "tolerance");
    if (!spec || !config || !tolerance)
        return hv_fail(e, HV_EINPUT, "no case, config and tolerance in the metadata");
    r->tolerance = atof(tolerance);
    if (hv_json_parse(&r->spec, spec, strlen(spec), 16, e) || hv_json_parse(&r->config_json, config, strlen(config), 16, e) ||
        hv_json_str(r->spec, "kind", kind, e) || hv_json_int(r->spec, "seed", 0, INT64_MAX, &r->seed, e) ||
        hv_json_ints(r->spec, "size", 1, 1 << 20, r->size, 3, &r->n_size, e) ||
        hv_json_ints(r->spec, "tile", 1, 1 << 20, r->tile, 2, &r->n_tile, e))
        return e->code;
    if (!*kind || r->n_size != 3)
        return hv_fail(e, HV_EINPUT, "the case has no kind or size");
    if (strcmp(*kind, "op") && vae_config_parse(&r->config, r->config_json, e))
        return e->code;
    r->gpu = golden_bf16(r->g);
    if (r->gpu && hv_dev_open(&r->host, "cpu", r->g->threads, e))
        return e->code;
    return hv_dev_open(&r->dev, r->g->device, r->g->threads, e);
}

static void run_file(struct golden *g, const char *path, const char *name)
{
    static const struct {
        const char *kind;
        int (*run)(struct run *r, struct hv_err *e);
    } kinds[] = {
        {"encode", run_encode}, {"decode", run_decode}, {"avatar_encode", run_avatar_encode},
        {"avatar_decode", run_avatar_decode}, {"dist", run_dist}, {"op", run_op},
    };
    char label[512];
    struct run r = {.g = g, .name = label};
    struct hv_err e = {0};
    const char *kind = NULL;
    int known = 0;

    snprintf(label, sizeof label, "vae/%s", name);
    if (!setup(&r, path, &kind, &e)) {
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (!strcmp(kind, kinds[i].kind)) {
                known = 1;
                kinds[i].run(&r, &e);
            }
        if (!known)
            hv_fail(&e, HV_EINPUT, "kind '%s' is not known", kind);
        else if (strcmp(kind, "op"))
            compare_stores(&r);
    }
    if (e.code)
        golden_error(g, label, &e);
    hv_dev_close(r.dev);
    hv_dev_close(r.host);
    json_decref(r.spec);
    json_decref(r.config_json);
    hv_in_close(r.in);
}

void golden_vae(struct golden *g, const char *dir)
{
    golden_each(g, dir, ".safetensors", run_file);
}
