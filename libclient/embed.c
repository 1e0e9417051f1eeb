// Embeddings: the vectors of a batch of texts, in as many submissions as the arena asks for. Texts
// and vectors stay the caller's, so a submission can be posted again to another worker.
#include "libclient/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct embed {
    struct nb_task task;
    nibble_session *session;
    const struct nibble_text *texts;
    const struct nibble_place *vectors;
    uint32_t *counts; // of all texts
    uint32_t flags;
    size_t n, row; // texts, and bytes of a vector
    bool cancelled;
    // Of this submission
    size_t first, n_texts;
    uint64_t input; // bytes
    size_t told;    // texts that it has embedded
    bool done;
    int status;
    char sentence[NB_SENTENCE];
};

// ---- A submission: the descriptor, lengths, input, counts, and vectors without a place of theirs

static bool is_text(const struct nibble_text *t)
{
    return t->text != NULL;
}

static uint64_t input_bytes(const struct nibble_text *t)
{
    return is_text(t) ? t->text_len : t->n_tokens * sizeof(int32_t);
}

// Where the parts are in the block.
struct parts {
    uint64_t lengths, input, counts, vectors, size;
};

static struct parts parts_of(const struct embed *e, size_t n, uint64_t input)
{
    struct parts p = {.lengths = NB_DESC_ROOM};
    p.input = p.lengths + nb_align8(n * sizeof(uint32_t));
    p.counts = p.input + nb_align8(input);
    p.vectors = p.counts + nb_align8(n * sizeof(uint32_t));
    p.size = p.vectors + (e->vectors->memory ? 0 : nb_align8(n * e->row));
    return p;
}

static uint64_t size(struct nb_task *task)
{
    const struct embed *e = NB_OF(task, struct embed, task);
    return parts_of(e, e->n_texts, e->input).size;
}

static void write_desc(struct nb_task *task, unsigned char *block, uint64_t at)
{
    struct embed *e = NB_OF(task, struct embed, task);
    const struct parts p = parts_of(e, e->n_texts, e->input);
    const struct nibble_text *texts = e->texts + e->first;
    const struct nibble_place *to = e->vectors;
    struct nb_desc_embed desc = {.input = at + p.input,
                                 .input_len = e->input,
                                 .lengths = at + p.lengths,
                                 .counts = at + p.counts,
                                 .out = {.offset = at + p.vectors},
                                 .n = (uint32_t)e->n_texts,
                                 .flags = e->flags | (is_text(texts) ? 0 : NB_EMBED_TOKENS)};
    if (to->memory)
        desc.out = (struct nb_place){to->offset + e->first * e->row, to->memory->region, 0};
    memcpy(block, &desc, sizeof(desc));
    unsigned char *input = block + p.input;
    for (size_t i = 0; i < e->n_texts; i++) {
        const struct nibble_text *t = &texts[i];
        const uint64_t bytes = input_bytes(t);
        const uint32_t length = (uint32_t)(is_text(t) ? t->text_len : t->n_tokens);
        memcpy(block + p.lengths + i * sizeof(length), &length, sizeof(length));
        if (bytes)
            memcpy(input, is_text(t) ? (const void *)t->text : t->tokens, bytes);
        input += bytes;
    }
    e->told = 0;
}

static void finish(struct embed *e, int status, const char *sentence)
{
    e->status = status;
    e->done = true;
    snprintf(e->sentence, sizeof(e->sentence), "%s", sentence);
}

static int take_failure(struct embed *e, const struct nb_completion *completion)
{
    char why[NB_SENTENCE], sentence[NB_SENTENCE];
    if (completion->a > e->n_texts)
        return -EPROTO;
    nb_status_sentence(&e->task, completion->status, why);
    if (completion->a && e->n > 1)
        snprintf(sentence, sizeof(sentence), "text %zu: %.480s", e->first + completion->a, why);
    else
        snprintf(sentence, sizeof(sentence), "%s", why);
    finish(e, completion->status, sentence);
    return 0;
}

static int complete(struct nb_task *task, const struct nb_completion *completion,
                    const unsigned char *block)
{
    struct embed *e = NB_OF(task, struct embed, task);
    const struct parts p = parts_of(e, e->n_texts, e->input);
    if (completion->kind == NB_COMPLETION_PREFILL) {
        if (completion->b != e->n_texts || completion->a > e->n_texts)
            return -EPROTO;
        e->told = completion->a;
        return 0;
    }
    if (completion->kind != NB_COMPLETION_DONE)
        return -EPROTO;
    if (completion->status < 0)
        return take_failure(e, completion);
    nb_copy_once(e->counts + e->first, block + p.counts, e->n_texts * sizeof(*e->counts));
    if (!e->vectors->memory)
        nb_copy_once((char *)e->vectors->data + e->first * e->row, block + p.vectors,
                     e->n_texts * e->row);
    e->told = e->n_texts;
    finish(e, 0, "");
    return 0;
}

static void fail(struct nb_task *task, int code, const char *sentence)
{
    finish(NB_OF(task, struct embed, task), code, sentence);
}

