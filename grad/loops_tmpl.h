// The inner loops of the float engine as plain C, for the compiler to vectorize: each ISA level
// includes this file once. A sum over a row keeps 16 partial sums, for the vectors' sake and for
// the smaller error.
#include <math.h>
#include <string.h>

#include "grad/loops.h"

#define LANES 16

static float fold(float p[LANES])
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            p[i] += p[i + half];
    return p[0];
}

// The sum of TERM over i in [0, n).
#define SUM(ret, n, TERM)                                                                          \
    do {                                                                                           \
        float partial[LANES] = {0};                                                                \
        uint32_t i = 0;                                                                            \
        for (; i + LANES <= (n); i += LANES)                                                       \
            for (uint32_t lane = 0, at = i; lane < LANES; lane++, at++)                            \
                partial[lane] += (TERM);                                                           \
        for (uint32_t lane = 0, at = i; lane < LANES && at < (n); lane++, at++)                    \
            partial[lane] += (TERM);                                                               \
        (ret) = fold(partial);                                                                     \
    } while (0)

// Below 2 ulp off; 0x1p-126 below -87, NaN stays NaN. The added number puts the integer nearest to
// x / ln 2 into the lowest bits.
static inline float exp_of(float x)
{
    const float magic = 0x1.8p+23f;
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    const float shifted = x * 0x1.715476p+0f + magic, n = shifted - magic;
    const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float p = 0x1.6d110ap-10f;
    p = p * r + 0x1.120b6ep-7f;
    p = p * r + 0x1.55551ap-5f;
    p = p * r + 0x1.5554dcp-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    float scale;
    memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - 0x4b400000u + 127u) << 23;
    memcpy(&scale, &bits, sizeof(scale));
    return p * scale;
}

static inline float tanh_of(float x)
{
    return 1.0f - 2.0f / (exp_of(x + x) + 1.0f);
}

static float dot(const float *a, const float *b, uint32_t n)
{
    float sum;
    SUM(sum, n, a[at] * b[at]);
    return sum;
}

// --- Norms

static void norm_stat(enum nb_norm_kind kind, const float *x, float eps, uint32_t n,
                      float ret_stat[2])
{
    float mean = 0.0f, squares;
    if (kind == NB_NORM_LAYER) {
        SUM(mean, n, x[at]);
        mean /= (float)n;
    }
    SUM(squares, n, (x[at] - mean) * (x[at] - mean));
    ret_stat[0] = mean;
    ret_stat[1] = 1.0f / sqrtf(squares / (float)n + eps);
}

// With z = (x - mean) * r and dz = dy * weight: dx = r * (dz - mean of dz - z * mean of (dz * z)),
// without the mean of dz where none was taken off.
static void norm_back(enum nb_norm_kind kind, const float *x, const float *weight,
                      const float stat[2], uint32_t n, const float *dy, float *dx)
{
    const float mean = stat[0], r = stat[1];
    float along, level = 0.0f;
    if (weight)
        SUM(along, n, dy[at] * weight[at] * ((x[at] - mean) * r));
    else
        SUM(along, n, dy[at] * ((x[at] - mean) * r));
    if (kind == NB_NORM_LAYER && weight)
        SUM(level, n, dy[at] * weight[at]);
    else if (kind == NB_NORM_LAYER)
        SUM(level, n, dy[at]);
    along /= (float)n;
    level /= (float)n;
    for (uint32_t i = 0; i < n; i++) {
        const float dz = weight ? dy[i] * weight[i] : dy[i];
        dx[i] += r * (dz - level - (x[i] - mean) * r * along);
    }
}

static void norm_weight(const float *x, const float *dy, const float stat[2], uint32_t n,
                        float *sum)
{
    const float mean = stat[0], r = stat[1];
    for (uint32_t i = 0; i < n; i++)
        sum[i] += dy[i] * ((x[i] - mean) * r);
}

// --- Activations

