/* dit_config.c - what config.json says, and the tensors that follow from it. */
#include "model/dit.h"

#include <stdio.h>
#include <string.h>

#include "core/json.h"

struct dit_config dit_config_full(void)
{
    struct dit_config c = {
        .patch = {1, 2, 2}, .channels = 16, .hidden = 3072, .heads = 24, .head_dim = 128, .mlp = 12288,
        .double_blocks = 20, .single_blocks = 40, .rope_dim = {16, 56, 56}, .rope_theta = 256, .mlp_ratio = 4,
        .qkv_bias = 1, .qk_norm = 1, .use_attention_mask = 1, .text_dim = 4096, .pooled_dim = 768,
        .audio_seq = 10, .audio_layers = 5, .audio_channels = 384, .audio_mid = 1024, .audio_tokens = 4,
        .adapter_dim = 1024, .adapters = 10,
    };

    for (int j = 0; j < c.adapters; j++)
        c.adapter_after[j] = 2 * j + 1;
    return c;
}

/* Three integers, or nothing. */
static int triple(const json_t *obj, const char *key, int64_t max, int64_t v[3], struct hv_err *e)
{
    int64_t got[3];
    int n = -1;

    if (hv_json_ints(obj, key, 1, max, got, 3, &n, e))
        return e->code;
    if (n >= 0 && n != 3)
        return hv_fail(e, HV_EINPUT, "%s: %d numbers, expected 3", key, n);
    if (n == 3)
        memcpy(v, got, sizeof got);
    return 0;
}

static int expect(const json_t *obj, const char *key, const char *only, struct hv_err *e)
{
    const char *v = only;

    if (hv_json_str(obj, key, &v, e))
        return e->code;
    return strcmp(v, only) ? hv_fail(e, HV_EUNSUP, "%s: \"%s\", expected \"%s\"", key, v, only) : 0;
}

static int check(const struct dit_config *c, struct hv_err *e)
{
    int64_t sum = 0;

    if (c->hidden % c->heads || c->hidden % 4)
        return hv_fail(e, HV_EINPUT, "hidden_size: %lld, expected a multiple of 4 and of num_heads %lld", (long long)c->hidden,
                       (long long)c->heads);
    if (c->patch[0] != 1)
        return hv_fail(e, HV_EUNSUP, "patch_size: %lld frames, expected 1: sound is grouped by latent frames",
                       (long long)c->patch[0]);
    for (int a = 0; a < 3; a++) {
        if (c->rope_dim[a] % 2)
            return hv_fail(e, HV_EINPUT, "rope_dim_list: %lld is odd", (long long)c->rope_dim[a]);
        sum += c->rope_dim[a];
    }
    if (sum != c->head_dim)
        return hv_fail(e, HV_EINPUT, "rope_dim_list: sum %lld, expected hidden_size / num_heads = %lld", (long long)sum,
                       (long long)c->head_dim);
    for (int j = 0; j < c->adapters; j++)
        for (int i = 0; i < j; i++)
            if (c->adapter_after[i] == c->adapter_after[j])
                return hv_fail(e, HV_EINPUT, "double_stream_list: %lld is there twice", (long long)c->adapter_after[j]);
    if ((double)c->hidden * c->mlp_ratio < 1)
        return hv_fail(e, HV_EINPUT, "mlp_width_ratio: %g leaves no column", c->mlp_ratio);
    return 0;
}

