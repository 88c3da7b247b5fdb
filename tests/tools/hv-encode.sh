#!/bin/sh
# hv-encode: formats, sizes, options, bad input, output.
set -u
. tests/tap.sh

mkdir "$dir/config" && cp -r "$root/examples/model-tiny/vae" "$dir/config/"
hv-weights synth -q "$dir/config/vae/config.json" 1 "$dir/config/vae/model.safetensors" || { ok 1 "make the tiny VAE"; done_testing; exit 1; }
HV_MODEL=$dir/config
export HV_MODEL
cp "$root/examples/portrait.png" "$dir/p.png"
cd "$dir" || exit 1

status 0 "encode a picture" hv-encode -q --image-size 64 p.png -o ref.st
hv-tensor list ref.st >list
grep -q 'ref.latents .*F32 .*\[16,33,8,8\]' list; ok $? "ref.latents [16,33,8,8]"
grep -q 'hv.width: 64' list && grep -q 'hv.height: 64' list && grep -q 'hv.stage: hv-encode' list && grep -q 'hv.model: ' list
ok $? "metadata"
hv-encode -q --image-size 64 p.png >piped.st; same ref.st piped.st "-o and the standard output give the same bytes"
hv-encode -q --image-size 64 - <p.png >stdin.st; same ref.st stdin.st "the picture on the standard input"
hv-encode -q --image-size 64 --threads 1 p.png -o one.st; hv-encode -q --image-size 64 --threads 3 p.png -o three.st
same one.st three.st "1 and 3 threads give the same bytes"

# The mean is held: every frame equals the first. A seed makes them differ, and gives the same each time.
hv-tensor slice ref.st ref.latents :,0:1 -o a.st && hv-tensor slice ref.st ref.latents :,32:33 -o b.st
tail -c 4096 a.st >a.raw; tail -c 4096 b.st >b.raw
same a.raw b.raw "the mean is held over the frames"
status 0 "a sample" hv-encode -q --image-size 64 --sample-seed 3 p.png -o s3.st
hv-encode -q --image-size 64 --sample-seed 3 p.png -o s3b.st; same s3.st s3b.st "one seed, one sample"
hv-encode -q --image-size 64 --sample-seed 4 p.png -o s4.st; cmp -s s3.st s4.st; [ $? = 1 ]; ok $? "another seed, another sample"
cmp -s s3.st ref.st; [ $? = 1 ]; ok $? "a sample is not the mean"

hv-encode -q --image-size 64 --plan=json p.png >plan.json; jq -e '.peak_bytes > 0 and (.rows | length > 10)' plan.json >/dev/null
ok $? "--plan=json is JSON"
hv-encode -q --image-size 64 --plan p.png | grep -q '^peak'; ok $? "--plan is a table"
status 5 "a budget that is too small" hv-encode -q --image-size 64 --vram 64K p.png -o x.st
grep -q budget err; ok $? "the message names the budget"

status 2 "no operand" hv-encode -q
status 2 "two operands" hv-encode -q p.png p.png
status 2 "--noise and --sample-seed" hv-encode -q --noise ref.st --sample-seed 1 p.png
status 2 "no model" env -u HV_MODEL hv-encode -q p.png
status 4 "no such picture" hv-encode -q nothing.png -o x.st
printf 'this is no picture' >text.png
status 3 "not a picture" hv-encode -q text.png -o x.st
head -c 300 p.png >cut.png
status 3 "a cut picture" hv-encode -q --image-size 64 cut.png -o x.st
status 3 "noise of another shape" hv-encode -q --image-size 64 --noise ref.st p.png -o x.st
status 4 "a full disk" hv-encode -q --image-size 64 p.png -o /dev/full
[ -c /dev/full ]; ok $? "/dev/full is still a device"
[ ! -e x.st ]; ok $? "nothing half-written is left"
mkdir bad bad/vae && echo '{"block_out_channels": [16,16,16]}' >bad/vae/config.json
status 7 "a VAE of three levels" hv-encode -q --model bad p.png
head -c 5000 config/vae/model.safetensors >bad/vae/model.safetensors && cp config/vae/config.json bad/vae/
status 3 "cut weights" hv-encode -q --image-size 64 --model bad p.png -o x.st
done_testing
