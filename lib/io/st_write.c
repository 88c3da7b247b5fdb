/* The writing half of st.h. */
#define _GNU_SOURCE
#include "io/st.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "core/mapped.h"
#include "core/temp.h"

#define META_MAX ((int)(sizeof ((struct hv_out *)0)->meta / sizeof(char *) / 2))
#define SHA_KEY  "hv.sha256"
#define SHA_HEX  64
#define STACK    ((size_t)256 << 10)
#define FLUSH    ((uint64_t)32 << 20)
#define RING     4                       /* blocks that exist at a time */

void hv_out_meta(struct hv_out *o, const char *key, const char *fmt, ...)
{
    char *k = strdup(key), *v = NULL;
    va_list ap;
    int i = 0;

    va_start(ap, fmt);
    if (vasprintf(&v, fmt, ap) < 0)
        v = NULL;
    va_end(ap);
    while (i < o->n_meta && strcmp(o->meta[2 * i], key))
        i++;
    if (!k || !v || i == META_MAX) {
        o->fault = 1;
        free(k);
        free(v);
        return;
    }
    if (i < o->n_meta) {
        free(o->meta[2 * i]);
        free(o->meta[2 * i + 1]);
    } else {
        o->n_meta++;
    }
    o->meta[2 * i] = k;
    o->meta[2 * i + 1] = v;
}

void hv_out_declare(struct hv_out *o, const char *name, hv_dtype t, int ndim, const int64_t *shape)
{
    if (o->n == o->cap) {
        const int cap = o->cap ? 2 * o->cap : 16;
        struct hv_out_entry *p = realloc(o->entry, (size_t)cap * sizeof *p);
        if (!p) {
            o->fault = 1;
            return;
        }
        o->entry = p;
        o->cap = cap;
    }
    struct hv_out_entry *s = &o->entry[o->n];
    *s = (struct hv_out_entry){.name = strdup(name), .dtype = t, .ndim = ndim};
    assert(ndim <= HV_ST_DIMS);
    memcpy(s->shape, shape, (size_t)ndim * sizeof *shape);
    if (s->name)
        o->n++;
    else
        o->fault = 1;
}

void hv_out_copied(struct hv_out *o, int i, int fd, uint64_t at)
{
    o->entry[i].copied = 1;
    o->entry[i].fd = fd;
    o->entry[i].at = at;
}

void hv_out_add(struct hv_out *o, const char *name, hv_tensor t)
{
    const int n = o->n;

    assert(hv_is_contiguous(t));
    hv_out_declare(o, name, t.dtype, t.ndim, t.shape);
    if (o->n > n)
        o->entry[n].data = t.data;
}

void *hv_out_new(struct hv_out *o, const char *name, hv_dtype t, int ndim, const int64_t *shape, struct hv_err *e)
{
    const int64_t count = hv_shape_count(ndim, shape);
    const int n = o->n;
    void *p = count < 0 ? NULL : calloc((size_t)count + 1, hv_dtype_size(t));

    if (p)
        hv_out_declare(o, name, t, ndim, shape);
    if (!p || o->n == n) {
        free(p);
        hv_fail(e, HV_ENOMEM, "%s: out of memory", name);
        return NULL;
    }
    o->entry[n].data = o->entry[n].owned = p;
    return p;
}

void hv_out_close(struct hv_out *o)
{
    for (int i = 0; i < o->n; i++) {
        free(o->entry[i].name);
        free(o->entry[i].owned);
    }
    for (int i = 0; i < 2 * o->n_meta; i++)
        free(o->meta[i]);
    free(o->entry);
    *o = (struct hv_out){0};
}

static uint64_t entry_bytes(const struct hv_out_entry *s)
{
    return (uint64_t)hv_shape_count(s->ndim, s->shape) * hv_dtype_size(s->dtype);
}

