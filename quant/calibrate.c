// See calibrate.h. No logits are computed: the last matrix's input is looked at, but nothing is
// multiplied by it.
#include "quant/calibrate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/runner.h"
#include "quant/hessian.h"
#include "quant/written.h"
#include "tensor/image.h"

#define ROWS      2048 // of a batch, or one window where that is longer
#define HEAD_ROWS 8192 // of the head's Hessian, about

struct nb_calibration {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_team *team;
    struct nb_grad *grad;
    struct nb_windows windows, held_out;
    uint32_t batch; // windows of one
    struct nb_grad_sequence *sequences;
    float *x, *next, *state; // of a batch: before and behind a layer, and at the head
    uint16_t *narrow;        // [rows][embedding]: the head's inputs in bf16
    double *head;            // the Hessian of the head's inputs
    bool has_head;           // it is whole
    // While it runs
    bool sees;
    struct nb_column_stats **stats; // of the float engine's matrices; NULL: it is none
    struct nb_ranges *ranges;       // NULL: nobody asks
};

// ---- Opening

// The text of another calibration.
static void take_given(struct nb_calibration *c, struct nb_calibration_text *given)
{
    c->windows = given->learnt;
    c->held_out = given->held_out;
    *given = (struct nb_calibration_text){0};
}

static int open_windows(struct nb_calibration *c, const struct nb_calibrate *how,
                        struct nb_error *e)
{
    const uint32_t n = how->samples + how->held_out;
    struct nb_tokenizer *t = NULL;
    int rc = nb_tokenizer_create(nb_image_metadata(c->image), &t, e);
    const struct nb_writing writing = {.image = c->image,
                                       .tokenizer = t,
                                       .allowed = how->allowed,
                                       .n = n,
                                       .length = how->length,
                                       .seed = how->seed,
                                       .progress = how->writing,
                                       .user = how->user};
    if (rc == 0)
        rc = how->n_texts
                 ? nb_windows_create(t, how->texts, how->n_texts, n, how->length, &c->windows, e)
                 : nb_windows_write(&writing, &c->windows, e);
    for (size_t i = 0; rc == 0 && i < (size_t)n * how->length; i++)
        if ((uint32_t)c->windows.tokens[i] >= c->plan->hp.vocab)
            rc = nb_fail(e, -EINVAL, "the model's tokenizer has more tokens than its embedding");
    nb_tokenizer_destroy(t);
    if (rc == 0 && nb_windows_hold_out(&c->windows, how->held_out, &c->held_out) < 0)
        rc = nb_fail(e, -ENOMEM, "no memory for the calibration text");
    return rc;
}

static int make_batch(struct nb_calibration *c, const struct nb_calibrate *how, struct nb_error *e)
{
    const uint32_t head = c->plan->hp.n_layers;
    uint32_t rows = 0;
    c->sequences = calloc(c->batch, sizeof(*c->sequences));
    const size_t floats = (size_t)c->batch * how->length * c->plan->hp.embedding;
    c->x = calloc(floats, sizeof(*c->x));
    c->next = calloc(floats, sizeof(*c->next));
    c->stats = calloc(c->plan->n_matrices + 1, sizeof(*c->stats));
    if (!c->sequences || !c->x || !c->next || !c->stats)
        return nb_fail(e, -ENOMEM, "no memory for the calibration's batches");
    int rc = nb_calibration_batch(c, 0, &rows, e);
    if (rc < 0 || !nb_grad_sites(c->grad, head))
        return rc;
    const size_t n = c->plan->hp.embedding;
    c->state = calloc(nb_grad_state_floats(c->grad, head, 0), sizeof(*c->state));
    c->narrow = malloc(floats * sizeof(*c->narrow));
    c->head = calloc(n * n, sizeof(*c->head));
    return c->state && c->narrow && c->head
               ? 0
               : nb_fail(e, -ENOMEM, "no memory for the calibration's batches");
}

static int open_all(struct nb_calibration *c, const struct nb_calibrate *how, struct nb_error *e)
{
    if (how->samples < 1 || how->samples > NB_WINDOWS_MAX || how->length < NB_WINDOWS_LEAST ||
        how->length > NB_WINDOWS_LENGTH)
        return nb_fail(e, -EINVAL, "calibration takes 1 to %d samples of %d to %d tokens",
                       NB_WINDOWS_MAX, NB_WINDOWS_LEAST, NB_WINDOWS_LENGTH);
    c->team = how->team;
    c->batch = how->length < ROWS ? ROWS / how->length : 1;
    c->batch = c->batch < how->samples ? c->batch : how->samples;
    int rc = nb_runner_pack(how->source, &c->image, e);
    if (rc == 0)
        rc = nb_runner_plan(c->image, how->length, &c->plan, e);
    if (rc == 0)
        rc = nb_grad_open(c->plan, how->team, &c->grad, e);
    if (rc == 0 && how->given && how->given->learnt.n)
        take_given(c, how->given);
    else if (rc == 0)
        rc = open_windows(c, how, e);
    return rc == 0 ? make_batch(c, how, e) : rc;
}

