/* Tensor files from hostile bytes: the reader, every tensor and metadata string, the listing, the contract. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/contract.h"
#include "io/listing.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile uint8_t sum;

static void read_all(struct hv_in *in)
{
    const char *key, *value;
    hv_tensor t;

    for (int i = 0; hv_in_meta_at(in, i, &key, &value); i++)
        sum = (uint8_t)(sum + *key + *value + (hv_in_meta(in, key) == value));
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *entry = hv_in_entry(in, i);
        const uint8_t *p = hv_in_data(in, entry);
        struct hv_err e = {0};
        for (uint64_t k = entry->begin; k < entry->end; k++)
            sum = (uint8_t)(sum + p[k - entry->begin]);
        if (!hv_in_tensor(in, entry->name, &t, &e) && hv_nbytes(t))
            sum = (uint8_t)(sum + ((const uint8_t *)t.data)[hv_nbytes(t) - 1] + (hv_first_nonfinite(t) >= 0));
        hv_in_advise(in, entry->begin, entry->end, 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static FILE *null;
    struct hv_in *in = NULL;
    struct hv_operands o;
    struct hv_err e = {0};
    char path[64];
    const char *const operand = path;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (!null)
        null = fopen("/dev/null", "w");
    if (fd < 0 || !null || write(fd, data, n) != (ssize_t)n)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (!hv_in_open(&in, path, &e)) {
        read_all(in);
        hv_listing(null, in, 1);
        json_decref(hv_listing_json(in));
    }
    hv_in_close(in);
    e = (struct hv_err){0};
    if (!hv_operands_open(&o, &operand, 1, &e)) {
        hv_tensor t;
        int64_t v = 0;
        for (const struct hv_key *k = hv_contract; k->file; k++) {
            struct hv_err ignored = {0};
            (void)hv_operands_get(&o, k->key, &t, &ignored);
        }
        (void)hv_operands_meta_int(&o, "hv.width", 1, 1 << 20, &v, &e);
    }
    hv_operands_close(&o);
    close(fd);
    return 0;
}
