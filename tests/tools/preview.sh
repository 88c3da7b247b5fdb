#!/bin/sh
# Previews: hv-denoise --preview while it runs, and hv-tensor fit-preview, which makes the colours of another VAE.
set -u
. tests/tap.sh
HV_MODEL=$dir/model
export HV_MODEL
hv-weights synth "$root/examples/model-tiny" 1 "$HV_MODEL" -q || { ok 1 "make the tiny model"; done_testing; exit 1; }
cp "$root/examples/portrait.png" "$dir/me.png"
cp "$root/examples/speech.wav" "$dir/s.wav"
cd "$dir" || exit 1
hv-text -q --image-size 64 -p x me.png -o text.st && hv-audio -q --max-frames 20 s.wav -o audio.st &&
    ffmpeg -v error -stream_loop 1 -i s.wav long.wav && hv-audio -q --max-frames 150 long.wav -o long.st &&
    hv-face -q --image-size 64 --face full me.png -o face.st && hv-encode -q --image-size 64 me.png -o ref.st
ok $? "stage files"
files='text.st face.st ref.st'
run() { hv-denoise -q --threads 1 "$@"; }
size() { ffprobe -v error -show_entries stream=width,height,nb_read_packets,r_frame_rate -count_packets -of csv=p=0 "$1"; }

# ---- a sheet ----

# The preview of the last step is that of the result: the same map, and nothing is left of the noise.
# shellcheck disable=SC2086
run $files audio.st --steps 6 -o plain.st && run $files audio.st --steps 6 --preview p.png --preview-every 4 -o out.st
ok $? "a render with a preview"
same plain.st out.st "the latents are the same"
hv-tensor preview out.st --columns 6 --zoom 8 -o o.png
[ "$(size p.png)" = "389,404,25/1,1" ] && [ "$(size o.png)" = "389,389,25/1,1" ]
ok $? "33 frames of 64 x 64 and a line below: $(size p.png)"
# The same colours, but for the numbers: the upper part of a tile.
crop() { ffmpeg -v error -i "$1" -vf crop=64:50:65:65 -f rawvideo -pix_fmt rgb24 -; }
crop p.png >a.rgb && crop o.png >b.rgb && [ "$(wc -c <a.rgb)" = 9600 ]
ok $? "a tile of each"
same a.rgb b.rgb "the last preview shows the result"
# tile 8: latent frame 7 begins with video frame 25
{ ffmpeg -v error -i p.png -vf format=gray,crop=9:7:65:122 -f rawvideo -pix_fmt gray - | od -An -v -tu1 -w9 | awk '{ for (i = 1; i <= NF; i++) printf "%s", ($i > 127 ? "#" : "."); print "" }'; } >number
printf '%s\n' ......... .###.###. ...#.#... .###.###. .#.....#. .###.###. ......... >want
same want number "and each frame has its number"

# Estimated clean latents: x - sigma v. With one step left out the estimate of the first of one step is the result itself.
# shellcheck disable=SC2086
run $files audio.st --steps 4 --preview first.png --preview-every 1 --state s.st --stop-after 1 && run $files audio.st --steps 1 --preview only.png -o one.st &&
    hv-tensor preview one.st --columns 6 --zoom 8 -o o.png && crop first.png >a.rgb && crop only.png >b.rgb && crop o.png >c.rgb
ok $? "the first step of four, and a single one"
same a.rgb b.rgb "what the first step believes to be the end is where a single step ends"
same b.rgb c.rgb "which is the result"

# ---- the map: rgb = z M + b, byte = (rgb + 1) 127.5 ----

# Two frames of one latent: zeros, and 1 in channel 12.
perl -e 'binmode STDOUT; my $h = q({"latents":{"dtype":"F32","shape":[16,2,1,1],"data_offsets":[0,128]}}); $h .= " " x (7 - (length($h) + 7) % 8);
    print pack("Q<", length $h), $h, map { pack("f<", $_) } map { (0, $_ == 12 ? 1 : 0) } 0 .. 15' >z.st
hv-tensor preview z.st --zoom 1 --columns 2 -o z.png && got=$(ffmpeg -v error -i z.png -f rawvideo -pix_fmt rgb24 - | od -An -v -tu1 | tr -s ' ')
[ "$got" = " 131 125 118 0 0 0 101 101 101" ]
ok $? "colours by the page's numbers:$got"

