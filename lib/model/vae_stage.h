/* vae_stage.h - a part of the VAE as a program runs it: device, weights of a model folder, plan within a budget.
 *
 *     struct vae_stage s = {.part = VAE_DECODER, .device = "cuda", .model = dir, .vram = &vram, .keep = VAE_KEEP_AUTO};
 *     if (!vae_stage_open(&s, &config, size, e))               // size: of the largest tile
 *         vae_decode(s.net, y, z);
 *     vae_stage_close(&s); */
#ifndef HV_VAE_STAGE_H
#define HV_VAE_STAGE_H

#include <stdio.h>

#include "mem/budget.h"
#include "model/vae.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VAE_KEEP_AUTO (-1)

struct vae_stage {
    enum vae_part part;
    const char   *device, *model;       /* borrowed; cuda: weights pass through a device of the host */
    int           threads;
    const struct hv_size *vram;
    hv_dtype      act;                  /* HV_NONE: F16 on a GPU, else F32 */
    int           keep;                 /* of enum vae_keep; AUTO: the most that fits */
    int           plan_only;            /* 1: nothing is computed, no device is opened but "dry" */

    struct hv_dev      *dev, *host;
    struct hv_weights  *weights;
    struct vae         *net;
    struct vae_opts     opts;
    struct hv_dev_info  before;         /* the device as it was when it was opened */
    size_t              context;        /* bytes of a GPU's context and libraries; 0 on the cpu */
};

/* HV_ENOMEM: no plan fits, with what the smallest one needs. */
int  vae_stage_open(struct vae_stage *s, const struct vae_config *c, const int64_t size[3], struct hv_err *e);
void vae_stage_close(struct vae_stage *s);

/* Prints the plan of the device and the rows of the host: on the cpu as one table, for a GPU, which has the context for a row, as
 * two (json: an object with both). */
int vae_stage_print(const struct vae_stage *s, struct hv_plan *device, struct hv_plan *host, int json, FILE *f,
                    struct hv_err *e);

/* Prints, where the user wants to hear it: what is kept, memory as it was predicted and as it was. */
void vae_stage_say(const struct vae_stage *s, const struct hv_cli *cli);

/* --dtype: NULL gives HV_NONE. HV_EUSAGE: not f16, bf16 or f32, or another than f32 on the cpu. */
int vae_act_parse(const char *name, const char *device, hv_dtype *act, struct hv_err *e);

const char *vae_keep_name(int keep);            /* "all", "outputs", "nothing"; "auto" */
int vae_keep_of(const char *name, int *keep);   /* 0, or 1: no such name */

#ifdef __cplusplus
}
#endif
#endif
