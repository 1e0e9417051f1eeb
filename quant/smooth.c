// See smooth.h.
#include "quant/smooth.h"

#include <math.h>

#define LEAST 0.01f // of the mean

struct sizes {
    const float *x, *w;
    uint32_t n;
    float least_x, least_w;
};

static float least(const float *most, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)most[i];
    return (float)(sum / n) * LEAST;
}

static void fill(void *user, float exponent, float *ret_scale)
{
    const struct sizes *s = user;
    for (uint32_t i = 0; i < s->n; i++)
        ret_scale[i] = powf(fmaxf(s->x[i], s->least_x), exponent) /
                       powf(fmaxf(s->w[i], s->least_w), 1 - exponent);
    nb_trial_centre(ret_scale, s->n);
}

int nb_smooth_search(struct nb_trial *t, const float *most_x, const float *most_w, uint32_t n,
                     float *ret_scale, struct nb_gain *ret)
{
    struct sizes s = {most_x, most_w, n, least(most_x, n), least(most_w, n)};
    *ret = (struct nb_gain){.taken = false};
    return s.least_x > 0 && s.least_w > 0 ? nb_trial_search(t, fill, &s, ret_scale, ret) : 0;
}
