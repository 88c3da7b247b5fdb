#include "io/pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

#define CHUNK ((size_t)1 << 16)

struct chunk {
    struct chunk *next;
    size_t        used, bytes;
    max_align_t   data[];
};

struct memo {
    uint32_t         key;               /* index + 1; 0: free */
    struct hv_pvalue v;
};

struct hv_pickle {
    const uint8_t    *d;
    size_t            n, at;
    enum hv_pickle_kind kind;
    struct chunk     *chunks;
    size_t            memory;           /* taken so far, of HV_PICKLE_MEMORY */
    struct hv_pvalue *stack;
    size_t            depth, stack_cap;
    size_t           *mark;
    size_t            marks, mark_cap;
    struct memo      *memo;
    size_t            memos, memo_cap;  /* cap: a power of two */
    struct hv_err    *e;
};

/* ---- memory ---- */

static int budget(struct hv_pickle *p, size_t bytes)
{
    if (bytes > HV_PICKLE_MEMORY || p->memory > HV_PICKLE_MEMORY - bytes)
        return hv_fail(p->e, HV_EINPUT, "pickle: needs more than %zu MiB", HV_PICKLE_MEMORY >> 20);
    p->memory += bytes;
    return 0;
}

static void *take(struct hv_pickle *p, size_t bytes)
{
    const size_t align = sizeof(max_align_t), need = (bytes + align - 1) / align * align;
    struct chunk *c = p->chunks;

    if (!c || c->bytes - c->used < need) {
        const size_t size = need > CHUNK ? need : CHUNK;
        if (budget(p, size + sizeof *c))
            return NULL;
        c = malloc(sizeof *c + size);
        if (!c) {
            hv_fail(p->e, HV_ENOMEM, "pickle: out of memory");
            return NULL;
        }
        *c = (struct chunk){.next = p->chunks, .bytes = size};
        p->chunks = c;
    }
    void *at = (char *)c->data + c->used;
    c->used += need;
    memset(at, 0, need);
    return at;
}

/* Doubles an array that is malloc's. */
static int grow(struct hv_pickle *p, void *array, size_t *cap, size_t item, size_t first)
{
    const size_t more = *cap ? 2 * *cap : first;
    void *old, *bigger;

    if (budget(p, (more - *cap) * item))
        return p->e->code;
    memcpy(&old, array, sizeof old);
    bigger = realloc(old, more * item);
    if (!bigger)
        return hv_fail(p->e, HV_ENOMEM, "pickle: out of memory");
    memcpy(array, &bigger, sizeof bigger);
    *cap = more;
    return 0;
}

/* ---- the stack and the memo ---- */

static int underflow(struct hv_pickle *p)
{
    return hv_fail(p->e, HV_EINPUT, "pickle: stack underflow at byte %zu", p->at);
}

static int push(struct hv_pickle *p, struct hv_pvalue v)
{
    if (p->depth == p->stack_cap) {
        if (p->depth >= HV_PICKLE_STACK)
            return hv_fail(p->e, HV_EINPUT, "pickle: more than %d values on its stack", HV_PICKLE_STACK);
        if (grow(p, &p->stack, &p->stack_cap, sizeof *p->stack, 256))
            return p->e->code;
    }
    p->stack[p->depth++] = v;
    return 0;
}

static size_t floor_of(const struct hv_pickle *p)
{
    return p->marks ? p->mark[p->marks - 1] : 0;
}

/* What is above the last mark; nothing below it can be reached. */
static int pop(struct hv_pickle *p, struct hv_pvalue *v)
{
    if (p->depth <= floor_of(p))
        return underflow(p);
    *v = p->stack[--p->depth];
    return 0;
}

static int peek(struct hv_pickle *p, struct hv_pvalue *v)
{
    if (p->depth <= floor_of(p))
        return underflow(p);
    *v = p->stack[p->depth - 1];
    return 0;
}

/* The values above the last mark, which goes: still at *v until the next push. */
static int pop_mark(struct hv_pickle *p, struct hv_pvalue **v, size_t *n)
{
    if (!p->marks)
        return hv_fail(p->e, HV_EINPUT, "pickle: no mark at byte %zu", p->at);
    const size_t first = p->mark[--p->marks];
    *v = p->stack + first;
    *n = p->depth - first;
    p->depth = first;
    return 0;
}

