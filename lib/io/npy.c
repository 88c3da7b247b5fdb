#include "io/npy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char magic[6] = "\x93NUMPY";

static const struct { const char *descr; hv_dtype t; } types[] = {
    {"|b1", HV_BOOL}, {"|u1", HV_U8},  {"|i1", HV_I8},  {"<u2", HV_U16}, {"<i2", HV_I16}, {"<f2", HV_F16}, {"<u4", HV_U32},
    {"<i4", HV_I32},  {"<f4", HV_F32}, {"<u8", HV_U64}, {"<i8", HV_I64}, {"<f8", HV_F64},
};

int hv_npy_is(const void *bytes, size_t n)
{
    return n >= sizeof magic && !memcmp(bytes, magic, sizeof magic);
}

hv_dtype hv_npy_dtype(hv_dtype t)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].t == t)
            return t;
    return HV_F32;
}

void hv_npy_close(struct hv_npy *a)
{
    free(a->data);
    *a = (struct hv_npy){0};
}

size_t hv_npy_header(char *buf, size_t size, hv_dtype t, int ndim, const int64_t *shape)
{
    const char *descr = "<f4";
    char dict[400];
    int n;

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].t == t)
            descr = types[i].descr;
    n = snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (int i = 0; i < ndim; i++)
        n += snprintf(dict + n, sizeof dict - (size_t)n, "%lld%s", (long long)shape[i], i + 1 < ndim ? ", " : ndim == 1 ? "," : "");
    n += snprintf(dict + n, sizeof dict - (size_t)n, "), }");
    const size_t total = (10 + (size_t)n + 1 + 63) / 64 * 64;
    if (total > size)
        return 0;
    memset(buf, ' ', total);
    memcpy(buf, magic, sizeof magic);
    buf[6] = 1;
    buf[7] = 0;
    buf[8] = (char)((total - 10) & 255);
    buf[9] = (char)((total - 10) >> 8);
    memcpy(buf + 10, dict, (size_t)n);
    buf[total - 1] = '\n';
    return total;
}

/* ---- reading: the header is a Python dictionary of three keys; only what NumPy writes is understood ---- */

/* The text after "'key':", blanks skipped; NULL: there is no such key. */
static const char *value_of(const char *dict, const char *key)
{
    char quoted[40];

    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *p = strstr(dict, quoted);
    if (!p)
        return NULL;
    p += strlen(quoted);
    return p + strspn(p, " ");
}

static int parse_shape(struct hv_npy *a, const char *p, struct hv_err *e)
{
    if (!p || *p++ != '(')
        return hv_fail(e, HV_EINPUT, "npy: no shape");
    for (p += strspn(p, " "); *p != ')'; p += strspn(p, " ")) {
        char *end = NULL;
        errno = 0;
        if (*p < '0' || *p > '9')
            return hv_fail(e, HV_EINPUT, "npy: the shape is not a tuple of sizes");
        const long long v = strtoll(p, &end, 10);
        if (errno)
            return hv_fail(e, HV_EINPUT, "npy: the shape is not a tuple of sizes");
        if (a->ndim == HV_ST_DIMS)
            return hv_fail(e, HV_EUNSUP, "npy: more than %d dimensions", HV_ST_DIMS);
        a->shape[a->ndim++] = v;
        p = end + strspn(end, " ");
        if (*p == ',')
            p++;
        else if (*p != ')')
            return hv_fail(e, HV_EINPUT, "npy: the shape is not a tuple of sizes");
    }
    return 0;
}

static int parse_dict(struct hv_npy *a, const char *dict, struct hv_err *e)
{
    const char *descr = value_of(dict, "descr"), *order = value_of(dict, "fortran_order");

    if (!descr || *descr++ != '\'' || !order)
        return hv_fail(e, HV_EINPUT, "npy: no descr or fortran_order");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strncmp(descr, types[i].descr, 3) && descr[3] == '\'')
            a->dtype = types[i].t;
    if (a->dtype == HV_NONE)
        return hv_fail(e, HV_EUNSUP, "npy: dtype '%.8s' is not supported (little-endian numbers and booleans are)", descr);
    if (parse_shape(a, value_of(dict, "shape"), e))
        return e->code;
    if (strncmp(order, "False", 5) && a->ndim > 1)
        return hv_fail(e, HV_EUNSUP, "npy: Fortran order; save numpy.ascontiguousarray(a)");
    return 0;
}

int hv_npy_parse(struct hv_npy *a, const void *bytes, size_t n, struct hv_err *e)
{
    const unsigned char *b = bytes;
    char dict[4096];
    size_t at, len;
    int64_t count;

    *a = (struct hv_npy){0};
    if (!hv_npy_is(bytes, n) || n < 12 || b[6] < 1 || b[6] > 3)
        return hv_fail(e, HV_EINPUT, "not an npy file of version 1, 2 or 3");
    at = b[6] == 1 ? 10 : 12;
    len = (size_t)b[8] | (size_t)b[9] << 8;
    if (b[6] > 1)
        len |= (size_t)b[10] << 16 | (size_t)b[11] << 24;
    if (len >= sizeof dict || len > n - at)
        return hv_fail(e, HV_EINPUT, "npy: header of %zu bytes", len);
    memcpy(dict, b + at, len);
    dict[len] = 0;
    if (strlen(dict) != len)
        return hv_fail(e, HV_EINPUT, "npy: NUL in the header");
    if (parse_dict(a, dict, e))
        return e->code;
    count = hv_shape_count(a->ndim, a->shape);
    if (count < 0 || __builtin_mul_overflow(count, (int64_t)hv_dtype_size(a->dtype), &count) ||
        (uint64_t)count != n - at - len)
        return hv_fail(e, HV_EINPUT, "npy: %zu bytes of data, its shape needs %s", n - at - len, count < 0 ? "more" : "another number");
    if (!(a->data = malloc((size_t)count + 1)))
        return hv_fail(e, HV_ENOMEM, "npy: out of memory");
    memcpy(a->data, b + at + len, (size_t)count);
    return 0;
}

int hv_npy_read(struct hv_npy *a, const char *path, struct hv_err *e)
{
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    size_t n = 0, cap = 0, got;
    int rc = 0;

    if (!f)
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    do {
        if (n == cap) {
            char *p = realloc(bytes, cap = cap ? 2 * cap : 65536);
            if (!p) {
                rc = hv_fail(e, HV_ENOMEM, "out of memory");
                break;
            }
            bytes = p;
        }
        got = fread(bytes + n, 1, cap - n, f);
        n += got;
    } while (got);
    if (!rc && ferror(f))
        rc = hv_fail(e, HV_EIO, "%s", strerror(errno));
    fclose(f);
    if (!rc)
        rc = hv_npy_parse(a, bytes ? bytes : "", n, e);
    free(bytes);
    return rc ? hv_context(e, "%s", path) : 0;
}
