#include "model/flow.h"

#include <assert.h>
#include <ctype.h>
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
        return hv_fail(e, HV_EUSAGE, "cache: '%s': expected scaled, reference, none or full steps like 0-15,20,25", list);
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

int64_t flow_window_start(const struct flow_clip *c, int i, int64_t w)
{
    return FLOW_WINDOW * w - i * c->offset % FLOW_WINDOW;
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

void flow_accumulate(float *acc, int32_t *count, const float *y, int64_t channels, int64_t frames, int64_t pixels,
                     const int32_t *frame, enum flow_carry carry)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t k = 0; k < FLOW_WINDOW; k++) {
            float *a = acc + (c * frames + frame[k]) * pixels;
            const float *b = y + (c * FLOW_WINDOW + k) * pixels;
            for (int64_t p = 0; p < pixels; p++)
                a[p] = carry == FLOW_REFERENCE ? f16(a[p] + b[p]) : a[p] + b[p];
        }
    for (int64_t k = 0; k < FLOW_WINDOW; k++)
        count[frame[k]]++;
}

void flow_average(float *clip, const float *acc, const int32_t *count, int64_t channels, int64_t frames, int64_t pixels,
                  enum flow_carry carry)
{
    for (int64_t c = 0; c < channels; c++)
        for (int64_t f = 0; f < frames; f++)
            for (int64_t p = 0; p < pixels; p++) {
                const int64_t at = (c * frames + f) * pixels + p;
                const float v = acc[at] / (float)count[f];
                clip[at] = carry == FLOW_REFERENCE ? f16(v) : v;
            }
}

void flow_round_f16(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = f16(x[i]);
}
