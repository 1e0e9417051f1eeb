// Rotary positions and attention as nodes: see export.h.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "quant/onnx/export_private.h"

// ---- Rotary positions

// Cosines and sines of the rows' positions, [rows][1][pairs] each.
static int make_rotations(struct nb_onnx *o, const struct nb_op *op, struct nb_ref ret[2])
{
    const struct nb_hparams *hp = &o->plan->hp;
    const uint32_t pairs = hp->rope_dims / 2;
    const uint32_t n = hp->context < NB_ONNX_POSITIONS ? hp->context : NB_ONNX_POSITIONS;
    const int64_t shape[] = {-1, 1, pairs};
    float *row = malloc((size_t)hp->n_ropes * hp->rope_dims * sizeof(*row));
    float *tables = malloc(2 * (size_t)n * pairs * sizeof(*tables));
    const bool memory = row && tables;
    for (uint32_t p = 0; memory && p < n; p++) {
        nb_rope_row(hp, p, row);
        for (size_t i = 0; i < 2; i++)
            memcpy(tables + (i * n + p) * pairs, row + (size_t)op->rope * hp->rope_dims + i * pairs,
                   pairs * sizeof(*row));
    }
    for (size_t i = 0; memory && i < 2; i++) {
        const struct nb_ref table = nb_onnx_floats(o, tables + i * n * pairs, n, pairs);
        ret[i] = nb_onnx_reshape(o, nb_onnx_2(o, "Gather", table, o->positions), shape, 3);
    }
    free(row);
    free(tables);
    return memory ? 0 : nb_fail(o->ret_error, -ENOMEM, "no memory for a table of rotations");
}

// The halves of the pairs of what is rotated, [rows][heads][pairs] each; and back.
static void part(struct nb_onnx *o, struct nb_ref x, const struct nb_op *op, struct nb_ref ret[2])
{
    const uint32_t dims = o->plan->hp.rope_dims;
    const int64_t pairs[] = {-1, op->heads, dims / 2, 2}, halves[] = {-1, op->heads, dims / 2};
    if (o->plan->hp.arch->rope_neox) {
        ret[0] = nb_onnx_cut(o, x, 2, 0, dims / 2);
        ret[1] = nb_onnx_cut(o, x, 2, dims / 2, dims);
        return;
    }
    const struct nb_ref rotated = nb_onnx_cut(o, x, 2, 0, dims);
    const struct nb_ref split = nb_onnx_reshape(o, rotated, pairs, 4);
    for (int64_t i = 0; i < 2; i++)
        ret[i] = nb_onnx_reshape(o, nb_onnx_cut(o, split, 3, i, i + 1), halves, 3);
}

static struct nb_ref join(struct nb_onnx *o, struct nb_ref a, struct nb_ref b,
                          const struct nb_op *op)
{
    const uint32_t dims = o->plan->hp.rope_dims;
    const int64_t apart[] = {-1, op->heads, dims / 2, 1}, together[] = {-1, op->heads, dims};
    if (o->plan->hp.arch->rope_neox)
        return nb_onnx_concat(o, a, b, 2);
    a = nb_onnx_reshape(o, a, apart, 4);
    b = nb_onnx_reshape(o, b, apart, 4);
    return nb_onnx_reshape(o, nb_onnx_concat(o, a, b, 3), together, 3);
}

