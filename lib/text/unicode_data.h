/* unicode_data.h - tables of unicode.c, made by unicode_data.py. Each is sorted by code point; NAME_n is its length. */
#ifndef HV_UNICODE_DATA_H
#define HV_UNICODE_DATA_H

#include <stdint.h>

/* Runs: code point << 4 | flags from there on. 1: category C*, 2: category Zs, 4: cased, 8: case-ignorable. */
extern const uint32_t hv_uc_flags[];
extern const int      hv_uc_flags_n;

/* Runs: code point << 8 | canonical combining class from there on. */
extern const uint32_t hv_uc_ccc[];
extern const int      hv_uc_ccc_n;

/* first, first + stride, .., last become themselves + delta in lower case. */
struct hv_uc_lower_run {
    int32_t first, last, stride, delta;
};
extern const struct hv_uc_lower_run hv_uc_lower[];
extern const int                    hv_uc_lower_n;

/* Canonical decompositions of one step, Hangul syllables left out: code point | first << 21 | second << 42 (0: none), and
 * bit 63 where the pair composes again. */
extern const uint64_t hv_uc_decomp[];
extern const int      hv_uc_decomp_n;

#endif
