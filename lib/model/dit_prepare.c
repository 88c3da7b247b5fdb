/* dit_prepare.c - what does not depend on the latents: modulation vectors, refined text, keys and values of the sound. All of it
 * is computed once, for the whole schedule, and goes to host memory. Weights are taken layer by layer: a third of the model
 * passes through here once, and never again. */
#include "dit_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- embedders ---- */

/* sinusoid: [cos a | sin a], a = s f, f[k] = exp(-ln(10000) k / 128), in f32. */
static void sinusoid(float out[DIT_EMBED], float s)
{
    const int half = DIT_EMBED / 2;

    for (int k = 0; k < half; k++) {
        const float a = s * (float)exp((double)(-9.210340371976184f * (float)k / (float)half));
        out[k] = (float)cos((double)a);
        out[half + k] = (float)sin((double)a);
    }
}

/* y = lin(NAME.mlp.2, silu(lin(NAME.mlp.0, sinusoid(s)))): rows of s on the host, y [rows, width] on the device. Its weights
 * are taken. */
static int embed(struct dit *n, hv_tensor y, const char *name, const float *s, int64_t rows, struct hv_err *e)
{
    const int64_t width = y.shape[1];
    const hv_tensor in = hv_rows(dit_row(n, "sinusoid"), 0, rows);
    const hv_tensor all = hv_reshape(dit_row(n, "vec_tmp"), 1, (const int64_t[]){-1});
    const hv_tensor mid = hv_reshape(hv_slice(all, 0, 0, rows * width), 2, (const int64_t[]){rows, width});
    float *host = malloc((size_t)rows * DIT_EMBED * sizeof *host);
    char layer[64];

    if (!host)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", name);
    for (int64_t i = 0; i < rows; i++)
        sinusoid(host + i * DIT_EMBED, s[i]);
    hv_upload(n->dev, in, hv_view(host, HV_F32, 2, (const int64_t[]){rows, DIT_EMBED}));
    free(host);
    snprintf(layer, sizeof layer, "%s.mlp.0", name);
    dit_linear(n, mid, in, layer, HV_ACT_SILU);
    snprintf(layer, sizeof layer, "%s.mlp.2", name);
    dit_linear(n, y, mid, layer, HV_ACT_NONE);
    dit_traced(n, 0, 0, y, "%s", name);
    return 0;
}

/* The same for a layer whose group has its name. */
static int embed_layer(struct dit *n, hv_tensor y, const char *name, const float *s, int64_t rows, struct hv_err *e)
{
    hv_weights_take(n->w, name);
    embed(n, y, name, s, rows, e);
    hv_weights_give(n->w, name);
    return e->code;
}

/* The part of vec that all moments share: motion (four results side by side make H), frame rate, embedded guidance. */
static int fixed_part(struct dit *n, const struct dit_fixed *f, struct hv_err *e)
{
    const int64_t H = n->c.hidden;
    const hv_tensor sum = hv_rows(dit_row(n, "vec_fixed"), 0, 1), one = hv_rows(dit_row(n, "vec_fixed"), 1, 1);
    const int64_t quarters[2] = {4, H / 4};

    if (embed_layer(n, hv_reshape(sum, 2, quarters), "motion_exp", f->motion_exp, 4, e) ||
        embed_layer(n, hv_reshape(one, 2, quarters), "motion_pose", f->motion_pose, 4, e))
        return e->code;
    hv_add(n->dev, sum, sum, one);
    if (embed_layer(n, one, "fps_proj", &f->fps, 1, e))
        return e->code;
    hv_add(n->dev, sum, sum, one);
    if (!n->c.guidance_embed)
        return 0;
    if (embed_layer(n, one, "guidance_in", &f->guidance, 1, e))
        return e->code;
    hv_add(n->dev, sum, sum, one);
    return 0;
}

/* Timesteps of the moments, the full ones first. */
static void timesteps(const struct dit *n, float *t)
{
    for (int i = 0; i < n->n_moments; i++)
        t[n->slot[i] + (n->moment[i].cached ? n->s.full : 0)] = n->moment[i].t;
}

/* Rows of "vec", one a moment: time + fixed + pooled text. */
static int vectors(struct dit *n, const struct dit_text *texts, int n_texts, const struct dit_fixed *f, const float *t,
                   struct hv_err *e)
{
    const hv_tensor vec = hv_rows(dit_row(n, "vec"), 0, n->m.moments), fixed = hv_rows(dit_row(n, "vec_fixed"), 0, 1);
    const hv_tensor pooled = dit_row(n, "pooled"), mid = hv_rows(dit_row(n, "vec_tmp"), 0, 1);

