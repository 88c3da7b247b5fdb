/* gemm.cu - linear: y = act(x w^T + bias), and which kernel computes it
 *
 *     w bf16, f16 or f32, of x's dtype     cublasLt: f32 sums (no tf32), bias and gelu (tanh) in its epilogue
 *     w I8 or F8_E4M3, x bf16              gemm_fused.cu
 *     F8_E4M3 where the device says fp8    x to e4m3 by rows, then cublasLt e4m3 x e4m3 with both scales
 *     anything else                        gemm_plain.cu
 *
 * cublasLt and the fused kernel take operands on 16 bytes with steps of 16 bytes; shapes are free. An activation or a
 * bias that the epilogue does not know is a pass over y after the product, which then is rounded once more.
 *
 * An algorithm is asked for once a shape, dtype, epilogue, batch and size of workspace, as for contiguous matrices on
 * 16 bytes, and kept: a product has the same bits wherever its operands lie and whatever their strides. If an algorithm
 * does not take the strides at hand (none was seen to), one is asked for with them. Sums that are split over K are
 * added in f32 and in order.
 *
 * Products of one x in a batch (hv_linears) get an algorithm of their own: their bits may be other ones than those of
 * the products one by one (on an H200 they were the same). Where the operands lie decides, which a plan fixes. In the
 * fused kernel bits are the same.
 *
 * Workspace: the first 32 MiB of the device's scratch (4 MiB before compute capability 9.0), none if there is no
 * scratch. What follows holds x in e4m3. Calls to cublasLt allocate nothing on the device and do not wait for it. */
#include "kernels/cuda/gemm.cuh"

#include <stdlib.h>
#include <string.h>

/* One product, or `batch` of them. cublasLt has columns first: to it w is K x N, x is K x R and y is N x R. */
struct product {
    int64_t rows, cols, depth, batch;
    int64_t ldw, ldx, ldy, step_w, step_y, step_bias;       /* steps between products; x is shared */
    int type, bias_type, epilogue, scaled;                  /* type: of w and x; y is bf16 where that is e4m3 */
    int wide;                                               /* 1: y is f32 */
    const void *w, *x, *bias;
    const float *scale_w, *scale_x;
    void *y;
};

/* What an algorithm is chosen by. ld is zero but for those that the usual algorithm refused. Compared as bytes. */
struct key {
    int64_t rows, cols, depth, batch, workspace, ld[6];
    int type, bias_type, epilogue, scaled, wide;
};

struct cuda_choice {
    struct key key;
    cublasLtMatmulAlgo_t algo;
    int found;
    int64_t ld[6];                      /* strides that the algorithm was last seen to take */
};

/* cublasLt's descriptions, on the stack. */
struct description {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

/* ---- open, close ---- */

int cuda_gemm_open(struct hv_dev *d, struct hv_err *e)
{
    struct cuda *c = cuda_of(d);

    if (cuda_blaslt_open(e))
        return e->code;
    if (!(c->gemm = (struct cuda_gemm *)calloc(1, sizeof *c->gemm)))
        return hv_fail(e, HV_ENOMEM, "cuda: out of memory");
    if (cudaDeviceGetAttribute(&c->gemm->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->index) != cudaSuccess ||
        cublasLtCreate(&c->gemm->lt) != CUBLAS_STATUS_SUCCESS) {
        free(c->gemm);
        c->gemm = NULL;
        return hv_fail(e, HV_EDEVICE, "cuda: cublasLt does not start");
    }
    return 0;
}

void cuda_gemm_close(struct hv_dev *d)
{
    struct cuda *c = cuda_of(d);

    if (!c->gemm)
        return;
    cublasLtDestroy(c->gemm->lt);
    free(c->gemm->choice);
    free(c->gemm);
    c->gemm = NULL;
}

/* ---- cublasLt ---- */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t workspace(const struct hv_dev *d)
{
    const int64_t most = cuda_of(d)->arch >= 90 ? HV_LINEAR_SCRATCH : HV_LINEAR_SCRATCH / 8;

    return d->scratch.data ? least(most, (int64_t)hv_nbytes(d->scratch)) / 256 * 256 : 0;
}

static cudaDataType_t type_of(int t)
{
    return t == HV_F32 ? CUDA_R_32F : t == HV_F16 ? CUDA_R_16F : t == HV_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
}

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The same product of contiguous matrices, each just on 16 bytes: what the usual algorithm is chosen for. */
static struct product plainest(struct product p)
{
    const int64_t in = 16 / (int64_t)hv_dtype_size((hv_dtype)p.type), out = p.wide ? 4 : in < 8 ? in : 8;

