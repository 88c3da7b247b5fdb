/* The decoder's last level without its tensors: windows of frames go from the level below through the upsampler and the resnets,
 * and whatever a norm has to know of all frames is found by sending them through once more (vae.md section 8, plans C and D).
 *
 * Windows begin at odd frames, for an upsampled pair is made at once: the first has an odd number of frames, the others an even one. */
#include <stdio.h>

#include "model/vae_net.h"

#define UNITS 17                                /* resnets at most */

/* A resnet on its way through the frames. */
struct unit {
    struct vae_source a, b;                     /* in front of conv1 and conv2 */
    hv_tensor ring_a, ring_b;
    char      name[VAE_NAME];
};

struct again {
    struct vae             *v;
    const struct vae_level *l;
    hv_tensor  below;                           /* input of the upsampler, whole */
    hv_tensor  up, h, o, out;                   /* windows; out: OUTPUTS: all frames */
    char       sampler[VAE_NAME], block[VAE_NAME];
    int        n, keep;
    struct unit unit[UNITS];
};

/* ---- memory ---- */

static int64_t take(int64_t *at, int64_t n)
{
    const int64_t from = *at;

    *at += (n + 127) / 128 * 128;
    return from;
}

/* Places the windows and rings in a flat row; returns its elements. row HV_NO: only counts. */
static int64_t carve(struct again *a, hv_tensor row, const struct vae_level *l, int n, int keep)
{
    const int64_t cells = l->h * l->w, w = l->window;
    int64_t at = 0;
    const int64_t up = take(&at, w * cells * l->ci), h = take(&at, w * cells * l->co);
    const int64_t o = keep == VAE_KEEP_NOTHING ? take(&at, w * cells * l->co) : 0;

    for (int r = 0; r < n; r++) {
        const int shared = keep == VAE_KEEP_OUTPUTS && r;
        const int64_t x = r ? l->co : l->ci, from = shared ? -1 : take(&at, (w + 2) * cells * x);
        const int64_t to = shared ? -1 : take(&at, (w + 2) * cells * l->co);
        if (a && !shared) {
            a->unit[r].ring_a = hv_rows(row, from, (w + 2) * cells * x);
            a->unit[r].ring_b = hv_rows(row, to, (w + 2) * cells * l->co);
        } else if (a) {
            a->unit[r].ring_a = a->unit[0].ring_a;
            a->unit[r].ring_b = a->unit[0].ring_b;
        }
    }
    if (a) {
        int64_t s[4] = {w, l->h, l->w, l->ci};
        a->up = hv_reshape(hv_rows(row, up, hv_shape_count(4, s)), 4, s);
        s[3] = l->co;
        a->h = hv_reshape(hv_rows(row, h, hv_shape_count(4, s)), 4, s);
        a->o = keep == VAE_KEEP_NOTHING ? hv_reshape(hv_rows(row, o, hv_shape_count(4, s)), 4, s) : HV_NO;
    }
    return at;
}

int64_t vae_again_elements(const struct vae_level *l, int n, enum vae_keep keep)
{
    return carve(NULL, HV_NO, l, n, keep);
}

/* ---- one window ---- */

/* Frames first .. of the upsampled input. */
static hv_tensor upsampled(struct again *a, int64_t first, int64_t n)
{
    const hv_tensor x = hv_rows(a->up, 0, n);

    vae_double(a->v, x, a->below, first, a->sampler, &(struct hv_conv){.up = {2, 2, 2}, .pad = HV_PAD_REPLICATE});
    return x;
}

/* A source that is handed its frames window by window. */
static hv_tensor window_of(struct vae *v, struct vae_source *s, hv_tensor x, int64_t first)
{
    s->x = x;
    s->base = first;
    return vae_window(v, s, first, x.shape[0]);
}

static hv_tensor hidden(struct again *a, int r, hv_tensor x, int64_t first)
{
    char name[VAE_NAME + 16];
    const hv_tensor h = hv_rows(a->h, 0, x.shape[0]);

    snprintf(name, sizeof name, "%s.conv1.conv", a->unit[r].name);
    vae_convolve(a->v, h, window_of(a->v, &a->unit[r].a, x, first), name, &(struct hv_conv){.pad = HV_PAD_REPLICATE});
    return h;
}

/* The resnet's output over o: o is x itself where channels stay. */
static void output(struct again *a, int r, hv_tensor x, hv_tensor h, hv_tensor o, int64_t first)
{
    char name[VAE_NAME + 32];

    if (x.shape[3] != o.shape[3]) {
        snprintf(name, sizeof name, "%s.conv_shortcut.conv", a->unit[r].name);
        vae_conv1(a->v, o, x, name);
    } else if (x.data != o.data) {
        hv_copy(a->v->d, o, x);
    }
    snprintf(name, sizeof name, "%s.conv2.conv", a->unit[r].name);
    vae_convolve(a->v, o, window_of(a->v, &a->unit[r].b, h, first), name,
                 &(struct hv_conv){.pad = HV_PAD_REPLICATE, .residual = o});
}

