#!/bin/sh
# hv-decode: formats, trimming, bad input, pipes, full disks, ffmpeg missing or failing.
set -u
. tests/tap.sh

mkdir "$dir/config" && cp -r "$root/examples/model-tiny/vae" "$dir/config/"
hv-weights synth -q "$dir/config/vae/config.json" 1 "$dir/config/vae/model.safetensors" || { ok 1 "make the tiny VAE"; done_testing; exit 1; }
HV_MODEL=$dir/config
export HV_MODEL
cp "$root/examples/portrait.png" "$dir/p.png"
cd "$dir" || exit 1

# A safetensors file: NAME, metadata, key, shape, data; padded so that data is aligned.
st() {
    head=$(printf '{"__metadata__":{"hv.version":"1"%s},"%s":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}' "$2" "$3" "$4" \
        "$(wc -c <"$5" | tr -d ' ')")
    while [ $(((${#head} + 8) % 64)) != 0 ]; do head="$head "; done
    n=${#head}
    { printf "\\$(printf %o $((n % 256)))\\$(printf %o $((n / 256)))\\0\\0\\0\\0\\0\\0"; printf %s "$head"; cat "$5"; } >"$1"
    n=0
}
# The latents of the picture, 3 frames of them: 9 video frames of 64x64.
hv-encode -q --image-size 64 p.png -o ref.st
tail -c $((16 * 33 * 64 * 4)) ref.st >all
: >data
c=0
while [ $c -lt 16 ]; do
    dd if=all bs=256 skip=$((c * 33)) count=3 2>/dev/null >>data
    c=$((c + 1))
done
saved=$n
st lat.st ',"hv.frames":"7","hv.fps":"25"' latents 16,3,8,8 data
st nofps.st '' latents 16,3,8,8 data
st many.st ',"hv.frames":"400"' latents 16,3,8,8 data
st zero.st ',"hv.frames":"0"' latents 16,3,8,8 data
st other.st '' latents 8,6,8,8 data
{ head -c 400 data; printf '\000\000\300\177'; tail -c +405 data; } >nan
st nan.st '' latents 16,3,8,8 nan
n=$saved
frame=$((64 * 64 * 3))

status 0 "raw RGB" hv-decode -q lat.st -o v.rgb
[ "$(wc -c <v.rgb)" = $((7 * frame)) ]; ok $? "hv.frames trims to 7 frames"
hv-decode -q nofps.st -f rgb >n.rgb; [ "$(wc -c <n.rgb)" = $((9 * frame)) ]; ok $? "without hv.frames all 9 come"
head -c $((7 * frame)) n.rgb >h.rgb; same h.rgb v.rgb "trimming changes no frame"
hv-decode -q many.st -f rgb >m.rgb; same m.rgb n.rgb "more frames than there are: those that there are"
hv-decode -q -f rgb <lat.st >i.rgb; same i.rgb v.rgb "latents on the standard input, frames on the standard output"
hv-decode -q -f rgb --threads 1 lat.st >1.rgb; hv-decode -q -f rgb --threads 3 lat.st >3.rgb
same 1.rgb 3.rgb "1 and 3 threads give the same frames"
hv-decode -q -f rgb --vram 4M lat.st >b.rgb 2>err; [ $? = 5 ] || same b.rgb v.rgb "a small budget gives the same frames"
hv-decode -q -f rgb --vram 90% lat.st >b.rgb; same b.rgb v.rgb "a share of the free memory as budget"
hv-decode -q lat.st >v.y4m
head -n 1 v.y4m | grep -qx 'YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C444'; ok $? "y4m on the standard output"
[ "$(wc -c <v.y4m)" = $((7 * (frame + 6) + $(head -n 1 v.y4m | wc -c))) ]; ok $? "y4m has 7 frames"
ffmpeg -nostdin -v error -i v.y4m -f rawvideo -pix_fmt rgb24 back.rgb
cmp -l v.rgb back.rgb | awk 'function oct(s) { return int(s / 100) * 64 + int(s % 100 / 10) * 8 + s % 10 }
    { d = oct($2) - oct($3); if (d < -3 || d > 3) bad = 1 } END { exit bad }'
ok $? "ffmpeg reads the y4m back: 3 levels off at most"
status 0 "PNG files" hv-decode -q lat.st -o f.png
[ "$(echo f0000[0-6].png | wc -w)" = 7 ] && [ ! -e f00007.png ] && [ -e f00000.png ]; ok $? "f00000.png to f00006.png"
ffmpeg -nostdin -v error -i f00003.png -f rawvideo -pix_fmt rgb24 png.rgb
tail -c +$((3 * frame + 1)) v.rgb | head -c $frame >three.rgb; same png.rgb three.rgb "a PNG is its frame"
status 0 "safetensors" hv-decode -q lat.st -o v.st
tail -c $((7 * frame)) v.st >st.rgb; same st.rgb v.rgb "the same frames in video.st"
hv-tensor list v.st | grep -q 'video .*U8 .*\[7,64,64,3\]'; ok $? "video [7,64,64,3]"
hv-decode -q -f rgb --tile 32/16 lat.st >t.rgb; [ "$(wc -c <t.rgb)" = $((7 * frame)) ] && ! cmp -s t.rgb v.rgb
ok $? "another tile, another result of the same size"

ffmpeg -nostdin -v error -f lavfi -i sine=d=0.28 "a b'c.wav"
status 0 "MP4 with sound, and a quote in its name" hv-decode -q lat.st --sound "a b'c.wav" -o "m 1.mp4"
probe=$(ffprobe -v error -show_entries stream=codec_name,pix_fmt,width,nb_frames -of csv=p=0 "m 1.mp4" | sort | tr '\n' ' ')
case $probe in "aac,"*" h264,64,yuv420p,7 ") ok 0 "H.264 of 7 frames and AAC" ;; *) ok 1 "H.264 of 7 frames and AAC: $probe" ;; esac
ffprobe -v error -show_entries format=duration -of csv=p=0 "m 1.mp4" | awk '{ exit !($1 > 0.239 && $1 < 0.321) }'
ok $? "as long as the sound, within a frame"
status 0 "MP4 without sound" hv-decode -q lat.st -o s.mp4
[ -z "$(ls -A | grep y4m | grep -v '^v\.y4m$')" ]; ok $? "no frames are left behind"
status 0 "a name with a colon and a dash" hv-decode -q lat.st -o ./-x:y.mp4
[ -s ./-x:y.mp4 ]; ok $? "it is there"

# ffmpeg missing, and ffmpeg failing: the frames survive.
tool=$(command -v hv-decode)
status 4 "no ffmpeg" env PATH=/nonexistent "$tool" -q lat.st -o gone.mp4
grep -q 'gone.mp4.y4m' err; ok $? "the message says where the frames are"
same gone.mp4.y4m v.y4m "the frames survive"
[ ! -e gone.mp4 ]; ok $? "no MP4"
mkdir fake && printf '#!/bin/sh\nexit 3\n' >fake/ffmpeg && chmod +x fake/ffmpeg
status 4 "ffmpeg fails" env PATH="$dir/fake:$PATH" hv-decode -q lat.st -o fail.mp4
grep -q 'status 3' err && same fail.mp4.y4m v.y4m "its status is told and the frames survive" || ok 1 "its status is told: $(cat err)"
status 4 "a sound that is none" hv-decode -q lat.st --sound lat.st -o none.mp4
same none.mp4.y4m v.y4m "the frames survive a bad sound"

status 8 "NaN in the latents" hv-decode -q nan.st -o x.rgb
status 3 "hv.frames 0" hv-decode -q zero.st -o x.rgb
status 3 "channels of another model" hv-decode -q other.st -o x.rgb
status 3 "no latents in the file" hv-decode -q ref.st -o x.rgb
head -c 1000 lat.st >cut.st
status 3 "a cut file" hv-decode -q cut.st -o x.rgb
status 4 "no such file" hv-decode -q nothing.st -o x.rgb
status 4 "no such sound" hv-decode -q lat.st --sound nothing.wav -o x.mp4
status 2 "a name without a format" hv-decode -q lat.st -o x
status 2 "an unknown format" hv-decode -q lat.st -f gif -o x
status 2 "mp4 on the standard output" hv-decode -q lat.st -f mp4
status 2 "sound without mp4" hv-decode -q lat.st --sound "a b'c.wav" -o x.rgb
for t in 256 256/ /64 100/64 256/10 256/64x 0/16; do status 2 "--tile $t" hv-decode -q lat.st --tile $t -o x.rgb; done
status 2 "--crf 52" hv-decode -q lat.st --crf 52 -o x.mp4
for keep in all outputs nothing; do hv-decode -q -f rgb --keep $keep lat.st >k.rgb; same k.rgb v.rgb "--keep $keep: the same frames"; done
status 2 "--keep of nothing known" hv-decode -q --keep some lat.st -o x.rgb
status 2 "half precision on the cpu" hv-decode -q --dtype f16 lat.st -o x.rgb
status 2 "--dtype of nothing known" hv-decode -q --dtype f8 --device cuda --plan lat.st
hv-decode -q --device cuda --plan lat.st >plan.txt; grep -q '^device (of the last level: all)' plan.txt && grep -q '^context ' plan.txt && grep -q '^host$' plan.txt
ok $? "--plan for a GPU, without one: device and host"
hv-decode -q --device cuda --keep nothing --plan=json lat.st | jq -e '.keep == "nothing" and .device.peak_bytes > 5e8 and .host.peak_bytes > 1e4' >/dev/null
ok $? "and as JSON"
status 5 "a budget below the context" hv-decode -q --device cuda --vram 100M --plan lat.st
status 5 "a budget that is too small" hv-decode -q lat.st --vram 64K -o x.rgb
for f in rgb y4m st; do status 4 "a full disk, $f" hv-decode -q lat.st -f $f -o /dev/full; done
[ -c /dev/full ]; ok $? "/dev/full is still a device"
(hv-decode -q lat.st -f rgb >/dev/full) 2>err; [ $? = 4 ]; ok $? "a full standard output"
status 4 "a folder that is not there" hv-decode -q lat.st -o no/such/x.rgb
mkfifo pipe
head -c 10 pipe >/dev/null &
hv-decode -q lat.st -f rgb >pipe 2>err; [ $? = 4 ]; ok $? "a reader that leaves: status 4"
grep -qi 'broken pipe' err; ok $? "and a message"
wait
[ -z "$(ls -A | grep -E '^\.?x\.')" ]; ok $? "nothing half-written is left"
hv-decode -q --plan=json lat.st | jq -e '.peak_bytes > 0 and .flops > 1e8 and ([.rows[].name] | index("host.frames"))' >/dev/null
ok $? "--plan=json"
done_testing
