#include "model/llama.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/embed.h"

enum { PH_ATTN = 1, PH_MLP = 2, PH_ALL = 3 };

#define MODEL "language_model.model."

/* ---- config ---- */

static int check(const struct llama_config *c, const json_t *t, int64_t skip, struct hv_err *e)
{
    const json_t *scaling = json_object_get(t, "rope_scaling");
    const char *act = "silu";
    int qkv_bias = 0, mlp_bias = 0;

    if (hv_json_str(t, "hidden_act", &act, e) || hv_json_bool(t, "attention_bias", &qkv_bias, e) ||
        hv_json_bool(t, "mlp_bias", &mlp_bias, e))
        return e->code;
    if (scaling && !json_is_null(scaling))
        return hv_fail(e, HV_EUNSUP, "rope_scaling: expected null");
    if (strcmp(act, "silu"))
        return hv_fail(e, HV_EUNSUP, "hidden_act '%.40s': expected silu", act);
    if (qkv_bias || mlp_bias)
        return hv_fail(e, HV_EUNSUP, "%s true: expected false", qkv_bias ? "attention_bias" : "mlp_bias");
    if (c->heads % c->kv_heads)
        return hv_fail(e, HV_EINPUT, "num_attention_heads %lld is not a multiple of %lld num_key_value_heads", (long long)c->heads,
                       (long long)c->kv_heads);
    if (c->head_dim % 2 || !c->head_dim)
        return hv_fail(e, HV_EINPUT, "head_dim %lld: expected an even number", (long long)c->head_dim);
    if (skip > c->layers)
        return hv_fail(e, HV_EINPUT, "hv_text.skip_layers %lld, but there are %lld layers", (long long)skip, (long long)c->layers);
    return 0;
}

int llama_config_parse(struct llama_config *c, const json_t *root, struct hv_err *e)
{
    const json_t *t = json_object_get(root, "text_config");
    int64_t skip = 2;

    *c = (struct llama_config){.hidden = 4096, .layers = 32, .heads = 32, .kv_heads = 8, .intermediate = 14336, .vocab = 128320,
                               .eps = 1e-5, .theta = 500000, .image_token = 128257, .pad_token = 128258};
    if (hv_json_int(t, "hidden_size", 1, 1 << 16, &c->hidden, e) ||
        hv_json_int(t, "num_hidden_layers", 1, 1024, &c->layers, e) ||
        hv_json_int(t, "num_attention_heads", 1, 1024, &c->heads, e) ||
        hv_json_int(t, "num_key_value_heads", 1, 1024, &c->kv_heads, e) ||
        hv_json_int(t, "intermediate_size", 1, 1 << 20, &c->intermediate, e) ||
        hv_json_int(t, "vocab_size", 1, 1 << 24, &c->vocab, e) || hv_json_real(t, "rms_norm_eps", 0, 1, &c->eps, e) ||
        hv_json_real(t, "rope_theta", 1, 1e12, &c->theta, e))
        return hv_context(e, "text_config");
    c->head_dim = c->hidden / c->heads;
    if (hv_json_int(t, "head_dim", 2, 4096, &c->head_dim, e))
        return hv_context(e, "text_config");
    if (hv_json_int(root, "image_token_index", 0, INT32_MAX, &c->image_token, e) ||
        hv_json_int(root, "pad_token_id", 0, INT32_MAX, &c->pad_token, e))
        return e->code;
    if (hv_json_int(json_object_get(root, "hv_text"), "skip_layers", 1, 1024, &skip, e))
        return hv_context(e, "hv_text");
    if (check(c, t, skip, e))
        return hv_context(e, "text_config");
    c->run = c->layers - skip;
    return 0;
}

/* ---- weights ---- */

