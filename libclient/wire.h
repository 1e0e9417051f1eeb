// The control protocol between a client and the broker, over SOCK_SEQPACKET: fixed structs, one a
// packet, host byte order (it never leaves the machine). docs/protocol.md is the page to implement
// it from.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NB_WIRE_MAGIC     0x3142424eu // "NBB1"
#define NB_WIRE_VERSION   1
#define NB_WIRE_MAX       4096 // bytes of a packet
#define NB_WIRE_FDS_MAX   4
#define NB_NAME_MAX       64  // with the NUL
#define NB_WIRE_FILES     256 // of a model
#define NB_WIRE_FILE_NAME 256 // with the NUL
// What the names of a job's files begin with that are not the model's: texts, an importance
// matrix, and another model.
#define NB_JOB_CALIBRATION "calibration/"
#define NB_JOB_IMATRIX     "imatrix/"
#define NB_JOB_TEACHER     "teacher/"
// And of an adapter's that comes beside a model's: "adapter/SCALE/NAME".
#define NB_MODEL_ADAPTER "adapter/"

enum nb_wire_type {
    // Requests, and their replies (type | NB_WIRE_REPLY) with the request's serial.
    NB_WIRE_HELLO = 1,
    NB_WIRE_STATUS,
    NB_WIRE_LIST, // models, devices, holders, findings: by cursor
    NB_WIRE_OPEN_CHANNEL,
    NB_WIRE_CLOSE_CHANNEL,
    NB_WIRE_LOAD,        // admin; the files came before, by FILE
    NB_WIRE_UNLOAD,      // admin
    NB_WIRE_CANCEL_LOAD, // admin; the LOAD's serial; no reply of its own: the LOAD's is -ECANCELED
    NB_WIRE_REGISTER,    // one fd: memory that a channel's matrix jobs may use
    NB_WIRE_UNREGISTER,
    NB_WIRE_FILE, // admin; one fd: a file of the model that the next LOAD loads. Of a job's files
                  // it goes to JOB_FILES' socket, whoever starts it
    NB_WIRE_JOB_START, // one fd: the recipe; the files follow when JOB_FILES asks for them
    NB_WIRE_JOB_WAIT,  // the reply comes when the job is over
    NB_WIRE_JOB_CONTROL,
    NB_WIRE_JOB_RESULT, // the reply brings one fd
    NB_WIRE_REPLY = 0x100,
    // Events, serial 0 but for PROGRESS, JOB_PROGRESS and JOB_FILES.
    NB_WIRE_PROGRESS = 0x200, // of the LOAD with that serial
    NB_WIRE_REBIND,           // two fds: a channel has a new worker and new memory
    NB_WIRE_CHANNEL_LOST,     // a channel is gone: model unloaded, worker not to be restarted
    NB_WIRE_JOB_PROGRESS,     // of the JOB_WAIT with that serial
    NB_WIRE_JOB_FILES, // of the JOB_START with that serial; one fd: the socket that takes the files
};

struct nb_wire_header {
    uint32_t type;
    uint32_t size;   // of the whole packet
    uint32_t serial; // chosen by the client, echoed
    int32_t status;  // replies and CHANNEL_LOST: 0, negative errno or NIBBLE_E
};

// A failed request's reply is this, whatever its type.
struct nb_wire_error {
    struct nb_wire_header header;
    char text[240]; // one sentence, NUL-terminated
};

struct nb_wire_hello {
    struct nb_wire_header header;
    uint32_t magic;
    uint16_t version_min, version_max; // the client's range; in the reply both are the chosen one
    uint64_t features;
    char version_text[32];
};

struct nb_wire_empty { // requests and replies that say nothing more
    struct nb_wire_header header;
};

struct nb_wire_status_reply {
    struct nb_wire_header header;
    char version[32], numerics[16];
    uint64_t uptime_ms, weights_bytes, kv_bytes, kv_used_bytes, channel_bytes;
    uint64_t steps, mixed_steps, prefill_tokens, decode_tokens;
    uint32_t models, clients, sessions, jobs, worker_restarts, pad;
};

