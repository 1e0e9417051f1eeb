// See allocation.h.
#include "quant/allocation.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "quant/allocation_room.h"
#include "quant/costs.h"
#include "quant/search.h"
#include "tensor/convert.h"
#include "tensor/type.h"

#define BATCH  1024                  // tokens of a batch of the sensitivity, or one window
#define COPIES (UINT64_C(384) << 20) // bytes of compressed tensors that wait to be used again
#define ERRORS 4096                  // tokens that trying all types counts as

static const struct nb_allocation_effort efforts[] = {
    [NB_PACE_FAST] = {4, 1, 0, 0},
    [NB_PACE_NORMAL] = {8, 3, 1, 24},
    [NB_PACE_BEST] = {16, 6, 2, 120},
};

// What is chosen among unless the recipe says it: what the encoders write well, 2 to 8 bits.
static const uint32_t usual[] = {
    NB_TYPE_Q2_0, NB_TYPE_Q2_K, NB_TYPE_Q3_K, NB_TYPE_IQ4_XS, NB_TYPE_IQ4_NL,
    NB_TYPE_Q4_0, NB_TYPE_Q4_K, NB_TYPE_Q4_1, NB_TYPE_Q5_0,   NB_TYPE_Q5_K,
    NB_TYPE_Q5_1, NB_TYPE_Q6_K, NB_TYPE_Q8_0,
};

int nb_allocation_create(const struct nb_source *source, const struct nb_recipe *recipe,
                         struct nb_allocation **ret)
{
    struct nb_allocation *a = calloc(1, sizeof(*a));
    if (!a)
        return -ENOMEM;
    a->source = source;
    a->target = *nb_recipe_target(recipe);
    a->effort = efforts[a->target.effort];
    if (!a->target.n_types) {
        memcpy(a->target.types, usual, sizeof(usual));
        a->target.n_types = sizeof(usual) / sizeof(usual[0]);
    }
    a->errors = calloc(source->n_tensors + 1, sizeof(*a->errors));
    if (!a->errors) {
        free(a);
        return -ENOMEM;
    }
    *ret = a;
    return 0;
}

static void finish_run(struct nb_allocation *a)
{
    nb_sensitivity_finish(&a->sensitivity);
    nb_judge_close(a->judge);
    nb_variant_destroy(a->variant);
    free(a->tensor);
    free(a->group);
    free(a->items);
    free(a->options);
    free(a->type);
    a->judge = NULL;
    a->variant = NULL;
    a->tensor = a->group = a->type = NULL;
    a->items = NULL;
    a->options = NULL;
}

void nb_allocation_destroy(struct nb_allocation *a)
{
    if (!a)
        return;
    free(a->sums);
    free(a->errors);
    free(a->measurements);
    free(a->types);
    free(a);
}

const uint32_t *nb_allocation_types(const struct nb_allocation *a)
{
    return a->types;
}

const struct nb_allocated *nb_allocation_result(const struct nb_allocation *a)
{
    return a->types ? &a->result : NULL;
}

// ---- Telling

static int keep(struct nb_allocation *a, enum nb_allocation_record kind, const void *data,
                size_t bytes)
{
    return a->run->keep(a->run->user, kind, data, (uint32_t)bytes);
}

static int tell(struct nb_allocation *a, const char *what, uint64_t tokens)
{
    int rc = a->run->progress(a->run->user, what, a->progress);
    a->progress += tokens;
    return rc < 0 ? nb_fail(a->error, rc, "cancelled") : 0;
}

// ---- The sensitivity

static int weigh(struct nb_allocation *a)
{
    int rc = 0;
    for (uint32_t i = 0; i < a->source->n_tensors && rc == 0; i++) {
        const struct nb_source_tensor *t = &a->source->tensors[i];
        struct nb_sensitive *to = nb_sensitivity_find(&a->sensitivity, t->name);
        float *importance = NULL;
        if (!to)
            continue;
        rc = nb_importance_weights(a->run->importance, t, &importance, a->error);
        if (rc == 0)
            rc = nb_costs_weigh(a->source, t, importance, to, a->error);
        free(importance);
    }
    return rc;
}

