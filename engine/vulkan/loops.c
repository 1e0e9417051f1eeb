// How far the shaders' loops run for a model. A driver that cuts long loops short says nothing and
// gives wrong numbers, so a model that needs more than it runs is refused.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>

#include "tensor/fail.h"

// lavapipe before Mesa 25: all loops of an invocation together, and each counts one more than it
// runs. A little is left for those that are not counted here.
#define CUT_AFTER 65535
#define UNCOUNTED 128

bool nb_vulkan_cuts_loops(const struct nb_vulkan_device_info *info)
{
    unsigned major;
    return sscanf(info->driver, "llvmpipe Mesa %u", &major) == 1 && major < 25;
}

uint32_t nb_vulkan_steps(const struct nb_vulkan_device *d)
{
    return nb_vulkan_cuts_loops(&d->info) ? CUT_AFTER - UNCOUNTED : UINT32_MAX;
}

// Of one block of positions: a loop over the key's elements, two of which attention.comp takes at a
// time, and one over the values that a lane takes (attention_team.glsl).
static uint32_t of_block(const struct nb_vulkan_device *d, uint32_t k_dim, uint32_t v_dim)
{
    bool team = d->tier->variant[NB_SHADER_ATTENTION][0].team;
    return team ? 3 + k_dim / 2 + (v_dim + 31) / 32 * 33 : 11 + k_dim / 2;
}

uint32_t nb_vulkan_longest_context(const struct nb_vulkan_device *d, uint32_t k_dim, uint32_t v_dim)
{
    if (!nb_vulkan_cuts_loops(&d->info))
        return UINT32_MAX;
    return (CUT_AFTER - UNCOUNTED) / of_block(d, k_dim, v_dim) * NB_KV_POSITIONS;
}

// A GEMM of matrices one after the other goes by blocks of 32 weights, 23 steps each at most
// (shaders/gemm.comp, with a table of codes; ops_limits.c computes the widest), or by four weights
// and two quads. Whole rows of results that are finished take less than a step for each element.
uint32_t nb_vulkan_widest_matrix(const struct nb_vulkan_device *d, bool floats, uint32_t matrices,
                                 uint32_t finished_rows)
{
    if (!nb_vulkan_cuts_loops(&d->info))
        return UINT32_MAX;
    const uint32_t steps = CUT_AFTER - UNCOUNTED;
    if (finished_rows >= steps)
        return 0;
    const uint32_t room = (steps - finished_rows) / matrices;
    if (floats)
        return room > 4 ? (room - 4) / 4 * 4 : 0;
    return room / 23 * 32;
}

uint32_t nb_vulkan_widest(const struct nb_device *d, const struct nb_packed *w)
{
    return nb_vulkan_widest_matrix((const struct nb_vulkan_device *)d, nb_is_float(w), 1, 0);
}

static int check_matrix(const struct nb_device_model *m, const struct nb_op *op,
                        struct nb_error *ret_error)
{
    const struct nb_packed *w = &op->w->packed;
    const uint32_t widest =
        nb_vulkan_widest_matrix(m->device, nb_is_float(w),
                                op->section == NB_SECTION_GATE_UP ? 2 : 1, op->add ? w->rows : 0);
    if (w->cols <= widest)
        return 0;
    return nb_fail(ret_error, -ENOTSUP,
                   "a matrix of %u columns: this driver (%s) cuts loops short, and reaches %u; use "
                   "the CPU, or Mesa 25",
                   w->cols, m->device->info.driver, widest);
}

int nb_vulkan_check_loops(const struct nb_device_model *m, struct nb_error *ret_error)
{
    const struct nb_hparams *hp = &m->plan->hp;
    uint32_t longest = nb_vulkan_longest_context(m->device, hp->k_dim, hp->v_dim);
    if (hp->context > longest)
        return nb_fail(ret_error, -ENOTSUP,
                       "a context of %u positions: this driver (%s) cuts loops short, and reaches "
                       "%u; ask for a shorter context, use the CPU, or Mesa 25",
                       hp->context, m->device->info.driver, longest);
    int rc = 0;
    for (uint32_t i = 0; i < m->plan->n_ops && rc == 0; i++) {
        const struct nb_op *op = &m->plan->ops[i];
        if (op->kind == NB_OP_LINEAR)
            rc = check_matrix(m, op, ret_error);
    }
    return rc;
}
