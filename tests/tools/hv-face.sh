#!/bin/sh
# hv-face: choices, pipes, threads, and what is refused. The detector has synthetic weights: what it finds means nothing, but a low
# --conf gives many faces, --conf 1 none.
set -u
. tests/tap.sh

HV_MODEL=$dir/model
export HV_MODEL
mkdir -p "$HV_MODEL/face_detector" "$dir/work"
cp examples/model-tiny/face_detector/config.json "$HV_MODEL/face_detector/"
hv-weights synth -q examples/model-tiny/face_detector/config.json 1 "$HV_MODEL/face_detector/model.safetensors"
ok $? "make a tiny face detector"
picture=$root/examples/portrait.png
ff='ffmpeg -nostdin -v error -y'
cd "$dir/work" || exit 1
face() { hv-face -q --image-size 128 "$@"; }

mask() {                                        # file: "rows columns first-row last-row first-column last-column sum"
    shape=$(hv-tensor list "$1" | sed -n 's/^face.mask .*\[1,\([0-9]*\),\([0-9]*\)\].*/\1 \2/p')
    # shellcheck disable=SC2086
    set -- "$1" $shape
    tail -c $(($2 * $3 * 4)) "$1" | od -An -v -w4 -tf4 | awk -v h="$2" -v w="$3" '
        $1 > 0 { y = int((NR-1) / w); x = (NR-1) % w; s += $1
                 if (y0 == "" || y < y0) y0 = y; if (y > y1) y1 = y; if (x0 == "" || x < x0) x0 = x; if (x > x1) x1 = x }
        END { print h, w, y0+0, y1+0, x0+0, x1+0, s+0 }'
}

# ---- without the detector: 128 x 128 at most gives a picture of 128 x 192 cells of 8

face --face full "$picture" -o full.st
ok $? "--face full"
hv-tensor check full.st >check.txt 2>&1
ok $? "a file that the next stage takes"
set -- $(mask full.st)
[ "$1" -ge 16 ] && [ "$7" = $(($1 * $2)) ]; ok $? "the whole picture: $*"
rows=$1 columns=$2
face --box 40,48,16,24 --area 1 "$picture" -o box.st
ok $? "--box"
[ "$(mask box.st)" = "$rows $columns 6 8 5 6 6" ]; ok $? "the box as given with --area 1: $(mask box.st)"
face --box 40,48,16,24 "$picture" -o box.st
[ "$(mask box.st)" = "$rows $columns 3 11 3 8 54" ]; ok $? "its sides three times with the default: $(mask box.st)"
face --box 40,48,16,24 "$picture" >b.st
same b.st box.st "standard output and -o give the same bytes"
# shellcheck disable=SC2002
cat "$picture" | face --box 40,48,16,24 >b.st
same b.st box.st "from a pipe"
$ff -i "$picture" p.ppm; face --box 40,48,16,24 p.ppm >b.st
same b.st box.st "PPM: the same"
cp "$picture" "./-x y.png"; face --box 40,48,16,24 -- "-x y.png" >b.st
same b.st box.st "a name with a dash and a space"

# ---- EXIF: a JPEG of 160 x 96 that is to be turned is seen as 96 x 160

$ff -i "$picture" -vf scale=160:96 -q:v 2 wide.jpg
{ head -c 2 wide.jpg
  printf '\377\341\000\042Exif\000\000MM\000\052\000\000\000\010\000\001\001\022\000\003\000\000\000\001\000\006\000\000\000\000\000\000'
  tail -c +3 wide.jpg; } >turned.jpg
face --face full wide.jpg >b.st; set -- $(mask b.st); [ "$2" -gt "$1" ]; ok $? "JPEG: $1 rows, $2 columns"
r=$1 c=$2
face --face full turned.jpg >b.st; set -- $(mask b.st); [ "$1 $2" = "$c $r" ]; ok $? "EXIF turns it: $1 rows, $2 columns"
face --face full --no-exif turned.jpg >b.st; set -- $(mask b.st); [ "$1 $2" = "$r $c" ]; ok $? "--no-exif does not"

# ---- with the detector

