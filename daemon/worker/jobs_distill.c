// The kind "distill": a student made of a teacher's layers, trained on text against the teacher's
// next-token probabilities and the text itself, or of a model that is made for vectors against its
// vectors, written as one GGUF with a report; or an adapter beside a model that stays as it is,
// written alike. States lie in the job's scratch files, in turns; one that is killed goes on from
// the last, to the same bytes.
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/jobs_distill.h"
#include "daemon/worker/worker.h"
#include "distill/adapter.h"
#include "distill/vocabulary.h"
#include "engine/text/chat_template.h"
#include "quant/runner.h"
#include "tensor/hf/folder.h"
#include "tensor/image.h"
#include "tensor/type.h"

#define SAVE_NS    UINT64_C(200000000) // between two states, at least,
#define SAVE_SHARE 50                  // and so many times what saving one took
#define MEMORY     (UINT64_C(1) << 29) // of tapes
#define ROWS       512                 // that run at once, or one window where that is longer:
#define TOGETHER   2048                // so many where texts are compared, or written by a student
#define PRUNING    32                  // windows on which it is measured what a model needs

int nb_jobs_distill_check(const char *recipe, size_t len, struct nb_error *e)
{
    static struct nb_train_recipe r;
    struct nb_recipe *types = NULL;
    int rc = nb_train_recipe_parse(recipe, len, &r, e);
    if (rc == 0)
        rc = nb_jobs_distill_types(&r, &types, e);
    nb_recipe_free(types);
    return rc;
}

void nb_jobs_distill_device(const char *recipe, size_t len, char ret[NB_JOB_DEVICE])
{
    static struct nb_train_recipe r;
    struct nb_error ignored;
    _Static_assert(NB_TRAIN_DEVICE <= NB_JOB_DEVICE, "a device's name fits");
    const bool good = nb_train_recipe_parse(recipe, len, &r, &ignored) == 0;
    snprintf(ret, NB_JOB_DEVICE, "%s", good ? r.device : "");
}

// ---- Both models

static void unload(struct model *m)
{
    nb_plan_destroy(m->plan);
    if (m->image)
        nb_image_unmap(m->image);
    m->plan = NULL;
    m->image = NULL;
}

static int load(struct model *m, uint32_t length, struct nb_error *e)
{
    int rc = nb_runner_pack(m->source, &m->image, e);
    return rc == 0 ? nb_runner_plan(m->image, length, &m->plan, e) : rc;
}

static bool has_teacher(const struct distilling *k)
{
    const struct nb_train_recipe *r = &k->recipe;
    return !k->lessons &&
           (k->learns == NB_TRAIN_VECTORS || r->hard < 1 || r->hidden > 0 || r->attention > 0);
}

// Before any of the model is packed.
static int find_kind(struct distilling *k)
{
    const struct nb_gguf *g = k->model.source->metadata;
    const struct nb_arch *arch = nb_arch_of(g);
    if (!arch)
        return 0; // which is refused when it is packed
    k->learns = nb_arch_for_vectors(arch, g) ? NB_TRAIN_VECTORS : NB_TRAIN_LOGITS;
    return nb_train_recipe_settle(&k->recipe, k->learns, arch->name, k->error);
}

// One that says other tokens cannot say how probable the student's are.
static int check_tokens(const struct distilling *k)
{
    return nb_gguf_same_strings(k->model.source->metadata, k->teacher->source->metadata,
                                "tokenizer.ggml.tokens")
               ? 0
               : nb_fail(k->error, -EINVAL, "the teacher has another tokenizer than the student%s",
                         k->learns == NB_TRAIN_VECTORS
                             ? ""
                             : ": have it write text (nibble run), and train on that with "
                               "--hard 1");
}

static int open_teacher(struct distilling *k)
{
    const struct nb_jobs_given *g = &k->given;
    struct nb_error why;
    int rc = nb_source_open(g->teacher, g->n_teacher, &k->own_teacher.source, &why);
    return rc < 0 ? nb_fail(k->error, rc, "the teacher: %s", why.text) : 0;
}

