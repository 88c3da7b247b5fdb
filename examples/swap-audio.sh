#!/bin/sh
# One stage swapped: the finished text, face and portrait of a kept run say another sound, whose features come from another program.
# swap-audio.sh WORK SOUND OTHER OUT      WORK, SOUND: the folder and the sound of an earlier "hv --keep WORK"; HV_MODEL: the model folder
# That program is loudness.pl beside this script: Perl, no neural network. Any that writes the key audio.features would do.
set -eu
"$(dirname "$0")/loudness.pl" "$1/audio.st" "$2" "$3" >"$1/audio.other.st"
hv-tensor check "$1/audio.other.st"             # will the next stage take it?
hv-denoise --steps 10 --guidance 1 "$1/text.st" "$1/audio.other.st" "$1/face.st" "$1/ref.st" | hv-decode --sound "$3" -o "$4"
