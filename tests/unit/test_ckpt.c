/* Checkpoints of other programs: zip64, names, shared values, blocks; every prefix and every flipped bit of good files is refused
 * or read as what it was. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#include "io/ckpt.h"
#include "io/gguf.h"
#include "io/quanto.h"

#define GOLDEN "tests/golden/weights/"
#define OWNED  "/tmp/hv_owned"

/* ---- bytes ---- */

struct bytes {
    uint8_t *p;
    size_t   n, cap;
};

static void put(struct bytes *b, const void *data, size_t n)
{
    if (b->n + n >= b->cap) {
        b->cap = 2 * (b->n + n) + 64;
        b->p = realloc(b->p, b->cap);
    }
    assert_non_null(b->p);
    memcpy(b->p + b->n, data, n);
    b->n += n;
}

static void put_int(struct bytes *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        put(b, &(uint8_t){(uint8_t)(i < 8 ? v >> 8 * i : 0)}, 1);
}

static void put_text(struct bytes *b, const char *text)
{
    put(b, text, strlen(text));
}

static void put_string(struct bytes *b, const char *text)
{
    put_text(b, "X");
    put_int(b, strlen(text), 4);
    put_text(b, text);
}

static void put_number(struct bytes *b, int64_t v)
{
    put_text(b, "\x8a\x08");
    put_int(b, (uint64_t)v, 8);
}

/* A tensor of the storage "0" of numel floats. */
static void put_tensor(struct bytes *b, int64_t numel, int64_t offset, int64_t rows, int64_t cols)
{
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_string(b, "storage");
    put_text(b, "ctorch\nFloatStorage\n");
    put_string(b, "0");
    put_string(b, "cpu");
    put_number(b, numel);
    put_text(b, "tQ");
    put_number(b, offset);
    put_text(b, "(");
    put_number(b, rows);
    put_number(b, cols);
    put_text(b, "t(");
    put_number(b, cols);
    put_number(b, 1);
    put_text(b, "t\x89" "ccollections\nOrderedDict\n)RtR");
}

/* ---- a zip archive: a/data.pkl and a/data/0 ---- */

struct entry {
    const char    *name;
    struct bytes   data;                /* p NULL: a hole of n bytes */
    uint64_t       at;
};

static void put_zip64(struct bytes *b, uint64_t usize, uint64_t at)
{
    put_int(b, 1, 2);
    put_int(b, 24, 2);
    put_int(b, usize, 8);
    put_int(b, usize, 8);
    put_int(b, at, 8);
}

static void write_at(int fd, const struct bytes *b, uint64_t at)
{
    assert_int_equal(pwrite(fd, b->p, b->n, (off_t)at), (ssize_t)b->n);
}

/* Writes the entries and the directory, with zip64 records when asked. Returns the size. */
static uint64_t write_zip(int fd, struct entry *e, int n, int zip64)
{
    struct bytes dir = {0};
    uint64_t at = 0;

    for (int i = 0; i < n; i++) {
        struct bytes head = {0};
        const uint32_t crc = e[i].data.p ? (uint32_t)crc32(0, e[i].data.p, (uInt)e[i].data.n) : 0;
        e[i].at = at;
        put_text(&head, "PK\3\4");
        put_int(&head, 45, 2);
        put_int(&head, 8, 2);
        put_int(&head, 0, 2 + 4 + 4 + 4 + 4);
        put_int(&head, strlen(e[i].name), 2);
        put_int(&head, 0, 2);
        put_text(&head, e[i].name);
        write_at(fd, &head, at);
        if (e[i].data.p)
            write_at(fd, &e[i].data, at + head.n);
        put_text(&dir, "PK\1\2");
        put_int(&dir, 45, 2);
        put_int(&dir, 45, 2);
        put_int(&dir, 8, 2);
        put_int(&dir, 0, 2 + 4);
        put_int(&dir, crc, 4);
        put_int(&dir, zip64 ? 0xffffffff : e[i].data.n, 4);
        put_int(&dir, zip64 ? 0xffffffff : e[i].data.n, 4);
        put_int(&dir, strlen(e[i].name), 2);
        put_int(&dir, zip64 ? 28 : 0, 2);
        put_int(&dir, 0, 2 + 2 + 2 + 4);
        put_int(&dir, zip64 ? 0xffffffff : at, 4);
        put_text(&dir, e[i].name);
        if (zip64)
            put_zip64(&dir, e[i].data.n, at);
        at += head.n + e[i].data.n;
        free(head.p);
    }
    const uint64_t size = dir.n, start = at;
    if (zip64) {
        const uint64_t end = at + dir.n;
        put_text(&dir, "PK\6\6");
        put_int(&dir, 44, 8);
        put_int(&dir, 45, 2);
        put_int(&dir, 45, 2);
        put_int(&dir, 0, 8);
        put_int(&dir, (uint64_t)n, 8);
        put_int(&dir, (uint64_t)n, 8);
        put_int(&dir, size, 8);
        put_int(&dir, start, 8);
        put_text(&dir, "PK\6\7");
        put_int(&dir, 0, 4);
        put_int(&dir, end, 8);
        put_int(&dir, 1, 4);
    }
    put_text(&dir, "PK\5\6");
    put_int(&dir, 0, 4);
    put_int(&dir, zip64 ? 0xffff : (uint64_t)n, 2);
    put_int(&dir, zip64 ? 0xffff : (uint64_t)n, 2);
    put_int(&dir, zip64 ? 0xffffffff : size, 4);
    put_int(&dir, zip64 ? 0xffffffff : start, 4);
    put_int(&dir, 0, 2);
    write_at(fd, &dir, at);
    at += dir.n;
    free(dir.p);
    return at;
}

