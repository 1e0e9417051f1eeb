// See importance.h.
#include "quant/importance.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void nb_importance_finish(struct nb_importance *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        free(s->items[i].name);
        free(s->items[i].sums);
        free(s->items[i].counts);
    }
    free(s->items);
    *s = (struct nb_importance){0};
}

struct nb_column_stats *nb_importance_find(const struct nb_importance *s, struct nb_str name)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (strlen(s->items[i].name) == name.len && !memcmp(s->items[i].name, name.data, name.len))
            return &s->items[i];
    return NULL;
}

int nb_importance_add(struct nb_importance *s, struct nb_str name, uint32_t cols, uint32_t n)
{
    const uint64_t values = (uint64_t)cols * n;
    if (!cols || !n || cols > NB_IMPORTANCE_COLS || n > NB_IMPORTANCE_EXPERTS ||
        s->count == NB_IMPORTANCE_MATRICES || values > NB_IMPORTANCE_VALUES - s->values ||
        !name.len || memchr(name.data, 0, name.len) || nb_importance_find(s, name))
        return -EINVAL;
    struct nb_column_stats *grown = reallocarray(s->items, s->count + 1, sizeof(*s->items));
    if (!grown)
        return -ENOMEM;
    s->items = grown;
    struct nb_column_stats m = {.name = strndup(name.data, name.len),
                                .cols = cols,
                                .n = n,
                                .sums = calloc(values, sizeof(double)),
                                .counts = calloc(n, sizeof(uint64_t))};
    if (!m.name || !m.sums || !m.counts) {
        free(m.name);
        free(m.sums);
        free(m.counts);
        return -ENOMEM;
    }
    s->items[s->count++] = m;
    s->values += values;
    return 0;
}

void nb_column_stats_take(struct nb_column_stats *m, uint32_t expert, const float *x)
{
    double *sums = m->sums + (size_t)expert * m->cols;
    for (uint32_t i = 0; i < m->cols; i++)
        sums[i] += (double)x[i] * (double)x[i];
    m->counts[expert]++;
}

bool nb_column_stats_mean(const struct nb_column_stats *m, uint32_t expert, float *ret)
{
    const double *sums = m->sums + (size_t)expert * m->cols;
    if (!m->counts[expert])
        return false;
    for (uint32_t i = 0; i < m->cols; i++)
        ret[i] = (float)((double)(float)sums[i] / (double)m->counts[expert]);
    return true;
}

static void fill_weights(const struct nb_column_stats *m, float *ret)
{
    for (uint32_t e = 0; e < m->n; e++) {
        float *mean = ret + (size_t)e * m->cols;
        const bool seen = nb_column_stats_mean(m, e, mean);
        for (uint32_t i = 0; !seen && i < m->cols; i++)
            mean[i] = 1;
    }
}

int nb_importance_weights(const struct nb_importance *s, const struct nb_source_tensor *t,
                          float **ret, struct nb_error *ret_error)
{
    const uint64_t experts = t->n_dims > 2 ? nb_source_rows(t) / t->dims[1] : 1;
    const struct nb_column_stats *m = s ? nb_importance_find(s, t->name) : NULL;
    float *weights = NULL;
    if (m && (m->cols != t->dims[0] || m->n != experts))
        return nb_fail(ret_error, -EINVAL,
                       "the importance matrix is of another model: its %s has %u columns of %u "
                       "experts, the tensor %" PRIu64 " of %" PRIu64,
                       m->name, m->cols, m->n, t->dims[0], experts);
    if (m && !(weights = calloc(experts * m->cols, sizeof(*weights))))
        return nb_fail(ret_error, -ENOMEM, "no memory for a tensor's importance");
    if (m)
        fill_weights(m, weights);
    *ret = weights;
    return 0;
}

// ---- As bytes: of each matrix a head, the name, counts, sums

struct head {
    uint32_t name, cols, n, pad;
};

int nb_importance_store(const struct nb_importance *s, void **ret, size_t *ret_len)
{
    size_t len = 0;
    for (uint32_t i = 0; i < s->count; i++)
        len += sizeof(struct head) + strlen(s->items[i].name) +
               s->items[i].n * (1 + (size_t)s->items[i].cols) * 8;
    uint8_t *to = malloc(len ? len : 1);
    if (!to)
        return -ENOMEM;
    *ret = to;
    *ret_len = len;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct nb_column_stats *m = &s->items[i];
        const struct head head = {(uint32_t)strlen(m->name), m->cols, m->n, 0};
        const size_t counts = (size_t)m->n * sizeof(uint64_t), sums = counts * m->cols;
        memcpy(to, &head, sizeof(head));
        memcpy(to += sizeof(head), m->name, head.name);
        memcpy(to += head.name, m->counts, counts);
        memcpy(to += counts, m->sums, sums);
        to += sums;
    }
    return 0;
}

// One matrix: how many bytes it has, or -errno.
static int64_t restore_one(const uint8_t *from, size_t left, struct nb_importance *s)
{
    struct head head;
    if (left < sizeof(head))
        return -EINVAL;
    memcpy(&head, from, sizeof(head));
    const uint64_t counts = (uint64_t)head.n * 8, sums = counts * head.cols;
    if (head.cols > NB_IMPORTANCE_COLS || head.n > NB_IMPORTANCE_EXPERTS ||
        sizeof(head) + head.name + counts + sums > left)
        return -EINVAL;
    from += sizeof(head);
    const struct nb_str name = {(const char *)from, head.name};
    int rc = nb_importance_add(s, name, head.cols, head.n);
    if (rc < 0)
        return rc;
    struct nb_column_stats *m = &s->items[s->count - 1];
    memcpy(m->counts, from + head.name, counts);
    memcpy(m->sums, from + head.name + counts, sums);
    return (int64_t)(sizeof(head) + head.name + counts + sums);
}

int nb_importance_restore(const void *data, size_t len, struct nb_importance *ret)
{
    int64_t n = 0;
    for (size_t at = 0; at < len; at += (size_t)n) {
        n = restore_one((const uint8_t *)data + at, len - at, ret);
        if (n < 0) {
            nb_importance_finish(ret);
            return (int)n;
        }
    }
    return 0;
}
