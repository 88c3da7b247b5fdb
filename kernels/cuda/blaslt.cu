/* blaslt.cu - cuBLASLt, found at run time.
 *
 * The library maps half a GB: programs that compute on the CPU must not carry it, start slower for it, or fail under a memory limit
 * because of it. So its functions are defined here, under their own names, and pass on to the library once cuda_blaslt_open has
 * found it; gemm.cu is written as if it were linked. Entry points are the same for the whole process and are set once. */
#include "kernels/cuda/cuda.cuh"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

/* Every function that gemm.cu calls: name, parameters, arguments. Those that end in _internal stand behind inline ones. */
#define EACH_FUNCTION(F)                                                                                               \
    F(cublasLtCreate, (cublasLtHandle_t *h), (h))                                                                      \
    F(cublasLtDestroy, (cublasLtHandle_t h), (h))                                                                      \
    F(cublasLtMatmulDescInit_internal, (cublasLtMatmulDesc_t d, size_t n, cublasComputeType_t c, cudaDataType_t s), (d, n, c, s)) \
    F(cublasLtMatmulDescSetAttribute, (cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, const void *v, size_t n), (d, a, v, n)) \
    F(cublasLtMatrixLayoutInit_internal,                                                                               \
      (cublasLtMatrixLayout_t l, size_t n, cudaDataType t, uint64_t r, uint64_t c, int64_t ld), (l, n, t, r, c, ld))   \
    F(cublasLtMatrixLayoutSetAttribute, (cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t a, const void *v, size_t n), (l, a, v, n)) \
    F(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t p, size_t n), (p, n))                         \
    F(cublasLtMatmulPreferenceSetAttribute,                                                                            \
      (cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, const void *v, size_t n), (p, a, v, n))   \
    F(cublasLtMatmulAlgoGetHeuristic,                                                                                  \
      (cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, \
       cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t p, int most, cublasLtMatmulHeuristicResult_t r[], int *n), \
      (h, d, a, b, c, y, p, most, r, n))                                                                               \
    F(cublasLtMatmulAlgoCheck,                                                                                         \
      (cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, \
       cublasLtMatrixLayout_t y, const cublasLtMatmulAlgo_t *g, cublasLtMatmulHeuristicResult_t *r),                   \
      (h, d, a, b, c, y, g, r))                                                                                        \
    F(cublasLtMatmul,                                                                                                  \
      (cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t la, const void *b, \
       cublasLtMatrixLayout_t lb, const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *y, cublasLtMatrixLayout_t ly, \
       const cublasLtMatmulAlgo_t *g, void *space, size_t n, cudaStream_t s),                                          \
      (h, d, alpha, a, la, b, lb, beta, c, lc, y, ly, g, space, n, s))

static struct {
    char           missing[300];        /* "" when all is there */
#define ENTRY(name, params, args) cublasStatus_t (*name) params;
    EACH_FUNCTION(ENTRY)
#undef ENTRY
    const char *(*status)(cublasStatus_t);
} lib;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *find(void *so, const char *name)
{
    void *p = dlsym(so, name);

    if (!p && !lib.missing[0])
        snprintf(lib.missing, sizeof lib.missing, "%s is not in the library", name);
    return p;
}

static void load()
{
    void *so = dlopen("libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), RTLD_NOW | RTLD_LOCAL);

    if (!so) {
        snprintf(lib.missing, sizeof lib.missing, "%.250s", dlerror());
        return;
    }
#define FIND(name, params, args) *(void **)&lib.name = find(so, #name);
    EACH_FUNCTION(FIND)
#undef FIND
    *(void **)&lib.status = dlsym(so, "cublasLtGetStatusString");
}

int cuda_blaslt_open(struct hv_err *e)
{
    pthread_once(&once, load);
    return lib.missing[0] ? hv_fail(e, HV_EDEVICE, "cuda: cuBLASLt: %s", lib.missing) : 0;
}

#define DEFINE(name, params, args)                                                                                     \
    extern "C" cublasStatus_t name params                                                                              \
    {                                                                                                                  \
        return lib.name ? lib.name args : CUBLAS_STATUS_NOT_INITIALIZED;                                               \
    }
EACH_FUNCTION(DEFINE)

extern "C" const char *cublasLtGetStatusString(cublasStatus_t s)
{
    return lib.status ? lib.status(s) : "cuBLASLt is not loaded";
}