    if (fixed_part(n, f, e) || embed_layer(n, vec, "time_in", t, n->m.moments, e))
        return e->code;
    hv_weights_take(n->w, "vector_in");
    for (int i = 0; i < n_texts; i++) {
        const hv_tensor out = hv_rows(dit_row(n, "vec_text"), i, 1);
        hv_upload(n->dev, pooled, hv_reshape(texts[i].pooled, 2, (const int64_t[]){1, n->c.pooled_dim}));
        dit_linear(n, mid, pooled, "vector_in.in_layer", HV_ACT_SILU);
        dit_linear(n, out, mid, "vector_in.out_layer", HV_ACT_NONE);
        dit_traced(n, 0, 0, out, "vector_in");
    }
    hv_weights_give(n->w, "vector_in");
    for (int i = 0; i < n->n_moments; i++) {
        const hv_tensor row = hv_rows(vec, n->slot[i] + (n->moment[i].cached ? n->s.full : 0), 1);
        hv_add(n->dev, row, row, fixed);
        hv_add(n->dev, row, row, hv_rows(dit_row(n, "vec_text"), n->moment[i].text, 1));
    }
    dit_traced(n, 0, 0, vec, "embedded.vec");
    return 0;
}

/* ---- modulation ---- */

/* One modulation layer for moments [first, first + rows): `parts` vectors each, into columns at `at` of the host's table. */
static void modulate(struct dit *n, const char *name, hv_tensor table, int64_t at, int64_t parts, int64_t first)
{
    const int64_t H = n->c.hidden, rows = table.shape[0];
    const hv_tensor out = hv_cols(hv_rows(dit_row(n, "mod_out"), 0, rows), 0, parts * H);

    if (!rows)
        return;
    dit_linear(n, out, hv_rows(dit_row(n, "vec"), first, rows), name, HV_ACT_NONE);
    hv_download(n->dev, hv_cols(table, at * H, parts * H), out);
    dit_traced(n, 0, 0, out, "modulated.%s", name);
}

/* "vec" becomes silu(vec); every modulation layer meets all moments at once. */
static void modulations(struct dit *n)
{
    const hv_tensor full = dit_host(n, "modulation"), cached = dit_host(n, "modulation_cached");
    const hv_tensor vec = hv_rows(dit_row(n, "vec"), 0, n->m.moments);
    const int64_t last = n->c.single_blocks - 1;
    char name[64], group[64];
    int64_t at = 0;

    hv_activation(n->dev, vec, vec, HV_ACT_SILU);
    for (int64_t i = 0; i < n->c.double_blocks; i++)
        for (int s = 0; s < 2; s++, at += 6) {
            snprintf(name, sizeof name, "double_blocks.%lld.%s_mod.linear", (long long)i, s ? "txt" : "img");
            snprintf(group, sizeof group, "double_blocks.%lld.%s_mod", (long long)i, s ? "txt" : "img");
            hv_weights_take(n->w, group);
            modulate(n, name, full, at, 6, 0);
            hv_weights_give(n->w, group);
        }
    for (int64_t i = 0; i <= last; i++, at += 3) {
        snprintf(name, sizeof name, "single_blocks.%lld.modulation.linear", (long long)i);
        snprintf(group, sizeof group, "single_blocks.%lld.modulation", (long long)i);
        hv_weights_take(n->w, group);
        modulate(n, name, full, at, 3, 0);
        if (i == last)
            modulate(n, name, cached, 0, 3, n->s.full);
        hv_weights_give(n->w, group);
    }
    hv_weights_take(n->w, "final_layer.adaLN");
    modulate(n, "final_layer.adaLN_modulation.1", full, at, 2, 0);
    modulate(n, "final_layer.adaLN_modulation.1", cached, 3, 2, n->s.full);
    hv_weights_give(n->w, "final_layer.adaLN");
}

/* ---- text ---- */

int64_t dit_text_rows(const struct dit_text *t)
{
    int64_t count = 0;

    for (int64_t i = 0; i < t->states.shape[0]; i++)
        count += t->mask[i] != 0;
    return count;
}

