// Makes the plan from the architecture's rows of ops: every shape is checked against the
// hyperparameters here, so that a device may index without asking again.
#include "engine/plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/fail.h"
#include "tensor/image.h"

#define NAME_MAX_BYTES 96

struct builder {
    const struct nb_image *image;
    struct nb_plan *plan;
    bool *bound; // of each tensor of the image
    enum nb_precision precision;
    struct nb_inputs inputs;
    uint32_t layer;
    bool in_layer;
    struct nb_error *error;
};

// --- Sizes

// Where a value's memory is: Q, K and V share a row.
static enum nb_value home_of(enum nb_value v)
{
    return v == NB_VALUE_Q || v == NB_VALUE_K || v == NB_VALUE_V ? NB_VALUE_QKV : v;
}

static struct nb_slice slice_of(const struct nb_hparams *hp, enum nb_value v, uint32_t width)
{
    const enum nb_value home = home_of(v);
    struct nb_slice s = {.value = home, .width = width ? width : hp->dim[nb_value_dims[v]]};
    s.stride = home == v ? s.width : hp->dim[nb_value_dims[home]];
    s.at = v == NB_VALUE_K   ? hp->dim[NB_DIM_Q]
           : v == NB_VALUE_V ? hp->dim[NB_DIM_Q] + hp->dim[NB_DIM_K]
                             : 0;
    return s;
}

static void count_width(struct nb_plan *plan, const struct nb_slice *s)
{
    if (s->stride > plan->width[s->value])
        plan->width[s->value] = s->stride;
}

// Which inputs get two terms. `balanced` spends them where they buy most (docs/numbers.md has the
// measurement): the head, which prefill hardly computes, q/k/v but for the first quarter of the
// layers, and the whole of the last layers (one in 30).
static uint32_t terms_of(const struct builder *b, enum nb_section section)
{
    const uint32_t layers = b->plan->hp.n_layers, last = (layers + 29) / 30;
    if (b->precision != NB_PRECISION_BALANCED)
        return b->precision == NB_PRECISION_EXACT ? 2 : 1;
    bool qkv = section == NB_SECTION_QKV && b->layer >= layers / 4;
    return section == NB_SECTION_HEAD || qkv || (b->in_layer && b->layer + last >= layers) ? 2 : 1;
}

// A file's scheme of activations has one term, whatever `balanced` would spend; `exact` leaves it
// out, so that it shows the weights alone.
static int set_inputs(const struct builder *b, struct nb_op *op)
{
    const struct nb_str name = op->w->name;
    float range = 0;
    if (b->inputs.scale == NB_INPUT_BLOCK || b->precision == NB_PRECISION_EXACT)
        return 0;
    if (b->inputs.scale == NB_INPUT_FIXED && nb_inputs_range(&b->inputs, name, &range) < 0)
        return nb_is_float(&op->w->packed)
                   ? 0
                   : nb_fail(b->error, -EINVAL, "%s has no matrix %.*s: its inputs have no range",
                             NB_KEY_ACTIVATIONS_MATRICES, (int)name.len, name.data);
    op->terms = 1;
    op->scaled = range > 0 ? NB_INPUT_FIXED : NB_INPUT_ROW;
    op->range = range;
    return 0;
}

// --- Tensors

static void name_of(const struct builder *b, const char *base, const char *suffix,
                    char ret[NAME_MAX_BYTES])
{
    if (b->in_layer)
        snprintf(ret, NAME_MAX_BYTES, "blk.%u.%s.%s", b->layer, base, suffix);
    else
        snprintf(ret, NAME_MAX_BYTES, "%s.%s", base, suffix);
}

static const struct nb_image_tensor *find(const struct builder *b, const char *name)
{
    const struct nb_image_tensor *t = nb_image_find(b->image, name);
    if (t)
        b->bound[t - nb_image_tensor(b->image, 0)] = true;
    return t;
}

static bool has(const struct builder *b, const char *base, const char *suffix)
{
    char name[NAME_MAX_BYTES];
    name_of(b, base, suffix, name);
    return nb_image_find(b->image, name) != NULL;
}

// Rows of numbers that the image has as a matrix, as floats one after the other; NULL: no memory.
static const float *unpack(struct builder *b, const struct nb_image_tensor *t)
{
    const struct nb_packed *p = &t->packed;
    struct nb_plan_vector *v = malloc(sizeof(*v) + (size_t)p->rows * p->cols * sizeof(float));
    if (!v)
        return NULL;
    v->next = b->plan->vectors;
    b->plan->vectors = v;
    for (uint32_t i = 0; i < p->rows; i++)
        nb_layout_dequantize_row(p, i, v->x + (size_t)i * p->cols);
    return v->x;
}

