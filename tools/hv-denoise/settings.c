/* settings.c - options of hv-denoise that are more than a number. */
#include "hv-denoise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "io/video.h"

/* "AxB" with both from min to max; 0 if it is something else. */
static int pair(const char *text, char between, int64_t min, int64_t max, int64_t *a, int64_t *b)
{
    char *end = NULL;

    if (*text < '0' || *text > '9')
        return 0;
    *a = strtoll(text, &end, 10);
    if (*end != between || end[1] < '0' || end[1] > '9')
        return 0;
    *b = strtoll(end + 1, &end, 10);
    return !*end && *a >= min && *a <= max && *b >= min && *b <= max;
}

static int read_rng(struct settings *s, struct hv_err *e)
{
    s->sm = HV_RNG_SM;
    s->tps = HV_RNG_TPS;
    if (!strcmp(o.rng, "cuda"))
        return 0;
    if (!strcmp(o.rng, "cpu")) {
        s->sm = 0;
        return 0;
    }
    if (strncmp(o.rng, "cuda:", 5) || !pair(o.rng + 5, 'x', 1, 65536, &s->sm, &s->tps) || s->tps < 256)
        return hv_fail(e, HV_EUSAGE, "--rng '%s': expected cpu, cuda or cuda:SMxTPS, as cuda:132x2048", o.rng);
    return 0;
}

/* Sizes are pixels; a token is 16 x 16 of them. */
static int read_size(struct settings *s, struct hv_err *e)
{
    char *end = NULL;

    const int alone = o.plan || o.bench;

    if (!alone && (o.size || o.frames))
        return hv_fail(e, HV_EUSAGE, "--%s: without --plan or --bench the files say it", o.size ? "size" : "frames");
    if (o.bench && o.c.n_operands)
        return hv_fail(e, HV_EUSAGE, "--bench: takes no files");
    if (o.size && (!pair(o.size, 'x', 16, 16384, &s->width, &s->height) || s->width % 16 || s->height % 16))
        return hv_fail(e, HV_EUSAGE, "--size '%s': expected WxH in pixels, multiples of 16, as 768x704", o.size);
    if (o.frames) {
        s->frames = strtoll(o.frames, &end, 10);
        if (*o.frames < '1' || *o.frames > '9' || *end || s->frames > 10000000)
            return hv_fail(e, HV_EUSAGE, "--frames '%s': expected a number of video frames from 1", o.frames);
    }
    if (o.plan && o.c.n_operands && (o.size || o.frames))
        return hv_fail(e, HV_EUSAGE, "--size and --frames: the files say it");
    if (alone && !o.c.n_operands && !o.size)
        return hv_fail(e, HV_EUSAGE, o.plan ? "--plan: name the files, or --size WxH [--frames N]" : "--bench: needs --size WxH");
    return 0;
}

/* Index of a word in a list that ends with NULL. */
static int word(int *value, const char *option, const char *text, const char *const *list, struct hv_err *e)
{
    char all[160] = "";
    size_t n = 0;

    for (*value = 0; list[*value]; ++*value)
        if (!strcmp(list[*value], text))
            return 0;
    for (int i = 0; list[i] && n < sizeof all; i++)
        n += (size_t)snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", list[i]);
    return hv_fail(e, HV_EUSAGE, "--%s '%s': expected %s", option, text, all);
}

static int read_words(struct settings *s, struct hv_err *e)
{
    static const char *const tiers[] = {"auto", "device", "o-host", "x-host", NULL}, *const gemms[] = {"auto", "expand", "fused", "fp8", NULL};
    static const char *const branches[] = {"auto", "alone", "paired", NULL}, *const ahead[] = {"auto", "off", "on", NULL};
    static const char *const dtypes[] = {"as-is", "bf16", "int8", "fp8", NULL}, *const rings[] = {"auto", "blocks", "segments", NULL};
    static const hv_dtype dtype[] = {HV_NONE, HV_BF16, HV_I8, HV_F8_E4M3};
    const char *attention[HV_ATTS + 1] = {NULL}, *stream[HV_STREAM_MODES + 1] = {NULL};
    char *end = NULL;
    int at;

    for (int i = 0; i < HV_ATTS; i++)
        attention[i] = hv_attention_name((enum hv_attention)i);
    for (int i = 0; i < HV_STREAM_MODES; i++)
        stream[i] = hv_stream_mode_name((enum hv_stream_mode)i);
    if (word(&at, "activations", o.activations, tiers, e))
        return e->code;
    s->choice.tier = (enum dit_tier)at;
    if (word(&at, "gemm", o.gemm, gemms, e))
        return e->code;
    s->fp8 = at == 3;
    s->choice.gemm = s->fp8 ? DIT_GEMM_FUSED : (enum dit_gemm)at;       /* fp8: weights as stored go to the product */
    if (word(&at, "branches", o.branches, branches, e))
        return e->code;
    s->choice.branches = (enum dit_branches)at;
    if (word(&at, "ahead", o.ahead, ahead, e))
        return e->code;
    s->choice.ahead = (enum dit_ahead)at;
    if (word(&at, "attention", o.attention, attention, e))
        return e->code;
    s->choice.attention = (enum hv_attention)at;
    if (word(&at, "stream", o.stream, stream, e))
        return e->code;
    s->stream.mode = (enum hv_stream_mode)at;
    if (word(&at, "weights-dtype", o.dtype, dtypes, e))
        return e->code;
    s->weights = dtype[at];
    if (s->weights && !o.plan && !o.bench)
        return hv_fail(e, HV_EUSAGE, "--weights-dtype: without --plan or --bench the model says it; hv-weights quantize makes another");
    s->choice.resident_blocks = !strcmp(o.resident, "auto") ? -1 : !strcmp(o.resident, "all") ? DIT_ALL : strtoll(o.resident, &end, 10);
    if (end && (*o.resident < '0' || *o.resident > '9' || *end))
        return hv_fail(e, HV_EUSAGE, "--resident-blocks '%s': expected a number, all or auto", o.resident);
    if (*o.ring >= '0' && *o.ring <= '9') {
        struct hv_size size;
        if (hv_size_parse(&size, o.ring, e) || size.kind != HV_SIZE_BYTES)
            return hv_fail(e, HV_EUSAGE, "--ring '%s': expected blocks, segments or a size, as 300M", o.ring);
        s->choice.ring = DIT_RING_BLOCKS;
        s->choice.ring_bytes = (int64_t)(size.bytes / 256 * 256);
        return 0;
    }
    if (word(&at, "ring", o.ring, rings, e))
        return e->code;
    s->choice.ring = (enum dit_ring)at;
    return 0;
}

