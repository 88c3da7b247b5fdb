/* hv-weights.h - the commands of hv-weights, and what they share. */
#ifndef HV_WEIGHTS_TOOL_H
#define HV_WEIGHTS_TOOL_H

#include "core/cli.h"
#include "core/json.h"
#include "io/ckpt.h"
#include "io/st.h"
#include "mem/weights.h"
#include "model/kinds.h"

/* Each parses its own options (argv[0] is the command), and returns 0, -1 (help was printed) or a code. */
int cmd_synth(int argc, char **argv, struct hv_err *e);
int cmd_list(int argc, char **argv, struct hv_err *e);
int cmd_check(int argc, char **argv, struct hv_err *e);
int cmd_import(int argc, char **argv, struct hv_err *e);
int cmd_quantize(int argc, char **argv, struct hv_err *e);
int cmd_diff(int argc, char **argv, struct hv_err *e);

#define BLOCK  ((size_t)4 << 20)        /* bytes that are made, written and digested at a time */
#define CHUNK  ((size_t)1 << 16)        /* elements of a unit of parallel work */

/* ---- pack.c: the tensors of a packed file in the making, and their order ---- */

enum role {
    COPY, CONVERT,                      /* of src: as it is; in another dtype, scales multiplied in */
    QUANTIZED, SCALES,                  /* of src: its matrix in 8 bits; what its rows are to be multiplied by */
    KEPT_SCALES,                        /* of src, whose 8 bits are copied */
    FOLDED,                             /* of src: each row times its factor in made */
    MADE,                               /* made: its values */
    SYNTH, PAD
};

struct scales {
    float  *v;                          /* one a row */
    char   *done;                       /* rows whose scale is known */
    int64_t rows;
};

struct piece {
    char         *name;
    hv_dtype      dtype;
    int           ndim;
    int64_t       shape[HV_ST_DIMS];
    enum role     role;
    int64_t       rank;                 /* pieces are sorted by it, where alignment allows */
    const struct hv_ctensor *src;
    struct scales *scales;              /* of QUANTIZED and its SCALES: shared, owned by QUANTIZED */
    float        *made;                 /* owned */
};

struct pack {
    struct piece *p;
    int           n, cap, fault;
};

/* The new piece, NULL when out of memory (also kept as fault). The name is copied. */
struct piece *pack_add(struct pack *k, const char *name, hv_dtype t, int ndim, const int64_t *shape, enum role role,
                       int64_t rank);

/* Sorts by rank, keeps matrices at multiples of 64 bytes, and declares everything in out. HV_ENOMEM. */
int pack_layout(struct pack *k, struct hv_out *out, struct hv_err *e);
void pack_close(struct pack *k);

/* ---- pool.c: work in parallel ---- */

struct worker {
    void  *buf;                         /* of scratch */
    size_t bytes;
};

typedef void chunk_fn(void *ctx, int64_t k, struct worker *w);

/* How many threads; 0: as many as there are cores, or OMP_NUM_THREADS. Before the first for_chunks. */
void pool_threads(int64_t n);

/* Calls fn for chunks 0 .. n-1, each once, by any thread; returns when all are done. */
void for_chunks(int64_t n, chunk_fn *fn, void *ctx);

/* Memory that a thread keeps from chunk to chunk; NULL: out of memory. */
void *scratch(struct worker *w, size_t bytes);
void  pool_close(void);

/* The failure of the first chunk that has one, whichever thread met it first. */
struct failure {
    int64_t       chunk;
    struct hv_err e;
};

void keep_first(struct failure *f, int64_t chunk, const struct hv_err *e);

/* ---- convert.c: what becomes of the tensors of a checkpoint, and how their bytes are made ---- */

struct conversion {
    const char *quant, *modulation, *dtype;     /* as given; NULL: the default */
    hv_dtype    q, as;                  /* 8 bits for matrices, HV_NONE: none; dtype of the rest, HV_NONE: as it is */
    int         keep;                   /* matrices that are in 8 bits already stay as they are */
    int         modulate;               /* the modulation matrices are quantized, too */
};

