/* dit.h - the diffusion transformer: modules/models_audio.py:HYVideoDiffusionTransformer of the reference.
 *
 *     dit_config_parse(&config, json, e);  dit_weights(&list, &config);  hv_weights_open(&w, dev, path, &list, e);
 *     dit_choose(&choice, &config, &size, &budget, e);
 *     dit_open(&net, dev, w, &config, &size, &choice, NULL, e);
 *     dit_sound(net, features, e);                             // once: keys and values of every adapter
 *     dit_prepare(net, texts, n, moments, m, &fixed, e);       // once: modulation vectors, refined text
 *     dit_forward(net, calls, 2, next, e);                     // every step and window, both branches
 *     dit_close(net);
 *
 * What depends on the timestep, the prompt or the sound alone is computed before the first step, for the whole schedule, and
 * kept in host memory; its weights (a third of the model) are not needed again. A forward then keeps on the device what its
 * plan says: x and o whole, the keys and values of one group of heads, and chunks of rows. The result does not depend on the
 * size of groups and chunks, but for the rounding of f32.
 *
 * Legend: H hidden, D head, M MLP, d adapter; T latent frames of a window, h w latent size, P = (h/ph)(w/pw) tokens a frame,
 * Ni = (T+1) P image rows (the reference frame comes first), n text rows, L = Ni + n. pt = 1. */
#ifndef HV_DIT_H
#define HV_DIT_H

#include <jansson.h>

#include "mem/plan.h"
#include "mem/stream.h"
#include "mem/weights.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- config and weights ---- */

#define DIT_ADAPTERS_MAX 128

struct dit_config {
    int64_t patch[3], channels, hidden, heads, head_dim, mlp, double_blocks, single_blocks;
    int64_t rope_dim[3];
    double  rope_theta, mlp_ratio;
    int     qkv_bias, qk_norm, guidance_embed, use_attention_mask;
    int64_t text_dim, pooled_dim;
    int64_t audio_seq, audio_layers, audio_channels, audio_mid, audio_tokens;   /* audio_tokens: of one video frame */
    int64_t adapter_dim;
    int     adapters;
    int64_t adapter_after[DIT_ADAPTERS_MAX];    /* double block that adapter j follows; past the last: never runs */
};

/* The full-size model, HYVideo-T/2. */
struct dit_config dit_config_full(void);

/* Reads transformer/config.json; absent keys are those of the full-size model. HV_EINPUT: out of range, or numbers that do not
 * fit each other; HV_EUNSUP: an activation, norm or projection that no checkpoint has. */
int dit_config_parse(struct dit_config *c, const json_t *obj, struct hv_err *e);

/* Lists every tensor: first what is used before the steps, then the blocks in their order, the final layer last. */
void dit_weights(struct hv_wlist *l, const struct dit_config *c);

/* Adapter that follows double block i, -1 if there is none. */
int dit_adapter_of(const struct dit_config *c, int64_t i);

/* ---- sizes, choices, plan ---- */

struct dit_size {
    int64_t  frames, height, width;             /* T, h, w */
    int64_t  texts, text_len, text_rows;        /* prompts, their longest length, their largest n */
    int64_t  full, cached;                      /* moments (dit_prepare) of either kind */
    int64_t  sound;                             /* rows of sound (dit_sound), without the row of silence */
    int64_t  voices;                            /* V: sounds that act at once, each through its own mask; 0 reads as 1 */
    int64_t  clip_frames, windows, branches;    /* step cache: what it covers; windows 0: no step cache */
    int      residual;                          /* 1: it keeps what the blocks add to the video rows, and the branches go one
                                                   after the other; 0: what enters the last block */
    int      probe;                             /* 1: dit_probe is called */
    hv_dtype act;                               /* of activations on the device */
    hv_dtype weights;                           /* of the blocks' matrices: BF16, I8 or F8_E4M3; HV_NONE reads as act */
    int64_t  scratch;                           /* bytes for the matrix library; 0 on the cpu */
};

/* Where the residual stream x and the attention's o live. What is on the host is page-locked and passes through the device in
 * chunks of rows, two of them in flight. */
enum dit_tier { DIT_TIER_AUTO, DIT_TIER_DEVICE, DIT_TIER_O_HOST, DIT_TIER_X_HOST };

/* Quantized matrices are widened into scratch once a phase, or inside the product. */
enum dit_gemm { DIT_GEMM_AUTO, DIT_GEMM_EXPAND, DIT_GEMM_FUSED };

/* Room for weights in flight: of two blocks, or of two segments, the parts of a block that a phase uses. */
enum dit_ring { DIT_RING_AUTO, DIT_RING_BLOCKS, DIT_RING_SEGMENTS };

