/* hv-weights import: a checkpoint of any format becomes a part of a model folder. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-weights.h"
#include "io/listing.h"

#define NAMED 8                         /* faults that a message names */

/* A part in the making. */
struct part {
    const struct hv_cli         *cli;
    const struct import_options *o;
    const struct hv_kind        *kind;  /* NULL: any tensor under its name */
    struct hv_ckpt              *c;
    json_t                      *config;
    int                          verbatim;      /* the config is that of config_path, byte for byte */
    char                         config_path[HV_PATH], weights[HV_PATH];
    struct hv_wlist              list;
    struct pack                  pack;
    char                        *used;  /* tensors of the checkpoint that the network reads */
    const char                  *prefix;
    int                          faults;        /* tensors that are missing or misshapen */
    char                         stamp[160];
};

/* ---- config ---- */

/* The config: --config, config.json beside the file if it is of this network, the graph of a face detector, the full size. */
static int find_config(struct part *p, const char *path, struct hv_err *e)
{
    const char *given = p->o->config, *slash = strrchr(path, '/');
    const char *text = config_full(p->kind);
    int rc = 0;

    if (given)
        snprintf(p->config_path, sizeof p->config_path, "%s", given);
    else if (is_folder(path))
        snprintf(p->config_path, sizeof p->config_path, "%s/config.json", path);
    else
        snprintf(p->config_path, sizeof p->config_path, "%.*sconfig.json", slash ? (int)(slash - path + 1) : 0, path);
    if (given || !access(p->config_path, F_OK)) {
        rc = hv_json_read(&p->config, p->config_path, e);
        if (rc)
            return rc;
        const struct hv_kind *kind = hv_kind_of_config(p->config);
        if (kind == p->kind || given) {
            const int added = config_complete(p->kind, p->config);
            p->verbatim = !added;
            return added < 0 ? hv_fail(e, HV_ENOMEM, "%s: out of memory", p->config_path) : 0;
        }
        json_decref(p->config);
        p->config = NULL;
    }
    *p->config_path = 0;
    if (text)
        return hv_json_parse(&p->config, text, strlen(text), 16, e);
    return face_graph(&p->config, p->c, e) ? hv_context(e, "%s", hv_ckpt_path(p->c)) : 0;
}

static int write_config(const struct part *p, const char *path, struct hv_err *e)
{
    if (p->verbatim)
        return copy_file(p->config_path, path, e);
    const char *full = config_full(p->kind);
    char *text = NULL;
    int rc;
    if (!*p->config_path && full)
        return write_text(path, full, e);
    char *json = json_dumps(p->config, JSON_INDENT(2));
    if (!json || asprintf(&text, "%s\n", json) < 0)
        text = NULL;
    free(json);
    rc = text ? write_text(path, text, e) : hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
    free(text);
    return rc;
}

/* ---- names ---- */

/* The VAE's "vae." goes wherever it stands. */
static int remove_vae(struct hv_ckpt *c, struct hv_err *e)
{
    char name[HV_CKPT_NAME];

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const char *from = hv_ckpt_at(c, i)->name;
        size_t n = 0;
        if (!strstr(from, "vae."))
            continue;
        while (*from) {
            if (!strncmp(from, "vae.", 4))
                from += 4;
            else
                name[n++] = *from++;
        }
        name[n] = 0;
        if (n && hv_ckpt_rename(c, i, name, e))
            return e->code;
    }
    return 0;
}

static struct hv_ctensor *find(const struct part *p, const char *prefix, const char *name)
{
    char text[HV_CKPT_NAME];

    return snprintf(text, sizeof text, "%s%s", prefix, name) < (int)sizeof text ? hv_ckpt_find(p->c, text) : NULL;
}

