#!/bin/bash
# The pipeline in ten lines: avatar.sh PICTURE SOUND PROMPT OUT.mp4     (HV_MODEL names the model folder)
# Five processes start at once and hand tensors through pipes; a GPU, where there is one, is taken by one after the other.
set -euo pipefail
export OMP_WAIT_POLICY=passive          # five processes share the cores: a thread that waits must not spin

hv-denoise <(hv-text -p "$3" "$1") <(hv-audio "$2") <(hv-face "$1") <(hv-encode "$1") |
    hv-decode --sound "$2" -o "$4"
