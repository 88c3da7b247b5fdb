#!/bin/sh
# hv-audio: lengths, pipes, threads, and what is refused.
set -u
. tests/tap.sh

HV_MODEL=$dir/model
export HV_MODEL
mkdir -p "$HV_MODEL/audio_encoder" "$dir/work"
cp examples/model-tiny/audio_encoder/config.json "$HV_MODEL/audio_encoder/"
hv-weights synth -q examples/model-tiny/audio_encoder/config.json 1 "$HV_MODEL/audio_encoder/model.safetensors"
ok $? "make a tiny audio encoder"
speech=$root/examples/speech.wav
ff='ffmpeg -nostdin -v error -y'
cd "$dir/work" || exit 1

frame=$((10 * 5 * 24 * 4))                      # bytes a frame
data() {                                        # file, frames: the data of the file
    tail -c $(($2 * frame)) "$1"
}
frames() {
    hv-tensor list "$1" | sed -n 's/^audio.features .*\[\([0-9]*\),10,5,24\].*/\1/p'
}

# ---- lengths

hv-audio -q "$speech" -o a.st
ok $? "4.5 s of speech"
hv-tensor check a.st >check.txt 2>&1
ok $? "a file that the next stage takes"
[ "$(frames a.st)" = 112 ]; ok $? "112 frames at 25 a second"
hv-audio -q --max-frames 50 "$speech" -o b.st
[ "$(frames b.st)" = 50 ]; ok $? "--max-frames 50"
data a.st 112 | head -c $((50 * frame)) >first; data b.st 50 | cmp -s - first
ok $? "--max-frames: the same first rows"
hv-audio -q --fps 12.5 "$speech" -o b.st
[ "$(frames b.st)" = 56 ]; ok $? "56 frames at 12.5 a second: the length of the sound"
hv-audio -q --fps 12.5 --reference-length "$speech" -o b.st
[ "$(frames b.st)" = 112 ]; ok $? "--reference-length at 12.5: 25 a second, as the reference counts"
hv-audio -q --duration 2 "$speech" -o b.st
[ "$(frames b.st)" = 50 ]; ok $? "--duration 2"

# 31 s of noisy tone: two blocks. Up to the border the first 30 s alone give the same rows.
$ff -f lavfi -i 'aevalsrc=sin(t*t*300)*random(0):s=16000:d=31' -c:a pcm_s16le long.wav
$ff -i long.wav -t 30 -c:a pcm_s16le short.wav
hv-audio -q long.wav -o long.st && hv-audio -q short.wav -o short.st
ok $? "a sound of two blocks of 30 s"
[ "$(frames long.st)" = 775 ] && [ "$(frames short.st)" = 750 ]; ok $? "775 and 750 frames"
data long.st 775 | head -c $((748 * frame)) >one; data short.st 750 | head -c $((748 * frame)) | cmp -s - one
ok $? "the first block does not depend on what follows"
data long.st 775 | tail -c +$((748 * frame + 1)) | head -c $((2 * frame)) >one
data short.st 750 | tail -c +$((748 * frame + 1)) | cmp -s - one
[ $? = 1 ]; ok $? "a window at the border sees the next block"
hv-audio -q --reference-length long.wav -o b.st
[ "$(frames b.st)" = 400 ]; ok $? "--reference-length: 400 frames"

# ---- the same bytes by every way

hv-audio -q --threads 1 "$speech" >t1.st && hv-audio -q --threads 3 "$speech" >t3.st
same t1.st t3.st "1 and 3 threads give the same bytes"
same t1.st a.st "standard output and -o give the same bytes"
hv-audio -q - <"$speech" >b.st
same b.st a.st "from standard input by redirection"
# shellcheck disable=SC2002
cat "$speech" | hv-audio -q >b.st
same b.st a.st "from a pipe"
mkfifo fifo; cat "$speech" >fifo & hv-audio -q fifo >b.st; wait
same b.st a.st "from a named pipe"
$ff -i "$speech" -c:a flac s.flac; hv-audio -q s.flac >b.st
data b.st 112 >one; data a.st 112 | cmp -s - one; ok $? "FLAC: the same features"
cp "$speech" ./-o; hv-audio -q -- -o >b.st
same b.st a.st "a file called -o"

# ---- what libsndfile cannot read goes through ffmpeg

$ff -i "$speech" -c:a aac 'a b:c.m4a'
hv-audio -q 'a b:c.m4a' -o b.st
ok $? "AAC, under a name with a space and a colon"
[ "$(frames b.st)" -ge 112 ]; ok $? "AAC: $(frames b.st) frames"
# shellcheck disable=SC2002
cat 'a b:c.m4a' | hv-audio -q >c.st
same b.st c.st "AAC from a pipe"

# ---- refused: status, one line with the name, nothing left behind

size=$(wc -c <"$speech")
: >empty.wav
head -c $((size / 2)) "$speech" >cut.wav
head -c 30 "$speech" >short.wav
head -c $(($(wc -c <s.flac) / 2)) s.flac >cut.flac
head -c $(($(wc -c <'a b:c.m4a') / 2)) 'a b:c.m4a' >cut.m4a
echo 'this is no sound' >text.wav
$ff -i "$speech" -t 0.039 -c:a pcm_s16le 39ms.wav
mkdir gone
refused() {     # status, file
    status "$1" "refused: $2" hv-audio -q "$2" -o gone/out.st
    [ "$(wc -l <"$dir/err")" = 1 ] && grep -q "^hv-audio: $2: " "$dir/err"; ok $? "$2: one line that names it"
    [ -z "$(ls -A gone)" ]; ok $? "$2: nothing is left"
}
refused 4 missing.wav
refused 4 gone
for f in empty.wav cut.wav short.wav cut.flac cut.m4a text.wav 39ms.wav; do refused 3 $f; done
for f in empty.wav cut.wav text.wav 39ms.wav; do
    # shellcheck disable=SC2002
    cat $f | hv-audio -q >out.st 2>err; got=$?
    [ $got = 3 ] && [ ! -s out.st ] && grep -q '^hv-audio: stdin: ' err; ok $? "refused from a pipe: $f (status $got)"
done
status 4 "a full disk" sh -c "hv-audio -q '$speech' >/dev/full"
status 2 "--fps 24" hv-audio --fps 24 "$speech"
status 2 "two sounds" hv-audio "$speech" "$speech"
status 2 "no model" env -u HV_MODEL hv-audio "$speech"
status 4 "no weights" hv-audio --model "$dir" "$speech"
echo '{"d_model": 25, "encoder_attention_heads": 2}' >"$HV_MODEL/audio_encoder/config.json"
status 3 "a config whose heads do not divide its width" hv-audio "$speech"

# ---- the plan needs neither weights nor sound

cp "$root/examples/model-tiny/audio_encoder/config.json" "$HV_MODEL/audio_encoder/"
rm "$HV_MODEL/audio_encoder/model.safetensors"
hv-audio --plan | grep -q '^peak '; ok $? "--plan"
hv-audio --plan=json | jq -e '.peak_bytes > 0 and (.rows | length) > 5' >/dev/null; ok $? "--plan=json"
done_testing
