// The engine as its users see it: a model on a device, sequences, and the step that moves them all.
// The worker's serve and job modes, tests and benchmarks stand on this header alone.
// Single-threaded: one thread calls all of a model's functions; the device has its own threads
// inside.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/device.h"
#include "engine/kv.h"
#include "engine/sampler.h"
#include "tensor/fail.h"

struct nb_image;
struct nb_tokenizer;
struct nb_chat_template;

enum nb_precision { NB_PRECISION_FAST, NB_PRECISION_BALANCED, NB_PRECISION_EXACT };

struct nb_model_options {
    enum nb_precision precision;
    enum nb_kv_type kv_type;
    uint32_t max_context; // 0: the model's own
    uint32_t max_rows;    // rows of a step; 0: 512
    // Memory for KV blocks; 0: a default by the device's room, at least one full context.
    uint64_t kv_bytes;
    uint64_t kv_most;       // of that default; 0: no such bound
    const char *kv_most_by; // what sets that bound, for the sentence; may be NULL
    // While the weights go to a device's own memory; may be NULL.
    void (*on_progress)(void *user, uint64_t done, uint64_t total);
    void *user;
};

struct nb_model_info {
    const char *architecture;  // GGUF's name
    bool generates;            // else it only embeds
    uint32_t longest_embedded; // tokens of a text that it embeds at once
    uint32_t vocab, context, n_layers, embedding;
    uint64_t weight_bytes, kv_block_bytes;
    uint32_t kv_blocks, kv_blocks_free;
    uint32_t kv_blocks_touched; // that were used at any time, and so have memory
};

struct nb_model;
struct nb_sequence;
struct nb_adapter;

// Takes the image (unmapped by nb_model_close; left to the caller on failure). -ENOTSUP with the
// architecture's name and the supported ones, -EINVAL for missing or misshapen tensors, -ENOMEM
// with figures.
int nb_model_open(struct nb_image *image, struct nb_device *device,
                  const struct nb_model_options *options, struct nb_model **ret,
                  struct nb_error *ret_error);
void nb_model_close(struct nb_model *m); // every sequence must be gone
void nb_model_info(const struct nb_model *m, struct nb_model_info *ret);
// Of each section of the model since it was opened: NB_SECTIONS values (engine/op.h).
void nb_model_times(const struct nb_model *m, struct nb_op_time *ret);
uint64_t nb_model_steps(const struct nb_model *m); // in that time
const struct nb_tokenizer *nb_model_tokenizer(const struct nb_model *m);
const struct nb_chat_template *
nb_model_chat_template(const struct nb_model *m); // NULL when the file has none

// A LoRA adapter for sequences of the model: an image packed of its GGUF, with factors `scale`
// times as strong as the file says. Takes the image (unmapped by nb_adapter_destroy; left to the
// caller on failure). `name` is for the line. -ENOTSUP: the adapter changes embeddings or experts,
// or is of another type or rank than these take; -EINVAL: it is no adapter, or one of another base;
// -ENOMEM, with what its factors take and what the device has left; what a step returns of a device
// that is lost.
int nb_adapter_create(struct nb_model *m, struct nb_image *image, const char *name, double scale,
                      struct nb_adapter **ret, struct nb_error *ret_error);
// Before its model is closed, and once no sequence has it; NULL is fine.
void nb_adapter_destroy(struct nb_adapter *adapter);

// Tokens that the drafter would generate are proposed to the model's sequences, beside those of
// their logs (enum nb_drafts). It is another model with the same tokens, on any device, whose
// sequences are all the model's from now on, and it outlives this: NULL ends it, before either is
// closed. -EBUSY: the model has a drafter; -EINVAL: it has other tokens, or one of them generates
// none.
int nb_model_draft_with(struct nb_model *m, struct nb_model *drafter, struct nb_error *ret_error);

// --- Sequences: one token log each. The KV cache is only a cache of the log; blocks are taken and
// given back as the scheduler sees fit, and rebuilt from the log.
int nb_sequence_create(struct nb_model *m, void *user, struct nb_sequence **ret);
void nb_sequence_destroy(struct nb_sequence *s); // cancels what it does
// Its rows have the adapter from now on; NULL: none. Before its first token.
void nb_sequence_adapt(struct nb_sequence *s, const struct nb_adapter *adapter);
uint32_t nb_sequence_length(const struct nb_sequence *s);
uint32_t nb_sequence_computed(
    const struct nb_sequence *s); // how many of the log's first tokens are in the KV cache now