/* The prefix under which most of the wanted names are found: all of them, if the file is whole. */
static const char *find_prefix(const struct part *p)
{
    static const char *const prefixes[] = {"", "model.diffusion_model.", "diffusion_model.", "module.", "model.", "transformer."};
    const char *best = "";
    int most = 0;

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        int n = 0;
        for (int k = 0; k < p->list.n; k++)
            n += find(p, prefixes[i], p->list.w[k].name) != NULL;
        if (n > most) {
            most = n;
            best = prefixes[i];
        }
    }
    return best;
}

/* With no list of names: what every tensor of a single file of diffusion tools has in front. */
static int strip_all(struct hv_ckpt *c, struct hv_err *e)
{
    static const char *const prefixes[] = {"model.diffusion_model.", "diffusion_model."};

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        const size_t n = strlen(prefixes[i]);
        int all = hv_ckpt_count(c) > 0;
        for (int k = 0; k < hv_ckpt_count(c) && all; k++)
            all = !strncmp(hv_ckpt_at(c, k)->name, prefixes[i], n) && hv_ckpt_at(c, k)->name[n];
        for (int k = 0; k < hv_ckpt_count(c) && all; k++) {
            char name[HV_CKPT_NAME];
            snprintf(name, sizeof name, "%s", hv_ckpt_at(c, k)->name + n);
            if (hv_ckpt_rename(c, k, name, e))
                return e->code;
        }
        if (all)
            return 0;
    }
    return 0;
}

static size_t common_tail(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), k = 0;

    while (k < n && k < m && a[n - 1 - k] == b[m - 1 - k])
        k++;
    return k;
}

