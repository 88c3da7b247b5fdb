#include "text/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "core/json.h"

#define TEXT_MAX 1048576        /* ids of a sequence: far over what any model takes */

static const struct hv_prompt_config released = {
    .template =
        "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
        "1. The main content and theme of the video."
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
        "4. background environment, light, style and atmosphere."
        "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    .suffix = "\nThe person looks like<image>",
    .quality = "Authentic, Realistic, Natural, High-quality, Lens-Fixed, ",
    .negative = "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
                "bad eyes, bad limbs, distortion, blurring, Lens changes",
    .crop_start = 95,
    .text_len = 256,
    .skip_layers = 2,
};

int hv_prompt_config_parse(struct hv_prompt_config *c, const json_t *root, struct hv_err *e)
{
    const json_t *t = json_object_get(root, "hv_text");

    *c = released;
    if (t && !json_is_null(t) && !json_is_object(t))
        return hv_fail(e, HV_EINPUT, "hv_text: not an object");
    if (hv_json_str(t, "template", &c->template, e) || hv_json_str(t, "suffix", &c->suffix, e) ||
        hv_json_str(t, "quality_prefix", &c->quality, e) || hv_json_str(t, "negative_prompt", &c->negative, e) ||
        hv_json_int(t, "crop_start", 0, TEXT_MAX, &c->crop_start, e) ||
        hv_json_int(t, "text_len", 1, TEXT_MAX, &c->text_len, e) || hv_json_int(t, "skip_layers", 1, 1024, &c->skip_layers, e))
        return hv_context(e, "hv_text");
    const char *gap = strstr(c->template, "{}");
    if (!gap || strstr(gap + 2, "{}"))
        return hv_fail(e, HV_EINPUT, "hv_text: template: '{}' must stand in it once");
    return 0;
}

/* ---- the text ---- */

/* What follows the prompt: the template behind its "{}" and the suffix with its name. Owned by the caller. */
static char *tail_text(const struct hv_prompt_config *c, const char *name, struct hv_err *e)
{
    static const char person[] = "person";
    const char *rest = strstr(c->template, "{}") + 2, *at = name ? strstr(c->suffix, person) : NULL;
    const size_t size = strlen(rest) + strlen(c->suffix) + (name ? strlen(name) : 0) + 1;
    char *s;

    if (name && !at) {
        hv_fail(e, HV_EUSAGE, "the model's suffix has no 'person' that a name could replace");
        return NULL;
    }
    if (!(s = malloc(size))) {
        hv_fail(e, HV_ENOMEM, "text: out of memory");
        return NULL;
    }
    strcpy(s, rest);
    if (at) {
        strncat(s, c->suffix, (size_t)(at - c->suffix));
        strcat(s, name);
        strcat(s, at + sizeof person - 1);
    } else {
        strcat(s, c->suffix);
    }
    return s;
}

int hv_prompt_prefix_ids(const struct hv_prompt_config *c, const struct hv_bpe *b, int64_t *n, struct hv_err *e)
{
    struct hv_ids ids = {0};

    if (!hv_bpe_encode(b, c->template, (size_t)(strstr(c->template, "{}") - c->template), &ids, e))
        *n = (int64_t)ids.n;
    hv_ids_close(&ids);
    return e->code;
}

/* ---- ids ---- */

/* Drops ids before the tail until the text fits. The tail's ids are those of its own text because it begins with an added
 * token; a template of another kind is refused here rather than cut in the wrong place. */
static int shorten(struct hv_prompt *p, struct hv_ids *ids, const struct hv_ids *tail, const struct hv_prompt_config *c,
                   struct hv_err *e)
{
    const size_t t = tail->n - 1, total = (size_t)p->total;         /* without beginning-of-text */

    if (t >= (size_t)c->text_len)
        return hv_fail(e, HV_EINPUT, "hv_text: text_len %lld leaves no room: what follows a prompt has %zu tokens",
                       (long long)c->text_len, t);
    if (ids->n <= total)
        return 0;
    if (ids->n < t || memcmp(ids->id + ids->n - t, tail->id + 1, t * sizeof *ids->id))
        return hv_fail(e, HV_EINPUT, "the prompt has %zu tokens over %lld, and cannot be shortened before this template's end",
                       ids->n - total, (long long)p->total);
    p->dropped = (int64_t)(ids->n - total);
    memmove(ids->id + total - t, ids->id + ids->n - t, t * sizeof *ids->id);
    ids->n = total;
    return 0;
}

