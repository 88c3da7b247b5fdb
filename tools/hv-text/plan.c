/* plan.c - what fits: activations of the three networks over one another, and a ring of weights in what is left. Nothing here needs
 * weights or a GPU. */
#define _GNU_SOURCE
#include "hv-text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/dit.h"

#define MIB   1048576.0
#define AHEAD 4                 /* groups that the ring holds where memory allows: a layer of the language model */

#define PH_ALL ((1u << NETS) - 1)       /* a phase a network */

int is_cuda(void)
{
    return !strncmp(o.c.device, "cuda", 4);
}

const char *net_name(int net)
{
    static const char *const name[NETS] = {"vision", "language", "clip"};

    return name[net];
}

/* ---- dtypes ---- */

/* How the matrices of a file are stored: as the first of those that may be quantized, or the first of all. */
static hv_dtype stored(const struct hv_weights *w)
{
    const struct hv_wlist *l = hv_weights_list(w);
    hv_dtype t = HV_NONE;

    for (int i = 0; i < l->n; i++) {
        if (l->w[i].quant == HV_QUANT)
            return hv_weights_dtype(w, l->w[i].name);
        if (t == HV_NONE && l->w[i].ndim == 2 && l->w[i].group >= 0)
            t = hv_weights_dtype(w, l->w[i].name);
    }
    return t;
}

/* On a GPU activations are what the matrices are, so that these are multiplied as they are stored. F16 has the finer steps and is
 * what the reference computes in; kernels that widen I8 and F8 give BF16. */
static hv_dtype act_of(hv_dtype weights)
{
    return !is_cuda() ? HV_F32 : weights == HV_F16 || weights == HV_F32 ? HV_F16 : HV_BF16;
}

/* ---- sizes ---- */

/* The networks' own tables. */
static int measure(struct fitted *f, const struct job *j, struct hv_err *e)
{
    const struct hv_room room[FILES] = {{.act = f->act[OF_LLAVA]}, {.act = f->act[OF_CLIP]}};
    struct llama_seq seq[PROMPTS];
    struct clip_text text[PROMPTS];
    struct hv_dev *dry = NULL;
    struct vit *vision = NULL;
    struct llama *language = NULL;
    struct clip *clip = NULL;

    language_seqs(seq, j);
    clip_texts(text, j);
    if (!hv_dev_open(&dry, "dry", 1, e) && !vit_open(&vision, dry, NULL, &j->vit, &room[OF_LLAVA], e) &&
        !llama_open(&language, dry, NULL, &j->llama, seq, PROMPTS, vit_rows(&j->vit), &room[OF_LLAVA], e) &&
        !clip_open(&clip, dry, NULL, &j->clip, text, PROMPTS, &room[OF_CLIP], e)) {
        f->net[VISION] = *vit_plan(vision);
        f->net[LANGUAGE] = *llama_plan(language);
        f->net[POOLED] = *clip_plan(clip);
    }
    vit_close(vision);
    llama_close(language);
    clip_close(clip);
    hv_dev_close(dry);
    return e->code;
}

static int64_t group_bytes(const struct hv_weights *w, const struct hv_wlist *l, hv_dtype weights, int g)
{
    return w ? hv_weights_group_bytes(w, g, 1) : hv_wlist_group_bytes(l, g, weights, 1);
}

static int place(struct hv_plan *p, const struct fitted *f, int64_t ring, int64_t scratch, struct hv_err *e)
{
    const size_t budget = p->budget;

    memset(p, 0, sizeof *p);
    p->budget = budget;
    if (is_cuda()) {
        hv_plan_add(p, "ring", HV_BYTES, PH_ALL, 1, &ring);
        hv_plan_add(p, "gemm", HV_BYTES, PH_ALL, 1, &scratch);
    }
    for (int i = 0; i < NETS; i++)
        hv_plan_add(p, net_name(i), HV_BYTES, 1u << i, 1, (const int64_t[]){(int64_t)hv_plan_bytes(&f->net[i])});
    return hv_plan_place(p, e);
}

/* The ring takes what is left of the budget, between its largest group and AHEAD of them. */
static int place_ring(struct fitted *f, int64_t largest, int64_t scratch, struct hv_err *e)
{
    static struct hv_plan bare;
    struct hv_err ignored = {0};
    const int64_t budget = (int64_t)f->device.budget, most = AHEAD * largest;

    bare.budget = 0;
    if (place(&bare, f, 0, scratch, &ignored))
        return hv_fail(e, ignored.code, "%s", ignored.msg);
    const int64_t left = budget ? (budget - (int64_t)hv_plan_bytes(&bare)) / HV_ALIGN * HV_ALIGN : most;
    f->ring = left > most ? most : left < largest ? largest : left;
    return place(&f->device, f, f->ring, scratch, e);
}

