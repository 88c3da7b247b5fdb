#!/bin/sh
# Does the detector find the faces of examples/heldout, and nothing in its twenty pictures without one?
#   BIN, BUILD: the built tools; MODEL: the model folder. Status 1 when a figure misses what is wanted.
set -eu

: "${BIN:=build/bin}" "${BUILD:=build}" "${MODEL:=examples/tiny/model}"
PATH=$BIN:$PATH
export PATH
held=examples/heldout
out=$BUILD/lipsync
tab=$(printf '\t')
mkdir -p "$out"

find_face() {   # what picture: "WHAT x y width height score" of the largest face, "WHAT" alone when there is none (status 9)
    hv-face "$2" --model "$MODEL" --image-size 128 --list -q >"$out/faces.list" 2>"$out/faces.err" || [ $? = 9 ] || { cat "$out/faces.err" >&2; exit 1; }
    awk -v what="$1" '$1 == 1 { found = $2 " " $3 " " $4 " " $5 " " $6 } END { print what, found }' "$out/faces.list"
}

while IFS=$tab read -r name face _; do
    find_face "face $name $face" "$held/$name.png"
done <"$held/clips.tsv" >"$out/faces.txt"
i=0
while [ $i -lt 20 ]; do         # five by four pictures side by side
    ffmpeg -nostdin -v error -y -i $held/backgrounds.png -vf "crop=128:128:$((i % 5 * 128)):$((i / 5 * 128))" "$out/background.png"
    find_face "background $i -" "$out/background.png"
    i=$((i + 1))
done >>"$out/faces.txt"

awk '
function least(a, b) { return a < b ? a : b }
function most(a, b) { return a > b ? a : b }
function fine(what, good) { printf "%s %s\n", good ? "ok    " : "MISSED", what; missed += !good }
$1 == "background" { backgrounds++; wrong += NF > 3; next }
{
    faces++
    if (NF < 8) { printf "face %s: not found\n", $2; worst = 0; next }
    found++
    split($3, b, ",")
    w = most(0, least(b[3], $4 + $6) - most(b[1], $4))
    h = most(0, least(b[4], $5 + $7) - most(b[2], $5))
    iou = w * h / ((b[3] - b[1]) * (b[4] - b[2]) + $6 * $7 - w * h)
    sum += iou
    if (worst == "" || iou < worst) worst = iou
    if (iou < 0.7) printf "face %s: IoU %.3f\n", $2, iou
}
END {
    fine(sprintf("faces found: %d of %d (all)", found, faces), found == faces)
    fine(sprintf("IoU: %.3f on average, %.3f at worst (at least 0.70)", found ? sum / found : 0, worst), worst >= 0.70)
    fine(sprintf("faces in pictures without one: %d of %d (none)", wrong, backgrounds), wrong == 0)
    exit missed > 0
}' "$out/faces.txt"
