// Vectors of texts: batches in pieces that fit the arena, their progress, and ends in the middle.
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

#define N 3000

static char letters[64];
static struct nibble_text texts[N];
static float vectors[N][FAKE_WIDTH];
static uint32_t counts[N];

static const struct nibble_place here = {.data = vectors};

// Text i has i % 50 letters.
static void make_texts(void)
{
    memset(letters, 1, sizeof(letters));
    for (size_t i = 0; i < N; i++)
        texts[i] = (struct nibble_text){.text = letters, .text_len = i % 50};
    memset(vectors, 0, sizeof(vectors));
    memset(counts, 7, sizeof(counts));
}

static void assert_right(size_t n, uint32_t flags)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(counts[i], i % 50);
        for (size_t j = 0; j < FAKE_WIDTH; j++)
            assert_true(vectors[i][j] == (float)(i % 50 + j + flags));
    }
}

static nibble_session *small_session(void)
{
    nibble_session *small;
    const struct nibble_session_options options = {.size = sizeof(options),
                                                   .arena_bytes = NB_ARENA_MIN};
    assert_int_equal(nibble_session_open(connection, "m1", &options, &small), 0);
    return small;
}

static void batches_come_in_pieces(void **state)
{
    nibble_session *small = small_session();
    make_texts();
    assert_int_equal(nibble_embed(session, texts, 1, NULL, &here, counts), 0);
    assert_right(1, 0);
    assert_int_equal(fake->n_embeds, 1);
    assert_int_equal(nibble_embed(session, texts, N, NULL, &here, counts), 0);
    assert_right(N, 0);
    assert_int_equal(fake->n_embeds, 2);
    make_texts();
    assert_int_equal(nibble_embed(small, texts, N, NULL, &here, NULL), 0);
    assert_true(fake->n_embeds > 6);
    assert_true(counts[0] != 0); // none were asked for
    memset(counts, 7, sizeof(counts));
    assert_int_equal(nibble_embed(small, texts, N, NULL, &here, counts), 0);
    assert_right(N, 0);
    nibble_session_close(small);
}

static void ids_and_texts_mix(void **state)
{
    static const int32_t ids[] = {1, 2, 3};
    const struct nibble_text mixed[] = {
        {.text = "\1\1", .text_len = 2}, {.tokens = ids, .n_tokens = 3},
        {.tokens = ids, .n_tokens = 1},  {.text = "", .text_len = 0},
        {.text = "\4", .text_len = 1},
    };
    const float sums[] = {2, 6, 1, 0, 4};
    const uint32_t lengths[] = {2, 3, 1, 0, 1};
    const struct nibble_embed_options options = {
        .size = sizeof(options), .no_normalise = 1, .truncate = 1};
    assert_int_equal(nibble_embed(session, mixed, 5, &options, &here, counts), 0);
    assert_int_equal(fake->n_embeds, 3);
    assert_memory_equal(counts, lengths, sizeof(lengths));
    for (size_t i = 0; i < 5; i++)
        assert_true(vectors[i][0] == sums[i] + (NB_EMBED_PLAIN | NB_EMBED_TRUNCATE));
}

struct seen {
    size_t last, calls, stop_at;
    nibble_session *close;
};

static int on_progress(void *user, size_t done, size_t n)
{
    struct seen *s = user;
    assert_true(done > s->last || (done == 0 && s->calls == 0));
    assert_int_equal(n, N);
    s->last = done;
    s->calls++;
    if (s->close)
        nibble_session_close(s->close);
    s->close = NULL;
    return done >= s->stop_at;
}

static void progress_is_told(void **state)
{
    nibble_session *small = small_session();
    struct seen seen = {.stop_at = SIZE_MAX};
    const struct nibble_embed_options options = {
        .size = sizeof(options), .progress = on_progress, .user = &seen};
    make_texts();
    assert_int_equal(nibble_embed(small, texts, N, &options, &here, counts), 0);
    assert_int_equal(seen.last, N);
    assert_true(seen.calls >= (size_t)fake->n_embeds);
    nibble_session_close(small);
}

