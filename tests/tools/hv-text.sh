#!/bin/sh
# hv-text: what it writes, its options, and what it refuses: text that is not UTF-8, the image token in a prompt, missing or
# foreign parts of a model.
set -u
. tests/tap.sh

model=$dir/model
mkdir "$model"
cp -r examples/model-tiny/text_encoder examples/model-tiny/text_encoder_2 "$model"
for part in text_encoder text_encoder_2; do
    hv-weights synth "$model/$part/config.json" 7 "$model/$part/model.safetensors" >/dev/null 2>&1 || echo "# no weights of $part"
done
HV_MODEL=$model
export HV_MODEL
picture=$root/examples/portrait.png
run() { hv-text --progress none --image-size 128 "$@"; }

status 0 "a portrait and a prompt" run "$picture" -p "a person speaking" -o "$dir/a.st"
[ ! -s "$dir/err" ]
ok $? "nothing to remark: the tiny model's crop_start fits its tokenizer, the prompt fits"
hv-tensor check "$dir/a.st" >/dev/null 2>&1
ok $? "hv-denoise would take it"
hv-tensor list "$dir/a.st" >"$dir/list" 2>&1
grep -q 'text.neg_states *F32 *\[79,64\]' "$dir/list" && grep -q 'text.pooled *F32 *\[48\]' "$dir/list"
ok $? "shapes follow the configs"
grep -q 'hv.stage: hv-text' "$dir/list" && grep -q 'hv.width: 128' "$dir/list" && grep -q 'hv.model: ' "$dir/list"
ok $? "metadata"

run -q "$picture" -p "a person speaking" >"$dir/b.st" && run --threads 3 "$picture" -p "a person speaking" >"$dir/c.st"
same "$dir/a.st" "$dir/b.st" "the same bytes on standard output"
same "$dir/a.st" "$dir/c.st" "the same bytes with 3 threads"
printf 'a person speaking\n' | run "$picture" -p - >"$dir/b.st"
same "$dir/a.st" "$dir/b.st" "the prompt from standard input"
run - -p "a person speaking" <"$picture" >"$dir/b.st"
same "$dir/a.st" "$dir/b.st" "the picture from standard input"
run --name person "$picture" -p "a person speaking" >"$dir/b.st"
same "$dir/a.st" "$dir/b.st" "--name person is the default"
run --no-prefix "$picture" -p "Authentic, Realistic, Natural, High-quality, Lens-Fixed, a person speaking" >"$dir/b.st"
same "$dir/a.st" "$dir/b.st" "--no-prefix leaves out what is put in front"

# Each choice changes what it should and nothing else.
changes() {         # what, keys that change, options...
    what=$1 keys=$2
    shift 2
    run "$picture" "$@" >"$dir/b.st" 2>"$dir/err"
    got=
    for k in text.states text.mask text.pooled text.neg_states text.neg_mask text.neg_pooled; do
        for f in a b; do hv-tensor slice "$dir/$f.st" "$k" : -o "$dir/$f.part"; done
        cmp -s "$dir/a.part" "$dir/b.part" || got="$got $k"
    done
    [ "$got" = "$keys" ]
    ok $? "$what: changes$got"
}
changes "another prompt" " text.states text.mask text.pooled" -p "a woman sings a song by the sea"
changes "a negative prompt" " text.neg_states text.neg_mask text.neg_pooled" -p "a person speaking" --negative "noise"
changes "a name" " text.states text.neg_states" -p "a person speaking" --name friend

status 0 "the empty prompt" run "$picture" -p ""
status 0 "braces and newlines mean nothing" run "$picture" -p "{} {0}

%s"
long=$(i=0; while [ $i -lt 100 ]; do printf 'word '; i=$((i + 1)); done)
status 0 "a prompt that is too long" run "$picture" -p "$long"
grep -Eq '^hv-text: prompt: too long: its last [1-9][0-9]* tokens are dropped$' "$dir/err"
ok $? "it says how many tokens were dropped"
status 0 "-q" run -q "$picture" -p "$long"
[ ! -s "$dir/err" ]
ok $? "-q says nothing"

status 3 "text that is not UTF-8" run "$picture" -p "$(printf 'a\377b')"
grep -q 'prompt: text is not UTF-8: byte 0xff at offset 1$' "$dir/err"
ok $? "the message says where"
status 3 "a negative prompt that is not UTF-8" run "$picture" -p a --negative "$(printf '\303')"
status 3 "the image token in the prompt" run "$picture" -p "look: <image>"
grep -q "the prompt contains the image token '<image>'" "$dir/err"
ok $? "the message names it"
status 3 "the image token in the name" run "$picture" -p a --name "<image>"
status 0 "other special tokens are legal" run "$picture" -p "a <|eot_id|> b <IMAGE>"

status 2 "no prompt" run "$picture"
status 2 "no picture" run -p a
status 2 "prompt and picture from standard input" run - -p -
status 2 "an option that is none" run "$picture" -p a --guidance 2
status 4 "a picture that is not there" run "$dir/none.png" -p a
status 3 "a picture that is none" run "$model/text_encoder/config.json" -p a
status 2 "no model" env -u HV_MODEL hv-text "$picture" -p a
status 4 "a model folder that is not there" run --model "$dir/none" "$picture" -p a

