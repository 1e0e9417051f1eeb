// The knapsack beside all choices there are, and what a search makes of measurements that do not
// add.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"
#include "quant/search.h"

#define ITEMS   6
#define OPTIONS 4
#define MANY    60

struct made {
    struct nb_option options[MANY][OPTIONS];
    struct nb_item items[MANY];
    uint32_t n;
};

static double uniform(uint64_t seed, uint64_t at)
{
    return (double)(nb_random(seed, at) >> 11) * 0x1p-53;
}

// Bytes grow and costs fall, not always along a convex curve; all bytes are multiples of `step`.
static void make(struct made *m, uint32_t n, uint64_t seed, uint64_t step)
{
    m->n = n;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t bytes = 0;
        double cost = 100 * uniform(seed, i);
        for (uint32_t k = 0; k < OPTIONS; k++) {
            bytes += (1 + nb_random(seed, 1000 + i * OPTIONS + k) % 9) * step;
            cost *= uniform(seed, 2000 + i * OPTIONS + k);
            m->options[i][k] = (struct nb_option){bytes, cost};
        }
        m->items[i] = (struct nb_item){m->options[i], 1 + (i + (uint32_t)seed) % OPTIONS};
    }
}

// Of all choices. INFINITY: none fits.
static double least_cost(const struct made *m, uint64_t budget)
{
    uint8_t choice[ITEMS] = {0};
    double least = INFINITY;
    for (;;) {
        const double cost = nb_allocate_cost(m->items, m->n, choice);
        if (nb_allocate_bytes(m->items, m->n, choice) <= budget && cost < least)
            least = cost;
        uint32_t i = 0;
        while (i < m->n && ++choice[i] == m->items[i].n)
            choice[i++] = 0;
        if (i == m->n)
            return least;
    }
}

static void knapsack_is_exact(void **state)
{
    struct made m;
    uint8_t choice[ITEMS];
    for (uint64_t seed = 0; seed < 40; seed++) {
        make(&m, ITEMS, seed, seed % 2 ? 1 : 32);
        const uint64_t low = nb_allocate_least(m.items, m.n);
        const uint64_t high = nb_allocate_most(m.items, m.n);
        for (uint64_t budget = low; budget <= high + 40; budget += 1 + (high - low) / 13) {
            assert_int_equal(nb_allocate(m.items, NULL, m.n, budget, choice), 0);
            assert_true(nb_allocate_bytes(m.items, m.n, choice) <= budget);
            assert_true(fabs(nb_allocate_cost(m.items, m.n, choice) - least_cost(&m, budget)) <
                        1e-9);
        }
        assert_int_equal(nb_allocate(m.items, NULL, m.n, low - 1, choice), -ENOSPC);
    }
}

// Bytes without a common divisor, far more of them than the table has units.
static void knapsack_fills(void **state)
{
    struct made m;
    uint8_t choice[MANY], other[MANY];
    make(&m, MANY, 3, 1000003);
    for (uint32_t i = 0; i < m.n; i++)
        for (uint32_t k = 0; k < OPTIONS; k++)
            m.options[i][k].bytes += nb_random(7, i * OPTIONS + k) % 1000;
    const uint64_t low = nb_allocate_least(m.items, m.n), high = nb_allocate_most(m.items, m.n);
    const uint64_t budget = (low + high) / 2;
    assert_int_equal(nb_allocate(m.items, NULL, m.n, budget, choice), 0);
    assert_true(nb_allocate_bytes(m.items, m.n, choice) <= budget);
    // Nothing that would cost less fits what is left.
    const uint64_t left = budget - nb_allocate_bytes(m.items, m.n, choice);
    for (uint32_t i = 0; i < m.n; i++)
        for (uint32_t k = choice[i] + 1; k < m.items[i].n; k++)
            assert_true(m.options[i][k].bytes - m.options[i][choice[i]].bytes > left);
    // The bound of the relaxation: the hull's steps by their slopes, the last of them in part.
    assert_int_equal(nb_allocate(m.items, NULL, m.n, budget + high / 1000, other), 0);
    const double found = nb_allocate_cost(m.items, m.n, choice);
    assert_true(nb_allocate_cost(m.items, m.n, other) <= found);
    assert_true(nb_allocate_cost(m.items, m.n, other) > 0.95 * found);
}

static void factors_count(void **state)
{
    static const struct nb_option options[2][2] = {{{1, 5}, {2, 1}}, {{1, 4}, {2, 1}}};
    static const struct nb_item items[2] = {{options[0], 2}, {options[1], 2}};
    static const double factor[2] = {1, 10};
    uint8_t choice[2];
    assert_int_equal(nb_allocate(items, NULL, 2, 3, choice), 0);
    assert_true(choice[0] == 1 && choice[1] == 0);
    assert_int_equal(nb_allocate(items, factor, 2, 3, choice), 0);
    assert_true(choice[0] == 0 && choice[1] == 1);
}

