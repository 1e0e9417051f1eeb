// Ops as nodes, but for attention and rotary positions: see export.h.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/onnx/export_private.h"

// ---- Matrices

// A matrix by columns, as MatMul wants it: [cols][rows].
static float *transposed(const struct nb_packed *w)
{
    float *row = malloc((size_t)w->cols * sizeof(*row));
    float *out = calloc((size_t)w->cols * w->rows, sizeof(*out));
    for (uint32_t r = 0; row && out && r < w->rows; r++) {
        nb_layout_dequantize_row(w, r, row);
        for (uint32_t k = 0; k < w->cols; k++)
            out[(size_t)k * w->rows + r] = row[k];
    }
    free(row);
    return out;
}

// int8 codes, symmetric, with a scale for each output.
static int add_codes(struct nb_onnx *o, const struct nb_packed *w, const float *x,
                     struct nb_ref *ret)
{
    const size_t rows = w->rows, cols = w->cols;
    const int64_t dims[] = {(int64_t)cols, (int64_t)rows};
    float *scales = calloc(rows, sizeof(*scales));
    int8_t *codes = malloc(rows * cols), *zeros = calloc(rows, 1);
    const bool memory = scales && codes && zeros;
    for (size_t r = 0; memory && r < rows; r++) {
        float most = 0;
        for (size_t k = 0; k < cols; k++)
            most = fmaxf(most, fabsf(x[k * rows + r]));
        scales[r] = most > 0 ? most / 127 : 1;
        for (size_t k = 0; k < cols; k++)
            codes[k * rows + r] = (int8_t)rintf(x[k * rows + r] / scales[r]);
    }
    if (memory) {
        const struct nb_onnx_attribute axis[2] = {
            {.name = "axis", .kind = NB_ONNX_INT, .values = {1}}};
        const struct nb_ref in[] = {
            nb_onnx_constant(o->g, NB_ONNX_INT8, dims, 2, codes, rows * cols),
            nb_onnx_floats(o, scales, 0, rows),
            nb_onnx_constant(o->g, NB_ONNX_INT8, dims + 1, 1, zeros, rows)};
        *ret = nb_onnx_node(o->g, "DequantizeLinear", in, 3, axis, NULL, 0);
    }
    free(scales);
    free(codes);
    free(zeros);
    return memory ? 0 : -ENOMEM;
}

// The input as bytes of its own range, and back.
static struct nb_ref by_its_range(struct nb_onnx *o, struct nb_ref x)
{
    struct nb_ref more[2];
    const struct nb_ref codes = nb_onnx_node(o->g, "DynamicQuantizeLinear", &x, 1, NULL, more, 2);
    return nb_onnx_3(o, "DequantizeLinear", codes, more[0], more[1]);
}

// The input as codes of the range that calibration has fixed, and back; of none, by its own.
static int by_fixed_range(struct nb_onnx *o, const struct nb_matrix *w, struct nb_ref *x)
{
    const int8_t zero = 0;
    float range;
    if (nb_inputs_range(&o->options.inputs, w->name, &range) < 0)
        return nb_fail(o->ret_error, -EINVAL, "the file has no range of the inputs of %.*s",
                       (int)w->name.len, w->name.data);
    if (range == 0) {
        *x = by_its_range(o, *x);
        return 0;
    }
    const struct nb_ref scale = nb_onnx_real(o, range / 127);
    const struct nb_ref at = nb_onnx_constant(o->g, NB_ONNX_INT8, NULL, 0, &zero, sizeof(zero));
    *x = nb_onnx_3(o, "DequantizeLinear", nb_onnx_3(o, "QuantizeLinear", *x, scale, at), scale, at);
    return 0;
}

