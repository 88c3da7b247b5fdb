/* rates.c - what --bench has measured is kept, so that --plan can say how long a render takes.
 *
 * FOLDER/rates.jsonl has a line for each kind of run, the newest measurement alone:
 *     {"device":"cuda","name":"NVIDIA H200","threads":0,"attention":"cudnn","weights":"BF16","flops_per_second":6.1e14,"cached_share":0.018}
 * FOLDER is $HV_CACHE, $XDG_CACHE_HOME/hv or ~/.cache/hv. A folder that cannot be written is no reason to fail. */
#include "hv-denoise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "core/temp.h"

#define LINES 64

/* The file; make 1: and the folders above it. 1: there is no place for it. */
static int path_of(char path[HV_PATH], int make)
{
    const char *own = getenv("HV_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;

    if (own && *own)
        n = snprintf(path, HV_PATH, "%s/rates.jsonl", own);
    else if (xdg && *xdg == '/')
        n = snprintf(path, HV_PATH, "%s/hv/rates.jsonl", xdg);
    else if (home && *home)
        n = snprintf(path, HV_PATH, "%s/.cache/hv/rates.jsonl", home);
    else
        return 1;
    for (char *p = path + 1; make && n < HV_PATH && *p; p++)
        if (*p == '/') {
            *p = 0;
            if (mkdir(path, 0777)) {}                   /* there already, or the writing will fail */
            *p = '/';
        }
    return n < 0 || n >= HV_PATH;
}

/* What a rate depends on. */
struct kind {
    char        device[8];              /* "cpu" or "cuda" */
    int64_t     threads;                /* of the cpu; 0: all */
    const char *attention, *weights;
};

static struct kind kind_of(const struct fitted *f)
{
    struct kind k = {.attention = hv_attention_name(f->choice.attention),
                     .weights = f->size.weights ? hv_dtype_name(f->size.weights) : hv_dtype_name(f->size.act)};

    snprintf(k.device, sizeof k.device, "%.*s", (int)strcspn(o.c.device, ":"), o.c.device);
    k.threads = strcmp(k.device, "cpu") ? 0 : o.c.threads;
    return k;
}

static int is_kind(const json_t *line, const struct kind *k)
{
    struct hv_err e = {0};
    const char *device = "", *attention = "", *weights = "";
    int64_t threads = 0;

    return !hv_json_str(line, "device", &device, &e) && !hv_json_str(line, "attention", &attention, &e) &&
           !hv_json_str(line, "weights", &weights, &e) && !hv_json_int(line, "threads", 0, 1024, &threads, &e) && !strcmp(device, k->device) &&
           !strcmp(attention, k->attention) && !strcmp(weights, k->weights) && threads == k->threads;
}

/* Lines of the file that are JSON; what else is there is dropped. Returns how many; the caller releases them. */
static int read_lines(json_t *lines[LINES])
{
    char path[HV_PATH], *line = NULL;
    size_t size = 0;
    ssize_t length;
    int n = 0;
    FILE *f = path_of(path, 0) ? NULL : fopen(path, "r");

    while (f && n < LINES && (length = getline(&line, &size, f)) > 0) {
        struct hv_err e = {0};
        if (!hv_json_parse(&lines[n], line, (size_t)length, 4, &e))
            n++;
    }
    free(line);
    if (f)
        fclose(f);
    return n;
}

static void release(json_t **lines, int n)
{
    for (int i = 0; i < n; i++)
        json_decref(lines[i]);
}

void rates_keep(const struct fitted *f, const char *name, double flops, double full, double cached)
{
    const struct kind k = kind_of(f);
    json_t *lines[LINES + 1];
    char path[HV_PATH], tmp[HV_PATH];
    struct hv_err e = {0};
    int fd, n = read_lines(lines), bad = 0;

    lines[n] = json_pack("{s:s, s:s, s:I, s:s, s:s, s:f, s:f}", "device", k.device, "name", *name ? name : k.device, "threads", (json_int_t)k.threads,
                         "attention", k.attention, "weights", k.weights, "flops_per_second", flops / full, "cached_share", cached / full);
    if (lines[n] && !path_of(path, 1) && !hv_temp_open(tmp, path, &fd, &e)) {
        for (int i = n == LINES; i <= n; i++) {         /* the oldest one goes when there are too many */
            char *text = i < n && is_kind(lines[i], &k) ? NULL : json_dumps(lines[i], JSON_COMPACT | JSON_PRESERVE_ORDER);
            bad |= text && dprintf(fd, "%s\n", text) < 0;
            free(text);
        }
        bad |= close(fd) != 0;
        if (bad)
            hv_temp_discard(tmp);
        else if (!hv_temp_commit(tmp, path, &e))
            hv_note_verbose(&cli, "%s: kept, for --plan", path);
    }
    release(lines, n + 1);
}

int rates_find(struct rate *r, const struct fitted *f)
{
    const struct kind k = kind_of(f);
    json_t *lines[LINES];
    const int n = read_lines(lines);

    *r = (struct rate){0};
    for (int i = 0; i < n; i++) {
        struct hv_err e = {0};
        const char *name = k.device;
        if (is_kind(lines[i], &k) && !hv_json_real(lines[i], "flops_per_second", 1, 1e18, &r->flops, &e) &&
            !hv_json_real(lines[i], "cached_share", 0, 10, &r->cached, &e) && !hv_json_str(lines[i], "name", &name, &e))
            snprintf(r->name, sizeof r->name, "%s", name);
    }
    release(lines, n);
    return r->flops > 0;
}
