/* Numbers of any dtype as doubles. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "hv-tensor.h"

#define WIDEN(T)                                                                                                       \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        T v;                                                                                                           \
        memcpy(&v, (const char *)src + i * sizeof v, sizeof v);                                                        \
        dst[i] = (double)v;                                                                                            \
    }                                                                                                                  \
    return

void to_f64(double *dst, hv_dtype t, const void *src, size_t n)
{
    float wide[256];

    switch (t) {
    case HV_F64: memcpy(dst, src, n * sizeof *dst); return;
    case HV_I64: WIDEN(int64_t);
    case HV_U64: WIDEN(uint64_t);
    case HV_I32: WIDEN(int32_t);
    case HV_U32: WIDEN(uint32_t);
    default: break;
    }
    for (size_t at = 0; at < n; at += 256) {
        const size_t k = n - at < 256 ? n - at : 256;
        hv_to_f32(wide, t, (const char *)src + at * hv_dtype_size(t), k);
        for (size_t i = 0; i < k; i++)
            dst[at + i] = (double)wide[i];
    }
}

#define NARROW(T, LO, HI, MIN, MAX)                                                                                    \
    for (size_t i = 0; i < n; i++) {                                                                                   \
        const double x = rint(src[i]);                                                                                 \
        const T v = isnan(x) ? 0 : x < (LO) ? (MIN) : x >= (HI) ? (MAX) : (T)x;                                         \
        memcpy((char *)dst + i * sizeof v, &v, sizeof v);                                                              \
    }                                                                                                                  \
    return

void from_f64(hv_dtype t, void *dst, const double *src, size_t n)
{
    switch (t) {
    case HV_F64: memcpy(dst, src, n * sizeof *src); return;
    case HV_I64: NARROW(int64_t, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX);
    case HV_U64: NARROW(uint64_t, 0, 0x1p64, 0, UINT64_MAX);
    case HV_I32: NARROW(int32_t, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX);
    case HV_U32: NARROW(uint32_t, 0, 0x1p32, 0, UINT32_MAX);
    default: break;
    }
    for (size_t i = 0; i < n; i++) {
        const float f = (float)src[i];
        hv_from_f32(t, (char *)dst + i * hv_dtype_size(t), &f, 1);
    }
}

size_t entry_count(const struct hv_entry *t)
{
    return (size_t)(t->end - t->begin) / hv_dtype_size(t->dtype);
}

int wanted(const struct hv_strs *keys, const char *name)
{
    for (int i = 0; i < keys->n; i++)
        if (!strcmp(keys->v[i], name))
            return 1;
    return !keys->n;
}

int all_there(const struct hv_strs *keys, struct hv_in *const *in, int n, struct hv_err *e)
{
    for (int k = 0; k < keys->n; k++) {
        int found = 0;
        for (int i = 0; i < n; i++)
            found |= hv_in_find(in[i], keys->v[k]) != NULL;
        if (!found)
            return hv_fail(e, HV_EINPUT, "%s%s: no tensor '%s'", hv_in_path(in[0]), n > 1 ? " and the others" : "", keys->v[k]);
    }
    return 0;
}

const char *index_text(const struct hv_entry *t, int64_t i, char buf[192])
{
    int64_t at[HV_ST_DIMS];
    size_t n = 1;

    for (int k = t->ndim - 1; k >= 0; k--) {
        at[k] = i % t->shape[k];
        i /= t->shape[k];
    }
    strcpy(buf, "[");
    for (int k = 0; k < t->ndim; k++)
        n += (size_t)snprintf(buf + n, 192 - n, "%s%lld", k ? "," : "", (long long)at[k]);
    snprintf(buf + n, 192 - n, "]");
    return buf;
}