static int open_sources(struct distilling *k)
{
    const struct nb_jobs_given *g = &k->given;
    k->teacher = g->n_teacher ? &k->own_teacher : &k->model;
    if (g->n_imatrix)
        return nb_fail(k->error, -EINVAL, "a distillation takes text, no importance matrix");
    int rc = nb_source_open(g->model, g->n_model, &k->model.source, k->error);
    if (rc == 0)
        rc = find_kind(k);
    if (rc == 0 && g->n_teacher)
        rc = open_teacher(k);
    return rc == 0 && g->n_teacher ? check_tokens(k) : rc;
}

static int prune(struct distilling *k)
{
    const uint32_t n = k->learnt.n < PRUNING ? k->learnt.n : PRUNING;
    struct nb_windows windows;
    struct nb_pruning how = {.recipe = &k->recipe,
                             .model = k->model.source,
                             .plan = k->model.plan,
                             .windows = &windows,
                             .team = k->work->team};
    nb_jobs_tell(k->work, "measuring what the model needs", 0, 1);
    int rc = nb_windows_spread(&k->learnt, n, &windows);
    if (rc < 0)
        return nb_fail(k->error, rc, "no memory for the text");
    rc = nb_jobs_distill_types(&k->recipe, &how.types, k->error);
    if (rc == 0)
        rc = nb_prune_choose(&how, &k->pruned, k->error);
    nb_recipe_free(how.types);
    nb_windows_finish(&windows);
    return rc;
}

// The model is run where it teaches or is measured, and kept where it teaches.
static int open_models(struct distilling *k)
{
    const uint32_t length = k->learnt.length;
    struct model *m = &k->model;
    const bool measures = nb_prune_measures(&k->recipe), taught = has_teacher(k);
    const struct nb_pruning plain = {.recipe = &k->recipe, .model = m->source};
    const bool teaches = taught && k->teacher == m;
    int rc = measures || teaches ? load(m, length, k->error) : 0;
    if (rc == 0)
        rc = measures ? prune(k) : nb_prune_choose(&plain, &k->pruned, k->error);
    if (rc == 0)
        rc = nb_student_open(m->source, m->plan ? &m->plan->hp : NULL, &k->pruned.kept,
                             &k->student.source, k->error);
    if (rc == 0 && !teaches)
        unload(m);
    if (rc == 0 && taught && !teaches)
        rc = load(k->teacher, length, k->error);
    return rc == 0 ? load(&k->student, length, k->error) : rc;
}

// ---- Text

static int cut_chats(struct distilling *k, const struct nb_tokenizer *t)
{
    struct nb_chat_template *template = NULL;
    int rc = nb_chat_template_create(k->model.source->metadata, &template, k->error);
    if (rc == -ENOENT)
        return nb_fail(k->error, -EINVAL,
                       "the model has no chat template to make a text of conversations: give text");
    if (rc == 0)
        rc = nb_windows_chats(t, template, k->given.texts, k->given.n_texts, k->recipe.length,
                              &k->learnt, k->error);
    nb_chat_template_destroy(template);
    return rc;
}

static int take_lessons(struct distilling *k, const struct nb_tokenizer *t)
{
    const struct nb_jobs_given *g = &k->given;
    if (g->n_texts > 1 || g->n_teacher || k->recipe.vocabulary > 0 || k->learns == NB_TRAIN_VECTORS)
        return nb_fail(k->error, -EINVAL,
                       "lessons are text and teacher, of all tokens: they go with no other text, "
                       "no --teacher, no --vocabulary, and with no encoder");
    int rc = nb_lessons_open(&g->texts[0], t, &k->lessons, k->error);
    if (rc == 0 && nb_lessons_windows(k->lessons, &k->learnt) < 0)
        rc = nb_fail(k->error, -ENOMEM, "no memory for the text");
    return rc;
}

static int cut_text(struct distilling *k, const struct nb_tokenizer *t)
{
    const struct nb_source_file *texts = k->given.texts;
    const uint32_t n = k->given.n_texts, length = k->recipe.length;
    if (nb_lessons_are(texts, n))
        return take_lessons(k, t);
    if (k->learns == NB_TRAIN_VECTORS)
        return nb_windows_lines(t, texts, n, length, &k->learnt, k->error);
    if (nb_texts_are_chats(texts, n))
        return cut_chats(k, t);
    return nb_windows_create(t, texts, n, 0, length, &k->learnt, k->error);
}

