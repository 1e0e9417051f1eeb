// Texts to tokens beside the loop: a short text is done at once, a long one by one helper thread,
// so that streams do not wait for it. A task owns private copies of all it needs and outlives its
// job: what comes back for a job that is gone is dropped.
#pragma once

#include <stdint.h>

#include "engine/chat_template.h"
#include "engine/tokenizer.h"

struct nb_job;
struct nb_serve;

struct nb_text_task {
    struct nb_text_task *next;
    uint64_t channel, user_data; // whose job
    const struct nb_tokenizer *tokenizer;
    const struct nb_chat_template *chat; // for NB_TEXT_CHAT
    char *text;
    uint64_t len, out;
    uint32_t out_max, flags;
    int status;
    struct nb_tokens tokens;
};

// The helper thread; *ret_fd is readable when there is something to deliver.
int nb_text_start(int *ret_fd);
void nb_text_stop(void);               // waits for what runs
void nb_text_forget(uint64_t channel); // drops what waits for a channel that goes
// Waits for a text that runs with this tokenizer, before it goes; its channels were forgotten
// before.
void nb_text_settle(const struct nb_tokenizer *tokenizer);
void nb_text_deliver(struct nb_serve *s);
