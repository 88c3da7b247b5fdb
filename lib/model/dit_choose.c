/* dit_choose.c - which plan: of those that fit the budgets, the one of the least predicted time, and of those within a hundredth
 * of it the smallest.
 *
 * The prediction of a forward goes through its segments of weights in order. Computing takes flops over rate, copies take bytes
 * over the bus, and a segment starts when it has arrived, which it can only when the ring has room for it: a small replay of what
 * the streamer does. All inputs are integers or the constants below, so the same sizes always give the same plan. */
#include "dit_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* ---- machines ---- */

/* Rates that such chips reach, a multiprocessor: measured for 90 (BENCHMARKS.md), for the others 0.8 of the vendor's peak with f32
 * sums; memory and bus as the vendors give them, times 0.85. */
struct chip {
    int    arch;
    double gemm, flash, cudnn;          /* flop/s a multiprocessor */
    double memory, bus;                 /* bytes/s of the whole */
};

static const struct chip chips[] = {
    {80, 2.3e12, 1.75e12, 1.9e12, 1.3e12, 22e9},
    {86, 0.60e12, 0.55e12, 0.55e12, 0.6e12, 22e9},
    {89, 1.03e12, 0.95e12, 0.95e12, 0.8e12, 22e9},
    {90, 5.5e12, 2.5e12, 4.8e12, 2.9e12, 50e9},
    {120, 0.99e12, 0.95e12, 0.95e12, 1.4e12, 45e9},
};

struct dit_machine dit_machine_of(int arch, int units, enum hv_attention attention, int cudnn)
{
    const struct chip *c = &chips[2];
    struct dit_machine m = {.launch = 4e-6};

    if (!units)
        arch = 89, units = 128;         /* none: an RTX 4090 */
    for (size_t i = 0; i < sizeof chips / sizeof *chips; i++)
        if (chips[i].arch <= arch)
            c = &chips[i];
    m.gemm = c->gemm * units;
    m.fused = (arch == 90 ? 0.98 : 0.8) * m.gemm;
    m.units = units;
    m.attention = c->flash * units;
    if (attention == HV_ATT_CUDNN || (attention == HV_ATT_AUTO && cudnn))
        m.attention = c->cudnn * units;
    else if (attention == HV_ATT_SAGE)
        m.attention *= 1.25;
    else if (attention == HV_ATT_SAGE_FP8)
        m.attention *= 1.5;
    else if (attention == HV_ATT_MATH)
        m.attention *= 0.02;
    m.memory = c->memory;
    m.bus = c->bus;
    return m;
}

#define ROWS_MOST 8192                  /* of a chunk that is tried */

void dit_for_device(struct dit_size *s, struct dit_choice *k, struct dit_machine *m, const struct dit_config *c, int kind,
                    const struct hv_dev_info *info, hv_dtype weights, int fp8)
{
    const int64_t given = most(k->rows_mlp, k->rows_attn);

    if (kind != HV_CUDA)
        return;
    s->act = HV_BF16;
    s->weights = weights ? weights : HV_BF16;
    s->scratch = (int64_t)(!info || info->arch >= 90 ? HV_LINEAR_SCRATCH : HV_LINEAR_SCRATCH / 8);
    if (fp8)
        s->scratch = (int64_t)HV_LINEAR_SCRATCH + (int64_t)hv_linear_fp8_scratch(given ? given : ROWS_MOST, c->hidden + c->mlp);
    if (k->attention == HV_ATT_AUTO)
        k->attention = info && info->cudnn && c->head_dim == 128 ? HV_ATT_CUDNN : HV_ATT_FLASH;
    k->apart = k->attention == HV_ATT_CUDNN;
    if (m)
        *m = dit_machine_of(info ? info->arch : 0, info ? info->units : 0, k->attention, info ? info->cudnn : 0);
}

/* ---- weights ---- */

enum phase { EDGE, ATTENTION, IMAGE, TEXT, SINGLE, ADAPTER };

/* The groups of the list with their bytes in a ring, and the phase that each serves. */
struct segments {
    struct hv_wlist list;
    int64_t         bytes[DIT_GROUPS_MAX];
    enum phase      phase[DIT_GROUPS_MAX];
};

static enum phase phase_of(const char *group)
{
    const char *dot = strrchr(group, '.');

