// Products of float matrices for training, on a team of threads (engine/cpu/threads.h).
//
// Deterministic: an element of C is summed over k in blocks of 384, the blocks in order,
// each from +0 by fma in the order of k, and added to C. Neither the threads, nor m, nor n, nor the
// ISA level changes a bit of it.
//
// Memory: packed panels lie in static memory of this file (11 MB of addresses, touched as far as a
// product needs), so no call allocates and none fails. Callers take turns: one product at a time in
// a process. Blocks until the product is done. Not to be called inside a function of the team. The
// processor must have the level that NIBBLE_ISA names: nb_kernels_best() is not NULL.
//
// The method is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, 2008).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/threads.h"

// C (m x n, row-major, ldc floats a row) = beta * C + op(A) op(B); op(A) is m x k, op(B) k x n. An
// operand that lies transposed (`ta`, `tb`) has k rows of m, or n rows of k. lda, ldb: elements
// from one row in memory to the next. With beta 0 what C held is not read. C overlaps neither
// operand.
void nb_sgemm(struct nb_team *team, bool ta, bool tb, uint32_t m, uint32_t n, uint32_t k,
              const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
              size_t ldc);

// The same of bf16 operands (the upper halves of floats), summed in fp32: the bits of nb_sgemm on
// the widened operands, but that a processor with AVX512-BF16 takes denormal inputs, sums and
// results of a block for zeros.
void nb_bgemm(struct nb_team *team, bool ta, bool tb, uint32_t m, uint32_t n, uint32_t k,
              const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, float beta, float *c,
              size_t ldc);
