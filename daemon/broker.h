// The broker: the one object that everything in the daemon belongs to. Clients open channels to
// models; a device serves models through one worker; a load makes a model. Single-threaded; nothing
// here waits. The broker never reads a weight nor a user's text.
#pragma once

#include <limits.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "daemon/closer.h"
#include "daemon/config.h"
#include "daemon/ledger.h"
#include "daemon/link.h"
#include "daemon/listen.h"
#include "daemon/lists.h"

#define NB_FINDINGS 64

struct nb_broker {
    sd_event *loop;
    struct nb_config config;
    const char *config_path; // NULL: none
    const char *runtime_dir, *state_dir;
    int cache_dir;              // fd; -1: none
    char drivers_dir[PATH_MAX]; // for drivers' own caches; "": none
    struct nb_ledger ledger;
    struct nb_closer closer;
    struct nb_listener listeners[2];
    struct nb_clients clients; // by id, as all lists
    struct nb_models models;
    struct nb_devices devices;
    struct nb_workers workers;
    struct nb_stored_images stored;
    struct nb_arenas left; // memory of closed channels that somebody has
    sd_event_source *look; // whether they still have it
    uint64_t looked_us;
    struct nb_loads loads;               // the first one runs, the others wait
    sd_event_source *load_turn;          // starts the first one, from the loop
    struct nb_service_jobs service_jobs; // by number
    sd_event_source *jobs_turn, *jobs_expiry;
    uint64_t last_job; // its number
    uid_t job_uid;     // of the job that was started last
    int jobs_dir;      // fd; -1: none
    uint32_t n_clients, last_id, restarts;
    // The settings, or less where the limit of descriptors is low.
    uint64_t connections, limits[NB_RES_COUNT];
    uint32_t worker_channels; // of one device
    uint32_t incarnations;    // of all devices' workers
    uint64_t last_channel;
    uint64_t started_us;
    struct nb_worker *probe;
    sd_event_source *probe_again;                // a probe that is due
    uint32_t probes;                             // so far
    struct nibble_finding findings[NB_FINDINGS]; // of the last probe
    uint32_t n_findings;
    // The drivers that workers may load, by their manifests, joined by colons; with `limited` unset
    // those that the Vulkan loader finds.
    char drivers[sizeof((struct nb_link_drivers *)0)->manifests];
    int drivers_limited;
    uint32_t drivers_crashing; // when they are asked for their devices
    struct sd_device_monitor *monitor;
    sd_event_source *drain_end;
    int stopping;
};

uint32_t nb_broker_next_id(struct nb_broker *broker);  // 1 .. 2^31 - 1
void nb_broker_settled(struct nb_broker *broker);      // a worker is gone, perhaps the last one
void nb_broker_stop(struct nb_broker *broker);         // drain, then leave the loop
void nb_broker_tell_systemd(struct nb_broker *broker); // the STATUS= line
uint64_t nb_now_us(void);

// limits.c. Fits the settings, once they are read, to the limit of descriptors.
int nb_limits_fit(struct nb_broker *broker);
