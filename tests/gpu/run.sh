#!/bin/sh
# Everything that needs a GPU: operations, networks, goldens, whole programs, and the same under compute-sanitizer.
# BIN: the built tools; BUILD: the build folder; DEVICE: cuda or cuda:N. TAP; the last line counts, the status is 1 when
# something failed. A machine without a GPU has nothing to test here: one skipped line, and status 0.
set -u

: "${BUILD:=build}" "${BIN:=$BUILD/bin}" "${DEVICE:=cuda}"
: "${UNITS:=test_ops test_ops_image test_dit}"          # programs of tests/unit that heed HV_TEST_DEVICE
: "${GOLDENS:=transformer sampling text vae}"           # folders of tests/golden
: "${SANITIZED:=test_ops test_ops_image}"                              # of UNITS, under memcheck
: "${RACED:=attention attention_k* norms qk_norm* rope* copy_c* gather* dequantize residuals}"      # tests of test_ops, under racecheck
: "${SANITIZER_SECONDS:=900}"                           # for one program
: "${COSINE:=0.9995}"                                   # bf16 against f32, tests/golden/README.md

root=$(pwd)
BIN=$(cd "$BIN" && pwd) BUILD=$(cd "$BUILD" && pwd) || exit 1
PATH=$BIN:$PATH
log=$BUILD/test-gpu.log
dir=$(mktemp -d)
running=
trap '[ -z "$running" ] || kill $running 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
HV_LOCK=$dir
HV_TEST_DEVICE=$DEVICE
export PATH HV_LOCK HV_TEST_DEVICE
: >"$log"
n=0 passed=0 failed=0 skipped=0

result() {      # status what
    n=$((n + 1))
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
        echo "ok $n - $2"
    else
        failed=$((failed + 1))
        echo "not ok $n - $2"
    fi
}

skip() {        # what why
    n=$((n + 1)) skipped=$((skipped + 1))
    echo "ok $n - $1 # skip $2"
}

began=$(date +%s)
part() {        # what begins
    echo "# $(($(date +%s) - began)) s: $1"
}

finish() {
    part "the end"
    echo "1..$n"
    echo "log: $log"
    echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
    [ $failed = 0 ]
    exit
}

# Runs a command with its output in $dir/log and at the end of the whole log.
logged() {
    { echo; echo "# $*"; } >>"$log"
    "$@" >"$dir/log" 2>&1
    rc=$?
    cat "$dir/log" >>"$log"
    return $rc
}

ended_early() { # label, status
    result 1 "$1: ended with status $2"
    tail -n 5 "$dir/log" | sed 's/^/# /'
}

# A program that speaks TAP: its lines under our numbers.
tap() {         # label, command...
    label=$1
    shift
    logged "$@"
    rc=$? before=$failed lines=0
    while IFS= read -r line; do
        what="$label: $(echo "$line" | sed -E 's/^(not )?ok [0-9]*( - )?//')"
        case $line in
            'ok '*'# '[sS][kK][iI][pP]*) skip "${what%% # [sS]*}" "${what##* # [sS][kK][iI][pP] }" ;;
            'ok '*) result 0 "$what" ;;
            'not ok '*) result 1 "$what" ;;
            '# ok - '* | '# not ok - '*) continue ;;
            '#'*) echo "$line"; continue ;;
            *) continue ;;
        esac
        lines=$((lines + 1))
    done <"$dir/log"
    if { [ $rc != 0 ] && [ $failed = "$before" ]; } || [ $lines = 0 ]; then
        ended_early "$label" $rc
    fi
}

# ---- is there one? ----

probe=$BUILD/tests/gpu/test_device
[ -x "$probe" ] || { echo "test-gpu: $probe was not built: run make test-gpu" >&2; exit 1; }
logged "$probe" open
rc=$?
if [ $rc != 0 ]; then
    why=$(tail -n 1 "$dir/log" | sed 's/^test_device: //')
    # A card that is there and cannot be used is no reason to be silent.
    if [ $rc != 6 ] || [ -e /dev/nvidia0 ]; then
        result 1 "the GPU can be opened: $why"
    else
        skip "tests on a GPU" "$why"
    fi
    finish
