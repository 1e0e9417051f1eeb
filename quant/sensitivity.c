// See sensitivity.h. Forward through all layers, then back; the head in slices of rows, because
// logits are large.
#include "quant/sensitivity.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "grad/grad.h"

#define SLICE 128 // rows of the head

// ---- Sums

int nb_sensitivity_init(struct nb_sensitivity *s, const struct nb_plan *plan)
{
    const struct nb_matrix **list = calloc(plan->n_matrices + 1, sizeof(*list));
    *s = (struct nb_sensitivity){.items = calloc(plan->n_matrices + 1, sizeof(*s->items))};
    int rc = list && s->items ? 0 : -ENOMEM;
    const uint32_t n = rc == 0 ? nb_plan_list_matrices(plan, list) : 0;
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        struct nb_sensitive *w = &s->items[s->n];
        *w =
            (struct nb_sensitive){.name = list[i]->name, .rows = list[i]->packed.rows * list[i]->n};
        w->weight = calloc(w->rows, sizeof(*w->weight));
        rc = w->weight ? 0 : -ENOMEM;
        s->n += rc == 0;
    }
    free(list);
    if (rc < 0)
        nb_sensitivity_finish(s);
    return rc;
}

void nb_sensitivity_finish(struct nb_sensitivity *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        free(s->items[i].weight);
    free(s->items);
    *s = (struct nb_sensitivity){0};
}

struct nb_sensitive *nb_sensitivity_find(const struct nb_sensitivity *s, struct nb_str name)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->items[i].name.len == name.len && !memcmp(s->items[i].name.data, name.data, name.len))
            return &s->items[i];
    return NULL;
}

// ---- A batch

struct batch {
    struct nb_sensitivity *s;
    const struct nb_plan *plan;
    struct nb_team *team;
    struct nb_grad *g;
    uint32_t rows, embedding;
    uint64_t draw;
    float *x; // [n_layers + 1][rows][embedding]
    float *d; // [rows][embedding]
    float *logits;
    const struct nb_grad_tensor *t; // whose squares are summed,
    double *squares;                // row by row
    uint32_t first, n;              // rows of a slice of the head
    atomic_uint next;
};

static size_t size_of(const struct nb_grad_tensor *t)
{
    return (size_t)t->experts * t->rows * t->cols;
}

// The gradients of what these ops multiply by are wanted from now on.
static int want(struct batch *b, uint32_t first, uint32_t end)
{
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(b->g, &n);
    for (uint32_t op = first; op < end; op++)
        for (uint32_t i = 0; b->plan->ops[op].w && i < n; i++)
            if (t[i].matrix == b->plan->ops[op].w && !t[i].gradient &&
                !(t[i].gradient = calloc(size_of(&t[i]), sizeof(float))))
                return -ENOMEM;
    return 0;
}

static void square_rows(void *arg, uint32_t thread)
{
    struct batch *b = arg;
    const uint32_t rows = b->t->experts * b->t->rows;
    (void)thread;
    for (uint32_t row; (row = atomic_fetch_add(&b->next, 1)) < rows;) {
        const float *g = b->t->gradient + (size_t)row * b->t->cols;
        double sum = 0;
        for (uint32_t k = 0; k < b->t->cols; k++)
            sum += (double)g[k] * (double)g[k];
        b->squares[row] = sum;
    }
}

static int reap_tensor(struct batch *b, struct nb_grad_tensor *t)
{
    struct nb_sensitive *to = nb_sensitivity_find(b->s, t->name);
    b->t = t;
    b->squares = calloc(to->rows, sizeof(*b->squares));
    if (!b->squares)
        return -ENOMEM;
    atomic_store(&b->next, 0);
    nb_team_run(b->team, square_rows, b);
    for (uint32_t i = 0; i < to->rows; i++)
        to->sum += to->weight[i] * b->squares[i];
    free(b->squares);
    free(t->gradient);
    t->gradient = NULL;
    return 0;
}

// Adds the gradients of what these ops multiply by to the sums, and lets go of them.
static int reap(struct batch *b, uint32_t first, uint32_t end)
{
    int rc = 0;
    uint32_t n;
    struct nb_grad_tensor *t = nb_grad_tensors(b->g, &n);
    for (uint32_t op = first; op < end; op++)
        for (uint32_t i = 0; b->plan->ops[op].w && i < n && rc == 0; i++)
            if (t[i].matrix == b->plan->ops[op].w && t[i].gradient)
                rc = reap_tensor(b, &t[i]);
    return rc;
}

// A token drawn from softmax(z); z becomes the gradient of - log p of it.
static void draw_row(float *z, uint32_t vocab, uint64_t random)
{
    float most = z[0];
    double sum = 0, below = 0;
    uint32_t drawn = 0;
    for (uint32_t i = 1; i < vocab; i++)
        most = z[i] > most ? z[i] : most;
    for (uint32_t i = 0; i < vocab; i++)
        sum += (double)(z[i] = expf(z[i] - most));
    const double at = (double)(random >> 11) * 0x1p-53 * sum;
    while (drawn + 1 < vocab && (below += (double)z[drawn]) <= at)
        drawn++;
    for (uint32_t i = 0; i < vocab; i++)
        z[i] = (float)((double)z[i] / sum);
    z[drawn] -= 1;
}

