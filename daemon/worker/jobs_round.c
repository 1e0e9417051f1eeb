// The kinds "round" and "weighted": a model's matrices, rounded to nearest or by what calibration
// has learnt, written as one GGUF, with a report.
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/worker/jobs_allocate.h"
#include "daemon/worker/jobs_auto.h"
#include "daemon/worker/jobs_tune.h"
#include "quant/compress.h"
#include "quant/fold_search.h"
#include "quant/imatrix.h"
#include "quant/layerwise.h"
#include "quant/report.h"
#include "tensor/hf/folder.h"

#define REPORT_ROOM (1u << 20) // bytes that the report and the journal may take
#define TUNING      6          // and a token of tuning
#define FEEDBACK    3          // what error feedback takes, in times of its calibration's run

enum { MODEL, REPORT, IMATRIX }; // results

// A job of either kind. What is not there is NULL; an allocation, a tuning, the method auto and
// `then` go with a calibration.
struct job {
    struct nb_work *work;
    const struct nb_source *source;
    struct nb_recipe *recipe;
    struct nb_compress *c;
    struct nb_jobs_calibration *calibration;
    struct nb_jobs_allocation *allocation;
    struct nb_jobs_tuning *tuning;
    struct nb_jobs_auto *automatic;
    const struct nb_jobs_then *then; // of another kind of job; NULL: the file is the result
    int fd;                          // of the file
    // What is not a tensor's rounding counts as so many bytes of tensors: what comes before them;
    // error feedback and tuning, and how far these two are.
    uint64_t before, feedback, descent, fed;
    uint64_t bytes, done; // of tensors
    struct nb_error *error;
};

static int on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    struct job *k = user;
    k->done = done;
    k->bytes = total;
    nb_jobs_tell(k->work, what, k->before + k->fed + done,
                 k->before + k->feedback + k->descent + total);
    return 0;
}

static int on_feedback(void *user, uint32_t done, uint32_t total)
{
    struct job *k = user;
    char what[64];
    k->fed = k->feedback * done / total;
    snprintf(what, sizeof(what), "error feedback %u/%u", done, total);
    return on_progress(k, what, k->done, k->bytes);
}

static int on_tuning(void *user, const char *what, uint32_t done, uint32_t total)
{
    struct job *k = user;
    k->fed = k->feedback + k->descent * done / total;
    return on_progress(k, what, k->done, k->bytes);
}

// Records of the journal, by their kinds.
static int visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    const struct job *k = user;
    if (k->automatic && kind >= NB_JOBS_AUTO_RECORDS)
        return nb_jobs_auto_visit(k->automatic, kind, data, bytes);
    if (k->tuning && kind >= NB_JOBS_TUNE_RECORDS)
        return nb_jobs_tune_visit(k->tuning, kind, data, bytes);
    return k->allocation ? nb_jobs_allocate_visit(k->allocation, kind, data, bytes)
                         : nb_jobs_calibrate_visit(k->calibration, kind, data, bytes);
}

// ---- Room

// Of the file, at most.
static uint64_t most_bytes(const struct job *k)
{
    const struct nb_recipe_target *target = nb_recipe_target(k->recipe);
    const uint64_t size = nb_compress_size(k->c);
    return target->kind == NB_TARGET_SIZE && target->bytes < size ? target->bytes : size;
}

static int make_room(const struct job *k)
{
    const uint64_t bytes = most_bytes(k);
    const uint64_t scratch = k->tuning ? nb_jobs_tune_bytes(k->source, bytes) : 0;
    int rc = nb_jobs_make_room(k->fd, bytes, scratch + REPORT_ROOM, k->error);
    if (rc == 0 && k->then) // whose result is about as large
        rc = nb_jobs_make_room(k->work->results[MODEL], bytes, bytes + REPORT_ROOM, k->error);
    return rc;
}

// ---- Stages

