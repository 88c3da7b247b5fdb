/* clip.h - CLIP-L's text encoder: token ids to one pooled vector (transformers CLIPTextModel).
 *
 *     x = token_embedding[ids] + position_embedding[0..];  causal layers (clip_layer.h);  y = layer_norm(x);  pooled = y[e]
 *     e = first index of the largest id where eos_token_id is 2 (the released file), else first index of eos_token_id; 0 if none
 *
 * Rows after e cannot be seen from e: they are not computed, nor are pads. There is no text projection.
 *
 *     struct clip_text seq[2] = {{ids0, n0}, {ids1, n1}};
 *     if (!clip_config_parse(&c, json, e) && !clip_open(&net, dev, weights, &c, seq, 2, e))
 *         clip_encode(net, pooled, HV_NO);                 // both texts in one pass; hv_dev_sync reports failures
 *     clip_close(net); */
#ifndef HV_CLIP_H
#define HV_CLIP_H

#include "model/clip_layer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLIP_TEXTS 4

struct clip_config {
    struct clip_layers stack;           /* 768 wide, 12 layers of 12 heads, 3072 */
    int64_t vocab, positions, eos;      /* 49408, 77, 2 */
};

/* Reads hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size, max_position_embeddings,
 * layer_norm_eps, hidden_act, eos_token_id, of the root or of its "text_config" where there is one. Faults: clip_layers_parse. */
int clip_config_parse(struct clip_config *c, const json_t *root, struct hv_err *e);

/* Every tensor that is read, in the order of use; F16. Groups as they are read together, but for the tables of embeddings, which
 * stay on the host. */
void clip_weights(struct hv_wlist *l, const struct clip_config *c);

struct clip_text {
    const int32_t *ids;
    int64_t        n;                   /* 1 .. positions */
};

/* Rows of a text that are computed: e + 1. */
int64_t clip_rows_of(const struct clip_config *c, const struct clip_text *t);

struct clip;

/* Places the plan for these texts, whose ids are copied; room NULL: F32, in memory of its own. Borrows device and weights.
 * HV_EINPUT: a text of no or too many ids, or an id outside the vocabulary. */
int  clip_open(struct clip **net, struct hv_dev *d, struct hv_weights *w, const struct clip_config *c, const struct clip_text *t,
               int n, const struct hv_room *room, struct hv_err *e);
void clip_close(struct clip *net);

const struct hv_plan *clip_plan(const struct clip *net);

/* pooled (host) [n, C]. trace: HV_NO, or (host) [layers + 2, R, C]: the hidden states, then the normed last one; the rows of the
 * texts one behind the other. */
void clip_encode(struct clip *net, hv_tensor pooled, hv_tensor trace);

#ifdef __cplusplus
}
#endif
#endif
