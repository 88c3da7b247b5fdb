/* Goldens of packed weights: quantization byte for byte, the tables of e4m3 and e5m2, verdicts on hostile files. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/json.h"
#include "golden.h"
#include "mem/quant.h"
#include "ops/dev.h"
#include "ops/ops.h"

#if defined(__SANITIZE_ADDRESS__)
#define LIMIT_MEMORY 0                  /* the sanitizer reserves terabytes of addresses */
#else
#define LIMIT_MEMORY 1
#endif

#define OWNED "/tmp/hv_owned"

/* A process that writes a file into a pipe; its other end. -1: there is none. */
static int start_pipe(const char *path, pid_t *writer)
{
    int end[2];

    if (pipe(end))
        return -1;
    fflush(stdout);
    *writer = fork();
    if (*writer == 0) {
        char buf[65536];
        const int fd = open(path, O_RDONLY);
        ssize_t n;
        close(end[0]);
        signal(SIGPIPE, SIG_DFL);
        while (fd >= 0 && (n = read(fd, buf, sizeof buf)) > 0)
            for (ssize_t at = 0, put; at < n; at += put)
                if ((put = write(end[1], buf + at, (size_t)(n - at))) <= 0)
                    _exit(0);
        _exit(0);
    }
    close(end[1]);
    return end[0];
}

/* Runs a tool; its output goes nowhere, a file comes through a pipe as its input when from is not NULL. Returns its status, 128 +
 * signal when it was killed. */
static int run_piped(const struct golden *g, const char *tool, char *const *args, const char *from, int memory_mb, unsigned seconds)
{
    char path[4096];
    pid_t writer = -1;
    const int in = from ? start_pipe(from, &writer) : -1;
    int status = -1;

    snprintf(path, sizeof path, "%s/%s", g->bin, tool);
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int null = open("/dev/null", O_RDWR);
        const struct rlimit m = {(rlim_t)memory_mb << 20, (rlim_t)memory_mb << 20};
        dup2(from ? in : null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        if (memory_mb && LIMIT_MEMORY)
            setrlimit(RLIMIT_AS, &m);
        const struct rlimit cpu = {seconds, seconds};
        if (seconds)
            setrlimit(RLIMIT_CPU, &cpu);        /* of the processor: a busy machine is no failure */
        alarm(120);
        setenv("OMP_NUM_THREADS", "1", 1);
        execv(path, args);
        _exit(126);
    }
    if (in >= 0)
        close(in);
    const int bad = pid < 0 || waitpid(pid, &status, 0) < 0;
    if (writer > 0)
        waitpid(writer, NULL, 0);
    if (bad)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run_tool(const struct golden *g, const char *tool, char *const *args, int memory_mb, unsigned seconds)
{
    return run_piped(g, tool, args, NULL, memory_mb, seconds);
}

/* The path of a file that is not there yet. */
static void temporary(char out[64])
{
    strcpy(out, "/tmp/hv-golden-XXXXXX");
    const int fd = mkstemp(out);
    if (fd >= 0)
        close(fd);
    unlink(out);
}

/* ---- own/: quantize, compare with what is expected ---- */

static int same_entry(const struct hv_in *a, const struct hv_entry *x, const struct hv_in *b, const struct hv_entry *y)
{
    return x->dtype == y->dtype && x->ndim == y->ndim && !memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0]) &&
           x->end - x->begin == y->end - y->begin && !memcmp(hv_in_data(a, x), hv_in_data(b, y), (size_t)(x->end - x->begin));
}

static int is_padding(const char *name)
{
    return !strncmp(name, "__pad.", 6);
}

