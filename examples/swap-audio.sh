#!/bin/sh
# One stage swapped: the features of another sound drive the finished text, face and portrait of a kept run.
# swap-audio.sh WORK OTHER_SOUND OUT.mp4        WORK: the folder of an earlier "hv --keep WORK"; HV_MODEL: the model folder
set -eu
hv-audio "$2" >"$1/audio.other.st"              # any program that writes the key audio.features would do
hv-tensor check "$1/audio.other.st"             # will the next stage take it?
hv-denoise "$1/text.st" "$1/audio.other.st" "$1/face.st" "$1/ref.st" | hv-decode --sound "$2" -o "$3"
