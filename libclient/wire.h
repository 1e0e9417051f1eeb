// The control protocol between a client and the broker, over SOCK_SEQPACKET: fixed structs, one a
// packet, host byte order (it never leaves the machine). docs/protocol.md is the page to implement
// it from.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NB_WIRE_MAGIC   0x3142424eu // "NBB1"
#define NB_WIRE_VERSION 1
#define NB_WIRE_MAX     4096 // bytes of a packet
#define NB_WIRE_FDS_MAX 4
#define NB_NAME_MAX     64 // with the NUL

enum nb_wire_type {
    // Requests, and their replies (type | NB_WIRE_REPLY) with the request's serial.
    NB_WIRE_HELLO = 1,
    NB_WIRE_STATUS,
    NB_WIRE_LIST, // models, devices, holders: by cursor
    NB_WIRE_OPEN_CHANNEL,
    NB_WIRE_CLOSE_CHANNEL,
    NB_WIRE_LOAD,        // admin; one fd
    NB_WIRE_UNLOAD,      // admin
    NB_WIRE_CANCEL_LOAD, // admin; the LOAD's serial; no reply of its own: the LOAD's is -ECANCELED
    NB_WIRE_REGISTER,    // one fd: memory that a channel's operators may use
    NB_WIRE_UNREGISTER,
    NB_WIRE_REPLY = 0x100,
    // Events, serial 0 but for PROGRESS.
    NB_WIRE_PROGRESS = 0x200, // of the LOAD with that serial
    NB_WIRE_REBIND,           // two fds: a channel has a new worker and new memory
    NB_WIRE_CHANNEL_LOST,     // a channel is gone: model unloaded, worker not to be restarted
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

struct nb_wire_empty { // STATUS and CANCEL_LOAD requests; CLOSE_CHANNEL, LOAD and UNLOAD replies
    struct nb_wire_header header;
};

struct nb_wire_status_reply {
    struct nb_wire_header header;
    char version[32], numerics[16];
    uint64_t uptime_ms, weights_bytes, kv_bytes, kv_used_bytes, channel_bytes;
    uint64_t steps, mixed_steps, prefill_tokens, decode_tokens;
    uint32_t models, clients, sessions, jobs, worker_restarts, pad;
};

enum nb_wire_list { NB_LIST_MODELS, NB_LIST_DEVICES, NB_LIST_HOLDERS };
struct nb_wire_list_request {
    struct nb_wire_header header;
    uint32_t what;
    uint32_t cursor; // 0 first, then next_cursor of the reply
};
// Followed by n rows: struct nibble_model, nibble_device or nibble_holder of <nibble.h>.
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

struct nb_wire_load {
    struct nb_wire_header header;
    char name[NB_NAME_MAX];
    char device[32];             // "": the CPU
    char precision[16];          // "": balanced
    uint32_t context, temporary; // 1: unloaded when this connection ends
    uint64_t kv_bytes;
    char fallback[32];        // the device that takes over when this one is lost; "": none
    uint32_t gpu_layers, pad; // of the device, the last ones; the CPU has the others; 0: it has all
    char kv_type[16];         // "": f16
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
// ret_fds[NB_WIRE_FDS_MAX], to be closed by the caller. Returns its size (>= a header, and equal to
// the header's), 0 at the end, -EAGAIN, or -EPROTO for a truncated, short or misdescribed packet or
// too many fds, every fd closed.
int nb_wire_recv(int sock, void *buf, int *ret_fds, size_t *ret_n_fds);
void nb_wire_close_fds(const int *fds, size_t n_fds);

// A pair of connected sockets, O_CLOEXEC and non-blocking: SOCK_SEQPACKET for packets as above, or
// SOCK_STREAM for a channel's two ends.
int nb_wire_pair(int type, int ret_socks[2]);

// A channel's socket carries bytes that mean nothing but "look at the ring". To wake the peer: 0,
// also when enough bytes wait already; -EPIPE when it is gone.
int nb_wake_send(int sock);
// Takes a handful of what has come (the fd stays readable while there is more): 0, or -EPIPE when
// the peer hung up.
int nb_wake_drain(int sock);
