#!/bin/sh
# Time and memory of hv-text with the full-size networks, a whole process from its start to its end: synthetic weights in the page
# cache, both prompts, 831 rows of states each. Beside it, in the same run, plain PyTorch that reads the same file (rival_text.py).
#
# BIN: the built tools. DEVICE: cuda or cuda:N. ONLY: an extended regular expression on the names below. REPEAT: runs that are timed
# after a first one; the median counts. PYTHON: one that has torch. MODEL: a folder for the model, 14 GB (21 with int8), kept;
# without it one is made below TMPDIR and removed. THREADS: of the row on the CPU. OUT: a folder for bench-text.txt.
set -u
. "$(dirname "$0")/full.sh"

: "${ONLY:=.}" "${REPEAT:=3}" "${THREADS:=0}"

# name | weights | options of hv-text
rows() {
    cat <<ROWS
fp16            | f16  | --device $DEVICE
fp16 800M       | f16  | --device $DEVICE --vram 800M
fp16 register   | f16  | --device $DEVICE --stream register
fp16 map        | f16  | --device $DEVICE --stream map
fp16 direct     | f16  | --device $DEVICE --stream direct
int8            | int8 | --device $DEVICE
int8 cpu        | int8 | --device cpu --threads $THREADS
ROWS
}

model=${MODEL:-$dir/model}
failed=0

rows | grep -E "$ONLY" >"$dir/rows"
[ -s "$dir/rows" ] || { echo "bench-text: no row is called '$ONLY'" >&2; exit 2; }

# ---- the model ----

synth() {       # weights: f16 or int8
    [ ! -e "$model.$1/done" ] || return 0
    full_text "$model.$1"
    [ "$1" = f16 ] || synth f16 || return 1
    for part in text_encoder text_encoder_2; do
        if [ "$1" = int8 ] && [ $part = text_encoder_2 ]; then          # small, and never quantized
            cp "$model.f16/$part/model.safetensors" "$model.int8/$part/model.safetensors" || return 1
        elif [ "$1" = int8 ]; then
            hv-weights quantize -q --quant int8 "$model.f16/$part/model.safetensors" "$model.int8/$part/model.safetensors" || return 1
        else
            hv-weights synth -q --kind "$part" "$model.f16/$part/config.json" 1 "$model.f16/$part/model.safetensors" || return 1
        fi
    done
    : >"$model.$1/done"
}

# ---- runs ----

prompt='A man in a dark blue suit speaks calmly in front of a bookshelf, warm light, natural gestures'

now() { date +%s.%N; }

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

timed() {       # command...: seconds of the median run; what the last one said is in $dir/err
    : >"$dir/seconds"
    for i in $(seq 0 "$repeat"); do
        start=$(now)
        "$@" >"$dir/out" 2>"$dir/err" || return 1
        if [ "$i" != 0 ] || [ "$repeat" = 0 ]; then
            echo "$(now) $start" | awk '{ printf "%.3f\n", $1 - $2 }' >>"$dir/seconds"
        fi
    done
    median <"$dir/seconds"
}

said() { sed -n "s/^hv-text: $1\$/\\1/p" "$dir/err" | head -n 1; }

: >"$dir/table"
put() { printf '%-14s %8s %9s %9s %9s %9s  %s\n' "$@" | tee -a "$dir/table"; }

put plan seconds 'peak GiB' planned context 'weights' by
gib() { awk -v m="$1" 'BEGIN { if (m == "") print "-"; else printf "%.3f", m / 1024 }'; }

while IFS='|' read -r name weights options; do
    name=$(echo "$name" | sed 's/ *$//') weights=$(echo "$weights" | tr -d ' ')
    start=$(now)
    synth "$weights" || { failed=1; continue; }
    echo "# $weights: made in $(echo "$(now) $start" | awk '{ printf "%.0f", $1 - $2 }') s" >&2
    repeat=$REPEAT
    case $options in *cpu*) repeat=0 ;; esac
    # shellcheck disable=SC2086
    if ! seconds=$(timed hv-text -v --progress none --model "$model.$weights" $options "$root/examples/portrait.png" -p "$prompt" \
        -o "$dir/text.st"); then
        put "$name" "$(head -n 1 "$dir/err")" - - - - -
        failed=1
        continue
    fi
    echo "# $name: $(tr '\n' ' ' <"$dir/seconds")s"
    put "$name" "$seconds" "$(gib "$(said 'memory: .*measured \([0-9.]*\) MiB.*')")" "$(gib "$(said 'memory: predicted \([0-9.]*\) MiB.*')")" \
        "$(gib "$(said 'memory: .*context \([0-9.]*\).*')")" "$(said 'weights: \(.*\) by .*')" "$(said 'weights: .* by \([a-z]*\),.*')"
    sed -n 's/^hv-text: \([a-z]*: [0-9.]* s\)$/# \1/p' "$dir/err"
done <"$dir/rows"

if [ "$DEVICE" != cpu ] && [ -e "$model.f16/done" ]; then
    repeat=1
    if seconds=$(timed "$PYTHON" "$here/rival_text.py" --model "$model.f16"); then
        put "PyTorch, fp16" "$seconds" "$(sed -n 's/^peak \([0-9.]*\) MiB$/\1/p' "$dir/out" | { read -r m; gib "$m"; })" - - - "$(sed -n 's/^parts //p' "$dir/out")"
    else
        tail -n 1 "$dir/err" | sed 's/^/# rival: /' >&2
    fi
fi
command -v nvidia-smi >/dev/null && echo "# $(nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader | head -n 1), $(nproc) cores"
echo "# $(date +%Y-%m-%d); seconds: a whole process, the median of $REPEAT, weights in the page cache; both prompts; peak: context included"
if [ -n "${OUT:-}" ]; then
    cp "$dir/table" "$OUT/bench-text.txt" || failed=1
fi
exit $failed