static struct memo *memo_slot(struct memo *m, size_t cap, uint32_t key)
{
    size_t i = (key * (size_t)0x9E3779B1u) & (cap - 1);

    while (m[i].key && m[i].key != key)
        i = (i + 1) & (cap - 1);
    return &m[i];
}

static int memo_put(struct hv_pickle *p, uint32_t index)
{
    struct hv_pvalue v = {0};

    if (peek(p, &v))
        return p->e->code;
    if (index >= HV_PICKLE_MEMO)
        return hv_fail(p->e, HV_EINPUT, "pickle: memo index %u, limit %d", index, HV_PICKLE_MEMO);
    if (2 * (p->memos + 1) > p->memo_cap) {
        const size_t cap = p->memo_cap ? 2 * p->memo_cap : 512;
        struct memo *m = budget(p, cap * sizeof *m) ? NULL : calloc(cap, sizeof *m);
        if (!m)
            return hv_fail(p->e, HV_ENOMEM, "pickle: out of memory");
        for (size_t i = 0; i < p->memo_cap; i++)
            if (p->memo[i].key)
                *memo_slot(m, cap, p->memo[i].key) = p->memo[i];
        p->memory -= p->memo_cap * sizeof *m;
        free(p->memo);
        p->memo = m;
        p->memo_cap = cap;
    }
    struct memo *slot = memo_slot(p->memo, p->memo_cap, index + 1);
    p->memos += !slot->key;
    *slot = (struct memo){index + 1, v};
    return 0;
}

static int memo_get(struct hv_pickle *p, uint32_t index)
{
    const struct memo *slot = p->memo_cap && index < HV_PICKLE_MEMO ? memo_slot(p->memo, p->memo_cap, index + 1) : NULL;

    if (!slot || !slot->key)
        return hv_fail(p->e, HV_EINPUT, "pickle: memo index %u was never set", index);
    return push(p, slot->v);
}

/* ---- reading ---- */

static int need(struct hv_pickle *p, size_t n)
{
    return n > p->n - p->at ? hv_fail(p->e, HV_EINPUT, "pickle: cut short at byte %zu of %zu", p->at, p->n) : 0;
}

static int read_uint(struct hv_pickle *p, size_t bytes, uint64_t *v)
{
    if (need(p, bytes))
        return p->e->code;
    *v = 0;
    for (size_t i = 0; i < bytes; i++)
        *v |= (uint64_t)p->d[p->at + i] << 8 * i;
    p->at += bytes;
    return 0;
}

static int push_int(struct hv_pickle *p, int64_t i)
{
    return push(p, (struct hv_pvalue){.type = HV_P_INT, .i = i});
}

/* A signed integer of n bytes. */
static int read_signed(struct hv_pickle *p, size_t n)
{
    uint64_t u = 0;

    if (n > 8)
        return hv_fail(p->e, HV_EINPUT, "pickle: an integer of %zu bytes, limit 8", n);
    if (read_uint(p, n, &u))
        return p->e->code;
    if (n && n < 8 && u >> (8 * n - 1))
        u |= ~(uint64_t)0 << 8 * n;
    return push_int(p, (int64_t)u);
}

static int push_str(struct hv_pickle *p, enum hv_pickle_type type, const char *s, size_t n)
{
    struct hv_pstr *str = take(p, sizeof *str);

    if (!str)
        return p->e->code;
    *str = (struct hv_pstr){s, n};
    return push(p, (struct hv_pvalue){.type = type, .str = str});
}

static int read_string(struct hv_pickle *p)
{
    uint64_t n = 0;

    if (read_uint(p, 4, &n) || need(p, (size_t)n))
        return p->e->code;
    const char *s = (const char *)p->d + p->at;
    /* U+0000 may be in a value that is dropped, but not in a name: those who walk check the names. */
    for (size_t from = 0; from < n;) {
        const char *zero = memchr(s + from, 0, (size_t)n - from);
        const size_t to = zero ? (size_t)(zero - s) : (size_t)n;
        if (!hv_utf8_valid(s + from, to - from))
            return hv_fail(p->e, HV_EINPUT, "pickle: a string that is not UTF-8 at byte %zu", p->at);
        from = to + 1;
    }
    p->at += (size_t)n;
    return push_str(p, HV_P_STR, s, (size_t)n);
}

