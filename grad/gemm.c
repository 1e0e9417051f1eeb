// Walks a product block by block: packs a block of B and of A together, then computes the tiles of
// C that they give, each thread those that it takes. Arithmetic is the kernels'.
#include "grad/gemm.h"

#include <pthread.h>
#include <stdatomic.h>

#include "grad/gemm_isa.h"

// The most that is packed at once, in the last cache: 4096 rows of A and 3072 columns of B.
#define A_PANELS 512
#define B_LANES  3072
// Panels of A that a thread multiplies by a panel of B after the other: they stay in its L2 cache.
#define TILE_PANELS 24
// Columns for which it does so before it takes more.
#define TILE_LANES 576
// Panels of A that are packed at once: about as many words as a panel of B has.
#define PACK_PANELS 6
// Multiplications that are not worth waking others for.
#define FEW (1u << 16)

static _Alignas(64) uint32_t a_words[A_PANELS * NB_GEMM_A_LANES * NB_GEMM_BLOCK];
static _Alignas(64) uint32_t b_words[B_LANES * NB_GEMM_BLOCK];
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

struct walk {
    const struct nb_gemm_product *p;
    struct nb_team *team;   // NULL: the caller alone
    atomic_uint pack, tile; // the next to take, of the block under way
};

// The block under way: rows [i, i + m) of A by columns [j, j + n) of B, over [k, k + depth).
struct block {
    uint32_t i, m, j, n, k, depth;
    uint32_t steps; // words of a lane
    uint32_t a_panels, b_panels;
    uint32_t tile_a, tile_b; // panels of a tile
};

