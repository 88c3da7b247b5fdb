#include "mem/part.h"

#include <stdio.h>

#include "core/temp.h"

static int path_of(char path[HV_PATH], const char *model, const char *part, const char *file, struct hv_err *e)
{
    if (!model || !*model)
        return hv_fail(e, HV_EUSAGE, "no model: name its folder with --model DIR or in HV_MODEL");
    if (snprintf(path, HV_PATH, "%s/%s/%s", model, part, file) >= HV_PATH)
        return hv_fail(e, HV_EUSAGE, "%.64s..: the name is too long", model);
    return 0;
}

int hv_part_config(json_t **config, const char *model, const char *part, struct hv_err *e)
{
    char path[HV_PATH];

    *config = NULL;
    if (path_of(path, model, part, "config.json", e))
        return e->code;
    return hv_json_read(config, path, e);
}

int hv_part_weights(struct hv_weights **w, struct hv_dev *d, const char *model, const char *part,
                    const struct hv_wlist *l, struct hv_err *e)
{
    char path[HV_PATH];

    *w = NULL;
    if (path_of(path, model, part, "model.safetensors", e))
        return e->code;
    return hv_weights_open(w, d, d->kind == HV_DRY ? NULL : path, l, e);
}
