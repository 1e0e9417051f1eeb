/* libnibble: models that a machine holds once, for any process. The one public header; C and C++.
 *
 * A connection, and all that was made from it, belongs to one thread at a time; different
 * connections are independent. The library prints nothing, never exits, starts no threads, installs
 * no signal handlers, and blocks only in calls that say so. Functions return 0 or more on success,
 * a negative errno or a negative NIBBLE_E code on failure; nibble_error() has the sentence that
 * goes with the last failure. Outputs named ret_ are untouched on failure. Strings are UTF-8.
 *
 * A struct that a caller fills and that begins with `size` grows in later releases, at its end. Set
 * size to the struct's sizeof and every member that is not used to 0, which means its default:
 *     struct nibble_prompt prompt = {.size = sizeof prompt, .text = "Hello", .text_len = 5};
 * A program runs with an older or newer library than it was built for: that reads the members that
 * both know. A struct without its size is -EINVAL. One that sets a member which the library does
 * not know is -E2BIG. All other structs that callers fill stay as they are.
 */
#ifndef NIBBLE_H
#define NIBBLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NIBBLE_API __attribute__((visibility("default")))
#else
#define NIBBLE_API
#endif

/* What a user can act on. Below any errno. */
enum {
    NIBBLE_E_NO_DAEMON = -5001,   /* nothing listens on the socket */
    NIBBLE_E_VERSION = -5002,     /* library and daemon do not speak a common version */
    NIBBLE_E_DENIED = -5003,      /* not allowed on this socket, or for this user */
    NIBBLE_E_NO_MODEL = -5004,    /* no model of that name is loaded */
    NIBBLE_E_EXISTS = -5005,      /* a model of that name is loaded already */
    NIBBLE_E_FORMAT = -5006,      /* the file is no valid model, or its logits are not finite */
    NIBBLE_E_UNSUPPORTED = -5007, /* an architecture, type or template that is not served */
    NIBBLE_E_TOO_LARGE = -5008,   /* larger than the machine's or the device's memory */
    NIBBLE_E_CONTEXT = -5009,     /* the tokens do not fit into the model's context */
    NIBBLE_E_QUOTA = -5010,       /* over a limit of this user or this connection */
    NIBBLE_E_BUSY = -5011,        /* the session runs a job already; the model has sessions */
    NIBBLE_E_CANCELLED = -5012,   /* the job was cancelled */
    NIBBLE_E_LOST = -5013,        /* the serving worker is gone and none takes its place */
    NIBBLE_E_POISON = -5014,      /* the job killed its worker again when run alone */
    NIBBLE_E_PROTOCOL = -5015,    /* the peer broke the protocol */
    NIBBLE_E_CLOSED = -5016       /* the daemon closed the connection */
};

typedef struct nibble nibble;
typedef struct nibble_session nibble_session;
typedef struct nibble_job nibble_job;

/* ---- Connection ---- */

/* Connects and shakes hands. `path` NULL: $NIBBLE_SOCKET, else /run/nibble/nibble.sock. Blocks, 10
 * s at most. */
NIBBLE_API int nibble_connect(const char *path, nibble **ret_connection);
/* The same to the admin socket, the sibling `admin.sock` of `path`: for nibble_load and
 * nibble_unload. */
NIBBLE_API int nibble_connect_admin(const char *path, nibble **ret_connection);
/* Ends every session and job of the connection and frees them with it. Not from a callback. NULL is
 * fine. Does not block. */
NIBBLE_API void nibble_close(nibble *connection);

/* The sentence for the connection's last failure; valid until the next call on it. Never NULL. For
 * NULL: of this thread's last failed nibble_connect or nibble_connect_admin. */
NIBBLE_API const char *nibble_error(const nibble *connection);
/* A short name for a code of either kind. Static. */
NIBBLE_API const char *nibble_strerror(int code);
NIBBLE_API const char *nibble_version(void);

/* For the caller's own event loop: the fd is readable (level-triggered) when nibble_dispatch has
 * work. It stays the same for the connection's life and belongs to it. */
NIBBLE_API int nibble_get_fd(const nibble *connection);
/* Handles what has come in and runs callbacks. Waits up to timeout_ms (0: not at all, -1: for ever)
 * for something to happen; a signal does not end the wait. Returns how many events were handed
 * over, to a callback or to a job's queue, 0 at the timeout, or a failure of the connection.
 * Callbacks may call anything but nibble_close. */
