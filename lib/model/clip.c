#include "model/clip.h"

#include <stdlib.h>
#include <string.h>

#include "model/embed.h"

#define LAST "text_model.final_layer_norm."

int clip_config_parse(struct clip_config *c, const json_t *root, struct hv_err *e)
{
    const json_t *nested = json_object_get(root, "text_config"), *t = json_is_object(nested) ? nested : root;

    *c = (struct clip_config){.stack = {.prefix = "text_model.encoder.layers.", .hidden = 768, .heads = 12, .intermediate = 3072,
                                        .layers = 12, .eps = 1e-5, .act = HV_ACT_QUICK_GELU},
                              .vocab = 49408, .positions = 77, .eos = 2};
    if (clip_layers_parse(&c->stack, &c->stack.layers, t, e) || hv_json_int(t, "vocab_size", 1, 1 << 24, &c->vocab, e) ||
        hv_json_int(t, "max_position_embeddings", 2, 1 << 20, &c->positions, e) ||
        hv_json_int(t, "eos_token_id", 0, INT32_MAX, &c->eos, e))
        return e->code;
    return 0;
}

void clip_weights(struct hv_wlist *l, const struct clip_config *c)
{
    const int64_t C = c->stack.hidden;

    hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){c->vocab, C}, "text_model.embeddings.token_embedding.weight");
    hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){c->positions, C}, "text_model.embeddings.position_embedding.weight");
    clip_layers_weights(l, &c->stack);
    hv_wlist_group(l, LAST);
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &C, LAST "weight");
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &C, LAST "bias");
    hv_wlist_group(l, NULL);
}

int64_t clip_rows_of(const struct clip_config *c, const struct clip_text *t)
{
    int64_t e = 0;

    if (c->eos == 2) {
        for (int64_t i = 1; i < t->n; i++)
            if (t->ids[i] > t->ids[e])
                e = i;
    } else {
        while (e < t->n && t->ids[e] != c->eos)
            e++;
        if (e == t->n)
            e = 0;
    }
    return e + 1;
}

struct clip {
    struct clip_config config;
    struct hv_dev     *d;
    struct hv_weights *w;
    struct hv_arena   *a;
    struct clip_rows   seq[CLIP_TEXTS];
    int                n;
    int64_t            rows;
    int32_t           *ids, *positions;         /* [rows] */
};

static int take_ids(struct clip *n, const struct clip_text *t, struct hv_err *e)
{
    const struct clip_config *c = &n->config;

    for (int s = 0; s < n->n; s++) {
        if (t[s].n < 1 || t[s].n > c->positions)
            return hv_fail(e, HV_EINPUT, "clip: %lld tokens, expected 1 to %lld", (long long)t[s].n, (long long)c->positions);
        n->seq[s] = (struct clip_rows){n->rows, clip_rows_of(c, &t[s])};
        n->rows += n->seq[s].n;
    }
    n->ids = malloc((size_t)n->rows * sizeof *n->ids);
    n->positions = malloc((size_t)n->rows * sizeof *n->positions);
    if (!n->ids || !n->positions)
        return hv_fail(e, HV_ENOMEM, "no memory for the text encoder");
    for (int s = 0; s < n->n; s++)
        for (int64_t i = 0; i < n->seq[s].n; i++) {
            if (t[s].ids[i] < 0 || t[s].ids[i] >= c->vocab)
                return hv_fail(e, HV_EINPUT, "clip: token %d, but the vocabulary ends at %lld", t[s].ids[i], (long long)c->vocab - 1);
            n->ids[n->seq[s].first + i] = t[s].ids[i];
            n->positions[n->seq[s].first + i] = (int32_t)i;
        }
    return 0;
}

int clip_open(struct clip **net, struct hv_dev *d, struct hv_weights *w, const struct clip_config *c, const struct clip_text *t,
              int n, const struct hv_room *room, struct hv_err *e)
{
    const hv_dtype act = room ? room->act : HV_F32;
    struct hv_plan plan = {0};
    struct clip *k = calloc(1, sizeof *k);

    *net = NULL;
    if (!k)
        return hv_fail(e, HV_ENOMEM, "no memory for the text encoder");
    *k = (struct clip){.config = *c, .d = d, .w = w, .n = n};
    if (n < 1 || n > CLIP_TEXTS)
        hv_fail(e, HV_EINPUT, "clip: %d texts, expected 1 to %d", n, CLIP_TEXTS);
    else if (!take_ids(k, t, e)) {
        clip_layers_plan(&plan, &c->stack, k->rows, act);
        hv_plan_add(&plan, "pooled", act, CLIP_PH_ALL, 2, (int64_t[]){n, c->stack.hidden});
        if (!hv_plan_place(&plan, e))
            hv_arena_open_in(&k->a, d, &plan, room, e);
    }
    if (e->code) {
        clip_close(k);
        return e->code;
    }
    *net = k;
    return 0;
}

void clip_close(struct clip *n)
{
    if (!n)
        return;
    hv_arena_close(n->a);
    free(n->ids);
    free(n->positions);
    free(n);
}

const struct hv_plan *clip_plan(const struct clip *n)
{
    return hv_arena_plan(n->a);
}

void clip_encode(struct clip *n, hv_tensor pooled, hv_tensor trace)
{
    const hv_tensor x = hv_arena_row(n->a, "x"), y = hv_arena_row(n->a, "y"), last = hv_arena_row(n->a, "pooled");
    const struct clip_layers *c = &n->config.stack;

    embed_rows(n->d, n->w, x, n->ids, "text_model.embeddings.token_embedding.weight");
    embed_rows(n->d, n->w, y, n->positions, "text_model.embeddings.position_embedding.weight");
    hv_add(n->d, x, x, y);
    clip_layers_run(n->d, n->w, n->a, c, n->seq, n->n, 1, trace.ndim ? hv_rows(trace, 0, c->layers + 1) : HV_NO);
    hv_weights_take(n->w, LAST);
    const hv_tensor g = hv_weight(n->w, LAST "weight"), b = hv_weight(n->w, LAST "bias");
    if (trace.ndim) {
        hv_layer_norm(n->d, y, x, g, b, (float)c->eps);
        hv_download(n->d, hv_index(trace, c->layers + 1), y);
    }
    for (int s = 0; s < n->n; s++)
        hv_layer_norm(n->d, hv_rows(last, s, 1), hv_rows(x, n->seq[s].first + n->seq[s].n - 1, 1), g, b, (float)c->eps);
    hv_weights_give(n->w, LAST);
    hv_download(n->d, pooled, last);
}
