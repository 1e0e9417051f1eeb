// See layerwise.h.
#include "quant/layerwise.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"
#include "quant/gptq.h"
#include "quant/hessian.h"
#include "quant/rounding.h"
#include "tensor/type.h"

#define STR(s) (int)(s).len, (s).data
#define LANES  16 // columns of sums come in so many
#define NOISE  20 // tokens for a column at which half of a correction is the tokens' own noise

// A calibration's rows in one of the two models: of each batch the state where the walk is.
struct stream {
    float **batches;
};

// A matrix that is encoded here.
struct target {
    struct nb_grad_tensor *w;
    uint32_t tensor, type;
    struct nb_sparsity sparse;
    float *floats, *values; // [experts][rows][cols]: its own, and what it became
    uint8_t *bytes;
};

// The sums at a site, or of one of its experts. cross and residual: NULL where nothing is
// corrected.
struct sums {
    double *hessian; // [cols][cols] of the quantized model's inputs
    double *cross;   // [cols][cols]: what the float model's have more by them
    // Of each target whose product is added to the residual stream, [rows][cols]: what the float
    // model's stream has more by the inputs.
    double *residual[NB_GRAD_SITE];
    uint32_t cols;
};

struct walk {
    const struct nb_layerwise *how;
    struct nb_grad *g;
    const struct nb_plan *plan;
    uint32_t n_batches, n_layers, layer, site; // n_layers: with the head
    uint32_t done, total;                      // sites
    struct stream is, was;                     // the quantized model's, the float model's
    struct target targets[NB_GRAD_SITE];
    uint32_t n_targets;
    // Values of the layer's matrices that were encoded, to be freed with it
    float **values;
    struct nb_grad_tensor **holders;
    uint32_t n_values;
    uint16_t *x, *more; // the quantized model's inputs, what the float model has more: bf16
    size_t room;
    struct nb_error *error;
};

static int no_memory(const struct walk *k)
{
    return nb_fail(k->error, -ENOMEM,
                   "no memory for error feedback in layer %u: fewer or shorter calibration samples "
                   "take less (--samples, --length)",
                   k->layer);
}

// ---- Streams

static void free_stream(struct stream *s, uint32_t n)
{
    for (uint32_t i = 0; s->batches && i < n; i++)
        free(s->batches[i]);
    free(s->batches); // NOLINT(bugprone-multi-level-implicit-pointer-conversion)
}

// Makes a batch the float engine's.
static int take_batch(struct walk *k, uint32_t batch)
{
    uint32_t rows;
    return nb_calibration_batch(k->how->calibration, batch, &rows, k->error);
}

// The most that a batch's state takes anywhere in the model.
static size_t most_floats(const struct walk *k, uint32_t rows)
{
    size_t most = (size_t)rows * k->plan->hp.embedding;
    for (uint32_t i = 0; i < k->n_layers; i++)
        for (uint32_t site = 0; site < nb_grad_sites(k->g, i); site++) {
            const size_t floats = nb_grad_state_floats(k->g, i, site);
            most = floats > most ? floats : most;
        }
    return most;
}

// The quantized model's matrices stand in the float engine while its stream goes on.
static void set_values(const struct walk *k, bool quantized)
{
    for (uint32_t i = 0; i < k->n_values; i++)
        k->holders[i]->values = quantized ? k->values[i] : NULL;
}

static int run_stage(struct walk *k, uint32_t stage)
{
    int rc = 0;
    for (uint32_t i = 0; i < k->n_batches && rc == 0; i++) {
        rc = take_batch(k, i);
        if (rc < 0)
            break;
        rc = nb_grad_stage(k->g, k->layer, stage, k->was.batches[i], k->was.batches[i]);
        set_values(k, true);
        if (rc == 0)
            rc = nb_grad_stage(k->g, k->layer, stage, k->is.batches[i], k->is.batches[i]);
        set_values(k, false);
        if (rc < 0)
            no_memory(k);
    }
    return rc;
}

