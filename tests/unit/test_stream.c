/* The weight streamer: every group's bytes right after it was taken, in all modes, rings, orders and on two devices:
 * the cpu, whose lanes are past at once, and one whose lanes are threads that lag behind, as a GPU's do. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io/st.h"
#include "mem/plan.h"
#include "mem/weights.h"
#include "model/dit.h"
#include "tests/unit/lanes.h"

/* ---- a network ---- */

static char path[] = "/tmp/hv-test-stream-XXXXXX";

/* Two groups before the steps, then 2 double blocks, an adapter, 2 single blocks that are cut, as the transformer has
 * them, in sizes that are not multiples of anything. */
static void make_list(struct hv_wlist *l)
{
    for (int i = 0; i < 2; i++) {
        hv_wlist_group(l, "before.%d", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 2, (int64_t[]){50, 33}, "before.%d.weight", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){50}, "before.%d.bias", i);
    }
    hv_wlist_group(l, NULL);
    hv_wlist_add(l, HV_BF16, HV_KEEP, 2, (int64_t[]){9, 5}, "never.weight");
    hv_wlist_cycle(l);
    hv_wlist_group(l, "stem");
    hv_wlist_add(l, HV_BF16, HV_KEEP, 5, (int64_t[]){48, 3, 1, 2, 2}, "stem.proj.weight");
    hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){48}, "stem.proj.bias");
    hv_wlist_add(l, HV_F32, HV_KEEP, 2, (int64_t[]){48, 48}, "stem.before.weight");
    for (int i = 0; i < 2; i++) {
        hv_wlist_group(l, "double.%d.qkv", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){384, 128}, "double.%d.qkv.weight", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){384}, "double.%d.qkv.bias", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){16}, "double.%d.norm.weight", i);
        hv_wlist_group(l, "double.%d.img", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){128, 128}, "double.%d.proj.weight", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){512, 128}, "double.%d.fc1.weight", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){512}, "double.%d.fc1.bias", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){128, 512}, "double.%d.fc2.weight", i);
    }
    hv_wlist_group(l, "adapter.0");
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, (int64_t[]){128}, "adapter.norm.weight");
    hv_wlist_add(l, HV_F32, HV_KEEP, 2, (int64_t[]){70, 128}, "adapter.to_q.weight");
    for (int i = 0; i < 2; i++) {
        hv_wlist_group(l, "single.%d.qkv", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){903, 129}, "single.%d.linear1.weight", i);
        hv_wlist_split(l, 391);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){903}, "single.%d.linear1.bias", i);
        hv_wlist_split(l, 391);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){16}, "single.%d.norm.weight", i);
        hv_wlist_group(l, "single.%d.rest", i);
        hv_wlist_add(l, HV_BF16, HV_QUANT, 2, (int64_t[]){128, 640}, "single.%d.linear2.weight", i);
        hv_wlist_add(l, HV_BF16, HV_KEEP, 1, (int64_t[]){128}, "single.%d.linear2.bias", i);
    }
    hv_wlist_group(l, "final");
    hv_wlist_add(l, HV_F32, HV_KEEP, 2, (int64_t[]){12, 128}, "final.weight");
    hv_wlist_add(l, HV_F32, HV_KEEP, 1, (int64_t[]){12}, "final.bias");
}

enum kind { F32, STORED, F16, I8, F8, KINDS };
enum order { FORWARD, BACKWARD, ORDERS };

/* A file of it: all F32 or F16, or as stored, or with quantized matrices; tensors in the order of use, or against it.
 * */
static void write_file(const struct hv_wlist *l, enum kind kind, enum order order)
{
    struct hv_out out = {.align = 4096};
    struct hv_err e = {0};

    for (int k = 0; k < l->n; k++) {
        const struct hv_wspec *s = &l->w[order == BACKWARD ? l->n - 1 - k : k];
        const int quant = kind >= I8 && s->quant == HV_QUANT;
        const hv_dtype plain = kind == F32 ? HV_F32 : kind == F16 ? HV_F16 : s->dtype;
        const hv_dtype t = !quant ? plain : kind == I8 ? HV_I8 : HV_F8_E4M3;
        const int64_t n = hv_shape_count(s->ndim, s->shape);
        char scale[128], *p;
        for (int half = 0; half < 2; half++)
            if (half == (order == BACKWARD)) {
                assert_non_null(p = hv_out_new(&out, s->name, t, s->ndim, s->shape, &e));
                for (int64_t i = 0; i < n; i++) {
                    const float v = (float)(((uint64_t)i * 2654435761u + (uint64_t)k * 40503) % 2001) * 0.013f - 12;
                    if (quant)
                        p[i] = (char)((i * 7 + k) % 120 + (i & 1 ? 128 : 0));      /* no NaN of e4m3 */
                    else
                        hv_from_f32(t, p + i * (int64_t)hv_dtype_size(t), &v, 1);
                }
            } else if (quant) {
                snprintf(scale, sizeof scale, "%s.scale", s->name);
                float *f = hv_out_new(&out, scale, HV_F32, 1, s->shape, &e);
                assert_non_null(f);
                for (int64_t i = 0; i < s->shape[0]; i++)
                    f[i] = (float)i * 0.5f + (float)k;
            }
    }
    assert_int_equal(hv_out_write(&out, path, &e), 0);
    hv_out_close(&out);
}

/* ---- what a group has to be ---- */

struct world {
    struct hv_dev     *cpu, *dev;
    struct hv_wlist    list;
    struct hv_weights *w, *truth;       /* truth: the same, in place on the cpu */
    char              *ring, *resident;
    uint8_t            keep[64];
    int                convert;
    hv_dtype           matrices;        /* where it converts: HV_NONE reads as HV_BF16 */
    uint64_t           seed;
    int                checks;
};

struct check {
    struct hv_dev *dev;
    const char    *name, *got;
    size_t         bytes;
    char           want[];
};

