/* ckpts - writes checkpoints as other programs do, out of ours: what the tests and benches of hv-weights import.
 *
 *     ckpts torch IN OUT.pt [--key KEY] [--prefix P] [--extra NAME]    torch.save: {KEY: {P + name: tensor}} or a flat dict
 *     ckpts fp8 IN OUT_fp8.pt OUT_fp8_map.pt                           block matrices in e4m3, one scale each, in the map
 *     ckpts script IN OUT.pt                                           torch.jit.save; convolutions with batch norms behind them
 *     ckpts shards IN OUT_DIR N                                        N safetensors files and their index
 *
 * IN: a safetensors file, or CONFIG:SEED, the synthetic weights of a config.json. Layout as torch 2 writes it: entries stored,
 * aligned to 64, sizes behind the data, zip64 where it is needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "io/st.h"
#include "mem/synth.h"
#include "model/kinds.h"

/* Memory is left to the system, which a sanitizer need not report. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("ckpts: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static void *need(void *p)
{
    if (!p)
        die("out of memory");
    return p;
}

/* ---- where tensors come from ---- */

struct tensor {
    const char *name;
    hv_dtype    dtype;
    int         ndim;
    int64_t     shape[HV_ST_DIMS];
    const void *data;                   /* NULL: synthetic */
};

struct source {
    struct tensor  *t;
    int             n;
    uint64_t        seed;
    struct hv_in   *in;
    struct hv_wlist list;
};

static struct source open_source(const char *text)
{
    struct source s = {0};
    struct hv_err e = {0};
    const char *colon = strrchr(text, ':');

    if (colon) {
        char path[4096];
        json_t *root = NULL;
        snprintf(path, sizeof path, "%.*s", (int)(colon - text), text);
        s.seed = strtoull(colon + 1, NULL, 10);
        if (hv_json_read(&root, path, &e))
            die("%s", e.msg);
        const struct hv_kind *kind = hv_kind_of_config(root);
        if (!kind || kind->list(&s.list, root, &e))
            die("%s: %s", path, kind ? e.msg : "no network");
        json_decref(root);
        s.t = need(calloc((size_t)s.list.n + 1, sizeof *s.t));
        for (s.n = 0; s.n < s.list.n; s.n++) {
            const struct hv_wspec *w = &s.list.w[s.n];
            s.t[s.n] = (struct tensor){.name = w->name, .dtype = w->dtype, .ndim = w->ndim};
            memcpy(s.t[s.n].shape, w->shape, sizeof w->shape);
        }
        return s;
    }
    if (hv_in_open(&s.in, text, &e))
        die("%s", e.msg);
    s.t = need(calloc((size_t)hv_in_count(s.in) + 1, sizeof *s.t));
    for (int i = 0; i < hv_in_count(s.in); i++) {
        const struct hv_entry *x = hv_in_entry(s.in, i);
        if (!strncmp(x->name, "__pad.", 6))
            continue;
        s.t[s.n] = (struct tensor){.name = x->name, .dtype = x->dtype, .ndim = x->ndim, .data = hv_in_data(s.in, x)};
        memcpy(s.t[s.n++].shape, x->shape, sizeof x->shape);
    }
    return s;
}

static void close_source(struct source *s)
{
    free(s->t);
    hv_in_close(s->in);
    hv_wlist_close(&s->list);
}

static int64_t count(const struct tensor *t)
{
    return hv_shape_count(t->ndim, t->shape);
}

/* ---- zip ---- */

struct entry {
    char     name[256];
    uint64_t at, bytes;
    uint32_t crc;
};

struct zip {
    FILE         *f;
    const char   *root;
    uint64_t      at;
    struct entry *entry;
    int           n, cap;
};

static void out(struct zip *z, const void *data, size_t n)
{
    if (n && fwrite(data, 1, n, z->f) != n)
        die("write: %s", strerror(errno));
    z->at += n;
}

static void out_int(struct zip *z, uint64_t v, int n)
{
    uint8_t b[8];

    for (int i = 0; i < n; i++)
        b[i] = (uint8_t)(v >> 8 * i);
    out(z, b, (size_t)n);
}

