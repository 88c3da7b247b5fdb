#!/bin/sh
# hv-denoise put aside and taken up again: after every step, after kills and signals, with every cache; states that do not fit, that
# are damaged, that cannot be written, that another process has. KILLS: how many random kills a case (2; tests/bench/resume.sh: 50),
# DEVICE: where, PARTS: which of "steps kills rest" (all).
set -u
. tests/tap.sh
: "${KILLS:=2}" "${DEVICE:=cpu}" "${PARTS:=steps kills rest}"
HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cp "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
hv-text -q --image-size 64 -p x me.png -o text.st && hv-text -q --image-size 64 -p y me.png -o text2.st &&
    hv-audio -q --max-frames 150 "$root/examples/speech-long.flac" -o long.st &&
    hv-audio -q --max-frames 20 s.wav -o audio.st &&
    hv-face -q --image-size 64 --face full me.png -o face.st && hv-encode -q --image-size 64 me.png -o ref.st
ok $? "stage files"
short='text.st audio.st face.st ref.st'
sliding='text.st long.st face.st ref.st'
run() { hv-denoise -q --device "$DEVICE" --threads 1 "$@"; }
beside() { exec hv-denoise -q --device "$DEVICE" --threads 1 "$@"; }      # "beside .. &": $! is the program itself
now() { date +%s%N; }

# ---- every step, every cache ----

case_of() { # name of the clip, operands, options
    what=$1 files=$2
    shift 2
    steps=$1
    shift
    # shellcheck disable=SC2086
    run --steps "$steps" "$@" $files -o whole.st 2>err || { sed 's/^/# /' err; ok 1 "$what: $*"; return; }
    bad=0
    k=1
    while [ $k -lt "$steps" ]; do
        rm -f part.st out.st
        # shellcheck disable=SC2086
        run --steps "$steps" "$@" $files -o out.st --state part.st --stop-after $k 2>err || bad=$k
        [ -e out.st ] && bad="$k, which wrote latents"
        # shellcheck disable=SC2086
        run --steps "$steps" "$@" $files -o out.st --state part.st --resume 2>>err && cmp -s whole.st out.st || bad=$k
        k=$((k + 1))
    done
    [ "$bad" = 0 ] || { echo "# stopped after step $bad"; sed 's/^/# /' err; }
    [ "$bad" = 0 ]
    ok $? "$what, ${*:-no options}: stopped after every step, resumed, the same bytes"
}

each_step() {
    case_of 'one window' "$short" 8 --cache none
    case_of 'one window' "$short" 8 --cache 0-2,5
    case_of 'one window' "$short" 12 --cache scaled --carry reference
    case_of 'one window' "$short" 6 --cache 0-2 --guidance 1
    case_of 'two windows' "$sliding" 8 --cache 0-2,5
    case_of 'two windows' "$sliding" 12 --cache 0-10
    case_of 'windows that overlap' "$sliding" 6 --cache 0-2 --overlap 6
    case_of 'one window' "$short" 10 --cache tea:0.3
    case_of 'two windows' "$sliding" 10 --cache tea:0.3
    case_of 'two windows' "$sliding" 10 --cache mag:2
    case_of 'one window' "$short" 5 --cache 0,2 --chunk-rows 100,70
}

# ---- killed at random moments ----

