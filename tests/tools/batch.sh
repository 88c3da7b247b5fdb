#!/bin/sh
# examples/batch.mk: a CSV of videos through make. Stages that rows share are made once; killed at random moments it ends with the
# bytes of a run that was not; faults of the table; devices; GNU parallel and Slurm where they are there.
# ROWS: of the killed table (8), KILLS: how often (4). tests/bench/batch.sh: 20 and 20.
set -u
. tests/tap.sh
unset MAKEFLAGS MFLAGS MAKELEVEL
: "${ROWS:=8}" "${KILLS:=4}"

HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cd "$dir" || exit 1
cp "$root/examples/portrait.png" "a face.png"
ffmpeg -nostdin -v error -t 0.3 -i "$root/examples/speech.wav" one.wav
cp one.wav two.wav
flags='--image-size 64 --face full --steps 2 -q --threads 1'
batch() { make -s -f "$root/examples/batch.mk" CSV=rows.csv OUT=v HVFLAGS="$flags" "$@"; }
now() { date +%s%N; }
value() { sed -n "s/.*\"row\":\"$1\".*\"$2\":\"\{0,1\}\([^,\"}]*\).*/\1/p" v/rows.jsonl | tail -n 1; }      # id, key
made() { grep -c "\"stage\":\"$2\"" "$1/stages.jsonl"; }

# ---- a table ----

printf '\357\273\277prompt,videoid,image,audio,fps,options\r\n"says ""hi"", it'"'"'s $HOME `x` #1",first,a face.png,one.wav,25,\n"two\nlines",second,a face.png,two.wav,,--steps 3 --decode.crf="20"\n' >rows.csv
batch >log 2>&1
ok $? "two rows become two videos"
[ -s v/first.mp4 ] && [ -s v/second.mp4 ]
ok $? "named by videoid"
# shellcheck disable=SC2016
hv "a face.png" one.wav -p 'says "hi", it'"'"'s $HOME `x` #1' $flags -o alone.mp4 && same alone.mp4 v/first.mp4 "the bytes of hv alone"
hv "a face.png" two.wav -p 'two
lines' $flags --steps 3 --crf 20 -o alone.mp4 && same alone.mp4 v/second.mp4 "with the options of the row"
[ "$(made v text) $(made v audio) $(made v face) $(made v ref)" = "2 2 1 1" ]
ok $? "two texts, two sounds, but one face and one portrait"
[ "$(value first status) $(value second status)" = "0 0" ] && awk -F'"denoise":' 'NF != 3 || $2 !~ /^[0-9]/ || $3 <= 0 { exit 1 }' v/rows.jsonl
ok $? "a line of JSON a row: $(head -n 1 v/rows.jsonl | cut -c 1-120)"
hv-tensor list v/.batch/text-*.st >/dev/null && perl -MJSON::PP -ne 'decode_json($_)' v/rows.jsonl v/stages.jsonl
ok $? "and JSON it is"
batch -q
ok $? "a second make has nothing to do"
sed -i 's/^lines"/other"/' rows.csv
[ "$(batch -n | sed 's/.*row.sh //' | tr '\n' ' ' | sed 's/-[0-9a-fx]*//')" = "shared text row second " ]
ok $? "an edited row is made again, and no other"
batch >log 2>&1
touch two.wav
batch >log 2>&1
[ "$(made v audio) $(grep -c '"row":"second"' v/rows.jsonl) $(grep -c '"row":"first"' v/rows.jsonl)" = "3 3 1" ]
ok $? "so is the row whose sound is newer"
batch status >log
grep -q '^first .* done ' log && grep -q '^2 done, 0 running' log
ok $? "status: $(tail -n 1 log)"

# ---- killed ----

faces="$root/examples/portrait.png $(ls "$root"/examples/faces/*.png)"
echo videoid,image,audio,prompt,options >many.csv
i=0
for _ in $(seq "$ROWS"); do
    # shellcheck disable=SC2086
    set -- $faces
    shift $((i % 4))
    echo "row$i,$1,$([ $((i % 3)) = 0 ] && echo one || echo two).wav,prompt $((i / 4 % 2)),--seed $i --steps 40" >>many.csv
    i=$((i + 1))
