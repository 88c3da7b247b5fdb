/* attention_cudnn.cu - attention by NVIDIA's cuDNN, version 9 or later, where it is installed
 *
 * q, o [Lq, H*128], k, v [Lk, H*128] bf16, 16-byte aligned, any row strides that are multiples of 8; o may be other
 * columns of q's matrix, but may not overlap q, k or v. No masks, no steps, H == kv_heads.
 * Sums and maxima are f32, p is rounded to bf16.
 *
 * The library is opened at run time and never linked. The few calls and constants used are declared here, so no header
 * is needed either: cuDNN does not change them within version 9. It compiles its kernels with NVRTC, which must be
 * found too. A problem is described as a graph, which cuDNN recognizes as attention and runs as one kernel:
 *
 *     s = q k^T      t = scale s    m = max t      u = t - m      e = exp u
 *     n = sum e      l = log n      z = m + l      r = e / n      o = r v
 *
 * Only q, k, v and o are in memory. Nobody reads z, the logarithm of the sum: without it the graph is not recognized.
 * The heuristics offer engines, best first. The first that is deterministic and whose workspace fits is kept as plan
 * for this shape, which takes up to a second when the shape is new; the scale is an argument of the plan, like the
 * addresses. Workspace: at most the first 32 MiB of the device's scratch. On sm_90 it is 256 bytes; where there is none
 * at all, an engine of half the speed is found.
 * Error against a plain softmax in f32: 2.3e-3 of the norm, that of rounding p and o. Repeated calls give the same
 * bits. */
#include "kernels/cuda/cuda.cuh"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH     128                   /* of a head */
#define ALIGN     16                    /* of rows and bases, in bytes */
#define WORKSPACE ((int64_t)32 << 20)
#define PARTS     96                    /* descriptors of a plan at most */
#define OFFERS    16                    /* engines looked at, of each kind of heuristics */

/* ---- the backend interface of cuDNN 9 ---- */

enum { DATA_FLOAT = 0, DATA_BFLOAT16 = 9 };
enum { BY_ADD = 0, BY_MUL = 1, BY_DIV = 6, BY_SUB = 9, BY_EXP = 13, BY_LOG = 15 };
enum { BY_SUM = 0, BY_MAX = 3 };
enum { HEUR_FALLBACK = 2, HEUR_A = 3 };
enum { NOTE_NONDETERMINISTIC = 4, NOTES = 64 };

/* Types of values. */
enum {
    TYPE_HANDLE = 0, TYPE_DATA_TYPE = 1, TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_VOID_PTR = 6, TYPE_HEUR_MODE = 8,
    TYPE_NUMERICAL_NOTE = 11, TYPE_POINTWISE_MODE = 14, TYPE_DESCRIPTOR = 15, TYPE_REDUCTION_OPERATOR = 18
};

/* Types of descriptors, and their attributes. */
enum { POINTWISE = 0, POINTWISE_MODE = 0, POINTWISE_MATH_PREC = 1 };
enum { ENGINE = 2, ENGINE_NUMERICAL_NOTE = 1303 };
enum { CONFIG = 3, CONFIG_ENGINE = 300 };
enum { HEUR = 4, HEUR_MODE = 200, HEUR_GRAPH = 201, HEUR_RESULTS = 202 };
enum { PLAN = 5, PLAN_HANDLE = 400, PLAN_CONFIG = 401, PLAN_WORKSPACE_SIZE = 402 };
enum { OP_POINTWISE = 13, OP_POINTWISE_DESC = 750, OP_POINTWISE_X = 751, OP_POINTWISE_B = 752, OP_POINTWISE_Y = 753 };
enum { GRAPH = 15, GRAPH_HANDLE = 800, GRAPH_OPS = 801 };
enum { PACK = 16, PACK_IDS = 1000, PACK_POINTERS = 1001, PACK_WORKSPACE = 1003 };
enum {
    TENSOR = 17, TENSOR_BYTE_ALIGNMENT = 900, TENSOR_DATA_TYPE = 901, TENSOR_DIMENSIONS = 902, TENSOR_STRIDES = 903,
    TENSOR_UNIQUE_ID = 906, TENSOR_IS_VIRTUAL = 907, TENSOR_IS_BY_VALUE = 908
};
enum { MATMUL = 18, MATMUL_COMP_TYPE = 1500 };
enum { OP_MATMUL = 19, OP_MATMUL_A = 1520, OP_MATMUL_B = 1521, OP_MATMUL_C = 1522, OP_MATMUL_DESC = 1523 };
enum { REDUCTION = 21, REDUCTION_OPERATOR = 1600, REDUCTION_COMP_TYPE = 1601 };
enum { OP_REDUCTION = 22, OP_REDUCTION_X = 1610, OP_REDUCTION_Y = 1611, OP_REDUCTION_DESC = 1612 };