void llama_weights(struct hv_wlist *l, const struct llama_config *c)
{
    const int64_t H = c->hidden, Q = c->heads * c->head_dim, K = c->kv_heads * c->head_dim, M = c->intermediate;
    const struct { const char *name; int64_t rows, cols; } part[] = {
        {"self_attn.q_proj", Q, H}, {"self_attn.k_proj", K, H}, {"self_attn.v_proj", K, H}, {"self_attn.o_proj", H, Q},
        {"mlp.gate_proj", M, H},    {"mlp.up_proj", M, H},      {"mlp.down_proj", H, M},
    };

    hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){c->vocab, H}, MODEL "embed_tokens.weight");
    for (int i = 0; i < c->run; i++) {
        hv_wlist_group(l, MODEL "layers.%d.attention", i);
        hv_wlist_add(l, HV_F16, HV_KEEP, 1, &H, MODEL "layers.%d.input_layernorm.weight", i);
        for (int k = 0; k < 7; k++) {
            if (k >= 4)
                hv_wlist_group(l, MODEL "layers.%d.%s", i, part[k].name);
            if (k == 4)
                hv_wlist_add(l, HV_F16, HV_KEEP, 1, &H, MODEL "layers.%d.post_attention_layernorm.weight", i);
            hv_wlist_add(l, HV_F16, HV_QUANT, 2, (int64_t[]){part[k].rows, part[k].cols}, MODEL "layers.%d.%s.weight", i,
                         part[k].name);
        }
    }
    hv_wlist_group(l, NULL);
}

/* ---- layout ---- */

/* Where the rows of a sequence lie. Its own rows follow the `shared` first ones, which are those of sequence 0. */
struct place {
    struct llama_seq seq;
    int32_t         *ids;               /* owned copy */
    int64_t          valid, shared;
    int64_t          first, own;        /* own rows in x, from row `first` on */
    int64_t          keys;              /* keys of all valid rows, in k and v, from row `keys` on */
    int64_t          pad;               /* row of x, -1: no pads */
};

struct llama {
    struct llama_config config;
    struct hv_dev      *d;
    struct hv_weights  *w;
    struct hv_arena    *a;
    struct place        at[LLAMA_SEQS];
    int                 n;
    int64_t             image_rows, rows, key_rows;
    float              *turn;           /* [2, rows, D/2]: cosines, sines */
};

int64_t llama_valid(const struct llama_seq *s, int64_t image_rows)
{
    return s->image < 0 ? s->n : s->n - 1 + image_rows;
}

int64_t llama_rows(const struct llama *n)
{
    return n->rows;
}

/* Rows that all sequences begin with: equal ids, up to the first image. */
static int64_t common(const struct llama_seq *s, int n)
{
    int64_t c = 0;

    for (; n > 1; c++)
        for (int i = 0; i < n; i++)
            if (c >= s[i].n || c == s[i].image || s[i].ids[c] != s[0].ids[c])
                return c;
    return 0;
}

static int lay_out(struct llama *n, const struct llama_seq *s, struct hv_err *e)
{
    const int64_t shared = common(s, n->n);

    for (int i = 0; i < n->n; i++) {
        struct place *p = &n->at[i];
        *p = (struct place){.seq = s[i], .valid = llama_valid(&s[i], n->image_rows), .shared = i ? shared : 0};
        if (s[i].n < 1 || s[i].image >= s[i].n || s[i].rows < p->valid || s[i].crop < 0 || s[i].crop >= s[i].rows)
            return hv_fail(e, HV_EINPUT, "text: %lld tokens (%lld rows) for %lld rows, %lld of them cropped", (long long)s[i].n,
                           (long long)p->valid, (long long)s[i].rows, (long long)s[i].crop);
        for (int64_t k = 0; k < s[i].n; k++)
            if (k != s[i].image && (s[i].ids[k] < 0 || s[i].ids[k] >= n->config.vocab))
                return hv_fail(e, HV_EINPUT, "text: token %d, but the vocabulary ends at %lld", s[i].ids[k],
                               (long long)n->config.vocab - 1);
        if (!(p->ids = malloc((size_t)s[i].n * sizeof *p->ids)))
            return hv_fail(e, HV_ENOMEM, "no memory for the language model");
        memcpy(p->ids, s[i].ids, (size_t)s[i].n * sizeof *p->ids);
        p->seq.ids = p->ids;
        p->own = p->valid - p->shared;
        p->first = n->rows;
        p->keys = n->key_rows;
        n->rows += p->own;
        n->key_rows += p->valid;
    }
    for (int i = 0; i < n->n; i++)
        n->at[i].pad = n->at[i].valid < n->at[i].seq.rows ? n->rows++ : -1;
    return 0;
}

