// The inside of libnibble: what its files share. From below: connection (control packets), channel
// (rings, arena, slots), tasks (one submission each), jobs and sessions (what the user sees).
// Completions only queue events; callbacks run in nb_deliver alone, so that whatever a callback
// calls finds every structure at rest.
#pragma once

#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "libclient/include/nibble.h"
#include "libclient/options.h"
#include "libclient/ring.h"
#include "libclient/wire.h"

#define NB_SENTENCE 512 // bytes of an error's sentence

// ---- Intrusive lists: a head is a link; a link that is in no list points to itself ----

struct nb_link {
    struct nb_link *prev, *next;
};
#define NB_OF(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))
#define NB_EACH(at, head)                                                                          \
    for (struct nb_link *at = (head)->next, *at##_next = at->next; at != (head);                   \
         at = at##_next, at##_next = at->next)

static inline void nb_link_init(struct nb_link *link)
{
    link->prev = link->next = link;
}

static inline bool nb_list_empty(const struct nb_link *head)
{
    return head->next == head;
}

static inline void nb_list_insert(struct nb_link *after, struct nb_link *link)
{
    link->prev = after;
    link->next = after->next;
    after->next->prev = link;
    after->next = link;
}

static inline void nb_list_append(struct nb_link *head, struct nb_link *link)
{
    nb_list_insert(head->prev, link);
}

static inline void nb_list_remove(struct nb_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    nb_link_init(link);
}

// ---- Connection ----

struct nibble {
    int sock;
    int epoll; // what nibble_get_fd returns: the control socket, each channel's socket, and `nudge`
    int nudge; // eventfd: readable when something waits that no socket tells of
    bool nudged;
    bool requesting;
    int broken; // not 0: the connection is over, and why
    uint32_t role;
    uint32_t serial; // of the last request
    unsigned busy_rounds;
    unsigned delivered;                 // events handed over so far
    struct nb_load *load;               // the nibble_load that waits
    struct nb_wait *wait;               // the nibble_jobs_wait that waits
    const struct nb_model_files *files; // of the nibble_compress that waits
    struct nb_link channels;
    struct nb_link jobs;
    struct nb_link ready; // jobs with events for their callback
    struct nb_link memories;
    char path[108];
    char error[NB_SENTENCE];
};

struct nb_load {
    bool cancelled;
    const struct nibble_load_options *options;
};

struct nb_wait {
    bool given_up;
    const struct nibble_jobs_wait_options *options;
};

struct nb_packet {
    union {
        struct nb_wire_header header;
        alignas(8) unsigned char bytes[NB_WIRE_MAX];
    };
    int fds[NB_WIRE_FDS_MAX];
    size_t n_fds;
};

// Keeps the sentence and returns the code.
__attribute__((format(printf, 3, 4))) int nb_fail(nibble *connection, int code, const char *format,
                                                  ...);
// A copy of an option struct that a caller gave (options.h), or a failure with its sentence.
int nb_options_read(nibble *connection, enum nb_options which, const void *given, void *ret);
// The connection is over: every job and call on it fails with that code. Returns the code.
int nb_break(nibble *connection, int code, const char *sentence);
// A request of the table's size for its type, header filled in here, and its reply. Returns the
// reply's size, or a failure with its sentence. timeout_ms -1: for ever.
int nb_request(nibble *connection, uint32_t type, void *request, const int *fd,
               struct nb_packet *ret_reply, int timeout_ms);
// Sends the files to the socket that asks for them (jobs.c).
void nb_send_files(nibble *connection, int socket);
// A request whose reply nobody waits for.
void nb_tell(nibble *connection, uint32_t type, void *request);
// Handles what came on the control socket. Returns packets handled, or a failure.
int nb_control(nibble *connection);
int nb_list(nibble *connection, enum nb_wire_list what, void *ret_rows, size_t max);

// ---- Waiting (dispatch.c) ----

int64_t nb_now_ns(void);
int64_t nb_deadline(int timeout_ms); // INT64_MAX for -1
int nb_left_ms(int64_t deadline);    // for poll; -1: for ever
// Runs callbacks and handles what comes until done(what): 1; at the timeout 0; a failure of the
// connection.
int nb_pump(nibble *connection, bool (*done)(const void *), const void *what, int timeout_ms);
// At the end of every call that may have queued something: leaves the fd readable if there is work,
// and every channel asleep.
void nb_leave(nibble *connection);

// ---- Channel ----

struct nb_arena {
    uint64_t size;
    unsigned n;
    struct nb_extent {
        uint64_t at, size;
    } used[NB_JOBS_MAX]; // by offset; one for each slot at most
};
void nb_arena_init(struct nb_arena *arena, uint64_t size);
int nb_arena_take(struct nb_arena *arena, uint64_t size, uint64_t *ret_at); // -ENOSPC
void nb_arena_give(struct nb_arena *arena, uint64_t at);

struct nb_slot {          // of one unretired submission
    uint64_t user_data;   // 0: free
    struct nb_task *task; // NULL: abandoned, only its DONE is awaited
    uint64_t block;       // in the arena
    uint32_t session;
    uint32_t reason_len; // of what REASON brought so far
    char reason[NB_REASON_MAX + 1];
};

struct nb_channel {
    struct nb_link link;
    nibble *connection;
    struct nibble_model model;
    char adapter[NB_NAME_MAX]; // of its sessions; "": none
    char numerics[16];
    unsigned moves; // to another device, or to other numerics
    uint32_t handle;
    bool gone; // the daemon has closed it
    int lost;  // not 0: of no use any more, and why
    char lost_text[NB_SENTENCE];
    // Of this incarnation of the worker
    int sock;
    bool hung_up;
    unsigned char *map;
    uint64_t map_size;
    uint32_t sq_tail, cq_head;
    struct nb_arena arena;
    // Of all incarnations
    uint64_t next;
    struct nb_slot slots[NB_JOBS_MAX];
    struct nb_link waiting; // tasks that found no slot or no room
    struct nb_link sessions;
};

// What a submission's owner must be able to do. None of these may wait.
struct nb_task;
struct nb_task_kind {
    uint32_t op, desc_size;
    uint64_t (*size)(struct nb_task *task); // bytes of arena, the descriptor first
    // Writes all that to `block`, which lies at offset `at` of the arena. May happen again after a
    // REBIND.
    void (*write)(struct nb_task *task, unsigned char *block, uint64_t at);
    // One completion, checked as far as any op's; `block` is shared memory: copy, then check. After
    // DONE the task is free. A failure means that the worker broke the protocol.
    int (*complete)(struct nb_task *task, const struct nb_completion *completion,
                    const unsigned char *block);
    void (*fail)(struct nb_task *task, int code, const char *sentence); // it ends without DONE
    void (*moved)(struct nb_task *task);                                // may be NULL
};
struct nb_task {
    const struct nb_task_kind *kind;
    struct nb_channel *channel;
    struct nb_link link;
    struct nb_slot *slot; // NULL: not posted
    uint32_t session;
    bool cancelled;
    const char *reason; // during `complete` of a DONE: the worker's sentence, perhaps ""
};
void nb_task_init(struct nb_task *task, const struct nb_task_kind *kind, nibble_session *session);
int nb_task_submit(struct nb_task *task);   // or the channel's failure
void nb_task_cancel(struct nb_task *task);  // it ends soon, by complete or fail
void nb_task_abandon(struct nb_task *task); // it is forgotten at once; nothing is called any more

// `adapter`: "" for none.
int nb_channel_open(nibble *connection, const char *model, const char *adapter,
                    uint64_t arena_bytes, struct nb_channel **ret_channel);
void nb_channel_close(struct nb_channel *channel);
// Takes a channel's memory and socket over, the fds included in any case.
int nb_channel_map(struct nb_channel *channel, const struct nb_wire_channel *packet,
                   const int *fds);
void nb_channel_unmap(struct nb_channel *channel);
// Keeps who computes. True: it is another than before.
bool nb_channel_place(struct nb_channel *channel, const struct nb_wire_channel *packet);
struct nb_channel *nb_channel_find(nibble *connection, uint32_t handle);
int nb_channel_drain(struct nb_channel *channel);       // returns completions handled
bool nb_channel_pending(struct nb_channel *channel);    // completions wait
bool nb_channel_may_sleep(struct nb_channel *channel);  // false: look again
bool nb_channel_busy(const struct nb_channel *channel); // something is posted
void nb_channel_pump(struct nb_channel *channel);       // posts what waits
void nb_channel_lose(struct nb_channel *channel, int code, const char *sentence);
void nb_channel_forget_session(struct nb_channel *channel,
                               uint32_t session); // NB_SUBMIT_SESSION_CLOSE
void nb_channel_rebind(struct nb_channel *channel, const struct nb_wire_channel *packet,
                       const int *fds);

// ---- Sessions ----

struct nibble_session {
    struct nb_link link;
    struct nb_channel *channel;
    uint32_t id;
    bool used; // the worker knows it
    bool scoring;
    bool closed;
    enum nibble_drafts drafts;
    unsigned moves;  // of its channel, as far as the user was told
    unsigned pins;   // calls that still look at it
    nibble_job *job; // that runs
    int32_t *log;
    size_t n_log, cap_log;
    size_t known; // how many of the log's first tokens the worker's log begins with for certain
};
void nb_session_pin(nibble_session *session);
void nb_session_unpin(nibble_session *session);
// 0 if the session can take a job now.
int nb_session_ready(const nibble_session *session);
// The log becomes its first `keep` tokens and the given ones, if they are the model's and fit its
// context. A failure changes nothing.
int nb_session_set_log(nibble_session *session, size_t keep, const int32_t *tokens, size_t n);
int nb_session_push(nibble_session *session,
                    int32_t token); // one that was generated: -EPROTO, -ENOMEM

// ---- Calls: an input, an output, one DONE ----

#define NB_DESC_ROOM 128u // of a block, for its descriptor

struct nb_call {
    struct nb_task task;
    const void *in; // borrowed
    uint64_t in_size;
    uint64_t room; // bytes for the result
    uint32_t flags;
    bool retried, done;
    int status;
    uint32_t count; // the completion's `a`
    void *out;      // the result's private copy; free it
    char sentence[NB_SENTENCE];
    void (*then)(struct nb_call *call); // instead of a waiting caller
};
// For the kinds' write and complete.
static inline uint64_t nb_align8(uint64_t size)
{
    return (size + 7) & ~(uint64_t)7;
}
uint64_t nb_call_size(struct nb_task *task);
// Copies the input; returns where the result goes, relative to the block.
uint64_t nb_call_place(const struct nb_call *call, unsigned char *block);
int nb_call_complete(struct nb_call *call, const struct nb_completion *completion,
                     const unsigned char *block, uint64_t result);
// Of a call whose result always fills its room.
int nb_call_complete_whole(struct nb_task *task, const struct nb_completion *completion,
                           const unsigned char *block);
void nb_call_fail(struct nb_task *task, int code, const char *sentence);
int nb_call_run(nibble *connection,
                struct nb_call *call); // blocks; the call's status, its sentence kept
// The conversation as JSON (free it), if all of it is sound and no longer than a text may be.
int nb_conversation_write(nibble *connection, const struct nibble_chat *chat, char **ret_text,
                          uint64_t *ret_size);
int nb_text_too_long(nibble *connection, uint64_t size); // NIBBLE_E_QUOTA, with the figures
// A TOKENIZE of `size` bytes that stay where they are. Sets the call in any case.
int nb_tokenize_init(struct nb_call *call, nibble_session *session, const void *text, uint64_t size,
                     uint32_t flags);

// ---- Registered memory ----

struct nibble_memory {
    struct nb_link link; // of the connection
    nibble *connection;
    struct nb_channel *channel; // NULL: it is gone
    uint32_t region;
};
void nb_memories_orphan(struct nb_channel *channel); // it goes
void nb_memories_free(nibble *connection);

// Why a DONE failed: the worker's sentence, or what its status means.
void nb_status_sentence(const struct nb_task *task, int status, char *ret_sentence);

// ---- Jobs ----

struct nb_matrix_job;
struct nb_node {
    struct nb_link link;
    struct nibble_event event;
    char text[];
};

struct nibble_job {
    struct nb_link link;  // of the connection
    struct nb_link ready; // of the connection's ready
    nibble *connection;
    nibble_session *session; // NULL once done
    nibble_callback callback;
    void *user;
    struct nb_link events;
    struct nb_node *last;      // what nibble_job_next gave
    struct nb_node *done_node; // made before it is needed
    unsigned pins;
    bool in_callback, freed, cancelled, done;
    int error;
    char sentence[NB_SENTENCE];
    // The prompt, until it is tokens
    struct nb_call tokenize;
    void *text;
    bool append;
    // The generation
    struct nb_task task;
    struct nibble_generate_options options; // its stop strings lie in `stop`
    unsigned char *stop;
    size_t stop_size;
    size_t n_prompt;
    uint32_t proposed, accepted;  // tokens, as its last worker said
    uint64_t text_bytes;          // received
    uint64_t loose_text;          // of it, what came with no token since the last one
    struct nb_node *token;        // a token that waits for the rest of its text
    size_t token_text;            // of which so much is there
    struct nb_matrix_job *matrix; // or the matrix job (matrices.c)
};
nibble_job *nb_job_create(nibble_session *session, nibble_callback callback, void *user); // or NULL
// An event without text, or with. -ENOMEM.
struct nb_node *nb_job_event(nibble_job *job, enum nibble_event_type type, size_t text_size);
void nb_job_queue(nibble_job *job, struct nb_node *node);
// The last event; takes the job from its session.
void nb_job_finish(nibble_job *job, enum nibble_finish finish, int error, const char *sentence);
void nb_job_end(nibble_job *job, int error, const char *sentence); // at once, whatever runs
void nb_job_destroy(nibble_job *job);
void nb_job_moved(nibble_job *job); // tells of another worker
int nb_deliver(nibble *connection); // runs callbacks; how many
