// Generation: a text or a conversation becomes tokens (a submission of its own), these become the
// session's log, and a GENERATE goes on from it. What was received is kept here, so that the job
// can be posted again to another worker at any time.
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>

#include "libclient/sampling.h"
#include "libclient/sentence.h"

// ---- The op ----

static nibble_job *job_of(struct nb_task *task)
{
    return NB_OF(task, nibble_job, task);
}

// How many of the log's first tokens the worker has already. It is told one token at least, to go
// on from.
static size_t base(const nibble_job *job)
{
    size_t most = job->n_prompt - 1;
    return job->session->known < most ? job->session->known : most;
}

static uint64_t tokens_size(const nibble_job *job)
{
    return nb_align8((job->session->n_log - base(job)) * sizeof(int32_t));
}

static uint64_t size(struct nb_task *task)
{
    const nibble_job *job = job_of(task);
    return NB_DESC_ROOM + tokens_size(job) + job->stop_size;
}

static void write_desc(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const nibble_job *job = job_of(task);
    const nibble_session *session = job->session;
    const struct nibble_generate_options *options = &job->options;
    static const uint32_t drafts[] = {[NIBBLE_DRAFTS_OFF] = NB_GENERATE_DRAFTS_OFF,
                                      [NIBBLE_DRAFTS_ALWAYS] = NB_GENERATE_DRAFTS_ALWAYS};
    uint64_t tokens = NB_DESC_ROOM, stop = tokens + tokens_size(job);
    struct nb_desc_generate desc = {
        .base = (uint32_t)base(job),
        .n_tokens = (uint32_t)(session->n_log - base(job)),
        .tokens = at + tokens,
        .n_replay = (uint32_t)(session->n_log - job->n_prompt),
        .max_tokens = options->max_tokens,
        .text_skip = job->text_bytes,
        .seed = options->sampling.seed,
        .temperature = options->sampling.temperature,
        .top_p = options->sampling.top_p,
        .min_p = options->sampling.min_p,
        .repeat_penalty = options->sampling.repeat_penalty,
        .top_k = options->sampling.top_k,
        .repeat_window = options->sampling.repeat_window,
        .flags = (options->ignore_eos ? NB_GENERATE_IGNORE_EOS : 0) |
                 (options->logprobs ? NB_GENERATE_LOGPROBS : 0) | drafts[session->drafts],
        .n_stop = (uint32_t)options->n_stop,
        .stop = at + stop,
        .stop_len = job->stop_size,
    };
    memcpy(block, &desc, sizeof(desc));
    memcpy(block + tokens, session->log + base(job), desc.n_tokens * sizeof(int32_t));
    if (job->stop_size)
        memcpy(block + stop, job->stop, job->stop_size);
}

static void out_of_memory(nibble_job *job)
{
    nb_job_end(job, -ENOMEM, "out of memory");
}

// A token's event is told when all its text is there, so that the text is whole UTF-8.
static void add_text(nibble_job *job, const struct nb_completion *completion)
{
    struct nb_node *node = job->token;
    memcpy(node->text + job->token_text, completion->text, completion->text_len);
    job->token_text += completion->text_len;
    job->text_bytes += completion->text_len;
    if (job->token_text < node->event.text_len)
        return;
    job->token = NULL;
    nb_job_queue(job, node);
}

static int take_token(nibble_job *job, const struct nb_completion *completion)
{
    size_t text_size = completion->a > completion->text_len ? completion->a : completion->text_len;
    if (text_size > NB_TOKEN_TEXT_MAX || job->token || completion->b > NB_TEXT_REASONING)
        return -EPROTO;
    int rc = nb_session_push(job->session, completion->token);
    struct nb_node *node = rc < 0 ? NULL : nb_job_event(job, NIBBLE_EVENT_TOKEN, text_size);
    if (rc == -EPROTO)
        return rc;
    if (!node) {
        out_of_memory(job);
        return 0;
    }
    node->event.token = completion->token;
    node->event.text_len = text_size;
    node->event.reasoning = (int)completion->b;
    job->loose_text = 0;
    if (job->options.logprobs)
        node->event.logprob = completion->logprob;
    job->token = node;
    job->token_text = 0;
    add_text(job, completion);
    return 0;
}

// The rest of a token's text, what of it is of the other kind, or what was held back as the
// possible beginning of a stop string or a mark.
static int take_text(nibble_job *job, const struct nb_completion *completion)
{
    if (job->token) {
        if (completion->text_len > job->token->event.text_len - job->token_text ||
            (int)completion->b != job->token->event.reasoning)
            return -EPROTO;
        add_text(job, completion);
        return 0;
    }
    job->loose_text += completion->text_len;
    if (job->loose_text > NB_TOKEN_TEXT_MAX || completion->text_len == 0 ||
        completion->b > NB_TEXT_REASONING)
        return -EPROTO;
    job->token = nb_job_event(job, NIBBLE_EVENT_TOKEN, completion->text_len);
    if (!job->token) {
        out_of_memory(job);
        return 0;
    }
    job->token->event.text_len = completion->text_len;
    job->token->event.reasoning = (int)completion->b;
    job->token_text = 0;
    add_text(job, completion);
    return 0;
}

