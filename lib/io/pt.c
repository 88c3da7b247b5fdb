#include "io/pt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/pickle.h"

#define PICKLE_BYTES ((uint64_t)32 << 20)
#define VISITS       ((size_t)1 << 20)  /* values that a walk may see: shared ones could be reached 2^64 times */

struct walk {
    struct hv_ckpt      *c;
    const struct hv_zip *z;
    const char          *root;          /* "archive/" */
    size_t               root_n, visits;
    char                 name[HV_CKPT_NAME];
    struct hv_err       *e;
};

static int add_tensor(struct walk *w, const struct hv_ptensor *p, size_t name)
{
    const struct hv_pstorage *s = p->storage;
    struct hv_ctensor t = {.dtype = p->dtype, .ndim = p->ndim, .ggml = -1};
    char path[HV_CKPT_NAME + 16];
    int64_t last = 0;
    int empty = 0;
    const int item = (int)hv_dtype_size(p->dtype);

    if (s->key.n > 64 || memchr(s->key.s, 0, s->key.n) || w->root_n > HV_CKPT_NAME - 80)
        return hv_fail(w->e, HV_EINPUT, "%.*s: missing storage", (int)name, w->name);
    snprintf(path, sizeof path, "%sdata/%.*s", w->root, (int)s->key.n, s->key.s);
    const struct hv_zip_entry *entry = hv_zip_find(w->z, path);
    if (!entry)
        return hv_fail(w->e, HV_EINPUT, "%.*s: missing storage '%s'", (int)name, w->name, path);
    if (!entry->stored)
        return hv_fail(w->e, HV_EINPUT, "%s: compressed entry", path);
    if ((uint64_t)s->numel > UINT64_MAX / 8 || (uint64_t)s->numel * hv_dtype_size(s->dtype) != entry->bytes)
        return hv_fail(w->e, HV_EINPUT, "%s: %llu bytes, expected %lld elements of %zu bytes", path,
                       (unsigned long long)entry->bytes, (long long)s->numel, hv_dtype_size(s->dtype));
    for (int i = 0; i < p->ndim; i++)
        empty |= !p->shape[i];
    /* The reach of what is not empty was checked when it was rebuilt. */
    for (int i = 0; i < p->ndim; i++) {
        t.shape[i] = p->shape[i];
        t.stride[i] = empty ? 0 : p->stride[i];
        last += empty ? 0 : (p->shape[i] - 1) * p->stride[i];
    }
    t.offset = entry->offset + (empty ? 0 : (uint64_t)p->offset * (uint64_t)item);
    t.span = empty ? 0 : ((uint64_t)last + 1) * (uint64_t)item;
    return hv_ckpt_add(w->c, &t, w->name, name, w->e);
}

static int walk(struct walk *w, const struct hv_pvalue *v, size_t name, int depth);

static int walk_items(struct walk *w, const struct hv_pseq *s, size_t name, int depth)
{
    if (depth > HV_PICKLE_DEPTH)
        return hv_fail(w->e, HV_EINPUT, "pickle: nested deeper than %d", HV_PICKLE_DEPTH);
    for (size_t i = 0; i + 1 < s->n; i += 2) {
        const struct hv_pvalue *k = &s->v[i], *v = &s->v[i + 1];
        char number[24];
        const char *key = number;
        size_t n;
        if (++w->visits > VISITS)
            return hv_fail(w->e, HV_EINPUT, "pickle: more than %zu values", VISITS);
        if (v->type != HV_P_TENSOR && v->type != HV_P_DICT && v->type != HV_P_OBJECT)
            continue;
        if (k->type == HV_P_STR) {
            key = k->str->s;
            n = k->str->n;
        } else {
            n = (size_t)snprintf(number, sizeof number, "%lld", (long long)k->i);
        }
        if (n >= sizeof w->name - name - 1)
            return hv_fail(w->e, HV_EINPUT, "pickle: a name longer than %zu bytes", sizeof w->name);
        memcpy(w->name + name, key, n);
        if (walk(w, v, name + n, depth + 1))
            return w->e->code;
    }
    return 0;
}

static int walk(struct walk *w, const struct hv_pvalue *v, size_t name, int depth)
{
    if (v->type == HV_P_TENSOR)
        return add_tensor(w, v->tensor, name);
    w->name[name] = '.';
    return walk_items(w, v->seq, name + 1, depth);
}

/* The dict that holds the tensors. */
static const struct hv_pvalue *state_of(const struct hv_pvalue *top, const struct hv_ckpt_opts *o, struct hv_err *e)
{
    static const char *const usual[] = {"module", "model", "state_dict", "ema"};

    if (o->key) {
        const struct hv_pvalue *v = hv_pickle_get(top, o->key);
        if (!v || v->type != HV_P_DICT)
            hv_fail(e, HV_EINPUT, v ? "key '%s' is no dict" : "no key '%s'", o->key);
        return v && v->type == HV_P_DICT ? v : NULL;
    }
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        const struct hv_pvalue *v = hv_pickle_get(top, usual[i]);
        if (v && v->type == HV_P_DICT)
            return v;
    }
    return top;
}