static int read_chunks(struct settings *s, struct hv_err *e)
{
    char *end = NULL;

    s->choice.group = o.head_group;
    s->choice.keep_ref = o.keep_ref;
    if (!o.chunk_rows)
        return 0;
    if (pair(o.chunk_rows, ',', 1, 1 << 24, &s->choice.rows_attn, &s->choice.rows_mlp))
        return 0;
    s->choice.rows_attn = s->choice.rows_mlp = strtoll(o.chunk_rows, &end, 10);
    if (*o.chunk_rows < '1' || *o.chunk_rows > '9' || *end || s->choice.rows_attn > 1 << 24)
        return hv_fail(e, HV_EUSAGE, "--chunk-rows '%s': expected N, or N,N for attention and MLP", o.chunk_rows);
    return 0;
}

/* "tea", "tea:0.15"; 1 if it is one of these, with its number or the default. */
static int judge(double *value, const char *name, double usual, double min, double max, struct hv_err *e)
{
    const size_t n = strlen(name);
    char *end = NULL;

    if (strncmp(o.cache, name, n) || (o.cache[n] && o.cache[n] != ':'))
        return 0;
    *value = usual;
    if (!o.cache[n])
        return 1;
    *value = strtod(o.cache + n + 1, &end);
    if (end == o.cache + n + 1 || *end || !(*value >= min && *value <= max))
        hv_fail(e, HV_EUSAGE, "--cache '%s': expected %s or %s:X, X from %g to %g", o.cache, name, name, min, max);
    return 1;
}

static int read_cache(struct settings *s, struct hv_err *e)
{
    memset(s->full, 1, sizeof s->full);
    if (judge(&s->threshold, "tea", 0.1, 0, 100, e))
        s->cache = DENOISE_TEA;
    else if (judge(&s->speedup, "mag", 2, 1, 100, e))
        s->cache = DENOISE_MAG;                         /* which steps: when the size is known */
    else
        flow_full_steps(s->full, (int)o.steps, o.cache, e);
    return e->code;
}

const char *steps_text(char *buf, size_t size, const uint8_t *full, int n)
{
    size_t at = 0;

    *buf = 0;
    for (int i = 0, next; i < n && at < size; i = next) {
        next = i + 1;
        if (!full[i])
            continue;
        while (next < n && full[next])
            next++;
        at += (size_t)snprintf(buf + at, size - at, next - i > 1 ? "%s%d-%d" : "%s%d", at ? "," : "", i, next - 1);
    }
    return buf;
}

int settings_read(struct settings *s, struct hv_err *e)
{
    const int reference = !strcmp(o.carry, "reference");

    if (!reference && strcmp(o.carry, "float32"))
        return hv_fail(e, HV_EUSAGE, "--carry '%s': expected float32 or reference", o.carry);
    s->carry = reference ? FLOW_REFERENCE : FLOW_FLOAT32;
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    if (o.bench && *o.bench && strcmp(o.bench, "json"))
        return hv_fail(e, HV_EUSAGE, "--bench=%s: json, or nothing", o.bench);
    if (!o.state && (o.resume || o.stop_after || o.state_every > 0))
        return hv_fail(e, HV_EUSAGE, "--%s: without --state FILE there is none", o.resume ? "resume" : o.stop_after ? "stop-after" : "state-every");
    if (o.state && (!*o.state || !strcmp(o.state, "-")))
        return hv_fail(e, HV_EUSAGE, "--state '%s': a file is wanted", o.state);
    if (o.preview_every && !o.preview)
        return hv_fail(e, HV_EUSAGE, "--preview-every: without --preview FILE there is none");
    if (o.preview && hv_video_format_for(o.preview) != HV_VIDEO_PNG && hv_video_format_for(o.preview) != HV_VIDEO_MP4)
        return hv_fail(e, HV_EUSAGE, "--preview '%s': expected FILE.png or FILE.mp4", o.preview);
    if (o.bench && o.plan)
        return hv_fail(e, HV_EUSAGE, "--plan and --bench: one of them");
    if (read_rng(s, e) || read_size(s, e) || read_words(s, e) || read_chunks(s, e))
        return e->code;
    return read_cache(s, e);
}