// ---- Sums

static int reserve(struct walk *k, size_t n)
{
    if (n <= k->room)
        return 0;
    free(k->x);
    free(k->more);
    k->x = malloc(n * sizeof(*k->x));
    k->more = malloc(n * sizeof(*k->more));
    k->room = k->x && k->more ? n : 0;
    return k->room ? 0 : no_memory(k);
}

// The float model's inputs at the site, for the importance of its matrices' columns.
static int learn_inputs(struct walk *k)
{
    struct nb_grad_tensor *w[NB_GRAD_SITE];
    const uint32_t n = nb_grad_site_matrices(k->g, k->layer, k->site, w);
    int rc = 0;
    for (uint32_t i = 0; k->how->learns && i < k->n_batches && rc == 0; i++) {
        rc = take_batch(k, i);
        for (uint32_t j = 0; j < n && rc == 0; j++)
            for (uint32_t e = 0; e < w[j]->experts; e++) {
                const struct nb_grad_rows x =
                    nb_grad_site_input(k->g, k->layer, k->site, e, k->was.batches[i]);
                nb_calibration_take(k->how->calibration, w[j], e, x.x, x.stride, x.n);
            }
    }
    return rc;
}

// The correction is a regression, with an unknown for each column, and what it learns of the
// tokens' noise is wrong on other text. So it is shrunk, the more the fewer tokens there are for a
// column (docs/numbers.md has what other shares leave).
static float mismatch(const struct walk *k, uint32_t cols)
{
    const struct nb_windows *w = nb_calibration_windows(k->how->calibration);
    const float tokens = (float)w->n * (float)w->length;
    return k->how->mismatch >= 0 ? k->how->mismatch : tokens / (tokens + NOISE * (float)cols);
}

static bool has_residual(const struct walk *k, const struct target *t)
{
    return nb_grad_site_stream(k->g, k->layer, k->site, t->w, k->is.batches[0]).n &&
           t->w->rows % LANES == 0 && !nb_compress_has(k->how->compress, t->tensor);
}

static void close_sums(struct sums *s)
{
    free(s->hessian);
    free(s->cross);
    for (uint32_t i = 0; i < NB_GRAD_SITE; i++)
        free(s->residual[i]);
}

// Each model chooses its experts for itself, so the rows of one are no pairs.
static int open_sums(struct walk *k, struct sums *ret)
{
    const struct nb_grad_tensor *w = k->targets[0].w;
    const bool corrects = w->experts == 1 && mismatch(k, w->cols) > 0;
    const size_t n = (size_t)w->cols * w->cols;
    int rc = take_batch(k, 0);
    *ret = (struct sums){.cols = w->cols, .hessian = calloc(n, sizeof(double))};
    bool there = ret->hessian;
    if (corrects)
        there = (ret->cross = calloc(n, sizeof(double))) && there;
    for (uint32_t i = 0; corrects && rc == 0 && i < k->n_targets; i++)
        if (has_residual(k, &k->targets[i])) {
            const uint32_t rows = k->targets[i].w->rows;
            there = (ret->residual[i] = calloc((size_t)rows * w->cols, sizeof(double))) && there;
        }
    if (rc == 0 && !there)
        rc = no_memory(k);
    if (rc < 0)
        close_sums(ret);
    return rc;
}

static int add_more(const struct walk *k, double *sum, const struct nb_grad_rows *was,
                    const struct nb_grad_rows *is, uint32_t n, uint32_t cols)
{
    nb_hessian_narrow(k->how->team, was, is, n, k->more);
    return nb_cross_add(k->how->team, sum, k->more, n, k->x, is->n, cols);
}

