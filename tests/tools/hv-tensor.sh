#!/bin/sh
# hv-tensor: list, stats, diff, convert, slice, merge, check, preview; pipes, messages, exit statuses.
set -u
. tests/tap.sh
cd "$dir" || exit 1

# A tensor file by hand: header, then data from a printf format.
st() {          # file, header, data
    printf "\\$(printf %o ${#2})\\0\\0\\0\\0\\0\\0\\0%s" "$2" >"$1"
    printf "$3" >>"$1"
}
# float32, little-endian: 0, 1, 2, -3
st a.st '{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"n":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}' \
    '\0\0\0\0\0\0\200\077\0\0\0\100\0\0\100\300\001\002\003'
st b.st '{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"n":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}' \
    '\0\0\0\0\0\0\200\077\0\0\0\100\0\0\200\300\001\002\003'
st nan.st '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' '\0\0\300\177\0\0\200\177'

# ---- list, stats

hv-tensor list a.st | grep -Eq '^x +F32 +\[2,2\] +16$'; ok $? "list"
hv-tensor list <a.st | grep -q '^x '; ok $? "list of standard input"
cat a.st | hv-tensor list - | grep -q '^x '; ok $? "list of a pipe"
hv-tensor list --json a.st b.st | jq -e 'length == 2 and (.[1].tensors | map(.name) == ["x", "n"])' >/dev/null
ok $? "list --json"
hv-tensor stats --json a.st | jq -e '.[0] | .min == -3 and .max == 2 and .mean == 0 and (.rms - 1.8708286933869707 | fabs) < 1e-12' >/dev/null
ok $? "stats: min, max, mean, rms"
hv-tensor stats --json nan.st | jq -e '.[0].nan == 1 and .[0].inf == 1 and (.[0] | has("mean") | not)' >/dev/null
ok $? "stats: NaN and Inf are counted apart"
status 3 "stats of a key that is not there" hv-tensor stats --key y a.st
status 3 "a file that is none" hv-tensor list "$root/README.md"
status 4 "a file that is not there" hv-tensor list absent

# ---- diff

status 0 "equal files" hv-tensor diff a.st a.st
status 1 "different files" hv-tensor diff a.st b.st
grep -q '^x  *1.000e+00 .*first \[1,1\]' out; ok $? "how far, and where"
status 0 "within a tolerance" hv-tensor diff --tol 1 a.st b.st
status 0 "only the key that is equal" hv-tensor diff --key n a.st b.st
status 0 "NaN equals NaN" hv-tensor diff nan.st nan.st
status 1 "other shapes" hv-tensor diff a.st nan.st

# ---- convert, slice, merge

hv-tensor convert a.st --dtype f64 -o c.st
hv-tensor list c.st | grep -Eq '^x +F64 +\[2,2\] +32$'; ok $? "convert --dtype f64"
hv-tensor list c.st | grep -Eq '^n +U8 '; ok $? "integers stay as they are"
status 0 "the same numbers" hv-tensor diff a.st c.st
hv-tensor convert a.st --key x -o x.npy
head -c 6 x.npy | od -An -c | grep -q 'N   U   M   P   Y'; ok $? "to npy"
hv-tensor convert x.npy --key x -o back.st; hv-tensor diff --key x a.st back.st >out 2>err; ok $? "and back"
hv-tensor convert a.st --key x --dtype bf16 | hv-tensor list - | grep -q '^x  *BF16'; ok $? "bf16 through a pipe"
status 2 "npy holds one tensor" hv-tensor convert a.st -o all.npy
head -c 100 x.npy >cut.npy
status 3 "an npy cut short" hv-tensor convert cut.npy --key x -o y.st
status 2 "a dtype that is none" hv-tensor convert a.st --dtype f31 -o y.st
hv-tensor slice a.st x :,1 -o s.st
hv-tensor stats --json s.st | jq -e 'length == 1 and .[0].elements == 2 and .[0].min == -3 and .[0].max == 1' >/dev/null
ok $? "slice :,1"
hv-tensor slice a.st x -1: -o s.st && hv-tensor list s.st | grep -Eq '^x +F32 +\[1,2\] '; ok $? "slice -1:"
hv-tensor slice a.st n ::2 --keep -o s.st && hv-tensor list s.st | grep -Eq '^n +U8 +\[2\] ' && hv-tensor list s.st | grep -q '^x '
ok $? "slice ::2 --keep"
status 3 "an index out of range" hv-tensor slice a.st x 2 -o s2.st
status 3 "too many ranges" hv-tensor slice a.st n :,: -o s2.st
status 2 "a range that is none" hv-tensor slice a.st n a:b -o s2.st
status 2 "a step of zero" hv-tensor slice a.st n ::0 -o s2.st
[ ! -e s2.st ]; ok $? "nothing is left after failures"
hv-tensor slice a.st n : -o n.st
hv-tensor slice a.st x : -o x.st
hv-tensor merge x.st n.st -o m.st; hv-tensor diff a.st m.st >out 2>err; ok $? "merge puts the parts together"
status 3 "merge: a key in two files" hv-tensor merge a.st n.st -o m2.st
grep -q "a.st.*n.st" err; ok $? "both files are named"

