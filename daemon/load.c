// Loading: an admin's files become a sealed image through a loader process, then a model through
// the device's worker. One load at a time, so that each one's look at the free memory is true. The
// files' bytes are the loader's affair.
#include "daemon/load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/arena.h"
#include "daemon/broker.h"
#include "daemon/client.h"
#include "daemon/device.h"
#include "daemon/files.h"
#include "daemon/image.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/log.h"
#include "daemon/memory.h"
#include "daemon/model.h"
#include "daemon/params.h"
#include "daemon/peer.h"
#include "daemon/refusal.h"
#include "daemon/spawn.h"
#include "daemon/split.h"
#include "libclient/sentence.h"
#include "libclient/wire.h"
#include "machine/bounds.h"

#define KV_MAX    (UINT64_C(1) << 46)
#define SCALE_MAX 1000.0f // of an adapter, either way

struct nb_load {
    TAILQ_ENTRY(nb_load) entry;
    struct nb_broker *broker;
    struct nb_client *client;
    struct nb_model *model;
    struct nb_worker *loader;
    struct nb_charge charge;
    uint32_t serial;
    struct nb_files files;
    struct nb_budget budget;
    int answered; // LOADED came
    struct nb_link_loaded answer;
    char fault[NB_FAULT_TEXT]; // why the loader could not work; "": it did not say so
};

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_exited(void *owner, int clean, const char *how);
static const struct nb_worker_ops ops = {on_packet, on_exited};

static void load_free(struct nb_load *load)
{
    nb_worker_kill(load->loader);
    nb_worker_disown(load->loader);
    nb_files_drop(load->broker, &load->files);
    nb_charge_release(&load->broker->ledger, &load->charge);
    free(load);
}

void nb_load_settle(struct nb_load *load, int status, const struct nb_refusal *refusal)
{
    struct nb_broker *broker = load->broker;
    struct nb_model *model = load->model;
    if (load->client && status < 0)
        nb_client_refuse(load->client, NB_WIRE_LOAD, load->serial, status, refusal);
    else if (load->client)
        nb_client_done(load->client, NB_WIRE_LOAD, load->serial);
    if (status < 0)
        nb_log(LOG_NOTICE, "model %s was not loaded: %s", model->info.name, refusal->text);
    TAILQ_REMOVE(&broker->loads, load, entry);
    load_free(load);
    model->load = NULL;
    if (status < 0)
        nb_model_unload(model);
    sd_event_source_set_enabled(broker->load_turn, SD_EVENT_ONESHOT);
}

// ---- From a packed image to a model that is served

static int refuse_size(const struct nb_load *load, uint64_t bytes, struct nb_refusal *refusal)
{
    char needs[24], has[24], kv[24], beside[48] = "";
    if (load->model->params.kv_bytes)
        snprintf(beside, sizeof(beside), " beside %s for KV",
                 nb_human(load->model->params.kv_bytes, kv));
    return nb_refuse(refusal, NIBBLE_E_TOO_LARGE,
                     "\"%.32s\" needs %s of memory%s and %s is there (%s): unload a model or take "
                     "a smaller type",
                     load->model->info.name, nb_human(bytes, needs), beside,
                     nb_human(load->budget.weights, has), load->budget.weights_by);
}

static void serve(struct nb_load *load)
{
    struct nb_refusal refusal;
    char reason[NB_LIMIT_TEXT];
    int rc = nb_model_serve(load->model);
    if (rc == 0)
        return;
    nb_refuse(&refusal, rc, "the worker of %s could not be started (%s)", load->model->info.device,
              nb_limit_reason(rc, reason));
    nb_load_settle(load, rc, &refusal);
}

// What the loader's end means: 0 when there is a sealed image.
static int judge(struct nb_load *load, const char *how, struct nb_refusal *refusal)
{
    const struct nb_link_loaded *answer = &load->answer;
    int status = answer->header.status;
    if (!load->answered && *load->fault)
        return nb_refuse(refusal, -EIO, "the loader ended itself: %s", load->fault);
    if (!load->answered)
        return nb_refuse(refusal, -EIO,
                         "the loader %s while it read the file: see the daemon's log", how);
    if (status == NIBBLE_E_TOO_LARGE)
        return refuse_size(load, answer->bytes, refusal);
    if (status < 0)
        return nb_refuse(refusal, status, "%.239s", answer->text);
    load->model->zeros = answer->zeros != 0;
    int rc = nb_model_seal(load->model, load->budget.weights);
    if (rc < 0)
        return nb_refuse(refusal, rc, "the packed image could not be sealed (%s)", strerror(-rc));
    return 0;
}

static void on_exited(void *owner, int clean, const char *how)
{
    struct nb_load *load = owner;
    struct nb_refusal refusal = {""};
    load->loader = NULL;
    int rc = judge(load, how, &refusal);
    if (rc < 0)
        nb_load_settle(load, rc, &refusal);
    else
        serve(load);
}

