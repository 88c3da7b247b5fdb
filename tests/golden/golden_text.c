/* Text goldens. tokens.safetensors: strings and their ids by llama_tokenizer/ and clip_tokenizer/. A folder with config.json and
 * golden.safetensors is a network: CLIP's text encoder, or LLaVA with few patches (prompts numbered 0, 1, ..) or as a whole
 * (text_states of the negative prompt and of the prompt). Sizes come from config.json, the seed from the metadata. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "golden.h"
#include "io/image.h"
#include "model/clip.h"
#include "model/llama.h"
#include "model/vit.h"
#include "text/bpe.h"
#include "text/prompt.h"

#define LEVEL 0.0154            /* one level of 255, divided by the smallest deviation */
#define F16_ABS 0.02            /* of activations and weights of F16 on a GPU against f32 */
#define F16_GAP 5e-6

struct text {
    struct golden *g;
    const char    *dir, *name;
    struct hv_err  e;
    struct hv_in  *in;
    json_t        *config;
    struct hv_dev *dev;
    struct hv_weights *weights;
    struct hv_bpe *bpe;
    struct hv_arena *arena;             /* on a GPU: ring of weights, workspace of products */
    struct hv_room room;                /* of the activations */
    double         tol, cos;
};

/* ---- small helpers ---- */

static const char *at(char buf[4096], const char *dir, const char *name)
{
    snprintf(buf, 4096, "%s/%s", dir, name);
    return buf;
}

static hv_tensor tensor(struct text *t, const char *name)
{
    hv_tensor x = {0};

    hv_in_tensor(t->in, name, &x, &t->e);
    return x;
}

/* Compares with a tensor of the golden, if it has it. */
static void compare(struct text *t, const char *name, hv_tensor got, double max_abs, double cos)
{
    hv_tensor want;

    if (hv_in_find(t->in, name) && !hv_in_tensor(t->in, name, &want, &t->e))
        golden_compare(t->g, t->name, name, got, want, max_abs, cos);
}

static void *room(struct text *t, size_t n)
{
    void *p = calloc(n + 1, 1);

    if (!p)
        hv_fail(&t->e, HV_ENOMEM, "out of memory");
    return p;
}

static hv_tensor floats(struct text *t, int ndim, const int64_t *shape)
{
    return hv_view(room(t, (size_t)hv_shape_count(ndim, shape) * 4), HV_F32, ndim, shape);
}

static void close_weights(struct text *t)
{
    hv_weights_close(t->weights);
    if (t->arena)
        t->dev->scratch = HV_NO;
    hv_arena_close(t->arena);
}

static void close_case(struct text *t)
{
    if (t->e.code)
        golden_error(t->g, t->name, &t->e);
    close_weights(t);
    hv_dev_close(t->dev);
    hv_bpe_close(t->bpe);
    hv_in_close(t->in);
    json_decref(t->config);
}

/* On a GPU as hv-text does it: through a ring, which is small here so that it goes round. */
static int stream_weights(struct text *t, const struct hv_wlist *l)
{
    struct hv_plan plan = {0};
    int64_t largest = 0;

    if (t->dev->kind != HV_CUDA)
        return 0;
    for (int g = 0; g < l->groups; g++) {
        const int64_t bytes = hv_weights_group_bytes(t->weights, g, 1);
        largest = bytes > largest ? bytes : largest;
    }
    hv_plan_add(&plan, "ring", HV_BYTES, 1, 1, (const int64_t[]){2 * largest});
    hv_plan_add(&plan, "gemm", HV_BYTES, 1, 1, (const int64_t[]){(int64_t)HV_LINEAR_SCRATCH});
    if (hv_plan_place(&plan, &t->e) || hv_arena_open(&t->arena, t->dev, &plan, &t->e))
        return t->e.code;
    t->dev->scratch = hv_arena_row(t->arena, "gemm");
    const struct hv_stream_opts o = {.ring = hv_arena_row(t->arena, "ring"), .matrices = t->room.act, .once = 1, .poison = 1};
    return hv_weights_stream(t->weights, &o, &t->e);
}

