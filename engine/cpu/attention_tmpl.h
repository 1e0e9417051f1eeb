// Attention: a few rows (a row is one head of one query) against one tile of 32 positions at a
// time. What a row computes does not depend on which rows stand beside it.
#pragma once

#include <math.h>
#include <string.h>

#define CHUNK_ROWS   64 // rows whose running state lies in scratch
#define CONVERT_FROM 9  // rows from which converting a tile to fp32 once pays

// The running softmax of a row.
struct softmax {
    float max, sum;
};

struct attend {
    const float *q; // of the chunk's first query, this KV head's first query head
    size_t ldq;
    uint32_t group, k_dim, v_dim, padded; // padded: v_dim to a multiple of 16
    struct nb_attention how;
    const float *sinks;      // NULL, or [group]
    float *k_tile, *v_tile;  // fp32 copies of a tile, [k_dim][32] and [32][padded]
    struct softmax *softmax; // [row]
    float *out;              // [row][padded]
};

// What the elements of keys and values are.
enum elements { ELEMENTS_FLOATS, ELEMENTS_HALVES, ELEMENTS_CODES };

// The tile a pack of rows meets, `v_stride` elements from one position to the next. Of codes: the
// scales, of 32 positions for every 32 elements.
struct tile_kv {
    const void *k, *v;
    size_t v_stride;
    const uint16_t *k_scale, *v_scale;
};

FORCED vf load16(enum elements as, const void *base, size_t at)
{
    return as == ELEMENTS_HALVES  ? f_of_half((const uint16_t *)base + at)
           : as == ELEMENTS_CODES ? f_of_int(i_of_s8((const uint8_t *)base + at))
                                  : f_load((const float *)base + at);
}

// Scores of `rows` rows at 16 positions.
FORCED void score_rows(enum elements as, int rows, const struct attend *a, const struct tile_kv *kv,
                       const float *const *q, uint32_t from, float (*p)[NB_KV_POSITIONS])
{
    vf acc[ATTEND_ROWS], scale = f_zero();
    UNROLL
    for (int r = 0; r < rows; r++)
        acc[r] = f_zero();
    for (size_t d = 0; d < a->k_dim; d++) {
        if (as == ELEMENTS_CODES && d % NB_KV_GROUP == 0)
            scale = f_of_half(kv->k_scale + d + from);
        vf k = load16(as, kv->k, d * NB_KV_POSITIONS + from);
        if (as == ELEMENTS_CODES)
            k = f_mul(scale, k);
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r] = f_fma(f_set1(q[r][d]), k, acc[r]);
    }
    UNROLL
    for (int r = 0; r < rows; r++)
        f_store(p[r] + from, acc[r]);
}

// Adds positions [lo, hi) times their weights to the outputs of `rows` rows.
FORCED void mix_rows(enum elements as, int rows, const struct attend *a, const struct tile_kv *kv,
                     float (*p)[NB_KV_POSITIONS], uint32_t lo, uint32_t hi, float *out)
{
    float scale[NB_KV_POSITIONS];
    for (size_t d = 0; d < a->padded; d += 16) {
        vf acc[ATTEND_ROWS];
        for (size_t i = 0; as == ELEMENTS_CODES && d % NB_KV_GROUP == 0 && i < NB_KV_POSITIONS;
             i += 16)
            f_store(scale + i, f_of_half(kv->v_scale + d + i));
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r] = f_load(out + (size_t)r * a->padded + d);
        for (size_t i = lo; i < hi; i++) {
            vf v = load16(as, kv->v, i * kv->v_stride + d);
            if (as == ELEMENTS_CODES)
                v = f_mul(f_set1(scale[i]), v);
            UNROLL
            for (int r = 0; r < rows; r++)
                acc[r] = f_fma(f_set1(p[r][i]), v, acc[r]);
        }
        UNROLL
        for (int r = 0; r < rows; r++)
            f_store(out + (size_t)r * a->padded + d, acc[r]);
    }
}