static uint32_t at_most(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t up(uint32_t a, uint32_t b)
{
    return a / b + (a % b > 0);
}

static bool take(atomic_uint *next, uint32_t units, uint32_t *ret)
{
    *ret = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
    return *ret < units;
}

static void barrier(const struct walk *w)
{
    if (w->team)
        nb_team_barrier(w->team);
}

// --- Packing

static const void *element(const struct nb_gemm_product *p, const void *x, size_t at)
{
    return (const char *)x + at * p->kernels->element;
}

static void pack_a(const struct nb_gemm_product *p, const struct block *b, uint32_t panel)
{
    const uint32_t rows = p->kernels->rows, first = panel * rows;
    const size_t i = b->i + first, k = b->k;
    p->kernels->pack(&(struct nb_gemm_panel){
        .from = element(p, p->a, p->ta ? k * p->lda + i : i * p->lda + k),
        .ld = p->lda,
        .by_k = !p->ta,
        .lanes = b->m - first,
        .k = b->depth,
        .width = NB_GEMM_A_LANES,
        .to = a_words + (size_t)panel * NB_GEMM_A_LANES * b->steps,
    });
}

static void pack_b(const struct nb_gemm_product *p, const struct block *b, uint32_t panel)
{
    const uint32_t columns = p->kernels->columns, first = panel * columns;
    const size_t j = b->j + first, k = b->k;
    p->kernels->pack(&(struct nb_gemm_panel){
        .from = element(p, p->b, p->tb ? j * p->ldb + k : k * p->ldb + j),
        .ld = p->ldb,
        .by_k = p->tb,
        .lanes = b->n - first,
        .k = b->depth,
        .width = columns,
        .to = b_words + (size_t)panel * columns * b->steps,
    });
}

// B's panels stay for all blocks of rows.
static void pack(struct walk *w, const struct block *b)
{
    const uint32_t a_units = up(b->a_panels, PACK_PANELS), b_units = b->i ? 0 : b->b_panels;
    for (uint32_t unit; take(&w->pack, a_units + b_units, &unit);) {
        if (unit < b_units) {
            pack_b(w->p, b, unit);
            continue;
        }
        const uint32_t first = (unit - b_units) * PACK_PANELS;
        for (uint32_t i = first; i < at_most(first + PACK_PANELS, b->a_panels); i++)
            pack_a(w->p, b, i);
    }
}

// --- Tiles

static void multiply(const struct nb_gemm_product *p, const struct block *b, uint32_t ai,
                     uint32_t bj)
{
    const struct nb_gemm_kernels *k = p->kernels;
    const uint32_t i = ai * k->rows, j = bj * k->columns;
    k->tile(&(struct nb_gemm_tile){
        .steps = b->steps,
        .a = a_words + (size_t)ai * NB_GEMM_A_LANES * b->steps,
        .b = b_words + (size_t)bj * k->columns * b->steps,
        .rows = at_most(k->rows, b->m - i),
        .columns = at_most(k->columns, b->n - j),
        .beta = b->k ? 1.0f : p->beta,
        .c = p->c + (b->i + i) * p->ldc + b->j + j,
        .ldc = p->ldc,
    });
}

static void tiles(struct walk *w, const struct block *b)
{
    const uint32_t across = up(b->b_panels, b->tile_b), down = up(b->a_panels, b->tile_a);
    for (uint32_t unit; take(&w->tile, across * down, &unit);) {
        const uint32_t a0 = unit / across * b->tile_a, b0 = unit % across * b->tile_b;
        for (uint32_t j = b0; j < at_most(b0 + b->tile_b, b->b_panels); j++)
            for (uint32_t i = a0; i < at_most(a0 + b->tile_a, b->a_panels); i++)
                multiply(w->p, b, i, j);
    }
}

// --- Blocks

// Tiles of the size that caches like, or smaller, so that each thread has a few.
static void choose_tiles(const struct walk *w, struct block *b)
{
    const uint32_t wanted = w->team ? 4 * nb_team_size(w->team) : 1;
    b->tile_a = TILE_PANELS;
    b->tile_b = TILE_LANES / w->p->kernels->columns;
    while (up(b->a_panels, b->tile_a) * up(b->b_panels, b->tile_b) < wanted &&
           b->tile_a * b->tile_b > 1) {
        if (b->tile_b > 1 && b->tile_b * w->p->kernels->columns >= b->tile_a * 8)
            b->tile_b = up(b->tile_b, 2);
        else
            b->tile_a = up(b->tile_a, 2);
    }
}

// Thread 0 sets a counter back while nobody takes from it.
static void run_block(struct walk *w, struct block *b, uint32_t thread)
{
    const struct nb_gemm_kernels *k = w->p->kernels;
    b->steps = up(b->depth, k->step);
    b->a_panels = up(b->m, k->rows);
    b->b_panels = up(b->n, k->columns);
    choose_tiles(w, b);
    pack(w, b);
    barrier(w);
    if (thread == 0)
        atomic_store_explicit(&w->pack, 0, memory_order_relaxed);
    tiles(w, b);
    barrier(w);
    if (thread == 0)
        atomic_store_explicit(&w->tile, 0, memory_order_relaxed);
}

static void run(void *arg, uint32_t thread)
{
    struct walk *w = arg;
    const struct nb_gemm_product *p = w->p;
    const uint32_t m = A_PANELS * p->kernels->rows,
                   n = B_LANES / p->kernels->columns * p->kernels->columns;
    struct block b;
    for (b.j = 0; b.j < p->n; b.j += b.n) {
        b.n = at_most(n, p->n - b.j);
        b.k = 0;
        do { // once for k = 0, too: then C = beta * C
            b.depth = at_most(NB_GEMM_BLOCK, p->k - b.k);
            for (b.i = 0; b.i < p->m; b.i += b.m) {
                b.m = at_most(m, p->m - b.i);
                run_block(w, &b, thread);
            }
            b.k += b.depth;
        } while (b.k < p->k);
    }
}

void nb_gemm_run(struct nb_team *team, const struct nb_gemm_product *p)
{
    struct walk w = {.p = p, .team = team};
    if (!p->m || !p->n)
        return;
    pthread_mutex_lock(&turn);
    if (nb_team_size(team) == 1 || (uint64_t)p->m * p->n <= FEW / (p->k + 1)) {
        w.team = NULL;
        run(&w, 0);
    } else {
        nb_team_run(team, run, &w);
    }
    pthread_mutex_unlock(&turn);
}

void nb_sgemm(struct nb_team *team, bool ta, bool tb, uint32_t m, uint32_t n, uint32_t k,
              const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
              size_t ldc)
{
    const struct nb_gemm_kernels *kernels = nb_sgemm_best();
    nb_gemm_run(team,
                &(struct nb_gemm_product){kernels, ta, tb, m, n, k, a, b, lda, ldb, beta, c, ldc});
}

void nb_bgemm(struct nb_team *team, bool ta, bool tb, uint32_t m, uint32_t n, uint32_t k,
              const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, float beta, float *c,
              size_t ldc)
{
    const struct nb_gemm_kernels *kernels = nb_bgemm_best();
    nb_gemm_run(team,
                &(struct nb_gemm_product){kernels, ta, tb, m, n, k, a, b, lda, ldb, beta, c, ldc});
}
