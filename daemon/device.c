// A device and its one serving worker: started when the first model needs it, restarted when it
// dies, given up when it dies too often, let go when the last model leaves.
#include "daemon/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/arena.h"
#include "daemon/broker.h"
#include "daemon/cache.h"
#include "daemon/channel.h"
#include "daemon/drop.h"
#include "daemon/link.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/model.h"
#include "daemon/move.h"
#include "daemon/page.h"
#include "daemon/peer.h"
#include "daemon/probe.h"
#include "daemon/refusal.h"
#include "daemon/region.h"
#include "daemon/spawn.h"
#include "daemon/split.h"
#include "libclient/sentence.h"
#include "libclient/wire.h"

#define LINK_BUSY      256 // packets that a worker has not taken: nothing new for it before it does
#define BACKOFF_MAX_US UINT64_C(10000000)

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
static void on_exited(void *owner, int clean, const char *how);
static const struct nb_worker_ops ops = {on_packet, on_exited};

static void set_state(struct nb_device *device, const char *state, const char *why)
{
    snprintf(device->info.state, sizeof(device->info.state), "%s", state);
    snprintf(device->info.reason, sizeof(device->info.reason), "%s", why);
}

static int is_lost(const struct nb_device *device)
{
    return !strcmp(device->info.state, "lost");
}

struct nb_device *nb_device_by_name(struct nb_broker *broker, const char *name)
{
    struct nb_device *device;
    TAILQ_FOREACH(device, &broker->devices, entry)
        if (!strncmp(device->info.name, name, sizeof(device->info.name)))
            return device;
    return NULL;
}

void nb_device_clean(struct nibble_device *info)
{
    nb_sentence_clean(info->name, sizeof(info->name));
    nb_sentence_clean(info->description, sizeof(info->description));
    nb_sentence_clean(info->isa, sizeof(info->isa));
    nb_sentence_clean(info->state, sizeof(info->state));
    nb_sentence_clean(info->kind, sizeof(info->kind));
    nb_sentence_clean(info->driver, sizeof(info->driver));
    nb_sentence_clean(info->uuid, sizeof(info->uuid));
    nb_sentence_clean(info->node, sizeof(info->node));
    nb_sentence_clean(info->reason, sizeof(info->reason));
}

struct nb_device *nb_device_add(struct nb_broker *broker, const struct nibble_device *info)
{
    struct nb_device *device = calloc(1, sizeof(*device));
    if (!device)
        return NULL;
    device->broker = broker;
    device->id = nb_broker_next_id(broker);
    device->info = *info;
    TAILQ_INIT(&device->models);
    STAILQ_INIT(&device->held);
    TAILQ_INSERT_TAIL(&broker->devices, device, entry);
    return device;
}

int nb_device_usable(const struct nb_device *device)
{
    return strcmp(device->info.state, "gone") != 0 && strcmp(device->info.state, "unusable") != 0;
}

// Keeps what the worker had counted, forgets its page.
static void take_page(struct nb_device *device)
{
    struct nb_model *model;
    struct nb_channel *channel;
    struct nb_page_view view;
    struct nb_counts counts;
    TAILQ_FOREACH(model, &device->models, of_device)
        TAILQ_FOREACH(channel, &model->channels, of_model) {
            nb_page_channel_view(channel, &view);
            channel->tokens_before = view.tokens;
        }
    nb_page_counts(device, &counts);
    device->before = counts;
    if (device->page)
        munmap((void *)(uintptr_t)device->page, sizeof(*device->page));
    device->page = NULL;
}

// A worker that does not end keeps what it holds, and the device keeps the charge until it does.
static void detach(struct nb_device *device)
{
    const struct nb_model *model;
    uint64_t copies = !strcmp(device->info.kind, "gpu"); // of the weights, one of its own
    if (device->worker)
        device->worker->device = device->id;
    TAILQ_FOREACH(model, &device->models, of_device)
        if (device->worker && model->served)
            device->worker->held_bytes += model->info.kv_bytes + copies * model->info.packed_bytes;
    nb_worker_disown(device->worker);
    device->worker = NULL;
    device->pulse = sd_event_source_disable_unref(device->pulse);
    nb_held_release(device);
    take_page(device);
}

void nb_device_destroy(struct nb_device *device)
{
    if (!device)
        return;
    detach(device);
    sd_event_source_disable_unref(device->restart);
    TAILQ_REMOVE(&device->broker->devices, device, entry);
    free(device);
}

static void note_death(struct nb_device *device)
{
    device->deaths_us[device->n_deaths++ % NB_DEATHS_MAX] = nb_now_us();
    device->broker->restarts++;
}

