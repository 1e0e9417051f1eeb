// What a distillation writes: the student with what it has learnt, of the types that the recipe
// names, by quant/compress.h; and what of that its training has to know.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/jobs_distill.h"
#include "quant/latent.h"
#include "tensor/type.h"

#define REPORT_ROOM (1u << 20) // bytes that the report and the journal may take

// The types of the result, as a compression's recipe.
int nb_jobs_distill_types(const struct nb_train_recipe *r, struct nb_recipe **ret,
                          struct nb_error *e)
{
    static const char *const schemes[] = {[NB_INPUT_BLOCK] = "block", [NB_INPUT_ROW] = "dynamic"};
    json_t *root = json_pack("{s:s, s:s, s:{s:s}}", "to", r->to, "else", "F16", "activations",
                             "scheme", schemes[r->activations]);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    int rc = text ? nb_recipe_parse(text, strlen(text), false, ret, e)
                  : nb_fail(e, -ENOMEM, "no memory for the recipe");
    free(text);
    json_decref(root);
    return rc;
}

// Its tensors are floats, trained where the trainer has them.
static int read_trained(void *user, const struct nb_source_tensor *t, uint64_t first, uint64_t n,
                        void *dst, struct nb_error *ret_error)
{
    const struct distilling *k = user;
    const uint32_t i = (uint32_t)(t - k->trained.tensors);
    uint64_t all = 0;
    const float *x = nb_train_tensor(k->train, t->name, &all);
    if (!x)
        return nb_source_read(k->student.source, &k->student.source->tensors[i], first, n, dst,
                              ret_error);
    memcpy(dst, x + first * t->dims[0], n * t->dims[0] * sizeof(*x));
    return 0;
}

// The trainer knows tensors by the names in the file; where the model's image makes others of
// several, none would be written.
static int check_names(const struct distilling *k)
{
    uint64_t n, found = 0;
    for (uint32_t i = 0; i < k->student.source->n_tensors; i++)
        if (nb_train_tensor(k->train, k->student.source->tensors[i].name, &n))
            found += n;
    return found == nb_train_weights(k->train)
               ? 0
               : nb_fail(k->error, -ENOTSUP,
                         "this model's file has its matrices otherwise than they are computed "
                         "with: it cannot be trained yet");
}

int nb_jobs_distill_trained(struct distilling *k)
{
    const uint32_t n = k->student.source->n_tensors;
    int rc = check_names(k);
    if (rc < 0)
        return rc;
    k->trained = *k->student.source;
    k->trained.read = read_trained;
    k->trained.read_user = k;
    k->trained.tensors = calloc(n + 1, sizeof(*k->trained.tensors));
    if (!k->trained.tensors)
        return nb_fail(k->error, -ENOMEM, "no memory for the student's tensors");
    memcpy(k->trained.tensors, k->student.source->tensors, n * sizeof(*k->trained.tensors));
    for (uint32_t i = 0; i < n; i++) {
        struct nb_source_tensor *t = &k->trained.tensors[i];
        uint64_t all;
        if (!nb_train_tensor(k->train, t->name, &all))
            continue;
        t->type = t->stored = NB_TYPE_F32;
        t->bytes = all * sizeof(float);
    }
    return 0;
}

static int on_writing(void *user, const char *what, uint64_t done, uint64_t total)
{
    const struct distilling *k = user;
    const uint64_t steps = (uint64_t)k->options.steps * NB_DISTILL_TOLD;
    nb_jobs_tell(k->work, what, steps + NB_DISTILL_TOLD * done / (total ? total : 1),
                 steps + NB_DISTILL_TOLD);
    return 0;
}

int nb_jobs_distill_open(struct distilling *k)
{
    const struct nb_compress_options options = {.fd = k->work->results[NB_DISTILL_MODEL],
                                                .journal = k->work->journal,
                                                .key = k->work->key,
                                                .team = k->work->team,
                                                .visit = nb_jobs_distill_visit,
                                                .visit_user = k,
                                                .progress = on_writing,
                                                .user = k};
    int rc = nb_jobs_distill_types(&k->recipe, &k->types, k->error);
    if (rc == 0)
        rc = nb_compress_create(k->adapter ? k->adapter : &k->trained, k->types, &options,
                                &k->compress, k->error);
    return rc;
}

// An embedding that is only looked up has no inputs.
static bool is_multiplied(const struct nb_plan *plan, struct nb_str name)
{
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (op->kind == NB_OP_LINEAR && op->w->name.len == name.len &&
            !memcmp(op->w->name.data, name.data, name.len))
            return true;
    }
    return false;
}

