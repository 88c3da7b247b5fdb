/* hv-weights - packed weights: make them, list them, check them, quantize them. See hv-weights.1 */
#include "hv-weights.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, struct hv_err *e);
} commands[] = {
    {"synth", cmd_synth}, {"list", cmd_list}, {"check", cmd_check}, {"import", cmd_import},
    {"quantize", cmd_quantize}, {"diff", cmd_diff},
};

/* The help of the program; that of a command is printed by the command. */
static int general(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-weights", "import|synth|list|check|quantize|diff ARGUMENT...",
                               "Imports, makes, lists, checks, quantizes and compares weights.\n\n"
                               "  import CKPTS MODEL       the official download becomes a model folder; --model: one part\n"
                               "  synth CONFIG SEED OUT    synthetic weights of a config.json, or of a folder of parts\n"
                               "  list FILE...             name, dtype, shape and bytes of every tensor\n"
                               "  check FILE|FOLDER...     structure, names, shapes, NaN and Inf, digest\n"
                               "  quantize IN OUT          int8 or fp8 matrices, or another dtype\n"
                               "  diff A B                 relative error and cosine, tensor by tensor\n\n"
                               "hv-weights COMMAND --help has the options of a command.",
                               NULL, &c, 1, 1};
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    return rc ? rc : hv_fail(e, HV_EUSAGE, "'%s' is not a command: import, synth, list, check, quantize or diff", c.operand[0]);
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
    pool_close();
    return hv_exit("hv-weights", &e);
}
