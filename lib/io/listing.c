#include "io/listing.h"

#include <string.h>

const char *hv_entry_shape(const struct hv_entry *t, char buf[HV_ENTRY_STR])
{
    size_t n = (size_t)snprintf(buf, HV_ENTRY_STR, "[");

    for (int i = 0; i < t->ndim; i++)
        n += (size_t)snprintf(buf + n, HV_ENTRY_STR - n, "%s%lld", i ? "," : "", (long long)t->shape[i]);
    snprintf(buf + n, HV_ENTRY_STR - n, "]");
    return buf;
}

/* Control characters of ASCII, and those of U+0080 to U+009F, which are C2 80 to C2 9F in UTF-8. */
static int is_control(const unsigned char *s)
{
    return *s < 0x20 || *s == 0x7f || (*s == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0);
}

int hv_print_safe(FILE *f, const char *text)
{
    int width = 0;

    for (const unsigned char *s = (const unsigned char *)text; *s; s++) {
        if (is_control(s)) {
            width += fprintf(f, "\\x%02x", *s);
            if (*s == 0xc2)
                width += fprintf(f, "\\x%02x", *++s);
        } else {
            fputc(*s, f);
            width += (*s & 0xc0) != 0x80;
        }
    }
    return width;
}

static void pad(FILE *f, int width, int to)
{
    fprintf(f, "%*s", width < to ? to - width : 0, "");
}

void hv_listing(FILE *f, const struct hv_in *in, int with_meta)
{
    char shape[HV_ENTRY_STR];
    const char *key, *value;
    int name_width = 0, shape_width = 0;

    for (int i = 0; with_meta && hv_in_meta_at(in, i, &key, &value); i++) {
        fprintf(f, "# ");
        hv_print_safe(f, key);
        fprintf(f, ": ");
        hv_print_safe(f, value);
        fputc('\n', f);
    }
    for (int i = 0; i < hv_in_count(in); i++) {
        const int n = (int)strnlen(hv_in_entry(in, i)->name, 100), s = (int)strlen(hv_entry_shape(hv_in_entry(in, i), shape));
        name_width = n > name_width ? n : name_width;
        shape_width = s > shape_width ? s : shape_width;
    }
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        pad(f, hv_print_safe(f, t->name), name_width);
        fprintf(f, "  %-7s  %-*s  %12llu\n", hv_dtype_name(t->dtype), shape_width, hv_entry_shape(t, shape),
                (unsigned long long)(t->end - t->begin));
    }
}

json_t *hv_listing_json(const struct hv_in *in)
{
    json_t *meta = json_object(), *tensors = json_array();
    const char *key, *value;
    int bad = !meta || !tensors;

    for (int i = 0; !bad && hv_in_meta_at(in, i, &key, &value); i++)
        bad = json_object_set_new(meta, key, json_string(value));
    for (int i = 0; !bad && i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        json_t *shape = json_array();
        for (int k = 0; k < t->ndim && !bad; k++)
            bad = json_array_append_new(shape, json_integer(t->shape[k]));
        bad |= json_array_append_new(tensors, json_pack("{s:s, s:s, s:o, s:I, s:I}", "name", t->name, "dtype",
                                                        hv_dtype_name(t->dtype), "shape", shape, "begin",
                                                        (json_int_t)t->begin, "bytes", (json_int_t)(t->end - t->begin)));
    }
    if (bad) {
        json_decref(meta);
        json_decref(tensors);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:o}", "file", hv_in_path(in), "metadata", meta, "tensors", tensors);
}

int hv_listing_files(FILE *f, const char *const *path, int n, int json, int with_meta, struct hv_err *e)
{
    json_t *all = json ? json_array() : NULL;
    int rc = json && !all ? hv_fail(e, HV_ENOMEM, "out of memory") : 0;

    for (int i = 0; i < n && !rc; i++) {
        struct hv_in *in = NULL;
        rc = hv_in_open(&in, path[i], e);
        if (!rc && json && json_array_append_new(all, hv_listing_json(in)))
            rc = hv_fail(e, HV_ENOMEM, "out of memory");
        if (!rc && !json) {
            if (n > 1) {
                fputs(i ? "\n" : "", f);
                hv_print_safe(f, path[i]);
                fputs(":\n", f);
            }
            hv_listing(f, in, with_meta);
        }
        hv_in_close(in);
    }
    if (!rc && json) {
        json_dumpf(all, f, JSON_INDENT(1));
        fputc('\n', f);
    }
    json_decref(all);
    return rc;
}
