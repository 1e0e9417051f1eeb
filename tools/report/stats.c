// Means, shares and their intervals.
#include "tools/report/stats.h"

#include <math.h>
#include <stdlib.h>

#define Z 1.959963984540054 // of a normal distribution at 97.5 %

static const struct stats_interval none = {NAN, NAN};

double stats_mean(const double *values, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return sum / (double)n;
}

double stats_error(const double *values, size_t n)
{
    double mean = stats_mean(values, n), squares = 0;
    if (n < 2)
        return NAN;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - mean) * (values[i] - mean);
    return sqrt(squares / (double)(n - 1) / (double)n);
}

struct stats_interval stats_of_mean(const double *values, size_t n)
{
    if (n < 2)
        return none;
    double mean = stats_mean(values, n);
    double half = stats_t_quantile(0.975, (double)(n - 1)) * stats_error(values, n);
    return (struct stats_interval){mean - half, mean + half};
}

struct stats_interval stats_cut(struct stats_interval i, double least, double most)
{
    if (isnan(i.low))
        return none;
    return (struct stats_interval){fmin(fmax(i.low, least), most), fmin(fmax(i.high, least), most)};
}

// The continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method.
static double beta_fraction(double a, double b, double x)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1), value;
    d = 1 / (fabs(d) < tiny ? tiny : d);
    value = d;
    for (int m = 1; m < 10000; m++) {
        for (int odd = 0; odd < 2; odd++) {
            double at = a + 2 * m + odd;
            double term = odd ? -(a + m) * (a + b + m) * x / ((at - 1) * at)
                              : m * (b - m) * x / ((at - 1) * at);
            d = 1 + term * d;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = 1 + term / c;
            c = fabs(c) < tiny ? tiny : c;
            value *= c * d;
        }
        if (fabs(c * d - 1) < 1e-15)
            break;
    }
    return value;
}

// The regularised incomplete beta function I_x(a, b).
static double beta(double a, double b, double x)
{
    if (x <= 0 || x >= 1)
        return x <= 0 ? 0 : 1;
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    // The fraction converges fast on this side of the mean; the other follows by symmetry.
    if (x < (a + 1) / (a + b + 2))
        return front * beta_fraction(a, b, x) / a;
    return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

double stats_t_quantile(double p, double df)
{
    double low = 0, high = 1e6;
    for (int i = 0; i < 200; i++) {
        double t = (low + high) / 2;
        if (1 - 0.5 * beta(df / 2, 0.5, df / (df + t * t)) < p)
            low = t;
        else
            high = t;
    }
    return (low + high) / 2;
}

struct stats_interval stats_wilson(size_t k, size_t n)
{
    if (!n)
        return none;
    double total = (double)n, share = (double)k / total, zz = Z * Z;
    double middle = (share + zz / (2 * total)) / (1 + zz / total);
    double half =
        Z / (1 + zz / total) * sqrt(share * (1 - share) / total + zz / (4 * total * total));
    return (struct stats_interval){fmax(middle - half, 0), fmin(middle + half, 1)};
}

struct stats_interval stats_of_paired(size_t gained, size_t lost, size_t n)
{
    if (!n)
        return none;
    double b = (double)gained + 0.5, c = (double)lost + 0.5, total = (double)n + 2;
    double middle = (b - c) / total;
    double half = Z / total * sqrt(b + c - (b - c) * (b - c) / total);
    return (struct stats_interval){fmax(middle - half, -1), fmin(middle + half, 1)};
}

double stats_mcnemar(size_t gained, size_t lost)
{
    size_t n = gained + lost, fewer = gained < lost ? gained : lost;
    // At most `fewer` of n fair coins: I_0.5(n - fewer, fewer + 1).
    return n ? fmin(1, 2 * beta((double)(n - fewer), (double)fewer + 1, 0.5)) : 1;
}
