/* source.h - where weights come from, as the files of lib/mem share it: a file, memory, or their names (synthetic). */
#ifndef HV_SOURCE_H
#define HV_SOURCE_H

#include "io/st.h"
#include "mem/weights.h"

/* ---- the object ---- */

struct hv_slot {
    hv_tensor view;                     /* as it is handed out where weights are used in place */
    int       ready;                    /* view.data is there */
    int       fetched;                  /* was announced once */
    int       taken;                    /* by a prefix or group: the copy on the device is freed when it is given back */
    void     *owned, *owned_scale;      /* widened vector, or synthetic values */
    void     *device;                   /* a copy of its own on a device, with the scale behind it */
    const struct hv_entry *entry, *scale;       /* in the file */
};

struct hv_stream;

struct hv_weights {
    struct hv_dev  *dev;
    struct hv_wlist list;
    struct hv_slot *slot;
    int            *table;              /* open addressing: index into the list, -1: free */
    size_t          mask;
    struct hv_in   *in;                 /* NULL: synthetic, or shapes alone */
    int             fd;                 /* the mapped file; -1: none, or a pipe */
    uint64_t        file_bytes, data_at;        /* of the file; where its data starts */
    struct hv_synth_opts synth;
    int             is_synth, large;    /* large: larger than half of the memory; pages are given back */
    int             once;               /* on the host: pages leave the process when they are given back */
    uint64_t        memory;             /* bytes of the machine */
    uint64_t        bytes;
    char            digest[100];
    char           *bounce;             /* page-locked, for copies to memory of their own */
    void           *bounce_event;
    struct hv_stream *stream;
};

/* A copy of a list; 1: out of memory (what is there is closed by hv_wlist_close). */
int hv_wlist_copy(struct hv_wlist *l, const struct hv_wlist *from);

/* Rows of a tensor that are in a group, from *first on; 0: none. */
int64_t hv_wlist_rows(const struct hv_wspec *s, int group, int64_t *first);

/* 1 for I8 and F8_E4M3. */
int hv_is_quantized(hv_dtype t);

/* ---- parts of a group ---- in the order of the ring */

struct hv_part {
    int         tensor;                 /* index into the list */
    int         is_scale;               /* the scales of its rows */
    int64_t     row, rows;
    size_t      at, bytes;              /* in the group, as `to` */
    hv_dtype    from, to;
    const char *memory;                 /* the values as `from`; NULL: in the file, or synthetic */
    uint64_t    offset;                 /* in the file, where memory is NULL */
    int         raw;                    /* 1: the file's bytes are the ring's */
};

/* The parts of a group into part (NULL: only counted) and their bytes, aligned, into *bytes. matrices: of hv_stream_opts,
 * HV_NONE: as stored, with vectors F32. The memory of vectors is there from the open on, but not on the dry device. */
int hv_parts(const struct hv_weights *w, int group, hv_dtype matrices, struct hv_part *part, size_t *bytes);

#define HV_SOURCE_SCRATCH ((size_t)512 << 10)

/* Bytes [first, first + n) of a part, as `to`, whole elements, into dst. scratch: HV_SOURCE_SCRATCH bytes of the
 * caller, aligned to 64. HV_EIO names file, tensor and numbers. Any thread. */
int hv_source_read(const struct hv_weights *w, const struct hv_part *p, size_t first, size_t n, void *dst, void *scratch,
                   struct hv_err *e);

/* n bytes of the file at an offset; what: for the message. */
int hv_source_pread(const struct hv_weights *w, int fd, uint64_t offset, size_t n, void *dst, const char *what,
                    struct hv_err *e);

/* Synthetic bytes of a quantized matrix, elements first .. first + n - 1; and the scale that all its rows have. */
void  hv_synth_quantized(hv_dtype t, void *dst, const char *name, uint64_t seed, uint64_t first, size_t n);
float hv_synth_scale(hv_dtype t, const struct hv_wspec *s);

#endif
