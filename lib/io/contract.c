#include "io/contract.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/listing.h"

#define TEXT   "text.st", "hv-text", "hv-denoise"
#define AUDIO  "audio.st", "hv-audio", "hv-denoise"
#define FACE   "face.st", "hv-face", "hv-denoise"
#define REF    "ref.st", "hv-encode", "hv-denoise"
#define LATENT "latent.st", "hv-denoise", "hv-decode"
#define STATE  "state.st", "hv-denoise", "hv-denoise --resume"
#define VIDEO  "video.st", "hv-decode", ""
#define NOISE  "the starting noise (--noise FILE, or asked for); the first f of its frames count"

const struct hv_key hv_contract[] = {
    {TEXT,   "text.states",     HV_F32, HV_NONE, 2, {"L", "T"},                0, "LLaVA hidden states of the prompt"},
    {TEXT,   "text.mask",       HV_I64, HV_NONE, 1, {"L"},                     0, "1 where a token counts; not a prefix"},
    {TEXT,   "text.pooled",     HV_F32, HV_NONE, 1, {"P"},                     0, "CLIP-L pooled state of the prompt"},
    {TEXT,   "text.neg_states", HV_F32, HV_NONE, 2, {"L", "T"},                0, "the same of the negative prompt"},
    {TEXT,   "text.neg_mask",   HV_I64, HV_NONE, 1, {"L"},                     0, "the same of the negative prompt"},
    {TEXT,   "text.neg_pooled", HV_F32, HV_NONE, 1, {"P"},                     0, "the same of the negative prompt"},
    {AUDIO,  "audio.features",  HV_F32, HV_NONE, 4, {"F", "W", "S", "A"},      0, "a window of encoder states a video frame"},
    {FACE,   "face.boxes",      HV_F32, HV_NONE, 2, {"n", "5"},                0, "x0, y0, x1, y1 in pixels, score; largest first"},
    {FACE,   "face.mask",       HV_F32, HV_NONE, 3, {"m", "h", "w"},           0, "the widened box of the chosen face, 0 to 1"},
    {REF,    "ref.latents",     HV_F32, HV_NONE, 4, {"C", "r", "h", "w"},      0, "scaled latents of the portrait, held"},
    {LATENT, "latents",         HV_F32, HV_NONE, 4, {"C", "f", "h", "w"},      0, "scaled latents, ready to decode"},
    {LATENT, "noise",           HV_F32, HV_NONE, 4, {"C", "f0", "h", "w"},     1, NOISE},
    {STATE,  "latents",         HV_F32, HV_NONE, 4, {"C", "f", "h", "w"},      0, "latents of a paused run"},
    {STATE,  "state.step",      HV_I32, HV_NONE, 1, {"1"},                     0, "steps done"},
    {STATE,  "cache.*",         HV_F32, HV_BF16, -1, {NULL},                   1, "step caches of a paused run, by branch"},
    {STATE,  "index.*",         HV_I32, HV_NONE, -1, {NULL},                   1, "what the step caches hold of which window"},
    {STATE,  "tally.*",         HV_F64, HV_NONE, -1, {NULL},                   1, "what its steps were judged by"},
    {VIDEO,  "video",           HV_U8,  HV_NONE, 4, {"F", "H", "width", "3"},  0, "RGB frames (hv-decode -f st)"},
    {0}
};

const struct hv_symbol hv_contract_symbols[] = {
    {"F", "video frames"},
    {"f", "latent frames, (F - 1) / 4 + 1; with windows that slide: those of the whole clip"},
    {"f0", "latent frames of the noise, f or more"},
    {"r", "latent frames of the reference: those of one window, 33 for 129 frames"},
    {"H", "height in pixels"},
    {"width", "width in pixels"},
    {"h", "latent rows, H / 8"},
    {"w", "latent columns, width / 8"},
    {"C", "latent channels: 16"},
    {"L", "text rows, image tokens included"},
    {"T", "width of the text encoder: 4096"},
    {"P", "width of the pooled state: 768"},
    {"W", "rows of a sound window: 10"},
    {"S", "hidden states of the audio encoder: 5"},
    {"A", "width of the audio encoder: 384"},
    {"n", "faces"},
    {"m", "masks: 1, or one for each latent frame of a face that moves"},
    {0}
};

