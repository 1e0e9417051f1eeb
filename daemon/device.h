// A device: what a worker serves its models on, and the worker's lives and deaths.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <systemd/sd-event.h>

#include "daemon/link.h"
#include "daemon/lists.h"

#define NB_DEATHS_MAX 16

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
    int was_idle;
    uint64_t asked;            // pulses ago for a beat, as nothing runs; 0: not yet
    struct nb_held_list held;  // charges for what its worker is closing
    uint64_t number;           // of its node (dev_t); 0: it has none
    uint32_t probed;           // by which probe last
    char address[32];          // what that probe called it, and workers do
    int opened;                // its worker has said what the device is
    char fault[NB_FAULT_TEXT]; // what its worker says is wrong with it; "": nothing
    struct nb_counts before;   // of earlier incarnations
    uint64_t cached_us;        // when its cache was last written
};

struct nb_device *nb_device_add(struct nb_broker *broker, const struct nibble_device *info);
void nb_device_clean(struct nibble_device *info); // its texts
// It is away: its models move or are lost, and it takes none until a probe finds it again.
void nb_device_gone(struct nb_device *device, const char *why);
int nb_device_usable(const struct nb_device *device); // or gone, or never fit for use
void nb_device_destroy(struct nb_device *device);
struct nb_device *nb_device_by_name(struct nb_broker *broker, const char *name);
int nb_device_start(struct nb_device *device);         // its worker, unless it runs
int nb_device_is_busy(const struct nb_device *device); // its worker has yet to take much
void nb_device_send(struct nb_device *device, const void *packet, const int *fds, size_t n_fds);
void nb_device_rest(struct nb_device *device); // lets the worker go when no model is left
