/* Tokenizer files and texts. The first byte says what the rest is, NUL bytes separate its parts:
 *   L  tokenizer.json of Llama's kind, text        C  vocab.json, merges.txt, text
 *   J  tokenizer.json of CLIP's kind, text         T  text for tokenizers made here
 *   P  config.json of a prompt, prompt, name */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "text/bpe.h"
#include "text/bpe_internal.h"
#include "text/prompt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The part up to the next NUL byte; moves *s behind it. */
static const char *part(const char **s, size_t *n, size_t *len)
{
    const char *begin = *s, *end = memchr(*s, 0, *n);

    *len = end ? (size_t)(end - begin) : *n;
    *s += *len + (end != NULL);
    *n -= *len + (end != NULL);
    return begin;
}

static json_t *parse(const char *s, size_t n)
{
    struct hv_err e = {0};
    json_t *root = NULL;

    hv_json_parse(&root, s, n, HV_JSON_DEPTH, &e);
    return root;
}

/* What a tokenizer must hold for any text: ids it knows, the ends where they belong. */
static void encode(const struct hv_bpe *b, const char *s, size_t n)
{
    struct hv_err e = {0};
    struct hv_ids ids = {0};

    if (b && !hv_bpe_encode(b, s, n, &ids, &e)) {
        if (ids.n < 1 || ids.id[0] != hv_bpe_first(b) || (b->kind == HV_BPE_CLIP && (ids.n < 2 || ids.id[ids.n - 1] != hv_bpe_last(b))))
            abort();
        for (size_t i = 0; i < ids.n; i++)
            if (ids.id[i] < 0)
                abort();
    }
    hv_ids_close(&ids);
}

/* A vocabulary of all letters of the byte alphabet and some merges. */
static struct hv_bpe *made_here(int clip)
{
    json_t *vocab = json_object(), *root = json_object(), *model = json_object();
    struct hv_bpe *b = NULL;
    struct hv_err e = {0};
    char s[12];

    for (int i = 0; i < 256; i++) {
        s[hv_bpe_letter(s, (unsigned char)i)] = 0;
        json_object_set_new(vocab, s, json_integer(i));
        strcat(s, "</w>");
        json_object_set_new(vocab, s, json_integer(256 + i));
    }
    json_object_set_new(vocab, "ab", json_integer(512));
    json_object_set_new(vocab, "abab", json_integer(513));
    json_object_set_new(vocab, "<|startoftext|>", json_integer(514));
    json_object_set_new(vocab, "<|endoftext|>", json_integer(515));
    if (clip) {
        static const char merges[] = "#\na b\nab ab\n";
        hv_bpe_from_clip(&b, vocab, merges, strlen(merges), &e);
        json_decref(model);
    } else {
        static const char text[] = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{},\"behavior\":\"Isolated\"},"
                            "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}";
        json_t *pre = parse(text, strlen(text));
        json_object_set_new(json_object_get(json_array_get(json_object_get(pre, "pretokenizers"), 0), "pattern"), "Regex",
                            json_string(hv_bpe_llama_regex));
        json_object_set_new(root, "pre_tokenizer", pre);
        json_object_set(model, "vocab", vocab);
        json_object_set_new(model, "merges", json_pack("[s,s]", "a b", "ab ab"));
        json_object_set_new(root, "model", model);
        json_object_set_new(root, "added_tokens", json_pack("[{s:s,s:i},{s:s,s:i},{s:s,s:i,s:b,s:b}]", "content", "<|begin_of_text|>", "id", 600,
                                                            "content", "<image>", "id", 601, "content", "<|eot_id|>", "id", 602, "lstrip", 1, "single_word", 1));
        hv_bpe_from_llama(&b, root, NULL, &e);
    }
    if (!b)
        abort();
    json_decref(vocab);
    json_decref(root);
    return b;
}

static void prompt(const struct hv_bpe *b, const char *s, size_t n)
{
    struct hv_prompt_config c;
    struct hv_prompt p = {0};
    struct hv_err e = {0};
    size_t len[3];
    const char *at[3];
    char name[64];

    for (int i = 0; i < 3; i++)
        at[i] = part(&s, &n, &len[i]);
    snprintf(name, sizeof name, "%.*s", (int)(len[2] < 60 ? len[2] : 60), at[2]);
    json_t *root = parse(at[0], len[0]);
    if (!hv_prompt_config_parse(&c, root, &e) && c.text_len < 4096 && c.crop_start < 4096 &&
        !hv_prompt_encode(&p, &c, b, 601, 0, at[1], len[1], len[2] ? name : NULL, &e)) {
        if (p.n > p.total || p.image < 0 || p.image >= p.n || p.ids[p.image] != 601)
            abort();
    }
    hv_prompt_close(&p);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct hv_bpe *fixed[2];
    struct hv_bpe *b = NULL;
    struct hv_err e = {0};
    json_t *root = NULL;
    size_t n = size ? size - 1 : 0, a, c;

    if (!size)
        return 0;
    for (int i = 0; i < 2; i++)
        if (!fixed[i])
            fixed[i] = made_here(i);
    const char *s = (const char *)data + 1;
    if (data[0] == 'L' || data[0] == 'J' || data[0] == 'C') {
        const char *json = part(&s, &n, &a);
        if ((root = parse(json, a)) != NULL && data[0] == 'L') {
            hv_bpe_from_llama(&b, root, NULL, &e);
        } else if (root && data[0] == 'J') {
            hv_bpe_from_clip_json(&b, root, &e);
        } else if (root) {
            const char *merges = part(&s, &n, &c);
            hv_bpe_from_clip(&b, root, merges, c, &e);
        }
        if (!b != (e.code != 0 || !root))
            abort();
        encode(b, s, n);
    } else if (data[0] == 'P') {
        prompt(fixed[0], s, n);
    } else {
        encode(fixed[0], s, n);
        encode(fixed[1], s, n);
    }
    json_decref(root);
    hv_bpe_close(b);
    return 0;
}
