#!/bin/sh
# The main job on a machine with no GPU and no weights: a synthetic tiny model is made on the spot, the example portrait
# and recording go through the whole pipeline, and the MP4 and a contact sheet come out. The weights are random numbers of
# the right shapes, so the picture is noise; everything around them is real.
# BIN: the built tools; OUT: where the results go.
set -eu

: "${BIN:=build/bin}" "${OUT:=build/demo}"
here=$(dirname "$0")
PATH=$BIN:$PATH
export PATH

mkdir -p "$OUT"
[ -e "$OUT/model/transformer/model.safetensors" ] || hv-weights synth "$here/model-tiny" 1 "$OUT/model"

hv "$here/portrait.png" "$here/speech.wav" -p "a person speaking" -o "$OUT/demo.mp4" --keep "$OUT/tensors" \
    --model "$OUT/model" --image-size 128 --steps 8 --face full

# Twelve frames spread over the clip.
frames=$(ffprobe -v error -select_streams v:0 -count_packets -show_entries stream=nb_read_packets -of csv=p=0 "$OUT/demo.mp4")
step=$(((frames + 11) / 12))
ffmpeg -nostdin -v error -y -i "$OUT/demo.mp4" -vf "select='not(mod(n,$step))',tile=6x2:padding=4" -frames:v 1 \
    -update 1 "$OUT/demo.png"

ffprobe -v error -show_entries stream=codec_name,width,height,r_frame_rate,duration -of compact=p=0 "$OUT/demo.mp4"
echo "video:         $OUT/demo.mp4"
echo "contact sheet: $OUT/demo.png"
echo "tensors:       $OUT/tensors (try: $BIN/hv-tensor list $OUT/tensors/latent.st)"
