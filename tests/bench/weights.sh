#!/bin/sh
# hv-weights synth against dd on the same disk in the same run, both until the data is on the disk.
# HIDDEN: hidden size of a transformer of full depth (1024: 2.9 GB, 3072: 26 GB).
set -eu
: "${BUILD:=build}" "${BIN:=$BUILD/bin}" "${HIDDEN:=1024}"
rss=$BUILD/tests/bench/rss
dir=$(mktemp -d "${TMPDIR:-/tmp}/hv.XXXXXX")
trap 'rm -rf "$dir"' EXIT

jq --argjson h "$HIDDEN" '.hidden_size = $h | .num_heads = ($h / 128) | .depth_double_blocks = 20 | .depth_single_blocks = 40
    | .mlp_width_ratio = 4.0' examples/model-tiny/transformer/config.json >"$dir/config.json"
seconds() { "$rss" "$@" 2>&1 >/dev/null | sed -n 's/^rss \([0-9.]*\) \([0-9.]*\)$/\2 \1/p'; }

set -- $(seconds sh -c '"$0/hv-weights" synth -q "$1/config.json" 1 "$1/m.st" && sync "$1/m.st"' "$BIN" "$dir")
synth=$1 mib=$2
bytes=$(stat -c %s "$dir/m.st")
set -- $(seconds dd if="$dir/m.st" of="$dir/z" bs=1M status=none conv=fsync)
dd=$1
rm "$dir/m.st" "$dir/z"
awk -v b="$bytes" -v s="$synth" -v d="$dd" -v m="$mib" 'BEGIN {
    printf "what\tGB\tseconds\tMB/s\tresident_MiB\tratio_to_dd\n"
    printf "dd\t%.2f\t%.1f\t%.0f\t-\t1.00\n", b / 1e9, d, b / 1e6 / d
    printf "synth\t%.2f\t%.1f\t%.0f\t%.0f\t%.2f\n", b / 1e9, s, b / 1e6 / s, m, d / s }'
