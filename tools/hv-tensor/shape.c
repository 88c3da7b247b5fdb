/* hv-tensor convert, slice and merge: tensors from files to a file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-tensor.h"
#include "io/npy.h"

#define BLOCK ((size_t)4 << 20)
#define BUF   ((size_t)1024)

/* ---- writing ---- */

/* The shape of what a source gives; returns its dimensions. */
static int source_shape(const struct source *s, int64_t shape[HV_ST_DIMS])
{
    int n = 0;

    for (int i = 0; i < s->t->ndim; i++)
        if (!s->sliced || !s->r[i].drop)
            shape[n++] = s->sliced ? s->r[i].n : s->t->shape[i];
    return n;
}

/* Element i of the sliced tensor in the whole one. */
static size_t source_index(const struct source *s, size_t i)
{
    size_t at = 0, stride = 1;

    if (!s->sliced)
        return i;
    for (int k = s->t->ndim - 1; k >= 0; k--) {
        const size_t n = (size_t)s->r[k].n;
        at += stride * ((size_t)s->r[k].first + i % n * (size_t)s->r[k].step);
        i /= n;
        stride *= (size_t)s->t->shape[k];
    }
    return at;
}

/* How many elements from i on lie side by side in the source. */
static size_t source_run(const struct source *s, size_t i, size_t n)
{
    const int last = s->t->ndim - 1;

    if (!s->sliced || last < 0)
        return n;
    if (s->r[last].step != 1)
        return 1;
    const size_t left = (size_t)s->r[last].n - i % (size_t)s->r[last].n;
    return left < n ? left : n;
}

static void copy_elements(const struct source *s, size_t first, size_t n, char *dst)
{
    const size_t in = hv_dtype_size(s->t->dtype), out = hv_dtype_size(s->as);
    const char *data = hv_in_data(s->in, s->t);
    double wide[BUF];

    for (size_t at = first; at < first + n;) {
        size_t run = source_run(s, at, first + n - at);
        const char *src = data + source_index(s, at) * in;
        if (s->as == s->t->dtype) {
            memcpy(dst, src, run * in);
        } else {
            run = run < BUF ? run : BUF;
            to_f64(wide, s->t->dtype, src, run);
            from_f64(s->as, dst, wide, run);
        }
        dst += run * out;
        at += run;
    }
}

static int produce(void *ctx, int i, uint64_t offset, void *buf, size_t n, struct hv_err *e)
{
    const struct source *s = (const struct source *)ctx + i;
    const size_t size = hv_dtype_size(s->as);

    (void)e;
    copy_elements(s, (size_t)offset / size, n / size, buf);
    return 0;
}

int write_sources(struct hv_out *out, const struct source *s, int n, const char *path, struct hv_err *e)
{
    struct source *copy = malloc((size_t)(n + 1) * sizeof *copy);
    int64_t shape[HV_ST_DIMS];

    if (!copy)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; i < n; i++) {
        copy[i] = s[i];
        hv_out_declare(out, s[i].t->name, s[i].as, source_shape(&s[i], shape), shape);
    }
    const int rc = hv_out_produce(out, path, BLOCK, produce, copy, e);
    free(copy);
    return rc;
}

const char *copy_metadata(struct hv_out *out, const struct hv_in *in)
{
    const char *key, *value, *clash = NULL;

    for (int i = 0; hv_in_meta_at(in, i, &key, &value); i++) {
        const char *there = NULL;
        if (!strcmp(key, "hv.sha256"))                  /* of the data as it was */
            continue;
        for (int k = 0; k < out->n_meta; k++)
            if (!strcmp(out->meta[2 * k], key))
                there = out->meta[2 * k + 1];
        if (!there)
            hv_out_meta(out, key, "%s", value);
        else if (strcmp(there, value) && !clash)
            clash = key;
    }
    return clash;
}

/* ---- slice ---- */

