// Opening the engine, and the batch that it computes.
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "grad/room.h"

struct units {
    nb_unit_fn *fn;
    void *arg;
    uint32_t n;
    atomic_uint next;
};

static void run_units(void *arg, uint32_t thread)
{
    struct units *u = arg;
    for (uint32_t i; (i = atomic_fetch_add_explicit(&u->next, 1, memory_order_relaxed)) < u->n;)
        u->fn(u->arg, i, thread);
}

void nb_each(struct nb_team *team, uint32_t n, nb_unit_fn *fn, void *arg)
{
    struct units u = {fn, arg, n, 0};
    nb_team_run(team, run_units, &u);
}

// --- Opening

// A row of the residual stream or of RoPE's angles, or what attention asks for.
static int make_scratch(struct nb_grad *g, struct nb_error *error)
{
    const struct nb_hparams *hp = &g->plan->hp;
    size_t n = nb_attend_scratch(hp);
    n = n > hp->embedding ? n : hp->embedding;
    n = n > hp->rope_dims ? n : hp->rope_dims;
    g->scratch_floats = (n + 15) / 16 * 16;
    g->scratch = aligned_alloc(64, nb_team_size(g->team) * g->scratch_floats * sizeof(*g->scratch));
    return g->scratch ? 0 : nb_fail(error, -ENOMEM, "out of memory");
}

int nb_grad_open_on(const struct nb_plan *plan, struct nb_team *team, struct nb_device *device,
                    struct nb_grad **ret, struct nb_error *ret_error)
{
    if (!plan->begins || !plan->ends)
        return nb_fail(ret_error, -EINVAL, "the float engine takes whole models");
    struct nb_grad *g = calloc(1, sizeof(*g));
    if (!g)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    g->plan = plan;
    g->team = team;
    g->backend = &nb_backend_cpu;
    g->kernels = nb_kernels_best();
    g->loops = nb_loops_best();
    int rc =
        g->loops ? 0 : nb_fail(ret_error, -EINVAL, "NIBBLE_ISA names a level that this CPU lacks");
    if (rc == 0)
        rc = make_scratch(g, ret_error);
    if (rc == 0)
        rc = nb_tensors_create(g, ret_error);
    if (rc == 0)
        rc = nb_spans_create(g, ret_error);
    if (rc == 0 && device)
        rc = nb_grad_vulkan_open(g, device, ret_error);
    if (rc < 0) {
        nb_grad_close(g);
        return rc;
    }
    *ret = g;
    return 0;
}

int nb_grad_open(const struct nb_plan *plan, struct nb_team *team, struct nb_grad **ret,
                 struct nb_error *ret_error)
{
    return nb_grad_open_on(plan, team, NULL, ret, ret_error);
}

void nb_grad_changed(struct nb_grad *g)
{
    g->changed++;
}

static void finish_batch(struct nb_batch *b)
{
    free(b->sequence);
    free(b->token);
    free(b->position);
    free(b->rope);
}

void nb_grad_close(struct nb_grad *g)
{
    if (!g)
        return;
    if (g->backend->close)
        g->backend->close(g);
    nb_spans_destroy(g);
    finish_batch(&g->batch);
    nb_tape_finish(&g->values);
    nb_tape_finish(&g->gradients);
    free(g->floats.memory);
    free(g->floats.seen);
    free(g->floats.low);
    free(g->floats.coded);
    free(g->floats.narrow[0]);
    free(g->floats.narrow[1]);
    free(g->tensors);
    free(g->scratch);
    free(g);
}

void nb_grad_narrow(struct nb_grad *g, bool bf16)
{
    g->bf16 = bf16;
}

void nb_grad_see(struct nb_grad *g, nb_grad_see_fn *fn, void *user)
{
    g->see = fn;
    g->see_user = user;
}

void nb_grad_tap(struct nb_grad *g, uint32_t layer, float *const *ret, const float *const *d)
{
    g->tap = (struct nb_tap){.layer = layer};
    for (uint32_t i = 0; i < 3; i++) {
        g->tap.ret[i] = ret ? ret[i] : NULL;
        g->tap.d[i] = d ? d[i] : NULL;
    }
}

