#define _GNU_SOURCE
#include "io/st.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "core/mapped.h"

struct hv_in {
    char            *path;
    json_t          *root;              /* owns the names and the metadata */
    const char      *header;
    size_t           header_bytes;
    const char      *data;
    uint64_t         data_bytes;
    char            *map, *heap;        /* one of them holds the file */
    size_t           bytes;
    struct hv_entry *entry;             /* by data offset */
    struct hv_entry **by_name;
    int              n;
    void           **aligned;           /* copies of misaligned data, by entry */
};

/* ---- reading ---- */

static int read_all(struct hv_in *in, int fd, struct hv_err *e)
{
    size_t cap = 0;

    for (;;) {
        if (in->bytes == cap) {
            cap = cap ? 2 * cap : (size_t)1 << 20;
            char *p = realloc(in->heap, cap);
            if (!p)
                return hv_fail(e, HV_ENOMEM, "out of memory after %zu bytes", in->bytes);
            in->heap = p;
        }
        ssize_t got = read(fd, in->heap + in->bytes, cap - in->bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return hv_fail(e, HV_EIO, "%s", strerror(errno));
        if (!got)
            return 0;
        in->bytes += (size_t)got;
        /* A pipe that is not a tensor file is refused at its ninth byte, not after all of it was kept. */
        if (in->bytes >= 9 && in->heap[8] != '{')
            return hv_fail(e, HV_EINPUT, "not a safetensors file");
    }
}

static int load(struct hv_in *in, const char *path, struct hv_err *e)
{
    const int is_stdin = !strcmp(path, "-");
    const int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    int rc = 0;

    if (fd < 0)
        return hv_fail(e, HV_EIO, "%s", strerror(errno));
    if (fstat(fd, &st))
        rc = hv_fail(e, HV_EIO, "%s", strerror(errno));
    else if (S_ISDIR(st.st_mode))
        rc = hv_fail(e, HV_EIO, "is a folder");
    else if (is_stdin && isatty(fd))
        rc = hv_fail(e, HV_EUSAGE, "is a terminal: a tensor file was expected");
    else if (S_ISREG(st.st_mode) && st.st_size > 0 && !(is_stdin && lseek(fd, 0, SEEK_CUR) != 0)) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            rc = hv_fail(e, HV_EIO, "mmap: %s", strerror(errno));
        else {
            in->map = p, in->bytes = (size_t)st.st_size;
            hv_mapped_add(p, in->bytes, in->path);
        }
    } else {
        rc = read_all(in, fd, e);
    }
    if (!is_stdin)
        close(fd);
    return rc;
}

static int parse_u63_list(const json_t *a, int max, int64_t *v, int *n)
{
    if (!json_is_array(a) || json_array_size(a) > (size_t)max)
        return -1;
    *n = (int)json_array_size(a);
    for (int i = 0; i < *n; i++) {
        const json_t *x = json_array_get(a, (size_t)i);
        if (!json_is_integer(x) || json_integer_value(x) < 0)
            return -1;
        v[i] = json_integer_value(x);
    }
    return 0;
}