face --conf 0.2 --list "$picture" >list.txt
ok $? "--list"
found=$(($(wc -l <list.txt) - 1))
[ "$found" -ge 3 ]; ok $? "a low --conf finds $found faces"
tail -n +2 list.txt | awk '{ a = $4 * $5; if (NR > 1 && a > last * 1.05) bad = 1; last = a; if ($1 != NR) bad = 1 } END { exit bad }'
ok $? "numbered, by area"
face --conf 0.2 --threads 1 "$picture" >t1.st && face --conf 0.2 --threads 3 "$picture" >t3.st
same t1.st t3.st "1 and 3 threads give the same bytes"
face --conf 0.2 --face 1 "$picture" >b.st
same t1.st b.st "--face 1 is the largest, the default"
face --conf 0.2 --face 2 "$picture" >b.st
ok $? "--face 2"
face --conf 0.2 --face reference "$picture" >b.st
ok $? "--face reference"
hv-tensor list b.st | grep -q "face.boxes *F32 *\[$found,5\]"; ok $? "every face is in face.boxes"
status 9 "--face 9999" hv-face -q --image-size 128 --conf 0.2 --face 9999 "$picture" -o no.st
grep -q "of $found" "$dir/err"; ok $? "and how many there are"
status 9 "no face" hv-face -q --image-size 128 --conf 1 "$picture" -o no.st
grep -q -- '--box' "$dir/err" && grep -q -- '--face full' "$dir/err"; ok $? "the message says what to do"
[ ! -e no.st ]; ok $? "and no file is written"
status 0 "--face-fallback full" hv-face -q --image-size 128 --conf 1 --face-fallback full "$picture" -o b.st
set -- $(mask b.st); [ "$7" = $((rows * columns)) ]; ok $? "no face: the whole picture"
status 9 "a box beside the picture" hv-face -q --image-size 128 --box 5000,5000,10,10 "$picture" -o no.st

# ---- refused: status, one line with the name, nothing left behind

size=$(wc -c <"$picture")
: >empty.png
head -c $((size / 2)) "$picture" >cut.png
{ head -c $((size / 2)) "$picture"; printf 'XXXXXXXX'; tail -c +$((size / 2 + 9)) "$picture"; } >corrupt.png
head -c $(($(wc -c <wide.jpg) / 2)) wide.jpg >cut.jpg
head -c $(($(wc -c <p.ppm) / 2)) p.ppm >cut.ppm
printf 'P6 99999 99999 255\n' >huge.ppm
echo 'this is no picture' >text.png
$ff -f lavfi -i color=s=4000x2 -frames:v 1 thin.png
mkdir gone
refused() {     # status, file
    status "$1" "refused: $2" hv-face -q --face full "$2" -o gone/out.st
    [ "$(wc -l <"$dir/err")" = 1 ] && grep -q "^hv-face: $2: " "$dir/err"; ok $? "$2: one line that names it"
    [ -z "$(ls -A gone)" ]; ok $? "$2: nothing is left"
}
refused 4 missing.png
refused 4 gone
for f in empty.png cut.png corrupt.png cut.jpg cut.ppm huge.ppm text.png thin.png; do refused 3 $f; done
for f in empty.png cut.png cut.jpg text.png; do
    # shellcheck disable=SC2002
    cat $f | hv-face -q --face full >out.st 2>err; got=$?
    [ $got = 3 ] && [ ! -s out.st ] && grep -q '^hv-face: stdin: ' err; ok $? "refused from a pipe: $f (status $got)"
done
for o in --face=0 --face=big --box=1,2,3 --box=1,2,3,0 --box=1,2,3,4,5 --face-fallback=none --area=0 --conf=2 --image-size=1; do
    status 2 "$o" hv-face -q $o "$picture"
done
status 2 "no model" env -u HV_MODEL hv-face -q "$picture"
status 4 "a full disk" sh -c "hv-face -q --face full '$picture' >/dev/full"

hv-face --plan | grep -q '^peak '; ok $? "--plan"
hv-face --plan=json "$picture" | jq -e '.peak_bytes > 0' >/dev/null; ok $? "--plan=json for a picture"
done_testing