int dit_config_parse(struct dit_config *c, const json_t *o, struct hv_err *e)
{
    const char *label = "";
    int64_t out;
    int n = -1;

    *c = dit_config_full();
    out = c->channels;
    if (hv_json_str(o, "model", &label, e) || triple(o, "patch_size", 64, c->patch, e) ||
        hv_json_int(o, "in_channels", 1, 1024, &c->channels, e) || hv_json_int(o, "out_channels", 1, 1024, &out, e) ||
        hv_json_int(o, "hidden_size", 4, 65536, &c->hidden, e) || hv_json_int(o, "num_heads", 1, 1024, &c->heads, e) ||
        hv_json_int(o, "depth_double_blocks", 0, 1024, &c->double_blocks, e) ||
        hv_json_int(o, "depth_single_blocks", 1, 1024, &c->single_blocks, e) ||
        hv_json_real(o, "mlp_width_ratio", 1e-6, 64, &c->mlp_ratio, e) || expect(o, "mlp_act_type", "gelu_tanh", e) ||
        triple(o, "rope_dim_list", 4096, c->rope_dim, e) || hv_json_real(o, "rope_theta", 1, 1e9, &c->rope_theta, e) ||
        hv_json_bool(o, "qkv_bias", &c->qkv_bias, e) || hv_json_bool(o, "qk_norm", &c->qk_norm, e) ||
        expect(o, "qk_norm_type", "rms", e) || hv_json_bool(o, "guidance_embed", &c->guidance_embed, e) ||
        expect(o, "text_projection", "single_refiner", e) ||
        hv_json_bool(o, "use_attention_mask", &c->use_attention_mask, e) ||
        hv_json_int(o, "text_states_dim", 1, 65536, &c->text_dim, e) ||
        hv_json_int(o, "text_states_dim_2", 1, 65536, &c->pooled_dim, e) ||
        hv_json_int(o, "audio_seq_len", 1, 1024, &c->audio_seq, e) ||
        hv_json_int(o, "audio_blocks", 1, 1024, &c->audio_layers, e) ||
        hv_json_int(o, "audio_channels", 1, 65536, &c->audio_channels, e) ||
        hv_json_int(o, "audio_intermediate_dim", 1, 65536, &c->audio_mid, e) ||
        hv_json_int(o, "audio_context_tokens", 1, 64, &c->audio_tokens, e) ||
        hv_json_int(o, "audio_adapter_dim", 1, 65536, &c->adapter_dim, e) ||
        hv_json_ints(o, "double_stream_list", 0, 1023, c->adapter_after, DIT_ADAPTERS_MAX, &n, e))
        return e->code;
    if (n >= 0)
        c->adapters = n;
    if (out != c->channels)
        return hv_fail(e, HV_EUNSUP, "out_channels: %lld, expected in_channels %lld", (long long)out, (long long)c->channels);
    c->head_dim = c->hidden / c->heads;
    c->mlp = (int64_t)((double)c->hidden * c->mlp_ratio);
    return check(c, e);
}

int dit_adapter_of(const struct dit_config *c, int64_t i)
{
    for (int j = 0; j < c->adapters; j++)
        if (c->adapter_after[j] == i)
            return j;
    return -1;
}

/* ---- weights ---- */

#define DIMS(...) (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}

/* NAME.weight [out, in] and NAME.bias [out]. */
static void linear(struct hv_wlist *l, hv_dtype t, enum hv_quant q, int64_t out, int64_t in, int bias, const char *name)
{
    hv_wlist_add(l, t, q, DIMS(out, in), "%s.weight", name);
    if (bias)
        hv_wlist_add(l, t, HV_KEEP, DIMS(out), "%s.bias", name);
}

static void kept(struct hv_wlist *l, hv_dtype t, int64_t out, int64_t in, const char *name)
{
    linear(l, t, HV_KEEP, out, in, 1, name);
}

static void norm(struct hv_wlist *l, hv_dtype t, int64_t n, const char *name)
{
    hv_wlist_add(l, t, HV_KEEP, DIMS(n), "%s.weight", name);
    hv_wlist_add(l, t, HV_KEEP, DIMS(n), "%s.bias", name);
}

struct name {
    char text[96];
};

/* "double_blocks.7.img_mlp.fc1" from its parts. */
static struct name part(const char *stem, int64_t i, const char *tail)
{
    struct name n;

    snprintf(n.text, sizeof n.text, "%s.%lld.%s", stem, (long long)i, tail);
    return n;
}

#define NAME(stem, i, tail) part(stem, i, tail).text

static void embedder(struct hv_wlist *l, int64_t width, const char *name)
{
    for (int i = 0; i < 2; i++) {
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(width, i ? width : 256), "%s.mlp.%d.weight", name, 2 * i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(width), "%s.mlp.%d.bias", name, 2 * i);
    }
}

static void embedder_group(struct hv_wlist *l, int64_t width, const char *name)
{
    hv_wlist_group(l, "%s", name);
    embedder(l, width, name);
}

