/* unicode.h - what tokenizers need of Unicode: UTF-8, categories, NFC, lower case. The tables are those of Unicode 14.
 *
 *     struct hv_cps c = {0}, n = {0};
 *     if (!hv_cps_from_utf8(&c, text, len, e) && !hv_nfc(&n, &c, e) && !hv_lower(&n, 0, n.n)) ...
 *     hv_cps_close(&c), hv_cps_close(&n); */
#ifndef HV_UNICODE_H
#define HV_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A growing string of code points. */
struct hv_cps {
    uint32_t *c;
    size_t    n, cap;
};

int  hv_cps_push(struct hv_cps *s, uint32_t c, struct hv_err *e);       /* HV_ENOMEM */
void hv_cps_close(struct hv_cps *s);

/* One code point at s (n > 0 bytes left) to *c; returns its bytes, 0 where this is not UTF-8: overlong forms, surrogates and
 * values over U+10FFFF are not. */
int hv_utf8_get(const char *s, size_t n, uint32_t *c);

/* Writes c, returns its bytes (1 to 4). */
int hv_utf8_put(char buf[4], uint32_t c);

/* Offset of the first byte that is not UTF-8, n when all is. */
size_t hv_utf8_check(const char *s, size_t n);

/* Appends the code points of a text; HV_EINPUT: not UTF-8, with the offset. */
int hv_cps_from_utf8(struct hv_cps *out, const char *s, size_t n, struct hv_err *e);

enum { HV_UC_OTHER = 1, HV_UC_SPACE = 2, HV_UC_CASED = 4, HV_UC_IGNORABLE = 8 };

/* Flags of a code point: category C* (Cc, Cf, Cs, Co, Cn); category Zs; cased; case-ignorable (never with cased). */
unsigned hv_uc(uint32_t c);

/* 1 for White_Space. */
int hv_uc_is_white(uint32_t c);

/* Appends the Normalization Form C of in. */
int hv_nfc(struct hv_cps *out, const struct hv_cps *in, struct hv_err *e);

/* Appends the lower case of the word in[0..n): full mapping (U+0130 becomes two), and the rule of the final sigma within the
 * word. */
int hv_lower(struct hv_cps *out, const uint32_t *in, size_t n, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