/* Angles of a row at a position, as the reference rounds them: frequency and angle in f32. */
static void turn_row(struct llama *n, int64_t row, int64_t position)
{
    const int64_t D = n->config.head_dim, half = D / 2;
    float *c = n->turn + row * half, *s = c + n->rows * half;

    for (int64_t i = 0; i < half; i++) {
        const float f = (float)(1.0 / pow(n->config.theta, (double)(2 * i) / (double)D));
        const float angle = (float)position * f;
        c[i] = (float)cos((double)angle);
        s[i] = (float)sin((double)angle);
    }
}

static int make_turns(struct llama *n, struct hv_err *e)
{
    n->turn = malloc((size_t)(n->rows * n->config.head_dim) * sizeof *n->turn);
    if (!n->turn)
        return hv_fail(e, HV_ENOMEM, "no memory for the language model");
    for (int i = 0; i < n->n; i++) {
        const struct place *p = &n->at[i];
        for (int64_t r = 0; r < p->own; r++)
            turn_row(n, p->first + r, p->shared + r);
        if (p->pad >= 0)
            turn_row(n, p->pad, 1);
    }
    return 0;
}

static int make_plan(struct hv_plan *p, const struct llama *n, hv_dtype A, struct hv_err *e)
{
    const struct llama_config *c = &n->config;
    const int64_t R = n->rows, K = n->key_rows, H = c->hidden, D = c->head_dim;

    hv_plan_add(p, "x",    A,      PH_ALL,  2, (int64_t[]){R, H});                  /* residual stream */
    hv_plan_add(p, "h",    A,      PH_ALL,  2, (int64_t[]){R, H});                  /* its norm; what is added to it */
    hv_plan_add(p, "q",    A,      PH_ATTN, 2, (int64_t[]){R, c->heads * D});       /* then attention's output */
    hv_plan_add(p, "k",    A,      PH_ATTN, 2, (int64_t[]){K, c->kv_heads * D});    /* of one layer: there is no cache */
    hv_plan_add(p, "v",    A,      PH_ATTN, 2, (int64_t[]){K, c->kv_heads * D});
    hv_plan_add(p, "cos",  HV_F32, PH_ALL,  2, (int64_t[]){R, D / 2});
    hv_plan_add(p, "sin",  HV_F32, PH_ALL,  2, (int64_t[]){R, D / 2});
    hv_plan_add(p, "gate", A,      PH_MLP,  2, (int64_t[]){R, c->intermediate});
    hv_plan_add(p, "up",   A,      PH_MLP,  2, (int64_t[]){R, c->intermediate});
    return hv_plan_place(p, e);
}

int llama_open(struct llama **net, struct hv_dev *d, struct hv_weights *w, const struct llama_config *c,
               const struct llama_seq *s, int n, int64_t image_rows, const struct hv_room *room, struct hv_err *e)
{
    struct hv_plan plan = {0};
    struct llama *k = calloc(1, sizeof *k);

    *net = NULL;
    if (!k)
        return hv_fail(e, HV_ENOMEM, "no memory for the language model");
    *k = (struct llama){.config = *c, .d = d, .w = w, .n = n, .image_rows = image_rows};
    if (n < 1 || n > LLAMA_SEQS)
        hv_fail(e, HV_EINPUT, "text: %d sequences, expected 1 to %d", n, LLAMA_SEQS);
    else if (!lay_out(k, s, e) && !make_turns(k, e) && !make_plan(&plan, k, room ? room->act : HV_F32, e))
        hv_arena_open_in(&k->a, d, &plan, room, e);
    if (e->code) {
        llama_close(k);
        return e->code;
    }
    *net = k;
    return 0;
}

void llama_close(struct llama *n)
{
    if (!n)
        return;
    hv_arena_close(n->a);
    for (int i = 0; i < LLAMA_SEQS; i++)
        free(n->at[i].ids);
    free(n->turn);
    free(n);
}

const struct hv_plan *llama_plan(const struct llama *n)
{
    return hv_arena_plan(n->a);
}

/* ---- forward ---- */

static hv_tensor row(const struct llama *n, const char *name)
{
    return hv_arena_row(n->a, name);
}

