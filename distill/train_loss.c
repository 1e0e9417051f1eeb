// What a step lowers: of logits, of hidden states, of attention, of texts' vectors; and its
// gradient in x_L.
#include <string.h>

#include "distill/cosine.h"
#include "distill/relations.h"
#include "distill/train_room.h"
#include "grad/gemm.h"
#include "grad/loss.h"

static uint32_t slice_at(const struct nb_train *t, uint32_t at)
{
    return t->n_rows - at < NB_TRAIN_SLICE ? t->n_rows - at : NB_TRAIN_SLICE;
}

// --- Logits

// Of lessons, in the teacher's place.
static void follow_lessons(struct nb_train *t, const struct nb_distil_loss *how, uint32_t at,
                           uint32_t n, bool back)
{
    const uint32_t kept = nb_lessons_header(t->options.lessons)->kept;
    struct nb_kept reference[NB_TRAIN_SLICE];
    for (uint32_t i = 0; i < n; i++) {
        const struct nb_lesson *sums = &t->sums[at + i];
        reference[i] = (struct nb_kept){t->kept + (size_t)(at + i) * kept, kept,
                                        back ? sums->warm_log_sum : sums->log_sum};
    }
    nb_grad_distil_kept(t->grad, n, how, reference, t->label + at, t->logits, t->soft + at,
                        t->hard + at);
}

// Both heads of rows [at, at + n), and their losses.
static int of_slice(struct nb_train *t, const struct nb_distil_loss *how, uint32_t at, uint32_t n,
                    bool back)
{
    const size_t row = t->plan->hp.embedding;
    const float *x = nb_train_rows(t, t->plan->n_layers) + at * row;
    float *reference = t->teacher ? t->teacher_logits : NULL;
    int rc = 0;
    if (reference)
        rc = nb_grad_head(t->teacher, n, t->taught + (size_t)at * t->teacher_plan->hp.embedding,
                          NULL, reference);
    if (rc == 0)
        rc = nb_grad_head(t->grad, n, x, NULL, t->logits);
    if (rc < 0)
        return rc;
    if (t->options.lessons)
        follow_lessons(t, how, at, n, back);
    else
        nb_grad_distil(t->grad, n, how, reference, t->label + at, t->logits, t->soft + at,
                       t->hard + at);
    return back ? nb_grad_head_back(t->grad, n, x, NULL, t->logits, t->d + at * row) : 0;
}

// Over which losses of tokens are means.
static float tokens_of(const struct nb_train *t)
{
    return t->of_step.counted ? (float)t->of_step.counted : 1;
}

static int of_logits(struct nb_train *t, bool back)
{
    const struct nb_train_options *o = &t->options;
    const uint32_t labels = t->of_step.labels;
    const struct nb_distil_loss how = {.temperature = back ? o->temperature : 1,
                                       .soft = (1 - o->hard) / tokens_of(t),
                                       .hard = o->hard / (labels ? (float)labels : 1),
                                       .mix = back ? o->mix : 0};
    int rc = 0;
    for (uint32_t at = 0; at < t->n_rows && rc == 0; at += NB_TRAIN_SLICE)
        rc = of_slice(t, &how, at, slice_at(t, at), back);
    return rc;
}

// --- Hidden states

static void compare(struct nb_train *t, const float *x, uint32_t width, float weight, float *d)
{
    for (uint32_t i = 0; i < t->n_rows; i++)
        t->hidden[i] = t->label[i] == NB_LEFT_OUT
                           ? 0
                           : (float)nb_away(x + (size_t)i * width, t->taught + (size_t)i * width,
                                            width, weight, d ? d + (size_t)i * width : d);
}

