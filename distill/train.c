// What training's steps need: tensors, their memory, tapes, and the state. No step is run here.
#include "distill/train.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "distill/relations.h"
#include "distill/train_room.h"

// --- What is refused

static bool is_within(float x, float most)
{
    return isfinite(x) && x >= 0 && x <= most;
}

static int check_numbers(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    if (!is_within(o->rate, 1) || !is_within(o->decay, 1) || !is_within(o->clip, 1e9f) ||
        !is_within(o->hard, 1) || !is_within(o->mix, 1) || !is_within(o->own, 1) ||
        !is_within(o->hidden, 1e3f) || !is_within(o->attention, 1e3f) ||
        !is_within(o->cosine, 1e3f) || !is_within(o->relation, 1e3f) ||
        !is_within(o->temperature, 100) || o->temperature < 0.01f)
        return nb_fail(e, -EINVAL, "a number of the training is out of range");
    if (o->adapter.rank && !(o->adapter.alpha > 0 && is_within(o->adapter.alpha, 1e6f)))
        return nb_fail(e, -EINVAL, "the adapter's alpha is over 0, up to 1000000");
    if (o->steps > NB_TRAIN_STEPS || o->accumulate < 1 ||
        (uint64_t)o->steps * o->accumulate > UINT32_MAX)
        return nb_fail(e, -EINVAL, "more than %u steps of training", NB_TRAIN_STEPS);
    if (o->share && o->accumulate < o->share->ranks)
        return nb_fail(e, -EINVAL,
                       "a step has %u batches, and %u processes share it: larger steps have more "
                       "(\"batch\")",
                       o->accumulate, o->share->ranks);
    return 0;
}

// They are of tokens that a text has, and know nothing but the next ones' probabilities.
static int check_lessons(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    const struct nb_lessons_header *h = nb_lessons_header(o->lessons);
    if (t->teacher_plan)
        return nb_fail(e, -EINVAL, "lessons take the teacher's place: give one of them");
    if (o->mix > 0 || o->own > 0 || o->hidden > 0 || o->attention > 0)
        return nb_fail(e, -EINVAL,
                       "lessons have the teacher's likeliest tokens alone: \"mix\", \"own\", "
                       "\"hidden\" and \"attention\" need the teacher itself");
    if (h->vocab != t->plan->hp.vocab || h->length != t->windows->length || t->windows->end)
        return nb_fail(e, -EINVAL, "the lessons are of other windows or another vocabulary");
    if (h->temperature != o->temperature)
        return nb_fail(e, -EINVAL,
                       "the lessons are of a temperature of %g, and the training's is %g: both are "
                       "the same (--temperature)",
                       (double)h->temperature, (double)o->temperature);
    return 0;
}

static int check_logits(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    const struct nb_plan *teacher = t->teacher_plan;
    if (o->cosine > 0 || o->relation > 0)
        return nb_fail(e, -EINVAL, "a model that is not made for vectors does not learn them");
    if (o->lessons)
        return check_lessons(t, e);
    if (!teacher && (o->hard < 1 || o->hidden > 0 || o->attention > 0))
        return nb_fail(e, -EINVAL, "soft labels, hidden states and attention need a teacher");
    if (o->own > 0 && (!teacher || t->windows->end))
        return nb_fail(
            e, -EINVAL,
            "what the student writes itself (\"own\") is of running text, and judged by a "
            "teacher: with a \"hard\" below 1, and of no conversations");
    if (o->own >= 1 && o->hard > 0)
        return nb_fail(
            e, -EINVAL,
            "what the student writes itself has no labels, and with an \"own\" of 1 there "
            "is no other text: set \"hard\" to 0");
    if (teacher && teacher->hp.arch->encoder)
        return nb_fail(e, -ENOTSUP, "a %s model has no logits: it cannot teach them",
                       teacher->hp.arch->name);
    return 0;
}