static void begin(struct zip *z, const char *name)
{
    static const char fill[64];

    if (z->n == z->cap)
        z->entry = need(realloc(z->entry, (size_t)(z->cap = z->cap ? 2 * z->cap : 64) * sizeof *z->entry));
    struct entry *e = &z->entry[z->n++];
    *e = (struct entry){.at = z->at};
    const int n = snprintf(e->name, sizeof e->name, "%s/%s", z->root, name);
    const size_t pad = (64 - (z->at + 30 + (uint64_t)n + 4) % 64) % 64;
    out(z, "PK\3\4", 4);
    out_int(z, 0, 2);
    out_int(z, 0x808, 2);
    out_int(z, 0, 6);
    out_int(z, 0, 8);
    out_int(z, 0, 4);
    out_int(z, (uint64_t)n, 2);
    out_int(z, pad + 4, 2);
    out(z, e->name, (size_t)n);
    out(z, "FB", 2);
    out_int(z, pad, 2);
    out(z, fill, pad);
}

static void add(struct zip *z, const void *data, size_t n)
{
    struct entry *e = &z->entry[z->n - 1];

    out(z, data, n);
    e->crc = (uint32_t)crc32_z(e->crc, data, n);
    e->bytes += n;
}

static void finish(struct zip *z)
{
    const struct entry *e = &z->entry[z->n - 1];
    const int wide = e->bytes > 0xfffffffe ? 8 : 4;

    out(z, "PK\7\10", 4);
    out_int(z, e->crc, 4);
    out_int(z, e->bytes, wide);
    out_int(z, e->bytes, wide);
}

static void text_entry(struct zip *z, const char *name, const char *text)
{
    begin(z, name);
    add(z, text, strlen(text));
    finish(z);
}

static void directory(struct zip *z)
{
    const uint64_t start = z->at;

    for (int i = 0; i < z->n; i++) {
        const struct entry *e = &z->entry[i];
        const int big = e->bytes >= 0xffffffff, far = e->at >= 0xffffffff;
        out(z, "PK\1\2", 4);
        out_int(z, 0, 4);
        out_int(z, 0x808, 2);
        out_int(z, 0, 6);
        out_int(z, e->crc, 4);
        out_int(z, big ? 0xffffffff : e->bytes, 4);
        out_int(z, big ? 0xffffffff : e->bytes, 4);
        out_int(z, strlen(e->name), 2);
        out_int(z, big || far ? (uint64_t)(4 + 16 * big + 8 * far) : 0, 2);
        out_int(z, 0, 8);
        out_int(z, 0, 2);
        out_int(z, far ? 0xffffffff : e->at, 4);
        out(z, e->name, strlen(e->name));
        if (big || far) {
            out_int(z, 1, 2);
            out_int(z, (uint64_t)(16 * big + 8 * far), 2);
            out_int(z, e->bytes, big ? 8 : 0);
            out_int(z, e->bytes, big ? 8 : 0);
            out_int(z, e->at, far ? 8 : 0);
        }
    }
    const uint64_t end = z->at, size = end - start;
    const int wide = z->n > 0xfffe || start >= 0xffffffff || size >= 0xffffffff;
    if (wide) {
        out(z, "PK\6\6", 4);
        out_int(z, 44, 8);
        out_int(z, 45, 4);
        out_int(z, 0, 8);
        out_int(z, (uint64_t)z->n, 8);
        out_int(z, (uint64_t)z->n, 8);
        out_int(z, size, 8);
        out_int(z, start, 8);
        out(z, "PK\6\7", 4);
        out_int(z, 0, 4);
        out_int(z, end, 8);
        out_int(z, 1, 4);
    }
    out(z, "PK\5\6", 4);
    out_int(z, 0, 4);
    out_int(z, z->n > 0xfffe ? 0xffff : (uint64_t)z->n, 2);
    out_int(z, z->n > 0xfffe ? 0xffff : (uint64_t)z->n, 2);
    out_int(z, size >= 0xffffffff ? 0xffffffff : size, 4);
    out_int(z, start >= 0xffffffff ? 0xffffffff : start, 4);
    out_int(z, 0, 2);
}

/* ---- pickle ---- */

struct pickle {
    char  *text;
    size_t n;
    FILE  *f;
};

static void pickle_open(struct pickle *p)
{
    p->f = need(open_memstream(&p->text, &p->n));
    fputs("\x80\x02", p->f);
}

static void p_str(struct pickle *p, const char *s)
{
    const size_t n = strlen(s);

    fprintf(p->f, "X%c%c%c%c%s", (int)(n & 255), (int)(n >> 8 & 255), 0, 0, s);
}

static void p_int(struct pickle *p, int64_t v)
{
    if (v < 256) {
        fprintf(p->f, "K%c", (int)v);
        return;
    }
    fputs("\x8a\x08", p->f);
    for (int i = 0; i < 8; i++)
        fputc((int)(v >> 8 * i & 255), p->f);
}

