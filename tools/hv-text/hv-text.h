/* hv-text.h - what the files of hv-text share. */
#ifndef HV_TEXT_TOOL_H
#define HV_TEXT_TOOL_H

#include "core/cli.h"
#include "io/contract.h"
#include "io/image.h"
#include "mem/arena.h"
#include "mem/budget.h"
#include "mem/stream.h"
#include "model/clip.h"
#include "model/llama.h"
#include "model/vit.h"
#include "text/bpe.h"
#include "text/prompt.h"

#define LLAVA "text_encoder"
#define CLIP  "text_encoder_2"

enum { POSITIVE, NEGATIVE, PROMPTS };
enum { VISION, LANGUAGE, POOLED, NETS };                /* the networks, in the order of their running */
enum { OF_LLAVA, OF_CLIP, FILES };                      /* their files of weights */

struct options {
    struct hv_common c;
    const char *prompt, *negative, *name, *plan, *stream, *dtype;
    int         no_prefix, no_exif;
    int64_t     image_size;
    struct hv_size vram;
};

extern struct options o;
extern const struct hv_cli cli;

struct job {
    struct vit_config       vit;
    struct llama_config     llama;
    struct clip_config      clip;
    struct hv_prompt_config config;
    json_t                 *json[FILES];        /* config.json of both encoders; config's strings live in the first */
    struct hv_bpe          *bpe[FILES];
    char                   *text[PROMPTS];      /* with the prefix */
    struct hv_prompt        prompt[PROMPTS];
    struct hv_ids           clip_ids[PROMPTS];
    struct hv_image         portrait;           /* resized by the size rule */
    float                  *pixels;             /* [3, S, S] of the vision tower */
    hv_tensor               states[PROMPTS], pooled;    /* on the host */
    struct hv_out           out;
    char                    model[256];
    enum hv_stream_mode     stream;
    hv_dtype                weights;            /* of --weights-dtype: of a plan; HV_NONE: not given */
};

/* The prompts as the language model and CLIP take them; they point into the job. */
void language_seqs(struct llama_seq seq[PROMPTS], const struct job *j);
void clip_texts(struct clip_text text[PROMPTS], const struct job *j);

/* ---- plan.c ---- */

/* A plan that fits. The networks run one after the other and share their bytes; weights pass through the ring. */
struct fitted {
    hv_dtype       weights[FILES], act[FILES];  /* matrices as stored; activations */
    struct hv_plan net[NETS], device;
    int64_t        ring;                        /* bytes; 0: weights are used where they are */
    size_t         context;                     /* bytes that the device's context takes */
    double         flops;                       /* with --plan: of the networks printed so far */
};

/* info: of the open GPU; NULL: none is there. list: of both files; w: the files, NULLs: none. */
int fit(struct fitted *f, const struct job *j, const struct hv_dev_info *info, const struct hv_wlist list[FILES],
        struct hv_weights *const w[FILES], struct hv_err *e);

int is_cuda(void);                              /* the plan is one for a GPU */
const char *net_name(int net);                  /* "vision", "language", "clip": of a row of the device's table too */

/* With --plan: a network, and what it has counted since the last one; all of it. */
void print_net(struct fitted *f, struct hv_dev *dev, int net);
void print_whole(const struct fitted *f, const struct hv_wlist list[FILES]);

/* ---- compute.c ---- */

/* Fills in states, pooled and model; with --plan prints instead. */
int compute(struct job *j, struct hv_err *e);

#endif
