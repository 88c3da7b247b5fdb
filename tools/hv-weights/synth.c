/* hv-weights synth: a model whose values follow from seed, name and index (mem/synth.h), written at the speed of the disk. */
#define _GNU_SOURCE
#include "mem/synth.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/temp.h"
#include "hv-weights.h"

struct options {
    struct hv_common c;
    const char *dtype, *kind;
    double      gain;
    uint64_t    seed;
    int         in_folder;
    hv_dtype    as;                     /* HV_NONE: as stored */
};

struct job {
    const struct pack    *pack;
    const struct options *o;
    struct hv_progress    progress;
};

static int produce(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    struct job *j = ctx;
    const struct piece *p = &j->pack->p[i];
    const size_t size = hv_dtype_size(p->dtype), first = (size_t)offset / size, count = n / size;
    const int64_t chunks = (int64_t)((count + CHUNK - 1) / CHUNK);

    (void)e;
    if (!offset)
        hv_progress_step(&j->progress, "tensor", i, j->pack->n);
    if (p->role == PAD) {
        memset(buf, 0, n);
        return 0;
    }
#pragma omp parallel for schedule(dynamic) if (chunks > 1)
    for (int64_t k = 0; k < chunks; k++) {
        const size_t at = (size_t)k * CHUNK, len = count - at < CHUNK ? count - at : CHUNK;
        hv_synth_as(p->dtype, (char *)buf + at * size, p->name, p->ndim, p->shape, j->o->seed, (float)j->o->gain, first + at,
                    len);
    }
    return 0;
}

static void set_metadata(struct hv_out *out, const struct hv_kind *kind, const struct options *o)
{
    hv_out_meta(out, "format", "hv");
    hv_out_meta(out, "hv.version", "1");
    hv_out_meta(out, "hv.model", "%s", kind->name);
    hv_out_meta(out, "hv.quant", "none");
    hv_out_meta(out, "hv.source", "synth:%llu", (unsigned long long)o->seed);
    if (o->gain > 0)
        hv_out_meta(out, "hv.gain", "%.9g", o->gain);
}

/* One part: the config in, model.safetensors out. */
static int synth_part(const struct hv_cli *cli, const char *config, const char *kind_name, const char *path,
                      const struct options *o, struct hv_err *e)
{
    json_t *root = NULL;
    struct hv_wlist list = {0};
    struct pack pack = {0};
    struct hv_out out = {.align = 4096, .digest = 1};
    struct options mine = *o;
    struct job job = {.pack = &pack, .o = &mine};
    const double start = seconds();
    double bytes = 0;
    int rc = hv_json_read(&root, config, e);
    const struct hv_kind *kind = rc ? NULL : kind_name ? hv_kind_find(kind_name) : hv_kind_of_config(root);

    if (!rc && !kind)
        rc = hv_fail(e, HV_EINPUT, "%s: not the config of a network known here (--kind NAME?)", config);
    if (!rc && kind->list(&list, root, e))
        rc = hv_context(e, "%s", config);
    /* Among the parts of a model only the face detector's kernels are meant. */
    if (!rc && o->in_folder && strcmp(kind->name, "face_detector"))
        mine.gain = 0;
    for (int i = 0; i < list.n && !rc; i++) {
        const struct hv_wspec *s = &list.w[i];
        pack_add(&pack, s->name, o->as ? o->as : s->dtype, s->ndim, s->shape, SYNTH, i);
        bytes += (double)hv_shape_count(s->ndim, s->shape) * (double)hv_dtype_size(o->as ? o->as : s->dtype);
    }
    if (!rc)
        rc = pack_layout(&pack, &out, e);
    if (!rc) {
        set_metadata(&out, kind, &mine);
        hv_progress_open(&job.progress, cli);
        rc = hv_out_produce(&out, path, BLOCK, produce, &job, e);
        hv_progress_close(&job.progress);
    }
    if (!rc)
        hv_note_verbose(cli, "%s: %s, %d tensors, %.1f MB in %.1f s (%.0f MB/s)", path, kind->name, list.n, bytes / 1e6,
                        seconds() - start, bytes / 1e6 / (seconds() - start + 1e-9));
    hv_out_close(&out);
    pack_close(&pack);
    hv_wlist_close(&list);
    json_decref(root);
    return rc;
}

/* ---- folders ---- */