fi

# ---- programs ----

part units
tap test_device "$probe"
for t in $UNITS; do
    if [ -x "$BUILD/tests/unit/$t" ]; then
        acts='bf16 f32'
        [ "$t" = test_dit ] || acts='bf16 f16 f32'      # of the text encoders and the VAE
        for act in $acts; do
            tap "$t ($act)" env HV_TEST_ACT="$act" "$BUILD/tests/unit/$t"
        done
    else
        result 1 "$t was not built"
    fi
done
for t in "$BUILD"/tests/gpu/test_*; do
    case $t in
        *.[od] | */test_device) ;;
        *) [ -x "$t" ] && tap "$(basename "$t")" "$t" ;;
    esac
done

# ---- goldens ----

part goldens
for part in $GOLDENS; do
    # Not locked: the runner holds the device and starts programs that want it.
    logged env HV_LOCK=0 "$BUILD/tests/golden/golden" --bin "$BIN" --device "$DEVICE" --only "/$part/" tests/golden
    rc=$? before=$failed
    while IFS= read -r line; do
        what="golden $part: $(echo "$line" | tr -s ' ')"
        case $line in
            *' ok') result 0 "${what% ok}" ;;
            *' FAILED') result 1 "${what% FAILED}" ;;
        esac
    done <"$dir/log"
    case $(tail -n 1 "$dir/log") in
        *' passed, '*' failed'*) [ $rc = 0 ] || [ $failed != "$before" ] || ended_early "golden $part" $rc ;;
        *) ended_early "golden $part" $rc ;;
    esac
done

# ---- the programs together: the example portrait, on the CPU and on the GPU ----

part programs
# Two heads, so that there is something to group.
mkdir "$dir/config" && cp -r examples/model-tiny/. "$dir/config"
sed 's/"hidden_size": 128/"hidden_size": 256/; s/"num_heads": 1/"num_heads": 2/' \
    examples/model-tiny/transformer/config.json >"$dir/config/transformer/config.json"
HV_MODEL=$dir/model
export HV_MODEL
logged hv-weights synth -q "$dir/config" 1 "$HV_MODEL"
result $? "a synthetic model"

render() {      # device, name
    logged hv "$root/examples/portrait.png" "$root/examples/speech.wav" -p "a person speaking" --device "$1" \
        -o "$dir/$2.st" --keep "$dir/$2" --image-size 128 --steps 8 --max-frames 33 --face full -q
}

close_to() {    # what, file, file: the cosine of every tensor
    logged hv-tensor diff "$2" "$3"
    [ $? -le 1 ] && awk -v least="$COSINE" '
        BEGIN { worst = 1 }
        NF < 4 || $1 == "tensor" || $1 ~ /:$/ { next }
        $4 !~ /^-?[0-9.]+$/ { worst = -2 }      # no number
        $4 + 0 < worst { worst = $4 + 0 }
        { n++ }
        END { printf "cosine %.6f of %d tensors, at least %s", worst, n, least; exit !n || worst < least + 0 }
        ' "$dir/log" >"$dir/verdict"
    result $? "$1: $(cat "$dir/verdict")"
}

same() {        # what, file, file
    cmp -s "$2" "$3"
    result $? "$1"
}

render cpu cpu
result $? "hv --device cpu"
render "$DEVICE" gpu
rc=$?
result $rc "hv --device $DEVICE"
if [ $rc = 0 ]; then
    for f in audio face; do same "$f.st is made on the CPU" "$dir/cpu/$f.st" "$dir/gpu/$f.st"; done
    for f in text ref latent; do close_to "$f.st" "$dir/cpu/$f.st" "$dir/gpu/$f.st"; done
    close_to "the frames" "$dir/cpu.st" "$dir/gpu.st"
