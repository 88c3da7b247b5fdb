/* Goldens of packed weights: quantization byte for byte, the tables of e4m3 and e5m2, verdicts on hostile files. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/json.h"
#include "golden.h"
#include "mem/quant.h"

#if defined(__SANITIZE_ADDRESS__)
#define LIMIT_MEMORY 0                  /* the sanitizer reserves terabytes of addresses */
#else
#define LIMIT_MEMORY 1
#endif

#define OWNED "/tmp/hv_owned"

/* Runs a tool; its output goes nowhere. Returns its status, 128 + signal when it was killed. */
static int run_tool(const struct golden *g, const char *tool, char *const *args, int memory_mb, unsigned seconds)
{
    char path[4096];
    int status;

    snprintf(path, sizeof path, "%s/%s", g->bin, tool);
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        const int null = open("/dev/null", O_RDWR);
        const struct rlimit m = {(rlim_t)memory_mb << 20, (rlim_t)memory_mb << 20};
        dup2(null, STDIN_FILENO);
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
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
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
    char in_path[4096], want_path[4096], deq_path[4096], out_path[64] = "/tmp/hv-golden-XXXXXX", name[64];
    struct hv_in *got = NULL, *want = NULL;
    struct hv_err e = {0};

    snprintf(in_path, sizeof in_path, "%s/own/bf16.safetensors", dir);
    snprintf(want_path, sizeof want_path, "%s/own/%s.safetensors", dir, quant);
    snprintf(deq_path, sizeof deq_path, "%s/own/%s_dequant_f32.safetensors", dir, quant);
    snprintf(name, sizeof name, "weights/own/%s", quant);
    if (!golden_exists(want_path) || (g->only && !strstr(want_path, g->only)))
        return;
    const int fd = mkstemp(out_path);
    if (fd >= 0)
        close(fd);
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

static void verdict_case(struct golden *g, const char *dir, const char *file, const char *want)
{
    char path[4096], name[256];

    snprintf(path, sizeof path, "%s/bad/%s", dir, file);
    snprintf(name, sizeof name, "weights/bad/%.200s", file);
    if (g->only && !strstr(path, g->only))
        return;
    if (!strstr(file, ".safetensors")) {
        golden_skip(g, name, "importing is not there yet");
        return;
    }
    char *const args[] = {"hv-weights", "list", path, NULL};
    const int status = run_tool(g, "hv-weights", args, 64, LIMIT_MEMORY ? 1 : 10);
    /* A refusal is a message and status 3 (malformed) or 7 (not supported), never a signal. */
    const int ok = !strcmp(want, "ok") ? status == 0 : status == HV_EINPUT || status == HV_EUNSUP;
    golden_verdict(g, name, "hv-weights list", ok, "exit status %d, expected %s", status, want);
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

static void skip_formats(struct golden *g, const char *dir)
{
    static const char *const files[] = {
        "pt/mp_rank_00_model_states.pt", "pt/flat.pt", "pt/pytorch_model.pt", "pt/module_state_dict.pt", "pt/script.pt",
        "pt/script_traced.pt", "fp8/mp_rank_00_model_states_fp8_map.pt", "sharded/model.safetensors.index.json",
        "quanto/avatar_quanto_bf16_int8.safetensors", "quanto/comfy_scaled_fp8.safetensors", "gguf/tiny.gguf",
    };
    char path[4096], name[300];

    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        snprintf(name, sizeof name, "weights/%s", files[i]);
        if (golden_exists(path) && (!g->only || strstr(path, g->only)))
            golden_skip(g, name, "importing is not there yet");
    }
}

void golden_weights(struct golden *g, const char *dir)
{
    own_case(g, dir, "int8");
    own_case(g, dir, "fp8");
    table_case(g, dir);
    encode_case(g, dir);
    bad_cases(g, dir);
    skip_formats(g, dir);
}