static int linear(struct nb_onnx *o, const struct nb_op *op)
{
    const struct nb_packed *w = &op->w->packed;
    struct nb_ref x = nb_onnx_read(o, &op->in), matrix;
    float *floats = transposed(w);
    int rc = floats ? 0 : -ENOMEM;
    if (rc == 0 && o->options.int8)
        rc = add_codes(o, w, floats, &matrix);
    else if (rc == 0)
        matrix = nb_onnx_floats(o, floats, w->cols, w->rows);
    free(floats);
    if (rc < 0)
        return nb_fail(o->ret_error, rc, "no memory for a matrix");
    if (o->options.scale == NB_INPUT_ROW)
        x = by_its_range(o, x);
    else if (o->options.scale == NB_INPUT_FIXED && (rc = by_fixed_range(o, op->w, &x)) < 0)
        return rc;
    struct nb_ref y = nb_onnx_2(o, "MatMul", x, matrix);
    if (op->bias)
        y = nb_onnx_2(o, "Add", y, nb_onnx_floats(o, op->bias, 0, w->rows));
    if (op->add)
        y = nb_onnx_2(o, "Add", nb_onnx_read(o, &op->out), y);
    nb_onnx_write(o, &op->out, y);
    return 0;
}

// ---- The embedding

static int embed(struct nb_onnx *o, const struct nb_op *op)
{
    const struct nb_packed *w = &op->w->packed;
    const uint32_t rows = op->lookup == NB_LOOKUP_FIRST ? 1 : w->rows;
    float *x = malloc((size_t)rows * w->cols * sizeof(*x));
    if (!x)
        return nb_fail(o->ret_error, -ENOMEM, "no memory for the embedding");
    for (uint32_t r = 0; r < rows; r++)
        nb_layout_dequantize_row(w, r, x + (size_t)r * w->cols);
    struct nb_ref y = nb_onnx_floats(o, x, rows, w->cols);
    free(x);
    if (op->lookup != NB_LOOKUP_FIRST)
        y = nb_onnx_2(o, "Gather", y, op->lookup == NB_LOOKUP_TOKEN ? o->ids : o->positions);
    if (op->scale != 1)
        y = nb_onnx_2(o, "Mul", y, nb_onnx_real(o, op->scale));
    if (op->add)
        y = nb_onnx_2(o, "Add", nb_onnx_read(o, &op->out), y);
    nb_onnx_write(o, &op->out, y);
    return 0;
}

// ---- Norms

// A vector of ones, where a norm has no weights.
static struct nb_ref weights_of(struct nb_onnx *o, const struct nb_op *op)
{
    if (op->weight)
        return nb_onnx_floats(o, op->weight, op->each ? op->heads : 0, op->dim);
    return nb_onnx_real(o, 1);
}

static struct nb_ref rms(struct nb_onnx *o, struct nb_ref x)
{
    const struct nb_onnx_attribute last[2] = {
        {.name = "axes", .kind = NB_ONNX_INTS, .values = {-1}, .n = 1}};
    struct nb_ref y = nb_onnx_2(o, "Mul", x, x);
    y = nb_onnx_node(o->g, "ReduceMean", &y, 1, last, NULL, 0);
    y = nb_onnx_2(o, "Add", y, nb_onnx_real(o, o->plan->hp.norm_eps));
    return nb_onnx_2(o, "Div", x, nb_onnx_1(o, "Sqrt", y));
}

// x less its mean, by its deviation.
static struct nb_ref centred(struct nb_onnx *o, struct nb_ref x)
{
    const struct nb_onnx_attribute last[2] = {
        {.name = "axes", .kind = NB_ONNX_INTS, .values = {-1}, .n = 1}};
    const struct nb_ref mean = nb_onnx_node(o->g, "ReduceMean", &x, 1, last, NULL, 0);
    return rms(o, nb_onnx_2(o, "Sub", x, mean));
}