static void modulations(struct hv_wlist *l, const struct dit_config *c)
{
    const int64_t H = c->hidden;

    for (int64_t i = 0; i < c->double_blocks; i++)
        for (int s = 0; s < 2; s++) {
            hv_wlist_group(l, "%s", NAME("double_blocks", i, s ? "txt_mod" : "img_mod"));
            linear(l, HV_BF16, HV_QUANT_MODULATION, 6 * H, H, 1,
                   NAME("double_blocks", i, s ? "txt_mod.linear" : "img_mod.linear"));
        }
    for (int64_t i = 0; i < c->single_blocks; i++) {
        hv_wlist_group(l, "%s", NAME("single_blocks", i, "modulation"));
        linear(l, HV_BF16, HV_QUANT_MODULATION, 3 * H, H, 1, NAME("single_blocks", i, "modulation.linear"));
    }
    hv_wlist_group(l, "final_layer.adaLN");
    kept(l, HV_BF16, 2 * H, H, "final_layer.adaLN_modulation.1");
}

static void refiner(struct hv_wlist *l, const struct dit_config *c)
{
    const int64_t H = c->hidden;

    hv_wlist_group(l, "txt_in");
    embedder(l, H, "txt_in.t_embedder");
    kept(l, HV_BF16, H, c->text_dim, "txt_in.c_embedder.linear_1");
    kept(l, HV_BF16, H, H, "txt_in.c_embedder.linear_2");
    kept(l, HV_BF16, H, c->text_dim, "txt_in.input_embedder");
    for (int64_t b = 0; b < 2; b++) {
#define BLOCK(tail) NAME("txt_in.individual_token_refiner.blocks", b, tail)
        hv_wlist_group(l, "txt_in.block.%lld.attn", (long long)b);
        kept(l, HV_BF16, 2 * H, H, BLOCK("adaLN_modulation.1"));
        norm(l, HV_BF16, H, BLOCK("norm1"));
        kept(l, HV_BF16, 3 * H, H, BLOCK("self_attn_qkv"));
        kept(l, HV_BF16, H, H, BLOCK("self_attn_proj"));
        hv_wlist_group(l, "txt_in.block.%lld.mlp", (long long)b);
        norm(l, HV_BF16, H, BLOCK("norm2"));
        kept(l, HV_BF16, 4 * H, H, BLOCK("mlp.fc1"));
        kept(l, HV_BF16, H, 4 * H, BLOCK("mlp.fc2"));
#undef BLOCK
    }
}

/* Adapters past the last block are in the checkpoint and never run: they are in no group. */
static void adapter_group(struct hv_wlist *l, const struct dit_config *c, int64_t j, const char *tail)
{
    if (c->adapter_after[j] >= c->double_blocks)
        hv_wlist_group(l, NULL);
    else
        hv_wlist_group(l, "%s.%lld%s", *tail ? "audio_adapter" : "adapter", (long long)j, tail);
}

static void sound(struct hv_wlist *l, const struct dit_config *c)
{
    const int64_t H = c->hidden, P = c->audio_mid;

    hv_wlist_group(l, "audio_proj");
    kept(l, HV_F32, P, c->audio_seq * c->audio_layers * c->audio_channels, "audio_proj.proj1");
    kept(l, HV_F32, P, P, "audio_proj.proj2");
    kept(l, HV_F32, c->audio_tokens * H, P, "audio_proj.proj3");
    norm(l, HV_F32, H, "audio_proj.norm");
    for (int64_t j = 0; j < c->adapters; j++) {
        adapter_group(l, c, j, ".kv");
        norm(l, HV_F32, H, NAME("audio_adapter_blocks", j, "norm1"));
        linear(l, HV_F32, HV_KEEP, 2 * c->adapter_dim, H, 0, NAME("audio_adapter_blocks", j, "to_kv"));
    }
}

static void adapter(struct hv_wlist *l, const struct dit_config *c, int64_t j)
{
    adapter_group(l, c, j, "");
    norm(l, HV_F32, c->hidden, NAME("audio_adapter_blocks", j, "norm2"));
    linear(l, HV_F32, HV_KEEP, c->adapter_dim, c->hidden, 0, NAME("audio_adapter_blocks", j, "to_q"));
    linear(l, HV_F32, HV_KEEP, c->hidden, c->adapter_dim, 0, NAME("audio_adapter_blocks", j, "to_out"));
}

