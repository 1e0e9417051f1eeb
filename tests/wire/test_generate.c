// Sessions and jobs against a worker that does right: every way to take events, reuse of the log,
// cancelling, many jobs, texts.
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/wire/client_util.h"

static void tokens_text_and_timings_arrive(void **state)
{
    struct collected got = {0};
    nibble_job *job = begin_tokens(session, "hello", 20, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    assert_int_equal(got.tokens, 20);
    assert_int_equal(got.len, 20);
    assert_int_equal(got.finish, NIBBLE_FINISH_LENGTH);
    assert_int_equal(got.timings.prompt_tokens, 5);
    assert_int_equal(got.timings.generated_tokens, 20);
    assert_int_equal(got.prefills, 1);
    nibble_job_free(job);
    const int32_t *log;
    assert_int_equal(nibble_session_tokens(session, &log), 25);
    assert_int_equal(log[0], 'h');
    assert_int_equal(log[24], got.text[19]);
}

static void every_way_gives_the_same(void **state)
{
    struct collected by_callback = {0}, by_iteration = {0}, by_loop = {0};
    nibble_job *job = begin_tokens(session, "same", 50, on_event, &by_callback);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);

    job = begin_tokens(session, "same", 50, NULL, NULL);
    struct nibble_event event;
    while (nibble_job_next(job, &event, -1) == 1)
        on_event(job, &event, &by_iteration);
    assert_int_equal(nibble_job_next(job, &event, -1), 0); // after DONE, for ever
    nibble_job_free(job);

    job = begin_tokens(session, "same", 50, on_event, &by_loop);
    while (!by_loop.done) {
        struct pollfd readable = {nibble_get_fd(connection), POLLIN, 0};
        assert_int_equal(poll(&readable, 1, 10000), 1);
        assert_true(nibble_dispatch(connection, 0) >= 0);
    }
    nibble_job_free(job);
    assert_string_equal(by_callback.text, by_iteration.text);
    assert_string_equal(by_callback.text, by_loop.text);
    assert_int_equal(by_callback.len, 50);
}

static void nothing_to_do_leaves_the_fd_quiet(void **state)
{
    char text[64];
    generate_text(session, "quiet", 10, text);
    struct pollfd readable = {nibble_get_fd(connection), POLLIN, 0};
    for (int i = 0; i < 10 && poll(&readable, 1, 0) > 0; i++) // a late wake may be there, once
        nibble_dispatch(connection, 0);
    assert_int_equal(poll(&readable, 1, 20), 0);
}

static void iteration_obeys_its_timeout(void **state)
{
    atomic_store(&fake->hold, 1);
    nibble_job *job = begin_tokens(session, "hold", 1, NULL, NULL);
    struct nibble_event event;
    int rc = nibble_job_next(job, &event, 10);
    if (rc == 1 && event.type == NIBBLE_EVENT_PREFILL)
        rc = nibble_job_next(job, &event, 10);
    assert_int_equal(rc, 0);
    atomic_store(&fake->hold, 0);
    fake_kick(fake);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
}

static void only_the_new_tokens_are_sent(void **state)
{
    char text[64], whole[128];
    generate_text(session, "turn one", 10, text);
    assert_int_equal(fake->last_base, 0);
    snprintf(whole, sizeof(whole), "turn one%.10s and two", text);
    generate_text(session, whole, 5, text);
    assert_int_equal(fake->last_base, 18); // the log begins so: its prompt and what it generated
    assert_int_equal(fake->last_n_tokens, 8);
    generate_text(session, whole, 5, text); // one token at least
    assert_int_equal(fake->last_base, 25);
    assert_int_equal(fake->last_n_tokens, 1);
    generate_text(session, "turn xyz", 5, text);
    assert_int_equal(fake->last_base, 5);
}

