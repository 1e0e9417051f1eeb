// The export as a whole: the graph's inputs, the ops in order, its result. See export.h.
#include "quant/onnx/export.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "quant/onnx/export_private.h"

// ---- Small nodes

struct nb_ref nb_onnx_1(struct nb_onnx *o, const char *op, struct nb_ref a)
{
    return nb_onnx_node(o->g, op, &a, 1, NULL, NULL, 0);
}

struct nb_ref nb_onnx_2(struct nb_onnx *o, const char *op, struct nb_ref a, struct nb_ref b)
{
    const struct nb_ref in[] = {a, b};
    return nb_onnx_node(o->g, op, in, 2, NULL, NULL, 0);
}

struct nb_ref nb_onnx_3(struct nb_onnx *o, const char *op, struct nb_ref a, struct nb_ref b,
                        struct nb_ref c)
{
    const struct nb_ref in[] = {a, b, c};
    return nb_onnx_node(o->g, op, in, 3, NULL, NULL, 0);
}

struct nb_ref nb_onnx_real(struct nb_onnx *o, float x)
{
    return nb_onnx_constant(o->g, NB_ONNX_FLOAT, NULL, 0, &x, sizeof(x));
}

struct nb_ref nb_onnx_ints(struct nb_onnx *o, const int64_t *x, size_t n)
{
    const int64_t dims[] = {(int64_t)n};
    return nb_onnx_constant(o->g, NB_ONNX_INT64, dims, 1, x, n * sizeof(*x));
}

struct nb_ref nb_onnx_int(struct nb_onnx *o, int64_t x)
{
    return nb_onnx_constant(o->g, NB_ONNX_INT64, NULL, 0, &x, sizeof(x));
}

struct nb_ref nb_onnx_floats(struct nb_onnx *o, const float *x, size_t rows, size_t cols)
{
    const int64_t dims[] = {(int64_t)rows, (int64_t)cols};
    return nb_onnx_constant(o->g, NB_ONNX_FLOAT, rows ? dims : dims + 1, rows ? 2 : 1, x,
                            (rows ? rows : 1) * cols * sizeof(*x));
}

struct nb_ref nb_onnx_reshape(struct nb_onnx *o, struct nb_ref x, const int64_t *shape, size_t n)
{
    return nb_onnx_2(o, "Reshape", x, nb_onnx_ints(o, shape, n));
}

struct nb_ref nb_onnx_transpose(struct nb_onnx *o, struct nb_ref x, const int64_t *order, size_t n)
{
    struct nb_onnx_attribute a[2] = {{.name = "perm", .kind = NB_ONNX_INTS, .n = n}};
    memcpy(a[0].values, order, n * sizeof(*order));
    return nb_onnx_node(o->g, "Transpose", &x, 1, a, NULL, 0);
}

struct nb_ref nb_onnx_cut(struct nb_onnx *o, struct nb_ref x, int64_t axis, int64_t begin,
                          int64_t end)
{
    const struct nb_ref in[] = {x, nb_onnx_ints(o, &begin, 1), nb_onnx_ints(o, &end, 1),
                                nb_onnx_ints(o, &axis, 1)};
    return nb_onnx_node(o->g, "Slice", in, 4, NULL, NULL, 0);
}

struct nb_ref nb_onnx_concat(struct nb_onnx *o, struct nb_ref a, struct nb_ref b, int64_t axis)
{
    const struct nb_ref in[] = {a, b};
    const struct nb_onnx_attribute at[2] = {
        {.name = "axis", .kind = NB_ONNX_INT, .values = {axis}}};
    return nb_onnx_node(o->g, "Concat", in, 2, at, NULL, 0);
}

// ---- Values

struct nb_ref nb_onnx_read(struct nb_onnx *o, const struct nb_slice *s)
{
    for (size_t i = o->n_written; i-- > 0;) {
        const struct nb_onnx_written *w = &o->written[i];
        if (nb_same_slice(&w->slice, s))
            return w->name;
        // Whoever writes a part of a value writes after who wrote the whole.
        if (w->slice.value == s->value && w->slice.at <= s->at &&
            w->slice.at + w->slice.width >= s->at + s->width)
            return nb_onnx_cut(o, w->name, 1, s->at - w->slice.at, s->at - w->slice.at + s->width);
    }
    return (struct nb_ref){""}; // which a runtime refuses
}

