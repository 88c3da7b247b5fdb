/* utf8.h - is this text? */
#ifndef HV_UTF8_H
#define HV_UTF8_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1 if n bytes are well-formed UTF-8 (no surrogates, nothing overlong) without U+0000. */
int hv_utf8_valid(const void *text, size_t n);

#ifdef __cplusplus
}
#endif
#endif