// Models whose tokens are those that stay: all behind it knows no others.
static int use_vocabulary(struct distilling *k, const struct nb_tokenizer *t,
                          const struct nb_vocabulary *v)
{
    struct model *models[] = {&k->model, &k->own_teacher};
    int rc = 0;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]) && rc == 0; i++) {
        struct model *m = models[i];
        if (!m->source)
            continue;
        m->whole = m->source;
        rc = nb_vocabulary_open(m->whole, t, v, &m->source, k->error);
        m->source = rc == 0 ? m->source : NULL;
    }
    return rc;
}

static int cut_vocabulary(struct distilling *k, const struct nb_tokenizer *t)
{
    struct nb_vocabulary v = {0};
    k->n_tokens = nb_tokenizer_vocab(t);
    uint64_t *uses = calloc((size_t)k->n_tokens + 1, sizeof(*uses));
    if (!uses)
        return nb_fail(k->error, -ENOMEM, "no memory for the vocabulary");
    for (uint64_t i = 0; i < nb_windows_tokens(&k->learnt); i++)
        uses[k->learnt.tokens[i]]++;
    int rc = nb_vocabulary_choose(k->model.source->metadata, t, uses, k->recipe.vocabulary, &v,
                                  k->error);
    if (rc == 0)
        rc = use_vocabulary(k, t, &v);
    free(uses);
    nb_vocabulary_finish(&v);
    nb_windows_finish(&k->learnt); // of the other numbers
    return rc;
}

// With the tokens that the model has now.
static int tokenize(struct distilling *k,
                    int (*then)(struct distilling *k, const struct nb_tokenizer *t))
{
    struct nb_tokenizer *t = NULL;
    int rc = nb_tokenizer_create(k->model.source->metadata, &t, k->error);
    if (rc == 0)
        rc = cut_text(k, t);
    if (rc == 0 && then)
        rc = then(k, t);
    nb_tokenizer_destroy(t);
    return rc;
}

static int open_text(struct distilling *k)
{
    const struct nb_train_recipe *r = &k->recipe;
    if (!k->given.n_texts)
        return nb_fail(k->error, -EINVAL, "a distillation learns from text: give some (--text)");
    int rc = r->vocabulary > 0 ? tokenize(k, cut_vocabulary) : 0;
    if (rc == 0)
        rc = tokenize(k, NULL);
    if (rc == 0 && k->learnt.n < 2 * r->held_out)
        return nb_fail(k->error, -EINVAL,
                       "the text has %u %s %u tokens, and %u are held out: give more text, "
                       "or fewer or shorter windows (--held-out, --length)",
                       k->learnt.n,
                       !k->learnt.end      ? "windows of"
                       : k->learnt.answers ? "conversations of up to"
                                           : "lines of up to",
                       k->learnt.length, r->held_out);
    if (rc == 0 && nb_windows_hold_out(&k->learnt, r->held_out, &k->held) < 0)
        rc = nb_fail(k->error, -ENOMEM, "no memory for the text");
    return rc;
}

double nb_jobs_distill_tokens(const struct distilling *k, uint64_t steps)
{
    const struct nb_train_options *o = &k->options;
    const double mean = (double)nb_windows_tokens(&k->learnt) / k->learnt.n;
    return mean * (double)steps * o->accumulate * o->batch;
}

static uint32_t windows_in(uint32_t tokens, double length)
{
    const uint32_t n = (uint32_t)(tokens / length);
    return n < 1 ? 1 : n;
}