static const char *storage_of(hv_dtype t)
{
    switch (t) {
    case HV_F32: return "torch\nFloatStorage\n";
    case HV_F16: return "torch\nHalfStorage\n";
    case HV_BF16: return "torch\nBFloat16Storage\n";
    case HV_I64: return "torch\nLongStorage\n";
    case HV_F8_E4M3: return "torch.storage\nUntypedStorage\n";
    default: die("%s has no storage here", hv_dtype_name(t));
    }
}

/* A contiguous tensor of storage `key`. */
static void p_tensor(struct pickle *p, const struct tensor *t, int key)
{
    char number[16];
    int64_t stride[HV_ST_DIMS], step = 1;
    const int fp8 = t->dtype == HV_F8_E4M3;

    snprintf(number, sizeof number, "%d", key);
    fprintf(p->f, "ctorch._utils\n_rebuild_tensor_v%d\n((", fp8 ? 3 : 2);
    p_str(p, "storage");
    fprintf(p->f, "c%s", storage_of(t->dtype));
    p_str(p, number);
    p_str(p, "cpu");
    p_int(p, count(t));
    fputs("tQ", p->f);
    p_int(p, 0);
    fputc('(', p->f);
    for (int i = 0; i < t->ndim; i++)
        p_int(p, t->shape[i]);
    fputs("t(", p->f);
    for (int i = t->ndim - 1; i >= 0; i--) {
        stride[i] = step;
        step *= t->shape[i];
    }
    for (int i = 0; i < t->ndim; i++)
        p_int(p, stride[i]);
    fputs("t\x89" "ccollections\nOrderedDict\n)R", p->f);
    fputs(fp8 ? "ctorch\nfloat8_e4m3fn\ntR" : "tR", p->f);
}

/* ---- archives ---- */

static void storage(struct zip *z, const struct source *s, const struct tensor *t, int key)
{
    const size_t size = hv_dtype_size(t->dtype), block = (size_t)1 << 20;
    const uint64_t n = (uint64_t)count(t);
    char name[32];
    static char *buf;

    snprintf(name, sizeof name, "data/%d", key);
    begin(z, name);
    if (t->data)
        add(z, t->data, (size_t)n * size);
    if (!buf)
        buf = need(malloc(block * 8));
    for (uint64_t at = 0; at < n && !t->data; at += block) {
        const size_t len = n - at < block ? (size_t)(n - at) : block;
        hv_synth_as(t->dtype, buf, t->name, t->ndim, t->shape, s->seed, 0, at, len);
        add(z, buf, len * size);
    }
    finish(z);
}

static void write_archive(const char *path, const char *root, struct pickle *p, const struct source *s, const struct tensor *t, int n,
                          int script)
{
    struct zip z = {.f = fopen(path, "wb"), .root = root};

    if (!z.f)
        die("%s: %s", path, strerror(errno));
    fputc('.', p->f);
    fclose(p->f);
    begin(&z, "data.pkl");
    add(&z, p->text, p->n);
    finish(&z);
    text_entry(&z, "byteorder", "little");
    for (int i = 0; i < n; i++)
        storage(&z, s, &t[i], i);
    if (script) {
        text_entry(&z, "constants.pkl", "\x80\x02).");
        text_entry(&z, "code/__torch__.py", "class Detector(Module):\n");
    }
    text_entry(&z, "version", "3\n");
    directory(&z);
    if (fclose(z.f))
        die("%s: %s", path, strerror(errno));
    free(z.entry);
    free(p->text);
}

static void torch_dict(struct pickle *p, const struct tensor *t, int n, const char *prefix, int key)
{
    char name[1024];

    fputs("ccollections\nOrderedDict\n)R(", p->f);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, t[i].name);
        p_str(p, name);
        p_tensor(p, &t[i], key + i);
    }
    fputc('u', p->f);
}