static unsigned recent_deaths(const struct nb_device *device)
{
    uint64_t now = nb_now_us(), window = device->broker->config.deaths_window_ms * 1000;
    unsigned n = 0;
    for (unsigned i = 0; i < NB_DEATHS_MAX; i++)
        n += device->deaths_us[i] && now - device->deaths_us[i] < window;
    return n;
}

static void leave(struct nb_device *device, const char *state, const char *why)
{
    struct nb_model *model, *next;
    nb_log(LOG_ERR, "%s", why);
    set_state(device, state, why);
    for (model = TAILQ_FIRST(&device->models); model; model = next) {
        next = TAILQ_NEXT(model, of_device);
        if (model->state != NB_MODEL_LOST)
            nb_model_flee(model, why);
    }
}

static void give_up(struct nb_device *device, unsigned deaths, const char *how)
{
    char text[192];
    snprintf(text, sizeof(text),
             "device %s is given up: its worker died %u times within %g s, at last it %s",
             device->info.name, deaths, (double)device->broker->config.deaths_window_ms / 1000,
             how);
    leave(device, "lost", text);
}

void nb_device_gone(struct nb_device *device, const char *why)
{
    char text[192];
    if (!strcmp(device->info.state, "gone") || device->broker->stopping)
        return;
    snprintf(text, sizeof(text), "device %s is gone: %s", device->info.name, why);
    device->restart = sd_event_source_disable_unref(device->restart);
    nb_worker_kill(device->worker);
    detach(device);
    leave(device, "gone", text);
    nb_splits_leave(device);
}

static void down(struct nb_device *device, const char *how);

static int on_restart(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_device *device = user;
    struct nb_model *model;
    struct nb_channel *channel, *next;
    device->restart = sd_event_source_disable_unref(device->restart);
    TAILQ_FOREACH(model, &device->models, of_device) {
        int rc = model->state == NB_MODEL_RESTARTING && !model->served ? nb_model_serve(model) : 0;
        if (rc < 0) {
            nb_worker_kill(device->worker); // perhaps it was, for another model
            down(device, "could not be started");
            return 0;
        }
    }
    TAILQ_FOREACH(model, &device->models, of_device)
        for (channel = TAILQ_FIRST(&model->channels); channel; channel = next) {
            next = TAILQ_NEXT(channel, of_model);
            nb_channel_rebind(channel);
        }
    return 0;
}

// A model that was being added when the worker died is the first suspect: its load fails, the
// others go on. Not so when the worker says that it was the device.
static unsigned keep_models(struct nb_device *device, const char *how)
{
    struct nb_model *model, *next;
    unsigned n = 0;
    for (model = TAILQ_FIRST(&device->models); model; model = next) {
        next = TAILQ_NEXT(model, of_device);
        if (model->load && model->served && !*device->fault) {
            struct nb_refusal why;
            int rc = nb_refuse(&why, NIBBLE_E_LOST,
                               "the worker %s while it took the model: see the daemon's log", how);
            model->served = 0;
            nb_load_settle(model->load, rc, &why);
        } else if (model->load ? model->served : model->state != NB_MODEL_LOST) {
            nb_model_restart(model);
            n++;
        }
    }
    return n;
}

// The worker is of no use any more, dead or not.
static void down(struct nb_device *device, const char *how)
{
    struct nb_broker *broker = device->broker;
    detach(device);
    if (broker->stopping)
        return;
    note_death(device);
    unsigned deaths = recent_deaths(device), models = keep_models(device, how);
    if (!models)
        return;
    if (deaths >= broker->config.deaths) {
        give_up(device, deaths, how);
        return;
    }
    char text[sizeof(device->info.reason)];
    uint64_t wait = deaths > 1 ? broker->config.backoff_ms * 1000 << (deaths - 2) : 0;
    wait = wait < BACKOFF_MAX_US ? wait : BACKOFF_MAX_US;
    nb_log(LOG_ERR, "the worker of %s %s; a new one takes over its %u models in %g s",
           device->info.name, how, models, (double)wait / 1e6);
    snprintf(text, sizeof(text), "its worker %s", how);
    set_state(device, "restarting", text);
    sd_event_source_disable_unref(device->restart);
    device->restart = NULL;
    int rc = sd_event_add_time_relative(broker->loop, &device->restart, CLOCK_MONOTONIC, wait, 0,
                                        on_restart, device);
    if (rc < 0)
        give_up(device, deaths, "could not be restarted");
}

// If the worker said what is wrong with its device, that says more than how the process ended.
static void on_exited(void *owner, int clean, const char *how)
{
    const struct nb_device *device = owner;
    char text[sizeof(device->fault) + 16];
    snprintf(text, sizeof(text), "ended itself: %s", device->fault);
    down(owner, *device->fault ? text : how);
}

static int hung(struct nb_device *device, const char *how)
{
    nb_worker_kill(device->worker);
    down(device, how);
    return 0;
}