static const struct nb_task_kind embed_kind = {
    .op = NB_SUBMIT_EMBED,
    .desc_size = sizeof(struct nb_desc_embed),
    .size = size,
    .write = write_desc,
    .complete = complete,
    .fail = fail,
};
_Static_assert(sizeof(struct nb_desc_embed) <= NB_DESC_ROOM, "its place in a block");

// ---- All of them ----

// As many texts of one kind as go into half of the arena, so that other jobs find room beside them;
// one at least.
static void choose_texts(struct embed *e)
{
    const uint64_t half = e->session->channel->arena.size / 2;
    const struct nibble_text *first = &e->texts[e->first];
    e->n_texts = 1;
    e->input = input_bytes(first);
    for (size_t n = 2; n <= e->n - e->first && n <= NB_EMBED_TEXTS; n++) {
        const struct nibble_text *t = &first[n - 1];
        const uint64_t input = e->input + input_bytes(t);
        if (is_text(t) != is_text(first) || input > NB_TEXT_MAX ||
            parts_of(e, n, input).size > half)
            break;
        e->n_texts = n;
        e->input = input;
    }
}

struct wait {
    const struct embed *e;
    size_t seen; // texts
};

static bool has_news(const void *what)
{
    const struct wait *w = what;
    return w->e->done || w->e->told > w->seen;
}

// One submission. The progress is told from here, where everything is at rest.
static int run(struct embed *e, const struct nibble_embed_options *options)
{
    nibble *c = e->session->channel->connection;
    struct wait w = {.e = e};
    e->done = false;
    e->told = 0;
    nb_task_init(&e->task, &embed_kind, e->session);
    int rc = nb_task_submit(&e->task);
    if (rc < 0)
        return rc;
    while (!e->done) {
        nb_pump(c, has_news, &w, -1); // a broken connection ends the submission too
        if (e->told == w.seen)
            continue;
        w.seen = e->told;
        if (!options->progress || !options->progress(options->user, e->first + w.seen, e->n))
            continue;
        e->cancelled = true;
        nb_task_cancel(&e->task);
    }
    if (e->status < 0)
        return nb_fail(c, e->status, "%s", e->sentence);
    if (e->session->closed || (e->cancelled && e->first + e->n_texts < e->n))
        return nb_fail(c, NIBBLE_E_CANCELLED, "%s",
                       e->session->closed ? "the session was closed" : "cancelled");
    return 0;
}

static int check_text(nibble *c, const struct nibble_text *t, size_t i)
{
    if ((t->text != NULL) == (t->tokens != NULL))
        return nb_fail(c, -EINVAL, "text %zu has both a text and tokens, or neither", i + 1);
    if (t->text_len > NB_TEXT_MAX || t->n_tokens > NB_TEXT_MAX / sizeof(int32_t))
        return nb_fail(c, NIBBLE_E_QUOTA, "text %zu has more than the %u bytes of one: split it",
                       i + 1, NB_TEXT_MAX);
    return 0;
}

static int check(const nibble_session *session, const struct nibble_text *texts, size_t n,
                 const struct nibble_place *vectors)
{
    nibble *c = session->channel->connection;
    int rc = nb_session_ready(session);
    if (rc == 0 && !n)
        rc = nb_fail(c, -EINVAL, "there is no text to embed");
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = check_text(c, &texts[i], i);
    if (rc < 0)
        return rc;
    if (!vectors || (!vectors->memory && !vectors->data))
        return nb_fail(c, -EINVAL, "a place has neither registered memory nor data");
    if (vectors->memory && vectors->memory->channel != session->channel)
        return nb_fail(c, -EINVAL, "the memory is not registered for this session's model");
    return 0;
}

int nibble_embed(nibble_session *session, const struct nibble_text *texts, size_t n,
                 const struct nibble_embed_options *given, const struct nibble_place *vectors,
                 uint32_t *ret_tokens)
{
    struct nibble_embed_options options = {0};
    int rc = check(session, texts, n, vectors);
    if (rc == 0 && given)
        rc = nb_options_read(session->channel->connection, NB_OPTIONS_EMBED, given, &options);
    if (rc < 0)
        return rc;
    struct embed e = {.session = session,
                      .texts = texts,
                      .vectors = vectors,
                      .counts = calloc(n, sizeof(*e.counts)),
                      .flags = (options.no_normalise ? NB_EMBED_PLAIN : 0) |
                               (options.truncate ? NB_EMBED_TRUNCATE : 0),
                      .n = n,
                      .row = session->channel->model.embedding * sizeof(float)};
    if (!e.counts)
        return nb_fail(session->channel->connection, -ENOMEM, "out of memory");
    nb_session_pin(session);
    session->scoring = true;
    for (; e.first < n && rc == 0; e.first += e.n_texts) {
        choose_texts(&e);
        rc = run(&e, &options);
    }
    session->scoring = false;
    if (rc == 0 && ret_tokens)
        memcpy(ret_tokens, e.counts, n * sizeof(*ret_tokens));
    nb_session_unpin(session);
    free(e.counts);
    return rc;
}
