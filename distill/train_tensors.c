// What moves in training, and where it begins: all of a model's tensors, or the factors of an
// adapter beside some matrices. Steps and states know neither from the other.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "distill/train_room.h"
#include "engine/sampler.h"

#define DEVIATION 0.02 // of random weights
#define STR(s)    (int)(s).len, (s).data

static double uniform(uint64_t seed, uint64_t i)
{
    return ((double)(nb_random(seed, i) >> 11) + 0.5) * 0x1p-53;
}

// NULL: there is no memory for it.
static struct nb_trained *add(struct nb_train *t, struct nb_str name, const char *suffix,
                              uint32_t rows, uint32_t cols)
{
    struct nb_trained *w = &t->tensors[t->n_tensors++];
    const size_t n = (size_t)rows * cols, room = (n + 15) / 16 * 16;
    const size_t blocks = (n + NB_ADAM_BLOCK - 1) / NB_ADAM_BLOCK;
    const bool coded = t->options.coded_moments;
    *w = (struct nb_trained){.rows = rows, .cols = cols, .decays = true, .floats = n};
    snprintf(w->name, sizeof(w->name), "%.*s%s", STR(name), suffix);
    w->state_floats =
        room + (coded ? blocks * sizeof(struct nb_adam_block) / sizeof(float) : 2 * room);
    w->x = nb_grad_floats(w->state_floats);
    w->gradient = nb_grad_floats(n);
    if (!w->x || !w->gradient)
        return NULL;
    memset(w->x, 0, w->state_floats * sizeof(*w->x));
    w->first = coded ? NULL : w->x + room;
    w->second = coded ? NULL : w->first + room;
    w->moments = coded ? (struct nb_adam_block *)(w->x + room) : NULL;
    return w;
}

static int fail_memory(struct nb_error *e)
{
    return nb_fail(e, -ENOMEM,
                   "no memory for the weights that are trained, their gradients and moments: 16 "
                   "bytes a weight, with moments of 8 bits 10 (--moments int8)");
}

// --- All tensors

// By Box and Muller.
static void randomize(uint64_t seed, struct nb_str name, struct nb_trained *w)
{
    const uint64_t own = XXH3_64bits_withSeed(name.data, name.len, seed);
    for (size_t i = 0; i < w->floats; i++)
        w->x[i] = (float)(DEVIATION * sqrt(-2 * log(uniform(own, 2 * i))) *
                          cos(2 * M_PI * uniform(own, 2 * i + 1)));
}

static int add_tensor(struct nb_train *t, struct nb_grad_tensor *g, struct nb_error *e)
{
    struct nb_trained *w = add(t, g->name, "", g->experts * g->rows, g->cols);
    if (!w)
        return fail_memory(e);
    w->decays = g->matrix != NULL;
    w->tensor = g;
    if (g->matrix && t->options.random)
        randomize(t->options.seed, g->name, w);
    else
        nb_grad_dequantize(t->grad, g, w->x);
    g->values = w->x;
    g->gradient = w->gradient;
    return 0;
}

// --- An adapter

// The layer of "blk.LAYER.ROLE.weight", and its role; false: it is no such name.
static bool split_name(struct nb_str name, uint32_t *ret_layer, struct nb_str *ret_role)
{
    static const char suffix[] = ".weight";
    const size_t after = sizeof(suffix) - 1;
    *ret_layer = nb_arch_layer(name, ret_role);
    if (*ret_layer == NB_NO_LAYER || ret_role->len <= after)
        return false;
    ret_role->len -= after;
    return !memcmp(ret_role->data + ret_role->len, suffix, after);
}

static bool is_adapted(const struct nb_adapter_choice *how, const struct nb_grad_tensor *g,
                       uint32_t *ret_layer, struct nb_str *ret_role)
{
    if (!g->matrix || !split_name(g->name, ret_layer, ret_role))
        return false;
    for (uint32_t i = 0; i < how->n_roles; i++)
        if (strlen(how->roles[i]) == ret_role->len &&
            !memcmp(how->roles[i], ret_role->data, ret_role->len))
            return true;
    return how->n_roles == 0;
}

static int check_matrix(const struct nb_adapter_choice *how, const struct nb_grad_tensor *g,
                        struct nb_error *e)
{
    const uint32_t most = g->rows < g->cols ? g->rows : g->cols;
    if (g->experts > 1)
        return nb_fail(e, -ENOTSUP,
                       "tensor %.*s has %u experts, and adapters are of matrices without: name "
                       "those (--adapter-matrices)",
                       STR(g->name), g->experts);
    if (how->rank > most)
        return nb_fail(e, -EINVAL,
                       "the adapter's rank is %u, and tensor %.*s has %u rows of %u: it is %u at "
                       "most (--adapter-rank)",
                       how->rank, STR(g->name), g->rows, g->cols, most);
    return 0;
}