/* A tensor that nobody reads and that ends as the missing one does, of the same shape if there is one. */
static const struct hv_ctensor *similar(const struct part *p, const struct hv_wspec *s)
{
    const struct hv_ctensor *best = NULL;
    size_t most = 6;

    for (int i = 0; i < hv_ckpt_count(p->c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(p->c, i);
        const int same = t->ndim == s->ndim && !memcmp(t->shape, s->shape, (size_t)s->ndim * sizeof *s->shape);
        const size_t n = common_tail(t->name, s->name) + (same ? 16 : 0);
        if (!p->used[i] && n > most && (same || n >= strlen(s->name) / 2)) {
            most = n;
            best = t;
        }
    }
    return best;
}

/* ---- what the network needs ---- */

/* 1 if a tensor can stand for what is wanted. GGUF has at most four dimensions and may have flattened the fifth. */
static int fits(const struct hv_ctensor *t, const struct hv_wspec *s)
{
    return (t->ndim == s->ndim && !memcmp(t->shape, s->shape, (size_t)s->ndim * sizeof *s->shape));
}

static int fits_flat(const struct part *p, const struct hv_ctensor *t, const struct hv_wspec *s)
{
    return !strcmp(hv_ckpt_format(p->c), "gguf") && s->ndim == 5 && hv_ctensor_contiguous(t) &&
           hv_ctensor_count(t) == hv_shape_count(s->ndim, s->shape);
}

static void mark(struct part *p, const struct hv_ctensor *t)
{
    p->used[t - hv_ckpt_at(p->c, 0)] = 1;
}

/* Batch norms of a detector are read by folding, its anchors by comparing. */
static void mark_norms(struct part *p)
{
    static const char *const tails[] = {".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"};

    for (int i = 0; i < hv_ckpt_count(p->c); i++) {
        const char *name = hv_ckpt_at(p->c, i)->name;
        const size_t n = strlen(name), k = strlen(".running_mean");
        char other[HV_CKPT_NAME + 32];
        if (n >= 11 && !strcmp(name + n - 11, "anchor_grid"))
            p->used[i] = 1;
        if (n <= k || strcmp(name + n - k, ".running_mean"))
            continue;
        for (size_t m = 0; m < sizeof tails / sizeof *tails; m++) {
            snprintf(other, sizeof other, "%.*s%s", (int)(n - k), name, tails[m]);
            const struct hv_ctensor *t = hv_ckpt_find(p->c, other);
            if (t)
                mark(p, t);
        }
    }
}

/* Adds list entry i to the pack, *i moved past what was added. "" in why when all is well. */
static int plan_tensor(struct part *p, int *at, char *why, size_t size, struct hv_err *e)
{
    const int i = *at;
    const struct hv_wspec *s = &p->list.w[i];
    const struct hv_ctensor *t = find(p, p->prefix, s->name);
    const int is_face = !strcmp(p->kind->name, "face_detector");
    char got[192], want[192];

    *why = 0;
    if (t)
        mark(p, t);
    if (!t) {
        t = p->faults < NAMED ? similar(p, s) : NULL;
        snprintf(why, size, t ? "%s is missing (there is %s)" : "%s is missing", s->name, t ? t->name : "");
        return 0;
    }
    if (!fits(t, s) && !fits_flat(p, t, s)) {
        snprintf(why, size, "%s is %s, expected %s", s->name, shape_text(got, t->ndim, t->shape),
                 shape_text(want, s->ndim, s->shape));
        return 0;
    }
    if (is_face && s->ndim == 4 && i + 1 < p->list.n) {
        const int folded = face_fold_pieces(&p->pack, p->c, s, s + 1, i, e);
        if (folded < 0)
            return e->code;
        if (folded) {
            const struct hv_ctensor *b = find(p, p->prefix, s[1].name);
            if (b)
                mark(p, b);
            *at = i + 1;
            return 0;
        }
    }
    return conversion_add(&p->o->v, &p->pack, p->kind, t, s->name, s->ndim, s->shape, s->dtype, i, e) < 0 ? e->code : 0;
}

static int plan_network(struct part *p, struct hv_err *e)
{
    char list[800] = "", why[HV_CKPT_NAME];
    size_t n = 0;

    if (!strcmp(p->kind->name, "transformer"))
        for (int i = 0; i < hv_ckpt_count(p->c); i++)
            if (strstr(hv_ckpt_at(p->c, i)->name, "transformer_blocks."))
                return hv_fail(e, HV_EUNSUP, "%s: names of diffusers ('%.80s'): no mapping of the avatar model to them was ever "
                               "published; use the original checkpoint", hv_ckpt_path(p->c), hv_ckpt_at(p->c, i)->name);
    p->prefix = find_prefix(p);
    if (!strcmp(p->kind->name, "face_detector"))
        mark_norms(p);
    for (int i = 0; i < p->list.n; i++) {
        if (plan_tensor(p, &i, why, sizeof why, e))
            return hv_context(e, "%s", hv_ckpt_path(p->c));
        if (*why && p->faults++ < NAMED && n < sizeof list)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? "; " : "", why);
    }
    if (p->faults)
        return hv_fail(e, HV_EINPUT, "%s: %d of %d tensors of the %s are missing or misshapen: %s%s", hv_ckpt_path(p->c),
                       p->faults, p->list.n, p->kind->name, list, p->faults > NAMED ? "; ..." : "");
    return 0;
}

