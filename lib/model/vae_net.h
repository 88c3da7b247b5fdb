/* vae_net.h - what vae.c, vae_blocks.c and vae_forward.c share: the geometry of a level, a stream of frames in slots, the window
 * in front of a causal convolution. */
#ifndef HV_VAE_NET_H
#define HV_VAE_NET_H

#include "model/vae.h"

#define VAE_EPS 1e-6f
#define VAE_NAME 96

/* Phases of a plan: what is alive when. PH_RES: resnets of level i; PH_OUT: its x goes to y; PH_NEXT: the next level's x comes
 * from y. */
enum { PH_IN = 1, PH_MID = 2, PH_HEAD = 4, PH_LEVEL = 8 };
#define PH_RES(i)  ((uint32_t)PH_LEVEL << (3 * (i)))
#define PH_OUT(i)  ((uint32_t)PH_LEVEL << (3 * (i) + 1))
#define PH_NEXT(i) ((uint32_t)PH_LEVEL << (3 * (i) + 2))
#define PH_ALL     0xffffffffu

struct vae_level {
    int64_t t, h, w;                    /* of the resnets */
    int64_t ci, co;                     /* channels that come in, and those of the resnets */
    int64_t window;                     /* frames of a window */
};

struct vae {
    struct hv_dev     *d;
    struct hv_weights *w;
    struct hv_arena   *arena;
    struct vae_config  c;
    struct vae_opts    o;
    int64_t            window[VAE_LEVELS];
    struct vae_store  *store;           /* of a GPU; NULL: weights are read where they are */
    vae_trace_fn      *trace;
    void              *trace_ctx;
};

/* A level's x (and, in the other part of each slot, its h). */
struct vae_stream {
    hv_tensor row;                      /* flat */
    int64_t   t, h, w, slot;            /* slot: elements of a frame */
    int64_t   c, at;                    /* channels of x, and where in a slot it lies */
    int64_t   window;
};

/* Where a causal convolution reads: frames of x, of the host, or of act(norm(x)). */
struct vae_source {
    enum { VAE_RAW, VAE_HOST, VAE_NORM } kind;
    hv_tensor   x, ring;                /* ring: flat; room for the longest window */
    int64_t     stride;                 /* of the convolution in time */
    hv_tensor   sums, weight, bias;     /* VAE_NORM */
    double      count;
    enum hv_act act;
    int64_t     base;                   /* the frame that x begins with: 0, but where VAE_NORM gets x in windows */
    int64_t     have, have_first;       /* frames in the ring: have_first .. have; start with have = -1 */
};

/* conv_norm_out, SiLU, conv_out; then `after` (quant_conv), and to the host. */
struct vae_head {
    struct vae_source in;
    const char       *part, *after;
    hv_tensor         y;
};

/* vae.c */
int64_t vae_slot_channels(const struct vae_level *l);
hv_dtype vae_act(const struct vae_opts *o);

void    vae_levels(const struct vae_config *c, enum vae_part part, int64_t t, int64_t h, int64_t w, struct vae_level l[VAE_LEVELS]);

/* vae_blocks.c */
void vae_name(char buf[VAE_NAME], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
hv_tensor vae_flat(const struct vae *v, const char *row, int ndim, const int64_t *shape);
hv_tensor vae_frames(const struct vae_stream *s, int64_t c, int64_t at);
hv_tensor vae_x(const struct vae_stream *s);
hv_tensor vae_window(struct vae *v, struct vae_source *s, int64_t first, int64_t n);
struct vae_source vae_normed(struct vae *v, hv_tensor x, hv_tensor ring, const char *norm, int which);
void vae_sum(struct vae *v, int which, hv_tensor x);             /* x HV_NO: of nothing, yet */
void vae_sum_more(struct vae *v, int which, hv_tensor x);
void vae_convolve(struct vae *v, hv_tensor y, hv_tensor x, const char *name, const struct hv_conv *p);
void vae_double(struct vae *v, hv_tensor x, hv_tensor y, int64_t first, const char *name, const struct hv_conv *p);
void vae_conv1(struct vae *v, hv_tensor y, hv_tensor x, const char *name);
void vae_conv(struct vae *v, hv_tensor y, struct vae_source *s, int64_t window, const char *name, struct hv_conv p);
void vae_upsample(struct vae *v, hv_tensor x, hv_tensor y, hv_tensor ring, const int factor[3], int64_t window, const char *name);
void vae_resnet(struct vae *v, struct vae_stream *s, hv_tensor ring, hv_tensor cut, int64_t co, const char *name);
void vae_mid(struct vae *v, struct vae_stream *s, hv_tensor ring, const char *name);
void vae_tell(struct vae *v, hv_tensor t, int64_t first, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* vae_forward.c. which: the sums of the norm. Windows come in order. */
struct vae_head vae_head_open(struct vae *v, const char *part, const char *after, hv_tensor y, int which);
void vae_head_window(struct vae *v, struct vae_head *head, hv_tensor x, int64_t first);

/* vae_store.c. Bytes of the rows "weights", "weights.2" and "weights.last". begin: before a tile. */
#define VAE_WEIGHT_ROWS 3
void vae_store_bytes(const struct vae_config *c, const struct vae_opts *o, size_t bytes[VAE_WEIGHT_ROWS]);
int  vae_store_open(struct vae *v, struct hv_err *e);
void vae_store_close(struct vae *v);
void vae_store_begin(struct vae *v);
hv_tensor vae_weight(struct vae *v, const char *name, const char *what);        /* NAME.WHAT */

/* vae_again.c. Elements of the row "again"; y = head(resnets(upsample(below))) for a keep other than ALL. */
int64_t vae_again_elements(const struct vae_level *l, int resnets, enum vae_keep keep);
void vae_again(struct vae *v, hv_tensor below, const struct vae_level *l, const char *sampler, const char *block, hv_tensor y);

#endif
