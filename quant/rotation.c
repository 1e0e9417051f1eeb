// See rotation.h. x is [power][odd]: the Hadamard matrix mixes its rows, the other its columns.
#include "quant/rotation.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

struct nb_rotation {
    uint32_t n, power, odd;
    double *sign; // [n]: by the root of `power`
    double *q;    // [odd][odd]
};

// About normal: a sum of uniform numbers, which needs no function of libm's.
static double draw(uint64_t seed, uint64_t at)
{
    double sum = -6;
    for (uint64_t i = 0; i < 12; i++)
        sum += (double)(nb_random(seed, at * 12 + i) >> 11) * 0x1p-53;
    return sum;
}

static double dot(const double *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

// Gram-Schmidt, each row twice: what one round leaves of the others is as small as its rounding.
static void make_orthogonal(double *q, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double *row = q + (size_t)i * n;
        for (uint32_t j = 0; j < 2 * i; j++) {
            const double *other = q + (size_t)(j % i) * n, part = dot(row, other, n);
            for (uint32_t k = 0; k < n; k++)
                row[k] -= part * other[k];
        }
        const double scale = 1 / sqrt(dot(row, row, n));
        for (uint32_t k = 0; k < n; k++)
            row[k] *= scale;
    }
}

int nb_rotation_create(uint32_t n, uint64_t seed, struct nb_rotation **ret)
{
    const uint32_t power = n & -n, odd = n ? n / power : 0;
    if (!n || odd > NB_ROTATION_ODD)
        return -ENOTSUP;
    struct nb_rotation *r = calloc(1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    *r = (struct nb_rotation){.n = n, .power = power, .odd = odd};
    r->sign = calloc(n, sizeof(*r->sign));
    r->q = calloc((size_t)odd * odd, sizeof(*r->q));
    if (!r->sign || !r->q) {
        nb_rotation_destroy(r);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++)
        r->sign[i] = (nb_random(seed, i) & 1 ? 1 : -1) / sqrt(power);
    for (uint32_t i = 0; i < odd * odd; i++)
        r->q[i] = draw(seed + 1, i);
    make_orthogonal(r->q, odd);
    *ret = r;
    return 0;
}

void nb_rotation_destroy(struct nb_rotation *r)
{
    if (!r)
        return;
    free(r->sign);
    free(r->q);
    free(r);
}

uint32_t nb_rotation_n(const struct nb_rotation *r)
{
    return r->n;
}

static void mix_rows(const struct nb_rotation *r, double *x)
{
    const size_t odd = r->odd;
    for (size_t half = odd; half < r->n; half *= 2)
        for (size_t at = 0; at < r->n; at += 2 * half)
            for (size_t i = at; i < at + half; i++) {
                const double a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
}

static void mix_columns(const struct nb_rotation *r, double *x)
{
    double sum[NB_ROTATION_ODD];
    for (uint32_t i = 0; i < r->power; i++, x += r->odd) {
        memset(sum, 0, r->odd * sizeof(*sum));
        for (uint32_t j = 0; j < r->odd; j++)
            for (uint32_t k = 0; k < r->odd; k++)
                sum[k] += x[j] * r->q[(size_t)j * r->odd + k];
        memcpy(x, sum, r->odd * sizeof(*x));
    }
}

void nb_rotation_apply(const struct nb_rotation *r, double *x)
{
    for (uint32_t i = 0; i < r->n; i++)
        x[i] *= r->sign[i];
    mix_rows(r, x);
    if (r->odd > 1)
        mix_columns(r, x);
}
