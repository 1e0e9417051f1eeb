// The channel's shared memory: what a client and a serving worker exchange without the kernel. One
// sealed memfd (SHRINK|GROW|SEAL): header page, submission ring, completion ring, arena. The other
// side is hostile: the worker keeps the geometry it got from the broker, copies a submission and
// its descriptor once, and validates the copies; the client does the same with completions.
// docs/protocol.md describes it for other implementations.
#pragma once

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NB_RING_VERSION 1
#define NB_SQ_ENTRIES   256u // powers of two
#define NB_CQ_ENTRIES   4096u
#define NB_JOBS_MAX     64u // unretired jobs of a channel
#define NB_SESSIONS_MAX 64u // session ids of a channel: 0 .. 63, chosen by the client
// Completions a job may post at one step, reserved for it (64 * 48 < CQ): tokens and their text,
// what was held back, a reason's pieces and DONE.
#define NB_JOB_SLOTS      48u
#define NB_STOP_MAX       16u
#define NB_STOP_LEN_MAX   128u
#define NB_REASON_MAX     240u        // bytes of a failed job's sentence
#define NB_TEXT_MAX       (4u << 20)  // bytes of one text to tokenize, or to detokenize to
#define NB_TOKEN_TEXT_MAX (64u << 10) // bytes of text that one token may bring
#define NB_MEMORIES_MAX   16u         // registered by a channel
#define NB_TENSOR_NAME    256u        // bytes of a tensor's name, at most
#define NB_GEMM_ROWS      (1u << 20)
#define NB_EMBED_TEXTS    4096u // of one job
#define NB_ARENA_MIN      (64u << 10)
#define NB_ARENA_DEFAULT  (4u << 20)
#define NB_ARENA_MAX      (256u << 20)

// Indices count up for ever; entry = index & (entries - 1). tail is written by the producer, head
// by the consumer; each keeps its own index in private memory and only publishes it here. A sleeper
// sets its flag, looks at the ring once more, then sleeps on its socket; a producer that finds the
// flag set clears it and sends one byte (nb_wake_send). Tail and flag are sequentially consistent:
// of a sleeper that sets its flag and a producer that moves its tail, one sees the other. A worker
// that holds a channel's sessions because its completion ring is full sleeps with
// NB_SLEEPS_FOR_ROOM: then a client that has moved cq_head wakes it in the same way.
#define NB_AWAKE           0u
#define NB_SLEEPS          1u
#define NB_SLEEPS_FOR_ROOM 2u // worker_sleeps alone
struct nb_ring_indices {
    alignas(64) _Atomic uint32_t sq_tail;
    alignas(64) _Atomic uint32_t sq_head;
    alignas(64) _Atomic uint32_t cq_tail;
    alignas(64) _Atomic uint32_t cq_head;
    alignas(64) _Atomic uint32_t worker_sleeps;
    alignas(64) _Atomic uint32_t client_sleeps;
};

// The producer's half: the entries before `tail` are there. True: the consumer sleeps, wake it.
static inline bool nb_ring_publish(_Atomic uint32_t *ring_tail, uint32_t tail,
                                   _Atomic uint32_t *sleeps)
{
    atomic_store(ring_tail, tail);
    return atomic_load(sleeps) != NB_AWAKE && atomic_exchange(sleeps, NB_AWAKE) != NB_AWAKE;
}

// The consumer's half: false when there is something after `head` (its own copy), so that it must
// not sleep.
static inline bool nb_ring_may_sleep(_Atomic uint32_t *ring_tail, uint32_t head,
                                     _Atomic uint32_t *sleeps)
{
    atomic_store(sleeps, NB_SLEEPS);
    return atomic_load(ring_tail) == head;
}

// The client has taken the completions before `head`. True: the worker waits for that room, wake
// it.
static inline bool nb_ring_release(_Atomic uint32_t *ring_head, uint32_t head,
                                   _Atomic uint32_t *sleeps)
{
    uint32_t for_room = NB_SLEEPS_FOR_ROOM;
    atomic_store(ring_head, head);
    return atomic_load(sleeps) == for_room &&
           atomic_compare_exchange_strong(sleeps, &for_room, NB_AWAKE);
}

#define NB_CHANNEL_SQ_OFFSET    4096u
#define NB_CHANNEL_CQ_OFFSET    (NB_CHANNEL_SQ_OFFSET + NB_SQ_ENTRIES * 64u)
#define NB_CHANNEL_ARENA_OFFSET (NB_CHANNEL_CQ_OFFSET + NB_CQ_ENTRIES * 64u) // page-aligned
#define NB_CHANNEL_BYTES(arena) (NB_CHANNEL_ARENA_OFFSET + (uint64_t)(arena))

