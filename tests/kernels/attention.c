// Checks attention: against the reference, against plain sums in double, a query alone against the
// same query in a chunk, and that slots which no query sees do not leak whatever they hold.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/check.h"

#define KV_HEADS 2
#define SCALE    0.125f

struct shape {
    enum nb_kv_type type;
    uint32_t k_dim, v_dim, group, n_q, pos0, window, end;
    float softcap;
    const float *sinks; // [KV_HEADS * group]
    enum mood mood;     // of the queries
};

struct cache {
    uint8_t *memory;
    float *k, *v; // what was written, [position][KV_HEADS][dim]
    const uint8_t **blocks;
    size_t v_offset;
};

static struct nb_kv_form form_of(const struct shape *s)
{
    return (struct nb_kv_form){s->type, s->k_dim, s->v_dim};
}

static uint32_t end_of(const struct shape *s, uint32_t query)
{
    return s->end ? s->end : s->pos0 + query + 1;
}

static uint32_t first_of(const struct shape *s, uint32_t query)
{
    uint32_t end = end_of(s, query);
    return s->window && s->window < end ? end - s->window : 0;
}

// Random values that a half holds exactly.
static void fill_halves(float *x, size_t n)
{
    fill_floats(x, n, SANE);
    for (size_t i = 0; i < n; i++)
        x[i] = nb_f16_to_f32(nb_f32_to_f16(x[i]));
}

// Every slot starts as NaN, of codes in their scales; those that some query sees are written.
static struct cache make_cache(const struct shape *s)
{
    uint32_t end = end_of(s, s->n_q - 1), n = (end + NB_KV_POSITIONS - 1) / NB_KV_POSITIONS;
    const struct nb_kv_form form = form_of(s);
    size_t v_offset = KV_HEADS * s->k_dim * nb_kv_bytes(s->type);
    size_t block = v_offset + KV_HEADS * s->v_dim * nb_kv_bytes(s->type);
    size_t n_k = (size_t)KV_HEADS * s->k_dim, n_v = (size_t)KV_HEADS * s->v_dim;
    struct cache c = {buffer(n * block), buffer(end * n_k * 4), buffer(end * n_v * 4),
                      buffer(n * sizeof(void *)), v_offset};
    memset(c.memory, 0xff, n * block);
    fill_halves(c.k, end * n_k);
    fill_halves(c.v, end * n_v);
    for (uint32_t b = 0; b < n; b++)
        c.blocks[b] = c.memory + b * block;
    for (uint32_t pos = first_of(s, 0); pos < end; pos++) {
        uint8_t *at = c.memory + pos / NB_KV_POSITIONS * block;
        nb_kernels_of(NB_ISA_SCALAR)
            ->kv_write(&form, at, at + v_offset, c.k + pos * n_k, c.v + pos * n_v, KV_HEADS,
                       pos % NB_KV_POSITIONS);
    }
    return c;
}

static void free_cache(struct cache *c)
{
    free(c->memory);
    free(c->k);
    free(c->v);
    free(c->blocks);
}

static void attend(const struct nb_kernels *k, const struct shape *s, const struct cache *c,
                   const float *q, uint32_t first, uint32_t n, float *out)
{
    size_t heads = (size_t)KV_HEADS * s->group, ldq = heads * s->k_dim, ldo = heads * s->v_dim;
    const struct nb_kv_form form = form_of(s);
    const struct nb_attention how = {.scale = SCALE,
                                     .softcap = s->softcap,
                                     .window = s->window,
                                     .end = s->end,
                                     .sinks = s->sinks};
    void *scratch = buffer(k->attn_scratch(&form, n, s->group));
    for (uint32_t head = 0; head < KV_HEADS; head++)
        k->attention(&form, q + first * ldq, ldq, c->blocks, c->v_offset, n, s->pos0 + first, head,
                     s->group, &how, out + first * ldo, ldo, scratch);
    free(scratch);
}

static double score(const struct shape *s, const float *q, const float *k)
{
    double dot = 0;
    for (uint32_t d = 0; d < s->k_dim; d++)
        dot += (double)q[d] * k[d];
    dot *= SCALE;
    return s->softcap > 0 ? s->softcap * tanh(dot / s->softcap) : dot;
}

