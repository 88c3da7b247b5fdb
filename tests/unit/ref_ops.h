/* ref_ops.h - every operation of ops.h as a scalar definition in double precision: what the backends are tested against.
 *
 * Tensors are on the host, of any dtype and stride; outputs are usually F64 and never overlap inputs. Operations that ops.h
 * does in place have an output of their own here. Slow on purpose: each is its formula. */
#ifndef REF_OPS_H
#define REF_OPS_H

#include "ops/ops.h"

/* Element [i0, i1, ..] as a double, scales of quantized rows applied. */
double ref_at(hv_tensor t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4);
void   ref_put(hv_tensor t, int64_t i0, int64_t i1, int64_t i2, int64_t i3, int64_t i4, double v);

double ref_act(double x, enum hv_act act);

void ref_copy(hv_tensor y, hv_tensor x);
void ref_fill(hv_tensor y, double value);
void ref_dequantize(hv_tensor y, hv_tensor w);
void ref_gather_rows(hv_tensor y, hv_tensor table, const int32_t *ids);
void ref_add(hv_tensor y, hv_tensor a, hv_tensor b);
void ref_activation(hv_tensor y, hv_tensor x, enum hv_act act);
void ref_swiglu(hv_tensor y, hv_tensor gate, hv_tensor up);
void ref_linear(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, enum hv_act act);
void ref_attention(hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a);
void ref_layer_norm(hv_tensor y, hv_tensor x, hv_tensor weight, hv_tensor bias, double eps);
void ref_rms_norm(hv_tensor y, hv_tensor x, hv_tensor weight, double eps);
void ref_row_stats(hv_tensor stat, hv_tensor x, double eps);
void ref_norm_modulate(hv_tensor y, hv_tensor x, hv_tensor stat, hv_tensor shift, hv_tensor scale);
void ref_qk_norm_rope(hv_tensor y, hv_tensor x, int heads, hv_tensor weight, double eps, const struct hv_rope *rope);
void ref_rope_half(hv_tensor y, hv_tensor x, int heads, hv_tensor cos, hv_tensor sin);
void ref_gated_add(hv_tensor y, hv_tensor x, hv_tensor gate, hv_tensor b);
void ref_masked_add(hv_tensor y, hv_tensor x, hv_tensor mask, hv_tensor b);
void ref_conv(hv_tensor y, hv_tensor x, hv_tensor w, hv_tensor bias, const struct hv_conv *p);
void ref_group_sums(hv_tensor sums, hv_tensor x);
void ref_group_norm(hv_tensor y, hv_tensor x, hv_tensor sums, double count, hv_tensor weight, hv_tensor bias, double eps,
                    enum hv_act act);
void ref_max_pool(hv_tensor y, hv_tensor x, int k, int s, int pad, int ceil_mode);
void ref_upsample2(hv_tensor y, hv_tensor x);
void ref_patchify(hv_tensor y, hv_tensor x, const int patch[3]);
void ref_unpatchify(hv_tensor y, hv_tensor x, const int patch[3]);

#endif