// An idle worker runs nothing, so nothing beats: ask it to. Patience is counted in pulses rather
// than in time, because the broker itself may not have run for a while. True: it does not answer.
static int ask(struct nb_device *device, uint64_t patience, uint64_t period)
{
    const struct nb_wire_header packet = {.type = NB_LINK_PING, .size = sizeof(packet)};
    if (!device->asked)
        nb_device_send(device, &packet, NULL, 0);
    return device->asked++ * period > patience;
}

// A step that runs while the beat stands still for too long is a hang, and so are a device that
// does not open and a worker that is idle and does not answer. The times are the broker's own.
static int on_pulse(sd_event_source *source, uint64_t usec, void *user)
{
    struct nb_device *device = user;
    const struct nb_config *config = &device->broker->config;
    uint64_t now = nb_now_us();
    uint64_t hang = (device->opened ? config->hang_ms : config->start_ms) * 1000;
    uint64_t period = hang / 4 < 1000000 ? hang / 4 : 1000000;
    uint64_t beat = atomic_load_explicit(&device->page->beat, memory_order_relaxed);
    uint64_t step = atomic_load_explicit(&device->page->step_started_ns, memory_order_relaxed);
    int idle = device->opened && !step, drains = device->worker->draining; // which has its own time
    uint64_t still = now - device->beat_since_us;
    if (beat != device->beat || idle != device->was_idle) {
        device->beat = beat;
        device->was_idle = idle;
        device->beat_since_us = now;
        device->asked = 0;
    } else if (!idle && still > hang) {
        return hung(device, device->opened ? "hung in a step and was killed"
                                           : "hung while it opened the device and was killed");
    } else if (idle && !drains && still > hang / 2 && ask(device, hang / 2, period)) {
        return hung(device, "did not answer while it was idle and was killed");
    }
    sd_event_source_set_time_relative(source, period);
    sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    return 0;
}

