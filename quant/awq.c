// See awq.h.
#include "quant/awq.h"

#include <math.h>

#define LEAST 0.01f // of the mean

struct sizes {
    const float *size;
    uint32_t n;
    float least;
};

static void fill(void *user, float exponent, float *ret_scale)
{
    const struct sizes *s = user;
    for (uint32_t i = 0; i < s->n; i++)
        ret_scale[i] = powf(fmaxf(s->size[i], s->least), exponent);
    nb_trial_centre(ret_scale, s->n);
}

int nb_awq_search(struct nb_trial *t, const float *size, uint32_t n, float *ret_scale,
                  struct nb_gain *ret)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)size[i];
    struct sizes s = {size, n, (float)(sum / n) * LEAST};
    *ret = (struct nb_gain){.taken = false};
    return sum > 0 ? nb_trial_search(t, fill, &s, ret_scale, ret) : 0;
}
