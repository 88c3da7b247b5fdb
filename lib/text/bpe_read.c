/* bpe_read.c - tokenizer files to struct hv_bpe. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/json.h"
#include "core/temp.h"
#include "text/bpe_internal.h"

#define CLIP_MERGES  48894              /* the slow tokenizer reads no more */
#define ADDED_MAX    65536
#define MERGES_BYTES ((size_t)64 << 20)

static int make(struct hv_bpe **out, enum hv_bpe_kind kind, struct hv_err *e)
{
    struct hv_bpe *b = calloc(1, sizeof *b);

    *out = b;
    if (!b)
        return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
    b->kind = kind;
    b->first = b->last = -1;
    return hv_vocab_open(&b->vocab, e);
}

/* On failure the object goes. */
static int finish(struct hv_bpe **b, int rc)
{
    if (rc) {
        hv_bpe_close(*b);
        *b = NULL;
    }
    return rc;
}

/* ---- parts of tokenizer.json ---- */

static int read_vocab(struct hv_bpe *b, const json_t *vocab, struct hv_err *e)
{
    const char *key;
    json_t *v;

    if (!json_is_object(vocab) || !json_object_size(vocab))
        return hv_fail(e, HV_EINPUT, "vocab: not an object with tokens");
    json_object_foreach((json_t *)(uintptr_t)vocab, key, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return hv_fail(e, HV_EINPUT, "vocab: '%.80s': not an id", key);
        if (hv_vocab_add(b->vocab, key, strlen(key), (int32_t)json_integer_value(v), e))
            return e->code;
    }
    return 0;
}

static int add_merge(struct hv_bpe *b, const char *s, size_t n, struct hv_err *e)
{
    const char *gap = memchr(s, ' ', n);

    if (!gap || memchr(gap + 1, ' ', n - (size_t)(gap + 1 - s)))
        return hv_fail(e, HV_EINPUT, "merges: '%.*s': not two symbols", (int)(n < 80 ? n : 80), s);
    return hv_vocab_merge(b->vocab, s, (size_t)(gap - s), gap + 1, n - (size_t)(gap + 1 - s), e);
}

/* "A B" or ["A", "B"]: both forms occur. */
static int read_merges(struct hv_bpe *b, const json_t *merges, size_t most, struct hv_err *e)
{
    const size_t n = json_array_size(merges);

    if (!json_is_array(merges))
        return hv_fail(e, HV_EINPUT, "merges: not a list");
    for (size_t i = 0; i < n && i < most; i++) {
        const json_t *m = json_array_get(merges, i), *x = json_array_get(m, 0), *y = json_array_get(m, 1);
        int rc;
        if (json_is_string(m))
            rc = add_merge(b, json_string_value(m), json_string_length(m), e);
        else if (json_array_size(m) == 2 && json_is_string(x) && json_is_string(y))
            rc = hv_vocab_merge(b->vocab, json_string_value(x), json_string_length(x), json_string_value(y),
                                json_string_length(y), e);
        else
            rc = hv_fail(e, HV_EINPUT, "merges: entry %zu is not a pair of strings", i);
        if (rc)
            return rc;
    }
    return 0;
}

static int longest_first(const void *x, const void *y)
{
    const struct hv_added *a = x, *b = y;

    if (a->n != b->n)
        return a->n < b->n ? 1 : -1;
    return strcmp(a->text, b->text);
}

static int read_added(struct hv_bpe *b, const json_t *list, struct hv_err *e)
{
    const size_t n = json_array_size(list);

    if (list && !json_is_null(list) && !json_is_array(list))
        return hv_fail(e, HV_EINPUT, "added_tokens: not a list");
    if (n > ADDED_MAX)
        return hv_fail(e, HV_EINPUT, "added_tokens: %zu, expected at most %d", n, ADDED_MAX);
    b->added = calloc(n + 1, sizeof *b->added);
    if (!b->added)
        return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *t = json_array_get(list, i), *content = json_object_get(t, "content");
        struct hv_added *a = &b->added[b->n_added];
        int64_t id = -1;
        if (!json_is_string(content) || !json_string_length(content) || memchr(json_string_value(content), 0, json_string_length(content)))
            return hv_fail(e, HV_EINPUT, "added_tokens: entry %zu has no content", i);
        if (hv_json_int(t, "id", 0, INT32_MAX, &id, e) || hv_json_bool(t, "lstrip", &a->lstrip, e) ||
            hv_json_bool(t, "rstrip", &a->rstrip, e) || hv_json_bool(t, "single_word", &a->single_word, e) ||
            hv_json_bool(t, "normalized", &a->normalized, e))
            return hv_context(e, "added_tokens: entry %zu", i);
        if (id < 0)
            return hv_fail(e, HV_EINPUT, "added_tokens: '%.80s' has no id", json_string_value(content));
        if (!(a->text = strdup(json_string_value(content))))
            return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
        a->n = json_string_length(content);
        a->id = (int32_t)id;
        b->n_added++;
    }
    qsort(b->added, (size_t)b->n_added, sizeof *b->added, longest_first);
    return 0;
}