// A vector of `n` numbers, or `each` times as many.
static int bind_vector(struct builder *b, const char *name, uint32_t n, uint32_t each,
                       const float **ret, struct nb_str *ret_name, bool *ret_each)
{
    const struct nb_image_tensor *t = find(b, name);
    if (!t)
        return -ENOENT;
    uint64_t has = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        has *= t->dims[i];
    if (t->dims[0] != n || (has != n && has != (uint64_t)n * each) || t->n_dims > 2 ||
        (!t->f32 && !nb_is_float(&t->packed)))
        return nb_fail(b->error, -EINVAL, "tensor %s must be a vector of %u", name, n);
    *ret = t->f32 ? t->f32 : unpack(b, t);
    if (!*ret)
        return nb_fail(b->error, -ENOMEM, "out of memory");
    *ret_name = t->name;
    if (ret_each)
        *ret_each = has != n;
    return 0;
}

static struct nb_matrix *known_matrix(const struct nb_plan *plan, struct nb_str name)
{
    for (uint32_t i = 0; i < plan->n_matrices; i++) {
        struct nb_matrix *m = &plan->matrices[i];
        if (m->name.len == name.len && !memcmp(m->name.data, name.data, name.len))
            return m;
    }
    return NULL;
}

// rows 0: as many as it has.
static int bind_matrix(struct builder *b, const char *name, uint32_t rows, uint32_t cols,
                       uint32_t n, struct nb_matrix **ret)
{
    struct nb_plan *plan = b->plan;
    const struct nb_image_tensor *t = find(b, name);
    if (!t)
        return -ENOENT;
    if (t->f32 || (rows && t->packed.rows != rows) || t->packed.cols != cols || t->n_slices != n)
        return nb_fail(
            b->error, -EINVAL, "tensor %s is %llu x %llu%s, but the metadata asks for %u x %u%s",
            name, (unsigned long long)t->dims[1], (unsigned long long)t->dims[0],
            t->n_slices > 1 ? " for each expert" : "", rows, cols, n > 1 ? " for each expert" : "");
    *ret = known_matrix(plan, t->name);
    if (*ret)
        return 0;
    *ret = &plan->matrices[plan->n_matrices++];
    **ret = (struct nb_matrix){
        .name = t->name, .packed = t->packed, .n = t->n_slices, .apart = t->slice_bytes};
    return 0;
}

static int lacks(const struct builder *b, const char *name)
{
    return nb_fail(b->error, -EINVAL, "tensor %s is missing", name);
}

static int bind_weights(struct builder *b, const struct nb_op_row *row, struct nb_op *op)
{
    const struct nb_hparams *hp = &b->plan->hp;
    const bool experts = nb_value_is_of_experts(row->in) || nb_value_is_of_experts(row->out);
    char name[NAME_MAX_BYTES];
    name_of(b, row->weight, "weight", name);
    int rc = bind_matrix(b, name, hp->dim[row->rows], hp->dim[row->cols],
                         experts ? hp->n_experts : 1, &op->w);
    if (rc == -ENOENT && row->tied) {
        char tied[NAME_MAX_BYTES];
        name_of(b, row->tied, "weight", tied);
        rc = bind_matrix(b, tied, hp->dim[row->rows], hp->dim[row->cols], 1, &op->w);
    }
    if (rc < 0)
        return rc == -ENOENT ? lacks(b, name) : rc;
    // An embedding is looked up, and nothing is added to it.
    if (row->kind != NB_OP_LINEAR)
        return 0;
    rc = set_inputs(b, op);
    if (rc < 0)
        return rc;
    name_of(b, row->weight, "bias", name);
    rc = bind_vector(b, name, hp->dim[row->rows], op->w->n, &op->bias, &op->bias_name, NULL);
    return rc == -ENOENT ? 0 : rc;
}

static int bind_norm(struct builder *b, const struct nb_op_row *row, struct nb_op *op)
{
    char name[NAME_MAX_BYTES];
    int rc = 0;
    if (!row->weight)
        return 0;
    name_of(b, row->weight, "weight", name);
    rc = bind_vector(b, name, op->dim, op->heads, &op->weight, &op->weight_name, &op->each);
    if (rc < 0)
        return rc == -ENOENT ? lacks(b, name) : rc;
    if (b->plan->hp.arch->norm == NB_NORM_RMS)
        return 0;
    name_of(b, row->weight, "bias", name);
    rc = bind_vector(b, name, op->dim, 1, &op->bias, &op->bias_name, NULL);
    return rc == -ENOENT ? 0 : rc;
}

