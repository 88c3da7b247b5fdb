#!/bin/sh
# Makes the portraits and sounds of examples/ and examples/heldout/ anew: heldout.sh [PYTHON]     needs espeak-ng, ffmpeg, PyTorch
# Seeds from 9000 on and these sentences are never used in training.
set -eu
cd "$(dirname "$0")"
py=${1:-python3}
out=../heldout
mkdir -p "$out" ../faces
say() {         # name voice speed pitch text
    "$py" cartoons.py say "$2" "$3" "$4" "$5" "$out/$1.wav"
    ffmpeg -nostdin -v error -y -i "$out/$1.wav" -t 5.16 -ac 1 -ar 16000 -sample_fmt s16 -bitexact "$out/$1.flac"
    rm "$out/$1.wav"
}
say 1 en-us+f4    145 60 "I have never said these words before, so let us see whether my lips can follow them."
say 2 en-gb+m3    160 35 "Yesterday, eleven old friends met in a small cafe; they laughed, argued, and shared a cake."
say 3 en-us+m7    130 45 "Attention please: the museum closes at five. Thank you, and have a pleasant evening!"
say 4 en-gb+f2    175 70 "Why would anybody paint a wooden door blue? Because the sky was not enough."
say 5 de+m1       150 40 "Wer hat den letzten Apfel gegessen? Niemand, sagte der Igel, und rollte sich zusammen."
say 6 fr-fr+f1    155 65 "Attendez un instant, s'il vous plait. La lune se leve, et le chat dort encore."
say 7 es+m5       165 50 "Mi abuelo guardaba tres relojes en el bolsillo, y ninguno daba la misma hora."
say 8 it+f3       140 55 "Domani, se piove, resteremo a casa; altrimenti andremo al lago con la barca."
"$py" cartoons.py say en-gb+m2 150 42 "Ladies and gentlemen, thank you for coming tonight. I was drawn this morning, by a program, and nobody asked me whether I wanted to speak. But now that I can, I find that I like it. Let me tell you a story about a lighthouse, a very old dog, and the sea." ../long.wav
ffmpeg -nostdin -v error -y -i ../long.wav -t 12 -bitexact ../speech-long.flac
rm ../long.wav
# name, face (fringe to chin), mouth box, sound, another sound: 24 clips
: >"$out/clips.tsv"
for i in $(seq 1 24); do
    boxes=$("$py" cartoons.py picture $((9000 + i)) "$out/$i.png")
    sound=$(((i - 1) % 8 + 1))
    printf '%d\t%s\t%s\t%d\t%d\n' "$i" "${boxes% *}" "${boxes#* }" $sound $(((sound + 2 + i / 8) % 8 + 1)) >>"$out/clips.tsv"
done
"$py" cartoons.py backgrounds "$out/backgrounds.png"
i=0
for seed in 9107 9112 9121; do
    i=$((i + 1))
    "$py" cartoons.py picture $seed ../faces/$i.png --size 256
done
