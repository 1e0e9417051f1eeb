// nibble-worker's serve mode, driven over its link and channels: right answers beside the engine
// itself, several channels at once, replay after a death, and clients that break the protocol, do
// not read or go away.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/engine.h"
#include "tensor/image.h"
#include "tests/service/worker_harness.h"

#define MODEL   1
#define CONTEXT 1024
#define ARENA   (4u << 20)
#define ALL     SIZE_MAX
#define N_OF(a) (sizeof(a) / sizeof((a)[0]))
#define PROMPT  "Once upon a time there was a small lighthouse at the edge of the sea, and in it"

static struct worker worker;

static int start_worker(void **state)
{
    worker = worker_serve();
    struct nb_link_model_ready ready = worker_add_model(&worker, MODEL, CONTEXT);
    if (ready.header.status)
        fail_msg("model: %d %s", ready.header.status, ready.text);
    assert_int_equal(ready.model, MODEL);
    assert_string_equal(ready.info.architecture, "llama");
    assert_int_equal(ready.info.context, CONTEXT);
    assert_true(ready.info.packed_bytes > 0 && ready.info.kv_bytes > 0);
    return 0;
}

static int kill_worker(void **state)
{
    worker_kill(&worker);
    return 0;
}

static struct answer *new_answer(void)
{
    struct answer *a = calloc(1, sizeof(*a));
    assert_non_null(a);
    return a;
}

static uint64_t generate(struct client *c, uint32_t session, const struct nb_desc_generate *d)
{
    return client_submit(c, NB_OP_GENERATE, session, d, sizeof(*d));
}

