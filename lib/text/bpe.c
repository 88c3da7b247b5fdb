#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "text/bpe_internal.h"
#include "text/unicode.h"

const char hv_bpe_llama_regex[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

/* The same, with white space spelled out. */
static const char llama_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|"
    "[" WS "]+(?![^" WS "])|[" WS "]+";

/* What matches nothing is skipped: blanks, and U+0345, a mark whose case variants are letters: the reference's engine, which
 * ignores case in the negated class too, leaves it out as well. */
static const char clip_pattern[] =
    "(?i)<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^" WS "\\p{L}\\p{N}\\x{345}]+";

static const char word_pattern[] = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}]";

/* ---- lists ---- */

int hv_ids_push(struct hv_ids *s, int32_t id, struct hv_err *e)
{
    if (s->n == s->cap) {
        const size_t cap = s->cap ? 2 * s->cap : 128;
        int32_t *p = realloc(s->id, cap * sizeof *p);
        if (!p)
            return hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
        s->id = p;
        s->cap = cap;
    }
    s->id[s->n++] = id;
    return 0;
}

void hv_ids_close(struct hv_ids *s)
{
    free(s->id);
    *s = (struct hv_ids){0};
}

/* ---- making ---- */

int hv_bpe_letter(char buf[4], unsigned char byte)
{
    uint32_t c = byte;

    if (byte < 33)
        c = 0x100u + byte;
    else if (byte > 126 && byte < 161)
        c = 0x100u + 33 + (byte - 127u);
    else if (byte == 173)
        c = 0x100u + 33 + 34;
    return hv_utf8_put(buf, c);
}

static int compile(pcre2_code **out, const char *pattern, struct hv_err *e)
{
    PCRE2_UCHAR text[200];
    PCRE2_SIZE at;
    int code;

    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (*out)
        return 0;
    pcre2_get_error_message(code, text, sizeof text);
    return hv_fail(e, HV_EUNSUP, "tokenizer: pcre2 refuses the pattern: %s", (const char *)text);
}

int hv_bpe_finish(struct hv_bpe *b, struct hv_err *e)
{
    char s[8];
    int single = 0;

    for (int i = 0; i < 256; i++) {
        const int n = hv_bpe_letter(s, (unsigned char)i);
        b->base[0][i] = hv_vocab_symbol(b->vocab, s, (size_t)n);
        memcpy(s + n, "</w>", 4);
        b->base[1][i] = hv_vocab_symbol(b->vocab, s, (size_t)n + 4);
    }
    for (int i = 0; i < b->n_added; i++) {
        b->heads[(unsigned char)b->added[i].text[0]] = 1;
        single |= b->added[i].single_word;
    }
    if (compile(&b->pattern, b->kind == HV_BPE_LLAMA ? llama_pattern : clip_pattern, e))
        return e->code;
    return single ? compile(&b->word, word_pattern, e) : 0;
}

void hv_bpe_close(struct hv_bpe *b)
{
    if (!b)
        return;
    for (int i = 0; i < b->n_added; i++)
        free(b->added[i].text);
    free(b->added);
    pcre2_code_free(b->pattern);
    pcre2_code_free(b->word);
    hv_vocab_close(b->vocab);
    free(b);
}

int32_t hv_bpe_id(const struct hv_bpe *b, const char *content)
{
    for (int i = 0; i < b->n_added; i++)
        if (!strcmp(b->added[i].text, content))
            return b->added[i].id;
    return hv_vocab_id(b->vocab, hv_vocab_symbol(b->vocab, content, strlen(content)));
}

const char *hv_bpe_added(const struct hv_bpe *b, int32_t id)
{
    for (int i = 0; i < b->n_added; i++)
        if (b->added[i].id == id)
            return b->added[i].text;
    return NULL;
}

int32_t hv_bpe_first(const struct hv_bpe *b)
{
    return b->first;
}

int32_t hv_bpe_last(const struct hv_bpe *b)
{
    return b->last;
}

/* ---- words ---- */

/* One pass over a text: what is constant, and room for one word. */
struct run {
    const struct hv_bpe *b;
    struct hv_ids       *out;
    struct hv_err       *e;
    pcre2_match_data    *match;
    int32_t             *symbol;
    char                *letters;
    size_t               cap;           /* bytes of a word that there is room for */
};

static int run_open(struct run *r, const struct hv_bpe *b, struct hv_ids *out, struct hv_err *e)
{
    *r = (struct run){.b = b, .out = out, .e = e, .match = pcre2_match_data_create(1, NULL)};
    return r->match ? 0 : hv_fail(e, HV_ENOMEM, "tokenizer: out of memory");
}

static void run_close(struct run *r)
{
    pcre2_match_data_free(r->match);
    free(r->symbol);
    free(r->letters);
}