static void appends_and_goes_on_from_its_own_log(void **state)
{
    char text[64], all[64];
    generate_text(session, "ab", 6, all);
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = 3;
    const int32_t *log;
    struct nibble_prompt prompt = {.size = sizeof(prompt), .append = 1};
    generate_text(session, "ab", 3, text);
    prompt.n_tokens = 0;
    nibble_session_tokens(session, &prompt.tokens); // its own memory
    struct collected got = {0};
    nibble_job *job;
    assert_int_equal(nibble_generate(session, &prompt, &options, on_event, &got, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_memory_equal(got.text, all + 3, 3);
    size_t n = nibble_session_tokens(session, &log);
    assert_int_equal(n, 8);
    prompt = (struct nibble_prompt){
        .size = sizeof(prompt), .tokens = log, .n_tokens = n, .append = 1}; // twice itself
    assert_int_equal(nibble_generate(session, &prompt, &options, NULL, NULL, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(nibble_session_tokens(session, &log), 19);
    assert_memory_equal(log, log + 8, 8 * sizeof(*log));
}

static void text_is_tokenized_first(void **state)
{
    struct nibble_prompt prompt = {.size = sizeof(prompt), .text = "hi there", .text_len = 8};
    struct nibble_generate_options options;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = 4;
    struct collected got = {0};
    nibble_job *job;
    assert_int_equal(nibble_generate(session, &prompt, &options, on_event, &got, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    const int32_t *log;
    assert_int_equal(nibble_session_tokens(session, &log), 1 + 8 + 4);
    assert_int_equal(log[0], FAKE_BOS);
    prompt.append = 1;
    assert_int_equal(nibble_generate(session, &prompt, &options, NULL, NULL, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    nibble_session_tokens(session, &log);
    assert_int_equal(log[13], 'h'); // no BOS in the middle
}

static void long_text_of_a_token_comes_whole(void **state)
{
    fake->token_text = 100;
    struct collected got = {0};
    nibble_job *job = begin_tokens(session, "x", 3, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(got.tokens, 3);
    assert_int_equal(got.len, 300);
    assert_int_equal(got.longest, 100);
}

static void reasoning_is_told(void **state)
{
    fake->token_text = 100;
    fake->reasoning = 2;
    struct collected got = {0};
    nibble_job *job = begin_tokens(session, "x", 3, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(got.tokens, 3);
    assert_int_equal(got.len, 300);
    for (size_t i = 0; i < got.len; i++)
        assert_int_equal(got.reasoning[i], i < 150); // the second token's text is of both kinds
}

static void logprobs_are_told_when_asked(void **state)
{
    struct nibble_generate_options options;
    struct nibble_event event;
    nibble_generate_options_init(&options, sizeof(options));
    options.max_tokens = 1;
    for (options.logprobs = 0; options.logprobs < 2; options.logprobs++) {
        struct nibble_prompt prompt = {
            .size = sizeof(prompt), .tokens = (int32_t[]){1}, .n_tokens = 1};
        nibble_job *job;
        assert_int_equal(nibble_generate(session, &prompt, &options, NULL, NULL, &job), 0);
        do
            assert_int_equal(nibble_job_next(job, &event, -1), 1);
        while (event.type != NIBBLE_EVENT_TOKEN);
        assert_true(options.logprobs ? event.logprob == -0.5f : isnan(event.logprob));
        nibble_job_free(job);
    }
}

static void a_cancelled_job_ends_so(void **state)
{
    atomic_store(&fake->hold, 1);
    nibble_job *job = begin_tokens(session, "endless", 0, NULL, NULL);
    nibble_job *other;
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = (int32_t[]){1}, .n_tokens = 1};
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &other), NIBBLE_E_BUSY);
    float score;
    assert_int_equal(nibble_score(session, (int32_t[]){1, 2}, 2, 0, &score), NIBBLE_E_BUSY);
    nibble_job_cancel(job);
    nibble_job_cancel(job);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_CANCELLED);
    atomic_store(&fake->hold, 0);
    nibble_job_cancel(job);
    nibble_job_free(job);
    assert_int_equal(fake->n_cancels, 1);
    char text[64];
    generate_text(session, "endless again", 5, text); // and the session goes on
}

static void cancelling_while_it_is_tokenized(void **state)
{
    struct nibble_prompt prompt = {.size = sizeof(prompt), .text = "text", .text_len = 4};
    struct collected got = {0};
    nibble_job *job;
    assert_int_equal(nibble_generate(session, &prompt, NULL, on_event, &got, &job), 0);
    nibble_job_cancel(job);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_CANCELLED);
    assert_int_equal(got.error, NIBBLE_E_CANCELLED);
    assert_int_equal(got.finish, NIBBLE_FINISH_ERROR);
    nibble_job_free(job);
    assert_int_equal(fake->n_generates, 0);
}

static void more_jobs_than_a_channel_has(void **state)
{
    enum { N = NB_SESSIONS_MAX };
    nibble_session *sessions[N] = {session};
    nibble_job *jobs[N], *texts[N];
    struct collected *got = calloc(2 * N, sizeof(*got));
    for (int i = 1; i < N; i++)
        assert_int_equal(nibble_session_open(connection, "m0", NULL, &sessions[i]), 0);
    nibble_session *one_more;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &one_more), NIBBLE_E_QUOTA);
    assert_int_equal(fake->n_channels, 1);
    assert_int_equal(nibble_session_open(connection, "m1", NULL, &one_more), 0); // of another model
    atomic_store(&fake->hold, 1);
    for (int i = 0; i < N; i++)
        jobs[i] = begin_tokens(sessions[i], "many", 30, on_event, &got[i]);
    // The channel is full: what comes now waits in the library, and can be cancelled there.
    int32_t token;
    nibble_job *waiting = begin_tokens(one_more, "other channel", 3, NULL, NULL);
    for (int i = 0; i < N; i++)
        texts[i] = NULL;
    nibble_job_free(jobs[3]);
    jobs[3] = begin_tokens(sessions[3], "again", 30, on_event, &got[N]);
    nibble_job_cancel(jobs[3]);
    atomic_store(&fake->hold, 0);
    fake_kick(fake);
    for (int i = 0; i < N; i++) {
        assert_int_equal(nibble_job_wait(jobs[i]), i == 3 ? NIBBLE_E_CANCELLED : 0);
        assert_int_equal(got[i].len, i == 3 ? 0 : 30);
        nibble_job_free(jobs[i]);
        nibble_job_free(texts[i]);
    }
    assert_int_equal(nibble_job_wait(waiting), 0);
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &token, 1), 1);
    nibble_job_free(waiting);
    assert_int_equal(fake->most_jobs, NB_JOBS_MAX);
    for (int i = 1; i < N; i++)
        nibble_session_close(sessions[i]);
    nibble_session_close(one_more);
    free(got);
}

static void a_small_arena_makes_jobs_wait_not_fail(void **state)
{
    enum { N = 12, LONG = 3000 };
    struct nibble_session_options options = {.size = sizeof(options),
                                             .arena_bytes = NB_ARENA_MIN}; // 5 prompts fit at once
    nibble_session *sessions[N];
    nibble_job *jobs[N];
    static int32_t tokens[LONG];
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = tokens, .n_tokens = LONG};
    struct nibble_generate_options few;
    nibble_generate_options_init(&few, sizeof(few));
    few.max_tokens = 2;
    for (int i = 0; i < N; i++) {
        assert_int_equal(nibble_session_open(connection, "m1", &options, &sessions[i]), 0);
        assert_int_equal(nibble_generate(sessions[i], &prompt, &few, NULL, NULL, &jobs[i]), 0);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(nibble_job_wait(jobs[i]), 0);
        nibble_job_free(jobs[i]);
    }
    assert_in_range(fake->most_jobs, 1, 5);
    // What can never fit is told with the figures.
    char *text = calloc(1, 100000);
    int32_t token;
    assert_int_equal(nibble_tokenize(sessions[0], text, 100000, 0, &token, 1), NIBBLE_E_QUOTA);
    assert_non_null(strstr(nibble_error(connection), "65536"));
    struct nibble_prompt large = {.size = sizeof(large), .text = text, .text_len = 100000};
    assert_int_equal(nibble_generate(sessions[0], &large, NULL, NULL, NULL, &jobs[0]), 0);
    assert_int_equal(nibble_job_wait(jobs[0]), NIBBLE_E_QUOTA);
    nibble_job_free(jobs[0]);
    free(text);
    for (int i = 0; i < N; i++)
        nibble_session_close(sessions[i]);
}

