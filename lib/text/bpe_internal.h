/* bpe_internal.h - what bpe.c (encoding) and bpe_read.c (files) share. */
#ifndef HV_BPE_INTERNAL_H
#define HV_BPE_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/bpe.h"
#include "text/vocab.h"

/* White_Space within a class of a pattern. PCRE2's own \s also takes U+180E, which lost the property in Unicode 6.3. */
#define WS "\\p{Z}\\t-\\r\\x{85}"

enum hv_bpe_kind { HV_BPE_LLAMA, HV_BPE_CLIP };

struct hv_added {
    char   *text;
    size_t  n;
    int32_t id;
    int     lstrip, rstrip, single_word, normalized;
};

struct hv_bpe {
    enum hv_bpe_kind kind;
    struct hv_vocab *vocab;
    struct hv_added *added;             /* longest first */
    int              n_added;
    unsigned char    heads[256];        /* 1 where an added token begins with this byte */
    int              ignore_merges;
    int32_t          first, last;
    int32_t          base[2][256];      /* symbol of each byte; [1]: with "</w>" */
    pcre2_code      *pattern, *word;    /* word: one character of a word, for single_word; NULL when no token asks for it */
};

/* The letter of a byte in the byte alphabet, as UTF-8 to buf; its length. */
int hv_bpe_letter(char buf[4], unsigned char byte);

/* Compiles the pattern of the flavour and finds the symbols of the bytes: the last step of making one. */
int hv_bpe_finish(struct hv_bpe *b, struct hv_err *e);

/* The pattern that a tokenizer.json must have. */
extern const char hv_bpe_llama_regex[];

#endif
