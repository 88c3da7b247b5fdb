/* backend.cu - the GPU's table of operations, its memory, its lanes. */
#include "kernels/cuda/cuda.cuh"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuda_failed(struct hv_dev *d, cudaError_t rc, const char *op)
{
    if (rc == cudaSuccess)
        return 0;
    hv_dev_fault(d, rc == cudaErrorMemoryAllocation ? HV_ENOMEM : HV_EDEVICE, "cuda: %s: %s", op, cudaGetErrorString(rc));
    return 1;
}

/* ---- what the driver's monitor says ---- */

/* The few calls of libnvidia-ml that are used, by their documented signatures; the library comes with the driver. */
struct nvml_memory { unsigned long long total, free, used; };

struct nvml {
    void *lib;
    int (*init)(void), (*shutdown)(void);
    int (*by_bus)(const char *bus, void **device);
    int (*memory)(void *device, struct nvml_memory *m);
};

static int nvml_open(struct nvml *n)
{
    memset(n, 0, sizeof *n);
    if (!(n->lib = dlopen("libnvidia-ml.so.1", RTLD_NOW)))
        return 0;
    *(void **)&n->init = dlsym(n->lib, "nvmlInit_v2");
    *(void **)&n->shutdown = dlsym(n->lib, "nvmlShutdown");
    *(void **)&n->by_bus = dlsym(n->lib, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&n->memory = dlsym(n->lib, "nvmlDeviceGetMemoryInfo");
    if (n->init && n->shutdown && n->by_bus && n->memory && !n->init())
        return 1;
    dlclose(n->lib);
    return 0;
}

/* Bytes in use on the device of a bus address, 0 when nobody says. Makes no context. */
static uint64_t used_on(const char *bus)
{
    struct nvml n;
    struct nvml_memory m = {0, 0, 0};
    void *device;

    if (!nvml_open(&n))
        return 0;
    if (n.by_bus(bus, &device) || n.memory(device, &m))
        m.used = 0;
    n.shutdown();
    dlclose(n.lib);
    return m.used;
}

/* ---- open, close ---- */

static int no_device(struct hv_err *e, cudaError_t rc, int index, int count)
{
    int driver = 0, runtime = 0;

    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (!driver)
        return hv_fail(e, HV_EDEVICE, "cuda: no NVIDIA driver");
    if (rc == cudaErrorInsufficientDriver || driver / 1000 < runtime / 1000)
        return hv_fail(e, HV_EDEVICE, "cuda: the driver is for CUDA %d.%d, this build needs %d.%d", driver / 1000, driver % 1000 / 10,
                       runtime / 1000, runtime % 1000 / 10);
    if (rc == cudaSuccess && index >= count)
        return hv_fail(e, HV_EDEVICE, "cuda: no device %d, there are %d", index, count);
    return hv_fail(e, HV_EDEVICE, "cuda: %s", rc == cudaSuccess || rc == cudaErrorNoDevice ? "no device" : cudaGetErrorString(rc));
}

static void cuda_close(struct hv_dev *d)
{
    struct cuda *c = cuda_of(d);

    if (!c)
        return;
    cuda_cudnn_close(d);
    cuda_gemm_close(d);
    for (int i = 0; i < HV_LANES; i++)
        if (c->lane[i])
            cudaStreamDestroy(c->lane[i]);
    free(c);
    d->impl = NULL;
}

/* The bus address: CUDA_VISIBLE_DEVICES renumbers devices, and does not move them. Makes no context. */
static int cuda_identify(int index, char *buf, size_t n, struct hv_err *e)
{
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);

    if (rc == cudaSuccess && index < count)
        rc = cudaDeviceGetPCIBusId(buf, (int)n, index);
    return rc != cudaSuccess || index >= count ? no_device(e, rc, index, count) : 0;
}

/* A kernel of this build that the device can run: else every launch would fail with a riddle. */
__global__ static void probe_kernel() {}