static void on_progress(struct nb_load *load, const struct nb_wire_progress *m)
{
    // A client that has not read the last one yet does not need another.
    if (!load->client || nb_peer_queued(load->client->peer))
        return;
    struct nb_wire_progress event = {
        .header = {NB_WIRE_PROGRESS, sizeof(event), load->serial, 0},
        .done = m->done,
        .total = m->total,
    };
    nb_peer_send(load->client->peer, &event, NULL, 0);
}

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_load *load = owner;
    if (packet->type == NB_LINK_PROGRESS && packet->size == sizeof(struct nb_wire_progress)) {
        on_progress(load, (const struct nb_wire_progress *)packet);
    } else if (packet->type == NB_LINK_LOADED && packet->size == sizeof(load->answer) &&
               !load->answered) {
        memcpy(&load->answer, packet, sizeof(load->answer));
        nb_sentence_clean(load->answer.text, sizeof(load->answer.text));
        load->answered = 1;
    } else if (packet->type == NB_LINK_FAULT && packet->size == sizeof(struct nb_link_fault)) {
        memcpy(load->fault, ((const struct nb_link_fault *)packet)->text, sizeof(load->fault));
        nb_sentence_clean(load->fault, sizeof(load->fault));
    } else if (packet->type != NB_LINK_DEVICE) {
        nb_log(LOG_ERR, "the loader of %s sent %#x, which is no message of its: killed",
               load->model->info.name, packet->type);
        nb_worker_kill(load->loader);
    }
}

// ---- The queue

// The file was packed before, for a model that is still there: it is not packed again.
static int share(struct nb_load *load, const struct nb_model *other)
{
    struct nb_model *model = load->model;
    int image = fcntl(other->image_fd, F_DUPFD_CLOEXEC, 0);
    if (image < 0)
        return -errno;
    model->image_fd = image;
    model->zeros = other->zeros;
    int rc = nb_model_seal(model, UINT64_MAX);
    if (rc == 0)
        nb_log(LOG_INFO, "model %s shares the weights of %s", model->info.name, other->info.name);
    return rc;
}

// What the loader's files are called, in the order of its fds.
static void send_names(const struct nb_load *load)
{
    const struct nb_file *file;
    struct nb_link_file packet = {.header = {.type = NB_LINK_FILE, .size = sizeof(packet)},
                                  .files = load->model->n_files};
    TAILQ_FOREACH(file, &load->files, entry) {
        memcpy(packet.name, file->id.name, sizeof(packet.name));
        nb_peer_send(load->loader->link, &packet, NULL, 0);
    }
}

static int start(struct nb_load *load)
{
    struct nb_broker *broker = load->broker;
    uint64_t budget = load->budget.weights;
    int image = nb_memfd("nibble-model");
    if (image < 0)
        return image;
    load->model->image_fd = image;
    char text[40];
    snprintf(text, sizeof(text), "%" PRIu64 "%s", budget, load->model->force ? NB_LINK_ZEROS : "");
    int fds[NB_SPAWN_FDS_MAX] = {image};
    struct nb_spawn spawn = {.mode = "load",
                             .argument = text,
                             .fds = fds,
                             .n_fds = 1,
                             .file_bytes = budget ? budget : 1};
    const struct nb_file *file;
    TAILQ_FOREACH(file, &load->files, entry)
        fds[spawn.n_fds++] = file->fd;
    int rc = nb_worker_spawn(broker, &spawn, &ops, load, &load->loader);
    if (rc >= 0)
        send_names(load);
    // Opens the device while the loader packs. If that fails, serving the model says why.
    if (rc >= 0 && !strcmp(load->model->device->info.state, "ready"))
        (void)nb_device_start(load->model->device);
    return rc;
}

static int on_turn(sd_event_source *source, void *user)
{
    struct nb_broker *broker = user;
    struct nb_load *load = TAILQ_FIRST(&broker->loads);
    if (!load || load->loader || load->model->image_fd >= 0)
        return 0;
    struct nb_refusal refusal;
    int rc = nb_memory_admit(load->model, &load->budget, &refusal);
    if (rc < 0) {
        nb_load_settle(load, rc, &refusal);
        return 0;
    }
    const struct nb_model *other = nb_image_of(load->model);
    rc = other ? share(load, other) : start(load);
    if (rc < 0) {
        char reason[NB_LIMIT_TEXT];
        nb_refuse(&refusal, rc, "the loader could not be started (%s)",
                  nb_limit_reason(rc, reason));
        nb_load_settle(load, rc, &refusal);
    } else if (other) {
        serve(load);
    }
    return 0;
}

