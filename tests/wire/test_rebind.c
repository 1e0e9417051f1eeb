// Ends in the middle of everything: the worker dies and another one goes on, the model is unloaded,
// the daemon hangs up, and a worker that posts what it must not.
#include <errno.h>
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

// The same text, whatever happens on the way.
static void the_stream_goes_on_with_the_same_bytes(void **state)
{
    char undisturbed[256];
    generate_text(session, "a story", 200, undisturbed);
    for (int at = 1; at <= 200; at += 13) {
        struct collected got = {0};
        atomic_store(&fake->die_after, at);
        nibble_job *job = begin_tokens(session, "a story", 200, on_event, &got);
        assert_int_equal(nibble_job_wait(job), 0);
        nibble_job_free(job);
        assert_int_equal(got.len, 200);
        assert_memory_equal(got.text, undisturbed, 200);
        assert_int_equal(got.moves, 1);
        assert_int_equal(got.timings.prompt_tokens, 7);
        assert_int_equal(got.timings.generated_tokens, 200);
        assert_int_equal(fake->last_replay, at); // what the old worker had finished was taken first
        assert_int_equal(fake->last_base, 0);
    }
}

static void it_may_die_again_and_again(void **state)
{
    char undisturbed[64];
    generate_text(session, "again", 40, undisturbed);
    struct collected got = {0};
    atomic_store(&fake->die_every, 3);
    nibble_job *job = begin_tokens(session, "again", 40, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_memory_equal(got.text, undisturbed, 40);
    assert_int_equal(got.moves, 40 / 3);
}

static void a_token_cut_in_the_middle_of_its_text_is_whole(void **state)
{
    fake->token_text = 100;
    fake->reasoning = 4;
    struct collected undisturbed = {0}, got = {0};
    nibble_job *job = begin_tokens(session, "long", 10, on_event, &undisturbed);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    atomic_store(&fake->die_in_text, 4);
    job = begin_tokens(session, "long", 10, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(got.moves, 1);
    assert_int_equal(got.longest, 100);
    assert_int_equal(got.tokens, 10);
    assert_string_equal(got.text, undisturbed.text);
}

static void all_sessions_of_a_channel_move(void **state)
{
    enum { N = 8 };
    nibble_session *sessions[N];
    nibble_job *jobs[N];
    struct collected *got = calloc(N, sizeof(*got));
    char prompt[16], undisturbed[N][64];
    for (int i = 0; i < N; i++) {
        assert_int_equal(nibble_session_open(connection, "m0", NULL, &sessions[i]), 0);
        snprintf(prompt, sizeof(prompt), "session %d", i);
        generate_text(sessions[i], prompt, 30, undisturbed[i]);
    }
    atomic_store(&fake->die_after, 100);
    for (int i = 0; i < N; i++) {
        snprintf(prompt, sizeof(prompt), "session %d", i);
        jobs[i] = begin_tokens(sessions[i], prompt, 30, on_event, &got[i]);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(nibble_job_wait(jobs[i]), 0);
        assert_memory_equal(got[i].text, undisturbed[i], 30);
        nibble_job_free(jobs[i]);
        nibble_session_close(sessions[i]);
    }
    free(got);
    char text[64];
    generate_text(session, "idle before", 5, text); // and a session that slept through it
}

static void an_idle_session_is_rebuilt_from_its_log(void **state)
{
    char text[64], other[64], whole[64];
    generate_text(session, "turn", 10, text);
    nibble_session *second;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &second), 0);
    atomic_store(&fake->die_after, 3);
    generate_text(second, "kills the worker", 10, other);
    snprintf(whole, sizeof(whole), "turn%.10s more", text);
    generate_text(session, whole, 5, other);
    assert_int_equal(fake->last_base, 0); // the new worker does not know it
    assert_int_equal(fake->last_n_tokens, 19);
    nibble_session_close(second);
}