/* Mean of the valid states (of all of them where the model takes no mask) into row "mean"; which keys are seen into "text_seen":
 * the valid ones, and key 0, which everybody sees. */
static int text_mean(struct dit *n, const struct dit_text *t, struct hv_err *e)
{
    const int64_t L = t->states.shape[0], E = n->c.text_dim;
    float *mean = calloc((size_t)E, sizeof *mean), *row = malloc((size_t)E * sizeof *row);
    double *sum = calloc((size_t)E, sizeof *sum);
    uint8_t *seen = malloc((size_t)L);
    int64_t count = 0;

    if (mean && row && sum && seen) {
        for (int64_t i = 0; i < L; i++) {
            const int valid = t->mask[i] || !n->c.use_attention_mask;
            seen[i] = (uint8_t)(valid || !i);
            if (!valid)
                continue;
            hv_to_f32(row, t->states.dtype, (const char *)t->states.data + i * t->states.stride[0] *
                      (int64_t)hv_dtype_size(t->states.dtype), (size_t)E);
            for (int64_t k = 0; k < E; k++)
                sum[k] += (double)row[k];
            count++;
        }
        for (int64_t k = 0; k < E; k++)
            mean[k] = (float)(sum[k] / (double)(count ? count : 1));
        hv_upload(n->dev, dit_row(n, "mean"), hv_view(mean, HV_F32, 2, (const int64_t[]){1, E}));
        hv_upload(n->dev, dit_rows(dit_row(n, "text_seen"), 0, L), hv_view(seen, HV_U8, 1, &L));
    } else {
        hv_fail(e, HV_ENOMEM, "text: out of memory");
    }
    free(mean);
    free(row);
    free(sum);
    free(seen);
    return e->code;
}

/* Attention among the valid rows; a padded row sees key 0 alone, so its result is that key's value. */
static void refiner_attention(struct dit *n, const struct dit_text *t, hv_tensor qkv)
{
    const int64_t H = n->c.hidden, L = qkv.shape[0];
    const hv_tensor q = hv_cols(qkv, 0, H), v = hv_cols(qkv, 2 * H, H);
    const struct hv_attn a = {.heads = (int)n->c.heads, .kv_heads = (int)n->c.heads,
                              .scale = (float)(1 / sqrt((double)n->c.head_dim)),
                              .key_mask = dit_rows(dit_row(n, "text_seen"), 0, L)};

    hv_attention(n->dev, q, q, hv_cols(qkv, H, H), v, &a);
    for (int64_t i = 0; i < L && n->c.use_attention_mask; i++)
        if (!t->mask[i])
            hv_copy(n->dev, hv_rows(q, i, 1), hv_rows(v, 0, 1));
}

/* One block of SingleTokenRefiner, in place on x; c [1, H] is silu(c) of the specification. */
static void refiner_block(struct dit *n, const struct dit_text *t, int b, hv_tensor x, hv_tensor c)
{
    const int64_t H = n->c.hidden, L = x.shape[0], R = dit_row(n, "text_hidden").shape[0];
    const hv_tensor z = hv_rows(dit_row(n, "text_z"), 0, L), qkv = hv_rows(dit_row(n, "text_qkv"), 0, L);
    const hv_tensor gates = dit_row(n, "text_gates"), gate = dit_row(n, "text_gate");
    const char *stem = "txt_in.individual_token_refiner.blocks", *group = b ? "txt_in.block.1.attn" : "txt_in.block.0.attn";
    char name[80];

    hv_weights_take(n->w, group);
#define LAYER(tail) (snprintf(name, sizeof name, "%s.%d.%s", stem, b, tail), name)
    dit_linear(n, gates, c, LAYER("adaLN_modulation.1"), HV_ACT_NONE);
    hv_copy(n->dev, gate, hv_reshape(gates, 2, (const int64_t[]){2, H}));
    hv_layer_norm(n->dev, z, x, dit_weight(n, stem, b, "norm1.weight"), dit_weight(n, stem, b, "norm1.bias"), DIT_NORM_EPS);
    dit_linear(n, qkv, z, LAYER("self_attn_qkv"), HV_ACT_NONE);
    refiner_attention(n, t, qkv);
    dit_linear(n, z, hv_cols(qkv, 0, H), LAYER("self_attn_proj"), HV_ACT_NONE);
    hv_gated_add(n->dev, x, hv_index(gate, 0), z);
    hv_weights_give(n->w, group);
    group = b ? "txt_in.block.1.mlp" : "txt_in.block.0.mlp";
    hv_weights_take(n->w, group);
    hv_layer_norm(n->dev, z, x, dit_weight(n, stem, b, "norm2.weight"), dit_weight(n, stem, b, "norm2.bias"), DIT_NORM_EPS);
    for (int64_t r = 0; r < L; r += R) {
        const int64_t rows = L - r < R ? L - r : R;
        const hv_tensor hidden = hv_rows(dit_row(n, "text_hidden"), 0, rows), part = hv_rows(z, r, rows);
        dit_linear(n, hidden, part, LAYER("mlp.fc1"), HV_ACT_SILU);
        dit_linear(n, part, hidden, LAYER("mlp.fc2"), HV_ACT_NONE);
    }
    hv_gated_add(n->dev, x, hv_index(gate, 1), z);
    hv_weights_give(n->w, group);
#undef LAYER
}

