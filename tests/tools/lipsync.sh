#!/bin/sh
# What measures lips: a mouth that says the sound is found to follow it, late ones are found late, others are not taken for it.
# And one clip by the model of examples/tiny, from picture and sound to frames: its mouth follows, so every stage is wired right.
set -u
. tests/tap.sh
measure=${BUILD:-build}/tests/lipsync/lipsync
held=$root/examples/heldout

figure() {      # name: the value of a line of $dir/out
    sed -n "s/^$1	//p" "$dir/out"
}

within() {      # value low high what
    awk -v v="$1" -v lo="$2" -v hi="$3" 'BEGIN { exit !(v != "-" && v != "" && v + 0 >= lo && v + 0 <= hi) }'
    ok $? "$4 ($1)"
}

for lag in 0 -3 2; do
    "$measure" -g $lag "$dir/mouth.st" "$held/1.flac" || ok 1 "a drawn mouth, $lag frames late"
    status 0 "measures a mouth $lag frames late" "$measure" -m 2,2,30,30 -o "$held/4.flac" "$dir/mouth.st" "$held/1.flac"
    within "$(figure best)" $lag $lag "finds the lag $lag"
    within "$(figure "lag $lag")" 0.99 1 "correlation at the lag"
    [ $lag != 0 ] || within "$(figure other)" -0.3 0.3 "another sound"
    [ $lag != 0 ] || within "$(figure "lag 4")" -0.3 0.6 "four frames off"
done

ffmpeg -nostdin -v error -f lavfi -i anullsrc=r=16000:cl=mono -t 1 "$dir/silence.wav"
"$measure" -g 0 "$dir/mouth.st" "$dir/silence.wav"
status 0 "measures silence" "$measure" -m 2,2,30,30 "$dir/mouth.st" "$dir/silence.wav"
within "$(figure area)" 0 0.01 "a silent mouth is shut"
[ "$(figure best)" = - ]
ok $? "silence correlates with nothing"

status 2 "no mouth box" "$measure" "$dir/mouth.st" "$dir/silence.wav"
status 3 "a mouth box outside the picture" "$measure" -m 2,2,99,30 "$dir/mouth.st" "$dir/silence.wav"
# Every clip of the table has its files, and the boxes lie in the pictures.
n_clips=0
while IFS='	' read -r name face mouth sound other; do
    [ -e "$held/$name.png" ] && [ -e "$held/$sound.flac" ] && [ -e "$held/$other.flac" ] && [ "$sound" != "$other" ] || break
    case $face$mouth in *[!0-9,]*) break ;; esac
    n_clips=$((n_clips + 1))
done <"$held/clips.tsv"
[ $n_clips = 24 ]
ok $? "24 held-out clips have their files"

# 3 s of a portrait and a voice that the training never saw.
IFS='	' read -r name face mouth sound other <"$held/clips.tsv"
ffmpeg -nostdin -v error -i "$held/$sound.flac" -t 3 -bitexact "$dir/said.wav"
status 0 "renders a held-out portrait and voice" hv "$held/$name.png" "$dir/said.wav" -p "a person speaking" -o "$dir/clip.st" \
    --model "$root/examples/tiny/model" --image-size 128 --steps 10 --guidance 1 -q
status 0 "measures its mouth" "$measure" -m "$mouth" -f "$face" -p "$held/$name.png" "$dir/clip.st" "$dir/said.wav"
within "$(figure "lag 0")" 0.75 1 "the mouth follows the voice"
within "$(figure best)" 0 0 "neither late nor early"
within "$(figure background)" 30 99 "the background stays, dB"
status 0 "the detector finds all held-out faces and nothing elsewhere" env MODEL="$root/examples/tiny/model" BUILD="$dir" tests/lipsync/faces.sh
sed 's/^/# /' "$dir/out"
done_testing