// Scores to weights for positions [lo, hi) of one row, and what was summed before scaled to the new
// maximum.
static void soften(const struct attend *a, float p[NB_KV_POSITIONS], uint32_t lo, uint32_t hi,
                   struct softmax *s, float *out)
{
    vf x[2], minus_inf = f_set1(-INFINITY);
    vmask seen[2] = {m_range((int)lo, (int)hi), m_range((int)lo - 16, (int)hi - 16)};
    for (int i = 0; i < 2; i++) {
        x[i] = f_mul(f_load(p + 16 * i), f_set1(a->how.scale));
        x[i] = f_select(seen[i], f_capped(x[i], a->how.softcap), minus_inf);
    }
    float max = f_fold_max(f_max(x[0], x[1]));
    max = max > s->max ? max : s->max;
    for (int i = 0; i < 2; i++) {
        x[i] = f_select(seen[i], f_exp(f_sub(x[i], f_set1(max))), f_zero());
        f_store(p + 16 * i, x[i]);
    }
    float keep[16];
    f_store(keep, f_exp(f_set1(s->max - max)));
    s->sum = fmaf(s->sum, keep[0], f_fold(f_add(x[0], x[1])));
    s->max = max;
    for (uint32_t d = 0; d < a->padded; d += 16)
        f_store(out + d, f_mul(f_load(out + d), f_set1(keep[0])));
}

// The query at `pos` sees positions [seen_from, seen_end).
static uint32_t seen_end(const struct nb_attention *how, uint32_t pos)
{
    return how->end ? how->end : pos + 1;
}

static uint32_t seen_from(const struct nb_attention *how, uint32_t pos)
{
    uint32_t end = seen_end(how, pos);
    return how->window && how->window < end ? end - how->window : 0;
}

// Those of the tile at `base`, counted from there. Not inlined: gcc would keep the minima in vector
// registers, and the sums of mix_rows would spill.
__attribute__((noinline)) static void seen_span(const struct nb_attention *how, uint32_t pos,
                                                uint32_t base, uint32_t *lo, uint32_t *hi)
{
    uint32_t first = seen_from(how, pos), end = seen_end(how, pos);
    *lo = first <= base ? 0 : first - base < NB_KV_POSITIONS ? first - base : NB_KV_POSITIONS;
    *hi = end <= base ? 0 : end - base < NB_KV_POSITIONS ? end - base : NB_KV_POSITIONS;
}

// Rows [row, row + rows) of the chunk whose first query is at pos0, against one tile.
FORCED void attend_rows(enum elements as, int rows, const struct attend *a,
                        const struct tile_kv *kv, uint32_t row, uint32_t pos0, uint32_t base)
{
    const float *q[ATTEND_ROWS];
    float p[ATTEND_ROWS][NB_KV_POSITIONS], *out = a->out + (size_t)row * a->padded;
    uint32_t lo[ATTEND_ROWS], hi[ATTEND_ROWS], from = 0, to = NB_KV_POSITIONS;
    for (uint32_t r = 0; r < (uint32_t)rows; r++) {
        uint32_t t = (row + r) / a->group, h = (row + r) % a->group;
        q[r] = a->q + t * a->ldq + (size_t)h * a->k_dim;
        seen_span(&a->how, pos0 + t, base, &lo[r], &hi[r]);
        from = lo[r] > from ? lo[r] : from;
        to = hi[r] < to ? hi[r] : to;
    }
    score_rows(as, rows, a, kv, q, 0, p);
    score_rows(as, rows, a, kv, q, 16, p);
    // What all rows see is mixed together; each row's own positions before and after that, alone,
    // in order.
    to = to < from ? from : to;
    for (uint32_t r = 0; r < (uint32_t)rows; r++) {
        if (lo[r] >= hi[r])
            continue;
        soften(a, p[r], lo[r], hi[r], &a->softmax[row + r], out + r * a->padded);
        mix_rows(as, 1, a, kv, p + r, lo[r], hi[r] < from ? hi[r] : from, out + r * a->padded);
    }
    if (from < to)
        mix_rows(as, rows, a, kv, p, from, to, out);
    for (uint32_t r = 0; r < (uint32_t)rows; r++)
        if (lo[r] < hi[r])
            mix_rows(as, 1, a, kv, p + r, lo[r] > to ? lo[r] : to, hi[r], out + r * a->padded);
}

