// Error feedback of one matrix: units of sixteen rows, each searched, rounded, refined and written
// by one thread. The arithmetic in bulk is feed.h's. Where zeros are chosen among all rows, all
// units go through a block of columns together.
#include "quant/gptq.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"
#include "quant/fit.h"
#include "quant/rounding.h"

struct place;

struct job {
    const struct nb_gptq *how;
    const struct nb_feed *feed;
    struct nb_encode scales; // how they are searched
    struct nb_shape shape;
    const float *w;
    uint8_t *dst;
    uint64_t rows;
    uint32_t cols;
    size_t row_bytes, unit_bytes;
    float *pull; // [cols][cols]: the transpose of cross; NULL without it
    bool bare;   // the type is a float
    // Zeros are chosen among all rows: each unit has memory of its own, else each thread
    bool together;
    uint8_t *memory;
    float *scores;          // [units][width][NB_LANES]: of a block of columns; then what stays
    uint32_t column, width; // of it
    struct nb_gptq_report *unit_errors; // of each unit
    uint64_t units;
    int (*step)(struct job *j, uint64_t unit, struct place *p); // what is done with each
    atomic_uint_fast64_t next;
    atomic_int failure; // the least errno, so the answer does not depend on who is first
};

static size_t lanes_of(size_t n)
{
    return n * NB_LANES * sizeof(float);
}

static size_t unit_bytes(const struct job *j)
{
    size_t groups = j->cols / j->shape.group, blocks = j->cols / j->shape.block;
    size_t halves = NB_LANES * sizeof(uint16_t) * (2 * groups + 2 * blocks);
    return 8 * lanes_of(j->cols) + 3 * lanes_of(groups) + halves + NB_LANES * j->row_bytes;
}

// A thread's unit, and what else it needs beside.
struct place {
    struct nb_unit unit;
    float *rows;      // [NB_LANES][cols]: targets, row by row
    uint8_t *encoded; // [NB_LANES][row_bytes]
};

static void lay_out(const struct job *j, uint8_t *memory, struct place *ret)
{
    size_t groups = j->cols / j->shape.group, blocks = j->cols / j->shape.block;
    float *f = (float *)(void *)memory,
          **by_col[] = {&ret->unit.w, &ret->unit.q, &ret->unit.v,   &ret->unit.g,
                        &ret->unit.e, &ret->unit.t, &ret->unit.keep};
    float **by_group[] = {&ret->unit.d, &ret->unit.m, &ret->unit.by};
    ret->unit = (struct nb_unit){.shape = &j->shape,
                                 .factor = j->how->factor,
                                 .stay = j->how->sparse.keep,
                                 .of = j->how->sparse.of,
                                 .bare = j->bare};
    for (unsigned i = 0; i < 7; i++, f += (size_t)j->cols * NB_LANES)
        *by_col[i] = f;
    if (!nb_sparsity_any(&j->how->sparse))
        ret->unit.keep = NULL;
    for (unsigned i = 0; i < 3; i++, f += groups * NB_LANES)
        *by_group[i] = f;
    ret->rows = f;
    f += (size_t)j->cols * NB_LANES;
    uint16_t *h = (uint16_t *)(void *)f;
    ret->unit.scale = h;
    ret->unit.min = h + blocks * NB_LANES;
    ret->unit.sub = (int16_t *)(h + 2 * blocks * NB_LANES);
    ret->unit.sub_min = ret->unit.sub + groups * NB_LANES;
    ret->encoded = (uint8_t *)(ret->unit.sub_min + groups * NB_LANES);
}

// The correction of the targets, in t before it is solved for: mismatch * (w C + R X^T).
static void pull_targets(const struct job *j, uint64_t first, struct nb_unit *u)
{
    memset(u->t, 0, lanes_of(j->cols));
    for (unsigned i = 0; j->how->residual && i < NB_LANES && first + i < j->rows; i++)
        for (uint32_t c = 0; c < j->cols; c++)
            u->t[(size_t)c * NB_LANES + i] = (float)j->how->residual[(first + i) * j->cols + c];
    if (j->pull)
        j->feed->accumulate(u->t, j->cols, j->pull, j->cols, u->w, j->cols);
    for (size_t i = 0; i < (size_t)j->cols * NB_LANES; i++)
        u->t[i] *= j->how->mismatch;
}