/* In the compute lane: the bytes are there now. */
static void check_bytes(void *arg)
{
    struct check *k = arg;

    for (size_t i = 0; i < k->bytes; i++)
        if (k->got[i] != k->want[i]) {
            hv_dev_fault(k->dev, HV_EDIFF, "%s: byte %zu of %zu is wrong", k->name, i, k->bytes);
            break;
        }
    free(k);
}

static void expect(struct world *o, const char *name, const void *got, const void *want, hv_dtype from, hv_dtype to,
                   size_t n)
{
    const size_t bytes = n * hv_dtype_size(to);
    struct check *k = malloc(sizeof *k + bytes);
    float *wide = malloc(n * sizeof *wide);

    assert_true(k && wide);
    k->dev = o->dev;
    k->bytes = bytes;
    k->name = name;
    k->got = got;
    if (from == to) {
        memcpy(k->want, want, bytes);
    } else {
        hv_to_f32(wide, from, want, n);
        hv_from_f32(to, k->want, wide, n);
    }
    free(wide);
    o->checks++;
    compute(o->dev, check_bytes, k);
}

static void check_tensor(struct world *o, int i, int64_t row, int64_t rows)
{
    const struct hv_wspec *s = &o->list.w[i];
    const hv_tensor want = hv_weight(o->truth, "%s", s->name);
    const hv_tensor got = s->split ? hv_weight_rows(o->w, row, rows, "%s", s->name) : hv_weight(o->w, "%s", s->name);
    const size_t columns = (size_t)(hv_shape_count(s->ndim, s->shape) / s->shape[0]);
    hv_dtype t = want.dtype;

    if (o->convert && s->ndim < 2)
        t = got.dtype == HV_BF16 ? HV_BF16 : HV_F32;                /* as stored: see `converts` */
    else if (o->convert && t != HV_I8 && t != HV_F8_E4M3)
        t = o->matrices ? o->matrices : HV_BF16;
    assert_int_equal(got.dtype, t);
    assert_int_equal(got.dev, o->dev->kind);
    assert_true(hv_same_shape(got, hv_rows(want, row, rows)));
    assert_int_equal((uintptr_t)got.data % HV_ALIGN, 0);
    expect(o, s->name, got.data,
           (const char *)want.data + row * (int64_t)(columns * hv_dtype_size(want.dtype)), want.dtype, t,
           (size_t)rows * columns);
    assert_true(!got.scale == !want.scale);
    assert_int_equal(got.deq_bf16, want.deq_bf16);
    if (got.scale)
        expect(o, s->name, got.scale, want.scale + row, HV_F32, HV_F32, (size_t)rows);
}

/* All tensors of a group that is taken. */
static void check_group(struct world *o, int g)
{
    for (int i = 0; i < o->list.n; i++) {
        const struct hv_wspec *s = &o->list.w[i];
        if (s->group == g)
            check_tensor(o, i, 0, s->split ? s->split : s->shape[0]);
        else if (s->split && s->group + 1 == g)
            check_tensor(o, i, s->split, s->shape[0] - s->split);
    }
}

static void pass(struct world *o, int g)
{
    hv_weights_take(o->w, o->list.group[g]);
    check_group(o, g);
    hv_weights_give(o->w, o->list.group[g]);
}

static void pass_range(struct world *o, int from, int to)
{
    for (int g = from; g < to; g++)
        pass(o, g);
}

static int named(const struct world *o, const char *name)
{
    const int g = hv_wlist_find_group(&o->list, name);

    assert_true(g >= 0);
    return g;
}

static unsigned chance(struct world *o, unsigned n)
{
    o->seed = o->seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((o->seed >> 33) % n);
}

static void no_fault(struct world *o)
{
    struct hv_err e = {0};

    if (hv_dev_sync(o->dev, &e))
        fail_msg("%s", e.msg);
}

static void open_devices(struct world *o, int lanes)
{
    struct hv_err e = {0};

    memset(o, 0, sizeof *o);
    make_list(&o->list);
    assert_int_equal(hv_dev_open(&o->cpu, "cpu", 1, &e), 0);
    o->dev = lanes ? open_lanes() : o->cpu;
    o->convert = lanes;
}

static void open_world(struct world *o, int lanes, enum kind kind, enum order order)
{
    struct hv_err e = {0};

    open_devices(o, lanes);
    write_file(&o->list, kind, order);
    assert_int_equal(hv_weights_open(&o->w, o->dev, path, &o->list, &e), 0);
    assert_int_equal(hv_weights_open(&o->truth, o->cpu, path, &o->list, &e), 0);
}

static void close_world(struct world *o)
{
    hv_weights_close(o->w);
    hv_weights_close(o->truth);
    free(o->ring);
    free(o->resident);
    if (o->dev != o->cpu)
        close_lanes(o->dev);
    hv_dev_close(o->cpu);
    hv_wlist_close(&o->list);
}

static size_t need(const struct world *o, int g)
{
    return (size_t)hv_weights_group_bytes(o->w, g, o->convert);
}

static size_t largest(const struct world *o)
{
    size_t n = 0;

    for (int g = 0; g < o->list.groups; g++)
        n = !o->keep[g] && need(o, g) > n ? need(o, g) : n;
    return n;
}

static size_t everything(const struct world *o)
{
    size_t n = 0;

    for (int g = 0; g < o->list.groups; g++)
        n += need(o, g);
    return n;
}

static hv_tensor bytes_of(struct world *o, char **p, size_t n)
{
    const int64_t shape = (int64_t)n;

    free(*p);
    *p = aligned_alloc(HV_ALIGN, (n + HV_ALIGN) / HV_ALIGN * HV_ALIGN);
    assert_non_null(*p);
    memset(*p, 0xff, n);
    hv_tensor t = hv_view(*p, HV_BYTES, 1, &shape);
    t.dev = (uint8_t)o->dev->kind;
    return t;
}

