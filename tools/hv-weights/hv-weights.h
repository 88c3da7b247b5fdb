/* hv-weights.h - the commands of hv-weights, and what they share. */
#ifndef HV_WEIGHTS_TOOL_H
#define HV_WEIGHTS_TOOL_H

#include "core/cli.h"
#include "core/json.h"
#include "io/st.h"
#include "mem/weights.h"
#include "model/kinds.h"

/* Each parses its own options (argv[0] is the command), and returns 0, -1 (help was printed) or a code. */
int cmd_synth(int argc, char **argv, struct hv_err *e);
int cmd_list(int argc, char **argv, struct hv_err *e);
int cmd_check(int argc, char **argv, struct hv_err *e);
int cmd_quantize(int argc, char **argv, struct hv_err *e);
int cmd_diff(int argc, char **argv, struct hv_err *e);

#define BLOCK  ((size_t)16 << 20)       /* bytes that are made, written and digested at a time */
#define CHUNK  ((size_t)1 << 16)        /* elements of a unit of parallel work */

/* ---- pack.c: the tensors of a packed file in the making, and their order ---- */

enum role { COPY, CONVERT, QUANTIZED, SCALES, SYNTH, PAD };

struct scales {
    float  *v;
    int64_t rows;
    int     ready;
};

struct piece {
    char         *name;
    hv_dtype      dtype;
    int           ndim;
    int64_t       shape[HV_ST_DIMS];
    enum role     role;
    int64_t       rank;                 /* pieces are sorted by it, where alignment allows */
    const struct hv_entry *src, *src_scale;
    struct scales *scales;              /* of QUANTIZED and its SCALES: shared, owned by QUANTIZED */
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

/* ---- shared ---- */

/* The name of a tensor that only fills a hole. */
int is_padding(const char *name);

/* Elements first .. first+n-1 of a stored matrix or vector as f32, scaled rows included. */
void load_f32(float *dst, const struct hv_in *in, const struct hv_entry *t, const struct hv_entry *scale, int deq_bf16,
              size_t first, size_t n);

/* The scale entry of a quantized tensor; NULL: there is none, or it does not fit. */
const struct hv_entry *scale_of(const struct hv_in *in, const struct hv_entry *t);

int is_quantized(hv_dtype t);

/* The output: the last operand or -o, not both. */
int pick_output(const struct hv_common *c, int operands, const char **path, struct hv_err *e);

void use_threads(const struct hv_common *c);

/* Seconds since some start. */
double seconds(void);

/* kind and list of a file from the config.json beside it, *kind NULL when there is none. */
int list_beside(const char *path, const struct hv_kind **kind, struct hv_wlist *l, struct hv_err *e);

#endif