static int parse_entry(struct hv_entry *t, const char *name, const json_t *v, uint64_t data_bytes, struct hv_err *e)
{
    const json_t *dtype = json_object_get(v, "dtype");
    int64_t span[2], count;
    int n_span = 0;

    t->name = name;
    if (!json_is_object(v) || json_object_size(v) != 3 || !json_is_string(dtype))
        return hv_fail(e, HV_EINPUT, "tensor '%s': not {dtype, shape, data_offsets}", name);
    t->dtype = hv_dtype_parse(json_string_value(dtype));
    if (t->dtype == HV_NONE)
        return hv_fail(e, HV_EINPUT, "tensor '%s': unknown dtype '%s'", name, json_string_value(dtype));
    if (parse_u63_list(json_object_get(v, "shape"), HV_ST_DIMS, t->shape, &t->ndim))
        return hv_fail(e, HV_EINPUT, "tensor '%s': shape is not a list of at most %d sizes", name, HV_ST_DIMS);
    if (parse_u63_list(json_object_get(v, "data_offsets"), 2, span, &n_span) || n_span != 2)
        return hv_fail(e, HV_EINPUT, "tensor '%s': data_offsets are not two offsets", name);
    count = 1;
    for (int i = 0; i < t->ndim; i++) {
        /* A product that overflows is refused even when another size is 0, so multiply what is not 0 first. */
        if (t->shape[i] && __builtin_mul_overflow(count, t->shape[i], &count))
            return hv_fail(e, HV_EINPUT, "tensor '%s': shape overflows", name);
    }
    if (__builtin_mul_overflow(count, (int64_t)hv_dtype_size(t->dtype), &count))
        return hv_fail(e, HV_EINPUT, "tensor '%s': shape overflows", name);
    for (int i = 0; i < t->ndim; i++)
        if (!t->shape[i])
            count = 0;
    t->begin = (uint64_t)span[0];
    t->end = (uint64_t)span[1];
    if (t->begin > t->end || t->end > data_bytes)
        return hv_fail(e, HV_EINPUT, "tensor '%s': bytes %lld to %lld of %llu", name, (long long)span[0],
                       (long long)span[1], (unsigned long long)data_bytes);
    if (t->end - t->begin != (uint64_t)count)
        return hv_fail(e, HV_EINPUT, "tensor '%s': %llu bytes, its shape needs %lld", name,
                       (unsigned long long)(t->end - t->begin), (long long)count);
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct hv_entry *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct hv_entry *const *)a)->name, (*(struct hv_entry *const *)b)->name);
}

static int parse_meta(const json_t *meta, struct hv_err *e)
{
    const char *key;
    json_t *v;

    if (!json_is_object(meta))
        return hv_fail(e, HV_EINPUT, "__metadata__ is not an object");
    json_object_foreach((json_t *)(uintptr_t)meta, key, v)
        if (!json_is_string(v))
            return hv_fail(e, HV_EINPUT, "__metadata__: '%s' is not a string", key);
    return 0;
}

/* Counts what the parser would make nodes of. Commas in names count, too: no file has so many. */
static int check_values(const char *s, size_t n, struct hv_err *e)
{
    size_t objects = 0, values = 0;

    for (size_t i = 0; i < n; i++) {
        objects += s[i] == '{';
        values += s[i] == '{' || s[i] == '[' || s[i] == ',';
    }
    if (objects > HV_ST_OBJECTS || values > HV_ST_VALUES)
        return hv_fail(e, HV_EINPUT, "header: %zu objects and %zu values, limits %d and %d", objects, values, HV_ST_OBJECTS,
                       HV_ST_VALUES);
    return 0;
}

static int parse(struct hv_in *in, struct hv_err *e)
{
    const char *file = in->map ? in->map : in->heap, *key;
    uint64_t n = 0, at = 0;
    json_t *v;

    if (in->bytes < 8)
        return hv_fail(e, HV_EINPUT, "%s (%zu bytes)", in->bytes ? "cut short" : "empty file", in->bytes);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | (unsigned char)file[i];
    if (n > HV_ST_HEADER)
        return hv_fail(e, HV_EINPUT, "not a safetensors file (header of %llu bytes, limit %zu)", (unsigned long long)n,
                       HV_ST_HEADER);
    if (n > in->bytes - 8)
        return hv_fail(e, HV_EINPUT, "cut short: header of %llu bytes, file of %zu", (unsigned long long)n, in->bytes);
    in->header = file + 8;
    in->header_bytes = (size_t)n;
    in->data = file + 8 + n;
    in->data_bytes = in->bytes - 8 - n;
    if (!n || in->header[0] != '{')
        return hv_fail(e, HV_EINPUT, "not a safetensors file");
    if (check_values(in->header, in->header_bytes, e))
        return e->code;
    if (hv_json_parse(&in->root, in->header, in->header_bytes, 16, e))
        return hv_context(e, "header");

    const size_t count = json_object_size(in->root);
    in->entry = calloc(count + 1, sizeof *in->entry);
    in->by_name = calloc(count + 1, sizeof *in->by_name);
    in->aligned = calloc(count + 1, sizeof *in->aligned);
    if (!in->entry || !in->by_name || !in->aligned)
        return hv_fail(e, HV_ENOMEM, "out of memory for %zu tensors", count);
    json_object_foreach(in->root, key, v) {
        if (!strcmp(key, "__metadata__")) {
            if (parse_meta(v, e))
                return e->code;
        } else if (parse_entry(&in->entry[in->n++], key, v, in->data_bytes, e)) {
            return e->code;
        }
    }
    qsort(in->entry, (size_t)in->n, sizeof *in->entry, by_offset);
    for (int i = 0; i < in->n; i++) {
        if (in->entry[i].begin != at)
            return hv_fail(e, HV_EINPUT, "tensor '%s': %s at byte %llu", in->entry[i].name,
                           in->entry[i].begin < at ? "overlap" : "hole", (unsigned long long)at);
        at = in->entry[i].end;
        in->by_name[i] = &in->entry[i];
    }
    qsort(in->by_name, (size_t)in->n, sizeof *in->by_name, by_name);
    if (at != in->data_bytes)
        return hv_fail(e, HV_EINPUT, "%llu bytes after the last tensor", (unsigned long long)(in->data_bytes - at));
    return 0;
}