const struct hv_meta_key hv_contract_meta[] = {
    {"hv.version", "all", "\"1\"; a reader refuses another"},
    {"hv.stage", "all", "the program that wrote the file"},
    {"hv.width", "face, ref, latent, state, video", "pixels across"},
    {"hv.height", "face, ref, latent, state, video", "pixels down"},
    {"hv.frames", "audio, latent, state, video", "frames that the sound needs; hv-decode trims to them"},
    {"hv.fps", "audio, latent, state, video", "video frames a second"},
    {"hv.voices", "latent, state", "sounds that acted at once"},
    {"hv.audio_strength", "latent, state", "how strongly the sound acted, where that is not 1"},
    {"hv.motion", "latent, state", "how much expression and head move, where that is not usual"},
    {"hv.face", "face", "where the mask is from: detector, box, boxes (of each frame), full or none (nothing found, whole picture)"},
    {"hv.seed", "latent, state", "seed of the starting noise"},
    {"hv.rng", "latent, state", "generator of the noise: cuda:SMxTPS or cpu"},
    {"hv.steps", "latent, state", "denoising steps of the run"},
    {"hv.step", "latent, state", "steps done"},
    {"hv.guidance", "latent, state", "guidance scale"},
    {"hv.shift", "latent, state", "shift of the schedule"},
    {"hv.cache", "latent, state", "steps that reuse the cache"},
    {"hv.cache_log", "latent", "tea, mag: which steps ran all blocks, which none, and why"},
    {"hv.model", "all", "digest of the weights that were used"},
    {0}
};

/* ---- the table ---- */

static int key_matches(const char *pattern, const char *key)
{
    const size_t n = strlen(pattern);

    return n && pattern[n - 1] == '*' ? !strncmp(pattern, key, n - 1) : !strcmp(pattern, key);
}

const struct hv_key *hv_contract_find(const char *key)
{
    for (const struct hv_key *k = hv_contract; k->file; k++)
        if (key_matches(k->key, key))
            return k;
    return NULL;
}

static void print_shape(const struct hv_key *k, char *buf, size_t size)
{
    size_t n = 0;

    if (k->ndim < 0) {
        snprintf(buf, size, "any");
        return;
    }
    for (int i = 0; i < k->ndim; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? ", " : "[", k->dim[i]);
    snprintf(buf + n, size - n, "]");
}

void hv_contract_print(FILE *f)
{
    char shape[80];

    fprintf(f, "| file | written by | read by | key | dtype | shape | meaning |\n|---|---|---|---|---|---|---|\n");
    for (const struct hv_key *k = hv_contract; k->file; k++) {
        print_shape(k, shape, sizeof shape);
        fprintf(f, "| %s | %s | %s | `%s`%s | %s%s%s | %s | %s |\n", k->file, k->maker, *k->taker ? k->taker : "-", k->key,
                k->optional ? " (optional)" : "", hv_dtype_name(k->dtype), k->or_dtype ? " or " : "",
                k->or_dtype ? hv_dtype_name(k->or_dtype) : "", shape, k->meaning);
    }
    fprintf(f, "\n| size | meaning |\n|---|---|\n");
    for (const struct hv_symbol *s = hv_contract_symbols; s->name; s++)
        fprintf(f, "| `%s` | %s |\n", s->name, s->meaning);
    fprintf(f, "\n| metadata | in | meaning |\n|---|---|---|\n");
    for (const struct hv_meta_key *m = hv_contract_meta; m->key; m++)
        fprintf(f, "| `%s` | %s | %s |\n", m->key, m->where, m->meaning);
}

/* ---- reading ---- */

static int bind(struct hv_operands *o, const char *symbol, int64_t size, const struct hv_in *in,
                const struct hv_entry *t, struct hv_err *e)
{
    for (int i = 0; i < o->n_bind; i++) {
        const struct hv_binding *b = &o->bind[i];
        if (strcmp(b->name, symbol))
            continue;
        if (b->size != size)
            return hv_fail(e, HV_EINPUT, "%s: %s: %s = %lld, but %s: %s has %s = %lld", hv_in_path(in), t->name, symbol,
                           (long long)size, b->path, b->key, symbol, (long long)b->size);
        return 0;
    }
    if (o->n_bind < HV_BINDINGS)
        o->bind[o->n_bind++] = (struct hv_binding){symbol, size, hv_in_path(in), t->name};
    return 0;
}

