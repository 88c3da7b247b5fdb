#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

struct symbol {
    size_t   at;                        /* in the bytes of all symbols */
    uint32_t n;
    int32_t  id;
};

struct pair {
    int32_t a, b, to;                   /* a -1: free */
    int32_t rank;
};

struct hv_vocab {
    char          *bytes;
    size_t         n_bytes, cap_bytes;
    struct symbol *sym;
    int32_t       *index;               /* hash table of symbols, -1: free */
    struct pair   *pair;                /* hash table of merges */
    int32_t        n_sym, n_pair, next_rank;
    size_t         cap_sym, cap_index, cap_pair;    /* powers of two */
};

static size_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return (size_t)(h ^ h >> 31);
}

static size_t hash_pair(int32_t a, int32_t b)
{
    const uint64_t h = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9E3779B97F4A7C15u;

    return (size_t)(h ^ h >> 29);
}

int hv_vocab_open(struct hv_vocab **v, struct hv_err *e)
{
    *v = calloc(1, sizeof **v);
    return *v ? 0 : hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
}

void hv_vocab_close(struct hv_vocab *v)
{
    if (!v)
        return;
    free(v->bytes);
    free(v->sym);
    free(v->index);
    free(v->pair);
    free(v);
}

int32_t hv_vocab_symbol(const struct hv_vocab *v, const char *s, size_t n)
{
    if (!v->cap_index)
        return -1;
    for (size_t i = hash_bytes(s, n) & (v->cap_index - 1); v->index[i] >= 0; i = (i + 1) & (v->cap_index - 1)) {
        const struct symbol *k = &v->sym[v->index[i]];
        if (k->n == n && !memcmp(v->bytes + k->at, s, n))
            return v->index[i];
    }
    return -1;
}

int32_t hv_vocab_id(const struct hv_vocab *v, int32_t symbol)
{
    return symbol < 0 ? -1 : v->sym[symbol].id;
}

static void index_put(struct hv_vocab *v, int32_t s)
{
    size_t i = hash_bytes(v->bytes + v->sym[s].at, v->sym[s].n) & (v->cap_index - 1);

    while (v->index[i] >= 0)
        i = (i + 1) & (v->cap_index - 1);
    v->index[i] = s;
}

/* Room for one symbol more of n bytes. */
static int grow(struct hv_vocab *v, size_t n)
{
    if ((size_t)v->n_sym == v->cap_sym) {
        const size_t cap = v->cap_sym ? 2 * v->cap_sym : 1024;
        struct symbol *s = realloc(v->sym, cap * sizeof *s);
        int32_t *ix = malloc(2 * cap * sizeof *ix);
        v->sym = s ? s : v->sym;
        if (!s || !ix) {
            free(ix);
            return -1;
        }
        free(v->index);
        v->index = ix;
        v->cap_sym = cap;
        v->cap_index = 2 * cap;
        memset(ix, 0xff, 2 * cap * sizeof *ix);
        for (int32_t k = 0; k < v->n_sym; k++)
            index_put(v, k);
    }
    if (!v->bytes || v->cap_bytes - v->n_bytes < n) {
        const size_t cap = 2 * v->cap_bytes + n + 4096;
        char *p = realloc(v->bytes, cap);
        if (!p)
            return -1;
        v->bytes = p;
        v->cap_bytes = cap;
    }
    return 0;
}

/* The symbol of a string, made without an id if it is new; -1 (and e) on failure. */
static int32_t intern(struct hv_vocab *v, const char *s, size_t n, struct hv_err *e)
{
    const int32_t old = hv_vocab_symbol(v, s, n);

    if (old >= 0)
        return old;
    if (v->n_sym == HV_VOCAB_MAX || n > 65535) {
        hv_fail(e, HV_EINPUT, "tokenizer: more than %d symbols, or one of %zu bytes", HV_VOCAB_MAX, n);
        return -1;
    }
    if (grow(v, n)) {
        hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
        return -1;
    }
    if (n)
        memcpy(v->bytes + v->n_bytes, s, n);
    v->sym[v->n_sym] = (struct symbol){v->n_bytes, (uint32_t)n, -1};
    v->n_bytes += n;
    index_put(v, v->n_sym);
    return v->n_sym++;
}

int hv_vocab_add(struct hv_vocab *v, const char *s, size_t n, int32_t id, struct hv_err *e)
{
    const int32_t k = intern(v, s, n, e);

    if (k < 0)
        return e->code;
    if (v->sym[k].id >= 0 && v->sym[k].id != id)
        return hv_fail(e, HV_EINPUT, "tokenizer: '%.*s' has the ids %d and %d", (int)(n < 80 ? n : 80), s, v->sym[k].id, id);
    v->sym[k].id = id;
    return 0;
}

static struct pair *pair_slot(const struct hv_vocab *v, int32_t a, int32_t b)
{
    size_t i = hash_pair(a, b) & (v->cap_pair - 1);

    while (v->pair[i].a >= 0 && (v->pair[i].a != a || v->pair[i].b != b))
        i = (i + 1) & (v->cap_pair - 1);
    return &v->pair[i];
}

