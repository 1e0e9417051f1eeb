// The kinds "round" and "weighted": a model's matrices, rounded to nearest or with scales searched
// under what calibration has learnt, written as one GGUF, with a report.
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/worker/jobs_allocate.h"
#include "daemon/worker/jobs_tune.h"
#include "libclient/wire.h"
#include "quant/compress.h"
#include "quant/fold_search.h"
#include "quant/imatrix.h"
#include "quant/layerwise.h"
#include "quant/report.h"
#include "tensor/hf/folder.h"

#define REPORT_ROOM (1u << 20) // bytes that the report and the journal may take
#define TUNING      6          // and a token of tuning
#define FEEDBACK    4          // what error feedback takes, in times of its calibration's run

enum { MODEL, REPORT, IMATRIX }; // results

// What is not a tensor's rounding counts as so many bytes of tensors.
struct progress {
    struct nb_work *work;
    uint64_t before, feedback, tuning,
        bytes;          // calibration; error feedback and tuning, in all; tensors
    uint64_t fed, done; // of the last two, so far
};

static int on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    struct progress *p = user;
    p->done = done;
    p->bytes = total;
    nb_jobs_tell(p->work, what, p->before + p->fed + done,
                 p->before + p->feedback + p->tuning + total);
    return 0;
}

static int on_feedback(void *user, uint32_t done, uint32_t total)
{
    struct progress *p = user;
    char what[64];
    p->fed = p->feedback * done / total;
    snprintf(what, sizeof(what), "error feedback %u/%u", done, total);
    return on_progress(p, what, p->done, p->bytes);
}

// Its whole room at once, so that a full disk is met before the work, not after it.
static int make_room(const struct nb_work *work, uint64_t bytes, uint64_t scratch,
                     struct nb_error *e)
{
    int rc = nb_jobs_need(bytes + scratch + REPORT_ROOM);
    if (rc < 0)
        return nb_fail(e, rc, "the daemon did not answer");
    if (fallocate(work->results[MODEL], 0, 0, (off_t)bytes) == 0 || errno == EOPNOTSUPP)
        return 0;
    return nb_fail(e, -errno, "the state directory has no room for the result of %llu bytes: %s",
                   (unsigned long long)bytes, strerror(errno));
}

static int report(const struct nb_work *work, const struct nb_report *r, struct nb_error *e)
{
    const int fd = work->results[REPORT];
    int rc = nb_report_write(r, fd);
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    return rc < 0 ? nb_fail(e, rc, "the report cannot be written: %s", strerror(-rc)) : 0;
}

static int export(const struct nb_work *work, const struct nb_jobs_calibration *c,
                  struct nb_error *e)
{
    const int fd = work->results[IMATRIX];
    int rc = nb_imatrix_write(&c->importance, c->sampling.samples, c->sampling.length, fd);
    if (rc == 0 && fdatasync(fd) < 0)
        rc = -errno;
    return rc < 0 ? nb_fail(e, rc, "the importance matrix cannot be written: %s", strerror(-rc))
                  : 0;
}

// What comes before the tensors; NULL, where there is none.
struct parts {
    struct nb_jobs_calibration *calibration;
    struct nb_jobs_allocation *allocation;
    struct nb_jobs_tuning *tuning;
};

// Records of the journal, by their kinds.
static int visit(void *user, uint32_t kind, const void *data, uint32_t bytes)
{
    const struct parts *p = user;
    if (p->tuning && kind >= NB_JOBS_TUNE_RECORDS)
        return nb_jobs_tune_visit(p->tuning, kind, data, bytes);
    return p->allocation ? nb_jobs_allocate_visit(p->allocation, kind, data, bytes)
                         : nb_jobs_calibrate_visit(p->calibration, kind, data, bytes);
}

static int calibrate(struct parts *p, struct nb_compress *c, struct progress *progress,
                     struct nb_error *e)
{
    struct nb_jobs_calibration *calibration = p->calibration;
    const uint64_t size = nb_compress_size(c);
    const uint64_t load = p->allocation ? nb_jobs_allocate_load(p->allocation, size) : 0;
    int rc = 0;
    nb_jobs_calibrate_init(calibration, size, size + load + progress->feedback + progress->tuning);
    progress->before = calibration->writing + calibration->folding + calibration->load + load;
    if (calibration->fold.methods)
        rc = nb_jobs_fold_run(calibration, nb_compress_choices(c), nb_compress_journal(c), e);
    if (rc == 0)
        rc = nb_jobs_calibrate_run(calibration, nb_compress_journal(c), e);
    return rc == 0 && p->allocation ? nb_jobs_allocate_run(p->allocation, c, e) : rc;
}