/* The one "ROOT/data.pkl". */
static const struct hv_zip_entry *find_pickle(const struct hv_zip *z, struct hv_err *e)
{
    const struct hv_zip_entry *found = NULL;

    for (int i = 0; i < hv_zip_count(z); i++) {
        const struct hv_zip_entry *t = hv_zip_entry(z, i);
        const char *slash = strchr(t->name, '/');
        if (!slash || slash == t->name || strcmp(slash, "/data.pkl"))
            continue;
        if (found) {
            hv_fail(e, HV_EINPUT, "not a checkpoint of torch: '%s' and '%s'", found->name, t->name);
            return NULL;
        }
        found = t;
    }
    if (!found)
        hv_fail(e, HV_EINPUT, "not a checkpoint of torch: a zip archive without data.pkl");
    return found;
}

static int small_entry(const struct hv_zip *z, const uint8_t *data, const char *root, const char *name, const char *want,
                       struct hv_err *e)
{
    char path[HV_CKPT_NAME + 16];

    snprintf(path, sizeof path, "%s%s", root, name);
    const struct hv_zip_entry *t = hv_zip_find(z, path);
    if (!t)
        return 0;
    if (!t->stored || t->bytes != strlen(want) || memcmp(data + t->offset, want, strlen(want)))
        return hv_fail(e, HV_EUNSUP, "%s is not '%s': the file comes from a big-endian machine", path, want);
    return 0;
}

/* A module of torch.jit.save has its code beside its data. */
static int is_torchscript(const struct hv_zip *z, const char *root)
{
    char path[HV_CKPT_NAME + 16];

    snprintf(path, sizeof path, "%sconstants.pkl", root);
    return hv_zip_find(z, path) != NULL;
}

static int read_state(struct walk *w, const struct hv_pickle *p, int script, const struct hv_ckpt_opts *o)
{
    const struct hv_pvalue *top = hv_pickle_top(p);
    const int before = hv_ckpt_count(w->c);

    if (top->type != HV_P_DICT && !(script && top->type == HV_P_OBJECT))
        return hv_fail(w->e, HV_EINPUT, "the top object of the pickle is not a dict");
    if (!script && !(top = state_of(top, o, w->e)))
        return w->e->code;
    if (walk_items(w, top->seq, 0, 0))
        return w->e->code;
    if (script && hv_ckpt_count(w->c) == before)
        return hv_fail(w->e, HV_EUNSUP, "a frozen TorchScript module: its weights are constants of its code; "
                       "save it again without torch.jit.freeze");
    return 0;
}

int hv_pt_read(struct hv_ckpt *c, struct hv_zip **z, int *is_script, const uint8_t *data, size_t bytes,
               const struct hv_ckpt_opts *o, struct hv_err *e)
{
    struct walk w = {.c = c, .e = e};
    struct hv_pickle *p = NULL;
    char root[HV_CKPT_NAME];
    int rc = hv_zip_open(z, data, bytes, e);
    const struct hv_zip_entry *t = rc ? NULL : find_pickle(*z, e);

    if (!t) {
        hv_zip_close(*z);
        *z = NULL;
        return e->code;
    }
    w.z = *z;
    w.root = root;
    w.root_n = (size_t)snprintf(root, sizeof root, "%.*s", (int)(strlen(t->name) - strlen("data.pkl")), t->name);
    *is_script = is_torchscript(*z, root);
    if (!t->stored)
        rc = hv_fail(e, HV_EINPUT, "%s: compressed entry", t->name);
    else if (t->bytes > PICKLE_BYTES)
        rc = hv_fail(e, HV_EINPUT, "%s: %llu bytes, limit %llu", t->name, (unsigned long long)t->bytes,
                     (unsigned long long)PICKLE_BYTES);
    else if (*is_script && !o->script)
        rc = hv_fail(e, HV_EUNSUP, "a TorchScript archive: --script reads its weights (none of its code is executed)");
    if (!rc)
        rc = small_entry(*z, data, root, "byteorder", "little", e);
    if (!rc)
        rc = hv_zip_verify(*z, t, e);
    if (!rc)
        rc = hv_pickle_read(&p, data + t->offset, (size_t)t->bytes, *is_script ? HV_PICKLE_SCRIPT : HV_PICKLE_TENSORS, e);
    if (!rc)
        rc = read_state(&w, p, *is_script, o);
    hv_pickle_close(p);
    if (rc) {
        hv_zip_close(*z);
        *z = NULL;
    }
    return rc;
}
