#define _GNU_SOURCE
#include "core/cli.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "core/lock.h"
#include "core/mapped.h"

#define OPTS_MAX 64

/* ---- parsing ---- */

static const struct hv_opt common_opts[] = {
    {"model", 0, HV_OPT_STR, NULL, "DIR", "model folder (default: $HV_MODEL)", 0, 0},
    {"device", 0, HV_OPT_STR, NULL, "cpu|cuda[:N]", "where to compute (default: cpu)", 0, 0},
    {"threads", 0, HV_OPT_INT, NULL, "N", "threads on the cpu (default: all cores)", 0, 1024},
    {"output", 'o', HV_OPT_STR, NULL, "FILE", "output (default: standard output)", 0, 0},
    {"quiet", 'q', HV_OPT_FLAG, NULL, NULL, "no progress and no notes, errors only", 0, 0},
    {"verbose", 'v', HV_OPT_FLAG, NULL, NULL, "say what is done", 0, 0},
    {"progress", 0, HV_OPT_STR, NULL, "MODE", "auto, plain, json or none (default: auto)", 0, 0},
};
#define N_COMMON ((int)(sizeof common_opts / sizeof *common_opts))

static void collect(struct hv_opt all[OPTS_MAX], int *n, const struct hv_cli *cli)
{
    struct hv_common *c = cli->common;
    void *const values[N_COMMON] = {&c->model, &c->device, &c->threads, &c->output, &c->quiet, &c->verbose, &c->progress};

    *n = 0;
    for (const struct hv_opt *o = cli->opts; o && o->name; o++)
        all[(*n)++] = *o;
    for (int i = 0; i < N_COMMON; i++) {
        all[*n] = common_opts[i];
        all[(*n)++].value = values[i];
    }
}

static int takes_argument(const struct hv_opt *o)
{
    return o->kind == HV_OPT_FLAG ? no_argument : o->kind == HV_OPT_OPTSTR ? optional_argument : required_argument;
}

static void usage(const struct hv_cli *cli, const struct hv_opt *all, int n)
{
    printf("usage: %s [OPTION]... %s\n%s\n\n", cli->name, cli->operands, cli->summary);
    for (int i = 0; i < n; i++) {
        char left[80];
        snprintf(left, sizeof left, "%s%c%s--%s%s%s", all[i].letter ? "-" : "", all[i].letter ? all[i].letter : ' ',
                 all[i].letter ? ", " : "   ", all[i].name,
                 all[i].arg ? (all[i].kind == HV_OPT_OPTSTR ? "[=" : " ") : "", all[i].arg ? all[i].arg : "");
        if (all[i].kind == HV_OPT_OPTSTR && strlen(left) < sizeof left - 1)
            strcat(left, "]");
        printf("  %-32s %s\n", left, all[i].help);
    }
    printf("  %-32s %s\n  %-32s %s\n\nExit status and files: man %s\n", "-h, --help", "this text", "-V, --version",
           "version", cli->name);
}

static int set_number(const struct hv_opt *o, const char *text, struct hv_err *e)
{
    char *end = NULL;

    errno = 0;
    if (o->kind == HV_OPT_INT) {
        const long long v = strtoll(text, &end, 10);
        if (end == text || *end || errno)
            return hv_fail(e, HV_EUSAGE, "--%s: '%s' is not a whole number", o->name, text);
        if ((o->min != 0 || o->max != 0) && ((double)v < o->min || (double)v > o->max))
            return hv_fail(e, HV_EUSAGE, "--%s: %lld, expected %.0f to %.0f", o->name, v, o->min, o->max);
        *(int64_t *)o->value = v;
        return 0;
    }
    const double v = strtod(text, &end);
    if (end == text || *end || !isfinite(v))
        return hv_fail(e, HV_EUSAGE, "--%s: '%s' is not a number", o->name, text);
    if ((o->min != 0 || o->max != 0) && (v < o->min || v > o->max))
        return hv_fail(e, HV_EUSAGE, "--%s: %g, expected %g to %g", o->name, v, o->min, o->max);
    *(double *)o->value = v;
    return 0;
}

static int set(const struct hv_opt *o, const char *arg, struct hv_err *e)
{
    struct hv_strs *list = o->value;

    switch (o->kind) {
    case HV_OPT_FLAG: *(int *)o->value = 1; return 0;
    case HV_OPT_INT:
    case HV_OPT_REAL: return set_number(o, arg, e);
    case HV_OPT_STR: *(const char **)o->value = arg; return 0;
    case HV_OPT_OPTSTR: *(const char **)o->value = arg ? arg : ""; return 0;
    case HV_OPT_LIST:
        if (list->n == (int)(sizeof list->v / sizeof *list->v))
            return hv_fail(e, HV_EUSAGE, "--%s: more than %d times", o->name, list->n);
        list->v[list->n++] = arg;
        return 0;
    case HV_OPT_SIZE:
        if (hv_size_parse(o->value, arg, e))
            return hv_context(e, "--%s", o->name);
        return 0;
    }
    return 0;
}

