// Makes the steps: which rows of which sequences run together, and what becomes of their logits. A
// row's result does not depend on its company, so this is policy alone.
#include "engine/model.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/tokenizer.h"
#include "machine/clock.h"

// Rows of a scoring sequence in a step: each has a row of logits in memory.
#define SCORE_ROWS 128

static bool waits(const struct nb_sequence *s)
{
    return s->active && !s->parked && !s->failed && nb_sequence_pending(s) > 0;
}

static bool runnable(const struct nb_sequence *s)
{
    return waits(s) && s->request.embed == s->model->embeds;
}

// Steps that embed and those that do not take turns where there are both: the ones need no head.
static void choose_kind(struct nb_model *m)
{
    bool embeds = false, others = false;
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        if (waits(s))
            *(s->request.embed ? &embeds : &others) = true;
    m->embeds = embeds && (!others || !m->embeds);
}

static bool streams(const struct nb_sequence *s)
{
    return waits(s) && !s->request.embed && nb_sequence_pending(s) == 1;
}

static bool decoding(const struct nb_sequence *s)
{
    return streams(s) && !s->model->embeds;
}

// A text to embed is prefill to its last row, so that those of one token do not bound the others.
static bool in_prefill(const struct nb_sequence *s)
{
    return runnable(s) && (s->request.embed || nb_sequence_pending(s) > 1);
}

static uint32_t count(const struct nb_model *m, bool (*is)(const struct nb_sequence *s))
{
    uint32_t n = 0;
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        n += is(s);
    return n;
}

// One row for each sequence in decode; in turns, where there are more than rows.
static uint32_t plan_decode(struct nb_model *m, uint32_t budget)
{
    uint32_t n = count(m, decoding), i = 0, left = budget;
    uint32_t first = n > budget ? m->next_decode % n : 0;
    for (struct nb_sequence *s = m->first; s; s = s->next) {
        if (!decoding(s))
            continue;
        uint32_t distance = i++ >= first ? i - 1 - first : i - 1 + n - first;
        if (distance >= budget)
            continue;
        s->rows = 1;
        left--;
    }
    m->next_decode += budget;
    return budget - left;
}

static void grant(struct nb_sequence *s, uint32_t rows, uint32_t *left)
{
    uint32_t n = min_u32(nb_sequence_pending(s) - s->rows, min_u32(rows, *left));
    if (s->request.score && s->rows + n > SCORE_ROWS)
        n = SCORE_ROWS - s->rows;
    // Tokens that see those after them are computed together.
    if (!s->model->plan->hp.causal && n < nb_sequence_pending(s))
        n = 0;
    s->rows += n;
    *left -= n;
}

// The oldest prefill is sure of half the budget, so that none waits for ever; the rest goes to the
// shortest, so that a short prompt does not wait for a long one; what is then left, by age.
static void plan_prefill(struct nb_model *m, uint32_t budget)
{
    uint32_t left = budget;
    struct nb_sequence *oldest = m->first;
    while (oldest && !in_prefill(oldest))
        oldest = oldest->next;
    if (!oldest)
        return;
    grant(oldest, oldest->model->plan->hp.causal ? (budget + 1) / 2 : budget, &left);
    while (left) {
        struct nb_sequence *shortest = NULL;
        for (struct nb_sequence *s = oldest; s; s = s->next)
            if (in_prefill(s) && !s->rows &&
                (!shortest || nb_sequence_pending(s) < nb_sequence_pending(shortest)))
                shortest = s;
        if (!shortest)
            break;
        grant(shortest, left, &left);
        if (!shortest->rows)
            break; // it waits for a step with more room, as all that are longer
    }
    grant(oldest, left, &left);
}

static int plan_rows(struct nb_model *m)
{
    for (struct nb_sequence *s = m->first; s; s = s->next) {
        s->rows = 0;
        s->draft.n = s->draft.accepted = 0;
    }
    // Those who stream wait for a quarter of a full step at most.
    uint32_t prefill = count(m, in_prefill) ? (m->max_rows + 3) / 4 : 0;
    if (!count(m, decoding)) {
        plan_prefill(m, count(m, streams) ? prefill : m->max_rows);
        return 0;
    }
    plan_decode(m, prefill < m->max_rows ? m->max_rows - prefill : m->max_rows);
    if (prefill && prefill < m->max_rows)
        plan_prefill(m, prefill);
    return prefill ? 0 : nb_drafts_plan(m);
}

static bool wants_result(const struct nb_sequence *s, uint32_t position)
{
    if (s->request.embed)
        return nb_pool_wants(s, position);
    if (s->request.score && position >= s->request.score_from)
        return true;
    return s->request.max_tokens && position + 1 >= s->length;
}

// Of the best candidates; 0: all logits.
static uint32_t suffices(const struct nb_sequence *s)
{
    return s->request.score ? 0 : nb_sampling_suffices(&s->request.sampling);
}

