// See search.h.
#include "quant/search.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

#define SIZES     8    // measurements that look for the bytes which a divergence needs
#define NEAR      0.97 // of that divergence: near enough
#define FACTOR    5.0  // a measured group's, at most, and its inverse
#define STEPS     4    // of a swap, at most
#define TRIES     64   // of swaps that the costs speak against, before the search ends
#define ALLOWANCE 1.01 // of the present choice's costs, for a swap that is measured
#define SEED      UINT64_C(0x6e6962626c65)

struct state {
    const struct nb_search *s;
    struct nb_found *found;
    struct nb_error *error;
    uint64_t budget;
    double *factor; // [n], to the costs
    uint8_t *trial; // [n]
    uint8_t (*hull)[NB_OPTIONS_MAX], *n_hull;
    uint64_t drawn;
};

uint32_t nb_search_measurements(const struct nb_search *s)
{
    return 1 + (s->budget ? 0 : 2 * SIZES) + s->rounds * (s->n_groups + 1) + s->swaps;
}

static int measure(struct state *t, const uint8_t *choice, double *ret)
{
    t->found->n_measurements++;
    return t->s->measure(t->s->user, choice, ret, t->error);
}

static double costs(const struct state *t, const uint8_t *choice)
{
    double cost = 0;
    for (uint32_t i = 0; i < t->s->n; i++)
        cost += t->factor[i] * t->s->items[i].options[choice[i]].cost;
    return cost;
}

static int choose(const struct state *t, uint64_t budget, uint8_t *ret)
{
    int rc = nb_allocate(t->s->items, t->factor, t->s->n, budget, ret);
    return rc == -ENOMEM ? nb_fail(t->error, rc, "no memory for the allocation") : rc;
}

// The trial takes the present choice's place where it measured less.
static void take(struct state *t, double measured)
{
    if (measured < t->found->measured) {
        t->found->measured = measured;
        memcpy(t->found->choice, t->trial, t->s->n);
    }
}

// ---- Steps along the hull

// The next option from `option` on, up or down; itself where there is none.
static uint8_t next_of(const struct state *t, uint32_t item, uint8_t option, bool up)
{
    const uint8_t *hull = t->hull[item];
    const uint32_t n = t->n_hull[item];
    if (up) {
        for (uint32_t i = 0; i < n; i++)
            if (hull[i] > option)
                return hull[i];
    } else {
        for (uint32_t i = n; i-- > 0;)
            if (hull[i] < option)
                return hull[i];
    }
    return option;
}

static uint64_t bytes_of(const struct state *t, uint32_t item, uint8_t option)
{
    return t->s->items[item].options[option].bytes;
}

// ---- Groups

// A group a step down, where any of it can go, else up. False: neither.
static bool shift(struct state *t, uint32_t group)
{
    bool moved = false;
    for (int up = 0; up < 2 && !moved; up++) {
        memcpy(t->trial, t->found->choice, t->s->n);
        for (uint32_t i = 0; i < t->s->n; i++) {
            if (t->s->group[i] == group)
                t->trial[i] = next_of(t, i, t->trial[i], up);
            moved |= t->trial[i] != t->found->choice[i];
        }
    }
    return moved;
}

static int measure_group(struct state *t, uint32_t group)
{
    double measured;
    if (!shift(t, group))
        return 0;
    int rc = measure(t, t->trial, &measured);
    if (rc < 0)
        return rc;
    const double said = costs(t, t->trial) - costs(t, t->found->choice);
    const double ratio = said != 0 ? (measured - t->found->measured) / said : 1;
    for (uint32_t i = 0; i < t->s->n; i++)
        if (t->s->group[i] == group)
            t->factor[i] *= ratio > FACTOR ? FACTOR : ratio > 1 / FACTOR ? ratio : 1 / FACTOR;
    return 0;
}

// Makes the costs' sum what is measured.
static void scale_costs(struct state *t)
{
    const double cost = costs(t, t->found->choice);
    for (uint32_t i = 0; i < t->s->n && cost > 0 && t->found->measured > 0; i++)
        t->factor[i] *= t->found->measured / cost;
}

static int do_round(struct state *t)
{
    double measured;
    int rc = 0;
    scale_costs(t);
    for (uint32_t g = 0; g < t->s->n_groups && rc == 0; g++)
        rc = measure_group(t, g);
    if (rc == 0)
        rc = choose(t, t->budget, t->trial);
    if (rc < 0 || !memcmp(t->trial, t->found->choice, t->s->n))
        return rc;
    rc = measure(t, t->trial, &measured);
    if (rc == 0)
        take(t, measured);
    return rc;
}

// ---- Swaps

static uint32_t draw(struct state *t, uint32_t below)
{
    return below ? (uint32_t)(nb_random(SEED, t->drawn++) % below) : 0;
}