/* Starts a stream with a ring of n bytes; residents are those of keep. */
static int start(struct world *o, size_t n, struct hv_stream_opts opts, struct hv_err *e)
{
    size_t resident = 0;

    hv_weights_unstream(o->w);
    for (int g = 0; g < o->list.groups; g++)
        resident += o->keep[g] ? need(o, g) : 0;
    opts.ring = bytes_of(o, &o->ring, n);
    if (resident)
        opts.resident = bytes_of(o, &o->resident, resident);
    opts.keep = o->keep;
    opts.convert = o->convert;
    opts.matrices = o->matrices;
    opts.chunk = opts.chunk ? opts.chunk : 8192;
    return hv_weights_stream(o->w, &opts, e);
}

static struct hv_stream_stats begin(struct world *o, size_t n, struct hv_stream_opts opts)
{
    struct hv_err e = {0};
    struct hv_stream_stats s;

    if (start(o, n, opts, &e))
        fail_msg("%s", e.msg);
    hv_weights_stats(o->w, &s);
    return s;
}

static struct hv_stream_stats stats(const struct world *o)
{
    struct hv_stream_stats s;

    hv_weights_stats(o->w, &s);
    return s;
}

/* ---- the list ---- */

static void list_groups(void **state)
{
    const struct dit_config full = dit_config_full();
    const int64_t H2 = 3072 * 3072, H = 3072;
    static const hv_dtype types[] = {HV_BF16, HV_I8, HV_F8_E4M3, HV_F32};
    struct hv_wlist l = {0};
    int64_t sum = 0;

    (void)state;
    dit_weights(&l, &full);
    assert_int_equal(l.fault, 0);
    for (int i = 0; i < l.n; i++)
        assert_true(l.w[i].group >= 0);
    for (int g = 0; g < l.groups; g++)
        sum += hv_wlist_group_bytes(&l, g, HV_F32, 0);
    assert_true(sum == INT64_C(12991493184) * 4);
    assert_string_equal(l.group[0], "time_in");
    assert_string_equal(l.group[l.cycle], "stem");
    assert_string_equal(l.group[l.groups - 1], "final");
    assert_int_equal(l.groups - l.cycle, 1 + 3 * 20 + 10 + 2 * 40 + 1);
    for (int k = 0; k < 4; k++)
        for (int g = 0; g < l.groups; g++) {
            const int64_t bare = hv_wlist_group_bytes(&l, g, types[k], 0), all = hv_wlist_group_bytes(&l, g, types[k], 1);
            assert_true(all >= bare && all < bare + 64 * HV_ALIGN && all % HV_ALIGN == 0);
        }
#define BYTES(name, t) hv_wlist_group_bytes(&l, hv_wlist_find_group(&l, name), t, 0)
    assert_true(BYTES("double.3.qkv", HV_BF16) == 2 * (6 * H2 + 6 * H + 4 * 128));
    assert_true(BYTES("double.19.img", HV_BF16) == 2 * (9 * H2 + 6 * H));
    assert_true(BYTES("double.19.txt", HV_NONE) == 2 * (9 * H2 + 6 * H));
    assert_true(BYTES("single.39.qkv", HV_BF16) == 2 * (3 * H2 + 3 * H + 2 * 128));
    assert_true(BYTES("single.39.rest", HV_BF16) == 2 * (9 * H2 + 5 * H));
    assert_true(BYTES("single.0.rest", HV_I8) == 9 * H2 + 5 * H * 2 + (4 * H + H) * 4);
    assert_true(BYTES("single.0.qkv", HV_F8_E4M3) == 3 * H2 + 3 * H * 2 + 2 * 128 * 2 + 3 * H * 4);
    assert_true(BYTES("adapter.9", HV_I8) == 2 * 2 * 1024 * H + 4 * 2 * H);
    assert_true(BYTES("audio_adapter.9.kv", HV_BF16) == 2 * 2048 * H + 4 * 2 * H);
    assert_true(BYTES("double_blocks.7.txt_mod", HV_I8) == 2 * (6 * H2 + 6 * H));
    const int img = hv_wlist_find_group(&l, "double.0.img");
    assert_true(hv_wlist_largest(&l, 0, HV_BF16) == hv_wlist_group_bytes(&l, img, HV_BF16, 1));
    /* What comes before the steps fits into a ring for the steps. */
    for (int g = 0; g < l.cycle; g++)
        assert_true(hv_wlist_group_bytes(&l, g, HV_BF16, 1) <= hv_wlist_largest(&l, l.cycle, HV_BF16));
    static const char *const names[] = {"motion_exp", "motion_pose", "fps_proj", "vector_in", "double_blocks.0.img_mod",
                                        "txt_in", "single_blocks.39.modulation", "final_layer.adaLN",
                                        "txt_in.block.0.attn", "txt_in.block.1.mlp", "audio_proj"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_true(hv_wlist_find_group(&l, names[i]) >= 0);
    assert_int_equal(hv_wlist_find_group(&l, "guidance_in"), -1);
    hv_wlist_close(&l);
}

/* Adapters that never run are in no group; a copy keeps everything. */
static void list_copies(void **state)
{
    struct dit_config c = dit_config_full();
    struct hv_wlist l = {0};
    struct hv_dev *dry = NULL;
    struct hv_weights *w = NULL;
    struct hv_err e = {0};

    (void)state;
    c.double_blocks = 3;
    dit_weights(&l, &c);
    assert_true(hv_wlist_find_group(&l, "adapter.0") >= 0);
    assert_true(hv_wlist_find_group(&l, "audio_adapter.0.kv") >= 0);
    assert_int_equal(hv_wlist_find_group(&l, "adapter.1"), -1);
    assert_int_equal(hv_wlist_find(&l, "audio_adapter_blocks.1.to_q.weight")->group, -1);
    assert_int_equal(hv_wlist_find(&l, "audio_adapter_blocks.1.to_kv.weight")->group, -1);
    assert_int_equal(hv_dev_open(&dry, "dry", 1, &e), 0);
    assert_int_equal(hv_weights_open(&w, dry, NULL, &l, &e), 0);
    const struct hv_wlist *copy = hv_weights_list(w);
    assert_int_equal(copy->groups, l.groups);
    assert_int_equal(copy->cycle, l.cycle);
    for (int g = 0; g < l.groups; g++) {
        assert_string_equal(copy->group[g], l.group[g]);
        assert_true(hv_weights_group_bytes(w, g, 0) == hv_wlist_group_bytes(&l, g, HV_BF16, 1));
    }

    /* Only sizes are checked on the dry device. */
    struct hv_stream_opts o = {.ring = hv_view(NULL, HV_BYTES, 1, (int64_t[]){hv_wlist_largest(&l, 0, HV_BF16)})};
    assert_int_equal(hv_weights_stream(w, &o, &e), 0);
    assert_int_equal(hv_weights_streamed(w), 0);
    hv_weights_take(w, "double.0.img");
    assert_null(hv_weight(w, "double_blocks.0.img_mlp.fc1.weight").data);
    hv_weights_give(w, "double.0.img");
    hv_weights_next(w, "final");
    o.ring.shape[0] -= 256;
    assert_int_equal(hv_weights_stream(w, &o, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "double.0.img"));
    hv_weights_close(w);
    hv_dev_close(dry);
    hv_wlist_close(&l);
}

/* ---- the stream ---- */

/* What runs before the steps, then three steps. */
static void whole_run(struct world *o)
{
    pass_range(o, 0, o->list.groups);
    for (int step = 0; step < 2; step++)
        pass_range(o, o->list.cycle, o->list.groups);
    no_fault(o);
}

/* Every mode, several rings, both devices. */
static void modes(enum kind kind, enum order order)
{
    for (int lanes = 0; lanes < 2; lanes++) {
        struct world o;
        open_world(&o, lanes, kind, order);
        const size_t least = largest(&o), rings[] = {least, least + 4096, 2 * least - 256, 3 * least, everything(&o)};
        for (int mode = 0; mode < HV_STREAM_MODES; mode++)
            for (size_t r = 0; r < sizeof rings / sizeof *rings; r++) {
                struct hv_stream_opts opts = {.mode = (enum hv_stream_mode)mode, .threads = 1 + (int)r, .window = 40960};
                opts.chunk = r % 2 ? (size_t)128 << 10 : 8192;
                opts.host_budget = mode == HV_STREAM_PART ? 900000 : 0;
                begin(&o, rings[r], opts);
                whole_run(&o);
            }
        close_world(&o);
    }
}

static void modes_f32(void **state) { (void)state; modes(F32, FORWARD); }
static void modes_stored(void **state) { (void)state; modes(STORED, FORWARD); }
static void modes_stored_backward(void **state) { (void)state; modes(STORED, BACKWARD); }
static void modes_f16(void **state) { (void)state; modes(F16, BACKWARD); }
static void modes_i8(void **state) { (void)state; modes(I8, FORWARD); }
static void modes_f8(void **state) { (void)state; modes(F8, BACKWARD); }

/* The dtypes of the ring. */
static void converts(void **state)
{
    static const struct { enum kind kind; int convert; hv_dtype matrix, bias, kept, norm; } cases[] = {
        {F32, 0, HV_F32, HV_F32, HV_F32, HV_F32},       {F32, 1, HV_BF16, HV_F32, HV_BF16, HV_F32},
        {STORED, 0, HV_BF16, HV_F32, HV_F32, HV_F32},   {STORED, 1, HV_BF16, HV_BF16, HV_BF16, HV_F32},
        {F16, 0, HV_F16, HV_F32, HV_F16, HV_F32},       {F16, 1, HV_BF16, HV_F32, HV_BF16, HV_F32},
        {I8, 1, HV_I8, HV_BF16, HV_BF16, HV_F32},       {F8, 0, HV_F8_E4M3, HV_F32, HV_F32, HV_F32},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world o;
        open_world(&o, 0, cases[i].kind, FORWARD);
        o.convert = cases[i].convert;
        begin(&o, largest(&o), (struct hv_stream_opts){0});
        hv_weights_take(o.w, "double.1.qkv");
        assert_int_equal(hv_weight(o.w, "double.1.qkv.weight").dtype, cases[i].matrix);
        assert_int_equal(hv_weight(o.w, "double.1.qkv.bias").dtype, cases[i].bias);
        hv_weights_give(o.w, "double.1.qkv");
        hv_weights_take(o.w, "adapter.0");
        assert_int_equal(hv_weight(o.w, "adapter.to_q.weight").dtype, cases[i].kept);
        assert_int_equal(hv_weight(o.w, "adapter.norm.weight").dtype, cases[i].norm);
        hv_weights_give(o.w, "adapter.0");
        whole_run(&o);
        close_world(&o);
    }
}

/* Jumps, repetitions, other successors, in any order. */
static void random_orders(void **state)
{
    (void)state;
    for (int round = 0; round < 24; round++) {
        struct world o;
        open_world(&o, round % 3 > 0, (enum kind)(round % KINDS), (enum order)(round / 2 % 2));
        o.seed = (uint64_t)round * 977 + 1;
        for (int g = 0; g < o.list.groups; g++)
            o.keep[g] = round % 4 == 3 && !chance(&o, 4);
        const size_t least = largest(&o), n = least + (size_t)chance(&o, (unsigned)(everything(&o) - least));
        struct hv_stream_opts opts = {.mode = (enum hv_stream_mode)(round % HV_STREAM_MODES), .threads = 1 + round % 4};
        opts.poison = round % 5 == 0;
        opts.host_budget = round % 7 ? 0 : 600000;
        begin(&o, round % 2 ? least : n, opts);
        int g = 0;
        for (int i = 0; i < 300; i++) {
            const unsigned what = chance(&o, 20);
            if (what == 0)
                g = (int)chance(&o, (unsigned)o.list.groups);
            else if (what == 1)
                hv_weights_next(o.w, o.list.group[chance(&o, (unsigned)o.list.groups)]);
            else if (what > 2)                          /* else the same group again */
                g = g + 1 < o.list.groups ? g + 1 : o.list.cycle;
            pass(&o, g);
        }
        no_fault(&o);
        close_world(&o);
    }
}

/* Time changes nothing: the copies late, the computation late, and both with space spoiled after its use. */
static void delays(void **state)
{
    static const struct { double copy, compute; } d[] = {{0.002, 0}, {0, 0.002}, {0.001, 0.001}, {0, 0}};

    (void)state;
    for (int lanes = 0; lanes < 2; lanes++)
        for (int i = 0; i < 4; i++)
            for (int poison = 0; poison < 2; poison++) {
                struct world o;
                open_world(&o, lanes, i % 2 ? STORED : I8, FORWARD);
                o.keep[named(&o, "double.1.img")] = (uint8_t)poison;
                begin(&o, largest(&o) * (size_t)(2 + i) / 2, (struct hv_stream_opts){
                      .mode = i < 2 ? HV_STREAM_PIN : HV_STREAM_MAP, .delay_copy = d[i].copy, .delay_compute = d[i].compute,
                      .poison = poison});
                whole_run(&o);
                close_world(&o);
            }
}

/* A ring that holds the last groups: steps that use nothing else copy nothing. */
static void cached_tail(void **state)
{
    (void)state;
    for (int lanes = 0; lanes < 2; lanes++) {
        struct world o;
        open_world(&o, lanes, STORED, FORWARD);
        const int tail = named(&o, "single.1.qkv"), end = o.list.groups;
        size_t bytes = 0;
        for (int g = tail; g < end; g++)
            bytes += need(&o, g);
        begin(&o, bytes < largest(&o) ? largest(&o) : bytes + 4096, (struct hv_stream_opts){.mode = HV_STREAM_PIN});
        pass_range(&o, 0, tail);
        hv_weights_next(o.w, "single.1.qkv");
        pass_range(&o, tail, end);
        pass_range(&o, tail, end);
        no_fault(&o);
        const uint64_t before = stats(&o).groups;
        for (int step = 0; step < 5; step++)
            pass_range(&o, tail, end);
        no_fault(&o);
        assert_true(stats(&o).groups == before);
        /* And back to whole steps. */
        hv_weights_next(o.w, "stem");
        pass_range(&o, tail, end);
        pass_range(&o, o.list.cycle, end);
        no_fault(&o);
        assert_true(stats(&o).groups > before);
        close_world(&o);
    }
}

/* A ring for all: each group is copied once. Residents: the same, and they are where they were. */
static void copied_once(void **state)
{
    (void)state;
    for (int some = 0; some < 2; some++) {
        struct world o;
        open_world(&o, 1, STORED, FORWARD);
        for (int g = 0; g < o.list.groups; g++)
            o.keep[g] = (uint8_t)(!some || g % 3 == 1);
        begin(&o, some ? everything(&o) : 0, (struct hv_stream_opts){.mode = HV_STREAM_REGISTER});
        whole_run(&o);
        whole_run(&o);
        struct hv_stream_stats s = stats(&o);
        assert_true(s.groups == (uint64_t)o.list.groups);
        assert_true(s.copies >= s.groups);
        assert_true(s.bytes <= everything(&o));
        close_world(&o);
    }
}

/* A sequence with an end: nothing is copied twice or pinned, and what is asked for again comes again. Matrices as F16. */
static void once(void **state)
{
    static const enum kind kinds[] = {F16, F32, STORED, I8};

    (void)state;
    for (int round = 0; round < 4 * HV_STREAM_MODES; round++) {
        struct world o;
        const enum hv_stream_mode mode = (enum hv_stream_mode)(round / 4);
        open_world(&o, round % 2, kinds[round % 4], FORWARD);
        o.matrices = HV_F16;
        const struct hv_stream_opts opts = {.mode = mode, .threads = 2, .once = 1, .poison = 1};
        struct hv_stream_stats s = begin(&o, round % 3 ? largest(&o) : everything(&o), opts);
        assert_true(s.mode == HV_STREAM_MAP || (s.mode == mode && mode >= HV_STREAM_REGISTER) || mode == HV_STREAM_AUTO);
        assert_true(s.pinned <= 8 * (8192 + 8192));     /* slots alone */
        pass_range(&o, 0, o.list.groups);
        no_fault(&o);
        usleep(2000);                                   /* time to fetch what should not be */
        assert_int_equal(stats(&o).groups, o.list.groups);
        pass(&o, 1);
        pass(&o, 2);
        no_fault(&o);
        close_world(&o);
    }
    /* Left to itself: few readers lock the mapping, many copy. */
    for (int many = 0; many < 2; many++) {
        struct world o;
        open_world(&o, 1, STORED, FORWARD);
        const struct hv_stream_stats s = begin(&o, largest(&o), (struct hv_stream_opts){.once = 1, .threads = many ? 8 : 7});
        assert_int_equal(s.mode, many ? HV_STREAM_MAP : HV_STREAM_REGISTER);
        close_world(&o);
    }
}

/* What the modes keep page-locked, how many copies they make, and that pinned ones never wait on the host. */
static void mode_figures(void **state)
{
    struct hv_stream_stats s;
    struct world o;

    (void)state;
    open_world(&o, 1, STORED, FORWARD);
    struct lanes *l = o.dev->impl;
    const size_t ring = 2 * largest(&o), chunk = 8192, slots = 4 * (chunk + 8192);
    size_t steps = 0;
    for (int g = o.list.cycle; g < o.list.groups; g++)
        steps += need(&o, g);

    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_PIN, .threads = 2});
    assert_int_equal(s.mode, HV_STREAM_PIN);
    assert_true(s.pinned == steps + slots);
    assert_true(s.locked == 0);
    pass_range(&o, 0, o.list.groups);
    no_fault(&o);
    s = stats(&o);
    const int syncs = l->syncs;
    for (int step = 0; step < 4; step++)
        pass_range(&o, o.list.cycle, o.list.groups);
    no_fault(&o);
    assert_int_equal(l->syncs, syncs);
    assert_true(stats(&o).copies - s.copies == stats(&o).groups - s.groups);    /* one a group */

    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_PIN, .threads = 2, .host_budget = steps / 2});
    assert_int_equal(s.mode, HV_STREAM_PART);
    assert_true(s.pinned <= steps / 2 && s.pinned > steps / 4);
    whole_run(&o);

    /* A mapping in windows; in order of use, a group is one copy, but for what had to be converted and cut. */
    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_REGISTER, .threads = 2});
    assert_int_equal(s.mode, HV_STREAM_REGISTER);
    whole_run(&o);
    assert_true(stats(&o).locked > 0);
    assert_true(stats(&o).pinned < slots + steps / 4);

    /* Refused at once: as with MAP; refused later: as far as it goes. */
    l->refuse_lock = 1;
    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_REGISTER, .threads = 2});
    assert_int_equal(s.mode, HV_STREAM_MAP);
    assert_true(s.pinned == slots);
    whole_run(&o);
    l->refuse_lock = 3;
    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_REGISTER, .threads = 2, .window = 65536});
    assert_int_equal(s.mode, HV_STREAM_REGISTER);
    whole_run(&o);
    l->refuse_lock = 0;

    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_DIRECT, .threads = 2});
    assert_true(s.mode == HV_STREAM_DIRECT || s.mode == HV_STREAM_MAP);

    s = begin(&o, ring, (struct hv_stream_opts){0});
    assert_int_equal(s.mode, HV_STREAM_REGISTER);

    /* No page-locked memory for all: what there is. For none: an error. */
    struct hv_err e = {0};
    hv_weights_unstream(o.w);
    l->pins = 2;
    s = begin(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_PIN});
    assert_int_equal(s.mode, HV_STREAM_PART);
    whole_run(&o);
    hv_weights_unstream(o.w);
    l->pins = 1;
    assert_int_equal(start(&o, ring, (struct hv_stream_opts){.mode = HV_STREAM_MAP}, &e), HV_ENOMEM);
    assert_int_equal(hv_weights_streamed(o.w), 0);
    assert_true(stats(&o).pinned == 0);
    l->pins = 0;
    assert_string_equal(hv_stream_mode_name(HV_STREAM_DIRECT), "direct");
    close_world(&o);
}