static int add_batch(struct walk *k, uint32_t batch, uint32_t expert, const struct sums *s)
{
    const float *state = k->is.batches[batch], *before = k->was.batches[batch];
    uint32_t widest = s->cols;
    int rc = take_batch(k, batch);
    if (rc < 0)
        return rc;
    const struct nb_grad_rows x = nb_grad_site_input(k->g, k->layer, k->site, expert, state);
    for (uint32_t i = 0; i < k->n_targets; i++)
        if (s->residual[i] && k->targets[i].w->rows > widest)
            widest = k->targets[i].w->rows;
    rc = reserve(k, (size_t)x.n * widest);
    if (rc < 0 || !x.n)
        return rc;
    nb_hessian_narrow(k->how->team, &x, NULL, s->cols, k->x);
    rc = nb_hessian_add(k->how->team, s->hessian, k->x, x.n, s->cols);
    if (rc == 0 && s->cross) {
        const struct nb_grad_rows f = nb_grad_site_input(k->g, k->layer, k->site, expert, before);
        rc = add_more(k, s->cross, &f, &x, s->cols, s->cols);
    }
    for (uint32_t i = 0; i < k->n_targets && rc == 0; i++) {
        const struct nb_grad_tensor *w = k->targets[i].w;
        if (!s->residual[i])
            continue;
        const struct nb_grad_rows was = nb_grad_site_stream(k->g, k->layer, k->site, w, before),
                                  is = nb_grad_site_stream(k->g, k->layer, k->site, w, state);
        rc = add_more(k, s->residual[i], &was, &is, w->rows, s->cols);
    }
    return rc < 0 ? no_memory(k) : 0;
}

// ---- Matrices

static bool takes_feedback(const struct nb_grad_tensor *w, uint32_t from,
                           const struct nb_choice *to)
{
    const bool rounds = to->type != from && to->type != NB_TYPE_F32 && to->type != NB_TYPE_F16 &&
                        to->type != NB_TYPE_BF16;
    return w->cols % LANES == 0 && (rounds || nb_sparsity_any(&to->sparse));
}

static int open_target(const struct walk *k, struct target *t, struct nb_grad_tensor *w,
                       uint32_t tensor)
{
    const size_t floats = (size_t)w->experts * w->rows * w->cols;
    const struct nb_choice *choice = &nb_compress_choices(k->how->compress)[tensor];
    *t = (struct target){.w = w,
                         .tensor = tensor,
                         .type = choice->type,
                         .sparse = choice->sparse,
                         .floats = malloc(floats * sizeof(*t->floats)),
                         .values = malloc(floats * sizeof(*t->values)),
                         .bytes = malloc(nb_compress_bytes(k->how->compress, tensor))};
    if (!t->floats || !t->values || !t->bytes) // NOLINT(clang-analyzer-unix.Malloc): k owns them
        return no_memory(k);
    nb_grad_dequantize(k->g, w, t->floats);
    return 0;
}

