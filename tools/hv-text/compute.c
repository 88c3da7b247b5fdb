/* compute.c - the three networks on a device, one after the other. On a GPU their weights pass through one ring, group by group, from
 * the mapped file; on the cpu they are used where they are, and leave the process's memory when they were. */
#include "hv-text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mem/part.h"

#define MIB 1048576.0

struct run {
    struct job         *j;
    struct hv_dev      *dev;
    struct hv_dev_info  info;                           /* when it was opened */
    struct hv_wlist     list[FILES];
    struct hv_weights  *w[FILES];
    struct fitted       f;
    struct hv_arena    *arena;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct hv_room room(const struct run *r, int net)
{
    return (struct hv_room){r->f.act[net == POOLED ? OF_CLIP : OF_LLAVA], hv_arena_row(r->arena, net_name(net))};
}

/* After a network's last operation. */
static int finish(struct run *r, int net, double start, struct hv_err *e)
{
    if (hv_dev_sync(r->dev, e))
        return e->code;
    if (o.plan)
        print_net(&r->f, r->dev, net);
    else
        hv_note_verbose(&cli, "%s: %.3f s", net_name(net), now() - start);
    return 0;
}

/* ---- networks ---- */

/* image (host) [I, H] = the projected picture. */
static int run_vision(struct run *r, hv_tensor image, struct hv_err *e)
{
    const struct hv_room place = room(r, VISION);
    const int64_t S = r->j->vit.image;
    const double start = now();
    struct vit *net = NULL;
    float *blank = o.plan ? calloc((size_t)(3 * S * S), sizeof *blank) : NULL;

    if (o.plan && !blank)
        hv_fail(e, HV_ENOMEM, "no memory for the picture");
    if (!e->code && !vit_open(&net, r->dev, r->w[OF_LLAVA], &r->j->vit, &place, e)) {
        vit_encode(net, image, hv_view(blank ? blank : r->j->pixels, HV_F32, 3, (int64_t[]){3, S, S}), HV_NO);
        finish(r, VISION, start, e);
    }
    vit_close(net);
    free(blank);
    return e->code;
}

static int run_language(struct run *r, hv_tensor image, struct hv_err *e)
{
    const struct hv_room place = room(r, LANGUAGE);
    const double start = now();
    struct llama_seq seq[PROMPTS];
    struct llama *net = NULL;

    language_seqs(seq, r->j);
    if (!llama_open(&net, r->dev, r->w[OF_LLAVA], &r->j->llama, seq, PROMPTS, vit_rows(&r->j->vit), &place, e)) {
        llama_encode(net, r->j->states, image, HV_NO);
        finish(r, LANGUAGE, start, e);
    }
    llama_close(net);
    return e->code;
}

static int run_clip(struct run *r, struct hv_err *e)
{
    const struct hv_room place = room(r, POOLED);
    const double start = now();
    struct clip_text text[PROMPTS];
    struct clip *net = NULL;

    clip_texts(text, r->j);
    if (!clip_open(&net, r->dev, r->w[OF_CLIP], &r->j->clip, text, PROMPTS, &place, e)) {
        clip_encode(net, r->j->pooled, HV_NO);
        finish(r, POOLED, start, e);
    }
    clip_close(net);
    return e->code;
}

/* ---- weights ---- */

static int open_weights(struct run *r, struct hv_err *e)
{
    static const char *const part[FILES] = {LLAVA, CLIP};

    vit_weights(&r->list[OF_LLAVA], &r->j->vit);
    llama_weights(&r->list[OF_LLAVA], &r->j->llama);
    clip_weights(&r->list[OF_CLIP], &r->j->clip);
    for (int i = 0; i < FILES; i++)
        if (hv_part_weights(&r->w[i], r->dev, o.c.model, part[i], &r->list[i], e))
            return e->code;
    return 0;
}

static int begin(struct run *r, int file, struct hv_err *e)
{
    const struct hv_stream_opts s = {.ring = r->f.ring ? hv_arena_row(r->arena, "ring") : HV_NO, .mode = r->j->stream,
                                     .matrices = r->f.act[file], .once = 1};

    hv_weights_once(r->w[file]);
    return r->dev->kind == HV_CUDA ? hv_weights_stream(r->w[file], &s, e) : 0;
}

static void end(struct run *r, int file)
{
    struct hv_stream_stats s;

    hv_weights_stats(r->w[file], &s);
    if (hv_weights_streamed(r->w[file]))
        hv_note_verbose(&cli, "weights: %.2f GB by %s, waited %.3f s", (double)s.bytes * 1e-9, hv_stream_mode_name(s.mode), s.wait);
    hv_weights_unstream(r->w[file]);
}

static int run_llava(struct run *r, struct hv_err *e)
{
    const int64_t I = vit_rows(&r->j->vit), H = r->j->llama.hidden;
    float *rows = calloc((size_t)(I * H), sizeof *rows);
    const hv_tensor image = hv_view(rows, HV_F32, 2, (int64_t[]){I, H});

    if (!rows)
        hv_fail(e, HV_ENOMEM, "no memory for the picture's rows");
    else if (!begin(r, OF_LLAVA, e) && !run_vision(r, image, e))
        run_language(r, image, e);
    end(r, OF_LLAVA);
    free(rows);
    return e->code;
}

static int run_all(struct run *r, struct hv_err *e)
{
    if (run_llava(r, e))
        return e->code;
    if (!begin(r, OF_CLIP, e))
        run_clip(r, e);
    end(r, OF_CLIP);
    snprintf(r->j->model, sizeof r->j->model, "%s+%s", hv_weights_digest(r->w[OF_LLAVA]), hv_weights_digest(r->w[OF_CLIP]));
    return e->code;
}

/* ---- memory ---- */

/* The one place where memory of the device can run out. */
static int take_memory(struct run *r, struct hv_err *e)
{
    struct hv_dev_info free_now;
    struct hv_err ignored = {0};

    if (hv_arena_open(&r->arena, r->dev, &r->f.device, e) == HV_ENOMEM && r->dev->kind == HV_CUDA &&
        !hv_dev_info(r->dev, &free_now, &ignored)) {
        *e = (struct hv_err){0};
        return hv_fail(e, HV_ENOMEM, "cuda: out of memory: %.1f MiB requested, %.1f MiB free on %s; --vram asks for less",
                       (double)hv_plan_bytes(&r->f.device) / MIB, (double)free_now.free / MIB, free_now.name);
    }
    if (!e->code && r->dev->kind == HV_CUDA)
        r->dev->scratch = hv_arena_row(r->arena, "gemm");
    return e->code;
}

/* Memory as it was planned and as it was: what the device has less of now than when it was opened. */
static void say_memory(const struct run *r)
{
    struct hv_dev_info free_now;
    struct hv_err ignored = {0};

    if (r->dev->kind != HV_CUDA || hv_dev_info(r->dev, &free_now, &ignored))
        return;
    hv_note_verbose(&cli, "memory: predicted %.1f MiB, measured %.1f MiB (context %.1f%s)",
                    (double)(hv_plan_bytes(&r->f.device) + r->f.context) / MIB,
                    (double)hv_budget_taken(r->f.context, &r->info, &free_now) / MIB, (double)r->f.context / MIB,
                    r->info.context ? "" : ", assumed");
}

int compute(struct job *j, struct hv_err *e)
{
    static struct run r;
    struct hv_progress progress;
    static struct hv_weights *const none[FILES];
    const double start = now();

    r.j = j;
    hv_progress_open(&progress, &cli);
    if (!hv_dev_open(&r.dev, o.plan ? "dry" : o.c.device, (int)o.c.threads, e) && !hv_dev_info(r.dev, &r.info, e) &&
        !open_weights(&r, e)) {
        r.dev->attention = HV_ATT_FLASH;                /* of ours: the shapes here are none of cuDNN's */
        if (!o.plan) {
            r.dev->report = hv_progress_step;
            r.dev->report_ctx = &progress;
        }
        hv_note_verbose(&cli, "device: %.3f s", now() - start);
        if (!fit(&r.f, j, r.dev->kind == HV_CUDA ? &r.info : NULL, r.list, o.plan ? none : r.w, e) && !take_memory(&r, e) && !run_all(&r, e)) {
            if (o.plan)
                print_whole(&r.f, r.list);
            say_memory(&r);
        }
    }
    hv_progress_close(&progress);
    for (int i = 0; i < FILES; i++) {
        hv_weights_close(r.w[i]);
        hv_wlist_close(&r.list[i]);
    }
    if (r.dev)
        r.dev->scratch = HV_NO;
    hv_arena_close(r.arena);
    hv_dev_close(r.dev);
    return e->code;
}
