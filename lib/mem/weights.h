/* weights.h - a network's list of weights, and the source that serves them: a mapped file, a synthetic model, or nothing
 * but shapes (the dry device).
 *
 *     struct hv_wlist list = {0};
 *     dit_weights(&list, &config);                             // every tensor the network reads, in the order of use
 *     hv_weights_open(&w, dev, "transformer/model.safetensors", &list, e);     // strict: all there, all of their shape
 *     hv_weights_take(w, "double.7.img");                      // wanted now; its successor is fetched meanwhile
 *     hv_tensor m = hv_weight(w, "double_blocks.%d.img_mlp.fc1.weight", 7);
 *     hv_weights_give(w, "double.7.img");
 *
 * Matrices (2 dimensions or more) are handed out as stored: F32, F16, BF16, or I8 and F8_E4M3 with their scales (float
 * tensor X.weight.scale, one a row; metadata "hv.deq" = "bf16" sets deq_bf16). Vectors are always F32.
 *
 * On the host weights are used where they are. On a GPU they pass through a ring (stream.h); without hv_weights_stream
 * each is copied to memory of its own when it is first asked for, which is freed when it is given back. */
#ifndef HV_WEIGHTS_H
#define HV_WEIGHTS_H

#include "core/err.h"
#include "core/tensor.h"
#include "mem/stream.h"
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
    int           group;                /* -1: none */
    int64_t       split;                /* not 0: rows from here on belong to group + 1 */
};

/* A group is what one phase of the network reads together. */
struct hv_wlist {
    struct hv_wspec *w;
    int              n, cap;
    char           **group;             /* names */
    int              groups, group_cap;
    int              open;              /* 1: tensors that are added belong to the last group */
    int              cycle;             /* first group of the steps, which are walked again and again; 0 by default */
    int              fault;             /* out of memory while adding; reported by hv_weights_open */
};

/* Adds a tensor; the name is a printf format. */
void hv_wlist_add(struct hv_wlist *l, hv_dtype dtype, enum hv_quant quant, int ndim, const int64_t *shape,
                  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
void hv_wlist_close(struct hv_wlist *l);

/* Begins a group: tensors that are added from now on belong to it, in the order of use. Names are unique. NULL: to
 * none. */
void hv_wlist_group(struct hv_wlist *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Of the tensor that was added last, the rows (of a vector: elements) from `rows` on, and their scales, belong to the
 * group that is begun next. */
void hv_wlist_split(struct hv_wlist *l, int64_t rows);

/* The group that is begun next is the first one of the steps. */
void hv_wlist_cycle(struct hv_wlist *l);

/* Index of a group, -1 if there is none. */
int hv_wlist_find_group(const struct hv_wlist *l, const char *name);

/* Bytes of a group whose matrices are stored as `matrices`: HV_BF16 (HV_NONE reads as that) or HV_F16: vectors BF16 where
 * the list's dtype is that, else F32; HV_F32: all F32; HV_I8 or HV_F8_E4M3: those of class HV_QUANT in bytes, with an
 * F32 scale a row, all else as with HV_BF16. aligned: every tensor at a multiple of HV_ALIGN, and so the whole, as in a
 * ring; else the bare sum. */
int64_t hv_wlist_group_bytes(const struct hv_wlist *l, int group, hv_dtype matrices, int aligned);

/* The largest group from `first` on, aligned: the smallest ring. */
int64_t hv_wlist_largest(const struct hv_wlist *l, int first, hv_dtype matrices);

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
    hv_dtype quant;                     /* HV_I8, HV_F8_E4M3: matrices of class HV_QUANT are quantized: bytes at random,
                                           scales that spread them as the others are; HV_NONE: none */
    int      share;                     /* 1, for timings: when streamed, groups of the steps whose names differ only in
                                           numbers, and whose shapes do not, are one page-locked copy with the values of
                                           the first of them: a model of 26 GB in under 1 GB */
};

/* The synthetic model of mem/synth.h, made in host memory tensor by tensor as it is asked for. */
int hv_weights_open_synth(struct hv_weights **w, struct hv_dev *d, const struct hv_wlist *l,
                          const struct hv_synth_opts *o, struct hv_err *e);
void hv_weights_close(struct hv_weights *w);

/* Each group is read once: on the host its pages leave the process when it is given back, and stay in the system's cache. */
void hv_weights_once(struct hv_weights *w);

/* Announces that a group, or the tensors whose names begin with a prefix, are about to be read, and that what follows
 * them in the list comes next. give: they are not needed again soon. Streamed: a group, each at most once at a time. */
void hv_weights_take(struct hv_weights *w, const char *name);
void hv_weights_give(struct hv_weights *w, const char *name);

/* The tensor of a name (printf format) of the list; a name that is not in the list is a fault of the device. Streamed:
 * of a group that is taken, else a fault of the device; of a split tensor only the group's rows are there, in their
 * places of the whole. */
hv_tensor hv_weight(struct hv_weights *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Rows first .. of it (of a vector: elements), which of a split tensor lie in one group. */
hv_tensor hv_weight_rows(struct hv_weights *w, int64_t first, int64_t rows, const char *fmt, ...)
          __attribute__((format(printf, 4, 5)));

/* The tensor where the host has it, as stored, also when the device is a GPU: for tables of which few rows are wanted. Not
 * its group's business: it need not be taken. */
hv_tensor hv_weight_host(struct hv_weights *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* 1 if the list has the tensor. */
int hv_weights_have(const struct hv_weights *w, const char *name);

/* Digest for "hv.model": the file's hv.sha256, else "header:" and the digest of its header; "synth:SEED". */
const char *hv_weights_digest(const struct hv_weights *w);

/* Bytes of the tensors of the list as stored. */
uint64_t hv_weights_bytes(const struct hv_weights *w);

/* How a tensor of the list is stored; HV_NONE: not in the list. */
hv_dtype hv_weights_dtype(const struct hv_weights *w, const char *name);

/* The list, with its groups. */
const struct hv_wlist *hv_weights_list(const struct hv_weights *w);

/* Bytes of a group in a ring, aligned, as this device takes what this file holds; convert: of hv_stream_opts. */
int64_t hv_weights_group_bytes(const struct hv_weights *w, int group, int convert);

#ifdef __cplusplus
}
#endif
#endif