// The normal distribution's cumulative probability (docs/numerics.md, cdf).
static inline float normal_cdf(float x)
{
    const float a = fabsf(x);
    float p = 0x1.9caedep-29f;
    p = p * a - 0x1.34620ep-23f;
    p = p * a + 0x1.6e0a00p-19f;
    p = p * a - 0x1.ad4dbep-16f;
    p = p * a + 0x1.c08798p-14f;
    p = p * a + 0x1.4d7170p-13f;
    p = p * a - 0x1.4664e2p-8f;
    p = p * a + 0x1.2a86c0p-5f;
    p = p * a + 0x1.45ec38p-2f;
    p = p * a + 0x1.98849ap-1f;
    const float tail = 0.5f * exp_of(-(a * p));
    return x < 0.0f ? tail : 1.0f - tail;
}

// An activation and its derivative at x.
#define ACTIVATION(name, ...)                                                                      \
    static inline void name(float x, float *y, float *dy)                                          \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }                                                                                              \
    static void name##_back(const float *gate, const float *up, uint32_t n, const float *dy,       \
                            float *d_gate, float *d_up)                                            \
    {                                                                                              \
        for (uint32_t i = 0; i < n; i++) {                                                         \
            float y, slope;                                                                        \
            name(gate[i], &y, &slope);                                                             \
            if (d_gate)                                                                            \
                d_gate[i] += dy[i] * slope * (up ? up[i] : 1.0f);                                  \
            if (d_up)                                                                              \
                d_up[i] += dy[i] * y;                                                              \
        }                                                                                          \
    }

ACTIVATION(silu, {
    const float s = 1.0f / (1.0f + exp_of(-x));
    *y = x * s;
    *dy = s * (1.0f + x * (1.0f - s));
})

// 2 sqrt(2 / pi), and that times 0.044715.
ACTIVATION(gelu, {
    const float c = 0x1.988454p+0f, c3 = 0x1.2444f2p-4f, square = x * x;
    const float s = 1.0f / (1.0f + exp_of(-(x * (square * c3 + c))));
    *y = x * s;
    *dy = s * (1.0f + x * (1.0f - s) * (3.0f * c3 * square + c));
})

// x times the normal distribution's probability, whose derivative is the density at x.
ACTIVATION(gelu_erf, {
    const float cdf = normal_cdf(x);
    *y = x * cdf;
    *dy = cdf + x * (0x1.988454p-2f * exp_of(-0.5f * x * x));
})

ACTIVATION(relu2, {
    const float positive = x > 0.0f ? x : 0.0f;
    *y = positive * positive;
    *dy = 2.0f * positive;
})

ACTIVATION(relu, {
    *y = x > 0.0f ? x : 0.0f;
    *dy = x > 0.0f ? 1.0f : 0.0f;
})

static void activate_back(enum nb_activation kind, const float *gate, const float *up, uint32_t n,
                          const float *dy, float *d_gate, float *d_up)
{
    static void (*const of[NB_ACT_COUNT])(const float *gate, const float *up, uint32_t n,
                                          const float *dy, float *d_gate, float *d_up) = {
        [NB_ACT_SILU] = silu_back,   [NB_ACT_GELU] = gelu_back, [NB_ACT_GELU_ERF] = gelu_erf_back,
        [NB_ACT_RELU2] = relu2_back, [NB_ACT_RELU] = relu_back,
    };
    of[kind](gate, up, n, dy, d_gate, d_up);
}

static void cap_back(const float *y, float scale, float cap, uint32_t n, float *dy)
{
    const float inverse = cap > 0.0f ? 1.0f / cap : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const float t = y[i] * inverse;
        dy[i] *= scale * (1.0f - t * t);
    }
}

// --- bf16

static void narrow(const float *restrict x, uint16_t *restrict ret, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);
        const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        ret[i] = (uint16_t)((is_nan ? bits | 0x400000 : nearest) >> 16);
    }
}

// --- int8 codes

static float largest_of(const float *x, uint32_t n)
{
    float most[LANES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        most[i % LANES] = size > most[i % LANES] ? size : most[i % LANES];
    }
    for (int i = 1; i < LANES; i++)
        most[0] = most[i] > most[0] ? most[i] : most[0];
    return most[0];
}

