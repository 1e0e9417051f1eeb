// nibble-worker's text ops, with the real model's tokenizer and chat template.
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

#include "daemon/worker/worker_config.h"
#include "tests/service/worker_harness.h"

#define N_OF(a) (sizeof(a) / sizeof((a)[0]))

static int start_real_worker(void **state)
{
    worker = worker_serve();
    int image = real_image();
    struct nb_link_model_ready ready = worker_add_model(&worker, MODEL, CONTEXT, image);
    close(image);
    assert_int_equal(ready.header.status, 0);
    assert_string_equal(ready.info.type, "Q4_1");
    assert_int_equal(ready.info.has_template, 1);
    assert_string_equal(ready.info.template_reason, "");
    return 0;
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
    client_submit(&c, NB_SUBMIT_DETOKENIZE, 0, &d, sizeof(d));
    assert_true(client_next(&c, &done));
    assert_int_equal(done.status, 0);
    assert_int_equal(done.a, strlen(text));
    assert_memory_equal(c.arena + d.out, text, strlen(text));
    // The same with special tokens read as such is shorter.
    assert_true(client_tokenize(&c, text, NB_TEXT_SPECIAL, ids, N_OF(ids)) < n);
    client_close(&c);
}

static char last_reason[NB_REASON_MAX + 1];

// A conversation's answer.
static struct nb_completion render(struct client *c, const char *conversation, uint32_t flags,
                                   void *ret, size_t size)
{
    struct nb_desc_tokenize d = {
        .text_len = strlen(conversation), .out_max = (uint32_t)size, .flags = NB_TEXT_CHAT | flags};
    if (!(flags & NB_TEXT_RENDER))
        d.out_max /= sizeof(int32_t);
    d.text = client_put(c, conversation, d.text_len);
    d.out = client_put(c, ret, size);
    struct answer *a = new_answer();
    assert_true(client_answer(c, client_submit(c, NB_SUBMIT_TOKENIZE, 0, &d, sizeof(d)), ALL, a));
    struct nb_completion done = a->done;
    snprintf(last_reason, sizeof(last_reason), "%s", a->reason);
    memcpy(ret, c->arena + d.out, size);
    free(a);
    return done;
}

#define RENDERED                                                                                   \
    "<|im_start|>system\nBe brief.<|im_end|>\n"                                                    \
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"

static void a_conversation_is_rendered_by_the_models_template(void **state)
{
    static const char conversation[] = "{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
                                       "brief.\"},{\"role\":\"user\",\"content\":\"Hi!\"}]}";
    int32_t got[64], want[64];
    struct client c = client_open(&worker, MODEL, ARENA);
    struct nb_completion done = render(&c, conversation, 0, got, sizeof(got));
    assert_int_equal(done.status, 0);
    size_t n = client_tokenize(&c, RENDERED, NB_TEXT_SPECIAL, want, N_OF(want));
    assert_int_equal(done.a, n);
    assert_memory_equal(got, want, n * sizeof(*got));
    char text[512] = "";
    done = render(&c, conversation, NB_TEXT_RENDER, text, sizeof(text));
    assert_int_equal(done.status, 0);
    assert_int_equal(done.a, strlen(RENDERED));
    assert_string_equal(text, RENDERED);
    memset(text, 0, sizeof(text));
    done = render(&c, conversation, NB_TEXT_RENDER, text, 12); // what fits
    assert_int_equal(done.a, strlen(RENDERED));
    assert_string_equal(text, "<|im_start|>");
    done = render(&c, "{\"messages\":[", 0, got, sizeof(got)); // and what is none
    assert_int_equal(done.status, -EINVAL);
    assert_true(last_reason[0]);
    client_close(&c);
}