int hv_contract_check_entry(struct hv_operands *o, const struct hv_in *in, const struct hv_entry *t, struct hv_err *e)
{
    const struct hv_key *k = hv_contract_find(t->name);
    char got[HV_ENTRY_STR], want[80];
    int fits;

    if (!k)
        return 0;
    if (t->dtype != k->dtype && (k->or_dtype == HV_NONE || t->dtype != k->or_dtype))
        return hv_fail(e, HV_EINPUT, "%s: %s: %s, expected %s", hv_in_path(in), t->name, hv_dtype_name(t->dtype),
                       hv_dtype_name(k->dtype));
    fits = k->ndim < 0 || t->ndim == k->ndim;
    for (int i = 0; i < k->ndim && fits; i++)
        if (k->dim[i][0] >= '0' && k->dim[i][0] <= '9')
            fits = t->shape[i] == strtoll(k->dim[i], NULL, 10);
    if (!fits) {
        print_shape(k, want, sizeof want);
        return hv_fail(e, HV_EINPUT, "%s: %s: shape %s, expected %s", hv_in_path(in), t->name,
                       hv_entry_shape(t, got), want);
    }
    for (int i = 0; i < k->ndim; i++)
        if (!(k->dim[i][0] >= '0' && k->dim[i][0] <= '9') && bind(o, k->dim[i], t->shape[i], in, t, e))
            return e->code;
    return 0;
}

/* Sizes and rates are compared as numbers: "25" and "25.0" agree. */
static int same_value(const char *a, const char *b)
{
    char *ea, *eb;
    const double x = strtod(a, &ea), y = strtod(b, &eb);

    if (ea == a || *ea || eb == b || *eb)
        return !strcmp(a, b);
    return fabs(x - y) <= 0;
}

static int check_meta(const struct hv_operands *o, const struct hv_in *in, struct hv_err *e)
{
    static const char *const agree[] = {"hv.width", "hv.height", "hv.fps"};
    const char *version = hv_in_meta(in, "hv.version");

    if (version && strcmp(version, "1"))
        return hv_fail(e, HV_EINPUT, "%s: hv.version is '%s', this program reads version 1", hv_in_path(in), version);
    for (size_t i = 0; i < sizeof agree / sizeof *agree; i++) {
        const char *mine = hv_in_meta(in, agree[i]);
        for (int k = 0; k < o->n && mine; k++) {
            const char *other = hv_in_meta(o->in[k], agree[i]);
            if (other && !same_value(mine, other))
                return hv_fail(e, HV_EINPUT, "%s: %s = %s, but %s has %s", hv_in_path(in), agree[i], mine,
                               hv_in_path(o->in[k]), other);
        }
    }
    return 0;
}

static int check_operand(struct hv_operands *o, const struct hv_in *in, struct hv_err *e)
{
    if (check_meta(o, in, e))
        return e->code;
    for (int i = 0; i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        for (int k = 0; k < o->n; k++)
            if (hv_in_find(o->in[k], t->name))
                return hv_fail(e, HV_EINPUT, "tensor '%s' is in %s and in %s", t->name, hv_in_path(o->in[k]),
                               hv_in_path(in));
        if (hv_contract_check_entry(o, in, t, e))
            return e->code;
    }
    return 0;
}

int hv_operands_open(struct hv_operands *o, const char *const *path, int n, struct hv_err *e)
{
    static const char *const only_stdin[] = {"-"};
    int dashes = 0;

    *o = (struct hv_operands){0};
    if (n == 0) {
        path = only_stdin;
        n = 1;
    }
    if (n > HV_OPERANDS)
        return hv_fail(e, HV_EUSAGE, "%d tensor files, at most %d", n, HV_OPERANDS);
    for (int i = 0; i < n; i++)
        dashes += !strcmp(path[i], "-");
    if (dashes > 1)
        return hv_fail(e, HV_EUSAGE, "standard input ('-') can be read once only");
    for (int i = 0; i < n; i++) {
        struct hv_in *in = NULL;
        if (hv_in_open(&in, path[i], e) || check_operand(o, in, e)) {
            hv_in_close(in);
            hv_operands_close(o);
            return e->code;
        }
        o->in[o->n++] = in;
    }
    return 0;
}

