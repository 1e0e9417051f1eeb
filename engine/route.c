// The choice of experts, as every part of the engine that computes it on the host has it.
#include "engine/route.h"

#include <math.h>

// In double precision, so that what is stored does not depend on the machine's exp.
static double softmax_sum(const float *x, uint32_t n, double most)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return sum;
}

static double largest(const float *x, uint32_t n)
{
    double most = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

// The chosen ones, best first; of equals the first. A score that is no number is never chosen
// before one that is.
static void choose(const float *scores, const float *bias, uint32_t n, uint32_t k, uint16_t *ret)
{
    float best[NB_MAX_CHOSEN];
    for (uint32_t i = 0, have = 0; i < n; i++) {
        float s = scores[i] + (bias ? bias[i] : 0.0f);
        uint32_t at = have;
        s = s == s ? s : -INFINITY;
        while (at > 0 && s > best[at - 1])
            at--;
        if (at >= k)
            continue;
        for (uint32_t j = have < k ? have++ : k - 1; j > at; j--) {
            best[j] = best[j - 1];
            ret[j] = ret[j - 1];
        }
        best[at] = s;
        ret[at] = (uint16_t)i;
    }
}

float nb_route_divisor(float sum)
{
    return sum < 0x1p-14f ? 0x1p-14f : sum;
}

void nb_route(const struct nb_hparams *hp, const float *bias, const float *scores,
              uint16_t *ret_expert, float *ret_weight)
{
    const uint32_t n = hp->n_experts, k = hp->n_chosen;
    float p[NB_MAX_EXPERTS], chosen[NB_MAX_CHOSEN], sum = 0.0f;
    double most = largest(scores, n), total = softmax_sum(scores, n, most);
    for (uint32_t i = 0; i < n; i++)
        p[i] = hp->gating == NB_GATING_SOFTMAX   ? (float)(exp(scores[i] - most) / total)
               : hp->gating == NB_GATING_SIGMOID ? (float)(1 / (1 + exp(-(double)scores[i])))
                                                 : scores[i];
    choose(p, bias, n, k, ret_expert);
    for (uint32_t c = 0; c < k; c++)
        chosen[c] = p[ret_expert[c]];
    most = largest(chosen, k);
    total = softmax_sum(chosen, k, most);
    for (uint32_t c = 0; c < k; c++) {
        ret_weight[c] = hp->gating == NB_GATING_SOFTMAX_OF_CHOSEN
                            ? (float)(exp(chosen[c] - most) / total)
                            : chosen[c];
        sum += ret_weight[c];
    }
    for (uint32_t c = 0; c < k; c++) {
        if (hp->expert_weights_norm)
            ret_weight[c] /= nb_route_divisor(sum);
        ret_weight[c] *= hp->expert_weights_scale;
    }
}
