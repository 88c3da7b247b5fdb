#!/bin/sh
# The main job on a machine with no GPU: a cartoon portrait says a sentence with the tiny model of the repository, and the MP4
# and a contact sheet of it come out. The model knows cartoons of 128x128 alone (examples/tiny); the programs are the same for the
# 13-billion-parameter one.
# BIN: the built tools; OUT: where the results go; PORTRAIT, SOUND: another picture, another sound; OPTIONS: more options of hv
set -eu

here=$(dirname "$0")
: "${BIN:=build/bin}" "${OUT:=build/demo}" "${PORTRAIT:=$here/faces/3.png}" "${SOUND:=$here/speech.wav}" "${OPTIONS:=}"
PATH=$BIN:$PATH
export PATH

mkdir -p "$OUT"
# shellcheck disable=SC2086
hv "$PORTRAIT" "$SOUND" -p "a person speaking" -o "$OUT/demo.mp4" --keep "$OUT/tensors" \
    --model "$here/tiny/model" --image-size 128 --steps 10 --guidance 1 $OPTIONS

# Every third frame, 18 of them from the first word on.
ffmpeg -nostdin -v error -y -i "$OUT/demo.mp4" -vf "select='not(mod(n,3))',tile=9x2:padding=2" -frames:v 1 -update 1 "$OUT/demo.png"

ffprobe -v error -show_entries stream=codec_name,width,height,r_frame_rate,duration -of compact=p=0 "$OUT/demo.mp4"
echo "video:         $OUT/demo.mp4"
echo "contact sheet: $OUT/demo.png"
echo "tensors:       $OUT/tensors (try: $BIN/hv-tensor list $OUT/tensors/latent.st)"