void hv_operands_close(struct hv_operands *o)
{
    for (int i = 0; i < o->n; i++)
        hv_in_close(o->in[i]);
    *o = (struct hv_operands){0};
}

static struct hv_in *holder(const struct hv_operands *o, const char *key)
{
    for (int i = 0; i < o->n; i++)
        if (hv_in_find(o->in[i], key))
            return o->in[i];
    return NULL;
}

int hv_operands_have(const struct hv_operands *o, const char *key)
{
    return holder(o, key) != NULL;
}

int hv_operands_get(struct hv_operands *o, const char *key, hv_tensor *t, struct hv_err *e)
{
    struct hv_in *in = holder(o, key);
    const struct hv_key *k = hv_contract_find(key);
    char files[400] = "";
    size_t n = 0;

    if (!in) {
        for (int i = 0; i < o->n && n < sizeof files; i++)
            n += (size_t)snprintf(files + n, sizeof files - n, "%s%s", i ? ", " : "", hv_in_path(o->in[i]));
        return hv_fail(e, HV_EINPUT, "no tensor '%s' in %s%s%s%s", key, files, k ? " (" : "", k ? k->maker : "",
                       k ? " makes it)" : "");
    }
    if (hv_in_tensor(in, key, t, e))
        return e->code;
    const int64_t bad = hv_first_nonfinite(*t);
    if (bad >= 0)
        return hv_fail(e, HV_ENUM, "%s: %s: NaN or Inf at element %lld", hv_in_path(in), key, (long long)bad);
    return 0;
}

int64_t hv_operands_size(const struct hv_operands *o, const char *symbol)
{
    for (int i = 0; i < o->n_bind; i++)
        if (!strcmp(o->bind[i].name, symbol))
            return o->bind[i].size;
    return -1;
}

static const char *find_meta(const struct hv_operands *o, const char *key, const char **path)
{
    for (int i = 0; i < o->n; i++) {
        const char *v = hv_in_meta(o->in[i], key);
        *path = hv_in_path(o->in[i]);
        if (v)
            return v;
    }
    return NULL;
}

const char *hv_operands_meta(const struct hv_operands *o, const char *key)
{
    const char *path;

    return find_meta(o, key, &path);
}

int hv_operands_meta_real(const struct hv_operands *o, const char *key, double min, double max, double *value,
                          struct hv_err *e)
{
    const char *path = NULL, *text = find_meta(o, key, &path);
    char *end = NULL;

    if (!text)
        return 0;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v >= min && v <= max))
        return hv_fail(e, HV_EINPUT, "%s: %s = '%s', expected a number from %g to %g", path, key, text, min, max);
    *value = v;
    return 0;
}

int hv_operands_meta_int(const struct hv_operands *o, const char *key, int64_t min, int64_t max, int64_t *value,
                         struct hv_err *e)
{
    const char *path = NULL, *text = find_meta(o, key, &path);
    char *end = NULL;

    if (!text)
        return 0;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < min || v > max)
        return hv_fail(e, HV_EINPUT, "%s: %s = '%s', expected an integer from %lld to %lld", path, key, text,
                       (long long)min, (long long)max);
    *value = v;
    return 0;
}

/* ---- writing ---- */

void hv_contract_stamp(struct hv_out *out, const struct hv_stamp *s)
{
    hv_out_meta(out, "hv.version", "1");
    if (s->stage)
        hv_out_meta(out, "hv.stage", "%s", s->stage);
    if (s->width > 0)
        hv_out_meta(out, "hv.width", "%lld", (long long)s->width);
    if (s->height > 0)
        hv_out_meta(out, "hv.height", "%lld", (long long)s->height);
    if (s->frames > 0)
        hv_out_meta(out, "hv.frames", "%lld", (long long)s->frames);
    if (s->fps > 0)
        hv_out_meta(out, "hv.fps", "%.10g", s->fps);
    if (s->model)
        hv_out_meta(out, "hv.model", "%s", s->model);
}

void hv_operands_stamp(const struct hv_operands *o, struct hv_out *out)
{
    static const char *const pass[] = {"hv.width", "hv.height", "hv.frames", "hv.fps"};

    for (size_t i = 0; i < sizeof pass / sizeof *pass; i++) {
        const char *v = hv_operands_meta(o, pass[i]);
        if (v)
            hv_out_meta(out, pass[i], "%s", v);
    }
}
