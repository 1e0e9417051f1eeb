// Which type each of a plan's matrices has while a judge compares: encodes a source's tensors, puts
// them in the plan's place (nb_plan_replace), and keeps what was encoded, as far as the memory
// goes, because a search comes back to it. One thread calls.
#pragma once

#include "engine/cpu/threads.h"
#include "engine/plan.h"
#include "quant/importance.h"
#include "tensor/source.h"

struct nb_variant;

struct nb_varying {
    const struct nb_source *source;
    const struct nb_importance *importance;
    struct nb_plan *plan; // of the source, to be destroyed first
    struct nb_team *team;
    uint64_t bytes; // that may be kept beside what the plan has
};

int nb_variant_create(const struct nb_varying *how, struct nb_variant **ret); // -ENOMEM
void nb_variant_destroy(struct nb_variant *v); // NULL is fine; the plan may not run any more

// The source's tensor of this number gets this type, by the encoder's search, as compress.h writes
// it. Blocks. -errno with its line.
int nb_variant_set(struct nb_variant *v, uint32_t tensor, uint32_t type,
                   struct nb_error *ret_error);
