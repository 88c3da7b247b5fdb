#!/bin/sh
# hv-weights import: a synthetic download with the official names and layouts becomes the model folder that synth makes directly,
# and drives the pipeline to the same bytes; single parts; what is missing, broken, interrupted.
set -u
. tests/tap.sh
small=$root/examples/model-tiny
ckpts=$(cd "$BUILD" && pwd)/tests/helper/ckpts
cd "$dir" || exit 1

hv-weights synth -q --gain 1.609375 "$small" 7 direct || { ok 1 "make the tiny model"; done_testing; exit 1; }

# ---- the download

base=ckpts/hunyuan-video-t2v-720p
mkdir -p $base/transformers $base/vae ckpts/llava_llama_image ckpts/text_encoder_2 ckpts/whisper-tiny ckpts/det_align
at() { echo "direct/$1/model.safetensors"; }
"$ckpts" torch "$(at transformer)" $base/transformers/mp_rank_00_model_states.pt --key module --extra optimizer.lr &&
    "$ckpts" torch "$(at vae)" $base/vae/pytorch_model.pt --key state_dict --prefix vae. &&
    "$ckpts" shards "$(at text_encoder)" ckpts/llava_llama_image 4 &&
    cp "$(at text_encoder_2)" ckpts/text_encoder_2/ &&
    "$ckpts" torch "$(at audio_encoder)" ckpts/whisper-tiny/pytorch_model.bin --prefix model. --extra decoder.unused &&
    "$ckpts" script "$(at face_detector)" ckpts/det_align/detface.pt