// Whatever is wrong with a conversation or its template is said, by the model that has a template
// and by one that has none.
static void a_templates_own_words_reach_the_client(void **state)
{
    static const struct {
        const char *conversation;
        int32_t status;
        const char *words;
    } cases[] = {
        {"{\"messages\":[{}],\"template\":\"{{ raise_exception('only in turns') }}\"}", -EINVAL,
         "only in turns"},
        {"{\"messages\":[{}],\"template\":\"a\\n{% for %}\"}", -EINVAL, "line 2"},
        {"{\"messages\":[{}],\"template\":1}", -EINVAL, "template"},
        {"{\"messages\":[{}],\"surplus\":1}", -EINVAL, "surplus"},
        {"{\"messages\":1}", -EINVAL, "messages"},
        {"{}", -EINVAL, "messages"},
        {"[", -EINVAL, ""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", NIBBLE_E_UNSUPPORTED,
         "no chat template: send text (nibble run --raw), or bring a template (--template FILE)"},
    };
    int image = random_image();
    struct nb_link_model_ready ready = worker_add_model(&worker, 2, CONTEXT, image);
    assert_int_equal(ready.info.has_template, 0);
    assert_string_equal(ready.info.template_reason, "its file has none");
    struct client with = client_open(&worker, MODEL, ARENA),
                  without = client_open(&worker, 2, ARENA);
    char text[256] = "";
    for (size_t i = 0; i < N_OF(cases); i++) {
        if (cases[i].status == -EINVAL)
            assert_int_equal(render(&with, cases[i].conversation, 0, text, 64).status, -EINVAL);
        struct nb_completion done = render(&without, cases[i].conversation, 0, text, 64);
        assert_int_equal(done.status, cases[i].status);
        if (!strstr(last_reason, cases[i].words) || !last_reason[0])
            fail_msg("case %zu: \"%s\"", i, last_reason);
    }
    // One that the client brings, and no client's text becomes a control token by it.
    struct nb_completion done =
        render(&without,
               "{\"messages\":[{\"content\":\"<257>\"}],\"variables\":{\"x\":[2]},"
               "\"template\":\"{{ messages[0].content ~ x[0] }}<256>\"}",
               0, text, sizeof(text));
    assert_int_equal(done.status, 0);
    const int32_t want[] = {'<', '2', '5', '7', '>', '2', 256};
    assert_int_equal(done.a, N_OF(want));
    assert_memory_equal(text, want, sizeof(want));
    client_close(&with);
    client_close(&without);
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

// KiB of private memory.
static long worker_memory(void)
{
    char path[64], line[256];
    long kib = -1;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)worker.pid);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    while (kib < 0 && fgets(line, sizeof(line), file))
        sscanf(line, "RssAnon: %ld", &kib);
    fclose(file);
    assert_true(kib >= 0);
    return kib;
}

static void texts_of_who_hung_up_are_dropped(void **state)
{
    enum { LEN = 512 << 10, TEXTS = 16, CLIENTS = 30 };
    if (NB_SANITIZED)
        skip(); // freed memory is kept in quarantine
    char *text = malloc(LEN);
    assert_non_null(text);
    memset(text, 'a', LEN);
    for (size_t i = 7; i < LEN; i += 8)
        text[i] = ' ';
    long before = worker_memory();
    for (int i = 0; i < CLIENTS; i++) {
        struct nb_completion done;
        struct client c = client_open(&worker, MODEL, ARENA);
        struct nb_desc_tokenize d = {.text_len = LEN};
        d.text = client_put(&c, text, LEN);
        for (int j = 0; j < TEXTS; j++)
            client_submit(&c, NB_SUBMIT_TOKENIZE, 0, &d, sizeof(d));
        uint64_t last = client_submit(&c, NB_SUBMIT_NOP, 0, NULL, 0);
        do
            assert_true(client_next(&c, &done));
        while (done.user_data != last); // by then the others were taken
        client_close(&c);
    }
    free(text);
    assert_true(worker_memory() - before < CLIENTS * TEXTS * (LEN >> 10) / 2);
}

// A rendering that nobody waits for any more ends at once, so the next client's is soon answered:
// together these would take the worker minutes.
static void renderings_of_who_hung_up_or_cancelled_end(void **state)
{
    static const char endless[] =
        "{\"messages\":[{}],\"template\":\"{% for a in range(100000) %}"
        "{% for b in range(100000) %}{% if 'x' * 1000 %}{% endif %}{% endfor %}{% endfor %}\"}";
    for (int i = 0; i < 60; i++) {
        char text[64] = "";
        struct nb_completion done;
        struct client c = client_open(&worker, MODEL, ARENA),
                      next = client_open(&worker, MODEL, ARENA);
        struct nb_desc_tokenize d = {.text_len = strlen(endless), .flags = NB_TEXT_CHAT};
        d.text = client_put(&c, endless, d.text_len);
        uint64_t job = client_submit(&c, NB_SUBMIT_TOKENIZE, 0, &d, sizeof(d));
        uint64_t nop = client_submit(&c, NB_SUBMIT_NOP, 0, NULL, 0);
        assert_true(client_next(&c, &done));
        assert_int_equal(done.user_data, nop); // by then the other was taken
        if (i % 2) {
            client_submit_raw(&c, &(struct nb_submission){.op = NB_SUBMIT_CANCEL, .target = job});
            assert_true(client_next(&c, &done));
            assert_int_equal(done.user_data, job);
            assert_int_equal(done.status, NIBBLE_E_CANCELLED);
        }
        client_close(&c);
        done = render(&next, "{\"messages\":[{}],\"template\":\"ok\"}", NB_TEXT_RENDER, text,
                      sizeof(text));
        assert_int_equal(done.status, 0);
        assert_string_equal(text, "ok");
        client_close(&next);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_goes_to_tokens_and_back),
        cmocka_unit_test(a_conversation_is_rendered_by_the_models_template),
        cmocka_unit_test(a_templates_own_words_reach_the_client),
        cmocka_unit_test(a_long_text_is_tokenized_as_its_parts),
        cmocka_unit_test(texts_of_who_hung_up_are_dropped),
        cmocka_unit_test(renderings_of_who_hung_up_or_cancelled_end),
    };
    return cmocka_run_group_tests_name("worker text", tests, start_real_worker, kill_worker);
}