enum nb_submission_op {
    NB_SUBMIT_NOP,
    NB_SUBMIT_TOKENIZE,   // nb_desc_tokenize
    NB_SUBMIT_DETOKENIZE, // nb_desc_detokenize
    NB_SUBMIT_GENERATE,   // nb_desc_generate
    NB_SUBMIT_SCORE,      // nb_desc_score
    // Of the job whose user_data is target: its DONE then says NIBBLE_E_CANCELLED. Not answered
    // itself; nothing happens when there is no such job (any more).
    NB_SUBMIT_CANCEL,
    // Forgets the session's log and KV. Not answered. Its job was cancelled before.
    NB_SUBMIT_SESSION_CLOSE,
    NB_SUBMIT_TENSOR,     // nb_desc_tensor
    NB_SUBMIT_GEMM,       // nb_desc_gemm
    NB_SUBMIT_DEQUANTIZE, // nb_desc_dequantize
    NB_SUBMIT_COUNTERS,   // nb_desc_counters
    NB_SUBMIT_EMBED,      // nb_desc_embed
    NB_SUBMIT_COUNT,
};

struct nb_submission {
    uint32_t op;
    uint32_t flags; // 0
    // Names the job in completions; unique among the channel's unretired jobs; not 0
    uint64_t user_data;
    uint32_t session;
    uint32_t region;   // of the descriptor: 0, the arena
    uint64_t desc;     // offset in the arena, 8-byte aligned
    uint32_t desc_len; // exactly the descriptor's size
    uint32_t pad;
    uint64_t target;
    uint64_t reserved[2]; // 0
};
_Static_assert(sizeof(struct nb_submission) == 64, "a cache line");

// All offsets are in the arena; 4-byte aligned for tokens and floats.
#define NB_TEXT_SPECIAL 1u // parse special tokens
#define NB_TEXT_BOS     2u // add BOS as the model wants
// text is a conversation as JSON (docs/protocol.md), rendered by the model's template or its own
#define NB_TEXT_CHAT   4u
#define NB_TEXT_RENDER 8u // with CHAT: out takes what was rendered, in bytes, not its ids
struct nb_desc_tokenize {
    uint64_t text, text_len;
    uint64_t out; // int32[out_max]; with RENDER char[out_max]
    uint32_t out_max;
    uint32_t flags;
}; // completion DONE: a = number of tokens (perhaps more than out_max: nothing written past it)

struct nb_desc_detokenize {
    uint64_t tokens;
    uint32_t n_tokens;
    uint32_t flags;
    uint64_t out, out_max;
}; // completion DONE: a = number of bytes

#define NB_GENERATE_IGNORE_EOS 1u
#define NB_GENERATE_LOGPROBS   2u
// Tokens are proposed and verified several in a step: never, or wherever there is something to
// propose; without these, where the worker has measured that it is faster. The tokens are the same.
#define NB_GENERATE_DRAFTS_OFF    4u
#define NB_GENERATE_DRAFTS_ALWAYS 8u
// Sets the session's log to its first `base` tokens plus the given ones (one at least), keeping the
// KV of what the old and the new log begin with alike, computes the rest, then generates. After
// REBIND the client submits it again with base 0, the whole log, `n_replay` (how many of the log's
// last tokens this job had generated) and `text_skip` (how many bytes of text it had received).
struct nb_desc_generate {
    uint32_t base, n_tokens;
    uint64_t tokens; // int32[n_tokens]
    uint32_t n_replay;
    uint32_t max_tokens; // of the whole job, replayed ones included; 0: to the end of the context
    uint64_t text_skip;
    uint64_t seed;
    float temperature, top_p, min_p, repeat_penalty;
    uint32_t top_k, repeat_window;
    uint32_t flags;
    uint32_t n_stop;
    uint64_t stop;     // n_stop times: u32 len, bytes (no padding)
    uint64_t stop_len; // bytes of all that
};

// float[n - 1 - first]: row p gives log P(token p + 1), p counted in the log; float[n -
// first][vocab]
#define NB_SCORE_LOGPROBS 0u
#define NB_SCORE_LOGITS   1u
struct nb_desc_score {
    uint32_t base, n_tokens;
    uint64_t tokens;
    uint32_t first; // of the log; >= base
    uint32_t what;
    uint64_t out, out_len;
};

// ---- Places ----

// In the arena (region 0), or in memory that the channel registered.
struct nb_place {
    uint64_t offset;
    uint32_t region, pad;
};

// ---- Embeddings ----

#define NB_EMBED_TOKENS 1u // the input is token ids; else text, to which the model's own are added
// Vectors as the model gives them; else of length 1, unless the model's are never normalised.
#define NB_EMBED_PLAIN    2u
#define NB_EMBED_TRUNCATE 4u // texts that are too long are cut; else refused
// A vector of each text. No session takes part; a vector does not depend on the other texts.
struct nb_desc_embed {
    uint64_t input, input_len; // of all texts, one after the other: UTF-8, or int32 ids; in bytes
    uint64_t lengths;          // u32[n]: of each text, in bytes or in ids
    uint64_t counts;           // u32[n]: gets how many tokens each text has, before it is cut
    struct nb_place out;       // float[n][embedding]
    uint32_t n, flags;
}; // completions PREFILL: a of b texts embedded; DONE: a = of a failure the text that it is about,
   // from 1, or 0

