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
hv-text --model "$dir" --plan -p "a person speaking" >"$dir/plan"
ok $? "hv-text --plan with the released sizes"
diff tests/plan/text.plan "$dir/plan" >"$dir/diff"
same=$?
sed 's/^/# /' "$dir/diff"
ok $same "the plans of vision tower, language model and CLIP"
done_testing
