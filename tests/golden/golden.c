/* golden - runs every golden found below a folder. See golden.h.
 *
 *     golden [--bin DIR] [--only TEXT] [--threads N] [--device NAME] DIR */
#include "golden.h"

#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static double value(hv_tensor t, int64_t i)
{
    float f;
    double v;
    int64_t at = 0, s = i;

    for (int k = t.ndim - 1; k >= 0; k--) {
        at += s % t.shape[k] * t.stride[k];
        s /= t.shape[k];
    }
    const char *p = (const char *)t.data + at * (int64_t)hv_dtype_size(t.dtype);
    if (t.dtype == HV_F64) {
        memcpy(&v, p, 8);
        return v;
    }
    if (t.dtype == HV_I64 || t.dtype == HV_U64) {
        int64_t n;
        memcpy(&n, p, 8);
        return (double)n;
    }
    if (t.dtype == HV_I32 || t.dtype == HV_U32) {
        int32_t n;
        uint32_t u;
        memcpy(&n, p, 4);
        memcpy(&u, p, 4);
        return t.dtype == HV_I32 ? (double)n : (double)u;
    }
    hv_to_f32(&f, t.dtype, p, 1);
    return (double)f;
}

static void line(struct golden *g, const char *name, const char *tensor, int ok, const char *text)
{
    printf("%-44s %-36s %s %s\n", name, tensor, text, ok ? "ok" : "FAILED");
    g->passed += ok;
    g->failed += !ok;
}

int golden_verdict(struct golden *g, const char *name, const char *tensor, int ok, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    line(g, name, tensor, !!ok, text);
    return !!ok;
}

int golden_compare(struct golden *g, const char *name, const char *tensor, hv_tensor got, hv_tensor want, double max_abs,
                   double one_minus_cos)
{
    char a[HV_SHAPE_STR], b[HV_SHAPE_STR], bound[80] = "";
    double worst = 0, ab = 0, aa = 0, bb = 0;
    const int64_t n = hv_count(want);

    if (!hv_same_shape(got, want))
        return golden_verdict(g, name, tensor, 0, "shape %s, expected %s", hv_shape_str(got, a), hv_shape_str(want, b));
    for (int64_t i = 0; i < n; i++) {
        const double x = value(got, i), y = value(want, i), d = fabs(x - y);
        if (!(d <= worst))                                  /* a NaN stays */
            worst = isnan(x) && isnan(y) ? worst : d;
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    const double gap = aa == 0 && bb == 0 ? 0 : 1 - ab / sqrt(aa * bb);
    const int ok = (max_abs < 0 ? !isnan(worst) : worst <= max_abs) && (one_minus_cos < 0 || gap <= one_minus_cos);
    if (max_abs >= 0)
        snprintf(bound, sizeof bound, "%.1e", max_abs);
    if (one_minus_cos >= 0)
        snprintf(bound + strlen(bound), sizeof bound - strlen(bound), " cos 1-%.0e", one_minus_cos);
    return golden_verdict(g, name, tensor, ok, "max abs %.2e, 1-cos %.1e (tolerance %s)", worst, gap, bound);
}

void golden_skip(struct golden *g, const char *name, const char *why)
{
    printf("%-44s %-36s %s\n", name, "", why);
    g->skipped++;
}

void golden_error(struct golden *g, const char *name, const struct hv_err *e)
{
    golden_verdict(g, name, "", 0, "%s", e->code ? e->msg : "failed without a message");
}

int golden_bf16(const struct golden *g)
{
    return !strncmp(g->device, "cuda", 4);
}

int golden_exists(const char *path)
{
    struct stat st;

    return !stat(path, &st);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void golden_each(struct golden *g, const char *dir, const char *suffix,
                 void (*fn)(struct golden *g, const char *path, const char *name))
{
    DIR *d = opendir(dir);
    char *names[4096], path[4096];
    size_t n = 0;

    for (const struct dirent *f; d && n < 4096 && (f = readdir(d));) {
        const size_t len = strlen(f->d_name), tail = strlen(suffix);
        if (len > tail && !strcmp(f->d_name + len - tail, suffix) && (names[n] = strdup(f->d_name)))
            n++;
    }
    if (d)
        closedir(d);
    qsort(names, n, sizeof *names, by_name);
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        names[i][strlen(names[i]) - strlen(suffix)] = 0;
        if (!g->only || strstr(path, g->only))
            fn(g, path, names[i]);
        free(names[i]);
    }
}

int main(int argc, char **argv)
{
    static const struct { const char *folder; void (*run)(struct golden *, const char *); } parts[] = {
        {"audio", golden_audio},       {"face", golden_face},               {"sampling", golden_sampling},
        {"text", golden_text},         {"transformer", golden_transformer}, {"vae", golden_vae},
        {"weights", golden_weights},
    };
    struct golden g = {.device = "cpu", .bin = "build/bin"};
    const char *root = NULL;
    char dir[4096];
    int found = 0;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bin") && i + 1 < argc)
            g.bin = argv[++i];
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            g.only = argv[++i];
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc)
            g.threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--device") && i + 1 < argc)
            g.device = argv[++i];
        else
            root = argv[i];
    }
    if (!root) {
        fprintf(stderr, "usage: golden [--bin DIR] [--only TEXT] [--threads N] [--device NAME] DIR\n");
        return HV_EUSAGE;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(dir, sizeof dir, "%s/%s", root, parts[i].folder);
        if (!golden_exists(dir))
            continue;
        found = 1;
        parts[i].run(&g, dir);
    }
    if (!found) {
        fprintf(stderr, "golden: %s: none of the folders audio, face, sampling, text, transformer, vae, weights\n", root);
        return HV_EINPUT;
    }
    printf("%d passed, %d failed", g.passed, g.failed);
    if (g.skipped)
        printf(", %d skipped", g.skipped);
    printf("\n");
    return g.failed || !g.passed ? HV_EDIFF : HV_OK;
}
