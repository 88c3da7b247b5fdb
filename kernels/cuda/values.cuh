/* values.cuh - elements of any dtype as f32, and chunks of eight elements of a row.
 *
 * A chunk starts at a multiple of eight columns. It moves as 16-byte words where its address allows that and the row
 * has eight columns left, else element by element: the values are the same, so that results do not depend on where a
 * buffer lies. */
#ifndef HV_CUDA_VALUES_CUH
#define HV_CUDA_VALUES_CUH

#include "kernels/cuda/cuda.cuh"

#define CHUNK 8

/* ---- one element of any dtype: the rules of core/dtype.h ---- */

__device__ static inline float load_any(const void *p, int dtype)
{
    switch (dtype) {
    case HV_F32:     return *(const float *)p;
    case HV_BF16:    return __bfloat162float(*(const __nv_bfloat16 *)p);
    case HV_F16:     return __half2float(*(const __half *)p);
    case HV_F8_E4M3: return __half2float(__half(__nv_cvt_fp8_to_halfraw(*(const __nv_fp8_storage_t *)p, __NV_E4M3)));
    case HV_F8_E5M2: return __half2float(__half(__nv_cvt_fp8_to_halfraw(*(const __nv_fp8_storage_t *)p, __NV_E5M2)));
    case HV_BOOL:    return (float)(*(const uint8_t *)p != 0);
    case HV_U8:      return (float)*(const uint8_t *)p;
    case HV_I8:      return (float)*(const int8_t *)p;
    case HV_U16:     return (float)*(const uint16_t *)p;
    case HV_I16:     return (float)*(const int16_t *)p;
    case HV_U32:     return (float)*(const uint32_t *)p;
    case HV_I32:     return (float)*(const int32_t *)p;
    case HV_U64:     return (float)*(const uint64_t *)p;
    case HV_I64:     return (float)*(const int64_t *)p;
    case HV_F64:     return (float)*(const double *)p;
    default:         return 0;
    }
}

/* To the nearest integer, ties to even, within lo..hi; NaN gives 0. */
__device__ static inline float whole(float v, float lo, float hi)
{
    return v != v ? 0 : fminf(fmaxf(rintf(v), lo), hi);
}

__device__ static inline void store_any(void *p, int dtype, float v)
{
    switch (dtype) {
    case HV_F32:     *(float *)p = v; break;
    case HV_BF16:    *(__nv_bfloat16 *)p = __float2bfloat16_rn(v); break;
    case HV_F16:     *(__half *)p = __float2half_rn(v); break;
    case HV_F8_E4M3: *(__nv_fp8_storage_t *)p = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3); break;
    case HV_F8_E5M2: *(__nv_fp8_storage_t *)p = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E5M2); break;
    case HV_BOOL:    *(uint8_t *)p = v != 0; break;
    case HV_U8:      *(uint8_t *)p = (uint8_t)whole(v, 0, 255); break;
    case HV_I8:      *(int8_t *)p = (int8_t)whole(v, -128, 127); break;
    case HV_U16:     *(uint16_t *)p = (uint16_t)whole(v, 0, 65535); break;
    case HV_I16:     *(int16_t *)p = (int16_t)whole(v, -32768, 32767); break;
    case HV_U32:     *(uint32_t *)p = v != v ? 0 : __float2uint_rn(v); break;
    case HV_I32:     *(int32_t *)p = v != v ? 0 : __float2int_rn(v); break;
    case HV_U64:     *(uint64_t *)p = (uint64_t)whole(v, 0, 18446742974197923840.0f); break;
    case HV_I64:     *(int64_t *)p = (int64_t)whole(v, -9223372036854775808.0f, 9223371487098961920.0f); break;
    case HV_F64:     *(double *)p = (double)v; break;
    default:         break;
    }
}

/* ---- eight elements ---- */

/* As they lie in memory: two elements of 16 bits a word. */
template <typename T> struct chunk {
    uint32_t w[CHUNK * sizeof(T) / 4];
};

__device__ static inline int on_16_bytes(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

/* Columns of a chunk that starts at column c; 0 or less: none. */
__device__ static inline int columns(int64_t cols, int64_t c)
{
    return (int)(cols - c < CHUNK ? cols - c : CHUNK);
}

/* The n elements at p, up to eight; zeros behind them. */
template <typename T> __device__ static inline chunk<T> load_chunk(const T *p, int n)
{
    chunk<T> c;

    if (n >= CHUNK && on_16_bytes(p)) {
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++) {
            const uint4 q = ((const uint4 *)p)[i];
            c.w[4 * i] = q.x, c.w[4 * i + 1] = q.y, c.w[4 * i + 2] = q.z, c.w[4 * i + 3] = q.w;
        }
    } else if (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            c.w[i] = i < n ? ((const uint32_t *)p)[i] : 0;
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK / 2; i++) {
            const uint16_t *h = (const uint16_t *)p + 2 * i;
            c.w[i] = (2 * i < n ? h[0] : 0) | (2 * i + 1 < n ? (uint32_t)h[1] << 16 : 0);
        }
    }
    return c;
}