static int open_weights(struct text *t, const struct hv_wlist *l)
{
    const char *seed = hv_in_meta(t->in, "seed");
    const struct hv_synth_opts o = {.seed = seed ? strtoull(seed, NULL, 10) : 0};

    if (!seed)
        return hv_fail(&t->e, HV_EINPUT, "no seed in the metadata");
    return hv_weights_open_synth(&t->weights, t->dev, l, &o, &t->e) || stream_weights(t, l);
}

/* What a network's result may differ by: of f32 as given; on a GPU what its 16-bit activations cost. */
static void tolerate(struct text *t, double tol, double cos)
{
    const int gpu = t->dev->kind == HV_CUDA, half = gpu && t->room.act == HV_F16;

    t->tol = half ? F16_ABS : gpu ? GOLDEN_BF16_ABS : tol;
    t->cos = half ? F16_GAP : gpu ? GOLDEN_BF16_GAP : cos;
}

/* ---- tokens ---- */

static int same_ids(hv_tensor want, const struct hv_ids *got, int64_t n)
{
    const int32_t *w = want.data;

    return want.dtype == HV_I32 && n == hv_count(want) && (!n || !memcmp(w, got->id, (size_t)n * 4));
}

/* All strings through one tokenizer. `most`: ids are cut to it and padded (0: not). */
static void tokens(struct text *t, const struct hv_bpe *b, const char *key, const char *label, int64_t most)
{
    char name[64], first[80] = "";
    int strings = 0, wrong = 0;

    for (int i = 0;; i++) {
        struct hv_ids ids = {0};
        hv_tensor text, want;
        int64_t dropped;
        snprintf(name, sizeof name, "%03d.text", i);
        if (!hv_in_find(t->in, name))
            break;
        text = tensor(t, name);
        snprintf(name, sizeof name, "%03d.%s", i, key);
        want = tensor(t, name);
        if (t->e.code)
            break;
        const char *s = text.data ? text.data : "";
        if (most) {
            hv_prompt_encode_clip(&ids, b, s, (size_t)hv_count(text), most, &dropped, &t->e);
            while (!t->e.code && (int64_t)ids.n < most && !hv_ids_push(&ids, hv_bpe_last(b), &t->e))
                ;
        } else {
            hv_bpe_encode(b, s, (size_t)hv_count(text), &ids, &t->e);
        }
        strings++;
        if (t->e.code || !same_ids(want, &ids, (int64_t)ids.n)) {
            if (!wrong++)
                snprintf(first, sizeof first, ", first %s", name);
        }
        hv_ids_close(&ids);
    }
    golden_verdict(t->g, t->name, label, strings && !wrong && !t->e.code, "%d strings, %d differ%s", strings, wrong, first);
}

static void run_tokens(struct golden *g, const char *dir)
{
    struct text t = {.g = g, .dir = dir, .name = "tokens"};
    struct hv_bpe *llama = NULL, *clip = NULL, *fast = NULL;
    json_t *json = NULL, *vocab = NULL;
    char a[4096], b[4096], c[4096], d[4096];

    if (!hv_in_open(&t.in, at(a, dir, "tokens.safetensors"), &t.e) &&
        !hv_bpe_open_llama(&llama, at(b, dir, "llama_tokenizer"), &t.e) &&
        !hv_bpe_open_clip(&clip, at(c, dir, "clip_tokenizer"), &t.e)) {
        tokens(&t, llama, "llama_ids", "llama_ids", 0);
        tokens(&t, clip, "clip_ids", "clip_ids", 0);
        tokens(&t, clip, "clip_ids77", "clip_ids77", 77);
        /* A tokenizer.json with the same vocabulary must give the same ids. */
        if (golden_exists(at(d, dir, "clip_tokenizer/tokenizer.json")) && !hv_json_read(&json, d, &t.e) &&
            !hv_json_read(&vocab, at(d, dir, "clip_tokenizer/vocab.json"), &t.e) &&
            json_equal(json_object_get(json_object_get(json, "model"), "vocab"), vocab) &&
            !hv_bpe_from_clip_json(&fast, json, &t.e))
            tokens(&t, fast, "clip_ids", "clip_ids (tokenizer.json)", 0);
    }
    json_decref(json);
    json_decref(vocab);
    hv_bpe_close(llama);
    hv_bpe_close(clip);
    hv_bpe_close(fast);
    close_case(&t);
}

