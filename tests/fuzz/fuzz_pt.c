/* Torch archives from hostile bytes: the zip directory, and the pickle in it where its checksum holds. */
#include "fuzz_ckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n)
        fuzz_file(data, n);
    return 0;
}
