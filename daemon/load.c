// Loading: an admin's file becomes a sealed image through a loader process, then a model through
// the device's worker. One load at a time, so that each one's look at the free memory is true. The
// file's bytes are the loader's affair.
#include "daemon/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX (UINT64_C(1) << 46)

struct nb_load {
    TAILQ_ENTRY(nb_load) entry;
    struct nb_broker *broker;
    struct nb_client *client;
    struct nb_model *model;
    struct nb_worker *loader;
    struct nb_charge charge;
    uint32_t serial;
    int file_fd;
    uint64_t budget;
    char limited_by[96]; // the budget
    int answered;        // LOADED came
    struct nb_link_loaded answer;
};

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_exited(void *owner, int clean, const char *how);
static const struct nb_worker_ops ops = {on_packet, on_exited};

static void load_free(struct nb_load *load)
{
    nb_worker_kill(load->loader);
    nb_worker_disown(load->loader);
    nb_charge_release(&load->broker->ledger, &load->charge);
    if (load->file_fd >= 0)
        close(load->file_fd);
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
    char needs[24], has[24];
    return nb_refuse(refusal, NIBBLE_E_TOO_LARGE,
                     "\"%s\" needs %s of memory for its weights and %s is there (%s): free memory, "
                     "unload a model or take a smaller type",
                     load->model->info.name, nb_human(bytes, needs), nb_human(load->budget, has),
                     load->limited_by);
}

static void serve(struct nb_load *load)
{
    struct nb_refusal refusal;
    int r = nb_model_serve(load->model);
    if (r == 0)
        return;
    nb_refuse(&refusal, r, "the worker of %s could not be started (%s)", load->model->info.device,
              strerror(-r));
    nb_load_settle(load, r, &refusal);
}

// What the loader's end means: 0 when there is a sealed image.
static int judge(struct nb_load *load, const char *how, struct nb_refusal *refusal)
{
    const struct nb_link_loaded *answer = &load->answer;
    int status = answer->header.status;
    if (!load->answered)
        return nb_refuse(refusal, -EIO,
                         "the loader %s while it read the file: see the daemon's log", how);
    if (status == NIBBLE_E_TOO_LARGE)
        return refuse_size(load, answer->bytes, refusal);
    if (status < 0)
        return nb_refuse(refusal, status, "%.239s", answer->text);
    int r = nb_model_seal(load->model, load->budget);
    if (r < 0)
        return nb_refuse(refusal, r, "the packed image could not be sealed (%s)", strerror(-r));
    return 0;
}

static void on_exited(void *owner, int clean, const char *how)
{
    struct nb_load *load = owner;
    struct nb_refusal refusal = {""};
    load->loader = NULL;
    int r = judge(load, how, &refusal);
    if (r < 0)
        nb_load_settle(load, r, &refusal);
    else
        serve(load);
}

static void on_progress(struct nb_load *load, const struct nb_wire_progress *m)
{
    // A client that has not read the last one yet does not need another.
    if (!load->client || nb_peer_queued(load->client->peer))
        return;
    struct nb_wire_progress event = {
        .header = {NB_WIRE_PROGRESS, sizeof event, load->serial, 0},
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
    } else if (packet->type == NB_LINK_LOADED && packet->size == sizeof load->answer &&
               !load->answered) {
        memcpy(&load->answer, packet, sizeof load->answer);
        nb_text_clean(load->answer.text, sizeof load->answer.text);
        load->answered = 1;
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
    int r = nb_model_seal(model, UINT64_MAX);
    if (r == 0)
        nb_log(LOG_INFO, "model %s shares the weights of %s", model->info.name, other->info.name);
    return r;
}

static int start(struct nb_load *load)
{
    struct nb_broker *broker = load->broker;
    uint64_t kv = load->model->kv_bytes;
    uint64_t budget = nb_memory_budget(broker, load->limited_by, sizeof load->limited_by);
    load->budget = budget > kv ? budget - kv : 0;
    int image = nb_memfd("nibble-model");
    if (image < 0)
        return image;
    load->model->image_fd = image;
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, load->budget);
    const int fds[] = {load->file_fd, image};
    struct nb_spawn spawn = {.mode = "load",
                             .argument = text,
                             .fds = fds,
                             .n_fds = 2,
                             .file_bytes = load->budget ? load->budget : 1};
    int r = nb_worker_spawn(broker, &spawn, &ops, load, &load->loader);
    // The device is opened meanwhile. Where it cannot be, serving the model says why.
    if (r >= 0 && !strcmp(load->model->device->info.state, "ready"))
        (void)nb_device_start(load->model->device);
    return r;
}

static int on_turn(sd_event_source *source, void *user)
{
    struct nb_broker *broker = user;
    struct nb_load *load = TAILQ_FIRST(&broker->loads);
    if (!load || load->loader || load->model->image_fd >= 0)
        return 0;
    const struct nb_model *other = nb_image_of(load->model);
    int r = other ? share(load, other) : start(load);
    if (r < 0) {
        struct nb_refusal refusal;
        nb_refuse(&refusal, r, "the loader could not be started (%s)", strerror(-r));
        nb_load_settle(load, r, &refusal);
    } else if (other) {
        serve(load);
    }
    return 0;
}

int nb_load_init(struct nb_broker *broker)
{
    int r = sd_event_add_defer(broker->loop, &broker->load_turn, on_turn, broker);
    return r < 0 ? r : sd_event_source_set_enabled(broker->load_turn, SD_EVENT_OFF);
}

// ---- Requests

