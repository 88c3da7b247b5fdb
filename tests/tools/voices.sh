#!/bin/sh
# Several voices, each through its own mask; masks that move; strength of sound and motion; 12.5 frames a second.
# DEVICE: where hv-denoise computes; CLOSE: what counts as the same there, relative.
set -u
. tests/tap.sh
: "${DEVICE:=cpu}"
case $DEVICE in cpu) : "${CLOSE:=1e-5}" ;; *) : "${CLOSE:=1e-2}" ;; esac     # f32, bf16
HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cp "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
cp "$root/examples/speech-long.flac" long.flac
cp "$root/examples/heldout/2.flac" other.flac
hv-text -q --image-size 64 -p x me.png -o text.st && hv-audio -q --max-frames 20 s.wav -o audio.st && hv-audio -q --max-frames 20 other.flac -o other.st &&
    hv-audio -q --max-frames 150 long.flac -o long.st && hv-audio -q --max-frames 22 s.wav -o audio22.st &&
    hv-face -q --image-size 64 --face full me.png -o full.st && hv-encode -q --image-size 64 me.png -o ref.st &&
    hv-face -q --image-size 64 --area 1 --box 0,0,32,64 me.png -o left.st && hv-face -q --image-size 64 --area 1 --box 32,0,32,64 me.png -o right.st &&
    hv-face -q --image-size 64 --area 1 --box 0,0,44,64 me.png -o wide.st
ok $? "stage files"
run() { hv-denoise -q --device "$DEVICE" --threads 1 --steps 4 --cache none text.st ref.st "$@"; }
# relative difference of two latents is at most X
near() {
    hv-tensor diff "$1" "$2" --tol 1e9 --key latents >out 2>err || return 2
    awk -v most="$3" '$1 == "latents" { said = $3; seen = 1 } END { exit !(seen && said <= most) }' out
}
relative() { awk '$1 == "latents" { print $3 }' out; }

# ---- voices ----

run audio.st full.st -o one.st && run --voice audio.st,full.st -o same.st && near one.st same.st 0
ok $? "one voice by --voice is the voice of the operands"
run --voice audio.st,left.st --voice audio.st,right.st -o two.st && near one.st two.st "$CLOSE"
ok $? "two voices with one sound and complementary masks are one voice with the whole mask: $(relative) apart"
run audio.st left.st --voice audio.st,right.st -o mixed.st && near two.st mixed.st 0
ok $? "the first voice may be that of the operands"
run long.st full.st -o one.st && run --voice long.st,left.st --voice long.st,right.st -o two.st && near one.st two.st "$CLOSE"
ok $? "in sliding windows as well: $(relative)"
run --voice audio.st,left.st --voice other.st,right.st -o ab.st && run --voice other.st,right.st --voice audio.st,left.st -o ba.st && near ab.st ba.st "$CLOSE"
ok $? "the order does not matter"
run audio.st full.st -o one.st
near one.st ab.st 1e-5
[ $? = 1 ]
ok $? "another sound on the right makes another video"
for tier in '--guidance 1' '--chunk-rows 100,70' '--head-group 1 --guidance 3' '--cache tea:0.3 --steps 8' '--carry reference'; do
    # shellcheck disable=SC2086
    run audio.st full.st $tier -o one.st && run --voice audio.st,left.st --voice audio.st,right.st $tier -o two.st && near one.st two.st "$CLOSE"
    status=$?
    case $tier in *reference*) [ $status -le 1 ] ;; *) [ $status = 0 ] ;; esac      # rounded to 16 bits between steps
    ok $? "$tier: $(relative)"
done
# A voice of silence through a mask adds what the model makes of silence; a mask of nothing adds nothing.
run --voice audio.st,left.st -o left1.st && run --voice audio.st,left.st --voice other.st,right.st --audio-strength 0 -o quiet.st &&
    run audio.st full.st --audio-strength 0 -o quiet1.st && near quiet.st quiet1.st 0
ok $? "--audio-strength 0: nobody is heard"
hv-denoise --device "$DEVICE" --threads 1 --steps 2 --cache none text.st ref.st --voice audio.st,wide.st --voice other.st,right.st -o x.st --progress none 2>err && grep -q 'the masks overlap in .* latents' err
ok $? "overlapping masks are allowed, and said: $(cat err)"

# ---- state ----

v='--voice audio.st,left.st --voice other.st,right.st'
# shellcheck disable=SC2086
{
    run $v -o whole.st && run $v --state s.st --stop-after 2 && run $v --state s.st --resume -o out.st && same whole.st out.st "put aside and taken up"
    run $v --state s.st --stop-after 2 && status 3 "other masks" run --voice audio.st,left.st --voice other.st,wide.st --state s.st --resume -o x.st
    grep -q 'voices is another' err
    ok $? "said: $(cat err)"
    status 3 "another strength" run $v --audio-strength 0.5 --state s.st --resume -o x.st
    status 3 "another motion" run $v --motion-exp 10 --state s.st --resume -o x.st
}

