// Finds joints in a plan's list of ops: whose result goes to matrices alone, through what. The rule
// of each kind is here; no family is named.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/fold_room.h"

#define READERS 16 // of one result
#define STR(s)  (int)(s).len, (s).data

struct analysis {
    struct nb_fold *f;
    const struct nb_plan *plan;
    uint32_t *joint_of; // [n_ops]: a norm's joint, or NONE
    int rc;
};

struct readers {
    uint32_t op[READERS], n;
    bool more; // than these
};

// ---- Notes

// A tensor's name without its layer and its ending.
static struct nb_str bare(struct nb_str name)
{
    if (name.len > 4 && !memcmp(name.data, "blk.", 4))
        for (size_t i = 4; i < name.len; i++)
            if (name.data[i] == '.') {
                name = (struct nb_str){name.data + i + 1, name.len - i - 1};
                break;
            }
    const char *dot = memchr(name.data, '.', name.len);
    return dot ? (struct nb_str){name.data, (size_t)(dot - name.data)} : name;
}

__attribute__((format(printf, 2, 3))) static void note(struct analysis *a, const char *format, ...)
{
    struct nb_fold *f = a->f;
    char text[NB_FOLD_NOTE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args); // NOLINT(clang-analyzer-valist.Uninitialized)
    va_end(args);
    for (uint32_t i = 0; i < f->n_notes; i++)
        if (!strcmp(f->notes[i].text, text) || i + 1 == NB_FOLD_NOTES) {
            f->notes[i].places++;
            return;
        }
    memcpy(f->notes[f->n_notes].text, text, sizeof(text));
    f->notes[f->n_notes++].places = 1;
}

// ---- Who reads and writes

static bool adds(const struct nb_op *op)
{
    return op->add || op->kind == NB_OP_ADD || op->kind == NB_OP_COMBINE;
}

static bool overlap(const struct nb_slice *a, const struct nb_slice *b)
{
    return a->value && a->value == b->value && a->at < b->at + b->width && b->at < a->at + a->width;
}

static bool covers(const struct nb_slice *a, const struct nb_slice *b)
{
    return a->value == b->value && a->at <= b->at && a->at + a->width >= b->at + b->width;
}

static bool reads(const struct nb_op *op, const struct nb_slice *s)
{
    return overlap(&op->in, s) || overlap(&op->other, s) || (adds(op) && overlap(&op->out, s));
}

static struct readers readers_of(const struct nb_plan *plan, uint32_t writer)
{
    const struct nb_slice *s = &plan->ops[writer].out;
    struct readers r = {.n = 0};
    for (uint32_t i = writer + 1; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (reads(op, s) && r.n < READERS)
            r.op[r.n++] = i;
        else if (reads(op, s))
            r.more = true;
        if (covers(&op->out, s) && !adds(op))
            break;
    }
    return r;
}

// The matrix that wrote a value before op `before`, or NULL: something else did.
static const struct nb_op *matrix_before(const struct nb_plan *plan, uint32_t before,
                                         const struct nb_slice *s)
{
    for (uint32_t i = before; i > 0; i--) {
        const struct nb_op *op = &plan->ops[i - 1];
        if (overlap(&op->out, s))
            return op->kind == NB_OP_LINEAR && !op->add && covers(&op->out, s) ? op : NULL;
    }
    return NULL;
}

// How many ops have the matrix.
static uint32_t uses(const struct nb_plan *plan, const struct nb_matrix *w)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_ops; i++)
        n += plan->ops[i].w == w;
    return n;
}

// Whether all that read op i's result are matrices that nobody else has; else it is noted.
static bool goes_to_matrices(struct analysis *a, uint32_t i, struct nb_str of,
                             const struct readers *r)
{
    for (uint32_t k = 0; k < r->n; k++) {
        const struct nb_op *op = &a->plan->ops[r->op[k]];
        if (op->kind != NB_OP_LINEAR || !nb_same_slice(&op->in, &a->plan->ops[i].out)) {
            note(a, "%.*s: its result goes to %s, not to matrices alone", STR(of),
                 adds(op) ? "the residual stream" : nb_op_names[op->kind]);
            return false;
        }
        if (uses(a->plan, op->w) > 1) {
            note(a, "%.*s: its result goes to %.*s, which is the embedding too", STR(of),
                 STR(bare(op->w->name)));
            return false;
        }
    }
    if (!r->n || r->more)
        note(a, "%.*s: its result goes to %s", STR(of), r->n ? "too many ops" : "no matrix");
    return r->n && !r->more;
}