static int room(struct run *r, size_t n)
{
    if (n <= r->cap)
        return 0;
    free(r->symbol);
    free(r->letters);
    r->cap = 2 * n + 64;
    r->symbol = malloc(r->cap * sizeof *r->symbol);
    r->letters = malloc(2 * r->cap);
    if (r->symbol && r->letters)
        return 0;
    r->cap = 0;
    return hv_fail(r->e, HV_ENOMEM, "tokenizer: out of memory");
}

/* Emits the ids of one word. A byte without a symbol is left out (Llama), or is unknown (CLIP). */
static int word(struct run *r, const char *s, size_t n)
{
    const struct hv_bpe *b = r->b;
    size_t k = 0, len = 0;

    if (room(r, n))
        return r->e->code;
    if (b->ignore_merges) {
        for (size_t i = 0; i < n; i++)
            len += (size_t)hv_bpe_letter(r->letters + len, (unsigned char)s[i]);
        const int32_t whole = hv_vocab_id(b->vocab, hv_vocab_symbol(b->vocab, r->letters, len));
        if (whole >= 0)
            return hv_ids_push(r->out, whole, r->e);
    }
    for (size_t i = 0; i < n; i++) {
        const int32_t sym = b->base[b->kind == HV_BPE_CLIP && i + 1 == n][(unsigned char)s[i]];
        if (sym >= 0)
            r->symbol[k++] = sym;
        else if (b->kind == HV_BPE_CLIP)
            r->symbol[k++] = hv_vocab_symbol(b->vocab, "<|endoftext|>", 13);
    }
    if (hv_vocab_apply(b->vocab, r->symbol, &k, r->e))
        return r->e->code;
    for (size_t i = 0; i < k; i++) {
        const int32_t id = hv_vocab_id(b->vocab, r->symbol[i]);
        if (hv_ids_push(r->out, id >= 0 ? id : b->last, r->e))
            return r->e->code;
    }
    return 0;
}

/* The next match of the pattern at or after *at: 1 with its span, 0 when there is none, -1 on failure. */
static int next_match(struct run *r, const char *s, size_t n, size_t at, size_t *begin, size_t *end)
{
    const int rc = pcre2_match(r->b->pattern, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, r->match, NULL);

    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        PCRE2_UCHAR text[200];
        pcre2_get_error_message(rc, text, sizeof text);
        hv_fail(r->e, HV_EINPUT, "tokenizer: %s", (const char *)text);
        return -1;
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(r->match);
    *begin = v[0];
    *end = v[1];
    return 1;
}

static int words(struct run *r, const char *s, size_t n)
{
    size_t at = 0, begin, end;
    int found;

    while (at < n && (found = next_match(r, s, n, at, &begin, &end)) != 0) {
        if (found < 0)
            return r->e->code;
        const size_t len = end - begin;
        int rc;
        if (r->b->kind == HV_BPE_CLIP && len == 15 && !memcmp(s + begin, "<|startoftext|>", len))
            rc = hv_ids_push(r->out, r->b->first, r->e);
        else if (r->b->kind == HV_BPE_CLIP && len == 13 && !memcmp(s + begin, "<|endoftext|>", len))
            rc = hv_ids_push(r->out, r->b->last, r->e);
        else
            rc = word(r, s + begin, len);
        if (rc)
            return rc;
        at = end;
    }
    return 0;
}

/* ---- cutting at added tokens ---- */

/* 1 if a character of a word ends at s + at (back), or begins there. */
static int word_character(const struct run *r, const char *s, size_t n, size_t at, int back)
{
    size_t end = at;
    uint32_t c;

    if (back) {
        if (!at)
            return 0;
        do
            at--;
        while (at && ((unsigned char)s[at] & 0xC0) == 0x80);
    } else {
        if (at == n)
            return 0;
        end = at + (size_t)hv_utf8_get(s + at, n - at, &c);
    }
    return pcre2_match(r->b->word, (PCRE2_SPTR)(s + at), end - at, 0, PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED, r->match, NULL) > 0;
}

static size_t white_before(const char *s, size_t least, size_t at)
{
    uint32_t c;

    while (at > least) {
        size_t k = at - 1;
        while (k > least && ((unsigned char)s[k] & 0xC0) == 0x80)
            k--;
        if (!hv_utf8_get(s + k, at - k, &c) || !hv_uc_is_white(c))
            break;
        at = k;
    }
    return at;
}

static size_t white_after(const char *s, size_t n, size_t at)
{
    uint32_t c;

    for (int len; at < n && (len = hv_utf8_get(s + at, n - at, &c)) > 0 && hv_uc_is_white(c);)
        at += (size_t)len;
    return at;
}

