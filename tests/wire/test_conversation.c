// Conversations on their way to the worker: what the library writes, what it splices in, and what
// it refuses before anybody else sees it.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/wire/client_util.h"

// What the worker was told: the log's tokens between the marks.
static void told_conversation(char *ret, size_t generated)
{
    const int32_t *log;
    size_t n = nibble_session_tokens(session, &log) - generated;
    assert_int_equal(log[0], FAKE_OPEN);
    assert_int_equal(log[n - 1], FAKE_SHUT);
    for (size_t i = 1; i < n - 1; i++)
        *ret++ = (char)log[i];
    *ret = 0;
}

static void conversations_go_out_as_json(void **state)
{
    struct nibble_message messages[] = {
        {"user", "hi \"you\"\n"}, {"assistant", "\\ \x01 \xc3\xa9"}, {"tool", ""}};
    struct nibble_prompt prompt = {.size = sizeof(prompt), .messages = messages, .n_messages = 3};
    char told[1024];
    nibble_job *job;
    fake->eos_after = 3;
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    told_conversation(told, 3);
    assert_string_equal(told, "{\"messages\":["
                              "{\"role\":\"user\",\"content\":\"hi \\\"you\\\"\\u000a\"},"
                              "{\"role\":\"assistant\",\"content\":\"\\\\ \\u0001 \xc3\xa9\"},"
                              "{\"role\":\"tool\",\"content\":\"\"}]}");
}

static void the_clients_json_is_spliced_in(void **state)
{
    const struct nibble_chat chat = {.size = sizeof(chat),
                                     .messages_json = " [{\"role\": \"user\"}] ",
                                     .tools_json = "[]",
                                     .documents_json = "[1]",
                                     .variables_json = "{\"enable_thinking\":false}",
                                     .template_text = "{{ \"x\" }}",
                                     .no_generation_prompt = 1};
    static const char want[] =
        "{\"messages\": [{\"role\": \"user\"}] ,\"tools\":[],\"documents\":[1],"
        "\"variables\":{\"enable_thinking\":false},"
        "\"template\":\"{{ \\\"x\\\" }}\",\"add_generation_prompt\":false}";
    struct nibble_prompt prompt = {.size = sizeof(prompt), .chat = &chat};
    char told[1024], text[1024] = "";
    int32_t ids[1024];
    size_t n;
    nibble_job *job;
    fake->eos_after = 1;
    assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &job), 0);
    assert_int_equal(nibble_job_wait(job), 0);
    nibble_job_free(job);
    told_conversation(told, 1);
    assert_string_equal(told, want);
    // The same without a job: the text, and the ids; or one of both.
    int len = nibble_render(session, &chat, text, sizeof(text), ids, 1024, &n);
    assert_int_equal(len, sizeof(want) - 1);
    assert_string_equal(text, want);
    assert_int_equal(n, sizeof(want) + 1);
    assert_int_equal(ids[0], FAKE_OPEN);
    assert_int_equal(nibble_render(session, &chat, NULL, 0, NULL, 0, &n), len);
    memset(text, 0, sizeof(text));
    assert_int_equal(nibble_render(session, &chat, text, 3, NULL, 0, NULL), len);
    assert_string_equal(text, "{\"m");
}

