// Models: a sealed image, the device that serves it, and its way from loading to lost. The broker
// knows an image's size and seals, and never looks into it.
#include "daemon/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/broker.h"
#include "daemon/channel.h"
#include "daemon/client.h"
#include "daemon/device.h"
#include "daemon/link.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/memory.h"
#include "daemon/params.h"
#include "daemon/refusal.h"
#include "daemon/store.h"
#include "libclient/sentence.h"
#include "libclient/wire.h"

#define ALL_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static const char *const state_names[] = {"loading", "ready", "restarting", "lost"};

static void set_state(struct nb_model *model, enum nb_model_state state)
{
    model->state = state;
    snprintf(model->info.state, sizeof(model->info.state), "%s", state_names[state]);
}

struct nb_model *nb_model_by_name(struct nb_broker *broker, const char *name)
{
    struct nb_model *model;
    TAILQ_FOREACH(model, &broker->models, of_broker)
        if (!strncmp(model->info.name, name, NB_NAME_MAX))
            return model;
    return NULL;
}

// An adapter or a drafter is served as its base is.
static void take_base(struct nb_model *model, struct nb_model *base,
                      const struct nb_wire_load *request)
{
    model->base = base;
    model->params = base->params;
    model->params.kv_bytes = 0;
    memcpy(model->fallback, base->fallback, sizeof(model->fallback));
    memcpy(model->info.base, base->info.name, sizeof(model->info.base));
    model->info.scale = (double)request->scale;
    model->info.is_drafter = request->drafter != 0;
}

int nb_model_create(struct nb_device *device, const struct nb_wire_load *request,
                    struct nb_model **ret)
{
    struct nb_model *model = calloc(1, sizeof(*model));
    if (!model)
        return -ENOMEM;
    model->broker = device->broker;
    model->device = device;
    model->id = nb_broker_next_id(device->broker);
    model->params = request->params;
    nb_params_settle(&model->params);
    if (*request->base)
        take_base(model, nb_model_by_name(device->broker, request->base), request);
    model->image_fd = -1;
    snprintf(model->info.name, sizeof(model->info.name), "%s", request->name);
    snprintf(model->info.device, sizeof(model->info.device), "%s", device->info.name);
    memcpy(model->info.precision, model->params.precision, sizeof(model->info.precision));
    memcpy(model->info.kv_type, model->params.kv_type, sizeof(model->info.kv_type));
    // A fallback of the same name is there already.
    if (!model->base &&
        strncmp(request->fallback, device->info.name, sizeof(request->fallback)) != 0)
        snprintf(model->fallback, sizeof(model->fallback), "%.31s", request->fallback);
    set_state(model, NB_MODEL_LOADING);
    TAILQ_INIT(&model->channels);
    TAILQ_INSERT_TAIL(&device->broker->models, model, of_broker);
    TAILQ_INSERT_TAIL(&device->models, model, of_device);
    *ret = model;
    return 0;
}

void nb_model_destroy(struct nb_model *model)
{
    if (!model)
        return;
    TAILQ_REMOVE(&model->broker->models, model, of_broker);
    TAILQ_REMOVE(&model->device->models, model, of_device);
    if (model->image_fd >= 0)
        close(model->image_fd);
    free(model->files);
    free(model);
}

// A loader seals what it has packed; a memfd that it left open is sealed here. Either way the seals
// are looked at.
int nb_model_seal(struct nb_model *model, uint64_t max)
{
    struct stat st;
    int seals = fcntl(model->image_fd, F_GET_SEALS);
    if (seals >= 0 && (seals & ALL_SEALS) != ALL_SEALS) {
        if (fcntl(model->image_fd, F_ADD_SEALS, ALL_SEALS) < 0)
            return -errno;
        seals = fcntl(model->image_fd, F_GET_SEALS);
    }
    if (seals < 0 || (seals & ALL_SEALS) != ALL_SEALS)
        return -EPERM;
    if (fstat(model->image_fd, &st) < 0)
        return -errno;
    if (st.st_size <= 0 || (uint64_t)st.st_size > max)
        return -EFBIG;
    model->info.packed_bytes = (uint64_t)st.st_size;
    model->image_inode = st.st_ino;
    return 0;
}

int nb_model_serve(struct nb_model *model)
{
    int rc = nb_device_start(model->device);
    if (rc < 0)
        return rc;
    int image = dup(model->image_fd);
    if (image < 0)
        return -errno;
    struct nb_budget budget;
    nb_memory_budget(model, model->device, &budget);
    struct nb_link_model_add add = {
        .header = {.type = NB_LINK_MODEL_ADD, .size = sizeof(add)},
        .model = model->id,
        .params = model->params,
        .drafts = model->broker->config.drafts != 0,
        // A new worker has what the last one had, not what was left since. 0 would be no bound.
        .kv_most = model->info.kv_bytes ? model->info.kv_bytes
                   : budget.kv          ? budget.kv
                                        : 1,
    };
    add.base = model->base ? model->base->id : 0;
    add.scale = (float)model->info.scale;
    add.drafter = (uint32_t)model->info.is_drafter;
    memcpy(add.kv_most_by, budget.kv_by, sizeof(add.kv_most_by));
    memcpy(add.name, model->info.name, sizeof(add.name));
    model->served = 1;
    nb_device_send(model->device, &add, &image, 1);
    return 0;
}

