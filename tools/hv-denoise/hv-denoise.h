/* hv-denoise.h - what the files of hv-denoise share. */
#ifndef HV_DENOISE_TOOL_H
#define HV_DENOISE_TOOL_H

#include "core/cli.h"
#include "model/denoise.h"

#define CONTEXT_MIB 527         /* a CUDA context with its kernels and handles, measured on an H200: no row of a plan */

struct options {
    struct hv_common c;
    int64_t        steps, seed, max_frames, text_rows, head_group;
    double         shift, guidance;
    const char    *rng, *noise, *cache, *carry, *size, *frames, *plan, *chunk_rows;
    int            keep_ref, keep_noise;
    struct hv_size vram, ram;
};

extern struct options o;
extern const struct hv_cli cli;

/* What the options say, read once. */
struct settings {
    int64_t           sm, tps;                  /* of --rng cuda; sm 0: cpu */
    int64_t           width, height, frames;    /* of --size and --frames, in pixels; 0: not given */
    enum flow_carry   carry;
    struct dit_choice choice;
    uint8_t           full[FLOW_STEPS_MAX];
};

int settings_read(struct settings *s, struct hv_err *e);

/* Fills in choice and size for the budgets, checks --ram. dev: "cpu" or "cuda". */
int fit(struct dit_size *size, struct dit_choice *choice, struct hv_plan *device, struct hv_plan *host,
        const struct denoise_job *j, struct hv_err *e);

/* Prints the plan of a job whose tensors need no data. */
int print_plan(const struct denoise_job *j, const struct settings *s, struct hv_err *e);

#endif
