/* hv-weights - packed weights: make them, list them, check them, quantize them. See hv-weights.1 */
#include "hv-weights.h"

#include <stdio.h>
#include <string.h>

#include "io/listing.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, struct hv_err *e);
} commands[] = {
    {"synth", cmd_synth}, {"list", cmd_list}, {"check", cmd_check}, {"quantize", cmd_quantize}, {"diff", cmd_diff},
};

int cmd_list(int argc, char **argv, struct hv_err *e)
{
    static int json;
    static struct hv_common c;
    const struct hv_opt opts[] = {{"json", 0, HV_OPT_FLAG, &json, NULL, "one JSON array, an object a file", 0, 0}, {0}};
    const struct hv_cli cli = {"hv-weights", "list FILE...", "Lists tensors: name, dtype, shape, bytes.", opts, &c, 1, -1};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "list", e);
    return rc ? rc : hv_listing_files(stdout, c.operand, c.n_operands, json, 0, e);
}

/* The help of the program; that of a command is printed by the command. */
static int general(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-weights", "synth|list|check|quantize|diff ARGUMENT...",
                               "Makes, lists, checks, quantizes and compares packed weights.\n\n"
                               "  synth CONFIG SEED OUT    synthetic weights of a config.json, or of a folder of parts\n"
                               "  list FILE...             name, dtype, shape and bytes of every tensor\n"
                               "  check FILE|FOLDER...     structure, names, shapes, NaN and Inf, digest\n"
                               "  quantize IN OUT          int8 or fp8 matrices, or another dtype\n"
                               "  diff A B                 relative error and cosine, tensor by tensor\n\n"
                               "hv-weights COMMAND --help has the options of a command.",
                               NULL, &c, 1, 1};
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    return rc ? rc : hv_fail(e, HV_EUSAGE, "'%s' is not a command: synth, list, check, quantize or diff", c.operand[0]);
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    int found = 0;

    for (size_t i = 0; i < sizeof commands / sizeof *commands && argc > 1; i++) {
        if (!strcmp(argv[1], commands[i].name)) {
            found = 1;
            commands[i].run(argc - 1, argv + 1, &e);
        }
    }
    if (!found)
        general(argc > 2 ? 2 : argc, argv, &e);
    return hv_exit("hv-weights", &e);
}