static const char *program = "hv";      /* for the callback below, which has no argument of its own */
static double      began;               /* with -v: when the program did; 0: nobody asked */

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void say_waiting(const char *what, long pid)
{
    if (pid)
        fprintf(stderr, "%s: waiting for %s, held by process %ld\n", program, what, pid);
    else
        fprintf(stderr, "%s: waiting for %s, held by another process\n", program, what);
}

static int finish(const struct hv_cli *cli, int argc, char **argv, struct hv_err *e)
{
    struct hv_common *c = cli->common;

    c->operand = (const char **)(argv + optind);
    c->n_operands = argc - optind;
    if (!c->model)
        c->model = getenv("HV_MODEL");
    if (!c->device)
        c->device = "cpu";
    if (!c->progress)
        c->progress = "auto";
    if (strcmp(c->progress, "auto") && strcmp(c->progress, "plain") && strcmp(c->progress, "json") &&
        strcmp(c->progress, "none"))
        return hv_fail(e, HV_EUSAGE, "--progress: '%s', expected auto, plain, json or none", c->progress);
    if (c->n_operands < cli->min_operands)
        return hv_fail(e, HV_EUSAGE, "missing operand: %s", cli->operands);
    hv_lock_on_wait(c->quiet ? NULL : say_waiting);
    began = c->verbose ? now() : 0;
    if (cli->max_operands >= 0 && c->n_operands > cli->max_operands)
        return hv_fail(e, HV_EUSAGE, "operand '%s' is one too many (%s)", c->operand[cli->max_operands], cli->operands);
    return 0;
}

/* Why getopt_long said '?'. */
static int refuse(int argc, char **argv, struct hv_err *e)
{
    const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "";

    if (optopt && optopt < 128 && strncmp(word, "--", 2))
        return hv_fail(e, HV_EUSAGE, "unknown option or missing argument: -%c", optopt);
    return hv_fail(e, HV_EUSAGE, "unknown option, or a wrong or missing argument: %s", word);
}

int hv_cli_parse(const struct hv_cli *cli, int argc, char **argv, struct hv_err *e)
{
    struct hv_opt all[OPTS_MAX];
    struct option longs[OPTS_MAX + 3] = {0};
    char letters[2 * OPTS_MAX + 8] = "hV";
    int n, c;

    program = cli->name;
    signal(SIGPIPE, SIG_IGN);           /* a reader that left is a failed write, with its line and its status */
    hv_mapped_guard(program);
    collect(all, &n, cli);
    for (int i = 0; i < n; i++) {
        longs[i] = (struct option){all[i].name, takes_argument(&all[i]), NULL, 256 + i};
        if (all[i].letter) {
            const char l[3] = {(char)all[i].letter, takes_argument(&all[i]) == required_argument ? ':' : 0, 0};
            strcat(letters, l);
        }
    }
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n + 1] = (struct option){"version", no_argument, NULL, 'V'};
    opterr = 0;
    optind = 0;
    while ((c = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        int hit = c - 256;
        if (c == 'h') {
            usage(cli, all, n);
            return -1;
        }
        if (c == 'V') {
            printf("%s %s\n", cli->name, HV_VERSION);
            return -1;
        }
        for (int i = 0; i < n && c < 256 && hit < 0; i++)
            if (all[i].letter == c)
                hit = i;
        if (hit < 0 || hit >= n)
            return refuse(argc, argv, e);
        if (set(&all[hit], optarg, e))
            return e->code;
    }
    return finish(cli, argc, argv, e);
}

int hv_cli_no_output(const struct hv_common *c, const char *command, struct hv_err *e)
{
    return c->output ? hv_fail(e, HV_EUSAGE, "%s answers on standard output: no -o", command) : 0;
}

int hv_exit(const char *name, struct hv_err *e)
{
    const size_t pending = __fpending(stdout);
    const int failed = ferror(stdout) | fclose(stdout);
    struct rusage use;

    /* A program that was started without a standard output and wrote nothing to it has lost nothing. */
    if (failed && !(errno == EBADF && !pending) && !e->code)
        hv_fail(e, HV_EIO, "stdout: %s", strerror(errno));
    if (began > 0 && !getrusage(RUSAGE_SELF, &use))
        fprintf(stderr, "%s: took %.2f s, %.1f MiB at its peak\n", name, now() - began, (double)use.ru_maxrss / 1024);
    if (e->code) {
        fprintf(stderr, "%s: %s\n", name, e->msg);
        if (e->code == HV_EUSAGE)
            fprintf(stderr, "Try '%s --help'.\n", name);
    }
    return e->code;
}

