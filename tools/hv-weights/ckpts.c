/* The official download, and what is made of it: one pass over a table of what may lie where. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-weights.h"
#include "io/listing.h"

/* Where the weights of a part may be, the best first; a pattern of fnmatch in its last component. */
static const struct { const char *kind, *path; } places[] = {
    {"transformer", "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt"},
    {"transformer", "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states_fp8.pt"},
    {"transformer", "transformers/mp_rank_00_model_states.pt"},
    {"transformer", "transformers/mp_rank_00_model_states_fp8.pt"},
    {"transformer", "hunyuan_video_avatar_720_bf16.safetensors"},
    {"transformer", "hunyuan_video_avatar_720_quanto_bf16_int8.safetensors"},
    {"transformer", "hunyuan_video_avatar_720*.safetensors"},
    {"transformer", "*avatar*.gguf"},
    {"vae", "hunyuan-video-t2v-720p/vae/pytorch_model.pt"},
    {"vae", "vae/pytorch_model.pt"},
    {"vae", "hunyuan_video_custom_VAE_fp32.safetensors"},
    {"vae", "hunyuan_video_custom_VAE*.safetensors"},
    {"text_encoder", "llava_llama_image/model.safetensors.index.json"},
    {"text_encoder", "llava_llama_image/model-00001-of-*.safetensors"},
    {"text_encoder", "llava_llama_image/model.safetensors"},
    {"text_encoder", "llava-llama-3-8b/llava-llama-3-8b-v1_1_vlm_*.safetensors"},
    {"text_encoder", "llava-llama-3-8b-v1_1_vlm_*.safetensors"},
    {"text_encoder_2", "text_encoder_2/model.safetensors"},
    {"text_encoder_2", "text_encoder_2/pytorch_model.bin"},
    {"text_encoder_2", "clip_vit_large_patch14/model.safetensors"},
    {"text_encoder_2", "clip_vit_large_patch14/pytorch_model.bin"},
    {"audio_encoder", "whisper-tiny/model.safetensors"},
    {"audio_encoder", "whisper-tiny/pytorch_model.bin"},
    {"face_detector", "det_align/detface.pt"},
};

/* What goes along, from beside the weights or from the folder that the official download has them in. */
static const struct { const char *kind, *file, *folder; int needed; } along[] = {
    {"text_encoder", "tokenizer.json", "llava_llama_image", 1},
    {"text_encoder", "tokenizer_config.json", "llava_llama_image", 0},
    {"text_encoder_2", "vocab.json", "text_encoder_2", 1},
    {"text_encoder_2", "merges.txt", "text_encoder_2", 1},
};

static int is_file(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISREG(st.st_mode);
}

/* The file of a place, the first by name where it is a pattern. */
static int find_place(char out[HV_PATH], const char *base, const char *place)
{
    char folder[HV_PATH];
    struct dirent **names = NULL;
    const char *slash = strrchr(place, '/'), *last = slash ? slash + 1 : place;
    int found = 0;

    if (!strpbrk(last, "*?"))
        return snprintf(out, HV_PATH, "%s/%s", base, place) < HV_PATH && is_file(out);
    if (snprintf(folder, sizeof folder, "%s/%.*s", base, (int)(last - place), place) >= HV_PATH)
        return 0;
    const int n = scandir(folder, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        if (!found && !fnmatch(last, names[i]->d_name, FNM_PERIOD))
            found = snprintf(out, HV_PATH, "%s/%s", folder, names[i]->d_name) < HV_PATH && is_file(out);
        free(names[i]);
    }
    free(names);
    return found;
}

/* The weights of a kind. Asked for fp8, the file that is fp8 already comes first. */
static int find_weights(char out[HV_PATH], const char *base, const struct hv_kind *kind, int want_fp8)
{
    for (int pass = want_fp8 ? 0 : 1; pass < 2; pass++)
        for (size_t i = 0; i < sizeof places / sizeof *places; i++)
            if (!strcmp(places[i].kind, kind->name) && (pass || strstr(places[i].path, "_fp8")) &&
                find_place(out, base, places[i].path))
                return 1;
    return 0;
}

/* Temporaries of an import that was killed so that it could not clean up. The folder is locked: they are nobody's. */
static void sweep(const char *folder)
{
    char path[HV_PATH];
    struct dirent **names = NULL;
    const int n = scandir(folder, &names, NULL, alphasort);

    for (int i = 0; i < n; i++) {
        static const char *const patterns[] = {".model.??????.safetensors", ".config.??????.json", ".tokenizer*.??????.json",
                                               ".vocab.??????.json", ".merges.??????.txt"};
        for (size_t k = 0; k < sizeof patterns / sizeof *patterns; k++)
            if (!fnmatch(patterns[k], names[i]->d_name, 0) &&
                snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name) < HV_PATH)
                unlink(path);
        free(names[i]);
    }
    free(names);
}

