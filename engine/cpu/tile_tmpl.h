// The inner loops of the quantized matrix product: one tile is a row group of 16 rows by a few
// tokens over all of k. Written in the words of simd_*.h; `format`, `tokens` and `terms` are
// constants wherever run_tile is inlined.
#pragma once

#define MAX_TOKENS 8  // of a tile
#define CELL       32 // weights of a row that lie together

// How the codes of a cell lie in memory and what is constant about them.
struct format {
    int planes;    // enum nb_planes
    int low, high; // bytes of a cell's planes
    int max;       // the largest code
    int group;     // weights under one effective scale, 16 or 32
    bool table;    // codes are looked up
    bool panel;    // expanded to bytes (two of 4 bits where DOT_SPLITS_BYTES)
};

// What run_tile reads. `constants`: for each token (`stride` words apart) and group, the
// activation's scale as a float, then the offset's share as an int32, or the activations' sum as a
// float where the type has a minimum.
struct tile {
    const uint8_t *low, *high;
    const float *ws, *wm;          // [group][16]
    const uint16_t *scales, *mins; // the same as halves, as the matrix has them
    const uint32_t *constants;
    size_t stride;
    const int8_t *q[2 * MAX_TOKENS]; // first terms, then second terms
    uint32_t cells;
    uint32_t prefetch; // bytes to fetch for each cell; 0 where they are in cache
    uint32_t ahead;    // how far ahead of the cell they lie
    bool far;          // they go to the level-2 cache
    bool has_min;
};

// Codes of 4 consecutive weights of 16 rows; `high` holds the upper 4 bits where bytes are split.
struct codes {
    vi low, high;
};

FORCED bool is_split(struct format f)
{
    return DOT_SPLITS_BYTES && f.max > 63;
}

// Columns of activations (tokens x terms) whose sums fit the registers.
FORCED int max_columns(struct format f)
{
    return is_split(f) ? DOT_COLUMNS / 2 : DOT_COLUMNS;
}

// Bits [at, at + n) of each byte moved to bit `to`.
FORCED vi bits(vi x, int at, int n, int to)
{
    vi mask = i_set1(((1 << n) - 1) * 0x01010101 << to);
    return i_and(at > to ? i_srl16(x, at - to) : at < to ? i_sll16(x, to - at) : x, mask);
}

