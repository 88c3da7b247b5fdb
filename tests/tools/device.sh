#!/bin/sh
# What surrounds a device: names that are none, its lock, signals in the middle of a step or of a write, files cut while
# they are read, which stages hv sends to it. What needs the absence of a GPU is skipped where there is one.
set -u
. tests/tap.sh
: "${BUILD:=build}"
hold=$(cd "$BUILD" && pwd)/tests/unit/test_lock

skip() { n=$((n + 1)); echo "ok $n - $1 # skip $2"; }

HV_MODEL=$dir/model
TMPDIR=$dir/tmp
HV_LOCK=$dir/locks
export HV_MODEL TMPDIR HV_LOCK
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cp "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
mkdir tmp locks made
hv-text -q --image-size 64 -p x me.png -o text.st && hv-audio -q --max-frames 9 s.wav -o audio.st &&
    hv-face -q --image-size 64 --face full me.png -o face.st && hv-encode -q --image-size 64 me.png -o ref.st &&
    hv-denoise -q --steps 1 text.st audio.st face.st ref.st -o latent.st
ok $? "stage files"
all='text.st audio.st face.st ref.st'

# ---- names of devices ----

for tool in hv-text hv-audio hv-face hv-encode hv-denoise hv-decode; do
    case $tool in
        hv-text) args='-p x --image-size 64 me.png' ;;
        hv-audio) args='--max-frames 9 s.wav' ;;
        hv-face) args='--face largest --image-size 64 me.png' ;;
        hv-encode) args='--image-size 64 me.png' ;;
        hv-denoise) args="--steps 1 $all" ;;
        hv-decode) args='latent.st' ;;
    esac
    # shellcheck disable=SC2086
    status 6 "$tool --device cuda:9" $tool -q --device cuda:9 $args -o made/x.st
    [ "$(wc -l <err)" = 1 ] && grep -q "^$tool: .*cuda" err
    ok $? "one line that says why: $(cat err)"
    if [ -e /dev/nvidiactl ]; then
        skip "$tool --device cuda without a GPU" "there is one"
    else
        # shellcheck disable=SC2086
        $tool -q --device cuda $args -o made/x.st 2>err
        [ $? = 6 ] && [ "$(wc -l <err)" = 1 ] && grep -q "^$tool: .*cuda" err
        ok $? "$tool --device cuda without a GPU"
    fi
done
for name in cuda:x cuda: cuda:-1 cuda:64 cuda:1x cpu:0 gpu ''; do
    # shellcheck disable=SC2086
    status 2 "--device '$name'" hv-denoise -q --device "$name" --steps 1 $all -o made/x.st
done
[ -z "$(ls -A made)" ]
ok $? "none of these left an output"

# ---- which stages hv sends to it ----

hv -n me.png s.wav -p x -o o.mp4 --device cuda:1 >cmds
[ "$(grep -c -- '--device cuda:1' cmds)" = 4 ] && ! grep -E '^hv-(audio|face) ' cmds | grep -q -- --device
ok $? "hv --device goes to text, encode, denoise and decode"
hv -n me.png s.wav -p x -o o.mp4 --device=cuda --audio.device=cuda:2 --face.device=cuda:3 --decode.device=cpu >cmds
grep -q '^hv-audio .*--device=cuda:2' cmds && grep -q '^hv-face .*--device=cuda:3' cmds &&
    grep -q '^hv-decode .*--device cuda --device=cpu' cmds
ok $? "and a stage's own option wins"

# ---- the lock ----

until_has() {   # text, file, process that should write it
    tries=0
    while ! grep -q -- "$1" "$2" && kill -0 "$3" 2>/dev/null && [ $tries -lt 3000 ]; do
        tries=$((tries + 1))
        sleep 0.02
    done
}

