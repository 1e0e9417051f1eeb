// See cosine.h. Sums are in doubles. What is not finite makes a result that is none.
#include "distill/cosine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

double nb_away(const float *x, const float *y, uint32_t n, float weight, float *d)
{
    double xx = 0, yy = 0, xy = 0;
    for (uint32_t i = 0; i < n; i++) {
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
        xy += (double)x[i] * (double)y[i];
    }
    const double root = sqrt(xx * yy), cosine = root != 0 ? xy / root : 0;
    const float by_y = root != 0 ? (float)(1 / root) : 0, by_x = xx != 0 ? (float)(cosine / xx) : 0;
    for (uint32_t i = 0; d && i < n; i++)
        d[i] -= weight * (by_y * y[i] - by_x * x[i]);
    return 1 - cosine;
}

static double product(const double *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void add(double *to, double by, const double *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] += by * x[i];
}

// Of length 1, or zero. Returns one over what the length was, or 0.
static double unit(const float *x, uint32_t n, double *ret)
{
    double squares = 0;
    for (uint32_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    const double by = squares != 0 ? 1 / sqrt(squares) : 0;
    for (uint32_t i = 0; i < n; i++)
        ret[i] = by * (double)x[i];
    return by;
}

struct relating {
    uint32_t n, width, other;
    double *a, *b; // [n][width], [n][other]: unit vectors
    double *pull;  // [n][width]: the gradient in a, but for a factor
    double *by;    // [n]: a is so many x
    double *sum;   // [n]
};

static void relate(const struct relating *r)
{
    const size_t width = r->width, other = r->other;
    for (uint32_t i = 0; i < r->n; i++)
        for (uint32_t j = 0; j < i; j++) {
            const double *a = r->a + i * width, *b = r->a + j * width;
            const double off =
                product(a, b, r->width) - product(r->b + i * other, r->b + j * other, r->other);
            r->sum[i] += off * off;
            r->sum[j] += off * off;
            add(r->pull + i * width, off, b, r->width);
            add(r->pull + j * width, off, a, r->width);
        }
}

// Across the unit vector: what lies along it changes no cosine.
static void pull_back(const struct relating *r, double weight, float *d)
{
    for (uint32_t i = 0; i < r->n; i++) {
        const double *a = r->a + (size_t)i * r->width;
        double *pull = r->pull + (size_t)i * r->width;
        add(pull, -product(pull, a, r->width), a, r->width);
        for (uint32_t j = 0; j < r->width; j++)
            d[(size_t)i * r->width + j] += (float)(weight * r->by[i] * pull[j]);
    }
}

int nb_relation(const struct nb_vectors *x, const struct nb_vectors *y, uint32_t n, float weight,
                float *ret, float *d)
{
    const double pairs = n > 1 ? (double)n * (n - 1) : 1;
    double *room = calloc((size_t)n * (2 * (size_t)x->width + y->width + 2) + 1, sizeof(*room));
    if (!room)
        return -ENOMEM;
    struct relating r = {.n = n, .width = x->width, .other = y->width, .a = room};
    r.b = r.a + (size_t)n * x->width;
    r.pull = r.b + (size_t)n * y->width;
    r.by = r.pull + (size_t)n * x->width;
    r.sum = r.by + n;
    for (uint32_t i = 0; i < n; i++) {
        r.by[i] = unit(x->x + (size_t)i * x->width, x->width, r.a + (size_t)i * x->width);
        unit(y->x + (size_t)i * y->width, y->width, r.b + (size_t)i * y->width);
    }
    relate(&r);
    for (uint32_t i = 0; i < n; i++)
        ret[i] = (float)(r.sum[i] / (n > 1 ? n - 1 : 1));
    if (d)
        pull_back(&r, 4 * (double)weight / pairs, d);
    free(room);
    return 0;
}
