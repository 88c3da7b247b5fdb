#!/bin/sh
# A whole render within a budget: hv with every network at full size, synthetic weights, and the device's memory watched from outside
# of the programs, by the driver, every 50 ms. For each stage: seconds, what it said that it would take and took, what was seen.
#
# BIN: the built tools. DEVICE: cuda or cuda:N, which nobody else uses meanwhile. VRAM: the budget. STEPS, SIZE, FRAMES: of the
# video. MODEL: a folder for the model, 43 GB, kept; without it one is made below TMPDIR and removed.
set -u
. "$(dirname "$0")/full.sh"

: "${VRAM:=3G}" "${STEPS:=2}" "${SIZE:=768x704}" "${FRAMES:=129}"

# ---- the model ----

model=${MODEL:-$dir/model}
if [ ! -e "$model/done" ]; then
    full_text "$model"
    full_vae "$model"
    mkdir -p "$model/transformer" "$model/audio_encoder"
    echo '{}' >"$model/transformer/config.json"
    echo '{}' >"$model/audio_encoder/config.json"
    cp -r "$root/examples/tiny/model/face_detector" "$model"
    made=
    for part in transformer text_encoder text_encoder_2 vae audio_encoder; do
        case $part in transformer) dtype=bf16 ;; audio_encoder) dtype=f32 ;; *) dtype=f16 ;; esac
        hv-weights synth -q --kind $part --dtype $dtype "$model/$part/config.json" 1 "$model/$part/model.safetensors" &
        made="$made $!"
    done
    for pid in $made; do
        wait "$pid" || { echo "bench-render: no model" >&2; exit 1; }
    done
    : >"$model/done"
fi
full_picture "$dir/picture.png" "${SIZE#*x}" "${SIZE%x*}" || exit

# ---- watched from outside ----

index=${DEVICE#cuda}
index=${index#:}
nvidia-smi -i "${index:-0}" --query-gpu=memory.used --format=csv,noheader,nounits -lms 50 |
    while IFS= read -r mib; do echo "$(date +%s.%N) $mib"; done >"$dir/seen" &
watcher=$!
sleep 1
idle=$(tail -n 1 "$dir/seen" | cut -d ' ' -f 2)

start=$(date +%s.%N)
hv "$dir/picture.png" "$root/examples/speech-long.flac" -p "a person speaking" --model "$model" --device "$DEVICE" --vram "$VRAM" \
    --max-frames "$FRAMES" --steps "$STEPS" --face full -v --progress none --keep "$dir/keep" -o "$dir/frames.st" 2>"$dir/err"
rc=$?
end=$(date +%s.%N)
sleep 0.2
kill "$watcher" 2>/dev/null
watcher=
if [ $rc != 0 ]; then
    cat "$dir/err"
    exit 1
fi

# ---- the table ---- a stage goes from when its file's predecessor was whole to when its own was

sed -n '/memory:/p' "$dir/err" | sed 's/^/# /'
printf '%-10s %8s %12s   SIZE %s, %s frames, %s steps, budget %s\n' stage seconds "seen, MiB" "$SIZE" "$FRAMES" "$STEPS" "$VRAM"
from=$start
worst=0
for stage in text:text audio:audio face:face encode:ref denoise:latent decode:; do
    file=$dir/keep/${stage#*:}.st
    to=$end
    [ "${stage#*:}" = "" ] || to=$(date -r "$file" +%s.%N)
    mib=$(awk -v from="$from" -v to="$to" -v idle="$idle" '$1 >= from && $1 <= to && $2 - idle > m { m = $2 - idle } END { print m + 0 }' "$dir/seen")
    echo "$from $to $mib ${stage%:*}" | awk '{ printf "%-10s %8.2f %12d\n", $4, $2 - $1, $3 }'
    [ "$mib" -le "$worst" ] || worst=$mib
    from=$to
done
echo "$start $end" | awk -v m="$worst" '{ printf "%-10s %8.2f %12d\n", "all", $2 - $1, m }'
hv-tensor list "$dir/frames.st" | sed 's/^/# /'
echo "# $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1), $(date +%Y-%m-%d); $(wc -l <"$dir/seen") looks; before: $idle MiB"
limit=$(echo "$VRAM" | awk '{ n = $0 + 0; print /G$/ ? n * 1024 : n }')
[ "$worst" -le "$limit" ] || { echo "# more than $VRAM"; exit 1; }
