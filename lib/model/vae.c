/* Config, weights and plan of the VAE. */
#include "model/vae.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/vae_net.h"

/* ---- config ---- */

static int unsupported(const json_t *json, struct hv_err *e)
{
    int64_t time = 4, space = 8;
    int off = 0;
    const char *act = "silu";

    if (hv_json_int(json, "time_compression_ratio", 1, 64, &time, e) ||
        hv_json_int(json, "spatial_compression_ratio", 1, 64, &space, e) ||
        hv_json_bool(json, "disable_causal_conv", &off, e) || hv_json_str(json, "act_fn", &act, e))
        return e->code;
    if (time != 4 || space != 8)
        return hv_fail(e, HV_EUNSUP, "vae: compression %lldx%lld, only 4 in time and 8 in space are supported", (long long)time,
                       (long long)space);
    if (off)
        return hv_fail(e, HV_EUNSUP, "vae: disable_causal_conv is true: not supported");
    if (strcmp(act, "silu") && strcmp(act, "swish"))
        return hv_fail(e, HV_EUNSUP, "vae: act_fn '%s', only silu is supported", act);
    return 0;
}

static int check_sizes(const struct vae_config *c, int levels, struct hv_err *e)
{
    if (levels != VAE_LEVELS)
        return hv_fail(e, HV_EUNSUP, "vae: block_out_channels has %d levels, only %d are supported", levels, VAE_LEVELS);
    for (int i = 0; i < VAE_LEVELS; i++)
        if (c->channels[i] % c->groups)
            return hv_fail(e, HV_EINPUT, "vae: norm_num_groups %lld does not divide the %lld channels of level %d",
                           (long long)c->groups, (long long)c->channels[i], i);
    if (c->sample_size % 32 || c->sample_tsize % 16)
        return hv_fail(e, HV_EINPUT, "vae: sample_size %lld and sample_tsize %lld must be multiples of 32 and 16",
                       (long long)c->sample_size, (long long)c->sample_tsize);
    return 0;
}

int vae_config_parse(struct vae_config *c, const json_t *json, struct hv_err *e)
{
    int levels = 1;

    *c = (struct vae_config){.channels = {64}, .layers = 1, .latent = 4, .groups = 32, .in = 3, .out = 3, .sample_size = 32,
                             .sample_tsize = 64, .scaling_factor = 0.18215, .mid_attention = 1};
    if (hv_json_ints(json, "block_out_channels", 1, 16384, c->channels, VAE_LEVELS, &levels, e) ||
        hv_json_int(json, "layers_per_block", 1, 16, &c->layers, e) ||
        hv_json_int(json, "latent_channels", 1, 1024, &c->latent, e) ||
        hv_json_int(json, "norm_num_groups", 1, 16384, &c->groups, e) ||
        hv_json_int(json, "in_channels", 1, 64, &c->in, e) || hv_json_int(json, "out_channels", 1, 64, &c->out, e) ||
        hv_json_int(json, "sample_size", 32, 65536, &c->sample_size, e) ||
        hv_json_int(json, "sample_tsize", 16, 65536, &c->sample_tsize, e) ||
        hv_json_real(json, "scaling_factor", 1e-6, 1e6, &c->scaling_factor, e) ||
        hv_json_real(json, "shift_factor", -1e6, 1e6, &c->shift_factor, e) ||
        hv_json_bool(json, "mid_block_add_attention", &c->mid_attention, e) ||
        hv_json_bool(json, "mid_block_causal_attn", &c->mid_causal, e) || unsupported(json, e) || check_sizes(c, levels, e))
        return e->code;
    return 0;
}

/* ---- weights ---- */

static void list_vector(struct hv_wlist *l, const char *name, const char *what, int64_t n)
{
    hv_wlist_add(l, HV_F16, HV_KEEP, 1, &n, "%s.%s", name, what);
}

static void list_norm(struct hv_wlist *l, const char *name, int64_t c)
{
    list_vector(l, name, "weight", c);
    list_vector(l, name, "bias", c);
}