/* Groups beside each other, where they fit; both halves of a tensor. */
static void two_at_a_time(void **state)
{
    struct hv_err e = {0};
    struct world o;

    (void)state;
    open_world(&o, 1, STORED, FORWARD);
    begin(&o, everything(&o), (struct hv_stream_opts){0});
    for (int step = 0; step < 3; step++)
        for (int i = 0; i < 2; i++) {
            const int g = named(&o, i ? "single.1.qkv" : "single.0.qkv");
            hv_weights_take(o.w, o.list.group[g]);
            hv_weights_take(o.w, o.list.group[g + 1]);
            check_group(&o, g + 1);                     /* of a split tensor both halves are there */
            check_group(&o, g);
            hv_weights_give(o.w, o.list.group[g + 1]);
            check_group(&o, g);
            hv_weights_give(o.w, o.list.group[g]);
        }
    no_fault(&o);

    begin(&o, largest(&o), (struct hv_stream_opts){0});
    hv_weights_take(o.w, "double.0.img");
    hv_weights_take(o.w, "single.1.rest");
    assert_int_equal(hv_dev_sync(o.dev, &e), HV_ENOMEM);
    assert_non_null(strstr(e.msg, "single.1.rest beside double.0.img"));
    hv_weights_give(o.w, "single.1.rest");              /* after a fault nothing matters, and nothing hangs */
    hv_weights_take(o.w, "stem");
    assert_null(hv_weight(o.w, "stem.proj.bias").data);
    hv_weights_give(o.w, "stem");
    hv_weights_give(o.w, "double.0.img");
    close_world(&o);
}