else
    sed 's/^/# /' "$dir/log"
fi

# What is kept of the decoder's last level must not be seen, nor may windows.
for keep in all outputs nothing; do
    logged hv-decode -q --device "$DEVICE" --keep $keep -f rgb -o "$dir/$keep.rgb" "$dir/cpu/latent.st"
    result $? "hv-decode --keep $keep: $(head -n 1 "$dir/log")"
    [ $keep = all ] || same "--keep $keep: the same frames" "$dir/all.rgb" "$dir/$keep.rgb"
done

files="$dir/cpu/text.st $dir/cpu/audio.st $dir/cpu/face.st $dir/cpu/ref.st"
denoise() {     # device, name, options...
    denoise_device=$1 denoise_name=$2
    shift 2
    # shellcheck disable=SC2086
    logged hv-denoise -q --device "$denoise_device" --steps 4 "$@" $files -o "$dir/$denoise_name.st"
}
denoise cpu base && denoise "$DEVICE" on
result $? "hv-denoise on both"
close_to "latents of the same stage files" "$dir/base.st" "$dir/on.st"
denoise "$DEVICE" again && same "a second run gives the same bytes" "$dir/on.st" "$dir/again.st"

# What decides where things lie and when they are copied must not be seen in the result.
# Our own attention: cuDNN may take another kernel for another number of queries, and --ahead asks it chunk by chunk.
fixed='--head-group 1 --chunk-rows 96,64 --attention flash'
# shellcheck disable=SC2086
denoise "$DEVICE" fixed $fixed --activations device --stream pin
result $? "groups and chunks of a given size"
for way in '--activations o-host' '--activations x-host' '--ring segments' '--resident-blocks all' \
    '--resident-blocks 1' '--stream part' '--stream register' '--stream map' '--stream direct' '--branches paired' \
    '--branches alone'; do
    # shellcheck disable=SC2086
    denoise "$DEVICE" way $fixed $way
    case $? in
        0) same "$way: the same bytes" "$dir/fixed.st" "$dir/way.st" ;;
        7) skip "$way" "$(head -n 1 "$dir/log")" ;;
        *) result 1 "$way: $(head -n 1 "$dir/log")" ;;
    esac
done

# Put aside after each step and taken up again, with every kind of cache; the whole of it: DEVICE=cuda tests/bench/resume.sh.
for cache in none 0-1 scaled tea:0.3 mag:2; do
    denoise "$DEVICE" whole --cache "$cache"
    rc=$?
    for k in 1 2 3; do
        rm -f "$dir/part.st" "$dir/parts.st"
        [ $rc = 0 ] && denoise "$DEVICE" parts --cache "$cache" --state "$dir/part.st" --stop-after $k && [ ! -e "$dir/parts.st" ] &&
            denoise "$DEVICE" parts --cache "$cache" --state "$dir/part.st" --resume && cmp -s "$dir/whole.st" "$dir/parts.st" || rc=1
    done
    result $rc "--cache $cache: stopped after every step, resumed, the same bytes"
done

denoise "$DEVICE" seen --preview "$dir/seen.png" --preview-every 2
result $? "hv-denoise --preview: $(wc -c <"$dir/seen.png") bytes"
same "--preview: the same latents" "$dir/on.st" "$dir/seen.st"

for half in 0,0,64,128 64,0,64,128; do
    logged hv-face -q --image-size 128 --area 1 --box $half "$root/examples/portrait.png" -o "$dir/face-${half%%,*}.st"
done
(files="$dir/cpu/text.st $dir/cpu/ref.st"
 denoise "$DEVICE" voices --voice "$dir/cpu/audio.st,$dir/face-0.st" --voice "$dir/cpu/audio.st,$dir/face-64.st")
