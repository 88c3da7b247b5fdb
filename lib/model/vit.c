#include "model/vit.h"

#include <stdlib.h>
#include <string.h>

#include "model/embed.h"

#define TOWER     "vision_tower.vision_model."
#define STEM      TOWER "embeddings."           /* groups of weights */
#define PROJECTOR "multi_modal_projector."

static const float mean[3] = {0.48145466f, 0.4578275f, 0.4082107f}, deviation[3] = {0.26862954f, 0.26130258f, 0.27577711f};

/* ---- config ---- */

static int check(struct vit_config *c, int64_t feature, const char *strategy, int64_t channels, struct hv_err *e)
{
    if (channels != 3)
        return hv_fail(e, HV_EUNSUP, "vision_config: num_channels %lld, expected 3", (long long)channels);
    if (c->image % c->patch)
        return hv_fail(e, HV_EINPUT, "vision_config: image_size %lld is not a multiple of patch_size %lld", (long long)c->image,
                       (long long)c->patch);
    if (strcmp(strategy, "default") && strcmp(strategy, "full"))
        return hv_fail(e, HV_EUNSUP, "vision_feature_select_strategy '%.40s': expected default or full", strategy);
    c->keep_class = !strcmp(strategy, "full");
    /* hidden_states has layers + 1 entries; -1 is the output of the last layer. */
    c->stack.layers = feature < 0 ? c->layers + 1 + feature : feature;
    if (c->stack.layers < 0 || c->stack.layers > c->layers)
        return hv_fail(e, HV_EINPUT, "vision_feature_layer %lld, but the tower has %lld layers", (long long)feature,
                       (long long)c->layers);
    return 0;
}

int vit_config_parse(struct vit_config *c, const json_t *root, struct hv_err *e)
{
    const json_t *v = json_object_get(root, "vision_config"), *t = json_object_get(root, "text_config");
    const char *strategy = "default", *act = "gelu";
    int64_t feature = -2, channels = 3, seq = 576;

    *c = (struct vit_config){.stack = {.prefix = TOWER "encoder.layers.", .hidden = 1024, .heads = 16, .intermediate = 4096,
                                       .eps = 1e-5, .act = HV_ACT_QUICK_GELU},
                             .layers = 24, .image = 336, .patch = 14, .out = 4096};
    if (clip_layers_parse(&c->stack, &c->layers, v, e) || hv_json_int(v, "image_size", 1, 4096, &c->image, e) ||
        hv_json_int(v, "patch_size", 1, 4096, &c->patch, e) || hv_json_int(v, "num_channels", 1, 1024, &channels, e))
        return hv_context(e, "vision_config");
    if (hv_json_int(t, "hidden_size", 1, 1 << 16, &c->out, e))
        return hv_context(e, "text_config");
    if (hv_json_int(root, "vision_feature_layer", -1024, 1024, &feature, e) ||
        hv_json_str(root, "vision_feature_select_strategy", &strategy, e) ||
        hv_json_str(root, "projector_hidden_act", &act, e) || hv_json_int(root, "image_seq_length", 1, 1 << 24, &seq, e) ||
        clip_act_parse(&c->act, act, e))
        return e->code;
    return check(c, feature, strategy, channels, e);
}

static int64_t patches(const struct vit_config *c)
{
    return (c->image / c->patch) * (c->image / c->patch);
}

int64_t vit_rows(const struct vit_config *c)
{
    return patches(c) + c->keep_class;
}

/* ---- weights ---- */

void vit_weights(struct hv_wlist *l, const struct vit_config *c)
{
    const int64_t C = c->stack.hidden, H = c->out;

    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &C, STEM "class_embedding");
    hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){patches(c) + 1, C}, STEM "position_embedding.weight");
    hv_wlist_group(l, STEM);
    hv_wlist_add(l, HV_F16, HV_KEEP, 4, (int64_t[]){C, 3, c->patch, c->patch}, STEM "patch_embedding.weight");
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &C, TOWER "pre_layrnorm.weight");      /* the checkpoint's spelling */
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &C, TOWER "pre_layrnorm.bias");
    clip_layers_weights(l, &c->stack);
    hv_wlist_group(l, PROJECTOR);
    hv_wlist_add(l, HV_F16, HV_QUANT, 2, (int64_t[]){H, C}, PROJECTOR "linear_1.weight");
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &H, PROJECTOR "linear_1.bias");
    hv_wlist_add(l, HV_F16, HV_QUANT, 2, (int64_t[]){H, H}, PROJECTOR "linear_2.weight");
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &H, PROJECTOR "linear_2.bias");
    hv_wlist_group(l, NULL);
}

/* ---- network ---- */

struct vit {
    struct vit_config  config;
    struct hv_dev     *d;
    struct hv_weights *w;
    struct hv_arena   *a;
    int32_t           *positions;       /* 0 .. P */
};

enum { PH_OUT = 8 };

