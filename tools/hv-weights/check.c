/* hv-weights check: is a packed file what it says it is, and what its config asks for? */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-weights.h"
#include "io/listing.h"

struct report {
    const char *path;
    int         faults, files;
};

static void fault(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fault(struct report *r, const char *fmt, ...)
{
    char text[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    hv_print_safe(stdout, r->path);
    fputs(": ", stdout);
    hv_print_safe(stdout, text);
    putchar('\n');
    r->faults++;
}

/* ---- one file ---- */

static int same_shape(const struct hv_ctensor *t, const struct hv_wspec *s)
{
    return t->ndim == s->ndim && !memcmp(t->shape, s->shape, (size_t)s->ndim * sizeof s->shape[0]);
}

static void check_names(struct report *r, const struct hv_ckpt *c, const struct hv_wlist *l, const char *kind)
{
    char got[192], want[192];

    for (int i = 0; i < l->n; i++) {
        const struct hv_wspec *s = &l->w[i];
        const struct hv_ctensor *t = hv_ckpt_find(c, s->name);
        if (!t)
            fault(r, "%s is missing (%s)", s->name, kind);
        else if (!same_shape(t, s))
            fault(r, "%s is %s, expected %s", s->name, shape_text(got, t->ndim, t->shape), shape_text(want, s->ndim, s->shape));
        else if (t->ndim >= 2 && t->dtype != HV_F32 && t->dtype != HV_F16 && t->dtype != HV_BF16 &&
                 !(is_quantized(t->dtype) && t->scale))
            fault(r, is_quantized(t->dtype) ? "%s: %s without a fitting scale" : "%s: %s is no dtype of a matrix", s->name,
                  hv_dtype_name(t->dtype));
    }
}

static int count_extra(const struct hv_ckpt *c, const struct hv_wlist *l)
{
    int extra = 0;

    for (int i = 0; i < hv_ckpt_count(c); i++)
        extra += !hv_wlist_find(l, hv_ckpt_at(c, i)->name);
    return extra;
}

struct count {
    const struct hv_ckpt    *c;
    const struct hv_ctensor *t;
    size_t                   n;
    int64_t                  bad;
    struct failure           f;
};

static void count_chunk(void *ctx, int64_t k, struct worker *w)
{
    struct count *p = ctx;
    const size_t size = hv_dtype_size(p->t->dtype), first = (size_t)k * CHUNK, len = p->n - first < CHUNK ? p->n - first : CHUNK;
    char *data = scratch(w, CHUNK * size);
    struct hv_err e = {0};
    int64_t bad = 0;

    if (!data)
        hv_fail(&e, HV_ENOMEM, "%s: out of memory", p->t->name);
    else
        hv_ckpt_read(p->c, p->t, first, len, data, &e);
    for (size_t at = 0; !e.code && at < len;) {
        const int64_t left = (int64_t)(len - at);
        const int64_t hit = hv_first_nonfinite(hv_view(data + at * size, p->t->dtype, 1, &left));
        if (hit < 0)
            break;
        bad++;
        at += (size_t)hit + 1;
    }
    __atomic_fetch_add(&p->bad, bad, __ATOMIC_RELAXED);
    if (e.code)
        keep_first(&p->f, k, &e);
}

/* NaN and Inf of one tensor, in parallel over blocks. */
static int count_bad(const struct hv_ckpt *c, const struct hv_ctensor *t, int64_t *bad, struct hv_err *e)
{
    struct count p = {.c = c, .t = t, .n = (size_t)hv_ctensor_count(t)};

    *bad = 0;
    if (!hv_dtype_is_float(t->dtype))
        return 0;
    for_chunks((int64_t)((p.n + CHUNK - 1) / CHUNK), count_chunk, &p);
    *bad = p.bad;
    hv_ckpt_forget(c, t);
    return p.f.e.code ? hv_fail(e, p.f.e.code, "%s", p.f.e.msg) : 0;
}

/* The file's hv.sha256 against its data. Returns 1 when there is one and it holds. */
static int check_digest(struct report *r, const struct hv_in *in)
{
    const char *want = hv_in_meta(in, "hv.sha256");
    unsigned char md[EVP_MAX_MD_SIZE];
    char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
    unsigned n = 0;

    if (!want)
        return 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
    for (int i = 0; i < hv_in_count(in) && ok; i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        ok = EVP_DigestUpdate(ctx, hv_in_data(in, t), (size_t)(t->end - t->begin));
        hv_in_advise(in, t->begin, t->end, 0);
    }
    ok = ok && EVP_DigestFinal_ex(ctx, md, &n);
    EVP_MD_CTX_free(ctx);
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", md[i]);
    if (!ok)
        fault(r, "hv.sha256 cannot be computed");
    else if (strcmp(hex, want))
        fault(r, "hv.sha256 is %.64s, the data has %s", want, hex);
    return ok && !strcmp(hex, want);
}

static void check_metadata(struct report *r, const struct hv_ckpt *c, const struct hv_kind *kind)
{
    const char *version = hv_ckpt_meta(c, "hv.version"), *model = hv_ckpt_meta(c, "hv.model");

    if (version && strcmp(version, "1"))
        fault(r, "hv.version is '%s', expected 1", version);
    if (model && !hv_kind_find(model))
        fault(r, "hv.model is '%s', no kind of network", model);
    else if (model && kind && strcmp(model, kind->name))
        fault(r, "hv.model is '%s', the config beside it is of a %s", model, kind->name);
}

/* A message without the path that the line begins with. */
static const char *without_path(const char *msg, const char *path)
{
    const size_t n = strlen(path);

    return !strncmp(msg, path, n) && !strncmp(msg + n, ": ", 2) ? msg + n + 2 : msg;
}

static int check_values(struct report *r, const struct hv_ckpt *c, struct hv_err *e)
{
    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        int64_t bad = 0;
        if (count_bad(c, t, &bad, e))
            return e->code;
        if (bad)
            fault(r, "%s: %lld NaN or Inf", t->name, (long long)bad);
    }
    return 0;
}

static int check_file(struct report *r, const char *path, struct hv_err *e)
{
    struct hv_ckpt *c = NULL;
    struct hv_wlist list = {0};
    struct hv_err why = {0}, sum = {0};
    const struct hv_ckpt_opts o = {.script = 1};        /* with its other shards and its map */
    const struct hv_kind *kind = NULL;
    const int before = r->faults;
    int sha = 0, extra = 0, crc = 0;

    r->path = path;
    r->files++;
    if (hv_ckpt_open(&c, &path, 1, &o, &why)) {
        if (why.code == HV_EIO)
            return hv_fail(e, HV_EIO, "%s", why.msg);
        fault(r, "%s", without_path(why.msg, path));
        return 0;
    }
    if (hv_ckpt_verify(c, &crc, &sum))
        fault(r, "%s", without_path(sum.msg, path));
    const struct hv_in *in = hv_ckpt_in(c);
    sha = in ? check_digest(r, in) : 0;
    const int stored = hv_ckpt_count(c);
    if (list_beside(path, &kind, &list, &why) || hv_ckpt_resolve(c, &why))
        fault(r, "%s", without_path(why.msg, path));
    check_metadata(r, c, kind);
    if (kind && !why.code) {
        check_names(r, c, &list, kind->name);
        extra = count_extra(c, &list);
    }
    int rc = check_values(r, c, e);
    if (!rc && r->faults == before) {
        hv_print_safe(stdout, path);
        printf(": ok: %d tensors, %.1f MB, %s%s%s", stored, (double)hv_ckpt_bytes(c) / 1e6,
               kind ? kind->name : "no config beside it: names not checked", kind ? " complete" : "",
               sha ? ", digest holds" : crc ? ", checksums hold" : ", no digest");
        printf(extra ? ", %d tensors that are not used\n" : "\n", extra);
    }
    hv_wlist_close(&list);
    hv_ckpt_close(c);
    return rc;
}

/* ---- folders ---- */

/* A part is a folder with a config.json of a known network: its model.safetensors must be there. */
static int check_folder(struct report *r, const char *dir, int depth, struct hv_err *e)
{
    char path[HV_PATH];
    struct dirent **names = NULL;
    const int n = scandir(dir, &names, NULL, alphasort);
    int rc = n < 0 ? hv_fail(e, HV_EIO, "%s: %s", dir, strerror(errno)) : 0;

    for (int i = 0; i < n; i++) {
        const char *file = names[i]->d_name;
        if (!rc && file[0] != '.' && snprintf(path, sizeof path, "%s/%s", dir, file) < (int)sizeof path) {
            const size_t len = strlen(file);
            if (is_folder(path) && depth < 2) {
                rc = check_folder(r, path, depth + 1, e);
            } else if (len > 12 && !strcmp(file + len - 12, ".safetensors")) {
                rc = check_file(r, path, e);
            } else if (!strcmp(file, "config.json")) {
                json_t *root = NULL;
                struct hv_err ignored = {0};
                char model[HV_PATH];
                const int known = !hv_json_read(&root, path, &ignored) && hv_kind_of_config(root);
                if (snprintf(model, sizeof model, "%s/model.safetensors", dir) < (int)sizeof model && known &&
                    access(model, F_OK)) {
                    r->path = dir;
                    r->files++;
                    fault(r, "config.json without model.safetensors");
                }
                json_decref(root);
            }
        }
        free(names[i]);
    }
    free(names);
    return rc;
}

int cmd_check(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-weights", "check FILE|FOLDER...",
                               "Checks structure, names and shapes (by the config.json beside), values and digest.", NULL, &c,
                               1, -1};
    struct report r = {0};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "check", e);
    if (!rc)
        use_threads(&c);
    for (int i = 0; i < c.n_operands && !rc; i++) {
        const int files = r.files;
        rc = is_folder(c.operand[i]) ? check_folder(&r, c.operand[i], 0, e) : check_file(&r, c.operand[i], e);
        if (!rc && r.files == files) {
            r.path = c.operand[i];
            fault(&r, "no weights in this folder");
        }
    }
    if (!rc && r.faults)
        rc = hv_fail(e, HV_EDIFF, "%d fault%s", r.faults, r.faults == 1 ? "" : "s");
    return rc;
}
