#include "model/denoise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

static int guided(const struct denoise_job *j)
{
    return j->guidance > 1;
}

/* Moments of the schedule: one for each branch while their prompts differ, then one for both. of[step][branch]. */
static int moments(const struct denoise_job *j, const float *sigma, struct dit_moment *m, int (*of)[2])
{
    int n = 0;

    for (int i = 0; i < j->steps; i++) {
        const int both = guided(j) && i < FLOW_EARLY;
        for (int branch = 0; branch <= both; branch++)
            m[n + branch] = (struct dit_moment){.t = sigma ? flow_timestep(sigma[i]) : 0, .text = both && !branch,
                                                .cached = !j->full[i]};
        if (of) {
            of[i][0] = n;
            of[i][1] = n + both;
        }
        n += 1 + both;
    }
    return n;
}

static int is_tea(const struct denoise_job *j)
{
    return j->cache == DENOISE_TEA;
}

/* The step cache saves only where a cached step follows, or may follow. */
static int saves(const struct denoise_job *j, int i)
{
    return i + 1 < j->steps && (is_tea(j) ? i >= flow_cache_start(j->steps) : j->full[i] && !j->full[i + 1]);
}

static int64_t voices(const struct denoise_job *j)
{
    return j->voices > 1 ? j->voices : 1;
}

/* Of each voice. */
static int64_t real_rows(const struct denoise_job *j)
{
    const int64_t rows = j->sound.shape[0] / voices(j);

    return rows < j->clip.real ? rows : j->clip.real;
}

static hv_tensor mask_of(const struct denoise_job *j, int64_t voice)
{
    return voice ? j->other[voice - 1] : j->face;
}

void denoise_size(struct dit_size *s, const struct denoise_job *j)
{
    struct dit_moment m[2 * FLOW_STEPS_MAX];
    const struct dit_text *text[2] = {&j->text, &j->negative};
    const int n = moments(j, NULL, m, NULL);

    *s = (struct dit_size){.frames = FLOW_WINDOW, .height = j->ref.shape[2], .width = j->ref.shape[3],
                           .texts = 1 + guided(j), .sound = voices(j) * real_rows(j), .voices = voices(j), .clip_frames = j->clip.frames,
                           .branches = 1 + guided(j), .act = HV_F32};
    for (int i = 0; i < n; i++) {
        s->full += !m[i].cached;
        s->cached += m[i].cached;
    }
    if (s->cached || is_tea(j))
        s->windows = j->clip.windows;
    s->residual = s->windows && j->cache != DENOISE_LIST;
    s->probe = is_tea(j);
    for (int i = 0; i < s->texts; i++) {
        const int64_t L = text[i]->states.shape[0], rows = text[i]->mask ? dit_text_rows(text[i]) : L;
        s->text_len = L > s->text_len ? L : s->text_len;
        s->text_rows = rows > s->text_rows ? rows : s->text_rows;
    }
}

void denoise_host_rows(struct hv_plan *host, const struct denoise_job *j)
{
    const int64_t C = j->config->channels, F = j->clip.frames, h = j->ref.shape[2], w = j->ref.shape[3];

    hv_plan_add(host, "noise",    HV_F32, 1, 4, (const int64_t[]){C, j->clip.noise_frames, h, w});
    hv_plan_add(host, "clip",     HV_F32, 1, 5, (const int64_t[]){2, C, F, h, w});              /* latents, their sum */
    if (j->clean_every)
        hv_plan_add(host, "clean", HV_F32, 1, 4, (const int64_t[]){C, F, h, w});
    hv_plan_add(host, "window",   HV_F32, 1, 5, (const int64_t[]){3, C, FLOW_WINDOW, h, w});    /* latents, two predictions */
}

/* ---- the loop ---- */

struct loop {
    struct dit *net;
    const struct denoise_job *j;
    float   *sigma, *clip, *sum, *total, *x, *v[2], *face;      /* face: for each token */
    float   *clean;                                     /* the clip before a step, then without noise; NULL: nobody asks */
    float   *mask;                                      /* a voice's face mask of a window's frames, times its factor */
    int32_t *silence, *sound;
    double  *tea;                                       /* of each window: changes since a full step */
    int    (*moment)[2];
    int64_t  channels, pixels;
};

