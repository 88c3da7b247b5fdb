/* preview.c - latents on their way, as a picture: what they would be without noise, through a linear map to colours. */
#define _GNU_SOURCE
#include "hv-denoise.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/preview.h"
#include "io/video.h"

#define FRAMES 36                       /* of a sheet; a long clip shows as many, spread evenly */

struct preview {
    struct hv_preview_map map;
    hv_tensor  latents;                 /* the copy, [C, clip.video, h, w]; owned */
    const struct denoise_job *j;
    int        steps, done;
    double     fps;
    int        failed;                  /* and it was said */

    pthread_mutex_t lock;
    pthread_cond_t  changed;
    pthread_t  thread;
    int        running, quit, busy;     /* busy: the copy is to be drawn, or is being drawn */
};

static int write_sheet(const struct preview *p, struct hv_err *e)
{
    struct hv_image im = {0};
    char note[32];

    snprintf(note, sizeof note, "%d/%d", p->done, p->steps);
    if (!hv_preview_sheet(&im, &p->map, p->latents, &(struct hv_preview_sheet){.count = FRAMES, .note = note}, e))
        hv_image_write_png(&im, o.preview, e);
    hv_image_close(&im);
    return e->code;
}

/* A frame for each of the latents, as long as the video. */
static int write_video(const struct preview *p, struct hv_err *e)
{
    const int64_t h = p->latents.shape[2], w = p->latents.shape[3], zoom = w > 128 ? 2 : 512 / w / 2 * 2;      /* even, for yuv420p */
    const struct hv_video_opts vo = {.format = HV_VIDEO_MP4, .path = o.preview, .crf = 18, .width = (int)(w * zoom), .height = (int)(h * zoom),
                                     .fps = p->fps / FLOW_STRIDE};
    struct hv_image im = {0};
    struct hv_video *v = NULL;

    if (!hv_video_open(&v, &vo, e))
        for (int64_t k = 0; k < p->latents.shape[1] && !e->code; k++)
            if (!hv_preview_frame(&im, &p->map, p->latents, k, zoom, e))
                hv_video_frame(v, im.rgb, e);
    hv_video_close(v, !e->code, e);
    hv_image_close(&im);
    return e->code;
}

static void *draw(void *arg)
{
    struct preview *p = arg;

    pthread_mutex_lock(&p->lock);
    while (p->busy || !p->quit) {
        if (!p->busy) {
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        }
        struct hv_err e = {0};
        pthread_mutex_unlock(&p->lock);
        (hv_video_format_for(o.preview) == HV_VIDEO_MP4 ? write_video : write_sheet)(p, &e);
        if (e.code && !p->failed)
            fprintf(stderr, "%s: preview of step %d: %s; the render goes on\n", cli.name, p->done, e.msg);
        p->failed = e.code != 0;
        pthread_mutex_lock(&p->lock);
        p->busy = 0;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int preview_open(struct preview **out, struct denoise_job *j, double fps, struct hv_err *e)
{
    const int64_t shape[4] = {j->config->channels, j->clip.video, j->ref.shape[2], j->ref.shape[3]};
    struct preview *p;

    if (!o.preview)
        return 0;
    if (!(*out = p = calloc(1, sizeof *p)))
        return hv_fail(e, HV_ENOMEM, "preview: out of memory");
    *p = (struct preview){.j = j, .steps = j->steps, .fps = fps, .latents = hv_view(malloc((size_t)hv_shape_count(4, shape) * sizeof(float)), HV_F32, 4, shape)};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    if (!p->latents.data)
        return hv_fail(e, HV_ENOMEM, "preview: out of memory");
    if (hv_preview_map(&p->map, o.c.model, shape[0], e))
        return e->code;
    if (pthread_create(&p->thread, NULL, draw, p))
        return hv_fail(e, HV_ENOMEM, "cannot start a thread");
    p->running = 1;
    return 0;
}

void preview_show(struct preview *p, const struct denoise_now *now)
{
    if (!p || !now->clean)
        return;
    pthread_mutex_lock(&p->lock);
    while (p->busy && now->done == now->steps)          /* the last one is worth waiting for */
        pthread_cond_wait(&p->changed, &p->lock);
    if (!p->busy) {
        denoise_result(p->j, now->clean, p->latents.data);
        p->done = now->done;
        p->busy = 1;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
}

void preview_close(struct preview *p)
{
    if (!p)
        return;
    if (p->running) {
        pthread_mutex_lock(&p->lock);
        p->quit = 1;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->thread, NULL);
    }
    free(p->latents.data);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