done
many() { make -s -f "$root/examples/batch.mk" CSV=many.csv HVFLAGS="$flags --denoise.cache=0-30,35" "$@"; }
# Milliseconds of processor: other tests are at work beside this one.
cost() { perl -e 'open STDOUT, ">", "/dev/null"; my $rc = system(@ARGV); my @t = times; printf STDERR "%d %d\n", 1000 * ($t[2] + $t[3]), $rc >> 8' "$@" 2>cost; }
cost make -s -f "$root/examples/batch.mk" CSV=many.csv HVFLAGS="$flags --denoise.cache=0-30,35" OUT=clean ids
read -r took status <cost
from=$(now)
many OUT=clean -j2 >log 2>&1
status=$?
whole=$((($(now) - from) / 1000000))
[ $status = 0 ] && [ "$(ls clean/*.mp4 | wc -l)" = "$ROWS" ]
ok $? "$ROWS rows, 4 portraits, 2 prompts"
cost make -s -f "$root/examples/batch.mk" CSV=many.csv HVFLAGS="$flags --denoise.cache=0-30,35" OUT=clean -q
read -r more status <cost
took=$((took + more))
[ $status = 0 ] && [ $took -lt 2000 ]
ok $? "$whole ms; of these the rules, and a make with nothing to do, took $took of a processor"
[ "$(made clean ref) $(made clean face) $(made clean text)" = "4 4 8" ]
ok $? "4 portraits were encoded, and 8 texts"