static void compare_files(struct golden *g, const char *name, const struct hv_in *got, const struct hv_in *want)
{
    static const char *const meta[] = {"format", "hv.version", "hv.model", "hv.quant"};
    const char *wrong = NULL;
    int n = 0;

    for (int i = 0; i < hv_in_count(want); i++, n++) {
        const struct hv_entry *y = hv_in_entry(want, i), *x = hv_in_find(got, y->name);
        if (!x || !same_entry(got, x, want, y))
            wrong = y->name;
    }
    for (int i = 0; i < hv_in_count(got); i++)
        if (!hv_in_find(want, hv_in_entry(got, i)->name) && !is_padding(hv_in_entry(got, i)->name))
            wrong = hv_in_entry(got, i)->name;
    golden_verdict(g, name, "tensors", !wrong, "%d tensors byte for byte%s%s", n, wrong ? " but for " : "", wrong ? wrong : "");
    for (size_t i = 0; i < sizeof meta / sizeof *meta; i++) {
        const char *x = hv_in_meta(got, meta[i]), *y = hv_in_meta(want, meta[i]);
        golden_verdict(g, name, meta[i], !y || (x && !strcmp(x, y)), "'%s', expected '%s'", x ? x : "", y ? y : "");
    }
}

/* Data at a multiple of 4096, matrices at multiples of 64. */
static void check_alignment(struct golden *g, const char *name, const struct hv_in *in, const char *path)
{
    unsigned char head[8];
    FILE *f = fopen(path, "rb");
    const size_t got = f ? fread(head, 1, 8, f) : 0;
    uint64_t n = 0;
    int bad = got != 8;

    for (int i = 7; i >= 0 && got == 8; i--)
        n = n << 8 | head[i];
    if (f)
        fclose(f);
    bad |= (n + 8) % 4096 != 0;
    for (int i = 0; i < hv_in_count(in); i++)
        bad |= hv_in_entry(in, i)->ndim >= 2 && hv_in_entry(in, i)->begin % 64 != 0;
    golden_verdict(g, name, "alignment", !bad, "data at %llu, matrices at multiples of 64", (unsigned long long)n + 8);
}

/* W = scale * q of our own reader against the reference's, 1 ulp. */
static void check_dequantized(struct golden *g, const char *name, struct hv_in *got, const char *path)
{
    struct hv_in *want = NULL;
    struct hv_err e = {0};
    hv_tensor q, s, w;

    if (hv_in_open(&want, path, &e)) {
        golden_error(g, name, &e);
        return;
    }
    for (int i = 0; i < hv_in_count(want); i++) {
        const char *key = hv_in_entry(want, i)->name;
        char scale[512];
        snprintf(scale, sizeof scale, "%s.scale", key);
        if (hv_in_tensor(got, key, &q, &e) || hv_in_tensor(got, scale, &s, &e) || hv_in_tensor(want, key, &w, &e)) {
            golden_error(g, name, &e);
            break;
        }
        float *row = malloc((size_t)q.shape[1] * sizeof *row);
        double worst = 0;
        for (int64_t r = 0; row && r < q.shape[0]; r++) {
            const float *want_row = (const float *)w.data + r * q.shape[1];
            hv_dequant(row, q.dtype, (const char *)q.data + r * q.shape[1], ((const float *)s.data)[r], 0, (size_t)q.shape[1]);
            for (int64_t c = 0; c < q.shape[1]; c++) {
                const double d = fabs((double)row[c] - (double)want_row[c]) / fmax(fabs((double)want_row[c]), 1e-30);
                worst = d > worst ? d : worst;
            }
        }
        free(row);
        golden_verdict(g, name, key, row && worst <= 1e-6, "relative error %.1e (tolerance 1e-06)", worst);
    }
    hv_in_close(want);
}

