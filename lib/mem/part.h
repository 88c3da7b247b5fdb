/* part.h - a part of a model folder: MODEL/PART/config.json and MODEL/PART/model.safetensors.
 *
 *     json_t *json = NULL;
 *     if (!hv_part_config(&json, o->c.model, "audio_encoder", e) && !whisper_config_parse(&c, json, e)) ...
 *     whisper_weights(&list, &c);
 *     hv_part_weights(&w, dev, o->c.model, "audio_encoder", &list, e);
 *     json_decref(json); */
#ifndef HV_PART_H
#define HV_PART_H

#include "core/json.h"
#include "mem/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads the part's config.json. HV_EUSAGE: model is NULL or "". */
int hv_part_config(json_t **config, const char *model, const char *part, struct hv_err *e);

/* Opens the part's weights; on the dry device no file is touched: shapes alone. */
int hv_part_weights(struct hv_weights **w, struct hv_dev *d, const char *model, const char *part,
                    const struct hv_wlist *l, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