# until_done WHAT FILES OPTIONS: kills it again and again, until KILLS runs were killed; a run that ends before is compared, and
# another one begins
killed() {
    what=$1 files=$2
    shift 2
    # shellcheck disable=SC2086
    run "$@" $files -o whole.st 2>err || { ok 1 "$what: $*"; return; }
    from=$(now)
    rm -f kill.st out.st
    # shellcheck disable=SC2086
    run "$@" $files -o out.st --state kill.st 2>err
    took=$((($(now) - from) / 1000))            # us
    rm -f kill.st out.st
    kills=0 whole=0 bad=0 tries=0
    while { [ $kills -lt "$KILLS" ] || [ ! -e out.st ]; } && [ $tries -lt $((20 * KILLS + 20)) ]; do
        tries=$((tries + 1))
        # shellcheck disable=SC2086
        beside "$@" $files -o out.st --state kill.st --resume 2>err &
        pid=$!
        if [ $kills -lt "$KILLS" ]; then
            sleep "$(awk -v t=$took -v s="$(now)" 'BEGIN { srand(s % 2147483647); printf "%.4f", rand() * t * 0.7e-6 }')"
            kill -9 $pid 2>/dev/null
        fi
        wait $pid 2>/dev/null
        status=$?
        [ $status = 137 ] && kills=$((kills + 1))
        if [ -e out.st ]; then                  # killed or not: its latents were there
            cmp -s whole.st out.st || bad=$((bad + 1))
            whole=$((whole + 1))
            [ $kills -lt "$KILLS" ] && rm -f out.st kill.st
        elif [ $status != 137 ]; then
            bad=$((bad + 1))
            sed 's/^/# /' err
        fi
    done
    [ $bad = 0 ] && [ $kills = "$KILLS" ] && [ $whole -gt 0 ] && cmp -s whole.st out.st
    ok $? "$what, $*: $kills kills, $whole finished, $bad of them other bytes"
    hv-decode -q whole.st -o whole.rgb && hv-decode -q out.st -o out.rgb && [ -s out.rgb ] && cmp -s whole.rgb out.rgb
    ok $? "the frames too: $(wc -c <out.rgb) bytes"
    [ -z "$(find . -name '.kill.*' -o -name '.out.*' | grep -v '^./.out')" ]
    ok $? "what killed processes left of the state is gone"
}

each_kill() {
    killed 'one window' "$short" --steps 40 --cache none
    killed 'one window' "$short" --steps 40 --cache scaled
    killed 'one window' "$short" --steps 30 --cache mag
    killed 'two windows' "$sliding" --steps 15 --cache none
    killed 'two windows' "$sliding" --steps 20 --cache 0-8,12
    killed 'one window' "$short" --steps 30 --cache tea:0.3
    killed 'two windows' "$sliding" --steps 20 --cache tea:0.3
    killed 'two windows' "$sliding" --steps 20 --cache mag
}

wanted() { case " $PARTS " in *" $1 "*) ;; *) return 1 ;; esac; }
wanted steps && each_step
wanted kills && each_kill
wanted rest || { done_testing; exit; }

# ---- signals ----

wait_for_step() {   # until the state is there
    tries=0
    while [ ! -e "$1" ] && kill -0 "$2" 2>/dev/null && [ $tries -lt 3000 ]; do
        tries=$((tries + 1))
        sleep 0.01
    done
}

# shellcheck disable=SC2086
run --steps 60 --cache 0-10,40 $sliding -o whole.st 2>err
for sig in INT TERM HUP; do
    rm -f sig.st out.st
    # the background jobs of a shell ignore INT
    # shellcheck disable=SC2086
    perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' hv-denoise --device "$DEVICE" --threads 1 --progress none --steps 60 --cache 0-10,40 \
        $sliding -o out.st --state sig.st 2>err &
    pid=$!
    wait_for_step sig.st $pid
    from=$(now)
    kill -$sig $pid
    wait $pid
    status=$?
    took=$((($(now) - from) / 1000000))
    case $sig$status in INT130 | TERM143 | HUP129) true ;; *) false ;; esac && [ $took -lt 2000 ] && [ ! -e out.st ] && grep -q 'sig.st holds step' err && [ ! -e sig.st.lock ]
    ok $? "SIG$sig: status $status after $took ms: $(tail -n 1 err)"
    # shellcheck disable=SC2086
    run --steps 60 --cache 0-10,40 $sliding -o out.st --state sig.st --resume 2>err
    same out.st whole.st "and it goes on to the same bytes"
done
rm -f sig.st out.st
# shellcheck disable=SC2086
beside --steps 60 --cache 0-10,40 $sliding -o out.st --state sig.st --state-every 1000 2>err &
pid=$!
wait_for_step sig.st $pid           # the first step is written at once, the others are not
tries=0
until grep -q 'step [2-9] of 60 is done\|step [1-9][0-9] of 60 is done' err || [ $tries -gt 100 ]; do
    kill -USR1 $pid 2>/dev/null
    sleep 0.1
    tries=$((tries + 1))