/* ---- CLIP ---- */

static void clip_prompt(struct text *t, const struct clip_config *c, int i)
{
    char name[64];
    struct hv_ids ids = {0};
    struct clip *net = NULL;
    hv_tensor text, pooled = floats(t, 2, (int64_t[]){1, c->stack.hidden}), trace = {0};
    int64_t dropped;

    snprintf(name, sizeof name, "%d.input.prompt", i);
    text = tensor(t, name);
    if (t->e.code || hv_prompt_encode_clip(&ids, t->bpe, text.data ? text.data : "", (size_t)hv_count(text), c->positions, &dropped, &t->e))
        goto out;
    const struct clip_text seq = {ids.id, (int64_t)ids.n};
    const int64_t rows = clip_rows_of(c, &seq), layers = c->stack.layers;
    if (clip_open(&net, t->dev, t->weights, c, &seq, 1, &t->room, &t->e))
        goto out;
    trace = floats(t, 3, (int64_t[]){layers + 2, rows, c->stack.hidden});
    clip_encode(net, pooled, trace);
    if (hv_dev_sync(t->dev, &t->e))
        goto out;
    while ((int64_t)ids.n < c->positions && !hv_ids_push(&ids, hv_bpe_last(t->bpe), &t->e))
        ;
    snprintf(name, sizeof name, "%d.input_ids", i);
    compare(t, name, hv_view(ids.id, HV_I32, 1, &c->positions), 0, -1);
    snprintf(name, sizeof name, "%d.output", i);
    compare(t, name, hv_index(pooled, 0), t->tol, t->cos);
    for (int64_t k = 0; k <= layers + 1; k++) {             /* the golden has the rows of the pads too */
        hv_tensor want;
        snprintf(name, sizeof name, k <= layers ? "%d.hidden.%d" : "%d.last_hidden_state", i, (int)k);
        if (hv_in_find(t->in, name) && !hv_in_tensor(t->in, name, &want, &t->e))
            golden_compare(t->g, t->name, name, hv_index(trace, k), hv_rows(want, 0, rows), t->tol, t->cos);
    }
out:
    clip_close(net);
    hv_ids_close(&ids);
    free(pooled.data);
    free(trace.data);
}

static void run_clip(struct text *t)
{
    struct clip_config c;
    struct hv_wlist list = {0};
    char name[64], path[4096];
    const char *tokenizer = hv_in_meta(t->in, "tokenizer");

    tolerate(t, 1e-5, 1e-7);
    if (clip_config_parse(&c, t->config, &t->e) ||
        hv_bpe_open_clip(&t->bpe, at(path, t->dir, tokenizer ? tokenizer : "../clip_tokenizer"), &t->e))
        return;
    clip_weights(&list, &c);
    if (!open_weights(t, &list))
        for (int i = 0; !t->e.code; i++) {
            snprintf(name, sizeof name, "%d.input.prompt", i);
            if (!hv_in_find(t->in, name))
                break;
            clip_prompt(t, &c, i);
        }
    hv_wlist_close(&list);
}

/* ---- pictures ---- */

