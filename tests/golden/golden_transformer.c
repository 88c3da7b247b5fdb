/* Goldens of the diffusion transformer: one file a case, with inputs, output and, beside it or inside, intermediates.
 * Tolerances: README.md of the folder. Every sample of a batch is a run of its own. */
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/dit.h"
#include "model/rope.h"
#include "ops/ops.h"

#define TRACES_MAX 128

/* An intermediate of one sample: what the golden holds, and what the hook has seen of it. */
struct traced {
    char      name[64];
    hv_tensor want;             /* [rows, cols] of the sample */
    float    *got;
    int64_t   seen;             /* rows */
};

struct run {
    struct golden    *g;
    const char       *name;
    struct hv_in     *in, *more[16];    /* the case, its trace files */
    int               n_more;
    struct hv_dev    *dev;
    struct dit_config c;
    struct dit_size   s;
    uint64_t          seed;
    int64_t           batch, b;
    struct traced     trace[TRACES_MAX];
    int               n_trace;
    int64_t          *mask;
    float            *face, *out;
    double            max_abs, gap;     /* of outputs */
};

/* Sample b of a tensor of the case, without the batch axis. */
static int sample(struct run *r, const char *name, hv_tensor *t, struct hv_err *e)
{
    if (hv_in_tensor(r->in, name, t, e))
        return e->code;
    if (t->ndim < 1 || t->shape[0] <= r->b)
        return hv_fail(e, HV_EINPUT, "%s: no sample %lld", name, (long long)r->b);
    *t = hv_index(*t, r->b);
    return 0;
}

/* ---- intermediates ---- */

static int is_joint(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && (!strcmp(dot, ".q") || !strcmp(dot, ".k") || !strcmp(dot, ".v") || !strcmp(dot, ".attn"));
}

static void add_trace(struct run *r, struct hv_in *in, const struct hv_entry *x, const char *name)
{
    struct hv_err e = {0};
    hv_tensor t;

    if (r->n_trace == TRACES_MAX || hv_in_tensor(in, x->name, &t, &e) || t.ndim < 2 || !strncmp(name, "rope.", 5))
        return;
    const int64_t cols = t.shape[t.ndim - 1] * (is_joint(name) ? t.shape[t.ndim - 2] : 1);
    struct traced *k = &r->trace[r->n_trace++];
    snprintf(k->name, sizeof k->name, "%s", name);
    k->want = hv_reshape(t, 2, (const int64_t[]){-1, cols});
    k->want = hv_rows(k->want, r->b * (k->want.shape[0] / r->batch), k->want.shape[0] / r->batch);
    k->got = calloc((size_t)hv_count(k->want) + 1, sizeof *k->got);
    k->seen = 0;
}

static void find_traces(struct run *r)
{
    const struct hv_entry *x;

    for (int i = 0; i < hv_in_count(r->in); i++) {
        x = hv_in_entry(r->in, i);
        if (!strncmp(x->name, "trace.", 6))
            add_trace(r, r->in, x, x->name + 6);
        else if (!strcmp(x->name, "cache"))
            add_trace(r, r->in, x, x->name);
    }
    for (int f = 0; f < r->n_more; f++)
        for (int i = 0; i < hv_in_count(r->more[f]); i++)
            add_trace(r, r->more[f], hv_in_entry(r->more[f], i), hv_in_entry(r->more[f], i)->name);
}

/* The goldens' names of modulation results. */
static void alias(char *buf, size_t size, const char *name)
{
    char stream[4];
    int i;

    snprintf(buf, size, "%s", name);
    if (sscanf(name, "modulated.double_blocks.%d.%3[a-z]_mod", &i, stream) == 2)
        snprintf(buf, size, "double.%d.%s_mod", i, stream);
    else if (sscanf(name, "modulated.single_blocks.%d.", &i) == 1)
        snprintf(buf, size, "single.%d.modulation", i);
}

