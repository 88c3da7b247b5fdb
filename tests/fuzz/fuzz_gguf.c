/* GGUF files from hostile bytes. */
#include "fuzz_ckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n)
        fuzz_file(data, n);
    return 0;
}