/* ---- opening ---- */

static int open_fd(struct hv_ckpt **c, int fd, int script, struct hv_err *e)
{
    const struct hv_ckpt_opts o = {.script = script, .alone = 1};
    char path[64];
    const char *const p = path;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return hv_ckpt_open(c, &p, 1, &o, e);
}

/* A pickle in an archive with a storage of four floats. */
static int open_pickle(struct hv_ckpt **c, const struct bytes *pickle, struct hv_err *e)
{
    const float values[] = {1, 2, 3, 4};
    struct bytes data = {0};
    const int fd = memfd_create("zip", MFD_CLOEXEC);

    put(&data, values, sizeof values);
    struct entry entries[] = {{"a/data.pkl", *pickle, 0}, {"a/data/0", data, 0}};
    assert_true(fd >= 0);
    write_zip(fd, entries, 2, 0);
    const int rc = open_fd(c, fd, 0, e);
    close(fd);
    free(data.p);
    return rc;
}

/* Past 4 GiB every number of the archive is in its zip64 records. The file is a hole: nothing but the end is there. */
static void large_archive(void **state)
{
    const int64_t numel = (int64_t)1100 << 20;
    struct bytes pickle = {0};
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};
    char path[] = "/tmp/hv-test-zip-XXXXXX";
    const int fd = mkstemp(path);
    float last[2] = {0}, seven = 7;

    (void)state;
    assert_true(fd >= 0);
    put_text(&pickle, "\x80\x02}(");
    put_string(&pickle, "w");
    put_tensor(&pickle, numel, numel - 4, 2, 2);
    put_text(&pickle, "u.");
    struct entry entries[] = {{"a/data/0", {NULL, (size_t)numel * 4, 0}, 0}, {"a/data.pkl", pickle, 0}};
    write_zip(fd, entries, 2, 1);
    assert_int_equal(pwrite(fd, &seven, 4, (off_t)(30 + 8 + numel * 4 - 4)), 4);
    if (open_fd(&c, fd, 0, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(hv_ckpt_count(c), 1);
    assert_int_equal(hv_ckpt_read_f32(c, hv_ckpt_at(c, 0), 2, 2, last, &e), 0);
    assert_true(last[0] == 0 && last[1] == 7);
    hv_ckpt_close(c);
    close(fd);
    unlink(path);
    free(pickle.p);
}

/* ---- pickles that are bombs ---- */

static void refuse(const struct bytes *pickle, const char *why)
{
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};

    assert_int_not_equal(open_pickle(&c, pickle, &e), 0);
    assert_null(c);
    if (!strstr(e.msg, why))
        fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void bombs(void **state)
{
    struct bytes b = {0};

    (void)state;
    /* Forty dicts, each of which holds the one before twice: 2^40 values for one who walks. They are made in a tuple, which is
     * dropped; the last one is then taken out of the memo. */
    put_text(&b, "\x80\x02}(");
    put_string(&b, "made");
    put_text(&b, "(");
    for (int i = 0; i < 40; i++) {
        put_text(&b, "}q");
        put_int(&b, (uint64_t)i, 1);
        put_text(&b, "(");
        for (int k = 0; k < 2 && i; k++) {
            put_string(&b, k ? "b" : "a");
            put_text(&b, "h");
            put_int(&b, (uint64_t)i - 1, 1);
        }
        put_text(&b, "u");
    }
    put_text(&b, "t");
    put_string(&b, "walked");
    put_text(&b, "h");
    put_int(&b, 39, 1);
    put_text(&b, "u.");
    refuse(&b, "values");
    free(b.p);

    /* A dict inside itself. */
    b = (struct bytes){0};
    put_text(&b, "\x80\x02}q");
    put_int(&b, 0, 1);
    put_string(&b, "a");
    put_text(&b, "h");
    put_int(&b, 0, 1);
    put_text(&b, "s.");
    refuse(&b, "nested deeper");
    free(b.p);

    /* Values without end on the stack. */
    b = (struct bytes){0};
    put_text(&b, "\x80\x02");
    for (int i = 0; i < (1 << 20) + 1; i++)
        put(&b, "N", 1);
    put_text(&b, ".");
    refuse(&b, "on its stack");
    free(b.p);

    /* Lists without end: each byte of the file is a list in memory. */
    b = (struct bytes){0};
    put_text(&b, "\x80\x02}q");
    put_int(&b, 0, 1);
    put_text(&b, "]q");
    put_int(&b, 1, 1);
    for (int i = 0; i < 1 << 21; i++)
        put(&b, "]a", 2);
    put_text(&b, ".");
    refuse(&b, "needs more than");
    free(b.p);
}

/* ---- what is read ---- */

static void reads_nested_names(void **state)
{
    struct bytes b = {0};
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};
    float v[4];

    (void)state;
    put_text(&b, "\x80\x02}(");
    put_string(&b, "deep");
    put_text(&b, "}(");
    put_number(&b, 7);
    put_tensor(&b, 4, 0, 2, 2);
    put_string(&b, "text");
    put_string(&b, "dropped");
    put_text(&b, "u");
    put_string(&b, "w");
    put_tensor(&b, 4, 2, 1, 2);
    put_text(&b, "u.");
    if (open_pickle(&c, &b, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(hv_ckpt_count(c), 2);
    assert_string_equal(hv_ckpt_at(c, 0)->name, "deep.7");
    assert_string_equal(hv_ckpt_at(c, 1)->name, "w");
    assert_int_equal(hv_ckpt_read_f32(c, hv_ckpt_at(c, 0), 1, 2, v, &e), 0);
    assert_true(v[0] == 2 && v[1] == 3);
    assert_int_equal(hv_ckpt_read_f32(c, hv_ckpt_at(c, 1), 0, 2, v, &e), 0);
    assert_true(v[0] == 3 && v[1] == 4);
    hv_ckpt_close(c);
    free(b.p);
}

static void refuses_a_name_twice(void **state)
{
    struct bytes b = {0};

    (void)state;
    put_text(&b, "\x80\x02}(");
    for (int i = 0; i < 2; i++) {
        put_string(&b, "w");
        put_tensor(&b, 4, 0, 2, 2);
    }
    put_text(&b, "u.");
    refuse(&b, "twice");
    free(b.p);
}

/* Any part of a tensor in blocks is what the whole has there. */
static void blocks_in_parts(void **state)
{
    const char *const path = GOLDEN "gguf/tiny.gguf";
    const struct hv_ckpt_opts o = {0};
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};
    float whole[1536], part[1536];

    (void)state;
    if (hv_ckpt_open(&c, &path, 1, &o, &e))
        fail_msg("%s", e.msg);
    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        assert_int_equal(hv_ctensor_count(t), 1536);
        assert_int_equal(hv_ckpt_read_f32(c, t, 0, 1536, whole, &e), 0);
        for (size_t first = 0; first < 1536; first += 97)
            for (size_t n = 1; first + n <= 1536; n += 131) {
                assert_int_equal(hv_ckpt_read_f32(c, t, first, n, part, &e), 0);
                assert_memory_equal(part, whole + first, n * sizeof *part);
            }
    }
    hv_ckpt_close(c);
}

