/* backend.h - the table that a backend fills in. Arguments were checked by ops.c; a failure goes to hv_dev_fault. */
#ifndef HV_BACKEND_H
#define HV_BACKEND_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_backend {
    const char *name;                   /* "cpu", "cuda", "dry" */
    int         kind;                   /* HV_HOST, HV_CUDA, HV_DRY */

    /* What tells this device from all others of the machine, whatever its number in this process: the key of its lock. Takes
     * nothing from the device. NULL: devices of this backend are not locked. HV_EDEVICE: it is not there. */
    int   (*identify)(int index, char *buf, size_t n, struct hv_err *e);
    int   (*open)(struct hv_dev *d, int index, struct hv_err *e);       /* sets d->impl */
    void  (*close)(struct hv_dev *d);
    void *(*alloc)(struct hv_dev *d, size_t bytes);                     /* NULL: none left */
    void  (*free)(struct hv_dev *d, void *p);
    void  (*sync)(struct hv_dev *d);

    /* Lanes, events, pages: see dev.h. On a host all of it happens at once. */
    void *(*pin)(struct hv_dev *d, size_t bytes);
    void  (*unpin)(struct hv_dev *d, void *p);
    int   (*lock)(struct hv_dev *d, const void *p, size_t bytes);
    void  (*unlock)(struct hv_dev *d, const void *p);
    void  (*move)(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                  size_t width, size_t rows);
    void *(*event_open)(struct hv_dev *d);
    void  (*event_close)(struct hv_dev *d, void *event);
    void  (*event_record)(struct hv_dev *d, void *event, enum hv_lane lane);
    void  (*event_wait)(struct hv_dev *d, void *event, enum hv_lane lane);
    void  (*event_sync)(struct hv_dev *d, void *event);
    void  (*delay)(struct hv_dev *d, enum hv_lane lane, double seconds);
    double (*elapsed)(struct hv_dev *d, void *from, void *to);
    int   (*info)(struct hv_dev *d, struct hv_dev_info *info);

    void (*upload)(struct hv_dev *, hv_tensor dst, hv_tensor src);
    void (*download)(struct hv_dev *, hv_tensor dst, hv_tensor src);
    void (*copy)(struct hv_dev *, hv_tensor y, hv_tensor x);
    void (*fill)(struct hv_dev *, hv_tensor y, float value);
    void (*dequantize)(struct hv_dev *, hv_tensor y, hv_tensor w);
    void (*gather_rows)(struct hv_dev *, hv_tensor y, hv_tensor table, const int32_t *ids);
    void (*add)(struct hv_dev *, hv_tensor y, hv_tensor a, hv_tensor b);
    void (*activation)(struct hv_dev *, hv_tensor y, hv_tensor x, enum hv_act act);
    void (*swiglu)(struct hv_dev *, hv_tensor y, hv_tensor gate, hv_tensor up);
    void (*linear)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);
    void (*linears)(struct hv_dev *, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                    enum hv_act act);
    void (*attention)(struct hv_dev *, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
    void (*layer_norm)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps);
    void (*rms_norm)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor weight, float eps);
    void (*row_stats)(struct hv_dev *, hv_tensor stat, hv_tensor x, float eps);
    void (*norm_modulate)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale);
    void (*qk_norm_rope)(struct hv_dev *, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *);
    void (*rope_half)(struct hv_dev *, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin);
    void (*gated_add)(struct hv_dev *, hv_tensor x, hv_tensor gate, hv_tensor y);
    void (*masked_add)(struct hv_dev *, hv_tensor x, hv_tensor mask, hv_tensor y);
    void (*conv)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p);
    void (*group_sums)(struct hv_dev *, hv_tensor sums, hv_tensor x);
    void (*group_norm)(struct hv_dev *, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                       hv_tensor bias, float eps, enum hv_act act);
    void (*max_pool)(struct hv_dev *, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode);
    void (*upsample2)(struct hv_dev *, hv_tensor y, hv_tensor x);
    void (*patchify)(struct hv_dev *, hv_tensor y, hv_tensor x, const int patch[3]);
    void (*unpatchify)(struct hv_dev *, hv_tensor y, hv_tensor x, const int patch[3]);
};

/* Keeps the first failure of an operation. */
void hv_dev_fault(struct hv_dev *d, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

extern const struct hv_backend hv_backend_dry;
extern const struct hv_backend hv_backend_cpu;
#ifdef HV_CUDA_BACKEND
extern const struct hv_backend hv_backend_cuda;
#endif

#ifdef __cplusplus
}
#endif
#endif
