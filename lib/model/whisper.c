#include "model/whisper.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem/arena.h"
#include "ops/ops.h"

enum { PH_CONV = 1, PH_ATTN = 2, PH_MLP = 4, PH_LAYERS = PH_ATTN | PH_MLP };

#define EPS       1e-5f
#define ROWS      1500
#define ROWS_MLP  250           /* rows of a chunk of the hidden layer: it is the widest, and rows are independent */

int whisper_config_parse(struct whisper_config *c, const json_t *config, struct hv_err *e)
{
    const char *activation = "gelu";

    *c = (struct whisper_config){.d_model = 384, .layers = 4, .heads = 6, .ffn = 1536, .mel_bins = 80, .positions = ROWS};
    if (hv_json_int(config, "d_model", 1, 16384, &c->d_model, e)
        || hv_json_int(config, "encoder_layers", 1, 256, &c->layers, e)
        || hv_json_int(config, "encoder_attention_heads", 1, 1024, &c->heads, e)
        || hv_json_int(config, "encoder_ffn_dim", 1, 1 << 18, &c->ffn, e)
        || hv_json_int(config, "num_mel_bins", 1, 4096, &c->mel_bins, e)
        || hv_json_int(config, "max_source_positions", 1, 1 << 20, &c->positions, e)
        || hv_json_str(config, "activation_function", &activation, e))
        return e->code;
    if (c->d_model % c->heads)
        return hv_fail(e, HV_EINPUT, "d_model %lld is not a multiple of %lld encoder_attention_heads",
                       (long long)c->d_model, (long long)c->heads);
    if (c->mel_bins != 80)
        return hv_fail(e, HV_EUNSUP, "num_mel_bins %lld: only 80 are made", (long long)c->mel_bins);
    if (c->positions != ROWS)
        return hv_fail(e, HV_EUNSUP, "max_source_positions %lld: blocks of 30 s have %d", (long long)c->positions, ROWS);
    if (strcmp(activation, "gelu"))
        return hv_fail(e, HV_EUNSUP, "activation_function '%s': only gelu is known", activation);
    return 0;
}

/* ---- weights ---- */

static void matrix(struct hv_wlist *l, const char *layer, const char *name, int64_t rows, int64_t cols, int bias)
{
    hv_wlist_add(l, HV_F32, HV_KEEP, 2, (int64_t[]){rows, cols}, "%s%s.weight", layer, name);
    if (bias)
        hv_wlist_add(l, HV_F32, HV_KEEP, 1, &rows, "%s%s.bias", layer, name);
}

static void norm(struct hv_wlist *l, const char *layer, const char *name, int64_t n)
{
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, &n, "%s%s.weight", layer, name);
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, &n, "%s%s.bias", layer, name);
}

void whisper_weights(struct hv_wlist *l, const struct whisper_config *c)
{
    const int64_t C = c->d_model, D = c->ffn;

    hv_wlist_add(l, HV_F32, HV_KEEP, 3, (int64_t[]){C, c->mel_bins, 3}, "encoder.conv1.weight");
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, &C, "encoder.conv1.bias");
    hv_wlist_add(l, HV_F32, HV_KEEP, 3, (int64_t[]){C, C, 3}, "encoder.conv2.weight");
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, &C, "encoder.conv2.bias");
    hv_wlist_add(l, HV_F32, HV_KEEP, 2, (int64_t[]){c->positions, C}, "encoder.embed_positions.weight");
    for (int i = 0; i < c->layers; i++) {
        char layer[40];

        snprintf(layer, sizeof layer, "encoder.layers.%d.", i);
        norm(l, layer, "self_attn_layer_norm", C);
        matrix(l, layer, "self_attn.q_proj", C, C, 1);
        matrix(l, layer, "self_attn.k_proj", C, C, 0);
        matrix(l, layer, "self_attn.v_proj", C, C, 1);
        matrix(l, layer, "self_attn.out_proj", C, C, 1);
        norm(l, layer, "final_layer_norm", C);
        matrix(l, layer, "fc1", D, C, 1);
        matrix(l, layer, "fc2", C, D, 1);
    }
    norm(l, "encoder.", "layer_norm", C);
}

