/* prompt.h - the text around a prompt, its ids, and what is cropped from them.
 *
 *     struct hv_prompt_config c;
 *     struct hv_prompt p = {0};
 *     if (!hv_prompt_config_parse(&c, root, e)                         // root: config.json of the text encoder
 *         && !hv_prompt_encode(&p, &c, bpe, image, pad, "a man speaking", 14, e)) ... p.ids[0 .. p.n)
 *     hv_prompt_close(&p);
 *
 *     text = PREFIX + prompt + SUFFIX        template "PREFIX{}..." up to its "{}", then the rest of it and the suffix
 *     ids  = beginning-of-text, ids of the text, pads up to text_len + crop_start
 *
 * (hymm_sp/text_encoder/__init__.py). The prompt is copied as it is: braces in it mean nothing. Where it is too long, the
 * reference loses the image token and fails; here ids are dropped from the end of the prompt until the suffix fits. */
#ifndef HV_PROMPT_H
#define HV_PROMPT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "text/bpe.h"

#ifdef __cplusplus
extern "C" {
#endif

struct hv_prompt_config {
    const char *template, *suffix;      /* the one with "{}" */
    const char *quality, *negative;     /* put before a positive prompt; the negative prompt */
    int64_t     crop_start, text_len, skip_layers;
};

/* Reads the key "hv_text" of root: template, suffix, quality_prefix, negative_prompt, crop_start, text_len, skip_layers; what
 * is absent, the key itself included, has the reference's value. Strings stay owned by root (or are constants).
 * HV_EINPUT: a value of another type or out of range, a template without exactly one "{}". */
int hv_prompt_config_parse(struct hv_prompt_config *c, const json_t *root, struct hv_err *e);

struct hv_prompt {
    int32_t *ids;                       /* owned: [total], padded */
    int64_t  n, total;                  /* ids that count; text_len + crop_start */
    int64_t  image;                     /* index of the image token */
    int64_t  dropped;                   /* ids of the prompt that did not fit */
};

/* Ids of one prompt of n bytes. The suffix is c->suffix, its first "person" replaced by `name` when that is not NULL.
 * HV_EINPUT: not UTF-8; the image token inside the prompt or the name, or not exactly once in the template; a text_len that
 * the suffix alone fills. HV_EUSAGE: a name, but no "person" in the suffix. */
int  hv_prompt_encode(struct hv_prompt *p, const struct hv_prompt_config *c, const struct hv_bpe *b, int32_t image, int32_t pad,
                      const char *prompt, size_t n, const char *name, struct hv_err *e);
void hv_prompt_close(struct hv_prompt *p);

/* Ids of the text before the prompt, beginning-of-text included: crop_start should be that many. */
int hv_prompt_prefix_ids(const struct hv_prompt_config *c, const struct hv_bpe *b, int64_t *n, struct hv_err *e);

/* The reference's mask of the cropped rows: L = text_len + image_rows - 1 entries, 1^(n - crop) 0^(total - n)
 * 1^(image_rows - 1). Its sum is the number of valid rows; its zeros are not where the pads are. */
int64_t hv_prompt_mask_len(const struct hv_prompt_config *c, int64_t image_rows);
void    hv_prompt_mask(int64_t *mask, const struct hv_prompt_config *c, const struct hv_prompt *p, int64_t image_rows);

/* CLIP's ids of a prompt: at most `most`, the last one always the end; *dropped: how many did not fit. Nothing is padded, as
 * no row after the end is looked at. */
int hv_prompt_encode_clip(struct hv_ids *ids, const struct hv_bpe *b, const char *prompt, size_t n, int64_t most,
                          int64_t *dropped, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
