/* npy.h - NumPy's .npy: one array, its header and its bytes.
 *
 *     struct hv_npy a = {0};
 *     if (!hv_npy_read(&a, "mel.npy", e)) ... hv_view(a.data, a.dtype, a.ndim, a.shape) ...
 *     hv_npy_close(&a);
 *
 * Versions 1, 2 and 3, little-endian, C order. There is no bf16 or f8 in the format: hv_npy_dtype says what they become. */
#ifndef HV_NPY_H
#define HV_NPY_H

#include <stddef.h>

#include "core/err.h"
#include "core/tensor.h"
#include "io/st.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_npy {
    hv_dtype dtype;
    int      ndim;
    int64_t  shape[HV_ST_DIMS];
    void    *data;                      /* owned */
};

/* 1 if the first bytes are those of the format. */
int hv_npy_is(const void *bytes, size_t n);

/* HV_EIO: cannot be read. HV_EINPUT: malformed, or not as long as its shape needs. HV_EUNSUP: big-endian, Fortran order
 * (of 2 or more dimensions), a dtype that safetensors has not. Messages start with the path. */
int  hv_npy_read(struct hv_npy *a, const char *path, struct hv_err *e);
int  hv_npy_parse(struct hv_npy *a, const void *bytes, size_t n, struct hv_err *e);
void hv_npy_close(struct hv_npy *a);

/* The dtype in which a tensor is stored: itself, or F32 for BF16 and F8. */
hv_dtype hv_npy_dtype(hv_dtype t);

/* The header of an array: magic, version, dictionary, padded to a multiple of 64. Returns its length, 0: size is too small. */
size_t hv_npy_header(char *buf, size_t size, hv_dtype t, int ndim, const int64_t *shape);

#ifdef __cplusplus
}
#endif
#endif
