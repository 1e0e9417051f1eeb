// See prune.h: first how much of each kind there will be, then which.
#include "distill/prune.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROUND 32 // inner rows come in such blocks, which weight types have

// How much a student has.
struct shape {
    uint32_t layers, n[NB_CUTS]; // 0: all
};

struct choosing {
    const struct nb_train_recipe *r;
    const struct nb_source *model;
    const struct nb_hparams *hp; // NULL: nothing is measured
    uint32_t layers;             // of the model
    struct nb_error *error;
};

static bool cuts(const uint32_t n[NB_CUTS])
{
    return n[NB_CUT_HEADS] || n[NB_CUT_FEED_FORWARD] || n[NB_CUT_WIDTH];
}

bool nb_prune_measures(const struct nb_train_recipe *r)
{
    const bool chosen = r->layers && !r->n_from && r->layers_by == NB_LAYERS_BY_INFLUENCE;
    return cuts(r->cut) || r->weights > 0 || chosen;
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

// Layers and inner rows in one proportion; what is left over goes to the rows. What the recipe
// names is as it says.
static int fit(const struct choosing *c, struct shape *s)
{
    const double asked = c->r->weights;
    struct shape all = {.layers = c->layers};
    const uint64_t most = (uint64_t)(asked > 1 ? asked : asked * (double)weights_of(c, &all));
    const bool rows = !s->n[NB_CUT_FEED_FORWARD] && !c->hp->n_experts && c->hp->ffn > ROUND;
    const uint32_t ffn = c->hp->ffn, first = s->layers ? s->layers : c->layers;
    const uint32_t last = s->layers ? s->layers : 1;
    for (uint32_t layers = first; layers >= last; layers--) {
        const uint64_t part = s->layers ? ROUND : (uint64_t)ffn * layers / c->layers;
        s->n[NB_CUT_FEED_FORWARD] = rows ? (uint32_t)(part < ROUND ? ROUND : part / ROUND * ROUND)
                                         : s->n[NB_CUT_FEED_FORWARD];
        struct shape tried = *s;
        tried.layers = layers;
        if (weights_of(c, &tried) > most)
            continue;
        while (rows && tried.n[NB_CUT_FEED_FORWARD] + ROUND <= ffn) {
            struct shape larger = tried;
            larger.n[NB_CUT_FEED_FORWARD] += ROUND;
            if (weights_of(c, &larger) > most)
                break;
            tried = larger;
        }
        *s = tried;
        return 0;
    }
    struct shape least = *s;
    least.layers = last;
    return nb_fail(c->error, -EINVAL,
                   "a student of %" PRIu64
                   " weights is not to be had: with %u layers, and %u inner "
                   "rows of each, it has %" PRIu64 "; ask for more, or cut its width or heads too",
                   most, last, least.n[NB_CUT_FEED_FORWARD] ? least.n[NB_CUT_FEED_FORWARD] : ffn,
                   weights_of(c, &least));
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

static int choose_shape(const struct choosing *c, struct shape *ret)
{
    const struct nb_train_recipe *r = c->r;
    *ret = (struct shape){.layers = r->layers};
    memcpy(ret->n, r->cut, sizeof(ret->n));
    if (r->layers > c->layers || (r->n_from && r->from[r->n_from - 1] >= c->layers))
        return nb_fail(c->error, -EINVAL,
                       "the teacher has %u layers, and a student of it no others", c->layers);
    int rc = check_cuts(c, ret);
    if (rc == 0 && r->weights > 0)
        rc = fit(c, ret);
    ret->layers = ret->layers ? ret->layers : c->layers;
    return rc;
}

// --- Which

static int choose_layers(const struct choosing *c, const struct shape *s, const struct nb_needs *m,
                         struct nb_pruned *ret)
{
    ret->layer = calloc(s->layers + 1, sizeof(*ret->layer));
    if (!ret->layer)
        return -ENOMEM;
    if (c->r->n_from)
        memcpy(ret->layer, c->r->from, c->r->n_from * sizeof(*ret->layer));
    else if (c->r->layers_by == NB_LAYERS_BY_INFLUENCE && s->layers < c->layers)
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
    for (uint32_t i = 0; i < layers && rc == 0; i++)
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

int nb_prune_choose(const struct nb_train_recipe *r, const struct nb_source *model,
                    const struct nb_plan *plan, struct nb_team *team,
                    const struct nb_windows *windows, struct nb_pruned *ret,
                    struct nb_error *ret_error)
{
    struct choosing c = {.r = r, .model = model, .hp = plan ? &plan->hp : NULL, .error = ret_error};
    struct nb_needs m = {0};
    struct shape shape;
    *ret = (struct nb_pruned){0};
    int rc = nb_student_count(model, &c.layers, ret_error);
    if (rc == 0)
        rc = choose_shape(&c, &shape);
    if (rc == 0 && plan)
        rc = nb_needs_measure(plan, team, windows, cuts(shape.n) ? r->cut_by : NB_NEEDS_OF_LAYERS,
                              &m, ret_error);
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
