#define _GNU_SOURCE
#include "mem/source.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mem/plan.h"
#include "mem/synth.h"
#include "mem/synth_kernel.h"

int hv_is_quantized(hv_dtype t)
{
    return t == HV_I8 || t == HV_F8_E4M3;
}

/* ---- parts ---- */

/* The dtype of a tensor in the ring. */
static hv_dtype ring_dtype(const struct hv_wspec *s, hv_dtype stored, hv_dtype matrices)
{
    if (s->ndim < 2)
        return matrices && stored == HV_BF16 ? HV_BF16 : HV_F32;
    return matrices && !hv_is_quantized(stored) ? matrices : stored;
}

/* The dtype of a tensor in the source. */
static hv_dtype source_dtype(const struct hv_weights *w, int i)
{
    const struct hv_wspec *s = &w->list.w[i];

    if (w->slot[i].entry)
        return w->slot[i].entry->dtype;
    if (w->is_synth && s->ndim == 2 && s->quant == HV_QUANT && hv_is_quantized(w->synth.quant))
        return w->synth.quant;
    return w->is_synth && !w->synth.as_stored ? HV_F32 : s->dtype;
}

/* Where the values are: element `first` of an entry, or of what is in memory. */
static void place(const struct hv_weights *w, struct hv_part *p, const struct hv_entry *entry, int64_t first)
{
    const struct hv_slot *k = &w->slot[p->tensor];
    const int vector = !p->is_scale && w->list.w[p->tensor].ndim < 2;

    if (!entry)
        return;
    p->offset = w->data_at + entry->begin + (uint64_t)first * hv_dtype_size(p->from);
    p->raw = w->fd >= 0 && p->from == p->to;
    if (p->raw)
        return;
    if (vector && p->to == HV_F32 && k->owned) {                    /* widened when the file was opened */
        p->memory = (const char *)k->owned + (size_t)first * sizeof(float);
        p->from = HV_F32;
    } else if (w->fd < 0) {
        p->memory = (const char *)hv_in_data(w->in, entry) + (size_t)first * hv_dtype_size(p->from);
    }
}