/* ---- Llama ---- */

static int is_string(const json_t *obj, const char *key, const char *value)
{
    const char *s = json_string_value(json_object_get(obj, key));

    return s && !strcmp(s, value);
}

/* Absent or null, or an empty string. */
static int is_none(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    return !v || json_is_null(v) || (json_is_string(v) && !json_string_length(v));
}

/* The file must be of the one kind that is implemented: anything else would give other ids without a word. */
static int check_kind(const json_t *t, struct hv_err *e)
{
    const json_t *pre = json_object_get(t, "pre_tokenizer"), *list = json_object_get(pre, "pretokenizers");
    const json_t *split = json_array_get(list, 0), *bytes = json_array_get(list, 1), *model = json_object_get(t, "model");
    const json_t *invert = json_object_get(split, "invert");

    if (!is_none(t, "normalizer"))
        return hv_fail(e, HV_EUNSUP, "normalizer: expected null");
    if (!json_is_object(model))
        return hv_fail(e, HV_EINPUT, "model: missing");
    if (!is_none(model, "type") && !is_string(model, "type", "BPE"))
        return hv_fail(e, HV_EUNSUP, "model: type is not BPE");
    if (!is_none(model, "dropout") || !is_none(model, "continuing_subword_prefix") || !is_none(model, "end_of_word_suffix") ||
        json_is_true(json_object_get(model, "byte_fallback")))
        return hv_fail(e, HV_EUNSUP, "model: dropout, subword prefix or suffix, or byte fallback: expected none");
    if (!is_string(pre, "type", "Sequence") || json_array_size(list) != 2 || !is_string(split, "type", "Split") ||
        !is_string(split, "behavior", "Isolated") || json_is_true(invert) || !is_string(bytes, "type", "ByteLevel") ||
        !json_is_false(json_object_get(bytes, "add_prefix_space")) || !json_is_false(json_object_get(bytes, "use_regex")))
        return hv_fail(e, HV_EUNSUP, "pre_tokenizer: expected Split(Regex, Isolated) and ByteLevel without prefix or pattern");
    if (!is_string(json_object_get(split, "pattern"), "Regex", hv_bpe_llama_regex))
        return hv_fail(e, HV_EUNSUP, "pre_tokenizer: the pattern is not Llama-3's");
    return 0;
}

/* The first special token of a single sequence in a TemplateProcessing, which may be one of a Sequence. */
static const char *template_bos(const json_t *post)
{
    const json_t *list = json_object_get(post, "processors");
    const json_t *first = json_array_get(json_object_get(post, "single"), 0);

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *p = json_array_get(list, i);
        if (is_string(p, "type", "TemplateProcessing"))
            first = json_array_get(json_object_get(p, "single"), 0);
    }
    return json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
}

static int find_bos(struct hv_bpe *b, const json_t *t, const json_t *config, struct hv_err *e)
{
    const json_t *named = json_object_get(config, "bos_token");
    const char *bos = json_string_value(json_is_object(named) ? json_object_get(named, "content") : named);

    if (!bos)
        bos = template_bos(json_object_get(t, "post_processor"));
    if (!bos)
        bos = "<|begin_of_text|>";
    b->first = hv_bpe_id(b, bos);
    return b->first >= 0 ? 0 : hv_fail(e, HV_EINPUT, "the vocabulary has no '%.80s'", bos);
}

static int llama(struct hv_bpe *b, const json_t *t, const json_t *config, struct hv_err *e)
{
    const json_t *model = json_object_get(t, "model");

    if (check_kind(t, e) || read_vocab(b, json_object_get(model, "vocab"), e) ||
        read_merges(b, json_object_get(model, "merges"), HV_VOCAB_MAX, e) || read_added(b, json_object_get(t, "added_tokens"), e) ||
        hv_json_bool(model, "ignore_merges", &b->ignore_merges, e))
        return e->code;
    if (!hv_vocab_is_closed(b->vocab))
        return hv_fail(e, HV_EINPUT, "merges: one makes a token that the vocabulary has not");
    return find_bos(b, t, config, e) ? e->code : hv_bpe_finish(b, e);
}

int hv_bpe_from_llama(struct hv_bpe **b, const json_t *tokenizer, const json_t *config, struct hv_err *e)
{
    if (make(b, HV_BPE_LLAMA, e))
        return finish(b, e->code);
    return finish(b, llama(*b, tokenizer, config, e));
}

int hv_bpe_open_llama(struct hv_bpe **b, const char *dir, struct hv_err *e)
{
    char path[HV_PATH], more[HV_PATH];
    json_t *t = NULL, *config = NULL;

    *b = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    snprintf(more, sizeof more, "%s/tokenizer_config.json", dir);
    if (!hv_json_read(&t, path, e) && (access(more, F_OK) || !hv_json_read(&config, more, e)) &&
        hv_bpe_from_llama(b, t, config, e))
        hv_context(e, "%s", path);
    json_decref(t);
    json_decref(config);
    return e->code;
}

