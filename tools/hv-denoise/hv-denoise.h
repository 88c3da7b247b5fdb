/* hv-denoise.h - what the files of hv-denoise share. */
#ifndef HV_DENOISE_TOOL_H
#define HV_DENOISE_TOOL_H

#include "core/cli.h"
#include "io/contract.h"
#include "mem/budget.h"
#include "model/denoise.h"

#define CUDNN_MIB   11          /* cuDNN's handle and kernels, measured on an H200 */

struct options {
    struct hv_common c;
    int64_t        steps, seed, max_frames, overlap, text_rows, head_group, repeat;
    double         shift, guidance;
    const char    *rng, *noise, *cache, *carry, *size, *frames, *plan, *bench, *chunk_rows;
    const char    *activations, *gemm, *ring, *attention, *stream, *branches, *ahead, *resident, *dtype;
    const char    *state, *preview;
    int            keep_ref, keep_noise, resume;
    int64_t        stop_after, preview_every;
    double         state_every, strength, motion_exp, motion_pose;
    struct hv_strs voice;
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
    enum denoise_cache    cache;
    double                threshold, speedup;   /* of --cache tea and mag; mag's threshold follows from the size */
    uint8_t               full[FLOW_STEPS_MAX];
};

/* "0-13,16": the steps that are marked. Returns buf. */
const char *steps_text(char *buf, size_t size, const uint8_t *full, int n);

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

/* ---- rates.c: measurements of --bench, kept for --plan ---- */

struct rate {
    double flops;                       /* a second, of a full forward */
    double cached;                      /* time of a cached forward, as a share of a full one */
    char   name[96];                    /* where it was measured */
};

void rates_keep(const struct fitted *f, const char *name, double flops, double full, double cached);
int  rates_find(struct rate *r, const struct fitted *f);        /* 1 if this kind of run was measured */

/* What the process has taken of the device: its context when it was opened, and what is free less since. */
uint64_t measured_bytes(const struct fitted *f, const struct hv_dev_info *before, const struct hv_dev_info *now);

/* ---- input ---- */

struct input {
    struct dit_config  config;
    struct hv_operands in;
    struct hv_in      *noise_file;
    float             *noise;           /* owned */
    struct hv_operands voice[DENOISE_VOICES];   /* of --voice */
    char              *sounds;          /* of several voices, one after the other; owned */
    int64_t            wanted;          /* video frames that the sound needs */
    double             fps;
};

/* The voices of --voice after the one of the operands, if that has one (then job->voices is 1). HV_EINPUT: another length or mask. */
int  voices_read(struct denoise_job *j, struct input *x, struct hv_err *e);
void voices_close(struct input *x);

/* What latent.st and state.st say of their run: settings, sizes, digest of the weights. */
void stamp(struct hv_out *out, const struct denoise_job *j, const struct input *x, const struct settings *s, const char *model, int step);

/* ---- state.c: a run put aside after each step, and taken up again ----
 *
 *     st = state_watch(e);                             // before any other thread is started: signals
 *     state_open(st, job, input, settings, preview, e);    // takes the file for this process, reads it with --resume
 *     state_plan(st, settings);                        // groups and chunks as they were: they round
 *     state_fits(st, digest of the weights, fitted, info, e);  // sets job->first and job->start
 *     state_restore(st, net, e);                       // after dit_open: step caches
 *     denoise(...)                                     // job->done is state_done, which keeps a copy that a thread writes
 *     state_close(st, e);                              // waits for the thread; reports a failure that matters
 *
 * A state that does not fit this run is HV_EINPUT with a list of what differs; one that another process has is HV_EIO. Without
 * --state all of it does nothing, but for SIGUSR1. */

struct state;

struct preview;

struct state *state_watch(struct hv_err *e);
int  state_open(struct state *st, struct denoise_job *j, const struct input *x, const struct settings *s, struct preview *p, struct hv_err *e);
void state_plan(const struct state *st, struct settings *s);
int  state_fits(struct state *st, const char *model, const struct fitted *f, const struct hv_dev_info *info, struct hv_err *e);
int  state_is_done(const struct state *st);             /* 1: nothing is left to compute */
int  state_restore(struct state *st, struct dit *net, struct hv_err *e);
int  state_stopped(const struct state *st);             /* 1: --stop-after ended the run before its last step */
int  state_close(struct state *st, struct hv_err *e);   /* takes NULL */

/* ---- preview.c: a look at the latents while they are made ----
 *
 *     preview_open(&p, job, fps, e);                   // job->clean_every is set; p stays NULL without --preview
 *     preview_show(p, now);                            // in job->done: copies; a thread draws and writes
 *     preview_close(p);                                // waits for the last one
 *
 * A picture that cannot be written is told once, and the render goes on. While one is being drawn the next one is left out. */

int  preview_open(struct preview **p, struct denoise_job *j, double fps, struct hv_err *e);
void preview_show(struct preview *p, const struct denoise_now *now);
void preview_close(struct preview *p);

/* Bytes of the copy: latents and what the network keeps, as rows of its plan say. */
int64_t state_bytes(const struct hv_plan *host, const struct denoise_job *j);

/* Opens the device as the options say. */
int open_device(struct hv_dev **d, const struct settings *s, struct hv_dev_info *info, struct hv_err *e);

#endif