static void transpose(struct hv_image *y, const struct hv_image *x)
{
    for (int r = 0; r < x->height; r++)
        for (int c = 0; c < x->width; c++)
            memcpy(y->rgb + 3 * ((size_t)c * (size_t)y->width + (size_t)r), x->rgb + 3 * ((size_t)r * (size_t)x->width + (size_t)c), 3);
}

/* pixels [3, S, S] of a picture, the passes of the resampling in our order or in the other one. */
static int make_pixels(struct text *t, hv_tensor pixels, hv_tensor rgb, int vertical_first)
{
    const struct hv_image src = {(int)rgb.shape[1], (int)rgb.shape[0], rgb.data};
    const int side = (int)pixels.shape[1];
    struct hv_image turned = {0}, small = {0}, back = {0};

    if (!vertical_first) {
        if (!hv_image_resize(&small, &src, side, side, HV_BILINEAR, &t->e))
            vit_pixels(pixels.data, small.rgb, side);
    } else if (!hv_image_open(&turned, src.height, src.width, &t->e) && !hv_image_open(&back, side, side, &t->e)) {
        transpose(&turned, &src);
        if (!hv_image_resize(&small, &turned, side, side, HV_BILINEAR, &t->e)) {
            transpose(&back, &small);
            vit_pixels(pixels.data, back.rgb, side);
        }
    }
    hv_image_close(&turned);
    hv_image_close(&small);
    hv_image_close(&back);
    return t->e.code;
}

/* The pixels that the golden's network saw: stored, or made in the order of the Pillow that made them (13: vertical pass first for
 * a tall picture). Ours, always horizontal first, may differ by a level and is compared with that tolerance. */
static hv_tensor golden_pixels(struct text *t, const struct vit_config *c)
{
    const int64_t shape[3] = {3, c->image, c->image};
    hv_tensor ours = floats(t, 3, shape), theirs = floats(t, 3, shape), rgb = tensor(t, "input.image");

    if (!t->e.code && (rgb.ndim != 3 || rgb.shape[2] != 3 || rgb.dtype != HV_U8))
        hv_fail(&t->e, HV_EINPUT, "input.image: expected U8 [height, width, 3]");
    if (!t->e.code && !make_pixels(t, ours, rgb, 0) && !make_pixels(t, theirs, rgb, rgb.shape[0] > rgb.shape[1])) {
        compare(t, "pixel_values", hv_reshape(ours, 4, (int64_t[]){1, 3, c->image, c->image}), LEVEL, -1);
        if (hv_in_find(t->in, "pixel_values")) {
            const hv_tensor stored = tensor(t, "pixel_values");
            if (stored.dtype == HV_F32 && hv_count(stored) == hv_count(theirs))
                memcpy(theirs.data, stored.data, hv_nbytes(theirs));
        }
    }
    free(ours.data);
    return theirs;
}

/* pixels.safetensors: one channel, means and deviations of a picture's pixels. */
static void run_pixels(struct text *t, const struct vit_config *c, const char *path)
{
    struct text p = {.g = t->g, .dir = t->dir, .name = t->name};
    const int64_t area = c->image * c->image;
    hv_tensor x = floats(&p, 3, (int64_t[]){3, c->image, c->image}), rgb;
    float stat[2][3];

    if (!hv_in_open(&p.in, path, &p.e)) {
        rgb = tensor(&p, "input.image");
        if (!p.e.code && rgb.ndim == 3 && rgb.shape[2] == 3 && rgb.dtype == HV_U8 && !make_pixels(&p, x, rgb, 0)) {
            for (int k = 0; k < 3; k++) {
                const float *v = (const float *)x.data + k * area;
                double sum = 0, square = 0;
                for (int64_t i = 0; i < area; i++)
                    sum += (double)v[i];
                for (int64_t i = 0; i < area; i++)
                    square += ((double)v[i] - sum / (double)area) * ((double)v[i] - sum / (double)area);
                stat[0][k] = (float)(sum / (double)area);
                stat[1][k] = (float)__builtin_sqrt(square / (double)area);
            }
            compare(&p, "pixel_values.ch1", hv_index(x, 1), LEVEL, -1);
            compare(&p, "mean", hv_view(stat[0], HV_F32, 1, (int64_t[]){3}), 1e-4, -1);
            compare(&p, "std", hv_view(stat[1], HV_F32, 1, (int64_t[]){3}), 1e-3, -1);
        }
    }
    free(x.data);
    close_case(&p);
}