// ---- Lists

static uint32_t add_joint(struct analysis *a, const struct nb_joint *joint)
{
    struct nb_fold *f = a->f;
    struct nb_joint *grown = reallocarray(f->joints, f->n_joints + 1, sizeof(*grown));
    if (!grown) {
        a->rc = -ENOMEM;
        return NB_FOLD_NONE;
    }
    f->joints = grown;
    f->joints[f->n_joints] = *joint;
    return f->n_joints++;
}

static struct nb_fold_tensor *add_tensor(struct analysis *a, struct nb_str name, uint32_t experts,
                                         uint32_t rows, uint32_t cols)
{
    struct nb_fold *f = a->f;
    struct nb_fold_tensor *t = nb_fold_find(f, name);
    if (t)
        return t;
    struct nb_fold_tensor *grown = reallocarray(f->tensors, f->n_tensors + 1, sizeof(*grown));
    if (!grown) {
        a->rc = -ENOMEM;
        return NULL;
    }
    f->tensors = grown;
    char *copy = strndup(name.data, name.len);
    if (!copy) {
        a->rc = -ENOMEM;
        return NULL;
    }
    t = &f->tensors[f->n_tensors++];
    *t = (struct nb_fold_tensor){.name = copy,
                                 .experts = experts,
                                 .rows = rows,
                                 .cols = cols ? cols : 1,
                                 .vector = !cols,
                                 .columns = {NB_FOLD_NONE, NB_FOLD_NONE}};
    return t;
}

static void add_columns(struct analysis *a, const struct nb_matrix *w, uint32_t joint)
{
    struct nb_fold_tensor *t = add_tensor(a, w->name, w->n, w->packed.rows, w->packed.cols);
    if (t)
        t->columns[t->columns[0] != NB_FOLD_NONE] = joint;
}

static void add_reading_columns(struct analysis *a, const struct readers *r, uint32_t joint)
{
    for (uint32_t k = 0; k < r->n && joint != NB_FOLD_NONE; k++)
        add_columns(a, a->plan->ops[r->op[k]].w, joint);
}

// cols 0: of a vector.
static void add_part(struct analysis *a, struct nb_str name, uint32_t experts, uint32_t rows,
                     uint32_t cols, const struct nb_fold_rows *part)
{
    struct nb_fold_tensor *t = add_tensor(a, name, experts, rows, cols);
    if (t)
        t->parts[t->n_parts++] = *part;
}

// The rows of a matrix that write a value, and its bias.
static void add_writing_rows(struct analysis *a, const struct nb_op *op, const struct nb_slice *s,
                             uint32_t joint, float power)
{
    const struct nb_fold_rows part = {joint, s->at - op->out.at, s->width, power};
    const struct nb_packed *w = &op->w->packed;
    if (joint == NB_FOLD_NONE)
        return;
    add_part(a, op->w->name, op->w->n, w->rows, w->cols, &part);
    if (op->bias)
        add_part(a, op->bias_name, op->w->n, w->rows, 0, &part);
}

// ---- Norms

static float *copy_weight(struct analysis *a, const struct nb_op *op)
{
    float *copy = malloc(op->dim * sizeof(*copy));
    if (!copy)
        a->rc = -ENOMEM;
    else
        memcpy(copy, op->weight, op->dim * sizeof(*copy));
    return copy;
}