static int plan_any(struct part *p, struct hv_err *e)
{
    for (int i = 0; i < hv_ckpt_count(p->c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(p->c, i);
        p->used[i] = 1;
        if (conversion_add(&p->o->v, &p->pack, NULL, t, t->name, t->ndim, t->shape, HV_F32, i, e) < 0)
            return hv_context(e, "%s", hv_ckpt_path(p->c));
    }
    return 0;
}

/* A few elements can be said to be many: the output may not outgrow its origin without measure. */
static int check_size(const struct part *p, struct hv_err *e)
{
    const uint64_t limit = 16 * hv_ckpt_bytes(p->c) + ((uint64_t)64 << 20);
    uint64_t sum = 0;

    for (int i = 0; i < p->pack.n; i++) {
        const struct piece *s = &p->pack.p[i];
        uint64_t n = 0;
        if (__builtin_mul_overflow((uint64_t)hv_shape_count(s->ndim, s->shape), hv_dtype_size(s->dtype), &n) ||
            __builtin_add_overflow(sum, n, &sum) || sum > limit)
            return hv_fail(e, HV_EINPUT, "%s: %s: %llu bytes would become more than %llu", hv_ckpt_path(p->c), s->name,
                           (unsigned long long)hv_ckpt_bytes(p->c), (unsigned long long)limit);
    }
    return 0;
}

/* ---- reports ---- */

static void list_extra(const struct part *p, struct imported *done)
{
    char names[900] = "";
    size_t n = 0;

    for (int i = 0; i < hv_ckpt_count(p->c); i++) {
        if (p->used[i])
            continue;
        done->extra++;
        if (p->cli->common->verbose)
            hv_note(p->cli, "%s: not used: %s", hv_ckpt_path(p->c), hv_ckpt_at(p->c, i)->name);
        else if (done->extra <= NAMED && n < sizeof names)
            n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", hv_ckpt_at(p->c, i)->name);
    }
    if (done->extra && !p->cli->common->verbose)
        hv_note(p->cli, "%s: %d tensor%s not used: %s%s", hv_ckpt_path(p->c), done->extra,
                done->extra == 1 ? " is" : "s are", names, done->extra > NAMED ? ", ... (-v lists them)" : "");
}

/* What a packed file says of itself. */
static int describe(struct imported *done, const char *path, struct hv_err *e)
{
    struct hv_in *in = NULL;
    uint64_t bytes[HV_DTYPES] = {0};
    size_t n = 0;

    if (hv_in_open(&in, path, e))
        return e->code;
    const char *sha = hv_in_meta(in, "hv.sha256");
    snprintf(done->sha256, sizeof done->sha256, "%s", sha ? sha : "-");
    done->bytes = 0;
    done->tensors = 0;
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        if (is_padding(t->name))
            continue;
        bytes[t->dtype] += t->end - t->begin;
        done->bytes += t->end - t->begin;
        done->tensors++;
    }
    /* The dtypes that matter, the largest first. */
    for (int k = 0; k < 3; k++) {
        int best = 0;
        for (int t = 1; t < HV_DTYPES; t++)
            if (bytes[t] > bytes[best])
                best = t;
        if (bytes[best])
            n += (size_t)snprintf(done->dtypes + n, sizeof done->dtypes - n, "%s%s", n ? "+" : "", hv_dtype_name((hv_dtype)best));
        bytes[best] = 0;
    }
    hv_in_close(in);
    return 0;
}

/* ---- one part ---- */

/* What the file was made of: the same again need not be done twice. */
static void make_stamp(struct part *p)
{
    const struct conversion *v = &p->o->v;

    snprintf(p->stamp, sizeof p->stamp, "%016llx:%llu:%s:%s:%s", (unsigned long long)hv_ckpt_digest(p->c),
             (unsigned long long)hv_ckpt_bytes(p->c), v->keep ? "keep" : v->q == HV_I8 ? "int8" : v->q ? "fp8" : "none",
             v->modulate ? "modulation" : "", v->as ? hv_dtype_name(v->as) : "");
}

/* 1 if path is a whole file that was made of the same checkpoint with the same options and fits the config. */
static int is_there(const struct part *p)
{
    struct hv_in *in = NULL;
    struct hv_err e = {0};
    int same = 0;

    if (!p->kind || access(p->weights, F_OK) || hv_in_open(&in, p->weights, &e))
        return 0;
    const char *stamp = hv_in_meta(in, "hv.import");
    same = stamp && !strcmp(stamp, p->stamp) && hv_in_meta(in, "hv.sha256");
    for (int i = 0; i < p->list.n && same; i++) {
        const struct hv_entry *t = hv_in_find(in, p->list.w[i].name);
        same = t && t->ndim == p->list.w[i].ndim && !memcmp(t->shape, p->list.w[i].shape, (size_t)t->ndim * sizeof *t->shape);
    }
    hv_in_close(in);
    return same;
}