static int cmd_torch(int argc, char **argv)
{
    const char *key = NULL, *prefix = "", *extra = NULL;
    struct source s = open_source(argv[0]);
    struct pickle p;

    pickle_open(&p);
    for (int i = 2; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--key"))
            key = argv[i + 1];
        else if (!strcmp(argv[i], "--prefix"))
            prefix = argv[i + 1];
        else if (!strcmp(argv[i], "--extra"))
            extra = argv[i + 1];
        else
            die("'%s' is no option", argv[i]);
    }
    if (extra) {                                /* a tensor that nobody needs, where it disturbs: first */
        s.t = need(realloc(s.t, (size_t)(s.n + 1) * sizeof *s.t));
        memmove(s.t + 1, s.t, (size_t)s.n++ * sizeof *s.t);
        s.t[0] = (struct tensor){.name = extra, .dtype = HV_F32, .ndim = 2, .shape = {3, 5}, .data = need(calloc(15, 4))};
    }
    if (key) {
        fputs("}(", p.f);
        p_str(&p, key);
        torch_dict(&p, s.t, s.n, prefix, 0);
        p_str(&p, "step");
        p_int(&p, 70000);
        fputc('u', p.f);
    } else {
        torch_dict(&p, s.t, s.n, prefix, 0);
    }
    write_archive(argv[1], "archive", &p, &s, s.t, s.n, 0);
    close_source(&s);
    return 0;
}

/* Block matrices as the reference's fp8 file has them: one scale for each, in a second archive. */
static int cmd_fp8(char **argv)
{
    struct source s = open_source(argv[0]);
    struct tensor *map = need(calloc((size_t)s.n + 1, sizeof *map));
    struct pickle p, q;
    int n = 0;

    pickle_open(&p);
    pickle_open(&q);
    for (int i = 0; i < s.n; i++) {
        struct tensor *t = &s.t[i];
        const size_t len = strlen(t->name), total = (size_t)count(t);
        if (t->ndim != 2 || len < 7 || strcmp(t->name + len - 7, ".weight") || (!strstr(t->name, "double_blocks.") &&
            !strstr(t->name, "single_blocks.")))
            continue;
        float *w = need(malloc(total * sizeof *w)), *scale = need(calloc(1, sizeof *scale));
        uint8_t *bytes = need(malloc(total));
        if (t->data)
            hv_to_f32(w, t->dtype, t->data, total);
        else
            hv_synth(w, t->name, t->ndim, t->shape, s.seed, 0, total);
        for (size_t k = 0; k < total; k++)
            *scale = (w[k] < 0 ? -w[k] : w[k]) > *scale ? (w[k] < 0 ? -w[k] : w[k]) : *scale;
        *scale /= 448;
        for (size_t k = 0; k < total; k++)
            bytes[k] = hv_f32_to_e4m3(w[k] / *scale);
        free(w);
        t->dtype = HV_F8_E4M3;
        t->data = bytes;
        char *module = need(strdup(t->name));
        module[len - 7] = 0;
        map[n++] = (struct tensor){.name = module, .dtype = HV_F32, .data = scale};
    }
    fputs("}(", p.f);
    p_str(&p, "module");
    torch_dict(&p, s.t, s.n, "", 0);
    fputc('u', p.f);
    write_archive(argv[1], "archive", &p, &s, s.t, s.n, 0);
    fputs("}(", q.f);
    p_str(&q, "module");
    torch_dict(&q, map, n, "", 0);
    fputc('u', q.f);
    write_archive(argv[2], "archive", &q, &s, map, n, 0);
    close_source(&s);
    return 0;
}

/* ---- TorchScript ---- */

/* What names below a prefix begin with: objects within objects. */
static void object(struct pickle *p, const struct tensor *t, int n, const char *prefix)
{
    const size_t len = strlen(prefix);

    fputs("c__torch__\nModule\n)\x81}(", p->f);
    p_str(p, "training");
    fputc('\x89', p->f);
    for (int i = 0; i < n; i++) {
        if (strncmp(t[i].name, prefix, len))
            continue;
        const char *dot = strchr(t[i].name + len, '.');
        char part[256], below[512];
        int seen = 0;
        snprintf(part, sizeof part, "%.*s", dot ? (int)(dot - t[i].name - (long)len) : 255, t[i].name + len);
        snprintf(below, sizeof below, "%s%s.", prefix, part);
        for (int k = 0; k < i && dot; k++)
            seen |= !strncmp(t[k].name, below, strlen(below));
        if (seen)
            continue;
        p_str(p, part);
        if (dot)
            object(p, t, n, below);
        else
            p_tensor(p, &t[i], i);
    }
    fputs("ub", p->f);
}

static float *constant(int64_t n, float v)
{
    float *p = need(malloc((size_t)n * sizeof *p));

    for (int64_t i = 0; i < n; i++)
        p[i] = v;
    return p;
}

/* The detector as it was trained: each convolution "X.conv" with half its weight and a batch norm "X.bn" behind it that
 * doubles what comes and adds the bias. Half and double are exact, so folding gives back what there was. */