static int check_vectors(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    const struct nb_plan *s = t->plan, *teacher = t->teacher_plan;
    if (o->own > 0)
        return nb_fail(e, -EINVAL, "a model that is made for vectors writes no text of its own");
    if (o->adapter.rank)
        return nb_fail(e, -ENOTSUP,
                       "adapters are trained by logits: not of a %s model that is made for vectors",
                       s->hp.arch->name);
    if (!teacher || !(o->cosine + o->relation + o->hidden + o->attention > 0))
        return nb_fail(e, -EINVAL,
                       "vectors are learnt of a teacher: by cosine, relation, hidden or attention");
    if (o->cosine > 0 && teacher->hp.embedding != s->hp.embedding)
        return nb_fail(e, -EINVAL,
                       "vectors of %u and %u numbers have no cosine: set it to 0, so that the "
                       "relations among texts are learnt alone",
                       teacher->hp.embedding, s->hp.embedding);
    return 0;
}

// What the float engine has on the CPU alone (grad/grad.h).
static int check_device(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_train_options *o = &t->options;
    const char *lacks = !o->device         ? NULL
                        : o->bf16          ? "in bf16"
                        : o->adapter.rank  ? "adapters"
                        : o->attention > 0 ? "the last attention's relations"
                                           : NULL;
    return lacks ? nb_fail(e, -ENOTSUP, "the device does not train %s: the CPU does", lacks) : 0;
}

static int check(const struct nb_train *t, struct nb_error *e)
{
    const struct nb_plan *s = t->plan, *teacher = t->teacher_plan;
    int rc = check_numbers(t, e);
    if (rc == 0)
        rc = check_device(t, e);
    if (rc == 0)
        rc = nb_windows_check(t->windows, s->hp.context, s->hp.vocab, "student", e);
    if (rc == 0 && teacher)
        rc = nb_windows_check(t->windows, teacher->hp.context, teacher->hp.vocab, "teacher", e);
    if (rc == 0)
        rc = t->vectors ? check_vectors(t, e) : check_logits(t, e);
    if (rc == 0 && teacher && teacher->hp.vocab != s->hp.vocab)
        return nb_fail(e, -EINVAL,
                       "the teacher has %u tokens and the student %u: they need one "
                       "tokenizer",
                       teacher->hp.vocab, s->hp.vocab);
    return rc;
}

// --- Memory

// The rows of the longest windows that a batch can have.
static int count_rows(struct nb_train *t, struct nb_error *e)
{
    const struct nb_windows *w = t->windows;
    const uint32_t batch = t->options.batch;
    uint64_t rows = (uint64_t)batch * w->length;
    uint32_t *of = w->end ? calloc((size_t)w->length + 1, sizeof(*of)) : NULL, length;
    if (w->end && !of)
        return nb_fail(e, -ENOMEM, "no memory to train");
    for (uint32_t i = 0; of && i < w->n; i++) {
        nb_window(w, i, &length);
        of[length]++;
    }
    for (uint32_t left = batch, i = of ? w->length : 0; i > 0; i--) {
        const uint32_t n = of[i] < left ? of[i] : left;
        rows -= (uint64_t)n * (w->length - i);
        left -= n;
    }
    free(of);
    if (batch == 0 || w->length < 2 || rows > NB_GRAD_ROWS || batch > w->n)
        return nb_fail(e, -EINVAL, "a batch of %u windows of %u tokens; there are %u windows",
                       batch, w->length, w->n);
    t->rows = rows > w->length ? (uint32_t)rows : w->length; // one is measured that is not learnt
    return 0;
}

