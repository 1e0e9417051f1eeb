// What a worker shows in its page of shared memory, clamped: the worker may be compromised.
#pragma once

#include <stdint.h>

#include "daemon/device.h"
#include "daemon/lists.h"

struct nb_page_view {
    uint32_t sessions, jobs;
    uint64_t tokens, kv_used_bytes, kv_touched_bytes;
};

void nb_page_counts(const struct nb_device *device, struct nb_counts *ret);
void nb_page_channel_view(const struct nb_channel *channel, struct nb_page_view *ret);
void nb_page_model_view(const struct nb_model *model, struct nb_page_view *ret);
