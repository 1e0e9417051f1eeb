// See runner.h. Windows of a batch are sequences with KV blocks of their own, the same in each
// step: what one batch left there is overwritten by the next before it is read.
#include "quant/runner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kv.h"

int nb_runner_pack(const struct nb_source *source, struct nb_image **ret,
                   struct nb_error *ret_error)
{
    uint64_t bytes;
    int fd = memfd_create("nibble-model", MFD_CLOEXEC);
    if (fd < 0)
        return nb_fail(ret_error, -errno, "no memory for the model: %s", strerror(errno));
    int rc = nb_image_pack(source, fd, NULL, &bytes, ret_error);
    if (rc >= 0)
        rc = nb_image_map(fd, 0, ret, ret_error);
    close(fd);
    return rc < 0 ? rc : 0;
}

int nb_runner_plan(const struct nb_image *image, uint32_t length, struct nb_plan **ret,
                   struct nb_error *ret_error)
{
    const struct nb_plan_options options = {.precision = NB_PRECISION_EXACT, .kv_type = NB_KV_F32};
    struct nb_plan *plan = NULL;
    int rc = nb_plan_create(image, &options, &plan, ret_error);
    if (rc == 0 && length > plan->hp.context) {
        rc = nb_fail(ret_error, -EINVAL,
                     "windows of %u tokens are longer than the model's context of %u", length,
                     plan->hp.context);
        nb_plan_destroy(plan);
    }
    if (rc == 0)
        *ret = plan;
    return rc;
}

static uint32_t window_blocks(const struct nb_runner *r)
{
    return (r->length + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
}

static int open_device(struct nb_runner *r, const struct nb_running *how, struct nb_error *e)
{
    const struct nb_device_options options = {.allowed = how->allowed};
    const struct nb_device_model_options model = {.kv_blocks = r->batch * window_blocks(r),
                                                  .max_rows = how->rows};
    int rc = nb_device_create("cpu", &options, &r->device, e);
    return rc == 0 ? r->device->ops->model_open(r->device, r->plan, &model, &r->model, e) : rc;
}

// All but the tokens is the same in every batch.
static int make_rows(struct nb_runner *r, uint32_t step)
{
    const uint32_t n = r->batch * r->length, blocks = window_blocks(r);
    r->position = calloc(n, sizeof(*r->position));
    r->sequence = calloc(n, sizeof(*r->sequence));
    r->wanted = calloc(step, sizeof(*r->wanted));
    r->block_numbers = calloc((size_t)r->batch * blocks, sizeof(*r->block_numbers));
    r->blocks = calloc(r->batch, sizeof(*r->blocks));
    if (!r->position || !r->sequence || !r->wanted || !r->block_numbers || !r->blocks)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        r->position[i] = i % r->length;
        r->sequence[i] = i / r->length;
    }
    for (uint32_t i = 0; i < step; i++)
        r->wanted[i] = i;
    for (uint32_t i = 0; i < r->batch * blocks; i++)
        r->block_numbers[i] = i;
    for (uint32_t i = 0; i < r->batch; i++)
        r->blocks[i] = r->block_numbers + (size_t)i * blocks;
    return 0;
}

int nb_runner_open(const struct nb_running *how, struct nb_runner **ret, struct nb_error *ret_error)
{
    struct nb_runner *r = calloc(1, sizeof(*r));
    if (!r)
        return nb_fail(ret_error, -ENOMEM, "no memory for the model's steps");
    r->length = how->length;
    r->batch = how->batch;
    int rc = how->image ? 0 : nb_runner_pack(how->source, &r->own, ret_error);
    r->image = how->image ? how->image : r->own;
    if (rc == 0)
        rc = nb_runner_plan(r->image, r->length, &r->plan, ret_error);
    if (rc == 0)
        rc = open_device(r, how, ret_error);
    if (rc == 0 && (rc = make_rows(r, how->rows)) < 0)
        nb_fail(ret_error, rc, "no memory for the model's steps");
    if (rc < 0)
        nb_runner_close(r);
    else
        *ret = r;
    return rc;
}

void nb_runner_close(struct nb_runner *r)
{
    if (!r)
        return;
    if (r->model)
        r->device->ops->model_close(r->model);
    if (r->device)
        r->device->ops->destroy(r->device);
    nb_plan_destroy(r->plan);
    if (r->own)
        nb_image_unmap(r->own);
    free(r->position);
    free(r->sequence);
    free(r->wanted);
    free(r->block_numbers);
    free(r->blocks);
    free(r);
}

int nb_runner_step(struct nb_runner *r, const int32_t *tokens, uint32_t first, uint32_t n,
                   float **ret_logits)
{
    const struct nb_rows rows = {.n = n,
                                 .token = tokens + first,
                                 .position = r->position + first,
                                 .sequence = r->sequence + first,
                                 .blocks = r->blocks,
                                 .n_logits = n,
                                 .logits_row = r->wanted};
    return r->device->ops->step(r->model, &rows, ret_logits);
}