// A greedy continuation of `text`, whole.
static struct answer *continue_text(struct client *c, uint32_t session, const char *text,
                                    uint32_t max_tokens)
{
    int32_t ids[CONTEXT];
    struct answer *a = new_answer();
    size_t n = client_tokenize(c, text, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate d = greedy(c, ids, n, max_tokens);
    assert_true(client_answer(c, generate(c, session, &d), ALL, a));
    return a;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

// Waits for what the worker counts in its page to become `want`.
static bool becomes(_Atomic uint32_t *value, uint32_t want)
{
    for (int i = 0; i < 1000 && atomic_load(value) != want; i++)
        sleep_ms(10);
    return atomic_load(value) == want;
}

static struct nb_page_channel *page_of(const struct client *c)
{
    for (uint32_t i = 0; i < NB_WORKER_CHANNELS; i++)
        if (atomic_load(&worker.page->channels[i].channel) == c->key)
            return &worker.page->channels[i];
    return NULL;
}

// --- the engine itself, in this process, as the oracle

struct oracle {
    struct nb_device *device;
    struct nb_model *model;
    struct nb_sequence *sequence;
    int32_t tokens[CONTEXT];
    size_t n;
    float *logits; // of the rows that were scored
    size_t rows;
    bool finished;
};

static void oracle_token(void *user, int32_t token, float logprob)
{
    struct oracle *o = user;
    o->tokens[o->n++] = token;
}

static void oracle_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct oracle *o = user;
    o->logits = realloc(o->logits, (o->rows + 1) * vocab * sizeof(float));
    assert_non_null(o->logits);
    memcpy(o->logits + o->rows++ * vocab, logits, vocab * sizeof(float));
}

static void oracle_finish(void *user, enum nb_finish finish, int error)
{
    ((struct oracle *)user)->finished = true;
}

static void oracle_run(struct oracle *o, const int32_t *ids, size_t n, struct nb_request request)
{
    static const struct nb_model_events events = {oracle_token, oracle_logits, oracle_finish};
    const struct nb_model_options options = {
        .precision = NB_PRECISION_BALANCED, .max_context = CONTEXT, .kv_bytes = 64u << 20};
    struct nb_image *image;
    char error[256] = "";
    *o = (struct oracle){0};
    assert_int_equal(nb_image_map(model_image(), 1, &image, error, sizeof(error)), 0);
    assert_int_equal(nb_cpu_device_create(0, &o->device), 0);
    assert_int_equal(nb_model_open(image, o->device, &options, &o->model, error, sizeof(error)), 0);
    nb_model_set_events(o->model, &events);
    assert_int_equal(nb_sequence_create(o->model, o, &o->sequence), 0);
    assert_int_equal(nb_sequence_set(o->sequence, 0, ids, (uint32_t)n), 0);
    assert_int_equal(nb_sequence_start(o->sequence, &request), 0);
    while (!o->finished)
        assert_int_equal(nb_model_step(o->model, NULL), 1);
}

static void oracle_end(struct oracle *o)
{
    nb_sequence_destroy(o->sequence);
    nb_model_close(o->model);
    o->device->ops->destroy(o->device);
    free(o->logits);
}

// --- right answers

static void a_generation_is_the_engines(void **state)
{
    struct oracle o;
    int32_t ids[CONTEXT];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = continue_text(&c, 0, PROMPT, 24);
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    oracle_run(&o, ids, n, (struct nb_request){.max_tokens = 24, .sampling = NB_SAMPLING_GREEDY});
    assert_int_equal(a->done.status, 0);
    assert_int_equal(a->n_tokens, o.n);
    assert_memory_equal(a->tokens, o.tokens, o.n * sizeof(int32_t));
    assert_int_equal(a->done.a, n);
    assert_int_equal(a->done.b, o.n);
    assert_int_equal(a->done.done.cached_tokens, 0);
    assert_true(a->done.done.prefill_ns > 0 && a->done.done.decode_ns > 0);
    assert_true(a->text_len > 0);
    oracle_end(&o);
    free(a);
    client_close(&c);
}

static void a_score_is_the_engines(void **state)
{
    struct oracle o;
    int32_t ids[CONTEXT];
    struct client c = client_open(&worker, MODEL, 64u << 20);
    uint32_t n = (uint32_t)client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    const uint32_t first = 3, rows = n - first;
    oracle_run(
        &o, ids, n,
        (struct nb_request){.score = true, .score_from = first, .sampling = NB_SAMPLING_GREEDY});
    struct nb_model_info info;
    nb_model_info(o.model, &info);
    assert_int_equal(o.rows, rows);

    size_t bytes = (size_t)rows * info.vocab * sizeof(float);
    struct answer *a = new_answer();
    struct nb_desc_score d = {.n_tokens = n, .first = first, .what = NB_SCORE_LOGITS};
    d.tokens = client_put(&c, ids, n * sizeof(*ids));
    d.out = client_put(&c, NULL, 0);
    c.used += bytes;
    d.out_len = bytes;
    assert_true(client_answer(&c, client_submit(&c, NB_OP_SCORE, 1, &d, sizeof(d)), ALL, a));
    assert_int_equal(a->done.status, 0);
    assert_memory_equal(c.arena + d.out, o.logits, bytes);

    d.what = NB_SCORE_LOGPROBS;
    d.out_len = (rows - 1) * sizeof(float);
    assert_true(client_answer(&c, client_submit(&c, NB_OP_SCORE, 1, &d, sizeof(d)), ALL, a));
    assert_int_equal(a->done.status, 0);
    for (uint32_t r = 0; r + 1 < rows; r++) {
        const float *row = o.logits + (size_t)r * info.vocab;
        double sum = 0;
        float got;
        for (uint32_t i = 0; i < info.vocab; i++)
            sum += exp((double)row[i]);
        memcpy(&got, c.arena + d.out + r * sizeof(got), sizeof(got));
        assert_true(fabs(got - (row[ids[first + r + 1]] - log(sum))) < 1e-4);
    }
    oracle_end(&o);
    free(a);
    client_close(&c);
}

static void two_channels_at_once_answer_as_each_alone(void **state)
{
    static const char *const prompts[] = {PROMPT, "def fibonacci(n):\n    "};
    struct client c[2];
    struct answer *alone[2], *together[2];
    uint64_t jobs[2];
    int32_t ids[CONTEXT];
    for (int i = 0; i < 2; i++) {
        c[i] = client_open(&worker, MODEL, ARENA);
        alone[i] = continue_text(&c[i], 0, prompts[i], 32);
    }
    for (int i = 0; i < 2; i++) {
        size_t n = client_tokenize(&c[i], prompts[i], NB_TEXT_BOS, ids, N_OF(ids));
        struct nb_desc_generate d = greedy(&c[i], ids, n, 32);
        jobs[i] = generate(&c[i], 1, &d);
    }
    for (int i = 0; i < 2; i++) {
        together[i] = new_answer();
        assert_true(client_answer(&c[i], jobs[i], ALL, together[i]));
        assert_int_equal(together[i]->done.status, 0);
        assert_int_equal(together[i]->n_tokens, alone[i]->n_tokens);
        assert_string_equal(together[i]->text, alone[i]->text);
        free(alone[i]);
        free(together[i]);
        client_close(&c[i]);
    }
}

static void a_second_turn_keeps_the_kv(void **state)
{
    int32_t ids[CONTEXT];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *first = continue_text(&c, 0, PROMPT, 8), *second = new_answer();
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    memcpy(ids + n, first->tokens, first->n_tokens * sizeof(*ids));
    size_t log = n + first->n_tokens;
    log += client_tokenize(&c, " Then", 0, ids + log, N_OF(ids) - log);
    struct nb_desc_generate d = greedy(&c, ids, log, 4);
    assert_true(client_answer(&c, generate(&c, 0, &d), ALL, second));
    assert_int_equal(second->done.status, 0);
    assert_true(second->done.done.cached_tokens >= n);
    free(first);
    free(second);
    client_close(&c);
}

static void a_long_prompt_tells_its_progress(void **state)
{
    int32_t ids[900];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    for (size_t i = 0; i < N_OF(ids); i++)
        ids[i] = (int32_t)(1000 + i * 7 % 5000);
    struct nb_desc_generate d = greedy(&c, ids, N_OF(ids), 1);
    assert_true(client_answer(&c, generate(&c, 0, &d), ALL, a));
    assert_int_equal(a->done.status, 0);
    assert_true(a->progress >= 1);
    free(a);
    client_close(&c);
}

static void a_stop_string_across_tokens_ends_the_text(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *whole = continue_text(&c, 0, PROMPT, 24), *stopped = new_answer();
    char stop[16];
    int32_t ids[CONTEXT];
    // From the middle of one word to the middle of another: in no single token.
    const size_t at = whole->text_len / 2, len = 9;
    uint32_t len32 = len;
    memcpy(stop, &len32, sizeof(len32));
    memcpy(stop + sizeof(len32), whole->text + at, len);
    const char *found = memmem(whole->text, whole->text_len, whole->text + at, len);
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate d = greedy(&c, ids, n, 24);
    d.n_stop = 1;
    d.stop_len = sizeof(len32) + len;
    d.stop = client_put(&c, stop, d.stop_len);
    assert_true(client_answer(&c, generate(&c, 0, &d), ALL, stopped));
    assert_int_equal(stopped->done.status, 0);
    assert_int_equal(stopped->done.done.finish, NIBBLE_FINISH_STOP);
    assert_int_equal(stopped->text_len, (size_t)(found - whole->text));
    assert_memory_equal(stopped->text, whole->text, stopped->text_len);
    assert_true(stopped->n_tokens < whole->n_tokens);
    free(whole);
    free(stopped);
    client_close(&c);
}

static void logprobs_come_when_asked_for(void **state)
{
    int32_t ids[CONTEXT];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *without = continue_text(&c, 0, PROMPT, 2), *with = new_answer();
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate d = greedy(&c, ids, n, 2);
    d.flags = NB_GENERATE_LOGPROBS;
    assert_true(client_answer(&c, generate(&c, 0, &d), ALL, with));
    assert_true(isnan(without->logprobs[0]));
    assert_true(with->logprobs[0] <= 0 && with->logprobs[0] > -10);
    free(without);
    free(with);
    client_close(&c);
}

static void text_goes_to_tokens_and_back(void **state)
{
    static const char text[] = "A lighthouse, \xe2\x9c\xa8 and <|im_end|> as text.";
    int32_t ids[256];
    struct nb_completion done;
    struct client c = client_open(&worker, MODEL, ARENA);
    size_t n = client_tokenize(&c, text, 0, ids, N_OF(ids));
    struct nb_desc_detokenize d = {.n_tokens = (uint32_t)n, .out_max = 256};
    d.tokens = client_put(&c, ids, n * sizeof(*ids));
    d.out = client_put(&c, ids, 256);
    client_submit(&c, NB_OP_DETOKENIZE, 0, &d, sizeof(d));
    assert_true(client_next(&c, &done));
    assert_int_equal(done.status, 0);
    assert_int_equal(done.a, strlen(text));
    assert_memory_equal(c.arena + d.out, text, strlen(text));
    // The same with special tokens read as such is shorter.
    assert_true(client_tokenize(&c, text, NB_TEXT_SPECIAL, ids, N_OF(ids)) < n);
    client_close(&c);
}

static size_t put_message(char *at, const char *role, const char *content)
{
    uint32_t len[2] = {(uint32_t)strlen(role), (uint32_t)strlen(content)};
    memcpy(at, len, sizeof(len));
    memcpy(at + sizeof(len), role, len[0]);
    memcpy(at + sizeof(len) + len[0], content, len[1]);
    return sizeof(len) + len[0] + len[1];
}

static void a_conversation_is_rendered_by_the_models_template(void **state)
{
    char messages[256];
    int32_t got[64], want[64];
    struct nb_completion done;
    struct client c = client_open(&worker, MODEL, ARENA);
    size_t len = put_message(messages, "system", "Be brief.");
    len += put_message(messages + len, "user", "Hi!");
    struct nb_desc_tokenize d = {.text_len = len, .out_max = 64, .flags = NB_TEXT_CHAT};
    d.text = client_put(&c, messages, len);
    d.out = client_put(&c, got, sizeof(got));
    client_submit(&c, NB_OP_TOKENIZE, 0, &d, sizeof(d));
    assert_true(client_next(&c, &done));
    assert_int_equal(done.status, 0);
    memcpy(got, c.arena + d.out, done.a * sizeof(*got));
    size_t n = client_tokenize(&c,
                               "<|im_start|>system\nBe brief.<|im_end|>\n"
                               "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
                               NB_TEXT_SPECIAL, want, N_OF(want));
    assert_int_equal(done.a, n);
    assert_memory_equal(got, want, n * sizeof(*got));
    // A list that says more than there is.
    d.text_len--;
    client_submit(&c, NB_OP_TOKENIZE, 0, &d, sizeof(d));
    assert_true(client_next(&c, &done));
    assert_int_equal(done.status, -EINVAL);
    client_close(&c);
}

static void a_long_text_is_tokenized_as_its_parts(void **state)
{
    static const char line[] = "The lamp was lit at dusk, and the keeper read.\n";
    static int32_t ids[65536];
    char text[65536] = "";
    size_t lines = sizeof(text) / sizeof(line);
    struct client c = client_open(&worker, MODEL, ARENA);
    for (size_t i = 0; i < lines; i++)
        memcpy(text + i * (sizeof(line) - 1), line, sizeof(line));
    size_t one = client_tokenize(&c, line, 0, ids, N_OF(ids));
    assert_int_equal(client_tokenize(&c, text, 0, ids, N_OF(ids)), one * lines);
    client_close(&c);
}

// --- limits

static int32_t status_of(struct client *c, uint64_t job)
{
    struct answer *a = new_answer();
    assert_true(client_answer(c, job, ALL, a));
    int32_t status = a->done.status;
    free(a);
    return status;
}

static void what_does_not_fit_is_refused_with_a_status(void **state)
{
    static int32_t ids[CONTEXT + 1];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate d = greedy(&c, ids, CONTEXT + 1, 4);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), NIBBLE_E_CONTEXT);
    d.n_tokens = CONTEXT; // no room for a token more
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), NIBBLE_E_CONTEXT);
    d.n_tokens = 4;
    d.base = 1; // of an empty log
    assert_int_equal(status_of(&c, generate(&c, 1, &d)), -EINVAL);
    d.base = 0;
    d.n_replay = 5;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.n_replay = 0;
    d.temperature = NAN;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.temperature = 0;
    d.tokens = ARENA - 8;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d.tokens = UINT64_MAX - 3;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    d = greedy(&c, (int32_t[]){1, 2, INT32_MAX}, 3, 4);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), -EINVAL);
    assert_int_equal(status_of(&c, client_submit(&c, NB_OP_GENERATE, 0, &d, 8)), -EINVAL);
    assert_int_equal(status_of(&c, client_submit(&c, 77, 0, &d, 8)), -EOPNOTSUPP);
    d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 1);
    assert_int_equal(status_of(&c, generate(&c, NB_SESSIONS_MAX, &d)), -EINVAL);
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    client_close(&c);
}