static int make_page(struct nb_device *device)
{
    int fd = nb_memfd_sized("nibble-page", (sizeof(*device->page) + 4095) & ~UINT64_C(4095));
    if (fd < 0)
        return fd;
    void *map = mmap(NULL, sizeof(*device->page), PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    device->page = map;
    return fd;
}

int nb_device_start(struct nb_device *device)
{
    if (device->worker)
        return 0;
    if (!nb_device_usable(device))
        return -ENODEV;
    int located = nb_device_is_split(device) ? nb_split_locate(device) : 0;
    int page = located < 0 ? located : make_page(device);
    if (page < 0)
        return page;
    int fds[] = {page, nb_cache_open(device)};
    const struct nb_broker *broker = device->broker;
    struct nb_spawn spawn = {.mode = "serve",
                             .argument = device->address,
                             .fds = fds,
                             .n_fds = 2,
                             .drivers = broker->drivers_limited ? broker->drivers : NULL};
    int rc = fds[1];
    if (rc >= 0)
        rc = nb_worker_spawn(device->broker, &spawn, &ops, device, &device->worker);
    nb_wire_close_fds(fds, 2);
    if (rc >= 0)
        rc = sd_event_add_time_relative(device->broker->loop, &device->pulse, CLOCK_MONOTONIC, 0, 0,
                                        on_pulse, device);
    if (rc < 0) {
        nb_worker_kill(device->worker);
        detach(device);
        return rc;
    }
    device->incarnation = ++device->broker->incarnations;
    device->beat_since_us = nb_now_us();
    device->opened = device->was_idle = 0;
    device->asked = 0;
    *device->fault = 0;
    if (is_lost(device)) // somebody wants to try it again: all is forgiven
        memset(device->deaths_us, 0, sizeof(device->deaths_us));
    set_state(device, "ready", "");
    return 0;
}

int nb_device_is_busy(const struct nb_device *device)
{
    return device->worker && nb_peer_queued(device->worker->link) > LINK_BUSY;
}

void nb_device_send(struct nb_device *device, const void *packet, const int *fds, size_t n_fds)
{
    if (device->worker)
        nb_peer_send(device->worker->link, packet, fds, n_fds);
    else
        nb_wire_close_fds(fds, n_fds);
}

void nb_device_rest(struct nb_device *device)
{
    if (!TAILQ_EMPTY(&device->models) || device->broker->stopping)
        return;
    device->restart = sd_event_source_disable_unref(device->restart);
    if (nb_device_usable(device) && !is_lost(device)) {
        memset(device->deaths_us, 0, sizeof(device->deaths_us));
        set_state(device, "ready", "");
    }
    if (device->worker)
        nb_worker_drain(device->worker);
    detach(device);
}

// The worker cannot have the device: those who load are told now, those who were served when it has
// exited.
static void on_refused(struct nb_device *device, const struct nb_link_device *m)
{
    struct nb_model *model, *next;
    struct nb_refusal why;
    memcpy(why.text, m->device.reason, sizeof(m->device.reason));
    nb_sentence_clean(why.text, sizeof(m->device.reason));
    snprintf(device->fault, sizeof(device->fault), "%.*s", (int)sizeof(device->fault) - 1,
             why.text);
    for (model = TAILQ_FIRST(&device->models); model; model = next) {
        next = TAILQ_NEXT(model, of_device);
        if (!model->load || !model->served)
            continue;
        model->served = 0;
        nb_load_settle(model->load, NIBBLE_E_UNSUPPORTED, &why);
    }
}

static void on_device(struct nb_device *device, const void *packet)
{
    const struct nb_link_device *m = packet;
    if (m->header.status < 0) {
        on_refused(device, m);
        return;
    }
    device->opened = 1;
    if (strncmp(device->info.uuid, m->device.uuid, sizeof(device->info.uuid)) != 0) {
        snprintf(device->fault, sizeof(device->fault), "another device has taken its place");
        nb_worker_kill(device->worker);
        nb_probe_later(device->broker);
        return;
    }
    device->info.memory_bytes = m->device.memory_bytes;
    device->info.threads = m->device.threads;
}

static void on_fault(struct nb_device *device, const void *packet)
{
    const struct nb_link_fault *m = packet;
    memcpy(device->fault, m->text, sizeof(device->fault));
    nb_sentence_clean(device->fault, sizeof(device->fault));
}

static void on_model_ready(struct nb_device *device, const void *packet)
{
    const struct nb_link_model_ready *m = packet;
    struct nb_model *model;
    TAILQ_FOREACH(model, &device->models, of_device)
        if (model->id == m->model && model->served) {
            nb_model_ready(model, m);
            return;
        }
}

static void on_channel_gone(struct nb_device *device, const void *packet)
{
    const struct nb_link_ref *m = packet;
    struct nb_channel *channel = nb_channel_by_key(device, m->channel);
    if (channel)
        nb_channel_lose(channel, NIBBLE_E_CLOSED, "the channel was closed");
}

static void on_memory_ready(struct nb_device *device, const void *packet)
{
    const struct nb_link_memory *m = packet;
    struct nb_channel *channel = nb_channel_by_key(device, m->channel);
    if (channel)
        nb_region_ready(channel, m);
}

static void on_channel_dropped(struct nb_device *device, const void *packet)
{
    const struct nb_link_ref *m = packet;
    nb_regions_dropped(device->worker, m->channel, 0);
}

static void on_memory_dropped(struct nb_device *device, const void *packet)
{
    const struct nb_link_memory *m = packet;
    if (m->region)
        nb_regions_dropped(device->worker, m->channel, m->region);
}

static void on_closing(struct nb_device *device, const void *packet)
{
    const struct nb_link_closing *m = packet;
    nb_held_add(device, m->uid);
}

static void on_closed(struct nb_device *device, const void *packet)
{
    const struct nb_link_closing *m = packet;
    nb_held_remove(device, m->uid);
}

static const struct {
    uint32_t type, size;
    void (*run)(struct nb_device *device, const void *packet);
} messages[] = {
    {NB_LINK_DEVICE, sizeof(struct nb_link_device), on_device},
    {NB_LINK_MODEL_READY, sizeof(struct nb_link_model_ready), on_model_ready},
    {NB_LINK_CHANNEL_GONE, sizeof(struct nb_link_ref), on_channel_gone},
    {NB_LINK_FAULT, sizeof(struct nb_link_fault), on_fault},
    {NB_LINK_MEMORY_READY, sizeof(struct nb_link_memory), on_memory_ready},
    {NB_LINK_CHANNEL_DROPPED, sizeof(struct nb_link_ref), on_channel_dropped},
    {NB_LINK_MEMORY_DROPPED, sizeof(struct nb_link_memory), on_memory_dropped},
    {NB_LINK_CLOSING, sizeof(struct nb_link_closing), on_closing},
    {NB_LINK_CLOSED, sizeof(struct nb_link_closing), on_closed},
};

static void on_packet(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds)
{
    struct nb_device *device = owner;
    if (packet->type == NB_LINK_CACHE && packet->size == sizeof(*packet) && n_fds == 1 &&
        nb_cache_save(device, fds[0]) == 0)
        return;
    for (size_t i = 0; i < sizeof(messages) / sizeof(*messages); i++)
        if (messages[i].type == packet->type && messages[i].size == packet->size) {
            messages[i].run(device, packet);
            return;
        }
    nb_log(LOG_ERR, "the worker of %s sent %#x of %u bytes, which is no message of its: killed",
           device->info.name, packet->type, packet->size);
    nb_worker_kill(device->worker);
}