// Error feedback writes most tensors by itself.
static int feed_back(const struct nb_work *work, const struct nb_source *source,
                     struct nb_compress *c, struct nb_jobs_calibration *calibration,
                     const struct nb_feedback_plan *plan, struct progress *progress,
                     struct nb_error *e)
{
    int rc = nb_jobs_calibrate_open(calibration, e);
    const struct nb_layerwise how = {.source = source,
                                     .calibration = calibration->open,
                                     .compress = c,
                                     .importance = &calibration->importance,
                                     .team = work->team,
                                     .damping = plan->damping,
                                     .mismatch = plan->mismatch,
                                     .passes = plan->passes,
                                     .progress = on_feedback,
                                     .user = progress};
    return rc == 0 ? nb_layerwise_run(&how, e) : rc;
}

// Of the file, at most.
static uint64_t most_bytes(const struct nb_recipe *recipe, const struct nb_compress *c)
{
    const struct nb_recipe_target *target = nb_recipe_target(recipe);
    const uint64_t size = nb_compress_size(c);
    return target->kind == NB_TARGET_SIZE && target->bytes < size ? target->bytes : size;
}

static uint64_t tuning_load(const struct nb_jobs_calibration *calibration,
                            const struct nb_recipe *recipe, uint64_t size)
{
    const struct nb_sampling_plan *s = &calibration->sampling;
    const double runs = (double)nb_recipe_tuning(recipe).tokens / s->samples / s->length;
    return (uint64_t)(TUNING * runs * (double)nb_jobs_calibrate_load(calibration, size));
}

static int on_tuning(void *user, const char *what, uint32_t done, uint32_t total)
{
    struct progress *p = user;
    p->fed = p->feedback + p->tuning * done / total;
    return on_progress(p, what, p->done, p->bytes);
}

static int tune(struct nb_work *work, const struct nb_source *source,
                const struct nb_recipe *recipe, struct nb_compress *c, struct parts *p,
                struct progress *progress, struct nb_error *e)
{
    int rc = nb_jobs_calibrate_open(p->calibration, e);
    const struct nb_jobs_tune how = {.work = work,
                                     .source = source,
                                     .calibration = p->calibration->open,
                                     .compress = c,
                                     .plan = nb_recipe_tuning(recipe),
                                     .progress = on_tuning,
                                     .user = progress};
    if (rc == 0)
        rc = nb_jobs_tune_run(&how, p->tuning, e);
    return rc == 0 ? nb_compress_finish(c, &p->calibration->importance, e) : rc;
}

static int write_all(struct nb_work *work, const struct nb_source *source,
                     const struct nb_recipe *recipe, struct nb_compress *c, struct parts *p,
                     struct progress *progress, struct nb_error *e)
{
    const struct nb_feedback_plan feedback = nb_recipe_feedback(recipe);
    const bool has_text = p->calibration && p->calibration->imatrix < 0;
    if ((feedback.on || nb_recipe_folds(recipe)) && !has_text)
        return nb_fail(e, -EINVAL,
                       "%s learns from text, not from an importance matrix: give text, or neither "
                       "and the model writes it",
                       feedback.on ? "method gptq" : "a fold");
    int rc = make_room(work, most_bytes(recipe, c),
                       p->tuning ? nb_jobs_tune_bytes(source, most_bytes(recipe, c)) : 0, e);
    if (rc == 0 && feedback.on)
        progress->feedback = nb_jobs_calibrate_load(p->calibration, FEEDBACK * nb_compress_size(c));
    if (rc == 0 && p->tuning)
        progress->tuning = tuning_load(p->calibration, recipe, nb_compress_size(c));
    if (rc == 0 && p->calibration)
        rc = calibrate(p, c, progress, e);
    nb_compress_set_ranges(c, p->calibration ? &p->calibration->ranges : NULL);
    if (rc == 0)
        rc = nb_compress_begin(c, e);
    if (rc == 0 && feedback.on)
        rc = feed_back(work, source, c, p->calibration, &feedback, progress, e);
    if (rc == 0)
        rc = nb_compress_finish(c, p->calibration ? &p->calibration->importance : NULL, e);
    return rc == 0 && p->tuning ? tune(work, source, recipe, c, p, progress, e) : rc;
}

static int tell_all(struct nb_work *work, const struct nb_source *source,
                    const struct nb_recipe *recipe, struct nb_compress *c, const struct parts *p,
                    struct nb_error *e)
{
    struct nb_divergence divergence;
    struct nb_report r = {.source = source,
                          .recipe = recipe,
                          .choices = nb_compress_choices(c),
                          .type = nb_compress_type(c),
                          .calibrated = p->calibration != NULL,
                          .ranges = p->calibration ? &p->calibration->ranges : NULL,
                          .fold = p->calibration ? p->calibration->fold.fold : NULL,
                          .tuned = p->tuning ? &p->tuning->tuned : NULL};
    int rc = 0;
    if (p->allocation) {
        r.allocated = nb_allocation_result(p->allocation->allocation);
        r.divergence = &divergence;
        rc = nb_jobs_allocate_judge(p->allocation, work->results[MODEL], &divergence, e);
    }
    if (rc == 0)
        rc = report(work, &r, e);
    return rc == 0 && p->calibration ? export(work, p->calibration, e) : rc;
}