static void take_info(struct nibble_model *to, const struct nibble_model *from)
{
    memcpy(to->architecture, from->architecture, sizeof(to->architecture));
    memcpy(to->type, from->type, sizeof(to->type));
    nb_sentence_clean(to->architecture, sizeof(to->architecture));
    nb_sentence_clean(to->type, sizeof(to->type));
    to->kv_bytes = from->kv_bytes;
    to->parameters = from->parameters;
    to->vocab = from->vocab;
    to->context = from->context;
    to->layers = from->layers;
    to->embedding = from->embedding;
    to->embeds_only = from->embeds_only != 0;
    to->longest_embedded = from->longest_embedded;
    to->has_template = from->has_template != 0;
    memcpy(to->template_reason, from->template_reason, sizeof(to->template_reason));
    nb_sentence_clean(to->template_reason, sizeof(to->template_reason));
}

void nb_model_ready(struct nb_model *model, const struct nb_link_model_ready *message)
{
    struct nb_refusal why;
    memcpy(why.text, message->text, sizeof(why.text));
    nb_sentence_clean(why.text, sizeof(why.text));
    int status = message->header.status;
    if (status < 0 && model->load) {
        nb_load_settle(model->load, status, &why);
        return;
    }
    if (status < 0) {
        nb_model_lose(model, why.text);
        return;
    }
    take_info(&model->info, &message->info);
    set_state(model, NB_MODEL_READY);
    if (model->load) {
        nb_log(LOG_INFO, "model %s is ready on %s", model->info.name, model->info.device);
        nb_store_put(model);
        nb_load_settle(model->load, 0, NULL);
    }
    nb_broker_tell_systemd(model->broker);
}

void nb_model_restart(struct nb_model *model)
{
    model->served = 0;
    model->info.worker_restarts++;
    set_state(model, NB_MODEL_RESTARTING);
}

static void lose_channels(struct nb_model *model, int status, const char *text)
{
    while (!TAILQ_EMPTY(&model->channels))
        nb_channel_lose(TAILQ_FIRST(&model->channels), status, text);
}

void nb_model_lose(struct nb_model *model, const char *text)
{
    char line[240];
    nb_log(LOG_ERR, "model %s is lost: %s; unload and load it again", model->info.name, text);
    snprintf(model->why, sizeof(model->why), "%s", text);
    snprintf(line, sizeof(line), "%.210s; unload it, load it again", model->why);
    set_state(model, NB_MODEL_LOST);
    lose_channels(model, NIBBLE_E_LOST, line);
}

static struct nb_model *first_of_base(const struct nb_model *base)
{
    struct nb_model *model;
    TAILQ_FOREACH(model, &base->broker->models, of_broker)
        if (model->base == base)
            break;
    return model;
}

// Its adapters and its drafter.
static void unload_those_of(const struct nb_model *base)
{
    struct nb_model *one;
    struct nb_refusal why;
    while ((one = first_of_base(base))) {
        if (!one->load) {
            nb_model_unload(one);
            continue;
        }
        int rc =
            nb_refuse(&why, NIBBLE_E_NO_MODEL, "its base \"%s\" was unloaded", base->info.name);
        nb_load_settle(one->load, rc, &why);
    }
}

uint32_t nb_model_users(const struct nb_model *model)
{
    const struct nb_model *adapter;
    uint32_t n = model->n_channels;
    TAILQ_FOREACH(adapter, &model->broker->models, of_broker)
        n += adapter->base == model ? adapter->n_channels : 0;
    return n;
}

void nb_model_unload(struct nb_model *model)
{
    struct nb_device *device = model->device;
    unload_those_of(model);
    struct nb_link_ref gone = {
        .header = {.type = NB_LINK_MODEL_REMOVE, .size = sizeof(gone)},
        .model = model->id,
    };
    lose_channels(model, NIBBLE_E_NO_MODEL, "the model was unloaded");
    if (model->served)
        nb_device_send(device, &gone, NULL, 0);
    nb_store_drop(model);
    nb_model_destroy(model);
    nb_device_rest(device);
}

void nb_models_drop_client(struct nb_client *client)
{
    struct nb_model *model = TAILQ_FIRST(&client->broker->models);
    while (model) {
        if (model->owner != client) {
            model = TAILQ_NEXT(model, of_broker);
            continue;
        }
        nb_model_unload(model); // its adapters and its drafter go too
        model = TAILQ_FIRST(&client->broker->models);
    }
}

NB_HANDLER(nb_on_unload)
{
    const struct nb_wire_unload *request = packet;
    struct nb_model *model = nb_model_by_name(client->broker, request->name);
    if (!model)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL, "no model \"%.63s\" is loaded", request->name);
    if (model->load)
        return nb_refuse(refusal, NIBBLE_E_BUSY, "\"%s\" is being loaded: cancel the load",
                         model->info.name);
    if (nb_model_users(model) && !request->force)
        return nb_refuse(refusal, NIBBLE_E_BUSY,
                         "%u clients use \"%s\": unload it by force to end their jobs",
                         nb_model_users(model), model->info.name);
    nb_log(LOG_INFO, "model %s is unloaded by user %u", model->info.name, (unsigned)client->uid);
    nb_model_unload(model);
    nb_broker_tell_systemd(client->broker);
    nb_client_done(client, request->header.type, request->header.serial);
    return 0;
}
