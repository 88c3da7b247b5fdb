#!/bin/sh
# Peak resident memory of hv-denoise and hv-decode against what --plan printed plus the mapped weights plus 64 MiB.
# A transformer of hidden 768 with 4 + 4 blocks and a VAE of [64, 128, 256, 256] channels, on 256x320 pixels.
set -eu
: "${BUILD:=build}" "${BIN:=$BUILD/bin}"
PATH=$(cd "$BIN" && pwd):$PATH
rss=$BUILD/tests/bench/rss
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cp -r examples/model-tiny "$dir/config"
jq '.hidden_size = 768 | .num_heads = 6 | .depth_double_blocks = 4 | .depth_single_blocks = 4 | .mlp_width_ratio = 4.0' \
    examples/model-tiny/transformer/config.json >"$dir/config/transformer/config.json"
jq '.block_out_channels = [64, 128, 256, 256] | .layers_per_block = 2 | .norm_num_groups = 32' \
    examples/model-tiny/vae/config.json >"$dir/config/vae/config.json"
hv-weights synth -q "$dir/config" 1 "$dir/model"
HV_MODEL=$dir/model
export HV_MODEL

ffmpeg -nostdin -v error -t 1 -i examples/speech.wav "$dir/s.wav"
picture='-q --image-size 256 examples/portrait.png'
# shellcheck disable=SC2086
{
    hv-text -p "a person" $picture -o "$dir/text.st"
    hv-audio -q "$dir/s.wav" -o "$dir/audio.st"
    hv-face --face full $picture -o "$dir/face.st"
    hv-encode $picture -o "$dir/ref.st"
}

row() {         # name, plan's bytes, weights' file, command...
    name=$1 plan=$2 weights=$(stat -c %s "$3")
    shift 3
    peak=$("$rss" "$@" 2>&1 >/dev/null | sed -n 's/^rss \([0-9.]*\) .*/\1/p')
    awk -v n="$name" -v p="$plan" -v w="$weights" -v r="$peak" 'BEGIN {
        bound = p / 1048576 + w / 1048576 + 64
        printf "%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\n", n, p / 1048576, w / 1048576, bound, r, r / bound }'
}

inputs="$dir/text.st $dir/audio.st $dir/face.st $dir/ref.st"
printf 'stage\tplan_MiB\tweights_MiB\tbound_MiB\tresident_MiB\tratio\n'
# shellcheck disable=SC2086
row hv-denoise "$(hv-denoise -q --plan=json $inputs | jq .peak_bytes)" "$dir/model/transformer/model.safetensors" \
    hv-denoise -q --steps 1 $inputs -o "$dir/latent.st"
row hv-decode "$(hv-decode -q --plan=json "$dir/latent.st" | jq .peak_bytes)" "$dir/model/vae/model.safetensors" \
    hv-decode -q -f rgb "$dir/latent.st"