// ---- Matrix jobs ----

struct nb_desc_tensor {
    uint64_t name;
    uint32_t name_len, pad;
    uint64_t out; // struct nb_tensor
};                // completion DONE

struct nb_tensor {
    uint32_t index; // as long as the model is loaded
    uint32_t pad;
    uint64_t rows, cols;
    char type[16];
};

// A matrix: the model's tensor of that index, or a groupwise one (tensor/groupwise.h): codes
// [rows][cols] (two 4-bit codes in a byte, the lower first, rows of whole bytes), scales
// [rows][groups], and zero points, if any, as the codes but int8 or 4 bits a group.
#define NB_NO_TENSOR  UINT32_MAX
#define NB_SCALES_F16 1u // fp32 without
#define NB_ZEROS      2u
struct nb_desc_matrix {
    uint32_t tensor; // NB_NO_TENSOR: as follows; else all that is 0
    uint32_t bits;   // 8, 4
    uint32_t rows, cols;
    uint32_t group; // 32, 64, 128; 0: a row is one
    uint32_t flags;
    struct nb_place codes, scales, zeros;
};

// y[t][r] = sum over k of x[t][k] * w[r][k]; floats, without holes
struct nb_desc_gemm {
    struct nb_desc_matrix w;
    struct nb_place x, y;
    uint32_t n;     // rows of x and y, at most NB_GEMM_ROWS
    uint32_t terms; // of x's quantization: 1 or 2 (docs/numerics.md)
};                  // completion DONE

#define NB_NUMBER_IS_F32  0u
#define NB_NUMBER_IS_F16  1u
#define NB_NUMBER_IS_INT8 2u // and a scale for each row, a float
struct nb_desc_dequantize {
    struct nb_desc_matrix w;
    uint32_t first, count; // rows
    struct nb_place out, scales;
    uint32_t number, pad;
}; // completion DONE

// Of the model's steps since its worker opened it, whoever asked for them.
#define NB_COUNTERS_MAX 16u
struct nb_desc_counters {
    uint64_t out; // struct nb_counters, then room for NB_COUNTERS_MAX of struct nb_counter
};                // completion DONE

struct nb_counters {
    uint64_t steps;
    uint32_t layers;
    uint32_t n_ops;
    char device[32];         // that ran all of them
    uint32_t preparing, pad; // 1: the device still makes later steps faster
};

struct nb_counter {
    char op[16];
    uint64_t ns; // on the device
    uint64_t dispatches;
};

#define NB_TEXT_REASONING 1u // the text lies between the model's think marks, or is one
enum nb_completion_kind {
    // One for each token that joins the log (an EOS too): token, logprob, text; a = bytes of text
    // that came with it, of which those after the first 32 (at most) follow in TEXT at once; b =
    // NB_TEXT_REASONING or 0.
    NB_COMPLETION_TOKEN,
    // Text alone, b as above: the rest of a token's, what of its text is of the other kind, or at
    // the
    // job's end what was held back.
    NB_COMPLETION_TEXT,
    NB_COMPLETION_PREFILL, // a of b tokens computed, or texts embedded
    NB_COMPLETION_DONE,    // the job is retired: status, finish, timings
    // Before a DONE that failed: a piece of the sentence that says why, of NB_REASON_MAX bytes in
    // all at most. UTF-8 for a person; a piece may end within a character.
    NB_COMPLETION_REASON,
    NB_COMPLETION_KINDS,
};

struct nb_done {
    uint32_t finish; // enum nibble_finish
    uint32_t cached_tokens;
    uint64_t queue_ns, prefill_ns, decode_ns;
};

struct nb_completion {
    uint64_t user_data;
    uint16_t kind;
    uint16_t text_len; // at most 32
    int32_t status;    // 0, negative errno or NIBBLE_E
    union {
        int32_t token;
        uint32_t proposed; // DONE of a generation: tokens, by this worker
    };
    union {
        float logprob;
        uint32_t accepted; // and how many of these were the ones chosen
    };
    uint32_t a, b; // DONE of a generation: a = prompt tokens, b = generated tokens
    union {
        char text[32];
        struct nb_done done;
    };
};
_Static_assert(sizeof(struct nb_completion) == 64, "a cache line");

// From shared memory to private memory, before anything is checked: the compiler must not look at
// the original again.
static inline void nb_copy_once(void *to, const void *shared, size_t size)
{
    memcpy(to, shared, size);
    atomic_signal_fence(memory_order_seq_cst);
}