/* ---- LLaVA ---- */

struct llava {
    struct text            *t;
    struct vit_config       vit;
    struct llama_config     llama;
    struct hv_prompt_config prompt;
    hv_tensor               image;      /* projected rows */
};

static void run_vision(struct llava *v)
{
    struct text *t = v->t;
    const int64_t P = (v->vit.image / v->vit.patch) * (v->vit.image / v->vit.patch), run = v->vit.stack.layers;
    hv_tensor pixels = golden_pixels(t, &v->vit), trace = floats(t, 3, (int64_t[]){run + 1, P + 1, v->vit.stack.hidden});
    struct vit *net = NULL;
    char name[64];

    v->image = floats(t, 2, (int64_t[]){vit_rows(&v->vit), v->vit.out});
    if (!t->e.code && !vit_open(&net, t->dev, t->weights, &v->vit, &t->room, &t->e)) {
        vit_encode(net, v->image, pixels, trace);
        hv_dev_sync(t->dev, &t->e);
    }
    for (int64_t k = 0; k <= run && !t->e.code; k++) {
        snprintf(name, sizeof name, "vision.hidden.%d", (int)k);
        compare(t, name, hv_index(trace, k), t->tol, t->cos);
    }
    if (!t->e.code)
        compare(t, "projector", v->image, t->tol, t->cos);
    vit_close(net);
    free(pixels.data);
    free(trace.data);
}

static int64_t total_rows(const struct llava *v)
{
    return v->prompt.text_len + v->prompt.crop_start + vit_rows(&v->vit) - 1;
}

static struct llama_seq sequence(const struct llava *v, const struct hv_prompt *p)
{
    return (struct llama_seq){p->ids, p->n, p->image, total_rows(v), v->prompt.crop_start};
}

/* Sequences through the language model together; out[i] [L, H]. trace as in llama.h, of all layers. */
static void run_llama(struct llava *v, const struct hv_prompt *p, int n, hv_tensor *out, hv_tensor *trace)
{
    struct text *t = v->t;
    struct llama_seq seq[LLAMA_SEQS];
    struct llama *net = NULL;

    for (int i = 0; i < n; i++) {
        seq[i] = sequence(v, &p[i]);
        out[i] = floats(t, 2, (int64_t[]){total_rows(v) - v->prompt.crop_start, v->llama.hidden});
    }
    if (t->e.code || llama_open(&net, t->dev, t->weights, &v->llama, seq, n, vit_rows(&v->vit), &t->room, &t->e))
        return;
    if (trace)
        *trace = floats(t, 3, (int64_t[]){v->llama.run + 1, llama_rows(net), v->llama.hidden});
    llama_encode(net, out, v->image, trace ? *trace : HV_NO);
    hv_dev_sync(t->dev, &t->e);
    llama_close(net);
}

/* Layer k of the trace of one sequence with its pad row repeated, as the reference has it. */
static void compare_layer(struct llava *v, const char *name, const struct hv_prompt *p, hv_tensor layer)
{
    const struct llama_seq s = sequence(v, p);
    const int64_t rows = total_rows(v), valid = llama_valid(&s, vit_rows(&v->vit));
    hv_tensor all = floats(v->t, 2, (int64_t[]){rows, v->llama.hidden});

    for (int64_t r = 0; r < rows; r++)
        memcpy(hv_index(all, r).data, hv_index(layer, r < valid ? r : valid).data, (size_t)v->llama.hidden * 4);
    compare(v->t, name, all, v->t->tol, v->t->cos);
    free(all.data);
}