ok $? "a synthetic download"
cp direct/transformer/config.json $base/transformers/
cp direct/vae/config.json $base/vae/
cp direct/text_encoder/*.json ckpts/llava_llama_image/
cp direct/text_encoder_2/*.json direct/text_encoder_2/merges.txt ckpts/text_encoder_2/
cp direct/audio_encoder/config.json ckpts/whisper-tiny/
cp direct/face_detector/config.json ckpts/det_align/

# ---- all of it

status 0 "import of the whole download" hv-weights import ckpts model
cp out table
[ "$(grep -c '' table)" = 7 ] && grep -q '^face_detector .*det_align/detface.pt .*torchscript .*F32 ' table &&
    grep -q '^text_encoder .*model.safetensors.index.json .*safetensors ' table
ok $? "a table with a line a part"
grep -q 'not used.*optimizer.lr' err; ok $? "tensors that nobody reads are listed"
status 0 "the folder is complete" hv-weights check model
(cd direct && find . -type f | sort) >a.list
(cd model && find . -type f | sort) >b.list
same a.list b.list "the same files as synth makes"

# Of a packed file: its tensors, their places, and the digest of its data, but not where it came from.
describe() { hv-weights list --json "$1" | jq -S '.[0] | del(.file, .metadata["hv.source"], .metadata["hv.import"], .metadata["hv.gain"])'; }
data() { tail -c +$(($(head -c 8 "$1" | od -An -tu8) + 9)) "$1"; }
for part in transformer vae text_encoder text_encoder_2 audio_encoder face_detector; do
    describe direct/$part/model.safetensors >a.json
    describe model/$part/model.safetensors >b.json
    same a.json b.json "$part: the header says the same"
    data direct/$part/model.safetensors >a.bin
    data model/$part/model.safetensors >b.bin
    same a.bin b.bin "$part: the data is the same, byte for byte"
    sum=$(jq -r '.metadata["hv.sha256"]' a.json)
    grep -q "^$part  *.* $sum\$" table; ok $? "$part: the table has its digest"
done
for f in $(cd direct && find . -type f ! -name '*.safetensors'); do same "direct/$f" "model/$f" "$f is copied"; done

# ---- the pipeline

cp "$root/examples/portrait.png" me.png
ffmpeg -nostdin -v error -t 0.3 -i "$root/examples/speech.wav" s.wav
for m in direct model; do
    hv me.png s.wav -p "a person" -o $m.mp4 --keep $m.keep --model $m --image-size 64 --face full --steps 2 -q
    ok $? "the pipeline runs on $m"
done
for f in text audio face ref latent; do same direct.keep/$f.st model.keep/$f.st "the pipeline makes the same $f.st"; done

# ---- interrupted, continued

status 0 "import once more" hv-weights import ckpts model
[ "$(grep -c 'there already' out)" = 6 ]; ok $? "nothing is made twice"
rm model/vae/model.safetensors
: >model/vae/.model.AbC123.safetensors                  # what SIGKILL would leave
status 0 "import of what is left" hv-weights import ckpts model
[ "$(grep -c 'there already' out)" = 5 ] && [ ! -e model/vae/.model.AbC123.safetensors ]
ok $? "only the part that was not there; leftovers are gone"
status 0 "other options" hv-weights import --quant int8 ckpts model
[ "$(grep -c 'there already' out)" = 0 ] && hv-weights list model/transformer/model.safetensors |
    grep -q 'double_blocks.0.img_attn_qkv.weight  *I8'
ok $? "other options, another file"
hv-weights quantize -q --quant int8 direct/transformer/model.safetensors q.safetensors
hv-weights diff q.safetensors model/transformer/model.safetensors >out 2>err
ok $? "imported with --quant int8: the numbers of quantize"
hv me.png s.wav -p "a person" -o int8.mp4 --model model --image-size 64 --face full --steps 2 -q
ok $? "the pipeline runs on int8"

# A part at a time is whole or not there: killed at once, in the middle, late.
config="$small/transformer/config.json"
jq '.hidden_size = 512 | .num_heads = 4 | .depth_double_blocks = 4 | .depth_single_blocks = 4' "$config" >big.json
"$ckpts" torch "big.json:3" big.pt --key module
for how in TERM KILL; do
    for delay in 0.01 0.05 0.1 0.2; do
        rm -rf killed
        hv-weights import -q --model transformer --config big.json big.pt killed &
        pid=$!
        sleep $delay
        kill -$how $pid 2>/dev/null
        wait $pid 2>/dev/null
        if [ -e killed/model.safetensors ]; then
            hv-weights check killed/model.safetensors >out 2>err
            ok $? "SIG$how after $delay s: the file is whole"
        else
            [ -z "$(find killed -type f 2>/dev/null)" ]; ok $? "SIG$how after $delay s: nothing is left"
        fi
    done
done

# ---- missing parts

mkdir -p some/whisper-tiny
cp ckpts/whisper-tiny/* some/whisper-tiny/
status 3 "a download that is not whole" hv-weights import some partial
grep -q 'missing: transformer, vae, text_encoder, text_encoder_2, face_detector' err; ok $? "what is missing is named"
[ -s partial/audio_encoder/model.safetensors ]; ok $? "what is there is imported"
status 4 "no such download" hv-weights import nowhere model
mkdir empty
status 3 "an empty folder" hv-weights import empty none

# ---- parts

t=direct/transformer/model.safetensors
part() { hv-weights import "$@" >out 2>err; }
"$ckpts" fp8 $t m_fp8.pt m_fp8_map.pt
status 0 "the reference's fp8 and its map" hv-weights import --model transformer --config "$config" m_fp8.pt fp8
[ "$(hv-weights list --json fp8/model.safetensors | jq -r '.[0].metadata["hv.deq"]')" = bf16 ] &&
    hv-weights list fp8/model.safetensors | grep -q 'double_blocks.0.img_mod.linear.weight  *F8_E4M3'
ok $? "fp8: stored as it was, modulation too, rounded to bf16 when used"
hv-weights diff --tol 0.04 $t fp8/model.safetensors >out 2>err; ok $? "fp8: within 4 %"
status 0 "fp8 is complete" hv-weights check fp8
status 0 "and widened on request" hv-weights import --model transformer --config "$config" --quant none --dtype bf16 m_fp8.pt wide
hv-weights diff fp8/model.safetensors wide/model.safetensors >out 2>err; ok $? "bf16: the same numbers"
mv m_fp8_map.pt away.pt
status 3 "fp8 without its map" hv-weights import --model transformer --config "$config" m_fp8.pt x
grep -q '_map.pt' err; ok $? "its message says what is missing"
[ ! -e x ]; ok $? "nothing is left"

status 7 "TorchScript needs --script" hv-weights import --model face_detector ckpts/det_align/detface.pt x
grep -q -e '--script' err; ok $? "its message says so"
mkdir alone; cp ckpts/det_align/detface.pt alone/
status 0 "a detector without a config" hv-weights import --script --model face_detector alone/detface.pt face
jq -S '.layers, .anchors' face/config.json >a.json
jq -S '[.layers[] | if .op == "conv" then .k //= 1 | .s //= 1 else . end], .anchors' direct/face_detector/config.json >b.json
same a.json b.json "its graph follows from its tensors"
data face/model.safetensors >b.bin
data direct/face_detector/model.safetensors >a.bin
same a.bin b.bin "its batch norms are folded: the same data"

jq '.anchors[1][2] = 44' direct/face_detector/config.json >anchors.json
status 3 "anchors that are not those of the config" hv-weights import --script --model face_detector --config anchors.json \
    ckpts/det_align/detface.pt x
grep -q 'anchor_grid: 43 at element 8, the config says 44' err; ok $? "both are in the message"

# A name changed, a shape changed, a NaN: said, and nothing written.
"$ckpts" torch $t renamed.pt --key module --prefix foo.
status 3 "no name fits" hv-weights import --model transformer --config "$config" renamed.pt x
grep -q 'missing or misshapen: time_in.mlp.0.weight is missing (there is foo.time_in.mlp.0.weight)' err
ok $? "what is missing, and what there is in its place"
jq '.hidden_size = 256 | .num_heads = 2' "$config" >other.json
status 3 "another size" hv-weights import --model transformer --config other.json $t x
grep -q 'time_in.mlp.2.weight is \[128,128\], expected \[256,256\]' err; ok $? "both shapes are in the message"
cp $t nan.safetensors
hv-weights list --json $t | jq -r '.[0].tensors[] | select(.name == "txt_in.input_embedder.weight") | .begin' >begin
head=$(($(head -c 8 $t | od -An -tu8) + 8))
printf '\377\177' | dd of=nan.safetensors bs=1 seek=$((head + $(cat begin) + 20)) conv=notrunc 2>/dev/null
status 8 "a NaN in a weight" hv-weights import --model transformer --config "$config" nan.safetensors x
grep -q 'txt_in.input_embedder.weight: NaN or Inf at element 10' err; ok $? "tensor and element are named"
[ ! -e x ]; ok $? "nothing is left"

# Prefixes, a CLIP with its vision half in the config, a pipe.
"$ckpts" torch $t prefixed.pt --prefix model.diffusion_model.
status 0 "names with the prefix of other programs" hv-weights import --model transformer --config "$config" prefixed.pt pre
data pre/model.safetensors >b.bin
data $t >a.bin
same a.bin b.bin "the same data"
jq '{model_type: "clip", projection_dim: 48, text_config: del(.projection_dim, .hidden_act)}' direct/text_encoder_2/config.json >clip.json
status 0 "a config that leaves defaults out" hv-weights import --model text_encoder_2 --config clip.json \
    ckpts/text_encoder_2/model.safetensors clip
[ "$(jq -r '.text_config.hidden_act' clip/config.json)" = quick_gelu ]; ok $? "they are written"
mkdir shards
cp ckpts/llava_llama_image/model-* ckpts/llava_llama_image/config.json shards/
status 0 "shards without an index" hv-weights import --model text_encoder shards noindex
data direct/text_encoder/model.safetensors >a.bin
data noindex/model.safetensors >b.bin
same a.bin b.bin "the same data"
status 0 "a shard finds the others" hv-weights import --model text_encoder shards/model-00001-of-00004.safetensors noindex
rm shards/model-00003-of-00004.safetensors
status 4 "a shard that is not there" hv-weights import --model text_encoder shards/model-00001-of-00004.safetensors noindex2
grep -q 'model-00003-of-00004.safetensors: No such file' err; ok $? "it is named"
printf '{"weight_map": {"a": "../model.safetensors"}}' >shards/model.safetensors.index.json
status 3 "an index that leaves its folder" hv-weights list shards/model.safetensors.index.json
mkdir wan
cp $t wan/hunyuan_video_avatar_720_bf16.safetensors
cp "$config" wan/
status 3 "a transformer where another program has it" hv-weights import wan other
data other/transformer/model.safetensors >b.bin
data $t >a.bin
same a.bin b.bin "is found"
status 2 "a kind that is none" hv-weights import --model nothing $t x
status 2 "one operand" hv-weights import ckpts
status 2 "a quantization that is none" hv-weights import --quant int3 ckpts x
status 0 "a download through a pipe" sh -c 'cat direct/vae/model.safetensors | hv-weights import --model any - piped.safetensors'
hv-weights diff direct/vae/model.safetensors piped.safetensors >out 2>err; ok $? "the same tensors"
status 0 "list of an archive" hv-weights list $base/transformers/mp_rank_00_model_states.pt
grep -q 'double_blocks.0.img_attn_qkv.weight  *BF16  *\[384,128\]  *98304' out; ok $? "name, dtype, shape, bytes"
status 0 "check of an archive" hv-weights check $base/transformers/mp_rank_00_model_states.pt
grep -q 'transformer complete, checksums hold' out; ok $? "names by the config beside it, checksums"
size=$(wc -c <$base/transformers/mp_rank_00_model_states.pt)
cp $base/transformers/mp_rank_00_model_states.pt broken.pt
printf '\001' | dd of=broken.pt bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
status 1 "a changed byte in a storage" hv-weights check broken.pt
grep -q 'CRC-32' out; ok $? "the checksum tells"

# A hostile tensor file through a pipe is refused by a stage with the reason that list gives, before any weights are read.
bad=0
for f in "$root"/tests/golden/weights/bad/bad_*.safetensors; do
    hv-weights list - <"$f" 2>&1 | sed 's/^hv-weights: stdin: //' >want
    for stage in "hv-decode -f rgb" hv-denoise; do
        # shellcheck disable=SC2002,SC2086
        cat "$f" | $stage --model direct -o x.out - >out 2>err
        if [ $? != 3 ] || [ -e x.out ] || ! grep -qF "$(cat want)" err; then
            bad=1
            echo "# $stage: $(basename "$f"): $(cat err)"
        fi
    done
done
ok $bad "hostile tensor files through a pipe: stages say what list says"
done_testing