// --- Batches

static int check_sequence(const struct nb_hparams *hp, const struct nb_grad_sequence *s,
                          uint32_t number, struct nb_error *error)
{
    if (s->n == 0)
        return nb_fail(error, -EINVAL, "sequence %u of the batch has no tokens", number);
    if (s->n > hp->context || s->position > hp->context - s->n)
        return nb_fail(error, -EINVAL,
                       "sequence %u of the batch ends at position %llu, past the context of %u",
                       number, (unsigned long long)s->position + s->n, hp->context);
    for (uint32_t i = 0; i < s->n; i++)
        if (s->token[i] < 0 || (uint32_t)s->token[i] >= hp->vocab)
            return nb_fail(error, -EINVAL,
                           "token %d of sequence %u of the batch is outside the vocabulary of %u",
                           s->token[i], number, hp->vocab);
    return 0;
}

static int check_batch(const struct nb_hparams *hp, const struct nb_grad_sequence *sequence,
                       uint32_t n, uint32_t *ret_rows, struct nb_error *error)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        int rc = check_sequence(hp, &sequence[i], i, error);
        if (rc < 0)
            return rc;
        rows += sequence[i].n;
    }
    if (rows == 0)
        return nb_fail(error, -EINVAL, "the batch has no sequences");
    if (rows > NB_GRAD_ROWS)
        return nb_fail(error, -E2BIG, "a batch of %llu tokens; the limit is %u",
                       (unsigned long long)rows, NB_GRAD_ROWS);
    *ret_rows = (uint32_t)rows;
    return 0;
}

static int reserve_batch(const struct nb_hparams *hp, struct nb_batch *b)
{
    b->sequence = calloc(b->n_sequences + 1, sizeof(*b->sequence));
    b->token = calloc(b->rows + 1, sizeof(*b->token));
    b->position = calloc(b->rows + 1, sizeof(*b->position));
    b->rope = calloc((size_t)b->rows * hp->n_ropes * hp->rope_dims + 1, sizeof(*b->rope));
    return b->sequence && b->token && b->position && b->rope ? 0 : -ENOMEM;
}

struct turning {
    const struct nb_hparams *hp;
    const struct nb_batch *batch;
};

static void turn_row(void *arg, uint32_t row, uint32_t thread)
{
    const struct turning *t = arg;
    nb_rope_row(t->hp, t->batch->position[row],
                t->batch->rope + (size_t)row * t->hp->n_ropes * t->hp->rope_dims);
}

static void fill_batch(struct nb_batch *b, const struct nb_grad_sequence *sequence)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->n_sequences; i++) {
        b->sequence[i] = sequence[i];
        b->sequence[i].token = b->token + row;
        memcpy(b->token + row, sequence[i].token, sequence[i].n * sizeof(*b->token));
        for (uint32_t t = 0; t < sequence[i].n; t++)
            b->position[row++] = sequence[i].position + t;
    }
}

int nb_grad_batch(struct nb_grad *g, const struct nb_grad_sequence *sequence, uint32_t n,
                  struct nb_error *ret_error)
{
    struct nb_batch b = {.n_sequences = n};
    int rc = check_batch(&g->plan->hp, sequence, n, &b.rows, ret_error);
    if (rc == 0 && g->cache && !nb_cache_fits(g->cache, sequence, n))
        rc = nb_fail(ret_error, -EINVAL, "a batch of other sequences than those that go on");
    if (rc < 0)
        return rc;
    if (reserve_batch(&g->plan->hp, &b) < 0) {
        finish_batch(&b);
        return nb_fail(ret_error, -ENOMEM, "out of memory for a batch of %u tokens", b.rows);
    }
    fill_batch(&b, sequence);
    struct turning t = {&g->plan->hp, &b};
    nb_each(g->team, b.rows, turn_row, &t);
    rc = g->backend->batch ? g->backend->batch(g, &b, ret_error) : 0;
    finish_batch(rc < 0 ? &b : &g->batch);
    if (rc == 0)
        g->batch = b;
    return rc;
}