// IQ4's values + 128, whole and as two halves.
static const uint8_t iq4_table[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                      129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t iq4_low[16] = {1, 8, 13, 15, 15, 13, 10, 6, 1, 13, 9, 6, 5, 5, 9, 1};
static const uint8_t iq4_high[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 15};

// Step j of a cell: weights 4j .. 4j + 3.
FORCED struct codes unpack(struct format f, const uint8_t *low, const uint8_t *high, int j)
{
    if (f.panel)
        return is_split(f) ? (struct codes){i_load(low + j * 128), i_load(low + j * 128 + 64)}
                           : (struct codes){.low = i_load(low + j * 64)};
    if (f.planes == NB_PLANES_8) {
        vi x = i_load(low + j * 64);
        return is_split(f) ? (struct codes){bits(x, 0, 4, 0), bits(x, 4, 4, 0)}
                           : (struct codes){.low = x};
    }
    if (f.planes == NB_PLANES_2 || f.planes == NB_PLANES_2_1) {
        vi x = bits(i_load(low + j % 2 * 64), j / 2 * 2, 2, 0);
        return (struct codes){
            .low = f.planes == NB_PLANES_2_1 ? i_or(x, bits(i_load(high), j, 1, 2)) : x};
    }
    vi x = bits(i_load(low + j % 4 * 64), j / 4 * 4, 4, 0);
    if (f.table)
        return is_split(f) ? (struct codes){i_lookup(iq4_low, x), i_lookup(iq4_high, x)}
                           : (struct codes){.low = i_lookup(iq4_table, x)};
    if (f.planes == NB_PLANES_4_1)
        x = i_or(x, bits(i_load(high), j, 1, 4));
    if (f.planes == NB_PLANES_4_2)
        x = i_or(x, bits(i_load(high + j % 2 * 64), j / 2 * 2, 2, 4));
    return (struct codes){.low = x};
}

// The i-th step to take: steps that share a register of codes follow each other.
FORCED int step_order(struct format f, int i)
{
    if (f.panel || f.group == 16 || f.planes == NB_PLANES_8)
        return i;
    return f.planes == NB_PLANES_2 ? i % 4 * 2 + i / 4 : i % 2 * 4 + i / 2;
}

// Integer sums of one group over `columns` columns of activations.
FORCED void dot_group(struct format f, int columns, const struct tile *t, const uint8_t *low,
                      const uint8_t *high, int group, size_t k, vi *sum)
{
    int steps = f.group / 4, run = dot_steps(is_split(f) ? 15 : f.max);
    run = run < steps ? run : steps;
    UNROLL
    for (int first = 0; first < steps; first += run) {
        vi part[2 * MAX_TOKENS], part_high[2 * MAX_TOKENS];
        UNROLL
        for (int i = first; i < first + run; i++) {
            int j = step_order(f, group * steps + i);
            struct codes c = unpack(f, low, high, j);
            UNROLL
            for (int n = 0; n < columns; n++) {
                vi q = i_broadcast(t->q[n] + k + j * 4);
                part[n] = i == first ? dot_first(c.low, q) : dot_next(part[n], c.low, q);
                if (is_split(f))
                    part_high[n] =
                        i == first ? dot_first(c.high, q) : dot_next(part_high[n], c.high, q);
            }
        }
        UNROLL
        for (int n = 0; n < columns; n++) {
            vi wide = dot_widen(part[n], 1);
            if (is_split(f))
                wide = i_add(wide, dot_widen(part_high[n], 16));
            sum[n] = first == 0 ? wide : i_add(sum[n], wide);
        }
    }
}

// acc over one group, as docs/numerics.md orders it. The integers stay below 2^31 and are rounded
// to float once.
FORCED void fold_group(bool halves, int tokens, int terms, const struct tile *t, size_t group,
                       const vi *sum, vf *acc)
{
    const uint32_t *constants = t->constants + group * 2;
    vf ws = halves ? f_of_half(t->scales + group * 16) : f_load(t->ws + group * 16), wm = ws;
    if (t->has_min)
        wm = halves ? f_of_half(t->mins + group * 16) : f_load(t->wm + group * 16);
    UNROLL
    for (int n = 0; n < tokens; n++) {
        vi a = sum[n];
        if (terms == 2)
            a = i_add(i_sub(i_sll32(a, 8), i_add(a, a)), sum[tokens + n]);
        vf s = f_of_bits(i_broadcast(constants + (size_t)n * t->stride));
        vi other = i_broadcast(constants + (size_t)n * t->stride + 1);
        if (t->has_min) {
            acc[n] = f_fma(f_mul(f_of_int(a), s), ws, acc[n]);
            acc[n] = f_fma(f_of_bits(other), wm, acc[n]);
        } else {
            acc[n] = f_fma(f_mul(f_of_int(i_sub(a, other)), s), ws, acc[n]);
        }
    }
}

FORCED void fetch_cell(const struct tile *t, const uint8_t *from)
{
    for (uint32_t at = 0; at < t->prefetch && !t->far; at += 64)
        __builtin_prefetch(from + at);
    for (uint32_t at = 0; at < t->prefetch && t->far; at += 64)
        __builtin_prefetch(from + at, 0, 2);
}

// `halves`: scales are taken from there, not from ws and wm.
FORCED void run_tile(struct format f, bool halves, int tokens, int terms, const struct tile *t,
                     float *out)
{
    const uint8_t *low = t->low, *high = t->high, *ahead = t->low + t->ahead;
    int groups = CELL / f.group;
    vf acc[MAX_TOKENS];
    UNROLL
    for (int n = 0; n < tokens; n++)
        acc[n] = f_zero();
    for (size_t cell = 0; cell < t->cells; cell++) {
        fetch_cell(t, ahead);
        UNROLL
        for (int g = 0; g < groups; g++) {
            vi sum[2 * MAX_TOKENS];
            dot_group(f, tokens * terms, t, low, high, g, cell * CELL, sum);
            fold_group(halves, tokens, terms, t, cell * (size_t)groups + (size_t)g, sum, acc);
        }
        low += f.low;
        high += f.high;
        ahead += t->prefetch;
    }
    UNROLL
    for (int n = 0; n < tokens; n++)
        f_store(out + 16 * n, acc[n]);
}

// A row group's codes, one (or two) bytes each, for the panel form of the same format.
FORCED void expand_panel(struct format f, const struct tile *t, uint8_t *panel)
{
    for (size_t cell = 0; cell < t->cells; cell++) {
        fetch_cell(t, t->low + t->ahead + cell * t->prefetch);
        UNROLL
        for (int j = 0; j < 8; j++) {
            struct codes c =
                unpack(f, t->low + cell * (size_t)f.low, t->high + cell * (size_t)f.high, j);
            i_store(panel, c.low);
            panel += 64;
            if (is_split(f)) {
                i_store(panel, c.high);
                panel += 64;
            }
        }
    }
}
