// Intervals of measured figures: 95 %, two-sided. Knows neither models nor files.
//
// An observation is what counts as independent of the others: a window of tokens, a question, a
// passage. Tokens of one window depend on each other, so a window counts once, with its mean.
#pragma once

#include <stddef.h>
#include <stdint.h>

// NaN in both where there are too few observations for an interval.
struct stats_interval {
    double low, high;
};

double stats_mean(const double *values, size_t n);
// The standard error of the mean of n observations; NaN for n < 2. Of the means of windows of one
// size it is the cluster-robust standard error of the mean of all tokens.
double stats_error(const double *values, size_t n);
// mean ± t · error, with n - 1 degrees of freedom.
struct stats_interval stats_of_mean(const double *values, size_t n);
// Cut to the values that the figure can have.
struct stats_interval stats_cut(struct stats_interval i, double least, double most);
// The value that a Student t of df degrees of freedom stays below with probability p (0.5 to 1).
double stats_t_quantile(double p, double df);

// Of a share k / n: Wilson's score interval (1927).
struct stats_interval stats_wilson(size_t k, size_t n);
// Of the difference of two shares of the same n questions, where `gained` were right only in the
// first and `lost` only in the second: Agresti and Min's adjusted Wald interval (2005).
struct stats_interval stats_of_paired(size_t gained, size_t lost, size_t n);
// McNemar's exact two-sided p of the same.
double stats_mcnemar(size_t gained, size_t lost);

// The percentile bootstrap: the statistic of STATS_RESAMPLES samples of n observations drawn with
// replacement. weights[i] is how often a sample has observation i. The same for the same seed.
#define STATS_RESAMPLES 2000
struct stats_interval stats_bootstrap(size_t n, uint64_t seed,
                                      double (*statistic)(void *user, const uint32_t *weights),
                                      void *user);

// Spearman's rank correlation of pairs, with ties at their middle rank.
struct stats_ranks;
struct stats_ranks *stats_ranks_create(const double *a, const double *b, size_t n); // NULL: memory
void stats_ranks_destroy(struct stats_ranks *r);
// Of a sample that has pair i weights[i] times; weights NULL: each once. NaN where one side has one
// value alone.
double stats_spearman(const struct stats_ranks *r, const uint32_t *weights);
