// The tuning of a compression. What it starts from stays in the result's file until its last step;
// its states lie in the job's scratch files, in turns, and the journal says which is whole. What it
// ends with is saved there too, and only then put in the file.
#include "daemon/worker/jobs_tune.h"
#include "daemon/worker/jobs_scratch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/worker.h"
#include "quant/tune.h"
#include "tensor/type.h"

#define SAVE_NS     UINT64_C(120000000000) // between two states
#define MEMORY      (UINT64_C(512) << 20)  // bytes that computing less again may take
#define LAYER_RATES 10                     // a layer's codes move so many times as fast
#define STATE       12                     // bytes of a weight's state

// Kinds of records: the windows' KL before; a slot; a slot and what came of it; what came of it.
enum { BEFORE = NB_JOBS_TUNE_RECORDS, SAVED, OVER, PUT };

struct record {
    uint32_t slot, pad;
    struct nb_tuned tuned;
};

// A matrix as it is in the file.
struct start {
    char *name, *encoded;
    uint32_t tensor; // in the source's list
};

struct tuning {
    const struct nb_jobs_tune *how;
    struct nb_jobs_tuning *t;
    struct nb_journal *journal;
    struct nb_tune *tune;
    struct nb_windows learnt, held;
    struct start *starts;
    uint32_t n, steps, all_steps; // of the whole model; with those of layers
    uint64_t saved_ns;
    struct nb_jobs_scratch scratch;
    struct nb_error *error;
};

static int no_memory(const struct tuning *k)
{
    return nb_fail(k->error, -ENOMEM, "no memory to tune this model: --effort fast does without");
}

// ---- The journal

int nb_jobs_tune_visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    struct nb_jobs_tuning *t = user;
    struct record r;
    if (kind == BEFORE && bytes <= sizeof(t->before) && bytes % sizeof(*t->before) == 0) {
        memcpy(t->before, data, bytes);
        t->n_before = bytes / (uint32_t)sizeof(*t->before);
        return 0;
    }
    if (kind < SAVED || kind > PUT || bytes != sizeof(r))
        return 1;
    memcpy(&r, data, sizeof(r));
    if (r.slot >= NB_JOB_SCRATCH)
        return 1;
    t->slot = r.slot;
    t->tuned = r.tuned;
    t->saved = kind == SAVED;
    t->over = kind >= OVER;
    t->put = kind == PUT;
    return 0;
}

static int append(const struct tuning *k, uint32_t kind, const void *data, size_t bytes)
{
    return nb_journal_keep(k->journal, kind, data, (uint32_t)bytes,
                           &k->how->work->scratch[k->t->slot], 1, k->error);
}

static int append_record(const struct tuning *k, uint32_t kind)
{
    struct record r = {.slot = k->t->slot, .tuned = k->t->tuned};
    return append(k, kind, &r, sizeof(r));
}

// ---- Scratch files

static int fail_scratch(const struct tuning *k, int rc)
{
    return nb_fail(k->error, rc, "the tuning's state cannot be written: %s", strerror(-rc));
}

// The other slot is written, so that one is whole at any instant.
static int save(struct tuning *k)
{
    const uint32_t slot = (k->t->slot + 1) % NB_JOB_SCRATCH;
    int rc = nb_jobs_scratch_turn(&k->scratch, slot, 0);
    if (rc == 0)
        rc = nb_tune_store(k->tune, nb_jobs_scratch_write, &k->scratch);
    if (rc < 0)
        return fail_scratch(k, rc);
    k->t->slot = slot;
    k->saved_ns = nb_now_ns();
    return append_record(k, SAVED);
}

// A state that cannot be read any more costs the steps before it, nothing else.
static int restore(struct tuning *k)
{
    int rc = nb_jobs_scratch_turn(&k->scratch, k->t->slot, 0);
    if (rc == 0)
        rc = nb_tune_restore(k->tune, nb_jobs_scratch_read, &k->scratch);
    k->t->saved = rc == 0;
    return rc == -ENOMEM ? no_memory(k) : 0;
}

// ---- The beginning

// One that the source has: the image may have made others of several.
static int add_matrix(struct tuning *k, const struct nb_matrix *m)
{
    struct start *to = &k->starts[k->n];
    to->tensor = nb_source_find(k->how->source, m->name);
    if (to->tensor == k->how->source->n_tensors)
        return 0;
    k->n++;
    to->name = strndup(m->name.data, m->name.len);
    return to->name ? 0 : no_memory(k);
}

static int read_starts(struct tuning *k)
{
    int rc = 0;
    for (uint32_t i = 0; i < k->n && rc == 0; i++) {
        struct start *s = &k->starts[i];
        s->encoded = malloc(nb_compress_bytes(k->how->compress, s->tensor));
        rc = s->encoded ? nb_compress_get(k->how->compress, s->tensor, s->encoded, k->error)
                        : no_memory(k);
    }
    return rc;
}

