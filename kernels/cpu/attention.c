/* attention.c - o = softmax(scale q k^T) v per head.
 *
 * A piece of work is a block of up to 8 panels of KC = 48 queries of one head. It keeps its queries and its unscaled output
 * transposed, [D][48] a panel, so that a vector holds queries; keys come in tiles of BK, packed 8 at a time, and each panel
 * runs over the tile: scores S^T = K Q^T [BK][48], online softmax down the columns (running maximum and sum a query), then
 * O^T = O^T shrink + V^T P^T. Both products are one register tile of 8 x 48 (simd.h: product). Never more scores than BK x 48.
 *
 * Keys that the mask hides are left out when a tile is packed; keys that come later than a query may see get -inf. Scale and
 * log2(e) are multiplied into q, the exponential is 2^x. f32 throughout; D up to MAX_WIDTH; any number of keys. */
#include "cpu.h"

#include <math.h>
#include <string.h>

#define BK        128                   /* keys of a tile; half of it when heads are wide */
#define WIDE      256
#define PANELS    8
#define MAX_WIDTH 2048

struct task {
    const struct cpu_simd *simd;
    const struct hv_attn *a;
    hv_tensor o, q, k, v;               /* of this head; q and o of this block */
    int64_t   first, rows, width, wide; /* query 0 of the block; queries; D; D to a multiple of 8 */
    int       panels;
    float    *qt, *ot, *kt, *vt, *s;
    float     top[PANELS * KC], sum[PANELS * KC];
    int64_t   limit[PANELS * KC];       /* the query sees the first so many keys */
    int64_t   key[BK];                  /* of the tile at hand */
};

/* Panels a block has: fewer when heads are wide, to stay in the second cache. */
static int panels_of(int64_t width, int64_t rows)
{
    const int64_t fit = 1536 / width, need = (rows + KC - 1) / KC, n = fit < need ? fit : need;

    return n < 1 ? 1 : n > PANELS ? PANELS : (int)n;
}

static int64_t limit(const struct hv_attn *a, int64_t i, int64_t keys)
{
    if (!a->step)
        return keys;
    const int64_t n = (i / a->step + 1) * a->step + a->offset;
    return n < keys ? n : keys;
}

static void pack_queries(struct task *t)
{
    const float by = (float)((double)t->a->scale * 1.4426950408889634);

    if (t->rows % KC)
        memset(t->qt + (t->panels - 1) * KC * t->width, 0, (size_t)(KC * t->width) * sizeof(float));
    for (int p = 0; p < t->panels; p++) {
        const int64_t at = (int64_t)p * KC, n = t->rows - at < KC ? t->rows - at : KC;
        t->simd->transpose(t->qt + at * t->width, KC, cpu_f32(&t->q, at), t->q.stride[0], n, t->width, by);
    }
    for (int64_t i = 0; i < (int64_t)t->panels * KC; i++) {
        t->top[i] = -INFINITY;
        t->sum[i] = 0;
        t->limit[i] = limit(t->a, t->first + (i < t->rows ? i : t->rows - 1), t->k.shape[0]);
    }
}

/* The next tile from key `at` on: packs up to BK keys that the mask shows; their number in *n. Returns where the next starts.
 * kt: [8 keys][D][8]; vt: [8 columns][n][8]. */
static int64_t pack_tile(struct task *t, int64_t at, int64_t end, int64_t *count)
{
    const hv_tensor m = t->a->key_mask;
    const uint8_t *mask = m.data;
    int64_t n = 0;

    for (; at < end && n < (t->width > WIDE ? BK / 2 : BK); at++)
        if (!mask || mask[at])
            t->key[n++] = at;
    for (int64_t j = 0; j < n; j += KR) {
        float *to = t->kt + j * t->width;
        if (n - j >= KR && t->key[j + KR - 1] == t->key[j] + KR - 1) {
            t->simd->transpose(to, KR, cpu_f32(&t->k, t->key[j]), t->k.stride[0], KR, t->width, 1);
            continue;
        }
        if (n - j < KR)
            memset(to, 0, (size_t)(KR * t->width) * sizeof(float));
        for (int64_t r = 0; r < KR && j + r < n; r++)
            t->simd->transpose(to + r, KR, cpu_f32(&t->k, t->key[j + r]), 0, 1, t->width, 1);
    }
    for (int64_t c = 0; c < t->width; c += KR) {
        const size_t bytes = (size_t)(t->width - c < KR ? t->width - c : KR) * sizeof(float);
        float *to = t->vt + c * n;
        for (int64_t j = 0; j < n; j++, to += KR) {
            const float *from = cpu_f32(&t->v, t->key[j]) + c;
            if (bytes == KR * sizeof(float)) {
                memcpy(to, from, KR * sizeof(float));
            } else {
                memset(to, 0, KR * sizeof(float));
                memcpy(to, from, bytes);
            }
        }
    }
    *count = n;
    return at;
}

