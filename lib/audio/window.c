#include "audio/window.h"

#include <string.h>

int hv_window_step(double fps)
{
    return fps == 25 ? 2 : fps == 12.5 ? 4 : 0;
}

int64_t hv_window_frames(int64_t n, double fps)
{
    const int64_t frames = n / (fps == 12.5 ? 1280 : 640);
    return frames < 1 ? 1 : frames;
}

int64_t hv_window_reference_frames(int64_t n, double fps)
{
    const int64_t frames = n / 640, most = fps == 12.5 ? 374 : 400;
    return frames < 1 ? 1 : frames < most ? frames : most;
}

void hv_window_copy(const struct hv_windows *w, uint64_t offset, void *buf, size_t n)
{
    const uint64_t row_bytes = (uint64_t)w->width * sizeof(float);
    char *to = buf;

    while (n > 0) {
        const uint64_t row = offset / row_bytes, within = offset % row_bytes;
        const int64_t r = (int64_t)(row / HV_WINDOW_ROWS) * w->step + (int64_t)(row % HV_WINDOW_ROWS) - HV_WINDOW_LEAD;
        const size_t m = row_bytes - within < n ? (size_t)(row_bytes - within) : n;

        if (r >= 0 && r < w->rows)
            memcpy(to, (const char *)(w->states + r * w->width) + within, m);
        else
            memset(to, 0, m);
        to += m;
        offset += m;
        n -= m;
    }
}
