// See fold_search.h. Memory: the float engine's, a layer's matrices as floats once more, and some
// rows of each joint's inputs.
#include "quant/fold_search.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/awq.h"
#include "quant/fold_inputs.h"
#include "quant/permute.h"
#include "quant/rotation.h"
#include "quant/smooth.h"

#define HEAD_ROWS   32  // of a slice of the head's
#define READER_ROWS 128 // of each reader that are encoded; of more, that many, evenly
#define READERS     16

struct searching {
    struct nb_fold *f;
    const struct nb_fold_search *how;
    struct nb_fold_inputs *inputs;
    const struct nb_joint *joints;
    uint32_t n_joints, n_rows; // of the batch
    struct nb_error *error;
};

// ---- A joint's readers

// Whole, as the fold has them so far: [experts][rows][cols] each.
struct matrices {
    const struct nb_grad_tensor *tensor[READERS];
    float *w[READERS];
    uint32_t n;
};

static void finish_matrices(struct matrices *m)
{
    for (uint32_t i = 0; i < m->n; i++)
        free(m->w[i]);
}

static int read_matrix(struct searching *s, const struct nb_grad_tensor *t, struct matrices *m)
{
    const uint64_t all = (uint64_t)t->experts * t->rows * t->cols;
    float *w = m->n < READERS ? malloc(all * sizeof(*w)) : NULL;
    if (!w)
        return -ENOMEM;
    m->tensor[m->n] = t;
    m->w[m->n++] = w;
    nb_grad_dequantize(s->how->grad, t, w);
    return nb_fold_tensor(s->f, s->how->team, t->name, 0, all, w);
}

static int read_matrices(struct searching *s, uint32_t joint, struct matrices *m)
{
    uint32_t n;
    int rc = 0;
    const struct nb_grad_tensor *t = nb_grad_tensors(s->how->grad, &n);
    for (uint32_t i = 0; i < n && rc == 0; i++)
        if (t[i].matrix && nb_fold_reads(s->f, t[i].name, joint))
            rc = read_matrix(s, &t[i], m);
    return rc;
}

// Some rows of each.
struct reading {
    struct nb_trial_reader reader[READERS];
    float *w;
    uint32_t n, cols;
};

// Evenly from all rows of a matrix, or, of experts with channels of their own, from one expert's.
static int take_rows(struct searching *s, const struct matrices *m, const struct nb_joint *j,
                     uint32_t expert, struct reading *ret)
{
    const uint32_t cols = m->n ? m->tensor[0]->cols : 1;
    *ret = (struct reading){.cols = cols};
    ret->w = malloc((size_t)READERS * READER_ROWS * cols * sizeof(*ret->w));
    if (!ret->w)
        return -ENOMEM;
    for (uint32_t i = 0; i < m->n; i++) {
        const struct nb_grad_tensor *t = m->tensor[i];
        const bool own = j->experts > 1;
        const uint64_t rows = own ? t->rows : (uint64_t)t->rows * t->experts;
        const float *from = m->w[i] + (own ? (uint64_t)expert * t->rows * cols : 0);
        const uint32_t n = rows < READER_ROWS ? (uint32_t)rows : READER_ROWS;
        float *to = ret->w + (size_t)i * READER_ROWS * cols;
        for (uint32_t k = 0; k < n; k++)
            memcpy(to + (size_t)k * cols, from + k * rows / n * cols, cols * sizeof(*to));
        ret->reader[ret->n++] =
            (struct nb_trial_reader){to, n, s->how->type_of(s->how->user, t->name)};
    }
    return 0;
}

// Of each channel, [n]: the largest |w|, and the root of the mean of w^2, over all readers.
static void measure_weights(const struct reading *r, const struct nb_joint *j, float *ret_most,
                            float *ret_size)
{
    for (uint32_t i = 0; i < j->n; i++)
        ret_most[i] = ret_size[i] = 0;
    uint64_t n = 0;
    for (uint32_t k = 0; k < r->n; n += r->reader[k++].rows)
        for (uint32_t row = 0; row < r->reader[k].rows; row++)
            for (uint32_t c = 0; c < r->cols; c++) {
                const float w = r->reader[k].w[(size_t)row * r->cols + c];
                const uint32_t i = nb_joint_channel(j, c);
                ret_most[i] = fmaxf(ret_most[i], fabsf(w));
                ret_size[i] += w * w;
            }
    for (uint32_t i = 0; i < j->n; i++)
        ret_size[i] = sqrtf(ret_size[i] / (float)(n * j->repeats));
}

