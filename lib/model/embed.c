#include "model/embed.h"

#include <stdlib.h>

#include "mem/quant.h"

static hv_tensor as_table(hv_tensor t)
{
    return t.ndim == 1 ? hv_reshape(t, 2, (int64_t[]){1, t.shape[0]}) : t;
}

/* Row n of a table on the host, as f32. */
static void widen(float *to, hv_tensor table, int32_t n)
{
    const size_t columns = (size_t)table.shape[1];
    const char *row = (const char *)table.data + (size_t)n * columns * hv_dtype_size(table.dtype);

    if (table.scale)
        hv_dequant(to, table.dtype, row, table.scale[n], table.deq_bf16, columns);
    else
        hv_to_f32(to, table.dtype, row, columns);
}

void embed_rows(struct hv_dev *d, struct hv_weights *w, hv_tensor y, const int32_t *ids, const char *table)
{
    const hv_tensor t = hv_weight_host(w, "%s", table);

    if (t.dtype == HV_NONE)
        return;
    if (d->kind != HV_CUDA) {
        hv_gather_rows(d, y, as_table(t), ids);
        return;
    }
    float *rows = malloc((size_t)hv_count(y) * sizeof *rows + 1);
    if (!rows) {
        hv_dev_fault(d, HV_ENOMEM, "%s: out of memory", table);
        return;
    }
    for (int64_t r = 0; r < y.shape[0]; r++)
        widen(rows + r * y.shape[1], as_table(t), ids[r]);
    hv_upload(d, y, hv_view(rows, HV_F32, 2, y.shape));                 /* pageable: past when the call returns */
    free(rows);
}