/* ---- plan ---- */

int whisper_plan(struct hv_plan *p, const struct whisper_config *c, struct hv_err *e)
{
    const int64_t C = c->d_model;

    hv_plan_add(p, "x",      HV_F32, PH_CONV | PH_LAYERS, 2, (int64_t[]){ROWS, C});             /* residual stream */
    hv_plan_add(p, "mel",    HV_F32, PH_CONV,             4, (int64_t[]){1, 1, 2 * ROWS, c->mel_bins});
    hv_plan_add(p, "conv1",  HV_F32, PH_CONV,             4, (int64_t[]){1, 1, 2 * ROWS, C});
    hv_plan_add(p, "y",      HV_F32, PH_CONV | PH_LAYERS, 2, (int64_t[]){ROWS, C});             /* what is added to x */
    hv_plan_add(p, "q",      HV_F32, PH_ATTN,             2, (int64_t[]){ROWS, C});             /* then attention's output */
    hv_plan_add(p, "k",      HV_F32, PH_ATTN,             2, (int64_t[]){ROWS, C});
    hv_plan_add(p, "v",      HV_F32, PH_ATTN,             2, (int64_t[]){ROWS, C});
    hv_plan_add(p, "norm",   HV_F32, PH_MLP,              2, (int64_t[]){ROWS_MLP, C});         /* one chunk of rows */
    hv_plan_add(p, "hidden", HV_F32, PH_MLP,              2, (int64_t[]){ROWS_MLP, c->ffn});
    return hv_plan_place(p, e);
}

/* ---- network ---- */

struct whisper {
    struct whisper_config config;
    struct hv_dev        *d;
    struct hv_weights    *w;
    struct hv_arena      *a;
};

int whisper_open(struct whisper **net, struct hv_dev *d, struct hv_weights *w, const struct whisper_config *c,
                 struct hv_err *e)
{
    struct hv_plan plan = {0};
    struct whisper *n = calloc(1, sizeof *n);

    *net = NULL;
    if (!n)
        return hv_fail(e, HV_ENOMEM, "no memory for the audio encoder");
    *n = (struct whisper){.config = *c, .d = d, .w = w};
    if (whisper_plan(&plan, c, e) || hv_arena_open(&n->a, d, &plan, e)) {
        whisper_close(n);
        return e->code;
    }
    *net = n;
    return 0;
}

void whisper_close(struct whisper *net)
{
    if (!net)
        return;
    hv_arena_close(net->a);
    free(net);
}

/* y = gelu(conv1d(x)), kernel 3: a picture of one row. w [Co, Ci, 3]. */
static void conv1d(struct whisper *n, hv_tensor y, hv_tensor x, const char *name, int stride)
{
    const struct hv_conv p = {.stride = {1, 1, stride}, .pad = HV_PAD_ZERO, .act = HV_ACT_GELU_ERF};
    const hv_tensor w = hv_weight(n->w, "encoder.%s.weight", name);

    hv_conv(n->d, y, x, hv_reshape(w, 5, (int64_t[]){w.shape[0], w.shape[1], 1, 1, 3}),
            hv_weight(n->w, "encoder.%s.bias", name), &p);
}

static void layer_norm(struct whisper *n, hv_tensor y, hv_tensor x, const char *layer, const char *name)
{
    hv_layer_norm(n->d, y, x, hv_weight(n->w, "%s%s.weight", layer, name), hv_weight(n->w, "%s%s.bias", layer, name), EPS);
}

static void linear(struct whisper *n, hv_tensor y, hv_tensor x, const char *layer, const char *name, enum hv_act act)
{
    char bias[96];

    snprintf(bias, sizeof bias, "%s%s.bias", layer, name);
    hv_linear(n->d, y, x, hv_weight(n->w, "%s%s.weight", layer, name),
              hv_weights_have(n->w, bias) ? hv_weight(n->w, "%s", bias) : HV_NO, act);
}

