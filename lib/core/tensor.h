/* tensor.h - a view of numbers that somebody else owns: data, dtype, shape, strides. Passed by value, never allocates.
 *
 *     hv_tensor x = hv_view(buf, HV_F32, 2, (int64_t[]){ rows, hidden });
 *     hv_tensor q = hv_cols(hv_rows(x, 0, 16), 128, 64);           // 16 rows, columns 128..191
 *
 * Dimension 0 is the slowest. Strides are in elements; every tensor that an operation accepts has stride 1 in its last
 * dimension. Arguments out of range are errors of the caller in this repository (assert), not of a user. */
#ifndef HV_TENSOR_H
#define HV_TENSOR_H

#include "core/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_MAX_DIMS 5

enum { HV_HOST, HV_CUDA, HV_DRY };

typedef struct {
    void        *data;                  /* NULL on the dry device */
    const float *scale;                 /* quantized dtypes: one scale a row (dimension 0); else NULL */
    hv_dtype     dtype;
    uint8_t      dev;                   /* HV_HOST, HV_CUDA, HV_DRY */
    uint8_t      ndim;
    uint8_t      deq_bf16;              /* quantized: scale * q is rounded to bf16 (weights imported from such files) */
    int64_t      shape[HV_MAX_DIMS];
    int64_t      stride[HV_MAX_DIMS];   /* in elements */
} hv_tensor;

/* A contiguous view of data on the host. */
hv_tensor hv_view(const void *data, hv_dtype t, int ndim, const int64_t *shape);

int64_t hv_count(hv_tensor t);                  /* elements; 1 for ndim 0 */
size_t  hv_nbytes(hv_tensor t);                 /* elements * size: the bytes of a contiguous copy */
int     hv_is_contiguous(hv_tensor t);
int     hv_same_shape(hv_tensor a, hv_tensor b);

hv_tensor hv_rows(hv_tensor t, int64_t first, int64_t n);           /* t[first : first+n] in dimension 0 */
hv_tensor hv_cols(hv_tensor t, int64_t first, int64_t n);           /* t[.., first : first+n] in the last dimension */
hv_tensor hv_slice(hv_tensor t, int dim, int64_t first, int64_t n); /* the same in any dimension */
hv_tensor hv_index(hv_tensor t, int64_t i);                         /* t[i]: one dimension less */

/* The same elements under another shape. Leading dimensions may be merged or split when the strides allow it; the last
 * dimension must stay whole, or t be contiguous. One entry may be -1: what is left. */
hv_tensor hv_reshape(hv_tensor t, int ndim, const int64_t *shape);

/* "[129,10,5,384]" into buf; returns buf. */
#define HV_SHAPE_STR 112
const char *hv_shape_str(hv_tensor t, char buf[HV_SHAPE_STR]);

/* Product of shape; -1 when it or an entry is negative or it passes INT64_MAX. */
int64_t hv_shape_count(int ndim, const int64_t *shape);

#ifdef __cplusplus
}
#endif
#endif