static void a_session_runs_one_job(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 400);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t first = generate(&c, 0, &d), second = generate(&c, 0, &d);
    struct nb_completion got;
    do
        assert_true(client_next(&c, &got));
    while (got.user_data != second);
    assert_int_equal(got.kind, NB_COMPLETION_DONE);
    assert_int_equal(got.status, NIBBLE_E_BUSY);
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_CANCEL, .target = first});
    assert_int_equal(status_of(&c, first), NIBBLE_E_CANCELLED);
    client_close(&c);
}

static void a_cancelled_job_says_so_and_frees_its_session(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t job = generate(&c, 0, &d);
    assert_true(client_answer(&c, job, 3, a));
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_CANCEL, .target = job});
    assert_true(client_answer(&c, job, ALL, a));
    assert_int_equal(a->done.status, NIBBLE_E_CANCELLED);
    assert_int_equal(a->done.done.finish, NIBBLE_FINISH_ERROR);
    d.max_tokens = 1;
    assert_int_equal(status_of(&c, generate(&c, 0, &d)), 0);
    assert_true(becomes(&page_of(&c)->sessions, 1));
    client_submit_raw(&c, &(struct nb_submission){.op = NB_OP_SESSION_CLOSE, .session = 0});
    assert_true(becomes(&page_of(&c)->sessions, 0));
    free(a);
    client_close(&c);
}

