#include "core/tensor.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

int64_t hv_shape_count(int ndim, const int64_t *shape)
{
    int64_t n = 1;

    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(n, shape[i], &n))
            return -1;
    return n;
}

hv_tensor hv_view(const void *data, hv_dtype t, int ndim, const int64_t *shape)
{
    hv_tensor v = {.data = (void *)(uintptr_t)data, .dtype = t, .dev = HV_HOST, .ndim = (uint8_t)ndim};
    int64_t s = 1;

    assert(ndim >= 0 && ndim <= HV_MAX_DIMS);
    for (int i = ndim - 1; i >= 0; i--) {
        assert(shape[i] >= 0);
        v.shape[i] = shape[i];
        v.stride[i] = s;
        s *= shape[i];
    }
    return v;
}

int64_t hv_count(hv_tensor t)
{
    int64_t n = 1;

    for (int i = 0; i < t.ndim; i++)
        n *= t.shape[i];
    return n;
}

size_t hv_nbytes(hv_tensor t)
{
    return (size_t)hv_count(t) * hv_dtype_size(t.dtype);
}

int hv_is_contiguous(hv_tensor t)
{
    int64_t s = 1;

    for (int i = t.ndim - 1; i >= 0; i--) {
        if (t.shape[i] != 1 && t.stride[i] != s)
            return 0;
        s *= t.shape[i];
    }
    return 1;
}

int hv_same_shape(hv_tensor a, hv_tensor b)
{
    return a.ndim == b.ndim && !memcmp(a.shape, b.shape, a.ndim * sizeof a.shape[0]);
}

static void advance(hv_tensor *t, int64_t elements)
{
    if (t->data)
        t->data = (char *)t->data + elements * (int64_t)hv_dtype_size(t->dtype);
}

hv_tensor hv_slice(hv_tensor t, int dim, int64_t first, int64_t n)
{
    assert(dim >= 0 && dim < t.ndim && first >= 0 && n >= 0 && first + n <= t.shape[dim]);
    advance(&t, first * t.stride[dim]);
    t.shape[dim] = n;
    if (t.scale && dim == 0)
        t.scale += first;
    return t;
}

hv_tensor hv_rows(hv_tensor t, int64_t first, int64_t n)
{
    return hv_slice(t, 0, first, n);
}

hv_tensor hv_cols(hv_tensor t, int64_t first, int64_t n)
{
    return hv_slice(t, t.ndim - 1, first, n);
}

hv_tensor hv_index(hv_tensor t, int64_t i)
{
    t = hv_slice(t, 0, i, 1);
    t.ndim--;
    memmove(t.shape, t.shape + 1, t.ndim * sizeof t.shape[0]);
    memmove(t.stride, t.stride + 1, t.ndim * sizeof t.stride[0]);
    return t;
}

hv_tensor hv_reshape(hv_tensor t, int ndim, const int64_t *shape)
{
    hv_tensor r = t;
    int64_t known = 1, total = hv_count(t);
    int free_dim = -1;

    assert(ndim >= 1 && ndim <= HV_MAX_DIMS);
    for (int i = 0; i < ndim; i++) {
        r.shape[i] = shape[i];
        if (shape[i] < 0)
            free_dim = i;
        else
            known *= shape[i];
    }
    if (free_dim >= 0)
        r.shape[free_dim] = known ? total / known : 0;
    r.ndim = (uint8_t)ndim;
    assert(hv_count(r) == total);

    if (hv_is_contiguous(t)) {
        int64_t s = 1;
        for (int i = ndim - 1; i >= 0; i--) {
            r.stride[i] = s;
            s *= r.shape[i];
        }
        return r;
    }
    /* Not contiguous: walk both shapes from the end; each new dimension must lie within one run of old ones whose strides
     * are those of one block. */
    int i = t.ndim - 1;
    int64_t left = t.shape[i], step = t.stride[i];
    for (int j = ndim - 1; j >= 0; j--) {
        int64_t need = r.shape[j];
        r.stride[j] = step;
        while (need > left) {
            assert(i > 0 && t.stride[i - 1] == step * left);
            i--;
            left *= t.shape[i];
        }
        assert(left % need == 0);
        left /= need;
        step *= need;
        if (left == 1 && i > 0) {
            i--;
            left = t.shape[i];
            step = t.stride[i];
        }
    }
    return r;
}

const char *hv_shape_str(hv_tensor t, char buf[HV_SHAPE_STR])
{
    int n = snprintf(buf, HV_SHAPE_STR, "[");

    for (int i = 0; i < t.ndim; i++)
        n += snprintf(buf + n, HV_SHAPE_STR - (size_t)n, "%s%lld", i ? "," : "", (long long)t.shape[i]);
    snprintf(buf + n, HV_SHAPE_STR - (size_t)n, "]");
    return buf;
}