// The matrices of the site that are encoded, or were, with memory for what they become.
static int find_targets(struct walk *k)
{
    struct nb_grad_tensor *w[NB_GRAD_SITE];
    const uint32_t n = nb_grad_site_matrices(k->g, k->layer, k->site, w);
    const struct nb_choice *choices = nb_compress_choices(k->how->compress);
    const bool head = k->layer + 1 == k->n_layers; // its embedding, perhaps, which is there
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t tensor = nb_source_find(k->how->source, w[i]->name);
        if (tensor == k->how->source->n_tensors)
            continue;
        const struct nb_scheme *scheme = nb_choice_scheme(&choices[tensor]);
        if (scheme && !scheme->exact)
            return nb_fail(k->error, -ENOTSUP,
                           "tensor %.*s as %s: error feedback knows the types' own groups alone; "
                           "name a type, or search scales (--method search)",
                           STR(w[i]->name), scheme->name);
        if (!takes_feedback(w[i], k->how->source->tensors[tensor].type, &choices[tensor]) ||
            (head && nb_compress_has(k->how->compress, tensor)))
            continue;
        int rc = open_target(k, &k->targets[k->n_targets++], w[i], tensor);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static void free_targets(struct walk *k)
{
    for (uint32_t i = 0; i < k->n_targets; i++) {
        free(k->targets[i].floats);
        free(k->targets[i].values);
        free(k->targets[i].bytes);
    }
    k->n_targets = 0;
}

static int fail_encode(const struct walk *k, const struct target *t, int rc)
{
    if (rc == -ENOMEM)
        return no_memory(k);
    return nb_fail(k->error, rc,
                   rc == -ERANGE
                       ? "tensor %.*s has numbers that are too large for %s: name another "
                         "type for it in a recipe"
                       : "tensor %.*s cannot be encoded as %s: its numbers, or what the "
                         "calibration gave it, are not finite",
                   STR(t->w->name), nb_type_name(t->type));
}

static int encode_expert(struct walk *k, uint32_t target, const struct sums *s,
                         const struct nb_factor *factor, uint32_t expert)
{
    const struct target *t = &k->targets[target];
    const struct nb_grad_tensor *w = t->w;
    const struct nb_gptq how = {.type = t->type,
                                .factor = factor,
                                .passes = k->how->passes,
                                .sparse = t->sparse,
                                .cross = s->cross,
                                .residual = s->residual[target],
                                .mismatch = s->cross ? mismatch(k, w->cols) : 0};
    int rc = nb_gptq_encode(&how, k->how->team, t->floats + expert * (size_t)w->rows * w->cols,
                            w->rows, w->cols,
                            t->bytes + nb_encoded_bytes(t->type, w->rows, w->cols) * expert, NULL);
    return rc < 0 ? fail_encode(k, t, rc) : 0;
}

// All of the site's matrices, or those of one expert, by the same sums. The larger columns go
// first; where zeros are chosen columns have their own order, as in SparseGPT: patterns lie along
// it, and blocks of it have large columns and small ones to choose among.
static int encode_in_order(struct walk *k, uint32_t expert, const struct sums *s, bool sparse)
{
    const struct nb_factor_options options = {.damping = k->how->damping, .by_size = !sparse};
    struct nb_factor *factor = NULL;
    int rc = 0;
    for (uint32_t i = 0; i < k->n_targets && rc == 0; i++) {
        if (nb_compress_has(k->how->compress, k->targets[i].tensor) ||
            nb_sparsity_any(&k->targets[i].sparse) != sparse)
            continue;
        if (!factor)
            rc = nb_factor_create(k->how->team, s->hessian, s->cols, &options, &factor);
        rc = rc < 0 ? fail_encode(k, &k->targets[i], rc) : encode_expert(k, i, s, factor, expert);
    }
    nb_factor_destroy(factor);
    return rc;
}

static int encode_with(struct walk *k, uint32_t expert, const struct sums *s)
{
    int rc = encode_in_order(k, expert, s, false);
    return rc == 0 ? encode_in_order(k, expert, s, true) : rc;
}

static int encode_site(struct walk *k)
{
    struct sums s;
    int rc = open_sums(k, &s);
    if (rc < 0)
        return rc;
    for (uint32_t e = 0; e < k->targets[0].w->experts && rc == 0; e++) {
        if (e)
            memset(s.hessian, 0, (size_t)s.cols * s.cols * sizeof(*s.hessian));
        for (uint32_t i = 0; i < k->n_batches && rc == 0; i++)
            rc = add_batch(k, i, e, &s);
        if (rc == 0)
            rc = encode_with(k, e, &s);
    }
    close_sums(&s);
    return rc;
}

static bool are_there(const struct walk *k)
{
    for (uint32_t i = 0; i < k->n_targets; i++)
        if (!nb_compress_has(k->how->compress, k->targets[i].tensor))
            return false;
    return true;
}

// What the matrix became stands in the quantized model from now on, until the layer is done.
static int hold(struct walk *k, struct target *t)
{
    const struct nb_type_info *info = nb_type_info(t->type);
    const bool has = nb_compress_has(k->how->compress, t->tensor);
    int rc = has ? nb_compress_get(k->how->compress, t->tensor, t->bytes, k->error)
                 : nb_compress_put(k->how->compress, t->tensor, t->bytes, k->error);
    if (rc < 0)
        return rc;
    info->dequantize(t->bytes, t->values,
                     (size_t)t->w->experts * t->w->rows * t->w->cols / info->block);
    k->holders[k->n_values] = t->w;
    k->values[k->n_values++] = t->values;
    t->values = NULL;
    return 0;
}

static int do_site(struct walk *k)
{
    int rc = find_targets(k);
    if (rc == 0 && k->n_targets && !are_there(k))
        rc = encode_site(k);
    for (uint32_t i = 0; i < k->n_targets && rc == 0; i++)
        rc = hold(k, &k->targets[i]);
    free_targets(k);
    k->done++;
    if (rc == 0 && k->how->progress && k->how->progress(k->how->user, k->done, k->total) < 0)
        rc = nb_fail(k->error, -ECANCELED, "cancelled");
    return rc;
}

// ---- The beginning

static bool is_head(const struct walk *k, const struct nb_grad_tensor *w)
{
    struct nb_grad_tensor *of_head[NB_GRAD_SITE];
    const uint32_t head = k->n_layers - 1;
    const uint32_t n =
        nb_grad_sites(k->g, head) ? nb_grad_site_matrices(k->g, head, 0, of_head) : 0;
    for (uint32_t i = 0; i < n; i++)
        if (of_head[i] == w)
            return true;
    return false;
}

// One that is the head as well, for what the head reads in the float model: the quantized one has
// not begun.
static int feed_embedding(struct walk *k, struct target *t)
{
    const struct nb_factor_options options = {.damping = k->how->damping, .by_size = true};
    struct nb_factor *factor = NULL;
    const double *hessian;
    int rc = nb_calibration_head(k->how->calibration, &hessian, k->error);
    t->floats = malloc((size_t)t->w->rows * t->w->cols * sizeof(*t->floats));
    if (rc < 0 || !t->floats)
        return rc < 0 ? rc : no_memory(k);
    nb_grad_dequantize(k->g, t->w, t->floats);
    rc = nb_factor_create(k->how->team, hessian, t->w->cols, &options, &factor);
    const struct nb_gptq how = {.type = t->type, .factor = factor, .passes = k->how->passes};
    if (rc == 0)
        rc = nb_gptq_encode(&how, k->how->team, t->floats, t->w->rows, t->w->cols, t->bytes, NULL);
    nb_factor_destroy(factor);
    return rc < 0 ? fail_encode(k, t, rc) : 0;
}

// The embedding that the quantized model begins with.
static int round_embedding(struct walk *k, const struct nb_op *op, struct target *t)
{
    uint32_t n;
    struct nb_grad_tensor *w = nb_grad_tensors(k->g, &n) + (op->w - k->plan->matrices);
    const struct nb_source *s = k->how->source;
    struct nb_compress *c = k->how->compress;
    *t = (struct target){.w = w, .tensor = nb_source_find(s, w->name)};
    if (t->tensor == s->n_tensors)
        return 0;
    t->type = nb_compress_choices(c)[t->tensor].type;
    t->bytes = malloc(nb_compress_bytes(c, t->tensor));
    t->values = malloc((size_t)w->rows * w->cols * sizeof(*t->values));
    if (!t->bytes || !t->values)
        return no_memory(k);
    const bool feeds = is_head(k, w) && takes_feedback(w, s->tensors[t->tensor].type,
                                                       &nb_compress_choices(c)[t->tensor]);
    int rc = nb_compress_has(c, t->tensor) ? 0
             : feeds                       ? feed_embedding(k, t)
                     : nb_compress_round(c, t->tensor, k->how->importance, k->error);
    return rc == 0 ? hold(k, t) : rc;
}

static int begin_stream(struct walk *k, struct stream *s)
{
    int rc = 0;
    for (uint32_t i = 0; i < k->n_batches && rc == 0; i++) {
        rc = take_batch(k, i);
        if (rc == 0 && nb_grad_begin(k->g, s->batches[i]) < 0)
            rc = no_memory(k);
    }
    return rc;
}

static int open_streams(struct walk *k)
{
    k->is.batches =
        calloc(k->n_batches, sizeof(*k->is.batches)); // NOLINT(bugprone-sizeof-expression)
    k->was.batches =
        calloc(k->n_batches, sizeof(*k->was.batches)); // NOLINT(bugprone-sizeof-expression)
    if (!k->is.batches || !k->was.batches)
        return no_memory(k);
    for (uint32_t i = 0; i < k->n_batches; i++) {
        uint32_t rows;
        int rc = nb_calibration_batch(k->how->calibration, i, &rows, k->error);
        if (rc < 0)
            return rc;
        const size_t floats = most_floats(k, rows);
        k->is.batches[i] = malloc(floats * sizeof(float));
        k->was.batches[i] = malloc(floats * sizeof(float));
        if (!k->is.batches[i] || !k->was.batches[i])
            return no_memory(k);
    }
    return 0;
}

static void drop_values(struct walk *k)
{
    for (uint32_t i = 0; i < k->n_values; i++)
        free(k->values[i]);
    k->n_values = 0;
}

static int begin(struct walk *k)
{
    int rc = open_streams(k);
    if (rc == 0)
        rc = begin_stream(k, &k->was);
    for (uint32_t i = 0; i < k->plan->layer_ops[0] && rc == 0; i++) {
        struct target t = {0};
        if (k->plan->ops[i].kind == NB_OP_EMBED && k->plan->ops[i].w)
            rc = round_embedding(k, &k->plan->ops[i], &t);
        free(t.floats);
        free(t.bytes);
        free(t.values);
    }
    set_values(k, true);
    if (rc == 0)
        rc = begin_stream(k, &k->is);
    set_values(k, false);
    drop_values(k);
    return rc;
}

// ---- Layers

static int do_layer(struct walk *k)
{
    const uint32_t sites = nb_grad_sites(k->g, k->layer);
    int rc = 0;
    for (k->site = 0; k->site < sites && rc == 0; k->site++) {
        rc = run_stage(k, k->site);
        if (rc == 0)
            rc = learn_inputs(k);
        if (rc == 0)
            rc = do_site(k);
    }
    if (rc == 0 && k->layer + 1 < k->n_layers)
        rc = run_stage(k, sites);
    drop_values(k);
    return rc;
}

static int do_layers(struct walk *k)
{
    uint32_t n;
    nb_grad_tensors(k->g, &n);
    k->values = calloc(n, sizeof(*k->values));   // NOLINT(bugprone-sizeof-expression)
    k->holders = calloc(n, sizeof(*k->holders)); // NOLINT(bugprone-sizeof-expression)
    if (!k->values || !k->holders)
        return no_memory(k);
    for (uint32_t i = 0; i < k->n_layers; i++)
        k->total += nb_grad_sites(k->g, i);
    int rc =
        k->how->learns ? nb_calibration_sums(k->how->calibration, k->how->importance, k->error) : 0;
    if (rc == 0)
        rc = begin(k);
    for (k->layer = 0; k->layer < k->n_layers && rc == 0; k->layer++)
        rc = do_layer(k);
    return rc;
}

int nb_layerwise_run(const struct nb_layerwise *how, struct nb_error *ret_error)
{
    struct walk k = {.how = how,
                     .g = nb_calibration_grad(how->calibration),
                     .n_batches = nb_calibration_batches(how->calibration),
                     .plan = nb_calibration_plan(how->calibration),
                     .error = ret_error};
    k.n_layers = k.plan->hp.n_layers + 1;
    int rc = do_layers(&k);
    free_stream(&k.is, k.n_batches);
    free_stream(&k.was, k.n_batches);
    free(k.values);  // NOLINT(bugprone-multi-level-implicit-pointer-conversion)
    free(k.holders); // NOLINT(bugprone-multi-level-implicit-pointer-conversion)
    free(k.x);
    free(k.more);
    return rc;
}
