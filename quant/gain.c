// See gain.h.
#include "quant/gain.h"

#include <math.h>

struct nb_gain nb_gain_of(const double *before, const double *after, uint32_t n)
{
    struct nb_gain g = {0};
    double squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        g.before += before[i] / n;
        g.after += after[i] / n;
    }
    for (uint32_t i = 0; i < n; i++) {
        const double d = before[i] - after[i] - (g.before - g.after);
        squares += d * d;
    }
    g.error = n > 1 ? sqrt(squares / (n - 1.0) / n) : 0;
    g.kept = n > 1 && g.before - g.after > 2 * g.error;
    return g;
}
