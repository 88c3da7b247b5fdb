/* Encoder and decoder of the VAE: the order of blocks. */
#include <assert.h>
#include <math.h>
#include <stdio.h>

#include "model/vae_net.h"

static const char *const x_row[VAE_LEVELS] = {"x0", "x1", "x2", "x3"}, *const y_row[VAE_LEVELS] = {"y0", "y1", "y2", "y3"};
static const char *const ring_row[VAE_LEVELS] = {"ring0", "ring1", "ring2", "ring3"};
static const char *const cut_row[VAE_LEVELS] = {"cut0", "cut1", "cut2", "cut3"};

/* The stream of level i as it begins: ci channels at the start of each slot. */
static struct vae_stream stream(const struct vae *v, const struct vae_level *l, int i)
{
    return (struct vae_stream){.row = hv_arena_row(v->arena, x_row[i]), .t = l[i].t, .h = l[i].h, .w = l[i].w,
                               .slot = l[i].h * l[i].w * vae_slot_channels(&l[i]), .c = l[i].ci, .window = l[i].window};
}

static void levels(const struct vae *v, struct vae_level *l, const int64_t *shape)
{
    vae_levels(&v->c, v->o.part, shape[0], shape[1], shape[2], l);
    for (int i = 0; i < VAE_LEVELS; i++)
        l[i].window = v->window[i];
}

static void resnets(struct vae *v, struct vae_stream *s, const struct vae_level *l, int i, const char *block, int64_t n)
{
    const hv_tensor ring = hv_arena_row(v->arena, ring_row[i]);
    const hv_tensor cut = l[i].ci != l[i].co ? hv_arena_row(v->arena, cut_row[i]) : HV_NO;
    char name[VAE_NAME];

    for (int64_t r = 0; r < n; r++) {
        vae_name(name, "%s.resnets.%d", block, (int)r);
        vae_resnet(v, s, ring, cut, l[i].co, name);
    }
}

struct vae_head vae_head_open(struct vae *v, const char *part, const char *after, hv_tensor y, int which)
{
    const int64_t *n = y.shape;
    const int last = VAE_LEVELS - 1;
    const int64_t channels = v->c.channels[v->o.part == VAE_DECODER ? 0 : last];
    char norm[VAE_NAME];

    vae_name(norm, "%s.conv_norm_out", part);
    const hv_tensor x = hv_view(NULL, vae_act(&v->o), 4, (int64_t[]){n[0], n[1], n[2], channels});
    return (struct vae_head){.in = vae_normed(v, x, hv_arena_row(v->arena, ring_row[last]), norm, which), .part = part, .after = after, .y = y};
}

void vae_head_window(struct vae *v, struct vae_head *head, hv_tensor x, int64_t first)
{
    const int64_t n = x.shape[0], C = head->y.shape[3], count = n * x.shape[1] * x.shape[2] * C;
    const int64_t shape[4] = {n, x.shape[1], x.shape[2], C};
    const hv_tensor row = hv_arena_row(v->arena, "head");
    hv_tensor out = hv_reshape(hv_rows(row, 0, count), 4, shape);
    char name[VAE_NAME];

    vae_name(name, "%s.conv_out.conv", head->part);
    head->in.x = x;
    head->in.base = first;
    vae_convolve(v, out, vae_window(v, &head->in, first, n), name, &(struct hv_conv){.pad = HV_PAD_REPLICATE});
    if (head->after) {
        const hv_tensor q = hv_reshape(hv_rows(row, count, count), 4, shape);
        vae_tell(v, out, first, "%s", head->part);
        vae_conv1(v, q, out, head->after);
        out = q;
    }
    if (out.dtype != HV_F32) {
        const hv_tensor wide = hv_reshape(hv_rows(hv_arena_row(v->arena, "wide"), 0, count), 4, shape);
        hv_copy(v->d, wide, out);
        out = wide;
    }
    hv_download(v->d, hv_rows(head->y, first, n), out);
}

static void head_of(struct vae *v, const struct vae_stream *s, const char *part, const char *after, hv_tensor y)
{
    const hv_tensor x = vae_x(s);

    vae_sum(v, 0, x);
    struct vae_head head = vae_head_open(v, part, after, y, 0);
    struct vae_source plain = head.in;
    plain.act = HV_ACT_NONE;
    for (int64_t t = 0; v->trace && t < s->t; t++) {            /* before SiLU: nothing else wants it */
        plain.x = hv_rows(x, t, 1);
        plain.have = -1;
        vae_tell(v, hv_rows(vae_window(v, &plain, 0, 1), 2, 1), t, "%s.conv_norm_out", part);
    }
    for (int64_t first = 0; first < s->t; first += s->window) {
        const int64_t n = s->t - first < s->window ? s->t - first : s->window;
        vae_head_window(v, &head, hv_rows(x, first, n), first);
    }
}

/* ---- decoder ---- */

static struct vae_stream decoder_in(struct vae *v, const struct vae_level *l, hv_tensor z)
{
    const int64_t *n = z.shape;
    const hv_tensor both = vae_flat(v, "z", 5, (int64_t[]){2, n[0], n[1], n[2], n[3]});
    const hv_tensor in = hv_index(both, 0), q = hv_index(both, 1);
    struct vae_stream s = stream(v, l, 0);
    struct vae_source src = {.kind = VAE_RAW, .x = q, .ring = hv_arena_row(v->arena, ring_row[0]), .stride = 1, .have = -1};

