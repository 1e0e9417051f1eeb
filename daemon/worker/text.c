// Tokenize and detokenize: the handlers, and the helper thread for long texts.
#include "daemon/worker/text.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/worker/ops.h"
#include "daemon/worker/serve.h"

#define INLINE_BYTES  (4u << 10)         // well below a millisecond
#define CHANNEL_BYTES (2u * NB_TEXT_MAX) // of texts that wait, for one channel
#define FLAGS         (NB_TEXT_SPECIAL | NB_TEXT_BOS | NB_TEXT_CHAT)

// --- a task by itself

// The list of ring.h's NB_TEXT_CHAT. -EINVAL for another shape.
static int parse_messages(const struct nb_text_task *t, struct nb_chat_message *ret, size_t *ret_n)
{
    uint64_t at = 0;
    size_t n = 0;
    while (at < t->len) {
        uint32_t len[2];
        if (n == NB_CHAT_MESSAGES_MAX || t->len - at < sizeof(len))
            return -EINVAL;
        memcpy(len, t->text + at, sizeof(len));
        at += sizeof(len);
        if ((uint64_t)len[0] + len[1] > t->len - at)
            return -EINVAL;
        ret[n].role = (struct nb_str){t->text + at, len[0]};
        ret[n++].content = (struct nb_str){t->text + at + len[0], len[1]};
        at += (uint64_t)len[0] + len[1];
    }
    *ret_n = n;
    return n ? 0 : -EINVAL;
}

static int encode_chat(struct nb_text_task *t)
{
    char error[128];
    size_t n;
    if (!t->chat)
        return NIBBLE_E_UNSUPPORTED;
    struct nb_chat_message *messages = calloc(NB_CHAT_MESSAGES_MAX, sizeof(*messages));
    if (!messages)
        return -ENOMEM;
    int r = parse_messages(t, messages, &n);
    if (r == 0)
        r = nb_chat_template_encode(t->chat, t->tokenizer, messages, n, true, &t->tokens, error,
                                    sizeof(error));
    free(messages);
    return r;
}

static void run_task(struct nb_text_task *t)
{
    t->status = t->flags & NB_TEXT_CHAT
                    ? encode_chat(t)
                    : nb_tokenizer_encode(t->tokenizer, t->text, t->len, t->flags & NB_TEXT_SPECIAL,
                                          t->flags & NB_TEXT_BOS, &t->tokens);
}

static void free_task(struct nb_text_task *t)
{
    if (!t)
        return;
    nb_tokens_finish(&t->tokens);
    free(t->text);
    free(t);
}

// Writes the ids where the client wants them and retires the job.
static void answer(struct nb_job *job, const struct nb_text_task *t)
{
    size_t n = t->tokens.n < t->out_max ? t->tokens.n : t->out_max;
    void *out = nb_channel_range(job->channel, t->out, n * sizeof(int32_t), alignof(int32_t));
    if (t->status == 0 && n)
        memcpy(out, t->tokens.id, n * sizeof(int32_t));
    nb_job_done(job, t->status, t->status < 0 ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE,
                (uint32_t)t->tokens.n, 0);
}

// --- the helper thread

static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct nb_text_task *waiting, *running, *done;
    uint64_t last_channel; // whose turn it is not
    bool ending;
    int fd;
} helper = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .fd = -1};

static void push(struct nb_text_task **list, struct nb_text_task *t)
{
    while (*list)
        list = &(*list)->next;
    t->next = NULL;
    *list = t;
}

// The oldest task of a channel that was not served last, or the oldest.
static struct nb_text_task *pop_waiting(void)
{
    struct nb_text_task **at = &helper.waiting;
    while (*at && (*at)->channel == helper.last_channel)
        at = &(*at)->next;
    if (!*at)
        at = &helper.waiting;
    struct nb_text_task *t = *at;
    *at = t->next;
    helper.last_channel = t->channel;
    return t;
}

static void *helper_main(void *unused)
{
    const uint64_t one = 1;
    pthread_mutex_lock(&helper.lock);
    for (;;) {
        while (!helper.waiting && !helper.ending)
            pthread_cond_wait(&helper.changed, &helper.lock);
        if (helper.ending)
            break;
        struct nb_text_task *t = helper.running = pop_waiting();
        pthread_mutex_unlock(&helper.lock);
        run_task(t);
        pthread_mutex_lock(&helper.lock);
        helper.running = NULL;
        push(&helper.done, t);
        pthread_cond_broadcast(&helper.changed);
        if (write(helper.fd, &one, sizeof(one)) < 0)
            abort(); // an eventfd at its maximum: impossible
    }
    pthread_mutex_unlock(&helper.lock);
    return unused;
}

int nb_text_start(int *ret_fd)
{
    helper.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (helper.fd < 0)
        return -errno;
    int r = pthread_create(&helper.thread, NULL, helper_main, NULL);
    if (r)
        return -r;
    *ret_fd = helper.fd;
    return 0;
}