static int make(struct loop *l, struct dit *n, const struct denoise_job *j, struct hv_err *e)
{
    const size_t window = (size_t)(FLOW_WINDOW * l->channels * l->pixels), clip = (size_t)(j->clip.frames * l->channels * l->pixels);

    l->net = n;
    l->sigma = calloc((size_t)j->steps + 1, sizeof *l->sigma);
    l->moment = calloc((size_t)j->steps, sizeof *l->moment);
    l->clip = calloc(clip, sizeof *l->clip);
    l->sum = calloc(clip, sizeof *l->sum);
    l->clean = j->clean_every ? calloc(clip, sizeof *l->clean) : NULL;
    l->x = calloc(window, sizeof *l->x);
    for (int b = 0; b < 2; b++)
        l->v[b] = calloc(window, sizeof *l->v[b]);
    l->face = calloc((size_t)voices(j) * window, sizeof *l->face);
    l->mask = calloc((size_t)(FLOW_WINDOW * l->pixels), sizeof *l->mask);
    l->total = calloc((size_t)j->clip.frames, sizeof *l->total);
    l->silence = calloc((size_t)(voices(j) * FLOW_SOUND), sizeof *l->silence);
    l->sound = calloc((size_t)(voices(j) * FLOW_SOUND), sizeof *l->sound);
    l->tea = calloc((size_t)j->clip.windows, sizeof *l->tea);
    if (!l->sigma || !l->moment || !l->clip || !l->sum || !l->x || !l->v[0] || !l->v[1] || !l->face || !l->mask || !l->total ||
        !l->silence || !l->sound || !l->tea || (j->clean_every && !l->clean))
        return hv_fail(e, HV_ENOMEM, "denoise: out of memory");
    for (int64_t k = 0; k < voices(j) * FLOW_SOUND; k++)
        l->silence[k] = (int32_t)(voices(j) * real_rows(j));
    flow_sigmas(l->sigma, j->steps, j->shift);
    return 0;
}

static void unmake(struct loop *l)
{
    free(l->sigma);
    free(l->moment);
    free(l->clip);
    free(l->sum);
    free(l->clean);
    free(l->x);
    free(l->v[0]);
    free(l->v[1]);
    free(l->face);
    free(l->mask);
    free(l->total);
    free(l->silence);
    free(l->sound);
    free(l->tea);
}

static int prepare(struct loop *l, struct hv_err *e)
{
    const struct denoise_job *j = l->j;
    const struct dit_text text[2] = {j->text, j->negative};
    struct dit_moment *m = calloc((size_t)(2 * j->steps), sizeof *m);
    hv_tensor sound = hv_rows(j->sound, 0, voices(j) * real_rows(j));

    if (!m)
        return hv_fail(e, HV_ENOMEM, "denoise: out of memory");
    const int n = moments(j, l->sigma, m, l->moment);
    if (!dit_sound(l->net, sound, e))
        dit_prepare(l->net, text, 1 + guided(j), m, n, &j->fixed, e);
    free(m);
    return e->code;
}

/* Face masks of step i for each token of a window. */
static void face_of_window(struct loop *l, int i, const int32_t *frame)
{
    const struct denoise_job *j = l->j;
    const float factor = flow_face_factor(i) * (float)(j->strength < 0 ? 0 : j->strength > 0 ? j->strength : 1);
    const int64_t P = l->pixels;
    struct dit_size s = {.frames = FLOW_WINDOW, .height = j->face.shape[1], .width = j->face.shape[2]};
    const int64_t tokens = FLOW_WINDOW * (s.height / j->config->patch[1]) * (s.width / j->config->patch[2]);

    for (int64_t v = 0; v < voices(j); v++) {
        const hv_tensor face = mask_of(j, v);
        for (int64_t k = 0; k < FLOW_WINDOW; k++) {
            const int64_t at = frame[k] < face.shape[0] ? frame[k] : face.shape[0] - 1;
            for (int64_t p = 0; p < P; p++)
                l->mask[k * P + p] = ((const float *)face.data)[at * P + p] * factor;
        }
        if (j->carry == FLOW_REFERENCE)
            flow_round_f16(l->mask, (size_t)(FLOW_WINDOW * P));
        dit_face_tokens(l->face + v * tokens, hv_view(l->mask, HV_F32, 4, (const int64_t[]){1, FLOW_WINDOW, s.height, s.width}), j->config, &s);
    }
}

