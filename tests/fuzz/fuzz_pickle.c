/* Pickles from hostile bytes: alone, and in an archive with storages around them whose checksum is made to hold. */
#include "fuzz_ckpt.h"

#include <string.h>
#include <zlib.h>

#include "io/pickle.h"

struct zip {
    uint8_t *p;
    size_t   n;
};

static void put_int(struct zip *z, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        z->p[z->n++] = (uint8_t)(i < 8 ? v >> 8 * i : 0);
}

static void put(struct zip *z, const void *data, size_t n)
{
    memcpy(z->p + z->n, data, n);
    z->n += n;
}

static size_t put_local(struct zip *z, const char *name, const void *data, size_t n, uint32_t crc)
{
    const size_t at = z->n;

    put(z, "PK\3\4", 4);
    put_int(z, 0, 10);
    put_int(z, crc, 4);
    put_int(z, n, 4);
    put_int(z, n, 4);
    put_int(z, strlen(name), 4);
    put(z, name, strlen(name));
    put(z, data, n);
    return at;
}

static void put_central(struct zip *z, const char *name, size_t n, uint32_t crc, size_t at)
{
    put(z, "PK\1\2", 4);
    put_int(z, 0, 12);
    put_int(z, crc, 4);
    put_int(z, n, 4);
    put_int(z, n, 4);
    put_int(z, strlen(name), 2);
    put_int(z, 0, 12);
    put_int(z, at, 4);
    put(z, name, strlen(name));
}

/* a/data.pkl and storages a/data/0 to a/data/3 of 64 bytes; with constants.pkl it is a TorchScript module. */
static void in_archive(const uint8_t *data, size_t n, int script)
{
    static const uint8_t storage[64] = {1, 2, 3};
    static const char *const names[] = {"a/data.pkl", "a/data/0", "a/data/1", "a/data/2", "a/data/3", "a/constants.pkl"};
    struct zip z = {malloc(n + 4096), 0};
    size_t at[6], bytes[6], entries = script ? 6 : 5;
    uint32_t crc[6];

    if (!z.p)
        return;
    for (size_t i = 0; i < entries; i++) {
        const void *p = i ? storage : data;
        bytes[i] = i ? sizeof storage : n;
        crc[i] = (uint32_t)crc32_z(0, p, bytes[i]);
        at[i] = put_local(&z, names[i], p, bytes[i], crc[i]);
    }
    const size_t start = z.n;
    for (size_t i = 0; i < entries; i++)
        put_central(&z, names[i], bytes[i], crc[i], at[i]);
    const size_t size = z.n - start;
    put(&z, "PK\5\6", 4);
    put_int(&z, 0, 4);
    put_int(&z, entries, 2);
    put_int(&z, entries, 2);
    put_int(&z, size, 4);
    put_int(&z, start, 4);
    put_int(&z, 0, 2);
    fuzz_file(z.p, z.n);
    free(z.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    for (int script = 0; script < 2; script++) {
        struct hv_pickle *p = NULL;
        struct hv_err e = {0};
        if (!hv_pickle_read(&p, data, n, script ? HV_PICKLE_SCRIPT : HV_PICKLE_TENSORS, &e)) {
            fuzz_sum += (float)hv_pickle_top(p)->type;
            (void)hv_pickle_get(hv_pickle_top(p), "module");
        }
        hv_pickle_close(p);
        in_archive(data, n, script);
    }
    return 0;
}