/* ---- globals: names that stand for data ---- */

static const struct { const char *name; hv_dtype dtype; } storages[] = {
    {"torch FloatStorage", HV_F32}, {"torch HalfStorage", HV_F16},  {"torch BFloat16Storage", HV_BF16},
    {"torch DoubleStorage", HV_F64}, {"torch LongStorage", HV_I64}, {"torch IntStorage", HV_I32},
    {"torch ShortStorage", HV_I16}, {"torch CharStorage", HV_I8},   {"torch ByteStorage", HV_U8},
    {"torch BoolStorage", HV_BOOL}, {"torch.storage UntypedStorage", HV_U8},
};

static const struct { const char *name; hv_dtype dtype; } dtypes[] = {
    {"torch float8_e4m3fn", HV_F8_E4M3}, {"torch float8_e5m2", HV_F8_E5M2}, {"torch uint16", HV_U16}, {"torch uint32", HV_U32},
    {"torch uint64", HV_U64},
};

static const char *const calls[] = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch Size",
};

static const char *const script_calls[] = {
    "torch.jit._pickle build_intlist", "torch.jit._pickle build_doublelist", "torch.jit._pickle build_boollist",
    "torch.jit._pickle build_tensorlist", "torch.jit._pickle restore_type_tag",
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static int str_is(const struct hv_pstr *s, const char *text)
{
    return s->n == strlen(text) && !memcmp(s->s, text, s->n);
}

static int is_script_call(const struct hv_pstr *g)
{
    for (size_t i = 0; i < COUNT(script_calls); i++)
        if (str_is(g, script_calls[i]))
            return 1;
    return 0;
}

static int is_script_class(const struct hv_pstr *g)
{
    return g->n > 10 && (!memcmp(g->s, "__torch__ ", 10) || !memcmp(g->s, "__torch__.", 10));
}

static int is_allowed(const struct hv_pickle *p, const struct hv_pstr *g)
{
    for (size_t i = 0; i < COUNT(storages); i++)
        if (str_is(g, storages[i].name))
            return 1;
    for (size_t i = 0; i < COUNT(dtypes); i++)
        if (str_is(g, dtypes[i].name))
            return 1;
    for (size_t i = 0; i < COUNT(calls); i++)
        if (str_is(g, calls[i]))
            return 1;
    return p->kind == HV_PICKLE_SCRIPT && (is_script_call(g) || is_script_class(g));
}

/* "module\nname\n" becomes "module name". */
static int read_global(struct hv_pickle *p)
{
    const char *s = (const char *)p->d + p->at;
    const char *first = memchr(s, '\n', p->n - p->at);
    const char *last = first ? memchr(first + 1, '\n', p->n - p->at - (size_t)(first + 1 - s)) : NULL;
    char shown[80];
    size_t n;

    if (!last)
        return hv_fail(p->e, HV_EINPUT, "pickle: cut short at byte %zu of %zu", p->at, p->n);
    n = (size_t)(last - s);
    if (n > 1000)
        return hv_fail(p->e, HV_EUNSUP, "pickle: a global name of %zu bytes is refused", n);
    char *name = take(p, n + 1);
    if (!name)
        return p->e->code;
    memcpy(name, s, n);
    name[first - s] = ' ';
    p->at += n + 1;
    const struct hv_pstr g = {name, n};
    if (!is_allowed(p, &g)) {
        for (size_t i = 0; i <= n && i < sizeof shown; i++)
            shown[i] = (name[i] < ' ' || name[i] > '~') && i < n ? '?' : name[i];
        shown[sizeof shown - 1] = 0;
        return hv_fail(p->e, HV_EUNSUP, "pickle: it names '%s', which is no tensor: refused, nothing was executed", shown);
    }
    return push_str(p, HV_P_GLOBAL, name, n);
}

static hv_dtype named_dtype(const struct hv_pvalue *v)
{
    for (size_t i = 0; v->type == HV_P_GLOBAL && i < COUNT(dtypes); i++)
        if (str_is(v->str, dtypes[i].name))
            return dtypes[i].dtype;
    return HV_NONE;
}

/* ---- what they make ---- */

/* ("storage", StorageGlobal, key, location, numel) */
static int persistent(struct hv_pickle *p)
{
    struct hv_pvalue v = {0};

    if (pop(p, &v))
        return p->e->code;
    const struct hv_pvalue *t = v.type == HV_P_TUPLE && v.seq->n == 5 ? v.seq->v : NULL;
    if (!t || t[0].type != HV_P_STR || !str_is(t[0].str, "storage") || t[1].type != HV_P_GLOBAL || t[2].type != HV_P_STR ||
        t[4].type != HV_P_INT || t[4].i < 0)
        return hv_fail(p->e, HV_EINPUT, "pickle: a persistent id that is no storage");
    struct hv_pstorage *s = take(p, sizeof *s);
    if (!s)
        return p->e->code;
    for (size_t i = 0; i < COUNT(storages); i++)
        if (str_is(t[1].str, storages[i].name))
            s->dtype = storages[i].dtype;
    if (s->dtype == HV_NONE)
        return hv_fail(p->e, HV_EINPUT, "pickle: '%.*s' is no storage", (int)t[1].str->n, t[1].str->s);
    s->untyped = str_is(t[1].str, "torch.storage UntypedStorage");
    s->key = *t[2].str;
    s->numel = t[4].i;
    return push(p, (struct hv_pvalue){.type = HV_P_STORAGE, .storage = s});
}

static int sizes(const struct hv_pvalue *v, int64_t out[8], int *n)
{
    if (v->type != HV_P_TUPLE || v->seq->n > 8)
        return -1;
    *n = (int)v->seq->n;
    for (int i = 0; i < *n; i++) {
        if (v->seq->v[i].type != HV_P_INT || v->seq->v[i].i < 0)
            return -1;
        out[i] = v->seq->v[i].i;
    }
    return 0;
}

/* The last element is inside the storage: offset + sum (size - 1) stride < items, unless a size is 0. */
static int check_reach(const struct hv_pickle *p, const struct hv_ptensor *t, const struct hv_pstorage *s)
{
    const int64_t bytes_each = (int64_t)hv_dtype_size(s->dtype), item = (int64_t)hv_dtype_size(t->dtype);
    int64_t bytes, last = t->offset, step, count = 1;
    int empty = 0;

    for (int i = 0; i < t->ndim; i++) {
        empty |= !t->shape[i];
        if (t->shape[i] && __builtin_mul_overflow(count, t->shape[i], &count))
            return hv_fail(p->e, HV_EINPUT, "pickle: shape of a tensor overflows");
    }
    if (__builtin_mul_overflow(count, item, &count) || __builtin_mul_overflow(s->numel, bytes_each, &bytes))
        return hv_fail(p->e, HV_EINPUT, "pickle: size of a tensor overflows");
    if (empty)
        return 0;
    for (int i = 0; i < t->ndim; i++)
        if (__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &step) || __builtin_add_overflow(last, step, &last))
            return hv_fail(p->e, HV_EINPUT, "pickle: a tensor beyond its storage");
    if (last >= bytes / item)
        return hv_fail(p->e, HV_EINPUT, "pickle: a tensor beyond its storage: element %lld of %lld", (long long)last,
                       (long long)(bytes / item));
    return 0;
}

