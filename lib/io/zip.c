#include "io/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/utf8.h"

#define END_BYTES     22
#define END64_BYTES   56
#define LOCATOR_BYTES 20
#define CENTRAL_BYTES 46
#define LOCAL_BYTES   30
#define NAME_BYTES    1024

struct hv_zip {
    const uint8_t       *data;
    size_t               bytes;
    uint64_t             first, last;   /* of the directory */
    struct hv_zip_entry *entry;
    char                *names;
    int                  n;
};

static unsigned u16(const uint8_t *p)
{
    return (unsigned)(p[0] | p[1] << 8);
}

static uint32_t u32(const uint8_t *p)
{
    return (uint32_t)u16(p) | (uint32_t)u16(p + 2) << 16;
}

static uint64_t u64(const uint8_t *p)
{
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

struct end {
    uint64_t n, bytes, offset;          /* of the directory */
    size_t   at;                        /* where the end records begin: the directory ends there at the latest */
};

/* The end record is the last thing in the file but for a comment whose length it gives. */
static int find_end(struct end *d, const uint8_t *p, size_t n, struct hv_err *e)
{
    size_t at = n < END_BYTES ? 0 : n - END_BYTES;
    const size_t lowest = at > 65535 ? at - 65535 : 0;

    if (n < END_BYTES)
        return hv_fail(e, HV_EINPUT, "zip: cut short (%zu bytes)", n);
    while (memcmp(p + at, "PK\5\6", 4) || u16(p + at + 20) != n - at - END_BYTES)
        if (at-- == lowest)
            return hv_fail(e, HV_EINPUT, "zip: no end of central directory: cut short, or not a zip archive");
    const uint8_t *r = p + at;
    if (u16(r + 4) || u16(r + 6) || u16(r + 8) != u16(r + 10))
        return hv_fail(e, HV_EINPUT, "zip: in several parts");
    *d = (struct end){u16(r + 10), u32(r + 12), u32(r + 16), at};
    if (at < LOCATOR_BYTES || memcmp(r - LOCATOR_BYTES, "PK\6\7", 4)) {
        if (d->n == 0xffff || d->bytes == 0xffffffff || d->offset == 0xffffffff)
            return hv_fail(e, HV_EINPUT, "zip: no zip64 end of central directory");
        return 0;
    }
    const uint64_t at64 = u64(r - LOCATOR_BYTES + 8);
    if (at < LOCATOR_BYTES + END64_BYTES || at64 > at - LOCATOR_BYTES - END64_BYTES || memcmp(p + at64, "PK\6\6", 4))
        return hv_fail(e, HV_EINPUT, "zip: bad zip64 end of central directory");
    const uint8_t *r64 = p + at64;
    const struct end d64 = {u64(r64 + 32), u64(r64 + 40), u64(r64 + 48), (size_t)at64};
    if (u32(r64 + 16) || u32(r64 + 20) || u64(r64 + 24) != d64.n || u64(r64 + 4) != at - LOCATOR_BYTES - at64 - 12)
        return hv_fail(e, HV_EINPUT, "zip: bad zip64 end of central directory");
    if ((d->n != 0xffff && d->n != d64.n) || (d->bytes != 0xffffffff && d->bytes != d64.bytes) ||
        (d->offset != 0xffffffff && d->offset != d64.offset))
        return hv_fail(e, HV_EINPUT, "zip: its two ends of central directory disagree");
    *d = d64;
    return 0;
}

/* The 8-byte numbers of the zip64 field stand for those that are all ones, in this order. */
static int read_extra(const uint8_t *x, size_t n, uint64_t *usize, uint64_t *csize, uint64_t *offset)
{
    for (size_t at = 0; at + 4 <= n;) {
        const unsigned id = u16(x + at), len = u16(x + at + 2);
        size_t q = at + 4;
        if (len > n - q)
            return -1;
        const size_t stop = q + len;
        uint64_t *const field[] = {usize, csize, offset};
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*field[i] != 0xffffffff)
                continue;
            if (stop - q < 8)
                return -1;
            *field[i] = u64(x + q);
            q += 8;
        }
        at = stop;
    }
    return *usize == 0xffffffff || *csize == 0xffffffff || *offset == 0xffffffff ? -1 : 0;
}

