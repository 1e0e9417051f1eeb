// How much a model's next-token distributions change with each of its matrices. For a small change
// D of a matrix W the mean divergence of a token is half of D's square in the metric of the Fisher
// information, of which the diagonal is taken, as a product of what its rows and its columns have:
//
//     KL = 1/2 sum over i, k of g[i] c[k] D[i][k]^2,   c[k] the mean of the input's x[k]^2,
//     g[i] the mean of (d loss / d y[i])^2 of the output, where the loss is - log p(token)
//
// of tokens that are drawn from the model's own distribution (not those of the text: that would be
// another matrix). Drawn independently, their gradients' products have a mean of zero, so that the
// gradient of a whole batch is enough: the mean of its square is the sum of the tokens' squares.
// Martens, New Insights and Perspectives on the Natural Gradient Method, arXiv 1412.1193; Kunstner
// and others, Limitations of the Empirical Fisher Approximation, arXiv 1905.12558.
//
// The error of rounding is nearly independent from weight to weight, which is why the diagonal
// says so much; what it does not say is measured (search.h).
#pragma once

#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "tensor/fail.h"

// Of one matrix, or a stack of experts. With weight[i] the sum over k of c[k] W[i][k]^2, divided by
// the sum of c, and a relative error r (of the sums of c[k] D[i][k]^2, beside those of W), the
// divergence is 1/2 r sum / tokens.
struct nb_sensitive {
    struct nb_str name; // as in the plan
    uint32_t rows;      // of all experts
    double *weight;     // [rows], the caller's to fill; 0 at first
    double sum;         // of each row's weight times the square of its gradient
};

struct nb_sensitivity {
    struct nb_sensitive *items; // in the order of the plan's list of matrices
    uint32_t n;
    uint64_t tokens; // that the sums are of
};

// For each matrix of the plan, which must outlive it. -ENOMEM.
int nb_sensitivity_init(struct nb_sensitivity *s, const struct nb_plan *plan);
void nb_sensitivity_finish(struct nb_sensitivity *s); // all zero is fine
// NULL: the plan has none of this name.
struct nb_sensitive *nb_sensitivity_find(const struct nb_sensitivity *s, struct nb_str name);

// Adds a batch: n windows of `length` tokens; `draw` numbers it, and what is drawn depends on it
// alone. Blocks. Memory: the matrices of a layer and their gradients as floats, and the rows
// between all layers. The same bits on any number of threads. -ENOMEM; -EINVAL for a model that
// only embeds; with its line.
int nb_sensitivity_add(struct nb_sensitivity *s, const struct nb_plan *plan, struct nb_team *team,
                       const int32_t *tokens, uint32_t n, uint32_t length, uint64_t draw,
                       struct nb_error *ret_error);
