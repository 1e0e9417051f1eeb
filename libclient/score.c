// Scoring: log-probabilities or whole distributions of given tokens, in as many submissions as the
// arena has room for at a time.
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>

struct score {
    struct nb_call call;
    nibble_session *session;
    uint32_t what;
    size_t first, end; // of this op, in the log
};

static size_t base(const struct score *score)
{
    return score->session->known < score->first ? score->session->known : score->first;
}

// The worker may be another one than before, which must be told more of the log.
static uint64_t size(struct nb_task *task)
{
    struct score *score = NB_OF(task, struct score, call.task);
    score->call.in = score->session->log + base(score);
    score->call.in_size = (score->end - base(score)) * sizeof(int32_t);
    return nb_call_size(task);
}

static void write_desc(struct nb_task *task, unsigned char *block, uint64_t at)
{
    const struct score *score = NB_OF(task, struct score, call.task);
    struct nb_desc_score desc = {.base = (uint32_t)base(score),
                                 .n_tokens = (uint32_t)(score->end - base(score)),
                                 .tokens = at + NB_DESC_ROOM,
                                 .first = (uint32_t)score->first,
                                 .what = score->what,
                                 .out = at + nb_call_place(&score->call, block),
                                 .out_len = score->call.room};
    memcpy(block, &desc, sizeof(desc));
}

static int complete(struct nb_task *task, const struct nb_completion *completion,
                    const unsigned char *block)
{
    struct score *score = NB_OF(task, struct score, call.task);
    score->session->known = completion->status == 0 ? score->end : 0;
    return nb_call_complete(&score->call, completion, block,
                            completion->status == 0 ? score->call.room : 0);
}

static const struct nb_task_kind score_kind = {
    .op = NB_SUBMIT_SCORE,
    .desc_size = sizeof(struct nb_desc_score),
    .size = size,
    .write = write_desc,
    .complete = complete,
    .fail = nb_call_fail,
};

// Rows of one submission: their results take half of the arena at most, so that other jobs find
// room beside it.
static size_t rows_at_once(const nibble_session *session, size_t n, size_t row_size)
{
    uint64_t half = session->channel->arena.size / 2, tokens = NB_DESC_ROOM + n * sizeof(int32_t);
    return half > tokens + row_size ? (half - tokens) / row_size : 1;
}

// Scores `rows` rows from position `first` on; `extra` tokens after them belong to the submission.
static int run(struct score *score, size_t first, size_t rows, size_t extra, size_t row_size)
{
    nibble *c = score->session->channel->connection;
    score->first = first;
    score->end = first + rows + extra;
    score->call = (struct nb_call){.room = rows * row_size};
    nb_task_init(&score->call.task, &score_kind, score->session);
    int rc = nb_call_run(c, &score->call);
    if (rc == 0 && score->session->closed) {
        free(score->call.out);
        nb_fail(c, NIBBLE_E_CANCELLED, "the session was closed");
        return NIBBLE_E_CANCELLED;
    }
    return rc;
}

// What becomes of the rows [first, first + n).
typedef int (*take_rows)(void *user, size_t first, size_t n, const float *rows);

static int in_chunks(nibble_session *session, uint32_t what, size_t first, size_t n,
                     size_t row_size, take_rows take, void *user)
{
    struct score score = {.session = session, .what = what};
    size_t extra = what == NB_SCORE_LOGPROBS ? 1 : 0, end = n - extra;
    size_t most = rows_at_once(session, n, row_size);
    int rc = 0;
    nb_session_pin(session);
    session->scoring = session->used = true;
    while (first < end && rc == 0) {
        size_t rows = end - first < most ? end - first : most;
        rc = run(&score, first, rows, extra, row_size);
        if (rc < 0)
            break;
        rc = take(user, first, rows, score.call.out);
        free(score.call.out);
        first += rows;
        if (session->closed && first < end && rc == 0)
            rc = NIBBLE_E_CANCELLED;
    }
    session->scoring = false;
    nb_session_unpin(session);
    return rc;
}

static int prepare(nibble_session *session, const int32_t *tokens, size_t n, size_t first,
                   size_t end)
{
    int rc = nb_session_ready(session);
    if (rc == 0 && first >= end)
        rc = nb_fail(session->channel->connection, -EINVAL,
                     "nothing to score: first is %zu, there are %zu tokens", first, n);
    return rc < 0 ? rc : nb_session_set_log(session, 0, tokens, n);
}

struct logprobs {
    float *out;
    size_t first;
};

static int keep_logprobs(void *user, size_t first, size_t n, const float *rows)
{
    const struct logprobs *to = user;
    memcpy(to->out + (first - to->first), rows, n * sizeof(*rows));
    return 0;
}

int nibble_score(nibble_session *session, const int32_t *tokens, size_t n, size_t first,
                 float *ret_logprobs)
{
    struct logprobs to = {.first = first};
    to.out = ret_logprobs;
    int rc = prepare(session, tokens, n, first, n ? n - 1 : 0);
    if (rc < 0)
        return rc;
    return in_chunks(session, NB_SCORE_LOGPROBS, first, n, sizeof(float), keep_logprobs, &to);
}

struct logits {
    int (*row)(void *user, size_t position, const float *logits, size_t vocab);
    void *user;
    size_t vocab;
};

static int tell_logits(void *user, size_t first, size_t n, const float *rows)
{
    const struct logits *to = user;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = to->row(to->user, first + i, rows + i * to->vocab, to->vocab);
    return rc;
}

int nibble_logits(nibble_session *session, const int32_t *tokens, size_t n, size_t first,
                  int (*row)(void *user, size_t position, const float *logits, size_t vocab),
                  void *user)
{
    size_t vocab = session->channel->model.vocab;
    struct logits to = {row, user, vocab};
    int rc = prepare(session, tokens, n, first, n);
    if (rc < 0)
        return rc;
    return in_chunks(session, NB_SCORE_LOGITS, first, n, vocab * sizeof(float), tell_logits, &to);
}