static void compare_rows(struct llava *v, int i, const struct hv_prompt *p)
{
    const struct llama_seq s = sequence(v, p);
    const int64_t rows = total_rows(v), valid = llama_valid(&s, vit_rows(&v->vit)), L = hv_prompt_mask_len(&v->prompt, vit_rows(&v->vit));
    int32_t *position = room(v->t, (size_t)rows * 4), *mask = room(v->t, (size_t)rows * 4);
    int64_t *cropped = room(v->t, (size_t)L * 8);
    char name[64];

    for (int64_t r = 0; r < rows; r++) {
        position[r] = r < valid ? (int32_t)r : 1;
        mask[r] = r < valid;
    }
    hv_prompt_mask(cropped, &v->prompt, p, vit_rows(&v->vit));
    snprintf(name, sizeof name, "%d.input_ids", i);
    compare(v->t, name, hv_view(p->ids, HV_I32, 1, &p->total), 0, -1);
    snprintf(name, sizeof name, "%d.llm.position_ids", i);
    compare(v->t, name, hv_view(position, HV_I32, 1, &rows), 0, -1);
    snprintf(name, sizeof name, "%d.llm.attention_mask", i);
    compare(v->t, name, hv_view(mask, HV_I32, 1, &rows), 0, -1);
    snprintf(name, sizeof name, "%d.text_mask", i);
    compare(v->t, name, hv_view(cropped, HV_I64, 1, &L), 0, -1);
    free(position);
    free(mask);
    free(cropped);
}

static void one_prompt(struct llava *v, int i, const struct hv_prompt *p)
{
    hv_tensor out = {0}, trace = {0};
    char name[64];

    compare_rows(v, i, p);
    run_llama(v, p, 1, &out, &trace);
    snprintf(name, sizeof name, "%d.text_states", i);
    if (!v->t->e.code)
        compare(v->t, name, out, v->t->tol, v->t->cos);
    for (int k = 0; k <= v->llama.run && !v->t->e.code; k++) {
        snprintf(name, sizeof name, "%d.llm.hidden.%d", i, k);
        if (hv_in_find(v->t->in, name))
            compare_layer(v, name, p, hv_index(trace, k));
        snprintf(name, sizeof name, "%d.llm.inputs_embeds", i);
        if (!k && hv_in_find(v->t->in, name))
            compare_layer(v, name, p, hv_index(trace, 0));
    }
    free(out.data);
    free(trace.data);
}

/* The prompts that the golden numbers, one by one and all together. */
static void run_prompts(struct llava *v)
{
    struct text *t = v->t;
    struct hv_prompt p[LLAMA_SEQS] = {{0}};
    hv_tensor out[LLAMA_SEQS] = {{0}};
    char name[80], golden[64];
    int n = 0;

    for (; n < LLAMA_SEQS && !t->e.code; n++) {
        snprintf(name, sizeof name, "%d.input.prompt", n);
        if (!hv_in_find(t->in, name))
            break;
        const hv_tensor text = tensor(t, name);
        if (!t->e.code && !hv_prompt_encode(&p[n], &v->prompt, t->bpe, (int32_t)v->llama.image_token, (int32_t)v->llama.pad_token,
                                            text.data ? text.data : "", (size_t)hv_count(text), NULL, &t->e))
            one_prompt(v, n, &p[n]);
    }
    if (!t->e.code)
        run_llama(v, p, n, out, NULL);
    for (int i = 0; i < n && !t->e.code; i++) {
        hv_tensor want;
        snprintf(golden, sizeof golden, "%d.text_states", i);
        snprintf(name, sizeof name, "%s (together)", golden);
        if (hv_in_find(t->in, golden) && !hv_in_tensor(t->in, golden, &want, &t->e))
            golden_compare(t->g, t->name, name, out[i], want, t->tol, t->cos);
    }
    for (int i = 0; i < LLAMA_SEQS; i++) {
        hv_prompt_close(&p[i]);
        free(out[i].data);
    }
}