// ROUTE's bias chooses alone.
static int bind_route(struct builder *b, const struct nb_op_row *row, struct nb_op *op)
{
    char name[NAME_MAX_BYTES];
    if (!row->weight)
        return 0;
    name_of(b, row->weight, "bias", name);
    int rc = bind_vector(b, name, b->plan->hp.n_experts, 1, &op->bias, &op->bias_name, NULL);
    return rc == -ENOENT ? 0 : rc;
}

// --- Ops

static void set_heads(const struct nb_hparams *hp, const struct nb_op_row *row, struct nb_op *op)
{
    op->heads = row->heads == NB_HEADS_Q    ? hp->n_heads
                : row->heads == NB_HEADS_KV ? hp->n_kv_heads
                                            : 1;
    op->dim = op->in.width / op->heads;
}

static float scale_of(const struct nb_hparams *hp, enum nb_scale scale)
{
    const float scales[] = {[NB_SCALE_NONE] = 1.0f,
                            [NB_SCALE_EMBEDDING] = hp->embedding_scale,
                            [NB_SCALE_RESIDUAL] = hp->residual_scale,
                            [NB_SCALE_LOGITS] = hp->logit_scale};
    return scales[scale];
}

// Whether the model has the op at all.
static bool is_wanted(const struct builder *b, const struct nb_op_row *row)
{
    const struct nb_hparams *hp = &b->plan->hp;
    if ((row->when && !has(b, row->when, "weight")) ||
        (row->unless && has(b, row->unless, "weight")) ||
        (row->optional && !has(b, row->weight, "weight")))
        return false;
    if (row->kind == NB_OP_ROPE)
        return hp->layer[b->layer].rope != NB_NO_ROPE;
    if (row->kind == NB_OP_CAP)
        return hp->logit_cap > 0.0f || scale_of(hp, row->scale) != 1.0f;
    return true;
}

static int add_op(struct builder *b, const struct nb_op_row *row)
{
    struct nb_plan *plan = b->plan;
    const struct nb_hparams *hp = &plan->hp;
    // The inner rows of what is no expert may be of another width than the others'.
    uint32_t in = row->kind == NB_OP_LINEAR ? hp->dim[row->cols] : 0;
    uint32_t out = row->kind == NB_OP_LINEAR ? hp->dim[row->rows] : 0;
    struct nb_op *op = &plan->ops[plan->n_ops];
    *op = (struct nb_op){.kind = row->kind,
                         .section = row->section,
                         .layer = b->in_layer ? b->layer : 0,
                         .terms = terms_of(b, row->section),
                         .add = row->add,
                         .scale = scale_of(hp, row->scale),
                         .cap = row->kind == NB_OP_CAP ? hp->logit_cap : 0.0f,
                         .lookup = row->lookup,
                         .rope = b->in_layer ? hp->layer[b->layer].rope : NB_NO_ROPE,
                         .window = b->in_layer ? hp->layer[b->layer].window : 0};
    const uint32_t inner = row->kind == NB_OP_ACTIVATE ? hp->dim[row->rows] : 0;
    op->in = row->in ? slice_of(hp, row->in, row->halves ? 2 * inner : in ? in : inner) : op->in;
    op->other = row->other ? slice_of(hp, row->other, inner) : op->other;
    op->out = row->out ? slice_of(hp, row->out, out ? out : inner) : op->out;
    if (row->halves) {
        op->in.width = inner;
        op->other = op->in;
        op->other.at = inner;
    }
    set_heads(hp, row, op);
    count_width(plan, &op->in);
    count_width(plan, &op->other);
    count_width(plan, &op->out);
    plan->n_ops++;
    switch (row->kind) {
    case NB_OP_EMBED:
    case NB_OP_LINEAR:
        return bind_weights(b, row, op);
    case NB_OP_NORM:
        return bind_norm(b, row, op);
    case NB_OP_ROUTE:
        return bind_route(b, row, op);
    default:
        return 0;
    }
}

// A row as the family means it.
static struct nb_op_row row_of(const struct nb_op_rows *piece, uint32_t i)
{
    struct nb_op_row row = piece->rows[i];
    row.in = piece->of_x && row.in == NB_VALUE_N ? NB_VALUE_X : row.in;
    row.optional |= piece->optional;
    return row;
}

static int add_pieces(struct builder *b, const struct nb_op_rows *piece)
{
    int rc = 0;
    for (; piece->n && rc == 0; piece++)
        for (uint32_t i = 0; i < piece->n && rc == 0; i++) {
            const struct nb_op_row row = row_of(piece, i);
            if (is_wanted(b, &row))
                rc = add_op(b, &row);
        }
    return rc;
}