// P x beside the teacher's: gradients go to x and to P.
static void compare_projected(struct nb_train *t, float weight, bool back)
{
    const uint32_t from = t->projection->cols, to = t->projection->rows, rows = t->n_rows;
    const float *x = nb_train_rows(t, t->plan->n_layers), *p = t->projection->x;
    float *d = t->projected + (size_t)t->rows * to;
    memset(d, 0, (size_t)rows * to * sizeof(*d));
    nb_sgemm(t->team, false, true, rows, to, from, x, from, p, from, 0, t->projected, to);
    compare(t, t->projected, to, weight, back ? d : NULL);
    if (!back)
        return;
    nb_sgemm(t->team, false, false, rows, from, to, d, to, p, from, 1, t->d, from);
    nb_sgemm(t->team, true, false, to, from, rows, d, to, x, from, 1, t->projection->gradient,
             from);
}

static void of_hidden(struct nb_train *t, bool back)
{
    const float weight = t->options.hidden / tokens_of(t);
    if (t->projection)
        compare_projected(t, weight, back);
    else
        compare(t, nb_train_rows(t, t->plan->n_layers), t->plan->hp.embedding, weight,
                back ? t->d : NULL);
}

// --- Relations in the last layers

static uint32_t common(uint32_t a, uint32_t b)
{
    return b ? common(b, a % b) : a;
}

// In as many heads as both have: those of queries, or of keys and values.
static void of_attention(struct nb_train *t, bool back)
{
    const struct nb_hparams *own = &t->plan->hp, *other = &t->teacher_plan->hp;
    memset(t->attention, 0, t->n_rows * sizeof(*t->attention));
    for (uint32_t of = 0; of < 3; of++) {
        const uint32_t heads =
            of ? common(own->n_kv_heads, other->n_kv_heads) : common(own->n_heads, other->n_heads);
        const struct nb_relations r = {.heads = heads,
                                       .width = nb_train_attended(own, of),
                                       .taught_width = nb_train_attended(other, of),
                                       .causal = own->causal,
                                       .weight = t->options.attention / tokens_of(t)};
        float *d = back ? t->d_attended[of] : NULL;
        if (d)
            memset(d, 0, (size_t)t->n_rows * r.width * sizeof(*d));
        for (uint32_t i = 0, at = 0; i < t->n_windows; at = t->end[i++])
            nb_relations(&r, t->team, t->end[i] - at,
                         t->attended_teacher[of] + (size_t)at * r.taught_width,
                         t->attended[of] + (size_t)at * r.width, t->label + at,
                         d ? d + (size_t)at * r.width : NULL, t->attention + at, t->relating);
    }
}

// --- Vectors

// The rows of window i of which its vector is the mean: [*ret_first, the result).
static uint32_t pooled(const struct nb_train *t, enum nb_pooling how, uint32_t i,
                       uint32_t *ret_first)
{
    const uint32_t first = i ? t->end[i - 1] : 0, end = t->end[i];
    *ret_first = how == NB_POOLING_LAST ? end - 1 : first;
    return how == NB_POOLING_CLS ? first + 1 : end;
}

// rows: [n_rows][width]; ret: [n_windows][width].
static void pool(const struct nb_train *t, const struct nb_hparams *hp, const float *rows,
                 float *ret)
{
    const uint32_t width = hp->embedding;
    for (uint32_t i = 0; i < t->n_windows; i++, ret += width) {
        uint32_t first;
        const uint32_t end = pooled(t, hp->pooling, i, &first);
        memset(ret, 0, width * sizeof(*ret));
        for (uint32_t row = first; row < end; row++)
            for (uint32_t j = 0; j < width; j++)
                ret[j] += rows[(size_t)row * width + j];
        for (uint32_t j = 0; j < width; j++)
            ret[j] /= (float)(end - first);
    }
}

// ret: [n][width]: of rows [at, at + n), the gradient that each has of its window's vector.
static void spread(const struct nb_train *t, uint32_t at, uint32_t n, float *ret)
{
    const uint32_t width = t->plan->hp.embedding;
    memset(ret, 0, (size_t)n * width * sizeof(*ret));
    for (uint32_t i = 0; i < t->n_windows; i++) {
        uint32_t first;
        const uint32_t end = pooled(t, t->plan->hp.pooling, i, &first);
        const float share = 1 / (float)(end - first), *d = t->d_vector + (size_t)i * width;
        for (uint32_t row = first < at ? at : first; row < end && row < at + n; row++)
            for (uint32_t j = 0; j < width; j++)
                ret[(size_t)(row - at) * width + j] = share * d[j];
    }
}