gone=0 k=0
while [ $k -lt "$KILLS" ]; do
    # Every fourth time make alone, so that what it had started goes on beside the next one.
    setsid make -s -f "$root/examples/batch.mk" CSV=many.csv HVFLAGS="$flags --denoise.cache=0-30,35" OUT=killed -j2 >log 2>&1 &
    pid=$!
    sleep "$(awk -v t=$whole -v n="$KILLS" -v s="$(now)" 'BEGIN { srand(s % 2147483647); printf "%.3f", 0.1 + rand() * (t < 1500 * n ? t / n : 1500) * 1.5e-3 }')"
    if [ $((k % 4)) = 3 ]; then kill -9 $pid; else kill -9 -$pid; fi 2>/dev/null && gone=$((gone + 1))
    wait $pid 2>/dev/null
    [ "$(ls killed/*.mp4 2>/dev/null | wc -l)" != "$ROWS" ] || rm -f killed/*.mp4
    k=$((k + 1))
done
many OUT=killed -j2 >log 2>&1
status=$?
many OUT=killed >log2 2>&1          # what a row left that was killed after its video
bad=0
for f in clean/*.mp4; do cmp -s "$f" "killed/${f##*/}" || bad=$((bad + 1)); done
went=$(grep -c resumed_after killed/rows.jsonl)
[ $status = 0 ] && [ $gone = "$KILLS" ] && [ $bad = 0 ] || { sed 's/^/# /' log; false; }
ok $? "killed $gone times: $(ls killed/*.mp4 | wc -l) videos, $bad of them other bytes; $went went on from a state"
[ "$(sed 's/.*"file":"\([^"]*\)".*/\1/' killed/stages.jsonl | sort | uniq -d | wc -l)" = 0 ] && [ "$(made killed text)" -le 8 ]
ok $? "and nothing that was whole was encoded again: $(made killed ref) portraits, $(made killed text) texts"
[ -z "$(find killed -name '.row*' -o -name '*.state' -o -name '*.latent.st')" ]
ok $? "nothing is left of the killed ones $(find killed -name ".row*" -o -name "*.state" -o -name "*.latent.st" | tr "\n" " ")"

# A signal to make alone: the row's state is written, and the log says so.
rm -rf one
make -s -f "$root/examples/batch.mk" CSV=many.csv OUT=one HVFLAGS="$flags --denoise.cache=none --denoise.max-frames=200" one/row0.mp4 >log 2>&1 &
pid=$!
printf 'videoid,image,audio,prompt,options\nlong,a face.png,long.wav,x,--steps 400\n' >long.csv
ffmpeg -nostdin -v error -i "$root/examples/speech.wav" -t 1 long.wav
wait $pid
make -s -f "$root/examples/batch.mk" CSV=long.csv OUT=one HVFLAGS="$flags" >log 2>&1 &
pid=$!
tries=0
while [ ! -e one/.batch/long.state ] && [ $tries -lt 500 ]; do
    tries=$((tries + 1))
    sleep 0.02
done
kill -TERM $pid
wait $pid
make -s -f "$root/examples/batch.mk" CSV=long.csv OUT=one HVFLAGS="$flags" status >log
grep -q '"row":"long","status":143' one/rows.jsonl && grep -q '^long .*stopped .*[0-9] of 400' log && ! pgrep -f "$dir/one" >/dev/null
ok $? "SIGTERM: $(grep '^long' log | tr -s ' ')"
sed -i 's/400/5/' long.csv
make -s -f "$root/examples/batch.mk" CSV=long.csv OUT=one HVFLAGS="$flags" >log 2>&1 && grep -q 'starting anew' log && [ -s one/long.mp4 ]
ok $? "the state of a row that was edited since is not taken"

# make alone is killed: what it had started goes on, and the next make waits for it instead of doing the same again.
rm -rf one
printf 'videoid,image,audio,prompt,options\nlong,a face.png,one.wav,x,--steps 60\n' >long.csv
make -s -f "$root/examples/batch.mk" CSV=long.csv OUT=one HVFLAGS="$flags" >log 2>&1 &
pid=$!
tries=0
while [ ! -e one/.batch/long.state ] && [ $tries -lt 500 ]; do
    tries=$((tries + 1))
    sleep 0.02
done
kill -9 $pid
wait $pid 2>/dev/null
make -s -f "$root/examples/batch.mk" CSV=long.csv OUT=one HVFLAGS="$flags" >log 2>&1 && [ -s one/long.mp4 ] && [ "$(grep -c '"row":"long"' one/rows.jsonl)" = 1 ] && ! grep -q resumed one/rows.jsonl
ok $? "what outlives its make is waited for, and is not made twice"

# ---- devices: programs that write down when they began and ended in place of GPUs ----

mkdir -p bin
cp "$BIN"/* bin/ 2>/dev/null || cp "$root/$BIN"/* bin/
mv bin/hv-denoise bin/real-denoise
cat >bin/hv-denoise <<'SH'
#!/bin/sh
# Takes --device off, and a while.
d=none n=$#
while [ $n -gt 0 ]; do
    w=$1
    shift
    if [ "$w" = --device ]; then d=$1; shift; n=$((n - 2)); else set -- "$@" "$w"; n=$((n - 1)); fi
done
echo "+ $d" >>"$TRACE"
sleep 0.4
real-denoise "$@"
rc=$?
echo "- $d" >>"$TRACE"
exit $rc
SH
chmod +x bin/hv-denoise
for p in text encode decode; do
    mv bin/hv-$p bin/real-$p
    sed -e 's/denoise/'$p'/' -e '/TRACE/d' -e '/sleep/d' bin/hv-denoise >bin/hv-$p
    chmod +x bin/hv-$p
done
TRACE=$dir/trace
export TRACE
head -n 5 many.csv >few.csv
few() {
    rm -rf few
    : >"$TRACE"
    PATH=$dir/bin:$PATH make -s -f "$root/examples/batch.mk" CSV=few.csv OUT=few HV="$dir/bin/hv" HVFLAGS="$flags" "$@" >log 2>&1 || sed 's/^/# /' log
    awk '$1 == "+" { on[$2]++; all++; n[$2]++ } $1 == "-" { on[$2]--; all-- } { if (all > most) most = all; if (on[$2] > one) one = on[$2] }
        END { print most + 0, one + 0, n["cuda:0"] + 0, n["cuda:1"] + 0 }' "$TRACE"
}
got=$(few HV_DEVICES=cuda:0,cuda:1)
case $got in "2 1 "[1-3]" "[1-3]) true ;; *) false ;; esac
ok $? "two devices, one row each at a time (at once, on one, rows of each: $got)"
got=$(few HV_DEVICES=cuda:1 -j4)
[ "$got" = "1 1 0 4" ]
ok $? "one device, whatever -j says ($got)"
got=$(few HV_DEVICES=cuda:0,cuda:0)
case $got in "2 2 4 0") true ;; *) false ;; esac
ok $? "a device named twice takes two ($got)"
rm -rf few
make -s -f "$root/examples/batch.mk" CSV=few.csv OUT=few HVFLAGS="$flags" HV_DEVICES=cpu,cpu >log 2>&1 && cp few/row3.mp4 x.mp4 &&
    [ "$(grep -c '"device":"cpu"' few/rows.jsonl)" = 4 ]
ok $? "on the cpu as well"

# ---- faults ----

rm -rf v
printf 'videoid,image,audio\nx,a,b\n' >rows.csv
batch >log 2>&1 && bad=1 || bad=0
grep -q "rows.csv:1: no column 'prompt'" log || bad=1
ok $bad "a missing column is named"
cat >rows.csv <<'CSV'
videoid,image,audio,prompt,options
good,a face.png,one.wav,x,
../x,a face.png,one.wav,x,
short,a face.png
good,a face.png,two.wav,x,
nothing,missing.png,one.wav,x,
noise,one.wav,one.wav,x,
odd,a face.png,one.wav,x,--no-such-option
open,a face.png,one.wav,x,--steps '2
$(touch hacked),a face.png,one.wav,x,
shell,a face.png,one.wav,x,"--seed $(touch${IFS}hacked)"
semi,a face.png,one.wav,x,"--seed 4 ; touch hacked"
last,a face.png,one.wav,x,--seed 4
CSV
batch >log 2>&1 && bad=1 || bad=0
[ -s v/good.mp4 ] && [ -s v/last.mp4 ] && [ "$(ls v/*.mp4 | wc -l)" = 2 ] && [ ! -e hacked ] || bad=1
ok $bad "bad rows, and the others go on"
for word in "rows.csv:3: videoid '../x': letters, digits" 'rows.csv:4: 2 fields, the header has 5' "rows.csv:5: videoid 'good' is there twice (line 2)" \
    'missing.png: ' "rows.csv:8: row 'odd': hv: unknown option" "rows.csv:9: row 'open': options: a quote is never closed" 'not a whole number'; do
    grep -qF -- "$word" log
    ok $? "told: $word"
done
[ "$(value nothing status)" != 0 ] && [ -n "$(value nothing status)" ] && [ "$(value odd status)" = 3 ] && [ "$(value nothing stage)" != denoise ]
ok $? "the log has a line for each: $(grep '"row":"nothing"' v/rows.jsonl | tail -n 1 | sed 's/.*"error"/"error"/')"
batch status >log
grep -q '^2 done, 0 running, 0 stopped, 10 failed, 0 waiting' log
ok $? "status: $(tail -n 1 log)"
cp one.wav x.wav
cp "a face.png" missing.png
batch >log 2>&1
[ -s v/nothing.mp4 ]
ok $? "what was missing is there now"
printf 'videoid,image,audio,prompt\na,a face.png,one.wav,"x\nb,a face.png,one.wav,y\n' >rows.csv
batch >log 2>&1 && bad=1 || bad=0
grep -q 'rows.csv:2: a quote is never closed' log || bad=1
ok $bad "a quote that is never closed"

head -n 2 few.csv >rows.csv
status 2 "without hv there are no rows, bad or good" batch HV=no-such-hv
grep -q 'no program no-such-hv' err && batch >log 2>&1 && [ -s v/row0.mp4 ]
ok $? "said: $(head -n 1 err); and with it there are"

# ---- other engines ----

if command -v parallel >/dev/null && parallel --version 2>/dev/null | grep -q 'GNU parallel'; then
    rm -rf par
    HV_HOSTS=2/: "$root/examples/parallel.sh" few.csv par "HVFLAGS=$flags" >log 2>&1
    status=$?
    bad=0
    for i in 0 1 2 3; do cmp -s "par/row$i.mp4" "few/row$i.mp4" || bad=1; done
    [ $status = 0 ] && [ $bad = 0 ] && [ "$(made par ref) $(made par text)" = "4 4" ]
    ok $? "examples/parallel.sh: GNU parallel, two jobs, the same bytes, 4 portraits and 4 texts encoded"
else
    ok 0 "examples/parallel.sh # SKIP no GNU parallel"
fi
if command -v sbatch >/dev/null && sinfo -h >/dev/null 2>&1; then
    rm -rf slurm
    "$root/examples/slurm.sh" few.csv slurm "HVFLAGS=$flags" -- --wait >log 2>&1
    status=$?
    bad=0
    for i in 0 1 2 3; do cmp -s "slurm/row$i.mp4" "few/row$i.mp4" || bad=1; done
    [ $status = 0 ] && [ $bad = 0 ] && [ "$(made slurm ref) $(made slurm text)" = "4 4" ]
    ok $? "examples/slurm.sh: an array job, the same bytes, 4 portraits and 4 texts encoded"
else
    ok 0 "examples/slurm.sh # SKIP no Slurm that runs"
fi
done_testing