/* Rows of "vec_tmp" past the embedder's are free: c_embedder of each prompt goes to "vec_text", whose own use is over. */
static int text_contexts(struct dit *n, const struct dit_text *texts, int n_texts, struct hv_err *e)
{
    const hv_tensor mid = hv_rows(dit_row(n, "vec_tmp"), 0, 1);

    for (int i = 0; i < n_texts; i++) {
        const hv_tensor out = hv_rows(dit_row(n, "vec_text"), i, 1);
        if (text_mean(n, &texts[i], e))
            return e->code;
        dit_linear(n, mid, dit_row(n, "mean"), "txt_in.c_embedder.linear_1", HV_ACT_SILU);
        dit_linear(n, out, mid, "txt_in.c_embedder.linear_2", HV_ACT_NONE);
        dit_traced(n, 0, 0, out, "txt_in.c_embedder");
    }
    return 0;
}

/* Refines the prompt of full moment i; c [1, H] is its row of "vec". */
static int refine(struct dit *n, const struct dit_text *texts, int i, struct hv_err *e)
{
    const struct dit_text *t = &texts[n->moment[i].text];
    const int64_t L = t->states.shape[0], rows = n->text_n[n->moment[i].text];
    const hv_tensor x = hv_rows(dit_row(n, "text_x"), 0, L), states = hv_rows(dit_row(n, "states"), 0, L);
    const hv_tensor c = hv_rows(dit_row(n, "vec"), n->slot[i], 1);

    if (text_mean(n, t, e))                             /* and the mask */
        return e->code;
    hv_upload(n->dev, states, t->states);
    hv_weights_take(n->w, "txt_in");
    dit_linear(n, x, states, "txt_in.input_embedder", HV_ACT_NONE);
    hv_weights_give(n->w, "txt_in");
    dit_traced(n, 0, 0, x, "txt_in.input_embedder");
    for (int b = 0; b < 2; b++) {
        refiner_block(n, t, b, x, c);
        dit_traced(n, 0, 0, x, b ? "txt_in" : "txt_in.block.0");
    }
    hv_download(n->dev, dit_rows(hv_index(dit_host(n, "text"), n->slot[i]), 0, rows), hv_rows(x, 0, rows));
    return 0;
}

static int refined_texts(struct dit *n, const struct dit_text *texts, int n_texts, const float *t, struct hv_err *e)
{
    const hv_tensor vec = hv_rows(dit_row(n, "vec"), 0, n->s.full);

    if (!n->s.full)
        return 0;
    hv_weights_take(n->w, "txt_in");
    if (!text_contexts(n, texts, n_texts, e))
        embed(n, vec, "txt_in.t_embedder", t, n->s.full, e);
    hv_weights_give(n->w, "txt_in");
    if (e->code)
        return e->code;
    for (int i = 0; i < n->n_moments; i++)
        if (!n->moment[i].cached)
            hv_add(n->dev, hv_rows(vec, n->slot[i], 1), hv_rows(vec, n->slot[i], 1),
                   hv_rows(dit_row(n, "vec_text"), n->moment[i].text, 1));
    hv_activation(n->dev, vec, vec, HV_ACT_SILU);
    for (int i = 0, done = 0; i < n->n_moments; i++) {
        if (n->moment[i].cached)
            continue;
        if (refine(n, texts, i, e))
            return e->code;
        hv_dev_report(n->dev, "text", ++done, (int)n->s.full);
    }
    return 0;
}

