/* llama.h - Llama-3 as a text encoder: token ids and image rows to the hidden states of a middle layer (transformers
 * LlavaForConditionalGeneration, LlamaModel).
 *
 *     merged    embeddings of the ids before the image token, the image rows, embeddings of the ids after it, then pads
 *     rms(x, w) = w * x / sqrt(mean(x^2) + eps)
 *     layer     h = rms(x);  q, k = rope(Wq h), rope(Wk h);  x += Wo attention(q, k, Wv h);  h = rms(x);
 *               x += Wd (silu(Wg h) * (Wu h))
 *     rope      f_i = theta^(-2i/D); pairs (i, i + D/2) of a head turn by position * f_i
 *
 * Attention is causal, head j reads k, v of head j / (heads / kv_heads), pads are seen by nobody. Every pad row has the embedding 0
 * and the position 1 and sees all valid rows, so all pads of a sequence are the same at every layer: one is computed and
 * repeated. Sequences go through a layer together, so that its weights are read once; rows that all of them begin with are
 * computed once, as later rows cannot change them. Layers behind the wanted one, the last norm and the head are never read.
 *
 *     struct llama_seq s[2] = {...};
 *     if (!llama_config_parse(&c, json, e) && !llama_open(&net, dev, weights, &c, s, 2, image_rows, e))
 *         llama_encode(net, out, image, HV_NO);            // hv_dev_sync reports failures
 *     llama_close(net);
 *
 * Legend: R rows computed, K rows of keys, H width, D head, M MLP, I image rows. */
#ifndef HV_LLAMA_H
#define HV_LLAMA_H

#include "core/json.h"
#include "mem/arena.h"
#include "mem/plan.h"
#include "mem/weights.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LLAMA_SEQS 4

struct llama_config {
    int64_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocab;     /* 4096, 32, 32, 8, 128, 14336, 128320 */
    int64_t run;                                /* layers that are run: layers - hv_text.skip_layers, 30 */
    double  eps, theta;                         /* 1e-5, 500000 */
    int64_t image_token, pad_token;             /* 128257, 128258 */
};

/* Reads "text_config" (hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size,
 * vocab_size, rms_norm_eps, rope_theta, rope_scaling, hidden_act, attention_bias, mlp_bias), image_token_index, pad_token_id and
 * hv_text.skip_layers of a LLaVA config; what is absent has the released model's value.
 * HV_EINPUT: out of range, heads that do not divide; HV_EUNSUP: scaled rope, biases, an activation other than silu. */
int llama_config_parse(struct llama_config *c, const json_t *root, struct hv_err *e);

/* Every tensor that is read, in the order of use; F16, the layers' matrices may be quantized. Four groups a layer, so that a ring of
 * weights may be smaller than one; the table of embeddings stays on the host. */
void llama_weights(struct hv_wlist *l, const struct llama_config *c);

struct llama_seq {
    const int32_t *ids;                 /* [n], without pads */
    int64_t        n;
    int64_t        image;               /* index of the image token, which I rows replace; -1: none */
    int64_t        rows;                /* of the output before cropping, pads included: at least n - 1 + I */
    int64_t        crop;                /* rows dropped in front */
};

/* Valid rows of a sequence. */
int64_t llama_valid(const struct llama_seq *s, int64_t image_rows);

struct llama;

/* Places the plan for these sequences, whose ids are copied; room NULL: F32, in memory of its own. Borrows device and weights.
 * HV_EINPUT: no sequence or too many, rows below what the ids need, an id outside the vocabulary. */
int  llama_open(struct llama **net, struct hv_dev *d, struct hv_weights *w, const struct llama_config *c,
                const struct llama_seq *s, int n, int64_t image_rows, const struct hv_room *room, struct hv_err *e);
void llama_close(struct llama *net);

const struct hv_plan *llama_plan(const struct llama *net);

/* out[s] (host) [rows - crop, H] of each sequence, from image (host) [I, H], the same for all.
 * trace: HV_NO, or (host) [run + 1, R, H], the residual stream before the first layer and after each: the rows of sequence 0, those of
 * the others without the common beginning, then one pad row for each sequence that has pads. */
void llama_encode(struct llama *net, const hv_tensor *out, hv_tensor image, hv_tensor trace);

/* Rows computed: R of the trace. */
int64_t llama_rows(const struct llama *net);

#ifdef __cplusplus
}
#endif
#endif
