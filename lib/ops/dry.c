/* dry.c - the backend that computes nothing. Shapes, bytes and flops were already checked and counted by ops.c, so that a
 * forward at full size is checked on any machine in milliseconds. */
#include "ops/backend.h"

#include <string.h>

static int open_dry(struct hv_dev *d, int index, struct hv_err *e)
{
    (void)d, (void)index, (void)e;
    return 0;
}

/* The token is never read: tensors of the dry device have no data. */
static void *alloc(struct hv_dev *d, size_t bytes)
{
    (void)bytes;
    return d;
}

static void close_dry(struct hv_dev *d) { (void)d; }
static void free_dry(struct hv_dev *d, void *p) { (void)d, (void)p; }
static void sync_dry(struct hv_dev *d) { (void)d; }

/* A download gives zeros: a caller that reads them goes on with defined values. */
static void download(struct hv_dev *d, hv_tensor dst, hv_tensor src)
{
    if (dst.ndim && !hv_is_contiguous(dst)) {
        for (int64_t i = 0; i < dst.shape[0]; i++)
            download(d, hv_index(dst, i), src);
        return;
    }
    memset(dst.data, 0, hv_nbytes(dst));
}

typedef struct hv_dev dev;
typedef hv_tensor T;

static void two(dev *d, T a, T b) { (void)d, (void)a, (void)b; }
static void three(dev *d, T a, T b, T c) { (void)d, (void)a, (void)b, (void)c; }
static void fill(dev *d, T y, float v) { (void)d, (void)y, (void)v; }
static void gather_rows(dev *d, T y, T t, const int32_t *ids) { (void)d, (void)y, (void)t, (void)ids; }
static void activation(dev *d, T y, T x, enum hv_act a) { (void)d, (void)y, (void)x, (void)a; }
static void linear(dev *d, T y, T x, T w, T b, enum hv_act a) { (void)d, (void)y, (void)x, (void)w, (void)b, (void)a; }
static void attention(dev *d, T o, T q, T k, T v, const struct hv_attn *a)
{
    (void)d, (void)o, (void)q, (void)k, (void)v, (void)a;
}
static void norm(dev *d, T y, T x, T w, T b, float eps) { (void)d, (void)y, (void)x, (void)w, (void)b, (void)eps; }
static void rms_norm(dev *d, T y, T x, T w, float eps) { (void)d, (void)y, (void)x, (void)w, (void)eps; }
static void qk_norm_rope(dev *d, T x, int heads, T w, float eps, const struct hv_rope *r)
{
    (void)d, (void)x, (void)heads, (void)w, (void)eps, (void)r;
}
static void rope_half(dev *d, T x, int heads, T c, T s) { (void)d, (void)x, (void)heads, (void)c, (void)s; }
static void conv(dev *d, T y, T x, T w, T b, const struct hv_conv *p)
{
    (void)d, (void)y, (void)x, (void)w, (void)b, (void)p;
}
static void group_norm(dev *d, T y, T x, T s, double n, T w, T b, float eps, enum hv_act a)
{
    (void)d, (void)y, (void)x, (void)s, (void)n, (void)w, (void)b, (void)eps, (void)a;
}
static void max_pool(dev *d, T y, T x, int k, int s, int p, int c)
{
    (void)d, (void)y, (void)x, (void)k, (void)s, (void)p, (void)c;
}
static void patch(dev *d, T y, T x, const int p[3]) { (void)d, (void)y, (void)x, (void)p; }

static void linears(dev *d, int n, const T *y, T x, const T *w, const T *b, enum hv_act a)
{
    (void)d, (void)n, (void)y, (void)x, (void)w, (void)b, (void)a;
}
static void row_stats(dev *d, T s, T x, float eps) { (void)d, (void)s, (void)x, (void)eps; }
static void norm_modulate(dev *d, T y, T x, T st, T sh, T sc) { (void)d, (void)y, (void)x, (void)st, (void)sh, (void)sc; }

static int lock_dry(dev *d, const void *p, size_t n)
{
    (void)d, (void)p, (void)n;
    return 0;
}
static void unlock_dry(dev *d, const void *p) { (void)d, (void)p; }
static void move(dev *d, enum hv_lane l, void *dst, size_t dp, const void *src, size_t sp, size_t w, size_t r)
{
    (void)d, (void)l, (void)dst, (void)dp, (void)src, (void)sp, (void)w, (void)r;
}
static void *event_open(dev *d) { return d; }
static void event(dev *d, void *e) { (void)d, (void)e; }
static void event_lane(dev *d, void *e, enum hv_lane l) { (void)d, (void)e, (void)l; }
static void delay(dev *d, enum hv_lane l, double s) { (void)d, (void)l, (void)s; }
static double elapsed(dev *d, void *a, void *b)
{
    (void)d, (void)a, (void)b;
    return 0;
}
static int info(dev *d, struct hv_dev_info *i)
{
    (void)d;
    strcpy(i->name, "dry");
    return 0;
}

const struct hv_backend hv_backend_dry = {
    .name = "dry", .kind = HV_DRY, .open = open_dry, .close = close_dry, .alloc = alloc, .free = free_dry, .sync = sync_dry,
    .upload = two, .download = download, .copy = two, .fill = fill, .gather_rows = gather_rows, .add = three,
    .activation = activation, .swiglu = three, .linear = linear, .attention = attention, .layer_norm = norm,
    .rms_norm = rms_norm, .row_stats = row_stats, .norm_modulate = norm_modulate, .linears = linears, .dequantize = two,
    .pin = alloc, .unpin = free_dry, .lock = lock_dry, .unlock = unlock_dry, .move = move, .event_open = event_open,
    .event_close = event, .event_record = event_lane, .event_wait = event_lane, .event_sync = event, .delay = delay,
    .elapsed = elapsed, .info = info,
    .qk_norm_rope = qk_norm_rope, .rope_half = rope_half,
    .gated_add = three, .masked_add = three, .conv = conv, .group_sums = two, .group_norm = group_norm,
    .max_pool = max_pool, .upsample2 = two, .patchify = patch, .unpatchify = patch,
};