/* Weights are made, not copied; everything else (configs, tokenizers) goes along. */
static int is_weight_file(const char *name)
{
    static const char *const tails[] = {".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf"};
    const size_t n = strlen(name);

    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++)
        if (n >= strlen(tails[i]) && !strcmp(name + n - strlen(tails[i]), tails[i]))
            return 1;
    return 0;
}

/* A folder of parts, or a part: a folder with a config.json. Its name tells the kind where it is the name of one. */
static int synth_folder(const struct hv_cli *cli, const char *from, const char *to, const char *name, int depth,
                        const struct options *o, struct hv_err *e)
{
    char src[HV_PATH], dst[HV_PATH];
    struct dirent **names = NULL;
    int rc = make_folder(to, e);
    const int n = rc ? 0 : scandir(from, &names, NULL, alphasort);

    if (n < 0)
        rc = hv_fail(e, HV_EIO, "%s: %s", from, strerror(errno));
    for (int i = 0; i < n; i++) {
        const char *file = names[i]->d_name;
        if (!rc && file[0] != '.' && !(rc = join(src, from, file, e)) && !(rc = join(dst, to, file, e))) {
            if (is_folder(src) && depth < 2)
                rc = synth_folder(cli, src, dst, file, depth + 1, o, e);
            else if (!is_folder(src) && !is_weight_file(file))
                rc = copy_file(src, dst, e);
            if (!rc && !strcmp(file, "config.json") && !(rc = join(dst, to, "model.safetensors", e)))
                rc = synth_part(cli, src, o->kind ? o->kind : hv_kind_find(name) ? name : NULL, dst, o, e);
        }
        free(names[i]);
    }
    free(names);
    return rc;
}

/* ---- options ---- */

static int read_options(struct options *o, const char **out, struct hv_err *e)
{
    const char *seed = o->c.operand[1];
    char *end = NULL;

    errno = 0;
    o->seed = strtoull(seed, &end, 10);
    if (end == seed || *end || errno || *seed == '-')
        return hv_fail(e, HV_EUSAGE, "SEED '%s': expected a whole number from 0 to 2^64 - 1", seed);
    o->as = !strcmp(o->dtype, "f32") ? HV_F32 : !strcmp(o->dtype, "bf16") ? HV_BF16 : !strcmp(o->dtype, "f16") ? HV_F16 : HV_NONE;
    if (!o->as && strcmp(o->dtype, "as-stored"))
        return hv_fail(e, HV_EUSAGE, "--dtype: '%s', expected as-stored, f32, bf16 or f16", o->dtype);
    if (o->kind && !hv_kind_find(o->kind))
        return hv_fail(e, HV_EUSAGE, "--kind: '%s' is no kind of network", o->kind);
    use_threads(&o->c);
    return pick_output(&o->c, 3, out, e);
}

int cmd_synth(int argc, char **argv, struct hv_err *e)
{
    static struct options o = {.dtype = "as-stored"};
    const struct hv_opt opts[] = {
        {"dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "as-stored, f32, bf16 or f16 (default: as-stored)", 0, 0},
        {"gain", 0, HV_OPT_REAL, &o.gain, "G", "multiply kernels [n,c,h,w] by G; in a folder the face detector's", 1e-6, 1e6},
        {"kind", 0, HV_OPT_STR, &o.kind, "NAME", "transformer, vae, .. (default: from the config)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-weights", "synth CONFIG SEED OUT",
                               "Makes synthetic weights. CONFIG: a config.json (OUT: a .safetensors file),\n"
                               "or a folder of model parts (OUT: a folder, configs and tokenizers copied).",
                               opts, &o.c, 2, 3};
    const char *out = NULL;
    char from[HV_PATH];
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = read_options(&o, &out, e);
    if (rc)
        return rc;
    if (!is_folder(o.c.operand[0]))
        return synth_part(&cli, o.c.operand[0], o.kind, out, &o, e);
    o.in_folder = 1;
    /* "model/vae/" has the name "vae". */
    snprintf(from, sizeof from, "%s", o.c.operand[0]);
    for (size_t n = strlen(from); n > 1 && from[n - 1] == '/'; n--)
        from[n - 1] = 0;
    return synth_folder(&cli, from, out, strrchr(from, '/') ? strrchr(from, '/') + 1 : from, 0, &o, e);
}
