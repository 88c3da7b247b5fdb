/* face.h - face detector of the YOLOv5-face family, from its graph to the mask of the speaking face.
 *
 *     face_config_parse(&c, json, e);
 *     face_input_size(&c, width, height, &w1, &h1);           // what the network sees: multiples of 32
 *     face_open(&net, dev, weights, &c, w1, h1, e);
 *     face_forward(net, heads, picture, NULL, NULL);          // [h1, w1, 3] in 0..1 -> three heads
 *     face_decode(pred, &c, heads);
 *     face_suppress(&boxes, &n, pred, rows, conf, iou, e);   // thresholded, overlaps dropped; by score
 *
 * The network is data: config.json lists its layers, each with its operation, its sources and its width, and one interpreter
 * runs every variant. Activations are channels last, [1, height, width, channels]; a layer's output lives until its last
 * reader. Convolutions have their batch norm folded in, pad kernel / 2 and, unless marked linear, end in silu.
 *
 *     conv(out,k,s)          conv
 *     focus(out,k)           conv of the four pixels of a 2 x 2 cell side by side: even/even, odd/even, even/odd, odd/odd
 *     stem(out)              a = 3x3 s2(x); stem_3 1x1(concat(3x3 s2(1x1(a)), max_pool 2 s2(a)))
 *     c3(out,n,shortcut)     cv3(concat(n bottlenecks of cv1(x), cv2(x)))
 *     shuffle(out,stride,n)  two branches with depthwise 3x3 (linear), their channels interleaved
 *     spp(out,k[])           z = cv1(x); cv2(concat(z, max pools of z))
 *     upsample, concat       nearest, factor 2; channels
 *     detect                 a 1x1 convolution (linear) a scale: 3 anchors of 16 numbers a cell */
#ifndef HV_FACE_H
#define HV_FACE_H

#include "core/json.h"
#include "mem/plan.h"
#include "mem/weights.h"
#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FACE_LAYERS  30         /* before the detect layer */
#define FACE_FROM    4
#define FACE_SCALES  3
#define FACE_ANCHORS 3
#define FACE_COLUMNS 16         /* x, y, w, h, objectness, 5 landmarks (x, y), class */

enum face_op { FACE_CONV, FACE_FOCUS, FACE_STEM, FACE_C3, FACE_SHUFFLE, FACE_SPP, FACE_UPSAMPLE, FACE_CONCAT, FACE_OPS };

struct face_layer {
    enum face_op op;
    int     from[FACE_FROM], n_from;            /* absolute; -1: the picture */
    int64_t in, out;                            /* channels */
    int64_t k, s, n;                            /* kernel, stride, repeats */
    int64_t pool[FACE_FROM];                    /* spp */
    int     n_pool, shortcut;
};

struct face_config {
    int64_t input_size;                         /* 416: short side of what the network sees */
    double  conf, iou;
    int64_t stride[FACE_SCALES];
    double  anchor[FACE_SCALES][2 * FACE_ANCHORS];
    int     n, detect[FACE_SCALES];             /* layers; the three that detect reads */
    struct face_layer layer[FACE_LAYERS];
};

/* Reads model_type, input_size, conf_threshold, iou_threshold, num_classes, num_landmarks, strides, anchors, activation and
 * layers. HV_EINPUT: a graph that does not fit together; HV_EUNSUP: other classes, landmarks or activations. */
int face_config_parse(struct face_config *c, const json_t *config, struct hv_err *e);

/* Every tensor, folded, F32, in the order of use: model.{layer}.* */
void face_weights(struct hv_wlist *l, const struct face_config *c);

#define FACE_BN_EPS 1e-3        /* of every batch norm of the family */

/* Batch norm behind a convolution of n channels, folded into it: g = gamma / sqrt(var + eps); the weights of channel i are
 * multiplied by factor[i] = g, its bias becomes beta + (conv_bias - mean) g. conv_bias NULL: the convolution has none. In f64,
 * rounded once. */
void face_fold(float *factor, float *bias, const float *gamma, const float *beta, const float *mean, const float *var,
               const float *conv_bias, double eps, int64_t n);

/* The picture goes in without bars: its short side becomes input_size, both are rounded up to multiples of 32. */
void face_input_size(const struct face_config *c, int width, int height, int *w1, int *h1);

/* Rows "out K" and "scratch K" a layer, the picture, the heads; each layer is a phase. */
int face_plan(struct hv_plan *p, const struct face_config *c, int w1, int h1, struct hv_err *e);

struct face;

/* Borrows device and weights. w1, h1: multiples of 32. */
int  face_open(struct face **net, struct hv_dev *d, struct hv_weights *w, const struct face_config *c, int w1, int h1,
               struct hv_err *e);
void face_close(struct face *net);

/* Sees each layer's output on the device, [1, height, width, channels], before it may be overwritten. */
typedef void face_trace_fn(void *ctx, int layer, hv_tensor out);

/* heads (host): [h1 / stride, w1 / stride, 48] each, from picture (host) f32 [h1, w1, 3]. trace may be NULL. */
void face_forward(struct face *net, const hv_tensor heads[FACE_SCALES], hv_tensor picture, face_trace_fn *trace, void *ctx);

/* ---- from heads to faces: host code ---- */

/* pred [N, 16] from the heads, N = face_rows: scale, anchor, row, column, slowest first. In pixels of the network's picture:
 *     centre x = (2 S(t0) - 0.5 + column) stride, y alike;  w = (2 S(t2))^2 anchor w;  objectness S(t4)
 *     landmark x = t[5 + 2k] anchor w + column stride;  class S(t15);  S the logistic function */
int64_t face_rows(const struct face_config *c, int w1, int h1);
void    face_decode(float *pred, const struct face_config *c, const hv_tensor heads[FACE_SCALES]);

struct face_box {
    double x, y, w, h, score;
    double landmark[10];
};

/* Rows of pred above conf (objectness and class * objectness), best first, without those that overlap a better one by more
 * than iou (intersection over union): x, y the upper left corner, still in the network's pixels, which may leave the
 * picture. *boxes is allocated. HV_ENOMEM, HV_ENUM: pred holds NaN. */
int face_suppress(struct face_box **boxes, int *n, const float *pred, int64_t rows, double conf, double iou,
                  struct hv_err *e);

/* To pixels of the picture of width x height. */
void face_scale(struct face_box *boxes, int n, int width, int height, int w1, int h1);

/* The reference's "largest" (detface.py): of the boxes by score, the last whose area exceeds the first one's. */
int face_reference_choice(const struct face_box *boxes, int n);

/* Sorts by area, largest first; equal ones keep their order. */
void face_sort_by_area(struct face_box *boxes, int n);

/* ---- mask ---- */

struct face_rect {
    int y0, y1, x0, x1;                         /* y1, x1 exclusive; empty when not below */
};

/* The box with its sides times `area`, about its centre, cut to the picture (audio_preprocessor.py:get_facemask). */
struct face_rect face_widen(double x, double y, double w, double h, int width, int height, double area);

/* mask [height / 8, width / 8]: the rectangle of ones shrunk 8 times, that is the mean of the 4 pixels in the middle of each
 * cell. Returns how many cells are not 0. */
int64_t face_mask(float *mask, struct face_rect r, int width, int height);

#ifdef __cplusplus
}
#endif
#endif
