// How much memory a model may still take.
#pragma once

#include <stdint.h>

#include "daemon/lists.h"

// What one model may take beside all others: by the machine, the control groups, the limits of this
// process and the settings.
struct nb_budget {
    uint64_t weights;     // beside the KV memory that its load asked for
    uint64_t kv;          // beside its weights, as far as they are there
    char weights_by[128]; // what bounds them
    char kv_by[128];
};

void nb_memory_budget(const struct nb_model *model, const struct nb_device *device,
                      struct nb_budget *ret);
// Refuses KV memory that the load of `model` asked for and that is not left; 0: it is.
int nb_memory_admit(const struct nb_model *model, struct nb_budget *ret,
                    struct nb_refusal *refusal);
// "1.5 GiB"
const char *nb_human(uint64_t bytes, char buf[24]);
