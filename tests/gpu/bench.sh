#!/bin/sh
# The table of BENCHMARKS.md that needs a GPU: one forward (a guidance branch) of the full-size transformer with
# synthetic weights, by plan, beside plain PyTorch blocks of the same shape in the same run (rival.py), so that a ratio
# can be read on any machine.
#
# BIN: the built tools. DEVICE: cuda or cuda:N. ONLY: an extended regular expression on the names below. REPEAT: forwards
# that are timed; the median counts. PYTHON: one that has torch; without it the columns of the rival stay empty. OUT: a
# folder for bench-gpu.json, where each row has what hv-denoise --bench=json and rival.py --json said.
set -u
. "$(dirname "$0")/full.sh"

: "${ONLY:=.}" "${REPEAT:=3}" "${TEXT_ROWS:=256}"

# name | size | options of hv-denoise --bench. The first five are the promises; the others show what a choice costs.
rows() {
    cat <<'ROWS'
bf16 device      | 768x704  | --weights-dtype bf16 --activations device --vram 2860M
int8 device      | 768x704  | --weights-dtype int8 --activations device --vram 2250M
int8 x-host      | 768x704  | --weights-dtype int8 --activations x-host --vram 1225M
int8 device      | 704x1216 | --weights-dtype int8 --activations device --vram 2960M
int8 x-host      | 704x1216 | --weights-dtype int8 --activations x-host --vram 1430M
bf16 resident    | 768x704  | --weights-dtype bf16 --activations device --resident-blocks all
bf16 streamed    | 768x704  | --weights-dtype bf16 --activations device --resident-blocks 0 --ring blocks
bf16 o-host      | 768x704  | --weights-dtype bf16 --activations o-host
int8 expand      | 768x704  | --weights-dtype int8 --activations device --gemm expand
fp8 products     | 768x704  | --weights-dtype fp8 --activations device --gemm fp8
bf16 flash       | 768x704  | --weights-dtype bf16 --activations device --attention flash
bf16 sage        | 768x704  | --weights-dtype bf16 --activations device --attention sage
bf16 sage-fp8    | 768x704  | --weights-dtype bf16 --activations device --attention sage-fp8
ROWS
}

failed=0
rows | grep -E "$ONLY" >"$dir/rows"
[ -s "$dir/rows" ] || { echo "bench-gpu: no row is called '$ONLY'" >&2; exit 2; }

# ---- the rival, once for each size and attention ----

rival() {       # size, attention: its JSON, or null
    if [ ! -e "$dir/rival.$1.$2" ]; then
        "$PYTHON" "$here/rival.py" --size "$1" --attention "$2" --text-rows "$TEXT_ROWS" --json >"$dir/rival.json" \
            2>"$dir/err" || { tail -n 1 "$dir/err" | sed 's/^/# rival: /' >&2; echo null >"$dir/rival.json"; }
        mv "$dir/rival.json" "$dir/rival.$1.$2"
    fi
    cat "$dir/rival.$1.$2"
}

# FlashAttention-2 is the rival of our own attention, cuDNN's of everything else.
rival_of() {
    case $1 in *'--attention flash'* | *'--attention sage'*) echo flash ;; *) echo cudnn ;; esac
}

# ---- the table ----

text() {        # a row's JSON as a line
    jq -r '.hv as $h | .rival as $r |
        [.name, .size, $h.seconds, $h.flops / $h.seconds * 1e-12, 100 * $h.cached_seconds / $h.seconds,
         $h.measured_bytes, $h.predicted_bytes, $h.context_bytes, $h.streamed_bytes * 1e-9, $r.attention,
         $r.seconds, $r.peak_bytes, if $r then $r.seconds / $h.seconds else null end,
         if $r then $r.peak_bytes / $h.measured_bytes else null end] | map(. // "-") | @tsv' |
        awk -F '\t' '
            function n(x, digits) { return x == "-" ? x : sprintf("%.*f", digits, x) }
            function gib(x) { return x == "-" ? x : sprintf("%.2f", x / 1073741824) }
            { printf "%-14s %-9s %8s %8s %8s %8s %8s %8s %8s | %-6s %8s %8s %8s %8s\n", $1, $2, n($3, 2), n($4, 0),
                n($5, 1), gib($6), gib($7), gib($8), n($9, 1), $10, n($11, 2), gib($12), n($13, 2), n($14, 1) }'
}

printf '%-14s %-9s %8s %8s %8s %8s %8s %8s %8s | %-6s %8s %8s %8s %8s\n' plan size seconds TFLOP/s cached% 'peak GiB' \
    planned context streamed rival seconds 'peak GiB' faster smaller
: >"$dir/all"
while IFS='|' read -r name size options; do
    name=$(echo "$name" | sed 's/ *$//') size=$(echo "$size" | tr -d ' ')
    rival "$size" "$(rival_of "$options")" >"$dir/r"
    # One branch: the figures are of one forward, and a row takes half the time.
    # shellcheck disable=SC2086
    if ! hv-denoise -q --device "$DEVICE" --bench=json --size "$size" --frames 129 --text-rows "$TEXT_ROWS" \
        --guidance 1 --repeat "$REPEAT" $options >"$dir/h" 2>"$dir/err"; then
        printf '%-14s %-9s %s\n' "$name" "$size" "$(head -n 1 "$dir/err")"
        failed=1
        continue
    fi
    jq -n --arg name "$name" --arg size "$size" --arg options "$(echo "$options" | sed 's/^ *//')" \
        --slurpfile hv "$dir/h" --slurpfile rival "$dir/r" \
        '{name: $name, size: $size, options: $options, hv: $hv[0], rival: $rival[0]}' >"$dir/one" ||
        { failed=1; continue; }
    text <"$dir/one"
    cat "$dir/one" >>"$dir/all"
done <"$dir/rows"

# Attention alone, where both sides say it.
jq -r '(.hv.parts.attention // .hv.attention) as $a |
    select(.rival.attention_tflops and ($a | type == "object") and $a.seconds > 0) |
    "# attention in \(.name), \(.size): \($a.flops / $a.seconds * 1e-12 | round) TFLOP/s; " +
    "torch, \(.rival.attention): \(.rival.attention_tflops | round)"' "$dir/all"
jq -rn '[inputs] | map(.hv.device, .rival.device // empty) | unique | "# " + join(", ")' "$dir/all"
echo "# $(date +%Y-%m-%d); one forward of one guidance branch, 129 frames, $TEXT_ROWS text rows, synthetic weights"
echo "# seconds: median of $REPEAT; peak: all that the process takes from the device, context included; streamed: GB"
echo "# rival: plain PyTorch blocks, the peak with one block of each kind on the device; faster, smaller: rival / hv"

if [ -n "${OUT:-}" ]; then
    jq -s . "$dir/all" >"$OUT/bench-gpu.json" || failed=1
fi
exit $failed