/* text_states_2 of both prompts, with the weights of text_encoder_2/config.json. */
static void run_pooled(struct text *t, const char *const text[2], const size_t n[2])
{
    struct text u = {.g = t->g, .dir = t->dir, .name = t->name, .in = t->in, .dev = t->dev, .room = t->room};
    const char *tokenizer = hv_in_meta(t->in, "clip_tokenizer");
    struct hv_wlist list = {0};
    struct hv_ids ids[2] = {{0}};
    struct clip_config c;
    struct clip *net = NULL;
    hv_tensor pooled = {0};
    char path[4096];
    int64_t dropped;

    tolerate(&u, 1e-5, 1e-7);
    if (!hv_json_read(&u.config, at(path, t->dir, "text_encoder_2/config.json"), &u.e) && !clip_config_parse(&c, u.config, &u.e) &&
        !hv_bpe_open_clip(&u.bpe, at(path, t->dir, tokenizer ? tokenizer : "../clip_tokenizer"), &u.e) &&
        !hv_prompt_encode_clip(&ids[0], u.bpe, text[0], n[0], c.positions, &dropped, &u.e) &&
        !hv_prompt_encode_clip(&ids[1], u.bpe, text[1], n[1], c.positions, &dropped, &u.e)) {
        const struct clip_text seq[2] = {{ids[0].id, (int64_t)ids[0].n}, {ids[1].id, (int64_t)ids[1].n}};
        clip_weights(&list, &c);
        pooled = floats(&u, 2, (int64_t[]){2, c.stack.hidden});
        if (!open_weights(&u, &list) && !clip_open(&net, u.dev, u.weights, &c, seq, 2, &u.room, &u.e)) {
            clip_encode(net, pooled, HV_NO);
            if (!hv_dev_sync(u.dev, &u.e))
                compare(&u, "text_states_2", pooled, u.tol, u.cos);
        }
    }
    clip_close(net);
    hv_wlist_close(&list);
    hv_ids_close(&ids[0]);
    hv_ids_close(&ids[1]);
    free(pooled.data);
    close_weights(&u);
    hv_bpe_close(u.bpe);
    json_decref(u.config);
    if (u.e.code)
        golden_error(t->g, t->name, &u.e);
}

/* The whole of hv-text: negative prompt and prompt. */
static void run_whole(struct llava *v)
{
    struct text *t = v->t;
    const hv_tensor user = tensor(t, "input.prompt");
    const int64_t L = hv_prompt_mask_len(&v->prompt, vit_rows(&v->vit));
    const char *used = hv_in_meta(t->in, "prompt_used"), *negative = hv_in_meta(t->in, "negative_prompt");
    struct hv_prompt p[2] = {{0}};
    hv_tensor out[2] = {{0}}, want;
    int64_t *mask = room(t, (size_t)(2 * L) * 8);
    char *text = room(t, strlen(v->prompt.quality) + (size_t)hv_count(user));

    if (t->e.code)
        return;
    strcpy(text, v->prompt.quality);
    memcpy(text + strlen(text), user.data, (size_t)hv_count(user));
    if (used)
        golden_verdict(t->g, t->name, "prompt_used", !strcmp(used, text), "'%.60s..'", text);
    if (negative)
        golden_verdict(t->g, t->name, "negative_prompt", !strcmp(negative, v->prompt.negative), "'%.60s..'", v->prompt.negative);
    const char *both[2] = {negative ? negative : v->prompt.negative, used ? used : text};
    const size_t n[2] = {strlen(both[0]), strlen(both[1])};
    for (int i = 0; i < 2; i++)
        if (!t->e.code && !hv_prompt_encode(&p[i], &v->prompt, t->bpe, (int32_t)v->llama.image_token, (int32_t)v->llama.pad_token,
                                            both[i], n[i], NULL, &t->e))
            hv_prompt_mask(mask + i * L, &v->prompt, &p[i], vit_rows(&v->vit));
    if (!t->e.code)
        run_llama(v, p, 2, out, NULL);
    if (!t->e.code) {
        compare(t, "text_mask", hv_view(mask, HV_I64, 2, (int64_t[]){2, L}), 0, -1);
        want = tensor(t, "text_states");
        for (int i = 0; i < 2 && !t->e.code && want.ndim == 3 && want.shape[0] == 2; i++)
            golden_compare(t->g, t->name, i ? "text_states[1]" : "text_states[0]", out[i], hv_index(want, i), t->tol, t->cos);
        run_pooled(t, both, n);
    }
    for (int i = 0; i < 2; i++) {
        hv_prompt_close(&p[i]);
        free(out[i].data);
    }
    free(mask);
    free(text);
}

