#include "model/flow.h"

#include <assert.h>
#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"

/* ---- schedule ---- */

void flow_sigmas(float *sigma, int n, double shift)
{
    const float step = -1 / (float)n, s = (float)shift, s1 = (float)(shift - 1);

    for (int i = 0; i <= n; i++) {
        const float lin = i < (n + 1) / 2 ? fmaf(step, (float)i, 1) : fmaf(-step, (float)(n - i), 0);
        sigma[i] = s * lin / (1 + s1 * lin);
    }
}

float flow_timestep(float sigma)
{
    return sigma * 1000;
}

/* ---- guidance ---- */

double flow_guidance(int i, int n, double cfg)
{
    const double left = 1 - (double)i / n;

    return i < FLOW_EARLY ? left * (cfg - 2) + 2 : left * 3 + 3.5;
}

float flow_face_factor(int i)
{
    return i < FLOW_EARLY ? 0.6f : 1;
}

void flow_guide(float *v, const float *u, const float *c, double g, size_t n)
{
    const float scale = (float)g;

    for (size_t i = 0; i < n; i++)
        v[i] = u[i] + scale * (c[i] - u[i]);
}

/* ---- step cache ---- */

static int reference_full(int i)
{
    return i < 16 || i == 20 || i == 25 || i == 30 || i == 35 || (i >= 40 && i < 50);
}

/* Step i of n stands for steps [50 i / n, 50 (i + 1) / n) of 50; it is full if one of those is. With more than 50 steps
 * several stand for the same one: of those that stand for a lone full step the first is full. */
static int scaled_full(int i, int n)
{
    const int first = i * 50 / n, next = (i + 1) * 50 / n;

    if (n <= 50) {
        for (int j = first; j < next; j++)
            if (reference_full(j))
                return 1;
        return 0;
    }
    const int lone = first > 15 && first < 40;
    return reference_full(first) && (!lone || (i - 1) * 50 / n != first);
}

/* A number at *s, within 0..n-1. */
static int step_number(const char **s, int n, const char *list, int *v, struct hv_err *e)
{
    char *end = NULL;

    if (!isdigit((unsigned char)**s))
        return hv_fail(e, HV_EUSAGE, "cache: '%s': expected scaled, reference, none, tea, mag or full steps like 0-15,20,25", list);
    const long long x = strtoll(*s, &end, 10);
    if (x >= n)
        return hv_fail(e, HV_EUSAGE, "cache: '%s': step %lld of %d (0 to %d)", list, x, n, n - 1);
    *v = (int)x;
    *s = end;
    return 0;
}

static int parse_steps(uint8_t *full, int n, const char *list, struct hv_err *e)
{
    const char *s = list;

    memset(full, 0, (size_t)n);
    for (;;) {
        int a, b;
        if (step_number(&s, n, list, &a, e))
            return e->code;
        b = a;
        if (*s == '-') {
            s++;
            if (step_number(&s, n, list, &b, e))
                return e->code;
        }
        if (b < a || (*s && *s != ','))
            return hv_fail(e, HV_EUSAGE, "cache: '%s': expected full steps like 0-15,20,25", list);
        memset(full + a, 1, (size_t)(b - a + 1));
        if (!*s)
            break;
        s++;
    }
    return full[0] ? 0 : hv_fail(e, HV_EUSAGE, "cache: '%s': step 0 must be a full step", list);
}

int flow_full_steps(uint8_t *full, int n, const char *rule, struct hv_err *e)
{
    const int reference = !strcmp(rule, "reference"), scaled = !strcmp(rule, "scaled"), none = !strcmp(rule, "none");

    if (!reference && !scaled && !none)
        return parse_steps(full, n, rule, e);
    for (int i = 0; i < n; i++)
        full[i] = (uint8_t)(none || (reference ? reference_full(i) : scaled_full(i, n)));
    return 0;
}

/* ---- step caches that judge for themselves ---- */

int flow_cache_start(int n)
{
    return 25 * n / 100;
}

int flow_tea_skips(double *sum, int i, int n, double change, double threshold)
{
    static const double poly[] = {733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896};
    double y = 0;

    if (i <= flow_cache_start(n) || i == n - 1) {
        *sum = 0;
        return 0;
    }
    for (size_t k = 0; k < sizeof poly / sizeof *poly; k++)
        y = y * change + poly[k];
    *sum += y;
    if (*sum < threshold)                               /* not so where the change is no number */
        return 1;
    *sum = 0;
    return 0;
}

#define MAG_RATIOS 50
#define MAG_ROW    2

/* Of 50 steps; the first is that of nothing. */
static const double mag_small[MAG_RATIOS] = {
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974, 1.00984, 1.03028, 1.00681,
    1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742, 1.0093, 1.01869,
    1.00815, 1.01461, 1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947, 1.01711, 0.9904, 1.00258,
    1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
};
static const double mag_large[MAG_RATIOS] = {
    1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679, 1.02556, 1.00908,
    1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968, 1.00544, 1.02822, 1.00689, 1.02119,
    1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146, 1.0018, 1.01687, 0.99436, 1.00283,
    1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456,
};

/* Steps that run under a threshold; at it, a step is skipped where `closed`. */
static int mag_run(uint8_t *full, int n, const double *ratio, double threshold, int closed)
{
    double p = 1, error = 0;
    int row = 0, runs = 0;

    for (int i = 0; i < n; i++) {
        int skip = 0;
        if (i > flow_cache_start(n)) {
            /* nearest of the 50, halves to even */
            p *= ratio[n > 1 ? (int)nearbyint(i * ((MAG_RATIOS - 1) / (double)(n - 1))) : MAG_RATIOS - 1];
            error += fabs(1 - p);
            row++;
            skip = (closed ? error <= threshold : error < threshold) && row <= MAG_ROW;
            if (!skip) {
                p = 1;
                error = 0;
                row = 0;
            }
        }
        runs += !skip;
        if (full)
            full[i] = (uint8_t)!skip;
    }
    return runs;
}