// Of texts, from x_L. made: [n_rows][embedding], of no use afterwards.
static int vectors_of(struct nb_train *t, struct nb_grad *g, const struct nb_hparams *hp,
                      const float *x, float *made, float *ret)
{
    int rc = 0;
    for (uint32_t at = 0; at < t->n_rows && rc == 0; at += NB_TRAIN_SLICE)
        rc = nb_grad_head(g, slice_at(t, at), x + (size_t)at * hp->embedding,
                          made + (size_t)at * hp->embedding, NULL);
    if (rc == 0)
        pool(t, hp, made, ret);
    return rc;
}

static int compare_vectors(struct nb_train *t, bool back)
{
    const struct nb_vectors x = {t->vector, t->plan->hp.embedding};
    const struct nb_vectors y = {t->teacher_vector, t->teacher_plan->hp.embedding};
    const float parts = (float)t->options.accumulate, texts = parts * (float)t->n_windows;
    float *d = back ? t->d_vector : NULL;
    memset(t->d_vector, 0, (size_t)t->n_windows * x.width * sizeof(*t->d_vector));
    for (uint32_t i = 0; i < t->n_windows && x.width == y.width; i++) {
        const size_t at = (size_t)i * x.width;
        t->cosine[i] =
            (float)nb_away(x.x + at, y.x + at, x.width, t->options.cosine / texts, d ? d + at : d);
    }
    return nb_relation(&x, &y, t->n_windows, t->options.relation / parts, t->relation, d);
}

static int of_vectors(struct nb_train *t, bool back)
{
    const struct nb_hparams *own = &t->plan->hp, *other = &t->teacher_plan->hp;
    const float *x = nb_train_rows(t, t->plan->n_layers);
    int rc = vectors_of(t, t->teacher, other, t->taught,
                        t->taught + (size_t)t->rows * other->embedding, t->teacher_vector);
    if (rc == 0)
        rc = vectors_of(t, t->grad, own, x, t->d, t->vector);
    if (rc == 0)
        rc = compare_vectors(t, back);
    for (uint32_t at = 0; at < t->n_rows && rc == 0 && back; at += NB_TRAIN_SLICE) {
        spread(t, at, slice_at(t, at), t->d_slice);
        rc = nb_grad_head_back(t->grad, slice_at(t, at), x + (size_t)at * own->embedding,
                               t->d_slice, NULL, t->d + (size_t)at * own->embedding);
    }
    return rc;
}

// --- All of them

int nb_train_losses(struct nb_train *t, bool back)
{
    int rc = t->vectors ? of_vectors(t, back) : of_logits(t, back);
    if (rc == 0 && t->options.hidden > 0)
        of_hidden(t, back);
    if (rc == 0 && t->options.attention > 0)
        of_attention(t, back);
    return rc;
}

struct nb_train_loss nb_train_mean(const struct nb_train *t, uint32_t first, uint32_t n)
{
    const uint32_t from = first ? t->end[first - 1] : 0, to = t->end[first + n - 1];
    struct nb_train_loss sum = {0};
    uint32_t labels = 0, counted = 0;
    for (uint32_t i = from; i < to; i++) {
        labels += t->label[i] >= 0;
        counted += t->label[i] != NB_LEFT_OUT;
        sum.hard += (double)t->hard[i];
        sum.soft += (double)t->soft[i];
        sum.hidden += (double)t->hidden[i];
        sum.attention += (double)t->attention[i];
    }
    for (uint32_t i = first; i < first + n; i++) {
        sum.cosine += (double)t->cosine[i] / n;
        sum.relation += (double)t->relation[i] / n;
    }
    sum.hard /= labels ? labels : 1;
    sum.soft /= counted ? counted : 1;
    sum.hidden /= counted ? counted : 1;
    sum.attention /= counted ? counted : 1;
    return sum;
}