static void quanto_metadata(void **state)
{
    /* {"m": {"weights": "qint8", "activations": "none"}}, qint4, qint8 with activations, [1] */
    static const struct { const char *text; int code; } cases[] = {
        {"eyJtIjogeyJ3ZWlnaHRzIjogInFpbnQ4IiwgImFjdGl2YXRpb25zIjogIm5vbmUifX0=", 0},
        {"eyJtIjogeyJ3ZWlnaHRzIjogInFpbnQ0In19", HV_EUNSUP},
        {"eyJtIjogeyJ3ZWlnaHRzIjogInFpbnQ4IiwgImFjdGl2YXRpb25zIjogInFpbnQ4In19", HV_EUNSUP},
        {"WzFd", HV_EINPUT},
        {"eyJt", HV_EINPUT},
        {"eyJ", HV_EINPUT},
        {"", HV_EINPUT},
        {"====", HV_EINPUT},
        {"e30=e30=", HV_EINPUT},
        {"e3 0", HV_EINPUT},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct hv_err e = {0};
        json_t *root = NULL;
        assert_int_equal(hv_quanto_map(&root, cases[i].text, &e), cases[i].code);
        assert_int_equal(root != NULL, !cases[i].code);
        json_decref(root);
    }
}

/* ---- broken files ---- */

