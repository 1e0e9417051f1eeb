// Checks attention: against the reference, a query alone against the same query in a chunk, and
// that slots which no query sees do not leak whatever they hold.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"

#define KV_HEADS 2

struct shape {
    enum nb_kv_type type;
    uint32_t k_dim, v_dim, group, n_q, pos0, window;
    float softcap;
};

struct cache {
    uint8_t *memory;
    const uint8_t **blocks;
    size_t v_offset;
};

static struct nb_kv_form form_of(const struct shape *s)
{
    return (struct nb_kv_form){s->type, s->k_dim, s->v_dim};
}

// Every slot starts as NaN, of codes in their scales; those that some query sees are written.
static struct cache make_cache(const struct shape *s)
{
    uint32_t end = s->pos0 + s->n_q, n = (end + NB_KV_TILE - 1) / NB_KV_TILE;
    uint32_t first = s->window && s->window < s->pos0 + 1 ? s->pos0 + 1 - s->window : 0;
    const struct nb_kv_form form = form_of(s);
    size_t v_offset = KV_HEADS * s->k_dim * nb_kv_bytes(s->type);
    size_t block = v_offset + KV_HEADS * s->v_dim * nb_kv_bytes(s->type);
    struct cache c = {buffer(n * block), buffer(n * sizeof(void *)), v_offset};
    memset(c.memory, 0xff, n * block);
    float *k = buffer(KV_HEADS * s->k_dim * 4), *v = buffer(KV_HEADS * s->v_dim * 4);
    for (uint32_t b = 0; b < n; b++)
        c.blocks[b] = c.memory + b * block;
    for (uint32_t pos = first; pos < end; pos++) {
        uint8_t *at = c.memory + pos / NB_KV_TILE * block;
        fill_floats(k, KV_HEADS * s->k_dim, SANE);
        fill_floats(v, KV_HEADS * s->v_dim, SANE);
        nb_kernels_of(NB_ISA_SCALAR)
            ->kv_write(&form, at, at + v_offset, k, v, KV_HEADS, pos % NB_KV_TILE);
    }
    free(k);
    free(v);
    return c;
}

static void attend(const struct nb_kernels *k, const struct shape *s, const struct cache *c,
                   const float *q, uint32_t first, uint32_t n, float *out)
{
    size_t heads = (size_t)KV_HEADS * s->group, ldq = heads * s->k_dim, ldo = heads * s->v_dim;
    const struct nb_kv_form form = form_of(s);
    void *scratch = buffer(k->attn_scratch(&form, n, s->group));
    for (uint32_t head = 0; head < KV_HEADS; head++)
        k->attention(&form, q + first * ldq, ldq, c->blocks, c->v_offset, n, s->pos0 + first, head,
                     s->group, 0.125f, s->softcap, s->window, out + first * ldo, ldo, scratch);
    free(scratch);
}

static void check_shape(const struct nb_kernels *k, const struct shape *s)
{
    struct cache c = make_cache(s);
    size_t heads = (size_t)KV_HEADS * s->group;
    size_t n_q = s->n_q * heads * s->k_dim, n_out = s->n_q * heads * s->v_dim;
    float *q = buffer(n_q * 4), *want = buffer(n_out * 4), *got = buffer(n_out * 4);
    float *finite = buffer(n_out * 4);
    fill_floats(q, n_q, SANE);
    attend(nb_kernels_of(NB_ISA_SCALAR), s, &c, q, 0, s->n_q, want);
    attend(k, s, &c, q, 0, s->n_q, got);
    check_floats(want, got, n_out, "type %d dims %u/%u group %u queries %u at %u window %u cap %g",
                 s->type, s->k_dim, s->v_dim, s->group, s->n_q, s->pos0, s->window, s->softcap);
    for (size_t i = 0; i < n_out; i++)
        finite[i] = got[i] - got[i];
    float *zero = buffer(n_out * 4);
    memset(zero, 0, n_out * 4);
    check_floats(zero, finite, n_out, "an unseen slot leaks at %u", s->pos0);
    for (uint32_t t = 0; t < s->n_q; t++)
        attend(k, s, &c, q, t, 1, want);
    check_floats(want, got, n_out, "group %u at %u: %u queries together and alone", s->group,
                 s->pos0, s->n_q);
    free(zero);
    free(finite);
    free(q);
    free(want);
    free(got);
    free(c.memory);
    free(c.blocks);
}

