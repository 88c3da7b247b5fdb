/* zip.h - the directory of a zip archive in memory, for files from strangers.
 *
 *     struct hv_zip *z = NULL;
 *     if (!hv_zip_open(&z, data, bytes, e)) {
 *         const struct hv_zip_entry *t = hv_zip_find(z, "archive/data.pkl");      // data + t->offset, t->bytes
 *         ...
 *     }
 *     hv_zip_close(z);
 *
 * PyTorch stores its entries without compression, so an entry is a range of the file and nothing is ever inflated: a
 * compressed entry is listed and has no data. Our own reader, since a library reads what it can, while this one refuses
 * whatever could be read in two ways: local headers that say something else than the directory, entries that overlap, names
 * twice, an end record that is not at the end, several disks, encryption. Zip64 is read. */
#ifndef HV_ZIP_H
#define HV_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_ZIP_ENTRIES 100000           /* at most; the largest model here has a thousand */

struct hv_zip_entry {
    const char *name;                   /* UTF-8, ends with a zero */
    uint64_t    offset, bytes;          /* of the data in the file; as stored */
    uint32_t    crc;
    int         stored;                 /* 0: compressed */
};

struct hv_zip;

/* Reads the directory; data is borrowed. HV_EINPUT, HV_ENOMEM. */
int  hv_zip_open(struct hv_zip **z, const uint8_t *data, size_t bytes, struct hv_err *e);
void hv_zip_close(struct hv_zip *z);

int                        hv_zip_count(const struct hv_zip *z);
const struct hv_zip_entry *hv_zip_entry(const struct hv_zip *z, int i);     /* by name */
const struct hv_zip_entry *hv_zip_find(const struct hv_zip *z, const char *name);

/* Digest (FNV-1a 64) of the directory, which holds the CRC of every entry. */
uint64_t hv_zip_digest(const struct hv_zip *z);

/* HV_EINPUT when the entry's data has not the CRC-32 of the directory. */
int hv_zip_verify(const struct hv_zip *z, const struct hv_zip_entry *t, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