/* ---- failures ---- */

static void misuse(void **state)
{
    static const char *const say[] = {"stem.proj.weight: its group stem is not taken", "never.weight: in no group",
                                      "stem: taken twice", "stem: given, but not taken", "nonsense: not a group",
                                      "linear9.weight: not in the list", "nonsense: not a group"};

    (void)state;
    for (int i = 0; i < 7; i++) {
        struct hv_err e = {0};
        struct world o;
        open_world(&o, 1, STORED, FORWARD);
        begin(&o, largest(&o), (struct hv_stream_opts){0});
        if (i == 2 || i == 1)
            hv_weights_take(o.w, "stem");
        switch (i) {
        case 0: assert_null(hv_weight(o.w, "stem.proj.weight").data); break;
        case 1: assert_null(hv_weight(o.w, "never.weight").data); break;
        case 2: hv_weights_take(o.w, "stem"); break;
        case 3: hv_weights_give(o.w, "stem"); break;
        case 4: hv_weights_take(o.w, "nonsense"); break;
        case 5: hv_weight(o.w, "single.%d.linear9.weight", 0); break;
        default: hv_weights_next(o.w, "nonsense"); break;
        }
        assert_int_equal(hv_dev_sync(o.dev, &e), HV_EINPUT);
        if (!strstr(e.msg, say[i]))
            fail_msg("'%s' does not say '%s'", e.msg, say[i]);
        close_world(&o);
    }
}

