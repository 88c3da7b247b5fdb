/* patch.cu - patchify and unpatchify: planes [C, T, H, W] to rows of patches [T/pt * H/ph * W/pw, C pt ph pw] and back
 *
 * Planes of any dtype and strides; rows bf16, f16 or f32, their own dtype, rows may be strided. A permutation, with a
 * rounding when dtypes differ. One thread an element, in the order of what is written.
 * Traffic: each side once; what is read is gathered from lines of W, which the caches keep. */
#include "kernels/cuda/values.cuh"

struct patches {
    char   *rows, *planes;
    int64_t ld, step[4];                /* elements: of rows; of the axes of planes */
    int64_t channels, frames, down, across;             /* patches an axis */
    int     pt, ph, pw, rtype, ptype, rsize, psize;
};

/* Row r and column c of the rows, to and from the planes. */
__device__ static inline void move(const struct patches &p, int64_t r, int64_t c, int gather)
{
    const int64_t j = r % p.across, i = r / p.across % p.down, t = r / p.across / p.down;
    const int e = (int)(c % p.pw), b = (int)(c / p.pw % p.ph), a = (int)(c / p.pw / p.ph % p.pt);
    const int64_t channel = c / p.pw / p.ph / p.pt;
    char *row = p.rows + (r * p.ld + c) * p.rsize;
    const int64_t frame = channel * p.step[0] + (t * p.pt + a) * p.step[1];
    char *px = p.planes + (frame + (i * p.ph + b) * p.step[2] + (j * p.pw + e) * p.step[3]) * p.psize;

    if (gather)
        store_any(row, p.rtype, load_any(px, p.ptype));
    else
        store_any(px, p.ptype, load_any(row, p.rtype));
}

__global__ static void patchify_kernel(struct patches p, int64_t total)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, width = p.channels * p.pt * p.ph * p.pw;

    if (i < total)
        move(p, i / width, i % width, 1);
}

__global__ static void unpatchify_kernel(struct patches p, int64_t total)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t w = p.across * p.pw, h = p.down * p.ph, x = i % w, y = i / w % h, t = i / w / h % (p.frames * p.pt);
    const int64_t r = (t / p.pt * p.down + y / p.ph) * p.across + x / p.pw;
    const int64_t channel = i / w / h / (p.frames * p.pt);

    if (i < total)
        move(p, r, ((channel * p.pt + t % p.pt) * p.ph + y % p.ph) * p.pw + x % p.pw, 0);
}

static struct patches patches_of(hv_tensor rows, hv_tensor planes, const int patch[3])
{
    struct patches p = {};

    p.rows = (char *)rows.data;
    p.planes = (char *)planes.data;
    p.ld = cuda_ld(&rows);
    for (int a = 0; a < 4; a++)
        p.step[a] = planes.stride[a];
    p.channels = planes.shape[0];
    p.frames = planes.shape[1] / patch[0];
    p.down = planes.shape[2] / patch[1];
    p.across = planes.shape[3] / patch[2];
    p.pt = patch[0], p.ph = patch[1], p.pw = patch[2];
    p.rtype = rows.dtype, p.rsize = (int)hv_dtype_size(rows.dtype);
    p.ptype = planes.dtype, p.psize = (int)hv_dtype_size(planes.dtype);
    return p;
}

#define THREADS 256

static unsigned blocks(int64_t n)
{
    return (unsigned)((n + THREADS - 1) / THREADS);
}

void cuda_patchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    const int64_t n = hv_count(x);

    if (!n)
        return;
    patchify_kernel<<<blocks(n), THREADS, 0, cuda_stream(d)>>>(patches_of(y, x, patch), n);
    CUDA_LAUNCHED(d, "patchify");
}

void cuda_unpatchify(struct hv_dev *d, hv_tensor y, hv_tensor x, const int patch[3])
{
    const int64_t n = hv_count(y);

    if (!n)
        return;
    unpatchify_kernel<<<blocks(n), THREADS, 0, cuda_stream(d)>>>(patches_of(x, y, patch), n);
    CUDA_LAUNCHED(d, "unpatchify");
}
