/* What says how matrices were quantized, from hostile bytes: the metadata of quanto alone, and whole tensor files that have scales. */
#include "fuzz_ckpt.h"

#include <string.h>

#include "io/quanto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    json_t *root = NULL;
    struct hv_err e = {0};

    if (!text)
        return 0;
    memcpy(text, data, n);
    text[n] = 0;
    if (!hv_quanto_map(&root, text, &e))
        fuzz_sum += (float)json_object_size(root);
    json_decref(root);
    e = (struct hv_err){0};
    if (!hv_quanto_tied(&root, text, &e))
        fuzz_sum += (float)json_object_size(root);
    json_decref(root);
    /* The JSON without its base64, which a mutation rarely leaves whole. */
    e = (struct hv_err){0};
    if (!hv_json_parse(&root, text, n, 16, &e))
        (void)hv_quanto_check(root, &e);
    json_decref(root);
    free(text);
    if (n)
        fuzz_file(data, n);
    return 0;
}
