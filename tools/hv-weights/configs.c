/* Configs of the full-size networks: written where a download has none, and what the released ones leave out. */
#include <string.h>

#include "hv-weights.h"

static const char transformer[] =
    "{\n"
    "  \"model\": \"HYVideo-T/2\",\n"
    "  \"patch_size\": [1, 2, 2],\n"
    "  \"in_channels\": 16,\n"
    "  \"out_channels\": 16,\n"
    "  \"hidden_size\": 3072,\n"
    "  \"num_heads\": 24,\n"
    "  \"depth_double_blocks\": 20,\n"
    "  \"depth_single_blocks\": 40,\n"
    "  \"mlp_width_ratio\": 4.0,\n"
    "  \"mlp_act_type\": \"gelu_tanh\",\n"
    "  \"rope_dim_list\": [16, 56, 56],\n"
    "  \"rope_theta\": 256,\n"
    "  \"qkv_bias\": true,\n"
    "  \"qk_norm\": true,\n"
    "  \"qk_norm_type\": \"rms\",\n"
    "  \"guidance_embed\": false,\n"
    "  \"text_projection\": \"single_refiner\",\n"
    "  \"use_attention_mask\": true,\n"
    "  \"text_states_dim\": 4096,\n"
    "  \"text_states_dim_2\": 768,\n"
    "  \"audio_seq_len\": 10,\n"
    "  \"audio_blocks\": 5,\n"
    "  \"audio_channels\": 384,\n"
    "  \"audio_intermediate_dim\": 1024,\n"
    "  \"audio_context_tokens\": 4,\n"
    "  \"audio_adapter_dim\": 1024,\n"
    "  \"double_stream_list\": [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]\n"
    "}\n";

static const char vae[] =
    "{\n"
    "  \"in_channels\": 3,\n"
    "  \"out_channels\": 3,\n"
    "  \"latent_channels\": 16,\n"
    "  \"block_out_channels\": [128, 256, 512, 512],\n"
    "  \"layers_per_block\": 2,\n"
    "  \"norm_num_groups\": 32,\n"
    "  \"act_fn\": \"silu\",\n"
    "  \"sample_size\": 256,\n"
    "  \"sample_tsize\": 64,\n"
    "  \"scaling_factor\": 0.476986,\n"
    "  \"time_compression_ratio\": 4,\n"
    "  \"spatial_compression_ratio\": 8,\n"
    "  \"mid_block_add_attention\": true,\n"
    "  \"mid_block_causal_attn\": true,\n"
    "  \"disable_causal_conv\": false\n"
    "}\n";

static const char text_encoder[] =
    "{\n"
    "  \"architectures\": [\"LlavaForConditionalGeneration\"],\n"
    "  \"model_type\": \"llava\",\n"
    "  \"image_token_index\": 128257,\n"
    "  \"pad_token_id\": 128258,\n"
    "  \"projector_hidden_act\": \"gelu\",\n"
    "  \"vision_feature_layer\": -2,\n"
    "  \"vision_feature_select_strategy\": \"default\",\n"
    "  \"image_seq_length\": 576,\n"
    "  \"text_config\": {\n"
    "    \"model_type\": \"llama\",\n"
    "    \"vocab_size\": 128320,\n"
    "    \"hidden_size\": 4096,\n"
    "    \"intermediate_size\": 14336,\n"
    "    \"num_hidden_layers\": 32,\n"
    "    \"num_attention_heads\": 32,\n"
    "    \"num_key_value_heads\": 8,\n"
    "    \"hidden_act\": \"silu\",\n"
    "    \"rms_norm_eps\": 1e-05,\n"
    "    \"rope_theta\": 500000.0\n"
    "  },\n"
    "  \"vision_config\": {\n"
    "    \"model_type\": \"clip_vision_model\",\n"
    "    \"hidden_size\": 1024,\n"
    "    \"intermediate_size\": 4096,\n"
    "    \"num_hidden_layers\": 24,\n"
    "    \"num_attention_heads\": 16,\n"
    "    \"image_size\": 336,\n"
    "    \"patch_size\": 14,\n"
    "    \"hidden_act\": \"quick_gelu\",\n"
    "    \"layer_norm_eps\": 1e-05\n"
    "  }\n"
    "}\n";

static const char text_encoder_2[] =
    "{\n"
    "  \"architectures\": [\"CLIPTextModel\"],\n"
    "  \"model_type\": \"clip_text_model\",\n"
    "  \"vocab_size\": 49408,\n"
    "  \"hidden_size\": 768,\n"
    "  \"intermediate_size\": 3072,\n"
    "  \"num_hidden_layers\": 12,\n"
    "  \"num_attention_heads\": 12,\n"
    "  \"max_position_embeddings\": 77,\n"
    "  \"projection_dim\": 768,\n"
    "  \"hidden_act\": \"quick_gelu\",\n"
    "  \"layer_norm_eps\": 1e-05,\n"
    "  \"eos_token_id\": 2\n"
    "}\n";

static const char audio_encoder[] =
    "{\n"
    "  \"model_type\": \"whisper\",\n"
    "  \"d_model\": 384,\n"
    "  \"encoder_layers\": 4,\n"
    "  \"encoder_attention_heads\": 6,\n"
    "  \"encoder_ffn_dim\": 1536,\n"
    "  \"num_mel_bins\": 80,\n"
    "  \"max_source_positions\": 1500,\n"
    "  \"activation_function\": \"gelu\",\n"
    "  \"scale_embedding\": false\n"
    "}\n";

const char *config_full(const struct hv_kind *kind)
{
    static const struct { const char *kind, *text; } all[] = {
        {"transformer", transformer},       {"vae", vae},
        {"text_encoder", text_encoder},     {"text_encoder_2", text_encoder_2},
        {"audio_encoder", audio_encoder},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].kind, kind->name))
            return all[i].text;
    return NULL;
}

/* Adds the keys of `full` that `config` lacks, in nested objects too. */
static int merge(json_t *config, const json_t *full)
{
    const char *key;
    json_t *v;
    int added = 0;

    json_object_foreach((json_t *)(uintptr_t)full, key, v) {
        json_t *mine = json_object_get(config, key);
        if (json_is_object(v) && json_is_object(mine)) {
            const int more = merge(mine, v);
            if (more < 0)
                return -1;
            added |= more;
        } else if (!mine) {
            if (json_object_set_new(config, key, json_deep_copy(v)))
                return -1;
            added = 1;
        }
    }
    return added;
}

int config_complete(const struct hv_kind *kind, json_t *config)
{
    const char *text = config_full(kind);
    struct hv_err e = {0};
    json_t *full = NULL;
    int rc = 0;

    /* The VAE's absent keys have defaults of their own: those of its class, not of the released model. */
    if (strcmp(kind->name, "text_encoder") && strcmp(kind->name, "text_encoder_2") && strcmp(kind->name, "audio_encoder"))
        return 0;
    if (hv_json_parse(&full, text, strlen(text), 16, &e))
        return -1;
    json_object_del(full, "architectures");
    /* A config of the whole of CLIP has that of its text encoder inside. */
    json_t *text_config = json_object_get(config, "text_config");
    const int nested = !strcmp(kind->name, "text_encoder_2") && json_is_object(text_config);
    rc = merge(nested ? text_config : config, full);
    json_decref(full);
    return rc;
}
