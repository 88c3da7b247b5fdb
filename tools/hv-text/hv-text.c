/* hv-text - portrait and prompt to the states of two text encoders. See hv-text.1 */
#include "hv-text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/temp.h"
#include "io/st.h"
#include "mem/part.h"
#include "text/unicode.h"

#define PROMPT_BYTES ((size_t)1 << 20)

struct options o = {.image_size = 704, .stream = "auto", .dtype = "as-is"};

static const struct hv_opt opts[] = {
    {"prompt", 'p', HV_OPT_STR, &o.prompt, "TEXT", "what the video shows; \"\" is legal, - reads standard input", 0, 0},
    {"negative", 0, HV_OPT_STR, &o.negative, "TEXT", "what it should not show (default: the reference's list)", 0, 0},
    {"name", 0, HV_OPT_STR, &o.name, "WORD", "who is in the picture (default: person)", 0, 0},
    {"no-prefix", 0, HV_OPT_FLAG, &o.no_prefix, NULL, "do not put the reference's words of quality before the prompt", 0, 0},
    {"image-size", 0, HV_OPT_INT, &o.image_size, "N", "size tier of the picture: 704, 512, 384, 256 or any other (default: 704)", 64,
     8192},
    {"no-exif", 0, HV_OPT_FLAG, &o.no_exif, NULL, "do not turn the picture as its EXIF data says", 0, 0},
    {"vram", 0, HV_OPT_SIZE, &o.vram, "SIZE", "memory of the device, as 4G", 0, 0},
    {"stream", 0, HV_OPT_STR, &o.stream, "MODE", "GPU: weights by register, map or direct (default: auto)", 0, 0},
    {"weights-dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "with --plan: f16, bf16, int8 or fp8 (default: f16)", 0, 0},
    {"plan", 0, HV_OPT_OPTSTR, &o.plan, "json", "print the memory plans; read no picture and no weights", 0, 0},
    {0}
};

const struct hv_cli cli = {"hv-text", "PICTURE -p TEXT", "Turns a portrait and a prompt into the states that steer the video.",
                                  opts, &o.c, 0, 1};

/* Index of a word, -1 if it is none of them. */
static int word(const char *text, const char *const *list)
{
    for (int i = 0; list[i]; i++)
        if (!strcmp(list[i], text))
            return i;
    return -1;
}

static int read_words(struct job *j, struct hv_err *e)
{
    static const char *const dtypes[] = {"as-is", "f16", "bf16", "int8", "fp8", NULL};
    static const hv_dtype dtype[] = {HV_NONE, HV_F16, HV_BF16, HV_I8, HV_F8_E4M3};
    const char *stream[HV_STREAM_MODES + 1] = {NULL};

    for (int i = 0; i < HV_STREAM_MODES; i++)
        stream[i] = hv_stream_mode_name((enum hv_stream_mode)i);
    const int way = word(o.stream, stream), as = word(o.dtype, dtypes);
    if (way < 0 || way == HV_STREAM_PIN || way == HV_STREAM_PART)
        return hv_fail(e, HV_EUSAGE, "--stream '%s': expected auto, register, map or direct", o.stream);
    if (as < 0)
        return hv_fail(e, HV_EUSAGE, "--weights-dtype '%s': expected as-is, f16, bf16, int8 or fp8", o.dtype);
    if (as && !o.plan)
        return hv_fail(e, HV_EUSAGE, "--weights-dtype: without --plan the model says it; hv-weights quantize makes another");
    j->stream = (enum hv_stream_mode)way;
    j->weights = dtype[as];
    return 0;
}

static int parse(struct job *j, int argc, char **argv, struct hv_err *e)
{
    const int rc = hv_cli_parse(&cli, argc, argv, e);

    if (rc)
        return rc;
    if (o.plan && *o.plan && strcmp(o.plan, "json"))
        return hv_fail(e, HV_EUSAGE, "--plan=%s: json, or nothing", o.plan);
    if (!o.prompt && !o.plan)
        return hv_fail(e, HV_EUSAGE, "no prompt: -p TEXT, or -p \"\" for none");
    if (!o.c.n_operands && !o.plan)
        return hv_fail(e, HV_EUSAGE, "missing operand: PICTURE");
    if (o.prompt && o.c.n_operands && !strcmp(o.prompt, "-") && !strcmp(o.c.operand[0], "-"))
        return hv_fail(e, HV_EUSAGE, "both the prompt and the picture from standard input");
    return read_words(j, e);
}

/* ---- the prompts ---- */

/* All of stdin without its last newline; *n bytes, owned by the caller. */
static char *read_stdin(size_t *n, struct hv_err *e)
{
    char *s = malloc(PROMPT_BYTES + 1);

    *n = s ? fread(s, 1, PROMPT_BYTES + 1, stdin) : 0;
    if (!s)
        hv_fail(e, HV_ENOMEM, "no memory for the prompt");
    else if (ferror(stdin))
        hv_fail(e, HV_EIO, "stdin: %s", strerror(errno));
    else if (*n > PROMPT_BYTES)
        hv_fail(e, HV_EINPUT, "stdin: the prompt is over %zu bytes", PROMPT_BYTES);
    if (*n && s[*n - 1] == '\n')
        --*n;
    return s;
}

static int make_text(struct job *j, int which, const char *given, size_t *n, struct hv_err *e)
{
    const char *prefix = which == POSITIVE && !o.no_prefix ? j->config.quality : "";
    const size_t head = strlen(prefix);
    char *in = NULL;

    *n = strlen(given);
    if (which == POSITIVE && !strcmp(given, "-"))
        in = read_stdin(n, e);
    /* Here, where offsets are still those of the text that was given. */
    const char *text = in ? in : given;
    const size_t bad = e->code ? *n : hv_utf8_check(text, *n);
    if (bad < *n)
        hv_fail(e, HV_EINPUT, "text is not UTF-8: byte 0x%02x at offset %zu", (unsigned char)text[bad], bad);
    if (!e->code && !(j->text[which] = malloc(head + *n + 1)))
        hv_fail(e, HV_ENOMEM, "no memory for the prompt");
    if (!e->code) {
        memcpy(j->text[which], prefix, head);
        memcpy(j->text[which] + head, text, *n);
        *n += head;
        j->text[which][*n] = 0;
    }
    free(in);
    return e->code;
}

static int encode_text(struct job *j, int which, const char *given, struct hv_err *e)
{
    const char *what = which == POSITIVE ? "prompt" : "negative prompt";
    int64_t dropped = 0;
    size_t n;

    if (make_text(j, which, given, &n, e) ||
        hv_prompt_encode(&j->prompt[which], &j->config, j->bpe[0], (int32_t)j->llama.image_token, (int32_t)j->llama.pad_token,
                         j->text[which], n, o.name, e) ||
        hv_prompt_encode_clip(&j->clip_ids[which], j->bpe[1], j->text[which], n, j->clip.positions, &dropped, e))
        return hv_context(e, "%s", what);
    if (j->prompt[which].dropped)
        hv_note(&cli, "%s: too long: its last %lld tokens are dropped", what, (long long)j->prompt[which].dropped);
    if (dropped)
        hv_note(&cli, "%s: too long for the second encoder, which does not see the last %lld tokens", what, (long long)dropped);
    return 0;
}

void language_seqs(struct llama_seq seq[PROMPTS], const struct job *j)
{
    const int64_t I = vit_rows(&j->vit);

    for (int i = 0; i < PROMPTS; i++) {
        const struct hv_prompt *p = &j->prompt[i];
        seq[i] = (struct llama_seq){p->ids, p->n, p->image, p->total + I - 1, j->config.crop_start};
    }
}

void clip_texts(struct clip_text text[PROMPTS], const struct job *j)
{
    for (int i = 0; i < PROMPTS; i++)
        text[i] = (struct clip_text){j->clip_ids[i].id, (int64_t)j->clip_ids[i].n};
}

/* ---- input ---- */

static int configure(struct job *j, struct hv_err *e)
{
    char dir[2][HV_PATH];
    int64_t head = 0;

    if (hv_part_config(&j->json[0], o.c.model, LLAVA, e) || hv_part_config(&j->json[1], o.c.model, CLIP, e))
        return e->code;
    if (vit_config_parse(&j->vit, j->json[0], e) || llama_config_parse(&j->llama, j->json[0], e) ||
        hv_prompt_config_parse(&j->config, j->json[0], e))
        return hv_context(e, "%s/" LLAVA "/config.json", o.c.model);
    if (clip_config_parse(&j->clip, j->json[1], e))
        return hv_context(e, "%s/" CLIP "/config.json", o.c.model);
    snprintf(dir[0], HV_PATH, "%s/" LLAVA, o.c.model);
    snprintf(dir[1], HV_PATH, "%s/" CLIP, o.c.model);
    if (hv_bpe_open_llama(&j->bpe[0], dir[0], e) || hv_bpe_open_clip(&j->bpe[1], dir[1], e) ||
        hv_prompt_prefix_ids(&j->config, j->bpe[0], &head, e))
        return e->code;
    if (head != j->config.crop_start)
        hv_note(&cli, "%s: the template's beginning has %lld tokens, but %lld rows are cropped", dir[0], (long long)head,
                (long long)j->config.crop_start);
    return 0;
}

static int read_portrait(struct job *j, struct hv_err *e)
{
    const int side = (int)j->vit.image;
    struct hv_image small = {0};

    if (hv_image_portrait(&j->portrait, o.c.operand[0], (int)o.image_size, !o.no_exif, e) ||
        hv_image_resize(&small, &j->portrait, side, side, HV_BILINEAR, e))
        return e->code;
    j->pixels = malloc(3 * sizeof *j->pixels * (size_t)side * (size_t)side);
    if (j->pixels)
        vit_pixels(j->pixels, small.rgb, side);
    hv_image_close(&small);
    return j->pixels ? 0 : hv_fail(e, HV_ENOMEM, "no memory for the picture");
}

/* ---- output ---- */

static hv_tensor new_tensor(struct job *j, const char *key, hv_dtype t, int ndim, const int64_t *shape, struct hv_err *e)
{
    return hv_view(hv_out_new(&j->out, key, t, ndim, shape, e), t, ndim, shape);
}

/* The tensors of text.st in the order of the contract; masks are filled here. */
static int make_output(struct job *j, struct hv_err *e)
{
    static const char *const keys[PROMPTS][3] = {
        {"text.states", "text.mask", "text.pooled"}, {"text.neg_states", "text.neg_mask", "text.neg_pooled"},
    };
    const int64_t rows = vit_rows(&j->vit), L = hv_prompt_mask_len(&j->config, rows), P = j->clip.stack.hidden;
    hv_tensor mask[PROMPTS] = {{0}};
    float *pooled = calloc((size_t)(PROMPTS * P), sizeof *pooled);

    j->pooled = hv_view(pooled, HV_F32, 2, (int64_t[]){PROMPTS, P});
    if (!pooled)
        return hv_fail(e, HV_ENOMEM, "no memory for the result");
    for (int i = 0; i < PROMPTS && !e->code; i++) {
        j->states[i] = new_tensor(j, keys[i][0], HV_F32, 2, (int64_t[]){L, j->llama.hidden}, e);
        mask[i] = new_tensor(j, keys[i][1], HV_I64, 1, &L, e);
        hv_out_add(&j->out, keys[i][2], hv_index(j->pooled, i));
        if (!e->code)
            hv_prompt_mask(mask[i].data, &j->config, &j->prompt[i], rows);
    }
    return e->code;
}

static void close_job(struct job *j)
{
    for (int i = 0; i < PROMPTS; i++) {
        free(j->text[i]);
        hv_prompt_close(&j->prompt[i]);
        hv_ids_close(&j->clip_ids[i]);
    }
    for (int i = 0; i < 2; i++) {
        hv_bpe_close(j->bpe[i]);
        json_decref(j->json[i]);
    }
    hv_out_close(&j->out);
    hv_image_close(&j->portrait);
    free(j->pixels);
    free(j->pooled.data);
}

int main(int argc, char **argv)
{
    struct hv_err e = {0};
    struct job j = {0};

    if (parse(&j, argc, argv, &e) < 0)
        return hv_exit("hv-text", &e);
    if (!e.code && !configure(&j, &e) && !encode_text(&j, POSITIVE, o.prompt ? o.prompt : "", &e) &&
        !encode_text(&j, NEGATIVE, o.negative ? o.negative : j.config.negative, &e) && (o.plan || !read_portrait(&j, &e)) &&
        !make_output(&j, &e) && !compute(&j, &e) && !o.plan) {
        hv_contract_stamp(&j.out, &(struct hv_stamp){.stage = "hv-text", .width = j.portrait.width, .height = j.portrait.height,
                                                     .model = j.model});
        hv_out_write(&j.out, o.c.output, &e);
    }
    close_job(&j);
    return hv_exit("hv-text", &e);
}
