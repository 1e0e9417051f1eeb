// Between the broker and its workers: packets of wire.h's shape over a SOCK_SEQPACKET pair (fd 3 of
// a worker), and one page of shared memory (fd 4 of a serving worker) in which the worker counts
// and names what it is running, so that the broker can tell without asking, and still after the
// worker's death. The worker may be compromised: the broker checks what comes from it as it checks
// a client.
#pragma once

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#include "libclient/include/nibble.h"
#include "libclient/wire.h"

// A worker's command line (stdin is /dev/null, stdout and stderr the daemon's log; every other fd
// is closed):
//   nibble-worker probe           sends a DEVICE for each device, exits 0
//   nibble-worker load BUDGET     packs; a model whose packed form is larger than BUDGET bytes is
//   answered before a page is
//                                 written by LOADED with status NIBBLE_E_TOO_LARGE and the bytes it
//                                 needs: the broker knows the figures and words the refusal
//                                 (RLIMIT_FSIZE is BUDGET too). Seals a memfd it has packed (WRITE,
//                                 SHRINK, GROW, SEAL); the broker checks that. Exits after LOADED.
//   nibble-worker serve DEVICE    sends its DEVICE, then serves; exits when the link ends. Sends a
//                                 CACHE when there is something new to keep for its next start
// Packets are handled in order: a CHANNEL_ADD may follow its model's MODEL_ADD at once, before
// MODEL_READY.
#define NB_LINK_FD  3
#define NB_PAGE_FD  4 // serve
#define NB_CACHE_FD 5 // serve: what the device kept the last time, perhaps nothing
#define NB_FILE_FD  4 // load: the model file, to read
#define NB_IMAGE_FD 5 // load: the empty memfd (or cache file) to pack into

#define NB_NUMERICS "n1" // docs/numerics.md's id, shown with results

#define NB_EXIT_FAULT 3 // the exit status of a worker whose device failed

#define NB_CACHE_MAX (32 << 20) // of what a device keeps

#define NB_WORKER_MODELS   32
#define NB_WORKER_CHANNELS 256

enum nb_link_type {
    // broker to worker
    NB_LINK_MODEL_ADD = 0x400, // one fd: the sealed image
    NB_LINK_MODEL_REMOVE,      // its channels were removed before
    NB_LINK_CHANNEL_ADD,       // two fds: the channel's memfd, the worker's end of its socket
    NB_LINK_CHANNEL_REMOVE,
    NB_LINK_DRAIN,         // finish what runs, take nothing new, exit 0
    NB_LINK_MEMORY_ADD,    // one fd: memory that a channel registered
    NB_LINK_MEMORY_REMOVE, // jobs that use it are cancelled
    // worker to broker
    NB_LINK_DEVICE = 0x500, // probe, and serve at its start: one device
    NB_LINK_PROGRESS,       // load: struct nb_wire_progress
    NB_LINK_LOADED,         // load: the image is packed (status, text, bytes)
    NB_LINK_MODEL_READY,    // serve: status, text, and what the model is
    NB_LINK_CHANNEL_GONE,   // serve: the client hung up or broke the protocol; answered by
                            // CHANNEL_REMOVE. A REMOVE of what is gone already, or was never
                            // accepted, is no error.
    NB_LINK_FAULT,          // serve: why it ends itself, before it exits with NB_EXIT_FAULT
    NB_LINK_CACHE,          // serve: one fd, a memfd sealed against any change: what the device
                            // keeps from now on. A header alone.
    NB_LINK_MEMORY_READY,   // serve: it is mapped, or not (status). Told of each MEMORY_ADD.
};

struct nb_link_model_add {
    struct nb_wire_header header;
    uint32_t model; // the broker's handle
    uint32_t context;
    uint64_t kv_bytes; // 0: by the worker
    char name[NB_NAME_MAX];
    char precision[16];
    char kv_type[16];
};
struct nb_link_channel_add {
    struct nb_wire_header header;
    uint64_t channel; // the broker's key, unique for ever
    uint64_t arena_bytes;
    uint32_t model;
    uint32_t uid; // for the ledger and for keying caches
    // So many MEMORY_ADDs follow at once; no submission is taken before the last of them.
    uint32_t memories, pad;
};
struct nb_link_memory { // MEMORY_ADD, MEMORY_REMOVE (channel and region), MEMORY_READY
    struct nb_wire_header header;
    uint64_t channel;
    uint64_t offset, bytes; // of the fd
    uint64_t keep;          // bytes that packed copies of matrices that cannot change may take
    uint32_t region, flags; // NB_REGISTER_READ_ONLY
};
struct nb_link_ref { // MODEL_REMOVE (model), CHANNEL_REMOVE, CHANNEL_GONE (channel), DRAIN
    struct nb_wire_header header;
    uint64_t channel;
    uint32_t model, pad;
};
struct nb_link_device {
    struct nb_wire_header header; // serve: status, where it cannot open the device (device.reason)
    struct nibble_device device;
    uint64_t number; // probe: of the device's node (dev_t); 0: it has none
};
struct nb_link_loaded {
    struct nb_wire_header header; // status: 0 or the failure
    uint64_t bytes;
    char text[240];
};
struct nb_link_fault {
    struct nb_wire_header header;
    char text[144]; // what its device failed with
};
struct nb_link_model_ready {
    struct nb_wire_header header;
    uint32_t model, pad;
    struct nibble_model info; // the fields that the worker knows
    char text[240];
};

struct nb_page_channel {
    _Atomic uint64_t channel; // 0: free
    _Atomic uint32_t sessions, jobs;
    _Atomic uint64_t tokens;
};
struct nb_page_model {
    _Atomic uint32_t model; // 0: free
    _Atomic uint32_t sessions;
    _Atomic uint64_t kv_used_bytes;
};
struct nb_page {
    alignas(64) _Atomic uint64_t beat; // counts what gets done; a hang shows in it
    _Atomic uint64_t
        step_started_ns; // a step, or a model that is opened; CLOCK_MONOTONIC; 0 between
    _Atomic uint64_t steps, mixed_steps, prefill_tokens, decode_tokens;
    _Atomic uint32_t n_running; // channels that take part in the running step
    _Atomic uint64_t running[NB_WORKER_CHANNELS];
    struct nb_page_model models[NB_WORKER_MODELS];
    struct nb_page_channel channels[NB_WORKER_CHANNELS];
};