/* One of "a:b:c", "i", "..." of a dimension of n, as Python reads it (steps are positive). */
static int parse_range(struct range *r, const char *text, size_t len, int64_t n, struct hv_err *e)
{
    char part[80], *p = part, *end;
    int64_t v[3] = {0, n, 1};
    int colons = 0, given[3] = {0};

    if (len >= sizeof part)
        return hv_fail(e, HV_EUSAGE, "range '%.*s' is too long", (int)len, text);
    memcpy(part, text, len);
    part[len] = 0;
    for (;;) {
        p += strspn(p, " ");
        if (*p && *p != ':') {
            errno = 0;
            v[colons] = strtoll(p, &end, 10);
            if (end == p || errno)
                return hv_fail(e, HV_EUSAGE, "range '%s': expected i, a:b or a:b:step", part);
            given[colons] = 1;
            p = end + strspn(end, " ");
        }
        if (!*p)
            break;
        if (*p++ != ':' || ++colons > 2)
            return hv_fail(e, HV_EUSAGE, "range '%s': expected i, a:b or a:b:step", part);
    }
    if (!colons && !given[0])
        return hv_fail(e, HV_EUSAGE, "an empty range: expected i, a:b or a:b:step");
    if (given[2] && v[2] < 1)
        return hv_fail(e, HV_EUSAGE, "range '%s': a step of %lld, expected 1 or more", part, (long long)v[2]);
    for (int i = 0; i < 2; i++)
        if (given[i] && v[i] < 0)
            v[i] += n;
    if (!colons) {
        if (v[0] < 0 || v[0] >= n)
            return hv_fail(e, HV_EINPUT, "index %s of a dimension of %lld", part, (long long)n);
        *r = (struct range){v[0], 1, 1, 1};
        return 0;
    }
    const int64_t first = v[0] < 0 ? 0 : v[0] > n ? n : v[0], last = v[1] < 0 ? 0 : v[1] > n ? n : v[1];
    *r = (struct range){first, last > first ? (last - first - 1) / v[2] + 1 : 0, v[2], 0};
    return 0;
}

static int parse_ranges(struct source *s, const char *text, struct hv_err *e)
{
    const struct hv_entry *t = s->t;
    int k = 0;

    s->sliced = 1;
    for (int i = 0; i < t->ndim; i++)
        s->r[i] = (struct range){0, t->shape[i], 1, 0};
    for (const char *p = text;;) {
        const size_t len = strcspn(p, ",");
        if (k == t->ndim)
            return hv_fail(e, HV_EINPUT, "%s: '%s' has more ranges than the tensor dimensions (%d)", t->name, text, t->ndim);
        if (parse_range(&s->r[k], p, len, t->shape[k], e))
            return hv_context(e, "%s", t->name);
        k++;
        if (!p[len])
            return 0;
        p += len + 1;
    }
}

/* "-1:" is a range and no option: a blank in front, which parse_range skips, tells getopt so. */
static void shield_ranges(int argc, char **argv, char buf[256])
{
    for (int i = 1; i < argc; i++)
        if (argv[i][0] == '-' && argv[i][1] >= '0' && argv[i][1] <= '9' && strlen(argv[i]) < 255) {
            buf[0] = ' ';
            strcpy(buf + 1, argv[i]);
            argv[i] = buf;
            return;
        }
}

int cmd_slice(int argc, char **argv, struct hv_err *e)
{
    static char range[256];
    static struct hv_common c;
    static int keep;
    const struct hv_opt opts[] = {
        {"keep", 0, HV_OPT_FLAG, &keep, NULL, "keep the file's other tensors, whole", 0, 0}, {0}
    };
    const struct hv_cli cli = {"hv-tensor", "slice FILE KEY RANGES",
                               "Cuts a part of a tensor: RANGES as in Python, one a dimension, e.g. :,0:4 or -1 or ::2,3.", opts,
                               &c, 3, 3};
    struct hv_in *in = NULL;
    struct hv_out out = {0};
    struct source *s = NULL;
    int n = 0, rc;

    shield_ranges(argc, argv, range);
    rc = hv_cli_parse(&cli, argc, argv, e);
    if (rc)
        return rc;
    rc = hv_in_open(&in, c.operand[0], e);
    const struct hv_entry *t = rc ? NULL : hv_in_find(in, c.operand[1]);
    if (!rc && !t)
        rc = hv_fail(e, HV_EINPUT, "%s: no tensor '%s'", hv_in_path(in), c.operand[1]);
    if (!rc && !(s = calloc((size_t)hv_in_count(in) + 1, sizeof *s)))
        rc = hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; !rc && i < hv_in_count(in); i++) {
        const struct hv_entry *x = hv_in_entry(in, i);
        if (x != t && !keep)
            continue;
        s[n] = (struct source){.in = in, .t = x, .as = x->dtype};
        if (x == t)
            rc = parse_ranges(&s[n], c.operand[2], e);
        n++;
    }
    if (!rc) {
        copy_metadata(&out, in);
        rc = write_sources(&out, s, n, c.output, e);
    }
    free(s);
    hv_out_close(&out);
    hv_in_close(in);
    return rc;
}

/* ---- merge ---- */

