/* stream.h - weights that pass through a ring of device memory, fetched ahead by a thread, group by group.
 *
 *     hv_weights_open(&w, dev, path, &list, e);                        // the list names groups: hv_wlist_group
 *     ... the arena is there, with rows "ring" and "resident" ...
 *     hv_weights_stream(w, &(struct hv_stream_opts){.ring = ring, .resident = resident, .keep = keep}, e);
 *     hv_weights_take(w, "double.3.qkv");                              // the compute lane waits for its arrival
 *     hv_tensor m = hv_weight(w, "double_blocks.%d.img_attn_qkv.weight", 3);
 *     hv_weights_give(w, "double.3.qkv");                              // its place may be used again
 *     hv_weights_unstream(w);                                          // before the arena is closed
 *
 * The thread walks a predicted sequence: the groups of the list in order, and after the last one those of a step again
 * (hv_wlist_cycle), or what hv_weights_next says. It places each group in the ring, first in, first out, lets the IN
 * lane wait for the work on what lay there, and copies. A take that was not predicted is right as well, only slower:
 * the walk starts again there. A group that is still in the ring, or resident, is not copied again.
 *
 * The ring holds at least the largest group; one group is taken at a time. More at a time is allowed where they fit
 * beside each other, else it is a fault of the device (resident groups always fit).
 *
 * In the ring vectors are BF16 (as stored) or F32 (all others); matrices I8 and F8_E4M3 as stored, others BF16 or, where
 * `matrices` says so, F16: converted unless they are stored that way. On a device of kind HV_HOST vectors are F32 and matrices as stored, unless `convert` is set, so
 * that results are those of weights used in place. Every tensor starts at a multiple of HV_ALIGN, a scale behind its
 * matrix.
 *
 * A failure of the thread (a file that was cut short: HV_EIO) is a fault of the device at the next take that waits. */
#ifndef HV_STREAM_H
#define HV_STREAM_H

#include "core/err.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_weights;

/* From where groups are copied.
 *
 *     PIN       page-locked copies of the groups of the steps, made at once; where host_budget is too small, PART
 *     PART      the same for as many groups as it allows, evenly spread; the others as by MAP
 *     REGISTER  the mapped file itself, page-locked in windows of 1 GiB, each when it is first read. Windows that the
 *               system refuses are read as by MAP; groups that are converted are copied as by PIN
 *     MAP       read through the page cache into page-locked slots, by several threads
 *     DIRECT    the same around the page cache (O_DIRECT)
 *     AUTO      REGISTER where the device takes mappings and the file is no larger than half of the memory; else MAP, and
 *               so with `once` and 8 readers or more, which is faster than locking pages for one use. HV_HOST: MAP
 *
 * Groups before the steps are used once and never pinned; with `once` all of them: PIN and PART are MAP. A pipe is read like MAP. */
enum hv_stream_mode {
    HV_STREAM_AUTO, HV_STREAM_PIN, HV_STREAM_PART, HV_STREAM_REGISTER, HV_STREAM_MAP, HV_STREAM_DIRECT, HV_STREAM_MODES
};

struct hv_stream_opts {
    hv_tensor      ring;                /* HV_BYTES on the device: the largest group that is not resident, or more */
    hv_tensor      resident;            /* HV_BYTES: the sum of the groups that are; HV_NO where there are none */
    const uint8_t *keep;                /* [groups], 1: resident; NULL: none. Copied */
    enum hv_stream_mode mode;
    uint64_t       host_budget;         /* bytes of page-locked memory, slots included; 0: half of the memory */
    int            threads;             /* that read; 0: 2 to 8, as there are processors; with `once` to 16 */
    size_t         chunk;               /* bytes of a slot, a multiple of 4096; 0: 4 MiB */
    int            convert;             /* HV_HOST: converts as for a GPU */
    hv_dtype       matrices;            /* of those that are not quantized: HV_F16 or HV_BF16; HV_NONE reads as HV_BF16 */
    int            once;                /* 1: the sequence ends with the last group, and no group is pinned */

    /* Tests of what must not depend on time: seconds that the IN lane is held up before each group's copies, and the
     * compute lane after it waited for a group. poison: space that is given and not wanted again soon is filled with
     * 0xFF (NaN). */
    double         delay_copy, delay_compute;
    int            poison;
    size_t         window;              /* bytes of a window of REGISTER, a multiple of 4096; 0: 1 GiB */
};

/* Streams from now on; ring and resident memory belong to the thread until hv_weights_unstream. Called again, it starts
 * anew with other memory. No group may be taken. HV_EINPUT: the ring or the resident memory is too small (the group is
 * named), or the list has no groups; HV_ENOMEM: no page-locked memory for the slots. On the dry device only sizes are
 * checked. */
int hv_weights_stream(struct hv_weights *w, const struct hv_stream_opts *o, struct hv_err *e);

/* Stops the thread, waits for its copies, unlocks what was locked. Nothing happens without a stream. */
void hv_weights_unstream(struct hv_weights *w);

/* 1 between the two. */
int hv_weights_streamed(const struct hv_weights *w);

/* Where the sequence goes on after the last group, from its next passing on: "single.39.qkv" when the next forward is a
 * cached one. Call it as early as it is known. An unknown name is a fault of the device; without a stream nothing
 * happens. */
void hv_weights_next(struct hv_weights *w, const char *group);

struct hv_stream_stats {
    uint64_t bytes, copies, groups;     /* copied to the device so far */
    uint64_t pinned, locked;            /* bytes of page-locked memory of our own; of the mapped file */
    double   wait;                      /* seconds that hv_weights_take waited on the host: for space and for reading */
    enum hv_stream_mode mode;           /* in use: never AUTO; MAP where REGISTER or DIRECT was refused */
};

/* Zeros without a stream. */
void hv_weights_stats(const struct hv_weights *w, struct hv_stream_stats *s);

const char *hv_stream_mode_name(enum hv_stream_mode m);                         /* "auto", "pin", .. */

#ifdef __cplusplus
}
#endif
#endif