    return !strncmp(group, "adapter.", 8) ? ADAPTER : !dot ? EDGE : !strcmp(dot, ".img") ? IMAGE : !strcmp(dot, ".txt") ? TEXT :
           !strcmp(dot, ".rest") ? SINGLE : ATTENTION;
}

static void open_segments(struct segments *g, const struct dit_config *c, hv_dtype weights)
{
    memset(g, 0, sizeof *g);
    dit_weights(&g->list, c);
    for (int i = 0; i < g->list.groups && i < DIT_GROUPS_MAX; i++) {
        g->bytes[i] = hv_wlist_group_bytes(&g->list, i, weights, 1);
        g->phase[i] = phase_of(g->list.group[i]);
    }
}

/* Aligned bytes of a group of the list, 0 if there is none. */
static int64_t group_bytes(const struct segments *g, const char *stem, int64_t i, const char *part)
{
    char name[48];

    snprintf(name, sizeof name, *part ? "%s.%lld.%s" : i < 0 ? "%s" : "%s.%lld", stem, (long long)i, part);
    const int at = hv_wlist_find_group(&g->list, name);
    return at < 0 ? 0 : g->bytes[at];
}

static int64_t block_bytes(const struct segments *g, const struct dit_config *c, int64_t block)
{
    const int64_t i = block - c->double_blocks;

    if (i >= 0)
        return group_bytes(g, "single", i, "qkv") + group_bytes(g, "single", i, "rest");
    const int j = dit_adapter_of(c, block);
    return group_bytes(g, "double", block, "qkv") + group_bytes(g, "double", block, "img") + group_bytes(g, "double", block, "txt") +
           (j < 0 ? 0 : group_bytes(g, "adapter", j, ""));
}