static hv_tensor weight(struct llama *n, const char *layer, const char *name)
{
    return hv_weight(n->w, "%s%s.weight", layer, name);
}

/* Embeddings of ids [from, to) of a sequence to the rows from `first` on. */
static void embed_ids(struct llama *n, const struct place *p, int64_t from, int64_t to, int64_t first)
{
    if (to > from)
        embed_rows(n->d, n->w, hv_rows(row(n, "x"), first, to - from), p->ids + from, MODEL "embed_tokens.weight");
}

/* x = the merged sequences: text, image, text; pads are zeros. */
static void embed(struct llama *n, hv_tensor image)
{
    const hv_tensor x = row(n, "x");

    for (int i = 0; i < n->n; i++) {
        const struct place *p = &n->at[i];
        const int64_t text = p->seq.image < 0 ? p->seq.n : p->seq.image;
        embed_ids(n, p, p->shared, text, p->first);
        if (p->seq.image >= 0) {
            hv_upload(n->d, hv_rows(x, p->first + text - p->shared, n->image_rows), image);
            embed_ids(n, p, text + 1, p->seq.n, p->first + text - p->shared + n->image_rows);
        }
        if (p->pad >= 0)
            hv_fill(n->d, hv_rows(x, p->pad, 1), 0);
    }
}

/* Weights of a part of a layer, until `done`. */
static void part(struct llama *n, const char *layer, const char *name, int done)
{
    char group[96];

    snprintf(group, sizeof group, "%s%s", layer, name);
    (done ? hv_weights_give : hv_weights_take)(n->w, group);
}

/* Keys and values of every valid row; pads have none, as nobody sees them. */
static void keys_and_values(struct llama *n, const char *layer)
{
    const hv_tensor h = row(n, "h"), k = row(n, "k"), v = row(n, "v"), c = row(n, "cos"), s = row(n, "sin");

    for (int i = 0; i < n->n; i++) {
        const struct place *p = &n->at[i];
        const hv_tensor x = hv_rows(h, p->first, p->own);
        const hv_tensor ki = hv_rows(k, p->keys + p->shared, p->own), vi = hv_rows(v, p->keys + p->shared, p->own);
        if (p->own) {
            hv_linear(n->d, ki, x, weight(n, layer, "self_attn.k_proj"), HV_NO, HV_ACT_NONE);
            hv_linear(n->d, vi, x, weight(n, layer, "self_attn.v_proj"), HV_NO, HV_ACT_NONE);
            hv_rope_half(n->d, ki, (int)n->config.kv_heads, hv_rows(c, p->first, p->own), hv_rows(s, p->first, p->own));
        }
        if (p->shared) {
            hv_copy(n->d, hv_rows(k, p->keys, p->shared), hv_rows(k, 0, p->shared));
            hv_copy(n->d, hv_rows(v, p->keys, p->shared), hv_rows(v, 0, p->shared));
        }
    }
}

/* x += Wo attention(rms(x)) */
static void attention(struct llama *n, const char *layer)
{
    const struct llama_config *c = &n->config;
    const hv_tensor x = row(n, "x"), h = row(n, "h"), q = row(n, "q");
    struct hv_attn a = {.heads = (int)c->heads, .kv_heads = (int)c->kv_heads, .scale = 1 / sqrtf((float)c->head_dim)};

    part(n, layer, "attention", 0);
    hv_rms_norm(n->d, h, x, weight(n, layer, "input_layernorm"), (float)c->eps);
    hv_linear(n->d, q, h, weight(n, layer, "self_attn.q_proj"), HV_NO, HV_ACT_NONE);
    hv_rope_half(n->d, q, (int)c->heads, row(n, "cos"), row(n, "sin"));
    keys_and_values(n, layer);
    for (int i = 0; i < n->n; i++) {
        const struct place *p = &n->at[i];
        const hv_tensor k = hv_rows(row(n, "k"), p->keys, p->valid), v = hv_rows(row(n, "v"), p->keys, p->valid);
        const hv_tensor own = hv_rows(q, p->first, p->own);
        a.step = 1;
        a.offset = p->shared;                               /* own row i is row shared + i of the sequence */
        if (p->own)
            hv_attention(n->d, own, own, k, v, &a);
        a.step = a.offset = 0;                              /* a pad sees every valid row, not itself */
        if (p->pad >= 0)
            hv_attention(n->d, hv_rows(q, p->pad, 1), hv_rows(q, p->pad, 1), k, v, &a);
    }
    hv_linear(n->d, h, q, weight(n, layer, "self_attn.o_proj"), HV_NO, HV_ACT_NONE);
    part(n, layer, "attention", 1);
    hv_add(n->d, x, x, h);
}

