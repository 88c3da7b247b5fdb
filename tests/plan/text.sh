#!/bin/sh
# The memory plans of hv-text at full size, as text: a change of what is kept, or of the work, shows as a difference. The
# sizes are the defaults of an empty config; only the tokenizers are the tiny model's, so the prompts have their own lengths.
set -u
. tests/tap.sh

mkdir "$dir/text_encoder" "$dir/text_encoder_2"
cp examples/model-tiny/text_encoder/tokenizer*.json "$dir/text_encoder"
cp examples/model-tiny/text_encoder_2/vocab.json examples/model-tiny/text_encoder_2/merges.txt "$dir/text_encoder_2"
echo '{"image_token_index": 674, "pad_token_id": 675, "hv_text": {"crop_start": 103}}' >"$dir/text_encoder/config.json"
echo '{"eos_token_id": 888}' >"$dir/text_encoder_2/config.json"
# tests/plan/text.sh --update writes the files anew.
planned() {         # file, options...
    file=tests/plan/$1
    shift
    hv-text --model "$dir" --plan -p "a person speaking" "$@" >"$dir/plan"
    ok $? "hv-text --plan $* with the released sizes"
    [ -z "$update" ] || cp "$dir/plan" "$file"
    diff "$file" "$dir/plan" >"$dir/diff"
    same=$?
    sed 's/^/# /' "$dir/diff"
    ok $same "the plans of vision tower, language model and CLIP"
}
update=${1-}
planned text.plan
planned text-cuda.plan --device cuda
planned text-cuda-int8-900M.plan --device cuda --weights-dtype int8 --vram 900M

# The promise of doc/gpu.md, and what the budget buys: a ring between one group and a layer.
peak() { hv-text --model "$dir" --plan=json --device cuda -p "a person speaking" "$@" | jq ".device.$key"; }
key=predicted_bytes
[ "$(peak)" -le $((1800 << 20)) ]
ok $? "fp16 weights within 1800 MiB"
largest=0
for mib in 800 850 900 1000 1200; do
    bytes=$(peak --vram ${mib}M) && [ "$bytes" -le $((mib << 20)) ] && [ "$bytes" -ge "$largest" ]
    ok $? "--vram ${mib}M: planned $((bytes >> 20)) MiB"
    largest=$bytes
done
status 5 "a budget below the smallest ring" hv-text --model "$dir" --plan --device cuda --vram 750M
grep -q 'plan: needs .* MiB, budget .* largest: ring 112' "$dir/err" && [ "$(wc -l <"$dir/err")" = 1 ]
ok $? "one line says what it takes: $(cat "$dir/err")"
status 5 "a budget below the context" hv-text --model "$dir" --plan --device cuda --vram 300M
status 2 "a share of memory that is not known" hv-text --model "$dir" --plan --device cuda --vram 50%
done_testing