static int write_part(struct part *p, const char *folder, struct imported *done, struct hv_err *e)
{
    struct hv_out out = {.align = 4096, .digest = 1};
    const double start = seconds();
    int rc = p->kind ? plan_network(p, e) : plan_any(p, e);

    if (!rc)
        rc = check_size(p, e);
    if (!rc)
        rc = pack_layout(&p->pack, &out, e);
    if (!rc && folder)
        rc = make_folder(folder, e);
    if (!rc) {
        list_extra(p, done);
        conversion_metadata(&out, &p->pack, p->c, p->kind);
        if (p->kind)
            hv_out_meta(&out, "hv.import", "%s", p->stamp);
        rc = conversion_write(p->cli, &out, &p->pack, p->c, p->kind ? p->kind->name : "import", p->weights, e);
        if (rc && folder)
            rmdir(folder);                      /* only if there is nothing in it */
    }
    if (!rc)
        hv_note_verbose(p->cli, "%s: %.1f MB in %.1f s (%.0f MB/s)", p->weights, (double)hv_ckpt_bytes(p->c) / 1e6,
                        seconds() - start, (double)hv_ckpt_bytes(p->c) / 1e6 / (seconds() - start + 1e-9));
    hv_out_close(&out);
    return rc;
}

static int ends(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n >= k && !strcmp(s + n - k, tail);
}

/* The files of a part of the network: names put right, quantization understood, config and list at hand. */
static int open_part(struct part *p, const char *const *path, int n, struct hv_err *e)
{
    const struct hv_ckpt_opts o = {.key = p->o->key, .script = p->o->script};
    int rc = hv_ckpt_open(&p->c, path, n, &o, e);

    if (!rc)
        rc = hv_ckpt_resolve(p->c, e);
    if (!rc && !p->kind)
        rc = strip_all(p->c, e);
    if (!rc && p->kind && !strcmp(p->kind->name, "vae"))
        rc = remove_vae(p->c, e);
    if (!rc && p->kind && !strcmp(p->kind->name, "face_detector"))
        rc = face_rename(p->c, e);
    if (!rc && !(p->used = calloc((size_t)hv_ckpt_count(p->c) + 1, 1)))
        rc = hv_fail(e, HV_ENOMEM, "%s: out of memory", path[0]);
    if (rc || !p->kind)
        return rc;
    make_stamp(p);
    rc = find_config(p, path[0], e);
    if (!rc && !strcmp(p->kind->name, "face_detector") && face_check_anchors(p->config, p->c, e))
        rc = hv_context(e, "%s", path[0]);
    if (!rc && p->kind->list(&p->list, p->config, e))
        rc = hv_context(e, "%s", *p->config_path ? p->config_path : p->kind->name);
    return rc;
}

int import_part(const struct hv_cli *cli, const struct import_options *o, const struct hv_kind *kind, const char *const *path,
                int n, const char *out, struct imported *done, struct hv_err *e)
{
    struct part p = {.cli = cli, .o = o, .kind = kind};
    const int to_file = !kind || ends(out, ".safetensors");
    char config[HV_PATH] = "";
    int rc = 0;

    *done = (struct imported){0};
    if (to_file)
        rc = snprintf(p.weights, sizeof p.weights, "%s", out) < HV_PATH ? 0 : hv_fail(e, HV_EIO, "%s: name too long", out);
    else
        rc = join(p.weights, out, "model.safetensors", e) || join(config, out, "config.json", e) ? e->code : 0;
    if (!rc)
        rc = open_part(&p, path, n, e);
    if (!rc) {
        snprintf(done->from, sizeof done->from, "%s", path[0]);
        snprintf(done->how, sizeof done->how, "%s%s%s", hv_ckpt_format(p.c), *hv_ckpt_how(p.c) ? ", " : "", hv_ckpt_how(p.c));
        done->kept = is_there(&p);
    }
    if (!rc && !done->kept)
        rc = write_part(&p, to_file ? NULL : out, done, e);
    if (!rc && !to_file)
        rc = write_config(&p, config, e);
    if (!rc && strcmp(out, "-"))
        rc = describe(done, p.weights, e);
    pack_close(&p.pack);
    hv_wlist_close(&p.list);
    json_decref(p.config);
    free(p.used);
    hv_ckpt_close(p.c);
    return rc;
}

