// Runs sequences to their end, and says how long it took.
#include "tests/support/sequences.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int test_sequences_create(struct test_sequences *s, struct nb_model *m, uint32_t n)
{
    int rc = n > TEST_SEQUENCES ? -EINVAL : 0;
    *s = (struct test_sequences){.model = m};
    while (rc == 0 && s->n < n)
        if ((rc = nb_sequence_create(m, NULL, &s->of[s->n])) == 0)
            s->n++;
    if (rc < 0)
        test_sequences_destroy(s);
    return rc;
}

void test_sequences_destroy(struct test_sequences *s)
{
    while (s->n > 0)
        nb_sequence_destroy(s->of[--s->n]);
}

static int set_random(const struct test_sequences *s, uint32_t i, uint32_t n)
{
    struct nb_model_info info;
    int32_t *tokens = malloc(n * sizeof(*tokens));
    if (!tokens)
        return -ENOMEM;
    nb_model_info(s->model, &info);
    for (uint32_t j = 0; j < n; j++)
        tokens[j] = (int32_t)(nb_random(i, j) % info.vocab);
    int rc = nb_sequence_set(s->of[i], 0, tokens, n);
    free(tokens);
    return rc;
}

double test_sequences_run(struct test_sequences *s, uint32_t n, uint32_t prompt, uint32_t gen)
{
    const struct nb_request r = {
        .max_tokens = gen, .sampling = NB_SAMPLING_GREEDY, .ignore_eos = true};
    int rc = 0;
    for (uint32_t i = 0; i < n && prompt && rc == 0; i++)
        rc = set_random(s, i, prompt);
    double begin = now();
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = nb_sequence_start(s->of[i], &r);
    while (rc >= 0 && nb_model_has_work(s->model))
        rc = nb_model_step(s->model, NULL);
    return rc < 0 ? rc : now() - begin;
}
