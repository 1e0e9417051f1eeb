// See calibrate.h. A step has whole windows, and no logits: the last matrix's input is seen, but
// nothing is multiplied by it.
#include "quant/calibrate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kv.h"
#include "engine/plan.h"
#include "tensor/image.h"

#define ROWS 512 // of a step, or one window where that is longer

struct nb_calibration {
    struct nb_image *image;
    struct nb_plan *plan;
    struct nb_device *device;
    struct nb_device_model *model;
    struct nb_windows windows;
    uint32_t batch;         // windows of a step
    uint32_t window_blocks; // KV blocks of a window
    // Of a step
    uint32_t *position, *sequence, *wanted, *block_numbers;
    const uint32_t **blocks;
    float *vectors;
    // While it runs
    struct nb_column_stats **of_op; // [n_ops]; NULL: it has no matrix
};

// ---- Opening

static int open_image(struct nb_calibration *c, const struct nb_source *source, struct nb_error *e)
{
    uint64_t bytes;
    int fd = memfd_create("nibble-calibration", MFD_CLOEXEC);
    if (fd < 0)
        return nb_fail(e, -errno, "no memory for the model: %s", strerror(errno));
    int rc = nb_image_pack(source, fd, NULL, &bytes, e);
    if (rc >= 0)
        rc = nb_image_map(fd, 0, &c->image, e);
    close(fd);
    return rc < 0 ? rc : 0;
}

static int open_windows(struct nb_calibration *c, const struct nb_calibrate *how,
                        struct nb_error *e)
{
    struct nb_tokenizer *t = NULL;
    int rc = nb_tokenizer_create(nb_image_metadata(c->image), &t, e);
    if (rc == 0)
        rc = nb_windows_create(t, how->texts, how->n_texts, how->samples, how->length, &c->windows,
                               e);
    for (size_t i = 0; rc == 0 && i < (size_t)how->samples * how->length; i++)
        if ((uint32_t)c->windows.tokens[i] >= c->plan->hp.vocab)
            rc = nb_fail(e, -EINVAL, "the model's tokenizer has more tokens than its embedding");
    nb_tokenizer_destroy(t);
    return rc;
}

static int open_plan(struct nb_calibration *c, const struct nb_calibrate *how, struct nb_error *e)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32};
    int rc = nb_plan_create(c->image, &options, &c->plan, e);
    if (rc == 0 && how->length > c->plan->hp.context)
        rc = nb_fail(e, -EINVAL, "windows of %u tokens are longer than the model's context of %u",
                     how->length, c->plan->hp.context);
    return rc;
}

static int open_device(struct nb_calibration *c, const struct nb_calibrate *how, struct nb_error *e)
{
    const struct nb_device_options options = {.allowed = how->allowed};
    const struct nb_device_model_options model = {.kv_blocks = c->batch * c->window_blocks,
                                                  .max_rows = c->batch * how->length};
    int rc = nb_device_create("cpu", &options, &c->device, e);
    return rc == 0 ? c->device->ops->model_open(c->device, c->plan, &model, &c->model, e) : rc;
}

// All but the tokens is the same in every step.
static int make_rows(struct nb_calibration *c)
{
    const uint32_t length = c->windows.length, n = c->batch * length;
    c->position = calloc(n, sizeof(*c->position));
    c->sequence = calloc(n, sizeof(*c->sequence));
    c->wanted = calloc(n, sizeof(*c->wanted));
    c->block_numbers = calloc((size_t)c->batch * c->window_blocks, sizeof(*c->block_numbers));
    c->blocks = calloc(c->batch, sizeof(*c->blocks));
    c->vectors = calloc((size_t)n * c->plan->hp.embedding, sizeof(*c->vectors));
    c->of_op = calloc(c->plan->n_ops, sizeof(*c->of_op));
    if (!c->position || !c->sequence || !c->wanted || !c->block_numbers || !c->blocks ||
        !c->vectors || !c->of_op)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        c->position[i] = i % length;
        c->sequence[i] = i / length;
        c->wanted[i] = i;
    }
    for (uint32_t i = 0; i < c->batch * c->window_blocks; i++)
        c->block_numbers[i] = i;
    for (uint32_t i = 0; i < c->batch; i++)
        c->blocks[i] = c->block_numbers + (size_t)i * c->window_blocks;
    return 0;
}