static int compress(struct nb_work *work, const struct nb_source *source, struct nb_recipe *recipe,
                    struct parts *p, struct nb_error *e)
{
    struct nb_compress *c = NULL;
    struct progress progress = {.work = work};
    struct nb_compress_options options = {.fd = work->results[MODEL],
                                          .journal = work->journal,
                                          .key = work->key,
                                          .team = work->team,
                                          .progress = on_progress,
                                          .user = &progress};
    if (p->calibration) {
        options.visit = visit;
        options.visit_user = p;
    }
    int rc = p->allocation ? nb_jobs_allocate_init(p->allocation, e) : 0;
    if (rc == 0)
        rc = nb_compress_create(source, recipe, &options, &c, e);
    if (rc == 0)
        rc = write_all(work, source, recipe, c, p, &progress, e);
    if (rc == 0)
        rc = tell_all(work, source, recipe, c, p, e);
    nb_compress_destroy(c);
    return rc;
}

int nb_jobs_round_check(const char *text, size_t len, struct nb_error *e)
{
    struct nb_recipe *recipe = NULL;
    int rc = nb_recipe_parse(text, len, &recipe, e);
    nb_recipe_free(recipe);
    return rc;
}

int nb_jobs_round(struct nb_work *work, struct nb_error *e)
{
    struct nb_source *source = NULL;
    struct nb_recipe *recipe = NULL;
    struct parts parts = {NULL, NULL, NULL};
    int rc = nb_recipe_parse(work->recipe, work->recipe_len, &recipe, e);
    if (rc == 0 && nb_recipe_target(recipe)->kind)
        rc =
            nb_fail(e, -EINVAL,
                    "a target is of a job of kind weighted, which learns what to choose from text");
    if (rc == 0)
        rc = nb_source_open(work->files, work->n_files, &source, e);
    if (rc == 0)
        rc = compress(work, source, recipe, &parts, e);
    nb_source_close(source);
    nb_recipe_free(recipe);
    return rc;
}

// ---- With calibration

// The files by what they are for, in the order in which they came.
struct given {
    struct nb_source_file model[NB_WIRE_FILES], texts[NB_WIRE_FILES];
    uint32_t n_model, n_texts, n_imatrix;
    int imatrix;
};

static bool is_for(const struct nb_source_file *file, const char *prefix)
{
    return !strncmp(file->name, prefix, strlen(prefix));
}

static int sort_files(const struct nb_work *work, struct given *g, struct nb_error *e)
{
    for (uint32_t i = 0; i < work->n_files; i++) {
        const struct nb_source_file *f = &work->files[i];
        if (is_for(f, NB_JOB_CALIBRATION)) {
            g->texts[g->n_texts].name = f->name + strlen(NB_JOB_CALIBRATION);
            g->texts[g->n_texts++].fd = f->fd;
        } else if (is_for(f, NB_JOB_IMATRIX)) {
            g->imatrix = f->fd;
            g->n_imatrix++;
        } else {
            g->model[g->n_model++] = *f;
        }
    }
    if (g->n_imatrix > 1 || (g->n_imatrix && g->n_texts))
        return nb_fail(e, -EINVAL,
                       "a weighted compression takes calibration text or one importance matrix; "
                       "without either the model writes text by itself");
    return 0;
}

int nb_jobs_weighted(struct nb_work *work, struct nb_error *e)
{
    static struct given g = {.imatrix = -1};
    struct nb_source *source = NULL;
    struct nb_recipe *recipe = NULL;
    int rc = sort_files(work, &g, e);
    if (rc == 0)
        rc = nb_recipe_parse(work->recipe, work->recipe_len, &recipe, e);
    if (rc == 0)
        rc = nb_source_open(g.model, g.n_model, &source, e);
    if (rc == 0 && (nb_recipe_folds(recipe) & NB_FOLD_ROTATE_STREAM))
        rc = nb_fold_untie(source, e);
    if (rc == 0) {
        struct nb_jobs_calibration calibration = {
            .work = work,
            .source = source,
            .texts = g.texts,
            .n_texts = g.n_texts,
            .imatrix = g.imatrix,
            .sampling = nb_recipe_calibration(recipe),
            .fold = {.methods = nb_recipe_folds(recipe)},
            .sees_ranges = nb_recipe_activations(recipe).scale == NB_INPUT_FIXED};
        struct nb_jobs_allocation allocation = {.calibration = &calibration, .recipe = recipe};
        struct nb_jobs_tuning tuning = {0};
        struct parts parts = {&calibration, nb_recipe_target(recipe)->kind ? &allocation : NULL,
                              nb_recipe_tuning(recipe).on ? &tuning : NULL};
        rc = compress(work, source, recipe, &parts, e);
        nb_jobs_allocate_finish(&allocation);
        nb_jobs_calibrate_finish(&calibration);
    }
    nb_source_close(source);
    nb_recipe_free(recipe);
    return rc;
}