// So many random items a step down, and others up as far as the bytes go.
static void swap(struct state *t)
{
    const uint32_t n = t->s->n, steps = 1 + draw(t, STEPS);
    memcpy(t->trial, t->found->choice, n);
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t item = draw(t, n);
        t->trial[item] = next_of(t, item, t->trial[item], false);
    }
    uint64_t left = t->budget - nb_allocate_bytes(t->s->items, n, t->trial);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t item = draw(t, n);
        const uint8_t old = t->trial[item], option = next_of(t, item, old, true);
        const uint64_t more = bytes_of(t, item, option) - bytes_of(t, item, old);
        if (old != t->found->choice[item] || more > left)
            continue;
        t->trial[item] = option;
        left -= more;
    }
}

static int do_swap(struct state *t, bool *ret_over)
{
    double measured;
    uint32_t tries = 0;
    const double allowed = ALLOWANCE * costs(t, t->found->choice);
    do
        swap(t);
    while (++tries < TRIES &&
           (costs(t, t->trial) > allowed || !memcmp(t->trial, t->found->choice, t->s->n)));
    *ret_over = tries == TRIES;
    if (*ret_over)
        return 0;
    int rc = measure(t, t->trial, &measured);
    if (rc == 0)
        take(t, measured);
    return rc;
}

// ---- The bytes that a divergence needs

// By the costs, which are `scale` times too small.
static int find_bytes(struct state *t, double scale, uint64_t *ret)
{
    uint64_t low = nb_allocate_least(t->s->items, t->s->n);
    uint64_t high = nb_allocate_most(t->s->items, t->s->n);
    while (low < high - high / 1000) {
        const uint64_t middle = low + (high - low) / 2;
        int rc = choose(t, middle, t->trial);
        if (rc < 0)
            return rc;
        if (scale * costs(t, t->trial) > t->s->most)
            low = middle + 1;
        else
            high = middle;
    }
    *ret = high;
    return choose(t, high, t->trial);
}

// What the choice with all bytes measures is the first that is below `most`, or nothing is.
static int begin_with_all(struct state *t)
{
    t->budget = nb_allocate_most(t->s->items, t->s->n);
    int rc = choose(t, t->budget, t->found->choice);
    if (rc == 0)
        rc = measure(t, t->found->choice, &t->found->measured);
    return rc == 0 && t->found->measured > t->s->most ? -ERANGE : rc;
}

// Keeps the fewest bytes that measured no more than `most`.
static int shrink(struct state *t)
{
    double measured = 0, cost = costs(t, t->found->choice);
    double scale = cost > 0 ? t->found->measured / cost : 1;
    int rc = 0;
    for (uint32_t i = 0; i < SIZES && rc == 0; i++) {
        uint64_t bytes;
        rc = find_bytes(t, scale, &bytes);
        if (rc == 0)
            rc = measure(t, t->trial, &measured);
        if (rc < 0)
            break;
        cost = costs(t, t->trial);
        scale = cost > 0 ? measured / cost * 2 / (1 + NEAR) : scale;
        if (measured > t->s->most || bytes > t->budget)
            continue;
        t->budget = bytes;
        t->found->measured = measured;
        memcpy(t->found->choice, t->trial, t->s->n);
        if (measured > NEAR * t->s->most)
            break;
    }
    return rc;
}

// ---- All

static int begin(struct state *t)
{
    int rc;
    t->budget = t->s->budget;
    if (!t->s->budget) {
        rc = begin_with_all(t);
        return rc == 0 ? shrink(t) : rc;
    }
    rc = choose(t, t->s->budget, t->found->choice);
    return rc == 0 ? measure(t, t->found->choice, &t->found->measured) : rc;
}

static int run(struct state *t)
{
    bool over = false;
    int rc = begin(t);
    t->found->first = t->found->measured;
    for (uint32_t i = 0; i < t->s->rounds && rc == 0; i++)
        rc = do_round(t);
    if (rc == 0 && !t->s->budget && t->s->rounds)
        rc = shrink(t);
    for (uint32_t i = 0; i < t->s->swaps && rc == 0 && !over; i++)
        rc = do_swap(t, &over);
    return rc;
}

static void finish(struct state *t)
{
    free(t->factor);
    free(t->trial);
    free(t->hull);
    free(t->n_hull);
}

int nb_search_run(const struct nb_search *s, struct nb_found *ret, struct nb_error *ret_error)
{
    struct state t = {.s = s, .found = ret, .error = ret_error};
    t.factor = calloc(s->n + 1, sizeof(*t.factor));
    t.trial = calloc(s->n + 1, 1);
    t.hull = calloc(s->n + 1, sizeof(*t.hull));
    t.n_hull = calloc(s->n + 1, 1);
    if (!t.factor || !t.trial || !t.hull || !t.n_hull) {
        finish(&t);
        return nb_fail(ret_error, -ENOMEM, "no memory for the allocation");
    }
    for (uint32_t i = 0; i < s->n; i++) {
        t.factor[i] = 1;
        t.n_hull[i] = (uint8_t)nb_item_hull(&s->items[i], t.hull[i]);
    }
    ret->n_measurements = 0;
    int rc = run(&t);
    finish(&t);
    return rc;
}
