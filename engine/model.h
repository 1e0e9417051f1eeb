// The engine from the inside: a model, its sequences and who owns which KV block. model.c opens it,
// sequence.c keeps the logs, kv.c the blocks, scheduler.c makes the steps.
#pragma once

#include "engine/engine.h"
#include "engine/plan.h"

#define NB_KV_POSITIONS 32 // of a block

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
    uint32_t *block, n_blocks; // room for a whole context

    bool active, parked;
    struct nb_request request;
    uint32_t generated;

    uint32_t rows; // in the step under way
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

    uint32_t max_rows, kv_blocks;
    uint32_t *free_block, n_free;
    bool *used; // blocks that somebody has written
    bool prepared;

    // In the order of their last request: the active ones by arrival, the idle ones longest idle
    // first.
    struct nb_sequence *first, *last;
    uint32_t n_sequences;
    uint64_t steps;
    uint32_t turn; // whose turn it is when there are more sequences in decode than rows

    // The rows of a step.
    int32_t *token;
    uint32_t *position, *row_sequence, *logits_row, *candidates;
    const uint32_t **blocks;
    struct nb_sequence **batch;
};

// Blocks for the first `positions` of the log, taken from idle sequences, parked ones, and active
// ones that came later, in this order, each from its end. Returns how many positions have blocks.
uint32_t nb_kv_reserve(struct nb_sequence *s, uint32_t positions);
// Gives back what lies past `positions`.
void nb_kv_trim(struct nb_sequence *s, uint32_t positions);

// Positions of the log that are not computed.
static inline uint32_t nb_sequence_pending(const struct nb_sequence *s)
{
    return s->length - s->computed;
}

int nb_sequence_append(struct nb_sequence *s, const int32_t *tokens, uint32_t n);