static int merge_files(const struct hv_cli *cli, struct hv_in **in, int n_in, const char *path, struct hv_err *e)
{
    static const char *const agree[] = {"hv.version", "hv.width", "hv.height", "hv.fps"};
    struct hv_out out = {0};
    int total = 0, n = 0, rc = 0;

    for (int i = 0; i < n_in; i++)
        total += hv_in_count(in[i]);
    struct source *s = calloc((size_t)total + 1, sizeof *s);
    if (!s)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; i < n_in && !rc; i++) {
        for (int k = 0; k < hv_in_count(in[i]) && !rc; k++) {
            const struct hv_entry *t = hv_in_entry(in[i], k);
            for (int j = 0; j < i && !rc; j++)
                if (hv_in_find(in[j], t->name))
                    rc = hv_fail(e, HV_EINPUT, "tensor '%s' is in %s and in %s", t->name, hv_in_path(in[j]), hv_in_path(in[i]));
            s[n++] = (struct source){.in = in[i], .t = t, .as = t->dtype};
        }
        const char *clash = copy_metadata(&out, in[i]);
        for (size_t k = 0; clash && !rc && k < sizeof agree / sizeof *agree; k++)
            if (!strcmp(clash, agree[k]))
                rc = hv_fail(e, HV_EINPUT, "%s: its %s differs from that of the files before", hv_in_path(in[i]), clash);
        if (clash && !rc)
            hv_note_verbose(cli, "%s: metadata '%s' differs, the first file's is kept", hv_in_path(in[i]), clash);
    }
    if (!rc)
        rc = write_sources(&out, s, n, path, e);
    free(s);
    hv_out_close(&out);
    return rc;
}

int cmd_merge(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    const struct hv_cli cli = {"hv-tensor", "merge FILE...", "Puts the tensors of several files into one.", NULL, &c, 1, 64};
    struct hv_in *in[64] = {NULL};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (rc)
        return rc;
    for (int i = 0; i < c.n_operands && !rc; i++)
        rc = hv_in_open(&in[i], c.operand[i], e);
    if (!rc)
        rc = merge_files(&cli, in, c.n_operands, c.output, e);
    for (int i = 0; i < c.n_operands; i++)
        hv_in_close(in[i]);
    return rc;
}

/* ---- convert ---- */

struct options {
    struct hv_common c;
    struct hv_strs   keys;
    const char      *dtype, *to;
    hv_dtype         as;                /* HV_NONE: as it is */
};

