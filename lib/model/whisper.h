/* whisper.h - the encoder of Whisper: 30 s of log-mel to all its hidden states (transformers WhisperModel.encoder).
 *
 *     h = gelu(conv1d(mel, k 3)); h = gelu(conv1d(h, k 3, stride 2)); h += positions          [1500, C]
 *     state[0] = h
 *     layer:  h += Wo attention(q, k, v of layer_norm(h)) + bo;  h += W2 gelu(W1 layer_norm(h) + b1) + b2
 *     state[i + 1] = h, but the last is layer_norm(h)
 *
 * gelu is the exact one; eps is 1e-5; keys have no bias; every row sees every row, silence too.
 *
 *     struct whisper_config c;
 *     struct whisper *net = NULL;
 *     if (!whisper_config_parse(&c, json, e) && !whisper_open(&net, dev, weights, &c, e))
 *         whisper_encode(net, states, mel);               // for each block; hv_dev_sync reports failures
 *     whisper_close(net);
 *
 * Legend: R = 1500 rows, C = d_model, D = ffn, S = layers + 1 states. */
#ifndef HV_WHISPER_H
#define HV_WHISPER_H

#include "core/json.h"
#include "mem/plan.h"
#include "mem/weights.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

struct whisper_config {
    int64_t d_model, layers, heads, ffn;        /* 384, 4, 6, 1536 */
    int64_t mel_bins, positions;                /* 80, 1500 */
};

/* Reads d_model, encoder_layers, encoder_attention_heads, encoder_ffn_dim, num_mel_bins, max_source_positions,
 * activation_function; the decoder's keys are ignored. HV_EINPUT: out of range, heads that do not divide the width.
 * HV_EUNSUP: other than 80 mel bins, 1500 positions and gelu. */
int whisper_config_parse(struct whisper_config *c, const json_t *config, struct hv_err *e);

/* Every tensor the encoder reads, in the order of use; F32. */
void whisper_weights(struct hv_wlist *l, const struct whisper_config *c);

/* Rows of everything that is kept on the device, placed. */
int whisper_plan(struct hv_plan *p, const struct whisper_config *c, struct hv_err *e);

struct whisper;

/* Borrows the device and the weights. */
int  whisper_open(struct whisper **net, struct hv_dev *d, struct hv_weights *w, const struct whisper_config *c,
                  struct hv_err *e);
void whisper_close(struct whisper *net);

/* states (host) [R, S, C] from mel (host) [2 R, 80]. */
void whisper_encode(struct whisper *net, hv_tensor states, hv_tensor mel);

#ifdef __cplusplus
}
#endif
#endif