// A uniformly random, as Kaiming's way is for layers without an activation; B zero, so that
// training begins at the model as it is.
static int add_factors(struct nb_train *t, struct nb_grad_tensor *g, struct nb_grad_factors *f,
                       struct nb_error *e)
{
    const struct nb_adapter_choice *how = &t->options.adapter;
    int rc = check_matrix(how, g, e);
    if (rc < 0)
        return rc;
    struct nb_trained *a = add(t, g->name, ".lora_a", how->rank, g->cols);
    struct nb_trained *b = add(t, g->name, ".lora_b", g->rows, how->rank);
    if (!a || !b)
        return fail_memory(e);
    const uint64_t own = XXH3_64bits_withSeed(g->name.data, g->name.len, t->options.seed);
    const double most = 1 / sqrt(g->cols);
    for (size_t i = 0; i < a->floats; i++)
        a->x[i] = (float)(most * (2 * uniform(own, i) - 1));
    *f = (struct nb_grad_factors){
        how->rank, how->alpha / (float)how->rank, a->x, b->x, a->gradient, b->gradient};
    g->factors = f;
    return 0;
}

static int add_adapter(struct nb_train *t, struct nb_grad_tensor *all, uint32_t n,
                       struct nb_error *e)
{
    uint32_t layer, found = 0;
    struct nb_str role;
    int rc = 0;
    t->factors = calloc(n + 1, sizeof(*t->factors));
    if (!t->factors)
        return fail_memory(e);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        if (is_adapted(&t->options.adapter, &all[i], &layer, &role))
            rc = add_factors(t, &all[i], &t->factors[found++], e);
    }
    if (rc == 0 && found == 0)
        return nb_fail(e, -EINVAL, "the model's layers have no matrix for an adapter");
    return rc;
}

// Each role has to be that of some matrix.
static int check_roles(const struct nb_train *t, const struct nb_grad_tensor *all, uint32_t n,
                       struct nb_error *e)
{
    struct nb_adapter_choice one = {.n_roles = 1}, any = {0};
    struct nb_str role;
    char has[256] = "";
    uint32_t layer;
    for (uint32_t i = 0; i < t->options.adapter.n_roles; i++) {
        uint32_t j = 0;
        memcpy(one.roles[0], t->options.adapter.roles[i], sizeof(one.roles[0]));
        while (j < n && !is_adapted(&one, &all[j], &layer, &role))
            j++;
        if (j < n)
            continue;
        for (j = 0; j < n; j++)
            if (is_adapted(&any, &all[j], &layer, &role) && layer == 0 &&
                strlen(has) + role.len + 3 < sizeof(has))
                sprintf(has + strlen(has), "%s%.*s", *has ? ", " : "", STR(role));
        return nb_fail(e, -EINVAL,
                       "no layer has a matrix \"%s\" (--adapter-matrices); the first has %s",
                       one.roles[0], *has ? has : "none");
    }
    return 0;
}

// --- The projection of hidden states

// The student's channels in their places among the teacher's, where these are known; else uniform,
// so that what is projected has about the size of what is not.
static void begin_projection(const struct nb_train *t, struct nb_trained *p)
{
    const double most = sqrt(3.0 / p->cols);
    const uint64_t own = XXH3_64bits_withSeed(p->name, strlen(p->name), t->options.seed);
    for (uint32_t i = 0; i < p->cols && t->options.channel; i++)
        p->x[(size_t)t->options.channel[i] * p->cols + i] = 1;
    for (size_t i = 0; i < p->floats && !t->options.channel; i++)
        p->x[i] = (float)(most * (2 * uniform(own, i) - 1));
}

static int add_projection(struct nb_train *t, struct nb_error *e)
{
    const struct nb_str name = {"projection", 10};
    const uint32_t from = t->plan->hp.embedding;
    if (!t->teacher_plan || !(t->options.hidden > 0) || t->teacher_plan->hp.embedding == from)
        return 0;
    t->projection = add(t, name, "", t->teacher_plan->hp.embedding, from);
    if (!t->projection)
        return fail_memory(e);
    begin_projection(t, t->projection);
    return 0;
}

int nb_train_add_tensors(struct nb_train *t, struct nb_error *e)
{
    uint32_t n;
    struct nb_grad_tensor *all = nb_grad_tensors(t->grad, &n);
    int rc = 0;
    t->tensors = calloc(2 * (size_t)n + 2, sizeof(*t->tensors));
    if (!t->tensors)
        return fail_memory(e);
    if (t->options.adapter.rank) {
        rc = check_roles(t, all, n, e);
        rc = rc == 0 ? add_adapter(t, all, n, e) : rc;
    }
    for (uint32_t i = 0; i < n && rc == 0 && !t->options.adapter.rank; i++)
        rc = add_tensor(t, &all[i], e);
    return rc == 0 ? add_projection(t, e) : rc;
}