// The windows of a batch, evenly over all of the calibration's; again from the first where there
// are too few: other tokens are drawn on them.
static void gather(const struct nb_allocation *a, uint32_t batch, uint32_t each, int32_t *ret)
{
    const struct nb_windows *w = a->run->windows;
    const uint64_t all = (uint64_t)each * a->effort.batches;
    for (uint32_t i = 0; i < each; i++) {
        const uint64_t number = (uint64_t)batch * each + i;
        const uint64_t at = all < w->n ? number * w->n / all : number % w->n;
        memcpy(ret + (size_t)i * w->length, w->tokens + at * w->length, w->length * sizeof(*ret));
    }
}

static int keep_batch(struct nb_allocation *a)
{
    const uint32_t n = a->sensitivity.n;
    const size_t bytes = sizeof(a->tokens) + n * sizeof(double);
    uint8_t *record = malloc(bytes);
    if (!record)
        return nb_fail(a->error, -ENOMEM, "no memory for the model's sensitivity");
    memcpy(record, &a->sensitivity.tokens, sizeof(a->tokens));
    for (uint32_t i = 0; i < n; i++)
        memcpy(record + sizeof(a->tokens) + i * sizeof(double), &a->sensitivity.items[i].sum,
               sizeof(double));
    int rc = nb_allocation_restore(a, NB_ALLOCATION_BATCH, record, (uint32_t)bytes);
    rc = rc == 0 ? keep(a, NB_ALLOCATION_BATCH, record, bytes)
                 : nb_fail(a->error, -ENOMEM, "no memory for the model's sensitivity");
    free(record);
    return rc;
}

static int add_batches(struct nb_allocation *a, uint32_t each, int32_t *tokens)
{
    const uint32_t length = a->run->windows->length;
    const uint64_t passes = 4 * (uint64_t)each * length;
    int rc = a->batches < a->effort.batches ? weigh(a) : 0;
    a->progress += a->batches * passes;
    while (a->batches < a->effort.batches && rc == 0) {
        rc = tell(a, "sensitivity", passes);
        gather(a, a->batches, each, tokens);
        if (rc == 0)
            rc = nb_sensitivity_add(&a->sensitivity, nb_judge_plan(a->judge), a->run->judging.team,
                                    tokens, each, length, a->batches, a->error);
        if (rc == 0)
            rc = keep_batch(a);
    }
    return rc;
}

static int measure_sensitivity(struct nb_allocation *a)
{
    const struct nb_windows *w = a->run->windows;
    const uint32_t each = w->length < BATCH ? BATCH / w->length : 1;
    int32_t *tokens = calloc((size_t)each * w->length, sizeof(*tokens));
    if (!tokens || nb_sensitivity_init(&a->sensitivity, nb_judge_plan(a->judge)) < 0) {
        free(tokens);
        return nb_fail(a->error, -ENOMEM, "no memory for the model's sensitivity");
    }
    int rc = 0;
    if (a->sums && a->n_matrices != a->sensitivity.n)
        rc = nb_fail(a->error, -ESTALE, "the job's journal is of another model");
    for (uint32_t i = 0; a->sums && rc == 0 && i < a->n_matrices; i++)
        a->sensitivity.items[i].sum = a->sums[i];
    a->sensitivity.tokens = a->tokens;
    if (rc == 0)
        rc = add_batches(a, each, tokens);
    free(tokens);
    return rc;
}

// ---- The errors of rounding

