// Speculative decoding: the tokens, their log-probabilities and the ends of plain decoding, on
// small random models. Argument: the device, "vulkan" for Mesa's CPU driver.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define MOST      200
#define SEQUENCES 4
#define PROMPT    40
#define GENERATED 60
#define CONTEXT   128

static const char *device = "cpu";

// What a sequence's events said.
struct record {
    struct nb_sequence *s;
    int32_t token[MOST];
    float logprob[MOST];
    uint32_t n, stop_after; // 0: never
    enum nb_finish finish;
    uint32_t finishes, proposed, accepted, length, computed;
};

static void on_token(void *user, int32_t token, float logprob)
{
    struct record *r = user;
    // A token is told when it is the log's last, whatever was proposed behind it.
    assert_int_equal(nb_sequence_tokens(r->s)[nb_sequence_length(r->s) - 1], token);
    r->token[r->n] = token;
    r->logprob[r->n++] = logprob;
    if (r->n == r->stop_after)
        nb_sequence_stop(r->s);
}

static void on_finish(void *user, enum nb_finish finish, int error)
{
    struct record *r = user;
    assert_int_equal(error, 0);
    r->finish = finish;
    r->finishes++;
}

// How a group of sequences is run. `contexts` of KV memory, steps of `max_rows`.
struct group {
    struct nb_sampling sampling;
    enum nb_drafts drafts;
    uint32_t sequences, max_rows, contexts, max_tokens, stop_after;
    bool parks;
};

#define GROUP                                                                                      \
    ((struct group){.sampling = NB_SAMPLING_GREEDY,                                                \
                    .sequences = SEQUENCES,                                                        \
                    .max_rows = 64,                                                                \
                    .contexts = SEQUENCES,                                                         \
                    .max_tokens = GENERATED})

static struct test_model t;       // open, as long as groups want the same
static struct test_model drafter; // of all models that are opened, or not open
static uint32_t rows_of_t, contexts_of_t;

static void close_model(struct test_model *of)
{
    test_model_close(of);
    *of = (struct test_model){.model = NULL};
}