// ---- A joint

struct channels {
    float *scale, *most_w, *size_w, *size_x;
    uint32_t *order;
};

static int make_channels(const struct nb_joint *j, struct channels *c)
{
    const size_t n = j->n;
    c->scale = calloc(4 * n, sizeof(*c->scale));
    c->order = calloc(n, sizeof(*c->order));
    if (!c->scale || !c->order)
        return -ENOMEM;
    c->most_w = c->scale + n;
    c->size_w = c->most_w + n;
    c->size_x = c->size_w + n;
    return 0;
}

static int search_scale(struct searching *s, uint32_t joint, uint32_t expert, struct nb_trial *t,
                        const struct nb_fold_rows_seen *x, struct channels *c, struct nb_gain *ret)
{
    const struct nb_joint *j = &s->joints[joint];
    int rc;
    if (s->how->methods & NB_FOLD_SMOOTH)
        rc = nb_smooth_search(t, x->most, c->most_w, j->n, c->scale, ret);
    else
        rc = nb_awq_search(t, x->size, j->n, c->scale, ret);
    return rc == 0 && ret->taken ? nb_fold_scale(s->f, joint, expert, c->scale) : rc;
}

static int search_order(struct searching *s, uint32_t joint, uint32_t expert, struct nb_trial *t,
                        const struct nb_fold_rows_seen *x, bool scaled, struct channels *c,
                        struct nb_gain *ret)
{
    const struct nb_joint *j = &s->joints[joint];
    for (uint32_t i = 0; i < j->n; i++) {
        const float by = scaled ? c->scale[i] : 1;
        c->size_w[i] *= by;
        c->size_x[i] = sqrtf(x->mean[i]) / by;
    }
    int rc =
        nb_permute_search(t, scaled ? c->scale : NULL, c->size_w, c->size_x, j->n, c->order, ret);
    return rc == 0 && ret->taken ? nb_fold_order(s->f, joint, expert, c->order) : rc;
}

static void add_gain(struct nb_joint_gain *sum, const struct nb_gain *g, double before)
{
    sum->searched++;
    sum->taken += g->taken;
    sum->exponent += g->exponent;
    sum->before += (float)before;
    sum->after += (float)g->after;
}

static void average(struct nb_joint_gain *g)
{
    const float by = g->searched ? 1 / (float)g->searched : 0;
    g->exponent *= by;
    g->before *= by;
    g->after *= by;
}

// Scales first, then an order of what they give.
static int search_in(struct searching *s, uint32_t joint, uint32_t expert, struct nb_trial *t,
                     const struct nb_fold_rows_seen *x, struct channels *c,
                     struct nb_joint_gain *sum)
{
    const uint32_t methods = s->how->methods;
    struct nb_gain scale = {.taken = false}, order = {.taken = false};
    int rc = 0;
    bool searched = false;
    if ((methods & (NB_FOLD_AWQ | NB_FOLD_SMOOTH)) && nb_fold_takes_scale(s->f, joint)) {
        rc = search_scale(s, joint, expert, t, x, c, &scale);
        searched = true;
    }
    double before = scale.before;
    if (rc == 0 && (methods & NB_FOLD_PERMUTE) && nb_fold_takes_order(s->f, joint)) {
        rc = search_order(s, joint, expert, t, x, scale.taken, c, &order);
        before = searched ? before : order.before;
        order.taken |= scale.taken;
        order.exponent = scale.exponent;
        scale = order;
    }
    if (rc == 0)
        add_gain(sum, &scale, before);
    return rc;
}

