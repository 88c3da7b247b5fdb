/* hv-tensor.h - the commands of hv-tensor, and what they share. */
#ifndef HV_TENSOR_TOOL_H
#define HV_TENSOR_TOOL_H

#include "core/cli.h"
#include "core/json.h"
#include "io/st.h"

/* Each parses its own options (argv[0] is the command), and returns 0, -1 (help was printed) or a code. */
int cmd_list(int argc, char **argv, struct hv_err *e);
int cmd_stats(int argc, char **argv, struct hv_err *e);
int cmd_diff(int argc, char **argv, struct hv_err *e);
int cmd_convert(int argc, char **argv, struct hv_err *e);
int cmd_slice(int argc, char **argv, struct hv_err *e);
int cmd_merge(int argc, char **argv, struct hv_err *e);
int cmd_check(int argc, char **argv, struct hv_err *e);
int cmd_preview(int argc, char **argv, struct hv_err *e);
int cmd_fit_preview(int argc, char **argv, struct hv_err *e);

/* ---- values.c ---- */

/* Any dtype to doubles (64-bit integers above 2^53 lose digits), and back: integers are rounded and saturated. */
void to_f64(double *dst, hv_dtype t, const void *src, size_t n);
void from_f64(hv_dtype t, void *dst, const double *src, size_t n);

size_t entry_count(const struct hv_entry *t);

/* 1 if keys is empty or holds the name. */
int wanted(const struct hv_strs *keys, const char *name);

/* HV_EINPUT, naming the key, when an asked-for key is in none of the files. */
int all_there(const struct hv_strs *keys, struct hv_in *const *in, int n, struct hv_err *e);

/* "[3,17,0]": the index of element i of a tensor. */
const char *index_text(const struct hv_entry *t, int64_t i, char buf[192]);

/* ---- shape.c: tensors on their way from files to a file ---- */

struct range {
    int64_t first, n, step;
    int     drop;                       /* a single index: the dimension goes */
};

/* One tensor of the output: where it comes from, which part, as which dtype. */
struct source {
    const struct hv_in    *in;
    const struct hv_entry *t;
    hv_dtype               as;
    int                    sliced;
    struct range           r[HV_ST_DIMS];
};

/* Writes the sources in order, under their names; out holds the metadata. */
int write_sources(struct hv_out *out, const struct source *s, int n, const char *path, struct hv_err *e);

/* Copies metadata that out has not yet; returns the first key whose value differs from what is there, or NULL. */
const char *copy_metadata(struct hv_out *out, const struct hv_in *in);

#endif