static void a_cancelled_job_does_not_move(void **state)
{
    atomic_store(&fake->hold, 1);
    struct collected got = {0};
    nibble_job *job = begin_tokens(session, "cancel", 50, on_event, &got);
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    nibble_job *freed = begin_tokens(other, "free", 50, NULL, NULL);
    atomic_store(&fake->die_after, 1);
    atomic_store(&fake->hold, 0);
    nibble_job_cancel(job);
    nibble_job_free(freed);
    fake_kick(fake);
    nibble_job_wait(job);
    nibble_job_free(job);
    char text[64];
    generate_text(session, "on", 5, text);
    generate_text(other, "on", 5, text);
    nibble_session_close(other);
}

// Each session is told of another device once: at its running job, or at its next one.
static void a_move_to_another_device_is_told(void **state)
{
    struct collected got = {0}, idle = {0}, later = {0};
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    char text[64];
    generate_text(other, "before", 3, text);
    snprintf(fake->device, sizeof(fake->device), "cpu");
    atomic_store(&fake->die_after, 5);
    nibble_job *job = begin_tokens(session, "a story", 20, on_event, &got);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_string_equal(got.devices, "cpu@5 ");
    assert_int_equal(got.moves, 1);
    assert_int_equal(got.len, 20);
    assert_string_equal(nibble_session_model(session)->device, "cpu");

    job = begin_tokens(other, "a story", 20, on_event, &idle);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_string_equal(idle.devices, "cpu@0 ");

    atomic_store(&fake->die_after, 5); // the same device again
    job = begin_tokens(session, "a story", 20, on_event, &later);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    assert_int_equal(later.moves, 1);
    assert_string_equal(later.devices, "");
    nibble_session_close(other);
}

static void calls_move_too(void **state)
{
    // A job whose first token kills the worker, with calls behind it.
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    for (int i = 0; i < 20; i++) {
        int32_t tokens[4];
        float scores[3];
        atomic_store(&fake->die_after, 1);
        nibble_job *job = begin_tokens(other, "kill", 3, NULL, NULL);
        assert_int_equal(nibble_tokenize(session, "abc", 3, 0, tokens, 4), 3);
        assert_int_equal(tokens[2], 'c');
        assert_int_equal(nibble_score(session, (int32_t[]){1, 2, 3, 4}, 4, 0, scores), 0);
        assert_true(scores[2] == -4);
        assert_int_equal(nibble_job_wait(job), 0);
        nibble_job_free(job);
    }
    nibble_session_close(other);
}

static void a_lost_channel_ends_its_jobs(void **state)
{
    struct collected got = {0};
    atomic_store(&fake->lose_after, 5);
    nibble_job *job = begin_tokens(session, "lost", 50, on_event, &got);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_NO_MODEL);
    assert_string_equal(nibble_error(connection), "m0 was unloaded");
    assert_int_equal(got.len, 5); // what was there was told first
    nibble_job_free(job);
    nibble_job *none;
    struct nibble_prompt prompt = {.size = sizeof(prompt), .text = "a", .text_len = 1};
    int32_t token;
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &none), NIBBLE_E_NO_MODEL);
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &token, 1), NIBBLE_E_NO_MODEL);
    nibble_session *anew; // the model may have been loaded again
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &anew), 0);
    char text[64];
    generate_text(anew, "anew", 5, text);
    nibble_session_close(anew);
}

static void a_daemon_that_hangs_up_ends_everything(void **state)
{
    struct collected got = {0};
    atomic_store(&fake->hang_up_after, 5);
    nibble_job *job = begin_tokens(session, "lost", 50, on_event, &got);
    assert_int_equal(nibble_job_wait(job), NIBBLE_E_CLOSED);
    assert_int_equal(got.error, NIBBLE_E_CLOSED);
    assert_int_equal(got.len, 5);
    nibble_job_free(job);
    int32_t token;
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &token, 1), NIBBLE_E_CLOSED);
    assert_int_equal(nibble_dispatch(connection, -1), NIBBLE_E_CLOSED);
}