// Drafted rows take no block from anyone: those of the sequence, or free ones that are left when
// every other sequence of the step has taken the one that its own row may need.
static void fit_draft(struct nb_sequence *s, uint32_t end)
{
    if (!s->draft.n)
        return;
    uint32_t room = s->n_blocks * NB_KV_POSITIONS - end;
    if (end < s->length)
        s->draft.n = 0; // it has lost blocks since
    else if (s->draft.n > room && s->model->n_free > s->model->n_sequences)
        nb_kv_reserve(s, end + s->draft.n);
    else
        s->draft.n = min_u32(s->draft.n, room);
}

// The rows that a sequence has blocks for. By arrival: whoever needs a block may take it from those
// who came later, whose turn is not yet.
static bool settle_rows(struct nb_sequence *s, struct nb_step_stats *stats)
{
    uint32_t end = nb_kv_reserve(s, s->computed + s->rows);
    const bool together = !s->model->plan->hp.causal && end < s->length;
    if (end <= s->computed || together) {
        s->rows = s->draft.n = 0;
        return false;
    }
    s->rows = end - s->computed;
    fit_draft(s, end);
    stats->drafted_rows += s->draft.n;
    s->proposed += s->draft.n;
    *(nb_sequence_pending(s) == 1 ? &stats->decode_rows : &stats->prefill_rows) += s->rows;
    return true;
}

// Those of one adapter become neighbours. Which comes first changes no bit.
static void sort_by_adapter(struct nb_sequence **batch, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        struct nb_sequence *s = batch[i];
        uint32_t j = i;
        for (; j > 0 && (uintptr_t)batch[j - 1]->adapter > (uintptr_t)s->adapter; j--)
            batch[j] = batch[j - 1];
        batch[j] = s;
    }
}

static void add_rows(struct nb_sequence *s, uint32_t place, struct nb_rows *rows)
{
    struct nb_model *m = s->model;
    const uint32_t end = s->computed + s->rows + s->draft.n;
    m->blocks[place] = s->block;
    m->adapters[place] = s->adapter;
    for (uint32_t p = s->computed; p < end; p++, rows->n++) {
        m->token[rows->n] = p < s->length ? s->log[p] : s->draft.token[p - s->length];
        m->position[rows->n] = p;
        m->row_sequence[rows->n] = place;
        if (wants_result(s, p)) {
            m->candidates[rows->n_logits] = suffices(s);
            m->logits_row[rows->n_logits++] = rows->n;
        }
    }
}

static void fill_rows(struct nb_model *m, struct nb_rows *rows, struct nb_step_stats *stats)
{
    uint32_t n = 0;
    for (struct nb_sequence *s = m->first; s; s = s->next)
        if (s->rows && settle_rows(s, stats))
            m->batch[n++] = s;
    sort_by_adapter(m->batch, n);
    for (uint32_t i = 0; i < n; i++)
        add_rows(m->batch[i], i, rows);
    stats->sequences = n;
}

void nb_sequence_finish(struct nb_sequence *s, enum nb_finish why, int error)
{
    s->active = false;
    if (s->model->events.on_finish)
        s->model->events.on_finish(s->user, why, error);
}

// Why generation ends after `token`, if it does.
static enum nb_finish finish_of(const struct nb_sequence *s, int32_t token)
{
    if (!s->request.ignore_eos && nb_tokenizer_is_eog(s->model->tokenizer, token))
        return NB_FINISH_EOS;
    if (s->generated >= s->request.max_tokens)
        return NB_FINISH_LENGTH;
    return s->length >= s->model->plan->hp.context ? NB_FINISH_CONTEXT : NB_FINISH_NONE;
}

// A row of logits, or so many candidates at its place.
struct row {
    float *logits;
    uint32_t candidates;
};

static int choose(const struct nb_sequence *s, struct row row, int32_t *ret_token,
                  float *ret_logprob)
{
    const struct nb_sampling *p = &s->request.sampling;
    if (row.candidates)
        return nb_sample_best(p, (struct nb_candidate *)row.logits, row.candidates, s->length,
                              ret_token);
    return nb_sample(p, row.logits, s->model->plan->hp.vocab, s->log, s->length, s->length,
                     ret_token, ret_logprob);
}

static void fail_at(struct nb_sequence *s, uint32_t position)
{
    s->failed = true;
    s->failed_at = position;
}

static void end_with(struct nb_sequence *s, int error)
{
    if (error == -EDOM)
        snprintf(
            s->error, sizeof(s->error),
            "a repetition penalty of %g leaves no logit that is finite: choose one nearer to 1",
            (double)s->request.sampling.repeat_penalty);
    else
        snprintf(s->error, sizeof(s->error), "a token cannot be chosen: %s", strerror(-error));
    nb_sequence_finish(s, NB_FINISH_ERROR, error);
}

