#!/bin/sh
# The same clip with other weights, step caches and numbers of steps: PSNR of the frames to those of the f32 transformer with 20 full
# steps, the correlation of the mouth with the sound, and how many times as fast hv-denoise was as that one. Says whether step caches
# that decide by themselves can do what they should: 1.5 times as fast, the correlation less than 0.02 lower.
#   BIN, BUILD: the built tools; MODEL: the model folder; F32: the folder whose transformer is in f32 (build/tiny/model after training;
#   without one, the model itself is the reference and the row of fp8 is left out)
set -eu

: "${BIN:=build/bin}" "${BUILD:=build}" "${MODEL:=}" "${F32:=}"
[ -n "$MODEL" ] || MODEL=examples/tiny/model
PATH=$BIN:$PATH
export PATH OMP_WAIT_POLICY=passive
measure=$BUILD/tests/lipsync/lipsync
held=examples/heldout
out=$BUILD/compare
tab=$(printf '\t')
mkdir -p "$out/f32" "$out/fp8"
IFS=$tab read -r name _ mouth sound _ <"$held/clips.tsv"

# All models share what is not the transformer.
for m in f32 fp8; do
    for part in vae audio_encoder face_detector text_encoder text_encoder_2; do
        [ -e "$out/$m/$part" ] || ln -s "$(realpath "$MODEL")/$part" "$out/$m/$part"
    done
    rm -rf "$out/$m/transformer"
done
ln -s "$(realpath "${F32:-$MODEL}")/transformer" "$out/f32/transformer"
if [ -n "$F32" ]; then
    mkdir "$out/fp8/transformer"
    cp "$F32/transformer/config.json" "$out/fp8/transformer/"
    hv-weights quantize "$F32/transformer/model.safetensors" "$out/fp8/transformer/model.safetensors" --quant fp8 --dtype bf16 -q
fi

row() {         # what model options of hv-denoise...
    what=$1 model=$2
    shift 2
    start=$(date +%s%N)
    hv-denoise "$out/in/text.st" "$out/in/audio.st" "$out/in/face.st" "$out/in/ref.st" -o "$out/latent.st" --model "$model" --guidance 1 -q "$@"
    took=$((($(date +%s%N) - start) / 1000000))
    hv-decode "$out/latent.st" -f st -o "$out/video.st" --model "$model" -q
    [ -e "$out/reference.st" ] || { cp "$out/video.st" "$out/reference.st"; full=$took; }
    lips=$("$measure" -m "$mouth" "$out/video.st" "$held/$sound.flac" | sed -n "s/^lag 0$tab//p")
    rms=$(hv-tensor stats "$out/reference.st" | awk '$1 == "video" { print $(NF - 2) }')
    apart=$(hv-tensor diff "$out/reference.st" "$out/video.st" --key video 2>"$out/diff.err" | awk '$1 == "video" { print $3 }') || true
    echo "$what$tab$lips$tab$full$tab$took" >>"$out/rows"
    awk -v what="$what" -v rms="$rms" -v d="$apart" -v r="$lips" -v full="$full" -v took="$took" 'BEGIN {
        db = d + 0 > 0 ? sprintf("%.1f dB", 20 * log(255 / (d * rms)) / log(10)) : "the same"
        printf "%-38s %9s   lips %.3f   %.2f times as fast\n", what, db, r, full / took }'
}

rm -f "$out/reference.st" "$out/rows"
mkdir -p "$out/in"
hv-text "$held/$name.png" -p "a person speaking" -o "$out/in/text.st" --image-size 128 --model "$MODEL" -q
hv-audio "$held/$sound.flac" -o "$out/in/audio.st" --model "$MODEL" -q
hv-face "$held/$name.png" -o "$out/in/face.st" --image-size 128 --model "$MODEL" -q
hv-encode "$held/$name.png" -o "$out/in/ref.st" --image-size 128 --model "$MODEL" -q
row "f32, 20 full steps" "$out/f32" --steps 20 --cache none
row "int8 weights" "$MODEL" --steps 20 --cache none
[ -z "$F32" ] || row "fp8 weights" "$out/fp8" --steps 20 --cache none
row "step cache, the default pattern" "$out/f32" --steps 20
row "step cache, tea" "$out/f32" --steps 20 --cache tea
row "step cache, tea:0.3" "$out/f32" --steps 20 --cache tea:0.3
row "step cache, mag" "$out/f32" --steps 20 --cache mag
row "8 full steps" "$out/f32" --steps 8 --cache none
row "10 steps, int8, the default pattern" "$MODEL" --steps 10
row "another seed" "$out/f32" --steps 20 --cache none --seed 1
awk -F '\t' '
NR == 1 { full = $2 }
/tea:0.3|mag/ {
    bad = $3 / $4 < 1.5 || full - $2 >= 0.02
    printf "%s %s: %.2f times as fast (at least 1.5), %.3f lost (less than 0.02)\n", bad ? "MISSED" : "ok    ", $1, $3 / $4, full - $2
    missed += bad
}
END { exit missed > 0 }' "$out/rows"
