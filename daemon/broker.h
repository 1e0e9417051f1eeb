// The broker's things and how they hang together: clients open channels to models; a device serves
// models through one worker; a load makes a model. Single-threaded; nothing here waits. The broker
// never reads a weight nor a user's text.
#pragma once

#include <limits.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "daemon/config.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/log.h"
#include "daemon/peer.h"
#include "daemon/spawn.h"

#define NB_CHANNEL_FDS 2 // its memory and its socket
#define NB_DEATHS_MAX  16

struct nb_client;
struct nb_channel;
struct nb_model;
struct nb_device;
struct nb_load;
struct nb_region;
TAILQ_HEAD(nb_clients, nb_client);
TAILQ_HEAD(nb_channels, nb_channel);
TAILQ_HEAD(nb_models, nb_model);
TAILQ_HEAD(nb_devices, nb_device);
TAILQ_HEAD(nb_loads, nb_load);
TAILQ_HEAD(nb_regions, nb_region);
STAILQ_HEAD(nb_kept_images, nb_kept);

// Why a request failed, in one sentence for the user.
struct nb_refusal {
    char text[240];
};
// Formats the sentence, cleaned as a text from outside, and returns `status`.
int nb_refuse(struct nb_refusal *refusal, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// Makes a text from outside the broker fit to be shown: it ends, in printable ASCII.
void nb_text_clean(char *text, size_t size);

struct nb_listener {
    int fd;
    uint32_t role;
    sd_event_source *io, *pause;
    struct nb_broker *broker;
    char *path; // to unlink; NULL when systemd made the socket
};

struct nb_broker {
    sd_event *loop;
    struct nb_config config;
    const char *config_path; // NULL: none
    const char *runtime_dir, *state_dir;
    int cache_dir;              // fd; -1: none
    char drivers_dir[PATH_MAX]; // for drivers' own caches; "": none
    struct nb_ledger ledger;
    struct nb_listener listeners[2];
    struct nb_clients clients; // by id, as all lists
    struct nb_models models;
    struct nb_devices devices;
    struct nb_workers workers;
    struct nb_kept_images kept;
    struct nb_loads loads;      // the first one runs, the others wait
    sd_event_source *load_turn; // starts the first one, from the loop
    uint32_t n_clients, last_id, restarts;
    uint32_t incarnations; // of all devices' workers
    uint64_t last_channel;
    uint64_t started_us;
    struct nb_worker *probe;
    sd_event_source *probe_again; // a probe that is due
    uint32_t probes;              // so far
    struct sd_device_monitor *monitor;
    sd_event_source *drain_end;
    int stopping;
};

uint32_t nb_broker_next_id(struct nb_broker *broker); // 1 .. 2^31 - 1
void nb_broker_settled(
    struct nb_broker *broker); // a worker is gone: perhaps the last one of a shutdown
void nb_broker_stop(struct nb_broker *broker);         // drain, then leave the loop
void nb_broker_tell_systemd(struct nb_broker *broker); // the STATUS= line
uint64_t nb_now_us(void);

// ---- listen.c
int nb_listen(struct nb_broker *broker);       // systemd's sockets, or our own in the runtime dir
int nb_listen_start(struct nb_broker *broker); // from now on connections are accepted
void nb_listen_stop(struct nb_broker *broker);

// ---- client.c
struct nb_client {
    TAILQ_ENTRY(nb_client) entry;
    struct nb_broker *broker;
    struct nb_peer *peer;
    struct nb_charge charge; // from its HELLO on
    sd_event_source *deadline;
    struct nb_channels channels;
    uint32_t n_channels, last_channel;
    uint32_t id, role;
    uid_t uid;
    pid_t pid; // for display alone
    int greeted;
};
int nb_client_create(struct nb_broker *broker, int fd, uint32_t role); // takes the fd
void nb_client_destroy(struct nb_client *client);
// The reply to a request that failed; an empty one to a request that has nothing else to say.
void nb_client_refuse(struct nb_client *client, uint32_t type, uint32_t serial, int status,
                      const struct nb_refusal *refusal);
void nb_client_done(struct nb_client *client, uint32_t type, uint32_t serial);

// A request's handler: 0 when it has replied or will, else a status for nb_client_refuse.
#define NB_HANDLER(name)                                                                           \
    int name(struct nb_client *client, const void *packet, int *fds, struct nb_refusal *refusal)
NB_HANDLER(nb_on_status); // listing.c
NB_HANDLER(nb_on_list);
NB_HANDLER(nb_on_open_channel); // channel.c
NB_HANDLER(nb_on_close_channel);
NB_HANDLER(nb_on_register); // region.c
NB_HANDLER(nb_on_unregister);
NB_HANDLER(nb_on_load); // load.c
NB_HANDLER(nb_on_cancel_load);
NB_HANDLER(nb_on_unload); // model.c

// ---- channel.c
int nb_memfd(const char *name);                       // empty, sealable, not executable
int nb_memfd_sized(const char *name, uint64_t bytes); // of this size for ever
struct nb_channel {
    TAILQ_ENTRY(nb_channel) of_client, of_model;
    struct nb_client *client;
    struct nb_model *model;
    struct nb_charge charge;
    uint32_t id;  // on its connection
    uint64_t key; // with workers
    uint64_t arena_bytes;
    uint64_t tokens_before; // by earlier incarnations of the worker
    struct nb_regions regions;
    uint32_t n_regions, last_region;
};
// New memory and sockets: to the device's worker, and the reply or event `type` to the client.
int nb_channel_bind(struct nb_channel *channel, uint32_t type, uint32_t serial,
                    struct nb_refusal *refusal);
void nb_channel_rebind(struct nb_channel *channel);  // or tells the client that it is lost
void nb_channel_destroy(struct nb_channel *channel); // tells the worker, not the client
void nb_channel_lose(struct nb_channel *channel, int status, const char *text); // tells both
struct nb_channel *nb_channel_by_key(struct nb_device *device, uint64_t key);

struct nb_channel *nb_channel_of_client(struct nb_client *client, uint32_t id); // NULL: no such one

// ---- region.c: memory that clients register for their channels' operators
int nb_regions_send(struct nb_channel *channel);     // all of them, to the device's worker
void nb_regions_destroy(struct nb_channel *channel); // with the channel; tells no worker
// The worker has mapped one, or not.
void nb_region_ready(struct nb_channel *channel, const struct nb_link_memory *message);

// ---- image.c: one image for a file
struct nb_file { // size 0: unknown
    uint64_t device, inode, size;
    struct timespec modified, changed;
};
void nb_file_identify(const struct stat *st, struct nb_file *ret);
const struct nb_model *nb_image_of(const struct nb_model *model); // another one with its image
uint64_t nb_images_bytes(const struct nb_broker *broker);         // each counted once

// ---- model.c
enum nb_model_state { NB_MODEL_LOADING, NB_MODEL_READY, NB_MODEL_RESTARTING, NB_MODEL_LOST };
struct nb_model {
    TAILQ_ENTRY(nb_model) of_broker, of_device;
    struct nb_broker *broker;
    struct nb_device *device;
    struct nb_channels channels;
    struct nb_load *load;    // that is making it, until it is ready
    struct nb_client *owner; // of a temporary one: it goes with this connection
    struct nibble_model info;
    uint32_t id, context;
    uint32_t n_channels;
    uint64_t kv_bytes;    // asked for
    char fallback[32];    // the device that takes over, by the administrator's leave; "": none
    char why[216];        // it is lost
    int image_fd;         // sealed; -1 until packed
    uint64_t image_inode; // of the sealed image: the same for all that share it; 0 until then
    struct nb_file file;  // that it was packed from
    enum nb_model_state state;
    int served; // the device's worker was told of it
};
int nb_model_create(struct nb_device *device, const struct nb_wire_load *request,
                    struct nb_model **ret);
void nb_model_destroy(struct nb_model *model); // its channels must be gone
int nb_model_seal(struct nb_model *model,
                  uint64_t max);            // its image, which must be of at most `max` bytes
int nb_model_serve(struct nb_model *model); // starts the device's worker if need be, and tells it
void nb_model_ready(struct nb_model *model, const struct nb_link_model_ready *message);
void nb_model_lose(struct nb_model *model, const char *text);
void nb_model_restart(struct nb_model *model);        // its worker is gone, a new one will serve it
void nb_model_unload(struct nb_model *model);         // loses channels, tells the worker, destroys
void nb_models_drop_client(struct nb_client *client); // unloads its temporary ones
struct nb_model *nb_model_by_name(struct nb_broker *broker, const char *name);

// ---- move.c
// Its device is given up: it goes to its fallback, or is lost with that text.
void nb_model_flee(struct nb_model *model, const char *why);
uint32_t nb_device_channels(const struct nb_device *device);

// ---- device.c
struct nb_counts {
    uint64_t steps, mixed_steps, prefill_tokens, decode_tokens;
};
struct nb_device {
    TAILQ_ENTRY(nb_device) entry;
    struct nb_broker *broker;
    struct nibble_device info;
    struct nb_worker *worker;   // NULL: none needed, or none now
    const struct nb_page *page; // the worker's, mapped for reading
    struct nb_models models;
    sd_event_source *restart, *pulse;
    uint64_t deaths_us[NB_DEATHS_MAX]; // the last ones, as a ring
    uint32_t n_deaths;
    uint32_t incarnation;
    uint32_t id;
    uint64_t beat, beat_since_us;
    uint64_t number;         // of its node (dev_t); 0: it has none
    uint32_t probed;         // by which probe last
    char address[32];        // what that probe called it, and workers do
    int opened;              // its worker has said what the device is
    char fault[144];         // what its worker says is wrong with it; "": nothing
    struct nb_counts before; // of earlier incarnations
    uint64_t cached_us;      // when its cache was last written
};
struct nb_device *nb_device_add(struct nb_broker *broker, const struct nibble_device *info);
void nb_device_clean(struct nibble_device *info); // its texts
// It is away: its models move or are lost, and it takes none until a probe finds it again.
void nb_device_gone(struct nb_device *device, const char *why);
int nb_device_usable(const struct nb_device *device); // or gone, or never fit for use
void nb_device_destroy(struct nb_device *device);
struct nb_device *nb_device_by_name(struct nb_broker *broker, const char *name);
int nb_device_start(struct nb_device *device); // its worker, unless it runs
void nb_device_send(struct nb_device *device, const void *packet, const int *fds, size_t n_fds);
void nb_device_rest(struct nb_device *device); // lets the worker go when no model is left

// ---- split.c: devices made of several
int nb_device_is_split(const struct nb_device *device);
// The device of that name, made now where the name is that of several; with NULL, whether there is
// one or can be. Until it has a model, the next one made takes its place. Negative: the refusal's
// status.
int nb_device_named(struct nb_broker *broker, const char *name, struct nb_device **ret,
                    struct nb_refusal *refusal);
int nb_split_locate(struct nb_device *split); // what workers call its parts now
void nb_splits_leave(struct nb_device *part); // it is gone, and with it those it is a part of

// ---- page.c: what a worker shows, clamped
void nb_page_counts(const struct nb_device *device, struct nb_counts *ret);
struct nb_page_view {
    uint32_t sessions, jobs;
    uint64_t tokens, kv_used_bytes;
};
void nb_page_channel_view(const struct nb_channel *channel, struct nb_page_view *ret);
void nb_page_model_view(const struct nb_model *model, struct nb_page_view *ret);

// ---- load.c
int nb_load_init(struct nb_broker *broker);
// Replies and frees; a load that failed takes its model along. The next one starts from the loop.
void nb_load_settle(struct nb_load *load, int status, const struct nb_refusal *refusal);
void nb_load_drop_client(struct nb_client *client); // cancels what it asked for
void nb_load_stop(struct nb_broker *broker);        // all of them

// ---- store.c: systemd keeps the images over a restart of the broker
void nb_store_put(const struct nb_model *model);
void nb_store_drop(const struct nb_model *model);
int nb_store_take(struct nb_broker *broker, int fd,
                  const char *name); // 1: it is one, and was taken
void nb_store_restore(
    struct nb_broker *broker); // serves what was taken, once the devices are known

// ---- cache.c: what devices keep from start to start
void nb_cache_init(struct nb_broker *broker); // or says why there is none
void nb_cache_finish(struct nb_broker *broker);
int nb_cache_open(const struct nb_device *device); // an fd to read, perhaps of nothing
// From its worker; negative: it is not what a worker may send.
int nb_cache_keep(struct nb_device *device, int fd);

// ---- probe.c
void nb_probe(struct nb_broker *broker);       // lists the devices, then starts to listen
void nb_probe_later(struct nb_broker *broker); // again, once what comes has settled

// ---- inventory.c: which devices the probes have found
struct nb_device *nb_device_by_number(struct nb_broker *broker, uint64_t number);
int nb_device_found(struct nb_broker *broker, const struct nb_link_device *packet);
void nb_devices_missed(struct nb_broker *broker); // by the last probe, which came to its end

// ---- memory.c
// Bytes that may still be taken: what the machine and the cgroups leave, and the settings allow.
// ret_why says which of them.
uint64_t nb_memory_budget(const struct nb_broker *broker, char *ret_why, size_t why_size);
// "1.5 GiB"
const char *nb_human(uint64_t bytes, char buf[24]);
