/* Order and alignment of a packed file, and what the commands share. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-weights.h"
#include "io/listing.h"

#define ALIGN 64

struct piece *pack_add(struct pack *k, const char *name, hv_dtype t, int ndim, const int64_t *shape, enum role role,
                       int64_t rank)
{
    char *copy = strdup(name);

    if (copy && k->n == k->cap) {
        const int cap = k->cap ? 2 * k->cap : 256;
        struct piece *p = realloc(k->p, (size_t)cap * sizeof *p);
        if (p) {
            k->p = p;
            k->cap = cap;
        }
    }
    if (!copy || k->n == k->cap) {
        free(copy);
        k->fault = 1;
        return NULL;
    }
    struct piece *p = &k->p[k->n++];
    *p = (struct piece){.name = copy, .dtype = t, .ndim = ndim, .role = role, .rank = rank};
    memcpy(p->shape, shape, (size_t)ndim * sizeof *shape);
    return p;
}

void pack_close(struct pack *k)
{
    for (int i = 0; i < k->n; i++) {
        free(k->p[i].name);
        free(k->p[i].made);
        if (k->p[i].role == QUANTIZED && k->p[i].scales) {
            free(k->p[i].scales->v);
            free(k->p[i].scales->done);
            free(k->p[i].scales);
        }
    }
    free(k->p);
    *k = (struct pack){0};
}

static uint64_t piece_bytes(const struct piece *p)
{
    return (uint64_t)hv_shape_count(p->ndim, p->shape) * hv_dtype_size(p->dtype);
}

/* Classes in the order of the file. Whole multiples of 64 bytes keep each other aligned, in the order of use; what is left
 * (in networks of odd sizes alone) follows: matrices with padding between them, vectors with wide elements first. */
static int64_t class_of(const struct piece *p)
{
    if (piece_bytes(p) % ALIGN == 0)
        return 0;
    return p->ndim >= 2 ? 1 : 10 - (int64_t)hv_dtype_size(p->dtype);
}

static int by_class_and_rank(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    const int64_t cx = class_of(x), cy = class_of(y);

    if (cx != cy)
        return cx < cy ? -1 : 1;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    return strcmp(x->name, y->name);
}

int pack_layout(struct pack *k, struct hv_out *out, struct hv_err *e)
{
    const int n = k->n;
    int pads = 0;

    if (n && !k->fault)
        qsort(k->p, (size_t)n, sizeof *k->p, by_class_and_rank);
    for (int i = 0; i < n && !k->fault; i++) {
        const uint64_t left = piece_bytes(&k->p[i]) % ALIGN;
        if (class_of(&k->p[i]) != 1 || i == n - 1)
            continue;
        char name[32];
        const int64_t size = (int64_t)(ALIGN - left);
        snprintf(name, sizeof name, "__pad.%d", pads++);
        struct piece *pad = pack_add(k, name, HV_U8, 1, &size, PAD, i);
        if (pad)
            pad->rank = i;                      /* goes after piece i */
    }
    if (k->fault)
        return hv_fail(e, HV_ENOMEM, "out of memory");
    if (pads) {
        struct piece *p = malloc((size_t)k->n * sizeof *p);
        int at = 0, pad = n;
        if (!p)
            return hv_fail(e, HV_ENOMEM, "out of memory");
        for (int i = 0; i < n; i++) {
            p[at++] = k->p[i];
            if (pad < k->n && k->p[pad].rank == i)
                p[at++] = k->p[pad++];
        }
        memcpy(k->p, p, (size_t)k->n * sizeof *p);
        free(p);
    }
    for (int i = 0; i < k->n; i++)
        hv_out_declare(out, k->p[i].name, k->p[i].dtype, k->p[i].ndim, k->p[i].shape);
    return 0;
}

/* ---- shared ---- */

int is_padding(const char *name)
{
    return !strncmp(name, "__pad.", 6);
}

int is_quantized(hv_dtype t)
{
    return t == HV_I8 || t == HV_F8_E4M3;
}

const struct hv_kind *kind_of_ckpt(const struct hv_ckpt *c)
{
    const struct hv_kind *k = hv_kind_find(hv_ckpt_meta(c, "hv.model"));

    for (int i = 0; i < hv_ckpt_count(c) && !k; i++)
        k = hv_kind_of_tensor(hv_ckpt_at(c, i)->name);
    return k;
}

const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

const char *shape_text(char buf[192], int ndim, const int64_t *shape)
{
    struct hv_entry t = {.ndim = ndim};

    memcpy(t.shape, shape, (size_t)ndim * sizeof *shape);
    return hv_entry_shape(&t, buf);
}

int pick_output(const struct hv_common *c, int operands, const char **path, struct hv_err *e)
{
    if (c->n_operands == operands && c->output)
        return hv_fail(e, HV_EUSAGE, "two outputs: '%s' and -o '%s'", c->operand[operands - 1], c->output);
    if (c->n_operands < operands && !c->output)
        return hv_fail(e, HV_EUSAGE, "missing operand: OUT");
    *path = c->output ? c->output : c->operand[operands - 1];
    return 0;
}

void use_threads(const struct hv_common *c)
{
    if (c->threads > 0)
        omp_set_num_threads((int)c->threads);
    pool_threads(c->threads);
}

double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int list_beside(const char *path, const struct hv_kind **kind, struct hv_wlist *l, struct hv_err *e)
{
    const char *slash = strrchr(path, '/');
    char config[HV_PATH];
    json_t *root = NULL;
    int rc;

    *kind = NULL;
    snprintf(config, sizeof config, "%.*sconfig.json", slash ? (int)(slash - path + 1) : 0, path);
    if (access(config, F_OK))
        return 0;
    rc = hv_json_read(&root, config, e);
    if (!rc)
        *kind = hv_kind_of_config(root);
    if (!rc && *kind && (*kind)->list(l, root, e))
        rc = hv_context(e, "%s", config);
    json_decref(root);
    return rc;
}