/* The header: 8 bytes of length and the JSON, padded with blanks so that the data is aligned. Owned by the caller. */
static char *make_header(const struct hv_out *o, int digest, size_t *bytes, struct hv_err *e)
{
    const size_t align = o->align ? (size_t)o->align : 64;
    json_t *root = json_object(), *meta = json_object();
    uint64_t at = 0;
    char *text = NULL, *out = NULL;
    int bad = !root || !meta;

    for (int i = 0; i < o->n_meta && !bad; i++)
        bad = json_object_set_new(meta, o->meta[2 * i], json_string(o->meta[2 * i + 1]));
    if (digest && !bad)
        bad = json_object_set_new(meta, SHA_KEY, json_string("0000000000000000000000000000000000000000000000000000000000000000"));
    if (!bad && json_object_size(meta))
        bad = json_object_set(root, "__metadata__", meta);
    for (int i = 0; i < o->n && !bad; i++) {
        const struct hv_out_entry *s = &o->entry[i];
        const uint64_t end = at + entry_bytes(s);
        if (json_object_get(root, s->name)) {
            hv_fail(e, HV_EINPUT, "tensor '%s' is there twice", s->name);
            bad = 1;
            break;
        }
        json_t *shape = json_array();
        for (int k = 0; k < s->ndim && !bad; k++)
            bad = json_array_append_new(shape, json_integer(s->shape[k]));
        if (bad)
            json_decref(shape);
        else
            bad = json_object_set_new(root, s->name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", hv_dtype_name(s->dtype),
                                                               "shape", shape, "data_offsets", (json_int_t)at,
                                                               (json_int_t)end));
        at = end;
    }
    if (!bad)
        text = json_dumps(root, JSON_COMPACT);
    if (text) {
        const size_t n = strlen(text), padded = (8 + n + align - 1) / align * align - 8;
        out = malloc(8 + padded);
        if (out) {
            for (int i = 0; i < 8; i++)
                out[i] = (char)(padded >> 8 * i & 255);
            memset(out + 8, ' ', padded);
            memcpy(out + 8, text, n);
            *bytes = 8 + padded;
        }
    }
    free(text);
    json_decref(root);
    json_decref(meta);
    if (!out)
        hv_fail(e, HV_ENOMEM, "header: out of memory, or a name that is not UTF-8");
    return out;
}