FORCED void attend_tile(enum elements as, const struct attend *a, const struct tile_kv *kv,
                        uint32_t rows, uint32_t pos0, uint32_t base)
{
    uint32_t row = 0;
    for (; row + ATTEND_ROWS <= rows; row += ATTEND_ROWS)
        attend_rows(as, ATTEND_ROWS, a, kv, row, pos0, base);
    if (ATTEND_ROWS > 4 && row + 4 <= rows) {
        attend_rows(as, 4, a, kv, row, pos0, base);
        row += 4;
    }
    // What is left of a pack: a key that is loaded serves all rows that are together.
    if (row + 3 == rows)
        attend_rows(as, 3, a, kv, row, pos0, base);
    else if (row + 2 == rows)
        attend_rows(as, 2, a, kv, row, pos0, base);
    else if (row + 1 == rows)
        attend_rows(as, 1, a, kv, row, pos0, base);
}

static void attend_halves(const struct attend *a, const struct tile_kv *kv, uint32_t rows,
                          uint32_t pos0, uint32_t base)
{
    attend_tile(ELEMENTS_HALVES, a, kv, rows, pos0, base);
}

static void attend_codes(const struct attend *a, const struct tile_kv *kv, uint32_t rows,
                         uint32_t pos0, uint32_t base)
{
    attend_tile(ELEMENTS_CODES, a, kv, rows, pos0, base);
}

static void attend_floats(const struct attend *a, const struct tile_kv *kv, uint32_t rows,
                          uint32_t pos0, uint32_t base)
{
    attend_tile(ELEMENTS_FLOATS, a, kv, rows, pos0, base);
}

static void convert_codes(const struct attend *a, const struct tile_kv *kv)
{
    for (size_t i = 0; i < (size_t)a->k_dim * NB_KV_POSITIONS; i += 16) {
        size_t d = i / NB_KV_POSITIONS,
               scale = d / NB_KV_GROUP * NB_KV_POSITIONS + i % NB_KV_POSITIONS;
        f_store(a->k_tile + i,
                f_mul(f_of_half(kv->k_scale + scale), load16(ELEMENTS_CODES, kv->k, i)));
    }
    for (size_t d = 0; d < a->v_dim; d += 16) {
        float scale[NB_KV_POSITIONS];
        for (size_t i = 0; i < NB_KV_POSITIONS; i += 16)
            f_store(scale + i, f_of_half(kv->v_scale + d / NB_KV_GROUP * NB_KV_POSITIONS + i));
        for (size_t i = 0; i < NB_KV_POSITIONS; i++)
            f_store(a->v_tile + i * a->padded + d,
                    f_mul(f_set1(scale[i]), load16(ELEMENTS_CODES, kv->v, i * a->v_dim + d)));
    }
}

static void convert_halves(const struct attend *a, const struct tile_kv *kv)
{
    const uint16_t *k = kv->k, *v = kv->v;
    for (size_t i = 0; i < (size_t)a->k_dim * NB_KV_POSITIONS; i += 16)
        f_store(a->k_tile + i, f_of_half(k + i));
    for (size_t i = 0; i < NB_KV_POSITIONS; i++, v += a->v_dim)
        for (size_t d = 0; d < a->padded; d += 16) {
            uint16_t last[16] = {0};
            if (d + 16 > a->v_dim)
                memcpy(last, v + d, (a->v_dim - d) * sizeof(*v));
            f_store(a->v_tile + i * a->padded + d, f_of_half(d + 16 > a->v_dim ? last : v + d));
        }
}

static void convert_floats(const struct attend *a, const struct tile_kv *kv)
{
    const float *v = kv->v;
    memcpy(a->k_tile, kv->k, (size_t)a->k_dim * NB_KV_POSITIONS * sizeof(float));
    for (size_t i = 0; i < NB_KV_POSITIONS; i++) {
        memset(a->v_tile + i * a->padded, 0, a->padded * sizeof(float));
        memcpy(a->v_tile + i * a->padded, v + i * a->v_dim, a->v_dim * sizeof(float));
    }
}

static uint32_t chunk_queries(uint32_t group)
{
    return group < CHUNK_ROWS ? CHUNK_ROWS / group : 1;
}

static size_t attn_scratch(const struct nb_kv_form *form, uint32_t n_q, uint32_t group)
{
    size_t padded = (form->v_dim + 15) & ~15u, rows = (size_t)chunk_queries(group) * group;
    size_t tile = NB_KV_POSITIONS * ((size_t)form->k_dim + padded) * sizeof(float);
    return tile + rows * (padded * sizeof(float) + sizeof(struct softmax));
}

