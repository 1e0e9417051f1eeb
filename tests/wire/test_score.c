// Text to tokens and back, scores and logits, in pieces that fit the arena.
#include <errno.h>
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

static void tokenize_and_detokenize(void **state)
{
    int32_t tokens[8];
    assert_int_equal(nibble_tokenize(session, "ab\0c", 4, NIBBLE_TOKENIZE_BOS, tokens, 8), 5);
    assert_int_equal(tokens[0], FAKE_BOS);
    assert_int_equal(tokens[3], 0);
    tokens[2] = -7;
    assert_int_equal(nibble_tokenize(session, "abc", 3, 0, tokens, 2), 3);
    assert_int_equal(tokens[2], -7); // not written past max
    assert_int_equal(nibble_tokenize(session, "", 0, 0, NULL, 0), 0);
    enum { LONG = 200000 }; // more tokens than first guessed
    char *text = malloc(LONG);
    int32_t *many = malloc(LONG * sizeof(*many));
    memset(text, 'z', LONG);
    assert_int_equal(nibble_tokenize(session, text, LONG, 0, many, LONG), LONG);
    assert_int_equal(many[LONG - 1], 'z');
    assert_int_equal(fake->n_tokenizes, 3 + 2);
    char out[8];
    assert_int_equal(nibble_detokenize(session, many, 4, out, 8), 8);
    assert_memory_equal(out, "zzzzzzzz", 8);
    assert_int_equal(nibble_detokenize(session, many, 60000, text, LONG), 120000);
    free(text);
    free(many);
    assert_int_equal(nibble_tokenize(session, "", (size_t)NB_TEXT_MAX + 1, 0, NULL, 0),
                     NIBBLE_E_QUOTA);
}

static void scores_come_in_chunks(void **state)
{
    enum { N = 3000 };
    nibble_session *small;
    struct nibble_session_options options = {.size = sizeof(options), .arena_bytes = NB_ARENA_MIN};
    assert_int_equal(nibble_session_open(connection, "m1", &options, &small), 0);
    int32_t *tokens = malloc(N * sizeof(*tokens));
    float *scores = malloc(N * sizeof(*scores));
    for (int i = 0; i < N; i++)
        tokens[i] = i % 200;
    nibble_session *both[] = {session, small};
    for (int s = 0; s < 2; s++) {
        memset(scores, 0, N * sizeof(*scores));
        assert_int_equal(nibble_score(both[s], tokens, N, 10, scores), 0);
        for (int i = 10; i < N - 1; i++)
            assert_true(scores[i - 10] == -(float)tokens[i + 1]);
    }
    float one;
    assert_int_equal(nibble_score(session, tokens, 2, 0, &one), 0);
    assert_int_equal(nibble_score(session, tokens, 1, 0, &one), -EINVAL);
    assert_int_equal(nibble_score(session, tokens, 0, 0, &one), -EINVAL);
    assert_int_equal(nibble_score(session, tokens, 5, 4, &one), -EINVAL);
    free(tokens);
    free(scores);
    nibble_session_close(small);
}

struct rows {
    size_t next, stop;
};
static int on_row(void *user, size_t position, const float *logits, size_t vocab)
{
    struct rows *rows = user;
    assert_int_equal(position, rows->next++);
    assert_int_equal(vocab, FAKE_VOCAB);
    assert_true(logits[3] == (float)(position % 100 + 3));
    return position == rows->stop ? 77 : 0;
}

static void logits_come_row_by_row(void **state)
{
    nibble_session *small;
    struct nibble_session_options options = {.size = sizeof(options), .arena_bytes = NB_ARENA_MIN};
    assert_int_equal(nibble_session_open(connection, "m1", &options, &small), 0);
    int32_t tokens[300];
    for (int i = 0; i < 300; i++)
        tokens[i] = i % 100;
    struct rows rows = {.next = 7, .stop = SIZE_MAX};
    assert_int_equal(nibble_logits(small, tokens, 300, 7, on_row, &rows), 0);
    assert_int_equal(rows.next, 300);
    rows = (struct rows){.next = 299, .stop = SIZE_MAX};
    assert_int_equal(nibble_logits(session, tokens, 300, 299, on_row, &rows), 0);
    rows = (struct rows){.next = 0, .stop = 50};
    assert_int_equal(nibble_logits(small, tokens, 300, 0, on_row, &rows), 77);
    assert_int_equal(rows.next, 51);
    char text[64];
    generate_text(small, "after a score", 5, text);
    nibble_session_close(small);
}

static void close_session_of(nibble_job *job, const struct nibble_event *event, void *user)
{
    nibble_session **other = user;
    nibble_session_close(*other);
    *other = NULL;
}

static int count_rows(void *user, size_t position, const float *logits, size_t vocab)
{
    ++*(size_t *)user;
    return 0;
}

static void a_session_may_be_closed_under_a_score(void **state)
{
    nibble_session *victim;
    static int32_t tokens[4000];
    size_t rows = 0;
    struct nibble_session_options options = {.size = sizeof(options), .arena_bytes = NB_ARENA_MIN};
    assert_int_equal(nibble_session_open(connection, "m3", &options, &victim), 0);
    nibble_session *kept = victim;
    nibble_job *job = begin_tokens(session, "killer", 1, close_session_of, &victim);
    int rc = nibble_logits(kept, tokens, 4000, 0, count_rows, &rows);
    assert_int_equal(rc, NIBBLE_E_CANCELLED);
    assert_null(victim);
    nibble_job_free(job);
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(tokenize_and_detokenize),
        CLIENT_TEST(scores_come_in_chunks),
        CLIENT_TEST(logits_come_row_by_row),
        CLIENT_TEST(a_session_may_be_closed_under_a_score),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
