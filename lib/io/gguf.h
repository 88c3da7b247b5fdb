/* gguf.h - GGUF files (versions 2 and 3): names, shapes and places of their tensors, and what their blocks stand for.
 *
 *     hv_gguf_read(c, data, bytes, &head, e);                  // adds the tensors to a checkpoint that is being opened
 *     hv_gguf_decode(type, block, n_blocks, values);
 *
 * A block is a run of 32 or 256 weights with their scale. Read: F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K, Q6_K. */
#ifndef HV_GGUF_H
#define HV_GGUF_H

#include "io/ckpt.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *head: bytes before the data. HV_EINPUT; HV_EUNSUP: another version or type. */
int hv_gguf_read(struct hv_ckpt *c, const uint8_t *data, size_t bytes, size_t *head, struct hv_err *e);

/* Weights and bytes of a block; 0 for a type that is not read, or not made of blocks. */
int    hv_gguf_block(int type);
size_t hv_gguf_block_bytes(int type);

/* w [n * hv_gguf_block(type)] from n blocks; any bytes are a valid block. */
void hv_gguf_decode(int type, const uint8_t *block, size_t n, float *w);

#ifdef __cplusplus
}
#endif
#endif