static int cuda_open(struct hv_dev *d, int index, struct hv_err *e)
{
    struct cuda *c;
    struct cudaDeviceProp p;
    char bus[32] = "";
    size_t free_now = 0, total = 0;
    int count = 0;
    cudaError_t rc = cudaGetDeviceCount(&count);

    if (rc != cudaSuccess || index >= count)
        return no_device(e, rc, index, count);
    if ((rc = cudaGetDeviceProperties(&p, index)) != cudaSuccess || (rc = cudaDeviceGetPCIBusId(bus, sizeof bus, index)) != cudaSuccess)
        return no_device(e, rc, index, count);
    const uint64_t before = used_on(bus);
    if ((rc = cudaSetDevice(index)) != cudaSuccess || (rc = cudaMemGetInfo(&free_now, &total)) != cudaSuccess)
        return hv_fail(e, rc == cudaErrorMemoryAllocation ? HV_ENOMEM : HV_EDEVICE, "cuda: device %d: %s", index, cudaGetErrorString(rc));
    if (!(c = (struct cuda *)calloc(1, sizeof *c)))
        return hv_fail(e, HV_ENOMEM, "cuda: out of memory");
    d->impl = c;
    c->index = index;
    c->arch = 10 * p.major + p.minor;
    c->units = p.multiProcessorCount;
    for (int i = 0; i < HV_LANES && rc == cudaSuccess; i++)
        rc = cudaStreamCreateWithFlags(&c->lane[i], cudaStreamNonBlocking);
    if (rc == cudaSuccess) {
        probe_kernel<<<1, 1, 0, c->lane[0]>>>();
        rc = cudaGetLastError();
        if (rc == cudaSuccess)
            rc = cudaStreamSynchronize(c->lane[0]);
        if (rc == cudaErrorNoKernelImageForDevice || rc == cudaErrorInvalidDeviceFunction) {
            cuda_close(d);
            return hv_fail(e, HV_EDEVICE, "cuda: %s has compute capability %d.%d, this build has no kernels for it (make ARCH=native)",
                           p.name, p.major, p.minor);
        }
    }
    if (rc != cudaSuccess || cuda_gemm_open(d, e)) {
        cuda_close(d);
        return e->code ? e->code : hv_fail(e, HV_EDEVICE, "cuda: device %d: %s", index, cudaGetErrorString(rc));
    }
    cuda_cudnn_open(d);
    if (before && cudaMemGetInfo(&free_now, &total) == cudaSuccess) {
        const uint64_t after = used_on(bus);
        c->context = after > before ? after - before : 0;
    }
    return 0;
}

static int cuda_info(struct hv_dev *d, struct hv_dev_info *info)
{
    struct cuda *c = cuda_of(d);
    struct cudaDeviceProp p;
    size_t free_now = 0, total = 0;
    int lock = 0;

    if (cudaGetDeviceProperties(&p, c->index) != cudaSuccess || cudaMemGetInfo(&free_now, &total) != cudaSuccess)
        return 1;
    cudaDeviceGetAttribute(&lock, cudaDevAttrHostRegisterReadOnlySupported, c->index);
    snprintf(info->name, sizeof info->name, "%.95s", p.name);
    info->arch = c->arch;
    info->units = c->units;
    info->total = total;
    info->free = free_now;
    info->context = c->context;
    info->map_lock = lock;
    info->cudnn = cuda_cudnn_version(d);
    return 0;
}

/* ---- memory ---- */

static void *cuda_alloc(struct hv_dev *d, size_t bytes)
{
    void *p = NULL;

    (void)d;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError();             /* reported by the caller, with what it wanted */
        return NULL;
    }
    return p;
}

static void cuda_free(struct hv_dev *d, void *p)
{
    cudaStreamSynchronize(cuda_stream(d));
    cudaFree(p);
}

static void cuda_sync(struct hv_dev *d)
{
    for (int i = 0; i < HV_LANES; i++)
        cuda_failed(d, cudaStreamSynchronize(cuda_of(d)->lane[i]), "sync");
}

