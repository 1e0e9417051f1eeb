// Text to tokens and back, and conversations to either, by the worker that has the model's
// tokenizer and its chat template.
#include "libclient/client.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

// How large the result is, only the worker knows: it is told how much room there is, answers how
// much it takes, and is asked once more if that was not enough.
static int complete(struct nb_call *call, const struct nb_completion *completion,
                    const unsigned char *block, uint64_t unit)
{
    uint64_t result = completion->status == 0 ? completion->a * unit : 0;
    if (completion->kind != NB_COMPLETION_DONE || result <= call->room)
        return nb_call_complete(call, completion, block, result);
    if (call->retried || completion->a > INT_MAX)
        return -EPROTO;
    call->retried = true;
    call->room = result;
    if (nb_task_submit(&call->task) < 0)
        nb_call_fail(&call->task, call->task.channel->lost, call->task.channel->lost_text);
    return 0;
}

// What TOKENIZE answers with: bytes of text, or ids.
static uint64_t unit_of(const struct nb_call *call)
{
    return call->flags & NB_TEXT_RENDER ? 1 : sizeof(int32_t);
}

static void write_tokenize(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const struct nb_call *call = NB_OF(task, struct nb_call, task);
    struct nb_desc_tokenize desc = {.text = at + NB_DESC_ROOM,
                                    .text_len = call->in_size,
                                    .out = at + nb_call_place(call, block),
                                    .out_max = (uint32_t)(call->room / unit_of(call)),
                                    .flags = call->flags};
    memcpy(block, &desc, sizeof(desc));
}

static int complete_tokenize(struct nb_task *task, const struct nb_completion *completion,
                             const unsigned char *block)
{
    struct nb_call *call = NB_OF(task, struct nb_call, task);
    return complete(call, completion, block, unit_of(call));
}

static void write_detokenize(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const struct nb_call *call = NB_OF(task, struct nb_call, task);
    struct nb_desc_detokenize desc = {.tokens = at + NB_DESC_ROOM,
                                      .n_tokens = (uint32_t)(call->in_size / sizeof(int32_t)),
                                      .out = at + nb_call_place(call, block),
                                      .out_max = call->room};
    memcpy(block, &desc, sizeof(desc));
}

static int complete_detokenize(struct nb_task *task, const struct nb_completion *completion,
                               const unsigned char *block)
{
    struct nb_call *call = NB_OF(task, struct nb_call, task);
    return complete(call, completion, block, 1);
}

static const struct nb_task_kind tokenize_kind = {
    .op = NB_SUBMIT_TOKENIZE,
    .desc_size = sizeof(struct nb_desc_tokenize),
    .size = nb_call_size,
    .write = write_tokenize,
    .complete = complete_tokenize,
    .fail = nb_call_fail,
};
static const struct nb_task_kind detokenize_kind = {
    .op = NB_SUBMIT_DETOKENIZE,
    .desc_size = sizeof(struct nb_desc_detokenize),
    .size = nb_call_size,
    .write = write_detokenize,
    .complete = complete_detokenize,
    .fail = nb_call_fail,
};

// A first guess of the result's size, as far as the arena has it.
static uint64_t guess(const nibble_session *session, uint64_t in_size, uint64_t want)
{
    uint64_t used = NB_DESC_ROOM + nb_align8(in_size), arena = session->channel->arena.size;
    uint64_t left = arena > used ? arena - used : 0;
    return (want < left ? want : left) & ~(uint64_t)7;
}

int nb_text_too_long(nibble *c, uint64_t size)
{
    return nb_fail(c, NIBBLE_E_QUOTA, "%llu bytes are more than the %u of one call: split the text",
                   (unsigned long long)size, NB_TEXT_MAX);
}

int nb_tokenize_init(struct nb_call *call, nibble_session *session, const void *text, uint64_t size,
                     uint32_t flags)
{
    *call = (struct nb_call){.in = text, .in_size = size, .flags = flags};
    if (size > NB_TEXT_MAX)
        return nb_text_too_long(session->channel->connection, size);
    call->room = guess(session, size, (size / 2 + 64) * sizeof(int32_t));
    nb_task_init(&call->task, &tokenize_kind, session);
    return 0;
}

