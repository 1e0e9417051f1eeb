// Speculative decoding: tokens that may follow are proposed, run as rows behind the last token's,
// and those that the sampler would have chosen anyway are accepted (Leviathan, Kalman and Matias,
// "Fast inference from transformers via speculative decoding", 2023; here the choice is a function
// of seed and position, so that accepting is comparing). The log itself proposes, which costs
// nothing; where it has nothing to say the drafter does (drafter.c), if there is one. What is
// proposed changes how fast tokens come, never which.
//
// It pays where a step with more rows brings more tokens a second. Both sides of that are running
// means: what steps of so many rows take, and which share of proposed tokens is accepted.
#include <math.h>
#include <string.h>

#include "engine/model.h"
#include "machine/clock.h"

#define MARGIN      1.03 // more tokens a second than without, or it is left
#define TIME_WEIGHT 8    // of running means: so many steps,
#define OWN_WEIGHT  16   // so many proposed tokens of a sequence,
#define ALL_WEIGHT  256  // and of all of them
#define OUTLIER     4    // a step that took longer than so many means was interrupted
#define PLAIN_EVERY 64   // steps: one without drafted rows, so that what it takes stays known
#define PROBE_SHARE 200  // a probe loses a 200th of what is spent until the next one, at most
#define ASKED       4    // tokens of the drafter, while no measurement says how many

void nb_drafts_init(struct nb_model *m)
{
    // As good as any: they are soon forgotten.
    static const double share[NB_DRAFT_KINDS] = {0.4, 0.5, 0.7, 0.9, 0.7};
    memcpy(m->drafting.share, share, sizeof(share));
}

// What followed in the log where its last tokens occurred before. The more of them matched, the
// likelier.
static void propose(struct nb_sequence *s, uint32_t most)
{
    struct nb_draft *d = &s->draft;
    uint32_t matched = nb_ngrams_find(&s->ngrams, s->log, s->length, d->token, most);
    d->n = matched ? most : 0;
    d->kind = (matched > 3) + (matched > 5) + (matched > 11);
}

// How many tokens could be accepted.
static uint32_t room(const struct nb_sequence *s, uint32_t rows)
{
    const struct nb_model *m = s->model;
    const uint32_t most = min_u32(m->max_rows, NB_DRAFT_ROWS);
    uint32_t n = rows < most ? min_u32(most - rows, NB_DRAFT_MAX) : 0;
    n = min_u32(n, s->request.max_tokens - s->generated - 1);
    return min_u32(n, m->plan->hp.context - s->length - 1);
}

// What a step of `rows` takes, by its nearest neighbours where there was none; that of the one
// below where there is none above, so that it will be tried. Steps of `known` rows are known.
static double step_ns(const struct nb_drafting *d, uint32_t rows, uint32_t known)
{
    uint32_t below = rows, above = rows;
    while (below > known && d->ns[below] == 0)
        below--;
    while (above <= NB_DRAFT_ROWS && d->ns[above] == 0)
        above++;
    if (below == rows || above > NB_DRAFT_ROWS)
        return d->ns[below];
    const double part = (double)(rows - below) / (double)(above - below);
    return d->ns[below] + part * (d->ns[above] - d->ns[below]);
}

// A step as it is planned: its rows, those among them that are not drafted, and how many tokens it
// will bring.
struct planned {
    uint32_t rows, plain;
    double tokens;
};

// Now and then nothing is proposed, so that what such a step takes stays known.
static bool is_plain_turn(const struct nb_drafting *d, const struct planned *step)
{
    return d->ns[step->plain] == 0 || d->drafted % PLAIN_EVERY == PLAIN_EVERY - 1;
}

// How much of the draft pays in such a step.
static uint32_t worth(struct nb_sequence *s, struct planned *step)
{
    struct nb_drafting *d = &s->model->drafting;
    if (is_plain_turn(d, step))
        return 0;
    const double p = s->share[s->draft.kind], without = step_ns(d, step->rows, step->plain);
    double best = step->tokens / without * MARGIN, sure = 1, sum = step->tokens;
    uint32_t n = 0;
    for (uint32_t i = 1; i <= s->draft.n; i++) {
        sure *= p;
        sum += sure;
        const double rate = sum / step_ns(d, step->rows + i, step->plain);
        if (rate > best) {
            best = rate;
            n = i;
            step->tokens = sum;
        }
    }
    if (n || d->spent < d->probe_at)
        return n;
    // Where it does not pay it is tried again, as seldom as it is dear.
    const double with = step_ns(d, step->rows + s->draft.n, step->plain);
    d->probe_at = d->spent + PROBE_SHARE * (with - without);
    return s->draft.n;
}