static struct bytes read_file(const char *path)
{
    struct bytes b = {0};
    char buf[65536];
    size_t n;
    FILE *f = fopen(path, "rb");

    if (!f)
        fail_msg("%s: cannot be read", path);
    while ((n = fread(buf, 1, sizeof buf, f)) > 0)
        put(&b, buf, n);
    fclose(f);
    return b;
}

/* Names, dtypes, shapes and, where asked for, values as one number. */
static uint64_t meaning(const struct hv_ckpt *c, int values)
{
    uint64_t h = 1469598103934665603u;
    float v[256];
    struct hv_err e = {0};

    for (int i = 0; i < hv_ckpt_count(c); i++) {
        const struct hv_ctensor *t = hv_ckpt_at(c, i);
        const int64_t n = hv_ctensor_count(t);
        for (const char *s = t->name; *s; s++)
            h = (h ^ (uint8_t)*s) * 1099511628211u;
        h = (h ^ (uint64_t)t->dtype) * 1099511628211u;
        for (int k = 0; k < t->ndim; k++)
            h = (h ^ (uint64_t)t->shape[k]) * 1099511628211u;
        for (int64_t at = 0; at < n && at < 4096; at += 256) {
            const size_t part = n - at < 256 ? (size_t)(n - at) : 256;
            if (hv_ckpt_read_f32(c, t, (uint64_t)at, part, v, &e))
                fail_msg("%s", e.msg);
            for (size_t k = 0; k < part && values; k++) {
                uint32_t u;
                memcpy(&u, &v[k], 4);
                h = (h ^ u) * 1099511628211u;
            }
        }
    }
    return h;
}

struct outcome {
    int      code;
    uint64_t names, values;
};

/* Opens the file's present bytes, understands its scales, reads every value; under a second, and without a signal. */
static struct outcome try(int fd)
{
    struct hv_ckpt *c = NULL;
    struct hv_err e = {0};
    struct outcome o = {0};
    const clock_t start = clock();

    o.code = open_fd(&c, fd, 1, &e);
    if (!o.code) {
        o.names = meaning(c, 0);
        o.values = meaning(c, 1);
        o.code = hv_ckpt_resolve(c, &e);
        if (!o.code)
            meaning(c, 1);
    }
    hv_ckpt_close(c);
    if (o.code && !*e.msg)
        fail_msg("a refusal without a message");
    if (clock() - start >= CLOCKS_PER_SEC)
        fail_msg("took %.1f s", (double)(clock() - start) / CLOCKS_PER_SEC);
    return o;
}

static int is_code(int code)
{
    return !code || code == HV_EINPUT || code == HV_EUNSUP || code == HV_ENUM;
}

/* Every prefix and every bit of path, `step` bytes apart. strict: what is read of a file with a flipped bit outside of its raw
 * data [from, to) is what the good file says; a safetensors header has no checksum, so another name is another name there. */
static void break_file(const char *path, size_t step, size_t end, int strict)
{
    struct bytes b = read_file(path);
    const int fd = memfd_create("broken", MFD_CLOEXEC);
    int refused = 0;

    assert_true(fd >= 0);
    write_at(fd, &b, 0);
    const struct outcome good = try(fd);
    if (good.code)
        fail_msg("%s: refused with %d", path, good.code);
    for (size_t at = 0; at < b.n && at < (end ? end : b.n); at += step)
        for (int bit = 0; bit < 8; bit++) {
            const uint8_t broken = (uint8_t)(b.p[at] ^ 1 << bit);
            assert_int_equal(pwrite(fd, &broken, 1, (off_t)at), 1);
            const struct outcome o = try(fd);
            if (!is_code(o.code))
                fail_msg("%s: bit %d of byte %zu: status %d", path, bit, at, o.code);
            refused += o.code != 0;
            if (strict && !o.code && o.names != good.names)
                fail_msg("%s: bit %d of byte %zu: other tensors", path, bit, at);
        }
    for (size_t at = 0; at < b.n && at < (end ? end : b.n); at += step)
        assert_int_equal(pwrite(fd, b.p + at, 1, (off_t)at), 1);
    assert_true(refused > 0);
    /* From the whole file down: each prefix is the last one, cut. */
    for (size_t n = b.n; n > 0; n = n > step ? n - step : 0) {
        assert_int_equal(ftruncate(fd, (off_t)(n - 1)), 0);
        const struct outcome o = try(fd);
        if (!is_code(o.code) || (strict && !o.code && o.names != good.names))
            fail_msg("%s: its first %zu bytes: status %d", path, n - 1, o.code);
    }
    close(fd);
    free(b.p);
}