static int64_t count_of(const struct hv_ids *ids, int32_t id, int64_t *where)
{
    int64_t count = 0;

    for (size_t i = 0; i < ids->n; i++)
        if (ids->id[i] == id) {
            *where = (int64_t)i;
            count++;
        }
    return count;
}

static int check_image(const struct hv_ids *ids, const struct hv_ids *prompt, const struct hv_ids *tail, const struct hv_bpe *b,
                       int32_t image, struct hv_err *e)
{
    const char *text = hv_bpe_added(b, image);
    int64_t at;

    if (count_of(prompt, image, &at))
        return hv_fail(e, HV_EINPUT, "the prompt contains the image token '%s'", text ? text : "");
    if (count_of(tail, image, &at) > 1)
        return hv_fail(e, HV_EINPUT, "the name contains the image token '%s'", text ? text : "");
    if (count_of(ids, image, &at) != 1)
        return hv_fail(e, HV_EINPUT, "hv_text: template and suffix have %lld image tokens (id %d), expected 1",
                       (long long)count_of(ids, image, &at), image);
    return 0;
}

/* Ids of the whole text, of the prompt alone and of the tail alone. */
static int encode_parts(struct hv_ids ids[3], const struct hv_prompt_config *c, const struct hv_bpe *b, const char *prompt,
                        size_t n, const char *tail, struct hv_err *e)
{
    const size_t head = (size_t)(strstr(c->template, "{}") - c->template), end = strlen(tail);
    char *text = malloc(head + n + end + 1);

    if (!text)
        return hv_fail(e, HV_ENOMEM, "text: out of memory");
    memcpy(text, c->template, head);
    if (n)
        memcpy(text + head, prompt, n);
    memcpy(text + head + n, tail, end + 1);
    const int rc = hv_bpe_encode(b, prompt, n, &ids[1], e) || hv_bpe_encode(b, text, head + n + end, &ids[0], e) ||
                   hv_bpe_encode(b, tail, end, &ids[2], e);
    free(text);
    return rc ? e->code : 0;
}

int hv_prompt_encode(struct hv_prompt *p, const struct hv_prompt_config *c, const struct hv_bpe *b, int32_t image, int32_t pad,
                     const char *prompt, size_t n, const char *name, struct hv_err *e)
{
    struct hv_ids ids[3] = {{0}};       /* the whole, the prompt, the tail */
    char *tail = tail_text(c, name, e);

    *p = (struct hv_prompt){.total = c->text_len + c->crop_start};
    if (tail && !encode_parts(ids, c, b, prompt, n, tail, e) && !check_image(&ids[0], &ids[1], &ids[2], b, image, e) &&
        !shorten(p, &ids[0], &ids[2], c, e)) {
        p->n = (int64_t)ids[0].n;
        p->ids = malloc((size_t)p->total * sizeof *p->ids);
        if (!p->ids)
            hv_fail(e, HV_ENOMEM, "text: out of memory");
        for (int64_t i = 0; p->ids && i < p->total; i++)
            p->ids[i] = i < p->n ? ids[0].id[i] : pad;
        count_of(&ids[0], image, &p->image);
    }
    if (!e->code && p->n <= c->crop_start)
        hv_fail(e, HV_EINPUT, "hv_text: crop_start %lld, but the text has only %lld tokens", (long long)c->crop_start,
                (long long)p->n);
    for (int i = 0; i < 3; i++)
        hv_ids_close(&ids[i]);
    free(tail);
    return e->code;
}

void hv_prompt_close(struct hv_prompt *p)
{
    free(p->ids);
    *p = (struct hv_prompt){0};
}

int64_t hv_prompt_mask_len(const struct hv_prompt_config *c, int64_t image_rows)
{
    return c->text_len + image_rows - 1;
}

void hv_prompt_mask(int64_t *mask, const struct hv_prompt_config *c, const struct hv_prompt *p, int64_t image_rows)
{
    const int64_t len = hv_prompt_mask_len(c, image_rows);

    for (int64_t i = 0; i < len; i++)
        mask[i] = i < p->n - c->crop_start || i >= c->text_len;
}

int hv_prompt_encode_clip(struct hv_ids *ids, const struct hv_bpe *b, const char *prompt, size_t n, int64_t most,
                          int64_t *dropped, struct hv_err *e)
{
    *dropped = 0;
    ids->n = 0;
    if (hv_bpe_encode(b, prompt, n, ids, e))
        return e->code;
    if ((int64_t)ids->n > most) {
        *dropped = (int64_t)ids->n - most;
        ids->n = (size_t)most;
        ids->id[most - 1] = hv_bpe_last(b);
    }
    return 0;
}