// Cuts the log to `base` tokens (<= its length) and appends n. Does not compute. -E2BIG past the
// context: the figures are nb_model_info's context; -EINVAL for ids outside the vocabulary; -EBUSY
// while a request is active.
int nb_sequence_set(struct nb_sequence *s, uint32_t base, const int32_t *tokens, uint32_t n);
const int32_t *nb_sequence_tokens(const struct nb_sequence *s);

// Whether tokens are proposed and verified several in a step. Never changes which are chosen.
enum nb_drafts {
    NB_DRAFTS_OFF,
    NB_DRAFTS_MEASURED, // where running means say that it is faster
    NB_DRAFTS_ALWAYS,   // wherever there is something to propose
};

// What a sequence is asked to do: compute its log's pending rows, then (max_tokens > 0) go on
// generating.
struct nb_request {
    uint32_t max_tokens; // 0: only compute (score)
    struct nb_sampling sampling;
    bool ignore_eos;
    enum nb_drafts drafts;
    // Scoring: logits of the rows [score_from, length) are handed to on_logits as they are
    // computed.
    bool score;
    uint32_t score_from;
    // The text's vector is made of its rows, as the model pools them, and handed to on_vector.
    bool embed;
    bool normalise; // its length is then 1, unless the model's has any (nb_hparams.any_length)
};

enum nb_finish {
    NB_FINISH_NONE,
    NB_FINISH_EOS,
    NB_FINISH_LENGTH,
    NB_FINISH_CONTEXT,
    NB_FINISH_SCORED, // or embedded
    NB_FINISH_ERROR
};

// Called from inside nb_model_step. They may not destroy sequences; they may call nb_sequence_stop.
struct nb_model_events {
    // A token was chosen and appended to the log. logprob is NaN unless sampling.logprobs. The
    // end-of-generation token itself is appended to the log and reported with finish EOS.
    void (*on_token)(void *user, int32_t token, float logprob);
    // Logits of row `position` (predicting position + 1), vocab floats, valid during the call.
    // Only rows that are finite numbers throughout.
    void (*on_logits)(void *user, uint32_t position, const float *logits, uint32_t vocab);
    // With NB_FINISH_ERROR nb_sequence_error has a sentence; -EBADMSG: the logits are not finite.
    void (*on_finish)(void *user, enum nb_finish finish, int error);
    // The vector of the whole log, valid during the call: only one of finite numbers.
    void (*on_vector)(void *user, const float *vector, uint32_t n);
};
void nb_model_set_events(struct nb_model *m, const struct nb_model_events *events);

// -EBUSY when active; -EOPNOTSUPP to generate or score with a model that only embeds; -E2BIG for a
// text that is longer than the model embeds at once.
int nb_sequence_start(struct nb_sequence *s, const struct nb_request *request);
// Ends the active request after the current token (a stop string, a cancel). on_finish is not
// called.
void nb_sequence_stop(struct nb_sequence *s);
// Why the last request ended with NB_FINISH_ERROR, in one line; "" when it did not. Until the next
// request.
const char *nb_sequence_error(const struct nb_sequence *s);
// A parked sequence keeps its request but takes no part in steps (its client does not read).
void nb_sequence_park(struct nb_sequence *s, bool parked);
// How many tokens were proposed since the last request began or the log was set, and how many of
// these were accepted.
void nb_sequence_drafts(const struct nb_sequence *s, uint32_t *ret_proposed,
                        uint32_t *ret_accepted);

struct nb_step_stats {
    uint32_t decode_rows, prefill_rows, sequences;
    uint32_t drafted_rows, accepted; // beside decode_rows, and how many of these count
};
// One step: rows of decode and of chunked prefill of several sequences together. 0: nothing to do,
// 1: did some, or negative errno when the device failed (the model is then unusable: the worker
// ends itself).
int nb_model_step(struct nb_model *m, struct nb_step_stats *ret_stats);
bool nb_model_has_work(const struct nb_model *m);
// Between steps: one piece of what makes later ones faster, some 100 ms, at worst a second or two.
// Never changes what they compute. 1: there is more, 0: the model is prepared, or a negative errno
// as of nb_model_step.
int nb_model_prepare(struct nb_model *m);
bool nb_model_is_prepared(const struct nb_model *m);