static void list_conv(struct hv_wlist *l, const char *name, int64_t ci, int64_t co, int64_t k)
{
    hv_wlist_add(l, HV_F16, HV_KEEP, 5, (int64_t[]){co, ci, k, k, k}, "%s.weight", name);
    list_vector(l, name, "bias", co);
}

#define SUB(buf, name, what) (snprintf(buf, VAE_NAME, "%s.%s", name, what), buf)

static void list_resnet(struct hv_wlist *l, const char *name, int64_t ci, int64_t co)
{
    char s[VAE_NAME];

    list_norm(l, SUB(s, name, "norm1"), ci);
    if (ci != co)
        list_conv(l, SUB(s, name, "conv_shortcut.conv"), ci, co, 1);
    list_conv(l, SUB(s, name, "conv1.conv"), ci, co, 3);
    list_norm(l, SUB(s, name, "norm2"), co);
    list_conv(l, SUB(s, name, "conv2.conv"), co, co, 3);
}

static void list_mid(struct hv_wlist *l, const struct vae_config *c, const char *name)
{
    static const char *const linear[] = {"to_q", "to_k", "to_v", "to_out.0"};
    const int64_t C = c->channels[VAE_LEVELS - 1];
    char s[VAE_NAME], a[VAE_NAME];

    list_resnet(l, SUB(s, name, "resnets.0"), C, C);
    if (c->mid_attention) {
        list_norm(l, SUB(s, name, "attentions.0.group_norm"), C);
        for (int i = 0; i < 4; i++) {
            snprintf(a, sizeof a, "%s.attentions.0.%s", name, linear[i]);
            hv_wlist_add(l, HV_F16, HV_KEEP, 2, (int64_t[]){C, C}, "%s.weight", a);
            list_vector(l, a, "bias", C);
        }
    }
    list_resnet(l, SUB(s, name, "resnets.1"), C, C);
}

static void list_blocks(struct hv_wlist *l, const struct vae_config *c, int decoder)
{
    struct vae_level level[VAE_LEVELS];
    char s[VAE_NAME];

    vae_levels(c, decoder ? VAE_DECODER : VAE_ENCODER, 1, 8, 8, level);
    for (int i = 0; i < VAE_LEVELS; i++) {
        const char *block = decoder ? "decoder.up_blocks" : "encoder.down_blocks";
        for (int r = 0; r < c->layers + decoder; r++) {
            snprintf(s, sizeof s, "%s.%d.resnets.%d", block, i, r);
            list_resnet(l, s, r ? level[i].co : level[i].ci, level[i].co);
        }
        snprintf(s, sizeof s, "%s.%d.%ssamplers.0.conv.conv", block, i, decoder ? "up" : "down");
        if (i < VAE_LEVELS - 1)
            list_conv(l, s, level[i].co, level[i].co, 3);
    }
}

static void list_encoder(struct hv_wlist *l, const struct vae_config *c)
{
    const int64_t top = c->channels[VAE_LEVELS - 1];

    list_conv(l, "encoder.conv_in.conv", c->in, c->channels[0], 3);
    list_blocks(l, c, 0);
    list_mid(l, c, "encoder.mid_block");
    list_norm(l, "encoder.conv_norm_out", top);
    list_conv(l, "encoder.conv_out.conv", top, 2 * c->latent, 3);
    list_conv(l, "quant_conv", 2 * c->latent, 2 * c->latent, 1);
}

static void list_decoder(struct hv_wlist *l, const struct vae_config *c)
{
    list_conv(l, "post_quant_conv", c->latent, c->latent, 1);
    list_conv(l, "decoder.conv_in.conv", c->latent, c->channels[VAE_LEVELS - 1], 3);
    list_mid(l, c, "decoder.mid_block");
    list_blocks(l, c, 1);
    list_norm(l, "decoder.conv_norm_out", c->channels[0]);
    list_conv(l, "decoder.conv_out.conv", c->channels[0], c->out, 3);
}

