// See ranges.h.
#include "quant/ranges.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHIFT     18                  // leaves five bits of a float's fraction: 32 bins an octave
#define FIRST     ((127u - 32u) << 5) // the bin of 2^-32
#define MOST      65536               // matrices
#define CODES     127.0
#define SPREAD_OF 99.9 // per cent

void nb_ranges_finish(struct nb_ranges *r)
{
    for (uint32_t i = 0; i < r->count; i++)
        free(r->items[i].name);
    free(r->items);
    *r = (struct nb_ranges){0};
}

struct nb_input_range *nb_ranges_find(const struct nb_ranges *r, struct nb_str name)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (strlen(r->items[i].name) == name.len && !memcmp(r->items[i].name, name.data, name.len))
            return &r->items[i];
    return NULL;
}

struct nb_input_range *nb_ranges_of(struct nb_ranges *r, struct nb_str name)
{
    struct nb_input_range *found = nb_ranges_find(r, name);
    if (found)
        return found;
    if (r->count == MOST || !name.len || memchr(name.data, 0, name.len))
        return NULL;
    char *copy = strndup(name.data, name.len);
    void *grown = copy ? reallocarray(r->items, r->count + 1, sizeof(*r->items)) : NULL;
    if (!grown) {
        free(copy);
        return NULL;
    }
    r->items = grown;
    r->items[r->count] = (struct nb_input_range){.name = copy};
    return &r->items[r->count++];
}

void nb_input_range_take(struct nb_input_range *r, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        uint32_t bits;
        memcpy(&bits, &size, sizeof(bits));
        const uint32_t bin = bits >> SHIFT;
        r->bins[bin < FIRST ? 0 : bin - FIRST < NB_RANGE_BINS ? bin - FIRST : NB_RANGE_BINS - 1]++;
        r->most = size > r->most ? size : r->most;
    }
}

// Where bin i begins, and the one before ends.
static double edge(uint32_t i)
{
    const uint32_t bits = (i + FIRST) << SHIFT;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return i ? (double)value : 0;
}

static uint64_t count_all(const struct nb_input_range *r)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < NB_RANGE_BINS; i++)
        n += r->bins[i];
    return n;
}

static double percentile(const struct nb_input_range *r, double percent)
{
    const double wanted = percent / 100 * (double)count_all(r);
    uint64_t n = 0;
    for (uint32_t i = 0; i < NB_RANGE_BINS; i++) {
        n += r->bins[i];
        if ((double)n >= wanted)
            return edge(i + 1);
    }
    return (double)r->most;
}

// The integral from 0 to x of the squared distance to the nearest multiple of `step`.
static double rounding(double x, double step)
{
    const double n = nearbyint(x / step), left = x - n * step;
    return n * step * step * step / 12 + left * left * left / 3;
}

// The sum over all magnitudes of their squared errors, spread evenly in each bin.
static double error_of(const struct nb_input_range *r, double range)
{
    const double step = range / CODES;
    double sum = 0;
    for (uint32_t i = 0; i < NB_RANGE_BINS; i++) {
        if (!r->bins[i])
            continue;
        const double low = edge(i), high = edge(i + 1);
        const double inside = fmin(high, range), from = fmax(low, range);
        double error = low < range ? rounding(inside, step) - rounding(low, step) : 0;
        if (high > range)
            error += (pow(high - range, 3) - pow(from - range, 3)) / 3;
        sum += (double)r->bins[i] * error / (high - low);
    }
    return sum;
}

// Candidates are the bins' edges.
static double least_error(const struct nb_input_range *r)
{
    double best = (double)r->most, least = best > 0 ? error_of(r, best) : 0;
    for (uint32_t i = 1; i < NB_RANGE_BINS && edge(i) < (double)r->most; i++) {
        if (edge(i) * 4096 < (double)r->most) // who would clip so much?
            continue;
        const double error = error_of(r, edge(i));
        if (error < least) {
            least = error;
            best = edge(i);
        }
    }
    return best;
}