static void own_case(struct golden *g, const char *dir, const char *quant)
{
    char in_path[4096], want_path[4096], deq_path[4096], out_path[64], name[64];
    struct hv_in *got = NULL, *want = NULL;
    struct hv_err e = {0};

    snprintf(in_path, sizeof in_path, "%s/own/bf16.safetensors", dir);
    snprintf(want_path, sizeof want_path, "%s/own/%s.safetensors", dir, quant);
    snprintf(deq_path, sizeof deq_path, "%s/own/%s_dequant_f32.safetensors", dir, quant);
    snprintf(name, sizeof name, "weights/own/%s", quant);
    if (!golden_exists(want_path) || (g->only && !strstr(want_path, g->only)))
        return;
    temporary(out_path);
    char *const args[] = {"hv-weights", "quantize", in_path, out_path, "--quant", (char *)(uintptr_t)quant, NULL};
    const int status = run_tool(g, "hv-weights", args, 0, 60);
    if (golden_verdict(g, name, "hv-weights quantize", !status, "exit status %d", status)) {
        if (hv_in_open(&got, out_path, &e) || hv_in_open(&want, want_path, &e)) {
            golden_error(g, name, &e);
        } else {
            compare_files(g, name, got, want);
            check_alignment(g, name, got, out_path);
            if (golden_exists(deq_path))
                check_dequantized(g, name, got, deq_path);
        }
    }
    hv_in_close(got);
    hv_in_close(want);
    unlink(out_path);
}

/* ---- fp8/: tables ---- */

static void table_case(struct golden *g, const char *dir)
{
    char path[4096];
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    hv_tensor bytes, e4m3, e5m2;
    int bad = 0, bad5 = 0;

    snprintf(path, sizeof path, "%s/fp8/e4m3_table.safetensors", dir);
    if (!golden_exists(path) || (g->only && !strstr(path, g->only)))
        return;
    if (hv_in_open(&in, path, &e) || hv_in_tensor(in, "bytes", &bytes, &e) || hv_in_tensor(in, "e4m3fn", &e4m3, &e) ||
        hv_in_tensor(in, "e5m2", &e5m2, &e)) {
        golden_error(g, "weights/fp8/e4m3_table", &e);
    } else {
        for (int64_t i = 0; i < hv_count(bytes); i++) {
            const uint8_t b = ((const uint8_t *)bytes.data)[i];
            const float x = hv_e4m3_to_f32(b), y = ((const float *)e4m3.data)[i];
            const float x5 = hv_e5m2_to_f32(b), y5 = ((const float *)e5m2.data)[i];
            bad += !(isnan(x) && isnan(y)) && memcmp(&x, &y, 4);
            bad5 += !(isnan(x5) && isnan(y5)) && memcmp(&x5, &y5, 4);
        }
        golden_verdict(g, "weights/fp8/e4m3_table", "e4m3fn", !bad, "%d of %lld differ", bad, (long long)hv_count(bytes));
        golden_verdict(g, "weights/fp8/e4m3_table", "e5m2", !bad5, "%d of %lld differ", bad5, (long long)hv_count(bytes));
    }
    hv_in_close(in);
}

static void encode_case(struct golden *g, const char *dir)
{
    char path[4096];
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    hv_tensor x, want;
    int bad = 0, bad_row = 0;

    snprintf(path, sizeof path, "%s/fp8/e4m3_encode.safetensors", dir);
    if (!golden_exists(path) || (g->only && !strstr(path, g->only)))
        return;
    if (hv_in_open(&in, path, &e) || hv_in_tensor(in, "input", &x, &e) || hv_in_tensor(in, "saturated", &want, &e)) {
        golden_error(g, "weights/fp8/e4m3_encode", &e);
    } else {
        for (int64_t i = 0; i < hv_count(x); i++) {
            const float f = ((const float *)x.data)[i];
            const uint8_t w = ((const uint8_t *)want.data)[i];
            uint8_t row = 0;
            bad += hv_f32_to_e4m3(f) != w;
            /* The loop of the quantizer, with a scale of 1. */
            hv_quant(HV_F8_E4M3, &row, &f, 1.0f, 1);
            bad_row += !isnan(f) && row != w;
        }
        golden_verdict(g, "weights/fp8/e4m3_encode", "hv_f32_to_e4m3", !bad, "%d of %lld differ", bad, (long long)hv_count(x));
        golden_verdict(g, "weights/fp8/e4m3_encode", "hv_quant", !bad_row, "%d of %lld differ", bad_row, (long long)hv_count(x));
    }
    hv_in_close(in);
}

/* ---- bad/: verdicts ---- */

