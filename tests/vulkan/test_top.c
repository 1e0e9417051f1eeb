// Candidates that the Vulkan device picks: those of any row are the best of its logits, in their
// order; a step gives them where they suffice and logits elsewhere; and what is chosen from them is
// what all logits give. On Mesa's CPU driver. Argument: a tier of shaders to force; in some the
// host finishes the choice, in others the device.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model.h"
#include "engine/vulkan/model.h"
#include "tensor/fail.h"
#include "tensor/type.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/hard_rows.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define MOST_VOCAB 19001 // of one row; the rows of a step's logits have room for it
#define PADDED     19008
#define ROWS       6
#define TEXT       12

static const char *device;
static struct nb_device_options usual = {.timeout_ms = 600000}; // a CPU's driver compiles long

static void open_model(const char *name, struct test_model *ret)
{
    const struct random_model shape = {2, 128, 192, 4, 2, 512, 11, NB_TYPE_Q4_1};
    const struct nb_model_options options = {
        .precision = NB_PRECISION_BALANCED, .max_context = 64, .max_rows = 64};
    struct nb_error error = {""};
    int fd = random_model_create(&shape);
    assert_true(fd >= 0);
    test_device(name);
    if (test_model_open_fd(fd, 1, &options, ret, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
}

static void check_order(const float *logits, uint32_t vocab, const struct nb_candidate *got,
                        uint32_t n)
{
    static struct nb_candidate want[MOST_VOCAB];
    hard_sort(logits, vocab, want);
    assert_memory_equal(got, want, n * sizeof(*want));
}

// --- The shader on rows that no model gives

// The best n of a row, or with n = 0 the row, as if the model had another vocabulary: the buffers
// hold it.
static void run_top(struct nb_device_model *m, const struct nb_vulkan_buffer *row, uint32_t vocab,
                    uint32_t n, void *ret)
{
    struct nb_vulkan_dispatch p = m->program.dispatches[m->program.top];
    const VkBufferCopy all = {.size = row->bytes};
    VkCommandBuffer c;
    struct push_top push;
    memcpy(&push, p.push, sizeof(push));
    push.vocab = vocab;
    push.in4 = nb_vulkan_pad(vocab, 16) / 4;
    memcpy(p.push, &push, sizeof(push));
    ((uint32_t *)m->buffers.step.map)[STEP_WANTED] = 1;
    ((uint32_t *)m->buffers.step.map)[m->tables.candidates] = n;
    assert_int_equal(nb_vulkan_begin(m->device, true, &c), 0);
    m->device->vk.CmdCopyBuffer(c, row->buffer, m->buffers.value[NB_VALUE_LOGITS].buffer, 1, &all);
    assert_int_equal(nb_vulkan_run_once(m->device, c), 0);
    assert_int_equal(nb_vulkan_begin(m->device, true, &c), 0);
    nb_vulkan_dispatch(&m->pipelines, c, 1, &p, 0);
    assert_int_equal(nb_vulkan_run_once(m->device, c), 0);
    const bool brings = m->extent.brings;
    if (n && !brings)
        nb_vulkan_top(row->map, vocab, m->buffers.best.map, ret, n);
    else
        memcpy(ret, (brings ? &m->buffers.best : &m->buffers.value[NB_VALUE_LOGITS])->map,
               n ? n * sizeof(struct nb_candidate) : vocab * sizeof(float));
}

static void any_row(void **state)
{
    static const uint32_t vocabs[] = {64, 65, 303, 2047, 2049, MOST_VOCAB}, counts[] = {1, 2, 64};
    static float same[MOST_VOCAB];
    struct nb_candidate got[NB_CANDIDATES_MAX];
    struct nb_vulkan_buffer row;
    struct test_model t;
    open_model(device, &t);
    struct nb_device_model *m = t.model->dm;
    assert_true(m->extent.wanted_rows * nb_vulkan_pad(RANDOM_VOCAB, 16) >= PADDED);
    assert_int_equal(nb_vulkan_buffer_init(m->device, PADDED * sizeof(float), NB_VULKAN_HOST, &row),
                     0);
    float *logits = row.map;
    for (uint32_t kind = 0; kind < HARD_ROWS; kind++)
        for (size_t v = 0; v < sizeof(vocabs) / sizeof(vocabs[0]); v++) {
            // What lies after the row is higher than all in it, and must not be seen.
            for (uint32_t i = 0; i < PADDED; i++)
                logits[i] = INFINITY;
            hard_row(kind, v, logits, vocabs[v]);
            for (size_t k = 0; k < sizeof(counts) / sizeof(counts[0]); k++) {
                run_top(m, &row, vocabs[v], counts[k], got);
                check_order(logits, vocabs[v], got, counts[k]);
            }
            run_top(m, &row, vocabs[v], 0, same);
            assert_memory_equal(logits, same, vocabs[v] * sizeof(float));
        }
    nb_vulkan_buffer_finish(m->device, &row);
    test_model_close(&t);
}

// --- Steps

static float *run_step(const struct nb_model *m, uint32_t candidates[ROWS])
{
    static const int32_t token[ROWS] = {5, 7, 7, 100, 299, 0};
    static const uint32_t position[ROWS] = {0, 1, 2, 3, 4, 5}, sequence[ROWS], blocks[] = {0};
    static const uint32_t *const table[] = {blocks};
    float *logits;
    struct nb_rows rows = {.n = ROWS,
                           .token = token,
                           .position = position,
                           .sequence = sequence,
                           .blocks = table,
                           .n_logits = ROWS,
                           .logits_row = position};
    rows.candidates = candidates;
    assert_int_equal(m->device->ops->step(m->dm, &rows, &logits), 0);
    return logits;
}

static void rows_of_a_step(void **state)
{
    static const uint32_t asked[ROWS] = {1, 0, 40, NB_CANDIDATES_MAX, 1, 0};
    static float want[ROWS][RANDOM_VOCAB];
    uint32_t given[ROWS], none[ROWS] = {0};
    struct test_model t;
    open_model(device, &t);
    memcpy(want, run_step(t.model, NULL), sizeof(want));
    assert_memory_equal(run_step(t.model, none), want, sizeof(want));
    memcpy(given, asked, sizeof(given));
    const float *got = run_step(t.model, given);
    assert_memory_equal(given, asked, sizeof(given));
    for (uint32_t i = 0; i < ROWS; i++) {
        const float *row = got + (size_t)i * RANDOM_VOCAB;
        if (given[i])
            check_order(want[i], RANDOM_VOCAB, (const struct nb_candidate *)row, given[i]);
        else
            assert_memory_equal(row, want[i], sizeof(want[i]));
    }
    test_model_close(&t);
    // The CPU says that it gives all.
    open_model("cpu", &t);
    run_step(t.model, given);
    assert_memory_equal(given, none, sizeof(given));
    test_model_close(&t);
}

// --- Texts

struct text {
    int32_t token[TEXT];
    uint32_t n;
};

static void on_token(void *user, int32_t token, float logprob)
{
    struct text *t = user;
    (void)logprob;
    assert_true(t->n < TEXT);
    t->token[t->n++] = token;
}

// Asking for log-probabilities takes all logits.
static void write_texts(struct nb_model *m, bool logprobs, struct text *ret, uint32_t n)
{
    static const struct nb_sampling how[] = {
        {.top_p = 1, .repeat_penalty = 1},
        {.temperature = 1, .top_k = 40, .top_p = 0.9f, .repeat_penalty = 1},
        {.temperature = 2, .top_k = 64, .top_p = 1, .min_p = 0.01f, .repeat_penalty = 1},
    };
    struct nb_sequence *s[sizeof(how) / sizeof(how[0])];
    nb_model_set_events(m, &(struct nb_model_events){.on_token = on_token});
    for (uint32_t i = 0; i < n; i++) {
        const int32_t prompt[] = {1, 2, 3 + (int32_t)i};
        struct nb_request r = {.max_tokens = TEXT, .sampling = how[i], .ignore_eos = true};
        r.sampling.seed = i;
        r.sampling.logprobs = logprobs;
        assert_int_equal(nb_sequence_create(m, &ret[i], &s[i]), 0);
        assert_int_equal(nb_sequence_set(s[i], 0, prompt, 3), 0);
        assert_int_equal(nb_sequence_start(s[i], &r), 0);
    }
    while (nb_model_has_work(m))
        assert_int_equal(nb_model_step(m, NULL), 1);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(ret[i].n, TEXT);
        nb_sequence_destroy(s[i]);
    }
}

static uint32_t steps(const struct nb_device_model *m, enum nb_vulkan_scope scope)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < NB_VULKAN_BUCKETS; b++)
        n += m->recordings.of[scope][b].steps;
    return n;
}

static void texts(void **state)
{
    static struct text want[3], got[3];
    struct test_model t;
    open_model(device, &t);
    const struct nb_device_model *m = t.model->dm;
    write_texts(t.model, true, want, 3);
    assert_int_equal(m->extent.brings, usual.tier != NULL);
    assert_int_equal(steps(m, NB_VULKAN_BEST) > 0, m->extent.brings);
    assert_int_equal(steps(m, NB_VULKAN_LOGITS) > 0, !m->extent.brings);
    write_texts(t.model, false, got, 3);
    assert_true(steps(m, NB_VULKAN_BEST) >= TEXT);
    assert_memory_equal(got, want, sizeof(want));
    test_model_close(&t);
}

static int find_device(void **state)
{
    device = test_cpu_driver();
    test_device_options(&usual);
    return device ? 0 : -1;
}

int main(int argc, char **argv)
{
    usual.tier = argc > 1 ? argv[1] : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_row),
        cmocka_unit_test(rows_of_a_step),
        cmocka_unit_test(texts),
    };
    return cmocka_run_group_tests(tests, find_device, NULL);
}
