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

static void scale(const struct nb_shape *shape, const float *x, const float *w, unsigned n,
                  uint16_t *ret_scale, uint16_t *ret_min)
{
    struct nb_shape wide = *shape;
    wide.group = wide.block = n;
    struct stored best;
    if (w) {
        best = find_stored(&(struct span){&wide, x, w, n});
    } else {
        struct line l = span_of(&wide, x);
        best = (struct stored){nb_f32_to_f16(l.d), nb_f32_to_f16(l.m), 0};
    }
    *ret_scale = best.d;
    *ret_min = best.m;
}

static void codes(const struct nb_shape *shape, const float *x, uint16_t d, uint16_t m,
                  struct nb_block *ret)
{
    memset(ret, 0, sizeof(*ret));
    put_simple(shape, x, d, m, ret);
}

static const struct nb_feed feed = {
    .subtract = subtract,
    .accumulate = accumulate,
    .solve = solve,
    .gradient = gradient,
    .columns = columns,
    .score = score,
    .round = columns_of,
    .refine = refine,
};

const struct nb_fit LEVEL = {LEVEL_NAME, reference, search, scale, codes, &feed, &latent};