// What comes before the tensors.
static int calibrate(struct job *k)
{
    struct nb_jobs_calibration *c = k->calibration;
    struct nb_journal *journal = nb_compress_journal(k->c);
    const uint64_t size = nb_compress_size(k->c);
    const uint64_t load = k->allocation ? nb_jobs_allocate_load(k->allocation, size) : 0;
    const double tuned =
        (double)nb_recipe_tuning(k->recipe).tokens / c->sampling.samples / c->sampling.length;
    const double run = (double)nb_jobs_calibrate_load(c, size);
    k->feedback = nb_recipe_feedback(k->recipe).on ? (uint64_t)(FEEDBACK * run) : 0;
    k->descent = k->tuning ? (uint64_t)(TUNING * tuned * run) : 0;
    nb_jobs_calibrate_init(c, size, size + load + k->feedback + k->descent);
    k->before = c->writing + c->folding + c->load + load;
    const bool follows = k->tuning || k->automatic;
    int rc = follows ? nb_jobs_calibrate_open(c, k->error) : 0;
    if (rc == 0 && follows)
        rc = nb_jobs_tune_check(c->open, k->error);
    if (rc == 0 && c->fold.methods)
        rc = nb_jobs_fold_run(c, nb_compress_choices(k->c), journal, k->error);
    if (rc == 0)
        rc = nb_jobs_calibrate_run(c, journal, k->error);
    if (rc == 0 && k->allocation)
        rc = nb_jobs_allocate_run(k->allocation, k->c, k->error);
    nb_compress_set_ranges(k->c, &c->ranges);
    return rc;
}

// Error feedback writes most tensors by itself.
static int feed_back(struct job *k)
{
    const struct nb_feedback_plan plan = nb_recipe_feedback(k->recipe);
    int rc = plan.on ? nb_jobs_calibrate_open(k->calibration, k->error) : 0;
    const struct nb_layerwise how = {.source = k->source,
                                     .calibration = k->calibration->open,
                                     .compress = k->c,
                                     .importance = &k->calibration->importance,
                                     .learns = k->calibration->by_the_way,
                                     .team = k->work->team,
                                     .damping = plan.damping,
                                     .mismatch = plan.mismatch,
                                     .passes = plan.passes,
                                     .progress = on_feedback,
                                     .user = k};
    return rc == 0 && plan.on ? nb_layerwise_run(&how, k->error) : rc;
}

static int tune(struct job *k)
{
    int rc = nb_jobs_calibrate_open(k->calibration, k->error);
    const struct nb_jobs_tune how = {.work = k->work,
                                     .source = k->source,
                                     .calibration = k->calibration->open,
                                     .compress = k->c,
                                     .plan = nb_recipe_tuning(k->recipe),
                                     .progress = on_tuning,
                                     .user = k};
    if (rc == 0)
        rc = nb_jobs_tune_run(&how, k->tuning, k->error);
    return rc == 0 ? nb_compress_finish(k->c, &k->calibration->importance, k->error) : rc;
}

static int round_calibrated(struct job *k)
{
    int rc = feed_back(k);
    return rc == 0 ? nb_compress_finish(k->c, &k->calibration->importance, k->error) : rc;
}

// Tensors are counted once more after each judgement.
static int round_judged(struct job *k)
{
    const struct nb_jobs_auto_run run = {k->calibration, k->c, k->fd};
    int rc = nb_jobs_auto_searched(&run, k->automatic, k->error);
    if (rc == 0 && nb_jobs_auto_feeds(k->automatic))
        rc = round_calibrated(k);
    return rc == 0 ? nb_jobs_auto_fed(&run, k->automatic, k->error) : rc;
}

static int write_calibrated(struct job *k)
{
    int rc = calibrate(k);
    if (rc == 0)
        rc = nb_compress_begin(k->c, k->error);
    if (rc == 0)
        rc = k->automatic ? round_judged(k) : round_calibrated(k);
    return rc == 0 && k->tuning ? tune(k) : rc;
}

static int write_plain(struct job *k)
{
    int rc = nb_compress_begin(k->c, k->error);
    return rc == 0 ? nb_compress_finish(k->c, NULL, k->error) : rc;
}

// ---- Results

static int report(const struct job *k, const struct nb_report *r)
{
    const int fd = k->work->results[REPORT];
    int rc = nb_report_write(r, fd);
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    return rc < 0 ? nb_fail(k->error, rc, "the report cannot be written: %s", strerror(-rc)) : 0;
}

static int export(const struct job *k)
{
    const struct nb_jobs_calibration *c = k->calibration;
    const int fd = k->work->results[IMATRIX];
    nb_jobs_calibrate_keep(c);
    int rc = nb_imatrix_write(&c->importance, c->sampling.samples, c->sampling.length, fd);
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    return rc < 0
               ? nb_fail(k->error, rc, "the importance matrix cannot be written: %s", strerror(-rc))
               : 0;
}

static const char *text_of(const struct nb_jobs_calibration *c)
{
    return c->imatrix >= 0 ? "imatrix" : c->n_texts ? "given" : "written by the model";
}

