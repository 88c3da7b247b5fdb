#!/bin/sh
# hv-denoise: plans, runs, what must not change a result, bad input. BIN: folder of the built tools.
: "${BIN:=build/bin}"
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
n=0

ok() { # ok STATUS WHAT
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; [ -s err ] && sed 's/^/# /' err; fi
}

# wants STATUS WORD WHAT COMMAND...: the command's exit status, and a word of its one line on stderr
wants() {
    status=$1 word=$2 what=$3
    shift 3
    "$@" >out 2>err
    got=$?
    [ $got = "$status" ] && grep -q -- "$word" err
    ok $? "$what: status $got, $(head -n 1 err | cut -c 1-100)"
}

# ---- stage files, by hand ----

le64() {
    v=$1 i=0
    while [ $i -lt 8 ]; do
        printf "\\$(printf %03o $((v % 256)))"
        v=$((v / 256)) i=$((i + 1))
    done
}

zeros() { head -c "$1" /dev/zero; }
some() { head -c "$1" /dev/zero | tr '\0' '?'; }            # 0x3f3f3f3f: 0.747

# st FILE HEADER: an 8-byte length, the header, and the data of stdin
st() {
    { le64 ${#2}; printf %s "$2"; cat; } >"$1"
}

config() {
    printf '%s\n' '{"hidden_size": 32, "num_heads": 2, "depth_double_blocks": 2, "depth_single_blocks": 2, "mlp_width_ratio": 2.0,
 "rope_dim_list": [4, 6, 6], "text_states_dim": 8, "text_states_dim_2": 8, "audio_channels": 4, "audio_intermediate_dim": 16,
 "audio_adapter_dim": 16, "double_stream_list": [0]}'
}

# 5 text states; n of mask given by the caller
ones() { i=0; while [ $i -lt "$1" ]; do printf '\001\000\000\000\000\000\000\000'; i=$((i + 1)); done; zeros $((8 * (5 - $1))); }
text_header() {
    printf '{"text.%sstates":{"dtype":"F32","shape":[5,8],"data_offsets":[0,160]},' "$1"
    printf '"text.%smask":{"dtype":"I64","shape":[5],"data_offsets":[160,200]},' "$1"
    printf '"text.%spooled":{"dtype":"F32","shape":[8],"data_offsets":[200,232]}}' "$1"
}

sound() { # sound FILE FRAMES
    some $(($2 * 800)) | st "$1" '{"__metadata__":{"hv.frames":"'"$2"'","hv.fps":"25"},"audio.features":{"dtype":"F32","shape":['"$2"',10,5,4],"data_offsets":[0,'$(($2 * 800))']}}'
}

mkdir -p m/transformer
config >m/transformer/config.json
"$BIN/hv-weights" synth -q m/transformer/config.json 7 m/transformer/model.safetensors 2>err
ok $? "a synthetic model"
{ some 160; ones 4; some 32; } | st text.st "$(text_header '')"
{ zeros 160; ones 3; zeros 32; } | st neg.st "$(text_header neg_)"
sound audio.st 60
sound long.st 150
some 64 | st face.st '{"face.mask":{"dtype":"F32","shape":[1,4,4],"data_offsets":[0,64]}}'
some 33792 | st ref.st '{"ref.latents":{"dtype":"F32","shape":[16,33,4,4],"data_offsets":[0,33792]}}'
all='text.st neg.st audio.st face.st ref.st'
run() { "$BIN/hv-denoise" -q --model m --steps 3 "$@"; }

# ---- plans ----

"$BIN/hv-denoise" --plan --size 768x704 --frames 129 >plan 2>err && grep -q '^peak' plan && grep -q '\[72639,3072\]' plan
ok $? 'a plan of the full-size model needs no model'
"$BIN/hv-denoise" --plan=json --size 768x704 2>err | jq -e '.peak_bytes > 1e9 and (.rows | length) > 20 and .host.peak_bytes > 0 and .full.flops > 4e15' >out
ok $? 'the plan as JSON'
"$BIN/hv-denoise" --plan --device cuda --size 768x704 2>err | grep -q '^x  *BF16'
ok $? 'a plan for a GPU without one: 16-bit activations'
fits=1
for mib in 1850 1900 2100 4000; do
    peak=$("$BIN/hv-denoise" --plan=json --size 768x704 --vram ${mib}M 2>err | jq .peak_bytes)
    [ -n "$peak" ] && [ "$peak" -le $((mib * 1048576)) ] || fits=0
done
[ $fits = 1 ]
ok $? 'plans fit their budgets'
wants 5 'largest: x 851' 'a budget below the smallest plan' "$BIN/hv-denoise" --plan --size 768x704 --vram 1G
wants 5 'step_cache' 'a budget of the host' "$BIN/hv-denoise" --plan --size 768x704 --ram 512M
wants 2 'size' 'a plan of nothing' "$BIN/hv-denoise" --plan
wants 2 'multiples of 16' 'a plan of an odd size' "$BIN/hv-denoise" --plan --size 100x100
run --plan $all >plan 2>err && grep -q '^x .*\[140,32\]' plan
ok $? 'a plan of files: 34 frames of 4 tokens and 4 text rows'

# ---- runs ----

run $all -o a.st 2>err
ok $? 'a run'
"$BIN/hv-tensor" list a.st >list 2>err && grep -q '\[16,33,4,4\]' list && grep -q 'hv.frames: 60' list && grep -q 'hv.seed: 128' list
ok $? 'its latents and metadata'
"$BIN/hv-tensor" check a.st >out 2>err
ok $? 'hv-tensor check takes them'
run ref.st face.st audio.st neg.st text.st >b.st 2>err && cmp -s a.st b.st
ok $? 'operands in another order, to standard output'
run text.st neg.st - face.st ref.st <audio.st -o b.st 2>err && cmp -s a.st b.st
ok $? 'one of them on standard input'
run --threads 1 $all -o b.st 2>err && run --threads 4 $all -o c.st 2>>err && cmp -s a.st b.st && cmp -s a.st c.st
ok $? 'the same bits with 1 and 4 threads'
run $all --head-group 1 --chunk-rows 7,5 --keep-ref -o b.st 2>err && "$BIN/hv-tensor" diff --tol 2e-5 a.st b.st >out 2>&1
ok $? 'small groups and chunks: the same up to rounding'
run --seed 129 $all -o b.st 2>err && ! cmp -s a.st b.st
ok $? 'another seed, other latents'
run --rng cpu $all -o b.st 2>err && run --rng cuda:1x256 $all -o c.st && ! cmp -s a.st b.st && ! cmp -s a.st c.st
ok $? 'other generators, other latents'
run --carry reference $all -o b.st 2>err && ! cmp -s a.st b.st
ok $? 'the reference rounds'
run --cache 0,2 $all -o b.st 2>err && run --cache none $all -o c.st 2>>err && run --cache 0-2 $all -o d.st 2>>err &&
    "$BIN/hv-tensor" diff c.st d.st >out 2>&1 && ! "$BIN/hv-tensor" diff b.st c.st >out 2>&1
ok $? 'lists of full steps'
run --keep-noise $all -o n.st 2>err && run --seed 5 --noise n.st --keep-noise $all -o b.st 2>>err && "$BIN/hv-tensor" diff n.st b.st >out 2>&1
ok $? 'noise out of one run into another'
run --guidance 1 text.st audio.st face.st ref.st -o b.st 2>err
ok $? 'without guidance no negative prompt is needed'
run text.st neg.st long.st face.st ref.st -o b.st 2>err && "$BIN/hv-tensor" list b.st >list && grep -q '\[16,39,4,4\]' list && grep -q 'hv.frames: 150' list
ok $? '150 frames: two windows, 39 latent frames'
run --max-frames 129 text.st neg.st long.st face.st ref.st -o b.st 2>err && "$BIN/hv-tensor" list b.st >list && grep -q '\[16,33,4,4\]' list
ok $? 'at most 129 frames heard'
run --progress json -q $all -o b.st 2>err; [ ! -s err ]
ok $? 'quiet is quiet'
"$BIN/hv-denoise" --model m --steps 3 --progress json $all -o b.st 2>err && grep -q '"what":"step","done":3,"of":3' err
ok $? 'progress as JSON'

# ---- bad input ----

wants 3 'face.mask' 'a missing file' run text.st neg.st audio.st ref.st -o x.st
wants 3 'neg_states' 'no negative prompt' run text.st audio.st face.st ref.st -o x.st
wants 3 'audio.features' 'a key twice' run $all long.st -o x.st
some 96 | st face6.st '{"face.mask":{"dtype":"F32","shape":[1,4,6],"data_offsets":[0,96]}}'
wants 3 'face.mask' 'another size of the face' run text.st neg.st audio.st face6.st ref.st -o x.st
{ some 160; zeros 40; some 32; } | st none.st "$(text_header '')"
wants 3 'mask' 'a mask without ones' run none.st neg.st audio.st face.st ref.st -o x.st
head -c 33792 /dev/zero | tr '\0' '\377' | st nan.st '{"ref.latents":{"dtype":"F32","shape":[16,33,4,4],"data_offsets":[0,33792]}}'
wants 8 'ref.latents' 'NaN in a file' run text.st neg.st audio.st face.st nan.st -o x.st
head -c 1000 ref.st >cut.st
wants 3 'cut.st' 'a truncated file' run text.st neg.st audio.st face.st cut.st -o x.st
wants 4 'nowhere.st' 'a file that is not there' run text.st neg.st audio.st face.st nowhere.st -o x.st
printf '{"hidden_size": 33}' >bad.json
mkdir -p bad/transformer && cp bad.json bad/transformer/config.json
wants 3 'hidden_size' 'a config that cannot be' run --model bad $all -o x.st
wants 3 'noise' 'noise of another size' run --noise ref.st $all -o x.st
sed 's/"audio_channels": 4/"audio_channels": 5/' m/transformer/config.json >bad/transformer/config.json
wants 3 'audio.features' 'sound of another width' run --model bad $all -o x.st
cp m/transformer/config.json bad/transformer/config.json
head -c 20000 m/transformer/model.safetensors >bad/transformer/model.safetensors
wants 3 'model.safetensors' 'truncated weights' run --model bad $all -o x.st
[ ! -e x.st ]
ok $? 'no failure left a file'
if [ -w /dev/full ]; then
    run $all >/dev/full 2>err
    [ $? = 4 ] && grep -q 'hv-denoise: ' err
    ok $? 'a full disk'
fi

# ---- options ----

unset HV_MODEL
wants 2 'model' 'no model' "$BIN/hv-denoise" $all
wants 6 'cuda' 'a device that is not there' run --device cuda:9 $all -o x.st
wants 2 'steps' 'no steps' run --steps 0 $all
wants 2 'cache' 'a list without step 0' run --cache 1,2 $all
wants 2 'carry' 'an unknown carry' run --carry bf16 $all
wants 2 'overlap' 'more overlap than half a window' run --overlap 17 $all
wants 2 'rng' 'an unknown generator' run --rng cuda:132 $all
wants 2 'chunk-rows' 'no rows' run --chunk-rows 0 $all
wants 2 'divide' 'a group that does not divide' run --head-group 3 $all
wants 2 'without --plan' 'a size without a plan' run --size 64x64 $all
wants 2 'vram' 'no size' run --vram much $all
wants 2 'unknown' 'an unknown option' run --fast $all
"$BIN/hv-denoise" --help >out 2>err && grep -q -- '--guidance' out && "$BIN/hv-denoise" -V | grep -q '^hv-denoise [0-9]'
ok $? 'help and version'
echo "1..$n"
