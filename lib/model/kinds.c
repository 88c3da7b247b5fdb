#include "model/kinds.h"

#include <string.h>

#include "model/clip.h"
#include "model/dit.h"
#include "model/face.h"
#include "model/llama.h"
#include "model/vae.h"
#include "model/vit.h"
#include "model/vae.h"
#include "model/whisper.h"

static int done(struct hv_wlist *l, struct hv_err *e)
{
    return l->fault ? hv_fail(e, HV_ENOMEM, "list of weights: out of memory") : 0;
}

static int list_transformer(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct dit_config c = {0};

    if (dit_config_parse(&c, config, e))
        return e->code;
    dit_weights(l, &c);
    return done(l, e);
}

static int list_vae(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct vae_config c = {0};

    if (vae_config_parse(&c, config, e))
        return e->code;
    vae_weights(l, &c);
    return done(l, e);
}

static int list_audio_encoder(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct whisper_config c = {0};

    if (whisper_config_parse(&c, config, e))
        return e->code;
    whisper_weights(l, &c);
    return done(l, e);
}

static int list_text_encoder(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct vit_config vision = {0};
    struct llama_config language = {0};

    if (vit_config_parse(&vision, config, e) || llama_config_parse(&language, config, e))
        return e->code;
    vit_weights(l, &vision);
    llama_weights(l, &language);
    return done(l, e);
}

static int list_text_encoder_2(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct clip_config c = {0};

    if (clip_config_parse(&c, config, e))
        return e->code;
    clip_weights(l, &c);
    return done(l, e);
}

static int list_face_detector(struct hv_wlist *l, const json_t *config, struct hv_err *e)
{
    struct face_config c = {0};

    if (face_config_parse(&c, config, e))
        return e->code;
    face_weights(l, &c);
    return done(l, e);
}

const struct hv_kind hv_kinds[] = {
    {"transformer",    "double_blocks.",     list_transformer},
    {"vae",            "decoder.up_blocks.", list_vae},
    {"text_encoder",   "language_model.",    list_text_encoder},
    {"text_encoder_2", "text_model.",        list_text_encoder_2},
    {"audio_encoder",  "encoder.conv1.",     list_audio_encoder},
    {"face_detector",  "model.0.",           list_face_detector},
    {0}
};

static int begins(const char *s, const char *head)
{
    return !strncmp(s, head, strlen(head));
}

static int ends(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);

    return n >= k && !strcmp(s + n - k, tail);
}

/* ---- telling them apart ---- */

const struct hv_kind *hv_kind_find(const char *name)
{
    for (const struct hv_kind *k = hv_kinds; name && k->name; k++)
        if (!strcmp(k->name, name))
            return k;
    return NULL;
}

const struct hv_kind *hv_kind_of_config(const json_t *config)
{
    static const struct { const char *type, *kind; } types[] = {
        {"llava", "text_encoder"},     {"clip", "text_encoder_2"},       {"clip_text_model", "text_encoder_2"},
        {"whisper", "audio_encoder"},  {"yolov5-face", "face_detector"},
    };
    /* Where no model_type tells: two keys that only this network's config has. */
    static const struct { const char *a, *b, *kind; } keys[] = {
        {"depth_double_blocks", "depth_single_blocks", "transformer"},
        {"hidden_size", "rope_dim_list", "transformer"},
        {"latent_channels", "block_out_channels", "vae"},
        {"text_config", "image_token_index", "text_encoder"},
        {"d_model", "encoder_layers", "audio_encoder"},
        {"layers", "anchors", "face_detector"},
        {"max_position_embeddings", "projection_dim", "text_encoder_2"},
    };
    const char *type = json_string_value(json_object_get(config, "model_type"));

    for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
        if (!strcmp(type, types[i].type))
            return hv_kind_find(types[i].kind);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(config, keys[i].a) && json_object_get(config, keys[i].b))
            return hv_kind_find(keys[i].kind);
    return NULL;
}

const struct hv_kind *hv_kind_of_tensor(const char *name)
{
    for (const struct hv_kind *k = hv_kinds; k->name; k++)
        if (begins(name, k->mark))
            return k;
    return NULL;
}

/* ---- storage ---- */

enum hv_quant hv_kind_quant(const struct hv_kind *k, const char *name, int ndim)
{
    if (!k || ndim != 2 || !ends(name, ".weight"))
        return HV_KEEP;
    if (!strcmp(k->name, "transformer")) {
        if (!begins(name, "double_blocks.") && !begins(name, "single_blocks."))
            return HV_KEEP;
        return ends(name, "_mod.linear.weight") || ends(name, ".modulation.linear.weight") ? HV_QUANT_MODULATION : HV_QUANT;
    }
    if (!strcmp(k->name, "text_encoder"))
        return begins(name, "language_model.model.layers.") || begins(name, "multi_modal_projector.") ? HV_QUANT : HV_KEEP;
    return HV_KEEP;
}

int hv_kind_keeps_f32(const struct hv_kind *k, const char *name)
{
    return k && !strcmp(k->name, "transformer") &&
           (begins(name, "final_layer.linear.") || begins(name, "audio_proj.") || begins(name, "before_proj.") ||
            begins(name, "audio_adapter_blocks."));
}