static void hook(void *ctx, const char *name, int64_t row, int64_t col, hv_tensor t)
{
    struct run *r = ctx;
    char known[96];
    struct hv_err e = {0};
    const size_t n = (size_t)hv_count(t);
    float *host = t.ndim == 2 ? malloc((n + 1) * sizeof *host) : NULL;

    alias(known, sizeof known, name);
    if (!host)
        return;
    if (t.dev == r->dev->kind)
        hv_download(r->dev, hv_view(host, HV_F32, 2, t.shape), t);
    else
        hv_to_f32(host, t.dtype, t.data, n);            /* rows that live on the host */
    if (hv_dev_sync(r->dev, &e)) {
        free(host);
        return;
    }
    for (int i = 0; i < r->n_trace; i++) {
        struct traced *k = &r->trace[i];
        if (strcmp(k->name, known) || !k->got)
            continue;
        for (int64_t y = 0; y < t.shape[0] && row + y < k->want.shape[0]; y++)
            for (int64_t x = 0; x < t.shape[1] && col + x < k->want.shape[1]; x++)
                k->got[(row + y) * k->want.shape[1] + col + x] = host[y * t.shape[1] + x];
        if (row + t.shape[0] > k->seen)
            k->seen = row + t.shape[0] < k->want.shape[0] ? row + t.shape[0] : k->want.shape[0];
    }
    free(host);
}

static double rms(hv_tensor t)
{
    double sum = 0;

    for (int64_t i = 0; i < hv_count(t); i++)
        sum += (double)((const float *)t.data)[i] * (double)((const float *)t.data)[i];
    return sqrt(sum / (double)(hv_count(t) ? hv_count(t) : 1));
}

/* Rows that count: padding text has none in a program that drops it. */
static int64_t rows_that_count(const struct run *r, const struct traced *k)
{
    const int64_t image = (r->s.frames + 1) * (r->s.height / r->c.patch[1]) * (r->s.width / r->c.patch[2]);
    const size_t n = strlen(k->name);

    if (!strncmp(k->name, "double.", 7) && n > 4 && !strcmp(k->name + n - 4, ".txt"))
        return r->s.text_rows;
    if (is_joint(k->name) || !strcmp(k->name, "cache") ||
        (!strncmp(k->name, "single.", 7) && !strstr(k->name, "modulation")))
        return image + r->s.text_rows;
    return k->want.shape[0];
}

/* "adapter.0.audio" is never made as a whole: its rows are those of audio_proj, grouped. */
static void group_sound(struct run *r)
{
    const struct traced *from = NULL;
    struct traced *to = NULL;
    int64_t frame[4];

    for (int i = 0; i < r->n_trace; i++) {
        if (!strcmp(r->trace[i].name, "audio_proj"))
            from = &r->trace[i];
        if (!strcmp(r->trace[i].name, "adapter.0.audio"))
            to = &r->trace[i];
    }
    if (!from || !to)
        return;
    const int64_t each = r->c.audio_tokens * from->want.shape[1];
    for (int64_t l = 0; l < r->s.frames; l++) {
        dit_sound_frames(l, frame);
        for (int64_t k = 0; k < 4; k++)
            memcpy(to->got + (4 * l + k) * each, from->got + frame[k] * each, (size_t)each * sizeof(float));
    }
    to->seen = to->want.shape[0];
}

static void compare_traces(struct run *r)
{
    char label[128];

    group_sound(r);
    for (int i = 0; i < r->n_trace; i++) {
        struct traced *k = &r->trace[i];
        const int64_t rows = rows_that_count(r, k);
        const hv_tensor want = hv_rows(k->want, 0, rows < k->want.shape[0] ? rows : k->want.shape[0]);
        const double tol = golden_bf16(r->g) ? -1 : strcmp(k->name, "cache") ? (r->c.guidance_embed ? 1e-3 : 3e-4) * fmax(1, rms(want)) : r->max_abs;
        snprintf(label, sizeof label, "%s%s", strcmp(k->name, "cache") ? "trace." : "", k->name);
        if (k->seen < want.shape[0])
            golden_verdict(r->g, r->name, label, 0, "%lld of %lld rows were made", (long long)k->seen, (long long)want.shape[0]);
        else
            golden_compare(r->g, r->name, label, hv_view(k->got, HV_F32, 2, want.shape), want, tol, r->gap);
        free(k->got);
    }
    r->n_trace = 0;
}