// --- deaths

static void after_a_death_the_same_bytes_go_on(void **state)
{
    // Greedy, and sampled: the generator is keyed by seed and position.
    for (int sampled = 0; sampled < 2; sampled++) {
        int32_t ids[CONTEXT];
        struct client c = client_open(&worker, MODEL, ARENA);
        struct answer *whole = new_answer(), *part = new_answer(), *rest = new_answer();
        size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
        struct nb_desc_generate d = greedy(&c, ids, n, 40);
        d.temperature = sampled ? 1.0f : 0;
        d.seed = 7;
        assert_true(client_answer(&c, generate(&c, 0, &d), ALL, whole));
        assert_true(client_answer(&c, generate(&c, 1, &d), 11, part));
        worker_kill(&worker);
        client_close(&c);
        start_worker(state);

        c = client_open(&worker, MODEL, ARENA);
        memcpy(ids + n, part->tokens, part->n_tokens * sizeof(*ids));
        struct nb_desc_generate again = greedy(&c, ids, n + part->n_tokens, 40);
        again.temperature = d.temperature;
        again.seed = d.seed;
        again.n_replay = (uint32_t)part->n_tokens;
        again.text_skip = part->text_len;
        assert_true(client_answer(&c, generate(&c, 0, &again), ALL, rest));
        assert_int_equal(rest->done.status, 0);
        assert_int_equal(rest->done.a, n);
        assert_int_equal(rest->done.b, whole->n_tokens);
        assert_int_equal(part->text_len + rest->text_len, whole->text_len);
        assert_memory_equal(part->text, whole->text, part->text_len);
        assert_memory_equal(rest->text, whole->text + part->text_len, rest->text_len);
        assert_int_equal(part->n_tokens + rest->n_tokens, whole->n_tokens);
        free(whole);
        free(part);
        free(rest);
        client_close(&c);
    }
}