static void find_norm(struct analysis *a, uint32_t i)
{
    const struct nb_op *op = &a->plan->ops[i];
    const struct readers r = readers_of(a->plan, i);
    const struct nb_str of = bare(op->weight_name);
    const bool is_vector = i == a->plan->result && a->plan->hp.for_vectors;
    if (!op->weight)
        return;
    if (is_vector)
        note(a, "%.*s: a text's vector is made of its result", STR(of));
    if (is_vector || !goes_to_matrices(a, i, of, &r))
        return;
    const uint32_t n = op->in.width;
    const struct nb_fold_rows part = {a->f->n_joints, 0, n, 1};
    struct nb_joint joint = {.kind = NB_JOINT_NORM,
                             .layer = op->section == NB_SECTION_HEAD ? NB_FOLD_OUTSIDE : op->layer,
                             .experts = 1,
                             .n = n,
                             .head = n,
                             .repeats = 1,
                             .scales = true,
                             .weight = copy_weight(a, op)};
    a->joint_of[i] = add_joint(a, &joint);
    if (a->rc < 0) {
        free(a->joint_of[i] == NB_FOLD_NONE ? joint.weight : NULL);
        return;
    }
    add_part(a, op->weight_name, 1, n, 0, &part);
    if (op->bias)
        add_part(a, op->bias_name, 1, n, 0, &part);
    add_reading_columns(a, &r, a->joint_of[i]);
}

// ---- From v to the output matrix

static void find_values(struct analysis *a, uint32_t i)
{
    const struct nb_hparams *hp = &a->plan->hp;
    const struct nb_op *kv = &a->plan->ops[i];
    while (kv > a->plan->ops && kv->kind != NB_OP_KV)
        kv--;
    const struct nb_op *v = matrix_before(a->plan, (uint32_t)(kv - a->plan->ops), &kv->other);
    const struct readers r = readers_of(a->plan, i);
    if (!v || uses(a->plan, v->w) > 1) {
        note(a, "attention: its values come from no matrix of their own");
        return;
    }
    if (!goes_to_matrices(a, i, bare(v->w->name), &r))
        return;
    const struct nb_joint joint = {.kind = NB_JOINT_VALUES,
                                   .layer = kv->layer,
                                   .experts = 1,
                                   .n = kv->other.width,
                                   .head = hp->v_dim,
                                   .repeats = hp->n_heads / hp->n_kv_heads,
                                   .scales = true,
                                   .rotates = true};
    const uint32_t j = add_joint(a, &joint);
    add_writing_rows(a, v, &kv->other, j, 1);
    add_reading_columns(a, &r, j);
}

// ---- From up and gate to down

// act(s x) = s^p act(x) for s > 0; 0: for no p.
static const struct {
    const char *name;
    float power;
} activations[NB_ACT_COUNT] = {
    [NB_ACT_SILU] = {"SiLU", 0},     [NB_ACT_GELU] = {"GELU", 0},
    [NB_ACT_GELU_ERF] = {"GELU", 0}, [NB_ACT_RELU2] = {"squared ReLU", 2},
    [NB_ACT_RELU] = {"ReLU", 1},
};

static void find_inner(struct analysis *a, uint32_t i)
{
    const struct nb_op *op = &a->plan->ops[i];
    const struct nb_op *gate = matrix_before(a->plan, i, &op->in);
    const struct nb_op *up = op->other.value ? matrix_before(a->plan, i, &op->other) : gate;
    const struct readers r = readers_of(a->plan, i);
    const float power = op->other.value ? 1 : activations[a->plan->hp.arch->activation].power;
    if (!gate || !up || uses(a->plan, gate->w) > 1 || uses(a->plan, up->w) > 1) {
        note(a, "feed-forward: its inner rows come from no matrices of their own");
        return;
    }
    if (!goes_to_matrices(a, i, bare(up->w->name), &r))
        return;
    const uint32_t experts = a->plan->ops[r.op[0]].w->n;
    const struct nb_joint joint = {.kind = NB_JOINT_INNER,
                                   .layer = op->layer,
                                   .experts = experts,
                                   .n = op->out.width,
                                   .head = op->out.width,
                                   .repeats = 1,
                                   .scales = power > 0,
                                   .permutes = true};
    if (power == 0)
        note(a, "%.*s: no scale goes through its %s", STR(bare(up->w->name)),
             activations[a->plan->hp.arch->activation].name);
    const uint32_t j = add_joint(a, &joint);
    add_writing_rows(a, up, op->other.value ? &op->other : &op->in, j, power > 0 ? 1 / power : 0);
    if (op->other.value)
        add_writing_rows(a, gate, &op->in, j, 0);
    add_reading_columns(a, &r, j);
}

