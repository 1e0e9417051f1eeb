// Sums of products of calibration rows: tiles of 16 by 16, shared among threads. Who sums a tile
// does not change it.
#include "quant/hessian.h"

#include <stdatomic.h>

#include "quant/fit.h"

#define TILE  16
#define CHUNK 128 // rows summed in fp32 before they join the fp64 sums

struct sum {
    const struct nb_feed *feed;
    double *dst;
    const float *a, *b;
    uint64_t rows;
    uint32_t n, cols;
    bool mirrored; // a is b: the tiles above the diagonal are those below it
    atomic_uint next;
};

// A band of tiles: 16 rows of dst. A chunk's rows of b stay in the cache for all of its tiles.
static void sum_band(const struct sum *s, uint32_t i, uint32_t end)
{
    for (uint64_t first = 0; first < s->rows; first += CHUNK) {
        uint32_t n = s->rows - first < CHUNK ? (uint32_t)(s->rows - first) : CHUNK;
        for (uint32_t j = 0; j < end; j += TILE)
            s->feed->outer(s->dst + (size_t)i * s->cols + j, s->cols, s->a + first * s->n + i, s->n,
                           s->b + first * s->cols + j, s->cols, n);
    }
}

static void sum_bands(void *arg, uint32_t thread)
{
    struct sum *s = arg;
    uint32_t band;
    while ((band = atomic_fetch_add(&s->next, 1)) < s->n / TILE) {
        // The longest bands first: the last one of a triangle is as long as the matrix is wide.
        uint32_t i = s->mirrored ? s->n - (band + 1) * TILE : band * TILE;
        sum_band(s, i, s->mirrored ? i + TILE : s->cols);
    }
}

void nb_cross_add(struct nb_team *team, double *c, const float *a, uint32_t n, const float *b,
                  uint64_t rows, uint32_t cols)
{
    struct sum s = {
        .feed = nb_fit_best()->feed, .a = a, .b = b, .rows = rows, .n = n, .cols = cols};
    s.dst = c;
    nb_team_run(team, sum_bands, &s);
}

void nb_hessian_add(struct nb_team *team, double *h, const float *x, uint64_t rows, uint32_t cols)
{
    struct sum s = {.feed = nb_fit_best()->feed,
                    .dst = h,
                    .a = x,
                    .b = x,
                    .rows = rows,
                    .n = cols,
                    .cols = cols,
                    .mirrored = true};
    nb_team_run(team, sum_bands, &s);
    for (uint32_t i = 0; i < cols; i++)
        for (uint32_t j = 0; j < i; j++)
            h[(size_t)j * cols + i] = h[(size_t)i * cols + j];
}