static void sizes_refused(void **state)
{
    struct hv_err e = {0}, e2 = {0}, e3 = {0};
    struct hv_wlist plain = {0};
    struct world o;

    (void)state;
    open_world(&o, 0, STORED, FORWARD);
    assert_int_equal(start(&o, largest(&o) - 256, (struct hv_stream_opts){0}, &e), HV_EINPUT);
    if (!strstr(e.msg, "group single.0.rest needs"))
        fail_msg("'%s'", e.msg);
    o.keep[3] = 1;
    struct hv_stream_opts opts = {.ring = bytes_of(&o, &o.ring, largest(&o)), .keep = o.keep,
                                  .resident = bytes_of(&o, &o.resident, need(&o, 3) - 256)};
    assert_int_equal(hv_weights_stream(o.w, &opts, &e2), HV_EINPUT);
    assert_non_null(strstr(e2.msg, "resident"));
    hv_weights_close(o.w);

    hv_wlist_add(&plain, HV_BF16, HV_KEEP, 1, (int64_t[]){50}, "before.0.bias");
    assert_int_equal(hv_weights_open(&o.w, o.dev, path, &plain, &e3), 0);
    assert_int_equal(hv_weights_stream(o.w, &opts, &e3), HV_EINPUT);
    assert_non_null(strstr(e3.msg, "no groups"));
    hv_wlist_close(&plain);
    close_world(&o);
}