void vae_part_weights(struct hv_wlist *l, const struct vae_config *c, int parts)
{
    if (parts & VAE_ENCODER)
        list_encoder(l, c);
    if (parts & VAE_DECODER)
        list_decoder(l, c);
}

void vae_weights(struct hv_wlist *l, const struct vae_config *c)
{
    vae_part_weights(l, c, VAE_ENCODER | VAE_DECODER);
}

/* ---- geometry ---- */

static int64_t half(int64_t n)
{
    return (n + 1) / 2;
}

/* Time is halved after levels 1 and 2 of the encoder and doubled after levels 1 and 2 of the decoder (2t-1): the index rule is
 * the same in both directions. */
void vae_levels(const struct vae_config *c, enum vae_part part, int64_t t, int64_t h, int64_t w, struct vae_level l[VAE_LEVELS])
{
    for (int i = 0; i < VAE_LEVELS; i++) {
        const int down = part == VAE_ENCODER;
        const int64_t *ch = c->channels;
        l[i] = (struct vae_level){.t = t, .h = h, .w = w, .window = 1};
        l[i].ci = down ? ch[i ? i - 1 : 0] : ch[VAE_LEVELS - 1 - (i ? i - 1 : 0)];
        l[i].co = down ? ch[i] : ch[VAE_LEVELS - 1 - i];
        t = i == 0 ? t : down ? half(t) : 2 * t - 1;
        h = down ? half(h) : 2 * h;
        w = down ? half(w) : 2 * w;
    }
}

void vae_encoded_size(int64_t T, int64_t H, int64_t W, int64_t size[3])
{
    size[0] = half(half(T));
    size[1] = half(half(half(H)));
    size[2] = half(half(half(W)));
}

/* x and h, or the x that comes in. */
int64_t vae_slot_channels(const struct vae_level *l)
{
    return l->ci > 2 * l->co ? l->ci : 2 * l->co;
}

/* ---- plan ---- */

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static const char *const x_row[VAE_LEVELS] = {"x0", "x1", "x2", "x3"}, *const y_row[VAE_LEVELS] = {"y0", "y1", "y2", "y3"};
static const char *const ring_row[VAE_LEVELS] = {"ring0", "ring1", "ring2", "ring3"};
static const char *const cut_row[VAE_LEVELS] = {"cut0", "cut1", "cut2", "cut3"};

hv_dtype vae_act(const struct vae_opts *o)
{
    return o->act ? o->act : HV_F32;
}

static void add_flat(struct hv_plan *p, const struct vae_opts *o, const char *name, uint32_t phases, int64_t n)
{
    hv_plan_add(p, name, vae_act(o), phases, 1, &n);
}

/* ---- what a GPU's products need beside ---- */

static int64_t conv_bytes(int64_t co, int64_t ci, int t, int s)
{
    return (int64_t)hv_conv_scratch(co, ci, (int64_t[]){3, 3, 3}, (int[]){t, s, s});
}

/* The most that a convolution packs, and at least what matrix products like to have. */
static int64_t scratch_bytes(const struct vae_config *c, const struct vae_level *l, enum vae_part part)
{
    int64_t n = (int64_t)HV_LINEAR_SCRATCH;

    for (int i = 0; i < VAE_LEVELS; i++) {
        n = max64(n, max64(conv_bytes(l[i].co, l[i].ci, 1, 1), conv_bytes(l[i].co, l[i].co, 1, 1)));
        if (part == VAE_DECODER && i < VAE_LEVELS - 1)
            n = max64(n, conv_bytes(l[i].co, l[i].co, i ? 2 : 1, 2));
    }
    return max64(n, conv_bytes(c->channels[VAE_LEVELS - 1], max64(c->latent, c->in), 1, 1));
}

