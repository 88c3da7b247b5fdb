/* cli.h - options, usage, exit status, progress: with hv_plan_print the only code of lib/ that prints.
 *
 *     static struct options { struct hv_common c; double fps; } o = {.fps = 25};
 *     const struct hv_opt opts[] = {
 *         {"fps", 0, HV_OPT_REAL, &o.fps, "25|12.5", "video frames a second", .min = 1, .max = 120},
 *         {0}
 *     };
 *     const struct hv_cli cli = {"hv-audio", "SOUND", "Turns speech into ...", opts, &o.c, HV_CLI_MODEL, 1, 1};
 *     rc = hv_cli_parse(&cli, argc, argv, &e);         // < 0: --help or --version was printed: leave with 0
 *
 * GNU long options by getopt_long. Every tool has: --model DIR, --device D, --threads N, -o FILE, -q, -v, --progress MODE,
 * -h, -V. */
#ifndef HV_CLI_H
#define HV_CLI_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_VERSION "0.1.0"

enum hv_opt_kind {
    HV_OPT_FLAG,        /* int: set to 1 */
    HV_OPT_INT,         /* int64_t, within min..max */
    HV_OPT_REAL,        /* double, within min..max */
    HV_OPT_STR,         /* const char * into argv */
    HV_OPT_OPTSTR,      /* const char *, the argument is optional (--plan[=json]): "" when absent */
    HV_OPT_LIST,        /* struct hv_strs: may be repeated */
    HV_OPT_SIZE         /* struct hv_size: 512M, 4G, 90%, -1G (free minus 1 GiB) */
};

struct hv_strs {
    const char *v[64];
    int         n;
};

struct hv_size {
    enum { HV_SIZE_UNSET, HV_SIZE_BYTES, HV_SIZE_PERCENT, HV_SIZE_LESS } kind;
    uint64_t bytes;     /* of HV_SIZE_BYTES and HV_SIZE_LESS */
    double   percent;
};

struct hv_opt {
    const char      *name;
    int              letter;            /* 0: none */
    enum hv_opt_kind kind;
    void            *value;
    const char      *arg, *help;        /* "N", "what it does" */
    double           min, max;          /* both 0: any */
};

struct hv_common {
    const char *model;                  /* --model; default $HV_MODEL, else NULL */
    const char *device;                 /* --device; default "cpu" */
    const char *output;                 /* -o; NULL: stdout */
    const char *progress;               /* auto, plain, json, none */
    int64_t     threads;                /* 0: as many as there are cores */
    int         quiet, verbose;
    const char **operand;               /* what is left of argv */
    int          n_operands;
};

struct hv_cli {
    const char          *name, *operands, *summary;
    const struct hv_opt *opts;          /* ends with a zeroed entry; may be NULL */
    struct hv_common    *common;
    int                  min_operands, max_operands;
};

/* Parses, and sets up what a program does about signals: a reader of stdout that left is a failed write, a mapped file
 * that was cut short is one line and HV_EIO (core/mapped.h). A wait for a device of over a second is told, unless -q.
 * 0: go on. -1: --help or --version was printed. HV_EUSAGE: with the message in e. */
int hv_cli_parse(const struct hv_cli *cli, int argc, char **argv, struct hv_err *e);

/* HV_EUSAGE when -o was given to a command that answers on standard output. */
int hv_cli_no_output(const struct hv_common *c, const char *command, struct hv_err *e);

/* Prints "NAME: message" if e holds a failure, flushes and closes stdout (a failure of that is HV_EIO), and returns the
 * exit status. After HV_EUSAGE one line more says how to get help. With -v: seconds since the parsing, and the most memory that
 * the process had of its own and of mapped files. */
int hv_exit(const char *name, struct hv_err *e);

/* A line "NAME: ..." on stderr, unless -q; hv_note_verbose: only with -v. */
void hv_note(const struct hv_cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void hv_note_verbose(const struct hv_cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "512M" -> bytes and the like; HV_EUSAGE with the text when it is none. */
int hv_size_parse(struct hv_size *s, const char *text, struct hv_err *e);

/* Bytes of a budget when `available` are free; available for HV_SIZE_UNSET. */
uint64_t hv_size_bytes(const struct hv_size *s, uint64_t available);

/* The same as the budget of a plan on the machine's memory: 0 (none) for HV_SIZE_UNSET, else 1 byte or more. */
size_t hv_size_budget(const struct hv_size *s);

/* ---- progress: what, i of n, seconds a step, time left; on stderr, for loops that last over a second ---- */

struct hv_progress {
    const char *name;                   /* of the program */
    int         mode;
    const char *what;
    double      started, printed;
    int         first;                  /* i at which `what` began: a resumed loop must not spoil the rate */
    int         open;                   /* a terminal line without its newline */
};

/* auto: a line that is rewritten on a terminal, a line every 10 s elsewhere; plain: one line a step; json; none. */
void hv_progress_open(struct hv_progress *p, const struct hv_cli *cli);

/* Reports that i of n are done (0 at the start). Has the type of hv_report_fn: pass it with the struct as ctx. */
void hv_progress_step(void *progress, const char *what, int i, int n);
void hv_progress_close(struct hv_progress *p);

#ifdef __cplusplus
}
#endif
#endif