/* The same where it is known to be whole and on 16 bytes; zeros where it is not there. */
template <typename T> __device__ static inline chunk<T> load_whole(const T *p, int there)
{
    chunk<T> c;

#pragma unroll
    for (int i = 0; i < (int)sizeof(T) / 2; i++) {
        const uint4 q = there ? ((const uint4 *)p)[i] : make_uint4(0, 0, 0, 0);
        c.w[4 * i] = q.x, c.w[4 * i + 1] = q.y, c.w[4 * i + 2] = q.z, c.w[4 * i + 3] = q.w;
    }
    return c;
}

template <typename T> __device__ static inline void store_chunk(T *p, int n, const chunk<T> &c)
{
    if (n >= CHUNK && on_16_bytes(p)) {
#pragma unroll
        for (int i = 0; i < (int)sizeof(T) / 2; i++)
            ((uint4 *)p)[i] = make_uint4(c.w[4 * i], c.w[4 * i + 1], c.w[4 * i + 2], c.w[4 * i + 3]);
    } else if (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (i < n)
                ((uint32_t *)p)[i] = c.w[i];
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (i < n)
                ((uint16_t *)p)[i] = (uint16_t)(c.w[i / 2] >> 16 * (i & 1));
    }
}

__device__ static inline void widen(float v[CHUNK], const chunk<float> &c)
{
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        v[i] = __uint_as_float(c.w[i]);
}

__device__ static inline void widen(float v[CHUNK], const chunk<__half> &c)
{
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        v[i] = __half2float(__ushort_as_half((uint16_t)(c.w[i / 2] >> 16 * (i & 1))));
}

__device__ static inline void widen(float v[CHUNK], const chunk<__nv_bfloat16> &c)
{
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        v[i] = __uint_as_float(i & 1 ? c.w[i / 2] & 0xffff0000u : c.w[i / 2] << 16);
}

__device__ static inline void round_to(chunk<float> &c, const float v[CHUNK])
{
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        c.w[i] = __float_as_uint(v[i]);
}

__device__ static inline void round_to(chunk<__half> &c, const float v[CHUNK])
{
#pragma unroll
    for (int i = 0; i < CHUNK; i += 2) {
        const __half2 h = __floats2half2_rn(v[i], v[i + 1]);
        c.w[i / 2] = *(const uint32_t *)&h;
    }
}

__device__ static inline void round_to(chunk<__nv_bfloat16> &c, const float v[CHUNK])
{
#pragma unroll
    for (int i = 0; i < CHUNK; i += 2) {
        const __nv_bfloat162 h = __floats2bfloat162_rn(v[i], v[i + 1]);
        c.w[i / 2] = *(const uint32_t *)&h;
    }
}

template <typename T> __device__ static inline void load8(float v[CHUNK], const T *p, int n)
{
    widen(v, load_chunk(p, n));
}

template <typename T> __device__ static inline void store8(T *p, int n, const float v[CHUNK])
{
    chunk<T> c;

    round_to(c, v);
    store_chunk(p, n, c);
}

/* Elements at..at+n-1 of a vector; `absent` where there is none. */
__device__ static inline void vec8(float v[CHUNK], struct cuda_vec x, int64_t at, int n, float absent)
{
    if (!x.p) {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            v[i] = absent;
    } else if (x.bf16) {
        load8(v, (const __nv_bfloat16 *)x.p + at, n);
    } else {
        load8(v, (const float *)x.p + at, n);
    }
}

/* ---- activations ---- */

/* act(x) for a result of type T. Of 16 bits: within 1e-6 of |x|, with the hardware's exponential and quotient. */
template <typename T> __device__ static inline float act_as(float x, enum hv_act act)
{
    if (sizeof(T) > 2)
        return cuda_act(x, act);
    switch (act) {
    case HV_ACT_SILU:       return __fdividef(x, 1 + __expf(-x));
    case HV_ACT_QUICK_GELU: return __fdividef(x, 1 + __expf(-1.702f * x));
    case HV_ACT_GELU_TANH:  return __fdividef(x, 1 + __expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
    default:                return cuda_act(x, act);
    }
}

/* Of a chunk; one choice for all eight. */
template <typename T> __device__ static inline void act8(float v[CHUNK], enum hv_act act)
{
#define EACH(ACT)                                                                                                       \
    case ACT:                                                                                                           \
        _Pragma("unroll") for (int i = 0; i < CHUNK; i++) v[i] = act_as<T>(v[i], ACT);                                  \
        break
    switch (act) {
    EACH(HV_ACT_RELU);
    EACH(HV_ACT_SILU);
    EACH(HV_ACT_GELU_TANH);
    EACH(HV_ACT_GELU_ERF);
    EACH(HV_ACT_QUICK_GELU);
    default: break;
    }
#undef EACH
}

#endif