/* Where a NaN began: the first traced piece that holds one. */
struct finder {
    struct hv_dev *dev;
    char           name[64];
};

static void find_nonfinite(void *ctx, const char *name, int64_t row, int64_t col, hv_tensor t)
{
    struct finder *f = ctx;
    struct hv_err fault = {0};
    float *host;

    (void)row;
    (void)col;
    if (f->name[0] || !(host = malloc((size_t)hv_count(t) * sizeof *host + 1)))
        return;
    if (t.dev == f->dev->kind)
        hv_download(f->dev, hv_view(host, HV_F32, t.ndim, t.shape), t);
    else
        hv_to_f32(host, t.dtype, t.data, (size_t)hv_count(t));
    const int64_t n = hv_dev_sync(f->dev, &fault) ? 0 : hv_count(t);
    for (int64_t i = 0; i < n && !f->name[0]; i++)
        if (!isfinite(host[i]))
            snprintf(f->name, sizeof f->name, "%s", name);
    free(host);
}

/* The forward is repeated, watched: the message can name the place. */
static int check_finite(struct loop *l, const struct dit_call *call, int i, struct hv_err *e)
{
    const float *v = call->out.data;
    const int64_t n = FLOW_WINDOW * l->channels * l->pixels;
    int64_t bad = 0;

    while (bad < n && isfinite(v[bad]))
        bad++;
    if (bad == n)
        return 0;
    const float value = v[bad];
    struct finder f = {.dev = dit_device(l->net)};
    dit_trace(l->net, find_nonfinite, &f);
    dit_forward(l->net, call, 1, DIT_PLAIN, e);
    dit_trace(l->net, NULL, NULL);
    return hv_fail(e, HV_ENUM, "prediction: %f at step %d of %d, window %d, %s branch; first in %s", (double)value, i, l->j->steps,
                   call->window, call->branch || !guided(l->j) ? "conditional" : "unconditional",
                   f.name[0] ? f.name : "the final layer");
}

static void see(const struct loop *l, int i, int64_t window, const char *what, const float *data, int64_t frames)
{
    if (l->j->seen)
        l->j->seen(l->j->ctx, i, (int)window, what, data, frames);
}

/* Whether window w skips the blocks in step i; call: the first branch, which decides for both. */
static int skips(struct loop *l, int i, int64_t w, const struct dit_call *call, int *skip, struct hv_err *e)
{
    const struct denoise_job *j = l->j;
    double change = 0;

    *skip = !j->full[i];
    if (is_tea(j)) {
        if (i >= flow_cache_start(j->steps) && i + 1 < j->steps && dit_probe(l->net, call, &change, e))
            return e->code;
        if (i <= flow_cache_start(j->steps))
            change = 0;                                 /* the first one has nothing to compare with */
        j->change[i * j->clip.windows + w] = change;
        *skip = flow_tea_skips(&l->tea[w], i, j->steps, change, j->threshold);
    }
    if (j->decided && j->cache != DENOISE_LIST)
        j->decided(j->decided_ctx, i, (int)w, !*skip, change, l->tea[w]);
    return 0;
}

/* How the forward begins that follows this one. */
static enum dit_cache next_cache(const struct denoise_job *j, int i, int64_t w)
{
    const int at = w + 1 < j->clip.windows ? i : i + 1;

    return at < j->steps && !j->full[at] ? DIT_LOAD : DIT_PLAIN;
}