// One head of one query by its definition: softmax over all scores, and the sink's, at once.
static void attend_exactly(const struct shape *s, const struct cache *c, const float *q,
                           uint32_t query, uint32_t head, double *out)
{
    uint32_t first = first_of(s, query), end = end_of(s, query);
    size_t kv_head = head / s->group;
    double max = s->sinks ? s->sinks[head] : -INFINITY, *w = buffer(end * sizeof(*w));
    for (uint32_t p = first; p < end; p++) {
        w[p] = score(s, q, c->k + (p * KV_HEADS + kv_head) * s->k_dim);
        max = fmax(max, w[p]);
    }
    double sum = s->sinks ? exp(s->sinks[head] - max) : 0;
    for (uint32_t p = first; p < end; p++)
        sum += w[p] = exp(w[p] - max);
    for (uint32_t d = 0; d < s->v_dim; d++) {
        out[d] = 0;
        for (uint32_t p = first; p < end; p++)
            out[d] += w[p] / sum * c->v[(p * KV_HEADS + kv_head) * s->v_dim + d];
    }
    free(w);
}

// The first and the last query beside double.
static void check_exact(const struct shape *s, const struct cache *c, const float *q,
                        const float *got)
{
    uint32_t heads = KV_HEADS * s->group;
    double *exact = buffer(s->v_dim * sizeof(*exact));
    float *want = buffer(s->v_dim * 4);
    for (uint32_t i = 0; i < 2 * heads; i++) {
        size_t t = i % 2 ? s->n_q - 1 : 0, head = t * heads + i / 2;
        attend_exactly(s, c, q + head * s->k_dim, (uint32_t)t, i / 2, exact);
        for (uint32_t d = 0; d < s->v_dim; d++)
            want[d] = within(1e-5, exact[d], got[head * s->v_dim + d]);
        check_floats(want, got + head * s->v_dim, s->v_dim,
                     "beside double: dims %u/%u query %zu at %u end %u%s", s->k_dim, s->v_dim, t,
                     s->pos0, s->end, s->sinks ? " sinks" : "");
    }
    free(exact);
    free(want);
}

static void check_shape(const struct nb_kernels *k, const struct shape *s)
{
    struct cache c = make_cache(s);
    size_t heads = (size_t)KV_HEADS * s->group;
    size_t n_q = s->n_q * heads * s->k_dim, n_out = s->n_q * heads * s->v_dim;
    float *q = buffer(n_q * 4), *want = buffer(n_out * 4), *got = buffer(n_out * 4);
    float *finite = buffer(n_out * 4);
    fill_floats(q, n_q, s->mood);
    attend(nb_kernels_of(NB_ISA_SCALAR), s, &c, q, 0, s->n_q, want);
    attend(k, s, &c, q, 0, s->n_q, got);
    check_floats(want, got, n_out,
                 "type %d dims %u/%u group %u queries %u at %u window %u end %u cap %g%s, %s",
                 s->type, s->k_dim, s->v_dim, s->group, s->n_q, s->pos0, s->window, s->end,
                 s->softcap, s->sinks ? " sinks" : "", mood_name(s->mood));
    if (s->type == NB_KV_F16 && s->mood == SANE)
        check_exact(s, &c, q, got);
    for (size_t i = 0; i < n_out; i++)
        finite[i] = got[i] - got[i];
    float *zero = buffer(n_out * 4);
    memset(zero, 0, n_out * 4);
    if (s->mood == SANE)
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
    free_cache(&c);
}

// A sink of -inf is none, bit for bit; one that is not a number ends its own head alone.
static void check_odd_sinks(const struct nb_kernels *k)
{
    const float none[2 * KV_HEADS] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    const float odd[2 * KV_HEADS] = {-INFINITY, NAN, -INFINITY, -INFINITY};
    struct shape s = {.k_dim = 48, .v_dim = 20, .group = 2, .n_q = 9, .pos0 = 90};
    struct cache c = make_cache(&s);
    float q[9 * 4 * 48], want[9 * 4 * 20], got[9 * 4 * 20];
    fill_floats(q, 9 * 4 * 48, SANE);
    attend(k, &s, &c, q, 0, s.n_q, want);
    s.sinks = none;
    attend(k, &s, &c, q, 0, s.n_q, got);
    check_floats(want, got, 9 * 4 * 20, "sinks of -inf");
    s.sinks = odd;
    attend(k, &s, &c, q, 0, s.n_q, got);
    for (int i = 0; i < 9 * 4 * 20; i++)
        want[i] = i / 20 % 4 == 1 ? NAN : want[i];
    check_floats(want, got, 9 * 4 * 20, "a sink that is not a number");
    free_cache(&c);
}

