#!/usr/bin/env python3
"""Makes the tokenizers of the tiny model from the text below:   python3 examples/make-tokenizers.py examples/model-tiny

text_encoder gets a tokenizer.json of Llama-3's kind, text_encoder_2 a vocab.json and merges.txt of CLIP's kind. Only the
formats matter: the tiny model's weights are random numbers."""
import collections
import json
import os
import re
import sys

TEXT = """
Describe the video by detailing the following aspects: 1. The main content and theme of the video.2. The color, shape, size,
texture, quantity, text, and spatial relationships of the objects.3. Actions, events, behaviors temporal relationships,
physical movement changes of the objects.4. background environment, light, style and atmosphere.5. camera angles,
movements, and transitions used in the video: Authentic, Realistic, Natural, High-quality, Lens-Fixed,
Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad eyes, bad
limbs, distortion, blurring, Lens changes. The person looks like a friend. A person is speaking to the camera, smiling.
A man talks slowly and calmly, a woman sings a song, a child laughs in the warm light of the evening. She says: "we're here,
and it's late"; they'll see what he'd done, I'm sure you've heard that. He speaks in front of a window, a bookshelf, a wall, the
sea. The mouth follows the voice; the head moves a little, the eyes blink, the hair stays still. A portrait of a person speaking,
a close view of a face, a studio with soft light, a street at night in 1984 or 2026, 12 candles and 345 stars.
"""

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA_ASCII = r"'(?:s|t|re|ve|m|ll|d)|[^\r\n\w]?[^\W\d_]+|\d{1,3}| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+"
CLIP_ASCII = r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+"
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>"]


def alphabet():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def train(words, count):
    """The `count` most frequent merges, one after the other; of equals the first in order of the strings."""
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        joined = collections.Counter()
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                both = word[i:i + 2] == best
                out.append("".join(best) if both else word[i])
                i += 2 if both else 1
            joined[tuple(out)] += n
        words = joined
    return merges


def llama(folder):
    letters = alphabet()
    text = TEXT.replace("\n", " ").strip()
    words = collections.Counter(tuple(letters[b] for b in w.encode()) for w in re.findall(LLAMA_ASCII, text))
    merges = train(words, 500)
    vocab = {}
    for t in [*(letters[b] for b in range(256)), *(a + b for a, b in merges)]:
        vocab.setdefault(t, len(vocab))
    added = [{"id": len(vocab) + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(SPECIAL)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": True, "vocab": vocab,
                  "merges": [a + " " + b for a, b in merges]}}
    write(folder + "/tokenizer.json", tokenizer)
    write(folder + "/tokenizer_config.json", {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
                                              "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"})
    print("text_encoder: vocab_size %d" % (len(vocab) + len(SPECIAL)), {a["content"]: a["id"] for a in added})


def clip(folder):
    letters = alphabet()
    words = collections.Counter()
    for w in re.findall(CLIP_ASCII, TEXT.lower()):
        w = [letters[b] for b in w.encode()]
        words[(*w[:-1], w[-1] + "</w>")] += 1
    merges = train(words, 500)
    vocab = {}
    tokens = [letters[b] for b in range(256)]
    for t in [*tokens, *(t + "</w>" for t in tokens), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(t, len(vocab))
    write(folder + "/vocab.json", vocab)
    with open(folder + "/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(a + " " + b + "\n" for a, b in merges))
    print("text_encoder_2: vocab_size %d" % len(vocab))


def write(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    root = sys.argv[1]
    for part in ("text_encoder", "text_encoder_2"):
        os.makedirs(root + "/" + part, exist_ok=True)
    llama(root + "/text_encoder")
    clip(root + "/text_encoder_2")
