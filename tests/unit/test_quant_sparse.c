// Cuts and patterns: exactly as many zeros as were asked for, the least, and of equal ones the
// first; however the scores are counted. And error feedback's loops for zeros: each ISA level has
// the bits of plain C.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sampler.h"
#include "quant/fit.h"
#include "quant/sparse.h"
#include "tensor/type.h"

#define N    777
#define COLS 144 // a block and a part of one

static float scores[N], kept[N];

// Of many that are alike.
static void fill(uint64_t seed)
{
    for (uint32_t i = 0; i < N; i++)
        scores[i] = (float)(nb_random(seed, i) % 60) * 0.25f;
}

// How many are before the i-th: less than it, or its equal and in front.
static uint32_t before(uint32_t first, uint32_t n, uint32_t i)
{
    uint32_t sum = 0;
    for (uint32_t j = first; j < first + n; j++)
        sum += scores[j] < scores[i] || (j < i && scores[j] == scores[i]);
    return sum;
}

static void cuts_take_the_least(void **state)
{
    static const uint64_t counts[] = {0, 1, 2, 388, N - 1};
    for (uint64_t seed = 1; seed < 4; seed++) {
        fill(seed);
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            memcpy(kept, scores, sizeof(kept));
            nb_sparse_keep(nb_sparse_cut_of(scores, N, counts[c]), kept, N);
            for (uint32_t i = 0; i < N; i++)
                assert_true(kept[i] == (before(0, N, i) < counts[c] ? 0 : 1));
        }
    }
}

// Counted in parts, from the last to the first.
static void parts_do_not_show(void **state)
{
    fill(9);
    const struct nb_sparse_cut whole = nb_sparse_cut_of(scores, N, 400);
    struct nb_sparse_search s = nb_sparse_begin(400);
    while (s.shift >= 0) {
        uint64_t bins[NB_SPARSE_BINS] = {0};
        for (uint32_t i = 0; i < 7; i++)
            nb_sparse_count(&s, scores + (6 - i) * (N / 7), N / 7, bins);
        nb_sparse_narrow(&s, bins);
    }
    const struct nb_sparse_cut cut = nb_sparse_found(&s);
    assert_true(cut.at == whole.at && cut.ties == whole.ties);
}

static void patterns_keep_so_many(void **state)
{
    for (uint32_t of = 4; of <= NB_SPARSE_OF; of += 4)
        for (uint32_t keep = 1; keep < of; keep++) {
            fill(of + keep);
            memcpy(kept, scores, sizeof(kept));
            nb_sparse_pattern(keep, of, kept, N - N % of);
            for (uint32_t i = 0; i < N - N % of; i++)
                assert_true(kept[i] == (before(i - i % of, of, i) < of - keep ? 0 : 1));
        }
}

// ---- Loops

static float h[COLS * COLS], feedback[COLS * COLS], root[COLS * COLS];
static uint32_t order[COLS];
static struct nb_factor factor = {
    .cols = COLS, .h = h, .feedback = feedback, .root = root, .order = order};

struct lanes {
    float w[COLS * NB_LANES], q[COLS * NB_LANES], v[COLS * NB_LANES], g[COLS * NB_LANES];
    float e[COLS * NB_LANES], t[COLS * NB_LANES], keep[COLS * NB_LANES];
    float d[COLS * NB_LANES], m[COLS * NB_LANES], by[COLS * NB_LANES];
    uint16_t scale[COLS * NB_LANES], min[COLS * NB_LANES];
    int16_t sub[COLS * NB_LANES], sub_min[COLS * NB_LANES];
    float scores[2][COLS * NB_LANES];
};

static float random_at(uint64_t seed, uint64_t i)
{
    return (float)(int32_t)nb_random(seed, i) * 0x1p-31f;
}

