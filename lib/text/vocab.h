/* vocab.h - symbols of a byte-pair encoding, their ids and the ranked merges of pairs.
 *
 *     struct hv_vocab *v = NULL;
 *     if (!hv_vocab_open(&v, e) && !hv_vocab_add(v, "th", 2, 17, e) && !hv_vocab_merge(v, "t", 1, "h", 1, e)) ...
 *     hv_vocab_apply(v, symbols, &n, e);                   // merges in place until no pair is known
 *     hv_vocab_close(v);
 *
 * A symbol is a string with a number of its own; it has an id when the vocabulary names it. */
#ifndef HV_VOCAB_H
#define HV_VOCAB_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_VOCAB_MAX (1 << 22)          /* symbols, and merges */

struct hv_vocab;

int  hv_vocab_open(struct hv_vocab **v, struct hv_err *e);
void hv_vocab_close(struct hv_vocab *v);

/* Makes a symbol with an id. HV_EINPUT: the string is there with another id. */
int hv_vocab_add(struct hv_vocab *v, const char *s, size_t n, int32_t id, struct hv_err *e);

/* The symbol of a string, -1 if there is none; its id, -1 if it has none. */
int32_t hv_vocab_symbol(const struct hv_vocab *v, const char *s, size_t n);
int32_t hv_vocab_id(const struct hv_vocab *v, int32_t symbol);

/* The next merge in order of rank; makes the symbols that are not there. A pair that comes twice keeps the later rank. */
int hv_vocab_merge(struct hv_vocab *v, const char *a, size_t na, const char *b, size_t nb, struct hv_err *e);

/* 1 when both sides and the result of every merge have ids. */
int hv_vocab_is_closed(const struct hv_vocab *v);

/* Merges the adjacent pair of the lowest rank, the leftmost of equals, until no adjacent pair is known: n log n steps. */
int hv_vocab_apply(const struct hv_vocab *v, int32_t *symbol, size_t *n, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
