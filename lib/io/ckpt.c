#define _GNU_SOURCE
#include "io/ckpt.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/utf8.h"
#include "io/ckpt_impl.h"
#include "io/gguf.h"

/* ---- the list ---- */

int hv_ckpt_add(struct hv_ckpt *c, const struct hv_ctensor *t, const char *name, size_t n, struct hv_err *e)
{
    if (!n || n >= HV_CKPT_NAME || !hv_utf8_valid(name, n))
        return hv_fail(e, HV_EINPUT, "a tensor whose name is no text of 1 to %d bytes", HV_CKPT_NAME - 1);
    if (c->n == HV_CKPT_TENSORS)
        return hv_fail(e, HV_EINPUT, "more than %d tensors", HV_CKPT_TENSORS);
    if (c->n == c->cap) {
        const int cap = c->cap ? 2 * c->cap : 256;
        struct hv_ctensor *p = realloc(c->t, (size_t)cap * sizeof *p);
        if (!p)
            return hv_fail(e, HV_ENOMEM, "out of memory for %d tensors", cap);
        c->t = p;
        c->cap = cap;
    }
    struct hv_ctensor *s = &c->t[c->n];
    *s = *t;
    s->file = c->n_files - 1;
    s->scale = NULL;
    s->name = strndup(name, n);
    if (!s->name)
        return hv_fail(e, HV_ENOMEM, "out of memory for %d tensors", c->n);
    c->n++;
    ckpt_changed(c);
    return 0;
}

int hv_ckpt_add_meta(struct hv_ckpt *c, const char *key, const char *value, struct hv_err *e)
{
    char **p = realloc(c->meta, (size_t)(c->n_meta + 1) * 2 * sizeof *p);

    if (!p)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    c->meta = p;
    p[2 * c->n_meta] = strdup(key);
    p[2 * c->n_meta + 1] = strdup(value);
    c->n_meta++;
    return p[2 * c->n_meta - 2] && p[2 * c->n_meta - 1] ? 0 : hv_fail(e, HV_ENOMEM, "out of memory");
}

int hv_ckpt_rename(struct hv_ckpt *c, int i, const char *name, struct hv_err *e)
{
    char *copy = strdup(name);

    if (!copy)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    free(c->t[i].name);
    c->t[i].name = copy;
    ckpt_changed(c);
    return 0;
}

void hv_ckpt_drop(struct hv_ckpt *c, int i)
{
    free(c->t[i].name);
    free(c->t[i].scale);
    memmove(c->t + i, c->t + i + 1, (size_t)(c->n - i - 1) * sizeof *c->t);
    c->n--;
    ckpt_changed(c);
}

void ckpt_changed(struct hv_ckpt *c)
{
    free(c->by_name);
    c->by_name = NULL;
}

static int compare_names(const void *a, const void *b, void *list)
{
    const struct hv_ctensor *t = list;

    return strcmp(t[*(const int *)a].name, t[*(const int *)b].name);
}

static int make_index(struct hv_ckpt *c)
{
    c->by_name = malloc(((size_t)c->n + 1) * sizeof *c->by_name);
    if (!c->by_name)
        return -1;
    for (int i = 0; i < c->n; i++)
        c->by_name[i] = i;
    qsort_r(c->by_name, (size_t)c->n, sizeof *c->by_name, compare_names, c->t);
    return 0;
}

struct hv_ctensor *hv_ckpt_find(const struct hv_ckpt *c, const char *name)
{
    int low = 0, high = c->n - 1;

    /* The index is a cache: an object that is const to the caller may get one. */
    if (!c->by_name && make_index((struct hv_ckpt *)(uintptr_t)c))
        return NULL;
    while (low <= high) {
        const int mid = low + (high - low) / 2, order = strcmp(name, c->t[c->by_name[mid]].name);
        if (!order)
            return &c->t[c->by_name[mid]];
        if (order < 0)
            high = mid - 1;
        else
            low = mid + 1;
    }
    return NULL;
}

int ckpt_check_names(struct hv_ckpt *c, struct hv_err *e)
{
    if (!c->by_name && make_index(c))
        return hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 1; i < c->n; i++)
        if (!strcmp(c->t[c->by_name[i]].name, c->t[c->by_name[i - 1]].name))
            return hv_fail(e, HV_EINPUT, "tensor '%s' is there twice", c->t[c->by_name[i]].name);
    return 0;
}

/* ---- opening and asking ---- */