float nb_input_range_choose(const struct nb_input_range *r, const struct nb_activations *how)
{
    if (how->spread > 0 && (double)r->most > how->spread * percentile(r, SPREAD_OF))
        return 0;
    double range = how->range == NB_RANGE_MINMAX       ? (double)r->most
                   : how->range == NB_RANGE_PERCENTILE ? percentile(r, how->percentile)
                                                       : least_error(r);
    range = fmin(range, (double)r->most);
    return fminf(fmaxf((float)range, NB_INPUT_RANGE_LEAST), NB_INPUT_RANGE_MOST);
}

int nb_ranges_put(const struct nb_ranges *r, const struct nb_activations *how,
                  struct nb_gguf_writer *w)
{
    struct nb_str *names = calloc(r->count + 1, sizeof(*names));
    float *ranges = calloc(r->count + 1, sizeof(*ranges));
    int rc = names && ranges ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < r->count && rc == 0; i++) {
        names[i] = (struct nb_str){r->items[i].name, strlen(r->items[i].name)};
        ranges[i] = nb_input_range_choose(&r->items[i], how);
    }
    if (rc == 0)
        rc = nb_gguf_put_strs(w, NB_KEY_ACTIVATIONS_MATRICES, names, r->count);
    if (rc == 0)
        rc = nb_gguf_put_array(w, NB_KEY_ACTIVATIONS_RANGES, NB_GGUF_F32, ranges, r->count);
    free(names);
    free(ranges);
    return rc;
}

// ---- As bytes: of each matrix a head, the name, the bins that are not empty

struct head {
    uint32_t name, bins;
    float most;
    uint32_t pad;
};

struct counted {
    uint64_t bin, n;
};

static uint32_t used(const struct nb_input_range *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NB_RANGE_BINS; i++)
        n += r->bins[i] != 0;
    return n;
}

static uint8_t *store_one(const struct nb_input_range *r, uint8_t *to)
{
    const struct head head = {(uint32_t)strlen(r->name), used(r), r->most, 0};
    memcpy(to, &head, sizeof(head));
    memcpy(to += sizeof(head), r->name, head.name);
    to += head.name;
    for (uint32_t i = 0; i < NB_RANGE_BINS; i++) {
        const struct counted c = {i, r->bins[i]};
        if (!c.n)
            continue;
        memcpy(to, &c, sizeof(c));
        to += sizeof(c);
    }
    return to;
}

int nb_ranges_store(const struct nb_ranges *r, void **ret, size_t *ret_len)
{
    size_t len = 0;
    for (uint32_t i = 0; i < r->count; i++)
        len += sizeof(struct head) + strlen(r->items[i].name) +
               used(&r->items[i]) * sizeof(struct counted);
    uint8_t *to = malloc(len ? len : 1);
    if (!to)
        return -ENOMEM;
    *ret = to;
    *ret_len = len;
    for (uint32_t i = 0; i < r->count; i++)
        to = store_one(&r->items[i], to);
    return 0;
}

// One matrix: how many bytes it has, or -errno.
static int64_t restore_one(const uint8_t *from, size_t left, struct nb_ranges *r)
{
    struct head head;
    if (left < sizeof(head))
        return -EINVAL;
    memcpy(&head, from, sizeof(head));
    const size_t len = sizeof(head) + head.name + head.bins * sizeof(struct counted);
    if (head.bins > NB_RANGE_BINS || len > left)
        return -EINVAL;
    const uint32_t before = r->count;
    from += sizeof(head);
    struct nb_input_range *m = nb_ranges_of(r, (struct nb_str){(const char *)from, head.name});
    if (!m || r->count == before)
        return m ? -EINVAL : -ENOMEM;
    m->most = head.most;
    from += head.name;
    for (uint32_t i = 0; i < head.bins; i++) {
        struct counted c;
        memcpy(&c, from + i * sizeof(c), sizeof(c));
        if (c.bin >= NB_RANGE_BINS)
            return -EINVAL;
        m->bins[c.bin] = c.n;
    }
    return (int64_t)len;
}

int nb_ranges_restore(const void *data, size_t len, struct nb_ranges *ret)
{
    int64_t n = 0;
    for (size_t at = 0; at < len; at += (size_t)n) {
        n = restore_one((const uint8_t *)data + at, len - at, ret);
        if (n < 0) {
            nb_ranges_finish(ret);
            return (int)n;
        }
    }
    return 0;
}