enum nb_wire_list {
    NB_LIST_MODELS,
    NB_LIST_DEVICES,
    NB_LIST_HOLDERS,
    NB_LIST_FINDINGS,
    NB_LIST_JOBS
};
struct nb_wire_list_request {
    struct nb_wire_header header;
    uint32_t what;
    uint32_t cursor; // 0 first, then next_cursor of the reply
};
// Followed by n rows: struct nibble_model, nibble_device, nibble_holder, nibble_finding or
// nibble_jobs_row of <nibble.h>.
struct nb_wire_list_reply {
    struct nb_wire_header header;
    uint32_t n, total;
    uint32_t next_cursor; // 0: that was all
    uint32_t row_size;
};

struct nb_wire_open_channel {
    struct nb_wire_header header;
    char model[NB_NAME_MAX];
    uint64_t arena_bytes;
    char adapter[NB_NAME_MAX]; // that all of its sessions have; "": none
};
// Also REBIND (type, serial 0). fds: the channel's memfd, the socket to the worker.
struct nb_wire_channel {
    struct nb_wire_header header;
    uint32_t channel;     // valid on this connection alone
    uint32_t incarnation; // of the worker
    uint64_t arena_bytes;
    char device[32], numerics[16]; // who computes, and by which rules
};

struct nb_wire_channel_ref { // CLOSE_CHANNEL request; CHANNEL_LOST event
    struct nb_wire_header header;
    uint32_t channel, pad;
    char text[240];
};

#define NB_REGISTER_READ_ONLY 1u
struct nb_wire_register {
    struct nb_wire_header header;
    uint32_t channel, flags;
    uint64_t offset, bytes; // of the file, the offset at a page
};
struct nb_wire_memory { // REGISTER reply, UNREGISTER request
    struct nb_wire_header header;
    uint32_t channel;
    uint32_t region; // of the channel, not 0; never used again by it
};

struct nb_wire_file {
    struct nb_wire_header header;
    char name[NB_WIRE_FILE_NAME]; // within its folder
};

// How a model is served, on whatever device: said by its load, told to its worker (daemon/link.h),
// and remembered over a restart of the daemon (daemon/params.c has the table).
struct nb_load_params {
    uint32_t context; // 0: the model's own
    uint32_t pad;
    uint64_t kv_bytes;  // 0: by the worker
    char precision[16]; // "": balanced
    char kv_type[16];   // "": f16, at exact f32
};
struct nb_wire_load {
    struct nb_wire_header header;
    char name[NB_NAME_MAX];
    char device[32];     // "": the CPU
    char fallback[32];   // the device that takes over when this one is lost; "": none
    uint32_t gpu_layers; // of the device, the last ones; the CPU has the others; 0: it has all
    uint32_t force;      // 1: a file that is zero to its end is loaded as it is
    uint32_t temporary;  // 1: unloaded when this connection ends
    float scale;         // of an adapter, its strength; of a model 0
    struct nb_load_params params;
    // The file is an adapter, for sessions of this model, or with `drafter` the files are a model
    // that proposes tokens for it. It is served as that is: of all the rest only name, force,
    // temporary and an adapter's scale are said. "": the files are a model.
    char base[NB_NAME_MAX];
    uint32_t drafter, pad;
};

struct nb_wire_unload {
    struct nb_wire_header header;
    char name[NB_NAME_MAX];
    uint32_t force, pad;
};

struct nb_wire_progress {
    struct nb_wire_header header;
    uint64_t done, total;
};

// ---- Jobs of the service: compressions, and what else takes long and is gone on with after the
// death of whoever computes it

