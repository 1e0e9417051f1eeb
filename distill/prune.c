// See prune.h: how much of each kind there will be, then which.
#include "distill/prune.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "quant/compress.h"

#define ROUND 32 // inner rows come in such blocks, which weight types have

// How much a student has.
struct shape {
    uint32_t layers, n[NB_CUTS]; // 0: all
};

struct choosing {
    const struct nb_pruning *how;
    const struct nb_train_recipe *r;
    const struct nb_source *model;
    const struct nb_hparams *hp; // NULL: nothing is measured
    uint32_t layers;             // of the model
    uint64_t weights, bytes;     // of the student, at most
    struct nb_error *error;
};

static bool cuts(const uint32_t n[NB_CUTS])
{
    return n[NB_CUT_HEADS] || n[NB_CUT_FEED_FORWARD] || n[NB_CUT_WIDTH];
}

bool nb_prune_measures(const struct nb_train_recipe *r)
{
    const bool chosen = r->layers && !r->n_from && r->layers_by == NB_LAYERS_BY_INFLUENCE;
    return cuts(r->cut) || r->weights > 0 || r->size > 0 || chosen;
}

// --- Which

// m: NULL: any will do, as long as they are so many.
static int choose_layers(const struct choosing *c, const struct shape *s, const struct nb_needs *m,
                         struct nb_pruned *ret)
{
    ret->layer = calloc(s->layers + 1, sizeof(*ret->layer));
    if (!ret->layer)
        return -ENOMEM;
    if (c->r->n_from)
        memcpy(ret->layer, c->r->from, c->r->n_from * sizeof(*ret->layer));
    else if (m && c->r->layers_by == NB_LAYERS_BY_INFLUENCE && s->layers < c->layers)
        return nb_needs_most(m->layer, c->layers, s->layers, ret->layer);
    else
        nb_student_evenly(c->layers, s->layers, ret->layer);
    return 0;
}

static int choose_cut(const struct choosing *c, const struct shape *s, const struct nb_needs *m,
                      enum nb_cut cut, struct nb_pruned *ret)
{
    const uint32_t n = s->n[cut], layers = cut == NB_CUT_WIDTH ? 1 : c->layers;
    int rc = 0;
    if (!n)
        return 0;
    ret->of[cut] = calloc((size_t)layers * n + 1, sizeof(**ret->of));
    if (!ret->of[cut])
        return -ENOMEM;
    for (size_t i = 0; i < (size_t)layers * n && !m; i++)
        ret->of[cut][i] = (uint32_t)(i % n);
    for (uint32_t i = 0; i < layers && m && rc == 0; i++)
        rc = nb_needs_most(m->of[cut] + (size_t)i * m->n[cut], m->n[cut], n,
                           ret->of[cut] + (size_t)i * n);
    return rc;
}

static int choose_kept(const struct choosing *c, const struct shape *s, const struct nb_needs *m,
                       struct nb_pruned *ret)
{
    int rc = choose_layers(c, s, m, ret);
    for (int cut = 0; cut < NB_CUTS && rc == 0; cut++)
        rc = choose_cut(c, s, m, (enum nb_cut)cut, ret);
    ret->kept = (struct nb_student_kept){.layers = s->layers, .layer = ret->layer};
    for (int cut = 0; cut < NB_CUTS; cut++) {
        ret->kept.n[cut] = s->n[cut];
        ret->kept.of[cut] = ret->of[cut];
    }
    return rc < 0 ? nb_fail(c->error, rc, "no memory for what the student keeps") : 0;
}

// --- How much

static uint64_t kept(const struct nb_hparams *hp, const struct shape *s, enum nb_dim dim,
                     uint64_t all)
{
    struct nb_axis axis;
    if (!nb_axis_of(hp, dim, &axis) || !s->n[axis.cut])
        return all;
    return (uint64_t)s->n[axis.cut] * nb_axis_units(&axis);
}

// The weights of a student of this shape: all layers are as the first.
static uint64_t weights_of(const struct choosing *c, const struct shape *s)
{
    uint64_t outside = 0, inside = 0;
    for (uint32_t i = 0; i < c->model->n_tensors; i++) {
        const struct nb_source_tensor *t = &c->model->tensors[i];
        enum nb_dim rows = NB_DIM_NONE, cols = NB_DIM_NONE;
        struct nb_str rest;
        nb_arch_dims(c->hp->arch, t->name, &rows, &cols);
        const uint64_t n = kept(c->hp, s, cols, t->dims[0]) *
                           (t->n_dims > 1 ? kept(c->hp, s, rows, t->dims[1]) : 1) * t->dims[2] *
                           t->dims[3];
        const uint32_t layer = nb_arch_layer(t->name, &rest);
        outside += layer == NB_NO_LAYER ? n : 0;
        inside += layer == 0 ? n : 0;
    }
    return outside + inside * s->layers;
}

// The bytes of the file that a student of this shape becomes, whichever parts it keeps.
static int bytes_of(const struct choosing *c, const struct shape *s, uint64_t *ret)
{
    struct nb_pruned any = {0};
    struct nb_source *student = NULL;
    int rc = choose_kept(c, s, NULL, &any);
    if (rc == 0)
        rc = nb_student_open(c->model, c->hp, &any.kept, &student, c->error);
    if (rc == 0)
        rc = nb_compress_measure(student, c->how->types, ret, c->error);
    nb_source_close(student);
    nb_pruned_finish(&any);
    return rc;
}

static int is_within(const struct choosing *c, const struct shape *s, bool *ret)
{
    uint64_t bytes = 0;
    *ret = weights_of(c, s) <= c->weights;
    int rc = *ret && c->r->size > 0 ? bytes_of(c, s, &bytes) : 0;
    *ret = *ret && rc == 0 && bytes <= c->bytes;
    return rc;
}