// In the middle of a submission, between two, and by the end of its session.
static void a_batch_ends_where_it_is_cancelled(void **state)
{
    struct seen seen = {.stop_at = 1};
    const struct nibble_embed_options options = {
        .size = sizeof(options), .progress = on_progress, .user = &seen};
    make_texts();
    atomic_store(&fake->hold, 1);
    assert_int_equal(nibble_embed(session, texts, N, &options, &here, counts), NIBBLE_E_CANCELLED);
    assert_int_equal(fake->n_cancels, 1);
    assert_int_equal(counts[0], 0x07070707); // untouched
    atomic_store(&fake->hold, 0);

    nibble_session *small = small_session();
    seen = (struct seen){.stop_at = N / 2};
    assert_int_equal(nibble_embed(small, texts, N, &options, &here, counts), NIBBLE_E_CANCELLED);
    assert_string_equal(nibble_error(connection), "cancelled");
    assert_true(seen.last < N);

    atomic_store(&fake->hold, 1);
    seen = (struct seen){.stop_at = SIZE_MAX, .close = small};
    assert_int_equal(nibble_embed(small, texts, N, &options, &here, counts), NIBBLE_E_CANCELLED);
    atomic_store(&fake->hold, 0);
    char text[64];
    generate_text(session, "after it", 5, text);
}

static void a_death_changes_nothing(void **state)
{
    nibble_session *small = small_session();
    for (int at = 1; at <= 5; at++) {
        struct seen seen = {.stop_at = SIZE_MAX};
        const struct nibble_embed_options options = {
            .size = sizeof(options), .progress = on_progress, .user = &seen};
        make_texts();
        atomic_store(&fake->die_in_embed, at);
        assert_int_equal(nibble_embed(small, texts, N, &options, &here, counts), 0);
        assert_int_equal(fake->die_in_embed, 0);
        assert_right(N, 0);
        assert_int_equal(seen.last, N);
    }
    nibble_session_close(small);
}

static void failures_name_the_text(void **state)
{
    nibble_session *small = small_session();
    static char too_long[200001];
    make_texts();
    texts[2500] = (struct nibble_text){.text = too_long, .text_len = fake->context + 1};
    assert_int_equal(nibble_embed(small, texts, N, NULL, &here, counts), NIBBLE_E_CONTEXT);
    assert_non_null(strstr(nibble_error(connection), "text 2501: "));
    texts[2500].text_len = sizeof(too_long); // which no channel of this size takes
    assert_int_equal(nibble_embed(small, texts, N, NULL, &here, counts), NIBBLE_E_QUOTA);
    assert_non_null(strstr(nibble_error(connection), "arena_bytes"));
    texts[7].text = NULL;
    assert_int_equal(nibble_embed(session, texts, N, NULL, &here, counts), -EINVAL);
    assert_string_equal(nibble_error(connection), "text 8 has both a text and tokens, or neither");
    texts[7] = (struct nibble_text){.text = letters, .text_len = (size_t)NB_TEXT_MAX + 1};
    assert_int_equal(nibble_embed(session, texts, N, NULL, &here, counts), NIBBLE_E_QUOTA);
    assert_int_equal(nibble_embed(session, texts, 0, NULL, &here, counts), -EINVAL);
    assert_int_equal(nibble_embed(session, texts, 1, NULL, NULL, counts), -EINVAL);
    const struct nibble_place nowhere = {0};
    assert_int_equal(nibble_embed(session, texts, 1, NULL, &nowhere, counts), -EINVAL);
    assert_int_equal(counts[0], 0x07070707);
    nibble_job *job = begin_tokens(session, "busy", 400, NULL, NULL);
    assert_int_equal(nibble_embed(session, texts, 1, NULL, &here, counts), NIBBLE_E_BUSY);
    nibble_job_free(job);
    nibble_session_close(small);
}

static int wild;

static void spoil(struct fake_channel *channel, struct nb_completion *completion)
{
    const bool progress = completion->kind == NB_COMPLETION_PREFILL;
    (void)channel;
    if (wild == 0 && progress)
        completion->a = N + 1;
    if (wild == 1 && progress)
        completion->b = N + 1;
    if (wild == 2)
        completion->kind = NB_COMPLETION_TOKEN;
    if (wild == 3 && !progress) {
        completion->status = NIBBLE_E_CONTEXT;
        completion->a = N + 1;
    }
}

static void wild_completions_end_the_channel(void **state)
{
    for (wild = 0; wild <= 3; wild++) {
        nibble_session *bad;
        make_texts();
        assert_int_equal(nibble_session_open(connection, "m2", NULL, &bad), 0);
        fake->spoil = spoil;
        assert_int_equal(nibble_embed(bad, texts, N, NULL, &here, counts), NIBBLE_E_PROTOCOL);
        fake->spoil = NULL;
        nibble_session_close(bad);
    }
}

int main(void)
{
    client_begin();
    const struct CMUnitTest tests[] = {
        CLIENT_TEST(batches_come_in_pieces),
        CLIENT_TEST(ids_and_texts_mix),
        CLIENT_TEST(progress_is_told),
        CLIENT_TEST(a_batch_ends_where_it_is_cancelled),
        CLIENT_TEST(a_death_changes_nothing),
        CLIENT_TEST(failures_name_the_text),
        CLIENT_TEST(wild_completions_end_the_channel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