// One whose second layer hardly looks back repeats itself sooner than others.
static void open_model(const struct group *g)
{
    if (t.model && rows_of_t == g->max_rows && contexts_of_t == g->contexts)
        return;
    close_model(&t);
    rows_of_t = g->max_rows;
    contexts_of_t = g->contexts;
    struct random_model r = RANDOM_MODEL;
    r.layers = 2;
    r.context = CONTEXT;
    r.seed = 2;
    // Two layers' K and V of 2 heads of 64, fp16.
    const uint64_t kv = (uint64_t)g->contexts * (CONTEXT / 32) * 2 * 2 * 2 * 64 * 32 * 2;
    struct nb_model_options o = {
        .precision = NB_PRECISION_FAST, .max_rows = g->max_rows, .kv_bytes = kv};
    struct nb_error error = {""};
    int fd = random_model_create_loud(&r, "blk.1.attn_norm.weight", 0.2F);
    assert_true(fd >= 0);
    test_device(device);
    if (test_model_open_fd(fd, 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    if (drafter.model && nb_model_draft_with(t.model, drafter.model, &error) < 0)
        fail_msg("%s", error.text);
    nb_model_set_events(t.model,
                        &(struct nb_model_events){.on_token = on_token, .on_finish = on_finish});
}

// A prompt that repeats itself, another for each sequence.
static void start(struct record *r, const struct group *g, uint32_t i)
{
    int32_t tokens[PROMPT];
    for (uint32_t j = 0; j < PROMPT; j++)
        tokens[j] = (int32_t)(nb_random(i, j % (9 + 4 * i)) % (RANDOM_VOCAB - 1));
    const struct nb_request q = {.max_tokens = g->max_tokens,
                                 .sampling = g->sampling,
                                 .ignore_eos = true,
                                 .drafts = g->drafts};
    *r = (struct record){.stop_after = g->stop_after};
    assert_int_equal(nb_sequence_create(t.model, r, &r->s), 0);
    assert_int_equal(nb_sequence_set(r->s, 0, tokens, PROMPT), 0);
    assert_int_equal(nb_sequence_start(r->s, &q), 0);
}

static void step(const struct group *g, struct record *r, uint32_t steps)
{
    struct nb_step_stats stats = {0};
    assert_true(steps < 10000);
    if (g->parks)
        nb_sequence_park(r[0].s, steps < 100 && steps % 5 > 2);
    int rc = nb_model_step(t.model, &stats);
    assert_true(rc == 1 || (rc == 0 && g->parks));
    assert_true(stats.decode_rows + stats.prefill_rows + stats.drafted_rows <= g->max_rows);
    assert_true(stats.accepted <= stats.drafted_rows);
    assert_true(!stats.drafted_rows || !stats.prefill_rows);
}

static bool has_work(const struct group *g, const struct record *r)
{
    for (uint32_t i = 0; i < g->sequences; i++)
        if (r[i].s->active)
            return true;
    return false;
}

static void run(const struct group *g, struct record *r)
{
    open_model(g);
    for (uint32_t i = 0; i < g->sequences; i++)
        start(&r[i], g, i);
    for (uint32_t steps = 0; has_work(g, r); steps++)
        step(g, r, steps);
    for (uint32_t i = 0; i < g->sequences; i++) {
        nb_sequence_drafts(r[i].s, &r[i].proposed, &r[i].accepted);
        r[i].length = nb_sequence_length(r[i].s);
        r[i].computed = nb_sequence_computed(r[i].s);
        nb_sequence_destroy(r[i].s);
    }
}

// Returns how many tokens were accepted with drafts.
static uint32_t assert_same_bytes(struct group g)
{
    static struct record plain[SEQUENCES], drafted[SEQUENCES];
    uint32_t accepted = 0;
    g.drafts = NB_DRAFTS_OFF;
    run(&g, plain);
    for (g.drafts = NB_DRAFTS_MEASURED; g.drafts <= NB_DRAFTS_ALWAYS; g.drafts++) {
        accepted = 0;
        run(&g, drafted);
        for (uint32_t i = 0; i < g.sequences; i++) {
            const struct record *a = &plain[i], *b = &drafted[i];
            assert_int_equal(a->proposed, 0);
            assert_int_equal(a->n, b->n);
            assert_memory_equal(a->token, b->token, a->n * sizeof(*a->token));
            assert_memory_equal(a->logprob, b->logprob, a->n * sizeof(*a->logprob));
            assert_int_equal(a->finish, b->finish);
            assert_int_equal(a->finishes, b->finishes);
            assert_int_equal(a->length, b->length);
            assert_true(b->computed < b->length && b->accepted <= b->proposed);
            accepted += b->accepted;
        }
    }
    return accepted;
}

static void greedy(void **state)
{
    struct group g = GROUP;
    assert_true(assert_same_bytes(g) > SEQUENCES * GENERATED / 4);
    g.sampling.logprobs = true; // by the logits, where a device gives candidates else
    assert_true(assert_same_bytes(g) > SEQUENCES * GENERATED / 4);
}

static void sampled(void **state)
{
    uint32_t accepted = 0;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct group g = GROUP;
        g.sampling.temperature = seed % 2 ? 0.2F : 0.6F;
        g.sampling.top_k = seed % 3 ? 0 : 20; // 20: by candidates, where a device gives them
        g.sampling.top_p = 0.9F;
        g.sampling.seed = seed;
        g.sampling.logprobs = seed == 4;
        accepted += assert_same_bytes(g);
    }
    assert_true(accepted > 0);
}

// The penalty looks at the log of each position.
static void penalties(void **state)
{
    uint32_t accepted = 0;
    for (uint32_t window = 4; window <= 64; window *= 4) {
        struct group g = GROUP;
        g.sampling.repeat_penalty = 1.02F;
        g.sampling.repeat_window = window;
        accepted += assert_same_bytes(g);
    }
    assert_true(accepted > 0);
}

static void limits_within_accepted_tokens(void **state)
{
    uint32_t accepted = 0;
    for (uint32_t n = 1; n <= 40; n += 3) {
        struct group g = GROUP;
        g.max_tokens = n;
        accepted += assert_same_bytes(g);
        g.max_tokens = GENERATED;
        g.stop_after = n; // as a stop string does
        accepted += assert_same_bytes(g);
    }
    struct group g = GROUP;
    g.max_tokens = MOST; // past the context
    accepted += assert_same_bytes(g);
    assert_true(accepted > SEQUENCES * GENERATED);
}

static void few_rows_and_blocks(void **state)
{
    static const uint32_t rows[] = {1, 6, 11};
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct group g = GROUP;
        g.max_rows = rows[i];
        g.contexts = 1;
        (void)assert_same_bytes(g);
        g.parks = true;
        (void)assert_same_bytes(g);
    }
}

