// Worker processes: started with their fds and nothing else, watched by pidfd, heard by their link.
// What they are for, their owner knows.
#pragma once

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "daemon/link.h"
#include "daemon/lists.h"
#include "daemon/peer.h"

struct nb_worker_ops {
    void (*packet)(void *owner, const struct nb_wire_header *packet, int *fds, size_t n_fds);
    // The process is gone and its last packets were handed over; the worker is freed after the
    // call. `clean`: it exited with 0. `how` reads on after "the worker ".
    void (*exited)(void *owner, int clean, const char *how);
};

struct nb_worker {
    TAILQ_ENTRY(nb_worker) entry; // of the broker's workers
    struct nb_broker *broker;
    const struct nb_worker_ops *ops;
    void *owner; // NULL: nobody cares any more, it only has to end
    struct nb_peer *link;
    sd_event_source *exit, *deadline;
    uint32_t id; // for listings
    pid_t pid;
    int pidfd;
    int draining, killed;
    uint32_t device;           // that it held memory of until its end, once it is nobody's
    uint64_t held_bytes;       // so much
    struct nb_regions leaving; // what it may still hold though nobody needs it (region.c)
    char mode[8];
};

#define NB_SPAWN_FDS_MAX (1 + NB_WIRE_FILES) // of a loader: its image and the model's files

struct nb_spawn {
    const char *mode, *argument; // argument may be NULL
    const int *fds;              // become fds 4 and up of the worker; borrowed
    size_t n_fds;                // NB_SPAWN_FDS_MAX at most
    uint64_t file_bytes;         // the largest file it may write; 0: no limit
    const char *drivers; // manifests of Vulkan drivers that it may load; NULL: whatever there are
};
int nb_worker_spawn(struct nb_broker *broker, const struct nb_spawn *spawn,
                    const struct nb_worker_ops *ops, void *owner, struct nb_worker **ret);
void nb_worker_kill(struct nb_worker *worker); // at once; NULL is fine
// Lets it finish what runs; kills it when that takes longer than the settings' drain time.
void nb_worker_drain(struct nb_worker *worker);
void nb_worker_disown(struct nb_worker *worker); // no more calls to the owner; NULL is fine
void nb_worker_free(struct nb_worker *worker);   // at the daemon's very end, dead or not