static void generate(struct nb_sequence *s, struct row row)
{
    int32_t token;
    float logprob = NAN;
    int rc = choose(s, row, &token, &logprob);
    if (rc == 0)
        rc = nb_sequence_append(s, &token, 1);
    if (rc == -EBADMSG) {
        fail_at(s, s->length - 1);
        return;
    }
    if (rc < 0) {
        end_with(s, rc);
        return;
    }
    s->generated++;
    enum nb_finish why = finish_of(s, token);
    if (s->model->events.on_token)
        s->model->events.on_token(s->user, token, logprob);
    if (why != NB_FINISH_NONE && s->active)
        nb_sequence_finish(s, why, 0);
}

static void deliver(struct nb_sequence *s, uint32_t position, struct row row)
{
    const struct nb_model *m = s->model;
    bool last = position + 1 == s->length;
    if (s->request.score && position >= s->request.score_from && m->events.on_logits) {
        if (!nb_logits_are_finite(row.logits, m->plan->hp.vocab)) {
            fail_at(s, position);
            return;
        }
        m->events.on_logits(s->user, position, row.logits, m->plan->hp.vocab);
    }
    if (last && s->request.max_tokens && s->active)
        generate(s, row);
}

// A row of an embedding request; the last one makes the vector of all.
static void deliver_vector(struct nb_sequence *s, uint32_t position, float *row)
{
    const struct nb_model *m = s->model;
    const uint32_t n = m->plan->hp.embedding;
    if (!nb_logits_are_finite(row, n)) {
        fail_at(s, position);
        return;
    }
    nb_pool_add(s, position, row);
    if (position + 1 < s->length && m->plan->hp.pooling != NB_POOLING_CLS)
        return;
    nb_pool_end(s, row);
    if (m->events.on_vector)
        m->events.on_vector(s->user, row, n);
}

// A drafted row counts if the log has its token by now: then it is what decoding would have
// computed next. Those after the first that does not are behind the log's end.
static bool counts(struct nb_sequence *s, uint32_t position, int32_t token)
{
    if (position < s->computed)
        return true;
    if (position >= s->length || s->log[position] != token)
        return false;
    s->computed++;
    s->draft.accepted++;
    s->accepted++;
    return true;
}

static void deliver_rows(struct nb_model *m, const struct nb_rows *rows, float *logits)
{
    for (uint32_t i = 0; i < rows->n_logits; i++) {
        const uint32_t row = m->logits_row[i], position = m->position[row];
        struct nb_sequence *s = m->batch[m->row_sequence[row]];
        if (!s->active || s->failed || !counts(s, position, m->token[row]))
            continue;
        if (m->embeds)
            deliver_vector(s, position, m->vectors + (size_t)i * m->plan->hp.embedding);
        else
            deliver(s, position,
                    (struct row){logits + (size_t)i * m->plan->hp.vocab, m->candidates[i]});
    }
}

static int run_rows(struct nb_model *m, const struct nb_rows *rows, struct nb_step_stats *stats)
{
    float *logits = NULL;
    const uint64_t began = nb_now_ns();
    int rc = m->uncleared < 0 ? m->uncleared : m->device->ops->step(m->dm, rows, &logits);
    if (rc < 0)
        return rc;
    const uint64_t took = nb_now_ns() - began;
    m->steps++;
    for (uint32_t i = 0; i < stats->sequences; i++)
        m->batch[i]->computed += m->batch[i]->rows;
    deliver_rows(m, rows, logits);
    for (uint32_t i = 0; i < stats->sequences; i++)
        stats->accepted += m->batch[i]->draft.accepted;
    if (!m->embeds && !stats->prefill_rows)
        nb_drafts_learn(m, rows->n, took, stats->sequences);
    return 0;
}

// Requests that only compute end when nothing is pending, with or without rows in this step.
static bool finish_scored(struct nb_model *m)
{
    bool any = false;
    for (struct nb_sequence *s = m->first; s; s = s->next)
        if (s->active && !s->parked && !s->failed && !s->request.max_tokens &&
            !nb_sequence_pending(s)) {
            nb_sequence_finish(s, NB_FINISH_SCORED, 0);
            any = true;
        }
    return any;
}

int nb_model_step(struct nb_model *m, struct nb_step_stats *ret_stats)
{
    struct nb_step_stats stats = {0};
    struct nb_rows rows = {.token = m->token,
                           .position = m->position,
                           .sequence = m->row_sequence,
                           .blocks = m->blocks,
                           .adapters = m->adapters,
                           .logits_row = m->logits_row,
                           .candidates = m->candidates};
    choose_kind(m);
    int rc = plan_rows(m);
    if (rc < 0)
        return rc;
    fill_rows(m, &rows, &stats);
    if (m->embeds) {
        rows.vectors = m->vectors;
        rows.no_logits = true;
        rows.candidates = NULL;
    }
    rc = rows.n ? run_rows(m, &rows, &stats) : 0;
    if (rc < 0)
        return rc;
    bool finished = finish_scored(m);
    finished |= nb_diagnose(m);
    if (ret_stats)
        *ret_stats = stats;
    return rows.n || finished;
}

bool nb_model_has_work(const struct nb_model *m)
{
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        if (s->active && !s->parked)
            return true;
    return false;
}