/* Names of the tensors in memory. */
enum { ID_Q = 1, ID_K, ID_V, ID_O, ID_SCALE, ID_VIRTUAL };

struct shape {
    int64_t heads, rows, kv_rows;
    int64_t ld_q, ld_k, ld_v, ld_o;     /* row strides, in elements */
    int64_t room;                       /* bytes of workspace there are */
};

struct plan {
    struct plan *next;
    struct shape shape;
    void        *part[PARTS];           /* every descriptor made, in order; the plan refers to some of them */
    int          parts, failed;
    void        *plan;                  /* NULL: cuDNN has nothing for this shape */
    int64_t      workspace;
};

struct cuda_cudnn {
    int          version;
    void        *handle;                /* made by the first call */
    int          no_handle;
    struct plan *plans;
    const char *(*error)(int status);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*make)(int type, void **desc);
    int (*drop)(void *desc);
    int (*finalize)(void *desc);
    int (*set)(void *desc, int attribute, int type, int64_t n, const void *values);
    int (*get)(void *desc, int attribute, int type, int64_t room, int64_t *n, void *values);
    int (*execute)(void *handle, void *plan, void *pack);
};

/* ---- open, close ---- */

static void *find_library(void)
{
    void *lib = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);

    return lib ? lib : dlopen("libcudnn.so", RTLD_NOW | RTLD_LOCAL);
}

void cuda_cudnn_open(struct hv_dev *d)
{
    struct cuda_cudnn *c = (struct cuda_cudnn *)calloc(1, sizeof *c);
    void *lib = c ? find_library() : NULL;
    size_t (*version)(void) = NULL;

    if (lib) {
        const struct { const char *name; void *to; } call[] = {
            {"cudnnGetVersion", &version}, {"cudnnGetErrorString", &c->error}, {"cudnnCreate", &c->create},
            {"cudnnDestroy", &c->destroy}, {"cudnnSetStream", &c->set_stream},
            {"cudnnBackendCreateDescriptor", &c->make}, {"cudnnBackendDestroyDescriptor", &c->drop},
            {"cudnnBackendFinalize", &c->finalize}, {"cudnnBackendSetAttribute", &c->set},
            {"cudnnBackendGetAttribute", &c->get}, {"cudnnBackendExecute", &c->execute},
        };
        int found = 1;

        for (size_t i = 0; i < sizeof call / sizeof *call; i++)
            found = (*(void **)call[i].to = dlsym(lib, call[i].name)) && found;
        c->version = found ? (int)version() : 0;
    }
    if (c && c->version >= 90000) {
        cuda_of(d)->cudnn = c;          /* the library stays: code that has met CUDA does not like to be unloaded */
        return;
    }
    if (lib)
        dlclose(lib);
    free(c);
}

static void close_plan(struct cuda_cudnn *c, struct plan *p)
{
    while (p->parts)
        c->drop(p->part[--p->parts]);
    free(p);
}

