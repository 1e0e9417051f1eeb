// Sequences of random tokens that run together, as benchmarks want them.
#pragma once

#include "engine/engine.h"

enum { TEST_SEQUENCES = 64 };

struct test_sequences {
    struct nb_model *model;
    struct nb_sequence *of[TEST_SEQUENCES];
    uint32_t n;
};

int test_sequences_create(struct test_sequences *s, struct nb_model *m, uint32_t n);
void test_sequences_destroy(struct test_sequences *s);
// Starts the first n of them, on `prompt` new tokens each unless that is 0, and runs until every
// one has `gen` tokens more. Seconds, or a negative errno.
double test_sequences_run(struct test_sequences *s, uint32_t n, uint32_t prompt, uint32_t gen);