/* Guidance branches go through all blocks one after the other, or block by block while its weights are there. */
enum dit_branches { DIT_BRANCHES_AUTO, DIT_BRANCHES_ALONE, DIT_BRANCHES_PAIRED };

/* Where x lives on the host, the keys and values of the next group can be made chunk by chunk between the queries of this one:
 * x passes while attention computes, for room for two groups. */
enum dit_ahead { DIT_AHEAD_AUTO, DIT_AHEAD_OFF, DIT_AHEAD_ON };

struct dit_choice {
    int64_t           group;            /* heads whose keys and values exist at a time; divides heads */
    int64_t           rows_attn, rows_mlp;      /* rows of a chunk, in either phase of a block */
    int               keep_ref;         /* 1: before_proj(ref_in(ref)) stays on the device; 0: made anew for each chunk */
    enum dit_tier     tier;
    enum dit_gemm     gemm;
    enum dit_ring     ring;
    enum dit_branches branches;
    enum dit_ahead    ahead;
    enum hv_attention attention;
    int               apart;            /* 1: attention does not write over its queries (HV_ATT_CUDNN must not) */
    int64_t           ring_bytes;       /* 0: weights are used where they are */
    int64_t           resident_blocks;  /* that stay on the device; -1: as many as pay; DIT_ALL: all */
    int64_t           resident_bytes;   /* follows from it */
};

#define DIT_ALL 1000000

/* The rows of both tables; they are placed. device->budget is set by the caller. AUTO reads as the first of its kind. */
int dit_plan(struct hv_plan *device, struct hv_plan *host, const struct dit_config *c, const struct dit_size *s,
             const struct dit_choice *choice, struct hv_err *e);

/* What a planner knows of a machine: rates in work a second. All 0: a cpu, where weights are used where they are. */
struct dit_machine {
    double  gemm, attention;            /* flop/s of bf16 products, of the attention chosen */
    double  fused;                      /* flop/s of products with weights widened on the way */
    int64_t units;                      /* multiprocessors */
    double  memory;                     /* bytes/s of the device's memory */
    double  bus;                        /* bytes/s of a page-locked copy, either way */
    double  source;                     /* bytes/s at which weights reach page-locked memory; 0: they are there */
    double  launch;                     /* seconds of an operation that does next to nothing */
};

/* Rates of a GPU by its compute capability (80, 86, ..) and multiprocessors; 0, 0: an RTX 4090, for plans without a device. */
struct dit_machine dit_machine_of(int arch, int units, enum hv_attention attention, int cudnn);

/* What a device adds to sizes and choice: on a GPU bf16 activations, room for products, the attention that AUTO means; m: its
 * rates, or NULL. info NULL: a GPU that is not there. weights: dtype of the blocks' matrices; fp8: products of fp8 by fp8. */
void dit_for_device(struct dit_size *s, struct dit_choice *k, struct dit_machine *m, const struct dit_config *c, int kind,
                    const struct hv_dev_info *info, hv_dtype weights, int fp8);

struct dit_budget {
    size_t             device, host;    /* bytes of either table; 0: no limit */
    struct dit_machine machine;
};

/* Takes what is set in `choice` as given and fills in the rest: on a GPU the plan of the least predicted time, to a hundredth,
 * and of equal ones the smallest; on a cpu the largest pieces that fit, from 4 heads and 4096 rows down to 1 and 64. b may be NULL: no limits, a
 * cpu. HV_ENOMEM names the largest rows of the smallest plan; HV_EUSAGE: a group that does not divide. */
int dit_choose(struct dit_choice *choice, const struct dit_config *c, const struct dit_size *s, const struct dit_budget *b,
               struct hv_err *e);

/* Predicted seconds of a forward of one branch. */
double dit_seconds(const struct dit_config *c, const struct dit_size *s, const struct dit_choice *choice,
                   const struct dit_machine *m);

/* Bytes of a ring, and of `blocks` resident ones; keep[group] of the list of weights is set to 1 for those (NULL: not wanted). */
int64_t dit_ring_bytes(const struct dit_config *c, enum dit_ring ring, hv_dtype weights);
int64_t dit_resident_bytes(const struct dit_config *c, int64_t blocks, hv_dtype weights, uint8_t *keep);

/* ---- the network ---- */

struct dit;

/* Takes the device's memory, all of it, here. stream: how weights are fetched where choice.ring_bytes says they are; its ring,
 * resident and keep are filled in here; NULL: by default. */
int  dit_open(struct dit **n, struct hv_dev *d, struct hv_weights *w, const struct dit_config *c, const struct dit_size *s,
              const struct dit_choice *choice, const struct hv_stream_opts *stream, struct hv_err *e);
void dit_close(struct dit *n);

struct hv_dev *dit_device(const struct dit *n);

