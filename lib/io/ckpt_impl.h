/* ckpt_impl.h - what ckpt.c, ckpt_files.c and ckpt_quant.c share. */
#ifndef HV_CKPT_IMPL_H
#define HV_CKPT_IMPL_H

#include "io/ckpt.h"
#include "io/zip.h"

struct ckpt_file {
    char          *path;
    int            fd;                  /* -1: a pipe, all of which is in memory */
    const uint8_t *data;                /* the whole file; of a pipe: from its data section on */
    size_t         bytes;
    int            mapped;
    struct hv_in  *in;                  /* safetensors */
    struct hv_zip *zip;                 /* torch */
    uint64_t       digest;
};

struct hv_ckpt {
    struct ckpt_file  *file;
    int                n_files, cap_files;
    struct hv_ctensor *t;
    int                n, cap;
    char             **meta;            /* key, value, .. */
    int                n_meta;
    int               *by_name;         /* sorted; NULL: to be made */
    const char        *format, *how;
    int                deq_bf16;
};

/* Opens path as one file and adds its tensors. */
int ckpt_open_file(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e);

/* Opens what path stands for: a folder, an index, a shard with its neighbours, or a file. */
int ckpt_open_path(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e);

/* HV_EINPUT when two tensors have one name. */
int ckpt_check_names(struct hv_ckpt *c, struct hv_err *e);

/* Forgets the index by name, after a change of the list. */
void ckpt_changed(struct hv_ckpt *c);

#endif
