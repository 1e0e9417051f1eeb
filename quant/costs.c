// See costs.h.
#include "quant/costs.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/encode.h"
#include "tensor/type.h"

#define SAMPLES 32                  // rows
#define CHUNK   (UINT64_C(1) << 18) // elements that are read at a time; at least one row
#define STR(s)  (int)(s).len, (s).data

static const float *importance_of(const struct nb_source_tensor *t, const float *importance,
                                  uint64_t row)
{
    return importance && t->n_dims > 2 ? importance + row / t->dims[1] * t->dims[0] : importance;
}

// Rows as floats. `bytes` is room for them as they are in the file.
static int read_rows(const struct nb_source *s, const struct nb_source_tensor *t, uint64_t first,
                     uint64_t n, void *bytes, float *ret, struct nb_error *e)
{
    const struct nb_type_info *from = nb_type_info(t->type);
    int rc = nb_source_read(s, t, first, n, bytes, e);
    if (rc == 0)
        from->dequantize(bytes, ret, n * t->dims[0] / from->block);
    return rc;
}

// The sum of w[k] x[k]^2, and that of w.
static double energy(const float *x, const float *w, uint64_t n, double *ret_weights)
{
    double sum = 0, weights = 0;
    for (uint64_t k = 0; k < n; k++) {
        const double own = w ? (double)w[k] : 1;
        sum += own * (double)x[k] * (double)x[k];
        weights += own;
    }
    *ret_weights = weights;
    return sum;
}

int nb_costs_weigh(const struct nb_source *s, const struct nb_source_tensor *t,
                   const float *importance, struct nb_sensitive *ret, struct nb_error *ret_error)
{
    const uint64_t cols = t->dims[0], step = CHUNK / cols ? CHUNK / cols : 1;
    uint8_t *bytes = malloc(step * nb_source_row_bytes(t));
    float *x = malloc(step * cols * sizeof(*x));
    int rc = bytes && x ? 0 : nb_fail(ret_error, -ENOMEM, "no memory for a part of a tensor");
    for (uint64_t row = 0, n; row < ret->rows && rc == 0; row += n) {
        n = ret->rows - row < step ? ret->rows - row : step;
        rc = read_rows(s, t, row, n, bytes, x, ret_error);
        for (uint64_t i = 0; i < n && rc == 0; i++) {
            double weights;
            const double own =
                energy(x + i * cols, importance_of(t, importance, row + i), cols, &weights);
            ret->weight[row + i] = weights > 0 ? own / weights : 0;
        }
    }
    free(bytes);
    free(x);
    return rc;
}

// ---- Errors

struct sampling {
    const struct nb_source *s;
    const struct nb_source_tensor *t;
    const float *importance;
    const uint32_t *types;
    uint32_t n, rows; // types; rows that are tried
    double *energy;   // [rows]
    double *error;    // [rows][n]
    atomic_uint next;
    atomic_int rc;
    struct nb_error *told; // by whoever sets rc
};

// A row in every type.
static int try_row(struct sampling *a, uint32_t i, uint8_t *bytes, float *x, struct nb_error *e)
{
    const uint64_t cols = a->t->dims[0], all = nb_source_rows(a->t);
    const uint64_t row = (2 * (uint64_t)i + 1) * all / (2 * (uint64_t)a->rows);
    const float *w = importance_of(a->t, a->importance, row);
    double weights;
    int rc = read_rows(a->s, a->t, row, 1, bytes, x, e);
    a->energy[i] = rc == 0 ? energy(x, w, cols, &weights) : 0;
    for (uint32_t k = 0; k < a->n && rc == 0; k++) {
        struct nb_encode how = {
            .type = a->types[k], .effort = NB_EFFORT_SEARCH, .by_size = true, .importance = w};
        double *error = &a->error[(size_t)i * a->n + k];
        if (a->t->type == a->types[k])
            continue;
        rc = nb_encode_rows(&how, x, 1, cols, bytes);
        how.by_size = false;
        if (rc == 0)
            rc = nb_encode_error(&how, x, bytes, 1, cols, error);
        else if (rc == -ERANGE)
            *error = INFINITY;
        rc = rc == -ERANGE ? 0 : rc;
        if (rc < 0)
            nb_fail(e, rc, "tensor %.*s has numbers that are not finite in row %" PRIu64,
                    STR(a->t->name), row);
    }
    return rc;
}

static void try_rows(void *arg, uint32_t thread)
{
    struct sampling *a = arg;
    struct nb_error error = {""};
    uint8_t *bytes = malloc(8 * a->t->dims[0]); // no type has as many
    float *x = malloc(a->t->dims[0] * sizeof(*x));
    int rc = bytes && x ? 0 : nb_fail(&error, -ENOMEM, "no memory for a row"), none = 0;
    (void)thread;
    for (uint32_t i; rc == 0 && (i = atomic_fetch_add(&a->next, 1)) < a->rows;)
        rc = try_row(a, i, bytes, x, &error);
    if (rc < 0 && atomic_compare_exchange_strong(&a->rc, &none, rc) && a->told)
        *a->told = error;
    free(bytes);
    free(x);
}

int nb_costs_errors(const struct nb_source *s, const struct nb_source_tensor *t,
                    const float *importance, struct nb_team *team, const uint32_t *types,
                    uint32_t n, double *ret, struct nb_error *ret_error)
{
    const uint64_t rows = nb_source_rows(t);
    struct sampling a = {.s = s,
                         .t = t,
                         .importance = importance,
                         .types = types,
                         .n = n,
                         .rows = rows < SAMPLES ? (uint32_t)rows : SAMPLES,
                         .told = ret_error};
    a.energy = calloc(a.rows, sizeof(*a.energy));
    a.error = calloc((size_t)a.rows * n + 1, sizeof(*a.error));
    int rc = a.energy && a.error ? 0 : nb_fail(ret_error, -ENOMEM, "no memory for a tensor's rows");
    if (rc == 0) {
        nb_team_run(team, try_rows, &a);
        rc = atomic_load(&a.rc);
    }
    for (uint32_t k = 0; k < n && rc == 0; k++) {
        double error = 0, all = 0;
        for (uint32_t i = 0; i < a.rows; i++) {
            error += a.error[(size_t)i * n + k];
            all += a.energy[i];
        }
        ret[k] = error > 0 ? error / all : 0;
    }
    free(a.energy);
    free(a.error);
    return rc;
}
