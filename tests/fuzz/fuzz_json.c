/* JSON from hostile bytes: the parser with its bounds, the getters, and every network's reading of its config. */
#include <stddef.h>
#include <stdint.h>

#include "core/json.h"
#include "model/kinds.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *root = NULL;
    struct hv_err e = {0};

    if (!hv_json_parse(&root, (const char *)data, n, HV_JSON_DEPTH, &e)) {
        int64_t i = 0, list[4];
        double x = 0;
        int flag = 0, count = 0;
        const char *text = NULL;
        struct hv_err ignored = {0};
        (void)hv_json_int(root, "hidden_size", 1, 1 << 20, &i, &ignored);
        (void)hv_json_real(root, "layer_norm_eps", 0, 1, &x, &ignored);
        (void)hv_json_bool(root, "qkv_bias", &flag, &ignored);
        (void)hv_json_str(root, "model_type", &text, &ignored);
        (void)hv_json_ints(root, "patch_size", 1, 64, list, 4, &count, &ignored);
        for (const struct hv_kind *k = hv_kinds; k->name; k++) {
            struct hv_wlist l = {0};
            struct hv_err fault = {0};
            (void)k->list(&l, root, &fault);
            hv_wlist_close(&l);
        }
        (void)hv_kind_of_config(root);
    }
    json_decref(root);
    return 0;
}
