/* cuda.cuh - what the files of the CUDA backend share.
 *
 * Activations are bf16 in production; f32 and f16 serve tests and the VAE. Arithmetic is f32 inside, rounded when stored. All
 * kernels run in the compute lane of the device; nothing allocates, and nothing waits for the device but sync, download into
 * pageable memory, and events. A result never depends on the launch shape, on timing or on where a buffer lies. */
#ifndef HV_CUDA_CUH
#define HV_CUDA_CUH

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "ops/backend.h"

struct cuda_gemm;                       /* gemm.cu: cublasLt handle, algorithms chosen so far */
struct cuda_cudnn;                      /* attention_cudnn.cu: library, plans built so far; NULL: not found */

struct cuda {
    int                index, arch, units;
    cudaStream_t       lane[HV_LANES];
    uint64_t           context;         /* bytes that opening took */
    struct cuda_gemm  *gemm;
    struct cuda_cudnn *cudnn;
};

static inline struct cuda *cuda_of(const struct hv_dev *d) { return (struct cuda *)d->impl; }
static inline cudaStream_t cuda_stream(const struct hv_dev *d) { return cuda_of(d)->lane[HV_LANE_COMPUTE]; }

/* Keeps a CUDA error, with the operation's name, as the device's fault; 1 if there was one. */
int cuda_failed(struct hv_dev *d, cudaError_t rc, const char *op);

/* After a launch. */
#define CUDA_LAUNCHED(d, op) cuda_failed(d, cudaGetLastError(), op)

/* Elements of the dimensions before the last; width of the last. */
static inline int64_t cuda_rows(const hv_tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i + 1 < t->ndim; i++)
        n *= t->shape[i];
    return n;
}

static inline int64_t cuda_width(const hv_tensor *t) { return t->ndim ? t->shape[t->ndim - 1] : 1; }
static inline int64_t cuda_ld(const hv_tensor *t) { return t->ndim > 1 ? t->stride[t->ndim - 2] : 0; }    /* of a matrix */

/* ---- values ---- */

__device__ static inline float to_float(float x) { return x; }
__device__ static inline float to_float(__half x) { return __half2float(x); }
__device__ static inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

/* Runs BODY with T as the type of an activation dtype. */
#define CUDA_FOR_TYPE(dtype, T, ...)                                                                                   \
    switch (dtype) {                                                                                                   \
    case HV_F32: { typedef float T; __VA_ARGS__; } break;                                                              \
    case HV_F16: { typedef __half T; __VA_ARGS__; } break;                                                             \
    default:     { typedef __nv_bfloat16 T; __VA_ARGS__; } break;                                                      \
    }

/* A vector that may be absent (p NULL), f32 or bf16. */
struct cuda_vec {
    const void *p;
    int         bf16;
    __device__ float at(int64_t i) const
    {
        return bf16 ? __bfloat162float(((const __nv_bfloat16 *)p)[i]) : ((const float *)p)[i];
    }
};

static inline struct cuda_vec cuda_vec_of(hv_tensor t)
{
    struct cuda_vec v = {t.dtype == HV_NONE ? NULL : t.data, t.dtype == HV_BF16};
    return v;
}

__device__ static inline float cuda_act(float x, enum hv_act act)
{
    switch (act) {
    case HV_ACT_RELU:       return x > 0 || x != x ? x : 0;
    case HV_ACT_SILU:       return x / (1 + expf(-x));
    case HV_ACT_GELU_TANH:  return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case HV_ACT_GELU_ERF:   return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    case HV_ACT_QUICK_GELU: return x / (1 + expf(-1.702f * x));
    default:                return x;
    }
}

/* ---- parts of the backend ---- */

int  cuda_blaslt_open(struct hv_err *e);                        /* blaslt.cu: finds the library, once a process */
int  cuda_gemm_open(struct hv_dev *d, struct hv_err *e);        /* gemm.cu */
void cuda_gemm_close(struct hv_dev *d);
void cuda_cudnn_open(struct hv_dev *d);                         /* attention_cudnn.cu: finds the library, or not */
void cuda_cudnn_close(struct hv_dev *d);
int  cuda_cudnn_version(const struct hv_dev *d);                /* 0: not found */

/* Attention without masks; q, k, v, o bf16, head width 128, heads == kv_heads for all but math and wide. Return 0, or 1 when the back end
 * does not take the case: nothing was done then. */
int cuda_attention_math(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
int cuda_attention_flash(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
int cuda_attention_sage(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a, int fp8);
int cuda_attention_wide(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
int cuda_attention_cudnn(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);

/* y = x w^T, y f32 and the others of 16 bits, on 16 bytes: gemm.cu. 0, or 1 when it does not take the case. */
int cuda_linear_wide(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w);

/* y = x w^T with w I8 or F8_E4M3 as stored, widened in registers: gemm_fused.cu. 0, or 1 when it does not take the case. */
int cuda_linear_fused(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);

/* trust.cu. piece: a contiguous tensor at *at, which moves on; noise: values of -scale..scale; difference: the largest, NaN and
 * failures as infinity, with 4 bytes of room. */
hv_tensor cuda_piece(char **at, hv_dtype t, int ndim, const int64_t *shape);
void  cuda_noise(struct hv_dev *d, hv_tensor v, float scale);
float cuda_difference(struct hv_dev *d, hv_tensor a, hv_tensor b, void *room);

/* ---- the table's entries ---- */

void cuda_upload(struct hv_dev *d, hv_tensor dst, hv_tensor src);
void cuda_download(struct hv_dev *d, hv_tensor dst, hv_tensor src);
void cuda_copy(struct hv_dev *d, hv_tensor y, hv_tensor x);
void cuda_fill(struct hv_dev *d, hv_tensor y, float value);
void cuda_gather_rows(struct hv_dev *d, hv_tensor y, hv_tensor table, const int32_t *ids);
void cuda_dequantize(struct hv_dev *d, hv_tensor y, hv_tensor w);
void cuda_add(struct hv_dev *d, hv_tensor y, hv_tensor a, hv_tensor b);
void cuda_activation(struct hv_dev *d, hv_tensor y, hv_tensor x, enum hv_act act);
void cuda_swiglu(struct hv_dev *d, hv_tensor y, hv_tensor gate, hv_tensor up);
void cuda_linear(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);
void cuda_linears(struct hv_dev *d, int n, const hv_tensor *y, hv_tensor x, const hv_tensor *w, const hv_tensor *bias,
                  enum hv_act act);
void cuda_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
void cuda_layer_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, float eps);
void cuda_rms_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor weight, float eps);
void cuda_row_stats(struct hv_dev *d, hv_tensor stat, hv_tensor x, float eps);
void cuda_norm_modulate(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale);
void cuda_qk_norm_rope(struct hv_dev *d, hv_tensor x, int heads, hv_tensor weight, float eps, const struct hv_rope *rope);
void cuda_rope_half(struct hv_dev *d, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin);
void cuda_gated_add(struct hv_dev *d, hv_tensor x, hv_tensor gate, hv_tensor y);
void cuda_masked_add(struct hv_dev *d, hv_tensor x, hv_tensor mask, hv_tensor y);
void cuda_conv(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p);
void cuda_group_sums(struct hv_dev *d, hv_tensor sums, hv_tensor x);
void cuda_group_norm(struct hv_dev *d, hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight,
                     hv_tensor bias, float eps, enum hv_act act);
void cuda_max_pool(struct hv_dev *d, hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode);
void cuda_upsample2(struct hv_dev *d, hv_tensor y, hv_tensor x);
void cuda_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);
void cuda_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3]);

#endif