if [ -x "$hold" ]; then
    "$hold" hold gpu-7 60 >a.out 2>a.err &
    a=$!
    until_has held a.out $a
    "$hold" hold gpu-7 0 >b.out 2>b.err &
    b=$!
    until_has waiting b.err $b
    [ "$(cat b.err)" = "test_lock: waiting for gpu-7, held by process $a" ] && [ ! -s b.out ]
    ok $? "one that waits says for what and for whom: $(cat b.err)"
    "$hold" hold gpu-8 0 >c.out 2>c.err && grep -q held c.out && [ ! -s c.err ]
    ok $? "another device is free"
    HV_LOCK=0 "$hold" hold gpu-7 0 >c.out 2>c.err && grep -q held c.out && [ ! -s c.err ]
    ok $? "HV_LOCK=0 does not wait"
    kill -KILL $a
    wait $b
    got=$?
    [ $got = 0 ] && grep -q held b.out && [ "$(wc -l <b.err)" = 1 ]
    ok $? "the next one goes on when the holder was killed"
    wait $a 2>/dev/null
else
    skip "the lock" "$hold was not built"
fi

# ---- signals ----

# A shell starts what runs beside it with SIGINT ignored; only env can undo that.
reset='env --default-signal=INT,HUP'
$reset true 2>/dev/null || reset=''

signal_ends() { # signal, number
    : >err
    # shellcheck disable=SC2086
    $reset hv-denoise --progress plain --steps 1000 --cache none $all -o made/x.st 2>err &
    pid=$!
    until_has 'step [0-9]* of 1000' err $pid
    kill -"$1" $pid
    wait $pid 2>/dev/null
    got=$?
    [ $got = $((128 + $2)) ] && [ -z "$(ls -A made)" ] && ! grep -qv ' left$' err
        ok $? "SIG$1 in the middle of a step: status $got, nothing left, nothing said"
}
signal_ends TERM 15
if [ -n "$reset" ]; then
    signal_ends INT 2
    signal_ends HUP 1
else
    skip "SIGINT in the middle of a step" "env has no --default-signal"
fi

# Twenty gigabytes: whenever the signal comes, it comes while they are written.
sed 's/"hidden_size": 128/"hidden_size": 3072/; s/"num_heads": 1/"num_heads": 24/; s/_blocks": 2/_blocks": 40/' \
    "$root/examples/model-tiny/transformer/config.json" >big.json
hv-weights synth -q big.json 1 made/big.safetensors 2>err &
pid=$!
# What is written has no name until it is whole, or a hidden one: the process says that it is at it.
written() { awk '/^wchar/ { print $2 }' "/proc/$1/io" 2>/dev/null || echo 0; }
tries=0
while [ "$(written $pid)" -lt 1000000 ] && [ $tries -lt 3000 ]; do
    tries=$((tries + 1))
    sleep 0.02
done
[ "$(written $pid)" -ge 1000000 ] && [ ! -e made/big.safetensors ]
ok $? "the output is written aside"
kill -TERM $pid
wait $pid 2>/dev/null
got=$?
[ $got = 143 ] && [ -z "$(ls -A made)" ]
ok $? "SIGTERM in the middle of a write: status $got, nothing left"

: >err
hv --progress plain me.png s.wav -p x -o made/x.y4m --image-size 64 --face full --max-frames 9 --steps 1000 \
    --denoise.cache=none 2>err &
pid=$!
until_has 'hv-denoise: step' err $pid
kill -TERM $pid
wait $pid 2>/dev/null
got=$?
[ $got = 143 ] && [ -z "$(ls -A made)$(ls -A tmp)" ]
ok $? "SIGTERM to hv itself: status $got, nothing left"
! grep -lqs "$dir/tmp" /proc/[0-9]*/cmdline
ok $? "and the stage is gone"

# ---- a file cut under our feet ----

weights=$HV_MODEL/transformer/model.safetensors
: >err
# shellcheck disable=SC2086
hv-denoise --progress plain --steps 1000 --cache none $all -o made/x.st 2>err &
pid=$!
until_has 'step [0-9]* of 1000' err $pid
truncate -s 65536 "$weights"
wait $pid
got=$?
[ $got = 4 ] && [ -z "$(ls -A made)" ] && [ "$(grep -vc ' left$' err)" = 1 ] &&
    tail -n 1 err | grep -q "^hv-denoise: $weights: .*cut short"
ok $? "weights cut while all threads read them: status $got, $(tail -n 1 err | sed "s,$dir/,,")"
done_testing