void nb_onnx_write(struct nb_onnx *o, const struct nb_slice *s, struct nb_ref x)
{
    size_t n = 0;
    // What it covers holds nothing any more.
    for (size_t i = 0; i < o->n_written; i++) {
        const struct nb_slice *old = &o->written[i].slice;
        const bool covered =
            old->value == s->value && old->at >= s->at && old->at + old->width <= s->at + s->width;
        if (!covered)
            o->written[n++] = o->written[i];
    }
    if (n == NB_ONNX_WRITTEN)
        memmove(o->written, o->written + 1, --n * sizeof(o->written[0]));
    o->written[n++] = (struct nb_onnx_written){*s, x};
    o->n_written = n;
}

// ---- The graph

static struct nb_slice stream(const struct nb_plan *plan)
{
    const uint32_t width = plan->hp.embedding;
    return (struct nb_slice){.value = NB_VALUE_X, .width = width, .stride = width};
}

// 0, 1, ... of each row.
static void make_positions(struct nb_onnx *o, struct nb_ref rows_of)
{
    struct nb_ref rows = nb_onnx_1(o, "Shape", rows_of);
    rows = nb_onnx_2(o, "Gather", rows, nb_onnx_int(o, 0));
    o->positions = nb_onnx_3(o, "Range", nb_onnx_int(o, 0), rows, nb_onnx_int(o, 1));
}

static int check(const struct nb_onnx *o)
{
    const struct nb_hparams *hp = &o->plan->hp;
    if (o->options.layer == NB_ONNX_ENCODER && hp->causal)
        return nb_fail(o->ret_error, -ENOTSUP,
                       "the model is no encoder: --layer N writes one layer of a decoder");
    if (o->options.layer != NB_ONNX_ENCODER && !hp->causal)
        return nb_fail(o->ret_error, -EINVAL,
                       "--layer is of a decoder; an encoder is written whole");
    if (o->options.layer != NB_ONNX_ENCODER && o->options.layer >= hp->n_layers)
        return nb_fail(o->ret_error, -EINVAL, "the model has the layers 0 to %u, not %u",
                       hp->n_layers - 1, o->options.layer);
    return 0;
}

static int add_ops(struct nb_onnx *o)
{
    const struct nb_plan *plan = o->plan;
    const bool whole = o->options.layer == NB_ONNX_ENCODER;
    const uint32_t first = whole ? 0 : plan->layer_ops[o->options.layer];
    const uint32_t end = whole ? plan->result + 1 : plan->layer_ops[o->options.layer + 1];
    struct nb_slice x = stream(plan);
    if (whole) {
        o->ids = nb_onnx_input(o->g, "input_ids", NB_ONNX_INT64, 0);
        make_positions(o, o->ids);
    } else {
        const struct nb_ref in = nb_onnx_input(o->g, "hidden_states", NB_ONNX_FLOAT, x.width);
        nb_onnx_write(o, &x, in);
        make_positions(o, in);
    }
    int rc = 0;
    for (uint32_t i = first; i < end && rc == 0; i++)
        rc = nb_onnx_op(o, &plan->ops[i]);
    if (rc == 0 && whole)
        x = plan->ops[plan->result].out;
    if (rc == 0)
        nb_onnx_output(o->g, nb_onnx_read(o, &x), whole ? "vectors" : "result", x.width);
    return rc;
}

int nb_onnx_export(const struct nb_plan *plan, const struct nb_onnx_options *options, void **ret,
                   size_t *ret_len, struct nb_error *ret_error)
{
    struct nb_onnx o = {.plan = plan, .options = *options};
    o.ret_error = ret_error;
    int rc = check(&o);
    if (rc < 0)
        return rc;
    o.g = nb_onnx_graph_create();
    rc = o.g ? add_ops(&o) : nb_fail(ret_error, -ENOMEM, "no memory for the graph");
    if (rc == 0) {
        rc = nb_onnx_graph_finish(o.g, ret, ret_len);
        if (rc < 0)
            rc = nb_fail(ret_error, rc,
                         rc == -EFBIG ? "the graph has more than 2 GiB, which is what "
                                        "protobuf can say: write INT8"
                                      : "no memory for the graph");
    }
    nb_onnx_graph_destroy(o.g);
    return rc;
}
