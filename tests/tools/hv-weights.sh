#!/bin/sh
# hv-weights: synth, list, check, quantize, diff; their messages and exit statuses.
set -u
. tests/tap.sh
small=$root/examples/model-tiny
cd "$dir" || exit 1

# ---- synth

status 0 "synth of a config" hv-weights synth "$small/transformer/config.json" 7 a.safetensors
status 0 "the same again, two threads" hv-weights synth --threads 2 "$small/transformer/config.json" 7 b.safetensors
same a.safetensors b.safetensors "the same bytes for any number of threads"
hv-weights synth -q --threads 1 "$small/transformer/config.json" 8 c.safetensors
! cmp -s a.safetensors c.safetensors; ok $? "another seed, another model"
status 0 "synth of a folder of parts" hv-weights synth "$small" 7 model
same model/transformer/model.safetensors a.safetensors "a part of the folder is what its config alone gives"
same model/vae/config.json "$small/vae/config.json" "configs are copied"
status 0 "-o in place of OUT" hv-weights synth "$small/transformer/config.json" 7 -o d.safetensors
same a.safetensors d.safetensors "-o writes the same"
hv-weights synth -q --dtype f32 "$small/transformer/config.json" 7 f32.safetensors
hv-weights list f32.safetensors | awk '!/^__pad/ && $2 != "F32"' >left
[ ! -s left ]; ok $? "--dtype f32: every tensor is"
hv-weights diff --tol 0.005 f32.safetensors a.safetensors >out 2>err
ok $? "bf16 is within 0.5 % of f32"
hv-weights synth -q --gain 2 "$small/face_detector/config.json" 1 g.safetensors
hv-weights synth -q "$small/face_detector/config.json" 1 h.safetensors
hv-weights diff h.safetensors g.safetensors >out 2>err
[ $? = 1 ] && grep -q 'stem_1.conv.weight  *F32 .* 1.000e+00 ' out && grep -q 'stem_1.conv.bias .* 0.000e+00 ' out
ok $? "--gain 2 doubles kernels, not biases"
status 2 "a seed that is none" hv-weights synth "$small/transformer/config.json" seven x.safetensors
status 2 "OUT missing" hv-weights synth "$small/transformer/config.json" 7
status 2 "a dtype that is none" hv-weights synth --dtype f31 "$small/transformer/config.json" 7 x.safetensors
status 4 "no such config" hv-weights synth absent.json 7 x.safetensors
echo '{"hidden_size": -1, "rope_dim_list": [16,56,56]}' >bad.json
status 3 "a config out of range" hv-weights synth bad.json 7 x.safetensors
grep -q 'bad.json: .*hidden_size' err; ok $? "its message names file and key"
echo '{"hello": 1}' >what.json
status 3 "a config of nothing known" hv-weights synth what.json 7 x.safetensors
[ ! -e x.safetensors ]; ok $? "nothing is left after failures"

# ---- layout

[ "$(head -c 8 a.safetensors | od -An -tu8 | awk '{ print ($1 + 8) % 4096 }')" = 0 ]
ok $? "data starts at a multiple of 4096"
hv-weights list --json a.safetensors | jq -e '.[0].tensors | map(select((.shape | length) >= 2 and .begin % 64 != 0)) | length == 0' >/dev/null
ok $? "matrices start at multiples of 64"

# ---- list

hv-weights list a.safetensors | grep -Eq '^double_blocks.0.img_attn_qkv.weight +BF16 +\[384,128\] +98304$'
ok $? "list: name, dtype, shape, bytes"
hv-weights list --json a.safetensors c.safetensors | jq -e 'length == 2 and .[0].metadata["hv.model"] == "transformer"' >/dev/null
ok $? "list --json"
status 3 "list of what is no tensor file" hv-weights list bad.json
status 4 "list of what is not there" hv-weights list absent
printf '\052\0\0\0\0\0\0\0{"\\u001b[31m":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' >esc.st
size=$(($(wc -c <esc.st) - 8)); printf "\\$(printf %o $size)" | dd of=esc.st conv=notrunc 2>/dev/null
hv-weights list esc.st >out; [ $? = 0 ] && grep -q '^\\x1b\[31m' out
ok $? "a name with control characters cannot steer a terminal"