static int search_expert(struct searching *s, uint32_t joint, uint32_t expert,
                         const struct matrices *m, struct nb_joint_gain *sum)
{
    const struct nb_joint *j = &s->joints[joint];
    const struct nb_fold_rows_seen *x = nb_fold_inputs_find(s->inputs, joint, expert);
    struct reading r = {.n = 0};
    struct channels c = {.scale = NULL};
    struct nb_trial *t = NULL;
    if (!x || x->n < 2)
        return 0;
    int rc = take_rows(s, m, j, expert, &r);
    if (rc == 0)
        rc = make_channels(j, &c);
    if (rc == 0) {
        measure_weights(&r, j, c.most_w, c.size_w);
        const struct nb_trial_options o = {.joint = j,
                                           .cols = r.cols,
                                           .readers = r.reader,
                                           .n_readers = r.n,
                                           .x = x->x,
                                           .rows = x->n / 2,
                                           .held = x->n - x->n / 2,
                                           .mean = x->mean,
                                           .int8 = s->how->methods & NB_FOLD_SMOOTH};
        rc = nb_trial_create(&o, s->how->team, &t);
    }
    if (rc == 0)
        rc = search_in(s, joint, expert, t, x, &c, sum);
    nb_trial_destroy(t);
    free(c.scale);
    free(c.order);
    free(r.w);
    return rc;
}

static int search_joint(struct searching *s, uint32_t joint)
{
    struct nb_joint_gain gain = {.taken = 0};
    struct matrices m = {.n = 0};
    int rc = read_matrices(s, joint, &m);
    for (uint32_t e = 0; e < s->joints[joint].experts && rc == 0; e++)
        rc = search_expert(s, joint, e, &m, &gain);
    finish_matrices(&m);
    average(&gain);
    nb_fold_tell(s->f, joint, &gain);
    return rc;
}

static bool is_searched(const struct searching *s, uint32_t joint)
{
    const uint32_t m = s->how->methods;
    return ((m & (NB_FOLD_AWQ | NB_FOLD_SMOOTH)) && nb_fold_takes_scale(s->f, joint)) ||
           ((m & NB_FOLD_PERMUTE) && nb_fold_takes_order(s->f, joint));
}

static int search_joints(struct searching *s, uint32_t layer)
{
    int rc = 0;
    for (uint32_t i = 0; i < s->n_joints && rc == 0; i++)
        if (s->joints[i].layer == layer && is_searched(s, i))
            rc = search_joint(s, i);
    nb_fold_inputs_clear(s->inputs);
    return rc;
}

// ---- Rotations

uint32_t nb_fold_methods(const char *name)
{
    static const struct {
        const char *name;
        uint32_t methods;
    } table[] = {{"awq", NB_FOLD_AWQ},
                 {"smooth", NB_FOLD_SMOOTH},
                 {"permute", NB_FOLD_PERMUTE},
                 {"rotate", NB_FOLD_ROTATE_STREAM | NB_FOLD_ROTATE_VALUES},
                 {"rotate-values", NB_FOLD_ROTATE_VALUES}};
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (!strcmp(table[i].name, name))
            return table[i].methods;
    return 0;
}

// The analysis has noted what is in the stream's way.
static int refuse_stream(const struct searching *s)
{
    const char *note;
    uint32_t places;
    for (uint32_t i = 0; (note = nb_fold_note(s->f, i, &places)); i++)
        if (!strncmp(note, "rotation: ", 10))
            return nb_fail(s->error, -ENOTSUP,
                           "the model cannot be rotated: %s (\"rotate-values\" may be)", note + 10);
    return nb_fail(s->error, -ENOTSUP, "the model cannot be rotated");
}

// Each joint's seed is its own.
static int rotate_all(struct searching *s)
{
    bool stream = false;
    int rc = 0;
    for (uint32_t i = 0; i < s->n_joints && rc == 0; i++) {
        const struct nb_joint *j = &s->joints[i];
        const bool is_stream = j->kind == NB_JOINT_STREAM;
        const uint32_t by = is_stream ? NB_FOLD_ROTATE_STREAM : NB_FOLD_ROTATE_VALUES;
        if (!j->rotates || !(s->how->methods & by))
            continue;
        stream |= is_stream;
        rc = nb_fold_rotate(s->f, i, s->how->seed + 1009 * (i + 1ull));
        if (rc == -ENOTSUP)
            nb_fail(s->error, rc, "rows of %u have an odd factor over %d: they cannot be rotated",
                    j->head, NB_ROTATION_ODD);
    }
    if (rc == 0 && (s->how->methods & NB_FOLD_ROTATE_STREAM) && !stream)
        rc = refuse_stream(s);
    return rc;
}

// ---- The run