/* ---- prepare ---- */

static int check_texts(struct dit *n, const struct dit_text *texts, int n_texts, struct hv_err *e)
{
    char shape[HV_SHAPE_STR];

    if (n_texts < 1 || n_texts > n->s.texts)
        return hv_fail(e, HV_EINPUT, "%d prompts, expected 1 to %lld", n_texts, (long long)n->s.texts);
    for (int i = 0; i < n_texts; i++) {
        const struct dit_text *t = &texts[i];
        const hv_tensor s = t->states;
        if (s.ndim != 2 || s.shape[0] < 1 || s.shape[0] > n->s.text_len || s.shape[1] != n->c.text_dim)
            return hv_fail(e, HV_EINPUT, "text states %s, expected [1 to %lld,%lld] (text_states_dim)", hv_shape_str(s, shape),
                           (long long)n->s.text_len, (long long)n->c.text_dim);
        if (t->pooled.ndim != 1 || t->pooled.shape[0] != n->c.pooled_dim)
            return hv_fail(e, HV_EINPUT, "pooled text %s, expected [%lld] (text_states_dim_2)", hv_shape_str(t->pooled, shape),
                           (long long)n->c.pooled_dim);
        n->text_n[i] = dit_text_rows(t);
        if (n->text_n[i] < 1 || n->text_n[i] > n->s.text_rows)
            return hv_fail(e, HV_EINPUT, "text mask: %lld ones, expected 1 to %lld", (long long)n->text_n[i],
                           (long long)n->s.text_rows);
    }
    return 0;
}

static int take_moments(struct dit *n, const struct dit_moment *moments, int count, int n_texts, struct hv_err *e)
{
    int64_t full = 0, cached = 0;

    if (count < 1 || count > n->m.moments)
        return hv_fail(e, HV_EINPUT, "%d moments, expected 1 to %lld", count, (long long)n->m.moments);
    for (int i = 0; i < count; i++) {
        if (moments[i].text < 0 || moments[i].text >= n_texts)
            return hv_fail(e, HV_EINPUT, "moment %d: prompt %d of %d", i, moments[i].text, n_texts);
        n->moment[i] = moments[i];
        n->slot[i] = moments[i].cached ? cached++ : full++;
    }
    if (full != n->s.full || cached != n->s.cached)
        return hv_fail(e, HV_EINPUT, "%lld full and %lld cached moments, planned for %lld and %lld", (long long)full,
                       (long long)cached, (long long)n->s.full, (long long)n->s.cached);
    n->n_moments = count;
    return 0;
}

int dit_prepare(struct dit *n, const struct dit_text *texts, int n_texts, const struct dit_moment *moments, int n_moments,
                const struct dit_fixed *fixed, struct hv_err *e)
{
    float *t = NULL;

    if (check_texts(n, texts, n_texts, e) || take_moments(n, moments, n_moments, n_texts, e))
        return e->code;
    if (!(t = malloc((size_t)n->m.moments * sizeof *t)))
        return hv_fail(e, HV_ENOMEM, "moments: out of memory");
    timesteps(n, t);
    if (!vectors(n, texts, n_texts, fixed, t, e)) {
        modulations(n);
        refined_texts(n, texts, n_texts, t, e);
    }
    free(t);
    return e->code ? e->code : hv_dev_sync(n->dev, e);
}

int dit_prepare_random(struct dit *n, const struct dit_moment *moments, int n_moments, struct hv_err *e)
{
    static const struct { const char *row; float size; } table[] = {{"modulation", 0.2f}, {"modulation_cached", 0.2f},
                                                                    {"text", 1}, {"sound", 1}};

    if (take_moments(n, moments, n_moments, 1, e))
        return e->code;
    n->text_n[0] = n->s.text_rows;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const hv_tensor t = dit_host(n, table[i].row);
        uint32_t seed = 12345;
        for (int64_t k = 0; k < hv_count(t); k++) {
            seed = seed * 1664525u + 1013904223u;
            const float v = table[i].size * ((float)(seed >> 8) * 0x1p-23f - 1);
            hv_from_f32(t.dtype, (char *)t.data + (size_t)k * hv_dtype_size(t.dtype), &v, 1);
        }
    }
    return 0;
}

/* ---- sound ---- */

