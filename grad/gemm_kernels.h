// What the ISA levels give to gemm.c: packing into panels, and one tile of C. Private to grad/ and
// the kernels' harness.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/kernels.h"
#include "engine/cpu/threads.h"

#define NB_GEMM_BLOCK   384 // k of one sum
#define NB_GEMM_A_LANES 8   // words of a step in a panel of A, of which a level uses `rows`

// A packed panel is [step][width] of words of 32 bits: a float, or two bf16 of neighbouring k, the
// earlier in the upper half.
struct nb_gemm_panel {
    const void *from;  // the first element
    size_t ld;         // elements from one row in memory to the next
    bool by_k;         // a row in memory has the k of one lane; else the lanes of one k
    uint32_t lanes, k; // that are there; lanes may be more than `width`
    uint32_t width;    // lanes of the panel; those that are not there become zeros
    uint32_t *to;
};

// rows x columns of C, at most a full tile: c = beta * c + the sum over all steps.
struct nb_gemm_tile {
    uint32_t steps;
    const uint32_t *a, *b; // panels
    uint32_t rows, columns;
    float beta; // 0: c is not read
    float *c;
    size_t ldc;
};

struct nb_gemm_kernels {
    const char *name;
    uint32_t rows, columns; // of a full tile; columns are a panel's width
    uint32_t step;          // k in a word
    uint32_t element;       // bytes of an operand's element
    void (*pack)(const struct nb_gemm_panel *p);
    void (*tile)(const struct nb_gemm_tile *t);
};

// The tables of a level for operands in fp32 and in bf16, NULL where this processor lacks it;
// `pairs`: those that multiply bf16 without widening it.
const struct nb_gemm_kernels *nb_sgemm_of(enum nb_isa isa);
const struct nb_gemm_kernels *nb_bgemm_of(enum nb_isa isa, bool pairs);

// The best of this processor, or of the level that NIBBLE_ISA names (as nb_kernels_best), chosen at
// the first call. NULL when that level is unknown or missing.
const struct nb_gemm_kernels *nb_sgemm_best(void);
const struct nb_gemm_kernels *nb_bgemm_best(void);

// A product as gemm.h has it, of operands as `kernels` takes them.
struct nb_gemm_product {
    const struct nb_gemm_kernels *kernels;
    bool ta, tb;
    uint32_t m, n, k;
    const void *a, *b;
    size_t lda, ldb;
    float beta;
    float *c;
    size_t ldc;
};
void nb_gemm_run(struct nb_team *team, const struct nb_gemm_product *p);