broken() {          # status, what, command to spoil a copy of the model
    rm -rf "$dir/bad"
    cp -r "$model" "$dir/bad"
    (cd "$dir/bad" && eval "$3")
    status "$1" "$2" run --model "$dir/bad" "$picture" -p a -o "$dir/bad.st"
    [ ! -e "$dir/bad.st" ]
    ok $? "nothing is written"
}
broken 4 "no tokenizer" 'rm text_encoder/tokenizer.json'
broken 4 "no merges" 'rm text_encoder_2/merges.txt'
broken 4 "no vocabulary of the second encoder" 'rm text_encoder_2/vocab.json'
broken 4 "no weights" 'rm text_encoder/model.safetensors'
broken 3 "weights cut short" 'head -c 5000 text_encoder_2/model.safetensors >x && mv x text_encoder_2/model.safetensors'
broken 3 "weights of another size" 'sed -i "s/\"hidden_size\": 48/\"hidden_size\": 64/" text_encoder_2/config.json'
broken 3 "weights of the other encoder" 'cp text_encoder_2/model.safetensors text_encoder/'
broken 7 "another pre-tokenizer" 'sed -i "s/Isolated/Removed/" text_encoder/tokenizer.json'
broken 3 "a tokenizer cut short" 'head -c 3000 text_encoder/tokenizer.json >x && mv x text_encoder/tokenizer.json'
broken 3 "a config with a size out of range" 'sed -i "s/\"num_hidden_layers\": 4/\"num_hidden_layers\": 0/" text_encoder/config.json'
broken 3 "a vocabulary larger than the embedding" 'sed -i "s/\"vocab_size\": 680/\"vocab_size\": 100/" text_encoder/config.json; rm text_encoder/model.safetensors;
    hv-weights synth text_encoder/config.json 1 text_encoder/model.safetensors'
rm -rf "$dir/bad"
cp -r "$model" "$dir/bad"
sed -i 's/"crop_start": 103/"crop_start": 90/' "$dir/bad/text_encoder/config.json"
status 0 "a crop_start that does not fit the template" run --model "$dir/bad" "$picture" -p a
grep -q 'has 103 tokens, but 90 rows are cropped' "$dir/err"
ok $? "is remarked"

status 0 "--plan without picture and weights" run --plan -p "a person"
grep -q '^language:' "$dir/out" && grep -q 'TFLOP' "$dir/out"
ok $? "prints the plans"
run --plan=json | jq -e '.vision.peak_bytes > 0 and .language.flops > 0 and (.clip.rows | length) > 3' >/dev/null
ok $? "--plan=json is JSON"
status 2 "--plan=xml" run --plan=xml
run --plan=json --device cuda | jq -e '.device.ring_bytes > 0 and .device.context_bytes > 0 and .device.activations == "F16"' >/dev/null
ok $? "--plan for a GPU, without one"
run --plan=json --device cuda --weights-dtype int8 | jq -e '.device.activations == "BF16" and .device.weights_dtype == "I8"' >/dev/null
ok $? "quantized weights there"
status 2 "a dtype that is none" run --plan --weights-dtype int7
status 2 "a dtype without --plan" run "$picture" -p a --weights-dtype int8
status 2 "a way of streaming that is of no use here" run "$picture" -p a --stream pin
status 5 "a budget that is too small" run "$picture" -p a --vram 64K -o "$dir/none.st"

# ---- weights of fewer bytes, used as they are stored ----

stored() {          # what, least cosine, command that makes text_encoder/model.safetensors in $dir/stored
    rm -rf "$dir/stored"
    cp -r "$model" "$dir/stored"
    (cd "$dir/stored/text_encoder" && eval "$3") >/dev/null 2>"$dir/err" &&
        run --model "$dir/stored" "$picture" -p "a person speaking" -o "$dir/s.st" && hv-tensor diff "$dir/a.st" "$dir/s.st" >"$dir/diff"
    awk -v least="$2" '$1 ~ /states$/ { n++; if (!($4 >= least)) bad = 1; worst = worst == "" || $4 < worst ? $4 : worst }
        END { print worst; exit bad || n != 2 }' "$dir/diff" >"$dir/worst"
    ok $? "$1: cosine $(cat "$dir/worst")"
}
stored "bf16 weights" 0.9999 'hv-weights synth --dtype bf16 config.json 7 model.safetensors'
stored "int8 weights" 0.999 'hv-weights quantize --quant int8 model.safetensors x && mv x model.safetensors'
stored "fp8 weights" 0.99 'hv-weights quantize --quant fp8 model.safetensors x && mv x model.safetensors'
run --threads 1 --model "$dir/stored" "$picture" -p "a person speaking" -o "$dir/t.st"
same "$dir/s.st" "$dir/t.st" "and the same bytes with 1 thread"

# A model much larger than what may stay in memory: its mapped pages leave the process as the layers pass.
mkdir -p "$dir/wide/text_encoder"
cp -r "$model/text_encoder_2" "$dir/wide"
cp "$model"/text_encoder/tokenizer* "$dir/wide/text_encoder"
jq '.text_config += {hidden_size: 512, intermediate_size: 2048, num_hidden_layers: 26, num_attention_heads: 8}' \
    "$model/text_encoder/config.json" >"$dir/wide/text_encoder/config.json"
hv-weights synth -q "$dir/wide/text_encoder/config.json" 3 "$dir/wide/text_encoder/model.safetensors"
hv-text --progress none --image-size 128 --model "$dir/wide" --threads 1 "$picture" -p a -o "$dir/w.st" &
pid=$! peak=0
while kill -0 $pid 2>/dev/null; do
    now=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/$pid/status 2>/dev/null)
    peak=${now:-$peak}
    sleep 0.02
done
wait $pid
ok $? "a model of 24 layers of 8 MB"
file=$(($(wc -c <"$dir/wide/text_encoder/model.safetensors") >> 20))
[ "$peak" -gt 0 ] && [ $((peak >> 10)) -le $((file / 2)) ]
ok $? "a file of $file MiB takes no more than half of that in memory: $((peak >> 10)) MiB"
if [ -e /dev/full ]; then
    run "$picture" -p a >/dev/full 2>"$dir/err"
    [ $? = 4 ]
    ok $? "a full disk"
fi
done_testing