int fit(struct fitted *f, const struct job *j, const struct hv_dev_info *info, const struct hv_wlist list[FILES],
        struct hv_weights *const w[FILES], struct hv_err *e)
{
    int64_t largest = 0;

    memset(f, 0, sizeof *f);
    for (int i = 0; i < FILES; i++) {
        const hv_dtype planned = j->weights == HV_BF16 ? HV_BF16 : i == OF_LLAVA && j->weights ? j->weights : HV_F16;
        f->weights[i] = w[i] ? stored(w[i]) : planned;
        f->act[i] = act_of(f->weights[i]);
        for (int g = 0; g < list[i].groups; g++) {
            const int64_t bytes = group_bytes(w[i], &list[i], f->weights[i], g);
            largest = bytes > largest ? bytes : largest;
        }
    }
    if (measure(f, j, e))
        return e->code;
    if (!is_cuda()) {
        f->device.budget = hv_size_budget(&o.vram);
        return place(&f->device, f, 0, 0, e);
    }
    f->context = (info && info->context ? (size_t)info->context : HV_CONTEXT_BYTES) + HV_LATER_BYTES;
    return hv_budget_device(&f->device.budget, &o.vram, f->context, info, e) ||
           place_ring(f, largest, (int64_t)(!info || info->arch >= 90 ? HV_LINEAR_SCRATCH : HV_LINEAR_SCRATCH / 8), e) ? e->code : 0;
}

/* ---- printing ---- */

void print_net(struct fitted *f, struct hv_dev *dev, int net)
{
    if (*o.plan) {
        printf("%s\"%s\": ", net ? ", " : "{", net_name(net));
        hv_plan_print_json(&f->net[net], dev, stdout);
    } else {
        printf("%s%s:\n", net ? "\n" : "", net_name(net));
        hv_plan_print(&f->net[net], dev, stdout);
    }
    f->flops += (double)dev->count.flops;
    memset(&dev->count, 0, sizeof dev->count);
}

/* Every group crosses the bus once, beside the products: the longer of both is the time. */
static double copied(const struct fitted *f, const struct hv_wlist list[FILES])
{
    double sum = 0;

    for (int i = 0; i < FILES; i++)
        for (int g = 0; g < list[i].groups; g++)
            sum += (double)group_bytes(NULL, &list[i], f->weights[i], g);
    return sum;
}

static void print_json(const struct fitted *f, double bytes, double seconds)
{
    printf(", \"device\": ");
    hv_plan_begin_json(&f->device, NULL, stdout);
    printf(", \"activations\": \"%s\"", hv_dtype_name(f->act[OF_LLAVA]));
    if (is_cuda())
        printf(", \"weights_dtype\": \"%s\", \"ring_bytes\": %lld, \"context_bytes\": %zu, \"predicted_bytes\": %zu,\n"
               "\"streamed_bytes\": %.0f, \"predicted_seconds\": %.4f", hv_dtype_name(f->weights[OF_LLAVA]), (long long)f->ring,
               f->context, hv_plan_bytes(&f->device) + f->context, bytes, seconds);
    printf("}}\n");
}

void print_whole(const struct fitted *f, const struct hv_wlist list[FILES])
{
    const struct dit_machine m = dit_machine_of(0, 0, HV_ATT_FLASH, 0);
    const double bytes = copied(f, list), in = bytes / m.bus, seconds = in > f->flops / m.gemm ? in : f->flops / m.gemm;

    if (*o.plan) {
        print_json(f, bytes, seconds);
        return;
    }
    printf("\nall of it: device %s, activations %s", o.c.device, hv_dtype_name(f->act[OF_LLAVA]));
    if (is_cuda())
        printf(", weights %s through a ring of %.1f MiB", hv_dtype_name(f->weights[OF_LLAVA]), (double)f->ring / MIB);
    printf("\n");
    hv_plan_print(&f->device, NULL, stdout);
    if (is_cuda()) {
        printf("%-16s %-8s %-24s %-10s %14zu %12.1f\n%-16s %-8s %-24s %-10s %14zu %12.1f\n", "context", "", "", "", f->context,
               (double)f->context / MIB, "with context", "", "", "", hv_plan_bytes(&f->device) + f->context,
               (double)(hv_plan_bytes(&f->device) + f->context) / MIB);
        printf("predicted: %.2f s for %.2f GB of weights at %.0f GB/s of bus, %.2f TFLOP at %.0f a second\n", seconds, bytes * 1e-9,
               m.bus * 1e-9, f->flops * 1e-12, m.gemm * 1e-12);
    }
}
