// Which of its types each tensor gets, so that the costs' sum is least within a number of bytes: a
// multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11).
// Pure functions: the same choices on every machine with IEEE doubles.
#pragma once

#include <stdint.h>

#define NB_OPTIONS_MAX 32 // of an item

struct nb_option {
    uint64_t bytes;
    double cost; // >= 0, finite
};

// A tensor: its options have different bytes, fewer first.
struct nb_item {
    const struct nb_option *options;
    uint32_t n; // 1 to NB_OPTIONS_MAX
};

// The least and the most that a choice for each item takes.
uint64_t nb_allocate_least(const struct nb_item *items, uint32_t n);
uint64_t nb_allocate_most(const struct nb_item *items, uint32_t n);
uint64_t nb_allocate_bytes(const struct nb_item *items, uint32_t n, const uint8_t *choice);
double nb_allocate_cost(const struct nb_item *items, uint32_t n, const uint8_t *choice);

// ret_choice: [n], the option of each item. Exact where the bytes have a common divisor of which
// the budget beyond the least has at most 32768; else sums of bytes are rounded up to so many
// parts, and what is left is filled by single steps, the best first. `factor`, [n] or NULL:
// multiplies each item's costs. -ENOSPC: the least is above the budget; -ENOMEM.
int nb_allocate(const struct nb_item *items, const double *factor, uint32_t n, uint64_t budget,
                uint8_t *ret_choice);

// The options of an item on the lower convex hull of cost over bytes, by bytes: the steps by which
// one goes from few bytes to many. Their number.
uint32_t nb_item_hull(const struct nb_item *item, uint8_t ret[NB_OPTIONS_MAX]);
