// What a fold does to numbers: to rows of a tensor by its columns, to columns of it by its rows,
// and to a matrix's inputs. In doubles, each rounded to a float once a side.
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_room.h"

#define TILE 8 // columns that are gathered together
#define ROWS 16

// ---- One vector of a joint's channels. Readers may have each channel several times: `width`
// numbers.

static uint32_t channel_of(const struct nb_joint *j, uint32_t width, uint32_t i)
{
    return width == j->n ? i : nb_joint_channel(j, i);
}

static uint32_t expert_of(const struct nb_joint *j, uint32_t expert)
{
    return j->experts > 1 ? expert : 0;
}

// What readers' columns are multiplied by, or NULL: ones.
static const float *scale_of(const struct nb_fold *f, const struct nb_joint *j, uint32_t expert)
{
    if (j->kind == NB_JOINT_NORM && nb_fold_stream(f))
        return j->weight;
    return j->scale ? j->scale + (size_t)expert_of(j, expert) * j->n : NULL;
}

// `scratch`: [n].
static void reorder(const struct nb_joint *j, uint32_t expert, double *x, double *scratch)
{
    if (!j->order)
        return;
    const uint32_t *order = j->order + (size_t)expert_of(j, expert) * j->n;
    memcpy(scratch, x, j->n * sizeof(*x));
    for (uint32_t i = 0; i < j->n; i++)
        x[i] = scratch[order[i]];
}

static void rotate(const struct nb_joint *j, uint32_t width, double *x)
{
    for (uint32_t at = 0; j->rotation && at < width; at += nb_rotation_n(j->rotation))
        nb_rotation_apply(j->rotation, x + at);
}

// A row of a matrix that reads them.
static void fold_reader(const struct nb_fold *f, const struct nb_joint *j, uint32_t expert,
                        double *x, double *scratch)
{
    const float *scale = scale_of(f, j, expert);
    const uint32_t width = j->n * j->repeats;
    for (uint32_t i = 0; scale && i < width; i++)
        x[i] *= (double)scale[channel_of(j, width, i)];
    reorder(j, expert, x, scratch);
    rotate(j, width, x);
}

// Divides by the scale's power. A norm's weight may be 0, and what its readers take then counts for
// nothing.
static void unscale(const struct nb_fold *f, const struct nb_joint *j, uint32_t expert,
                    uint32_t width, float power, double *x)
{
    const float *scale = scale_of(f, j, expert);
    for (uint32_t i = 0; scale && power > 0 && i < width; i++) {
        const double s = (double)scale[channel_of(j, width, i)];
        const double by = power == 1 ? s : pow(s, (double)power);
        x[i] = by != 0 ? x[i] / by : 0;
    }
}

// What they were becomes what they are now.
static void fold_channels(const struct nb_fold *f, const struct nb_joint *j, uint32_t expert,
                          uint32_t width, float power, double *x, double *scratch)
{
    unscale(f, j, expert, width, power, x);
    reorder(j, expert, x, scratch);
    rotate(j, width, x);
}

// A norm whose readers take its weight has none.
static void fold_part(const struct nb_fold *f, const struct nb_fold_rows *p, uint32_t expert,
                      double *x, double *scratch)
{
    const struct nb_joint *j = &f->joints[p->joint];
    if (j->kind == NB_JOINT_NORM && nb_fold_stream(f))
        for (uint32_t i = 0; i < p->n; i++)
            x[p->at + i] = 1;
    else
        fold_channels(f, j, expert, p->n, p->power, x + p->at, scratch);
}

// ---- Tensors

static bool is_mixed(const struct nb_joint *j)
{
    return j->order || j->rotation;
}

// Whether a tensor's columns, or rows, change at all.
static bool columns_change(const struct nb_fold *f, const struct nb_fold_tensor *t)
{
    bool change = false;
    for (uint32_t i = 0; i < 2; i++)
        if (t->columns[i] != NB_FOLD_NONE) {
            const struct nb_joint *j = &f->joints[t->columns[i]];
            change |= is_mixed(j) || scale_of(f, j, 0);
        }
    return change;
}

static bool rows_change(const struct nb_fold *f, const struct nb_fold_tensor *t, bool *ret_mixed)
{
    bool change = *ret_mixed = false;
    for (uint32_t i = 0; i < t->n_parts; i++) {
        const struct nb_joint *j = &f->joints[t->parts[i].joint];
        *ret_mixed |= is_mixed(j);
        change |= is_mixed(j) || (t->parts[i].power > 0 && scale_of(f, j, 0));
    }
    return change;
}

uint64_t nb_fold_unit(const struct nb_fold *f, struct nb_str name)
{
    const struct nb_fold_tensor *t = nb_fold_find(f, name);
    bool mixed;
    if (!t || (!rows_change(f, t, &mixed) && !columns_change(f, t)))
        return 0;
    if (t->vector)
        return (uint64_t)t->experts * t->rows;
    return mixed ? (uint64_t)t->rows * t->cols : t->cols;
}

struct applying {
    const struct nb_fold *f;
    const struct nb_fold_tensor *t;
    uint64_t first, n; // rows
    float *values;     // of the first
    double *scratch;   // of each thread
    size_t scratch_n;
    uint32_t units;
    void (*fn)(const struct applying *a, uint32_t unit, double *scratch);
    atomic_uint next;
};