    p.ldw = p.ldx = up(p.depth, in);
    p.ldy = up(p.cols, out);
    p.step_w = p.ldw * p.cols;
    p.step_y = p.ldy * p.rows;
    p.step_bias = up(p.cols, 8);
    p.w = p.x = p.bias = p.y = (void *)16;
    p.scale_w = p.scale_x = (const float *)16;
    return p;
}

#define OP(t, attribute, ...)                                                                                          \
    do {                                                                                                               \
        __VA_ARGS__;                                                                                                   \
        cublasLtMatmulDescSetAttribute(&(t)->op, attribute, &v, sizeof v);                                             \
    } while (0)

static void set_batch(cublasLtMatrixLayout_t l, int64_t batch, int64_t step)
{
    const int32_t n = (int32_t)batch;

    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step);
}

static void describe(struct description *t, const struct product *p)
{
    const cudaDataType_t in = type_of(p->type), out = p->wide ? CUDA_R_32F : p->type == HV_F8_E4M3 ? CUDA_R_16BF : in;

    cublasLtMatmulDescInit(&t->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    OP(t, CUBLASLT_MATMUL_DESC_TRANSA, const cublasOperation_t v = CUBLAS_OP_T);
    OP(t, CUBLASLT_MATMUL_DESC_EPILOGUE, const cublasLtEpilogue_t v = (cublasLtEpilogue_t)p->epilogue);
    if (p->epilogue & CUBLASLT_EPILOGUE_BIAS) {
        OP(t, CUBLASLT_MATMUL_DESC_BIAS_POINTER, const void *v = p->bias);
        OP(t, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, const cudaDataType_t v = type_of(p->bias_type));
        if (p->batch > 1)
            OP(t, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, const int64_t v = p->step_bias);
    }
#if CUBLAS_VERSION >= 120900
    if (p->scaled) {
        OP(t, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, const int32_t v = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
        OP(t, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, const int32_t v = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
        OP(t, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, const void *v = p->scale_w);
        OP(t, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, const void *v = p->scale_x);
    }
#endif
    cublasLtMatrixLayoutInit(&t->w, in, (uint64_t)p->depth, (uint64_t)p->cols, p->ldw);
    cublasLtMatrixLayoutInit(&t->x, in, (uint64_t)p->depth, (uint64_t)p->rows, p->ldx);
    cublasLtMatrixLayoutInit(&t->y, out, (uint64_t)p->cols, (uint64_t)p->rows, p->ldy);
    if (p->batch > 1) {
        set_batch(&t->w, p->batch, p->step_w);
        set_batch(&t->x, p->batch, 0);
        set_batch(&t->y, p->batch, p->step_y);
    }
}

static int ask(struct cuda_gemm *g, const struct product *p, int64_t space, cublasLtMatmulAlgo_t *algo)
{
    const uint32_t sixteen = 16, reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint64_t most = (uint64_t)space;
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t result;
    struct description t;
    int n = 0;

    describe(&t, p);
    cublasLtMatmulPreferenceInit(&pref);
#define PREFER(what, v) cublasLtMatmulPreferenceSetAttribute(&pref, CUBLASLT_MATMUL_PREF_##what, &(v), sizeof(v))
    PREFER(MAX_WORKSPACE_BYTES, most);
    PREFER(REDUCTION_SCHEME_MASK, reduction);
    PREFER(MIN_ALIGNMENT_A_BYTES, sixteen);
    PREFER(MIN_ALIGNMENT_B_BYTES, sixteen);
    PREFER(MIN_ALIGNMENT_C_BYTES, sixteen);
    PREFER(MIN_ALIGNMENT_D_BYTES, sixteen);
#undef PREFER
    cublasStatus_t rc = cublasLtMatmulAlgoGetHeuristic(g->lt, &t.op, &t.w, &t.x, &t.y, &t.y, &pref, 1, &result, &n);
    if (rc != CUBLAS_STATUS_SUCCESS || n < 1 || result.state != CUBLAS_STATUS_SUCCESS)
        return 0;
    *algo = result.algo;
    return 1;
}

/* The choice of a key; the first time it is asked for as p describes it. NULL: no memory. */
static struct cuda_choice *choose(struct cuda_gemm *g, const struct key *key, const struct product *p)
{
    for (int i = 0; i < g->choices; i++)
        if (!memcmp(&g->choice[i].key, key, sizeof *key))
            return &g->choice[i];
    if (g->choices == g->room) {
        const int room = g->room ? 2 * g->room : 64;
        struct cuda_choice *more = (struct cuda_choice *)realloc(g->choice, (size_t)room * sizeof *more);
        if (!more)
            return NULL;
        g->choice = more;
        g->room = room;
    }
    struct cuda_choice *c = &g->choice[g->choices++];
    memset(c, 0, sizeof *c);
    c->key = *key;
    c->found = ask(g, p, key->workspace, &c->algo);
    return c;
}

/* 0, or 1 when cublasLt does not take the product: nothing was done then. */
static int multiply(struct hv_dev *d, const struct product *p)
{
    struct cuda_gemm *g = cuda_of(d)->gemm;
    const int64_t space = workspace(d);
    const int64_t ld[6] = {p->ldw, p->ldx, p->ldy, p->batch > 1 ? p->step_w : 0, p->batch > 1 ? p->step_y : 0,
                           p->batch > 1 ? p->step_bias : 0};
    const float one = 1, zero = 0;
    const struct product usual = plainest(*p);
    struct description t;
    cublasLtMatmulHeuristicResult_t result;
    struct key key;

    memset(&key, 0, sizeof key);
    key.rows = p->rows;
    key.cols = p->cols;
    key.depth = p->depth;
    key.batch = p->batch;
    key.workspace = space;
    key.type = p->type;
    key.bias_type = p->bias_type;
    key.epilogue = p->epilogue;
    key.scaled = p->scaled;
    key.wide = p->wide;
    describe(&t, p);
    struct cuda_choice *c = choose(g, &key, &usual);
    if (!c || !c->found)
        return 1;
    if (memcmp(c->ld, ld, sizeof ld)) {
        if (cublasLtMatmulAlgoCheck(g->lt, &t.op, &t.w, &t.x, &t.y, &t.y, &c->algo, &result) != CUBLAS_STATUS_SUCCESS ||
            (int64_t)result.workspaceSize > space) {
            memcpy(key.ld, ld, sizeof ld);
            c = choose(g, &key, p);
            if (!c || !c->found)
                return 1;
        }
        memcpy(c->ld, ld, sizeof ld);
    }
    const cublasStatus_t rc = cublasLtMatmul(g->lt, &t.op, &one, p->w, &t.w, p->x, &t.x, &zero, p->y, &t.y, p->y, &t.y,
                                             &c->algo, d->scratch.data, (size_t)space, cuda_stream(d));
    if (rc != CUBLAS_STATUS_SUCCESS)
        hv_dev_fault(d, HV_EDEVICE, "cuda: linear: cublasLt: %s", cublasLtGetStatusString(rc));
    return 0;
}

/* ---- which kernel ---- */

/* The step between n pointers that are equally spaced, in bytes; 0 if they are not, or overlap or go backwards. */
static int64_t spacing(int n, const hv_tensor *t)
{
    const int64_t step = n > 1 ? (const char *)t[1].data - (const char *)t[0].data : 0;

    for (int i = 2; i < n; i++)
        if ((const char *)t[i].data - (const char *)t[i - 1].data != step)
            return 0;
    return step > 0 ? step : 0;
}

/* What the epilogue takes of bias and act, and what it leaves. RELU is left: of the library's it is not known that NaN
 * stays; and gelu of f32, where the library's shows (2.5e-6). */
static int epilogue(hv_tensor bias, int type, enum hv_act act, hv_tensor *bias_after, enum hv_act *act_after)
{
    const hv_tensor none = {};
    const int has = bias.dtype != HV_NONE, takes = has && (int)bias.dtype == type && ((uintptr_t)bias.data & 15) == 0;

    *bias_after = has && !takes ? bias : none;
    *act_after = (has && !takes) || act != HV_ACT_GELU_TANH || type == HV_F32 ? act : HV_ACT_NONE;
    if (act == HV_ACT_GELU_TANH && *act_after == HV_ACT_NONE)
        return takes ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return takes ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static int aligned(hv_tensor t)
{
    return cuda_aligned(t.data, cuda_step(&t), hv_dtype_size(t.dtype));
}

static int64_t ld(hv_tensor t) { return cuda_step(&t); }

static int lt_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w,
                      const hv_tensor *bias, enum hv_act act)
{
    const int64_t step_y = spacing(n, y), step_w = spacing(n, w), step_bias = spacing(n, bias);
    const int64_t size = (int64_t)hv_dtype_size(x.dtype);
    const int has = bias[0].dtype != HV_NONE;
    struct product p = {};
    hv_tensor bias_after;
    enum hv_act act_after;

    if (w[0].dtype != x.dtype || !aligned(x))
        return 1;
    for (int i = 0; i < n; i++)
        if (!aligned(y[i]) || !aligned(w[i]) || ld(y[i]) != ld(y[0]) || ld(w[i]) != ld(w[0]))
            return 1;
    if (n > 1 && (!step_y || !step_w || (has && (!step_bias || (step_bias & 15)))))
        return 1;
    p.rows = x.shape[0];
    p.cols = w[0].shape[0];
    p.depth = x.shape[1];
    p.batch = n;
    p.ldw = ld(w[0]);
    p.ldx = ld(x);
    p.ldy = ld(y[0]);
    p.step_w = step_w / size;
    p.step_y = step_y / size;
    p.type = x.dtype;
    p.epilogue = epilogue(bias[0], x.dtype, act, &bias_after, &act_after);
    if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) {
        p.bias = bias[0].data;
        p.bias_type = bias[0].dtype;
        p.step_bias = step_bias / size;
    }
    p.w = w[0].data;
    p.x = x.data;
    p.y = y[0].data;
    if (multiply(d, &p))
        return 1;
    const int after = bias_after.dtype != HV_NONE || act_after != HV_ACT_NONE;
    for (int i = 0; after && i < n; i++)
        cuda_linear_finish(d, y[i], NULL, NULL, bias_after.dtype != HV_NONE ? bias[i] : bias_after, act_after);
    return 0;
}

int cuda_linear_wide(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w)
{
    struct product p = {};

    if (w.dtype != x.dtype || y.dtype != HV_F32 || !aligned(x) || !aligned(w) || !aligned(y))
        return 1;
    p.rows = x.shape[0];
    p.cols = w.shape[0];
    p.depth = x.shape[1];
    p.batch = 1;
    p.wide = 1;
    p.ldw = ld(w);
    p.ldx = ld(x);
    p.ldy = ld(y);
    p.type = x.dtype;
    p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    p.w = w.data;
    p.x = x.data;
    p.y = y.data;
    return multiply(d, &p);
}

/* One product of e4m3: with the scales, bias and gelu in the epilogue; or with the scales alone; or with nothing. */
static int fp8_product(struct hv_dev *d, hv_tensor y, struct product p, hv_tensor bias, enum hv_act act)
{
    const hv_tensor none = {};
    hv_tensor bias_after;
    enum hv_act act_after;

    if (cuda_of(d)->arch >= 90 && ((uintptr_t)p.scale_w & 15) == 0) {
        p.scaled = 1;
        p.epilogue = epilogue(bias, HV_BF16, act, &bias_after, &act_after);
        p.bias = bias.data;
        p.bias_type = p.epilogue & CUBLASLT_EPILOGUE_BIAS ? bias.dtype : HV_NONE;
        if (multiply(d, &p)) {
            p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
            p.bias_type = HV_NONE;
            bias_after = bias;
            act_after = act;
            p.scaled = !multiply(d, &p);
        }
        if (p.scaled) {
            if (bias_after.dtype != HV_NONE || act_after != HV_ACT_NONE)
                cuda_linear_finish(d, y, NULL, NULL, bias_after, act_after);
            return 0;
        }
    }
    p.scaled = 0;
    p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    p.bias_type = HV_NONE;
    if (multiply(d, &p))
        return 1;
    cuda_linear_finish(d, y, p.scale_x, p.scale_w, bias.dtype != HV_NONE ? bias : none, act);
    return 0;
}

static int fp8_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w,
                       const hv_tensor *bias, enum hv_act act)
{
    const int64_t R = x.shape[0], N = w[0].shape[0], K = x.shape[1];
    const size_t need = hv_linear_fp8_scratch(R, K), have = d->scratch.data ? hv_nbytes(d->scratch) : 0;
    struct product p = {};

    if (!d->fp8 || w[0].dtype != HV_F8_E4M3 || cuda_of(d)->arch < 89 || x.dtype != HV_BF16 || K % 16 || N % 16 ||
        !aligned(x))
        return 1;
    for (int i = 0; i < n; i++)
        if (!aligned(y[i]) || !aligned(w[i]))
            return 1;
    if (have < HV_LINEAR_SCRATCH + need) {
        hv_dev_fault(d, HV_EDEVICE, "linear: fp8 of %lld rows of %lld takes %zu bytes of scratch, there are %zu",
                     (long long)R, (long long)K, HV_LINEAR_SCRATCH + need, have);
        return 0;
    }
    p.rows = R;
    p.cols = N;
    p.depth = K;
    p.batch = 1;
    p.type = HV_F8_E4M3;
    p.x = (char *)d->scratch.data + HV_LINEAR_SCRATCH;
    p.scale_x = (const float *)((const char *)p.x + up(R * K, 256));
    p.ldx = K;
    cuda_quantize_rows(d, (uint8_t *)p.x, (float *)p.scale_x, x);
    for (int i = 0; i < n; i++) {
        p.w = w[i].data;
        p.scale_w = w[i].scale;
        p.ldw = ld(w[i]);
        p.y = y[i].data;
        p.ldy = ld(y[i]);
        if (fp8_product(d, y[i], p, bias[i], act)) {        /* the first one decides: shapes are equal */
            if (cuda_linear_fused(d, y[i], x, w[i], bias[i], act))
                cuda_linear_plain(d, y[i], x, w[i], bias[i], act);
        }
    }
    return 0;
}

void cuda_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                  enum hv_act act)
{
    if (!hv_count(y[0]))
        return;
    if (!fp8_linears(d, n, y, x, w, bias, act) || !cuda_linears_fused(d, n, y, x, w, bias, act) ||
        !lt_linears(d, n, y, x, w, bias, act))
        return;
    for (int i = 0; i < n; i++)
        if (n > 1)
            cuda_linears(d, 1, y + i, x, w + i, bias + i, act);
        else
            cuda_linear_plain(d, y[i], x, w[i], bias[i], act);
}

void cuda_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act)
{
    cuda_linears(d, 1, &y, x, &w, &bias, act);
}
