/* settings.c - options of hv-denoise that are more than a number. */
#include "hv-denoise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"

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

    if (!o.plan && (o.size || o.frames))
        return hv_fail(e, HV_EUSAGE, "--%s: without --plan the files say it", o.size ? "size" : "frames");
    if (o.size && (!pair(o.size, 'x', 16, 16384, &s->width, &s->height) || s->width % 16 || s->height % 16))
        return hv_fail(e, HV_EUSAGE, "--size '%s': expected WxH in pixels, multiples of 16, as 768x704", o.size);
    if (o.frames) {
        s->frames = strtoll(o.frames, &end, 10);
        if (*o.frames < '1' || *o.frames > '9' || *end || s->frames > 10000000)
            return hv_fail(e, HV_EUSAGE, "--frames '%s': expected a number of video frames from 1", o.frames);
    }
    if (o.plan && o.c.n_operands && (o.size || o.frames))
        return hv_fail(e, HV_EUSAGE, "--size and --frames: the files say it");
    if (o.plan && !o.c.n_operands && !o.size)
        return hv_fail(e, HV_EUSAGE, "--plan: name the files, or --size WxH [--frames N]");
    return 0;
}

static int read_chunks(struct settings *s, struct hv_err *e)
{
    char *end = NULL;

    s->choice = (struct dit_choice){.group = o.head_group, .keep_ref = o.keep_ref};
    if (!o.chunk_rows)
        return 0;
    if (pair(o.chunk_rows, ',', 1, 1 << 24, &s->choice.rows_attn, &s->choice.rows_mlp))
        return 0;
    s->choice.rows_attn = s->choice.rows_mlp = strtoll(o.chunk_rows, &end, 10);
    if (*o.chunk_rows < '1' || *o.chunk_rows > '9' || *end || s->choice.rows_attn > 1 << 24)
        return hv_fail(e, HV_EUSAGE, "--chunk-rows '%s': expected N, or N,N for attention and MLP", o.chunk_rows);
    return 0;
}

int settings_read(struct settings *s, struct hv_err *e)
{
    const int reference = !strcmp(o.carry, "reference");

    if (!reference && strcmp(o.carry, "float32"))
        return hv_fail(e, HV_EUSAGE, "--carry '%s': expected float32 or reference", o.carry);
    s->carry = reference ? FLOW_REFERENCE : FLOW_FLOAT32;
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    if (read_rng(s, e) || read_size(s, e) || read_chunks(s, e))
        return e->code;
    return flow_full_steps(s->full, (int)o.steps, o.cache, e);
}