static void what_is_no_conversation_is_named(void **state)
{
    static const struct nibble_message user[] = {{"user", "hi"}, {"user", "\xff"}, {NULL, "x"}};
    static const struct {
        struct nibble_chat chat;
        int status;
        const char *sentence;
    } cases[] = {
        {{0}, -EINVAL, "exactly one of messages and messages_json"},
        {{.messages = user, .messages_json = "[]"}, -EINVAL, "exactly one of messages"},
        {{.messages = user, .n_messages = 2},
         -EILSEQ,
         "content of message 2 is not UTF-8 from its byte 1"},
        {{.messages = user + 2, .n_messages = 1}, -EINVAL, "message 1 has no role"},
        {{.messages_json = "{}"}, -EINVAL, "messages_json, line 1, column 1: no ["},
        {{.messages_json = "[\n {},\n}"}, -EINVAL, "messages_json, line 3, column 1: no value"},
        {{.messages_json = "[], \"template\": \"\""}, -EINVAL, "column 3: more than one value"},
        {{.messages_json = "[", .tools_json = "["},
         -EINVAL,
         "messages_json, line 1, column 2: the end"},
        {{.messages = user, .tools_json = "[\"a]"},
         -EINVAL,
         "tools_json, line 1, column 2: a string that does not end"},
        {{.messages = user, .tools_json = "[\"\\x\"]"}, -EINVAL, "no escape"},
        {{.messages = user, .tools_json = "[\"\\u12g4\"]"}, -EINVAL, "four hexadecimal"},
        {{.messages = user, .tools_json = "[\"\n\"]"}, -EINVAL, "a control character"},
        {{.messages = user, .tools_json = "[01]"}, -EINVAL, "begins with 0"},
        {{.messages = user, .tools_json = "[1.]"}, -EINVAL, "without a digit"},
        {{.messages = user, .tools_json = "[-]"}, -EINVAL, "without a digit"},
        {{.messages = user, .tools_json = "[1e+]"}, -EINVAL, "without a digit"},
        {{.messages = user, .documents_json = "[1 2]"},
         -EINVAL,
         "documents_json, line 1, column 4: no comma and no ]"},
        {{.messages = user, .variables_json = "[]"},
         -EINVAL,
         "variables_json, line 1, column 1: no {"},
        {{.messages = user, .variables_json = "{1:2}"}, -EINVAL, "no name in quotes"},
        {{.messages = user, .variables_json = "{\"a\" 2}"}, -EINVAL, "no colon"},
        {{.messages = user, .variables_json = "{\"a\":2,}"}, -EINVAL, "no name in quotes"},
        {{.messages = user, .variables_json = "{\"a\":tru}"}, -EINVAL, "no value"},
        {{.messages = user, .variables_json = "{\"\xc0\x80\":1}"},
         -EILSEQ,
         "variables_json, line 1, column 3: bytes that are no UTF-8"},
        {{.messages = user, .template_text = "a\xed\xa0\x80"},
         -EILSEQ,
         "template is not UTF-8 from its byte 2"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct nibble_chat chat = cases[i].chat;
        chat.size = sizeof(chat);
        if (chat.messages && !chat.n_messages)
            chat.n_messages = 1;
        struct nibble_prompt prompt = {.size = sizeof(prompt), .chat = &chat};
        nibble_job *job;
        assert_int_equal(nibble_render(session, &chat, NULL, 0, NULL, 0, NULL), cases[i].status);
        assert_non_null(strstr(nibble_error(connection), cases[i].sentence));
        assert_int_equal(nibble_generate(session, &prompt, NULL, NULL, NULL, &job),
                         cases[i].status);
    }
}

static void sound_json_of_every_kind_passes(void **state)
{
    static const char *const texts[] = {
        "[]",
        " [ ] ",
        "[[],{},[{}]]",
        "[-0, 0.5e-3, 12E+7, true, false, null]",
        "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\", \"\xf0\x9f\x98\x80\"]",
        "[{\"a\": [1, {\"b\": {}}], \"c\": \"\"}, [[2]]]"};
    char deep[2048];
    struct nibble_chat chat = {.size = sizeof(chat)};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        chat.messages_json = texts[i];
        assert_true(nibble_render(session, &chat, NULL, 0, NULL, 0, NULL) > 0);
    }
    for (int depth = 512; depth <= 513; depth++) {
        memset(deep, '[', (size_t)depth);
        memset(deep + depth, ']', (size_t)depth);
        deep[2 * depth] = 0;
        chat.messages_json = deep;
        assert_int_equal(nibble_render(session, &chat, NULL, 0, NULL, 0, NULL) > 0, depth == 512);
    }
    assert_non_null(strstr(nibble_error(connection), "512 deep"));
}

static void a_conversation_has_its_limits(void **state)
{
    char *content = malloc(NB_TEXT_MAX + 1);
    struct nibble_message message = {"user", content};
    struct nibble_chat chat = {.size = sizeof(chat), .messages = &message, .n_messages = 1};
    memset(content, 'a', NB_TEXT_MAX);
    content[NB_TEXT_MAX] = 0;
    assert_int_equal(nibble_render(session, &chat, NULL, 0, NULL, 0, NULL), NIBBLE_E_QUOTA);
    assert_non_null(strstr(nibble_error(connection), "at most 4194304: leave out"));
    content[NB_TEXT_MAX - 4096] = 0; // a text, but no room for it beside its result
    assert_int_equal(nibble_render(session, &chat, NULL, 0, NULL, 0, NULL), NIBBLE_E_QUOTA);
    assert_non_null(strstr(nibble_error(connection), "larger arena_bytes"));
    free(content);
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(conversations_go_out_as_json),     CLIENT_TEST(the_clients_json_is_spliced_in),
        CLIENT_TEST(what_is_no_conversation_is_named), CLIENT_TEST(sound_json_of_every_kind_passes),
        CLIENT_TEST(a_conversation_has_its_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