static bool may_draft(const struct nb_sequence *s)
{
    return s->rows && s->request.drafts != NB_DRAFTS_OFF && s->request.max_tokens &&
           !s->request.score;
}

static bool may_ask(const struct nb_sequence *s)
{
    return may_draft(s) && !s->draft.n;
}

// How many tokens the drafter should propose for each of those that ask, up to `most`. 0: none pay.
static uint32_t worth_asking(const struct nb_model *m, const struct planned *step, uint32_t asking,
                             uint32_t most)
{
    const struct nb_drafting *d = &m->drafting;
    const double each = step_ns(&m->drafter->drafting, asking, 1);
    double best = step->tokens / step_ns(d, step->rows, step->plain) * MARGIN, sum = step->tokens;
    uint32_t n = 0;
    for (uint32_t i = 1; i <= most && each > 0; i++) {
        for (const struct nb_sequence *s = m->first; s; s = s->next)
            sum += may_ask(s) ? pow(s->share[NB_DRAFT_MODEL], i) : 0;
        const double rate = sum / (step_ns(d, step->rows + i * asking, step->plain) + i * each);
        if (rate > best) {
            best = rate;
            n = i;
        }
    }
    return n;
}

static int ask_drafter(struct nb_model *m, const struct planned *step)
{
    struct nb_drafting *d = &m->drafting;
    const uint32_t rows = min_u32(m->max_rows, NB_DRAFT_ROWS);
    uint32_t asking = 0, made = 0;
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        asking += may_ask(s);
    if (!asking || step->rows >= rows)
        return 0;
    const uint32_t most = min_u32(NB_DRAFT_MAX, (rows - step->rows) / asking);
    const bool may = !is_plain_turn(d, step);
    const uint32_t worth = may ? worth_asking(m, step, asking, most) : 0;
    const bool probes = may && !worth && d->spent >= d->probe_at;
    for (struct nb_sequence *s = m->first; s; s = s->next) {
        const bool anyway = probes || s->request.drafts == NB_DRAFTS_ALWAYS;
        if (may_ask(s))
            s->draft.asked = min_u32(room(s, step->rows), anyway ? min_u32(most, ASKED) : worth);
    }
    const uint64_t began = nb_now_ns();
    int rc = nb_drafter_propose(m);
    const double took = (double)(nb_now_ns() - began);
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        made += s->draft.kind == NB_DRAFT_MODEL ? s->draft.n : 0;
    d->spent += took;
    d->probed += probes ? took : 0;
    if (probes && made) { // as seldom as it is dear
        d->probe_at = d->spent + PROBE_SHARE * d->probed;
        d->probed = 0;
    }
    return rc;
}

int nb_drafts_plan(struct nb_model *m)
{
    struct planned step = {0};
    for (const struct nb_sequence *s = m->first; s; s = s->next)
        step.plain += s->rows;
    step.rows = step.plain;
    step.tokens = step.plain;
    for (struct nb_sequence *s = m->first; s && step.rows < NB_DRAFT_ROWS; s = s->next) {
        if (!may_draft(s))
            continue;
        propose(s, room(s, step.rows));
        if (s->draft.n && s->request.drafts == NB_DRAFTS_MEASURED)
            s->draft.n = worth(s, &step);
        step.rows += s->draft.n;
    }
    return m->drafter ? ask_drafter(m, &step) : 0;
}

static void learn_share(struct nb_sequence *s)
{
    const struct nb_draft *d = &s->draft;
    double *own = &s->share[d->kind], *all = &s->model->drafting.share[d->kind];
    // What was proposed after the first that was refused was not judged; nor was anything after the
    // request's end.
    const uint32_t judged = d->accepted + (d->accepted < d->n && s->active && !s->failed);
    for (uint32_t i = 0; i < judged; i++) {
        const double hit = i < d->accepted;
        *own += (hit - *own) / OWN_WEIGHT;
        *all += (hit - *all) / ALL_WEIGHT;
    }
}

void nb_drafts_learn(struct nb_model *m, uint32_t rows, uint64_t ns, uint32_t n)
{
    struct nb_drafting *d = &m->drafting;
    bool drafted = false;
    for (uint32_t i = 0; i < n; i++) {
        drafted |= m->batch[i]->draft.n > 0;
        if (m->batch[i]->draft.n)
            learn_share(m->batch[i]);
    }
    d->drafted = drafted ? d->drafted + 1 : 0;
    d->spent += (double)ns;
    if (rows > NB_DRAFT_ROWS)
        return;
    double *mean = &d->ns[rows];
    const double most = *mean > 0 ? OUTLIER * *mean : (double)ns;
    const double took = (double)ns < most ? (double)ns : most;
    *mean += (took - *mean) / (*mean > 0 ? TIME_WEIGHT : 1);
}
