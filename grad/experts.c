// Mixtures of experts: what a token's experts weigh, and the rows of all tokens sorted by expert.
#include "grad/room.h"

#include <math.h>

#include "engine/route.h"

#define ROWS 16 // of a unit of work

struct work {
    const struct nb_pass *p;
    const struct nb_step *s;
};

static void each_token(const struct nb_pass *p, const struct nb_step *s, nb_unit_fn *fn)
{
    struct work w = {p, s};
    nb_each(p->g->team, (p->rows + ROWS - 1) / ROWS, fn, &w);
}

// --- ROUTE

static void route_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_hparams *hp = &w->p->g->plan->hp;
    const uint32_t end = nb_least((unit + 1) * ROWS, w->p->rows);
    for (uint32_t row = unit * ROWS; row < end; row++)
        nb_route(hp, w->s->op->bias, nb_value(w->p, &w->s->in, row),
                 w->p->routing.expert + (size_t)row * hp->n_chosen,
                 nb_value(w->p, &w->s->out, row));
}

void nb_sort_rows(const struct nb_pass *p)
{
    const struct nb_hparams *hp = &p->g->plan->hp;
    const struct nb_routing *r = &p->routing;
    const uint32_t n = p->rows * hp->n_chosen;
    for (uint32_t e = 0; e <= hp->n_experts; e++)
        r->first[e] = 0;
    for (uint32_t i = 0; i < n; i++)
        r->first[r->expert[i] + 1]++;
    for (uint32_t e = 0; e < hp->n_experts; e++)
        r->first[e + 1] += r->first[e];
    for (uint32_t i = 0; i < n; i++) {
        r->place[i] = r->first[r->expert[i]]++;
        r->token[r->place[i]] = i / hp->n_chosen;
    }
    // Each has moved to where the next began.
    for (uint32_t e = hp->n_experts; e > 0; e--)
        r->first[e] = r->first[e - 1];
    r->first[0] = 0;
}

void nb_route_step(const struct nb_pass *p, const struct nb_step *s)
{
    each_token(p, s, route_rows);
    nb_sort_rows(p);
}

// Of weights w = scale * u, or scale * u / divisor of the sum of u: the gradients of u. Where the
// divisor follows the sum, that in u of choice c is (scale * dw_c - sum over j of dw_j w_j) / sum.
static void scale_back(const struct nb_hparams *hp, const float *weight, const float *before,
                       float *d)
{
    float sum = 0.0f, along = 0.0f;
    for (uint32_t c = 0; c < hp->n_chosen; c++) {
        sum += before[c];
        along += d[c] * weight[c];
    }
    const float divisor = hp->expert_weights_norm ? nb_route_divisor(sum) : 1.0f;
    along = hp->expert_weights_norm && divisor == sum ? along : 0.0f;
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        d[c] = (hp->expert_weights_scale * d[c] - along) / divisor;
}

static float largest(const float *x, uint32_t n)
{
    float most = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

// Softmax over all scores: p_i (d_i - sum of p d), where only the chosen have a d.
static void softmax_back(const struct nb_hparams *hp, const uint16_t *expert, const float *scores,
                         const float *before, const float *d, float *d_scores)
{
    float along = 0.0f, total = 0.0f;
    const float most = largest(scores, hp->n_experts);
    for (uint32_t i = 0; i < hp->n_experts; i++)
        total += expf(scores[i] - most);
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        along += before[c] * d[c];
    for (uint32_t i = 0; i < hp->n_experts; i++)
        d_scores[i] -= expf(scores[i] - most) / total * along;
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        d_scores[expert[c]] += before[c] * d[c];
}

static void sigmoid_back(const struct nb_hparams *hp, const uint16_t *expert, const float *scores,
                         const float *before, const float *d, float *d_scores)
{
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        d_scores[expert[c]] += before[c] * (1.0f - before[c]) * d[c];
}

static void softmax_of_chosen_back(const struct nb_hparams *hp, const uint16_t *expert,
                                   const float *scores, const float *before, const float *d,
                                   float *d_scores)
{
    float along = 0.0f;
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        along += before[c] * d[c];
    for (uint32_t c = 0; c < hp->n_chosen; c++)
        d_scores[expert[c]] += before[c] * (d[c] - along);
}

static void route_row_back(const struct nb_pass *p, const struct nb_step *s, uint32_t row)
{
    static void (*const of[])(const struct nb_hparams *hp, const uint16_t *expert,
                              const float *scores, const float *before, const float *d,
                              float *d_scores) = {
        [NB_GATING_SOFTMAX] = softmax_back,
        [NB_GATING_SIGMOID] = sigmoid_back,
        [NB_GATING_SOFTMAX_OF_CHOSEN] = softmax_of_chosen_back,
    };
    const struct nb_hparams *hp = &p->g->plan->hp;
    const float *scores = nb_value(p, &s->in, row);
    struct nb_hparams plain = *hp;
    plain.expert_weights_norm = false;
    plain.expert_weights_scale = 1.0f;
    uint16_t expert[NB_MAX_CHOSEN];
    float before[NB_MAX_CHOSEN], *d = nb_gradient(p, &s->out, row);
    nb_route(&plain, s->op->bias, scores, expert, before);
    scale_back(hp, nb_value(p, &s->out, row), before, d);
    of[hp->gating](hp, expert, scores, before, d, nb_gradient(p, &s->in, row));
}

static void route_rows_back(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t end = nb_least((unit + 1) * ROWS, w->p->rows);
    for (uint32_t row = unit * ROWS; row < end; row++)
        route_row_back(w->p, w->s, row);
}

void nb_route_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (nb_is_wanted(p, &s->in))
        each_token(p, s, route_rows_back);
}

