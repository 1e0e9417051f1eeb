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
            client_submit(&c, NB_OP_TOKENIZE, 0, &d, sizeof(d));
        uint64_t last = client_submit(&c, NB_OP_NOP, 0, NULL, 0);
        do
            assert_true(client_next(&c, &done));
        while (done.user_data != last); // by then the others were taken
        client_close(&c);
    }
    free(text);
    assert_true(worker_memory() - before < CLIENTS * TEXTS * (LEN >> 10) / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_goes_to_tokens_and_back),
        cmocka_unit_test(a_conversation_is_rendered_by_the_models_template),
        cmocka_unit_test(a_long_text_is_tokenized_as_its_parts),
        cmocka_unit_test(texts_of_who_hung_up_are_dropped),
    };
    return cmocka_run_group_tests_name("worker text", tests, start_real_worker, kill_worker);
}