/* In the order of the phases of a block, a group each: attention of both streams, then what is left of each. */
static void double_block(struct hv_wlist *l, const struct dit_config *c, int64_t i)
{
    const int64_t H = c->hidden;

#define STREAM(tail) NAME("double_blocks", i, s ? "txt_" tail : "img_" tail)
    hv_wlist_group(l, "double.%lld.qkv", (long long)i);
    for (int s = 0; s < 2; s++) {
        linear(l, HV_BF16, HV_QUANT, 3 * H, H, c->qkv_bias, STREAM("attn_qkv"));
        if (c->qk_norm) {
            hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(c->head_dim), "%s", STREAM("attn_q_norm.weight"));
            hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(c->head_dim), "%s", STREAM("attn_k_norm.weight"));
        }
    }
    for (int s = 0; s < 2; s++) {
        hv_wlist_group(l, "double.%lld.%s", (long long)i, s ? "txt" : "img");
        linear(l, HV_BF16, HV_QUANT, H, H, c->qkv_bias, STREAM("attn_proj"));
        linear(l, HV_BF16, HV_QUANT, c->mlp, H, 1, STREAM("mlp.fc1"));
        linear(l, HV_BF16, HV_QUANT, H, c->mlp, 1, STREAM("mlp.fc2"));
    }
#undef STREAM
}

/* linear1 is the matrices of q, k, v and below them the MLP's first: the two phases of the block take their rows of it. */
static void single_block(struct hv_wlist *l, const struct dit_config *c, int64_t i)
{
    const int64_t H = c->hidden, rows = 3 * H + c->mlp;

    hv_wlist_group(l, "single.%lld.qkv", (long long)i);
    hv_wlist_add(l, HV_BF16, HV_QUANT, DIMS(rows, H), "%s", NAME("single_blocks", i, "linear1.weight"));
    hv_wlist_split(l, 3 * H);
    hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(rows), "%s", NAME("single_blocks", i, "linear1.bias"));
    hv_wlist_split(l, 3 * H);
    if (c->qk_norm) {
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(c->head_dim), "single_blocks.%lld.q_norm.weight", (long long)i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(c->head_dim), "single_blocks.%lld.k_norm.weight", (long long)i);
    }
    hv_wlist_group(l, "single.%lld.rest", (long long)i);
    linear(l, HV_BF16, HV_QUANT, H, H + c->mlp, 1, NAME("single_blocks", i, "linear2"));
}

void dit_weights(struct hv_wlist *l, const struct dit_config *c)
{
    const int64_t H = c->hidden, *p = c->patch;

    embedder_group(l, H, "time_in");
    embedder_group(l, H / 4, "motion_exp");
    embedder_group(l, H / 4, "motion_pose");
    embedder_group(l, H, "fps_proj");
    if (c->guidance_embed)
        embedder_group(l, H, "guidance_in");
    hv_wlist_group(l, "vector_in");
    kept(l, HV_BF16, H, c->pooled_dim, "vector_in.in_layer");
    kept(l, HV_BF16, H, H, "vector_in.out_layer");
    modulations(l, c);
    refiner(l, c);
    sound(l, c);

    hv_wlist_cycle(l);
    hv_wlist_group(l, "stem");
    for (int r = 0; r < 2; r++) {
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(H, c->channels, p[0], p[1], p[2]), "%s_in.proj.weight", r ? "ref" : "img");
        hv_wlist_add(l, HV_BF16, HV_KEEP, DIMS(H), "%s_in.proj.bias", r ? "ref" : "img");
    }
    kept(l, HV_F32, H, H, "before_proj");
    for (int64_t i = 0; i < c->double_blocks; i++) {
        double_block(l, c, i);
        if (dit_adapter_of(c, i) >= 0)
            adapter(l, c, dit_adapter_of(c, i));
    }
    for (int64_t j = 0; j < c->adapters; j++)           /* adapters past the last block: in the checkpoint, never run */
        if (c->adapter_after[j] >= c->double_blocks)
            adapter(l, c, j);
    for (int64_t i = 0; i < c->single_blocks; i++)
        single_block(l, c, i);
    hv_wlist_group(l, "final");
    kept(l, HV_F32, p[0] * p[1] * p[2] * c->channels, H, "final_layer.linear");
}
