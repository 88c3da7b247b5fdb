#include "io/digest.h"

#include <openssl/evp.h>
#include <stdio.h>

int hv_sha256(char hex[HV_SHA256], const void *data, size_t bytes, struct hv_err *e)
{
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned n = 0;

    if (!EVP_Digest(data, bytes, md, &n, EVP_sha256(), NULL))
        return hv_fail(e, HV_ENOMEM, "sha256: cannot start");
    for (unsigned i = 0; i < n && 2 * i + 2 < HV_SHA256; i++)
        snprintf(hex + 2 * i, 3, "%02x", md[i]);
    return 0;
}