/* rope.cos, rope.sin [Ni, D]: every angle twice. */
static void compare_rope(struct run *r, struct hv_in *in, int sine)
{
    struct hv_err e = {0};
    const int64_t extent[3] = {r->s.frames + 1, r->s.height / r->c.patch[1], r->s.width / r->c.patch[2]};
    const int64_t P = extent[1] * extent[2], D = r->c.head_dim;
    hv_tensor want;
    int64_t col = 0;

    if (!hv_in_find(in, sine ? "rope.sin" : "rope.cos") || hv_in_tensor(in, sine ? "rope.sin" : "rope.cos", &want, &e))
        return;
    float *got = calloc((size_t)(extent[0] * P * D) + 1, sizeof *got);
    for (int a = 0; a < 3; a++) {
        const int64_t half = r->c.rope_dim[a] / 2;
        float *table = malloc((size_t)(2 * extent[a] * half) * sizeof *table);
        rope_table(table, table + extent[a] * half, a ? 0 : ROPE_FIRST_TIME, extent[a], 2 * half, r->c.rope_theta);
        for (int64_t tok = 0; tok < extent[0] * P; tok++) {
            const int64_t at[3] = {tok / P, tok % P / extent[2], tok % extent[2]};
            for (int64_t m = 0; m < 2 * half; m++)
                got[tok * D + col + m] = table[(sine * extent[a] + at[a]) * half + m / 2];
        }
        col += 2 * half;
        free(table);
    }
    golden_compare(r->g, r->name, sine ? "trace.rope.sin" : "trace.rope.cos",
                   hv_view(got, HV_F32, 2, (const int64_t[]){extent[0] * P, D}), want, 5e-6, -1);
    free(got);
}

/* ---- one sample ---- */

static int scalars(struct run *r, struct dit_fixed *f, float *t, float *t_cached, struct hv_err *e)
{
    static const struct { const char *name; size_t n; } what[] = {
        {"input.motion_exp", 4}, {"input.motion_pose", 4}, {"input.fps", 1}, {"input.timestep", 1},
        {"input.guidance", 1}, {"input.timestep_cached", 1},
    };
    float *const to[] = {f->motion_exp, f->motion_pose, &f->fps, t, &f->guidance, t_cached};
    hv_tensor x;

    for (size_t i = 0; i < sizeof what / sizeof *what; i++) {
        if (i >= 4 && !hv_in_find(r->in, what[i].name))
            continue;
        if (sample(r, what[i].name, &x, e))
            return e->code;
        if ((size_t)hv_count(x) != what[i].n)
            return hv_fail(e, HV_EINPUT, "%s: %lld numbers", what[i].name, (long long)hv_count(x));
        hv_to_f32(to[i], x.dtype, x.data, what[i].n);
    }
    return 0;
}

struct inputs {
    hv_tensor         latents, ref, sound, face;
    struct dit_text   text;
    struct dit_fixed  fixed;
    struct dit_moment moment[2];
};

