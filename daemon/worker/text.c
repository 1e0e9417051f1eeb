// Tokenize and detokenize: the handlers, and the helper thread for long texts.
#include "daemon/worker/text.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "daemon/worker/submissions.h"
#include "daemon/worker/serve.h"

#define INLINE_BYTES  (4u << 10)         // of plain text: well below a millisecond
#define CHANNEL_BYTES (2u * NB_TEXT_MAX) // of texts that wait, for one channel
#define FLAGS         (NB_TEXT_SPECIAL | NB_TEXT_BOS | NB_TEXT_CHAT | NB_TEXT_RENDER)

// --- a task by itself

// What `out` counts.
static uint64_t unit_of(uint32_t flags)
{
    return flags & NB_TEXT_RENDER ? 1 : sizeof(int32_t);
}

static int run_chat(struct nb_text_task *t)
{
    const struct nb_str conversation = {t->text, t->len};
    time_t now = time(NULL);
    int rc = t->flags & NB_TEXT_RENDER
                 ? nb_chat_template_render(t->chat, t->tokenizer, conversation, now, &t->stop,
                                           &t->rendering, &t->error)
                 : nb_chat_template_encode(t->chat, t->tokenizer, conversation, now, &t->stop,
                                           &t->tokens, &t->error);
    if (rc != -ENOENT)
        return rc;
    return nb_fail(
        &t->error, NIBBLE_E_UNSUPPORTED,
        "the model has no chat template: send text (nibble run --raw), or bring a template "
        "(--template FILE)");
}

void nb_text_explain(struct nb_text_task *t, uint64_t len)
{
    const int rc = t->status;
    const char *why = rc == -EOVERFLOW
                          ? "a pattern of the model's tokenizer met its limit: split it"
                      : rc == -EILSEQ ? "the model's vocabulary has no token for one of its bytes"
                                      : strerror(-rc);
    nb_fail(&t->error, t->status, "the text of %" PRIu64 " bytes: %s", len, why);
}

static int run_text(struct nb_text_task *t)
{
    return nb_tokenizer_encode(t->tokenizer, t->text, t->len, t->flags & NB_TEXT_SPECIAL,
                               t->flags & NB_TEXT_BOS, &t->tokens);
}

static void run_tokenize(struct nb_text_task *t)
{
    const bool chat = t->flags & NB_TEXT_CHAT;
    t->status = chat ? run_chat(t) : run_text(t);
    if (t->status < 0 && !chat)
        nb_text_explain(t, t->len);
}

static void free_task(struct nb_text_task *t)
{
    if (!t)
        return;
    nb_tokens_finish(&t->tokens);
    nb_rendering_finish(&t->rendering);
    free(t->text);
    free(t->length);
    free(t);
}

// Writes the ids or the text where the client wants them and retires the job.
static void answer(struct nb_job *job, struct nb_text_task *t)
{
    bool text = t->flags & NB_TEXT_RENDER;
    const void *from = text ? (const void *)t->rendering.text : t->tokens.id;
    uint64_t all = text ? t->rendering.len : t->tokens.n, unit = unit_of(t->flags);
    uint64_t n = all < t->out_max ? all : t->out_max;
    void *out = nb_channel_range(job->channel, t->out, n * unit, unit);
    if (t->status == 0 && n)
        memcpy(out, from, n * unit);
    if (t->status < 0)
        nb_reason(job->channel, "%s", t->error.text);
    nb_job_done(job, t->status, t->status < 0 ? NIBBLE_FINISH_ERROR : NIBBLE_FINISH_NONE,
                (uint32_t)all, 0);
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
        t->kind->run(t);
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
    int rc = pthread_create(&helper.thread, NULL, helper_main, NULL);
    if (rc)
        return -rc;
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

void nb_text_cancel(struct nb_text_task *t)
{
    atomic_store_explicit(&t->stop, true, memory_order_relaxed);
}

void nb_text_stop(void)
{
    pthread_mutex_lock(&helper.lock);
    helper.ending = true;
    if (helper.running)
        nb_text_cancel(helper.running);
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
    if (helper.running && helper.running->channel == channel)
        nb_text_cancel(helper.running);
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
            t->kind->answer(job, t);
        free_task(t);
    }
}

// --- the handlers

int nb_text_check(struct nb_channel *c, uint64_t len)
{
    if (len > NB_TEXT_MAX)
        return nb_refuse(c, -E2BIG, "a text of %" PRIu64 " bytes: at most %u, split it", len,
                         NB_TEXT_MAX);
    if (len + c->text_bytes > CHANNEL_BYTES)
        return nb_refuse(c, NIBBLE_E_QUOTA,
                         "%" PRIu64 " bytes of texts wait already: at most %u for a channel",
                         c->text_bytes, CHANNEL_BYTES);
    return 0;
}

