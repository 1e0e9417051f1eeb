// A broker's and a client's part, as little as it takes to drive nibble-worker directly: start a
// mode, talk over its link, make channels, submit and read completions. Asserts by itself (cmocka).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/link.h"
#include "libclient/ring.h"

struct worker {
    pid_t pid;
    int link;
    struct nb_page *page; // serve alone
};
// Fds from 4 on. The worker's path is NIBBLE_WORKER's.
struct worker worker_spawn(const char *mode, const char *argument, const int *fds, size_t n_fds);
void worker_kill(struct worker *w); // kill -9, and waits
int worker_wait(struct worker *w);  // its exit status, or minus the signal
// The next packet of that type within a minute (others are dropped); into `packet` of NB_WIRE_MAX
// bytes.
void worker_expect(struct worker *w, uint32_t type, void *packet);
bool worker_link_ended(struct worker *w); // waits for it, a minute at most
void worker_send(struct worker *w, uint32_t type, void *packet, uint32_t size, const int *fds,
                 size_t n_fds);

const char *model_path(void); // the real one's
// A loader of one file, which packs it to `image`.
struct worker worker_load(const char *budget, int file, int image);
int model_image(int file); // packed and sealed by the load mode
int random_image(void);    // of a small model of random weights; made once, not to be closed
int real_image(void);
struct worker worker_serve(void);
// MODEL_ADD and its answer.
struct nb_link_model_ready worker_add_model(struct worker *w, uint32_t model, uint32_t context,
                                            int image);

struct client {
    uint64_t key;
    int sock, memfd;
    uint64_t arena_bytes;
    struct nb_ring_indices *ring;
    struct nb_submission *sq;
    struct nb_completion *cq;
    uint8_t *arena;
    uint32_t sq_tail, cq_head;
    uint64_t used; // of the arena: a bump allocator
    uint64_t next_id;
};
struct client client_open(struct worker *w, uint32_t model, uint64_t arena_bytes);
void client_close(struct client *c); // hangs up
// Copies to the arena, 8-byte aligned; returns the offset.
uint64_t client_put(struct client *c, const void *data, size_t len);
// Submits and wakes; returns the job's user_data.
uint64_t client_submit(struct client *c, uint32_t op, uint32_t session, const void *desc,
                       uint32_t desc_len);
void client_submit_raw(struct client *c, const struct nb_submission *submission);
// The next completion; waits a minute at most. False: none came, or the worker hung up.
bool client_next(struct client *c, struct nb_completion *ret);
bool client_hung_up(struct client *c); // waits for it, a minute at most

// What a job told, in all.
struct answer {
    int32_t tokens[8192];
    float logprobs[8192];
    size_t n_tokens;
    char text[65536];
    size_t text_len;
    bool reasoning[65536]; // of each byte of text
    size_t flagged;        // tokens that are reasoning
    uint32_t progress;     // PREFILL completions
    char reason[NB_REASON_MAX + 1];
    struct nb_completion done;
};
// Reads until the job is done (other jobs' completions are an error), or until `most` tokens have
// come. False: the worker hung up before.
bool client_answer(struct client *c, uint64_t job, size_t most, struct answer *a);

// A prompt's ids by the worker's own tokenizer.
size_t client_tokenize(struct client *c, const char *text, uint32_t flags, int32_t *ret,
                       size_t max);
struct nb_desc_generate greedy(struct client *c, const int32_t *tokens, size_t n,
                               uint32_t max_tokens);

// --- what the tests have in common: one worker with one model

#define MODEL   1
#define CONTEXT 1024
#define ARENA   (4u << 20)
#define ALL     SIZE_MAX
#define PROMPT  "Once upon a time there was a lighthouse at the edge of the sea, and in it"

extern struct worker worker;
int start_worker(void **state);
int kill_worker(void **state);

struct answer *new_answer(void);
uint64_t generate(struct client *c, uint32_t session, const struct nb_desc_generate *d);
// A greedy continuation of `text`, whole.
struct answer *continue_text(struct client *c, uint32_t session, const char *text,
                             uint32_t max_tokens);
int32_t status_of(struct client *c, uint64_t job); // reads to the job's end
// Reads to the job's end, which must be that failure, in these words.
void refused(struct client *c, uint64_t job, int32_t status, const char *words);
bool becomes(_Atomic uint32_t *value, uint32_t want);    // waits, ten seconds at most
struct nb_page_channel *page_of(const struct client *c); // NULL when it has none
