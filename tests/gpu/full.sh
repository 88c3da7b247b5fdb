# Sourced by the benches, first of all: where they are ($here, $root), the built tools on the PATH, $dir, a folder that goes away, and
# configs and inputs of the full size. Without a GPU it ends the script with status 6, unless DEVICE is cpu. $watcher, where a script
# has one, is killed at the end.
#
# BIN: the built tools. DEVICE: cuda or cuda:N. PYTHON: one with the standard library. TMPDIR: has room for models. The tokenizers are
# the tiny model's.

: "${BUILD:=build}" "${BIN:=$BUILD/bin}" "${DEVICE:=cuda}" "${PYTHON:=python3}" "${TMPDIR:=/tmp}"

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
full_tiny=$root/examples/model-tiny
PATH=$(cd "$BIN" && pwd):$PATH
export PATH
[ -e /dev/nvidia0 ] || [ "$DEVICE" = cpu ] || { echo "$(basename "$0" .sh): there is no GPU" >&2; exit 6; }
watcher=
dir=$(mktemp -d "$TMPDIR/bench.XXXXXX")
trap '[ -z "$watcher" ] || kill $watcher 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

full_text() {           # folder: text_encoder and text_encoder_2, the sizes of an empty config, as many words as the released one
    mkdir -p "$1/text_encoder" "$1/text_encoder_2"
    cp "$full_tiny"/text_encoder_2/vocab.json "$full_tiny"/text_encoder_2/merges.txt "$1/text_encoder_2"
    cp "$full_tiny"/text_encoder/tokenizer_config.json "$1/text_encoder"
    jq '{eos_token_id}' "$full_tiny/text_encoder_2/config.json" >"$1/text_encoder_2/config.json"
    jq '{image_token_index, pad_token_id, text_config: {}, vision_config: {}, hv_text: {crop_start: .hv_text.crop_start}}' \
        "$full_tiny/text_encoder/config.json" >"$1/text_encoder/config.json"
    # Words of bytes that no prompt has: 127,500 of them, by 252,500 merges.
    jq -c '[range(256; 265), range(270; 288), range(289; 312) | [.] | implode] as $c
        | [$c[] as $a | $c[] as $b | [$a, $b]] as $two
        | [$two[] as $t | $c[] as $d | [$t[0], $t[1], $d]] as $three
        | ($two + $three | map(join(""))) as $words
        | .model.vocab += ([range($words | length) | {key: $words[.], value: (. + 700)}] | from_entries)
        | .model.merges += ([$two[] | "\(.[0]) \(.[1])"] +
            [$three[] | "\(.[0])\(.[1]) \(.[2])", "\(.[0]) \(.[1])\(.[2])"])' \
        "$full_tiny/text_encoder/tokenizer.json" >"$1/text_encoder/tokenizer.json"
}

full_vae() {            # folder
    mkdir -p "$1/vae"
    cat >"$1/vae/config.json" <<'JSON'
{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32, "in_channels": 3,
 "out_channels": 3, "sample_size": 256, "sample_tsize": 64, "scaling_factor": 0.476986, "mid_block_add_attention": true,
 "mid_block_causal_attn": true, "act_fn": "silu"}
JSON
}

full_picture() {        # file, width, height: a PNG
    "$PYTHON" - "$@" <<'PY'
import struct, sys, zlib
w, h = map(int, sys.argv[2:])
rows = b"".join(b"\0" + bytes((x * 255 // w, y * 255 // h, (x * y) % 251)[c] for x in range(w) for c in range(3)) for y in range(h))
chunk = lambda t, d: struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))
open(sys.argv[1], "wb").write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)) +
                              chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))
PY
}

full_tensors() {        # file, frames, "key shape".. : a stage file of noise; masks are ones, text.mask of integers
    "$PYTHON" - "$@" <<'PY'
import array, json, math, random, struct, sys
file, frames, *rows = sys.argv[1:]
random.seed(1)
block = [random.gauss(0, 0.5) for _ in range(65537)]          # repeated: only its size matters
head, data = {}, []
at = 0
for key, *shape in map(str.split, rows):
    shape = [int(side) for side in shape]
    n = math.prod(shape)
    values = [1] * n if key.endswith(".mask") else (block * (n // len(block) + 1))[:n]
    part = array.array("q" if key == "text.mask" else "f", values).tobytes()
    head[key] = {"dtype": "I64" if key == "text.mask" else "F32", "shape": shape, "data_offsets": [at, at + len(part)]}
    at += len(part)
    data.append(part)
head["__metadata__"] = {"format": "hv", "hv.version": "1", "hv.fps": "25", "hv.frames": frames}
head = json.dumps(head).encode()
head += b" " * (-len(head) % 8)
open(file, "wb").write(b"".join([struct.pack("<Q", len(head)), head, *data]))
PY
}
