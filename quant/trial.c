// See trial.h. Inputs and weights are changed as the fold would change them, so that a trial knows
// nothing of what comes before its joint.
#include "quant/trial.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grad/gemm.h"
#include "quant/encode.h"
#include "tensor/type.h"

#define INT8_MOST 127.0f

struct nb_trial {
    struct nb_trial_options o;
    struct nb_team *team;
    uint32_t n, rows;     // channels; inputs of both parts
    float *x, *w, *means; // as they are tried: [rows][cols], [rows of a reader][cols], [cols]
    float *y;             // [rows][rows of a reader]
    float *exact;         // of each reader the outputs without rounding
    struct nb_trial_error *size; // of each reader: its outputs' squares
    void *encoded;
};

static bool is_tried(const struct nb_trial_reader *r)
{
    return r->type != NB_TYPE_F32;
}

static void multiply(const struct nb_trial *t, const float *x, const float *w, uint32_t rows,
                     float *ret)
{
    nb_sgemm(t->team, false, true, t->rows, rows, t->o.cols, x, t->o.cols, w, t->o.cols, 0, ret,
             rows);
}

// Squares of y - other by parts; NULL: zeros.
static struct nb_trial_error squares(const struct nb_trial *t, const float *y, const float *other,
                                     uint32_t rows)
{
    double sums[2] = {0, 0};
    const size_t first = (size_t)t->o.rows * rows, all = (size_t)t->rows * rows;
    for (size_t i = 0; i < all; i++) {
        const double d = (double)y[i] - (other ? (double)other[i] : 0);
        sums[i >= first] += d * d;
    }
    return (struct nb_trial_error){sums[0], sums[1]};
}

static void compute_exact(struct nb_trial *t)
{
    float *y = t->exact;
    for (uint32_t i = 0; i < t->o.n_readers; i++) {
        const struct nb_trial_reader *r = &t->o.readers[i];
        multiply(t, t->o.x, r->w, r->rows, y);
        t->size[i] = squares(t, y, NULL, r->rows);
        y += (size_t)t->rows * r->rows;
    }
}

int nb_trial_create(const struct nb_trial_options *options, struct nb_team *team,
                    struct nb_trial **ret)
{
    struct nb_trial *t = calloc(1, sizeof(*t));
    if (!t)
        return -ENOMEM;
    *t = (struct nb_trial){
        .o = *options, .team = team, .n = options->joint->n, .rows = options->rows + options->held};
    size_t most = 1, all = 1, cols = options->cols;
    for (uint32_t i = 0; i < options->n_readers; i++) {
        const size_t rows = options->readers[i].rows;
        most = rows > most ? rows : most;
        all += rows;
    }
    t->x = malloc(t->rows * cols * sizeof(*t->x));
    t->w = malloc(most * cols * sizeof(*t->w));
    t->means = malloc(cols * sizeof(*t->means));
    t->y = malloc(t->rows * most * sizeof(*t->y));
    t->exact = malloc(t->rows * all * sizeof(*t->exact));
    t->size = calloc(options->n_readers + 1, sizeof(*t->size));
    t->encoded = malloc(most * cols * sizeof(float)); // no type has more bytes
    if (!t->x || !t->w || !t->means || !t->y || !t->exact || !t->size || !t->encoded) {
        nb_trial_destroy(t);
        return -ENOMEM;
    }
    compute_exact(t);
    *ret = t;
    return 0;
}

void nb_trial_destroy(struct nb_trial *t)
{
    if (!t)
        return;
    free(t->x);
    free(t->w);
    free(t->means);
    free(t->y);
    free(t->exact);
    free(t->size);
    free(t->encoded);
    free(t);
}

// ---- A trial

struct change {
    const float *scale;
    const uint32_t *order;
};

static uint32_t column_of(const struct change *c, uint32_t i)
{
    return c->order ? c->order[i] : i;
}

static float factor_of(const struct nb_trial *t, const struct change *c, uint32_t column)
{
    return c->scale ? c->scale[nb_joint_channel(t->o.joint, column)] : 1;
}

// by_weight: a row of a matrix, else one of its inputs.
static void change_rows(const struct nb_trial *t, const struct change *c, bool by_weight,
                        const float *from, uint32_t rows, float *to)
{
    const uint32_t cols = t->o.cols;
    for (uint32_t i = 0; i < cols; i++) {
        const uint32_t k = column_of(c, i);
        const float s = factor_of(t, c, k), by = by_weight ? s : 1 / s;
        for (size_t row = 0; row < rows; row++)
            to[row * cols + i] = from[row * cols + k] * by;
    }
}

