// How much memory a model may still take: of the machine, of the control groups that the service
// lives in, and by the settings. Weights and KV memory are one account.
#include "daemon/memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "daemon/broker.h"
#include "daemon/image.h"
#include "daemon/model.h"
#include "daemon/page.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "daemon/split.h"
#include "machine/bounds.h"

const char *nb_human(uint64_t bytes, char buf[24])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    unsigned u = 0;
    while (value >= 1024 && u + 1 < sizeof(units) / sizeof(*units)) {
        value /= 1024;
        u++;
    }
    snprintf(buf, 24, u ? "%.1f %s" : "%.0f %s", value, units[u]);
    return buf;
}

// KV memory lies in the host's memory, unless the device has its own: then its driver's account
// decides. One made of several has the CPU among them, as a rule.
static int has_own_memory(const struct nb_device *device)
{
    return !strcmp(device->info.kind, "gpu") && !nb_device_is_split(device);
}

// What a model was told it may have as KV memory, once its file is packed.
static uint64_t kv_of(const struct nb_model *model)
{
    if (model->image_fd < 0)
        return 0;
    return model->info.kv_bytes ? model->info.kv_bytes : model->params.kv_bytes;
}

static uint64_t others_take(const struct nb_model *except)
{
    const struct nb_broker *broker = except->broker;
    uint64_t taken = nb_images_bytes(broker);
    const struct nb_model *model;
    TAILQ_FOREACH(model, &broker->models, of_broker)
        taken += model != except ? kv_of(model) : 0;
    const struct nb_worker *worker;
    TAILQ_FOREACH(worker, &broker->workers, entry)
        taken += worker->held_bytes;
    return taken;
}

// KV memory that was promised and has no pages yet, so that the machine still counts it as free.
static uint64_t promised(const struct nb_model *except)
{
    const struct nb_model *model;
    struct nb_page_view view;
    uint64_t bytes = 0;
    TAILQ_FOREACH(model, &except->broker->models, of_broker) {
        if (model == except || has_own_memory(model->device))
            continue;
        nb_page_model_view(model, &view);
        uint64_t kv = kv_of(model);
        bytes += kv > view.kv_touched_bytes ? kv - view.kv_touched_bytes : 0;
    }
    return bytes;
}

struct bound {
    uint64_t bytes;
    char by[128];
};

static uint64_t less(uint64_t from, uint64_t bytes)
{
    return from > bytes ? from - bytes : 0;
}

static void bound_by_host(const struct nb_model *model, struct bound *ret)
{
    struct nb_memory_room room;
    char limit[24], used[24], kept[24], kv[24];
    uint64_t reserve = model->broker->config.reserve_bytes, others = promised(model);
    nb_memory_room("", &room);
    ret->bytes = less(room.room, reserve);
    ret->bytes = less(ret->bytes, others);
    int n =
        snprintf(ret->by, sizeof(ret->by), "%s%s allows %s, %s used, %s kept free",
                 *room.group ? "control group " : "the machine", room.group,
                 nb_human(room.limit, limit), nb_human(room.used, used), nb_human(reserve, kept));
    if (others && n < (int)sizeof(ret->by))
        snprintf(ret->by + n, sizeof(ret->by) - (size_t)n, ", %s promised", nb_human(others, kv));
}

static void bound_by_settings(const struct nb_model *model, struct bound *ret)
{
    char limit[24], used[24];
    uint64_t bytes = model->broker->config.memory_bytes, taken = others_take(model);
    if (!bytes || less(bytes, taken) >= ret->bytes)
        return;
    ret->bytes = less(bytes, taken);
    snprintf(ret->by, sizeof(ret->by), "bytes in [memory] of the settings is %s, %s used",
             nb_human(bytes, limit), nb_human(taken, used));
}

// Weights and KV memory are files of their own.
static void bound_by_file(struct bound *ret)
{
    char limit[24];
    uint64_t bytes = nb_process_limit(RLIMIT_FSIZE);
    if (bytes >= ret->bytes)
        return;
    ret->bytes = bytes;
    snprintf(ret->by, sizeof(ret->by),
             "a file of the daemon may have %s: ulimit -f, LimitFSIZE=", nb_human(bytes, limit));
}

void nb_memory_budget(const struct nb_model *model, const struct nb_device *device,
                      struct nb_budget *ret)
{
    int own = has_own_memory(device);
    struct bound weights = {0}, kv = {.bytes = UINT64_MAX};
    bound_by_host(model, &weights);
    weights.bytes = less(weights.bytes, own ? 0 : model->params.kv_bytes);
    bound_by_settings(model, &kv);
    struct bound settings = kv;
    settings.bytes = kv.bytes == UINT64_MAX ? kv.bytes : less(kv.bytes, model->params.kv_bytes);
    if (settings.bytes < weights.bytes)
        weights = settings;
    bound_by_file(&weights);
    if (!own) {
        struct bound host;
        bound_by_host(model, &host);
        kv = host.bytes < kv.bytes ? host : kv;
        bound_by_file(&kv);
    }
    *ret = (struct nb_budget){.weights = weights.bytes, .kv = kv.bytes};
    memcpy(ret->weights_by, weights.by, sizeof(ret->weights_by));
    memcpy(ret->kv_by, kv.by, sizeof(ret->kv_by));
}

int nb_memory_admit(const struct nb_model *model, struct nb_budget *ret, struct nb_refusal *refusal)
{
    char asks[24], has[24];
    nb_memory_budget(model, model->device, ret);
    if (model->params.kv_bytes <= ret->kv)
        return 0;
    return nb_refuse(refusal, NIBBLE_E_TOO_LARGE,
                     "\"%.32s\" asks for %s of KV memory and %s is left (%s): ask for less",
                     model->info.name, nb_human(model->params.kv_bytes, asks),
                     nb_human(ret->kv, has), ret->kv_by);
}