void check_attention(const struct nb_kernels *k)
{
    static const uint32_t dims[][2] = {{64, 64}, {128, 128}, {80, 80}, {32, 48}, {24, 20}, {96, 1}};
    static const uint32_t code_dims[][2] = {{64, 64}, {128, 128}, {32, 96}, {256, 32}};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 8, 71}, queries[] = {1, 2, 5, 17, 64, 70};
    static const uint32_t starts[] = {0, 1, 30, 31, 32, 33, 100, 250};
    static const uint32_t windows[] = {0, 0, 0, 1, 7, 32, 33, 100};
    for (uint32_t i = 0; i < 240; i++) {
        enum nb_kv_type type = i % 3 ? NB_KV_F16 : NB_KV_Q8_0;
        const uint32_t *dim =
            type == NB_KV_F16 ? dims[random_below(6)] : code_dims[random_below(4)];
        struct shape s = {.type = type,
                          .k_dim = dim[0],
                          .v_dim = dim[1],
                          .group = groups[random_below(7)],
                          .n_q = queries[random_below(6)],
                          .pos0 = starts[random_below(8)],
                          .window = windows[random_below(8)],
                          .softcap = random_below(4) ? 0.0f : 20.0f};
        if (s.group > 8)
            s.n_q = s.n_q > 5 ? 5 : s.n_q;
        check_shape(k, &s);
    }
}

// --- Benchmark

struct attend_case {
    const struct nb_kernels *k;
    const struct shape *s;
    const struct cache *c;
    float *q, *out;
};

static void call_attend(void *data)
{
    struct attend_case *c = data;
    attend(c->k, c->s, c->c, c->q, 0, c->s->n_q, c->out);
}

void bench_attention(const struct nb_kernels *k, const char *filter)
{
    static const struct shape shapes[] = {
        {.k_dim = 64, .v_dim = 64, .group = 3, .n_q = 1, .pos0 = 511},
        {.k_dim = 64, .v_dim = 64, .group = 3, .n_q = 1, .pos0 = 2047},
        {NB_KV_Q8_0, .k_dim = 64, .v_dim = 64, .group = 3, .n_q = 1, .pos0 = 2047},
        {.k_dim = 64, .v_dim = 64, .group = 3, .n_q = 512, .pos0 = 0},
        {NB_KV_Q8_0, .k_dim = 64, .v_dim = 64, .group = 3, .n_q = 512, .pos0 = 0},
        {.k_dim = 128, .v_dim = 128, .group = 1, .n_q = 512, .pos0 = 0},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const struct shape *s = &shapes[i];
        char name[80];
        snprintf(name, sizeof(name), "attention %s %s dim %u group %u queries %u at %u", k->name,
                 s->type == NB_KV_F16 ? "f16" : "q8_0", s->k_dim, s->group, s->n_q, s->pos0);
        if (!strstr(name, filter))
            continue;
        struct cache c = make_cache(s);
        size_t values = (size_t)s->n_q * KV_HEADS * s->group * s->k_dim;
        struct attend_case a = {k, s, &c, buffer(values * 4), buffer(values * 4)};
        fill_floats(a.q, values, SANE);
        double t = seconds(call_attend, &a), pairs = 0;
        for (uint32_t j = 0; j < s->n_q; j++)
            pairs += s->pos0 + j + 1;
        printf("%-60s %9.1f us %6.1f GFLOP/s\n", name, t * 1e6,
               4e-9 * pairs * KV_HEADS * s->group * s->k_dim / t);
        free(a.q);
        free(a.out);
        free(c.memory);
        free(c.blocks);
    }
}