/* Tokenizers. Returns how many that are needed are not there, -1: a failure in e. */
static int copy_along(const char *base, const struct hv_kind *kind, const char *weights, const char *to, char *missing,
                      size_t size, struct hv_err *e)
{
    char from[HV_PATH], into[HV_PATH];
    size_t n = 0;
    int lacking = 0;

    for (size_t i = 0; i < sizeof along / sizeof *along; i++) {
        const char *slash = strrchr(weights, '/');
        if (strcmp(along[i].kind, kind->name))
            continue;
        int found = snprintf(from, sizeof from, "%.*s%s", slash ? (int)(slash - weights + 1) : 0, weights, along[i].file) <
                    HV_PATH && is_file(from);
        if (!found)
            found = snprintf(from, sizeof from, "%s/%s/%s", base, along[i].folder, along[i].file) < HV_PATH && is_file(from);
        if (found && (join(into, to, along[i].file, e) || copy_file(from, into, e)))
            return -1;
        if (!found && along[i].needed && n < size) {
            n += (size_t)snprintf(missing + n, size - n, "%s%s", n ? ", " : "", along[i].file);
            lacking++;
        }
    }
    return lacking;
}

static int lock_folder(const char *path, int *fd, struct hv_err *e)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    if (flock(*fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return hv_fail(e, HV_EIO, "%s: another import is writing into it", path);
    return 0;
}

static void print_row(const char *part, const char *from, const struct imported *d)
{
    printf("%-15s ", part);
    const int width = hv_print_safe(stdout, from);
    printf("%*s  %-22s %-14s %6d %14llu  %s%s\n", width < 60 ? 60 - width : 0, "", d->how, d->dtypes, d->tensors,
           (unsigned long long)d->bytes, d->sha256, d->kept ? "  (there already)" : "");
    fflush(stdout);
}

int import_folder(const struct hv_cli *cli, const struct import_options *o, const char *from, const char *to, struct hv_err *e)
{
    char base[HV_PATH], weights[HV_PATH], folder[HV_PATH], missing[400] = "", lacks[200];
    struct import_options mine = *o;
    size_t n = 0;
    int rc, lock = -1, absent = 0;

    if (!is_folder(from))
        return hv_fail(e, HV_EIO, "%s: is no folder: expected the ckpts/ of the download", from);
    rc = join(base, from, "ckpts", e);
    if (!rc && !is_folder(base))
        snprintf(base, sizeof base, "%s", from);
    if (!rc)
        rc = make_folder(to, e);
    if (!rc)
        rc = lock_folder(to, &lock, e);
    if (!rc)
        printf("%-15s %-60s  %-22s %-14s %6s %14s  %s\n", "part", "found", "format", "dtypes", "number", "bytes",
               "sha256 of the data");
    for (const struct hv_kind *k = hv_kinds; k->name && !rc; k++) {
        const char *const path = weights;
        struct imported done;
        *lacks = 0;
        if (!find_weights(weights, base, k, o->v.q == HV_F8_E4M3)) {
            printf("%-15s missing\n", k->name);
            absent++;
            if (n < sizeof missing)
                n += (size_t)snprintf(missing + n, sizeof missing - n, "%s%s", n ? ", " : "", k->name);
            continue;
        }
        mine.script = o->script || !strcmp(k->name, "face_detector");   /* the download has it as a TorchScript archive */
        rc = join(folder, to, k->name, e);
        if (!rc && is_folder(folder))
            sweep(folder);
        if (!rc)
            rc = import_part(cli, &mine, k, &path, 1, folder, &done, e);
        if (rc)
            break;
        print_row(k->name, weights + strlen(base) + 1, &done);
        const int lacking = copy_along(base, k, weights, folder, lacks, sizeof lacks, e);
        if (lacking < 0)
            rc = e->code;
        if (lacking > 0) {
            printf("%-15s missing: %s\n", k->name, lacks);
            absent += lacking;
            if (n < sizeof missing)
                n += (size_t)snprintf(missing + n, sizeof missing - n, "%s%s of the %s", n ? ", " : "", lacks, k->name);
        }
    }
    if (lock >= 0)
        close(lock);
    if (!rc && absent)
        rc = hv_fail(e, HV_EINPUT, "%s: not all of a model is there; missing: %s", base, missing);
    return rc;
}
