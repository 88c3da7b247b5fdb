/* ckpt.h - a checkpoint of any format as a list of tensors: what hv-weights opens.
 *
 *     struct hv_ckpt *c = NULL;
 *     const struct hv_ckpt_opts o = {0};
 *     if (!hv_ckpt_open(&c, &path, 1, &o, e) && !hv_ckpt_resolve(c, e))
 *         for (int i = 0; i < hv_ckpt_count(c); i++)
 *             hv_ckpt_read_f32(c, hv_ckpt_at(c, i), 0, n, values, e);
 *     hv_ckpt_close(c);
 *
 * The format follows from the content: safetensors, an index of shards, a zip archive of torch (a state dict or a TorchScript
 * module), GGUF. Opening reads names, shapes and places alone, and trusts none of them. Values are read when they are asked
 * for, and tensors that the file holds transposed, sliced or in blocks come out contiguous.
 *
 * hv_ckpt_resolve finds out how matrices were quantized: our own scales, the fp8 file with its map, quanto, scaled fp8 of
 * ComfyUI. After it a matrix in 8 bits has its scales, and what only described it is gone from the list. */
#ifndef HV_CKPT_H
#define HV_CKPT_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/tensor.h"
#include "io/st.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_CKPT_NAME    1024            /* bytes of a tensor's name, its zero included */
#define HV_CKPT_TENSORS 65536           /* at most; the largest model here has a thousand */

struct hv_ctensor {
    char    *name;
    hv_dtype dtype;                     /* of what hv_ckpt_read gives: F32 for the block formats of GGUF */
    int      ndim;
    int64_t  shape[HV_ST_DIMS], stride[HV_ST_DIMS];     /* stride in elements */
    int      ggml;                      /* type of its blocks; -1: plain elements */
    int      file;
    uint64_t offset, span;              /* of the first element in the file; bytes from there to the end of the last */
    float   *scale;                     /* one a row, of a matrix in 8 bits; NULL: none */
};

struct hv_ckpt_opts {
    const char *key;                    /* the entry of a torch archive that holds the tensors; NULL: the first of the usual */
    int         script;                 /* 1: TorchScript archives are read; 0: refused with a message */
    int         alone;                  /* 1: only the files given: no shards beside them, no map */
};

struct hv_ckpt;

/* Opens n files, or folders with the usual names in them. HV_EINPUT, HV_EUNSUP (the message says how to convert), HV_EIO,
 * HV_ENOMEM; messages start with the path. */
int  hv_ckpt_open(struct hv_ckpt **c, const char *const *path, int n, const struct hv_ckpt_opts *o, struct hv_err *e);
void hv_ckpt_close(struct hv_ckpt *c);

/* Gives matrices their scales. HV_EINPUT: a scale that is missing or does not fit; HV_EUNSUP: 4 and 2 bits. */
int hv_ckpt_resolve(struct hv_ckpt *c, struct hv_err *e);

/* In the order of the file. Pointers are good until resolve, close or another change of the list. */
int                hv_ckpt_count(const struct hv_ckpt *c);
struct hv_ctensor *hv_ckpt_at(const struct hv_ckpt *c, int i);
struct hv_ctensor *hv_ckpt_find(const struct hv_ckpt *c, const char *name);

const char *hv_ckpt_path(const struct hv_ckpt *c);          /* of the first file */
const char *hv_ckpt_format(const struct hv_ckpt *c);        /* "safetensors", "torch", "torchscript", "gguf" */
const char *hv_ckpt_how(const struct hv_ckpt *c);           /* after resolve: "", "fp8 + map", "quanto", "scaled fp8" */
const char *hv_ckpt_meta(const struct hv_ckpt *c, const char *key);
int         hv_ckpt_deq_bf16(const struct hv_ckpt *c);      /* scale times number is rounded to bf16 */

/* The safetensors file of a checkpoint that is one such file, NULL otherwise. */
const struct hv_in *hv_ckpt_in(const struct hv_ckpt *c);

/* Bytes of all files; digest of their directories or headers. */
uint64_t hv_ckpt_bytes(const struct hv_ckpt *c);
uint64_t hv_ckpt_digest(const struct hv_ckpt *c);

int64_t hv_ctensor_count(const struct hv_ctensor *t);
int     hv_ctensor_contiguous(const struct hv_ctensor *t);

/* Elements first .. first+n-1, row-major, as t->dtype. May be called by several threads. HV_EIO: the file has changed. */
int hv_ckpt_read(const struct hv_ckpt *c, const struct hv_ctensor *t, uint64_t first, size_t n, void *dst, struct hv_err *e);

/* The same as f32, with scales multiplied in. */
int hv_ckpt_read_f32(const struct hv_ckpt *c, const struct hv_ctensor *t, uint64_t first, size_t n, float *dst,
                     struct hv_err *e);

/* 1 when the tensor's bytes, as hv_ckpt_read gives them, lie in an open file in one piece: which, and where. */
int hv_ckpt_place(const struct hv_ckpt *c, const struct hv_ctensor *t, int *fd, uint64_t *at);

/* Advice: the tensor's pages are not needed any more. */
void hv_ckpt_forget(const struct hv_ckpt *c, const struct hv_ctensor *t);

/* HV_EINPUT when an entry of a zip archive has not the CRC-32 of its directory; *checked counts entries. */
int hv_ckpt_verify(const struct hv_ckpt *c, int *checked, struct hv_err *e);

/* Changes a name; takes a tensor out of the list. */
int  hv_ckpt_rename(struct hv_ckpt *c, int i, const char *name, struct hv_err *e);
void hv_ckpt_drop(struct hv_ckpt *c, int i);

/* ---- for the readers of formats ---- */

/* Adds a tensor whose name is copied; its file is the one being opened. HV_EINPUT: an empty name, or one that is too long or
 * not text. */
int hv_ckpt_add(struct hv_ckpt *c, const struct hv_ctensor *t, const char *name, size_t n, struct hv_err *e);
int hv_ckpt_add_meta(struct hv_ckpt *c, const char *key, const char *value, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