void check_attention(const struct nb_kernels *k)
{
    static const uint32_t dims[][2] = {{64, 64}, {128, 128}, {80, 80},   {32, 48},   {24, 20},
                                       {96, 1},  {256, 256}, {512, 512}, {192, 128}, {90, 106}};
    static const uint32_t code_dims[][2] = {{64, 64}, {128, 128}, {32, 96}, {256, 32}, {512, 256}};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 8, 71}, queries[] = {1, 2, 5, 17, 64, 70};
    static const uint32_t starts[] = {0, 1, 30, 31, 32, 33, 100, 250};
    static const uint32_t windows[] = {0, 0, 0, 1, 7, 32, 33, 100};
    // The emulated level takes some thirty times as long.
    const uint32_t shapes = k == emulated_level() ? 40 : 120;
    for (uint32_t i = 0; i < shapes; i++) {
        enum nb_kv_type type = i % 2 ? NB_KV_F16 : i % 4 ? NB_KV_F32 : NB_KV_Q8_0;
        const uint32_t *dim =
            type == NB_KV_Q8_0 ? code_dims[random_below(5)] : dims[random_below(10)];
        float sinks[KV_HEADS * 71];
        for (uint32_t j = 0; j < KV_HEADS * 71; j++)
            sinks[j] = random_float() * 4.0f;
        struct shape s = {.type = type,
                          .k_dim = dim[0],
                          .v_dim = dim[1],
                          .group = groups[random_below(7)],
                          .n_q = queries[random_below(6)],
                          .pos0 = starts[random_below(8)],
                          .window = windows[random_below(8)],
                          .softcap = random_below(4) ? 0.0f : 20.0f,
                          .sinks = random_below(4) ? NULL : sinks,
                          .mood = random_below(4) ? SANE : (enum mood)random_below(MOODS)};
        // Large in some ways at once shows no more than large in one.
        while (s.n_q > 1 && s.n_q * (s.pos0 + s.n_q) * s.group * s.k_dim > 1 << 21)
            s.n_q = (s.n_q + 1) / 2;
        if (random_below(4) == 0) {
            s.end = s.pos0 + 1 + random_below(2 * s.n_q);
            s.window = 0;
        }
        check_shape(k, &s);
    }
    check_odd_sinks(k);
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
        {NB_KV_F32, .k_dim = 64, .v_dim = 64, .group = 3, .n_q = 1, .pos0 = 2047},
        {.k_dim = 64, .v_dim = 64, .group = 3, .n_q = 512, .pos0 = 0},
        {NB_KV_Q8_0, .k_dim = 64, .v_dim = 64, .group = 3, .n_q = 512, .pos0 = 0},
        {.k_dim = 128, .v_dim = 128, .group = 1, .n_q = 512, .pos0 = 0},
        {.k_dim = 256, .v_dim = 256, .group = 4, .n_q = 1, .pos0 = 2047},
        {.k_dim = 256, .v_dim = 256, .group = 4, .n_q = 512, .pos0 = 0},
        {.k_dim = 64, .v_dim = 64, .group = 1, .n_q = 512, .end = 512},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const struct shape *s = &shapes[i];
        char name[96];
        snprintf(name, sizeof(name), "attention %s %s dim %u group %u queries %u at %u%s", k->name,
                 s->type == NB_KV_F16   ? "f16"
                 : s->type == NB_KV_F32 ? "f32"
                                        : "q8_0",
                 s->k_dim, s->group, s->n_q, s->pos0, s->end ? ", both ways" : "");
        if (!strstr(name, filter))
            continue;
        struct cache c = make_cache(s);
        size_t values = (size_t)s->n_q * KV_HEADS * s->group * s->k_dim;
        struct attend_case a = {k, s, &c, buffer(values * 4), buffer(values * 4)};
        fill_floats(a.q, values, SANE);
        double t = seconds(call_attend, &a), pairs = 0;
        for (uint32_t j = 0; j < s->n_q; j++)
            pairs += end_of(s, j);
        printf("%-60s %9.1f us %6.1f GFLOP/s\n", name, t * 1e6,
               4e-9 * pairs * KV_HEADS * s->group * s->k_dim / t);
        free(a.q);
        free(a.out);
        free_cache(&c);
    }
}