static void choose_options(struct distilling *k)
{
    const struct nb_train_recipe *r = &k->recipe;
    struct nb_train_options *o = &k->options;
    const double length = (double)nb_windows_tokens(&k->learnt) / k->learnt.n;
    const uint32_t ranks = k->work->share ? k->work->share->ranks : 1;
    const bool vectors = k->learns == NB_TRAIN_VECTORS;
    const uint32_t wanted = windows_in(r->batch, length);
    const uint32_t rows = windows_in(vectors || r->own > 0 ? TOGETHER : ROWS, length);
    const uint32_t each = (wanted + ranks - 1) / ranks, fit = each < rows ? each : rows;
    *o = (struct nb_train_options){.schedule = r->schedule,
                                   .rate = (float)r->rate,
                                   .decay = (float)r->decay,
                                   .clip = (float)r->clip,
                                   .temperature = (float)r->temperature,
                                   .mix = (float)r->mix,
                                   .own = (float)r->own,
                                   .hard = (float)r->hard,
                                   .hidden = (float)r->hidden,
                                   .attention = (float)r->attention,
                                   .cosine = vectors ? (float)r->cosine : 0,
                                   .relation = vectors ? (float)r->relation : 0,
                                   .seed = r->seed,
                                   .random = r->start == NB_START_RANDOM,
                                   .bf16 = r->precision == NB_TRAIN_BF16,
                                   .coded_moments = r->moments == NB_MOMENTS_INT8,
                                   .memory = MEMORY,
                                   .lessons = k->lessons,
                                   .share = k->work->share,
                                   .device = k->work->device,
                                   .adapter = r->adapter};
    if (k->teacher == &k->model)
        o->channel = k->pruned.kept.of[NB_CUT_WIDTH];
    o->batch = wanted < fit ? wanted : fit;
    o->batch = o->batch < k->learnt.n ? o->batch : k->learnt.n;
    // NOLINTNEXTLINE(clang-analyzer-core.DivideZero): windows_in gives one at least
    o->accumulate = (wanted + o->batch - 1) / o->batch;
    const double steps = ceil(r->tokens / nb_jobs_distill_tokens(k, 1));
    o->steps = steps < NB_TRAIN_STEPS ? (uint32_t)steps : NB_TRAIN_STEPS;
    o->warm = (uint32_t)(r->warm * o->steps);
    k->points = o->steps < NB_DISTILL_CURVE ? o->steps : NB_DISTILL_CURVE;
}

// ---- Training

static void add(struct nb_train_loss *sum, const struct nb_train_loss *loss, double by)
{
    sum->hard += by * loss->hard;
    sum->soft += by * loss->soft;
    sum->hidden += by * loss->hidden;
    sum->attention += by * loss->attention;
    sum->cosine += by * loss->cosine;
    sum->relation += by * loss->relation;
    sum->norm += by * loss->norm;
}

// Of the text that is held out.
static int measure(struct distilling *k, struct nb_train_loss *ret)
{
    struct nb_train_loss *each = calloc(k->held.n, sizeof(*each));
    if (!each)
        return nb_fail(k->error, -ENOMEM, "no memory to judge the student");
    int rc = nb_train_measure(k->train, &k->held, each, k->error);
    *ret = (struct nb_train_loss){0};
    for (uint32_t i = 0; i < k->held.n && rc == 0; i++)
        add(ret, &each[i], 1.0 / k->held.n);
    free(each);
    return rc;
}

uint32_t nb_jobs_distill_point(const struct distilling *k, uint32_t step)
{
    return (uint32_t)((uint64_t)step * k->points / k->options.steps);
}

// What is left of a training whose next step has failed. A loss that is not finite has moved
// nothing: what was learnt before it is the student. Of several processes only one may have seen
// it.
static int end_early(struct distilling *k, int rc)
{
    const struct nb_error why = *k->error;
    const uint32_t done = nb_train_done(k->train);
    if (rc == -EDOM && done && !k->work->share)
        return nb_fail(&k->stopped, 0, "%s; the student is that of the %u steps before, of %u",
                       why.text, done, k->options.steps);
    if (!k->n_saved)
        return nb_fail(k->error, rc, "%s; no state was saved before", why.text);
    return nb_fail(k->error, rc, "%s; the last state is of step %u", why.text, k->saved_step);
}

static int run_steps(struct distilling *k)
{
    const uint32_t all = k->options.steps;
    int rc = 0;
    k->saved_ns = k->began_ns = nb_now_ns();
    k->began_at = nb_train_done(k->train);
    while (nb_train_done(k->train) < all && rc == 0) {
        struct nb_train_loss loss;
        const uint32_t step = nb_train_done(k->train);
        rc = nb_train_step(k->train, &loss, k->error);
        if (rc < 0) {
            rc = end_early(k, rc);
            break;
        }
        add(&k->told.curve[nb_jobs_distill_point(k, step)], &loss, 1);
        nb_jobs_distill_tell(k, step, &loss);
        if (step + 1 == all || nb_now_ns() - k->saved_ns > SAVE_NS + SAVE_SHARE * k->saving_ns)
            rc = nb_jobs_distill_save(k);
    }
    k->work->figure = NAN; // what follows lowers nothing
    return rc;
}