result $? "two voices"
close_to "two voices with one sound and halves of a mask: one voice with the whole mask" "$dir/on.st" "$dir/voices.st"

# ---- memory: what was planned is what is taken ----

part memory
# Two blocks of each kind have the peak of sixty; rows, widths and rings are those of the full size.
mkdir -p "$dir/short/transformer"
echo '{"depth_double_blocks": 2, "depth_single_blocks": 2, "double_stream_list": [1]}' >"$dir/short/transformer/config.json"
planned() {     # what, options...
    what=$1
    shift
    logged hv-denoise -q --device "$DEVICE" --model "$dir/short" --bench=json --size 768x704 --text-rows 256 --guidance 1 --repeat 1 \
        "$@"
    rc=$?
    jq -r '"\(.measured_bytes / 1048576 | floor) MiB measured, \(.predicted_bytes / 1048576 | floor) planned"' "$dir/log" >"$dir/verdict" 2>&1
    [ $rc = 0 ] && jq -e '(.measured_bytes - .predicted_bytes | fabs) <= 0.02 * .predicted_bytes' "$dir/log" >/dev/null
    result $? "$what: $(tail -n 1 "$dir/verdict")"
}

# Text: layers of the full width, two of them, and a vision tower of two; one of the ring's sizes holds a group and a half.
mkdir -p "$dir/wide/text_encoder"
cp -r "$HV_MODEL/text_encoder_2" "$dir/wide" && cp "$HV_MODEL"/text_encoder/tokenizer* "$dir/wide/text_encoder"
jq '{image_token_index, pad_token_id, text_config: {num_hidden_layers: 4, vocab_size: .text_config.vocab_size},
    vision_config: {num_hidden_layers: 3}, hv_text: {crop_start: .hv_text.crop_start}}' \
    "$HV_MODEL/text_encoder/config.json" >"$dir/wide/text_encoder/config.json"
logged hv-weights synth -q "$dir/wide/text_encoder/config.json" 1 "$dir/wide/text_encoder/model.safetensors"
result $? "a text encoder of the full width and two layers"
text() {        # name, options...
    text_name=$1
    shift
    logged hv-text -v --progress none --image-size 128 -p "a person speaking" "$@" "$root/examples/portrait.png" -o "$dir/$text_name.st"
}
text wide --device "$DEVICE" --model "$dir/wide"
result $? "hv-text on it"
cp "$dir/log" "$dir/wide.log"
if [ "$DEVICE" != cpu ]; then
    awk '/memory: predicted/ { p = $4; m = $7; print m " MiB measured, " p " planned" }
        END { d = m - p; if (d < 0) d = -d; exit !(p > 0 && d <= 0.02 * p) }' "$dir/wide.log" >"$dir/verdict"
    result $? "hv-text: $(cat "$dir/verdict")"
fi
for way in '--stream register' '--stream map' '--stream direct' '--vram 800M'; do
    # shellcheck disable=SC2086
    text way --device "$DEVICE" --model "$dir/wide" $way
    result $? "hv-text $way: $(grep -o 'weights: .*' "$dir/log" | head -n 1)"
    same "hv-text $way: the same bytes" "$dir/wide.st" "$dir/way.st"
done
text wide-cpu --model "$dir/wide" && close_to "hv-text at full width" "$dir/wide-cpu.st" "$dir/wide.st"
for q in int8 fp8; do
    rm -rf "$dir/quantized" && cp -r "$HV_MODEL" "$dir/quantized"
    logged hv-weights quantize -q --quant $q "$HV_MODEL/text_encoder/model.safetensors" "$dir/quantized/text_encoder/model.safetensors"
    text cpu-q --model "$dir/quantized" && text gpu-q --device "$DEVICE" --model "$dir/quantized"
    result $? "hv-text with $q weights on both"
    close_to "text.st of $q weights" "$dir/cpu-q.st" "$dir/gpu-q.st"
done

if [ "$DEVICE" = cpu ]; then
    skip "memory planned and taken" "a cpu"