// The added number leaves the integer nearest to a code in the lowest bits. A number that is none
// stays none.
static void round_codes(const float *restrict x, float most, float *restrict ret, uint32_t n)
{
    const float magic = 0x1.8p+23f, of = most > 0.0f ? most : largest_of(x, n);
    const bool zero = !(of >= 1e-30f);
    const float s = zero ? 0.0f : of / 127.0f, inv = zero ? 0.0f : 127.0f / of;
    for (uint32_t i = 0; i < n; i++) {
        float code = x[i] * inv;
        code = code < -127.0f ? -127.0f : code;
        code = code > 127.0f ? 127.0f : code;
        ret[i] = ((code + magic) - magic) * s;
    }
}

#include "grad/losses_tmpl.h"

// --- Descent

static void adam(const struct nb_adam *how, const float *restrict gradient, float *restrict x,
                 float *restrict first, float *restrict second, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const float g = how->scale * gradient[i];
        first[i] = how->first * first[i] + (1 - how->first) * g;
        second[i] = how->second * second[i] + (1 - how->second) * (g * g);
        x[i] -= how->rate *
                (how->first_by * first[i] / (sqrtf(how->second_by * second[i]) + how->floor) +
                 how->decay * x[i]);
    }
}

static inline float eighth(float x) // power
{
    x *= x;
    x *= x;
    return x * x;
}

// part: what is to be coded, of the block's largest; draw: 16 random bits.
static inline int32_t code_of(float part, float most, uint32_t draw)
{
    const float x = part * eighth(most), c = (float)(int32_t)sqrtf(sqrtf(sqrtf(x)));
    const float low = eighth(c), high = eighth(c + 1);
    const float code = x - low > (float)(int32_t)draw * 0x1p-16f * (high - low) ? c + 1 : c;
    return (int32_t)(code < most ? code : most);
}

// A block's moments as they are, so that the largest is known before any is coded.
struct moments {
    float first[NB_ADAM_BLOCK], second[NB_ADAM_BLOCK];
};

static inline void adam_decode(const struct nb_adam_block *b, struct moments *ret)
{
    const float first = b->first_most / eighth(127), second = b->second_most / eighth(255);
    for (uint32_t i = 0; i < NB_ADAM_BLOCK; i++) {
        const float c = (float)b->first[i];
        ret->first[i] = first * copysignf(eighth(c), c);
        ret->second[i] = second * eighth((float)b->second[i]);
    }
}

