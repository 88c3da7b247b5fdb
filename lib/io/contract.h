/* contract.h - the stage files: which keys there are, of which dtype and shape, who writes and who reads them. The readers,
 * hv-tensor check and doc/formats.md come from the one table of contract.c.
 *
 *     struct hv_operands in = {0};
 *     hv_tensor x;
 *     if (!hv_operands_open(&in, paths, n, e)                          // any number, any order; none: stdin
 *         && !hv_operands_get(&in, "audio.features", &x, e))           // on the host, f32, finite
 *         frames = hv_operands_size(&in, "F");
 *     hv_operands_close(&in);
 *
 *     hv_operands_stamp(&in, &out);                                    // size, frames and fps pass from stage to stage
 *     hv_contract_stamp(&out, &(struct hv_stamp){.stage = "hv-audio", .frames = F, .fps = 25, .model = digest});
 *
 * A size of a shape is a number or a symbol. Symbols are bound over all operands: two tensors that disagree on one are
 * refused, and the message names both. */
#ifndef HV_CONTRACT_H
#define HV_CONTRACT_H

#include <stdio.h>

#include "core/err.h"
#include "core/tensor.h"
#include "io/st.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One key of one file. A key that ends in ".*" stands for all keys with that beginning. */
struct hv_key {
    const char *file;                   /* "text.st" */
    const char *maker, *taker;          /* "hv-text", "hv-denoise"; taker "" where no stage reads it */
    const char *key;
    hv_dtype    dtype, or_dtype;        /* or_dtype: HV_NONE where there is one dtype only */
    int         ndim;                   /* -1: any shape */
    const char *dim[HV_MAX_DIMS];       /* "5" or a symbol */
    int         optional;
    const char *meaning;
};

struct hv_meta_key {
    const char *key, *where, *meaning;
};

struct hv_symbol {
    const char *name, *meaning;
};

/* The tables; each ends with a zeroed entry. */
extern const struct hv_key      hv_contract[];
extern const struct hv_meta_key hv_contract_meta[];
extern const struct hv_symbol   hv_contract_symbols[];

/* The row of a key, NULL if no stage file has it. */
const struct hv_key *hv_contract_find(const char *key);

/* Prints the tables as the Markdown of doc/formats.md. */
void hv_contract_print(FILE *f);

/* ---- reading ---- */

#define HV_OPERANDS 16
#define HV_BINDINGS 32

struct hv_binding {
    const char *name;                   /* of the symbol */
    int64_t     size;
    const char *path, *key;             /* where it was found first */
};

struct hv_operands {
    struct hv_in     *in[HV_OPERANDS];
    int               n;
    struct hv_binding bind[HV_BINDINGS];
    int               n_bind;
};

/* Opens the files and checks every key of the contract that they hold: dtype, shape, symbols. No path: stdin. Keys that are
 * not of the contract are ignored.
 * HV_EINPUT: a key in two operands, a wrong dtype or shape, sizes that disagree, hv.width, hv.height or hv.fps that
 * disagree, hv.version other than 1. HV_EUSAGE: "-" twice, or too many operands. */
int  hv_operands_open(struct hv_operands *o, const char *const *path, int n, struct hv_err *e);
void hv_operands_close(struct hv_operands *o);

/* 1 if an operand holds the key. */
int hv_operands_have(const struct hv_operands *o, const char *key);

/* A view of a tensor, which lives as long as o. HV_EINPUT: no operand has it (the message says which tool makes it);
 * HV_ENUM: it holds NaN or Inf. */
int hv_operands_get(struct hv_operands *o, const char *key, hv_tensor *t, struct hv_err *e);

/* The size bound to a symbol, -1 if no operand has it. */
int64_t hv_operands_size(const struct hv_operands *o, const char *symbol);

/* A metadata string of the first operand that has it, NULL: none. The _int and _real forms leave *value as it is when there
 * is none; HV_EINPUT: not a number, or out of range. */
const char *hv_operands_meta(const struct hv_operands *o, const char *key);
int         hv_operands_meta_int(const struct hv_operands *o, const char *key, int64_t min, int64_t max, int64_t *value,
                                 struct hv_err *e);
int         hv_operands_meta_real(const struct hv_operands *o, const char *key, double min, double max, double *value,
                                  struct hv_err *e);

/* Checks one entry of a file against the contract, binding symbols in o; no row: 0. HV_EINPUT with path and key. */
int hv_contract_check_entry(struct hv_operands *o, const struct hv_in *in, const struct hv_entry *t, struct hv_err *e);

/* ---- writing ---- */

struct hv_stamp {
    const char *stage;                  /* "hv-audio" */
    int64_t     width, height, frames;  /* 0: not known, not written */
    double      fps;                    /* 0: not known */
    const char *model;                  /* hv_weights_digest; NULL: not written */
};

/* Sets the metadata that all stage files share: hv.version and what the stamp knows. */
void hv_contract_stamp(struct hv_out *out, const struct hv_stamp *s);

/* Copies hv.width, hv.height, hv.frames and hv.fps of the operands. */
void hv_operands_stamp(const struct hv_operands *o, struct hv_out *out);

#ifdef __cplusplus
}
#endif
#endif