done
kill -TERM $pid
wait $pid
[ $? = 143 ] && grep -q 'of 60 is done, .* s each' err && [ "$(hv-tensor list sig.st | sed -n 's/^# hv.step: //p')" -gt 1 ]
ok $? "with --state-every the last finished step is written when the signal comes; SIGUSR1: $(grep 'is done' err | tail -n 1)"
# shellcheck disable=SC2086
beside --steps 60 --cache 0-10,40 $sliding -o out.st 2>err &
pid=$!
sleep 0.1
kill -USR1 $pid
wait $pid && grep -q 'step' err && cmp -s out.st whole.st
ok $? "SIGUSR1 without a state: $(head -n 1 err)"

# ---- states that do not fit ----

opts='--steps 6 --cache 0-2,4'
# shellcheck disable=SC2086
run $opts $short --state s.st --stop-after 4 && run $opts $short -o whole.st
ok $? "a state"
refused() { # what, word, command
    what=$1 word=$2
    shift 2
    "$@" >out 2>err
    [ $? = 3 ] && grep -q -- "$word" err && [ "$(wc -l <err)" = 1 ] && cmp -s s.st kept.st && [ ! -e x.st ]
    ok $? "$what: $(cut -c 1-110 err)"
}
cp s.st kept.st
set -- --state s.st --resume -o x.st
# shellcheck disable=SC2086
{
    refused 'another seed' 'seed was 128, is 5' run $opts --seed 5 $short "$@"
    refused 'other steps and shift' 'steps was 6, is 7.*shift' run --steps 7 --cache 0-2,4 --shift 4 $short "$@"
    refused 'another cache' 'cache was 0-2,4, is none' run --steps 6 --cache none $short "$@"
    refused 'another overlap' 'overlap' run $opts --overlap 6 $short "$@"
    refused 'another guidance' 'guidance' run $opts --guidance 7.50000000000001 $short "$@"
    refused 'another sound' 'audio.features is another' run $opts text.st long.st face.st ref.st "$@"
    refused 'another prompt' 'text.states is another' run $opts text2.st audio.st face.st ref.st "$@"
    refused 'other groups' 'plan was group' run $opts --chunk-rows 100,70 $short "$@"
}
hv-weights synth "$root/examples/model-tiny" 2 other -q
# shellcheck disable=SC2086
refused 'another model' 'model was' run $opts --model other $short "$@"
hv-face -q --image-size 128 --face full me.png -o face128.st && hv-encode -q --image-size 128 me.png -o ref128.st &&
    hv-text -q --image-size 128 -p x me.png -o text128.st