static size_t aligned(size_t n)
{
    return (n + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN;
}

int hv_parts(const struct hv_weights *w, int group, hv_dtype matrices, struct hv_part *part, size_t *bytes)
{
    size_t at = 0;
    int n = 0;

    for (int i = 0; i < w->list.n; i++) {
        const struct hv_wspec *s = &w->list.w[i];
        int64_t row, rows = hv_wlist_rows(s, group, &row);
        if (!rows)
            continue;
        const int64_t columns = hv_shape_count(s->ndim, s->shape) / (s->ndim ? s->shape[0] : 1);
        const hv_dtype from = source_dtype(w, i), to = ring_dtype(s, from, matrices);
        for (int scale = 0; scale <= (hv_is_quantized(from) && s->ndim >= 2); scale++) {
            struct hv_part p = {.tensor = i, .is_scale = scale, .row = row, .rows = rows, .at = at};
            p.from = scale ? HV_F32 : from;
            p.to = scale ? HV_F32 : to;
            p.bytes = (size_t)(rows * (scale ? 1 : columns)) * hv_dtype_size(p.to);
            place(w, &p, scale ? w->slot[i].scale : w->slot[i].entry, row * (scale ? 1 : columns));
            at = aligned(at + p.bytes);
            if (part)
                part[n] = p;
            n++;
        }
    }
    *bytes = at;
    return n;
}

int64_t hv_weights_group_bytes(const struct hv_weights *w, int group, int convert)
{
    size_t bytes;

    hv_parts(w, group, convert || w->dev->kind != HV_HOST ? HV_BF16 : HV_NONE, NULL, &bytes);
    return (int64_t)bytes;
}

/* ---- reading ---- */

int hv_source_pread(const struct hv_weights *w, int fd, uint64_t offset, size_t n, void *dst, const char *what,
                    struct hv_err *e)
{
    size_t done = 0;

    while (done < n) {
        const ssize_t got = pread(fd, (char *)dst + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return hv_fail(e, HV_EIO, "%s: %s: %zu bytes at %llu: %s", hv_in_path(w->in), what, n,
                           (unsigned long long)offset, strerror(errno));
        if (!got)
            return hv_fail(e, HV_EIO, "%s: %s: cut short: %zu bytes at %llu, of a file that had %llu", hv_in_path(w->in),
                           what, n, (unsigned long long)offset, (unsigned long long)w->file_bytes);
        done += (size_t)got;
    }
    return 0;
}

/* n elements of one dtype as another, in blocks: `wide` holds `block` floats. */
static void convert_block(hv_dtype to, void *dst, hv_dtype from, const void *src, size_t n, float *wide, size_t block)
{
    for (size_t i = 0; i < n; i += block) {
        const size_t k = n - i < block ? n - i : block;
        hv_to_f32(wide, from, (const char *)src + i * hv_dtype_size(from), k);
        hv_from_f32(to, (char *)dst + i * hv_dtype_size(to), wide, k);
    }
}

static void synthesize(const struct hv_weights *w, const struct hv_part *p, hv_dtype t, uint64_t first, size_t n,
                       void *dst)
{
    const struct hv_wspec *s = &w->list.w[p->tensor];

    if (p->is_scale) {
        const float v = hv_synth_scale(w->synth.quant, s);
        for (size_t i = 0; i < n; i++)
            ((float *)dst)[i] = v;
    } else if (hv_is_quantized(t)) {
        hv_synth_quantized(t, dst, s->name, w->synth.seed, first, n);
    } else {
        hv_synth_as(t, dst, s->name, s->ndim, s->shape, w->synth.seed, w->synth.gain, first, n);
    }
}

/* Elements [first, first + n) of a synthetic part. F32 is rounded while it is made; what was rounded once is made
 * first. */
static void read_synthetic(const struct hv_weights *w, const struct hv_part *p, size_t first, size_t n, char *dst,
                           char *scratch)
{
    const struct hv_wspec *s = &w->list.w[p->tensor];
    const uint64_t columns = p->is_scale ? 1 : (uint64_t)(hv_shape_count(s->ndim, s->shape) / (s->ndim ? s->shape[0] : 1));
    const uint64_t begin = (uint64_t)p->row * columns + first;
    const size_t block = HV_SOURCE_SCRATCH / 8;
    float *wide = (float *)(void *)(scratch + HV_SOURCE_SCRATCH / 2);

    if (p->from == p->to || p->from == HV_F32) {
        synthesize(w, p, p->to, begin, n, dst);
        return;
    }
    for (size_t i = 0; i < n; i += block) {
        const size_t k = n - i < block ? n - i : block;
        synthesize(w, p, p->from, begin + i, k, scratch);
        convert_block(p->to, dst + i * hv_dtype_size(p->to), p->from, scratch, k, wide, block);
    }
}

int hv_source_read(const struct hv_weights *w, const struct hv_part *p, size_t first, size_t n, void *dst, void *scratch,
                   struct hv_err *e)
{
    const char *name = w->list.w[p->tensor].name;
    const size_t from = hv_dtype_size(p->from), to = hv_dtype_size(p->to), block = HV_SOURCE_SCRATCH / 8;
    float *wide = (float *)(void *)((char *)scratch + HV_SOURCE_SCRATCH / 2);

    if (p->raw)
        return hv_source_pread(w, w->fd, p->offset + first, n, dst, name, e);
    if (w->is_synth) {
        read_synthetic(w, p, first / to, n / to, dst, scratch);
        return 0;
    }
    if (p->memory && p->from == p->to) {
        memcpy(dst, p->memory + first, n);
        return 0;
    }
    for (size_t i = first / to, end = (first + n) / to; i < end; i += block) {
        const size_t k = end - i < block ? end - i : block;
        const char *src = p->memory ? p->memory + i * from : scratch;
        if (!p->memory && hv_source_pread(w, w->fd, p->offset + i * from, k * from, scratch, name, e))
            return e->code;
        convert_block(p->to, (char *)dst + (i * to - first), p->from, src, k, wide, block);
    }
    return 0;
}

/* ---- synthetic bytes ---- */

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * HV_SYNTH_MIX1;
    x = (x ^ x >> 27) * HV_SYNTH_MIX2;
    return x ^ x >> 31;
}

/* The value of each byte: 255 of them spread evenly over the dtype's range. */
static void byte_table(hv_dtype t, uint8_t table[256])
{
    for (int i = 0; i < 256; i++) {
        const int v = i > 127 ? i - 256 : i, q = v < -127 ? -127 : v;
        table[i] = t == HV_I8 ? (uint8_t)q : hv_f32_to_e4m3((float)q * (448.0f / 127.0f));
    }
}

void hv_synth_quantized(hv_dtype t, void *dst, const char *name, uint64_t seed, uint64_t first, size_t n)
{
    uint64_t state = seed * 0xD1B54A32D192ED03u, x = 0;
    uint8_t table[256], *q = dst;

    for (; *name; name++)
        state = (state ^ (unsigned char)*name) * 0x100000001B3u;
    byte_table(t, table);
    for (uint64_t i = first; i < first + n; i++) {
        if (i == first || !(i % 8))
            x = mixed(state + (i / 8 + 1) * HV_SYNTH_STEP);
        q[i - first] = table[x >> 8 * (i % 8) & 255];
    }
}

float hv_synth_scale(hv_dtype t, const struct hv_wspec *s)
{
    const double fan_in = s->ndim == 2 ? (double)s->shape[1] : 1;

    return (float)(sqrt(3 / fan_in) / (t == HV_I8 ? 127 : 448));
}