static void add_gpu(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, const struct vae_level *l, int mid)
{
    const int64_t N = l[mid].t * l[mid].h * l[mid].w;

    size_t bytes[VAE_WEIGHT_ROWS];
    const int all = o->keep == VAE_KEEP_ALL || o->part == VAE_ENCODER;
    const uint32_t last = PH_RES(3) | PH_HEAD;

    /* Where the last levels want the place, all weights but their own make way, and come again with the next tile. */
    vae_store_bytes(c, o, bytes);
    hv_plan_add(p, "weights", HV_BYTES, all ? PH_ALL : ~(last | PH_RES(2) | PH_OUT(2) | PH_NEXT(2)), 1, (int64_t[]){(int64_t)bytes[0]});
    hv_plan_add(p, "weights.2", HV_BYTES, all ? PH_ALL : ~last, 1, (int64_t[]){(int64_t)bytes[1]});
    hv_plan_add(p, "weights.last", HV_BYTES, PH_ALL, 1, (int64_t[]){(int64_t)bytes[2]});
    hv_plan_add(p, "scratch", HV_BYTES, PH_ALL, 1, (int64_t[]){scratch_bytes(c, l, o->part)});
    if (c->mid_attention)
        hv_plan_add(p, "attention", HV_BYTES, PH_MID, 1,
                    (int64_t[]){(int64_t)hv_attention_scratch(HV_ATT_AUTO, N, N, 1, c->channels[VAE_LEVELS - 1])});
}

/* The last level in windows. Its head reads the ring of any other last level. */
static void add_again(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, const struct vae_level *l, uint32_t edge)
{
    const int i = VAE_LEVELS - 1;
    const int64_t cells = l->h * l->w;

    add_flat(p, o, "again", PH_RES(i) | edge, vae_again_elements(l, (int)c->layers + 1, o->keep));
    add_flat(p, o, ring_row[i], edge, (l->window + 2) * cells * l->co);
    if (o->keep == VAE_KEEP_OUTPUTS)
        add_flat(p, o, "out3", PH_RES(i) | edge, l->t * cells * l->co);
}

/* Rows of level i. `edge`: phases in which x is alive besides its own. The ring also serves the sampler behind the level, but
 * for those that double time, which need none. */
static void add_level(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, const struct vae_level *l, int i,
                      uint32_t edge)
{
    const int64_t cells = l->h * l->w, last = i == VAE_LEVELS - 1, down = o->part == VAE_ENCODER;
    const int below = i == VAE_LEVELS - 2 && o->keep != VAE_KEEP_ALL && !down;
    const int64_t next = down ? half(l->t) * half(l->h) * half(l->w) : l->t * cells;

    if (last && o->keep != VAE_KEEP_ALL && !down) {
        add_again(p, c, o, l, edge);
        return;
    }
    add_flat(p, o, x_row[i], edge | PH_RES(i) | PH_OUT(i) | (i ? PH_NEXT(i - 1) : 0), l->t * cells * vae_slot_channels(l));
    if (!last)
        add_flat(p, o, y_row[i], PH_OUT(i) | PH_NEXT(i) | (below ? PH_RES(i + 1) | PH_HEAD : 0), (down && !i ? l->t * half(l->h) * half(l->w) : next) * l->co);
    add_flat(p, o, ring_row[i], edge | PH_RES(i) | (down ? PH_OUT(i) : i ? 0 : PH_NEXT(0)),
             (l->window + 2) * cells * max64(max64(l->ci, l->co), i == 0 ? max64(c->in, c->latent) : 0));
    if (l->ci != l->co)
        add_flat(p, o, cut_row[i], PH_RES(i), l->window * cells * l->co);
}