static inline float magnitude(const float *x)
{
    float most = 0;
    for (uint32_t i = 0; i < NB_ADAM_BLOCK; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

// What is too small to be told from nothing is nothing, so that no scale is infinite.
static inline float inverse(float most)
{
    return most > 1e-30f ? 1 / most : 0;
}

static inline void adam_encode(const struct moments *m, uint32_t draw, struct nb_adam_block *b)
{
    b->first_most = magnitude(m->first);
    b->second_most = magnitude(m->second);
    const float first = inverse(b->first_most), second = inverse(b->second_most);
    for (uint32_t i = 0; i < NB_ADAM_BLOCK; i++) {
        uint32_t random = (draw + i) * 0x9e3779b1u;
        random = (random ^ random >> 15) * 0x85ebca6bu;
        random = (random ^ random >> 13) * 0xc2b2ae35u;
        const int32_t c = code_of(fabsf(m->first[i]) * first, 127, random >> 16);
        const int32_t v = code_of(m->second[i] * second, 255, random & 0xffff);
        b->first[i] = (int8_t)(m->first[i] < 0 ? -c : c);
        b->second[i] = (uint8_t)(v ? v : m->second[i] > 0);
    }
}

static void adam_coded(const struct nb_adam *how, uint64_t at, const float *gradient, float *x,
                       struct nb_adam_block *block, uint32_t n)
{
    struct moments m;
    adam_decode(block, &m);
    adam(how, gradient, x, m.first, m.second, n);
    adam_encode(&m, how->draw + (uint32_t)at, block);
}

// --- Attention: tiles of queries by tiles of keys, with a running maximum and sum (Dao and others,
// FlashAttention, arXiv 2205.14135).

typedef float vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

// Factors of c[m][n] += a b, where a[i][l] lies at a + i * row + l * col.
struct product {
    uint32_t k;
    const float *a, *b;
    size_t row, col, ldb;
};

#define BLOCK_ROWS 4

static inline void block(const struct product *p, const float *a, const float *b, float *c,
                         size_t ldc)
{
    vector sum[BLOCK_ROWS][2];
    for (int i = 0; i < BLOCK_ROWS; i++)
        for (int j = 0; j < 2; j++)
            sum[i][j] = *(const vector *)(c + i * ldc + j * LANES);
    for (uint32_t l = 0; l < p->k; l++, a += p->col, b += p->ldb)
        for (int i = 0; i < BLOCK_ROWS; i++)
            for (int j = 0; j < 2; j++)
                sum[i][j] += a[i * p->row] * *(const vector *)(b + j * LANES);
    for (int i = 0; i < BLOCK_ROWS; i++)
        for (int j = 0; j < 2; j++)
            *(vector *)(c + i * ldc + j * LANES) = sum[i][j];
}

// Columns [from, to) of one row.
static inline void edge(const struct product *p, const float *a, uint32_t from, uint32_t to,
                        float *c)
{
    const float *b = p->b;
    for (uint32_t l = 0; l < p->k; l++, a += p->col, b += p->ldb)
        for (uint32_t j = from; j < to; j++)
            c[j] += *a * b[j];
}

static void multiply(const struct product *p, uint32_t m, uint32_t n, float *c, size_t ldc)
{
    const uint32_t whole = n - n % (2 * LANES), rows = m - m % BLOCK_ROWS;
    for (uint32_t i = 0; i < rows; i += BLOCK_ROWS)
        for (uint32_t j = 0; j < whole; j += 2 * LANES)
            block(p, p->a + i * p->row, p->b + j, c + i * ldc + j, ldc);
    for (uint32_t i = 0; i < m; i++)
        edge(p, p->a + i * p->row, i < rows ? whole : 0, n, c + i * ldc);
}

struct tile {
    uint32_t q0, nq, k0, nk;
    float *s, *d;   // [nq][NB_KEY_TILE]: scores, then probabilities; gradients
    float *kt, *vt; // [dim][NB_KEY_TILE]
};

// Keys that a query sees: [*from, return).
static uint32_t sees(const struct nb_attend_head *a, uint32_t query, uint32_t *from)
{
    const uint32_t end = a->causal ? a->first + query + 1 : a->n;
    *from = a->window && a->window < end ? end - a->window : 0;
    return end;
}

// The same within a tile of keys.
static uint32_t sees_in(const struct nb_attend_head *a, const struct tile *t, uint32_t i,
                        uint32_t *from)
{
    uint32_t first, end = sees(a, t->q0 + i, &first);
    end = end > t->k0 ? end - t->k0 : 0;
    end = end < t->nk ? end : t->nk;
    *from = first > t->k0 ? first - t->k0 : 0;
    *from = *from < end ? *from : end;
    return end;
}

// [n][dim] to [dim][NB_KEY_TILE], zeros behind.
static void transpose(const float *x, size_t ld, uint32_t n, uint32_t dim, float *to)
{
    for (uint32_t d = 0; d < dim; d++, to += NB_KEY_TILE) {
        for (uint32_t i = 0; i < n; i++)
            to[i] = x[i * ld + d];
        for (uint32_t i = n; i < NB_KEY_TILE; i++)
            to[i] = 0.0f;
    }
}

// t->s: the scores of the tile, scaled and capped, also where a query does not see a key.
static void score(const struct nb_attend_head *a, const struct tile *t)
{
    transpose(a->k + t->k0 * a->ldk, a->ldk, t->nk, a->k_dim, t->kt);
    memset(t->s, 0, (size_t)t->nq * NB_KEY_TILE * sizeof(float));
    const struct product p = {a->k_dim, a->q + t->q0 * a->ldq, t->kt, a->ldq, 1, NB_KEY_TILE};
    multiply(&p, t->nq, NB_KEY_TILE, t->s, NB_KEY_TILE);
    for (uint32_t i = 0; i < t->nq * NB_KEY_TILE; i++)
        t->s[i] *= a->scale;
    for (uint32_t i = 0; a->softcap > 0.0f && i < t->nq * NB_KEY_TILE; i++)
        t->s[i] = a->softcap * tanh_of(t->s[i] / a->softcap);
}

// s becomes exp(s - most) in [from, end), 0 elsewhere.
static void exponents(float *s, uint32_t from, uint32_t end, float most)
{
    for (uint32_t j = 0; j < NB_KEY_TILE; j++) {
        const float e = exp_of(s[j] - most);
        s[j] = j >= from && j < end ? e : 0.0f;
    }
}

// The state of a query: the largest score, the sum, the weighted values.
struct query {
    float most, sum, *out;
};

static void take_scores(const struct nb_attend_head *a, float *s, uint32_t from, uint32_t end,
                        struct query *q)
{
    float most = q->most, sum;
    for (uint32_t j = from; j < end; j++)
        most = s[j] > most ? s[j] : most;
    exponents(s, from, end, most);
    SUM(sum, NB_KEY_TILE, s[at]);
    const float keep = q->most > -INFINITY ? exp_of(q->most - most) : 0.0f;
    q->sum = q->sum * keep + sum;
    q->most = most;
    for (uint32_t d = 0; d < a->v_dim; d++)
        q->out[d] *= keep;
}

static struct tile tile_in(float *scratch, // NOLINT(*non-const-parameter)
                           uint32_t q0, uint32_t nq)
{
    struct tile t = {.q0 = q0, .nq = nq, .s = scratch};
    t.d = t.s + (size_t)NB_QUERY_TILE * NB_KEY_TILE;
    t.kt = t.d + (size_t)NB_QUERY_TILE * NB_KEY_TILE;
    return t;
}

// The tiles of keys that some query of the tile sees: from the first, until there is none.
static bool next_keys(const struct nb_attend_head *a, struct tile *t, bool first)
{
    uint32_t from, ignored;
    (void)sees(a, t->q0, &from);
    const uint32_t end = sees(a, t->q0 + t->nq - 1, &ignored);
    t->k0 = first ? from / NB_KEY_TILE * NB_KEY_TILE : t->k0 + NB_KEY_TILE;
    if (t->k0 >= end)
        return false;
    t->nk = end - t->k0 < NB_KEY_TILE ? end - t->k0 : NB_KEY_TILE;
    return true;
}

static void attend(const struct nb_attend_head *a, uint32_t q0, uint32_t n, float *scratch)
{
    struct tile t = tile_in(scratch, q0, n);
    struct query q[NB_QUERY_TILE];
    float *out = t.kt + (size_t)a->k_dim * NB_KEY_TILE;
    memset(out, 0, (size_t)n * a->v_dim * sizeof(float));
    for (uint32_t i = 0; i < n; i++)
        q[i] = (struct query){-INFINITY, 0.0f, out + (size_t)i * a->v_dim};
    for (bool more = next_keys(a, &t, true); more; more = next_keys(a, &t, false)) {
        score(a, &t);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t from, end = sees_in(a, &t, i, &from);
            if (from < end)
                take_scores(a, t.s + i * NB_KEY_TILE, from, end, &q[i]);
            else
                memset(t.s + i * NB_KEY_TILE, 0, NB_KEY_TILE * sizeof(float));
        }
        const struct product p = {t.nk, t.s, a->v + t.k0 * a->ldv, NB_KEY_TILE, 1, a->ldv};
        multiply(&p, n, a->v_dim, out, a->v_dim);
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < a->v_dim; d++)
            a->out[(q0 + i) * a->ldo + d] = q[i].out[d] / q[i].sum;
        a->sum[(q0 + i) * a->lds] = q[i].most + logf(q[i].sum);
    }
}

