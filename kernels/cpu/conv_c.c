/* The convolution tile for any processor: 4 positions x 8 channels in the compiler's own 4-wide vectors. */
#include <string.h>

typedef float v4 __attribute__((vector_size(16)));

static inline v4 load4(const float *p)
{
    v4 v;

    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store4(float *p, v4 v)
{
    memcpy(p, &v, sizeof v);
}

#define V               v4
#define LANES           4
#define LOAD(p)         load4(p)
#define STORE(p, v)     store4(p, v)
#define BROADCAST(p)    ((v4){*(p), *(p), *(p), *(p)})
#define FMA(a, b, c)    ((a) * (b) + (c))
#define ROWS            4
#define VECTORS         2
#define ISA             conv_isa_c

#include "kernels/cpu/conv_tile.h"
