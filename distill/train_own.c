// Windows that the student writes itself (generalised knowledge distillation: Agarwal and others,
// arXiv 2306.13649): from a prompt of the window's first tokens, each next token drawn from the
// student's probabilities as they are in this step. The teacher says of the same tokens what it
// would have said, so that the student learns where its own words lead it.
#include <errno.h>
#include <string.h>

#include "distill/train_room.h"
#include "engine/sampler.h"

#define PROMPT 4 // the window's first tokens are one of so many parts

// So many of all batches' windows, and of each batch as even as can be; one of a batch stays the
// text's, unless all are the student's.
uint32_t nb_train_own(const struct nb_train *t, uint32_t number)
{
    const struct nb_train_options *o = &t->options;
    const double each = (double)o->own * o->batch;
    const uint64_t until = (uint64_t)(each * (number + 1.0)), before = (uint64_t)(each * number);
    const uint32_t n = (uint32_t)(until - before), most = o->own < 1 ? o->batch - 1 : o->batch;
    return n < most ? n : most;
}

// x_L of each window's last row of tokens [from, at), one behind the other, to t->d. Those before
// are in the cache.
static int run_prompts(struct nb_train *t, uint32_t from, uint32_t at, struct nb_error *e)
{
    const uint32_t length = t->windows->length, n = at - from;
    const size_t row = t->plan->hp.embedding;
    for (uint32_t i = 0; i < t->n_own; i++)
        t->sequence[i] = (struct nb_grad_sequence){t->own + (size_t)i * length + from, n, from};
    int rc = nb_grad_batch(t->grad, t->sequence, t->n_own, e);
    if (rc == 0)
        rc = nb_grad_forward(t->grad, t->x, (size_t)t->rows * row);
    for (uint32_t i = 0; i < t->n_own && rc == 0; i++)
        memcpy(t->d + i * row, t->x + (((size_t)i + 1) * n - 1) * row, row * sizeof(*t->d));
    return rc;
}

static int draw(const struct nb_train *t, float *logits, uint32_t batch, uint32_t window,
                uint32_t at)
{
    const uint32_t length = t->windows->length;
    const struct nb_sampling how = {
        .temperature = 1,
        .top_p = 1,
        .repeat_penalty = 1,
        .seed = nb_random(t->options.seed, ((uint64_t)batch << 32) + window)};
    int32_t *tokens = t->own + (size_t)window * length;
    const int rc = nb_sample(&how, logits, t->plan->hp.vocab, tokens, at, at, &tokens[at], NULL);
    return rc == -EBADMSG ? -EDOM : rc;
}

static int write_token(struct nb_train *t, uint32_t number, uint32_t from, uint32_t at,
                       struct nb_error *e)
{
    const size_t row = t->plan->hp.embedding, vocab = t->plan->hp.vocab;
    int rc = run_prompts(t, from, at, e);
    for (uint32_t i = 0, n; i < t->n_own && rc == 0; i += n) {
        n = t->n_own - i < NB_TRAIN_SLICE ? t->n_own - i : NB_TRAIN_SLICE;
        rc = nb_grad_head(t->grad, n, t->d + i * row, NULL, t->logits);
        for (uint32_t j = 0; j < n && rc == 0; j++)
            rc = draw(t, t->logits + j * vocab, number, i + j, at);
    }
    return rc;
}

int nb_train_write_own(struct nb_train *t, uint32_t number, struct nb_error *e)
{
    const uint32_t length = t->windows->length;
    const uint32_t prompt = length >= PROMPT ? length / PROMPT : 1;
    uint32_t all;
    int rc = 0;
    for (uint32_t i = 0; i < t->n_own; i++)
        memcpy(t->own + (size_t)i * length, nb_window(t->windows, t->chosen[i], &all),
               prompt * sizeof(*t->own));
    // Without a cache (a device has none) all of a window is run for each token.
    nb_grad_continue(t->grad, t->cache);
    for (uint32_t at = prompt, from = 0; at < length && t->n_own && rc == 0; at++) {
        rc = write_token(t, number, from, at, e);
        from = t->cache ? at : 0;
    }
    nb_grad_continue(t->grad, NULL);
    return rc;
}