static int refuse(const struct choosing *c, const struct shape *least)
{
    const uint32_t rows = least->n[NB_CUT_FEED_FORWARD];
    uint64_t n = weights_of(c, least), asked = c->weights;
    const bool bytes = n <= asked;
    int rc = bytes ? bytes_of(c, least, &n) : 0;
    if (rc < 0)
        return rc;
    return nb_fail(c->error, -EINVAL,
                   "a student of %" PRIu64 " %s%s is not to be had: with %u layer%s, and %u inner "
                   "rows of each, it has %" PRIu64
                   "; ask for more, or cut its width, heads or vocabulary too",
                   bytes ? c->bytes : asked, bytes ? "bytes as " : "weights", bytes ? c->r->to : "",
                   least->layers, least->layers > 1 ? "s" : "", rows ? rows : c->hp->ffn, n);
}

// The inner rows that are left over.
static int widen(const struct choosing *c, struct shape *s)
{
    bool within = true;
    int rc = 0;
    while (within && rc == 0 && s->n[NB_CUT_FEED_FORWARD] + ROUND <= c->hp->ffn) {
        struct shape larger = *s;
        larger.n[NB_CUT_FEED_FORWARD] += ROUND;
        rc = is_within(c, &larger, &within);
        *s = within ? larger : *s;
    }
    return rc;
}

// Layers and inner rows in one proportion; what is left over goes to the rows. What the recipe
// names is as it says.
static int fit(const struct choosing *c, struct shape *s)
{
    const bool rows = !s->n[NB_CUT_FEED_FORWARD] && !c->hp->n_experts && c->hp->ffn > ROUND;
    const uint32_t ffn = c->hp->ffn, first = s->layers ? s->layers : c->layers;
    const uint32_t last = s->layers ? s->layers : 1;
    const bool fixed = s->layers > 0;
    for (uint32_t layers = first; layers >= last; layers--) {
        const uint64_t part = fixed ? ROUND : (uint64_t)ffn * layers / c->layers;
        bool within;
        if (rows)
            s->n[NB_CUT_FEED_FORWARD] = (uint32_t)(part < ROUND ? ROUND : part / ROUND * ROUND);
        s->layers = layers;
        int rc = is_within(c, s, &within);
        if (rc < 0 || within)
            return rc == 0 && rows ? widen(c, s) : rc;
    }
    return refuse(c, s);
}

// What is asked for; without it as much as there is.
static void set_limits(struct choosing *c)
{
    const double weights = c->r->weights, size = c->r->size;
    const struct shape all = {.layers = c->layers};
    c->bytes = size > 0 ? (uint64_t)size : UINT64_MAX;
    c->weights = weights > 1   ? (uint64_t)weights
                 : weights > 0 ? (uint64_t)(weights * (double)weights_of(c, &all))
                               : UINT64_MAX;
}

static int check_cuts(const struct choosing *c, const struct shape *s)
{
    for (int cut = 0; c->hp && cut < NB_CUTS; cut++)
        if (s->n[cut] > nb_cut_all(c->hp, (enum nb_cut)cut))
            return nb_fail(
                c->error, -EINVAL,
                "the model's \"%s\" is %u, and a student's no more than that: %u is asked for",
                nb_cut_names[cut], nb_cut_all(c->hp, (enum nb_cut)cut), s->n[cut]);
    if (s->n[NB_CUT_FEED_FORWARD] && c->hp->n_experts)
        return nb_fail(c->error, -ENOTSUP,
                       "inner rows of experts cannot be cut: cut layers, heads or width");
    return 0;
}

static int choose_shape(struct choosing *c, struct shape *ret)
{
    const struct nb_train_recipe *r = c->r;
    *ret = (struct shape){.layers = r->layers};
    memcpy(ret->n, r->cut, sizeof(ret->n));
    if (r->layers > c->layers || (r->n_from && r->from[r->n_from - 1] >= c->layers))
        return nb_fail(c->error, -EINVAL,
                       "the teacher has %u layers, and a student of it no others", c->layers);
    int rc = check_cuts(c, ret);
    if (rc == 0 && (r->weights > 0 || r->size > 0)) {
        set_limits(c);
        rc = fit(c, ret);
    }
    ret->layers = ret->layers ? ret->layers : c->layers;
    return rc;
}

int nb_prune_choose(const struct nb_pruning *how, struct nb_pruned *ret, struct nb_error *ret_error)
{
    const struct nb_plan *plan = how->plan;
    struct choosing c = {.how = how,
                         .r = how->recipe,
                         .model = how->model,
                         .hp = plan ? &plan->hp : NULL,
                         .error = ret_error};
    struct nb_needs m = {0};
    struct shape shape;
    *ret = (struct nb_pruned){0};
    int rc = nb_student_count(how->model, &c.layers, ret_error);
    if (rc == 0)
        rc = choose_shape(&c, &shape);
    if (rc == 0 && plan)
        rc = nb_needs_measure(plan, how->team, how->windows,
                              cuts(shape.n) ? c.r->cut_by : NB_NEEDS_OF_LAYERS, &m, ret_error);
    if (rc == 0)
        rc = choose_kept(&c, &shape, &m, ret);
    nb_needs_finish(&m);
    if (rc < 0)
        nb_pruned_finish(ret);
    return rc;
}

void nb_pruned_finish(struct nb_pruned *p)
{
    free(p->layer);
    for (int cut = 0; cut < NB_CUTS; cut++)
        free(p->of[cut]);
    *p = (struct nb_pruned){0};
}