/* The added token of the class that begins at s[at], the longest; NULL: none. */
static const struct hv_added *added_at(const struct hv_bpe *b, const char *s, size_t n, size_t at, int normalized)
{
    if (!b->heads[(unsigned char)s[at]])
        return NULL;
    for (int i = 0; i < b->n_added; i++) {
        const struct hv_added *a = &b->added[i];
        if (a->normalized == normalized && a->n <= n - at && !memcmp(s + at, a->text, a->n))
            return a;
    }
    return NULL;
}

typedef int piece_fn(struct run *r, const char *s, size_t n);

/* Cuts the text at the added tokens of one class; what is between them goes to `rest`. Tokens that are matched before
 * normalization and those after it are looked for in this order, as the reference's library does. */
static int cut(struct run *r, const char *s, size_t n, int normalized, piece_fn *rest)
{
    size_t from = 0, at = 0;

    while (at < n) {
        const struct hv_added *a = added_at(r->b, s, n, at, normalized);
        if (!a) {
            at++;
            continue;
        }
        size_t begin = at, end = at + a->n;
        at = end;
        if (a->single_word && (word_character(r, s, n, begin, 1) || word_character(r, s, n, end, 0)))
            continue;
        if (a->lstrip)
            begin = white_before(s, from, begin);
        if (a->rstrip)
            at = end = white_after(s, n, end);
        if ((begin > from && rest(r, s + from, begin - from)) || hv_ids_push(r->out, a->id, r->e))
            return r->e->code;
        from = end;
    }
    return n > from ? rest(r, s + from, n - from) : 0;
}

static int llama_piece(struct run *r, const char *s, size_t n)
{
    return cut(r, s, n, 1, words);
}

/* ---- CLIP's cleaning ---- */

static int is_ideograph(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/* Control, format and unassigned characters go, separators become blanks, ideographs get blanks around them. */
static int clean(struct hv_cps *out, const struct hv_cps *in, struct hv_err *e)
{
    for (size_t i = 0; i < in->n; i++) {
        const uint32_t c = in->c[i];
        const unsigned f = hv_uc(c);
        const int blank = c == '\t' || c == '\n' || c == '\r' || (f & HV_UC_SPACE);
        if (!blank && (c == 0 || c == 0xFFFD || (f & HV_UC_OTHER)))
            continue;
        const int wide = is_ideograph(c);
        if ((wide && hv_cps_push(out, ' ', e)) || hv_cps_push(out, blank ? ' ' : c, e) || (wide && hv_cps_push(out, ' ', e)))
            return e->code;
    }
    return 0;
}

/* Words in lower case, joined with single blanks. */
static int lower_words(struct hv_cps *out, const struct hv_cps *in, struct hv_err *e)
{
    for (size_t i = 0, end; i < in->n; i = end) {
        for (end = i; end < in->n && !hv_uc_is_white(in->c[end]); end++)
            ;
        if (end == i) {
            end++;
            continue;
        }
        if ((out->n && hv_cps_push(out, ' ', e)) || hv_lower(out, in->c + i, end - i, e))
            return e->code;
    }
    return 0;
}

static int clip_piece(struct run *r, const char *s, size_t n)
{
    struct hv_cps a = {0}, b = {0}, c = {0}, d = {0};
    char *text = NULL;
    size_t len = 0;

    if (!hv_cps_from_utf8(&a, s, n, r->e) && !clean(&b, &a, r->e) && !hv_nfc(&c, &b, r->e) && !lower_words(&d, &c, r->e)) {
        text = malloc(4 * d.n + 1);
        if (!text)
            hv_fail(r->e, HV_ENOMEM, "tokenizer: out of memory");
        for (size_t i = 0; text && i < d.n; i++)
            len += (size_t)hv_utf8_put(text + len, d.c[i]);
        if (text)
            words(r, text, len);
    }
    free(text);
    hv_cps_close(&a);
    hv_cps_close(&b);
    hv_cps_close(&c);
    hv_cps_close(&d);
    return r->e->code;
}

/* ---- encoding ---- */

int hv_bpe_encode(const struct hv_bpe *b, const char *text, size_t n, struct hv_ids *out, struct hv_err *e)
{
    const size_t bad = hv_utf8_check(text, n);
    struct run r;
    int rc;

    if (e->code)
        return e->code;
    if (bad < n)
        return hv_fail(e, HV_EINPUT, "text is not UTF-8: byte 0x%02x at offset %zu", (unsigned char)text[bad], bad);
    rc = run_open(&r, b, out, e);
    if (!rc)
        rc = hv_ids_push(out, b->first, e);
    if (!rc)
        rc = cut(&r, text, n, 0, b->kind == HV_BPE_LLAMA ? llama_piece : clip_piece);
    if (!rc && b->kind == HV_BPE_CLIP)
        rc = hv_ids_push(out, b->last, e);
    run_close(&r);
    return rc;
}
