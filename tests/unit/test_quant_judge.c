// What a judge measures, beside the plain sum over the same logits; and what the sensitivity and
// the errors of rounding say of it before anything is measured.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quant/costs.h"
#include "quant/judge.h"
#include "quant/variant.h"
#include "tests/support/pack.h"
#include "tests/support/random_model.h"

#define WINDOWS 5
#define LENGTH  40
#define VOCAB   RANDOM_VOCAB

struct machine {
    struct nb_source *source;
    struct nb_windows windows;
    struct nb_team *team;
    struct nb_judge *judge;
};

static int open_with(struct machine *m, uint32_t threads)
{
    const struct random_model r = {2, 128, 192, 4, 2, 128, 1, NB_TYPE_F32};
    struct nb_error error = {""};
    const int file = random_model_create(&r);
    assert_int_equal(test_open_source(file, &m->source, &error), 0);
    m->windows = (struct nb_windows){
        .n = WINDOWS, .length = LENGTH, .tokens = calloc(WINDOWS * LENGTH, sizeof(int32_t))};
    for (int32_t i = 0; i < WINDOWS * LENGTH; i++)
        m->windows.tokens[i] = i * i % 7 * 31 % VOCAB;
    assert_int_equal(nb_team_create(threads, &m->team), 0);
    const struct nb_judging how = {.source = m->source, .windows = &m->windows, .team = m->team};
    assert_int_equal(nb_judge_open(&how, &m->judge, &error), 0);
    return 0;
}

static void close_machine(struct machine *m)
{
    nb_judge_close(m->judge);
    nb_team_destroy(m->team);
    nb_windows_finish(&m->windows);
    nb_source_close(m->source);
}

// All logits, [WINDOWS * LENGTH][VOCAB].
static double *all_logits(const struct machine *m, struct nb_plan *replaced)
{
    const struct nb_running how = {
        .source = m->source, .length = LENGTH, .batch = 1, .rows = LENGTH};
    double *z = calloc((size_t)WINDOWS * LENGTH * VOCAB, sizeof(*z));
    struct nb_runner *r = NULL;
    struct nb_error error = {""};
    assert_int_equal(nb_runner_open(&how, &r, &error), 0);
    for (uint32_t i = 0; replaced && i < replaced->n_matrices; i++)
        (void)nb_plan_replace(r->plan, replaced->matrices[i].name, &replaced->matrices[i].packed,
                              replaced->matrices[i].apart);
    for (uint32_t w = 0; w < WINDOWS; w++) {
        float *logits;
        assert_int_equal(nb_runner_step(r, m->windows.tokens + w * LENGTH, 0, LENGTH, &logits), 0);
        for (uint32_t i = 0; i < LENGTH * VOCAB; i++)
            z[w * LENGTH * VOCAB + i] = (double)logits[i];
    }
    nb_runner_close(r);
    return z;
}

static void log_softmax(double *z)
{
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        sum += exp(z[i]);
    for (uint32_t i = 0; i < VOCAB; i++)
        z[i] -= log(sum);
}

static struct nb_divergence plainly(const struct machine *m)
{
    double *p = all_logits(m, NULL), *q = all_logits(m, nb_judge_plan(m->judge));
    double kl[WINDOWS] = {0}, mean = 0, squares = 0;
    for (uint32_t row = 0; row < WINDOWS * LENGTH; row++) {
        double *a = p + (size_t)row * VOCAB, *b = q + (size_t)row * VOCAB;
        log_softmax(a);
        log_softmax(b);
        for (uint32_t i = 0; i < VOCAB; i++)
            kl[row / LENGTH] += exp(a[i]) * (a[i] - b[i]) / LENGTH;
    }
    for (uint32_t w = 0; w < WINDOWS; w++)
        mean += kl[w] / WINDOWS;
    for (uint32_t w = 0; w < WINDOWS; w++)
        squares += (kl[w] - mean) * (kl[w] - mean);
    free(p);
    free(q);
    return (struct nb_divergence){mean, sqrt(squares / (WINDOWS - 1) / WINDOWS), WINDOWS * LENGTH};
}

static struct nb_variant *vary(const struct machine *m, uint64_t bytes)
{
    const struct nb_varying how = {
        .source = m->source, .plan = nb_judge_plan(m->judge), .team = m->team, .bytes = bytes};
    struct nb_variant *v = NULL;
    assert_int_equal(nb_variant_create(&how, &v), 0);
    return v;
}

static uint32_t number_of(const struct nb_source *s, const char *name)
{
    uint32_t i = 0;
    while (s->tensors[i].name.len != strlen(name) ||
           memcmp(s->tensors[i].name.data, name, strlen(name)) != 0)
        i++;
    return i;
}

static struct nb_divergence measured(const struct machine *m)
{
    struct nb_divergence d;
    struct nb_error error = {""};
    assert_int_equal(nb_judge_measure(m->judge, &d, &error), 0);
    return d;
}