static int make_rows(struct nb_train *t)
{
    const struct nb_hparams *hp = &t->plan->hp;
    const size_t rows = t->rows, slice = NB_TRAIN_SLICE;
    const size_t taught = t->teacher_plan ? t->teacher_plan->hp.embedding : 0;
    const size_t vocab = t->vectors ? 0 : hp->vocab, pooled = t->vectors ? rows : 0;
    t->x = nb_grad_floats((hp->n_layers + 1) * rows * hp->embedding);
    t->d = nb_grad_floats(rows * hp->embedding);
    t->taught = nb_grad_floats(2 * rows * taught);
    t->projected = nb_grad_floats(t->projection ? 2 * rows * taught : 0);
    t->logits = nb_grad_floats(slice * vocab);
    t->teacher_logits = nb_grad_floats(t->teacher ? slice * vocab : 0);
    const size_t kept = t->options.lessons ? nb_lessons_header(t->options.lessons)->kept : 0;
    t->sums = calloc(kept ? rows : 1, sizeof(*t->sums));
    t->kept = calloc(rows * kept + 1, sizeof(*t->kept));
    t->vector = nb_grad_floats(pooled * hp->embedding);
    t->teacher_vector = nb_grad_floats(pooled * taught);
    t->d_vector = nb_grad_floats(pooled * hp->embedding);
    t->d_slice = nb_grad_floats(t->vectors ? slice * hp->embedding : 0);
    t->soft = calloc(6 * rows, sizeof(*t->soft));
    t->label = calloc(rows, sizeof(*t->label));
    t->end = calloc(rows, sizeof(*t->end));
    t->order = calloc((size_t)t->windows->n + t->options.batch, sizeof(*t->order));
    t->sequence = calloc(rows, sizeof(*t->sequence));
    t->own = calloc((size_t)t->options.batch * t->windows->length, sizeof(*t->own));
    t->tapes = calloc(hp->n_layers + 1, sizeof(*t->tapes)); // NOLINT(bugprone-sizeof-expression)
    if (!t->x || !t->d || !t->taught || !t->projected || !t->logits || !t->teacher_logits ||
        !t->vector || !t->teacher_vector || !t->d_vector || !t->d_slice || !t->soft || !t->label ||
        !t->end || !t->order || !t->sequence || !t->own || !t->tapes || !t->sums || !t->kept)
        return -ENOMEM;
    t->chosen = t->order + t->windows->n;
    float **of_rows[] = {&t->hard, &t->hidden, &t->attention, &t->cosine, &t->relation};
    for (size_t i = 0; i < sizeof(of_rows) / sizeof(of_rows[0]); i++)
        *of_rows[i] = t->soft + (i + 1) * rows;
    return 0;
}

// Three parts of rows: queries, keys and values.
static bool make_attended(const struct nb_train *t, const struct nb_hparams *hp, float *ret[3])
{
    for (uint32_t i = 0; i < 3; i++)
        if (!(ret[i] = nb_grad_floats((size_t)t->rows * nb_train_attended(hp, i))))
            return false;
    return true;
}

// Of the last layers, where they are compared.
static int tap_attention(struct nb_train *t)
{
    const struct nb_plan *own = t->plan, *other = t->teacher_plan;
    if (!(t->options.attention > 0))
        return 0;
    t->relating = nb_grad_floats(nb_relations_scratch(t->windows->length));
    if (!t->relating || !make_attended(t, &own->hp, t->attended) ||
        !make_attended(t, &own->hp, t->d_attended) ||
        !make_attended(t, &other->hp, t->attended_teacher))
        return -ENOMEM;
    nb_grad_tap(t->grad, own->n_layers - 1, t->attended, (const float *const *)t->d_attended);
    nb_grad_tap(t->teacher, other->n_layers - 1, t->attended_teacher, NULL);
    return 0;
}

// For the largest batch.
static int make_tapes(struct nb_train *t, struct nb_error *e)
{
    const struct nb_windows *w = t->windows;
    uint32_t n = 0;
    for (uint32_t at = 0; at < t->rows; at += w->length, n++)
        t->sequence[n] = (struct nb_grad_sequence){
            w->tokens, t->rows - at < w->length ? t->rows - at : w->length, 0};
    int rc = nb_grad_batch(t->grad, t->sequence, n, e);
    return rc == 0 ? nb_tapes_create(t->grad, t->options.memory, t->tapes) : rc;
}