/* A refusal is a message and status 3 (malformed) or 7 (not supported), or a fault that check found; never a signal. */
static void expect(struct golden *g, const char *name, const char *what, int status, const char *want)
{
    const int refused = status == HV_EINPUT || status == HV_EUNSUP || (!strcmp(what, "check") && status == HV_EDIFF);

    golden_verdict(g, name, what, !strcmp(want, "ok") ? status == 0 : refused, "exit status %d, expected %s", status, want);
}

static void verdict_case(struct golden *g, const char *dir, const char *file, const char *want)
{
    char path[4096], name[256], out[64];
    const unsigned seconds = LIMIT_MEMORY ? 1 : 10;

    snprintf(path, sizeof path, "%s/bad/%s", dir, file);
    snprintf(name, sizeof name, "weights/bad/%.200s", file);
    if (g->only && !strstr(path, g->only))
        return;
    char *const list[] = {"hv-weights", "list", path, NULL}, *const check[] = {"hv-weights", "check", path, NULL};
    char *const stdin_list[] = {"hv-weights", "list", "-", NULL}, *const tensor[] = {"hv-tensor", "list", "-", NULL};
    char *const import[] = {"hv-weights", "import", "-q", "--model", "any", path, out, NULL};
    temporary(out);
    expect(g, name, "list", run_tool(g, "hv-weights", list, 64, seconds), want);
    expect(g, name, "check", run_tool(g, "hv-weights", check, 64, seconds), want);
    expect(g, name, "import", run_tool(g, "hv-weights", import, 64, seconds), want);
    golden_verdict(g, name, "output", golden_exists(out) == !strcmp(want, "ok"), "%s", golden_exists(out) ? "a file" : "no file");
    unlink(out);
    if (strstr(file, ".safetensors")) {
        expect(g, name, "list of a pipe", run_piped(g, "hv-weights", stdin_list, path, 64, seconds), want);
        expect(g, name, "hv-tensor of a pipe", run_piped(g, "hv-tensor", tensor, path, 64, seconds), want);
    }
    if (golden_exists(OWNED))
        golden_verdict(g, name, OWNED, 0, "the file was executed");
}

static void bad_cases(struct golden *g, const char *dir)
{
    char path[4096];
    json_t *root = NULL;
    struct hv_err e = {0};

    snprintf(path, sizeof path, "%s/bad/verdicts.json", dir);
    if (!golden_exists(path))
        return;
    unlink(OWNED);
    if (hv_json_read(&root, path, &e)) {
        golden_error(g, "weights/bad", &e);
        return;
    }
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *v = json_array_get(root, i);
        const char *file = json_string_value(json_object_get(v, "file"));
        const char *want = json_string_value(json_object_get(v, "verdict"));
        if (file && want)
            verdict_case(g, dir, file, want);
        else
            golden_verdict(g, "weights/bad", "verdicts.json", 0, "entry %zu has no file or verdict", i);
    }
    json_decref(root);
}

/* ---- formats that only an importer reads ---- */

static const struct hv_entry *scale_of(const struct hv_in *in, const struct hv_entry *t)
{
    char name[1100];

    snprintf(name, sizeof name, "%s.scale", t->name);
    return t->dtype == HV_I8 || t->dtype == HV_F8_E4M3 ? hv_in_find(in, name) : NULL;
}