// ---- The residual stream

static bool is_stream(const struct nb_slice *s)
{
    return s->value == NB_VALUE_X;
}

// The matrix whose rows an op adds to the stream, or NULL.
static const struct nb_op *stream_matrix(const struct nb_plan *plan, uint32_t i)
{
    const struct nb_op *op = &plan->ops[i];
    if (!is_stream(&op->out))
        return NULL;
    if (op->kind == NB_OP_LINEAR)
        return op;
    return op->kind == NB_OP_ADD || op->kind == NB_OP_COMBINE ? matrix_before(plan, i, &op->in)
                                                              : NULL;
}

static bool may_rotate_around(struct analysis *a, uint32_t i)
{
    const struct nb_op *op = &a->plan->ops[i];
    const bool norms = a->plan->hp.arch->norm == NB_NORM_RMS && !op->bias;
    switch (op->kind) {
    case NB_OP_EMBED:
        for (uint32_t k = 0; k < a->plan->n_ops; k++)
            if (a->plan->ops[k].w == op->w && a->plan->ops[k].kind != NB_OP_EMBED) {
                note(a, "rotation: %.*s is the output matrix too", STR(bare(op->w->name)));
                return false;
            }
        return true;
    case NB_OP_NORM:
        if (is_stream(&op->in) && !norms)
            note(a, "rotation: the norms subtract the mean of all channels, or have a bias");
        else if (is_stream(&op->in) && a->joint_of[i] == NB_FOLD_NONE)
            note(a, "rotation: %.*s goes to other ops than matrices", STR(bare(op->weight_name)));
        return !is_stream(&op->in) || (norms && a->joint_of[i] != NB_FOLD_NONE);
    default:
        if (!is_stream(&op->out) || stream_matrix(a->plan, i))
            return true;
        note(a, "rotation: a norm stands between matrices and the residual stream");
        return false;
    }
}

static void find_stream(struct analysis *a)
{
    const struct nb_plan *plan = a->plan;
    const struct nb_joint joint = {.kind = NB_JOINT_STREAM,
                                   .layer = NB_FOLD_OUTSIDE,
                                   .experts = 1,
                                   .n = plan->hp.embedding,
                                   .head = plan->hp.embedding,
                                   .repeats = 1,
                                   .rotates = true};
    if (is_stream(&plan->ops[plan->result].out)) {
        note(a, "rotation: a text's vector is made of the residual stream");
        return;
    }
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (!may_rotate_around(a, i))
            return;
    const uint32_t j = add_joint(a, &joint);
    for (uint32_t i = 0; i < plan->n_ops && a->rc == 0; i++) {
        const struct nb_op *op = &plan->ops[i], *writer = stream_matrix(plan, i);
        if (op->kind == NB_OP_EMBED || (op->kind == NB_OP_LINEAR && is_stream(&op->in)))
            add_columns(a, op->w, j);
        if (writer)
            add_writing_rows(a, writer, &writer->out, j, 0);
        if (a->joint_of[i] != NB_FOLD_NONE) {
            const struct readers r = readers_of(plan, i);
            add_reading_columns(a, &r, j);
        }
    }
}

// ---- All

int nb_fold_analyse(struct nb_fold *f, const struct nb_plan *plan)
{
    struct analysis a = {.f = f, .plan = plan};
    a.joint_of = malloc((plan->n_ops + 1) * sizeof(*a.joint_of));
    if (!a.joint_of)
        return -ENOMEM;
    for (uint32_t i = 0; i < plan->n_ops; i++)
        a.joint_of[i] = NB_FOLD_NONE;
    for (uint32_t i = 0; i < plan->n_ops && a.rc == 0; i++) {
        if (plan->ops[i].kind == NB_OP_NORM)
            find_norm(&a, i);
        else if (plan->ops[i].kind == NB_OP_ATTENTION)
            find_values(&a, i);
        else if (plan->ops[i].kind == NB_OP_ACTIVATE)
            find_inner(&a, i);
    }
    if (a.rc == 0)
        find_stream(&a);
    free(a.joint_of);
    return a.rc;
}
