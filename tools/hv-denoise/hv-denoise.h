/* hv-denoise.h - what the files of hv-denoise share. */
#ifndef HV_DENOISE_TOOL_H
#define HV_DENOISE_TOOL_H

#include "core/cli.h"
#include "model/denoise.h"

#define CONTEXT_MIB 527         /* a CUDA context with its kernels and handles, measured on an H200: assumed where no device says */
#define LATER_MIB   5           /* kernels of cuBLASLt that are loaded when they are first wanted; measured there too */
#define CUDNN_MIB   11          /* cuDNN's handle and kernels, likewise */

struct options {
    struct hv_common c;
    int64_t        steps, seed, max_frames, text_rows, head_group, repeat;
    double         shift, guidance;
    const char    *rng, *noise, *cache, *carry, *size, *frames, *plan, *bench, *chunk_rows;
    const char    *activations, *gemm, *ring, *attention, *stream, *branches, *ahead, *resident, *dtype;
    int            keep_ref, keep_noise;
    struct hv_size vram, ram;
};

extern struct options o;
extern const struct hv_cli cli;

/* What the options say, read once. */
struct settings {
    int64_t               sm, tps;              /* of --rng cuda; sm 0: cpu */
    int64_t               width, height, frames;        /* of --size and --frames, in pixels; 0: not given */
    enum flow_carry       carry;
    struct dit_choice     choice;
    int                   fp8;                  /* products of fp8 by fp8 */
    hv_dtype              weights;              /* of --weights-dtype: of a plan or bench without a model; HV_NONE: not given */
    struct hv_stream_opts stream;
    uint8_t               full[FLOW_STEPS_MAX];
};

int settings_read(struct settings *s, struct hv_err *e);

/* A plan that fits: what is kept where, and how long a forward is predicted to take (0: not predicted). */
struct fitted {
    const struct dit_config *config;
    struct dit_size    size;
    struct dit_choice  choice;
    struct dit_machine machine;
    struct hv_plan     device, host;
    struct hv_stream_opts stream;
    size_t             context;         /* bytes that the device's context takes */
    double             seconds;
};

/* Fills it in for the budgets. info: the open device; NULL: none, its context and rates are assumed. weights: of the blocks. */
int fit(struct fitted *f, const struct settings *s, const struct denoise_job *j, const struct hv_dev_info *info, hv_dtype weights,
        struct hv_err *e);

/* "groups of 4 heads, chunks of 4096 and 4096 rows, x on the device, .." into buf. */
const char *choice_text(char *buf, size_t size, const struct fitted *f);

/* Prints the plan of a job whose tensors need no data. */
int print_plan(const struct denoise_job *j, const struct settings *s, struct hv_err *e);

/* Times forwards of synthetic weights: bench.c. */
int bench(const struct denoise_job *j, const struct settings *s, struct hv_err *e);

/* What the process has taken of the device: its context when it was opened, and what is free less since. */
uint64_t measured_bytes(const struct fitted *f, const struct hv_dev_info *before, const struct hv_dev_info *now);

/* Opens the device as the options say. */
int open_device(struct hv_dev **d, const struct settings *s, struct hv_dev_info *info, struct hv_err *e);

#endif