// Of the scores' gradients: p (dp - sum of p dp), through the cap and the scale. `inner`: that
// sum, which is the sum of out * d_out.
static void softmax_back(const struct nb_attend_head *a, const struct tile *t, uint32_t i,
                         float inner)
{
    float *s = t->s + i * NB_KEY_TILE, *d = t->d + i * NB_KEY_TILE;
    const float sum = a->sum[(t->q0 + i) * a->lds];
    const float inverse = a->softcap > 0.0f ? 1.0f / a->softcap : 0.0f;
    uint32_t from, end = sees_in(a, t, i, &from);
    for (uint32_t j = 0; j < NB_KEY_TILE; j++) {
        const float c = s[j] * inverse;
        d[j] = (d[j] - inner) * ((1.0f - c * c) * a->scale);
    }
    exponents(s, from, end, sum);
    for (uint32_t j = 0; j < NB_KEY_TILE; j++)
        d[j] *= s[j];
}

static void tile_back(const struct nb_attend_head *a, const struct nb_attend_gradients *d,
                      const struct tile *t, const float *inner)
{
    const float *d_out = d->out + t->q0 * a->ldo;
    score(a, t);
    transpose(a->v + t->k0 * a->ldv, a->ldv, t->nk, a->v_dim, t->vt);
    memset(t->d, 0, (size_t)t->nq * NB_KEY_TILE * sizeof(float));
    const struct product of_d = {a->v_dim, d_out, t->vt, a->ldo, 1, NB_KEY_TILE};
    multiply(&of_d, t->nq, NB_KEY_TILE, t->d, NB_KEY_TILE);
    for (uint32_t i = 0; i < t->nq; i++)
        softmax_back(a, t, i, inner[i]);
    const struct product of_v = {t->nq, t->s, d_out, 1, NB_KEY_TILE, a->ldo},
                         of_k = {t->nq, t->d, a->q + t->q0 * a->ldq, 1, NB_KEY_TILE, a->ldq},
                         of_q = {t->nk, t->d, a->k + t->k0 * a->ldk, NB_KEY_TILE, 1, a->ldk};
    if (d->v)
        multiply(&of_v, t->nk, a->v_dim, d->v + t->k0 * a->ldv, a->ldv);
    if (d->k)
        multiply(&of_k, t->nk, a->k_dim, d->k + t->k0 * a->ldk, a->ldk);
    if (d->q)
        multiply(&of_q, t->nq, a->k_dim, d->q + t->q0 * a->ldq, a->ldq);
}