// Under the scheme that the recipe names, or that the model's file has.
static int round_inputs(struct distilling *k, const struct nb_inputs *own, struct nb_str name)
{
    enum nb_input_scale scale = k->recipe.activations;
    float range = 0;
    if (!is_multiplied(k->student.plan, name))
        return 0;
    if (own->scale == NB_INPUT_FIXED && nb_inputs_range(own, name, &range) < 0)
        return nb_fail(k->error, -EINVAL, "%s has no matrix %.*s: its inputs have no range",
                       NB_KEY_ACTIVATIONS_MATRICES, (int)name.len, name.data);
    if (own->scale != NB_INPUT_BLOCK)
        scale = range > 0 ? NB_INPUT_FIXED : NB_INPUT_ROW;
    return scale == NB_INPUT_BLOCK ? 0
                                   : nb_train_round_inputs(k->train, name, scale, range, k->error);
}

static bool has_codes(const struct nb_choice *c, const struct nb_source_tensor *t)
{
    const struct nb_scheme *scheme = nb_choice_scheme(c);
    return (!scheme || scheme->exact) &&
           nb_latent_bytes(c->type, nb_source_rows(t), (uint32_t)t->dims[0]) > 0;
}

// From the file's own codes where it has the type already, else from what a search finds.
static int read_codes(struct distilling *k, uint32_t i, uint32_t type, void *ret)
{
    const struct nb_source_tensor *t = &k->student.source->tensors[i];
    const struct nb_encode how = {.type = type, .effort = NB_EFFORT_SEARCH};
    uint64_t n;
    if (t->type == type && !k->options.random)
        return nb_source_read(k->student.source, t, 0, nb_source_rows(t), ret, k->error);
    int rc = nb_encode_matrix(&how, k->work->team, nb_train_tensor(k->train, t->name, &n),
                              nb_source_rows(t), t->dims[0], ret);
    return rc < 0 ? nb_fail(k->error, rc, "tensor %.*s cannot be encoded as %s: %s",
                            (int)t->name.len, t->name.data, nb_type_name(type),
                            rc == -ERANGE ? "a weight is too large for it"
                            : rc == -EDOM ? "a weight is not finite"
                                          : strerror(-rc))
                  : 0;
}

static int learn_codes(struct distilling *k, uint32_t i, uint32_t type)
{
    void *encoded = malloc(nb_compress_bytes(k->compress, i));
    if (!encoded)
        return nb_fail(k->error, -ENOMEM, "no memory for codes to begin with");
    int rc = read_codes(k, i, type, encoded);
    if (rc == 0)
        rc = nb_train_learn_codes(k->train, k->trained.tensors[i].name, type, encoded, k->error);
    free(encoded);
    return rc;
}

static int round_tensor(struct distilling *k, uint32_t i, const struct nb_choice *c)
{
    const struct nb_source_tensor *t = &k->trained.tensors[i];
    const struct nb_encode how = {.type = c->type, .scheme = nb_choice_scheme(c)};
    return k->recipe.scales == NB_SCALES_LEARNT && has_codes(c, t)
               ? learn_codes(k, i, c->type)
               : nb_train_round(k->train, t->name, &how, k->error);
}

// Its matrices as they will be written, and their inputs as they will be quantized.
int nb_jobs_distill_round(struct distilling *k)
{
    const struct nb_choice *choices = nb_compress_choices(k->compress);
    struct nb_inputs own = {0};
    int rc = nb_inputs_read(k->student.source->metadata, UINT32_MAX, &own, k->error);
    for (uint32_t i = 0; i < k->trained.n_tensors && rc == 0 && k->recipe.qat; i++) {
        uint64_t n;
        const struct nb_str name = k->trained.tensors[i].name;
        if (choices[i].type == NB_TYPE_F32 || !nb_train_tensor(k->train, name, &n))
            continue;
        rc = round_tensor(k, i, &choices[i]);
        if (rc == 0 && nb_type_info(choices[i].type)->block > 1)
            rc = round_inputs(k, &own, name);
    }
    return rc;
}

int nb_jobs_distill_make_room(struct distilling *k)
{
    return nb_jobs_make_room(k->work->results[NB_DISTILL_MODEL], nb_compress_size(k->compress),
                             k->recipe.states * nb_jobs_distill_state_bytes(k) + REPORT_ROOM,
                             k->error);
}

static int put_codes(struct distilling *k, uint32_t i, struct nb_str name)
{
    void *encoded = malloc(nb_compress_bytes(k->compress, i));
    if (!encoded)
        return nb_fail(k->error, -ENOMEM, "no memory for codes to write");
    nb_train_encode(k->train, name, encoded);
    int rc = nb_compress_put(k->compress, i, encoded, k->error);
    free(encoded);
    return rc;
}

int nb_jobs_distill_write(struct distilling *k)
{
    int rc = nb_compress_begin(k->compress, k->error);
    for (uint32_t i = 0; i < k->trained.n_tensors && rc == 0; i++) {
        const struct nb_str name = k->trained.tensors[i].name;
        if (nb_train_encode(k->train, name, NULL) && !nb_compress_has(k->compress, i))
            rc = put_codes(k, i, name);
    }
    return rc == 0 ? nb_compress_finish(k->compress, NULL, k->error) : rc;
}
