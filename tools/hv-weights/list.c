/* hv-weights list: the tensors of a checkpoint of any format, as they are stored. */
#include <stdio.h>
#include <string.h>

#include "hv-weights.h"
#include "io/listing.h"

static void pad(int width, int to)
{
    printf("%*s", width < to ? to - width : 0, "");
}

/* Name, dtype, shape, bytes: as hv_listing prints a tensor file. Bytes are those of a contiguous copy. */
static void print_list(const struct hv_ckpt *c)
{
    char shape[192];
    int name_width = 0, shape_width = 0;

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        const int n = (int)strnlen(t->name, 100), s = (int)strlen(shape_text(shape, t->ndim, t->shape));
        name_width = n > name_width ? n : name_width;
        shape_width = s > shape_width ? s : shape_width;
    }
    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        pad(hv_print_safe(stdout, t->name), name_width);
        printf("  %-7s  %-*s  %12llu\n", hv_dtype_name(t->dtype), shape_width, shape_text(shape, t->ndim, t->shape),
               (unsigned long long)hv_ctensor_count(t) * hv_dtype_size(t->dtype));
    }
}

static json_t *json_list(const struct hv_ckpt *c)
{
    json_t *tensors = json_array();
    int bad = !tensors;

    for (int i = 0; !bad && i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        json_t *shape = json_array();
        for (int k = 0; k < t->ndim && !bad; k++)
            bad = json_array_append_new(shape, json_integer(t->shape[k]));
        bad |= json_array_append_new(tensors, json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype",
                                                        hv_dtype_name(t->dtype), "shape", shape, "bytes",
                                                        (json_int_t)(hv_ctensor_count(t) * (int64_t)hv_dtype_size(t->dtype))));
    }
    if (bad) {
        json_decref(tensors);
        return NULL;
    }
    return json_pack("{s:s, s:s, s:{}, s:o}", "file", hv_ckpt_path(c), "format", hv_ckpt_format(c), "metadata", "tensors",
                     tensors);
}

static int list_file(const char *path, int several, int first, json_t *all, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    struct hv_ckpt *c = NULL;
    int rc = hv_ckpt_open(&c, &path, 1, o, e);
    const struct hv_in *in = rc ? NULL : hv_ckpt_in(c);

    if (!rc && all && json_array_append_new(all, in ? hv_listing_json(in) : json_list(c)))
        rc = hv_fail(e, HV_ENOMEM, "out of memory");
    if (!rc && !all) {
        if (several) {
            fputs(first ? "" : "\n", stdout);
            hv_print_safe(stdout, path);
            fputs(":\n", stdout);
        }
        if (in)
            hv_listing(stdout, in, 0);
        else
            print_list(c);
    }
    hv_ckpt_close(c);
    return rc;
}

int cmd_list(int argc, char **argv, struct hv_err *e)
{
    static int as_json;
    static struct hv_common c;
    static struct hv_ckpt_opts o = {.script = 1};
    const struct hv_opt opts[] = {
        {"json", 0, HV_OPT_FLAG, &as_json, NULL, "one JSON array, an object a file", 0, 0},
        {"key", 0, HV_OPT_STR, &o.key, "KEY", "where a torch archive has its tensors (default: module, model, ..)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "list FILE...", "Lists tensors of any format: name, dtype, shape, bytes.", opts, &c,
                               1, -1};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "list", e);
    json_t *all = !rc && as_json ? json_array() : NULL;
    if (!rc && as_json && !all)
        rc = hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; i < c.n_operands && !rc; i++) {
        o.alone = !is_folder(c.operand[i]);
        rc = list_file(c.operand[i], c.n_operands > 1, !i, all, &o, e);
    }
    if (!rc && all) {
        json_dumpf(all, stdout, JSON_INDENT(1));
        putchar('\n');
    }
    json_decref(all);
    return rc;
}
