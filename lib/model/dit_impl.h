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
    int64_t voices;
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
    int32_t           *heard;           /* [DIT_CALLS][V][4T - 3]: sound that "sound_window" holds */
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

/* ---- a branch on its way, and its rows: dit_stage.c ---- */

/* One guidance branch: its rows, and the tables of its moment. Text has its own length behind the image. */
struct dit_state {
    const struct dit_call *call;
    int       slot;             /* 0, 1: which of the tables that exist twice */
    int64_t   text;             /* text rows */
    hv_tensor x;                /* on the device; HV_NO where it lives on the host */
    hv_tensor q, o;             /* o: whole on the device, q HV_NO where its columns hold the queries; else of one group or chunk */
    hv_tensor k[2], v[2];       /* of one group; of two in turn where the next is made ahead */
    hv_tensor mod, kv;
    int       held;             /* a block's weights are taken by the caller */
    int       cached;           /* x comes from the step cache as long as nothing was written to it */
    int       saving;           /* the block at hand saves x as it enters */
};

enum dit_fetch { DIT_ROOM, DIT_FETCH };         /* rows that will be written whole, or that are wanted as they are */
enum dit_use { DIT_READ, DIT_WRITTEN };

/* Work queued in lane `later` from now on waits for what is in lane `earlier`. */
void dit_lane_after(const struct dit *n, enum hv_lane later, enum hv_lane earlier);

/* The rows of the plan that belong to a phase may be used from here on. */
void dit_begin_phase(struct dit *n);

/* Rows of x on the device, in one of the two `slots` of the plan where x lives on the host. What was given is done with, in order,
 * before the next is asked for. */
hv_tensor dit_x_rows(struct dit *n, const struct dit_state *s, const char *slots, int64_t row, int64_t rows, enum dit_fetch fetch);
void dit_x_done(struct dit *n, const struct dit_state *s, hv_tensor t, int64_t row, enum dit_use use);
hv_tensor dit_x_on_host(const struct dit *n, const struct dit_state *s, int64_t row, int64_t rows);

/* The result of a group of heads, rows row .. of it, leaves for the host; after_o_out: nothing is written over it before. o_rows:
 * all heads side by side. Where o lives on the device the first two do nothing. */
void dit_o_out(const struct dit *n, hv_tensor o, int64_t head, int64_t row);
void dit_after_o_out(const struct dit *n, int wanted);
hv_tensor dit_o_rows(struct dit *n, const struct dit_state *s, int64_t row, int64_t rows);
void dit_o_done(const struct dit *n);

/* Rows of a matrix between host and device; the rows of the step cache for a frame of the clip. */
void dit_move_rows(const struct dit *n, enum hv_lane lane, hv_tensor to, hv_tensor from);
hv_tensor dit_cache_frame(const struct dit *n, int branch, int64_t frame);

/* Rows row .. of x to the step cache or from it, t on the device; the window whose reference and text rows a cached call takes. */
void dit_cache_move(const struct dit *n, const struct dit_call *call, hv_tensor t, int64_t row, int save);
int dit_cache_source(const struct dit *n, const struct dit_call *call);
void dit_cache_note(struct dit *n, const struct dit_state *s);          /* that x is about to be saved */

/* ---- a forward, part by part ---- */

/* The segment of weights of a phase: "double.3.qkv", "adapter.2" (part ""), "stem" (i < 0). take blocks until it has arrived, give
 * lets it go; the phase_ forms do nothing where the caller holds the weights of a whole block. */
void dit_group_name(char *buf, size_t size, const char *stem, int64_t i, const char *part);
void dit_take(const struct dit *n, const char *stem, int64_t i, const char *part);
void dit_give(const struct dit *n, const char *stem, int64_t i, const char *part);
void dit_phase_take(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part);
void dit_phase_give(const struct dit *n, const struct dit_state *s, const char *stem, int64_t i, const char *part);

/* Rows of x for the tracer, under the name fmt of i; where x lives on the host everything in flight has to land first. */
void dit_trace_x(const struct dit *n, const struct dit_state *s, int64_t row, int64_t rows, const char *fmt, int64_t i);

/* dit_blocks.c: x through block i; adapter j, whose keys and values are slot `at` of the store; the sound that a window hears. */
void dit_double_block(struct dit *n, struct dit_state *s, int64_t i);
void dit_single_block(struct dit *n, struct dit_state *s, int64_t i);
void dit_adapter(struct dit *n, const struct dit_state *s, int j, int64_t at);
void dit_gather_sound(struct dit *n, const struct dit_call *call, int slot);

/* dit_embed.c. Patches are taken by pieces that are boxes of the latents: whole frames, or lines of tokens of one frame. */
struct dit_piece {
    int64_t frame, frames, line, lines;
    int64_t token, n;           /* of the video; n is 0 at `end` */
};

struct dit_piece dit_piece_at(const struct dit *n, int64_t token, int64_t end);

/* y = PE(NAME, planes), and y = img_in(latents) + before_proj(ref_in(ref)), for the tokens of a piece. */
void dit_patch_embed(const struct dit *n, hv_tensor y, const char *name, hv_tensor planes, struct dit_piece p);
void dit_embed_piece(const struct dit *n, hv_tensor y, struct dit_piece p);

void dit_embed(struct dit *n, const struct dit_state *s);               /* all of x */
void dit_final_layer(struct dit *n, const struct dit_state *s);         /* row "velocity" from it */

/* dit_residual.c: what the blocks added to the video rows goes to the store, or is added in their place; how much the input of the
 * first block differs from that of the call before, which it replaces: sum |m - before| / sum |before|. HV_ENOMEM. */
void dit_save_residual(struct dit *n, const struct dit_state *s);
void dit_add_residual(struct dit *n, const struct dit_state *s);
int dit_probe_rows(struct dit *n, const struct dit_state *s, double *change, struct hv_err *e);

#endif