static int write_bytes(int fd, const void *data, size_t n)
{
    for (const char *p = data; n;) {
        const ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

static int write_npy_to(int fd, const struct source *s, struct hv_err *e)
{
    char header[1024], buf[65536];
    int64_t shape[HV_ST_DIMS];
    const int ndim = source_shape(s, shape);
    const size_t n = entry_count(s->t), size = hv_dtype_size(s->as), step = sizeof buf / size;
    const size_t head = hv_npy_header(header, sizeof header, s->as, ndim, shape);

    if (write_bytes(fd, header, head))
        return hv_fail(e, HV_EIO, "write: %s", strerror(errno));
    for (size_t at = 0; at < n; at += step) {
        const size_t k = n - at < step ? n - at : step;
        copy_elements(s, at, k, buf);
        if (write_bytes(fd, buf, k * size))
            return hv_fail(e, HV_EIO, "write: %s", strerror(errno));
    }
    return 0;
}

static int write_npy(const char *path, const struct source *s, struct hv_err *e)
{
    char tmp[HV_PATH];
    int fd, rc;

    if (!path || !strcmp(path, "-")) {
        if (isatty(STDOUT_FILENO))
            return hv_fail(e, HV_EUSAGE, "standard output is a terminal: use -o FILE, or a pipe");
        return write_npy_to(STDOUT_FILENO, s, e) ? hv_context(e, "stdout") : 0;
    }
    if (hv_temp_open(tmp, path, &fd, e))
        return e->code;
    rc = write_npy_to(fd, s, e);
    if (close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "close: %s", strerror(errno));
    if (!rc)
        return hv_temp_commit(tmp, path, e);
    hv_temp_discard(tmp);
    return hv_context(e, "%s", path);
}

static int is_npy_file(const char *path)
{
    char head[8];
    const int fd = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    const ssize_t n = fd < 0 ? 0 : read(fd, head, sizeof head);

    if (fd >= 0)
        close(fd);
    return n > 0 && hv_npy_is(head, (size_t)n);
}

static int ends_in_npy(const char *path)
{
    const size_t n = path ? strlen(path) : 0;

    return n > 4 && !strcmp(path + n - 4, ".npy");
}

/* An array becomes a tensor file of one tensor. */
static int from_npy(const struct options *o, struct hv_err *e)
{
    struct hv_npy a = {0};
    struct hv_out out = {0};
    int rc;

    if (o->keys.n != 1)
        return hv_fail(e, HV_EUSAGE, "--key NAME: what the array is to be called");
    rc = hv_npy_read(&a, o->c.operand[0], e);
    if (!rc) {
        struct hv_entry t = {.name = o->keys.v[0], .dtype = a.dtype, .ndim = a.ndim};
        memcpy(t.shape, a.shape, sizeof t.shape);
        const hv_dtype as = o->as ? o->as : a.dtype;
        const size_t n = (size_t)hv_shape_count(a.ndim, a.shape);
        char *bytes = malloc(n * hv_dtype_size(as) + 1);
        double wide[BUF];
        for (size_t at = 0; bytes && at < n; at += BUF) {
            const size_t k = n - at < BUF ? n - at : BUF;
            to_f64(wide, a.dtype, (const char *)a.data + at * hv_dtype_size(a.dtype), k);
            from_f64(as, bytes + at * hv_dtype_size(as), wide, k);
        }
        if (bytes && as == a.dtype)
            memcpy(bytes, a.data, n * hv_dtype_size(as));       /* 64-bit integers keep all their digits */
        hv_out_declare(&out, t.name, as, t.ndim, t.shape);
        if (!bytes || out.fault)
            rc = hv_fail(e, HV_ENOMEM, "out of memory");
        else
            out.entry[0].data = out.entry[0].owned = bytes;
        if (!rc)
            rc = hv_out_write(&out, o->c.output, e);
    }
    hv_out_close(&out);
    hv_npy_close(&a);
    return rc;
}

static int from_st(const struct options *o, int to_npy, struct hv_err *e)
{
    struct hv_in *in = NULL;
    struct hv_out out = {0};
    struct source *s = NULL;
    int n = 0, rc = hv_in_open(&in, o->c.n_operands ? o->c.operand[0] : "-", e);

    if (!rc)
        rc = all_there(&o->keys, &in, 1, e);
    if (!rc && !(s = calloc((size_t)hv_in_count(in) + 1, sizeof *s)))
        rc = hv_fail(e, HV_ENOMEM, "out of memory");
    for (int i = 0; !rc && i < hv_in_count(in); i++) {
        const struct hv_entry *t = hv_in_entry(in, i);
        const int picked = wanted(&o->keys, t->name);
        if (!picked && to_npy)
            continue;
        /* Without a key floating tensors change; integers do where they are named. */
        const int change = o->as && picked && (o->keys.n || hv_dtype_is_float(t->dtype));
        s[n++] = (struct source){.in = in, .t = t, .as = change ? o->as : to_npy ? hv_npy_dtype(t->dtype) : t->dtype};
    }
    if (!rc && to_npy && n != 1)
        rc = hv_fail(e, HV_EUSAGE, "%d tensors, an npy file holds one: choose with --key NAME", n);
    if (!rc && to_npy && hv_npy_dtype(s[0].as) != s[0].as)
        rc = hv_fail(e, HV_EUSAGE, "npy has no %s", hv_dtype_name(s[0].as));
    if (!rc && to_npy) {
        rc = write_npy(o->c.output, &s[0], e);
    } else if (!rc) {
        copy_metadata(&out, in);
        rc = write_sources(&out, s, n, o->c.output, e);
    }
    free(s);
    hv_out_close(&out);
    hv_in_close(in);
    return rc;
}

int cmd_convert(int argc, char **argv, struct hv_err *e)
{
    static struct options o;
    const struct hv_opt opts[] = {
        {"dtype", 0, HV_OPT_STR, &o.dtype, "TYPE", "f32, f16, bf16, f64, i64, u8, .. (default: as it is)", 0, 0},
        {"key", 0, HV_OPT_LIST, &o.keys, "NAME", "only this tensor (may be repeated); the name of an npy array", 0, 0},
        {"to", 0, HV_OPT_STR, &o.to, "npy|st", "format (default: from the name of the output)", 0, 0},
        {0}
    };
    const struct hv_cli cli = {"hv-tensor", "convert [FILE]",
                               "Changes dtypes, or safetensors to NumPy's npy and back. FILE may be either.", opts, &o.c, 0, 1};
    char upper[16] = "";
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (rc)
        return rc;
    for (size_t i = 0; o.dtype && o.dtype[i] && i < sizeof upper - 1; i++)
        upper[i] = (char)(o.dtype[i] >= 'a' && o.dtype[i] <= 'z' ? o.dtype[i] - 32 : o.dtype[i]);
    o.as = o.dtype ? hv_dtype_parse(upper) : HV_NONE;
    if (o.dtype && !o.as)
        return hv_fail(e, HV_EUSAGE, "--dtype: '%s' is no dtype", o.dtype);
    if (o.to && strcmp(o.to, "npy") && strcmp(o.to, "st"))
        return hv_fail(e, HV_EUSAGE, "--to: '%s', expected npy or st", o.to);
    if (o.c.n_operands && is_npy_file(o.c.operand[0]))
        return from_npy(&o, e);
    return from_st(&o, o.to ? !strcmp(o.to, "npy") : ends_in_npy(o.c.output), e);
}