/* x += out_proj(attention(layer_norm(x))) */
static void attention(struct whisper *n, const char *layer)
{
    const int heads = (int)n->config.heads;
    const struct hv_attn a = {.heads = heads, .kv_heads = heads,
                              .scale = 1 / sqrtf((float)n->config.d_model / (float)heads)};
    hv_tensor x = hv_arena_row(n->a, "x"), y = hv_arena_row(n->a, "y");
    hv_tensor q = hv_arena_row(n->a, "q"), k = hv_arena_row(n->a, "k"), v = hv_arena_row(n->a, "v");

    layer_norm(n, y, x, layer, "self_attn_layer_norm");
    linear(n, q, y, layer, "self_attn.q_proj", HV_ACT_NONE);
    linear(n, k, y, layer, "self_attn.k_proj", HV_ACT_NONE);
    linear(n, v, y, layer, "self_attn.v_proj", HV_ACT_NONE);
    hv_attention(n->d, q, q, k, v, &a);
    linear(n, y, q, layer, "self_attn.out_proj", HV_ACT_NONE);
    hv_add(n->d, x, x, y);
}

/* x += fc2(gelu(fc1(layer_norm(x)))) */
static void mlp(struct whisper *n, const char *layer)
{
    const hv_tensor norm = hv_arena_row(n->a, "norm"), hidden = hv_arena_row(n->a, "hidden");

    for (int64_t r = 0; r < ROWS; r += ROWS_MLP) {
        const hv_tensor x = hv_rows(hv_arena_row(n->a, "x"), r, ROWS_MLP);
        const hv_tensor y = hv_rows(hv_arena_row(n->a, "y"), r, ROWS_MLP);

        layer_norm(n, norm, x, layer, "final_layer_norm");
        linear(n, hidden, norm, layer, "fc1", HV_ACT_GELU_ERF);
        linear(n, y, hidden, layer, "fc2", HV_ACT_NONE);
        hv_add(n->d, x, x, y);
    }
}

void whisper_encode(struct whisper *n, hv_tensor states, hv_tensor mel)
{
    const int64_t C = n->config.d_model, S = n->config.layers + 1;
    const hv_tensor x = hv_arena_row(n->a, "x"), y = hv_arena_row(n->a, "y");
    const hv_tensor in = hv_arena_row(n->a, "mel"), conv1 = hv_arena_row(n->a, "conv1");
    const hv_tensor flat = hv_reshape(states, 2, (int64_t[]){ROWS, S * C});     /* state i is its columns i C .. */

    hv_weights_take(n->w, "encoder.conv");
    hv_weights_take(n->w, "encoder.embed_positions.");
    hv_upload(n->d, hv_reshape(in, 2, (int64_t[]){2 * ROWS, n->config.mel_bins}), mel);
    conv1d(n, conv1, in, "conv1", 1);
    conv1d(n, hv_reshape(x, 4, (int64_t[]){1, 1, ROWS, C}), conv1, "conv2", 2);
    hv_copy(n->d, y, hv_weight(n->w, "encoder.embed_positions.weight"));        /* to the dtype of x */
    hv_add(n->d, x, x, y);
    hv_download(n->d, hv_cols(flat, 0, C), x);
    hv_weights_give(n->w, "encoder.conv");
    hv_weights_give(n->w, "encoder.embed_positions.");

    for (int i = 0; i < n->config.layers; i++) {
        char layer[40];

        snprintf(layer, sizeof layer, "encoder.layers.%d.", i);
        hv_weights_take(n->w, layer);
        attention(n, layer);
        mlp(n, layer);
        if (i + 1 < n->config.layers)
            hv_download(n->d, hv_cols(flat, (i + 1) * C, C), x);
        hv_weights_give(n->w, layer);
    }
    layer_norm(n, y, x, "encoder.", "layer_norm");
    hv_download(n->d, hv_cols(flat, (S - 1) * C, C), y);
}
