// See fold_inputs.h.
#include "quant/fold_inputs.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_room.h"

struct seen {
    struct nb_fold_rows_seen rows;
    const struct nb_matrix *by; // the first reader
    double *sums, *squares;     // [cols]: of |x|, of x^2
    uint64_t total;
};

struct nb_fold_inputs {
    const struct nb_fold *f;
    struct seen *items;
    uint32_t n;
    int rc;
};

int nb_fold_inputs_create(const struct nb_fold *f, struct nb_fold_inputs **ret)
{
    struct nb_fold_inputs *in = calloc(1, sizeof(*in));
    if (!in)
        return -ENOMEM;
    in->f = f;
    *ret = in;
    return 0;
}

static void finish(struct seen *s)
{
    free(s->rows.x);
    free(s->rows.mean);
    free(s->sums);
}

void nb_fold_inputs_clear(struct nb_fold_inputs *in)
{
    for (uint32_t i = 0; i < in->n; i++)
        finish(&in->items[i]);
    in->n = 0;
}

void nb_fold_inputs_destroy(struct nb_fold_inputs *in)
{
    if (!in)
        return;
    nb_fold_inputs_clear(in);
    free(in->items);
    free(in);
}

int nb_fold_inputs_failed(const struct nb_fold_inputs *in)
{
    return in->rc;
}

// ---- A joint's rows

static struct seen *find(const struct nb_fold_inputs *in, uint32_t joint, uint32_t expert)
{
    for (uint32_t i = 0; i < in->n; i++)
        if (in->items[i].rows.joint == joint && in->items[i].rows.expert == expert)
            return &in->items[i];
    return NULL;
}

static struct seen *add(struct nb_fold_inputs *in, uint32_t joint, uint32_t expert,
                        const struct nb_grad_tensor *w)
{
    const uint32_t channels = in->f->joints[joint].n;
    struct seen *grown = reallocarray(in->items, in->n + 1, sizeof(*grown));
    if (!grown) {
        in->rc = -ENOMEM;
        return NULL;
    }
    in->items = grown;
    struct seen s = {.rows = {.joint = joint, .expert = expert, .cols = w->cols}, .by = w->matrix};
    s.rows.x = malloc(NB_FOLD_INPUT_ROWS * (size_t)w->cols * sizeof(*s.rows.x));
    s.rows.mean = calloc(w->cols + 2 * (size_t)channels, sizeof(*s.rows.mean));
    s.sums = calloc(2 * (size_t)w->cols, sizeof(*s.sums));
    if (!s.rows.x || !s.rows.mean || !s.sums) {
        finish(&s);
        in->rc = -ENOMEM;
        return NULL;
    }
    s.rows.size = s.rows.mean + w->cols;
    s.rows.most = s.rows.size + channels;
    s.squares = s.sums + w->cols;
    in->items[in->n] = s;
    return &in->items[in->n++];
}

static void sum(const struct nb_joint *j, struct seen *s, const float *x)
{
    for (uint32_t i = 0; i < s->rows.cols; i++) {
        const uint32_t channel = nb_joint_channel(j, i);
        s->sums[i] += fabs((double)x[i]);
        s->squares[i] += (double)x[i] * (double)x[i];
        s->rows.most[channel] = fmaxf(s->rows.most[channel], fabsf(x[i]));
    }
    s->total++;
}

static void keep(struct nb_fold_inputs *in, uint32_t joint, uint32_t expert,
                 const struct nb_grad_tensor *w, const float *x, size_t stride, uint32_t n)
{
    struct seen *s = find(in, joint, expert);
    if (!s)
        s = add(in, joint, expert, w);
    if (!s || s->by != w->matrix)
        return;
    const uint32_t room = NB_FOLD_INPUT_ROWS - s->rows.n, some = n < room ? n : room;
    for (uint32_t i = 0; i < some; i++)
        memcpy(s->rows.x + (size_t)s->rows.n++ * w->cols, x + (uint64_t)i * n / some * stride,
               w->cols * sizeof(*x));
    for (uint32_t i = 0; i < n; i++)
        sum(&in->f->joints[joint], s, x + i * stride);
}

const struct nb_fold_rows_seen *nb_fold_inputs_find(struct nb_fold_inputs *in, uint32_t joint,
                                                    uint32_t expert)
{
    struct seen *s = find(in, joint, expert);
    if (!s || !s->total)
        return NULL;
    const struct nb_joint *j = &in->f->joints[joint];
    const double by = 1 / (double)s->total;
    memset(s->rows.size, 0, j->n * sizeof(*s->rows.size));
    for (uint32_t i = 0; i < s->rows.cols; i++) {
        s->rows.mean[i] = (float)(s->squares[i] * by);
        s->rows.size[nb_joint_channel(j, i)] += (float)(s->sums[i] * by / j->repeats);
    }
    return &s->rows;
}

void nb_fold_inputs_see(void *user, const struct nb_grad_tensor *w, uint32_t expert, const float *x,
                        size_t stride, uint32_t n)
{
    struct nb_fold_inputs *in = user;
    const struct nb_fold_tensor *t = nb_fold_find(in->f, w->name);
    const uint32_t joint = t ? t->columns[0] : NB_FOLD_NONE;
    if (joint == NB_FOLD_NONE || in->rc < 0 ||
        !(nb_fold_takes_scale(in->f, joint) || nb_fold_takes_order(in->f, joint)))
        return;
    keep(in, joint, in->f->joints[joint].experts > 1 ? expert : 0, w, x, stride, n);
}