/* v2: (storage, offset, size, stride, requires_grad, hooks[, metadata]); v3: the dtype comes after hooks. */
static int rebuild_tensor(struct hv_pickle *p, const struct hv_pseq *a, int v3)
{
    const size_t least = v3 ? 7 : 6;
    struct hv_ptensor *t = take(p, sizeof *t);
    int n_stride = 0;

    if (!t)
        return p->e->code;
    if (a->n < least || a->n > least + 1)
        return hv_fail(p->e, HV_EINPUT, "pickle: a tensor of %zu arguments, expected %zu", a->n, least);
    if (a->v[0].type != HV_P_STORAGE)
        return hv_fail(p->e, HV_EINPUT, "pickle: a tensor of what is not a storage");
    t->storage = a->v[0].storage;
    t->dtype = v3 ? named_dtype(&a->v[6]) : t->storage->dtype;
    if (t->dtype == HV_NONE)
        return hv_fail(p->e, HV_EUNSUP, "pickle: a tensor of a dtype that is not known");
    if (a->v[1].type != HV_P_INT || a->v[1].i < 0 || sizes(&a->v[2], t->shape, &t->ndim) ||
        sizes(&a->v[3], t->stride, &n_stride) || n_stride != t->ndim)
        return hv_fail(p->e, HV_EINPUT, "pickle: bad offset, shape or stride of a tensor");
    t->offset = a->v[1].i;
    if (check_reach(p, t, t->storage))
        return p->e->code;
    return push(p, (struct hv_pvalue){.type = HV_P_TENSOR, .tensor = t});
}

