/* listing.h - a tensor file as text or JSON: what hv-tensor list and hv-weights list print. */
#ifndef HV_LISTING_H
#define HV_LISTING_H

#include <stdio.h>

#include "core/json.h"
#include "io/st.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_ENTRY_STR 192

/* "[129,10,5,384]" into buf; returns buf. */
const char *hv_entry_shape(const struct hv_entry *t, char buf[HV_ENTRY_STR]);

/* Prints a string from a file: control characters as \xNN, so that a name cannot steer a terminal. Returns its width. */
int hv_print_safe(FILE *f, const char *text);

/* One line a tensor, "name  dtype  shape  bytes", after the metadata as "# key: value" when with_meta is set. */
void hv_listing(FILE *f, const struct hv_in *in, int with_meta);

/* {"file", "metadata": {..}, "tensors": [{"name", "dtype", "shape", "begin", "bytes"}]}; NULL when out of memory. */
json_t *hv_listing_json(const struct hv_in *in);

/* Lists n files, "-" among them for stdin: as hv_listing prints, each under its name when there are several; or as a JSON array
 * of what hv_listing_json makes. */
int hv_listing_files(FILE *f, const char *const *path, int n, int json, int with_meta, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
