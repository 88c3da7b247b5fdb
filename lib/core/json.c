#include "core/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* jansson's own limit is 2048 nested brackets, each a recursion; the files of this project need a dozen. */
static int too_deep(const char *s, size_t n, int max_depth)
{
    int depth = 0, in_string = 0;

    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            if (s[i] == '\\')
                i++;
            else if (s[i] == '"')
                in_string = 0;
        } else if (s[i] == '"') {
            in_string = 1;
        } else if (s[i] == '{' || s[i] == '[') {
            if (++depth > max_depth)
                return 1;
        } else if (s[i] == '}' || s[i] == ']') {
            depth--;
        }
    }
    return 0;
}

int hv_json_parse(json_t **root, const char *text, size_t n, int max_depth, struct hv_err *e)
{
    json_error_t je;

    *root = NULL;
    if (too_deep(text, n, max_depth))
        return hv_fail(e, HV_EINPUT, "json: nested deeper than %d", max_depth);
    *root = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!*root)
        return hv_fail(e, HV_EINPUT, "json: line %d: %s", je.line, je.text);
    return 0;
}

int hv_json_read(json_t **root, const char *path, struct hv_err *e)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, cap = 0, got;
    int rc = 0;

    *root = NULL;
    if (!f)
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    do {
        if (n == cap) {
            char *p = realloc(text, cap = cap ? 2 * cap : 16384);
            if (!p) {
                rc = hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
                break;
            }
            text = p;
        }
        got = fread(text + n, 1, cap - n, f);
        n += got;
        if (n > HV_JSON_BYTES)
            rc = hv_fail(e, HV_EINPUT, "%s: json: over %zu MiB", path, HV_JSON_BYTES >> 20);
    } while (got && !rc);
    if (!rc && ferror(f))
        rc = hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    if (!rc && hv_json_parse(root, text, n, HV_JSON_DEPTH, e))
        rc = hv_context(e, "%s", path);
    free(text);
    fclose(f);
    return rc;
}

/* The value of a key, NULL where it is absent or null. */
static const json_t *get(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    return json_is_null(v) ? NULL : v;
}

int hv_json_int(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *value, struct hv_err *e)
{
    const json_t *v = get(obj, key);

    if (!v)
        return 0;
    if (!json_is_integer(v))
        return hv_fail(e, HV_EINPUT, "%s: not an integer", key);
    if (json_integer_value(v) < min || json_integer_value(v) > max)
        return hv_fail(e, HV_EINPUT, "%s: %lld, expected %lld to %lld", key, (long long)json_integer_value(v),
                       (long long)min, (long long)max);
    *value = json_integer_value(v);
    return 0;
}

int hv_json_real(const json_t *obj, const char *key, double min, double max, double *value, struct hv_err *e)
{
    const json_t *v = get(obj, key);

    if (!v)
        return 0;
    if (!json_is_number(v))
        return hv_fail(e, HV_EINPUT, "%s: not a number", key);
    if (!(json_number_value(v) >= min && json_number_value(v) <= max))
        return hv_fail(e, HV_EINPUT, "%s: %g, expected %g to %g", key, json_number_value(v), min, max);
    *value = json_number_value(v);
    return 0;
}

int hv_json_bool(const json_t *obj, const char *key, int *value, struct hv_err *e)
{
    const json_t *v = get(obj, key);

    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return hv_fail(e, HV_EINPUT, "%s: not true or false", key);
    *value = json_is_true(v);
    return 0;
}

int hv_json_str(const json_t *obj, const char *key, const char **value, struct hv_err *e)
{
    const json_t *v = get(obj, key);

    if (!v)
        return 0;
    if (!json_is_string(v))
        return hv_fail(e, HV_EINPUT, "%s: not a string", key);
    *value = json_string_value(v);
    return 0;
}

int hv_json_ints(const json_t *obj, const char *key, int64_t min, int64_t max, int64_t *value, int max_n, int *n,
                 struct hv_err *e)
{
    const json_t *v = get(obj, key);

    if (!v)
        return 0;
    if (!json_is_array(v) || json_array_size(v) > (size_t)max_n)
        return hv_fail(e, HV_EINPUT, "%s: not a list of at most %d integers", key, max_n);
    *n = (int)json_array_size(v);
    for (int i = 0; i < *n; i++) {
        const json_t *x = json_array_get(v, (size_t)i);
        if (!json_is_integer(x) || json_integer_value(x) < min || json_integer_value(x) > max)
            return hv_fail(e, HV_EINPUT, "%s: entry %d is not an integer from %lld to %lld", key, i, (long long)min,
                           (long long)max);
        value[i] = json_integer_value(x);
    }
    return 0;
}