/* What the imported tensor stands for, in the dtype of the expected one: the same bytes; with ulp set, f32 within 1e-6. */
static int same_meaning(const struct hv_in *got, const struct hv_entry *x, const struct hv_in *want, const struct hv_entry *y, int ulp)
{
    const struct hv_entry *scale = scale_of(got, x);
    const char *deq = hv_in_meta(got, "hv.deq");
    const size_t n = (size_t)(y->end - y->begin) / hv_dtype_size(y->dtype);

    if (!scale && !ulp)
        return same_entry(got, x, want, y);
    if (x->ndim != y->ndim || memcmp(x->shape, y->shape, (size_t)x->ndim * sizeof x->shape[0]))
        return 0;
    float *w = malloc((n + 1) * sizeof *w), *v = malloc((n + 1) * sizeof *w);
    int same = w && v;
    if (same && scale) {
        const size_t cols = (size_t)x->shape[1];
        for (int64_t r = 0; r < x->shape[0]; r++) {
            float s;
            memcpy(&s, (const char *)hv_in_data(got, scale) + (size_t)r * sizeof s, sizeof s);
            hv_dequant(w + (size_t)r * cols, x->dtype, (const char *)hv_in_data(got, x) + (size_t)r * cols, s,
                       deq && !strcmp(deq, "bf16"), cols);
        }
    } else if (same) {
        hv_to_f32(w, x->dtype, hv_in_data(got, x), n);
    }
    if (same && ulp) {
        hv_to_f32(v, y->dtype, hv_in_data(want, y), n);
        for (size_t i = 0; i < n; i++)
            same &= fabsf(w[i] - v[i]) <= 1e-6f * fabsf(v[i]);
    } else if (same) {
        hv_from_f32(y->dtype, v, w, n);
        same = !memcmp(v, hv_in_data(want, y), (size_t)(y->end - y->begin));
    }
    free(w);
    free(v);
    return same;
}

static void compare_meaning(struct golden *g, const char *name, const struct hv_in *got, const struct hv_in *want, int ulp)
{
    const char *wrong = NULL;
    int quantized = 0;

    for (int i = 0; i < hv_in_count(want); i++) {
        const struct hv_entry *y = hv_in_entry(want, i), *x = hv_in_find(got, y->name);
        if (!x || !same_meaning(got, x, want, y, ulp))
            wrong = y->name;
        quantized += x && scale_of(got, x);
    }
    for (int i = 0; i < hv_in_count(got); i++) {
        const char *key = hv_in_entry(got, i)->name;
        char base[1100];
        snprintf(base, sizeof base, "%.*s", strlen(key) > 6 ? (int)strlen(key) - 6 : 0, key);
        const struct hv_entry *owner = hv_in_find(got, base);
        if (!hv_in_find(want, key) && !is_padding(key) && !(owner && scale_of(got, owner) == hv_in_entry(got, i)))
            wrong = key;
    }
    golden_verdict(g, name, "tensors", !wrong, "%d tensors%s, %d of them in 8 bits%s%s", hv_in_count(want),
                   ulp ? " within 1e-6" : " byte for byte", quantized, wrong ? ", but for " : "", wrong ? wrong : "");
}

/* Imports a file as it is; the expected tensors are in another. Returns what was made, to be closed and unlinked. */
static struct hv_in *import_case(struct golden *g, const char *dir, const char *file, const char *expected, int ulp, char out[64])
{
    char path[4096], want_path[4096], name[300];
    struct hv_in *got = NULL, *want = NULL;
    struct hv_err e = {0};

    *out = 0;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    snprintf(want_path, sizeof want_path, "%s/%s", dir, expected);
    snprintf(name, sizeof name, "weights/%s", file);
    if (!golden_exists(path) || !golden_exists(want_path) || (g->only && !strstr(path, g->only)))
        return NULL;
    temporary(out);
    char *const list[] = {"hv-weights", "list", path, NULL};
    char *const args[] = {"hv-weights", "import", "-q", "--script", "--model", "any", path, out, NULL};
    const int listed = run_tool(g, "hv-weights", list, 0, 60), status = run_tool(g, "hv-weights", args, 0, 60);
    golden_verdict(g, name, "hv-weights list", !listed || strstr(file, "index.json"), "exit status %d", listed);
    if (!golden_verdict(g, name, "hv-weights import", !status, "exit status %d", status))
        return NULL;
    if (hv_in_open(&got, out, &e) || hv_in_open(&want, want_path, &e)) {
        golden_error(g, name, &e);
        hv_in_close(got);
        got = NULL;
    } else {
        compare_meaning(g, name, got, want, ulp);
        check_alignment(g, name, got, out);
    }
    hv_in_close(want);
    return got;
}

