#include "ops/dev.h"

#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/lock.h"
#include "ops/backend.h"

/* The compiled backends: the one place that knows which there are. */
static const struct hv_backend *const backends[] = {
    &hv_backend_cpu,
    &hv_backend_dry,
#ifdef HV_CUDA_BACKEND
    &hv_backend_cuda,
#endif
};

/* An operation without an entry would be a crash in the middle of a forward: it is named and refused at open. */
static const char *missing_op(const struct hv_backend *b)
{
#define LACKS(op) if (!b->op) return #op
    LACKS(open); LACKS(close); LACKS(alloc); LACKS(free); LACKS(sync); LACKS(upload); LACKS(download); LACKS(copy);
    LACKS(fill); LACKS(gather_rows); LACKS(dequantize); LACKS(linears); LACKS(row_stats); LACKS(pin); LACKS(unpin); LACKS(lock); LACKS(unlock);
    LACKS(move); LACKS(event_open); LACKS(event_close); LACKS(event_record); LACKS(event_wait); LACKS(event_sync);
    LACKS(delay); LACKS(elapsed); LACKS(info); LACKS(add); LACKS(activation); LACKS(swiglu); LACKS(linear); LACKS(attention);
    LACKS(layer_norm); LACKS(rms_norm); LACKS(norm_modulate); LACKS(qk_norm_rope); LACKS(rope_half);
    LACKS(gated_add); LACKS(masked_add); LACKS(conv); LACKS(group_sums); LACKS(group_norm); LACKS(max_pool);
    LACKS(upsample2); LACKS(patchify); LACKS(unpatchify);
#undef LACKS
    return NULL;
}

int hv_dev_open(struct hv_dev **out, const char *name, int threads, struct hv_err *e)
{
    const char *colon = strchr(name, ':');
    const size_t n = colon ? (size_t)(colon - name) : strlen(name);
    const struct hv_backend *b = NULL;
    char *end = NULL;
    const long index = colon ? strtol(colon + 1, &end, 10) : 0;

    *out = NULL;
    if (colon && (!colon[1] || *end || index < 0 || index > 63))
        return hv_fail(e, HV_EUSAGE, "device '%s': expected cpu, cuda, cuda:N or dry", name);
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strlen(backends[i]->name) == n && !memcmp(backends[i]->name, name, n))
            b = backends[i];
    if (!b && n == 4 && !memcmp(name, "cuda", 4))
        return hv_fail(e, HV_EDEVICE, "device '%s': this build has no CUDA backend", name);
    if (!b || (colon && b->kind != HV_CUDA))
        return hv_fail(e, HV_EUSAGE, "device '%s': expected cpu, cuda, cuda:N or dry", name);
    if (missing_op(b))
        return hv_fail(e, HV_EDEVICE, "device '%s': the backend lacks the operation %s", name, missing_op(b));

    /* Without memory of the device: a process that waits for its turn must not keep any of it. */
    char key[64] = "", what[32];
    if (b->identify && b->identify((int)index, key, sizeof key, e))
        return e->code;

    struct hv_dev *d = calloc(1, sizeof *d);
    if (!d)
        return hv_fail(e, HV_ENOMEM, "device '%s': out of memory", name);
    d->backend = b;
    d->kind = b->kind;
    d->threads = threads > 0 ? threads : omp_get_num_procs();
    snprintf(what, sizeof what, "%s:%ld", b->name, index);
    if (*key)
        d->lock = hv_lock_take(key, what);
    if (b->open(d, (int)index, e)) {
        hv_lock_give(d->lock);
        free(d);
        return e->code;
    }
    *out = d;
    return 0;
}

void hv_dev_close(struct hv_dev *d)
{
    if (!d)
        return;
    d->backend->close(d);
    hv_lock_give(d->lock);
    free(d);
}

void *hv_dev_alloc(struct hv_dev *d, size_t bytes, struct hv_err *e)
{
    void *p = d->backend->alloc(d, bytes ? bytes : 1);

    if (!p)
        hv_fail(e, HV_ENOMEM, "%s: out of memory: %zu MiB requested", d->backend->name, bytes >> 20);
    return p;
}

void hv_dev_free(struct hv_dev *d, void *p)
{
    if (p)
        d->backend->free(d, p);
}

int hv_dev_sync(struct hv_dev *d, struct hv_err *e)
{
    d->backend->sync(d);
    return d->fault.code ? hv_fail(e, d->fault.code, "%s", d->fault.msg) : 0;
}

/* ---- lanes ---- */

void *hv_dev_pin(struct hv_dev *d, size_t bytes, struct hv_err *e)
{
    void *p = d->backend->pin(d, bytes ? bytes : 1);

    if (!p)
        hv_fail(e, HV_ENOMEM, "host: no page-locked memory: %zu MiB requested", bytes >> 20);
    return p;
}

void hv_dev_unpin(struct hv_dev *d, void *p)
{
    if (p)
        d->backend->unpin(d, p);
}

int hv_dev_lock(struct hv_dev *d, const void *p, size_t bytes)
{
    return d->backend->lock(d, p, bytes);
}

void hv_dev_unlock(struct hv_dev *d, const void *p)
{
    d->backend->unlock(d, p);
}

void hv_dev_move(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                 size_t width, size_t rows)
{
    if (width && rows)
        d->backend->move(d, lane, dst, dst_pitch, src, src_pitch, width, rows);
}

void *hv_dev_event(struct hv_dev *d, struct hv_err *e)
{
    void *p = d->backend->event_open(d);

    if (!p)
        hv_fail(e, HV_EDEVICE, "%s: no event", d->backend->name);
    return p;
}

void hv_dev_event_close(struct hv_dev *d, void *event)
{
    if (event)
        d->backend->event_close(d, event);
}

void hv_dev_record(struct hv_dev *d, void *event, enum hv_lane lane)
{
    d->backend->event_record(d, event, lane);
}

void hv_dev_wait(struct hv_dev *d, void *event, enum hv_lane lane)
{
    d->backend->event_wait(d, event, lane);
}

void hv_dev_event_sync(struct hv_dev *d, void *event)
{
    d->backend->event_sync(d, event);
}

double hv_dev_elapsed(struct hv_dev *d, void *from, void *to)
{
    return d->backend->elapsed(d, from, to);
}

void hv_dev_delay(struct hv_dev *d, enum hv_lane lane, double seconds)
{
    d->backend->delay(d, lane, seconds);
}

int hv_dev_info(struct hv_dev *d, struct hv_dev_info *info, struct hv_err *e)
{
    *info = (struct hv_dev_info){0};
    return d->backend->info(d, info) ? hv_fail(e, HV_EDEVICE, "%s: the device does not answer", d->backend->name) : 0;
}

const char *hv_attention_name(enum hv_attention a)
{
    static const char *const name[HV_ATTS] = {"auto", "math", "flash", "cudnn", "sage", "sage-fp8"};

    return (unsigned)a < HV_ATTS ? name[a] : "?";
}

void hv_dev_report(struct hv_dev *d, const char *what, int i, int n)
{
    if (d->report)
        d->report(d->report_ctx, what, i, n);
}

void hv_dev_fault(struct hv_dev *d, int code, const char *fmt, ...)
{
    va_list ap;

    /* Lanes are used by more than one thread: whoever comes first writes the message. */
    if (__atomic_exchange_n(&d->faulted, 1, __ATOMIC_ACQ_REL))
        return;
    va_start(ap, fmt);
    vsnprintf(d->fault.msg, sizeof d->fault.msg, fmt, ap);
    va_end(ap);
    __atomic_store_n(&d->fault.code, code, __ATOMIC_RELEASE);
}