static int grow_pairs(struct hv_vocab *v)
{
    const size_t old = v->cap_pair;
    struct pair *p = v->pair;

    if (2 * ((size_t)v->n_pair + 1) <= old)
        return 0;
    const size_t cap = old ? 2 * old : 1024;
    struct pair *q = malloc(cap * sizeof *q);
    if (!q)
        return -1;
    memset(q, 0xff, cap * sizeof *q);
    v->pair = q;
    v->cap_pair = cap;
    for (size_t i = 0; i < old; i++)
        if (p[i].a >= 0)
            *pair_slot(v, p[i].a, p[i].b) = p[i];
    free(p);
    return 0;
}

int hv_vocab_merge(struct hv_vocab *v, const char *a, size_t na, const char *b, size_t nb, struct hv_err *e)
{
    char both[2048];

    if (!na || !nb || na + nb > sizeof both)
        return hv_fail(e, HV_EINPUT, "tokenizer: merge %d joins %zu and %zu bytes", v->next_rank, na, nb);
    if (v->next_rank == HV_VOCAB_MAX)
        return hv_fail(e, HV_EINPUT, "tokenizer: more than %d merges", HV_VOCAB_MAX);
    memcpy(both, a, na);
    memcpy(both + na, b, nb);
    const int32_t sa = intern(v, a, na, e), sb = intern(v, b, nb, e), to = intern(v, both, na + nb, e);
    if (sa < 0 || sb < 0 || to < 0)
        return e->code;
    if (grow_pairs(v))
        return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
    struct pair *p = pair_slot(v, sa, sb);
    v->n_pair += p->a < 0;
    *p = (struct pair){sa, sb, to, v->next_rank++};
    return 0;
}

int hv_vocab_is_closed(const struct hv_vocab *v)
{
    for (size_t i = 0; i < v->cap_pair; i++) {
        const struct pair *p = &v->pair[i];
        if (p->a >= 0 && (v->sym[p->a].id < 0 || v->sym[p->b].id < 0 || v->sym[p->to].id < 0))
            return 0;
    }
    return 1;
}

/* ---- merging one word ---- */

/* A candidate: the pair that begins at `at` had these symbols when it was found. */
struct cand {
    int32_t rank, at, a, b;
};

struct heap {
    struct cand *c;
    size_t       n;
};

static int before(struct cand x, struct cand y)
{
    return x.rank < y.rank || (x.rank == y.rank && x.at < y.at);
}

static void heap_push(struct heap *h, struct cand x)
{
    size_t i = h->n++;

    for (; i && before(x, h->c[(i - 1) / 2]); i = (i - 1) / 2)
        h->c[i] = h->c[(i - 1) / 2];
    h->c[i] = x;
}

static struct cand heap_pop(struct heap *h)
{
    const struct cand top = h->c[0], x = h->c[--h->n];
    size_t i = 0;

    for (size_t k; (k = 2 * i + 1) < h->n; i = k) {
        if (k + 1 < h->n && before(h->c[k + 1], h->c[k]))
            k++;
        if (!before(h->c[k], x))
            break;
        h->c[i] = h->c[k];
    }
    h->c[i] = x;
    return top;
}

/* Pushes the pair of the symbols at i and j if it is known. */
static void offer(const struct hv_vocab *v, struct heap *h, const int32_t *symbol, int32_t i, int32_t j)
{
    if (i < 0 || j < 0)
        return;
    const struct pair *p = pair_slot(v, symbol[i], symbol[j]);
    if (p->a >= 0)
        heap_push(h, (struct cand){p->rank, i, symbol[i], symbol[j]});
}

int hv_vocab_apply(const struct hv_vocab *v, int32_t *symbol, size_t *n, struct hv_err *e)
{
    const int32_t count = (int32_t)*n;
    struct heap h = {0};
    size_t w = 0;

    if (*n < 2 || !v->n_pair)
        return 0;
    if (*n > INT32_MAX / 4)
        return hv_fail(e, HV_EINPUT, "tokenizer: a word of %zu symbols", *n);
    int32_t *prev = malloc(2 * *n * sizeof *prev);
    h.c = malloc(3 * *n * sizeof *h.c);                     /* n - 1 at first, two more a merge */
    if (!prev || !h.c) {
        free(prev);
        free(h.c);
        return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
    }
    int32_t *next = prev + *n;
    for (int32_t i = 0; i < count; i++) {
        prev[i] = i - 1;
        next[i] = i + 1 < count ? i + 1 : -1;
    }
    for (int32_t i = 0; i + 1 < count; i++)
        offer(v, &h, symbol, i, i + 1);
    while (h.n) {
        const struct cand c = heap_pop(&h);
        const int32_t i = c.at, j = next[i];
        if (symbol[i] != c.a || j < 0 || symbol[j] != c.b)  /* one of the two was merged meanwhile */
            continue;
        symbol[i] = pair_slot(v, c.a, c.b)->to;
        symbol[j] = -1;
        next[i] = next[j];
        if (next[i] >= 0)
            prev[next[i]] = i;
        offer(v, &h, symbol, prev[i], i);
        offer(v, &h, symbol, i, next[i]);
    }
    for (int32_t i = 0; i >= 0; i = next[i])
        symbol[w++] = symbol[i];
    *n = w;
    free(prev);
    free(h.c);
    return 0;
}
