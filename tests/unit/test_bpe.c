/* Tokenizers: UTF-8, NFC and lower case, merges by rank, both flavours on small vocabularies made here, files of other kinds,
 * the prompt's template, its shortening and its mask. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/json.h"
#include "text/bpe.h"
#include "text/prompt.h"
#include "text/unicode.h"
#include "text/vocab.h"

/* ---- Unicode ---- */

static void utf8_is_strict(void **state)
{
    static const char *const bad[] = {"\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80", "\xff", "\xc3", "\xf0\x9f\x98"};
    static const uint32_t good[] = {0, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff};
    char buf[4];
    uint32_t c;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[16] = "ab";
        strcat(text, bad[i]);
        assert_int_equal(hv_utf8_check(text, strlen(text)), 2);
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        const int n = hv_utf8_put(buf, good[i]);
        assert_int_equal(hv_utf8_get(buf, (size_t)n, &c), n);
        assert_int_equal(c, good[i]);
        if (n > 1)
            assert_int_equal(hv_utf8_get(buf, (size_t)n - 1, &c), 0);
    }
}

enum form { NFC, LOWER };

static void expect(enum form form, const char *in, const char *want)
{
    struct hv_cps a = {0}, b = {0}, w = {0};
    struct hv_err e = {0};

    assert_int_equal(hv_cps_from_utf8(&a, in, strlen(in), &e), 0);
    assert_int_equal(hv_cps_from_utf8(&w, want, strlen(want), &e), 0);
    assert_int_equal(form == NFC ? hv_nfc(&b, &a, &e) : hv_lower(&b, a.c, a.n, &e), 0);
    if (b.n != w.n || (w.n && memcmp(b.c, w.c, w.n * sizeof *w.c)))
        fail_msg("'%s': expected '%s'", in, want);
    hv_cps_close(&a);
    hv_cps_close(&b);
    hv_cps_close(&w);
}

