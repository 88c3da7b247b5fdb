/* embed.h - rows of a table by their numbers. A table of embeddings is a gigabyte of which a prompt needs a few rows: it stays on
 * the host, whatever the device.
 *
 *     embed_rows(dev, weights, y, ids, "text_model.embeddings.token_embedding.weight"); */
#ifndef HV_EMBED_H
#define HV_EMBED_H

#include "mem/weights.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[r] = table[ids[r]]: y [R, K] on the device, table a tensor [V, K] or [K] (then of one row) of the list, ids in 0..V-1. */
void embed_rows(struct hv_dev *d, struct hv_weights *w, hv_tensor y, const int32_t *ids, const char *table);

#ifdef __cplusplus
}
#endif
#endif
