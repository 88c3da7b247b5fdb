/* Which files a checkpoint is made of, and what each of them is. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "io/ckpt_impl.h"
#include "io/gguf.h"
#include "io/pt.h"

#define PATH_MAX_ 4096
#define SHARDS    999

/* ---- one file ---- */

static int add_safetensors(struct hv_ckpt *c, struct ckpt_file *f, struct hv_err *e)
{
    const uint64_t head = f->fd < 0 ? 0 : f->bytes - hv_in_bytes(f->in);

    f->digest = hv_in_header_digest(f->in);
    for (int i = 0; i < hv_in_count(f->in); i++) {
        const struct hv_entry *s = hv_in_entry(f->in, i);
        struct hv_ctensor t = {.dtype = s->dtype, .ndim = s->ndim, .ggml = -1, .offset = head + s->begin,
                               .span = s->end - s->begin};
        int64_t step = 1;
        for (int k = s->ndim - 1; k >= 0; k--) {
            t.shape[k] = s->shape[k];
            t.stride[k] = step;
            step *= s->shape[k] ? s->shape[k] : 1;
        }
        if (hv_ckpt_add(c, &t, s->name, strlen(s->name), e))
            return e->code;
    }
    return 0;
}

static int map_file(struct ckpt_file *f, struct hv_err *e)
{
    struct stat st;

    if (fstat(f->fd, &st))
        return hv_fail(e, HV_EIO, "%s", strerror(errno));
    f->bytes = (size_t)st.st_size;
    void *p = mmap(NULL, f->bytes, PROT_READ, MAP_SHARED, f->fd, 0);
    if (p == MAP_FAILED)
        return hv_fail(e, HV_EIO, "mmap: %s", strerror(errno));
    f->data = p;
    f->mapped = 1;
    return 0;
}

static uint64_t digest_of(const uint8_t *p, size_t n)
{
    uint64_t h = 0xCBF29CE484222325;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001B3;
    return h;
}

static int read_mapped(struct hv_ckpt *c, struct ckpt_file *f, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    size_t head = 0;
    int script = 0, rc = map_file(f, e);

    if (rc)
        return rc;
    if (!memcmp(f->data, "GGUF", 4)) {
        c->format = "gguf";
        rc = hv_gguf_read(c, f->data, f->bytes, &head, e);
        if (!rc)
            f->digest = digest_of(f->data, head);
        return rc;
    }
    rc = hv_pt_read(c, &f->zip, &script, f->data, f->bytes, o, e);
    c->format = script ? "torchscript" : "torch";
    if (!rc)
        f->digest = hv_zip_digest(f->zip);
    return rc;
}

/* A mapping of the tensor reader's own would be a second one of the same file: it is kept for what is not contiguous alone,
 * which a safetensors file does not have. */
