// See adam.h. A unit of work is a piece of an array.
#include "grad/adam.h"

#include <errno.h>
#include <stdlib.h>

#include "grad/room.h"

#define PIECE 16384 // numbers: whole blocks

struct work {
    const struct nb_loops *loops;
    const struct nb_adam *how;
    const float *gradient;
    float *x, *first, *second;
    struct nb_adam_block *blocks;
    size_t n;
    double *sums; // of each piece
};

static uint32_t size_of(const struct work *w, uint32_t piece)
{
    const size_t left = w->n - (size_t)piece * PIECE;
    return left < PIECE ? (uint32_t)left : PIECE;
}

static void step(void *arg, uint32_t piece, uint32_t thread)
{
    const struct work *w = arg;
    const size_t at = (size_t)piece * PIECE;
    w->loops->adam(w->how, w->gradient + at, w->x + at, w->first + at, w->second + at,
                   size_of(w, piece));
}

static void step_coded(void *arg, uint32_t piece, uint32_t thread)
{
    const struct work *w = arg;
    const uint32_t n = size_of(w, piece);
    for (uint32_t i = 0; i < n; i += NB_ADAM_BLOCK) {
        const size_t at = (size_t)piece * PIECE + i;
        w->loops->adam_coded(w->how, at, w->gradient + at, w->x + at,
                             w->blocks + at / NB_ADAM_BLOCK, nb_least(NB_ADAM_BLOCK, n - i));
    }
}

static void square(void *arg, uint32_t piece, uint32_t thread)
{
    const struct work *w = arg;
    const float *g = w->gradient + (size_t)piece * PIECE;
    w->sums[piece] = (double)w->loops->dot(g, g, size_of(w, piece));
}

static uint32_t pieces(size_t n)
{
    return (uint32_t)((n + PIECE - 1) / PIECE);
}

void nb_adam_step(struct nb_team *team, const struct nb_adam *how, const float *gradient, size_t n,
                  float *x,                    // NOLINT(*non-const-parameter)
                  float *first, float *second) // NOLINT(*non-const-parameter)
{
    struct work w = {nb_loops_best(), how, gradient, x, first, second, NULL, n, NULL};
    nb_each(team, pieces(n), step, &w);
}

void nb_adam_step_coded(struct nb_team *team, const struct nb_adam *how, const float *gradient,
                        size_t n, float *x,           // NOLINT(*non-const-parameter)
                        struct nb_adam_block *blocks) // NOLINT(*non-const-parameter)
{
    struct work w = {nb_loops_best(), how, gradient, x, NULL, NULL, blocks, n, NULL};
    nb_each(team, pieces(n), step_coded, &w);
}

int nb_adam_squares(struct nb_team *team, const float *gradient, size_t n, double *ret)
{
    struct work w = {.loops = nb_loops_best(), .gradient = gradient, .n = n};
    w.sums = calloc(pieces(n) + 1, sizeof(*w.sums));
    if (!w.sums)
        return -ENOMEM;
    nb_each(team, pieces(n), square, &w);
    *ret = 0;
    for (uint32_t i = 0; i < pieces(n); i++)
        *ret += w.sums[i];
    free(w.sums);
    return 0;
}