// What the file has and no op takes, a model of another kind would compute with.
static int refuse_surplus(const struct builder *b)
{
    const struct nb_image_tensor *first = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < nb_image_n_tensors(b->image); i++)
        if (!b->bound[i] && !n++)
            first = nb_image_tensor(b->image, i);
    if (!first)
        return 0;
    char others[40] = "";
    if (n > 1)
        snprintf(others, sizeof(others), " (and %u more)", n - 1);
    const struct nb_hparams *hp = &b->plan->hp;
    return nb_fail(b->error, -ENOTSUP,
                   "tensor %.*s%s has no place in a %s model of %u layer%s as Nibble computes it, "
                   "and without it the model would be another; choose another file",
                   (int)first->name.len, first->name.data, others, hp->arch->name, hp->n_layers,
                   hp->n_layers == 1 ? "" : "s");
}

// --- The list

static uint32_t count_rows(const struct nb_op_rows *piece)
{
    uint32_t n = 0;
    for (; piece->n; piece++)
        n += piece->n;
    return n;
}

static int reserve(struct nb_plan *plan, const struct nb_image *image)
{
    const struct nb_arch *arch = plan->hp.arch;
    const uint32_t layers = plan->hp.n_layers;
    const size_t ops =
        count_rows(arch->begin) + count_rows(arch->end) + (size_t)layers * count_rows(arch->layer);
    plan->ops = calloc(ops + 1, sizeof(*plan->ops));
    plan->layer_ops = calloc(layers + 1, sizeof(*plan->layer_ops));
    plan->matrices = calloc(nb_image_n_tensors(image) + 1, sizeof(*plan->matrices));
    return plan->ops && plan->layer_ops && plan->matrices ? 0 : -ENOMEM;
}

static int add_all(struct builder *b)
{
    struct nb_plan *plan = b->plan;
    const struct nb_arch *arch = plan->hp.arch;
    int rc = add_pieces(b, arch->begin);
    b->in_layer = true;
    for (; b->layer < plan->hp.n_layers && rc == 0; b->layer++) {
        plan->layer_ops[b->layer] = plan->n_ops;
        rc = add_pieces(b, arch->layer);
    }
    plan->layer_ops[b->layer] = plan->n_ops;
    b->in_layer = false;
    return rc == 0 ? add_pieces(b, arch->end) : rc;
}

// From where on only the wanted rows are computed, and which op makes a text's vector.
static void find_ends(struct nb_plan *plan)
{
    plan->tail = plan->n_ops;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct nb_op *op = &plan->ops[i];
        if (op->kind == NB_OP_KV)
            plan->tail = i + 1;
        if (op->out.value == NB_VALUE_X || op->out.value == NB_VALUE_N)
            plan->result = i;
    }
}

static int build(struct builder *b)
{
    struct nb_plan *plan = b->plan;
    plan->n_layers = plan->hp.n_layers;
    plan->begins = plan->ends = true;
    b->bound = calloc(nb_image_n_tensors(b->image) + 1, sizeof(*b->bound));
    if (!b->bound || reserve(plan, b->image) < 0) {
        free(b->bound);
        return nb_fail(b->error, -ENOMEM, "out of memory");
    }
    int rc = add_all(b);
    for (uint32_t i = 0; i < NB_ROPE_FACTORS; i++)
        (void)find(b, nb_rope_factors[i]);
    if (rc == 0)
        rc = refuse_surplus(b);
    free(b->bound);
    find_ends(plan);
    return rc;
}

static int check_kv(const struct nb_plan *plan, struct nb_error *error)
{
    const struct nb_hparams *hp = &plan->hp;
    if (plan->kv_type != NB_KV_Q8_0 ||
        (hp->k_dim % NB_KV_GROUP == 0 && hp->v_dim % NB_KV_GROUP == 0))
        return 0;
    return nb_fail(error, -ENOTSUP,
                   "heads of %u by %u: a KV cache of type q8_0 wants multiples of %d; use f16",
                   hp->k_dim, hp->v_dim, NB_KV_GROUP);
}

