/* golden.h - runs the goldens below a folder against the library. One file a part (golden_vae.c, ..) offers a function that
 * takes a folder and runs every case in it; a case that fails does not stop the others. Sizes, configs, seeds and tolerances
 * come from the files and their READMEs' rules, never from a list of known cases. */
#ifndef HV_GOLDEN_H
#define HV_GOLDEN_H

#include "core/err.h"
#include "core/tensor.h"
#include "io/st.h"

struct golden {
    int passed, failed, skipped;
    int threads;
    const char *device;                 /* "cpu"; with "cuda" the bounds are those of bf16 */
    const char *bin;                    /* folder of the built tools, for parts that drive them */
    const char *only;                   /* run only cases whose path contains this, or NULL */
};

/* 1 on a GPU: activations and weights are bf16 there, and only what the READMEs say of bf16 can be asked. */
int golden_bf16(const struct golden *g);

/* 1 - cosine allowed to bf16 against a golden of f32, and the largest error where a golden has an rms of about 1. */
#define GOLDEN_BF16_GAP 5e-4
#define GOLDEN_BF16_ABS 0.15

/* Compares two tensors of the same shape (any dtype, widened to f64) and prints: case, tensor, max abs error, 1 - cosine,
 * tolerance, verdict. max_abs < 0 or one_minus_cos < 0: not checked. A NaN is a failure. Returns 1 when it passed. */
int golden_compare(struct golden *g, const char *name, const char *tensor, hv_tensor got, hv_tensor want, double max_abs,
                   double one_minus_cos);

/* One line with a verdict of its own. */
int  golden_verdict(struct golden *g, const char *name, const char *tensor, int ok, const char *fmt, ...)
     __attribute__((format(printf, 5, 6)));
void golden_skip(struct golden *g, const char *name, const char *why);

/* A case that could not run: counts as failed, prints the message. */
void golden_error(struct golden *g, const char *name, const struct hv_err *e);

/* Calls fn for every file of dir whose name ends with suffix, sorted by name; name is the file name without suffix. */
void golden_each(struct golden *g, const char *dir, const char *suffix,
                 void (*fn)(struct golden *g, const char *path, const char *name));

/* 1 if path exists. */
int golden_exists(const char *path);

void golden_audio(struct golden *g, const char *dir);
void golden_face(struct golden *g, const char *dir);
void golden_sampling(struct golden *g, const char *dir);
void golden_text(struct golden *g, const char *dir);
void golden_transformer(struct golden *g, const char *dir);
void golden_vae(struct golden *g, const char *dir);
void golden_weights(struct golden *g, const char *dir);

#endif