static void hull_is_convex(void **state)
{
    static const struct nb_option options[] = {{10, 9}, {12, 8}, {13, 3}, {20, 2.9}, {21, 1}};
    static const struct nb_item item = {options, 5};
    uint8_t hull[NB_OPTIONS_MAX];
    assert_int_equal(nb_item_hull(&item, hull), 3);
    assert_true(hull[0] == 0 && hull[1] == 2 && hull[2] == 4);
}

// ---- The search

// What is measured: the costs, but of group 1 twenty times as much, and some more for pairs.
struct world {
    const struct made *m;
    const uint32_t *group;
    uint32_t calls, fails; // fails: the call that does, from 1 on
};

static double truth(const struct world *w, const uint8_t *choice)
{
    double sum = 0, root = 0;
    for (uint32_t i = 0; i < w->m->n; i++) {
        const double own = w->m->options[i][choice[i]].cost * (w->group[i] == 1 ? 20 : 1);
        sum += own;
        root += sqrt(own);
    }
    return sum + 0.01 * root * root;
}

static int on_measure(void *user, const uint8_t *choice, double *ret, struct nb_error *error)
{
    struct world *w = user;
    if (++w->calls == w->fails)
        return nb_fail(error, -EIO, "it fails");
    *ret = truth(w, choice);
    return 0;
}

static int search(struct world *w, struct nb_search *s, struct nb_found *found)
{
    struct nb_error error = {""};
    s->items = w->m->items;
    s->n = w->m->n;
    s->group = w->group;
    s->n_groups = 3;
    s->measure = on_measure;
    s->user = w;
    w->calls = 0;
    return nb_search_run(s, found, &error);
}

static void measurements_help(void **state)
{
    struct made m;
    uint32_t group[MANY];
    uint8_t choice[MANY], again[MANY];
    struct world w = {&m, group, 0, 0};
    struct nb_found found = {.choice = choice}, other = {.choice = again};
    make(&m, MANY, 5, 100);
    for (uint32_t i = 0; i < MANY; i++) {
        m.items[i].n = OPTIONS;
        group[i] = i % 3;
    }
    struct nb_search s = {
        .budget = (nb_allocate_least(m.items, m.n) + nb_allocate_most(m.items, m.n)) / 2,
        .rounds = 1};
    assert_int_equal(search(&w, &s, &found), 0);
    const double after_round = found.measured;
    assert_true(after_round < 0.9 * found.first);
    assert_true(w.calls == found.n_measurements && w.calls <= nb_search_measurements(&s));
    s.swaps = 60;
    assert_int_equal(search(&w, &s, &found), 0);
    assert_true(found.measured < after_round);
    assert_true(w.calls <= nb_search_measurements(&s));
    assert_true(nb_allocate_bytes(m.items, m.n, choice) <= s.budget);
    assert_true(found.measured == truth(&w, choice));
    assert_int_equal(search(&w, &s, &other), 0);
    assert_memory_equal(choice, again, MANY);
    w.fails = 5;
    assert_int_equal(search(&w, &s, &other), -EIO);
}

static void fewest_bytes_are_found(void **state)
{
    struct made m;
    uint32_t group[MANY];
    uint8_t choice[MANY], all[MANY];
    struct world w = {&m, group, 0, 0};
    struct nb_found found = {.choice = choice};
    make(&m, MANY, 11, 100);
    for (uint32_t i = 0; i < MANY; i++) {
        group[i] = i % 3;
        all[i] = (uint8_t)(m.items[i].n - 1);
    }
    const double floor = truth(&w, all);
    struct nb_search s = {.most = 1.5 * floor, .rounds = 1};
    assert_int_equal(search(&w, &s, &found), 0);
    assert_true(found.measured <= s.most && found.measured > 0.9 * s.most);
    const uint64_t bytes = nb_allocate_bytes(m.items, m.n, choice);
    assert_true(bytes < nb_allocate_most(m.items, m.n));
    s.most = 0.9 * floor;
    assert_int_equal(search(&w, &s, &found), -ERANGE);
    assert_true(found.measured == floor);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knapsack_is_exact), cmocka_unit_test(knapsack_fills),
        cmocka_unit_test(factors_count),     cmocka_unit_test(hull_is_convex),
        cmocka_unit_test(measurements_help), cmocka_unit_test(fewest_bytes_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
