/* barrier.cuh - barriers in shared memory (mbarrier) for the kernels of compute capability 9.0: one side fills a stage of a ring and
 * arrives, or the copies that it started do, the other waits for the round's parity. bar: an address in shared memory. Not for other
 * files. */
#ifndef HV_CUDA_BARRIER_CUH
#define HV_CUDA_BARRIER_CUH

#include <stdint.h>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A round ends when `count` have arrived. */
__device__ static inline void barrier_open(uint32_t bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static inline void arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* Arrives; the round waits for so many bytes of bulk copies as well. */
__device__ static inline void expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ static inline void wait(uint32_t bar, int parity)
{
    asm volatile("{\n\t.reg .pred p;\n"
                 "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t"
                 "@!p bra again;\n\t}" ::"r"(bar), "r"(parity) : "memory");
}

#endif
#endif