static void a_replay_that_was_over_is_over_again(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *whole = continue_text(&c, 0, PROMPT, 6), *again = new_answer();
    int32_t ids[CONTEXT];
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    memcpy(ids + n, whole->tokens, whole->n_tokens * sizeof(*ids));
    struct nb_desc_generate d = greedy(&c, ids, n + whole->n_tokens, 6);
    d.n_replay = (uint32_t)whole->n_tokens;
    d.text_skip = 3;
    assert_true(client_answer(&c, generate(&c, 1, &d), ALL, again));
    assert_int_equal(again->done.status, 0);
    assert_int_equal(again->done.done.finish, NIBBLE_FINISH_LENGTH);
    assert_int_equal(again->n_tokens, 0);
    assert_string_equal(again->text, whole->text + 3);
    free(whole);
    free(again);
    client_close(&c);
}

static void a_client_that_hangs_up_leaves_nothing(void **state)
{
    struct nb_page_model *model = &worker.page->models[0];
    assert_true(becomes(&model->sessions, 0));
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    assert_true(client_answer(&c, generate(&c, 0, &d), 2, a));
    assert_int_equal(atomic_load(&model->sessions), 1);
    struct nb_page_channel *page = page_of(&c);
    assert_non_null(page);
    client_close(&c);
    alignas(8) char packet[NB_WIRE_MAX];
    const struct nb_link_ref *gone = (const void *)packet;
    do
        worker_expect(&worker, NB_LINK_CHANNEL_GONE, packet);
    while (gone->channel != c.key);
    assert_true(becomes(&model->sessions, 0));
    assert_int_equal(atomic_load(&page->channel), 0);
    free(a);
}