#define NB_JOB_RECIPE_MAX (64u << 10) // bytes
#define NB_JOB_CURVE      32
#define NB_JOB_DETACHED   1u // it outlives the connection
struct nb_wire_job_start {
    struct nb_wire_header header;
    char kind[16];          // "round": compression, rounded to nearest
    char name[NB_NAME_MAX]; // for display: what it is about
    uint32_t flags;
    uint32_t files; // so many there are
};
struct nb_wire_job { // JOB_START's reply, JOB_WAIT, JOB_FILES
    struct nb_wire_header header;
    uint64_t job; // of this daemon's state directory, never used again
};
enum nb_job_control { NB_JOB_CANCEL, NB_JOB_PAUSE, NB_JOB_RESUME };
struct nb_wire_job_control {
    struct nb_wire_header header;
    uint64_t job;
    uint32_t what, pad;
};
struct nb_wire_job_progress {
    struct nb_wire_header header;
    uint64_t job;
    uint64_t done, total; // of what, the kind decides; total 0: not known yet
    uint64_t eta_ms;      // UINT64_MAX: not known
    char state[16];
    char text[120];            // what it is at
    float curve[NB_JOB_CURVE]; // what it lowers: as in a row of LIST
};
struct nb_wire_job_result { // JOB_RESULT (job, index); its reply, with the file, read-only
    struct nb_wire_header header;
    uint64_t job, bytes;
    uint32_t index, n; // of so many files
    char name[NB_NAME_MAX];
};

// Which role may send a request, its exact size and number of fds: the one table that both sides
// and the fuzzer use. Events are in it with roles 0, size and fds in the reply's columns.
enum nb_wire_role { NB_ROLE_APP = 1, NB_ROLE_ADMIN = 2 };
struct nb_wire_message {
    uint32_t type;
    const char *name;
    uint32_t roles;            // who may send it; 0: no client
    uint32_t size, reply_size; // reply_size: exact but for LIST, whose rows follow; 0: no reply
    uint32_t fds, reply_fds;
};
const struct nb_wire_message *nb_wire_message(uint32_t type); // NULL: no such request or event

// Neither of these waits, whatever the socket's mode; both restart after a signal.
// One packet out, with fds (borrowed). -EAGAIN when the socket is full, -EPIPE when the peer is
// gone (no signal).
int nb_wire_send(int sock, const void *packet, size_t size, const int *fds, size_t n_fds);
// One packet in, to buf of NB_WIRE_MAX bytes, aligned to 8; its fds (O_CLOEXEC) to
// ret_fds[NB_WIRE_FDS_MAX], to be closed by the caller, also after a failure. Returns its size (>=
// a header, and equal to the header's), 0 at the end, -EAGAIN, -EPROTO for a truncated, short or
// misdescribed packet or too many fds, or -EMFILE when there is no room for them. A packet that is
// not returned stays in the socket, with what is left of its fds.
int nb_wire_recv(int sock, void *buf, int *ret_fds, size_t *ret_n_fds);
// The next packet's header, as far as it has one, and whether fds come with it. Takes nothing. 1, 0
// at the end, or a negative errno.
int nb_wire_look(int sock, struct nb_wire_header *ret_header, bool *ret_has_fds);
void nb_wire_close_fds(const int *fds, size_t n_fds);

// The last close of a stranger's fd may block for as long as its owner chose, and closing a socket
// drops those that lie in it. So before a socket of packets is closed: nothing more comes in after
// this; true: fds lie in it, so close it where nobody waits. Anything else than a socket is fine.
bool nb_wire_end(int sock);
// Whether the socket lets the peer send fds; where the kernel has no such switch it always does.
void nb_wire_accept_fds(int sock, bool accept);

// A pair of connected sockets, O_CLOEXEC and non-blocking: SOCK_SEQPACKET for packets as above, or
// SOCK_STREAM for a channel's two ends, which accept no fds.
int nb_wire_pair(int type, int ret_socks[2]);

// A channel's socket carries bytes that mean nothing but "look at the ring". To wake the peer: 0,
// also when enough bytes wait already; -EPIPE when it is gone.
int nb_wake_send(int sock);
// Takes a handful of what has come (the fd stays readable while there is more): 0, -EPIPE when the
// peer hung up, or -EPROTO when it sent fds, which stay in the socket.
int nb_wake_drain(int sock);
bool nb_wake_end(int sock); // as nb_wire_end