static void draw_rows(void *arg, uint32_t thread)
{
    struct batch *b = arg;
    const uint32_t vocab = b->plan->hp.vocab;
    (void)thread;
    for (uint32_t i; (i = atomic_fetch_add(&b->next, 1)) < b->n;)
        draw_row(b->logits + (size_t)i * vocab, vocab, nb_random(b->draw, b->first + i));
}

static int head(struct batch *b, uint32_t first, uint32_t n)
{
    const float *x = b->x + ((size_t)b->plan->n_layers * b->rows + first) * b->embedding;
    int rc = nb_grad_head(b->g, n, x, NULL, b->logits);
    if (rc < 0)
        return rc;
    b->first = first;
    b->n = n;
    atomic_store(&b->next, 0);
    nb_team_run(b->team, draw_rows, b);
    return nb_grad_head_back(b->g, n, x, NULL, b->logits, b->d + (size_t)first * b->embedding);
}

static int back(struct batch *b)
{
    const uint32_t *layer_ops = b->plan->layer_ops, layers = b->plan->n_layers;
    int rc = want(b, layer_ops[layers], b->plan->n_ops);
    for (uint32_t i = 0; i < b->rows && rc == 0; i += SLICE)
        rc = head(b, i, b->rows - i < SLICE ? b->rows - i : SLICE);
    if (rc == 0)
        rc = want(b, 0, layer_ops[0]);
    for (uint32_t l = layers; l-- > 0 && rc == 0;) {
        rc = want(b, layer_ops[l], layer_ops[l + 1]);
        if (rc == 0)
            rc = nb_grad_layer_back(b->g, l, b->x + (size_t)l * b->rows * b->embedding, NULL, b->d,
                                    true);
        if (rc == 0)
            rc = reap(b, layer_ops[l], layer_ops[l + 1]);
    }
    // A tied embedding's gradient is whole now: the head's part, and that of what tokens begin
    // with.
    if (rc == 0)
        rc = nb_grad_begin_back(b->g, b->d);
    return rc == 0 ? reap(b, 0, b->plan->n_ops) : rc;
}

static int run(struct batch *b)
{
    const size_t apart = (size_t)b->rows * b->embedding;
    int rc = nb_grad_begin(b->g, b->x);
    for (uint32_t l = 0; l < b->plan->n_layers && rc == 0; l++)
        rc = nb_grad_layer(b->g, l, b->x + l * apart, NULL, b->x + (l + 1) * apart);
    return rc == 0 ? back(b) : rc;
}

static int open_batch(struct batch *b, const int32_t *tokens, uint32_t n, uint32_t length,
                      struct nb_error *e)
{
    struct nb_grad_sequence *sequence = calloc(n, sizeof(*sequence));
    const size_t layers = b->plan->n_layers;
    b->x = malloc((layers + 1) * b->rows * b->embedding * sizeof(float));
    b->d = malloc((size_t)b->rows * b->embedding * sizeof(float));
    b->logits = malloc((size_t)SLICE * b->plan->hp.vocab * sizeof(float));
    int rc = sequence && b->x && b->d && b->logits
                 ? nb_grad_open(b->plan, b->team, &b->g, e)
                 : nb_fail(e, -ENOMEM, "no memory for the model's sensitivity");
    for (uint32_t i = 0; i < n && sequence; i++)
        sequence[i] = (struct nb_grad_sequence){tokens + (size_t)i * length, length, 0};
    if (rc == 0)
        rc = nb_grad_batch(b->g, sequence, n, e);
    free(sequence);
    return rc;
}

static void close_batch(struct batch *b)
{
    uint32_t n = 0;
    struct nb_grad_tensor *t = b->g ? nb_grad_tensors(b->g, &n) : NULL;
    for (uint32_t i = 0; i < n; i++)
        free(t[i].gradient); // of one that failed
    nb_grad_close(b->g);
    free(b->x);
    free(b->d);
    free(b->logits);
}

int nb_sensitivity_add(struct nb_sensitivity *s, const struct nb_plan *plan, struct nb_team *team,
                       const int32_t *tokens, uint32_t n, uint32_t length, uint64_t draw,
                       struct nb_error *ret_error)
{
    struct batch b = {.s = s,
                      .plan = plan,
                      .team = team,
                      .rows = n * length,
                      .embedding = plan->hp.embedding,
                      .draw = draw};
    if (!plan->width[NB_VALUE_LOGITS])
        return nb_fail(ret_error, -EINVAL, "the model only embeds: no token depends on it");
    int rc = open_batch(&b, tokens, n, length, ret_error);
    if (rc == 0 && (rc = run(&b)) < 0)
        nb_fail(ret_error, rc, "no memory for the model's sensitivity");
    close_batch(&b);
    if (rc == 0)
        s->tokens += b.rows;
    return rc;
}