/* Tokens of `rows` frames in "sound_in": [rows * tokens, H], normed, in "sound_tok". */
static hv_tensor project(struct dit *n, int64_t first, int64_t rows)
{
    const hv_tensor in = hv_rows(dit_row(n, "sound_in"), 0, rows), mid = dit_row(n, "sound_mid");
    const hv_tensor a = hv_rows(hv_index(mid, 0), 0, rows), b = hv_rows(hv_index(mid, 1), 0, rows);
    const hv_tensor tok = hv_rows(dit_row(n, "sound_tok"), 0, rows * n->c.audio_tokens);

    hv_weights_take(n->w, "audio_proj");
    dit_linear(n, a, in, "audio_proj.proj1", HV_ACT_RELU);
    dit_linear(n, b, a, "audio_proj.proj2", HV_ACT_RELU);
    dit_linear(n, hv_reshape(tok, 2, (const int64_t[]){rows, n->c.audio_tokens * n->c.hidden}), b, "audio_proj.proj3",
               HV_ACT_NONE);
    hv_layer_norm(n->dev, tok, tok, hv_weight(n->w, "audio_proj.norm.weight"), hv_weight(n->w, "audio_proj.norm.bias"),
                  DIT_SOUND_EPS);
    hv_weights_give(n->w, "audio_proj");
    dit_traced(n, first * n->c.audio_tokens, 0, tok, "audio_proj");
    return tok;
}

/* Keys and values of frames first .. first + rows - 1 for every adapter that runs, to the host. */
static void sound_chunk(struct dit *n, int64_t first, int64_t rows)
{
    const char *stem = "audio_adapter_blocks";
    const int64_t K = n->c.audio_tokens;
    const hv_tensor tok = project(n, first, rows), store = dit_host(n, "sound");
    const hv_tensor z = hv_rows(dit_row(n, "sound_z"), 0, rows * K), kv = hv_rows(dit_row(n, "sound_kv"), 0, rows * K);
    char group[48];
    int64_t at = 0;

    for (int j = 0; j < n->c.adapters; j++) {
        if (n->c.adapter_after[j] >= n->c.double_blocks)
            continue;
        snprintf(group, sizeof group, "audio_adapter.%d.kv", j);
        hv_weights_take(n->w, group);
        hv_layer_norm(n->dev, z, tok, dit_weight(n, stem, j, "norm1.weight"), dit_weight(n, stem, j, "norm1.bias"),
                      DIT_SOUND_EPS);
        hv_linear(n->dev, kv, z, dit_weight(n, stem, j, "to_kv.weight"), HV_NO, HV_ACT_NONE);
        hv_weights_give(n->w, group);
        hv_download(n->dev, dit_rows(hv_index(store, at++), first * K, rows * K), kv);
    }
}

int dit_sound(struct dit *n, hv_tensor f, struct hv_err *e)
{
    const int64_t width = n->c.audio_seq * n->c.audio_layers * n->c.audio_channels, chunk = dit_row(n, "sound_in").shape[0];
    char shape[HV_SHAPE_STR];

    if (f.ndim != 4 || f.shape[0] != n->s.sound || f.shape[1] != n->c.audio_seq || f.shape[2] != n->c.audio_layers ||
        f.shape[3] != n->c.audio_channels)
        return hv_fail(e, HV_EINPUT, "sound features %s, expected [%lld,%lld,%lld,%lld]", hv_shape_str(f, shape),
                       (long long)n->s.sound, (long long)n->c.audio_seq, (long long)n->c.audio_layers,
                       (long long)n->c.audio_channels);
    const hv_tensor rows = hv_reshape(f, 2, (const int64_t[]){f.shape[0], width});
    for (int64_t i = 0; i < n->s.sound; i += chunk) {
        const int64_t r = n->s.sound - i < chunk ? n->s.sound - i : chunk;
        hv_upload(n->dev, hv_rows(dit_row(n, "sound_in"), 0, r), hv_rows(rows, i, r));
        sound_chunk(n, i, r);
        hv_dev_report(n->dev, "sound", (int)(i + r), (int)n->s.sound);
    }
    hv_fill(n->dev, hv_rows(dit_row(n, "sound_in"), 0, 1), 0);
    sound_chunk(n, n->s.sound, 1);
    return hv_dev_sync(n->dev, e);
}

void dit_sound_frames(int64_t l, int64_t frame[4])
{
    for (int64_t k = 0; k < 4; k++)
        frame[k] = l ? 4 * l - 3 + k : 0;
}
