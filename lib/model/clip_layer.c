#include "model/clip_layer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ROWS_MLP 256            /* rows of a chunk of the MLP */

int clip_act_parse(enum hv_act *act, const char *name, struct hv_err *e)
{
    static const struct { const char *name; enum hv_act act; } known[] = {
        {"quick_gelu", HV_ACT_QUICK_GELU}, {"gelu", HV_ACT_GELU_ERF},   {"gelu_pytorch_tanh", HV_ACT_GELU_TANH},
        {"gelu_new", HV_ACT_GELU_TANH},    {"silu", HV_ACT_SILU},       {"relu", HV_ACT_RELU},
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *act = known[i].act;
            return 0;
        }
    return hv_fail(e, HV_EUNSUP, "activation '%.80s' is not known", name);
}

int clip_layers_parse(struct clip_layers *c, int64_t *layers, const json_t *config, struct hv_err *e)
{
    const char *act = "quick_gelu";

    if (hv_json_int(config, "hidden_size", 1, 1 << 16, &c->hidden, e) ||
        hv_json_int(config, "num_attention_heads", 1, 1024, &c->heads, e) ||
        hv_json_int(config, "intermediate_size", 1, 1 << 20, &c->intermediate, e) ||
        hv_json_int(config, "num_hidden_layers", 1, 1024, layers, e) ||
        hv_json_real(config, "layer_norm_eps", 0, 1, &c->eps, e) || hv_json_str(config, "hidden_act", &act, e) ||
        clip_act_parse(&c->act, act, e))
        return e->code;
    if (c->hidden % c->heads)
        return hv_fail(e, HV_EINPUT, "hidden_size %lld is not a multiple of %lld num_attention_heads", (long long)c->hidden,
                       (long long)c->heads);
    return 0;
}

/* ---- weights ---- */

static void matrix(struct hv_wlist *l, const char *layer, const char *name, int64_t rows, int64_t cols)
{
    hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){rows, cols}, "%s%s.weight", layer, name);
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &rows, "%s%s.bias", layer, name);
}

static void norm(struct hv_wlist *l, const char *layer, const char *name, int64_t n)
{
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &n, "%s%s.weight", layer, name);
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &n, "%s%s.bias", layer, name);
}

static void layer_name(char buf[96], const struct clip_layers *c, int64_t i)
{
    snprintf(buf, 96, "%s%lld.", c->prefix, (long long)i);
}

void clip_layers_weights(struct hv_wlist *l, const struct clip_layers *c)
{
    const int64_t C = c->hidden, M = c->intermediate;
    char layer[96];

    for (int64_t i = 0; i < c->layers; i++) {
        layer_name(layer, c, i);
        hv_wlist_group(l, "%s", layer);
        norm(l, layer, "layer_norm1", C);
        matrix(l, layer, "self_attn.q_proj", C, C);
        matrix(l, layer, "self_attn.k_proj", C, C);
        matrix(l, layer, "self_attn.v_proj", C, C);
        matrix(l, layer, "self_attn.out_proj", C, C);
        norm(l, layer, "layer_norm2", C);
        matrix(l, layer, "mlp.fc1", M, C);
        matrix(l, layer, "mlp.fc2", C, M);
    }
    hv_wlist_group(l, NULL);
}

/* ---- plan ---- */

void clip_layers_plan(struct hv_plan *p, const struct clip_layers *c, int64_t rows, hv_dtype act)
{
    const int64_t C = c->hidden, chunk = rows < ROWS_MLP ? rows : ROWS_MLP;

    hv_plan_add(p, "x",   act, CLIP_PH_ALL,                2, (int64_t[]){rows, C});             /* residual stream */
    hv_plan_add(p, "y",   act, CLIP_PH_ALL,                2, (int64_t[]){rows, C});             /* its norm; what is added */
    hv_plan_add(p, "q",   act, CLIP_PH_ATTN,               2, (int64_t[]){rows, C});             /* then attention's output */
    hv_plan_add(p, "k",   act, CLIP_PH_ATTN,               2, (int64_t[]){rows, C});
    hv_plan_add(p, "v",   act, CLIP_PH_ATTN,               2, (int64_t[]){rows, C});
    hv_plan_add(p, "mlp", act, CLIP_PH_MLP,                2, (int64_t[]){chunk, c->intermediate});
}

