// Any bytes as a model file, as far as its plan: what its metadata says of the computation, and
// which tensor feeds which op.
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/plan.h"
#include "tensor/fail.h"
#include "tensor/image.h"
#include "tests/support/pack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Whoever runs a plan asks no more: every matrix is there, in the shapes that hp promises.
static void check_plan(const struct nb_plan *plan)
{
    const struct nb_hparams *hp = &plan->hp;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        const bool has_matrix = op->kind == NB_OP_LINEAR || op->kind == NB_OP_EMBED;
        if (has_matrix != (op->w != NULL) || op->out.at + op->out.width > op->out.stride ||
            (op->kind == NB_OP_LINEAR &&
             (op->w->packed.cols != op->in.width || op->w->packed.rows != op->out.width)) ||
            op->out.stride > plan->width[op->out.value])
            abort();
    }
    for (uint32_t r = 0; r < hp->n_ropes; r++)
        for (uint32_t i = 0; i < hp->rope_dims / 2; i++)
            if (!isfinite(hp->rope[r].freq[i]) || !isfinite(hp->rope[r].scale))
                abort();
    if (!isfinite(hp->attn_scale) || hp->n_heads % hp->n_kv_heads)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nb_error error;
    const struct nb_pack_options options = {.zeros = true};
    const struct nb_plan_options plan_options = {.precision = NB_PRECISION_BALANCED};
    uint64_t bytes;
    struct nb_image *img;
    struct nb_plan *plan;
    int file = memfd_create("model", MFD_CLOEXEC), image = memfd_create("image", MFD_CLOEXEC);
    if (file < 0 || image < 0 || write(file, data, size) != (ssize_t)size)
        abort();
    if (test_pack(file, image, &options, &bytes, &error) >= 0 &&
        nb_image_map(image, 0, &img, &error) == 0) {
        if (nb_plan_create(img, &plan_options, &plan, &error) == 0) {
            check_plan(plan);
            nb_plan_destroy(plan);
        }
        nb_image_unmap(img);
    }
    close(file);
    close(image);
    return 0;
}
