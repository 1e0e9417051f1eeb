// The sampler: its generator against the published vectors, and each rule against a plain
// computation of it.
#include <errno.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampler.h"
#include "tests/support/hard_rows.h"

#define VOCAB 2000

static void philox_vectors(void **state)
{
    // kat_vectors of Random123, the generator's own release.
    assert_int_equal(nb_random(0, 0), 0xe169c58d6627e8d5);
    // The other two published vectors use all four counter words, which nb_random leaves at 0; what
    // must hold is that either half of each argument matters.
    assert_int_not_equal(nb_random(1, 0), nb_random(0, 1));
    assert_int_not_equal(nb_random((uint64_t)1 << 32, 0), nb_random(0, 0));
    assert_int_not_equal(nb_random(0, (uint64_t)1 << 32), nb_random(0, 0));
}

static void random_logits(float *logits, uint64_t seed)
{
    for (uint32_t i = 0; i < VOCAB; i++) {
        uint64_t r = nb_random(seed, i);
        // Coarse, so that there are ties.
        logits[i] = (float)(r % 256) / 16 - 8 + (float)(r >> 62);
    }
}

static int32_t choose(struct nb_sampling s, const float *logits, uint32_t position)
{
    float scratch[VOCAB];
    int32_t token = -1;
    memcpy(scratch, logits, sizeof(scratch));
    assert_int_equal(nb_sample(&s, scratch, VOCAB, NULL, 0, position, &token, NULL), 0);
    return token;
}

// The definition, with a sort of everything.
struct ranked {
    float logit;
    int32_t id;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static int32_t defined(const struct nb_sampling *s, const float *logits, uint32_t position)
{
    static struct ranked r[VOCAB];
    static double weight[VOCAB];
    for (int32_t i = 0; i < VOCAB; i++)
        r[i] = (struct ranked){logits[i], i};
    qsort(r, VOCAB, sizeof(r[0]), by_rank);
    uint32_t n = s->top_k && s->top_k < VOCAB ? s->top_k : VOCAB;
    double max = r[0].logit, total = 0, sum = 0;
    memset(weight, 0, sizeof(weight));
    for (uint32_t i = 0; i < n; i++)
        if (s->min_p == 0 || r[i].logit >= max + s->temperature * log((double)s->min_p))
            weight[r[i].id] = exp((r[i].logit - max) / s->temperature);
    for (uint32_t i = 0; i < VOCAB; i++)
        total += weight[i];
    for (uint32_t i = 0; s->top_p < 1 && i < VOCAB; i++) {
        bool reached = i > 0 && sum >= s->top_p * total;
        sum += weight[r[i].id];
        if (reached)
            weight[r[i].id] = 0;
    }
    total = sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        total += weight[i];
    double u = (double)(nb_random(s->seed, position) >> 11) * 0x1p-53 * total;
    for (int32_t i = 0; i < VOCAB; i++)
        if ((sum += weight[i]) > u)
            return i;
    return -1;
}

static void equals_definition(void **state)
{
    static const struct nb_sampling cases[] = {
        {.temperature = 1, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.7f, .top_k = 40, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.7f, .top_k = 40, .top_p = 0.9f, .repeat_penalty = 1},
        {.temperature = 1.5f, .top_p = 0.8f, .repeat_penalty = 1},
        {.temperature = 1, .top_p = 1, .min_p = 0.05f, .repeat_penalty = 1},
        {.temperature = 2, .top_k = 1500, .top_p = 0.95f, .min_p = 0.01f, .repeat_penalty = 1},
        {.temperature = 0.01f, .top_p = 0, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 1, .top_p = 1, .repeat_penalty = 1},
    };
    float logits[VOCAB];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (uint32_t position = 0; position < 50; position++) {
            struct nb_sampling s = cases[i];
            s.seed = i * 1000 + position / 10;
            random_logits(logits, position);
            assert_int_equal(choose(s, logits, position), defined(&s, logits, position));
        }
}

static void draws_follow_weights(void **state)
{
    float logits[VOCAB];
    uint32_t hits = 0, n = 20000;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = -1e30f;
    logits[7] = 0;
    logits[1900] = logf(3);
    struct nb_sampling s = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 42};
    for (uint32_t i = 0; i < n; i++)
        hits += choose(s, logits, i) == 1900;
    // Six standard deviations of a fair draw.
    assert_in_range(hits, n * 3 / 4 - 370, n * 3 / 4 + 370);
}

static void greedy_ties(void **state)
{
    float logits[VOCAB] = {0};
    logits[5] = logits[9] = 1;
    assert_int_equal(choose(NB_SAMPLING_GREEDY, logits, 0), 5);
}

