/* json.h - what hv needs of JSON, on jansson: duplicate keys refused, depth and size bounded, numbers range-checked.
 *
 *     json_t *root = NULL;
 *     int64_t heads = 24;                                          // the default where the key is absent
 *     if (!hv_json_read(&root, path, e) && !hv_json_int(root, "num_heads", 1, 1024, &heads, e)) ...
 *     json_decref(root);
 *
 * Getters leave *value as it is when the key is absent or null, and fail with HV_EINPUT, naming the key and its range,
 * when the value is of another type or out of range. A root is released with json_decref. */
#ifndef HV_JSON_H
#define HV_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_JSON_DEPTH 64
#define HV_JSON_BYTES ((size_t)64 << 20)

/* Parses n bytes of UTF-8. The root must be an object or an array; depth counts nested brackets. Strings may hold U+0000. */
int hv_json_parse(json_t **root, const char *text, size_t n, int max_depth, struct hv_err *e);

/* Parses a file of at most HV_JSON_BYTES. HV_EIO if it cannot be read; messages start with the path. */
int hv_json_read(json_t **root, const char *path, struct hv_err *e);

int hv_json_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *value, struct hv_err *e);
int hv_json_real(const json_t *obj, const char *key, double min, double max, double *value, struct hv_err *e);
int hv_json_bool(const json_t *obj, const char *key, int *value, struct hv_err *e);

/* The string is owned by the root. */
int hv_json_str(const json_t *obj, const char *key, const char **value, struct hv_err *e);

/* An array of integers: at most max_n into value, *n of them. */
int hv_json_ints(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *value, int max_n, int *n,
                 struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