struct nb_text_task *nb_text_task_create(const struct nb_job *job, const struct nb_text_kind *kind,
                                         char *text, // NOLINT(*non-const-parameter)
                                         uint64_t len)
{
    struct nb_text_task *t = malloc(sizeof(*t));
    if (t)
        *t = (struct nb_text_task){.kind = kind,
                                   .channel = job->channel->key,
                                   .user_data = job->user_data,
                                   .tokenizer = nb_model_tokenizer(job->channel->model->model),
                                   .text = text,
                                   .len = len};
    return t;
}

void nb_text_submit(struct nb_job *job, struct nb_text_task *t)
{
    if (t->len <= INLINE_BYTES && !(t->flags & NB_TEXT_CHAT)) {
        t->kind->run(t);
        t->kind->answer(job, t);
        free_task(t);
        return;
    }
    job->text = t;
    job->channel->text_bytes += t->len;
    pthread_mutex_lock(&helper.lock);
    push(&helper.waiting, t);
    pthread_cond_broadcast(&helper.changed);
    pthread_mutex_unlock(&helper.lock);
}

static int check(struct nb_channel *c, const struct nb_desc_tokenize *d)
{
    if (d->flags & NB_TEXT_CHAT && !c->model->generates)
        return nb_refuse_to_generate(c);
    if (d->flags & ~FLAGS || (d->flags & NB_TEXT_RENDER && !(d->flags & NB_TEXT_CHAT)))
        return nb_refuse(c, -EINVAL, "flags are %#x: of %#x, and %#x only with %#x", d->flags,
                         FLAGS, NB_TEXT_RENDER, NB_TEXT_CHAT);
    uint64_t unit = unit_of(d->flags);
    if (!nb_channel_range(c, d->out, d->out_max * unit, unit))
        return nb_refuse(c, -EINVAL,
                         "out of %u at %" PRIu64 ": not all within the %" PRIu64
                         " bytes of the arena, aligned to %u",
                         d->out_max, d->out, c->arena_bytes, (unsigned)unit);
    return nb_text_check(c, d->text_len);
}

static const struct nb_text_kind tokenize_kind = {.run = run_tokenize, .answer = answer};

static int make_task(const struct nb_job *job, const struct nb_desc_tokenize *d,
                     struct nb_text_task **ret)
{
    struct nb_channel *c = job->channel;
    void *text = NULL;
    int rc = check(c, d);
    if (rc == 0)
        rc = nb_channel_copy(c, "text", d->text, d->text_len, 1, &text);
    if (rc < 0)
        return rc;
    struct nb_text_task *t = nb_text_task_create(job, &tokenize_kind, text, d->text_len);
    if (!t) {
        free(text);
        return -ENOMEM;
    }
    t->chat = nb_model_chat_template(c->model->model);
    t->out = d->out;
    t->out_max = d->out_max;
    t->flags = d->flags;
    *ret = t;
    return 0;
}

int nb_on_tokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    struct nb_text_task *t;
    int rc = make_task(job, desc, &t);
    if (rc == 0)
        nb_text_submit(job, t);
    return rc;
}

int nb_on_detokenize(struct nb_job *job, const struct nb_submission *submission, const void *desc)
{
    const struct nb_desc_detokenize *d = desc;
    struct nb_channel *c = job->channel;
    const struct nb_tokenizer *tokenizer = nb_model_tokenizer(c->model->model);
    char *out = nb_channel_range(c, d->out, d->out_max, 1);
    uint64_t total = 0;
    void *copy;
    if (d->flags)
        return nb_refuse(c, -EINVAL, "flags are %#x: 0", d->flags);
    if (!out)
        return nb_refuse(c, -EINVAL, "out of %" PRIu64 " bytes at %" PRIu64 ": not in the arena",
                         d->out_max, d->out);
    if (d->n_tokens > NB_TEXT_MAX / sizeof(int32_t))
        return nb_refuse(c, -E2BIG, "%u tokens: at most %zu at a time", d->n_tokens,
                         NB_TEXT_MAX / sizeof(int32_t));
    int rc = nb_channel_copy(c, "tokens", d->tokens, d->n_tokens * (uint64_t)sizeof(int32_t),
                             alignof(int32_t), &copy);
    if (rc < 0)
        return rc;
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
        return nb_refuse(c, -E2BIG, "the tokens' text has more than %u bytes: split them",
                         NB_TEXT_MAX);
    nb_job_done(job, 0, NIBBLE_FINISH_NONE, (uint32_t)total, 0);
    return 0;
}