static void closing_a_session_ends_its_job(void **state)
{
    atomic_store(&fake->hold, 1);
    struct collected got = {0};
    nibble_job *job = begin_tokens(session, "to be closed", 0, on_event, &got);
    struct nibble_status status;
    nibble_get_status(connection, &status);
    nibble_session_close(session);
    session = NULL;
    atomic_store(&fake->hold, 0);
    assert_int_equal(nibble_dispatch(connection, 1000), 1 + (got.prefills > 0));
    assert_int_equal(got.error, NIBBLE_E_CANCELLED);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_CANCELLED);
    nibble_job_free(job);
}

static void closing_everything_in_the_middle(void **state)
{
    struct collected got = {0};
    begin_tokens(session, "a", 0, on_event, &got);
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    begin_tokens(other, "b", 0, NULL, NULL);
    nibble_dispatch(connection, 1000);
    nibble_close(connection);
    connection = NULL;
    session = NULL;
}

static void the_last_session_closes_the_channel(void **state)
{
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    assert_int_equal(fake->n_channels, 1);
    char text[64];
    generate_text(other, "x", 3, text);
    nibble_session_close(other);
    generate_text(session, "y", 3, text); // after the close, in order
    assert_int_equal(fake->n_closes, 1);
    nibble_session_close(session);
    session = NULL;
    struct nibble_status status;
    assert_int_equal(nibble_get_status(connection, &status), 0);
    assert_int_equal(fake->n_channels, 0);
}