static int push_seq(struct hv_pickle *p, enum hv_pickle_type type, const struct hv_pvalue *v, size_t n)
{
    struct hv_pseq *s = take(p, sizeof *s);

    if (s && n && !(s->v = take(p, n * sizeof *v)))
        s = NULL;
    if (!s)
        return p->e->code;
    if (n)
        memcpy(s->v, v, n * sizeof *v);
    s->n = s->cap = n;
    return push(p, (struct hv_pvalue){.type = type, .seq = s});
}

static int reduce(struct hv_pickle *p)
{
    struct hv_pvalue a = {0}, f = {0};

    if (pop(p, &a) || pop(p, &f))
        return p->e->code;
    if (f.type != HV_P_GLOBAL || a.type != HV_P_TUPLE)
        return hv_fail(p->e, HV_EINPUT, "pickle: REDUCE of what is not a global and a tuple");
    const struct hv_pseq *s = a.seq;
    if (str_is(f.str, "collections OrderedDict"))
        return s->n ? hv_fail(p->e, HV_EINPUT, "pickle: OrderedDict with arguments") : push_seq(p, HV_P_DICT, NULL, 0);
    if (str_is(f.str, "torch._utils _rebuild_tensor_v2") || str_is(f.str, "torch._utils _rebuild_tensor_v3"))
        return rebuild_tensor(p, s, f.str->s[f.str->n - 1] == '3');
    if (str_is(f.str, "torch._utils _rebuild_parameter") && s->n && s->v[0].type == HV_P_TENSOR)
        return push(p, s->v[0]);
    if (str_is(f.str, "torch Size") && s->n == 1 && s->v[0].type == HV_P_TUPLE)
        return push(p, s->v[0]);
    if (p->kind == HV_PICKLE_SCRIPT && is_script_call(f.str) && s->n)
        return push(p, s->v[0]);
    return hv_fail(p->e, HV_EINPUT, "pickle: '%.*s' may not be called so", (int)f.str->n, f.str->s);
}

static int append(struct hv_pickle *p, struct hv_pseq *s, const struct hv_pvalue *v, size_t n)
{
    if (n > s->cap - s->n) {
        size_t cap = s->cap ? 2 * s->cap : 8;
        while (cap - s->n < n)
            cap *= 2;
        struct hv_pvalue *bigger = take(p, cap * sizeof *bigger);
        if (!bigger)
            return p->e->code;
        if (s->n)
            memcpy(bigger, s->v, s->n * sizeof *bigger);
        s->v = bigger;
        s->cap = cap;
    }
    if (n)
        memcpy(s->v + s->n, v, n * sizeof *v);
    s->n += n;
    return 0;
}

static int set_items(struct hv_pickle *p, const struct hv_pvalue *v, size_t n)
{
    struct hv_pvalue t = {0};

    if (peek(p, &t))
        return p->e->code;
    if (t.type != HV_P_DICT || n % 2)
        return hv_fail(p->e, HV_EINPUT, "pickle: SETITEMS on what is not a dict");
    for (size_t i = 0; i < n; i += 2)
        if (v[i].type != HV_P_STR && v[i].type != HV_P_INT)
            return hv_fail(p->e, HV_EINPUT, "pickle: a dict key that is neither text nor a number");
    return append(p, t.seq, v, n);
}