int nb_calibration_open(const struct nb_calibrate *how, struct nb_calibration **ret,
                        struct nb_error *ret_error)
{
    struct nb_calibration *c = calloc(1, sizeof(*c));
    if (!c)
        return nb_fail(ret_error, -ENOMEM, "no memory for the calibration");
    int rc = open_all(c, how, ret_error);
    if (rc < 0)
        nb_calibration_close(c);
    else
        *ret = c;
    return rc;
}

void nb_calibration_close(struct nb_calibration *c)
{
    if (!c)
        return;
    nb_grad_close(c->grad);
    nb_plan_destroy(c->plan);
    if (c->image)
        nb_image_unmap(c->image);
    nb_windows_finish(&c->windows);
    nb_windows_finish(&c->held_out);
    free(c->sequences);
    free(c->x);
    free(c->next);
    free(c->state);
    free(c->narrow);
    free(c->head);
    free(c->stats);
    free(c);
}

struct nb_grad *nb_calibration_grad(struct nb_calibration *c)
{
    return c->grad;
}

const struct nb_plan *nb_calibration_plan(const struct nb_calibration *c)
{
    return c->plan;
}

struct nb_image *nb_calibration_image(const struct nb_calibration *c)
{
    return c->image;
}

const struct nb_windows *nb_calibration_windows(const struct nb_calibration *c)
{
    return &c->windows;
}

const struct nb_windows *nb_calibration_held_out(const struct nb_calibration *c)
{
    return &c->held_out;
}

void nb_calibration_give(struct nb_calibration *c, struct nb_calibration_text *ret)
{
    *ret = (struct nb_calibration_text){c->windows, c->held_out};
    c->windows = c->held_out = (struct nb_windows){0};
}

uint32_t nb_calibration_batches(const struct nb_calibration *c)
{
    return (c->windows.n + c->batch - 1) / c->batch;
}

// Of the batch that begins with this window.
static uint32_t windows_from(const struct nb_calibration *c, uint32_t window)
{
    const uint32_t left = c->windows.n - window;
    return left < c->batch ? left : c->batch;
}

static int take_windows(struct nb_calibration *c, uint32_t first, struct nb_error *e)
{
    const uint32_t n = windows_from(c, first), length = c->windows.length;
    for (uint32_t i = 0; i < n; i++)
        c->sequences[i] = (struct nb_grad_sequence){
            .token = c->windows.tokens + (size_t)(first + i) * length, .n = length};
    return nb_grad_batch(c->grad, c->sequences, n, e);
}

int nb_calibration_batch(struct nb_calibration *c, uint32_t batch, uint32_t *ret,
                         struct nb_error *ret_error)
{
    *ret = windows_from(c, batch * c->batch) * c->windows.length;
    return take_windows(c, batch * c->batch, ret_error);
}

// ---- Sums

static int add_matrix(struct nb_importance *s, const struct nb_grad_tensor *w)
{
    return nb_importance_find(s, w->name) ? 0 : nb_importance_add(s, w->name, w->cols, w->experts);
}

// Sums for all matrices that the ops multiply by.
static int find_stats(struct nb_calibration *c, struct nb_importance *s)
{
    uint32_t n;
    const struct nb_grad_tensor *all = nb_grad_tensors(c->grad, &n);
    int rc = 0;
    for (uint32_t i = 0; i < c->plan->n_ops && rc == 0; i++) {
        const struct nb_op *op = &c->plan->ops[i];
        if (op->kind == NB_OP_LINEAR && op->w)
            rc = add_matrix(s, &all[op->w - c->plan->matrices]);
    }
    for (uint32_t i = 0; i < c->plan->n_matrices && rc == 0; i++) {
        c->stats[i] = nb_importance_find(s, all[i].name);
        if (c->stats[i] && (c->stats[i]->cols != all[i].cols || c->stats[i]->n != all[i].experts))
            rc = -ESTALE;
    }
    return rc;
}

int nb_calibration_sums(struct nb_calibration *c, struct nb_importance *s,
                        struct nb_error *ret_error)
{
    int rc = find_stats(c, s);
    return rc < 0 ? nb_fail(ret_error, rc, "the sums of the model's matrices: %s", strerror(-rc))
                  : 0;
}