/* Scores of keys that a query may not see. */
static void hide(struct task *t, int64_t panel, int64_t n)
{
    const int64_t *seen = t->limit + panel * KC;

    if (t->key[n - 1] < seen[0])        /* limits never fall from one query to the next */
        return;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < KC && t->key[j] >= seen[i]; i++)
            t->s[j * KC + i] = -INFINITY;
}

static void one_tile(struct task *t, int64_t n, int is_first)
{
    float shrink[KC];

    for (int64_t p = 0; p < t->panels; p++) {
        const float *q = t->qt + p * KC * t->width;
        float *o = t->ot + p * KC * t->wide;
        if (!is_first && t->key[0] >= t->limit[p * KC + KC - 1])
            continue;                   /* no query of the panel sees a key of the tile */
        for (int64_t j = 0; j < n; j += KR)
            t->simd->product(t->s + j * KC, t->kt + j * t->width, q, t->width, NULL);
        hide(t, p, n);
        t->simd->softmax(t->s, n, t->top + p * KC, t->sum + p * KC, shrink);
        for (int64_t c = 0; c < t->wide; c += KR)
            t->simd->product(o + c * KC, t->vt + c * n, t->s, n, is_first ? NULL : shrink);
    }
}

static void finish(struct task *t)
{
    for (int64_t p = 0; p < t->panels; p++) {
        float *o = t->ot + p * KC * t->wide, inverse[KC];
        const int64_t at = p * KC, n = t->rows - at < KC ? t->rows - at : KC;
        for (int i = 0; i < KC; i++)
            inverse[i] = 1 / t->sum[at + i];
        for (int64_t c = 0; c < t->width; c++)
#pragma omp simd
            for (int i = 0; i < KC; i++)
                o[c * KC + i] *= inverse[i];
        t->simd->transpose(cpu_f32(&t->o, at), t->o.stride[0], o, KC, t->width, n, 1);
    }
}

static void run(struct hv_dev *d, struct task *t)
{
    const int64_t end = limit(t->a, t->first + t->rows - 1, t->k.shape[0]);
    int is_first = 1;

    t->panels = (int)((t->rows + KC - 1) / KC);
    t->width = t->q.shape[1];
    t->wide = (t->width + KR - 1) / KR * KR;
    t->s = cpu_scratch(d);
    t->qt = t->s + BK * KC;
    t->ot = t->qt + t->panels * KC * t->width;
    t->kt = t->ot + t->panels * KC * t->wide;
    t->vt = t->kt + BK * t->width;
    pack_queries(t);
    for (int64_t at = 0, n; at < end;) {
        at = pack_tile(t, at, end, &n);
        if (n)
            one_tile(t, n, is_first);
        is_first &= !n;
    }
    finish(t);
}

void cpu_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t rows = q.shape[0], width = q.shape[1] / a->heads, each = (int64_t)panels_of(width, rows) * KC;
    const int64_t blocks = (rows + each - 1) / each;

    if (width > MAX_WIDTH) {
        hv_dev_fault(d, HV_EUNSUP, "attention: heads of %lld columns, at most %d are supported", (long long)width, MAX_WIDTH);
        return;
    }
#pragma omp parallel for schedule(dynamic) num_threads(d->threads)
    for (int64_t i = 0; i < blocks * a->heads; i++) {
        const int64_t h = i / blocks, g = h / (a->heads / a->kv_heads), first = i % blocks * each;
        const int64_t n = rows - first < each ? rows - first : each;
        struct task t = {.simd = cpu_simd(), .a = a, .first = first, .rows = n,
                         .o = hv_cols(hv_rows(o, first, n), h * width, width),
                         .q = hv_cols(hv_rows(q, first, n), h * width, width),
                         .k = hv_cols(k, g * width, width), .v = hv_cols(v, g * width, width)};
        run(d, &t);
    }
}