static void done_with(struct hv_in *got, const char *out)
{
    hv_in_close(got);
    if (*out)
        unlink(out);
}

static void pt_case(struct golden *g, const char *path, const char *name)
{
    char dir[4096], file[300], expected[300], out[64];

    snprintf(dir, sizeof dir, "%.*s", (int)(strlen(path) - strlen("/pt/.pt") - strlen(name)), path);
    snprintf(file, sizeof file, "pt/%.200s.pt", name);
    snprintf(expected, sizeof expected, "pt/%.200s.expected.safetensors", name);
    struct hv_in *got = import_case(g, dir, file, expected, 0, out);
    done_with(got, out);
}

/* y = x W^T + b in bf16 by the operation that the stages call, on the imported matrix as it is stored. */
static void linear_case(struct golden *g, const char *dir, struct hv_in *got)
{
    static const char key[] = "double_blocks.0.img_attn_qkv.";
    char path[4096], name[80];
    struct hv_in *io = NULL;
    struct hv_dev *d = NULL;
    struct hv_err e = {0};
    hv_tensor x, y, w, s, b;
    const char *deq = hv_in_meta(got, "hv.deq");

    snprintf(path, sizeof path, "%s/fp8/linear_io.safetensors", dir);
    if (!golden_exists(path))
        return;
    snprintf(name, sizeof name, "%sweight.scale", key);
    if (hv_in_open(&io, path, &e) || hv_in_tensor(io, "input", &x, &e) || hv_in_tensor(io, "output", &y, &e) ||
        hv_in_tensor(got, name, &s, &e) || (snprintf(name, sizeof name, "%sweight", key), hv_in_tensor(got, name, &w, &e)) ||
        (snprintf(name, sizeof name, "%sbias", key), hv_in_tensor(got, name, &b, &e)) || hv_dev_open(&d, "cpu", 1, &e)) {
        golden_error(g, "weights/fp8/linear_io", &e);
        hv_in_close(io);
        return;
    }
    const int64_t n = hv_count(y);
    float *in = malloc((size_t)hv_count(x) * sizeof *in), *out = malloc((size_t)n * sizeof *out),
          *bias = malloc((size_t)hv_count(b) * sizeof *bias);
    double aa = 0, bb = 0, ab = 0;
    int apart = 0;
    hv_to_f32(in, x.dtype, x.data, (size_t)hv_count(x));
    hv_to_f32(bias, b.dtype, b.data, (size_t)hv_count(b));
    w.scale = s.data;
    w.deq_bf16 = deq && !strcmp(deq, "bf16");
    const hv_tensor xt = hv_view(in, HV_F32, 2, x.shape), yt = hv_view(out, HV_F32, 2, y.shape);
    hv_linear(d, yt, xt, w, hv_view(bias, HV_F32, 1, b.shape), HV_ACT_NONE);
    if (hv_dev_sync(d, &e))
        golden_error(g, "weights/fp8/linear_io", &e);
    for (int64_t i = 0; i < n; i++) {
        uint16_t want;
        memcpy(&want, (const char *)y.data + 2 * i, 2);
        const double p = (double)out[i], q = (double)hv_bf16_to_f32(want);
        /* One unit in the last place of bf16: 2^-7 of the number's power of two. */
        int exponent;
        frexp(q, &exponent);
        apart += !(fabs((double)hv_bf16_to_f32(hv_f32_to_bf16(out[i])) - q) <= ldexp(1, exponent - 8));
        aa += p * p;
        bb += q * q;
        ab += p * q;
    }
    golden_verdict(g, "weights/fp8/linear_io", "hv_linear", !apart && ab / sqrt(aa * bb) >= 0.9999,
                   "%d of %lld more than 1 ulp of bf16 apart, cosine %.7f", apart, (long long)n, ab / sqrt(aa * bb));
    free(in);
    free(out);
    free(bias);
    hv_dev_close(d);
    hv_in_close(io);
}

