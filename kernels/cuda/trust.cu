/* trust.cu - what a kernel that has to agree with a plainer one before its first use is tried with: operands at random in memory that
 * is lent, and the largest difference of two results. For small problems, once in a process: it waits for the device. */
#include "kernels/cuda/cuda.cuh"

#include <math.h>
#include <string.h>

/* Reproducible values of -scale..scale. */
template <typename T> __global__ static void __launch_bounds__(256) noise_kernel(T *p, int n, float scale)
{
    const int i = blockIdx.x * 256 + threadIdx.x;
    uint32_t k = (uint32_t)i * 2654435761u + 12345u;

    k = (k ^ k >> 15) * 2246822519u;
    k ^= k >> 13;
    if (i < n)
        p[i] = from_float<T>(((float)(k >> 8) * 0x1p-23f - 1) * scale);
}

template <typename T> __global__ static void __launch_bounds__(256) differ_kernel(int *worst, const T *a, const T *b, int n)
{
    for (int i = threadIdx.x; i < n; i += 256) {
        const float e = fabsf(to_float(a[i]) - to_float(b[i]));
        atomicMax(worst, e == e ? __float_as_int(e) : INT32_MAX);
    }
}

hv_tensor cuda_piece(char **at, hv_dtype t, int ndim, const int64_t *shape)
{
    hv_tensor v = hv_view(*at, t, ndim, shape);

    v.dev = HV_CUDA;
    *at += (hv_nbytes(v) + 1023) / 1024 * 1024;
    return v;
}

void cuda_noise(struct hv_dev *d, hv_tensor v, float scale)
{
    const int n = (int)hv_count(v);

    CUDA_FOR_TYPE(v.dtype, T, (noise_kernel<T><<<(n + 255) / 256, 256, 0, cuda_stream(d)>>>((T *)v.data, n, scale)))
}

float cuda_difference(struct hv_dev *d, hv_tensor a, hv_tensor b, void *room)
{
    const int n = (int)hv_count(a);
    int worst = 0;
    float e;

    cudaMemsetAsync(room, 0, sizeof worst, cuda_stream(d));
    CUDA_FOR_TYPE(a.dtype, T, (differ_kernel<T><<<1, 256, 0, cuda_stream(d)>>>((int *)room, (const T *)a.data, (const T *)b.data, n)))
    cudaMemcpyAsync(&worst, room, sizeof worst, cudaMemcpyDeviceToHost, cuda_stream(d));
    if (cuda_failed(d, cudaStreamSynchronize(cuda_stream(d)), "trying a kernel"))
        return INFINITY;
    memcpy(&e, &worst, sizeof e);
    return e;
}