static int norm(struct nb_onnx *o, const struct nb_op *op)
{
    const bool heads = op->heads > 1 || op->dim != op->in.width;
    const int64_t apart[] = {-1, op->heads, op->dim}, together[] = {-1, op->in.width};
    struct nb_ref x = nb_onnx_read(o, &op->in);
    x = heads ? nb_onnx_reshape(o, x, apart, 3) : x;
    x = o->plan->hp.arch->norm == NB_NORM_RMS ? rms(o, x) : centred(o, x);
    x = nb_onnx_2(o, "Mul", x, weights_of(o, op));
    if (op->bias)
        x = nb_onnx_2(o, "Add", x, nb_onnx_floats(o, op->bias, 0, op->dim));
    x = heads ? nb_onnx_reshape(o, x, together, 2) : x;
    nb_onnx_write(o, &op->out, x);
    return 0;
}

// ---- Element by element

static struct nb_ref scaled(struct nb_onnx *o, struct nb_ref x, float scale)
{
    return scale == 1 ? x : nb_onnx_2(o, "Mul", x, nb_onnx_real(o, scale));
}

// 0.5 x (1 + inner)
static struct nb_ref half_of(struct nb_onnx *o, struct nb_ref x, struct nb_ref inner)
{
    return nb_onnx_2(o, "Mul", scaled(o, x, 0.5f), nb_onnx_2(o, "Add", inner, nb_onnx_real(o, 1)));
}

static struct nb_ref activated(struct nb_onnx *o, enum nb_activation kind, struct nb_ref x)
{
    struct nb_ref y;
    switch (kind) {
    case NB_ACT_SILU:
        return nb_onnx_2(o, "Mul", x, nb_onnx_1(o, "Sigmoid", x));
    case NB_ACT_GELU:
        y = scaled(o, nb_onnx_2(o, "Mul", x, nb_onnx_2(o, "Mul", x, x)), 0.044715f);
        y = scaled(o, nb_onnx_2(o, "Add", x, y), 0.7978845608f);
        return half_of(o, x, nb_onnx_1(o, "Tanh", y));
    case NB_ACT_GELU_ERF:
        return half_of(o, x, nb_onnx_1(o, "Erf", scaled(o, x, 0.7071067812f)));
    case NB_ACT_RELU2:
        y = nb_onnx_1(o, "Relu", x);
        return nb_onnx_2(o, "Mul", y, y);
    default:
        return nb_onnx_1(o, "Relu", x);
    }
}

static int activate(struct nb_onnx *o, const struct nb_op *op)
{
    struct nb_ref x = activated(o, o->plan->hp.arch->activation, nb_onnx_read(o, &op->in));
    if (op->other.value)
        x = nb_onnx_2(o, "Mul", x, nb_onnx_read(o, &op->other));
    nb_onnx_write(o, &op->out, x);
    return 0;
}

static int add(struct nb_onnx *o, const struct nb_op *op)
{
    const struct nb_ref x = scaled(o, nb_onnx_read(o, &op->in), op->scale);
    nb_onnx_write(o, &op->out, nb_onnx_2(o, "Add", nb_onnx_read(o, &op->out), x));
    return 0;
}

static int keep(struct nb_onnx *o, const struct nb_op *op)
{
    o->keys = nb_onnx_read(o, &op->in);
    o->values = nb_onnx_read(o, &op->other);
    return 0;
}

int nb_onnx_op(struct nb_onnx *o, const struct nb_op *op)
{
    static int (*const ops[NB_OP_KINDS])(struct nb_onnx *, const struct nb_op *) = {
        [NB_OP_EMBED] = embed,       [NB_OP_NORM] = norm, [NB_OP_LINEAR] = linear,
        [NB_OP_ROPE] = nb_onnx_rope, [NB_OP_KV] = keep,   [NB_OP_ATTENTION] = nb_onnx_attention,
        [NB_OP_ACTIVATE] = activate, [NB_OP_ADD] = add,
    };
    if (!ops[op->kind])
        return nb_fail(o->ret_error, -ENOTSUP,
                       "the model has the op \"%s\" in layer %u, which no graph is written for",
                       nb_op_names[op->kind], op->layer);
    return ops[op->kind](o, op);
}