static void add_rows(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, const struct vae_level *l)
{
    const int down = o->part == VAE_ENCODER, mid = down ? VAE_LEVELS - 1 : 0, last = VAE_LEVELS - 1;
    const int64_t cells = l[mid].t * l[mid].h * l[mid].w, C = c->channels[VAE_LEVELS - 1];

    hv_plan_add(p, "sums", HV_F64, PH_ALL, 3, (int64_t[]){o->keep == VAE_KEEP_NOTHING ? 2 * c->layers + 3 : 2, c->groups, 2});
    for (int i = 0; i < VAE_LEVELS; i++)
        add_level(p, c, o, &l[i], i, (uint32_t)((i == 0 ? PH_IN : 0) | (i == mid ? PH_MID : 0) | (i == last ? PH_HEAD : 0)));
    if (c->mid_attention) {
        add_flat(p, o, "norm", PH_MID, cells * C);
        add_flat(p, o, "q", PH_MID, cells * C);
        add_flat(p, o, "k", PH_MID, cells * C);
        add_flat(p, o, "v", PH_MID, cells * C);
    }
    if (!down)
        add_flat(p, o, "z", PH_IN, 2 * o->t * o->h * o->w * c->latent);
    const int64_t pixels = l[last].window * l[last].h * l[last].w;
    add_flat(p, o, "head", PH_HEAD, pixels * (down ? 4 * c->latent : c->out));
    if (vae_act(o) != HV_F32)
        hv_plan_add(p, "wide", HV_F32, PH_HEAD, 1, (int64_t[]){pixels * (down ? 2 * c->latent : c->out)});
    if (o->gpu)
        add_gpu(p, c, o, l, mid);
}

static int place(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, int64_t cells, int64_t *window,
                 struct hv_err *e)
{
    struct vae_level l[VAE_LEVELS];

    *p = (struct hv_plan){.budget = o->budget};
    vae_levels(c, o->part, o->t, o->h, o->w, l);
    for (int i = 0; i < VAE_LEVELS; i++) {
        const int64_t n = cells / (l[i].h * l[i].w);
        l[i].window = n < 1 ? 1 : n < l[i].t ? n : l[i].t;
        if (i == VAE_LEVELS - 1 && o->keep != VAE_KEEP_ALL && o->part == VAE_DECODER)
            l[i].window = n < 2 ? 2 : (n < l[i].t + 1 ? n : l[i].t + 1) / 2 * 2;         /* pairs of frames */
        window[i] = l[i].window;
    }
    add_rows(p, c, o, l);
    return hv_plan_place(p, e);
}

/* The longest windows that fit the budget. */
static int fit(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, int64_t *window, struct hv_err *e)
{
    const int64_t most = o->cells ? o->cells : o->gpu ? 262144 : 32768;

    for (int64_t cells = most; cells > 1 && o->budget; cells /= 2) {
        struct hv_err no = {0};
        if (!place(p, c, o, cells, window, &no))
            return 0;
        if (no.code != HV_ENOMEM)
            break;
    }
    return place(p, c, o, o->budget ? 1 : most, window, e);
}

int vae_plan(struct hv_plan *p, const struct vae_config *c, const struct vae_opts *o, struct hv_err *e)
{
    int64_t window[VAE_LEVELS];

    return fit(p, c, o, window, e);
}

/* ---- open, close ---- */

int vae_open(struct vae **out, struct hv_dev *d, struct hv_weights *w, const struct vae_config *c, const struct vae_opts *o,
             struct hv_err *e)
{
    struct hv_plan plan;
    struct vae *v = calloc(1, sizeof *v);

    *out = NULL;
    if (!v)
        return hv_fail(e, HV_ENOMEM, "vae: out of memory");
    *v = (struct vae){.d = d, .w = w, .c = *c, .o = *o};
    assert(o->t > 0 && o->h > 0 && o->w > 0);
    if (fit(&plan, c, o, v->window, e) || hv_arena_open(&v->arena, d, &plan, e)) {
        vae_close(v);
        return e->code;
    }
    if (o->gpu && d->kind != HV_DRY) {
        d->scratch = hv_arena_row(v->arena, "scratch");
        if (vae_store_open(v, e)) {
            vae_close(v);
            return e->code;
        }
    }
    *out = v;
    return 0;
}

void vae_close(struct vae *v)
{
    if (!v)
        return;
    vae_store_close(v);
    if (v->arena && v->o.gpu)
        v->d->scratch = HV_NO;
    hv_arena_close(v->arena);
    free(v);
}

const struct hv_plan *vae_plan_of(const struct vae *v)
{
    return hv_arena_plan(v->arena);
}

void vae_trace(struct vae *v, vae_trace_fn *fn, void *ctx)
{
    v->trace = fn;
    v->trace_ctx = ctx;
}
