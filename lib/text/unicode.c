#include "text/unicode.h"

#include <stdlib.h>

#include "text/unicode_data.h"

#define MASK21 0x1FFFFFu

/* ---- strings ---- */

int hv_cps_push(struct hv_cps *s, uint32_t c, struct hv_err *e)
{
    if (s->n == s->cap) {
        const size_t cap = s->cap ? 2 * s->cap : 64;
        uint32_t *p = realloc(s->c, cap * sizeof *p);
        if (!p)
            return hv_fail(e, HV_ENOMEM, "text: out of memory");
        s->c = p;
        s->cap = cap;
    }
    s->c[s->n++] = c;
    return 0;
}

void hv_cps_close(struct hv_cps *s)
{
    free(s->c);
    *s = (struct hv_cps){0};
}

int hv_utf8_get(const char *s, size_t n, uint32_t *c)
{
    const unsigned char *p = (const unsigned char *)s;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const int len = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;

    if (!len || (size_t)len > n)
        return 0;
    *c = len == 1 ? p[0] : p[0] & (0x7Fu >> len);
    for (int i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return 0;
        *c = *c << 6 | (p[i] & 0x3Fu);
    }
    return *c < least[len] || *c > 0x10FFFF || (*c >= 0xD800 && *c < 0xE000) ? 0 : len;
}

int hv_utf8_put(char buf[4], uint32_t c)
{
    const int len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned head[5] = {0, 0, 0xC0, 0xE0, 0xF0};

    for (int i = len - 1; i > 0; i--, c >>= 6)
        buf[i] = (char)(0x80u | (c & 0x3Fu));
    buf[0] = (char)(head[len] | c);
    return len;
}

size_t hv_utf8_check(const char *s, size_t n)
{
    uint32_t c;

    for (size_t i = 0; i < n;) {
        const int len = hv_utf8_get(s + i, n - i, &c);
        if (!len)
            return i;
        i += (size_t)len;
    }
    return n;
}

int hv_cps_from_utf8(struct hv_cps *out, const char *s, size_t n, struct hv_err *e)
{
    uint32_t c;

    for (size_t i = 0; i < n;) {
        const int len = hv_utf8_get(s + i, n - i, &c);
        if (!len)
            return hv_fail(e, HV_EINPUT, "text is not UTF-8: byte 0x%02x at offset %zu", (unsigned char)s[i], i);
        if (hv_cps_push(out, c, e))
            return e->code;
        i += (size_t)len;
    }
    return 0;
}

/* ---- properties ---- */