else
    text small --device "$DEVICE" --vram 100M
    [ $? = 5 ] && tail -n 1 "$dir/log" | grep -q budget
    result $? "hv-text, a budget below the context: status 5, $(tail -n 1 "$dir/log")"
    planned "bf16, device" --weights-dtype bf16 --activations device --head-group 24 --chunk-rows 8192,8192 --ring blocks
    planned "int8, device" --weights-dtype int8 --activations device --gemm fused --head-group 4 --chunk-rows 8192,4096 --ring blocks
    planned "bf16, o-host" --weights-dtype bf16 --activations o-host --head-group 4 --chunk-rows 8192,2048 --ring segments
    planned "int8, x-host" --weights-dtype int8 --activations x-host --gemm fused --head-group 4 --chunk-rows 4096,2048 --ring segments \
        --ahead off
    # shellcheck disable=SC2086
    denoise "$DEVICE" small --vram 100M
    [ $? = 5 ] && grep -q 'budget' "$dir/log"
    result $? "a budget below the context: status 5, $(head -n 1 "$dir/log")"
fi

# ---- under compute-sanitizer ---- which takes its time, most of it a processor's: all at once

part compute-sanitizer
checks=0
sanitize() {    # tool, what, command...
    checks=$((checks + 1))
    echo "$1: $2" >"$dir/check.$checks"
    echo "# $*" >"$dir/check.$checks.command"
    tool=$1
    shift 2
    # A thread that waits for its team by turning would hold a core that another check wants.
    OMP_NUM_THREADS=4 OMP_WAIT_POLICY=passive timeout "$SANITIZER_SECONDS" \
        compute-sanitizer --tool "$tool" --error-exitcode 99 "$@" >"$dir/check.$checks.log" 2>&1 &
    running="$running $!"
}

if ! command -v compute-sanitizer >/dev/null; then
    skip "memcheck and racecheck" "compute-sanitizer is not on the PATH"
else
    for t in $SANITIZED; do
        # What is only larger is left out: the definitions take as long here as everywhere.
        sanitize memcheck "$t" env HV_TEST_SMALL=1 "$BUILD/tests/unit/$t"
    done
    # shellcheck disable=SC2086
    sanitize memcheck "hv-denoise" env HV_LOCK=0 hv-denoise -q --device "$DEVICE" --steps 1 $files -o "$dir/sanitized.st"
    sanitize memcheck "hv-text" env HV_LOCK=0 hv-text -q --device "$DEVICE" --image-size 128 -p "a person speaking" \
        "$root/examples/portrait.png" -o "$dir/sanitized-text.st"
    sanitize memcheck "hv-decode" env HV_LOCK=0 hv-decode -q --device "$DEVICE" -f rgb -o "$dir/sanitized.rgb" "$dir/cpu/latent.st"
    # Races are looked for where all kernels are ours: those of cuBLASLt order their warps in ways that the tool does not see.
    set -f
    for only in $RACED; do
        sanitize racecheck "test_ops, $only" env HV_TEST_SMALL=1 HV_TEST_ONLY="$only" "$BUILD/tests/unit/test_ops"
    done
    set +f
    sanitize racecheck "test_ops_image, groups" env HV_TEST_ONLY=groups "$BUILD/tests/unit/test_ops_image"
    i=0
    for pid in $running; do
        i=$((i + 1))
        wait "$pid"
        rc=$?
        what=$(cat "$dir/check.$i")
        part "$what"
        { echo; cat "$dir/check.$i.command" "$dir/check.$i.log"; } >>"$log"
        case $rc in
            0) result 0 "$what" ;;
            124) result 1 "$what: more than $SANITIZER_SECONDS s" ;;
            *) result 1 "$what: status $rc"
               grep '^=========' "$dir/check.$i.log" | head -n 12 | sed 's/^/# /' ;;
        esac
    done
fi
finish
