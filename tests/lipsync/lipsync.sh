#!/bin/sh
# Do the mouths of held-out portraits follow held-out voices? Renders examples/heldout through the real command line, measures the
# frames with tests/lipsync/lipsync, and prints the figures.
#   BIN, BUILD: the built tools; MODEL: the model folder (default: the one of examples/tiny); CLIPS: how many of the 24 (default: all); OPTIONS: more options of hv
#   TRUTH: a folder of clips (clipN.st, silence.st, long.st) that are measured instead: examples/tiny/cartoons.py truth DIR
# Status 1 when a figure misses what is wanted.
set -eu

: "${BIN:=build/bin}" "${BUILD:=build}" "${MODEL:=examples/tiny/model}" "${CLIPS:=24}" "${OPTIONS:=}" "${TRUTH:=}"
PATH=$BIN:$PATH
export PATH OMP_WAIT_POLICY=passive
measure=$BUILD/tests/lipsync/lipsync
held=examples/heldout
out=$BUILD/lipsync
steps=8
tab=$(printf '\t')
mkdir -p "$out"
rm -f "$out"/*.txt

video() {       # name portrait sound
    if [ -n "$TRUTH" ]; then
        cp "$TRUTH/$1.st" "$out/$1.st"
        return
    fi
    # shellcheck disable=SC2086
    hv "$2" "$3" -p "a person speaking" -o "$out/$1.st" --model "$MODEL" --image-size 128 --steps $steps --guidance 1 -q $OPTIONS
}

n=0
while [ $n -lt "$CLIPS" ] && IFS=$tab read -r name face mouth sound other; do
    n=$((n + 1))
    video "clip$name" "$held/$name.png" "$held/$sound.flac"
    "$measure" -m "$mouth" -f "$face" -p "$held/$name.png" -o "$held/$other.flac" "$out/clip$name.st" "$held/$sound.flac" >"$out/clip$name.txt"
    awk -F '\t' -v name="$name" '{v[$1] = $2} END {printf "clip %-3s lag 0 %s, best lag %s, other sound %s, open %s, shut %s, background %s dB, still %s dB\n",
        name, v["lag 0"], v["best"], v["other"], v["open"], v["shut"], v["background"], v["still"]}' "$out/clip$name.txt"
    rm "$out/clip$name.st"
done <"$held/clips.tsv"

# Silence: the mouth of the first portrait stays shut. The long sound: several windows, one clip.
IFS=$tab read -r name face mouth sound other <"$held/clips.tsv"
ffmpeg -nostdin -v error -y -f lavfi -i anullsrc=r=16000:cl=mono -t 4 "$out/silence.wav"
video silence "$held/$name.png" "$out/silence.wav"
"$measure" -m "$mouth" -p "$held/$name.png" "$out/silence.st" "$out/silence.wav" >"$out/silence.txt"
rm "$out/silence.st"
if [ "$CLIPS" -ge 24 ]; then
    long=examples/speech-long.flac
    video long "$held/$name.png" "$long"
    # Windows of 33 latent frames begin at multiples of 33, moved by 10 a step: where they do in the last step, in video frames.
    frames=$(hv-tensor list "$out/long.st" | sed -n 's/.*video.*\[\([0-9]*\),.*/\1/p' | head -n 1)
    seams=$(awk -v frames="$frames" -v steps=$steps 'BEGIN {
        move = 10 * (steps - 1) % 33
        for (s = 33 - move; 4 * s - 3 < frames; s += 33) if (s > 0) printf "%s%d", n++ ? "," : "", 4 * s - 3 }')
    "$measure" -m "$mouth" -p "$held/$name.png" -j "$seams" "$out/long.st" "$long" >"$out/long.txt"
    rm "$out/long.st"
fi

awk -F '\t' '
function fine(what, value, good) { printf "%s %s\n", good ? "ok    " : "MISSED", sprintf(what, value); missed += !good }
FNR == 1 { file = FILENAME; sub(/.*\//, "", file) }
file ~ /^clip/ {
    if ($2 != "-") { sum[$1] += $2; n[$1]++ }
    if ($1 == "lag 0") { if (worst == "" || $2 + 0 < worst) worst = $2 + 0 }
    if ($1 == "best" && $2 != 0) apart++
    if ($1 == "frames") clips++
}
file == "silence.txt" && $1 == "area" { silent = $2 }
file == "long.txt" { long[$1] = $2 }
END {
    printf "correlation of the mouth with the sound, mean of %d clips, by lag in frames:\n ", clips
    for (k = -4; k <= 4; k++) printf " %+d: %.3f", k, n["lag " k] ? sum["lag " k] / n["lag " k] : 0
    printf "\n"
    r = n["lag 0"] ? sum["lag 0"] / n["lag 0"] : -1
    fine("mean at lag 0: %.3f (at least 0.90)", r, r >= 0.90)
    fine("worst clip: %.3f (at least 0.75)", worst, worst >= 0.75)
    fine("clips with another best lag: %d (none)", apart, apart == 0)
    o = n["other"] ? sum["other"] / n["other"] : 1
    fine("another sound: %.3f (within 0.15)", o, o <= 0.15 && o >= -0.15)
    open = n["open"] ? sum["open"] / n["open"] : 0
    s = open > 0 ? silent / open : 1
    fine("silence: %.3f of the open mouth (at most 0.05)", s, s <= 0.05)
    b = n["background"] ? sum["background"] / n["background"] : 0
    fine("background: %.1f dB (at least 30)", b, b >= 30)
    t = n["still"] ? sum["still"] / n["still"] : 0
    fine("still: %.1f dB (at least 45)", t, t >= 45)
    if ("lag 0" in long) {
        fine("12 s of sound: %.3f (at least 0.80)", long["lag 0"], long["lag 0"] >= 0.80)
        fine("where windows meet: %.2f medians (at most 1.5)", long["seam"], long["seam"] != "-" && long["seam"] <= 1.5)
    }
    exit missed > 0
}' "$out"/clip*.txt "$out"/silence.txt $([ ! -e "$out/long.txt" ] || echo "$out/long.txt")