int nb_load_init(struct nb_broker *broker)
{
    int rc = sd_event_add_defer(broker->loop, &broker->load_turn, on_turn, broker);
    return rc < 0 ? rc : sd_event_source_set_enabled(broker->load_turn, SD_EVENT_OFF);
}

// ---- Requests

static int check_name(const char *name, struct nb_refusal *refusal)
{
    if (nb_name_sound(name, NB_NAME_MAX))
        return 0;
    return nb_refuse(refusal, -EINVAL, "a model's name is 1 to %d bytes: " NB_NAME_RULE,
                     NB_NAME_MAX - 1);
}

static int is_automatic(const struct nb_wire_load *request)
{
    return !strncmp(request->device, "auto", sizeof(request->device));
}

static int check_fallback(struct nb_broker *broker, const struct nb_wire_load *request,
                          const char *device, struct nb_refusal *refusal)
{
    const char *name = request->fallback;
    int same = !strncmp(name, device, sizeof(request->fallback));
    if (!*name || (same && is_automatic(request)))
        return 0; // where there is no GPU the fallback has it from the beginning
    if (same)
        return nb_refuse(refusal, -EINVAL, "a device cannot be its own fallback: \"%.31s\"", name);
    return nb_device_named(broker, name, NULL, refusal);
}

// The device that a request names. "": the CPU, so that what a load does never depends on what is
// plugged in. "auto": the first GPU, the CPU where there is none; never a CPU that plays a Vulkan
// device.
static const char *name_device(struct nb_broker *broker, const char *name)
{
    struct nb_device *device;
    int automatic = !strcmp(name, "auto");
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (automatic && nb_device_usable(device) && !strcmp(device->info.kind, "gpu") &&
            !nb_device_is_split(device))
            return device->info.name;
    return *name && !automatic ? name : "cpu";
}

// With layers for the CPU it is that of both. Where "auto" found no GPU, the CPU has all layers.
static int share_layers(const struct nb_wire_load *request, const char *name,
                        char ret[sizeof(request->device)], struct nb_refusal *refusal)
{
    uint32_t layers = is_automatic(request) && !strcmp(name, "cpu") ? 0 : request->gpu_layers;
    int n = layers ? snprintf(ret, sizeof(request->device), "cpu+%s:%u", name, layers)
                   : snprintf(ret, sizeof(request->device), "%s", name);
    if (n < (int)sizeof(request->device) && !(layers && strchr(name, '+')))
        return 0;
    return nb_refuse(refusal, -EINVAL,
                     "\"%.31s\" says which layers its devices have: no other count goes with it",
                     name);
}

// What an adapter or a drafter is served with is its base's affair.
static int check_base(struct nb_broker *broker, const struct nb_wire_load *request,
                      struct nb_device **ret, struct nb_refusal *refusal)
{
    static const struct nb_load_params nothing;
    struct nb_model *base = nb_model_by_name(broker, request->base);
    const char *what = request->drafter ? "a drafter" : "an adapter";
    if (!base || base->load || base->base || base->state == NB_MODEL_LOST)
        return nb_refuse(refusal, NIBBLE_E_NO_MODEL, "\"%.63s\" %s: %s goes with a model",
                         request->base,
                         !base                   ? "is not loaded"
                         : base->load            ? "is being loaded"
                         : base->info.is_drafter ? "is a drafter itself"
                         : base->base            ? "is an adapter itself"
                                                 : "is lost",
                         what);
    if (request->drafter && request->scale != 0)
        return nb_refuse(refusal, -EINVAL, "a scale is for an adapter alone");
    if (*request->device || *request->fallback || request->gpu_layers ||
        memcmp(&request->params, &nothing, sizeof(nothing)) != 0)
        return nb_refuse(
            refusal, -EINVAL,
            "%s is served as its base \"%s\" is: no other device, precision, context or "
            "KV cache goes with it",
            what, base->info.name);
    if (!(fabsf(request->scale) <= SCALE_MAX))
        return nb_refuse(refusal, -EINVAL, "an adapter's scale is from -%g to %g",
                         (double)SCALE_MAX, (double)SCALE_MAX);
    *ret = base->device;
    return 0;
}

// Where a model is to be served.
static int check_device(struct nb_broker *broker, const struct nb_wire_load *request,
                        struct nb_device **ret, struct nb_refusal *refusal)
{
    char device[sizeof(request->device)];
    int rc = share_layers(request, name_device(broker, request->device), device, refusal);
    if (rc >= 0)
        rc = nb_device_named(broker, device, ret, refusal);
    if (rc < 0)
        return rc;
    if (request->drafter)
        return nb_refuse(refusal, -EINVAL, "a drafter is for a model that is named (base)");
    if (request->scale != 0)
        return nb_refuse(refusal, -EINVAL, "a scale is for an adapter alone");
    if (!nb_device_usable(*ret))
        return nb_refuse(refusal, NIBBLE_E_UNSUPPORTED, "device %s cannot be used: %s",
                         (*ret)->info.name, (*ret)->info.reason);
    return check_fallback(broker, request, (*ret)->info.name, refusal);
}

