/* stream_impl.h - what the files of the streamer share: stream.c (taking, giving, the sequence, the ring), stage.c
 * (from the source to page-locked memory).
 *
 * One mutex guards everything here. Three kinds of threads: the caller's, which takes and gives; one walker, which
 * alone changes the ring and calls the IN lane; readers, which fill slots. */
#ifndef HV_STREAM_IMPL_H
#define HV_STREAM_IMPL_H

#include <pthread.h>

#include "mem/source.h"

#define HV_STREAM_AHEAD  32             /* groups of the sequence that are predicted */
#define HV_STREAM_JOBS   64
#define HV_STREAM_PIECES 24

/* A group's place on the device: in the ring, or for good. */
struct hv_block {
    int     group;
    size_t  at, end;                    /* in the ring, or in the resident memory */
    int     resident;
    int     uses;                       /* takes to come that count on it, and the present one */
    int     filling;                    /* copies are still to be issued */
    int     given;                      /* `done` was recorded */
    void   *ready, *done;               /* events: of the IN lane behind its copies, of the compute lane behind its use */
    void  **wait;                       /* events of what lay here before; until the first copy is issued */
    int     waits;
};

/* Bytes of a part that are read as one: [first, first + n) of part p and, where raw, of those behind it. */
struct hv_piece {
    const struct hv_part *part;
    size_t                first, n, at; /* at: in the job */
};

enum hv_job_state { HV_JOB_UNREAD, HV_JOB_READING, HV_JOB_READ };

/* One copy to the device. */
struct hv_job {
    struct hv_block  *block;
    size_t            at, bytes;        /* in the group */
    char             *src;              /* page-locked: a slot, an image, or the mapped file */
    int               slot;             /* -1: none */
    int               first, last;      /* of the block */
    enum hv_job_state state;
    int               pieces;
    struct hv_piece   piece[HV_STREAM_PIECES];
};

enum hv_window { HV_WINDOW_NEW, HV_WINDOW_LOCKED, HV_WINDOW_REFUSED };

/* What is known of a group. */
struct hv_span {
    int             n;
    struct hv_part *part;
    size_t          bytes;
    int             keep;
    char           *image;              /* a page-locked copy, or NULL */
    int             drop;               /* its pages in the cache are given back behind the walk */
    int             announced;
    size_t          place;              /* resident: in that memory */
};

/* Where a tensor's values are in its group and, if it is split, in the next one. */
struct hv_home {
    size_t   at[2], scale_at[2];
    hv_dtype dtype;
};

struct hv_stream {
    struct hv_weights *w;
    struct hv_dev     *dev;
    struct hv_stream_opts o;            /* keep is not used */
    struct hv_span    *span;            /* [groups] */
    struct hv_part    *parts;
    struct hv_home    *home;            /* [tensors] */
    struct hv_stream_stats stats;
    struct hv_err      error;           /* of the walker or a reader; the walk has ended */

    pthread_mutex_t    mutex;
    pthread_cond_t     walk, read, arrived;     /* something to do for the walker, for readers; a group is there */
    pthread_t          walker, *reader;
    int                walking, readers, stop;

    /* The ring. */
    struct hv_block  **block;           /* those in the ring, and resident ones */
    int                blocks, block_cap;
    struct hv_block  **of;              /* [groups]: where the group is or will be; NULL */
    size_t             head;
    void             **spare;           /* events that nobody waits for */
    int                spares, spare_cap, events;          /* events: that exist */

    unsigned           turns;           /* times that the walker was woken: it waits only if nothing happened since it looked */

    /* The sequence: what was predicted and not yet taken. */
    struct { struct hv_block *block; int group, wrapped; } item[HV_STREAM_AHEAD];
    int                first, items;
    int                tail;            /* the group that was predicted or taken last; -1: none yet */
    int                forced, wrap;    /* the next one, whatever comes before, or -1; behind the last one */
    int                wanted;          /* what the caller waits for, or -1 */

    /* Copies in their order: [out, in). */
    struct hv_job      job[HV_STREAM_JOBS];
    unsigned           in, out;
    struct hv_block   *cur;             /* whose jobs are being made */
    int                cur_part;
    size_t             cur_at;          /* in that part */

    /* stage.c */
    char              *slots;
    size_t             slot_bytes;
    void             **slot_event;
    int                n_slots;
    unsigned           slot_in, slot_out;
    int                direct;          /* a descriptor around the page cache, or -1 */
    const char        *map;             /* the mapped file, or NULL */
    size_t             window_bytes;
    uint8_t           *window;          /* enum hv_window */
    int                windows;
    char             **blob;
    int                blobs;
    char              *poison;          /* page-locked, all 0xFF */

    /* Of the caller's thread alone. */
    struct hv_block  **held;            /* [groups] */
};

/* Something changed that the walker may wait for. With the mutex. */
static inline void hv_stream_wake(struct hv_stream *s)
{
    s->turns++;
    pthread_cond_broadcast(&s->walk);
}

/* ---- stream.c ---- */

hv_tensor hv_stream_view(struct hv_weights *w, int tensor, int64_t row);        /* row: one that is wanted; -1: of any group taken */
void      hv_stream_take(struct hv_weights *w, const char *name);
void      hv_stream_give(struct hv_weights *w, const char *name);

/* ---- stage.c ---- */

/* Mode, slots, windows, images and readers; hv_stage_close undoes it when no lane uses them any more. */
int  hv_stage_open(struct hv_stream *s, struct hv_err *e);
void hv_stage_stop(struct hv_stream *s);                /* ends the readers */
void hv_stage_close(struct hv_stream *s);

/* The next job of s->cur into the queue; 0: there is no room now. With the mutex, which is left and taken again. */
int hv_stage_next(struct hv_stream *s);

/* Advice on a group's pages. Without the mutex. */
void hv_stage_announce(struct hv_stream *s, int group);
void hv_stage_drop(struct hv_stream *s, int group);

#endif
