// Ticks at 1, 2 and 5 times powers of ten.
#include "tools/report/scale.h"

#include <math.h>
#include <stdio.h>

#define WANTED 6 // ticks, or some more

static void add(struct scale *s, double value)
{
    if (s->n < SCALE_TICKS && value >= s->low && value <= s->high)
        s->ticks[s->n++] = value;
}

static void add_linear(struct scale *s)
{
    double rough = (s->high - s->low) / WANTED, power = pow(10, floor(log10(rough)));
    double part = rough / power, step = power * (part > 5 ? 10 : part > 2 ? 5 : part > 1 ? 2 : 1);
    double first = ceil(s->low / step);
    for (int i = 0; i < SCALE_TICKS; i++)
        add(s, (first + i) * step);
}

static void add_log(struct scale *s)
{
    static const double parts[] = {1, 2, 5};
    int low = (int)floor(log10(s->low)), high = (int)ceil(log10(s->high));
    size_t n = high - low > 6 ? 1 : 3;
    for (int power = low; power <= high; power++)
        for (size_t i = 0; i < n; i++)
            add(s, parts[i] * pow(10, power));
    if (s->n >= 3)
        return;
    s->n = 0; // a short piece of the axis looks almost linear
    add_linear(s);
}

struct scale scale_of(double low, double high, bool log)
{
    struct scale s = {.log = log};
    double room = log ? fmax(pow(high / low, 0.07), 1.02) : 0.07 * (high - low);
    if (!log && room <= 0)
        room = fmax(0.05 * fabs(high), 1e-9);
    s.low = log ? low / room : low - room;
    s.high = log ? high * room : high + room;
    if (!log && low >= 0 && s.low < 0)
        s.low = 0; // a size or a divergence has no values below
    if (log)
        add_log(&s);
    else
        add_linear(&s);
    return s;
}

double scale_at(const struct scale *s, double value)
{
    if (s->log)
        return log(value / s->low) / log(s->high / s->low);
    return (value - s->low) / (s->high - s->low);
}

const char *scale_text(double value, char *ret, size_t size)
{
    snprintf(ret, size, "%.4g", fabs(value) < 1e-12 ? 0 : value);
    return ret;
}
