// One ISA level's table: include after the words of lanes, with LEVEL and LEVEL_NAME set.
#include "quant/fit.h"
#include "quant/latent_tmpl.h"
#include "quant/refine_tmpl.h"
#include "quant/super_tmpl.h"

static void reference(const struct nb_shape *shape, const float *x, struct nb_block *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (shape->super)
        reference_super(shape, x, ret);
    else
        reference_simple(shape, x, ret);
}

static void search(const struct nb_shape *shape, const float *x, const float *w,
                   struct nb_block *ret)
{
    const struct span s = {shape, x, w, shape->block};
    memset(ret, 0, sizeof(*ret));
    if (shape->super)
        search_super(&s, ret);
    else
        search_simple(&s, ret);
}

static const struct nb_feed feed = {
    .subtract = subtract,
    .accumulate = accumulate,
    .solve = solve,
    .gradient = gradient,
    .columns = columns,
    .refine = refine,
};

const struct nb_fit LEVEL = {LEVEL_NAME, reference, search, &feed, &latent};