/* ---- CLIP ---- */

/* The two special tokens cut the text; both must be in the vocabulary. */
static int clip_specials(struct hv_bpe *b, struct hv_err *e)
{
    static const char *const text[2] = {"<|startoftext|>", "<|endoftext|>"};

    b->first = hv_bpe_id(b, text[0]);
    b->last = hv_bpe_id(b, text[1]);
    if (b->first < 0 || b->last < 0)
        return hv_fail(e, HV_EINPUT, "the vocabulary has no '%s'", text[b->first >= 0]);
    for (int i = 0; i < b->n_added; i++)
        free(b->added[i].text);
    free(b->added);
    b->n_added = 0;
    if (!(b->added = calloc(2, sizeof *b->added)))
        return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
    for (int i = 0; i < 2; i++) {
        b->added[i] = (struct hv_added){.text = strdup(text[i]), .n = strlen(text[i]), .id = i ? b->last : b->first};
        if (!b->added[i].text)
            return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
        b->n_added++;
        if (hv_vocab_add(b->vocab, text[i], b->added[i].n, b->added[i].id, e))  /* tokenizer.json may keep them apart */
            return e->code;
    }
    return hv_bpe_finish(b, e);
}

static int clip_text(struct hv_bpe *b, const json_t *vocab, const char *s, size_t n, struct hv_err *e)
{
    size_t at = 0, line = 0;

    if (read_vocab(b, vocab, e))
        return e->code;
    while (n && (s[n - 1] == '\n' || s[n - 1] == '\r' || s[n - 1] == ' '))
        n--;
    for (; at < n && line <= CLIP_MERGES; line++) {
        const char *nl = memchr(s + at, '\n', n - at);
        size_t len = nl ? (size_t)(nl - (s + at)) : n - at;
        const size_t next = at + len + 1;
        while (len && (s[at + len - 1] == '\r' || s[at + len - 1] == ' '))
            len--;
        if (line && add_merge(b, s + at, len, e))           /* the first line is a comment */
            return hv_context(e, "line %zu", line + 1);
        at = next;
    }
    return clip_specials(b, e);
}

int hv_bpe_from_clip(struct hv_bpe **b, const json_t *vocab, const char *merges, size_t n, struct hv_err *e)
{
    if (make(b, HV_BPE_CLIP, e))
        return finish(b, e->code);
    return finish(b, clip_text(*b, vocab, merges, n, e));
}

int hv_bpe_from_clip_json(struct hv_bpe **b, const json_t *tokenizer, struct hv_err *e)
{
    const json_t *model = json_object_get(tokenizer, "model");

    if (make(b, HV_BPE_CLIP, e) || read_vocab(*b, json_object_get(model, "vocab"), e) ||
        read_merges(*b, json_object_get(model, "merges"), CLIP_MERGES, e) ||
        read_added(*b, json_object_get(tokenizer, "added_tokens"), e))
        return finish(b, e->code);
    return finish(b, clip_specials(*b, e));
}

/* A whole file into memory. */
static int read_file(char **text, size_t *n, const char *path, struct hv_err *e)
{
    FILE *f = fopen(path, "rb");
    size_t cap = 0, got = 1;

    *text = NULL;
    *n = 0;
    if (!f)
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    while (got && !e->code) {
        if (*n == cap) {
            char *p = realloc(*text, cap = 2 * cap + 65536);
            if (!p) {
                hv_fail(e, HV_ENOMEM, "%s: out of memory", path);
                break;
            }
            *text = p;
        }
        got = fread(*text + *n, 1, cap - *n, f);
        *n += got;
        if (*n > MERGES_BYTES)
            hv_fail(e, HV_EINPUT, "%s: over %zu MiB", path, MERGES_BYTES >> 20);
    }
    if (ferror(f))
        hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    fclose(f);
    return e->code;
}

int hv_bpe_open_clip(struct hv_bpe **b, const char *dir, struct hv_err *e)
{
    char vocab[HV_PATH], merges[HV_PATH], both[HV_PATH], *text = NULL;
    json_t *root = NULL;
    size_t n = 0;

    *b = NULL;
    snprintf(vocab, sizeof vocab, "%s/vocab.json", dir);
    snprintf(merges, sizeof merges, "%s/merges.txt", dir);
    snprintf(both, sizeof both, "%s/tokenizer.json", dir);
    if (access(vocab, F_OK)) {
        if (access(both, F_OK))
            hv_fail(e, HV_EIO, "%s: neither vocab.json and merges.txt nor tokenizer.json", dir);
        else if (!hv_json_read(&root, both, e) && hv_bpe_from_clip_json(b, root, e))
            hv_context(e, "%s", both);
    } else if (!hv_json_read(&root, vocab, e) && !read_file(&text, &n, merges, e) && hv_bpe_from_clip(b, root, text, n, e)) {
        hv_context(e, "%s", merges);
    }
    free(text);
    json_decref(root);
    return e->code;
}