/* A prompt, in host memory. Attention in the blocks sees the first n = sum(mask) states, wherever the ones stand. */
struct dit_text {
    hv_tensor      states;      /* [length, text_dim] */
    const int64_t *mask;        /* [length], 0 or not */
    hv_tensor      pooled;      /* [pooled_dim] */
};

int64_t dit_text_rows(const struct dit_text *t);

/* Timestep and prompt of a forward. */
struct dit_moment {
    float t;                    /* 1000 sigma */
    int   text;
    int   cached;               /* 1: only forwards that load the step cache */
};

/* What is the same for all moments. */
struct dit_fixed {
    float motion_exp[4], motion_pose[4], fps, guidance;         /* 30 each, 25 each, 25; guidance if the config embeds it */
};

/* Computes modulation vectors and refined text of all moments. HV_EINPUT: shapes that do not fit, a mask without ones. */
int dit_prepare(struct dit *n, const struct dit_text *texts, int n_texts, const struct dit_moment *moments, int n_moments,
                const struct dit_fixed *fixed, struct hv_err *e);

/* For timings: numbers at random, of the size that real ones have, in place of what dit_sound and dit_prepare compute. */
int dit_prepare_random(struct dit *n, const struct dit_moment *moments, int n_moments, struct hv_err *e);

/* features [rows, seq, layers, channels] in host memory, rows = size.sound. Row `rows` is made as well: silence, all zeros. */
int dit_sound(struct dit *n, hv_tensor features, struct hv_err *e);

/* Video frames that latent frame l hears, of the 4T - 3 of its window: frame 0 four times, then 4l-3 .. 4l. */
void dit_sound_frames(int64_t l, int64_t frame[4]);

/* Value of the face mask for each token: the top-left latent of its patch. face [1, 1 or T, h, w] f32 on the host, m [T P]. */
void dit_face_tokens(float *m, hv_tensor face, const struct dit_config *c, const struct dit_size *s);

/* SAVE keeps the state before the last single block, and LOAD runs that block and the final layer on it. Where size.residual is set
 * SAVE keeps (x after all blocks) - (x before them) of the video rows, and LOAD adds it to the embedding of its own latents. */
enum dit_cache { DIT_PLAIN, DIT_SAVE, DIT_LOAD };

struct dit_call {
    int            moment;
    hv_tensor      latents, ref;        /* f32 [C, T, h, w], host; not read by DIT_LOAD but for a residual. With keep_ref, ref is read once */
    const float   *mask;                /* [V][T P]; not read by DIT_LOAD */
    const int32_t *sound;               /* [V][4T - 3] rows of dit_sound; not read by DIT_LOAD */
    hv_tensor      out;                 /* f32 [C, T, h, w], host: the velocity */
    enum dit_cache cache;
    int            branch, window;      /* of the step cache */
    const int32_t *frame;               /* [T] frames of the clip, for the step cache */
};

#define DIT_CALLS 2                     /* guidance branches */

/* DIT_LOAD takes each frame's rows from the window that saved it last; the reference and text rows, which a residual has none of, from the window that saved
 * the first frame last. Text rows beyond those saved are left out. next: how the forward after this one begins (what is fetched
 * ahead). Returns the first failure of the device too. */
int dit_forward(struct dit *n, const struct dit_call *call, int calls, enum dit_cache next, struct hv_err *e);

/* How far the input of the first block has moved since the last probe: m = modulate(norm(embedding)) of the image rows, by the
 * first double block's first shift and scale of call->moment; change = mean |m - before| / mean |before|. `before` is kept in host
 * memory, video rows by frame of the clip, reference rows by window; it is m afterwards. The first probe finds zeros: its change is
 * infinite. Chunks of m are compared on the host: nothing of its size is added to the device. */
int dit_probe(struct dit *n, const struct dit_call *call, double *change, struct hv_err *e);

/* What forwards keep for later ones, contiguous in host memory: for whoever puts a run aside and takes it up again. To take it up:
 * fill the tensors with what they held, then call dit_kept_restored, which checks the indices (HV_EINPUT). version changes with
 * every forward that saves; 0: nothing is kept. No copy is under way between forwards. */
#define DIT_KEPT 4
struct dit_kept {
    const char *name;           /* "cache.step", "index.window", .. */
    hv_tensor   t;
};
int      dit_kept(const struct dit *n, struct dit_kept kept[DIT_KEPT]);
uint64_t dit_kept_version(const struct dit *n);
int      dit_kept_restored(struct dit *n, struct hv_err *e);

/* For tests and diagnosis: is given pieces of intermediates, named as in the goldens, with their place in the whole: row and
 * column. t is a tensor of the device, or of the host (its dev says), valid during the call. */
typedef void dit_trace_fn(void *ctx, const char *name, int64_t row, int64_t col, hv_tensor t);
void dit_trace(struct dit *n, dit_trace_fn *fn, void *ctx);

#ifdef __cplusplus
}
#endif
#endif