static void judge_is_the_plain_sum(void **state)
{
    struct machine m;
    struct nb_error error = {""};
    open_with(&m, 2);
    struct nb_variant *v = vary(&m, 0);
    assert_true(measured(&m).mean < 3e-6); // bfloat16
    static const struct {
        const char *name;
        uint32_t type;
    } steps[] = {{"blk.0.ffn_up.weight", NB_TYPE_Q4_0},
                 {"blk.1.attn_q.weight", NB_TYPE_Q2_0},
                 {"token_embd.weight", NB_TYPE_Q5_1},
                 {"blk.0.ffn_up.weight", NB_TYPE_Q8_0}};
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        assert_int_equal(
            nb_variant_set(v, number_of(m.source, steps[i].name), steps[i].type, &error), 0);
        const struct nb_divergence d = measured(&m), plain = plainly(&m);
        assert_true(fabs(d.mean - plain.mean) < 3e-6 + 0.01 * plain.mean);
        assert_true(fabs(d.error - plain.error) < 3e-6 + 0.02 * plain.error);
        assert_int_equal(d.tokens, WINDOWS * LENGTH);
    }
    nb_judge_close(m.judge);
    m.judge = NULL;
    nb_variant_destroy(v);
    close_machine(&m);
}

// The same bits for any number of threads, and with copies that were thrown away.
static void threads_do_not_show(void **state)
{
    double first = 0;
    for (uint32_t threads = 1; threads < 4; threads++) {
        struct machine m;
        struct nb_error error = {""};
        open_with(&m, threads);
        struct nb_variant *v = vary(&m, threads == 2 ? 1 << 20 : 0);
        const uint32_t up = number_of(m.source, "blk.0.ffn_up.weight");
        const uint32_t types[] = {NB_TYPE_Q4_0, NB_TYPE_Q8_0, NB_TYPE_Q4_0};
        for (int i = 0; i < 3; i++)
            assert_int_equal(nb_variant_set(v, up, types[i], &error), 0);
        const double found = measured(&m).mean;
        assert_true(threads == 1 || found == first);
        first = found;
        nb_judge_close(m.judge);
        m.judge = NULL;
        nb_variant_destroy(v);
        close_machine(&m);
    }
}

static void sums_of(const struct machine *m, uint32_t threads, struct nb_sensitivity *ret)
{
    struct nb_error error = {""};
    struct nb_team *team;
    assert_int_equal(nb_team_create(threads, &team), 0);
    assert_int_equal(nb_sensitivity_init(ret, nb_judge_plan(m->judge)), 0);
    for (uint32_t i = 0; i < ret->n; i++) {
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)ret->items[i].name.len, ret->items[i].name.data);
        const struct nb_source_tensor *t = &m->source->tensors[number_of(m->source, name)];
        assert_int_equal(nb_costs_weigh(m->source, t, NULL, &ret->items[i], &error), 0);
    }
    for (uint64_t batch = 0; batch < 6; batch++)
        assert_int_equal(nb_sensitivity_add(ret, nb_judge_plan(m->judge), team, m->windows.tokens,
                                            WINDOWS, LENGTH, batch, &error),
                         0);
    assert_int_equal(ret->tokens, 6 * WINDOWS * LENGTH);
    nb_team_destroy(team);
}

static struct nb_packed packed_of(const struct nb_plan *plan, struct nb_str name)
{
    uint32_t i = 0;
    while (plan->matrices[i].name.len != name.len ||
           memcmp(plan->matrices[i].name.data, name.data, name.len) != 0)
        i++;
    return plan->matrices[i].packed;
}

static void compare(const struct machine *m, const struct nb_sensitivity *s, const char *name)
{
    static const uint32_t type = NB_TYPE_Q4_0;
    const uint32_t tensor = number_of(m->source, name);
    const struct nb_source_tensor *t = &m->source->tensors[tensor];
    struct nb_plan *plan = nb_judge_plan(m->judge);
    const struct nb_packed before = packed_of(plan, t->name);
    struct nb_variant *v = vary(m, 0);
    struct nb_error error = {""};
    double relative;
    assert_int_equal(nb_costs_errors(m->source, t, NULL, m->team, &type, 1, &relative, &error), 0);
    assert_int_equal(nb_variant_set(v, tensor, type, &error), 0);
    const double found = measured(m).mean;
    const double said = relative * nb_sensitivity_find(s, t->name)->sum / 2 / (double)s->tokens;
    print_message("%-26s predicted %.2e, measured %.2e\n", name, said, found);
    assert_true(said > found / 2 && said < found * 2);
    assert_int_equal(nb_plan_replace(plan, t->name, &before, 0), 0);
    nb_variant_destroy(v);
}

// What rounding a matrix to 4 bits costs, within a factor of two of what is measured.
static void costs_predict(void **state)
{
    static const char *const names[] = {"blk.0.ffn_up.weight", "blk.1.ffn_down.weight",
                                        "blk.0.attn_v.weight", "blk.1.attn_output.weight"};
    struct nb_sensitivity s, other;
    struct machine m;
    open_with(&m, 2);
    sums_of(&m, 2, &s);
    sums_of(&m, 1, &other);
    for (uint32_t i = 0; i < s.n; i++)
        assert_true(s.items[i].sum == other.items[i].sum && s.items[i].sum > 0);
    nb_sensitivity_finish(&other);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        compare(&m, &s, names[i]);
    nb_sensitivity_finish(&s);
    close_machine(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judge_is_the_plain_sum),
        cmocka_unit_test(threads_do_not_show),
        cmocka_unit_test(costs_predict),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