int nb_onnx_rope(struct nb_onnx *o, const struct nb_op *op)
{
    const uint32_t dims = o->plan->hp.rope_dims;
    const int64_t apart[] = {-1, op->heads, op->dim}, together[] = {-1, op->in.width};
    const struct nb_ref x = nb_onnx_reshape(o, nb_onnx_read(o, &op->in), apart, 3);
    struct nb_ref turn[2], half[2];
    int rc = make_rotations(o, op, turn);
    if (rc < 0)
        return rc;
    part(o, x, op, half);
    const struct nb_ref a = nb_onnx_2(o, "Sub", nb_onnx_2(o, "Mul", half[0], turn[0]),
                                      nb_onnx_2(o, "Mul", half[1], turn[1]));
    const struct nb_ref b = nb_onnx_2(o, "Add", nb_onnx_2(o, "Mul", half[1], turn[0]),
                                      nb_onnx_2(o, "Mul", half[0], turn[1]));
    struct nb_ref y = join(o, a, b, op);
    if (dims < op->dim)
        y = nb_onnx_concat(o, y, nb_onnx_cut(o, x, 2, dims, op->dim), 2);
    nb_onnx_write(o, &op->out, nb_onnx_reshape(o, y, together, 2));
    return 0;
}

// ---- Attention

// 0 where a query [rows][1] sees a key [1][rows], else what no softmax keeps.
static struct nb_ref mask_of(struct nb_onnx *o, uint32_t window)
{
    const int64_t column[] = {-1, 1}, row[] = {1, -1};
    const struct nb_ref q = nb_onnx_reshape(o, o->positions, column, 2);
    const struct nb_ref k = nb_onnx_reshape(o, o->positions, row, 2);
    struct nb_ref seen = nb_onnx_2(o, "LessOrEqual", k, q);
    if (window)
        seen = nb_onnx_2(o, "And", seen,
                         nb_onnx_2(o, "Less", nb_onnx_2(o, "Sub", q, k), nb_onnx_int(o, window)));
    return nb_onnx_3(o, "Where", seen, nb_onnx_real(o, 0), nb_onnx_real(o, -1e30f));
}

// [rows][heads that share a KV head] of it, scored against its keys: [KV
// heads][sharing][rows][rows].
static struct nb_ref scores_of(struct nb_onnx *o, const struct nb_op *op)
{
    const struct nb_hparams *hp = &o->plan->hp;
    const int64_t kv = hp->n_kv_heads, sharing = hp->n_heads / hp->n_kv_heads;
    const int64_t queries[] = {-1, kv, sharing, hp->k_dim}, by_head[] = {1, 2, 0, 3};
    const int64_t keys[] = {-1, kv, 1, hp->k_dim}, across[] = {1, 2, 3, 0};
    const struct nb_ref q =
        nb_onnx_transpose(o, nb_onnx_reshape(o, nb_onnx_read(o, &op->in), queries, 4), by_head, 4);
    const struct nb_ref k = nb_onnx_transpose(o, nb_onnx_reshape(o, o->keys, keys, 4), across, 4);
    struct nb_ref s = nb_onnx_2(o, "MatMul", q, k);
    s = nb_onnx_2(o, "Mul", s, nb_onnx_real(o, hp->attn_scale));
    if (hp->attn_softcap > 0) {
        s = nb_onnx_2(o, "Div", s, nb_onnx_real(o, hp->attn_softcap));
        s = nb_onnx_2(o, "Mul", nb_onnx_1(o, "Tanh", s), nb_onnx_real(o, hp->attn_softcap));
    }
    return hp->causal ? nb_onnx_2(o, "Add", s, mask_of(o, op->window)) : s;
}

int nb_onnx_attention(struct nb_onnx *o, const struct nb_op *op)
{
    const struct nb_hparams *hp = &o->plan->hp;
    const int64_t values[] = {-1, hp->n_kv_heads, 1, hp->v_dim}, by_head[] = {1, 2, 0, 3};
    const int64_t back[] = {2, 0, 1, 3}, together[] = {-1, op->out.width};
    const struct nb_ref p = nb_onnx_1(o, "Softmax", scores_of(o, op));
    const struct nb_ref v =
        nb_onnx_transpose(o, nb_onnx_reshape(o, o->values, values, 4), by_head, 4);
    const struct nb_ref y = nb_onnx_transpose(o, nb_onnx_2(o, "MatMul", p, v), back, 4);
    nb_onnx_write(o, &op->out, nb_onnx_reshape(o, y, together, 2));
    return 0;
}
