// Models that compute numbers which are not finite, though their weights are: whatever is asked of
// them ends with an error that names the op and layer where it began, others go on, and no number
// comes of it. Arguments: "vulkan" for Mesa's CPU driver instead of the CPU, and a tier of its
// shaders.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tensor/type.h"
#include "tensor/fail.h"
#include "tests/support/cpu_driver.h"
#include "tests/support/model_file.h"
#include "tests/support/random_model.h"

#define PROMPT 40

static const char *device = "cpu", *tier;

struct record {
    struct nb_sequence *s;
    uint32_t tokens, rows, finishes;
    enum nb_finish finish;
    int error;
};

static void on_token(void *user, int32_t token, float logprob)
{
    struct record *r = user;
    (void)token;
    (void)logprob;
    r->tokens++;
}

static void on_logits(void *user, uint32_t position, const float *logits, uint32_t vocab)
{
    struct record *r = user;
    (void)position;
    r->rows++;
    for (uint32_t i = 0; i < vocab; i++)
        assert_true(isfinite(logits[i]));
}

static void on_finish(void *user, enum nb_finish finish, int error)
{
    struct record *r = user;
    r->finish = finish;
    r->error = error;
    r->finishes++;
}

static struct test_model open_model(const char *on, int type, const char *norm, float value,
                                    enum nb_kv_type kv_type)
{
    const struct random_model shape = {3, 256, 256, 4, 2, 512, 5, type};
    const struct nb_model_options o = {
        .precision = NB_PRECISION_BALANCED, .kv_type = kv_type, .max_rows = 64, .max_context = 128};
    const struct nb_device_options how = {.timeout_ms = 600000, .tier = tier};
    struct test_model t;
    struct nb_error error = {""};
    int fd = norm ? random_model_create_loud(&shape, norm, value) : random_model_create(&shape);
    assert_true(fd >= 0);
    test_device(on);
    test_device_options(&how);
    if (test_model_open_fd(fd, 1, &o, &t, &error) < 0)
        fail_msg("%s", error.text);
    close(fd);
    nb_model_set_events(t.model, &(struct nb_model_events){.on_token = on_token,
                                                           .on_logits = on_logits,
                                                           .on_finish = on_finish});
    return t;
}

static void begin(struct test_model *t, struct record *r, const struct nb_request *request)
{
    int32_t tokens[PROMPT];
    *r = (struct record){0};
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(i * 7 % 256);
    assert_int_equal(nb_sequence_create(t->model, r, &r->s), 0);
    assert_int_equal(nb_sequence_set(r->s, 0, tokens, PROMPT), 0);
    assert_int_equal(nb_sequence_start(r->s, request), 0);
}

static void run(const struct test_model *t)
{
    for (uint32_t steps = 0; nb_model_has_work(t->model); steps++) {
        assert_true(steps < 1000);
        assert_int_equal(nb_model_step(t->model, NULL), 1);
    }
}

static const struct nb_request
    greedy = {.max_tokens = 5, .ignore_eos = true, .sampling = {.top_p = 1, .repeat_penalty = 1}},
    warm = {.max_tokens = 5,
            .ignore_eos = true,
            .sampling = {.temperature = 1, .top_k = 40, .top_p = 1, .repeat_penalty = 1}},
    every = {.max_tokens = 5,
             .ignore_eos = true,
             .sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .logprobs = true}},
    score = {.score = true, .sampling = {.top_p = 1, .repeat_penalty = 1}};

static void expect(const char *on, int type, const char *norm, float value, enum nb_kv_type kv_type,
                   const char *where)
{
    const struct nb_request *const requests[] = {&greedy, &warm, &every, &score};
    struct test_model t = open_model(on, type, norm, value, kv_type);
    struct record r[4];
    for (int i = 0; i < 4; i++)
        begin(&t, &r[i], requests[i]);
    run(&t);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(r[i].finishes, 1);
        assert_int_equal(r[i].tokens + r[i].rows, 0);
        assert_int_equal(r[i].finish, NB_FINISH_ERROR);
        assert_int_equal(r[i].error, -EBADMSG);
        if (!strstr(nb_sequence_error(r[i].s), where))
            fail_msg("%s, %s: \"%s\" does not say \"%s\"", on, norm, nb_sequence_error(r[i].s),
                     where);
    }
    print_message("%s: %s\n", on, nb_sequence_error(r[0].s));
    for (int i = 0; i < 4; i++)
        nb_sequence_destroy(r[i].s);
    test_model_close(&t);
}