static void round_int8(float *x, uint32_t rows, uint32_t cols)
{
    for (uint32_t row = 0; row < rows; row++, x += cols) {
        float most = 0;
        for (uint32_t i = 0; i < cols; i++)
            most = fmaxf(most, fabsf(x[i]));
        const float step = most / INT8_MOST, inverse = most > 0 ? INT8_MOST / most : 0;
        for (uint32_t i = 0; i < cols; i++)
            x[i] = rintf(x[i] * inverse) * step;
    }
}

static int round_weights(struct nb_trial *t, const struct nb_trial_reader *r)
{
    const struct nb_type_info *info = nb_type_info(r->type);
    const struct nb_encode how = {
        .type = r->type, .effort = NB_EFFORT_SEARCH, .by_size = true, .importance = t->means};
    if (t->o.int8) {
        round_int8(t->w, r->rows, t->o.cols);
        return 0;
    }
    int rc = nb_encode_matrix(&how, t->team, t->w, r->rows, t->o.cols, t->encoded);
    if (rc == 0)
        info->dequantize(t->encoded, t->w, (size_t)r->rows * t->o.cols / info->block);
    return rc;
}

static void change_inputs(struct nb_trial *t, const struct change *c)
{
    change_rows(t, c, false, t->o.x, t->rows, t->x);
    if (t->o.int8)
        round_int8(t->x, t->rows, t->o.cols);
    for (uint32_t i = 0; i < t->o.cols; i++) {
        const uint32_t k = column_of(c, i);
        const float s = factor_of(t, c, k);
        t->means[i] = t->o.mean[k] / s / s;
    }
}

int nb_trial_run(struct nb_trial *t, const float *scale, const uint32_t *order,
                 struct nb_trial_error *ret)
{
    const struct change c = {scale, order};
    const float *exact = t->exact;
    struct nb_trial_error sum = {0, 0};
    uint32_t n = 0;
    int rc = 0;
    change_inputs(t, &c);
    for (uint32_t i = 0; i < t->o.n_readers && rc == 0; i++) {
        const struct nb_trial_reader *r = &t->o.readers[i];
        const struct nb_trial_error size = t->size[i];
        if (is_tried(r) && size.searched > 0 && size.held > 0) {
            change_rows(t, &c, true, r->w, r->rows, t->w);
            rc = round_weights(t, r);
            multiply(t, t->x, t->w, r->rows, t->y);
            const struct nb_trial_error e = squares(t, t->y, exact, r->rows);
            sum.searched += e.searched / size.searched;
            sum.held += e.held / size.held;
            n++;
        }
        exact += (size_t)t->rows * r->rows;
    }
    if (rc == -ERANGE || rc == -EDOM)
        sum = (struct nb_trial_error){INFINITY, INFINITY};
    else if (rc < 0)
        return rc;
    *ret = (struct nb_trial_error){n ? sum.searched / n : 0, n ? sum.held / n : 0};
    return 0;
}

// ---- A search

struct search {
    struct nb_trial *t;
    nb_trial_fill *fill;
    void *user;
    float *scale;
    float exponent; // the best so far, and its errors
    struct nb_trial_error best;
};

static int try(struct search *s, float exponent)
{
    struct nb_trial_error e;
    s->fill(s->user, exponent, s->scale);
    int rc = nb_trial_run(s->t, s->scale, NULL, &e);
    if (rc == 0 && e.searched < s->best.searched) {
        s->best = e;
        s->exponent = exponent;
    }
    return rc;
}

int nb_trial_search(struct nb_trial *t, nb_trial_fill *fill, void *user, float *ret_scale,
                    struct nb_gain *ret)
{
    struct search s = {.t = t, .fill = fill, .user = user, .exponent = -1};
    struct nb_trial_error without = {0, 0};
    s.scale = malloc(t->n * sizeof(*s.scale));
    int rc = s.scale ? nb_trial_run(t, NULL, NULL, &without) : -ENOMEM;
    s.best = without;
    for (int i = 0; i <= 20 && rc == 0; i += 2)
        rc = try(&s, (float)i / 20);
    const float around = s.exponent;
    for (int i = -1; i <= 1 && rc == 0; i += 2)
        if (around + (float)i / 20 > 0 && around + (float)i / 20 < 1)
            rc = try(&s, around + (float)i / 20);
    if (rc == 0) {
        const bool taken = s.exponent >= 0 && s.best.held < without.held;
        *ret = (struct nb_gain){taken, taken ? s.exponent : 0, without.held,
                                taken ? s.best.held : without.held};
        if (taken)
            fill(user, s.exponent, ret_scale);
    }
    free(s.scale);
    return rc;
}

void nb_trial_centre(float *scale, uint32_t n)
{
    float least = INFINITY, most = 0;
    for (uint32_t i = 0; i < n; i++) {
        least = fminf(least, scale[i]);
        most = fmaxf(most, scale[i]);
    }
    const float by = 1 / sqrtf(least) / sqrtf(most);
    for (uint32_t i = 0; i < n; i++)
        scale[i] *= by;
}