// Of the types whose blocks divide the rows; of others infinite.
static int try_tensor(struct nb_allocation *a, uint32_t i)
{
    const struct nb_source_tensor *t = &a->source->tensors[i];
    uint32_t types[NB_RECIPE_TYPES], place[NB_RECIPE_TYPES] = {0}, n = 0;
    double found[NB_RECIPE_TYPES];
    float *importance = NULL;
    for (uint32_t k = 0; k < a->target.n_types; k++) {
        a->errors[i][k] = INFINITY;
        if (t->dims[0] % nb_type_info(a->target.types[k])->block)
            continue;
        place[n] = k;
        types[n++] = a->target.types[k];
    }
    int rc = nb_importance_weights(a->run->importance, t, &importance, a->error);
    if (rc == 0)
        rc = nb_costs_errors(a->source, t, importance, a->run->judging.team, types, n, found,
                             a->error);
    for (uint32_t k = 0; k < n && rc == 0; k++)
        a->errors[i][place[k]] = found[k];
    free(importance);
    return rc;
}

static int try_types(struct nb_allocation *a)
{
    const struct nb_source *s = a->source;
    int rc = 0;
    for (; a->n_errors < s->n_tensors && rc == 0; a->n_errors++) {
        const uint32_t i = a->n_errors;
        rc = tell(a, "trying types", ERRORS / (s->n_tensors + 1));
        if (rc == 0 && !a->run->choices[i].fixed)
            rc = try_tensor(a, i);
        if (rc == 0)
            rc = keep(a, NB_ALLOCATION_TENSOR, a->errors[i], a->target.n_types * sizeof(double));
    }
    return rc;
}

// ---- The search

static uint32_t type_of(const struct nb_allocation *a, uint32_t item, uint8_t option)
{
    return a->type[(size_t)item * NB_RECIPE_TYPES + option];
}

static int apply(struct nb_allocation *a, const uint8_t *choice)
{
    int rc = 0;
    for (uint32_t i = 0; i < a->n_items && rc == 0; i++)
        rc = nb_variant_set(a->variant, a->tensor[i], type_of(a, i, choice[i]), a->error);
    return rc;
}

static int on_measure(void *user, const uint8_t *choice, double *ret, struct nb_error *e)
{
    struct nb_allocation *a = user;
    struct nb_measurement m = {.hash = XXH3_64bits(choice, a->n_items)};
    struct nb_divergence found = {0};
    char what[48];
    const uint32_t n = a->n_used++;
    snprintf(what, sizeof(what), "measuring choice %u", n + 1);
    int rc = tell(a, what, (uint64_t)a->run->judging.windows->n * a->run->judging.windows->length);
    if (rc == 0 && n < a->n_measurements && a->measurements[n].hash == m.hash) {
        *ret = a->measurements[n].divergence;
        return 0;
    }
    a->n_measurements = n; // what was measured of another choice
    if (rc == 0)
        rc = apply(a, choice);
    if (rc == 0)
        rc = nb_judge_measure(a->judge, &found, e);
    if (rc < 0)
        return rc;
    *ret = m.divergence = found.mean;
    rc = nb_allocation_restore(a, NB_ALLOCATION_MEASUREMENT, &m, sizeof(m));
    return rc == 0 ? keep(a, NB_ALLOCATION_MEASUREMENT, &m, sizeof(m))
                   : nb_fail(e, rc, "no memory for a measurement");
}

// What the recipe names has its type from the first on.
static int make_variant(struct nb_allocation *a)
{
    const struct nb_varying how = {.source = a->source,
                                   .importance = a->run->importance,
                                   .plan = nb_judge_plan(a->judge),
                                   .team = a->run->judging.team,
                                   .bytes = COPIES};
    int rc = nb_variant_create(&how, &a->variant);
    if (rc < 0)
        return nb_fail(a->error, rc, "no memory for the list of tensors");
    for (uint32_t i = 0; i < a->source->n_tensors && rc == 0; i++) {
        const struct nb_source_tensor *t = &a->source->tensors[i];
        if (a->run->choices[i].fixed && !nb_convert_is_single(t) &&
            nb_sensitivity_find(&a->sensitivity, t->name))
            rc = nb_variant_set(a->variant, i, a->run->choices[i].type, a->error);
    }
    return rc;
}

