/* rng.h - torch's random generators, so that one seed means the same noise here and there.
 *
 *     struct hv_rng g;
 *     hv_rng_cuda(&g, 128, 108, 2048);                 // torch.Generator("cuda").manual_seed(128) on a GPU of 108 SMs
 *     hv_rng_normal(&g, HV_F16, noise, n);             // torch.randn(n, dtype=float16, generator=g)
 *
 * cuda: Philox4x32-10, one counter a thread. Which thread makes which value follows from the GPU: SM multiprocessors of TPS
 * threads each. cpu: mt19937, 16 values at a time by Box and Muller, or in pairs where fewer than 16 are asked for.
 * Integers are exact. log, sin and cos are those of libm in f64, rounded where torch's f32 or f16 ones are, so values may
 * differ from torch's by its own last-place errors. */
#ifndef HV_RNG_H
#define HV_RNG_H

#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_RNG_SM  108          /* the default GPU: what the goldens and other people's seeds were made on */
#define HV_RNG_TPS 2048

enum hv_rng_kind { HV_RNG_CUDA, HV_RNG_CPU };

struct hv_rng {
    enum hv_rng_kind kind;
    uint64_t seed;
    uint64_t offset;            /* cuda: of the next draw; a multiple of 4 */
    int64_t  sm, tps;
    uint32_t mt[624];           /* cpu */
    int      at;
    int      pending;           /* cpu: the second value of a pair waits in next, also across draws of 16 and more */
    double   next;
};

void hv_rng_cuda(struct hv_rng *g, uint64_t seed, int64_t sm, int64_t tps);    /* sm >= 1, tps >= 256 */
void hv_rng_cpu(struct hv_rng *g, uint64_t seed);

/* One draw of n standard normal values as F32, F16 or BF16. A draw of n is not two draws of n/2. */
void hv_rng_normal(struct hv_rng *g, hv_dtype t, void *dst, size_t n);

/* Next 32 bits of a cpu generator. */
uint32_t hv_rng_u32(struct hv_rng *g);

#ifdef __cplusplus
}
#endif
#endif
