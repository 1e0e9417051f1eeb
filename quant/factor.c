// The Cholesky factor of a damped Hessian, blocked, in fp64.
#include "quant/factor.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fit.h"

#define PANEL  64
#define LADDER 8 // times that damping is raised

struct work {
    const struct nb_feed *feed;
    struct nb_team *team;
    double *l; // [n][n]: the lower factor of the reversed matrix
    uint32_t n, first, width;
    atomic_uint next;
};

static double *at(const struct work *w, uint32_t row, uint32_t col)
{
    return w->l + (size_t)row * w->n + col;
}

// Rows [row, row + 4) of the panel take off what the columns before it explain.
static void reduce(const struct work *w, uint32_t row)
{
    for (uint32_t j = w->first; j < w->first + w->width; j += 4)
        w->feed->subtract(at(w, row, j), at(w, row, 0), at(w, j, 0), w->n, w->first);
}

static double dot(const double *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t k = 0; k < n; k++)
        sum += a[k] * b[k];
    return sum;
}

// The panel's own triangle; false when the matrix is not positive.
static bool factor_triangle(const struct work *w)
{
    for (uint32_t row = w->first; row < w->first + w->width; row += 4)
        reduce(w, row);
    for (uint32_t i = w->first; i < w->first + w->width; i++)
        for (uint32_t j = w->first; j <= i; j++) {
            double s = *at(w, i, j) - dot(at(w, i, w->first), at(w, j, w->first), j - w->first);
            if (i == j && !(s > 0 && s < INFINITY))
                return false;
            *at(w, i, j) = i == j ? sqrt(s) : s / *at(w, j, j);
        }
    return true;
}

static void factor_rows(void *arg, uint32_t thread)
{
    struct work *w = arg;
    uint32_t below = w->first + w->width, row;
    while ((row = below + 4 * atomic_fetch_add(&w->next, 1)) < w->n) {
        reduce(w, row);
        for (uint32_t i = row; i < row + 4; i++)
            for (uint32_t j = w->first; j < below; j++)
                *at(w, i, j) =
                    (*at(w, i, j) - dot(at(w, i, w->first), at(w, j, w->first), j - w->first)) /
                    *at(w, j, j);
    }
}

static bool cholesky(struct work *w)
{
    for (w->first = 0; w->first < w->n; w->first += PANEL) {
        w->width = w->n - w->first < PANEL ? w->n - w->first : PANEL;
        if (!factor_triangle(w))
            return false;
        atomic_store(&w->next, 0);
        nb_team_run(w->team, factor_rows, w);
    }
    return true;
}

void nb_factor_destroy(struct nb_factor *f)
{
    if (!f)
        return;
    free(f->h);
    free(f->diagonal);
    free(f->feedback);
    free(f->root);
    free(f->order);
    free(f);
}

static struct nb_factor *allocate(uint32_t cols)
{
    struct nb_factor *f = calloc(1, sizeof(*f));
    size_t square = (size_t)cols * cols, bytes = square * sizeof(float);
    if (!f || !bytes) {
        free(f);
        return NULL;
    }
    f->cols = cols;
    f->h = malloc(bytes);
    f->diagonal = malloc(cols * sizeof(float));
    f->feedback = malloc(bytes);
    f->root = malloc(bytes);
    f->order = malloc(cols * sizeof(*f->order));
    if (f->h && f->diagonal && f->feedback && f->root && f->order)
        return f;
    nb_factor_destroy(f);
    return NULL;
}

struct key {
    double size;
    uint32_t col;
};

static int larger_first(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->size != y->size)
        return x->size > y->size ? -1 : 1;
    return x->col < y->col ? -1 : 1;
}

static int order_columns(struct nb_factor *f, const double *hessian, bool by_size)
{
    struct key *keys = malloc(f->cols * sizeof(*keys));
    if (!keys)
        return -ENOMEM;
    for (uint32_t c = 0; c < f->cols; c++)
        keys[c] = (struct key){hessian[(size_t)c * f->cols + c], c};
    if (by_size)
        qsort(keys, f->cols, sizeof(*keys), larger_first);
    for (uint32_t c = 0; c < f->cols; c++)
        f->order[c] = keys[c].col;
    free(keys);
    return 0;
}