NIBBLE_API int nibble_dispatch(nibble *connection, int timeout_ms);

/* ---- What the daemon has (blocking, short) ---- */

struct nibble_model {
    char name[64];
    char architecture[32];
    char type[16];         /* the type of most of its weights, "Q4_1" */
    char device[32];       /* "vulkan0"; "vulkan0:20" has the last 20 layers alone */
    char precision[16];    /* "fast", "balanced", "exact" */
    char state[16];        /* "loading", "ready", "restarting", "lost" */
    uint64_t packed_bytes; /* the one copy of the weights in shared memory */
    uint64_t kv_bytes;     /* memory set aside for KV blocks */
    uint64_t parameters;
    uint32_t vocab, context, layers, embedding;
    uint32_t sessions;
    uint32_t worker_restarts;
    char kv_type[16];          /* what keys and values are kept as: "f16", "q8_0", "f32" */
    int32_t has_template;      /* 0: it has no chat template: send text or tokens, or bring one */
    char template_reason[188]; /* why it has none; "": it has one, or is not ready yet */
    int32_t embeds_only;       /* 1: it gives vectors of texts (nibble_embed) and generates none */
    uint32_t longest_embedded; /* tokens of a text that it embeds */
    /* What an adapter, whose strength is `scale`, or a drafter goes with; "": a model of its own */
    char base[64];
    double scale;
    int32_t is_drafter, pad;
};

struct nibble_device {
    char name[32];
    char description[128];
    char isa[32];   /* ISA level or shader tier */
    char state[16]; /* "ready", "restarting", "lost", "gone", "unusable" */
    uint64_t memory_bytes, used_bytes;
    uint32_t threads;
    uint32_t models;
    /* "cpu", "gpu", "emulated" (a Vulkan device that a CPU plays), "npu"; "driver": a Vulkan driver
     * that brings no device, for the reason that is given */
    char kind[16];
    char driver[96];
    char uuid[40];    /* 32 hex digits; "": it has none */
    char node[64];    /* "/dev/dri/renderD128"; "": it has none */
    char reason[192]; /* why it is not ready; "": it is */
};

/* Who holds what: one row for each process of the service and each client. */
struct nibble_holder {
    char role[16]; /* "broker", "worker", "client" */
    char model[64];
    uint32_t pid; /* for display alone */
    uint32_t uid;
    uint32_t sessions, jobs;
    uint64_t shared_bytes;  /* weights mapped, or the channel's memory */
    uint64_t private_bytes; /* charged to it: KV of a worker, channel memory of a client */
    uint64_t tokens;        /* generated and computed for it so far */
};

/* What the daemon found when it last looked at the machine: its own environment, user and limits,
 * the drivers and the devices' nodes. */
struct nibble_finding {
    char check[24];   /* "drivers", "node", "limits" */
    char verdict[16]; /* "ok", "note", "problem" */
    char text[400];
};

struct nibble_status {
    char version[32];
    char numerics[16];
    uint64_t uptime_ms;
    uint64_t weights_bytes, kv_bytes, kv_used_bytes, channel_bytes;
    uint32_t models, clients, sessions, jobs, worker_restarts;
    /* Steps run, and those with prefill and decode rows of different sessions */
    uint64_t steps, mixed_steps;
    uint64_t prefill_tokens, decode_tokens;
};

/* Up to `max` rows to ret_rows; returns how many there are in all. */
NIBBLE_API int nibble_models(nibble *connection, struct nibble_model *ret_rows, size_t max);
NIBBLE_API int nibble_devices(nibble *connection, struct nibble_device *ret_rows, size_t max);
NIBBLE_API int nibble_holders(nibble *connection, struct nibble_holder *ret_rows, size_t max);
NIBBLE_API int nibble_findings(nibble *connection, struct nibble_finding *ret_rows, size_t max);
NIBBLE_API int nibble_get_status(nibble *connection, struct nibble_status *ret_status);

/* ---- Administration (admin connection; blocking) ---- */