static void nfc(void **state)
{
    static const char *const pairs[][2] = {
        {"", ""}, {"plain", "plain"}, {"e\u0301", "\u00e9"}, {"a\u0323\u0302", "\u1ead"}, {"a\u0302\u0323", "\u1ead"},
        {"\u212b\u2126", "\u00c5\u03a9"}, {"\u1100\u1161\u11a8", "\uac01"}, {"\uac00\u11a8", "\uac01"}, {"\u1161\u1100", "\u1161\u1100"},
        {"\u0958", "\u0915\u093c"}, {"\u0301e", "\u0301e"}, {"a\u0315\u0300\u05ae\u0300b", "\u00e0\u05ae\u0300\u0315b"},
        {"\uf900", "\u8c48"}, {"\u1e9b\u0323", "\u1e9b\u0323"}, {"\u0344", "\u0308\u0301"}, {"q\u0307\u0323", "q\u0323\u0307"},
        {"\u0b47\u0300\u0b3e", "\u0b47\u0300\u0b3e"}, {"\u0b47\u0b3e", "\u0b4b"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        expect(NFC, pairs[i][0], pairs[i][1]);
}

static void lower_case(void **state)
{
    static const char *const pairs[][2] = {
        {"ABC xyz 1", "abc xyz 1"}, {"\u00c9\u0110\u0416", "\u00e9\u0111\u0436"}, {"\u0130", "i\u0307"}, {"\u1e9e\u01c5", "\u00df\u01c6"},
        {"\u039f\u03a3", "\u03bf\u03c2"}, {"\u039f\u03a3\u0391", "\u03bf\u03c3\u03b1"}, {"\u03a3", "\u03c3"}, {"A\u0301\u03a3.", "a\u0301\u03c2."},
        {"A\u03a3\u0301B", "a\u03c3\u0301b"}, {"1\u03a3", "1\u03c3"}, {"\U00010400", "\U00010428"}, {"\u13a0", "\uab70"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        expect(LOWER, pairs[i][0], pairs[i][1]);
}

static void categories(void **state)
{
    (void)state;
    assert_int_equal(hv_uc(0x200b) & HV_UC_OTHER, HV_UC_OTHER);         /* format */
    assert_int_equal(hv_uc(0x0378) & HV_UC_OTHER, HV_UC_OTHER);         /* unassigned */
    assert_int_equal(hv_uc(0xe000) & HV_UC_OTHER, HV_UC_OTHER);         /* private */
    assert_int_equal(hv_uc(0x10ffff) & HV_UC_OTHER, HV_UC_OTHER);
    assert_int_equal(hv_uc('a') & (HV_UC_OTHER | HV_UC_SPACE), 0);
    assert_int_equal(hv_uc(0x3000) & HV_UC_SPACE, HV_UC_SPACE);
    assert_true(hv_uc_is_white(0x2028) && hv_uc_is_white(0x85) && hv_uc_is_white(0xa0) && hv_uc_is_white('\n'));
    assert_false(hv_uc_is_white(0x180e) || hv_uc_is_white(0x200b) || hv_uc_is_white('_'));
}

/* Many marks in a row must not take quadratic time, nor be lost. */
static void long_mark_runs(void **state)
{
    struct hv_cps a = {0}, b = {0};
    struct hv_err e = {0};

    (void)state;
    for (int i = 0; i < 200000; i++)
        assert_int_equal(hv_cps_push(&a, i % 2 ? 0x0323 : 0x0302, &e), 0);
    assert_int_equal(hv_nfc(&b, &a, &e), 0);
    assert_int_equal(b.n, a.n);
    assert_int_equal(b.c[0], 0x0323);                                   /* class 220 before class 230 */
    assert_int_equal(b.c[b.n - 1], 0x0302);
    hv_cps_close(&a);
    hv_cps_close(&b);
}

/* ---- merges ---- */

/* The definition: again and again the pair of the lowest rank, the leftmost. */
static size_t merge_slowly(const char pairs[][2], int n_pairs, char *s, size_t n)
{
    for (;;) {
        int best = n_pairs;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (int r = 0; r < best; r++)
                if (pairs[r][0] == s[i] && pairs[r][1] == s[i + 1]) {
                    best = r;
                    at = i;
                }
        if (best == n_pairs)
            return n;
        s[at] = (char)('A' + best);                                     /* the symbol that this merge makes */
        memmove(s + at + 1, s + at + 2, n - at - 2);
        n--;
    }
}

static void merges_by_rank(void **state)
{
    /* a b c, then A = ab, B = Ac, C = cc, D = BB, E = aA, F = Cb, each from what is there before it */
    static const char pairs[][2] = {{'a', 'b'}, {'A', 'c'}, {'c', 'c'}, {'B', 'B'}, {'a', 'A'}, {'C', 'b'}};
    static const char *const left[] = {"a", "ab", "c", "abc", "a", "cc"}, *const right[] = {"b", "c", "c", "abc", "ab", "b"};
    static const char *const text[] = {"ab", "abc", "cc", "abcabc", "aab", "ccb"};
    struct hv_vocab *v = NULL;
    struct hv_err e = {0};
    unsigned seed = 1;

    (void)state;
    assert_int_equal(hv_vocab_open(&v, &e), 0);
    assert_int_equal(hv_vocab_add(v, "a", 1, 0, &e) | hv_vocab_add(v, "b", 1, 1, &e) | hv_vocab_add(v, "c", 1, 2, &e), 0);
    for (int i = 0; i < 6; i++)
        assert_int_equal(hv_vocab_merge(v, left[i], strlen(left[i]), right[i], strlen(right[i]), &e), 0);
    assert_false(hv_vocab_is_closed(v));                                /* "ab" has no id yet */
    for (int i = 0; i < 6; i++)
        assert_int_equal(hv_vocab_add(v, text[i], strlen(text[i]), 3 + i, &e), 0);
    assert_true(hv_vocab_is_closed(v));
    for (int k = 0; k < 2000; k++) {
        char s[40];
        int32_t sym[40];
        size_t n = 1 + (size_t)k % 39, m;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            s[i] = (char)('a' + (seed >> 24) % 3);
            sym[i] = hv_vocab_symbol(v, &s[i], 1);
        }
        m = n;
        n = merge_slowly(pairs, 6, s, n);
        assert_int_equal(hv_vocab_apply(v, sym, &m, &e), 0);
        assert_int_equal(m, n);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(hv_vocab_id(v, sym[i]), s[i] >= 'a' ? s[i] - 'a' : 3 + s[i] - 'A');
    }
    assert_int_equal(hv_vocab_add(v, "ab", 2, 77, &e), HV_EINPUT);
    hv_vocab_close(v);
}

/* ---- Llama ---- */

#define REGEX "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
              "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

/* A tokenizer.json whose vocabulary is a b c _ (blank) newline < | > d and some words. */
static const char llama_json[] =
    "{\"added_tokens\": [{\"id\": 20, \"content\": \"<bos>\", \"special\": true}, {\"id\": 21, \"content\": \"<b>\"},"
    " {\"id\": 22, \"content\": \"<b>c\"}, {\"id\": 23, \"content\": \"ww\", \"single_word\": true},"
    " {\"id\": 24, \"content\": \"<s>\", \"lstrip\": true, \"rstrip\": true}, {\"id\": 25, \"content\": \"<n>\", \"normalized\": true}],"
    "\"normalizer\": null,"
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" REGEX "\"},"
    " \"behavior\": \"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]},"
    "\"model\": {\"type\": \"BPE\", \"ignore_merges\": true,"
    " \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"\\u0120\": 3, \"\\u010a\": 4, \"<\": 5, \">\": 6, \"ab\": 7, \"abc\": 8, \"cba\": 9,"
    " \"\\u00c3\": 10, \"\\u00a9\": 11, \"w\": 12, \"1\": 13, \"\\u0120a\": 14},"
    " \"merges\": [\"a b\", [\"ab\", \"c\"], \"\\u0120 a\"]}}";

static struct hv_bpe *llama(const char *json, struct hv_err *e)
{
    struct hv_bpe *b = NULL;
    json_t *root = NULL, *config = NULL;
    static const char bos[] = "{\"bos_token\": {\"content\": \"<bos>\"}}";

    assert_int_equal(hv_json_parse(&root, json, strlen(json), 64, e), 0);
    assert_int_equal(hv_json_parse(&config, bos, strlen(bos), 64, e), 0);
    hv_bpe_from_llama(&b, root, config, e);
    json_decref(root);
    json_decref(config);
    return b;
}

static void expect_ids(const struct hv_bpe *b, const char *text, size_t n, const char *want)
{
    struct hv_ids ids = {0};
    struct hv_err e = {0};
    char got[512] = "";

    assert_int_equal(hv_bpe_encode(b, text, n, &ids, &e), 0);
    for (size_t i = 0; i < ids.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d", i ? " " : "", ids.id[i]);
    if (strcmp(got, want))
        fail_msg("'%s': %s, expected %s", text, got, want);
    hv_ids_close(&ids);
}

static void llama_encodes(void **state)
{
    static const char *const cases[][2] = {
        {"", "20"}, {"abc", "20 8"}, {"cba", "20 9"},                   /* only ignore_merges finds cba */
        {"bca", "20 1 2 0"}, {"ab ab", "20 7 3 7"}, {" abc", "20 3 8"}, {"c a", "20 2 14"}, {"a\n\nb", "20 0 4 4 1"},
        {"a  b", "20 0 3 3 1"},                                         /* the last blank goes to the word */
        {"1111", "20 13 13 13 13"}, {"\xc3\xa9", "20 10 11"}, {"z", "20"},      /* a byte without a symbol is left out */
        {"a<b>c", "20 0 22"}, {"a<b>b", "20 0 21 1"}, {"<bos>", "20 20"}, {"<b", "20 5 1"},
        {"ww", "20 23"}, {"ww a", "20 23 14"}, {"aww", "20 0 12 12"}, {"wwww", "20 12 12 12 12"}, {"a <s>\n b", "20 0 24 1"},
        {"a<n>b", "20 0 25 1"},
    };
    struct hv_err e = {0};
    struct hv_bpe *b = llama(llama_json, &e);

    (void)state;
    assert_non_null(b);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_ids(b, cases[i][0], strlen(cases[i][0]), cases[i][1]);
    expect_ids(b, "a\0b", 3, "20 0 1");                                 /* a NUL is a byte like others; this one has no symbol */
    assert_int_equal(hv_bpe_id(b, "<b>c"), 22);
    assert_int_equal(hv_bpe_id(b, "abc"), 8);
    assert_int_equal(hv_bpe_id(b, "nothing"), -1);
    assert_string_equal(hv_bpe_added(b, 21), "<b>");
    assert_null(hv_bpe_added(b, 7));
    struct hv_ids ids = {0};
    assert_int_equal(hv_bpe_encode(b, "ab\xff", 3, &ids, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "offset 2"));
    hv_ids_close(&ids);
    hv_bpe_close(b);
}

/* llama_json with one piece replaced. */
static void expect_refused(const char *old, const char *new, int code, const char *why)
{
    char text[4096];
    struct hv_err e = {0};
    const char *at = strstr(llama_json, old);

    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - llama_json), llama_json, new, at + strlen(old));
    assert_null(llama(text, &e));
    assert_int_equal(e.code, code);
    if (!strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void llama_refuses(void **state)
{
    (void)state;
    expect_refused("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", HV_EUNSUP, "normalizer");
    expect_refused("Isolated", "Removed", HV_EUNSUP, "pre_tokenizer");
    expect_refused("{1,3}", "{1,2}", HV_EUNSUP, "pattern");
    expect_refused("\"BPE\"", "\"WordPiece\"", HV_EUNSUP, "BPE");
    expect_refused("\"use_regex\": false", "\"use_regex\": true", HV_EUNSUP, "pre_tokenizer");
    expect_refused("\"a b\"", "\"a b c\"", HV_EINPUT, "merges");
    expect_refused("\"a b\"", "7", HV_EINPUT, "merges");
    expect_refused("\"a b\"", "\"b b\"", HV_EINPUT, "merges");             /* makes a token without an id */
    expect_refused("\"a\": 0", "\"a\": -1", HV_EINPUT, "vocab");
    expect_refused("\"id\": 20, ", "", HV_EINPUT, "added_tokens");
    expect_refused("<bos>", "<other>", HV_EINPUT, "<bos>");
}

/* ---- CLIP ---- */

static const char clip_vocab[] =
    "{\"a\": 0, \"b\": 1, \"c\": 2, \"a</w>\": 3, \"b</w>\": 4, \"c</w>\": 5, \"ab</w>\": 6, \"'</w>\": 7, \"'\": 8, \"s</w>\": 9, \"'s</w>\": 10,"
    " \"1</w>\": 11, \"\\u00c3\": 12, \"\\u00a9</w>\": 13, \"abc\": 14, \"<|startoftext|>\": 30, \"<|endoftext|>\": 31}";
static const char clip_merges[] = "#version: 0.2\na b</w>\n' s</w>\n";

static void clip_encodes(void **state)
{
    static const char *const cases[][2] = {
        {"", "30 31"}, {"ab", "30 6 31"}, {"AB aB\t\nab", "30 6 6 6 31"}, {"bab", "30 1 6 31"}, {"a'S", "30 3 10 31"},
        {"11", "30 11 11 31"},                                          /* every digit by itself */
        {"e\xcc\x81", "30 12 13 31"},                                   /* composed first */
        {"z", "30 31 31"},                                              /* unknown: the end token */
        {"a\xe2\x80\x8b\x62", "30 6 31"},                               /* zero width space dropped, the word closes */
        {"a<|endoftext|>b", "30 3 31 4 31"}, {"<|STARTOFTEXT|>", "30 30 31"}, {"\xef\xbf\xbd\x01\x61", "30 3 31"},
        {"\xe4\xb8\x80", "30 31 31 31 31"},
    };
    struct hv_bpe *b = NULL;
    struct hv_err e = {0};
    json_t *vocab = NULL;

    (void)state;
    assert_int_equal(hv_json_parse(&vocab, clip_vocab, strlen(clip_vocab), 64, &e), 0);
    assert_int_equal(hv_bpe_from_clip(&b, vocab, clip_merges, strlen(clip_merges), &e), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_ids(b, cases[i][0], strlen(cases[i][0]), cases[i][1]);
    assert_int_equal(hv_bpe_first(b), 30);
    assert_int_equal(hv_bpe_last(b), 31);

    struct hv_ids ids = {0};
    int64_t dropped = 0;
    assert_int_equal(hv_prompt_encode_clip(&ids, b, "a b c a b c", 11, 5, &dropped, &e), 0);
    assert_int_equal(ids.n, 5);
    assert_int_equal(ids.id[3], 5);
    assert_int_equal(ids.id[4], 31);
    assert_int_equal(dropped, 3);
    hv_ids_close(&ids);
    hv_bpe_close(b);

    /* the same in a tokenizer.json, pairs as lists */
    char text[2048];
    json_t *root = NULL;
    snprintf(text, sizeof text, "{\"model\": {\"vocab\": %s, \"merges\": [[\"a\", \"b</w>\"], \"' s</w>\"]}}", clip_vocab);
    assert_int_equal(hv_json_parse(&root, text, strlen(text), 64, &e), 0);
    assert_int_equal(hv_bpe_from_clip_json(&b, root, &e), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_ids(b, cases[i][0], strlen(cases[i][0]), cases[i][1]);
    hv_bpe_close(b);
    assert_int_equal(hv_bpe_from_clip(&b, vocab, "#\na b c\n", 8, &e), HV_EINPUT);
    assert_null(b);
    assert_non_null(strstr(e.msg, "line 2"));
    json_decref(root);
    json_decref(vocab);
}

static void missing_files(void **state)
{
    struct hv_bpe *b = NULL;
    struct hv_err e = {0};

    (void)state;
    assert_int_equal(hv_bpe_open_llama(&b, "/nonexistent", &e), HV_EIO);
    e = (struct hv_err){0};
    assert_int_equal(hv_bpe_open_clip(&b, "/nonexistent", &e), HV_EIO);
    assert_null(b);
}

/* ---- prompt ---- */


static void encode_prompt(const struct hv_prompt_config *c, const struct hv_bpe *b, const char *text, const char *name, const char *want,
                          int64_t dropped)
{
    struct hv_prompt p;
    struct hv_err e = {0};
    char got[256] = "";

    assert_int_equal(hv_prompt_encode(&p, c, b, 24, 99, text, strlen(text), name, &e), 0);
    for (int64_t i = 0; i < p.total; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d", i ? " " : "", p.ids[i]);
    assert_string_equal(got, want);
    assert_int_equal(p.dropped, dropped);
    assert_int_equal(p.image, p.n - 1);
    hv_prompt_close(&p);
}

static void prompts(void **state)
{
    struct hv_err e = {0};
    struct hv_bpe *b = llama(llama_json, &e);
    struct hv_prompt_config c;
    struct hv_prompt p;
    json_t *root = NULL;
    int64_t n = 0, mask[9];
    static const char template[] = "{\"hv_text\": {\"template\": \"ab{}<b>\", \"suffix\": \"a person<s>\", \"crop_start\": 2, \"text_len\": 7}}";

    (void)state;
    assert_int_equal(hv_json_parse(&root, template, strlen(template), 64, &e), 0);
    assert_int_equal(hv_prompt_config_parse(&c, root, &e), 0);
    assert_int_equal(hv_prompt_prefix_ids(&c, b, &n, &e), 0);
    assert_int_equal(n, 2);
    encode_prompt(&c, b, "", NULL, "20 7 21 0 3 24 99 99 99", 0);       /* "person" is unknown letters; its blank is not */
    encode_prompt(&c, b, " a", NULL, "20 7 14 21 0 3 24 99 99", 0);
    encode_prompt(&c, b, " a", "c", "20 7 14 21 0 3 2 24 99", 0);
    encode_prompt(&c, b, " a a{}", "c", "20 7 14 14 21 0 3 2 24", 0);
    encode_prompt(&c, b, " a a a a", "c", "20 7 14 14 21 0 3 2 24", 2);
    assert_int_equal(hv_prompt_encode(&p, &c, b, 24, 99, "x<s>", 4, NULL, &e), HV_EINPUT);
    assert_non_null(strstr(e.msg, "the prompt contains the image token '<s>'"));
    e = (struct hv_err){0};
    assert_int_equal(hv_prompt_encode(&p, &c, b, 24, 99, "x", 1, "<s>", &e), HV_EINPUT);
    e = (struct hv_err){0};
    assert_int_equal(hv_prompt_encode(&p, &c, b, 24, 99, "\xc3", 1, NULL, &e), HV_EINPUT);
    e = (struct hv_err){0};
    c.text_len = 4;                                                     /* what follows a prompt has 4 tokens */
    assert_int_equal(hv_prompt_encode(&p, &c, b, 24, 99, "", 0, NULL, &e), HV_EINPUT);
    c.text_len = 7;

    /* 3 image rows: 7 + 2 rows, 1^(n - crop) 0^(total - n) 1^2 */
    e = (struct hv_err){0};
    assert_int_equal(hv_prompt_encode(&p, &c, b, 24, 99, " a", 2, NULL, &e), 0);
    assert_int_equal(hv_prompt_mask_len(&c, 3), 9);
    hv_prompt_mask(mask, &c, &p, 3);
    static const int64_t want[9] = {1, 1, 1, 1, 1, 0, 0, 1, 1};
    assert_memory_equal(mask, want, sizeof want);
    hv_prompt_close(&p);
    json_decref(root);
    hv_bpe_close(b);
}

static void prompt_defaults(void **state)
{
    struct hv_prompt_config c;
    struct hv_err e = {0};
    json_t *root = NULL;

    (void)state;
    assert_int_equal(hv_json_parse(&root, "{}", 2, 64, &e), 0);
    assert_int_equal(hv_prompt_config_parse(&c, root, &e), 0);
    json_decref(root);
    assert_int_equal(c.crop_start, 95);
    assert_int_equal(c.text_len, 256);
    assert_int_equal(c.skip_layers, 2);
    assert_string_equal(c.suffix, "\nThe person looks like<image>");
    assert_int_equal(hv_json_parse(&root, "{\"hv_text\": {\"template\": \"no gap\"}}", 35, 64, &e), 0);
    assert_int_equal(hv_prompt_config_parse(&c, root, &e), HV_EINPUT);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_is_strict), cmocka_unit_test(nfc),           cmocka_unit_test(lower_case),
        cmocka_unit_test(categories),     cmocka_unit_test(long_mark_runs), cmocka_unit_test(merges_by_rank),
        cmocka_unit_test(llama_encodes),  cmocka_unit_test(llama_refuses), cmocka_unit_test(clip_encodes),
        cmocka_unit_test(missing_files),  cmocka_unit_test(prompts),       cmocka_unit_test(prompt_defaults),
    };

    return RUN(tests);
}
