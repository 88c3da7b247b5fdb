/* pt.h - checkpoints of torch.save and torch.jit.save: a zip archive, ROOT/data.pkl of which says what the raw storages
 * ROOT/data/N hold. zip.h and pickle.h say what is refused; nothing is executed.
 *
 *     hv_pt_read(c, &z, data, bytes, &opts, &digest, e);           // adds the tensors to a checkpoint that is being opened */
#ifndef HV_PT_H
#define HV_PT_H

#include "io/ckpt.h"
#include "io/zip.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *z is the archive, to be closed by the caller, NULL after a failure; *is_script: a TorchScript module. Names of nested
 * dicts are joined with dots. A state dict is looked for under "module", "model", "state_dict", "ema", or o->key. */
int hv_pt_read(struct hv_ckpt *c, struct hv_zip **z, int *is_script, const uint8_t *data, size_t bytes,
               const struct hv_ckpt_opts *o, struct hv_err *e);

#ifdef __cplusplus
}
#endif
#endif