// A next turn and a rollback: what is in the cache is the log's, not what was once proposed.
static void turns(void **state)
{
    int32_t log[2][MOST], more[12];
    for (uint32_t with = 0; with < 2; with++) {
        struct group g = GROUP;
        struct record r;
        g.drafts = with ? NB_DRAFTS_ALWAYS : NB_DRAFTS_OFF;
        open_model(&g);
        start(&r, &g, 1);
        for (uint32_t turn = 0; turn < 4; turn++) {
            r.stop_after = r.n + 13 + turn;
            for (uint32_t steps = 0; r.s->active; steps++)
                step(&g, &r, steps);
            const uint32_t base = nb_sequence_length(r.s) - 7 * (turn % 2 + 1);
            memcpy(more, nb_sequence_tokens(r.s) + 3, sizeof(more));
            assert_int_equal(nb_sequence_set(r.s, base, more, 12), 0);
            const struct nb_request q = {
                .max_tokens = 20, .sampling = g.sampling, .ignore_eos = true, .drafts = g.drafts};
            assert_int_equal(nb_sequence_start(r.s, &q), 0);
        }
        for (uint32_t steps = 0; r.s->active; steps++)
            step(&g, &r, steps);
        assert_true(nb_sequence_length(r.s) <= MOST);
        memcpy(log[with], nb_sequence_tokens(r.s), nb_sequence_length(r.s) * sizeof(int32_t));
        memset(log[with] + nb_sequence_length(r.s), 0,
               (MOST - nb_sequence_length(r.s)) * sizeof(int32_t));
        nb_sequence_destroy(r.s);
    }
    assert_memory_equal(log[0], log[1], sizeof(log[0]));
}

// The model itself proposes what it will choose, sampled tokens too; another one with the same
// tokens, here of other weights, what it would.
static void open_drafter(uint64_t seed, uint32_t context)
{
    struct random_model r = RANDOM_MODEL;
    r.layers = 2;
    r.context = context;
    r.seed = seed;
    struct nb_model_options o = {.precision = NB_PRECISION_FAST};
    struct nb_error error = {""};
    int fd = random_model_create_loud(&r, "blk.1.attn_norm.weight", 0.2F);
    assert_true(fd >= 0);
    close_model(&t);
    test_device(device);
    if (test_model_open_fd(fd, 1, &o, &drafter, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
}

static void close_drafter(void)
{
    struct nb_error error;
    if (t.model)
        assert_int_equal(nb_model_draft_with(t.model, NULL, &error), 0);
    close_model(&t);
    close_model(&drafter);
}

static void a_drafter_of_the_same_weights(void **state)
{
    open_drafter(2, CONTEXT);
    struct group g = GROUP;
    // All that the log does not propose, but for what is left over at the end.
    assert_true(assert_same_bytes(g) > SEQUENCES * GENERATED * 7 / 10);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        g.sampling = (struct nb_sampling){.temperature = 1,
                                          .top_p = 0.95F,
                                          .repeat_penalty = 1.1F,
                                          .repeat_window = 32,
                                          .seed = seed,
                                          .logprobs = seed == 2};
        assert_true(assert_same_bytes(g) > SEQUENCES * GENERATED * 7 / 10);
    }
    close_drafter();
}

static void a_drafter_of_other_weights(void **state)
{
    for (uint32_t context = CONTEXT / 2; context <= 2 * CONTEXT; context *= 4) {
        open_drafter(3, context);
        struct group g = GROUP;
        (void)assert_same_bytes(g);
        g.sampling.temperature = 0.8F;
        (void)assert_same_bytes(g);
        g.max_rows = 6;
        g.contexts = 1;
        (void)assert_same_bytes(g);
        g.parks = true;
        (void)assert_same_bytes(g);
        close_drafter();
    }
    open_drafter(3, CONTEXT);
    turns(state);
    close_drafter();
}

static int choose_device(void **state)
{
    if (!strcmp(device, "vulkan"))
        device = test_cpu_driver();
    return device ? 0 : -1;
}

static int close_last(void **state)
{
    close_model(&t);
    return 0;
}

int main(int argc, char **argv)
{
    device = argc > 1 ? argv[1] : device;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy),
        cmocka_unit_test(sampled),
        cmocka_unit_test(penalties),
        cmocka_unit_test(limits_within_accepted_tokens),
        cmocka_unit_test(few_rows_and_blocks),
        cmocka_unit_test(turns),
        cmocka_unit_test(a_drafter_of_the_same_weights),
        cmocka_unit_test(a_drafter_of_other_weights),
    };
    return cmocka_run_group_tests(tests, choose_device, close_last);
}
