/* digest.h - SHA-256 of bytes in memory, as 64 hexadecimal digits.
 *
 *     char hex[HV_SHA256];
 *     if (!hv_sha256(hex, data, bytes, e)) ... */
#ifndef HV_DIGEST_H
#define HV_DIGEST_H

#include <stddef.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_SHA256 65

/* HV_ENOMEM: the library could not start. */
int hv_sha256(char hex[HV_SHA256], const void *data, size_t bytes, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