/* ---- forward ---- */

struct run {
    struct hv_dev            *d;
    struct hv_weights        *w;
    struct hv_arena          *a;
    const struct clip_layers *c;
    char                      layer[96];
};

static void layer_norm(const struct run *r, hv_tensor y, hv_tensor x, const char *name)
{
    hv_layer_norm(r->d, y, x, hv_weight(r->w, "%s%s.weight", r->layer, name), hv_weight(r->w, "%s%s.bias", r->layer, name),
                  (float)r->c->eps);
}

static void linear(const struct run *r, hv_tensor y, hv_tensor x, const char *name, enum hv_act act)
{
    hv_linear(r->d, y, x, hv_weight(r->w, "%s%s.weight", r->layer, name), hv_weight(r->w, "%s%s.bias", r->layer, name), act);
}

static void attention(const struct run *r, const struct clip_rows *seq, int n_seq, int causal)
{
    const int heads = (int)r->c->heads;
    const struct hv_attn a = {.heads = heads, .kv_heads = heads, .step = causal,
                              .scale = 1 / sqrtf((float)(r->c->hidden / r->c->heads))};
    const hv_tensor x = hv_arena_row(r->a, "x"), y = hv_arena_row(r->a, "y");
    const hv_tensor q = hv_arena_row(r->a, "q"), k = hv_arena_row(r->a, "k"), v = hv_arena_row(r->a, "v");

    layer_norm(r, y, x, "layer_norm1");
    linear(r, q, y, "self_attn.q_proj", HV_ACT_NONE);
    linear(r, k, y, "self_attn.k_proj", HV_ACT_NONE);
    linear(r, v, y, "self_attn.v_proj", HV_ACT_NONE);
    for (int s = 0; s < n_seq; s++) {
        const hv_tensor o = hv_rows(q, seq[s].first, seq[s].n);
        hv_attention(r->d, o, o, hv_rows(k, seq[s].first, seq[s].n), hv_rows(v, seq[s].first, seq[s].n), &a);
    }
    linear(r, y, q, "self_attn.out_proj", HV_ACT_NONE);
    hv_add(r->d, x, x, y);
}

static void mlp(const struct run *r)
{
    const hv_tensor all = hv_arena_row(r->a, "x"), hidden = hv_arena_row(r->a, "mlp");
    const int64_t R = all.shape[0], chunk = hidden.shape[0];

    for (int64_t i = 0; i < R; i += chunk) {
        const int64_t n = R - i < chunk ? R - i : chunk;
        const hv_tensor x = hv_rows(all, i, n), y = hv_rows(hv_arena_row(r->a, "y"), i, n), h = hv_rows(hidden, 0, n);
        layer_norm(r, y, x, "layer_norm2");
        linear(r, h, y, "mlp.fc1", r->c->act);
        linear(r, y, h, "mlp.fc2", HV_ACT_NONE);
        hv_add(r->d, x, x, y);
    }
}

void clip_layers_run(struct hv_dev *d, struct hv_weights *w, struct hv_arena *a, const struct clip_layers *c,
                     const struct clip_rows *seq, int n_seq, int causal, hv_tensor trace)
{
    struct run r = {.d = d, .w = w, .a = a, .c = c};

    for (int64_t i = 0; i < c->layers; i++) {
        if (trace.ndim)
            hv_download(d, hv_index(trace, i), hv_arena_row(a, "x"));
        layer_name(r.layer, c, i);
        hv_weights_take(w, r.layer);
        attention(&r, seq, n_seq, causal);
        mlp(&r);
        hv_weights_give(w, r.layer);
    }
    if (trace.ndim)
        hv_download(d, hv_index(trace, c->layers), hv_arena_row(a, "x"));
}
