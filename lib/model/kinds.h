/* kinds.h - the networks that a model folder holds: how to tell them apart, and the list of weights that a config asks for.
 *
 *     const struct hv_kind *k = hv_kind_of_config(root);               // of a config.json
 *     if (k && !k->list(&list, root, e)) ...                           // every tensor, in the order of use
 *
 * Which matrices may be quantized follows from the name alone, so a checkpoint without its config can be quantized too;
 * the classes (HV_QUANT, ..) in the lists of the networks agree with it. */
#ifndef HV_KINDS_H
#define HV_KINDS_H

#include "core/err.h"
#include "core/json.h"
#include "mem/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_kind {
    const char *name;                   /* "transformer": of the folder, and the value of "hv.model" */
    const char *mark;                   /* what names of this kind alone begin with */

    /* Adds the tensors of a config. HV_EINPUT: a key out of range; HV_ENOMEM. */
    int (*list)(struct hv_wlist *l, const json_t *config, struct hv_err *e);
};

/* All kinds; ends with a zeroed entry. */
extern const struct hv_kind hv_kinds[];

/* NULL: there is none. */
const struct hv_kind *hv_kind_find(const char *name);
const struct hv_kind *hv_kind_of_config(const json_t *config);
const struct hv_kind *hv_kind_of_tensor(const char *name);

/* What may be done to a tensor of a kind (NULL: unknown). */
enum hv_quant hv_kind_quant(const struct hv_kind *k, const char *name, int ndim);

/* 1: the reference keeps it in f32 beside bf16 matrices. */
int hv_kind_keeps_f32(const struct hv_kind *k, const char *name);

#ifdef __cplusplus
}
#endif
#endif