/* ---- the command ---- */

static int import_files(const struct hv_cli *cli, const struct import_options *o, struct hv_err *e)
{
    const int any = !strcmp(o->model, "any");
    const struct hv_kind *kind = hv_kind_find(o->model);
    const struct hv_common *c = &o->c;
    const int n = c->output ? c->n_operands : c->n_operands - 1;
    struct imported done;

    if (!kind && !any)
        return hv_fail(e, HV_EUSAGE, "--model: '%s' is no kind of network: transformer, vae, text_encoder, text_encoder_2, "
                       "audio_encoder, face_detector or any", o->model);
    if (n < 1)
        return hv_fail(e, HV_EUSAGE, "missing operand: OUT");
    const char *out = c->output ? c->output : c->operand[n];
    int rc = import_part(cli, o, kind, c->operand, n, out, &done, e);
    if (!rc)
        hv_note(cli, "%s: %s: %d tensors, %.1f MB, %s%s", out, done.how, done.tensors, (double)done.bytes / 1e6, done.dtypes,
                done.kept ? ", there already" : "");
    return rc;
}

int cmd_import(int argc, char **argv, struct hv_err *e)
{
    static struct import_options o;
    static const char *model;
    const struct hv_opt opts[] = {
        {"quant", 0, HV_OPT_STR, &o.v.quant, "TYPE", "keep (default: 8 bits where they were), none, int8 or fp8", 0, 0},
        {"modulation", 0, HV_OPT_STR, &o.v.modulation, "keep|quant", "the modulation matrices, too (default: keep)", 0, 0},
        {"dtype", 0, HV_OPT_STR, &o.v.dtype, "TYPE", "bf16, f16 or f32 for what is not quantized (default: as it is)", 0, 0},
        {"key", 0, HV_OPT_STR, &o.key, "KEY", "where a torch archive has its tensors (default: module, model, ..)", 0, 0},
        {"script", 0, HV_OPT_FLAG, &o.script, NULL, "read TorchScript archives: weights alone, no code", 0, 0},
        {"config", 0, HV_OPT_STR, &o.config, "FILE", "config.json of the network (default: beside IN, else the full size)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "import CKPTS_DIR MODEL_DIR | --model KIND IN... OUT",
                               "Makes a model folder of the official download, or a part of it of files of any format.\n"
                               "KIND: transformer, vae, text_encoder, text_encoder_2, audio_encoder, face_detector, or any:\n"
                               "every tensor under its name, into one file.", opts, &o.c, 1, -1};
    const char *environment = getenv("HV_MODEL");
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = conversion_read(&o.v, 1, e);
    if (rc)
        return rc;
    use_threads(&o.c);
    /* --model is a kind here; $HV_MODEL, its default elsewhere, is a folder. */
    model = o.c.model == environment ? NULL : o.c.model;
    o.model = model;
    if (model)
        return import_files(&cli, &o, e);
    if (o.c.n_operands + !!o.c.output != 2)
        return hv_fail(e, HV_EUSAGE, "expected CKPTS_DIR and MODEL_DIR, or --model KIND with files");
    if (o.config || o.key)
        return hv_fail(e, HV_EUSAGE, "--config and --key are for one part: --model KIND");
    return import_folder(&cli, &o, o.c.operand[0], o.c.output ? o.c.output : o.c.operand[1], e);
}