static void note(const struct hv_cli *cli, const char *fmt, va_list ap)
{
    fprintf(stderr, "%s: ", cli->name);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

void hv_note(const struct hv_cli *cli, const char *fmt, ...)
{
    va_list ap;

    if (cli->common->quiet)
        return;
    va_start(ap, fmt);
    note(cli, fmt, ap);
    va_end(ap);
}

void hv_note_verbose(const struct hv_cli *cli, const char *fmt, ...)
{
    va_list ap;

    if (!cli->common->verbose)
        return;
    va_start(ap, fmt);
    note(cli, fmt, ap);
    va_end(ap);
}

/* ---- sizes ---- */

int hv_size_parse(struct hv_size *s, const char *text, struct hv_err *e)
{
    char *end = NULL;
    const double v = strtod(text, &end);
    const double a = fabs(v);
    double unit = 1;

    if (end == text || !isfinite(v))
        return hv_fail(e, HV_EUSAGE, "'%s' is not a size like 512M, 4G, 90%% or -1G", text);
    if (!strcmp(end, "%")) {
        if (v <= 0 || v > 100)
            return hv_fail(e, HV_EUSAGE, "'%s': expected 0%% to 100%%", text);
        *s = (struct hv_size){.kind = HV_SIZE_PERCENT, .percent = v};
        return 0;
    }
    switch (*end) {
    case 'k': case 'K': unit = 1024; end++; break;
    case 'm': case 'M': unit = 1048576; end++; break;
    case 'g': case 'G': unit = 1073741824; end++; break;
    case 't': case 'T': unit = 1099511627776; end++; break;
    default: break;
    }
    if (!strcmp(end, "iB") || !strcmp(end, "B"))
        end += strlen(end);
    if (*end || a * unit > 0x1p62)
        return hv_fail(e, HV_EUSAGE, "'%s' is not a size like 512M, 4G, 90%% or -1G", text);
    *s = (struct hv_size){.kind = v < 0 ? HV_SIZE_LESS : HV_SIZE_BYTES, .bytes = (uint64_t)(a * unit)};
    return 0;
}

uint64_t hv_size_bytes(const struct hv_size *s, uint64_t available)
{
    switch (s->kind) {
    case HV_SIZE_BYTES: return s->bytes;
    case HV_SIZE_PERCENT: return (uint64_t)((double)available * s->percent / 100);
    case HV_SIZE_LESS: return s->bytes < available ? available - s->bytes : 0;
    case HV_SIZE_UNSET: break;
    }
    return available;
}

size_t hv_size_budget(const struct hv_size *s)
{
    const long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const uint64_t bytes = hv_size_bytes(s, pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0);

    return s->kind == HV_SIZE_UNSET ? 0 : bytes ? (size_t)bytes : 1;
}

/* ---- progress ---- */

enum { NONE, TERMINAL, LINES, EVERY, JSON };    /* LINES: one every 10 s; EVERY: one a step */

void hv_progress_open(struct hv_progress *p, const struct hv_cli *cli)
{
    const char *mode = cli->common->progress;

    *p = (struct hv_progress){.name = cli->name};
    if (cli->common->quiet || !strcmp(mode, "none"))
        p->mode = NONE;
    else if (!strcmp(mode, "json"))
        p->mode = JSON;
    else if (!strcmp(mode, "plain"))
        p->mode = EVERY;
    else
        p->mode = isatty(STDERR_FILENO) ? TERMINAL : LINES;
}

static void print_line(struct hv_progress *p, const char *what, int i, int n, double each, double left)
{
    if (p->mode == JSON)
        fprintf(stderr, "{\"program\":\"%s\",\"what\":\"%s\",\"done\":%d,\"of\":%d,\"seconds_each\":%.3f,\"seconds_left\":%.1f}\n",
                p->name, what, i, n, each, left);
    else
        fprintf(stderr, "%s%s: %s %d of %d, %.*f s each, %.0f s left%s", p->mode == TERMINAL ? "\r" : "", p->name, what, i, n,
                each < 10 ? 2 : 0, each, left, p->mode == TERMINAL ? "\033[K" : "\n");
    p->open = p->mode == TERMINAL;
    fflush(stderr);
}

void hv_progress_step(void *progress, const char *what, int i, int n)
{
    struct hv_progress *p = progress;
    const double t = now();

    if (p->mode == NONE)
        return;
    if (!p->what || strcmp(p->what, what) || i < p->first) {
        hv_progress_close(p);
        p->what = what;
        p->started = p->printed = t;
        p->first = i;
        return;
    }
    const int done = i - p->first;
    if (!done)
        return;
    const double each = (t - p->started) / done, left = each * (n - i);
    /* A loop that ends within a second says nothing, but to a program that asked for every step. */
    if (p->mode != JSON && p->mode != EVERY && t - p->started + left < 1)
        return;
    if (p->mode == TERMINAL && t - p->printed < 0.1 && i < n)
        return;
    if (p->mode == LINES && t - p->printed < 10 && i < n)
        return;
    p->printed = t;
    print_line(p, what, i, n, each, left);
}

void hv_progress_close(struct hv_progress *p)
{
    if (p->open)
        fputc('\n', stderr);
    p->open = 0;
    p->what = NULL;
}