static void drop_starts(struct tuning *k)
{
    for (uint32_t i = 0; i < k->n; i++) {
        free(k->starts[i].name);
        free(k->starts[i].encoded);
        k->starts[i].name = k->starts[i].encoded = NULL;
    }
}

// Of a step.
static uint32_t windows_of(const struct tuning *k)
{
    const uint32_t fit = k->how->plan.batch / k->learnt.length, n = fit > 1 ? fit : 1;
    return n < k->learnt.n ? n : k->learnt.n;
}

static uint32_t count_steps(const struct tuning *k)
{
    const uint32_t n = k->how->plan.tokens / (windows_of(k) * k->learnt.length);
    return n < 1 ? 1 : n < NB_TUNE_STEPS ? n : NB_TUNE_STEPS;
}

static int list_matrices(struct tuning *k)
{
    const struct nb_plan *plan = nb_calibration_plan(k->how->calibration);
    int rc = 0;
    k->starts = calloc(plan->n_matrices + 1, sizeof(*k->starts));
    if (!k->starts)
        return no_memory(k);
    for (uint32_t i = 0; i < plan->n_matrices && rc == 0; i++)
        rc = add_matrix(k, &plan->matrices[i]);
    return rc;
}

static int create_tune(struct tuning *k)
{
    const struct nb_plan *plan = nb_calibration_plan(k->how->calibration);
    const struct nb_tuning_plan *p = &k->how->plan;
    struct nb_tune_matrix *matrices = calloc(k->n + 1, sizeof(*matrices));
    if (!matrices)
        return no_memory(k);
    for (uint32_t i = 0; i < k->n; i++)
        matrices[i] = (struct nb_tune_matrix){
            .name = k->starts[i].name,
            .type = nb_compress_choices(k->how->compress)[k->starts[i].tensor].type,
            .encoded = k->starts[i].encoded};
    const struct nb_tune_options options = {.batch = windows_of(k),
                                            .steps = k->steps,
                                            .code_rate = p->code_rate,
                                            .scale_rate = p->scale_rate,
                                            .vector_rate = p->vector_rate,
                                            .layer_steps = p->layer_steps,
                                            .layer_code_rate = LAYER_RATES * p->code_rate,
                                            .layer_scale_rate = p->scale_rate,
                                            .memory = MEMORY};
    int rc = nb_tune_create(plan, k->how->work->team, &k->learnt, matrices, k->n, &options,
                            &k->tune, k->error);
    free(matrices);
    return rc;
}

static int open_tune(struct tuning *k)
{
    k->learnt = *nb_calibration_windows(k->how->calibration);
    k->held = *nb_calibration_held_out(k->how->calibration);
    k->held.n = k->held.n < NB_JOBS_HELD ? k->held.n : NB_JOBS_HELD;
    k->steps = count_steps(k);
    k->all_steps =
        k->steps + nb_calibration_plan(k->how->calibration)->hp.n_layers * k->how->plan.layer_steps;
    int rc = read_starts(k);
    if (rc == 0)
        rc = create_tune(k);
    drop_starts(k);
    return rc;
}

// What it begins with on the windows that are held out.
static int measure_before(struct tuning *k)
{
    if (k->t->n_before == k->held.n)
        return 0;
    int rc = nb_tune_measure(k->tune, &k->held, k->t->before, k->error);
    k->t->n_before = k->held.n;
    return rc == 0 ? append(k, BEFORE, k->t->before, k->held.n * sizeof(*k->t->before)) : rc;
}

// ---- Steps

static int run_steps(struct tuning *k)
{
    double loss;
    int rc = 0;
    k->saved_ns = nb_now_ns();
    while (nb_tune_done(k->tune) < k->all_steps && rc == 0) {
        char what[64];
        rc = nb_tune_step(k->tune, &loss, k->error);
        if (rc < 0)
            break;
        snprintf(what, sizeof(what), "tuning %u/%u, loss %.4f", nb_tune_done(k->tune), k->steps,
                 loss);
        rc = k->how->progress(k->how->user, what, nb_tune_done(k->tune), k->all_steps);
        if (rc == 0 && nb_now_ns() - k->saved_ns > SAVE_NS)
            rc = save(k);
    }
    return rc;
}