static bool tokens_are_sound(const int32_t *tokens, size_t n, uint32_t vocab)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return false;
    return true;
}

// To ids: how many there are.
static int run_to_tokens(nibble_session *session, const void *text, uint64_t len, uint32_t flags,
                         int32_t *ret_tokens, size_t max)
{
    nibble *c = session->channel->connection;
    uint32_t vocab = session->channel->model.vocab; // the session may be closed by a callback
    struct nb_call call;
    int rc = nb_tokenize_init(&call, session, text, len, flags);
    if (rc == 0)
        rc = nb_call_run(c, &call);
    if (rc != 0)
        return rc;
    if (tokens_are_sound(call.out, call.count, vocab)) {
        rc = (int)call.count;
        if (max)
            memcpy(ret_tokens, call.out,
                   (call.count < max ? call.count : max) * sizeof(*ret_tokens));
    } else {
        rc = nb_fail(c, NIBBLE_E_PROTOCOL, "the worker sent tokens that the model does not have");
    }
    free(call.out);
    return rc;
}

// To bytes: the same.
static int run_to_text(nibble *c, struct nb_call *call, char *ret_text, size_t max)
{
    int rc = nb_call_run(c, call);
    if (rc != 0)
        return rc;
    if (max)
        memcpy(ret_text, call->out, call->count < max ? call->count : max);
    free(call->out);
    return (int)call->count;
}

int nibble_tokenize(nibble_session *session, const char *text, size_t len, unsigned flags,
                    int32_t *ret_tokens, size_t max)
{
    uint32_t text_flags = (flags & NIBBLE_TOKENIZE_SPECIAL ? NB_TEXT_SPECIAL : 0) |
                          (flags & NIBBLE_TOKENIZE_BOS ? NB_TEXT_BOS : 0);
    return run_to_tokens(session, text, len, text_flags, ret_tokens, max);
}

int nibble_detokenize(nibble_session *session, const int32_t *tokens, size_t n, char *ret_text,
                      size_t max)
{
    nibble *c = session->channel->connection;
    if (n > NB_TEXT_MAX / sizeof(*tokens))
        return nb_text_too_long(c, (uint64_t)n * sizeof(*tokens));
    struct nb_call call = {.in = tokens, .in_size = n * sizeof(*tokens)};
    call.room = guess(session, call.in_size, n * 8 + 64);
    nb_task_init(&call.task, &detokenize_kind, session);
    return run_to_text(c, &call, ret_text, max);
}

int nibble_render(nibble_session *session, const struct nibble_chat *chat, char *ret_text,
                  size_t max, int32_t *ret_tokens, size_t max_tokens, size_t *ret_n_tokens)
{
    nibble *c = session->channel->connection;
    char *conversation;
    uint64_t size;
    struct nb_call call;
    int n_tokens = 0, rc = nb_conversation_write(c, chat, &conversation, &size);
    if (rc < 0)
        return rc;
    nb_session_pin(session);
    if (max_tokens || ret_n_tokens)
        n_tokens = run_to_tokens(session, conversation, size, NB_TEXT_CHAT, ret_tokens, max_tokens);
    rc = n_tokens < 0 ? n_tokens : 0;
    if (rc == 0 && session->closed)
        rc = nb_fail(c, NIBBLE_E_CANCELLED, "the session was closed");
    if (rc == 0)
        rc = nb_tokenize_init(&call, session, conversation, size, NB_TEXT_CHAT | NB_TEXT_RENDER);
    if (rc == 0)
        rc = run_to_text(c, &call, ret_text, max);
    if (rc >= 0 && ret_n_tokens)
        *ret_n_tokens = (size_t)n_tokens;
    nb_session_unpin(session);
    free(conversation);
    return rc;
}
