#!/bin/sh
# The whole pipeline through the command line: hv, file by file, and through pipes give the same bytes.
set -u
. tests/tap.sh

HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/my face.png"
# 0.6 s of the example recording keep this quick.
ffmpeg -nostdin -v error -t 0.6 -i "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
opts='--image-size 64 --face full --steps 3 -q'

# shellcheck disable=SC2086
hv "my face.png" s.wav -p "it's a person" -o a.mp4 --keep a $opts --threads 1
ok $? "hv makes an MP4"
# shellcheck disable=SC2086
hv "my face.png" s.wav -p "it's a person" -o b.mp4 --keep b $opts --threads 3
same a/latent.st b/latent.st "1 and 3 threads give the same latents"
for f in text audio face ref; do same a/$f.st b/$f.st "1 and 3 threads give the same $f.st"; done

hv-text -q --image-size 64 -p "it's a person" "my face.png" >text.st &&
    hv-audio -q s.wav >audio.st && hv-face -q --image-size 64 --face full "my face.png" >face.st &&
    hv-encode -q --image-size 64 "my face.png" >ref.st &&
    hv-denoise -q --steps 3 ref.st face.st audio.st text.st >latent.st
ok $? "the stages run one by one, operands in any order"
same latent.st a/latent.st "file by file: the same latents"
hv-decode -q -f rgb latent.st >a.rgb
ok $? "hv-decode writes raw frames to a pipe"

# shellcheck disable=SC2086
hv "my face.png" s.wav -p "it's a person" -o frames.rgb --keep b $opts --threads 3
same frames.rgb a.rgb "hv writes frames alone when the name says so"

cat >pipe.sh <<'X'
hv-denoise -q --steps 3 <(hv-text -q --image-size 64 -p "it's a person" "my face.png") <(hv-audio -q s.wav) \
    <(hv-face -q --image-size 64 --face full "my face.png") <(hv-encode -q --image-size 64 "my face.png") |
    tee piped.st | hv-decode -q -f rgb >piped.rgb
X
bash pipe.sh
ok $? "the pipeline with process substitution"
same piped.st a/latent.st "process substitution: the same latents"
same piped.rgb a.rgb "process substitution: the same frames"

probe=$(ffprobe -v error -show_entries stream=codec_name,width,height,r_frame_rate -of csv=p=0 a.mp4 | sort | tr '\n' ' ')
[ "$probe" = "aac,0/0 h264,64,64,25/1 " ]; ok $? "H.264 and AAC, 64x64, 25 fps: $probe"
video=$(ffprobe -v error -select_streams v -show_entries stream=duration -of csv=p=0 a.mp4)
echo "$video" | awk '{ exit !($1 > 0.559 && $1 < 0.641) }'; ok $? "within one frame of the sound's 0.6 s: $video s"

before=$(ls -l --time-style=full-iso a/*.st | cut -d' ' -f6-)
# shellcheck disable=SC2086
hv "my face.png" s.wav -p "it's a person" -o a.mp4 --keep a $opts --threads 1
[ "$before" = "$(ls -l --time-style=full-iso a/*.st | cut -d' ' -f6-)" ]; ok $? "--keep: nothing is made twice"
# shellcheck disable=SC2086
hv "my face.png" s.wav -p "another" -o a.mp4 --keep a $opts --threads 1
[ a/text.st -nt a/audio.st ] && [ a/latent.st -nt a/text.st ]; ok $? "--keep: a new prompt makes text, latents and video again"
cmp -s a/latent.st b/latent.st; [ $? = 1 ]; ok $? "and the latents differ"

# shellcheck disable=SC2086
hv -n "my face.png" s.wav -p "it's a person" -o c.mp4 --keep c $opts --device cpu --vram 1G >cmds && mkdir c && sh cmds
[ "$(grep -E '^hv-(text|encode|denoise|decode) ' cmds | grep -c -- '--device cpu --vram 1G')" = 4 ]
ok $? "--device and --vram reach every stage that may compute there"
same c/latent.st b/latent.st "-n prints commands that do the same"

status 2 "no prompt" hv "my face.png" s.wav -o x.mp4
status 2 "no output" hv "my face.png" s.wav -p x
status 2 "one operand" hv "my face.png" -p x -o x.mp4
status 2 "an unknown option" hv "my face.png" s.wav -p x -o x.mp4 --nonsense
status 2 "an unknown stage" hv "my face.png" s.wav -p x -o x.mp4 --paint.x=1
status 2 "an option that the stage does not know" hv "my face.png" s.wav -p x -o x.mp4 --face.nonsense=1 --image-size 64
status 4 "a missing picture" hv none.png s.wav -p x -o x.mp4
echo nonsense >bad.png
status 3 "a picture that is none" hv bad.png s.wav -p x -o x.mp4
[ ! -e x.mp4 ]; ok $? "none of these left an output"
status 0 "help" hv --help
status 0 "version" hv --version
done_testing
