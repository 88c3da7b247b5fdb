#!/bin/sh
# What --state costs at full size: hv-denoise with and without, one branch, steps in full and from the step cache in turn, so that the
# caches of each full step are copied and written. The time of every step, the fastest of REPEAT runs.
#
# BIN: the built tools. DEVICE: cuda or cuda:N. SIZE, FRAMES: of the video. MODEL: a folder with a transformer, kept; without it one is
# made below TMPDIR, 26 GB. STATE: a folder for the state. Status 1: more than 1 % of a full step.
set -u
. "$(dirname "$0")/full.sh"

: "${REPEAT:=2}" "${SIZE:=768x704}" "${FRAMES:=129}" "${STATE:=$dir}"

model=${MODEL:-$dir/model}
if [ ! -e "$model/transformer/model.safetensors" ]; then
    mkdir -p "$model/transformer"
    echo '{}' >"$model/transformer/config.json"
    hv-weights synth -q --kind transformer --dtype bf16 "$model/transformer/config.json" 1 "$model/transformer/model.safetensors" || exit
fi
across=$((${SIZE%x*} / 8)) down=$((${SIZE#*x} / 8))
full_tensors "$dir/in.st" "$FRAMES" 'text.states 256 4096' 'text.mask 256' 'text.pooled 768' "audio.features $FRAMES 10 5 384" \
    "face.mask 1 $down $across" "ref.latents 16 33 $down $across" || exit

run() {         # name, options...: moments of the steps to $dir/name
    name=$1
    shift
    rm -f "$dir/$name.st"
    hv-denoise --progress json --model "$model" --device "$DEVICE" --steps 6 --cache 0,2,4 --guidance 1 "$@" "$dir/in.st" -o "$dir/$name.st" 2>&1 |
        while IFS= read -r line; do echo "$(date +%s.%N) $line"; done >"$dir/$name"
    date +%s.%N >>"$dir/$name"
    [ -e "$dir/$name.st" ] || { cat "$dir/$name"; exit 1; }
}

i=0
while [ $i -lt "$REPEAT" ]; do
    i=$((i + 1))
    run without
    sed 's/^/without /' "$dir/without" >>"$dir/all"
    run with --state "$STATE/bench.state"
    sed 's/^/with /' "$dir/with" >>"$dir/all"
    cmp -s "$dir/without.st" "$dir/with.st" || { echo "# other latents"; exit 1; }
done
bytes=$(wc -c <"$STATE/bench.state")
rm -f "$STATE/bench.state"

# A line follows each step; the last line of a run has no word: the end of the process. What follows a full step is the copy of its
# caches, then a step from them.
printf '%-10s %8s %8s %8s %8s %8s %8s   ms; %s, %s frames\n' state cached full cached full cached end "$SIZE" "$FRAMES"
awk '
    function keep(who, at, s) { if (!((who, at) in best) || s < best[who, at]) best[who, at] = s }
    /"what":"step"/ || NF == 2 {
        if (k[$1]) keep($1, k[$1], $2 - last[$1])
        last[$1] = $2
        k[$1] = NF == 2 ? 0 : k[$1] + 1
    }
    END {
        for (w = 0; w < 2; w++) {
            who = w ? "with" : "without"
            printf "%-10s", who
            for (at = 1; at <= 6; at++) { printf " %8.0f", 1000 * best[who, at]; sum[w] += at < 6 ? best[who, at] : 0 }
            printf "\n"
        }
        full = best["without", 2]
        for (at = 1; at < 6; at += 2) copy += (best["with", at] - best["without", at]) / 3
        printf "# copying, beside a cached step: %.1f ms, %.2f %% of a full step; all steps: %.2f %%\n",
            1000 * copy, full ? 100 * copy / full : 0, sum[0] ? 100 * (sum[1] / sum[0] - 1) : 0
        exit !(full > 0 && copy <= 0.01 * full && sum[1] <= 1.01 * sum[0])
    }' "$dir/all"
rc=$?
echo "# the state: $((bytes / 1000000)) MB; $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1), $(date +%Y-%m-%d)"
exit $rc