void cuda_cudnn_close(struct hv_dev *d)
{
    struct cuda_cudnn *c = cuda_of(d)->cudnn;

    if (!c)
        return;
    if (c->handle)
        cudaStreamSynchronize(cuda_stream(d));
    for (struct plan *p = c->plans, *next; p; p = next) {
        next = p->next;
        close_plan(c, p);
    }
    if (c->handle)
        c->destroy(c->handle);
    free(c);
    cuda_of(d)->cudnn = NULL;
}

int cuda_cudnn_version(const struct hv_dev *d)
{
    return cuda_of(d)->cudnn ? cuda_of(d)->cudnn->version : 0;
}

/* A handle loads much of the library: stages without attention do not wait for it. */
static int open_handle(struct hv_dev *d, struct cuda_cudnn *c)
{
    if (!c->handle && !c->no_handle) {
        c->no_handle = cudaSetDevice(cuda_of(d)->index) != cudaSuccess || c->create(&c->handle) ||
                       c->set_stream(c->handle, cuda_stream(d));
    }
    return c->no_handle;
}

/* ---- descriptors: the first failure sticks to the plan, later calls do nothing ---- */

static void *make(struct cuda_cudnn *c, struct plan *p, int type)
{
    if (p->failed || p->parts == PARTS || c->make(type, &p->part[p->parts])) {
        p->failed = 1;
        return NULL;
    }
    return p->part[p->parts++];
}

static void set(struct cuda_cudnn *c, struct plan *p, void *desc, int attribute, int type, int64_t n,
                const void *values)
{
    p->failed = p->failed || c->set(desc, attribute, type, n, values);
}

static void set_desc(struct cuda_cudnn *c, struct plan *p, void *desc, int attribute, void *value)
{
    set(c, p, desc, attribute, TYPE_DESCRIPTOR, 1, &value);
}

static void set_enum(struct cuda_cudnn *c, struct plan *p, void *desc, int attribute, int type, int value)
{
    set(c, p, desc, attribute, type, 1, &value);
}

static void finalize(struct cuda_cudnn *c, struct plan *p, void *desc)
{
    p->failed = p->failed || c->finalize(desc);
}

/* A tensor [1, H, rows, columns]. */
static void *tensor(struct cuda_cudnn *c, struct plan *p, int64_t id, int dtype, int64_t heads, int64_t rows,
                    int64_t columns, int64_t head_stride, int64_t row_stride, int64_t column_stride)
{
    const int64_t dim[4] = {1, heads, rows, columns}, align = ALIGN;
    const int64_t stride[4] = {heads * rows * columns, head_stride, row_stride, column_stride};
    const bool is_virtual = id >= ID_VIRTUAL, by_value = id == ID_SCALE;
    void *t = make(c, p, TENSOR);

    set_enum(c, p, t, TENSOR_DATA_TYPE, TYPE_DATA_TYPE, dtype);
    set(c, p, t, TENSOR_DIMENSIONS, TYPE_INT64, 4, dim);
    set(c, p, t, TENSOR_STRIDES, TYPE_INT64, 4, stride);
    set(c, p, t, TENSOR_UNIQUE_ID, TYPE_INT64, 1, &id);
    set(c, p, t, TENSOR_BYTE_ALIGNMENT, TYPE_INT64, 1, &align);
    set(c, p, t, TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &is_virtual);
    set(c, p, t, TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &by_value);
    finalize(c, p, t);
    return t;
}

/* A tensor that is never in memory. */
static void *value(struct cuda_cudnn *c, struct plan *p, int64_t id, int dtype, int64_t rows, int64_t columns)
{
    return tensor(c, p, ID_VIRTUAL + id, dtype, p->shape.heads, rows, columns, rows * columns, columns, 1);
}