static int write_all(int fd, const void *data, size_t n, struct hv_err *e)
{
    const char *p = data;

    while (n) {
        const ssize_t put = write(fd, p, n > 1 << 30 ? 1 << 30 : n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EFAULT && hv_mapped_path(p))    /* SIGBUS, had we read it and not the kernel */
            return hv_fail(e, HV_EIO, "%s: was cut short while it was read", hv_mapped_path(p));
        if (put < 0)
            return hv_fail(e, HV_EIO, "write: %s", strerror(errno));
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

/* Blocks on their way out: while the producer makes the next one, one thread writes and another digests those before, each at
 * its own pace. */
struct block {
    const void *data;
    size_t      n;
    int         source;                 /* the block is in this file, too, at `at`; -1: it is not */
    uint64_t    at;
    int         users;                  /* consumers that are not done with it */
};

struct consumer {
    struct pipe2 *pipe;
    int         (*use)(struct pipe2 *p, const struct block *b, struct hv_err *e);
    pthread_t     thread;
    uint64_t      next;                 /* block that it takes next */
    int           failed;
    struct hv_err err;
};

struct pipe2 {
    int             fd;
    int             regular;            /* fd is a file: bytes may be copied into it */
    uint64_t        start, written, flushed;    /* where the data begins; bytes of it */
    EVP_MD_CTX     *md;                 /* NULL: no digest */
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    struct consumer consumer[2];
    int             consumers;
    struct block    block[RING];
    uint64_t        head;               /* blocks handed over so far */
    int             done, failed;
};

/* From file to file in the kernel, as far as the two file systems allow it. Nothing is lost when they do not. */
static size_t copy_range(int to, int from, uint64_t at, size_t n)
{
    off_t offset = (off_t)at;
    size_t done = 0;

    while (done < n) {
        const ssize_t put = copy_file_range(from, &offset, to, NULL, n - done, 0);
        if (put <= 0)
            break;
        done += (size_t)put;
    }
    return done;
}

static int use_write(struct pipe2 *p, const struct block *b, struct hv_err *e)
{
    const size_t done = b->source >= 0 ? copy_range(p->fd, b->source, b->at, b->n) : 0;

    if (write_all(p->fd, (const char *)b->data + done, b->n - done, e))
        return e->code;
    p->written += b->n;
    /* The disk begins now, while the digest, which is slower than the page cache, is still at work. */
    if (p->regular && p->written - p->flushed >= FLUSH) {
        (void)sync_file_range(p->fd, (off_t)(p->start + p->flushed), (off_t)(p->written - p->flushed), SYNC_FILE_RANGE_WRITE);
        p->flushed = p->written;
    }
    return 0;
}

static int use_digest(struct pipe2 *p, const struct block *b, struct hv_err *e)
{
    return EVP_DigestUpdate(p->md, b->data, b->n) ? 0 : hv_fail(e, HV_EIO, "sha256 failed");
}

static void *consume(void *arg)
{
    struct consumer *c = arg;
    struct pipe2 *p = c->pipe;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (c->next == p->head && !p->done)
            pthread_cond_wait(&p->changed, &p->lock);
        if (c->next == p->head)
            break;
        struct block *b = &p->block[c->next++ % RING];
        pthread_mutex_unlock(&p->lock);
        const int bad = c->failed ? 0 : c->use(p, b, &c->err);
        pthread_mutex_lock(&p->lock);
        c->failed |= bad;
        p->failed |= bad;
        b->users--;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Waits until the block's place in the ring is free, and its buffer with it. Returns nonzero when a consumer has failed. */
static int wait_for_room(struct pipe2 *p)
{
    pthread_mutex_lock(&p->lock);
    while (p->block[p->head % RING].users)
        pthread_cond_wait(&p->changed, &p->lock);
    const int failed = p->failed;
    pthread_mutex_unlock(&p->lock);
    return failed;
}

static void hand_over(struct pipe2 *p, const void *data, size_t n, int source, uint64_t at)
{
    pthread_mutex_lock(&p->lock);
    p->block[p->head++ % RING] = (struct block){data, n, source, at, p->consumers};
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static int stream_entries(const struct hv_out *o, struct pipe2 *p, size_t block, hv_produce_fn *produce, void *ctx,
                          struct hv_err *e)
{
    char *buf[RING] = {NULL};
    int rc = 0;

    for (int k = 0; k < RING && produce; k++)
        if (!(buf[k] = malloc(block)))
            rc = hv_fail(e, HV_ENOMEM, "out of memory for blocks of %zu bytes", block);
    for (int i = 0; i < o->n && !rc; i++) {
        const struct hv_out_entry *s = &o->entry[i];
        const uint64_t total = entry_bytes(s);
        for (uint64_t at = 0; at < total && !rc; at += block) {
            const size_t n = total - at < block ? (size_t)(total - at) : block;
            if (wait_for_room(p)) {
                rc = HV_EIO;
                break;
            }
            char *mine = buf[p->head % RING];
            if (!s->data)
                rc = produce(ctx, i, at, mine, n, e);
            if (!rc)
                hand_over(p, s->data ? (const char *)s->data + at : mine, n, s->copied && p->regular ? s->fd : -1, s->at + at);
        }
    }
    /* The last blocks are in use until their users say otherwise. */
    pthread_mutex_lock(&p->lock);
    for (int k = 0; k < RING; k++)
        while (p->block[k].users)
            pthread_cond_wait(&p->changed, &p->lock);
    if (p->failed && !rc)
        rc = HV_EIO;
    pthread_mutex_unlock(&p->lock);
    for (int k = 0; k < RING; k++)
        free(buf[k]);
    return rc;
}

/* Runs the threads around stream_entries; fills hex with the digest when there is one. */
static int stream(const struct hv_out *o, int fd, int digest, char hex[SHA_HEX + 1], size_t block,
                  hv_produce_fn *produce, void *ctx, struct hv_err *e)
{
    struct stat st;
    struct pipe2 p = {.fd = fd, .md = digest ? EVP_MD_CTX_new() : NULL, .regular = !fstat(fd, &st) && S_ISREG(st.st_mode)};
    const off_t at = p.regular ? lseek(fd, 0, SEEK_CUR) : 0;
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned md_n = 0;
    pthread_attr_t attr;
    int rc = 0;

    p.start = at > 0 ? (uint64_t)at : 0;
    if (digest && (!p.md || !EVP_DigestInit_ex(p.md, EVP_sha256(), NULL))) {
        EVP_MD_CTX_free(p.md);
        return hv_fail(e, HV_ENOMEM, "sha256: cannot start");
    }
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    for (int i = 0; i < 1 + !!digest && !rc; i++) {
        p.consumer[i] = (struct consumer){.pipe = &p, .use = i ? use_digest : use_write};
        if (pthread_create(&p.consumer[i].thread, &attr, consume, &p.consumer[i]))
            rc = hv_fail(e, HV_ENOMEM, "cannot start a thread");
        else
            p.consumers++;
    }
    pthread_attr_destroy(&attr);
    if (!rc)
        rc = stream_entries(o, &p, block, produce, ctx, e);
    pthread_mutex_lock(&p.lock);
    p.done = 1;
    pthread_cond_broadcast(&p.changed);
    pthread_mutex_unlock(&p.lock);
    for (int i = 0; i < p.consumers; i++)
        pthread_join(p.consumer[i].thread, NULL);
    for (int i = 0; i < p.consumers; i++)
        if (p.consumer[i].failed)
            rc = e->code ? e->code : hv_fail(e, p.consumer[i].err.code, "%s", p.consumer[i].err.msg);
    if (!rc && digest) {
        EVP_DigestFinal_ex(p.md, md, &md_n);
        for (unsigned i = 0; i < md_n && i < SHA_HEX / 2; i++)
            snprintf(hex + 2 * i, 3, "%02x", md[i]);
    }
    EVP_MD_CTX_free(p.md);
    pthread_mutex_destroy(&p.lock);
    pthread_cond_destroy(&p.changed);
    return rc;
}

static int check_values(const struct hv_out *o, struct hv_err *e)
{
    if (o->fault)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; i < o->n; i++) {
        const struct hv_out_entry *s = &o->entry[i];
        const int64_t flat = hv_shape_count(s->ndim, s->shape);
        const int64_t bad = s->data ? hv_first_nonfinite(hv_view(s->data, s->dtype, 1, &flat)) : -1;
        if (bad >= 0)
            return hv_fail(e, HV_ENUM, "%s: NaN or Inf at element %lld", s->name, (long long)bad);
    }
    return 0;
}

static int write_to(const struct hv_out *o, int fd, int digest, size_t block, hv_produce_fn *produce, void *ctx,
                    struct hv_err *e)
{
    char hex[SHA_HEX + 1] = "";
    size_t n = 0;
    char *header = make_header(o, digest, &n, e);
    int rc = header ? write_all(fd, header, n, e) : e->code;

    if (!rc)
        rc = stream(o, fd, digest, hex, block, produce, ctx, e);
    if (!rc && digest) {
        const char *at = memmem(header, n, "\"" SHA_KEY "\":\"", strlen(SHA_KEY) + 4);
        const off_t where = at - header + (off_t)strlen(SHA_KEY) + 4;
        if (pwrite(fd, hex, SHA_HEX, where) != SHA_HEX)
            rc = hv_fail(e, HV_EIO, "write: %s", strerror(errno));
    }
    free(header);
    return rc;
}

/* A named pipe or a device cannot be replaced by a file beside it: it is written as stdout is. */
static int write_special(const struct hv_out *o, const char *path, size_t block, hv_produce_fn *produce, void *ctx,
                         struct hv_err *e)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    int rc = fd < 0 ? hv_fail(e, HV_EIO, "%s", strerror(errno)) : write_to(o, fd, 0, block, produce, ctx, e);

    if (fd >= 0 && close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "close: %s", strerror(errno));
    return rc ? hv_context(e, "%s", path) : 0;
}

/* A file of path's folder that has no name yet: whatever kills the process, nothing is left of it. -1: there is no such thing
 * here. */
static int open_nameless(const char *path)
{
    const char *slash = strrchr(path, '/');
    char folder[HV_PATH];

    if (snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".") >= (int)sizeof folder ||
        access("/proc/self/fd", X_OK))
        return -1;
    return open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
}

/* Gives it the name, which takes two steps: only a rename replaces what is there. */
static int name_it(int fd, const char *path, struct hv_err *e)
{
    char tmp[HV_PATH], self[64];
    int other;

    if (hv_temp_open(tmp, path, &other, e))
        return e->code;
    close(other);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (unlink(tmp) || linkat(AT_FDCWD, self, AT_FDCWD, tmp, AT_SYMLINK_FOLLOW)) {
        hv_fail(e, HV_EIO, "%s: link: %s", path, strerror(errno));
        hv_temp_discard(tmp);
        return e->code;
    }
    return hv_temp_commit(tmp, path, e);
}

static int write_nameless(const struct hv_out *o, int fd, const char *path, size_t block, hv_produce_fn *produce, void *ctx,
                          struct hv_err *e)
{
    int rc = write_to(o, fd, o->digest, block, produce, ctx, e);

    if (rc)
        hv_context(e, "%s", path);
    else
        rc = name_it(fd, path, e);
    /* The data is on its way to the disk under its name already: a failure to close is one to write. */
    if (close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "%s: close: %s", path, strerror(errno));
    return rc;
}

int hv_out_produce(struct hv_out *o, const char *path, size_t block, hv_produce_fn *produce, void *ctx,
                   struct hv_err *e)
{
    char tmp[HV_PATH];
    struct stat st;
    int fd, rc;

    if (!path || !strcmp(path, "-")) {
        if (isatty(STDOUT_FILENO))
            return hv_fail(e, HV_EUSAGE, "standard output is a terminal: use -o FILE, or a pipe");
        if (check_values(o, e) || write_to(o, STDOUT_FILENO, 0, block, produce, ctx, e))
            return hv_context(e, "stdout");
        return 0;
    }
    if (check_values(o, e))
        return hv_context(e, "%s", path);
    if (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return write_special(o, path, block, produce, ctx, e);
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const int nameless = *base && (stat(path, &st) || !S_ISDIR(st.st_mode)) ? open_nameless(path) : -1;
    if (nameless >= 0)
        return write_nameless(o, nameless, path, block, produce, ctx, e);
    if (hv_temp_open(tmp, path, &fd, e))
        return e->code;
    rc = write_to(o, fd, o->digest, block, produce, ctx, e);
    if (!rc && o->sync && fsync(fd))
        rc = hv_fail(e, HV_EIO, "fsync: %s", strerror(errno));
    if (close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "close: %s", strerror(errno));
    if (rc) {
        hv_temp_discard(tmp);
        return hv_context(e, "%s", path);
    }
    return hv_temp_commit(tmp, path, e);
}

int hv_out_write(struct hv_out *o, const char *path, struct hv_err *e)
{
    return hv_out_produce(o, path, (size_t)1 << 20, NULL, NULL, e);
}
