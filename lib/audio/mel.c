#include "audio/mel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FFT = 400, HOP = 160, HALF = FFT / 2, FREQS = HV_MEL_FREQS, BINS = HV_MEL_BINS };

static const double PI = 3.14159265358979323846;

int64_t hv_mel_blocks(int64_t n)
{
    return n > HV_MEL_SAMPLES ? (n + HV_MEL_SAMPLES - 1) / HV_MEL_SAMPLES : 1;
}

static double mel_of(double hz)
{
    return hz < 1000 ? hz * 3 / 200 : 15 + 27 * log(hz / 1000) / log(6.4);
}

static double hz_of(double mel)
{
    return mel < 15 ? mel * 200 / 3 : 1000 * exp((mel - 15) * log(6.4) / 27);
}

void hv_mel_filters(float *m)
{
    double p[BINS + 2];

    for (int i = 0; i < BINS + 2; i++)
        p[i] = hz_of(i * mel_of(8000) / (BINS + 1));
    for (int b = 0; b < BINS; b++)
        for (int k = 0; k < FREQS; k++) {
            const double up = (40.0 * k - p[b]) / (p[b + 1] - p[b]);
            const double down = (p[b + 2] - 40.0 * k) / (p[b + 2] - p[b + 1]);
            const double v = up < down ? up : down;
            m[b * FREQS + k] = (float)((v > 0 ? v : 0) * 2 / (p[b + 2] - p[b]));
        }
}

/* What every frame needs. A real frame is folded at its middle: bin k sees the cosines of x[n] + x[400 - n] and the sines of
 * x[n] - x[400 - n], n = 0..200, which halves the work. */
struct tables {
    float  window[FFT];
    float  filters[BINS * FREQS];
    int    first[BINS], last[BINS];             /* where a filter is not 0 */
    double cosine[HALF + 1][FREQS + 7], sine[HALF + 1][FREQS + 7];
};

static void fill(struct tables *t)
{
    memset(t, 0, sizeof *t);
    for (int n = 0; n < FFT; n++)
        t->window[n] = (float)(0.5 - 0.5 * cos(2 * PI * n / FFT));
    hv_mel_filters(t->filters);
    for (int b = 0; b < BINS; b++) {
        t->first[b] = FREQS;
        for (int k = 0; k < FREQS; k++)
            if (t->filters[b * FREQS + k] > 0) {
                t->first[b] = k < t->first[b] ? k : t->first[b];
                t->last[b] = k + 1;
            }
    }
    for (int n = 0; n <= HALF; n++)
        for (int k = 0; k < FREQS; k++) {
            t->cosine[n][k] = cos(2 * PI * (n * k % FFT) / FFT);
            t->sine[n][k] = sin(2 * PI * (n * k % FFT) / FFT);
        }
}

/* power[k] = |DFT(f)[k]|^2 */
static void power_spectrum(const struct tables *t, const float f[FFT], double power[FREQS])
{
    double re[FREQS] = {0}, im[FREQS] = {0};

    for (int n = 0; n <= HALF; n++) {
        const int m = FFT - n;
        const double even = n == 0 || n == HALF ? f[n] : (double)f[n] + f[m];
        const double odd = n == 0 || n == HALF ? 0 : (double)f[n] - f[m];
        const double *c = t->cosine[n], *s = t->sine[n];

        for (int k = 0; k < FREQS; k++) {
            re[k] += even * c[k];
            im[k] += odd * s[k];
        }
    }
    for (int k = 0; k < FREQS; k++)
        power[k] = re[k] * re[k] + im[k] * im[k];
}

/* Sample j of the block, mirrored at its edges (the edge itself is not repeated), silent after the sound. */
static float sample(const float *x, int64_t there, int j)
{
    j = j < 0 ? -j : j;
    j = j >= HV_MEL_SAMPLES ? 2 * (HV_MEL_SAMPLES - 1) - j : j;
    return j < there ? x[j] : 0;
}

int hv_mel_block(float *mel, const float *x, int64_t n, int64_t block, struct hv_err *e)
{
    const int64_t at = block * HV_MEL_SAMPLES;
    const int64_t there = n - at < HV_MEL_SAMPLES ? n - at : HV_MEL_SAMPLES;
    struct tables *tables = malloc(sizeof *tables);
    float top = -10;

    if (!tables)
        return hv_fail(e, HV_ENOMEM, "no memory for the tables of the spectrum");
    fill(tables);
    x += at;
#pragma omp parallel for schedule(static, 64) reduction(max : top)
    for (int t = 0; t < HV_MEL_FRAMES; t++) {
        float f[FFT];
        double power[FREQS];
        int loud = 0;

        for (int i = 0; i < FFT; i++) {
            f[i] = sample(x, there, HOP * t - HALF + i) * tables->window[i];
            loud |= f[i] != 0;
        }
        if (loud)
            power_spectrum(tables, f, power);
        for (int b = 0; b < BINS; b++) {
            double sum = 0;

            for (int k = tables->first[b]; loud && k < tables->last[b]; k++)
                sum += tables->filters[b * FREQS + k] * power[k];
            const float l = (float)log10(sum > 1e-10 ? sum : 1e-10);
            mel[t * BINS + b] = l;
            top = l > top ? l : top;
        }
    }
    for (int i = 0; i < HV_MEL_FRAMES * BINS; i++) {
        const float l = mel[i] > top - 8 ? mel[i] : top - 8;
        mel[i] = (l + 4) / 4;
    }
    free(tables);
    return 0;
}