double flow_mag_steps(uint8_t *full, int n, double speedup, int64_t pixels)
{
    const double *ratio = pixels < 1280 * 720 ? mag_small : mag_large;
    const int target = (int)(n / speedup);
    double best = 0.01;
    int least = INT_MAX;

    for (int k = 1; k <= 60; k++) {
        const int distance = abs(mag_run(NULL, n, ratio, k * 0.01, 0) - target);
        if (distance < least) {
            least = distance;
            best = k * 0.01;
        } else if (distance > least) {
            break;
        }
    }
    mag_run(full, n, ratio, best, 1);
    return best;
}

/* ---- windows ---- */

static int64_t mod(int64_t a, int64_t n)
{
    return (a % n + n) % n;
}

struct flow_clip flow_clip(int64_t wanted, int64_t max_frames)
{
    struct flow_clip c = {.wanted = wanted};

    assert(wanted >= 1);
    c.real = max_frames && wanted > max_frames ? max_frames : wanted;
    c.rows = c.real <= FLOW_SOUND ? FLOW_SOUND : c.real + 5;
    c.noise_frames = 32 * (c.rows / 128 + 1) + 1;
    c.video = c.rows / FLOW_STRIDE + 1;
    const int one = c.video == FLOW_WINDOW;
    c.frames = one ? FLOW_WINDOW : c.noise_frames;
    c.offset = one ? 0 : 10;
    c.sound = FLOW_STRIDE * c.frames;
    c.windows = (c.frames + FLOW_WINDOW - 1) / FLOW_WINDOW;
    c.decoded = FLOW_STRIDE * (c.video - 1) + 1;
    c.written = wanted < c.decoded ? wanted : c.decoded;
    return c;
}

void flow_clip_overlap(struct flow_clip *c, int64_t overlap)
{
    const int64_t apart = FLOW_WINDOW - overlap;

    assert(overlap > 0 && overlap < FLOW_WINDOW);
    if (c->windows == 1)
        return;
    c->overlap = overlap;
    c->windows = (c->video + apart - 1) / apart;
    if (c->windows < 2)
        c->windows = 2;                 /* around the end, too, a window has a neighbour */
    c->frames = c->noise_frames < apart * c->windows ? c->noise_frames : apart * c->windows;
    c->sound = FLOW_STRIDE * c->frames;
}

int64_t flow_window_start(const struct flow_clip *c, int i, int64_t w)
{
    return (c->overlap ? w * c->frames / c->windows : FLOW_WINDOW * w) - i * c->offset % FLOW_WINDOW;
}

void flow_window_weights(const struct flow_clip *c, float weight[FLOW_WINDOW])
{
    for (int64_t k = 0; k < FLOW_WINDOW; k++) {
        const int64_t end = k < FLOW_WINDOW - 1 - k ? k : FLOW_WINDOW - 1 - k;
        weight[k] = end < c->overlap ? (float)(end + 1) / (float)(c->overlap + 1) : 1;
    }
}

void flow_window_frames(const struct flow_clip *c, int64_t start, int32_t frame[FLOW_WINDOW])
{
    for (int64_t k = 0; k < FLOW_WINDOW; k++)
        frame[k] = (int32_t)mod(start + k, c->frames);
}

void flow_window_sound(const struct flow_clip *c, int64_t start, int32_t row[FLOW_SOUND])
{
    for (int64_t k = 0; k < FLOW_SOUND; k++)
        row[k] = (int32_t)mod(FLOW_STRIDE * start + k, c->sound);
}

/* ---- the step ---- */

static float f16(float v)
{
    return hv_f16_to_f32(hv_f32_to_f16(v));
}

void flow_euler(float *y, const float *x, const float *v, float dt, size_t n, enum flow_carry carry)
{
    for (size_t i = 0; i < n; i++) {
        const float sum = x[i] + v[i] * dt;
        y[i] = carry == FLOW_REFERENCE ? hv_bf16_to_f32(hv_f32_to_bf16(sum)) : sum;
    }
}

void flow_gather(float *x, const float *clip, int64_t channels, int64_t frames, int64_t pixels, const int32_t *frame)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < FLOW_WINDOW; k++)
            memcpy(x + (c * FLOW_WINDOW + k) * pixels, clip + (c * frames + frame[k]) * pixels, (size_t)pixels * sizeof *x);
}

void flow_accumulate(float *acc, float *total, const float *y, const float *weight, int64_t channels, int64_t frames, int64_t pixels,
                     const int32_t *frame, enum flow_carry carry)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < FLOW_WINDOW; k++) {
            float *a = acc + (c * frames + frame[k]) * pixels;
            const float *b = y + (c * FLOW_WINDOW + k) * pixels;
            for (int64_t p = 0; p < pixels; p++) {
                const float sum = a[p] + weight[k] * b[p];
                a[p] = carry == FLOW_REFERENCE ? f16(sum) : sum;
            }
        }
    for (int64_t k = 0; k < FLOW_WINDOW; k++)
        total[frame[k]] += weight[k];
}

void flow_average(float *clip, const float *acc, const float *total, int64_t channels, int64_t frames, int64_t pixels,
                  enum flow_carry carry)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t f = 0; f < frames; f++)
            for (int64_t p = 0; p < pixels; p++) {
                const int64_t at = (c * frames + f) * pixels + p;
                const float v = acc[at] / total[f];
                clip[at] = carry == FLOW_REFERENCE ? f16(v) : v;
            }
}

void flow_round_f16(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = f16(x[i]);
}
