/* clip_layer.h - the pre-norm transformer layers that CLIP's text encoder and its vision tower share (transformers
 * CLIPEncoder).
 *
 *     layer:  x += Wo attention(q, k, v of layer_norm1(x)) + bo;  x += W2 act(W1 layer_norm2(x) + b1) + b2
 *
 * Heads of D = C / heads, q k^T scaled by D^-1/2; causal in the text encoder, full in the vision tower. Several sequences lie in
 * the rows of x one behind the other: they share every product with weights, so these are read once.
 *
 * Legend: R rows of all sequences, C width, M hidden width of the MLP. */
#ifndef HV_CLIP_LAYER_H
#define HV_CLIP_LAYER_H

#include "core/json.h"
#include "mem/arena.h"
#include "mem/plan.h"
#include "mem/weights.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct clip_layers {
    const char *prefix;                 /* of the names: "text_model.encoder.layers." */
    int64_t     hidden, heads, intermediate;
    int64_t     layers;                 /* that are run */
    double      eps;
    enum hv_act act;
};

/* Rows first .. first + n - 1 of x are one sequence. */
struct clip_rows {
    int64_t first, n;
};

enum { CLIP_PH_EMBED = 1, CLIP_PH_ATTN = 2, CLIP_PH_MLP = 4, CLIP_PH_ALL = 7 };

/* Reads hidden_size, num_attention_heads, intermediate_size, layer_norm_eps and hidden_act into c, whose values are the
 * defaults; num_hidden_layers into *layers. HV_EINPUT: out of range, heads that do not divide the width; HV_EUNSUP: an activation
 * that is none of quick_gelu, gelu, gelu_new, gelu_pytorch_tanh, silu, relu. */
int clip_layers_parse(struct clip_layers *c, int64_t *layers, const json_t *config, struct hv_err *e);

/* The activation of a name in a config; HV_EUNSUP. */
int clip_act_parse(enum hv_act *act, const char *name, struct hv_err *e);

/* A group a layer, of the prefix of its names. */
void clip_layers_weights(struct hv_wlist *l, const struct clip_layers *c);

/* Adds the rows "x", "y", "q", "k", "v", "mlp" for R rows of x, in the dtype of activations. */
void clip_layers_plan(struct hv_plan *p, const struct clip_layers *c, int64_t rows, hv_dtype act);

/* Runs the layers in place on the arena's "x". trace: HV_NO, or [layers + 1, R, C] on the host, which receives x before the
 * first layer and after each. */
void clip_layers_run(struct hv_dev *d, struct hv_weights *w, struct hv_arena *a, const struct clip_layers *c,
                     const struct clip_rows *seq, int n_seq, int causal, hv_tensor trace);

#ifdef __cplusplus
}
#endif
#endif