static int append_items(struct hv_pickle *p, const struct hv_pvalue *v, size_t n)
{
    struct hv_pvalue t = {0};

    if (peek(p, &t))
        return p->e->code;
    if (t.type != HV_P_LIST)
        return hv_fail(p->e, HV_EINPUT, "pickle: APPEND on what is not a list");
    return append(p, t.seq, v, n);
}

/* On an OrderedDict: its _metadata, dropped. On an object of TorchScript: its attributes. */
static int build(struct hv_pickle *p)
{
    struct hv_pvalue state = {0}, t = {0};

    if (pop(p, &state) || peek(p, &t))
        return p->e->code;
    if ((t.type != HV_P_DICT && t.type != HV_P_OBJECT) || state.type != HV_P_DICT)
        return hv_fail(p->e, HV_EINPUT, "pickle: BUILD on what is not a dict");
    return t.type == HV_P_OBJECT ? append(p, t.seq, state.seq->v, state.seq->n) : 0;
}

static int new_object(struct hv_pickle *p)
{
    struct hv_pvalue a = {0}, c = {0};

    if (p->kind != HV_PICKLE_SCRIPT)
        return hv_fail(p->e, HV_EUNSUP, "pickle: opcode 0x81 at byte %zu is refused: objects are made by TorchScript alone",
                       p->at - 1);
    if (pop(p, &a) || pop(p, &c))
        return p->e->code;
    if (c.type != HV_P_GLOBAL || !is_script_class(c.str) || a.type != HV_P_TUPLE || a.seq->n)
        return hv_fail(p->e, HV_EINPUT, "pickle: an object of what is no class of the archive");
    return push_seq(p, HV_P_OBJECT, NULL, 0);
}

static int push_tuple(struct hv_pickle *p, size_t n)
{
    if (p->depth - floor_of(p) < n)
        return underflow(p);
    p->depth -= n;
    struct hv_pvalue v[3];
    memcpy(v, p->stack + p->depth, n * sizeof *v);
    return push_seq(p, HV_P_TUPLE, v, n);
}

static int push_mark(struct hv_pickle *p)
{
    if (p->marks == p->mark_cap && (p->marks >= HV_PICKLE_STACK || grow(p, &p->mark, &p->mark_cap, sizeof *p->mark, 64)))
        return hv_fail(p->e, HV_EINPUT, "pickle: more than %d marks", HV_PICKLE_STACK);
    p->mark[p->marks++] = p->depth;
    return 0;
}

static int push_float(struct hv_pickle *p)
{
    uint64_t u = 0;
    struct hv_pvalue v = {.type = HV_P_FLOAT};

    if (need(p, 8))
        return p->e->code;
    for (int i = 0; i < 8; i++)
        u = u << 8 | p->d[p->at++];
    memcpy(&v.f, &u, 8);
    return push(p, v);
}

/* ---- the machine ---- */