int nb_plan_create(const struct nb_image *image, const struct nb_plan_options *options,
                   struct nb_plan **ret, struct nb_error *ret_error)
{
    struct nb_plan *plan = calloc(1, sizeof(*plan));
    if (!plan)
        return nb_fail(ret_error, -ENOMEM, "out of memory");
    struct builder b = {
        .image = image, .plan = plan, .precision = options->precision, .error = ret_error};
    plan->kv_type = options->kv_type;
    int rc = nb_hparams_read(image, options->max_context, &plan->hp, ret_error);
    if (rc == 0)
        rc = check_kv(plan, ret_error);
    if (rc == 0)
        rc = nb_inputs_read(nb_image_metadata(image), nb_image_n_tensors(image), &b.inputs,
                            ret_error);
    if (rc == 0)
        rc = build(&b);
    if (rc < 0) {
        nb_plan_destroy(plan);
        return rc;
    }
    *ret = plan;
    return 0;
}

// An op's index in a part that begins with op `from`; n_ops where the part has it not.
static uint32_t in_part(const struct nb_plan *part, uint32_t op, uint32_t from)
{
    return op >= from && op - from < part->n_ops ? op - from : part->n_ops;
}

struct nb_plan nb_plan_part(const struct nb_plan *plan, uint32_t first, uint32_t end, bool begins,
                            bool ends)
{
    struct nb_plan part = *plan;
    const uint32_t from = begins ? 0 : plan->layer_ops[first];
    const uint32_t to = ends ? plan->n_ops : plan->layer_ops[end];
    part.first_layer = first;
    part.n_layers = end - first;
    part.begins = begins;
    part.ends = ends;
    part.ops = plan->ops + from;
    part.n_ops = to - from;
    part.tail = ends ? in_part(&part, plan->tail, from) : part.n_ops;
    part.result = in_part(&part, plan->result, from);
    return part;
}

int nb_plan_replace(struct nb_plan *plan, struct nb_str name, const struct nb_packed *w,
                    size_t apart)
{
    struct nb_matrix *m = known_matrix(plan, name);
    if (!m)
        return -ENOENT;
    if (m->packed.rows != w->rows || m->packed.cols != w->cols)
        return -EINVAL;
    m->packed = *w;
    m->apart = apart;
    m->replaced++;
    return 0;
}

// Whether one of its ops has the matrix: a part of a model has some of them.
static bool uses(const struct nb_plan *plan, const struct nb_matrix *m)
{
    uint32_t i = 0;
    while (i < plan->n_ops && plan->ops[i].w != m)
        i++;
    return i < plan->n_ops;
}

uint32_t nb_plan_list_matrices(const struct nb_plan *plan, const struct nb_matrix **ret)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < plan->n_matrices; i++)
        if (uses(plan, &plan->matrices[i]))
            ret[n++] = &plan->matrices[i];
    return n;
}

uint64_t nb_plan_weight_bytes(const struct nb_plan *plan)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < plan->n_matrices; i++)
        if (uses(plan, &plan->matrices[i]))
            bytes += nb_matrix_bytes(&plan->matrices[i]);
    return bytes;
}

bool nb_plan_has_matrix(const struct nb_plan *plan, const struct nb_packed *w)
{
    for (uint32_t i = 0; i < plan->n_matrices; i++) {
        const struct nb_matrix *m = &plan->matrices[i];
        if (w->data >= m->packed.data && w->data < m->packed.data + nb_matrix_bytes(m) &&
            uses(plan, m))
            return true;
    }
    return false;
}

static bool reads(const struct nb_op *op, enum nb_value v)
{
    const bool adds = op->add || op->kind == NB_OP_ADD || op->kind == NB_OP_COMBINE;
    return op->in.value == v || op->other.value == v || (op->out.value == v && adds);
}

bool nb_plan_is_read(const struct nb_plan *plan, uint32_t op, enum nb_value v)
{
    for (uint32_t i = op; i < plan->n_ops; i++) {
        if (reads(&plan->ops[i], v))
            return true;
        if (plan->ops[i].out.value == v && plan->ops[i].out.width == plan->ops[i].out.stride)
            return false;
    }
    return false;
}

uint32_t nb_plan_tail_values(const struct nb_plan *plan)
{
    uint32_t values = 0;
    for (uint32_t v = NB_VALUE_X; v < NB_VALUES; v++)
        if (v != NB_VALUE_QKV && nb_plan_is_read(plan, plan->tail, (enum nb_value)v))
            values |= 1u << v;
    return values;
}

void nb_plan_destroy(struct nb_plan *plan)
{
    if (!plan)
        return;
    nb_hparams_finish(&plan->hp);
    while (plan->vectors) {
        struct nb_plan_vector *next = plan->vectors->next;
        free(plan->vectors);
        plan->vectors = next;
    }
    free(plan->ops);
    free(plan->layer_ops);
    free(plan->matrices);
    free(plan);
}