/* x += Wd (silu(Wg rms(x)) * (Wu rms(x))) */
static void mlp(struct llama *n, const char *layer)
{
    const hv_tensor x = row(n, "x"), h = row(n, "h"), gate = row(n, "gate"), up = row(n, "up");

    part(n, layer, "mlp.gate_proj", 0);
    hv_rms_norm(n->d, h, x, weight(n, layer, "post_attention_layernorm"), (float)n->config.eps);
    hv_linear(n->d, gate, h, weight(n, layer, "mlp.gate_proj"), HV_NO, HV_ACT_NONE);
    part(n, layer, "mlp.gate_proj", 1);
    part(n, layer, "mlp.up_proj", 0);
    hv_linear(n->d, up, h, weight(n, layer, "mlp.up_proj"), HV_NO, HV_ACT_NONE);
    part(n, layer, "mlp.up_proj", 1);
    hv_swiglu(n->d, gate, gate, up);
    part(n, layer, "mlp.down_proj", 0);
    hv_linear(n->d, h, gate, weight(n, layer, "mlp.down_proj"), HV_NO, HV_ACT_NONE);
    part(n, layer, "mlp.down_proj", 1);
    hv_add(n->d, x, x, h);
}

/* Rows [from, to) of a sequence to out, which begins with row `crop`. */
static void bring(struct llama *n, hv_tensor out, int64_t crop, int64_t from, int64_t to, int64_t first)
{
    const int64_t skip = from < crop ? crop - from : 0;

    if (from + skip < to)
        hv_download(n->d, hv_rows(out, from + skip - crop, to - from - skip), hv_rows(row(n, "x"), first + skip, to - from - skip));
}

/* The one pad row to all of them. */
static void bring_pads(struct llama *n, const struct place *p, hv_tensor out)
{
    const int64_t from = (p->valid > p->seq.crop ? p->valid : p->seq.crop) - p->seq.crop, to = p->seq.rows - p->seq.crop;

    if (p->pad < 0)
        return;
    hv_download(n->d, hv_rows(out, from, 1), hv_rows(row(n, "x"), p->pad, 1));      /* pageable: past when the call returns */
    for (int64_t r = from + 1; r < to; r++)
        memcpy(hv_rows(out, r, 1).data, hv_rows(out, from, 1).data, (size_t)out.shape[1] * hv_dtype_size(out.dtype));
}

void llama_encode(struct llama *n, const hv_tensor *out, hv_tensor image, hv_tensor trace)
{
    const int64_t half = n->config.head_dim / 2;
    char layer[64];

    hv_upload(n->d, row(n, "cos"), hv_view(n->turn, HV_F32, 2, (int64_t[]){n->rows, half}));
    hv_upload(n->d, row(n, "sin"), hv_view(n->turn + n->rows * half, HV_F32, 2, (int64_t[]){n->rows, half}));
    embed(n, image);                                        /* reads the rows of the ids: the table is not taken as a whole */
    for (int i = 0; i < n->config.run; i++) {
        if (trace.ndim)
            hv_download(n->d, hv_index(trace, i), row(n, "x"));
        snprintf(layer, sizeof layer, MODEL "layers.%d.", i);
        hv_dev_report(n->d, "layer", i, (int)n->config.run);
        attention(n, layer);
        mlp(n, layer);
    }
    hv_dev_report(n->d, "layer", (int)n->config.run, (int)n->config.run);
    if (trace.ndim)
        hv_download(n->d, hv_index(trace, n->config.run), row(n, "x"));
    for (int i = 0; i < n->n; i++) {
        const struct place *p = &n->at[i];
        bring(n, out[i], p->seq.crop, 0, p->shared, 0);
        bring(n, out[i], p->seq.crop, p->shared, p->valid, p->first);
        bring_pads(n, p, out[i]);
    }
}