static void a_removed_channel_ends(void **state)
{
    struct client c = client_open(&worker, MODEL, ARENA);
    assert_int_equal(status_of(&c, client_submit(&c, NB_OP_NOP, 0, NULL, 0)), 0);
    struct nb_link_ref ref = {.channel = c.key};
    worker_send(&worker, NB_LINK_CHANNEL_REMOVE, &ref, sizeof(ref), NULL, 0);
    assert_true(client_hung_up(&c));
    worker_send(&worker, NB_LINK_CHANNEL_REMOVE, &ref, sizeof(ref), NULL, 0); // no error
    client_close(&c);
}

// --- clients that break the rules

static void wake(struct client *c)
{
    nb_wake_send(c->sock);
}

static void wild_submission_tail(struct client *c)
{
    atomic_store(&c->ring->sq_tail, c->sq_tail + NB_SQ_ENTRIES + 1);
    wake(c);
}

static void submission_tail_behind(struct client *c)
{
    atomic_store(&c->ring->sq_tail, c->sq_tail - 1);
    wake(c);
}

static void wild_completion_head(struct client *c)
{
    atomic_store(&c->ring->cq_head, c->cq_head + 1000);
    client_submit(c, NB_OP_NOP, 0, NULL, 0);
}

static void a_job_without_a_name(struct client *c)
{
    client_submit_raw(c, &(struct nb_submission){.op = NB_OP_NOP});
}

