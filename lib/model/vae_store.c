/* The weights of a part on a GPU: one page-locked copy on the host, matrices in the dtype of the activations, and rows of the plan
 * that it is copied to. Those of the decoder's last level ("weights.last") stay; the others ("weights", and "weights.2" of the level
 * before) may lie under what later levels need, and are copied again for each tile: 6 ms at full size. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "model/vae_net.h"

struct vae_store {
    struct hv_wlist list;
    size_t *at;                         /* of each tensor, in its row */
    char   *host[VAE_WEIGHT_ROWS];      /* of each row */
    size_t  bytes[VAE_WEIGHT_ROWS];
    int     there;                      /* all rows hold their weights */
};

static const char *const rows[VAE_WEIGHT_ROWS] = {"weights", "weights.2", "weights.last"};

static int is_matrix(const struct hv_wspec *s)
{
    return s->ndim >= 2;
}

static size_t bytes_of(const struct hv_wspec *s, hv_dtype act)
{
    return (size_t)hv_shape_count(s->ndim, s->shape) * hv_dtype_size(is_matrix(s) ? act : HV_F32);
}

/* The sampler that leads to the last level is part of it. */
static int row_of(const struct hv_wspec *s)
{
    static const char *const last[] = {"decoder.up_blocks.3.", "decoder.up_blocks.2.upsamplers", "decoder.conv_norm_out", "decoder.conv_out"};

    for (size_t i = 0; i < sizeof last / sizeof *last; i++)
        if (!strncmp(s->name, last[i], strlen(last[i])))
            return 2;
    return !strncmp(s->name, "decoder.up_blocks.2.", 20);
}

static void place(const struct hv_wlist *l, hv_dtype act, size_t *at, size_t bytes[VAE_WEIGHT_ROWS])
{
    memset(bytes, 0, VAE_WEIGHT_ROWS * sizeof *bytes);
    for (int i = 0; i < l->n; i++) {
        size_t *end = &bytes[row_of(&l->w[i])];
        if (at)
            at[i] = *end;
        *end += (bytes_of(&l->w[i], act) + HV_ALIGN - 1) / HV_ALIGN * HV_ALIGN;
    }
}

void vae_store_bytes(const struct vae_config *c, const struct vae_opts *o, size_t bytes[VAE_WEIGHT_ROWS])
{
    struct hv_wlist l = {0};

    vae_part_weights(&l, c, o->part);
    place(&l, vae_act(o), NULL, bytes);
    hv_wlist_close(&l);
}

#define PIECE 4096

/* n values of another dtype, by way of f32. */
static void convert(hv_dtype type, char *to, const hv_tensor t, int64_t n)
{
    const size_t from = hv_dtype_size(t.dtype), each = hv_dtype_size(type);
    float wide[PIECE];

    for (int64_t i = 0; i < n; i += PIECE) {
        const size_t now = (size_t)(n - i < PIECE ? n - i : PIECE);
        hv_to_f32(wide, t.dtype, (const char *)t.data + (size_t)i * from, now);
        hv_from_f32(type, to + (size_t)i * each, wide, now);
    }
}

/* By all cores: most of it is waiting for pages of the file. */
static void fill(struct vae *v, const struct vae_store *s, hv_tensor *from)
{
    const hv_dtype act = vae_act(&v->o);

    for (int i = 0; i < s->list.n; i++)
        if (!(from[i] = hv_weight(v->w, "%s", s->list.w[i].name)).data)
            return;                     /* a fault of the weights' device */
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < s->list.n; i++) {
        const struct hv_wspec *w = &s->list.w[i];
        const hv_tensor t = from[i];
        const hv_dtype type = is_matrix(w) ? act : HV_F32;
        char *to = s->host[row_of(w)] + s->at[i];
        if (t.dtype == type)
            memcpy(to, t.data, bytes_of(w, act));
        else
            convert(type, to, t, hv_count(t));
    }
}

static void send(struct vae *v, int row)
{
    const struct vae_store *s = v->store;

    if (s->bytes[row])
        hv_dev_move(v->d, HV_LANE_COMPUTE, hv_arena_row(v->arena, rows[row]).data, s->bytes[row], s->host[row], s->bytes[row],
                    s->bytes[row], 1);
}

int vae_store_open(struct vae *v, struct hv_err *e)
{
    struct vae_store *s = v->store = calloc(1, sizeof *s);
    hv_tensor *from;

    if (!s)
        return hv_fail(e, HV_ENOMEM, "vae: out of memory");
    vae_part_weights(&s->list, &v->c, v->o.part);
    s->at = calloc((size_t)s->list.n + 1, sizeof *s->at);
    from = calloc((size_t)s->list.n + 1, sizeof *from);
    if (s->at && from)
        place(&s->list, vae_act(&v->o), s->at, s->bytes);
    for (int k = 0; k < VAE_WEIGHT_ROWS && s->at && from && !e->code; k++)
        s->host[k] = s->bytes[k] ? hv_dev_pin(v->d, s->bytes[k], e) : NULL;
    if (!e->code && (!s->at || !from))
        hv_fail(e, HV_ENOMEM, "vae: out of memory");
    if (!e->code) {
        fill(v, s, from);
        send(v, VAE_WEIGHT_ROWS - 1);
    }
    free(from);
    return e->code;
}

void vae_store_close(struct vae *v)
{
    struct vae_store *s = v->store;

    if (!s)
        return;
    for (int k = 0; k < VAE_WEIGHT_ROWS; k++)
        hv_dev_unpin(v->d, s->host[k]);
    hv_wlist_close(&s->list);
    free(s->at);
    free(s);
    v->store = NULL;
}

void vae_store_begin(struct vae *v)
{
    struct vae_store *s = v->store;

    if (!s || s->there)
        return;
    for (int k = 0; k < VAE_WEIGHT_ROWS - 1; k++)
        send(v, k);
    s->there = v->o.part == VAE_ENCODER || v->o.keep == VAE_KEEP_ALL;
}

static hv_tensor stored(struct vae *v, const char *name)
{
    const struct vae_store *s = v->store;
    int i = 0;

    while (i < s->list.n && strcmp(s->list.w[i].name, name))
        i++;
    if (i == s->list.n) {
        hv_dev_fault(v->d, HV_EINPUT, "weights: %s: not in the list of the network's weights", name);
        return HV_NO;
    }
    const struct hv_wspec *w = &s->list.w[i];
    const hv_tensor row = hv_arena_row(v->arena, rows[row_of(w)]);
    hv_tensor t = hv_view((char *)row.data + s->at[i], is_matrix(w) ? vae_act(&v->o) : HV_F32, w->ndim, w->shape);
    t.dev = row.dev;
    return t;
}

hv_tensor vae_weight(struct vae *v, const char *name, const char *what)
{
    char full[2 * VAE_NAME];

    snprintf(full, sizeof full, "%s.%s", name, what);
    return v->store ? stored(v, full) : hv_weight(v->w, "%s", full);
}