int hv_ckpt_open(struct hv_ckpt **out, const char *const *path, int n, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    struct hv_ckpt *c = calloc(1, sizeof *c);
    int rc = c ? 0 : hv_fail(e, HV_ENOMEM, "%s: out of memory", path[0]);

    *out = NULL;
    for (int i = 0; i < n && !rc; i++)
        rc = ckpt_open_path(c, path[i], o, e);
    if (!rc && ckpt_check_names(c, e))
        rc = hv_context(e, "%s", path[0]);
    if (rc) {
        hv_ckpt_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

void hv_ckpt_close(struct hv_ckpt *c)
{
    if (!c)
        return;
    for (int i = 0; i < c->n; i++) {
        free(c->t[i].name);
        free(c->t[i].scale);
    }
    for (int i = 0; i < c->n_files; i++) {
        struct ckpt_file *f = &c->file[i];
        hv_zip_close(f->zip);
        hv_in_close(f->in);
        if (f->mapped)
            munmap((void *)(uintptr_t)f->data, f->bytes);
        if (f->fd >= 0)
            close(f->fd);
        free(f->path);
    }
    for (int i = 0; i < 2 * c->n_meta; i++)
        free(c->meta[i]);
    free(c->meta);
    free(c->by_name);
    free(c->file);
    free(c->t);
    free(c);
}

int hv_ckpt_count(const struct hv_ckpt *c)
{
    return c->n;
}

struct hv_ctensor *hv_ckpt_at(const struct hv_ckpt *c, int i)
{
    return &c->t[i];
}

const char *hv_ckpt_path(const struct hv_ckpt *c)
{
    return c->file[0].path;
}

const char *hv_ckpt_format(const struct hv_ckpt *c)
{
    return c->format;
}

const char *hv_ckpt_how(const struct hv_ckpt *c)
{
    return c->how ? c->how : "";
}

int hv_ckpt_deq_bf16(const struct hv_ckpt *c)
{
    return c->deq_bf16;
}

const char *hv_ckpt_meta(const struct hv_ckpt *c, const char *key)
{
    for (int i = 0; i < c->n_files; i++) {
        const char *v = c->file[i].in ? hv_in_meta(c->file[i].in, key) : NULL;
        if (v)
            return v;
    }
    for (int i = 0; i < c->n_meta; i++)
        if (!strcmp(c->meta[2 * i], key))
            return c->meta[2 * i + 1];
    return NULL;
}

const struct hv_in *hv_ckpt_in(const struct hv_ckpt *c)
{
    return c->n_files == 1 ? c->file[0].in : NULL;
}

uint64_t hv_ckpt_bytes(const struct hv_ckpt *c)
{
    uint64_t sum = 0;

    for (int i = 0; i < c->n_files; i++)
        sum += c->file[i].bytes;
    return sum;
}

uint64_t hv_ckpt_digest(const struct hv_ckpt *c)
{
    uint64_t h = 0xCBF29CE484222325;

    for (int i = 0; i < c->n_files; i++) {
        h = (h ^ c->file[i].digest) * 0x100000001B3;
        h = (h ^ c->file[i].bytes) * 0x100000001B3;
    }
    return h;
}

int hv_ckpt_verify(const struct hv_ckpt *c, int *checked, struct hv_err *e)
{
    *checked = 0;
    for (int i = 0; i < c->n_files; i++) {
        const struct hv_zip *z = c->file[i].zip;
        for (int k = 0; z && k < hv_zip_count(z); k++) {
            const struct hv_zip_entry *t = hv_zip_entry(z, k);
            if (t->stored && hv_zip_verify(z, t, e))
                return hv_context(e, "%s", c->file[i].path);
            *checked += t->stored;
            const struct hv_ctensor pages = {.file = i, .offset = t->offset, .span = t->bytes};
            hv_ckpt_forget(c, &pages);
        }
    }
    return 0;
}

/* ---- values ---- */

int64_t hv_ctensor_count(const struct hv_ctensor *t)
{
    return hv_shape_count(t->ndim, t->shape);
}

int hv_ctensor_contiguous(const struct hv_ctensor *t)
{
    int64_t step = 1;

    for (int k = t->ndim - 1; k >= 0; k--) {
        if (t->shape[k] > 1 && t->stride[k] != step)
            return 0;
        step *= t->shape[k] ? t->shape[k] : 1;
    }
    return 1;
}

static int read_bytes(const struct ckpt_file *f, uint64_t at, void *dst, size_t n, struct hv_err *e)
{
    char *p = dst;

    if (f->fd < 0) {
        memcpy(dst, f->data + at, n);
        return 0;
    }
    while (n) {
        const ssize_t got = pread(f->fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return hv_fail(e, HV_EIO, "%s: %s", f->path, got ? strerror(errno) : "the file became shorter while it was read");
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

/* Transposed, sliced, stepped, expanded: element by element, through the mapping. */
static void gather(const struct ckpt_file *f, const struct hv_ctensor *t, uint64_t first, size_t n, char *dst)
{
    const size_t item = hv_dtype_size(t->dtype);
    int64_t index[HV_ST_DIMS] = {0}, at = 0;

    for (int k = t->ndim - 1; k >= 0; k--) {
        index[k] = (int64_t)(first % (uint64_t)t->shape[k]);
        first /= (uint64_t)t->shape[k];
        at += index[k] * t->stride[k];
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(dst + i * item, f->data + t->offset + (uint64_t)at * item, item);
        for (int k = t->ndim - 1; k >= 0; k--) {
            at += t->stride[k];
            if (++index[k] < t->shape[k])
                break;
            at -= index[k] * t->stride[k];
            index[k] = 0;
        }
    }
}

static int read_blocks(const struct ckpt_file *f, const struct hv_ctensor *t, uint64_t first, size_t n, float *dst,
                       struct hv_err *e)
{
    const size_t weights = (size_t)hv_gguf_block(t->ggml), bytes = hv_gguf_block_bytes(t->ggml);
    uint8_t raw[210 * 64];
    float wide[256];

    assert(bytes <= 210 && weights <= 256);
    while (n) {
        const uint64_t block = first / weights;
        const size_t skip = (size_t)(first % weights);
        size_t blocks = n / weights;
        blocks = skip || !blocks ? 1 : blocks < 64 ? blocks : 64;
        if (read_bytes(f, t->offset + block * bytes, raw, blocks * bytes, e))
            return e->code;
        size_t got = blocks * weights;
        if (skip || n < weights) {
            hv_gguf_decode(t->ggml, raw, 1, wide);
            got = weights - skip < n ? weights - skip : n;
            memcpy(dst, wide + skip, got * sizeof *dst);
        } else {
            hv_gguf_decode(t->ggml, raw, blocks, dst);
        }
        dst += got;
        first += got;
        n -= got;
    }
    return 0;
}

int hv_ckpt_read(const struct hv_ckpt *c, const struct hv_ctensor *t, uint64_t first, size_t n, void *dst, struct hv_err *e)
{
    const struct ckpt_file *f = &c->file[t->file];
    const size_t item = hv_dtype_size(t->dtype);

    if (!n)
        return 0;
    if (t->ggml >= 0)
        return read_blocks(f, t, first, n, dst, e);
    if (hv_ctensor_contiguous(t))
        return read_bytes(f, t->offset + first * item, dst, n * item, e);
    gather(f, t, first, n, dst);
    return 0;
}

int hv_ckpt_read_f32(const struct hv_ckpt *c, const struct hv_ctensor *t, uint64_t first, size_t n, float *dst,
                     struct hv_err *e)
{
    const size_t item = hv_dtype_size(t->dtype);
    char raw[32768];
    const size_t most = sizeof raw / item;
    const uint64_t cols = t->scale && t->shape[0] ? (uint64_t)hv_ctensor_count(t) / (uint64_t)t->shape[0] : 1;

    if (t->dtype == HV_F32 && !t->scale)
        return hv_ckpt_read(c, t, first, n, dst, e);
    while (n) {
        const size_t part = n < most ? n : most;
        if (hv_ckpt_read(c, t, first, part, raw, e))
            return e->code;
        hv_to_f32(dst, t->dtype, raw, part);
        for (size_t i = 0; t->scale && i < part;) {
            const uint64_t row = (first + i) / cols;
            const size_t end = (size_t)((row + 1) * cols - first) < part ? (size_t)((row + 1) * cols - first) : part;
            for (; i < end; i++) {
                const float w = t->scale[row] * dst[i];
                dst[i] = c->deq_bf16 ? hv_bf16_to_f32(hv_f32_to_bf16(w)) : w;
            }
        }
        dst += part;
        first += part;
        n -= part;
    }
    return 0;
}

int hv_ckpt_place(const struct hv_ckpt *c, const struct hv_ctensor *t, int *fd, uint64_t *at)
{
    *fd = c->file[t->file].fd;
    *at = t->offset;
    return *fd >= 0 && t->ggml < 0 && hv_ctensor_contiguous(t);
}

void hv_ckpt_forget(const struct hv_ckpt *c, const struct hv_ctensor *t)
{
    const struct ckpt_file *f = &c->file[t->file];
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

    if (f->fd < 0 || !f->data)
        return;
    const uintptr_t a = ((uintptr_t)f->data + t->offset + page - 1) / page * page;
    const uintptr_t b = ((uintptr_t)f->data + t->offset + t->span) / page * page;
    if (a < b)
        (void)madvise((void *)a, b - a, MADV_DONTNEED);
}
