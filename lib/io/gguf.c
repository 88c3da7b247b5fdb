#include "io/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

#define TENSORS 65536
#define SHAPES  2048              /* original shapes that are kept: every tensor is compared with each */
#define NAME    512

enum { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q5_0 = 6, GGML_Q8_0 = 8, GGML_Q4_K = 12, GGML_Q6_K = 14, GGML_BF16 = 30 };

static const struct {
    int         type;
    const char *name;
    hv_dtype    dtype;                  /* HV_NONE: blocks */
    int         weights;
    size_t      bytes;
} types[] = {
    {GGML_F32, "F32", HV_F32, 1, 4},         {GGML_F16, "F16", HV_F16, 1, 2},         {GGML_BF16, "BF16", HV_BF16, 1, 2},
    {GGML_Q8_0, "Q8_0", HV_NONE, 32, 34},    {GGML_Q4_0, "Q4_0", HV_NONE, 32, 18},    {GGML_Q5_0, "Q5_0", HV_NONE, 32, 22},
    {GGML_Q4_K, "Q4_K", HV_NONE, 256, 144},  {GGML_Q6_K, "Q6_K", HV_NONE, 256, 210},
};

#define TYPES ((int)(sizeof types / sizeof *types))

static int find_type(int type)
{
    for (int i = 0; i < TYPES; i++)
        if (types[i].type == type)
            return i;
    return -1;
}

int hv_gguf_block(int type)
{
    const int i = find_type(type);

    return i >= 0 && types[i].dtype == HV_NONE ? types[i].weights : 0;
}

size_t hv_gguf_block_bytes(int type)
{
    const int i = find_type(type);

    return i >= 0 && types[i].dtype == HV_NONE ? types[i].bytes : 0;
}

/* ---- blocks ---- */

