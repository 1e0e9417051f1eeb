// Reads the page that a serving worker writes. The worker may be compromised: each value is loaded
// once and clamped, and nothing decides on it but display and the hang watch.
#include "daemon/page.h"

#include "daemon/channel.h"
#include "daemon/device.h"
#include "daemon/link.h"
#include "daemon/model.h"

#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

static uint32_t at_most(uint32_t value, uint32_t max)
{
    return value < max ? value : max;
}

void nb_page_counts(const struct nb_device *device, struct nb_counts *ret)
{
    struct nb_counts c = device->before;
    if (device->page) {
        c.steps += LOAD(device->page->steps);
        c.mixed_steps += LOAD(device->page->mixed_steps);
        c.prefill_tokens += LOAD(device->page->prefill_tokens);
        c.decode_tokens += LOAD(device->page->decode_tokens);
    }
    *ret = c;
}

void nb_page_channel_view(const struct nb_channel *channel, struct nb_page_view *ret)
{
    const struct nb_page *page = channel->model->device->page;
    *ret = (struct nb_page_view){.tokens = channel->tokens_before};
    for (unsigned i = 0; page && i < NB_WORKER_CHANNELS; i++) {
        const struct nb_page_channel *slot = &page->channels[i];
        if (LOAD(slot->channel) != channel->key)
            continue;
        ret->sessions = at_most(LOAD(slot->sessions), 64);
        ret->jobs = at_most(LOAD(slot->jobs), 64);
        ret->tokens += LOAD(slot->tokens);
        return;
    }
}

void nb_page_model_view(const struct nb_model *model, struct nb_page_view *ret)
{
    const struct nb_page *page = model->device->page;
    *ret = (struct nb_page_view){0};
    for (unsigned i = 0; page && i < NB_WORKER_MODELS; i++) {
        const struct nb_page_model *slot = &page->models[i];
        if (LOAD(slot->model) != model->id)
            continue;
        ret->sessions = at_most(LOAD(slot->sessions), NB_WORKER_CHANNELS * 64);
        uint64_t used = LOAD(slot->kv_used_bytes), touched = LOAD(slot->kv_touched_bytes);
        ret->kv_used_bytes = used < model->info.kv_bytes ? used : model->info.kv_bytes;
        ret->kv_touched_bytes = touched < model->info.kv_bytes ? touched : model->info.kv_bytes;
        return;
    }
}
