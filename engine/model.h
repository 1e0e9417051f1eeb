// The engine from the inside: a model, its sequences and who owns which KV block. model.c opens it,
// sequence.c keeps the logs, kv.c the blocks, scheduler.c makes the steps, drafts.c proposes tokens
// for them and drafter.c has a second model propose some, diagnosis.c finds out what went wrong in
// one.
#pragma once

#include "engine/engine.h"
#include "engine/ngrams.h"
#include "engine/plan.h"

#define NB_DRAFT_MAX   8 // tokens that are proposed at a time
#define NB_DRAFT_KINDS 5 // of proposals: four of the log's, by how sure they are, and the drafter's
#define NB_DRAFT_MODEL 4
// A step with more rows has no drafted ones, so that one step brings a channel no more tokens than
// it has jobs (libclient/ring.h).
#define NB_DRAFT_ROWS 64

// What may follow the log: whoever proposes it, the step verifies it.
struct nb_draft {
    int32_t token[NB_DRAFT_MAX];
    uint32_t n;
    uint32_t asked;    // of the drafter, in the step that is being planned
    uint32_t kind;     // whose share of accepted tokens counts
    uint32_t accepted; // of n, by the step under way
};

// What drafting is decided by: running means of a model on its device.
struct nb_drafting {
    double ns[NB_DRAFT_ROWS + 1]; // that a step of so many rows of decode takes; 0: not known
    double share[NB_DRAFT_KINDS]; // of proposed tokens that are accepted: a new sequence's first
    double spent, probe_at;       // ns of such steps until now, and at the next probe
    double probed;                // ns of the drafter since it was asked although it may not pay
    uint32_t drafted;             // steps since the last one without drafted rows
};

struct nb_sequence {
    struct nb_model *model;
    struct nb_sequence *prev, *next;
    void *user;

    int32_t *log;
    uint32_t length, capacity;
    // The first `computed` positions of the log are in the KV cache. Whoever takes blocks away
    // lowers it, and the scheduler computes what is missing: there is no other way to rebuild a
    // sequence.
    uint32_t computed;
    uint32_t *block, n_blocks;        // room for a whole context
    const struct nb_adapter *adapter; // its rows', or NULL

    bool active, parked;
    struct nb_request request;
    uint32_t generated;
    // A row's logits were not finite: the request ends once it is known why (diagnosis.c).
    bool failed;
    uint32_t failed_at; // the row
    char error[256];    // why the last request ended with an error; "": it did not

    uint32_t rows;   // of the log, in the step under way; those of the draft follow
    double *vector;  // of an embedding request: the sum of the rows that count so far
    uint32_t pooled; // it has what counts of so many rows, also if they must be computed again

    struct nb_draft draft; // of the step under way
    struct nb_ngrams ngrams;
    struct nb_sequence *shadow;   // of the drafter, whose log follows this one's; NULL: none yet
    double share[NB_DRAFT_KINDS]; // of its proposed tokens that are accepted, a running mean
    uint32_t proposed, accepted;  // tokens of the request
};

struct nb_model {
    struct nb_image *image;
    struct nb_device *device;
    struct nb_plan *plan;
    struct nb_device_model *dm;
    struct nb_tokenizer *tokenizer;
    struct nb_chat_template *chat_template;
    struct nb_model_events events;
    void *part; // room for a part of a client's matrix, while it is packed and used (operand.c)
    size_t part_bytes;

    uint32_t max_rows, kv_blocks, n_touched; // blocks, by `used`
    uint32_t *free_block, n_free;
    bool *used;    // blocks that somebody has written
    int uncleared; // why a block that was taken shows its last owner's content, or 0
    bool prepared;

    // In the order of their last request: the active ones by arrival, the idle ones longest idle
    // first.
    struct nb_sequence *first, *last;
    uint32_t n_sequences;
    uint64_t steps;
    struct nb_drafting drafting;
    struct nb_model *drafter;       // NULL: none
    struct nb_diagnosis *diagnosis; // under way, or NULL
    uint32_t next_decode; // the sequence that decodes first when there are more of them than rows

    // The rows of a step.
    int32_t *token;
    uint32_t *position, *row_sequence, *logits_row, *candidates;
    const uint32_t **blocks;
    const struct nb_adapter **adapters;
    struct nb_sequence **batch;
    float *vectors; // [max_rows][embedding], made at the first embedding request
    bool embeds;    // the step under way is one of those that embed; others generate and score
};

// Blocks for the first `positions` of the log, taken from idle sequences, parked ones, and active
// ones that came later, in this order, each from its end. Returns how many positions have blocks.
uint32_t nb_kv_reserve(struct nb_sequence *s, uint32_t positions);
// Gives back what lies past `positions`.
void nb_kv_trim(struct nb_sequence *s, uint32_t positions);

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline bool nb_model_generates(const struct nb_model *m)
{
    return m->plan->width[NB_VALUE_LOGITS] > 0;
}

// Positions of the log that are not computed.
static inline uint32_t nb_sequence_pending(const struct nb_sequence *s)
{
    return s->length - s->computed;
}

// diagnosis.c. Does some more to find out why a sequence has failed; one that it is known of ends.
// Whether there was anything to do.
bool nb_diagnose(struct nb_model *m);
void nb_diagnosis_drop(struct nb_model *m, const struct nb_sequence *s); // NULL: whosever it is

// drafts.c. Before the first step of a model.
void nb_drafts_init(struct nb_model *m);
// Gives the sequences whose rows are planned their drafts, if these rows are of decode alone. An
// errno of the drafter's steps.
int nb_drafts_plan(struct nb_model *m);
// After a step whose rows, drafted ones too, were `rows` of decode: what it took, and what became
// of its `n` sequences' drafts.
void nb_drafts_learn(struct nb_model *m, uint32_t rows, uint64_t ns, uint32_t n);

// drafter.c. Proposes draft.asked tokens for each sequence that asks for some, or a part of what
// the drafter must compute before it can. An errno of its steps.
int nb_drafter_propose(struct nb_model *m);

// pooling.c: the vector of a sequence's log. Whether a row's vector counts; adding it; and the
// whole once the last row has been added, in place of the sum.
int nb_pool_begin(struct nb_sequence *s);
bool nb_pool_wants(const struct nb_sequence *s, uint32_t position);
void nb_pool_add(struct nb_sequence *s, uint32_t position, const float *row);
void nb_pool_end(struct nb_sequence *s, float *ret);

void nb_sequence_finish(struct nb_sequence *s, enum nb_finish why, int error); // scheduler.c
int nb_sequence_append(struct nb_sequence *s, const int32_t *tokens, uint32_t n);
