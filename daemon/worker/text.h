// Texts to tokens beside the loop: a short text is done at once, a long one and whatever a template
// makes of a conversation by one helper thread, so that streams do not wait for it. A task owns
// private copies of all it needs and outlives its job: what comes back for a job that is gone is
// dropped.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "libclient/ring.h"
#include "tensor/fail.h"

struct nb_channel;
struct nb_job;
struct nb_serve;
struct nb_text_task;

struct nb_text_kind {
    void (*run)(struct nb_text_task *t);                        // on either thread
    void (*answer)(struct nb_job *job, struct nb_text_task *t); // what becomes of it
};

struct nb_text_task {
    const struct nb_text_kind *kind;
    struct nb_text_task *next;
    uint64_t channel, user_data; // whose job
    const struct nb_tokenizer *tokenizer;
    const struct nb_chat_template *chat; // for NB_TEXT_CHAT
    char *text;
    uint64_t len, out;
    uint32_t out_max, flags;
    atomic_bool stop; // nobody waits for it any more
    int status;
    struct nb_error error; // where it failed
    struct nb_tokens tokens;
    struct nb_rendering rendering; // with NB_TEXT_RENDER, in their place
    // Of several texts, one after the other: of each first its bytes, then its tokens; and, from 1,
    // the one that was run last.
    uint32_t *length, n_texts, failed;
};

// Whether the channel may have a text of so many bytes wait: -E2BIG, NIBBLE_E_QUOTA.
int nb_text_check(struct nb_channel *c, uint64_t len);
// Takes the text over, but for a failure; NULL: no memory.
struct nb_text_task *nb_text_task_create(const struct nb_job *job, const struct nb_text_kind *kind,
                                         char *text, uint64_t len);
// Runs it at once if it is short, and answers; or has the helper run it.
void nb_text_submit(struct nb_job *job, struct nb_text_task *t);
// Why a text of so many bytes has no tokens, by the task's status.
void nb_text_explain(struct nb_text_task *t, uint64_t len);

// The helper thread; *ret_fd is readable when there is something to deliver.
int nb_text_start(int *ret_fd);
void nb_text_stop(void); // stops what runs
// Drops what waits for a channel that goes, and stops what runs for it.
void nb_text_forget(uint64_t channel);
void nb_text_cancel(struct nb_text_task *t); // its job is gone: what it would say is dropped
// Waits for a text that runs with this tokenizer, before it goes; its channels were forgotten
// before.
void nb_text_settle(const struct nb_tokenizer *tokenizer);
void nb_text_deliver(struct nb_serve *s);