static int open_all(struct nb_calibration *c, const struct nb_calibrate *how, struct nb_error *e)
{
    if (how->samples < 1 || how->samples > NB_WINDOWS_MAX || how->length < NB_WINDOWS_LEAST ||
        how->length > NB_WINDOWS_LENGTH)
        return nb_fail(e, -EINVAL, "calibration takes 1 to %d samples of %d to %d tokens",
                       NB_WINDOWS_MAX, NB_WINDOWS_LEAST, NB_WINDOWS_LENGTH);
    c->batch = how->length < ROWS ? ROWS / how->length : 1;
    c->batch = c->batch < how->samples ? c->batch : how->samples;
    c->window_blocks = (how->length + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    int rc = open_image(c, how->source, e);
    if (rc == 0)
        rc = open_plan(c, how, e);
    if (rc == 0)
        rc = open_windows(c, how, e);
    if (rc == 0)
        rc = open_device(c, how, e);
    if (rc == 0 && (rc = make_rows(c)) < 0)
        nb_fail(e, rc, "no memory for the calibration's steps");
    return rc;
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
    if (c->model)
        c->device->ops->model_close(c->model);
    if (c->device)
        c->device->ops->destroy(c->device);
    nb_plan_destroy(c->plan);
    if (c->image)
        nb_image_unmap(c->image);
    nb_windows_finish(&c->windows);
    free(c->position);
    free(c->sequence);
    free(c->wanted);
    free(c->block_numbers);
    free(c->blocks);
    free(c->vectors);
    free(c->of_op);
    free(c);
}

// ---- Sums

static bool is_measured(const struct nb_op *op)
{
    return op->kind == NB_OP_LINEAR && op->w;
}

static int add_matrix(struct nb_importance *s, const struct nb_matrix *w)
{
    return nb_importance_find(s, w->name) ? 0 : nb_importance_add(s, w->name, w->packed.cols, w->n);
}

static int find_stats(struct nb_calibration *c, struct nb_importance *s)
{
    int rc = 0;
    for (uint32_t i = 0; i < c->plan->n_ops && rc == 0; i++)
        if (is_measured(&c->plan->ops[i]))
            rc = add_matrix(s, c->plan->ops[i].w);
    for (uint32_t i = 0; i < c->plan->n_ops && rc == 0; i++) {
        const struct nb_op *op = &c->plan->ops[i];
        c->of_op[i] = is_measured(op) ? nb_importance_find(s, op->w->name) : NULL;
        if (c->of_op[i] && (c->of_op[i]->cols != op->w->packed.cols || c->of_op[i]->n != op->w->n))
            rc = -ESTALE;
    }
    return rc;
}

static void on_input(void *user, uint32_t op, const float *x, uint32_t n, uint32_t width,
                     const uint16_t *expert)
{
    struct nb_calibration *c = user;
    struct nb_column_stats *m = c->of_op[op];
    const bool each = expert && !nb_value_is_of_experts(c->plan->ops[op].in.value);
    const uint32_t takers = each ? c->plan->hp.n_chosen : 1;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < takers; k++)
            nb_column_stats_take(m, expert ? expert[i * takers + k] : 0, x + (size_t)i * width);
}

// ---- Steps

static int step(struct nb_calibration *c, uint32_t first, uint32_t n)
{
    const uint32_t length = c->windows.length;
    float *logits = NULL;
    const struct nb_rows rows = {.n = n * length,
                                 .token = c->windows.tokens + (size_t)first * length,
                                 .position = c->position,
                                 .sequence = c->sequence,
                                 .blocks = c->blocks,
                                 .n_logits = n * length,
                                 .logits_row = c->wanted,
                                 .vectors = c->vectors,
                                 .no_logits = true};
    return c->device->ops->step(c->model, &rows, &logits);
}

int nb_calibration_run(struct nb_calibration *c, uint32_t done, struct nb_importance *s,
                       int (*after)(void *user, uint32_t done), void *user,
                       struct nb_error *ret_error)
{
    int rc = find_stats(c, s);
    if (rc < 0)
        return nb_fail(ret_error, rc, "the sums of the model's matrices: %s", strerror(-rc));
    nb_cpu_capture(c->model, on_input, c);
    while (done < c->windows.n && rc == 0) {
        const uint32_t left = c->windows.n - done, n = left < c->batch ? left : c->batch;
        rc = step(c, done, n);
        done += n;
        if (rc < 0)
            nb_fail(ret_error, rc, "the calibration's step failed: %s", strerror(-rc));
        else
            rc = after(user, done);
    }
    nb_cpu_capture(c->model, NULL, NULL);
    return rc;
}