static int place(struct hv_plan *p, const struct vit_config *c, hv_dtype act, struct hv_err *e)
{
    const int64_t P = patches(c), R = vit_rows(c);

    clip_layers_plan(p, &c->stack, P + 1, act);
    hv_plan_add(p, "pixels",    HV_F32, CLIP_PH_EMBED,        4, (int64_t[]){3, 1, c->image, c->image});
    hv_plan_add(p, "patches",   act,    CLIP_PH_EMBED,        2, (int64_t[]){P, 3 * c->patch * c->patch});
    hv_plan_add(p, "projected", act,    PH_OUT,               2, (int64_t[]){R, c->out});
    hv_plan_add(p, "out",       act,    PH_OUT,               2, (int64_t[]){R, c->out});
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->row[i].name, "x"))
            p->row[i].phases |= PH_OUT;                     /* the projector reads the features */
    return hv_plan_place(p, e);
}

int vit_open(struct vit **net, struct hv_dev *d, struct hv_weights *w, const struct vit_config *c, const struct hv_room *room,
             struct hv_err *e)
{
    struct hv_plan plan = {0};
    struct vit *n = calloc(1, sizeof *n);
    const int64_t R = patches(c) + 1;

    *net = NULL;
    if (!n)
        return hv_fail(e, HV_ENOMEM, "no memory for the vision tower");
    *n = (struct vit){.config = *c, .d = d, .w = w, .positions = malloc((size_t)R * sizeof *n->positions)};
    if (!n->positions)
        hv_fail(e, HV_ENOMEM, "no memory for the vision tower");
    else if (!place(&plan, c, room ? room->act : HV_F32, e))
        hv_arena_open_in(&n->a, d, &plan, room, e);
    if (e->code) {
        vit_close(n);
        return e->code;
    }
    for (int64_t i = 0; i < R; i++)
        n->positions[i] = (int32_t)i;
    *net = n;
    return 0;
}

void vit_close(struct vit *n)
{
    if (!n)
        return;
    hv_arena_close(n->a);
    free(n->positions);
    free(n);
}

const struct hv_plan *vit_plan(const struct vit *n)
{
    return hv_arena_plan(n->a);
}

void vit_pixels(float *pixels, const uint8_t *rgb, int64_t side)
{
    for (int64_t c = 0; c < 3; c++)
        for (int64_t i = 0; i < side * side; i++)
            pixels[c * side * side + i] = ((float)rgb[3 * i + c] / 255.0f - mean[c]) / deviation[c];
}

/* x = layer_norm([class; patches] + positions) */
static void embed(struct vit *n, hv_tensor pixels)
{
    const struct vit_config *c = &n->config;
    const int64_t P = patches(c), K = 3 * c->patch * c->patch;
    const hv_tensor x = hv_arena_row(n->a, "x"), y = hv_arena_row(n->a, "y");
    const hv_tensor planes = hv_arena_row(n->a, "pixels"), rows = hv_arena_row(n->a, "patches");
    static const int32_t first = 0;

    embed_rows(n->d, n->w, hv_rows(x, 0, 1), &first, STEM "class_embedding");
    hv_weights_take(n->w, STEM);
    const hv_tensor w = hv_weight(n->w, STEM "patch_embedding.weight");
    hv_upload(n->d, planes, hv_reshape(pixels, 4, (int64_t[]){3, 1, c->image, c->image}));
    hv_patchify(n->d, rows, planes, (int[]){1, (int)c->patch, (int)c->patch});
    hv_linear(n->d, hv_rows(x, 1, P), rows, hv_reshape(w, 2, (int64_t[]){c->stack.hidden, K}), HV_NO, HV_ACT_NONE);
    embed_rows(n->d, n->w, y, n->positions, STEM "position_embedding.weight");
    hv_add(n->d, x, x, y);
    hv_layer_norm(n->d, x, x, hv_weight(n->w, TOWER "pre_layrnorm.weight"), hv_weight(n->w, TOWER "pre_layrnorm.bias"),
                  (float)c->stack.eps);
    hv_weights_give(n->w, STEM);
}

void vit_encode(struct vit *n, hv_tensor out, hv_tensor pixels, hv_tensor trace)
{
    const struct vit_config *c = &n->config;
    const struct clip_rows all = {0, patches(c) + 1};
    const hv_tensor x = hv_arena_row(n->a, "x"), p = hv_arena_row(n->a, "projected"), y = hv_arena_row(n->a, "out");

    embed(n, pixels);
    clip_layers_run(n->d, n->w, n->a, &c->stack, &all, 1, 0, trace);
    hv_weights_take(n->w, PROJECTOR);
    hv_linear(n->d, p, hv_rows(x, !c->keep_class, vit_rows(c)), hv_weight(n->w, PROJECTOR "linear_1.weight"),
              hv_weight(n->w, PROJECTOR "linear_1.bias"), c->act);
    hv_linear(n->d, y, p, hv_weight(n->w, PROJECTOR "linear_2.weight"),
              hv_weight(n->w, PROJECTOR "linear_2.bias"), HV_ACT_NONE);
    hv_weights_give(n->w, PROJECTOR);
    hv_download(n->d, out, y);
}