struct nibble_load_options {
    uint32_t size;
    uint32_t context; /* 0: the model's own */
    /* Required: 1 to 63 bytes of letters and digits of any script, '.', '_' and '-', not beginning
     * with '-'. Names are compared byte by byte; the command line writes them in NFC. */
    const char *name;
    /* NULL: the CPU; "auto": the first GPU, else the CPU; several with counts of layers, one at
     * most without: "vulkan0:20+vulkan1" runs the first 20 layers on vulkan0, the others on
     * vulkan1. */
    const char *device;
    const char *precision; /* NULL: "balanced" */
    const char *kv_type;   /* NULL: "f16", and "f32" at exact; "q8_0" takes 0.53 of f16's memory */
    uint64_t kv_bytes;     /* 0: the daemon's default */
    /* The device that takes the model over, with its sessions, when `device` is lost; they are told
     * by NIBBLE_EVENT_MOVED. NULL: none, and their jobs end with NIBBLE_E_LOST. */
    const char *fallback;
    /* The device runs so many of the last layers and the head, the CPU the others; 0: the device
     * runs all */
    uint32_t gpu_layers;
    int temporary; /* unloaded when this connection ends, however it ends */
    /* A file that is zero from some tensor to its end, as after an interrupted download, is loaded
     * with these zeros; else it is NIBBLE_E_FORMAT. */
    int force;
    /* Called as the files are read; a return other than 0 cancels the load. It cannot use the
     * connection. May be NULL. */
    int (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    /* Files of LoRA adapters (GGUF), which are part of the model then; each a path, perhaps with
     * ":SCALE" behind it, as "a.gguf:0.5". NULL: none. */
    const char *const *adapters;
    size_t n_adapters;
    /* The file is a LoRA adapter (GGUF) for sessions of this loaded model; its path may have
     * ":SCALE" behind it. It is listed as a model is, under its name, and served as its base is: of
     * the other members only name, temporary, force and progress may be set. NULL: a model. */
    const char *base;
    /* The file is a model that proposes tokens for this loaded one, whose tokens it must have (enum
     * nibble_drafts); a model has one such at most. Listed, served and said as with `base`. */
    const char *draft_for;
};

/* Loads the model at `path`: a GGUF file, the first part of a GGUF that was split
 * (NAME-00001-of-00003.gguf), or a Hugging Face folder. Its files are opened here, with the
 * caller's own rights, and links are followed; the daemon gets them open. Returns when the model is
 * ready. */
NIBBLE_API int nibble_load(nibble *admin, const char *path,
                           const struct nibble_load_options *options);
/* Unloads a model, with its adapters and its drafter, or one of these. Without `force`, fails with
 * NIBBLE_E_BUSY while sessions use the model; with it, their jobs end with NIBBLE_E_NO_MODEL. */
NIBBLE_API int nibble_unload(nibble *admin, const char *name, int force);

/* ---- Sessions ---- */

struct nibble_session_options {
    uint32_t size;
    /* Shared memory for this connection's texts and results with the model; 0: 4 MiB. The first
     * session of a connection on a model with that adapter decides. */
    uint64_t arena_bytes;
    uint64_t drafts; /* an enum nibble_drafts */
    /* A loaded adapter of the model (nibble_load_options.base). Sessions with different adapters,
     * and with none, share the model's weights, and their tokens are as each alone. NULL: none. */
    const char *adapter;
};

/* Tokens that may come next are proposed, from where the session's last tokens occurred in its log
 * before, or by a smaller model (nibble_load_options.draft_for), and the model verifies several of
 * them in a step. Which tokens come, and their log-probabilities, never depend on it; how fast they
 * come does. The administrator may have switched it off, which no session undoes. */
enum nibble_drafts {
    NIBBLE_DRAFTS_MEASURED, /* where the device is measured to be faster with it: the default */
    NIBBLE_DRAFTS_OFF,
    NIBBLE_DRAFTS_ALWAYS /* wherever there is something to propose, also where that is slower */
};

/* A session is one sequence of tokens on a model. It keeps its KV cache between jobs, as far as
 * memory allows, and rebuilds it when not. Blocks for the handshake. options may be NULL. */
NIBBLE_API int nibble_session_open(nibble *connection, const char *model,
                                   const struct nibble_session_options *options,
                                   nibble_session **ret_session);
/* Cancels its job, which stays its owner's to free. NULL is fine. Does not block. */
NIBBLE_API void nibble_session_close(nibble_session *session);
/* What the model is; valid for the session's life. Its `device` is another after the model has
 * moved (NIBBLE_EVENT_MOVED), which is how a caller of nibble_score or nibble_logits learns it. */
NIBBLE_API const struct nibble_model *nibble_session_model(const nibble_session *session);
/* The session's token log: every token it was given and has generated. Valid until the next call on
 * the session. */
NIBBLE_API size_t nibble_session_tokens(const nibble_session *session, const int32_t **ret_tokens);

enum {
    /* Special tokens written in the text count as such; never for a user's text */
    NIBBLE_TOKENIZE_SPECIAL = 1,
    /* Begin as the model wants a text to begin (BOS, where it uses one) */
    NIBBLE_TOKENIZE_BOS = 2
};
/* Text of any bytes to token ids. Writes up to `max`; returns how many there are. Blocks. */
NIBBLE_API int nibble_tokenize(nibble_session *session, const char *text, size_t len,
                               unsigned flags, int32_t *ret_tokens, size_t max);
/* Token ids to bytes, special tokens written out. Writes up to `max`; returns how many there are.
 * Blocks. */
NIBBLE_API int nibble_detokenize(nibble_session *session, const int32_t *tokens, size_t n,
                                 char *ret_text, size_t max);

/* ---- Generation ---- */

/* What more a message can have, chat.messages_json says. */
struct nibble_message {
    const char *role; /* "system", "user", "assistant", "tool", or what else the template knows */
    const char *content;
};

/* A conversation for the model's chat template. All texts are copied during the call. They are
 * UTF-8 (-EILSEQ where they are not, never replaced); together they have 4 MiB at most, as JSON.
 * What is JSON already is checked here: a syntax error's sentence names the member and the place in
 * it. What the messages mean is the template's matter, and its sentence comes back as the job's. A
 * template that writes special tokens writes tokens; the texts of messages, tools and variables
 * never become any. */
struct nibble_chat {
    uint32_t size;
    /* End after the last message, not with the words that begin the assistant's turn */
    int no_generation_prompt;
    const struct nibble_message *messages; /* or messages_json; not both */
    size_t n_messages;
    /* A JSON array as OpenAI's clients send it: content parts, tool calls and results */
    const char *messages_json;
    const char *tools_json;     /* a JSON array; NULL: none */
    const char *documents_json; /* a JSON array; NULL: none */
    /* A JSON object with variables of the template ("enable_thinking"); NULL: none */
    const char *variables_json;
    const char *template_text; /* takes the place of the model's own template; NULL: the model's */
};

/* What the conversation becomes. Writes up to max bytes to ret_text (no NUL) and up to max_tokens
 * ids to ret_tokens (either may be NULL with 0); returns the number of bytes, *ret_n_tokens the
 * number of ids (may be NULL). Blocks. */
NIBBLE_API int nibble_render(nibble_session *session, const struct nibble_chat *chat,
                             char *ret_text, size_t max, int32_t *ret_tokens, size_t max_tokens,
                             size_t *ret_n_tokens);

/* What to go on from: exactly one of text, messages, chat, tokens is set. Copied during the call.
 *
 * Messages are the whole conversation, rendered by the model's chat template, ready for the
 * assistant's turn; `chat` says the same and all else that a template may be given. Text and tokens
 * take the log's place, or with `append` join its end. Tokens that the session's log begins with
 * already are not computed again. */
struct nibble_prompt {
    uint32_t size;
    int append;
    const char *text;
    size_t text_len;
    const struct nibble_message *messages;
    size_t n_messages;
    const int32_t *tokens;
    size_t n_tokens;
    const struct nibble_chat *chat;
};

struct nibble_sampling {
    float temperature;      /* 0 to 100; 0: greedy */
    uint32_t top_k;         /* 0: off */
    float top_p;            /* above 0, to 1; 1: off */
    float min_p;            /* 0 to 1; 0: off */
    float repeat_penalty;   /* above 0, to 100; 1: off */
    uint32_t repeat_window; /* of last tokens that the penalty looks at, at most 4096 */
    uint64_t seed;
};

struct nibble_generate_options {
    uint32_t size;
    uint32_t max_tokens; /* 0: to the end of the context */
    struct nibble_sampling sampling;
    /* Strings that end the text and are no part of it; 16 at most, of 128 bytes at most */
    const char *const *stop;
    size_t n_stop;
    int ignore_eos;
    int logprobs; /* tell each token's log-probability */
};
/* Sets all members, the size too: temperature 0, no filters, to the end of the context. `size` is
 * sizeof *ret_options. */
NIBBLE_API void nibble_generate_options_init(struct nibble_generate_options *ret_options,
                                             size_t size);

enum nibble_event_type {
    NIBBLE_EVENT_TOKEN,   /* a token; `text` is what became whole UTF-8 with it, perhaps nothing */
    NIBBLE_EVENT_PREFILL, /* progress of the prompt: `done` of `total` tokens computed */
    NIBBLE_EVENT_MOVED,   /* the worker died; another one continues the job; nothing is lost. With
                             `device` set the model has moved to another device */
    NIBBLE_EVENT_DONE     /* the last event */
};
enum nibble_finish {
    NIBBLE_FINISH_NONE,
    NIBBLE_FINISH_EOS,     /* the model ended its text */
    NIBBLE_FINISH_STOP,    /* a stop string */
    NIBBLE_FINISH_LENGTH,  /* max_tokens */
    NIBBLE_FINISH_CONTEXT, /* the context is full */
    NIBBLE_FINISH_ERROR    /* `error` says why; NIBBLE_E_CANCELLED after a cancel */
};

struct nibble_timings {
    uint32_t prompt_tokens, cached_tokens, generated_tokens;
    uint64_t queue_ns, prefill_ns, decode_ns;
};

struct nibble_event {
    enum nibble_event_type type;
    /* -1: text alone, which had been held back as the possible beginning of a stop string or a
     * mark, or is what of a token's text is of the other kind (`reasoning`) */
    int32_t token;
    float logprob; /* NaN when not asked for */
    /* Whole UTF-8, not NUL-terminated; valid during the callback, or until nibble_job_next gives
     * the next event */
    const char *text;
    size_t text_len;
    uint32_t done, total;
    /* With MOVED: the device that computes from here on, where it is another than before: what
     * follows is that device's, not always the bytes that would have come. Told to each session
     * once, at the job that runs or at its next one; else NULL. Valid as `text`. */
    const char *device;
    enum nibble_finish finish;
    int error;
    struct nibble_timings timings; /* with DONE */
    /* The text lies between the model's think marks, the marks included. An event has text of one
     * kind alone. Marks are known by the model's own template: without one, nothing is reasoning.
     */
    int reasoning;
    /* With DONE and an error: the sentence that nibble_error gives too. Valid as `text`; else NULL
     */
    const char *reason;
};

/* Runs inside nibble_dispatch and the blocking calls. */
typedef void (*nibble_callback)(nibble_job *job, const struct nibble_event *event, void *user);

/* Starts a job; does not wait for it (a text is tokenized by the worker first, in order). With a
 * callback, events come by it; without, fetch them with nibble_job_next. A session runs one job at
 * a time. */
NIBBLE_API int nibble_generate(nibble_session *session, const struct nibble_prompt *prompt,
                               const struct nibble_generate_options *options,
                               nibble_callback callback, void *user, nibble_job **ret_job);
/* The next event of a job without a callback: 1 with an event, 0 at the timeout, negative on
 * failure of the connection. After DONE: 0. Blocks up to timeout_ms (-1: for ever). */
NIBBLE_API int nibble_job_next(nibble_job *job, struct nibble_event *ret_event, int timeout_ms);
/* Dispatches until the job is done; returns 0 or the job's error. Blocks. */
NIBBLE_API int nibble_job_wait(nibble_job *job);
/* Of a generation that is done: how many tokens were proposed to its last worker, and how many of
 * these came (enum nibble_drafts); else 0. Does not block. */
NIBBLE_API void nibble_job_drafts(const nibble_job *job, uint32_t *ret_proposed,
                                  uint32_t *ret_accepted);
/* Asks for the end; DONE with NIBBLE_E_CANCELLED follows. */
NIBBLE_API void nibble_job_cancel(nibble_job *job);
/* Frees; a running job is cancelled and its events are dropped. NULL is fine. */
NIBBLE_API void nibble_job_free(nibble_job *job);

/* ---- Scoring ---- */

/* Sets the session's log to the tokens and computes, for each position p in [first, n - 1), the
 * log-probability of token p + 1 given all before it: ret_logprobs[p - first]. Blocks. */
NIBBLE_API int nibble_score(nibble_session *session, const int32_t *tokens, size_t n, size_t first,
                            float *ret_logprobs);
/* The same with the whole distribution: calls `row` for each position p in [first, n) in order with
 * vocab logits that are valid during the call. A return other than 0 stops and is returned. Blocks.
 */
NIBBLE_API int nibble_logits(nibble_session *session, const int32_t *tokens, size_t n, size_t first,
                             int (*row)(void *user, size_t position, const float *logits,
                                        size_t vocab),
                             void *user);

/* ---- Embeddings ---- */

/* A text to embed: exactly one of text, tokens is set. A text of any bytes gets the special tokens
 * that the model wants around it (BERT's [CLS] and [SEP]); tokens are embedded as they are. */
struct nibble_text {
    const char *text;
    size_t text_len; /* at most 4 MiB */
    const int32_t *tokens;
    size_t n_tokens;
};

struct nibble_embed_options {
    uint32_t size;
    /* Vectors as the model gives them; else each has length 1, unless the model's folder says that
     * its vectors are not normalised (sentence-transformers without a Normalize module) */
    int no_normalise;
    /* Texts of more tokens than the model embeds (nibble_model's longest_embedded) are cut; else
     * they are NIBBLE_E_CONTEXT */
    int truncate;
    /* Called now and then, last with done == n; a return other than 0 cancels. May be NULL. */
    int (*progress)(void *user, size_t done, size_t n);
    void *user;
};

struct nibble_place;
/* The vectors of n texts (1 at least): fp32 [n][embedding], where embedding is nibble_model's. They
 * go to `vectors`: registered memory, or the caller's own, of which any part may be written before
 * a failure. ret_tokens, if not NULL, gets how many tokens each of the n texts has, before it is
 * cut. options NULL: the defaults.
 *
 * A vector depends neither on the other texts nor on what else the worker computes, and a worker's
 * death changes none. The session's log stays as it is, but a session runs one job at a time. Any
 * model embeds: one that generates pools the last token's row, unless its file says otherwise.
 * Blocks. A failure's sentence says which text it is about, counted from 1. */
NIBBLE_API int nibble_embed(nibble_session *session, const struct nibble_text *texts, size_t n,
                            const struct nibble_embed_options *options,
                            const struct nibble_place *vectors, uint32_t *ret_tokens);

/* ---- Matrix jobs: GEMM and dequantization on the session's device ----
 *
 * Matrices and rows lie in memory that is shared with the worker, so that nothing is copied through
 * a socket. The worker runs the jobs of a connection in the order of their submission, in slices
 * between the steps of the model's sequences. A matrix job takes callbacks, nibble_job_wait, cancel
 * and free as a generation does. It has one event, DONE with NIBBLE_FINISH_NONE, and MOVED before
 * it when the worker died and another one begins anew. A session runs one job at a time: jobs that
 * shall run beside each other need sessions of their own. */

/* Shared memory, registered for all sessions of a connection on one model. Ends with the last of
 * these sessions; freed by nibble_memory_unregister or nibble_close. */
typedef struct nibble_memory nibble_memory;

/* Makes memory that can be registered: a memfd of `bytes`, zeros, sealed against any other size,
 * and mapped. The caller closes *ret_fd and unmaps (munmap) `bytes` at *ret_data. Does not block.
 */
NIBBLE_API int nibble_memory_create(uint64_t bytes, int *ret_fd, void **ret_data);

enum {
    NIBBLE_MEMORY_READ_ONLY = 1 /* the worker cannot write it: for inputs */
};
/* Registers `bytes` from `offset` (a multiple of the page size) of a memfd that is sealed against
 * shrinking. The fd is borrowed. The file's whole size is charged to the user. If the fd is sealed
 * against writing too (F_SEAL_WRITE), a matrix in it is taken over into the device's layout once,
 * at its first use, for which half as much again as its own size is charged; a matrix in other
 * memory is taken over anew for each job. At most 16 for each model and connection. Blocks, until
 * the worker has it. */
NIBBLE_API int nibble_memory_register(nibble_session *session, int fd, uint64_t offset,
                                      uint64_t bytes, unsigned flags, nibble_memory **ret_memory);
/* Jobs that use it end with NIBBLE_E_CANCELLED or -EFAULT. NULL is fine. Does not block. */
NIBBLE_API void nibble_memory_unregister(nibble_memory *memory);

/* Where something lies: `offset` bytes into registered memory, or, with memory NULL, in the
 * caller's own memory at `data`: that goes through the session's arena, must fit there, is read
 * when the job is submitted and perhaps again, and is written before DONE: it must stay until then.
 */
struct nibble_place {
    nibble_memory *memory;
    uint64_t offset; /* a multiple of the elements' size */
    void *data;
};

/* What the model's ops have taken since the worker opened it, in steps of one or many sequences of
 * any clients. Every op but sampling runs on `device`; where that is several (layers over devices),
 * its name says which layers run where. */
struct nibble_op_counter {
    char name[16];       /* "embed", "qkv", "attention", "out", "gate_up", "down", "head" */
    uint64_t ns;         /* of the device's time */
    uint64_t dispatches; /* 0 where the device has none */
};
struct nibble_counters {
    uint64_t steps;
    uint32_t layers;
    uint32_t n_ops;
    char device[32];
    struct nibble_op_counter ops[16];
    /* 1: while it is idle the device makes later steps faster, as it does for some seconds after a
     * model is loaded there for the first time. What they compute does not change. */
    uint32_t preparing;
};
/* Blocks. */
NIBBLE_API int nibble_model_counters(nibble_session *session, struct nibble_counters *ret_counters);

/* A matrix of the model. */
struct nibble_tensor {
    uint32_t index; /* its handle, as long as the model is loaded */
    uint64_t rows, cols;
    char type[16];
};
/* The model's matrix of that name, such as "blk.0.attn_q.weight". -ENOENT: there is none; -EINVAL:
 * it is a vector. Blocks. */
NIBBLE_API int nibble_tensor_find(nibble_session *session, const char *name,
                                  struct nibble_tensor *ret_tensor);

/* A matrix W of `rows` by `cols`: the model's `tensor`, or, with tensor NULL, a groupwise one,
 * W[r][k] = scale[r][k / group] * (code[r][k] - zero[r][k / group]), in registered memory:
 *
 * codes: row by row. With 8 bits int8; with 4 bits 0 to 15, two in a byte, the lower half first,
 * each row of (cols + 1) / 2 bytes.
 *
 * scales: [rows][groups] fp32, or fp16 with half_scales; groups = (cols + group - 1) / group.
 *
 * zeros, with has_zeros: [rows][groups] int8, or 4 bits packed as the codes, each row of
 * (groups + 1) / 2 bytes. Without: 0 for 8 bits, 8 for 4 bits.
 *
 * group is 32, 64 or 128, or 0: a row has one scale. cols is at most 2^20. */
struct nibble_matrix {
    uint32_t size;
    unsigned bits;
    const struct nibble_tensor *tensor;
    unsigned group;
    int half_scales, has_zeros;
    uint64_t rows, cols;
    struct nibble_place codes, scales, zeros;
};

enum nibble_precision {
    NIBBLE_PRECISION_FAST = 1, /* x as int8 for each 32 of a row */
    NIBBLE_PRECISION_EXACT = 2 /* twice that: some 2^-16 of the largest of the 32 */
};
/* Y[t][r] = sum over k of X[t][k] * W[r][k], for n rows t (at most 2^20): x is fp32 [n][cols], y
 * fp32 [n][rows], both without holes. docs/numerics.md says how it is rounded; a row's result does
 * not depend on the other rows. Starts a job; does not wait for it. The job ends with
 * NIBBLE_E_UNSUPPORTED where the device's driver does not run loops as long as a row (Mesa's CPU
 * driver before 25: beyond 65,000 columns). */
NIBBLE_API int nibble_gemm(nibble_session *session, const struct nibble_matrix *w,
                           const struct nibble_place *x, size_t n, const struct nibble_place *y,
                           enum nibble_precision precision, nibble_callback callback, void *user,
                           nibble_job **ret_job);

enum nibble_number {
    NIBBLE_NUMBER_F32,
    NIBBLE_NUMBER_F16, /* rounded to nearest even */
    NIBBLE_NUMBER_INT8 /* and a scale for each row: its largest magnitude / 127 */
};
/* Rows [first, first + count) of w as numbers: out is [count][cols]; scales is fp32 [count], for
 * INT8 alone, else NULL. Starts a job; does not wait for it. */
NIBBLE_API int nibble_dequantize(nibble_session *session, const struct nibble_matrix *w,
                                 uint64_t first, uint64_t count, enum nibble_number number,
                                 const struct nibble_place *out, const struct nibble_place *scales,
                                 nibble_callback callback, void *user, nibble_job **ret_job);

#ifdef __cplusplus
}
#endif

/* Jobs of the service: compressions */
#include "nibble_jobs.h"

#endif
