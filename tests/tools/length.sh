#!/bin/sh
# A long sound: planned, started, stopped, resumed and decoded. Memory grows by what the plan names, and hv-decode's not at all.
# LENGTH: its seconds (75; tests/bench/length.sh: 300), a multiple of 5.
set -u
. tests/tap.sh
: "${LENGTH:=75}"
HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cd "$dir" || exit 1
ffmpeg -v error -stream_loop -1 -i "$root/examples/speech.wav" -t "$LENGTH" five.wav && ffmpeg -v error -i five.wav -t $((LENGTH / 5)) one.wav
hv-text -q --image-size 64 -p x me.png -o text.st && hv-face -q --image-size 64 --face full me.png -o face.st && hv-encode -q --image-size 64 me.png -o ref.st &&
    hv-audio -q --threads 1 five.wav -o five.st && hv-audio -q --threads 1 one.wav -o one.st
ok $? "stage files: $(hv-tensor list five.st | grep audio.features | tr -s ' ')"
files='text.st face.st ref.st'
run() { hv-denoise --progress none --threads 1 --steps 2 --guidance 1 --cache 0 "$@"; }
peak() { sed -n 's/.*took .* s, \([0-9.]*\) MiB at its peak/\1/p' "$1"; }
size() { echo $(($(wc -c <"$1") / 1024)); }         # KiB
planned() { run --plan=json "$@" | tr ',' '\n' | sed -n 's/.*"peak_bytes": *\([0-9]*\).*/\1/p' | awk '{ sum += $1 } END { print sum / 1024 }'; }

# shellcheck disable=SC2086
{
    run --plan $files five.st >plan 2>err && grep -q "$((LENGTH * 25)) frames; windows of 33 latent frames: $(((((LENGTH * 25 + 5) / 128 + 1) * 32 + 33) / 33))$" plan
    ok $? "planned: $(grep windows plan)"
    run $files five.st --state s.st --stop-after 1 2>err && [ ! -e out.st ]
    ok $? "started, and stopped after a step"
    run -v $files five.st --state s.st --resume -o out.st 2>err && grep -q 'goes on after step 1 of 2' err
    ok $? "resumed"
    run -v $files five.st -o whole.st 2>err5 && run -v $files one.st -o short.st 2>err1 && cmp -s out.st whole.st
    ok $? "the bytes of an unbroken run"
    a=$(planned $files one.st) b=$(planned $files five.st)
}
grown=$(awk -v a="$(peak err1)" -v b="$(peak err5)" 'BEGIN { print 1024 * (b - a) }')
named=$(awk -v a="$a" -v b="$b" -v sound=$(($(size five.st) - $(size one.st))) -v out=$(($(size whole.st) - $(size short.st))) 'BEGIN { print b - a + sound + out }')
awk -v g="$grown" -v n="$named" 'BEGIN { exit !(n > 0 && g <= n + 2048) }'
ok $? "five times as long, and hv-denoise grows by $grown KiB; plan, mapped sound and result by $named"

hv-decode -v --threads 1 --progress none short.st -o short.y4m 2>err1 && hv-decode -v --threads 1 --progress none out.st -o out.y4m 2>err5
ok $? "decoded: $(size out.y4m) KiB"
[ "$(ffprobe -v error -count_packets -show_entries stream=nb_read_packets -of csv=p=0 out.y4m)" = $((LENGTH * 25)) ]
ok $? "$((LENGTH * 25)) frames"
# The latents are a mapped file, which the system may drop at any time: what is left is the program's own.
grown=$(awk -v a="$(peak err1)" -v b="$(peak err5)" -v file=$(($(size whole.st) - $(size short.st))) 'BEGIN { print 1024 * (b - a) - file }')
awk -v g="$grown" 'BEGIN { exit !(g < 1024) }'
ok $? "five times as long, and hv-decode takes $grown KiB more of its own: $(peak err5) MiB in all"

# ---- how long it will take ----

mkdir cache
HV_CACHE=$dir/cache
export HV_CACHE
hv-denoise --plan --size 64x64 | grep -q measured
[ $? = 1 ] && hv-denoise -q --bench --size 64x64 --text-rows 100 --repeat 1 --threads 1 >bench && [ "$(wc -l <cache/rates.jsonl)" = 1 ]
ok $? "--bench is kept: $(cut -c 1-120 cache/rates.jsonl)"
hv-denoise --plan --size 64x64 --frames 7500 | grep -q measured
[ $? = 1 ]
ok $? "not for all threads"
hv-denoise --plan --size 64x64 --frames 7500 --threads 1 >plan && grep -q '^measured: at the rate of --bench on cpu, .* in all' plan
ok $? "$(grep '^measured' plan)"
# rates of another size of the model: the same work at the same speed
seconds=$(sed -n 's/^full forward *\([0-9.]*\) s.*/\1/p' bench)
hv-denoise --plan=json --size 64x64 --text-rows 100 --threads 1 | tr ',' '\n' | sed -n 's/.*"measured_seconds": //p' >said
awk -v a="$seconds" -v b="$(cat said)" 'BEGIN { exit !(a > 0 && b > 0.97 * a && b < 1.03 * a) }'
ok $? "a forward of $seconds s is planned as $(cat said) s"
echo nonsense >cache/rates.jsonl
hv-denoise --plan --size 64x64 >plan
[ $? = 0 ] && ! grep -q measured plan
ok $? "a damaged file is no reason to fail"
HV_CACHE=/proc/none hv-denoise -q --bench --size 64x64 --text-rows 100 --repeat 1 --threads 1 >bench
ok $? "nor is a folder that cannot be written"
done_testing
