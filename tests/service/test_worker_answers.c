// nibble-worker's serve mode: right answers beside the engine itself, several channels at once, and
// the same bytes after a worker's death.
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
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/service/worker_harness.h"
#include "tests/support/random_model.h"

#define N_OF(a) (sizeof(a) / sizeof((a)[0]))

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
    static const struct nb_model_events events = {
        .on_token = oracle_token, .on_logits = oracle_logits, .on_finish = oracle_finish};
    const struct nb_model_options options = {
        .precision = NB_PRECISION_BALANCED, .max_context = CONTEXT, .kv_bytes = 64u << 20};
    struct nb_image *image;
    struct nb_error error = {""};
    *o = (struct oracle){0};
    assert_int_equal(nb_image_map(random_image(), 1, &image, &error), 0);
    assert_int_equal(nb_cpu_device_create(0, NULL, &o->device), 0);
    assert_int_equal(nb_model_open(image, o->device, &options, &o->model, &error), 0);
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
    assert_true(client_answer(&c, client_submit(&c, NB_SUBMIT_SCORE, 1, &d, sizeof(d)), ALL, a));
    assert_int_equal(a->done.status, 0);
    assert_memory_equal(c.arena + d.out, o.logits, bytes);

    d.what = NB_SCORE_LOGPROBS;
    d.out_len = (rows - 1) * sizeof(float);
    assert_true(client_answer(&c, client_submit(&c, NB_SUBMIT_SCORE, 1, &d, sizeof(d)), ALL, a));
    assert_int_equal(a->done.status, 0);
    for (uint32_t r = 0; r + 1 < rows; r++) {
        const float *row = o.logits + (size_t)r * info.vocab;
        double sum = exp((double)row[0]);
        float got;
        for (uint32_t i = 1; i < info.vocab; i++)
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
        ids[i] = (int32_t)(i * 7 % 250);
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
    char stop[64];
    int32_t ids[CONTEXT];
    // From the middle of the text, whole characters; a token of this model has one byte.
    size_t at = whole->text_len / 2, end = at + 9;
    while (((unsigned char)whole->text[at] & 0xc0) == 0x80)
        at--;
    while (((unsigned char)whole->text[end] & 0xc0) == 0x80)
        end++;
    uint32_t len = (uint32_t)(end - at);
    memcpy(stop, &len, sizeof(len));
    memcpy(stop + sizeof(len), whole->text + at, len);
    const char *found = memmem(whole->text, whole->text_len, whole->text + at, len);
    size_t n = client_tokenize(&c, PROMPT, NB_TEXT_BOS, ids, N_OF(ids));
    struct nb_desc_generate d = greedy(&c, ids, n, 24);
    d.n_stop = 1;
    d.stop_len = sizeof(len) + len;
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

// --- reasoning

#define THINKS 2 // a model with these marks in its template

static void start_model_that_thinks(void)
{
    struct random_model r = RANDOM_MODEL;
    r.context = CONTEXT;
    int file = random_model_create_chat(&r, "{{ messages[0].content }}<think></think>");
    int image = model_image(file);
    assert_int_equal(worker_add_model(&worker, THINKS, CONTEXT, image).header.status, 0);
    close(file);
    close(image);
}

// As if the job had generated the second part before its worker died; then a few tokens more.
static struct answer *goes_on(struct client *c, const char *prompt, const char *had, uint64_t skip)
{
    int32_t ids[256];
    struct answer *a = new_answer();
    size_t n = client_tokenize(c, prompt, 0, ids, N_OF(ids));
    size_t k = client_tokenize(c, had, 0, ids + n, N_OF(ids) - n);
    struct nb_desc_generate d = greedy(c, ids, n + k, (uint32_t)k + 2);
    d.n_replay = (uint32_t)k;
    d.text_skip = skip;
    d.flags = NB_GENERATE_IGNORE_EOS;
    assert_true(client_answer(c, generate(c, 3, &d), ALL, a));
    assert_int_equal(a->done.status, 0);
    return a;
}

static void reasoning_is_told_from_the_answer(void **state)
{
    static const char had[] = "a<think>b</think>c<think>d";
    static const char kinds[] = "01111111111111111011111111";
    start_model_that_thinks();
    struct client c = client_open(&worker, THINKS, ARENA),
                  plain = client_open(&worker, MODEL, ARENA);
    struct answer *whole = goes_on(&c, "x", had, 0), *none = goes_on(&plain, "x", had, 0);
    assert_memory_equal(whole->text, had, sizeof(had) - 1);
    assert_string_equal(none->text, whole->text); // the same model but for its template
    for (size_t i = 0; i < whole->text_len; i++) {
        assert_int_equal(whole->reasoning[i], i >= sizeof(had) - 1 || kinds[i] == '1');
        assert_false(none->reasoning[i]);
    }
    assert_int_equal(whole->flagged, 2);
    assert_int_equal(none->flagged, 0);
    for (uint64_t skip = 1; skip < sizeof(had) - 1; skip++) {
        struct answer *rest = goes_on(&c, "x", had, skip);
        assert_string_equal(rest->text, whole->text + skip);
        assert_memory_equal(rest->reasoning, whole->reasoning + skip, rest->text_len);
        free(rest);
        c.used = 0;
    }
    // The prompt may have opened it, and the model may have closed it.
    struct answer *inside = goes_on(&c, "x<think>\n", "", 0);
    assert_int_equal(inside->flagged, inside->n_tokens);
    struct answer *closed = goes_on(&c, "x<think>\n", "b</think>", 0);
    assert_int_equal(closed->flagged, 0);
    for (size_t i = 0; i < closed->text_len; i++)
        assert_int_equal(closed->reasoning[i], i < 9);
    free(whole);
    free(none);
    free(inside);
    free(closed);
    client_close(&c);
    client_close(&plain);
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
        cmocka_unit_test(reasoning_is_told_from_the_answer),
        cmocka_unit_test(after_a_death_the_same_bytes_go_on),
        cmocka_unit_test(a_replay_that_was_over_is_over_again),
    };
    return cmocka_run_group_tests_name("worker answers", tests, start_worker, kill_worker);
}
