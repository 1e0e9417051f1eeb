// Between the broker and its workers: packets of wire.h's shape over a SOCK_SEQPACKET pair (fd 3 of
// a worker), and one page of shared memory (fd 4 of a serving worker) in which the worker counts
// and names what it is running, so that the broker can tell without asking, and still after the
// worker's death. The worker may be compromised: the broker checks what comes from it as it checks
// a client.
#pragma once

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "libclient/include/nibble.h"
#include "libclient/wire.h"

// A worker's command line (stdin is /dev/null, stdout and stderr the daemon's log; every other fd
// is closed):
//   nibble-worker probe           sends DRIVERS, a DEVICE for each device and for each driver that
//                                 should have had one, and FINDINGs; exits 0
//   nibble-worker load BUDGET[+zeros]
//                                 packs (with the zeros at an incomplete file's end, where the
//                                 administrator wants them); a model whose packed form is larger
//                                 than BUDGET bytes is answered before a page is
//                                 written by LOADED with status NIBBLE_E_TOO_LARGE and the bytes it
//                                 needs: the broker knows the figures and words the refusal
//                                 (RLIMIT_FSIZE is BUDGET too). Seals a memfd it has packed (WRITE,
//                                 SHRINK, GROW, SEAL); the broker checks that. A FILE for each
//                                 of its files comes before anything else. Exits after LOADED.
//   nibble-worker job store       takes in a job's recipe and sources, so that it can do without
//   its
//                                 client: a JOB with the number of files, which the client itself
//                                 sends, a FILE of wire.h each, over a socket of theirs. It opens
//                                 again what it can by its path; the rest it copies, once a
//                                 JOB_NEEDS is answered by JOB_GRANT. Sends JOB_DONE, exits.
//   nibble-worker job run         does the job that the folder has, or goes on with it: a JOB, then
//                                 as above; JOB_PROGRESS meanwhile. May be killed at any instant.
//   nibble-worker serve DEVICE    sends its DEVICE, then serves; exits when the link ends. Sends a
//                                 CACHE when its device cache has changed
// Packets are handled in order: a CHANNEL_ADD may follow its model's MODEL_ADD at once, before
// MODEL_READY.
#define NB_LINK_FD  3
#define NB_PAGE_FD  4 // serve
#define NB_CACHE_FD 5 // serve: the device cache, perhaps empty
#define NB_IMAGE_FD 4 // load: the empty memfd (or cache file) to pack into
#define NB_FILE_FD  5 // load: the first of the model's files, to read; the others behind it

#define NB_JOB_FOLDER_FD 4 // job: its folder in the state directory
#define NB_JOB_RECIPE_FD 5 // job store: a sealed memfd
#define NB_JOB_SOCKET_FD 6 // job store: brings its files, from the client

#define NB_LINK_ZEROS "+zeros"

#define NB_NUMERICS "n1" // docs/numerics.md's id, shown with results

#define NB_EXIT_FAULT 3 // the exit status of a worker whose device failed
#define NB_FAULT_TEXT 208

#define NB_CACHE_MAX (32 << 20) // of a device cache

#define NB_WORKER_MODELS   32
#define NB_WORKER_CHANNELS 256

enum nb_link_type {
    // broker to worker
    NB_LINK_MODEL_ADD = 0x400, // one fd: the sealed image, a model's, a drafter's or an adapter's
    NB_LINK_MODEL_REMOVE,      // its channels were removed before
    NB_LINK_CHANNEL_ADD,       // two fds: the channel's memfd, the worker's end of its socket
    NB_LINK_CHANNEL_REMOVE,
    NB_LINK_DRAIN,         // finish what runs, take nothing new, exit 0
    NB_LINK_MEMORY_ADD,    // one fd: memory that a channel registered
    NB_LINK_MEMORY_REMOVE, // jobs that use it are cancelled
    NB_LINK_PING,          // a header alone: answered by a beat in the page
    NB_LINK_FILE,          // load: what one of its files is called, in their order
    NB_LINK_JOB,           // job: what it is
    NB_LINK_JOB_GRANT,     // job: it may have what it needs. A header alone
    // worker to broker
    NB_LINK_DEVICE = 0x500, // probe, and serve at its start: one device
    NB_LINK_PROGRESS,       // load: struct nb_wire_progress
    NB_LINK_LOADED,         // load: the image is packed (status, text, bytes)
    NB_LINK_MODEL_READY,    // serve: status, text, and what the model is
    NB_LINK_CHANNEL_GONE,   // serve: the client hung up or broke the protocol; answered by
                            // CHANNEL_REMOVE. A REMOVE of what is gone already, or was never
                            // accepted, is no error.
    NB_LINK_FAULT,          // why it cannot work, before it ends itself; NB_EXIT_FAULT of serve
    NB_LINK_CACHE,          // serve: one fd, a memfd sealed against any change: the new device
                            // cache. A header alone.
    NB_LINK_MEMORY_READY,   // serve: it is mapped, or not (status). Told of each MEMORY_ADD.
    NB_LINK_DRIVERS,        // probe: which drivers serving workers may load
    NB_LINK_FINDING,        // probe: what `nibble doctor` shows
    // serve: nothing is left here of what a CHANNEL_REMOVE or MEMORY_REMOVE named. Told of each.
    NB_LINK_CHANNEL_DROPPED,
    NB_LINK_MEMORY_DROPPED,
    NB_LINK_CLOSING,      // serve: a user's client left descriptors in a channel's socket. Its
                          // close may take long, and goes on beside what is served.
    NB_LINK_CLOSED,       // serve: one of that user's is closed
    NB_LINK_JOB_NEEDS,    // job: so many bytes of the state directory more; waits for JOB_GRANT
    NB_LINK_JOB_PROGRESS, // job run
    NB_LINK_JOB_DONE,     // job: status and text; of a run the names of its results
};

