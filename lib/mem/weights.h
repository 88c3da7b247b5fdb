/* weights.h - a network's list of weights, and the source that serves them: a mapped file, a synthetic model, or nothing
 * but shapes (the dry device).
 *
 *     struct hv_wlist list = {0};
 *     dit_weights(&list, &config);                                     // every tensor the network reads, in the order of use
 *     hv_weights_open(&w, dev, "transformer/model.safetensors", &list, e);      // strict: all there, all of their shape
 *     hv_weights_take(w, "double_blocks.7.");                          // wanted now; its successor is fetched meanwhile
 *     hv_tensor m = hv_weight(w, "double_blocks.%d.img_mod.linear.weight", 7);
 *     hv_weights_give(w, "double_blocks.7.");
 *
 * Matrices (2 dimensions or more) are handed out as stored: F32, F16, BF16, or I8 and F8_E4M3 with their scales (float
 * tensor X.weight.scale, one a row; metadata "hv.deq" = "bf16" sets deq_bf16). Vectors are always F32. */
#ifndef HV_WEIGHTS_H
#define HV_WEIGHTS_H

#include "core/err.h"
#include "core/tensor.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

enum hv_quant { HV_KEEP, HV_QUANT, HV_QUANT_MODULATION };       /* may be stored as int8 or fp8; the last only when asked */

struct hv_wspec {
    char         *name;
    hv_dtype      dtype;                /* as the reference stores it: BF16, F16 or F32 */
    enum hv_quant quant;
    int           ndim;
    int64_t       shape[HV_MAX_DIMS];
};

struct hv_wlist {
    struct hv_wspec *w;
    int              n, cap;
    int              fault;             /* out of memory while adding; reported by hv_weights_open */
};

/* Adds a tensor; the name is a printf format. */
void hv_wlist_add(struct hv_wlist *l, hv_dtype dtype, enum hv_quant quant, int ndim, const int64_t *shape,
                  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
void hv_wlist_close(struct hv_wlist *l);
const struct hv_wspec *hv_wlist_find(const struct hv_wlist *l, const char *name);

struct hv_weights;

/* Opens a file for a device; on the dry device path may be NULL: shapes alone, dtypes of the list. The list is copied; the
 * device is borrowed. HV_EINPUT: missing or misshapen tensors (all of them are named, up to eight), HV_EUNSUP: a dtype that
 * no operation takes. */
int hv_weights_open(struct hv_weights **w, struct hv_dev *d, const char *path, const struct hv_wlist *l,
                    struct hv_err *e);

struct hv_synth_opts {
    uint64_t seed;
    int      as_stored;                 /* 1: round to the list's dtypes; 0: f32 */
    float    gain;                      /* not 0: every 4-dimensional tensor that ends in ".weight" is multiplied by it */
};

/* The synthetic model of mem/synth.h, made in host memory tensor by tensor as it is asked for. */
int hv_weights_open_synth(struct hv_weights **w, struct hv_dev *d, const struct hv_wlist *l,
                          const struct hv_synth_opts *o, struct hv_err *e);
void hv_weights_close(struct hv_weights *w);

/* Announces that the tensors whose names begin with the prefix are about to be read, and that the tensors that follow them
 * in the list come next. give: they are not needed again soon. */
void hv_weights_take(struct hv_weights *w, const char *prefix);
void hv_weights_give(struct hv_weights *w, const char *prefix);

/* The tensor of a name (printf format) of the list; a name that is not in the list is a fault of the device. */
hv_tensor hv_weight(struct hv_weights *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* 1 if the list has the tensor. */
int hv_weights_have(const struct hv_weights *w, const char *name);

/* Digest for "hv.model": the file's hv.sha256, else "header:" and the digest of its header; "synth:SEED". */
const char *hv_weights_digest(const struct hv_weights *w);

/* Bytes of the tensors of the list as stored. */
uint64_t hv_weights_bytes(const struct hv_weights *w);

#ifdef __cplusplus
}
#endif
#endif