static void penalty_counts_once(void **state)
{
    struct nb_sampling s = NB_SAMPLING_GREEDY;
    s.repeat_penalty = 2;
    s.repeat_window = 3;
    s.logprobs = true;
    float logits[4] = {4, 3, -1, 2.5f}, logprob;
    int32_t log[] = {1, 0, 0, 0}, token;
    assert_int_equal(nb_sample(&s, logits, 4, log, 4, 4, &token, &logprob), 0);
    // Token 0 halved once; token 1 lies before the window.
    assert_int_equal(token, 1);
    assert_true(logits[0] == 2 && logits[1] == 3 && logits[2] == -1);
    double sum = exp(4) + exp(3) + exp(-1) + exp(2.5);
    assert_true(fabs(logprob - (3 - log1p(sum - 1))) < 1e-6);
}

static void no_number(void **state)
{
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY};
    struct nb_sampling s = NB_SAMPLING_GREEDY;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t at = 0; at < 3; at++) {
            float logits[3] = {2, 3, 1};
            int32_t token = -2;
            logits[at] = odd[i];
            assert_int_equal(nb_sample(&s, logits, 3, NULL, 0, 0, &token, NULL), -EBADMSG);
            assert_int_equal(token, -2);
        }
}

// What a client may ask for, on logits that a model may have.
static void penalties_beyond_all_numbers(void **state)
{
    static const struct {
        float logit, penalty;
    } cases[] = {{20, 1e-38f}, {-1e38f, 100}};
    const int32_t log[] = {0, 1};
    for (size_t i = 0; i < 2; i++)
        for (int hot = 0; hot < 2; hot++) {
            float logits[2] = {cases[i].logit, cases[i].logit};
            int32_t token = -2;
            struct nb_sampling s = {.temperature = (float)hot,
                                    .top_p = 1,
                                    .repeat_penalty = cases[i].penalty,
                                    .repeat_window = 2};
            assert_int_equal(nb_sampling_check(&s), 0);
            assert_int_equal(nb_sample(&s, logits, 2, log, 2, 2, &token, NULL), -EDOM);
            assert_int_equal(token, -2);
        }
}

static void ranges(void **state)
{
    struct nb_sampling s = NB_SAMPLING_GREEDY;
    assert_int_equal(nb_sampling_check(&s), 0);
    struct nb_sampling bad[] = {s, s, s, s, s, s};
    bad[0].temperature = NAN;
    bad[1].temperature = -1;
    bad[2].top_p = 1.5f;
    bad[3].min_p = -0.1f;
    bad[4].repeat_penalty = 0;
    bad[5].repeat_window = NB_REPEAT_WINDOW_MAX + 1;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(nb_sampling_check(&bad[i]), -EINVAL);
}

// From candidates the same choice, or the same refusal, as from the row they are of.
static void same_from_candidates(const struct nb_sampling *s, const float *row, uint32_t position)
{
    static struct nb_candidate sorted[VOCAB];
    float scratch[VOCAB];
    int32_t want = -2, got = -2;
    uint32_t n = nb_sampling_suffices(s);
    assert_true(n > 0 && n <= NB_CANDIDATES_MAX);
    memcpy(scratch, row, sizeof(scratch));
    int rc = nb_sample(s, scratch, VOCAB, NULL, 0, position, &want, NULL);
    hard_sort(row, VOCAB, sorted);
    assert_int_equal(nb_sample_best(s, sorted, n, position, &got), rc);
    assert_int_equal(got, want);
}

static void candidates_suffice(void **state)
{
    static const struct nb_sampling cases[] = {
        {.top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 1, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.7f, .top_k = 40, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 0.8f, .top_k = 64, .top_p = 0.9f, .repeat_penalty = 1},
        {.temperature = 100, .top_k = 64, .top_p = 0.95f, .min_p = 0.9f, .repeat_penalty = 1},
        {.temperature = 1.5f, .top_k = 7, .top_p = 1, .min_p = 0.05f, .repeat_penalty = 2},
        {.temperature = 0.01f, .top_k = 20, .top_p = 0, .repeat_penalty = 1},
    };
    float row[VOCAB];
    for (uint32_t kind = 0; kind < HARD_ROWS; kind++)
        for (uint32_t position = 0; position < 20; position++) {
            hard_row(kind, position, row, VOCAB);
            for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                struct nb_sampling s = cases[i];
                s.seed = kind * 100 + i;
                same_from_candidates(&s, row, position);
            }
        }
}

static void candidates_do_not_suffice(void **state)
{
    static const struct nb_sampling cases[] = {
        {.top_p = 1, .repeat_penalty = 1, .logprobs = true},
        {.top_p = 1, .repeat_penalty = 1.1f, .repeat_window = 64},
        {.temperature = 1, .top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_p = 1, .top_k = 65, .repeat_penalty = 1},
        {.temperature = 1, .top_p = 1, .top_k = 4, .repeat_penalty = 1.1f, .repeat_window = 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(nb_sampling_suffices(&cases[i]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_vectors),
        cmocka_unit_test(equals_definition),
        cmocka_unit_test(draws_follow_weights),
        cmocka_unit_test(greedy_ties),
        cmocka_unit_test(penalty_counts_once),
        cmocka_unit_test(no_number),
        cmocka_unit_test(penalties_beyond_all_numbers),
        cmocka_unit_test(ranges),
        cmocka_unit_test(candidates_suffice),
        cmocka_unit_test(candidates_do_not_suffice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