static void make_factor(void)
{
    for (uint32_t i = 0; i < COLS; i++) {
        order[i] = i;
        for (uint32_t j = 0; j < COLS; j++) {
            const uint32_t least = i < j ? i : j, most = i < j ? j : i;
            h[i * COLS + j] = i == j ? 4 : 0.02f * random_at(least, most);
            feedback[j * COLS + i] = j > i ? 0.1f * random_at(5, i * COLS + j) : 0;
            root[i * COLS + j] = j == i ? 1.5f + random_at(6, i) : 0;
        }
    }
}

// All that is done to a unit of a share of zeros, or of a pattern.
static void work(const struct nb_feed *feed, struct nb_unit *u, struct lanes *l)
{
    if (u->of) {
        feed->columns(u);
    } else {
        for (uint32_t first = 0, n, block = 0; first < COLS; first += n, block++) {
            n = COLS - first < NB_FEED_SPARSE ? COLS - first : NB_FEED_SPARSE;
            feed->score(u, first, n, l->scores[block]);
            float *keep = u->keep + (size_t)first * NB_LANES;
            memcpy(keep, l->scores[block], n * NB_LANES * sizeof(*keep));
            nb_sparse_keep(nb_sparse_cut_of(keep, (size_t)n * NB_LANES, n * NB_LANES / 2), keep,
                           (size_t)n * NB_LANES);
            feed->round(u, first, n);
        }
    }
    feed->gradient(u);
    if (!u->bare)
        feed->refine(u);
}

static void run_level(const struct nb_feed *feed, const struct nb_shape *shape, uint32_t of,
                      struct lanes *l)
{
    struct nb_unit u = {.shape = shape,
                        .factor = &factor,
                        .w = l->w,
                        .q = l->q,
                        .v = l->v,
                        .g = l->g,
                        .e = l->e,
                        .t = l->t,
                        .d = l->d,
                        .m = l->m,
                        .by = l->by,
                        .scale = l->scale,
                        .min = l->min,
                        .sub = l->sub,
                        .sub_min = l->sub_min,
                        .keep = l->keep,
                        .stay = of / 2,
                        .of = of,
                        .bare = !shape};
    memset(l, 0, sizeof(*l));
    for (uint32_t i = 0; i < COLS * NB_LANES; i++) {
        l->w[i] = 0.1f * random_at(7, i);
        l->d[i] = 0.0146484375f; // a half
        l->by[i] = 1 / l->d[i];
        l->scale[i] = nb_f32_to_f16(l->d[i]);
        l->sub[i] = 1;
    }
    work(feed, &u, l);
}

static void levels_have_the_bits_of_plain_c(void **state)
{
    static struct lanes plain, other;
    struct nb_shape four;
    assert_int_equal(nb_shape_init(&four, NB_TYPE_Q4_0), 0);
    four.block = four.group = 16; // COLS are whole ones
    make_factor();
    for (uint32_t of = 0; of <= 8; of += 4)
        for (int bare = 0; bare < 2; bare++) {
            run_level(nb_fits[NB_ISA_SCALAR]->feed, bare ? NULL : &four, of, &plain);
            uint32_t zeros = 0;
            for (uint32_t i = 0; i < COLS * NB_LANES; i++) {
                assert_true(plain.keep[i] == 1 || plain.q[i] == 0);
                zeros += plain.keep[i] == 0;
            }
            assert_int_equal(zeros, COLS * NB_LANES / 2);
            for (int isa = NB_ISA_SCALAR + 1; isa < NB_ISA_COUNT; isa++) {
                if (!nb_fits[isa] || !nb_kernels_of((enum nb_isa)isa))
                    continue;
                run_level(nb_fits[isa]->feed, bare ? NULL : &four, of, &other);
                for (uint32_t i = 0; i < COLS * NB_LANES; i++) // a code knows no -0
                    other.v[i] = other.v[i] == plain.v[i] ? plain.v[i] : other.v[i];
                assert_memory_equal(&plain, &other, sizeof(plain));
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_take_the_least),
        cmocka_unit_test(parts_do_not_show),
        cmocka_unit_test(patterns_keep_so_many),
        cmocka_unit_test(levels_have_the_bits_of_plain_c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