// ---- Callbacks that do what they like ----

static struct collected inner;
static nibble_session *inner_session;
static void restless(nibble_job *job, const struct nibble_event *event, void *user)
{
    int *step = user;
    int32_t tokens[4];
    nibble_job *another;
    if (event->type == NIBBLE_EVENT_TOKEN && ++*step == 1) {
        assert_int_equal(nibble_tokenize(session, "abc", 3, 0, tokens, 4), 3);
        another = begin_tokens(inner_session, "inner", 9, on_event, &inner);
        assert_int_equal(nibble_job_wait(another), 0);
        assert_int_equal(inner.len, 9);
        nibble_job_free(another);
        nibble_session_close(inner_session);
        nibble_job_wait(job); // its own: waits for the end, its events come later
    }
    if (event->type == NIBBLE_EVENT_DONE) {
        *step += 1000;
        nibble_session_close(session);
        session = NULL;
        nibble_job_free(job);
    }
}

static void callbacks_may_call_anything(void **state)
{
    int step = 0;
    memset(&inner, 0, sizeof(inner));
    assert_int_equal(nibble_session_open(connection, "m2", NULL, &inner_session), 0);
    begin_tokens(session, "outer", 7, restless, &step);
    while (step < 1000)
        assert_true(nibble_dispatch(connection, 1000) >= 0);
    assert_int_equal(step, 1007);
}

static void free_at_once(nibble_job *job, const struct nibble_event *event, void *user)
{
    ++*(int *)user;
    nibble_job_free(job);
}

static void a_job_may_be_freed_by_its_callback_and_its_waiter_lives(void **state)
{
    int calls = 0;
    nibble_job *job = begin_tokens(session, "free", 100, free_at_once, &calls);
    nibble_job_wait(job);
    assert_int_equal(calls, 1);
    char text[64];
    generate_text(session, "free", 5, text);
}