static int read_inputs(struct run *r, struct inputs *x, struct hv_err *e)
{
    hv_tensor mask;

    if (sample(r, "input.latents", &x->latents, e) || sample(r, "input.ref_latents", &x->ref, e) ||
        sample(r, "input.audio_prompts", &x->sound, e) || sample(r, "input.face_mask", &x->face, e) ||
        sample(r, "input.text_states", &x->text.states, e) || sample(r, "input.text_mask", &mask, e) ||
        sample(r, "input.text_states_2", &x->text.pooled, e) ||
        scalars(r, &x->fixed, &x->moment[0].t, &x->moment[1].t, e))
        return e->code;
    x->moment[1].cached = 1;
    if (x->latents.ndim != 4 || x->face.ndim != 4 || mask.ndim != 1 || !(r->mask = calloc((size_t)mask.shape[0], 8)))
        return hv_fail(e, HV_EINPUT, "inputs of unexpected shapes");
    for (int64_t i = 0; i < mask.shape[0]; i++) {
        float v;
        hv_to_f32(&v, mask.dtype, (const char *)mask.data + i * mask.stride[0] * (int64_t)hv_dtype_size(mask.dtype), 1);
        r->mask[i] = v != 0;
    }
    x->text.mask = r->mask;
    r->s = (struct dit_size){
        .frames = x->latents.shape[1], .height = x->latents.shape[2], .width = x->latents.shape[3], .texts = 1,
        .text_len = x->text.states.shape[0], .text_rows = dit_text_rows(&x->text), .full = 1,
        .cached = hv_in_find(r->in, "output.cached") != NULL, .sound = x->sound.shape[0], .clip_frames = x->latents.shape[1],
        .windows = 1, .branches = 1, .act = HV_F32,
    };
    if (r->s.sound != 4 * r->s.frames - 3)
        return hv_fail(e, HV_EINPUT, "%lld rows of sound for %lld frames", (long long)r->s.sound, (long long)r->s.frames);
    r->out = calloc((size_t)hv_count(x->latents), sizeof *r->out);
    r->face = calloc((size_t)hv_count(x->latents), sizeof *r->face);
    return r->out && r->face ? 0 : hv_fail(e, HV_ENOMEM, "out of memory");
}

static void compare_output(struct run *r, const char *name, double max_abs, double gap)
{
    struct hv_err e = {0};
    hv_tensor want;
    char label[64];

    if (sample(r, name, &want, &e)) {
        golden_error(r->g, r->name, &e);
        return;
    }
    snprintf(label, sizeof label, r->batch > 1 ? "%s[%lld]" : "%s", name, (long long)r->b);
    golden_compare(r->g, r->name, label, hv_view(r->out, HV_F32, want.ndim, want.shape), want, max_abs, gap);
}

/* Output and cached output with weights as stored, or in f32. */
static int run_sample(struct run *r, const struct inputs *x, struct dit *net, int as_stored, struct hv_err *e)
{
    int32_t *index = malloc((size_t)r->s.sound * sizeof *index);
    struct dit_call call = {.latents = x->latents, .ref = x->ref, .mask = r->face, .sound = index, .frame = index,
                            .out = hv_view(r->out, HV_F32, 4, x->latents.shape), .cache = DIT_SAVE};

    for (int32_t i = 0; i < (int32_t)r->s.sound; i++)
        index[i] = i;
    dit_face_tokens(r->face, x->face, &r->c, &r->s);
    if (!dit_sound(net, x->sound, e) && !dit_prepare(net, &x->text, 1, x->moment, 1 + (int)r->s.cached, &x->fixed, e) &&
        !dit_forward(net, &call, 1, DIT_PLAIN, e)) {
        if (as_stored) {
            compare_output(r, "output", 0.15, 3e-4);
            compare_output(r, "output.float32", 0.15, 3e-4);
        } else {
            compare_output(r, hv_in_find(r->in, "output.float32") ? "output.float32" : "output", r->max_abs, r->gap);
            compare_traces(r);
        }
        call.moment = 1;
        call.cache = DIT_LOAD;
        if (!as_stored && r->s.cached && !dit_forward(net, &call, 1, DIT_PLAIN, e))
            compare_output(r, "output.cached", r->max_abs, r->gap);
    }
    free(index);
    return e->code;
}

/* On a GPU weights pass through a ring as small as it can be. */
static int for_device(struct run *r, struct hv_dev *dev, const struct hv_dev_info *info, struct dit_choice *k)
{
    r->dev = dev;
    dit_for_device(&r->s, k, NULL, &r->c, dev->kind, info, HV_BF16, 0);
    dev->attention = k->attention;
    if (dev->kind == HV_CUDA)
        k->ring_bytes = dit_ring_bytes(&r->c, DIT_RING_SEGMENTS, HV_BF16);
    return 0;
}