static int finish(struct nb_allocation *a, const struct nb_found *found)
{
    const uint32_t n = a->source->n_tensors;
    const size_t bytes = sizeof(a->result) + n * sizeof(*a->types);
    const struct nb_allocated result = {
        .predicted = nb_allocate_cost(a->items, a->n_items, found->choice),
        .first = found->first,
        .measured = found->measured,
        .bytes = a->fixed + nb_allocate_bytes(a->items, a->n_items, found->choice),
        .n_measurements = found->n_measurements};
    uint8_t *record = malloc(bytes);
    uint32_t *types = record ? (uint32_t *)(void *)(record + sizeof(result)) : NULL;
    if (!record)
        return nb_fail(a->error, -ENOMEM, "no memory for the allocation");
    memcpy(record, &result, sizeof(result));
    for (uint32_t i = 0; i < n; i++)
        types[i] = a->run->choices[i].type;
    for (uint32_t i = 0; i < a->n_items; i++)
        types[a->tensor[i]] = type_of(a, i, found->choice[i]);
    int rc = nb_allocation_restore(a, NB_ALLOCATION_RESULT, record, (uint32_t)bytes);
    if (rc == 0)
        rc = keep(a, NB_ALLOCATION_RESULT, record, bytes);
    free(record);
    return rc;
}

static int search(struct nb_allocation *a)
{
    struct nb_found found = {.choice = calloc(a->n_items + 1, 1)};
    struct nb_search s = {.items = a->items,
                          .group = a->group,
                          .n = a->n_items,
                          .n_groups = a->n_groups,
                          .most = a->target.value,
                          .rounds = a->effort.rounds,
                          .swaps = a->effort.swaps,
                          .measure = on_measure,
                          .user = a};
    int rc = found.choice ? nb_allocation_budget(a, &s.budget)
                          : nb_fail(a->error, -ENOMEM, "no memory for the allocation");
    if (rc == 0)
        rc = make_variant(a);
    if (rc == 0 && (rc = nb_search_run(&s, &found, a->error)) == -ERANGE && !s.budget)
        nb_fail(a->error, rc,
                "no file of these types has a divergence of %g: with the most bytes it is %.3g",
                a->target.value, found.measured);
    if (rc == 0)
        rc = finish(a, &found);
    free(found.choice);
    return rc;
}

// ---- All

uint64_t nb_allocation_tokens(const struct nb_recipe *recipe)
{
    const struct nb_recipe_target *t = nb_recipe_target(recipe);
    const struct nb_sampling_plan plan = nb_recipe_calibration(recipe);
    const struct nb_allocation_effort *e = &efforts[t->effort];
    const uint64_t held_out = (uint64_t)plan.held_out * plan.length;
    const struct nb_search s = {.n_groups = 8 * e->depths,
                                .budget = t->kind != NB_TARGET_KLD,
                                .rounds = e->rounds,
                                .swaps = e->swaps};
    const uint64_t batch = plan.length < BATCH ? BATCH : plan.length;
    return (1 + nb_search_measurements(&s)) * held_out + 4 * e->batches * batch + ERRORS;
}

static int run(struct nb_allocation *a)
{
    const struct nb_judging *judging = &a->run->judging;
    a->progress = 0;
    a->n_used = 0;
    int rc = tell(a, "the float model", (uint64_t)judging->windows->n * judging->windows->length);
    if (rc == 0)
        rc = nb_judge_open(judging, &a->judge, a->error);
    if (rc == 0)
        rc = measure_sensitivity(a);
    if (rc == 0)
        rc = try_types(a);
    if (rc == 0)
        rc = nb_allocation_make_items(a);
    return rc == 0 ? search(a) : rc;
}

int nb_allocation_run(struct nb_allocation *a, const struct nb_allocation_run *how,
                      struct nb_error *ret_error)
{
    a->run = how;
    a->error = ret_error;
    int rc = run(a);
    finish_run(a);
    return rc;
}