double nb_jobs_distill_weights(const struct nb_source *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++)
        sum += (double)nb_source_rows(&s->tensors[i]) * (double)s->tensors[i].dims[0];
    return sum;
}

// Forward and back through the student, forward through the teacher: in products of matrices.
static double operations(const struct distilling *k)
{
    const double tokens = nb_jobs_distill_tokens(k, 1);
    const double teacher = k->teacher->plan ? nb_jobs_distill_weights(k->teacher->source) : 0;
    const double still =
        k->adapter ? nb_jobs_distill_weights(k->student.source) : 0; // has no gradients of its own
    return tokens * (2 * teacher + 4 * still + 6 * (double)nb_train_weights(k->train));
}

// ---- All of it

static int train(struct distilling *k)
{
    int rc = nb_train_create(k->student.plan, k->teacher->plan, k->work->team, &k->learnt,
                             &k->options, &k->train, k->error);
    if (rc == 0)
        rc = k->recipe.adapter.rank
                 ? nb_adapter_open(k->student.source, k->train, k->options.adapter.alpha,
                                   &k->adapter, k->error)
                 : nb_jobs_distill_trained(k);
    if (rc == 0)
        rc = nb_jobs_distill_open(k);
    if (rc == 0)
        rc = nb_jobs_distill_round(k);
    if (rc == 0)
        rc = nb_jobs_distill_make_room(k);
    if (rc < 0)
        return rc;
    if (!k->work->device) // whose speed nothing says before the first step
        nb_jobs_pace(k->work, operations(k) / NB_DISTILL_TOLD);
    nb_jobs_tell(k->work, "judging the student that it begins with", 0,
                 ((uint64_t)k->options.steps + 1) * NB_DISTILL_TOLD);
    if (k->n_saved)
        rc = nb_jobs_distill_restore(k);
    if (rc == 0 && !k->n_saved && nb_jobs_distill_leads(k))
        rc = measure(k, &k->told.before);
    if (rc == 0 && k->work->share)
        rc = nb_jobs_distill_align(k);
    if (rc == 0 && !k->recipe.adapter.rank && nb_image_forget_matrices(k->student.image) < 0)
        rc = nb_fail(k->error, -ENOMEM, "no memory for the student");
    return rc == 0 ? run_steps(k) : rc;
}

static int run(struct distilling *k)
{
    int rc = nb_train_recipe_parse(k->work->recipe, k->work->recipe_len, &k->recipe, k->error);
    if (rc == 0 && k->recipe.device[0] && !k->work->device)
        rc = nb_fail(k->error, -ENOTSUP,
                     "processes that share a training compute on their CPUs: leave out \"device\"");
    if (rc == 0)
        rc = open_sources(k);
    if (rc == 0)
        rc = open_text(k);
    if (rc == 0)
        rc = open_models(k);
    if (rc < 0)
        return rc;
    choose_options(k);
    rc = train(k);
    if (rc < 0 || !nb_jobs_distill_leads(k))
        return rc;
    rc = measure(k, &k->after);
    if (rc == 0)
        rc = nb_jobs_distill_write(k);
    if (rc == 0)
        rc = nb_jobs_distill_report(k);
    return rc == 0 ? nb_jobs_scratch_clear(k->work, k->error) : rc;
}

int nb_jobs_distill(struct nb_work *work, struct nb_error *e)
{
    static struct distilling k;
    k = (struct distilling){.work = work, .error = e};
    k.scratch.work = work;
    nb_jobs_sort(work, &k.given);
    int rc = run(&k);
    nb_compress_destroy(k.compress);
    nb_recipe_free(k.types);
    nb_source_close(k.adapter);
    nb_train_destroy(k.train);
    nb_lessons_close(k.lessons);
    free(k.trained.tensors);
    nb_windows_finish(&k.learnt);
    nb_windows_finish(&k.held);
    nb_pruned_finish(&k.pruned);
    unload(&k.student);
    unload(&k.model);
    unload(&k.own_teacher);
    nb_source_close(k.student.source);
    nb_source_close(k.model.source);
    nb_source_close(k.own_teacher.source);
    nb_source_close(k.model.whole);
    nb_source_close(k.own_teacher.whole);
    return rc;
}
