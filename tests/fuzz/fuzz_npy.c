/* NumPy arrays from hostile bytes. */
#include <stddef.h>
#include <stdint.h>

#include "io/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hv_npy a;
    struct hv_err e = {0};
    static volatile uint8_t sum;

    if (!hv_npy_parse(&a, data, n, &e)) {
        const size_t bytes = (size_t)hv_shape_count(a.ndim, a.shape) * hv_dtype_size(a.dtype);
        for (size_t i = 0; i < bytes; i++)
            sum = (uint8_t)(sum + ((const uint8_t *)a.data)[i]);
    }
    hv_npy_close(&a);
    return 0;
}