static void attend_back(const struct nb_attend_head *a, const struct nb_attend_gradients *d,
                        float *scratch)
{
    for (uint32_t q0 = 0; q0 < a->n; q0 += NB_QUERY_TILE) {
        struct tile t = tile_in(scratch, q0, a->n - q0 < NB_QUERY_TILE ? a->n - q0 : NB_QUERY_TILE);
        float inner[NB_QUERY_TILE];
        t.vt = t.kt + (size_t)a->k_dim * NB_KEY_TILE;
        for (uint32_t i = 0; i < t.nq; i++)
            inner[i] = dot(a->out + (q0 + i) * a->ldo, d->out + (q0 + i) * a->ldo, a->v_dim);
        for (bool more = next_keys(a, &t, true); more; more = next_keys(a, &t, false))
            tile_back(a, d, &t, inner);
    }
}

const struct nb_loops LEVEL = {
    .norm_back = norm_back,
    .norm_stat = norm_stat,
    .norm_weight = norm_weight,
    .activate_back = activate_back,
    .cap_back = cap_back,
    .dot = dot,
    .divergence = divergence,
    .narrow = narrow,
    .round_codes = round_codes,
    .distil = distil,
    .distil_kept = distil_kept,
    .adam = adam,
    .adam_coded = adam_coded,
    .attend = attend,
    .attend_back = attend_back,
};
