// How far the shaders' loops run for a model. A driver that cuts long loops short says nothing and
// gives wrong numbers, so a model that needs more than it runs is refused.
#include "engine/vulkan/model.h"

#include <errno.h>
#include <stdio.h>

#include "tensor/fail.h"

#define KV_TILE 32
// lavapipe before Mesa 25: all loops of an invocation together, and each counts one more than it
// runs. A little is left for those that are not counted here.
#define CUT_AFTER 65535
#define UNCOUNTED 128

bool nb_vulkan_cuts_loops(const struct nb_vulkan_device_info *info)
{
    unsigned major;
    return sscanf(info->driver, "llvmpipe Mesa %u", &major) == 1 && major < 25;
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
    return (CUT_AFTER - UNCOUNTED) / of_block(d, k_dim, v_dim) * KV_TILE;
}

// Of a product of `n` matrices one after the other: by blocks of 32 weights, 22 steps each at most
// (shaders/gemm.comp, with a table of codes), or by four weights and two quads. Whole rows of
// results that are finished take less than a step for each element.
static uint64_t of_product(const struct nb_packed *w, uint32_t n, bool finishes)
{
    bool is_float = w->layout->planes <= NB_PLANES_BF16;
    return (uint64_t)n * (is_float ? w->cols + 4 : w->cols / 32 * 22) + (finishes ? w->rows : 0);
}

int nb_vulkan_check_loops(const struct nb_device_model *m, char *ret_error, size_t error_size)
{
    const struct nb_hparams *hp = &m->plan->hp;
    uint32_t longest = nb_vulkan_longest_context(m->device, hp->k_dim, hp->v_dim);
    if (hp->context > longest)
        return nb_fail(ret_error, error_size, -ENOTSUP,
                       "a context of %u positions: this driver (%s) cuts loops short, and reaches "
                       "%u; ask for a shorter context, use the CPU, or Mesa 25",
                       hp->context, m->device->info.driver, longest);
    for (uint32_t i = 0; nb_vulkan_cuts_loops(&m->device->info) && i < m->plan->n_ops; i++)
        for (int j = 0; j < 3; j++) {
            const struct nb_packed *w = m->plan->ops[i].m[j].w;
            enum nb_op_kind kind = m->plan->ops[i].kind;
            uint32_t n = kind == NB_OP_GATE_UP ? 2 : 1;
            bool finishes = kind == NB_OP_OUT || kind == NB_OP_DOWN;
            if (w && kind != NB_OP_EMBED && of_product(w, n, finishes) > CUT_AFTER - UNCOUNTED)
                return nb_fail(ret_error, error_size, -ENOTSUP,
                               "a matrix of %u columns: this driver (%s) cuts loops short; use the "
                               "CPU, or Mesa 25",
                               w->cols, m->device->info.driver);
        }
    return 0;
}
