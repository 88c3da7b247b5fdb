#include "io/quanto.h"

#include <stdlib.h>
#include <string.h>

static int digit(int c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Whole groups of four, "=" at the very end alone. */
static int decode(const char *text, char **out, size_t *bytes, struct hv_err *e)
{
    const size_t n = strlen(text);
    size_t pad = 0, at = 0;

    while (pad < 2 && pad < n && text[n - 1 - pad] == '=')
        pad++;
    if (n % 4 || !n)
        return hv_fail(e, HV_EINPUT, "base64 of %zu characters", n);
    char *p = malloc(n / 4 * 3);
    if (!p)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i += 4) {
        unsigned v = 0;
        for (size_t k = 0; k < 4; k++) {
            const int d = i + k >= n - pad ? 0 : digit(text[i + k]);
            if (d < 0) {
                free(p);
                return hv_fail(e, HV_EINPUT, "character %zu is not base64", i + k);
            }
            v = v << 6 | (unsigned)d;
        }
        p[at++] = (char)(v >> 16);
        p[at++] = (char)(v >> 8 & 255);
        p[at++] = (char)(v & 255);
    }
    *out = p;
    *bytes = at - pad;
    return 0;
}

static int decode_json(json_t **root, const char *base64, struct hv_err *e)
{
    char *text = NULL;
    size_t n = 0;
    int rc = decode(base64, &text, &n, e);

    *root = NULL;
    if (!rc)
        rc = hv_json_parse(root, text, n, 16, e);
    free(text);
    if (!rc && !json_is_object(*root)) {
        json_decref(*root);
        *root = NULL;
        rc = hv_fail(e, HV_EINPUT, "not an object");
    }
    return rc;
}

int hv_quanto_check(const json_t *root, struct hv_err *e)
{
    const char *name;
    json_t *v;

    if (!json_is_object(root))
        return hv_fail(e, HV_EINPUT, "not an object");
    json_object_foreach((json_t *)(uintptr_t)root, name, v) {
        const char *weights = json_string_value(json_object_get(v, "weights"));
        const json_t *a = json_object_get(v, "activations");
        if (!weights)
            return hv_fail(e, HV_EINPUT, "'%.200s' has no kind of weights", name);
        if (strcmp(weights, "qint8") && strcmp(weights, "qfloat8") && strcmp(weights, "qfloat8_e4m3fn"))
            return hv_fail(e, HV_EUNSUP, "'%.200s' is stored as %.40s: read are qint8 and qfloat8; quantize the original again",
                           name, weights);
        if (a && !json_is_null(a) && (!json_is_string(a) || strcmp(json_string_value(a), "none")))
            return hv_fail(e, HV_EUNSUP, "'%.200s' has quantized activations", name);
    }
    return 0;
}

int hv_quanto_map(json_t **root, const char *base64, struct hv_err *e)
{
    int rc = decode_json(root, base64, e);

    if (!rc && (rc = hv_quanto_check(*root, e))) {
        json_decref(*root);
        *root = NULL;
    }
    return rc ? hv_context(e, "quantization_map_base64") : 0;
}

int hv_quanto_tied(json_t **root, const char *base64, struct hv_err *e)
{
    int rc = decode_json(root, base64, e);
    const char *name;
    json_t *v;

    json_object_foreach(*root, name, v) {
        if (rc)
            break;
        if (!json_is_array(v))
            rc = hv_fail(e, HV_EINPUT, "'%.200s' is not a list of names", name);
        for (size_t i = 0; i < json_array_size(v) && !rc; i++)
            if (!json_is_string(json_array_get(v, i)))
                rc = hv_fail(e, HV_EINPUT, "'%.200s' is not a list of names", name);
    }
    if (rc) {
        json_decref(*root);
        *root = NULL;
    }
    return rc ? hv_context(e, "tied_weights_map_base64") : 0;
}