// Of each tensor, in what was written. *ret is malloc'ed; NULL: nothing was to be sparse.
static int count_zeros(const struct job *k, uint64_t **ret)
{
    const uint32_t n = k->source->n_tensors;
    *ret = NULL;
    if (!nb_recipe_sparsity(k->recipe))
        return 0;
    uint64_t *zeros = calloc(n + 1, sizeof(*zeros));
    int rc = zeros ? 0 : nb_fail(k->error, -ENOMEM, "no memory for the report");
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = nb_compress_zeros(k->c, i, &zeros[i], k->error);
    if (rc == 0)
        *ret = zeros;
    else
        free(zeros);
    return rc;
}

static int tell_all(struct job *k)
{
    uint64_t *zeros = NULL;
    struct nb_divergence divergence;
    struct nb_report r = {.source = k->source,
                          .recipe = k->recipe,
                          .choices = nb_compress_choices(k->c),
                          .type = nb_compress_type(k->c),
                          .feedback = k->automatic ? &k->automatic->gain : NULL,
                          .tuned = k->tuning ? &k->tuning->tuned : NULL};
    int rc = count_zeros(k, &zeros);
    r.zeros = zeros;
    if (k->calibration) {
        r.text = text_of(k->calibration);
        r.ranges = &k->calibration->ranges;
        r.fold = k->calibration->fold.fold;
    }
    if (rc == 0 && k->allocation) {
        r.allocated = nb_allocation_result(k->allocation->allocation);
        r.divergence = &divergence;
        rc =
            nb_jobs_calibrate_judge(k->calibration, k->fd, UINT32_MAX, &divergence, NULL, k->error);
    }
    if (rc == 0)
        rc = report(k, &r);
    free(zeros);
    return rc == 0 && k->calibration ? export(k) : rc;
}

static int hand_over(struct job *k)
{
    const struct nb_source *rounded = nb_compress_result(k->c);
    json_t *calibration = nb_report_calibration(k->recipe, text_of(k->calibration));
    int rc = rounded && calibration ? 0 : nb_fail(k->error, -ENOMEM, "no memory for the report");
    nb_jobs_calibrate_keep(k->calibration);
    if (rc == 0)
        rc = k->then->run(k->then->user, rounded, calibration, k->error);
    json_decref(calibration);
    return rc;
}

static int compress(struct job *k)
{
    const struct nb_compress_options options = {.fd = k->fd,
                                                .journal = k->work->journal,
                                                .key = k->work->key,
                                                .team = k->work->team,
                                                .visit = k->calibration ? visit : NULL,
                                                .visit_user = k,
                                                .progress = on_progress,
                                                .user = k};
    int rc = k->allocation ? nb_jobs_allocate_init(k->allocation, k->error) : 0;
    if (rc == 0)
        rc = nb_compress_create(k->source, k->recipe, &options, &k->c, k->error);
    if (rc == 0)
        rc = make_room(k);
    if (rc == 0)
        rc = k->calibration ? write_calibrated(k) : write_plain(k);
    if (rc == 0)
        rc = k->then && k->calibration ? hand_over(k) : tell_all(k);
    nb_compress_destroy(k->c);
    return rc;
}

int nb_jobs_round_check(const char *text, size_t len, struct nb_error *e)
{
    struct nb_recipe *recipe = NULL;
    int rc = nb_recipe_parse(text, len, false, &recipe, e);
    nb_recipe_free(recipe);
    return rc;
}

int nb_jobs_round(struct nb_work *work, struct nb_error *e)
{
    struct nb_source *source = NULL;
    struct nb_recipe *recipe = NULL;
    int rc = nb_recipe_parse(work->recipe, work->recipe_len, false, &recipe, e);
    if (rc == 0 && (nb_recipe_target(recipe)->kind || nb_recipe_feedback(recipe).on ||
                    nb_recipe_folds(recipe)))
        rc = nb_fail(
            e, -EINVAL,
            "a target, folds and the methods gptq, tune and auto learn from text: give some "
            "(--calibration FILE); a job of kind \"weighted\" takes the model's own");
    const struct nb_sparsity *sparse = rc == 0 ? nb_recipe_sparsity(recipe) : NULL;
    if (sparse && sparse->by == NB_SPARSE_WANDA)
        rc = nb_fail(e, -EINVAL,
                     "zeros by wanda are chosen by the importance of columns: give text "
                     "(--calibration) or an importance matrix (--imatrix)");
    if (rc == 0)
        rc = nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0) {
        struct job job = {.work = work,
                          .source = source,
                          .recipe = recipe,
                          .fd = work->results[MODEL],
                          .error = e};
        rc = compress(&job);
    }
    nb_source_close(source);
    nb_recipe_free(recipe);
    return rc;
}