/* Both branches of one window; l->v[0] holds the guided velocity afterwards. */
static int predict(struct loop *l, int i, int64_t w, const int32_t *frame, struct hv_err *e)
{
    const struct denoise_job *j = l->j;
    const int two = guided(j);
    const int64_t shape[4] = {l->channels, FLOW_WINDOW, j->ref.shape[2], j->ref.shape[3]};
    const size_t n = (size_t)(FLOW_WINDOW * l->channels * l->pixels);
    struct dit_call call[DIT_CALLS];
    int skip;

    for (int b = 0; b <= two; b++)
        call[b] = (struct dit_call){
            .moment = l->moment[i][b], .latents = hv_view(l->x, HV_F32, 4, shape), .ref = j->ref, .mask = l->face,
            .sound = two && !b ? l->silence : l->sound, .out = hv_view(l->v[b], HV_F32, 4, shape),
            .branch = b, .window = (int)w, .frame = frame,
        };
    if (skips(l, i, w, &call[0], &skip, e))
        return e->code;
    for (int b = 0; b <= two; b++)
        call[b].cache = skip ? DIT_LOAD : saves(j, i) ? DIT_SAVE : DIT_PLAIN;
    if (dit_forward(l->net, call, 1 + two, next_cache(j, i, w), e))
        return e->code;
    for (int b = 0; b <= two; b++) {
        if (check_finite(l, &call[b], i, e))
            return e->code;
        see(l, i, w, two && !b ? "uncond" : "cond", l->v[b], FLOW_WINDOW);
    }
    if (two)
        flow_guide(l->v[0], l->v[0], l->v[1], flow_guidance(i, j->steps, j->guidance), n);
    see(l, i, w, "guided", l->v[0], FLOW_WINDOW);
    return 0;
}

static int step(struct loop *l, int i, struct hv_err *e)
{
    const struct denoise_job *j = l->j;
    const int64_t F = j->clip.frames, C = l->channels, P = l->pixels;
    int32_t frame[FLOW_WINDOW], row[FLOW_SOUND];
    float weight[FLOW_WINDOW];

    memset(l->sum, 0, (size_t)(F * C * P) * sizeof *l->sum);
    memset(l->total, 0, (size_t)F * sizeof *l->total);
    flow_window_weights(&j->clip, weight);
    for (int64_t w = 0; w < j->clip.windows; w++) {
        const int64_t start = flow_window_start(&j->clip, i, w);
        flow_window_frames(&j->clip, start, frame);
        flow_window_sound(&j->clip, start, row);
        face_of_window(l, i, frame);
        for (int64_t v = 0; v < voices(j); v++)
            for (int k = 0; k < FLOW_SOUND; k++)
                l->sound[v * FLOW_SOUND + k] = row[k] < real_rows(j) ? (int32_t)(v * real_rows(j)) + row[k] : l->silence[0];
        flow_gather(l->x, l->clip, C, F, P, frame);
        if (predict(l, i, w, frame, e))
            return e->code;
        flow_euler(l->v[0], l->x, l->v[0], l->sigma[i + 1] - l->sigma[i], (size_t)(FLOW_WINDOW * C * P), j->carry);
        flow_accumulate(l->sum, l->total, l->v[0], weight, C, F, P, frame, j->carry);
    }
    flow_average(l->clip, l->sum, l->total, C, F, P, j->carry);
    see(l, i, -1, "latents", l->clip, F);
    return 0;
}

static int is_asked(const struct denoise_job *j, int i)
{
    return j->clean_every && ((i + 1) % j->clean_every == 0 || i + 1 == j->steps);
}

/* The way of a step, gone on to the end: clean = after - sigma[i+1] velocity, velocity = (after - before) / (sigma[i+1] - sigma[i]).
 * Where windows overlap the velocity is their mean. */
static void find_clean(struct loop *l, int i)
{
    const int64_t n = l->channels * l->j->clip.frames * l->pixels;
    const float rest = l->sigma[i + 1] / (l->sigma[i + 1] - l->sigma[i]);

    for (int64_t k = 0; k < n; k++)
        l->clean[k] = l->clip[k] - rest * (l->clip[k] - l->clean[k]);
}