int hv_in_open(struct hv_in **out, const char *path, struct hv_err *e)
{
    struct hv_in *in = calloc(1, sizeof *in);

    *out = NULL;
    if (!in || !(in->path = strdup(!strcmp(path, "-") ? "stdin" : path))) {
        free(in);
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
    }
    if (load(in, path, e) || parse(in, e)) {
        hv_context(e, "%s", in->path);
        hv_in_close(in);
        return e->code;
    }
    *out = in;
    return 0;
}

void hv_in_close(struct hv_in *in)
{
    if (!in)
        return;
    for (int i = 0; in->aligned && i < in->n; i++)
        free(in->aligned[i]);
    free(in->aligned);
    free(in->entry);
    free(in->by_name);
    json_decref(in->root);
    if (in->map) {
        hv_mapped_remove(in->map);
        munmap(in->map, in->bytes);
    }
    free(in->heap);
    free(in->path);
    free(in);
}

const char *hv_in_path(const struct hv_in *in)
{
    return in->path;
}

int hv_in_count(const struct hv_in *in)
{
    return in->n;
}

const struct hv_entry *hv_in_entry(const struct hv_in *in, int i)
{
    return &in->entry[i];
}

const struct hv_entry *hv_in_find(const struct hv_in *in, const char *name)
{
    const struct hv_entry want = {.name = name}, *key = &want;
    struct hv_entry **hit = bsearch(&key, in->by_name, (size_t)in->n, sizeof *in->by_name, by_name);

    return hit ? *hit : NULL;
}

const void *hv_in_data(const struct hv_in *in, const struct hv_entry *entry)
{
    return in->data + entry->begin;
}

int hv_in_tensor(struct hv_in *in, const char *name, hv_tensor *t, struct hv_err *e)
{
    const struct hv_entry *s = hv_in_find(in, name);

    if (!s)
        return hv_fail(e, HV_EINPUT, "%s: no tensor '%s'", in->path, name);
    if (s->ndim > HV_MAX_DIMS)
        return hv_fail(e, HV_EINPUT, "%s: %s: %d dimensions, at most %d are supported", in->path, name, s->ndim,
                       HV_MAX_DIMS);
    const char *p = hv_in_data(in, s);
    if ((uintptr_t)p % hv_dtype_size(s->dtype)) {
        void **copy = &in->aligned[s - in->entry];
        if (!*copy && !(*copy = malloc((size_t)(s->end - s->begin) + 1)))
            return hv_fail(e, HV_ENOMEM, "%s: %s: out of memory", in->path, name);
        memcpy(*copy, p, (size_t)(s->end - s->begin));
        p = *copy;
    }
    *t = hv_view(p, s->dtype, s->ndim, s->shape);
    return 0;
}

const char *hv_in_meta(const struct hv_in *in, const char *key)
{
    return json_string_value(json_object_get(json_object_get(in->root, "__metadata__"), key));
}

int hv_in_meta_at(const struct hv_in *in, int i, const char **key, const char **value)
{
    json_t *meta = json_object_get(in->root, "__metadata__");
    void *it = json_object_iter(meta);

    while (it && i-- > 0)
        it = json_object_iter_next(meta, it);
    if (!it)
        return 0;
    *key = json_object_iter_key(it);
    *value = json_string_value(json_object_iter_value(it));
    return 1;
}

