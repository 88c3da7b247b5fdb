#!/bin/sh
# hv-weights import of a torch archive against cp of the same bytes on the same disk in the same run, and int8 quantization; the
# archive is in the page cache. Twice: until the bytes are in the page cache, and until they are on the disk. HIDDEN: hidden size of a transformer of full depth (1024: 2.9 GB, 3072: 26 GB, twice that on the disk).
# The fastest of RUNS.
set -eu
: "${BUILD:=build}" "${BIN:=$BUILD/bin}" "${HIDDEN:=1024}" "${RUNS:=3}"
rss=$BUILD/tests/bench/rss
ckpts=$BUILD/tests/helper/ckpts
dir=$(mktemp -d "${TMPDIR:-/tmp}/hv.XXXXXX")
trap 'rm -rf "$dir"' EXIT

jq --argjson h "$HIDDEN" '.hidden_size = $h | .num_heads = ($h / 128) | .depth_double_blocks = 20 | .depth_single_blocks = 40
    | .mlp_width_ratio = 4.0' examples/model-tiny/transformer/config.json >"$dir/config.json"
"$ckpts" torch "$dir/config.json:1" "$dir/m.pt" --key module
bytes=$(stat -c %s "$dir/m.pt")

# Seconds and peak MiB of a command, the fastest of RUNS; what it wrote is removed and the disk left in peace before each.
best() {
    fastest=
    for _ in $(seq "$RUNS"); do
        rm -f "$dir"/z "$dir"/z.safetensors
        sync
        cat "$dir/m.pt" >/dev/null
        "$rss" "$@" 2>&1 >/dev/null | sed -n 's/^rss \([0-9.]*\) \([0-9.]*\)$/\2 \1/p' >"$dir/one"
        if [ -z "$fastest" ] || awk -v f="$fastest" '{ exit !($1 < f + 0) }' "$dir/one"; then fastest=$(cat "$dir/one"); fi
    done
    echo "$fastest"
}

# The same until what was written is on the disk.
best_sync() { best sh -c '"$@" && sync "$0"/z*' "$dir" "$@"; }

import="$BIN/hv-weights import -q --model transformer --config $dir/config.json"
printf 'what\tGB_in\tseconds\tGB/s\tresident_MiB\tspeed_to_cp\n'
row() { echo "$2" | awk -v w="$1" -v b="$bytes" -v c="${cp%% *}" '{ printf "%s\t%.2f\t%.2f\t%.2f\t%.0f\t%.2f\n", w, b / 1e9, $1, b / 1e9 / $1, $2, c / $1 }'; }
for run in best best_sync; do
    to=$([ $run = best ] && echo "to the page cache" || echo "to the disk")
    cp=$($run cp "$dir/m.pt" "$dir/z")
    row "cp, $to" "$cp"
    # shellcheck disable=SC2086
    row "import of a torch archive, $to" "$($run $import "$dir/m.pt" "$dir/z.safetensors")"
    for q in int8 fp8; do
        # shellcheck disable=SC2086
        row "import to $q, $to" "$($run $import --quant $q --modulation quant "$dir/m.pt" "$dir/z.safetensors")"
    done
done
