/* vae.h - AutoencoderKLCausal3D, "884-16c-hy": video [T, 8h, 8w, 3] <-> latents [t, h, w, C], T = 4(t-1)+1.
 *
 *     struct vae *v = NULL;
 *     struct vae_opts o = {.part = VAE_DECODER, .t = 17, .h = 32, .w = 32};        // the largest tile that will come
 *     if (!vae_open(&v, dev, weights, &config, &o, e))                             // places the plan, opens the arena
 *         vae_decode(v, frames, z);                                                // [t', h', w', C] -> [4t'-3, 8h', 8w', 3]
 *     rc = hv_dev_sync(dev, e);
 *     vae_close(v);
 *
 * One call is one tile: group norm statistics, attention and borders are those of the tensor given (vae.md, section 4); lib/model/
 * tile.h cuts and blends. Reference: vae/autoencoder_kl_causal_3d.py, vae/vae.py, vae/unet_causal_3d_blocks.py.
 *
 * What is kept. Activations are [T, H, W, C]. A level's residual stream x and the hidden h of a resnet share one row of slots, a
 * slot a frame: a resnet that changes the number of channels reads x from a slot and writes h and the shortcut over it, and
 * conv2 adds to x in place. Normalized tensors exist as windows of a few frames only, in a ring that carries the two frames
 * of history a causal convolution needs. So the peak is the last level's slots and what the last upsampler reads: 2344 MiB
 * in f16, 4688 in f32, for a tile of 17x32x32 at full size, and the ring. Any window length gives the same bits. */
#ifndef HV_VAE_H
#define HV_VAE_H

#include <jansson.h>

#include "mem/arena.h"
#include "mem/weights.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VAE_LEVELS 4

struct vae_config {
    int64_t channels[VAE_LEVELS];       /* block_out_channels */
    int64_t layers;                     /* layers_per_block; up blocks have one more */
    int64_t latent;                     /* latent_channels; the encoder makes twice that */
    int64_t groups;                     /* norm_num_groups */
    int64_t in, out;                    /* picture channels */
    int64_t sample_size, sample_tsize;  /* tile, in pixels and frames */
    double  scaling_factor, shift_factor;
    int     mid_attention, mid_causal;
};

/* Reads config.json. HV_EINPUT: a value of another type or out of range, groups that do not divide the channels; HV_EUNSUP: a
 * network of another form (levels, compression, activation, disable_causal_conv). Unknown keys are ignored. */
int vae_config_parse(struct vae_config *c, const json_t *json, struct hv_err *e);

enum vae_part { VAE_ENCODER = 1, VAE_DECODER = 2 };

/* Lists the tensors in the order of use; vae_weights: of both parts, vae_part_weights: of those in `parts`. */
void vae_weights(struct hv_wlist *l, const struct vae_config *c);
void vae_part_weights(struct hv_wlist *l, const struct vae_config *c, int parts);

/* What the decoder keeps of its last level, where the peak is. The bits are those of VAE_KEEP_ALL.
 * ALL: x in place, h beside it (plan B of vae.md section 8). OUTPUTS: the output of each resnet; what is within, and the upsampled
 * input, is made again, window by window, for each norm's sums (plan C). NOTHING: all of it is made again from the level below, for
 * each norm (plan D). */
enum vae_keep { VAE_KEEP_ALL, VAE_KEEP_OUTPUTS, VAE_KEEP_NOTHING };

struct vae_opts {
    enum vae_part part;
    int64_t t, h, w;                    /* of the largest input: latents for the decoder, frames and pixels for the encoder */
    int64_t cells;                      /* pixels of a window; 0: the most that fits the budget, up to 32768, on a GPU 262144 */
    size_t  budget;                     /* of the plan, bytes; 0: none */
    hv_dtype act;                       /* of activations; HV_NONE: F32 */
    int     gpu;                        /* 1: rows for weights, and for what a GPU's products and attention need */
    enum vae_keep keep;
};

/* The rows of one part at one size. HV_ENOMEM when they pass the budget with windows of one frame. */
int vae_plan(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, struct hv_err *e);

struct vae;

/* Borrows the device and the weights (a list of vae_weights or vae_part_weights), which with `gpu` are those of a device of kind
 * HV_HOST: they are copied to the plan's rows. HV_ENOMEM: see vae_plan. */
int  vae_open(struct vae **v, struct hv_dev *d, struct hv_weights *w, const struct vae_config *c, const struct vae_opts *o,
              struct hv_err *e);
void vae_close(struct vae *v);

const struct hv_plan *vae_plan_of(const struct vae *v);

/* y [4(t-1)+1, 8h, 8w, out] = decoder(post_quant_conv(z)), z [t, h, w, latent] already divided by scaling_factor. */
void vae_decode(struct vae *v, hv_tensor y, hv_tensor z);

/* moments [t, h, w, 2 latent] = quant_conv(encoder(x)), x [T, H, W, in] in -1..1; sizes of vae_encoded_size.
 * The tensors of both are on the host, f32, of any strides, and of any size up to that of vae_opts. Failures stick in the device. */
void vae_encode(struct vae *v, hv_tensor moments, hv_tensor x);

/* Latent extents of T frames of H x W pixels: every halving rounds up. */
void vae_encoded_size(int64_t T, int64_t H, int64_t W, int64_t size[3]);

/* z [n] = mean + exp(clamp(logvar, -30, 20) / 2) noise for moments [n, 2 C] = (mean, logvar); noise NULL: the mean. */
void vae_sample(float *z, const float *moments, const float *noise, int64_t n, int64_t channels);

/* For tests: called with the output of every module, under its name in the reference, on the device. Tensors [T, H, W, C] of
 * which frames first .. are handed over; X.conv_norm_out is before SiLU. */
typedef void vae_trace_fn(void *ctx, const char *name, hv_tensor t, int64_t first);
void vae_trace(struct vae *v, vae_trace_fn *fn, void *ctx);

#ifdef __cplusplus
}
#endif
#endif