static void set_targets(const struct job *j, uint64_t first, struct place *p)
{
    struct nb_unit *u = &p->unit;
    for (unsigned i = 0; i < NB_LANES; i++)
        for (uint32_t c = 0; c < j->cols; c++)
            u->w[(size_t)c * NB_LANES + i] =
                first + i < j->rows ? j->w[(first + i) * j->cols + c] : 0;
    if (j->pull || j->how->residual) {
        pull_targets(j, first, u);
        j->feed->solve(u);
    }
    for (unsigned i = 0; i < NB_LANES; i++)
        for (uint32_t c = 0; c < j->cols; c++)
            p->rows[(size_t)i * j->cols + c] = u->w[(size_t)c * NB_LANES + i];
}

// One row's block to its lane of the unit.
static void take_block(struct nb_unit *u, unsigned lane, uint32_t block, const struct nb_block *b)
{
    const struct nb_shape *s = u->shape;
    float d = nb_f16_to_f32(b->scale), m = s->has_min ? nb_f16_to_f32(b->min) : 0;
    u->scale[block * NB_LANES + lane] = b->scale;
    u->min[block * NB_LANES + lane] = b->min;
    for (uint32_t g = 0; g < s->groups; g++) {
        int sub, min;
        nb_block_sub(s->layout->sub, b->sub, g, &sub, &min);
        size_t at = (size_t)(block * s->groups + g) * NB_LANES + lane;
        u->sub[at] = (int16_t)sub;
        u->sub_min[at] = (int16_t)(s->has_min ? min : 0);
        u->d[at] = d * (float)sub;
        u->m[at] = s->super ? (s->has_min ? -(m * (float)min) : 0) : m;
        u->by[at] = fabsf(u->d[at]) > 1e-30f ? 1 / u->d[at] : 0;
        for (uint32_t k = g * s->group; k < (g + 1) * s->group; k++) {
            size_t col = (size_t)(block * s->block + k) * NB_LANES + lane;
            u->v[col] = nb_shape_value(s, b->code[k]);
            u->q[col] = u->v[col] * u->d[at] + u->m[at];
        }
    }
}

static void take_rows(const struct job *j, struct place *p)
{
    struct nb_block b;
    for (unsigned i = 0; i < NB_LANES; i++)
        for (uint32_t k = 0; k < j->cols / j->shape.block; k++) {
            memset(&b, 0, sizeof(b));
            j->shape.codec->split(p->encoded + i * j->row_bytes + (size_t)k * j->shape.bytes, &b);
            take_block(&p->unit, i, k, &b);
        }
}

static void write_block(const struct nb_unit *u, unsigned lane, uint32_t block, uint8_t *dst)
{
    const struct nb_shape *s = u->shape;
    struct nb_block b = {.scale = u->scale[block * NB_LANES + lane],
                         .min = u->min[block * NB_LANES + lane]};
    for (uint32_t g = 0; g < s->groups; g++) {
        size_t at = (size_t)(block * s->groups + g) * NB_LANES + lane;
        nb_block_set_sub(s->layout->sub, b.sub, g, u->sub[at], u->sub_min[at]);
    }
    for (uint32_t k = 0; k < s->block; k++)
        b.code[k] = nb_shape_code(s, u->v[(size_t)(block * s->block + k) * NB_LANES + lane]);
    s->codec->join(&b, dst);
}

static void write_rows(const struct job *j, uint64_t first, const struct nb_unit *u)
{
    for (unsigned i = 0; i < NB_LANES && first + i < j->rows; i++)
        for (uint32_t k = 0; k < j->cols / j->shape.block; k++)
            write_block(u, i, k, j->dst + (first + i) * j->row_bytes + (size_t)k * j->shape.bytes);
}

// Floats are rounded here alone: what that loses is nothing beside the zeros.
static int write_bare(const struct job *j, uint64_t first, struct place *p)
{
    const uint64_t n = j->rows - first < NB_LANES ? j->rows - first : NB_LANES;
    for (unsigned i = 0; i < n; i++)
        for (uint32_t c = 0; c < j->cols; c++)
            p->rows[(size_t)i * j->cols + c] = p->unit.q[(size_t)c * NB_LANES + i];
    if (nb_find_not_finite(p->rows, n * j->cols) < n * j->cols)
        return -EDOM;
    return nb_rounding_rows(j->how->type, p->rows, n, j->cols, j->dst + first * j->row_bytes);
}