static void *cuda_pin(struct hv_dev *d, size_t bytes)
{
    void *p = NULL;

    cudaSetDevice(cuda_of(d)->index);
    if (cudaHostAlloc(&p, bytes, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    return p;
}

static void cuda_unpin(struct hv_dev *d, void *p)
{
    (void)d;
    cudaFreeHost(p);
}

static int cuda_lock(struct hv_dev *d, const void *p, size_t bytes)
{
    cudaSetDevice(cuda_of(d)->index);
    if (cudaHostRegister((void *)p, bytes, cudaHostRegisterReadOnly) == cudaSuccess)
        return 0;
    cudaGetLastError();
    if (cudaHostRegister((void *)p, bytes, cudaHostRegisterDefault) == cudaSuccess)
        return 0;
    cudaGetLastError();
    return HV_EUNSUP;
}

static void cuda_unlock(struct hv_dev *d, const void *p)
{
    (void)d;
    cudaHostUnregister((void *)p);
}

/* ---- lanes ---- */

static void cuda_move(struct hv_dev *d, enum hv_lane lane, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                      size_t rows)
{
    const cudaStream_t s = cuda_of(d)->lane[lane];

    cudaSetDevice(cuda_of(d)->index);
    if (rows == 1 || (dst_pitch == width && src_pitch == width))
        cuda_failed(d, cudaMemcpyAsync(dst, src, width * rows, cudaMemcpyDefault, s), "copy");
    else
        cuda_failed(d, cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, width, rows, cudaMemcpyDefault, s), "copy");
}

static void *cuda_event_open(struct hv_dev *d)
{
    cudaEvent_t e;

    cudaSetDevice(cuda_of(d)->index);
    return cudaEventCreateWithFlags(&e, cudaEventBlockingSync) == cudaSuccess ? e : NULL;       /* who waits must not spin */
}

static void cuda_event_close(struct hv_dev *d, void *event)
{
    (void)d;
    cudaEventDestroy((cudaEvent_t)event);
}

static void cuda_event_record(struct hv_dev *d, void *event, enum hv_lane lane)
{
    cudaSetDevice(cuda_of(d)->index);
    cuda_failed(d, cudaEventRecord((cudaEvent_t)event, cuda_of(d)->lane[lane]), "event");
}

static void cuda_event_wait(struct hv_dev *d, void *event, enum hv_lane lane)
{
    cudaSetDevice(cuda_of(d)->index);
    cuda_failed(d, cudaStreamWaitEvent(cuda_of(d)->lane[lane], (cudaEvent_t)event, 0), "event");
}

static void cuda_event_sync(struct hv_dev *d, void *event)
{
    cudaSetDevice(cuda_of(d)->index);
    cuda_failed(d, cudaEventSynchronize((cudaEvent_t)event), "event");
}

static double cuda_elapsed(struct hv_dev *d, void *from, void *to)
{
    float ms = 0;

    cuda_failed(d, cudaEventElapsedTime(&ms, (cudaEvent_t)from, (cudaEvent_t)to), "event");
    return ms * 1e-3;
}

__global__ static void delay_kernel(unsigned long long ns)
{
    unsigned long long start, now;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - start < ns);
}

static void cuda_delay(struct hv_dev *d, enum hv_lane lane, double seconds)
{
    cudaSetDevice(cuda_of(d)->index);
    delay_kernel<<<1, 1, 0, cuda_of(d)->lane[lane]>>>((unsigned long long)(seconds * 1e9));
    CUDA_LAUNCHED(d, "delay");
}

static struct hv_backend table()
{
    struct hv_backend b = {};

    b.name = "cuda";
    b.kind = HV_CUDA;
    b.identify = cuda_identify;
    b.open = cuda_open;
    b.close = cuda_close;
    b.alloc = cuda_alloc;
    b.free = cuda_free;
    b.sync = cuda_sync;
    b.pin = cuda_pin;
    b.unpin = cuda_unpin;
    b.lock = cuda_lock;
    b.unlock = cuda_unlock;
    b.move = cuda_move;
    b.event_open = cuda_event_open;
    b.event_close = cuda_event_close;
    b.event_record = cuda_event_record;
    b.event_wait = cuda_event_wait;
    b.event_sync = cuda_event_sync;
    b.delay = cuda_delay;
    b.elapsed = cuda_elapsed;
    b.info = cuda_info;
    b.upload = cuda_upload;
    b.download = cuda_download;
    b.copy = cuda_copy;
    b.fill = cuda_fill;
    b.gather_rows = cuda_gather_rows;
    b.dequantize = cuda_dequantize;
    b.add = cuda_add;
    b.activation = cuda_activation;
    b.swiglu = cuda_swiglu;
    b.linear = cuda_linear;
    b.linears = cuda_linears;
    b.attention = cuda_attention;
    b.layer_norm = cuda_layer_norm;
    b.rms_norm = cuda_rms_norm;
    b.row_stats = cuda_row_stats;
    b.norm_modulate = cuda_norm_modulate;
    b.qk_norm_rope = cuda_qk_norm_rope;
    b.rope_half = cuda_rope_half;
    b.gated_add = cuda_gated_add;
    b.masked_add = cuda_masked_add;
    b.conv = cuda_conv;
    b.group_sums = cuda_group_sums;
    b.group_norm = cuda_group_norm;
    b.max_pool = cuda_max_pool;
    b.upsample2 = cuda_upsample2;
    b.patchify = cuda_patchify;
    b.unpatchify = cuda_unpatchify;
    return b;
}

extern "C" const struct hv_backend hv_backend_cuda = table();