static int take_prefill(nibble_job *job, const struct nb_completion *completion)
{
    struct nb_node *last = NB_OF(job->events.prev, struct nb_node, link);
    if (completion->a > completion->b)
        return -EPROTO;
    bool replaces = !nb_list_empty(&job->events) && last->event.type == NIBBLE_EVENT_PREFILL;
    struct nb_node *node = replaces ? last : nb_job_event(job, NIBBLE_EVENT_PREFILL, 0);
    if (!node)
        return 0; // progress is dispensable
    node->event.done = completion->a;
    node->event.total = completion->b;
    if (!replaces)
        nb_job_queue(job, node);
    return 0;
}

static int take_done(nibble_job *job, const struct nb_completion *completion)
{
    const struct nb_done *done = &completion->done;
    nibble_session *session = job->session;
    int status = completion->status == -ECANCELED ? NIBBLE_E_CANCELLED : completion->status;
    if (completion->accepted > completion->proposed)
        return -EPROTO;
    if (status == 0 &&
        (done->finish <= NIBBLE_FINISH_NONE || done->finish >= NIBBLE_FINISH_ERROR || job->token))
        return -EPROTO;
    job->done_node->event.timings = (struct nibble_timings){
        .prompt_tokens = (uint32_t)job->n_prompt,
        .cached_tokens =
            done->cached_tokens < job->n_prompt ? done->cached_tokens : (uint32_t)job->n_prompt,
        .generated_tokens = (uint32_t)(session->n_log - job->n_prompt),
        .queue_ns = done->queue_ns,
        .prefill_ns = done->prefill_ns,
        .decode_ns = done->decode_ns,
    };
    job->proposed = completion->proposed;
    job->accepted = completion->accepted;
    char sentence[NB_SENTENCE] = "";
    if (status < 0)
        nb_status_sentence(&job->task, status, sentence);
    else
        session->known = session->n_log;
    nb_job_finish(job, status < 0 ? NIBBLE_FINISH_ERROR : (enum nibble_finish)done->finish, status,
                  sentence);
    return 0;
}

static int complete(struct nb_task *task, const struct nb_completion *completion,
                    const unsigned char *block)
{
    static int (*const take[])(nibble_job *, const struct nb_completion *) = {
        [NB_COMPLETION_TOKEN] = take_token,
        [NB_COMPLETION_TEXT] = take_text,
        [NB_COMPLETION_PREFILL] = take_prefill,
        [NB_COMPLETION_DONE] = take_done,
    };
    return take[completion->kind](job_of(task), completion);
}

static void fail(struct nb_task *task, int code, const char *sentence)
{
    nb_job_finish(job_of(task), NIBBLE_FINISH_ERROR, code, sentence);
}

static void moved(struct nb_task *task)
{
    nb_job_moved(job_of(task));
}

static const struct nb_task_kind generate_kind = {
    .op = NB_SUBMIT_GENERATE,
    .desc_size = sizeof(struct nb_desc_generate),
    .size = size,
    .write = write_desc,
    .complete = complete,
    .fail = fail,
    .moved = moved,
};
_Static_assert(sizeof(struct nb_desc_generate) <= NB_DESC_ROOM, "its place in a block");

// ---- The prompt ----

static int start(nibble_job *job, const int32_t *tokens, size_t n)
{
    nibble_session *session = job->session;
    int rc = nb_session_set_log(session, job->append ? session->n_log : 0, tokens, n);
    if (rc < 0)
        return rc;
    job->n_prompt = session->n_log;
    session->used = true;
    nb_task_init(&job->task, &generate_kind, session);
    if (session->moves != session->channel->moves)
        moved(&job->task);
    return nb_task_submit(&job->task);
}

static void tokenized(struct nb_call *call)
{
    nibble_job *job = NB_OF(call, nibble_job, tokenize);
    if (call->status == 0 && job->cancelled)
        nb_job_finish(job, NIBBLE_FINISH_ERROR, NIBBLE_E_CANCELLED, "cancelled");
    else if (call->status < 0)
        nb_job_finish(job, NIBBLE_FINISH_ERROR, call->status, call->sentence);
    else if ((call->status = start(job, call->out, call->count)) < 0)
        nb_job_finish(job, NIBBLE_FINISH_ERROR, call->status, job->connection->error);
    free(call->out);
    free(job->text);
    call->out = job->text = NULL;
}

static int tokenize(nibble_job *job, uint64_t size_of_text, uint32_t flags)
{
    int rc = nb_tokenize_init(&job->tokenize, job->session, job->text, size_of_text, flags);
    job->tokenize.then = tokenized;
    return rc < 0 ? rc : nb_task_submit(&job->tokenize.task);
}

static void *put(void *to, const void *from, size_t n)
{
    if (n)
        memcpy(to, from, n);
    return (char *)to + n;
}

