// The end of a device and what becomes of its models: each goes to the device that its load named
// for this, with its image and its channels, and the clients are told; or it is lost. Nothing moves
// that the administrator has not named a place for.
#include "daemon/move.h"

#include <stdio.h>
#include <string.h>

#include "daemon/broker.h"
#include "daemon/channel.h"
#include "daemon/device.h"
#include "daemon/link.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/memory.h"
#include "daemon/model.h"
#include "daemon/refusal.h"
#include "daemon/split.h"
#include "daemon/store.h"

static uint32_t models_of(const struct nb_device *device)
{
    const struct nb_model *model;
    uint32_t n = 0;
    TAILQ_FOREACH(model, &device->models, of_device)
        n++;
    return n;
}

uint32_t nb_device_channels(const struct nb_device *device)
{
    const struct nb_model *model;
    uint32_t n = 0;
    TAILQ_FOREACH(model, &device->models, of_device)
        n += model->n_channels;
    return n;
}

static uint64_t kv_left(const struct nb_model *model, const struct nb_device *to)
{
    struct nb_budget budget;
    nb_memory_budget(model, to, &budget);
    return budget.kv;
}

// Why the fallback cannot have the model; NULL: it can.
static const char *unfit(const struct nb_model *model, const struct nb_device *to)
{
    if (!to)
        return "is not there";
    if (!strcmp(to->info.state, "lost"))
        return "is lost too";
    if (!nb_device_usable(to))
        return "cannot be used";
    if (model->params.kv_bytes > kv_left(model, to))
        return "has too little memory left for its KV";
    if (model->base && model->base->device != to)
        return "does not have its base";
    if (models_of(to) >= NB_WORKER_MODELS)
        return "has all the models that it takes";
    if (nb_device_channels(to) + model->n_channels > model->broker->worker_channels)
        return "has not enough channels left";
    return NULL;
}

static int take_over(struct nb_model *model, struct nb_device *to)
{
    struct nb_channel *channel, *next;
    nb_store_drop(model);
    TAILQ_REMOVE(&model->device->models, model, of_device);
    TAILQ_INSERT_TAIL(&to->models, model, of_device);
    model->device = to;
    memcpy(model->info.device, to->info.name, sizeof(model->info.device));
    memset(model->fallback, 0, sizeof(model->fallback));
    model->info.kv_bytes = 0; // as much as is left there
    nb_store_put(model);
    nb_model_restart(model);
    if (to->restart)
        return 0; // its next worker is told of all its models
    int rc = nb_model_serve(model);
    for (channel = TAILQ_FIRST(&model->channels); rc >= 0 && channel; channel = next) {
        next = TAILQ_NEXT(channel, of_model);
        nb_channel_rebind(channel);
    }
    return rc;
}

void nb_model_flee(struct nb_model *model, const char *why)
{
    struct nb_refusal refusal;
    struct nb_device *to = NULL;
    (void)nb_device_named(model->broker, model->fallback, &to, &refusal);
    const char *not_there = *model->fallback ? unfit(model, to) : NULL;
    char text[216];
    if (model->load) {
        int rc = nb_refuse(&refusal, NIBBLE_E_LOST, "%s", why);
        nb_load_settle(model->load, rc, &refusal);
        return;
    }
    if (to && !not_there) {
        nb_log(LOG_WARNING, "model %s moves from %s to %s, with %u channels", model->info.name,
               model->info.device, to->info.name, model->n_channels);
        if (take_over(model, to) >= 0)
            return;
        not_there = "has no worker";
    }
    if (not_there)
        snprintf(text, sizeof(text), "%.130s; its fallback %.31s %s", why, model->fallback,
                 not_there);
    else
        snprintf(text, sizeof(text), "%s", why);
    nb_model_lose(model, text);
}