static void bad_arguments_are_refused_here(void **state)
{
    nibble_job *job;
    struct nibble_generate_options options;
    int32_t tokens[] = {1, FAKE_VOCAB};
    struct nibble_message message = {"user", NULL};
    struct nibble_prompt bad[] = {
        {.text = NULL},
        {.text = "a", .text_len = 1, .tokens = tokens, .n_tokens = 1},
        {.tokens = tokens, .n_tokens = 2},
        {.tokens = tokens, .n_tokens = 0},
        {.tokens = (int32_t[]){-1}, .n_tokens = 1},
        {.messages = &message, .n_messages = 1},
        {.messages = &message, .n_messages = 0, .append = 1},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        bad[i].size = sizeof(bad[i]);
        assert_int_equal(nibble_generate(session, &bad[i], NULL, NULL, NULL, &job), -EINVAL);
        assert_null(strstr(nibble_error(connection), "size"));
    }
    struct nibble_prompt good = {.size = sizeof(good), .tokens = tokens, .n_tokens = 1};
    options = (struct nibble_generate_options){.size = sizeof(options)};
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    nibble_generate_options_init(&options, sizeof(options));
    options.sampling.temperature = NAN;
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    assert_string_equal(nibble_error(connection), "temperature is nan: 0 to 100 (0 is greedy)");
    options.sampling.temperature = 1e30f;
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    assert_string_equal(nibble_error(connection), "temperature is 1e+30: 0 to 100 (0 is greedy)");
    options.sampling.temperature = 100;
    options.sampling.repeat_window = 100000;
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    assert_string_equal(nibble_error(connection), "repeat_window is 100000: 0 to 4096 (0 is off)");
    nibble_generate_options_init(&options, sizeof(options));
    const char *stops[NB_STOP_MAX + 1];
    for (size_t i = 0; i <= NB_STOP_MAX; i++)
        stops[i] = "stop";
    options.stop = stops;
    options.n_stop = NB_STOP_MAX + 1;
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    stops[0] = "";
    options.n_stop = NB_STOP_MAX;
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EINVAL);
    stops[0] = "\xff";
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), -EILSEQ);
    assert_string_equal(nibble_error(connection), "stop string 1 is not UTF-8");
    stops[0] = "not empty";
    assert_int_equal(nibble_generate(session, &good, &options, NULL, NULL, &job), 0);
    nibble_job_cancel(job);
    nibble_job_wait(job);
    nibble_job_free(job);
}

static void a_prompt_beyond_the_context_is_told_with_figures(void **state)
{
    int32_t *tokens = calloc(5000, sizeof(*tokens));
    nibble_job *job;
    struct nibble_prompt prompt = {.size = sizeof(prompt), .tokens = tokens, .n_tokens = 5000};
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &job), NIBBLE_E_CONTEXT);
    assert_non_null(strstr(nibble_error(connection), "5000"));
    assert_non_null(strstr(nibble_error(connection), "4096"));
    char *text = calloc(1, 5000);
    prompt = (struct nibble_prompt){.size = sizeof(prompt), .text = text, .text_len = 5000};
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &job), 0);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_CONTEXT);
    assert_non_null(strstr(nibble_error(connection), "5001")); // with BOS
    nibble_job_free(job);
    prompt = (struct nibble_prompt){.size = sizeof(prompt), .tokens = tokens, .n_tokens = 4000};
    struct collected got = {0};
    assert_int_equal(nibble_generate(session, &prompt, NULL, on_event, &got, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    assert_int_equal(got.tokens, 96);
    assert_int_equal(got.finish, NIBBLE_FINISH_CONTEXT);
    nibble_job_free(job);
    free(tokens);
    free(text);
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(tokens_text_and_timings_arrive),
        CLIENT_TEST(every_way_gives_the_same),
        CLIENT_TEST(nothing_to_do_leaves_the_fd_quiet),
        CLIENT_TEST(iteration_obeys_its_timeout),
        CLIENT_TEST(only_the_new_tokens_are_sent),
        CLIENT_TEST(appends_and_goes_on_from_its_own_log),
        CLIENT_TEST(text_is_tokenized_first),
        CLIENT_TEST(long_text_of_a_token_comes_whole),
        CLIENT_TEST(reasoning_is_told),
        CLIENT_TEST(logprobs_are_told_when_asked),
        CLIENT_TEST(a_cancelled_job_ends_so),
        CLIENT_TEST(cancelling_while_it_is_tokenized),
        CLIENT_TEST(more_jobs_than_a_channel_has),
        CLIENT_TEST(a_small_arena_makes_jobs_wait_not_fail),
        CLIENT_TEST(closing_a_session_ends_its_job),
        CLIENT_TEST(closing_everything_in_the_middle),
        CLIENT_TEST(the_last_session_closes_the_channel),
        CLIENT_TEST(callbacks_may_call_anything),
        CLIENT_TEST(a_job_may_be_freed_by_its_callback_and_its_waiter_lives),
        CLIENT_TEST(bad_arguments_are_refused_here),
        CLIENT_TEST(a_prompt_beyond_the_context_is_told_with_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