void nb_calibration_take(struct nb_calibration *c, const struct nb_grad_tensor *w, uint32_t expert,
                         const float *x, size_t stride, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        nb_column_stats_take(c->stats[w->matrix - c->plan->matrices], expert, x + i * stride);
}

static void on_input(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                     size_t stride, uint32_t n)
{
    struct nb_calibration *c = user;
    nb_calibration_take(c, w, expert, x, stride, n);
    struct nb_input_range *r = c->ranges ? nb_ranges_find(c->ranges, w->name) : NULL;
    for (uint32_t i = 0; r && i < n; i++)
        nb_input_range_take(r, x + i * stride, w->cols);
}

// Windows from one batch of the head's Hessian to the next.
static uint32_t head_stride(const struct nb_calibration *c)
{
    const uint32_t some = HEAD_ROWS / (c->batch * c->windows.length);
    const uint32_t wanted = some ? some : 1;
    return c->batch * ((nb_calibration_batches(c) + wanted - 1) / wanted);
}

// What a batch's last matrix reads: its sums, and its Hessian.
static int run_head(struct nb_calibration *c, uint32_t first)
{
    const uint32_t head = c->plan->hp.n_layers;
    struct nb_grad_tensor *w[NB_GRAD_SITE];
    if (!c->state)
        return 0;
    int rc = nb_grad_stage(c->grad, head, 0, c->x, c->state);
    if (rc < 0)
        return rc;
    const uint32_t n = nb_grad_site_matrices(c->grad, head, 0, w);
    const struct nb_grad_rows r = nb_grad_site_input(c->grad, head, 0, 0, c->state);
    for (uint32_t i = 0; i < n && c->sees; i++)
        on_input(c, w[i], 0, r.x, r.stride, r.n);
    if (first % head_stride(c) || r.stride != c->plan->hp.embedding)
        return 0;
    nb_hessian_narrow(c->team, &r, NULL, c->plan->hp.embedding, c->narrow);
    return nb_hessian_add(c->team, c->head, c->narrow, r.n, c->plan->hp.embedding);
}

static int run_batch(struct nb_calibration *c, uint32_t first, struct nb_error *e)
{
    int rc = take_windows(c, first, e);
    if (rc < 0)
        return rc;
    rc = nb_grad_begin(c->grad, c->x);
    for (uint32_t i = 0; i < c->plan->hp.n_layers && rc == 0; i++) {
        rc = nb_grad_layer(c->grad, i, c->x, NULL, c->next);
        float *behind = c->next;
        c->next = c->x;
        c->x = behind;
    }
    if (rc == 0)
        rc = run_head(c, first);
    return rc < 0 ? nb_fail(e, rc, "no memory for the calibration's batches") : 0;
}

static void begin_head(struct nb_calibration *c)
{
    const size_t n = c->plan->hp.embedding;
    if (c->state)
        memset(c->head, 0, n * n * sizeof(*c->head));
}

int nb_calibration_head(struct nb_calibration *c, const double **ret, struct nb_error *ret_error)
{
    int rc = 0;
    if (!c->has_head)
        begin_head(c);
    for (uint32_t i = 0; c->state && !c->has_head && i < c->windows.n && rc == 0;
         i += head_stride(c))
        rc = run_batch(c, i, ret_error);
    c->has_head = c->has_head || rc == 0;
    *ret = c->state && rc == 0 ? c->head : NULL;
    return rc;
}

// Before any row, so that they are there and stay where they are.
static int make_ranges(struct nb_calibration *c)
{
    for (uint32_t i = 0; c->ranges && i < c->plan->n_matrices; i++)
        if (c->stats[i] && !nb_ranges_of(c->ranges, c->plan->matrices[i].name))
            return -ENOMEM;
    return 0;
}

void nb_calibration_see(struct nb_calibration *c, struct nb_ranges *ranges)
{
    c->ranges = ranges;
}

int nb_calibration_run(struct nb_calibration *c, uint32_t done, struct nb_importance *s,
                       int (*after)(void *user, uint32_t done), void *user,
                       struct nb_error *ret_error)
{
    const bool whole = done == 0;
    int rc = nb_calibration_sums(c, s, ret_error);
    if (rc == 0 && (rc = make_ranges(c)) < 0)
        nb_fail(ret_error, rc, "no memory for the ranges of inputs");
    if (rc < 0)
        return rc;
    begin_head(c);
    nb_grad_see(c->grad, on_input, c);
    c->sees = true;
    while (done < c->windows.n && rc == 0) {
        const uint32_t n = windows_from(c, done);
        rc = run_batch(c, done, ret_error);
        done += n;
        if (rc == 0)
            rc = after(user, done);
    }
    nb_grad_see(c->grad, NULL, NULL);
    c->sees = false;
    c->has_head = whole && rc == 0;
    return rc;
}