static int start_chat(nibble_job *job, const struct nibble_chat *chat)
{
    uint64_t bytes = 0;
    char *text = NULL;
    int rc = nb_conversation_write(job->connection, chat, &text, &bytes);
    job->text = text;
    return rc < 0 ? rc : tokenize(job, bytes, NB_TEXT_CHAT);
}

static int start_messages(nibble_job *job, const struct nibble_prompt *prompt)
{
    const struct nibble_chat chat = {
        .size = sizeof(chat), .messages = prompt->messages, .n_messages = prompt->n_messages};
    return start_chat(job, &chat);
}

static int start_text(nibble_job *job, const struct nibble_prompt *prompt)
{
    if (prompt->text_len > NB_TEXT_MAX)
        return nb_text_too_long(job->connection, prompt->text_len);
    job->text = malloc(prompt->text_len + 1);
    if (!job->text)
        return nb_fail(job->connection, -ENOMEM, "out of memory");
    put(job->text, prompt->text, prompt->text_len);
    bool begins = !job->append || job->session->n_log == 0;
    return tokenize(job, prompt->text_len, begins ? NB_TEXT_BOS : 0);
}

// ---- The options ----

void nibble_generate_options_init(struct nibble_generate_options *ret_options, size_t size)
{
    const struct nibble_generate_options own = {.size = (uint32_t)size,
                                                .sampling = {.top_p = 1, .repeat_penalty = 1}};
    memset(ret_options, 0, size);
    memcpy(ret_options, &own, size < sizeof(own) ? size : sizeof(own));
}

static int check_sampling(nibble *c, const struct nibble_sampling *sampling)
{
    char sentence[NB_SENTENCE];
    int rc = nb_sampling_fault(sampling, sentence, sizeof(sentence));
    return rc < 0 ? nb_fail(c, rc, "%s", sentence) : 0;
}

// n_stop times: u32 len, bytes
static int copy_stop(nibble_job *job)
{
    const struct nibble_generate_options *options = &job->options;
    if (options->n_stop > NB_STOP_MAX)
        return nb_fail(job->connection, -EINVAL, "%zu stop strings: at most %u", options->n_stop,
                       NB_STOP_MAX);
    job->stop = malloc(NB_STOP_MAX * (sizeof(uint32_t) + NB_STOP_LEN_MAX));
    if (!job->stop)
        return nb_fail(job->connection, -ENOMEM, "out of memory");
    unsigned char *at = job->stop;
    for (size_t i = 0; i < options->n_stop; i++) {
        size_t n = strlen(options->stop[i]);
        if (n == 0 || n > NB_STOP_LEN_MAX)
            return nb_fail(job->connection, -EINVAL, "stop string %zu has %zu bytes: 1 to %u",
                           i + 1, n, NB_STOP_LEN_MAX);
        if (nb_utf8_valid(options->stop[i], n) < n)
            return nb_fail(job->connection, -EILSEQ, "stop string %zu is not UTF-8", i + 1);
        at = put(at, &(uint32_t){(uint32_t)n}, sizeof(uint32_t));
        at = put(at, options->stop[i], n);
    }
    job->stop_size = (size_t)(at - job->stop);
    return 0;
}

static int check_prompt(nibble *c, const struct nibble_prompt *prompt)
{
    int kinds = (prompt->text != NULL) + (prompt->messages != NULL) + (prompt->chat != NULL) +
                (prompt->tokens != NULL);
    if (kinds != 1)
        return nb_fail(c, -EINVAL, "a prompt is exactly one of text, messages, chat and tokens");
    if ((prompt->messages || prompt->chat) && prompt->append)
        return nb_fail(c, -EINVAL,
                       "a conversation is all that was said: it cannot be appended to the log");
    return 0;
}

int nibble_generate(nibble_session *session, const struct nibble_prompt *given,
                    const struct nibble_generate_options *given_options, nibble_callback callback,
                    void *user, nibble_job **ret_job)
{
    nibble *c = session->channel->connection;
    struct nibble_prompt own = {0}, *prompt = &own;
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    int rc = nb_session_ready(session);
    if (rc == 0)
        rc = nb_options_read(c, NB_OPTIONS_PROMPT, given, prompt);
    if (rc == 0 && given_options)
        rc = nb_options_read(c, NB_OPTIONS_GENERATE, given_options, &options);
    if (rc == 0)
        rc = check_prompt(c, prompt);
    if (rc == 0)
        rc = check_sampling(c, &options.sampling);
    if (rc < 0)
        return rc;
    nibble_job *job = nb_job_create(session, callback, user);
    if (!job)
        return -ENOMEM;
    job->options = options;
    job->append = prompt->append;
    rc = copy_stop(job);
    if (rc == 0)
        rc = prompt->tokens     ? start(job, prompt->tokens, prompt->n_tokens)
             : prompt->chat     ? start_chat(job, prompt->chat)
             : prompt->messages ? start_messages(job, prompt)
                                : start_text(job, prompt);
    if (rc < 0)
        nb_job_destroy(job);
    else
        *ret_job = job;
    nb_leave(c);
    return rc;
}