// ---- With calibration

static int check_files(const struct nb_jobs_given *g, struct nb_error *e)
{
    if (g->n_imatrix > 1 || (g->n_imatrix && g->n_texts))
        return nb_fail(e, -EINVAL,
                       "a weighted compression takes calibration text or one importance matrix; "
                       "without either the model writes text by itself");
    return g->n_teacher ? nb_fail(e, -EINVAL,
                                  "a compression has no teacher: it is of a job of "
                                  "kind distill")
                        : 0;
}

// What learns from text has it, or the model writes it: an importance matrix is none.
static int check_text(const struct nb_recipe *recipe, const struct nb_jobs_given *g,
                      struct nb_error *e)
{
    const bool folds = nb_recipe_folds(recipe) != 0;
    if (!g->n_imatrix || (!nb_recipe_feedback(recipe).on && !folds))
        return 0;
    return nb_fail(e, -EINVAL,
                   "%s learns from text, not from an importance matrix: give text, or neither and "
                   "the model writes it",
                   folds ? "a fold" : "method gptq");
}

static int compress_calibrated(struct nb_work *work, struct nb_source *source,
                               struct nb_recipe *recipe, const struct nb_jobs_given *g,
                               const struct nb_jobs_then *then, struct nb_error *e)
{
    const bool ranges = nb_recipe_activations(recipe).scale == NB_INPUT_FIXED;
    struct nb_jobs_calibration calibration = {.work = work,
                                              .source = source,
                                              .texts = g->texts,
                                              .n_texts = g->n_texts,
                                              .imatrix = g->n_imatrix ? g->imatrix->fd : -1,
                                              .sampling = nb_recipe_calibration(recipe),
                                              .fold = {.methods = nb_recipe_folds(recipe)},
                                              .sees_ranges = ranges};
    calibration.by_the_way = nb_recipe_feedback(recipe).on && !nb_recipe_automatic(recipe) &&
                             !nb_recipe_target(recipe)->kind && !ranges;
    struct nb_jobs_allocation allocation = {.calibration = &calibration, .recipe = recipe};
    struct nb_jobs_tuning tuning = {0};
    struct nb_jobs_auto automatic = {0};
    struct job job = {.work = work,
                      .source = source,
                      .recipe = recipe,
                      .calibration = &calibration,
                      .allocation = nb_recipe_target(recipe)->kind ? &allocation : NULL,
                      .tuning = nb_recipe_tuning(recipe).on ? &tuning : NULL,
                      .automatic = nb_recipe_automatic(recipe) ? &automatic : NULL,
                      .then = then,
                      .fd = then ? work->scratch[0] : work->results[MODEL],
                      .error = e};
    int rc = compress(&job);
    nb_jobs_allocate_finish(&allocation);
    nb_jobs_calibrate_finish(&calibration);
    return rc;
}

static int weigh(struct nb_work *work, const char *text, size_t len,
                 const struct nb_jobs_then *then, struct nb_error *e)
{
    static struct nb_jobs_given g;
    struct nb_source *source = NULL;
    struct nb_recipe *recipe = NULL;
    nb_jobs_sort(work, &g);
    int rc = check_files(&g, e);
    if (rc == 0)
        rc = nb_recipe_parse(text, len, then != NULL, &recipe, e);
    if (rc == 0)
        rc = check_text(recipe, &g, e);
    if (rc == 0)
        rc = nb_source_open(g.model, g.n_model, &source, e);
    if (rc == 0 && (nb_recipe_folds(recipe) & NB_FOLD_ROTATE_STREAM))
        rc = nb_fold_untie(source, e);
    if (rc == 0)
        rc = compress_calibrated(work, source, recipe, &g, then, e);
    nb_source_close(source);
    nb_recipe_free(recipe);
    return rc;
}

int nb_jobs_weighted(struct nb_work *work, struct nb_error *e)
{
    return weigh(work, work->recipe, work->recipe_len, NULL, e);
}

int nb_jobs_weigh(struct nb_work *work, const char *recipe, const struct nb_jobs_then *then,
                  struct nb_error *e)
{
    return weigh(work, recipe, strlen(recipe), then, e);
}
