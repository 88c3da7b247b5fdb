/* attention.cu - which back end computes an attention
 *
 *     sage       when named                               heads of 128 columns without masks, bf16
 *     cudnn      when named, or auto and installed        the same; o apart from q, k and v
 *     flash      when named, and what the others leave    the same
 *     few        what flash leaves                        wider heads without masks over 16 keys or fewer, bf16
 *     wide       what they leave                          one head of more than 128 columns; frames that see those before
 *     math       when named, and all else */
#include "kernels/cuda/attention.cuh"

void cuda_attention(struct hv_dev *d, hv_tensor o, hv_tensor q, hv_tensor k, hv_tensor v, const struct hv_attn *a)
{
    const enum hv_attention kind = d->attention;
    const int sage = kind == HV_ATT_SAGE || kind == HV_ATT_SAGE_FP8;
    const int cudnn = kind == HV_ATT_CUDNN || kind == HV_ATT_AUTO;

    if (!q.shape[0])
        return;
    if (sage && !cuda_attention_sage(d, o, q, k, v, a, kind == HV_ATT_SAGE_FP8))
        return;
    if (cudnn && cuda_cudnn_version(d) && !cuda_attention_cudnn(d, o, q, k, v, a))
        return;
    if (kind != HV_ATT_MATH && (!cuda_attention_flash(d, o, q, k, v, a) || !cuda_attention_few(d, o, q, k, v, a) ||
                                  !cuda_attention_wide(d, o, q, k, v, a)))
        return;
    if (cuda_attention_math(d, o, q, k, v, a))
        hv_dev_fault(d, HV_EUNSUP, "attention: %d heads of %lld columns: at most 65535 of 1024 are supported", a->heads,
                     (long long)(q.shape[1] / a->heads));
}
