/* pickle.h - the data of a pickle, and nothing but data.
 *
 *     struct hv_pickle *p = NULL;
 *     if (!hv_pickle_read(&p, data, bytes, HV_PICKLE_TENSORS, e))
 *         walk(hv_pickle_top(p));
 *     hv_pickle_close(p);
 *
 * A pickle is a program for a stack machine, and Python's machine may be told to call anything. This one knows the opcodes that
 * torch writes for a state dict (protocol 2) and a list of global names, which it compares as strings and never looks up: what
 * they would make is made here as data. Every other opcode and every other name is refused.
 *
 * Values live until hv_pickle_close; strings point into the data. All memory that a pickle can make the reader take is
 * HV_PICKLE_MEMORY. */
#ifndef HV_PICKLE_H
#define HV_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_PICKLE_MEMORY ((size_t)32 << 20)
#define HV_PICKLE_STACK  (1 << 20)
#define HV_PICKLE_MEMO   (1 << 24)
#define HV_PICKLE_DEPTH  64             /* of nesting, for those who walk */

enum hv_pickle_type {
    HV_P_NONE, HV_P_BOOL, HV_P_INT, HV_P_FLOAT, HV_P_STR, HV_P_TUPLE, HV_P_LIST, HV_P_DICT, HV_P_GLOBAL, HV_P_STORAGE,
    HV_P_TENSOR,
    HV_P_OBJECT                         /* of TorchScript: its attributes, a dict */
};

struct hv_pvalue;

struct hv_pstr {                        /* also a global: "module name" */
    const char *s;
    size_t      n;
};

struct hv_pseq {                        /* tuple, list; dict and object: key, value, key, value, .. */
    struct hv_pvalue *v;
    size_t            n, cap;
};

struct hv_pstorage {
    hv_dtype       dtype;
    int            untyped;             /* its bytes have no type of their own */
    struct hv_pstr key;                 /* names the entry */
    int64_t        numel;
};

struct hv_ptensor {
    const struct hv_pstorage *storage;
    hv_dtype dtype;
    int64_t  offset;                    /* in elements */
    int      ndim;
    int64_t  shape[8], stride[8];
};

struct hv_pvalue {
    enum hv_pickle_type type;
    union {
        int64_t             i;
        double              f;
        struct hv_pstr     *str;
        struct hv_pseq     *seq;
        struct hv_pstorage *storage;
        struct hv_ptensor  *tensor;
    };
};

enum hv_pickle_kind { HV_PICKLE_TENSORS, HV_PICKLE_SCRIPT };   /* a state dict; a TorchScript module */

struct hv_pickle;

/* HV_EINPUT: cut short, or not what torch writes; HV_EUNSUP: another protocol, opcode or global; HV_ENOMEM. */
int hv_pickle_read(struct hv_pickle **p, const uint8_t *data, size_t bytes, enum hv_pickle_kind kind, struct hv_err *e);
void hv_pickle_close(struct hv_pickle *p);

const struct hv_pvalue *hv_pickle_top(const struct hv_pickle *p);

/* The value of a key of a dict or object, the last one where it is there twice; NULL: none. */
const struct hv_pvalue *hv_pickle_get(const struct hv_pvalue *dict, const char *key);

#ifdef __cplusplus
}
#endif
#endif