// The mean of the diagonal's elements that are not 0; 1 for a matrix of zeros.
static double mean_diagonal(struct nb_factor *f, const double *hessian)
{
    double sum = 0;
    for (uint32_t c = 0; c < f->cols; c++) {
        f->diagonal[c] = (float)hessian[(size_t)c * f->cols + c];
        sum += hessian[(size_t)c * f->cols + c];
        f->dead += hessian[(size_t)c * f->cols + c] == 0;
    }
    return f->dead < f->cols ? sum / (double)(f->cols - f->dead) : 1;
}

static double damped(const struct nb_factor *f, const double *hessian, double mean, uint32_t i,
                     uint32_t j)
{
    double h = hessian[(size_t)(i > j ? i : j) * f->cols + (i > j ? j : i)];
    return i != j ? h : (h == 0 ? mean : h) + (double)f->ridge;
}

// Everything in reverse: the lower factor of the reversed matrix is the upper factor R of H = R
// R^T.
static void reverse_in(const struct nb_factor *f, const double *hessian, double mean, double *l)
{
    for (uint32_t i = 0; i < f->cols; i++)
        for (uint32_t j = 0; j < f->cols; j++)
            l[(size_t)i * f->cols + j] =
                damped(f, hessian, mean, f->order[f->cols - 1 - i], f->order[f->cols - 1 - j]);
}

static void read_out(struct nb_factor *f, const double *hessian, double mean, const double *l)
{
    const uint32_t n = f->cols;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++) {
            double r = j >= i ? l[(size_t)(n - 1 - i) * n + (n - 1 - j)] : 0;
            f->root[(size_t)i * n + j] = (float)r;
            f->feedback[(size_t)j * n + i] =
                j > i ? (float)(r / l[(size_t)(n - 1 - j) * n + (n - 1 - j)]) : 0;
            f->h[(size_t)i * n + j] = (float)damped(f, hessian, mean, i, j);
        }
}

static int factor_damped(struct nb_team *team, struct nb_factor *f, const double *hessian,
                         float damping)
{
    double mean = mean_diagonal(f, hessian);
    double *l = malloc((size_t)f->cols * f->cols * sizeof(*l));
    if (!l)
        return -ENOMEM;
    struct work w = {.feed = nb_fit_best()->feed, .team = team, .l = l, .n = f->cols};
    int rc = -EDOM;
    f->damping = damping;
    for (unsigned i = 0; rc < 0 && i < LADDER; i++, f->damping = fmaxf(f->damping * 10, 1e-4f)) {
        f->ridge = (float)(mean * (double)f->damping);
        reverse_in(f, hessian, mean, l);
        if (cholesky(&w)) {
            rc = 0;
            break;
        }
    }
    if (rc == 0)
        read_out(f, hessian, mean, l);
    free(l);
    return rc;
}

int nb_factor_create(struct nb_team *team, const double *hessian, uint32_t cols,
                     const struct nb_factor_options *options, struct nb_factor **ret)
{
    if (!cols || cols % 16 || cols > NB_MAX_COLS || !(options->damping >= 0))
        return -EINVAL;
    for (size_t i = 0; i < (size_t)cols * cols; i++)
        if (!isfinite(hessian[i]))
            return -EDOM;
    struct nb_factor *f = allocate(cols);
    if (!f)
        return -ENOMEM;
    int rc = order_columns(f, hessian, options->by_size);
    if (rc == 0)
        rc = factor_damped(team, f, hessian, options->damping);
    if (rc == 0)
        *ret = f;
    else
        nb_factor_destroy(f);
    return rc;
}

float nb_factor_damping(const struct nb_factor *f)
{
    return f->damping;
}

uint32_t nb_factor_dead(const struct nb_factor *f)
{
    return f->dead;
}
