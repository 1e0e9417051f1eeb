// Why a job failed: the worker's sentence on its way to nibble_error and to the last event, whole
// and fit to be shown.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/wire/client_util.h"

#define LONG "a sentence that takes more than one piece of thirty-two bytes, with a figure: 42"

static void refuse_with(int status, const char *sentence)
{
    fake->refuse_status = status;
    snprintf(fake->refuse, sizeof(fake->refuse), "%s", sentence);
}

static void every_call_tells_it(void **state)
{
    const struct nibble_message message = {"user", "hi"};
    const struct nibble_chat chat = {.size = sizeof(chat), .messages = &message, .n_messages = 1};
    int32_t ids[] = {1, 2, 3};
    char text[8];
    float scores[2];
    struct nibble_tensor tensor;
    struct nibble_counters counters;
    refuse_with(NIBBLE_E_UNSUPPORTED, LONG);
#define TELLS(call)                                                                                \
    assert_int_equal(call, NIBBLE_E_UNSUPPORTED);                                                  \
    assert_string_equal(nibble_error(connection), LONG);                                           \
    nibble_session_open(connection, "", NULL, NULL) // another sentence
    TELLS(nibble_tokenize(session, "a", 1, 0, ids, 3));
    TELLS(nibble_detokenize(session, ids, 3, text, sizeof(text)));
    TELLS(nibble_render(session, &chat, text, sizeof(text), NULL, 0, NULL));
    TELLS(nibble_score(session, ids, 3, 0, scores));
    TELLS(nibble_tensor_find(session, "x", &tensor));
    TELLS(nibble_model_counters(session, &counters));
}

static void the_last_event_has_it(void **state)
{
    const struct nibble_message message = {"user", "hi"};
    const struct nibble_chat chat = {.size = sizeof(chat), .messages = &message, .n_messages = 1};
    struct nibble_prompt prompts[] = {
        {.chat = &chat}, {.text = "hi", .text_len = 2}, {.tokens = (int32_t[]){1}, .n_tokens = 1}};
    refuse_with(-EINVAL, LONG);
    for (size_t i = 0; i < sizeof(prompts) / sizeof(*prompts); i++) {
        struct nibble_event event;
        nibble_job *job;
        prompts[i].size = sizeof(prompts[i]);
        assert_int_equal(nibble_generate(session, &prompts[i], NULL, NULL, NULL, &job), 0);
        assert_int_equal(nibble_job_next(job, &event, -1), 1);
        assert_int_equal(event.type, NIBBLE_EVENT_DONE);
        assert_int_equal(event.error, -EINVAL);
        assert_string_equal(event.reason, LONG);
        // It outlives the call that has no event more: a loop over the events ends with that one.
        assert_int_equal(nibble_job_next(job, &event, -1), 0);
        assert_string_equal(event.reason, LONG);
        assert_int_equal(nibble_job_wait(job), -EINVAL);
        assert_string_equal(nibble_error(connection), LONG);
        nibble_job_free(job);
    }
    // A job that ends well has none.
    refuse_with(0, "");
    nibble_job *job = begin_tokens(session, "x", 1, NULL, NULL);
    struct nibble_event event;
    while (nibble_job_next(job, &event, -1) == 1)
        assert_null(event.reason);
    nibble_job_free(job);
}

static void it_is_fit_to_be_shown(void **state)
{
    // Marks that turn what follows around, which no source file has as text
    static const char turning[] = {'a', '\xe2', '\x80', '\xae', 'b', '\xe2', '\x81', '\xa6', 0};
    static const struct {
        const char *sentence, *shown;
    } cases[] = {
        {"Gr\xc3\xb6\xc3\x9f"
         "e \xf0\x9f\x98\x80",
         "Gr\xc3\xb6\xc3\x9f"
         "e \xf0\x9f\x98\x80"},
        {"a\x1b[31mb\r\nc\x7f", "a?[31mb??c?"},
        {"a\xc2\x9b"
         "31mb",
         "a?31mb"}, // a control character of two bytes
        {turning, "a?b?"},
        {"a\xff\xc0\x80z\xed\xa0\x80", "a???z???"}, // no UTF-8
        {"a\xf0\x9f\x98", "a???"},                  // cut short
        {"", "the worker of m0 refused the job: Invalid argument"},
    };
    int32_t id;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        refuse_with(-EINVAL, cases[i].sentence);
        assert_int_equal(nibble_tokenize(session, "a", 1, 0, &id, 1), -EINVAL);
        assert_string_equal(nibble_error(connection), cases[i].shown);
    }
}

static void it_has_its_length(void **state)
{
    char sentence[NB_REASON_MAX + 2] = "";
    int32_t id;
    memset(sentence, 'x', NB_REASON_MAX);
    refuse_with(-EINVAL, sentence);
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &id, 1), -EINVAL);
    assert_string_equal(nibble_error(connection), sentence);
    sentence[NB_REASON_MAX] = 'x';
    refuse_with(-EINVAL, sentence);
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &id, 1), NIBBLE_E_PROTOCOL);
}

static void a_dead_workers_half_sentence_is_forgotten(void **state)
{
    int32_t id;
    refuse_with(-EINVAL, LONG);
    atomic_store(&fake->die_in_reason, 1);
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &id, 1), -EINVAL);
    assert_string_equal(nibble_error(connection), LONG); // the next worker's, from its beginning
    assert_int_equal(fake->n_tokenizes, 0);
    // Of a job that nobody waits for any more.
    nibble_job *job = begin_tokens(session, "x", 0, NULL, NULL);
    nibble_job_free(job);
    refuse_with(0, "");
    assert_int_equal(nibble_tokenize(session, "a", 1, 0, &id, 1), 1);
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(every_call_tells_it),
        CLIENT_TEST(the_last_event_has_it),
        CLIENT_TEST(it_is_fit_to_be_shown),
        CLIENT_TEST(it_has_its_length),
        CLIENT_TEST(a_dead_workers_half_sentence_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
