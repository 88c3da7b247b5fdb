/* quanto.h - what the metadata of a file of optimum-quanto (mmgp) says of its matrices: base64 of JSON. */
#ifndef HV_QUANTO_H
#define HV_QUANTO_H

#include "core/json.h"

#ifdef __cplusplus
extern "C" {
#endif

/* {module: {"weights": "qint8" | "qfloat8" | "qfloat8_e4m3fn", "activations": "none"}} out of base64. The root is released
 * with json_decref. HV_EINPUT: no base64 of such JSON; HV_EUNSUP: other kinds. */
int hv_quanto_map(json_t **root, const char *base64, struct hv_err *e);

/* The same of JSON that was parsed already. */
int hv_quanto_check(const json_t *root, struct hv_err *e);

/* {name: [alias, ..]} out of base64. */
int hv_quanto_tied(json_t **root, const char *base64, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