// One head's part of a block.
static struct tile_kv tile_at(const struct attend *a, const uint8_t *k, const uint8_t *v)
{
    size_t k_codes = (size_t)a->k_dim * NB_KV_POSITIONS,
           v_codes = (size_t)a->v_dim * NB_KV_POSITIONS;
    return (struct tile_kv){k, v, a->v_dim, (const uint16_t *)(const void *)(k + k_codes),
                            (const uint16_t *)(const void *)(v + v_codes)};
}

// What each type of cache does with a tile: meets it as it is, or converts it to fp32 first.
static const struct {
    void (*attend)(const struct attend *a, const struct tile_kv *kv, uint32_t rows, uint32_t pos0,
                   uint32_t base);
    void (*convert)(const struct attend *a, const struct tile_kv *kv);
    uint32_t convert_from; // rows
} tiles_of_type[NB_KV_TYPES] = {
    [NB_KV_F16] = {attend_halves, convert_halves, CONVERT_FROM},
    [NB_KV_Q8_0] = {attend_codes, convert_codes, CONVERT_FROM},
    [NB_KV_F32] = {attend_floats, convert_floats, UINT32_MAX},
};

// One chunk of queries, the first at pos0, over every tile that one of them sees.
static void attend_chunk(const struct attend *a, enum nb_kv_type type, const uint8_t *const *blocks,
                         size_t k_offset, size_t v_offset, uint32_t n_q, uint32_t pos0)
{
    uint32_t rows = n_q * a->group;
    uint32_t first = seen_from(&a->how, pos0), end = seen_end(&a->how, pos0 + n_q - 1);
    for (uint32_t r = 0; r < rows; r++)
        a->softmax[r] = a->sinks ? (struct softmax){a->sinks[r % a->group], 1.0f}
                                 : (struct softmax){-INFINITY, 0.0f};
    memset(a->out, 0, (size_t)rows * a->padded * sizeof(float));
    for (uint32_t b = first / NB_KV_POSITIONS; b * NB_KV_POSITIONS < end; b++) {
        struct tile_kv kv = tile_at(a, blocks[b] + k_offset, blocks[b] + v_offset);
        if (rows < tiles_of_type[type].convert_from && a->padded == a->v_dim) {
            tiles_of_type[type].attend(a, &kv, rows, pos0, b * NB_KV_POSITIONS);
            continue;
        }
        tiles_of_type[type].convert(a, &kv);
        kv = (struct tile_kv){a->k_tile, a->v_tile, a->padded, NULL, NULL};
        attend_floats(a, &kv, rows, pos0, b * NB_KV_POSITIONS);
    }
}

static void attention(const struct nb_kv_form *form, const float *q, size_t ldq,
                      const uint8_t *const *blocks, size_t v_offset, uint32_t n_q, uint32_t pos0,
                      uint32_t kv_head, uint32_t group, const struct nb_attention *p, float *out,
                      size_t ldo, void *scratch)
{
    const uint32_t k_dim = form->k_dim, v_dim = form->v_dim;
    const size_t bytes = nb_kv_bytes(form->type);
    uint32_t queries = chunk_queries(group), n;
    struct attend a = {.ldq = ldq,
                       .group = group,
                       .k_dim = k_dim,
                       .v_dim = v_dim,
                       .padded = (v_dim + 15) & ~15u,
                       .how = *p,
                       .sinks = p->sinks ? p->sinks + (size_t)kv_head * group : NULL,
                       .k_tile = scratch};
    a.v_tile = a.k_tile + (size_t)NB_KV_POSITIONS * k_dim;
    a.out = a.v_tile + (size_t)NB_KV_POSITIONS * a.padded;
    a.softmax = (struct softmax *)(a.out + (size_t)queries * group * a.padded);
    size_t k_offset = kv_head * k_dim * bytes;
    v_offset += kv_head * v_dim * bytes;
    for (uint32_t t = 0; t < n_q; t += n) {
        n = n_q - t < queries ? n_q - t : queries;
        a.q = q + t * ldq + (size_t)kv_head * group * k_dim;
        attend_chunk(&a, form->type, blocks, k_offset, v_offset, n, pos0 + t);
        for (uint32_t row = 0; row < n * group; row++) {
            float *to =
                out + (t + row / group) * ldo + ((size_t)kv_head * group + row % group) * v_dim;
            float inv = 1.0f / a.softmax[row].sum;
            for (uint32_t d = 0; d < v_dim; d++)
                to[d] = a.out[(size_t)row * a.padded + d] * inv;
        }
    }
}
