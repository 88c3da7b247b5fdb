#!/bin/sh
# hv-denoise --cache tea and mag: their decisions against a plain rendering in Python, what must not change them, bad values.
set -u
. tests/tap.sh
HV_MODEL=$dir/model
export HV_MODEL
skip() { n=$((n + 1)); echo "ok $n - $1 # skip $2"; }
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cp "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
hv-text -q --image-size 64 -p x me.png -o text.st && ffmpeg -v error -stream_loop 1 -i s.wav long.wav &&
    hv-audio -q --max-frames 20 s.wav -o audio.st && hv-audio -q --max-frames 150 long.wav -o long.st &&
    hv-face -q --image-size 64 --face full me.png -o face.st && hv-encode -q --image-size 64 me.png -o ref.st
ok $? "stage files"
run() { hv-denoise -q --threads 1 text.st face.st ref.st "$@"; }
log() { hv-tensor list "$1" | sed -n 's/^# hv.cache_log: //p'; }
rules() { python3 "$root/tests/tools/cache_rules.py" "$@"; }

if command -v python3 >/dev/null; then
    for case in '20 tea:0.3 audio.st' '24 tea:0.25 long.st' '7 tea audio.st' '2 tea:0.2 audio.st' '1 tea audio.st'; do
        # shellcheck disable=SC2086
        set -- $case
        run --steps "$1" --cache "$2" "$3" -o tea.st 2>err && said=$(rules tea tea.st 2>err)
        ok $? "--cache $2, $1 steps, $3: the decisions of the rule: ${said:-}"
    done
    bad=0 tried=0
    for steps in 1 2 3 4 7 10 18 30 49 50 51 60 100; do
        for speedup in 1 1.3 1.5 2 2.5 4; do
            for size in 704x768 1280x720; do
                pixels=$((${size%x*} * ${size#*x}))
                hv-denoise --plan --size $size --steps $steps --cache mag:$speedup 2>err |
                    sed -n 's/^steps with all blocks: \(.*\); threshold.*/\1/p' >steps
                [ "$(cat steps)" = "$(rules mag $steps $speedup $pixels)" ] || { bad=1; echo "# $steps steps, $speedup, $size: $(cat steps)"; }
                tried=$((tried + 1))
            done
        done
    done
    ok $bad "mag: the steps of the rule in $tried cases"
    run --steps 20 --cache mag:2 audio.st -o mag.st 2>err && [ "$(log mag.st | sed 's/all blocks \(.*\);.*/\1/')" = "$(rules mag 20 2 4096)" ]
    ok $? "and a run that follows it: $(log mag.st)"
else
    skip "decisions against the rule" "no python3"
fi
run --steps 20 --cache tea:0.3 long.st -o tea.st 2>err && log tea.st | grep -q none
ok $? "tea skips steps"
run --steps 20 --cache tea:0 long.st -o a.st 2>err && run --steps 20 --cache none long.st -o b.st && hv-tensor diff a.st b.st >out &&
    ! hv-tensor diff tea.st b.st >out 2>&1
ok $? "a threshold of 0 skips none: the latents of --cache none"
run --steps 20 --cache mag:1 long.st -o a.st 2>err && run --steps 20 --cache mag long.st -o c.st && ! hv-tensor diff a.st c.st >out 2>&1 &&
    [ "$(log a.st)" != "$(log c.st)" ] && log c.st | grep -q '^all blocks 0-5,8,'
ok $? "mag:1 and mag:2 skip other steps"
run --steps 20 --cache tea:0.3 --threads 3 long.st -o a.st 2>err
same a.st tea.st "the same bytes with more threads"
run --steps 20 --cache tea:0.3 --guidance 1 long.st -o a.st 2>err && log a.st | grep -q none
ok $? "tea with one branch"
hv-denoise -v --progress none --steps 20 --cache tea:0.3 text.st face.st ref.st long.st -o a.st 2>err
[ "$(grep -c 'window [01]: \(none\|all blocks\)' err)" = 40 ]
ok $? "-v tells every decision: $(grep none err | head -n 1)"
for cache in tea: tea:x tea:-1 tea:nan mag:0.5 mag:1x teapot; do
    status 2 "--cache $cache" run --cache $cache audio.st -o x.st
done
done_testing