// Without the ridge, which is no part of what the calibration saw. g must be right.
static double error_of(const struct nb_unit *u)
{
    double sum = 0;
    for (size_t i = 0; i < (size_t)u->factor->cols * NB_LANES; i++) {
        double e = (double)u->q[i] - (double)u->w[i];
        sum += e * ((double)u->g[i] - (double)u->factor->ridge * e);
    }
    return sum;
}

// ---- Steps of a unit

// Its targets, under scales that are searched.
static int begin_unit(struct job *j, uint64_t unit, struct place *p)
{
    set_targets(j, unit * NB_LANES, p);
    if (j->bare) {
        memcpy(p->unit.q, p->unit.w, lanes_of(j->cols));
        return 0;
    }
    int rc = nb_encode_rows(&j->scales, p->rows, NB_LANES, j->cols, p->encoded);
    if (rc < 0)
        return rc;
    take_rows(j, p);
    j->feed->gradient(&p->unit);
    j->unit_errors[unit].nearest = error_of(&p->unit);
    return 0;
}

// Its columns are rounded.
static int end_unit(struct job *j, uint64_t unit, struct place *p)
{
    struct nb_gptq_report *errors = &j->unit_errors[unit];
    const uint32_t passes = j->bare ? 0 : j->how->passes;
    j->feed->gradient(&p->unit);
    errors->columns = error_of(&p->unit);
    for (uint32_t i = 0; i < passes; i++)
        j->feed->refine(&p->unit);
    if (passes)
        j->feed->gradient(&p->unit);
    errors->refined = error_of(&p->unit);
    if (j->bare)
        return write_bare(j, unit * NB_LANES, p);
    write_rows(j, unit * NB_LANES, &p->unit);
    return 0;
}

static int encode_unit(struct job *j, uint64_t unit, struct place *p)
{
    int rc = begin_unit(j, unit, p);
    if (rc < 0)
        return rc;
    j->feed->columns(&p->unit);
    return end_unit(j, unit, p);
}

static int score_unit(struct job *j, uint64_t unit, struct place *p)
{
    float *scores = j->scores + unit * j->width * NB_LANES;
    j->feed->score(&p->unit, j->column, j->width, scores);
    // Rows past the last have no zeros to give.
    for (uint64_t i = j->rows - unit * NB_LANES; i < NB_LANES; i++)
        for (uint32_t c = 0; c < j->width; c++)
            scores[(size_t)c * NB_LANES + i] = INFINITY;
    return 0;
}

static int round_unit(struct job *j, uint64_t unit, struct place *p)
{
    for (uint32_t i = 0; i < j->width; i++)
        memcpy(p->unit.keep + (size_t)j->how->factor->order[j->column + i] * NB_LANES,
               j->scores + (unit * j->width + i) * NB_LANES, lanes_of(1));
    j->feed->round(&p->unit, j->column, j->width);
    return 0;
}

// ---- All units

static void do_units(void *arg, uint32_t thread)
{
    struct job *j = arg;
    struct place p;
    uint64_t unit;
    while ((unit = atomic_fetch_add(&j->next, 1)) < j->units) {
        lay_out(j, j->memory + (j->together ? unit : thread) * j->unit_bytes, &p);
        int rc = j->step(j, unit, &p);
        int seen = atomic_load(&j->failure);
        while (rc < 0 && (seen == 0 || rc > seen) &&
               !atomic_compare_exchange_weak(&j->failure, &seen, rc))
            ;
    }
}

static int each_unit(struct job *j, struct nb_team *team,
                     int (*step)(struct job *j, uint64_t unit, struct place *p))
{
    j->step = step;
    atomic_store(&j->next, 0);
    nb_team_run(team, do_units, j);
    return atomic_load(&j->failure);
}