static void check_prefix(struct llava *v)
{
    int64_t n = 0;

    if (!hv_prompt_prefix_ids(&v->prompt, v->t->bpe, &n, &v->t->e))
        golden_verdict(v->t->g, v->t->name, "crop_start", n == v->prompt.crop_start, "prefix of %lld ids, crop_start %lld",
                       (long long)n, (long long)v->prompt.crop_start);
}

static void run_llava(struct text *t)
{
    struct llava v = {.t = t};
    struct hv_wlist list = {0};
    const char *tokenizer = hv_in_meta(t->in, "tokenizer");
    char path[4096];

    if (vit_config_parse(&v.vit, t->config, &t->e) || llama_config_parse(&v.llama, t->config, &t->e) ||
        hv_prompt_config_parse(&v.prompt, t->config, &t->e) ||
        hv_bpe_open_llama(&t->bpe, at(path, t->dir, tokenizer ? tokenizer : "../llama_tokenizer"), &t->e))
        return;
    const int whole = hv_in_find(t->in, "text_states") != NULL;
    tolerate(t, whole ? 2e-4 : 1e-4, 1e-6);
    vit_weights(&list, &v.vit);
    llama_weights(&list, &v.llama);
    if (!open_weights(t, &list)) {
        check_prefix(&v);
        run_vision(&v);
        if (!t->e.code)
            (whole ? run_whole : run_prompts)(&v);
        if (golden_exists(at(path, t->dir, "pixels.safetensors")))
            run_pixels(t, &v.vit, path);
    }
    free(v.image.data);
    hv_wlist_close(&list);
}

/* ---- folders ---- */

static void run_in(struct golden *g, const char *path, const char *name, const char *config, const char *golden, hv_dtype act)
{
    struct text t = {.g = g, .dir = path, .name = name, .room = {.act = act}};

    if (!hv_json_read(&t.config, config, &t.e) && !hv_in_open(&t.in, golden, &t.e) &&
        !hv_dev_open(&t.dev, g->device, g->threads, &t.e))
        (json_object_get(t.config, "vision_config") ? run_llava : run_clip)(&t);
    close_case(&t);
}

/* On a GPU in both dtypes that hv-text computes in: which one follows from the file of weights. */
static void run_folder(struct golden *g, const char *path, const char *name)
{
    char config[4096], golden[4096], bf16[4096];

    if (name[0] == '.' || !golden_exists(at(golden, path, "golden.safetensors")) || !golden_exists(at(config, path, "config.json")))
        return;
    run_in(g, path, name, config, golden, golden_bf16(g) ? HV_F16 : HV_F32);
    snprintf(bf16, sizeof bf16, "%s, bf16", name);
    if (golden_bf16(g))
        run_in(g, path, bf16, config, golden, HV_BF16);
}

void golden_text(struct golden *g, const char *dir)
{
    char path[4096];

    if (golden_exists(at(path, dir, "tokens.safetensors")) && (!g->only || strstr(path, g->only)))
        run_tokens(g, dir);
    golden_each(g, dir, "", run_folder);
}