# ---- strength and motion ----

run audio.st full.st -o one.st
for opt in '--audio-strength 1' '--motion-exp 30 --motion-pose 25'; do
    # shellcheck disable=SC2086
    run audio.st full.st $opt -o x.st && same one.st x.st "$opt is what it was"
done
for opt in '--audio-strength 2' '--motion-exp 5' '--motion-pose 60'; do
    # shellcheck disable=SC2086
    run audio.st full.st $opt -o x.st && near one.st x.st 1e-4
    [ $? = 1 ]
    ok $? "$opt changes the video: $(relative)"
done

# ---- masks that move ----

# 20 frames are 6 latent frames, the last of which begins with frame 17.
awk 'BEGIN { for (i = 0; i < 20; i++) printf "{\"box\":[%d,0,32,64]}\n", i < 10 ? 0 : 32 }' >moving.jsonl
awk 'BEGIN { for (i = 0; i < 20; i++) print "{\"box\":[0,0,32,64]}" }' >still.jsonl
hv-face -q --image-size 64 --area 1 --boxes moving.jsonl me.png -o moving.st && hv-face -q --image-size 64 --area 1 --boxes still.jsonl me.png -o still.st
ok $? "boxes of each frame"
hv-tensor list moving.st | grep -q 'face.mask.*\[6,8,8\]'
ok $? "six masks: $(hv-tensor list moving.st | grep face.mask)"
for k in 0 2; do hv-tensor slice moving.st face.mask $k:$((k + 1)),:,: -o a.st && hv-tensor slice left.st face.mask :,:,: -o b.st && hv-tensor diff a.st b.st >out 2>&1; ok $? "latent frame $k: on the left"; done
for k in 4 5; do hv-tensor slice moving.st face.mask $k:$((k + 1)),:,: -o a.st && hv-tensor slice right.st face.mask :,:,: -o b.st && hv-tensor diff a.st b.st >out 2>&1; ok $? "latent frame $k: on the right"; done
hv-tensor slice moving.st face.mask 3:4,:,: -o a.st && hv-tensor slice full.st face.mask :,:,: -o b.st && hv-tensor diff a.st b.st >out 2>&1
ok $? "latent frame 3, of frames 9 to 12: either"
run audio.st left.st -o one.st && run audio.st still.st -o x.st && same one.st x.st "a face that rests is one mask"
run audio.st moving.st -o y.st && near one.st y.st 1e-4
[ $? = 1 ]
ok $? "one that moves is another video"
status 3 "a mask for another length" run audio22.st moving.st -o x.st
grep -q 'face mask \[6,8,8\], expected' err
ok $? "said: $(cat err)"

# ---- faults ----

status 3 "a mask of another size" sh -c 'hv-face -q --image-size 128 --face full me.png -o big.st && hv-denoise -q --steps 2 text.st ref.st --voice audio.st,big.st -o x.st'
status 3 "a sound of another length" run --voice audio.st,left.st --voice audio22.st,right.st -o x.st
grep -q 'make them equally long' err
ok $? "said: $(cat err)"
status 2 "one file" run --voice audio.st -o x.st
status 4 "a file that is not there" run --voice audio.st,nothing.st -o x.st
status 3 "no voice at all" run -o x.st
printf '{"box":[0,0,32,64]}\n{"box":[0,0,32]}\n' >bad.jsonl
status 3 "a box of three numbers" hv-face -q --image-size 64 --boxes bad.jsonl me.png -o x.st
grep -q 'bad.jsonl:2: ' err
ok $? "said: $(cat err)"
printf 'x\n' >bad.jsonl
status 3 "no JSON" hv-face -q --image-size 64 --boxes bad.jsonl me.png -o x.st
: >bad.jsonl
status 3 "no boxes" hv-face -q --image-size 64 --boxes bad.jsonl me.png -o x.st
status 2 "two ways to name the face" hv-face -q --image-size 64 --boxes still.jsonl --box 1,1,2,2 me.png -o x.st

# ---- 12.5 frames a second ----

hv me.png s.wav -p x -o slow.mp4 -q --image-size 64 --face full --steps 2 --fps 12.5 --threads 1
seconds() { ffprobe -v error -select_streams "$2" -show_entries stream=duration -of csv=p=0 "$1"; }
frames=$(ffprobe -v error -select_streams v -count_packets -show_entries stream=nb_read_packets -of csv=p=0 slow.mp4)
rate=$(ffprobe -v error -select_streams v -show_entries stream=r_frame_rate -of csv=p=0 slow.mp4)
[ "$rate" = 25/2 ] && awk -v n="$frames" -v s="$(seconds s.wav a)" 'BEGIN { exit !(n == int(s * 12.5)) }'
ok $? "12.5 frames a second: $frames frames for $(seconds s.wav a) s of sound"
done_testing
