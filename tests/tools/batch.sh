#!/bin/sh
# examples/batch.mk: a CSV of videos through make; kill it and make again; only whole files.
set -u
. tests/tap.sh
unset MAKEFLAGS MFLAGS MAKELEVEL

HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cd "$dir" || exit 1
cp "$root/examples/portrait.png" "a face.png"
ffmpeg -nostdin -v error -t 0.3 -i "$root/examples/speech.wav" one.wav
cp one.wav two.wav
printf '\357\273\277prompt,videoid,image,audio,fps\r\n"says ""hi"", it'"'"'s $HOME `x` #1",first,a face.png,one.wav,25\n"two\nlines",second,a face.png,two.wav,\n' >rows.csv
batch() { make -s -f "$root/examples/batch.mk" CSV=rows.csv OUT=v HVFLAGS='--image-size 64 --face full --steps 2 -q --threads 1' "$@"; }

batch >log 2>&1
ok $? "two rows become two videos"
[ -s v/first.mp4 ] && [ -s v/second.mp4 ]
ok $? "named by videoid"
batch -q
ok $? "a second make has nothing to do"
sed -i 's/^lines"/other"/' rows.csv
batch -n | grep -c 'args' >count
[ "$(cat count)" = 1 ]
ok $? "an edited row is made again, and no other"
batch >log 2>&1

rm -rf v
batch >log 2>&1 &
pid=$!
sleep 1.2
kill -TERM $pid 2>/dev/null
wait $pid 2>/dev/null
bad=0
for f in v/*.mp4; do
    [ ! -e "$f" ] || ffprobe -v error "$f" >/dev/null 2>&1 || bad=1
done
ok $bad "a killed make leaves only whole videos"
batch -j2 >log 2>&1 && [ -s v/first.mp4 ] && [ -s v/second.mp4 ]
ok $? "make again goes on, two at once"

printf 'videoid,image,audio\nx,a,b\n' >rows.csv
batch >log 2>&1 && bad=1 || bad=0
grep -q "no column 'prompt'" log || bad=1
ok $bad "a missing column is named"
printf 'videoid,image,audio,prompt\n../x,a,b,c\n' >rows.csv
batch >log 2>&1 && bad=1 || bad=0
grep -q "letters, digits" log || bad=1
ok $bad "a videoid that is a path is refused"
done_testing
