// The bootstrap, and the rank correlation that needs it.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/report/stats.h"

// SplitMix64 (Steele, Lea and Flood 2014).
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void draw(uint64_t *state, uint32_t *weights, size_t n)
{
    memset(weights, 0, n * sizeof(*weights));
    for (size_t i = 0; i < n; i++)
        weights[(random_next(state) >> 32) * n >> 32]++;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct stats_interval stats_bootstrap(size_t n, uint64_t seed,
                                      double (*statistic)(void *user, const uint32_t *weights),
                                      void *user)
{
    struct stats_interval found = {NAN, NAN};
    uint32_t *weights = n > 1 ? malloc(n * sizeof(*weights)) : NULL;
    double *each = malloc(STATS_RESAMPLES * sizeof(*each));
    size_t kept = 0;
    for (size_t i = 0; weights && each && i < STATS_RESAMPLES; i++) {
        draw(&seed, weights, n);
        double value = statistic(user, weights);
        if (isfinite(value))
            each[kept++] = value;
    }
    if (kept > STATS_RESAMPLES / 2) { // a sample may have no such statistic: all of one rank
        qsort(each, kept, sizeof(*each), compare);
        found.low = each[(size_t)(0.025 * (double)(kept - 1))];
        found.high = each[(size_t)ceil(0.975 * (double)(kept - 1))];
    }
    free(weights);
    free(each);
    return found;
}

struct valued {
    double value;
    size_t pair;
};

struct stats_ranks {
    size_t n;
    struct valued *sorted[2]; // the pairs by either side's value
    double *ranks[2];         // room for stats_spearman
};

static int compare_valued(const void *a, const void *b)
{
    const struct valued *x = a, *y = b;
    return (x->value > y->value) - (x->value < y->value);
}

struct stats_ranks *stats_ranks_create(const double *a, const double *b, size_t n)
{
    struct stats_ranks *r = calloc(1, sizeof(*r));
    if (!r)
        return NULL;
    r->n = n;
    for (int side = 0; side < 2; side++) {
        const double *values = side ? b : a;
        r->sorted[side] = calloc(n + 1, sizeof(*r->sorted[side]));
        r->ranks[side] = calloc(n + 1, sizeof(*r->ranks[side]));
        if (!r->sorted[side] || !r->ranks[side]) {
            stats_ranks_destroy(r);
            return NULL;
        }
        for (size_t i = 0; i < n; i++)
            r->sorted[side][i] = (struct valued){values[i], i};
        qsort(r->sorted[side], n, sizeof(*r->sorted[side]), compare_valued);
    }
    return r;
}

void stats_ranks_destroy(struct stats_ranks *r)
{
    for (int side = 0; r && side < 2; side++) {
        free(r->sorted[side]);
        free(r->ranks[side]);
    }
    free(r);
}

static double weight_of(const uint32_t *weights, size_t i)
{
    return weights ? weights[i] : 1;
}

// Pairs of one value share the middle of the ranks that they take.
static void rank_side(const struct stats_ranks *r, int side, const uint32_t *weights)
{
    const struct valued *v = r->sorted[side];
    double before = 0;
    for (size_t i = 0, end; i < r->n; i = end) {
        double here = 0;
        for (end = i; end < r->n && v[end].value == v[i].value; end++)
            here += weight_of(weights, v[end].pair);
        for (size_t k = i; k < end; k++)
            r->ranks[side][v[k].pair] = before + (here + 1) / 2;
        before += here;
    }
}

double stats_spearman(const struct stats_ranks *r, const uint32_t *weights)
{
    double n = 0, ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < r->n; i++)
        n += weight_of(weights, i);
    rank_side(r, 0, weights);
    rank_side(r, 1, weights);
    for (size_t i = 0; i < r->n; i++) {
        double a = r->ranks[0][i] - (n + 1) / 2, b = r->ranks[1][i] - (n + 1) / 2;
        ab += weight_of(weights, i) * a * b;
        aa += weight_of(weights, i) * a * a;
        bb += weight_of(weights, i) * b * b;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}