static int save_results(struct tuning *k)
{
    uint32_t n;
    struct nb_str name;
    const float *x;
    int rc = nb_jobs_scratch_turn(&k->scratch, (k->t->slot + 1) % NB_JOB_SCRATCH, 0);
    for (uint32_t i = 0; i < k->n && rc == 0; i++) {
        const uint64_t bytes = nb_compress_bytes(k->how->compress, k->starts[i].tensor);
        void *encoded = malloc(bytes);
        if (!encoded)
            return no_memory(k);
        nb_tune_encode(k->tune, i, encoded);
        rc = nb_jobs_scratch_write(&k->scratch, encoded, bytes);
        free(encoded);
    }
    for (uint32_t i = 0; rc == 0 && (x = nb_tune_vector(k->tune, i, &name, &n)); i++) {
        uint32_t head[2] = {nb_source_find(k->how->source, name), n};
        rc = nb_jobs_scratch_write(&k->scratch, head, sizeof(head));
        if (rc == 0)
            rc = nb_jobs_scratch_write(&k->scratch, (void *)x, n * sizeof(*x));
    }
    uint32_t end[2] = {UINT32_MAX, 0};
    if (rc == 0)
        rc = nb_jobs_scratch_write(&k->scratch, end, sizeof(end));
    return rc < 0 ? fail_scratch(k, rc) : 0;
}

static int finish_steps(struct tuning *k)
{
    double after[NB_JOBS_HELD];
    int rc = nb_tune_measure(k->tune, &k->held, after, k->error);
    if (rc < 0)
        return rc;
    k->t->tuned = (struct nb_tuned){nb_gain_of(k->t->before, after, k->held.n), k->all_steps};
    rc = save_results(k);
    if (rc < 0)
        return rc;
    k->t->slot = (k->t->slot + 1) % NB_JOB_SCRATCH;
    return append_record(k, OVER);
}

// ---- The end

static int put(struct tuning *k, uint32_t tensor, uint64_t bytes)
{
    void *data = malloc(bytes);
    if (!data)
        return no_memory(k);
    int rc = nb_jobs_scratch_read(&k->scratch, data, bytes);
    if (rc < 0)
        nb_fail(k->error, rc, "the tuning's results cannot be read: %s", strerror(-rc));
    else
        rc = nb_compress_put(k->how->compress, tensor, data, k->error);
    free(data);
    return rc;
}

static int put_vectors(struct tuning *k)
{
    uint32_t head[2];
    int rc = nb_jobs_scratch_read(&k->scratch, head, sizeof(head));
    while (rc == 0 && head[0] < k->how->source->n_tensors) {
        if (nb_compress_choices(k->how->compress)[head[0]].type != NB_TYPE_F32 ||
            head[1] * sizeof(float) != nb_compress_bytes(k->how->compress, head[0]))
            return nb_fail(k->error, -EBADMSG, "the tuning's results are of another model");
        rc = put(k, head[0], head[1] * sizeof(float));
        if (rc == 0)
            rc = nb_jobs_scratch_read(&k->scratch, head, sizeof(head));
    }
    return rc;
}

static int put_results(struct tuning *k)
{
    int rc = k->t->tuned.gain.kept ? nb_jobs_scratch_turn(&k->scratch, k->t->slot, 0) : 0;
    for (uint32_t i = 0; k->t->tuned.gain.kept && i < k->n && rc == 0; i++)
        rc = put(k, k->starts[i].tensor, nb_compress_bytes(k->how->compress, k->starts[i].tensor));
    if (rc == 0 && k->t->tuned.gain.kept)
        rc = put_vectors(k);
    return rc == 0 ? append_record(k, PUT) : rc;
}

static int tune(struct tuning *k)
{
    int rc = open_tune(k);
    if (rc == 0 && k->t->saved)
        rc = restore(k);
    if (rc == 0 && !k->t->saved)
        rc = measure_before(k);
    if (rc == 0)
        rc = run_steps(k);
    return rc == 0 ? finish_steps(k) : rc;
}

static int run(struct tuning *k)
{
    int rc = list_matrices(k);
    if (rc == 0 && !k->t->over)
        rc = tune(k);
    return rc == 0 ? put_results(k) : rc;
}

int nb_jobs_tune_run(const struct nb_jobs_tune *how, struct nb_jobs_tuning *t,
                     struct nb_error *ret_error)
{
    struct tuning k = {.how = how,
                       .t = t,
                       .journal = nb_compress_journal(how->compress),
                       .scratch = {.work = how->work},
                       .error = ret_error};
    int rc = t->put ? 0 : run(&k);
    nb_tune_destroy(k.tune);
    if (k.starts)
        drop_starts(&k);
    free(k.starts);
    return rc == 0 ? nb_jobs_scratch_clear(how->work, ret_error) : rc;
}

int nb_jobs_tune_check(const struct nb_calibration *c, struct nb_error *ret_error)
{
    if (!nb_calibration_plan(c)->width[NB_VALUE_LOGITS])
        return nb_fail(ret_error, -ENOTSUP,
                       "methods tune and auto follow a model's next-token probabilities, and this "
                       "one has none: --method gptq does without");
    return 0;
}

uint64_t nb_jobs_tune_bytes(const struct nb_source *s, uint64_t file_bytes)
{
    uint64_t weights = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        weights += nb_source_rows(&s->tensors[i]) * s->tensors[i].dims[0];
    return NB_JOB_SCRATCH * (STATE * weights + (1u << 20)) + file_bytes;
}