// --- Gathering

static void gather_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t n = w->p->rows * w->p->g->plan->hp.n_chosen;
    const uint32_t end = nb_least((unit + 1) * ROWS, n);
    for (uint32_t row = unit * ROWS; row < end; row++) {
        const float *x = nb_value(w->p, &w->s->in, w->p->routing.token[row]);
        float *to = nb_value(w->p, &w->s->out, row);
        for (uint32_t i = 0; i < w->s->out.width; i++)
            to[i] = x[i];
    }
}

void nb_gather(const struct nb_pass *p, const struct nb_step *s)
{
    struct work w = {p, s};
    const uint32_t n = p->rows * p->g->plan->hp.n_chosen;
    nb_each(p->g->team, (n + ROWS - 1) / ROWS, gather_rows, &w);
}

// A token's rows are added in the order of its choice.
static void gather_rows_back(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t k = w->p->g->plan->hp.n_chosen;
    const uint32_t end = nb_least((unit + 1) * ROWS, w->p->rows);
    for (uint32_t i = unit * ROWS * k; i < end * k; i++) {
        const float *dy = nb_gradient(w->p, &w->s->out, w->p->routing.place[i]);
        float *dx = nb_gradient(w->p, &w->s->in, i / k);
        for (uint32_t j = 0; j < w->s->in.width; j++)
            dx[j] += dy[j];
    }
}

void nb_gather_back(const struct nb_pass *p, const struct nb_step *s)
{
    if (nb_is_wanted(p, &s->in))
        each_token(p, s, gather_rows_back);
}

// --- COMBINE

static void combine_rows(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_pass *p = w->p;
    const uint32_t k = p->g->plan->hp.n_chosen, end = nb_least((unit + 1) * ROWS, p->rows);
    for (uint32_t i = unit * ROWS * k; i < end * k; i++)
        p->g->kernels->add(
            nb_value(p, &w->s->out, i / k), nb_value(p, &w->s->in, p->routing.place[i]),
            nb_value(p, &w->s->other, i / k)[i % k] * w->s->op->scale, w->s->out.width);
}

void nb_combine(const struct nb_pass *p, const struct nb_step *s)
{
    nb_take_old(p, s);
    each_token(p, s, combine_rows);
}

static void combine_rows_back(void *arg, uint32_t unit, uint32_t thread)
{
    const struct work *w = arg;
    const struct nb_pass *p = w->p;
    const struct nb_step *s = w->s;
    const uint32_t k = p->g->plan->hp.n_chosen, end = nb_least((unit + 1) * ROWS, p->rows);
    for (uint32_t i = unit * ROWS * k; i < end * k; i++) {
        const uint32_t place = p->routing.place[i];
        const float *dy = nb_gradient(p, &s->out, i / k);
        const float weight = nb_value(p, &s->other, i / k)[i % k];
        if (nb_is_wanted(p, &s->in))
            p->g->kernels->add(nb_gradient(p, &s->in, place), dy, weight * s->op->scale,
                               s->out.width);
        if (nb_is_wanted(p, &s->other))
            nb_gradient(p, &s->other, i / k)[i % k] +=
                s->op->scale * p->g->loops->dot(dy, nb_value(p, &s->in, place), s->out.width);
    }
}

void nb_combine_back(const struct nb_pass *p, const struct nb_step *s)
{
    each_token(p, s, combine_rows_back);
    nb_take_old_back(p, s);
}
