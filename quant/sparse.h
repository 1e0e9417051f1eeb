// Which weights of a matrix become zeros: the least of them by a score, so many of the matrix, of
// each row, or of each few along a row. No files, no recipes.
//
// Scores are by magnitude |w|; by Wanda (Sun et al., arXiv 2306.11695) |w| times the root of the
// mean square of what the column is multiplied by; by SparseGPT (Frantar and Alistarh, arXiv
// 2301.00774) what error feedback sees (gptq.h).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum nb_sparse_by { NB_SPARSE_MAGNITUDE, NB_SPARSE_WANDA, NB_SPARSE_SPARSEGPT };
extern const char *const nb_sparse_names[]; // of these; the last is NULL

#define NB_SPARSE_OF 8 // the most weights of a pattern

// All zero: dense.
struct nb_sparsity {
    enum nb_sparse_by by;
    double share;      // of weights that become zeros, below 1: of a matrix; by Wanda of each row
    uint32_t keep, of; // or a pattern: so many stay of each so many along a row; of: 0, 4 or 8
};

static inline bool nb_sparsity_any(const struct nb_sparsity *s)
{
    return s->of > 0 || s->share > 0;
}

// How many of n scores are to go, of a share.
static inline uint64_t nb_sparsity_count(const struct nb_sparsity *s, uint64_t n)
{
    return (uint64_t)(s->share * (double)n);
}

// Where scores are cut: what is below `at` goes, and the first `ties` of those that equal it.
struct nb_sparse_cut {
    float at;
    uint64_t ties;
};

// Finds the cut that takes exactly the k least of many scores, which are not negative nor NaN: by
// the bytes of their bits from the highest on. Whoever counts goes over all scores, narrows, and
// does so again until the cut is found; counts may be summed in any order.
struct nb_sparse_search {
    uint64_t left; // of k, those that the bytes so far leave
    uint32_t bits;
    int shift; // below 0: found
};

#define NB_SPARSE_BINS 256

struct nb_sparse_search nb_sparse_begin(uint64_t k); // k is less than there are scores
void nb_sparse_count(const struct nb_sparse_search *s, const float *scores, size_t n,
                     uint64_t bins[NB_SPARSE_BINS]);
void nb_sparse_narrow(struct nb_sparse_search *s, const uint64_t bins[NB_SPARSE_BINS]);
// Once it is found: its `ties` are of all scores together.
struct nb_sparse_cut nb_sparse_found(const struct nb_sparse_search *s);

// All of it for scores in memory.
struct nb_sparse_cut nb_sparse_cut_of(const float *scores, size_t n, uint64_t k);
// Of each score 0, where the cut takes it, or 1.
void nb_sparse_keep(struct nb_sparse_cut cut, float *scores, size_t n);
// The same by a pattern; n is a multiple of `of`. Of equal scores the first go.
void nb_sparse_pattern(uint32_t keep, uint32_t of, float *scores, size_t n);