static void a_call_ends_when_the_daemon_hangs_up(void **state)
{
    nibble_session *other;
    assert_int_equal(nibble_session_open(connection, "m0", NULL, &other), 0);
    atomic_store(&fake->hold, 1);
    nibble_job *job = begin_tokens(other, "lost", 50, NULL, NULL);
    atomic_store(&fake->hang_up_after, 1);
    atomic_store(&fake->hold, 0);
    fake_kick(fake);
    struct nibble_event event;
    int rc;
    while ((rc = nibble_job_next(job, &event, -1)) == 1 && event.type != NIBBLE_EVENT_DONE)
        ;
    assert_int_equal(rc, 1);
    assert_int_equal(event.error, NIBBLE_E_CLOSED);
    assert_int_equal(nibble_job_next(job, &event, -1), 0);
}

// ---- A worker that posts what it must not ----

static int wild, countdown;
static void spoil(struct fake_channel *channel, struct nb_completion *completion)
{
    static const struct nb_completion end = {.kind = NB_COMPLETION_DONE};
    if (countdown-- != 0)
        return;
    uint64_t user_data = completion->user_data;
    switch (wild) {
    case 0:
        completion->user_data = 0;
        break;
    case 1:
        completion->user_data ^= 1ull << 40;
        break;
    case 2:
        completion->user_data |= 0xff; // of an op that is not answered
        break;
    case 3:
        completion->kind = NB_COMPLETION_KINDS;
        break;
    case 4:
        completion->kind = UINT16_MAX;
        break;
    case 5:
        completion->text_len = 33;
        break;
    case 6:
        completion->text_len = UINT16_MAX;
        break;
    case 7:
        completion->status = 1;
        break;
    case 8:
        *completion = (struct nb_completion){.user_data = user_data, .token = -1};
        break;
    case 9:
        *completion = (struct nb_completion){.user_data = user_data, .token = FAKE_VOCAB};
        break;
    case 10:
        *completion = (struct nb_completion){.user_data = user_data, .a = UINT32_MAX};
        break;
    case 11: // DONE with neither an end nor a failure
        *completion = end;
        completion->user_data = user_data;
        break;
    case 12:
        *completion = end;
        completion->user_data = user_data;
        completion->done.finish = 99;
        break;
    case 13: // progress beyond its end
        *completion = (struct nb_completion){
            .user_data = user_data, .kind = NB_COMPLETION_PREFILL, .a = 2, .b = 1};
        break;
    case 14: // text without end
        *completion = (struct nb_completion){.user_data = user_data, .kind = NB_COMPLETION_TEXT};
        break;
    case 15: // a tail from nowhere
        channel->cq_tail += NB_CQ_ENTRIES + 1;
        break;
    case 16: // completions that were never written
        channel->cq_tail += 100;
        break;
    case 17: // two tokens at once, the first without its text
        *completion =
            (struct nb_completion){.user_data = user_data, .token = 'a', .a = 50, .text_len = 1};
        break;
    case 18: // submissions that were never made
        atomic_store(
            (_Atomic uint32_t *)(void *)(channel->map + offsetof(struct nb_ring_indices, sq_head)),
            12345);
        *completion = (struct nb_completion){.user_data = user_data, .token = -1};
        break;
    case 19: // nothing for a reason
        *completion = (struct nb_completion){.user_data = user_data, .kind = NB_COMPLETION_REASON};
        break;
    case 20: // text of no kind
        *completion = (struct nb_completion){.user_data = user_data, .text_len = 1, .a = 1, .b = 2};
        break;
    case 21:
        *completion = (struct nb_completion){
            .user_data = user_data, .kind = NB_COMPLETION_TEXT, .text_len = 1, .b = 2};
        break;
    }
}

static void wild_completions_end_the_channel_alone(void **state)
{
    for (wild = 0; wild <= 21; wild++)
        for (int at = 1; at <= 3; at++) {
            struct collected got = {0};
            nibble_session *bad;
            char text[64];
            countdown = at;
            fake->spoil = NULL;
            assert_int_equal(nibble_session_open(connection, "m1", NULL, &bad), 0);
            fake->spoil = spoil;
            nibble_job *job = begin_tokens(bad, "wild", 10, on_event, &got);
            if (nibble_job_wait(job) != NIBBLE_E_PROTOCOL)
                fail_msg("completion %d at %d was taken", wild, at);
            assert_int_equal(got.error, NIBBLE_E_PROTOCOL);
            nibble_job_free(job);
            nibble_session_close(bad);
            generate_text(session, "the others go on", 10, text);
            atomic_store(&fake->violations, 0); // the fake itself may stumble over what it spoiled
        }
}