static int step(struct hv_pickle *p, int op)
{
    struct hv_pvalue *items = NULL, one[2] = {0};
    size_t n = 0;
    uint64_t u = 0;

    switch (op) {
    case '(':  return push_mark(p);
    case '}':  return push_seq(p, HV_P_DICT, NULL, 0);
    case ']':  return push_seq(p, HV_P_LIST, NULL, 0);
    case ')':  return push_seq(p, HV_P_TUPLE, NULL, 0);
    case 'N':  return push(p, (struct hv_pvalue){.type = HV_P_NONE});
    case 0x88: return push(p, (struct hv_pvalue){.type = HV_P_BOOL, .i = 1});
    case 0x89: return push(p, (struct hv_pvalue){.type = HV_P_BOOL, .i = 0});
    case 'K':  return read_uint(p, 1, &u) ? p->e->code : push_int(p, (int64_t)u);
    case 'M':  return read_uint(p, 2, &u) ? p->e->code : push_int(p, (int64_t)u);
    case 'J':  return read_signed(p, 4);
    case 0x8a: return read_uint(p, 1, &u) ? p->e->code : read_signed(p, (size_t)u);
    case 'G':  return push_float(p);
    case 'X':  return read_string(p);
    case 'c':  return read_global(p);
    case 'q':  return read_uint(p, 1, &u) ? p->e->code : memo_put(p, (uint32_t)u);
    case 'r':  return read_uint(p, 4, &u) ? p->e->code : memo_put(p, (uint32_t)u);
    case 'h':  return read_uint(p, 1, &u) ? p->e->code : memo_get(p, (uint32_t)u);
    case 'j':  return read_uint(p, 4, &u) ? p->e->code : memo_get(p, (uint32_t)u);
    case 't':  return pop_mark(p, &items, &n) ? p->e->code : push_seq(p, HV_P_TUPLE, items, n);
    case 0x85: return push_tuple(p, 1);
    case 0x86: return push_tuple(p, 2);
    case 0x87: return push_tuple(p, 3);
    case 's':  return pop(p, &one[1]) || pop(p, &one[0]) ? p->e->code : set_items(p, one, 2);
    case 'u':  return pop_mark(p, &items, &n) ? p->e->code : set_items(p, items, n);
    case 'a':  return pop(p, &one[0]) ? p->e->code : append_items(p, one, 1);
    case 'e':  return pop_mark(p, &items, &n) ? p->e->code : append_items(p, items, n);
    case 'Q':  return persistent(p);
    case 'R':  return reduce(p);
    case 'b':  return build(p);
    case 0x81: return new_object(p);
    default:
        return hv_fail(p->e, HV_EUNSUP, "pickle: opcode 0x%02x at byte %zu is refused", (unsigned)op, p->at - 1);
    }
}

static int run(struct hv_pickle *p)
{
    if (need(p, 2))
        return p->e->code;
    if (p->d[0] != 0x80)
        return hv_fail(p->e, HV_EUNSUP, "pickle: protocol 0 or 1: load it and save it again with a current torch");
    if (p->d[1] != 2)
        return hv_fail(p->e, HV_EUNSUP, "pickle: protocol %d, expected 2: load it and save it again with torch.save's default",
                       p->d[1]);
    p->at = 2;
    for (;;) {
        if (need(p, 1))
            return p->e->code;
        const int op = p->d[p->at++];
        if (op == '.')
            break;
        if (step(p, op))
            return p->e->code;
    }
    if (p->depth != 1 || p->marks || p->at != p->n)
        return hv_fail(p->e, HV_EINPUT, "pickle: %zu values and %zu bytes are left at its end", p->depth, p->n - p->at);
    return 0;
}

int hv_pickle_read(struct hv_pickle **out, const uint8_t *data, size_t bytes, enum hv_pickle_kind kind, struct hv_err *e)
{
    struct hv_pickle *p = calloc(1, sizeof *p);

    *out = NULL;
    if (!p)
        return hv_fail(e, HV_ENOMEM, "pickle: out of memory");
    p->d = data;
    p->n = bytes;
    p->kind = kind;
    p->e = e;
    if (grow(p, &p->stack, &p->stack_cap, sizeof *p->stack, 256) || run(p)) {
        hv_pickle_close(p);
        return e->code;
    }
    *out = p;
    return 0;
}

void hv_pickle_close(struct hv_pickle *p)
{
    if (!p)
        return;
    while (p->chunks) {
        struct chunk *next = p->chunks->next;
        free(p->chunks);
        p->chunks = next;
    }
    free(p->stack);
    free(p->mark);
    free(p->memo);
    free(p);
}

const struct hv_pvalue *hv_pickle_top(const struct hv_pickle *p)
{
    return &p->stack[0];
}

const struct hv_pvalue *hv_pickle_get(const struct hv_pvalue *dict, const char *key)
{
    if (dict->type != HV_P_DICT && dict->type != HV_P_OBJECT)
        return NULL;
    for (size_t i = dict->seq->n; i >= 2; i -= 2) {
        const struct hv_pvalue *k = &dict->seq->v[i - 2];
        if (k->type == HV_P_STR && str_is(k->str, key))
            return k + 1;
    }
    return NULL;
}