    hv_upload(v->d, in, z);
    vae_conv1(v, q, in, "post_quant_conv");
    vae_tell(v, q, 0, "post_quant_conv");
    vae_conv(v, vae_x(&s), &src, s.window, "decoder.conv_in.conv", (struct hv_conv){0});
    vae_tell(v, vae_x(&s), 0, "decoder.conv_in");
    return s;
}

void vae_decode(struct vae *v, hv_tensor y, hv_tensor z)
{
    struct vae_level l[VAE_LEVELS];
    struct vae_stream s;
    char block[VAE_NAME], name[VAE_NAME];

    assert(v->o.part == VAE_DECODER && z.shape[0] <= v->o.t && z.shape[1] <= v->o.h && z.shape[2] <= v->o.w);
    levels(v, l, z.shape);
    vae_store_begin(v);
    s = decoder_in(v, l, z);
    vae_mid(v, &s, hv_arena_row(v->arena, ring_row[0]), "decoder.mid_block");
    for (int i = 0; i < VAE_LEVELS; i++) {
        vae_name(block, "decoder.up_blocks.%d", i);
        hv_weights_take(v->w, block);
        resnets(v, &s, l, i, block, v->c.layers + 1);
        if (i < VAE_LEVELS - 1) {
            const hv_tensor kept = vae_flat(v, y_row[i], 4, vae_x(&s).shape);
            hv_copy(v->d, kept, vae_x(&s));
            vae_name(name, "%s.upsamplers.0.conv.conv", block);
            if (i == VAE_LEVELS - 2 && v->o.keep != VAE_KEEP_ALL) {
                hv_weights_give(v->w, block);
                vae_again(v, kept, &l[i + 1], name, "decoder.up_blocks.3", y);
                return;
            }
            s = stream(v, l, i + 1);
            vae_upsample(v, vae_x(&s), kept, hv_arena_row(v->arena, ring_row[i]), (const int[]){i ? 2 : 1, 2, 2}, l[i].window, name);
        }
        vae_tell(v, vae_x(&s), 0, "%s", block);
        hv_weights_give(v->w, block);
    }
    head_of(v, &s, "decoder", NULL, y);
}

/* ---- encoder ---- */

/* The next level's x = conv of stride 2, by way of y: this level's slots are gone by then. */
static struct vae_stream downsample(struct vae *v, const struct vae_stream *s, const struct vae_level *l, int i, const char *block)
{
    struct vae_stream next = stream(v, l, i + 1);
    const hv_tensor y = vae_flat(v, y_row[i], 4, vae_x(&next).shape);
    const int time = i ? 2 : 1;
    struct vae_source in = {.kind = VAE_RAW, .x = vae_x(s), .ring = hv_arena_row(v->arena, ring_row[i]), .stride = time, .have = -1};
    char name[VAE_NAME];

    vae_name(name, "%s.downsamplers.0.conv.conv", block);
    vae_conv(v, y, &in, s->window > 1 ? s->window / time : 1, name, (struct hv_conv){.stride = {time, 2, 2}});
    hv_copy(v->d, vae_x(&next), y);
    return next;
}

void vae_encode(struct vae *v, hv_tensor moments, hv_tensor x)
{
    struct vae_level l[VAE_LEVELS];
    char block[VAE_NAME];

    assert(v->o.part == VAE_ENCODER && x.shape[0] <= v->o.t && x.shape[1] <= v->o.h && x.shape[2] <= v->o.w);
    levels(v, l, x.shape);
    vae_store_begin(v);
    struct vae_stream s = stream(v, l, 0);
    struct vae_source in = {.kind = VAE_HOST, .x = x, .ring = hv_arena_row(v->arena, ring_row[0]), .stride = 1, .have = -1};
    vae_conv(v, vae_x(&s), &in, s.window, "encoder.conv_in.conv", (struct hv_conv){0});
    vae_tell(v, vae_x(&s), 0, "encoder.conv_in");
    for (int i = 0; i < VAE_LEVELS; i++) {
        vae_name(block, "encoder.down_blocks.%d", i);
        hv_weights_take(v->w, block);
        resnets(v, &s, l, i, block, v->c.layers);
        if (i < VAE_LEVELS - 1)
            s = downsample(v, &s, l, i, block);
        vae_tell(v, vae_x(&s), 0, "%s", block);
        hv_weights_give(v->w, block);
    }
    vae_mid(v, &s, hv_arena_row(v->arena, ring_row[VAE_LEVELS - 1]), "encoder.mid_block");
    head_of(v, &s, "encoder", "quant_conv", moments);
}

/* ---- the distribution ---- */

void vae_sample(float *z, const float *moments, const float *noise, int64_t n, int64_t channels)
{
    for (int64_t i = 0; i < n; i++, moments += 2 * channels)
        for (int64_t c = 0; c < channels; c++, z++) {
            const float raw = moments[channels + c], logvar = raw < -30 ? -30 : raw > 20 ? 20 : raw;
            *z = moments[c] + (noise ? expf(0.5f * logvar) * *noise++ : 0);
        }
}
