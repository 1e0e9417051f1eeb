// A daemon and a worker in one thread, for tests of the library: they keep the protocol as
// docs/protocol.md has it, count what the client does wrong, and break whatever a test asks them
// to.
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "libclient/include/nibble.h"
#include "libclient/ring.h"
#include "libclient/wire.h"

#define FAKE_VOCAB    512
#define FAKE_WIDTH    8 // of a vector
#define FAKE_BOS      256
#define FAKE_EOS      257
#define FAKE_OPEN     258 // of a conversation
#define FAKE_SHUT     259
#define FAKE_MODELS   5 // "m0" .. "m4", of which all can be opened
#define FAKE_CHANNELS 8
#define FAKE_CLIENTS  8
#define FAKE_TEXT_MAX 1024

struct fake_job {
    uint64_t user_data;
    uint32_t session, generated;
    struct nb_desc_generate desc;
};

struct fake_channel {
    int control; // -1: free
    int sock;
    uint32_t handle, incarnation;
    uint64_t arena;
    unsigned char *map;
    uint32_t sq_head, cq_tail;
    int32_t *logs[NB_SESSIONS_MAX];
    uint32_t n_logs[NB_SESSIONS_MAX];
    struct fake_job jobs[NB_JOBS_MAX];
    unsigned n_jobs;
    uint64_t embedding; // the held batch; 0: none
    uint32_t tokens;    // told by all its workers
};

struct fake {
    char dir[64], path[96], admin_path[96];
    int listener, admin_listener, wake[2];
    pthread_t thread;
    int clients[FAKE_CLIENTS];
    struct fake_channel channels[FAKE_CHANNELS];
    uint32_t next_handle;

    // What the test wants; set while nothing runs, or atomic.
    uint32_t context;
    uint32_t eos_after;        // of generated tokens; 0: never
    uint32_t token_text;       // bytes of text a token; 0: one
    uint32_t reasoning;        // of a job's tokens, the first ones; half of the last one's text
    _Atomic int hold;          // 1: the worker computes nothing
    char device[32];           // that REBIND and OPEN_CHANNEL name
    _Atomic int die_after;     // so many tokens from now, the worker dies; 0: never
    _Atomic int die_every;     // the same, of each worker
    _Atomic int die_in_text;   // ... when it has told the first part of that token's text
    _Atomic int lose_after;    // so many tokens from now, CHANNEL_LOST
    _Atomic int hang_up_after; // so many tokens from now, the daemon closes everything
    // Answers a request in its own way; true: nothing else is to be done.
    bool (*override)(struct fake *fake, int sock, const struct nb_wire_header *request);
    // Spoils a completion before it is posted.
    void (*spoil)(struct fake_channel *channel, struct nb_completion *completion);
    _Atomic int cancel_load_seen;
    int refuse_status; // not 0: every job is refused so, in these words
    char refuse[256];
    _Atomic int die_in_embed;  // so many batches from now, in its middle
    _Atomic int die_in_reason; // so many refusals from now, after the first piece of its sentence

    // What it saw.
    _Atomic int violations; // of the protocol, by the client
    _Atomic int n_generates, n_cancels, n_closes, n_channels, n_tokenizes, n_embeds;
    _Atomic uint32_t last_base, last_n_tokens, last_replay;
    _Atomic uint32_t most_jobs; // that ran at once
};

struct fake *fake_start(void);
void fake_stop(struct fake *fake);
void fake_kick(struct fake *fake); // look again: a knob was turned

// For scripts in `override`.
void fake_reply(int sock, const struct nb_wire_header *request, void *reply, uint32_t size,
                const int *fds, size_t n_fds);
void fake_refuse(int sock, const struct nb_wire_header *request, int code, const char *text);
int fake_memory(uint64_t size, unsigned seals);
