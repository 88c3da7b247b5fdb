/* vit.h - the vision tower of CLIP and LLaVA's projector: a picture to rows of the language model (transformers
 * CLIPVisionModel, LlavaMultiModalProjector).
 *
 *     e = W_patch . patches (c, y, x);  x = [class_embedding; e] + position_embedding;  x = layer_norm(x; pre_layrnorm)
 *     full-attention layers (clip_layer.h) up to the feature layer;  f = x without its first row
 *     out = W2 act(W1 f + b1) + b2
 *
 *     struct vit_config c;
 *     struct vit *net = NULL;
 *     if (!vit_config_parse(&c, json, e) && !vit_open(&net, dev, weights, &c, e))
 *         vit_encode(net, out, pixels, HV_NO);             // hv_dev_sync reports failures
 *     vit_close(net);
 *
 * Legend: S side of the picture, P patches, C width, H width of the language model. */
#ifndef HV_VIT_H
#define HV_VIT_H

#include "model/clip_layer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vit_config {
    struct clip_layers stack;           /* 1024 wide, 24 layers of 16 heads, 4096; stack.layers: those that are run, 23 */
    int64_t layers;                     /* of the file */
    int64_t image, patch;               /* 336, 14 */
    int64_t out;                        /* H: 4096 */
    int     keep_class;                 /* vision_feature_select_strategy "full" */
    enum hv_act act;                    /* of the projector */
};

/* Reads a LLaVA config: "vision_config" (hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, image_size,
 * patch_size, num_channels, layer_norm_eps, hidden_act), vision_feature_layer, vision_feature_select_strategy,
 * projector_hidden_act, image_seq_length, and hidden_size of "text_config".
 * HV_EINPUT: out of range, a feature layer that the tower has not; HV_EUNSUP: channels other than 3, another strategy. */
int vit_config_parse(struct vit_config *c, const json_t *root, struct hv_err *e);

/* Every tensor that is read, in the order of use; F16. Groups as they are read together, but for the embeddings of class and
 * positions, which stay on the host. */
void vit_weights(struct hv_wlist *l, const struct vit_config *c);

/* Rows that a picture becomes. */
int64_t vit_rows(const struct vit_config *c);

/* pixels [3, S, S] = (rgb / 255 - mean) / std from rgb [S, S, 3], with CLIP's mean and deviation. */
void vit_pixels(float *pixels, const uint8_t *rgb, int64_t side);

struct vit;

/* Borrows the device and the weights. room NULL: F32, in memory of its own. */
int  vit_open(struct vit **net, struct hv_dev *d, struct hv_weights *w, const struct vit_config *c, const struct hv_room *room,
              struct hv_err *e);
void vit_close(struct vit *net);

const struct hv_plan *vit_plan(const struct vit *net);

/* out (host) [vit_rows, H] from pixels (host) [3, S, S]. trace: HV_NO, or (host) [layers run + 1, P + 1, C], the hidden states. */
void vit_encode(struct vit *net, hv_tensor out, hv_tensor pixels, hv_tensor trace);

#ifdef __cplusplus
}
#endif
#endif