/* ---- passes ---- */

/* Starts the frames of a resnet at 0 again. */
static void rewind_one(struct again *a, int r)
{
    const struct vae_level *l = a->l;
    struct unit *u = &a->unit[r];
    const int which = a->keep == VAE_KEEP_NOTHING ? 2 * r : 0;
    const int64_t whole[4] = {l->t, l->h, l->w, r ? l->co : l->ci}, inner[4] = {l->t, l->h, l->w, l->co};
    char name[VAE_NAME + 16];

    vae_name(u->name, "%s.resnets.%d", a->block, r);
    snprintf(name, sizeof name, "%s.norm1", u->name);
    u->a = vae_normed(a->v, hv_view(NULL, vae_act(&a->v->o), 4, whole), u->ring_a, name, which);
    snprintf(name, sizeof name, "%s.norm2", u->name);
    u->b = vae_normed(a->v, hv_view(NULL, vae_act(&a->v->o), 4, inner), u->ring_b, name, which + 1);
}

static int64_t length(const struct again *a, int64_t first)
{
    const int64_t w = a->l->window - (first == 0 && a->l->window > 1), left = a->l->t - first;

    return w < left ? w : left;
}

/* NOTHING: sends all frames through as far as sums `which` are of; beyond the last: to the head. */
static void pass(struct again *a, int which, struct vae_head *head)
{
    for (int r = 0; r < a->n; r++)
        rewind_one(a, r);
    if (which <= 2 * a->n)
        vae_sum(a->v, which, HV_NO);
    for (int64_t first = 0, n; first < a->l->t; first += n) {
        n = length(a, first);
        hv_tensor x = upsampled(a, first, n), h = HV_NO;
        int r = 0;
        for (; r < a->n && which > 2 * r; r++) {
            h = hidden(a, r, x, first);
            if (which == 2 * r + 1)
                break;
            const hv_tensor o = x.shape[3] == a->l->co ? x : hv_rows(a->o, 0, n);
            output(a, r, x, h, o, first);
            x = o;
        }
        if (which <= 2 * a->n)
            vae_sum_more(a->v, which, which == 2 * r + 1 ? h : x);
        else
            vae_head_window(a->v, head, x, first);
    }
}

static void nothing(struct again *a, hv_tensor y)
{
    for (int which = 0; which <= 2 * a->n; which++)
        pass(a, which, NULL);
    struct vae_head head = vae_head_open(a->v, "decoder", NULL, y, 2 * a->n);
    pass(a, 2 * a->n + 1, &head);
}

/* OUTPUTS: one resnet, its output over its input. sum: 1 its input, 2 its hidden tensor are summed up; 0: its output is made. */
static void through(struct again *a, int r, int sum)
{
    rewind_one(a, r);
    if (sum)
        vae_sum(a->v, sum - 1, HV_NO);
    for (int64_t first = 0, n; first < a->l->t; first += n) {
        n = length(a, first);
        const hv_tensor o = hv_rows(a->out, first, n), x = r ? o : upsampled(a, first, n);
        if (sum == 1) {
            vae_sum_more(a->v, 0, x);
            continue;
        }
        const hv_tensor h = hidden(a, r, x, first);
        if (sum)
            vae_sum_more(a->v, 1, h);
        else
            output(a, r, x, h, o, first);
    }
}

void vae_again(struct vae *v, hv_tensor below, const struct vae_level *l, const char *sampler, const char *block, hv_tensor y)
{
    struct again a = {.v = v, .l = l, .below = below, .n = (int)v->c.layers + 1, .keep = (int)v->o.keep};
    const int64_t shape[4] = {l->t, l->h, l->w, l->co};

    vae_name(a.sampler, "%s", sampler);
    vae_name(a.block, "%s", block);
    carve(&a, hv_arena_row(v->arena, "again"), l, a.n, a.keep);
    if (a.keep == VAE_KEEP_NOTHING) {
        nothing(&a, y);
        return;
    }
    a.out = vae_flat(v, "out3", 4, shape);
    for (int r = 0; r < a.n; r++) {
        through(&a, r, 1);
        through(&a, r, 2);
        through(&a, r, 0);
    }
    vae_sum(v, 0, a.out);
    struct vae_head head = vae_head_open(v, "decoder", NULL, y, 0);
    for (int64_t first = 0, n; first < l->t; first += n) {
        n = length(&a, first);
        vae_head_window(v, &head, hv_rows(a.out, first, n), first);
    }
}