/* The split projections of other programs are ranges of rows of the matrix that is not split. */
static void split_case(struct golden *g, const char *dir, const struct hv_in *got)
{
    static const struct { const char *whole, *part[5]; } splits[] = {
        {"double_blocks.0.img_attn_qkv", {"double_blocks.0.img_attn_q", "double_blocks.0.img_attn_k", "double_blocks.0.img_attn_v"}},
        {"single_blocks.0.linear1", {"single_blocks.0.linear1_attn_q", "single_blocks.0.linear1_attn_k",
                                     "single_blocks.0.linear1_attn_v", "single_blocks.0.linear1_mlp"}},
    };
    char path[4096], name[300];
    struct hv_in *want = NULL;
    struct hv_err e = {0};

    snprintf(path, sizeof path, "%s/quanto/split_rows.safetensors", dir);
    if (!golden_exists(path))
        return;
    if (hv_in_open(&want, path, &e)) {
        golden_error(g, "weights/quanto/split_rows", &e);
        return;
    }
    for (size_t k = 0; k < sizeof splits / sizeof *splits; k++) {
        snprintf(name, sizeof name, "%s.weight", splits[k].whole);
        const struct hv_entry *w = hv_in_find(got, name), *s = w ? scale_of(got, w) : NULL;
        int64_t row = 0;
        int bad = !w || !s;
        for (int i = 0; i < 5 && splits[k].part[i] && !bad; i++) {
            snprintf(name, sizeof name, "%s.weight._data", splits[k].part[i]);
            const struct hv_entry *data = hv_in_find(want, name);
            snprintf(name, sizeof name, "%s.weight._scale", splits[k].part[i]);
            const struct hv_entry *scale = hv_in_find(want, name);
            bad = !data || !scale || data->shape[1] != w->shape[1] || row + data->shape[0] > w->shape[0];
            if (bad)
                break;
            bad |= memcmp((const char *)hv_in_data(got, w) + row * w->shape[1], hv_in_data(want, data), (size_t)(data->end - data->begin));
            for (int64_t r = 0; r < data->shape[0]; r++) {
                float x, y;
                memcpy(&x, (const char *)hv_in_data(got, s) + (row + r) * 4, 4);
                hv_to_f32(&y, scale->dtype, (const char *)hv_in_data(want, scale) + (size_t)r * hv_dtype_size(scale->dtype), 1);
                bad |= x != y;
            }
            row += data->shape[0];
        }
        golden_verdict(g, "weights/quanto/split_rows", splits[k].whole, !bad && w && row == w->shape[0], "%lld rows", (long long)row);
    }
    hv_in_close(want);
}

static void format_cases(struct golden *g, const char *dir)
{
    char path[4096], out[64];
    struct hv_in *got;

    snprintf(path, sizeof path, "%s/pt", dir);
    if (golden_exists(path))
        golden_each(g, path, ".pt", pt_case);
    got = import_case(g, dir, "fp8/mp_rank_00_model_states_fp8.pt", "fp8/expected_bf16.safetensors", 0, out);
    if (got)
        linear_case(g, dir, got);
    done_with(got, out);
    got = import_case(g, dir, "sharded/model.safetensors.index.json", "sharded/expected.safetensors", 0, out);
    done_with(got, out);
    got = import_case(g, dir, "quanto/avatar_quanto_bf16_int8.safetensors", "quanto/expected_bf16.safetensors", 0, out);
    if (got)
        split_case(g, dir, got);
    done_with(got, out);
    got = import_case(g, dir, "quanto/comfy_scaled_fp8.safetensors", "quanto/comfy_expected.safetensors", 0, out);
    done_with(got, out);
    got = import_case(g, dir, "gguf/tiny.gguf", "gguf/tiny.expected_f32.safetensors", 1, out);
    done_with(got, out);
}

void golden_weights(struct golden *g, const char *dir)
{
    own_case(g, dir, "int8");
    own_case(g, dir, "fp8");
    table_case(g, dir);
    encode_case(g, dir);
    bad_cases(g, dir);
    format_cases(g, dir);
}
