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

/* Called by models in loops that may last: i of n done. what: "step", "layer", ... */
typedef void hv_report_fn(void *ctx, const char *what, int i, int n);

struct hv_dev {
    const struct hv_backend *backend;
    void          *impl;                /* the backend's own */
    int            kind;                /* HV_HOST, HV_CUDA, HV_DRY: the dev of its tensors */
    int            threads;             /* cpu: OpenMP threads, 1 or more */
    struct hv_err  fault;               /* the first failure of an operation */
    hv_report_fn  *report;              /* may be NULL */
    void          *report_ctx;
    struct {
        uint64_t flops, bytes, launches, weights;       /* weights: bytes of weights read */
    } count;
};

/* Opens "cpu", "cuda", "cuda:1" or "dry". threads 0: as many as the process may use. HV_EDEVICE: not there or not built in.
 * Waits for the lock of a GPU. */
int  hv_dev_open(struct hv_dev **d, const char *name, int threads, struct hv_err *e);
void hv_dev_close(struct hv_dev *d);

/* Device memory; NULL and HV_ENOMEM when there is none. Zeroed pages are not promised. dry: a non-NULL token. */
void *hv_dev_alloc(struct hv_dev *d, size_t bytes, struct hv_err *e);
void  hv_dev_free(struct hv_dev *d, void *p);

/* Waits for everything; returns the first failure since open. */
int hv_dev_sync(struct hv_dev *d, struct hv_err *e);

void hv_dev_report(struct hv_dev *d, const char *what, int i, int n);

#ifdef __cplusplus
}
#endif
#endif
