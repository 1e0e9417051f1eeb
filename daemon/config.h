// The daemon's settings: one table of names, defaults and bounds; an INI file overrides.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/ledger.h"
#include "daemon/refusal.h"

struct nb_config {
    uint64_t limits[NB_RES_COUNT]; // for each user
    uint64_t channels_per_connection;
    uint64_t connections;   // in all
    uint64_t queue_bytes;   // not yet read by a client, before it is disconnected
    uint64_t memory_bytes;  // of all packed weights and their KV; 0: what the machine has
    uint64_t reserve_bytes; // of memory to leave free
    uint64_t start_ms;      // so long a worker may take to open its device
    uint64_t hang_ms;       // a step longer than this is a hang
    uint64_t deaths,
        deaths_window_ms; // so many deaths of a worker within that time: it is given up
    uint64_t backoff_ms;  // before the second restart; doubles with each further one
    uint64_t drain_ms;
    uint64_t hello_ms;     // for a connection to introduce itself
    uint64_t drafts;       // 1: generations verify proposed tokens where that is faster
    uint64_t jobs_running; // of the service at a time; the others wait
    uint64_t jobs_idle;    // 1: they run when nothing else would
    uint64_t jobs_keep_ms; // so long a job that is over is kept for its owner
};

void nb_config_init(struct nb_config *ret);
// Overrides from the file. A missing file is an error. On failure a sentence of file and line;
// `config` is then in part changed, so load into a copy.
int nb_config_load(struct nb_config *config, const char *path, struct nb_refusal *refusal);