static int check(const struct denoise_job *j, struct hv_err *e)
{
    const int64_t C = j->config->channels, h = j->ref.ndim == 4 ? j->ref.shape[2] : 0, w = j->ref.ndim == 4 ? j->ref.shape[3] : 0;
    char a[HV_SHAPE_STR];

    if (j->ref.ndim != 4 || j->ref.shape[0] != C || j->ref.shape[1] != FLOW_WINDOW)
        return hv_fail(e, HV_EINPUT, "reference latents %s, expected [%lld,%d,h,w]", hv_shape_str(j->ref, a), (long long)C, FLOW_WINDOW);
    if (j->voices > DENOISE_VOICES || (j->voices > 1 && (j->sound.shape[0] % j->voices || j->sound.shape[0] / j->voices > j->clip.real)))
        return hv_fail(e, HV_EINPUT, "sound of %lld rows for %d voices", (long long)j->sound.shape[0], j->voices);
    for (int64_t v = 0; v < voices(j); v++) {
        const hv_tensor face = mask_of(j, v);
        const int64_t latents = (j->clip.written + FLOW_STRIDE - 2) / FLOW_STRIDE + 1;
        if (face.ndim != 3 || (face.shape[0] != 1 && face.shape[0] != latents) || face.shape[1] != h || face.shape[2] != w)
            return hv_fail(e, HV_EINPUT, "face mask %s, expected [1,%lld,%lld], or %lld of them for %lld frames of video", hv_shape_str(face, a),
                           (long long)h, (long long)w, (long long)latents, (long long)j->clip.written);
    }
    if (j->noise.ndim != 4 || j->noise.shape[0] != C || j->noise.shape[1] < j->clip.frames || j->noise.shape[2] != h ||
        j->noise.shape[3] != w)
        return hv_fail(e, HV_EINPUT, "noise %s, expected [%lld,%lld or more,%lld,%lld]", hv_shape_str(j->noise, a), (long long)C,
                       (long long)j->clip.frames, (long long)h, (long long)w);
    return 0;
}

/* Latents of the start: noise, or those of a state. */
static void begin(struct loop *l)
{
    const struct denoise_job *j = l->j;
    const int64_t plane = j->clip.frames * l->pixels;

    if (j->first) {
        memcpy(l->clip, j->start, (size_t)(l->channels * plane) * sizeof(float));
        return;
    }
    for (int64_t c = 0; c < l->channels; c++)
        memcpy(l->clip + c * plane, (const float *)j->noise.data + c * j->noise.stride[0], (size_t)plane * sizeof(float));
    if (j->carry == FLOW_REFERENCE)
        flow_round_f16(l->clip, (size_t)(l->channels * plane));
}

void denoise_result(const struct denoise_job *j, const float *clip, float *latents)
{
    const int64_t pixels = j->ref.shape[2] * j->ref.shape[3], plane = j->clip.frames * pixels, kept = j->clip.video * pixels;

    for (int64_t c = 0; c < j->config->channels; c++)
        memcpy(latents + c * kept, clip + c * plane, (size_t)kept * sizeof(float));
}

int denoise(struct dit *n, const struct denoise_job *j, float *latents, struct hv_err *e)
{
    struct loop l = {.j = j, .channels = j->config->channels, .pixels = j->ref.shape[2] * j->ref.shape[3]};
    int stop = 0;

    if (check(j, e) || make(&l, n, j, e) || prepare(&l, e)) {
        unmake(&l);
        return e->code;
    }
    begin(&l);
    for (int i = 0; i < j->first && is_tea(j); i++)     /* sums as they were */
        for (int64_t w = 0; w < j->clip.windows; w++)
            flow_tea_skips(&l.tea[w], i, j->steps, j->change[i * j->clip.windows + w], j->threshold);
    hv_dev_report(dit_device(n), "step", j->first, j->steps);
    for (int i = j->first; i < j->steps && !stop; i++) {
        const int asked = is_asked(j, i);
        if (asked)
            memcpy(l.clean, l.clip, (size_t)(l.channels * j->clip.frames * l.pixels) * sizeof *l.clean);
        if (step(&l, i, e))
            break;
        if (asked)
            find_clean(&l, i);
        const struct denoise_now now = {.done = i + 1, .steps = j->steps, .clip = l.clip, .clean = asked ? l.clean : NULL, .net = n,
                                        .cached = i + 1 < j->steps && (is_tea(j) ? i >= flow_cache_start(j->steps) : !j->full[i + 1])};
        hv_dev_report(dit_device(n), "step", i + 1, j->steps);
        stop = j->done && j->done(j->done_ctx, &now);
    }
    if (!e->code)
        denoise_result(j, l.clip, latents);
    unmake(&l);
    return e->code;
}