/* The local header repeats the name; what lies behind it is the data. Sizes may be zero there (a data descriptor follows). */
static int read_local(const struct hv_zip *z, struct hv_zip_entry *t, uint64_t at, unsigned flags, unsigned method,
                      uint64_t usize, uint64_t csize, struct hv_err *e)
{
    if (at > z->first || z->first - at < LOCAL_BYTES || memcmp(z->data + at, "PK\3\4", 4))
        return hv_fail(e, HV_EINPUT, "zip: %s: bad local header", t->name);
    const uint8_t *p = z->data + at;
    const unsigned name = u16(p + 26), extra = u16(p + 28);
    const uint32_t crc = u32(p + 14), local_c = u32(p + 18), local_u = u32(p + 22);
    uint64_t left = z->first - at - LOCAL_BYTES;
    if (name != strlen(t->name) || left < (uint64_t)name + extra || memcmp(p + LOCAL_BYTES, t->name, name) ||
        u16(p + 8) != method || (u16(p + 6) & 1) != (flags & 1))
        return hv_fail(e, HV_EINPUT, "zip: %s: bad local header", t->name);
    left -= (uint64_t)name + extra;
    if (csize > left)
        return hv_fail(e, HV_EINPUT, "zip: %s: %llu bytes, %llu are left", t->name, (unsigned long long)csize,
                       (unsigned long long)left);
    const int described = u16(p + 6) & 8;
    if ((crc != t->crc && !(described && !crc)) || (local_c != 0xffffffff && local_c != csize && !(described && !local_c)) ||
        (local_u != 0xffffffff && local_u != usize && !(described && !local_u)))
        return hv_fail(e, HV_EINPUT, "zip: %s: its local header disagrees with the directory", t->name);
    t->offset = at + LOCAL_BYTES + name + extra;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct hv_zip_entry *)a)->name, ((const struct hv_zip_entry *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const struct hv_zip_entry *x = a, *y = b;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int read_directory(struct hv_zip *z, const struct end *d, struct hv_err *e)
{
    char *name;
    uint64_t p = d->offset;

    if (d->offset > d->at || d->bytes > d->at - d->offset || d->n > d->bytes / CENTRAL_BYTES || d->n > HV_ZIP_ENTRIES)
        return hv_fail(e, HV_EINPUT, "zip: bad central directory: %llu entries, %llu bytes at %llu", (unsigned long long)d->n,
                       (unsigned long long)d->bytes, (unsigned long long)d->offset);
    z->first = d->offset;
    z->last = d->offset + d->bytes;
    z->entry = calloc((size_t)d->n + 1, sizeof *z->entry);
    /* Each name is shorter than its record by 46 bytes, of which one becomes its zero. */
    z->names = name = malloc((size_t)d->bytes + 1);
    if (!z->entry || !z->names)
        return hv_fail(e, HV_ENOMEM, "zip: out of memory for %llu entries", (unsigned long long)d->n);
    for (uint64_t i = 0; i < d->n; i++) {
        struct hv_zip_entry *t = &z->entry[z->n];
        if (z->last - p < CENTRAL_BYTES || memcmp(z->data + p, "PK\1\2", 4))
            return hv_fail(e, HV_EINPUT, "zip: bad central directory");
        const uint8_t *r = z->data + p;
        const unsigned flags = u16(r + 8), method = u16(r + 10), n = u16(r + 28), extra = u16(r + 30), comment = u16(r + 32);
        uint64_t csize = u32(r + 20), usize = u32(r + 24), offset = u32(r + 42);
        if (z->last - p - CENTRAL_BYTES < (uint64_t)n + extra + comment || !n || n > NAME_BYTES ||
            !hv_utf8_valid(r + CENTRAL_BYTES, n))
            return hv_fail(e, HV_EINPUT, "zip: bad central directory");
        memcpy(name, r + CENTRAL_BYTES, n);
        name[n] = 0;
        t->name = name;
        name += n + 1;
        if (read_extra(r + CENTRAL_BYTES + n, extra, &usize, &csize, &offset) || (!method && usize != csize) || u16(r + 34))
            return hv_fail(e, HV_EINPUT, "zip: %s: bad entry", t->name);
        if (flags & 1)
            return hv_fail(e, HV_EINPUT, "zip: %s: encrypted", t->name);
        t->bytes = csize;
        t->crc = u32(r + 16);
        t->stored = !method;
        if (read_local(z, t, offset, flags, method, usize, csize, e))
            return e->code;
        z->n++;
        p += CENTRAL_BYTES + (uint64_t)n + extra + comment;
    }
    if (p != z->last)
        return hv_fail(e, HV_EINPUT, "zip: bad central directory");
    return 0;
}

int hv_zip_open(struct hv_zip **out, const uint8_t *data, size_t bytes, struct hv_err *e)
{
    struct hv_zip *z = calloc(1, sizeof *z);
    struct end d = {0};

    *out = NULL;
    if (!z)
        return hv_fail(e, HV_ENOMEM, "zip: out of memory");
    z->data = data;
    z->bytes = bytes;
    int rc = find_end(&d, data, bytes, e);
    if (!rc)
        rc = read_directory(z, &d, e);
    if (!rc && z->n)
        qsort(z->entry, (size_t)z->n, sizeof *z->entry, by_offset);
    for (int i = 1; i < z->n && !rc; i++)
        if (z->entry[i].offset - z->entry[i - 1].offset < z->entry[i - 1].bytes)
            rc = hv_fail(e, HV_EINPUT, "zip: %s and %s overlap", z->entry[i - 1].name, z->entry[i].name);
    if (!rc && z->n)
        qsort(z->entry, (size_t)z->n, sizeof *z->entry, by_name);
    for (int i = 1; i < z->n && !rc; i++)
        if (!strcmp(z->entry[i].name, z->entry[i - 1].name))
            rc = hv_fail(e, HV_EINPUT, "zip: %s is there twice", z->entry[i].name);
    if (rc) {
        hv_zip_close(z);
        return rc;
    }
    *out = z;
    return 0;
}

void hv_zip_close(struct hv_zip *z)
{
    if (!z)
        return;
    free(z->entry);
    free(z->names);
    free(z);
}

int hv_zip_count(const struct hv_zip *z)
{
    return z->n;
}

const struct hv_zip_entry *hv_zip_entry(const struct hv_zip *z, int i)
{
    return &z->entry[i];
}

const struct hv_zip_entry *hv_zip_find(const struct hv_zip *z, const char *name)
{
    const struct hv_zip_entry key = {.name = name};

    return z->n ? bsearch(&key, z->entry, (size_t)z->n, sizeof key, by_name) : NULL;
}

uint64_t hv_zip_digest(const struct hv_zip *z)
{
    uint64_t h = 0xCBF29CE484222325;

    for (uint64_t i = z->first; i < z->last; i++)
        h = (h ^ z->data[i]) * 0x100000001B3;
    return h;
}

int hv_zip_verify(const struct hv_zip *z, const struct hv_zip_entry *t, struct hv_err *e)
{
    const uint32_t crc = (uint32_t)crc32_z(crc32_z(0, NULL, 0), z->data + t->offset, (size_t)t->bytes);

    if (crc != t->crc)
        return hv_fail(e, HV_EINPUT, "zip: %s: CRC-32 is %08x, the directory says %08x", t->name, crc, t->crc);
    return 0;
}