static int make_batch(struct searching *s)
{
    const struct nb_fold_search *how = s->how;
    const uint32_t most = NB_FOLD_TOKENS / how->length, fit = most < 1 ? 1 : most;
    const uint32_t n = fit < how->windows ? fit : how->windows;
    struct nb_grad_sequence *sequence = calloc(n, sizeof(*sequence));
    if (!sequence)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        sequence[i] = (struct nb_grad_sequence){
            .token = how->tokens + (size_t)i * how->windows / n * how->length, .n = how->length};
    int rc = nb_grad_batch(s->how->grad, sequence, n, s->error);
    s->n_rows = n * how->length;
    free(sequence);
    return rc;
}

static int progress(const struct searching *s, uint32_t done)
{
    return s->how->progress ? s->how->progress(s->how->user, done, s->how->plan->hp.n_layers + 1)
                            : 0;
}

static int run_layers(struct searching *s, float **x, float **y)
{
    int rc = nb_grad_begin(s->how->grad, *x);
    for (uint32_t i = 0; i < s->how->plan->hp.n_layers && rc >= 0; i++) {
        rc = nb_grad_layer(s->how->grad, i, *x, NULL, *y);
        float *last = *x;
        *x = *y;
        *y = last;
        if (rc == 0)
            rc = search_joints(s, i);
        if (rc == 0)
            rc = progress(s, i + 1);
    }
    return rc;
}

// A joint outside of the layers is the head's: some rows, evenly, and few at once, because logits
// are large.
static int run_head(struct searching *s, const float *x)
{
    const uint32_t width = s->how->plan->hp.embedding, vocab = s->how->plan->hp.vocab;
    const uint32_t n = s->n_rows < NB_FOLD_INPUT_ROWS ? s->n_rows : NB_FOLD_INPUT_ROWS;
    bool has = false;
    for (uint32_t i = 0; i < s->n_joints; i++)
        has |= s->joints[i].kind == NB_JOINT_NORM && s->joints[i].layer == NB_FOLD_OUTSIDE;
    float *logits = malloc(has ? HEAD_ROWS * (size_t)vocab * sizeof(*logits) : 1);
    float *rows = malloc(HEAD_ROWS * (size_t)width * sizeof(*rows));
    int rc = logits && rows ? 0 : -ENOMEM;
    for (uint32_t at = 0, some; has && at < n && rc == 0; at += some) {
        some = n - at < HEAD_ROWS ? n - at : HEAD_ROWS;
        for (uint32_t i = 0; i < some; i++)
            memcpy(rows + (size_t)i * width, x + ((uint64_t)(at + i) * s->n_rows / n) * width,
                   width * sizeof(*rows));
        rc = nb_grad_head(s->how->grad, some, rows, NULL, logits);
    }
    free(rows);
    free(logits);
    return rc == 0 ? search_joints(s, NB_FOLD_OUTSIDE) : rc;
}

static int run_all(struct searching *s)
{
    float *x = NULL, *y = NULL;
    int rc = make_batch(s);
    const size_t n = rc == 0 ? (size_t)s->n_rows * s->how->plan->hp.embedding : 0;
    if (rc == 0) {
        x = malloc(n * sizeof(*x));
        y = malloc(n * sizeof(*y));
        rc = x && y ? 0 : -ENOMEM;
    }
    if (rc == 0)
        rc = nb_fold_inputs_create(s->f, &s->inputs);
    if (rc == 0) {
        nb_grad_see(s->how->grad, nb_fold_inputs_see, s->inputs);
        rc = run_layers(s, &x, &y);
    }
    if (rc == 0)
        rc = run_head(s, x);
    if (rc == 0)
        rc = nb_fold_inputs_failed(s->inputs);
    free(x);
    free(y);
    return rc == 0 ? progress(s, s->how->plan->hp.n_layers + 1) : rc;
}

int nb_fold_search(struct nb_fold *f, const struct nb_fold_search *how, struct nb_error *ret_error)
{
    struct nb_error error = {""};
    struct searching s = {.f = f, .how = how, .error = &error};
    s.joints = nb_fold_joints(f, &s.n_joints);
    int rc = rotate_all(&s);
    if (rc == 0 && (how->methods & (NB_FOLD_AWQ | NB_FOLD_SMOOTH | NB_FOLD_PERMUTE)))
        rc = run_all(&s);
    nb_grad_see(how->grad, NULL, NULL);
    nb_fold_inputs_destroy(s.inputs);
    if (rc < 0)
        nb_fail(ret_error, rc, "%s", error.text[0] ? error.text : strerror(-rc));
    return rc;
}
