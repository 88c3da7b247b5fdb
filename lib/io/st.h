/* st.h - safetensors: a file (mapped) or a pipe (read once) in, a file (written aside, renamed) or stdout out.
 *
 *     struct hv_in *in = NULL;
 *     hv_tensor t;
 *     if (!hv_in_open(&in, "audio.st", e) && !hv_in_tensor(in, "audio.features", &t, e)) ...     // a view of the mapping
 *     hv_in_close(in);
 *
 *     struct hv_out out = {0};
 *     hv_out_meta(&out, "hv.stage", "hv-audio");
 *     float *y = hv_out_new(&out, "audio.features", HV_F32, 4, shape, e);                        // owned by out, zeroed
 *     hv_out_write(&out, "audio.st", e);                                                         // NULL or "-": stdout
 *     hv_out_close(&out);
 *
 * A mapped file that is cut short while it is read ends the program: core/mapped.h.
 *
 * Layout: u64 little-endian n, n bytes of JSON, data. The reader trusts nothing: it refuses headers over 16 MiB or of very many values, names
 * twice, unknown dtypes, shapes whose product overflows, and spans that do not tile the data exactly. */
#ifndef HV_ST_H
#define HV_ST_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_ST_DIMS   8
#define HV_ST_HEADER ((size_t)16 << 20)
#define HV_ST_OBJECTS 100000            /* in a header, and values: what they take in memory is many times their text */
#define HV_ST_VALUES  300000

struct hv_entry {
    const char *name;
    hv_dtype    dtype;
    int         ndim;
    int64_t     shape[HV_ST_DIMS];
    uint64_t    begin, end;             /* bytes from the start of the data */
};

struct hv_in;

/* Opens a file, or stdin for "-". HV_EIO: cannot be read; HV_EINPUT: not a sound safetensors file. Messages start with
 * the path. *in is NULL after a failure. */
int  hv_in_open(struct hv_in **in, const char *path, struct hv_err *e);
void hv_in_close(struct hv_in *in);

const char *hv_in_path(const struct hv_in *in);

/* Entries in the order of their data. */
int                    hv_in_count(const struct hv_in *in);
const struct hv_entry *hv_in_entry(const struct hv_in *in, int i);
const struct hv_entry *hv_in_find(const struct hv_in *in, const char *name);    /* NULL: not there */

/* Raw bytes of an entry; may be unaligned. */
const void *hv_in_data(const struct hv_in *in, const struct hv_entry *entry);

/* A view of the entry's data, which lives as long as `in`; data that is misaligned for its dtype is copied once.
 * HV_EINPUT: no such tensor, or more than HV_MAX_DIMS dimensions. */
int hv_in_tensor(struct hv_in *in, const char *name, hv_tensor *t, struct hv_err *e);

/* A value of __metadata__, NULL where there is none. i counts keys in file order for hv_in_meta_at. */
const char *hv_in_meta(const struct hv_in *in, const char *key);
int         hv_in_meta_at(const struct hv_in *in, int i, const char **key, const char **value);     /* 0: no such i */

/* Bytes of data; digest of the header text (FNV-1a 64), for files that carry no "hv.sha256". */
uint64_t hv_in_bytes(const struct hv_in *in);
uint64_t hv_in_header_digest(const struct hv_in *in);

/* Advice for a mapped file: bytes [begin, end) are wanted soon (1) or no longer (0). Nothing for a pipe. */
void hv_in_advise(const struct hv_in *in, uint64_t begin, uint64_t end, int wanted);

/* ---- writing ---- */

struct hv_out_entry {
    char     *name;
    hv_dtype  dtype;
    int       ndim;
    int64_t   shape[HV_ST_DIMS];
    const void *data;                   /* borrowed, or owned when `owned`; NULL: produced while writing */
    void     *owned;
    int       copied;                   /* its bytes are those of file `fd` from `at` on */
    int       fd;
    uint64_t  at;
};

struct hv_out {
    struct hv_out_entry *entry;
    int    n, cap;
    char  *meta[64];                    /* key, value, key, value, .. */
    int    n_meta;
    int    align;                       /* data starts at a multiple of this; 0: 64 */
    int    digest;                      /* 1: "hv.sha256" of the data section goes into the metadata (files only) */
    int    sync;                        /* 1: on the disk before it gets its name (files only) */
    int    fault;                       /* out of memory while adding; reported by hv_out_write */
};

/* Sets a metadata string (a second time: replaces it). */
void hv_out_meta(struct hv_out *o, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Adds a tensor: contiguous, on the host; its data is borrowed until hv_out_write. */
void hv_out_add(struct hv_out *o, const char *name, hv_tensor t);

/* Adds a tensor owned by o, zeroed; returns its data, NULL (and e) when out of memory. */
void *hv_out_new(struct hv_out *o, const char *name, hv_dtype t, int ndim, const int64_t *shape, struct hv_err *e);

/* Adds a tensor whose bytes hv_out_produce will ask for. */
void hv_out_declare(struct hv_out *o, const char *name, hv_dtype t, int ndim, const int64_t *shape);

/* Writes everything in the order of addition: to a temporary beside path, renamed when whole; to stdout for NULL or "-".
 * A float tensor that holds NaN or Inf is refused: HV_ENUM, naming it. HV_EIO: the write failed, and nothing is left.
 * HV_EUSAGE: stdout is a terminal. */
int hv_out_write(struct hv_out *o, const char *path, struct hv_err *e);

/* The same, asking `produce` for bytes [offset, offset+n) of declared entry i, in order, at most `block` bytes at a time
 * (a multiple of 64 unless the entry ends). A thread writes and digests one block while the next is produced. */
typedef int hv_produce_fn(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e);
int hv_out_produce(struct hv_out *o, const char *path, size_t block, hv_produce_fn *produce, void *ctx,
                   struct hv_err *e);

/* Says that the bytes of declared entry i are those of an open file from an offset on: the system copies them, without a way
 * through this process. `produce` is still asked for them, for the digest and what it checks. */
void hv_out_copied(struct hv_out *o, int i, int fd, uint64_t at);

void hv_out_close(struct hv_out *o);

/* Index of the first NaN or Inf of a contiguous float tensor on the host, -1 if all are finite (or not a float dtype). */
int64_t hv_first_nonfinite(hv_tensor t);

#ifdef __cplusplus
}
#endif
#endif
