/* dev.h - an open device: its backend, its first error, its counters.
 *
 *     struct hv_dev *d = NULL;
 *     if (!hv_dev_open(&d, "cpu", threads, e)) { ... operations ...; rc = hv_dev_sync(d, e); }
 *     hv_dev_close(d);
 *
 * "cpu" and "cuda[:N]" compute; "dry" computes nothing: it checks shapes and counts, with tensors whose data is NULL.
 * Operations (ops.h) return void. The first that fails is kept here with its name and shapes, later ones return at once,
 * and hv_dev_sync reports it. */
#ifndef HV_DEV_H
#define HV_DEV_H

#include "core/err.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_backend;
struct hv_profile;

/* Called by models in loops that may last: i of n done. what: "step", "layer", ... */
typedef void hv_report_fn(void *ctx, const char *what, int i, int n);

/* Back ends of attention. AUTO: the fastest exact one that the device has. */
enum hv_attention { HV_ATT_AUTO, HV_ATT_MATH, HV_ATT_FLASH, HV_ATT_CUDNN, HV_ATT_SAGE, HV_ATT_SAGE_FP8, HV_ATTS };

/* Queues of a device. Work of one lane is done in order; lanes overlap, events order them. On the cpu everything is done
 * when its call returns. IN carries weights, STAGE and OUT activations that live on the host. */
enum hv_lane { HV_LANE_COMPUTE, HV_LANE_IN, HV_LANE_STAGE, HV_LANE_OUT, HV_LANES };

struct hv_dev_info {
    char     name[96];
    int      arch;                      /* compute capability: 90 for 9.0; 0 on the cpu */
    int      units;                     /* multiprocessors */
    uint64_t total, free;               /* bytes of the device, now */
    uint64_t context;                   /* bytes that opening the device took: context, kernels, handles */
    int      map_lock;                  /* 1: hv_dev_lock takes read-only mappings of files */
    int      cudnn;                     /* version of the library found, 0: none */
};

struct hv_dev {
    const struct hv_backend *backend;
    void          *impl;                /* the backend's own */
    int            kind;                /* HV_HOST, HV_CUDA, HV_DRY: the dev of its tensors */
    int            lock;                /* of a GPU: core/lock.h */
    int            threads;             /* cpu: OpenMP threads, 1 or more */
    struct hv_err  fault;               /* the first failure of an operation */
    int            faulted;             /* taken by the thread that writes it */
    enum hv_attention attention;        /* set by whoever opened the device */
    int            fp8;                 /* 1: hv_linear with F8_E4M3 weights multiplies fp8 by fp8 */
    hv_tensor      scratch;             /* cuda: HV_BYTES for matrix products, of the arena; set by the network */
    struct hv_profile *profile;         /* of profile.h; NULL: none */
    hv_report_fn  *report;              /* may be NULL */
    void          *report_ctx;
    struct {
        uint64_t flops, bytes, launches, weights;       /* weights: bytes of weights read */
    } count;
};

/* Opens "cpu", "cuda", "cuda:1" or "dry". threads 0: as many as the process may use. HV_EDEVICE: not there or not built in.
 * Waits for the lock of a GPU (core/lock.h), which hv_dev_close gives back. */
int  hv_dev_open(struct hv_dev **d, const char *name, int threads, struct hv_err *e);
void hv_dev_close(struct hv_dev *d);

/* Device memory; NULL and HV_ENOMEM when there is none. Zeroed pages are not promised. dry: a non-NULL token. */
void *hv_dev_alloc(struct hv_dev *d, size_t bytes, struct hv_err *e);
void  hv_dev_free(struct hv_dev *d, void *p);

/* Waits for everything; returns the first failure since open. */
int hv_dev_sync(struct hv_dev *d, struct hv_err *e);

/* Keeps a failure, if it is the first one. Any thread. */
void hv_dev_fault(struct hv_dev *d, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- memory of the host that a device copies from, and copies beside the computation ----
 * These calls may come from any thread; all else belongs to the thread that opened the device. */

/* Page-locked memory; the cpu gives plain pages. NULL and HV_ENOMEM when there is none. */
void *hv_dev_pin(struct hv_dev *d, size_t bytes, struct hv_err *e);
void  hv_dev_unpin(struct hv_dev *d, void *p);

/* Locks pages that are there already, for reading: a mapped file, or memory. 0, or HV_EUNSUP where the system refuses. */
int  hv_dev_lock(struct hv_dev *d, const void *p, size_t bytes);
void hv_dev_unlock(struct hv_dev *d, const void *p);

/* Copies rows of `width` bytes, either way, in a lane. The host's side must be locked, and stay until the lane is past. */
void hv_dev_move(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                 size_t width, size_t rows);

/* Events: record marks a place in a lane; wait makes a lane wait for it, sync the calling thread. An event never recorded
 * is past. */
void  *hv_dev_event(struct hv_dev *d, struct hv_err *e);
void   hv_dev_event_close(struct hv_dev *d, void *event);
void   hv_dev_record(struct hv_dev *d, void *event, enum hv_lane lane);
void   hv_dev_wait(struct hv_dev *d, void *event, enum hv_lane lane);
void   hv_dev_event_sync(struct hv_dev *d, void *event);
double hv_dev_elapsed(struct hv_dev *d, void *from, void *to);         /* seconds between two events that are past */

/* Holds a lane up: for tests of what must not depend on time. */
void hv_dev_delay(struct hv_dev *d, enum hv_lane lane, double seconds);

int hv_dev_info(struct hv_dev *d, struct hv_dev_info *info, struct hv_err *e);

const char *hv_attention_name(enum hv_attention a);                     /* "auto", "math", .. */

void hv_dev_report(struct hv_dev *d, const char *what, int i, int n);

#ifdef __cplusplus
}
#endif
#endif