/* A file that is cut after it was opened: an error with its name and numbers, no signal. */
static void cut_file(void **state)
{
    static const enum hv_stream_mode mode[] = {HV_STREAM_MAP, HV_STREAM_DIRECT, HV_STREAM_PIN};

    (void)state;
    for (int lanes = 0; lanes < 2; lanes++)
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < 2; k++) {
                struct hv_err e = {0};
                struct stat st;
                struct world o;
                open_world(&o, lanes, k ? F32 : STORED, FORWARD);
                assert_int_equal(stat(path, &st), 0);
                if (mode[i] != HV_STREAM_PIN)
                    begin(&o, largest(&o), (struct hv_stream_opts){.mode = mode[i], .chunk = (size_t)128 << 10});
                assert_int_equal(truncate(path, st.st_size / 3), 0);
                if (mode[i] == HV_STREAM_PIN)
                    start(&o, largest(&o), (struct hv_stream_opts){.mode = mode[i]}, &e);
                for (int g = 0; !e.code && g < o.list.groups; g++) {
                    hv_weights_take(o.w, o.list.group[g]);
                    hv_weights_give(o.w, o.list.group[g]);
                    hv_dev_sync(o.dev, &e);
                }
                assert_int_equal(e.code, HV_EIO);
                if (!strstr(e.msg, path) || !strstr(e.msg, "cut short") || !strstr(e.msg, "weight"))
                    fail_msg("'%s'", e.msg);
                close_world(&o);
            }
}

/* A name that leads to another file by now does not matter; nor does one that is gone. */
static void renamed_file(void **state)
{
    struct world o;

    (void)state;
    open_world(&o, 1, STORED, FORWARD);
    assert_int_equal(unlink(path), 0);
    for (int mode = HV_STREAM_PIN; mode < HV_STREAM_MODES; mode++) {
        begin(&o, largest(&o), (struct hv_stream_opts){.mode = (enum hv_stream_mode)mode, .chunk = (size_t)128 << 10});
        whole_run(&o);
    }
    close_world(&o);
}

/* The end may come at any time: right away, with copies on their way, with a group taken. */
static void closed_early(void **state)
{
    (void)state;
    for (int i = 0; i < 40; i++) {
        struct world o;
        open_world(&o, 1, STORED, FORWARD);
        o.seed = (uint64_t)i;
        const struct hv_stream_opts opts = {.mode = (enum hv_stream_mode)(i % HV_STREAM_MODES),
                                            .delay_copy = i % 2 ? 0.001 : 0};
        begin(&o, largest(&o) * (size_t)(1 + i % 3), opts);
        const int n = (int)chance(&o, 12);
        pass_range(&o, 0, n);
        if (i % 3 == 0)
            hv_weights_take(o.w, o.list.group[n]);
        if (i % 4 == 0)
            hv_weights_unstream(o.w);
        close_world(&o);
    }
}

/* ---- other sources ---- */

static void *write_pipe(void *to)
{
    FILE *f = fopen(path, "rb"), *out = fopen(to, "wb");
    char block[4096];
    size_t n;

    while (f && out && (n = fread(block, 1, sizeof block, f)))
        if (fwrite(block, 1, n, out) != n)
            break;
    if (f)
        fclose(f);
    if (out)
        fclose(out);
    return NULL;
}

static void from_a_pipe(void **state)
{
    char fifo[sizeof path + 8];

    (void)state;
    snprintf(fifo, sizeof fifo, "%s.fifo", path);
    for (int k = 0; k < KINDS; k++) {
        struct hv_err e = {0};
        struct world o;
        pthread_t writer;
        open_world(&o, 1, (enum kind)k, BACKWARD);
        hv_weights_close(o.w);
        assert_int_equal(mkfifo(fifo, 0600), 0);
        assert_int_equal(pthread_create(&writer, NULL, write_pipe, fifo), 0);
        assert_int_equal(hv_weights_open(&o.w, o.dev, fifo, &o.list, &e), 0);
        pthread_join(writer, NULL);
        unlink(fifo);
        for (int mode = 0; mode < HV_STREAM_MODES; mode++) {
            const struct hv_stream_opts opts = {.mode = (enum hv_stream_mode)mode};
            const struct hv_stream_stats s = begin(&o, largest(&o), opts);
            assert_true(s.mode == HV_STREAM_MAP || s.mode == HV_STREAM_PIN || s.mode == HV_STREAM_PART);
            whole_run(&o);
        }
        close_world(&o);
    }
}

static void open_synthetic(struct world *o, int lanes, struct hv_synth_opts s)
{
    struct hv_err e = {0};

    open_devices(o, lanes);
    assert_int_equal(hv_weights_open_synth(&o->w, o->dev, &o->list, &s, &e), 0);
    assert_int_equal(hv_weights_open_synth(&o->truth, o->cpu, &o->list, &s, &e), 0);
}