static int cmd_script(char **argv)
{
    struct source s = open_source(argv[0]);
    struct tensor *t = need(calloc((size_t)s.n * 6 + 2, sizeof *t));
    struct pickle p;
    int n = 0;

    pickle_open(&p);
    for (int i = 0; i < s.n; i++) {
        const struct tensor *w = &s.t[i], *b = NULL;
        const size_t len = strlen(w->name);
        char name[256];
        if (len > 10 && !strcmp(w->name + len - 10, ".conv.bias"))
            continue;                           /* the batch norm's */
        if (w->ndim != 4 || len < 12 || strcmp(w->name + len - 12, ".conv.weight") || !w->data) {
            t[n++] = *w;
            continue;
        }
        snprintf(name, sizeof name, "%.*s.conv.bias", (int)(len - 12), w->name);
        for (int k = 0; k < s.n && !b; k++)
            b = strcmp(s.t[k].name, name) ? NULL : &s.t[k];
        if (!b)
            die("%s is missing", name);
        float *half = need(malloc((size_t)count(w) * sizeof *half));
        for (int64_t k = 0; k < count(w); k++)
            half[k] = ((const float *)w->data)[k] / 2;
        t[n] = *w;
        t[n++].data = half;
        /* var + 1e-3 is 1 in f64 after rounding of the root: the nearest f32 to 0.999 does. */
        const struct { const char *part; const void *data; } norm[] = {
            {"weight", constant(w->shape[0], 2)}, {"bias", b->data}, {"running_mean", constant(w->shape[0], 0)},
            {"running_var", constant(w->shape[0], 0.999f)},
        };
        for (size_t k = 0; k < sizeof norm / sizeof *norm; k++) {
            snprintf(name, sizeof name, "%.*s.bn.%s", (int)(len - 12), w->name, norm[k].part);
            t[n++] = (struct tensor){.name = need(strdup(name)), .dtype = HV_F32, .ndim = 1, .shape = {w->shape[0]}, .data = norm[k].data};
        }
        snprintf(name, sizeof name, "%.*s.bn.num_batches_tracked", (int)(len - 12), w->name);
        static const int64_t batches = 1000;
        t[n++] = (struct tensor){.name = need(strdup(name)), .dtype = HV_I64, .data = &batches};
    }
    static const float anchors[18] = {4, 5, 8, 10, 13, 16, 23, 29, 43, 55, 73, 105, 146, 217, 231, 300, 335, 433};
    t[n++] = (struct tensor){.name = "anchor_grid", .dtype = HV_F32, .ndim = 6, .shape = {3, 1, 3, 1, 1, 2}, .data = anchors};
    object(&p, t, n, "");
    write_archive(argv[1], "detface", &p, &s, t, n, 1);
    close_source(&s);
    return 0;
}

/* ---- shards ---- */

static int cmd_shards(char **argv)
{
    struct source s = open_source(argv[0]);
    const int n = atoi(argv[2]);
    struct hv_err e = {0};
    char path[4096], file[64];
    json_t *map = json_object();
    uint64_t total = 0;

    for (int k = 1; k <= n; k++) {
        struct hv_out o = {0};
        snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", k, n);
        snprintf(path, sizeof path, "%s/%s", argv[1], file);
        hv_out_meta(&o, "format", "pt");
        for (int i = k - 1; i < s.n; i += n) {
            hv_out_add(&o, s.t[i].name, hv_view(s.t[i].data, s.t[i].dtype, s.t[i].ndim, s.t[i].shape));
            json_object_set_new(map, s.t[i].name, json_string(file));
            total += (uint64_t)count(&s.t[i]) * hv_dtype_size(s.t[i].dtype);
        }
        if (hv_out_write(&o, path, &e))
            die("%s", e.msg);
        hv_out_close(&o);
    }
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", argv[1]);
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    if (json_dump_file(root, path, JSON_INDENT(1)))
        die("%s: cannot be written", path);
    json_decref(root);
    close_source(&s);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc >= 4 && !strcmp(argv[1], "torch"))
        return cmd_torch(argc - 2, argv + 2);
    if (argc == 5 && !strcmp(argv[1], "fp8"))
        return cmd_fp8(argv + 2);
    if (argc == 4 && !strcmp(argv[1], "script"))
        return cmd_script(argv + 2);
    if (argc == 5 && !strcmp(argv[1], "shards"))
        return cmd_shards(argv + 2);
    die("torch IN OUT [--key K] [--prefix P] [--extra NAME] | fp8 IN OUT MAP | script IN OUT | shards IN DIR N");
}
