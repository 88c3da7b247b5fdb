/* attention_wide.cu - o = softmax(scale q k^T) v of one head wider than 128 columns, as matrix products
 *
 * q, o [Lq, D], k, v [Lk, D] bf16 or f16 on 16 bytes, D and Lk multiples of 8; o may be q. Queries go in blocks that see the same
 * keys: the first n, all of them or those of their frame and the frames before (hv_attn.step). A block's scores are one product,
 * f32; a pass over each row makes them weights, of 16 bits, whose sum is one before rounding; a second product adds up v, which lies
 * turned round in the scratch. So a mask exists nowhere, and what is not seen is not computed.
 * Scratch: hv_attention_scratch, 71 + 36 + 18 MiB for 17,408 keys of 512 columns. Bound by the tensor cores and by the scores' way
 * through the cache. Error: weights and v in 16 bits, sums in f32. */
#include "kernels/cuda/attention.cuh"

#include "kernels/cuda/values.cuh"

#define THREADS 256

/* Over the block, the same in every thread. */
__device__ static inline float block_all(float v, int largest)
{
    __shared__ float part[THREADS / 32];

#pragma unroll
    for (int i = 16; i; i /= 2) {
        const float u = __shfl_xor_sync(~0u, v, i);
        v = largest ? fmaxf(v, u) : v + u;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
#pragma unroll
    for (int i = 1; i < THREADS / 32; i++)
        v = largest ? fmaxf(v, part[i]) : v + part[i];
    return v;
}

/* A row a block: p = softmax(scale s). NaN in a score is NaN in its row. */
template <typename T>
__global__ static void __launch_bounds__(THREADS) weights_kernel(T *p, const float *s, int64_t ld, int n, float scale)
{
    const float4 *row = (const float4 *)(s + blockIdx.x * ld);
    float top = -INFINITY, sum = 0;

    for (int i = threadIdx.x; i < n / 4; i += THREADS) {
        const float4 v = row[i];
        top = fmaxf(top, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
    top = block_all(top, 1);
    for (int i = threadIdx.x; i < n / 4; i += THREADS) {
        const float4 v = row[i];
        sum += exp2f((v.x - top) * scale) + exp2f((v.y - top) * scale) + exp2f((v.z - top) * scale) + exp2f((v.w - top) * scale);
    }
    const float by = 1 / block_all(sum, 0);
    for (int i = threadIdx.x; i < n / CHUNK; i += THREADS) {
        const float4 a = row[2 * i], b = row[2 * i + 1];
        const float from[CHUNK] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        float v[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++)
            v[j] = exp2f((from[j] - top) * scale) * by;
        store8(p + blockIdx.x * ld + i * CHUNK, CHUNK, v);
    }
}

static hv_tensor matrix(void *p, hv_dtype t, int64_t rows, int64_t cols, int64_t ld)
{
    const int64_t shape[2] = {rows, cols};
    hv_tensor m = hv_view(p, t, 2, shape);

    m.stride[0] = ld;
    m.dev = HV_CUDA;
    return m;
}

static int fits(hv_tensor t)
{
    return ((uintptr_t)t.data & 15) == 0 && t.stride[0] % 8 == 0;
}

/* hv_attention_scratch without room for a trial. */
static size_t bytes_of(int64_t rows, int64_t keys, int64_t width)
{
    return hv_attention_scratch(HV_ATT_AUTO, rows, keys, 1, width) - HV_ATT_TRIAL;
}

static int attend(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const int64_t D = q.shape[1], Lq = q.shape[0], Lk = k.shape[0], every = a->step && a->step < HV_ATT_ROWS ? a->step : HV_ATT_ROWS;
    const size_t need = bytes_of(Lq, Lk, D), rows = (size_t)(Lq < HV_ATT_ROWS ? Lq : HV_ATT_ROWS);
    char *at = (char *)a->scratch.data;

    if (a->heads != 1 || D <= 128 || D % 8 || Lk % 8 || q.dtype == HV_F32 || a->key_mask.dtype != HV_NONE || (a->step && a->step < 64) ||
        a->step % 8 || a->offset % 8 || a->scratch.dtype == HV_NONE || hv_nbytes(a->scratch) < need || ((uintptr_t)at & 15) ||
        !fits(q) || !fits(k) || !fits(v) || !fits(o))
        return 1;
    float *scores = (float *)at;
    char *weights = at + (rows * (size_t)Lk * 4 + 255) / 256 * 256;
    char *turned = weights + (rows * (size_t)Lk * 2 + 255) / 256 * 256;
    const hv_tensor vt = matrix(turned, v.dtype, D, Lk, Lk);
    hv_tensor from = v;
    from.shape[0] = D, from.shape[1] = Lk, from.stride[0] = 1, from.stride[1] = v.stride[0];
    cuda_copy(d, vt, from);
    for (int64_t i = 0; i < Lq;) {
        int64_t n = Lk, end = i + every;
        if (a->step) {
            n = (i / a->step + 1) * a->step + a->offset;
            n = n < Lk ? n : Lk;
            end = (i / a->step + 1) * a->step;
            end = end < i + HV_ATT_ROWS ? end : i + HV_ATT_ROWS;
        }
        end = end < Lq ? end : Lq;
        const hv_tensor qb = hv_rows(q, i, end - i), s = matrix(scores, HV_F32, end - i, n, Lk);
        const hv_tensor p = matrix(weights, q.dtype, end - i, n, Lk), none = {};
        hv_tensor seen = vt;
        seen.shape[1] = n;
        if (cuda_linear_wide(d, s, qb, hv_rows(k, 0, n))) {
            if (!i)
                return 1;
            hv_dev_fault(d, HV_EDEVICE, "cuda: attention: no product of %lld rows", (long long)(end - i));
            return 0;
        }
        const float scale = (float)(a->scale * ATT_LOG2E);
        if (q.dtype == HV_F16)
            weights_kernel<<<(unsigned)(end - i), THREADS, 0, cuda_stream(d)>>>((__half *)weights, scores, Lk, (int)n, scale);
        else
            weights_kernel<<<(unsigned)(end - i), THREADS, 0, cuda_stream(d)>>>((__nv_bfloat16 *)weights, scores, Lk, (int)n, scale);
        CUDA_LAUNCHED(d, "attention");
        cuda_linear(d, hv_rows(o, i, end - i), p, seen, none, HV_ACT_NONE);
        i = end;
    }
    return 0;
}

/* Before its first use in a process it has to agree with attention_math.cu on three frames of 64 tokens; 1: it does. */
static int is_trusted(struct hv_dev *d, hv_dtype type, const struct hv_attn *given)
{
    static int known[2];
    const int64_t shape[2] = {192, 512}, bytes = (int64_t)bytes_of(192, 192, 512);
    int *to = &known[type == HV_F16];
    struct hv_attn a = *given;
    char *at = (char *)given->scratch.data;

    if (*to || given->scratch.dtype == HV_NONE || hv_nbytes(given->scratch) < HV_ATT_TRIAL)
        return *to > 0;
    *to = -1;
    a.step = 64, a.offset = 0, a.scale = 0.05f;
    a.key_mask.dtype = HV_NONE;         /* one call with a mask does not decide for those without */
    a.scratch = cuda_piece(&at, HV_BYTES, 1, &bytes);
    const hv_tensor q = cuda_piece(&at, type, 2, shape), k = cuda_piece(&at, type, 2, shape), v = cuda_piece(&at, type, 2, shape);
    const hv_tensor x = cuda_piece(&at, type, 2, shape), y = cuda_piece(&at, type, 2, shape);
    cuda_noise(d, q, 1.5f);
    cuda_noise(d, k, 2);
    cuda_noise(d, v, 1);
    cuda_noise(d, y, 8);
    if (cuda_attention_math(d, x, q, k, v, &a) || attend(d, y, q, k, v, &a))
        return 0;
    *to = cuda_difference(d, x, y, at) <= (type == HV_F16 ? 1e-3f : 8e-3f) ? 1 : -1;    /* of results of about 0.1 to 1 */
    return *to > 0;
}

int cuda_attention_wide(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    if (a->heads != 1 || q.shape[1] <= 128 || q.dtype == HV_F32 || !is_trusted(d, q.dtype, a))
        return 1;
    return attend(d, o, q, k, v, a);
}
