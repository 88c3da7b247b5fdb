#!/bin/sh
# Do the mouths of held-out portraits follow held-out voices? Renders examples/heldout through the real command line, measures the
# frames with tests/lipsync/lipsync, and prints the figures.
#   BIN, BUILD: the built tools; MODEL: the model folder (default: the one of examples/tiny); CLIPS: how many of the 24 (default: all)
#   STEPS: of the sampler (default: 10); OPTIONS: more options of hv
#   TRUTH: a folder of clips (clipN.st, silence.st, long.st) that are measured instead: examples/tiny/cartoons.py truth DIR
# Status 1 when a figure misses what is wanted.
set -eu

: "${BIN:=build/bin}" "${BUILD:=build}" "${MODEL:=examples/tiny/model}" "${CLIPS:=24}" "${STEPS:=10}" "${OPTIONS:=}" "${TRUTH:=}"
PATH=$BIN:$PATH
export PATH OMP_WAIT_POLICY=passive
measure=$BUILD/tests/lipsync/lipsync
held=examples/heldout
out=$BUILD/lipsync
tab=$(printf '\t')
mkdir -p "$out"
rm -f "$out"/*.txt

video() {       # name portrait sound options...
    if [ -n "$TRUTH" ]; then
        case $1 in
        long*) cp "$TRUTH/long.st" "$out/$1.st" ;;
        *) cp "$TRUTH/$1.st" "$out/$1.st" ;;
        esac
        return
    fi
    st=$out/$1.st portrait=$2 heard=$3
    shift 3
    # shellcheck disable=SC2086
    hv "$portrait" "$heard" -p "a person speaking" -o "$st" --model "$MODEL" --image-size 128 --steps "$STEPS" --guidance 1 -q $OPTIONS "$@"
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
    # Where windows of 33 latent frames begin in the last step, and as far as they share frames, in video frames: side by side in the
    # loop of 32 (rows / 128 + 1) + 1 frames, of which the last window shares some with the first, or at equal distances; moved by 10 a step.
    seams() {           # overlap
        awk -v frames="$frames" -v steps="$STEPS" -v shared="$1" 'BEGIN {
            rows = frames + 5; video = int(rows / 4) + 1; all = 32 * (int(rows / 128) + 1) + 1; apart = 33 - shared
            n = shared ? int((video + apart - 1) / apart) : int((all + 32) / 33)
            if (shared && apart * n < all) all = apart * n
            for (w = 0; w < n; w++) {
                last = shared ? shared : w ? 0 : 33 * n - all
                for (k = 0; k <= last; k += shared || !last ? 1 : last) {   # side by side: between the ends frames are means of both windows
                    s = ((shared ? int(w * all / n) : 33 * w) - 10 * (steps - 1) % 33 + k + all) % all
                    if (s > 0 && 4 * s - 3 < frames) printf "%s%d", comma++ ? "," : "", 4 * s - 3
                }
            }
        }'
    }
    for shared in 0 6; do
        video "long$shared" "$held/$name.png" "$long" --denoise.overlap=$shared
        frames=$(hv-tensor list "$out/long$shared.st" | sed -n 's/.*video.*\[\([0-9]*\),.*/\1/p' | head -n 1)
        "$measure" -m "$mouth" -p "$held/$name.png" -j "$(seams $shared)" "$out/long$shared.st" "$long" >"$out/long$shared.txt"
        rm "$out/long$shared.st"
    done
    # The mouth may well open where windows meet: what do the same frames change by when windows meet elsewhere, as after two steps more?
    video longer "$held/$name.png" "$long" --steps $((STEPS + 2))
    "$measure" -m "$mouth" -p "$held/$name.png" -j "$(seams 0)" "$out/longer.st" "$long" >"$out/longer.txt"
    rm "$out/longer.st"
fi

# shellcheck disable=SC2046
awk -F '\t' -v steps="$STEPS" '
function fine(what, value, good) { printf "%s %s\n", good ? "ok    " : "MISSED", sprintf(what, value); missed += !good }
FNR == 1 { file = FILENAME; sub(/.*\//, "", file) }
file ~ /^clip/ {
    if ($2 != "-") { sum[$1] += $2; n[$1]++ }
    if ($1 == "lag 0") { if (worst == "" || $2 + 0 < worst) worst = $2 + 0 }
    if ($1 == "best" && $2 != 0) apart++
    if ($1 == "frames") clips++
}
file == "silence.txt" && $1 == "area" { silent = $2 }
file == "long0.txt" { long[$1] = $2 }
file == "long6.txt" { shared[$1] = $2 }
file == "longer.txt" { moved[$1] = $2 }
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
    printf("       from one latent frame to the next the head moves %.2f times as much as within one\n", n["jerk"] ? sum["jerk"] / n["jerk"] : 0)
    if ("lag 0" in long) {
        fine("12 s of sound: %.3f (at least 0.80)", long["lag 0"], long["lag 0"] >= 0.80)
        fine("where windows meet: %.2f medians (at most 1.5)", long["seam"], long["seam"] != "-" && long["seam"] <= 1.5)
        printf "       the same frames when windows meet elsewhere (%d steps): %.2f medians\n", steps + 2, moved["seam"]
        printf "       the head alone: %.2f medians where windows meet, %.2f at most elsewhere\n", long["head seam"], long["head else"]
        fine("with --overlap 6: %.3f (at least 0.80)", shared["lag 0"], shared["lag 0"] >= 0.80)
        what = sprintf("with --overlap 6, the head alone: %%.2f medians where windows meet (at most a tenth more than the %.2f elsewhere)", shared["head else"])
        fine(what, shared["head seam"], shared["head seam"] != "-" && shared["head seam"] <= 1.1 * shared["head else"])
    }
    exit missed > 0
}' "$out"/clip*.txt "$out"/silence.txt $([ ! -e "$out/long6.txt" ] || echo "$out/long0.txt" "$out/long6.txt" "$out/longer.txt")
