#!/bin/sh
# The VAE's table of BENCHMARKS.md that needs a GPU: hv-decode and hv-encode at full size with synthetic weights, whole processes,
# beside a decoder tile in plain PyTorch in the same run (rival_vae.py), so that a ratio can be read on any machine.
#
# BIN: the built tools. DEVICE: cuda or cuda:N. REPEAT: runs of a row; the fastest counts. SIZE, FRAMES: of the video. PYTHON: one
# that has torch; without it the rival stays empty. The frames of all plans are compared; a clip four times as long follows.
set -u
. "$(dirname "$0")/full.sh"

: "${REPEAT:=2}" "${SIZE:=768x704}" "${FRAMES:=129}"
failed=0

# ---- inputs ----

full_vae "$dir/model"
hv-weights synth -q --dtype f16 "$dir/model/vae/config.json" 1 "$dir/model/vae/model.safetensors" || exit
width=${SIZE%x*} height=${SIZE#*x}
latents() {     # file, frames
    full_tensors "$1" "$2" "latents 16 $((($2 + 3) / 4)) $((height / 8)) $((width / 8))"
}
latents "$dir/latents.st" "$FRAMES" || exit
full_picture "$dir/picture.png" "$width" "$height" || exit

# ---- rows ----

seconds() {     # command...: the fastest of REPEAT runs, in $s; its words in $dir/err
    s=
    i=0
    while [ $i -lt "$REPEAT" ]; do
        t=$(date +%s%N)
        "$@" 2>"$dir/err" || { failed=1; s=; head -n 1 "$dir/err"; return 1; }
        t=$((($(date +%s%N) - t) / 1000000))
        [ -n "$s" ] && [ "$s" -le $t ] || s=$t
        i=$((i + 1))
    done
}

memory() {      # predicted and measured MiB of $dir/err
    sed -n 's/.*predicted \([0-9.]*\) MiB, measured \([0-9.]*\) MiB.*/\1 \2/p' "$dir/err"
}

printf '%-28s %8s %10s %10s\n' "what, $SIZE, $FRAMES frames" seconds "peak GiB" planned
row() {         # name, command...
    name=$1
    shift
    seconds "$@" || return
    memory | awk -v name="$name" -v s="$s" '{ printf "%-28s %8.2f %10.2f %10.2f\n", name, s / 1000, $2 / 1024, $1 / 1024 }'
}
base=
for plan in '--vram 3480M' '--vram 2355M' '--vram 1536M'; do
    # shellcheck disable=SC2086
    row "hv-decode $plan" hv-decode --progress none --model "$dir/model" --device "$DEVICE" $plan -f rgb -o "$dir/frames.rgb" "$dir/latents.st"
    sum=$(sha256sum <"$dir/frames.rgb")
    [ -n "$base" ] || base=$sum
    [ "$sum" = "$base" ] || { echo "# $plan: other frames"; failed=1; }
done
row "hv-encode" hv-encode --progress none --model "$dir/model" --device "$DEVICE" -o "$dir/ref.st" "$dir/picture.png"

# ---- a clip four times as long: four times the time at most, the same memory of the device and of the host ----

resident() {    # command...: its largest resident memory in KiB to $dir/rss
    "$PYTHON" -c 'import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)' "$dir/rss" "$@"
}
long=$((4 * FRAMES - 3))
latents "$dir/long.st" $long || exit
for clip in "latents $FRAMES" "long $long"; do
    seconds resident hv-decode --progress none --model "$dir/model" --device "$DEVICE" --vram 3480M -f rgb -o "$dir/frames.rgb" "$dir/${clip% *}.st"
    echo "${clip#* } $s $(memory) $(cat "$dir/rss")"
done >"$dir/length"
awk '{ printf "%-28s %8.2f %10.2f %10.2f   host %.1f MiB\n", "hv-decode, " $1 " frames", $2 / 1000, $4 / 1024, $3 / 1024, $5 / 1024 }
    NR == 1 { t = $2; d = $4; h = $5 }
    END {
        printf "# %.2f times the time, %.3f of the device, %.3f of the host\n", $2 / t, $4 / d, $5 / h
        exit NR != 2 || $2 > 4.2 * t || $4 > 1.05 * d || $5 > 1.05 * h
    }' "$dir/length" || { echo "# more than four times the time, or more than the same memory, by 5 %"; failed=1; }

# ---- the rival ----

if "$PYTHON" "$here/rival_vae.py" --json >"$dir/rival" 2>"$dir/err"; then
    echo "# rival, plain PyTorch, one tile of 17x32x32 latents: $(jq -r '"\(.seconds) s, \(.bytes / 1073741824) GiB"' "$dir/rival")"
else
    tail -n 1 "$dir/err" | sed 's/^/# rival: /'
fi
echo "# $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1), $(date +%Y-%m-%d); whole processes, f16, the frames written to a file"
exit $failed
