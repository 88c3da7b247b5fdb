/* The transformer's config.json and the list of full steps from hostile bytes. What is accepted must hold: a plan can be made of
 * it, or is refused; step 0 is full. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/dit.h"
#include "model/flow.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void plan(const struct dit_config *c)
{
    const struct dit_size s = {.frames = 33, .height = 4 * c->patch[1], .width = 6 * c->patch[2], .texts = 2, .text_len = 20,
                               .text_rows = 9, .full = 3, .cached = 1, .sound = 129, .clip_frames = 65, .windows = 2,
                               .branches = 2, .act = HV_BF16};
    for (int gpu = 0; gpu < 2; gpu++) {
        struct dit_budget limit = {.device = (size_t)1 << 30};
        struct dit_choice choice = {.resident_blocks = -1};
        struct hv_err e = {0};
        if (gpu)
            limit.machine = dit_machine_of(0, 0, HV_ATT_FLASH, 0);
        else
            choice.resident_blocks = 0;
        /* Thousands of blocks make the search long, not wrong. */
        if (gpu && c->double_blocks + c->single_blocks > 64)
            continue;
        if (dit_choose(&choice, c, &s, &limit, &e) ? e.code != HV_ENOMEM && e.code != HV_EINPUT && e.code != HV_EUNSUP :
            c->heads % choice.group)
            abort();
    }
}

static void list(const char *text)
{
    uint8_t full[50];
    struct hv_err e = {0};

    if (!flow_full_steps(full, 50, text, &e) && !full[0])
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct dit_config c;
    struct hv_err e = {0};
    json_t *root = NULL;
    char *text = malloc(n + 1);

    if (!text)
        return 0;
    memcpy(text, data, n);
    text[n] = 0;
    list(text);
    if (!hv_json_parse(&root, text, n, 8, &e) && !dit_config_parse(&c, root, &e)) {
        if (c.head_dim * c.heads != c.hidden || c.adapters > DIT_ADAPTERS_MAX)
            abort();
        plan(&c);
    }
    json_decref(root);
    free(text);
    return 0;
}
