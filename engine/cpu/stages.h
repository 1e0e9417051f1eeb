// A plan as the CPU runs it: stages of neighbouring ops, with one barrier behind each. Here is what
// the CPU makes of the plan's ops at once; what has no such form runs op by op.
#pragma once

#include "engine/plan.h"

enum nb_cpu_stage_kind {
    NB_CPU_ROWS,     // ops on single rows: a thread takes a row through all of them
    NB_CPU_PRODUCTS, // matrices that have one input, and what follows from their results alone
    NB_CPU_ATTENTION,
};

// What runs on the results of the products, as soon as they are there.
enum nb_cpu_finish {
    NB_CPU_NOTHING,
    NB_CPU_HEADS,    // norms and RoPE of heads, KV: by whoever completes a head
    NB_CPU_ACTIVATE, // of the gate and up that one piece has made
};

struct nb_cpu_stage {
    enum nb_cpu_stage_kind kind;
    uint32_t first, n; // ops of the plan
    // Of PRODUCTS: op `first` is a norm that makes their input, and nothing else reads it.
    bool has_norm;
    uint32_t n_products;
    enum nb_cpu_finish finish; // the ops behind the products
};

// [n_ops] is room enough. Returns how many there are.
uint32_t nb_cpu_stages(const struct nb_plan *plan, struct nb_cpu_stage *ret);