/* Value of the last run that starts at or before c; runs are code point << shift | value. */
static unsigned run_value(const uint32_t *run, int n, int shift, uint32_t c)
{
    int lo = 0, hi = n;

    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if (run[mid] >> shift <= c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? run[lo - 1] & ((1u << shift) - 1) : 0;
}

unsigned hv_uc(uint32_t c)
{
    return run_value(hv_uc_flags, hv_uc_flags_n, 4, c);
}

int hv_uc_is_white(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x85 || c == 0x2028 || c == 0x2029 || (c >= 0x20 && (hv_uc(c) & HV_UC_SPACE));
}

static unsigned ccc(uint32_t c)
{
    return c < 0x300 ? 0 : run_value(hv_uc_ccc, hv_uc_ccc_n, 8, c);
}

/* ---- NFC ---- */

enum { S_BASE = 0xAC00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, L_N = 19, V_N = 21, T_N = 28, S_N = L_N * V_N * T_N };

static int decompose(struct hv_cps *out, uint32_t c, struct hv_err *e)
{
    int lo = 0, hi = hv_uc_decomp_n;

    if (c < 0xC0)
        return hv_cps_push(out, c, e);
    if (c >= S_BASE && c < S_BASE + S_N) {
        const uint32_t s = c - S_BASE, t = s % T_N;
        if (hv_cps_push(out, L_BASE + s / (V_N * T_N), e) || hv_cps_push(out, V_BASE + s / T_N % V_N, e))
            return e->code;
        return t ? hv_cps_push(out, T_BASE + t, e) : 0;
    }
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if ((hv_uc_decomp[mid] & MASK21) < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == hv_uc_decomp_n || (hv_uc_decomp[lo] & MASK21) != c)
        return hv_cps_push(out, c, e);
    const uint32_t first = (uint32_t)(hv_uc_decomp[lo] >> 21) & MASK21, second = (uint32_t)(hv_uc_decomp[lo] >> 42) & MASK21;
    if (decompose(out, first, e))                           /* a decomposition goes a few steps deep at most */
        return e->code;
    return second ? hv_cps_push(out, second, e) : 0;        /* the second is never decomposable */
}

/* The composite of a pair, 0 if there is none. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (b < 0x300)
        return 0;
    if (a >= L_BASE && a < L_BASE + L_N && b >= V_BASE && b < V_BASE + V_N)
        return S_BASE + ((a - L_BASE) * V_N + (b - V_BASE)) * T_N;
    if (a >= S_BASE && a < S_BASE + S_N && (a - S_BASE) % T_N == 0 && b > T_BASE && b < T_BASE + T_N)
        return a + (b - T_BASE);
    const uint64_t pair = (uint64_t)1 << 63 | (uint64_t)b << 42 | (uint64_t)a << 21;
    for (int i = 0; i < hv_uc_decomp_n; i++)
        if ((hv_uc_decomp[i] & ~(uint64_t)MASK21) == pair)
            return (uint32_t)hv_uc_decomp[i] & MASK21;
    return 0;
}

/* Stable sort of each run of marks by combining class. Insertion by runs would be quadratic in hostile texts, so equal
 * classes are gathered in one counting pass a run. */
static int reorder(uint32_t *c, size_t n, struct hv_err *e)
{
    for (size_t i = 0, end; i < n; i = end) {
        int sorted = 1;
        for (end = i; end < n && ccc(c[end]); end++)
            sorted = sorted && (end == i || ccc(c[end - 1]) <= ccc(c[end]));
        if (end == i)
            end++;
        if (sorted)
            continue;
        size_t start[256] = {0}, at = 0;
        uint32_t *copy = malloc((end - i) * sizeof *copy);
        if (!copy)
            return hv_fail(e, HV_ENOMEM, "text: out of memory");
        for (size_t k = i; k < end; k++)
            start[ccc(c[k])]++;
        for (int k = 0; k < 256; k++) {
            const size_t count = start[k];
            start[k] = at;
            at += count;
        }
        for (size_t k = i; k < end; k++)
            copy[start[ccc(c[k])]++] = c[k];
        for (size_t k = i; k < end; k++)
            c[k] = copy[k - i];
        free(copy);
    }
    return 0;
}

int hv_nfc(struct hv_cps *out, const struct hv_cps *in, struct hv_err *e)
{
    const size_t begin = out->n;
    size_t starter = 0, w = begin;
    int have_starter = 0;
    unsigned last = 0;                                      /* class of the character kept before, 0: the starter itself */

    for (size_t i = 0; i < in->n; i++)
        if (decompose(out, in->c[i], e))
            return e->code;
    if (out->n > begin && reorder(out->c + begin, out->n - begin, e))
        return e->code;
    for (size_t i = begin; i < out->n; i++) {
        const uint32_t c = out->c[i];
        const unsigned class = ccc(c);
        /* Blocked when a character of the same or a higher class, or another starter, stands between. */
        const int blocked = !have_starter || (w > starter + 1 && (last == 0 || last >= class));
        const uint32_t both = blocked ? 0 : compose(out->c[starter], c);
        if (both) {
            out->c[starter] = both;
            continue;
        }
        if (!class) {
            starter = w;
            have_starter = 1;
        }
        last = class;
        out->c[w++] = c;
    }
    out->n = w;
    return 0;
}

/* ---- lower case ---- */

static uint32_t lower_one(uint32_t c)
{
    int lo = 0, hi = hv_uc_lower_n;

    if (c < 0x80)
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if ((uint32_t)hv_uc_lower[mid].last < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == hv_uc_lower_n)
        return c;
    const struct hv_uc_lower_run *r = &hv_uc_lower[lo];
    return c >= (uint32_t)r->first && (c - (uint32_t)r->first) % (uint32_t)r->stride == 0 ? (uint32_t)((int32_t)c + r->delta) : c;
}

/* A capital sigma is final when a cased letter stands before it and none after it, ignorable characters not counting. */
static int is_final(const uint32_t *in, size_t n, size_t i)
{
    size_t before = i, after = i + 1;

    while (before > 0 && (hv_uc(in[before - 1]) & HV_UC_IGNORABLE))
        before--;
    if (!before || !(hv_uc(in[before - 1]) & HV_UC_CASED))
        return 0;
    while (after < n && (hv_uc(in[after]) & HV_UC_IGNORABLE))
        after++;
    return after == n || !(hv_uc(in[after]) & HV_UC_CASED);
}

int hv_lower(struct hv_cps *out, const uint32_t *in, size_t n, struct hv_err *e)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t c = in[i] == 0x3A3 ? (is_final(in, n, i) ? 0x3C2 : 0x3C3) : lower_one(in[i]);
        if (in[i] == 0x130) {                               /* I with a dot above: the one letter that becomes two */
            if (hv_cps_push(out, 'i', e))
                return e->code;
            c = 0x307;
        }
        if (hv_cps_push(out, c, e))
            return e->code;
    }
    return 0;
}