struct nb_link_model_add {
    struct nb_wire_header header;
    uint32_t model;       // the broker's handle
    uint32_t drafts;      // 1: its generations may have some
    uint64_t kv_most;     // of KV memory, where the worker chooses
    char kv_most_by[128]; // what bounds it, as a sentence goes on
    char name[NB_NAME_MAX];
    struct nb_load_params params; // no text is empty
    uint32_t base; // of an adapter or a drafter: the model that it goes with; 0: none
    float scale;   // of an adapter
    uint32_t drafter, pad;
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
// MEMORY_ADD, MEMORY_READY; MEMORY_REMOVE and MEMORY_DROPPED (channel and region)
struct nb_link_memory {
    struct nb_wire_header header;
    uint64_t channel;
    uint64_t offset, bytes; // of the fd
    uint64_t packed_bytes;  // that packed copies of matrices that cannot change may take
    uint32_t region, flags; // NB_REGISTER_READ_ONLY
};
// MODEL_REMOVE (model), CHANNEL_REMOVE, CHANNEL_GONE, CHANNEL_DROPPED (channel), DRAIN
struct nb_link_ref {
    struct nb_wire_header header;
    uint64_t channel;
    uint32_t model, pad;
};
struct nb_link_closing { // CLOSING, CLOSED
    struct nb_wire_header header;
    uint32_t uid, pad;
};
struct nb_link_device {
    struct nb_wire_header header; // serve: status, where it cannot open the device (device.reason)
    struct nibble_device device;
    uint64_t number; // probe: of the device's node (dev_t); 0: it has none
};
struct nb_link_drivers {
    struct nb_wire_header header;
    uint32_t limited;     // 0: those that the Vulkan loader finds; 1: these
    uint32_t crashing;    // so many of the others crash or hang
    char manifests[3072]; // joined by colons; "": none
};
// Lets the Vulkan loader of this process and its children see these alone. /dev/null stands for
// none, because the loader takes an empty list for no list. Returns 0, or -1 with errno.
static inline int nb_link_allow_drivers(const char *manifests)
{
    const char *list = *manifests ? manifests : "/dev/null";
    unsetenv("VK_ADD_DRIVER_FILES");
    // The second name is for loaders before 1.3.207.
    return setenv("VK_DRIVER_FILES", list, 1) | setenv("VK_ICD_FILENAMES", list, 1);
}
struct nb_link_finding {
    struct nb_wire_header header;
    struct nibble_finding finding;
};
struct nb_link_file {
    struct nb_wire_header header;
    uint32_t files, pad; // so many there are
    char name[NB_WIRE_FILE_NAME];
};
struct nb_link_job {
    struct nb_wire_header header;
    char kind[16];
    uint32_t files; // store: so many FILEs come by the socket
    uint32_t idle;  // run: 1: when nothing else would
};
struct nb_link_job_needs {
    struct nb_wire_header header;
    uint64_t bytes;
};
struct nb_link_job_progress {
    struct nb_wire_header header;
    uint64_t done, total, eta_ms;
    char text[120];
    float figure; // what it lowers, a loss; NaN: nothing
    uint32_t pad;
};
#define NB_JOB_RESULTS 8 // files: result.0 and so on in the job's folder
struct nb_link_job_done {
    struct nb_wire_header header; // status: 0 or the failure
    char text[240];
    uint32_t n, pad;
    char names[NB_JOB_RESULTS][NB_NAME_MAX];
};
struct nb_link_loaded {
    struct nb_wire_header header; // status: 0 or the failure
    uint64_t bytes;
    char text[240];
    uint32_t zeros, pad; // 1: the image has the zeros of an incomplete file
};
struct nb_link_fault {
    struct nb_wire_header header;
    char text[NB_FAULT_TEXT]; // what its device, or its start, failed with
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
    _Atomic uint64_t kv_touched_bytes; // that were used at any time: the memory that it has
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
