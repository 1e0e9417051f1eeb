// See allocate.h. Dynamic programming over bytes: best[u] is the least cost of the items so far in
// u units, and `taken` says which option of an item gave it.
#include "quant/allocate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNITS 32768 // of bytes, at most

struct table {
    const struct nb_item *items;
    const double *factor;
    uint32_t n;
    uint64_t unit; // bytes
    uint32_t units;
    double *best, *before; // [units + 1]
    uint8_t *taken;        // [n][units + 1]
};

static double cost_of(const struct table *t, uint32_t item, uint32_t option)
{
    return t->items[item].options[option].cost * (t->factor ? t->factor[item] : 1);
}

uint64_t nb_allocate_least(const struct nb_item *items, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += items[i].options[0].bytes;
    return bytes;
}

uint64_t nb_allocate_most(const struct nb_item *items, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += items[i].options[items[i].n - 1].bytes;
    return bytes;
}

uint64_t nb_allocate_bytes(const struct nb_item *items, uint32_t n, const uint8_t *choice)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += items[i].options[choice[i]].bytes;
    return bytes;
}

double nb_allocate_cost(const struct nb_item *items, uint32_t n, const uint8_t *choice)
{
    double cost = 0;
    for (uint32_t i = 0; i < n; i++)
        cost += items[i].options[choice[i]].cost;
    return cost;
}

static uint64_t divisor(uint64_t a, uint64_t b)
{
    while (b) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static void choose_unit(struct table *t, uint64_t spare)
{
    uint64_t common = 0;
    for (uint32_t i = 0; i < t->n; i++)
        for (uint32_t k = 1; k < t->items[i].n; k++)
            common = divisor(common, t->items[i].options[k].bytes - t->items[i].options[0].bytes);
    t->unit = common ? common : 1;
    if (spare / t->unit > UNITS)
        t->unit = (spare + UNITS - 1) / UNITS;
    const uint64_t units = spare / t->unit,
                   span = nb_allocate_most(t->items, t->n) - nb_allocate_least(t->items, t->n);
    const uint64_t most = span / t->unit + t->n; // each item is rounded up
    t->units = (uint32_t)(units < most ? units : most);
}

static uint32_t units_of(const struct table *t, uint32_t item, uint32_t option)
{
    const struct nb_option *o = t->items[item].options;
    const uint64_t units = (o[option].bytes - o[0].bytes + t->unit - 1) / t->unit;
    return units > t->units ? t->units + 1 : (uint32_t)units;
}

static void add_item(struct table *t, uint32_t item)
{
    uint8_t *taken = t->taken + (size_t)item * (t->units + 1);
    double *swap = t->before;
    t->before = t->best;
    t->best = swap;
    for (uint32_t u = 0; u <= t->units; u++)
        t->best[u] = INFINITY;
    for (uint32_t k = 0; k < t->items[item].n; k++) {
        const uint32_t units = units_of(t, item, k);
        const double cost = cost_of(t, item, k);
        for (uint32_t u = units; u <= t->units; u++)
            if (t->before[u - units] + cost < t->best[u]) {
                t->best[u] = t->before[u - units] + cost;
                taken[u] = (uint8_t)k;
            }
    }
}

// One item's step at a time, that which lowers the cost most.
static void fill(const struct table *t, uint64_t budget, uint8_t *choice)
{
    uint64_t left = budget - nb_allocate_bytes(t->items, t->n, choice);
    for (;;) {
        double gain = 0;
        uint32_t item = 0, option = 0;
        for (uint32_t i = 0; i < t->n; i++)
            for (uint32_t k = choice[i] + 1; k < t->items[i].n; k++) {
                const struct nb_option *o = t->items[i].options;
                const double own = cost_of(t, i, choice[i]) - cost_of(t, i, k);
                if (o[k].bytes - o[choice[i]].bytes <= left && own > gain) {
                    gain = own;
                    item = i;
                    option = k;
                }
            }
        if (gain <= 0)
            return;
        const struct nb_option *o = t->items[item].options;
        left -= o[option].bytes - o[choice[item]].bytes;
        choice[item] = (uint8_t)option;
    }
}

int nb_allocate(const struct nb_item *items, const double *factor, uint32_t n, uint64_t budget,
                uint8_t *ret_choice)
{
    const uint64_t least = nb_allocate_least(items, n);
    struct table t = {.items = items, .factor = factor, .n = n};
    if (least > budget)
        return -ENOSPC;
    choose_unit(&t, budget - least);
    double *memory = calloc(2 * ((size_t)t.units + 1), sizeof(*memory));
    t.taken = calloc((size_t)n + 1, (size_t)t.units + 1);
    int rc = memory && t.taken ? 0 : -ENOMEM;
    if (rc == 0) {
        t.best = memory;
        t.before = memory + t.units + 1;
        for (uint32_t i = 0; i < n; i++)
            add_item(&t, i);
        for (uint32_t i = n, u = t.units; i-- > 0; u -= units_of(&t, i, ret_choice[i]))
            ret_choice[i] = t.taken[(size_t)i * (t.units + 1) + u];
        fill(&t, budget, ret_choice);
    }
    free(memory);
    free(t.taken);
    return rc;
}

// By the steepest descent from each option on: Jarvis's march.
uint32_t nb_item_hull(const struct nb_item *item, uint8_t ret[NB_OPTIONS_MAX])
{
    const struct nb_option *o = item->options;
    uint32_t n = 0, at = 0;
    for (;;) {
        ret[n++] = (uint8_t)at;
        double steepest = 0;
        uint32_t next = at;
        for (uint32_t k = at + 1; k < item->n; k++) {
            const double slope = (o[k].cost - o[at].cost) / (double)(o[k].bytes - o[at].bytes);
            if (slope < steepest || (slope == steepest && next != at)) {
                steepest = slope;
                next = k;
            }
        }
        if (next == at)
            return n;
        at = next;
    }
}