static int check_name(const char *name, struct nb_refusal *refusal)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strnlen(name, NB_NAME_MAX);
    if (n && n < NB_NAME_MAX && strspn(name, allowed) == n)
        return 0;
    return nb_refuse(refusal, -EINVAL, "a model's name has 1 to %d characters of [A-Za-z0-9._-]",
                     NB_NAME_MAX - 1);
}

static int check_file(int fd, struct nb_file *ret_file, struct nb_refusal *refusal)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return nb_refuse(refusal, NIBBLE_E_FORMAT, "a model is a regular file");
    // Read-only, as the loader must not be able to change the administrator's file.
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_PATH))
        return nb_refuse(refusal, -EBADF, "the model file must be opened for reading alone");
    if (st.st_size <= 0 || (uint64_t)st.st_size > FILE_MAX)
        return nb_refuse(refusal, NIBBLE_E_FORMAT, "the file has %lld bytes: no model",
                         (long long)st.st_size);
    nb_file_identify(&st, ret_file);
    return 0;
}

static int is_one_of(const char name[16], const char *const names[4])
{
    for (int i = 0; i < 4 && names[i]; i++)
        if (!strncmp(name, names[i], 16))
            return 1;
    return 0;
}

static int check_choices(const struct nb_wire_load *request, struct nb_refusal *refusal)
{
    static const char *const tiers[4] = {"", "fast", "balanced", "exact"};
    static const char *const kv_types[4] = {"", "f16", "q8_0"};
    if (!is_one_of(request->precision, tiers))
        return nb_refuse(refusal, -EINVAL, "precision is fast, balanced or exact");
    if (!is_one_of(request->kv_type, kv_types))
        return nb_refuse(refusal, -EINVAL, "the KV cache's type is f16 or q8_0");
    return 0;
}

static int check_fallback(struct nb_broker *broker, const struct nb_wire_load *request,
                          const char *device, struct nb_refusal *refusal)
{
    const char *name = request->fallback;
    if (!*name)
        return 0;
    if (!strncmp(name, device, sizeof request->fallback))
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

// With layers for the CPU it is that of both.
static int share_layers(const struct nb_wire_load *request, const char *name,
                        char ret[sizeof request->device], struct nb_refusal *refusal)
{
    int n = request->gpu_layers
                ? snprintf(ret, sizeof request->device, "cpu+%s:%u", name, request->gpu_layers)
                : snprintf(ret, sizeof request->device, "%s", name);
    if (n < (int)sizeof request->device && !(request->gpu_layers && strchr(name, '+')))
        return 0;
    return nb_refuse(refusal, -EINVAL,
                     "\"%.31s\" says which layers its devices have: no other count goes with it",
                     name);
}

static int check_request(struct nb_broker *broker, const struct nb_wire_load *request, int fd,
                         struct nb_device **ret, struct nb_file *ret_file,
                         struct nb_refusal *refusal)
{
    int r = check_name(request->name, refusal);
    if (!r)
        r = check_choices(request, refusal);
    if (!r)
        r = check_file(fd, ret_file, refusal);
    if (r < 0)
        return r;
    if (broker->stopping)
        return nb_refuse(refusal, NIBBLE_E_LOST, "the daemon is stopping");
    if (request->kv_bytes > FILE_MAX)
        return nb_refuse(refusal, NIBBLE_E_TOO_LARGE, "no machine has that much memory for KV");
    if (nb_model_by_name(broker, request->name))
        return nb_refuse(refusal, NIBBLE_E_EXISTS,
                         "a model \"%s\" is loaded already: unload it, or name this one otherwise",
                         request->name);
    char device[sizeof request->device];
    r = share_layers(request, name_device(broker, request->device), device, refusal);
    if (r >= 0)
        r = nb_device_named(broker, device, ret, refusal);
    if (r < 0)
        return r;
    if (!nb_device_usable(*ret))
        return nb_refuse(refusal, NIBBLE_E_UNSUPPORTED, "device %s cannot be used: %s",
                         (*ret)->info.name, (*ret)->info.reason);
    r = check_fallback(broker, request, (*ret)->info.name, refusal);
    if (r < 0)
        return r;
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

NB_HANDLER(nb_on_load)
{
    const struct nb_wire_load *request = packet;
    struct nb_broker *broker = client->broker;
    struct nb_device *device = NULL;
    struct nb_file file;
    int r = check_request(broker, request, fds[0], &device, &file, refusal);
    if (r < 0)
        return r;
    struct nb_load *load = calloc(1, sizeof *load);
    if (!load)
        return -ENOMEM;
    *load = (struct nb_load){.broker = broker, .client = client, .file_fd = -1};
    load->serial = request->header.serial;
    static const uint64_t amount[NB_RES_COUNT] = {[NB_RES_LOADS] = 1, [NB_RES_FDS] = 2};
    r = nb_charge_take(&broker->ledger, client->uid, amount, &load->charge, refusal->text,
                       sizeof refusal->text);
    if (!r)
        r = nb_model_create(device, request, &load->model);
    if (r < 0) {
        load_free(load);
        return r;
    }
    load->file_fd = fds[0];
    fds[0] = -1;
    load->model->load = load;
    load->model->file = file;
    load->model->owner = request->temporary ? client : NULL;
    TAILQ_INSERT_TAIL(&broker->loads, load, entry);
    sd_event_source_set_enabled(broker->load_turn, SD_EVENT_ONESHOT);
    return 0;
}

static void cancel(struct nb_load *load)
{
    struct nb_refusal refusal;
    int r = nb_refuse(&refusal, -ECANCELED, "the load was cancelled");
    nb_load_settle(load, r, &refusal);
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

// Those of one client, which is told nothing as it is gone, or, with NULL, all.
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