// Of each block its share, so that no rounding of the counts adds up.
static int encode_together(struct job *j, struct nb_team *team)
{
    const struct nb_sparsity *s = &j->how->sparse;
    int rc = each_unit(j, team, begin_unit);
    for (j->column = 0; rc == 0 && j->column < j->cols; j->column += j->width) {
        const uint32_t left = j->cols - j->column;
        j->width = left < NB_FEED_SPARSE ? left : NB_FEED_SPARSE;
        const uint64_t zeros = nb_sparsity_count(s, j->rows * (j->column + j->width)) -
                               nb_sparsity_count(s, j->rows * j->column);
        const size_t n = j->units * j->width * NB_LANES;
        rc = each_unit(j, team, score_unit);
        nb_sparse_keep(nb_sparse_cut_of(j->scores, n, zeros), j->scores, n);
        if (rc == 0)
            rc = each_unit(j, team, round_unit);
    }
    return rc == 0 ? each_unit(j, team, end_unit) : rc;
}

static int pull_of(struct job *j)
{
    size_t n = (size_t)j->cols * j->cols;
    if (!j->how->cross)
        return 0;
    j->pull = malloc(n * sizeof(*j->pull));
    for (size_t i = 0; j->pull && i < n; i++)
        j->pull[i] = (float)j->how->cross[i % j->cols * j->cols + i / j->cols];
    return j->pull ? 0 : -ENOMEM;
}

static int reserve(struct job *j, struct nb_team *team)
{
    const uint64_t places = j->together ? j->units : nb_team_size(team);
    j->unit_bytes = (unit_bytes(j) + 63) / 64 * 64;
    j->memory = aligned_alloc(64, places * j->unit_bytes);
    j->unit_errors = calloc(j->units, sizeof(*j->unit_errors));
    if (j->together)
        j->scores = aligned_alloc(64, j->units * lanes_of(NB_FEED_SPARSE));
    return j->memory && j->unit_errors && (j->scores || !j->together) ? pull_of(j) : -ENOMEM;
}

static int run(struct job *j, struct nb_team *team, struct nb_gptq_report *ret)
{
    int rc = reserve(j, team);
    if (rc == 0)
        rc = j->together ? encode_together(j, team) : each_unit(j, team, encode_unit);
    struct nb_gptq_report sum = {0, 0, 0};
    for (uint64_t i = 0; rc == 0 && i < j->units; i++) {
        sum.nearest += j->unit_errors[i].nearest;
        sum.columns += j->unit_errors[i].columns;
        sum.refined += j->unit_errors[i].refined;
    }
    if (rc == 0 && ret)
        *ret = sum;
    free(j->scores);
    free(j->unit_errors);
    free(j->memory);
    free(j->pull);
    return rc;
}

// A float type is one block to a row; of others what encoders know.
static int set_shape(struct job *j)
{
    const struct nb_sparsity *s = &j->how->sparse;
    const struct nb_scheme *scheme = nb_scheme_of_type(j->how->type);
    const bool sparse = nb_sparsity_any(s);
    int rc = nb_shape_init(&j->shape, j->how->type);
    j->bare = rc < 0 && sparse && scheme;
    j->together = sparse && !s->of;
    if (j->bare)
        j->shape = (struct nb_shape){.block = j->cols, .group = j->cols, .groups = 1};
    if ((rc < 0 && !j->bare) || (sparse && !nb_scheme_has_zero(scheme)) ||
        (s->of && (NB_SPARSE_OF % s->of || s->keep >= s->of)))
        return -EINVAL;
    for (uint32_t c = 0; s->of && c < j->cols; c++)
        if (j->how->factor->order[c] != c)
            return -EINVAL;
    return 0;
}

int nb_gptq_encode(const struct nb_gptq *how, struct nb_team *team, const float *w, uint64_t rows,
                   uint32_t cols, void *dst, struct nb_gptq_report *ret)
{
    struct job j = {.how = how, .w = w, .dst = dst, .rows = rows, .cols = cols};
    j.units = (rows + NB_LANES - 1) / NB_LANES;
    j.row_bytes = nb_encoded_bytes(how->type, 1, cols);
    if (!rows || cols != how->factor->cols || !j.row_bytes || set_shape(&j) < 0 ||
        !(how->mismatch >= 0 && how->mismatch <= 1))
        return -EINVAL;
    j.feed = nb_fit_best()->feed;
    j.scales = (struct nb_encode){.type = how->type,
                                  .effort = NB_EFFORT_SEARCH,
                                  .by_size = how->by_size,
                                  .importance = how->factor->diagonal};
    return run(&j, team, ret);
}