/* The values are those of weights made in place. */
static void synthetic(void **state)
{
    static const hv_dtype quant[] = {HV_NONE, HV_I8, HV_F8_E4M3};

    (void)state;
    for (int i = 0; i < 12; i++) {
        struct world o;
        open_synthetic(&o, i % 2, (struct hv_synth_opts){.seed = 5, .as_stored = i / 2 % 2, .quant = quant[i / 4]});
        for (int mode = 0; mode < HV_STREAM_MODES; mode++) {
            begin(&o, largest(&o) * 3 / 2, (struct hv_stream_opts){.mode = (enum hv_stream_mode)mode});
            whole_run(&o);
        }
        close_world(&o);
    }
}

/* One copy for groups of a kind: the first one's values, finite and of their size. */
static void shared(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        struct world o;
        open_synthetic(&o, 1, (struct hv_synth_opts){.seed = 5, .as_stored = 1, .share = 1, .quant = k ? HV_I8 : HV_NONE});
        if (k == 2)
            o.keep[named(&o, "single.0.qkv")] = 1;
        const struct hv_stream_opts opts = {.mode = HV_STREAM_MAP, .host_budget = 1};
        const struct hv_stream_stats s = begin(&o, 2 * largest(&o), opts);
        size_t once = 0;
        for (int g = o.list.cycle; g < o.list.groups; g++)
            once += strstr(o.list.group[g], ".1.") && !(k == 2 && g == named(&o, "single.1.qkv")) ? 0 : need(&o, g);
        if (k == 2)
            once -= need(&o, named(&o, "single.0.qkv"));
        assert_int_equal(s.mode, HV_STREAM_PIN);
        assert_true(s.pinned > once && s.pinned <= once + 16 * (8192 + 8192));
        for (int step = 0; step < 3; step++)
            for (int g = step ? o.list.cycle : 0; g < o.list.groups; g++) {
                hv_weights_take(o.w, o.list.group[g]);
                if (!strstr(o.list.group[g], ".1."))
                    check_group(&o, g);
                else if (!strcmp(o.list.group[g], "double.1.img"))
                    expect(&o, "shared", hv_weight(o.w, "double.1.fc1.weight").data,
                           hv_weight(o.truth, "double.0.fc1.weight").data, k ? HV_I8 : HV_BF16, k ? HV_I8 : HV_BF16, 512 * 128);
                hv_weights_give(o.w, o.list.group[g]);
            }
        no_fault(&o);
        close_world(&o);
    }
}

/* Quantized synthetic matrices spread as the others do. */
static void synthetic_spread(void **state)
{
    struct world o;

    (void)state;
    for (int k = 0; k < 2; k++) {
        open_synthetic(&o, 0, (struct hv_synth_opts){.seed = 2, .quant = k ? HV_F8_E4M3 : HV_I8});
        const hv_tensor t = hv_weight(o.truth, "double.0.fc1.weight");
        const size_t n = (size_t)hv_count(t);
        float *v = malloc(n * sizeof *v);
        double sum = 0, square = 0;
        assert_int_equal(t.dtype, k ? HV_F8_E4M3 : HV_I8);
        hv_to_f32(v, t.dtype, t.data, n);
        for (size_t i = 0; i < n; i++) {
            assert_true(v[i] == v[i]);
            sum += (double)(v[i] * t.scale[i / 128]);
            square += (double)(v[i] * t.scale[i / 128]) * (double)(v[i] * t.scale[i / 128]);
        }
        assert_true(sum / (double)n < 0.002 && sum / (double)n > -0.002);
        /* r sqrt(3 / fan_in) has the variance 1 / fan_in. */
        assert_true(square / (double)n > 0.95 / 128 && square / (double)n < 1.05 / 128);
        free(v);
        close_world(&o);
    }
}

/* ---- a GPU without a stream ---- */

static void uploads(void **state)
{
    (void)state;
    for (int k = 0; k < KINDS + 1; k++) {
        struct world o;
        if (k == KINDS)
            open_synthetic(&o, 1, (struct hv_synth_opts){.seed = 5, .as_stored = 1, .quant = HV_I8});
        else
            open_world(&o, 1, (enum kind)k, FORWARD);
        o.convert = 0;
        for (int step = 0; step < 2; step++)
            for (int g = 0; g < o.list.groups; g++) {
                hv_weights_take(o.w, o.list.group[g]);
                for (int i = 0; i < o.list.n; i++)
                    if (o.list.w[i].group == g)
                        check_tensor(&o, i, 0, o.list.w[i].shape[0]);
                no_fault(&o);
                hv_weights_give(o.w, o.list.group[g]);
            }
        hv_weights_take(o.w, "double.0.");
        const hv_tensor a = hv_weight(o.w, "double.0.fc1.weight"), b = hv_weight(o.w, "double.0.fc1.weight");
        assert_ptr_equal(a.data, b.data);
        check_tensor(&o, named(&o, "stem"), 0, o.list.w[named(&o, "stem")].shape[0]);      /* of no prefix: until the end */
        hv_weights_give(o.w, "double.0.");
        no_fault(&o);
        close_world(&o);
    }
}

static int setup(void **state)
{
    const int fd = mkstemp(path);

    (void)state;
    return fd < 0 || close(fd);
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_groups),   cmocka_unit_test(list_copies),  cmocka_unit_test(modes_f32),
        cmocka_unit_test(modes_stored),  cmocka_unit_test(modes_stored_backward), cmocka_unit_test(modes_f16),
        cmocka_unit_test(modes_i8),      cmocka_unit_test(modes_f8),     cmocka_unit_test(converts),
        cmocka_unit_test(random_orders), cmocka_unit_test(delays),       cmocka_unit_test(cached_tail),
        cmocka_unit_test(copied_once),   cmocka_unit_test(mode_figures), cmocka_unit_test(two_at_a_time),
        cmocka_unit_test(misuse),        cmocka_unit_test(sizes_refused), cmocka_unit_test(cut_file),
        cmocka_unit_test(closed_early),  cmocka_unit_test(from_a_pipe),  cmocka_unit_test(synthetic),
        cmocka_unit_test(shared),        cmocka_unit_test(synthetic_spread), cmocka_unit_test(uploads),
        cmocka_unit_test(renamed_file),  cmocka_unit_test(once),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