static void apply_units(void *arg, uint32_t thread)
{
    struct applying *a = arg;
    uint32_t unit;
    while ((unit = atomic_fetch_add_explicit(&a->next, 1, memory_order_relaxed)) < a->units)
        a->fn(a, unit, a->scratch + thread * a->scratch_n);
}

static void fold_columns(const struct applying *a, uint32_t unit, double *scratch)
{
    const struct nb_fold_tensor *t = a->t;
    for (uint64_t row = (uint64_t)unit * ROWS; row < a->n && row < (unit + 1ull) * ROWS; row++) {
        const uint32_t expert = (uint32_t)((a->first + row) / t->rows);
        float *x = a->values + row * t->cols;
        for (uint32_t i = 0; i < t->cols; i++)
            scratch[i] = (double)x[i];
        for (uint32_t i = 0; i < 2; i++)
            if (t->columns[i] != NB_FOLD_NONE)
                fold_reader(a->f, &a->f->joints[t->columns[i]], expert, scratch, scratch + t->cols);
        for (uint32_t i = 0; i < t->cols; i++)
            x[i] = (float)scratch[i];
    }
}

// Some columns of one expert's rows, which all are here.
static void fold_rows(const struct applying *a, uint32_t unit, double *scratch)
{
    const struct nb_fold_tensor *t = a->t;
    const uint32_t tiles = (t->cols + TILE - 1) / TILE, slice = unit / tiles;
    const uint32_t at = unit % tiles * TILE, n = t->cols - at < TILE ? t->cols - at : TILE;
    const uint32_t expert = (uint32_t)(a->first / t->rows) + slice;
    float *x = a->values + (size_t)slice * t->rows * t->cols + at;
    for (uint32_t row = 0; row < t->rows; row++)
        for (uint32_t c = 0; c < n; c++)
            scratch[c * t->rows + row] = (double)x[(size_t)row * t->cols + c];
    for (uint32_t c = 0; c < n; c++)
        for (uint32_t i = 0; i < t->n_parts; i++)
            fold_part(a->f, &t->parts[i], expert, scratch + (size_t)c * t->rows,
                      scratch + (size_t)TILE * t->rows);
    for (uint32_t row = 0; row < t->rows; row++)
        for (uint32_t c = 0; c < n; c++)
            x[(size_t)row * t->cols + c] = (float)scratch[c * t->rows + row];
}

// Rows that scales alone reach need no others beside them.
static void scale_rows(const struct applying *a, uint32_t unit, double *scratch)
{
    const struct nb_fold_tensor *t = a->t;
    for (uint64_t row = (uint64_t)unit * ROWS; row < a->n && row < (unit + 1ull) * ROWS; row++) {
        const uint32_t expert = (uint32_t)((a->first + row) / t->rows);
        const uint32_t in = (uint32_t)((a->first + row) % t->rows);
        float *x = a->values + row * t->cols;
        for (uint32_t i = 0; i < t->n_parts; i++) {
            const struct nb_fold_rows *p = &t->parts[i];
            const float *scale = scale_of(a->f, &a->f->joints[p->joint], expert);
            if (!scale || p->power <= 0 || in < p->at || in >= p->at + p->n)
                continue;
            const double s = (double)scale[in - p->at];
            const double by = p->power == 1 ? s : pow(s, (double)p->power);
            for (uint32_t c = 0; c < t->cols; c++)
                x[c] = (float)((double)x[c] / by);
        }
    }
}

static void run(struct applying *a, struct nb_team *team, uint32_t units,
                void (*fn)(const struct applying *a, uint32_t unit, double *scratch))
{
    a->units = units;
    a->fn = fn;
    atomic_store_explicit(&a->next, 0, memory_order_relaxed);
    if (team)
        nb_team_run(team, apply_units, a);
    else
        apply_units(a, 0);
}

static int apply(struct applying *a, struct nb_team *team)
{
    const struct nb_fold_tensor *t = a->t;
    const uint32_t by_rows = (uint32_t)((a->n + ROWS - 1) / ROWS);
    const uint32_t tiles = (t->cols + TILE - 1) / TILE;
    const size_t of_row = 2 * (size_t)t->cols, of_columns = (TILE + 1) * (size_t)t->rows;
    bool mixed;
    const bool rows = rows_change(a->f, t, &mixed);
    a->scratch_n = of_row > of_columns ? of_row : of_columns;
    a->scratch = malloc((team ? nb_team_size(team) : 1) * a->scratch_n * sizeof(*a->scratch));
    if (!a->scratch)
        return -ENOMEM;
    if (columns_change(a->f, t))
        run(a, team, by_rows, fold_columns);
    if (rows && (mixed || t->vector))
        run(a, team, (uint32_t)(a->n / t->rows) * tiles, fold_rows);
    else if (rows)
        run(a, team, by_rows, scale_rows);
    free(a->scratch);
    return 0;
}

int nb_fold_tensor(const struct nb_fold *f, struct nb_team *team, struct nb_str name, uint64_t at,
                   uint64_t n, float *values) // NOLINT(*non-const-parameter)
{
    const uint64_t unit = nb_fold_unit(f, name);
    const struct nb_fold_tensor *t = nb_fold_find(f, name);
    if (!unit)
        return 0;
    const uint64_t all = (uint64_t)t->experts * t->rows * t->cols;
    if (at % unit || n % unit || at > all || n > all - at)
        return -EINVAL;
    struct applying a = {.f = f, .t = t, .first = at / t->cols, .n = n / t->cols, .values = values};
    return apply(&a, team);
}