// Of the windows that the student writes.
static int make_cache(struct nb_train *t)
{
    const struct nb_train_options *o = &t->options;
    const uint32_t most = (uint32_t)ceil((double)o->own * o->batch);
    if (!most)
        return 0;
    int rc = nb_grad_cache_create(t->grad, most, t->windows->length, &t->cache);
    return rc == -ENOTSUP ? 0 : rc;
}

// --- Creation

static uint64_t key_of(const struct nb_train *t)
{
    const struct nb_windows *w = t->windows;
    const struct nb_train_options *o = &t->options;
    const float reals[] = {o->rate,   o->decay,    o->clip,          o->temperature,
                           o->hard,   o->hidden,   o->adapter.alpha, o->mix,
                           o->cosine, o->relation, o->own,           o->attention};
    const uint64_t numbers[] = {w->n,
                                w->length,
                                o->batch,
                                o->accumulate,
                                o->steps,
                                o->warm,
                                o->seed,
                                o->schedule,
                                o->random,
                                t->n_tensors,
                                nb_train_weights(t),
                                o->adapter.rank,
                                o->bf16,
                                o->coded_moments};
    XXH64_hash_t key = XXH3_64bits(w->tokens, nb_windows_tokens(w) * sizeof(*w->tokens));
    if (w->end)
        key = XXH3_64bits_withSeed(w->end, w->n * sizeof(*w->end), key);
    if (w->answers)
        key = XXH3_64bits_withSeed(w->answers, nb_windows_tokens(w) * sizeof(*w->answers), key);
    if (o->lessons)
        key = XXH3_64bits_withSeed(nb_lessons_header(o->lessons), sizeof(struct nb_lessons_header),
                                   key);
    key = XXH3_64bits_withSeed(reals, sizeof(reals), key);
    key = XXH3_64bits_withSeed(numbers, sizeof(numbers), key);
    for (uint32_t i = 0; i < t->n_tensors; i++)
        key = XXH3_64bits_withSeed(t->tensors[i].x, t->tensors[i].floats * sizeof(float), key);
    return key;
}

static int create(struct nb_train *t, struct nb_error *e)
{
    t->vectors = t->plan->hp.for_vectors;
    int rc = check(t, e);
    if (rc == 0)
        rc = count_rows(t, e);
    if (rc == 0)
        rc = nb_grad_open_on(t->plan, t->team, t->options.device, &t->grad, e);
    if (rc == 0 && t->teacher_plan)
        rc = nb_grad_open_on(t->teacher_plan, t->team, t->options.device, &t->teacher, e);
    if (rc < 0)
        return rc;
    nb_grad_narrow(t->grad, t->options.bf16);
    if (t->teacher)
        nb_grad_narrow(t->teacher, t->options.bf16);
    rc = nb_train_add_tensors(t, e);
    if (rc < 0)
        return rc;
    t->key = key_of(t);
    if (make_rows(t) < 0 || tap_attention(t) < 0 || make_cache(t) < 0)
        return nb_fail(e, -ENOMEM, "no memory for batches of %u tokens", t->rows);
    rc = make_tapes(t, e);
    return rc == -ENOMEM ? nb_fail(e, rc, "no memory for the tapes of %u tokens", t->rows) : rc;
}

int nb_train_create(const struct nb_plan *student, const struct nb_plan *teacher,
                    struct nb_team *team, const struct nb_windows *windows,
                    const struct nb_train_options *options, struct nb_train **ret,
                    struct nb_error *ret_error)
{
    struct nb_train *t = calloc(1, sizeof(*t));
    if (!t)
        return nb_fail(ret_error, -ENOMEM, "no memory to train");
    *t = (struct nb_train){.plan = student,
                           .teacher_plan = teacher,
                           .team = team,
                           .windows = windows,
                           .options = *options};
    int rc = create(t, ret_error);
    if (rc < 0)
        nb_train_destroy(t);
    else
        *ret = t;
    return rc;
}