static void *matmul(struct cuda_cudnn *c, struct plan *p, void *y, void *a, void *b)
{
    void *how = make(c, p, MATMUL);

    set_enum(c, p, how, MATMUL_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    finalize(c, p, how);
    void *op = make(c, p, OP_MATMUL);
    set_desc(c, p, op, OP_MATMUL_A, a);
    set_desc(c, p, op, OP_MATMUL_B, b);
    set_desc(c, p, op, OP_MATMUL_C, y);
    set_desc(c, p, op, OP_MATMUL_DESC, how);
    finalize(c, p, op);
    return op;
}

/* b NULL: an operation of one argument. */
static void *pointwise(struct cuda_cudnn *c, struct plan *p, int mode, void *y, void *x, void *b)
{
    void *how = make(c, p, POINTWISE);

    set_enum(c, p, how, POINTWISE_MODE, TYPE_POINTWISE_MODE, mode);
    set_enum(c, p, how, POINTWISE_MATH_PREC, TYPE_DATA_TYPE, DATA_FLOAT);
    finalize(c, p, how);
    void *op = make(c, p, OP_POINTWISE);
    set_desc(c, p, op, OP_POINTWISE_DESC, how);
    set_desc(c, p, op, OP_POINTWISE_X, x);
    if (b)
        set_desc(c, p, op, OP_POINTWISE_B, b);
    set_desc(c, p, op, OP_POINTWISE_Y, y);
    finalize(c, p, op);
    return op;
}

static void *reduction(struct cuda_cudnn *c, struct plan *p, int mode, void *y, void *x)
{
    void *how = make(c, p, REDUCTION);

    set_enum(c, p, how, REDUCTION_OPERATOR, TYPE_REDUCTION_OPERATOR, mode);
    set_enum(c, p, how, REDUCTION_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    finalize(c, p, how);
    void *op = make(c, p, OP_REDUCTION);
    set_desc(c, p, op, OP_REDUCTION_X, x);
    set_desc(c, p, op, OP_REDUCTION_Y, y);
    set_desc(c, p, op, OP_REDUCTION_DESC, how);
    finalize(c, p, op);
    return op;
}

/* ---- plans ---- */

static void *attention_graph(struct cuda_cudnn *c, struct plan *p)
{
    const int64_t H = p->shape.heads, R = p->shape.rows, K = p->shape.kv_rows;
    void *q = tensor(c, p, ID_Q, DATA_BFLOAT16, H, R, WIDTH, WIDTH, p->shape.ld_q, 1);
    void *kt = tensor(c, p, ID_K, DATA_BFLOAT16, H, WIDTH, K, WIDTH, 1, p->shape.ld_k);     /* k, transposed */
    void *v = tensor(c, p, ID_V, DATA_BFLOAT16, H, K, WIDTH, WIDTH, p->shape.ld_v, 1);
    void *o = tensor(c, p, ID_O, DATA_BFLOAT16, H, R, WIDTH, WIDTH, p->shape.ld_o, 1);
    void *scale = tensor(c, p, ID_SCALE, DATA_FLOAT, 1, 1, 1, 1, 1, 1);
    void *s = value(c, p, 0, DATA_FLOAT, R, K), *t = value(c, p, 1, DATA_FLOAT, R, K);
    void *u = value(c, p, 2, DATA_FLOAT, R, K), *e = value(c, p, 3, DATA_FLOAT, R, K);
    void *m = value(c, p, 4, DATA_FLOAT, R, 1), *n = value(c, p, 5, DATA_FLOAT, R, 1);
    void *l = value(c, p, 6, DATA_FLOAT, R, 1), *z = value(c, p, 7, DATA_FLOAT, R, 1);
    void *r = value(c, p, 8, DATA_BFLOAT16, R, K);
    void *op[] = {
        matmul(c, p, s, q, kt),
        pointwise(c, p, BY_MUL, t, s, scale),
        reduction(c, p, BY_MAX, m, t),
        pointwise(c, p, BY_SUB, u, t, m),
        pointwise(c, p, BY_EXP, e, u, NULL),
        reduction(c, p, BY_SUM, n, e),
        pointwise(c, p, BY_LOG, l, n, NULL),
        pointwise(c, p, BY_ADD, z, m, l),
        pointwise(c, p, BY_DIV, r, e, n),
        matmul(c, p, o, r, v),
    };
    void *graph = make(c, p, GRAPH);

    set(c, p, graph, GRAPH_OPS, TYPE_DESCRIPTOR, sizeof op / sizeof *op, op);
    set(c, p, graph, GRAPH_HANDLE, TYPE_HANDLE, 1, &c->handle);
    finalize(c, p, graph);
    return graph;
}

/* 1 when the engine of a configuration gives the same bits every time. */
static int deterministic(struct cuda_cudnn *c, void *config)
{
    void *engine;
    int note[NOTES], good = 0;
    int64_t n = 0;

    if (c->make(ENGINE, &engine))
        return 0;
    if (!c->get(config, CONFIG_ENGINE, TYPE_DESCRIPTOR, 1, &n, &engine) &&
        !c->get(engine, ENGINE_NUMERICAL_NOTE, TYPE_NUMERICAL_NOTE, NOTES, &n, note)) {
        good = 1;
        for (int64_t i = 0; i < n && i < NOTES; i++)
            good = good && note[i] != NOTE_NONDETERMINISTIC;
    }
    c->drop(engine);
    return good;
}

/* Makes a configuration p's plan if it can be, and its workspace fits. */
static void take_config(struct cuda_cudnn *c, struct plan *p, void *config)
{
    void *plan;
    int64_t n = 0, bytes = 0;

    if (p->parts == PARTS || c->make(PLAN, &plan))
        return;
    if (!c->set(plan, PLAN_CONFIG, TYPE_DESCRIPTOR, 1, &config) &&
        !c->set(plan, PLAN_HANDLE, TYPE_HANDLE, 1, &c->handle) && !c->finalize(plan) &&
        !c->get(plan, PLAN_WORKSPACE_SIZE, TYPE_INT64, 1, &n, &bytes) && bytes <= p->shape.room) {
        p->part[p->parts++] = plan;
        p->plan = plan;
        p->workspace = bytes;
    } else {
        c->drop(plan);
    }
}

/* Asks one kind of heuristics, and takes the best offer that will do. */
static void take_offer(struct cuda_cudnn *c, struct plan *p, void *graph, int mode)
{
    void *heur = make(c, p, HEUR), *config[OFFERS];
    int64_t n = 0, got = 0;

    set_desc(c, p, heur, HEUR_GRAPH, graph);
    set_enum(c, p, heur, HEUR_MODE, TYPE_HEUR_MODE, mode);
    finalize(c, p, heur);
    if (p->failed || c->get(heur, HEUR_RESULTS, TYPE_DESCRIPTOR, 0, &n, NULL))
        return;
    n = n < OFFERS ? n : OFFERS;
    for (int64_t i = 0; i < n; i++)
        config[i] = make(c, p, CONFIG);
    if (p->failed || c->get(heur, HEUR_RESULTS, TYPE_DESCRIPTOR, n, &got, config))
        return;
    for (int64_t i = 0; i < got && i < n && !p->plan; i++)
        if (deterministic(c, config[i]))
            take_config(c, p, config[i]);
}

/* The plan for a shape, made when it is new; one that is not possible is remembered as well. NULL: no memory. */
static struct plan *plan_for(struct cuda_cudnn *c, const struct shape *s)
{
    struct plan *p;

    for (p = c->plans; p; p = p->next)
        if (!memcmp(&p->shape, s, sizeof *s))
            return p;
    if (!(p = (struct plan *)calloc(1, sizeof *p)))
        return NULL;
    p->shape = *s;
    void *graph = attention_graph(c, p);
    take_offer(c, p, graph, HEUR_A);
    if (!p->plan && !p->failed)
        take_offer(c, p, graph, HEUR_FALLBACK);
    p->next = c->plans;
    c->plans = p;
    return p;
}

/* ---- the operation ---- */

/* Whether two matrices share an element. Columns of one matrix lie between each other, and share none. */
static int overlap(const hv_tensor *a, const hv_tensor *b)
{
    const int64_t wide_a = a->shape[1] * 2, wide_b = b->shape[1] * 2;
    const int64_t pitch = a->stride[0] * 2, pitch_b = b->stride[0] * 2;
    const char *pa = (const char *)a->data, *pb = (const char *)b->data;

    if (pa + (a->shape[0] - 1) * pitch + wide_a <= pb || pb + (b->shape[0] - 1) * pitch_b + wide_b <= pa)
        return 0;
    if (pitch != pitch_b)
        return 1;
    const int64_t shift = ((pb - pa) % pitch + pitch) % pitch;
    return shift < wide_a || shift + wide_b > pitch;
}

static int fits(const hv_tensor *t, int heads)
{
    return t->dtype == HV_BF16 && t->shape[0] > 0 && t->shape[1] == (int64_t)heads * WIDTH &&
           t->stride[0] >= t->shape[1] && t->stride[0] % (ALIGN / 2) == 0 && (uintptr_t)t->data % ALIGN == 0;
}

/* Runs a plan; 0, or a status of cuDNN. */
static int run(struct cuda_cudnn *c, const struct plan *p, void *workspace, void *const *address)
{
    const int64_t id[5] = {ID_Q, ID_K, ID_V, ID_O, ID_SCALE};
    void *pack, *scratch = p->workspace ? workspace : NULL;
    int rc = c->make(PACK, &pack);

    if (rc)
        return rc;
    rc = c->set(pack, PACK_IDS, TYPE_INT64, 5, id);
    rc = rc ? rc : c->set(pack, PACK_POINTERS, TYPE_VOID_PTR, 5, address);
    rc = rc ? rc : c->set(pack, PACK_WORKSPACE, TYPE_VOID_PTR, 1, &scratch);
    rc = rc ? rc : c->finalize(pack);
    rc = rc ? rc : c->execute(c->handle, p->plan, pack);
    c->drop(pack);
    return rc;
}

int cuda_attention_cudnn(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    struct cuda_cudnn *c = cuda_of(d)->cudnn;
    const int scratch = d->scratch.dtype != HV_NONE && (uintptr_t)d->scratch.data % 256 == 0;
    const int64_t there = scratch ? (int64_t)hv_nbytes(d->scratch) : 0;

    if (!c || a->kv_heads != a->heads || a->step || a->key_mask.dtype != HV_NONE)
        return 1;
    if (!fits(&o, a->heads) || !fits(&q, a->heads) || !fits(&k, a->heads) || !fits(&v, a->heads))
        return 1;
    if (overlap(&o, &q) || overlap(&o, &k) || overlap(&o, &v) || open_handle(d, c))
        return 1;

    const struct shape s = {a->heads, q.shape[0], k.shape[0], q.stride[0], k.stride[0], v.stride[0], o.stride[0],
                            there < WORKSPACE ? there : WORKSPACE};
    const struct plan *p = plan_for(c, &s);
    if (!p) {
        hv_dev_fault(d, HV_ENOMEM, "cuda: attention: out of host memory");
        return 0;
    }
    if (!p->plan)
        return 1;

    float scale = a->scale;
    void *const address[5] = {q.data, k.data, v.data, o.data, &scale};
    const int rc = run(c, p, d->scratch.data, address);
    if (rc)                             /* not left to another back end: which one computes may not depend on chance */
        hv_dev_fault(d, HV_EDEVICE, "cuda: attention: cudnn %d: %s", c->version, c->error(rc));
    return 0;
}
