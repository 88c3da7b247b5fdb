/* bpe.h - text to token ids by byte-pair encoding, in two flavours.
 *
 *     struct hv_bpe *b = NULL;
 *     struct hv_ids ids = {0};
 *     if (!hv_bpe_open_llama(&b, "model/text_encoder", e) && !hv_bpe_encode(b, text, n, &ids, e)) ... ids.id[0 .. ids.n)
 *     hv_ids_close(&ids);
 *     hv_bpe_close(b);
 *
 * Llama-3 (tokenizer.json): the text is cut at added tokens (leftmost, longest first; "<|eot_id|>" typed by a user is one),
 * the pieces by the file's pattern, each word's bytes become letters of the byte alphabet, and merges join them by rank; with
 * ignore_merges a whole word of the vocabulary is taken as it is. One beginning-of-text id is put in front, no end.
 *
 * CLIP (vocab.json + merges.txt, or the same in tokenizer.json): the rules of transformers' CLIPTokenizer without ftfy, which
 * differ from its tokenizer.json: control and format characters go, blanks around CJK ideographs, NFC, lower case word by
 * word, the CLIP pattern, "</w>" at the end of each word, unknown symbols become <|endoftext|>. The ids begin with
 * <|startoftext|> and end with <|endoftext|>; nothing is cut or padded here.
 *
 * Bytes with code points 33-126, 161-172 and 174-255 stand for themselves in the byte alphabet; the others, in order, are
 * U+0100, U+0101, .. */
#ifndef HV_BPE_H
#define HV_BPE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A growing list of ids. */
struct hv_ids {
    int32_t *id;
    size_t   n, cap;
};

int  hv_ids_push(struct hv_ids *s, int32_t id, struct hv_err *e);       /* HV_ENOMEM */
void hv_ids_close(struct hv_ids *s);

struct hv_bpe;

/* Reads DIR/tokenizer.json and, where it is there, DIR/tokenizer_config.json (for the name of the beginning-of-text token).
 * HV_EIO: not there; HV_EINPUT: malformed; HV_EUNSUP: a normalizer, pre-tokenizer, pattern or model of another kind. */
int hv_bpe_open_llama(struct hv_bpe **b, const char *dir, struct hv_err *e);

/* Reads DIR/vocab.json and DIR/merges.txt, or DIR/tokenizer.json where vocab.json is not there. */
int hv_bpe_open_clip(struct hv_bpe **b, const char *dir, struct hv_err *e);

/* The same from memory. config may be NULL; merges: the text of merges.txt, whose first line is a comment. */
int hv_bpe_from_llama(struct hv_bpe **b, const json_t *tokenizer, const json_t *config, struct hv_err *e);
int hv_bpe_from_clip(struct hv_bpe **b, const json_t *vocab, const char *merges, size_t n, struct hv_err *e);
int hv_bpe_from_clip_json(struct hv_bpe **b, const json_t *tokenizer, struct hv_err *e);

void hv_bpe_close(struct hv_bpe *b);

/* Appends the ids of n bytes of UTF-8 (NUL included). HV_EINPUT: not UTF-8. */
int hv_bpe_encode(const struct hv_bpe *b, const char *text, size_t n, struct hv_ids *out, struct hv_err *e);

/* Id of a string of the vocabulary or of an added token, -1 if there is none. */
int32_t hv_bpe_id(const struct hv_bpe *b, const char *content);

/* Text of an added token, NULL if the id is none. */
const char *hv_bpe_added(const struct hv_bpe *b, int32_t id);

/* Ids that stand around a text: Llama's beginning (no end: -1), CLIP's start and end. */
int32_t hv_bpe_first(const struct hv_bpe *b);
int32_t hv_bpe_last(const struct hv_bpe *b);

#ifdef __cplusplus
}
#endif
#endif