uint64_t hv_in_bytes(const struct hv_in *in)
{
    return in->data_bytes;
}

uint64_t hv_in_header_digest(const struct hv_in *in)
{
    uint64_t h = 0xCBF29CE484222325;

    for (size_t i = 0; i < in->header_bytes; i++)
        h = (h ^ (unsigned char)in->header[i]) * 0x100000001B3;
    return h;
}

void hv_in_advise(const struct hv_in *in, uint64_t begin, uint64_t end, int wanted)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

    if (!in->map || begin >= end)
        return;
    uintptr_t a = (uintptr_t)(in->data + begin), b = (uintptr_t)(in->data + end);
    /* Dropping must not touch the pages that neighbours share; fetching takes them too. */
    a = wanted ? a / page * page : (a + page - 1) / page * page;
    b = wanted ? (b + page - 1) / page * page : b / page * page;
    if (a < b)
        (void)madvise((void *)a, b - a, wanted ? MADV_WILLNEED : MADV_DONTNEED);
}

/* ---- scanning ---- */

/* 1 if a block of 1024 numbers holds one whose exponent is all ones. Lanes of fixed length become vectors. */
static int block_is_bad16(const char *p, uint16_t exponent)
{
    uint16_t v[64], worst[64] = {0}, max = 0;

    for (int i = 0; i < 1024; i += 64) {
        memcpy(v, p + 2 * i, sizeof v);
        for (int k = 0; k < 64; k++) {
            const uint16_t x = (uint16_t)(v[k] & exponent);
            worst[k] = x > worst[k] ? x : worst[k];
        }
    }
    for (int k = 0; k < 64; k++)
        max = worst[k] > max ? worst[k] : max;
    return max == exponent;
}

static int block_is_bad32(const char *p)
{
    uint32_t v[32], worst[32] = {0}, max = 0;

    for (int i = 0; i < 1024; i += 32) {
        memcpy(v, p + 4 * i, sizeof v);
        for (int k = 0; k < 32; k++) {
            const uint32_t x = v[k] & 0x7f800000;
            worst[k] = x > worst[k] ? x : worst[k];
        }
    }
    for (int k = 0; k < 32; k++)
        max = worst[k] > max ? worst[k] : max;
    return max == 0x7f800000;
}

static int64_t scan_block(hv_dtype t, const char *p, size_t n)
{
    float buf[1024];

    if (n == 1024 && (t == HV_BF16 || t == HV_F16) && !block_is_bad16(p, t == HV_BF16 ? 0x7f80 : 0x7c00))
        return -1;
    if (n == 1024 && t == HV_F32 && !block_is_bad32(p))
        return -1;
    if (t == HV_F8_E4M3 || t == HV_F8_E5M2) {
        for (size_t i = 0; i < n; i++)
            if (t == HV_F8_E4M3 ? (p[i] & 0x7f) == 0x7f : (p[i] & 0x7c) == 0x7c)
                return (int64_t)i;
        return -1;
    }
    if (t == HV_F64) {
        for (size_t i = 0; i < n; i++) {
            uint64_t u;
            memcpy(&u, p + 8 * i, 8);
            if ((u >> 52 & 0x7ff) == 0x7ff)
                return (int64_t)i;
        }
        return -1;
    }
    if (t != HV_F32)
        hv_to_f32(buf, t, p, n);
    const char *f = t == HV_F32 ? p : (const char *)buf;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, f + 4 * i, 4);
        if ((u & 0x7f800000) == 0x7f800000)
            return (int64_t)i;
    }
    return -1;
}

int64_t hv_first_nonfinite(hv_tensor t)
{
    const size_t n = (size_t)hv_count(t), size = hv_dtype_size(t.dtype);

    assert(hv_is_contiguous(t));
    if (!hv_dtype_is_float(t.dtype))
        return -1;
    for (size_t i = 0; i < n; i += 1024) {
        const int64_t hit = scan_block(t.dtype, (const char *)t.data + i * size, n - i < 1024 ? n - i : 1024);
        if (hit >= 0)
            return (int64_t)i + hit;
    }
    return -1;
}