static int read_safetensors(struct hv_ckpt *c, struct ckpt_file *f, const char *path, int regular, struct hv_err *e)
{
    struct stat st;

    c->format = "safetensors";
    if (hv_in_open(&f->in, path, e))
        return e->code;
    f->bytes = (size_t)hv_in_bytes(f->in);
    f->data = f->bytes ? hv_in_data(f->in, hv_in_entry(f->in, 0)) : NULL;
    f->fd = regular ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (f->fd >= 0 && (fstat(f->fd, &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < f->bytes)) {
        close(f->fd);
        f->fd = -1;
    }
    if (f->fd >= 0) {
        if (f->data)
            f->data -= (size_t)st.st_size - f->bytes;                   /* from the start of the file on */
        f->bytes = (size_t)st.st_size;
    }
    return add_safetensors(c, f, e);
}

/* Files of torch that are no archive begin with the opcode of a protocol, as a header of 640 bytes does: the rest of its length
 * tells them apart. */
static int read_legacy(const uint8_t head[8], struct hv_err *e)
{
    if (!memcmp(head, "\x80\x02\x8a\x0a", 4))
        return hv_fail(e, HV_EUNSUP, "a file of an old torch, without an archive: load it and save it again with a current torch "
                       "(torch.save(torch.load(A, weights_only=True), B))");
    return head[0] == 0x80 && head[1] >= 1 && head[1] <= 5 && (head[4] || head[5] || head[6] || head[7]) ?
           hv_fail(e, HV_EUNSUP, "a bare pickle, without an archive: save the state dict with torch.save") : 0;
}

/* The first 8 bytes of a file, when it is one; what they are is told by ckpt_open_file. */
static size_t peek(const char *path, uint8_t head[8])
{
    struct stat st;
    size_t n = 0;
    FILE *f = strcmp(path, "-") && !stat(path, &st) && S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;

    memset(head, 0, 8);
    if (f) {
        n = fread(head, 1, 8, f);
        fclose(f);
    }
    return n;
}

int ckpt_open_file(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    uint8_t head[8];
    const size_t n = peek(path, head);

    if (c->n_files == c->cap_files) {
        const int cap = c->cap_files ? 2 * c->cap_files : 4;
        struct ckpt_file *p = realloc(c->file, (size_t)cap * sizeof *p);
        if (!p)
            return hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
        c->file = p;
        c->cap_files = cap;
    }
    struct ckpt_file *f = &c->file[c->n_files];
    *f = (struct ckpt_file){.path = strdup(!strcmp(path, "-") ? "stdin" : path), .fd = -1};
    if (!f->path)
        return hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
    c->n_files++;
    int rc = n >= 4 ? read_legacy(head, e) : 0;
    if (!rc && n >= 4 && (!memcmp(head, "PK", 2) || !memcmp(head, "GGUF", 4))) {
        f->fd = open(path, O_RDONLY | O_CLOEXEC);
        rc = f->fd < 0 ? hv_fail(e, HV_EIO, "%s", strerror(errno)) : read_mapped(c, f, o, e);
        return rc ? hv_context(e, "%s", path) : 0;
    }
    if (rc)
        return hv_context(e, "%s", path);
    rc = read_safetensors(c, f, path, n > 0, e);
    /* hv_in_open has put the path in front; a fault of a name has not. */
    return rc && !strstr(e->msg, f->path) ? hv_context(e, "%s", f->path) : rc;
}

/* ---- shards ---- */

static int exists(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISREG(st.st_mode);
}

static int beside(char out[PATH_MAX_], const char *path, const char *name, struct hv_err *e)
{
    const char *slash = strrchr(path, '/');

    return snprintf(out, PATH_MAX_, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name) < PATH_MAX_ ? 0 :
           hv_fail(e, HV_EIO, "%s: name too long", name);
}

/* Position of "-00001-of-00004." in a file name; *n: how many there are. */
static const char *shard_mark(const char *path, int *n)
{
    const char *slash = strrchr(path, '/');

    for (const char *s = slash ? slash : path; (s = strchr(s, '-')); s++) {
        int i, used = 0;
        if (sscanf(s, "-%5d-of-%5d.%n", &i, n, &used) == 2 && used == 16 && i >= 1 && *n >= i && *n <= SHARDS)
            return s;
    }
    return NULL;
}

static int open_shards(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    char name[PATH_MAX_];
    int n = 0;
    const char *mark = shard_mark(path, &n);

    for (int i = 1; i <= n; i++) {
        if (snprintf(name, sizeof name, "%.*s-%05d-of-%05d%s", (int)(mark - path), path, i, n, mark + 15) >= (int)sizeof name)
            return hv_fail(e, HV_EIO, "%s: name too long", path);
        if (ckpt_open_file(c, name, o, e))
            return e->code;
    }
    return 0;
}

static int valid_shard(const char *file)
{
    return file && *file && *file != '.' && strlen(file) < 256 && !strchr(file, '/') && !strchr(file, '\\');
}

/* Tensors of the file just opened that the map does not give to it are ignored. */
static void take_mapped(struct hv_ckpt *c, const json_t *map, const char *file, int first)
{
    int n = first;

    for (int i = first; i < c->n; i++) {
        const char *owner = json_string_value(json_object_get(map, c->t[i].name));
        if (owner && !strcmp(owner, file)) {
            c->t[n++] = c->t[i];
        } else {
            free(c->t[i].name);
            free(c->t[i].scale);
        }
    }
    c->n = n;
    ckpt_changed(c);
}

static int open_index(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    char shard[PATH_MAX_];
    const char *name, *seen[SHARDS];
    json_t *root = NULL, *v;
    int n = 0, rc = hv_json_read(&root, path, e);
    const json_t *map = rc ? NULL : json_object_get(root, "weight_map");

    if (!rc && !json_is_object(map))
        rc = hv_fail(e, HV_EINPUT, "%s: no weight_map: not an index of shards", path);
    json_object_foreach((json_t *)(uintptr_t)map, name, v) {
        const char *file = json_string_value(v);
        int known = 0;
        if (rc)
            break;
        if (!valid_shard(file)) {
            rc = hv_fail(e, HV_EINPUT, "%s: '%.80s' is in '%.80s', which is no file beside it", path, name, file ? file : "?");
            break;
        }
        for (int i = 0; i < n && !known; i++)
            known = !strcmp(seen[i], file);
        if (known)
            continue;
        if (n == SHARDS)
            rc = hv_fail(e, HV_EINPUT, "%s: more than %d files", path, SHARDS);
        const int before = c->n;
        if (!rc)
            rc = beside(shard, path, file, e);
        if (!rc)
            rc = ckpt_open_file(c, shard, o, e);
        if (!rc) {
            take_mapped(c, map, file, before);
            seen[n++] = file;
        }
    }
    if (!rc && !n)
        rc = hv_fail(e, HV_EINPUT, "%s: an index of nothing", path);
    json_object_foreach((json_t *)(uintptr_t)map, name, v) {
        if (!rc && !hv_ckpt_find(c, name))
            rc = hv_fail(e, HV_EINPUT, "%s: '%s' is not in %s", path, name, json_string_value(v));
    }
    json_decref(root);
    return rc;
}

/* ---- what a path stands for ---- */

static int open_folder(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    static const char *const names[] = {
        "model.safetensors.index.json", "model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.pt",
        "pytorch_model.bin",
    };
    char file[PATH_MAX_];

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (snprintf(file, sizeof file, "%s/%s", path, names[i]) < (int)sizeof file && exists(file))
            return ckpt_open_path(c, file, o, e);
    for (int n = 1; n <= SHARDS; n++)
        if (snprintf(file, sizeof file, "%s/model-00001-of-%05d.safetensors", path, n) < (int)sizeof file && exists(file))
            return open_shards(c, file, o, e);
    return hv_fail(e, HV_EINPUT, "%s: a folder without model.safetensors or pytorch_model.bin, whole or in shards", path);
}

static int ends(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n >= k && !strcmp(s + n - k, tail);
}

/* Scales are told apart from weights by a prefix. */
static int open_map(struct hv_ckpt *c, const char *map, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    const struct hv_ckpt_opts plain = {.script = o->script};
    char name[HV_CKPT_NAME + 8];
    const int first = c->n;
    int rc;

    for (int i = 0; i < c->n_files; i++)
        if (!strcmp(c->file[i].path, map))
            return 0;
    rc = ckpt_open_file(c, map, &plain, e);
    for (int i = first; i < c->n && !rc; i++) {
        snprintf(name, sizeof name, "map:%s", c->t[i].name);
        rc = hv_ckpt_rename(c, i, name, e);
    }
    return rc;
}

/* "A_fp8.pt" has its scales in "A_fp8_map.pt". */
static int open_map_beside(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    char map[PATH_MAX_];
    int fp8 = 0;

    for (int i = 0; i < c->n; i++)
        fp8 |= c->t[i].dtype == HV_F8_E4M3 && c->t[i].ndim == 2;
    if (!fp8 || !ends(path, ".pt") ||
        snprintf(map, sizeof map, "%.*s_map.pt", (int)(strlen(path) - 3), path) >= (int)sizeof map || !exists(map))
        return 0;
    return open_map(c, map, o, e);
}

int ckpt_open_path(struct hv_ckpt *c, const char *path, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    struct stat st;
    uint8_t head[8];
    int n = 0, rc;

    if (!strcmp(path, "-"))
        return ckpt_open_file(c, path, o, e);
    if (stat(path, &st))
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return o->alone ? hv_fail(e, HV_EIO, "%s: is a folder", path) : open_folder(c, path, o, e);
    /* Text has no zero bytes where the length of a header has them. */
    if (peek(path, head) == 8 && head[0] == '{' && head[5] && head[6] && head[7])
        return open_index(c, path, o, e);
    if (!o->alone && shard_mark(path, &n))
        return open_shards(c, path, o, e);
    if (!o->alone && ends(path, "_map.pt"))
        return open_map(c, path, o, e);
    rc = ckpt_open_file(c, path, o, e);
    return rc || o->alone ? rc : open_map_beside(c, path, o, e);
}
