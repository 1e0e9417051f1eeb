// Chooses a table of kernels, and lays out quantized activations. No arithmetic here.
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/isa.h"

const struct nb_kernels *nb_kernels_of(enum nb_isa isa)
{
    return isa == NB_ISA_SCALAR ? &nb_kernels_scalar : nb_kernels_native(isa);
}

const struct nb_kernels *nb_kernels_best(void)
{
    const char *forced = getenv("NIBBLE_ISA");
    for (int isa = NB_ISA_COUNT - 1; isa >= 0; isa--) {
        const struct nb_kernels *k = nb_kernels_of((enum nb_isa)isa);
        if (k && (!forced || strcmp(forced, k->name) == 0))
            return k;
    }
    return NULL;
}

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

// The arrays' sizes, in the order in which they lie in memory.
struct act_sizes {
    size_t x, q, s, sum;
};

static struct act_sizes act_sizes(uint32_t n, uint32_t k)
{
    size_t nk = (size_t)n * k;
    return (struct act_sizes){
        .x = align64(nk * sizeof(float)),
        .q = align64(nk),
        .s = align64(nk / NB_ACT_BLOCK * sizeof(float)),
        .sum = align64(nk / 16 * sizeof(int16_t)),
    };
}

size_t nb_act_bytes(uint32_t n, uint32_t k)
{
    struct act_sizes b = act_sizes(n, k);
    return b.x + 2 * b.q + b.s + 2 * b.sum;
}

void nb_act_init(struct nb_act *ret, void *mem, uint32_t n, uint32_t k, uint32_t terms)
{
    struct act_sizes b = act_sizes(n, k);
    uint8_t *at = mem;
    *ret = (struct nb_act){.n = n, .k = k, .terms = terms};
    ret->x = (float *)at;
    at += b.x;
    ret->q1 = (int8_t *)at;
    at += b.q;
    ret->q2 = (int8_t *)at;
    at += b.q;
    ret->s = (float *)at;
    at += b.s;
    ret->sum1 = (int16_t *)at;
    at += b.sum;
    ret->sum2 = (int16_t *)at;
}