int64_t dit_ring_bytes(const struct dit_config *c, enum dit_ring ring, hv_dtype weights)
{
    struct segments g;
    int64_t block = 0, segment = 0, before = 0;

    open_segments(&g, c, weights);
    for (int64_t i = 0; i < c->double_blocks + c->single_blocks; i++)
        block = most(block, block_bytes(&g, c, i));
    for (int i = 0; i < g.list.groups; i++) {
        if (i >= g.list.cycle)
            segment = most(segment, g.bytes[i]);
        before = most(before, g.bytes[i]);
    }
    hv_wlist_close(&g.list);
    /* Segments: the largest, and what lies before or behind it for the most part (16 of 9 H^2 at full size). */
    const int64_t bytes = ring == DIT_RING_SEGMENTS ? (segment * 16 / 9 + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN : 2 * block;
    return most(bytes, before);
}

int64_t dit_resident_bytes(const struct dit_config *c, int64_t blocks, hv_dtype weights, uint8_t *keep)
{
    struct segments g;
    const int64_t all = c->double_blocks + c->single_blocks, wanted = least(blocks, all);
    int64_t bytes = 0;
    char name[48];

    open_segments(&g, c, weights);
    /* Evenly spread from the end, so that the last block, which cached steps use alone, is always one of them. */
    for (int64_t i = 0; i < all; i++) {
        if ((all - 1 - i) * wanted % all >= wanted)
            continue;
        bytes += block_bytes(&g, c, i);
        for (int k = 0; keep && k < g.list.groups; k++) {
            const int j = i < c->double_blocks ? dit_adapter_of(c, i) : -1;
            snprintf(name, sizeof name, "%s.%lld.", i < c->double_blocks ? "double" : "single",
                     (long long)(i < c->double_blocks ? i : i - c->double_blocks));
            keep[k] |= !strncmp(g.list.group[k], name, strlen(name));
            snprintf(name, sizeof name, "adapter.%d", j);
            keep[k] |= j >= 0 && !strcmp(g.list.group[k], name);
        }
    }
    hv_wlist_close(&g.list);
    return bytes;
}

/* ---- prediction ---- */

#define SEGMENTS_MAX (4 * (DIT_ADAPTERS_MAX + 512) + 2)

struct segment {
    double bytes, seconds;
};

struct costs {
    const struct dit_config  *c;
    const struct dit_size    *s;
    const struct dit_choice  *k;
    const struct dit_machine *m;
    struct dit_dims           d;
};

/* Products of all rows, a chunk at a time: n of width x depth. Tiles of 128 x 256 fill the multiprocessors in waves. */
static double products(const struct costs *x, int64_t rows, int64_t chunk, int n, int64_t width, int64_t depth)
{
    const int quantized = x->s->weights == HV_I8 || x->s->weights == HV_F8_E4M3;
    const double rate = quantized && x->k->gemm == DIT_GEMM_FUSED ? x->m->fused : x->m->gemm;
    double seconds = 0;

    for (int64_t row = 0; row < rows; row += chunk) {
        const int64_t r = least(chunk, rows - row), tiles = (r + 127) / 128 * ((width + 255) / 256) * n;
        const int64_t waves = (tiles + x->m->units - 1) / x->m->units;
        seconds += 2.0 * (double)r * (double)width * (double)depth * n / rate * (double)(waves * x->m->units) / (double)tiles;
    }
    return seconds;
}

/* `passes` over a row of `width` activations, for all rows, in `operations` a chunk. */
static double passes(const struct costs *x, int64_t rows, int64_t chunk, int64_t width, int count, int operations)
{
    return (double)rows * (double)width * count * (double)hv_dtype_size(x->s->act) / x->m->memory +
           (double)((rows + chunk - 1) / chunk * operations) * x->m->launch;
}

static double stream_bytes(const struct costs *x, int64_t rows)
{
    return (double)rows * (double)x->c->hidden * (double)hv_dtype_size(x->s->act);
}

/* Seconds of the attention phase of a block, without its weights. */
static double attention_phase(const struct costs *x)
{
    const struct dit_choice *k = x->k;
    const int64_t L = x->d.rows, H = x->c->hidden, G = k->group * x->c->head_dim, groups = x->c->heads / k->group;
    const double linear = products(x, L, k->rows_attn, 3, G, H) + passes(x, L, k->rows_attn, H, 2, 2) + passes(x, L, k->rows_attn, G, 4, 4);
    const double attention = 4.0 * (double)L * (double)L * (double)G / x->m->attention;
    const double widen = dit_expands(x->s, k) ? 2.0 * 9 * (double)G * (double)H / x->m->memory : 0;
    const double in = stream_bytes(x, L) / x->m->bus, out = in / (double)groups;
    const double fixed = passes(x, L, k->rows_attn, H, 1, 1) + (double)groups * widen;

    if (!dit_o_host(k))
        return fixed + (double)groups * (linear + attention);
    if (k->tier == DIT_TIER_O_HOST)
        return fixed + (double)groups * larger(linear + attention, out) + out;
    if (k->ahead == DIT_AHEAD_ON)
        return fixed + larger(linear, in) + (double)groups * larger(linear + attention, in) + out / 4;
    return fixed + (double)groups * (larger(linear, in) + attention) + out;
}

/* The rest of a block for `rows` rows: products of total width x depth `work`, `n` operations a chunk, `count` passes. */
static double rest_phase(const struct costs *x, int64_t rows, double seconds, double wide, int count, int operations)
{
    const struct dit_choice *k = x->k;
    const double chunk = stream_bytes(x, least(k->rows_mlp, rows)) / x->m->bus, all = stream_bytes(x, rows) / x->m->bus;
    const int in = dit_o_host(k) + (k->tier == DIT_TIER_X_HOST);

    seconds += passes(x, rows, k->rows_mlp, x->c->hidden, count, operations);
    if (dit_expands(x->s, k))
        seconds += 3 * wide / x->m->memory;
    return in ? larger(seconds, in * all) + 2 * chunk : seconds;
}

static double double_rest_phase(const struct costs *x, int64_t rows)
{
    const int64_t H = x->c->hidden, M = x->c->mlp, r = x->k->rows_mlp;
    const double work = products(x, rows, r, 1, H, H) + products(x, rows, r, 1, M, H) + products(x, rows, r, 1, H, M);

    return rest_phase(x, rows, work, (double)(H * H + 2 * H * M), 10, 7);
}

static double single_rest_phase(const struct costs *x)
{
    const int64_t H = x->c->hidden, M = x->c->mlp, r = x->k->rows_mlp;
    const double work = products(x, x->d.rows, r, 1, M, H) + products(x, x->d.rows, r, 1, H, H + M);

    return rest_phase(x, x->d.rows, work, (double)(H * H + 2 * H * M), 7, 5);
}

static double adapter_phase(const struct costs *x)
{
    const int64_t H = x->c->hidden, d = x->c->adapter_dim, r = x->k->rows_mlp;
    const double work = products(x, x->d.video, r, 1, d, H) + products(x, x->d.video, r, 1, H, d);

    return rest_phase(x, x->d.video, work, 0, 6, 7);
}

static int segment_list(struct segment *seg, const struct costs *x, const struct segments *g, const uint8_t *keep)
{
    const double seconds[] = {
        [EDGE] = passes(x, x->d.video, x->k->rows_mlp, x->c->hidden, 6, 8), [ATTENTION] = attention_phase(x),
        [IMAGE] = double_rest_phase(x, x->d.image), [TEXT] = double_rest_phase(x, x->d.rows - x->d.image),
        [SINGLE] = single_rest_phase(x), [ADAPTER] = adapter_phase(x),
    };
    int n = 0;

    for (int i = g->list.cycle; i < g->list.groups && n < SEGMENTS_MAX; i++)
        seg[n++] = (struct segment){keep[i] ? 0 : (double)g->bytes[i], seconds[g->phase[i]] * dit_paired(x->k)};
    return n;
}

/* Time of the second of two passes through the segments, when what is fetched ahead has settled. */
static double replay(const struct segment *seg, int n, double ring, double rate)
{
    double *done = calloc((size_t)(2 * n), sizeof *done), arrived = 0, held = 0, end = 0, first = 0;
    int oldest = 0;

    if (!done)
        return 0;
    for (int i = 0; i < 2 * n; i++) {
        const struct segment *s = &seg[i % n];
        double start = arrived;
        held += s->bytes;
        for (; held > ring && oldest < i; oldest++) {
            held -= seg[oldest % n].bytes;
            start = larger(start, done[oldest]);
        }
        if (s->bytes > 0)
            arrived = start + s->bytes / rate;
        end = larger(end, s->bytes > 0 ? arrived : 0) + s->seconds;
        done[i] = end;
        if (i == n - 1)
            first = end;
    }
    free(done);
    return end - first;
}

static double seconds_of(const struct costs *x, const struct segments *g, const uint8_t *keep)
{
    struct segment *seg = malloc(SEGMENTS_MAX * sizeof *seg);
    double rate = x->m->bus, seconds = 0;

    if (x->m->source > 0 && x->m->source < rate)
        rate = x->m->source;
    if (seg)
        seconds = replay(seg, segment_list(seg, x, g, keep), (double)x->k->ring_bytes, rate) / dit_paired(x->k);
    free(seg);
    return seconds;
}

double dit_seconds(const struct dit_config *c, const struct dit_size *s, const struct dit_choice *choice, const struct dit_machine *m)
{
    struct segments g;
    uint8_t *keep = calloc(DIT_GROUPS_MAX, 1);
    double seconds = 0;

    if (m->gemm <= 0 || !keep) {
        free(keep);
        return 0;
    }
    open_segments(&g, c, s->weights);
    if (choice->resident_blocks > 0)
        dit_resident_bytes(c, choice->resident_blocks, s->weights, keep);
    seconds = seconds_of(&(struct costs){c, s, choice, m, dit_dims(c, s, choice->rows_mlp)}, &g, keep);
    hv_wlist_close(&g.list);
    free(keep);
    return seconds;
}

/* ---- choosing ---- */

#define ROWS_FIRST  4096
#define ROWS_LAST   64
#define GROUP_FIRST 4
#define NEAR        1.01                /* times that differ by less are equal */

static int64_t next_group(const struct dit_config *c, int64_t g)
{
    do
        g--;
    while (g > 1 && c->heads % g);
    return most(g, 1);
}

static int64_t half(int64_t rows)
{
    return most(rows / 2, ROWS_LAST);
}

/* On a cpu: each plan of this row is smaller than the one before: rows and heads are halved in turn. */
static int choose_pieces(struct dit_choice *choice, const struct dit_config *c, const struct dit_size *s, size_t budget, struct hv_err *e)
{
    const struct dit_choice given = *choice;
    int64_t group = next_group(c, least(GROUP_FIRST, c->heads) + 1), rows = ROWS_FIRST;

    for (int turn = 0;; turn++) {
        struct hv_plan device = {.budget = budget}, host = {0};
        struct hv_err fault = {0};
        choice->group = given.group ? given.group : group;
        choice->rows_attn = given.rows_attn ? given.rows_attn : rows;
        choice->rows_mlp = given.rows_mlp ? given.rows_mlp : rows;
        if (!dit_plan(&device, &host, c, s, choice, &fault))
            return 0;
        if (fault.code != HV_ENOMEM || (rows == ROWS_LAST && group == 1)) {
            hv_fail(e, fault.code, "%s", fault.msg);
            return fault.code == HV_ENOMEM ? hv_context(e, "chunks of %lld rows, groups of %lld heads",
                                                        (long long)choice->rows_mlp, (long long)choice->group) : e->code;
        }
        if ((turn % 2 && group > 1) || rows == ROWS_LAST)
            group = next_group(c, group);
        else
            rows = half(rows);
    }
}

/* The candidates: every combination of what is not given. */
struct search {
    const struct dit_config *c;
    const struct dit_size   *s;
    const struct dit_budget *b;
    struct dit_choice        given, best, least;
    int                      found, fast;       /* fast: the least time is known, now the smallest plan near it is wanted */
    double                   seconds;           /* the least */
    size_t                   bytes, smallest;   /* of best, of least */
    struct hv_err            fault;             /* of the smallest plan that did not fit */
    struct segments          g;
    uint8_t                 *keep;
    int64_t                  ring[DIT_RING_SEGMENTS + 1];
};

static void try_plan(struct search *x, const struct dit_choice *k)
{
    struct hv_plan device = {.budget = x->b->device}, host = {.budget = x->b->host};
    struct hv_err fault = {0};
    const struct costs cost = {x->c, x->s, k, &x->b->machine, dit_dims(x->c, x->s, k->rows_mlp)};
    const double seconds = seconds_of(&cost, &x->g, x->keep);

    if (x->found && seconds > x->seconds * (x->fast ? NEAR : 1))
        return;
    const int rc = dit_plan(&device, &host, x->c, x->s, k, &fault);
    const size_t bytes = hv_plan_bytes(&device);
    if (rc) {
        if (!x->fault.code || (bytes && bytes < x->smallest)) {
            x->fault = fault;
            x->smallest = bytes;
            x->least = *k;
        }
        return;
    }
    if (x->fast ? bytes >= x->bytes : x->found && seconds >= x->seconds)
        return;
    x->found = 1;
    if (!x->fast)
        x->seconds = seconds;
    x->bytes = bytes;
    x->best = *k;
}

static void try_rings(struct search *x, struct dit_choice k)
{
    for (enum dit_ring ring = DIT_RING_BLOCKS; ring <= DIT_RING_SEGMENTS; ring++) {
        if (x->given.ring && x->given.ring != ring)
            continue;
        k.ring = ring;
        k.ring_bytes = x->ring[ring];
        for (enum dit_branches b = DIT_BRANCHES_ALONE; b <= DIT_BRANCHES_PAIRED; b++) {
            /* Pairs hold a whole block. */
            if ((x->given.branches && x->given.branches != b) || (b == DIT_BRANCHES_PAIRED && (x->s->branches < 2 || ring != DIT_RING_BLOCKS)))
                continue;
            k.branches = b;
            try_plan(x, &k);
        }
    }
}

static void try_gemm(struct search *x, struct dit_choice k)
{
    const int quantized = x->s->weights == HV_I8 || x->s->weights == HV_F8_E4M3;

    for (enum dit_gemm g = DIT_GEMM_EXPAND; g <= (quantized ? DIT_GEMM_FUSED : DIT_GEMM_EXPAND); g++) {
        if (x->given.gemm && quantized && x->given.gemm != g)
            continue;
        k.gemm = g;
        try_rings(x, k);
    }
}

/* Rows of a chunk: powers of two, and the one that makes a whole number of waves of attention's tiles where it is cut by chunks. */
static void try_rows(struct search *x, struct dit_choice k)
{
    const int64_t wave = k.ahead == DIT_AHEAD_ON ? x->b->machine.units * 128 / k.group : 0;

    for (int64_t a = ROWS_MOST; a >= 4 * ROWS_LAST; a /= 2)
        for (int64_t m = ROWS_MOST; m >= 4 * ROWS_LAST; m /= 2) {
            const int first = a == ROWS_MOST, top = m == ROWS_MOST;
            if ((x->given.rows_attn && !first) || (x->given.rows_mlp && !top))
                continue;
            k.rows_attn = x->given.rows_attn ? x->given.rows_attn : wave && first ? wave : a;
            k.rows_mlp = x->given.rows_mlp ? x->given.rows_mlp : m;
            try_gemm(x, k);
        }
}

static void try_tiers(struct search *x, struct dit_choice k)
{
    for (enum dit_tier t = DIT_TIER_DEVICE; t <= DIT_TIER_X_HOST; t++) {
        if (x->given.tier && x->given.tier != t)
            continue;
        k.tier = t;
        for (enum dit_ahead a = DIT_AHEAD_OFF; a <= (t == DIT_TIER_X_HOST ? DIT_AHEAD_ON : DIT_AHEAD_OFF); a++) {
            if (x->given.ahead && t == DIT_TIER_X_HOST && x->given.ahead != a)
                continue;
            k.ahead = a;
            try_rows(x, k);
        }
    }
}

/* What is left may hold blocks for good, where their copies are not hidden. */
static void keep_blocks(struct search *x)
{
    struct dit_choice k = x->best;
    const int64_t all = x->c->double_blocks + x->c->single_blocks;

    if (x->given.resident_blocks >= 0) {
        k.resident_blocks = least(x->given.resident_blocks, all);
        k.resident_bytes = dit_resident_bytes(x->c, k.resident_blocks, x->s->weights, NULL);
        x->best = k;
        return;
    }
    k.resident_blocks = all;
    const double none = dit_seconds(x->c, x->s, &x->best, &x->b->machine), whole = dit_seconds(x->c, x->s, &k, &x->b->machine);
    int64_t low = 0, high = all;
    if (none <= 1.01 * whole) {
        x->best.resident_blocks = 0;
        return;
    }
    while (low < high) {                                /* the most that fit */
        struct hv_plan device = {.budget = x->b->device}, host = {0};
        struct hv_err fault = {0};
        k.resident_blocks = (low + high + 1) / 2;
        k.resident_bytes = dit_resident_bytes(x->c, k.resident_blocks, x->s->weights, NULL);
        if (dit_plan(&device, &host, x->c, x->s, &k, &fault))
            high = k.resident_blocks - 1;
        else
            low = k.resident_blocks;
    }
    x->best.resident_blocks = low;
    x->best.resident_bytes = dit_resident_bytes(x->c, low, x->s->weights, NULL);
}

static void try_groups(struct search *x)
{
    for (int64_t group = x->c->heads; group >= 1; group = group > 1 ? next_group(x->c, group) : 0) {
        struct dit_choice k = x->given;
        if (x->given.group && x->given.group != group)
            continue;
        k.group = group;
        k.resident_blocks = k.resident_bytes = 0;
        try_tiers(x, k);
    }
}

static int choose_plan(struct dit_choice *choice, const struct dit_config *c, const struct dit_size *s, const struct dit_budget *b,
                       struct hv_err *e)
{
    struct search x = {.c = c, .s = s, .b = b, .given = *choice};

    if (!(x.keep = calloc(DIT_GROUPS_MAX, 1)))
        return hv_fail(e, HV_ENOMEM, "plan: out of memory");
    open_segments(&x.g, c, s->weights);
    for (int r = DIT_RING_BLOCKS; r <= DIT_RING_SEGMENTS; r++)
        x.ring[r] = choice->ring_bytes ? choice->ring_bytes : dit_ring_bytes(c, (enum dit_ring)r, s->weights);
    try_groups(&x);
    x.fast = 1;
    if (x.found)
        try_groups(&x);
    if (x.found)
        keep_blocks(&x);
    hv_wlist_close(&x.g.list);
    free(x.keep);
    if (!x.found) {
        hv_fail(e, x.fault.code ? x.fault.code : HV_EUSAGE, "%s", x.fault.code ? x.fault.msg : "plan: nothing fits these options");
        return x.fault.code == HV_ENOMEM ? hv_context(e, "chunks of %lld rows, groups of %lld heads", (long long)x.least.rows_mlp,
                                                      (long long)x.least.group) : e->code;
    }
    *choice = x.best;
    return 0;
}

int dit_choose(struct dit_choice *choice, const struct dit_config *c, const struct dit_size *s, const struct dit_budget *b,
               struct hv_err *e)
{
    if (choice->group && c->heads % choice->group)
        return hv_fail(e, HV_EUSAGE, "head group: %lld does not divide the %lld heads", (long long)choice->group,
                       (long long)c->heads);
    if (s->residual && choice->branches == DIT_BRANCHES_PAIRED)
        return hv_fail(e, HV_EUSAGE, "branches: not block by block with a cache of residuals");
    if (s->residual)
        choice->branches = DIT_BRANCHES_ALONE;
    if (b && b->machine.gemm > 0)
        return choose_plan(choice, c, s, b, e);
    return choose_pieces(choice, c, s, b ? b->device : 0, e);
}
