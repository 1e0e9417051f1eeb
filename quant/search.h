// An allocation found from costs, and refined by what is measured, because costs do not add: an
// error that an early layer makes is seen by all later ones. Pure but for what `measure` does.
//
//   1. The knapsack's choice by the costs (allocate.h).
//   2. Round by round: of each group of items, what a step away from the present choice changes is
//      measured, and beside what its costs said it is a factor to them. The knapsack chooses again;
//      what measures less stays.
//   3. Swaps: some items a step down, others up for the bytes; what measures less stays (EvoPress:
//      Sieberling and others, Towards Optimal Dynamic Model Compression via Evolutionary Search,
//      arXiv 2410.14649). Only those are measured that the costs do not speak against.
//
// Deterministic: the same measurements give the same choice.
#pragma once

#include "quant/allocate.h"
#include "tensor/fail.h"

struct nb_search {
    const struct nb_item *items;
    const uint32_t *group; // [n], below n_groups; likes with likes
    uint32_t n, n_groups;
    uint64_t budget; // bytes; 0: as few as `most` needs
    double most;     // that may be measured, where there is no budget
    uint32_t rounds, swaps;
    // Of choices for all items. -errno with its line.
    int (*measure)(void *user, const uint8_t *choice, double *ret, struct nb_error *ret_error);
    void *user;
};

struct nb_found {
    uint8_t *choice;        // [n]; the caller's room
    double first, measured; // of the costs' own choice; of this one
    uint32_t n_measurements;
};

// The most measurements that a search makes.
uint32_t nb_search_measurements(const struct nb_search *s);
// Blocks. -ENOSPC: the least is above the budget; -ERANGE: even with all bytes more than `most` is
// measured, `ret->measured`; -ENOMEM; or what `measure` returns. All but -ENOSPC and -ERANGE with
// their line.
int nb_search_run(const struct nb_search *s, struct nb_found *ret, struct nb_error *ret_error);