static void spoil_tokens(struct fake_channel *channel, struct nb_completion *completion)
{
    const struct nb_submission *entries = (const void *)(channel->map + NB_CHANNEL_SQ_OFFSET);
    const struct nb_submission *last = &entries[(channel->sq_head - 1) & (NB_SQ_ENTRIES - 1)];
    struct nb_desc_tokenize desc;
    memcpy(&desc, channel->map + NB_CHANNEL_ARENA_OFFSET + last->desc, sizeof(desc));
    int32_t token = wild == 0 ? -1 : FAKE_VOCAB;
    memcpy(channel->map + NB_CHANNEL_ARENA_OFFSET + desc.out, &token, sizeof(token));
    if (wild == 2)
        completion->a = UINT32_MAX;
    if (wild == 3)
        completion->a = desc.out_max + 1; // and again, when there is more room
}

static void wild_tokens_are_refused(void **state)
{
    for (wild = 0; wild <= 3; wild++) {
        nibble_session *bad;
        int32_t tokens[4];
        fake->spoil = NULL;
        assert_int_equal(nibble_session_open(connection, "m1", NULL, &bad), 0);
        fake->spoil = spoil_tokens;
        assert_int_equal(nibble_tokenize(bad, "abc", 3, 0, tokens, 4), NIBBLE_E_PROTOCOL);
        struct nibble_prompt prompt = {.size = sizeof(prompt), .text = "abc", .text_len = 3};
        nibble_job *job;
        int rc = nibble_generate(bad, &prompt, NULL, NULL, NULL, &job);
        if (rc == 0) {
            assert_true(nibble_job_wait(job) < 0);
            nibble_job_free(job);
        }
        nibble_session_close(bad);
    }
}

// Whatever bytes come, the library comes back.
static void spoil_at_random(struct fake_channel *channel, struct nb_completion *completion)
{
    if (rand() % 8 == 0)
        ((unsigned char *)completion)[rand() % (int)sizeof(*completion)] ^=
            (unsigned char)(1 << rand() % 8);
}

static void random_completions_are_survived(void **state)
{
    for (unsigned i = 0; i < 200; i++) {
        nibble_session *bad;
        srand(i);
        fake->spoil = NULL;
        assert_int_equal(nibble_session_open(connection, "m1", NULL, &bad), 0);
        fake->spoil = spoil_at_random;
        nibble_job *job = begin_tokens(bad, "random", 40, NULL, NULL);
        struct nibble_event event;
        for (int events = 0; events < 100 && nibble_job_next(job, &event, 20) == 1; events++)
            ;
        nibble_session_close(bad);
        nibble_job_free(job);
        assert_int_equal(nibble_dispatch(connection, 0), 0);
    }
    atomic_store(&fake->violations, 0);
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(the_stream_goes_on_with_the_same_bytes),
        CLIENT_TEST(it_may_die_again_and_again),
        CLIENT_TEST(a_token_cut_in_the_middle_of_its_text_is_whole),
        CLIENT_TEST(all_sessions_of_a_channel_move),
        CLIENT_TEST(an_idle_session_is_rebuilt_from_its_log),
        CLIENT_TEST(a_cancelled_job_does_not_move),
        CLIENT_TEST(a_move_to_another_device_is_told),
        CLIENT_TEST(calls_move_too),
        CLIENT_TEST(a_lost_channel_ends_its_jobs),
        CLIENT_TEST(a_daemon_that_hangs_up_ends_everything),
        CLIENT_TEST(a_call_ends_when_the_daemon_hangs_up),
        CLIENT_TEST(wild_completions_end_the_channel_alone),
        CLIENT_TEST(wild_tokens_are_refused),
        CLIENT_TEST(random_completions_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
