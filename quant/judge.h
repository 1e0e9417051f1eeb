// What a change of a model costs: the mean Kullback-Leibler divergence of its next-token
// distributions from the float model's, sum of p (log p - log q), over windows of text that nothing
// was tuned on. Natural logarithms, a mean over tokens. The float model is run once, and its
// probabilities are kept in bfloat16: that shifts a divergence by some 1e-6 (tests/unit).
#pragma once

#include "engine/cpu/threads.h"
#include "quant/runner.h"
#include "quant/windows.h"

#define NB_JUDGE_BYTES (UINT64_C(512) << 20) // of probabilities, at most

struct nb_judge;

struct nb_judging {
    const struct nb_source *source;   // the float model
    struct nb_image *image;           // it, packed already; NULL: it is packed
    const struct nb_windows *windows; // held out; borrowed
    const struct nb_cpu_allowed *allowed;
    struct nb_team *team;
};

struct nb_divergence {
    double mean;
    double error; // its standard error, a window being an observation; 0 of one window
    uint32_t tokens;
};

// So many windows of `length` tokens may be judged on, for a vocabulary of that size.
uint32_t nb_judge_room(uint32_t vocab, uint32_t length);

// Runs the source. Blocks. -EINVAL: the model only embeds,
// or there are more windows than fit; what nb_runner_open refuses; with its line.
int nb_judge_open(const struct nb_judging *how, struct nb_judge **ret, struct nb_error *ret_error);
void nb_judge_close(struct nb_judge *j); // NULL is fine

// The source's own plan: whose matrices were replaced is measured next.
struct nb_plan *nb_judge_plan(const struct nb_judge *j);

// Of the plan as it is now. Blocks. -ERANGE: its logits are not finite numbers.
int nb_judge_measure(struct nb_judge *j, struct nb_divergence *ret, struct nb_error *ret_error);
// The last measurement's windows: [windows->n], the mean of each.
void nb_judge_windows(const struct nb_judge *j, double *ret);
// Of another file of the same model.
int nb_judge_measure_source(struct nb_judge *j, const struct nb_source *other,
                            struct nb_divergence *ret, struct nb_error *ret_error);