static float half(const uint8_t *p)
{
    return hv_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static void decode_q8_0(const uint8_t *b, float *w)
{
    const float d = half(b);

    for (int i = 0; i < 32; i++)
        w[i] = d * (float)(int8_t)b[2 + i];
}

static void decode_q4_0(const uint8_t *b, float *w)
{
    const float d = half(b);

    for (int i = 0; i < 16; i++) {
        w[i] = d * (float)((b[2 + i] & 15) - 8);
        w[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void decode_q5_0(const uint8_t *b, float *w)
{
    const float d = half(b);
    const uint32_t h = (uint32_t)b[2] | (uint32_t)b[3] << 8 | (uint32_t)b[4] << 16 | (uint32_t)b[5] << 24;

    for (int i = 0; i < 16; i++) {
        w[i] = d * (float)((int)((b[6 + i] & 15u) | (h >> i & 1) << 4) - 16);
        w[i + 16] = d * (float)((int)(((unsigned)b[6 + i] >> 4) | (h >> (i + 16) & 1) << 4) - 16);
    }
}

/* Eight groups of 32, each with a scale and a minimum of 6 bits, packed into 12 bytes. */
static void decode_q4_k(const uint8_t *b, float *w)
{
    const float d = half(b), m = half(b + 2);
    const uint8_t *s = b + 4, *q = b + 16;

    for (int j = 0; j < 8; j++) {
        const int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        const int mn = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
        const float scale = d * (float)sc, least = m * (float)mn;
        for (int i = 0; i < 32; i++) {
            const int x = q[32 * (j / 2) + i];
            w[32 * j + i] = scale * (float)(j % 2 ? x >> 4 : x & 15) - least;
        }
    }
}

/* Two halves of 128, each of 4 runs of 32; a scale for 16 weights. */
static void decode_q6_k(const uint8_t *b, float *w)
{
    const float d = half(b + 208);

    for (int h = 0; h < 2; h++)
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 32; i++) {
                const int low = b[64 * h + (r % 2 ? 32 : 0) + i], high = b[128 + 32 * h + i] >> 2 * r & 3;
                const int q = ((r < 2 ? low & 15 : low >> 4) | high << 4) - 32;
                const float scale = d * (float)(int8_t)b[192 + 8 * h + 2 * r + i / 16];
                w[128 * h + 32 * r + i] = scale * (float)q;
            }
}

void hv_gguf_decode(int type, const uint8_t *block, size_t n, float *w)
{
    const int i = find_type(type);

    for (size_t k = 0; k < n && i >= 0; k++, block += types[i].bytes, w += types[i].weights)
        switch (type) {
        case GGML_Q8_0: decode_q8_0(block, w); break;
        case GGML_Q4_0: decode_q4_0(block, w); break;
        case GGML_Q5_0: decode_q5_0(block, w); break;
        case GGML_Q4_K: decode_q4_k(block, w); break;
        case GGML_Q6_K: decode_q6_k(block, w); break;
        }
}

/* ---- the header ---- */

struct reader {
    const uint8_t *p;
    size_t         n, at;
    uint64_t       align;
    struct hv_err *e;
};

struct string {
    const char *s;
    size_t      n;
};

static int need(struct reader *r, uint64_t n)
{
    return n > r->n - r->at ? hv_fail(r->e, HV_EINPUT, "gguf: cut short at byte %zu of %zu", r->at, r->n) : 0;
}

static int get(struct reader *r, size_t bytes, uint64_t *v)
{
    *v = 0;
    if (need(r, bytes))
        return r->e->code;
    for (size_t i = 0; i < bytes; i++)
        *v |= (uint64_t)r->p[r->at + i] << 8 * i;
    r->at += bytes;
    return 0;
}

static int get_string(struct reader *r, struct string *s)
{
    uint64_t n = 0;

    *s = (struct string){"", 0};
    if (get(r, 8, &n) || need(r, n))
        return r->e->code;
    *s = (struct string){(const char *)r->p + r->at, (size_t)n};
    r->at += (size_t)n;
    return 0;
}

/* Bytes of a value of a type; 0: a string (8), an array (9), or unknown. */
static size_t value_bytes(uint64_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    return type < sizeof bytes ? bytes[type] : 0;
}

static int skip_array(struct reader *r, uint64_t *type, uint64_t *n)
{
    struct string ignored;

    if (get(r, 4, type) || get(r, 8, n))
        return r->e->code;
    const size_t bytes = value_bytes(*type);
    if (bytes) {
        if (*n > (r->n - r->at) / bytes)
            return hv_fail(r->e, HV_EINPUT, "gguf: cut short in an array of %llu values", (unsigned long long)*n);
        r->at += (size_t)*n * bytes;
        return 0;
    }
    if (*type != 8)
        return hv_fail(r->e, HV_EINPUT, "gguf: an array of values of type %llu", (unsigned long long)*type);
    for (uint64_t i = 0; i < *n; i++)
        if (get_string(r, &ignored))
            return r->e->code;
    return 0;
}

/* Keys that matter: the alignment, and the shapes of what was stored flat. */
static int read_kv(struct reader *r, struct hv_ckpt *c, struct string *shapes, size_t *n_shapes, size_t max_shapes)
{
    static const char align[] = "general.alignment", arch[] = "general.architecture", orig[] = "comfy.gguf.orig_shape.";
    struct string key, text;
    uint64_t type = 0, v = 0, n = 0;
    char value[64];

    if (get_string(r, &key) || get(r, 4, &type))
        return r->e->code;
    if (key.n > 65535 || !hv_utf8_valid(key.s, key.n))
        return hv_fail(r->e, HV_EINPUT, "gguf: a key that is no text");
    const size_t bytes = value_bytes(type);
    if (bytes) {
        if (get(r, bytes, &v))
            return r->e->code;
        if (key.n == sizeof align - 1 && !memcmp(key.s, align, key.n)) {
            if (type != 4 || v < 1 || v > 1 << 20 || (v & (v - 1)))
                return hv_fail(r->e, HV_EINPUT, "gguf: %s is %llu", align, (unsigned long long)v);
            r->align = v;
        }
        return 0;
    }
    if (type == 8) {
        if (get_string(r, &text))
            return r->e->code;
        if (key.n == sizeof arch - 1 && !memcmp(key.s, arch, key.n) && text.n < sizeof value && hv_utf8_valid(text.s, text.n)) {
            memcpy(value, text.s, text.n);
            value[text.n] = 0;
            return hv_ckpt_add_meta(c, arch, value, r->e);
        }
        return 0;
    }
    if (type != 9)
        return hv_fail(r->e, HV_EINPUT, "gguf: a value of type %llu", (unsigned long long)type);
    const size_t start = r->at;
    if (skip_array(r, &type, &n))
        return r->e->code;
    if (key.n > sizeof orig - 1 && !memcmp(key.s, orig, sizeof orig - 1) && (type == 4 || type == 5) && n <= HV_ST_DIMS &&
        *n_shapes + 2 <= max_shapes) {
        shapes[(*n_shapes)++] = (struct string){key.s + sizeof orig - 1, key.n - (sizeof orig - 1)};
        shapes[(*n_shapes)++] = (struct string){(const char *)r->p + start + 12, (size_t)n};
    }
    return 0;
}

static int multiply(int ndim, const int64_t *shape, int64_t *count)
{
    *count = 1;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || (shape[i] && __builtin_mul_overflow(*count, shape[i], count)))
            return -1;
    for (int i = 0; i < ndim; i++)
        if (!shape[i])
            *count = 0;
    return 0;
}

static int original_shape(struct hv_ctensor *t, struct string name, const struct string *shapes, size_t n, int64_t count,
                          struct hv_err *e)
{
    for (size_t i = 0; i + 1 < n; i += 2) {
        int64_t shape[HV_ST_DIMS], product;
        if (shapes[i].n != name.n || memcmp(shapes[i].s, name.s, name.n))
            continue;
        for (size_t k = 0; k < shapes[i + 1].n; k++) {
            int32_t v;
            memcpy(&v, shapes[i + 1].s + 4 * k, 4);
            shape[k] = v;
        }
        if (multiply((int)shapes[i + 1].n, shape, &product) || product != count)
            return hv_fail(e, HV_EINPUT, "gguf: %.*s: its original shape does not have %lld weights", (int)name.n, name.s,
                           (long long)count);
        t->ndim = (int)shapes[i + 1].n;
        memcpy(t->shape, shape, sizeof shape);
    }
    return 0;
}

static int read_tensor(struct reader *r, struct hv_ctensor *t, struct string *name, uint64_t *offset)
{
    uint64_t ndim = 0, type = 0, dim[HV_ST_DIMS] = {0};

    if (get_string(r, name) || get(r, 4, &ndim))
        return r->e->code;
    if (!name->n || name->n > NAME || !hv_utf8_valid(name->s, name->n))
        return hv_fail(r->e, HV_EINPUT, "gguf: a tensor whose name is no text of 1 to %d bytes", NAME);
    if (ndim > HV_ST_DIMS)
        return hv_fail(r->e, HV_EINPUT, "gguf: %.*s: %llu dimensions", (int)name->n, name->s, (unsigned long long)ndim);
    for (uint64_t i = 0; i < ndim; i++)
        if (get(r, 8, &dim[i]))
            return r->e->code;
    if (get(r, 4, &type) || get(r, 8, offset))
        return r->e->code;
    const int k = find_type(type > 1000 ? -1 : (int)type);
    if (k < 0)
        return hv_fail(r->e, HV_EUNSUP, "gguf: %.*s is of type %llu: read are F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K and Q6_K; "
                       "convert the file to one of them", (int)name->n, name->s, (unsigned long long)type);
    *t = (struct hv_ctensor){.dtype = types[k].dtype ? types[k].dtype : HV_F32, .ndim = (int)ndim,
                             .ggml = types[k].dtype ? -1 : types[k].type};
    for (uint64_t i = 0; i < ndim; i++) {
        if (dim[i] > INT64_MAX)
            return hv_fail(r->e, HV_EINPUT, "gguf: %.*s: shape overflows", (int)name->n, name->s);
        t->shape[ndim - 1 - i] = (int64_t)dim[i];
    }
    int64_t count, bytes;
    if (multiply(t->ndim, t->shape, &count) || __builtin_mul_overflow(count, 4, &bytes))
        return hv_fail(r->e, HV_EINPUT, "gguf: %.*s: shape overflows", (int)name->n, name->s);
    if ((ndim ? dim[0] : 1) % (uint64_t)types[k].weights)
        return hv_fail(r->e, HV_EINPUT, "gguf: %.*s: rows of %llu weights in blocks of %d", (int)name->n, name->s,
                       (unsigned long long)(ndim ? dim[0] : 1), types[k].weights);
    if (__builtin_mul_overflow((uint64_t)count / (uint64_t)types[k].weights, types[k].bytes, &t->span))
        return hv_fail(r->e, HV_EINPUT, "gguf: %.*s: shape overflows", (int)name->n, name->s);
    return 0;
}

struct place {
    uint64_t begin, end;
};

static int by_begin(const void *a, const void *b)
{
    const struct place *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Tensors lie inside the data, aligned, and do not overlap. */
static int add_all(struct hv_ckpt *c, struct reader *r, struct hv_ctensor *t, const struct string *name, size_t n)
{
    const size_t start = (size_t)((r->at + r->align - 1) / r->align * r->align);
    struct place *p = malloc((n + 1) * sizeof *p);
    int rc = p ? 0 : hv_fail(r->e, HV_ENOMEM, "gguf: out of memory");

    for (size_t i = 0; i < n && !rc; i++) {
        const uint64_t room = start < r->n ? r->n - start : 0;
        if (t[i].offset % r->align || t[i].offset > room || t[i].span > room - t[i].offset)
            rc = hv_fail(r->e, HV_EINPUT, "gguf: %.*s: %llu bytes at %llu of %llu", (int)name[i].n, name[i].s,
                         (unsigned long long)t[i].span, (unsigned long long)t[i].offset, (unsigned long long)room);
        p[i] = (struct place){t[i].offset, t[i].offset + t[i].span};
        t[i].offset += start;
        int64_t step = 1;
        for (int k = t[i].ndim - 1; k >= 0; k--) {
            t[i].stride[k] = step;
            step *= t[i].shape[k] ? t[i].shape[k] : 1;
        }
        if (!rc)
            rc = hv_ckpt_add(c, &t[i], name[i].s, name[i].n, r->e);
    }
    if (!rc && n)
        qsort(p, n, sizeof *p, by_begin);
    for (size_t i = 1; i < n && !rc; i++)
        if (p[i].begin < p[i - 1].end)
            rc = hv_fail(r->e, HV_EINPUT, "gguf: two tensors overlap at byte %llu of the data", (unsigned long long)p[i].begin);
    free(p);
    return rc;
}

int hv_gguf_read(struct hv_ckpt *c, const uint8_t *data, size_t bytes, size_t *head, struct hv_err *e)
{
    struct reader r = {.p = data, .n = bytes, .align = 32, .e = e};
    uint64_t magic = 0, version = 0, n = 0, n_kv = 0;
    struct hv_ctensor *t = NULL;
    struct string *name = NULL, *shapes = NULL;
    size_t n_shapes = 0;

    if (get(&r, 4, &magic) || get(&r, 4, &version) || get(&r, 8, &n) || get(&r, 8, &n_kv))
        return e->code;
    if (version != 2 && version != 3)
        return hv_fail(e, HV_EUNSUP, "gguf: version %llu, expected 2 or 3%s", (unsigned long long)version,
                       version == 1 ? ": convert it with a current gguf package" : "");
    /* The smallest tensor takes 25 bytes, the smallest key 13. */
    if (n > TENSORS || n > bytes / 25 || n_kv > bytes / 13)
        return hv_fail(e, HV_EINPUT, "gguf: %llu tensors and %llu keys in %zu bytes", (unsigned long long)n,
                       (unsigned long long)n_kv, bytes);
    t = calloc((size_t)n + 1, sizeof *t);
    name = calloc((size_t)n + 1, sizeof *name);
    shapes = calloc(2 * SHAPES, sizeof *shapes);
    int rc = t && name && shapes ? 0 : hv_fail(e, HV_ENOMEM, "gguf: out of memory for %llu tensors", (unsigned long long)n);
    for (uint64_t i = 0; i < n_kv && !rc; i++)
        rc = read_kv(&r, c, shapes, &n_shapes, 2 * SHAPES);
    for (uint64_t i = 0; i < n && !rc; i++) {
        uint64_t offset = 0;
        rc = read_tensor(&r, &t[i], &name[i], &offset);
        t[i].offset = offset;
        int64_t count = 0;
        if (!rc && !multiply(t[i].ndim, t[i].shape, &count))
            rc = n_shapes ? original_shape(&t[i], name[i], shapes, n_shapes, count, e) : 0;
    }
    if (!rc)
        rc = add_all(c, &r, t, name, (size_t)n);
    *head = r.at;
    free(t);
    free(name);
    free(shapes);
    return rc;
}