void nb_train_destroy(struct nb_train *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->tapes && i < t->plan->n_layers; i++)
        nb_tape_destroy(t->tapes[i]);
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        nb_latent_destroy(t->tensors[i].latent);
        free(t->tensors[i].x);
        free(t->tensors[i].gradient);
        free(t->tensors[i].rounded);
    }
    nb_grad_cache_destroy(t->cache);
    nb_grad_close(t->grad);
    nb_grad_close(t->teacher);
    free(t->tensors);
    free(t->factors);
    free(t->tapes);
    free(t->x);
    free(t->d);
    free(t->taught);
    free(t->projected);
    free(t->logits);
    free(t->teacher_logits);
    free(t->sums);
    free(t->kept);
    free(t->vector);
    free(t->teacher_vector);
    free(t->d_vector);
    free(t->d_slice);
    for (int i = 0; i < 3; i++) {
        free(t->attended[i]);
        free(t->attended_teacher[i]);
        free(t->d_attended[i]);
    }
    free(t->relating);
    free(t->soft); // and what lies behind it
    free(t->label);
    free(t->end);
    free(t->order);
    free(t->sequence);
    free(t->own);
    free(t);
}

// --- What it has

uint32_t nb_train_done(const struct nb_train *t)
{
    return t->done;
}

uint64_t nb_train_weights(const struct nb_train *t)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < nb_train_count(t); i++)
        n += t->tensors[i].floats;
    return n;
}

struct nb_trained *nb_train_find(const struct nb_train *t, struct nb_str name)
{
    for (uint32_t i = 0; i < nb_train_count(t); i++)
        if (strlen(t->tensors[i].name) == name.len &&
            !memcmp(t->tensors[i].name, name.data, name.len))
            return &t->tensors[i];
    return NULL;
}

const float *nb_train_tensor(const struct nb_train *t, struct nb_str name, uint64_t *ret_n)
{
    const struct nb_trained *w = nb_train_find(t, name);
    *ret_n = w ? w->floats : 0;
    return !w ? NULL : w->latent ? w->rounded : w->x;
}

uint32_t nb_train_count(const struct nb_train *t)
{
    return t->n_tensors - (t->projection != NULL);
}

struct nb_train_moved nb_train_moved(const struct nb_train *t, uint32_t i)
{
    const struct nb_trained *w = &t->tensors[i];
    return (struct nb_train_moved){w->name, w->rows, w->cols};
}

// --- The state: weights and moments, one behind the other

static struct nb_state state_of(const struct nb_train *t, uint32_t *done)
{
    struct nb_state_part *parts = calloc(t->n_tensors + 1, sizeof(*parts));
    for (uint32_t i = 0; parts && i < t->n_tensors; i++) {
        size_t floats;
        parts[i].data = nb_trained_state(&t->tensors[i], &floats);
        parts[i].bytes = floats * sizeof(float);
    }
    return (struct nb_state){.magic = "nbtrain",
                             .key = t->key,
                             .done = done,
                             .all = t->options.steps,
                             .parts = parts,
                             .n_parts = t->n_tensors};
}

int nb_train_store(const struct nb_train *t, nb_state_io write, void *user)
{
    uint32_t done = t->done;
    const struct nb_state s = state_of(t, &done);
    int rc = s.parts ? nb_state_write(&s, write, user) : -ENOMEM;
    free((void *)s.parts);
    return rc;
}

int nb_train_restore(struct nb_train *t, nb_state_io read, void *user)
{
    const struct nb_state s = state_of(t, &t->done);
    int rc = s.parts ? nb_state_read(&s, read, user) : -ENOMEM;
    free((void *)s.parts);
    t->stale = true;
    return rc;
}

uint64_t nb_train_state_bytes(const struct nb_train *t)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        size_t floats;
        nb_trained_state(&t->tensors[i], &floats);
        n += floats * sizeof(float);
    }
    return n;
}