# shellcheck disable=SC2086
refused 'another size' 'width was' run $opts text128.st audio.st face128.st ref128.st "$@"
# Another program made it: its own digest is right.
perl -MDigest::SHA=sha256_hex -e '
    binmode STDIN; binmode STDOUT; local $/; my $f = <STDIN>; my $n = unpack("Q<", $f); my $h = substr($f, 8, $n);
    $h =~ s/("hv.program":")[^"]*/${1}9.9.9/; my ($m) = $h =~ /"__metadata__":\{([^}]*)\}/; my $text = "";
    while ($m =~ /"([^"]*)":"([^"]*)"/g) { $text .= "$1=$2\n" unless $1 eq "hv.seal" || $1 eq "hv.sha256" }
    my $d = sha256_hex($text); $h =~ s/("hv.seal":")[^"]*/$1$d/;
    print pack("Q<", length $h), $h, substr($f, 8 + $n)' <kept.st >s.st
cp s.st kept.st
# shellcheck disable=SC2086
refused 'another version' 'program was 9.9.9, is ' run $opts $short "$@"
cp text.st s.st && cp s.st kept.st
# shellcheck disable=SC2086
refused 'no state at all' 'not a state' run $opts $short "$@"

# ---- damaged ones ----

# shellcheck disable=SC2086
run $opts $short --state good.st --stop-after 4 2>err
size=$(wc -c <good.st)
bad=0
for cut in 0 7 100 1000 $((size / 2)) $((size - 1)); do
    head -c "$cut" good.st >s.st
    # shellcheck disable=SC2086
    run $opts $short "$@" >out 2>err
    [ $? = 3 ] && [ ! -e x.st ] || { bad=1; echo "# cut to $cut: $(cat err)"; }
done
ok $bad "cut states are refused"
bad=0 refusals=0 i=0
while [ $i -lt 24 ]; do
    at=$((i < 4 ? i : i < 14 ? i * 113 : (i - 14) * size / 10 + 11))
    cp good.st s.st
    old=$(dd if=good.st bs=1 skip=$at count=1 2>/dev/null | od -An -tu1 | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((old ^ 1)))" | dd of=s.st bs=1 seek=$at conv=notrunc 2>/dev/null
    # shellcheck disable=SC2086
    run $opts $short "$@" >out 2>err
    status=$?
    if [ $status = 3 ]; then
        refusals=$((refusals + 1))
    elif [ $status != 0 ] || ! cmp -s x.st whole.st; then
        bad=1
        echo "# byte $at: status $status, $(cat err)"
    fi
    rm -f x.st
    i=$((i + 1))
done
[ $bad = 0 ] && [ $refusals -ge 20 ]
ok $? "flipped bits: $refusals of 24 refused, the others are blanks of the header"

# ---- where it cannot be written ----

# shellcheck disable=SC2086
status 4 "a folder that is not there" run $opts $short --state nowhere/s.st -o x.st
mkdir -p folder
# shellcheck disable=SC2086
status 4 "a folder" run $opts $short --state folder -o x.st
# A file may not grow over 20 KiB: states with caches do not fit, those without do, and the latents go to a pipe.
# shellcheck disable=SC2086
run $opts --guidance 1 $short >whole1.st 2>err
limit=$((($(wc -c <whole1.st) + 8192) / 512))
rm -f full.st
# shellcheck disable=SC2086
(trap '' XFSZ; ulimit -f $limit; run --steps 6 --cache 0-2 --guidance 1 $short --state full.st 2>err | cat >/dev/null)
# shellcheck disable=SC2086
run --steps 6 --cache 0-2 --guidance 1 $short >whole1.st
# shellcheck disable=SC2086
(trap '' XFSZ; ulimit -f $limit; run --steps 6 --cache 0-2 --guidance 1 $short -o out1.st --state full.st 2>err; echo $? >status)
[ "$(cat status)" = 0 ] && cmp -s out1.st whole1.st && grep -q 'the render goes on, full.st holds step 2' err &&
    grep -c 'the render goes on' err | grep -q '^3$' && [ -z "$(find . -name '.full.*')" ]
ok $? "a full disk: the render goes on, and says so: $(head -n 1 err)"
# shellcheck disable=SC2086
(trap '' XFSZ; ulimit -f $limit; run --steps 6 --cache 0-2 --guidance 1 $short --state full.st --stop-after 4 2>err; echo $? >status)
[ "$(cat status)" = 4 ] && grep -q 'could not be written' err
ok $? "but to stop there it is a failure"

# ---- two processes ----

rm -f two.st out.st
# shellcheck disable=SC2086
beside --steps 60 --cache none $sliding -o out.st --state two.st 2>err1 &
pid=$!
wait_for_step two.st $pid
# shellcheck disable=SC2086
run --steps 60 --cache none $sliding -o x.st --state two.st --resume >out 2>err
[ $? = 4 ] && grep -q "process $pid is at work on this state" err && [ ! -e x.st ]
ok $? "the second process refuses: $(cat err)"
kill -9 $pid
wait $pid 2>/dev/null
# shellcheck disable=SC2086
run --steps 60 --cache none $sliding -o out.st --state two.st --resume --stop-after 10 2>err
ok $? "a killed process holds nothing"
[ ! -e two.st.lock ]
ok $? "the lock file is gone"

# ---- the rest ----

# shellcheck disable=SC2086
run --steps 3 $short --state end.st -o out.st && rm out.st && run --steps 3 $short --state end.st --resume -o out2.st &&
    run --steps 3 $short -o whole.st && cmp -s out2.st whole.st
ok $? "a finished state gives its latents again"
hv-tensor check good.st >out 2>err && grep -q 'state.st: complete: hv-denoise --resume takes it' out
ok $? "hv-tensor check knows a state"
# shellcheck disable=SC2086
{
    status 2 "--resume without a state" run --steps 3 $short --resume -o x.st
    status 2 "--stop-after without a state" run --steps 3 $short --stop-after 2 -o x.st
    status 2 "a state on standard output" run --steps 3 $short --state - -o x.st
}
hv-denoise --plan --size 64x64 --state x.st | grep -q '^state  *U8'
ok $? "the plan counts the copy"
done_testing