# ---- check

zeros() { head -c "$1" /dev/zero; }
face='{"__metadata__":{"hv.width":"32"},"face.boxes":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},"face.mask":{"dtype":"F32","shape":[1,2,4],"data_offsets":[0,32]}}'
ref='{"ref.latents":{"dtype":"F32","shape":[16,1,2,4],"data_offsets":[0,512]}}'
wide='{"ref.latents":{"dtype":"F32","shape":[16,1,2,5],"data_offsets":[0,640]}}'
st face.st "$face" ''; zeros 32 >>face.st
st ref.st "$ref" ''; zeros 512 >>ref.st
st wide.st "$wide" ''; zeros 640 >>wide.st
status 0 "check of a stage file" hv-tensor check face.st
grep -q 'face.st: complete: hv-denoise takes it' out; ok $? "it says which, and who takes it"
status 0 "two that fit" hv-tensor check ref.st face.st
status 1 "two that do not" hv-tensor check face.st wide.st
grep -q 'w = 5.*w = 4' err; ok $? "both numbers are said"
status 1 "a key twice" hv-tensor check face.st face.st
status 1 "no stage file" hv-tensor check a.st
hv-tensor slice face.st face.mask : -o half.st
status 1 "a stage file that is incomplete" hv-tensor check half.st
grep -q "no 'face.boxes'" out; ok $? "what is missing is named"
st latent.st '{"latents":{"dtype":"F32","shape":[16,1,2,4],"data_offsets":[0,512]}}' ''; zeros 508 >>latent.st; printf '\0\0\300\177' >>latent.st
status 1 "NaN in a stage file" hv-tensor check latent.st
grep -q 'element 127' err; ok $? "its place is named"
hv-tensor check --table | grep -q 'audio.features'; ok $? "check --table prints the contract"

# ---- preview

st lat.st '{"latents":{"dtype":"F32","shape":[16,3,2,4],"data_offsets":[0,1536]}}' ''; zeros 1536 >>lat.st
png() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $3 * 256 + $4 "x" $7 * 256 + $8 }'; }
hv-tensor preview lat.st --zoom 4 --columns 3 -o p.png && [ "$(png p.png)" = 50x8 ]; ok $? "preview of latents: 3 frames of 16x8"
hv-tensor preview lat.st --zoom 4 --count 2 --columns 1 -o p.png && [ "$(png p.png)" = 16x17 ]; ok $? "--count 2 --columns 1"
hv-tensor preview face.st --zoom 2 -o p.png && [ "$(png p.png)" = 8x4 ]; ok $? "preview of a mask"
status 2 "preview needs a name" hv-tensor preview lat.st
status 3 "preview of a key that is not there" hv-tensor preview --key y lat.st -o q.png
[ ! -e q.png ]; ok $? "nothing is left"

# ---- commands

status 2 "no command" hv-tensor
status 2 "a command that is none" hv-tensor frobnicate
status 0 "help of a command" hv-tensor slice --help
if [ -w /dev/full ]; then
    hv-tensor list a.st >/dev/full 2>err; [ $? = 4 ]; ok $? "a full disk is status 4"
fi
done_testing