# ---- check

status 0 "check of a whole folder" hv-weights check model
[ "$(grep -c ': ok: ' out)" = "$(find model -name '*.safetensors' | wc -l)" ] && grep -q 'digest holds' out
ok $? "a line a part, digests hold"
cp -r model broken
size=$(wc -c <broken/vae/model.safetensors)
printf '\001' | dd of=broken/vae/model.safetensors bs=1 seek=$((size - 1)) conv=notrunc 2>/dev/null
status 1 "a changed byte" hv-weights check broken/vae/model.safetensors
grep -q 'hv.sha256' out; ok $? "the digest tells"
cp model/audio_encoder/model.safetensors broken/vae/model.safetensors
status 1 "weights of another network" hv-weights check broken
grep -q 'is missing (vae)' out; ok $? "missing tensors are named"
head -c 100000 a.safetensors >broken/transformer/model.safetensors
status 1 "a file cut short" hv-weights check broken/transformer
rm broken/audio_encoder/model.safetensors
status 1 "a part without weights" hv-weights check broken/audio_encoder
mkdir empty
status 1 "a folder without weights" hv-weights check empty
status 4 "check of what is not there" hv-weights check absent
status 2 "check takes no -o" hv-weights check model -o x

# ---- quantize

for q in int8 fp8; do
    status 0 "quantize --quant $q" hv-weights quantize --quant $q a.safetensors $q.safetensors
    hv-weights quantize -q --threads 1 --quant $q a.safetensors x.safetensors
    same $q.safetensors x.safetensors "$q: the same bytes for one thread"
    cp $q.safetensors model/transformer/model.safetensors
    status 0 "$q: complete by the config" hv-weights check model/transformer
done
hv-weights diff --tol 0.006 a.safetensors int8.safetensors >out 2>err; ok $? "int8 is within 0.6 %"
hv-weights diff --tol 0.03 a.safetensors fp8.safetensors >out 2>err; ok $? "fp8 is within 3 %"
hv-weights diff a.safetensors int8.safetensors >out 2>err; [ $? = 1 ]; ok $? "and neither is equal"
hv-weights list int8.safetensors >out
grep -q 'double_blocks.0.img_attn_qkv.weight  *I8 ' out && grep -q 'double_blocks.0.img_attn_qkv.weight.scale  *F32 ' out &&
    grep -q 'double_blocks.0.img_mod.linear.weight  *BF16 ' out && grep -q 'txt_in.*weight  *BF16 ' out
ok $? "blocks are quantized, modulation and the rest are kept"
hv-weights quantize -q --modulation quant a.safetensors m.safetensors
hv-weights list m.safetensors | grep -q 'double_blocks.0.img_mod.linear.weight  *I8 '
ok $? "--modulation quant"
hv-weights quantize -q --quant none --dtype f32 a.safetensors wide.safetensors
hv-weights diff a.safetensors wide.safetensors >out 2>err; ok $? "--quant none --dtype f32: the same numbers"
hv-weights quantize -q wide.safetensors x.safetensors
hv-weights diff int8.safetensors x.safetensors >out 2>err; ok $? "quantized from f32: the same numbers"
hv-weights quantize -q --quant none --dtype f32 int8.safetensors back.safetensors
hv-weights diff int8.safetensors back.safetensors >out 2>err; ok $? "and back to f32: scale times integer"
status 7 "nothing to quantize in a VAE" hv-weights quantize model/vae/model.safetensors x8.safetensors
[ ! -e x8.safetensors ]; ok $? "nothing is left"
status 2 "a quantization that is none" hv-weights quantize --quant int4 a.safetensors x8.safetensors
status 2 "two outputs" hv-weights quantize a.safetensors x8.safetensors -o y8.safetensors

# ---- commands

status 2 "no command" hv-weights
status 2 "a command that is none" hv-weights frobnicate
status 0 "help" hv-weights --help
status 0 "help of a command" hv-weights quantize --help
grep -q 'modulation' out; ok $? "with its options"
if [ -w /dev/full ]; then
    hv-weights list a.safetensors >/dev/full 2>err; [ $? = 4 ]; ok $? "a full disk is status 4"
fi
done_testing