static struct nb_text_task *take_done(void)
{
    pthread_mutex_lock(&helper.lock);
    struct nb_text_task *t = helper.done;
    helper.done = NULL;
    pthread_mutex_unlock(&helper.lock);
    return t;
}

static void drop_list(struct nb_text_task *t)
{
    while (t) {
        struct nb_text_task *next = t->next;
        free_task(t);
        t = next;
    }
}

void nb_text_stop(void)
{
    pthread_mutex_lock(&helper.lock);
    helper.ending = true;
    pthread_cond_broadcast(&helper.changed);
    pthread_mutex_unlock(&helper.lock);
    pthread_join(helper.thread, NULL);
    drop_list(helper.waiting);
    drop_list(take_done());
    helper.waiting = NULL;
}

void nb_text_forget(uint64_t channel)
{
    struct nb_text_task *gone = NULL;
    pthread_mutex_lock(&helper.lock);
    for (struct nb_text_task **at = &helper.waiting, *t; (t = *at);) {
        if (t->channel != channel) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        t->next = gone;
        gone = t;
    }
    pthread_mutex_unlock(&helper.lock);
    drop_list(gone);
}

void nb_text_settle(const struct nb_tokenizer *tokenizer)
{
    pthread_mutex_lock(&helper.lock);
    while (helper.running && helper.running->tokenizer == tokenizer)
        pthread_cond_wait(&helper.changed, &helper.lock);
    pthread_mutex_unlock(&helper.lock);
}

void nb_text_deliver(struct nb_serve *s)
{
    uint64_t n;
    if (read(helper.fd, &n, sizeof(n)) < 0)
        return;
    for (struct nb_text_task *t = take_done(), *next; t; t = next) {
        struct nb_channel *c = nb_serve_channel(s, t->channel);
        struct nb_job *job = c ? nb_job_find(c, t->user_data) : NULL;
        next = t->next;
        if (c)
            c->text_bytes -= t->len;
        if (job && job->text == t)
            answer(job, t);
        free_task(t);
    }
}

// --- the handlers

static int make_task(const struct nb_job *job, const struct nb_desc_tokenize *d,
                     struct nb_text_task **ret)
{
    const struct nb_channel *c = job->channel;
    void *text;
    if (d->flags & ~FLAGS ||
        !nb_channel_range(c, d->out, d->out_max * (uint64_t)sizeof(int32_t), alignof(int32_t)))
        return -EINVAL;
    if (d->text_len > NB_TEXT_MAX)
        return -E2BIG;
    if (d->text_len + c->text_bytes > CHANNEL_BYTES)
        return NIBBLE_E_QUOTA;
    int r = nb_channel_copy(c, d->text, d->text_len, 1, &text);
    if (r < 0)
        return r;
    struct nb_text_task *t = malloc(sizeof(*t));
    if (!t) {
        free(text);
        return -ENOMEM;
    }
    *t = (struct nb_text_task){
        .channel = c->key,
        .user_data = job->user_data,
        .tokenizer = nb_model_tokenizer(c->model->model),
        .chat = nb_model_chat_template(c->model->model),
        .text = text,
        .len = d->text_len,
        .out = d->out,
        .out_max = d->out_max,
        .flags = d->flags,
    };
    *ret = t;
    return 0;
}

int nb_op_tokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    struct nb_text_task *t;
    int r = make_task(job, desc, &t);
    if (r < 0)
        return r;
    if (t->len <= INLINE_BYTES) {
        run_task(t);
        answer(job, t);
        free_task(t);
        return 0;
    }
    job->text = t;
    job->channel->text_bytes += t->len;
    pthread_mutex_lock(&helper.lock);
    push(&helper.waiting, t);
    pthread_cond_broadcast(&helper.changed);
    pthread_mutex_unlock(&helper.lock);
    return 0;
}

int nb_op_detokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_detokenize *d = desc;
    const struct nb_channel *c = job->channel;
    const struct nb_tokenizer *tokenizer = nb_model_tokenizer(c->model->model);
    char *out = nb_channel_range(c, d->out, d->out_max, 1);
    uint64_t total = 0;
    void *copy;
    if (d->flags || !out)
        return -EINVAL;
    if (d->n_tokens > NB_TEXT_MAX / sizeof(int32_t))
        return -E2BIG;
    int r = nb_channel_copy(c, d->tokens, d->n_tokens * (uint64_t)sizeof(int32_t), alignof(int32_t),
                            &copy);
    if (r < 0)
        return r;
    const int32_t *tokens = copy;
    for (uint32_t i = 0; i < d->n_tokens && total <= NB_TEXT_MAX; i++) {
        struct nb_str piece = nb_tokenizer_piece(tokenizer, tokens[i], true);
        uint64_t room = total < d->out_max ? d->out_max - total : 0;
        if (piece.len && room)
            memcpy(out + total, piece.data, piece.len < room ? piece.len : room);
        total += piece.len;
    }
    free(copy);
    if (total > NB_TEXT_MAX)
        return -E2BIG;
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, (uint32_t)total, 0);
    return 0;
}
