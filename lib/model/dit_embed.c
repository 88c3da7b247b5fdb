/* dit_embed.c - the two ends of a forward: latents, reference and text to rows, and rows to the velocity. */
#include "dit_impl.h"

#include <string.h>

struct dit_piece dit_piece_at(const struct dit *n, int64_t token, int64_t end)
{
    const int64_t P = n->m.tokens, across = n->m.across, cap = n->m.embed;
    struct dit_piece p = {.frame = token / P, .frames = 1, .lines = n->m.down, .token = token};

    if (cap >= P) {
        p.frames = cap / P < (end - token) / P ? cap / P : (end - token) / P;
    } else {
        p.line = token % P / across;
        p.lines = n->m.down - p.line < cap / across ? n->m.down - p.line : cap / across;
    }
    p.n = token < end ? p.frames * p.lines * across : 0;
    return p;
}

static hv_tensor box(const struct dit *n, hv_tensor planes, struct dit_piece p)
{
    return hv_slice(hv_slice(planes, 1, p.frame, p.frames), 2, p.line * n->c.patch[1], p.lines * n->c.patch[1]);
}

void dit_patch_embed(const struct dit *n, hv_tensor y, const char *name, hv_tensor planes, struct dit_piece p)
{
    const int patch[3] = {(int)n->c.patch[0], (int)n->c.patch[1], (int)n->c.patch[2]};
    const hv_tensor in = hv_rows(dit_row(n, "patches"), 0, p.n);

    hv_patchify(n->dev, in, box(n, planes, p), patch);
    dit_linear(n, y, in, name, HV_ACT_NONE);
}

/* before_proj(ref_in(ref)) of a piece. */
static hv_tensor reference_rows(const struct dit *n, struct dit_piece p)
{
    const hv_tensor a = hv_rows(dit_row(n, "embed"), 0, p.n);
    const hv_tensor y = n->choice.keep_ref ? hv_rows(dit_row(n, "ref_rows"), p.token, p.n) :
                                             hv_rows(dit_row(n, "embed_ref"), 0, p.n);

    if (n->choice.keep_ref && n->ref_kept)
        return y;
    dit_patch_embed(n, a, "ref_in.proj", dit_row(n, "ref"), p);
    dit_traced(n, p.token, 0, a, "ref_in");
    dit_linear(n, y, a, "before_proj", HV_ACT_NONE);
    dit_traced(n, p.token, 0, y, "before_proj");
    return y;
}

void dit_embed_piece(const struct dit *n, hv_tensor y, struct dit_piece p)
{
    const hv_tensor ref = reference_rows(n, p);

    dit_patch_embed(n, y, "img_in.proj", dit_row(n, "latents"), p);
    dit_traced(n, p.token, 0, y, "img_in.latents");
    hv_add(n->dev, y, y, ref);
}

/* Refined text behind the image rows. */
static void embed_text(struct dit *n, const struct dit_state *s)
{
    const hv_tensor text = dit_rows(hv_index(dit_host(n, "text"), n->slot[s->call->moment]), 0, s->text);

    if (n->choice.tier != DIT_TIER_X_HOST)
        hv_upload(n->dev, hv_rows(s->x, n->m.image, s->text), text);
    else if (n->dev->kind != HV_DRY)
        memcpy(dit_x_on_host(n, s, n->m.image, s->text).data, text.data, hv_nbytes(text));
}

/* x = [img_in(ref frame 0) | img_in(latents) + before_proj(ref_in(ref)) | text]. */
void dit_embed(struct dit *n, const struct dit_state *s)
{
    const struct dit_call *call = s->call;
    const int64_t P = n->m.tokens;

    dit_phase_take(n, s, "stem", -1, "");
    dit_begin_phase(n);
    hv_upload(n->dev, dit_row(n, "latents"), call->latents);
    hv_upload(n->dev, dit_row(n, "ref"), call->ref);
    hv_upload(n->dev, dit_row(n, "face"), hv_view(call->mask, HV_F32, 1, (const int64_t[]){n->m.voices * n->m.video}));
    for (struct dit_piece p = dit_piece_at(n, 0, P); p.n; p = dit_piece_at(n, p.token + p.n, P)) {
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", p.token, p.n, DIT_ROOM);
        dit_patch_embed(n, x, "img_in.proj", dit_row(n, "ref"), p);
        dit_traced(n, p.token, 0, x, "img_in.ref");
        dit_x_done(n, s, x, p.token, DIT_WRITTEN);
    }
    for (struct dit_piece p = dit_piece_at(n, 0, n->m.video); p.n; p = dit_piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", P + p.token, p.n, DIT_ROOM);
        dit_embed_piece(n, x, p);
        dit_x_done(n, s, x, P + p.token, DIT_WRITTEN);
    }
    n->ref_kept = 1;
    if (call->cache != DIT_LOAD)
        embed_text(n, s);
    dit_phase_give(n, s, "stem", -1, "");
    dit_trace_x(n, s, 0, n->m.image, "embedded.img", 0);
}

/* Velocity of the video rows: unpatchify(lin(modulate(norm(x)))). */
void dit_final_layer(struct dit *n, const struct dit_state *s)
{
    const int patch[3] = {(int)n->c.patch[0], (int)n->c.patch[1], (int)n->c.patch[2]};
    const hv_tensor shift = hv_index(s->mod, n->m.mods - 2), scale = hv_index(s->mod, n->m.mods - 1);

    dit_phase_take(n, s, "final", -1, "");
    dit_begin_phase(n);
    for (struct dit_piece p = dit_piece_at(n, 0, n->m.video); p.n; p = dit_piece_at(n, p.token + p.n, n->m.video)) {
        const hv_tensor z = hv_rows(dit_row(n, "embed"), 0, p.n), y = hv_rows(dit_row(n, "patches"), 0, p.n);
        const hv_tensor x = dit_x_rows(n, s, "x_mlp", n->m.tokens + p.token, p.n, DIT_FETCH);
        const hv_tensor stat = hv_rows(dit_row(n, "stat"), n->m.tokens + p.token, p.n);
        hv_row_stats(n->dev, stat, x, DIT_NORM_EPS);
        hv_norm_modulate(n->dev, z, x, stat, shift, scale);
        dit_x_done(n, s, x, n->m.tokens + p.token, DIT_READ);
        dit_linear(n, y, z, "final_layer.linear", HV_ACT_NONE);
        dit_traced(n, p.token, 0, y, "final_layer");
        hv_unpatchify(n->dev, box(n, dit_row(n, "velocity"), p), y, patch);
    }
    dit_phase_give(n, s, "final", -1, "");
}
