/* dit_impl.h - what the files of the diffusion transformer share. See dit.h for the legend. */
#ifndef HV_DIT_IMPL_H
#define HV_DIT_IMPL_H

#include "mem/arena.h"
#include "model/dit.h"
#include "ops/ops.h"

#define DIT_NORM_EPS    1e-6f   /* blocks, refiner, final layer, q and k */
#define DIT_SOUND_EPS   1e-5f   /* audio_proj.norm and the adapters */
#define DIT_EMBED       256     /* width of a sinusoidal embedding */
#define DIT_SOUND_CHUNK 64      /* video frames projected at a time */
#define DIT_GROUPS_MAX  4096    /* of weights */
#define DIT_ROPE        (1 << 18)       /* numbers of all rotary tables; more would be latents of thousands of rows */

/* When a row of the plan is alive. */
enum {
    PH_VEC = 1, PH_TEXT = 2, PH_SOUND = 4,                                          /* before the steps */
    PH_EMBED = 8, PH_ATTN = 16, PH_MLP = 32, PH_ADAPTER = 64, PH_FINAL = 128,       /* of a forward */
    PH_FORWARD = PH_EMBED | PH_ATTN | PH_MLP | PH_ADAPTER | PH_FINAL,
    PH_BEFORE = PH_VEC | PH_TEXT | PH_SOUND, PH_ALL = PH_BEFORE | PH_FORWARD
};

/* Sizes that follow from config and size. */
struct dit_dims {
    int64_t down, across, tokens;       /* h/ph, w/pw, P */
    int64_t video, image, rows;         /* T P, Ni, Ni + text_rows */
    int64_t patch, keys;                /* numbers of a patch; keys of sound that a latent frame sees */
    int64_t mods, tail;                 /* modulation vectors: 12 a double, 3 a single block, 2; the last block's first one */
    int64_t adapters;                   /* that run */
    int64_t moments, entries;           /* full + cached; sound + 1 */
    int64_t embed;                      /* rows that embedding and final layer take at a time */
};

struct dit_dims dit_dims(const struct dit_config *c, const struct dit_size *s, int64_t rows_mlp);

/* What a choice means. */
int dit_paired(const struct dit_choice *k);             /* residual streams held at a time: 2 or 1 */
int dit_o_host(const struct dit_choice *k);
int dit_is_ahead(const struct dit_choice *k);
int dit_expands(const struct dit_size *s, const struct dit_choice *k);
int64_t dit_rope_count(const struct dit_config *c, const struct dit_size *s);

/* A row of the step cache's host store is one of these. */
struct dit_saved {
    int32_t *window;                    /* [branches][clip_frames]: who saved the frame last; -1: nobody */
    int32_t *text;                      /* [branches][windows]: text rows saved */
    uint64_t version;                   /* forwards that saved; 0: nothing is kept */
};

/* Events of chunks in flight between host and device. */
struct dit_stage {
    void     *mark;                     /* orders two lanes at one place */
    void     *full[2], *free[2];        /* slots of x: filled by STAGE; given up by its last user */
    void     *o_full[2], *o_free[2], *o_out;
    int       turn, o_turn;             /* slot used last */
    hv_tensor written[2];               /* rows on the host that OUT may still be writing from the slot */
};

struct dit {
    struct hv_dev     *dev;
    struct hv_weights *w;
    struct dit_config  c;
    struct dit_size    s;
    struct dit_choice  choice;
    struct dit_dims    m;
    struct hv_plan     host_plan;
    struct hv_arena   *arena;
    char              *memory;          /* realises host_plan */
    struct hv_rope     rope;            /* tables on the device */
    struct dit_moment *moment;          /* [moments]; text is the prompt's index */
    int64_t           *slot;            /* [moments]: index among the full or the cached ones */
    int64_t           *text_n;          /* [texts]: n */
    int                n_moments, ref_kept, turn;
    int32_t           *heard;           /* [DIT_CALLS][4T - 3]: sound that "sound_window" holds */
    struct dit_stage   stage;
    struct dit_saved   saved;
    dit_trace_fn      *trace;
    void              *trace_ctx;
};

/* Rows of the plans. */
hv_tensor dit_row(const struct dit *n, const char *name);
hv_tensor dit_host(const struct dit *n, const char *name);

/* A piece of an intermediate, for the tracer. */
void dit_traced(const struct dit *n, int64_t row, int64_t col, hv_tensor t, const char *fmt, ...)
     __attribute__((format(printf, 5, 6)));

/* NAME.weight and NAME.bias: y = act(lin(x)). A Conv3d's weight is taken as a matrix. */
void dit_linear(const struct dit *n, hv_tensor y, hv_tensor x, const char *name, enum hv_act act);

/* A weight, or HV_NO where the config has none; what ops get after a fault is never looked at. */
hv_tensor dit_weight(const struct dit *n, const char *stem, int64_t i, const char *tail);

/* Rows first .. first+n-1, columns; HV_NO stays HV_NO. */
hv_tensor dit_rows(hv_tensor t, int64_t first, int64_t rows);

#endif