// Wherever it begins, whatever the type of the matrices that read it: codes hide no NaN.
static void first_op_is_named(void **state)
{
    static const int types[] = {NB_TYPE_F32, NB_TYPE_Q4_1, NB_TYPE_Q8_0, NB_TYPE_Q6_K};
    const size_t n = strcmp(device, "cpu") ? 2 : 4;
    for (size_t i = 0; i < n; i++) {
        expect(device, types[i], "blk.1.ffn_norm.weight", 1e30f, NB_KV_F16, "gate_up of layer 1");
        expect(device, types[i], "output_norm.weight", 3e38f, NB_KV_F16, "the head");
    }
    // Rows whose squares overflow have no norm: what reads them is where it begins.
    expect(device, NB_TYPE_F32, "blk.0.ffn_norm.weight", 1e13f, NB_KV_F16, "qkv of layer 1");
    expect(device, NB_TYPE_Q4_1, "blk.0.ffn_norm.weight", 1e13f, NB_KV_F16, "qkv of layer 1");
    expect(device, NB_TYPE_Q4_1, "blk.2.attn_norm.weight", 3e38f, NB_KV_Q8_0, "qkv of layer 2");
}

static void parts_of_a_split(void **state)
{
    char name[64];
    snprintf(name, sizeof(name), "cpu:1+%s", device);
    expect(name, NB_TYPE_Q4_1, "blk.0.ffn_norm.weight", 1e30f, NB_KV_F16, "gate_up of layer 0");
    expect(name, NB_TYPE_Q4_1, "blk.2.ffn_norm.weight", 1e30f, NB_KV_F16, "gate_up of layer 2");
}

// A request that is stopped or whose sequence goes while the cause is looked for.
static void ends_while_looking(void **state)
{
    struct test_model t = open_model(device, NB_TYPE_Q4_1, "output_norm.weight", 3e38f, NB_KV_F16);
    for (int how = 0; how < 3; how++) {
        struct record a, b;
        begin(&t, &a, &greedy);
        begin(&t, &b, &score);
        assert_int_equal(nb_model_step(t.model, NULL), 1); // both fail; one is looked at
        if (how == 0)
            nb_sequence_stop(a.s);
        else if (how == 1)
            nb_sequence_park(a.s, true);
        else
            nb_sequence_destroy(a.s);
        run(&t);
        assert_int_equal(a.finishes, 0);
        assert_int_equal(b.finishes, 1);
        assert_non_null(strstr(nb_sequence_error(b.s), "the head"));
        if (how == 1) {
            nb_sequence_park(a.s, false);
            run(&t);
            assert_int_equal(a.finishes, 1);
        }
        if (how < 2)
            nb_sequence_destroy(a.s);
        nb_sequence_destroy(b.s);
    }
    struct record last;
    begin(&t, &last, &greedy);
    assert_int_equal(nb_model_step(t.model, NULL), 1);
    nb_sequence_destroy(last.s);
    test_model_close(&t);
}

// A penalty that leaves nothing is the request's fault, and said so.
static void penalty_is_named(void **state)
{
    struct test_model t = open_model(device, NB_TYPE_F32, NULL, 0, NB_KV_F16);
    struct nb_request request = greedy;
    struct record r;
    request.sampling.repeat_penalty = 1e-40f;
    request.sampling.repeat_window = PROMPT;
    begin(&t, &r, &request);
    run(&t);
    assert_int_equal(r.finish, NB_FINISH_ERROR);
    assert_int_equal(r.error, -EDOM);
    assert_non_null(strstr(nb_sequence_error(r.s), "repetition penalty of"));
    nb_sequence_destroy(r.s);
    test_model_close(&t);
}

static int find_device(void **state)
{
    if (!strcmp(device, "vulkan"))
        device = test_cpu_driver();
    return device ? 0 : -1;
}

int main(int argc, char **argv)
{
    device = argc > 1 ? argv[1] : device;
    tier = argc > 2 ? argv[2] : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_op_is_named),
        cmocka_unit_test(parts_of_a_split),
        cmocka_unit_test(ends_while_looking),
        cmocka_unit_test(penalty_is_named),
    };
    return cmocka_run_group_tests(tests, find_device, NULL);
}