/* Reads --quant, --modulation and --dtype. keep_allowed: --quant keep is one of the words. HV_EUSAGE. */
int conversion_read(struct conversion *v, int keep_allowed, struct hv_err *e);

/* Adds what tensor t becomes under a name: one piece or two. fallback: the dtype of what was in 8 bits or blocks and is not to
 * stay so. Returns 1 when it is newly quantized, 0, or -1 with a failure in e. */
int conversion_add(const struct conversion *v, struct pack *k, const struct hv_kind *kind, const struct hv_ctensor *t,
                   const char *name, int ndim, const int64_t *shape, hv_dtype fallback, int64_t rank, struct hv_err *e);

/* Metadata that every packed file has. */
void conversion_metadata(struct hv_out *out, const struct pack *k, const struct hv_ckpt *c, const struct hv_kind *kind);

/* Writes the pieces, in the order of pack_layout, which was called. what: of the progress line. */
int conversion_write(const struct hv_cli *cli, struct hv_out *out, const struct pack *k, const struct hv_ckpt *c,
                     const char *what, const char *path, struct hv_err *e);

/* ---- import: one part; all of them ---- */

struct import_options {
    struct hv_common  c;
    struct conversion v;
    const char       *model, *key, *config;
    int               script;
};

/* What became of a part. */
struct imported {
    char from[4096], how[64], dtypes[96], sha256[72];
    uint64_t bytes;
    int      tensors, extra, kept;      /* kept: it was there already */
};

/* Imports path[n] as a part into a folder, or a file that ends in .safetensors. kind NULL: every tensor under its name. */
int import_part(const struct hv_cli *cli, const struct import_options *o, const struct hv_kind *kind, const char *const *path,
                int n, const char *out, struct imported *done, struct hv_err *e);

/* Finds the parts of the official download and imports them; prints the table. */
int import_folder(const struct hv_cli *cli, const struct import_options *o, const char *from, const char *to,
                  struct hv_err *e);

/* The config of the full-size model, as JSON text; NULL: a face detector, whose graph follows from its tensors. */
const char *config_full(const struct hv_kind *kind);

/* Adds what a released config leaves out. Returns 1 when something was missing, -1: out of memory. */
int config_complete(const struct hv_kind *kind, json_t *config);

/* Strips what stands before the last "model.N." of every name. */
int face_rename(struct hv_ckpt *c, struct hv_err *e);

/* The graph of a detector of the family, from the names and shapes of its tensors; HV_EUNSUP: another network. */
int face_graph(json_t **config, const struct hv_ckpt *c, struct hv_err *e);

/* HV_EINPUT when the checkpoint has anchors, and they are not those of the config. */
int face_check_anchors(const json_t *config, const struct hv_ckpt *c, struct hv_err *e);

/* Adds weight and bias of a convolution with its batch norm folded in; 0: it has none, 1: done, -1: a failure in e. */
int face_fold_pieces(struct pack *k, const struct hv_ckpt *c, const struct hv_wspec *weight, const struct hv_wspec *bias,
                     int64_t rank, struct hv_err *e);

/* ---- files.c ---- */

int is_folder(const char *path);
int make_folder(const char *path, struct hv_err *e);
int copy_file(const char *from, const char *to, struct hv_err *e);
int write_text(const char *path, const char *text, struct hv_err *e);
int join(char path[4096], const char *dir, const char *name, struct hv_err *e);

/* ---- shared ---- */

/* The name of a tensor that only fills a hole. */
int is_padding(const char *name);

int is_quantized(hv_dtype t);

/* The kind that metadata or names tell, NULL: none. */
const struct hv_kind *kind_of_ckpt(const struct hv_ckpt *c);

const char *base_name(const char *path);

/* "[3,64]" into buf; returns buf. */
const char *shape_text(char buf[192], int ndim, const int64_t *shape);

/* The output: the last operand or -o, not both. */
int pick_output(const struct hv_common *c, int operands, const char **path, struct hv_err *e);

void use_threads(const struct hv_common *c);

/* Seconds since some start. */
double seconds(void);

/* kind and list of a file from the config.json beside it, *kind NULL when there is none. */
int list_beside(const char *path, const struct hv_kind **kind, struct hv_wlist *l, struct hv_err *e);

#endif
