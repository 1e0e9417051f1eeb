// See cosine.h.
#include "distill/cosine.h"

#include <math.h>

double nb_away(const float *x, const float *y, uint32_t n, float weight, float *d)
{
    double xx = 0, yy = 0, xy = 0;
    for (uint32_t i = 0; i < n; i++) {
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
        xy += (double)x[i] * (double)y[i];
    }
    const double root = sqrt(xx * yy), cosine = root > 0 ? xy / root : 0;
    const float by_y = root > 0 ? (float)(1 / root) : 0, by_x = xx > 0 ? (float)(cosine / xx) : 0;
    for (uint32_t i = 0; d && i < n; i++)
        d[i] -= weight * (by_y * y[i] - by_x * x[i]);
    return 1 - cosine;
}