hv-denoise --plan --size 64x64 --preview p.png >plan && grep -q '^clean  *F32 *.16,33,8,8' plan && grep -q '^preview  *F32 *.16,33,8,8' plan
ok $? "the plan counts it"

# ---- a video ----

# shellcheck disable=SC2086
run $files long.st --steps 3 --preview p.mp4 --preview-every 1 -o out.st && [ "$(size p.mp4)" = "512,512,25/4,39" ]
ok $? "an mp4 of 39 latent frames, as long as the video: $(size p.mp4)"
[ -z "$(find . -name '.p*')" ]
ok $? "nothing is left beside it"

# ---- faults ----

# shellcheck disable=SC2086
{
    status 2 "another kind of file" run $files audio.st --preview p.gif -o x.st
    status 2 "--preview-every alone" run $files audio.st --preview-every 3 -o x.st
    status 0 "a preview that cannot be written" run $files audio.st --steps 6 --preview nowhere/p.png --preview-every 1 -o x.st
}
same x.st plain.st "is no reason to end"
[ "$(grep -c 'the render goes on' err)" = 1 ]
ok $? "and it is said once: $(grep 'goes on' err)"

# ---- fit ----

faces="me.png $root/examples/faces/*.png"
# shellcheck disable=SC2086
hv-tensor fit-preview --print $faces >config.json 2>err && ! grep -q '"preview"' "$HV_MODEL/vae/config.json" && grep -q '"preview"' config.json
ok $? "--print leaves the model alone: $(cat err)"
cp -r "$HV_MODEL" fitted
# shellcheck disable=SC2086
hv-tensor fit-preview --model fitted $faces 2>err2 && cmp -s config.json fitted/vae/config.json && cmp -s err err2
ok $? "the model's config has the map"
# What the decoder makes of a portrait, shrunk, against the map of this VAE and that of another one.
hv-encode -q --image-size 256 me.png -o big.st && hv-tensor slice big.st ref.latents :,0:1 -o first.st && hv-tensor list first.st >/dev/null &&
    perl -e 'binmode STDIN; binmode STDOUT; local $/; my $f = <STDIN>; my $n = unpack("Q<", $f); my $h = substr($f, 8, $n);
        $h =~ s/"ref.latents"/"latents"    /; print pack("Q<", $n), $h, substr($f, 8 + $n)' <first.st >latent.st &&
    hv-decode -q latent.st -o frame.rgb
ok $? "a portrait decoded"
hw=$(hv-tensor list latent.st | sed -n 's/.*\[16,1,\([0-9]*\),\([0-9]*\)\].*/\2x\1/p')
w=${hw%x*} h=${hw#*x}
error() {       # model: mean squared error of its preview
    hv-tensor preview latent.st --model "$1" --zoom 1 -o small.png &&
        ffmpeg -v error -f rawvideo -pix_fmt rgb24 -s "$((8 * w))x$((8 * h))" -i frame.rgb -vf "scale=$w:$h:flags=area" -f rawvideo -pix_fmt rgb24 -y want.rgb &&
        ffmpeg -v error -i small.png -f rawvideo -pix_fmt rgb24 -y got.rgb &&
        { od -An -v -tu1 -w1 want.rgb; echo x; od -An -v -tu1 -w1 got.rgb; } |
        awk '$1 == "x" { second = 1; next } !second { a[n++] = $1; next } { d = $1 - a[k++]; sum += d * d } END { printf "%.1f\n", n && n == k ? sum / n : 1e9 }'
}
own=$(error fitted) other=$(error model)
awk -v a="$own" -v b="$other" 'BEGIN { exit !(a > 0 && a < 0.8 * b) }'
ok $? "the fitted colours are nearer: error $own, with HunyuanVideo's $other"
# shellcheck disable=SC2086
run $files audio.st --steps 2 --model fitted --preview q.png -o out.st && run $files audio.st --steps 2 --preview p.png -o out.st && ! cmp -s p.png q.png
ok $? "hv-denoise takes them"
sed 's/"bias"/"bios"/' config.json >fitted/vae/config.json
# shellcheck disable=SC2086
status 3 "a map that is none" run $files audio.st --model fitted --preview q.png -o x.st
grep -q 'config.json: preview: expected' err
ok $? "said: $(cat err)"
status 3 "a picture that is none" hv-tensor fit-preview s.wav
status 2 "no picture" hv-tensor fit-preview
done_testing
