#include "model/vae_stage.h"

#include <string.h>

#include "mem/part.h"

#define PART "vae"

static int is_cuda(const char *device)
{
    return !strncmp(device, "cuda", 4);
}

static const char *const keeps[] = {"all", "outputs", "nothing"};

const char *vae_keep_name(int keep)
{
    return keep == VAE_KEEP_AUTO ? "auto" : keeps[keep];
}

int vae_keep_of(const char *name, int *keep)
{
    for (*keep = VAE_KEEP_AUTO; *keep <= VAE_KEEP_NOTHING; ++*keep)
        if (!strcmp(name, vae_keep_name(*keep)))
            return 0;
    return 1;
}

/* Of what is kept and how long windows are: the first that fits. Less is kept where windows would be shorter than two frames of
 * 256x256, which costs more than making things again does. */
static int choose(struct vae_opts *o, const struct vae_config *c, int keep, struct hv_err *e)
{
    struct hv_plan p;
    struct hv_err first = {0};

    if (!o->gpu && keep == VAE_KEEP_AUTO)
        keep = VAE_KEEP_ALL;
    for (int k = keep == VAE_KEEP_AUTO ? VAE_KEEP_ALL : keep; k <= (keep == VAE_KEEP_AUTO ? (int)VAE_KEEP_NOTHING : keep); k++) {
        const int last = o->part == VAE_ENCODER || k == (keep == VAE_KEEP_AUTO ? (int)VAE_KEEP_NOTHING : keep);
        o->keep = (enum vae_keep)k;
        for (o->cells = o->gpu ? 262144 : 0;; o->cells /= 2) {
            struct hv_err no = {0};
            if (!vae_plan(&p, c, o, &no))
                return 0;
            first = no;
            if (no.code != HV_ENOMEM)
                break;
            if (last || !o->cells || o->cells <= 131072)
                break;
        }
        if (last)
            break;
    }
    *e = first;
    return e->code;
}

int vae_act_parse(const char *name, const char *device, hv_dtype *act, struct hv_err *e)
{
    *act = !name ? HV_NONE : !strcmp(name, "f16") ? HV_F16 : !strcmp(name, "bf16") ? HV_BF16 : HV_F32;
    if (name && *act == HV_F32 && strcmp(name, "f32"))
        return hv_fail(e, HV_EUSAGE, "--dtype %s: f16, bf16 or f32", name);
    if (name && *act != HV_F32 && !is_cuda(device))
        return hv_fail(e, HV_EUSAGE, "--dtype %s: the cpu computes in f32", name);
    return 0;
}

static int open_device(struct vae_stage *s, struct hv_err *e)
{
    if (s->plan_only)
        return hv_dev_open(&s->dev, "dry", s->threads, e);
    if (hv_dev_open(&s->dev, s->device, s->threads, e) || hv_dev_info(s->dev, &s->before, e))
        return e->code;
    return s->opts.gpu ? hv_dev_open(&s->host, "cpu", s->threads, e) : 0;
}

int vae_stage_open(struct vae_stage *s, const struct vae_config *c, const int64_t size[3], struct hv_err *e)
{
    const int gpu = is_cuda(s->device);
    struct hv_wlist list = {0};

    s->opts = (struct vae_opts){.part = s->part, .t = size[0], .h = size[1], .w = size[2], .gpu = gpu,
                                .act = s->act ? s->act : gpu ? HV_F16 : HV_F32};
    vae_part_weights(&list, c, s->part);
    if (!open_device(s, e) && !hv_part_weights(&s->weights, s->host ? s->host : s->dev, s->model, PART, &list, e)) {
        const struct hv_dev_info *info = s->plan_only ? NULL : &s->before;
        s->context = !gpu ? 0 : (info && info->context ? (size_t)info->context : HV_CONTEXT_BYTES) + HV_LATER_BYTES;
        s->opts.budget = gpu ? 0 : hv_size_budget(s->vram);
        if ((!gpu || !hv_budget_device(&s->opts.budget, s->vram, s->context, info, e)) && !choose(&s->opts, c, s->keep, e))
            vae_open(&s->net, s->dev, s->weights, c, &s->opts, e);
    }
    hv_wlist_close(&list);
    return e->code;
}

void vae_stage_close(struct vae_stage *s)
{
    vae_close(s->net);
    hv_weights_close(s->weights);
    hv_dev_close(s->host);
    hv_dev_close(s->dev);
}

static void add_row(struct hv_plan *to, const struct hv_plan_row *r)
{
    hv_plan_add(to, r->name, r->view.dtype, r->phases, r->view.ndim, r->view.shape);
}

int vae_stage_print(const struct vae_stage *s, struct hv_plan *device, struct hv_plan *host, int json, FILE *f, struct hv_err *e)
{
    void (*const print)(const struct hv_plan *, const struct hv_dev *, FILE *) = json ? hv_plan_print_json : hv_plan_print;

    device->budget = 0;
    for (int i = 0; i < host->n && !s->context; i++)
        add_row(device, &host->row[i]);
    if (s->context)
        hv_plan_add(device, "context", HV_BYTES, UINT32_MAX, 1, (int64_t[]){(int64_t)s->context});
    if (hv_plan_place(device, e) || hv_plan_place(host, e))
        return e->code;
    if (!s->context) {
        print(device, s->dev, f);
        return 0;
    }
    fprintf(f, json ? "{\"keep\": \"%s\", \"device\": " : "device (of the last level: %s)\n", vae_keep_name((int)s->opts.keep));
    print(device, s->dev, f);
    fprintf(f, json ? ", \"host\": " : "host\n");
    print(host, NULL, f);
    if (json)
        fprintf(f, "}\n");
    return 0;
}

void vae_stage_say(const struct vae_stage *s, const struct hv_cli *cli)
{
    const double mib = 1048576;
    struct hv_dev_info now;
    struct hv_err e = {0};

    if (s->plan_only || !s->opts.gpu || hv_dev_info(s->dev, &now, &e))
        return;
    hv_note(cli, "memory: predicted %.1f MiB, measured %.1f MiB (context %.1f%s); kept of the last level: %s",
            (double)(hv_plan_bytes(vae_plan_of(s->net)) + s->context) / mib, (double)hv_budget_taken(s->context, &s->before, &now) / mib,
            (double)s->context / mib, s->before.context ? "" : ", assumed", vae_keep_name((int)s->opts.keep));
}