static void two_jobs_of_one_name(struct client *c)
{
    struct nb_desc_generate d = greedy(c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    generate(c, 0, &d);
    c->next_id--;
    generate(c, 1, &d);
}

static void who_breaks_the_protocol_is_closed_alone(void **state)
{
    static void (*const crimes[])(struct client *) = {
        wild_submission_tail, submission_tail_behind, wild_completion_head,
        a_job_without_a_name, two_jobs_of_one_name,
    };
    struct client good = client_open(&worker, MODEL, ARENA);
    struct answer *alone = continue_text(&good, 0, PROMPT, 12);
    for (size_t i = 0; i < N_OF(crimes); i++) {
        int32_t ids[CONTEXT];
        struct answer *a = new_answer();
        struct client bad = client_open(&worker, MODEL, ARENA);
        assert_int_equal(status_of(&bad, client_submit(&bad, NB_OP_NOP, 0, NULL, 0)), 0);
        good.used = 0;
        size_t n = client_tokenize(&good, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
        struct nb_desc_generate d = greedy(&good, ids, n, 12);
        uint64_t job = generate(&good, 1, &d);
        crimes[i](&bad);
        assert_true(client_hung_up(&bad));
        assert_true(client_answer(&good, job, ALL, a));
        assert_string_equal(a->text, alone->text);
        client_close(&bad);
        free(a);
    }
    free(alone);
    client_close(&good);
}

static void garbage_in_the_ring_and_the_arena_harms_no_one(void **state)
{
    srand(3);
    struct client good = client_open(&worker, MODEL, ARENA);
    for (int round = 0; round < 20; round++) {
        struct client bad = client_open(&worker, MODEL, NB_ARENA_MIN);
        for (uint64_t i = 0; i < bad.arena_bytes; i++)
            bad.arena[i] = (uint8_t)(rand() >> 7);
        for (int i = 0; i < 200; i++) {
            struct nb_submission s = {.op = (uint32_t)rand() % NB_OP_COUNT,
                                      .user_data = (uint64_t)i + 1,
                                      .session = (uint32_t)rand() % (NB_SESSIONS_MAX + 1),
                                      .desc = (uint64_t)rand() % (NB_ARENA_MIN + 64) & ~7ull,
                                      .desc_len = (uint32_t)rand() % 128 & ~7u};
            client_submit_raw(&bad, &s);
        }
        client_close(&bad);
    }
    struct answer *a = continue_text(&good, 0, PROMPT, 4);
    assert_int_equal(a->done.status, 0);
    free(a);
    client_close(&good);
}

// --- slow readers

static void a_client_that_does_not_read_is_parked_alone(void **state)
{
    enum { SESSIONS = NB_SESSIONS_MAX, TOKENS = 24 };
    struct client slow = client_open(&worker, MODEL, ARENA);
    struct client good = client_open(&worker, MODEL, ARENA);
    size_t done = 0, tokens = 0;
    struct nb_completion got;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct nb_desc_generate d = greedy(&slow, (int32_t[]){1, 2, 3 + (int32_t)i}, 3, TOKENS);
        d.flags = NB_GENERATE_IGNORE_EOS;
        generate(&slow, i, &d);
    }
    // It fills what its jobs do not reserve, then stands still, while another is served.
    uint32_t before;
    do {
        before = atomic_load(&slow.ring->cq_tail);
        struct answer *a = continue_text(&good, 0, PROMPT, 8);
        assert_int_equal(a->done.status, 0);
        free(a);
        good.used = 0;
    } while (atomic_load(&slow.ring->cq_tail) != before || before < 900);
    assert_true(before <= NB_CQ_ENTRIES);
    while (done < SESSIONS && client_next(&slow, &got)) {
        tokens += got.kind == NB_COMPLETION_TOKEN;
        done += got.kind == NB_COMPLETION_DONE;
        assert_true(got.kind != NB_COMPLETION_DONE || got.status == 0);
    }
    assert_int_equal(done, SESSIONS);
    assert_int_equal(tokens, SESSIONS * TOKENS);
    client_close(&slow);
    client_close(&good);
}

// --- the broker's part

static void a_wrong_precision_is_refused_in_a_line(void **state)
{
    alignas(8) char packet[NB_WIRE_MAX];
    const struct nb_link_model_ready *ready = (const void *)packet;
    struct nb_link_model_add add = {.model = 9, .name = "m", .precision = "perfect"};
    int image = model_image();
    worker_send(&worker, NB_LINK_MODEL_ADD, &add, sizeof(add), &image, 1);
    worker_expect(&worker, NB_LINK_MODEL_READY, packet);
    assert_int_equal(ready->model, 9);
    assert_true(ready->header.status < 0);
    assert_non_null(strstr(ready->text, "balanced"));
}

static void two_models_take_turns(void **state)
{
    struct nb_link_model_ready ready = worker_add_model(&worker, 2, 256);
    assert_int_equal(ready.header.status, 0);
    struct client one = client_open(&worker, MODEL, ARENA), two = client_open(&worker, 2, ARENA);
    struct nb_desc_generate d = greedy(&one, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t long_job = generate(&one, 0, &d);
    struct answer *a = continue_text(&two, 0, PROMPT, 8), *cut = new_answer();
    assert_int_equal(a->done.status, 0);
    assert_true(client_answer(&one, long_job, 4, cut));
    client_close(&one);
    struct nb_link_ref ref = {.model = 2};
    worker_send(&worker, NB_LINK_MODEL_REMOVE, &ref, sizeof(ref), NULL, 0);
    assert_true(client_hung_up(&two));
    client_close(&two);
    free(a);
    free(cut);
}

static void the_page_counts_mixed_steps(void **state)
{
    static int32_t ids[900];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    uint64_t before = atomic_load(&worker.page->mixed_steps);
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 0);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t stream = generate(&c, 0, &d);
    assert_true(client_answer(&c, stream, 2, a));
    struct client other = client_open(&worker, MODEL, ARENA);
    struct nb_desc_generate prefill = greedy(&other, ids, N_OF(ids), 1);
    assert_int_equal(status_of(&other, generate(&other, 0, &prefill)), 0);
    assert_true(atomic_load(&worker.page->mixed_steps) > before);
    free(a);
    client_close(&c);
    client_close(&other);
}

static void draining_finishes_what_runs(void **state)
{
    struct worker mine = worker_serve(), keep = worker;
    worker = mine;
    assert_int_equal(worker_add_model(&worker, MODEL, CONTEXT).header.status, 0);
    struct client c = client_open(&worker, MODEL, ARENA);
    struct answer *a = new_answer();
    struct nb_desc_generate d = greedy(&c, (int32_t[]){1, 2, 3}, 3, 60);
    d.flags = NB_GENERATE_IGNORE_EOS;
    uint64_t job = generate(&c, 0, &d);
    assert_true(client_answer(&c, job, 2, a));
    struct nb_link_ref drain = {0};
    worker_send(&worker, NB_LINK_DRAIN, &drain, sizeof(drain), NULL, 0);
    assert_true(client_answer(&c, job, 10, a)); // by now it has the message
    uint64_t late = client_submit(&c, NB_OP_NOP, 0, NULL, 0);
    struct nb_completion got;
    do
        assert_true(client_next(&c, &got));
    while (got.user_data != late);
    assert_int_equal(got.status, -ESHUTDOWN);
    assert_true(client_answer(&c, job, ALL, a));
    assert_int_equal(a->done.b, 60);
    assert_int_equal(worker_wait(&worker), 0);
    worker = keep;
    free(a);
    client_close(&c);
}

static void the_links_end_ends_the_worker(void **state)
{
    struct worker w = worker_serve();
    int link = w.link;
    w.link = -1;
    close(link);
    assert_int_equal(worker_wait(&w), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_generation_is_the_engines),
        cmocka_unit_test(a_score_is_the_engines),
        cmocka_unit_test(two_channels_at_once_answer_as_each_alone),
        cmocka_unit_test(a_second_turn_keeps_the_kv),
        cmocka_unit_test(a_long_prompt_tells_its_progress),
        cmocka_unit_test(a_stop_string_across_tokens_ends_the_text),
        cmocka_unit_test(logprobs_come_when_asked_for),
        cmocka_unit_test(text_goes_to_tokens_and_back),
        cmocka_unit_test(a_conversation_is_rendered_by_the_models_template),
        cmocka_unit_test(a_long_text_is_tokenized_as_its_parts),
        cmocka_unit_test(what_does_not_fit_is_refused_with_a_status),
        cmocka_unit_test(a_session_runs_one_job),
        cmocka_unit_test(a_cancelled_job_says_so_and_frees_its_session),
        cmocka_unit_test(after_a_death_the_same_bytes_go_on),
        cmocka_unit_test(a_replay_that_was_over_is_over_again),
        cmocka_unit_test(a_client_that_hangs_up_leaves_nothing),
        cmocka_unit_test(a_removed_channel_ends),
        cmocka_unit_test(who_breaks_the_protocol_is_closed_alone),
        cmocka_unit_test(garbage_in_the_ring_and_the_arena_harms_no_one),
        cmocka_unit_test(a_client_that_does_not_read_is_parked_alone),
        cmocka_unit_test(a_wrong_precision_is_refused_in_a_line),
        cmocka_unit_test(two_models_take_turns),
        cmocka_unit_test(the_page_counts_mixed_steps),
        cmocka_unit_test(draining_finishes_what_runs),
        cmocka_unit_test(the_links_end_ends_the_worker),
    };
    return cmocka_run_group_tests_name("worker serve", tests, start_worker, kill_worker);
}