static void broken_archives(void **state)
{
    (void)state;
    unlink(OWNED);
    break_file(GOLDEN "bad/ok_plain.pt", 1, 0, 1);
    break_file(GOLDEN "bad/ok_stride0.pt", 1, 0, 1);
    break_file(GOLDEN "pt/module_state_dict.pt", 1, 0, 1);
    break_file(GOLDEN "pt/script_traced.pt", 3, 0, 1);
    break_file(GOLDEN "pt/mp_rank_00_model_states.pt", 7, 6000, 1);
    assert_int_not_equal(access(OWNED, F_OK), 0);
}

static void broken_tensor_files(void **state)
{
    (void)state;
    break_file(GOLDEN "bad/ok_two.safetensors", 1, 0, 0);
    break_file(GOLDEN "bad/ok_metadata.safetensors", 1, 0, 0);
    break_file(GOLDEN "bad/ok_empty_tensor.safetensors", 1, 0, 0);
    break_file(GOLDEN "quanto/avatar_quanto_bf16_int8.safetensors", 131, 16000, 0);
    break_file(GOLDEN "quanto/comfy_scaled_fp8.safetensors", 31, 2000, 0);
}

static void broken_gguf(void **state)
{
    (void)state;
    break_file(GOLDEN "gguf/tiny.gguf", 1, 700, 0);
}

/* Small texts that would be large in memory. */
static void swollen(void **state)
{
    static const char *const values[] = {"{}", "[]", "0", "\"\""};
    struct bytes b;
    char one[64];

    (void)state;
    for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
        struct hv_ckpt *c = NULL;
        struct hv_err e = {0};
        const int fd = memfd_create("swollen", MFD_CLOEXEC);
        b = (struct bytes){0};
        put_int(&b, 0, 8);
        put_text(&b, "{");
        for (int i = 0; i < 1000000; i++)
            put(&b, one, (size_t)snprintf(one, sizeof one, "%s\"%d\":%s", i ? "," : "", i, values[v]));
        put_text(&b, "}");
        for (int i = 0; i < 8; i++)
            b.p[i] = (uint8_t)((b.n - 8) >> 8 * i);
        write_at(fd, &b, 0);
        free(b.p);
        assert_int_equal(open_fd(&c, fd, 0, &e), HV_EINPUT);
        assert_non_null(strstr(e.msg, "values"));
        close(fd);
    }
    /* One tensor under a million names. */
    b = (struct bytes){0};
    put_text(&b, "\x80\x02}(");
    put_string(&b, "w");
    put_tensor(&b, 4, 0, 2, 2);
    put_text(&b, "q");
    put_int(&b, 0, 1);
    for (int i = 0; i < 200000; i++) {
        snprintf(one, sizeof one, "%d", i);
        put_string(&b, one);
        put_text(&b, "h");
        put_int(&b, 0, 1);
    }
    put_text(&b, "u.");
    refuse(&b, "more than");
    free(b.p);
}

/* Whatever a file says, it gets no more than its own size and 64 MiB. */
static void limit_memory(void)
{
#if !defined(__SANITIZE_ADDRESS__)
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f && fscanf(f, "%lu", &pages) == 1) {
        const rlim_t n = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)64 << 20) + ((rlim_t)1 << 20);
        (void)setrlimit(RLIMIT_AS, &(struct rlimit){n, n});
    }
    if (f)
        fclose(f);
#endif
}

static int limited(void **state)
{
    (void)state;
    limit_memory();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_archive), cmocka_unit_test(bombs), cmocka_unit_test(reads_nested_names),
        cmocka_unit_test(refuses_a_name_twice), cmocka_unit_test(blocks_in_parts), cmocka_unit_test(quanto_metadata),
        cmocka_unit_test_setup_teardown(broken_archives, limited, NULL), cmocka_unit_test(broken_tensor_files),
        cmocka_unit_test(broken_gguf), cmocka_unit_test(swollen),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