static int check_request(struct nb_broker *broker, const struct nb_wire_load *request,
                         struct nb_device **ret, struct nb_refusal *refusal)
{
    int rc = check_name(request->name, refusal);
    if (!rc)
        rc = nb_params_check(&request->params, refusal);
    if (rc < 0)
        return rc;
    if (broker->stopping)
        return nb_refuse(refusal, NIBBLE_E_LOST, "the daemon is stopping");
    if (request->params.kv_bytes > KV_MAX)
        return nb_refuse(refusal, NIBBLE_E_TOO_LARGE, "no machine has that much memory for KV");
    if (nb_model_by_name(broker, request->name))
        return nb_refuse(refusal, NIBBLE_E_EXISTS,
                         "a model \"%s\" is loaded already: unload it, or name this one otherwise",
                         request->name);
    rc = (*request->base ? check_base : check_device)(broker, request, ret, refusal);
    if (rc < 0)
        return rc;
    unsigned n = 0;
    struct nb_model *m;
    TAILQ_FOREACH(m, &(*ret)->models, of_device)
        n++;
    if (n >= NB_WORKER_MODELS)
        return nb_refuse(refusal, NIBBLE_E_QUOTA,
                         "device %s has %u models, the most that it takes: unload one",
                         (*ret)->info.name, n);
    return 0;
}

// The model, and the load that is to make it of the client's files.
static int create(struct nb_client *client, const struct nb_wire_load *request,
                  struct nb_device *device, struct nb_refusal *refusal)
{
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_LOADS] = 1, [NB_RES_FDS] = 1};
    struct nb_broker *broker = client->broker;
    struct nb_load *load = calloc(1, sizeof(*load));
    struct nb_file_id *files = nb_files_identify(&client->files);
    if (!load || !files) {
        free(load);
        free(files);
        return -ENOMEM;
    }
    *load = (struct nb_load){.broker = broker, .client = client};
    load->serial = request->header.serial;
    TAILQ_INIT(&load->files);
    int rc = nb_charge_take(&broker->ledger, client->uid, amount, &load->charge, refusal);
    if (!rc)
        rc = nb_model_create(device, request, &load->model);
    if (rc < 0) {
        free(files);
        load_free(load);
        return rc;
    }
    load->model->load = load;
    load->model->files = files;
    load->model->n_files = nb_files_count(&client->files);
    load->model->force = request->force != 0;
    load->model->owner = request->temporary ? client : NULL;
    TAILQ_CONCAT(&load->files, &client->files, entry);
    TAILQ_INSERT_TAIL(&broker->loads, load, entry);
    return 0;
}

// Whatever becomes of it, it takes the files that came before.
NB_HANDLER(nb_on_load)
{
    const struct nb_wire_load *request = packet;
    struct nb_broker *broker = client->broker;
    struct nb_device *device = NULL;
    int rc = check_request(broker, request, &device, refusal);
    if (!rc && TAILQ_EMPTY(&client->files))
        rc = nb_refuse(refusal, -EINVAL, "no file of the model came before this LOAD");
    if (!rc)
        rc = create(client, request, device, refusal);
    nb_files_drop(broker, &client->files);
    if (rc < 0)
        return rc;
    sd_event_source_set_enabled(broker->load_turn, SD_EVENT_ONESHOT);
    return 0;
}

static void cancel(struct nb_load *load)
{
    struct nb_refusal refusal;
    int rc = nb_refuse(&refusal, -ECANCELED, "the load was cancelled");
    nb_load_settle(load, rc, &refusal);
}

NB_HANDLER(nb_on_cancel_load)
{
    const struct nb_wire_empty *request = packet;
    struct nb_load *load;
    TAILQ_FOREACH(load, &client->broker->loads, entry)
        if (load->client == client && load->serial == request->header.serial)
            break;
    if (load) // else it was settled while the cancel was on its way
        cancel(load);
    return 0;
}

// Cancels a client's loads without a reply, because it is gone; with NULL, all loads.
static void cancel_of(struct nb_broker *broker, const struct nb_client *client)
{
    struct nb_load *load, *next;
    for (load = TAILQ_FIRST(&broker->loads); load; load = next) {
        next = TAILQ_NEXT(load, entry);
        if (client && load->client != client)
            continue;
        if (client)
            load->client = NULL;
        cancel(load);
    }
}

void nb_load_drop_client(struct nb_client *client)
{
    cancel_of(client->broker, client);
}

void nb_load_stop(struct nb_broker *broker)
{
    cancel_of(broker, NULL);
}
