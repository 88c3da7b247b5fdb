/* hv-tensor - looks at tensor files, compares, converts, cuts, joins, checks and draws them. See hv-tensor.1 */
#include "hv-tensor.h"

#include <stdio.h>
#include <string.h>

#include "io/contract.h"
#include "io/listing.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, struct hv_err *e);
} commands[] = {
    {"list", cmd_list},   {"stats", cmd_stats}, {"diff", cmd_diff},   {"convert", cmd_convert},
    {"slice", cmd_slice}, {"merge", cmd_merge}, {"check", cmd_check}, {"preview", cmd_preview},
    {"fit-preview", cmd_fit_preview},
};

int cmd_list(int argc, char **argv, struct hv_err *e)
{
    static int json;
    static struct hv_common c;
    static const char *const only_stdin[] = {"-"};
    const struct hv_opt opts[] = {{"json", 0, HV_OPT_FLAG, &json, NULL, "one JSON array, an object a file", 0, 0}, {0}};
    const struct hv_cli cli = {"hv-tensor", "list [FILE]...",
                               "Lists tensors (name, dtype, shape, bytes), after the metadata as '# key: value'.", opts, &c, 0,
                               -1};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "list", e);
    return rc ? rc : hv_listing_files(stdout, c.n_operands ? c.operand : only_stdin, c.n_operands ? c.n_operands : 1, json, 1, e);
}

static int general(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-tensor", "list|stats|diff|convert|slice|merge|check|preview|fit-preview ARGUMENT...",
                               "Looks at tensor files (safetensors), compares, converts, cuts, joins, checks, draws them.\n\n"
                               "  list [FILE]...           metadata; name, dtype, shape, bytes\n"
                               "  stats [FILE]             min, max, mean, rms, NaN and Inf of each tensor\n"
                               "  diff A B                 largest and relative difference, cosine, where\n"
                               "  convert [FILE]           another dtype; npy and back\n"
                               "  slice FILE KEY RANGES    a part of a tensor: :,0:4\n"
                               "  merge FILE...            several files into one\n"
                               "  check [FILE]...          which stage file it is, and whether the next stage takes it\n"
                               "  preview [FILE]           latents, masks, frames, features as a PNG\n"
                               "  fit-preview PICTURE...   the colours of a VAE's latents, into its config.json\n\n"
                               "hv-tensor COMMAND --help has the options of a command.",
                               NULL, &c, 1, 1};
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    return rc ? rc : hv_fail(e, HV_EUSAGE, "'%s' is not a command: list, stats, diff, convert, slice, merge, check, preview or fit-preview",
                             c.operand[0]);
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
    return hv_exit("hv-tensor", &e);
}