static int open_and_run(struct run *r, const struct inputs *x, int as_stored, struct hv_err *e)
{
    const struct hv_synth_opts synth = {.seed = r->seed, .as_stored = as_stored};
    struct hv_wlist list = {0};
    struct hv_weights *w = NULL;
    struct hv_dev *dev = NULL;
    struct dit_choice choice = {0};
    struct hv_dev_info info;
    struct dit *net = NULL;

    dit_weights(&list, &r->c);
    if (!hv_dev_open(&dev, r->g->device, r->g->threads, e) && !hv_dev_info(dev, &info, e) && !for_device(r, dev, &info, &choice) &&
        !hv_weights_open_synth(&w, dev, &list, &synth, e) &&
        !dit_choose(&choice, &r->c, &r->s, NULL, e) && !dit_open(&net, dev, w, &r->c, &r->s, &choice, NULL, e)) {
        if (!as_stored) {
            find_traces(r);
            dit_trace(net, hook, r);
        }
        run_sample(r, x, net, as_stored, e);
    }
    dit_close(net);
    hv_weights_close(w);
    hv_dev_close(dev);
    hv_wlist_close(&list);
    return e->code;
}

/* ---- one file ---- */

static int read_config(struct run *r, struct hv_err *e)
{
    const char *config = hv_in_meta(r->in, "config"), *seed = hv_in_meta(r->in, "seed");
    const struct hv_entry *x = hv_in_find(r->in, "input.latents");
    json_t *root = NULL;

    if (!config || !seed || !x || x->ndim != 5)
        return hv_fail(e, HV_EINPUT, "no config, seed or input.latents");
    r->seed = strtoull(seed, NULL, 10);
    r->batch = x->shape[0];
    if (!hv_json_parse(&root, config, strlen(config), 8, e))
        dit_config_parse(&r->c, root, e);
    json_decref(root);
    r->max_abs = golden_bf16(r->g) ? GOLDEN_BF16_ABS : r->c.guidance_embed ? 1e-3 : 2e-4;
    r->gap = golden_bf16(r->g) ? GOLDEN_BF16_GAP : r->c.guidance_embed ? 1e-7 : 1e-8;
    return e->code;
}

static void open_traces(struct run *r, const char *path)
{
    const int stem = (int)(strlen(path) - strlen(".safetensors"));
    char more[4096];

    for (int i = -1; i < 15; i++) {
        struct hv_err e = {0};
        snprintf(more, sizeof more, i < 0 ? "%.*s.trace.safetensors" : "%.*s.trace%d.safetensors", stem, path, i);
        if (golden_exists(more) && !hv_in_open(&r->more[r->n_more], more, &e))
            r->n_more++;
    }
}

static void one(struct golden *g, const char *path, const char *name)
{
    struct hv_err e = {0};
    struct run *r;

    if (strstr(name, ".trace") || !(r = calloc(1, sizeof *r)))
        return;
    r->g = g;
    r->name = name;
    if (!hv_in_open(&r->in, path, &e) && !read_config(r, &e)) {
        open_traces(r, path);
        for (r->b = 0; r->b < r->batch && !e.code; r->b++) {
            struct inputs x = {0};
            if (!read_inputs(r, &x, &e) && !open_and_run(r, &x, 0, &e) && hv_in_find(r->in, "output.float32"))
                open_and_run(r, &x, 1, &e);
            for (int i = 0; !e.code && !r->b && i < r->n_more; i++) {
                compare_rope(r, r->more[i], 0);
                compare_rope(r, r->more[i], 1);
            }
            free(r->mask);
            free(r->face);
            free(r->out);
        }
    }
    if (e.code)
        golden_error(g, name, &e);
    for (int i = 0; i < r->n_more; i++)
        hv_in_close(r->more[i]);
    hv_in_close(r->in);
    free(r);
}

void golden_transformer(struct golden *g, const char *dir)
{
    golden_each(g, dir, ".safetensors", one);
}
